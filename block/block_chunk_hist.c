/* block/block_chunk_hist.c - native histogram chunks (encodings 2 and 3): read, and the form in which two histograms are compared.
 *
 *   offset  size  field
 *        0     2  count        u16 BE, samples
 *        2     1  flags        bits 7-6: 10 counter reset, 01 none, 00 unknown, 11 gauge
 *        3     -  layout       zero threshold, VBI schema, spans of both sides, custom bounds (schema -53 only): once per chunk
 *        -     -  samples      bit stream
 *
 *   zero threshold  byte 0: 0; 1..254: 2^(byte - 244); 255: 64 bits follow
 *   spans           VBU count, each VBU length, VBI offset
 *   bounds          VBU count, each VBU u: u > 0 is (u - 1) / 1000, 0 is followed by 64 bits
 *
 *   integer (2)     sample 0: VBI t, VBU count, VBU zero count, 64 bits sum, VBI of each bucket delta as stored
 *                   sample k: VBI of the second difference of t, count, zero count; XOR value of sum; VBI of the second difference of each
 *                   bucket delta. First differences begin at 0.
 *   float (3)       sample 0: VBI t, 64 bits each: count, zero count, sum, buckets (absolute)
 *                   sample k: VBI second difference of t; XOR value of each, every one with a window of its own
 *
 * A sample whose sum is the staleness marker ends after its sum: it is that marker and nothing else.
 *
 * Source: Prometheus tsdb/docs/format/chunks.md and tsdb/chunkenc/{histogram,float_histogram,histogram_meta}.go.
 */
#include <math.h>
#include "base/limits.h"
#include "block/block_read_int.h"

enum { HIST_HEADER_BYTES = 3, SCHEMA_CUSTOM = -53, SCHEMA_MIN = -4, SCHEMA_MAX = 52 };
enum { RESET_UNKNOWN = 0, RESET_GAUGE = 3 };
enum { HINT_UNKNOWN = 0, HINT_NO_RESET = 2, HINT_GAUGE = 3 };

/* ---- layout ---- */

static uint64_t zero_threshold_read(struct bits *b)
{
	unsigned code = (unsigned)bits_read(b, 8);
	if (code == 0)
		return 0;
	if (code == 255)
		return bits_read(b, 64);
	return f64_bits(ldexp(0.5, (int)code - 243));
}

/* A count out of the payload sizes memory only when the payload has the bits for so many things. */
static errc count_check(const struct hist_reader *r, uint64_t n, unsigned bits_each, const char *what, struct err *err)
{
	if (!r->bits.ok || n > bits_left(&r->bits) / bits_each)
		return err_set(err, ERR_CORRUPT, "histogram chunk ends in its %s", what);
	if (n > LIMIT_HISTOGRAM_BUCKETS)
		return err_set(
			err, ERR_LIMIT, "histogram chunk with %llu %s, at most %d are read", (unsigned long long)n, what, LIMIT_HISTOGRAM_BUCKETS);
	return OK;
}

static errc spans_read(struct hist_reader *r, struct hist_side *side, struct err *err)
{
	errc rc = OK;
	uint64_t n = bits_vbu(&r->bits);
	TRY(count_check(r, n, 2, "spans", err));
	side->spans = arena_calloc(r->arena, (size_t)n, sizeof *side->spans);
	CHECK(side->spans, ERR_NOMEM, "%llu histogram spans", (unsigned long long)n);
	side->n_spans = (uint32_t)n;
	uint64_t buckets = 0;
	for (size_t i = 0; i < n; i++) {
		uint64_t length = bits_vbu(&r->bits);
		int64_t offset = bits_vbi(&r->bits);
		CHECK(length <= LIMIT_HISTOGRAM_BUCKETS && offset >= INT32_MIN && offset <= INT32_MAX, ERR_CORRUPT,
			"histogram chunk with a span of %llu buckets at %lld", (unsigned long long)length, (long long)offset);
		side->spans[i] = (struct hist_span){(int32_t)offset, (uint32_t)length};
		buckets += length;
		CHECK(buckets <= LIMIT_HISTOGRAM_BUCKETS, ERR_LIMIT, "histogram chunk with over %d buckets", LIMIT_HISTOGRAM_BUCKETS);
	}
	side->n = (uint32_t)buckets;
fail:
	return rc;
}

