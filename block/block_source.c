/* block/block_source.c - a block as a source: matching series in label order, their chunks in few large reads.
 *
 *     postings_select ──▶ references ──▶ a batch: series entries of neighbouring references out of one read
 *                                          └▶ the chunks that overlap, sorted by place, neighbours out of one read, CRC each
 *
 * A batch ends at BATCH_SERIES series or about BATCH_BYTES of chunks (or what the caller says), so memory is bounded by the batch, or by one
 * series where that is more. Series entries do not say how long their chunks are: a chunk is taken to end where the next one begins, the last
 * of a series to be as long as its longest, and what turns out longer is read again alone.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/errid.h"
#include "base/limits.h"
#include "block/block_read_int.h"

enum {
	BATCH_SERIES = 512,
	BATCH_LABELS_ONLY = 4096,
	BATCH_BYTES = 1024 * 1024,
	SERIES_GAP_BYTES = 16 * 1024, /* read over rather than begin another read */
	SERIES_READ_BYTES = 256 * 1024,
	SERIES_SLACK_BYTES = 4 * 1024, /* for the last entry of a read */
	CHUNK_GAP_BYTES = 128 * 1024,
	CHUNK_READ_BYTES = 2 * 1024 * 1024,
	CHUNK_GUESS_BYTES = 2 * 1024, /* the least that the last chunk of a series is taken for: 1005 bytes end a float chunk */
	CHUNK_GUESS_MAX_BYTES = 1024 * 1024,
};

struct block_source {
	struct source base;
	struct block *b;
};

struct chunk_want {
	uint64_t ref;
	uint64_t guess_bytes;
	struct chunk *into;
};

struct block_iter {
	struct series_iter base;
	struct block *b;
	struct index_reader r;
	struct select_options opt;
	struct arena keep; /* refs */
	struct postings refs;
	size_t at;
	uint64_t run_end; /* the entry read at hand goes up to here */
	struct arena batch;
	struct series_view *views;
	size_t n_views, next_view;
	struct chunk_want *wants;
	size_t n_wants, cap_wants;
};

/* ---- chunks ---- */

/* A chunk that the read for its neighbours did not hold whole: `need` bytes at off, alone. */
static errc chunk_alone(
	struct block_iter *it, const char *where, uint32_t segment, uint64_t size, uint64_t off, size_t need, struct chunk *c, struct err *err)
{
	errc rc = OK;
	struct segment_name name = segment_name(segment);
	bool whole = false;
	for (int round = 0; !whole; round++) {
		CHECK(round < 3 && need <= size - off, ERR_CORRUPT, "%s: chunk at %" PRIu64 ": %zu bytes reach beyond the file's end at %" PRIu64,
			where, off, need, size);
		uint8_t *p = arena_alloc(&it->batch, need);
		CHECK(p, ERR_NOMEM, "%s: chunk of %zu bytes", where, need);
		TRY(it->b->files->read(it->b->files, name.s, off, need, p, err));
		TRY(chunk_parse(where, off, p, need, &whole, &need, &c->enc, &c->data, err));
	}
fail:
	return rc;
}

/* wants[i..j) of one segment, out of one read. */
static errc chunks_read(struct block_iter *it, size_t i, size_t j, uint64_t end, uint64_t size, struct err *err)
{
	errc rc = OK;
	uint32_t segment = chunk_ref_segment(it->wants[i].ref);
	struct segment_name name = segment_name(segment);
	char where[64];
	snprintf(where, sizeof where, "%s/%s", it->b->name.s, name.s);
	uint64_t begin = (uint32_t)it->wants[i].ref;
	uint64_t last = (uint32_t)it->wants[j - 1].ref;
	CHECK(last < size, ERR_CORRUPT, "%s: %" PRIu64 " bytes, the index has a chunk at %" PRIu64, where, size, last);
	if (end > size)
		end = size;
	uint8_t *p = arena_alloc(&it->batch, (size_t)(end - begin));
	CHECK(p, ERR_NOMEM, "%s: %" PRIu64 " bytes of chunks", where, end - begin);
	TRY(it->b->files->read(it->b->files, name.s, begin, (size_t)(end - begin), p, err));
	for (; i < j; i++) {
		uint64_t off = (uint32_t)it->wants[i].ref;
		struct chunk *c = it->wants[i].into;
		bool whole;
		size_t need;
		TRY(chunk_parse(where, off, p + (off - begin), (size_t)(end - off), &whole, &need, &c->enc, &c->data, err));
		if (!whole)
			TRY(chunk_alone(it, where, segment, size, off, need, c, err));
	}
fail:
	return rc;
}

