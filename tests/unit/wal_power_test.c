/* Power cuts and failed syncs: what was told OK is there, whatever the disk kept of the rest.
 *
 * A run is recorded once; then the log is replayed from what a cut after each prefix leaves, in each way a disk may lose data. VARVE_FULL=1
 * takes every state (above 20,000), else a seeded sample.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/sim.h"
#include "tests/support/wal_ids.h"
#include "wal/wal_int.h"

enum { SEGMENT = 8192, REQUESTS = 140 };

static bool full;
static uint64_t seed = 1;

struct ack {
	struct sim *sim;
	uint64_t id;
	_Atomic uint64_t ops; /* operations of the disk when it was told; 0: not told OK */
	int64_t ms;	      /* and the time */
};

static void ack_done(void *arg, errc rc, const struct err *err)
{
	struct ack *a = arg;
	(void)err;
	if (rc == OK) {
		a->ms = io_mono_ms();
		a->ops = sim_ops(a->sim) + 1;
	}
}

/* One request that is not waited for. */
static errc send(struct wal *w, struct ack *a, size_t noise)
{
	struct buf b;
	struct wal_ticket t;
	buf_init(&b, MIB);
	ids_put(&b, a->id, noise);
	errc rc = wal_reserve(w, b.n, &t, NULL);
	if (rc == OK)
		wal_commit(w, &t, span_of(b.p, b.n), 1, ack_done, a);
	buf_free(&b);
	return rc;
}

struct run {
	struct ack acks[REQUESTS + 1];
	uint64_t synced[REQUESTS + 1]; /* the same when wal_sync_now was told OK */
	struct {
		uint64_t seq, ops;
	} seen[REQUESTS + 1]; /* frame numbers that somebody may have remembered */
	enum wal_sync mode;
	struct sim_tape *tape;
};

/* Requests alone and in bunches, rotations, a close and a start in order, a crash and a start, a checkpoint. */
static void run_record(struct run *r, enum wal_sync mode)
{
	struct err err = {0};
	errc rc;
	struct ids g = {0};
	*r = (struct run){.mode = mode};
	struct sim *sim = sim_new(seed);
	sim_record(sim);
	struct wal *w = ids_open("data/wal", mode, SEGMENT, &g, NULL, &rc, &err);
	if (!w)
		fail_msg("%s", err.msg);
	for (uint64_t id = 1; id <= REQUESTS; id++) {
		r->acks[id].sim = sim;
		r->acks[id].id = id;
		size_t noise = (size_t)(id * 7919 % 13 == 0 ? 3000 : id * 31 % 300);
		rc = send(w, &r->acks[id], noise);
		assert_int_equal(rc, OK);
		if (id % 5 == 0) {
			assert_int_equal(wal_sync_now(w, &err), OK);
			for (uint64_t k = id - 4; k <= id && mode != WAL_SYNC_ACK; k++)
				r->synced[k] = sim_ops(sim) + 1;
		} else if (id % 5 == 2)
			io_sleep_ms(1);
		struct wal_status now;
		wal_status(w, &now);
		r->seen[id].seq = now.seq;
		r->seen[id].ops = sim_ops(sim) + 1;
		if (id % 60 == 3) { /* with writes that no sync covers yet, in the other modes */
			wal_close(w);
			w = ids_open("data/wal", mode, SEGMENT, &g, NULL, &rc, &err);
			if (!w)
				fail_msg("%s", err.msg);
		}
		if (id == 100) {
			struct wal_checkpoint *cp;
			struct wal_status st;
			wal_status(w, &st);
			assert_true(st.segment_now > st.segment_first + 1);
			/* It replaces the first segment only in name: its samples move into the checkpoint's range of loss, so tell it. */
			assert_int_equal(wal_checkpoint_begin(w, st.segment_first, &cp, &err), OK);
			struct buf b;
			buf_init(&b, MIB);
			for (uint64_t k = 1; k <= 100; k++) {
				buf_clear(&b);
				ids_put(&b, k, 0);
				assert_int_equal(wal_checkpoint_put(cp, span_of(b.p, b.n), &err), OK);
			}
			buf_free(&b);
			assert_int_equal(wal_checkpoint_finish(cp, &err), OK);
		}
	}
	assert_int_equal(wal_sync_now(w, &err), OK);
	wal_close(w);
	r->tape = sim_tape_take(sim);
	ids_free(&g);
	sim_free(sim);
}

