/* base/histogram.h - one native histogram, as every folder hands it on: decoded from the wire, judged, logged, appended to chunks, answered.
 *
 * Source: Prometheus model/histogram (histogram.go, float_histogram.go) and prompb/types.proto. Bits and rules: docs/format/block.md,
 * docs/format/remote.md.
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"

enum sample_kind { SAMPLE_FLOAT, SAMPLE_HISTOGRAM, SAMPLE_FLOAT_HISTOGRAM };

enum { HIST_RESET_UNKNOWN = 0, HIST_RESET_YES = 1, HIST_RESET_NO = 2, HIST_RESET_GAUGE = 3 };
enum { HIST_SCHEMA_CUSTOM = -53, HIST_SCHEMA_MIN = -4, HIST_SCHEMA_MAX = 8, HIST_SCHEMA_REDUCIBLE_MAX = 52 };

struct hist_span {
	int32_t offset;
	uint32_t length;
};

/* Integers as float64 exactly as read for kind FLOAT_HISTOGRAM; for HISTOGRAM the counts are in the i_ fields. Owns nothing: who hands one out says how
 * long its arrays live. */
struct histogram {
	int32_t schema;
	uint8_t reset_hint; /* HIST_RESET_* */
	double zero_threshold;
	uint64_t sum; /* bits */
	uint64_t i_count, i_zero_count;
	uint64_t f_count, f_zero_count; /* bits */
	const struct hist_span *pos_spans, *neg_spans;
	uint32_t n_pos_spans, n_neg_spans;
	const int64_t *i_pos, *i_neg;  /* HISTOGRAM: deltas as stored */
	const uint64_t *f_pos, *f_neg; /* FLOAT_HISTOGRAM: absolute, bits */
	uint32_t n_pos, n_neg;
	const uint64_t *custom; /* bits of bounds, schema -53 */
	uint32_t n_custom;
};

/* Canonical encoding (kind, schema, threshold, counts, sum, spans, buckets, bounds; without hint), appended to out: equality and the
 * order-free winner compare these bytes. */
void histogram_canonical(enum sample_kind kind, const struct histogram *h, struct buf *out);

/* Whether h can be stored, by the reference's rules (docs/format/remote.md): ERR_INVALID (HISTOGRAM_INVALID) says why not. Schemas 9..52 are reduced to 8 by
 * merging neighbours; h's arrays are then the arena's. Never more memory than h has; the rest of h is left as it is. */
CHECKED errc histogram_judge(enum sample_kind kind, struct histogram *h, struct arena *arena, struct err *err);

/* ---- packed: as the log holds it, and the head until a chunk is made of it (base_histogram_pack.c) ---- */

/* Appends. h was judged. Of a hint only "reset" and "gauge" are kept, of a staleness marker only that it is one. */
void histogram_pack(enum sample_kind kind, const struct histogram *h, struct buf *out);
size_t histogram_pack_bound(const struct histogram *h);
/* h's arrays are the arena's. ERR_CORRUPT: not a packed histogram. */
CHECKED errc histogram_unpack(struct span packed, struct arena *arena, enum sample_kind *kind, struct histogram *h, struct err *err);
enum sample_kind histogram_packed_kind(struct span packed);
/* Of two at one time. *same: canonical encoding and hint are equal. *order: > 0, a is the one that stays whatever came first: by the canonical encoding,
 * else by the packed bytes. */
CHECKED errc histogram_packed_cmp(struct span a, struct span b, bool *same, int *order, struct err *err);
