/* tests/unit/base_labels_test.c - a label set has one canonical form, and whatever came is judged the same way. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <cmocka.h>
#include "base/labels.h"
#include "tests/support/fail_alloc.h"

static const struct labels_limits plenty = {64, 1024, 4096};

static uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static void field(struct buf *b, uint64_t tag, struct span s)
{
	buf_uvarint(b, tag);
	buf_str(b, s);
}

static void shuffle(struct label *v, uint32_t n, uint64_t *x)
{
	for (uint32_t i = n; i > 1; i--) {
		uint32_t k = (uint32_t)(next(x) % i);
		struct label t = v[i - 1];
		v[i - 1] = v[k];
		v[k] = t;
	}
}

/* A name of 1 to 3 letters out of few, so that prefixes and neighbours are common. */
static struct label random_label(struct arena *a, uint64_t *x, uint32_t i)
{
	char *name = arena_printf(a, "%c%.*s%u", (char)('a' + next(x) % 3), (int)(next(x) % 3), "ab", i);
	char *value = arena_printf(a, "%.*s", (int)(1 + next(x) % 200),
		"v23456789 0123456789 0123456789 0123456789 0123456789 0123456789 0123456789 "
		"0123456789 0123456789 0123456789 0123456789 0123456789 0123456789 01234567");
	return (struct label){span_cstr(name), span_cstr(value)};
}

/* Any order, an empty value more, or an unknown field in between: the same canonical bytes; and those decode to the same labels. */
static void one_canonical_form(void **state)
{
	(void)state;
	uint64_t x = 20261123;
	for (int round = 0; round < 2000; round++) {
		struct arena a;
		arena_init(&a, 1 << 20);
		struct label v[50];
		uint32_t n = 1 + (uint32_t)(next(&x) % 40);
		v[0] = (struct label){SPAN("__name__"), SPAN("up")};
		for (uint32_t i = 1; i < n; i++)
			v[i] = random_label(&a, &x, i);
		struct labels l = {v, n};
		uint32_t which;
		assert_int_equal(labels_normalize(&l, &plenty, &which), LABELS_OK);
		struct buf canonical, wire, again;
		buf_init(&canonical, 1 << 20);
		buf_init(&wire, 1 << 20);
		buf_init(&again, 1 << 20);
		labels_to_wire(l, &canonical);
		assert_int_equal(canonical.n, labels_wire_size(l));

		shuffle(v, n, &x);
		for (uint32_t i = 0; i < n; i++) {
			struct buf body;
			buf_init(&body, 1 << 16);
			if (next(&x) % 4 == 0)
				field(&body, 0x0a, SPAN("overwritten"));
			if (next(&x) % 2) {
				field(&body, 0x0a, v[i].name);
				field(&body, 0x12, v[i].value);
			} else {
				field(&body, 0x12, v[i].value);
				field(&body, 0x0a, v[i].name);
			}
			if (next(&x) % 4 == 0)
				field(&body, 0x1a, SPAN("unknown"));
			field(&wire, 0x0a, span_of(body.p, body.n));
			if (next(&x) % 4 == 0) {
				buf_uvarint(&wire, 0x18); /* an unknown varint */
				buf_uvarint(&wire, next(&x));
			}
			buf_free(&body);
		}
		field(&wire, 0x0a,
			SPAN("\x0a\x05"
			     "empty")); /* a label without a value */

		struct labels got;
		struct err err = {0};
		assert_int_equal(labels_from_wire(span_of(wire.p, wire.n), 64, &a, &got, &err), OK);
		assert_int_equal(got.n, n + 1);
		assert_int_equal(labels_normalize(&got, &plenty, &which), LABELS_OK);
		assert_int_equal(got.n, n);
		assert_true(labels_eq(got, (struct labels){got.v, got.n}));
		labels_to_wire(got, &again);
		assert_int_equal(again.n, canonical.n);
		assert_memory_equal(again.p, canonical.p, canonical.n);
		for (uint32_t i = 1; i < got.n; i++)
			assert_true(span_cmp(got.v[i - 1].name, got.v[i].name) < 0);
		assert_true(span_is(labels_get(got, SPAN("__name__")), "up"));
		assert_int_equal(labels_get(got, SPAN("absent")).n, 0);
		buf_free(&canonical);
		buf_free(&wire);
		buf_free(&again);
		arena_free(&a);
	}
}