/* Replays what is there and compares with what was told; then goes on: one more request, power off at once, and all is there again. */
static void state_check(const struct run *r, uint64_t k, const char *what, bool again)
{
	struct err err = {0};
	errc rc;
	struct ids g = {0};
	struct wal_replay_stats st;
	struct wal *w = ids_open("data/wal", WAL_SYNC_ACK, SEGMENT, &g, &st, &rc, &err);
	if (!w)
		fail_msg("%s: %s", what, err.msg);
	if (g.wrong > 0)
		fail_msg("%s: %" PRIu64 " wrong", what, g.wrong);
	for (uint64_t id = 1; id <= REQUESTS; id++) {
		uint64_t ops = r->mode == WAL_SYNC_ACK ? r->acks[id].ops : r->synced[id];
		if (ops != 0 && ops - 1 <= k && !ids_has(&g, id))
			fail_msg("%s: %" PRIu64 " was told OK after operation %" PRIu64 " and is not there", what, id, ops - 1);
	}
	/* In mode ack nothing that a power cut does is damage. */
	if (st.frames_lost + st.samples_lost + st.damaged_ranges > 0)
		fail_msg("%s: a power cut is called damage: %" PRIu64 " frames, %" PRIu64 " ranges", what, st.frames_lost, st.damaged_ranges);
	if (!again) {
		wal_close(w);
		ids_free(&g);
		return;
	}
	if (ids_write(w, REQUESTS + 1, 20, &err) != OK)
		fail_msg("%s: %s", what, err.msg);
	/* A number that was seen is not given again, though its frame is gone: a block may claim to hold it. */
	struct wal_status now;
	wal_status(w, &now);
	for (uint64_t id = 1; id <= REQUESTS; id++) {
		if (r->seen[id].ops != 0 && r->seen[id].ops - 1 <= k && now.seq <= r->seen[id].seq)
			fail_msg("%s: frame %" PRIu64 " was seen, and is given again as %" PRIu64, what, r->seen[id].seq, now.seq);
	}
	wal_close(w);
	ids_free(&g);
}

/* Returns how many states were seen. */
static uint64_t sweep(enum wal_sync mode, uint64_t every, bool check_recovery)
{
	static struct run r;
	run_record(&r, mode);
	uint64_t states = 0, recoveries = 0, x = seed * 2 + 1;
	uint64_t len = sim_tape_len(r.tape);
	for (uint64_t k = 0; k <= len; k++) {
		for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
			for (uint64_t round = 0; round < (full ? 4 : 1); round++) {
				x = x * 6364136223846793005u + 1442695040888963407u;
				if (!full && (x >> 33) % every != 0)
					continue;
				char what[200];
				snprintf(what, sizeof what, "seed %" PRIu64 " mode %d prefix %" PRIu64 " of %" PRIu64 " %s round %" PRIu64, seed,
					mode, k, len, sim_loss_name(loss), round);
				struct sim *disk = sim_tape_crash(r.tape, k, loss, seed + k + round * 1000003);
				sim_use(disk);
				bool deep = check_recovery && (x >> 20) % (full ? 40 : 25) == 0;
				if (deep)
					sim_record(disk);
				state_check(&r, k, what, true);
				states++;
				if (deep) {
					/* The power goes again during recovery, at each of its operations. */
					struct sim_tape *second = sim_tape_take(disk);
					for (uint64_t k2 = 0; k2 <= sim_tape_len(second); k2++) {
						char deeper[260];
						enum sim_loss loss2 = (enum sim_loss)((x >> 40) + k2) % SIM_LOSSES;
						snprintf(deeper, sizeof deeper, "%s, then prefix %" PRIu64 " %s", what, k2, sim_loss_name(loss2));
						struct sim *disk2 = sim_tape_crash(second, k2, loss2, seed + k2);
						sim_use(disk2);
						state_check(&r, k, deeper, true);
						sim_free(disk2);
						recoveries++;
					}
					sim_tape_free(second);
				}
				sim_free(disk);
			}
		}
	}
	print_message(
		"mode %d: %" PRIu64 " operations, %" PRIu64 " states, %" PRIu64 " of a second cut during recovery\n", mode, len, states, recoveries);
	sim_tape_free(r.tape);
	return states + recoveries;
}

