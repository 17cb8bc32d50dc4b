/* head/head_window.c - a window: one tenant, one aligned range of time, until it is a block.
 *
 * It has a part in every shard that holds its series: per series a struct wseries, the postings of the part (label pair ─▶ growing list
 * of local numbers), the pairs of each label name. All of a part comes from its own pool and goes with it.
 *
 *     opened ──▶ in its tenant's list, takes samples ──▶ closing: later samples open another one ──▶ frozen, part by part
 *            ──▶ block written, on_block ──▶ out of the list ──▶ last reader lets go ──▶ destroyed by the cutter
 *
 * Only the cutter destroys (or the owner when there is no cutter), and it is the one who writes checkpoints: so every series in the
 * table is in some window that a checkpoint visits.
 */
#include "head/head_int.h"

errc head_window_open_locked(
	struct tenant *tn, const struct ulid *ulid, int64_t start, int64_t range, int64_t arrival_ms, struct window **out, struct err *err)
{
	struct head *h = tn->head;
	if (tn->n_windows == tn->cap_windows) {
		uint32_t cap = tn->cap_windows ? tn->cap_windows * 2 : 4;
		struct window **v = realloc(tn->windows, cap * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "no memory for a window");
		head_memory_add(h, (cap - tn->cap_windows) * sizeof *v);
		tn->windows = v;
		tn->cap_windows = cap;
		head_tenant_index_grow_locked(tn);
	}
	size_t bytes = sizeof(struct window) + h->n_shards * sizeof(struct window_part);
	struct window *w = calloc(1, bytes);
	if (!w)
		return err_set(err, ERR_NOMEM, "no memory for a window");
	w->head = h;
	w->tenant = tn;
	w->ulid = ulid ? *ulid : ulid_new();
	w->start = start;
	w->range = range;
	do
		w->serial = atomic_fetch_add_explicit(&h->next_serial, 1, memory_order_relaxed);
	while (w->serial == 0);
	w->first_arrival_ms = arrival_ms;
	atomic_init(&w->refs, 1);
	atomic_init(&w->first_segment, UINT64_MAX);
	atomic_init(&w->last_arrival_ms, arrival_ms);
	atomic_init(&w->memory_bytes, bytes);
	head_memory_add(h, bytes);
	head_chunkfile_init(&w->file, h, w->ulid, &w->memory_bytes);
	tn->windows[tn->n_windows++] = w;
	head_tenant_index_add_locked(tn, w);

	pthread_mutex_lock(&h->windows_mu);
	w->prev = h->windows_tail;
	if (w->prev)
		w->prev->next = w;
	else
		h->windows = w;
	h->windows_tail = w;
	pthread_mutex_unlock(&h->windows_mu);
	atomic_fetch_add_explicit(&h->n_windows, 1, memory_order_relaxed);
	if (range < atomic_load(&h->min_range))
		atomic_store(&h->min_range, range);
	*out = w;
	return OK;
}

void head_window_unref(struct window *w)
{
	/* Once the last reference is given back the cutter may destroy the window at any moment. */
	struct head *h = w->head;
	if (atomic_fetch_sub_explicit(&w->refs, 1, memory_order_acq_rel) == 1)
		head_cutter_wake(h);
}

void head_window_freeze(struct window *w)
{
	struct head *h = w->head;
	pthread_mutex_lock(&w->tenant->mu);
	w->state = WINDOW_CLOSING;
	pthread_mutex_unlock(&w->tenant->mu);
	for (uint32_t i = 0; i < h->n_shards; i++) {
		pthread_mutex_lock(&h->shards[i].mu);
		w->parts[i].frozen = true;
		pthread_mutex_unlock(&h->shards[i].mu);
	}
	w->frozen = true;
}

