/* Damage costs what stood there, is counted, and never gives a wrong sample: bits, pages, ends, whole files. */
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

enum { SEGMENT = 4096, LAST = 40 };

/* A seeded stride by default, every byte with VARVE_FULL; sanitizers take ten times as long for a state. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STRIDE = 53 };
#else
enum { STRIDE = 7 };
#endif

static bool full;
static uint64_t seed = 1;

/* ---- a log of several segments, closed in order or not ---- */

struct piece {
	uint64_t segment, offset, bytes, seq, id; /* id 0: no sample */
};

struct fixture {
	struct sim_tape *tape;
	struct piece pieces[200];
	size_t n;
	uint64_t segments;
};

static errc piece_frame(void *arg, const struct wal_frame *f, const struct wal_frame_header *h, struct err *err)
{
	struct fixture *x = arg;
	struct ids g = {0};
	assert_int_equal(ids_frame(&g, f, err), OK);
	assert_true(g.n <= 1 && x->n < 200);
	x->pieces[x->n++] = (struct piece){f->segment, f->offset, wal_frame_size(h->stored), h->seq, g.n ? g.v[0] : 0};
	if (f->segment > x->segments)
		x->segments = f->segment;
	ids_free(&g);
	return OK;
}

static void fixture_make(struct fixture *x, bool clean)
{
	struct err err = {0};
	errc rc;
	struct ids g = {0};
	*x = (struct fixture){0};
	struct sim *sim = sim_new(seed);
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
	assert_non_null(w);
	for (uint64_t id = 1; id <= LAST; id++)
		assert_int_equal(ids_write(w, id, id % 7 * 50, &err), OK);
	if (clean)
		wal_close(w);
	sim_record(sim);
	x->tape = sim_tape_take(sim);
	if (!clean)
		wal_close(w);
	struct sim *disk = sim_tape_crash(x->tape, 0, SIM_KEEP_ALL, seed);
	sim_use(disk);
	struct wal_walk walk = {.dir = "wal", .frame = piece_frame, .arg = x};
	assert_int_equal(wal_walk_run(&walk, &err), OK);
	assert_true(x->segments >= 3);
	wal_walk_free(&walk);
	sim_free(disk);
	sim_free(sim);
}

static struct sim *disk_of(const struct fixture *x)
{
	struct sim *disk = sim_tape_crash(x->tape, 0, SIM_KEEP_ALL, seed);
	sim_use(disk);
	return disk;
}

struct outcome {
	struct ids g;
	struct wal_replay_stats st;
	size_t missing;
	uint64_t missing_id;
};

/* Replays, judges, appends one more, and replays again: the same and the new one are there. */
static struct outcome outcome_of(const char *what)
{
	struct outcome o = {.missing = 0};
	struct err err = {0};
	errc rc;
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &o.g, &o.st, &rc, &err);
	if (!w)
		fail_msg("%s: %s", what, err.msg);
	if (o.g.wrong > 0)
		fail_msg("%s: %" PRIu64 " wrong", what, o.g.wrong);
	for (uint64_t id = 1; id <= LAST; id++) {
		if (o.g.times && o.g.times[id] > 1)
			fail_msg("%s: id %" PRIu64 " %u times", what, id, o.g.times[id]);
		if (!ids_has(&o.g, id)) {
			o.missing++;
			o.missing_id = id;
		}
	}
	if (ids_write(w, LAST + 1, 10, &err) != OK)
		fail_msg("%s: append: %s", what, err.msg);
	wal_close(w);
	struct ids again = {0};
	struct wal_replay_stats st;
	w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &again, &st, &rc, &err);
	if (!w || again.wrong > 0 || again.n != o.g.n + 1 || !ids_has(&again, LAST + 1))
		fail_msg("%s: after one more append %zu of %zu, %s", what, again.n, o.g.n + 1, err.msg);
	/* What was known to be lost is still known; what a power cut took is not damage later. */
	if (st.samples_lost != o.st.samples_lost || st.frames_torn + st.frames_lost > o.st.frames_torn + o.st.frames_lost)
		fail_msg("%s: second replay counts %" PRIu64 " lost and %" PRIu64 " torn, the first %" PRIu64 " and %" PRIu64, what, st.frames_lost,
			st.frames_torn, o.st.frames_lost, o.st.frames_torn);
	wal_close(w);
	ids_free(&again);
	return o;
}

