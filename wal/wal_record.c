/* wal/wal_record.c - what frames are made of: { u8 kind, uvarint length, body }*.
 *
 *   WAL_SERIES   str tenant, then to the end { varint ref - ref before it, str canonical label bytes, keys }
 *   WAL_KEYS     to the end { varint ref - ref before it, keys }
 *   WAL_SAMPLES  uvarint n, str tenant, 16 bytes window, varint start_ms, uvarint range_ms, uvarint bytes of refs, uvarint bytes of times, refs, times, values
 *   WAL_HISTOGRAMS  uvarint n, str tenant, 16 bytes window, varint start_ms, uvarint range_ms, n of { varint ref - ref before it, varint t - t before it, str packed }
 *   WAL_CUT      16 bytes window, 16 bytes block, uvarint upto_seq
 *   WAL_GROUP    records, none of them a group: frames end at record borders, so these stay together
 *
 *   keys         u8 (bit 0: which of the two is in use, 1: the first is not 0, 2: the second is not 0, 3: both were used), then 8 bytes of each that is not 0
 *   refs         runs { varint first - (last of the run before + 1), uvarint (count - 1) << 1 | step }, step 0 or 1
 *   times        runs { varint first - last of the run before, uvarint count - 1, varint step if count > 1 }
 *   values       blocks of 128: a code of 4 bits each (the even one in the low half), what the codes ask for, u32 crc32c of the values' bits
 *                   0, 1     the key
 *                   2 .. 7   first key, whole numbers both: zigzag(value - key) in 1 .. 6 bytes
 *                   8 .. 13  second key, the same
 *                   14       8 bytes
 *                   15       5 bytes, the high ones; the low three are 0
 *                In place of the key stands the value before it in the block, where that is of the same ref.
 *
 * Lengths of records and columns are written 4 bytes wide whatever their value (a uvarint may be padded), so that a record is encoded in one pass. n comes first
 * because the log itself counts samples.
 *
 * Most values of a scrape are those of the scrape before, or whole numbers a little above. But what refers to the frame before is lost with it. So a value is told
 * against its series' key, which stands in two frames far apart (like the definition, which carries it) before it is used alone; head_append.c says when it
 * changes. Two keys, because a request that was judged before a change may be written after it, and because a checkpoint has the keys of its own time, while the
 * log that is kept began before: so a key changes only when all that is kept was written after the change before. Should both copies of a key be lost, its values are not wrong
 * but missing: the checksum is over the values themselves.
 */
#include <math.h>
#include "wal/wal_int.h"

enum {
	RECORD_HEAD_BYTES = 1 + 4,	 /* kind, padded length */
	SAMPLES_PER_RECORD = 100 * 1000, /* 3.5 MB at the widest: a record fits a frame */
	SAMPLE_MAX_BYTES = 2 * (UVARINT_MAX_BYTES + 3) + 9,
	SERIES_SPLIT_BYTES = 1024 * 1024,
	KEYS_MAX_BYTES = 1 + 2 * 8,
};

/* Widest head of a samples record: n, tenant's length, window, start, range, two column sizes; and what the last block has beside its samples. */
enum { SAMPLES_HEAD_BYTES = RECORD_HEAD_BYTES + 6 * UVARINT_MAX_BYTES + 16 + 16 };

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
	return RECORD_HEAD_BYTES + UVARINT_MAX_BYTES + tenant_bytes + 2 * UVARINT_MAX_BYTES + wire_bytes + KEYS_MAX_BYTES;
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

static void keys_put(struct buf *out, const struct wal_keys *k)
{
	buf_u8(out, (uint8_t)(k->now | (k->v[0] != 0) << 1 | (k->v[1] != 0) << 2 | k->changed << 3));
	for (int i = 0; i < 2; i++)
		if (k->v[i]) {
			uint8_t le[8];
			put_le64(le, k->v[i]);
			buf_put(out, le, 8);
		}
}

static bool keys_get(struct rd *r, struct wal_keys *k)
{
	uint8_t flags = rd_u8(r);
	k->now = flags & 1;
	k->changed = flags & 8;
	k->v[0] = flags & 2 ? rd_le64(r) : 0;
	k->v[1] = flags & 4 ? rd_le64(r) : 0;
	return r->ok && flags < 16;
}

void wal_series_put(struct wal_series_enc *e, uint64_t ref, struct span wire, const struct wal_keys *keys)
{
	struct buf *out = e->out;
	if (out->n - e->start > SERIES_SPLIT_BYTES && !out->failed) {
		wal_series_end(e);
		wal_series_begin(e, out, e->tenant);
	}
	buf_varint(out, (int64_t)(ref - e->last_ref));
	buf_str(out, wire);
	keys_put(out, keys);
	e->last_ref = ref;
}

