/* Hints against a made-up fleet on a simulated disk: nodes come and go, answers get lost, disks fail, the process starts again; whatever was added and not counted as dropped is delivered, in order,
 * one request at a time, no faster than allowed. And one by one: bounds, ages, who is gone, what is owed, and to whom a hint is handed.
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 runs 20,000 fleets instead of 300.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/hint_lab.h"

static uint64_t seed;
static bool full;

#define MUST(cond)                                                                                                                                   \
	do {                                                                                                                                         \
		if (!(cond))                                                                                                                         \
			fail_msg("seed %" PRIu64 ", line %d: %s", hint_lab.seed, __LINE__, #cond);                                                   \
	} while (0)

/* ---- random fleets ---- */

static struct {
	uint64_t delivered, undelivered, held, restarts, requests, most_frames, faults;
} seen;

static void random_fleet(uint64_t with_seed, bool disk_fails)
{
	hint_lab_begin(with_seed, true);
	hint_lab.cfg.lz4 = hint_lab_below(2);
	hint_lab.cfg.max_bytes = hint_lab_below(2) ? 0 : 20000 + hint_lab_below(200000);
	hint_lab.cfg.rate = hint_lab_below(2) ? 0 : 20000 + hint_lab_below(200000);
	hint_lab.handed = hint_lab_below(2);
	hint_lab_open();
	uint32_t steps = 200 + hint_lab_below(800), ill = 1 + hint_lab_below(3);
	for (uint32_t i = 0; i < steps; i++) {
		uint32_t what = hint_lab_below(100);
		if (what < 40 && hint_lab.n_ids + 80 < IDS) {
			int to = 1 + (int)hint_lab_below(NODES - 1),
			    holder = !hint_lab.handed || hint_lab_below(3) ? 0 : 1 + (int)hint_lab_below(NODES - 1);
			if (holder == to)
				holder = 0;
			hint_lab_miss(to, 1 + hint_lab_below(12), hint_lab_below(6) == 0 ? hint_lab_below(3000) : 0, holder,
				holder > 0 && hint_lab_below(2) ? 6 - to - holder : -1);
		} else if (what < 60 && hint_lab.n_calls > 0)
			hint_lab_resolve(hint_lab_below(hint_lab.n_calls));
		else if (what < 90)
			hint_lab_pass(hint_lab_below(10) == 0 ? hint_lab_below(3000) : hint_lab_below(100));
		else if (what < 96) {
			struct hint_lab_node *x = &hint_lab.nodes[1 + hint_lab_below(NODES - 1)];
			x->health = hint_lab_below(4) < ill ? (enum health)hint_lab_below(HEALTHS) : WELL;
			x->r.answers = x->health != DOWN || hint_lab_below(3) == 0;
			x->r.state = hint_lab_below(20) ? NODE_ACTIVE : NODE_DRAINED;
		} else if (what < 97 && i > 50) {
			/* What the disk forgets at a start is delivered once more, or lost: both are counted below. */
			sim_fault(hint_lab.sim, NULL);
			hint_lab_restart();
			seen.restarts++;
		} else if (disk_fails && what < 99) {
			static const unsigned kinds[] = {SIM_WRITE, SIM_SYNC, SIM_READ, SIM_WRITE | SIM_SYNC | SIM_READ};
			sim_fault(hint_lab.sim, &(struct sim_fault){.calls = kinds[hint_lab_below(4)],
							.path = HINT_LAB_DIR "/",
							.nth = 1 + hint_lab_below(10),
							.error = hint_lab_below(2) ? EIO : ENOSPC,
							.sticky = hint_lab_below(3) == 0,
							.partial = hint_lab_below(4) == 0});
			seen.faults++;
		} else
			sim_fault(hint_lab.sim, NULL);
	}
	hint_lab_drain();
	uint64_t there = hint_lab_delivered();
	MUST(hint_lab_undelivered() <= hint_lab_dropped_all(false));
	if (!disk_fails) {
		MUST(there + hint_lab_dropped_all(true) + hint_lab_held() == hint_lab.added);
	}
	for (int i = 1; i < NODES; i++) {
		struct hints_owed owed;
		seen.requests += hint_lab.nodes[i].requests;
		if (hint_lab.nodes[i].most_frames > seen.most_frames)
			seen.most_frames = hint_lab.nodes[i].most_frames;
		if (hints_owed(hint_lab.h, span_cstr(hint_lab.nodes[i].name), &owed))
			MUST(owed.from_ms > 0 && owed.to_ms <= io_now_ms() && owed.frames > 0);
	}
	seen.delivered += there;
	seen.undelivered += hint_lab_undelivered();
	seen.held += hint_lab_held();
	hint_lab_end();
}

