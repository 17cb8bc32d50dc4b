/* block/block_verify.c - a block read from end to end, against itself and against its meta.json.
 *
 *   files      sizes and SHA-256 as meta.json has them; segment headers
 *   index      header, TOC, symbols and postings table as block_open checks them
 *   series     in file order: CRC, label sets ascending, at least one chunk, chunks ascending without overlap and inside the block's time,
 *              references never going back
 *   chunks     CRC, encoding, every sample decoded; the first and last sample's times are the index'
 *   postings   CRC, ascending; the list of all series is the series; each pair's list is the series that have it
 *   tombstones CRC, intervals, references of series that are there
 *   stats      series, chunks, samples
 *
 * What is wrong is told and the reading goes on behind it: behind a damaged series at the next one in the list of all. Memory is 4 bytes a
 * series and one series' chunks' places. The lists are compared with the labels by a sum of hashes over all (name, value, series), which
 * costs no memory and misses a difference once in 2^64.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <openssl/evp.h>
#include "base/limits.h"
#include "block/block_read_int.h"

enum { VERIFY_READ_BYTES = 1024 * 1024, AGGREGATES = 5 };
static const uint32_t SEGMENT_MAGIC = 0x85BD40DD;

struct verify {
	struct block_files *files;
	const struct block_meta *meta;
	char block[ULID_TEXT_BYTES + 1];
	void (*problem)(void *arg, const char *text);
	void *arg;
	struct err *err;

	struct index_header index;
	struct index_reader reader;
	struct arena keep; /* all */
	struct postings all;
	uint64_t pairs_sum, pairs; /* over the series' labels */

	struct arena work; /* one series */
	uint8_t *piece;	   /* VERIFY_READ_BYTES or a chunk more, of one segment */
	size_t piece_cap, piece_n;
	uint64_t piece_off;
	uint32_t piece_segment;
	uint64_t segment_size;

	uint64_t n_series, n_chunks, n_floats, n_hists, n_aggregated;
};

static void PRINTF_LIKE(2, 3) tell(struct verify *v, const char *fmt, ...)
{
	char text[ERR_MSG_BYTES + 64];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	v->problem(v->arg, text);
}

/* True: the block is at fault, and that was told. False: *rc is an error of the reading itself, or OK. */
static bool told(struct verify *v, errc *rc, const struct err *e)
{
	switch (*rc) {
	case ERR_CORRUPT:
	case ERR_NOTFOUND:
	case ERR_UNSUPPORTED:
	case ERR_LIMIT:
		tell(v, "%s", e->msg);
		*rc = OK;
		return true;
	case OK:
		return false;
	default:
		if (v->err)
			*v->err = *e;
		return false;
	}
}

/* ---- files ---- */

static errc sha256_of(struct verify *v, const char *path, uint64_t size, uint8_t out[32], struct err *err)
{
	errc rc = OK;
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t *p = malloc(VERIFY_READ_BYTES);
	CHECK(ctx && p && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1, ERR_NOMEM, "%s/%s: SHA-256", v->block, path);
	for (uint64_t off = 0; off < size;) {
		size_t n = size - off < VERIFY_READ_BYTES ? (size_t)(size - off) : VERIFY_READ_BYTES;
		TRY(v->files->read(v->files, path, off, n, p, err));
		CHECK(EVP_DigestUpdate(ctx, p, n) == 1, ERR_NOMEM, "%s/%s: SHA-256", v->block, path);
		off += n;
	}
	CHECK(EVP_DigestFinal_ex(ctx, out, NULL) == 1, ERR_NOMEM, "%s/%s: SHA-256", v->block, path);
fail:
	EVP_MD_CTX_free(ctx);
	free(p);
	return rc;
}

static errc file_verify(struct verify *v, const struct block_file *f)
{
	errc rc = OK;
	struct err e = {0};
	char path[64];
	uint64_t size = 0;
	uint8_t sha[32];
	snprintf(path, sizeof path, "%.*s", SPAN_ARG(f->rel_path));
	rc = v->files->size(v->files, path, &size, &e);
	if (told(v, &rc, &e) || rc)
		return rc;
	if (size != f->size_bytes) {
		tell(v, "%s/%s: %" PRIu64 " bytes, meta.json says %" PRIu64, v->block, path, size, f->size_bytes);
		return OK;
	}
	if (!f->has_sha256)
		return OK;
	rc = sha256_of(v, path, size, sha, &e);
	if (told(v, &rc, &e) || rc)
		return rc;
	if (memcmp(sha, f->sha256, sizeof sha) != 0)
		tell(v, "%s/%s: SHA-256 is not the one in meta.json", v->block, path);
	return OK;
}

