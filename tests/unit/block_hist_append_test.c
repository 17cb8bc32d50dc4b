/* Histogram chunks appended: the reference's bytes, every sample back through the reader, and where a chunk must end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "block/block_chunk.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"

enum { HINT_UNKNOWN, HINT_RESET, HINT_NONE, HINT_GAUGE };
enum { HEADER_UNKNOWN, HEADER_NONE, HEADER_RESET, HEADER_GAUGE };

static void assert_hex(struct span data, const char *hex)
{
	char got[512] = "";
	for (size_t i = 0; i < data.n; i++)
		snprintf(got + 2 * i, 3, "%02x", (uint8_t)data.p[i]);
	assert_string_equal(got, hex);
}

static struct chunk append_all(struct arena *a, enum sample_kind kind, const struct histogram *h, const int64_t *t, size_t n)
{
	struct hist_appender *ha;
	struct err err = {0};
	struct chunk c;
	assert_int_equal(hist_appender_new(kind, NULL, a, &ha, &err), OK);
	for (size_t i = 0; i < n; i++) {
		bool appended;
		assert_int_equal(hist_append(ha, t[i], kind, &h[i], &appended, &err), OK);
		assert_true(appended);
	}
	assert_int_equal(hist_appender_finish(ha, a, &c, &err), OK);
	assert_int_equal(c.mint, t[0]);
	assert_int_equal(c.maxt, t[n - 1]);
	return c;
}

/* The vectors of docs/format/block.md's formats, made by the reference. */
static void golden(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	const int64_t t[3] = {1000, 16000, 31000};
	const struct hist_span two = {0, 2}, one_two = {1, 2};
	struct histogram h[3];
	int64_t deltas[3][2] = {{1, 1}, {1, 2}, {1, 3}};
	for (uint64_t i = 0; i < 3; i++)
		h[i] = (struct histogram){.schema = 1,
			.zero_threshold = 0.001,
			.i_count = 4 + i,
			.i_zero_count = 1,
			.sum = f64_bits(2.5 * (double)i),
			.pos_spans = &two,
			.n_pos_spans = 1,
			.i_pos = deltas[i],
			.n_pos = 2};
	assert_hex(append_all(&a, SAMPLE_HISTOGRAM, h, t, 3).data, "000300ff3f50624dd2f1a9fc8c6478fa29100000000000000008c7e0ea622c26c005110010");

	uint64_t floats[2][2];
	for (uint64_t i = 0; i < 2; i++) {
		floats[i][0] = f64_bits(1 + (double)i);
		floats[i][1] = f64_bits(1.5);
		h[i] = (struct histogram){.zero_threshold = 0x1p-128,
			.f_count = f64_bits(3 + (double)i),
			.f_zero_count = f64_bits(0.5),
			.sum = f64_bits(2.5 * (double)i),
			.pos_spans = &one_two,
			.n_pos_spans = 1,
			.f_pos = floats[i],
			.n_pos = 2};
	}
	assert_hex(append_all(&a, SAMPLE_FLOAT_HISTOGRAM, h, t, 2).data,
		"00020074465178fa10020000000000000ff800000000000000000000000000000ffc0000000000000ffe0000000000003e0ea63585b09b001c25fff0");

	const uint64_t bounds[3] = {f64_bits(0.1), f64_bits(0.5), f64_bits(1.0 / 3)};
	const int64_t custom[2] = {2, -1};
	h[0] = (struct histogram){.schema = -53,
		.i_count = 3,
		.sum = f64_bits(1),
		.pos_spans = &two,
		.n_pos_spans = 1,
		.i_pos = custom,
		.n_pos = 2,
		.custom = bounds,
		.n_custom = 3};
	assert_hex(append_all(&a, SAMPLE_HISTOGRAM, h, t, 1).data, "00010000ee5c644f8cbdf51feaaaaaaaaaaaaaf8fa263ff000000000000095c0");
	arena_free(&a);
}

/* ---- random histograms ---- */

struct made {
	enum sample_kind kind;
	struct histogram h;
	struct hist_span spans[2][4];
	int64_t ints[2][64];
	uint64_t floats[2][64];
	uint64_t custom[8];
};