static int by_ref(const void *a, const void *b)
{
	const struct chunk_want *x = a, *y = b;
	return (x->ref > y->ref) - (x->ref < y->ref);
}

static errc batch_chunks(struct block_iter *it, struct err *err)
{
	errc rc = OK;
	struct chunk_want *w = it->wants;
	size_t n = it->n_wants;
	for (size_t i = 1; i < n; i++) {
		if (w[i - 1].ref > w[i].ref) {
			qsort(w, n, sizeof *w, by_ref);
			break;
		}
	}
	uint64_t size = 0;
	uint32_t size_of = 0;
	for (size_t i = 0; i < n;) {
		uint32_t segment = chunk_ref_segment(w[i].ref);
		if (segment != size_of)
			TRY(block_segment_size(it->b, segment, &size, err));
		size_of = segment;
		uint64_t begin = (uint32_t)w[i].ref, end = begin + w[i].guess_bytes;
		size_t j = i + 1;
		for (; j < n && chunk_ref_segment(w[j].ref) == segment; j++) {
			uint64_t off = (uint32_t)w[j].ref;
			if (off > end + CHUNK_GAP_BYTES || off + w[j].guess_bytes - begin > CHUNK_READ_BYTES)
				break;
			if (off + w[j].guess_bytes > end)
				end = off + w[j].guess_bytes;
		}
		TRY(chunks_read(it, i, j, end, size, err));
		i = j;
	}
fail:
	return rc;
}

/* ---- series ---- */

static bool deleted_whole(const struct tombstone *t, size_t n, const struct index_chunk *c)
{
	/* the last interval that begins at or before the chunk */
	size_t low = 0;
	while (low < n) {
		size_t mid = low + (n - low) / 2;
		if (t[mid].at.mint <= c->mint)
			low = mid + 1;
		else
			n = mid;
	}
	return low > 0 && t[low - 1].at.maxt >= c->maxt;
}

static errc want_add(struct block_iter *it, struct chunk_want want, struct err *err)
{
	if (it->n_wants == it->cap_wants) {
		size_t cap = it->cap_wants ? 2 * it->cap_wants : 1024;
		struct chunk_want *v = realloc(it->wants, cap * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "block %s: %zu chunks", it->b->name.s, cap);
		it->wants = v;
		it->cap_wants = cap;
	}
	it->wants[it->n_wants++] = want;
	return OK;
}

/* The series' view when one of its chunks is asked for; *bytes grows by what its chunks will take. */
static errc series_take(struct block_iter *it, uint64_t ref, const struct index_series *s, uint64_t *bytes, struct err *err)
{
	errc rc = OK;
	struct series_view *view = &it->views[it->n_views];
	size_t n_deleted, n = 0;
	const struct tombstone *deleted = tombstones_of(&it->b->tombstones, ref, &n_deleted);
	/* keep what overlaps; guess sizes before the ones between are gone */
	uint64_t longest = CHUNK_GUESS_BYTES;
	for (size_t i = 0; i < s->n_chunks; i++) {
		const struct index_chunk *c = &s->chunks[i];
		n += c->maxt >= it->opt.mint && c->mint <= it->opt.maxt && !deleted_whole(deleted, n_deleted, c);
	}
	if (n == 0)
		return OK;
	*view = (struct series_view){.labels = s->labels};
	if (it->opt.skip_chunks) {
		it->n_views++;
		return OK;
	}
	view->chunks = arena_calloc(&it->batch, n, sizeof *view->chunks);
	CHECK(view->chunks, ERR_NOMEM, "block %s: a series of %zu chunks", it->b->name.s, n);
	for (size_t i = 0; i < s->n_chunks; i++) {
		const struct index_chunk *c = &s->chunks[i];
		uint64_t guess = longest;
		if (i + 1 < s->n_chunks && c[1].ref > c->ref && c[1].ref - c->ref <= CHUNK_GUESS_MAX_BYTES) {
			guess = c[1].ref - c->ref;
			longest = guess > longest ? guess : longest;
		}
		if (c->maxt < it->opt.mint || c->mint > it->opt.maxt || deleted_whole(deleted, n_deleted, c))
			continue;
		struct chunk *into = &view->chunks[view->n_chunks++];
		*into = (struct chunk){.mint = c->mint, .maxt = c->maxt};
		TRY(want_add(it, (struct chunk_want){c->ref, guess, into}, err));
		*bytes += guess;
	}
	if (n_deleted > 0) {
		struct interval *v = arena_calloc(&it->batch, n_deleted, sizeof *v);
		CHECK(v, ERR_NOMEM, "block %s: %zu deleted intervals", it->b->name.s, n_deleted);
		for (size_t i = 0; i < n_deleted; i++)
			v[i] = deleted[i].at;
		view->deleted = v;
		view->n_deleted = n_deleted;
	}
	it->n_views++;
fail:
	return rc;
}

