/* cluster/cluster_wire.c - the bytes between peers: a write on its way, and the answer.
 *
 *   request                                                   answer
 *   offset  size  field                                       offset  size  field
 *        0     4  "vrvP"                                           0     4  "vrvA"
 *        4     2  version, 1                                       4     2  version, 1
 *        6     2  flags: 1 LZ4, 2 hint                             6     2  flags, 0
 *        8     8  epoch                                            8     8  epoch
 *       16    16  request id                                      16    16  request id
 *       32     4  milliseconds left, 0: not said                  32     8  samples written
 *       36     4  sections                                        40     8  histograms written
 *       40     8  now                                             48     8  exemplars written
 *       48     8  min t                                           56     2  ids
 *       56     8  max t                                           58     2  0
 *       64     4  raw: bytes of payload when decompressed         60     4  verdicts
 *       68     4  stored: bytes of payload that follow            64     4  crc32c over everything else
 *       72     4  crc32c over everything else                     68     -  ids: length (1), text
 *       76     -  payload                                          -    28  a verdict: item (4), kind (1), id (1), 0 (2), t (8),
 *                                                                           samples (4), histograms (4), exemplars (4)
 *   payload: per section
 *        0     1  remote write version, 1 or 2
 *        1     1  length of the tenant's name, n
 *        2     4  series
 *        6     4  metadata fields
 *       10     4  length of the body
 *       14     n  tenant
 *        -     -  body: WriteRequest of 1.0, or Request of 2.0
 *
 * All numbers little-endian and of fixed size: there is one way to say a thing, but for how LZ4 says it. Ids travel as their text because their numbers are a
 * build's own; a fleet that is being upgraded has two builds.
 *
 * What decoding relies on before the CRC is looked at is only that `raw` and `stored` fit each other and the limit: LZ4 makes of a byte 255 at most.
 */
#include <inttypes.h>
#include <lz4.h>
#include "base/limits.h"
#include "base/tenant.h"
#include "cluster/wire.h"

enum { FLAG_LZ4 = 1, FLAG_HINT = 2, FLAGS_KNOWN = 3 };
enum { AT_CRC = 72, ANSWER_AT_CRC = 64, LZ4_RATIO_MAX = 255, IDS_MAX = 255 };
/* Speed for size: labels repeat from series to series, so even a hasty search finds most of it (tests/bench/cluster_bench.c). */
enum { LZ4_ACCELERATION = 4 };

static const uint8_t request_magic[4] = {'v', 'r', 'v', 'P'}, answer_magic[4] = {'v', 'r', 'v', 'A'};

static void put_le16(uint8_t *p, uint32_t x)
{
	p[0] = (uint8_t)x;
	p[1] = (uint8_t)(x >> 8);
}

static uint32_t get_le16(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8;
}

/* Over all bytes but the four at `at`. */
static uint32_t crc_around(const uint8_t *p, size_t n, size_t at)
{
	return crc32c(crc32c(0, p, at), p + at + 4, n - at - 4);
}

static errc malformed(struct err *err, const char *what)
{
	return err_id(err, ERRID_PEER_FRAME, ERR_INVALID, "peer frame: %s", what);
}

/* ---- the request, written ---- */

bool peer_raw_begin(struct buf *raw)
{
	ASSERT(raw->n == 0);
	if (!buf_reserve(raw, PEER_HEADER_BYTES))
		return false;
	memset(raw->p, 0, PEER_HEADER_BYTES);
	raw->n = PEER_HEADER_BYTES;
	return true;
}

size_t peer_section_begin(struct buf *raw, const struct peer_section *s)
{
	ASSERT((s->version == RW_1 || s->version == RW_2) && s->tenant.n <= UINT8_MAX);
	size_t mark = raw->n;
	uint8_t h[PEER_SECTION_BYTES] = {s->version == RW_1 ? 1 : 2, (uint8_t)s->tenant.n};
	put_le32(h + 2, s->n_series);
	put_le32(h + 6, s->n_metadata);
	buf_put(raw, h, sizeof h);
	buf_span(raw, s->tenant);
	return mark;
}