/* Every truncation and every flipped byte of a canonical set decodes or is refused, and reads nothing outside. */
/* What the quick decoder of canonical bytes takes is exactly what has no other spelling: as it came, and with each byte changed, cut or put in. */
static void canonical_bytes_have_one_spelling(void **state)
{
	(void)state;
	uint64_t x = 7, taken = 0, refused = 0;
	for (int round = 0; round < 60; round++) {
		struct arena a;
		arena_init(&a, 64 << 20);
		struct label v[12], quick[16];
		uint32_t n = 1 + (uint32_t)(next(&x) % 10), n_quick, which;
		v[0] = (struct label){SPAN("__name__"), SPAN("up")};
		for (uint32_t i = 1; i < n; i++)
			v[i] = random_label(&a, &x, i);
		struct labels l = {v, n};
		assert_int_equal(labels_normalize(&l, &plenty, &which), LABELS_OK);
		struct buf wire;
		buf_init(&wire, 1 << 20);
		labels_to_wire(l, &wire);
		assert_true(labels_from_canonical(span_of(wire.p, wire.n), quick, 16, &n_quick));
		assert_true(labels_eq(l, (struct labels){quick, n_quick}));
		assert_false(labels_from_canonical(span_of(wire.p, wire.n), quick, n_quick - 1, &n_quick));
		for (size_t at = 0; at < wire.n * 3; at++) {
			uint8_t bad[8192];
			size_t k = at / 3, bytes = wire.n;
			memcpy(bad, wire.p, wire.n);
			if (at % 3 == 0) {
				bad[k] = (uint8_t)(bad[k] ^ (1 << next(&x) % 8));
			} else if (at % 3 == 1) {
				bytes = k;
			} else {
				memmove(bad + k + 1, bad + k, bytes++ - k);
				bad[k] = (uint8_t)(next(&x) % 4 ? 0x80 : 0);
			}
			if (!labels_from_canonical(span_of(bad, bytes), quick, 16, &n_quick)) {
				refused++;
				continue;
			}
			struct buf again;
			buf_init(&again, 1 << 20);
			labels_to_wire((struct labels){quick, n_quick}, &again);
			assert_int_equal(again.n, bytes);
			assert_memory_equal(again.p, bad, bytes);
			for (uint32_t i = 1; i < n_quick; i++)
				assert_true(span_cmp(quick[i - 1].name, quick[i].name) < 0);
			buf_free(&again);
			taken++;
		}
		buf_free(&wire);
		arena_free(&a);
	}
	assert_true(taken > 1000 && refused > 1000);
}

static void damage_is_refused_or_harmless(void **state)
{
	(void)state;
	struct label v[] = {{SPAN("__name__"), SPAN("http_requests_total")}, {SPAN("job"), SPAN("api")}, {SPAN("x"), SPAN("\xc3\xa9")}};
	struct buf b;
	buf_init(&b, 1 << 16);
	labels_to_wire((struct labels){v, 3}, &b);
	for (size_t cut = 0; cut <= b.n; cut++) {
		uint8_t *exact = malloc(cut ? cut : 1);
		memcpy(exact, b.p, cut);
		struct arena a;
		arena_init(&a, 1 << 16);
		struct labels got;
		errc rc = labels_from_wire(span_of(exact, cut), 64, &a, &got, NULL);
		assert_true(rc == OK || rc == ERR_INVALID);
		if (cut == b.n)
			assert_true(rc == OK && labels_eq(got, (struct labels){v, 3}));
		for (size_t i = 0; i < cut && cut == b.n; i++) {
			for (unsigned m = 1; m < 256; m++) {
				exact[i] ^= (uint8_t)m;
				rc = labels_from_wire(span_of(exact, cut), 64, &a, &got, NULL);
				assert_true(rc == OK || rc == ERR_INVALID);
				uint32_t which;
				if (rc == OK) {
					assert_true(got.n <= 64);
					(void)labels_normalize(&got, &plenty, &which);
				}
				exact[i] ^= (uint8_t)m;
				arena_reset(&a);
			}
		}
		arena_free(&a);
		free(exact);
	}
	buf_free(&b);
}

