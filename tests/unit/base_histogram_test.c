/* Which histograms are refused, with which words; what a finer schema becomes; and two layouts of one histogram are the same bytes. */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/errid.h"
#include "base/histogram.h"
#include "base/io.h"
#include "base/limits.h"

enum { MOST = 8 };

/* A histogram written down: absolute counts, made deltas or float bits. */
struct sketch {
	int32_t schema;
	double threshold, sum;
	double count, zero;
	struct hist_span pos[MOST], neg[MOST];
	uint32_t n_pos_spans, n_neg_spans;
	double p[MOST], n[MOST];
	uint32_t n_p, n_n;
	double custom[MOST];
	uint32_t n_custom;
};

struct built {
	struct histogram h;
	int64_t ints[2][MOST];
	uint64_t floats[2][MOST], custom[MOST];
};

static void build(const struct sketch *s, enum sample_kind kind, struct built *b)
{
	*b = (struct built){.h = {.schema = s->schema,
				    .zero_threshold = s->threshold,
				    .sum = f64_bits(s->sum),
				    .pos_spans = s->pos,
				    .neg_spans = s->neg,
				    .n_pos_spans = s->n_pos_spans,
				    .n_neg_spans = s->n_neg_spans,
				    .n_pos = s->n_p,
				    .n_neg = s->n_n,
				    .n_custom = s->n_custom}};
	int64_t before[2] = {0, 0};
	for (uint32_t k = 0; k < MOST; k++) {
		const double v[2] = {s->p[k], s->n[k]};
		for (int side = 0; side < 2; side++) {
			b->floats[side][k] = f64_bits(v[side]);
			b->ints[side][k] = (int64_t)v[side] - before[side];
			before[side] = (int64_t)v[side];
		}
		b->custom[k] = f64_bits(s->custom[k]);
	}
	b->h.custom = b->custom;
	if (kind == SAMPLE_HISTOGRAM) {
		b->h.i_count = (uint64_t)s->count;
		b->h.i_zero_count = (uint64_t)s->zero;
		b->h.i_pos = b->ints[0];
		b->h.i_neg = b->ints[1];
	} else {
		b->h.f_count = f64_bits(s->count);
		b->h.f_zero_count = f64_bits(s->zero);
		b->h.f_pos = b->floats[0];
		b->h.f_neg = b->floats[1];
	}
}

static const struct sketch good = {.schema = 1,
	.threshold = 0.001,
	.sum = 18.4,
	.count = 15,
	.zero = 2,
	.pos = {{-2, 2}, {3, 1}},
	.n_pos_spans = 2,
	.p = {1, 2, 3},
	.n_p = 3,
	.neg = {{0, 1}, {0, 1}},
	.n_neg_spans = 2,
	.n = {4, 3},
	.n_n = 2};
static const struct sketch custom = {.schema = HIST_SCHEMA_CUSTOM,
	.sum = 5,
	.count = 6,
	.pos = {{0, 2}, {1, 1}},
	.n_pos_spans = 2,
	.p = {1, 2, 3},
	.n_p = 3,
	.custom = {-1, 0.5, 7},
	.n_custom = 3};

enum which { BOTH, INTEGER, FLOATS };

static void judge(const struct sketch *s, enum which which, const char *words)
{
	for (int k = 1; k <= 2; k++) {
		struct built b;
		struct arena arena;
		struct err err = {0};
		arena_init(&arena, MIB);
		build(s, k == INTEGER ? SAMPLE_HISTOGRAM : SAMPLE_FLOAT_HISTOGRAM, &b);
		errc rc = histogram_judge(k == INTEGER ? SAMPLE_HISTOGRAM : SAMPLE_FLOAT_HISTOGRAM, &b.h, &arena, &err);
		if (!words || (which != BOTH && (int)which != k)) {
			if (rc != OK)
				fail_msg("kind %d is refused: %s", k, err.msg);
		} else {
			if (rc != ERR_INVALID)
				fail_msg("kind %d is taken, and should be refused: %s", k, words);
			assert_string_equal(err.id, errid_text(ERRID_HISTOGRAM_INVALID));
			if (!strstr(err.msg, words))
				fail_msg("kind %d: %s", k, err.msg);
		}
		arena_free(&arena);
	}
}

#define CASE(base, which, words, ...)                                                                                                                \
	do {                                                                                                                                         \
		struct sketch s = base;                                                                                                              \
		__VA_ARGS__;                                                                                                                         \
		judge(&s, which, words);                                                                                                             \
	} while (0)