static void made_link(struct made *m)
{
	bool floats = m->kind == SAMPLE_FLOAT_HISTOGRAM;
	m->h.pos_spans = m->spans[0];
	m->h.neg_spans = m->spans[1];
	m->h.i_pos = floats ? NULL : m->ints[0];
	m->h.i_neg = floats ? NULL : m->ints[1];
	m->h.f_pos = floats ? m->floats[0] : NULL;
	m->h.f_neg = floats ? m->floats[1] : NULL;
	m->h.custom = m->custom;
}

static uint64_t any_number(uint64_t *r)
{
	uint64_t x = model_random(r);
	return x >> (model_random(r) % 64);
}

/* Spans ascend; counts are anything that their kind can hold. */
static void made_fill(struct made *m, uint64_t *r, enum sample_kind kind, uint64_t style)
{
	*m = (struct made){.kind = kind};
	m->h.schema = style % 5 == 0 ? -53 : (int32_t)(style % 9) - 4;
	m->h.zero_threshold = style % 3 == 0 ? 0 : style % 3 == 1 ? 0x1p-128 : 0.001;
	m->h.reset_hint = style % 7 == 6 ? HINT_GAUGE : HINT_UNKNOWN;
	m->h.i_count = any_number(r);
	m->h.i_zero_count = any_number(r);
	m->h.f_count = any_number(r);
	m->h.f_zero_count = any_number(r);
	m->h.sum = any_number(r) << (model_random(r) % 32);
	for (int s = 0; s < 2; s++) {
		uint32_t n_spans = (uint32_t)(style >> (8 + 4 * s)) % 4, n = 0;
		for (uint32_t i = 0; i < n_spans; i++) {
			m->spans[s][i] =
				(struct hist_span){(int32_t)((style >> (16 + i)) % 5) + (i == 0 ? -2 : 0), (uint32_t)(style >> (20 + i)) % 9};
			n += m->spans[s][i].length;
		}
		for (uint32_t k = 0; k < n; k++) {
			m->ints[s][k] = (int64_t)any_number(r) * (model_random(r) % 2 ? 1 : -1);
			m->floats[s][k] = any_number(r) << (model_random(r) % 32);
		}
		*(s ? &m->h.n_neg_spans : &m->h.n_pos_spans) = n_spans;
		*(s ? &m->h.n_neg : &m->h.n_pos) = n;
	}
	if (m->h.schema == -53) {
		m->h.n_custom = (uint32_t)(style >> 12) % 8;
		for (uint32_t i = 0; i < m->h.n_custom; i++)
			m->custom[i] = style >> i & 1 ? f64_bits((double)i / 8) : f64_bits(1.0 / (3.0 + i));
	}
	if (model_random(r) % 9 == 0)
		m->h = (struct histogram){.sum = STALE_NAN_BITS};
	made_link(m);
}

static void canonical(enum sample_kind kind, const struct histogram *h, struct buf *out)
{
	buf_clear(out);
	histogram_canonical(kind, h, out);
	assert_false(out->failed);
}

