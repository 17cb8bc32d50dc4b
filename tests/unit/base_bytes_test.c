/* tests/unit/base_bytes_test.c - what is written is read back, and no reader passes its end. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "tests/support/fail_alloc.h"

/* Around every power of two: each length of varint and both its ends. */
static size_t interesting(uint64_t *out)
{
	size_t n = 0;
	for (int bit = 0; bit < 64; bit++)
		for (int d = -3; d <= 3; d++)
			out[n++] = (UINT64_C(1) << bit) + (uint64_t)(int64_t)d;
	return n;
}

/* Each value: round trip, the shortest form, and every truncation is refused without a step past the end. */
static void uvarints_round_trip(void **state)
{
	(void)state;
	uint64_t v[64 * 7];
	size_t n = interesting(v);
	for (size_t i = 0; i < n; i++) {
		uint8_t b[UVARINT_MAX_BYTES + 1];
		memset(b, 0xff, sizeof b);
		size_t len = (size_t)(put_uvarint(b, v[i]) - b);
		assert_int_equal(len, uvarint_size(v[i]));
		assert_true(len <= UVARINT_MAX_BYTES && (len == 1 || b[len - 1] != 0));
		for (size_t cut = 0; cut <= len; cut++) {
			uint8_t *exact = malloc(cut ? cut : 1);
			memcpy(exact, b, cut);
			struct rd r = rd_of(exact, cut);
			uint64_t got = rd_uvarint(&r);
			assert_int_equal(r.ok, cut == len);
			assert_true(got == (cut == len ? v[i] : 0));
			assert_ptr_equal(r.p, exact + cut);
			free(exact);
		}
		int64_t s = (int64_t)v[i];
		len = (size_t)(put_varint(b, s) - b);
		struct rd r = rd_of(b, len);
		assert_true(rd_varint(&r) == s && r.ok && rd_left(&r) == 0);
		assert_true(zigzag_decode(zigzag_encode(s)) == s);
	}
}

static void overlong_uvarints_are_refused(void **state)
{
	(void)state;
	uint8_t b[12];
	/* ten bytes, the last with 0 .. 127: only 0 and 1 fit 64 bits */
	for (unsigned last = 0; last < 128; last++) {
		memset(b, 0xff, sizeof b);
		b[9] = (uint8_t)last;
		struct rd r = rd_of(b, sizeof b);
		uint64_t got = rd_uvarint(&r);
		assert_int_equal(r.ok, last <= 1);
		if (last <= 1)
			assert_true(got == (UINT64_MAX >> 1) + ((uint64_t)last << 63));
	}
	memset(b, 0x80, sizeof b);
	struct rd r = rd_of(b, sizeof b);
	assert_true(rd_uvarint(&r) == 0 && !r.ok);
}

