/* Histograms in the head: any order, resent, mixed with floats, replayed, cut in part, cut; what comes back is what an array says that was sent.
 *
 * One file because every test sends the same requests and holds what is read against the same array.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_cut_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/hist_lab.h"

enum { RANGE = 600000, SERIES = 12 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

/* One life of a head. */
static void model_run(uint64_t seed, size_t *chunks, size_t *verdicts)
{
	struct lab l;
	struct hist_model m = {0};
	struct hist_maker makers[SERIES];
	uint64_t r = seed;
	int64_t now[SERIES];
	lab_open(&l, seed, RANGE, 1 * MIB);
	l.n_series = SERIES;
	if (seed % 3 == 0)
		l.cfg.max_memory_bytes = 6 * MIB; /* raw leaves go at once, and a long replay is cut in part */
	arena_init(&m.arena, GIB);
	for (uint32_t k = 0; k < SERIES; k++) {
		hist_maker_init(&makers[k], seed * 100 + k);
		makers[k].steady = k == 3;
		now[k] = T0 + (int64_t)(lab_random(&r) % 1000);
	}
	must_start(&l);
	for (int op = 0; op < 60; op++) {
		uint64_t what = lab_random(&r) % 40;
		if (what == 0) {
			lab_crash(&l, SIM_KEEP_ALL);
			must_start(&l);
		} else if (what == 1) {
			lab_stop(&l);
			must_start(&l);
		} else if (what == 2) {
			lab_flush(&l);
			m.gen++;
		} else if (what == 3 || what == 4) {
			errc rc = head_snapshot(l.head, NULL);
			assert_true(rc == OK || rc == ERR_AGAIN); /* nothing was sent since the start */
		} else if (what < 7) {
			hist_check(&l, &m, chunks);
		}
		struct hist_request q;
		struct err err = {0};
		struct hist_point sent[200];
		size_t n = 1 + lab_random(&r) % 200;
		uint64_t style = lab_random(&r) % 4;
		hist_request_begin(&q, 200);
		for (size_t i = 0; i < n; i++) {
			uint32_t k = i > 0 && lab_random(&r) % 8 ? sent[i - 1].series : (uint32_t)(lab_random(&r) % SERIES);
			int64_t t = now[k] += (int64_t)(lab_random(&r) % 3000);
			if (style == 0 || lab_random(&r) % 20 == 0)
				t = T0 + (int64_t)(lab_random(&r) % (uint64_t)(now[k] - T0 + 1));
			if (m.n > 0 && lab_random(&r) % 30 == 0)
				sent[i] = hist_point_again(&m, &r);
			else
				sent[i] = hist_point_make(k, t, &makers[k], &m.arena, &r);
			hist_request_put(&q, &sent[i]);
		}
		if (hist_request_send(&l, &q, &err) != OK)
			fail_msg("seed %llu: %s", (unsigned long long)seed, err.msg);
		/* Floats of a series' entry come before its histograms. */
		size_t want[3] = {0}, got[3] = {0};
		for (size_t i = 0, end; i < n; i = end) {
			for (end = i; end < n && sent[end].series == sent[i].series; end++)
				;
			for (size_t k = i; k < 2 * end - i; k++) {
				const struct hist_point *p = &sent[k < end ? k : k - (end - i)];
				if (p->is_hist != (k >= end))
					continue;
				enum hist_verdict v = hist_model_put(&m, p);
				want[v]++;
				verdicts[v]++;
			}
		}
		for (size_t i = 0; i < q.b.n; i++) {
			got[HIST_STORED] += q.b.hs[i].stored + q.b.hs[i].hist_stored;
			got[HIST_DUPLICATE] += q.b.hs[i].duplicate + q.b.hs[i].hist_duplicate;
			got[HIST_REFUSED] += q.b.hs[i].refused + q.b.hs[i].hist_refused;
		}
		for (int v = 0; v < 3; v++)
			if (want[v] != got[v])
				fail_msg("seed %llu op %d: stored %zu duplicate %zu refused %zu, want %zu %zu %zu", (unsigned long long)seed, op,
					got[0], got[1], got[2], want[0], want[1], want[2]);
		hist_request_free(&q);
		if (op == 59) {
			hist_check(&l, &m, chunks);
			lab_crash(&l, SIM_KEEP_ALL);
			must_start(&l);
			hist_check(&l, &m, chunks);
			lab_flush(&l);
			hist_check(&l, &m, chunks);
		}
	}
	lab_free(&l);
	hist_model_free(&m);
}

