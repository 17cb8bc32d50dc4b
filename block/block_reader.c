/* block/block_reader.c - an open block: its index' header, its tombstones, and where its chunks are.
 *
 *   chunks/000001 ...   u32 BE 0x85BD40DD, u8 1, 3 zeros; then chunks: uvarint length of the payload, u8 encoding, payload,
 *                       CRC-32C of encoding and payload
 *
 * A chunk's reference is (number of its segment - 1) << 32 | offset of its length. A chunk is believed for its CRC, so a segment's
 * header is read by block_verify only.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_read_int.h"

struct segment_name segment_name(uint32_t segment)
{
	struct segment_name name;
	snprintf(name.s, sizeof name.s, "chunks/%06" PRIu32, segment);
	return name;
}

errc chunk_parse(const char *where, uint64_t off, const uint8_t *p, size_t have, bool *whole, size_t *need, uint8_t *enc, struct span *payload,
	struct err *err)
{
	errc rc = OK;
	*whole = false;
	size_t head_max = have < CHUNK_LEN_MAX_BYTES ? have : CHUNK_LEN_MAX_BYTES;
	struct rd rd = rd_of(p, head_max);
	uint64_t len = rd_uvarint(&rd);
	if (!rd.ok && head_max < CHUNK_LEN_MAX_BYTES) {
		*need = CHUNK_LEN_MAX_BYTES;
		return OK;
	}
	CHECK(rd.ok && len <= LIMIT_CHUNK_BYTES, ERR_CORRUPT, "%s: chunk at %" PRIu64 ": a length of %" PRIu64 " bytes, at most %" PRIu64 " are read",
		where, off, len, LIMIT_CHUNK_BYTES);
	size_t head = (size_t)(rd.p - p);
	*need = head + 1 + (size_t)len + CRC_BYTES;
	if (*need > have)
		return OK;
	CHECK(crc32c(0, p + head, (size_t)len + 1) == get_be32(p + head + 1 + len), ERR_CORRUPT, "%s: chunk at %" PRIu64 ": CRC differs", where, off);
	*enc = p[head];
	*payload = span_of(p + head + 1, (size_t)len);
	*whole = true;
fail:
	return rc;
}

/* Sizes of the chunk segments that meta.json lists. */
static errc segment_sizes(struct block *b, const struct block_meta *meta, struct err *err)
{
	errc rc = OK;
	b->segment_sizes = arena_calloc(&b->arena, meta->n_files, sizeof *b->segment_sizes);
	CHECK(b->segment_sizes, ERR_NOMEM, "block %s", b->name.s);
	for (size_t i = 0; i < meta->n_files; i++) {
		struct span path = meta->files[i].rel_path;
		int64_t number;
		if (!span_has_prefix(path, SPAN("chunks/")) || !span_to_i64(span_of(path.p + 7, path.n - 7), &number))
			continue;
		if (number < 1 || (uint64_t)number > meta->n_files || !span_is(path, segment_name((uint32_t)number).s))
			continue;
		b->segment_sizes[number - 1] = meta->files[i].size_bytes;
		if ((size_t)number > b->n_segments)
			b->n_segments = (size_t)number;
	}
fail:
	return rc;
}

errc block_segment_size(const struct block *b, uint32_t segment, uint64_t *size, struct err *err)
{
	if (segment >= 1 && segment <= b->n_segments && b->segment_sizes[segment - 1] > 0) {
		*size = b->segment_sizes[segment - 1];
		return OK;
	}
	return b->files->size(b->files, segment_name(segment).s, size, err);
}

static errc ext_labels_copy(struct block *b, struct labels from, struct err *err)
{
	errc rc = OK;
	struct label *v = arena_calloc(&b->arena, from.n, sizeof *v);
	CHECK(v, ERR_NOMEM, "block %s", b->name.s);
	for (uint32_t i = 0; i < from.n; i++) {
		v[i] = (struct label){arena_dup(&b->arena, from.v[i].name), arena_dup(&b->arena, from.v[i].value)};
		CHECK(v[i].name.p && v[i].value.p, ERR_NOMEM, "block %s", b->name.s);
	}
	b->ext_labels = (struct labels){v, from.n};
fail:
	return rc;
}

errc block_open(
	struct block_files *files, const struct block_meta *meta, const struct block_index_ranges *ranges, struct block **out, struct err *err)
{
	errc rc = OK;
	char name[48];
	struct block *b = calloc(1, sizeof *b);
	if (!b) {
		files->close(files);
		return err_set(err, ERR_NOMEM, "a block");
	}
	atomic_init(&b->refs, 1);
	b->files = files;
	b->ulid = meta->ulid;
	b->name = ulid_text(meta->ulid);
	b->mint = meta->mint;
	b->maxt = meta->maxt;
	arena_init(&b->arena, LIMIT_META_JSON_BYTES);
	TRY(ext_labels_copy(b, meta->ext_labels, err));
	TRY(segment_sizes(b, meta, err));
	TRY(index_open(&b->index, files, meta->ulid, ranges, err));
	snprintf(name, sizeof name, "%s/tombstones", b->name.s);
	TRY(tombstones_read(files, name, &b->tombstones, err));
	*out = b;
	return OK;
fail:
	block_unref(b);
	return rc;
}

void block_ranges(const struct block *b, struct block_index_ranges *out)
{
	*out = b->index.ranges;
}

size_t block_memory(const struct block *b)
{
	return sizeof *b + b->arena.held_bytes + index_memory(&b->index) + b->tombstones.n * sizeof *b->tombstones.v;
}

struct block *block_ref(struct block *b)
{
	uint32_t before = atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
	ASSERT(before > 0 && before < UINT32_MAX);
	return b;
}

void block_unref(struct block *b)
{
	if (!b || atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) != 1)
		return;
	index_close(&b->index);
	tombstones_free(&b->tombstones);
	arena_free(&b->arena);
	b->files->close(b->files);
	free(b);
}
