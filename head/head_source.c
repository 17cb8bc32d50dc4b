/* head/head_source.c - reading open windows: one source per window, pinned by a reference.
 *
 * Matchers are evaluated part by part over the window's own postings. A lock is held only to copy a list; regexes run outside. What
 * is added meanwhile is left out: each part's series are counted first, and every list is clipped there.
 *
 * The matching series are sorted by labels (their strings stay while the window is pinned), then read in batches: leaves and the
 * open chunk are copied under the shard's lock, full chunks come from the chunk file after it. A series is consistent in itself; a
 * sample appended during the read may be seen or not. Memory: 24 bytes a matching series, and one batch.
 */
#include "head/head_int.h"

struct head_source {
	struct source base;
	struct window *w;
};

/* ---- postings of one part ---- */

struct part_index {
	struct postings_index base;
	struct window *w;
	uint32_t shard;
	uint32_t n; /* series that the postings had when it was made */
};

static errc part_all(struct postings_index *base, struct arena *arena, struct postings *out, struct err *err)
{
	struct part_index *ix = (struct part_index *)base;
	uint32_t *v = arena_alloc(arena, ix->n * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "a query needs more memory than it may have");
	for (uint32_t i = 0; i < ix->n; i++)
		v[i] = i;
	*out = (struct postings){v, ix->n};
	return OK;
}

static errc part_get(struct postings_index *base, struct span name, struct span value, struct arena *arena, struct postings *out, struct err *err)
{
	struct part_index *ix = (struct part_index *)base;
	struct head *h = ix->w->head;
	uint32_t id;
	errc rc = OK;
	*out = (struct postings){NULL, 0};
	if (!head_pair_find(&h->symbols, name, value, &id))
		return OK;
	pthread_mutex_lock(&h->shards[ix->shard].mu);
	const struct wpart *part = ix->w->parts[ix->shard].p;
	uint32_t count = head_posting_count(part, id);
	if (count > 0) {
		uint32_t *v = arena_alloc(arena, count * sizeof *v);
		if (v)
			*out = (struct postings){v, head_posting_read(part, id, ix->n, v)};
		else
			rc = err_set(err, ERR_NOMEM, "a query needs more memory than it may have");
	}
	pthread_mutex_unlock(&h->shards[ix->shard].mu);
	return rc;
}

/* Ids of the pairs of a name in a part; *v malloc'ed. Pairs without series are left out. */
static errc pairs_of(struct window *w, uint32_t shard, struct span name, uint32_t **v, uint32_t *n, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	*v = NULL;
	*n = 0;
	rc = head_window_index(w, shard, err);
	if (rc != OK)
		return rc;
	pthread_mutex_lock(&h->shards[shard].mu);
	const struct wpart *p = w->parts[shard].p;
	for (uint32_t i = 0; p && i < p->n_names; i++) {
		const struct name_pairs *np = &p->names[i];
		if (np->n == 0 || !span_eq(span_of(np->name->s, np->name->n), name))
			continue;
		*v = malloc(np->n * sizeof **v);
		if (!*v) {
			rc = err_set(err, ERR_NOMEM, "no memory for a query");
			break;
		}
		for (uint32_t k = 0; k < np->n; k++)
			if (head_posting_count(p, np->v[k]) > 0)
				(*v)[(*n)++] = np->v[k];
	}
	pthread_mutex_unlock(&h->shards[shard].mu);
	return rc;
}

static errc part_values(struct postings_index *base, struct span name, struct span prefix,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	struct part_index *ix = (struct part_index *)base;
	uint32_t *v, n;
	errc rc = pairs_of(ix->w, ix->shard, name, &v, &n, err);
	for (uint32_t i = 0; i < n && rc == OK; i++) {
		struct label l = head_pair_label(head_pair(&ix->w->head->symbols, v[i]));
		if (span_has_prefix(l.value, prefix))
			rc = emit(arg, l.value, err);
	}
	free(v);
	return rc;
}

static const struct postings_index_ops part_ops = {part_all, part_get, part_values};

/* ---- the matching series ---- */

struct match_item {
	const struct wseries *ws;
	const struct series *series;
	uint32_t shard;
};

struct match_list {
	struct match_item *v;
	size_t n, cap;
};

