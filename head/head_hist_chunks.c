/* head/head_hist_chunks.c - packed histograms become chunks: for a block, and for whoever reads a window.
 *
 *     a block     floats and histograms of the series, merged by time, through the cutting rules (block_encoder.c): where both are at one time the histogram stays
 *     a reader    the leaves that overlap are copied under the shard's lock; after it the histograms are fed to the same rules. Chunks of floats and of
 *                 histograms may overlap then: readers of a window merge by time anyway
 */
#include "head/head_cut_int.h"

/* ---- the histograms of a list of leaves ---- */

struct hist_stream {
	struct window *w;
	struct arena unpacked; /* of the sample at hand */
	uint8_t *bytes;	       /* of the leaf at hand, when it is from the file */
	size_t cap;
	struct rd r;
	struct histogram h;
	struct chunk_point p;
	bool more;
};

static void stream_init(struct hist_stream *s, struct window *w)
{
	*s = (struct hist_stream){.w = w, .r = rd_of("", 0)};
	arena_init(&s->unpacked, LIMIT_HISTOGRAM_MEMORY_BYTES);
}

static void stream_free(struct hist_stream *s)
{
	arena_free(&s->unpacked);
	free(s->bytes);
}

static errc stream_room(struct hist_stream *s, size_t n, struct err *err)
{
	if (n <= s->cap)
		return OK;
	uint8_t *p = realloc(s->bytes, n);
	if (!p)
		return err_set(err, ERR_NOMEM, "no memory for histograms of a series");
	s->bytes = p;
	s->cap = n;
	return OK;
}

/* Reads on in a leaf in the file, of len payload bytes. */
static errc stream_file(struct hist_stream *s, uint64_t off, uint32_t len, struct err *err)
{
	errc rc = stream_room(s, len + (size_t)CHUNKFILE_OVERHEAD, err);
	if (rc == OK)
		rc = head_chunkfile_read(&s->w->file, off, len, s->bytes, err);
	if (rc == OK)
		s->r = rd_of(s->bytes, len);
	return rc;
}

/* The next of the leaf at hand into s->p, or s->more is false. */
static errc stream_next(struct hist_stream *s, struct err *err)
{
	errc rc = OK;
	uint32_t t;
	struct span packed;
	bool ok;
	s->more = head_hist_leaf_next(&s->r, &t, &packed, &ok);
	CHECK(ok, ERR_CORRUPT, "chunk file of window %s: a leaf of histograms is none", ulid_text(s->w->ulid).s);
	if (!s->more)
		return OK;
	arena_reset(&s->unpacked);
	TRY(histogram_unpack(packed, &s->unpacked, &s->p.kind, &s->h, err));
	s->p.t = s->w->start + t;
	s->p.h = &s->h;
fail:
	return rc;
}

/* ---- a block's chunks ---- */

struct cut_hist {
	const struct hist_series *hs;
	uint32_t leaf;
	struct hist_stream s;
	struct cut_file *file;
};

static errc cut_hist_next(struct cut_hist *c, struct err *err)
{
	errc rc = OK;
	TRY(stream_next(&c->s, err));
	while (!c->s.more && c->leaf < c->hs->n) {
		const struct hist_leaf *l = &c->hs->v[c->leaf++];
		if (l->cap) {
			uint32_t n = head_hist_leaf_bytes(l);
			TRY(stream_room(&c->s, n, err));
			head_hist_leaf_copy(l, c->s.bytes);
			c->s.r = rd_of(c->s.bytes, n);
		} else {
			/* Samples of this leaf are asked for until the next is read. */
			const uint8_t *bytes;
			TRY(head_cut_file_read(c->file, l->off, l->bytes, &bytes, err));
			TRY(stream_room(&c->s, l->bytes, err));
			memcpy(c->s.bytes, bytes, l->bytes);
			c->s.r = rd_of(c->s.bytes, l->bytes);
		}
		TRY(stream_next(&c->s, err));
	}
fail:
	return rc;
}

/* The floats of a series, leaf by leaf. */
struct cut_floats {
	struct window *w;
	struct cut_file *file;
	const struct wpart *part;
	const struct wseries *ws;
	uint32_t leaf;
	size_t n, at;
	struct chunk_sample v[HEAD_RAW_SAMPLES + 1];
	uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
};

/* false: no more. */
static errc cut_floats_at(struct cut_floats *c, bool *more, struct err *err)
{
	errc rc = OK;
	while (c->at == c->n && c->leaf <= ws_leaves(c->ws)) {
		c->at = c->n = 0;
		if (c->leaf < ws_leaves(c->ws))
			TRY(head_leaf_decode(c->w, c->file, &c->ws->leaves->v[c->leaf], c->v, c->bytes, &c->n, err));
		else if (c->ws->n > 0)
			TRY(xor_decode(span_of(c->bytes, head_open_read_pieces(c->part, c->ws, c->bytes)), c->v, HEAD_RAW_SAMPLES + 1, &c->n, err));
		c->leaf++;
	}
fail:
	*more = c->at < c->n;
	return rc;
}

