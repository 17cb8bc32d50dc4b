/* head/head_window.c - a window: one tenant, one aligned range of time, until it is a block.
 *
 * It has a part in every shard that holds its series: per series a struct wseries, and the part's postings (head_postings.c). All of a part comes from its own pool and goes with it.
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

/* The series of this part forget the window; those that were in no other leave the table. Between two holds of the lock it pauses for several times as long, so that requests
 * notice nothing. */
enum { RELEASE_AHEAD = 16 };
static void part_release(struct window *w, struct shard *sh, struct wpart *part)
{
	struct head *h = w->head;
	for (uint32_t i = 0; i < part->n;) {
		pthread_mutex_lock(&sh->mu);
		for (uint32_t k = 0; k < HEAD_SLICE && i < part->n; k++, i++) {
			struct series *s = part_series(part, i);
			if (i + RELEASE_AHEAD < part->n)
				__builtin_prefetch(part_series(part, i + RELEASE_AHEAD));
			if (i + RELEASE_AHEAD / 2 < part->n)
				head_series_remove_soon_locked(sh, part_series(part, i + RELEASE_AHEAD / 2));
			if (s->ws == part_ws(part, i))
				s->ws = NULL;
			ASSERT(s->n_windows > 0);
			if (--s->n_windows == 0 && !h->replay) {
				s->ws = NULL;
				head_series_remove_locked(h, sh, w->tenant, s);
			}
		}
		pthread_mutex_unlock(&sh->mu);
		if (i < part->n && !h->replay && !atomic_load_explicit(&h->stop, memory_order_relaxed))
			io_sleep_ms(1);
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
		uint32_t i = head_spread(p->map[k] >> 32) & mask;
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
		uint32_t key = map_key(part_series(p, p->n_mapped)), i = head_spread(key) & p->map_mask;
		while (p->map[i])
			i = (i + 1) & p->map_mask;
		p->map[i] = (uint64_t)key << 32 | (p->n_mapped + 1);
	}
	if (!p->map)
		return true;
	for (uint32_t i = head_spread(map_key(s)) & p->map_mask; p->map[i]; i = (i + 1) & p->map_mask) {
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
	uint8_t *v = head_pool_take(&p->pool, n * (sizeof(struct wseries) + sizeof(struct series *)));
	if (!v)
		return false;
	p->pages[page] = (struct ws_page){(void *)v, (void *)(v + n * sizeof(struct wseries))};
	p->n_pages = page + 1;
	return true;
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
	if (p->n >= HEAD_INDEX_SERIES && !atomic_load_explicit(&w->to_index, memory_order_relaxed))
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
		if (ws && !ws_empty(ws) && head_ws_newest(w, ws) >= t)
			fits = false;
	}
	pthread_mutex_unlock(&tn->mu);
	return fits;
}
