/* The feed: catalogs that have heard the same hold the same, whatever is lost, repeated, late or damaged on the way; and snapshots in the bucket. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "bucket/bucket_feed_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/feed_lab.h"
#include "tests/support/tmp.h"

static uint64_t seed_of_run(void)
{
	const char *s = getenv("SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : io_random_u64();
	print_message("SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

static uint64_t next_random(uint64_t *x)
{
	*x += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = *x;
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* ---- what is told is what is there ---- */

static void told_and_heard(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	lab_upload(l, 0, 1);
	lab_upload(l, 0, 2);
	assert_int_equal(lab_hear(l, 1, 0), 2);
	assert_string_equal(lab_rows(l, 0), lab_rows(l, 1));
	assert_true(lab_digest(l, 0) == lab_digest(l, 1));
	/* a plan of the one is a plan of the other */
	assert_int_equal(lab_planned(l, 1), 2);
	/* heard once is enough, and nothing of it comes back */
	assert_int_equal(lab_hear(l, 1, 0), 0);
	assert_int_equal(lab_hear(l, 0, 1), 0);

	assert_int_equal(catalog_quarantine(l->node[1].c, lab_ulid(1), "chunks/000001: checksum", &err), OK);
	lab_change(l, 0, 2, BLOCK_LIVE, true);
	lab_hear(l, 0, 1);
	lab_hear(l, 1, 0);
	assert_string_equal(lab_rows(l, 0), lab_rows(l, 1));
	assert_int_equal(lab_planned(l, 0), 1);
	lab_change(l, 1, 2, BLOCK_GONE, false);
	lab_hear(l, 0, 1);
	assert_int_equal(lab_planned(l, 0), 0);
	assert_true(lab_digest(l, 0) == 0 && lab_digest(l, 1) == 0);
	/* an account from before does not bring it back; an upload does */
	lab_upload(l, 2, 2);
	lab_hear(l, 0, 2);
	assert_int_equal(lab_planned(l, 0), 0);
	lab_upload(l, 0, 2);
	assert_int_equal(lab_planned(l, 0), 1);
}

/* The first audit of a new catalog is news to nobody; the second one's findings are. */
static void audits_are_told(void **state)
{
	struct lab *l = *state;
	lab_object(l, 1);
	lab_object(l, 2);
	lab_audit(l, 0);
	lab_audit(l, 1);
	assert_int_equal(lab_hear(l, 1, 0), 0);
	assert_int_equal(l->node[0].c->fed, 0);
	assert_true(lab_digest(l, 0) == lab_digest(l, 1) && lab_digest(l, 0) != 0);
	lab_object(l, 3);
	lab_mark(l, 1);
	lab_audit(l, 0);
	assert_int_equal(lab_hear(l, 1, 0), 2);
	assert_true(lab_digest(l, 0) == lab_digest(l, 1));
	/* what was heard is not found again */
	lab_audit(l, 1);
	assert_int_equal(lab_hear(l, 0, 1), 0);
	/* gone only when two audits missed it */
	lab_remove(l, 2);
	lab_audit(l, 1);
	assert_int_equal(lab_hear(l, 0, 1), 0);
	lab_audit(l, 1);
	assert_int_equal(lab_hear(l, 0, 1), 1);
	assert_string_equal(lab_rows(l, 0), lab_rows(l, 1));
}

/* ---- answers that are none ---- */

