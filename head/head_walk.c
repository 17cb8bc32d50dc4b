/* head/head_walk.c - what an open window holds, series by series and sample by sample: for digests of it, and for a peer that lost its own.
 *
 * Series come shard by shard, in the order in which they joined the window: their places never change while the process lives, so a walk can stop anywhere and
 * another one go on there. Nothing is sorted and no postings are asked for: a walk costs what it reads.
 *
 * A shard's lock is held to copy a slice of pointers, and for one series at a time to copy what memory has of its samples; full chunks come from the chunk
 * file behind it (as in head_source.c). A series is consistent in itself; a sample that is appended meanwhile may be seen or not.
 */
#include "head/head_int.h"

struct walk_item {
	const struct wseries *ws;
	const struct series *series;
	struct head_place place;
};

/* Floats of one series as they were under the lock, ascending: leaves or a chain, and the open chunk behind them. */
struct walk_leaf {
	const struct chunk_sample *raw; /* NULL: in the chunk file, at off */
	uint64_t off;
	uint32_t n;
	int64_t maxt;
};
struct walk_floats {
	struct walk_leaf *leaves;
	uint32_t n_leaves;
	bool cut_short; /* there are leaves behind these that overlap */
	uint64_t chain; /* 0: none */
	int64_t chain_before;
	uint8_t *open; /* NULL: it has none, or it does not overlap */
	size_t open_bytes;
};

struct head_walk {
	struct window *w;
	struct head_place next; /* to copy */
	struct walk_item items[HEAD_SLICE];
	uint32_t n, at; /* of items; at: behind the one given last */
	struct label labels[LIMIT_LABELS_PER_SERIES];
	struct label *many; /* for series of more labels than that */
	uint32_t cap_many;
	struct arena arena; /* of the samples given last */
	struct chunk_sample *floats;
	size_t n_floats, cap_floats;
	struct head_packed *hists;
	size_t n_hists, cap_hists;
	uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
	struct chunk_sample decoded[HEAD_RAW_SAMPLES + 1];
};

/* ---- windows ---- */

errc head_windows(struct head *h, struct span tenant, struct arena *arena, struct head_window **out, size_t *n, struct err *err)
{
	errc rc = OK;
	*out = NULL;
	*n = 0;
	struct tenant *tn = head_tenant_find(h, tenant);
	if (!tn)
		return OK;
	pthread_mutex_lock(&tn->mu);
	*out = arena_alloc(arena, tn->n_windows * sizeof **out);
	CHECK(*out, ERR_NOMEM, "no memory for a list of windows");
	for (uint32_t i = 0; i < tn->n_windows; i++) {
		const struct window *w = tn->windows[i];
		(*out)[(*n)++] = (struct head_window){
			.start = w->start,
			.range = w->range,
			.samples = atomic_load_explicit(&w->n_samples, memory_order_relaxed),
			.open = w->state == WINDOW_OPEN,
		};
	}
fail:
	pthread_mutex_unlock(&tn->mu);
	return rc;
}

errc head_walk_open(struct head *h, struct span tenant, int64_t start, int64_t range, struct head_walk **out, struct err *err)
{
	struct window *found = NULL;
	struct tenant *tn = head_tenant_find(h, tenant);
	*out = NULL;
	if (tn) {
		pthread_mutex_lock(&tn->mu);
		for (uint32_t i = 0; i < tn->n_windows && !found; i++) {
			struct window *w = tn->windows[i];
			if (w->state == WINDOW_OPEN && w->start == start && w->range == range)
				found = head_window_ref(w);
		}
		pthread_mutex_unlock(&tn->mu);
	}
	if (!found)
		return err_set(err, ERR_NOTFOUND, "tenant %.*s has no open window at %lld", SPAN_ARG(tenant), (long long)start);
	struct head_walk *k = calloc(1, sizeof *k);
	if (!k) {
		head_window_unref(found);
		return err_set(err, ERR_NOMEM, "no memory to walk a window");
	}
	k->w = found;
	arena_init(&k->arena, LIMIT_QUERY_MEMORY_BYTES);
	*out = k;
	return OK;
}