size_t wal_keys_bound(void)
{
	return RECORD_HEAD_BYTES + UVARINT_MAX_BYTES + KEYS_MAX_BYTES;
}

void wal_keys_put(struct buf *out, const struct wal_key_change *c, size_t n)
{
	size_t start = out->n;
	uint64_t last = 0;
	if (n == 0 || !buf_reserve(out, RECORD_HEAD_BYTES))
		return;
	out->p[start] = WAL_KEYS;
	out->n += RECORD_HEAD_BYTES;
	for (size_t i = 0; i < n; i++) {
		buf_varint(out, (int64_t)(c[i].ref - last));
		keys_put(out, &c[i].keys);
		last = c[i].ref;
	}
	if (!out->failed)
		length_put(out->p + start + 1, out->n - start - RECORD_HEAD_BYTES);
}

bool wal_keys_next(struct rd *r, struct wal_key_change *c, bool *ok)
{
	*ok = r->ok;
	if (!r->ok || r->p == r->end)
		return false;
	c->ref += (uint64_t)rd_varint(r);
	*ok = keys_get(r, &c->keys);
	return *ok;
}

bool wal_series_open(uint8_t kind, struct span body, struct wal_series_dec *d)
{
	*d = (struct wal_series_dec){.r = rd_of(body.p, body.n), .v1 = kind == WAL_SERIES_1};
	d->tenant = rd_str(&d->r);
	return d->r.ok;
}

bool wal_series_next(struct wal_series_dec *d, uint64_t *ref, struct span *wire, struct wal_keys *keys, bool *ok)
{
	*ok = d->r.ok;
	if (!d->r.ok || d->r.p == d->r.end)
		return false;
	d->last_ref += (uint64_t)rd_varint(&d->r);
	*ref = d->last_ref;
	*wire = rd_str(&d->r);
	*keys = (struct wal_keys){0};
	*ok = d->r.ok && (d->v1 || keys_get(&d->r, keys));
	return *ok;
}

/* ---- samples ---- */

size_t wal_samples_bound(size_t tenant_bytes, size_t n)
{
	size_t records = n / SAMPLES_PER_RECORD + 1;
	return records * (SAMPLES_HEAD_BYTES + tenant_bytes) + n * SAMPLE_MAX_BYTES;
}

enum { CODE_KEY = 0, CODE_WHOLE = 2, CODE_WHOLE_MAX_BYTES = 6, CODE_RAW = 14, CODE_HIGH = 15, HIGH_BYTES = 5 };

/* Exactly a whole number that a double holds, its sign bit included (-0 is none). */
static inline bool whole(uint64_t bits, int64_t *out)
{
	double d = f64_of_bits(bits);
	if (!(fabs(d) < 0x1p53))
		return false;
	*out = (int64_t)d;
	return f64_bits((double)*out) == bits;
}

bool wal_value_whole(uint64_t v)
{
	int64_t i;
	return whole(v, &i);
}

/* Writes 8 bytes at p whatever it needs. */
static inline unsigned value_put(uint8_t *p, uint64_t v, uint64_t base, unsigned key_no, unsigned *code)
{
	int64_t a, b;
	if (v == base) {
		*code = CODE_KEY + key_no;
		return 0;
	}
	if (LIKELY(whole(v, &a) && whole(base, &b))) {
		int64_t d = a - b;
		uint64_t z = (uint64_t)d << 1 ^ (uint64_t)(d >> 63);
		unsigned n = (71u - (unsigned)__builtin_clzll(z)) / 8;
		if (LIKELY(n <= CODE_WHOLE_MAX_BYTES)) {
			*code = CODE_WHOLE + key_no * CODE_WHOLE_MAX_BYTES + n - 1;
			put_le64(p, z);
			return n;
		}
	}
	if ((v & 0xffffff) == 0) {
		*code = CODE_HIGH;
		put_le64(p, v >> 24);
		return HIGH_BYTES;
	}
	*code = CODE_RAW;
	put_le64(p, v);
	return 8;
}

unsigned wal_value_bytes(uint64_t v, uint64_t key)
{
	uint8_t p[8];
	unsigned code;
	return value_put(p, v, key, 0, &code);
}

