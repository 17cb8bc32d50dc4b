/* A log that version 0.1.0 wrote (tests/golden/wal-0.1.0: 40 series, six samples each) is replayed, gone on with, and cut into the block that 0.1.0 made of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "head/head.h"
#include "tests/support/tmp.h"

/* What 0.1.0 cut. */
#define CHUNKS_CRC UINT32_C(0x573f8eaa)
#define INDEX_CRC UINT32_C(0x54600738)

static char block_dir[1024];
static uint64_t n_blocks, n_samples, n_series;

static errc on_block(void *arg, const char *dir, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	(void)arg, (void)bytes, (void)err;
	snprintf(block_dir, sizeof block_dir, "%s", dir);
	n_blocks++;
	n_samples = meta->n_samples;
	n_series = meta->n_series;
	return OK;
}

static uint32_t file_crc(const char *path)
{
	struct arena arena;
	struct span text;
	struct err err = {0};
	arena_init(&arena, MIB);
	if (io_read_file(path, MIB, &arena, &text, &err) != OK)
		fail_msg("%s", err.msg);
	uint32_t crc = crc32c(0, text.p, text.n);
	arena_free(&arena);
	return crc;
}

static void log_of_0_1_0(void **state)
{
	(void)state;
	struct arena arena;
	struct span golden;
	struct err err = {0};
	arena_init(&arena, MIB);
	const char *dir = tmp_dir();
	assert_int_equal(io_mkdirs(tmp_path("%s/wal", dir), &err), OK);
	assert_int_equal(io_read_file("tests/golden/wal-0.1.0/00000001.wal", MIB, &arena, &golden, &err), OK);
	assert_int_equal(io_write_file(tmp_path("%s/wal/00000001.wal", dir), golden, &err), OK);
	struct wal *wal;
	struct head *head;
	struct wal_replay_stats st;
	struct wal_config wc = {.dir = tmp_path("%s/wal", dir), .sync = WAL_SYNC_ACK, .segment_bytes = 64 * KIB};
	assert_int_equal(wal_open(&wc, &wal, &err), OK);
	struct head_config hc = {
		.chunk_dir = tmp_path("%s/head", dir),
		.block_dir = tmp_path("%s/blocks", dir),
		.wal = wal,
		.block_range_ms = 7200000,
		.cut_delay_ms = INT64_C(1) << 50,
		.max_age_ms = INT64_C(1) << 50,
		.max_memory_bytes = GIB,
		.wal_max_bytes = GIB,
		.labels = {64, 1024, 4096},
		.node = SPAN("test"),
		.on_block = on_block,
	};
	assert_int_equal(head_open(&hc, &head, &err), OK);
	assert_int_equal(head_load(head, &err), OK);
	assert_int_equal(wal_replay(wal, head_replay_frame, head, NULL, &st, &err), OK);
	assert_int_equal(st.samples, 240);
	assert_int_equal(st.frames_lost, 0);
	assert_int_equal(head_start(head, &err), OK);
	assert_int_equal(head_flush(head, &err), OK);
	assert_int_equal(n_blocks, 1);
	assert_int_equal(n_samples, 240);
	assert_int_equal(n_series, 40);
	assert_int_equal(file_crc(tmp_path("%s/chunks/000001", block_dir)), CHUNKS_CRC);
	assert_int_equal(file_crc(tmp_path("%s/index", block_dir)), INDEX_CRC);
	head_close(head);
	wal_close(wal);
	arena_free(&arena);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {cmocka_unit_test(log_of_0_1_0)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
