/* A snapshot and the log's tail are what the whole log is: after every crash, with every damage, whatever fails while it is written or read. One file because all of it
 * works on the same few heads.
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
#include "tests/support/head_lab.h"

enum { RANGE = 600000 };
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

static bool there(void)
{
	struct io_stat st;
	assert_int_equal(io_stat("data/head/snapshot", &st, NULL), OK);
	return st.exists;
}

/* Anything; small numbers; numbers so far from each other that the series changes its key in the log whenever it may. */
static uint64_t value(uint32_t k, uint64_t *r)
{
	uint64_t x = lab_random(r);
	return k % 3 == 0 ? x : f64_bits((double)(x % (k % 3 == 1 ? 1000 : UINT64_C(1000000000000))));
}

/* `per` samples for each of n series of a tenant, from *clock on. */
static void send(struct lab *l, uint32_t tenant, uint32_t first, uint32_t n, uint32_t per, int64_t step, int64_t *clock, uint64_t *r)
{
	struct lab_batch b;
	struct err err = {0};
	lab_batch_begin(&b, tenant);
	for (uint32_t k = first; k < first + n; k++) {
		lab_batch_series(&b, k, 0);
		for (uint32_t i = 0; i < per; i++)
			lab_batch_sample(&b, *clock + (int64_t)i * step, value(k, r));
	}
	*clock += (int64_t)per * step;
	if (lab_send(l, &b, &err) != OK)
		fail_msg("send: %s", err.msg);
	lab_batch_free(&b);
}

/* In order and late, in several windows, at times that were not used before. */
static void mixed(struct lab *l, uint32_t requests, uint32_t *no, uint64_t *r)
{
	for (uint32_t i = 0; i < requests; i++, (*no)++) {
		struct lab_batch b;
		struct err err = {0};
		lab_batch_begin(&b, (uint32_t)(lab_random(r) % LAB_TENANTS));
		uint32_t n = 1 + (uint32_t)(lab_random(r) % 12), first = (uint32_t)(lab_random(r) % (l->n_series - n));
		bool late = lab_random(r) % 4 == 0;
		for (uint32_t k = first; k < first + n; k++) {
			lab_batch_series(&b, k, 0);
			for (uint32_t s = 0, per = 1 + (uint32_t)(lab_random(r) % 40); s < per; s++) {
				int64_t t = T0 + (late ? INT64_C(40000) * (int64_t)(lab_random(r) % 60) : INT64_C(2400) * *no) + 60 * s;
				lab_batch_sample(
					&b, (t / 2000) * 2000 + (*no * 61 + s) % 2000, lab_random(r) % 8 ? f64_bits((double)(k + s)) : lab_random(r));
			}
		}
		errc rc = lab_send(l, &b, &err);
		if (rc != OK)
			fail_msg("send: %s", err.msg);
		lab_batch_free(&b);
	}
}