static errc match(struct window *w, const struct matcher *m, size_t n, struct match_list *out, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	struct arena arena;
	*out = (struct match_list){0};
	arena_init(&arena, LIMIT_QUERY_MEMORY_BYTES);
	for (uint32_t shard = 0; shard < h->n_shards; shard++) {
		struct shard *sh = &h->shards[shard];
		TRY(head_window_index(w, shard, err));
		pthread_mutex_lock(&sh->mu);
		/* Not those that came since: what a matcher excludes is found by the postings alone. */
		struct part_index ix = {.base = {&part_ops}, .w = w, .shard = shard, .n = w->parts[shard].p ? w->parts[shard].p->n_indexed : 0};
		pthread_mutex_unlock(&sh->mu);
		if (ix.n == 0)
			continue;
		struct postings found;
		TRY(postings_select(&ix.base, m, n, &arena, &found, err));
		if (out->cap - out->n < found.n) {
			size_t cap = out->n + found.n + out->cap / 2;
			CHECK(cap * sizeof *out->v <= LIMIT_QUERY_MEMORY_BYTES, ERR_LIMIT, "the query matches more than %zu series",
				out->n + found.n);
			struct match_item *v = realloc(out->v, cap * sizeof *v);
			CHECK(v, ERR_NOMEM, "no memory for a query");
			out->v = v;
			out->cap = cap;
		}
		pthread_mutex_lock(&sh->mu);
		for (size_t i = 0; i < found.n; i++) {
			const struct wpart *p = w->parts[shard].p;
			out->v[out->n++] = (struct match_item){part_ws(p, found.v[i]), part_series(p, found.v[i]), shard};
		}
		pthread_mutex_unlock(&sh->mu);
		arena_reset(&arena);
	}
fail:
	arena_free(&arena);
	if (rc != OK) {
		free(out->v);
		*out = (struct match_list){0};
	}
	return rc;
}

static int match_order(const void *a, const void *b, void *head)
{
	return head_series_cmp(head, ((const struct match_item *)a)->series, ((const struct match_item *)b)->series);
}

/* ---- reading them ---- */

struct read_chunk {
	struct chunk chunk;
	uint64_t off; /* UINT64_MAX: the bytes are there */
};

/* A series as it was under the lock: its chunks, or of a chain the open one alone: what else overlaps shows only when the chain is read. */
struct series_copy {
	struct read_chunk *v;
	size_t n, cap;
	uint64_t chain;
	int64_t open_mint; /* what the chain holds ends before */
	uint8_t *open;	   /* the open chunk's bytes, of which those in the chain are missing; NULL: none, or it does not overlap */
	struct hist_copy hist;
};

struct head_iter {
	struct series_iter base;
	struct window *w;
	struct match_list list;
	size_t next;
	int64_t mint, maxt;
	bool skip_chunks;
	struct arena arena; /* the batch */
	struct series_view batch[HEAD_SELECT_BATCH];
	uint32_t n_batch, at;
};

static bool overlaps(const struct head_iter *it, int64_t mint, int64_t maxt)
{
	return mint <= it->maxt && maxt >= it->mint;
}

static errc no_memory(struct err *err)
{
	return err_set(err, ERR_NOMEM, "a query needs more memory than it may have");
}

/* A raw leaf as a chunk. */
static errc encode_raw(const struct leaf *l, struct arena *arena, struct span *out, struct err *err)
{
	uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
	struct xor_appender a;
	xor_appender_init(&a);
	for (uint32_t k = 0; k < l->n; k++)
		xor_append(&a, bytes, leaf_raw(l)[k].t, leaf_raw(l)[k].v);
	*out = arena_dup(arena, span_of(bytes, a.n_bytes));
	return out->p ? OK : no_memory(err);
}

static errc copy_add(struct head_iter *it, struct series_copy *c, struct read_chunk x, struct err *err)
{
	if (c->n == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 8;
		struct read_chunk *v = arena_alloc(&it->arena, cap * sizeof *v);
		if (!v)
			return no_memory(err);
		if (c->n)
			memcpy(v, c->v, c->n * sizeof *v);
		c->v = v;
		c->cap = cap;
	}
	c->v[c->n++] = x;
	return OK;
}

