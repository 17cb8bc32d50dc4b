/* Records: round trips, bounds that hold, and decoders that survive any bytes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "wal/wal_int.h"

static uint64_t seed = 1, rng;

static uint64_t next(void)
{
	rng += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = rng;
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* Extremes more often than chance has them. */
static uint64_t wild(void)
{
	static const uint64_t edge[] = {0, 1, UINT64_MAX, INT64_MAX, (uint64_t)INT64_MIN, STALE_NAN_BITS, NORMAL_NAN_BITS, UINT32_MAX};
	uint64_t x = next();
	return x % 3 == 0 ? edge[(x >> 8) % 8] : x % 3 == 1 ? next() : next() % 1000;
}

static void samples_check(const struct wal_window *w, const struct wal_sample *s, size_t n)
{
	struct buf b;
	buf_init(&b, 64 * MIB);
	wal_samples_put(&b, w, s, n);
	assert_false(b.failed);
	assert_true(b.n <= wal_samples_bound(w->tenant.n, n));
	struct rd r = rd_of(b.p, b.n);
	struct wal_record rec;
	bool ok;
	size_t i = 0;
	while (wal_record_next(&r, &rec, &ok)) {
		struct wal_samples_dec d;
		struct wal_sample x;
		assert_int_equal(rec.kind, WAL_SAMPLES);
		assert_true(rec.body.n + 5 <= LIMIT_WAL_FRAME_BYTES);
		assert_true(wal_samples_open(rec.kind, rec.body, &d));
		assert_true(span_eq(d.w.tenant, w->tenant));
		assert_true(ulid_eq(d.w.window, w->window));
		assert_int_equal(d.w.start_ms, w->start_ms);
		assert_int_equal(d.w.range_ms, w->range_ms);
		while (wal_samples_next(&d, &x, &ok)) {
			assert_true(i < n);
			assert_int_equal(x.ref, s[i].ref);
			assert_int_equal(x.t, s[i].t);
			assert_int_equal(x.v, s[i].v);
			i++;
		}
		assert_true(ok);
		uint32_t samples;
		assert_true(wal_record_size((const uint8_t *)rec.body.p - 5, rec.body.n + 5, &samples) == rec.body.n + 5);
		assert_int_equal(samples, d.n);
	}
	assert_true(ok);
	assert_int_equal(i, n);
	buf_free(&b);
}

static void samples_come_back(void **state)
{
	(void)state;
	enum { N = 250000 };
	static const size_t sizes[] = {0, 1, 2, 7, 100, 2000, 99999, 100000, 100001, N};
	struct wal_sample *s = calloc(N, sizeof *s);
	for (int kind = 0; kind < 4; kind++) {
		for (size_t i = 0; i < N; i++) {
			switch (kind) {
			case 0: /* a scrape */
				s[i] = (struct wal_sample){.ref = i + 1000, .t = 1700000000000, .v = f64_bits((double)(next() % 10000))};
				break;
			case 1:
				s[i] = (struct wal_sample){.ref = wild(), .t = (int64_t)wild(), .v = wild()};
				break;
			case 2: /* the widest deltas there are */
				s[i] = (struct wal_sample){
					.ref = i % 2 ? (uint64_t)INT64_MAX + 1 : 0, .t = i % 2 ? INT64_MIN : INT64_MAX, .v = UINT64_MAX};
				break;
			default:
				s[i] = (struct wal_sample){.ref = 0, .t = 0, .v = 0};
			}
		}
		for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
			struct wal_window w = {SPAN("t"), {{(uint8_t)k}}, kind == 2 ? INT64_MIN : 7200000, kind == 2 ? INT64_MAX : 7200000};
			samples_check(&w, s, sizes[k]);
		}
	}
	free(s);
}

static void series_come_back(void **state)
{
	(void)state;
	for (int round = 0; round < 60; round++) {
		enum { N = 3000 };
		static uint64_t refs[N];
		static size_t lens[N];
		static char wire[5000];
		struct buf b;
		struct wal_series_enc e;
		buf_init(&b, 64 * MIB);
		size_t n = round < 3 ? (size_t)round : next() % N, bound = 0;
		struct span tenant = span_of("tenant-of-this-test", (size_t)(next() % 19) + 1);
		wal_series_begin(&e, &b, tenant);
		for (size_t i = 0; i < n; i++) {
			refs[i] = wild();
			lens[i] = next() % (round % 2 ? 5000 : 100);
			memset(wire, (int)(refs[i] & 0xff), lens[i]);
			bound += wal_series_bound(tenant.n, lens[i]);
			wal_series_put(&e, refs[i], span_of(wire, lens[i]), &(struct wal_keys){0});
		}
		wal_series_end(&e);
		assert_false(b.failed);
		assert_true(b.n <= bound);
		struct rd r = rd_of(b.p, b.n);
		struct wal_record rec;
		bool ok;
		size_t i = 0;
		while (wal_record_next(&r, &rec, &ok)) {
			struct wal_series_dec d;
			uint64_t ref;
			struct span w;
			assert_int_equal(rec.kind, WAL_SERIES);
			assert_true(rec.body.n + 5 <= LIMIT_WAL_FRAME_BYTES);
			assert_true(wal_series_open(rec.kind, rec.body, &d));
			assert_true(span_eq(d.tenant, tenant));
			while (wal_series_next(&d, &ref, &w, &(struct wal_keys){0}, &ok)) {
				assert_int_equal(ref, refs[i]);
				assert_int_equal(w.n, lens[i]);
				assert_true(w.n == 0 || (uint8_t)w.p[w.n - 1] == (uint8_t)refs[i]);
				i++;
			}
			assert_true(ok);
		}
		assert_true(ok);
		assert_int_equal(i, n);
		buf_free(&b);
	}
}

