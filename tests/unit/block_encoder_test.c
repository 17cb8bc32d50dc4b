/* A series' samples become chunks: all come back, in order, each in a chunk of its kind; borders and hints are those of the rule, and of floats those of the cutter. */
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
#include "tests/support/hist_make.h"

enum { RANGE = 7200000, N = 3000 };

struct sink {
	struct arena arena;
	struct chunk *v;
	size_t n, cap;
	uint64_t samples;
};

static errc emit(void *arg, const struct chunk *c, uint32_t n_samples, struct err *err)
{
	struct sink *s = arg;
	uint32_t n;
	fail_alloc_pause();
	assert_int_equal(chunk_count(c->enc, c->data, &n, err), OK);
	assert_int_equal(n, n_samples);
	if (s->n == s->cap) {
		s->cap = s->cap * 2 + 64;
		s->v = realloc(s->v, s->cap * sizeof *s->v);
	}
	s->v[s->n] = *c;
	s->v[s->n++].data = arena_dup(&s->arena, c->data);
	s->samples += n_samples;
	fail_alloc_resume();
	return OK;
}

static void sink_free(struct sink *s)
{
	free(s->v);
	arena_free(&s->arena);
}

struct series {
	struct chunk_point p[N];
	struct histogram h[N];
	struct arena arena;
};

static void series_make(struct series *s, uint64_t seed, int floats_in_16)
{
	struct hist_maker m;
	uint64_t r = seed;
	hist_maker_init(&m, seed);
	m.steady = seed % 3 == 0;
	arena_init(&s->arena, 256 * MIB);
	int64_t t = (int64_t)(seed % 7) * 1000000 - 3000000;
	for (size_t i = 0; i < N; i++) {
		t += 1 + (int64_t)(model_random(&r) % (seed % 2 ? 20000 : 500));
		s->p[i] = (struct chunk_point){.t = t, .v = f64_bits((double)(model_random(&r) % 100))};
		if (model_random(&r) % 16 < (uint64_t)floats_in_16)
			continue;
		hist_maker_next(&m, &s->arena, &s->p[i].kind, &s->h[i]);
		s->p[i].h = &s->h[i];
	}
}

static errc series_put(struct chunk_encoder *e, const struct series *s, struct err *err)
{
	errc rc = OK;
	for (size_t i = 0; i < N && rc == OK; i++)
		rc = chunk_encoder_put(e, &s->p[i], err);
	return rc == OK ? chunk_encoder_end(e, err) : rc;
}

static void check(const struct series *s, const struct sink *out)
{
	size_t at = 0;
	struct arena a;
	struct buf want, got;
	arena_init(&a, 256 * MIB);
	buf_init(&want, MIB);
	buf_init(&got, MIB);
	for (size_t c = 0; c < out->n; c++) {
		struct chunk_iter *it;
		struct err err = {0};
		const struct chunk *ch = &out->v[c];
		arena_reset(&a);
		assert_int_equal(chunk_iter_new(ch->enc, ch->data, &a, &it, &err), OK);
		assert_int_equal(ch->mint, s->p[at].t);
		/* No chunk goes over the end of a range. */
		assert_true(ch->mint / RANGE * RANGE + RANGE > ch->maxt);
		for (size_t first = at;; at++) {
			struct chunk_point p;
			bool more;
			if (chunk_iter_next(it, &p, &more, &err) != OK)
				fail_msg("%s", err.msg);
			if (!more)
				break;
			const struct chunk_point *w = &s->p[at];
			assert_true(at < N && p.t == w->t && p.kind == w->kind);
			if (p.kind == SAMPLE_FLOAT) {
				assert_int_equal(p.v, w->v);
				continue;
			}
			buf_clear(&want);
			buf_clear(&got);
			histogram_canonical(w->kind, w->h, &want);
			histogram_canonical(p.kind, p.h, &got);
			assert_int_equal(want.n, got.n);
			assert_memory_equal(want.p, got.p, want.n);
			if (w->h->sum == STALE_NAN_BITS)
				continue;
			assert_int_equal(p.h->reset_hint == HIST_RESET_GAUGE, w->h->reset_hint == HIST_RESET_GAUGE);
			if (at > first)
				assert_true(w->h->reset_hint != HIST_RESET_YES);
		}
		assert_int_equal(ch->maxt, s->p[at - 1].t);
	}
	assert_int_equal(at, N);
	assert_int_equal(out->samples, N);
	arena_free(&a);
	buf_free(&want);
	buf_free(&got);
}