/* What of a series overlaps, under its shard's lock. */
static errc copy_locked(struct head_iter *it, const struct wseries *ws, struct series_copy *out, struct err *err)
{
	errc rc = OK;
	struct window *w = it->w;
	*out = (struct series_copy){0};
	TRY(head_hist_copy_locked(w, ws, it->mint, it->maxt, it->skip_chunks, &it->arena, &out->hist, err));
	const struct wpart *part = w->parts[ws->shard].p;
	const struct leaf *leaves = ws_leaves(ws) ? ws->leaves->v : NULL;
	/* The first leaf that ends at or behind mint. */
	uint32_t a = 0, b = ws_leaves(ws);
	while (a < b) {
		uint32_t mid = (a + b) / 2;
		if (w->start + leaves[mid].maxt < it->mint)
			a = mid + 1;
		else
			b = mid;
	}
	for (; a < ws_leaves(ws) && w->start + leaves[a].mint <= it->maxt; a++) {
		const struct leaf *l = &leaves[a];
		struct read_chunk x = {.chunk = {.mint = w->start + l->mint, .maxt = w->start + l->maxt, .enc = CHUNK_XOR}, .off = l->off};
		if (l->kind == LEAF_RAW) {
			x.off = UINT64_MAX;
			if (!it->skip_chunks)
				TRY(encode_raw(l, &it->arena, &x.chunk.data, err));
		}
		TRY(copy_add(it, out, x, err));
	}
	if (ws_chained(ws)) {
		out->chain = ws->chain;
		out->open_mint = ws_chain_before(w, ws);
	}
	if (ws->n > 0 && overlaps(it, w->start + ws->start, w->start + ws->t)) {
		struct read_chunk x = {.chunk = {.mint = w->start + ws->start, .maxt = w->start + ws->t, .enc = CHUNK_XOR}, .off = UINT64_MAX};
		if (!it->skip_chunks) {
			out->open = arena_alloc(&it->arena, ws->n_bytes);
			if (!out->open)
				return no_memory(err);
			x.chunk.data = span_of(out->open, head_open_read_pieces(part, ws, out->open));
		}
		TRY(copy_add(it, out, x, err));
	}
fail:
	return rc;
}

/* The chain's chunks that overlap, from the newest on; view sorts. Without the lock: what a chain names stays as long as the window. */
static errc chain_read(struct head_iter *it, struct series_copy *c, struct err *err)
{
	errc rc = OK;
	struct chain_reader r;
	struct chunkfile_chunk x;
	uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
	bool more;
	if (it->skip_chunks && c->n > 0)
		return OK;
	TRY(head_chain_open(it->w, NULL, c->chain, c->open_mint, c->open ? c->open + XOR_HEADER_BYTES : bytes, &r, err));
	while (r.before > it->mint) {
		TRY(head_chain_next(&r, bytes, &x, &more, err));
		if (!more)
			break;
		if (!overlaps(it, x.mint, x.maxt))
			continue;
		struct read_chunk y = {.chunk = {.mint = x.mint, .maxt = x.maxt, .enc = CHUNK_XOR}, .off = UINT64_MAX};
		if (!it->skip_chunks) {
			y.chunk.data = arena_dup(&it->arena, span_of(bytes, x.n_bytes));
			if (!y.chunk.data.p)
				return no_memory(err);
		}
		TRY(copy_add(it, c, y, err));
		if (it->skip_chunks)
			break;
	}
fail:
	return rc;
}

static int by_mint(const void *a, const void *b)
{
	const struct chunk *x = a, *y = b;
	return x->mint < y->mint ? -1 : x->mint > y->mint;
}

static errc view(struct head_iter *it, const struct series *s, const struct series_copy *c, struct series_view *out, struct err *err)
{
	errc rc = OK;
	*out = (struct series_view){0};
	out->labels.v = arena_alloc(&it->arena, s->n_pairs * sizeof *out->labels.v);
	if (!out->labels.v)
		return no_memory(err);
	out->labels.n = s->n_pairs;
	for (uint32_t i = 0; i < s->n_pairs; i++)
		out->labels.v[i] = head_pair_label(head_pair(&it->w->head->symbols, s->pairs[i]));
	if (it->skip_chunks)
		return OK;
	struct chunk *hists = NULL;
	size_t n_hists = 0;
	if (c->hist.n > 0)
		TRY(head_hist_view(it->w, &c->hist, &it->arena, &hists, &n_hists, err));
	out->chunks = arena_alloc(&it->arena, (c->n + n_hists) * sizeof *out->chunks);
	if (!out->chunks)
		return no_memory(err);
	for (size_t i = 0; i < c->n; i++) {
		out->chunks[i] = c->v[i].chunk;
		if (c->v[i].off == UINT64_MAX)
			continue;
		struct chunkfile_chunk x;
		uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
		TRY(head_chunkfile_chunk(&it->w->file, NULL, c->v[i].off, bytes, &x, err));
		out->chunks[i].data = arena_dup(&it->arena, span_of(bytes, x.n_bytes));
		if (!out->chunks[i].data.p)
			return no_memory(err);
	}
	out->n_chunks = c->n + n_hists;
	if (n_hists > 0)
		memcpy(out->chunks + c->n, hists, n_hists * sizeof *hists);
	if (n_hists > 0 || c->chain)
		qsort(out->chunks, out->n_chunks, sizeof *out->chunks, by_mint);
fail:
	return rc;
}

