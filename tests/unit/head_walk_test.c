/* A walk gives what the head was given: floats against head_lab's dictionary, in order and late, over restarts, whole or in pieces, of any part of the time; and goes on where another
 * one ended. (Histograms: ingest_digest_test.c.)
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 runs many more.
 */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_int.h"
#include "tests/support/head_lab.h"

enum { RANGE = 600000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;
static uint64_t seed;
static bool full;

static void must(errc rc, const struct err *err)
{
	if (rc != OK)
		fail_msg("%s", err->msg);
}

static uint32_t series_of(struct labels l)
{
	char text[2][64];
	unsigned metric, host;
	snprintf(text[0], 64, "%.*s", SPAN_ARG(labels_get(l, SPAN("__name__"))));
	snprintf(text[1], 64, "%.*s", SPAN_ARG(labels_get(l, SPAN("instance"))));
	assert_int_equal(sscanf(text[0], "metric_%u", &metric), 1);
	assert_int_equal(sscanf(text[1], "host-%u:9100", &host), 1);
	return host * 5 + metric;
}

/* Samples of a series between mint and maxt, as much at once as max_bytes says, are those of the dictionary. */
static void check_series(struct lab *l, struct head_walk *w, uint32_t tenant, uint32_t k, int64_t mint, int64_t maxt, size_t max_bytes)
{
	struct err err = {0};
	const struct lab_series *m = &l->series[tenant * LAB_SERIES + k];
	struct head_samples x = {.more = true, .next_t = mint};
	size_t i = 0;
	while (i < m->n && m->v[i].t < mint)
		i++;
	while (x.more) {
		int64_t from = x.next_t;
		must(head_walk_samples(w, from, maxt, max_bytes, &x, &err), &err);
		assert_true(!x.more || x.next_t > from);
		assert_int_equal(x.n_hists, 0);
		for (size_t s = 0; s < x.n_floats; s++, i++) {
			assert_true(i < m->n);
			assert_int_equal(x.floats[s].t, m->v[i].t);
			assert_int_equal(x.floats[s].v, m->v[i].v);
		}
	}
	assert_true(i == m->n || m->v[i].t > maxt);
}

static void check(struct lab *l, uint64_t *r)
{
	struct err err = {0};
	for (uint32_t t = 0; t < LAB_TENANTS; t++) {
		struct head_walk *w;
		bool seen[LAB_SERIES] = {false};
		struct head_place place = {0};
		errc rc = head_walk_open(l->head, span_cstr(lab_tenant(t)), T0, RANGE, &w, &err);
		assert_true(rc == OK || rc == ERR_NOTFOUND);
		for (bool more = rc == OK; more;) {
			struct labels x;
			must(head_walk_next(w, &x, &place, &more, &err), &err);
			if (!more)
				break;
			uint32_t k = series_of(x);
			assert_false(seen[k]);
			seen[k] = true;
			int64_t a = T0 + (int64_t)(lab_random(r) % RANGE), b = T0 + (int64_t)(lab_random(r) % RANGE);
			check_series(l, w, t, k, INT64_MIN, INT64_MAX, 64 * MIB);
			check_series(l, w, t, k, INT64_MIN, INT64_MAX, 1 + lab_random(r) % 5000);
			check_series(l, w, t, k, a < b ? a : b, a < b ? b : a, 1 + lab_random(r) % 5000);
			/* Now and then another walk goes on here. */
			if (lab_random(r) % 20 == 0) {
				head_walk_close(w);
				must(head_walk_open(l->head, span_cstr(lab_tenant(t)), T0, RANGE, &w, &err), &err);
				place.local++;
				head_walk_seek(w, place);
			}
		}
		head_walk_close(w);
		for (uint32_t k = 0; k < l->n_series; k++)
			assert_true(seen[k] || l->series[t * LAB_SERIES + k].n == 0);
	}
}

static void what_was_given(void **st)
{
	(void)st;
	for (uint64_t s = seed; s < seed + (full ? 100 : 6); s++) {
		struct lab l;
		struct err err = {0};
		uint64_t r = s;
		lab_open(&l, s, RANGE, 4 * MIB);
		must(lab_start(&l, &err), &err);
		int64_t now = T0;
		for (uint32_t turn = 0; turn < 120; turn++) {
			for (uint32_t t = 0; t < LAB_TENANTS; t++) {
				struct lab_batch b;
				lab_batch_begin(&b, t);
				for (uint32_t k = 0; k < l.n_series; k++) {
					if (lab_random(&r) % 4 == 0)
						continue;
					lab_batch_series(&b, k, (uint32_t)(lab_random(&r) % 8));
					for (uint32_t n = 0; n < 1 + k % 9; n++) {
						bool late = lab_random(&r) % (s % 2 ? 20 : 3000) == 0;
						int64_t at = late ? T0 + (int64_t)(lab_random(&r) % RANGE) : now + n * 500;
						if (at < T0 + RANGE)
							lab_batch_sample(&b, at, lab_random(&r) % 3 ? f64_bits((double)turn) : lab_random(&r));
					}
				}
				must(lab_send(&l, &b, &err), &err);
				lab_batch_free(&b);
			}
			now += 5000;
			if (turn == 40) {
				lab_stop(&l);
				must(lab_start(&l, &err), &err);
			}
			if (turn == 20 || turn == 60)
				check(&l, &r);
		}
		check(&l, &r);
		lab_free(&l);
	}
}

/* A window that is cut is none any more, and the walk that had it open reads on. */
static void a_walk_outlives_the_cut(void **st)
{
	(void)st;
	struct lab l;
	struct err err = {0};
	struct lab_batch b;
	struct head_walk *w;
	struct labels x;
	struct head_place place;
	struct head_samples s;
	bool more;
	lab_open(&l, seed, RANGE, 4 * MIB);
	must(lab_start(&l, &err), &err);
	lab_batch_begin(&b, 0);
	lab_batch_series(&b, 7, 0);
	lab_batch_sample(&b, T0 + 5, 1);
	must(lab_send(&l, &b, &err), &err);
	lab_batch_free(&b);
	must(head_walk_open(l.head, span_cstr(lab_tenant(0)), T0, RANGE, &w, &err), &err);
	lab_flush(&l);
	must(head_walk_next(w, &x, &place, &more, &err), &err);
	assert_true(more && series_of(x) == 7);
	must(head_walk_samples(w, T0, T0 + RANGE, MIB, &s, &err), &err);
	assert_int_equal(s.n_floats, 1);
	head_walk_close(w);
	assert_int_equal(head_walk_open(l.head, span_cstr(lab_tenant(0)), T0, RANGE, &w, &err), ERR_NOTFOUND);
	lab_free(&l);
}

/* What comes late from a peer: the winner stays whatever came first, over a restart too, and nothing is refused. */
static void conflicts_of_peers_are_decided(void **st)
{
	(void)st;
	struct lab l;
	struct err err = {0};
	uint64_t r = seed;
	lab_open(&l, seed, RANGE, 4 * MIB);
	l.quiet_model = true;
	must(lab_start(&l, &err), &err);
	enum { N = 500 };
	static uint64_t best[N];
	memset(best, 0, sizeof best);
	for (uint32_t turn = 0; turn < 3000; turn++) {
		struct lab_batch b;
		uint32_t i = turn < N ? turn : (uint32_t)(lab_random(&r) % N);
		uint64_t v = lab_random(&r) % 20 == 0 ? STALE_NAN_BITS : lab_random(&r);
		lab_batch_begin(&b, 0);
		lab_batch_series(&b, 3, 0);
		lab_batch_sample(&b, T0 + i * 1000, v);
		b.winner = true;
		must(lab_send(&l, &b, &err), &err);
		assert_int_equal(b.hs[0].refused, 0);
		lab_batch_free(&b);
		if (turn < N || float_winner(v, best[i]) > 0)
			best[i] = v;
		if (turn == 2000) {
			lab_stop(&l);
			must(lab_start(&l, &err), &err);
		}
	}
	for (int again = 0; again < 2; again++) {
		struct head_walk *w;
		struct labels x;
		struct head_place place;
		struct head_samples s;
		bool more;
		must(head_walk_open(l.head, span_cstr(lab_tenant(0)), T0, RANGE, &w, &err), &err);
		must(head_walk_next(w, &x, &place, &more, &err), &err);
		must(head_walk_samples(w, T0, T0 + RANGE, MIB, &s, &err), &err);
		assert_int_equal(s.n_floats, N);
		for (uint32_t i = 0; i < N; i++)
			assert_true(s.floats[i].t == T0 + i * 1000 && s.floats[i].v == best[i]);
		head_walk_close(w);
		lab_stop(&l);
		must(lab_start(&l, &err), &err);
	}
	lab_free(&l);
}

int main(void)
{
	const char *s = getenv("VARVE_SEED"), *f = getenv("VARVE_FULL");
	seed = s ? strtoull(s, NULL, 10) : 1;
	full = f && *f == '1';
	printf("seed %" PRIu64 "\n", seed);
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_given),
		cmocka_unit_test(a_walk_outlives_the_cut),
		cmocka_unit_test(conflicts_of_peers_are_decided),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