static void random_fleets(void **st)
{
	(void)st;
	for (uint64_t i = 0; i < (full ? 20000 : 300); i++) {
		random_fleet(seed + i, false);
		random_fleet(seed + i, true);
	}
	printf("samples: %" PRIu64 " delivered, %" PRIu64 " not, %" PRIu64 " held by others; %" PRIu64 " requests, of %" PRIu64
	       " frames at most; %" PRIu64 " starts, %" PRIu64 " faults\n",
		seen.delivered, seen.undelivered, seen.held, seen.requests, seen.most_frames, seen.restarts, seen.faults);
	assert_true(seen.delivered > 1000 && seen.undelivered > 100 && seen.held > 100 && seen.restarts > 20 && seen.faults > 20);
	assert_true(seen.most_frames > 5);
}

/* ---- one by one ---- */

static void a_node_that_is_away_gets_it_when_it_is_back(void **st)
{
	(void)st;
	hint_lab_begin(seed, true);
	hint_lab_open();
	hint_lab.nodes[2].r.answers = false;
	for (int i = 0; i < 50; i++) {
		hint_lab_miss(2, 3, 0, 0, -1);
		hint_lab_pass(100);
	}
	assert_int_equal(hint_lab.n_calls, 0);
	assert_true(hint_lab_pending() > 0);
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", "n2:1")), hint_lab.added);
	assert_true(metric_value(metric_gauge("varve_hints_oldest_seconds", "")) >= 3);
	assert_true(metric_value(metric_gauge("varve_hints_pending_bytes", "")) > 0);
	hint_lab_restart();
	hint_lab_pass(1000);
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", "n2:1")), hint_lab.added);
	hint_lab.nodes[2].r.answers = true;
	hint_lab.nodes[2].r.state = NODE_DRAINED; /* says that it takes nothing more */
	hint_lab_pass(1000);
	assert_int_equal(hint_lab.n_calls, 0);
	hint_lab.nodes[2].r.state = NODE_JOINING;
	/* It is looked at once a second or so. */
	for (int i = 0; i < 3 && hint_lab.n_calls == 0; i++)
		hint_lab_pass(1000);
	assert_int_equal(hint_lab.n_calls, 1);
	hint_lab_drain();
	assert_int_equal(hint_lab_undelivered(), 0);
	assert_int_equal(hint_lab_dropped_all(true), 0);
	assert_true(hint_lab.nodes[2].most_frames > 10);
	assert_int_equal(hint_lab_delivered(), hint_lab.added);
	/* Nothing is left of it on the disk. */
	hint_lab_pass(1000);
	hint_lab_pass(1000);
	struct arena a;
	char **names;
	size_t n;
	arena_init(&a, MIB);
	assert_int_equal(io_listdir(HINT_LAB_DIR, &a, &names, &n, NULL), OK);
	assert_int_equal(n, 0);
	arena_free(&a);
	hint_lab_end();
}

