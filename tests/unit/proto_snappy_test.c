/* Snappy blocks: what is declared is judged before memory is spent; damage is refused or gives other bytes, never a read outside. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "proto/proto.h"

static struct span exact(struct span s)
{
	char *p = malloc(s.n ? s.n : 1);
	assert_non_null(p);
	if (s.n)
		memcpy(p, s.p, s.n);
	return span_of(p, s.n);
}

static void round_trip(void **state)
{
	(void)state;
	for (size_t n = 0; n < 200000; n = n * 3 + 1) {
		struct buf in, z;
		buf_init(&in, MIB);
		buf_init(&z, MIB);
		for (size_t i = 0; i < n; i++)
			buf_u8(&in, (uint8_t)(i * i >> 4));
		buf_put(&z, "kept", 4); /* encode appends */
		assert_int_equal(snappy_encode(span_of(in.p, in.n), &z, NULL), OK);
		struct arena arena;
		arena_init(&arena, MIB);
		struct span out, body = span_of(z.p + 4, z.n - 4);
		size_t declared;
		assert_int_equal(snappy_declared(body, &declared, NULL), OK);
		assert_int_equal(declared, n);
		assert_int_equal(snappy_decode(body, n, &arena, &out, NULL), OK);
		assert_true(span_eq(out, span_of(in.p, in.n)));
		if (n) {
			struct err err = {0};
			assert_int_equal(snappy_decode(body, n - 1, &arena, &out, &err), ERR_LIMIT);
			assert_string_equal(err.id, errid_text(ERRID_DECODED_TOO_LARGE));
		}
		arena_free(&arena);
		buf_free(&in);
		buf_free(&z);
	}
}

/* The preamble alone, whatever it declares, costs no memory. */
static void declared_size_costs_nothing(void **state)
{
	(void)state;
	for (unsigned shift = 11; shift < 32; shift++) {
		uint8_t body[UVARINT_MAX_BYTES + 20] = {0};
		size_t n = (size_t)(put_uvarint(body, UINT64_C(1) << shift) - body);
		struct arena arena;
		arena_init(&arena, 8 * GIB);
		struct span out;
		struct err err = {0};
		errc rc = snappy_decode(span_of(body, n + 2), 128 * MIB, &arena, &out, &err);
		assert_int_equal(rc, shift > 27 ? ERR_LIMIT : ERR_INVALID);
		assert_string_equal(err.id, errid_text(shift > 27 ? ERRID_DECODED_TOO_LARGE : ERRID_SNAPPY));
		assert_true(arena.held_bytes <= 64 * KIB);
		arena_free(&arena);
	}
}

static void not_snappy(void **state)
{
	(void)state;
	static const struct span bodies[] = {
		{"", 0}, {"\xff\xff\xff\xff\xff\xff", 6}, {"hello, I am plain text", 22}, {"\x80", 1}, {"\x05", 1},
		{"\x05\x10"
		 "ab",
			4},
		{"\x04\x01\x09", 3},		/* a copy from before the start */
		{"\xff\x06\x00\x00sNaPpY", 10}, /* the framed format */
	};
	for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
		struct arena arena;
		arena_init(&arena, MIB);
		struct span out, body = exact(bodies[i]);
		struct err err = {0};
		assert_int_equal(snappy_decode(body, 64 * KIB, &arena, &out, &err), ERR_INVALID);
		assert_string_equal(err.id, errid_text(ERRID_SNAPPY));
		arena_free(&arena);
		free((char *)(uintptr_t)body.p);
	}
}

static void damage_is_contained(void **state)
{
	(void)state;
	struct buf in, z;
	buf_init(&in, MIB);
	buf_init(&z, MIB);
	for (int i = 0; i < 60; i++)
		buf_printf(&in, "series_%d{job=\"some job\"} ", i % 7);
	assert_int_equal(snappy_encode(span_of(in.p, in.n), &z, NULL), OK);
	for (size_t at = 0; at < z.n; at++)
		for (unsigned x = 1; x < 256; x++) {
			z.p[at] ^= (uint8_t)x;
			struct arena arena;
			arena_init(&arena, MIB);
			struct span out, body = exact(span_of(z.p, x < 128 ? z.n : at)); /* flipped, or cut off */
			errc rc = snappy_decode(body, 64 * KIB, &arena, &out, NULL);
			assert_true(rc == OK || rc == ERR_INVALID || rc == ERR_LIMIT);
			z.p[at] ^= (uint8_t)x;
			arena_free(&arena);
			free((char *)(uintptr_t)body.p);
		}
	buf_free(&in);
	buf_free(&z);
}

static void no_memory_is_said(void **state)
{
	(void)state;
	struct buf z;
	buf_init(&z, MIB);
	assert_int_equal(snappy_encode(SPAN("0123456789012345678901234567890123456789"), &z, NULL), OK);
	struct arena arena;
	arena_init(&arena, 16);
	struct span out;
	assert_int_equal(snappy_decode(span_of(z.p, z.n), MIB, &arena, &out, NULL), ERR_NOMEM);
	struct buf small;
	buf_init(&small, 8);
	assert_int_equal(snappy_encode(SPAN("0123456789"), &small, NULL), ERR_NOMEM);
	arena_free(&arena);
	buf_free(&small);
	buf_free(&z);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(declared_size_costs_nothing),
		cmocka_unit_test(not_snappy),
		cmocka_unit_test(damage_is_contained),
		cmocka_unit_test(no_memory_is_said),
	};
	return cmocka_run_group_tests_name("snappy", tests, NULL, NULL);
}
