/* block/block_read_int.h - what the reading files of block/ share: histogram payloads, the regex engine, an open index, tombstones.
 */
#pragma once
#include <stdatomic.h>
#include <pthread.h>
#include "block/block.h"
#include "block/block_int.h"
#include "block/block_regex.h"

/* ---- variable bit codes of histograms and start timestamps ---- */

/* Ones before the 0 choose the width; no one at all is the value 0. */
static inline uint64_t bits_vbu(struct bits *b)
{
	static const uint8_t width[9] = {0, 3, 6, 9, 12, 18, 25, 56, 64};
	unsigned ones = bits_ones(b, 8);
	return bits_read(b, width[ones]);
}

static inline int64_t bits_vbi(struct bits *b)
{
	static const uint8_t width[9] = {0, 3, 6, 9, 12, 18, 25, 56, 64};
	unsigned n = width[bits_ones(b, 8)];
	uint64_t u = bits_read(b, n);
	return n == 0 ? 0 : n == 64 ? (int64_t)u : bits_range(u, n);
}

static inline uint64_t bits_left(const struct bits *b)
{
	return (uint64_t)(b->end - b->p) * 8 + b->have;
}

/* ---- histogram chunks, block_chunk_hist.c ---- */

/* Of one side's buckets: values as stored, and what the next sample's codes refer to. */
struct hist_side {
	struct hist_span *spans;
	uint32_t n_spans;
	uint32_t n;
	uint64_t *v;		   /* integer: deltas between neighbours (two's complement); float: bits */
	uint64_t *dv;		   /* integer: change of v between the last two samples */
	struct xor_window *window; /* float */
};

struct hist_reader {
	struct bits bits;
	struct arena *arena;
	bool floats;
	uint8_t reset; /* the header's two bits */
	uint32_t n, i;
	int64_t t;
	uint64_t dt;
	uint64_t count, zero_count, sum;
	uint64_t dcount, dzero_count;
	struct xor_window count_window, zero_count_window, sum_window;
	struct hist_side pos, neg;
	struct histogram layout; /* schema, threshold, spans, bounds: the same for every sample of the chunk */
	struct histogram h;	 /* the sample last read */
};

CHECKED errc hist_reader_init(struct hist_reader *r, bool floats, struct span data, struct arena *arena, struct err *err);
/* r->i < r->n. The sample is in r->t and r->h. */
CHECKED errc hist_reader_next(struct hist_reader *r, struct err *err);
