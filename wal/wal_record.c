/* wal/wal_record.c - what frames are made of: { u8 kind, uvarint length, body }*.
 *
 *   WAL_SERIES   str tenant, then to the end { varint ref - ref before it, str canonical label bytes }
 *   WAL_SAMPLES  uvarint n, str tenant, 16 bytes window, varint start_ms, uvarint range_ms, uvarint bytes of refs, uvarint bytes of times,
 *                then three columns: n varints ref - ref before it, n varints t - t before it, and the values' bits as 8 planes of n
 *                bytes, least significant plane first
 *   WAL_CUT      16 bytes window, 16 bytes block, uvarint upto_seq
 *   WAL_GROUP    records, none of them a group: frames end at record borders, so these stay together
 *
 * Lengths of records and columns are written 4 bytes wide whatever their value (a uvarint may be padded), so that a record is encoded in one pass. n comes first
 * because the log itself counts samples. Columns and planes are what LZ4, which follows, finds repetitions in: a scrape's refs rise by
 * one, its times repeat, and the low bytes of small integers are zero.
 */
#include "wal/wal_int.h"

enum {
	RECORD_HEAD_BYTES = 1 + 4,	 /* kind, padded length */
	SAMPLES_PER_RECORD = 100 * 1000, /* 2.8 MB at the widest: a record fits a frame */
	SAMPLE_MAX_BYTES = 2 * UVARINT_MAX_BYTES + 8,
	SERIES_SPLIT_BYTES = 1024 * 1024,
};

/* Widest head of a samples record: n, tenant's length, window, start, range, two column sizes. */
enum { SAMPLES_HEAD_BYTES = RECORD_HEAD_BYTES + 6 * UVARINT_MAX_BYTES + 16 };

static void length_put(uint8_t *p, size_t n)
{
	ASSERT(n < 1u << 28);
	p[0] = (uint8_t)(n | 0x80);
	p[1] = (uint8_t)(n >> 7 | 0x80);
	p[2] = (uint8_t)(n >> 14 | 0x80);
	p[3] = (uint8_t)(n >> 21 & 0x7f);
}

bool wal_record_next(struct rd *r, struct wal_record *rec, bool *ok)
{
	*ok = r->ok;
	if (!r->ok || r->p == r->end)
		return false;
	rec->kind = rd_u8(r);
	rec->body = rd_str(r);
	*ok = r->ok;
	return r->ok;
}

/* ---- series ---- */

size_t wal_series_bound(size_t tenant_bytes, size_t wire_bytes)
{
	return RECORD_HEAD_BYTES + UVARINT_MAX_BYTES + tenant_bytes + 2 * UVARINT_MAX_BYTES + wire_bytes;
}

void wal_series_begin(struct wal_series_enc *e, struct buf *out, struct span tenant)
{
	*e = (struct wal_series_enc){.out = out, .start = out->n, .tenant = tenant};
	if (!buf_reserve(out, RECORD_HEAD_BYTES))
		return;
	out->p[out->n] = WAL_SERIES;
	out->n += RECORD_HEAD_BYTES;
	buf_str(out, tenant);
	e->first = out->n;
}

void wal_series_end(struct wal_series_enc *e)
{
	if (e->out->failed)
		return;
	if (e->out->n == e->first) /* a record of no series is none */
		e->out->n = e->start;
	else
		length_put(e->out->p + e->start + 1, e->out->n - e->start - RECORD_HEAD_BYTES);
}

void wal_series_put(struct wal_series_enc *e, uint64_t ref, struct span wire)
{
	struct buf *out = e->out;
	if (out->n - e->start > SERIES_SPLIT_BYTES && !out->failed) {
		wal_series_end(e);
		wal_series_begin(e, out, e->tenant);
	}
	buf_varint(out, (int64_t)(ref - e->last_ref));
	buf_str(out, wire);
	e->last_ref = ref;
}

bool wal_series_open(struct span body, struct wal_series_dec *d)
{
	*d = (struct wal_series_dec){.r = rd_of(body.p, body.n)};
	d->tenant = rd_str(&d->r);
	return d->r.ok;
}

bool wal_series_next(struct wal_series_dec *d, uint64_t *ref, struct span *wire, bool *ok)
{
	*ok = d->r.ok;
	if (!d->r.ok || d->r.p == d->r.end)
		return false;
	d->last_ref += (uint64_t)rd_varint(&d->r);
	*ref = d->last_ref;
	*wire = rd_str(&d->r);
	*ok = d->r.ok;
	return d->r.ok;
}

/* ---- samples ---- */

size_t wal_samples_bound(size_t tenant_bytes, size_t n)
{
	size_t records = n / SAMPLES_PER_RECORD + 1;
	return records * (SAMPLES_HEAD_BYTES + tenant_bytes) + n * SAMPLE_MAX_BYTES;
}

/* Byte k of row i and byte i of row k change places: 8 values become 8 bytes of 8 planes, and back. */
static inline void transpose(uint64_t a[8])
{
	for (size_t i = 0; i < 4; i++) {
		uint64_t t = ((a[i] >> 32) ^ a[i + 4]) & UINT64_C(0x00000000ffffffff);
		a[i + 4] ^= t;
		a[i] ^= t << 32;
	}
	for (size_t i = 0; i < 8; i += i % 2 ? 3 : 1) {
		uint64_t t = ((a[i] >> 16) ^ a[i + 2]) & UINT64_C(0x0000ffff0000ffff);
		a[i + 2] ^= t;
		a[i] ^= t << 16;
	}
	for (size_t i = 0; i < 8; i += 2) {
		uint64_t t = ((a[i] >> 8) ^ a[i + 1]) & UINT64_C(0x00ff00ff00ff00ff);
		a[i + 1] ^= t;
		a[i] ^= t << 8;
	}
}