static void rules(void **state)
{
	(void)state;
	CASE(good, BOTH, NULL, (void)0);
	CASE(custom, BOTH, NULL, (void)0);
	/* schemas */
	CASE(good, BOTH, NULL, s.schema = -4);
	CASE(good, BOTH, NULL, s.schema = 8);
	CASE(good, BOTH, NULL, s.schema = 9);
	CASE(good, BOTH, NULL, s.schema = 52);
	CASE(good, BOTH, "schema -5 is not", s.schema = -5);
	CASE(good, BOTH, "schema 53 is not", s.schema = 53);
	CASE(good, BOTH, "schema -52 is not", s.schema = -52);
	CASE(good, BOTH, "schema -2147483648 is not", s.schema = INT32_MIN);
	/* spans */
	CASE(good, BOTH, "positive side: the spans need 4 buckets, there are 3", s.pos[1].length = 2);
	CASE(good, BOTH, "positive side: the spans need 2 buckets, there are 3", s.pos[1].length = 0);
	CASE(good, BOTH, "negative side: the spans need 1 buckets, there are 2", s.n_neg_spans = 1);
	CASE(good, BOTH, "positive side: span 1 has the negative offset -1", s.pos[1].offset = -1);
	CASE(good, BOTH, "beyond 32 bits", s.pos[0].offset = INT32_MAX);
	CASE(good, BOTH, "beyond 32 bits", s.pos[0].offset = INT32_MAX - 4);
	CASE(good, BOTH, "beyond 32 bits", s.n_pos_spans = 3; s.pos[0] = (struct hist_span){INT32_MIN, UINT32_MAX};
		s.pos[1] = (struct hist_span){0, 1}; s.pos[2] = (struct hist_span){0, 1});
	CASE(good, BOTH, NULL, s.pos[0].offset = INT32_MIN);
	CASE(good, BOTH, NULL, s.n_pos_spans = 3; s.pos[2] = (struct hist_span){5, 0}); /* an empty span says nothing */
	/* counts */
	CASE(good, BOTH, "positive side: bucket 1 has", s.p[1] = -1);
	CASE(good, BOTH, "negative side: bucket 0 has", s.n[0] = -4);
	CASE(good, INTEGER, "add up to 15, the count is 16", s.count = 16);
	CASE(good, INTEGER, "add up to 15, the count is 14", s.count = 14);
	CASE(good, INTEGER, "add up to 16, the count is 15", s.zero = 3);
	CASE(good, BOTH, NULL, s.count = 16; s.sum = NAN);
	CASE(good, INTEGER, "the count is 14", s.count = 14; s.sum = NAN);
	CASE(good, BOTH, NULL, s.sum = -INFINITY);
	/* bounds */
	CASE(good, BOTH, "schema 1 has no custom bounds, there are 2", s.n_custom = 2);
	CASE(custom, BOTH, "bound 1 is -1, and not greater than -1", s.custom[1] = -1);
	CASE(custom, BOTH, "bound 1 is nan", s.custom[1] = NAN);
	CASE(custom, BOTH, "bound 0 is -inf", s.custom[0] = -INFINITY);
	CASE(custom, BOTH, "the last custom bound is +Inf", s.custom[2] = INFINITY);
	CASE(custom, BOTH, "a zero bucket that is not empty", s.zero = 1; s.count = 7);
	CASE(custom, BOTH, "a zero threshold of 0.5", s.threshold = 0.5);
	CASE(custom, BOTH, "a negative side", s.n_neg_spans = 1; s.neg[0].length = 0);
	CASE(custom, BOTH, "span 0 has the negative offset -1", s.pos[0].offset = -1);
	CASE(custom, BOTH, "2 custom bounds make 3 buckets, the spans reach to 4", s.n_custom = 2);
	CASE(custom, BOTH, "0 custom bounds make 1 buckets", s.n_custom = 0);
	CASE(custom, INTEGER, "the count is 7", s.count = 7);
}

/* A staleness marker is a sum and nothing else. */
static void a_stale_one_is_valid(void **state)
{
	(void)state;
	for (int k = SAMPLE_HISTOGRAM; k <= SAMPLE_FLOAT_HISTOGRAM; k++) {
		struct histogram h = {.sum = STALE_NAN_BITS};
		struct arena arena;
		arena_init(&arena, MIB);
		assert_int_equal(histogram_judge((enum sample_kind)k, &h, &arena, NULL), OK);
		assert_true(h.sum == STALE_NAN_BITS);
		arena_free(&arena);
	}
}

