/* query/query_fleet_wire.c - the bytes of POST /-/peer/read: a question, and the frames of its answer.
 *
 * uvarint, varint: base/bytes.h; str: a uvarint length and that many bytes; float: 8 bytes, little-endian.
 *
 *     question  u8 version 1   u8 what   varint mint   varint maxt   uvarint left_ms   str name
 *               uvarint n { str }                                    labels to be left out, as replicas differ in them
 *               uvarint n { uvarint m { u8 type  str name  str value } }     sets of matchers
 *
 *     frame     uvarint length   u32 BE CRC-32C of the payload   payload
 *     payload   'b' u8 version 1   uvarint n (0 or 1) { str warning }        first
 *               's' labels   uvarint n { varint mint   uvarint maxt - mint   u8 encoding   str data }
 *               'n' { str }                                          to its end
 *               'x' labels   uvarint n { str labels in wire form   varint time   float value }
 *               'm' { str family   u8 type   str help   str unit }   to its end
 *               'e' uvarint frames before it                         last
 *     labels    uvarint n { str name   str value }                   ascending
 *
 * Counts size an array only when as many of the least items fit into what is left of the payload, so memory follows bytes that came.
 */
#include "query/query_fleet_int.h"

enum { VERSION = 1, LEAST_LABEL = 2, LEAST_CHUNK = 4, LEAST_EXEMPLAR = 10, LEAST_SET = 1, LEAST_MATCHER = 3 };

/* ---- questions ---- */

errc fleet_question_encode(const struct fleet_question *q, struct buf *out, struct err *err)
{
	buf_u8(out, VERSION);
	buf_u8(out, (uint8_t)q->what);
	buf_varint(out, q->mint);
	buf_varint(out, q->maxt);
	buf_uvarint(out, q->left_ms > 0 ? (uint64_t)q->left_ms : 0);
	buf_str(out, q->name);
	buf_uvarint(out, q->n_replica);
	for (size_t i = 0; i < q->n_replica; i++)
		buf_str(out, q->replica[i]);
	buf_uvarint(out, q->n_sets);
	for (size_t i = 0; i < q->n_sets; i++) {
		buf_uvarint(out, q->sets[i].n);
		for (size_t k = 0; k < q->sets[i].n; k++) {
			const struct matcher *m = &q->sets[i].m[k];
			buf_u8(out, (uint8_t)m->type);
			buf_str(out, m->name);
			buf_str(out, m->value);
		}
	}
	if (out->failed)
		return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "the matchers do not fit a question to a peer");
	return OK;
}

static errc bad_question(struct err *err, const char *what)
{
	return err_id(err, ERRID_BAD_REQUEST, ERR_INVALID, "a peer's question: %s", what);
}

static errc decode_set(struct rd *r, struct arena *arena, struct matcher_set *set, struct err *err)
{
	errc rc = OK;
	uint64_t n = rd_uvarint(r);
	if (!r->ok || n > LIMIT_QUERY_MATCHERS || n > rd_left(r) / LEAST_MATCHER)
		return bad_question(err, "the number of matchers is wrong");
	set->m = arena_calloc(arena, (size_t)n + 1, sizeof *set->m);
	CHECK(set->m, ERR_NOMEM, "no memory for matchers");
	for (uint64_t i = 0; i < n; i++) {
		uint8_t type = rd_u8(r);
		struct span name = rd_str(r), value = rd_str(r);
		if (!r->ok || type > MATCH_NRE)
			return bad_question(err, "a matcher is wrong");
		TRY(matcher_init(&set->m[set->n], (enum matcher_type)type, name, value, arena, err));
		set->n++;
	}
fail:
	return rc;
}

