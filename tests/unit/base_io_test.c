/* tests/unit/base_io_test.c - the checked calls do the same on the real disk and on the simulated one; interruptions and short transfers
 * do not show. */
#include <errno.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/io.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"
#include "tests/support/tmp.h"

static struct sim *sim;

/* A directory on the disk that the test runs on. */
static const char *setup_dir(bool simulated)
{
	if (!simulated)
		return tmp_dir();
	sim = sim_new(1);
	assert_int_equal(io_mkdir("t", NULL), OK);
	return "t";
}

static void teardown_dir(void)
{
	if (sim)
		assert_int_equal(sim_open_fds(sim), 0);
	sim_free(sim);
	sim = NULL;
}

static void files(bool simulated)
{
	const char *dir = setup_dir(simulated);
	struct err err = {0};
	struct io_stat st;
	int fd, other;
	char text[32];
	size_t got;
	uint64_t size;
	const char *path = tmp_path("%s/f", dir);
	assert_int_equal(io_open(path, IO_READ, &fd, &err), ERR_NOTFOUND);
	assert_int_equal(fd, -1);
	assert_non_null(strstr(err.msg, path));
	assert_int_equal(io_stat(path, &st, NULL), OK);
	assert_false(st.exists);
	assert_int_equal(io_open(path, IO_READ | IO_WRITE | IO_CREATE | IO_EXCL, &fd, NULL), OK);
	assert_int_equal(io_open(path, IO_WRITE | IO_CREATE | IO_EXCL, &other, NULL), ERR_EXISTS);
	assert_int_equal(io_pwrite(fd, "hello", 5, 3, NULL), OK);
	assert_int_equal(io_size(fd, &size, NULL), OK);
	assert_int_equal(size, 8);
	assert_int_equal(io_pread(fd, text, 32, 0, &got, NULL), OK);
	assert_int_equal(got, 8);
	assert_memory_equal(text, "\0\0\0hello", 8);
	assert_int_equal(io_pread_full(fd, text, 9, 0, &err), ERR_CORRUPT);
	assert_int_equal(io_allocate(fd, 0, 4096, NULL), OK);
	assert_int_equal(io_truncate(fd, 4, NULL), OK);
	assert_int_equal(io_stat(path, &st, NULL), OK);
	assert_true(st.exists && !st.is_dir && st.size == 4);
	assert_in_range(io_now_ms() - st.mtime_ms, 0, 60000);
	const void *map;
	assert_int_equal(io_map(fd, 4, &map, NULL), OK);
	assert_memory_equal(map, "\0\0\0h", 4);
	io_unmap(map, 4);
	assert_int_equal(io_map(fd, 0, &map, NULL), OK);
	io_unmap(map, 0);
	assert_int_equal(io_fdatasync(fd, NULL) | io_fsync(fd, NULL) | io_fsync_dir(dir, NULL), OK);
	assert_int_equal(io_open(path, IO_READ | IO_WRITE, &other, NULL), OK);
	assert_int_equal(io_lock(fd, NULL), OK);
	assert_int_equal(io_lock(other, &err), ERR_AGAIN);
	io_close(fd);
	assert_int_equal(io_lock(other, NULL), OK);
	io_close(other);
	assert_int_equal(io_open(path, IO_WRITE | IO_CREATE | IO_TRUNC, &fd, NULL), OK);
	assert_int_equal(io_size(fd, &size, NULL), OK);
	assert_int_equal(size, 0);
	io_close(fd);
	io_close(-1);
	assert_int_equal(io_open(path, IO_READ | IO_DIR, &fd, NULL), ERR_IO);
	assert_int_equal(io_open(dir, IO_WRITE, &fd, NULL), ERR_IO);
	uint64_t total, left;
	assert_int_equal(io_statfs(dir, &total, &left, NULL), OK);
	assert_true(total >= left && left > 0);
	teardown_dir();
}

