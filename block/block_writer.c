/* block/block_writer.c - a block from its sorted series: chunk segments as series arrive, index and meta.json at the end.
 *
 *     <ULID>.tmp-for-creation/chunks/000001 ...   header u32 BE 0x85bd40dd, u8 1, 3 zeros; then per chunk
 *                                                 uvarint length | u8 encoding | payload | CRC over encoding and payload
 *                            /index
 *                            /meta.json
 *     ──rename──▶ <ULID>
 *
 * Every file and both directories are synced before the rename, the directory above after it: a name that is only a ULID is a
 * complete block, after a power cut too. Where a segment ends is the reference's rule, so equal input gives equal bytes there too.
 *
 * Source: Prometheus tsdb/chunks/chunks.go (WriteChunks) for the ends of segments.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block.h"
#include "block/block_write_int.h"

enum { SEGMENT_HEADER_BYTES = 8, LENGTH_MAX_BYTES = 5, SEGMENTS_MAX = 999999 };

#define CHUNKS_MAGIC UINT32_C(0x85bd40dd)

struct segment {
	uint64_t size_bytes;
	uint8_t sha256[32];
};

struct block_writer {
	struct ulid ulid;
	uint64_t segment_bytes;
	struct arena *arena; /* of the caller, or NULL */
	char *dir, *final_dir, *tmp_dir, *chunks_dir;
	struct block_out out;
	struct index_writer *index;
	struct segment *segments; /* finished ones */
	uint32_t n_segments, cap_segments;
	struct chunk_place *places; /* of the series being added */
	size_t cap_places;
	uint64_t n_series, n_chunks, n_float_samples, n_histogram_samples;
	int64_t mint, maxt; /* over all chunks */
	struct err failed;  /* the first error; nothing more is written */
};

static void writer_free(struct block_writer *w)
{
	block_out_free(&w->out);
	index_writer_free(w->index);
	free(w->segments);
	free(w->places);
	free(w->dir);
	free(w->final_dir);
	free(w->tmp_dir);
	free(w->chunks_dir);
	free(w);
}

void block_writer_abort(struct block_writer *w)
{
	if (!w)
		return;
	struct err ignored;
	if (w->tmp_dir)
		(void)!io_remove_tree(w->tmp_dir, &ignored);
	writer_free(w);
}

errc block_writer_open(const struct block_writer_config *cfg, struct block_writer **out, struct err *err)
{
	errc rc = OK;
	bool dir_made = false;
	struct io_stat st;
	struct ulid_text name = ulid_text(cfg->ulid);
	uint64_t segment_bytes = cfg->chunk_segment_bytes ? cfg->chunk_segment_bytes : LIMIT_CHUNK_SEGMENT_BYTES;
	ASSERT(segment_bytes <= LIMIT_CHUNK_SEGMENT_BYTES && !ulid_is_zero(cfg->ulid));
	struct block_writer *w = calloc(1, sizeof *w);
	if (!w)
		return err_set(err, ERR_NOMEM, "block %s: no memory for a writer", name.s);
	w->ulid = cfg->ulid;
	w->segment_bytes = segment_bytes;
	w->arena = cfg->arena;
	w->mint = INT64_MAX;
	w->maxt = INT64_MIN;
	w->out.fd = -1;
	w->dir = strdup(cfg->dir);
	if (asprintf(&w->final_dir, "%s/%s", cfg->dir, name.s) < 0)
		w->final_dir = NULL;
	if (asprintf(&w->tmp_dir, "%s/%s.tmp-for-creation", cfg->dir, name.s) < 0)
		w->tmp_dir = NULL;
	if (asprintf(&w->chunks_dir, "%s/%s.tmp-for-creation/chunks", cfg->dir, name.s) < 0)
		w->chunks_dir = NULL;
	CHECK(w->dir && w->final_dir && w->tmp_dir && w->chunks_dir, ERR_NOMEM, "block %s: no memory for paths", name.s);
	TRY(io_stat(w->final_dir, &st, err));
	CHECK(!st.exists, ERR_EXISTS, "%s is there already", w->final_dir);
	TRY(io_remove_tree(w->tmp_dir, err)); /* of an attempt that a crash ended */
	dir_made = true;
	TRY(io_mkdir(w->tmp_dir, err));
	TRY(io_mkdir(w->chunks_dir, err));
	TRY(block_out_init(&w->out, err));
	TRY(index_writer_new(w->tmp_dir, &w->index, err));
	*out = w;
	return OK;
fail:
	if (dir_made)
		block_writer_abort(w);
	else
		writer_free(w);
	return rc;
}

