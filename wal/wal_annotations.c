/* wal/wal_annotations.c - records of exemplars and metadata. Each is whole in itself: no other record is needed to understand it.
 *
 *   WAL_EXEMPLARS  str tenant, then to the end { uvarint place, varint t - t before it, 8 bytes value's bits, str canonical bytes of its own labels }
 *                  place 0: the series is told here, and a str of its canonical bytes follows; else it stands in this body, `place` bytes
 *                  behind its beginning
 *   WAL_METADATA   str tenant, then to the end { u8 type, str family, str help, str unit }
 *
 * A series is named by its labels and not by a ref: exemplars outlive the windows that keep a ref's definition in the log, and they are few. The
 * place makes a checkpoint small, where many exemplars are of the same series and LZ4's window is too short to see it.
 */
#include "wal/wal_int.h"

enum { ANNOTATION_HEAD_BYTES = 1 + 4 }; /* kind, length padded to 4 bytes: filled in at the end */

static void head_put(struct buf *out, enum wal_kind kind, struct span tenant)
{
	static const uint8_t length[4] = {0x80, 0x80, 0x80, 0};
	buf_u8(out, (uint8_t)kind);
	buf_put(out, length, sizeof length);
	buf_str(out, tenant);
}

/* A record of nothing is none. */
static void head_end(struct buf *out, size_t start, size_t first)
{
	if (out->failed)
		return;
	if (out->n == first) {
		out->n = start;
		return;
	}
	size_t n = out->n - start - ANNOTATION_HEAD_BYTES;
	ASSERT(n < 1u << 28);
	for (size_t i = 0; i < 4; i++)
		out->p[start + 1 + i] |= (uint8_t)(n >> (7 * i) & 0x7f);
}

/* ---- exemplars ---- */

size_t wal_exemplars_bound(size_t tenant_bytes)
{
	return ANNOTATION_HEAD_BYTES + UVARINT_MAX_BYTES + tenant_bytes;
}

size_t wal_exemplar_bound(size_t series_bytes, size_t label_bytes)
{
	return 4 * UVARINT_MAX_BYTES + series_bytes + 8 + label_bytes;
}

void wal_exemplars_begin(struct wal_exemplars_enc *e, struct buf *out, struct span tenant)
{
	*e = (struct wal_exemplars_enc){.out = out, .start = out->n};
	head_put(out, WAL_EXEMPLARS, tenant);
	e->first = out->n;
}

uint32_t wal_exemplars_put(struct wal_exemplars_enc *e, struct span series, uint32_t place, const struct exemplar *x)
{
	struct buf *out = e->out;
	buf_uvarint(out, place);
	if (place == 0) {
		place = (uint32_t)(out->n - e->start - ANNOTATION_HEAD_BYTES);
		buf_str(out, series);
	}
	buf_varint(out, (int64_t)((uint64_t)x->t - (uint64_t)e->last_t));
	e->last_t = x->t;
	if (buf_reserve(out, 8)) {
		put_le64(out->p + out->n, x->v);
		out->n += 8;
	}
	buf_str(out, x->wire);
	return place;
}

void wal_exemplars_end(struct wal_exemplars_enc *e)
{
	head_end(e->out, e->start, e->first);
}

bool wal_exemplars_open(struct span body, struct wal_exemplars_dec *d)
{
	*d = (struct wal_exemplars_dec){.r = rd_of(body.p, body.n), .body = (const uint8_t *)body.p};
	d->tenant = rd_str(&d->r);
	return d->r.ok;
}

bool wal_exemplars_next(struct wal_exemplars_dec *d, struct span *series, struct exemplar *x, bool *ok)
{
	*ok = d->r.ok;
	if (!d->r.ok || d->r.p == d->r.end)
		return false;
	const uint8_t *here = d->r.p;
	uint64_t place = rd_uvarint(&d->r);
	if (place == 0) {
		*series = rd_str(&d->r);
	} else if (place < (uint64_t)(here - d->body)) {
		struct rd back = rd_of(d->body + place, (size_t)(here - d->body) - (size_t)place);
		*series = rd_str(&back);
		d->r.ok = d->r.ok && back.ok;
	} else {
		d->r.ok = false;
	}
	d->last_t = (int64_t)((uint64_t)d->last_t + (uint64_t)rd_varint(&d->r));
	uint64_t v = rd_le64(&d->r);
	*x = (struct exemplar){.t = d->last_t, .v = v, .wire = rd_str(&d->r)};
	*ok = d->r.ok;
	return d->r.ok;
}

/* ---- metadata ---- */

size_t wal_metadata_bound(size_t tenant_bytes, size_t n, size_t text_bytes)
{
	return ANNOTATION_HEAD_BYTES + UVARINT_MAX_BYTES + tenant_bytes + n * (1 + 3 * UVARINT_MAX_BYTES) + text_bytes;
}

void wal_metadata_begin(struct wal_metadata_enc *e, struct buf *out, struct span tenant)
{
	*e = (struct wal_metadata_enc){.out = out, .start = out->n};
	head_put(out, WAL_METADATA, tenant);
	e->first = out->n;
}

void wal_metadata_put(struct wal_metadata_enc *e, const struct metadata *m)
{
	buf_u8(e->out, (uint8_t)m->type);
	buf_str(e->out, m->family);
	buf_str(e->out, m->help);
	buf_str(e->out, m->unit);
}

void wal_metadata_end(struct wal_metadata_enc *e)
{
	head_end(e->out, e->start, e->first);
}

bool wal_metadata_open(struct span body, struct wal_metadata_dec *d)
{
	*d = (struct wal_metadata_dec){.r = rd_of(body.p, body.n)};
	d->tenant = rd_str(&d->r);
	return d->r.ok;
}

bool wal_metadata_next(struct wal_metadata_dec *d, struct metadata *m, bool *ok)
{
	*ok = d->r.ok;
	if (!d->r.ok || d->r.p == d->r.end)
		return false;
	uint8_t type = rd_u8(&d->r);
	m->type = type < METRIC_TYPES ? (enum metric_type)type : METRIC_UNKNOWN;
	m->family = rd_str(&d->r);
	m->help = rd_str(&d->r);
	m->unit = rd_str(&d->r);
	*ok = d->r.ok;
	return d->r.ok;
}