/* How far to read from the entry at refs[at] on: over its neighbours, as long as the gaps are small. */
static size_t series_ahead(struct block_iter *it)
{
	uint64_t off = (uint64_t)it->refs.v[it->at] * SERIES_ALIGN;
	if (off + SERIES_SLACK_BYTES > it->run_end) {
		uint64_t last = off, most = SERIES_READ_BYTES;
		if (it->opt.batch_bytes > 0 && it->opt.batch_bytes < most)
			most = it->opt.batch_bytes;
		for (size_t i = it->at + 1; i < it->refs.n; i++) {
			uint64_t next = (uint64_t)it->refs.v[i] * SERIES_ALIGN;
			if (next - last > SERIES_GAP_BYTES || next - off > most)
				break;
			last = next;
		}
		it->run_end = last + SERIES_SLACK_BYTES;
	}
	return (size_t)(it->run_end - off);
}

static errc batch_fill(struct block_iter *it, struct err *err)
{
	errc rc = OK;
	size_t most = it->opt.skip_chunks ? BATCH_LABELS_ONLY : BATCH_SERIES;
	uint64_t bytes = 0, enough = it->opt.batch_bytes ? it->opt.batch_bytes : BATCH_BYTES;
	arena_reset(&it->batch);
	index_reader_forget(&it->r);
	it->n_views = it->next_view = it->n_wants = 0;
	if (most > it->refs.n - it->at)
		most = it->refs.n - it->at;
	it->views = arena_calloc(&it->batch, most, sizeof *it->views);
	CHECK(it->views, ERR_NOMEM, "block %s: %zu series", it->b->name.s, most);
	while (it->at < it->refs.n && it->n_views < most && bytes < enough) {
		struct index_series s;
		uint64_t ref = it->refs.v[it->at];
		TRY(index_series_read(&it->r, ref * SERIES_ALIGN, series_ahead(it), &it->batch, &s, err));
		it->at++;
		TRY(series_take(it, ref, &s, &bytes, err));
	}
	TRY(batch_chunks(it, err));
	/* Thousands of blocks may hold their last batch for a long time: nothing else is kept for it. */
	if (it->at == it->refs.n) {
		index_reader_free(&it->r);
		free(it->wants);
		it->wants = NULL;
		it->n_wants = it->cap_wants = 0;
	}
fail:
	return rc;
}

/* What a client is told when the block's bytes are at fault. */
static errc damaged(errc rc, struct err *err)
{
	if (rc == ERR_CORRUPT && err && !err->id)
		err->id = errid_text(ERRID_BLOCK_DAMAGED);
	return rc;
}

static errc iter_next(struct series_iter *base, struct series_view *out, bool *more, struct err *err)
{
	struct block_iter *it = (struct block_iter *)base;
	*more = false;
	while (it->next_view == it->n_views) {
		if (it->at == it->refs.n)
			return OK;
		errc rc = batch_fill(it, err);
		if (rc) {
			it->n_views = it->next_view = 0;
			it->at = it->refs.n;
			return damaged(rc, err);
		}
	}
	*out = it->views[it->next_view++];
	*more = true;
	return OK;
}

static void iter_close(struct series_iter *base)
{
	struct block_iter *it = (struct block_iter *)base;
	index_reader_free(&it->r);
	arena_free(&it->keep);
	arena_free(&it->batch);
	free(it->wants);
	block_unref(it->b);
	free(it);
}

static const struct series_iter_ops iter_ops = {iter_next, iter_close};

/* ---- the source ---- */

static bool overlaps(const struct block *b, const struct select_options *opt)
{
	return opt->mint < b->maxt && opt->maxt >= b->mint;
}