/* Any byte of an answer turned, or its end cut off: refused, and nothing of it is in the catalog. */
static void damaged_answers(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct feed_heard h;
	lab_upload(l, 0, 1);
	lab_change(l, 0, 1, BLOCK_QUARANTINED, true);
	lab_upload(l, 0, 2);
	struct buf a;
	lab_tell(l, 0, 1, &a);
	for (size_t i = 0; i < a.n; i++) {
		a.p[i] ^= (uint8_t)(1 << i % 8);
		errc rc = feed_hear(l->node[1].c, span_cstr("node-0"), span_of(a.p, a.n), &h, &err);
		assert_true(rc == ERR_CORRUPT || rc == ERR_UNSUPPORTED);
		a.p[i] ^= (uint8_t)(1 << i % 8);
		rc = feed_hear(l->node[1].c, span_cstr("node-0"), span_of(a.p, i), &h, &err);
		assert_int_equal(rc, ERR_CORRUPT);
	}
	assert_string_equal(lab_rows(l, 1), "");
	assert_int_equal(feed_hear(l->node[1].c, span_cstr("node-2"), span_of(a.p, a.n), &h, &err), ERR_NOTFOUND);
	assert_int_equal(feed_hear(l->node[1].c, span_cstr("node-0"), span_of(a.p, a.n), &h, &err), OK);
	assert_int_equal(h.applied, 2); /* two changes of the first block tell the same */
	assert_int_equal(h.n, 3);
	/* the same once more; and one that leaves something out */
	assert_int_equal(feed_hear(l->node[1].c, span_cstr("node-0"), span_of(a.p, a.n), &h, &err), OK);
	assert_int_equal(h.applied, 0);
	assert_int_equal(feed_hear(l->node[2].c, span_cstr("node-0"), span_of(a.p, a.n), &h, &err), OK);
	lab_upload(l, 0, 3);
	lab_upload(l, 0, 4);
	struct buf b;
	buf_init(&b, MIB);
	uint32_t n;
	bool gap;
	struct feed_position from = h.at;
	from.seq++;
	assert_int_equal(feed_tell(l->node[0].c, span_cstr("node-0"), from, 10, &b, &n, &gap, &err), OK);
	assert_int_equal(n, 1);
	assert_int_equal(feed_hear(l->node[2].c, span_cstr("node-0"), span_of(b.p, b.n), &h, &err), ERR_CORRUPT);
	buf_free(&a);
	buf_free(&b);
}

/* A meta.json that can't be read is the block's own trouble: it is there, and left out of plans. */
static void announced_nonsense(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct feed_heard h;
	static const char *const metas[] = {
		"{ nonsense", "{}", "{\"version\":1,\"ulid\":\"01HX0000000000000000000000\",\"minTime\":0,\"maxTime\":1}"};
	for (uint32_t i = 0; i < 3; i++) {
		struct buf a;
		struct feed_position at;
		buf_init(&a, MIB);
		assert_int_equal(feed_where(l->node[1].c, span_cstr("node-9"), &at, &err), OK);
		struct feed_answer head = {.feed = lab_ulid(900), .oldest = 1, .last = i + 1, .after = i, .node = SPAN("node-9")};
		struct feed_record r = {.seq = i + 1,
			.version = 1,
			.ulid = lab_ulid(i + 1),
			.state = BLOCK_LIVE,
			.objects = SPAN("[not an object"),
			.meta = span_cstr(metas[i])};
		feed_answer_begin(&head, &a);
		feed_record_encode(&r, &a);
		feed_answer_end(&a, 0, 1);
		if (feed_hear(l->node[1].c, span_cstr("node-9"), span_of(a.p, a.n), &h, &err) != OK)
			fail_msg("%s", err.msg);
		assert_int_equal(h.applied, 1);
		buf_free(&a);
	}
	assert_int_equal(lab_planned(l, 1), 0);
	assert_non_null(strstr(lab_rows(l, 1), "quarantined"));
	assert_true(lab_digest(l, 1) == 0);
}

/* ---- the model ---- */

/* The greatest account of each block that any node ever gave. */
struct account {
	uint64_t version;
	uint32_t rank, crc;
};

static void keep_greatest(struct lab *l, struct account *best, uint32_t i, uint32_t block)
{
	struct account a = {0};
	lab_account(l, i, block, &a.version, &a.rank, &a.crc);
	struct account *b = &best[block];
	if (a.version > b->version || (a.version == b->version && (a.rank > b->rank || (a.rank == b->rank && a.crc > b->crc))))
		*b = a;
}

/* Nodes change blocks, and ask each other in any order; answers get lost, come twice, come late; catalogs are closed and opened, lose the older part of their feed,
 * or are made anew. In the end all hold the greatest account of each block. */
