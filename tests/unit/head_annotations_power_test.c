/* Exemplars and metadata over power cuts and full disks: what was acknowledged is there, what was never sent is not. Windows are cut and segments replaced
 * by checkpoints on the way; VARVE_FULL=1 looks at every state of several runs.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "tests/support/annot_lab.h"

enum { RANGE = 600000, ROUNDS = 24 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

static void must_start(struct lab *l, const char *what)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("%s: start: %s", what, err.msg);
}

static void setup(struct lab *l, uint64_t seed)
{
	lab_open(l, seed, RANGE, 16 * KIB);
	l->quiet_model = true;
	l->cfg.max_exemplars = 100000;
	l->cfg.max_metadata = 1000;
	l->cfg.wal_max_bytes = 64 * KIB;
}

static uint64_t first_segment(struct lab *l)
{
	struct wal_status st;
	wal_status(l->wal, &st);
	return st.segment_first;
}

struct sent {
	struct annot_list e[LAB_TENANTS];
	struct annot_meta_list m[LAB_TENANTS];
};

static void sent_free(struct sent *s)
{
	for (uint32_t t = 0; t < LAB_TENANTS; t++) {
		free(s->e[t].v);
		free(s->m[t].v);
	}
}

/* Request number i of a run: exemplars of series with and without samples in it, metadata. */
static void request(struct annot_request *q, uint32_t i, uint64_t *r)
{
	char name[32], help[48], trace[40];
	annot_begin(q, i % LAB_TENANTS);
	for (uint32_t k = 0; k < 20; k++) {
		lab_batch_series(&q->b, k, i % 3 ? 0 : 3);
		for (uint32_t s = 0; s < 10; s++)
			lab_batch_sample(&q->b, T0 + i * 100 + s, lab_random(r));
		if (lab_random(r) % 3 == 0) {
			snprintf(trace, sizeof trace, "%u-%u-%08x", i, k, (unsigned)lab_random(r));
			annot_exemplar(q, T0 + i * 100, lab_random(r), trace);
		}
	}
	snprintf(name, sizeof name, "family_%u", i / 2);
	snprintf(help, sizeof help, "help %u", i);
	annot_metadata(q, name, METRIC_COUNTER, help, "s");
}

static void note(struct lab *l, struct sent *s, const struct annot_request *q)
{
	uint32_t t = q->b.tenant;
	uint64_t now = sim_ops(l->sim);
	for (uint32_t i = 0; i < q->n; i++) {
		annot_put(&s->e[t], &q->e[i]);
		s->e[t].v[s->e[t].n - 1].acked = now;
	}
	struct annot_meta_list *m = &s->m[t];
	for (uint32_t i = 0; i < q->n_meta; i++) {
		m->v = realloc(m->v, (m->n + 1) * sizeof *m->v);
		m->v[m->n] = q->m[i];
		m->v[m->n++].acked = now;
	}
}

static bool same_meta(const struct annot_meta *a, const struct annot_meta *b)
{
	return a->type == b->type && strcmp(a->family, b->family) == 0 && strcmp(a->help, b->help) == 0 && strcmp(a->unit, b->unit) == 0;
}

/* Everything acknowledged by operation k is there; all that is there was sent. */
static void check(struct lab *l, const struct sent *s, uint64_t k, const char *what)
{
	for (uint32_t t = 0; t < LAB_TENANTS; t++) {
		struct annot_list got = annot_read(l, t, INT64_MIN, INT64_MAX);
		size_t found = 0;
		for (size_t i = 0; i < s->e[t].n; i++) {
			const struct annot_exemplar *e = &s->e[t].v[i];
			bool there = got.n > 0 && bsearch(e, got.v, got.n, sizeof *e, annot_cmp);
			found += there;
			if (!there && e->acked <= k)
				fail_msg("%s: tenant %u: exemplar %s, acknowledged at operation %llu, is lost", what, t, e->trace,
					(unsigned long long)e->acked);
		}
		if (found != got.n)
			fail_msg("%s: tenant %u: %zu exemplars are there, of them %zu were sent", what, t, got.n, found);
		annot_sane(l, t);
		struct annot_meta_list meta = annot_read_meta(l, t, NULL);
		found = 0;
		for (size_t i = 0; i < s->m[t].n; i++) {
			bool there = false;
			for (size_t j = 0; j < meta.n; j++)
				there = there || same_meta(&meta.v[j], &s->m[t].v[i]);
			found += there;
			if (!there && s->m[t].v[i].acked <= k)
				fail_msg("%s: tenant %u: %s, %s is lost", what, t, s->m[t].v[i].family, s->m[t].v[i].help);
		}
		if (found != meta.n)
			fail_msg("%s: tenant %u: %zu entries of metadata are there, of them %zu were sent", what, t, meta.n, found);
		free(got.v);
		free(meta.v);
	}
}