void peer_section_end(struct buf *raw, size_t mark)
{
	if (raw->failed)
		return;
	/* What is too long for its field is too long for a frame, and refused when that is finished. */
	put_le32(raw->p + mark + 10, (uint32_t)(raw->n - mark - PEER_SECTION_BYTES - raw->p[mark + 1]));
}

static void header_put(const struct peer_request *r, uint32_t flags, uint32_t raw_bytes, struct buf *out)
{
	uint8_t *p = out->p;
	memcpy(p, request_magic, 4);
	put_le16(p + 4, PEER_VERSION);
	put_le16(p + 6, flags);
	put_le64(p + 8, r->epoch);
	memcpy(p + 16, r->id, PEER_ID_BYTES);
	put_le32(p + 32, r->left_ms);
	put_le32(p + 36, r->n_sections);
	put_le64(p + 40, (uint64_t)r->now_ms);
	put_le64(p + 48, (uint64_t)r->min_t);
	put_le64(p + 56, (uint64_t)r->max_t);
	put_le32(p + 64, raw_bytes);
	put_le32(p + 68, (uint32_t)(out->n - PEER_HEADER_BYTES));
	put_le32(p + AT_CRC, crc_around(p, out->n, AT_CRC));
}

errc peer_raw_finish(const struct peer_request *r, bool lz4, struct buf *raw, struct buf *out, struct err *err)
{
	uint32_t flags = r->hint ? FLAG_HINT : 0;
	ASSERT(out->n == 0);
	if (raw->failed || raw->n < PEER_HEADER_BYTES)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for what a peer is sent");
	size_t n = raw->n - PEER_HEADER_BYTES;
	if (n > LIMIT_PEER_REQUEST_BYTES)
		return err_id(err, ERRID_DECODED_TOO_LARGE, ERR_LIMIT, "%zu bytes for one peer, at most %" PRIu64 " go", n,
			(uint64_t)LIMIT_PEER_REQUEST_BYTES);
	int packed = 0;
	/* Without room for the copy it goes as it is. */
	size_t room = lz4 ? (size_t)LZ4_compressBound((int)n) : 0;
	if (lz4 && n > 0 && buf_reserve(out, PEER_HEADER_BYTES + room))
		packed = LZ4_compress_fast(
			(const char *)raw->p + PEER_HEADER_BYTES, (char *)out->p + PEER_HEADER_BYTES, (int)n, (int)room, LZ4_ACCELERATION);
	if (packed > 0 && (size_t)packed < n) {
		out->n = PEER_HEADER_BYTES + (size_t)packed;
		flags |= FLAG_LZ4;
	} else {
		struct buf b = *raw;
		*raw = *out;
		*out = b;
	}
	header_put(r, flags, (uint32_t)n, out);
	return OK;
}

errc peer_request_encode(const struct peer_request *r, bool lz4, struct buf *out, struct err *err)
{
	struct buf raw;
	errc rc = OK;
	buf_init(&raw, PEER_HEADER_BYTES + LIMIT_PEER_REQUEST_BYTES);
	bool begun = peer_raw_begin(&raw);
	for (uint32_t i = 0; begun && i < r->n_sections; i++) {
		size_t mark = peer_section_begin(&raw, &r->sections[i]);
		buf_span(&raw, r->sections[i].body);
		peer_section_end(&raw, mark);
	}
	rc = peer_raw_finish(r, lz4, &raw, out, err);
	buf_free(&raw);
	return rc;
}

/* ---- the request, read ---- */

struct header {
	uint32_t flags, raw, stored;
};