void head_walk_close(struct head_walk *k)
{
	if (!k)
		return;
	head_window_unref(k->w);
	arena_free(&k->arena);
	free(k->many);
	free(k->floats);
	free(k->hists);
	free(k);
}

uint32_t head_walk_window(const struct head_walk *k)
{
	return k->w->serial;
}

void head_walk_seek(struct head_walk *k, struct head_place place)
{
	k->next = place;
	k->n = k->at = 0;
}

/* ---- series ---- */

static void slice(struct head_walk *k)
{
	struct head *h = k->w->head;
	k->n = k->at = 0;
	while (k->n == 0 && k->next.shard < h->n_shards) {
		pthread_mutex_lock(&h->shards[k->next.shard].mu);
		const struct wpart *p = k->w->parts[k->next.shard].p;
		for (; p && k->next.local < p->n && k->n < HEAD_SLICE; k->next.local++)
			k->items[k->n++] = (struct walk_item){part_ws(p, k->next.local), part_series(p, k->next.local), k->next};
		pthread_mutex_unlock(&h->shards[k->next.shard].mu);
		if (k->n < HEAD_SLICE)
			k->next = (struct head_place){k->next.shard + 1, 0};
	}
}

errc head_walk_next(struct head_walk *k, struct labels *l, struct head_place *place, bool *more, struct err *err)
{
	if (k->at == k->n)
		slice(k);
	*more = k->n > 0;
	if (!*more)
		return OK;
	const struct walk_item *x = &k->items[k->at++];
	const struct series *s = x->series;
	struct label *v = k->labels;
	if (s->n_pairs > LIMIT_LABELS_PER_SERIES) {
		if (s->n_pairs > k->cap_many) {
			if (!head_append_grow(&k->many, s->n_pairs, sizeof *k->many))
				return err_set(err, ERR_NOMEM, "no memory for %u labels", s->n_pairs);
			k->cap_many = s->n_pairs;
		}
		v = k->many;
	}
	for (uint32_t i = 0; i < s->n_pairs; i++)
		v[i] = head_pair_label(head_pair(&k->w->head->symbols, s->pairs[i]));
	*l = (struct labels){v, s->n_pairs};
	*place = x->place;
	return OK;
}

/* ---- samples ---- */

static errc no_memory(struct err *err)
{
	return err_set(err, ERR_NOMEM, "no memory for the samples of a series");
}

static errc floats_copy_locked(
	struct head_walk *k, const struct wseries *ws, int64_t mint, int64_t maxt, size_t max, struct walk_floats *out, struct err *err)
{
	const struct window *w = k->w;
	const struct leaf *leaves = ws_leaves(ws) ? ws->leaves->v : NULL;
	uint32_t a = 0, b = ws_leaves(ws);
	size_t n = 0;
	*out = (struct walk_floats){0};
	while (a < b) {
		uint32_t mid = (a + b) / 2;
		if (w->start + leaves[mid].maxt < mint)
			a = mid + 1;
		else
			b = mid;
	}
	for (b = a; b < ws_leaves(ws) && w->start + leaves[b].mint <= maxt && n < max; b++)
		n += leaves[b].n;
	out->cut_short = b < ws_leaves(ws) && w->start + leaves[b].mint <= maxt;
	out->leaves = arena_alloc(&k->arena, (b - a) * sizeof *out->leaves);
	if (!out->leaves)
		return no_memory(err);
	for (; a < b; a++) {
		const struct leaf *l = &leaves[a];
		struct walk_leaf x = {.off = l->off, .n = (uint32_t)l->n, .maxt = w->start + l->maxt};
		if (l->kind == LEAF_RAW) {
			x.raw = (const struct chunk_sample *)(const void *)arena_dup(&k->arena, span_of(leaf_raw(l), l->n * sizeof *x.raw)).p;
			if (!x.raw)
				return no_memory(err);
		}
		out->leaves[out->n_leaves++] = x;
	}
	if (ws_chained(ws)) {
		out->chain = ws->chain;
		out->chain_before = ws_chain_before(w, ws);
	}
	if (ws->n > 0 && w->start + ws->start <= maxt && w->start + ws->t >= mint) {
		out->open = arena_alloc(&k->arena, HEAD_CHUNK_MAX_BYTES);
		if (!out->open)
			return no_memory(err);
		out->open_bytes = head_open_read_pieces(w->parts[ws->shard].p, ws, out->open);
	}
	return OK;
}