static void what_was_sent_comes_back(void **state)
{
	(void)state;
	const char *env = getenv("VARVE_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 0) : 1000;
	uint64_t rounds = full() ? 400 : 8;
	size_t chunks[4] = {0}, verdicts[3] = {0};
	for (uint64_t i = 0; i < rounds; i++)
		model_run(seed + i, chunks, verdicts);
	print_message("seed %llu: %zu float chunks, %zu and %zu of histograms; %zu stored, %zu duplicates, %zu refused\n", (unsigned long long)seed,
		chunks[1], chunks[2], chunks[3], verdicts[0], verdicts[1], verdicts[2]);
	assert_true(chunks[1] > 20 && chunks[2] > 20 && chunks[3] > 20 && verdicts[0] > 1000 && verdicts[1] > 20 && verdicts[2] > 0);
}

/* ---- any order gives the same bytes ---- */

static struct span slurp(struct arena *a, struct ulid u, const char *file)
{
	char path[256];
	struct span s;
	struct err err = {0};
	snprintf(path, sizeof path, "data/blocks/%s/%s", ulid_text(u).s, file);
	if (io_read_file(path, GIB, a, &s, &err) != OK)
		fail_msg("%s", err.msg);
	return s;
}

static void reorder(uint32_t *to, size_t n, int order, uint64_t *r)
{
	size_t k = 0;
	for (size_t i = 0; i < n; i++)
		to[i] = (uint32_t)(order == 1 ? n - 1 - i : i);
	for (size_t stride = 0; order == 2 && stride < 7; stride++)
		for (size_t i = stride; i < n; i += 7)
			to[k++] = (uint32_t)i;
	for (size_t i = n; order == 3 && i > 1; i--) {
		size_t j = lab_random(r) % i;
		uint32_t x = to[i - 1];
		to[i - 1] = to[j];
		to[j] = x;
	}
	for (size_t i = 0; order == 4 && i + 40 < n; i++) {
		size_t j = lab_random(r) % 50 ? i : i + lab_random(r) % 40;
		uint32_t x = to[i];
		memmove(&to[i], &to[i + 1], (j - i) * sizeof *to);
		to[j] = x;
	}
}

static void send_some(struct lab *l, const struct hist_point *v, const uint32_t *to, size_t from, size_t end, uint64_t *r)
{
	while (from < end) {
		struct hist_request q;
		struct err err = {0};
		size_t n = 1 + lab_random(r) % 400;
		hist_request_begin(&q, n);
		for (; n > 0 && from < end; n--)
			hist_request_put(&q, &v[to[from++]]);
		if (hist_request_send(l, &q, &err) != OK)
			fail_msg("send: %s", err.msg);
		for (size_t i = 0; i < q.b.n; i++)
			assert_int_equal(q.b.hs[i].refused + q.b.hs[i].hist_refused, 0);
		hist_request_free(&q);
	}
}

static void any_order_gives_the_same_bytes(void **state)
{
	(void)state;
	uint64_t rounds = full() ? 30 : 2;
	for (uint64_t round = 0; round < rounds; round++) {
		struct arena keep;
		struct span index = {0}, chunks = {0};
		struct hist_point *v = malloc(40000 * sizeof *v);
		uint64_t r = round;
		size_t n = 0;
		arena_init(&keep, GIB);
		for (uint32_t k = 0; k < SERIES; k++) {
			struct hist_maker m;
			hist_maker_init(&m, round * 100 + k);
			m.steady = k % 2;
			int64_t step = k % 3 == 0 ? 1000 : k % 3 == 1 ? 5000 : 400;
			for (int64_t t = T0 + (int64_t)(lab_random(&r) % 1000); t < T0 + RANGE;
				t += step + (k % 2 ? (int64_t)(lab_random(&r) % 50) : 0)) {
				v[n++] = hist_point_make(k, t, &m, &keep, &r);
				if (v[n - 1].is_hist && lab_random(&r) % 30 == 0) {
					struct hist_model one = {.v = (struct hist_entry[]){{v[n - 1], 0}}, .n = 1};
					arena_init(&one.arena, MIB);
					v[n] = hist_point_again(&one, &r);
					v[n].packed = arena_dup(&keep, v[n].packed);
					arena_free(&one.arena);
					n++;
				}
			}
		}
		uint32_t *to = malloc(n * sizeof *to);
		for (int o = 0; o < 10; o++) {
			struct lab l;
			bool tight = o >= 5; /* raw leaves go at once, and the run is killed midway */
			lab_open(&l, round * 10 + (uint64_t)o, RANGE, 4 * MIB);
			l.n_series = SERIES;
			l.cfg.max_memory_bytes = tight ? 8 * MIB : GIB;
			must_start(&l);
			reorder(to, n, o % 5, &r);
			size_t kill = tight ? lab_random(&r) % n : 0;
			l.cfg.max_memory_bytes = GIB;
			send_some(&l, v, to, 0, kill, &r);
			if (tight) {
				lab_crash(&l, SIM_KEEP_ALL);
				must_start(&l);
			}
			send_some(&l, v, to, kill, n, &r);
			head_cut_direct_bytes = (uint64_t)(o % 2); /* every other time through the spool */
			lab_flush(&l);
			head_cut_direct_bytes = 0;
			assert_int_equal(l.n_blocks, 1);
			struct arena a;
			arena_init(&a, GIB);
			struct span i = slurp(&a, l.blocks[0], "index"), c = slurp(&a, l.blocks[0], "chunks/000001");
			if (o == 0) {
				index = arena_dup(&keep, i);
				chunks = arena_dup(&keep, c);
			} else if (!span_eq(chunks, c) || !span_eq(index, i)) {
				fail_msg("round %llu: order %d gives other bytes", (unsigned long long)round, o);
			}
			arena_free(&a);
			lab_free(&l);
		}
		print_message("%zu samples, %zu bytes of chunks\n", n, chunks.n);
		free(to);
		free(v);
		arena_free(&keep);
	}
}

/* ---- no memory ---- */

/* Any allocation fails: nothing is lost that was acknowledged, and the same request again stores the rest. */
static void allocations_fail(void **state)
{
	(void)state;
	for (uint64_t n = 1, hits = 1; hits > 0; n += full() ? 1 : 1 + n / 16) {
		struct lab l;
		struct hist_model m = {0};
		struct hist_maker maker;
		struct hist_point v[120];
		struct hist_request q;
		struct err err = {0};
		uint64_t r = 5;
		lab_open(&l, n, RANGE, 1 * MIB);
		l.n_series = SERIES;
		must_start(&l);
		arena_init(&m.arena, GIB);
		hist_maker_init(&maker, 17);
		for (size_t i = 0; i < 120; i++)
			v[i] = hist_point_make((uint32_t)(2 + i / 12), T0 + (int64_t)(i * 7919 % 120) * 1000, &maker, &m.arena, &r);
		hist_request_begin(&q, 120);
		for (size_t i = 0; i < 120; i++)
			hist_request_put(&q, &v[i]);
		fail_alloc_at(n, false);
		errc rc = hist_request_send(&l, &q, &err);
		hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM || rc == ERR_AGAIN);
		if (rc != OK && hist_request_send(&l, &q, &err) != OK)
			fail_msg("n %llu: %s", (unsigned long long)n, err.msg);
		for (size_t i = 0; i < 120; i++)
			hist_model_put(&m, &v[i]);
		hist_check(&l, &m, NULL);
		lab_crash(&l, SIM_KEEP_ALL);
		must_start(&l);
		hist_check(&l, &m, NULL);
		hist_request_free(&q);
		lab_free(&l);
		hist_model_free(&m);
	}
}

