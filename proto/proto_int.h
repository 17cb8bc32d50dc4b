/* proto/proto_int.h - what proto/'s own files share: one protobuf field at a time, and what both versions of remote write need.
 *
 * A cursor is base's struct rd; a field is judged completely before anyone looks at its content: tag within 32 bits, field number
 * not 0, wire type 0, 1, 2 or 5, and the content inside the message. Groups (wire types 3 and 4) are not part of proto3 and refused.
 */
#pragma once
#include "base/limits.h"
#include "proto/proto.h"

enum pb_wire { PB_VARINT = 0, PB_I64 = 1, PB_LEN = 2, PB_I32 = 5 };

struct pb_field {
	uint32_t number;
	enum pb_wire wire;
	uint64_t value;	   /* PB_VARINT, PB_I64, PB_I32 */
	struct span bytes; /* PB_LEN */
};

/* Tags and lengths are 32-bit numbers: protobuf's own parsers read at most five bytes of them, however they are spelled. */
enum { PB_SHORT_VARINT_BYTES = 5 };

/* What follows a tag of PB_LEN. */
static inline struct span pb_message(struct rd *r)
{
	const uint8_t *start = r->p;
	uint64_t n = rd_uvarint(r);
	if (UNLIKELY(r->p - start > PB_SHORT_VARINT_BYTES))
		n = UINT64_MAX; /* rd_bytes refuses */
	return rd_bytes(r, n);
}

/* Reads one field; false: the message is malformed there and r->ok is false, *why says how. */
bool pb_next(struct rd *r, struct pb_field *f, const char **why);
/* A Label { 1 name; 2 value } whose content is only checked: NULL when well formed, else why not, and *at is where. */
const char *pb_check_label(struct span message, const void **at);
/* Packed varints, n of them when each ends: what is cut off, or too long, shows when they are read. */
size_t pb_packed_count(struct span packed);

/* A timestamp's varint in one load when 8 bytes may be read and it ends within them (all times of this age take 6). */
static inline const uint8_t *pb_varint_fast(const uint8_t *p, const uint8_t *end, uint64_t *v)
{
	if (UNLIKELY(end - p < 8))
		return NULL;
	uint64_t x = get_le64(p), stop = ~x & UINT64_C(0x8080808080808080);
	if (UNLIKELY(!stop))
		return NULL;
	unsigned last_bit = (unsigned)__builtin_ctzll(stop);
	x &= (UINT64_C(2) << last_bit) - 1; /* last_bit 63 shifts the 2 out: 0 - 1 keeps all */
	x &= UINT64_C(0x7f7f7f7f7f7f7f7f);
	x = (x & UINT64_C(0x007f007f007f007f)) | (x & UINT64_C(0x7f007f007f007f00)) >> 1;
	x = (x & UINT64_C(0x00003fff00003fff)) | (x & UINT64_C(0x3fff00003fff0000)) >> 2;
	x = (x & UINT64_C(0x000000000fffffff)) | (x & UINT64_C(0x0fffffff00000000)) >> 4;
	*v = x;
	return p + last_bit / 8 + 1;
}

/* ---- a request while it is decoded (proto_request.c) ---- */

/* Fields that both versions number alike. */
enum { SERIES_LABELS = 1, SERIES_SAMPLE = 2 };

struct rw_decoder {
	struct span body;
	const struct rw_limits *limits;
	struct arena *arena;
	struct rw_request *out;
	uint32_t series_field; /* of the request */
	const char *first;     /* series; 2.0 has all symbols before it */
	size_t series_cap, samples_cap, hists_cap, exemplars_cap, metadata_cap;
	uint64_t hist_bytes; /* buckets, spans and bounds so far */
};

CHECKED errc rw_malformed(const struct rw_decoder *d, const void *at, const char *why, struct err *err);
CHECKED errc rw_too_many_labels(const struct rw_decoder *d, struct err *err);
/* Room for one more series, which is `message`, and for samples as long as a series has one. */
CHECKED errc rw_series_room(struct rw_decoder *d, struct span message, struct err *err);
/* Called when the array of samples is full: `rest` is what is left of the current series, from the sample that did not fit. Counts, refuses or allocates. */
CHECKED errc rw_samples_grow(struct rw_decoder *d, struct span rest, struct err *err);
/* Start timestamps beside the samples, when the first of them is said. */
CHECKED errc rw_starts_begin(struct rw_decoder *d, struct err *err);
/* Any order and spelling; start NULL: this version has none. */
CHECKED errc rw_sample_any(const struct rw_decoder *d, struct span message, struct rw_sample *s, int64_t *start, struct err *err);

/* ---- what a request carries beside samples (proto_elements.c): each adds one to its array ---- */

CHECKED errc rw_hist_add(struct rw_decoder *d, struct span message, bool has_start, struct err *err);
CHECKED errc rw_exemplar_room(struct rw_decoder *d, struct err *err);
CHECKED errc rw_exemplar_add(struct rw_decoder *d, struct span message, struct err *err); /* 1.0 */
CHECKED errc rw_metadata_room(struct rw_decoder *d, struct err *err);
CHECKED errc rw_metadata_add(struct rw_decoder *d, struct span message, struct err *err); /* 1.0 */
static inline enum metric_type rw_metric_type(uint64_t v)
{
	uint32_t low = (uint32_t)v;
	return low < METRIC_TYPES ? (enum metric_type)low : METRIC_UNKNOWN;
}
/* The label fields (number 1) of a message that was walked before, put into one run in the arena. */
CHECKED errc rw_labels_gather(struct rw_decoder *d, struct span message, size_t n_bytes, struct span *out, struct err *err);