/* One node has a half of it, the next one a half of the rest; more is owed, over starts, until it is repaired. */
static void the_bound_is_shared_and_what_is_over_it_is_owed(void **st)
{
	(void)st;
	struct hints_owed owed, again;
	hint_lab_begin(seed, true);
	hint_lab.cfg.max_bytes = 100000;
	hint_lab_open();
	for (int i = 1; i < NODES; i++)
		hint_lab.nodes[i].r.answers = false;
	int64_t from = io_now_ms();
	uint64_t bytes[NODES] = {0};
	for (int node = 1; node < 3; node++) {
		for (int i = 0; i < 100; i++)
			hint_lab_miss(node, 2, 1000, 0, -1);
		uint64_t before = hint_lab_pending();
		hint_lab_pass(1000);
		bytes[node] = hint_lab_pending() - before;
	}
	assert_in_range(bytes[1], 40000, 50000);
	assert_in_range(bytes[2], 20000, 30000);
	assert_true(hint_lab.overflow.n > 0);
	assert_true(hints_owed(hint_lab.h, SPAN("n1:1"), &owed) && owed.from_ms == from + 1000 && owed.to_ms == from + 1000 && owed.frames > 50);
	assert_true(hints_owed(hint_lab.h, SPAN("n2:1"), &again) && again.from_ms == from + 2000);
	assert_int_equal(owed.samples + again.samples, hint_lab_dropped("size"));
	assert_int_equal(hint_lab.overflow.from_ms, again.from_ms);
	assert_string_equal(hint_lab.overflow.address, "n2:1");
	assert_false(hints_owed(hint_lab.h, SPAN("n3:1"), &again));
	hint_lab_pass(1000);
	hint_lab_restart();
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_owed_samples", "", "peer", "n1:1")), owed.samples);
	assert_true(hints_owed(hint_lab.h, SPAN("n1:1"), &again) && again.from_ms == owed.from_ms && again.samples == owed.samples &&
		    again.frames == owed.frames);
	/* It is told again: who repairs may not remember. */
	hint_lab.overflow.n = 0;
	hint_lab_pass(1000);
	assert_int_equal(hint_lab.overflow.n, 2);
	hints_repaired(hint_lab.h, SPAN("n1:1"), owed.from_ms - 1);
	assert_true(hints_owed(hint_lab.h, SPAN("n1:1"), &again) && again.from_ms == owed.from_ms);
	hints_repaired(hint_lab.h, SPAN("n1:1"), owed.to_ms);
	assert_false(hints_owed(hint_lab.h, SPAN("n1:1"), &again));
	hint_lab_pass(1000);
	hint_lab_restart();
	assert_false(hints_owed(hint_lab.h, SPAN("n1:1"), &again));
	assert_true(hints_owed(hint_lab.h, SPAN("n2:1"), &again));
	/* There is room again once they are delivered. */
	hint_lab_drain();
	hint_lab_miss(1, 1, 0, 0, -1);
	hint_lab_drain();
	assert_int_equal(hint_lab_undelivered(), hint_lab_dropped("size"));
	hint_lab_end();
}

/* Memory: what the disk does not take in time is owed. */
static void the_queue_is_bounded(void **st)
{
	(void)st;
	hint_lab_begin(seed, true);
	hint_lab_open();
	for (int i = 0; i < 100; i++)
		hint_lab_miss(1, 1, 250000, 0, -1);
	assert_true(hint_lab.h->queue_bytes <= LIMIT_HINTS_QUEUE_BYTES);
	assert_true(hint_lab.h->queue_bytes > LIMIT_HINTS_QUEUE_BYTES / 2);
	hint_lab_drain();
	assert_int_equal(hint_lab_undelivered(), hint_lab_dropped("queue"));
	struct hints_owed owed;
	assert_true(hints_owed(hint_lab.h, SPAN("n1:1"), &owed) && owed.frames > 10 && owed.samples == hint_lab_dropped("queue"));
	hint_lab_end();
}

static void what_is_too_old_goes(void **st)
{
	(void)st;
	hint_lab_begin(seed, true);
	hint_lab_open();
	hint_lab.nodes[1].r.answers = false;
	hint_lab_miss(1, 5, 0, 0, -1);
	hints_step(hint_lab.h);
	uint64_t old = hint_lab.added;
	hint_lab_pass(1000);
	hint_lab_pass(2 * HOUR_MS);
	hint_lab_miss(1, 5, 0, 0, -1);
	hints_step(hint_lab.h);
	hint_lab_pass(HOUR_MS - 2000);
	assert_int_equal(hint_lab_dropped("age"), 0);
	hint_lab_pass(5000);
	assert_int_equal(hint_lab_dropped("age"), old);
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", "n1:1")), hint_lab.added - old);
	hint_lab_drain();
	assert_int_equal(hint_lab_undelivered(), old);
	struct hints_owed owed;
	assert_false(hints_owed(hint_lab.h, SPAN("n1:1"), &owed)); /* a block tells it */
	hint_lab_end();
}

