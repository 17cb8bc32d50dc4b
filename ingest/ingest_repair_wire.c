/* ingest/ingest_repair_wire.c - what nodes answer each other about their windows (docs/format/repair.md).
 *
 *   offset  size  field, little-endian
 *        0     4  "vrvR"
 *        4     2  version, 1
 *        6     2  kind: 1 windows, 2 digest, 3 piece, 4 owed
 *        8     4  crc32c over all other bytes
 *       12     -  windows: epoch (8), since (8), next (4), n (4), then of each: length of the tenant's name (1), flags (1: 1 cut), start (8), range (8),
 *                          samples (8), the name
 *                 digest:  epoch (8), flags (1: 1 open, 2 cut), n (2), then of each bucket that is not empty, ascending: number (1), series (8), samples (8),
 *                          sum, low half first (16)
 *                 piece:   epoch (8), flags (1: 1 more), cursor: process (8), window (4), shard (4), local (4), t (8); series (8), samples (8); the rest is a
 *                          frame (docs/format/peer.md), or nothing
 *                 owed:    pending bytes (8), from (8), to (8)
 */
#include <inttypes.h>
#include <stdio.h>
#include "base/tenant.h"
#include "ingest/ingest_repair_int.h"

enum { VERSION = 1, HEADER = 12, AT_CRC = 8, WINDOW_BYTES = 26, BUCKET_BYTES = 33 };
enum kind { KIND_WINDOWS = 1, KIND_DIGEST, KIND_PIECE, KIND_OWED };
static const uint8_t magic[4] = {'v', 'r', 'v', 'R'};

static void le16(struct buf *b, uint32_t x)
{
	buf_u8(b, (uint8_t)x);
	buf_u8(b, (uint8_t)(x >> 8));
}
static void le32(struct buf *b, uint32_t x)
{
	uint8_t v[4];
	put_le32(v, x);
	buf_put(b, v, 4);
}
static void le64(struct buf *b, uint64_t x)
{
	uint8_t v[8];
	put_le64(v, x);
	buf_put(b, v, 8);
}
static uint32_t rd_le16(struct rd *r)
{
	uint32_t lo = rd_u8(r);
	return lo | (uint32_t)rd_u8(r) << 8;
}

static size_t begin(struct buf *out, enum kind kind)
{
	size_t at = out->n;
	buf_put(out, magic, 4);
	le16(out, VERSION);
	le16(out, kind);
	le32(out, 0);
	return at;
}

static uint32_t crc_of(const uint8_t *p, size_t n)
{
	return crc32c(crc32c(0, p, AT_CRC), p + AT_CRC + 4, n - AT_CRC - 4);
}

static errc end(struct buf *out, size_t at, struct err *err)
{
	if (out->failed)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for an answer");
	put_le32(out->p + at + AT_CRC, crc_of(out->p + at, out->n - at));
	return OK;
}

static errc malformed(struct err *err, const char *what)
{
	return err_id(err, ERRID_PEER_FRAME, ERR_INVALID, "a peer's answer: %s", what);
}

static errc open_message(struct span bytes, enum kind kind, struct rd *r, struct err *err)
{
	const uint8_t *p = (const uint8_t *)bytes.p;
	if (bytes.n < HEADER || memcmp(p, magic, 4) != 0)
		return malformed(err, "no message of a varve");
	*r = rd_of(p + 4, bytes.n - 4);
	uint32_t version = rd_le16(r), is = rd_le16(r), crc = rd_le32(r);
	if (version != VERSION)
		return err_id(err, ERRID_PEER_FRAME, ERR_UNSUPPORTED, "a peer's answer of version %u, this varve reads %d", version, VERSION);
	if (is != kind)
		return malformed(err, "another kind than was asked for");
	if (crc != crc_of(p, bytes.n))
		return malformed(err, "the checksum is wrong");
	return OK;
}

/* ---- windows ---- */

