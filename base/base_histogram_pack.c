/* base/base_histogram_pack.c - a histogram as a string of bytes: what the log holds, and the head until a chunk is made of it.
 *
 *   u8       bit 0: float counts; bits 1-2: hint (0 none, 1 reset, 3 gauge); 3: a staleness marker, which ends here; 4: has a negative side; 5: has bounds
 *   varint   schema
 *   flt      zero threshold
 *   num      count, zero count
 *   u64 LE   sum
 *   side     positive, and negative where the bit says so: uvarint spans, of each { varint offset, uvarint length }, then the buckets that the lengths add up to:
 *            integers as varint deltas, as stored; floats as flt, absolute
 *   bounds   where the bit says so: uvarint n, u64 LE of each
 *
 *   num      uvarint of an integer, flt of a float
 *   flt      the double's bits, bytes turned round, as uvarint: whole numbers and powers of two end in zeros, so they are short
 *
 * Nothing outside is needed to read it. One histogram has one form: equal bytes are equal histograms, layout and hint included. What differs and means the same (a
 * layout with other empty buckets) is equal in the canonical encoding. "No reset" is not kept: it was said of the sample before it where it came from. Nor is the hint
 * of a staleness marker: in a chunk it has none, and a gauge chunk that held one could not be written again by the reference.
 */
#include "base/histogram.h"
#include "base/limits.h"

enum { FLOATS = 1, HINT_SHIFT = 1, STALE = 8, NEGATIVE = 16, BOUNDS = 32, KNOWN = 63 };

static uint64_t turned(uint64_t bits)
{
	return __builtin_bswap64(bits);
}

static void side_pack(const struct hist_span *spans, uint32_t n_spans, const int64_t *ints, const uint64_t *floats, uint32_t n, struct buf *out)
{
	buf_uvarint(out, n_spans);
	for (uint32_t i = 0; i < n_spans; i++) {
		buf_varint(out, spans[i].offset);
		buf_uvarint(out, spans[i].length);
	}
	for (uint32_t k = 0; k < n; k++) {
		if (ints)
			buf_varint(out, ints[k]);
		else
			buf_uvarint(out, turned(floats[k]));
	}
}

static void le64(struct buf *out, uint64_t x)
{
	uint8_t b[8];
	put_le64(b, x);
	buf_put(out, b, 8);
}

size_t histogram_pack_bound(const struct histogram *h)
{
	return 64 + UVARINT_MAX_BYTES * ((size_t)h->n_pos + h->n_neg) + 15 * ((size_t)h->n_pos_spans + h->n_neg_spans) + 8 * (size_t)h->n_custom;
}

void histogram_pack(enum sample_kind kind, const struct histogram *h, struct buf *out)
{
	ASSERT(kind != SAMPLE_FLOAT);
	bool floats = kind == SAMPLE_FLOAT_HISTOGRAM, stale = h->sum == STALE_NAN_BITS;
	bool negative = !stale && (h->n_neg_spans > 0 || h->n_neg > 0), bounds = !stale && h->n_custom > 0;
	unsigned hint = !stale && (h->reset_hint == HIST_RESET_YES || h->reset_hint == HIST_RESET_GAUGE) ? h->reset_hint : HIST_RESET_UNKNOWN;
	buf_u8(out, (uint8_t)((floats ? FLOATS : 0) | hint << HINT_SHIFT | (stale ? STALE : 0) | (negative ? NEGATIVE : 0) | (bounds ? BOUNDS : 0)));
	if (stale)
		return;
	buf_varint(out, h->schema);
	buf_uvarint(out, turned(f64_bits(h->zero_threshold)));
	buf_uvarint(out, floats ? turned(h->f_count) : h->i_count);
	buf_uvarint(out, floats ? turned(h->f_zero_count) : h->i_zero_count);
	le64(out, h->sum);
	side_pack(h->pos_spans, h->n_pos_spans, floats ? NULL : h->i_pos, h->f_pos, h->n_pos, out);
	if (negative)
		side_pack(h->neg_spans, h->n_neg_spans, floats ? NULL : h->i_neg, h->f_neg, h->n_neg, out);
	if (bounds) {
		buf_uvarint(out, h->n_custom);
		for (uint32_t i = 0; i < h->n_custom; i++)
			le64(out, h->custom[i]);
	}
}

/* One side's arrays. n_*: as in struct histogram. */
struct side {
	struct hist_span *spans;
	uint64_t *v;
	uint32_t n_spans, n;
};

static errc side_unpack(struct rd *r, bool floats, struct arena *arena, struct side *s, struct err *err)
{
	errc rc = OK;
	*s = (struct side){0};
	uint64_t n_spans = rd_uvarint(r), n = 0;
	/* Two bytes a span and one a bucket at least, so nothing sizes memory that is not there. */
	CHECK(r->ok && n_spans <= rd_left(r) / 2, ERR_CORRUPT, "a packed histogram ends in its spans");
	s->spans = arena_alloc(arena, (size_t)n_spans * sizeof *s->spans);
	CHECK(s->spans, ERR_NOMEM, "no memory for a histogram");
	for (uint64_t i = 0; i < n_spans; i++) {
		int64_t offset = rd_varint(r);
		uint64_t length = rd_uvarint(r);
		CHECK(r->ok && offset >= (i == 0 ? INT32_MIN : 0) && offset <= INT32_MAX && length <= rd_left(r) - n, ERR_CORRUPT,
			"a packed histogram with a span of %llu buckets at %lld", (unsigned long long)length, (long long)offset);
		n += length;
		s->spans[i] = (struct hist_span){(int32_t)offset, (uint32_t)length};
	}
	CHECK(n <= rd_left(r) && n <= LIMIT_HISTOGRAM_BUCKETS, ERR_CORRUPT, "a packed histogram ends in its buckets");
	s->v = arena_alloc(arena, (size_t)n * sizeof *s->v);
	CHECK(s->v, ERR_NOMEM, "no memory for a histogram");
	for (uint64_t k = 0; k < n; k++)
		s->v[k] = floats ? turned(rd_uvarint(r)) : (uint64_t)rd_varint(r);
	s->n_spans = (uint32_t)n_spans;
	s->n = (uint32_t)n;
fail:
	return rc;
}

