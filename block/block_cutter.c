/* block/block_cutter.c - where a chunk ends: the rules of Prometheus' head, applied to sorted samples.
 *
 * Before a float t goes into a chunk of n samples, in this order:
 *   1. payload above 1005 bytes (1024 less the 19 that one more may take): a new chunk begins with t
 *   2. n == 30: the end is estimated anew, so that the chunks up to the range's end share its samples evenly:
 *      with r = (end - start) / (4 * (last - start + 1)): r <= 1: unchanged, else end = start + (end - start) / floor(r)
 *   3. t >= end, or n >= 240: a new chunk begins with t
 * A new chunk's end is that of its range, (t / range) * range + range, the division truncated towards 0 as in Go and C.
 *
 * The estimate is made in doubles, step by step as the reference makes it: for series of a few milliseconds' step the last
 * bit decides where the chunk ends.
 *
 * Before a histogram t goes into a chunk of n samples and b bytes (its header included):
 *   1. the first time that b >= 256: the end is estimated as above, with 1024 / b in place of the 4
 *   2. t >= end or b >= 2048: a new chunk begins with t, if it has 10 samples or t is in another range
 * A chunk that begins because the samples demand it (a counter reset, another schema ...) does not get an estimate when the one before it had one:
 * it is a slip of the reference, and its borders are where readers expect them.
 *
 * Source: Prometheus tsdb/head_append.go (rangeForTimestamp, computeChunkEndTime, appendPreprocessor, histogramsAppendPreprocessor).
 */
#include <math.h>
#include "block/block_int.h"

enum { CHUNK_XOR_MAX_BYTES = 1024, XOR_SAMPLE_MAX_BYTES = 19, CHUNK_HIST_BYTES = 1024, CHUNK_HIST_SAMPLES = 10 };

static int64_t range_end(int64_t t, int64_t range_ms)
{
	return (int64_t)((uint64_t)(t / range_ms * range_ms) + (uint64_t)range_ms);
}

static int64_t end_estimate(int64_t start, int64_t last, int64_t end, double to_full)
{
	double span = (double)(int64_t)((uint64_t)end - (uint64_t)start);
	double n = span / ((double)(int64_t)((uint64_t)last - (uint64_t)start + 1) * to_full);
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
		if (n == CHUNK_TARGET_SAMPLES / 4)
			c->next_at = end_estimate(c->start, last_t, c->next_at, 4);
		cut = t >= c->next_at || n >= 2 * CHUNK_TARGET_SAMPLES;
	}
	if (cut)
		*c = (struct chunk_cutter){.start = t, .next_at = range_end(t, range_ms)};
	return cut;
}

bool hist_cutter_cut(struct hist_cutter *c, int64_t range_ms, uint32_t n, uint32_t n_bytes, int64_t last_t, int64_t t)
{
	ASSERT(range_ms > 0);
	bool cut = n == 0;
	if (!cut) {
		int64_t other_range = c->estimated ? range_end(c->start, range_ms) : c->next_at;
		if (!c->estimated && n_bytes >= CHUNK_HIST_BYTES / 4) {
			c->next_at = end_estimate(c->start, last_t, c->next_at, (double)CHUNK_HIST_BYTES / n_bytes);
			c->estimated = true;
		}
		cut = (t >= c->next_at || n_bytes >= 2 * CHUNK_HIST_BYTES) && (n >= CHUNK_HIST_SAMPLES || t >= other_range);
	}
	if (cut)
		*c = (struct hist_cutter){.start = t, .next_at = range_end(t, range_ms)};
	return cut;
}

void hist_cutter_demanded(struct hist_cutter *c, int64_t range_ms, int64_t t)
{
	c->start = t;
	c->next_at = range_end(t, range_ms);
}
