/* proto/proto_write_hist.c - a native histogram as prompb.Histogram, which remote write 1.0 and remote read's samples share. */
#include "proto/proto_int.h"

static void put_spans(struct buf *out, uint32_t field, const struct hist_span *s, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		size_t at = pb_begin(out, field);
		if (s[i].offset != 0)
			pb_sint(out, 1, s[i].offset);
		if (s[i].length != 0)
			pb_uint(out, 2, s[i].length);
		pb_end(out, at);
	}
}

static void put_deltas(struct buf *out, uint32_t field, const int64_t *v, uint32_t n)
{
	if (n == 0)
		return;
	size_t at = pb_begin(out, field);
	for (uint32_t i = 0; i < n; i++)
		buf_varint(out, v[i]);
	pb_end(out, at);
}

static void put_doubles(struct buf *out, uint32_t field, const uint64_t *bits, uint32_t n)
{
	if (n == 0)
		return;
	size_t at = pb_begin(out, field);
	for (uint32_t i = 0; i < n; i++) {
		uint8_t le[8];
		put_le64(le, bits[i]);
		buf_put(out, le, 8);
	}
	pb_end(out, at);
}

/* Zero fields are left out but for the oneofs, whose presence says integer or float. */
void pb_histogram(struct buf *out, uint32_t field, int64_t t, enum sample_kind kind, const struct histogram *h)
{
	bool floats = kind == SAMPLE_FLOAT_HISTOGRAM;
	size_t at = pb_begin(out, field);
	if (floats)
		pb_double_bits(out, 2, h->f_count);
	else
		pb_uint(out, 1, h->i_count);
	if (h->sum != 0)
		pb_double_bits(out, 3, h->sum);
	if (h->schema != 0)
		pb_sint(out, 4, h->schema);
	if (f64_bits(h->zero_threshold) != 0)
		pb_double_bits(out, 5, f64_bits(h->zero_threshold));
	if (floats)
		pb_double_bits(out, 7, h->f_zero_count);
	else
		pb_uint(out, 6, h->i_zero_count);
	put_spans(out, 8, h->neg_spans, h->n_neg_spans);
	if (floats)
		put_doubles(out, 10, h->f_neg, h->n_neg);
	else
		put_deltas(out, 9, h->i_neg, h->n_neg);
	put_spans(out, 11, h->pos_spans, h->n_pos_spans);
	if (floats)
		put_doubles(out, 13, h->f_pos, h->n_pos);
	else
		put_deltas(out, 12, h->i_pos, h->n_pos);
	if (h->reset_hint != 0)
		pb_uint(out, 14, h->reset_hint);
	pb_uint(out, 15, (uint64_t)t);
	put_doubles(out, 16, h->custom, h->n_custom);
	pb_end(out, at);
}