void head_window_thaw(struct window *w)
{
	for (uint32_t i = 0; i < w->head->n_shards; i++) {
		pthread_mutex_lock(&w->head->shards[i].mu);
		w->parts[i].frozen = false;
		pthread_mutex_unlock(&w->head->shards[i].mu);
	}
	pthread_mutex_lock(&w->tenant->mu);
	w->state = WINDOW_OPEN;
	pthread_mutex_unlock(&w->tenant->mu);
	w->frozen = false;
}

void head_window_leave(struct window *w)
{
	struct tenant *tn = w->tenant;
	pthread_mutex_lock(&tn->mu);
	uint32_t i = 0;
	while (tn->windows[i] != w)
		i++;
	memmove(&tn->windows[i], &tn->windows[i + 1], (tn->n_windows - i - 1) * sizeof *tn->windows);
	tn->n_windows--;
	head_tenant_index_remove_locked(tn, w);
	pthread_mutex_unlock(&tn->mu);
	pthread_mutex_lock(&w->head->windows_mu);
	w->gone = true;
	pthread_mutex_unlock(&w->head->windows_mu);
	atomic_fetch_sub_explicit(&w->head->n_windows, 1, memory_order_relaxed);
	head_window_unref(w);
}

/* The series of this part forget the window; those that were in no other leave the table. */
static void part_release(struct window *w, struct shard *sh, struct wpart *part)
{
	struct head *h = w->head;
	for (uint32_t i = 0; i < part->n;) {
		pthread_mutex_lock(&sh->mu);
		for (uint32_t k = 0; k < HEAD_SLICE && i < part->n; k++, i++) {
			struct series *s = part_series(part, i);
			if (s->ws == part_ws(part, i))
				s->ws = NULL;
			ASSERT(s->n_windows > 0);
			if (--s->n_windows == 0 && !h->replay) {
				s->ws = NULL;
				head_series_remove_locked(h, sh, s);
			}
		}
		pthread_mutex_unlock(&sh->mu);
	}
}

void head_window_destroy(struct window *w)
{
	for (uint32_t i = 0; i < w->head->n_shards; i++)
		if (w->parts[i].p)
			part_release(w, &w->head->shards[i], w->parts[i].p);
	head_window_forget(w);
}

void head_window_forget(struct window *w)
{
	struct head *h = w->head;
	ASSERT(atomic_load_explicit(&w->refs, memory_order_acquire) == 0);
	for (uint32_t i = 0; i < h->n_shards; i++) {
		struct wpart *part = w->parts[i].p;
		if (!part)
			continue;
		head_pool_destroy(&part->pool);
		head_memory_sub(h, sizeof *part);
		free(part);
	}
	pthread_mutex_lock(&h->windows_mu);
	if (w->prev)
		w->prev->next = w->next;
	else
		h->windows = w->next;
	if (w->next)
		w->next->prev = w->prev;
	else
		h->windows_tail = w->prev;
	pthread_mutex_unlock(&h->windows_mu);
	head_chunkfile_remove(&w->file);
	atomic_fetch_sub_explicit(&h->n_samples, atomic_load(&w->n_samples), memory_order_relaxed);
	head_memory_sub(h, sizeof(struct window) + h->n_shards * sizeof(struct window_part));
	free(w);
}

static uint32_t spread(uint64_t x)
{
	return (uint32_t)(x * UINT64_C(0x9e3779b97f4a7c15) >> 32);
}

/* ---- postings ---- */

struct posting *head_part_posting(const struct wpart *p, uint32_t pair)
{
	if (!p->postings)
		return NULL;
	for (uint32_t i = spread(pair) & p->postings_mask; p->postings[i].pair; i = (i + 1) & p->postings_mask)
		if (p->postings[i].pair == pair + 1)
			return &p->postings[i];
	return NULL;
}

struct name_pairs *head_part_name(const struct wpart *p, const struct symbol *name)
{
	for (uint32_t i = 0; i < p->n_names; i++)
		if (p->names[i].name == name)
			return &p->names[i];
	return NULL;
}

