/* A histogram packed and unpacked is the same histogram; equal bytes are equal histograms; damage is told, never read past. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/hist_make.h"

static struct span packed_of(struct arena *a, enum sample_kind kind, const struct histogram *h)
{
	struct buf b;
	buf_init(&b, MIB);
	histogram_pack(kind, h, &b);
	assert_false(b.failed);
	assert_true(b.n <= histogram_pack_bound(h));
	struct span s = arena_dup(a, span_of(b.p, b.n));
	buf_free(&b);
	return s;
}

static void canonical(enum sample_kind kind, const struct histogram *h, struct buf *out)
{
	buf_clear(out);
	histogram_canonical(kind, h, out);
	assert_false(out->failed);
}

static void round_trip(void **state)
{
	(void)state;
	struct buf want, got;
	buf_init(&want, MIB);
	buf_init(&got, MIB);
	for (uint64_t seed = 0; seed < 200; seed++) {
		struct hist_maker m;
		hist_maker_init(&m, seed);
		for (int i = 0; i < 100; i++) {
			struct arena a;
			struct err err = {0};
			enum sample_kind kind, kind2;
			struct histogram h, h2;
			arena_init(&a, MIB);
			hist_maker_next(&m, &a, &kind, &h);
			struct span p = packed_of(&a, kind, &h);
			assert_int_equal(histogram_unpack(p, &a, &kind2, &h2, &err), OK);
			assert_int_equal(kind2, kind);
			assert_int_equal(histogram_packed_kind(p), kind);
			canonical(kind, &h, &want);
			canonical(kind2, &h2, &got);
			assert_int_equal(want.n, got.n);
			assert_memory_equal(want.p, got.p, got.n);
			assert_int_equal(h2.reset_hint, h.reset_hint == HIST_RESET_NO || h.sum == STALE_NAN_BITS ? HIST_RESET_UNKNOWN : h.reset_hint);
			if (h.sum != STALE_NAN_BITS) {
				assert_int_equal(h2.n_pos_spans, h.n_pos_spans);
				assert_int_equal(h2.n_neg_spans, h.n_neg_spans);
				assert_true(h.n_pos_spans == 0 || memcmp(h.pos_spans, h2.pos_spans, h.n_pos_spans * sizeof *h.pos_spans) == 0);
				assert_true(h.n_neg_spans == 0 || memcmp(h.neg_spans, h2.neg_spans, h.n_neg_spans * sizeof *h.neg_spans) == 0);
			}
			struct span again = packed_of(&a, kind2, &h2);
			assert_true(span_eq(p, again));
			arena_free(&a);
		}
	}
	buf_free(&want);
	buf_free(&got);
}

/* Cut short it is none, and any byte changed it is none or another one. */
static void damage(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 60; seed++) {
		struct hist_maker m;
		struct arena a;
		struct err err = {0};
		enum sample_kind kind;
		struct histogram h;
		arena_init(&a, 64 * MIB);
		hist_maker_init(&m, seed);
		for (int i = 0; i < 5; i++)
			hist_maker_next(&m, &a, &kind, &h);
		struct span p = packed_of(&a, kind, &h);
		for (size_t n = 0; n < p.n; n++) {
			char *exact = malloc(n ? n : 1);
			memcpy(exact, p.p, n);
			assert_int_equal(histogram_unpack(span_of(exact, n), &a, &kind, &h, &err), ERR_CORRUPT);
			free(exact);
		}
		for (size_t n = 0; n < p.n * 8; n++) {
			char *bad = malloc(p.n);
			memcpy(bad, p.p, p.n);
			bad[n / 8] ^= (char)(1u << n % 8);
			if (histogram_unpack(span_of(bad, p.n), &a, &kind, &h, &err) == OK) {
				/* What is read can be packed: perhaps shorter, where a number was padded. */
				struct span q = packed_of(&a, kind, &h);
				assert_true(q.n <= p.n);
			}
			free(bad);
		}
		arena_free(&a);
	}
}

static void which_one_stays(void **state)
{
	(void)state;
	struct hist_maker m;
	struct arena a;
	struct err err = {0};
	bool same;
	int order, back;
	arena_init(&a, 64 * MIB);
	hist_maker_init(&m, 3);
	for (int i = 0; i < 2000; i++) {
		enum sample_kind kind, kind2;
		struct histogram h, h2;
		hist_maker_next(&m, &a, &kind, &h);
		hist_relayout(&a, kind, &h, &h2);
		struct span p = packed_of(&a, kind, &h), q = packed_of(&a, kind, &h2);
		assert_int_equal(histogram_packed_cmp(p, q, &same, &order, &err), OK);
		assert_int_equal(histogram_packed_cmp(q, p, &same, &back, &err), OK);
		assert_true(same && (order > 0) == (back < 0) && (order == 0) == span_eq(p, q));
		hist_maker_next(&m, &a, &kind2, &h2);
		q = packed_of(&a, kind2, &h2);
		assert_int_equal(histogram_packed_cmp(p, q, &same, &order, &err), OK);
		assert_int_equal(histogram_packed_cmp(q, p, &same, &back, &err), OK);
		assert_true((order > 0) == (back < 0) && (order == 0) == span_eq(p, q));
		if (h.sum == STALE_NAN_BITS && h2.sum != STALE_NAN_BITS)
			assert_true(order < 0);
		arena_reset(&a);
	}
	arena_free(&a);
}

static void no_memory(void **state)
{
	(void)state;
	struct hist_maker m;
	struct arena a;
	struct err err = {0};
	enum sample_kind kind;
	struct histogram h, h2;
	arena_init(&a, 64 * MIB);
	hist_maker_init(&m, 1);
	do
		hist_maker_next(&m, &a, &kind, &h);
	while (h.n_pos < 3 || h.schema == HIST_SCHEMA_CUSTOM);
	hist_relayout(&a, kind, &h, &h2);
	struct span p = packed_of(&a, kind, &h), q = packed_of(&a, kind, &h2);
	for (uint64_t n = 1;; n++) {
		bool same;
		int order;
		fail_alloc_at(n, false);
		errc rc = histogram_packed_cmp(p, q, &same, &order, &err);
		if (fail_alloc_off() == 0) {
			assert_int_equal(rc, OK);
			break;
		}
		assert_int_equal(rc, ERR_NOMEM);
	}
	arena_free(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(damage),
		cmocka_unit_test(which_one_stays),
		cmocka_unit_test(no_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