static errc batch_read(struct head_iter *it, struct err *err)
{
	errc rc = OK;
	struct head *h = it->w->head;
	it->n_batch = it->at = 0;
	arena_reset(&it->arena);
	while (it->n_batch < HEAD_SELECT_BATCH && it->next < it->list.n) {
		const struct match_item *m = &it->list.v[it->next++];
		struct series_copy c;
		pthread_mutex_lock(&h->shards[m->shard].mu);
		rc = copy_locked(it, m->ws, &c, err);
		pthread_mutex_unlock(&h->shards[m->shard].mu);
		if (rc != OK)
			break;
		if (c.chain)
			TRY(chain_read(it, &c, err));
		if (c.n == 0 && c.hist.n == 0)
			continue;
		TRY(view(it, m->series, &c, &it->batch[it->n_batch], err));
		it->n_batch++;
	}
fail:
	return rc;
}

static errc iter_next(struct series_iter *base, struct series_view *out, bool *more, struct err *err)
{
	errc rc = OK;
	struct head_iter *it = (struct head_iter *)base;
	*more = false;
	if (it->at == it->n_batch)
		TRY(batch_read(it, err));
	if (it->at < it->n_batch) {
		*out = it->batch[it->at++];
		*more = true;
	}
fail:
	return rc;
}

static void iter_close(struct series_iter *base)
{
	struct head_iter *it = (struct head_iter *)base;
	free(it->list.v);
	arena_free(&it->arena);
	free(it);
}

static const struct series_iter_ops iter_ops = {iter_next, iter_close};

static errc source_select(
	struct source *base, const struct matcher *m, size_t n, const struct select_options *opt, struct series_iter **out, struct err *err)
{
	errc rc = OK;
	struct window *w = ((struct head_source *)base)->w;
	struct head_iter *it = malloc(sizeof *it);
	if (!it)
		return err_set(err, ERR_NOMEM, "no memory for a query");
	it->base.ops = &iter_ops;
	it->w = w;
	it->list = (struct match_list){0};
	it->next = 0;
	it->mint = opt->mint;
	it->maxt = opt->maxt;
	it->skip_chunks = opt->skip_chunks;
	it->n_batch = it->at = 0;
	arena_init(&it->arena, LIMIT_QUERY_MEMORY_BYTES);
	TRY(match(w, m, n, &it->list, err));
	if (it->list.n > 1)
		qsort_r(it->list.v, it->list.n, sizeof *it->list.v, match_order, w->head);
	*out = &it->base;
	return OK;
fail:
	iter_close(&it->base);
	return rc;
}

/* ---- names and values ---- */

/* Pointers that were emitted already. */
struct seen {
	const void **v;
	size_t n, mask;
};

static bool seen_add(struct seen *s, const void *p, bool *fresh)
{
	if (!s->v || s->n + 1 > (s->mask + 1) / 4 * 3) {
		struct seen big = {.mask = s->v ? s->mask * 2 + 1 : 63, .n = s->n};
		big.v = calloc(big.mask + 1, sizeof *big.v);
		if (!big.v)
			return false;
		for (size_t i = 0; s->v && i <= s->mask; i++) {
			if (!s->v[i])
				continue;
			size_t j = (size_t)((uintptr_t)s->v[i] >> 3) & big.mask;
			while (big.v[j])
				j = (j + 1) & big.mask;
			big.v[j] = s->v[i];
		}
		free(s->v);
		*s = big;
	}
	size_t i = (size_t)((uintptr_t)p >> 3) & s->mask;
	while (s->v[i] && s->v[i] != p)
		i = (i + 1) & s->mask;
	*fresh = !s->v[i];
	if (*fresh) {
		s->v[i] = p;
		s->n++;
	}
	return true;
}