static errc header_get(struct span frame, struct header *h, struct peer_request *out, struct err *err)
{
	const uint8_t *p = (const uint8_t *)frame.p;
	if (frame.n < PEER_HEADER_BYTES || memcmp(p, request_magic, 4) != 0)
		return malformed(err, "it does not begin as one");
	if (get_le16(p + 4) != PEER_VERSION)
		return err_id(err, ERRID_PEER_FRAME, ERR_UNSUPPORTED, "peer frame: version %u, this varve speaks %d", get_le16(p + 4), PEER_VERSION);
	*h = (struct header){.flags = get_le16(p + 6), .raw = get_le32(p + 64), .stored = get_le32(p + 68)};
	if (h->flags & ~(uint32_t)FLAGS_KNOWN)
		return err_id(err, ERRID_PEER_FRAME, ERR_UNSUPPORTED, "peer frame: unknown flags %#x", h->flags);
	if (h->stored != frame.n - PEER_HEADER_BYTES)
		return malformed(err, "its length is not what its header says");
	if (h->raw > LIMIT_PEER_REQUEST_BYTES)
		return err_id(err, ERRID_PEER_FRAME, ERR_LIMIT, "peer frame: %u bytes, at most %" PRIu64 " are taken", h->raw,
			(uint64_t)LIMIT_PEER_REQUEST_BYTES);
	if ((h->flags & FLAG_LZ4) ? h->stored >= h->raw || h->raw / LZ4_RATIO_MAX > h->stored : h->stored != h->raw)
		return malformed(err, "its lengths do not fit each other");
	*out = (struct peer_request){
		.epoch = get_le64(p + 8),
		.hint = h->flags & FLAG_HINT,
		.left_ms = get_le32(p + 32),
		.n_sections = get_le32(p + 36),
		.now_ms = (int64_t)get_le64(p + 40),
		.min_t = (int64_t)get_le64(p + 48),
		.max_t = (int64_t)get_le64(p + 56),
	};
	memcpy(out->id, p + 16, PEER_ID_BYTES);
	if (out->n_sections > h->raw / PEER_SECTION_BYTES || out->n_sections > LIMIT_PEER_SECTIONS)
		return malformed(err, "more sections than fit");
	return OK;
}

errc peer_request_declared(struct span frame, size_t *n, struct err *err)
{
	struct header h;
	struct peer_request r;
	errc rc = header_get(frame, &h, &r, err);
	if (rc == OK)
		*n = r.n_sections * sizeof(struct peer_section) + ((h.flags & FLAG_LZ4) ? h.raw : 0);
	return rc;
}

errc peer_request_peek(struct span frame, struct peer_request *out, struct err *err)
{
	struct header h;
	errc rc = header_get(frame, &h, out, err);
	if (rc == OK && crc_around((const uint8_t *)frame.p, frame.n, AT_CRC) != get_le32(frame.p + AT_CRC))
		rc = malformed(err, "its checksum is wrong");
	return rc;
}

static errc section_get(struct rd *r, struct peer_request *req, struct peer_section *s, struct err *err)
{
	uint8_t version = rd_u8(r), tenant_n = rd_u8(r);
	s->n_series = rd_le32(r);
	s->n_metadata = rd_le32(r);
	uint32_t body_n = rd_le32(r);
	s->tenant = rd_bytes(r, tenant_n);
	s->body = rd_bytes(r, body_n);
	if (!r->ok)
		return malformed(err, "a section goes beyond the end");
	if (version != 1 && version != 2)
		return malformed(err, "a section of no known version of remote write");
	if (!tenant_valid(s->tenant))
		return malformed(err, "a tenant's name that none can have");
	s->version = version == 1 ? RW_1 : RW_2;
	/* Tag and length take two bytes of each. */
	uint64_t items = (uint64_t)s->n_series + s->n_metadata;
	if (items > body_n / 2 || (s->n_metadata > 0 && s->version == RW_2))
		return malformed(err, "more series than fit");
	s->first = req->n_items;
	req->n_items += (uint32_t)items;
	return OK;
}

