/* How a window becomes a block: by which way does not show in its bytes; what fails on the way costs nothing; and what comes late makes one more block.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_cut_int.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/head_lab.h"

enum { RANGE = 7200000, SERIES = 150, STEP = 15000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

/* `samples` of series [0, n), some of which begin later, have gaps, or few samples; each `late`-th comes behind all others. */
static void fill(struct lab *l, uint32_t n, uint32_t samples, uint32_t late)
{
	for (int turn = 0; turn < (late ? 2 : 1); turn++) {
		for (uint32_t from = 0; from < samples; from += 50) {
			struct lab_batch b;
			struct err err = {0};
			lab_batch_begin(&b, 0);
			for (uint32_t k = 0; k < n; k++) {
				lab_batch_series(&b, k, 0);
				for (uint32_t i = from; i < from + 50 && i < samples; i++) {
					uint64_t r = k * UINT64_C(1000003) + i;
					bool is_late = late && (i + k) % late == 0;
					if ((k % 7 == 3 && i < 200) || (k % 11 == 5 && i % 150 > 100) || (k % 13 == 1 && i > 3) ||
						is_late != (turn == 1))
						continue;
					lab_batch_sample(&b, T0 + (int64_t)i * STEP + k, lab_random(&r));
				}
			}
			if (lab_send(l, &b, &err) != OK)
				fail_msg("send: %s", err.msg);
			lab_batch_free(&b);
		}
	}
}

static struct span slurp(struct arena *a, struct ulid u, const char *file)
{
	char path[256];
	struct span s;
	struct err err = {0};
	snprintf(path, sizeof path, "data/blocks/%s/%s", ulid_text(u).s, file);
	if (io_read_file(path, GIB, a, &s, &err) != OK)
		fail_msg("%s", err.msg);
	return s;
}

/* Straight from the windows, or through a spool of whatever buckets; from one part or many. */
static void every_way_gives_the_same_bytes(void **state)
{
	(void)state;
	static const struct {
		uint64_t direct;
		size_t buffer;
		uint32_t shards, late;
	} ways[] = {{GIB, 0, 1, 0}, {1, 0, 1, 0}, {1, 64, 1, 0}, {1, 1000, 4, 0}, {1, 4096, 64, 0}, {GIB, 0, 16, 0}, {GIB, 0, 2, 9}, {1, 300, 2, 9},
		{1, 0, 8, 2}};
	struct arena keep;
	struct span index = {0}, chunks = {0};
	arena_init(&keep, GIB);
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
		struct lab l;
		lab_open(&l, i, RANGE, 4 * MIB);
		l.n_series = SERIES;
		l.cfg.shards = ways[i].shards;
		must_start(&l);
		fill(&l, SERIES, 480, ways[i].late);
		head_cut_direct_bytes = ways[i].direct;
		head_cut_spool_buffer_bytes = ways[i].buffer;
		lab_flush(&l);
		lab_check(&l);
		assert_int_equal(l.n_blocks, 1);
		struct span ix = slurp(&keep, l.blocks[0], "index"), ch = slurp(&keep, l.blocks[0], "chunks/000001");
		if (i == 0) {
			index = ix;
			chunks = ch;
			assert_true(chunks.n > 400000);
		} else if (!span_eq(index, ix) || !span_eq(chunks, ch)) {
			fail_msg("way %zu gives other bytes", i);
		}
		lab_free(&l);
	}
	head_cut_direct_bytes = head_cut_spool_buffer_bytes = 0;
	arena_free(&keep);
}

/* A file larger than all pieces that are kept of it, by the ordinary limits. */
static void a_large_window(void **state)
{
	(void)state;
	struct lab l;
	uint32_t n = full() ? 6000 : 1200;
	lab_open(&l, 3, RANGE, 16 * MIB);
	l.n_series = n;
	must_start(&l);
	fill(&l, n, 480, 0);
	struct head_status st;
	head_status(l.head, &st);
	assert_true(st.chunk_file_bytes > CUT_FILE_CACHE_BYTES);
	lab_flush(&l);
	lab_check(&l);
	lab_free(&l);
}

