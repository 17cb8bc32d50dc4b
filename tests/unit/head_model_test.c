/* The head against a dictionary: whatever comes in, in whatever order and spelling, verdicts and reads are the dictionary's; so are blocks, and
 * a head rebuilt from its log at any moment.
 */
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

static uint64_t seed_of(void)
{
	const char *s = getenv("VARVE_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : 1;
	printf("seed %llu\n", (unsigned long long)seed);
	return seed;
}

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

static uint64_t some_value(uint64_t *r)
{
	switch (lab_random(r) % 8) {
	case 0:
		return STALE_NAN_BITS;
	case 1:
		return NORMAL_NAN_BITS;
	case 2:
		return lab_random(r);
	case 3:
		return f64_bits(-0.0);
	default:
		return f64_bits((double)(lab_random(r) % 4));
	}
}

/* Batches in different humours: in order, late, dense so that times collide, over several windows, other spellings. */
static void random_batch(struct lab *l, struct lab_batch *b, uint64_t *r, int64_t *clock)
{
	uint32_t humour = (uint32_t)(lab_random(r) % 6);
	lab_batch_begin(b, (uint32_t)(lab_random(r) % LAB_TENANTS));
	b->v2 = lab_random(r) % 2;
	uint32_t n = 1 + (uint32_t)(lab_random(r) % l->n_series);
	uint32_t per = humour == 0 ? 1 + (uint32_t)(lab_random(r) % 200) : 1 + (uint32_t)(lab_random(r) % 5);
	if (humour == 0)
		n = 1 + n % 3;
	uint32_t spelling = lab_random(r) % 4 ? 0 : (uint32_t)(lab_random(r) % 8);
	/* Each series once: what a request says twice is judged known spelling first, see twice_in_a_request. */
	uint32_t first = (uint32_t)(lab_random(r) % l->n_series);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = (first + i * 7) % l->n_series;
		lab_batch_series(b, k, lab_random(r) % 8 ? spelling : (uint32_t)(lab_random(r) % 8));
		for (uint32_t s = 0; s < per; s++) {
			int64_t t;
			switch (humour) {
			case 0: /* a run in order */
				t = *clock + (int64_t)s * 1000;
				break;
			case 1: /* now */
				t = *clock + s;
				break;
			case 2: /* backwards */
				t = *clock - (int64_t)s * 15000;
				break;
			case 3: /* anywhere in three windows */
				t = T0 + (int64_t)(lab_random(r) % (3 * RANGE));
				break;
			case 4: /* on a coarse grid: collisions */
				t = T0 + (int64_t)(lab_random(r) % 60) * 30000;
				break;
			default: /* before 1970 */
				t = -(int64_t)(lab_random(r) % (2 * RANGE)) - (lab_random(r) % 2 ? RANGE : 0);
			}
			lab_batch_sample(b, t, some_value(r));
		}
	}
	*clock += (int64_t)(lab_random(r) % 20000);
}

static void many_batches(struct lab *l, uint64_t *r, int64_t *clock, uint32_t n)
{
	struct err err = {0};
	for (uint32_t i = 0; i < n; i++) {
		struct lab_batch b;
		random_batch(l, &b, r, clock);
		if (lab_send(l, &b, &err) != OK)
			fail_msg("send: %s", err.msg);
		/* A retry stores nothing more. */
		if (lab_random(r) % 4 == 0) {
			uint64_t stored = l->stored;
			if (lab_send(l, &b, &err) != OK)
				fail_msg("send again: %s", err.msg);
			assert_int_equal(l->stored, stored);
			assert_true(b.b.leans);
		}
		lab_batch_free(&b);
	}
}

static void verdicts_and_reads(void **state)
{
	(void)state;
	uint64_t seed = seed_of();
	for (uint32_t round = 0; round < (full() ? 200 : 6); round++) {
		struct lab l;
		struct err err = {0};
		uint64_t r = seed * 1000 + round;
		int64_t clock = T0;
		lab_open(&l, r, RANGE, 4 * MIB);
		l.n_series = 40;
		assert_int_equal(lab_start(&l, &err), OK);
		for (uint32_t i = 0; i < 6; i++) {
			many_batches(&l, &r, &clock, 30);
			lab_check(&l);
		}
		struct head_status st;
		head_status(l.head, &st);
		assert_int_equal(st.samples_in_memory, l.stored);
		lab_free(&l);
	}
}

static void killed_and_replayed(void **state)
{
	(void)state;
	uint64_t seed = seed_of();
	for (uint32_t round = 0; round < (full() ? 100 : 4); round++) {
		struct lab l;
		struct err err = {0};
		uint64_t r = seed * 77 + round;
		int64_t clock = T0;
		lab_open(&l, r, RANGE, 1 * MIB);
		if (lab_start(&l, &err) != OK)
			fail_msg("start: %s", err.msg);
		for (uint32_t i = 0; i < 6; i++) {
			many_batches(&l, &r, &clock, 1 + (uint32_t)(lab_random(&r) % 40));
			if (lab_random(&r) % 3 == 0) {
				lab_flush(&l);
				lab_check(&l);
			}
			if (lab_random(&r) % 2)
				lab_crash(&l, (enum sim_loss)(lab_random(&r) % SIM_LOSSES));
			else
				lab_stop(&l);
			if (lab_start(&l, &err) != OK)
				fail_msg("start: %s", err.msg);
			lab_check(&l);
		}
		lab_flush(&l);
		lab_check(&l);
		struct head_status st;
		head_status(l.head, &st);
		assert_int_equal(st.windows, 0);
		lab_free(&l);
	}
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(verdicts_and_reads),
		cmocka_unit_test(killed_and_replayed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