/* Whatever the histograms, what was appended comes back, each as what it was; a gauge stays one, and no sample claims "no reset" where one fell. */
static void round_trip(void **state)
{
	(void)state;
	uint64_t seed = getenv("VARVE_SEED") ? strtoull(getenv("VARVE_SEED"), NULL, 0) : 20261123, r = seed;
	int rounds = getenv("VARVE_FULL") ? 200000 : 4000;
	size_t refused = 0, joined = 0;
	struct buf want, got;
	buf_init(&want, MIB);
	buf_init(&got, MIB);
	print_message("seed %llu, %d rounds\n", (unsigned long long)seed, rounds);
	for (int round = 0; round < rounds; round++) {
		struct arena a;
		arena_init(&a, 16 * MIB);
		static struct made in[40];
		size_t n = 1 + model_random(&r) % 40, n_chunks = 0;
		uint64_t style = model_random(&r);
		int64_t t[40];
		struct chunk chunks[40];
		struct hist_appender *ha = NULL;
		struct err err = {0};
		for (size_t i = 0; i < n; i++) {
			if (model_random(&r) % 8 == 0)
				style = model_random(&r);
			made_fill(&in[i], &r, model_random(&r) % 16 ? SAMPLE_HISTOGRAM + (style & 1) : SAMPLE_HISTOGRAM, style);
			t[i] = (i ? t[i - 1] : (int64_t)any_number(&r) / 4 * (style & 2 ? 1 : -1)) + 1 + (int64_t)(any_number(&r) % 1000000);
			bool appended = false;
			if (ha)
				assert_int_equal(hist_append(ha, t[i], in[i].kind, &in[i].h, &appended, &err), OK);
			if (ha && !appended) {
				refused++;
				assert_int_equal(hist_appender_finish(ha, &a, &chunks[n_chunks++], &err), OK);
			}
			joined += appended;
			if (!appended) {
				assert_int_equal(hist_appender_new(in[i].kind, ha, &a, &ha, &err), OK);
				assert_int_equal(hist_append(ha, t[i], in[i].kind, &in[i].h, &appended, &err), OK);
				assert_true(appended);
			}
		}
		assert_int_equal(hist_appender_finish(ha, &a, &chunks[n_chunks++], &err), OK);

		size_t at = 0;
		for (size_t c = 0; c < n_chunks; c++) {
			struct chunk_iter *it;
			uint32_t count;
			assert_int_equal(chunk_count(chunks[c].enc, chunks[c].data, &count, &err), OK);
			assert_int_equal(chunk_iter_new(chunks[c].enc, chunks[c].data, &a, &it, &err), OK);
			assert_int_equal(chunks[c].mint, t[at]);
			for (uint32_t i = 0; i < count; i++, at++) {
				struct chunk_point p;
				bool more;
				if (chunk_iter_next(it, &p, &more, &err) != OK)
					fail_msg("round %d: %s", round, err.msg);
				assert_true(more);
				assert_int_equal(p.t, t[at]);
				assert_int_equal(p.kind, in[at].kind);
				canonical(in[at].kind, &in[at].h, &want);
				canonical(p.kind, p.h, &got);
				if (want.n != got.n || memcmp(want.p, got.p, want.n) != 0)
					fail_msg("round %d: sample %zu differs", round, at);
				if (in[at].h.sum != STALE_NAN_BITS)
					assert_int_equal(p.h->reset_hint == HINT_GAUGE, in[at].h.reset_hint == HINT_GAUGE);
				if (p.h->reset_hint == HINT_NONE && p.h->sum != STALE_NAN_BITS) {
					assert_true(i > 0);
					if (p.kind == SAMPLE_HISTOGRAM)
						assert_true(in[at].h.i_count >= in[at - 1].h.i_count);
				}
			}
			assert_int_equal(chunks[c].maxt, t[at - 1]);
		}
		assert_int_equal(at, n);
		arena_free(&a);
	}
	print_message("%zu samples joined a chunk, %zu began one\n", joined, refused);
	assert_true(joined > 1000 && refused > 1000);
	buf_free(&want);
	buf_free(&got);
}

/* ---- where a chunk ends ---- */

struct step {
	const char *what;
	void (*change)(struct made *m);
	bool joins;
	int header; /* of the chunk that begins with it */
};

static void base(struct made *m)
{
	*m = (struct made){.kind = SAMPLE_HISTOGRAM};
	m->h = (struct histogram){
		.schema = 2, .zero_threshold = 0x1p-128, .i_count = 10, .i_zero_count = 2, .sum = f64_bits(7), .n_pos_spans = 2, .n_pos = 4};
	m->spans[0][0] = (struct hist_span){1, 2};
	m->spans[0][1] = (struct hist_span){1, 2};
	const int64_t v[4] = {3, -3, 3, -1}; /* 3 0 3 2 at 1 2 4 5 */
	memcpy(m->ints[0], v, sizeof v);
	made_link(m);
}
static void nothing(struct made *m)
{
	(void)m;
}
static void grows(struct made *m)
{
	m->h.i_count++;
	m->ints[0][0]++;
	m->ints[0][1]--;
}
static void count_falls(struct made *m)
{
	m->h.i_count--;
}
static void zero_count_falls(struct made *m)
{
	m->h.i_zero_count--;
}
static void bucket_falls(struct made *m)
{
	m->ints[0][0]--;
	m->ints[0][1]++;
}
static void empty_bucket_left_out(struct made *m)
{
	/* 3 3 2 at 1 4 5 */
	m->spans[0][0] = (struct hist_span){1, 1};
	m->spans[0][1] = (struct hist_span){2, 2};
	m->ints[0][1] = 0;
	m->ints[0][2] = -1;
	m->h.n_pos = 3;
}
static void used_bucket_gone(struct made *m)
{
	/* 3 0 3 at 1 2 4 */
	m->spans[0][1].length = 1;
	m->h.n_pos = 3;
}
static void new_bucket(struct made *m)
{
	m->spans[0][1].length = 3;
	m->h.n_pos = 5;
}
static void new_bucket_and_a_fall(struct made *m)
{
	new_bucket(m);
	bucket_falls(m);
}
static void schema(struct made *m)
{
	m->h.schema++;
}
static void threshold(struct made *m)
{
	m->h.zero_threshold = 0.001;
}
static void becomes_gauge(struct made *m)
{
	m->h.reset_hint = HINT_GAUGE;
}
static void says_reset(struct made *m)
{
	m->h.reset_hint = HINT_RESET;
}
static void becomes_float(struct made *m)
{
	m->kind = SAMPLE_FLOAT_HISTOGRAM;
	for (int i = 0; i < 4; i++)
		m->floats[0][i] = f64_bits(100);
	made_link(m);
}
static void stale(struct made *m)
{
	m->h = (struct histogram){.sum = STALE_NAN_BITS};
}