static void planes_put(uint8_t *out, const struct wal_sample *s, size_t n)
{
	size_t i = 0;
	for (; i + 8 <= n; i += 8) {
		uint64_t a[8];
		for (size_t k = 0; k < 8; k++)
			a[k] = s[i + k].v;
		transpose(a);
		for (size_t k = 0; k < 8; k++)
			put_le64(out + k * n + i, a[k]);
	}
	for (; i < n; i++) {
		for (size_t k = 0; k < 8; k++)
			out[k * n + i] = (uint8_t)(s[i].v >> (8 * k));
	}
}

/* One pass over each column; room for the widest was asked for, so nothing is checked on the way. */
static void samples_put_one(struct buf *out, const struct wal_window *w, const struct wal_sample *s, size_t n)
{
	size_t start = out->n;
	if (!buf_reserve(out, SAMPLES_HEAD_BYTES + w->tenant.n + n * SAMPLE_MAX_BYTES))
		return;
	uint8_t *p = out->p + start;
	*p = WAL_SAMPLES;
	p += RECORD_HEAD_BYTES;
	p = put_uvarint(p, n);
	p = put_uvarint(p, w->tenant.n);
	memcpy(p, w->tenant.p, w->tenant.n);
	p += w->tenant.n;
	memcpy(p, w->window.b, 16);
	p += 16;
	p = put_varint(p, w->start_ms);
	p = put_uvarint(p, (uint64_t)w->range_ms);
	uint8_t *lengths = p;
	p += 8;

	uint8_t *column = p;
	uint64_t before = 0;
	for (size_t i = 0; i < n; i++) {
		p = put_varint(p, (int64_t)(s[i].ref - before));
		before = s[i].ref;
	}
	length_put(lengths, (size_t)(p - column));
	column = p;
	before = 0;
	for (size_t i = 0; i < n; i++) {
		p = put_varint(p, (int64_t)((uint64_t)s[i].t - before));
		before = (uint64_t)s[i].t;
	}
	length_put(lengths + 4, (size_t)(p - column));
	planes_put(p, s, n);
	p += 8 * n;
	out->n = (size_t)(p - out->p);
	length_put(out->p + start + 1, out->n - start - RECORD_HEAD_BYTES);
}

void wal_samples_put(struct buf *out, const struct wal_window *w, const struct wal_sample *s, size_t n)
{
	for (size_t i = 0; i < n; i += SAMPLES_PER_RECORD)
		samples_put_one(out, w, s + i, n - i < SAMPLES_PER_RECORD ? n - i : SAMPLES_PER_RECORD);
}

bool wal_samples_open(struct span body, struct wal_samples_dec *d)
{
	*d = (struct wal_samples_dec){0};
	struct rd r = rd_of(body.p, body.n);
	uint64_t n = rd_uvarint(&r);
	d->w.tenant = rd_str(&r);
	struct span window = rd_bytes(&r, 16);
	d->w.start_ms = rd_varint(&r);
	uint64_t range = rd_uvarint(&r);
	uint64_t ref_bytes = rd_uvarint(&r), time_bytes = rd_uvarint(&r);
	struct span refs = rd_bytes(&r, ref_bytes), times = rd_bytes(&r, time_bytes);
	if (!r.ok || n > rd_left(&r) / 8 || rd_left(&r) != n * 8 || range > INT64_MAX)
		return false;
	memcpy(d->w.window.b, window.p, 16);
	d->w.range_ms = (int64_t)range;
	d->n = (size_t)n;
	d->r = rd_of(refs.p, refs.n);
	d->times = rd_of(times.p, times.n);
	d->values = r.p;
	return true;
}

bool wal_samples_next(struct wal_samples_dec *d, struct wal_sample *s, bool *ok)
{
	*ok = d->r.ok && d->times.ok;
	if (!*ok)
		return false;
	if (d->i == d->n) {
		*ok = d->r.p == d->r.end && d->times.p == d->times.end;
		return false;
	}
	d->prev.ref += (uint64_t)rd_varint(&d->r);
	d->prev.t = (int64_t)((uint64_t)d->prev.t + (uint64_t)rd_varint(&d->times));
	*ok = d->r.ok && d->times.ok;
	if (!*ok)
		return false;
	if (d->i % 8 == 0 && d->i + 8 <= d->n) {
		for (size_t k = 0; k < 8; k++)
			d->block[k] = get_le64(d->values + k * d->n + d->i);
		transpose(d->block);
	} else if (d->i % 8 == 0) {
		memset(d->block, 0, sizeof d->block);
		for (size_t k = 0; k < 8; k++) {
			for (size_t i = d->i; i < d->n; i++)
				d->block[i % 8] |= (uint64_t)d->values[k * d->n + i] << (8 * k);
		}
	}
	d->prev.v = d->block[d->i % 8];
	d->i++;
	*s = d->prev;
	return true;
}

/* ---- cut ---- */

void wal_cut_put(struct buf *out, const struct wal_cut *c)
{
	uint8_t body[32 + UVARINT_MAX_BYTES];
	memcpy(body, c->window.b, 16);
	memcpy(body + 16, c->block.b, 16);
	size_t n = (size_t)(put_uvarint(body + 32, c->upto_seq) - body);
	buf_u8(out, WAL_CUT);
	buf_str(out, span_of(body, n));
}

bool wal_cut_get(struct span body, struct wal_cut *c)
{
	struct rd r = rd_of(body.p, body.n);
	struct span window = rd_bytes(&r, 16), block = rd_bytes(&r, 16);
	c->upto_seq = rd_uvarint(&r);
	if (!r.ok || r.p != r.end)
		return false;
	memcpy(c->window.b, window.p, 16);
	memcpy(c->block.b, block.p, 16);
	return true;
}