static const char *segment_path(uint64_t n)
{
	static char path[WAL_PATH_BYTES];
	wal_path_segment(path, "wal", n);
	return path;
}

static uint64_t file_size(const char *path)
{
	struct io_stat st;
	assert_int_equal(io_stat(path, &st, NULL), OK);
	return st.exists ? st.size : 0;
}

static void overwrite(const char *path, uint64_t off, const void *p, size_t n)
{
	int fd;
	assert_int_equal(io_open(path, IO_READ | IO_WRITE, &fd, NULL), OK);
	assert_int_equal(io_pwrite(fd, p, n, off, NULL), OK);
	io_close(fd);
}

/* The pieces that [off, off + n) of a segment touches may be missing, nothing else; and exactly what is missing is counted, when
 * something valid follows it. */
static void judge(const struct fixture *x, const struct outcome *o, uint64_t segment, uint64_t off, uint64_t n, bool clean, const char *what)
{
	size_t allowed = 0, allowed_frames = 0;
	for (size_t i = 0; i < x->n; i++) {
		const struct piece *p = &x->pieces[i];
		bool touched = p->segment == segment && p->offset < off + n && off < p->offset + p->bytes;
		allowed += touched && p->id != 0;
		allowed_frames += touched;
		if (p->id != 0 && !touched && !ids_has(&o->g, p->id))
			fail_msg("%s: id %" PRIu64 " at %" PRIu64 " is missing and was not touched", what, p->id, p->offset);
	}
	assert_true(o->missing <= allowed);
	uint64_t counted = o->st.samples_lost + o->st.samples_torn;
	bool last = x->pieces[x->n - 1].segment == segment && off + n > x->pieces[x->n - 1].offset;
	if (clean && !last && (counted != o->missing || o->st.samples_torn != 0))
		fail_msg("%s: %zu missing, %" PRIu64 " counted as lost, %" PRIu64 " as torn", what, o->missing, o->st.samples_lost,
			o->st.samples_torn);
	if (counted > o->missing || o->st.frames_lost + o->st.frames_torn > allowed_frames)
		fail_msg("%s: %zu missing, %" PRIu64 " counted", what, o->missing, counted);
	if (o->missing > 0 && clean && !last && o->st.damaged_ranges == 0)
		fail_msg("%s: %zu missing, no damaged range", what, o->missing);
}

/* ---- bits ---- */

static void flips(bool clean)
{
	struct fixture x;
	fixture_make(&x, clean);
	uint64_t states = 0, lost = 0;
	for (uint64_t segment = 1; segment <= x.segments; segment++) {
		uint64_t end = 0;
		for (size_t i = 0; i < x.n; i++) {
			if (x.pieces[i].segment == segment)
				end = x.pieces[i].offset + x.pieces[i].bytes;
		}
		for (uint64_t off = full ? 0 : seed % STRIDE; off < end + 16; off += full ? 1 : STRIDE) {
			char what[100];
			uint8_t mask = (uint8_t)(1u << ((off * 5 + seed) % 8));
			snprintf(what, sizeof what, "seed %" PRIu64 " segment %" PRIu64 " byte %" PRIu64 " mask %u", seed, segment, off, mask);
			struct sim *disk = disk_of(&x);
			if (sim_flip(disk, segment_path(segment), off, mask)) {
				struct outcome o = outcome_of(what);
				judge(&x, &o, segment, off, 1, clean, what);
				lost += o.missing;
				states++;
				ids_free(&o.g);
			}
			sim_free(disk);
		}
	}
	print_message("%" PRIu64 " flips, %" PRIu64 " samples lost in them together\n", states, lost);
	assert_true(lost > states / 2);
	sim_tape_free(x.tape);
}

static void a_flipped_byte_costs_its_frame(void **state)
{
	(void)state;
	flips(true);
}

