/* Directories of blocks: leftovers go and nothing else does, removal is all or nothing, descriptors stay few under many readers. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block.h"
#include "tests/support/sim.h"
#include "tests/support/tmp.h"

static const char U1[] = "01HF7YAT000000000000000001";

static struct ulid ulid_parsed(const char *s)
{
	struct ulid u;
	assert_true(ulid_parse(span_cstr(s), &u));
	return u;
}

static void file_put(const char *path, const char *text)
{
	struct err err = {0};
	if (io_write_file(path, span_cstr(text), &err))
		fail_msg("%s", err.msg);
}

static bool there(const char *path)
{
	struct io_stat st;
	struct err err;
	assert_int_equal(io_stat(path, &st, &err), OK);
	return st.exists;
}

static void block_put(const char *dir)
{
	struct err err = {0};
	char chunks[256], path[300];
	snprintf(chunks, sizeof chunks, "%s/chunks", dir);
	assert_int_equal(io_mkdirs(chunks, &err), OK);
	snprintf(path, sizeof path, "%s/000001", chunks);
	file_put(path, "0123456789");
	snprintf(path, sizeof path, "%s/index", dir);
	file_put(path, "abc");
}

static void only_leftovers_go(void **state)
{
	(void)state;
	static const char *const go[] = {".tmp-for-creation", ".tmp-for-deletion", ".tmp"};
	static const char *const stay[] = {"01HF7YAT000000000000000001", "wal", "x.tmp", "01HF7YAT000000000000000001.tmp-for",
		"01HF7YAT000000000000000001.tmp2", "01HF7YAT00000000000000000.tmp", "Z1HF7YAT000000000000000001.tmp", "checkpoint.000001.tmp"};
	const char *dir = tmp_dir();
	struct err err = {0};
	for (size_t i = 0; i < 3; i++)
		block_put(tmp_path("%s/%s%s", dir, U1, go[i]));
	for (size_t i = 0; i < sizeof stay / sizeof *stay; i++)
		block_put(tmp_path("%s/%s", dir, stay[i]));
	assert_int_equal(block_clean_dir(dir, &err), OK);
	for (size_t i = 0; i < 3; i++)
		assert_false(there(tmp_path("%s/%s%s", dir, U1, go[i])));
	for (size_t i = 0; i < sizeof stay / sizeof *stay; i++)
		assert_true(there(tmp_path("%s/%s/chunks/000001", dir, stay[i])));
	assert_int_equal(block_clean_dir(tmp_path("%s/missing", dir), &err), ERR_NOTFOUND);
}

static void removed(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct err err = {0};
	block_put(tmp_path("%s/%s", dir, U1));
	block_put(tmp_path("%s/%s.tmp-for-deletion", dir, U1));
	assert_int_equal(block_remove(dir, ulid_parsed(U1), &err), OK);
	assert_false(there(tmp_path("%s/%s", dir, U1)));
	assert_false(there(tmp_path("%s/%s.tmp-for-deletion", dir, U1)));
	assert_int_equal(block_remove(dir, ulid_parsed(U1), &err), ERR_NOTFOUND);
}

/* Power cut after each operation of a removal: under the block's own name there is the whole block or nothing; never again once it was OK. */
static void removal_and_power_cuts(void **state)
{
	(void)state;
	struct err err = {0};
	struct sim *sim = sim_new(3);
	static const char path[] = "/b/01HF7YAT000000000000000001";
	block_put(path);
	assert_int_equal(io_fsync_dir("/", &err), OK);
	assert_int_equal(io_fsync_dir("/b", &err), OK);
	assert_int_equal(io_fsync_dir(path, &err), OK);
	sim_record(sim);
	assert_int_equal(block_remove("/b", ulid_parsed(U1), &err), OK);
	struct sim_tape *tape = sim_tape_take(sim);
	for (uint64_t k = 0; k <= sim_tape_len(tape); k++)
		for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
			struct sim *after = sim_tape_crash(tape, k, loss, k);
			sim_use(after);
			bool is_there = there(path);
			assert_true(!is_there || k < sim_tape_len(tape));
			if (is_there)
				assert_true(there("/b/01HF7YAT000000000000000001/index") && there("/b/01HF7YAT000000000000000001/chunks/000001"));
			assert_int_equal(block_clean_dir("/b", &err), OK);
			assert_false(there("/b/01HF7YAT000000000000000001.tmp-for-deletion"));
			sim_free(after);
		}
	sim_tape_free(tape);
	sim_free(sim);
}

