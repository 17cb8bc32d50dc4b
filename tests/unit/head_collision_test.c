/* The series table with a hash of 7 bits: thousands of series share an entry's hash, and none mixes with another. The files under test are
 * built in with its checking compiled in; the rest of head/ comes from its library.
 */
#define HEAD_HASH_BITS 7
#include "head/head_append.c"
#include "head/head_series.c"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>
#include "tests/support/head_lab.h"

enum { RANGE = 600000, SERIES = 600 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static void send(struct lab *l, uint64_t *r, int64_t t)
{
	for (uint32_t tenant = 0; tenant < LAB_TENANTS; tenant++) {
		struct lab_batch b;
		struct err err = {0};
		lab_batch_begin(&b, tenant);
		b.v2 = lab_random(r) % 2;
		for (uint32_t k = 0; k < SERIES; k++) {
			if (lab_random(r) % 3 == 0)
				continue;
			lab_batch_series(&b, k, lab_random(r) % 4 ? 0 : (uint32_t)(lab_random(r) % 8));
			lab_batch_sample(&b, t, lab_random(r));
		}
		if (lab_send(l, &b, &err) != OK)
			fail_msg("send: %s", err.msg);
		lab_batch_free(&b);
	}
}

static void collisions_mix_nothing(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 3;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = SERIES;
	assert_int_equal(lab_start(&l, &err), OK);
	for (int i = 0; i < 12; i++) {
		send(&l, &r, T0 + i * 15000);
		if (i == 6)
			lab_flush(&l);
	}
	lab_check(&l);
	lab_crash(&l, SIM_DROP_ALL);
	assert_int_equal(lab_start(&l, &err), OK);
	send(&l, &r, T0 + RANGE / 2);
	lab_check(&l);
	struct head_status st;
	head_status(l.head, &st);
	assert_in_range(st.series, SERIES, LAB_TENANTS * SERIES);
	/* The test tests something: far more series than hashes. */
	uint64_t most = 0;
	for (uint32_t i = 0; i < l.head->n_shards; i++)
		most = l.head->shards[i].n_series > most ? l.head->shards[i].n_series : most;
	assert_true(most > 10 * (UINT64_C(1) << HEAD_HASH_BITS) / l.head->n_shards);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(collisions_mix_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