static void who_is_gone_gets_nothing(void **st)
{
	(void)st;
	for (int how = 0; how < 3; how++) {
		hint_lab_begin(seed + (uint64_t)how, true);
		hint_lab_open();
		struct roster_node *r = &hint_lab.nodes[1].r;
		r->answers = false;
		hint_lab_miss(1, 5, 0, 0, -1);
		hint_lab_miss(2, 5, 0, 0, -1);
		hint_lab_pass(1000);
		hint_lab_resolve_all();
		if (how == 0)
			r->state = NODE_DRAINED; /* but in the ring: it may come back */
		else
			r->in_ring = false;
		r->left_ms = io_now_ms();
		hint_lab_pass(1000);
		assert_int_equal(hint_lab_dropped("gone"), 0);
		if (how == 0)
			r->in_ring = false;
		if (how == 1)
			hint_lab_pass(3 * HOUR_MS - 3000); /* remembered so long, and as long hints are */
		if (how == 2) {
			hint_lab.cfg.remember_ms = HOUR_MS;
			hint_lab_restart();
			hint_lab_pass(HOUR_MS - 10000);
			assert_int_equal(hint_lab_dropped("gone"), 0);
			hint_lab_pass(20000);
		}
		hint_lab_pass(1000);
		if (how != 1)
			assert_true(hint_lab_dropped("gone") > 0);
		hint_lab_drain();
		hint_lab_end();
	}
}

/* A router keeps nothing: who stored it is asked, one after the other. */
static void a_router_hands_it_over(void **st)
{
	(void)st;
	hint_lab_begin(seed, false);
	hint_lab_open();
	hint_lab_miss(1, 3, 0, 2, 3);
	if (hint_lab.n_calls == 0) /* the fake said that there is no memory */
		hint_lab_miss(1, 3, 0, 2, 3);
	assert_int_equal(hint_lab.n_calls, 1);
	assert_string_equal(hint_lab.calls[0].target, HINTS_PATH "?for=n1%3A1");
	hint_lab_end();
}

static void a_holder_that_fails(void **st)
{
	(void)st;
	for (uint64_t k = 0; k < 50; k++) {
		struct hints_owed owed;
		hint_lab_begin(seed + k, k % 2);
		hint_lab_open();
		hint_lab.nodes[2].health = DOWN;
		bool nobody = k % 4 < 2;
		hint_lab.nodes[3].health = nobody ? DOWN : WELL;
		hint_lab.handed = true;
		for (int i = 0; i < 20; i++)
			hint_lab_miss(1, 3, 0, 2, 3);
		hint_lab_resolve_all();
		hint_lab_pass(1000);
		hint_lab_drain();
		/* Kept here when nobody else does, by one that keeps any; else owed. */
		assert_int_equal(hint_lab_undelivered(), hint_lab_dropped_all(false));
		assert_int_equal(hint_lab_dropped_all(true), hint_lab_dropped("holder"));
		if (k % 2)
			assert_int_equal(hint_lab_undelivered(), 0);
		else if (nobody)
			assert_true(hints_owed(hint_lab.h, SPAN("n1:1"), &owed) && owed.samples == hint_lab.added);
		hint_lab_end();
	}
}

/* What the cluster could not even tell, of another or of this node itself. */
static void what_was_not_told_is_owed(void **st)
{
	(void)st;
	struct hints_owed owed;
	hint_lab_begin(seed, true);
	hint_lab_open();
	hints_missed(hint_lab.h, &(struct cluster_missed){.address = SPAN("n3:1"), .n_items = 7});
	hints_missed(hint_lab.h, &(struct cluster_missed){.n_items = 7});
	assert_true(hints_owed(hint_lab.h, SPAN("n3:1"), &owed) && owed.frames == 1 && owed.samples == 0 && owed.from_ms == io_now_ms());
	assert_true(hints_owed(hint_lab.h, SPAN("n0:1"), &owed) && owed.frames == 1);
	hint_lab_pass(1000);
	assert_int_equal(hint_lab.overflow.n, 2);
	hint_lab_end();
}

