/* A write spread over a fleet: random rings, verdicts, delays, losses and deadlines against what must come of them (tests/support/fleet.h); the breaker, step by step; no failing
 * allocation acknowledges what is not there, or forgets a write.
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 runs 20,000 fleets of 1,000.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/fleet.h"

static uint64_t seed;
static bool full;

static void random_fleets(void **st)
{
	(void)st;
	for (uint64_t i = 0; i < (full ? 20000 : 1000); i++)
		fleet_run(&(struct fleet_options){.seed = seed + i, .exact = true});
	printf("series: %" PRIu64 " stored, %" PRIu64 " refused, %" PRIu64 " to be tried again, of them %" PRIu64 " at the deadline and %" PRIu64
	       " with a part stored; %" PRIu64 " told as missed; shares not sent: %" PRIu64 "\n",
		fleet_seen.stored, fleet_seen.refused, fleet_seen.again, fleet_seen.expired, fleet_seen.partial, fleet_seen.missed,
		fleet_seen.unsent);
	assert_true(fleet_seen.stored > 1000 && fleet_seen.refused > 1000 && fleet_seen.again > 1000 && fleet_seen.missed > 1000);
	assert_true(fleet_seen.expired > 100 && fleet_seen.partial > 100 && fleet_seen.unsent > 100 && fleet_seen.late_missed > 0);
	assert_true(fleet_seen.elsewhere > 100 && fleet_seen.spare > 100 && fleet_seen.own_missed > 10);
}

static void every_failing_allocation_is_met(void **st)
{
	(void)st;
	for (uint64_t k = 0; k < (full ? 200 : 6); k++)
		for (uint64_t n = 1;; n++) {
			fail_alloc_at(n, false);
			fleet_run(&(struct fleet_options){.seed = seed + k});
			if (fail_alloc_off() == 0)
				break;
		}
}

/* From the n-th on all fail: as when memory is really gone. */
static void memory_is_gone(void **st)
{
	(void)st;
	for (uint64_t k = 0; k < (full ? 200 : 6); k++)
		for (uint64_t n = 1;; n++) {
			fail_alloc_at(n, true);
			fleet_run(&(struct fleet_options){.seed = seed + k});
			if (fail_alloc_off() == 0)
				break;
		}
}

/* ---- the breaker ---- */

static int64_t now_ns;
static uint64_t sixty_fourth; /* what is drawn */

static int64_t breaker_now(void)
{
	return now_ns;
}

static void breaker_random(void *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((uint8_t *)p)[i] = (uint8_t)(sixty_fourth >> 8 * (i % 8));
}

static void fails(struct cluster_peer *p, int n)
{
	for (int i = 0; i < n; i++) {
		assert_true(cluster_peer_may(p));
		assert_true(cluster_peer_enter(p, 10));
		cluster_peer_end(p, 10, i % 2 ? PEER_FAILED : PEER_TIMEOUT, 1);
	}
}

/* Five failures in a row open it, four do not; while it is open nothing goes but one probe for each back-off, which doubles from 100 ms to 500; an answer closes it. */
static void the_breaker(void **st)
{
	(void)st;
	static struct io_ops ops;
	static struct cluster_peers t;
	static const int64_t backoffs[] = {100, 200, 400, 500, 500, 500};
	ops = io_posix;
	ops.mono_ns = breaker_now;
	ops.random = breaker_random;
	io_ops = &ops;
	now_ns = 1;
	cluster_peers_init(&t, 1000);
	for (int late = 0; late < 2; late++) {
		sixty_fourth = late ? UINT64_MAX : 0;
		struct cluster_peer *p = cluster_peer_get(&t, SPAN("breaker:1")), *again = cluster_peer_get(&t, SPAN("breaker:1"));
		assert_ptr_equal(p, again);
		fails(p, LIMIT_PEER_FAILURES - 1);
		assert_true(cluster_peer_may(p) && cluster_peer_enter(p, 10));
		cluster_peer_end(p, 10, PEER_ANSWERED, 1);
		fails(p, LIMIT_PEER_FAILURES);
		for (size_t i = 0; i < sizeof backoffs / sizeof *backoffs; i++) {
			int64_t half = backoffs[i] * 500000, opened = now_ns;
			assert_false(cluster_peer_may(p));
			now_ns = opened + half - 1;
			assert_false(cluster_peer_may(p));
			/* the upper half of the back-off, as it is drawn */
			now_ns = opened + half + (late ? (int64_t)(UINT64_MAX % (uint64_t)half) : 0);
			assert_true(cluster_peer_may(p));
			assert_false(cluster_peer_may(p)); /* one is on its way */
			assert_true(cluster_peer_enter(p, 10));
			cluster_peer_end(p, 10, PEER_TIMEOUT, 1);
		}
		/* A probe that is not sent after all leaves its place to the next. */
		now_ns += INT64_C(5000000000);
		assert_true(cluster_peer_may(p));
		cluster_peer_leave(p);
		assert_true(cluster_peer_may(p));
		assert_true(cluster_peer_enter(p, 10));
		cluster_peer_end(p, 10, PEER_ANSWERED, 1);
		assert_true(cluster_peer_may(p) && cluster_peer_may(p));
		/* Bytes: one request may always go, a second only when both fit. */
		assert_true(cluster_peer_enter(p, 5000));
		assert_false(cluster_peer_enter(p, 1));
		cluster_peer_back(p, 5000);
		assert_true(cluster_peer_enter(p, 500));
		assert_true(cluster_peer_enter(p, 500));
		assert_false(cluster_peer_enter(p, 1));
		cluster_peer_back(p, 500);
		cluster_peer_back(p, 500);
		assert_int_equal(atomic_load(&p->inflight_bytes), 0);
		cluster_peer_put(p);
		cluster_peer_put(again);
	}
	cluster_peers_free(&t);
	io_ops = &io_posix;
}

int main(void)
{
	const char *s = getenv("VARVE_SEED");
	const char *x = getenv("VARVE_FULL");
	seed = s ? strtoull(s, NULL, 10) : io_random_u64() >> 16;
	full = x && *x == '1';
	log_setup(LOG_ERROR, LOG_LOGFMT);
	printf("seed %" PRIu64 "\n", seed);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_fleets),
		cmocka_unit_test(every_failing_allocation_is_met),
		cmocka_unit_test(memory_is_gone),
		cmocka_unit_test(the_breaker),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
