/* A log of hints: frames come back in their order, whole or not at all, and what is lost is counted: any byte damaged, any end cut off, any call failing, the power gone anywhere.
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 takes every byte and every state.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"

#define PARENT "data/hints"
#define DIR PARENT "/x"
#define ADDRESS "node-1.varve:19291"
enum { IDS_MAX = 600 };

static uint64_t seed;
static bool full;

static uint64_t draw(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = *state;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 27;
}

static void log_fresh(struct hint_log *l)
{
	fail_alloc_pause();
	hint_log_new(l, strdup(PARENT), strdup(DIR), SPAN(ADDRESS));
	fail_alloc_resume();
}

/* The payload says which it is, and how long; now and then it looks like a frame of its own. */
static void fill(uint8_t *p, uint64_t id, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(id * 31 + i * (id % 7));
	put_le64(p, id);
	put_le64(p + 8, n);
	if (n >= 16 + HINT_FRAME_BYTES)
		hint_frame_put(p + 16, 12345, &(struct hint_frame){.seq = id, .n = 8});
}

static bool is_filled(const uint8_t *p, size_t n, uint64_t *id)
{
	uint8_t *want = malloc(n);
	*id = n >= 16 ? get_le64(p) : 0;
	if (n >= 16)
		fill(want, *id, n);
	bool same = n >= 16 && get_le64(p + 8) == n && memcmp(want, p, n) == 0;
	free(want);
	return same;
}

static errc put(struct hint_log *l, uint64_t id, size_t n)
{
	fail_alloc_pause();
	uint8_t *p = malloc(hint_frame_size(n));
	fill(p + HINT_FRAME_BYTES, id, n);
	fail_alloc_resume();
	errc rc = hint_log_append(l, p, n, (uint32_t)(id % 5), (int64_t)(1000 + id), NULL);
	free(p);
	return rc;
}

struct found {
	uint64_t ids[IDS_MAX];
	size_t n;
	struct hint_loss loss;
	errc rc;
};

/* Everything from c on; it ends with the first error of a file. */
static struct found read_all(struct hint_log *l, struct hint_cursor *c)
{
	struct found got = {0};
	struct hint_frame f;
	while ((got.rc = hint_log_next(l, c, &f, &got.loss, NULL)) == OK) {
		uint8_t *p = malloc(f.n + 1);
		uint64_t id;
		got.rc = hint_log_read(l, c, &f, p, NULL);
		if (got.rc == OK) {
			assert_true(is_filled(p, f.n, &id));
			assert_int_equal(f.samples, id % 5);
			assert_int_equal(f.added_ms, 1000 + id);
			assert_true(got.n < IDS_MAX && (got.n == 0 || got.ids[got.n - 1] < id));
			got.ids[got.n++] = id;
			hint_log_pass(c, &f);
		} else if (got.rc == ERR_CORRUPT)
			hint_log_lose(c, &f, &got.loss);
		free(p);
		if (got.rc != OK && got.rc != ERR_CORRUPT)
			break;
	}
	return got;
}

static errc start(struct hint_log *l, char **address, struct hints_owed *owed)
{
	return hint_log_open(l, PARENT, DIR, address, owed, NULL);
}

static void assert_all(const struct found *got, uint64_t from, uint64_t to)
{
	assert_int_equal(got->rc, ERR_NOTFOUND);
	assert_int_equal(got->loss.frames, 0);
	assert_int_equal(got->n, to - from + 1);
	for (size_t i = 0; i < got->n; i++)
		assert_int_equal(got->ids[i], from + i);
}

/* ---- in order ---- */

