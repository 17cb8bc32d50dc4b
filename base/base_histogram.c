/* base/base_histogram.c - two histograms that say the same are the same bytes here, however their senders laid buckets out; and which are none.
 *
 * What is refused, as the reference does (model/histogram Validate), in both kinds unless said otherwise:
 *
 *     schema outside -4..52 and not -53
 *     spans: their lengths do not add up to the number of buckets; a negative offset but for the first one's; an index beyond 32 bits (ours)
 *     a negative bucket; integer counts that do not fit 64 bits (ours); float: a negative count or zero count
 *     integer: buckets and zero bucket do not add up to the count; with a sum of NaN they may be less (observations of NaN are in no bucket)
 *     exponential schemas: custom bounds
 *     -53: bounds that do not ascend, NaN, or +Inf at the end; a zero bucket or threshold; a negative side; a negative first offset; buckets behind the last bound's
 *
 * NaN counts of a float histogram pass, as there: no comparison holds for them.
 */
#include <inttypes.h>
#include <math.h>
#include "base/errid.h"
#include "base/histogram.h"

/* One side as (index, absolute count) of its buckets that are not empty. Layouts differ without meaning: a chunk that gained a
 * bucket was written again with wider spans and zeros in between. */
static void side_canonical(const struct hist_span *spans, uint32_t n_spans, const int64_t *ints, const uint64_t *floats, uint32_t n, struct buf *out)
{
	size_t count_at = out->n;
	buf_be32(out, 0);
	uint32_t used = 0, k = 0;
	int64_t index = 0;
	uint64_t absolute = 0;
	for (uint32_t s = 0; s < n_spans; s++) {
		index += spans[s].offset;
		for (uint32_t j = 0; j < spans[s].length && k < n; j++, k++, index++) {
			absolute = ints ? absolute + (uint64_t)ints[k] : floats[k];
			if (absolute == 0)
				continue;
			buf_be64(out, (uint64_t)index);
			buf_be64(out, absolute);
			used++;
		}
	}
	if (!out->failed)
		put_be32(out->p + count_at, used);
}

void histogram_canonical(enum sample_kind kind, const struct histogram *h, struct buf *out)
{
	ASSERT(kind != SAMPLE_FLOAT);
	bool floats = kind == SAMPLE_FLOAT_HISTOGRAM;
	/* the staleness marker first, so that the greater encoding is also the one that is not stale */
	buf_u8(out, h->sum != STALE_NAN_BITS);
	buf_u8(out, (uint8_t)kind);
	if (h->sum == STALE_NAN_BITS)
		return;
	buf_be32(out, (uint32_t)h->schema);
	buf_be64(out, f64_bits(h->zero_threshold));
	buf_be64(out, floats ? h->f_count : h->i_count);
	buf_be64(out, floats ? h->f_zero_count : h->i_zero_count);
	buf_be64(out, h->sum);
	side_canonical(h->pos_spans, h->n_pos_spans, floats ? NULL : h->i_pos, h->f_pos, h->n_pos, out);
	side_canonical(h->neg_spans, h->n_neg_spans, floats ? NULL : h->i_neg, h->f_neg, h->n_neg, out);
	buf_be32(out, h->n_custom);
	for (uint32_t i = 0; i < h->n_custom; i++)
		buf_be64(out, h->custom[i]);
}

/* ---- validity ---- */

#define REFUSE(...) return err_id(err, ERRID_HISTOGRAM_INVALID, ERR_INVALID, __VA_ARGS__)

struct side {
	const char *name;
	const struct hist_span *spans;
	uint32_t n_spans;
	const int64_t *ints; /* NULL: floats */
	const uint64_t *floats;
	uint32_t n;
};

static CHECKED errc spans_judge(const struct side *x, struct err *err)
{
	uint64_t n = 0;
	int64_t index = 0;
	for (uint32_t k = 0; k < x->n_spans; k++) {
		if (k > 0 && x->spans[k].offset < 0)
			REFUSE("%s side: span %" PRIu32 " has the negative offset %" PRId32, x->name, k, x->spans[k].offset);
		n += x->spans[k].length;
		index += (int64_t)x->spans[k].offset + x->spans[k].length;
		if (index > INT32_MAX)
			REFUSE("%s side: bucket index %" PRId64 " is beyond 32 bits", x->name, index);
	}
	if (n != x->n)
		REFUSE("%s side: the spans need %" PRIu64 " buckets, there are %" PRIu32, x->name, n, x->n);
	return OK;
}