errc peer_request_decode(struct span frame, struct arena *arena, struct peer_request *out, struct err *err)
{
	errc rc = OK;
	struct header h;
	TRY(header_get(frame, &h, out, err));
	const uint8_t *p = (const uint8_t *)frame.p;
	if (crc_around(p, frame.n, AT_CRC) != get_le32(p + AT_CRC))
		return malformed(err, "its checksum is wrong");
	out->sections = arena_calloc(arena, out->n_sections, sizeof *out->sections);
	char *unpacked = (h.flags & FLAG_LZ4) ? arena_alloc(arena, h.raw) : NULL;
	if (!out->sections || (!unpacked && (h.flags & FLAG_LZ4)))
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %u bytes of a peer", h.raw);
	struct rd r = rd_of(p + PEER_HEADER_BYTES, h.stored);
	if (unpacked) {
		if (LZ4_decompress_safe(frame.p + PEER_HEADER_BYTES, unpacked, (int)h.stored, (int)h.raw) != (int)h.raw)
			return malformed(err, "it does not decompress");
		r = rd_of(unpacked, h.raw);
	}
	for (uint32_t i = 0; i < out->n_sections; i++)
		TRY(section_get(&r, out, &out->sections[i], err));
	if (rd_left(&r) > 0)
		return malformed(err, "something follows the last section");
fail:
	return rc;
}

/* ---- how much it is ---- */

/* Any field: its number, and what is in it when it has a length. */
static bool any_field(struct rd *r, uint64_t *number, bool *has_length, struct span *content)
{
	uint64_t tag = rd_uvarint(r);
	*number = tag >> 3;
	*has_length = (tag & 7) == 2;
	switch (tag & 7) {
	case 0:
		rd_uvarint(r);
		break;
	case 1:
		rd_bytes(r, 8);
		break;
	case 2:
		*content = rd_str(r);
		break;
	case 5:
		rd_bytes(r, 4);
		break;
	default:
		r->ok = false;
	}
	return r->ok;
}

uint64_t peer_request_samples(const struct peer_request *r)
{
	uint64_t n = 0, number;
	bool has_length;
	struct span series = {"", 0}, content;
	for (uint32_t i = 0; i < r->n_sections; i++) {
		const struct peer_section *s = &r->sections[i];
		uint64_t series_field = s->version == RW_1 ? 1 : 5, hists_field = s->version == RW_1 ? 4 : 3;
		struct rd body = rd_of(s->body.p, s->body.n);
		while (rd_left(&body) > 0 && any_field(&body, &number, &has_length, &series)) {
			if (number != series_field || !has_length)
				continue;
			struct rd in = rd_of(series.p, series.n);
			while (rd_left(&in) > 0 && any_field(&in, &number, &has_length, &content))
				n += has_length && (number == 2 || number == hists_field);
		}
	}
	return n;
}

/* ---- some of it ---- */

/* One field of a body that was put together here or by a peer like this: tag, length, bytes. `all` is all three. */
static bool field_next(struct rd *r, uint64_t *number, struct span *all)
{
	const uint8_t *start = r->p;
	uint64_t tag = rd_uvarint(r);
	rd_str(r);
	*number = tag >> 3;
	*all = span_of(start, (size_t)(r->p - start));
	return r->ok && (tag & 7) == 2;
}

/* What of a section is kept: behind what `raw` has, and counted in *s. */
static errc section_pick(
	const struct peer_section *from, bool (*keep)(void *arg, uint32_t item), void *arg, struct buf *raw, struct peer_section *s, struct err *err)
{
	struct rd r = rd_of(from->body.p, from->body.n);
	uint32_t item = 0, n_items = from->n_series + from->n_metadata;
	s->n_series = s->n_metadata = 0;
	while (rd_left(&r) > 0) {
		uint64_t number;
		struct span all;
		if (!field_next(&r, &number, &all))
			return malformed(err, "a body that is no write request");
		if (from->version == RW_1 || number == 5) {
			if (item >= n_items)
				return malformed(err, "more series than it says");
			bool wanted = keep(arg, from->first + item);
			bool series = item++ < from->n_series;
			if (!wanted)
				continue;
			*(series ? &s->n_series : &s->n_metadata) += 1;
		}
		buf_span(raw, all);
	}
	return item == n_items ? OK : malformed(err, "fewer series than it says");
}

static errc pick_all(
	const struct peer_request *r, bool (*keep)(void *arg, uint32_t item), void *arg, struct buf *raw, struct peer_request *part, struct err *err)
{
	errc rc = OK;
	for (uint32_t i = 0; i < r->n_sections && !raw->failed; i++) {
		struct peer_section s = r->sections[i];
		size_t mark = peer_section_begin(raw, &s);
		TRY(section_pick(&r->sections[i], keep, arg, raw, &s, err));
		if (raw->failed)
			break;
		if (s.n_series + s.n_metadata == 0) {
			raw->n = mark;
			continue;
		}
		put_le32(raw->p + mark + 2, s.n_series);
		put_le32(raw->p + mark + 6, s.n_metadata);
		peer_section_end(raw, mark);
		part->n_items += s.n_series + s.n_metadata;
		part->n_sections++;
	}
fail:
	return rc;
}