static void what_is_added_is_read(void **st)
{
	(void)st;
	struct sim *sim = sim_new(seed);
	struct hint_log l;
	char *address;
	struct hints_owed owed;
	uint64_t state = seed, added = 0, samples = 0;
	assert_int_equal(io_mkdirs(PARENT, NULL), OK);
	log_fresh(&l);
	assert_false(hint_log_pending(&l));
	/* Large ones, so that files change. */
	for (uint64_t id = 1; id <= 60; id++) {
		size_t n = 16 + (id % 10 == 0 ? 2 * MIB + draw(&state) % MIB : draw(&state) % 2000);
		assert_int_equal(put(&l, id, n), OK);
		added += hint_frame_size(n);
		samples += id % 5;
		assert_true(hint_log_pending(&l));
		assert_int_equal(hint_log_pending_samples(&l), samples);
	}
	assert_true(l.n >= 2);
	assert_int_equal(l.bytes, added + l.n * HINT_SEGMENT_BYTES);
	for (size_t i = 0; i < l.n; i++)
		assert_true(l.v[i].bytes <= LIMIT_HINTS_SEGMENT_BYTES);
	/* Reading is no delivering. */
	struct hint_cursor c = l.done;
	struct found got = read_all(&l, &c);
	assert_all(&got, 1, 60);
	c = l.done;
	got = read_all(&l, &c);
	assert_all(&got, 1, 60);
	assert_int_equal(c.seq, 61);
	/* Nor does it end with the end. */
	assert_int_equal(put(&l, 61, 100), OK);
	got = read_all(&l, &c);
	assert_all(&got, 61, 61);
	/* Half of it is delivered. */
	struct hint_frame f;
	struct hint_loss loss = {0};
	c = l.done;
	for (int i = 0; i < 30; i++) {
		assert_int_equal(hint_log_next(&l, &c, &f, &loss, NULL), OK);
		hint_log_pass(&c, &f);
	}
	uint64_t before = l.bytes, pending = hint_log_pending_bytes(&l), freed = hint_log_done(&l, &c);
	assert_int_equal(before - l.bytes, freed);
	assert_true(hint_log_pending_bytes(&l) < pending);
	assert_int_equal(hint_log_sync(&l, NULL), OK);
	assert_int_equal(hint_log_save(&l, &(struct hints_owed){5, 9, 77, 3}, NULL), OK);
	hint_log_close(&l);
	assert_int_equal(sim_open_fds(sim), 0);

	/* The next run: from where the last one was, and new ones behind them, in a file of their own. */
	assert_int_equal(start(&l, &address, &owed), OK);
	assert_string_equal(address, ADDRESS);
	assert_true(owed.from_ms == 5 && owed.to_ms == 9 && owed.samples == 77 && owed.frames == 3);
	size_t files = l.n;
	assert_int_equal(put(&l, 62, 100), OK);
	assert_int_equal(l.n, files + 1);
	c = l.done;
	got = read_all(&l, &c);
	assert_all(&got, 31, 62);
	hint_log_done(&l, &c);
	assert_false(hint_log_pending(&l));
	assert_int_equal(hint_log_pending_bytes(&l), 0);
	hint_log_clear(&l);
	assert_int_equal(l.bytes, 0);
	assert_int_equal(put(&l, 63, 100), OK);
	c = l.done;
	got = read_all(&l, &c);
	assert_all(&got, 63, 63);
	hint_log_clear(&l);
	hint_log_vanish(&l);
	struct io_stat stat;
	assert_int_equal(io_stat(DIR, &stat, NULL), OK);
	assert_false(stat.exists);
	hint_log_close(&l);
	free(address);
	sim_free(sim);
}

/* ---- damage ---- */

/* Two runs, and a state that says that one is delivered: frames 2 to 12. */
enum { FIRST = 2, LAST = 12 };

static struct sim_tape *two_runs(void)
{
	struct sim *sim = sim_new(seed);
	struct hint_log l;
	struct hint_frame f;
	struct hint_loss loss = {0};
	struct hints_owed owed;
	char *address;
	sim_record(sim);
	assert_int_equal(io_mkdirs(PARENT, NULL), OK);
	log_fresh(&l);
	for (uint64_t id = 1; id <= 6; id++)
		assert_int_equal(put(&l, id, 16 + id * 29), OK);
	struct hint_cursor c = l.done;
	assert_int_equal(hint_log_next(&l, &c, &f, &loss, NULL), OK);
	hint_log_pass(&c, &f);
	hint_log_done(&l, &c);
	assert_int_equal(hint_log_sync(&l, NULL), OK);
	assert_int_equal(hint_log_save(&l, &(struct hints_owed){0}, NULL), OK);
	hint_log_close(&l);
	assert_int_equal(start(&l, &address, &owed), OK);
	for (uint64_t id = 7; id <= LAST; id++)
		assert_int_equal(put(&l, id, 16 + id * 17), OK);
	assert_int_equal(hint_log_sync(&l, NULL), OK);
	hint_log_close(&l);
	free(address);
	struct sim_tape *tape = sim_tape_take(sim);
	sim_free(sim);
	return tape;
}

static uint64_t size_of(const char *path)
{
	struct io_stat st;
	assert_int_equal(io_stat(path, &st, NULL), OK);
	return st.exists ? st.size : 0;
}