/* ---- chunk segments ---- */

static errc segment_finish(struct block_writer *w, struct err *err)
{
	errc rc = OK;
	if (w->out.fd < 0)
		return OK;
	if (w->n_segments == w->cap_segments) {
		uint32_t cap = w->cap_segments * 2 + 4;
		struct segment *s = realloc(w->segments, cap * sizeof *s);
		CHECK(s, ERR_NOMEM, "%s: no memory for %u segments", w->chunks_dir, cap);
		w->segments = s;
		w->cap_segments = cap;
	}
	struct segment *s = &w->segments[w->n_segments];
	TRY(block_out_finish(&w->out, &s->size_bytes, s->sha256, err));
	w->n_segments++;
fail:
	return rc;
}

static errc segment_begin(struct block_writer *w, struct err *err)
{
	errc rc = OK;
	char name[16];
	TRY(segment_finish(w, err));
	CHECK(w->n_segments < SEGMENTS_MAX, ERR_LIMIT, "%s: more than %d segments", w->chunks_dir, SEGMENTS_MAX);
	snprintf(name, sizeof name, "%06u", w->n_segments + 1);
	TRY(block_out_open(&w->out, w->chunks_dir, name, err));
	block_out_be32(&w->out, CHUNKS_MAGIC);
	block_out_put(&w->out, "\1\0\0", 4);
fail:
	return rc;
}

static void chunk_write(struct block_writer *w, const struct chunk *c, struct chunk_place *place)
{
	struct block_out *o = &w->out;
	*place = (struct chunk_place){c->mint, c->maxt, (uint64_t)w->n_segments << 32 | block_out_at(o)};
	block_out_uvarint(o, c->data.n);
	block_out_crc_begin(o);
	block_out_put(o, &c->enc, 1);
	block_out_put(o, c->data.p, c->data.n);
	block_out_crc_end(o);
}

static errc chunk_check(struct block_writer *w, const struct chunk *c, const struct chunk *before, struct err *err)
{
	errc rc = OK;
	uint32_t n = 0;
	CHECK(c->mint <= c->maxt, ERR_INVALID, "%s: a chunk from %" PRId64 " to %" PRId64, w->tmp_dir, c->mint, c->maxt);
	CHECK(!before || c->mint > before->maxt, ERR_INVALID, "%s: a chunk begins at %" PRId64 ", the one before ends at %" PRId64, w->tmp_dir,
		c->mint, before->maxt);
	CHECK(c->data.n <= LIMIT_CHUNK_BYTES, ERR_LIMIT, "%s: a chunk of %zu bytes", w->tmp_dir, c->data.n);
	TRY(chunk_count(c->enc, c->data, &n, err));
	CHECK(n > 0, ERR_INVALID, "%s: a chunk without samples", w->tmp_dir);
	if (c->enc == CHUNK_XOR || c->enc == CHUNK_XOR2)
		w->n_float_samples += n;
	else
		w->n_histogram_samples += n;
	if (c->mint < w->mint)
		w->mint = c->mint;
	if (c->maxt > w->maxt)
		w->maxt = c->maxt;
fail:
	return rc;
}

static errc places_grow(struct block_writer *w, size_t n, struct err *err)
{
	if (n <= w->cap_places)
		return OK;
	size_t cap = n + n / 2 + 16;
	struct chunk_place *p = realloc(w->places, cap * sizeof *p);
	if (!p)
		return err_set(err, ERR_NOMEM, "%s: no memory for %zu chunks", w->tmp_dir, n);
	w->places = p;
	w->cap_places = cap;
	return OK;
}

