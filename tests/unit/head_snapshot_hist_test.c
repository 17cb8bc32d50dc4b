/* A snapshot and the log's tail are what the whole log is, where series have histograms, or both kinds, are sent in any order and spelled in other ways, and where
 * requests bring exemplars and metadata. What floats alone show is in head_snapshot_test.c.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_int.h"
#include "tests/support/annot_lab.h"
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

static void must_snapshot(struct lab *l)
{
	struct err err = {0};
	if (head_snapshot(l->head, &err) != OK)
		fail_msg("snapshot: %s", err.msg);
}

static bool loaded(const struct lab *l)
{
	return l->head->snap.pos > 0;
}

/* ---- what is sent ---- */

struct sender {
	struct hist_model m;
	struct hist_maker makers[SERIES];
	int64_t now[SERIES];
	uint64_t r;
	uint32_t no;
	bool once;	 /* no sample twice */
	uint64_t *acked; /* sim_ops when the model's entry was acknowledged */
};

static void sender_init(struct sender *s, uint64_t seed, bool once)
{
	*s = (struct sender){.r = seed, .once = once};
	arena_init(&s->m.arena, GIB);
	for (uint32_t k = 0; k < SERIES; k++) {
		hist_maker_init(&s->makers[k], seed * 100 + k);
		s->now[k] = T0 + (int64_t)(lab_random(&s->r) % 1000);
	}
}

static void sender_free(struct sender *s)
{
	hist_model_free(&s->m);
	free(s->acked);
}

static void sender_acked(struct sender *s, size_t from, uint64_t op)
{
	s->acked = realloc(s->acked, (s->m.n + 1) * sizeof *s->acked);
	for (size_t i = from; i < s->m.n; i++)
		s->acked[i] = op;
}

/* One request: in order and late, again, in another layout, one value for another. step: so far the times of a series are from each other. */
static void send(struct lab *l, struct sender *s, size_t n, int64_t step)
{
	struct hist_request q;
	struct err err = {0};
	struct hist_point *sent = malloc(n * sizeof *sent);
	uint64_t *r = &s->r;
	size_t before = s->m.n;
	bool late = lab_random(r) % 4 == 0;
	hist_request_begin(&q, n);
	for (size_t i = 0; i < n; i++) {
		uint32_t k = i > 0 && lab_random(r) % 8 ? sent[i - 1].series : (uint32_t)(lab_random(r) % SERIES);
		int64_t t = s->now[k] += 1 + (int64_t)(lab_random(r) % (uint64_t)step);
		if (late || lab_random(r) % 20 == 0) {
			t = T0 + (int64_t)(lab_random(r) % (uint64_t)(s->now[k] - T0 + 1));
			for (size_t x = 0; s->once && x < s->m.n; x++)
				if (s->m.v[x].p.series == k && s->m.v[x].p.t == t)
					t = ++s->now[k];
			for (size_t x = 0; s->once && x < i; x++)
				if (sent[x].series == k && sent[x].t == t)
					t = ++s->now[k];
		}
		if (!s->once && s->m.n > 0 && lab_random(r) % 30 == 0)
			sent[i] = hist_point_again(&s->m, r);
		else
			sent[i] = hist_point_make(k, t, &s->makers[k], &s->m.arena, r);
		hist_request_put(&q, &sent[i]);
	}
	if (hist_request_send(l, &q, &err) != OK)
		fail_msg("send: %s", err.msg);
	/* Floats of a series' entry come before its histograms. */
	for (size_t i = 0, end; i < n; i = end) {
		for (end = i; end < n && sent[end].series == sent[i].series; end++)
			;
		for (size_t k = i; k < 2 * end - i; k++) {
			const struct hist_point *p = &sent[k < end ? k : k - (end - i)];
			if (p->is_hist == (k >= end))
				hist_model_put(&s->m, p);
		}
	}
	sender_acked(s, before, sim_ops(l->sim));
	hist_request_free(&q);
	free(sent);
}