static errc floats_add(struct head_walk *k, const struct chunk_sample *v, size_t n, int64_t mint, int64_t maxt, struct err *err)
{
	while (n > 0 && v[0].t < mint) {
		v++;
		n--;
	}
	while (n > 0 && v[n - 1].t > maxt)
		n--;
	if (n == 0)
		return OK;
	if (k->n_floats + n > k->cap_floats) {
		size_t cap = (k->n_floats + n) * 2;
		if (!head_append_grow(&k->floats, cap, sizeof *k->floats))
			return no_memory(err);
		k->cap_floats = cap;
	}
	memcpy(k->floats + k->n_floats, v, n * sizeof *v);
	k->n_floats += n;
	return OK;
}

/* A chunk's payload, with its count, becomes samples of the answer. */
static errc chunk_add(struct head_walk *k, struct span chunk, int64_t mint, int64_t maxt, struct err *err)
{
	size_t n;
	errc rc = xor_decode(chunk, k->decoded, HEAD_RAW_SAMPLES + 1, &n, err);
	return rc == OK ? floats_add(k, k->decoded, n, mint, maxt, err) : rc;
}

/* A chain is read from its newest chunk on; what it gave is turned round. */
struct walk_chunk {
	struct walk_chunk *newer;
	struct span data;
};

static errc chain_read(struct head_walk *k, const struct walk_floats *f, int64_t mint, int64_t maxt, struct err *err)
{
	errc rc = OK;
	struct chain_reader r;
	struct chunkfile_chunk c;
	struct walk_chunk *oldest = NULL;
	bool more = true;
	TRY(head_chain_open(k->w, NULL, f->chain, f->chain_before, (f->open ? f->open : k->bytes) + XOR_HEADER_BYTES, &r, err));
	while (r.before > mint) {
		TRY(head_chain_next(&r, k->bytes, &c, &more, err));
		if (!more)
			break;
		if (c.mint > maxt || c.maxt < mint)
			continue;
		struct walk_chunk *x = arena_alloc(&k->arena, sizeof *x);
		CHECK(x, ERR_NOMEM, "no memory for the samples of a series");
		*x = (struct walk_chunk){oldest, arena_dup(&k->arena, span_of(k->bytes, c.n_bytes))};
		CHECK(x->data.p, ERR_NOMEM, "no memory for the samples of a series");
		oldest = x;
	}
	for (; oldest; oldest = oldest->newer)
		TRY(chunk_add(k, oldest->data, mint, maxt, err));
fail:
	return rc;
}

/* *until: what is there up to this time is in k->floats, when that is before maxt. */
static errc floats_read(struct head_walk *k, const struct walk_floats *f, int64_t mint, int64_t maxt, int64_t *until, struct err *err)
{
	errc rc = OK;
	*until = maxt;
	k->n_floats = 0;
	for (uint32_t i = 0; i < f->n_leaves; i++) {
		const struct walk_leaf *l = &f->leaves[i];
		struct chunkfile_chunk c;
		if (l->raw) {
			TRY(floats_add(k, l->raw, l->n, mint, maxt, err));
			continue;
		}
		TRY(head_chunkfile_chunk(&k->w->file, NULL, l->off, k->bytes, &c, err));
		TRY(chunk_add(k, span_of(k->bytes, c.n_bytes), mint, maxt, err));
	}
	if (f->cut_short) {
		*until = f->leaves[f->n_leaves - 1].maxt;
		return OK;
	}
	if (f->chain)
		TRY(chain_read(k, f, mint, maxt, err));
	if (f->open)
		TRY(chunk_add(k, span_of(f->open, f->open_bytes), mint, maxt, err));
fail:
	return rc;
}

