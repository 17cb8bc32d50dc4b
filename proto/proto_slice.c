/* proto/proto_slice.c - a series' field of the client's message, with other labels: for what is sent on after a label was taken from it. */
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