/* CRC of the blocks' bytes that are a function of the samples, by their names' order. */
static uint32_t blocks_digest(struct lab *l)
{
	struct arena a;
	char **names;
	size_t n;
	uint32_t crc = 0;
	(void)l;
	arena_init(&a, GIB);
	assert_int_equal(io_listdir("data/blocks", &a, &names, &n, NULL), OK);
	assert_true(n > 0);
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

/* The disk as it is, started, looked at, cut; with the snapshot or without. */
static uint32_t outcome(struct lab *l, struct sim_tape *tape, bool with, uint64_t *n_samples)
{
	struct sim *before = l->sim;
	l->sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
	sim_use(l->sim);
	if (!with)
		assert_int_equal(io_unlink("data/head/snapshot", NULL), OK);
	must_start(l);
	assert_int_equal(loaded(l), with);
	struct head_status st;
	head_status(l->head, &st);
	*n_samples = st.samples_in_memory;
	lab_check(l);
	lab_flush(l);
	uint32_t digest = blocks_digest(l);
	lab_check(l);
	lab_stop(l);
	sim_free(l->sim);
	l->sim = before;
	sim_use(before);
	return digest;
}

/* The power goes, and a recording begins with what is left. */
static void next_era(struct lab *l, enum sim_loss loss)
{
	lab_stop(l);
	struct sim_tape *tape = sim_tape_take(l->sim);
	struct sim *next = sim_tape_crash(tape, sim_tape_len(tape) - 3, loss, l->seed++); /* the log is not closed in order */
	sim_tape_free(tape);
	sim_free(l->sim);
	l->sim = next;
	sim_use(next);
	for (size_t i = 0; i < (size_t)LAB_TENANTS * LAB_SERIES; i++)
		for (size_t k = 0; k < l->series[i].n; k++)
			l->series[i].v[k].acked = 0;
	sim_record(next);
}

static void snapshot_and_tail_are_the_whole_log(void **state)
{
	(void)state;
	uint64_t seeds = full() ? 60 : 6;
	for (uint64_t seed = 1; seed <= seeds; seed++) {
		struct lab l;
		uint64_t r = seed * 7919, with, without;
		uint32_t no = 0;
		lab_open(&l, seed, RANGE, 256 * KIB);
		sim_record(l.sim);
		must_start(&l);
		for (uint32_t round = 0; round < 4; round++) {
			mixed(&l, 40, &no, &r);
			if (round == 1 && seed % 3 == 0) {
				lab_flush(&l);
				l.gen++;
			}
			if (round < 3)
				must_snapshot(&l);
			if (round == 1) {
				next_era(&l, seed % 2 ? SIM_KEEP_ALL : SIM_DROP_ALL);
				l.cfg.shards = seed % 2 ? 1 : 8;
				must_start(&l);
				assert_true(loaded(&l));
				lab_check(&l);
			}
		}
		lab_stop(&l);
		struct sim_tape *tape = sim_tape_take(l.sim);
		uint32_t a = outcome(&l, tape, true, &with), b = outcome(&l, tape, false, &without);
		if (a != b || with != without)
			fail_msg("seed %llu: blocks %08x and %08x, samples %llu and %llu", (unsigned long long)seed, a, b, (unsigned long long)with,
				(unsigned long long)without);
		sim_tape_free(tape);
		lab_free(&l);
	}
}

/* More series than are copied at once, in several windows each, in another order in each. */
static void many_series(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 5;
	lab_open(&l, 5, RANGE, 4 * MIB);
	l.n_series = 9000;
	l.cfg.shards = 2;
	must_start(&l);
	for (uint32_t i = 0; i < 9; i++) {
		int64_t clock = T0 + (i % 3) * RANGE + i * 1000;
		send(&l, i % 2, (i * 7) % 4 * 1000, 5000, 2, 100, &clock, &r);
		if (i == 6)
			must_snapshot(&l);
	}
	lab_crash(&l, SIM_DROP_ALL);
	l.cfg.shards = 8;
	must_start(&l);
	assert_true(loaded(&l));
	lab_check_exact(&l, UINT64_MAX);
	must_snapshot(&l);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	assert_true(loaded(&l));
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

/* What requests say beside samples: in the snapshot, behind its mark, and in both. */
static void annotate(struct lab *l, uint32_t tenant, uint32_t from, uint32_t n)
{
	struct err err = {0};
	struct annot_request *q = malloc(sizeof *q);
	annot_begin(q, tenant);
	for (uint32_t i = from; i < from + n; i++) {
		char text[32];
		lab_batch_series(&q->b, i % 7, 0);
		snprintf(text, sizeof text, "t%u", i);
		annot_exemplar(q, T0 + i * 1000, f64_bits((double)i), text);
		snprintf(text, sizeof text, "help %u", i);
		annot_metadata(q, i % 2 ? "up" : "down", METRIC_GAUGE, text, "");
	}
	if (annot_send(l, q, &err) != OK)
		fail_msg("annotate: %s", err.msg);
	annot_free(q);
	free(q);
}

static void exemplars_and_metadata(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 91;
	int64_t clock = T0;
	lab_open(&l, 91, RANGE, 4 * MIB);
	l.cfg.max_exemplars = l.cfg.max_metadata = 1000;
	must_start(&l);
	for (uint32_t round = 0; round < 3; round++) {
		for (uint32_t tenant = 0; tenant < 2; tenant++) {
			send(&l, tenant, 0, 7, 3, 20, &clock, &r);
			annotate(&l, tenant, round * 10, 8);
		}
		if (round < 2)
			must_snapshot(&l);
		lab_crash(&l, SIM_DROP_ALL);
		must_start(&l);
		assert_true(loaded(&l));
		for (uint32_t tenant = 0; tenant < 2; tenant++) {
			struct annot_list got = annot_read(&l, tenant, INT64_MIN, INT64_MAX);
			struct annot_meta_list meta = annot_read_meta(&l, tenant, NULL);
			assert_int_equal(got.n, 8 * (round + 1));
			assert_int_equal(meta.n, 8 * (round + 1));
			free(got.v);
			free(meta.v);
			annot_sane(&l, tenant);
		}
	}
	lab_check(&l);
	lab_free(&l);
}

/* Appends go on while it is written, then the power goes; and again, on the same snapshot. */
struct writer {
	struct lab *l;
	uint32_t tenant;
	_Atomic bool *stop;
	uint64_t sent;
};

static void *append_main(void *arg)
{
	struct writer *w = arg;
	uint64_t r = w->tenant + 1;
	int64_t clock = T0;
	while (!atomic_load(w->stop)) {
		send(w->l, w->tenant, (uint32_t)(w->sent * 31 % 300), 60, 3, 2, &clock, &r);
		w->sent++;
	}
	return NULL;
}

static void while_appending(void **state)
{
	(void)state;
	struct lab l;
	lab_open(&l, 11, RANGE, 4 * MIB);
	l.n_series = 400;
	l.quiet_model = true;
	must_start(&l);
	for (uint32_t round = 0; round < (full() ? 20u : 4u); round++) {
		_Atomic bool stop = false;
		struct writer w[LAB_TENANTS];
		pthread_t t[LAB_TENANTS];
		for (uint32_t i = 0; i < LAB_TENANTS; i++) {
			w[i] = (struct writer){.l = &l, .tenant = i, .stop = &stop};
			assert_int_equal(pthread_create(&t[i], NULL, append_main, &w[i]), 0);
		}
		for (uint32_t i = 0; i < 5; i++) {
			io_sleep_ms(20);
			must_snapshot(&l);
		}
		io_sleep_ms(30);
		atomic_store(&stop, true);
		for (uint32_t i = 0; i < LAB_TENANTS; i++)
			pthread_join(t[i], NULL);
		struct head_status st, again;
		head_status(l.head, &st);
		lab_crash(&l, (enum sim_loss)(round % SIM_LOSSES));
		must_start(&l);
		assert_true(loaded(&l));
		head_status(l.head, &again);
		assert_int_equal(again.samples_in_memory, st.samples_in_memory);
		assert_int_equal(again.series, st.series);
		if (round % 2) {
			lab_flush(&l);
			/* What became a block is not there again. */
			lab_crash(&l, SIM_DROP_ALL);
			must_start(&l);
			head_status(l.head, &again);
			assert_int_equal(again.samples_in_memory, 0);
			lab_forget_blocks(&l);
		}
	}
	lab_free(&l);
}

static uint64_t crash_everywhere(struct lab *l, uint64_t *with)
{
	struct sim_tape *tape = sim_tape_take(l->sim);
	struct sim *whole = l->sim;
	uint64_t n = sim_tape_len(tape), states = 0, every = full() ? 1 : n * SIM_LOSSES / 150 + 1, skip = 3;
	for (uint64_t k = 0; k <= n; k++) {
		for (int loss = 0; loss < SIM_LOSSES; loss++) {
			if (skip++ % every)
				continue;
			l->sim = sim_tape_crash(tape, k, (enum sim_loss)loss, k);
			sim_use(l->sim);
			struct err err = {0};
			char text[200];
			if (lab_start(l, &err) != OK)
				fail_msg("after %s, %s: %s", sim_tape_text(tape, k, text, sizeof text), sim_loss_name((enum sim_loss)loss), err.msg);
			*with += loaded(l);
			lab_check_exact(l, k);
			if (skip % 3 == 0) { /* and once more, on what the start made of it */
				lab_crash(l, (enum sim_loss)((loss + 1) % SIM_LOSSES));
				must_start(l);
				lab_check_exact(l, k);
			}
			lab_stop(l);
			sim_free(l->sim);
			states++;
		}
	}
	printf("%llu states of %llu operations\n", (unsigned long long)states, (unsigned long long)n);
	sim_tape_free(tape);
	l->sim = whole;
	sim_use(whole);
	return states;
}

/* The power goes after any operation of: append, snapshot, cut, snapshot, checkpoint, and of starts on what such cuts left. */
static void power_cut_anywhere(void **state)
{
	(void)state;
	uint64_t states = 0, with = 0, seeds = full() ? 4 : 1;
	for (uint64_t seed = 1; seed <= seeds; seed++) {
		struct lab l;
		uint64_t r = seed;
		int64_t clock = T0;
		lab_open(&l, seed, RANGE, 64 * KIB);
		l.n_series = 60;
		sim_record(l.sim);
		must_start(&l);
		for (uint32_t era = 0; era < 3; era++) {
			for (uint32_t round = 0; round < 3; round++) {
				for (uint32_t i = 0; i < 6; i++)
					send(&l, i % 3, 0, 60, 70, 20, &clock, &r);
				must_snapshot(&l);
				if (round == 1)
					lab_flush(&l);
				for (uint32_t i = 0; i < 6; i++)
					send(&l, i % 2, 20, 40, 90, 10, &clock, &r);
				if (round == 2)
					must_snapshot(&l);
				io_sleep_ms(10);
			}
			lab_stop(&l);
			states += crash_everywhere(&l, &with);
			sim_record(l.sim);
			must_start(&l);
			next_era(&l, SIM_KEEP_ALL);
			must_start(&l);
		}
		lab_free(&l);
	}
	printf("%llu states, %llu with a snapshot\n", (unsigned long long)states, (unsigned long long)with);
	assert_true(with > states / 3);
}

/* A small head with everything in it: raw and file leaves, open chunks, two tenants, a cut, a settled and a young series. */
static struct sim_tape *small(struct lab *l, uint64_t seed)
{
	uint64_t r = seed;
	int64_t clock = T0;
	lab_open(l, seed, RANGE, 64 * KIB);
	l->n_series = 8;
	sim_record(l->sim);
	must_start(l);
	send(l, 1, 0, 2, 3, 1000, &clock, &r);
	lab_flush(l);
	send(l, 0, 0, 3, 130, 100, &clock, &r);
	int64_t late = T0 + 501;
	send(l, 0, 1, 2, 4, 3000, &late, &r);
	must_snapshot(l);
	send(l, 0, 2, 3, 2, 100, &clock, &r);
	send(l, 1, 0, 1, 2, 100, &clock, &r);
	lab_stop(l);
	return sim_tape_take(l->sim);
}

static uint64_t size_of(const char *path)
{
	struct io_stat st;
	assert_int_equal(io_stat(path, &st, NULL), OK);
	return st.exists ? st.size : 0;
}

/* Every byte of a snapshot, and of the chunk files that it names. */
static void damage_is_met(void **state)
{
	(void)state;
	struct lab l;
	struct sim_tape *tape = small(&l, 21);
	struct sim *whole = l.sim;
	uint64_t n = size_of("data/head/snapshot"), ignored = 0, step = full() ? 1 : 11;
	for (uint64_t i = 0; i < n; i += step) {
		l.sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
		sim_use(l.sim);
		assert_true(sim_flip(l.sim, "data/head/snapshot", i, (uint8_t)(1u << i % 8)));
		must_start(&l);
		ignored += !loaded(&l);
		assert_false(loaded(&l));
		assert_false(there());
		lab_check(&l);
		lab_stop(&l);
		sim_free(l.sim);
	}
	/* Cut short. */
	for (uint64_t i = 0; i < n; i += full() ? 1 : 37) {
		int fd;
		l.sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
		sim_use(l.sim);
		assert_int_equal(io_open("data/head/snapshot", IO_READ | IO_WRITE, &fd, NULL), OK);
		assert_int_equal(io_truncate(fd, i, NULL), OK);
		io_close(fd);
		must_start(&l);
		assert_false(loaded(&l));
		lab_check(&l);
		lab_stop(&l);
		sim_free(l.sim);
	}
	printf("%llu flips of %llu bytes ignored\n", (unsigned long long)ignored, (unsigned long long)n);
	sim_tape_free(tape);
	l.sim = whole;
	sim_use(whole);
	lab_free(&l);
}

static char chunk_path[128];

static uint64_t chunk_file(void)
{
	struct arena a;
	char **names;
	size_t n;
	uint64_t size = 0;
	arena_init(&a, MIB);
	assert_int_equal(io_listdir("data/head", &a, &names, &n, NULL), OK);
	for (size_t i = 0; i < n; i++)
		if (strstr(names[i], ".chunks")) {
			snprintf(chunk_path, sizeof chunk_path, "data/head/%s", names[i]);
			size = size_of(chunk_path);
		}
	arena_free(&a);
	return size;
}

/* A chunk that a snapshot names is damaged: a reader is told, the snapshot goes, and the next start mends it from the log. If the tail needs it the start itself does. */
static void a_damaged_chunk_is_not_for_ever(void **state)
{
	(void)state;
	for (uint32_t late = 0; late < 2; late++) {
		struct lab l;
		uint64_t r = 31;
		int64_t clock = T0, back = T0 + 50;
		lab_open(&l, 31, RANGE, 1 * MIB);
		l.n_series = 8;
		must_start(&l);
		for (uint32_t i = 0; i < 10; i++)
			send(&l, 0, 0, 8, 100, 50, &clock, &r);
		must_snapshot(&l);
		if (late) {
			back = T0 + 51;
			send(&l, 0, 0, 8, 1, 50, &back, &r);
		}
		lab_crash(&l, SIM_KEEP_ALL);
		uint64_t n = chunk_file();
		assert_true(n > 1000);
		for (uint64_t i = 0; i < n; i += 90)
			assert_true(sim_flip(l.sim, chunk_path, i, 8));
		must_start(&l);
		if (!late) {
			struct source **v;
			size_t n_sources;
			struct arena a;
			struct err err = {0};
			arena_init(&a, 16 * MIB);
			assert_true(loaded(&l));
			assert_int_equal(head_sources(l.head, span_cstr(lab_tenant(0)), INT64_MIN, INT64_MAX, &a, &v, &n_sources, &err), OK);
			assert_int_equal(n_sources, 1);
			struct matcher m;
			struct series_iter *it;
			struct series_view view;
			bool more;
			assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("__name__"), SPAN("metric_.*"), &a, &err), OK);
			struct select_options opt = {.mint = INT64_MIN, .maxt = INT64_MAX};
			assert_int_equal(v[0]->ops->select(v[0], &m, 1, &opt, &it, &err), OK);
			assert_int_equal(it->ops->next(it, &view, &more, &err), ERR_CORRUPT);
			it->ops->close(it);
			matchers_free(&m, 1);
			v[0]->ops->release(v[0]);
			arena_free(&a);
			assert_false(there());
			assert_int_not_equal(head_snapshot(l.head, NULL), OK);
			assert_false(there());
			lab_crash(&l, SIM_DROP_ALL);
			must_start(&l);
		}
		assert_false(there());
		lab_check(&l);
		lab_flush(&l);
		lab_check(&l);
		lab_free(&l);
	}
}

