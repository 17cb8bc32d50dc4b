/* tests/support/hist_model.c - histogram chunks as docs/format/block.md describes them, one bit at a time. */
#include "tests/support/hist_model.h"
#include <math.h>
#include "base/limits.h"

enum { HEADER = 3, CUSTOM = -53, GAUGE = 3 };

static uint64_t take(struct hist_model *m, unsigned n)
{
	uint64_t x = 0;
	if (m->n_bits - m->at < n)
		m->ok = false;
	for (unsigned k = 0; k < n && m->ok; k++, m->at++)
		x = x << 1 | (m->p[m->at / 8] >> (7 - m->at % 8) & 1);
	return x;
}

static unsigned width(struct hist_model *m)
{
	static const unsigned widths[] = {0, 3, 6, 9, 12, 18, 25, 56, 64};
	unsigned ones = 0;
	while (ones < 8 && take(m, 1) == 1)
		ones++;
	return widths[ones];
}

static uint64_t vbu(struct hist_model *m)
{
	return take(m, width(m));
}

/* As many values above 0 as below, and one more above. */
static int64_t vbi(struct hist_model *m)
{
	unsigned w = width(m);
	uint64_t x = take(m, w);
	if (w > 0 && w < 64 && x > UINT64_C(1) << (w - 1))
		return (int64_t)x - (INT64_C(1) << w);
	return (int64_t)x;
}

static void xorv(struct hist_model *m, struct hist_model_value *v)
{
	if (take(m, 1) == 0)
		return;
	if (take(m, 1) == 1) {
		unsigned lead = (unsigned)take(m, 5), n = (unsigned)take(m, 6);
		n = n == 0 ? 64 : n;
		if (lead + n > 64) {
			m->ok = false;
			return;
		}
		v->lead = lead;
		v->trail = 64 - lead - n;
	}
	v->v ^= take(m, 64 - v->lead - v->trail) << v->trail;
}

static void dod(struct hist_model *m, struct hist_model_value *v)
{
	v->change += (uint64_t)vbi(m);
	v->v += v->change;
}

static void layout(struct hist_model *m, struct arena *arena)
{
	unsigned code = (unsigned)take(m, 8);
	m->threshold = code == 0 ? 0 : code == 255 ? take(m, 64) : f64_bits(pow(2, (double)code - 244));
	m->schema = vbi(m);
	for (int side = 0; side < 2 && m->ok; side++) {
		uint64_t n = vbu(m), buckets = 0;
		if (!m->ok || n > LIMIT_HISTOGRAM_BUCKETS || !(m->spans[side] = arena_calloc(arena, (size_t)n, sizeof **m->spans))) {
			m->ok = false;
			return;
		}
		m->n_spans[side] = (uint32_t)n;
		for (size_t k = 0; k < n && m->ok; k++) {
			uint64_t length = vbu(m);
			int64_t offset = vbi(m);
			m->spans[side][k] = (struct hist_span){(int32_t)offset, (uint32_t)length};
			m->ok = m->ok && length <= LIMIT_HISTOGRAM_BUCKETS && (buckets += length) <= LIMIT_HISTOGRAM_BUCKETS &&
				offset == (int32_t)offset;
		}
		m->n_buckets[side] = (uint32_t)buckets;
		m->ok = m->ok && (m->buckets[side] = arena_calloc(arena, (size_t)buckets, sizeof **m->buckets));
	}
	if (m->ok && m->schema == CUSTOM) {
		uint64_t n = vbu(m);
		m->ok = m->ok && n <= LIMIT_HISTOGRAM_BUCKETS && (m->custom = arena_calloc(arena, (size_t)n, sizeof *m->custom));
		m->n_custom = (uint32_t)n;
		for (size_t k = 0; m->ok && k < n; k++) {
			uint64_t x = vbu(m);
			m->custom[k] = x == 0 ? take(m, 64) : f64_bits((double)(x - 1) / 1000);
		}
	}
}