static void limits_and_memory(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, 1 << 20);
	for (uint32_t n = 0; n < 20; n++) {
		struct arena a;
		arena_init(&a, 1 << 16);
		struct labels got;
		assert_int_equal(labels_from_wire(span_of(b.p, b.n), 10, &a, &got, NULL), n <= 10 ? OK : ERR_LIMIT);
		arena_free(&a);
		field(&b, 0x0a,
			SPAN("\x0a\x01"
			     "a"
			     "\x12\x01"
			     "b"));
	}
	struct arena a;
	arena_init(&a, 1 << 16);
	struct labels got;
	fail_alloc_at(1, true);
	errc rc = labels_from_wire(span_of(b.p, b.n), 64, &a, &got, NULL);
	fail_alloc_off();
	assert_int_equal(rc, ERR_NOMEM);
	buf_free(&b);
	arena_free(&a);
}

static void faults_are_named(void **state)
{
	(void)state;
	static char long_text[5000];
	memset(long_text, 'x', sizeof long_text);
	static const struct labels_limits small = {3, 10, 20};
	struct {
		enum labels_fault want;
		const char *offender;
		struct label v[5];
		uint32_t n;
	} t[] = {
		{LABELS_OK, NULL, {{SPAN("__name__"), SPAN("a")}}, 1},
		{LABELS_OK, NULL, {{SPAN("z"), SPAN("1")}, {SPAN("__name__"), SPAN("a")}, {SPAN("gone"), SPAN("")}, {SPAN("gone"), SPAN("")}}, 4},
		{LABELS_EMPTY_SET, NULL, {{SPAN("a"), SPAN("")}}, 1},
		{LABELS_EMPTY_SET, NULL, {{SPAN(""), SPAN("")}}, 0},
		{LABELS_NO_NAME, NULL, {{SPAN("a"), SPAN("b")}}, 1},
		{LABELS_NO_NAME, NULL, {{SPAN("a"), SPAN("b")}, {SPAN("__name__"), SPAN("")}}, 2},
		{LABELS_EMPTY_NAME, "", {{SPAN("__name__"), SPAN("a")}, {SPAN(""), SPAN("b")}}, 2},
		{LABELS_DUPLICATE_NAME, "a", {{SPAN("a"), SPAN("1")}, {SPAN("__name__"), SPAN("a")}, {SPAN("a"), SPAN("1")}}, 3},
		{LABELS_BAD_UTF8, "\xff", {{SPAN("__name__"), SPAN("a")}, {SPAN("\xff"), SPAN("b")}}, 2},
		{LABELS_BAD_UTF8, "b", {{SPAN("__name__"), SPAN("a")}, {SPAN("b"), SPAN("\xed\xa0\x80")}}, 2},
		{LABELS_TOO_MANY, NULL, {{SPAN("__name__"), SPAN("a")}, {SPAN("b"), SPAN("1")}, {SPAN("c"), SPAN("1")}, {SPAN("d"), SPAN("1")}}, 4},
		{LABELS_NAME_TOO_LONG, "xxxxxxxxxxx", {{SPAN("__name__"), SPAN("a")}, {{long_text, 11}, SPAN("b")}}, 2},
		{LABELS_OK, NULL, {{SPAN("__name__"), SPAN("a")}, {{long_text, 10}, {long_text, 20}}}, 2},
		{LABELS_VALUE_TOO_LONG, "b", {{SPAN("__name__"), SPAN("a")}, {SPAN("b"), {long_text, 21}}}, 2},
	};
	for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
		struct labels l = {t[i].v, t[i].n};
		uint32_t which = 99;
		enum labels_fault got = labels_normalize(&l, &small, &which);
		if (got != t[i].want)
			print_message("case %zu: fault %d, want %d\n", i, (int)got, (int)t[i].want);
		assert_int_equal(got, t[i].want);
		if (t[i].offender) {
			assert_true(which < l.n || (which == 0 && l.n == 0) || got == LABELS_EMPTY_NAME);
			assert_true(span_is(l.v[which].name, t[i].offender));
		}
	}
}