static void a_flipped_byte_costs_its_frame_after_a_crash(void **state)
{
	(void)state;
	flips(false);
}

/* ---- pages and ends ---- */

static void a_zeroed_page_costs_its_frames(void **state)
{
	(void)state;
	static const uint8_t zeros[1024];
	struct fixture x;
	fixture_make(&x, true);
	for (uint64_t segment = 1; segment <= x.segments; segment++) {
		for (uint64_t off = 0; off < SEGMENT; off += 512) {
			char what[100];
			snprintf(what, sizeof what, "segment %" PRIu64 " zeros at %" PRIu64, segment, off);
			struct sim *disk = disk_of(&x);
			uint64_t size = file_size(segment_path(segment));
			if (off < size) {
				size_t n = size - off < sizeof zeros ? (size_t)(size - off) : sizeof zeros;
				overwrite(segment_path(segment), off, zeros, n);
				struct outcome o = outcome_of(what);
				judge(&x, &o, segment, off, n, true, what);
				ids_free(&o.g);
			}
			sim_free(disk);
		}
	}
	sim_tape_free(x.tape);
}

static void every_truncation(void **state)
{
	(void)state;
	struct fixture x;
	fixture_make(&x, true);
	for (uint64_t segment = 1; segment <= x.segments; segment++) {
		for (uint64_t size = 0; size < SEGMENT; size += full ? 1 : 5 * STRIDE) {
			char what[100];
			snprintf(what, sizeof what, "segment %" PRIu64 " truncated to %" PRIu64, segment, size);
			struct sim *disk = disk_of(&x);
			uint64_t before = file_size(segment_path(segment));
			if (size < before) {
				int fd;
				assert_int_equal(io_open(segment_path(segment), IO_READ | IO_WRITE, &fd, NULL), OK);
				assert_int_equal(io_truncate(fd, size, NULL), OK);
				io_close(fd);
				struct outcome o = outcome_of(what);
				judge(&x, &o, segment, size, before - size, true, what);
				ids_free(&o.g);
			}
			sim_free(disk);
		}
	}
	sim_tape_free(x.tape);
}

/* ---- whole files ---- */

static void copy_file(const char *from, const char *to)
{
	struct arena a;
	struct span data;
	arena_init(&a, MIB);
	assert_int_equal(io_read_file(from, MIB, &a, &data, NULL), OK);
	assert_int_equal(io_write_file(to, data, NULL), OK);
	arena_free(&a);
}

static void a_deleted_segment_is_named_and_counted(void **state)
{
	(void)state;
	struct fixture x;
	fixture_make(&x, true);
	for (uint64_t gone = 1; gone < x.segments; gone++) {
		struct sim *disk = disk_of(&x);
		assert_int_equal(io_unlink(segment_path(gone), NULL), OK);
		struct outcome o = outcome_of("deleted segment");
		size_t in_it = 0;
		for (size_t i = 0; i < x.n; i++)
			in_it += x.pieces[i].segment == gone && x.pieces[i].id != 0;
		assert_true(in_it > 0);
		assert_int_equal(o.missing, in_it);
		assert_int_equal(o.st.samples_lost, in_it);
		assert_true(o.st.damaged_ranges > 0);
		ids_free(&o.g);
		sim_free(disk);
	}
	sim_tape_free(x.tape);
}

static void swapped_segments_are_found_where_they_belong(void **state)
{
	(void)state;
	struct fixture x;
	fixture_make(&x, true);
	for (uint64_t a = 1; a <= x.segments; a++) {
		for (uint64_t b = a + 1; b <= x.segments; b++) {
			struct sim *disk = disk_of(&x);
			char from[WAL_PATH_BYTES];
			wal_path_segment(from, "wal", a);
			assert_int_equal(io_rename(from, "wal/x", NULL), OK);
			assert_int_equal(io_rename(segment_path(b), from, NULL), OK);
			assert_int_equal(io_rename("wal/x", segment_path(b), NULL), OK);
			struct outcome o = outcome_of("swapped segments");
			assert_int_equal(o.missing, 0);
			assert_int_equal(o.st.samples_lost, 0);
			ids_free(&o.g);
			sim_free(disk);
		}
	}
	sim_tape_free(x.tape);
}

