/* tests/unit/base_text_test.c - judging text: UTF-8, numbers, tenants, ULIDs, errors and their ids. */
#include <errno.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <cmocka.h>
#include "base/errid.h"
#include "base/io.h"
#include "base/tenant.h"
#include "base/ulid.h"
#include "tests/support/sim.h"

/* By decoding, as the definition says; the code under test goes by ranges. */
static bool utf8_by_definition(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n;) {
		uint32_t c = p[i], least;
		size_t len;
		if (c < 0x80)
			len = 1, least = 0;
		else if ((c & 0xe0) == 0xc0)
			len = 2, least = 0x80, c &= 0x1f;
		else if ((c & 0xf0) == 0xe0)
			len = 3, least = 0x800, c &= 0x0f;
		else if ((c & 0xf8) == 0xf0)
			len = 4, least = 0x10000, c &= 0x07;
		else
			return false;
		if (len > n - i)
			return false;
		for (size_t k = 1; k < len; k++) {
			if ((p[i + k] & 0xc0) != 0x80)
				return false;
			c = c << 6 | (p[i + k] & 0x3f);
		}
		if (c < least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
			return false;
		i += len;
	}
	return true;
}

static void agree(const uint8_t *p, size_t n)
{
	if (span_is_utf8(span_of(p, n)) != utf8_by_definition(p, n)) {
		print_message("disagree on");
		for (size_t i = 0; i < n; i++)
			print_message(" %02x", p[i]);
		print_message("\n");
		fail();
	}
}

/* All one-, two- and three-byte sequences, all four-byte ones at the ends of their ranges, and each of them behind and before ASCII. */
static void utf8_is_judged_by_definition(void **state)
{
	(void)state;
	static const uint8_t edge[] = {0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xff};
	uint8_t b[24] = {0};
	agree(b, 0);
	for (unsigned x = 0; x < 1u << 24; x++) {
		b[0] = (uint8_t)(x >> 16);
		b[1] = (uint8_t)(x >> 8);
		b[2] = (uint8_t)x;
		if (b[2] == 0 && b[1] == 0)
			agree(b, 1);
		if (b[2] == 0)
			agree(b, 2);
		if (b[0] >= 0x7f || (x & 0xff) < 4)
			agree(b, 3);
	}
	for (unsigned lead = 0xe0; lead < 0x100; lead++) {
		for (unsigned i = 0; i < 10 * 10 * 10; i++) {
			uint8_t seq[4] = {(uint8_t)lead, edge[i % 10], edge[i / 10 % 10], edge[i / 100]};
			for (size_t at = 0; at < 17; at++) {
				memset(b, 'a', sizeof b);
				memcpy(b + at, seq, 4);
				agree(b, at + 4);
				agree(b, sizeof b);
			}
		}
	}
}