static void annotate(struct lab *l, struct sender *s)
{
	struct err err = {0};
	struct annot_request *q = malloc(sizeof *q);
	annot_begin(q, 0);
	for (uint32_t i = 0; i < 6; i++) {
		char text[32];
		uint32_t no = s->no * 6 + i;
		lab_batch_series(&q->b, no % SERIES, 0);
		snprintf(text, sizeof text, "t%u", no);
		annot_exemplar(q, T0 + (int64_t)no * 100, f64_bits((double)no), text);
		snprintf(text, sizeof text, "help %u", no / 3);
		annot_metadata(q, no % 2 ? "up" : "down", METRIC_GAUGE, text, "");
	}
	if (annot_send(l, q, &err) != OK)
		fail_msg("annotate: %s", err.msg);
	annot_free(q);
	free(q);
	s->no++;
}

/* ---- what is there ---- */

struct outcome {
	struct head_status st;
	struct head_usage usage;
	struct hist_founds f;
	struct annot_list exemplars;
	struct annot_meta_list metadata[2]; /* of each family: newest first */
	uint32_t blocks;
};

static uint32_t blocks_digest(void)
{
	struct arena a;
	char **names;
	size_t n;
	uint32_t crc = 0;
	arena_init(&a, GIB);
	assert_int_equal(io_listdir("data/blocks", &a, &names, &n, NULL), OK);
	for (size_t i = 0; i < n; i++) {
		static const char *const files[] = {"index", "chunks/000001"};
		crc = crc32c(crc, names[i], strlen(names[i]));
		for (size_t k = 0; k < 2; k++) {
			char path[300];
			struct span s;
			snprintf(path, sizeof path, "data/blocks/%s/%s", names[i], files[k]);
			assert_int_equal(io_read_file(path, 64 * MIB, &a, &s, NULL), OK);
			crc = crc32c(crc, s.p, s.n);
		}
	}
	arena_free(&a);
	return crc;
}

static void outcome_take(struct lab *l, struct outcome *o)
{
	head_status(l->head, &o->st);
	head_tenant_usage(l->head, span_cstr(lab_tenant(0)), io_now_ms(), &o->usage);
	hist_gather(l, &o->f);
	o->exemplars = annot_read(l, 0, INT64_MIN, INT64_MAX);
	o->metadata[0] = annot_read_meta(l, 0, "up");
	o->metadata[1] = annot_read_meta(l, 0, "down");
	annot_sane(l, 0);
}

static void outcome_free(struct outcome *o)
{
	hist_founds_free(&o->f);
	free(o->exemplars.v);
	free(o->metadata[0].v);
	free(o->metadata[1].v);
}

static void outcome_same(const struct outcome *a, const struct outcome *b)
{
	assert_int_equal(a->st.series, b->st.series);
	assert_int_equal(a->st.windows, b->st.windows);
	assert_int_equal(a->st.samples_in_memory, b->st.samples_in_memory);
	assert_int_equal(a->st.min_t, b->st.min_t);
	assert_int_equal(a->st.max_t, b->st.max_t);
	assert_int_equal(a->usage.series, b->usage.series);
	assert_int_equal(a->usage.windows, b->usage.windows);
	assert_int_equal(a->f.n, b->f.n);
	for (size_t i = 0; i < a->f.n; i++) {
		const struct hist_found *x = &a->f.v[i], *y = &b->f.v[i];
		if (x->series != y->series || x->t != y->t || x->kind != y->kind || x->v != y->v || !span_eq(x->canonical, y->canonical) ||
			x->hint != y->hint)
			fail_msg("series %u t=%lld: another sample", x->series, (long long)x->t);
	}
	assert_int_equal(a->exemplars.n, b->exemplars.n);
	for (size_t i = 0; i < a->exemplars.n; i++)
		assert_int_equal(annot_cmp(&a->exemplars.v[i], &b->exemplars.v[i]), 0);
	for (int f = 0; f < 2; f++) {
		assert_int_equal(a->metadata[f].n, b->metadata[f].n);
		for (size_t i = 0; i < a->metadata[f].n; i++)
			assert_string_equal(a->metadata[f].v[i].help, b->metadata[f].v[i].help);
	}
	assert_int_equal(a->blocks, b->blocks);
}