static void a_duplicated_segment_counts_once(void **state)
{
	(void)state;
	struct fixture x;
	fixture_make(&x, true);
	for (uint64_t a = 1; a <= x.segments; a++) {
		struct sim *disk = disk_of(&x);
		char from[WAL_PATH_BYTES];
		wal_path_segment(from, "wal", a);
		copy_file(from, segment_path(x.segments + 5));
		struct outcome o = outcome_of("a copy behind the log");
		assert_int_equal(o.missing, 0);
		ids_free(&o.g);
		sim_free(disk);

		/* In place of another one: that one is lost, and this counts once. */
		for (uint64_t b = 1; b < x.segments; b++) {
			if (b == a)
				continue;
			disk = disk_of(&x);
			copy_file(from, segment_path(b));
			o = outcome_of("a copy over another segment");
			size_t in_it = 0;
			for (size_t i = 0; i < x.n; i++)
				in_it += x.pieces[i].segment == b && x.pieces[i].id != 0;
			assert_int_equal(o.missing, in_it);
			assert_int_equal(o.st.samples_lost, in_it);
			ids_free(&o.g);
			sim_free(disk);
		}
	}
	sim_tape_free(x.tape);
}

/* A segment of another log, put where one of ours was or behind it. */
static void a_foreign_segment_is_not_read(void **state)
{
	(void)state;
	struct fixture x;
	struct err err = {0};
	errc rc;
	fixture_make(&x, true);
	struct sim *disk = sim_tape_crash(x.tape, 0, SIM_KEEP_ALL, seed + 1); /* or the other log would draw the same number */
	sim_use(disk);
	struct ids g = {0};
	struct wal *w = ids_open("other", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
	assert_non_null(w);
	for (uint64_t id = 500; id < 510; id++)
		assert_int_equal(ids_write(w, id, 30, &err), OK);
	wal_close(w);
	copy_file("other/00000001.wal", segment_path(x.segments + 1));
	struct outcome o = outcome_of("foreign segment");
	assert_int_equal(o.missing, 0);
	assert_false(ids_has(&o.g, 500));
	assert_int_equal(o.st.damaged_ranges, 1);
	ids_free(&o.g);
	sim_free(disk);
	sim_tape_free(x.tape);
}

/* A newer format is refused in words and nothing is touched. */
static void a_newer_version_is_refused(void **state)
{
	(void)state;
	struct fixture x;
	fixture_make(&x, true);
	struct sim *disk = disk_of(&x);
	uint8_t header[WAL_HEADER_BYTES];
	size_t got;
	int fd;
	assert_int_equal(io_open(segment_path(2), IO_READ | IO_WRITE, &fd, NULL), OK);
	assert_int_equal(io_pread(fd, header, sizeof header, 0, &got, NULL), OK);
	put_le32(header + 8, WAL_VERSION + 1);
	put_le32(header + 76, crc32c(0, header, 76));
	assert_int_equal(io_pwrite(fd, header, sizeof header, 0, NULL), OK);
	io_close(fd);
	uint64_t ops = sim_ops(disk);
	struct ids g = {0};
	struct err err = {0};
	errc rc;
	assert_null(ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err));
	assert_int_equal(rc, ERR_UNSUPPORTED);
	assert_non_null(strstr(err.msg, "version 3"));
	assert_int_equal(sim_ops(disk), ops + 1); /* the sync of the parent directory */
	sim_free(disk);
	sim_tape_free(x.tape);
}