static void all_samples_come_back(void **state)
{
	(void)state;
	static struct series s;
	size_t chunks = 0;
	for (uint64_t seed = 0; seed < 60; seed++) {
		struct sink out = {0};
		struct chunk_encoder *e;
		struct err err = {0};
		arena_init(&out.arena, GIB);
		series_make(&s, seed, seed % 4 == 3 ? 2 : 0);
		assert_int_equal(chunk_encoder_open(RANGE, emit, &out, &e, &err), OK);
		/* Twice: one series leaves nothing for the next. */
		assert_int_equal(series_put(e, &s, &err), OK);
		size_t n = out.n;
		check(&s, &out);
		assert_int_equal(series_put(e, &s, &err), OK);
		assert_int_equal(out.n, 2 * n);
		for (size_t c = 0; c < n; c++)
			assert_true(span_eq(out.v[c].data, out.v[n + c].data));
		chunks += n;
		chunk_encoder_close(e);
		sink_free(&out);
		arena_free(&s.arena);
	}
	print_message("%zu chunks of %d samples\n", chunks, 60 * N);
}

static void floats_are_cut_as_ever(void **state)
{
	(void)state;
	static struct series s;
	struct chunk_sample v[N];
	for (uint64_t seed = 0; seed < 20; seed++) {
		struct sink out = {0};
		struct chunk_encoder *e;
		struct err err = {0};
		size_t n;
		arena_init(&out.arena, GIB);
		series_make(&s, seed, 16);
		for (size_t i = 0; i < N; i++)
			v[i] = (struct chunk_sample){s.p[i].t, s.p[i].v};
		struct chunk *want = model_encode(&out.arena, v, N, RANGE, &n);
		assert_int_equal(chunk_encoder_open(RANGE, emit, &out, &e, &err), OK);
		assert_int_equal(series_put(e, &s, &err), OK);
		assert_int_equal(out.n, n);
		for (size_t c = 0; c < n; c++)
			assert_true(span_eq(out.v[c].data, want[c].data) && out.v[c].mint == want[c].mint && out.v[c].maxt == want[c].maxt);
		chunk_encoder_close(e);
		sink_free(&out);
		arena_free(&s.arena);
	}
}

/* The rule by hand: an estimate at 256 bytes, an end at 2048 or at the estimate with 10 samples, the range's end at any. */
static void histogram_borders(void **state)
{
	(void)state;
	struct hist_cutter c = {0};
	assert_true(hist_cutter_cut(&c, RANGE, 0, 0, 0, 1000));
	assert_int_equal(c.next_at, RANGE);
	assert_false(hist_cutter_cut(&c, RANGE, 5, 255, 40000, 50000));
	assert_false(c.estimated);
	assert_false(hist_cutter_cut(&c, RANGE, 6, 256, 50000, 60000));
	assert_true(c.estimated);
	/* 4 times as much until it is full: (7200000 - 1000) / (49001 * 4) = 36.7 chunks */
	assert_int_equal(c.next_at, 1000 + 7199000 / 36);
	assert_false(hist_cutter_cut(&c, RANGE, 9, 3000, 70000, 6000000));
	assert_true(hist_cutter_cut(&c, RANGE, 9, 3000, 70000, RANGE));
	assert_int_equal(c.next_at, 2 * RANGE);
	assert_false(c.estimated);
	c = (struct hist_cutter){.start = 0, .next_at = RANGE, .estimated = true};
	assert_false(hist_cutter_cut(&c, RANGE, 10, 2047, 10000, 20000));
	assert_true(hist_cutter_cut(&c, RANGE, 10, 2048, 10000, 20000));
	c = (struct hist_cutter){.start = 0, .next_at = 15000, .estimated = true};
	hist_cutter_demanded(&c, RANGE, 7000);
	assert_true(c.start == 7000 && c.next_at == RANGE && c.estimated);
}

static void no_memory(void **state)
{
	(void)state;
	static struct series s;
	series_make(&s, 3, 2);
	for (uint64_t n = 1, hits = 1; hits > 0; n += 1 + n / 20) {
		struct sink out = {0};
		struct chunk_encoder *e = NULL;
		struct err err = {0};
		arena_init(&out.arena, GIB);
		fail_alloc_at(n, false);
		errc rc = chunk_encoder_open(RANGE, emit, &out, &e, &err);
		if (rc == OK)
			rc = series_put(e, &s, &err);
		hits = fail_alloc_off();
		assert_int_equal(rc, hits ? ERR_NOMEM : OK);
		if (e && rc != OK) {
			chunk_encoder_drop(e);
			out.n = 0;
			out.samples = 0;
			assert_int_equal(series_put(e, &s, &err), OK);
		}
		if (e)
			check(&s, &out);
		chunk_encoder_close(e);
		sink_free(&out);
	}
	arena_free(&s.arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_samples_come_back),
		cmocka_unit_test(floats_are_cut_as_ever),
		cmocka_unit_test(histogram_borders),
		cmocka_unit_test(no_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