errc fleet_question_decode(struct span body, struct arena *arena, struct fleet_question *out, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(body.p, body.n);
	struct matcher_set *sets = NULL;
	*out = (struct fleet_question){0};
	uint8_t version = rd_u8(&r), what = rd_u8(&r);
	out->what = (enum fleet_what)what;
	out->mint = rd_varint(&r);
	out->maxt = rd_varint(&r);
	uint64_t left = rd_uvarint(&r);
	out->left_ms = left < INT32_MAX ? (int64_t)left : INT32_MAX;
	out->name = rd_str(&r);
	uint64_t n = rd_uvarint(&r);
	if (!r.ok || version != VERSION || what == 0 || what >= FLEET_WHAT_END)
		return bad_question(err, "it is not one of version 1");
	if (n > LIMIT_QUERY_MATCHERS)
		return bad_question(err, "too many replica labels");
	struct span *replica = arena_alloc(arena, (size_t)n * sizeof *replica);
	CHECK(replica, ERR_NOMEM, "no memory for labels");
	for (uint64_t i = 0; i < n; i++)
		replica[i] = rd_str(&r);
	out->replica = replica;
	out->n_replica = (size_t)n;
	n = rd_uvarint(&r);
	if (!r.ok || n > LIMIT_QUERY_MATCHERS || n > rd_left(&r) / LEAST_SET)
		return bad_question(err, "the number of selectors is wrong");
	sets = arena_calloc(arena, (size_t)n + 1, sizeof *sets);
	CHECK(sets, ERR_NOMEM, "no memory for matchers");
	out->sets = sets;
	for (uint64_t i = 0; i < n; i++) {
		out->n_sets++;
		TRY(decode_set(&r, arena, &sets[i], err));
	}
	if (rd_left(&r) > 0)
		TRY(bad_question(err, "more follows than a question has"));
	return OK;
fail:
	matcher_sets_free(sets, out->n_sets);
	out->n_sets = 0;
	return rc;
}

/* ---- frames ---- */

size_t fleet_frame_head(struct span payload, uint8_t out[FLEET_FRAME_HEAD])
{
	uint8_t *p = put_uvarint(out, payload.n);
	put_be32(p, crc32c(0, payload.p, payload.n));
	return (size_t)(p + 4 - out);
}

errc fleet_frame(struct span in, size_t max_bytes, struct span *payload, size_t *used, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(in.p, in.n);
	*used = 0;
	uint64_t n = rd_uvarint(&r);
	if (!r.ok) {
		CHECK(in.n < UVARINT_MAX_BYTES, ERR_CORRUPT, "a frame's length is no number");
		return OK;
	}
	CHECK(n > 0, ERR_CORRUPT, "a frame of nothing");
	if (n > max_bytes)
		return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT,
			"a series of %llu bytes does not fit the memory of one read (--query.max-memory)", (unsigned long long)n);
	if (rd_left(&r) < n + 4)
		return OK;
	uint32_t crc = rd_be32(&r);
	*payload = rd_bytes(&r, n);
	*used = in.n - rd_left(&r);
	CHECK(crc32c(0, payload->p, payload->n) == crc, ERR_CORRUPT, "a frame's checksum is wrong");
fail:
	return rc;
}

/* ---- payloads ---- */

static void put_labels(struct labels l, struct buf *out)
{
	buf_uvarint(out, l.n);
	for (uint32_t i = 0; i < l.n; i++) {
		buf_str(out, l.v[i].name);
		buf_str(out, l.v[i].value);
	}
}