errc repair_windows_encode(const struct repair_windows *m, struct buf *out, struct err *err)
{
	size_t at = begin(out, KIND_WINDOWS);
	le64(out, m->epoch);
	le64(out, (uint64_t)m->since_ms);
	le32(out, m->next);
	le32(out, m->n);
	for (uint32_t i = 0; i < m->n; i++) {
		const struct repair_window *w = &m->v[i];
		buf_u8(out, (uint8_t)w->tenant.n);
		buf_u8(out, w->cut);
		le64(out, (uint64_t)w->start);
		le64(out, (uint64_t)w->range);
		le64(out, w->samples);
		buf_span(out, w->tenant);
	}
	return end(out, at, err);
}

errc repair_windows_decode(struct span bytes, struct arena *arena, struct repair_windows *m, struct err *err)
{
	struct rd r;
	errc rc = open_message(bytes, KIND_WINDOWS, &r, err);
	if (rc != OK)
		return rc;
	m->epoch = rd_le64(&r);
	m->since_ms = (int64_t)rd_le64(&r);
	m->next = rd_le32(&r);
	m->n = rd_le32(&r);
	if (!r.ok || m->n > rd_left(&r) / (WINDOW_BYTES + 1))
		return malformed(err, "it ends in its windows");
	m->v = arena_alloc(arena, m->n * sizeof *m->v);
	if (!m->v)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %u windows", m->n);
	for (uint32_t i = 0; i < m->n; i++) {
		uint32_t name = rd_u8(&r), flags = rd_u8(&r);
		struct repair_window *w = &m->v[i];
		w->start = (int64_t)rd_le64(&r);
		w->range = (int64_t)rd_le64(&r);
		w->samples = rd_le64(&r);
		w->cut = flags & 1;
		w->tenant = rd_bytes(&r, name);
		if (!r.ok || flags > 1 || !tenant_valid(w->tenant) || w->range <= 0 || w->start > INT64_MAX - w->range)
			return malformed(err, "a window that is none");
	}
	return r.p == r.end ? OK : malformed(err, "something stands behind its end");
}

/* ---- digest ---- */

errc repair_digest_encode(const struct repair_digest_answer *m, struct buf *out, struct err *err)
{
	size_t at = begin(out, KIND_DIGEST);
	uint32_t n = 0;
	for (uint32_t i = 0; i < DIGEST_BUCKETS; i++)
		n += m->buckets[i].samples > 0;
	le64(out, m->epoch);
	buf_u8(out, (uint8_t)(m->open | m->cut << 1));
	le16(out, n);
	for (uint32_t i = 0; i < DIGEST_BUCKETS; i++) {
		const struct digest_bucket *b = &m->buckets[i];
		if (b->samples == 0)
			continue;
		buf_u8(out, (uint8_t)i);
		le64(out, b->series);
		le64(out, b->samples);
		le64(out, b->sum[0]);
		le64(out, b->sum[1]);
	}
	return end(out, at, err);
}

errc repair_digest_decode(struct span bytes, struct repair_digest_answer *m, struct err *err)
{
	struct rd r;
	errc rc = open_message(bytes, KIND_DIGEST, &r, err);
	if (rc != OK)
		return rc;
	memset(m, 0, sizeof *m);
	m->epoch = rd_le64(&r);
	uint32_t flags = rd_u8(&r), n = rd_le16(&r);
	if (!r.ok || flags > 3 || rd_left(&r) != (size_t)n * BUCKET_BYTES)
		return malformed(err, "a digest of another size");
	m->open = flags & 1;
	m->cut = flags & 2;
	int64_t last = -1;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = rd_u8(&r);
		struct digest_bucket *b = &m->buckets[k];
		b->series = rd_le64(&r);
		b->samples = rd_le64(&r);
		b->sum[0] = rd_le64(&r);
		b->sum[1] = rd_le64(&r);
		if ((int64_t)k <= last || b->samples == 0)
			return malformed(err, "buckets of a digest that do not ascend, or are empty");
		last = k;
	}
	return OK;
}

/* ---- piece ---- */

