/* What the log costs, counted: system calls, segments on disk, work while nothing happens; and what inspection says without touching anything. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/sim.h"
#include "tests/support/wal_ids.h"
#include "wal/wal_int.h"

static struct wal *open_log(uint64_t segment, struct ids *g)
{
	struct err err = {0};
	errc rc;
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, segment, g, NULL, &rc, &err);
	if (!w)
		fail_msg("%s", err.msg);
	return w;
}

/* An idle log's request is one write and one fdatasync, and an idle log does nothing. */
static void a_request_is_one_write_and_one_sync(void **state)
{
	(void)state;
	struct sim *sim = sim_new(1);
	struct ids g = {0};
	struct err err = {0};
	struct wal *w = open_log(MIB, &g);
	for (uint64_t id = 1; id <= 20; id++) {
		uint64_t ops = sim_ops(sim), syncs = sim_syncs(sim);
		assert_int_equal(ids_write(w, id, 500, &err), OK);
		assert_int_equal(sim_ops(sim) - ops, 2);
		assert_int_equal(sim_syncs(sim) - syncs, 1);
	}
	uint64_t ops = sim_ops(sim);
	io_sleep_ms(300);
	assert_int_equal(sim_ops(sim), ops);
	/* Nothing to wait for, nothing to do. */
	for (int i = 0; i < 10; i++)
		assert_int_equal(wal_sync_now(w, &err), OK);
	assert_int_equal(sim_ops(sim), ops);
	wal_close(w);
	assert_int_equal(sim_open_fds(sim), 0);
	sim_free(sim);
}

struct counter {
	pthread_mutex_t mu;
	pthread_cond_t cv;
	int left;
};

static void count_down(void *arg, errc rc, const struct err *err)
{
	struct counter *c = arg;
	(void)err;
	assert_int_equal(rc, OK);
	pthread_mutex_lock(&c->mu);
	c->left--;
	pthread_cond_signal(&c->cv);
	pthread_mutex_unlock(&c->mu);
}

/* What arrives during a sync is written and synced together: 200 requests behind a slow disk take three syncs, not 200. */
static void a_slow_disk_makes_large_groups(void **state)
{
	(void)state;
	struct sim *sim = sim_new(1);
	struct ids g = {0};
	struct err err = {0};
	struct wal *w = open_log(16 * MIB, &g);
	struct counter c = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 200};
	sim_sync_delay(sim, 100);
	uint64_t syncs = sim_syncs(sim);
	for (uint64_t id = 1; id <= 200; id++) {
		struct buf b;
		struct wal_ticket t;
		buf_init(&b, MIB);
		ids_put(&b, id, 100);
		assert_int_equal(wal_reserve(w, b.n, &t, &err), OK);
		wal_commit(w, &t, span_of(b.p, b.n), 1, count_down, &c);
		buf_free(&b);
	}
	pthread_mutex_lock(&c.mu);
	while (c.left > 0)
		pthread_cond_wait(&c.cv, &c.mu);
	pthread_mutex_unlock(&c.mu);
	assert_in_range(sim_syncs(sim) - syncs, 1, 4);
	sim_sync_delay(sim, 0);
	wal_close(w);
	sim_free(sim);
}

/* A small deployment pays for the current segment and at most one prepared one; finished ones give back what they did not use. */
static void disk_is_one_segment_and_at_most_one_more(void **state)
{
	(void)state;
	struct sim *sim = sim_new(1);
	struct ids g = {0};
	struct err err = {0};
	enum { SEGMENT = 256 * 1024 };
	struct wal *w = open_log(SEGMENT, &g);
	struct wal_status st;
	wal_status(w, &st);
	assert_int_equal(st.bytes_on_disk, SEGMENT);
	for (uint64_t id = 1; id <= 300; id++) {
		assert_int_equal(ids_write(w, id, 5000, &err), OK);
		wal_status(w, &st);
		uint64_t written = st.pos / SEGMENT * SEGMENT; /* finished ones, at the most */
		assert_in_range(st.bytes_on_disk, SEGMENT, written + 2 * SEGMENT + 8192);
	}
	assert_true(st.segment_now >= 5);

	/* After checkpoints nothing is left of the old ones. */
	struct wal_checkpoint *cp;
	assert_int_equal(wal_checkpoint_begin(w, st.segment_now - 1, &cp, &err), OK);
	assert_int_equal(wal_checkpoint_finish(cp, &err), OK);
	uint64_t now = st.segment_now;
	wal_status(w, &st);
	assert_int_equal(st.segment_first, now);
	assert_in_range(st.bytes_on_disk, SEGMENT, 2 * SEGMENT);
	wal_close(w);
	sim_free(sim);
}

static _Atomic int not_ok, told;

static void count_told(void *arg, errc rc, const struct err *err)
{
	(void)arg;
	(void)err;
	not_ok += rc != OK;
	told++;
}