static errc bounds_read(struct hist_reader *r, struct err *err)
{
	errc rc = OK;
	uint64_t n = bits_vbu(&r->bits);
	TRY(count_check(r, n, 5, "custom bounds", err));
	uint64_t *v = arena_calloc(r->arena, (size_t)n, sizeof *v);
	CHECK(v, ERR_NOMEM, "%llu histogram bounds", (unsigned long long)n);
	for (size_t i = 0; i < n; i++) {
		uint64_t u = bits_vbu(&r->bits);
		v[i] = u == 0 ? bits_read(&r->bits, 64) : f64_bits((double)(u - 1) / 1000);
	}
	r->layout.custom = v;
	r->layout.n_custom = (uint32_t)n;
fail:
	return rc;
}

static errc side_alloc(struct hist_reader *r, struct hist_side *side, struct err *err)
{
	errc rc = count_check(r, side->n, r->floats ? 64 : 1, "buckets", err);
	if (rc)
		return rc;
	side->v = arena_calloc(r->arena, side->n, sizeof *side->v);
	if (r->floats)
		side->window = arena_calloc(r->arena, side->n, sizeof *side->window);
	else
		side->dv = arena_calloc(r->arena, side->n, sizeof *side->dv);
	if (!side->v || !(r->floats ? (void *)side->window : (void *)side->dv))
		return err_set(err, ERR_NOMEM, "%u histogram buckets", side->n);
	return OK;
}

static errc layout_read(struct hist_reader *r, struct err *err)
{
	errc rc = OK;
	r->layout.zero_threshold = f64_of_bits(zero_threshold_read(&r->bits));
	int64_t schema = bits_vbi(&r->bits);
	CHECK(!r->bits.ok || schema == SCHEMA_CUSTOM || (schema >= SCHEMA_MIN && schema <= SCHEMA_MAX), ERR_UNSUPPORTED,
		"histogram schema %lld is not one that this build reads", (long long)schema);
	r->layout.schema = (int32_t)schema;
	TRY(spans_read(r, &r->pos, err));
	TRY(spans_read(r, &r->neg, err));
	if (schema == SCHEMA_CUSTOM)
		TRY(bounds_read(r, err));
	r->layout.pos_spans = r->pos.spans;
	r->layout.n_pos_spans = r->pos.n_spans;
	r->layout.neg_spans = r->neg.spans;
	r->layout.n_neg_spans = r->neg.n_spans;
	TRY(side_alloc(r, &r->pos, err));
	TRY(side_alloc(r, &r->neg, err));
fail:
	return rc;
}

/* ---- samples ---- */

static void int_sample_read(struct hist_reader *r)
{
	struct bits *b = &r->bits;
	struct hist_side *sides[2] = {&r->pos, &r->neg};
	if (r->i == 0) {
		r->t = bits_vbi(b);
		r->count = bits_vbu(b);
		r->zero_count = bits_vbu(b);
		r->sum = bits_read(b, 64);
		for (int s = 0; s < 2; s++)
			for (uint32_t k = 0; k < sides[s]->n && b->ok; k++)
				sides[s]->v[k] = (uint64_t)bits_vbi(b);
		return;
	}
	r->dt += (uint64_t)bits_vbi(b);
	r->t = (int64_t)((uint64_t)r->t + r->dt);
	r->dcount += (uint64_t)bits_vbi(b);
	r->count += r->dcount;
	r->dzero_count += (uint64_t)bits_vbi(b);
	r->zero_count += r->dzero_count;
	r->sum = xor_value_read(b, &r->sum_window, r->sum);
	if (r->sum == STALE_NAN_BITS)
		return;
	for (int s = 0; s < 2; s++) {
		for (uint32_t k = 0; k < sides[s]->n && b->ok; k++) {
			sides[s]->dv[k] += (uint64_t)bits_vbi(b);
			sides[s]->v[k] += sides[s]->dv[k];
		}
	}
}

