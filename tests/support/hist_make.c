/* tests/support/hist_make.c - see tests/support/hist_make.h. */
#include <stdlib.h>
#include <string.h>
#include "tests/support/hist_make.h"

static uint64_t next(struct hist_maker *m)
{
	uint64_t x = m->random += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static void fresh(struct hist_maker *m)
{
	static const double thresholds[] = {0, 0x1p-128, 0.001, 1e-6};
	m->kind = next(m) % 2 ? SAMPLE_HISTOGRAM : SAMPLE_FLOAT_HISTOGRAM;
	m->gauge = next(m) % 5 == 0;
	m->schema = next(m) % 5 == 0 ? HIST_SCHEMA_CUSTOM : (int32_t)(next(m) % 13) - 4;
	m->zero_threshold = m->schema == HIST_SCHEMA_CUSTOM ? 0 : thresholds[next(m) % 4];
	m->n_bounds = 0;
	if (m->schema == HIST_SCHEMA_CUSTOM) {
		double bound = 0;
		for (m->n_bounds = 1 + (uint32_t)(next(m) % 20); bound == 0;)
			for (uint32_t i = 0; i < m->n_bounds; i++) {
				bound += next(m) % 2 ? (double)(1 + next(m) % 1000) / 1000 : 1.0 / (double)(3 + next(m) % 50);
				m->bounds[i] = f64_bits(bound);
			}
	}
	memset(m->counts, 0, sizeof m->counts);
	m->zero = 0;
	m->sum = 0;
}

void hist_maker_init(struct hist_maker *m, uint64_t seed)
{
	*m = (struct hist_maker){.random = seed};
	fresh(m);
}

static uint32_t usable(const struct hist_maker *m, int side)
{
	if (m->schema == HIST_SCHEMA_CUSTOM)
		return side ? 0 : m->n_bounds + 1;
	return HIST_MAKE_BUCKETS;
}

static void observe(struct hist_maker *m)
{
	uint32_t n = (uint32_t)(next(m) % 8), around = (uint32_t)(next(m) % HIST_MAKE_BUCKETS);
	for (uint32_t k = 0; k < n; k++) {
		int side = next(m) % 4 == 0;
		uint32_t room = usable(m, side);
		if (room)
			m->counts[side][(around + next(m) % 4) % room] += next(m) % 16;
	}
	if (m->gauge && next(m) % 2)
		for (int s = 0; s < 2; s++)
			for (uint32_t k = 0; k < HIST_MAKE_BUCKETS; k++)
				m->counts[s][k] -= next(m) % 8 < m->counts[s][k] ? next(m) % 2 && m->counts[s][k] : 0;
	if (m->schema != HIST_SCHEMA_CUSTOM)
		m->zero += next(m) % 3;
	m->sum += (double)(next(m) % 1000) / 7;
}

static void side_make(struct hist_maker *m, struct arena *a, int side, struct histogram *h, uint64_t *total)
{
	uint32_t room = usable(m, side), n = 0, n_spans = 0;
	struct hist_span *spans = arena_calloc(a, HIST_MAKE_BUCKETS, sizeof *spans);
	int64_t *ints = arena_calloc(a, HIST_MAKE_BUCKETS, sizeof *ints);
	uint64_t *floats = arena_calloc(a, HIST_MAKE_BUCKETS, sizeof *floats);
	int32_t behind = 0, first = m->schema == HIST_SCHEMA_CUSTOM ? 0 : -5;
	uint64_t before = 0;
	for (uint32_t k = 0; k < room; k++) {
		uint64_t c = m->counts[side][k];
		/* Some senders leave small gaps in as empty buckets. */
		bool gap = c == 0 && n > 0 && k + 1 < room && m->counts[side][k + 1] > 0 && next(m) % 3 == 0;
		if (c == 0 && !gap)
			continue;
		int32_t index = first + (int32_t)k;
		if (n_spans > 0 && index == behind) {
			spans[n_spans - 1].length++;
		} else {
			spans[n_spans] = (struct hist_span){n_spans == 0 ? index : index - behind, 1};
			n_spans++;
		}
		behind = index + 1;
		ints[n] = (int64_t)(c - before);
		floats[n++] = f64_bits((double)c * (m->kind == SAMPLE_FLOAT_HISTOGRAM && m->schema % 2 ? 0.5 : 1));
		before = c;
		*total += c;
	}
	bool is_float = m->kind == SAMPLE_FLOAT_HISTOGRAM;
	if (side == 0) {
		h->pos_spans = spans;
		h->n_pos_spans = n_spans;
		h->n_pos = n;
		h->i_pos = is_float ? NULL : ints;
		h->f_pos = is_float ? floats : NULL;
	} else {
		h->neg_spans = spans;
		h->n_neg_spans = n_spans;
		h->n_neg = n;
		h->i_neg = is_float ? NULL : ints;
		h->f_neg = is_float ? floats : NULL;
	}
}

void hist_maker_next(struct hist_maker *m, struct arena *a, enum sample_kind *kind, struct histogram *h)
{
	uint64_t total = 0;
	*h = (struct histogram){0};
	if (!m->steady && next(m) % 40 == 0)
		fresh(m);
	if (!m->steady && next(m) % 30 == 0) {
		memset(m->counts, 0, sizeof m->counts);
		m->zero = 0;
	}
	if (!m->steady && next(m) % 50 == 0 && m->schema != HIST_SCHEMA_CUSTOM)
		m->zero_threshold *= 2;
	observe(m);
	*kind = m->kind;
	if (m->gauge)
		h->reset_hint = HIST_RESET_GAUGE;
	else if (!m->steady && next(m) % 60 == 0)
		h->reset_hint = HIST_RESET_YES;
	else if (next(m) % 4 == 0)
		h->reset_hint = HIST_RESET_NO;
	if (!m->steady && next(m) % 25 == 0) {
		h->sum = STALE_NAN_BITS;
		return;
	}
	side_make(m, a, 0, h, &total);
	side_make(m, a, 1, h, &total);
	h->schema = m->schema;
	h->zero_threshold = m->zero_threshold;
	h->sum = f64_bits(m->sum);
	total += m->zero;
	if (m->kind == SAMPLE_FLOAT_HISTOGRAM) {
		h->f_count = f64_bits((double)total);
		h->f_zero_count = f64_bits((double)m->zero);
	} else {
		h->i_count = total;
		h->i_zero_count = m->zero;
	}
	if (m->n_bounds) {
		uint64_t *bounds = arena_calloc(a, m->n_bounds, sizeof *bounds);
		memcpy(bounds, m->bounds, m->n_bounds * sizeof *bounds);
		h->custom = bounds;
		h->n_custom = m->n_bounds;
	}
}

void hist_relayout(struct arena *a, enum sample_kind kind, const struct histogram *h, struct histogram *out)
{
	*out = *h;
	if (h->sum == STALE_NAN_BITS || h->schema == HIST_SCHEMA_CUSTOM)
		return;
	struct hist_span *spans = arena_calloc(a, h->n_pos_spans + 1, sizeof *spans);
	int64_t *ints = arena_calloc(a, h->n_pos + 1, sizeof *ints);
	uint64_t *floats = arena_calloc(a, h->n_pos + 1, sizeof *floats);
	if (h->n_pos_spans)
		memcpy(spans, h->pos_spans, h->n_pos_spans * sizeof *spans);
	spans[h->n_pos_spans ? h->n_pos_spans - 1 : 0].length++;
	int64_t count = 0;
	for (uint32_t k = 0; k < h->n_pos; k++) {
		if (kind == SAMPLE_HISTOGRAM)
			count += ints[k] = h->i_pos[k];
		else
			floats[k] = h->f_pos[k];
	}
	ints[h->n_pos] = -count;
	out->pos_spans = spans;
	out->n_pos_spans = h->n_pos_spans ? h->n_pos_spans : 1;
	out->n_pos = h->n_pos + 1;
	out->i_pos = kind == SAMPLE_HISTOGRAM ? ints : NULL;
	out->f_pos = kind == SAMPLE_HISTOGRAM ? NULL : floats;
}