static errc chunks_write(struct block_writer *w, const struct chunk *chunks, size_t n, struct err *err)
{
	errc rc = OK;
	CHECK(w->failed.code == OK, w->failed.code, "%s", w->failed.msg);
	TRY(places_grow(w, n, err));
	/* The reference takes the bytes of a series' chunks in a segment at their most, and those before them as they are. */
	uint64_t before = w->out.fd < 0 ? 0 : block_out_at(&w->out), batch = 0;
	bool first = before > SEGMENT_HEADER_BYTES;
	for (size_t i = 0; i < n; i++) {
		TRY(chunk_check(w, &chunks[i], i ? &chunks[i - 1] : NULL, err));
		uint64_t most = LENGTH_MAX_BYTES + 1 + chunks[i].data.n + 4;
		batch += most;
		bool cut = first ? before + batch > w->segment_bytes : i > 0 && SEGMENT_HEADER_BYTES + batch > w->segment_bytes;
		if (cut) {
			batch = most;
			first = false;
		}
		if (cut || w->out.fd < 0)
			TRY(segment_begin(w, err));
		chunk_write(w, &chunks[i], &w->places[i]);
	}
fail:
	return rc;
}

/* A series is in its files when rc is OK; after an error nothing more is. */
static errc added(struct block_writer *w, size_t n_chunks, errc rc, struct err *err)
{
	if (rc == OK)
		rc = block_out_check(&w->out, err);
	if (rc == OK) {
		w->n_series++;
		w->n_chunks += n_chunks;
	} else if (w->failed.code == OK) {
		err_set(&w->failed, rc, "%s", err ? err->msg : "writing a block failed");
	}
	return rc;
}

errc block_writer_add(struct block_writer *w, struct labels labels, const struct chunk *chunks, size_t n, struct err *err)
{
	errc rc = chunks_write(w, chunks, n, err);
	if (rc == OK)
		rc = index_writer_add(w->index, labels, w->places, n, err);
	return added(w, n, rc, err);
}

errc block_writer_pair(struct block_writer *w, struct label l, struct err *err)
{
	return index_writer_pair(w->index, l, err);
}

errc block_writer_pairs_end(struct block_writer *w, uint32_t **ranks, struct err *err)
{
	return index_writer_pairs_end(w->index, ranks, err);
}

errc block_writer_add_pairs(struct block_writer *w, const uint32_t *pairs, uint32_t n_labels, const struct chunk *chunks, size_t n, struct err *err)
{
	errc rc = chunks_write(w, chunks, n, err);
	if (rc == OK)
		rc = index_writer_add_pairs(w->index, pairs, n_labels, w->places, n, err);
	return added(w, n, rc, err);
}

/* ---- meta.json and the end ---- */

static errc meta_fill(struct block_writer *w, const struct segment *index, struct arena *arena, struct block_meta *meta, struct err *err)
{
	errc rc = OK;
	meta->ulid = w->ulid;
	meta->n_samples = w->n_float_samples + w->n_histogram_samples;
	meta->n_float_samples = w->n_float_samples;
	meta->n_histogram_samples = w->n_histogram_samples;
	meta->n_series = w->n_series;
	meta->n_chunks = w->n_chunks;
	meta->n_tombstones = 0;
	if (meta->n_sources == 0) {
		meta->sources = arena_alloc(arena, sizeof *meta->sources);
		CHECK(meta->sources, ERR_NOMEM, "%s: no memory for meta.json", w->tmp_dir);
		meta->sources[0] = w->ulid;
		meta->n_sources = 1;
	}
	meta->n_files = w->n_segments + 2;
	meta->files = arena_calloc(arena, meta->n_files, sizeof *meta->files);
	CHECK(meta->files, ERR_NOMEM, "%s: no memory for meta.json", w->tmp_dir);
	for (uint32_t i = 0; i <= w->n_segments; i++) {
		const struct segment *s = i < w->n_segments ? &w->segments[i] : index;
		struct block_file *f = &meta->files[i];
		const char *path = i < w->n_segments ? arena_printf(arena, "chunks/%06u", i + 1) : "index";
		CHECK(path, ERR_NOMEM, "%s: no memory for meta.json", w->tmp_dir);
		*f = (struct block_file){.rel_path = span_cstr(path), .size_bytes = s->size_bytes, .has_sha256 = true};
		memcpy(f->sha256, s->sha256, sizeof f->sha256);
	}
	meta->files[w->n_segments + 1].rel_path = SPAN("meta.json");
fail:
	return rc;
}