/* A call fails while a snapshot is written: the head and the log do not mind. */
static void failing_while_written(void **state)
{
	(void)state;
	static const int errors[] = {EIO, ENOSPC};
	uint64_t tried = 0;
	for (size_t e = 0; e < 2; e++) {
		for (uint64_t nth = 1;; nth++) {
			struct lab l;
			struct err err = {0};
			uint64_t r = 41;
			int64_t clock = T0;
			lab_open(&l, 41, RANGE, 1 * MIB);
			l.n_series = 8;
			must_start(&l);
			send(&l, 0, 0, 8, 130, 50, &clock, &r);
			if (nth % 2)
				must_snapshot(&l);
			send(&l, 0, 0, 8, 130, 50, &clock, &r);
			sim_fault(l.sim,
				&(struct sim_fault){.calls = SIM_ANY, .path = "data/head", .nth = nth, .error = errors[e], .sticky = nth % 3 == 0});
			errc rc = head_snapshot(l.head, &err);
			bool hit = sim_fault_hits(l.sim) > 0;
			sim_fault(l.sim, NULL);
			if (!hit)
				assert_int_equal(rc, OK);
			send(&l, 0, 0, 8, 3, 50, &clock, &r);
			lab_check(&l);
			lab_crash(&l, (enum sim_loss)(nth % SIM_LOSSES));
			must_start(&l);
			lab_check(&l);
			lab_free(&l);
			tried++;
			if (!hit)
				break;
		}
	}
	printf("%llu failures\n", (unsigned long long)tried);
}

