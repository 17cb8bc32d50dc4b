/* bucket/bucket_feed_snapshot.c - a catalog in the bucket, so that a new node begins with what the others know.
 *
 *   varve/catalog/snapshot-0, -1: the even and the odd generations; the greater generation is the newer. varve/catalog/claim-<generation>: who writes it.
 *
 *   offset  size  field                                     page
 *        0     4  "vrvC"                                    offset  size  field
 *        4     2  version, 1                                     0     4  number, from 0
 *        6     2  0                                              4     4  raw: bytes when decompressed
 *        8     8  generation                                     8     4  stored: bytes that follow; less than raw: an LZ4 block
 *       16     8  when it was made, ms since 1970               12     4  crc32c over generation, these fields, and what follows
 *       24     8  bytes of the object                           16     -  page 0: positions: length of a node's id (1), id,
 *       32     8  blocks                                                  name of the feed (16), number (8)
 *       40     8  digest of the live ones                               others: changes, as peers are told them, numbers 0
 *       48     8  state: of digest and positions
 *       56     4  positions
 *       60     4  pages
 *       64    40  id of the node that wrote it, zeros behind
 *      104     4  crc32c over all that
 *      108     -  pages
 *
 * It is no SQLite file: what comes from outside is read by the decoder of changes, each block is weighed by its version like any other account of it, and
 * schemas may differ. So a page that is whole may be taken before the next one is looked at, and a snapshot that turns out to be cut short has done no
 * harm: only its positions are not believed. No listing finds it: there are two names. To other readers of the bucket it is a directory whose name is no
 * ULID, which they pass over.
 */
#include <inttypes.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_feed_int.h"

enum { HEADER_BYTES = 108, AT_NODE = 64, AT_CRC = 104, PAGE_HEADER = 16, VERSION = 1, SLOTS = 2, LZ4_RATIO_MAX = 255, READ_BYTES = 4 << 20 };
enum { POSITION_MAX = 1 + FEED_NODE_BYTES + 16 + 8 };
#define PAGE_RAW_MAX (LIMIT_FEED_RECORD_BYTES + LIMIT_SNAPSHOT_PAGE_BYTES)

static const uint8_t magic[4] = {'v', 'r', 'v', 'C'};
static const char *const slots[SLOTS] = {"varve/catalog/snapshot-0", "varve/catalog/snapshot-1"};

/* ---- the header ---- */

struct header {
	struct feed_snapshot s;
	uint32_t positions, pages;
};

static void header_encode(const struct header *h, uint8_t out[HEADER_BYTES])
{
	memset(out, 0, HEADER_BYTES);
	memcpy(out, magic, sizeof magic);
	out[4] = VERSION;
	put_le64(out + 8, h->s.generation);
	put_le64(out + 16, (uint64_t)h->s.made_ms);
	put_le64(out + 24, h->s.size_bytes);
	put_le64(out + 32, h->s.blocks);
	put_le64(out + 40, h->s.digest);
	put_le64(out + 48, h->s.state);
	put_le32(out + 56, h->positions);
	put_le32(out + 60, h->pages);
	memcpy(out + AT_NODE, h->s.node, FEED_NODE_BYTES);
	put_le32(out + AT_CRC, crc32c(0, out, AT_CRC));
}

static errc header_decode(const char *key, const uint8_t *p, struct header *out, struct err *err)
{
	errc rc = OK;
	CHECK(memcmp(p, magic, sizeof magic) == 0 && crc32c(0, p, AT_CRC) == get_le32(p + AT_CRC), ERR_CORRUPT, "%s: no catalog's snapshot", key);
	CHECK(p[4] == VERSION && p[5] == 0 && p[6] == 0 && p[7] == 0, ERR_UNSUPPORTED, "%s: a snapshot of version %d, this varve reads %d", key,
		p[4] | p[5] << 8, VERSION);
	*out = (struct header){
		.s = {.generation = get_le64(p + 8),
			.made_ms = (int64_t)get_le64(p + 16),
			.size_bytes = get_le64(p + 24),
			.blocks = get_le64(p + 32),
			.digest = get_le64(p + 40),
			.state = get_le64(p + 48)},
		.positions = get_le32(p + 56),
		.pages = get_le32(p + 60),
	};
	memcpy(out->s.node, p + AT_NODE, FEED_NODE_BYTES);
	CHECK(out->s.node[FEED_NODE_BYTES - 1] == 0 && out->s.generation > 0 && out->s.size_bytes >= HEADER_BYTES &&
			out->s.size_bytes <= LIMIT_SNAPSHOT_BYTES && out->positions <= LIMIT_FEED_NODES && out->pages > 0,
		ERR_CORRUPT, "%s: a snapshot of %" PRIu64 " bytes, %" PRIu32 " positions, %" PRIu32 " pages", key, out->s.size_bytes, out->positions,
		out->pages);
fail:
	return rc;
}