static void nothing_told_is_missing_in_mode_ack(void **state)
{
	(void)state;
	uint64_t states = 0, first_seed = seed;
	for (; states < (full ? 25000 : 2500); seed++)
		states += sweep(WAL_SYNC_ACK, 3, true);
	seed = first_seed;
}

/* In the other modes the promise is wal_sync_now's; and what a cut leaves is replayed without a wrong sample and goes on. */
static void what_was_synced_on_request_is_there_in_other_modes(void **state)
{
	(void)state;
	sweep(WAL_SYNC_INTERVAL, 5, true);
	sweep(WAL_SYNC_OS, 5, true);
}

/* Interval: what was told longer ago than the interval (and the sync's own time) is there. */
static void the_interval_is_the_bound(void **state)
{
	(void)state;
	struct err err = {0};
	errc rc;
	struct ids g = {0};
	struct sim *sim = sim_new(seed);
	sim_record(sim);
	static struct ack acks[301];
	memset(acks, 0, sizeof acks);
	struct wal *w = ids_open("data/wal", WAL_SYNC_INTERVAL, SEGMENT, &g, NULL, &rc, &err);
	assert_non_null(w);
	static struct {
		uint64_t ops;
		int64_t ms;
	} clock[301];
	for (uint64_t id = 1; id <= 300; id++) {
		acks[id].sim = sim;
		acks[id].id = id;
		assert_int_equal(send(w, &acks[id], id % 100), OK);
		io_sleep_ms(1);
		clock[id].ops = sim_ops(sim);
		clock[id].ms = io_mono_ms();
	}
	uint64_t syncs = sim_syncs(sim);
	wal_close(w);
	ids_free(&g);
	struct sim_tape *tape = sim_tape_take(sim);
	sim_free(sim);
	assert_in_range(syncs, 5, 150); /* about one in 20 ms, with those of segments */
	for (uint64_t i = 10; i <= 300; i += full ? 1 : 7) {
		struct sim *disk = sim_tape_crash(tape, clock[i].ops, SIM_DROP_ALL, seed);
		sim_use(disk);
		w = ids_open("data/wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
		assert_non_null(w);
		assert_int_equal(g.wrong, 0);
		for (uint64_t id = 1; id <= i; id++) {
			/* 20 ms, and generously as much again and more for a machine that is busy. */
			if (acks[id].ms != 0 && acks[id].ms + 20 + 100 < clock[i].ms && !ids_has(&g, id))
				fail_msg("%" PRIu64 ", told %" PRId64 " ms ago, is not there", id, clock[i].ms - acks[id].ms);
		}
		wal_close(w);
		ids_free(&g);
		sim_free(disk);
	}
	sim_tape_free(tape);
}

/* ---- failed syncs ---- */

static _Atomic int fatal_calls;

static void on_fatal(void *arg, const struct err *why)
{
	(void)arg;
	(void)why;
	fatal_calls++;
}

/* The n-th sync fails (once, or for good): nothing is told OK that is not durable; the process starts again on the same page cache, goes on,
 * and then the power goes: all that was told, and all that the start replayed, is there. */
static void a_failed_sync_is_final(void **state)
{
	(void)state;
	struct err err = {0};
	uint64_t runs = 0, failed = 0;
	for (int sticky = 0; sticky < 2; sticky++) {
		for (uint64_t n = 1;; n++) {
			struct sim *sim = sim_new(seed + n);
			static struct ack acks[REQUESTS + 2];
			memset(acks, 0, sizeof acks);
			struct ids g = {0};
			errc rc;
			fatal_calls = 0;
			sim_fault(sim, &(struct sim_fault){.calls = SIM_SYNC, .nth = n, .error = EIO, .sticky = sticky});
			struct wal_config cfg = {.dir = "data/wal", .sync = WAL_SYNC_ACK, .segment_bytes = SEGMENT, .on_fatal = on_fatal};
			struct wal *w = NULL;
			rc = wal_open(&cfg, &w, &err);
			if (rc == OK)
				rc = wal_replay(w, ids_frame, &g, NULL, NULL, &err);
			if (rc == OK) {
				for (uint64_t id = 1; id <= 40; id++) {
					acks[id].sim = sim;
					acks[id].id = id;
					if (send(w, &acks[id], id % 8 == 0 ? 2000 : 100) != OK)
						break;
					struct wal_status st;
					rc = wal_sync_now(w, &err);
					wal_status(w, &st);
					if (rc != OK) {
						assert_int_equal(rc, ERR_IO);
						assert_true(st.failed);
						assert_int_equal(send(w, &acks[id], 0), ERR_IO);
						assert_int_equal(acks[id].ops, 0);
						break;
					}
				}
				struct wal_status st;
				wal_status(w, &st);
				if (st.failed)
					failed++;
			}
			uint64_t syncs = sim_syncs(sim);
			bool hit = sim_fault_hits(sim) > 0;
			bool fatal = rc != OK;
			wal_close(w);
			/* A failed log does not sync again; a segment that was just being prepared may still become one. */
			if (fatal)
				assert_in_range(sim_syncs(sim), syncs, syncs + 1);
			assert_in_range(fatal_calls, 0, 1);
			sim_fault(sim, NULL);
			ids_free(&g);

			w = ids_open("data/wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
			if (!w)
				fail_msg("%s", err.msg);
			assert_int_equal(g.wrong, 0);
			for (uint64_t id = 1; id <= 40; id++) {
				if (acks[id].ops != 0)
					assert_true(ids_has(&g, id));
			}
			/* What this start replayed is relied on from now on: a duplicate of it is acknowledged without a write. */
			assert_int_equal(wal_sync_now(w, &err), OK);
			sim_power_off_after(sim, 0);
			wal_close(w);
			sim_power_on(sim, SIM_DROP_ALL, seed);
			struct ids after = {0};
			w = ids_open("data/wal", WAL_SYNC_ACK, SEGMENT, &after, NULL, &rc, &err);
			if (!w)
				fail_msg("%s", err.msg);
			assert_int_equal(after.wrong, 0);
			for (uint64_t id = 1; id <= 40; id++) {
				if (ids_has(&g, id) && !ids_has(&after, id))
					fail_msg("sync %" PRIu64 " failed: %" PRIu64 " was replayed, then lost", n, id);
			}
			wal_close(w);
			ids_free(&g);
			ids_free(&after);
			sim_free(sim);
			runs++;
			if (!hit)
				break;
		}
	}
	print_message("%" PRIu64 " runs, %" PRIu64 " of them ended by a failed sync while appending\n", runs, failed);
	assert_true(failed > 20);
}

/* Numbers stay unique over any row of crashes that each take what the log had not synced. */
static void numbers_are_never_given_again(void **state)
{
	(void)state;
	for (int loss = SIM_KEEP_ALL; loss <= SIM_DROP_ALL; loss++) {
		struct sim *sim = sim_new(seed);
		struct err err = {0};
		uint64_t seen = 0;
		for (int round = 0; round < 12; round++) {
			struct ids g = {0};
			struct wal_status st;
			errc rc;
			struct wal *w = ids_open("data/wal", WAL_SYNC_OS, SEGMENT, &g, NULL, &rc, &err);
			if (!w)
				fail_msg("%s", err.msg);
			wal_status(w, &st);
			if (round > 0 && st.seq <= seen)
				fail_msg("round %d: %" PRIu64 " was seen, the log stands at %" PRIu64, round, seen, st.seq);
			for (uint64_t id = 1; id <= 3; id++)
				assert_int_equal(ids_write(w, (uint64_t)round * 10 + id, 100, &err), OK);
			wal_status(w, &st);
			seen = st.seq;
			bool close_first = round % 4 == 1;
			if (close_first)
				wal_close(w);
			sim_power_off_after(sim, 0);
			if (!close_first)
				wal_close(w);
			sim_power_on(sim, round % 2 == 0 ? (enum sim_loss)loss : SIM_DROP_ALL, seed);
			ids_free(&g);
		}
		sim_free(sim);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_told_is_missing_in_mode_ack),
		cmocka_unit_test(what_was_synced_on_request_is_there_in_other_modes),
		cmocka_unit_test(the_interval_is_the_bound),
		cmocka_unit_test(a_failed_sync_is_final),
		cmocka_unit_test(numbers_are_never_given_again),
	};
	full = getenv("VARVE_FULL") != NULL;
	const char *s = getenv("VARVE_SEED");
	if (s)
		seed = strtoull(s, NULL, 10);
	print_message("seed %" PRIu64 "\n", seed);
	log_setup(getenv("VARVE_LOG") ? LOG_INFO : LOG_ERROR + 1, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