static void files_of_a_block(void **state)
{
	(void)state;
	struct err err = {0};
	struct sim *sim = sim_new(1);
	struct block_files *f;
	char buf[16];
	uint64_t size;
	block_put("/b");
	assert_int_equal(block_files_dir("/b", &f, &err), OK);
	for (int again = 0; again < 2; again++) {
		assert_int_equal(f->read(f, "chunks/000001", 3, 4, buf, &err), OK);
		assert_memory_equal(buf, "3456", 4);
		assert_int_equal(f->read(f, "chunks/000001", 10, 0, buf, &err), OK);
		assert_int_equal(f->read(f, "chunks/000001", 7, 4, buf, &err), ERR_CORRUPT);
		assert_non_null(strstr(err.msg, "/b/chunks/000001"));
		assert_int_equal(f->read(f, "chunks/000002", 0, 1, buf, &err), ERR_NOTFOUND);
		assert_int_equal(f->size(f, "chunks/000001", &size, &err), OK);
		assert_int_equal(size, 10);
		assert_int_equal(f->size(f, "tombstones", &size, &err), ERR_NOTFOUND);
	}
	assert_int_equal(sim_open_fds(sim), 1);
	sim_fault(sim, &(struct sim_fault){.calls = SIM_READ, .nth = 1, .error = EIO});
	assert_int_equal(f->read(f, "index", 0, 1, buf, &err), ERR_IO);
	assert_int_equal(f->read(f, "index", 0, 3, buf, &err), OK);
	f->close(f);
	assert_int_equal(sim_open_fds(sim), 0);
	sim_free(sim);
}

/* ---- 40 blocks, 4 threads ---- */

enum { BLOCKS = 40, READS = 3000 };

static struct block_files *many[BLOCKS];
static size_t most_fds;
static struct sim *threads_sim;

static void *reader(void *arg)
{
	uint64_t x = 88172645463325252 + (uint64_t)(uintptr_t)arg;
	for (int i = 0; i < READS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		size_t b = x % BLOCKS;
		char buf[10], want[16];
		struct err err;
		snprintf(want, sizeof want, "%09zu.", b);
		if (many[b]->read(many[b], x & 1024 ? "index" : "chunks/000001", 0, 10, buf, &err) || memcmp(buf, want, 10) != 0)
			return "wrong bytes";
		size_t fds = sim_open_fds(threads_sim);
		if (fds > __atomic_load_n(&most_fds, __ATOMIC_RELAXED))
			__atomic_store_n(&most_fds, fds, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void few_descriptors_for_many_readers(void **state)
{
	(void)state;
	struct err err = {0};
	pthread_t t[4];
	threads_sim = sim_new(1);
	for (size_t i = 0; i < BLOCKS; i++) {
		char dir[32], path[64], text[16];
		snprintf(dir, sizeof dir, "/b%zu", i);
		block_put(dir);
		snprintf(text, sizeof text, "%09zu.", i);
		snprintf(path, sizeof path, "%s/index", dir);
		file_put(path, text);
		snprintf(path, sizeof path, "%s/chunks/000001", dir);
		file_put(path, text);
		assert_int_equal(block_files_dir(dir, &many[i], &err), OK);
	}
	for (uintptr_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, reader, (void *)(i * 77)), 0);
	for (int i = 0; i < 4; i++) {
		void *wrong;
		pthread_join(t[i], &wrong);
		assert_null(wrong);
	}
	assert_true(most_fds <= LIMIT_BLOCK_OPEN_FILES + 2 * 4);
	assert_int_equal(sim_open_fds(threads_sim), LIMIT_BLOCK_OPEN_FILES);
	for (size_t i = 0; i < BLOCKS; i++)
		many[i]->close(many[i]);
	assert_int_equal(sim_open_fds(threads_sim), 0);
	sim_free(threads_sim);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_leftovers_go),
		cmocka_unit_test(removed),
		cmocka_unit_test(removal_and_power_cuts),
		cmocka_unit_test(files_of_a_block),
		cmocka_unit_test(few_descriptors_for_many_readers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