/* No room for the spool: the block is written without it. */
static void no_room_for_the_spool(void **state)
{
	(void)state;
	head_cut_direct_bytes = 1;
	head_cut_spool_buffer_bytes = 512;
	for (uint64_t n = 1;; n += full() ? 1 : 1 + n / 2) {
		struct lab l;
		lab_open(&l, n, RANGE, 4 * MIB);
		l.n_series = SERIES;
		must_start(&l);
		fill(&l, SERIES, 300, 0);
		sim_fault(l.sim, &(struct sim_fault){.calls = SIM_WRITE | SIM_OPEN, .path = "data/head", .nth = n, .error = ENOSPC, .sticky = true});
		lab_flush(&l);
		bool hit = sim_fault_hits(l.sim) > 0;
		sim_fault(l.sim, NULL);
		lab_check(&l);
		assert_int_equal(l.n_blocks, 1);
		lab_free(&l);
		if (!hit)
			break;
	}
	head_cut_direct_bytes = head_cut_spool_buffer_bytes = 0;
}

/* The n-th allocation, read or write of a cut through the spool fails: it says so, and the next one works. */
static void anything_may_fail(void **state)
{
	(void)state;
	head_cut_direct_bytes = 1;
	head_cut_spool_buffer_bytes = 2048;
	uint64_t failures[2] = {0};
	for (int what = 0; what < 2; what++) {
		for (uint64_t n = 1; n < 4000; n += full() ? 1 : 1 + n / 5) {
			struct lab l;
			struct err err = {0};
			lab_open(&l, n, RANGE, 4 * MIB);
			l.n_series = 40;
			must_start(&l);
			fill(&l, 40, 300, 20);
			if (what == 0)
				fail_alloc_at(n, false);
			else
				sim_fault(l.sim,
					&(struct sim_fault){.calls = SIM_READ | SIM_WRITE | SIM_OPEN, .path = "data/head", .nth = n, .error = EIO});
			errc rc = head_flush(l.head, &err);
			uint64_t hits = what == 0 ? fail_alloc_off() : sim_fault_hits(l.sim);
			sim_fault(l.sim, NULL);
			assert_true(rc == OK || rc == (what == 0 ? ERR_NOMEM : ERR_IO));
			failures[what] += rc != OK;
			if (rc != OK && head_flush(l.head, &err) != OK)
				fail_msg("flush: %s", err.msg);
			l.gen++;
			lab_check(&l);
			assert_int_equal(l.n_blocks, 1);
			lab_free(&l);
			if (hits == 0)
				break;
		}
	}
	print_message("%llu failed for memory, %llu for a file\n", (unsigned long long)failures[0], (unsigned long long)failures[1]);
	assert_true(failures[0] > 10 && failures[1] > 3);
	head_cut_direct_bytes = head_cut_spool_buffer_bytes = 0;
}

/* Samples for windows that are blocks already, a request each: they wait together, and the next cut makes one more block of each window. */
static void late_samples_make_one_block_each(void **state)
{
	(void)state;
	struct lab l;
	enum { WINDOWS = 3, REQUESTS = 40 };
	lab_open(&l, 8, RANGE, 4 * MIB);
	l.n_series = 20;
	must_start(&l);
	for (int turn = 0; turn < 3; turn++) {
		for (int i = 0; i < (turn ? REQUESTS : 1); i++) {
			struct lab_batch b;
			struct err err = {0};
			lab_batch_begin(&b, 0);
			for (uint32_t k = 0; k < 20; k++) {
				lab_batch_series(&b, k, 0);
				for (int w = 0; w < WINDOWS; w++)
					lab_batch_sample(&b, T0 + w * (int64_t)RANGE + turn * 1000000 + i * 1000, k);
			}
			if (lab_send(&l, &b, &err) != OK)
				fail_msg("send: %s", err.msg);
			lab_batch_free(&b);
		}
		struct head_status st;
		head_status(l.head, &st);
		assert_int_equal(st.windows, WINDOWS);
		lab_flush(&l);
		lab_check(&l);
		assert_int_equal(l.n_blocks, (turn + 1) * WINDOWS);
	}
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_way_gives_the_same_bytes),
		cmocka_unit_test(a_large_window),
		cmocka_unit_test(no_room_for_the_spool),
		cmocka_unit_test(anything_may_fail),
		cmocka_unit_test(late_samples_make_one_block_each),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