static void numbers_are_decimal_and_fit(void **state)
{
	(void)state;
	int64_t x = 7;
	static const char *const bad[] = {"", "-", "+1", " 1", "1 ", "--1", "0x1", "1.0", "9223372036854775808", "-9223372036854775809",
		"99999999999999999999999", "1e3", "1\n"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_false(span_to_i64(span_cstr(bad[i]), &x));
	assert_false(span_to_i64(span_of("1\0002", 3), &x));
	assert_true(span_to_i64(SPAN("9223372036854775807"), &x) && x == INT64_MAX);
	assert_true(span_to_i64(SPAN("-9223372036854775808"), &x) && x == INT64_MIN);
	for (int64_t v = 1; v > 0 && v < INT64_MAX / 3; v *= 3) {
		char text[32];
		snprintf(text, sizeof text, "%lld", -(long long)v);
		assert_true(span_to_i64(span_cstr(text), &x) && x == -v);
		assert_true(span_to_i64(span_cstr(text + 1), &x) && x == v);
	}
}

static void spans_compare_as_bytes(void **state)
{
	(void)state;
	static const char *const sorted[] = {"", "A", "Z", "a", "a\x01", "aa", "ab", "b", "\x7f", "\x80", "\xff"};
	for (size_t i = 0; i < 11; i++) {
		for (size_t k = 0; k < 11; k++) {
			int c = span_cmp(span_cstr(sorted[i]), span_cstr(sorted[k]));
			assert_true((c < 0) == (i < k) && (c > 0) == (i > k));
			assert_int_equal(span_eq(span_cstr(sorted[i]), span_cstr(sorted[k])), i == k);
		}
	}
	assert_true(span_has_prefix(SPAN("abc"), SPAN("ab")) && span_has_prefix(SPAN("abc"), SPAN("")) && !span_has_prefix(SPAN("ab"), SPAN("abc")));
	assert_true(span_eq((struct span){NULL, 0}, SPAN("")));
}

/* Every byte at the first, a middle and the last place, and every length. */
static void tenants_are_plain(void **state)
{
	(void)state;
	char name[TENANT_NAME_MAX + 2];
	for (unsigned c = 0; c < 256; c++) {
		bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' || c == '-';
		for (size_t at = 0; at < 3; at++) {
			memcpy(name, "abc", 3);
			name[at] = (char)c;
			assert_int_equal(tenant_valid(span_of(name, 3)), plain || (at > 0 && c == '.'));
		}
	}
	memset(name, 'x', sizeof name);
	for (size_t n = 0; n < sizeof name; n++)
		assert_int_equal(tenant_valid(span_of(name, n)), n >= 1 && n <= TENANT_NAME_MAX);
	assert_false(tenant_valid(SPAN(".")));
	assert_false(tenant_valid(SPAN("..")));
	assert_true(tenant_valid(span_cstr(TENANT_DEFAULT)));
}

static void ulids_round_trip_and_rise(void **state)
{
	(void)state;
	struct ulid u, last = {{0}};
	/* the example of the specification, and the ends */
	assert_true(ulid_parse(SPAN("01ARZ3NDEKTSV4RRFFQ69G5FAV"), &u));
	assert_int_equal(ulid_time_ms(u), 1469922850259);
	assert_string_equal(ulid_text(u).s, "01ARZ3NDEKTSV4RRFFQ69G5FAV");
	assert_true(ulid_parse(SPAN("7ZZZZZZZZZZZZZZZZZZZZZZZZZ"), &u));
	for (int i = 0; i < 16; i++)
		assert_int_equal(u.b[i], 0xff);
	assert_true(ulid_parse(SPAN("00000000000000000000000000"), &u) && ulid_is_zero(u));
	static const char *const bad[] = {"80000000000000000000000000", "01ARZ3NDEKTSV4RRFFQ69G5FA", "01ARZ3NDEKTSV4RRFFQ69G5FAVV",
		"01arz3ndektsv4rrffq69g5fav", "01ARZ3NDEKTSV4RRFFQ69G5FAI", "01ARZ3NDEKTSV4RRFFQ69G5FAL", "01ARZ3NDEKTSV4RRFFQ69G5FAO",
		"01ARZ3NDEKTSV4RRFFQ69G5FAU", "", "../../../../../../etc/passw"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		assert_false(ulid_parse(span_cstr(bad[i]), &u));
	assert_false(ulid_parse(span_of("01ARZ3NDEKTSV4RRFFQ69G5FA\0", 26), &u));

	struct sim *s = sim_new(5);
	sim_freeze(s);
	sim_set_now(s, 1700000000000);
	for (int i = 0; i < 20000; i++) {
		if (i % 1000 == 999)
			sim_advance(s, 1);
		u = ulid_new();
		assert_true(ulid_cmp(u, last) > 0);
		assert_int_equal(ulid_time_ms(u), io_now_ms());
		struct ulid back;
		assert_true(ulid_parse(span_cstr(ulid_text(u).s), &back) && ulid_eq(u, back));
		assert_true(i == 0 || strcmp(ulid_text(last).s, ulid_text(u).s) < 0);
		last = u;
	}
	sim_free(s);
}

static void errors_say_what_and_why(void **state)
{
	(void)state;
	struct err e = {0};
	assert_int_equal(err_set(&e, ERR_CORRUPT, "%s: %d", "file", 7), ERR_CORRUPT);
	assert_string_equal(e.msg, "file: 7");
	assert_int_equal(err_wrap(&e, "block %d", 3), ERR_CORRUPT);
	assert_string_equal(e.msg, "block 3: file: 7");
	assert_int_equal(err_set(NULL, ERR_IO, "nobody listens"), ERR_IO);
	static const struct {
		int e;
		errc code;
	} map[] = {{ENOSPC, ERR_NOSPACE}, {EDQUOT, ERR_NOSPACE}, {ENOENT, ERR_NOTFOUND}, {EEXIST, ERR_EXISTS}, {ENOMEM, ERR_NOMEM},
		{EACCES, ERR_DENIED}, {EPERM, ERR_DENIED}, {EROFS, ERR_DENIED}, {EIO, ERR_IO}, {EMFILE, ERR_IO}};
	for (size_t i = 0; i < sizeof map / sizeof *map; i++)
		assert_int_equal(err_errno(&e, map[i].e, "open x"), map[i].code);
	assert_string_equal(e.msg, "open x: Too many open files");
	/* whatever the length, one message fits and stays UTF-8 */
	char big[1000];
	for (size_t n = 0; n < sizeof big - 2; n++) {
		memset(big, 'a', sizeof big);
		for (size_t i = n % 2; i + 1 < n; i += 2)
			memcpy(big + i, "\xc3\xa9", 2);
		big[n] = 0;
		if (!span_is_utf8(span_cstr(big)))
			continue;
		err_set(&e, ERR_IO, "%s", big);
		assert_true(span_is_utf8(span_cstr(e.msg)));
		err_wrap(&e, "%s", "\xc3\xa9t\xc3\xa9");
		assert_true(span_is_utf8(span_cstr(e.msg)));
		err_errno(&e, EIO, "%s", big);
		assert_true(span_is_utf8(span_cstr(e.msg)));
	}
	err_set(&e, ERR_IO,
		"a\nb\tc\xff"
		"d\xe2\x82"
		"e\xe2\x82\xac");
	assert_string_equal(e.msg, "a b c?d??e\xe2\x82\xac");
	for (int c = 0; c < ERR_CODES; c++) {
		assert_non_null(errc_name((errc)c));
		for (int d = 0; d < c; d++)
			assert_string_not_equal(errc_name((errc)c), errc_name((errc)d));
	}
}

static void error_ids_are_unique_words(void **state)
{
	(void)state;
	assert_null(errid_text(ERRID_NONE));
	assert_int_equal(errid_of(NULL), ERRID_NONE);
	assert_int_equal(errid_of("err-varve-no-such"), ERRID_NONE);
	for (enum errid i = 1; i < ERRID_COUNT; i++) {
		const char *text = errid_text(i);
		assert_int_equal(strncmp(text, "err-varve-", 10), 0);
		assert_int_equal(strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-"), strlen(text));
		assert_in_range(errid_status(i), 400, 503);
		assert_int_equal(errid_of(text), i);
		struct err e = {0};
		assert_int_equal(err_id(&e, i, ERR_INVALID, "x=%d", 1), ERR_INVALID);
		assert_ptr_equal(e.id, text);
		assert_string_equal(e.msg, "x=1");
		err_id(&e, i, ERR_INVALID, "%s", "{a=\"\nerr-varve-forged\"}");
		assert_null(strchr(e.msg, '\n'));
		err_set(&e, ERR_IO, "other");
		assert_null(e.id);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(utf8_is_judged_by_definition),
		cmocka_unit_test(numbers_are_decimal_and_fit),
		cmocka_unit_test(spans_compare_as_bytes),
		cmocka_unit_test(tenants_are_plain),
		cmocka_unit_test(ulids_round_trip_and_rise),
		cmocka_unit_test(errors_say_what_and_why),
		cmocka_unit_test(error_ids_are_unique_words),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