/* Replay, reading and cutting without memory say so, and work when there is some. */
static void reading_without_memory(void **state)
{
	(void)state;
	struct lab l;
	struct hist_model m = {0};
	struct hist_maker maker;
	struct hist_request q;
	struct err err = {0};
	uint64_t r = 5;
	lab_open(&l, 1, RANGE, 1 * MIB);
	l.n_series = SERIES;
	must_start(&l);
	arena_init(&m.arena, GIB);
	hist_maker_init(&maker, 17);
	hist_request_begin(&q, 400);
	for (size_t i = 0; i < 400; i++) {
		struct hist_point p = hist_point_make(9, T0 + (int64_t)(i % 7 ? i : 400 - i) * 1000, &maker, &m.arena, &r);
		if (hist_model_put(&m, &p) == HIST_STORED)
			hist_request_put(&q, &p);
	}
	assert_int_equal(hist_request_send(&l, &q, &err), OK);
	for (uint64_t n = 1, hits = 1; hits > 0; n += full() ? 1 : 1 + n / 8) {
		fail_alloc_at(n, false);
		errc rc = head_flush(l.head, &err);
		hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		if (rc == OK)
			break;
		hist_check(&l, &m, NULL);
		lab_crash(&l, SIM_KEEP_ALL);
		fail_alloc_at(n, false);
		rc = lab_start(&l, &err);
		hits += fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		if (rc != OK)
			must_start(&l);
		hist_check(&l, &m, NULL);
	}
	hist_check(&l, &m, NULL);
	hist_request_free(&q);
	lab_free(&l);
	hist_model_free(&m);
}