/* Both, the newer first; generation 0 where there is none that is whole. Trouble with the bucket, or a format that is newer, is an error: what can't be
 * judged is not to be written over. */
static errc headers(struct bucket *b, struct header v[SLOTS], int slot_of[SLOTS], struct err *err)
{
	errc rc = OK;
	for (int i = 0; i < SLOTS; i++) {
		uint8_t p[HEADER_BYTES];
		struct err why = {0};
		v[i] = (struct header){.pages = 0};
		slot_of[i] = i;
		rc = bucket_get_range(b, slots[i], 0, sizeof p, p, &why);
		if (rc == OK)
			rc = header_decode(slots[i], p, &v[i], &why);
		if (rc == ERR_CORRUPT)
			log_warn("a snapshot of the catalog is not whole", LSTR("key", slots[i]), LERR(&why));
		if (rc != OK)
			v[i] = (struct header){.pages = 0};
		CHECK(rc == OK || rc == ERR_NOTFOUND || rc == ERR_CORRUPT, rc, "%s", why.msg);
	}
	rc = OK;
	if (v[1].s.generation > v[0].s.generation) {
		struct header h = v[0];
		v[0] = v[1];
		v[1] = h;
		slot_of[0] = 1;
		slot_of[1] = 0;
	}
fail:
	return rc;
}

errc feed_snapshot_newest(struct bucket *b, struct feed_snapshot *out, struct err *err)
{
	struct header v[SLOTS];
	int slot_of[SLOTS];
	errc rc = headers(b, v, slot_of, err);
	if (rc == OK)
		*out = v[0].s;
	return rc;
}

errc feed_state(struct catalog *c, struct span node, uint64_t *out, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN", err));
	rc = feed_state_read(c, conn, node, out, err);
	TRY(catalog_end(conn, rc, err));
fail:
	catalog_give(c, conn);
	return rc;
}

/* ---- writing ---- */

struct writer {
	int fd;
	struct header h;
	struct buf raw, packed;
};

static uint32_t page_crc(uint64_t generation, const uint8_t *page, size_t stored)
{
	uint8_t g[8];
	put_le64(g, generation);
	return crc32c(crc32c(crc32c(0, g, sizeof g), page, 12), page + PAGE_HEADER, stored);
}

static errc page_write(struct writer *w, struct err *err)
{
	errc rc = OK;
	size_t n = w->raw.n;
	CHECK(!w->raw.failed && n <= PAGE_RAW_MAX, ERR_NOMEM, "no memory for a page of a snapshot");
	buf_clear(&w->packed);
	size_t room = (size_t)LZ4_compressBound((int)n);
	CHECK(buf_reserve(&w->packed, PAGE_HEADER + room), ERR_NOMEM, "no memory for a page of a snapshot");
	int stored = n ? LZ4_compress_default((const char *)w->raw.p, (char *)w->packed.p + PAGE_HEADER, (int)n, (int)room) : 0;
	if (stored <= 0 || (size_t)stored >= n) {
		if (n)
			memcpy(w->packed.p + PAGE_HEADER, w->raw.p, n);
		stored = (int)n;
	}
	put_le32(w->packed.p, w->h.pages);
	put_le32(w->packed.p + 4, (uint32_t)n);
	put_le32(w->packed.p + 8, (uint32_t)stored);
	put_le32(w->packed.p + 12, page_crc(w->h.s.generation, w->packed.p, (size_t)stored));
	TRY(io_pwrite(w->fd, w->packed.p, PAGE_HEADER + (size_t)stored, w->h.s.size_bytes, err));
	w->h.s.size_bytes += PAGE_HEADER + (size_t)stored;
	w->h.pages++;
	CHECK(w->h.s.size_bytes <= LIMIT_SNAPSHOT_BYTES, ERR_LIMIT, "a snapshot of more than %" PRIu64 " bytes", (uint64_t)LIMIT_SNAPSHOT_BYTES);
	buf_clear(&w->raw);
fail:
	return rc;
}