static errc source_select(
	struct source *base, const struct matcher *m, size_t n, const struct select_options *opt, struct series_iter **out, struct err *err)
{
	errc rc = OK;
	struct block *b = ((struct block_source *)base)->b;
	struct block_iter *it = calloc(1, sizeof *it);
	if (!it)
		return err_set(err, ERR_NOMEM, "block %s: a query", b->name.s);
	it->base.ops = &iter_ops;
	it->b = block_ref(b);
	it->opt = *opt;
	arena_init(&it->keep, LIMIT_QUERY_MEMORY_BYTES);
	arena_init(&it->batch, LIMIT_QUERY_MEMORY_BYTES);
	TRY(index_reader_init(&it->r, &b->index, err));
	if (overlaps(b, opt))
		TRY(postings_select(&it->r.postings, m, n, &it->keep, &it->refs, err));
	index_reader_settle(&it->r, it->refs.n);
	*out = &it->base;
	return OK;
fail:
	iter_close(&it->base);
	return damaged(rc, err);
}

typedef errc emit_fn(void *arg, struct span value, struct err *err);

/* Names, or values of `name`, of the series that match. A value that comes again right away is not told again. */
static errc listing_of_matching(struct source *base, const struct span *name, const struct matcher *m, size_t n, const struct select_options *opt,
	emit_fn *emit, void *arg, struct err *err)
{
	errc rc = OK;
	struct select_options labels_only = *opt;
	struct series_iter *it = NULL;
	struct buf last;
	buf_init(&last, LIMIT_INDEX_ENTRY_BYTES);
	labels_only.skip_chunks = true;
	TRY(source_select(base, m, n, &labels_only, &it, err));
	for (;;) {
		struct series_view view;
		bool more;
		TRY(it->ops->next(it, &view, &more, err));
		if (!more)
			break;
		for (uint32_t i = 0; !name && i < view.labels.n; i++)
			TRY(emit(arg, view.labels.v[i].name, err));
		struct span value = name ? labels_get(view.labels, *name) : SPAN("");
		if (value.n == 0 || span_eq(value, span_of(last.p, last.n)))
			continue;
		buf_clear(&last);
		buf_put(&last, value.p, value.n);
		CHECK(!last.failed, ERR_NOMEM, "a label value of %zu bytes", value.n);
		TRY(emit(arg, value, err));
	}
fail:
	if (it)
		it->ops->close(it);
	buf_free(&last);
	return rc;
}

static errc source_label_names(
	struct source *base, const struct matcher *m, size_t n, const struct select_options *opt, emit_fn *emit, void *arg, struct err *err)
{
	errc rc = OK;
	const struct block *b = ((struct block_source *)base)->b;
	if (!overlaps(b, opt))
		return OK;
	if (n > 0)
		return listing_of_matching(base, NULL, m, n, opt, emit, arg, err);
	for (size_t i = 0; i < b->index.n_names; i++)
		if (b->index.names[i].name.n > 0)
			TRY(emit(arg, b->index.names[i].name, err));
fail:
	return rc;
}

static errc source_label_values(struct source *base, struct span name, const struct matcher *m, size_t n, const struct select_options *opt,
	emit_fn *emit, void *arg, struct err *err)
{
	errc rc = OK;
	const struct block *b = ((struct block_source *)base)->b;
	struct index_reader r = {.ix = NULL};
	if (!overlaps(b, opt))
		return OK;
	if (n > 0)
		return listing_of_matching(base, &name, m, n, opt, emit, arg, err);
	TRY(index_reader_init(&r, &b->index, err));
	TRY(r.postings.ops->values(&r.postings, name, SPAN(""), emit, arg, err));
fail:
	index_reader_free(&r);
	return damaged(rc, err);
}

static void source_release(struct source *base)
{
	block_unref(((struct block_source *)base)->b);
	free(base);
}

static const struct source_ops source_ops = {source_select, source_label_names, source_label_values, source_release};

errc block_source(struct block *b, const char *kind, struct source **out, struct err *err)
{
	struct block_source *s = calloc(1, sizeof *s);
	if (!s)
		return err_set(err, ERR_NOMEM, "block %s: a source", b->name.s);
	s->base = (struct source){.ops = &source_ops, .ulid = b->ulid, .mint = b->mint, .maxt = b->maxt, .ext_labels = b->ext_labels, .kind = kind};
	s->b = block_ref(b);
	*out = &s->base;
	return OK;
}
