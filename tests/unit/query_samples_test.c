/* One series out of many parts: every time once, the order-free winner, no deleted sample, chunks that never overlap; held against a dictionary. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "query/query_int.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"

/* ---- the dictionary: what a series holds at each of the times 0 ... TIMES - 1 ---- */

enum { TIMES = 400, PARTS = 5, CHUNKS = 12, INTERVALS = 3 };

struct cell {
	bool there;
	enum sample_kind kind;
	uint64_t v; /* float bits, or what the histogram is made from */
};

/* A histogram that is a function of n; every tenth is stale. */
static const struct histogram *histogram_of(enum sample_kind kind, uint64_t n)
{
	static struct histogram h;
	static struct hist_span span;
	static int64_t ints[3];
	static uint64_t floats[3];
	if (n % 10 == 9) {
		h = (struct histogram){.sum = STALE_NAN_BITS};
		return &h;
	}
	span = (struct hist_span){(int32_t)(n / 16 % 2), 3};
	ints[0] = (int64_t)(n % 7);
	ints[1] = 1;
	ints[2] = -1;
	for (int i = 0; i < 3; i++)
		floats[i] = f64_bits((double)(n % 7) + i);
	h = (struct histogram){.schema = (int32_t)(n / 64 % 2),
		.sum = f64_bits((double)n),
		.i_count = n,
		.i_zero_count = n / 2,
		.f_count = f64_bits((double)n),
		.f_zero_count = f64_bits((double)n / 2),
		.pos_spans = &span,
		.n_pos_spans = 1,
		.n_pos = 3};
	if (n % 13 == 0)
		h.reset_hint = 3;
	if (kind == SAMPLE_HISTOGRAM)
		h.i_pos = ints;
	else
		h.f_pos = floats;
	return &h;
}

static void canonical(struct cell c, struct buf *out)
{
	buf_clear(out);
	if (c.kind == SAMPLE_FLOAT)
		buf_be64(out, c.v);
	else
		histogram_canonical(c.kind, histogram_of(c.kind, c.v), out);
}

/* Decision 4, word for word. */
static bool beats(struct cell a, struct cell b)
{
	struct buf x, y;
	bool ha = a.kind != SAMPLE_FLOAT, hb = b.kind != SAMPLE_FLOAT;
	bool sa = ha ? a.v % 10 == 9 : a.v == STALE_NAN_BITS, sb = hb ? b.v % 10 == 9 : b.v == STALE_NAN_BITS;
	if (ha != hb)
		return ha;
	if (sa != sb)
		return sb;
	buf_init(&x, MIB);
	buf_init(&y, MIB);
	canonical(a, &x);
	canonical(b, &y);
	int c = span_cmp(span_of(x.p, x.n), span_of(y.p, y.n));
	buf_free(&x);
	buf_free(&y);
	return c > 0;
}

struct lab {
	struct arena arena;
	struct ext_series parts[PARTS];
	struct chunk chunks[PARTS][CHUNKS];
	struct interval deleted[PARTS][INTERVALS];
	struct merged s;
	struct cell want[TIMES];
};

static struct span encode(struct lab *l, const struct cell *v, const int64_t *t, size_t n, uint8_t *enc)
{
	struct err err = {0};
	if (v[0].kind == SAMPLE_FLOAT) {
		uint8_t *bytes = arena_alloc(&l->arena, 64 + n * XOR_APPEND_MAX_BYTES);
		struct xor_appender a;
		xor_appender_init(&a);
		for (size_t i = 0; i < n; i++)
			xor_append(&a, bytes, t[i], v[i].v);
		*enc = CHUNK_XOR;
		return span_of(bytes, a.n_bytes);
	}
	struct hist_appender *a;
	struct chunk c;
	assert_int_equal(hist_appender_new(v[0].kind, NULL, &l->arena, &a, &err), OK);
	for (size_t i = 0; i < n; i++) {
		bool appended;
		assert_int_equal(hist_append(a, t[i], v[i].kind, histogram_of(v[i].kind, v[i].v), &appended, &err), OK);
		assert_true(appended);
	}
	assert_int_equal(hist_appender_finish(a, &l->arena, &c, &err), OK);
	*enc = c.enc;
	return c.data;
}