static errc get_labels(struct rd *r, struct arena *arena, struct labels *out, struct err *err)
{
	errc rc = OK;
	uint64_t n = rd_uvarint(r);
	CHECK(r->ok && n <= rd_left(r) / LEAST_LABEL, ERR_CORRUPT, "a series says that it has %llu labels", (unsigned long long)n);
	struct label *v = arena_alloc(arena, (size_t)n * sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory for labels (--query.max-memory)");
	for (uint64_t i = 0; i < n; i++) {
		v[i].name = rd_str(r);
		v[i].value = rd_str(r);
		CHECK(r->ok && (i == 0 || span_cmp(v[i - 1].name, v[i].name) < 0), ERR_CORRUPT, "a series' labels do not ascend");
	}
	*out = (struct labels){v, (uint32_t)n};
fail:
	return rc;
}

void fleet_begin_encode(const char *warning, struct buf *out)
{
	buf_u8(out, FLEET_BEGIN);
	buf_u8(out, VERSION);
	buf_uvarint(out, warning ? 1 : 0);
	if (warning)
		buf_str(out, span_cstr(warning));
}

errc fleet_begin_decode(struct rd *r, struct span *warning, struct err *err)
{
	errc rc = OK;
	uint8_t version = rd_u8(r);
	uint64_t n = rd_uvarint(r);
	*warning = (struct span){0};
	CHECK(r->ok && version == VERSION && n <= 1, ERR_CORRUPT, "the answer's begin is not one of version 1");
	if (n == 1)
		*warning = rd_str(r);
	CHECK(r->ok && rd_left(r) == 0, ERR_CORRUPT, "the answer's begin is wrong");
fail:
	return rc;
}

void fleet_series_encode(struct labels l, const struct chunk *c, size_t n, struct buf *out)
{
	buf_u8(out, FLEET_ONE_SERIES);
	put_labels(l, out);
	buf_uvarint(out, n);
	for (size_t i = 0; i < n; i++) {
		buf_varint(out, c[i].mint);
		buf_uvarint(out, (uint64_t)c[i].maxt - (uint64_t)c[i].mint);
		buf_u8(out, c[i].enc);
		buf_str(out, c[i].data);
	}
}

errc fleet_series_decode(struct rd *r, struct arena *arena, struct labels *l, struct chunk **c, size_t *n, struct err *err)
{
	errc rc = OK;
	TRY(get_labels(r, arena, l, err));
	uint64_t count = rd_uvarint(r);
	CHECK(r->ok && count <= rd_left(r) / LEAST_CHUNK, ERR_CORRUPT, "a series says that it has %llu chunks", (unsigned long long)count);
	struct chunk *v = arena_alloc(arena, (size_t)count * sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory for a series' chunks (--query.max-memory)");
	for (uint64_t i = 0; i < count; i++) {
		v[i].mint = rd_varint(r);
		uint64_t length = rd_uvarint(r);
		v[i].enc = rd_u8(r);
		v[i].data = rd_str(r);
		CHECK(r->ok && length <= (uint64_t)INT64_MAX - (uint64_t)v[i].mint, ERR_CORRUPT, "a chunk is wrong");
		v[i].maxt = (int64_t)((uint64_t)v[i].mint + length);
	}
	CHECK(rd_left(r) == 0, ERR_CORRUPT, "more follows than a series has");
	*c = v;
	*n = (size_t)count;
fail:
	return rc;
}

void fleet_exemplars_encode(struct labels l, const struct exemplar *x, size_t n, struct buf *out)
{
	uint8_t le[8];
	buf_u8(out, FLEET_ONE_EXEMPLARS);
	put_labels(l, out);
	buf_uvarint(out, n);
	for (size_t i = 0; i < n; i++) {
		buf_str(out, x[i].wire);
		buf_varint(out, x[i].t);
		put_le64(le, x[i].v);
		buf_put(out, le, sizeof le);
	}
}

errc fleet_exemplars_decode(struct rd *r, struct arena *arena, struct labels *l, struct exemplar **x, size_t *n, struct err *err)
{
	errc rc = OK;
	TRY(get_labels(r, arena, l, err));
	uint64_t count = rd_uvarint(r);
	CHECK(r->ok && count <= rd_left(r) / LEAST_EXEMPLAR, ERR_CORRUPT, "a series says that it has %llu exemplars", (unsigned long long)count);
	struct exemplar *v = arena_calloc(arena, (size_t)count + 1, sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory for exemplars (--query.max-memory)");
	for (uint64_t i = 0; i < count; i++) {
		v[i].wire = rd_str(r);
		v[i].t = rd_varint(r);
		v[i].v = rd_le64(r);
	}
	CHECK(r->ok && rd_left(r) == 0, ERR_CORRUPT, "a series' exemplars are wrong");
	*x = v;
	*n = (size_t)count;
fail:
	return rc;
}

void fleet_metadata_encode(const struct metadata *m, struct buf *out)
{
	buf_str(out, m->family);
	buf_u8(out, (uint8_t)m->type);
	buf_str(out, m->help);
	buf_str(out, m->unit);
}

errc fleet_metadata_decode(struct rd *r, struct metadata *out, struct err *err)
{
	errc rc = OK;
	struct span family = rd_str(r);
	uint8_t type = rd_u8(r);
	*out = (struct metadata){.family = family, .type = type < METRIC_TYPES ? (enum metric_type)type : METRIC_UNKNOWN};
	out->help = rd_str(r);
	out->unit = rd_str(r);
	CHECK(r->ok, ERR_CORRUPT, "metadata is wrong");
fail:
	return rc;
}