static void any_byte_costs_one_frame(void **st)
{
	(void)st;
	static const char *const files[] = {DIR "/00000001.hints", DIR "/00000002.hints", DIR "/state"};
	struct sim_tape *tape = two_runs();
	uint64_t state = seed, states = 0, costly = 0;
	for (int k = 0; k < 3; k++) {
		struct sim *sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, seed);
		sim_use(sim);
		uint64_t size = size_of(files[k]);
		assert_true(size > 60);
		sim_free(sim);
		for (uint64_t at = 0; at < size; at += full || k == 2 ? 1 : 1 + draw(&state) % 5) {
			struct hint_log l;
			struct hints_owed owed;
			char *address;
			sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, seed);
			sim_use(sim);
			assert_true(sim_flip(sim, files[k], at, (uint8_t)(1 + draw(&state) % 255)));
			assert_int_equal(start(&l, &address, &owed), OK);
			assert_string_equal(address, ADDRESS);
			/* What was delivered goes again when that is not known any more, and then all is owed. */
			uint64_t first = k == 2 ? 1 : FIRST;
			assert_int_equal(owed.to_ms > 0, k == 2);
			struct hint_cursor c = l.done;
			struct found got = read_all(&l, &c);
			assert_int_equal(got.rc, ERR_NOTFOUND);
			/* The number of the last one is known from its header only. */
			assert_in_range(c.seq, LAST, LAST + 1);
			/* Damage of a frame that was delivered may be counted, too. */
			uint64_t delivered = k == 0 && got.n == LAST - FIRST + 1;
			assert_true(got.n >= LAST - first);
			if (got.n + got.loss.frames != LAST - first + 1 && !(delivered && got.loss.frames == 1))
				fail_msg("byte %" PRIu64 " of %s: %zu frames read, %" PRIu64 " lost", at, files[k], got.n, got.loss.frames);
			costly += got.loss.frames;
			states++;
			/* It goes on. */
			assert_int_equal(put(&l, LAST + 1, 50), OK);

			got = read_all(&l, &c);
			assert_true(got.n == 1 && got.ids[0] == LAST + 1 && got.loss.frames == 0);
			hint_log_close(&l);
			free(address);
			sim_free(sim);
		}
	}
	sim_tape_free(tape);
	printf("%" PRIu64 " damaged bytes, %" PRIu64 " of them cost a frame\n", states, costly);
	assert_true(costly > 100);
}

/* The last file ends anywhere: what stands whole before is read, and half a frame is counted. */
static void any_end_may_be_torn(void **st)
{
	(void)st;
	static const char file[] = DIR "/00000002.hints";
	struct sim_tape *tape = two_runs();
	for (uint64_t size = 0;; size++) {
		struct hint_log l;
		struct hints_owed owed;
		char *address;
		int fd;
		struct sim *sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, seed);
		sim_use(sim);
		uint64_t whole = size_of(file), at = HINT_SEGMENT_BYTES;
		if (size > whole) {
			sim_free(sim);
			break;
		}
		assert_int_equal(io_open(file, IO_WRITE, &fd, NULL), OK);
		assert_int_equal(io_truncate(fd, size, NULL), OK);
		io_close(fd);
		uint64_t id = 7, want = 5;
		bool torn = size < at && size != 0;
		while (id <= LAST && at + hint_frame_size(16 + id * 17) <= size) {
			at += hint_frame_size(16 + id++ * 17);
			want++;
		}
		torn |= size > at;
		assert_int_equal(start(&l, &address, &owed), OK);
		struct hint_cursor c = l.done;
		struct found got = read_all(&l, &c);
		assert_int_equal(got.rc, ERR_NOTFOUND);
		/* Even the second copy of a file's beginning is enough of it. */
		assert_int_equal(got.n, want);
		if (torn && size > HINT_SEGMENT_BYTES)
			assert_int_equal(got.loss.frames, 1);
		if (size >= HINT_SEGMENT_BYTES && !torn)
			assert_int_equal(got.loss.frames, 0);
		hint_log_close(&l);
		free(address);
		sim_free(sim);
	}
	sim_tape_free(tape);
}

/* ---- calls that fail ---- */

