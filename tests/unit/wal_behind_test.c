/* Replay behind a frame: from every frame that ever was the newest, in a log with clean ends, kills, copied tails and checkpoints, come exactly the frames behind it;
 * or the log says that it does not have that frame, and then it has not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "tests/support/sim.h"
#include "tests/support/wal_ids.h"
#include "wal/wal_int.h"

enum { MARKS = 4096 };

static struct noted {
	struct wal_mark mark;
	uint64_t id; /* the newest in the log then */
} noted[MARKS];
static size_t n_noted;

static struct wal *must_open(struct ids *g)
{
	struct err err = {0};
	errc rc;
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, 16 * KIB, g, NULL, &rc, &err);
	if (!w)
		fail_msg("open: %s", err.msg);
	return w;
}

static void note(struct wal *w, uint64_t id)
{
	assert_true(n_noted < MARKS);
	noted[n_noted].id = id;
	if (wal_mark(w, &noted[n_noted].mark))
		n_noted++;
}

static void checkpoint(struct wal *w)
{
	struct wal_status st;
	struct wal_checkpoint *cp;
	struct err err = {0};
	wal_status(w, &st);
	if (st.segment_now < st.segment_first + 6)
		return;
	if (wal_checkpoint_begin(w, st.segment_now - 4, &cp, &err) != OK || wal_checkpoint_finish(cp, &err) != OK)
		fail_msg("checkpoint: %s", err.msg);
}

/* A power cut after which everything is there, as a kill leaves it; recording begins anew. */
static struct sim *era_end(struct sim *sim, uint64_t less)
{
	struct sim_tape *tape = sim_tape_take(sim);
	struct sim *next = sim_tape_crash(tape, sim_tape_len(tape) - less, SIM_KEEP_ALL, 1);
	sim_tape_free(tape);
	sim_free(sim);
	sim_use(next);
	sim_record(next);
	return next;
}

static void every_mark(struct sim_tape *tape, uint64_t last_id, uint64_t *fit, uint64_t * not )
{
	for (size_t i = 0; i < n_noted; i++) {
		const struct noted *x = &noted[i];
		struct sim *sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
		struct err err = {0};
		struct wal *w;
		struct wal_replay_stats st;
		struct ids g = {0};
		struct wal_config cfg = {.dir = "wal", .segment_bytes = 16 * KIB};
		sim_use(sim);
		assert_int_equal(wal_open(&cfg, &w, &err), OK);
		errc rc = wal_replay_behind(w, &x->mark, &err);
		assert_true(rc == OK || rc == ERR_NOTFOUND);
		if (wal_replay(w, ids_frame, &g, NULL, &st, &err) != OK)
			fail_msg("replay: %s", err.msg);
		assert_int_equal(g.wrong, 0);
		assert_int_equal(st.frames_lost + st.frames_torn, 0);
		if (rc == OK) {
			assert_int_equal(g.n, last_id - x->id);
			for (size_t k = 0; k < g.n; k++)
				assert_int_equal(g.v[k], x->id + 1 + k);
		} else {
			assert_true(g.v[0] > x->id); /* its segment is gone */
		}
		*(rc == OK ? fit : not ) += 1;
		/* The log goes on, and a start that knows nothing finds all of it. */
		uint64_t first = rc == OK ? 0 : g.v[0];
		assert_int_equal(ids_write(w, last_id + 1, 0, &err), OK);
		wal_close(w);
		ids_free(&g);
		g = (struct ids){0};
		w = must_open(&g);
		assert_int_equal(g.v[g.n - 1], last_id + 1);
		assert_int_equal(g.n, last_id + 2 - g.v[0]);
		assert_true(first == 0 || g.v[0] == first);
		wal_close(w);
		ids_free(&g);
		sim_free(sim);
	}
}

static void behind_every_frame(void **state)
{
	(void)state;
	uint64_t id = 0, fit = 0, not = 0;
	for (uint32_t with = 0; with < 2; with++) {
		struct sim *sim = sim_new(with + 1);
		n_noted = 0;
		id = 0;
		sim_record(sim);
		for (uint32_t era = 0; era < 9; era++) {
			struct ids g = {0};
			struct err err = {0};
			struct wal *w = must_open(&g);
			assert_int_equal(g.wrong, 0);
			note(w, id);
			for (uint32_t i = 0; i < 12; i++) {
				id++;
				assert_int_equal(ids_write(w, id, (id * 2654435761u) % 3000, &err), OK);
				if (era % 3 != 1 || i < 11)
					note(w, id);
			}
			if (with && era % 2)
				checkpoint(w);
			wal_close(w);
			ids_free(&g);
			/* In order, or killed: without the mark of a clean end. */
			sim = era_end(sim, era % 3 ? 2 : 0);
		}
		struct ids g = {0};
		struct wal *w = must_open(&g);
		wal_close(w);
		ids_free(&g);
		struct sim_tape *tape = sim_tape_take(sim);
		every_mark(tape, id, &fit, &not );
		sim_tape_free(tape);
		sim_free(sim);
	}
	printf("%llu marks fit, %llu do not\n", (unsigned long long)fit, (unsigned long long)not );
	assert_true(fit > 100 && not > 20);
}

/* A mark of another log, of another place, of another frame. */
static void a_mark_of_something_else(void **state)
{
	(void)state;
	struct sim *sim = sim_new(5);
	struct ids g = {0};
	struct err err = {0};
	struct wal *w = must_open(&g);
	struct wal_mark m;
	for (uint64_t id = 1; id < 6; id++)
		assert_int_equal(ids_write(w, id, 100, &err), OK);
	assert_true(wal_mark(w, &m));
	wal_close(w);
	ids_free(&g);
	struct wal_config cfg = {.dir = "wal", .segment_bytes = 16 * KIB};
	assert_int_equal(wal_open(&cfg, &w, &err), OK);
	assert_int_equal(wal_replay_behind(w, &m, &err), OK);
	for (uint32_t i = 0; i < 8; i++) {
		struct wal_mark x = m;
		uint64_t *const field[] = {&x.seq, &x.first_sample, &x.pos, &x.segment, &x.offset};
		if (i < 5)
			*field[i] ^= 8;
		else if (i == 5)
			x.log ^= 1;
		else if (i == 6)
			x.crc ^= 1;
		else
			x = (struct wal_mark){0};
		assert_int_equal(wal_replay_behind(w, &x, &err), ERR_NOTFOUND);
	}
	assert_int_equal(wal_replay_behind(w, NULL, &err), OK);
	assert_int_equal(wal_replay(w, ids_frame, &g, NULL, NULL, &err), OK);
	assert_int_equal(g.n, 5);
	wal_close(w);
	ids_free(&g);
	sim_free(sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(behind_every_frame),
		cmocka_unit_test(a_mark_of_something_else),
	};
	cmocka_set_test_filter(getenv("VARVE_TEST"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
