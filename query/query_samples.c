/* query/query_samples.c - one series' parts, from head, local and bucket, as one sequence of samples or of chunks.
 *
 * Every part's chunks are decoded in time order and merged by time; where two have a sample at one time the order-free winner stays (decision 4):
 * histogram over float, non-stale over stale, then the greater bits. For chunks, those that overlap nothing and lose nothing to a deletion pass as
 * they are; the others are merged in groups and encoded again: floats by the reference's cut rule, histograms sample by sample runs.
 */
#include <stdlib.h>
#include "query/query_int.h"

enum { HINT_UNKNOWN = 0, HINT_NO_RESET = 2 };

/* A chunk with what is deleted of its series. */
struct piece {
	struct chunk c;
	const struct interval *deleted;
	size_t n_deleted;
	const struct source *src;
};

static bool overlaps_deleted(const struct piece *p)
{
	for (size_t i = 0; i < p->n_deleted; i++)
		if (p->deleted[i].mint <= p->c.maxt && p->deleted[i].maxt >= p->c.mint)
			return true;
	return false;
}

static bool is_deleted(const struct piece *p, int64_t t)
{
	size_t lo = 0, hi = p->n_deleted;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (p->deleted[mid].maxt < t)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < p->n_deleted && p->deleted[lo].mint <= t;
}

static int by_time(const void *a, const void *b)
{
	const struct piece *x = a, *y = b;
	if (x->c.mint != y->c.mint)
		return x->c.mint < y->c.mint ? -1 : 1;
	if (x->c.maxt != y->c.maxt)
		return x->c.maxt < y->c.maxt ? -1 : 1;
	return span_cmp(x->c.data, y->c.data);
}

/* Pieces that touch [mint, maxt], sorted, identical ones (the same chunk found twice) once. */
static errc pieces_of(const struct merged *s, int64_t mint, int64_t maxt, struct arena *arena, struct piece **out, size_t *n, struct err *err)
{
	size_t max = 0, k = 0;
	for (size_t i = 0; i < s->n_parts; i++)
		max += s->parts[i].n_chunks;
	struct piece *v = arena_alloc(arena, max * sizeof *v);
	if (!v)
		return err_id(
			err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "%zu chunks of a series do not fit the memory of one read (--query.max-memory)", max);
	for (size_t i = 0; i < s->n_parts; i++)
		for (size_t c = 0; c < s->parts[i].n_chunks; c++) {
			const struct chunk *ch = &s->parts[i].chunks[c];
			if (ch->maxt >= mint && ch->mint <= maxt)
				v[k++] = (struct piece){*ch, s->parts[i].deleted, s->parts[i].n_deleted, s->parts[i].src};
		}
	if (k > 1)
		qsort(v, k, sizeof *v, by_time);
	size_t kept = 0;
	for (size_t i = 0; i < k; i++)
		if (kept == 0 || by_time(&v[kept - 1], &v[i]) != 0 || v[kept - 1].c.enc != v[i].c.enc || v[i].n_deleted || v[kept - 1].n_deleted)
			v[kept++] = v[i];
	*out = v;
	*n = kept;
	return OK;
}

/* ---- samples in order ---- */

/* A piece being decoded. */
struct cursor {
	const struct piece *p;
	struct chunk_iter *it;
	struct arena arena; /* the iterator's; freed when the piece is done */
	struct chunk_point at;
	bool live;
};

struct sample_iter {
	struct question *qn;
	struct piece *pieces;
	size_t n_pieces, next_piece;
	struct cursor **open; /* those whose chunk covers the current time */
	size_t n_open, cap_open;
	int64_t mint, maxt;
	struct buf canon_a, canon_b; /* canonical histograms, for the winner */
	const struct piece *last;    /* where the sample given last is from */
	struct histogram shown;
	bool started;
};

static bool is_stale(const struct chunk_point *p)
{
	return (p->kind == SAMPLE_FLOAT ? p->v : p->h->sum) == STALE_NAN_BITS;
}

/* > 0: a wins. */
static int winner(struct sample_iter *it, const struct chunk_point *a, const struct chunk_point *b)
{
	bool ha = a->kind != SAMPLE_FLOAT, hb = b->kind != SAMPLE_FLOAT;
	if (ha != hb)
		return ha ? 1 : -1;
	if (!ha)
		return float_winner(a->v, b->v);
	if (is_stale(a) != is_stale(b))
		return is_stale(a) ? -1 : 1;
	buf_clear(&it->canon_a);
	buf_clear(&it->canon_b);
	histogram_canonical(a->kind, a->h, &it->canon_a);
	histogram_canonical(b->kind, b->h, &it->canon_b);
	return span_cmp(span_of(it->canon_a.p, it->canon_a.n), span_of(it->canon_b.p, it->canon_b.n));
}