static void float_counts_below_zero(void **state)
{
	(void)state;
	struct arena arena;
	arena_init(&arena, MIB);
	static const double counts[][2] = {{-1, 0}, {1, -0.5}, {-INFINITY, 0}};
	for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
		struct histogram h = {.f_count = f64_bits(counts[i][0]), .f_zero_count = f64_bits(counts[i][1])};
		assert_int_equal(histogram_judge(SAMPLE_FLOAT_HISTOGRAM, &h, &arena, NULL), ERR_INVALID);
	}
	struct histogram h = {.f_count = NORMAL_NAN_BITS, .f_zero_count = f64_bits(-0.0)};
	assert_int_equal(histogram_judge(SAMPLE_FLOAT_HISTOGRAM, &h, &arena, NULL), OK);
	arena_free(&arena);
}

static void counts_of_64_bits(void **state)
{
	(void)state;
	static const struct hist_span one = {0, 1}, two = {0, 2}, three = {0, 3};
	static const int64_t most[3] = {INT64_MAX, 0, 0}, over[2] = {INT64_MAX, 1}, under[2] = {0, INT64_MIN};
	struct arena arena;
	arena_init(&arena, MIB);
	struct histogram h = {.pos_spans = &two, .n_pos_spans = 1, .i_pos = most, .n_pos = 2, .i_zero_count = 1, .i_count = UINT64_MAX};
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), OK);
	h.i_zero_count = 2; /* it would be 0 */
	h.i_count = 0;
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), ERR_INVALID);
	h = (struct histogram){.pos_spans = &three, .n_pos_spans = 1, .i_pos = most, .n_pos = 3, .i_count = (uint64_t)INT64_MAX * 3};
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), ERR_INVALID);
	h = (struct histogram){.pos_spans = &two, .n_pos_spans = 1, .i_pos = over, .n_pos = 2};
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), ERR_INVALID);
	h.i_pos = under;
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), ERR_INVALID);
	/* Two full buckets become one. */
	h = (struct histogram){.schema = 52, .pos_spans = &two, .n_pos_spans = 1, .i_pos = most, .n_pos = 2, .i_count = UINT64_MAX - 1};
	struct hist_span far = {2, 2};
	h.pos_spans = &far;
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), ERR_INVALID);
	h.schema = 8;
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), OK);
	h = (struct histogram){.pos_spans = &one, .n_pos_spans = 1, .i_pos = most, .n_pos = 1, .i_count = INT64_MAX};
	assert_int_equal(histogram_judge(SAMPLE_HISTOGRAM, &h, &arena, NULL), OK);
	arena_free(&arena);
}

/* ---- reduction, held against a table of counts by index ---- */

enum { SPANS = 12, BUCKETS = 60, TABLE = 4096 };
struct table {
	int64_t base;
	double v[TABLE];
	bool used[TABLE];
};

static void tabulate(
	const struct hist_span *spans, uint32_t n_spans, const int64_t *ints, const uint64_t *floats, uint32_t n, uint32_t shift, struct table *t)
{
	uint32_t k = 0;
	int64_t index = 0, absolute = 0;
	for (uint32_t s = 0; s < n_spans; s++) {
		index += spans[s].offset;
		for (uint32_t j = 0; j < spans[s].length; j++, k++, index++) {
			assert_true(k < n);
			absolute += ints ? ints[k] : 0;
			/* (2^((i-1) 2^-n), 2^(i 2^-n)]: the bucket of a coarser schema whose upper bound is the next one */
			int64_t target = (int64_t)ceil(ldexp((double)index, -(int)shift)) - t->base;
			assert_in_range(target, 0, TABLE - 1);
			t->v[target] += ints ? (double)absolute : f64_of_bits(floats[k]);
			t->used[target] = true;
		}
	}
	assert_int_equal(k, n);
}