/* The order is Prometheus': pair by pair, name then value, the shorter first. */
static void sets_are_ordered(void **state)
{
	(void)state;
	struct label sets[][2] = {{{SPAN("a"), SPAN("1")}}, {{SPAN("a"), SPAN("1")}, {SPAN("b"), SPAN("")}},
		{{SPAN("a"), SPAN("1")}, {SPAN("b"), SPAN("0")}}, {{SPAN("a"), SPAN("1")}, {SPAN("c"), SPAN("0")}}, {{SPAN("a"), SPAN("10")}},
		{{SPAN("a"), SPAN("2")}}, {{SPAN("aa"), SPAN("0")}}, {{SPAN("b"), SPAN("")}}};
	static const uint32_t n[] = {1, 2, 2, 2, 1, 1, 1, 1};
	for (size_t i = 0; i < 8; i++) {
		for (size_t k = 0; k < 8; k++) {
			struct labels a = {sets[i], n[i]}, b = {sets[k], n[k]};
			int c = labels_cmp(a, b);
			assert_true((c < 0) == (i < k) && (c > 0) == (i > k));
			assert_int_equal(labels_eq(a, b), i == k);
		}
	}
}

static void large_sets_sort_too(void **state)
{
	(void)state;
	uint64_t x = 7;
	for (uint32_t n = 0; n < 200; n++) {
		struct label v[200];
		char names[200][8];
		for (uint32_t i = 0; i < n; i++) {
			snprintf(names[i], sizeof names[i], "l%03u", i);
			v[i] = (struct label){span_cstr(names[i]), SPAN("v")};
		}
		shuffle(v, n, &x);
		labels_sort((struct labels){v, n});
		for (uint32_t i = 0; i < n; i++)
			assert_true(span_is(v[i].name, names[i]));
	}
}

/* Whatever the labels and the room, the text ends, fits and is UTF-8. */
static void text_is_cut_cleanly(void **state)
{
	(void)state;
	struct label v[] = {{SPAN("__name__"), SPAN("up")}, {SPAN("job"), SPAN("a\"b\\c\nd\xff")}, {SPAN("ort"), SPAN("Z\xc3\xbcrich\xe2\x82\xac")}};
	char whole[200];
	assert_string_equal(labels_format((struct labels){v, 1}, whole, sizeof whole), "{__name__=\"up\"}");
	assert_string_equal(labels_format((struct labels){v, 2}, whole, sizeof whole), "{__name__=\"up\", job=\"a\\\"b\\\\c\\nd\\xff\"}");
	assert_string_equal(labels_format((struct labels){v, 0}, whole, sizeof whole), "{}");
	labels_format((struct labels){v, 3}, whole, sizeof whole);
	for (size_t size = 16; size < sizeof whole; size++) {
		char *out = malloc(size);
		labels_format((struct labels){v, 3}, out, size);
		size_t len = strlen(out);
		assert_true(len < size && out[len - 1] == '}');
		assert_true(span_is_utf8(span_cstr(out)));
		if (strcmp(out, whole) != 0) {
			assert_string_equal(out + len - 4, "...}");
			assert_memory_equal(out, whole, len - 4);
			assert_true(strlen(whole) + 6 >= size);
		}
		free(out);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_canonical_form),
		cmocka_unit_test(canonical_bytes_have_one_spelling),
		cmocka_unit_test(damage_is_refused_or_harmless),
		cmocka_unit_test(limits_and_memory),
		cmocka_unit_test(faults_are_named),
		cmocka_unit_test(sets_are_ordered),
		cmocka_unit_test(large_sets_sort_too),
		cmocka_unit_test(text_is_cut_cleanly),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