static uint8_t *block_put(uint8_t *p, const struct wal_sample *s, size_t n)
{
	uint64_t bits[WAL_BLOCK_SAMPLES];
	uint8_t *codes = p;
	p += (n + 1) / 2;
	uint64_t before = ~s[0].ref;
	for (size_t i = 0; i < n; i++) {
		unsigned code;
		bool same = s[i].ref == before;
		p += value_put(p, s[i].v, same ? bits[i - 1] : s[i].key, same ? 0 : s[i].key_no, &code);
		codes[i / 2] = (uint8_t)(i % 2 ? codes[i / 2] | code << 4 : code);
		bits[i] = s[i].v;
		before = s[i].ref;
	}
	uint8_t le[WAL_BLOCK_SAMPLES * 8];
	for (size_t i = 0; i < n; i++)
		put_le64(le + 8 * i, bits[i]);
	put_le32(p, crc32c(0, le, n * 8));
	return p + 4;
}

static uint8_t *refs_put(uint8_t *p, const struct wal_sample *s, size_t n)
{
	uint64_t expected = 0;
	for (size_t i = 0, end; i < n; i = end) {
		end = i + 1;
		uint64_t step = end < n && s[end].ref == s[i].ref ? 0 : 1;
		while (end < n && s[end].ref == s[end - 1].ref + step)
			end++;
		p = put_varint(p, (int64_t)(s[i].ref - expected));
		p = put_uvarint(p, (uint64_t)(end - i - 1) << 1 | step);
		expected = s[end - 1].ref + 1;
	}
	return p;
}

static uint8_t *times_put(uint8_t *p, const struct wal_sample *s, size_t n)
{
	uint64_t last = 0;
	for (size_t i = 0, end; i < n; i = end) {
		end = i + 1;
		uint64_t step = end < n ? (uint64_t)s[end].t - (uint64_t)s[i].t : 0;
		while (end < n && (uint64_t)s[end].t - (uint64_t)s[end - 1].t == step)
			end++;
		p = put_varint(p, (int64_t)((uint64_t)s[i].t - last));
		p = put_uvarint(p, end - i - 1);
		if (end - i > 1)
			p = put_varint(p, (int64_t)step);
		last = (uint64_t)s[end - 1].t;
	}
	return p;
}

/* Room for the widest was asked for, so nothing is checked on the way. */
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
	p = refs_put(p, s, n);
	length_put(lengths, (size_t)(p - column));
	column = p;
	p = times_put(p, s, n);
	length_put(lengths + 4, (size_t)(p - column));
	for (size_t i = 0; i < n; i += WAL_BLOCK_SAMPLES)
		p = block_put(p, s + i, n - i < WAL_BLOCK_SAMPLES ? n - i : WAL_BLOCK_SAMPLES);
	out->n = (size_t)(p - out->p);
	length_put(out->p + start + 1, out->n - start - RECORD_HEAD_BYTES);
}

void wal_samples_put(struct buf *out, const struct wal_window *w, const struct wal_sample *s, size_t n)
{
	for (size_t i = 0; i < n; i += SAMPLES_PER_RECORD)
		samples_put_one(out, w, s + i, n - i < SAMPLES_PER_RECORD ? n - i : SAMPLES_PER_RECORD);
}

bool wal_samples_open(uint8_t kind, struct span body, struct wal_samples_dec *d)
{
	memset(d, 0, offsetof(struct wal_samples_dec, block));
	struct rd r = rd_of(body.p, body.n);
	uint64_t n = rd_uvarint(&r);
	d->w.tenant = rd_str(&r);
	struct span window = rd_bytes(&r, 16);
	d->w.start_ms = rd_varint(&r);
	uint64_t range = rd_uvarint(&r);
	uint64_t ref_bytes = rd_uvarint(&r), time_bytes = rd_uvarint(&r);
	struct span refs = rd_bytes(&r, ref_bytes), times = rd_bytes(&r, time_bytes);
	d->v1 = kind == WAL_SAMPLES_1;
	/* a code takes half a byte; values as they are take eight */
	if (!r.ok || n / 2 > rd_left(&r) || (d->v1 && (n > rd_left(&r) / 8 || rd_left(&r) != n * 8)) || range > INT64_MAX)
		return false;
	memcpy(d->w.window.b, window.p, 16);
	d->w.range_ms = (int64_t)range;
	d->n = (size_t)n;
	d->refs = rd_of(refs.p, refs.n);
	d->times = rd_of(times.p, times.n);
	d->values = r;
	d->ref = (uint64_t)-1;
	return true;
}

static bool refs_get(struct wal_samples_dec *d, struct wal_sample *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (d->ref_run == 0) {
			d->ref += 1 + (uint64_t)rd_varint(&d->refs);
			uint64_t run = rd_uvarint(&d->refs);
			d->ref_step = run & 1;
			d->ref_run = run >> 1;
			if (!d->refs.ok)
				return false;
		} else {
			d->ref += d->ref_step;
			d->ref_run--;
		}
		s[i].ref = d->ref;
	}
	return true;
}