static void model(void **state)
{
	struct lab *l = *state;
	enum { BLOCKS = 14, LATE = 6 };
	uint64_t r = seed_of_run();
	size_t rounds = getenv("VARVE_FULL") ? 60 : 4, gaps = 0, lost = 0, late = 0, applied = 0;
	for (size_t round = 0; round < rounds; round++) {
		struct account best[BLOCKS + 1] = {{0}};
		struct buf kept[LATE] = {{0}};
		uint32_t from[LATE] = {0}, to[LATE] = {0};
		lab_fresh(l);
		for (int step = 0; step < 250; step++) {
			uint32_t i = (uint32_t)(next_random(&r) % LAB_NODES), k = (uint32_t)(next_random(&r) % LAB_NODES);
			uint32_t block = 1 + (uint32_t)(next_random(&r) % BLOCKS);
			uint64_t what = next_random(&r) % 100;
			if (what < 20)
				lab_upload(l, i, block);
			else if (what < 28)
				lab_change(l, i, block, BLOCK_LIVE, next_random(&r) % 2);
			else if (what < 32)
				lab_change(l, i, block, BLOCK_QUARANTINED, next_random(&r) % 2);
			else if (what < 38)
				lab_change(l, i, block, BLOCK_GONE, false);
			else if (what < 41)
				lab_reopen(l, i);
			else if (what < 43)
				lab_prune(l, i, next_random(&r) % 4);
			else if (i != k) {
				struct buf a;
				lab_tell(l, k, i, &a);
				size_t slot = next_random(&r) % LATE;
				uint64_t fate = next_random(&r) % 10;
				if (fate < 3) {
					lost++;
					buf_free(&a);
				} else if (fate < 5 && !kept[slot].p) {
					kept[slot] = a;
					from[slot] = k;
					to[slot] = i;
				} else {
					bool gap;
					applied += lab_apply(l, i, k, &a, &gap);
					if (gap) {
						/* as an audit would: what is there, and from here on */
						lab_copy(l, i, k);
						lab_jump(l, i, k);
						gaps++;
					}
					buf_free(&a);
				}
				if (kept[slot].p && next_random(&r) % 3 == 0) {
					bool gap;
					late++;
					applied += lab_apply(l, to[slot], from[slot], &kept[slot], &gap);
					buf_free(&kept[slot]);
					kept[slot] = (struct buf){0};
				}
			}
			if (what < 38)
				keep_greatest(l, best, i, block);
		}
		for (int i = 0; i < LATE; i++)
			buf_free(&kept[i]);
		for (int pass = 0; pass < 2; pass++)
			for (uint32_t i = 0; i < LAB_NODES; i++)
				for (uint32_t k = 0; k < LAB_NODES; k++)
					if (i != k)
						lab_catch_up(l, i, k);
		for (uint32_t i = 0; i < LAB_NODES; i++) {
			for (uint32_t b = 1; b <= BLOCKS; b++) {
				struct account a = {0};
				lab_account(l, i, b, &a.version, &a.rank, &a.crc);
				if (best[b].version > 0 && (a.version != best[b].version || a.rank != best[b].rank || a.crc != best[b].crc))
					fail_msg("round %zu, node %u, block %u: version %llu rank %u, not %llu %u", round, i, b,
						(unsigned long long)a.version, a.rank, (unsigned long long)best[b].version, best[b].rank);
			}
			assert_true(lab_digest(l, i) == lab_digest(l, 0));
			assert_true(lab_digest(l, i) == lab_digest_by_hand(l, i));
		}
	}
	print_message("%zu applied, %zu answers lost, %zu late, %zu gaps\n", applied, lost, late, gaps);
	assert_true(gaps > 0 && late > 0 && lost > 0);
}

/* ---- gaps ---- */