/* *there false: no segment of this number. */
static errc segment_verify(struct verify *v, uint32_t segment, bool must, bool *there)
{
	struct err e = {0};
	struct segment_name name = segment_name(segment);
	uint8_t head[SEGMENT_HEADER_BYTES];
	uint64_t size;
	errc rc = v->files->size(v->files, name.s, &size, &e);
	*there = rc == OK;
	if (rc == ERR_NOTFOUND && !must)
		return OK;
	if (told(v, &rc, &e) || rc)
		return rc;
	rc = v->files->read(v->files, name.s, 0, sizeof head, head, &e);
	if (told(v, &rc, &e) || rc)
		return rc;
	if (get_be32(head) != SEGMENT_MAGIC || head[4] != 1)
		tell(v, "%s/%s: begins with %08" PRIx32 " version %u, a chunk segment with %08" PRIx32 " version 1", v->block, name.s, get_be32(head),
			head[4], SEGMENT_MAGIC);
	return OK;
}

static errc files_verify(struct verify *v)
{
	errc rc = OK;
	uint32_t listed = 0;
	for (size_t i = 0; i < v->meta->n_files; i++) {
		const struct block_file *f = &v->meta->files[i];
		if (span_is(f->rel_path, "meta.json"))
			continue;
		TRY(file_verify(v, f));
		listed += span_has_prefix(f->rel_path, SPAN("chunks/"));
	}
	bool there = true;
	for (uint32_t segment = 1; there || segment <= listed; segment++)
		TRY(segment_verify(v, segment, segment <= listed || segment == 1, &there));
fail:
	return rc;
}

/* ---- chunks ---- */

static errc piece_load(struct verify *v, uint32_t segment, uint64_t off, size_t n, struct err *err)
{
	errc rc = OK;
	struct segment_name name = segment_name(segment);
	if (segment != v->piece_segment) {
		v->piece_n = 0;
		v->piece_segment = 0;
		TRY(v->files->size(v->files, name.s, &v->segment_size, err));
		v->piece_segment = segment;
	}
	if (off >= v->piece_off && off - v->piece_off <= v->piece_n && n <= v->piece_n - (size_t)(off - v->piece_off))
		return OK;
	CHECK(off <= v->segment_size && n <= v->segment_size - off, ERR_CORRUPT,
		"%s/%s: chunk at %" PRIu64 ": %zu bytes reach beyond the file's end at %" PRIu64, v->block, name.s, off, n, v->segment_size);
	size_t want = n > VERIFY_READ_BYTES ? n : VERIFY_READ_BYTES;
	if (want > v->segment_size - off)
		want = (size_t)(v->segment_size - off);
	if (want > v->piece_cap) {
		uint8_t *p = realloc(v->piece, want);
		CHECK(p, ERR_NOMEM, "%s/%s: %zu bytes", v->block, name.s, want);
		v->piece = p;
		v->piece_cap = want;
	}
	v->piece_n = 0;
	TRY(v->files->read(v->files, name.s, off, want, v->piece, err));
	v->piece_off = off;
	v->piece_n = want;
fail:
	return rc;
}

static errc chunk_load(struct verify *v, uint64_t ref, uint8_t *enc, struct span *payload, struct err *err)
{
	errc rc = OK;
	uint32_t segment = chunk_ref_segment(ref);
	uint64_t off = (uint32_t)ref;
	char where[64];
	snprintf(where, sizeof where, "%s/%s", v->block, segment_name(segment).s);
	size_t need = 1;
	for (bool whole = false; !whole;) {
		TRY(piece_load(v, segment, off, need, err));
		size_t at = (size_t)(off - v->piece_off);
		TRY(chunk_parse(where, off, v->piece + at, v->piece_n - at, &whole, &need, enc, payload, err));
	}
fail:
	return rc;
}

/* One of a downsampled chunk's five. A counter begins with the raw first sample, before the chunk's first window ends; equal times at its end
 * are meant (they carry resets over). */
