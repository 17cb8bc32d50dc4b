/* proto/proto.h - what travels: snappy bodies, remote write 1.0 and 2.0 decoded in place, remote read by protobuf-c.
 *
 * The remote-write decoder is a cursor: one pass, no object per label or sample, spans into the decompressed body, arrays in the request's
 * arena that never grow past the limits (a count is refused as it passes its limit, before more is allocated). Every field order and
 * spelling that protobuf allows is read; unknown fields are skipped; truncated varints and wrong wire types are refused.
 *
 * Source: Prometheus remote write 1.0 and 2.0 specifications; prompb/types.proto (numbers in docs/format/remote.md).
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"
#include "base/errid.h"
#include "base/annotations.h"
#include "base/histogram.h"

/* Snappy block format. Checks the preamble against max_bytes before allocating (DECODED_TOO_LARGE), then decompresses into the arena. */
CHECKED errc snappy_decode(struct span in, size_t max_bytes, struct arena *arena, struct span *out, struct err *err);
/* The size that the preamble declares, for budgets; ERR_INVALID (SNAPPY) when there is none. */
CHECKED errc snappy_declared(struct span in, size_t *n, struct err *err);
CHECKED errc snappy_encode(struct span in, struct buf *out, struct err *err); /* appends */

/* ---- remote write ---- */

struct rw_limits {
	uint32_t max_series;
	uint32_t max_samples;
	uint32_t max_labels_decode; /* per series, LIMIT_LABELS_DECODE: more is refused for the whole request */
};

struct rw_sample {
	int64_t t;
	uint64_t v; /* bits */
};

struct rw_hist {
	int64_t t;
	int64_t start; /* start timestamp, 0: not said */
	enum sample_kind kind;
	struct histogram h; /* its arrays live in the request's arena; structure was checked, meaning was not (histogram_judge) */
};

struct rw_series {
	/* 1.0: its label fields in sequence, tags included: as they came when contiguous, else put together in the arena. 2.0: p is NULL, and n is
	 * how many bytes they would take at most. */
	struct span wire;
	/* 2.0: n_labels pairs of indexes into symbols, each checked against n_symbols; NULL in 1.0. */
	const uint32_t *refs;
	uint32_t n_labels;
	uint32_t first_sample, n_samples;
	uint32_t first_hist, n_hists;
	uint32_t first_exemplar, n_exemplars;
	uint32_t metadata; /* 2.0: number of its family's entry as it says it, + 1; 0: it says none */
	int64_t created;   /* 2.0's older created timestamp (TimeSeries field 6), 0: not said */
};

struct rw_request {
	struct span *symbols; /* 2.0 */
	size_t n_symbols;
	struct rw_series *series;
	size_t n_series;
	struct rw_sample *samples;
	int64_t *starts; /* 2.0: start timestamp of each sample, 0: not said; NULL: nobody said any */
	size_t n_samples;
	struct rw_hist *hists;
	size_t n_hists;
	struct exemplar *exemplars; /* 2.0: labels put into wire form, in the arena */
	size_t n_exemplars;
	struct metadata *metadata; /* 2.0: once for each family, and again when it differs from the one before */
	size_t n_metadata;
};

/* ERR_INVALID (PROTOBUF) with the byte offset, or ERR_LIMIT (TOO_MANY_SERIES, TOO_MANY_SAMPLES). UTF-8 of labels is not judged here but where a
 * series is new. Spans borrow from body. */
CHECKED errc rw1_decode(struct span body, const struct rw_limits *limits, struct arena *arena, struct rw_request *out, struct err *err);
/* The same for 2.0. A reference beyond the symbols, an odd number of them, or symbols that do not begin with the empty string: ERR_INVALID, nothing is
 * stored. */
CHECKED errc rw2_decode(struct span body, const struct rw_limits *limits, struct arena *arena, struct rw_request *out, struct err *err);

/* `field`, a series' field of the client's message with tag and length, with the labels of `s` (whose refs are NULL or number the same symbols) instead of its own; all else as it came. In the
 * arena. ERR_INVALID (PROTOBUF): it is none. */
CHECKED errc rw_slice_relabel(struct span field, const struct rw_series *s, struct arena *arena, struct span *out, struct err *err);
/* The same for 2.0 where symbols have other numbers: refs of `s` are the new ones, and number() tells those of whatever else refers to symbols. Appended to out. */
CHECKED errc rw2_slice_renumber(
	struct span field, const struct rw_series *s, uint32_t (*number)(void *arg, uint32_t ref), void *arg, struct buf *out, struct err *err);

/* Which message a write request carries, from its headers (empty spans = absent): content type with or without parameters, spaces trimmed. */
enum rw_version { RW_NONE, RW_1, RW_2 };
CHECKED errc rw_negotiate(struct span content_type, struct span content_encoding, enum rw_version *v, struct err *err);

/* A decoded request's own bytes, to be sent on without encoding anything. */
struct rw_slices {
	struct span *series;   /* n_series of the request: each a field of the message, its tag and length included */
	struct span *metadata; /* 1.0: n_metadata of the request, likewise. 2.0: none, it stands in the series */
	struct span *symbols;  /* 2.0: the fields of all symbols in their order, those that lie together in one span */
	size_t n_symbols;
};
/* rw was decoded from body. Spans borrow from body; arrays are the arena's. ERR_NOMEM (OVERLOADED). */
CHECKED errc rw_slices(
	struct span body, enum rw_version version, const struct rw_request *rw, struct arena *arena, struct rw_slices *out, struct err *err);

/* ---- remote read ---- */

struct rr_matcher {
	int type; /* 0 EQ 1 NEQ 2 RE 3 NRE */
	struct span name, value;
};
struct rr_query {
	int64_t start_ms, end_ms; /* both included */
	struct rr_matcher *matchers;
	size_t n_matchers;
	int64_t hint_step_ms;
	struct span hint_func;
	int64_t hint_start_ms, hint_end_ms;
};
struct rr_request {
	struct rr_query *queries;
	size_t n_queries;
	bool streamed; /* STREAMED_XOR_CHUNKS was the first accepted type that we know; else SAMPLES */
};
/* From the decompressed body; everything copied into the arena. */
CHECKED errc rr_decode(struct span body, struct arena *arena, struct rr_request *out, struct err *err);

/* Answers are written field by field as they are produced (they may be larger than memory allows to hold twice). */
void pb_tag(struct buf *b, uint32_t field, uint32_t wire_type);
void pb_uint(struct buf *b, uint32_t field, uint64_t v);
void pb_sint(struct buf *b, uint32_t field, int64_t v); /* zigzag */
void pb_double_bits(struct buf *b, uint32_t field, uint64_t bits);
void pb_bytes(struct buf *b, uint32_t field, struct span s);
/* A length-delimited submessage: begin leaves room, end fills in the length. Nests. */
size_t pb_begin(struct buf *b, uint32_t field);
void pb_end(struct buf *b, size_t mark);
/* prompb.Histogram, of remote write 1.0 and of remote read's samples (proto_write_hist.c). */
void pb_histogram(struct buf *b, uint32_t field, int64_t t, enum sample_kind kind, const struct histogram *h);
