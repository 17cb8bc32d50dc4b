/* base/base_histogram.c - two histograms that say the same are the same bytes here, however their senders laid buckets out. */
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