/* *sum: of an integer side's buckets. */
static CHECKED errc buckets_judge(const struct side *x, uint64_t *sum, struct err *err)
{
	int64_t count = 0;
	*sum = 0;
	for (uint32_t k = 0; k < x->n; k++) {
		if (!x->ints) {
			if (f64_of_bits(x->floats[k]) < 0)
				REFUSE("%s side: bucket %" PRIu32 " has the negative count %g", x->name, k, f64_of_bits(x->floats[k]));
			continue;
		}
		if (__builtin_add_overflow(count, x->ints[k], &count) || count < 0)
			REFUSE("%s side: bucket %" PRIu32 " has a count that is negative, or none", x->name, k);
		if (__builtin_add_overflow(*sum, (uint64_t)count, sum))
			REFUSE("%s side: the buckets add up to more than 64 bits hold", x->name);
	}
	return OK;
}

static CHECKED errc custom_judge(const struct histogram *h, const struct side *pos, bool zero_empty, struct err *err)
{
	double before = -INFINITY;
	for (uint32_t k = 0; k < h->n_custom; k++) {
		double bound = f64_of_bits(h->custom[k]);
		if (!(bound > before)) /* so for NaN */
			REFUSE("custom bound %" PRIu32 " is %g, and not greater than %g", k, bound, before);
		before = bound;
	}
	if (h->n_custom && isinf(before))
		REFUSE("the last custom bound is +Inf, which has a bucket of its own");
	if (!zero_empty)
		REFUSE("custom buckets, and a zero bucket that is not empty");
	if (h->zero_threshold != 0)
		REFUSE("custom buckets, and a zero threshold of %g", h->zero_threshold);
	if (h->n_neg_spans || h->n_neg)
		REFUSE("custom buckets, and a negative side");
	uint64_t reach = 0;
	for (uint32_t k = 0; k < pos->n_spans; k++) {
		if (pos->spans[k].offset < 0)
			REFUSE("custom buckets, and span %" PRIu32 " has the negative offset %" PRId32, k, pos->spans[k].offset);
		reach += (uint64_t)pos->spans[k].offset + pos->spans[k].length;
	}
	if (reach > (uint64_t)h->n_custom + 1)
		REFUSE("%" PRIu32 " custom bounds make %" PRIu32 " buckets, the spans reach to %" PRIu64, h->n_custom, h->n_custom + 1, reach);
	return OK;
}

/* ---- a finer schema than any that is stored ---- */

/* Every 2^shift buckets become one. Arrays from the arena, as long as the old ones. */
static CHECKED errc side_reduce(const struct side *x, uint32_t shift, struct arena *arena, struct side *out, struct err *err)
{
	*out = *x;
	if (x->n == 0) {
		out->n_spans = 0;
		return OK;
	}
	struct hist_span *spans = arena_alloc(arena, x->n * sizeof *spans);
	int64_t *ints = x->ints ? arena_alloc(arena, x->n * sizeof *ints) : NULL;
	uint64_t *floats = x->ints ? NULL : arena_alloc(arena, x->n * sizeof *floats);
	if (!spans || (!ints && !floats))
		return err_set(err, ERR_NOMEM, "no memory for a histogram of %" PRIu32 " buckets", x->n);
	uint32_t k = 0, n = 0, n_spans = 0;
	int64_t index = 0, last = 0, absolute = 0;
	for (uint32_t s = 0; s < x->n_spans; s++) {
		index += x->spans[s].offset;
		for (uint32_t j = 0; j < x->spans[s].length; j++, k++, index++) {
			int64_t target = ((index - 1) >> shift) + 1;
			if (n == 0 || target > last + 1)
				spans[n_spans++] = (struct hist_span){(int32_t)(n == 0 ? target : target - last - 1), 1};
			else if (target == last + 1)
				spans[n_spans - 1].length++;
			bool merge = n > 0 && target == last;
			last = target;
			if (floats) {
				if (merge)
					floats[n - 1] = f64_bits(f64_of_bits(floats[n - 1]) + f64_of_bits(x->floats[k]));
				else
					floats[n++] = x->floats[k];
				continue;
			}
			absolute += x->ints[k];
			if (!merge)
				ints[n++] = absolute;
			else if (__builtin_add_overflow(ints[n - 1], absolute, &ints[n - 1]))
				REFUSE("%s side: reduced to schema %d a bucket holds more than 63 bits", x->name, HIST_SCHEMA_MAX);
		}
	}
	for (uint32_t i = n; ints && i-- > 1;)
		ints[i] -= ints[i - 1];
	*out = (struct side){x->name, spans, n_spans, ints, floats, n};
	return OK;
}