static void finer_schemas_are_reduced(void **state)
{
	(void)state;
	const char *env = getenv("VARVE_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 10) : io_random_u64();
	print_message("VARVE_SEED=%" PRIu64 "\n", seed);
	srand48((long)seed);
	for (int round = 0; round < 4000; round++) {
		bool floats = round % 2;
		struct hist_span spans[2][SPANS];
		int64_t ints[2][BUCKETS];
		uint64_t bits[2][BUCKETS];
		struct histogram h = {.schema = 9 + (int32_t)(lrand48() % (round % 5 ? 6 : 44)), .sum = f64_bits(1)};
		uint32_t shift = (uint32_t)h.schema - 8, n_spans[2], n[2] = {0, 0};
		uint64_t total = 0;
		for (int side = 0; side < 2; side++) {
			n_spans[side] = (uint32_t)(lrand48() % SPANS);
			int64_t before = 0;
			for (uint32_t s = 0; s < n_spans[side]; s++) {
				spans[side][s] = (struct hist_span){(int32_t)(lrand48() % (s ? 40 : 400)) - (s ? 0 : 200), (uint32_t)(lrand48() % 5)};
				for (uint32_t j = 0; j < spans[side][s].length; j++) {
					int64_t count = lrand48() % 3 ? lrand48() % 100 : 0;
					ints[side][n[side]] = count - before;
					bits[side][n[side]++] = f64_bits((double)count);
					before = count;
					total += (uint64_t)count;
				}
			}
		}
		h.pos_spans = spans[0], h.n_pos_spans = n_spans[0], h.n_pos = n[0];
		h.neg_spans = spans[1], h.n_neg_spans = n_spans[1], h.n_neg = n[1];
		if (floats)
			h.f_pos = bits[0], h.f_neg = bits[1], h.f_count = f64_bits((double)total);
		else
			h.i_pos = ints[0], h.i_neg = ints[1], h.i_count = total;
		static struct table want[2], got[2];
		for (int side = 0; side < 2; side++) {
			want[side] = got[side] = (struct table){.base = -1000};
			tabulate(spans[side], n_spans[side], floats ? NULL : ints[side], bits[side], n[side], shift, &want[side]);
		}
		struct arena arena;
		struct err err = {0};
		arena_init(&arena, MIB);
		if (histogram_judge(floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM, &h, &arena, &err) != OK)
			fail_msg("round %d: %s", round, err.msg);
		assert_int_equal(h.schema, 8);
		tabulate(h.pos_spans, h.n_pos_spans, floats ? NULL : h.i_pos, h.f_pos, h.n_pos, 0, &got[0]);
		tabulate(h.neg_spans, h.n_neg_spans, floats ? NULL : h.i_neg, h.f_neg, h.n_neg, 0, &got[1]);
		for (int side = 0; side < 2; side++)
			for (int i = 0; i < TABLE; i++)
				if (want[side].v[i] != got[side].v[i] || want[side].used[i] != got[side].used[i])
					fail_msg("round %d, schema %u, side %d, bucket %d: %g for %g", round, shift + 8, side, i - 1000,
						got[side].v[i], want[side].v[i]);
		/* What was reduced is valid, and stays what it is. */
		struct histogram again = h;
		assert_int_equal(histogram_judge(floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM, &again, &arena, &err), OK);
		assert_ptr_equal(again.pos_spans, h.pos_spans);
		arena_free(&arena);
	}
}

static void short_of_memory(void **state)
{
	(void)state;
	bool passed = false;
	for (size_t max = 0; !passed; max += 8) {
		struct built b;
		struct arena arena;
		struct sketch s = good;
		s.schema = 10;
		arena_init(&arena, max);
		build(&s, SAMPLE_HISTOGRAM, &b);
		errc rc = histogram_judge(SAMPLE_HISTOGRAM, &b.h, &arena, NULL);
		assert_true(rc == OK || rc == ERR_NOMEM);
		assert_int_equal(b.h.schema, rc == OK ? 8 : 10);
		passed = rc == OK;
		arena_free(&arena);
	}
}

/* The same counts in another layout of spans. */
static void layouts_do_not_differ(void **state)
{
	(void)state;
	struct sketch wide = good;
	wide.pos[0] = (struct hist_span){-3, 7};
	wide.n_pos_spans = 1;
	static const double counts[7] = {0, 1, 2, 0, 0, 0, 3};
	memcpy(wide.p, counts, sizeof counts);
	wide.n_p = 7;
	for (int k = SAMPLE_HISTOGRAM; k <= SAMPLE_FLOAT_HISTOGRAM; k++) {
		struct built a, b;
		struct buf x, y;
		buf_init(&x, KIB);
		buf_init(&y, KIB);
		build(&good, (enum sample_kind)k, &a);
		build(&wide, (enum sample_kind)k, &b);
		histogram_canonical((enum sample_kind)k, &a.h, &x);
		histogram_canonical((enum sample_kind)k, &b.h, &y);
		assert_int_equal(x.n, y.n);
		assert_memory_equal(x.p, y.p, x.n);
		buf_free(&x);
		buf_free(&y);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rules),
		cmocka_unit_test(a_stale_one_is_valid),
		cmocka_unit_test(float_counts_below_zero),
		cmocka_unit_test(counts_of_64_bits),
		cmocka_unit_test(finer_schemas_are_reduced),
		cmocka_unit_test(short_of_memory),
		cmocka_unit_test(layouts_do_not_differ),
	};
	return cmocka_run_group_tests_name("histograms", tests, NULL, NULL);
}
