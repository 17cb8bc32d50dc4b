/* proto/proto_int.h - what proto/'s own files share: one protobuf field at a time, and structure by table.
 *
 * A cursor is base's struct rd; a field is judged completely before anyone looks at its content: tag within 32 bits, field number
 * not 0, wire type 0, 1, 2 or 5, and the content inside the message. Groups (wire types 3 and 4) are not part of proto3 and refused.
 */
#pragma once
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

/* A message whose content is only checked: each known field's wire type, and what is inside. Unknown fields are skipped. */
struct pb_shape;
extern const struct pb_shape pb_shape_label, pb_shape_exemplar, pb_shape_histogram, pb_shape_metadata;

/* NULL when well formed, else why not, and *at is where. */
const char *pb_check(struct span message, const struct pb_shape *shape, const void **at);