static void gaps_are_owed(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	bool gap;
	struct buf a;
	for (uint32_t i = 1; i <= 5; i++) {
		lab_upload(l, 0, i);
		lab_object(l, i);
	}
	lab_prune(l, 0, 2);
	lab_tell(l, 0, 1, &a);
	assert_int_equal(lab_apply(l, 1, 0, &a, &gap), 0);
	assert_true(gap);
	buf_free(&a);
	assert_false(catalog_owed(l->node[1].c));
	lab_jump(l, 1, 0);
	assert_true(catalog_owed(l->node[1].c));
	lab_reopen(l, 1);
	assert_true(catalog_owed(l->node[1].c));
	lab_upload(l, 0, 6);
	lab_object(l, 6);
	assert_int_equal(lab_hear(l, 1, 0), 1);
	lab_audit(l, 1);
	assert_false(catalog_owed(l->node[1].c));
	assert_true(lab_digest(l, 0) == lab_digest(l, 1));
	lab_reopen(l, 1);
	assert_false(catalog_owed(l->node[1].c));
	/* a catalog that was made anew has another feed, whatever its numbers */
	lab_remake(l, 0);
	for (uint32_t i = 11; i <= 18; i++)
		lab_upload(l, 0, i);
	lab_tell(l, 0, 1, &a);
	lab_apply(l, 1, 0, &a, &gap);
	assert_true(gap);
	buf_free(&a);
	/* and one that went back in time, too: its newest number is one that was read long ago */
	struct feed_position far = {0};
	assert_int_equal(feed_where(l->node[1].c, span_cstr("node-0"), &far, &err), OK);
	assert_true(far.seq > 0);
}

/* ---- snapshots ---- */

static void put_snapshot(struct lab *l, uint32_t i, uint64_t generation)
{
	struct err err = {0};
	struct feed_snapshot s;
	if (feed_snapshot_put(l->node[i].c, l->bucket, tmp_path("%s/snapshot.tmp", l->dir), span_cstr(l->node[i].id), generation, &s, &err) != OK)
		fail_msg("%s", err.msg);
}

static errc take_snapshot(struct lab *l, uint32_t i, uint64_t than, struct feed_snapshot *s)
{
	return feed_snapshot_take(l->node[i].c, l->bucket, span_cstr(l->node[i].id), than, s, NULL);
}

static void snapshots(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct feed_snapshot s;
	assert_int_equal(feed_snapshot_newest(l->bucket, &s, &err), OK);
	assert_int_equal(s.generation, 0);
	assert_int_equal(take_snapshot(l, 1, 0, &s), ERR_NOTFOUND);
	for (uint32_t i = 1; i <= 40; i++)
		lab_upload(l, 0, i);
	lab_change(l, 0, 3, BLOCK_GONE, false);
	lab_change(l, 0, 4, BLOCK_QUARANTINED, false);
	lab_upload(l, 2, 50);
	lab_hear(l, 0, 2);
	put_snapshot(l, 0, 1);
	uint64_t state_now;
	assert_int_equal(feed_snapshot_newest(l->bucket, &s, &err), OK);
	assert_int_equal(feed_state(l->node[0].c, SPAN("node-0"), &state_now, &err), OK);
	assert_true(s.generation == 1 && s.digest == lab_digest(l, 0) && s.state == state_now && s.blocks == 41);
	assert_string_equal(s.node, "node-0");

	/* a new node has all of it, and goes on in the feeds from there */
	assert_int_equal(catalog_complete(l->node[1].c, 0, &err), ERR_AGAIN);
	assert_int_equal(take_snapshot(l, 1, 0, &s), OK);
	assert_int_equal(catalog_complete(l->node[1].c, 0, &err), OK);
	assert_string_equal(lab_rows(l, 0), lab_rows(l, 1));
	assert_int_equal(lab_hear(l, 1, 0) + lab_hear(l, 1, 2), 0);
	lab_upload(l, 0, 41);
	assert_int_equal(lab_hear(l, 1, 0), 1);
	assert_false(catalog_owed(l->node[1].c));
	/* what is gone stays so, also by the account of one that has not heard */
	assert_int_equal(take_snapshot(l, 1, 1, &s), ERR_NOTFOUND);
	assert_int_equal(feed_state(l->node[0].c, SPAN("node-0"), &state_now, &err), OK);
	assert_true(state_now != s.state);

	/* two generations: the newer one counts, the older one is there when the newer is not whole */
	put_snapshot(l, 0, 2);
	assert_int_equal(feed_snapshot_newest(l->bucket, &s, &err), OK);
	assert_int_equal(s.generation, 2);
	assert_int_equal(io_write_file(tmp_path("%s/bucket/varve/catalog/snapshot-0", l->dir), SPAN("rot"), &err), OK);
	assert_int_equal(take_snapshot(l, 2, 0, &s), OK);
	assert_int_equal(s.generation, 1);

	/* a catalog that was made anew: what this node itself saw after the snapshot nobody tells it */
	lab_remake(l, 0);
	assert_int_equal(take_snapshot(l, 0, 0, &s), OK);
	assert_true(catalog_owed(l->node[0].c));

	/* an audit passes it over, and it is no block to anybody */
	struct catalog_audit_stats st;
	assert_int_equal(catalog_audit(l->node[1].c, l->bucket, NULL, &st, &err), OK);
	assert_int_equal(st.partial + st.blocks, 0);

	/* a claim that nobody gave back */
	assert_int_equal(bucket_put_if_absent(l->bucket, "varve/catalog/claim-0000000000000007", SPAN("node-7"), &err), OK);
	assert_int_equal(feed_snapshot_put(l->node[1].c, l->bucket, tmp_path("%s/snapshot.tmp", l->dir), SPAN("node-1"), 7, &s, &err), ERR_EXISTS);
	put_snapshot(l, 1, 9);
}