/* The same without memory. */
static void no_memory(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 43;
	int64_t clock = T0;
	lab_open(&l, 43, RANGE, 1 * MIB);
	l.n_series = 200;
	must_start(&l);
	send(&l, 0, 0, 200, 130, 50, &clock, &r);
	uint64_t n = 1;
	for (;; n++) {
		fail_alloc_at(n, n % 2);
		errc rc = head_snapshot(l.head, NULL);
		if (fail_alloc_off() == 0) {
			assert_int_equal(rc, OK);
			break;
		}
	}
	lab_crash(&l, SIM_KEEP_ALL);
	uint64_t starts = 0;
	for (uint64_t k = 1;; k++, starts++) {
		struct err err = {0};
		fail_alloc_at(k, k % 2);
		errc rc = lab_start(&l, &err);
		uint64_t hits = fail_alloc_off();
		if (rc == OK) {
			lab_check(&l);
			lab_crash(&l, SIM_KEEP_ALL);
		} else {
			sim_power_off_after(l.sim, 0);
			sim_power_on(l.sim, SIM_KEEP_ALL, k);
		}
		if (hits == 0)
			break;
	}
	must_start(&l);
	lab_check(&l);
	printf("%llu allocations failed while written, %llu at starts\n", (unsigned long long)n, (unsigned long long)starts);
	lab_free(&l);
}