/* ---- many threads ---- */

enum { WRITERS = 3, REQUESTS = 60 };

struct writer {
	struct lab *lab;
	uint32_t no;
	_Atomic uint64_t *stored;
};

/* Times are the writer's alone; series are everybody's. */
static void *write_some(void *arg)
{
	struct writer *w = arg;
	struct hist_maker m;
	struct arena keep;
	uint64_t r = w->no;
	hist_maker_init(&m, w->no);
	arena_init(&keep, GIB);
	for (int i = 0; i < REQUESTS; i++) {
		struct hist_request q;
		struct err err = {0};
		hist_request_begin(&q, 50);
		for (int k = 0; k < 50; k++) {
			int64_t t = T0 + ((int64_t)((i * 50 + k) * 7919 % (REQUESTS * 50)) * WRITERS + w->no) * 100;
			struct hist_point p = hist_point_make(2 + (uint32_t)(lab_random(&r) % 10), t, &m, &keep, &r);
			hist_request_put(&q, &p);
		}
		if (hist_request_send(w->lab, &q, &err) != OK)
			fail_msg("send: %s", err.msg);
		for (size_t k = 0; k < q.b.n; k++)
			*w->stored += q.b.hs[k].stored + q.b.hs[k].hist_stored;
		hist_request_free(&q);
	}
	arena_free(&keep);
	return NULL;
}

struct reader {
	struct lab *lab;
	_Atomic bool stop;
};

static void *read_on(void *arg)
{
	struct reader *x = arg;
	while (!x->stop) {
		struct hist_founds f = {0};
		struct err err = {0};
		struct arena a;
		struct source **v;
		size_t n;
		arena_init(&a, 16 * MIB);
		arena_init(&f.arena, GIB);
		assert_int_equal(head_sources(x->lab->head, span_cstr(lab_tenant(0)), INT64_MIN, INT64_MAX, &a, &v, &n, &err), OK);
		for (size_t i = 0; i < n; i++) {
			hist_read_source(v[i], &f);
			v[i]->ops->release(v[i]);
		}
		hist_founds_free(&f);
		arena_free(&a);
	}
	return NULL;
}

static void writers_readers_and_cuts(void **state)
{
	(void)state;
	struct lab l;
	struct hist_founds f;
	_Atomic uint64_t stored = 0;
	struct writer w[WRITERS];
	pthread_t threads[WRITERS], reading;
	struct err err = {0};
	lab_open(&l, 1, RANGE, 8 * MIB);
	l.n_series = SERIES;
	must_start(&l);
	struct reader x = {.lab = &l};
	assert_int_equal(pthread_create(&reading, NULL, read_on, &x), 0);
	for (uint32_t i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){&l, i, &stored};
		assert_int_equal(pthread_create(&threads[i], NULL, write_some, &w[i]), 0);
	}
	for (int i = 0; i < 3; i++)
		assert_int_equal(head_flush(l.head, &err), OK);
	for (uint32_t i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	x.stop = true;
	pthread_join(reading, NULL);
	assert_int_equal(stored, WRITERS * REQUESTS * 50);
	hist_gather(&l, &f);
	assert_int_equal(f.n, stored);
	hist_founds_free(&f);
	assert_int_equal(head_flush(l.head, &err), OK);
	hist_gather(&l, &f);
	assert_int_equal(f.n, stored);
	hist_founds_free(&f);
	lab_free(&l);
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_sent_comes_back),
		cmocka_unit_test(any_order_gives_the_same_bytes),
		cmocka_unit_test(allocations_fail),
		cmocka_unit_test(reading_without_memory),
		cmocka_unit_test(writers_readers_and_cuts),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
