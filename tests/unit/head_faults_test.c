/* Bad days: the n-th write, any allocation, a full disk. No crash; nothing acknowledged is lost; the same request again is stored once.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/head_lab.h"

enum { RANGE = 600000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

/* A request with new and known series, in and out of order, in three windows. */
static void batch_make(struct lab_batch *b, uint32_t round, uint64_t *r)
{
	lab_batch_begin(b, round % LAB_TENANTS);
	b->v2 = round % 2;
	for (uint32_t k = round; k < round + 20; k++) {
		lab_batch_series(b, k, k % 5 ? 0 : 3);
		for (uint32_t i = 0; i < 40; i++) {
			int64_t t = T0 + (int64_t)(lab_random(r) % (3 * RANGE));
			lab_batch_sample(b, t, (uint64_t)t * (k + 1));
		}
	}
}

static void into_model(struct lab *l, const struct lab_batch *b)
{
	for (size_t i = 0; i < b->n; i++)
		for (uint32_t k = 0; k < b->hs[i].n; k++)
			lab_model_put(l, b->tenant, b->series[i], b->samples[b->hs[i].first + k].t, b->samples[b->hs[i].first + k].v);
}

static uint64_t refused_of(const struct lab_batch *b)
{
	uint64_t n = 0;
	for (size_t i = 0; i < b->n; i++)
		n += b->hs[i].refused;
	return n;
}

/* The n-th operation on files of `path` fails with ENOSPC from then on, until room is made; then the same bodies are sent again. */
static void no_space(const char *path, unsigned calls)
{
	for (uint64_t n = 1; n < 200; n += full() ? 1 : 1 + n / 4) {
		struct lab l;
		uint64_t r = n;
		lab_open(&l, n, RANGE, 1 * MIB);
		l.n_series = 60;
		l.quiet_model = true;
		must_start(&l);
		sim_fault(l.sim, &(struct sim_fault){.calls = calls, .path = path, .nth = n, .error = ENOSPC, .sticky = true});
		struct lab_batch b[12];
		bool stored[12] = {false};
		for (uint32_t i = 0; i < 12; i++) {
			struct err err = {0};
			batch_make(&b[i], i, &r);
			errc rc = lab_send(&l, &b[i], &err);
			assert_true(rc == OK || rc == ERR_NOSPACE || rc == ERR_AGAIN);
			stored[i] = rc == OK;
			if (i == 6) {
				rc = head_flush(l.head, &err);
				assert_true(rc == OK || rc == ERR_NOSPACE || rc == ERR_IO);
				l.gen++;
			}
			if (stored[i])
				into_model(&l, &b[i]);
		}
		bool hit = sim_fault_hits(l.sim) > 0;
		/* Reads go on meanwhile; of blocks they open files, which the fault would not let them. */
		if (strcmp(path, "data/blocks") != 0)
			lab_gather_free(lab_gather(&l));
		sim_fault(l.sim, NULL);
		for (uint32_t i = 0; i < 12; i++) {
			struct err err = {0};
			errc rc = ERR_AGAIN;
			for (int try = 0; try < 500 && !stored[i] && rc != OK; try++) {
				rc = lab_send(&l, &b[i], &err);
				if (rc != OK)
					io_sleep_ms(10);
			}
			if (!stored[i]) {
				if (rc != OK)
					fail_msg("room again, but: %s", err.msg);
				into_model(&l, &b[i]);
			}
			lab_batch_free(&b[i]);
		}
		lab_check(&l);
		lab_crash(&l, SIM_DROP_ALL);
		must_start(&l);
		lab_check(&l);
		lab_flush(&l);
		lab_check(&l);
		lab_free(&l);
		if (!hit)
			break;
	}
}

static void no_space_for_the_log(void **state)
{
	(void)state;
	no_space("data/wal", SIM_WRITE | SIM_SPACE | SIM_OPEN);
}

static void no_space_for_full_chunks(void **state)
{
	(void)state;
	no_space("data/head", SIM_WRITE | SIM_OPEN);
}

static void no_space_for_blocks(void **state)
{
	(void)state;
	no_space("data/blocks", SIM_WRITE | SIM_SPACE | SIM_OPEN | SIM_NAMES);
}

/* Full chunks that could not be written are read from memory, and leave it when there is room. */
static void full_chunks_wait_in_memory(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 50;
	must_start(&l);
	sim_fault(l.sim, &(struct sim_fault){.calls = SIM_WRITE, .path = "data/head", .nth = 1, .error = ENOSPC, .sticky = true});
	for (uint32_t i = 0; i < 10; i++) {
		struct lab_batch b;
		lab_batch_begin(&b, 0);
		for (uint32_t k = 0; k < 50; k++) {
			lab_batch_series(&b, k, 0);
			for (uint32_t s = 0; s < 50; s++)
				lab_batch_sample(&b, T0 + i * 50000 + s * 1000, lab_random(&r));
		}
		assert_int_equal(lab_send(&l, &b, &err), OK);
		lab_batch_free(&b);
		if (i == 7) {
			assert_true(sim_fault_hits(l.sim) > 0);
			lab_check(&l);
			sim_fault(l.sim, NULL);
		}
	}
	lab_check(&l);
	lab_flush(&l);
	lab_check(&l);
	lab_free(&l);
}