/* Many blocks: some pages, some answers, and the oldest changes are kept no more. */
static void many_blocks(void **state)
{
	struct lab *l = *state;
	struct feed_snapshot s;
	uint32_t n = getenv("VARVE_FULL") ? LIMIT_FEED_KEPT + 3000 : 5000;
	lab_bulk(l, 0, n);
	int64_t t0 = io_mono_ms();
	put_snapshot(l, 0, 1);
	int64_t t1 = io_mono_ms();
	assert_int_equal(take_snapshot(l, 1, 0, &s), OK);
	int64_t t2 = io_mono_ms();
	assert_true(s.blocks == n && lab_digest(l, 1) == lab_digest(l, 0));
	print_message("%u blocks: snapshot of %llu bytes written in %lld ms, taken in %lld ms", n, (unsigned long long)s.size_bytes,
		(long long)(t1 - t0), (long long)(t2 - t1));
	if (n > LIMIT_FEED_KEPT) {
		bool gap;
		struct buf a;
		lab_tell(l, 0, 2, &a);
		assert_int_equal(lab_apply(l, 2, 0, &a, &gap), 0);
		assert_true(gap);
		buf_free(&a);
	} else {
		assert_int_equal(lab_hear(l, 2, 0), n);
		assert_true(lab_digest(l, 2) == lab_digest(l, 0));
	}
	print_message(", told and applied in %lld ms\n", (long long)(io_mono_ms() - t2));
}