errc histogram_judge(enum sample_kind kind, struct histogram *h, struct arena *arena, struct err *err)
{
	ASSERT(kind != SAMPLE_FLOAT);
	errc rc = OK;
	static const int64_t none = 0;
	const bool floats = kind == SAMPLE_FLOAT_HISTOGRAM;
	/* An integer side without buckets is an integer side. */
	struct side pos = {"positive", h->pos_spans, h->n_pos_spans,
			    floats     ? NULL
			    : h->n_pos ? h->i_pos
				       : &none,
			    h->f_pos, h->n_pos},
		    neg = {"negative", h->neg_spans, h->n_neg_spans,
			    floats     ? NULL
			    : h->n_neg ? h->i_neg
				       : &none,
			    h->f_neg, h->n_neg};
	double count = f64_of_bits(h->f_count), zero_count = f64_of_bits(h->f_zero_count);
	uint64_t in_pos, in_neg, sum;
	TRY(spans_judge(&pos, err));
	TRY(spans_judge(&neg, err));
	if (h->schema == HIST_SCHEMA_CUSTOM)
		TRY(custom_judge(h, &pos, floats ? zero_count == 0 : h->i_zero_count == 0, err));
	else if (h->schema < HIST_SCHEMA_MIN || h->schema > HIST_SCHEMA_REDUCIBLE_MAX)
		REFUSE("schema %" PRId32 " is not one of %d to %d or %d", h->schema, HIST_SCHEMA_MIN, HIST_SCHEMA_REDUCIBLE_MAX, HIST_SCHEMA_CUSTOM);
	else if (h->n_custom)
		REFUSE("schema %" PRId32 " has no custom bounds, there are %" PRIu32, h->schema, h->n_custom);
	TRY(buckets_judge(&neg, &in_neg, err));
	TRY(buckets_judge(&pos, &in_pos, err));
	if (floats) {
		if (count < 0 || zero_count < 0)
			REFUSE("a negative count: %g, zero bucket %g", count, zero_count);
	} else {
		bool wide = __builtin_add_overflow(in_pos, in_neg, &sum) || __builtin_add_overflow(sum, h->i_zero_count, &sum);
		if (wide || sum > h->i_count || (sum < h->i_count && !isnan(f64_of_bits(h->sum))))
			REFUSE("the buckets add up to %s%" PRIu64 ", the count is %" PRIu64, wide ? "more than 64 bits: " : "", sum, h->i_count);
	}
	if (h->schema > HIST_SCHEMA_MAX) {
		uint32_t shift = (uint32_t)(h->schema - HIST_SCHEMA_MAX);
		TRY(side_reduce(&pos, shift, arena, &pos, err));
		TRY(side_reduce(&neg, shift, arena, &neg, err));
		h->schema = HIST_SCHEMA_MAX;
		h->pos_spans = pos.spans;
		h->n_pos_spans = pos.n_spans;
		h->n_pos = pos.n;
		h->neg_spans = neg.spans;
		h->n_neg_spans = neg.n_spans;
		h->n_neg = neg.n;
		h->i_pos = pos.ints;
		h->i_neg = neg.ints;
		h->f_pos = pos.floats;
		h->f_neg = neg.floats;
	}
fail:
	return rc;
}