static void make(struct lab *l, uint64_t *r, bool floats_only)
{
	static const uint64_t values[] = {
		0, STALE_NAN_BITS, NORMAL_NAN_BITS, UINT64_C(1) << 63, UINT64_C(0x3ff0000000000000), UINT64_C(0x7ff0000000000000)};
	arena_reset(&l->arena);
	memset(l->want, 0, sizeof l->want);
	size_t n_parts = 1 + model_random(r) % PARTS;
	for (size_t p = 0; p < n_parts; p++) {
		struct ext_series *part = &l->parts[p];
		*part = (struct ext_series){.chunks = l->chunks[p], .deleted = l->deleted[p]};
		/* deleted intervals, sorted, apart */
		int64_t at = (int64_t)(model_random(r) % 100);
		for (size_t n = model_random(r) % (INTERVALS + 1); n > 0; n--) {
			int64_t end = at + (int64_t)(model_random(r) % 60);
			l->deleted[p][part->n_deleted++] = (struct interval){at, end};
			at = end + 2 + (int64_t)(model_random(r) % 100);
		}
		/* chunks one after another; in one part of four they may overlap */
		bool overlapping = model_random(r) % 4 == 0;
		int64_t t = (int64_t)(model_random(r) % 80);
		for (size_t k = 1 + model_random(r) % CHUNKS; k > 0 && t < TIMES - 1; k--) {
			struct cell v[64];
			int64_t times[64];
			size_t n = 0;
			enum sample_kind kind = floats_only ? SAMPLE_FLOAT : (enum sample_kind)(model_random(r) % 3);
			uint64_t base = model_random(r) % 200;
			for (; n < 60 && t < TIMES && (n == 0 || model_random(r) % 25); t += 1 + (int64_t)(model_random(r) % 3)) {
				v[n] = (struct cell){true, kind, kind == SAMPLE_FLOAT ? values[model_random(r) % 6] : base};
				times[n++] = t;
			}
			struct chunk *c = &l->chunks[p][part->n_chunks++];
			*c = (struct chunk){.mint = times[0], .maxt = times[n - 1]};
			c->data = encode(l, v, times, n, &c->enc);
			for (size_t i = 0; i < n; i++) {
				bool gone = false;
				for (size_t d = 0; d < part->n_deleted; d++)
					gone |= times[i] >= l->deleted[p][d].mint && times[i] <= l->deleted[p][d].maxt;
				struct cell *w = &l->want[times[i]];
				if (!gone && (!w->there || beats(v[i], *w)))
					*w = v[i];
			}
			if (overlapping && model_random(r) % 2)
				t = times[0] + 1;
			else
				t += (int64_t)(model_random(r) % 10);
		}
	}
	l->s = (struct merged){.parts = l->parts, .n_parts = n_parts};
}

static void assert_point(const struct lab *l, const struct chunk_point *p)
{
	struct buf want, got;
	assert_in_range(p->t, 0, TIMES - 1);
	const struct cell *w = &l->want[p->t];
	if (!w->there)
		fail_msg("a sample at %lld that is not there", (long long)p->t);
	assert_int_equal(p->kind, w->kind);
	buf_init(&want, MIB);
	buf_init(&got, MIB);
	canonical(*w, &want);
	if (p->kind == SAMPLE_FLOAT)
		buf_be64(&got, p->v);
	else
		histogram_canonical(p->kind, p->h, &got);
	if (want.n != got.n || memcmp(want.p, got.p, want.n) != 0)
		fail_msg("another sample at %lld: kind %d, %zu and %zu bytes; made from %llu", (long long)p->t, p->kind, want.n, got.n,
			(unsigned long long)w->v);
	buf_free(&want);
	buf_free(&got);
}

static void assert_samples(struct lab *l, int64_t mint, int64_t maxt)
{
	struct sample_iter *it;
	struct err err = {0};
	int64_t t = mint;
	assert_int_equal(samples_open(&l->s, mint, maxt, &l->arena, &it, &err), OK);
	for (;;) {
		struct chunk_point p;
		bool more;
		if (samples_next(it, &p, &more, &err) != OK)
			fail_msg("%s", err.msg);
		int64_t next = more ? p.t : maxt + 1;
		assert_true(next >= t);
		for (; t < next; t++)
			if (t >= 0 && t < TIMES && l->want[t].there)
				fail_msg("the sample at %lld is missing", (long long)t);
		if (!more)
			break;
		assert_true(p.t <= maxt);
		assert_point(l, &p);
		t = p.t + 1;
	}
	samples_close(it);
}

