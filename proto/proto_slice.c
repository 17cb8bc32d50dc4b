/* proto/proto_slice.c - a series' field of the client's message, with other labels: for what is sent on after a label was taken from it.
 *
 * In 2.0 it may have other symbols, too: a message that goes on with some of its series takes only those symbols along that they name.
 */
#include "proto/proto_int.h"

/* Bytes of the fields that are no labels; copied to `to` unless that is NULL. */
static CHECKED errc others(struct span message, uint8_t *to, size_t *n, struct err *err)
{
	struct rd r = rd_of(message.p, message.n);
	*n = 0;
	while (r.p < r.end) {
		const uint8_t *start = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return err_id(err, ERRID_PROTOBUF, ERR_INVALID, "remote write series: %s", why);
		if (f.number == SERIES_LABELS)
			continue;
		if (to)
			memcpy(to + *n, start, (size_t)(r.p - start));
		*n += (size_t)(r.p - start);
	}
	return OK;
}

errc rw_slice_relabel(struct span field, const struct rw_series *s, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(field.p, field.n);
	struct pb_field f = {0};
	const char *why = "it is no field of its message";
	size_t n_others = 0, n_refs = 0;
	if (!pb_next(&r, &f, &why) || f.wire != PB_LEN || r.p != r.end)
		return err_id(err, ERRID_PROTOBUF, ERR_INVALID, "remote write series: %s", why);
	TRY(others(f.bytes, NULL, &n_others, err));
	for (uint32_t i = 0; s->refs && i < 2 * s->n_labels; i++)
		n_refs += uvarint_size(s->refs[i]);
	size_t n_labels = !s->refs ? s->wire.n : n_refs > 0 ? 1 + uvarint_size(n_refs) + n_refs : 0, body = n_labels + n_others;
	uint32_t tag = f.number << 3 | PB_LEN;
	uint8_t *p = arena_alloc(arena, uvarint_size(tag) + uvarint_size(body) + body);
	if (!p)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a series of %zu bytes", body);
	uint8_t *at = put_uvarint(put_uvarint(p, tag), body);
	if (!s->refs && n_labels > 0) {
		memcpy(at, s->wire.p, s->wire.n);
		at += s->wire.n;
	} else if (n_labels > 0) {
		at = put_uvarint(put_uvarint(at, SERIES_LABELS << 3 | PB_LEN), n_refs);
		for (uint32_t i = 0; i < 2 * s->n_labels; i++)
			at = put_uvarint(at, s->refs[i]);
	}
	TRY(others(f.bytes, at, &n_others, err));
	*out = span_of(p, (size_t)(at - p) + n_others);
fail:
	return rc;
}

/* ---- other symbols ---- */

enum { SERIES_EXEMPLAR_2 = 4, SERIES_METADATA_2 = 5 };

struct renumber {
	uint32_t (*number)(void *arg, uint32_t ref);
	void *arg;
	struct buf *out;
};

static void put_refs(const struct renumber *n, struct span packed)
{
	struct rd r = rd_of(packed.p, packed.n);
	size_t mark = pb_begin(n->out, 1);
	while (r.p < r.end && r.ok) {
		uint64_t ref = rd_uvarint(&r);
		if (r.ok)
			buf_uvarint(n->out, n->number(n->arg, (uint32_t)ref));
	}
	pb_end(n->out, mark);
}

/* An exemplar (field 1: its labels) or metadata (3 and 4: help and unit): what refers to symbols, and all else as it came. */
static CHECKED errc put_nested(const struct renumber *n, uint32_t field, struct span message, struct err *err)
{
	struct rd r = rd_of(message.p, message.n);
	bool exemplar = field == SERIES_EXEMPLAR_2;
	size_t mark = pb_begin(n->out, field);
	while (r.p < r.end) {
		const uint8_t *start = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return err_id(err, ERRID_PROTOBUF, ERR_INVALID, "remote write series: %s", why);
		bool refers = exemplar ? f.number == 1 : f.number == 3 || f.number == 4;
		if (refers && exemplar && f.wire == PB_LEN)
			put_refs(n, f.bytes);
		else if (refers && f.wire == PB_VARINT)
			pb_uint(n->out, f.number, n->number(n->arg, (uint32_t)f.value));
		else
			buf_put(n->out, start, (size_t)(r.p - start));
	}
	pb_end(n->out, mark);
	return OK;
}

errc rw2_slice_renumber(
	struct span field, const struct rw_series *s, uint32_t (*number)(void *arg, uint32_t ref), void *arg, struct buf *out, struct err *err)
{
	errc rc = OK;
	const struct renumber n = {number, arg, out};
	struct rd r = rd_of(field.p, field.n);
	struct pb_field f = {0};
	const char *why = "it is no field of its message";
	if (!pb_next(&r, &f, &why) || f.wire != PB_LEN || r.p != r.end)
		return err_id(err, ERRID_PROTOBUF, ERR_INVALID, "remote write series: %s", why);
	size_t series = pb_begin(out, f.number), refs = pb_begin(out, SERIES_LABELS);
	for (uint32_t i = 0; i < 2 * s->n_labels; i++)
		buf_uvarint(out, s->refs[i]);
	pb_end(out, refs);
	r = rd_of(f.bytes.p, f.bytes.n);
	while (r.p < r.end) {
		const uint8_t *start = r.p;
		if (!pb_next(&r, &f, &why))
			return err_id(err, ERRID_PROTOBUF, ERR_INVALID, "remote write series: %s", why);
		if (f.number == SERIES_LABELS)
			continue;
		if (f.wire == PB_LEN && (f.number == SERIES_EXEMPLAR_2 || f.number == SERIES_METADATA_2))
			TRY(put_nested(&n, f.number, f.bytes, err));
		else
			buf_put(out, start, (size_t)(r.p - start));
	}
	pb_end(out, series);
	if (out->failed)
		rc = err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a series");
fail:
	return rc;
}