static errc meta_write(struct block_writer *w, const struct block_meta *meta, uint64_t *bytes, struct arena *arena, struct err *err)
{
	errc rc = OK;
	struct buf json = {0};
	buf_init(&json, LIMIT_META_JSON_BYTES);
	const char *path = arena_printf(arena, "%s/meta.json", w->tmp_dir);
	CHECK(path, ERR_NOMEM, "%s: no memory for meta.json", w->tmp_dir);
	rc = block_meta_write(meta, &json);
	CHECK(rc == OK, rc, "%s: meta.json can't be written: %s", w->tmp_dir, rc == ERR_INVALID ? "a text is not UTF-8" : "out of memory");
	TRY(io_write_file(path, span_of(json.p, json.n), err));
	*bytes = json.n;
fail:
	buf_free(&json);
	return rc;
}

/* Into place, for good. When the directory can't be synced the block is taken back: an error means there is none. */
static errc block_publish(struct block_writer *w, struct err *err)
{
	errc rc = io_rename(w->tmp_dir, w->final_dir, err);
	if (rc)
		return rc;
	rc = io_fsync_dir(w->dir, err);
	struct err ignored;
	if (rc)
		(void)!io_rename(w->final_dir, w->tmp_dir, &ignored);
	return rc;
}

errc block_writer_finish(struct block_writer *w, struct block_meta *meta, uint64_t *bytes, struct err *err)
{
	errc rc = OK;
	struct arena local, *arena = w->arena ? w->arena : &local;
	struct segment index;
	uint64_t meta_bytes = 0;
	bool own_sources = meta->n_sources == 0;
	arena_init(&local, LIMIT_META_JSON_BYTES);
	CHECK(w->failed.code == OK, w->failed.code, "%s", w->failed.msg);
	CHECK(w->n_series > 0, ERR_INVALID, "%s: a block without series", w->tmp_dir);
	CHECK(w->mint >= meta->mint && w->maxt < meta->maxt, ERR_INVALID,
		"%s: chunks from %" PRId64 " to %" PRId64 " in a block of [%" PRId64 ", %" PRId64 ")", w->tmp_dir, w->mint, w->maxt, meta->mint,
		meta->maxt);
	TRY(segment_finish(w, err));
	TRY(io_fsync_dir(w->chunks_dir, err));
	TRY(block_out_open(&w->out, w->tmp_dir, "index", err));
	TRY(index_writer_finish(w->index, &w->out, err));
	TRY(block_out_finish(&w->out, &index.size_bytes, index.sha256, err));
	TRY(meta_fill(w, &index, arena, meta, err));
	TRY(meta_write(w, meta, &meta_bytes, &local, err));
	TRY(block_publish(w, err));
	*bytes = index.size_bytes + meta_bytes;
	for (uint32_t i = 0; i < w->n_segments; i++)
		*bytes += w->segments[i].size_bytes;
fail:
	if (rc || !w->arena) {
		meta->files = NULL;
		meta->n_files = 0;
		if (own_sources) {
			meta->sources = NULL;
			meta->n_sources = 0;
		}
	}
	arena_free(&local);
	if (rc)
		block_writer_abort(w);
	else
		writer_free(w);
	return rc;
}