/* Above the memory limit nothing is stored, and cutting the largest windows makes room again. */
static void over_the_memory_limit(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 60;
	l.quiet_model = true;
	l.cfg.max_memory_bytes = MIB;
	must_start(&l);
	uint64_t again = 0;
	for (uint32_t i = 0; i < 200; i++) {
		struct lab_batch b;
		struct err err = {0};
		batch_make(&b, i % 40, &r);
		errc rc;
		for (int try = 0; (rc = lab_send(&l, &b, &err)) == ERR_AGAIN && try < 2000; try++) {
			assert_string_equal(err.id, errid_text(ERRID_HEAD_MEMORY));
			again++;
			io_sleep_ms(1);
		}
		if (rc != OK)
			fail_msg("%s", err.msg);
		lab_batch_free(&b);
	}
	struct head_status st;
	head_status(l.head, &st);
	pthread_mutex_lock(&l.mu); /* the cutter goes on */
	size_t n_blocks = l.n_blocks;
	pthread_mutex_unlock(&l.mu);
	printf("%llu refused once, %zu blocks\n", (unsigned long long)again, n_blocks);
	assert_true(n_blocks > 1);
	assert_true(st.memory_bytes < 2 * MIB);
	lab_free(&l);
}

/* ---- memory ---- */

static void any_allocation_may_fail_in_append(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 1, n = 0, failures = 0;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 60;
	l.quiet_model = true;
	must_start(&l);
	for (uint32_t round = 0; round < 40; round++) {
		struct lab_batch b;
		batch_make(&b, round, &r);
		for (bool done = false; !done;) {
			struct err err = {0};
			fail_alloc_at(++n % 23 + 1, false);
			errc rc = lab_send(&l, &b, &err);
			fail_alloc_off();
			assert_true(rc == OK || rc == ERR_NOMEM);
			failures += rc != OK;
			done = rc == OK;
		}
		assert_int_equal(refused_of(&b), 0);
		into_model(&l, &b);
		lab_batch_free(&b);
	}
	assert_true(failures > 20);
	printf("%llu failures\n", (unsigned long long)failures);
	lab_check(&l);
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	lab_check(&l);
	lab_free(&l);
}

static void any_allocation_may_fail_in_a_cut(void **state)
{
	(void)state;
	uint64_t failures = 0;
	for (uint64_t n = 1; n < 2000; n += full() ? 1 : 1 + n / 6) {
		struct lab l;
		uint64_t r = n;
		lab_open(&l, n, RANGE, 4 * MIB);
		l.n_series = 60;
		l.quiet_model = true;
		must_start(&l);
		for (uint32_t i = 0; i < 3; i++) {
			struct lab_batch b;
			struct err err = {0};
			batch_make(&b, i * 3, &r);
			assert_int_equal(lab_send(&l, &b, &err), OK);
			into_model(&l, &b);
			lab_batch_free(&b);
		}
		struct err err = {0};
		fail_alloc_at(n, false);
		errc rc = head_flush(l.head, &err);
		uint64_t hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		failures += rc != OK;
		if (rc != OK)
			rc = head_flush(l.head, &err);
		if (rc != OK)
			fail_msg("flush: %s", err.msg);
		l.gen++;
		lab_check(&l);
		assert_int_equal(l.n_blocks, 3);
		lab_free(&l);
		if (hits == 0)
			break;
	}
	assert_true(failures > 10);
	printf("%llu failures\n", (unsigned long long)failures);
}

static void any_allocation_may_fail_in_replay(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 1, n = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 60;
	l.quiet_model = true;
	must_start(&l);
	for (uint32_t i = 0; i < 6; i++) {
		struct lab_batch b;
		struct err err = {0};
		batch_make(&b, i * 3, &r);
		assert_int_equal(lab_send(&l, &b, &err), OK);
		into_model(&l, &b);
		lab_batch_free(&b);
	}
	lab_stop(&l);
	for (;; n += full() ? 1 : 1 + n / 20) {
		struct err err = {0};
		fail_alloc_at(n, false);
		errc rc = lab_start(&l, &err);
		uint64_t hits = fail_alloc_off();
		if (rc == OK) {
			lab_check(&l);
			lab_stop(&l);
			if (hits == 0)
				break;
		} else {
			assert_int_equal(rc, ERR_NOMEM);
		}
	}
	printf("%llu allocations\n", (unsigned long long)n);
	must_start(&l);
	lab_check(&l);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_space_for_the_log),
		cmocka_unit_test(no_space_for_full_chunks),
		cmocka_unit_test(no_space_for_blocks),
		cmocka_unit_test(full_chunks_wait_in_memory),
		cmocka_unit_test(over_the_memory_limit),
		cmocka_unit_test(any_allocation_may_fail_in_append),
		cmocka_unit_test(any_allocation_may_fail_in_a_cut),
		cmocka_unit_test(any_allocation_may_fail_in_replay),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