static bool times_get(struct wal_samples_dec *d, struct wal_sample *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (d->time_run == 0) {
			d->t += (uint64_t)rd_varint(&d->times);
			d->time_run = rd_uvarint(&d->times);
			d->t_step = d->time_run ? (uint64_t)rd_varint(&d->times) : 0;
			if (!d->times.ok)
				return false;
		} else {
			d->t += d->t_step;
			d->time_run--;
		}
		s[i].t = (int64_t)d->t;
	}
	return true;
}

/* Version 0.1.0: n varints ref - ref before it, n varints t - t before it, and the values' bits as 8 planes of n bytes, least significant plane first. */
static size_t block_v1(struct wal_samples_dec *d, struct wal_sample *s, bool *ok)
{
	const uint8_t *planes = d->values.p;
	size_t n = d->n - d->i < WAL_BLOCK_SAMPLES ? d->n - d->i : WAL_BLOCK_SAMPLES;
	if (d->i == 0)
		d->ref = 0;
	for (size_t i = 0; i < n; i++) {
		d->ref += (uint64_t)rd_varint(&d->refs);
		d->t += (uint64_t)rd_varint(&d->times);
		s[i] = (struct wal_sample){.ref = d->ref, .t = (int64_t)d->t, .exact = true};
		for (size_t k = 0; k < 8; k++)
			s[i].v |= (uint64_t)planes[k * d->n + d->i + i] << (8 * k);
	}
	*ok = d->refs.ok && d->times.ok && (n > 0 || (d->refs.p == d->refs.end && d->times.p == d->times.end));
	d->i += n;
	return *ok ? n : 0;
}

size_t wal_samples_block(struct wal_samples_dec *d, struct wal_sample *s, bool *ok)
{
	if (d->v1)
		return block_v1(d, s, ok);
	size_t n = d->n - d->i < WAL_BLOCK_SAMPLES ? d->n - d->i : WAL_BLOCK_SAMPLES;
	*ok = d->values.ok;
	if (!*ok)
		return 0;
	if (n == 0) {
		*ok = d->refs.p == d->refs.end && d->times.p == d->times.end && d->values.p == d->values.end && d->ref_run == 0 && d->time_run == 0;
		return 0;
	}
	struct span codes = rd_bytes(&d->values, (n + 1) / 2);
	*ok = d->values.ok && refs_get(d, s, n) && times_get(d, s, n);
	if (!*ok) {
		d->values.ok = false;
		return 0;
	}
	d->codes = (const uint8_t *)codes.p;
	d->i += n;
	for (size_t i = 0; i < n; i++) {
		unsigned code = d->codes[i / 2] >> (i % 2 * 4) & 15;
		s[i].key_no = code == 1 || (code >= CODE_WHOLE + CODE_WHOLE_MAX_BYTES && code < CODE_RAW);
		s[i].key = 0;
		s[i].exact = code >= CODE_RAW;
	}
	return n;
}

bool wal_samples_values(struct wal_samples_dec *d, struct wal_sample *s, size_t n, bool *ok)
{
	*ok = true;
	if (d->v1)
		return true;
	uint64_t before = ~s[0].ref;
	uint8_t le[WAL_BLOCK_SAMPLES * 8];
	bool fits = true;
	for (size_t i = 0; i < n; i++) {
		unsigned code = d->codes[i / 2] >> (i % 2 * 4) & 15;
		unsigned bytes = code < CODE_WHOLE   ? 0
				 : code == CODE_RAW  ? 8
				 : code == CODE_HIGH ? HIGH_BYTES
						     : (code - CODE_WHOLE) % CODE_WHOLE_MAX_BYTES + 1;
		uint64_t x = 0, base = s[i].key;
		if (LIKELY(rd_left(&d->values) >= 8)) {
			x = get_le64(d->values.p);
			x = bytes == 0 ? 0 : x << (64 - 8 * bytes) >> (64 - 8 * bytes);
			d->values.p += bytes;
		} else {
			struct span rest = rd_bytes(&d->values, bytes);
			for (unsigned k = 0; k < bytes && d->values.ok; k++)
				x |= (uint64_t)(uint8_t)rest.p[k] << (8 * k);
		}
		if (s[i].ref == before) {
			base = s[i - 1].v;
			s[i].exact = s[i].exact || s[i - 1].exact;
		}
		if (code < CODE_WHOLE) {
			s[i].v = base;
		} else if (code == CODE_RAW) {
			s[i].v = x;
		} else if (code == CODE_HIGH) {
			s[i].v = x << 24;
		} else {
			int64_t b = 0, v = (int64_t)(x >> 1) ^ -(int64_t)(x & 1);
			fits = whole(base, &b) && fits;
			s[i].v = f64_bits((double)(b + v));
		}
		before = s[i].ref;
		put_le64(le + 8 * i, s[i].v);
	}
	uint32_t crc = rd_le32(&d->values);
	*ok = d->values.ok;
	return *ok && fits && crc == crc32c(0, le, n * 8);
}