/* An error of a piece's bytes is its source's. */
static errc blame(struct sample_iter *it, const struct piece *p, errc rc, struct err *err)
{
	if (rc == ERR_CORRUPT && it->qn && p->src) {
		it->qn->blamed = p->src->ulid;
		it->qn->blamed_kind = p->src->kind;
		err_wrap(err, "block %s", ulid_text(p->src->ulid).s);
	}
	return rc;
}

/* The next sample of a cursor that is not deleted and not before mint. */
static errc step(struct sample_iter *it, struct cursor *c, struct err *err)
{
	errc rc = OK;
	const struct chunk *chunk = &c->p->c;
	for (;;) {
		bool more;
		TRY(chunk_iter_next(c->it, &c->at, &more, err));
		/* The order of pieces leans on what the index says. */
		CHECK(!more || (c->at.t >= chunk->mint && c->at.t <= chunk->maxt), ERR_CORRUPT, "a chunk from %lld to %lld has a sample at %lld",
			(long long)chunk->mint, (long long)chunk->maxt, (long long)c->at.t);
		c->live = more && c->at.t <= it->maxt;
		if (!c->live || (c->at.t >= it->mint && !is_deleted(c->p, c->at.t)))
			return OK;
	}
fail:
	return blame(it, c->p, rc, err);
}

static void cursor_free(struct cursor *c)
{
	arena_free(&c->arena);
	free(c);
}

static errc open_piece(struct sample_iter *it, const struct piece *p, struct err *err)
{
	if (it->n_open == it->cap_open) {
		size_t cap = it->cap_open ? it->cap_open * 2 : 4;
		struct cursor **bigger = realloc(it->open, cap * sizeof *bigger);
		if (!bigger)
			return err_set(err, ERR_NOMEM, "no memory for a series");
		it->open = bigger;
		it->cap_open = cap;
	}
	struct cursor *c = calloc(1, sizeof *c);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for a chunk");
	it->open[it->n_open++] = c;
	c->p = p;
	arena_init(&c->arena, LIMIT_HISTOGRAM_MEMORY_BYTES);
	errc rc = chunk_iter_new(p->c.enc, p->c.data, &c->arena, &c->it, err);
	return rc == OK ? step(it, c, err) : blame(it, p, rc, err);
}

static void drop_done(struct sample_iter *it)
{
	size_t n = 0;
	for (size_t i = 0; i < it->n_open; i++)
		if (it->open[i]->live)
			it->open[n++] = it->open[i];
		else
			cursor_free(it->open[i]);
	it->n_open = n;
}

static void samples_start(struct sample_iter *it, struct question *qn, struct piece *pieces, size_t n, int64_t mint, int64_t maxt)
{
	*it = (struct sample_iter){.qn = qn, .pieces = pieces, .n_pieces = n, .mint = mint, .maxt = maxt};
	buf_init(&it->canon_a, LIMIT_HISTOGRAM_MEMORY_BYTES);
	buf_init(&it->canon_b, LIMIT_HISTOGRAM_MEMORY_BYTES);
}

errc samples_open(const struct merged *s, int64_t mint, int64_t maxt, struct arena *arena, struct sample_iter **out, struct err *err)
{
	struct sample_iter *it = arena_calloc(arena, 1, sizeof *it);
	if (!it)
		return err_set(err, ERR_NOMEM, "no memory for a series");
	struct piece *pieces;
	size_t n;
	errc rc = pieces_of(s, mint, maxt, arena, &pieces, &n, err);
	if (rc == OK)
		samples_start(it, s->qn, pieces, n, mint, maxt);
	*out = rc == OK ? it : NULL;
	return rc;
}

void samples_close(struct sample_iter *it)
{
	if (!it)
		return;
	for (size_t i = 0; i < it->n_open; i++)
		cursor_free(it->open[i]);
	free(it->open);
	it->open = NULL;
	it->n_open = 0;
	buf_free(&it->canon_a);
	buf_free(&it->canon_b);
}

/* The point given before stays in place until now: its cursor, and those that lost to it, move on first. */
errc samples_next(struct sample_iter *it, struct chunk_point *p, bool *more, struct err *err)
{
	errc rc = OK;
	if (it->started && it->n_open > 0) {
		int64_t t = INT64_MAX;
		for (size_t i = 0; i < it->n_open; i++)
			t = it->open[i]->at.t < t ? it->open[i]->at.t : t;
		for (size_t i = 0; i < it->n_open; i++)
			if (it->open[i]->at.t == t)
				TRY(step(it, it->open[i], err));
		drop_done(it);
	}
	it->started = true;
	for (;;) {
		int64_t t = INT64_MAX;
		for (size_t i = 0; i < it->n_open; i++)
			t = it->open[i]->at.t < t ? it->open[i]->at.t : t;
		/* A piece joins when nothing open comes before its first sample. */
		if (it->next_piece < it->n_pieces && (it->n_open == 0 || it->pieces[it->next_piece].c.mint <= t)) {
			TRY(open_piece(it, &it->pieces[it->next_piece++], err));
			drop_done(it);
			continue;
		}
		if (it->n_open == 0) {
			*more = false;
			return OK;
		}
		const struct cursor *best = NULL;
		for (size_t i = 0; i < it->n_open; i++) {
			const struct cursor *c = it->open[i];
			if (c->at.t == t && (!best || winner(it, &c->at, &best->at) > 0))
				best = c;
			CHECK(!it->canon_a.failed && !it->canon_b.failed, ERR_NOMEM, "no memory to compare histograms");
		}
		*p = best->at;
		/* "No reset" is said of the sample before it in its own chunk: behind one of another chunk nobody knows. */
		if (p->kind != SAMPLE_FLOAT && p->h->reset_hint == HINT_NO_RESET && best->p != it->last) {
			it->shown = *p->h;
			it->shown.reset_hint = HINT_UNKNOWN;
			p->h = &it->shown;
		}
		it->last = best->p;
		*more = true;
		return OK;
	}
fail:
	return rc;
}