static errc aggregate_verify(struct verify *v, uint8_t enc, struct span data, const struct index_chunk *c, uint32_t *n, struct err *err)
{
	errc rc = OK;
	struct xor_reader floats;
	struct hist_reader hist;
	int64_t last = INT64_MIN;
	CHECK(enc == CHUNK_XOR || enc == CHUNK_FLOAT_HISTOGRAM, ERR_CORRUPT, "an aggregate of encoding %u", enc);
	if (enc == CHUNK_XOR)
		TRY(xor_reader_init(&floats, data, err));
	else
		TRY(hist_reader_init(&hist, true, data, &v->work, err));
	*n = enc == CHUNK_XOR ? floats.n : hist.n;
	for (uint32_t i = 0; i < *n; i++) {
		if (enc == CHUNK_XOR)
			CHECK(xor_reader_next(&floats), ERR_CORRUPT, "an aggregate ends in sample %u of %u", i, *n);
		else
			TRY(hist_reader_next(&hist, err));
		int64_t t = enc == CHUNK_XOR ? floats.t : hist.t;
		CHECK(t >= last && t >= v->meta->mint && t <= c->maxt, ERR_CORRUPT, "an aggregate's time goes from %" PRId64 " to %" PRId64, last, t);
		last = t;
	}
fail:
	return rc;
}

static errc aggregates_verify(struct verify *v, struct span payload, const struct index_chunk *c, struct err *err)
{
	errc rc = OK;
	struct rd rd = rd_of(payload.p, payload.n);
	CHECK(v->meta->resolution_ms > 0, ERR_CORRUPT, "downsampled, in a block of raw samples");
	for (unsigned i = 0; i < AGGREGATES; i++) {
		uint64_t len = rd_uvarint(&rd);
		uint32_t n = 0;
		if (len == 0 && rd.ok)
			continue;
		uint8_t enc = rd_u8(&rd);
		struct span data = rd_bytes(&rd, len);
		CHECK(rd.ok, ERR_CORRUPT, "%zu bytes end in aggregate %u", payload.n, i);
		TRY(aggregate_verify(v, enc, data, c, &n, err));
		if (i == 0)
			v->n_aggregated += n;
	}
	CHECK(rd_left(&rd) == 0, ERR_CORRUPT, "%zu bytes behind its aggregates", rd_left(&rd));
fail:
	return rc;
}

static errc samples_verify(struct verify *v, uint8_t enc, struct span payload, const struct index_chunk *c, struct err *err)
{
	errc rc = OK;
	struct chunk_iter *it;
	struct chunk_point p = {.t = 0};
	uint64_t n = 0;
	if (enc == CHUNK_THANOS_AGGR)
		return aggregates_verify(v, payload, c, err);
	CHECK(v->meta->resolution_ms == 0, ERR_CORRUPT, "encoding %u, in a downsampled block", enc);
	TRY(chunk_iter_new(enc, payload, &v->work, &it, err));
	for (bool more = true; more; n++) {
		TRY(chunk_iter_next(it, &p, &more, err));
		if (!more)
			break;
		CHECK(n > 0 || p.t == c->mint, ERR_CORRUPT, "its first sample is at %" PRId64 ", the index says %" PRId64, p.t, c->mint);
	}
	CHECK(n > 0 && p.t == c->maxt, ERR_CORRUPT, "its last of %" PRIu64 " samples is at %" PRId64 ", the index says %" PRId64, n, p.t, c->maxt);
	if (enc == CHUNK_XOR || enc == CHUNK_XOR2)
		v->n_floats += n;
	else
		v->n_hists += n;
fail:
	return rc;
}

static errc chunk_verify(struct verify *v, const struct index_chunk *c)
{
	struct err e = {0};
	uint8_t enc = 0;
	struct span payload;
	v->n_chunks++;
	errc rc = chunk_load(v, c->ref, &enc, &payload, &e);
	if (told(v, &rc, &e) || rc)
		return rc;
	rc = samples_verify(v, enc, payload, c, &e);
	if (rc)
		err_wrap(&e, "%s/%s: chunk at %" PRIu32, v->block, segment_name(chunk_ref_segment(c->ref)).s, (uint32_t)c->ref);
	(void)told(v, &rc, &e);
	return rc;
}

/* ---- series ---- */

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
	x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
	return x ^ x >> 32;
}

/* Of a label pair; lengths go in, so that a pair's halves can't change places with another's. */
static uint64_t pair_hash(struct span name, struct span value)
{
	uint64_t h = mix(name.n);
	for (size_t i = 0; i < name.n; i++)
		h = (h ^ (uint8_t)name.p[i]) * UINT64_C(0x100000001b3);
	h = mix(h);
	for (size_t i = 0; i < value.n; i++)
		h = (h ^ (uint8_t)value.p[i]) * UINT64_C(0x100000001b3);
	return mix(h);
}