/* A call fails while it is loaded: the start fails, or the log is read; nothing is missing and nothing there twice. */
static void failing_while_loaded(void **state)
{
	(void)state;
	struct lab l;
	struct sim_tape *tape = small(&l, 51);
	struct sim *whole = l.sim;
	uint64_t nth = 1, started = 0;
	for (;; nth++) {
		struct err err = {0};
		l.sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
		sim_use(l.sim);
		sim_fault(l.sim, &(struct sim_fault){.calls = SIM_ANY, .path = "data/head", .nth = nth, .error = EIO});
		errc rc = lab_start(&l, &err);
		bool hit = sim_fault_hits(l.sim) > 0;
		sim_fault(l.sim, NULL);
		if (rc != OK)
			must_start(&l);
		else
			started++;
		lab_check(&l);
		lab_flush(&l);
		lab_check(&l);
		lab_stop(&l);
		sim_free(l.sim);
		if (!hit)
			break;
	}
	printf("%llu calls failed, %llu starts went on\n", (unsigned long long)nth - 1, (unsigned long long)started);
	sim_tape_free(tape);
	l.sim = whole;
	sim_use(whole);
	lab_free(&l);
}

/* A log that is another one, or that lacks what stands behind the mark, has no use for it. */
static void a_log_that_does_not_fit(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 61;
	int64_t clock = T0;
	lab_open(&l, 61, RANGE, 64 * KIB);
	l.n_series = 60;
	must_start(&l);
	send(&l, 0, 0, 60, 70, 20, &clock, &r);
	must_snapshot(&l);
	/* Its windows are cut, the segments go, a checkpoint stands for them. */
	lab_flush(&l);
	struct wal_status st;
	for (uint32_t i = 0; i < 200; i++) {
		send(&l, 1, 0, 60, 70, 20, &clock, &r);
		if (i % 20 == 19)
			lab_flush(&l);
		wal_status(l.wal, &st);
		if (st.segment_first > 2)
			break;
		io_sleep_ms(i % 20 == 19 ? 300 : 0);
	}
	assert_true(st.segment_first > 2);
	send(&l, 2, 0, 60, 3, 20, &clock, &r);
	lab_crash(&l, SIM_KEEP_ALL);
	assert_true(there());
	must_start(&l);
	assert_false(loaded(&l));
	assert_false(there());
	lab_check_exact(&l, UINT64_MAX);
	must_snapshot(&l);
	lab_crash(&l, SIM_KEEP_ALL);
	/* The log alone was taken away. */
	assert_int_equal(io_remove_tree("data/wal", NULL), OK);
	assert_int_equal(io_mkdir("data/wal", NULL), OK);
	must_start(&l);
	assert_false(loaded(&l));
	struct head_status hs;
	head_status(l.head, &hs);
	assert_int_equal(hs.samples_in_memory, 0);
	lab_free(&l);
}