/* The disk as it is, started, and then as it is after more requests, cut; with the snapshot or without. */
static void outcome_of(struct lab *l, struct sim_tape *tape, bool with, const struct sender *was, struct outcome *out)
{
	struct sim *before = l->sim;
	struct sender s = *was;
	l->sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
	sim_use(l->sim);
	if (!with)
		assert_int_equal(io_unlink("data/head/snapshot", NULL), OK);
	must_start(l);
	assert_int_equal(loaded(l), with);
	hist_check(l, &was->m, NULL);
	outcome_take(l, out);
	/* The same again is a duplicate or goes where it went. */
	s.acked = NULL;
	s.m.v = malloc(s.m.cap * sizeof *s.m.v);
	memcpy(s.m.v, was->m.v, s.m.n * sizeof *s.m.v);
	arena_init(&s.m.arena, GIB);
	for (uint32_t i = 0; i < 10; i++)
		send(l, &s, 60, 800);
	annotate(l, &s);
	hist_check(l, &s.m, NULL);
	lab_flush(l);
	hist_check(l, &s.m, NULL);
	out->blocks = blocks_digest();
	sender_free(&s);
	lab_stop(l);
	sim_free(l->sim);
	l->sim = before;
	sim_use(before);
}

/* What is left when the power goes before the log is closed in order. */
static void next_era(struct lab *l)
{
	lab_stop(l);
	struct sim_tape *tape = sim_tape_take(l->sim);
	struct sim *next = sim_tape_crash(tape, sim_tape_len(tape) - 3, SIM_KEEP_ALL, l->seed++);
	sim_tape_free(tape);
	sim_free(l->sim);
	l->sim = next;
	sim_use(next);
	sim_record(next);
}

static void snapshot_and_tail_are_the_whole_log(void **state)
{
	(void)state;
	const char *env = getenv("VARVE_SEED");
	uint64_t first = env ? strtoull(env, NULL, 0) : 1, seeds = full() ? 200 : 8;
	size_t chunks[4] = {0}, exemplars = 0;
	for (uint64_t seed = first; seed < first + seeds; seed++) {
		struct lab l;
		struct sender s;
		struct outcome a = {0}, b = {0};
		lab_open(&l, seed, RANGE, 256 * KIB);
		l.n_series = SERIES;
		l.cfg.max_exemplars = seed % 2 ? 40 : 1000;
		l.cfg.max_metadata = 10;
		if (seed % 3 == 0)
			l.cfg.max_memory_bytes = 6 * MIB; /* raw leaves go to the chunk file at once */
		sim_record(l.sim);
		sender_init(&s, seed, false);
		must_start(&l);
		for (uint32_t round = 0; round < 4; round++) {
			for (uint32_t i = 0; i < 12; i++) {
				send(&l, &s, 1 + lab_random(&s.r) % 150, 3000);
				if (i % 4 == 0)
					annotate(&l, &s);
			}
			if (round == 1 && seed % 3 == 1) {
				lab_flush(&l);
				s.m.gen++;
			}
			if (round < 3)
				must_snapshot(&l);
			if (round == 1) {
				next_era(&l);
				l.cfg.shards = seed % 2 ? 1 : 8;
				must_start(&l);
				assert_true(loaded(&l));
				hist_check(&l, &s.m, NULL);
			}
		}
		lab_stop(&l);
		struct sim_tape *tape = sim_tape_take(l.sim);
		outcome_of(&l, tape, true, &s, &a);
		outcome_of(&l, tape, false, &s, &b);
		outcome_same(&a, &b);
		for (int e = 0; e < 4; e++)
			chunks[e] += a.f.chunks[e];
		exemplars += a.exemplars.n;
		outcome_free(&a);
		outcome_free(&b);
		sim_tape_free(tape);
		sender_free(&s);
		lab_free(&l);
	}
	print_message("seed %llu: %zu float chunks, %zu and %zu of histograms, %zu exemplars\n", (unsigned long long)first, chunks[1], chunks[2],
		chunks[3], exemplars);
	assert_true(chunks[1] > 20 && chunks[2] > 20 && chunks[3] > 20 && exemplars > 100);
}

/* ---- the power goes ---- */