static bool postings_grow(struct wpart *p)
{
	uint32_t mask = p->postings ? p->postings_mask * 2 + 1 : 15;
	size_t bytes = ((size_t)mask + 1) * sizeof(struct posting);
	struct posting *v = head_pool_alloc(&p->pool, bytes);
	if (!v)
		return false;
	memset(v, 0, bytes);
	for (uint32_t i = 0; p->postings && i <= p->postings_mask; i++) {
		if (!p->postings[i].pair)
			continue;
		uint32_t j = spread(p->postings[i].pair - 1) & mask;
		while (v[j].pair)
			j = (j + 1) & mask;
		v[j] = p->postings[i];
	}
	if (p->postings)
		head_pool_free(&p->pool, p->postings, ((size_t)p->postings_mask + 1) * sizeof *v);
	p->postings = v;
	p->postings_mask = mask;
	return true;
}

/* A growing array in the pool whose room is that of its size class. */
static uint32_t *list_push(struct head_pool *pool, uint32_t *v, uint32_t n, uint32_t x)
{
	size_t used = n * sizeof *v;
	if (n == 0 || head_pool_round(used) == used) {
		uint32_t *more = head_pool_alloc(pool, used + sizeof *v);
		if (!more)
			return NULL;
		if (n) {
			memcpy(more, v, used);
			head_pool_free(pool, v, used);
		}
		v = more;
	}
	v[n] = x;
	return v;
}

static bool name_add(struct wpart *p, const struct symbol *name, uint32_t pair)
{
	struct name_pairs *np = head_part_name(p, name);
	if (!np) {
		if (p->n_names == p->cap_names) {
			uint32_t cap = p->cap_names ? p->cap_names * 2 : 16;
			struct name_pairs *v = head_pool_alloc(&p->pool, cap * sizeof *v);
			if (!v)
				return false;
			if (p->n_names)
				memcpy(v, p->names, p->n_names * sizeof *v);
			if (p->names)
				head_pool_free(&p->pool, p->names, p->cap_names * sizeof *v);
			p->names = v;
			p->cap_names = cap;
		}
		np = &p->names[p->n_names++];
		*np = (struct name_pairs){.name = name};
	}
	if (np->n == np->cap) {
		uint32_t cap = np->cap ? np->cap * 2 : 4;
		uint32_t *v = head_pool_alloc(&p->pool, cap * sizeof *v);
		if (!v)
			return false;
		if (np->n)
			memcpy(v, np->v, np->n * sizeof *v);
		if (np->v)
			head_pool_free(&p->pool, np->v, np->cap * sizeof *v);
		np->v = v;
		np->cap = cap;
	}
	np->v[np->n++] = pair;
	return true;
}

static bool posting_add(struct head *h, struct wpart *p, uint32_t pair, uint32_t local)
{
	struct posting *e = head_part_posting(p, pair);
	if (!e) {
		if ((!p->postings || p->n_postings + 1 > p->postings_mask / 4 * 3) && !postings_grow(p))
			return false;
		if (!name_add(p, head_pair(&h->symbols, pair)->name, pair))
			return false;
		uint32_t i = spread(pair) & p->postings_mask;
		while (p->postings[i].pair)
			i = (i + 1) & p->postings_mask;
		e = &p->postings[i];
		*e = (struct posting){.pair = pair + 1};
		p->n_postings++;
	}
	if (e->n == 0) {
		e->one = local;
	} else if (e->n == 1) {
		uint32_t one = e->one;
		uint32_t *v = head_pool_alloc(&p->pool, 4 * sizeof *v);
		if (!v)
			return false;
		v[0] = one;
		v[1] = local;
		e->v = v;
	} else {
		uint32_t *v = list_push(&p->pool, e->v, e->n, local);
		if (!v)
			return false;
		e->v = v;
	}
	e->n++;
	return true;
}