/* Room that was promised is there: reserve until the disk is full, then use all of it, with records of the most awkward sizes. */
static void what_was_promised_fits(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 30; seed++) {
		enum { SEGMENT = 64 * 1024, MOST = 200 };
		struct sim *sim = sim_new(seed);
		struct ids g = {0};
		struct err err = {0};
		struct wal *w = open_log(SEGMENT, &g);
		struct wal_ticket t[MOST];
		size_t bytes[MOST], n = 0;
		sim_capacity(sim, 10 * SEGMENT);
		errc rc = OK;
		uint64_t x = seed;
		while (n < MOST) {
			x = x * 6364136223846793005u + 1442695040888963407u;
			bytes[n] = 200 + (x >> 33) % (seed % 3 == 0 ? 40000 : 9000);
			rc = wal_reserve(w, bytes[n], &t[n], &err);
			if (rc != OK)
				break;
			n++;
		}
		assert_int_equal(rc, ERR_NOSPACE);
		assert_true(n > 10);
		not_ok = told = 0;
		for (size_t i = 0; i < n; i++) {
			struct buf b;
			buf_init(&b, MIB);
			ids_put(&b, i + 1, bytes[i] - 150);
			assert_in_range(b.n, bytes[i] - 150, bytes[i]);
			wal_commit(w, &t[i], span_of(b.p, b.n), 1, count_told, NULL);
			buf_free(&b);
			if (i % 3 == seed % 3)
				io_sleep_ms(1);
		}
		while (told < (int)n)
			io_sleep_ms(1);
		if (not_ok > 0)
			fail_msg("seed %u: %d of %zu found no room", (unsigned)seed, not_ok, n);
		wal_close(w);
		w = open_log(SEGMENT, &g);
		assert_int_equal(g.n, n);
		wal_close(w);
		ids_free(&g);
		sim_free(sim);
	}
}

/* Limits answer, they don't block: too many bytes, too many tickets. */
static void limits_say_again(void **state)
{
	(void)state;
	struct sim *sim = sim_new(1);
	struct ids g = {0};
	struct err err = {0};
	struct wal *w = open_log(MIB, &g);
	struct wal_ticket a, b, c;
	assert_int_equal(wal_reserve(w, LIMIT_WAL_RECORD_BYTES, &a, &err), OK);
	assert_int_equal(wal_reserve(w, LIMIT_WAL_RECORD_BYTES, &b, &err), OK);
	assert_int_equal(wal_reserve(w, 1, &c, &err), ERR_AGAIN);
	wal_release(w, &a);
	wal_release(w, &b);
	assert_int_equal(wal_sync_now(w, &err), OK);
	errc rc;
	while ((rc = wal_reserve(w, 1, &c, &err)) == ERR_AGAIN) /* a ticket is told a moment before its bytes are free */
		io_sleep_ms(1);
	assert_int_equal(rc, OK);
	wal_release(w, &c);
	wal_close(w);
	sim_free(sim);
}

/* Inspection beside the running log: true, complete, and without one change to the disk. */
static void inspection_tells_and_touches_nothing(void **state)
{
	(void)state;
	struct sim *sim = sim_new(1);
	struct ids g = {0};
	struct err err = {0};
	struct wal *w = open_log(8192, &g);
	for (uint64_t id = 1; id <= 60; id++)
		assert_int_equal(ids_write(w, id, 300, &err), OK);
	sim_flip(sim, "wal/00000001.wal", 1000, 4);
	uint64_t ops = sim_ops(sim);
	struct buf out;
	buf_init(&out, 16 * MIB);
	assert_int_equal(wal_inspect("wal", &(struct wal_inspect_options){.json = true, .frames = true}, &out, &err), OK);
	assert_int_equal(sim_ops(sim), ops);
	json_error_t je;
	json_t *j = json_loadb((const char *)out.p, out.n, 0, &je);
	if (!j)
		fail_msg("%s: %.*s", je.text, (int)out.n, (char *)out.p);
	assert_int_equal(json_integer_value(json_object_get(j, "samples")), 59);
	assert_int_equal(json_integer_value(json_object_get(j, "samples_lost")), 1);
	assert_int_equal(json_integer_value(json_object_get(j, "frames_lost")), 1);
	assert_int_equal(json_integer_value(json_object_get(j, "damaged_ranges")), 1);
	/* what a segment had no room for became a frame of its own in the next */
	size_t files = json_array_size(json_object_get(j, "files")), frames = json_array_size(json_object_get(j, "frame_list"));
	assert_true(files >= 3 && frames >= 59 && frames < 59 + files);
	bool found = false;
	size_t i;
	json_t *x;
	json_array_foreach(json_object_get(j, "findings"), i, x)
	{
		if (strcmp(json_string_value(json_object_get(x, "kind")), "damage") != 0)
			continue;
		found = true;
		int64_t off = json_integer_value(json_object_get(x, "offset")), bytes = json_integer_value(json_object_get(x, "bytes"));
		assert_true(off <= 1000 && off + bytes > 1000);
		assert_string_equal(json_string_value(json_object_get(x, "file")), "wal/00000001.wal");
	}
	assert_true(found);
	json_decref(j);
	buf_clear(&out);
	assert_int_equal(wal_inspect("wal", &(struct wal_inspect_options){.frames = true}, &out, &err), OK);
	buf_u8(&out, 0);
	assert_non_null(strstr((char *)out.p, "damage"));
	assert_non_null(strstr((char *)out.p, "00000001.wal"));
	assert_non_null(strstr((char *)out.p, "lost: 1 frames, 1 samples"));
	buf_clear(&out);
	assert_int_equal(wal_inspect("nowhere", &(struct wal_inspect_options){0}, &out, &err), ERR_NOTFOUND);
	buf_free(&out);
	wal_close(w);
	sim_free(sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_request_is_one_write_and_one_sync),
		cmocka_unit_test(a_slow_disk_makes_large_groups),
		cmocka_unit_test(disk_is_one_segment_and_at_most_one_more),
		cmocka_unit_test(what_was_promised_fits),
		cmocka_unit_test(limits_say_again),
		cmocka_unit_test(inspection_tells_and_touches_nothing),
	};
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