/* What was acknowledged is there; nothing is there that was not sent, and nothing twice. For what was sent once. */
static void check_acked(struct lab *l, const struct sender *s, uint64_t upto)
{
	struct hist_founds f;
	size_t must = 0, have = 0;
	hist_gather(l, &f);
	for (size_t i = 1; i < f.n; i++)
		assert_false(f.v[i].series == f.v[i - 1].series && f.v[i].t == f.v[i - 1].t);
	for (size_t i = 0; i < s->m.n; i++) {
		const struct hist_point *p = &s->m.v[i].p;
		size_t a = 0, n = f.n;
		while (a < n) {
			size_t mid = (a + n) / 2;
			if (f.v[mid].series < p->series || (f.v[mid].series == p->series && f.v[mid].t < p->t))
				a = mid + 1;
			else
				n = mid;
		}
		bool there = a < f.n && f.v[a].series == p->series && f.v[a].t == p->t;
		if (there) {
			have++;
			assert_int_equal(f.v[a].kind != SAMPLE_FLOAT, p->is_hist);
			assert_true(p->is_hist || f.v[a].v == p->v);
		}
		if (s->acked[i] <= upto) {
			must++;
			if (!there)
				fail_msg("series %u t=%lld was acknowledged", p->series, (long long)p->t);
		}
	}
	assert_int_equal(have, f.n);
	assert_true(must <= have);
	hist_founds_free(&f);
}

static void power_cut_anywhere(void **state)
{
	(void)state;
	uint64_t states = 0, with = 0, ops = 0, seeds = full() ? 4 : 1;
	for (uint64_t seed = 1; seed <= seeds; seed++) {
		struct lab l;
		struct sender s;
		lab_open(&l, seed, RANGE, 64 * KIB);
		l.n_series = SERIES;
		sim_record(l.sim);
		sender_init(&s, seed, true);
		must_start(&l);
		for (uint32_t round = 0; round < 3; round++) {
			for (uint32_t i = 0; i < 5; i++)
				send(&l, &s, 120, 300);
			must_snapshot(&l);
			if (round == 1)
				lab_flush(&l);
			for (uint32_t i = 0; i < 5; i++)
				send(&l, &s, 60, 300);
			if (round == 2)
				must_snapshot(&l);
		}
		lab_stop(&l);
		struct sim_tape *tape = sim_tape_take(l.sim);
		struct sim *whole = l.sim;
		uint64_t n = sim_tape_len(tape), every = full() ? 1 : n * SIM_LOSSES / 150 + 1, skip = 3;
		for (uint64_t k = 0; k <= n; k++) {
			for (int loss = 0; loss < SIM_LOSSES; loss++) {
				if (skip++ % every)
					continue;
				l.sim = sim_tape_crash(tape, k, (enum sim_loss)loss, k);
				sim_use(l.sim);
				struct err err = {0};
				char text[200];
				if (lab_start(&l, &err) != OK)
					fail_msg("after %s, %s: %s", sim_tape_text(tape, k, text, sizeof text), sim_loss_name((enum sim_loss)loss),
						err.msg);
				with += loaded(&l);
				check_acked(&l, &s, k);
				if (skip % 3 == 0) { /* and once more, on what the start made of it */
					lab_crash(&l, (enum sim_loss)((loss + 1) % SIM_LOSSES));
					must_start(&l);
					check_acked(&l, &s, k);
				}
				lab_stop(&l);
				sim_free(l.sim);
				states++;
			}
		}
		ops += n;
		sim_tape_free(tape);
		l.sim = whole;
		sim_use(whole);
		sender_free(&s);
		lab_free(&l);
	}
	printf("%llu states of %llu operations, %llu with a snapshot\n", (unsigned long long)states, (unsigned long long)ops,
		(unsigned long long)with);
	assert_true(with > states / 3);
}

/* ---- damage and failure ---- */

/* Raw leaves and ones in the chunk file, of floats and of histograms, of one window that is partly written. */
static struct sim_tape *small(struct lab *l, struct sender *s)
{
	lab_open(l, 21, RANGE, 256 * KIB);
	l->n_series = SERIES;
	sim_record(l->sim);
	sender_init(s, 21, true);
	must_start(l);
	for (uint32_t i = 0; i < 6; i++)
		send(l, s, 100, 200);
	must_snapshot(l);
	send(l, s, 60, 200);
	lab_stop(l);
	return sim_tape_take(l->sim);
}

static void damage_is_met(void **state)
{
	(void)state;
	struct lab l;
	struct sender s;
	struct io_stat st;
	struct sim_tape *tape = small(&l, &s);
	struct sim *whole = l.sim;
	assert_int_equal(io_stat("data/head/snapshot", &st, NULL), OK);
	uint64_t step = full() ? 1 : 101, flips = 0;
	for (uint64_t i = 0; i < st.size; i += step, flips++) {
		l.sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
		sim_use(l.sim);
		assert_true(sim_flip(l.sim, "data/head/snapshot", i, (uint8_t)(1u << i % 8)));
		must_start(&l);
		assert_false(loaded(&l));
		if (i % 7 == 0)
			check_acked(&l, &s, UINT64_MAX);
		lab_stop(&l);
		sim_free(l.sim);
	}
	printf("%llu flips of %llu bytes\n", (unsigned long long)flips, (unsigned long long)st.size);
	sim_tape_free(tape);
	l.sim = whole;
	sim_use(whole);
	sender_free(&s);
	lab_free(&l);
}