/* name.p NULL: label names. */
static errc list_matching(struct window *w, struct span name, const struct matcher *m, size_t n,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	errc rc = OK;
	struct match_list list;
	struct seen seen = {0};
	TRY(match(w, m, n, &list, err));
	for (size_t i = 0; i < list.n; i++) {
		const struct series *s = list.v[i].series;
		for (uint32_t k = 0; k < s->n_pairs; k++) {
			const struct label_pair *p = head_pair(&w->head->symbols, s->pairs[k]);
			struct label l = head_pair_label(p);
			const void *what = name.p ? (const void *)p : p->name; /* a value of one name stands in one pair */
			bool fresh;
			if (name.p && !span_eq(l.name, name))
				continue;
			CHECK(seen_add(&seen, what, &fresh), ERR_NOMEM, "no memory for a query");
			if (fresh)
				TRY(emit(arg, name.p ? l.value : l.name, err));
		}
	}
fail:
	free(list.v);
	free(seen.v);
	return rc;
}

static errc source_names(struct source *base, const struct matcher *m, size_t n, const struct select_options *opt,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	(void)opt;
	errc rc = OK;
	struct window *w = ((struct head_source *)base)->w;
	struct head *h = w->head;
	if (n > 0)
		return list_matching(w, (struct span){NULL, 0}, m, n, emit, arg, err);
	for (uint32_t shard = 0; shard < h->n_shards && rc == OK; shard++) {
		rc = head_window_index(w, shard, err);
		if (rc != OK)
			break;
		pthread_mutex_lock(&h->shards[shard].mu);
		const struct wpart *p = w->parts[shard].p;
		uint32_t n_names = p ? p->n_names : 0;
		const struct symbol **v = n_names ? malloc(n_names * sizeof *v) : NULL;
		for (uint32_t i = 0; v && i < n_names; i++)
			v[i] = p->names[i].name;
		pthread_mutex_unlock(&h->shards[shard].mu);
		if (n_names > 0 && !v)
			return err_set(err, ERR_NOMEM, "no memory for a query");
		for (uint32_t i = 0; i < n_names && rc == OK; i++)
			rc = emit(arg, span_of(v[i]->s, v[i]->n), err);
		free(v);
	}
	return rc;
}

static errc source_values(struct source *base, struct span name, const struct matcher *m, size_t n, const struct select_options *opt,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	(void)opt;
	errc rc = OK;
	struct window *w = ((struct head_source *)base)->w;
	struct head *h = w->head;
	if (n > 0)
		return list_matching(w, name, m, n, emit, arg, err);
	for (uint32_t shard = 0; shard < h->n_shards && rc == OK; shard++) {
		uint32_t *v, n_pairs;
		rc = pairs_of(w, shard, name, &v, &n_pairs, err);
		for (uint32_t i = 0; i < n_pairs && rc == OK; i++)
			rc = emit(arg, head_pair_label(head_pair(&h->symbols, v[i])).value, err);
		free(v);
	}
	return rc;
}

static void source_release(struct source *base)
{
	struct head_source *s = (struct head_source *)base;
	head_window_unref(s->w);
	free(s);
}

static const struct source_ops source_ops = {source_select, source_names, source_values, source_release};

errc head_sources(
	struct head *h, struct span tenant, int64_t mint, int64_t maxt, struct arena *arena, struct source ***out, size_t *n, struct err *err)
{
	errc rc = OK;
	*out = NULL;
	*n = 0;
	struct tenant *tn = head_tenant_find(h, tenant);
	if (!tn)
		return OK;
	pthread_mutex_lock(&tn->mu);
	*out = arena_alloc(arena, tn->n_windows * sizeof **out);
	CHECK(*out, ERR_NOMEM, "a query needs more memory than it may have");
	for (uint32_t i = 0; i < tn->n_windows; i++) {
		struct window *w = tn->windows[i];
		if (w->start > maxt || w->start + w->range <= mint)
			continue;
		struct head_source *s = malloc(sizeof *s);
		CHECK(s, ERR_NOMEM, "no memory for a query");
		*s = (struct head_source){
			.base = {.ops = &source_ops, .ulid = w->ulid, .mint = w->start, .maxt = w->start + w->range, .kind = "head"},
			.w = head_window_ref(w)};
		(*out)[(*n)++] = &s->base;
	}
fail:
	pthread_mutex_unlock(&tn->mu);
	if (rc != OK) {
		for (size_t i = 0; i < *n; i++)
			source_release((*out)[i]);
		*n = 0;
	}
	return rc;
}
