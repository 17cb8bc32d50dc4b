/* proto/proto_walk.c - protobuf one field at a time. See proto/proto_int.h. */
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

const char *pb_check_label(struct span message, const void **at)
{
	struct rd r = rd_of(message.p, message.n);
	while (r.p < r.end) {
		struct pb_field f;
		const char *why = NULL;
		*at = r.p;
		if (!pb_next(&r, &f, &why))
			return why;
		if (f.number <= 2 && f.wire != PB_LEN)
			return "wrong wire type in a label";
	}
	return NULL;
}

size_t pb_packed_count(struct span packed)
{
	size_t n = 0, i = 0;
	for (; packed.n - i >= 8; i += 8)
		n += (size_t)__builtin_popcountll(~get_le64(packed.p + i) & UINT64_C(0x8080808080808080));
	for (; i < packed.n; i++)
		n += !((uint8_t)packed.p[i] & 0x80);
	return n;
}