static void borders(void **state)
{
	(void)state;
	static const struct step steps[] = {
		{"the same again", nothing, true, 0},
		{"a bucket grows", grows, true, 0},
		{"an empty bucket is left out", empty_bucket_left_out, true, 0},
		{"stale", stale, true, 0},
		{"the count falls", count_falls, false, HEADER_RESET},
		{"the zero count falls", zero_count_falls, false, HEADER_RESET},
		{"a bucket falls", bucket_falls, false, HEADER_RESET},
		{"a used bucket is gone", used_bucket_gone, false, HEADER_RESET},
		{"a new bucket", new_bucket, true, 0},
		{"a new bucket and a fall", new_bucket_and_a_fall, false, HEADER_RESET},
		{"hint reset", says_reset, false, HEADER_RESET},
		{"schema", schema, false, HEADER_UNKNOWN},
		{"threshold", threshold, false, HEADER_UNKNOWN},
		{"integer to float", becomes_float, false, HEADER_UNKNOWN},
		{"counter to gauge", becomes_gauge, false, HEADER_GAUGE},
	};
	for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
		struct arena a;
		arena_init(&a, MIB);
		static struct made first, second;
		struct hist_appender *ha, *hb;
		struct err err = {0};
		struct chunk c;
		bool appended;
		base(&first);
		base(&second);
		steps[i].change(&second);
		assert_int_equal(hist_appender_new(first.kind, NULL, &a, &ha, &err), OK);
		assert_int_equal(hist_append(ha, 1000, first.kind, &first.h, &appended, &err), OK);
		assert_int_equal(hist_append(ha, 2000, second.kind, &second.h, &appended, &err), OK);
		if (appended != steps[i].joins)
			fail_msg("%s: joined: %d", steps[i].what, appended);
		if (!appended) {
			assert_int_equal(hist_appender_new(second.kind, ha, &a, &hb, &err), OK);
			assert_int_equal(hist_append(hb, 2000, second.kind, &second.h, &appended, &err), OK);
			assert_int_equal(hist_appender_finish(hb, &a, &c, &err), OK);
			if ((uint8_t)c.data.p[2] >> 6 != steps[i].header)
				fail_msg("%s: header %d", steps[i].what, (uint8_t)c.data.p[2] >> 6);
		}
		assert_int_equal(hist_appender_finish(ha, &a, &c, &err), OK);
		assert_int_equal((uint8_t)c.data.p[2] >> 6, HEADER_UNKNOWN);

		/* behind a stale one only stale ones come */
		if (second.h.sum == STALE_NAN_BITS) {
			assert_int_equal(hist_append(ha, 3000, second.kind, &second.h, &appended, &err), OK);
			assert_true(appended);
			assert_int_equal(hist_append(ha, 4000, first.kind, &first.h, &appended, &err), OK);
			assert_false(appended);
			assert_int_equal(hist_appender_new(first.kind, ha, &a, &hb, &err), OK);
			assert_int_equal(hist_append(hb, 4000, first.kind, &first.h, &appended, &err), OK);
			assert_int_equal(hist_appender_finish(hb, &a, &c, &err), OK);
			assert_int_equal((uint8_t)c.data.p[2] >> 6, HEADER_UNKNOWN);
		}
		arena_free(&a);
	}
}