/* Takes back the newest entry. The room stays with the list unless one entry is left, which needs none. */
static void posting_pop(struct wpart *p, uint32_t pair)
{
	struct posting *e = head_part_posting(p, pair);
	if (e->n == 2) {
		uint32_t one = e->v[0];
		head_pool_free(&p->pool, e->v, 4 * sizeof one);
		e->one = one;
	}
	e->n--;
}

/* ---- series of a part ---- */

static struct wpart *part_new(struct window *w, struct err *err)
{
	struct wpart *p = calloc(1, sizeof *p);
	if (!p) {
		err_set(err, ERR_NOMEM, "no memory for a part of a window");
		return NULL;
	}
	head_memory_add(w->head, sizeof *p);
	head_pool_init(&p->pool, &w->head->memory_bytes, &w->memory_bytes);
	p->min_t = INT64_MAX;
	p->max_t = INT64_MIN;
	return p;
}

static bool map_grow(struct wpart *p)
{
	uint32_t mask = p->map ? p->map_mask * 2 + 1 : 7;
	size_t bytes = ((size_t)mask + 1) * sizeof *p->map;
	uint64_t *map = head_pool_alloc(&p->pool, bytes);
	if (!map)
		return false;
	memset(map, 0, bytes);
	for (uint32_t k = 0; p->map && k <= p->map_mask; k++) {
		if (!p->map[k])
			continue;
		uint32_t i = spread(p->map[k] >> 32) & mask;
		while (map[i])
			i = (i + 1) & mask;
		map[i] = p->map[k];
	}
	if (p->map)
		head_pool_free(&p->pool, p->map, ((size_t)p->map_mask + 1) * sizeof *map);
	p->map = map;
	p->map_mask = mask;
	return true;
}

static uint32_t map_key(const struct series *s)
{
	return (uint32_t)s->hash.lo;
}

/* The map is for a series that was in a later window meanwhile: most windows never need one. *out NULL: s is not in the part. false: no memory. */
static bool map_find(struct wpart *p, const struct series *s, struct wseries **out)
{
	*out = NULL;
	for (; p->n_mapped < p->n; p->n_mapped++) {
		if ((!p->map || p->n_mapped + 1 > p->map_mask / 4 * 3) && !map_grow(p))
			return false;
		uint32_t key = map_key(part_series(p, p->n_mapped)), i = spread(key) & p->map_mask;
		while (p->map[i])
			i = (i + 1) & p->map_mask;
		p->map[i] = (uint64_t)key << 32 | (p->n_mapped + 1);
	}
	if (!p->map)
		return true;
	for (uint32_t i = spread(map_key(s)) & p->map_mask; p->map[i]; i = (i + 1) & p->map_mask) {
		uint32_t local = (uint32_t)p->map[i] - 1;
		if (p->map[i] >> 32 == map_key(s) && part_series(p, local) == s)
			*out = part_ws(p, local);
	}
	return true;
}

/* Room for one more series. */
static bool page_room(struct wpart *p)
{
	uint32_t at, page = ws_page_of(p->n, &at);
	if (page < p->n_pages)
		return true;
	if (page == p->cap_pages) {
		uint32_t cap = p->cap_pages ? p->cap_pages * 2 : 4;
		struct ws_page *v = head_pool_alloc(&p->pool, cap * sizeof *v);
		if (!v)
			return false;
		if (p->n_pages)
			memcpy(v, p->pages, p->n_pages * sizeof *v);
		head_pool_free(&p->pool, p->pages, p->cap_pages * sizeof *v);
		p->pages = v;
		p->cap_pages = cap;
	}
	uint32_t n = page < WS_PAGES_GROWING ? (uint32_t)WS_PAGE_FIRST << page : (uint32_t)WS_PAGE_LAST;
	uint8_t *v = head_pool_alloc(&p->pool, n * (sizeof(struct wseries) + sizeof(struct series *)) + 56);
	if (!v)
		return false;
	uint8_t *aligned = (uint8_t *)(((uintptr_t)v + 63) / 64 * 64);
	p->pages[page] = (struct ws_page){(void *)aligned, (void *)(aligned + n * sizeof(struct wseries))};
	p->n_pages = page + 1;
	return true;
}