errc repair_piece_encode(const struct repair_piece *m, struct buf *out, struct err *err)
{
	size_t at = begin(out, KIND_PIECE);
	le64(out, m->epoch);
	buf_u8(out, m->more);
	le64(out, m->cursor.process);
	le32(out, m->cursor.window);
	le32(out, m->cursor.place.shard);
	le32(out, m->cursor.place.local);
	le64(out, (uint64_t)m->cursor.t);
	le64(out, m->series);
	le64(out, m->samples);
	buf_span(out, m->frame);
	return end(out, at, err);
}

errc repair_piece_decode(struct span bytes, struct repair_piece *m, struct err *err)
{
	struct rd r;
	errc rc = open_message(bytes, KIND_PIECE, &r, err);
	if (rc != OK)
		return rc;
	*m = (struct repair_piece){.epoch = rd_le64(&r)};
	uint32_t flags = rd_u8(&r);
	m->more = flags & 1;
	m->cursor.process = rd_le64(&r);
	m->cursor.window = rd_le32(&r);
	m->cursor.place.shard = rd_le32(&r);
	m->cursor.place.local = rd_le32(&r);
	m->cursor.t = (int64_t)rd_le64(&r);
	m->series = rd_le64(&r);
	m->samples = rd_le64(&r);
	if (!r.ok || flags > 1)
		return malformed(err, "a piece that is none");
	m->frame = span_of(r.p, rd_left(&r));
	return OK;
}

/* ---- owed ---- */

errc repair_owed_encode(const struct repair_owed *m, struct buf *out, struct err *err)
{
	size_t at = begin(out, KIND_OWED);
	le64(out, m->pending_bytes);
	le64(out, (uint64_t)m->from_ms);
	le64(out, (uint64_t)m->to_ms);
	return end(out, at, err);
}

errc repair_owed_decode(struct span bytes, struct repair_owed *m, struct err *err)
{
	struct rd r;
	errc rc = open_message(bytes, KIND_OWED, &r, err);
	if (rc != OK)
		return rc;
	m->pending_bytes = rd_le64(&r);
	m->from_ms = (int64_t)rd_le64(&r);
	m->to_ms = (int64_t)rd_le64(&r);
	return r.ok && r.p == r.end ? OK : malformed(err, "what is owed has another size");
}

/* ---- texts, for targets ---- */

static int hex_of(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

void repair_cursor_text(const struct repair_cursor *c, char out[REPAIR_CURSOR_TEXT])
{
	snprintf(out, REPAIR_CURSOR_TEXT, "%016" PRIx64 "%08" PRIx32 "%08" PRIx32 "%08" PRIx32 "%016" PRIx64, c->process, c->window, c->place.shard,
		c->place.local, (uint64_t)c->t);
}

bool repair_cursor_parse(struct span text, struct repair_cursor *out)
{
	static const uint8_t digits[5] = {16, 8, 8, 8, 16};
	uint64_t v[5] = {0};
	size_t at = 0;
	if (text.n != 56)
		return false;
	for (int i = 0; i < 5; i++)
		for (int k = 0; k < digits[i]; k++) {
			int x = hex_of(text.p[at++]);
			if (x < 0)
				return false;
			v[i] = v[i] << 4 | (uint64_t)x;
		}
	*out = (struct repair_cursor){v[0], (uint32_t)v[1], {(uint32_t)v[2], (uint32_t)v[3]}, (int64_t)v[4]};
	return true;
}

void repair_buckets_text(const uint8_t set[REPAIR_BUCKETS_BYTES], char out[2 * REPAIR_BUCKETS_BYTES + 1])
{
	for (int i = 0; i < REPAIR_BUCKETS_BYTES; i++)
		snprintf(out + 2 * i, 3, "%02x", set[i]);
}

bool repair_buckets_parse(struct span text, uint8_t set[REPAIR_BUCKETS_BYTES])
{
	if (text.n != 2 * (size_t)REPAIR_BUCKETS_BYTES)
		return false;
	for (int i = 0; i < REPAIR_BUCKETS_BYTES; i++) {
		int hi = hex_of(text.p[2 * i]), lo = hex_of(text.p[2 * i + 1]);
		if (hi < 0 || lo < 0)
			return false;
		set[i] = (uint8_t)(hi << 4 | lo);
	}
	return true;
}