static void float_sample_read(struct hist_reader *r)
{
	struct bits *b = &r->bits;
	struct hist_side *sides[2] = {&r->pos, &r->neg};
	if (r->i == 0) {
		r->t = bits_vbi(b);
		r->count = bits_read(b, 64);
		r->zero_count = bits_read(b, 64);
		r->sum = bits_read(b, 64);
		for (int s = 0; s < 2; s++)
			for (uint32_t k = 0; k < sides[s]->n && b->ok; k++)
				sides[s]->v[k] = bits_read(b, 64);
		return;
	}
	r->dt += (uint64_t)bits_vbi(b);
	r->t = (int64_t)((uint64_t)r->t + r->dt);
	r->count = xor_value_read(b, &r->count_window, r->count);
	r->zero_count = xor_value_read(b, &r->zero_count_window, r->zero_count);
	r->sum = xor_value_read(b, &r->sum_window, r->sum);
	if (r->sum == STALE_NAN_BITS)
		return;
	for (int s = 0; s < 2; s++)
		for (uint32_t k = 0; k < sides[s]->n && b->ok; k++)
			sides[s]->v[k] = xor_value_read(b, &sides[s]->window[k], sides[s]->v[k]);
}

static void sample_show(struct hist_reader *r)
{
	if (r->sum == STALE_NAN_BITS) {
		r->h = (struct histogram){.sum = STALE_NAN_BITS};
		return;
	}
	r->h = r->layout;
	r->h.reset_hint = r->reset == RESET_GAUGE ? HINT_GAUGE : r->i == 0 ? HINT_UNKNOWN : HINT_NO_RESET;
	r->h.sum = r->sum;
	r->h.n_pos = r->pos.n;
	r->h.n_neg = r->neg.n;
	if (r->floats) {
		r->h.f_count = r->count;
		r->h.f_zero_count = r->zero_count;
		r->h.f_pos = r->pos.v;
		r->h.f_neg = r->neg.v;
	} else {
		r->h.i_count = r->count;
		r->h.i_zero_count = r->zero_count;
		r->h.i_pos = (const int64_t *)r->pos.v;
		r->h.i_neg = (const int64_t *)r->neg.v;
	}
}

errc hist_reader_init(struct hist_reader *r, bool floats, struct span data, struct arena *arena, struct err *err)
{
	*r = (struct hist_reader){.arena = arena, .floats = floats};
	if (data.n < HIST_HEADER_BYTES)
		return err_set(err, ERR_CORRUPT, "histogram chunk of %zu bytes, its header needs %d", data.n, HIST_HEADER_BYTES);
	const uint8_t *p = (const uint8_t *)data.p;
	r->n = (uint32_t)p[0] << 8 | p[1];
	r->reset = p[2] >> 6;
	r->bits = bits_of(p + HIST_HEADER_BYTES, data.n - HIST_HEADER_BYTES);
	return OK;
}

errc hist_reader_next(struct hist_reader *r, struct err *err)
{
	errc rc = OK;
	ASSERT(r->i < r->n);
	if (r->i == 0)
		TRY(layout_read(r, err));
	if (r->floats)
		float_sample_read(r);
	else
		int_sample_read(r);
	CHECK(r->bits.ok, ERR_CORRUPT, "histogram chunk ends in sample %u of %u", r->i, r->n);
	sample_show(r);
	r->i++;
fail:
	return rc;
}
