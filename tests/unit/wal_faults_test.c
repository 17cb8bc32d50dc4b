/* The n-th call fails, for every n: no crash, no loss of what was told OK, and the log goes on by itself when there is room again. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"
#include "tests/support/wal_ids.h"
#include "wal/wal_int.h"

enum { SEGMENT = 8192, REQUESTS = 24 };

static uint64_t seed = 1;

struct job {
	struct sim *sim;
	bool heals; /* the fault is taken away once somebody was told that there is no room */
	bool ok[REQUESTS + 1];
	uint64_t no_space; /* times told */
	errc end;	   /* what ended it, OK: ran through */
	struct err err;
};

static void heal(struct job *j)
{
	j->no_space++;
	if (j->heals)
		sim_fault(j->sim, NULL);
}

/* What ingest and a patient client do: told NOSPACE, the samples are in the head already, so the retry is a duplicate: nothing to log, but an
 * answer only when what it relies on is durable. */
static errc request(struct wal *w, struct job *j, uint64_t id)
{
	struct buf b;
	errc rc;
	bool logged = false;
	fail_alloc_pause();
	buf_init(&b, MIB);
	ids_put(&b, id, id % 6 == 0 ? 2500 : id * 13 % 400);
	fail_alloc_resume();
	for (int tries = 0; tries < 60; tries++) {
		struct wal_ticket t;
		rc = wal_reserve(w, b.n, &t, &j->err);
		if (rc == OK) {
			rc = wal_commit_wait(w, &t, logged ? (struct span){"", 0} : span_of(b.p, b.n), !logged, &j->err);
			logged = true;
		}
		if (rc == ERR_NOSPACE)
			heal(j);
		if (rc != ERR_NOSPACE && rc != ERR_AGAIN && rc != ERR_NOMEM)
			break;
		io_sleep_ms(3);
	}
	buf_free(&b);
	j->ok[id] = rc == OK;
	return rc;
}

static errc checkpoint(struct wal *w, struct job *j)
{
	struct wal_checkpoint *cp;
	struct wal_status st;
	struct buf b;
	wal_status(w, &st);
	if (st.segment_now <= st.segment_first)
		return OK;
	errc rc = wal_checkpoint_begin(w, st.segment_first, &cp, &j->err);
	if (rc != OK)
		return rc;
	fail_alloc_pause();
	buf_init(&b, MIB);
	for (uint64_t id = 1; id <= REQUESTS; id++) {
		if (j->ok[id])
			ids_put(&b, id, 0);
	}
	fail_alloc_resume();
	rc = wal_checkpoint_put(cp, span_of(b.p, b.n), &j->err);
	buf_free(&b);
	if (rc != OK) {
		wal_checkpoint_abort(cp);
		return rc;
	}
	return wal_checkpoint_finish(cp, &j->err);
}

static struct job job_run_until(struct sim *sim, bool heals, bool power_cut)
{
	struct job j = {.sim = sim, .heals = heals};
	struct ids g = {0};
	struct wal *w = NULL;
	uint64_t id = 1;
	for (int run = 0; run < 3; run++) {
		for (int tries = 0; !w; tries++) {
			w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &j.end, &j.err);
			fail_alloc_pause();
			ids_free(&g);
			fail_alloc_resume();
			if (!w && j.end == ERR_NOSPACE)
				heal(&j);
			if (!w && (tries > 20 || (j.end != ERR_NOSPACE && j.end != ERR_NOMEM)))
				return j;
		}
		for (; id <= (uint64_t)(run + 1) * REQUESTS / 3; id++) {
			j.end = request(w, &j, id);
			if (j.end != OK)
				goto out;
		}
		if (run == 1) {
			/* A checkpoint that fails leaves everything as it was. */
			errc rc = checkpoint(w, &j);
			if (rc == ERR_NOSPACE)
				heal(&j);
		}
		if (run < 2) {
			wal_close(w);
			w = NULL;
		}
	}
out:
	if (w) {
		/* The power goes at once: being told is what counts. */
		if (power_cut)
			sim_power_off_after(sim, 0);
		wal_close(w);
	}
	return j;
}

static struct job job_run(struct sim *sim, bool heals)
{
	return job_run_until(sim, heals, true);
}

static void job_check(struct sim *sim, const struct job *j, const char *what)
{
	struct ids g = {0};
	struct wal_replay_stats st;
	struct err err = {0};
	errc rc;
	sim_fault(sim, NULL);
	sim_power_on(sim, SIM_DROP_ALL, seed);
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, &st, &rc, &err);
	if (!w)
		fail_msg("%s: %s", what, err.msg);
	if (g.wrong > 0)
		fail_msg("%s: %" PRIu64 " wrong", what, g.wrong);
	for (uint64_t id = 1; id <= REQUESTS; id++) {
		if (j->ok[id] && !ids_has(&g, id))
			fail_msg("%s: %" PRIu64 " was told OK and is lost", what, id);
	}
	if (st.samples_lost > 0)
		fail_msg("%s: %" PRIu64 " samples are called lost", what, st.samples_lost);
	if (ids_write(w, 999, 10, &err) != OK)
		fail_msg("%s: %s", what, err.msg);
	wal_close(w);
	ids_free(&g);
	if (sim_open_fds(sim) != 0)
		fail_msg("%s: %zu descriptors are still open", what, sim_open_fds(sim));
}