static void directories(bool simulated)
{
	const char *dir = setup_dir(simulated);
	struct err err = {0};
	struct arena a;
	char **names;
	size_t n;
	arena_init(&a, 1 << 20);
	assert_int_equal(io_mkdirs(tmp_path("%s/a/b//c/", dir), NULL), OK);
	assert_int_equal(io_mkdirs(tmp_path("%s/a/b/c", dir), NULL), OK);
	for (int i = 99; i >= 0; i--)
		assert_int_equal(io_write_file(tmp_path("%s/a/f%02d", dir, i * 37 % 100), SPAN("x"), NULL), OK);
	assert_int_equal(io_listdir(tmp_path("%s/a", dir), &a, &names, &n, NULL), OK);
	assert_int_equal(n, 101);
	for (size_t i = 1; i < n; i++)
		assert_true(strcmp(names[i - 1], names[i]) < 0);
	assert_string_equal(names[0], "b");
	assert_int_equal(io_listdir(tmp_path("%s/a/b/c", dir), &a, &names, &n, NULL), OK);
	assert_int_equal(n, 0);
	assert_int_equal(io_listdir(tmp_path("%s/none", dir), &a, &names, &n, NULL), ERR_NOTFOUND);
	assert_int_not_equal(io_rmdir(tmp_path("%s/a", dir), NULL), OK);
	assert_int_equal(io_mkdir(tmp_path("%s/none/x", dir), NULL), ERR_NOTFOUND);
	assert_int_equal(io_rename(tmp_path("%s/a/f00", dir), tmp_path("%s/a/f01", dir), NULL), OK);
	assert_int_equal(io_rename(tmp_path("%s/a/b", dir), tmp_path("%s/moved", dir), NULL), OK);
	assert_int_not_equal(io_rename(tmp_path("%s/moved", dir), tmp_path("%s/moved/c/d", dir), NULL), OK);
	assert_int_equal(io_link(tmp_path("%s/a/f02", dir), tmp_path("%s/l", dir), NULL), OK);
	assert_int_equal(io_link(tmp_path("%s/a/f02", dir), tmp_path("%s/l", dir), &err), ERR_EXISTS);
	assert_int_equal(io_unlink(tmp_path("%s/a/f02", dir), NULL), OK);
	assert_int_equal(io_unlink(tmp_path("%s/a/f02", dir), &err), ERR_NOTFOUND);
	struct span s;
	assert_int_equal(io_read_file(tmp_path("%s/l", dir), 100, &a, &s, NULL), OK);
	assert_true(span_is(s, "x"));
	assert_int_equal(io_remove_tree(tmp_path("%s/a", dir), NULL), OK);
	assert_int_equal(io_remove_tree(tmp_path("%s/a", dir), NULL), OK);
	assert_int_equal(io_remove_tree(tmp_path("%s/l", dir), NULL), OK);
	struct io_stat st;
	assert_int_equal(io_stat(tmp_path("%s/a", dir), &st, NULL), OK);
	assert_false(st.exists);
	assert_int_equal(io_stat(tmp_path("%s/moved/c", dir), &st, NULL), OK);
	assert_true(st.exists && st.is_dir);
	arena_free(&a);
	teardown_dir();
}

static void whole_files(bool simulated)
{
	const char *dir = setup_dir(simulated), *path = tmp_path("%s/whole", dir);
	struct arena a;
	struct span got;
	struct err err = {0};
	char *text = malloc(70000);
	memset(text, 'q', 70000);
	static const size_t sizes[] = {0, 1, 511, 512, 4095, 4096, 4097, 65535, 65536, 65537, 70000};
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		size_t n = sizes[i];
		arena_init(&a, 1 << 20);
		assert_int_equal(io_write_file(path, span_of(text, n), NULL), OK);
		assert_int_equal(io_read_file(path, n, &a, &got, NULL), OK);
		assert_true(got.n == n && memcmp(got.p, text, n) == 0 && got.p[n] == 0);
		if (n > 0)
			assert_int_equal(io_read_file(path, n - 1, &a, &got, &err), ERR_LIMIT);
		arena_free(&a);
	}
	struct io_stat st;
	assert_int_equal(io_stat(tmp_path("%s.tmp", path), &st, NULL), OK);
	assert_false(st.exists);
	free(text);
	teardown_dir();
}

static void on_the_real_disk(void **state)
{
	(void)state;
	files(false);
	directories(false);
	whole_files(false);
}

static void on_the_simulated_disk(void **state)
{
	(void)state;
	files(true);
	directories(true);
	whole_files(true);
}

/* ---- a disk that interrupts every call once and moves one to three bytes at a time ---- */

static unsigned interruptions, turns;

static bool interrupted(void)
{
	if (turns++ % 2)
		return false;
	interruptions++;
	errno = EINTR;
	return true;
}

static int slow_open(const char *path, int flags, mode_t mode)
{
	return interrupted() ? -1 : io_posix.open(path, flags, mode);
}

static ssize_t slow_pread(int fd, void *p, size_t n, off_t off)
{
	return interrupted() ? -1 : io_posix.pread(fd, p, n > 3 ? 1 + turns % 3 : n, off);
}

static ssize_t slow_pwrite(int fd, const void *p, size_t n, off_t off)
{
	return interrupted() ? -1 : io_posix.pwrite(fd, p, n > 3 ? 1 + turns % 3 : n, off);
}

static int slow_ftruncate(int fd, off_t n)
{
	return interrupted() ? -1 : io_posix.ftruncate(fd, n);
}

static void interruptions_do_not_show(void **state)
{
	(void)state;
	struct io_ops slow = io_posix;
	slow.open = slow_open;
	slow.pread = slow_pread;
	slow.pwrite = slow_pwrite;
	slow.ftruncate = slow_ftruncate;
	const char *path = tmp_path("%s/f", tmp_dir());
	io_ops = &slow;
	struct arena a;
	arena_init(&a, 1 << 16);
	char text[1000];
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (char)('a' + i % 26);
	struct span got;
	assert_int_equal(io_write_file(path, span_of(text, sizeof text), NULL), OK);
	assert_int_equal(io_read_file(path, 2000, &a, &got, NULL), OK);
	assert_int_equal(got.n, sizeof text);
	assert_memory_equal(got.p, text, sizeof text);
	int fd;
	assert_int_equal(io_open(path, IO_WRITE, &fd, NULL), OK);
	assert_int_equal(io_truncate(fd, 5, NULL), OK);
	io_close(fd);
	io_ops = &io_posix;
	assert_true(interruptions > 600);
	arena_free(&a);
}