static errc hist_add(struct head_walk *k, int64_t t, struct span packed, struct err *err)
{
	if (k->n_hists == k->cap_hists) {
		size_t cap = k->cap_hists ? k->cap_hists * 2 : 64;
		if (!head_append_grow(&k->hists, cap, sizeof *k->hists))
			return no_memory(err);
		k->cap_hists = cap;
	}
	k->hists[k->n_hists++] = (struct head_packed){t, packed};
	return OK;
}

static errc hists_read(
	struct head_walk *k, const struct hist_copy *copy, int64_t mint, int64_t maxt, size_t max_bytes, int64_t *until, struct err *err)
{
	errc rc = OK;
	size_t bytes = 0;
	*until = maxt;
	k->n_hists = 0;
	for (uint32_t i = 0; i < copy->n; i++) {
		const struct hist_copied *c = &copy->v[i];
		const uint8_t *p = c->bytes;
		if (bytes >= max_bytes && k->n_hists > 0) {
			*until = k->hists[k->n_hists - 1].t;
			break;
		}
		if (!p) {
			uint8_t *read = arena_alloc(&k->arena, c->len + (size_t)CHUNKFILE_OVERHEAD);
			CHECK(read, ERR_NOMEM, "no memory for the samples of a series");
			TRY(head_chunkfile_read(&k->w->file, c->off, c->len, read, err));
			p = read;
		}
		bytes += c->len;
		struct rd r = rd_of(p, c->len);
		struct span packed;
		uint32_t at;
		bool ok;
		while (head_hist_leaf_next(&r, &at, &packed, &ok))
			if (k->w->start + at >= mint && k->w->start + at <= maxt)
				TRY(hist_add(k, k->w->start + at, packed, err));
		CHECK(ok, ERR_CORRUPT, "chunk file of window %s: a leaf of histograms is none", ulid_text(k->w->ulid).s);
	}
fail:
	return rc;
}

errc head_walk_samples(struct head_walk *k, int64_t mint, int64_t maxt, size_t max_bytes, struct head_samples *out, struct err *err)
{
	errc rc = OK;
	struct window *w = k->w;
	ASSERT(k->at > 0);
	const struct walk_item *x = &k->items[k->at - 1];
	struct walk_floats f;
	struct hist_copy hists = {0};
	int64_t until, until_hists;
	*out = (struct head_samples){.next_t = maxt};
	arena_reset(&k->arena);
	if (mint < w->start)
		mint = w->start;
	if (maxt > w->start + w->range - 1)
		maxt = w->start + w->range - 1;
	if (mint > maxt)
		return OK;
	struct shard *sh = &w->head->shards[x->place.shard];
	pthread_mutex_lock(&sh->mu);
	rc = floats_copy_locked(k, x->ws, mint, maxt, max_bytes / sizeof *k->floats + 1, &f, err);
	if (rc == OK && x->ws->hist)
		rc = head_hist_copy_locked(w, x->ws, mint, maxt, false, &k->arena, &hists, err);
	pthread_mutex_unlock(&sh->mu);
	TRY(rc);
	TRY(floats_read(k, &f, mint, maxt, &until, err));
	TRY(hists_read(k, &hists, mint, maxt, max_bytes, &until_hists, err));
	if (until_hists < until)
		until = until_hists;
	while (k->n_floats > 0 && k->floats[k->n_floats - 1].t > until)
		k->n_floats--;
	while (k->n_hists > 0 && k->hists[k->n_hists - 1].t > until)
		k->n_hists--;
	/* Where both are at one time the histogram is the sample. */
	size_t n = 0, j = 0;
	for (size_t i = 0; i < k->n_floats && k->n_hists > 0; i++) {
		while (j < k->n_hists && k->hists[j].t < k->floats[i].t)
			j++;
		if (j == k->n_hists || k->hists[j].t != k->floats[i].t)
			k->floats[n++] = k->floats[i];
	}
	if (k->n_hists > 0)
		k->n_floats = n;
	*out = (struct head_samples){k->floats, k->n_floats, k->hists, k->n_hists, until < maxt, until < maxt ? until + 1 : until};
fail:
	return rc;
}