/* A leaf of histograms that the snapshot names is damaged, and the tail needs it: the log is read as a whole. */
static void a_damaged_leaf_is_not_for_ever(void **state)
{
	(void)state;
	struct lab l;
	struct sender s;
	struct arena a;
	char **names;
	size_t n;
	sender_init(&s, 31, true);
	lab_open(&l, 31, RANGE, MIB);
	l.n_series = SERIES;
	must_start(&l);
	for (uint32_t i = 0; i < 12; i++)
		send(&l, &s, 150, 100);
	must_snapshot(&l);
	for (uint32_t i = 0; i < 6; i++) /* some of them late */
		send(&l, &s, 150, 100);
	lab_crash(&l, SIM_KEEP_ALL);
	arena_init(&a, MIB);
	assert_int_equal(io_listdir("data/head", &a, &names, &n, NULL), OK);
	uint64_t flips = 0;
	for (size_t i = 0; i < n; i++) {
		char path[128];
		struct io_stat st;
		if (!strstr(names[i], ".chunks"))
			continue;
		snprintf(path, sizeof path, "data/head/%s", names[i]);
		assert_int_equal(io_stat(path, &st, NULL), OK);
		for (uint64_t at = 30; at < st.size; at += 90, flips++)
			assert_true(sim_flip(l.sim, path, at, 8));
	}
	assert_true(flips > 10);
	must_start(&l);
	assert_true(loaded(&l));
	assert_int_equal(io_stat("data/head/snapshot", &(struct io_stat){0}, NULL), OK);
	check_acked(&l, &s, UINT64_MAX);
	lab_flush(&l);
	check_acked(&l, &s, UINT64_MAX);
	arena_free(&a);
	sender_free(&s);
	lab_free(&l);
}

static void no_memory(void **state)
{
	(void)state;
	struct lab l;
	struct sender s;
	uint64_t n = 1, starts = 0;
	sender_init(&s, 43, true);
	lab_open(&l, 43, RANGE, MIB);
	l.n_series = SERIES;
	must_start(&l);
	for (uint32_t i = 0; i < 6; i++)
		send(&l, &s, 100, 200);
	for (;; n++) {
		fail_alloc_at(n, n % 2);
		errc rc = head_snapshot(l.head, NULL);
		if (fail_alloc_off() == 0) {
			assert_int_equal(rc, OK);
			break;
		}
	}
	lab_crash(&l, SIM_KEEP_ALL);
	for (uint64_t k = 1;; k++, starts++) {
		struct err err = {0};
		fail_alloc_at(k, k % 2);
		errc rc = lab_start(&l, &err);
		uint64_t hits = fail_alloc_off();
		if (rc == OK) {
			check_acked(&l, &s, UINT64_MAX);
			lab_crash(&l, SIM_KEEP_ALL);
		} else {
			sim_power_off_after(l.sim, 0);
			sim_power_on(l.sim, SIM_KEEP_ALL, k);
		}
		if (hits == 0)
			break;
	}
	must_start(&l);
	assert_true(loaded(&l));
	check_acked(&l, &s, UINT64_MAX);
	printf("%llu allocations failed while written, %llu at starts\n", (unsigned long long)n, (unsigned long long)starts);
	sender_free(&s);
	lab_free(&l);
}