static uint64_t sweep(uint64_t seed)
{
	struct lab l;
	struct sent s = {0};
	uint64_t r = seed, states = 0, checkpoints = 0, x = seed;
	struct annot_request *q = malloc(sizeof *q);
	setup(&l, seed);
	must_start(&l, "first");
	sim_record(l.sim);
	for (uint32_t i = 0; i < ROUNDS; i++) {
		struct err err = {0};
		request(q, i, &r);
		if (annot_send(&l, q, &err) != OK)
			fail_msg("send: %s", err.msg);
		note(&l, &s, q);
		annot_free(q);
		if (i % 8 == 7) {
			uint64_t before = first_segment(&l);
			lab_flush(&l);
			for (int n = 0; n < 300 && first_segment(&l) == before; n++)
				io_sleep_ms(1);
			checkpoints += first_segment(&l) > before;
		}
	}
	check(&l, &s, UINT64_MAX, "before");
	lab_stop(&l);
	struct sim_tape *tape = sim_tape_take(l.sim);
	uint64_t len = sim_tape_len(tape);
	for (uint64_t k = 0; k <= len; k++)
		for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
			if (!full() && lab_random(&x) % 12 != 0)
				continue;
			char what[160];
			snprintf(what, sizeof what, "seed %llu, operation %llu of %llu, %s", (unsigned long long)seed, (unsigned long long)k,
				(unsigned long long)len, sim_loss_name(loss));
			struct sim *disk = sim_tape_crash(tape, k, loss, seed + k);
			sim_use(disk);
			must_start(&l, what);
			check(&l, &s, k, what);
			lab_stop(&l);
			sim_free(disk);
			sim_use(l.sim);
			states++;
		}
	printf("seed %llu: %llu operations, %llu checkpoints, %llu states\n", (unsigned long long)seed, (unsigned long long)len,
		(unsigned long long)checkpoints, (unsigned long long)states);
	assert_true(checkpoints > 0);
	sim_tape_free(tape);
	sent_free(&s);
	free(q);
	lab_free(&l);
	return states;
}

static void nothing_acknowledged_is_lost_to_a_power_cut(void **state)
{
	(void)state;
	uint64_t states = 0;
	for (uint64_t seed = 1; seed <= (full() ? 6 : 2); seed++)
		states += sweep(seed);
	assert_true(states > 100);
}

/* The n-th write of the log, or any call of a checkpoint, fails for want of room; then there is room, and what was refused is sent again. */
static void a_full_disk_loses_nothing(void **state)
{
	(void)state;
	for (uint64_t n = 1; n < 400; n += full() ? 1 : 1 + n / 3) {
		struct lab l;
		struct sent s = {0};
		struct err err = {0};
		uint64_t r = n;
		struct annot_request *q = malloc(ROUNDS * sizeof *q);
		bool stored[ROUNDS] = {false};
		setup(&l, n);
		must_start(&l, "first");
		sim_fault(l.sim, &(struct sim_fault){.calls = SIM_WRITE | SIM_SPACE, .path = "data/wal", .nth = n, .error = ENOSPC, .sticky = true});
		for (uint32_t i = 0; i < ROUNDS; i++) {
			request(&q[i], i, &r);
			errc rc = annot_send(&l, &q[i], &err);
			if (rc != OK && rc != ERR_NOSPACE && rc != ERR_AGAIN)
				fail_msg("%llu: request %u: %s: %s", (unsigned long long)n, i, errc_name(rc), err.msg);
			stored[i] = rc == OK;
			if (i % 8 == 7)
				(void)!head_flush(l.head, &err);
		}
		bool hit = sim_fault_hits(l.sim) > 0;
		sim_fault(l.sim, NULL);
		for (uint32_t i = 0; i < ROUNDS; i++) {
			errc rc = stored[i] ? OK : ERR_AGAIN;
			for (int try = 0; try < 500 && rc != OK; try++) {
				rc = annot_send(&l, &q[i], &err);
				if (rc != OK)
					io_sleep_ms(10);
			}
			if (rc != OK)
				fail_msg("room again, but: %s", err.msg);
			/* Sent again it may be older than what came meanwhile: then it is not written, and nobody was told so. */
			bool written = q[i].a.exemplars_by[EXEMPLAR_STORED] + q[i].a.exemplars_by[EXEMPLAR_DUPLICATE] == q[i].n;
			if (written)
				note(&l, &s, &q[i]);
			assert_true(written || !stored[i]);
		}
		bool all = true;
		for (uint32_t t = 0; t < LAB_TENANTS; t++)
			all = all && s.m[t].n >= ROUNDS / LAB_TENANTS;
		if (all)
			check(&l, &s, UINT64_MAX, "room again");
		lab_crash(&l, SIM_DROP_ALL);
		must_start(&l, "again");
		if (all)
			check(&l, &s, UINT64_MAX, "after a crash");
		for (uint32_t i = 0; i < ROUNDS; i++)
			annot_free(&q[i]);
		free(q);
		sent_free(&s);
		lab_free(&l);
		if (!hit)
			break;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_acknowledged_is_lost_to_a_power_cut),
		cmocka_unit_test(a_full_disk_loses_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