/* Pages that the disk refuses to read cost their frames. */
static void unreadable_pages_cost_their_frames(void **state)
{
	(void)state;
	struct fixture x;
	fixture_make(&x, true);
	struct err err = {0};
	for (uint64_t n = 1;; n++) {
		struct sim *disk = disk_of(&x);
		struct ids g = {0};
		errc rc;
		sim_fault(disk, &(struct sim_fault){.calls = SIM_READ, .nth = n, .error = EIO});
		struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
		uint64_t hits = sim_fault_hits(disk);
		assert_non_null(w);
		assert_int_equal(g.wrong, 0);
		assert_int_equal(g.n, LAST); /* one failure: the page is asked for again */
		wal_close(w);
		ids_free(&g);
		sim_free(disk);
		if (hits == 0)
			break;
	}
	for (uint64_t segment = 1; segment <= x.segments; segment++) {
		struct sim *disk = disk_of(&x);
		struct ids g = {0};
		struct wal_replay_stats st;
		errc rc;
		sim_fault(disk, &(struct sim_fault){.calls = SIM_READ, .path = segment_path(segment), .nth = 1, .error = EIO, .sticky = true});
		struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, &st, &rc, &err);
		sim_fault(disk, NULL);
		assert_non_null(w);
		assert_int_equal(g.wrong, 0);
		size_t in_it = 0;
		for (size_t i = 0; i < x.n; i++)
			in_it += x.pieces[i].segment == segment && x.pieces[i].id != 0;
		assert_int_equal(g.n, LAST - in_it);
		if (segment < x.segments)
			assert_int_equal(st.samples_lost, in_it);
		wal_close(w);
		ids_free(&g);
		sim_free(disk);
	}
	sim_tape_free(x.tape);
}

/* ---- checkpoints ---- */

static struct sim_tape *checkpoint_make(uint64_t *size)
{
	struct sim *sim = sim_new(seed);
	struct err err = {0};
	errc rc;
	struct ids g = {0};
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, NULL, &rc, &err);
	for (uint64_t id = 1; id <= LAST; id++)
		assert_int_equal(ids_write(w, id, id % 7 * 50, &err), OK);
	struct wal_checkpoint *cp;
	struct buf b;
	buf_init(&b, MIB);
	struct wal_status st;
	wal_status(w, &st);
	assert_int_equal(wal_checkpoint_begin(w, st.segment_now, &cp, &err), ERR_INVALID);
	assert_int_equal(wal_checkpoint_begin(w, 2, &cp, &err), OK);
	for (int i = 0; i < 300; i++) {
		struct wal_series_enc e;
		buf_clear(&b);
		wal_series_begin(&e, &b, SPAN("tenant-a"));
		char wire[6000];
		uint64_t x = (uint64_t)i + 99;
		for (size_t k = 0; k < sizeof wire; k++) {
			x = x * 6364136223846793005u + 1442695040888963407u;
			wire[k] = (char)(x >> 56);
		}
		wal_series_put(&e, (uint64_t)i, span_of(wire, sizeof wire), &(struct wal_keys){0});
		wal_series_end(&e);
		assert_int_equal(wal_checkpoint_put(cp, span_of(b.p, b.n), &err), OK);
	}
	buf_free(&b);
	assert_int_equal(wal_checkpoint_finish(cp, &err), OK);
	wal_status(w, &st);
	assert_int_equal(st.segment_first, 3);
	wal_close(w);
	*size = file_size("wal/00000002.checkpoint.a");
	assert_int_equal(*size, file_size("wal/00000002.checkpoint.b"));
	assert_int_equal(file_size(segment_path(1)), 0);
	assert_int_equal(file_size(segment_path(2)), 0);
	sim_record(sim);
	struct sim_tape *tape = sim_tape_take(sim);
	sim_free(sim);
	return tape;
}

static void checkpoint_check(const char *what, uint64_t definitions, bool damaged)
{
	struct ids g = {0};
	struct wal_replay_stats st;
	struct err err = {0};
	errc rc;
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, &st, &rc, &err);
	if (!w)
		fail_msg("%s: %s", what, err.msg);
	if (g.definitions != definitions || g.wrong > 0 || st.frames_lost > 0 || (damaged && st.damaged_ranges == 0))
		fail_msg("%s: %" PRIu64 " definitions, %" PRIu64 " frames lost, %" PRIu64 " ranges", what, g.definitions, st.frames_lost,
			st.damaged_ranges);
	for (uint64_t id = LAST - 5; id <= LAST; id++)
		assert_true(ids_has(&g, id));
	wal_close(w);
	ids_free(&g);
}

