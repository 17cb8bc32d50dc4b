/* head/head_hist_int.h - the histograms of a series in a window (head_hist.c, head_hist_chunks.c). A chapter of head_int.h, which includes it where the leaves of floats
 * are known.
 */
#pragma once
#include "head/head_int.h"

struct hist_sample {
	uint32_t t; /* from the window's start */
	uint32_t n;
	uint8_t *bytes; /* packed (base/histogram.h), from the part's pool */
};
struct hist_leaf {
	uint32_t mint, maxt;
	union {
		struct hist_sample *raw; /* cap > 0 */
		uint64_t off;		 /* in the chunk file */
	};
	uint32_t bytes; /* raw: packed ones together; else of the payload */
	uint16_t n, cap;
};
/* Leaves are disjoint and ascend. */
struct hist_series {
	uint32_t n, cap, n_raw;
	struct hist_leaf v[];
};
enum { HEAD_HIST_LEAF = 250 /* in place of an encoding, in the chunk file */, HIST_SAMPLE_HEADER = 8, HIST_LEAF_SAMPLES_MAX = 64 };

/* As head_leaf_insert_locked; packed is copied. A winner over a float at its time leaves it in place: readers and the cut prefer the histogram. */
enum insert_verdict head_hist_insert_locked(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t t, struct span packed,
	bool winner, bool *late, struct err *err);
CHECKED errc head_hist_has_locked(struct window *w, const struct wseries *ws, int64_t t, bool *has, struct err *err);
/* A leaf as the chunk file has it: its size, a raw one's bytes, and going through them; false at the end or (*ok = false) at damage. */
uint32_t head_hist_leaf_bytes(const struct hist_leaf *l);
void head_hist_leaf_copy(const struct hist_leaf *l, uint8_t *out);
bool head_hist_leaf_next(struct rd *r, uint32_t *t, struct span *packed, bool *ok);
/* From a snapshot: one of n leaves, each behind those before. raw: the bytes of one that is not in the chunk file. */
CHECKED errc head_hist_load_locked(
	struct window *w, struct wpart *part, struct wseries *ws, uint32_t n, const struct hist_leaf *l, struct span raw, struct err *err);

/* All samples of a series in a frozen window, floats too, into e, and their end. */
struct cut_file;
CHECKED errc head_hist_cut(
	struct window *w, const struct wpart *part, const struct wseries *ws, struct cut_file *file, struct chunk_encoder *e, struct err *err);
/* For readers: the leaves that overlap, copied under the lock; then, without it, as chunks. skip: only how many. */
struct hist_copied {
	const uint8_t *bytes; /* NULL: in the chunk file */
	uint64_t off;
	uint32_t len;
};
struct hist_copy {
	struct hist_copied *v;
	uint32_t n;
};
CHECKED errc head_hist_copy_locked(struct window *w, const struct wseries *ws, int64_t mint, int64_t maxt, bool skip, struct arena *arena,
	struct hist_copy *out, struct err *err);
CHECKED errc head_hist_view(struct window *w, const struct hist_copy *copy, struct arena *arena, struct chunk **out, size_t *n, struct err *err);