/* 413: alone, and when that is too large, too, it is left out; the others don't wait for it. */
static void what_is_too_large_for_its_node(void **st)
{
	(void)st;
	hint_lab_begin(seed, true);
	hint_lab_open();
	hint_lab.nodes[1].r.answers = false;
	hint_lab_miss(1, 1, 0, 0, -1);
	uint64_t fits = hint_lab.added;
	hint_lab_miss(1, 5, 0, 0, -1);
	uint64_t large = hint_lab.added - fits;
	hint_lab_miss(1, 1, 0, 0, -1);
	hint_lab_pass(1000);
	hint_lab.nodes[1].health = TOO_LARGE;
	hint_lab.nodes[1].r.answers = true;
	for (int i = 0; i < 100; i++) {
		hint_lab_pass(1000);
		hint_lab_resolve_all();
	}
	assert_int_equal(hint_lab_pending(), 0);
	assert_int_equal(hint_lab_undelivered(), large);
	assert_int_equal(hint_lab_dropped("large"), large);
	hint_lab_end();
}

/* Whatever stands in the directory, hints begin. */
static void foreign_files(void **st)
{
	(void)st;
	hint_lab_begin(seed, true);
	assert_int_equal(io_mkdirs(HINT_LAB_DIR "/00aa", NULL), OK);
	assert_int_equal(io_mkdirs(HINT_LAB_DIR "/00bb", NULL), OK);
	assert_int_equal(io_mkdirs(HINT_LAB_DIR "/00bb/00000001.hints", NULL), OK);
	assert_int_equal(io_write_file(HINT_LAB_DIR "/00aa/00000001.hints", SPAN("no hints"), NULL), OK);
	assert_int_equal(io_write_file(HINT_LAB_DIR "/note", SPAN("x"), NULL), OK);
	hint_lab_open();
	hint_lab_miss(1, 3, 0, 0, -1);
	hint_lab_drain();
	assert_int_equal(hint_lab_undelivered(), 0);
	hint_lab_end();
}

/* Each failing allocation while hints come and go: they are delivered or counted. */
static void allocations_that_fail(void **st)
{
	(void)st;
	for (uint64_t n = 1; n < 2000; n += full ? 1 : 3) {
		hint_lab_begin(seed, true);
		fail_alloc_at(n, false);
		errc rc = hints_open(&hint_lab.cfg, &hint_lab.h, NULL);
		if (rc == OK) {
			fail_alloc_pause();
			hint_lab.nodes[1].r.answers = false;
			for (int i = 0; i < 6; i++) {
				hint_lab.handed = true;
				fail_alloc_resume();
				hint_lab_miss(1 + i % 2, 2, 0, i % 3 ? 0 : 3, -1);
				hints_step(hint_lab.h);
				fail_alloc_pause();
				hint_lab_resolve_all();
				sim_advance(hint_lab.sim, 1000);
			}
			hint_lab.nodes[1].r.answers = true;
			for (int i = 0; i < 6; i++) {
				fail_alloc_resume();
				hints_step(hint_lab.h);
				fail_alloc_pause();
				hint_lab_resolve_all();
				sim_advance(hint_lab.sim, 1000);
			}
			fail_alloc_resume();
		}
		uint64_t hits = fail_alloc_off();
		if (rc == OK) {
			hint_lab_drain();
			for (uint64_t id = 0; id < hint_lab.n_ids; id++) {
				const struct hint_lab_node *x = &hint_lab.nodes[hint_lab.node_of[id]];
				struct hints_owed owed;
				MUST(x->has[id] || x->held[id] || hints_owed(hint_lab.h, span_cstr(x->name), &owed));
			}
			hint_lab_end();
		} else
			sim_free(hint_lab.sim);
		if (hits == 0)
			break;
	}
}

int main(void)
{
	const char *s = getenv("VARVE_SEED"), *x = getenv("VARVE_FULL");
	seed = s ? strtoull(s, NULL, 10) : io_random_u64() >> 16;
	full = x && *x == '1';
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	printf("seed %" PRIu64 "\n", seed);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_node_that_is_away_gets_it_when_it_is_back),
		cmocka_unit_test(the_bound_is_shared_and_what_is_over_it_is_owed),
		cmocka_unit_test(the_queue_is_bounded),
		cmocka_unit_test(what_is_too_old_goes),
		cmocka_unit_test(who_is_gone_gets_nothing),
		cmocka_unit_test(a_router_hands_it_over),
		cmocka_unit_test(a_holder_that_fails),
		cmocka_unit_test(what_was_not_told_is_owed),
		cmocka_unit_test(what_is_too_large_for_its_node),
		cmocka_unit_test(foreign_files),
		cmocka_unit_test(allocations_that_fail),
		cmocka_unit_test(random_fleets),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
