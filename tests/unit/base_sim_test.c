/* tests/unit/base_sim_test.c - the simulated disk keeps its own promises, or nothing proven with it counts. */
#include <errno.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"

static int open_rw(const char *path)
{
	int fd;
	assert_int_equal(io_open(path, IO_READ | IO_WRITE | IO_CREATE, &fd, NULL), OK);
	return fd;
}

static void put(const char *path, const char *text, bool sync_file, bool sync_dir)
{
	int fd = open_rw(path);
	assert_int_equal(io_pwrite(fd, text, strlen(text), 0, NULL), OK);
	if (sync_file)
		assert_int_equal(io_fdatasync(fd, NULL), OK);
	if (sync_dir)
		assert_int_equal(io_fsync_dir(".", NULL), OK);
	io_close(fd);
}

/* The file's text, "(absent)" when there is none. */
static const char *get(const char *path)
{
	static char text[16384];
	int fd;
	size_t n;
	if (io_open(path, IO_READ, &fd, NULL))
		return "(absent)";
	assert_int_equal(io_pread(fd, text, sizeof text - 1, 0, &n, NULL), OK);
	io_close(fd);
	text[n] = 0;
	return text;
}

/* What survives DROP_ALL is exactly what was synced: the file's bytes by the file, its name by the directory. */
static void only_synced_data_survives(void **state)
{
	(void)state;
	for (int bits = 0; bits < 4; bits++) {
		struct sim *s = sim_new(1);
		put("a", "hello", bits & 1, bits & 2);
		assert_string_equal(get("a"), "hello");
		sim_power_on(s, SIM_DROP_ALL, 1);
		assert_string_equal(get("a"), !(bits & 2) ? "(absent)" : (bits & 1) ? "hello" : "");
		sim_free(s);
		s = sim_new(1);
		put("a", "hello", bits & 1, bits & 2);
		sim_power_on(s, SIM_KEEP_ALL, 1);
		assert_string_equal(get("a"), "hello");
		sim_free(s);
	}
}

static void loss_modes_differ_as_told(void **state)
{
	(void)state;
	static const char *const want_new[SIM_LOSSES] = {
		[SIM_KEEP_ALL] = "new", [SIM_DROP_ALL] = "old", [SIM_DROP_ENTRIES] = "old", [SIM_ENTRIES_FIRST] = "", [SIM_GROW_ZEROS] = ""};
	for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
		struct sim *s = sim_new(1);
		put("f", "old", true, true);
		put("f.tmp", "new", false, false);
		assert_int_equal(io_rename("f.tmp", "f", NULL), OK);
		sim_power_on(s, loss, 7);
		const char *got = get("f");
		if (want_new[loss])
			assert_string_equal(got, want_new[loss]);
		else
			assert_true(strcmp(got, "old") == 0 || strcmp(got, "new") == 0 || strcmp(got, "") == 0);
		struct io_stat st;
		assert_int_equal(io_stat("f", &st, NULL), OK);
		if (loss == SIM_ENTRIES_FIRST)
			assert_int_equal(st.size, 0);
		if (loss == SIM_GROW_ZEROS)
			assert_int_equal(st.size, 3);
		sim_free(s);
	}
}

/* After rename, the file is there under one name at least, and under both names only when the directories differ in age. */
static void rename_is_atomic(void **state)
{
	(void)state;
	unsigned both = 0, old_only = 0, new_only = 0;
	for (uint64_t seed = 0; seed < 200; seed++) {
		struct sim *s = sim_new(seed);
		assert_int_equal(io_mkdir("a", NULL), OK);
		assert_int_equal(io_mkdir("b", NULL), OK);
		assert_int_equal(io_fsync_dir(".", NULL), OK);
		put("a/x", "data", true, false);
		assert_int_equal(io_fsync_dir("a", NULL), OK);
		assert_int_equal(io_rename("a/x", "b/y", NULL), OK);
		assert_int_equal(io_fsync_dir("a", NULL), OK); /* the wrong directory: not enough */
		sim_power_on(s, SIM_TEAR_SECTORS, seed);
		bool old = strcmp(get("a/x"), "data") == 0, new = strcmp(get("b/y"), "data") == 0;
		assert_true(old || new);
		both += old && new;
		old_only += old && !new;
		new_only += new && !old;
		sim_free(s);
	}
	assert_int_equal(both, 0);
	assert_in_range(old_only, 60, 140);
	assert_in_range(new_only, 60, 140);
}