static void cuts_come_back(void **state)
{
	(void)state;
	for (int i = 0; i < 1000; i++) {
		struct wal_cut c = {.upto_seq = wild()}, d;
		for (size_t k = 0; k < 16; k++) {
			c.window.b[k] = (uint8_t)next();
			c.block.b[k] = (uint8_t)next();
		}
		struct buf b;
		struct wal_record rec;
		bool ok;
		buf_init(&b, MIB);
		wal_cut_put(&b, &c);
		struct rd r = rd_of(b.p, b.n);
		assert_true(wal_record_next(&r, &rec, &ok));
		assert_int_equal(rec.kind, WAL_CUT);
		assert_true(wal_cut_get(rec.body, &d));
		assert_true(ulid_eq(c.window, d.window) && ulid_eq(c.block, d.block) && c.upto_seq == d.upto_seq);
		for (size_t n = 0; n < rec.body.n; n++)
			assert_false(wal_cut_get(span_of(rec.body.p, n), &d));
		assert_false(wal_record_next(&r, &rec, &ok));
		assert_true(ok);
		buf_free(&b);
	}
}

/* A binary that knows fewer kinds reads the rest. */
static void unknown_kinds_are_skipped(void **state)
{
	(void)state;
	struct buf b;
	struct wal_record rec;
	bool ok;
	buf_init(&b, MIB);
	buf_u8(&b, 200);
	buf_str(&b, SPAN("from the future"));
	wal_cut_put(&b, &(struct wal_cut){.upto_seq = 7});
	struct rd r = rd_of(b.p, b.n);
	assert_true(wal_record_next(&r, &rec, &ok) && rec.kind == 200 && span_is(rec.body, "from the future"));
	assert_true(wal_record_next(&r, &rec, &ok) && rec.kind == WAL_CUT);
	buf_free(&b);
}

/* The log counts the samples inside groups too. */
static void groups_are_counted(void **state)
{
	(void)state;
	struct wal_window w = {SPAN("t"), {{1}}, 0, 1};
	struct wal_sample s[3] = {{.ref = 1, .t = 2, .v = 3}, {.ref = 2, .t = 2, .v = 3}, {.ref = 3, .t = 2, .v = 3}};
	struct buf in, out;
	buf_init(&in, MIB);
	buf_init(&out, MIB);
	wal_samples_put(&in, &w, s, 3);
	wal_samples_put(&in, &w, s, 2);
	buf_u8(&out, WAL_GROUP);
	buf_str(&out, span_of(in.p, in.n));
	uint32_t samples;
	assert_int_equal(wal_record_size(out.p, out.n, &samples), out.n);
	assert_int_equal(samples, 5);
	for (size_t n = 0; n < out.n; n++)
		assert_int_equal(wal_record_size(out.p, n, &samples), 0);
	buf_free(&in);
	buf_free(&out);
}

static uint64_t decode_all(struct span bytes)
{
	struct rd r = rd_of(bytes.p, bytes.n);
	struct wal_record rec;
	bool ok;
	uint64_t seen = 0;
	while (wal_record_next(&r, &rec, &ok)) {
		struct wal_series_dec sd;
		struct wal_samples_dec d;
		struct wal_sample s;
		struct wal_cut cut;
		uint64_t ref;
		struct span wire;
		bool good;
		if (wal_series_open(rec.kind, rec.body, &sd)) {
			while (wal_series_next(&sd, &ref, &wire, &(struct wal_keys){0}, &good))
				seen += wire.n > 0 ? (uint8_t)wire.p[wire.n - 1] : 1;
		}
		if (wal_samples_open(rec.kind, rec.body, &d)) {
			while (wal_samples_next(&d, &s, &good))
				seen++;
		}
		seen += wal_cut_get(rec.body, &cut);
	}
	return seen;
}

/* Under the sanitizers this is the proof that no bytes lead a decoder out of them: flips, cuts and noise, in memory of exact size. */
static void any_bytes_are_safe(void **state)
{
	(void)state;
	struct wal_window w = {SPAN("tenant"), {{1}}, 7200000, 7200000};
	struct wal_sample s[40];
	struct buf b;
	struct wal_series_enc e;
	buf_init(&b, MIB);
	for (size_t i = 0; i < 40; i++)
		s[i] = (struct wal_sample){.ref = wild(), .t = (int64_t)wild(), .v = wild()};
	wal_samples_put(&b, &w, s, 40);
	wal_series_begin(&e, &b, SPAN("tenant"));
	wal_series_put(&e, 5, SPAN("abc"), &(struct wal_keys){0});
	wal_series_put(&e, 6, SPAN("defg"), &(struct wal_keys){0});
	wal_series_end(&e);
	wal_cut_put(&b, &(struct wal_cut){.upto_seq = 9});
	uint64_t seen = 0;
	for (size_t i = 0; i < 40000; i++) {
		size_t n = i % 4 == 0 ? next() % (b.n + 1) : b.n;
		uint8_t *p = malloc(n > 0 ? n : 1);
		memcpy(p, b.p, n);
		for (uint64_t k = 0; n > 0 && k < i % 5; k++)
			p[next() % n] = (uint8_t)(i % 3 ? next() : 0xff);
		seen += decode_all(span_of(p, n));
		free(p);
	}
	assert_true(seen > 40000);
	buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(samples_come_back),
		cmocka_unit_test(series_come_back),
		cmocka_unit_test(cuts_come_back),
		cmocka_unit_test(unknown_kinds_are_skipped),
		cmocka_unit_test(groups_are_counted),
		cmocka_unit_test(any_bytes_are_safe),
	};
	const char *s = getenv("VARVE_SEED");
	if (s)
		seed = strtoull(s, NULL, 10);
	rng = seed;
	print_message("seed %" PRIu64 "\n", seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