static void position_put(struct writer *w, struct span node, struct feed_position at)
{
	if (node.n == 0 || node.n >= FEED_NODE_BYTES || w->h.positions >= LIMIT_FEED_NODES)
		return;
	uint8_t seq[8];
	put_le64(seq, at.seq);
	buf_u8(&w->raw, (uint8_t)node.n);
	buf_span(&w->raw, node);
	buf_put(&w->raw, at.feed.b, sizeof at.feed.b);
	buf_put(&w->raw, seq, sizeof seq);
	w->h.positions++;
}

static errc positions_write(struct catalog *c, struct catalog_conn *conn, struct span node, struct writer *w, struct err *err)
{
	static const char last[] = "SELECT coalesce(max(seq),0) FROM feed";
	static const char all[] = "SELECT node, feed, seq FROM followed WHERE node<>?1 ORDER BY node";
	errc rc = OK;
	sqlite3_stmt *st = catalog_stmt(conn, last, err);
	if (!st)
		return ERR_IO;
	if (sqlite3_step(st) != SQLITE_ROW)
		return catalog_error(conn, "the feed", err);
	struct feed_position own = {.seq = (uint64_t)sqlite3_column_int64(st, 0)};
	sqlite3_reset(st);
	pthread_mutex_lock(&c->mu);
	own.feed = c->feed;
	pthread_mutex_unlock(&c->mu);
	position_put(w, node, own);
	st = catalog_stmt(conn, all, err);
	if (!st)
		return ERR_IO;
	catalog_bind_span(st, 1, node);
	int code;
	while ((code = sqlite3_step(st)) == SQLITE_ROW) {
		struct feed_position at = {.seq = (uint64_t)sqlite3_column_int64(st, 2)};
		if (ulid_parse(catalog_column(st, 1), &at.feed))
			position_put(w, catalog_column(st, 0), at);
	}
	rc = code == SQLITE_DONE ? page_write(w, err) : catalog_error(conn, "followed", err);
	sqlite3_reset(st);
	return rc;
}

static errc blocks_write(struct catalog *c, struct catalog_conn *conn, struct writer *w, struct err *err)
{
	static const char all[] = "SELECT ulid FROM block_versions ORDER BY ulid";
	errc rc = OK;
	sqlite3_stmt *st = catalog_stmt(conn, all, err);
	if (!st)
		return ERR_IO;
	int code = SQLITE_DONE;
	while (rc == OK && (code = sqlite3_step(st)) == SQLITE_ROW) {
		struct feed_record r;
		struct ulid u;
		if (!ulid_parse(catalog_column(st, 0), &u)) {
			rc = catalog_row_bad(c, catalog_column(st, 0), err);
			break;
		}
		rc = feed_record_of(c, conn, u, &r, err);
		if (rc != OK)
			break;
		feed_record_encode(&r, &w->raw);
		w->h.s.blocks++;
		if (w->raw.n >= LIMIT_SNAPSHOT_PAGE_BYTES || w->raw.failed)
			rc = page_write(w, err);
	}
	if (rc == OK && code != SQLITE_DONE)
		rc = catalog_error(conn, "blocks", err);
	if (rc == OK && w->raw.n > 0)
		rc = page_write(w, err);
	sqlite3_reset(st);
	return rc;
}

