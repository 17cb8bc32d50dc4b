/* tests/support/block_model.h - a block as plain arrays: made up, written by varve's writer, read by a slow and obvious reader of its own.
 *
 * The reader asserts (cmocka) every rule of the format on the way: CRCs, order, alignment, every list of postings against the series.
 */
#pragma once
#include "block/block.h"

struct model_series {
	struct labels labels;
	struct chunk *chunks;
	size_t n;
};

struct model {
	struct arena arena;
	struct model_series *v;
	size_t n;
	int64_t mint, maxt; /* [mint, maxt) over all chunks */
	bool by_pairs;	    /* model_write says all pairs beforehand, and some that no series has */
	/* of a block that was read: the bytes of its index, where its sections are, its chunk segments */
	struct span index;
	struct {
		uint64_t symbols, series, label_index, label_table, postings, table;
	} toc;
	struct span *segments;
	size_t n_segments;
};

struct model_config {
	size_t n_series;
	uint32_t samples; /* per series, of one minute to the next */
	int64_t start_ms, step_ms, range_ms;
	bool nasty;   /* any bits as values, uneven steps; else small whole numbers */
	bool strange; /* long, many and UTF-8 labels */
	uint64_t seed;
};

uint64_t model_random(uint64_t *state);
void model_make(struct model *m, const struct model_config *cfg);
/* Chunks of sorted samples, cut as the head cuts them. */
struct chunk *model_encode(struct arena *arena, const struct chunk_sample *v, size_t n, int64_t range_ms, size_t *n_chunks);
/* Writes with a Thanos section; *meta is filled (arena: the model's). */
errc model_write(
	struct model *m, const char *dir, struct ulid ulid, uint64_t segment_bytes, struct block_meta *meta, uint64_t *bytes, struct err *err);
void model_read(struct model *m, const char *block_dir);
void model_free(struct model *m);
void model_assert_equal(const struct model *a, const struct model *b);
