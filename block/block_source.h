/* block/block_source.h - one way to read series, whatever holds them: a head window, a local block, a block in the bucket.
 *
 * query/ merges any number of sources; it never asks what kind one is. A source is pinned from the moment it is handed out until
 * source_release: what it names stays readable (memory, files, cached ranges) and unchanged.
 */
#pragma once
#include "base/arena.h"
#include "base/labels.h"
#include "base/ulid.h"
#include "block/block_chunk.h"
#include "block/block_matcher.h"

/* One series of one source. Valid until the next call of the iterator. Chunks ascend by mint; within one source those of a
 * block do not overlap, those of a foreign block or a window may (merge by time, equal times by the order-free winner). */
struct series_view {
	struct labels labels; /* without external labels */
	struct chunk *chunks;
	size_t n_chunks;
	/* deleted intervals of this series (tombstones), closed, sorted; samples inside must not be shown */
	const struct interval {
		int64_t mint, maxt;
	} * deleted;
	size_t n_deleted;
};

struct select_options {
	int64_t mint, maxt; /* closed; chunks that do not overlap are left out */
	size_t batch_bytes; /* read ahead about this much at a time; 0 = a default */
	bool skip_chunks;   /* labels only: series that have at least one chunk overlapping [mint, maxt] */
};

struct series_iter;
struct series_iter_ops {
	/* *more = false at the end. Series ascend by labels. ERR_CORRUPT names file and offset. */
	errc (*next)(struct series_iter *it, struct series_view *out, bool *more, struct err *err);
	void (*close)(struct series_iter *it);
};
struct series_iter {
	const struct series_iter_ops *ops;
};

struct source;
struct source_ops {
	errc (*select)(
		struct source *s, const struct matcher *m, size_t n, const struct select_options *opt, struct series_iter **out, struct err *err);
	/* Calls emit for each label name (or value of `name`) of the series that match, each once or more, in any order; n == 0: all.
	 * The span is valid during the call. An error of emit ends it. */
	errc (*label_names)(struct source *s, const struct matcher *m, size_t n, const struct select_options *opt,
		errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err);
	errc (*label_values)(struct source *s, struct span name, const struct matcher *m, size_t n, const struct select_options *opt,
		errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err);
	void (*release)(struct source *s); /* unpins and frees */
};
struct source {
	const struct source_ops *ops;
	struct ulid ulid;	  /* of the block, or that the window's block will have */
	int64_t mint, maxt;	  /* half-open [mint, maxt) */
	struct labels ext_labels; /* external labels of a block (borrowed until release); n = 0 for head windows: the process' own apply */
	const char *kind;	  /* "head", "local", "bucket": for messages */
};

/* ---- selecting by postings: the one algorithm that head windows and block indexes share ---- */

/* Sorted u32 postings. The algorithm asks only for what the matchers need and intersects by galloping. */
struct postings {
	const uint32_t *v;
	size_t n;
};
struct postings_index;
struct postings_index_ops {
	errc (*all)(struct postings_index *ix, struct arena *arena, struct postings *out, struct err *err);
	/* Empty when the pair is absent. */
	errc (*get)(struct postings_index *ix, struct span name, struct span value, struct arena *arena, struct postings *out, struct err *err);
	/* Each value of a name, ascending or not; `arg` as given. */
	errc (*values)(struct postings_index *ix, struct span name, struct span prefix, errc (*emit)(void *arg, struct span value, struct err *err),
		void *arg, struct err *err);
};
struct postings_index {
	const struct postings_index_ops *ops;
};
/* Series that match all matchers, ascending refs. The result may borrow from the index or the arena. */
CHECKED errc postings_select(
	struct postings_index *ix, const struct matcher *m, size_t n, struct arena *arena, struct postings *out, struct err *err);