/* One transaction that reads: blocks, digest and positions are of one moment, and nobody waits for it. */
static errc snapshot_file(struct catalog *c, const char *file, struct span node, uint64_t generation, struct feed_snapshot *out, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	struct writer w = {.fd = -1, .h = {.s = {.generation = generation, .made_ms = io_now_ms(), .size_bytes = HEADER_BYTES}}};
	uint8_t header[HEADER_BYTES];
	uint64_t live;
	buf_init(&w.raw, PAGE_RAW_MAX + MIB);
	buf_init(&w.packed, 2 * PAGE_RAW_MAX);
	memcpy(w.h.s.node, node.p, node.n < FEED_NODE_BYTES ? node.n : FEED_NODE_BYTES - 1);
	TRY(io_open(file, IO_WRITE | IO_CREATE | IO_TRUNC, &w.fd, err));
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN", err));
	rc = feed_digest_read(conn, &w.h.s.digest, &live, err);
	if (rc == OK)
		rc = feed_state_read(c, conn, node, &w.h.s.state, err);
	if (rc == OK)
		rc = positions_write(c, conn, node, &w, err);
	if (rc == OK)
		rc = blocks_write(c, conn, &w, err);
	TRY(catalog_end(conn, rc, err));
	header_encode(&w.h, header);
	TRY(io_pwrite(w.fd, header, sizeof header, 0, err));
	*out = w.h.s;
fail:
	catalog_give(c, conn);
	io_close(w.fd);
	buf_free(&w.raw);
	buf_free(&w.packed);
	return rc;
}

errc feed_snapshot_put(
	struct catalog *c, struct bucket *b, const char *file, struct span node, uint64_t generation, struct feed_snapshot *out, struct err *err)
{
	errc rc = OK;
	char claim[64];
	bool claimed = false;
	snprintf(claim, sizeof claim, "varve/catalog/claim-%016" PRIx64, generation);
	rc = bucket_put_if_absent(b, claim, node, err);
	claimed = rc == OK;
	/* A store that knows no conditions: two nodes that both think that it is theirs write one snapshot after the other. */
	if (rc != OK && rc != ERR_UNSUPPORTED)
		goto fail;
	TRY(snapshot_file(c, file, node, generation, out, err));
	TRY(bucket_put_file(b, slots[generation % SLOTS], file, NULL, err));
fail:
	(void)!io_unlink(file, NULL);
	if (claimed)
		(void)!bucket_delete(b, claim, NULL);
	return rc;
}

/* ---- reading ---- */

struct reader {
	struct bucket *b;
	const char *key;
	uint64_t off, end; /* not asked for yet */
	struct buf bytes;  /* what was, from `at` on */
	size_t at;
	struct buf raw; /* of the page that was read last */
};

/* n bytes in one run, borrowed until the next call. */
static errc take(struct reader *r, size_t n, const uint8_t **p, struct err *err)
{
	errc rc = OK;
	size_t left = r->bytes.n - r->at;
	if (left < n) {
		if (left)
			memmove(r->bytes.p, r->bytes.p + r->at, left);
		r->bytes.n = left;
		r->at = 0;
		uint64_t more = n - left > READ_BYTES ? n - left : READ_BYTES;
		if (more > r->end - r->off)
			more = r->end - r->off;
		CHECK(left + more >= n, ERR_CORRUPT, "%s: ends within a page", r->key);
		CHECK(buf_reserve(&r->bytes, more), ERR_NOMEM, "no memory for a page of a snapshot");
		TRY(bucket_get_range(r->b, r->key, r->off, more, r->bytes.p + left, err));
		r->bytes.n += more;
		r->off += more;
	}
	*p = r->bytes.p + r->at;
	r->at += n;
fail:
	return rc;
}