/* A start with less memory cuts parts of windows; the snapshot of before stays, and of what it names some is in those blocks. */
static void parts_cut_behind_it(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 71;
	int64_t clock = T0;
	lab_open(&l, 71, RANGE, 4 * MIB);
	l.n_series = 100;
	must_start(&l);
	for (uint32_t i = 0; i < 300; i++) {
		int64_t at = clock;
		send(&l, i % 2, 0, 100, 10, 1000, &at, &r);
		clock += 9000;
		if (i % 2)
			clock += 2000;
		if (i == 200)
			must_snapshot(&l);
	}
	lab_check_exact(&l, UINT64_MAX);
	struct head_status before, after;
	head_status(l.head, &before);
	l.cfg.max_memory_bytes = before.memory_bytes / 3;
	for (uint32_t round = 0; round < 4; round++) {
		lab_crash(&l, SIM_KEEP_ALL);
		must_start(&l);
		assert_true(loaded(&l));
		head_status(l.head, &after);
		assert_true(l.n_blocks > 0);
		lab_check_exact(&l, UINT64_MAX);
		if (round == 2)
			must_snapshot(&l);
	}
	lab_flush(&l);
	lab_check_exact(&l, UINT64_MAX);
	lab_crash(&l, SIM_DROP_ALL);
	l.cfg.max_memory_bytes = GIB;
	must_start(&l);
	head_status(l.head, &after);
	assert_int_equal(after.windows, 0);
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

/* The cutter writes one by itself when the tail is long, and the last one when it stops. */
static void written_when_the_tail_is_long(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 81;
	int64_t clock = T0;
	lab_open(&l, 81, RANGE, 4 * MIB);
	l.n_series = 100;
	l.cfg.snapshot_tail_bytes = 20000;
	must_start(&l);
	send(&l, 0, 0, 10, 3, 20, &clock, &r);
	io_sleep_ms(1200);
	assert_false(there());
	for (uint32_t i = 0; i < 10; i++)
		send(&l, 0, 0, 100, 30, 20, &clock, &r);
	for (uint32_t i = 0; i < 100 && !there(); i++)
		io_sleep_ms(100);
	assert_true(there());
	uint64_t size = size_of("data/head/snapshot");
	for (uint32_t i = 0; i < 10; i++)
		send(&l, 1, 0, 100, 30, 20, &clock, &r);
	lab_stop(&l);
	assert_true(size_of("data/head/snapshot") > size);
	must_start(&l);
	assert_true(loaded(&l));
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(snapshot_and_tail_are_the_whole_log),
		cmocka_unit_test(many_series),
		cmocka_unit_test(exemplars_and_metadata),
		cmocka_unit_test(while_appending),
		cmocka_unit_test(power_cut_anywhere),
		cmocka_unit_test(damage_is_met),
		cmocka_unit_test(a_damaged_chunk_is_not_for_ever),
		cmocka_unit_test(failing_while_written),
		cmocka_unit_test(no_memory),
		cmocka_unit_test(failing_while_loaded),
		cmocka_unit_test(a_log_that_does_not_fit),
		cmocka_unit_test(parts_cut_behind_it),
		cmocka_unit_test(written_when_the_tail_is_long),
	};
	cmocka_set_test_filter(getenv("VARVE_TEST"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