/* Each n-th call: what was told OK is read, what was not is not; nothing is counted as lost but what a failed sync or read explains. */
static void faults(unsigned calls, int error, bool sticky)
{
	for (uint64_t nth = 1;; nth++) {
		struct sim *sim = sim_new(seed);
		struct hint_log l;
		bool ok[41] = {0};
		assert_int_equal(io_mkdirs(PARENT, NULL), OK);
		log_fresh(&l);
		sim_fault(sim, &(struct sim_fault){
				       .calls = calls, .path = "hints/x", .nth = nth, .error = error, .sticky = sticky, .partial = nth % 2 == 1});
		for (uint64_t id = 1; id <= 40; id++) {
			ok[id] = put(&l, id, id % 8 == 0 ? 2 * MIB : 100) == OK;
			if (id % 6 == 0)
				(void)!hint_log_sync(&l, NULL);
			if (id % 12 == 0)
				(void)!hint_log_save(&l, &(struct hints_owed){0}, NULL);
		}
		uint64_t hits = sim_fault_hits(sim);
		sim_fault(sim, NULL);
		struct hint_cursor c = l.done;
		struct found got = read_all(&l, &c);
		assert_int_equal(got.rc, ERR_NOTFOUND);
		assert_int_equal(got.loss.frames, 0);
		size_t at = 0;
		for (uint64_t id = 1; id <= 40; id++) {
			bool there = at < got.n && got.ids[at] == id;
			at += there;
			if (there != ok[id])
				fail_msg("call %" PRIu64 " of kind %x fails: frame %" PRIu64 " was %s and is %s", nth, calls, id,
					ok[id] ? "taken" : "not taken", there ? "there" : "not there");
		}
		assert_int_equal(at, got.n);
		hint_log_close(&l);
		assert_int_equal(sim_open_fds(sim), 0);
		sim_free(sim);
		if (hits == 0)
			break;
		assert_true(nth < 1000);
	}
}

static void writes_that_fail(void **st)
{
	(void)st;
	faults(SIM_WRITE, ENOSPC, false);
	faults(SIM_WRITE, EIO, true);
	faults(SIM_OPEN | SIM_NAMES, EIO, false);
	faults(SIM_SYNC, EIO, false);
	faults(SIM_CHANGES, EIO, false);
}

static void reads_that_fail(void **st)
{
	(void)st;
	struct sim_tape *tape = two_runs();
	for (uint64_t nth = 1;; nth++) {
		struct hint_log l;
		struct hints_owed owed;
		char *address = NULL;
		struct sim *sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, seed);
		sim_use(sim);
		sim_fault(sim, &(struct sim_fault){.calls = SIM_READ | SIM_LOOK | SIM_OPEN, .nth = nth, .error = EIO});
		errc rc = start(&l, &address, &owed);
		uint64_t hits = sim_fault_hits(sim);
		sim_fault(sim, NULL);
		if (rc == OK) {
			/* Then all of it is read, or (when the state was what could not be read) more. */
			struct hint_cursor c = l.done;
			struct found got = read_all(&l, &c);
			assert_int_equal(got.rc, ERR_NOTFOUND);
			assert_int_equal(got.loss.frames, 0);
			assert_true(got.n >= LAST - FIRST + 1 && got.ids[got.n - 1] == LAST);
			/* Numbers of new ones are new, whatever could not be read. */
			hint_log_close(&l);
			free(address);
		}
		sim_free(sim);
		if (hits == 0)
			break;
	}
	sim_tape_free(tape);
}

static void allocations_that_fail(void **st)
{
	(void)st;
	struct sim_tape *tape = two_runs();
	for (uint64_t nth = 1;; nth++) {
		struct hint_log l;
		struct hints_owed owed;
		char *address = NULL;
		struct sim *sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, seed);
		sim_use(sim);
		fail_alloc_at(nth, false);
		errc rc = start(&l, &address, &owed);
		uint64_t hits = fail_alloc_off();
		if (rc == OK) {
			struct hint_cursor c = l.done;
			struct found got = read_all(&l, &c);
			assert_true(got.rc == ERR_NOTFOUND && got.n >= LAST - FIRST + 1);
			hint_log_close(&l);
			free(address);
		} else
			assert_int_equal(rc, ERR_NOMEM);
		sim_free(sim);
		if (hits == 0)
			break;
	}
	sim_tape_free(tape);
}

/* ---- power ---- */