bool wal_samples_next(struct wal_samples_dec *d, struct wal_sample *s, bool *ok)
{
	*ok = true;
	if (d->at == d->in_block) {
		d->at = 0;
		d->in_block = wal_samples_block(d, d->block, ok);
		if (d->in_block == 0)
			return false;
		wal_samples_values(d, d->block, d->in_block, ok);
		if (!*ok) {
			d->in_block = 0;
			return false;
		}
	}
	*s = d->block[d->at++];
	return true;
}

/* ---- histograms ---- */

enum { HISTOGRAM_MAX_BYTES = 3 * UVARINT_MAX_BYTES, HISTOGRAMS_RECORD_BYTES = 2 * 1024 * 1024 };

size_t wal_histograms_bound(size_t tenant_bytes, size_t n, size_t packed_bytes)
{
	size_t bytes = n * HISTOGRAM_MAX_BYTES + packed_bytes;
	/* A record ends behind the sample with which it passes its size. */
	size_t records = bytes / HISTOGRAMS_RECORD_BYTES + 1;
	return records * (SAMPLES_HEAD_BYTES + tenant_bytes) + bytes;
}

void wal_histograms_put(struct buf *out, const struct wal_window *w, const struct wal_histogram *h, size_t n)
{
	for (size_t i = 0; i < n;) {
		size_t end = i, bytes = 0;
		while (end < n && bytes < HISTOGRAMS_RECORD_BYTES) {
			ASSERT(h[end].packed.n > 0 && h[end].packed.n <= LIMIT_HISTOGRAM_PACKED_BYTES);
			bytes += HISTOGRAM_MAX_BYTES + h[end++].packed.n;
		}
		size_t start = out->n;
		if (!buf_reserve(out, SAMPLES_HEAD_BYTES + w->tenant.n + bytes))
			return;
		out->p[start] = WAL_HISTOGRAMS;
		out->n += RECORD_HEAD_BYTES;
		buf_uvarint(out, end - i);
		buf_str(out, w->tenant);
		buf_put(out, w->window.b, 16);
		buf_varint(out, w->start_ms);
		buf_uvarint(out, (uint64_t)w->range_ms);
		uint64_t ref = 0, t = 0;
		for (; i < end; i++) {
			buf_varint(out, (int64_t)(h[i].ref - ref));
			buf_varint(out, (int64_t)((uint64_t)h[i].t - t));
			buf_str(out, h[i].packed);
			ref = h[i].ref;
			t = (uint64_t)h[i].t;
		}
		length_put(out->p + start + 1, out->n - start - RECORD_HEAD_BYTES);
	}
}

bool wal_histograms_open(struct span body, struct wal_histograms_dec *d)
{
	*d = (struct wal_histograms_dec){.r = rd_of(body.p, body.n)};
	uint64_t n = rd_uvarint(&d->r);
	d->w.tenant = rd_str(&d->r);
	struct span window = rd_bytes(&d->r, 16);
	d->w.start_ms = rd_varint(&d->r);
	uint64_t range = rd_uvarint(&d->r);
	/* ref, time, length and a byte at least */
	if (!d->r.ok || n > rd_left(&d->r) / 4 || range > INT64_MAX)
		return false;
	memcpy(d->w.window.b, window.p, 16);
	d->w.range_ms = (int64_t)range;
	d->n = (size_t)n;
	return true;
}

bool wal_histograms_next(struct wal_histograms_dec *d, struct wal_histogram *h, bool *ok)
{
	if (d->i == d->n) {
		*ok = d->r.p == d->r.end;
		return false;
	}
	d->ref += (uint64_t)rd_varint(&d->r);
	d->t = (int64_t)((uint64_t)d->t + (uint64_t)rd_varint(&d->r));
	*h = (struct wal_histogram){.ref = d->ref, .t = d->t, .packed = rd_str(&d->r)};
	*ok = d->r.ok && h->packed.n > 0;
	d->i++;
	if (!*ok)
		d->i = d->n;
	return *ok;
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