static void a_failed_reader_stays_failed(void **state)
{
	(void)state;
	static const uint8_t b[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
	for (size_t n = 0; n < 8; n++) {
		struct rd r = rd_of(b, n);
		assert_true(rd_be64(&r) == 0 && !r.ok);
		assert_true(rd_u8(&r) == 0 && rd_be32(&r) == 0 && rd_le32(&r) == 0 && rd_uvarint(&r) == 0);
		assert_int_equal(rd_bytes(&r, 1).n, 0);
		assert_int_equal(rd_str(&r).n, 0);
		assert_false(r.ok);
	}
	struct rd r = rd_of(b, 16);
	assert_true(rd_be32(&r) == 0x01020304 && rd_le32(&r) == 0x08070605 && rd_le64(&r) == UINT64_C(0x100f0e0d0c0b0a09) && r.ok);
	r = rd_of("\x05"
		  "ab",
		3);
	assert_int_equal(rd_str(&r).n, 0);
	assert_false(r.ok);
	r = rd_of("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
		  "ab",
		12);
	assert_int_equal(rd_str(&r).n, 0);
	assert_false(r.ok);
}

/* Every limit and write size: the buffer holds what fits, fails at the first write that does not, and never passes max. */
static void buffers_keep_their_limit(void **state)
{
	(void)state;
	for (size_t max = 0; max < 600; max += 7) {
		for (size_t piece = 1; piece < 300; piece += 13) {
			struct buf b;
			char text[300];
			memset(text, 'x', sizeof text);
			buf_init(&b, max);
			size_t n = 0;
			while (!b.failed && n < 1000) {
				buf_put(&b, text, piece);
				n++;
			}
			assert_true(b.failed);
			assert_int_equal(b.n, (n - 1) * piece);
			assert_true(b.cap <= max && b.n <= max && b.n + piece > max);
			buf_u8(&b, 1);
			assert_int_equal(b.n, (n - 1) * piece);
			buf_clear(&b);
			assert_false(b.failed);
			buf_free(&b);
		}
	}
	struct buf b;
	buf_init(&b, 1000);
	buf_u8(&b, 1);
	assert_false(buf_reserve(&b, SIZE_MAX));
	buf_free(&b);
	buf_init(&b, 1000);
	buf_printf(&b, "%s=%d", "a", 7);
	buf_be32(&b, 0x01020304);
	buf_be64(&b, 5);
	buf_uvarint(&b, 300);
	buf_varint(&b, -1);
	buf_str(&b, SPAN("xy"));
	assert_int_equal(b.n, 3 + 4 + 8 + 2 + 1 + 3);
	assert_memory_equal(b.p, "a=7\1\2\3\4\0\0\0\0\0\0\0\5\xac\2\1\2xy", b.n);
	buf_free(&b);
}

static void a_failed_realloc_fails_the_buffer(void **state)
{
	(void)state;
	for (uint64_t n = 1;; n++) {
		struct buf b;
		buf_init(&b, 1 << 20);
		fail_alloc_at(n, false);
		for (int i = 0; i < 5000; i++)
			buf_be64(&b, (uint64_t)i);
		uint64_t hits = fail_alloc_off();
		assert_int_equal(b.failed, hits > 0);
		for (size_t i = 0; i < b.n / 8; i++)
			assert_true(get_be64(b.p + i * 8) == i);
		buf_free(&b);
		if (!hits)
			break;
	}
}

static uint32_t crc_by_bits(const uint8_t *p, size_t n)
{
	uint32_t crc = UINT32_MAX;
	for (size_t i = 0; i < n; i++) {
		crc ^= p[i];
		for (int k = 0; k < 8; k++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return ~crc;
}

/* RFC 3720's examples, and every length and cut up to 300 against the definition. */
static void crc32c_is_castagnoli(void **state)
{
	(void)state;
	uint8_t b[300];
	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
	memset(b, 0, 32);
	assert_int_equal(crc32c(0, b, 32), 0x8a9136aa);
	memset(b, 0xff, 32);
	assert_int_equal(crc32c(0, b, 32), 0x62a8ab43);
	for (size_t i = 0; i < sizeof b; i++)
		b[i] = (uint8_t)(i * 37 + 11);
	for (size_t n = 0; n <= sizeof b; n++) {
		uint32_t want = crc_by_bits(b, n);
		assert_int_equal(crc32c(0, b, n), want);
		size_t cut = n * 7 / 11;
		assert_int_equal(crc32c(crc32c(0, b, cut), b + cut, n - cut), want);
	}
}

static void float_bits_are_kept(void **state)
{
	(void)state;
	static const uint64_t v[] = {0, 1, STALE_NAN_BITS, NORMAL_NAN_BITS, UINT64_C(0x7ff0000000000000), UINT64_C(0xfff8000000000001), UINT64_MAX};
	for (size_t i = 0; i < sizeof v / sizeof *v; i++)
		assert_true(f64_bits(f64_of_bits(v[i])) == v[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(uvarints_round_trip),
		cmocka_unit_test(overlong_uvarints_are_refused),
		cmocka_unit_test(a_failed_reader_stays_failed),
		cmocka_unit_test(buffers_keep_their_limit),
		cmocka_unit_test(a_failed_realloc_fails_the_buffer),
		cmocka_unit_test(crc32c_is_castagnoli),
		cmocka_unit_test(float_bits_are_kept),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