/* Every sample of the range; some around it may come along. */
static void assert_chunks(struct lab *l, int64_t mint, int64_t maxt)
{
	struct chunk *v;
	size_t n;
	struct err err = {0};
	bool seen[TIMES] = {false};
	if (samples_chunks(&l->s, mint, maxt, &l->arena, &v, &n, &err) != OK)
		fail_msg("%s", err.msg);
	for (size_t i = 0; i < n; i++) {
		struct chunk_iter *it;
		uint32_t count, k = 0;
		assert_true(i == 0 || v[i].mint > v[i - 1].maxt);
		assert_int_equal(chunk_count(v[i].enc, v[i].data, &count, &err), OK);
		assert_true(count > 0);
		assert_int_equal(chunk_iter_new(v[i].enc, v[i].data, &l->arena, &it, &err), OK);
		for (;; k++) {
			struct chunk_point p;
			bool more;
			assert_int_equal(chunk_iter_next(it, &p, &more, &err), OK);
			if (!more)
				break;
			if (k == 0)
				assert_int_equal(p.t, v[i].mint);
			if (k == count - 1)
				assert_int_equal(p.t, v[i].maxt);
			/* outside the range it is whatever its chunk holds */
			if (p.t < mint || p.t > maxt)
				continue;
			assert_point(l, &p);
			seen[p.t] = true;
		}
		assert_int_equal(k, count);
	}
	for (int64_t t = mint < 0 ? 0 : mint; t <= maxt && t < TIMES; t++)
		if (l->want[t].there && !seen[t])
			fail_msg("the sample at %lld is in no chunk", (long long)t);
}

static void against_a_dictionary(void **state)
{
	(void)state;
	const char *s = getenv("SEED");
	uint64_t r = s ? strtoull(s, NULL, 0) : io_random_u64() | 1;
	int rounds = getenv("VARVE_FULL") ? 100000 : 3000;
	static struct lab l;
	arena_init(&l.arena, GIB);
	print_message("SEED=%llu, %d rounds\n", (unsigned long long)r, rounds);
	for (int i = 0; i < rounds; i++) {
		make(&l, &r, i % 2);
		assert_samples(&l, -10, TIMES + 10);
		assert_chunks(&l, -10, TIMES + 10);
		int64_t a = (int64_t)(model_random(&r) % TIMES), b = a + (int64_t)(model_random(&r) % TIMES);
		assert_samples(&l, a, b);
		assert_chunks(&l, a, b);
	}
	arena_free(&l.arena);
}

/* ---- what passes as it is ---- */

static struct chunk xor_chunk(struct arena *a, int64_t first, int64_t step, size_t n, uint64_t v)
{
	uint8_t *bytes = arena_alloc(a, 64 + n * XOR_APPEND_MAX_BYTES);
	struct xor_appender x;
	xor_appender_init(&x);
	for (size_t i = 0; i < n; i++)
		xor_append(&x, bytes, first + (int64_t)i * step, v + i);
	return (struct chunk){first, first + (int64_t)(n - 1) * step, CHUNK_XOR, span_of(bytes, x.n_bytes)};
}

/* Chunks that overlap nothing are handed on byte for byte; the same chunk found twice is one; XOR2 becomes XOR. */
static void untouched_chunks(void **state)
{
	(void)state;
	struct arena a;
	struct err err = {0};
	arena_init(&a, 64 * MIB);
	struct chunk one[2] = {xor_chunk(&a, 0, 10, 100, 5), xor_chunk(&a, 1000, 10, 100, 7)}, two[2] = {one[0], one[1]}, *v;
	two[1].data = arena_dup(&a, one[1].data);
	struct ext_series parts[2] = {{.chunks = one, .n_chunks = 2}, {.chunks = two, .n_chunks = 2}};
	size_t n;
	assert_int_equal(samples_chunks(&(struct merged){.parts = parts, .n_parts = 2}, 0, 5000, &a, &v, &n, &err), OK);
	assert_int_equal(n, 2);
	assert_ptr_equal(v[0].data.p, one[0].data.p);
	assert_true(span_eq(v[1].data, one[1].data));
	/* outside the range */
	assert_int_equal(samples_chunks(&(struct merged){.parts = parts, .n_parts = 2}, 991, 999, &a, &v, &n, &err), OK);
	assert_int_equal(n, 0);
	assert_int_equal(samples_chunks(&(struct merged){.parts = parts, .n_parts = 2}, 995, 1000, &a, &v, &n, &err), OK);
	assert_int_equal(n, 1);
	/* a deletion of another time does not touch a chunk; all of a chunk deleted leaves none */
	const struct interval later[] = {{992, 999}, {1000, 1990}};
	parts[0].deleted = later;
	parts[0].n_deleted = 2;
	assert_int_equal(samples_chunks(&(struct merged){.parts = parts, .n_parts = 1}, 0, 5000, &a, &v, &n, &err), OK);
	assert_int_equal(n, 1);
	assert_ptr_equal(v[0].data.p, one[0].data.p);

	static const uint8_t xor2[] = {
		0x00, 0x05, 0x00, 0xd0, 0x0f, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0x98, 0x75, 0x50, 0x9b, 0xff, 0xdc, 0x00, 0x1c, 0x00, 0x7f};
	struct chunk c = {1000, 61002, CHUNK_XOR2, span_of(xor2, sizeof xor2)};
	const struct ext_series part = {.chunks = &c, .n_chunks = 1};
	assert_int_equal(samples_chunks(&(struct merged){.parts = &part, .n_parts = 1}, 0, 100000, &a, &v, &n, &err), OK);
	assert_int_equal(n, 1);
	assert_int_equal(v[0].enc, CHUNK_XOR);
	struct chunk_sample got[5];
	assert_int_equal(xor_decode(v[0].data, got, 5, &n, &err), OK);
	assert_int_equal(n, 5);
	assert_true(got[4].v == STALE_NAN_BITS && got[4].t == 61002);
	arena_free(&a);
}