enum { INDEX_SLICE = 1024, INDEX_AHEAD = 4 };

static void index_ahead(const struct wpart *p, uint32_t local)
{
	if (local >= p->n || !p->postings)
		return;
	const struct series *s = part_series(p, local);
	for (uint32_t i = 0; i < s->n_pairs; i++)
		__builtin_prefetch(&p->postings[spread(s->pairs[i]) & p->postings_mask], 1);
}

errc head_window_index(struct window *w, uint32_t shard, struct err *err)
{
	struct shard *sh = &w->head->shards[shard];
	uint32_t upto = 0;
	bool more = true, room = true;
	for (bool first = true; more && room; first = false) {
		pthread_mutex_lock(&sh->mu);
		struct wpart *p = w->parts[shard].p;
		if (first && p)
			upto = p->n;
		for (uint32_t k = 0; p && k < INDEX_SLICE && p->n_indexed < upto && room; k++) {
			index_ahead(p, p->n_indexed + INDEX_AHEAD);
			const struct series *s = part_series(p, p->n_indexed);
			uint32_t done = 0;
			while (done < s->n_pairs && posting_add(w->head, p, s->pairs[done], p->n_indexed))
				done++;
			room = done == s->n_pairs;
			while (!room && done > 0)
				posting_pop(p, s->pairs[--done]);
			p->n_indexed += room;
		}
		more = p && p->n_indexed < upto;
		pthread_mutex_unlock(&sh->mu);
	}
	return room ? OK : err_set(err, ERR_NOMEM, "no memory for the postings of a window");
}

struct wseries *head_window_series_locked(struct window *w, struct shard *sh, uint32_t shard, struct series *s, struct err *err)
{
	(void)sh;
	struct wpart *p = w->parts[shard].p;
	if (!p) {
		p = part_new(w, err);
		if (!p)
			return NULL;
		w->parts[shard].p = p;
	}
	struct wseries *ws = NULL;
	if (s->n_windows > 0 && s->newest_window >= w->serial) {
		if (!map_find(p, s, &ws))
			goto nomem;
		if (ws)
			return ws;
	}
	if (!page_room(p))
		goto nomem;
	uint32_t at, page = ws_page_of(p->n, &at);
	ws = &p->pages[page].ws[at];
	*ws = (struct wseries){.shard = (uint8_t)shard, .local = p->n};
	p->pages[page].series[at] = s;
	p->n++;
	s->n_windows++;
	if (w->serial > s->newest_window)
		s->newest_window = w->serial;
	if (!atomic_load_explicit(&w->to_index, memory_order_relaxed))
		atomic_store_explicit(&w->to_index, true, memory_order_relaxed);
	return ws;
nomem:
	err_set(err, ERR_NOMEM, "no memory for a series in a window");
	return NULL;
}

bool head_window_zero_fits_locked(struct tenant *tn, uint32_t shard, const struct series *s, int64_t t, int64_t first)
{
	int64_t range = tn->head->cfg.block_range_ms;
	pthread_mutex_lock(&tn->mu);
	bool fits = floor_to(t, range) == floor_to(first, range) || head_tenant_window_locked(tn, t);
	uint32_t seen = 0;
	for (uint32_t i = tn->n_windows; fits && seen < s->n_windows && i-- > 0;) {
		struct window *w = tn->windows[i];
		struct wpart *p = w->parts[shard].p;
		struct wseries *ws = NULL;
		if (w->serial > s->newest_window || !p)
			continue;
		fits = map_find(p, s, &ws);
		seen += ws != NULL;
		if (ws && (ws->n > 0 || ws_leaves(ws) > 0) && head_ws_newest(w, ws) >= t)
			fits = false;
	}
	pthread_mutex_unlock(&tn->mu);
	return fits;
}