static errc page_read(struct reader *r, const struct header *h, uint32_t number, struct span *raw, struct err *err)
{
	errc rc = OK;
	const uint8_t *p;
	uint8_t head[PAGE_HEADER];
	TRY(take(r, PAGE_HEADER, &p, err));
	memcpy(head, p, sizeof head);
	uint32_t raw_n = get_le32(head + 4), stored = get_le32(head + 8);
	CHECK(get_le32(head) == number && raw_n <= PAGE_RAW_MAX && stored <= raw_n && (uint64_t)stored * LZ4_RATIO_MAX >= raw_n, ERR_CORRUPT,
		"%s: page %" PRIu32 " says %" PRIu32 ", of %" PRIu32 " bytes in %" PRIu32, r->key, number, get_le32(head), raw_n, stored);
	TRY(take(r, stored, &p, err));
	/* The header stands in front of it no more when the run was moved. */
	uint8_t g[8];
	put_le64(g, h->s.generation);
	CHECK(crc32c(crc32c(crc32c(0, g, sizeof g), head, 12), p, stored) == get_le32(head + 12), ERR_CORRUPT,
		"%s: the checksum of page %" PRIu32 " is wrong", r->key, number);
	if (stored == raw_n) {
		*raw = span_of(p, raw_n);
		return OK;
	}
	buf_clear(&r->raw);
	CHECK(buf_reserve(&r->raw, raw_n), ERR_NOMEM, "no memory for a page of a snapshot");
	CHECK(LZ4_decompress_safe((const char *)p, (char *)r->raw.p, (int)stored, (int)raw_n) == (int)raw_n, ERR_CORRUPT,
		"%s: page %" PRIu32 " can't be decompressed", r->key, number);
	*raw = span_of(r->raw.p, raw_n);
fail:
	return rc;
}

/* A page of blocks: one transaction. */
static errc page_take(struct catalog *c, struct span run, uint64_t *digest, uint64_t *blocks, uint64_t *news, struct arena *arena, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	while (rc == OK && run.n > 0) {
		struct feed_record r;
		bool is_news = false;
		rc = feed_record_decode(&run, &r, err);
		if (rc == OK)
			rc = feed_record_take(c, conn, &r, arena, &is_news, err);
		if (rc == OK && r.state == BLOCK_LIVE)
			*digest += feed_digest_of(r.ulid, r.marked, crc32c(0, r.meta.p, r.meta.n));
		*blocks += rc == OK;
		*news += is_news;
		arena_reset(arena);
	}
	TRY(catalog_end(conn, rc, err));
fail:
	catalog_give(c, conn);
	return rc;
}

static errc position_read(struct rd *r, struct span *node, struct feed_position *at, struct err *err)
{
	errc rc = OK;
	*node = rd_bytes(r, rd_u8(r));
	struct span name = rd_bytes(r, sizeof at->feed.b);
	at->seq = rd_le64(r);
	CHECK(r->ok && node->n > 0 && node->n < FEED_NODE_BYTES && at->seq <= INT64_MAX, ERR_CORRUPT, "a snapshot's positions are malformed");
	memcpy(at->feed.b, name.p, sizeof at->feed.b);
fail:
	return rc;
}

/* The end: all blocks of it were taken, so its positions are true here, too. */
static errc positions_take(struct catalog *c, struct span node, struct span positions, uint32_t n, struct err *err)
{
	static const char get[] = "SELECT feed, seq FROM followed WHERE node=?1";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	bool open = false, owed = false;
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	open = true;
	pthread_mutex_lock(&c->mu);
	struct ulid own = c->feed;
	pthread_mutex_unlock(&c->mu);
	struct rd r = rd_of(positions.p, positions.n);
	for (uint32_t i = 0; i < n; i++) {
		struct span who;
		struct feed_position at, had = {0};
		TRY(position_read(&r, &who, &at, err));
		if (span_eq(who, node)) {
			/* This node, in a life before this catalog: what it saw after the snapshot nobody can tell any more. */
			owed |= !ulid_eq(at.feed, own);
			continue;
		}
		sqlite3_stmt *st = catalog_stmt(conn, get, err);
		CHECK(st, ERR_IO, "catalog: followed");
		catalog_bind_span(st, 1, who);
		if (sqlite3_step(st) == SQLITE_ROW && ulid_parse(catalog_column(st, 0), &had.feed))
			had.seq = (uint64_t)sqlite3_column_int64(st, 1);
		sqlite3_reset(st);
		/* Feeds are named by the time when their catalogs were made. */
		int order = ulid_cmp(at.feed, had.feed);
		if (order > 0 || (order == 0 && at.seq > had.seq))
			TRY(feed_position_set(conn, who, at, err));
	}
	CHECK(rd_left(&r) == 0, ERR_CORRUPT, "a snapshot's positions are malformed");
	if (owed) {
		pthread_mutex_lock(&c->mu);
		c->jumps++;
		pthread_mutex_unlock(&c->mu);
		TRY(catalog_fact_set(conn, "owed", "1", err));
	}
	TRY(catalog_fact_set(conn, "complete", "1", err));
fail:
	if (open)
		rc = catalog_end(conn, rc, err);
	if (rc == OK) {
		pthread_mutex_lock(&c->mu);
		c->complete = true;
		pthread_cond_broadcast(&c->audited);
		pthread_mutex_unlock(&c->mu);
	}
	catalog_give(c, conn);
	return rc;
}