/* What was synced is there after any cut; what is there is whole; and the state that was written is never half. */
static void power_cuts(void **st)
{
	(void)st;
	struct sim *sim = sim_new(seed);
	struct hint_log l;
	uint64_t synced[31], owed_at[31];
	sim_record(sim);
	assert_int_equal(io_mkdirs(PARENT, NULL), OK);
	assert_int_equal(io_fsync_dir("data", NULL), OK);
	assert_int_equal(io_fsync_dir("/", NULL), OK);
	log_fresh(&l);
	for (uint64_t id = 1; id <= 30; id++) {
		synced[id] = owed_at[id] = UINT64_MAX;
		assert_int_equal(put(&l, id, 16 + id * 40), OK);
		if (id % 4 == 0) {
			assert_int_equal(hint_log_sync(&l, NULL), OK);
			for (uint64_t k = id - 3; k <= id; k++)
				synced[k] = sim_ops(sim);
		}
		if (id % 8 == 0) {
			assert_int_equal(hint_log_save(&l, &(struct hints_owed){1, (int64_t)id, id, id}, NULL), OK);
			owed_at[id] = sim_ops(sim);
		}
	}
	hint_log_close(&l);
	struct sim_tape *tape = sim_tape_take(sim);
	sim_free(sim);
	uint64_t states = 0, state = seed;
	for (uint64_t k = 0; k <= sim_tape_len(tape); k++)
		for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
			if (!full && draw(&state) % 3 > 0)
				continue;
			struct hints_owed owed = {0};
			struct io_stat there;
			char *address;
			struct found got = {0};
			sim = sim_tape_crash(tape, k, loss, seed + k);
			sim_use(sim);
			errc rc = io_stat(DIR, &there, NULL);
			assert_int_equal(rc, OK);
			if (there.exists) {
				rc = start(&l, &address, &owed);
				assert_true(rc == OK || rc == ERR_CORRUPT);
				if (rc == OK) {
					struct hint_cursor c = l.done;
					got = read_all(&l, &c);
					hint_log_close(&l);
					free(address);
				}
			} else
				rc = ERR_NOTFOUND;
			size_t at = 0;
			int64_t owed_to = 0;
			for (uint64_t id = 1; id <= 30; id++) {
				bool has = at < got.n && got.ids[at] == id;
				at += has;
				if (synced[id] <= k && !has)
					fail_msg("cut after %" PRIu64 ", %s: frame %" PRIu64 " was synced and is gone", k, sim_loss_name(loss), id);
				if (owed_at[id] <= k)
					owed_to = (int64_t)id;
			}
			assert_true(owed_to == 0 || (rc == OK && owed.to_ms >= owed_to));
			sim_free(sim);
			states++;
		}
	printf("%" PRIu64 " power cuts\n", states);
	sim_tape_free(tape);
}

/* ---- as documented ---- */

static void the_documents_example(void **st)
{
	(void)st;
	uint8_t head[HINT_SEGMENT_BYTES], frame[HINT_FRAME_BYTES];
	struct hint_segment_head h = {.log = 0x04030201, .first_seq = 7, .first_sample = 1000, .address = SPAN("b:1")}, again;
	struct hint_frame f = {.seq = 7, .first_sample = 1000, .added_ms = INT64_C(1700000000000), .samples = 2, .n = 5, .crc = 0x11223344}, g;
	hint_segment_put(head, &h);
	hint_frame_put(frame, h.log, &f);
	static const uint8_t want_head[] = "vrvhints"
					   "\x01\0\0\0\x01\x02\x03\x04"
					   "\x07\0\0\0\0\0\0\0\xe8\x03\0\0\0\0\0\0"
					   "\x03\0\0\0b:1";
	static const uint8_t want_frame[] = "vrvH\x01\x02\x03\x04"
					    "\x07\0\0\0\0\0\0\0\xe8\x03\0\0\0\0\0\0"
					    "\x00\x68\xe5\xcf\x8b\x01\0\0"
					    "\x02\0\0\0\x05\0\0\0\x44\x33\x22\x11";
	assert_memory_equal(head, want_head, sizeof want_head - 1);
	assert_memory_equal(head + HINT_COPY_BYTES, want_head, sizeof want_head - 1);
	assert_memory_equal(frame, want_frame, sizeof want_frame - 1);
	assert_int_equal(get_le32(head + 39), crc32c(0, head, 39));
	assert_int_equal(get_le32(frame + 44), crc32c(0, frame, 44));
	assert_true(hint_segment_get(head, &again) && again.log == h.log && again.first_seq == 7 && span_eq(again.address, h.address));
	assert_true(hint_frame_get(frame, h.log, &g) && g.seq == 7 && g.n == 5 && g.samples == 2 && g.crc == f.crc && g.added_ms == f.added_ms);
	assert_false(hint_frame_get(frame, h.log + 1, &g));
}

int main(void)
{
	const char *s = getenv("VARVE_SEED"), *x = getenv("VARVE_FULL");
	seed = s ? strtoull(s, NULL, 10) : io_random_u64() >> 16;
	full = x && *x == '1';
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	printf("seed %" PRIu64 "\n", seed);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_added_is_read),
		cmocka_unit_test(any_byte_costs_one_frame),
		cmocka_unit_test(any_end_may_be_torn),
		cmocka_unit_test(writes_that_fail),
		cmocka_unit_test(reads_that_fail),
		cmocka_unit_test(allocations_that_fail),
		cmocka_unit_test(power_cuts),
		cmocka_unit_test(the_documents_example),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