/* A name that was given away and taken again: the file that had it is found under one name or the other, after any cut and any sync. */
static void a_reused_name_loses_nothing(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 200; seed++) {
		for (int sync = 0; sync < 2; sync++) {
			struct sim *s = sim_new(seed);
			assert_int_equal(io_mkdir("a", NULL) | io_mkdir("b", NULL) | io_fsync_dir(".", NULL), OK);
			put("a/x", "one", true, false);
			assert_int_equal(io_fsync_dir("a", NULL), OK);
			assert_int_equal(io_rename("a/x", "b/y", NULL), OK);
			put("a/x", "two", true, false);
			if (sync)
				assert_int_equal(io_fsync_dir("a", NULL), OK);
			sim_power_on(s, seed % 2 ? SIM_TEAR_SECTORS : sync ? SIM_DROP_ALL : SIM_TEAR_PAGES, seed);
			bool moved = strcmp(get("b/y"), "one") == 0;
			assert_true(moved || strcmp(get("a/x"), "one") == 0);
			if (sync)
				assert_true(moved && strcmp(get("a/x"), "two") == 0);
			sim_free(s);
		}
	}
}

/* A later change of a name is never there without the earlier one. */
static void names_do_not_go_back(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 300; seed++) {
		struct sim *s = sim_new(seed);
		char name[8];
		put("cur", "0", true, true);
		for (int i = 1; i <= 5; i++) {
			snprintf(name, sizeof name, "%d", i);
			put("tmp", name, true, false);
			assert_int_equal(io_rename("tmp", "cur", NULL), OK);
			if (i == 2)
				assert_int_equal(io_fsync_dir(".", NULL), OK);
		}
		sim_power_on(s, SIM_TEAR_PAGES, seed);
		int got = atoi(get("cur"));
		assert_in_range(got, 2, 5);
		sim_free(s);
	}
}

/* Torn writes: each sector is old or new, all mixtures occur, and nothing else does. */
static void sectors_tear(void **state)
{
	(void)state;
	unsigned seen = 0;
	char old[4 * 512], new[4 * 512];
	memset(old, 'o', sizeof old);
	memset(new, 'n', sizeof new);
	for (uint64_t seed = 0; seed < 400; seed++) {
		struct sim *s = sim_new(seed);
		int fd = open_rw("f");
		assert_int_equal(io_pwrite(fd, old, sizeof old, 0, NULL), OK);
		assert_int_equal(io_fdatasync(fd, NULL), OK);
		assert_int_equal(io_fsync_dir("/", NULL), OK);
		assert_int_equal(io_pwrite(fd, new, sizeof new, 0, NULL), OK);
		sim_power_on(s, SIM_TEAR_SECTORS, seed);
		const char *got = get("f");
		assert_int_equal(strlen(got), sizeof old);
		unsigned mask = 0;
		for (size_t i = 0; i < 4; i++) {
			assert_true(memcmp(got + i * 512, old, 512) == 0 || memcmp(got + i * 512, new, 512) == 0);
			mask |= (got[i * 512] == 'n' ? 1u : 0) << i;
		}
		seen |= 1u << mask;
		sim_free(s);
	}
	assert_int_equal(seen, 0xffff);
}

/* What a failed sync lost does not come back by syncing again. */
static void failed_sync_loses_its_data(void **state)
{
	(void)state;
	struct sim *s = sim_new(3);
	int fd = open_rw("f");
	assert_int_equal(io_fsync_dir(".", NULL), OK);
	assert_int_equal(io_pwrite(fd, "lost", 4, 0, NULL), OK);
	sim_fault(s, &(struct sim_fault){.calls = SIM_SYNC, .nth = 1, .error = EIO});
	struct err err = {0};
	assert_int_equal(io_fdatasync(fd, &err), ERR_IO);
	assert_int_equal(sim_fault_hits(s), 1);
	assert_int_equal(io_fdatasync(fd, NULL), OK);
	assert_string_equal(get("f"), "lost");
	io_close(fd);
	sim_power_on(s, SIM_KEEP_ALL, 0);
	assert_memory_equal(get("f"), "\0\0\0\0", 4);
	sim_free(s);
}

