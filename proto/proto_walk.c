/* proto/proto_walk.c - protobuf one field at a time, and messages whose structure is checked against a table.
 *
 * Histograms, exemplars and metadata are counted today and stored by later versions; what is refused must not change then, so their
 * structure is checked already: wire types, lengths, packed arrays, submessages. Values (spans that don't add up, ...) are not judged.
 *
 * Depth is bounded by the tables themselves (Exemplar > Label), so hostile nesting costs nothing.
 */
#include "proto/proto_int.h"

bool pb_next(struct rd *r, struct pb_field *f, const char **why)
{
	const uint8_t *start = r->p;
	uint64_t tag = rd_uvarint(r);
	if (UNLIKELY(!r->ok)) {
		*why = "tag cut off or above 64 bits";
		return false;
	}
	if (UNLIKELY(tag > UINT32_MAX || tag < 8 || r->p - start > PB_SHORT_VARINT_BYTES)) {
		*why = "field number out of range";
		r->ok = false;
		return false;
	}
	f->number = (uint32_t)tag >> 3;
	f->wire = (enum pb_wire)(tag & 7);
	switch (f->wire) {
	case PB_VARINT:
		f->value = rd_uvarint(r);
		*why = "varint cut off or above 64 bits";
		return r->ok;
	case PB_I64:
		f->value = rd_le64(r);
		*why = "truncated 64-bit value";
		return r->ok;
	case PB_LEN:
		f->bytes = pb_message(r);
		*why = "length beyond the end";
		return r->ok;
	case PB_I32:
		f->value = rd_le32(r);
		*why = "truncated 32-bit value";
		return r->ok;
	}
	*why = "unknown wire type";
	r->ok = false;
	return false;
}

enum kind { SKIP, VARINT, DOUBLE, BYTES, PACKED_VARINTS, PACKED_DOUBLES, LABEL, SPAN_MESSAGE };

enum { SHAPE_FIELDS = 18 };
struct pb_shape {
	uint8_t kind[SHAPE_FIELDS]; /* by field number; a higher number is unknown, so skipped */
};

const struct pb_shape pb_shape_label = {{[1] = BYTES, [2] = BYTES}};
static const struct pb_shape shape_bucket_span = {{[1] = VARINT, [2] = VARINT}};
const struct pb_shape pb_shape_exemplar = {{[1] = LABEL, [2] = DOUBLE, [3] = VARINT}};
const struct pb_shape pb_shape_metadata = {{[1] = VARINT, [2] = BYTES, [4] = BYTES, [5] = BYTES}};
const struct pb_shape pb_shape_histogram = {{
	[1] = VARINT, /* count, integer */
	[2] = DOUBLE, /* count, float */
	[3] = DOUBLE, /* sum */
	[4] = VARINT, /* schema */
	[5] = DOUBLE, /* zero threshold */
	[6] = VARINT, /* zero count, integer */
	[7] = DOUBLE, /* zero count, float */
	[8] = SPAN_MESSAGE,
	[9] = PACKED_VARINTS,
	[10] = PACKED_DOUBLES,
	[11] = SPAN_MESSAGE,
	[12] = PACKED_VARINTS,
	[13] = PACKED_DOUBLES,
	[14] = VARINT, /* reset hint */
	[15] = VARINT, /* timestamp */
	[16] = PACKED_DOUBLES,
}};

static const char *check_packed_varints(struct span s, const void **at)
{
	struct rd r = rd_of(s.p, s.n);
	while (r.p < r.end) {
		*at = r.p;
		(void)rd_uvarint(&r);
		if (!r.ok)
			return "varint in a packed array cut off or above 64 bits";
	}
	return NULL;
}

const char *pb_check(struct span message, const struct pb_shape *shape, const void **at)
{
	struct rd r = rd_of(message.p, message.n);
	while (r.p < r.end) {
		struct pb_field f;
		const char *why = NULL;
		*at = r.p;
		if (!pb_next(&r, &f, &why))
			return why;
		enum kind kind = f.number < SHAPE_FIELDS ? (enum kind)shape->kind[f.number] : SKIP;
		bool right = true;
		switch (kind) {
		case SKIP:
			break;
		case VARINT:
			right = f.wire == PB_VARINT;
			break;
		case DOUBLE:
			right = f.wire == PB_I64;
			break;
		case BYTES:
			right = f.wire == PB_LEN;
			break;
		case PACKED_VARINTS: /* one element a field is the other spelling of the same */
			right = f.wire == PB_LEN || f.wire == PB_VARINT;
			if (f.wire == PB_LEN && (why = check_packed_varints(f.bytes, at)))
				return why;
			break;
		case PACKED_DOUBLES:
			right = f.wire == PB_LEN || f.wire == PB_I64;
			if (f.wire == PB_LEN && f.bytes.n % 8 != 0)
				return "packed doubles of a length that 8 does not divide";
			break;
		case LABEL:
		case SPAN_MESSAGE:
			right = f.wire == PB_LEN;
			if (right && (why = pb_check(f.bytes, kind == LABEL ? &pb_shape_label : &shape_bucket_span, at)))
				return why;
			break;
		}
		if (!right)
			return "wrong wire type";
	}
	return NULL;
}
