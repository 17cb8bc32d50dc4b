/* proto/proto_write.c - protobuf fields appended to a buffer, submessages in place.
 *
 * A submessage's length is not known when it begins: one byte is left for it, and a content of 128 bytes or more moves up when it ends. So
 * lengths are always in the shortest form (bytes are comparable), small submessages, which are nearly all, cost nothing, and a large one costs
 * one memmove a level.
 */
#include "proto/proto_int.h"

void pb_tag(struct buf *b, uint32_t field, uint32_t wire_type)
{
	buf_uvarint(b, (uint64_t)field << 3 | wire_type);
}

void pb_uint(struct buf *b, uint32_t field, uint64_t v)
{
	pb_tag(b, field, PB_VARINT);
	buf_uvarint(b, v);
}

void pb_sint(struct buf *b, uint32_t field, int64_t v)
{
	pb_tag(b, field, PB_VARINT);
	buf_varint(b, v);
}

void pb_double_bits(struct buf *b, uint32_t field, uint64_t bits)
{
	uint8_t le[8];
	put_le64(le, bits);
	pb_tag(b, field, PB_I64);
	buf_put(b, le, sizeof le);
}

void pb_bytes(struct buf *b, uint32_t field, struct span s)
{
	pb_tag(b, field, PB_LEN);
	buf_str(b, s);
}

size_t pb_begin(struct buf *b, uint32_t field)
{
	pb_tag(b, field, PB_LEN);
	size_t mark = b->n;
	buf_u8(b, 0);
	return mark;
}

void pb_end(struct buf *b, size_t mark)
{
	if (b->failed)
		return;
	ASSERT(b->n > mark);
	size_t n = b->n - mark - 1, more = uvarint_size(n) - 1;
	if (more) {
		if (!buf_reserve(b, more))
			return;
		memmove(b->p + mark + 1 + more, b->p + mark + 1, n);
		b->n += more;
	}
	put_uvarint(b->p + mark, n);
}