/* Gauges may fall and stay in one chunk. */
static void gauges_fall(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	static struct made m;
	struct hist_appender *ha;
	struct err err = {0};
	struct chunk c;
	bool appended;
	base(&m);
	m.h.reset_hint = HINT_GAUGE;
	assert_int_equal(hist_appender_new(m.kind, NULL, &a, &ha, &err), OK);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(hist_append(ha, i, m.kind, &m.h, &appended, &err), OK);
		assert_true(appended);
		m.h.i_count--;
		m.ints[0][0]--;
		m.ints[0][1]++;
	}
	m.h.reset_hint = HINT_UNKNOWN;
	assert_int_equal(hist_append(ha, 10, m.kind, &m.h, &appended, &err), OK);
	assert_false(appended);
	assert_int_equal(hist_appender_finish(ha, &a, &c, &err), OK);
	assert_int_equal((uint8_t)c.data.p[2] >> 6, HEADER_GAUGE);
	arena_free(&a);
}

/* A full chunk ends at 65,535 samples, or at 1024 bytes and 10 samples; the next one says that nothing was reset. */
static void full_chunks(void **state)
{
	(void)state;
	for (int wide = 0; wide < 2; wide++) {
		struct arena a;
		arena_init(&a, 64 * MIB);
		static struct made m;
		struct hist_appender *ha, *hb;
		struct err err = {0};
		struct chunk c;
		bool appended = true;
		uint32_t n = 0;
		base(&m);
		if (wide) {
			m.kind = SAMPLE_FLOAT_HISTOGRAM;
			m.spans[0][0] = (struct hist_span){0, 60};
			m.h.n_pos_spans = 1;
			m.h.n_pos = 60;
			made_link(&m);
		}
		assert_int_equal(hist_appender_new(m.kind, NULL, &a, &ha, &err), OK);
		for (; appended; n++) {
			for (int k = 0; wide && k < 60; k++)
				m.floats[0][k] = f64_bits((double)n * 1.1 + k / 7.0);
			assert_int_equal(hist_append(ha, n, m.kind, &m.h, &appended, &err), OK);
			assert_true(n < 70000);
		}
		assert_int_equal(hist_appender_finish(ha, &a, &c, &err), OK);
		if (wide)
			assert_true(n - 1 == 10 && c.data.n >= 1024);
		else
			assert_true(c.data.n >= 1024 && c.data.n < 1100 && n > 100);
		assert_int_equal(hist_appender_new(m.kind, ha, &a, &hb, &err), OK);
		assert_int_equal(hist_append(hb, n, m.kind, &m.h, &appended, &err), OK);
		assert_int_equal(hist_appender_finish(hb, &a, &c, &err), OK);
		assert_int_equal((uint8_t)c.data.p[2] >> 6, HEADER_NONE);
		arena_free(&a);
	}
}

/* Memory that runs out is said, at every allocation. */
static void out_of_memory(void **state)
{
	(void)state;
	static struct made m;
	base(&m);
	for (size_t max = 0;; max += 64) {
		struct arena a;
		arena_init(&a, max);
		struct hist_appender *ha;
		struct err err = {0};
		struct chunk c;
		bool appended;
		errc rc = hist_appender_new(m.kind, NULL, &a, &ha, &err);
		for (int i = 0; rc == OK && i < 1000; i++) {
			m.h.i_count += 100000;
			rc = hist_append(ha, (int64_t)i * i * 977, m.kind, &m.h, &appended, &err);
			if (rc == OK && !appended)
				break;
		}
		if (rc == OK)
			rc = hist_appender_finish(ha, &a, &c, &err);
		arena_free(&a);
		if (rc == OK)
			break;
		assert_int_equal(rc, ERR_NOMEM);
		assert_true(max < 100000);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden),
		cmocka_unit_test(round_trip),
		cmocka_unit_test(borders),
		cmocka_unit_test(gauges_fall),
		cmocka_unit_test(full_chunks),
		cmocka_unit_test(out_of_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