bool hist_model_open(struct hist_model *m, uint8_t enc, struct span payload)
{
	const uint8_t *p = (const uint8_t *)payload.p;
	if (payload.n < HEADER || (enc != CHUNK_HISTOGRAM && enc != CHUNK_FLOAT_HISTOGRAM))
		return false;
	*m = (struct hist_model){.p = p + HEADER,
		.n_bits = 8 * (payload.n - HEADER),
		.floats = enc == CHUNK_FLOAT_HISTOGRAM,
		.ok = true,
		.flags = p[2],
		.n = (uint32_t)p[0] << 8 | p[1]};
	return true;
}

bool hist_model_next(struct hist_model *m, struct arena *arena)
{
	if (!m->ok || m->i == m->n)
		return false;
	bool first = m->i == 0;
	if (first)
		layout(m, arena);
	if (!m->ok)
		return false;
	if (first) {
		m->t.v = (uint64_t)vbi(m);
		m->count.v = m->floats ? take(m, 64) : vbu(m);
		m->zero_count.v = m->floats ? take(m, 64) : vbu(m);
		m->sum.v = take(m, 64);
	} else {
		dod(m, &m->t);
		(m->floats ? xorv : dod)(m, &m->count);
		(m->floats ? xorv : dod)(m, &m->zero_count);
		xorv(m, &m->sum);
	}
	for (int side = 0; side < 2 && (first || m->sum.v != STALE_NAN_BITS); side++)
		for (uint32_t k = 0; k < m->n_buckets[side] && m->ok; k++) {
			if (first)
				m->buckets[side][k].v = m->floats ? take(m, 64) : (uint64_t)vbi(m);
			else
				(m->floats ? xorv : dod)(m, &m->buckets[side][k]);
		}
	m->i++;
	return m->ok;
}

static bool side_is(const struct hist_model *m, int side, const struct hist_span *spans, uint32_t n_spans, const void *v, uint32_t n)
{
	const uint64_t *bits = v; /* of integers: a signed type's bits, which may be read so */
	bool same = n_spans == m->n_spans[side] && n == m->n_buckets[side];
	for (uint32_t k = 0; same && k < n_spans; k++)
		same = spans[k].offset == m->spans[side][k].offset && spans[k].length == m->spans[side][k].length;
	for (uint32_t k = 0; same && k < n; k++)
		same = bits[k] == m->buckets[side][k].v;
	return same;
}

bool hist_model_is(const struct hist_model *m, const struct chunk_point *p)
{
	const struct histogram *h = p->h;
	if (p->kind != (m->floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM) || (uint64_t)p->t != m->t.v || h->sum != m->sum.v)
		return false;
	if (m->sum.v == STALE_NAN_BITS)
		return h->n_pos == 0 && h->n_neg == 0;
	unsigned hint = m->flags >> 6 == GAUGE ? HIST_RESET_GAUGE : m->i == 1 ? HIST_RESET_UNKNOWN : HIST_RESET_NO;
	bool same = h->schema == m->schema && h->reset_hint == hint && f64_bits(h->zero_threshold) == m->threshold && h->n_custom == m->n_custom;
	for (uint32_t k = 0; same && k < m->n_custom; k++)
		same = h->custom[k] == m->custom[k];
	if (m->floats)
		return same && h->f_count == m->count.v && h->f_zero_count == m->zero_count.v &&
		       side_is(m, 0, h->pos_spans, h->n_pos_spans, h->f_pos, h->n_pos) &&
		       side_is(m, 1, h->neg_spans, h->n_neg_spans, h->f_neg, h->n_neg);
	return same && h->i_count == m->count.v && h->i_zero_count == m->zero_count.v &&
	       side_is(m, 0, h->pos_spans, h->n_pos_spans, h->i_pos, h->n_pos) && side_is(m, 1, h->neg_spans, h->n_neg_spans, h->i_neg, h->n_neg);
}
