/* tests/support/hist_make.h - series of random native histograms, all of them valid: counters that grow, are reset and gain buckets, gauges, custom bounds, both
 * kinds, staleness markers, changes of schema and threshold; layouts with and without empty buckets.
 */
#pragma once
#include "base/arena.h"
#include "base/histogram.h"

enum { HIST_MAKE_BUCKETS = 40 };

struct hist_maker {
	uint64_t random;
	bool steady; /* only grows: no resets, no changes */
	/* what the next one is made from */
	enum sample_kind kind;
	bool gauge;
	int32_t schema;
	double zero_threshold, sum;
	uint64_t counts[2][HIST_MAKE_BUCKETS]; /* of both sides, from index -5 on (custom: from 0) */
	uint64_t zero;
	uint64_t bounds[HIST_MAKE_BUCKETS];
	uint32_t n_bounds;
};

void hist_maker_init(struct hist_maker *m, uint64_t seed);
/* The next of the series; arrays from the arena. */
void hist_maker_next(struct hist_maker *m, struct arena *a, enum sample_kind *kind, struct histogram *h);
/* The same in another layout: an empty bucket more at the end of a span. Same canonical encoding. Not for custom bounds. */
void hist_relayout(struct arena *a, enum sample_kind kind, const struct histogram *h, struct histogram *out);