/* A chunk that does not decode, or is not where the index says, is its own block's fault and no other's. */
static void damage_is_blamed(void **state)
{
	(void)state;
	struct arena a;
	struct err err = {0};
	arena_init(&a, 64 * MIB);
	const struct source good = {.ulid = {{1}}, .kind = "bucket"}, bad = {.ulid = {{2}}, .kind = "local"};
	for (int k = 0; k < 3; k++) {
		struct chunk x = xor_chunk(&a, 0, 10, 100, 5), y = xor_chunk(&a, 5, 10, 100, 7), *v;
		if (k == 0)
			y.data.n /= 2;
		else if (k == 1)
			y.mint++;
		else
			y.maxt--;
		struct ext_series parts[2] = {{.chunks = &x, .n_chunks = 1, .src = &good}, {.chunks = &y, .n_chunks = 1, .src = &bad}};
		struct question qn = {.blamed = good.ulid};
		const struct merged s = {.qn = &qn, .parts = parts, .n_parts = 2};
		size_t n;
		assert_int_equal(samples_chunks(&s, 0, 5000, &a, &v, &n, &err), ERR_CORRUPT);
		assert_true(ulid_eq(qn.blamed, bad.ulid));
		assert_string_equal(qn.blamed_kind, "local");
	}
	arena_free(&a);
}

/* No reset is claimed across chunks: 5 9 of one, 7 of another in between. */
static void hints_across_parts(void **state)
{
	(void)state;
	struct arena a;
	struct err err = {0};
	arena_init(&a, 64 * MIB);
	struct chunk c[2];
	for (int k = 0; k < 2; k++) {
		struct hist_appender *ha;
		bool appended;
		assert_int_equal(hist_appender_new(SAMPLE_HISTOGRAM, NULL, &a, &ha, &err), OK);
		for (int i = 0; i < 4; i++)
			if (k == 0 || i == 2)
				assert_int_equal(
					hist_append(ha, i * 10 + k, SAMPLE_HISTOGRAM, &(struct histogram){.i_count = 5}, &appended, &err), OK);
		assert_int_equal(hist_appender_finish(ha, &a, &c[k], &err), OK);
	}
	struct ext_series parts[2] = {{.chunks = &c[0], .n_chunks = 1}, {.chunks = &c[1], .n_chunks = 1}};
	struct sample_iter *it;
	static const uint8_t want[5] = {0, 2, 2, 0, 0}; /* at 0 10 20 21 30 */
	assert_int_equal(samples_open(&(struct merged){.parts = parts, .n_parts = 2}, 0, 100, &a, &it, &err), OK);
	for (int i = 0; i < 5; i++) {
		struct chunk_point p;
		bool more;
		assert_int_equal(samples_next(it, &p, &more, &err), OK);
		assert_true(more);
		assert_int_equal(p.h->reset_hint, want[i]);
	}
	samples_close(it);
	arena_free(&a);
}

/* Each allocation fails in turn: the error is said, and nothing is leaked or used after it. */
static void out_of_memory(void **state)
{
	(void)state;
	static struct lab l;
	uint64_t r = 99;
	arena_init(&l.arena, GIB);
	for (int i = 0; i < 20; i++)
		for (uint64_t n = 1;; n++) {
			struct err err = {0};
			struct chunk *v;
			struct arena a;
			size_t k;
			uint64_t seed = r;
			make(&l, &seed, i % 2);
			arena_init(&a, GIB);
			fail_alloc_at(n, false);
			errc rc = samples_chunks(&l.s, 0, TIMES, &a, &v, &k, &err);
			uint64_t hits = fail_alloc_off();
			arena_free(&a);
			if (hits == 0) {
				assert_int_equal(rc, OK);
				r = seed;
				break;
			}
			assert_true(rc == ERR_NOMEM || rc == ERR_LIMIT);
		}
	arena_free(&l.arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(against_a_dictionary),
		cmocka_unit_test(untouched_chunks),
		cmocka_unit_test(damage_is_blamed),
		cmocka_unit_test(hints_across_parts),
		cmocka_unit_test(out_of_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