static void sizes_and_preallocation(void **state)
{
	(void)state;
	struct sim *s = sim_new(4);
	uint64_t size, total, left;
	int fd = open_rw("f");
	assert_int_equal(io_fsync_dir(".", NULL), OK);
	sim_capacity(s, 64 * 4096);
	assert_int_equal(io_allocate(fd, 0, 32 * 4096, NULL), OK);
	assert_int_equal(io_allocate(fd, 0, 65 * 4096, NULL), ERR_NOSPACE);
	assert_int_equal(io_size(fd, &size, NULL), OK);
	assert_int_equal(size, 32 * 4096);
	assert_int_equal(io_statfs(".", &total, &left, NULL), OK);
	assert_int_equal(total, 64 * 4096);
	assert_int_equal(left, 32 * 4096);
	int more = open_rw("g");
	static char page[4096];
	errc rc = OK;
	for (uint64_t i = 0; rc == OK; i++) {
		rc = io_pwrite(more, page, sizeof page, i * sizeof page, NULL);
		assert_true(i <= 32);
	}
	assert_int_equal(rc, ERR_NOSPACE);
	assert_int_equal(io_pwrite(fd, page, sizeof page, 4096, NULL), OK); /* into preallocated room: always */
	assert_int_equal(io_unlink("g", NULL), OK);
	assert_int_equal(io_statfs(".", &total, &left, NULL), OK);
	assert_int_equal(left, 0); /* still open */
	io_close(more);
	assert_int_equal(io_statfs(".", &total, &left, NULL), OK);
	assert_int_equal(left, 32 * 4096);

	assert_int_equal(io_pwrite(fd, "abc", 3, 0, NULL), OK);
	assert_int_equal(io_truncate(fd, 2, NULL), OK);
	assert_int_equal(io_truncate(fd, 4, NULL), OK);
	char four[4];
	assert_int_equal(io_pread_full(fd, four, 4, 0, NULL), OK);
	assert_memory_equal(four, "ab\0\0", 4);
	io_close(fd);
	assert_int_equal(sim_open_fds(s), 0);
	sim_free(s);
}

/* io_write_file through every operation, loss and 40 seeds: the old or the new content, and after OK the new one. */
static void write_file_is_atomic(void **state)
{
	(void)state;
	unsigned states = 0;
	for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
		for (uint64_t seed = 0; seed < 40; seed++) {
			for (uint64_t n = 0;; n++) {
				struct sim *s = sim_new(seed);
				assert_int_equal(io_write_file("f", SPAN("old content"), NULL), OK);
				sim_power_off_after(s, n);
				errc rc = io_write_file("f", SPAN("new, longer content"), NULL);
				bool off = sim_power_is_off(s);
				sim_power_on(s, loss, seed * 100 + n);
				const char *got = get("f");
				if (rc == OK)
					assert_string_equal(got, "new, longer content");
				else
					assert_true(strcmp(got, "old content") == 0 || strcmp(got, "new, longer content") == 0);
				/* and it can be written again */
				assert_int_equal(io_write_file("f", SPAN("third"), NULL), OK);
				assert_string_equal(get("f"), "third");
				sim_free(s);
				states++;
				if (!off)
					break;
			}
		}
	}
	printf("%u crash states\n", states);
}

/* The tape's state after k operations is the live disk's, for every k and loss. */
static void tape_equals_life(void **state)
{
	(void)state;
	struct sim *s = sim_new(9);
	sim_record(s);
	assert_int_equal(io_mkdir("d", NULL), OK);
	assert_int_equal(io_write_file("d/a", SPAN("one"), NULL), OK);
	put("d/b", "two", false, true);
	assert_int_equal(io_link("d/b", "d/c", NULL), OK);
	assert_int_equal(io_unlink("d/a", NULL), OK);
	struct sim_tape *t = sim_tape_take(s);
	uint64_t n = sim_tape_len(t);
	assert_int_equal(n, sim_ops(s));
	sim_free(s);
	for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
		for (uint64_t k = 0; k <= n; k++) {
			char text[3][64];
			for (int way = 0; way < 2; way++) {
				if (way == 0) {
					s = sim_tape_crash(t, k, loss, 5);
					sim_use(s);
				} else {
					s = sim_new(9);
					sim_power_off_after(s, k);
					errc rc = io_mkdir("d", NULL);
					if (rc == OK)
						rc = io_write_file("d/a", SPAN("one"), NULL);
					int fd = -1;
					if (rc == OK && io_open("d/b", IO_WRITE | IO_CREATE, &fd, NULL) == OK)
						rc = io_pwrite(fd, "two", 3, 0, NULL);
					rc = rc ? rc : io_fsync_dir(".", NULL);
					rc = rc ? rc : io_link("d/b", "d/c", NULL);
					rc = rc ? rc : io_unlink("d/a", NULL);
					io_close(fd);
					assert_true((rc != OK) == (k < n));
					sim_power_on(s, loss, 5 ^ k * UINT64_C(0x9e3779b97f4a7c15));
				}
				for (int i = 0; i < 3; i++) {
					char path[] = "d/a";
					path[2] = (char)('a' + i);
					if (way == 0)
						snprintf(text[i], sizeof text[i], "%s", get(path));
					else
						assert_string_equal(get(path), text[i]);
				}
				sim_free(s);
			}
		}
	}
	char what[128];
	assert_string_equal(sim_tape_text(t, 1, what, sizeof what), "mkdir d");
	assert_string_equal(sim_tape_text(t, 3, what, sizeof what), "pwrite d/a.tmp 0+3");
	sim_tape_free(t);
}

