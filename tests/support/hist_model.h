/* tests/support/hist_model.h - a second opinion on histogram chunks (encodings 2 and 3): read bit by bit, as the format's description has it, sharing nothing with block/.
 *
 * For fuzzers: what block/ reads out of a payload is what this reads; where this comes to the end of the bits, block/ must not show a sample. The other way round is not asked: block/
 * may refuse layouts that nobody writes.
 */
#pragma once
#include "block/block_chunk.h"

struct hist_model_value {
	uint64_t v, change;
	unsigned lead, trail;
};

struct hist_model {
	const uint8_t *p;
	size_t n_bits, at;
	bool floats, ok;
	unsigned flags;
	uint32_t n, i;
	uint64_t threshold;
	int64_t schema;
	struct hist_span *spans[2];
	uint32_t n_spans[2], n_buckets[2], n_custom;
	uint64_t *custom;
	struct hist_model_value t, count, zero_count, sum, *buckets[2];
};

/* A payload's header; false: it has none. Arrays come from the arena. */
bool hist_model_open(struct hist_model *m, uint8_t enc, struct span payload);
/* The next sample; false: there is none, or the payload ends within it. */
bool hist_model_next(struct hist_model *m, struct arena *arena);
/* Whether p is the sample that was read last, bit by bit. */
bool hist_model_is(const struct hist_model *m, const struct chunk_point *p);