/* ---- chunks that do not overlap ---- */

struct chunk_list {
	struct chunk *v;
	size_t n, cap;
	struct arena *arena;
};

static errc list_add(struct chunk_list *l, struct chunk c, struct err *err)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 16;
		struct chunk *bigger = arena_alloc(l->arena, cap * sizeof *bigger);
		if (!bigger)
			return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "a series does not fit the memory of one read (--query.max-memory)");
		if (l->n)
			memcpy(bigger, l->v, l->n * sizeof *bigger);
		l->v = bigger;
		l->cap = cap;
	}
	l->v[l->n++] = c;
	return OK;
}

enum { XOR_CHUNK_SAMPLES = 120, XOR_CHUNK_ROOM = 2048 + XOR_CHUNK_SAMPLES * XOR_APPEND_MAX_BYTES };

/* Merges pieces [0, n), which overlap or lose samples, into fresh chunks. Only what lies in the range: beyond it, other pieces might win. */
static errc encode_group(struct question *qn, struct piece *pieces, size_t n, int64_t mint, int64_t maxt, struct chunk_list *out, struct err *err)
{
	errc rc = OK;
	struct sample_iter it;
	struct xor_appender xor ;
	struct chunk open = {.enc = CHUNK_XOR};
	uint8_t bytes[XOR_CHUNK_ROOM];
	struct hist_appender *ha = NULL, *refused = NULL;
	xor_appender_init(&xor);
	samples_start(&it, qn, pieces, n, mint, maxt);
	for (;;) {
		struct chunk_point p;
		bool more;
		TRY(samples_next(&it, &p, &more, err));
		bool floats = more && p.kind == SAMPLE_FLOAT;
		/* Does the open float chunk end here? */
		if (xor.n > 0 && (!floats || xor.n == XOR_CHUNK_SAMPLES)) {
			open.maxt = xor.t;
			open.data = arena_dup(out->arena, span_of(bytes, xor.n_bytes));
			CHECK(open.data.p, ERR_NOMEM, "no memory for a chunk");
			TRY(list_add(out, open, err));
			xor_appender_init(&xor);
		}
		bool appended = false;
		if (ha) {
			if (more && !floats)
				TRY(hist_append(ha, p.t, p.kind, p.h, &appended, err));
			if (!appended) {
				struct chunk c;
				TRY(hist_appender_finish(ha, out->arena, &c, err));
				refused = ha;
				ha = NULL;
				TRY(list_add(out, c, err));
			}
		}
		if (!more)
			break;
		if (floats) {
			refused = NULL;
			if (xor.n == 0)
				open.mint = p.t;
			xor_append(&xor, bytes, p.t, p.v);
		} else if (!appended) {
			TRY(hist_appender_new(p.kind, refused, out->arena, &ha, err));
			TRY(hist_append(ha, p.t, p.kind, p.h, &appended, err));
			ASSERT(appended);
		}
	}
fail:
	samples_close(&it);
	return rc;
}

errc samples_chunks(const struct merged *s, int64_t mint, int64_t maxt, struct arena *arena, struct chunk **out, size_t *n, struct err *err)
{
	errc rc = OK;
	struct piece *v;
	size_t n_pieces;
	struct chunk_list list = {.arena = arena};
	TRY(pieces_of(s, mint, maxt, arena, &v, &n_pieces, err));
	for (size_t i = 0; i < n_pieces;) {
		int64_t end = v[i].c.maxt;
		bool deleted = overlaps_deleted(&v[i]);
		size_t k = i + 1;
		for (; k < n_pieces && v[k].c.mint <= end; k++) {
			end = v[k].c.maxt > end ? v[k].c.maxt : end;
			deleted |= overlaps_deleted(&v[k]);
		}
		/* XOR2 is a float chunk that few readers know: given as XOR. */
		if (k == i + 1 && !deleted && v[i].c.enc != CHUNK_XOR2)
			TRY(list_add(&list, v[i].c, err));
		else
			TRY(encode_group(s->qn, v + i, k - i, mint, maxt, &list, err));
		i = k;
	}
	*out = list.v;
	*n = list.n;
fail:
	return rc;
}