/* Any byte of the newest snapshot turned, or its end cut off: never a catalog other than that of the one before it, or of the whole one. */
static void damaged_snapshots(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct arena a;
	struct span file;
	struct feed_snapshot s;
	uint64_t r = seed_of_run();
	arena_init(&a, 16 * MIB);
	lab_upload(l, 0, 1);
	put_snapshot(l, 0, 1);
	uint64_t first = lab_digest(l, 0);
	for (uint32_t i = 2; i <= 6; i++)
		lab_upload(l, 0, i);
	lab_change(l, 0, 1, BLOCK_GONE, false);
	put_snapshot(l, 0, 2);
	uint64_t second = lab_digest(l, 0);
	const char *path = strdup(tmp_path("%s/bucket/varve/catalog/snapshot-0", l->dir));
	assert_int_equal(io_read_file(path, 16 * MIB, &a, &file, &err), OK);
	size_t tries = getenv("VARVE_FULL") ? 2 * file.n : 60, older = 0;
	for (size_t t = 0; t < tries; t++) {
		size_t at = tries == 2 * file.n ? t / 2 : next_random(&r) % file.n, n = t % 2 ? at : file.n;
		char *copy = malloc(file.n);
		memcpy(copy, file.p, file.n);
		if (n == file.n)
			copy[at] ^= (char)(1 << next_random(&r) % 8);
		int fd;
		assert_int_equal(io_open(path, IO_WRITE | IO_CREATE | IO_TRUNC, &fd, &err), OK);
		assert_int_equal(io_pwrite(fd, copy, n, 0, &err), OK);
		io_close(fd);
		free(copy);
		lab_remake(l, 1);
		errc rc = take_snapshot(l, 1, 0, &s);
		if (rc == ERR_UNSUPPORTED)
			continue;
		assert_int_equal(rc, OK);
		assert_int_equal(s.generation, 1);
		older++;
		/* pages that were whole count; what they told is true */
		for (uint32_t b = 1; b <= 6; b++) {
			uint64_t version;
			uint32_t rank, crc;
			lab_account(l, 1, b, &version, &rank, &crc);
			assert_true(version <= 2);
		}
		uint64_t d = lab_digest(l, 1);
		assert_true(d == first || d == second);
	}
	assert_true(older > 0);
	free((char *)path);
	arena_free(&a);
}

/* ---- calls that fail ---- */

static struct {
	struct io_ops ops;
	const struct io_ops *real;
	uint64_t calls, nth;
} disk;

static bool this_one(void)
{
	bool fails = ++disk.calls == disk.nth;
	errno = fails ? ENOSPC : errno;
	return fails;
}

static int shaky_open(const char *path, int flags, mode_t mode)
{
	return this_one() ? -1 : disk.real->open(path, flags, mode);
}

static ssize_t shaky_pwrite(int fd, const void *buf, size_t n, off_t off)
{
	return this_one() ? -1 : disk.real->pwrite(fd, buf, n, off);
}

static int shaky_fsync(int fd)
{
	return this_one() ? -1 : disk.real->fsync(fd);
}

static int shaky_rename(const char *from, const char *to)
{
	return this_one() ? -1 : disk.real->rename(from, to);
}

static int shaky_link(const char *from, const char *to)
{
	return this_one() ? -1 : disk.real->link(from, to);
}

static int shaky_mkdir(const char *path, mode_t mode)
{
	return this_one() ? -1 : disk.real->mkdir(path, mode);
}

static void disk_fails_at(uint64_t nth)
{
	disk.real = io_ops;
	disk.ops = *io_ops;
	disk.ops.open = shaky_open;
	disk.ops.pwrite = shaky_pwrite;
	disk.ops.fsync = shaky_fsync;
	disk.ops.rename = shaky_rename;
	disk.ops.link = shaky_link;
	disk.ops.mkdir = shaky_mkdir;
	disk.calls = 0;
	disk.nth = nth;
	io_ops = &disk.ops;
}

/* Was there an nth? */
static bool disk_works(void)
{
	io_ops = disk.real;
	return disk.calls >= disk.nth;
}

