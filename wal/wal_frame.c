/* wal/wal_frame.c - one frame: the unit of writing, of compression and of damage.
 *
 *   offset  size  field
 *        0     4  magic         "vrvF"; resync looks for it together with the log's number
 *        4     4  log           u32, random, the same in all files of one log
 *        8     8  segment       u64, the segment it was written to: a frame in a wrong place is none
 *       16     8  sequence      u64, dense over the life of the log, from 1
 *       24     8  first sample  u64, samples logged before this frame
 *       32     8  durable       u64, bytes of this file that were known to be synced when the frame was written
 *       40     4  stored        u32, bytes of payload as stored, <= raw
 *       44     4  raw           u32, bytes of payload decompressed, <= LIMIT_WAL_FRAME_BYTES
 *       48     4  samples       u32
 *       52     4  flags         u32, enum wal_frame_flags; unknown ones make the frame unreadable
 *       56     4  crc32c        u32 over the stored payload
 *       60     4  header crc32c u32 over bytes 0 .. 59
 *       64     -  payload       LZ4 block, or as it is when that is not smaller; then zeros up to a multiple of 8
 *
 * All numbers little-endian. Two checksums because a header that is right makes a damaged payload exact: its numbers say what
 * was lost, its length says where the next frame begins, so bytes inside a damaged payload (which clients choose) are never
 * taken for frames. Sequence and sample numbers count what is missing; `durable` tells a torn tail from damage. Alignment to 8
 * makes resync a scan of words.
 */
#include <lz4.h>
#include "wal/wal_int.h"

static const uint8_t magic[4] = {'v', 'r', 'v', 'F'};

uint64_t wal_frame_key(uint32_t log)
{
	return get_le32(magic) | (uint64_t)log << 32;
}

void wal_frame_put(uint8_t *out, struct wal_frame_header *h)
{
	memcpy(out, magic, 4);
	put_le32(out + 4, h->log);
	put_le64(out + 8, h->segment);
	put_le64(out + 16, h->seq);
	put_le64(out + 24, h->first_sample);
	put_le64(out + 32, h->durable);
	put_le32(out + 40, h->stored);
	put_le32(out + 44, h->raw);
	put_le32(out + 48, h->samples);
	put_le32(out + 52, h->flags);
	put_le32(out + 56, h->crc);
	h->header_crc = crc32c(0, out, 60);
	put_le32(out + 60, h->header_crc);
}

bool wal_frame_get(const uint8_t *in, struct wal_frame_header *h)
{
	if (memcmp(in, magic, 4) != 0)
		return false;
	h->header_crc = get_le32(in + 60);
	if (crc32c(0, in, 60) != h->header_crc)
		return false;
	h->log = get_le32(in + 4);
	h->segment = get_le64(in + 8);
	h->seq = get_le64(in + 16);
	h->first_sample = get_le64(in + 24);
	h->durable = get_le64(in + 32);
	h->stored = get_le32(in + 40);
	h->raw = get_le32(in + 44);
	h->samples = get_le32(in + 48);
	h->flags = get_le32(in + 52);
	h->crc = get_le32(in + 56);
	if (h->raw > LIMIT_WAL_FRAME_BYTES || h->stored > h->raw || h->seq == 0 || h->seq > INT64_MAX || h->first_sample > INT64_MAX)
		return false;
	return (h->flags & WAL_FRAME_LZ4) ? h->stored < h->raw : h->stored == h->raw;
}

uint64_t wal_frame_pack(struct wal_frame_header *h, struct span raw, uint8_t *out, void *lz4)
{
	ASSERT(raw.n <= LIMIT_WAL_FRAME_BYTES);
	uint8_t *p = out + WAL_FRAME_BYTES;
	int n = raw.n > 1 ? LZ4_compress_fast_extState(lz4, raw.p, (char *)p, (int)raw.n, (int)raw.n - 1, 1) : 0;
	h->raw = (uint32_t)raw.n;
	if (n > 0) {
		h->stored = (uint32_t)n;
		h->flags |= WAL_FRAME_LZ4;
	} else {
		h->stored = h->raw;
		h->flags &= ~(uint32_t)WAL_FRAME_LZ4;
		if (raw.n > 0)
			memcpy(p, raw.p, raw.n);
	}
	uint64_t size = wal_frame_size(h->stored);
	memset(p + h->stored, 0, size - WAL_FRAME_BYTES - h->stored);
	h->crc = crc32c(0, p, h->stored);
	wal_frame_put(out, h);
	return size;
}

bool wal_frame_unpack(const struct wal_frame_header *h, const uint8_t *stored, uint8_t *out, struct span *payload)
{
	if (h->flags & ~(uint32_t)WAL_FRAME_KNOWN)
		return false;
	if (!(h->flags & WAL_FRAME_LZ4)) {
		*payload = span_of(stored, h->stored);
		return true;
	}
	*payload = span_of(out, h->raw);
	return LZ4_decompress_safe((const char *)stored, (char *)out, (int)h->stored, (int)h->raw) == (int)h->raw;
}

static uint32_t body_samples(uint8_t kind, struct span body)
{
	bool hists = kind == WAL_HISTOGRAMS;
	if (kind != WAL_SAMPLES && kind != WAL_SAMPLES_1 && !hists)
		return 0;
	struct rd r = rd_of(body.p, body.n);
	uint64_t n = rd_uvarint(&r);
	/* half a byte each at least, a histogram four */
	return r.ok && (hists ? n <= body.n / 4 : n / 2 <= body.n) ? (uint32_t)n : 0;
}

size_t wal_record_size(const uint8_t *p, size_t n, uint32_t *samples)
{
	struct rd r = rd_of(p, n);
	struct wal_record rec, inner;
	bool ok;
	*samples = 0;
	if (!wal_record_next(&r, &rec, &ok))
		return 0;
	*samples = body_samples(rec.kind, rec.body);
	if (rec.kind == WAL_GROUP) {
		struct rd g = rd_of(rec.body.p, rec.body.n);
		while (wal_record_next(&g, &inner, &ok))
			*samples += body_samples(inner.kind, inner.body);
	}
	return n - rd_left(&r);
}