static void faults_hit_the_nth_call(void **state)
{
	(void)state;
	for (uint64_t n = 1; n <= 6; n++) {
		struct sim *s = sim_new(n);
		sim_fault(s, &(struct sim_fault){.calls = SIM_CHANGES, .nth = n, .error = ENOSPC});
		struct err err = {0};
		errc rc = io_write_file("f", SPAN("x"), &err);
		assert_int_equal(sim_fault_hits(s), n <= 6);
		assert_int_equal(rc, n <= 6 ? ERR_NOSPACE : OK); /* create, write, sync, rename, open of the directory, sync */
		assert_int_equal(sim_open_fds(s), 0);
		sim_free(s);
	}
	/* half a write, then the error, for good */
	struct sim *s = sim_new(1);
	int fd = open_rw("f");
	sim_fault(s, &(struct sim_fault){.calls = SIM_WRITE, .nth = 2, .error = EIO, .sticky = true, .partial = true});
	assert_int_equal(io_pwrite(fd, "12345678", 8, 0, NULL), OK);
	assert_int_equal(io_pwrite(fd, "abcdefgh", 8, 0, NULL), ERR_IO);
	assert_string_equal(get("f"), "abcd5678");
	assert_int_equal(io_pwrite(fd, "abcdefgh", 8, 0, NULL), ERR_IO);
	/* half a write without an error is finished by the loop above the seam */
	sim_fault(s, &(struct sim_fault){.calls = SIM_WRITE, .nth = 1, .partial = true});
	assert_int_equal(io_pwrite(fd, "ABCDEFGH", 8, 0, NULL), OK);
	assert_string_equal(get("f"), "ABCDEFGH");
	assert_true(sim_flip(s, "f", 1, 0x20));
	assert_string_equal(get("f"), "AbCDEFGH");
	assert_false(sim_flip(s, "f", 8, 1));
	io_close(fd);
	sim_free(s);
}

static void locks_and_old_descriptors(void **state)
{
	(void)state;
	struct sim *s = sim_new(1);
	int a = open_rw("lock"), b = open_rw("lock");
	assert_int_equal(io_lock(a, NULL), OK);
	assert_int_equal(io_lock(b, NULL), ERR_AGAIN);
	io_close(a);
	assert_int_equal(io_lock(b, NULL), OK);
	sim_power_on(s, SIM_KEEP_ALL, 0);
	uint64_t size;
	assert_int_equal(io_size(b, &size, NULL), ERR_IO);
	int c = open_rw("lock");
	assert_int_not_equal(b, c);
	assert_int_equal(io_lock(c, NULL), OK);
	io_close(c);
	sim_free(s);
}

static void the_clock_obeys(void **state)
{
	(void)state;
	struct sim *s = sim_new(1);
	sim_freeze(s);
	sim_set_now(s, 1000);
	int64_t mono = io_mono_ms();
	assert_int_equal(io_now_ms(), 1000);
	io_sleep_ms(3600000);
	assert_int_equal(io_now_ms(), 3601000);
	assert_int_equal(io_mono_ms() - mono, 3600000);
	uint64_t a = io_random_u64();
	sim_free(s);
	s = sim_new(1);
	assert_true(io_random_u64() == a);
	sim_free(s);
}

static void allocations_fail_on_demand(void **state)
{
	(void)state;
	for (uint64_t n = 1; n <= 4; n++) {
		fail_alloc_at(n, n == 4);
		void *p = malloc(1), *q = calloc(1, 1), *r = strdup("x");
		fail_alloc_pause();
		void *own = malloc(1);
		fail_alloc_resume();
		assert_int_equal(fail_alloc_count(), 3);
		assert_int_equal(fail_alloc_off(), n <= 3);
		assert_true((p == NULL) == (n == 1));
		assert_true((q == NULL) == (n == 2));
		assert_true((r == NULL) == (n == 3));
		assert_non_null(own);
		free(p);
		free(q);
		free(r);
		free(own);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_synced_data_survives),
		cmocka_unit_test(loss_modes_differ_as_told),
		cmocka_unit_test(rename_is_atomic),
		cmocka_unit_test(a_reused_name_loses_nothing),
		cmocka_unit_test(names_do_not_go_back),
		cmocka_unit_test(sectors_tear),
		cmocka_unit_test(failed_sync_loses_its_data),
		cmocka_unit_test(sizes_and_preallocation),
		cmocka_unit_test(write_file_is_atomic),
		cmocka_unit_test(tape_equals_life),
		cmocka_unit_test(faults_hit_the_nth_call),
		cmocka_unit_test(locks_and_old_descriptors),
		cmocka_unit_test(the_clock_obeys),
		cmocka_unit_test(allocations_fail_on_demand),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