errc peer_request_pick(
	struct span frame, bool lz4, bool (*keep)(void *arg, uint32_t item), void *arg, uint32_t *n_kept, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct buf raw;
	struct peer_request r, part;
	*n_kept = 0;
	arena_init(&arena, 2 * LIMIT_PEER_REQUEST_BYTES + MIB);
	buf_init(&raw, PEER_HEADER_BYTES + LIMIT_PEER_REQUEST_BYTES);
	TRY(peer_request_decode(frame, &arena, &r, err));
	part = r;
	part.hint = true;
	part.left_ms = part.n_items = part.n_sections = 0;
	if (peer_raw_begin(&raw))
		TRY(pick_all(&r, keep, arg, &raw, &part, err));
	if (raw.failed || part.n_sections > 0)
		TRY(peer_raw_finish(&part, lz4, &raw, out, err));
	*n_kept = part.n_items;
fail:
	buf_free(&raw);
	arena_free(&arena);
	return rc;
}

errc peer_request_as_hint(struct span frame, struct buf *out, struct err *err)
{
	ASSERT(frame.n >= PEER_HEADER_BYTES && out->n == 0);
	buf_span(out, frame);
	if (out->failed)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a hint of %zu bytes", frame.n);
	out->p[6] |= FLAG_HINT;
	put_le32(out->p + 32, 0);
	put_le32(out->p + AT_CRC, crc_around(out->p, out->n, AT_CRC));
	return OK;
}

/* ---- the answer ---- */

size_t peer_answer_max(uint32_t n_items)
{
	/* Texts of ids have a byte for their length, so at most 256 bytes each. */
	return PEER_ANSWER_BYTES + (size_t)IDS_MAX * 256 + (size_t)n_items * PEER_VERDICT_BYTES;
}

errc peer_answer_encode(const struct peer_answer *a, struct buf *out, struct err *err)
{
	_Static_assert((int)ERRID_COUNT <= (int)IDS_MAX, "an id's number in the answer is a byte");
	uint8_t number[ERRID_COUNT] = {0}, h[PEER_ANSWER_BYTES] = {0};
	enum errid ids[IDS_MAX];
	uint32_t n_ids = 0;
	size_t start = out->n;
	for (uint32_t i = 0; i < a->n_verdicts; i++) {
		enum errid id = a->verdicts[i].id;
		ASSERT((id == ERRID_NONE) == (a->verdicts[i].kind == PEER_STORED));
		if (id != ERRID_NONE && number[id] == 0) {
			ids[n_ids++] = id;
			number[id] = (uint8_t)n_ids;
		}
	}
	memcpy(h, answer_magic, 4);
	put_le16(h + 4, PEER_VERSION);
	put_le64(h + 8, a->epoch);
	memcpy(h + 16, a->id, PEER_ID_BYTES);
	put_le64(h + 32, a->samples);
	put_le64(h + 40, a->hists);
	put_le64(h + 48, a->exemplars);
	put_le16(h + 56, n_ids);
	put_le32(h + 60, a->n_verdicts);
	buf_put(out, h, sizeof h);
	for (uint32_t i = 0; i < n_ids; i++) {
		struct span text = span_cstr(errid_text(ids[i]));
		buf_u8(out, (uint8_t)text.n);
		buf_span(out, text);
	}
	buf_reserve(out, (size_t)a->n_verdicts * PEER_VERDICT_BYTES);
	for (uint32_t i = 0; i < a->n_verdicts; i++) {
		const struct peer_verdict *v = &a->verdicts[i];
		uint8_t x[PEER_VERDICT_BYTES];
		put_le32(x, v->item);
		x[4] = (uint8_t)v->kind;
		x[5] = number[v->id];
		put_le16(x + 6, 0);
		put_le64(x + 8, (uint64_t)v->t);
		put_le32(x + 16, v->samples);
		put_le32(x + 20, v->hists);
		put_le32(x + 24, v->exemplars);
		buf_put(out, x, sizeof x);
	}
	if (out->failed)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for the answer to a peer");
	put_le32(out->p + start + ANSWER_AT_CRC, crc_around(out->p + start, out->n - start, ANSWER_AT_CRC));
	return OK;
}