/* The n-th operation of the bucket fails, or the n-th call on the disk: an error in words, and the next try does it. */
static void failing_calls(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct feed_snapshot s;
	for (uint32_t i = 1; i <= 3; i++)
		lab_upload(l, 0, i);
	put_snapshot(l, 0, 1);
	lab_upload(l, 0, 4);
	for (uint64_t n = 1;; n++) {
		l->sh->calls = 0;
		l->sh->fail_from = l->sh->fail_to = n;
		errc rc = feed_snapshot_put(l->node[0].c, l->bucket, tmp_path("%s/snapshot.tmp", l->dir), SPAN("node-0"), 2, &s, &err);
		bool hit = l->sh->calls >= n;
		l->sh->fail_from = 0;
		if (!hit)
			break;
		struct io_stat st;
		assert_int_equal(io_stat(tmp_path("%s/snapshot.tmp", l->dir), &st, &err), OK);
		assert_false(st.exists);
		/* that a claim could not be given back is no failure of the snapshot */
		assert_true(rc == ERR_NET || rc == OK);
		(void)!bucket_delete(l->bucket, "varve/catalog/claim-0000000000000002", NULL);
		assert_int_equal(feed_snapshot_newest(l->bucket, &s, &err), OK);
		assert_true(s.generation == 1 || rc == OK);
	}
	for (uint64_t n = 1;; n++) {
		disk_fails_at(n);
		errc rc = feed_snapshot_put(l->node[0].c, l->bucket, tmp_path("%s/snapshot.tmp", l->dir), SPAN("node-0"), 4 + 2 * n, &s, &err);
		bool hit = disk_works();
		struct io_stat st;
		assert_int_equal(io_stat(tmp_path("%s/snapshot.tmp", l->dir), &st, NULL), OK);
		assert_false(st.exists);
		assert_int_equal(feed_snapshot_newest(l->bucket, &s, &err), OK);
		assert_true(s.generation > 0 && s.digest == lab_digest(l, 0));
		if (!hit) {
			assert_int_equal(rc, OK);
			break;
		}
	}
	for (uint64_t n = 1;; n++) {
		lab_remake(l, 1);
		l->sh->calls = 0;
		l->sh->fail_from = l->sh->fail_to = n;
		errc rc = take_snapshot(l, 1, 0, &s);
		l->sh->fail_from = 0;
		if (rc == OK)
			break;
		assert_int_equal(rc, ERR_NET);
		assert_int_equal(catalog_complete(l->node[1].c, 0, NULL), ERR_AGAIN);
		assert_int_equal(take_snapshot(l, 1, 0, &s), OK);
		assert_true(lab_digest(l, 1) == lab_digest(l, 0));
	}
}

/* The n-th allocation fails: an error, nothing half, and the next try does it. */
static void without_memory(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct feed_snapshot s;
	struct feed_heard h;
	for (uint32_t i = 1; i <= 3; i++)
		lab_upload(l, 0, i);
	for (uint64_t n = 1;; n++) {
		struct buf a;
		uint32_t told;
		bool gap;
		lab_remake(l, 1);
		fail_alloc_at(n, false);
		buf_init(&a, MIB);
		errc rc = feed_tell(l->node[0].c, SPAN("node-0"), (struct feed_position){0}, 100, &a, &told, &gap, &err);
		if (rc == OK)
			rc = feed_hear(l->node[1].c, SPAN("node-0"), span_of(a.p, a.n), &h, &err);
		uint64_t hits = fail_alloc_off();
		buf_free(&a);
		assert_true(rc == OK || rc == ERR_NOMEM);
		assert_true((rc == OK) == (lab_digest(l, 1) == lab_digest(l, 0)));
		if (hits == 0)
			break;
	}
	for (uint64_t n = 1;; n++) {
		lab_remake(l, 1);
		fail_alloc_at(n, false);
		errc rc = feed_snapshot_put(l->node[0].c, l->bucket, tmp_path("%s/snapshot.tmp", l->dir), SPAN("node-0"), n, &s, &err);
		if (rc == OK)
			rc = take_snapshot(l, 1, 0, &s);
		uint64_t hits = fail_alloc_off();
		if (rc == OK)
			assert_true(lab_digest(l, 1) == lab_digest(l, 0));
		if (hits == 0) {
			assert_int_equal(rc, OK);
			break;
		}
		(void)!bucket_delete(l->bucket, tmp_path("varve/catalog/claim-%016llx", (unsigned long long)n), NULL);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, lab_setup, lab_teardown)
	log_setup((enum log_level)(LOG_ERROR + 1), LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		TEST(told_and_heard),
		TEST(audits_are_told),
		TEST(damaged_answers),
		TEST(announced_nonsense),
		TEST(model),
		TEST(gaps_are_owed),
		TEST(snapshots),
		TEST(many_blocks),
		TEST(damaged_snapshots),
		TEST(failing_calls),
		TEST(without_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
