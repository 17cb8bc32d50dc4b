/* block/block_cutter.c - where a float chunk ends: the rule of Prometheus' head, applied to sorted samples.
 *
 * Before a sample t goes into a chunk of n samples, in this order:
 *   1. payload above 1005 bytes (1024 less the 19 that one more may take): a new chunk begins with t
 *   2. n == 30: the end is estimated anew, so that the chunks up to the range's end share its samples evenly:
 *      with r = (end - start) / (4 * (last - start + 1)): r <= 1: unchanged, else end = start + (end - start) / floor(r)
 *   3. t >= end, or n >= 240: a new chunk begins with t
 * A new chunk's end is that of its range, (t / range) * range + range, the division truncated towards 0 as in Go and C.
 *
 * The estimate is made in doubles, step by step as the reference makes it: for series of a few milliseconds' step the last
 * bit decides where the chunk ends.
 *
 * Source: Prometheus tsdb/head_append.go (rangeForTimestamp, computeChunkEndTime, appendPreprocessor).
 */
#include <math.h>
#include "block/block_chunk.h"

enum { CHUNK_SAMPLES = 120, CHUNK_XOR_MAX_BYTES = 1024, XOR_SAMPLE_MAX_BYTES = 19 };

static int64_t range_end(int64_t t, int64_t range_ms)
{
	return (int64_t)((uint64_t)(t / range_ms * range_ms) + (uint64_t)range_ms);
}

static int64_t end_estimate(int64_t start, int64_t last, int64_t end)
{
	double span = (double)(int64_t)((uint64_t)end - (uint64_t)start);
	double n = span / ((double)(int64_t)((uint64_t)last - (uint64_t)start + 1) * 4);
	if (!(n > 1))
		return end;
	double at = (double)start + span / floor(n);
	return at >= -0x1p63 && at < 0x1p63 ? (int64_t)at : end;
}

bool chunk_cutter_cut(struct chunk_cutter *c, int64_t range_ms, uint32_t n, uint32_t n_bytes, int64_t last_t, int64_t t)
{
	ASSERT(range_ms > 0);
	bool cut = n == 0 || n_bytes > CHUNK_XOR_MAX_BYTES - XOR_SAMPLE_MAX_BYTES;
	if (!cut) {
		if (n == CHUNK_SAMPLES / 4)
			c->next_at = end_estimate(c->start, last_t, c->next_at);
		cut = t >= c->next_at || n >= 2 * CHUNK_SAMPLES;
	}
	if (cut)
		*c = (struct chunk_cutter){.start = t, .next_at = range_end(t, range_ms)};
	return cut;
}