errc head_hist_cut(
	struct window *w, const struct wpart *part, const struct wseries *ws, struct cut_file *file, struct chunk_encoder *e, struct err *err)
{
	errc rc = OK;
	struct cut_hist h = {.hs = ws->hist, .file = file};
	struct cut_floats *f = malloc(sizeof *f);
	bool floats;
	stream_init(&h.s, w);
	CHECK(f, ERR_NOMEM, "no memory to cut a series");
	f->w = w;
	f->file = file;
	f->part = part;
	f->ws = ws;
	f->leaf = 0;
	f->n = f->at = 0;
	TRY(cut_hist_next(&h, err));
	TRY(cut_floats_at(f, &floats, err));
	while (floats || h.s.more) {
		const struct chunk_sample *s = &f->v[f->at];
		if (floats && (!h.s.more || s->t < h.s.p.t)) {
			TRY(chunk_encoder_put(e, &(struct chunk_point){.t = s->t, .kind = SAMPLE_FLOAT, .v = s->v}, err));
		} else {
			bool hidden = floats && s->t == h.s.p.t;
			TRY(chunk_encoder_put(e, &h.s.p, err));
			TRY(cut_hist_next(&h, err));
			if (!hidden)
				continue;
		}
		f->at++;
		TRY(cut_floats_at(f, &floats, err));
	}
	TRY(chunk_encoder_end(e, err));
fail:
	if (rc != OK)
		chunk_encoder_drop(e);
	free(f);
	stream_free(&h.s);
	return rc;
}

/* ---- a reader's chunks ---- */

errc head_hist_copy_locked(struct window *w, const struct wseries *ws, int64_t mint, int64_t maxt, bool skip, struct arena *arena,
	struct hist_copy *out, struct err *err)
{
	*out = (struct hist_copy){0};
	const struct hist_series *hs = ws->hist;
	uint32_t a = 0, b = hs ? hs->n : 0;
	while (a < b && w->start + hs->v[a].maxt < mint)
		a++;
	while (b > a && w->start + hs->v[b - 1].mint > maxt)
		b--;
	out->n = b - a;
	if (out->n == 0 || skip)
		return OK;
	out->v = arena_alloc(arena, out->n * sizeof *out->v);
	if (!out->v)
		return err_set(err, ERR_NOMEM, "a query needs more memory than it may have");
	for (uint32_t i = 0; i < out->n; i++) {
		const struct hist_leaf *l = &hs->v[a + i];
		out->v[i] = (struct hist_copied){.len = head_hist_leaf_bytes(l), .off = l->cap ? 0 : l->off};
		if (!l->cap)
			continue;
		uint8_t *bytes = arena_alloc(arena, out->v[i].len);
		if (!bytes)
			return err_set(err, ERR_NOMEM, "a query needs more memory than it may have");
		head_hist_leaf_copy(l, bytes);
		out->v[i].bytes = bytes;
	}
	return OK;
}

/* Where chunks go. */
struct chunk_sink {
	struct arena *arena;
	struct chunk *v;
	size_t n, cap;
};

static errc sink_emit(void *arg, const struct chunk *c, uint32_t n_samples, struct err *err)
{
	(void)n_samples;
	struct chunk_sink *s = arg;
	if (s->n == s->cap) {
		size_t cap = s->cap ? s->cap * 2 : 8;
		struct chunk *v = arena_alloc(s->arena, cap * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "a query needs more memory than it may have");
		if (s->n)
			memcpy(v, s->v, s->n * sizeof *v);
		s->v = v;
		s->cap = cap;
	}
	s->v[s->n] = *c;
	s->v[s->n].data = arena_dup(s->arena, c->data);
	if (!s->v[s->n].data.p)
		return err_set(err, ERR_NOMEM, "a query needs more memory than it may have");
	s->n++;
	return OK;
}

errc head_hist_view(struct window *w, const struct hist_copy *copy, struct arena *arena, struct chunk **out, size_t *n, struct err *err)
{
	errc rc = OK;
	struct chunk_sink sink = {.arena = arena};
	struct chunk_encoder *e = NULL;
	struct hist_stream s;
	stream_init(&s, w);
	TRY(chunk_encoder_open(w->range, sink_emit, &sink, &e, err));
	for (uint32_t i = 0; i < copy->n; i++) {
		const struct hist_copied *c = &copy->v[i];
		if (c->bytes)
			s.r = rd_of(c->bytes, c->len);
		else
			TRY(stream_file(&s, c->off, c->len, err));
		for (;;) {
			TRY(stream_next(&s, err));
			if (!s.more)
				break;
			TRY(chunk_encoder_put(e, &s.p, err));
		}
	}
	TRY(chunk_encoder_end(e, err));
	*out = sink.v;
	*n = sink.n;
fail:
	chunk_encoder_close(e);
	stream_free(&s);
	return rc;
}
