/* The cutter gives the borders of a plain re-statement of the reference's head, on fixed cases and on random walks. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "block/block_chunk.h"

static uint64_t seed = 3009;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * UINT64_C(0x2545f4914f6cdd1d);
}

/* ---- the re-statement: one open chunk as the head keeps it ---- */

struct head_chunk {
	int64_t min_time, max_time, next_at;
	uint32_t samples, bytes;
};

static void head_cut(struct head_chunk *c, int64_t t, int64_t range)
{
	c->min_time = t;
	c->max_time = INT64_MIN;
	c->samples = 0;
	c->bytes = 2;
	c->next_at = (t / range) * range + range;
}

/* true: the sample began a new chunk */
static bool head_append(struct head_chunk *c, bool *open, int64_t t, uint32_t bytes_after, int64_t range)
{
	bool created = false;
	if (!*open) {
		head_cut(c, t, range);
		*open = created = true;
	}
	if (!created && c->bytes > 1024 - 19) {
		head_cut(c, t, range);
		created = true;
	}
	if (c->samples == 120 / 4) {
		double n = (double)(c->next_at - c->min_time) / ((double)(c->max_time - c->min_time + 1) * 4.0);
		if (n > 1)
			c->next_at = (int64_t)((double)c->min_time + (double)(c->next_at - c->min_time) / floor(n));
	}
	if (t >= c->next_at || c->samples >= 240) {
		head_cut(c, t, range);
		created = true;
	}
	c->max_time = t;
	c->samples++;
	c->bytes = created ? 2 + 9 + 6 : c->bytes + bytes_after;
	return created;
}

/* Feeds the times to both; returns the number of chunks. bytes_each: what a sample adds to the payload. */
static int same_borders(const int64_t *t, size_t n, int64_t range, uint32_t bytes_each)
{
	struct head_chunk c = {0};
	bool open = false;
	struct chunk_cutter cutter = {0};
	uint32_t samples = 0, bytes = 0;
	int chunks = 0;
	for (size_t i = 0; i < n; i++) {
		bool want = head_append(&c, &open, t[i], bytes_each, range);
		bool got = chunk_cutter_cut(&cutter, range, samples, bytes, i ? t[i - 1] : 0, t[i]);
		if (want != got)
			fail_msg("sample %zu at %lld of range %lld: the reference %s, the cutter does not agree", i, (long long)t[i],
				(long long)range, want ? "cuts" : "goes on");
		if (got) {
			chunks++;
			samples = 0;
			bytes = 2 + 9 + 6;
			assert_int_equal(cutter.start, t[i]);
		} else {
			bytes += bytes_each;
		}
		samples++;
		assert_true(samples <= 240);
	}
	return chunks;
}

enum { N = 8000 };
static int64_t t[N];

static void regular(int64_t start, int64_t step)
{
	for (int i = 0; i < N; i++)
		t[i] = start + i * step;
}

/* 15 s over two hours: 480 samples, four even chunks. 7200 samples of 1 s: 61 of 117 or 120. */
static void known_cases(void **state)
{
	(void)state;
	regular(0, 15000);
	assert_int_equal(same_borders(t, 480, 7200000, 1), 4);
	assert_int_equal(same_borders(t, 481, 7200000, 1), 5);
	regular(1700006400000, 1000);
	assert_int_equal(same_borders(t, 7200, 7200000, 1), 61);
	/* by bytes alone: 8 a sample */
	assert_int_equal(same_borders(t, 130, 7200000, 8), 2);
	/* 60 s: 120 samples are the range */
	regular(1700006400000, 60000);
	assert_int_equal(same_borders(t, 120, 7200000, 1), 1);
}

/* Every offset of the start within a range, several steps; ranges from one minute on, before and after 1970. */
static void regular_sweep(void **state)
{
	(void)state;
	static const int64_t ranges[] = {60000, 450000, 7200000, 86400000};
	static const int64_t steps[] = {1, 7, 33, 100, 250, 999, 1000, 5000, 10000, 15000, 30000, 60000, 61234};
	for (size_t r = 0; r < 4; r++)
		for (size_t s = 0; s < sizeof steps / sizeof *steps; s++)
			for (int k = -12; k < 12; k++) {
				regular(k * (ranges[r] / 5 + 1), steps[s]);
				same_borders(t, N, ranges[r], 1 + (uint32_t)(k & 7));
			}
}

static void random_walks(void **state)
{
	(void)state;
	printf("seed %llu\n", (unsigned long long)seed);
	static const int64_t ranges[] = {60000, 300000, 7200000, 86400000, 977};
	int rounds = getenv("VARVE_FULL") ? 20000 : 400;
	for (int round = 0; round < rounds; round++) {
		int64_t at = (int64_t)(rnd() % 4000000000000) - 2000000000000;
		uint64_t mean = 1 + rnd() % (UINT64_C(1) << rnd() % 18);
		for (int i = 0; i < N; i++) {
			t[i] = at;
			at += 1 + (int64_t)(rnd() % mean);
			if (rnd() % 300 == 0) {
				at += (int64_t)(rnd() % 10000000);
				mean = 1 + rnd() % (UINT64_C(1) << rnd() % 18);
			}
		}
		same_borders(t, N, ranges[rnd() % 5], (uint32_t)(rnd() % 20));
	}
}

/* Times at the ends of int64 neither trap nor loop: something is decided. */
static void extremes(void **state)
{
	(void)state;
	for (int i = 0; i < 400; i++)
		t[i] = INT64_MAX - 399 + i;
	struct chunk_cutter c = {0};
	for (int i = 0; i < 400; i++)
		(void)chunk_cutter_cut(&c, 7200000, (uint32_t)i % 60, 10, i ? t[i - 1] : 0, t[i]);
	for (int i = 0; i < 400; i++)
		(void)chunk_cutter_cut(&c, 7200000, (uint32_t)i % 60, 10, INT64_MIN + i, INT64_MIN + i + 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(known_cases),
		cmocka_unit_test(regular_sweep),
		cmocka_unit_test(random_walks),
		cmocka_unit_test(extremes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