struct walk {
	struct arena arenas[2]; /* of this series and of the one before, by turns */
	unsigned turn;
	struct labels last;
	uint64_t last_ref; /* of a chunk */
	size_t at;	   /* in all */
};

static errc series_verify(struct verify *v, struct walk *w, uint64_t off, const struct index_series *s)
{
	errc rc = OK;
	const char *file = v->index.label;
	v->n_series++;
	if (s->labels.n == 0)
		tell(v, "%s: series at %" PRIu64 " has no labels", file, off);
	if (v->n_series > 1 && labels_cmp(w->last, s->labels) >= 0)
		tell(v, "%s: series at %" PRIu64 " is not above the one before it", file, off);
	if (s->n_chunks == 0)
		tell(v, "%s: series at %" PRIu64 " has no chunks", file, off);
	for (uint32_t i = 0; i < s->labels.n; i++) {
		v->pairs_sum += mix(pair_hash(s->labels.v[i].name, s->labels.v[i].value) ^ (off / SERIES_ALIGN));
		v->pairs++;
	}
	for (size_t i = 0; i < s->n_chunks; i++) {
		const struct index_chunk *c = &s->chunks[i];
		if (i > 0 && c->mint <= c[-1].maxt)
			tell(v, "%s: series at %" PRIu64 ": chunk %zu begins at %" PRId64 ", the one before it ends at %" PRId64, file, off, i,
				c->mint, c[-1].maxt);
		if (c->mint < v->meta->mint || c->maxt >= v->meta->maxt)
			tell(v, "%s: series at %" PRIu64 ": chunk %zu of %" PRId64 "..%" PRId64 " is outside of the block's %" PRId64 "..%" PRId64,
				file, off, i, c->mint, c->maxt, v->meta->mint, v->meta->maxt);
		if (c->ref < w->last_ref)
			tell(v, "%s: series at %" PRIu64 ": chunk %zu's reference %" PRIu64 " is below the one before it", file, off, i, c->ref);
		w->last_ref = c->ref;
		TRY(chunk_verify(v, c));
		arena_reset(&v->work);
	}
fail:
	return rc;
}

static uint64_t align(uint64_t off)
{
	return (off + SERIES_ALIGN - 1) / SERIES_ALIGN * SERIES_ALIGN;
}

static errc series_walk(struct verify *v)
{
	errc rc = OK;
	struct walk w = {.last_ref = 0};
	arena_init(&w.arenas[0], LIMIT_QUERY_MEMORY_BYTES);
	arena_init(&w.arenas[1], LIMIT_QUERY_MEMORY_BYTES);
	for (uint64_t off = align(v->index.ranges.series_off); off < v->index.series_end;) {
		struct err e = {0};
		struct index_series s;
		while (w.at < v->all.n && (uint64_t)v->all.v[w.at] * SERIES_ALIGN < off) {
			tell(v, "%s: the list of all series has one at %" PRIu64 ", where none begins", v->index.label,
				(uint64_t)v->all.v[w.at] * SERIES_ALIGN);
			w.at++;
		}
		bool listed = w.at < v->all.n && (uint64_t)v->all.v[w.at] * SERIES_ALIGN == off;
		w.at += listed;
		struct arena *a = &w.arenas[w.turn & 1];
		arena_reset(a);
		/* symbols that are not kept live in the arena of the series that asked first */
		index_reader_forget(&v->reader);
		rc = index_series_read(&v->reader, off, VERIFY_READ_BYTES, a, &s, &e);
		if (told(v, &rc, &e)) {
			off = w.at < v->all.n ? (uint64_t)v->all.v[w.at] * SERIES_ALIGN : v->index.series_end;
			continue;
		}
		if (rc)
			goto fail;
		if (!listed)
			tell(v, "%s: series at %" PRIu64 " is not in the list of all", v->index.label, off);
		TRY(series_verify(v, &w, off, &s));
		w.last = s.labels;
		w.turn++;
		off = align(s.next_off);
	}
	for (; w.at < v->all.n; w.at++)
		tell(v, "%s: the list of all series has one at %" PRIu64 ", where none begins", v->index.label,
			(uint64_t)v->all.v[w.at] * SERIES_ALIGN);
fail:
	arena_free(&w.arenas[0]);
	arena_free(&w.arenas[1]);
	return rc;
}

/* ---- postings ---- */

