/* Repair beside writes: every node's own thread compares and takes, peers ask for digests, and clients go on; in the end all agree. For TSan.
 *
 * VARVE_SEED repeats a run, as far as threads can.
 */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "head/head_int.h"
#include "tests/support/head_lab.h"
#include "tests/support/repair_lab.h"

enum { RANGE = 600000, NODES = 3, WRITE_MS = 2500, WAIT_MS = 60000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

struct writer {
	struct rlab *l;
	uint64_t random;
	pthread_t thread;
};

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	int64_t until = io_mono_ms() + WRITE_MS;
	while (io_mono_ms() < until) {
		uint32_t n = 1 + (uint32_t)(lab_random(&w->random) % 50), to = 1 + (uint32_t)(lab_random(&w->random) % 7);
		struct rlab_request q;
		rlab_begin(&q, (uint32_t)(lab_random(&w->random) % RLAB_TENANTS));
		for (uint32_t i = 0; i < n; i++)
			rlab_float(&q, (uint32_t)(lab_random(&w->random) % RLAB_SERIES), T0 + (int64_t)(lab_random(&w->random) % RANGE),
				lab_random(&w->random));
		for (uint32_t i = 0; i < NODES; i++)
			if (to >> i & 1)
				rlab_send(w->l, i, &q, true);
		rlab_end(&q);
	}
	return NULL;
}

static bool agree(struct rlab *l)
{
	for (uint32_t t = 0; t < RLAB_TENANTS; t++)
		for (uint32_t i = 0; i < NODES; i++)
			for (uint32_t k = 0; k < i; k++) {
				struct digest_bucket a = rlab_digest(l, i, k, t, T0), b = rlab_digest(l, k, i, t, T0);
				if (!digest_bucket_eq(&a, &b))
					return false;
			}
	return true;
}

/* For who has to look into it. */
static const char *states(struct rlab *l)
{
	static char text[8192];
	size_t n = 0;
	for (uint32_t i = 0; i < NODES; i++) {
		struct buf out;
		buf_init(&out, MIB);
		repair_json(l->v[i].repair, &out);
		n += (size_t)snprintf(text + n, sizeof text - n, "%.*s", (int)out.n, (const char *)out.p);
		buf_free(&out);
	}
	return text;
}

static void repair_goes_on_beside_writes(void **st)
{
	(void)st;
	struct rlab l;
	struct writer w[3];
	struct err err = {0};
	const char *s = getenv("VARVE_SEED");
	rlab_open(&l, s ? strtoull(s, NULL, 10) : 1, NODES, NODES, 3, RANGE, T0 - RANGE);
	sim_set_now(l.sim, T0 + RANGE);
	for (uint32_t i = 0; i < NODES; i++)
		if (repair_start(l.v[i].repair, &err) != OK)
			fail_msg("%s", err.msg);
	for (uint32_t i = 0; i < 3; i++) {
		w[i] = (struct writer){.l = &l, .random = l.seed * 10 + i};
		assert_int_equal(pthread_create(&w[i].thread, NULL, writer_main, &w[i]), 0);
	}
	for (int i = 0; i < 10; i++) {
		struct buf out;
		buf_init(&out, 64 * MIB);
		repair_json(l.v[i % NODES].repair, &out);
		errc rc = repair_serve_totals(l.v[i % NODES].repair, SPAN(""), INT64_MIN, INT64_MAX, &out, &err);
		assert_true(rc == OK || rc == ERR_AGAIN);
		buf_free(&out);
		repair_all(l.v[i % NODES].repair);
		io_sleep_ms(WRITE_MS / 10);
	}
	for (uint32_t i = 0; i < 3; i++)
		pthread_join(w[i].thread, NULL);
	int64_t until = io_mono_ms() + WAIT_MS;
	while (!agree(&l)) {
		if (io_mono_ms() > until)
			fail_msg("%s", states(&l));
		for (uint32_t i = 0; i < NODES; i++)
			repair_all(l.v[i].repair);
		io_sleep_ms(500);
	}
	rlab_free(&l);
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {cmocka_unit_test(repair_goes_on_beside_writes)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
