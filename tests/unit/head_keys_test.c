/* Keys of series and what the log keeps: samples of before are read with the keys of before. */
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

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

/* Whole numbers; where they lie far from each other a series takes another key whenever it may. */
static void send(struct lab *l, uint32_t tenant, uint32_t n, uint32_t per, uint64_t values, int64_t *clock, uint64_t *r)
{
	struct lab_batch b;
	struct err err = {0};
	lab_batch_begin(&b, tenant);
	for (uint32_t k = 0; k < n; k++) {
		lab_batch_series(&b, k, 0);
		for (uint32_t i = 0; i < per; i++)
			lab_batch_sample(&b, *clock + (int64_t)i, f64_bits((double)(lab_random(r) % values)));
	}
	*clock += per;
	if (lab_send(l, &b, &err) != OK)
		fail_msg("send: %s", err.msg);
	lab_batch_free(&b);
}

static void a_checkpoint_and_older_samples(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 1;
	int64_t clock = T0, other = T0 + 100 * RANGE;
	lab_open(&l, 1, RANGE, 1 * MIB);
	l.n_series = 400;
	l.cfg.cut_delay_ms = 1000;
	l.cfg.max_age_ms = INT64_C(1000) * RANGE;
	sim_set_now(l.sim, T0);
	must_start(&l);
	struct wal_status st = {0};
	while (st.segment_now < 8) {
		send(&l, 0, 400, 20, 100, &clock, &r);
		wal_status(l.wal, &st);
	}
	while (st.segment_now < 24) {
		send(&l, 0, 400, 20, st.segment_now < 12 ? 100 : UINT64_C(1000000000000), &other, &r);
		wal_status(l.wal, &st);
	}
	sim_set_now(l.sim, T0 + RANGE + 1000);
	for (uint32_t i = 0; i < 500 && st.segment_first < 5; i++) {
		io_sleep_ms(10);
		wal_status(l.wal, &st);
	}
	printf("segments %llu to %llu\n", (unsigned long long)st.segment_first, (unsigned long long)st.segment_now);
	assert_true(st.segment_first >= 5);
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_checkpoint_and_older_samples),
	};
	cmocka_set_test_filter(getenv("VARVE_TEST"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
