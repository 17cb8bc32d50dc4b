/* tests/unit/base_arena_test.c - an arena hands out disjoint, aligned memory up to its maximum, and a failed malloc costs nothing else. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <cmocka.h>
#include "base/arena.h"
#include "base/io.h"
#include "tests/support/fail_alloc.h"

static uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* Pieces of all sizes keep the pattern that was written into them, whatever is allocated after. */
static void pieces_are_disjoint_and_aligned(void **state)
{
	(void)state;
	enum { PIECES = 4000 };
	static struct {
		uint8_t *p;
		size_t n;
	} v[PIECES];
	struct arena a;
	arena_init(&a, (size_t)1 << 30);
	for (int round = 0; round < 3; round++) {
		uint64_t x = 88172645463325252u + (uint64_t)round;
		size_t sum = 0;
		for (size_t i = 0; i < PIECES; i++) {
			size_t n = next(&x) % (next(&x) % 50 == 0 ? 200000 : 300);
			v[i].p = arena_alloc(&a, n);
			v[i].n = n;
			assert_non_null(v[i].p);
			assert_int_equal((uintptr_t)v[i].p % 8, 0);
			memset(v[i].p, (int)(i & 0xff), n);
			sum += n ? (n + 7) & ~(size_t)7 : 8;
		}
		assert_int_equal(a.used_bytes, sum);
		assert_true(a.held_bytes >= a.used_bytes);
		for (size_t i = 0; i < PIECES; i++)
			for (size_t k = 0; k < v[i].n; k++)
				assert_int_equal(v[i].p[k], i & 0xff);
		arena_reset(&a);
		assert_int_equal(a.used_bytes, 0);
		assert_true(a.held_bytes <= ((size_t)1 << 20) + 64);
	}
	arena_free(&a);
	assert_int_equal(a.held_bytes, 0);
	assert_non_null(arena_alloc(&a, 10));
	arena_free(&a);
}

/* The first piece may be of any size: what comes next is beside it. */
static void the_first_piece_is_nobodys_neighbour(void **state)
{
	(void)state;
	for (size_t n = 0; n < 20000; n += 61) {
		struct arena a;
		arena_init(&a, 1 << 20);
		uint8_t *first = arena_alloc(&a, n);
		memset(first, 1, n);
		for (size_t i = 0; i < 30; i++)
			memset(arena_alloc(&a, n / 3 + 8), 2, n / 3 + 8);
		for (size_t i = 0; i < n; i++)
			assert_int_equal(first[i], 1);
		arena_free(&a);
	}
}

static void the_maximum_holds(void **state)
{
	(void)state;
	for (size_t max = 0; max < 200; max += 8) {
		for (size_t piece = 1; piece < 40; piece++) {
			struct arena a;
			size_t n = 0;
			arena_init(&a, max);
			while (arena_alloc(&a, piece))
				n++;
			assert_int_equal(n, max / ((piece + 7) & ~(size_t)7));
			arena_free(&a);
		}
	}
	struct arena a;
	arena_init(&a, SIZE_MAX);
	assert_null(arena_calloc(&a, SIZE_MAX / 2, 3));
	assert_null(arena_calloc(&a, (size_t)1 << 33, (size_t)1 << 33));
	arena_init(&a, 100);
	assert_null(arena_alloc(&a, SIZE_MAX));
	assert_null(arena_alloc(&a, SIZE_MAX - 6));
	assert_null(arena_cstr(&a, span_of("", SIZE_MAX)));
	arena_free(&a);
}

static void texts_are_copied(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, 4096);
	char text[] = "hello";
	struct span s = arena_dup(&a, span_cstr(text));
	char *c = arena_cstr(&a, span_cstr(text)), *f = arena_printf(&a, "%s-%d", text, 42);
	text[0] = 'j';
	assert_true(span_is(s, "hello"));
	assert_string_equal(c, "hello");
	assert_string_equal(f, "hello-42");
	assert_non_null(arena_dup(&a, (struct span){NULL, 0}).p);
	assert_string_equal(arena_cstr(&a, (struct span){"", 0}), "");
	const uint8_t *zeros = arena_calloc(&a, 10, 10);
	for (int i = 0; i < 100; i++)
		assert_int_equal(zeros[i], 0);
	arena_free(&a);
}

static void a_failed_malloc_leaves_the_arena_usable(void **state)
{
	(void)state;
	for (uint64_t n = 1;; n++) {
		struct arena a;
		arena_init(&a, (size_t)1 << 24);
		fail_alloc_at(n, false);
		unsigned missing = 0;
		for (size_t i = 0; i < 60; i++) {
			size_t want = i % 7 == 0 ? 100000 : 1000;
			void *p = arena_alloc(&a, want);
			missing += !p;
			if (p)
				memset(p, 1, want);
		}
		uint64_t hits = fail_alloc_off();
		assert_int_equal(missing, hits);
		assert_non_null(arena_alloc(&a, 5000));
		arena_free(&a);
		if (!hits)
			break;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pieces_are_disjoint_and_aligned),
		cmocka_unit_test(the_first_piece_is_nobodys_neighbour),
		cmocka_unit_test(the_maximum_holds),
		cmocka_unit_test(texts_are_copied),
		cmocka_unit_test(a_failed_malloc_leaves_the_arena_usable),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
