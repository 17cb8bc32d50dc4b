/* bucket/bucket_feed_wire.c - the bytes of changes: an answer to GET /-/peer/changes, and one change, which is also what a snapshot's pages hold.
 *
 *   answer                                                        change
 *   offset  size  field                                           offset  size  field
 *        0     4  "vrvF"                                               0     8  number in its feed; 0 in a snapshot
 *        4     2  version, 1                                           8     8  version of the block, from 1
 *        6     2  flags: 1 gap, no changes follow                     16    16  ULID
 *        8    16  name of the feed                                    32     1  1 live, 2 quarantined, 3 superseded, 4 deleting, 5 gone
 *       24     8  oldest change that is kept                          33     1  1: marked for deletion
 *       32     8  newest                                              34     2  bytes of the reason
 *       40     8  the changes follow this one                         36     4  of objects
 *       48     4  changes                                             40     4  of meta.json
 *       52     1  length of the node's id                             44     4  0
 *       53     3  0                                                   48     8  bytes of all its objects
 *       56     4  crc32c over everything else                         56     8  size of meta.json as listed
 *       60     -  node's id, changes                                  64     8  its time as listed, 0: never was
 *                                                                     72     -  reason, objects, meta.json
 *
 * All numbers little-endian and of fixed size: there is one way to say a thing.
 */
#include <inttypes.h>
#include "bucket/bucket_feed_int.h"

enum { ANSWER_BYTES = 60, AT_FLAGS = 6, AT_N = 48, AT_CRC = 56, RECORD_BYTES = 72, FLAG_GAP = 1, VERSION = 1 };

static const uint8_t magic[4] = {'v', 'r', 'v', 'F'};

/* By their numbers on the wire, which are also their order: what comes later in a block's life wins over what was before it. */
static const enum block_state states[] = {BLOCK_LIVE, BLOCK_QUARANTINED, BLOCK_SUPERSEDED, BLOCK_DELETING, BLOCK_GONE};
enum { STATES = sizeof states / sizeof states[0] };

static uint8_t state_number(enum block_state s)
{
	for (uint8_t i = 0; i < STATES; i++)
		if (states[i] == s)
			return (uint8_t)(i + 1);
	ASSERT(false); /* no state of a block in a bucket */
	return 0;
}

uint32_t feed_rank(enum block_state state, bool marked)
{
	return state_number(state) * 2U + marked;
}

static void put_le16(uint8_t *p, uint32_t x)
{
	p[0] = (uint8_t)x;
	p[1] = (uint8_t)(x >> 8);
}

static uint32_t get_le16(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8;
}

static uint32_t crc_around(const uint8_t *p, size_t n)
{
	return crc32c(crc32c(0, p, AT_CRC), p + AT_CRC + 4, n - AT_CRC - 4);
}

/* ---- an answer ---- */

void feed_answer_begin(const struct feed_answer *a, struct buf *out)
{
	uint8_t h[ANSWER_BYTES] = {0};
	ASSERT(a->node.n < FEED_NODE_BYTES);
	memcpy(h, magic, sizeof magic);
	put_le16(h + 4, VERSION);
	put_le16(h + AT_FLAGS, a->gap ? FLAG_GAP : 0);
	memcpy(h + 8, a->feed.b, sizeof a->feed.b);
	put_le64(h + 24, a->oldest);
	put_le64(h + 32, a->last);
	put_le64(h + 40, a->after);
	h[52] = (uint8_t)a->node.n;
	buf_put(out, h, sizeof h);
	buf_span(out, a->node);
}

void feed_answer_end(struct buf *out, size_t begin, uint32_t n)
{
	if (out->failed)
		return;
	uint8_t *p = out->p + begin;
	put_le32(p + AT_N, n);
	put_le32(p + AT_CRC, crc_around(p, out->n - begin));
}