/* Damage in one copy costs nothing; either copy alone is enough. */
static void a_checkpoint_survives_damage(void **state)
{
	(void)state;
	uint64_t size;
	struct sim_tape *tape = checkpoint_make(&size);
	static const char *const path[2] = {"wal/00000002.checkpoint.a", "wal/00000002.checkpoint.b"};
	uint64_t step = full ? 499 : 50021;
	for (int copy = 0; copy < 2; copy++) {
		for (uint64_t off = 0; off < size; off += off < 200 ? 3 : step) {
			char what[100];
			snprintf(what, sizeof what, "%s byte %" PRIu64, path[copy], off);
			struct sim *disk = sim_tape_crash(tape, 0, SIM_KEEP_ALL, seed);
			sim_use(disk);
			assert_true(sim_flip(disk, path[copy], off, 0x20));
			checkpoint_check(what, 300, copy == 0 && off < size - 72);
			sim_free(disk);
		}
		struct sim *disk = sim_tape_crash(tape, 0, SIM_KEEP_ALL, seed);
		sim_use(disk);
		assert_int_equal(io_unlink(path[copy], NULL), OK);
		checkpoint_check("one copy deleted", 300, true);
		assert_int_equal(file_size(path[copy]), size); /* made again from the other */
		checkpoint_check("one copy made again", 300, false);
		sim_free(disk);
	}
	/* Damage in both, in different frames. */
	struct sim *disk = sim_tape_crash(tape, 0, SIM_KEEP_ALL, seed);
	sim_use(disk);
	sim_flip(disk, path[0], 1000, 1);
	sim_flip(disk, path[1], size - 10000, 1);
	checkpoint_check("both damaged", 300, true);
	sim_free(disk);
	/* Both headers: numbers come from what follows. */
	disk = sim_tape_crash(tape, 0, SIM_KEEP_ALL, seed);
	sim_use(disk);
	sim_flip(disk, path[0], 20, 1);
	sim_flip(disk, path[1], 20, 1);
	checkpoint_check("both headers", 300, true);
	sim_free(disk);
	sim_tape_free(tape);
}

/* Both copies damaged in the same frame: that frame is counted, the rest is there. */
static void both_copies_damaged_is_counted(void **state)
{
	(void)state;
	uint64_t size;
	struct sim_tape *tape = checkpoint_make(&size);
	struct sim *disk = sim_tape_crash(tape, 0, SIM_KEEP_ALL, seed);
	sim_use(disk);
	sim_flip(disk, "wal/00000002.checkpoint.a", 1000, 1);
	sim_flip(disk, "wal/00000002.checkpoint.b", 1000, 1);
	struct ids g = {0};
	struct wal_replay_stats st;
	struct err err = {0};
	errc rc;
	struct wal *w = ids_open("wal", WAL_SYNC_ACK, SEGMENT, &g, &st, &rc, &err);
	assert_non_null(w);
	assert_int_equal(st.frames_lost, 1);
	assert_in_range(g.definitions, 150, 299);
	wal_close(w);
	ids_free(&g);
	sim_free(disk);
	sim_tape_free(tape);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flipped_byte_costs_its_frame),
		cmocka_unit_test(a_flipped_byte_costs_its_frame_after_a_crash),
		cmocka_unit_test(a_zeroed_page_costs_its_frames),
		cmocka_unit_test(every_truncation),
		cmocka_unit_test(a_deleted_segment_is_named_and_counted),
		cmocka_unit_test(swapped_segments_are_found_where_they_belong),
		cmocka_unit_test(a_duplicated_segment_counts_once),
		cmocka_unit_test(a_foreign_segment_is_not_read),
		cmocka_unit_test(a_newer_version_is_refused),
		cmocka_unit_test(unreadable_pages_cost_their_frames),
		cmocka_unit_test(a_checkpoint_survives_damage),
		cmocka_unit_test(both_copies_damaged_is_counted),
	};
	full = getenv("VARVE_FULL") != NULL;
	const char *s = getenv("VARVE_SEED");
	if (s)
		seed = strtoull(s, NULL, 10);
	print_message("seed %" PRIu64 "\n", seed);
	log_setup(getenv("VARVE_LOG") ? LOG_INFO : LOG_ERROR + 1, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
