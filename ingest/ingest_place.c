/* ingest/ingest_place.c - where in the ring the series of a request are: the hash over each one's labels as its sender wrote them.
 *
 * It is taken where the client's request arrives, so what is wrong with labels as such (no protobuf, names that are not UTF-8) is found here, before anything is sent: the same
 * answer, for all of the request, as on a node that is alone.
 */
#include <inttypes.h>
#include "base/limits.h"
#include "ingest/ingest_int.h"

static errc no_labels(size_t series, struct err *err)
{
	return err_id(err, ERRID_PROTOBUF, ERR_INVALID, "series %zu of the request: its labels are not protobuf; nothing was stored", series);
}

static errc no_utf8(struct labels l, struct err *err)
{
	char text[512];
	return err_id(err, ERRID_LABEL_UTF8, ERR_INVALID, "a label's or the metric's name is not UTF-8 in series %s; nothing was stored",
		labels_format(l, text, sizeof text));
}

static inline bool is_ascii(struct span s)
{
	uint64_t bits = 0;
	const char *p = s.p, *end = p + s.n;
	if (s.n >= 8) {
		for (; end - p > 8; p += 8)
			bits |= get_le64(p);
		bits |= get_le64(end - 8);
	} else if (s.n >= 4) {
		bits = get_le32(p) | get_le32(end - 4);
	} else if (s.n > 0) {
		bits = (uint8_t)p[0] | (uint8_t)p[s.n / 2] | (uint8_t)end[-1];
	}
	return (bits & 0x8080808080808080) == 0;
}

static inline bool is_sane(struct span name, struct span value)
{
	return LIKELY(is_ascii(name) && (name.n != 8 || memcmp(name.p, "__name__", 8) != 0 || is_ascii(value))) ||
	       (span_is_utf8(name) && (!span_is(name, "__name__") || span_is_utf8(value)));
}

/* { 0a len 0a n name 12 m value }* with lengths of one byte, as nearly every label is. false: something else, and h has to begin again. */
static inline bool place_fast(struct ring_hash *h, struct span wire)
{
	const uint8_t *p = (const uint8_t *)wire.p, *end = p + wire.n;
	while (p < end) {
		if (UNLIKELY(end - p < 6 || p[0] != 0x0a || p[1] >= 0x80 || end - p - 2 < p[1] || p[2] != 0x0a))
			return false;
		const uint8_t *label_end = p + 2 + p[1];
		struct span name = span_of(p + 4, p[3]);
		if (UNLIKELY(label_end - p < 6 + (ptrdiff_t)name.n || p[3] >= 0x80))
			return false;
		p += 4 + name.n;
		struct span value = span_of(p + 2, p[1]);
		if (UNLIKELY(p[0] != 0x12 || p[1] >= 0x80 || p + 2 + value.n != label_end || !is_sane(name, value)))
			return false;
		ring_hash_add(h, name, value);
		p = label_end;
	}
	return true;
}

static errc place_any(struct ring_hash *h, struct span wire, size_t series, struct arena *arena, struct err *err)
{
	struct labels l;
	errc rc = labels_from_wire(wire, LIMIT_LABELS_DECODE, arena, &l, err);
	if (rc == ERR_NOMEM)
		err->id = errid_text(ERRID_OVERLOADED);
	if (rc == ERR_NOMEM)
		return rc;
	if (rc != OK)
		return no_labels(series, err);
	for (uint32_t k = 0; k < l.n; k++) {
		if (!is_sane(l.v[k].name, l.v[k].value))
			return no_utf8(l, err);
		ring_hash_add(h, l.v[k].name, l.v[k].value);
	}
	return OK;
}

static errc place_refs(struct ring_hash *h, const struct rw_request *rw, const struct rw_series *s, struct arena *arena, struct err *err)
{
	bool sane = true;
	for (uint32_t k = 0; k < s->n_labels; k++) {
		struct span name = rw->symbols[s->refs[2 * k]], value = rw->symbols[s->refs[2 * k + 1]];
		sane &= is_sane(name, value);
		ring_hash_add(h, name, value);
	}
	return LIKELY(sane) ? OK : no_utf8(ingest_labels_of(rw, s, arena), err);
}

errc ingest_places(const struct ingest_part *part, struct arena *arena, uint64_t *out, struct err *err)
{
	errc rc = OK;
	const struct rw_request *rw = part->rw;
	struct ring_hash h;
	ring_hash_begin(&h, part->tenant);
	for (size_t i = 0; i < rw->n_series; i++) {
		const struct rw_series *s = &rw->series[i];
		if (s->refs || s->n_labels == 0)
			TRY(place_refs(&h, rw, s, arena, err));
		else if (UNLIKELY(!place_fast(&h, s->wire))) {
			ring_hash_begin(&h, part->tenant);
			TRY(place_any(&h, s->wire, i, arena, err));
		}
		*out++ = ring_hash_end(&h);
	}
	for (size_t i = 0; part->version == RW_1 && i < rw->n_metadata; i++) {
		ring_hash_add(&h, SPAN("__name__"), rw->metadata[i].family);
		*out++ = ring_hash_end(&h);
	}
fail:
	return rc;
}