/* Each call of each composed function fails once, with each errno that matters: the right class, no descriptor left, the old file whole. */
static void every_call_fails_once(void **state)
{
	(void)state;
	static const struct {
		int error;
		errc code;
	} e[] = {{EIO, ERR_IO}, {ENOSPC, ERR_NOSPACE}, {EDQUOT, ERR_NOSPACE}, {EROFS, ERR_DENIED}, {EMFILE, ERR_IO}};
	unsigned states = 0;
	for (size_t i = 0; i < sizeof e / sizeof *e; i++) {
		for (uint64_t n = 1;; n++) {
			struct sim *s = sim_new(n);
			struct arena a;
			struct span got;
			char **names;
			size_t count;
			struct err err = {0};
			arena_init(&a, 1 << 16);
			assert_int_equal(
				io_mkdirs("d/e", NULL) | io_write_file("d/f", SPAN("old"), NULL) | io_write_file("d/e/g", SPAN("g"), NULL), OK);
			sim_fault(s, &(struct sim_fault){.calls = SIM_ANY, .nth = n, .error = e[i].error});
			errc rc = io_write_file("d/f", SPAN("new"), &err);
			rc = rc ? rc : io_read_file("d/f", 100, &a, &got, &err);
			rc = rc ? rc : io_listdir("d", &a, &names, &count, &err);
			rc = rc ? rc : io_mkdirs("x/y/z", &err);
			rc = rc ? rc : io_remove_tree("d/e", &err);
			bool hit = sim_fault_hits(s) > 0;
			assert_int_equal(rc, hit ? e[i].code : OK);
			assert_true(!hit || strlen(err.msg) > 5);
			assert_int_equal(sim_open_fds(s), 0);
			sim_fault(s, NULL);
			assert_int_equal(io_read_file("d/f", 100, &a, &got, NULL), OK);
			assert_true(span_is(got, "old") || span_is(got, "new"));
			struct io_stat st;
			assert_int_equal(io_stat("d/f.tmp", &st, NULL), OK);
			assert_false(st.exists);
			arena_free(&a);
			sim_free(s);
			states++;
			if (!hit)
				break;
		}
	}
	printf("%u failing calls\n", states);
}

static void memory_fails_too(void **state)
{
	(void)state;
	for (uint64_t n = 1;; n++) {
		struct sim *s = sim_new(n);
		struct arena a;
		char **names;
		size_t count;
		struct span got;
		arena_init(&a, 1 << 16);
		assert_int_equal(io_mkdirs("d/e", NULL) | io_write_file("d/e/g", SPAN("g"), NULL), OK);
		fail_alloc_at(n, false);
		errc rc = io_read_file("d/e/g", 100, &a, &got, NULL);
		rc = rc ? rc : io_listdir("d", &a, &names, &count, NULL);
		rc = rc ? rc : io_remove_tree("d", NULL);
		bool hit = fail_alloc_off() > 0;
		assert_int_equal(rc, hit ? ERR_NOMEM : OK);
		assert_int_equal(sim_open_fds(s), 0);
		arena_free(&a);
		sim_free(s);
		if (!hit)
			break;
	}
}

/* On the real disk alone: the simulated one has no links. */
static void a_tree_goes_and_nothing_that_its_links_lead_to(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct io_stat st;
	assert_int_equal(io_mkdirs(tmp_path("%s/a/b", dir), NULL), OK);
	assert_int_equal(io_mkdirs(tmp_path("%s/kept/c", dir), NULL), OK);
	assert_int_equal(symlink(tmp_path("%s/kept", dir), tmp_path("%s/a/b/out", dir)), 0);
	assert_int_equal(symlink("nowhere", tmp_path("%s/a/dangling", dir)), 0);
	assert_int_equal(symlink("round", tmp_path("%s/a/round", dir)), 0);
	assert_int_equal(io_remove_tree(tmp_path("%s/a", dir), NULL), OK);
	assert_int_equal(io_stat(tmp_path("%s/a", dir), &st, NULL), OK);
	assert_false(st.exists);
	assert_int_equal(io_stat(tmp_path("%s/kept/c", dir), &st, NULL), OK);
	assert_true(st.exists && st.is_dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_tree_goes_and_nothing_that_its_links_lead_to),
		cmocka_unit_test(on_the_real_disk),
		cmocka_unit_test(on_the_simulated_disk),
		cmocka_unit_test(interruptions_do_not_show),
		cmocka_unit_test(every_call_fails_once),
		cmocka_unit_test(memory_fails_too),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