errc histogram_unpack(struct span packed, struct arena *arena, enum sample_kind *kind, struct histogram *h, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(packed.p, packed.n);
	struct side pos, neg = {0};
	unsigned flags = rd_u8(&r), hint = flags >> HINT_SHIFT & 3;
	bool floats = flags & FLOATS;
	CHECK(r.ok && flags <= KNOWN && hint != 2 && (!(flags & STALE) || (flags & ~(unsigned)FLOATS) == STALE), ERR_CORRUPT,
		"a packed histogram of kind %u", flags);
	*kind = floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM;
	*h = (struct histogram){.reset_hint = (uint8_t)hint};
	if (flags & STALE) {
		h->sum = STALE_NAN_BITS;
		CHECK(r.p == r.end, ERR_CORRUPT, "a packed staleness marker of %zu bytes", packed.n);
		return OK;
	}
	int64_t schema = rd_varint(&r);
	CHECK(r.ok && (schema == HIST_SCHEMA_CUSTOM || (schema >= HIST_SCHEMA_MIN && schema <= HIST_SCHEMA_MAX)), ERR_CORRUPT,
		"a packed histogram of schema %lld", (long long)schema);
	h->schema = (int32_t)schema;
	h->zero_threshold = f64_of_bits(turned(rd_uvarint(&r)));
	uint64_t count = rd_uvarint(&r), zero_count = rd_uvarint(&r);
	h->f_count = floats ? turned(count) : 0;
	h->f_zero_count = floats ? turned(zero_count) : 0;
	h->i_count = floats ? 0 : count;
	h->i_zero_count = floats ? 0 : zero_count;
	h->sum = rd_le64(&r);
	TRY(side_unpack(&r, floats, arena, &pos, err));
	if (flags & NEGATIVE)
		TRY(side_unpack(&r, floats, arena, &neg, err));
	if (flags & BOUNDS) {
		uint64_t n = rd_uvarint(&r);
		CHECK(r.ok && n <= rd_left(&r) / 8, ERR_CORRUPT, "a packed histogram ends in its bounds");
		uint64_t *v = arena_alloc(arena, (size_t)n * sizeof *v);
		CHECK(v, ERR_NOMEM, "no memory for a histogram");
		for (uint64_t i = 0; i < n; i++)
			v[i] = rd_le64(&r);
		h->custom = v;
		h->n_custom = (uint32_t)n;
	}
	CHECK(r.ok && r.p == r.end && h->sum != STALE_NAN_BITS && (schema == HIST_SCHEMA_CUSTOM || h->n_custom == 0), ERR_CORRUPT,
		"a packed histogram of %zu bytes is not one", packed.n);
	h->pos_spans = pos.spans;
	h->n_pos_spans = pos.n_spans;
	h->n_pos = pos.n;
	h->neg_spans = neg.spans;
	h->n_neg_spans = neg.n_spans;
	h->n_neg = neg.n;
	h->i_pos = floats ? NULL : (const int64_t *)pos.v;
	h->i_neg = floats ? NULL : (const int64_t *)neg.v;
	h->f_pos = floats ? pos.v : NULL;
	h->f_neg = floats ? neg.v : NULL;
fail:
	return rc;
}

enum sample_kind histogram_packed_kind(struct span packed)
{
	return packed.p[0] & FLOATS ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM;
}

errc histogram_packed_cmp(struct span a, struct span b, bool *same, int *order, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct span v[2] = {a, b};
	struct buf canonical[2];
	*order = span_cmp(a, b);
	*same = *order == 0;
	if (*same)
		return OK;
	arena_init(&arena, LIMIT_HISTOGRAM_MEMORY_BYTES);
	for (int i = 0; i < 2; i++)
		buf_init(&canonical[i], LIMIT_HISTOGRAM_MEMORY_BYTES);
	unsigned hint[2];
	for (int i = 0; i < 2; i++) {
		struct histogram h;
		enum sample_kind kind;
		TRY(histogram_unpack(v[i], &arena, &kind, &h, err));
		histogram_canonical(kind, &h, &canonical[i]);
		CHECK(!canonical[i].failed, ERR_NOMEM, "no memory to compare histograms");
		hint[i] = h.reset_hint;
	}
	int c = span_cmp(span_of(canonical[0].p, canonical[0].n), span_of(canonical[1].p, canonical[1].n));
	*same = c == 0 && hint[0] == hint[1];
	if (c != 0)
		*order = c;
fail:
	arena_free(&arena);
	buf_free(&canonical[0]);
	buf_free(&canonical[1]);
	return rc;
}