static uint64_t sweep(struct sim_fault fault, bool heals, bool must_finish, const char *name)
{
	uint64_t runs = 0, told = 0;
	for (uint64_t n = 1;; n++) {
		char what[100];
		snprintf(what, sizeof what, "%s at call %" PRIu64, name, n);
		struct sim *sim = sim_new(seed + n);
		fault.nth = n;
		sim_fault(sim, &fault);
		struct job j = job_run(sim, heals);
		bool hit = sim_fault_hits(sim) > 0 || j.no_space > 0;
		if (must_finish && j.end != OK)
			fail_msg("%s: ended with %s: %s", what, errc_name(j.end), j.err.msg);
		told += j.no_space;
		job_check(sim, &j, what);
		sim_free(sim);
		runs++;
		if (!hit)
			break;
	}
	print_message("%s: %" PRIu64 " runs, told no room %" PRIu64 " times\n", name, runs, told);
	assert_true(runs > 3);
	return told;
}

static void no_space_once(void **state)
{
	(void)state;
	assert_true(sweep((struct sim_fault){.calls = SIM_WRITE, .error = ENOSPC}, false, true, "ENOSPC, one write") > 10);
	sweep((struct sim_fault){.calls = SIM_SPACE, .error = ENOSPC}, false, true, "ENOSPC, one allocation");
	sweep((struct sim_fault){.calls = SIM_WRITE, .error = ENOSPC, .partial = true}, false, true, "half a write, then ENOSPC");
}

static void no_space_until_there_is(void **state)
{
	(void)state;
	assert_true(
		sweep((struct sim_fault){.calls = SIM_WRITE | SIM_SPACE, .error = ENOSPC, .sticky = true}, true, true, "ENOSPC until healed") > 10);
	sweep((struct sim_fault){.calls = SIM_WRITE | SIM_SPACE | SIM_NAMES, .error = ENOSPC, .sticky = true}, true, true,
		"ENOSPC with names until healed");
	sweep((struct sim_fault){.calls = SIM_WRITE | SIM_SPACE, .error = EDQUOT, .sticky = true}, true, true, "EDQUOT until healed");
}

static void short_writes(void **state)
{
	(void)state;
	sweep((struct sim_fault){.calls = SIM_WRITE, .partial = true}, false, true, "short write");
	sweep((struct sim_fault){.calls = SIM_READ, .partial = true}, false, true, "short read");
}

static void io_errors(void **state)
{
	(void)state;
	for (int sticky = 0; sticky < 2; sticky++) {
		sweep((struct sim_fault){.calls = SIM_WRITE, .error = EIO, .sticky = sticky}, false, false, "EIO on write");
		sweep((struct sim_fault){.calls = SIM_SYNC, .error = EIO, .sticky = sticky}, false, false, "EIO on sync");
		sweep((struct sim_fault){.calls = SIM_SYNC, .error = ENOSPC, .sticky = sticky}, false, false, "ENOSPC on sync");
		sweep((struct sim_fault){.calls = SIM_CHANGES, .error = EIO, .sticky = sticky}, false, false, "EIO on any change");
		sweep((struct sim_fault){.calls = SIM_OPEN, .error = EMFILE, .sticky = sticky}, false, false, "EMFILE");
		sweep((struct sim_fault){.calls = SIM_WRITE, .error = EROFS, .sticky = sticky}, false, false, "EROFS");
	}
	sweep((struct sim_fault){.calls = SIM_WRITE, .error = EINTR}, false, true, "EINTR on write");
	sweep((struct sim_fault){.calls = SIM_LOOK, .error = EIO}, false, false, "EIO on stat or list");
}

/* Killed (or stopped by a failed call) at operation n, started again on the same page cache, and then the power goes: what was told before and
 * after, and what the start replayed, is there. */