static errc snapshot_take(struct catalog *c, struct bucket *b, struct span node, const char *key, const struct header *h, struct err *err)
{
	errc rc = OK;
	struct reader r = {.b = b, .key = key, .off = HEADER_BYTES, .end = h->s.size_bytes};
	struct arena arena;
	struct span raw;
	char *positions = NULL;
	size_t n_positions = 0;
	uint64_t digest = 0, blocks = 0, news = 0;
	int64_t begin = io_mono_ms();
	uint64_t generation = catalog_generation(c);
	arena_init(&arena, 8 * LIMIT_META_JSON_BYTES);
	buf_init(&r.bytes, PAGE_RAW_MAX + PAGE_HEADER + 2 * (size_t)READ_BYTES);
	buf_init(&r.raw, PAGE_RAW_MAX);
	for (uint32_t i = 0; i < h->pages; i++) {
		TRY(page_read(&r, h, i, &raw, err));
		if (i > 0) {
			TRY(page_take(c, raw, &digest, &blocks, &news, &arena, err));
			continue;
		}
		CHECK(raw.n <= (size_t)h->positions * POSITION_MAX, ERR_CORRUPT, "%s: %zu bytes of %" PRIu32 " positions", key, raw.n, h->positions);
		n_positions = raw.n;
		positions = malloc(raw.n + 1);
		CHECK(positions, ERR_NOMEM, "no memory for the positions of a snapshot");
		if (raw.n)
			memcpy(positions, raw.p, raw.n);
	}
	CHECK(r.off == r.end && r.at == r.bytes.n && blocks == h->s.blocks && digest == h->s.digest, ERR_CORRUPT,
		"%s: %" PRIu64 " blocks of %" PRIu64 ", and the digest of those that are live is %016" PRIx64 ", not %016" PRIx64, key, blocks,
		h->s.blocks, digest, h->s.digest);
	CHECK(generation == catalog_generation(c), ERR_AGAIN, "the catalog was made anew while a snapshot was read into it");
	TRY(positions_take(c, node, span_of(positions, n_positions), h->positions, err));
	log_info("snapshot of the catalog taken from the bucket", LSTR("key", key), LSTR("written_by", h->s.node),
		LU64("generation", h->s.generation), LI64("age_ms", io_now_ms() - h->s.made_ms), LU64("blocks", blocks), LU64("news", news),
		LI64("ms", io_mono_ms() - begin));
fail:
	free(positions);
	arena_free(&arena);
	buf_free(&r.bytes);
	buf_free(&r.raw);
	return rc;
}

errc feed_snapshot_take(struct catalog *c, struct bucket *b, struct span node, uint64_t than, struct feed_snapshot *out, struct err *err)
{
	struct header v[SLOTS];
	int slot_of[SLOTS];
	struct err own = {0};
	if (!err)
		err = &own;
	errc rc = headers(b, v, slot_of, err);
	if (rc != OK)
		return rc;
	if (v[0].s.generation <= than)
		return err_set(err, ERR_NOTFOUND, "no snapshot of a catalog in the bucket is newer than generation %" PRIu64, than);
	for (int i = 0; i < SLOTS && v[i].s.generation > than; i++) {
		rc = snapshot_take(c, b, node, slots[slot_of[i]], &v[i], err);
		if (rc == OK) {
			*out = v[i].s;
			return OK;
		}
		/* Rot, or the next but one is being written over it. */
		if (rc != ERR_CORRUPT && rc != ERR_NOTFOUND)
			return rc;
		log_warn("snapshot of the catalog refused", LSTR("key", slots[slot_of[i]]), LERR(err));
	}
	return rc;
}
