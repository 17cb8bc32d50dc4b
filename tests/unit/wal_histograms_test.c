/* Records of histograms: they come back, the bound holds, records fit frames and say how many they have; and no bytes are read past. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include "wal/wal_int.h"

static uint64_t rng;

static uint64_t next(void)
{
	rng += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = rng;
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static void records_check(const struct wal_window *w, const struct wal_histogram *h, size_t n)
{
	struct buf b;
	size_t packed = 0, i = 0;
	buf_init(&b, 256 * MIB);
	wal_histograms_put(&b, w, h, n);
	assert_false(b.failed);
	for (size_t k = 0; k < n; k++)
		packed += h[k].packed.n;
	assert_true(b.n <= wal_histograms_bound(w->tenant.n, n, packed));
	struct rd r = rd_of(b.p, b.n);
	struct wal_record rec;
	bool ok;
	while (wal_record_next(&r, &rec, &ok)) {
		struct wal_histograms_dec d;
		struct wal_histogram x;
		uint32_t samples;
		assert_int_equal(rec.kind, WAL_HISTOGRAMS);
		assert_true(rec.body.n + 5 <= LIMIT_WAL_FRAME_BYTES);
		assert_true(wal_record_size((const uint8_t *)rec.body.p - 5, rec.body.n + 5, &samples) == rec.body.n + 5);
		assert_true(wal_histograms_open(rec.body, &d));
		assert_int_equal(samples, d.n);
		assert_true(span_eq(d.w.tenant, w->tenant) && ulid_eq(d.w.window, w->window));
		assert_true(d.w.start_ms == w->start_ms && d.w.range_ms == w->range_ms);
		for (; wal_histograms_next(&d, &x, &ok); i++) {
			assert_true(i < n && x.ref == h[i].ref && x.t == h[i].t);
			assert_true(span_eq(x.packed, h[i].packed));
		}
		assert_true(ok);
	}
	assert_true(ok);
	assert_int_equal(i, n);
	buf_free(&b);
}

static void histograms_come_back(void **state)
{
	(void)state;
	static char bytes[LIMIT_HISTOGRAM_PACKED_BYTES];
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (char)next();
	enum { N = 5000 };
	static struct wal_histogram h[N];
	static const size_t sizes[] = {0, 1, 2, 100, N};
	for (int kind = 0; kind < 3; kind++) {
		for (size_t i = 0; i < N; i++) {
			size_t n = kind == 0 ? 1 + next() % 300 : kind == 1 ? 1 : i % 50 ? 40 : sizeof bytes;
			h[i] = (struct wal_histogram){
				.ref = kind == 1 ? next() : i, .t = kind == 1 ? (int64_t)next() : 1000, .packed = span_of(bytes, n)};
		}
		for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
			struct wal_window w = {SPAN("tenant"), {{(uint8_t)k}}, kind == 2 ? INT64_MIN : 7200000, kind == 2 ? INT64_MAX : 7200000};
			records_check(&w, h, sizes[k]);
		}
	}
}

/* Every prefix, every bit: told, and never more samples than the body can hold. */
static void damage(void **state)
{
	(void)state;
	struct buf b;
	struct wal_histogram h[5];
	for (size_t i = 0; i < 5; i++)
		h[i] = (struct wal_histogram){.ref = 7 + i, .t = (int64_t)i, .packed = span_of("abcdefgh", 3 + i)};
	struct wal_window w = {SPAN("t"), {{1}}, 0, 7200000};
	buf_init(&b, MIB);
	wal_histograms_put(&b, &w, h, 5);
	struct rd r = rd_of(b.p, b.n);
	struct wal_record rec;
	bool ok;
	assert_true(wal_record_next(&r, &rec, &ok));
	for (size_t what = 0; what < rec.body.n * 9; what++) {
		bool cut = what < rec.body.n;
		size_t n = cut ? what : rec.body.n, seen = 0;
		char *bad = malloc(n ? n : 1);
		memcpy(bad, rec.body.p, n);
		if (!cut)
			bad[(what - rec.body.n) / 8] ^= (char)(1u << what % 8);
		struct wal_histograms_dec d;
		struct wal_histogram x;
		ok = wal_histograms_open(span_of(bad, n), &d);
		while (ok && wal_histograms_next(&d, &x, &ok))
			assert_true(++seen <= n);
		if (cut)
			assert_false(ok);
		free(bad);
	}
	buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(histograms_come_back),
		cmocka_unit_test(damage),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