errc feed_answer_decode(struct span bytes, struct feed_answer *out, struct err *err)
{
	errc rc = OK;
	const uint8_t *p = (const uint8_t *)bytes.p;
	CHECK(bytes.n >= ANSWER_BYTES && memcmp(p, magic, sizeof magic) == 0, ERR_CORRUPT, "feed: %zu bytes that are no answer", bytes.n);
	CHECK(get_le16(p + 4) == VERSION, ERR_UNSUPPORTED, "feed: version %" PRIu32 ", this varve speaks %d", get_le16(p + 4), VERSION);
	CHECK(get_le32(p + AT_CRC) == crc_around(p, bytes.n), ERR_CORRUPT, "feed: the answer's checksum is wrong");
	uint32_t flags = get_le16(p + AT_FLAGS), node_n = p[52];
	CHECK(flags <= FLAG_GAP && p[53] == 0 && p[54] == 0 && p[55] == 0, ERR_CORRUPT, "feed: unknown flags %" PRIu32, flags);
	CHECK(node_n > 0 && node_n < FEED_NODE_BYTES && ANSWER_BYTES + node_n <= bytes.n, ERR_CORRUPT, "feed: a node's id of %" PRIu32 " bytes",
		node_n);
	*out = (struct feed_answer){
		.gap = flags & FLAG_GAP,
		.oldest = get_le64(p + 24),
		.last = get_le64(p + 32),
		.after = get_le64(p + 40),
		.n = get_le32(p + AT_N),
		.node = span_of(p + ANSWER_BYTES, node_n),
		.changes = span_of(p + ANSWER_BYTES + node_n, bytes.n - ANSWER_BYTES - node_n),
	};
	memcpy(out->feed.b, p + 8, sizeof out->feed.b);
	CHECK(out->last <= INT64_MAX && out->oldest <= out->last && (out->gap || out->after <= out->last), ERR_CORRUPT,
		"feed: changes %" PRIu64 " to %" PRIu64 ", behind %" PRIu64, out->oldest, out->last, out->after);
	CHECK(!ulid_is_zero(out->feed) && (out->changes.n == 0) == (out->n == 0) && (!out->gap || out->n == 0), ERR_CORRUPT,
		"feed: %" PRIu32 " changes in %zu bytes", out->n, out->changes.n);
fail:
	return rc;
}

/* ---- a change ---- */

void feed_record_encode(const struct feed_record *r, struct buf *out)
{
	uint8_t h[RECORD_BYTES] = {0};
	struct span reason = span_of(r->reason.p, r->reason.n < LIMIT_FEED_REASON_BYTES ? r->reason.n : LIMIT_FEED_REASON_BYTES);
	ASSERT(r->objects.n <= LIMIT_META_JSON_BYTES && r->meta.n <= LIMIT_META_JSON_BYTES);
	put_le64(h, r->seq);
	put_le64(h + 8, r->version);
	memcpy(h + 16, r->ulid.b, sizeof r->ulid.b);
	h[32] = state_number(r->state);
	h[33] = r->marked;
	put_le16(h + 34, (uint32_t)reason.n);
	put_le32(h + 36, (uint32_t)r->objects.n);
	put_le32(h + 40, (uint32_t)r->meta.n);
	put_le64(h + 48, r->bytes);
	put_le64(h + 56, r->meta_size);
	put_le64(h + 64, (uint64_t)r->meta_mtime);
	buf_put(out, h, sizeof h);
	buf_span(out, reason);
	buf_span(out, r->objects);
	buf_span(out, r->meta);
}

errc feed_record_decode(struct span *run, struct feed_record *out, struct err *err)
{
	errc rc = OK;
	const uint8_t *p = (const uint8_t *)run->p;
	CHECK(run->n >= RECORD_BYTES, ERR_CORRUPT, "feed: a change of %zu bytes", run->n);
	uint32_t state = p[32], marked = p[33], reason_n = get_le16(p + 34), objects_n = get_le32(p + 36), meta_n = get_le32(p + 40);
	*out = (struct feed_record){
		.seq = get_le64(p),
		.version = get_le64(p + 8),
		.marked = marked == 1,
		.bytes = get_le64(p + 48),
		.meta_size = get_le64(p + 56),
		.meta_mtime = (int64_t)get_le64(p + 64),
	};
	memcpy(out->ulid.b, p + 16, sizeof out->ulid.b);
	CHECK(state >= 1 && state <= STATES && marked <= 1 && get_le32(p + 44) == 0, ERR_CORRUPT, "feed: a change to state %" PRIu32, state);
	out->state = states[state - 1];
	CHECK(reason_n <= LIMIT_FEED_REASON_BYTES && objects_n <= LIMIT_META_JSON_BYTES && meta_n <= LIMIT_META_JSON_BYTES &&
			run->n - RECORD_BYTES >= (size_t)reason_n + objects_n + meta_n,
		ERR_CORRUPT, "feed: a change with texts of %" PRIu32 ", %" PRIu32 " and %" PRIu32 " bytes", reason_n, objects_n, meta_n);
	CHECK(out->version > 0 && out->version < INT64_MAX && out->bytes <= INT64_MAX && out->meta_size <= INT64_MAX, ERR_CORRUPT,
		"feed: a change of version %" PRIu64, out->version);
	CHECK(out->state != BLOCK_GONE || (!out->marked && reason_n + objects_n + meta_n == 0), ERR_CORRUPT, "feed: a block that is gone has texts");
	CHECK(meta_n > 0 || out->state == BLOCK_GONE || out->state == BLOCK_QUARANTINED, ERR_CORRUPT, "feed: a block without a meta.json");
	out->reason = span_of(p + RECORD_BYTES, reason_n);
	out->objects = span_of(p + RECORD_BYTES + reason_n, objects_n);
	out->meta = span_of(p + RECORD_BYTES + reason_n + objects_n, meta_n);
	size_t all = RECORD_BYTES + (size_t)reason_n + objects_n + meta_n;
	*run = span_of(run->p + all, run->n - all);
fail:
	return rc;
}