static errc verdict_get(struct rd *r, const enum errid *ids, uint32_t n_ids, struct peer_verdict *v, struct err *err)
{
	v->item = rd_le32(r);
	uint8_t kind = rd_u8(r), id = rd_u8(r);
	bool zero = (rd_u8(r) | rd_u8(r)) == 0;
	v->t = (int64_t)rd_le64(r);
	v->samples = rd_le32(r);
	v->hists = rd_le32(r);
	v->exemplars = rd_le32(r);
	if (kind > PEER_AGAIN || id > n_ids || (id == 0) != (kind == PEER_STORED) || !zero)
		return malformed(err, "an answer with a verdict that is none");
	v->kind = (enum peer_verdict_kind)kind;
	v->id = id > 0 ? ids[id - 1] : ERRID_NONE;
	return OK;
}

errc peer_answer_decode(struct span bytes, uint32_t n_items, struct arena *arena, struct peer_answer *out, struct err *err)
{
	errc rc = OK;
	const uint8_t *p = (const uint8_t *)bytes.p;
	enum errid ids[IDS_MAX];
	*out = (struct peer_answer){0};
	if (bytes.n < PEER_ANSWER_BYTES || memcmp(p, answer_magic, 4) != 0)
		return malformed(err, "an answer that does not begin as one");
	if (get_le16(p + 4) != PEER_VERSION || get_le16(p + 6) != 0)
		return err_id(err, ERRID_PEER_FRAME, ERR_UNSUPPORTED, "peer frame: an answer of version %u and flags %#x, this varve speaks %d",
			get_le16(p + 4), get_le16(p + 6), PEER_VERSION);
	if (crc_around(p, bytes.n, ANSWER_AT_CRC) != get_le32(p + ANSWER_AT_CRC))
		return malformed(err, "an answer whose checksum is wrong");
	out->epoch = get_le64(p + 8);
	memcpy(out->id, p + 16, PEER_ID_BYTES);
	out->samples = get_le64(p + 32);
	out->hists = get_le64(p + 40);
	out->exemplars = get_le64(p + 48);
	uint32_t n_ids = get_le16(p + 56);
	out->n_verdicts = get_le32(p + 60);
	if (n_ids > IDS_MAX || get_le16(p + 58) != 0 || out->n_verdicts > n_items)
		return malformed(err, "an answer with more verdicts than were asked for");
	struct rd r = rd_of(p + PEER_ANSWER_BYTES, bytes.n - PEER_ANSWER_BYTES);
	for (uint32_t i = 0; i < n_ids; i++) {
		struct span text = rd_bytes(&r, rd_u8(&r));
		char name[256];
		memcpy(name, text.p, text.n);
		name[text.n] = 0;
		enum errid id = errid_of(name);
		ids[i] = id != ERRID_NONE ? id : ERRID_INTERNAL;
	}
	if (!r.ok || rd_left(&r) != (size_t)out->n_verdicts * PEER_VERDICT_BYTES)
		return malformed(err, "an answer of another length than it says");
	out->verdicts = arena_alloc(arena, (size_t)out->n_verdicts * sizeof *out->verdicts);
	if (!out->verdicts)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %u verdicts of a peer", out->n_verdicts);
	for (uint32_t i = 0; i < out->n_verdicts; i++) {
		TRY(verdict_get(&r, ids, n_ids, &out->verdicts[i], err));
		if (out->verdicts[i].item >= n_items || (i > 0 && out->verdicts[i].item <= out->verdicts[i - 1].item))
			return malformed(err, "an answer whose verdicts are of no series, or not in order");
	}
fail:
	return rc;
}