/* Calls fail while it is written or loaded: nothing is missing, and nothing there twice. */
static void calls_fail(void **state)
{
	(void)state;
	uint64_t tried = 0;
	for (int loading = 0; loading < 2; loading++) {
		for (uint64_t nth = 1, hits = 1; hits > 0; nth++, tried++) {
			struct lab l;
			struct sender s;
			struct err err = {0};
			const struct sim_fault fault = {.calls = SIM_ANY, .path = "data/head", .nth = nth, .error = nth % 2 ? EIO : ENOSPC};
			sender_init(&s, 41, true);
			lab_open(&l, 41, RANGE, MIB);
			l.n_series = SERIES;
			must_start(&l);
			for (uint32_t i = 0; i < 4; i++)
				send(&l, &s, 100, 200);
			if (loading) {
				must_snapshot(&l);
				send(&l, &s, 100, 200);
				lab_crash(&l, SIM_KEEP_ALL);
				sim_fault(l.sim, &fault);
				errc rc = lab_start(&l, &err);
				hits = sim_fault_hits(l.sim);
				sim_fault(l.sim, NULL);
				if (rc != OK)
					must_start(&l);
			} else {
				sim_fault(l.sim, &fault);
				errc rc = head_snapshot(l.head, &err);
				hits = sim_fault_hits(l.sim);
				sim_fault(l.sim, NULL);
				assert_true(rc == OK || hits > 0);
				send(&l, &s, 100, 200);
			}
			check_acked(&l, &s, UINT64_MAX);
			lab_crash(&l, (enum sim_loss)(nth % SIM_LOSSES));
			must_start(&l);
			check_acked(&l, &s, UINT64_MAX);
			lab_flush(&l);
			check_acked(&l, &s, UINT64_MAX);
			sender_free(&s);
			lab_free(&l);
		}
	}
	printf("%llu calls failed\n", (unsigned long long)tried - 2);
}

/* ---- while requests go on ---- */

struct writer {
	struct lab *l;
	uint32_t no;
	_Atomic bool *stop;
};

/* Times are the writer's alone; series are everybody's. */
static void *append_main(void *arg)
{
	struct writer *w = arg;
	struct hist_maker m;
	struct arena keep;
	uint64_t r = w->no;
	hist_maker_init(&m, w->no);
	arena_init(&keep, GIB);
	for (int64_t i = 0; !atomic_load(w->stop); i++) {
		struct hist_request q;
		struct err err = {0};
		hist_request_begin(&q, 30);
		for (int64_t k = 0; k < 30; k++) {
			int64_t n = i * 30 + (i % 5 == 4 ? 29 - k : k);
			struct hist_point p = hist_point_make((uint32_t)(lab_random(&r) % SERIES), T0 + (n * 3 + w->no) * 2, &m, &keep, &r);
			hist_request_put(&q, &p);
		}
		if (hist_request_send(w->l, &q, &err) != OK)
			fail_msg("send: %s", err.msg);
		hist_request_free(&q);
	}
	arena_free(&keep);
	return NULL;
}

static void while_appending(void **state)
{
	(void)state;
	for (uint32_t round = 0; round < (full() ? 20u : 3u); round++) {
		struct lab l;
		struct outcome a = {0}, b = {0};
		_Atomic bool stop = false;
		struct writer w[3];
		pthread_t t[3];
		lab_open(&l, round, RANGE, 4 * MIB);
		l.n_series = SERIES;
		must_start(&l);
		for (uint32_t i = 0; i < 3; i++) {
			w[i] = (struct writer){.l = &l, .no = i, .stop = &stop};
			assert_int_equal(pthread_create(&t[i], NULL, append_main, &w[i]), 0);
		}
		for (uint32_t i = 0; i < 5; i++) {
			io_sleep_ms(20);
			must_snapshot(&l);
		}
		io_sleep_ms(30);
		atomic_store(&stop, true);
		for (uint32_t i = 0; i < 3; i++)
			pthread_join(t[i], NULL);
		outcome_take(&l, &a);
		lab_crash(&l, (enum sim_loss)(round % SIM_LOSSES));
		must_start(&l);
		assert_true(loaded(&l));
		outcome_take(&l, &b);
		outcome_same(&a, &b);
		outcome_free(&b);
		lab_flush(&l);
		b = (struct outcome){0};
		hist_gather(&l, &b.f);
		assert_int_equal(b.f.n, a.f.n);
		outcome_free(&a);
		outcome_free(&b);
		lab_free(&l);
	}
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(snapshot_and_tail_are_the_whole_log),
		cmocka_unit_test(power_cut_anywhere),
		cmocka_unit_test(damage_is_met),
		cmocka_unit_test(a_damaged_leaf_is_not_for_ever),
		cmocka_unit_test(no_memory),
		cmocka_unit_test(calls_fail),
		cmocka_unit_test(while_appending),
	};
	cmocka_set_test_filter(getenv("VARVE_TEST"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