static errc postings_verify(struct verify *v)
{
	errc rc = OK;
	struct window table = {NULL, 0, 0, 0};
	struct arena a;
	bool unread = false;
	uint64_t sum = 0, pairs = 0;
	arena_init(&a, LIMIT_QUERY_MEMORY_BYTES);
	for (uint64_t off = v->index.table_begin; off < v->index.table_end;) {
		struct err e = {0};
		struct table_entry entry;
		struct postings p;
		rc = index_table_entry(&v->index, &table, VERIFY_READ_BYTES, &off, &entry, &e);
		if (told(v, &rc, &e) || rc)
			goto fail;
		if (entry.name.n == 0)
			continue;
		rc = index_postings_read(&v->reader, entry.postings_off, &a, &p, &e);
		if (told(v, &rc, &e)) {
			unread = true;
			continue;
		}
		if (rc)
			goto fail;
		uint64_t h = pair_hash(entry.name, entry.value);
		for (size_t i = 0; i < p.n; i++)
			sum += mix(h ^ p.v[i]);
		pairs += p.n;
		arena_reset(&a);
	}
	if (!unread && (sum != v->pairs_sum || pairs != v->pairs))
		tell(v, "%s: the lists of postings (%" PRIu64 " references) are not what the series' labels say (%" PRIu64 ")", v->index.label, pairs,
			v->pairs);
fail:
	window_free(&table);
	arena_free(&a);
	return rc;
}

/* ---- tombstones, stats ---- */

static errc tombstones_verify(struct verify *v)
{
	struct err e = {0};
	struct tombstones t;
	char name[48];
	snprintf(name, sizeof name, "%s/tombstones", v->block);
	errc rc = tombstones_read(v->files, name, &t, &e);
	if (told(v, &rc, &e) || rc)
		return rc;
	for (size_t i = 0, k = 0; i < t.n; i++) {
		while (k < v->all.n && v->all.v[k] < t.v[i].ref)
			k++;
		if (k == v->all.n || v->all.v[k] != t.v[i].ref)
			tell(v, "%s: an interval of series %" PRIu64 ", which is not there", name, t.v[i].ref);
	}
	tombstones_free(&t);
	return OK;
}

static void stat_verify(struct verify *v, const char *what, uint64_t found, uint64_t meta)
{
	if (found != meta)
		tell(v, "%s/meta.json: %" PRIu64 " %s, the block has %" PRIu64, v->block, meta, what, found);
}

static void stats_verify(struct verify *v)
{
	const struct block_meta *m = v->meta;
	stat_verify(v, "series", v->n_series, m->n_series);
	stat_verify(v, "chunks", v->n_chunks, m->n_chunks);
	stat_verify(v, "samples", v->n_floats + v->n_hists + v->n_aggregated, m->n_samples);
	/* by kind since Prometheus 3.6; of a downsampled block they are the raw one's */
	if (m->resolution_ms == 0 && m->n_float_samples + m->n_histogram_samples > 0) {
		stat_verify(v, "float samples", v->n_floats, m->n_float_samples);
		stat_verify(v, "histogram samples", v->n_hists, m->n_histogram_samples);
	}
	if (m->mint >= m->maxt)
		tell(v, "%s/meta.json: times %" PRId64 "..%" PRId64, v->block, m->mint, m->maxt);
}

errc block_verify(struct block_files *files, const struct block_meta *meta, void (*problem)(void *arg, const char *text), void *arg, struct err *err)
{
	struct verify v = {.files = files, .meta = meta, .problem = problem, .arg = arg, .err = err};
	struct err e = {0};
	errc rc = OK;
	memcpy(v.block, ulid_text(meta->ulid).s, sizeof v.block);
	arena_init(&v.keep, LIMIT_QUERY_MEMORY_BYTES);
	arena_init(&v.work, LIMIT_QUERY_MEMORY_BYTES);
	TRY(files_verify(&v));
	rc = index_open(&v.index, files, meta->ulid, NULL, &e);
	if (told(&v, &rc, &e) || rc)
		goto fail;
	TRY(index_reader_init(&v.reader, &v.index, err));
	rc = v.reader.postings.ops->all(&v.reader.postings, &v.keep, &v.all, &e);
	if (!told(&v, &rc, &e) && rc)
		goto fail;
	TRY(series_walk(&v));
	TRY(postings_verify(&v));
	TRY(tombstones_verify(&v));
	stats_verify(&v);
fail:
	index_reader_free(&v.reader);
	index_close(&v.index);
	arena_free(&v.keep);
	arena_free(&v.work);
	free(v.piece);
	return rc;
}