static void killed_then_power_cut(void **state)
{
	(void)state;
	static const struct {
		unsigned calls;
		const char *name;
	} kinds[] = {{SIM_CHANGES, "any change"}, {SIM_SYNC, "sync"}, {SIM_NAMES, "name"}, {SIM_WRITE, "write"}, {SIM_SPACE, "space"}};
	uint64_t runs = 0;
	for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
		for (uint64_t n = 1;; n++) {
			struct sim *sim = sim_new(seed + n);
			struct err err = {0};
			errc rc;
			struct ids g = {0}, after = {0};
			char what[100];
			snprintf(what, sizeof what, "%s %" PRIu64, kinds[kind].name, n);
			sim_fault(sim, &(struct sim_fault){.calls = kinds[kind].calls, .nth = n, .error = EIO, .sticky = true});
			struct job j = job_run_until(sim, false, false);
			bool hit = sim_fault_hits(sim) > 0;
			sim_fault(sim, NULL);
			struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
			if (!w)
				fail_msg("%s: %s", what, err.msg);
			for (uint64_t id = 500; id < 505; id++) {
				if (ids_write(w, id, 200, &err) != OK)
					fail_msg("%s: %s", what, err.msg);
			}
			sim_power_off_after(sim, 0);
			wal_close(w);
			sim_power_on(sim, SIM_DROP_ALL, seed);
			w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &after, NULL, &rc, &err);
			if (!w)
				fail_msg("%s: %s", what, err.msg);
			assert_int_equal(after.wrong, 0);
			for (uint64_t id = 1; id < 505; id++) {
				bool must = id >= 500 || (id <= REQUESTS && j.ok[id]) || ids_has(&g, id);
				if (must && !ids_has(&after, id))
					fail_msg("%s: %" PRIu64 " is lost", what, id);
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
	print_message("%" PRIu64 " runs\n", runs);
	assert_true(runs > 150);
}

static void allocations_fail(void **state)
{
	(void)state;
	uint64_t runs = 0;
	for (int sticky = 0; sticky < 2; sticky++) {
		for (uint64_t n = 1; n < 2000; n++) {
			char what[100];
			snprintf(what, sizeof what, "allocation %" PRIu64 "%s", n, sticky ? " and all behind it" : "");
			struct sim *sim = sim_new(seed);
			fail_alloc_at(n, sticky);
			struct job j = job_run(sim, false);
			uint64_t hits = fail_alloc_off();
			if (!sticky && j.end != OK)
				fail_msg("%s: %s", what, j.err.msg);
			job_check(sim, &j, what);
			sim_free(sim);
			runs++;
			if (hits == 0)
				break;
			if (sticky) /* each try of a sticky failure waits out its client's patience */
				n += 6;
		}
	}
	print_message("%" PRIu64 " runs\n", runs);
	assert_true(runs > 20);
}

/* A disk that is really full: ballast is removed, and the log goes on within the second, with nothing lost. */
static void a_full_disk_recovers(void **state)
{
	(void)state;
	struct sim *sim = sim_new(seed);
	struct ids g = {0};
	struct err err = {0};
	errc rc;
	int fd;
	assert_int_equal(io_open("ballast", IO_READ | IO_WRITE | IO_CREATE, &fd, NULL), OK);
	assert_int_equal(io_allocate(fd, 0, MIB, NULL), OK);
	io_close(fd);
	sim_capacity(sim, MIB + 16 * SEGMENT);
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
	assert_non_null(w);
	uint64_t id = 1;
	while ((rc = ids_write(w, id, 700, &err)) == OK)
		id++;
	assert_int_equal(rc, ERR_NOSPACE);
	assert_true(id > 100);
	int64_t start = io_mono_ms();
	assert_int_equal(io_unlink("ballast", NULL), OK);
	for (;;) {
		rc = ids_write(w, id, 700, &err);
		if (rc == OK)
			break;
		assert_int_equal(rc, ERR_NOSPACE);
		io_sleep_ms(10);
	}
	assert_in_range(io_mono_ms() - start, 0, 1500);
	sim_power_off_after(sim, 0);
	wal_close(w);
	sim_power_on(sim, SIM_DROP_ALL, seed);
	w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
	assert_non_null(w);
	for (uint64_t k = 1; k <= id; k++)
		assert_true(ids_has(&g, k));
	wal_close(w);
	ids_free(&g);

	/* Full at start: what is there is replayed, and writes wait. */
	sim_capacity(sim, 1);
	w = ids_open("wal", WAL_SYNC_ACK, SEGMENT * 64, &g, NULL, &rc, &err);
	assert_non_null(w);
	assert_int_equal(g.n, id);
	struct wal_status st;
	wal_status(w, &st);
	if (st.no_space) {
		struct wal_ticket t;
		assert_int_equal(wal_reserve(w, 100, &t, &err), ERR_NOSPACE);
	}
	sim_capacity(sim, 64 * MIB);
	do
		rc = ids_write(w, id + 1, 100, &err);
	while (rc == ERR_NOSPACE && (io_sleep_ms(10), true));
	assert_int_equal(rc, OK);
	wal_close(w);
	ids_free(&g);
	sim_free(sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_space_once),
		cmocka_unit_test(no_space_until_there_is),
		cmocka_unit_test(short_writes),
		cmocka_unit_test(io_errors),
		cmocka_unit_test(killed_then_power_cut),
		cmocka_unit_test(allocations_fail),
		cmocka_unit_test(a_full_disk_recovers),
	};
	const char *s = getenv("VARVE_SEED");
	if (s)
		seed = strtoull(s, NULL, 10);
	print_message("seed %" PRIu64 "\n", seed);
	log_setup(getenv("VARVE_LOG") ? LOG_INFO : LOG_ERROR + 1, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
