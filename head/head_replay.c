/* head/head_replay.c - the log read back: definitions, samples, cuts.
 *
 * A definition makes (or finds) its series; one series may have had several refs, all lead to it. A samples record names its window by
 * ULID: if a known cut covers the frame it is skipped, else the samples go into the window of exactly that name. No bounds of time are
 * judged again. A cut record met behind its window's samples throws the window away: its block is complete.
 *
 * A log bigger than memory: above 80 % of the limit the fullest window becomes a block of its own name (meta.json says which window, and
 * up to which frame), between two frames, and goes on empty. Before the first such cut the whole log is looked through for
 * cut records, so that nothing becomes a block that is one already. These blocks are announced when the cutter starts; they count
 * as settled only when their frames have left the log, because a cut record could not be read before the samples it covers.
 *
 * What a snapshot holds is put into the same tables before the first frame (head_snapshot_load.c). Should the tail then need a chunk that the snapshot names and that can't
 * be read, all is forgotten and what was read so far is read again from the log alone.
 *
 * Bytes come from disk: what does not fit is counted, logged with its place, and skipped. Only a lack of memory ends a replay.
 *
 * One file because every kind of record is judged by the same tables of refs and windows, which nobody else may see half filled.
 */
#include <inttypes.h>
#include "base/tenant.h"
#include "head/head_int.h"

/* Refs are given in order, so they come in runs: a page has the series of fifteen neighbours, and what they are in one window. It fills 256 bytes. */
enum { REFS_PER_PAGE = 15, REFS_NEAR = 64 };
struct ref_page {
	struct series *v[REFS_PER_PAGE];
	struct wseries *ws[REFS_PER_PAGE]; /* NULL: not looked for */
	uint32_t serial;		   /* of the window */
	uint16_t loaded, idle;		   /* a bit for each: it came from a snapshot; and is in no window there */
};
struct ref_slot {
	uint64_t number;       /* of the page: ref / REFS_PER_PAGE */
	struct ref_page *page; /* NULL: empty */
};
struct window_slot {
	struct ulid ulid;
	bool used;
	bool closed;	   /* cut whole */
	uint64_t upto_seq; /* cut in part up to this frame */
	struct window *w;  /* open, or NULL */
};
struct old_key {
	uint64_t ref; /* 0: empty */
	struct wal_keys keys;
};
struct replay_state {
	struct ref_slot *refs;
	uint64_t n_pages, ref_mask;
	struct head_pool pages;
	struct ref_slot near[REFS_NEAR]; /* pages used last, by the low bits of their number */
	struct window_slot *windows;
	uint64_t n_windows, window_mask;
	struct label labels[LIMIT_LABELS_DECODE]; /* of the definition at hand */
	uint64_t unknown_seq;			  /* frame for which unknown series were logged last */
	uint64_t cut_again_seq;
	/* Keys of refs that are not their series' newest one. */
	struct old_key *old_keys;
	uint64_t n_old_keys, old_mask;
	bool peeked;
	bool dropped; /* a window went, so that a page's places may be of the past */
	/* from a snapshot; 0: from the log alone */
	uint64_t loaded_seq; /* it has all up to this frame */
	uint64_t synced_seq; /* it was written when the log was synced up to this one */
	uint64_t last_seq;   /* of the newest frame with records */
};

static struct replay_state *state_of(struct head *h)
{
	ASSERT(h->replay);
	return h->replay;
}

/* ---- tables ---- */

/* MurmurHash3's finalizer (public domain). */
static uint64_t spread(uint64_t x)
{
	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

static struct ref_slot *ref_slot(const struct replay_state *r, uint64_t number)
{
	uint64_t i = spread(number) & r->ref_mask;
	while (r->refs[i].page && r->refs[i].number != number)
		i = (i + 1) & r->ref_mask;
	return &r->refs[i];
}

static struct ref_page *ref_page(struct replay_state *r, uint64_t ref)
{
	uint64_t number = ref / REFS_PER_PAGE;
	struct ref_slot *near = &r->near[number % REFS_NEAR];
	if ((!near->page || near->number != number) && r->refs)
		*near = *ref_slot(r, number);
	return near->page;
}

/* NULL: not defined so far. */
static struct series *ref_series(struct replay_state *r, uint64_t ref)
{
	const struct ref_page *p = ref_page(r, ref);
	return p ? p->v[ref % REFS_PER_PAGE] : NULL;
}

static void ref_ahead(const struct replay_state *r, uint64_t ref)
{
	uint64_t number = ref / REFS_PER_PAGE;
	if (r->refs && number != r->near[number % REFS_NEAR].number)
		__builtin_prefetch(&r->refs[spread(number) & r->ref_mask]);
}

static bool refs_resize(struct head *h, struct replay_state *r, uint64_t mask)
{
	const struct replay_state old = {.refs = r->refs, .ref_mask = r->ref_mask};
	struct ref_slot *v = head_table_alloc(mask + 1, sizeof *v);
	if (!v)
		return false;
	r->refs = v;
	r->ref_mask = mask;
	for (uint64_t i = 0; old.refs && i <= old.ref_mask; i++)
		if (old.refs[i].page)
			*ref_slot(r, old.refs[i].number) = old.refs[i];
	head_memory_add(h, (mask + 1 - (old.refs ? old.ref_mask + 1 : 0)) * sizeof *v);
	head_table_free(old.refs, old.ref_mask + 1, sizeof *old.refs);
	return true;
}

static bool refs_grow(struct head *h, struct replay_state *r)
{
	return refs_resize(h, r, r->refs ? r->ref_mask * 2 + 1 : 63);
}

/* Where the series of ref goes; NULL: no memory. */
static struct series **ref_place(struct head *h, struct replay_state *r, uint64_t ref)
{
	struct ref_page *p = ref_page(r, ref);
	if (!p) {
		if ((!r->refs || r->n_pages + 1 > (r->ref_mask + 1) / 4 * 3) && !refs_grow(h, r))
			return NULL;
		p = head_pool_alloc(&r->pages, sizeof *p);
		if (!p)
			return NULL;
		memset(p, 0, sizeof *p);
		struct ref_slot entry = {ref / REFS_PER_PAGE, p};
		*ref_slot(r, entry.number) = entry;
		r->near[entry.number % REFS_NEAR] = entry;
		r->n_pages++;
	}
	return &p->v[ref % REFS_PER_PAGE];
}

static struct old_key *old_key(const struct replay_state *r, uint64_t ref)
{
	uint64_t i = spread(ref) & r->old_mask;
	while (r->old_keys[i].ref && r->old_keys[i].ref != ref)
		i = (i + 1) & r->old_mask;
	return &r->old_keys[i];
}

static errc old_key_put(struct replay_state *r, uint64_t ref, const struct wal_keys *keys, struct err *err)
{
	if (!r->old_keys || r->n_old_keys + 1 > (r->old_mask + 1) / 4 * 3) {
		struct replay_state old = *r;
		uint64_t mask = r->old_keys ? r->old_mask * 2 + 1 : 63;
		struct old_key *v = calloc(mask + 1, sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "replay: no memory for keys of %" PRIu64 " series", r->n_old_keys);
		r->old_keys = v;
		r->old_mask = mask;
		for (uint64_t i = 0; old.old_keys && i <= old.old_mask; i++)
			if (old.old_keys[i].ref)
				*old_key(r, old.old_keys[i].ref) = old.old_keys[i];
		free(old.old_keys);
	}
	struct old_key *k = old_key(r, ref);
	r->n_old_keys += k->ref == 0;
	*k = (struct old_key){ref, *keys};
	return OK;
}

static struct window_slot *window_slot(struct replay_state *r, struct ulid u)
{
	uint64_t i = spread(get_le64(u.b) ^ get_le64(u.b + 8)) & r->window_mask;
	while (r->windows[i].used && !ulid_eq(r->windows[i].ulid, u))
		i = (i + 1) & r->window_mask;
	return &r->windows[i];
}

/* The window's entry, made when absent. */
static errc window_entry(struct replay_state *r, struct ulid u, struct window_slot **out, struct err *err)
{
	if (!r->windows || r->n_windows + 1 > (r->window_mask + 1) / 4 * 3) {
		struct replay_state old = *r;
		uint64_t mask = r->windows ? r->window_mask * 2 + 1 : 63;
		struct window_slot *v = calloc(mask + 1, sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "replay: no memory for %" PRIu64 " windows", r->n_windows);
		r->windows = v;
		r->window_mask = mask;
		for (uint64_t i = 0; old.windows && i <= old.window_mask; i++)
			if (old.windows[i].used)
				*window_slot(r, old.windows[i].ulid) = old.windows[i];
		free(old.windows);
	}
	*out = window_slot(r, u);
	if (!(*out)->used) {
		**out = (struct window_slot){.ulid = u, .used = true};
		r->n_windows++;
	}
	return OK;
}

static errc replay_begin(struct head *h, struct err *err)
{
	if (h->replay)
		return OK;
	h->replay = calloc(1, sizeof *h->replay);
	if (!h->replay)
		return err_set(err, ERR_NOMEM, "no memory for replay");
	head_pool_init(&h->replay->pages, &h->memory_bytes, NULL);
	return OK;
}

void head_replay_free(struct head *h)
{
	struct replay_state *r = h->replay;
	if (!r)
		return;
	if (r->refs)
		head_memory_sub(h, (r->ref_mask + 1) * sizeof *r->refs);
	head_table_free(r->refs, r->ref_mask + 1, sizeof *r->refs);
	head_pool_destroy(&r->pages);
	free(r->windows);
	free(r->old_keys);
	free(r);
	h->replay = NULL;
}

/* ---- records ---- */

struct place {
	struct head *head;
	const struct wal_frame *f;
	bool damaged;
};

static void damage(struct place *p, const char *what)
{
	if (!p->damaged)
		log_error("a log frame with a right checksum holds what it should not: skipped", LSTR("what", what), LU64("segment", p->f->segment),
			LU64("offset", p->f->offset), LU64("frame", p->f->seq));
	p->damaged = true;
}

#define REF_MAX (UINT64_MAX / 2)

/* No series gets a ref that the log has, even where only samples still tell of it. */
static void ref_used(struct head *h, uint64_t ref)
{
	if (ref >= atomic_load_explicit(&h->next_ref, memory_order_relaxed))
		atomic_store_explicit(&h->next_ref, ref + 1, memory_order_relaxed);
}

static void keys_set(struct series *s, const struct wal_keys *k)
{
	s->keys[0] = k->v[0];
	s->keys[1] = k->v[1];
	s->key_no = k->now & 1u;
	s->key_changed = k->changed;
}

/* The copy in this frame counts toward the two that make a definition safe. */
static void def_seen(const struct wal_frame *f, struct series *s)
{
	uint64_t behind = f->pos + f->payload.n + f->payload.n / 128 + 4096;
	if (f->seq == 0) { /* a checkpoint stands in two files */
		s->def_state = DEF_TWICE;
		s->def_pos = 0;
	} else if (s->def_state == DEF_NONE) {
		s->def_state = DEF_ONCE;
		s->def_pos = behind;
	} else if (s->def_state == DEF_ONCE && f->pos >= s->def_pos + WAL_COPY_DISTANCE_BYTES) {
		s->def_state = DEF_TWICE;
		s->def_pos = behind;
	}
}

/* A key's copies are counted like a definition's: a change begins anew, where the definition itself is safe. */
static void key_seen(const struct wal_frame *f, struct series *s, const struct wal_keys *k)
{
	uint64_t behind = f->pos + f->payload.n + f->payload.n / 128 + 4096;
	bool change = k->now != s->key_no || k->v[k->now] != s->keys[k->now];
	keys_set(s, k);
	if (s->def_state == DEF_ONCE)
		return;
	if (change) {
		s->def_state = KEY_ONCE;
		s->def_pos = behind;
	} else if (s->def_state == KEY_ONCE && f->pos >= s->def_pos + WAL_COPY_DISTANCE_BYTES) {
		s->def_state = DEF_TWICE;
		s->def_pos = behind;
	}
}

/* A definition of the log that is not known yet, with what it hashes to. */
struct definition {
	uint64_t ref;
	struct span wire;
	struct wal_keys keys;
	struct hash128 x;
};

enum { DEFINE_AHEAD = 16 };

static errc define(struct place *p, struct tenant *tn, const struct definition *def, struct err *err)
{
	struct head *h = p->head;
	struct replay_state *r = state_of(h);
	struct shard *sh = &h->shards[head_shard_of(h, def->x)];
	struct labels l = {r->labels, 0};
	if (def->wire.n > HEAD_SERIES_WIRE_BYTES || !labels_from_canonical(def->wire, l.v, LIMIT_LABELS_DECODE, &l.n)) {
		damage(p, "a definition that is none");
		return OK;
	}
	struct series **place = ref_place(h, r, def->ref);
	if (!place)
		return err_set(err, ERR_NOMEM, "replay: no memory for %" PRIu64 " series", atomic_load(&h->n_series));
	pthread_mutex_lock(&sh->mu);
	struct series *s = (struct series *)head_table_find_locked(h, sh, def->x, tn->idx, def->wire);
	errc rc = s ? OK : head_series_new_locked(h, sh, tn, def->x, l, 0, &s, err);
	uint64_t newest = s ? atomic_load_explicit(&s->ref, memory_order_relaxed) : 0;
	if (rc == OK && s->def_state != DEF_NONE && newest > def->ref) {
		/* An earlier life of the series, whose definition outlived a checkpoint's newer one. */
		rc = old_key_put(r, def->ref, &def->keys, err);
		*place = s;
	} else if (rc == OK) {
		/* The newest name is the one that new samples get: its definition is the last to leave the log. */
		if (s->def_state != DEF_NONE && newest != def->ref) {
			struct wal_keys keys = series_keys(s);
			rc = old_key_put(r, newest, &keys, err);
		}
		atomic_store_explicit(&s->ref, def->ref, memory_order_relaxed);
		s->def_state = DEF_NONE;
		keys_set(s, &def->keys);
		def_seen(p->f, s);
		*place = s;
		ref_used(h, def->ref);
	}
	pthread_mutex_unlock(&sh->mu);
	return rc;
}

static errc replay_series(struct place *p, uint8_t kind, struct span body, struct err *err)
{
	errc rc = OK;
	struct wal_series_dec d;
	struct tenant *tn;
	if (!wal_series_open(kind, body, &d) || !tenant_valid(d.tenant)) {
		damage(p, "definitions of no tenant");
		return OK;
	}
	TRY(head_tenant_get(p->head, d.tenant, &tn, err));
	struct definition defs[DEFINE_AHEAD];
	struct replay_state *r = state_of(p->head);
	bool ok = true, more = true;
	while (more) {
		/* Where a group of them will be looked for is asked of memory before the first is needed. */
		uint32_t n = 0;
		while (n < DEFINE_AHEAD && (more = wal_series_next(&d, &defs[n].ref, &defs[n].wire, &defs[n].keys, &ok))) {
			struct definition *def = &defs[n];
			if (def->ref == 0 || def->ref > REF_MAX) {
				damage(p, "a definition that is none");
				continue;
			}
			/* The other copy. A ref is never given twice while the log has it, so nothing is compared. */
			struct series *s = ref_series(r, def->ref);
			if (s) {
				if (atomic_load_explicit(&s->ref, memory_order_relaxed) == def->ref) {
					keys_set(s, &def->keys);
					def_seen(p->f, s);
				} else {
					TRY(old_key_put(r, def->ref, &def->keys, err));
				}
				continue;
			}
			def->x = head_hash(p->head, tn, def->wire);
			const struct shard *sh = &p->head->shards[head_shard_of(p->head, def->x)];
			if (sh->slots)
				__builtin_prefetch(&sh->slots[def->x.lo & sh->mask]);
			n++;
		}
		for (uint32_t i = 0; i < n; i++)
			TRY(define(p, tn, &defs[i], err));
	}
	if (!ok)
		damage(p, "definitions cut short");
fail:
	return rc;
}

static errc replay_keys(struct place *p, struct span body, struct err *err)
{
	errc rc = OK;
	struct replay_state *r = state_of(p->head);
	struct rd rd = rd_of(body.p, body.n);
	struct wal_key_change c = {0};
	bool ok;
	while (wal_keys_next(&rd, &c, &ok)) {
		struct series *s = ref_series(r, c.ref);
		if (s && atomic_load_explicit(&s->ref, memory_order_relaxed) == c.ref)
			key_seen(p->f, s, &c.keys);
		else if (s)
			TRY(old_key_put(r, c.ref, &c.keys, err));
	}
	if (!ok)
		damage(p, "keys cut short");
fail:
	return rc;
}

/* Unlinks the window; it is destroyed when no reader holds it. */
static void window_drop(struct replay_state *r, struct window_slot *e)
{
	struct window *w = e->w;
	e->w = NULL;
	r->dropped = true;
	if (!w->frozen)
		head_window_freeze(w);
	head_window_ref(w);
	head_window_leave(w);
	if (atomic_fetch_sub_explicit(&w->refs, 1, memory_order_acq_rel) == 1)
		head_window_destroy(w);
}

static errc known_cut(struct head *h, const struct wal_cut *cut, const struct wal_frame *f, struct err *err)
{
	errc rc = OK;
	struct window_slot *e;
	TRY(window_entry(state_of(h), cut->window, &e, err));
	struct cut_record c = {.cut = *cut, .last_segment = UINT64_MAX};
	if (f && f->seq == 0) {
		c.copies = 2;
	} else if (f) {
		c.copies = 1;
		c.pos_max = f->pos + f->payload.n + f->payload.n / 128 + 4096;
	}
	TRY(head_cuts_put(h, &c, err));
	if (cut->upto_seq > e->upto_seq)
		e->upto_seq = cut->upto_seq;
	if (cut->upto_seq == WAL_CUT_ALL) {
		e->closed = true;
		if (e->w)
			window_drop(state_of(h), e);
	}
fail:
	return rc;
}

errc head_known_cut(struct head *h, const struct wal_cut *cut, struct err *err)
{
	errc rc = replay_begin(h, err);
	return rc == OK ? known_cut(h, cut, NULL, err) : rc;
}

static bool window_fits(const struct wal_window *w)
{
	return tenant_valid(w->tenant) && w->range_ms >= HEAD_RANGE_MIN_MS && w->range_ms <= HEAD_RANGE_MAX_MS && w->start_ms % w->range_ms == 0 &&
	       w->start_ms >= INT64_MIN + HEAD_RANGE_MAX_MS && w->start_ms <= INT64_MAX - 2 * HEAD_RANGE_MAX_MS;
}

static errc replay_window(struct place *p, const struct wal_window *ww, struct tenant *tn, struct window_slot *e, struct err *err)
{
	int64_t now = io_now_ms(), opened = ulid_time_ms(ww->window);
	pthread_mutex_lock(&tn->mu);
	errc rc = head_window_open_locked(tn, &ww->window, ww->start_ms, ww->range_ms, opened < now ? opened : now, &e->w, err);
	pthread_mutex_unlock(&tn->mu);
	if (rc == OK) {
		atomic_store(&e->w->last_arrival_ms, now);
		atomic_store(&e->w->first_segment, p->f->segment);
	}
	return rc;
}

struct replay_item {
	struct ref_page *page;
	struct wseries *ws; /* NULL: not known yet */
	uint32_t i;	    /* of the sample in its block */
	uint16_t at;	    /* of its series in the page */
};

static struct series *item_series(const struct replay_item *x)
{
	return x->page->v[x->at];
}

/* The known series of a block of samples, in order, and the keys of them; asks for the cache lines that insertion will touch. */
static uint32_t items_find(
	struct replay_state *r, const struct tenant *tn, const struct window *w, struct wal_sample *s, uint32_t n, struct replay_item *v)
{
	uint32_t m = 0;
	for (uint32_t i = 0; i < n; i++)
		ref_ahead(r, s[i].ref);
	for (uint32_t i = 0; i < n; i++) {
		struct replay_item x = {
			.page = s[i].ref <= REF_MAX ? ref_page(r, s[i].ref) : NULL, .i = i, .at = (uint16_t)(s[i].ref % REFS_PER_PAGE)};
		if (!x.page || !item_series(&x))
			continue;
		if (x.page->serial == w->serial)
			x.ws = x.page->ws[x.at];
		__builtin_prefetch(item_series(&x));
		if (x.ws)
			__builtin_prefetch(x.ws, 1);
		v[m++] = x;
	}
	n = m;
	m = 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct series *se = item_series(&v[i]);
		if (se->tenant != tn->idx)
			continue;
		struct wal_sample *x = &s[v[i].i];
		x->key = se->keys[x->key_no];
		if (UNLIKELY(atomic_load_explicit(&se->ref, memory_order_relaxed) != x->ref))
			x->key = r->old_keys ? old_key(r, x->ref)->keys.v[x->key_no] : 0;
		if (v[i].ws && v[i].ws->n > 0)
			__builtin_prefetch(part_piece(w->parts[v[i].ws->shard].p, v[i].ws->last), 1);
		v[m++] = v[i];
	}
	return m;
}

static struct wseries *item_ws_locked(struct head *h, struct window *w, const struct replay_item *x, struct err *err)
{
	struct series *se = item_series(x);
	if (!se->ws || se->ws_window != w->serial) {
		se->ws = head_window_series_locked(w, &h->shards[se->shard], se->shard, se, err);
		se->ws_window = w->serial;
	}
	if (x->page->serial != w->serial) {
		memset(x->page->ws, 0, sizeof x->page->ws);
		x->page->serial = w->serial;
	}
	x->page->ws[x->at] = se->ws;
	return se->ws;
}

/* The snapshot that ws is from has the samples of this frame. */
static inline bool loaded(const struct replay_state *r, const struct wseries *ws, uint64_t seq)
{
	return seq - r->loaded_seq < ws->known;
}

/* Samples of neighbouring refs are in all shards: all locks are held for a batch, instead of one for each sample. */
static errc items_insert(struct head *h, struct window *w, uint64_t seq, const struct wal_sample *samples, const struct replay_item *v, uint32_t n,
	uint64_t *stored, struct err *err)
{
	errc rc = OK;
	const struct replay_state *r = state_of(h);
	for (uint32_t i = 0; i < h->n_shards; i++)
		pthread_mutex_lock(&h->shards[i].mu);
	for (uint32_t i = 0; i < n; i++) {
		const struct wal_sample *s = &samples[v[i].i];
		struct wseries *ws = v[i].ws ? v[i].ws : item_ws_locked(h, w, &v[i], err);
		enum insert_verdict verdict = INSERT_FAILED;
		struct wpart *part = NULL;
		if (ws) {
			bool late;
			part = w->parts[ws->shard].p;
			/* A snapshot goes on behind its mark, series by series. */
			verdict = loaded(r, ws, seq) ? INSERT_DUPLICATE
						     : head_leaf_insert_locked(w, &h->shards[ws->shard], part, ws, s->t, s->v, true, &late, err);
		}
		if (verdict == INSERT_STORED) {
			part->n_samples++;
			part->min_t = s->t < part->min_t ? s->t : part->min_t;
			part->max_t = s->t > part->max_t ? s->t : part->max_t;
			(*stored)++;
		} else if (verdict == INSERT_FAILED) {
			rc = err && err->code ? err->code : ERR_NOMEM;
			break;
		}
	}
	for (uint32_t i = 0; i < h->n_shards; i++)
		pthread_mutex_unlock(&h->shards[i].mu);
	return rc;
}

/* The window that a record's samples go to; *out NULL: they are in a block, or the record is damaged. */
static errc record_window(struct place *p, const struct wal_window *ww, struct window **out, struct err *err)
{
	errc rc = OK;
	struct tenant *tn;
	struct window_slot *e;
	*out = NULL;
	if (!window_fits(ww)) {
		damage(p, "samples of no window");
		return OK;
	}
	TRY(window_entry(state_of(p->head), ww->window, &e, err));
	if (e->closed || p->f->seq <= e->upto_seq)
		return OK;
	TRY(head_tenant_get(p->head, ww->tenant, &tn, err));
	if (e->w && (e->w->tenant != tn || e->w->start != ww->start_ms || e->w->range != ww->range_ms)) {
		damage(p, "a window with another tenant or time than before");
		return OK;
	}
	if (!e->w)
		TRY(replay_window(p, ww, tn, e, err));
	*out = e->w;
fail:
	return rc;
}

/* What a record of w had: samples that went into it, and those whose series or key is not known. */
static void record_counts(struct place *p, struct window *w, uint64_t stored, uint64_t unknown, uint64_t keyless)
{
	struct head *h = p->head;
	atomic_fetch_add(&w->n_samples, stored);
	atomic_fetch_add(&h->n_samples, stored);
	if (unknown + keyless == 0)
		return;
	metric_add(h->m.unknown, unknown + keyless);
	if (state_of(h)->unknown_seq != p->f->seq)
		log_error("samples of series whose definitions or keys were lost: dropped", LU64("definitions", unknown), LU64("keys", keyless),
			LU64("segment", p->f->segment), LU64("offset", p->f->offset), LU64("frame", p->f->seq),
			LSPAN("tenant", head_tenant_name(w->tenant)));
	state_of(h)->unknown_seq = p->f->seq;
}

static errc replay_samples(struct place *p, uint8_t kind, struct span body, struct err *err)
{
	errc rc = OK;
	struct head *h = p->head;
	struct replay_state *r = state_of(h);
	struct wal_samples_dec d;
	struct window *w;
	if (!wal_samples_open(kind, body, &d)) {
		damage(p, "samples of no window");
		return OK;
	}
	TRY(record_window(p, &d.w, &w, err));
	if (!w)
		return OK;
	struct wal_sample samples[WAL_BLOCK_SAMPLES];
	struct replay_item v[WAL_BLOCK_SAMPLES];
	bool ok = true;
	uint64_t unknown = 0, keyless = 0, stored = 0, ref_max = 0;
	uint32_t n;
	while (rc == OK && (n = (uint32_t)wal_samples_block(&d, samples, &ok)) > 0) {
		uint32_t known = items_find(r, w->tenant, w, samples, n, v), m = 0;
		bool right = wal_samples_values(&d, samples, n, &ok);
		if (!ok)
			break;
		unknown += n - known;
		for (uint32_t i = 0; i < n; i++)
			ref_max = samples[i].ref > ref_max ? samples[i].ref : ref_max;
		for (uint32_t i = 0; i < known; i++) {
			const struct wal_sample *s = &samples[v[i].i];
			if (!right && !s->exact)
				keyless++;
			else if (!range_has(w->start, w->range, s->t))
				damage(p, "a sample outside its window");
			else
				v[m++] = v[i];
		}
		rc = items_insert(h, w, p->f->seq, samples, v, m, &stored, err);
	}
	if (rc == OK && !ok)
		damage(p, "samples cut short");
	if (ref_max <= REF_MAX)
		ref_used(h, ref_max);
	record_counts(p, w, stored, unknown, keyless);
fail:
	return rc;
}

/* One histogram of the log, which may be anything. *stored counts it. */
static errc replay_histogram(struct place *p, struct window *w, struct series *s, const struct wal_histogram *wh, uint64_t *stored, struct err *err)
{
	errc rc = OK;
	struct head *h = p->head;
	struct arena arena;
	struct histogram unpacked;
	enum sample_kind kind;
	struct err why = {0};
	arena_init(&arena, LIMIT_HISTOGRAM_MEMORY_BYTES);
	rc = wh->packed.n <= LIMIT_HISTOGRAM_PACKED_BYTES ? histogram_unpack(wh->packed, &arena, &kind, &unpacked, &why) : ERR_CORRUPT;
	if (rc == OK)
		rc = histogram_judge(kind, &unpacked, &arena, &why);
	arena_free(&arena);
	if (rc == ERR_NOMEM)
		return err_set(err, rc, "%s", why.msg);
	if (rc != OK || !range_has(w->start, w->range, wh->t)) {
		damage(p, rc != OK ? "a histogram that is none" : "a sample outside its window");
		return OK;
	}
	struct shard *sh = &h->shards[s->shard];
	pthread_mutex_lock(&sh->mu);
	if (!s->ws || s->ws_window != w->serial) {
		s->ws = head_window_series_locked(w, sh, s->shard, s, err);
		s->ws_window = w->serial;
	}
	bool late;
	struct wpart *part = s->ws ? w->parts[s->shard].p : NULL;
	enum insert_verdict v = INSERT_FAILED;
	if (s->ws)
		v = loaded(state_of(h), s->ws, p->f->seq) ? INSERT_DUPLICATE
							  : head_hist_insert_locked(w, sh, part, s->ws, wh->t, wh->packed, true, &late, err);
	if (v == INSERT_STORED) {
		part->n_samples++;
		part->min_t = wh->t < part->min_t ? wh->t : part->min_t;
		part->max_t = wh->t > part->max_t ? wh->t : part->max_t;
		++*stored;
	} else if (v == INSERT_FAILED) {
		rc = err && err->code ? err->code : ERR_NOMEM;
	}
	pthread_mutex_unlock(&sh->mu);
	return rc;
}

static errc replay_histograms(struct place *p, struct span body, struct err *err)
{
	errc rc = OK;
	struct replay_state *r = state_of(p->head);
	struct wal_histograms_dec d;
	struct wal_histogram wh;
	struct window *w;
	uint64_t unknown = 0, stored = 0;
	bool ok = true;
	if (!wal_histograms_open(body, &d)) {
		damage(p, "histograms of no window");
		return OK;
	}
	TRY(record_window(p, &d.w, &w, err));
	if (!w)
		return OK;
	while (rc == OK && wal_histograms_next(&d, &wh, &ok)) {
		struct ref_page *page = wh.ref <= REF_MAX ? ref_page(r, wh.ref) : NULL;
		struct series *s = page ? page->v[wh.ref % REFS_PER_PAGE] : NULL;
		if (wh.ref <= REF_MAX)
			ref_used(p->head, wh.ref);
		if (!s || s->tenant != w->tenant->idx) {
			unknown++;
			continue;
		}
		rc = replay_histogram(p, w, s, &wh, &stored, err);
	}
	if (rc == OK && !ok)
		damage(p, "histograms cut short");
	record_counts(p, w, stored, unknown, 0);
fail:
	return rc;
}

static errc replay_records(struct place *p, struct span body, bool group, struct err *err)
{
	errc rc = OK;
	struct rd rd = rd_of(body.p, body.n);
	struct wal_record rec;
	bool ok;
	while (rc == OK && wal_record_next(&rd, &rec, &ok)) {
		struct wal_cut cut;
		const char *why = NULL;
		switch (rec.kind) {
		case WAL_SERIES:
		case WAL_SERIES_1:
			rc = replay_series(p, rec.kind, rec.body, err);
			break;
		case WAL_KEYS:
			rc = replay_keys(p, rec.body, err);
			break;
		case WAL_SAMPLES:
		case WAL_SAMPLES_1:
			rc = replay_samples(p, rec.kind, rec.body, err);
			break;
		case WAL_HISTOGRAMS:
			rc = replay_histograms(p, rec.body, err);
			break;
		case WAL_CUT:
			if (wal_cut_get(rec.body, &cut))
				rc = known_cut(p->head, &cut, p->f, err);
			else
				damage(p, "a cut that is none");
			break;
		case WAL_EXEMPLARS:
			rc = head_exemplars_replay(p->head, rec.body, &why, err);
			break;
		case WAL_METADATA:
			rc = head_metadata_replay(p->head, rec.body, &why, err);
			break;
		case WAL_GROUP:
			if (group)
				damage(p, "a group in a group");
			else
				rc = replay_records(p, rec.body, true, err);
			break;
		default:
			break;
		}
		if (why)
			damage(p, why);
	}
	if (rc == OK && !ok)
		damage(p, "a record cut short");
	return rc;
}

/* ---- a log bigger than memory ---- */

static errc peek_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct head *h = arg;
	errc rc = OK;
	struct rd rd = rd_of(f->payload.p, f->payload.n);
	struct wal_record rec;
	bool ok;
	struct wal_cut cut;
	while (rc == OK && wal_record_next(&rd, &rec, &ok))
		if (rec.kind == WAL_CUT && wal_cut_get(rec.body, &cut))
			rc = known_cut(h, &cut, f, err);
	return rc;
}

static errc cut_fullest(struct head *h, const struct wal_frame *f, struct err *err)
{
	errc rc = OK;
	struct replay_state *r = state_of(h);
	struct window_slot *full = NULL;
	for (uint64_t i = 0; r->windows && i <= r->window_mask; i++) {
		struct window_slot *e = &r->windows[i];
		if (e->used && e->w && (!full || atomic_load(&e->w->memory_bytes) > atomic_load(&full->w->memory_bytes)))
			full = e;
	}
	/* Series and symbols alone can pass the limit; blocks of a few samples each would not help. */
	if (!full || atomic_load(&full->w->memory_bytes) < h->cfg.max_memory_bytes / 64) {
		r->cut_again_seq = f->seq + 256;
		return OK;
	}
	struct window *w = full->w;
	if (h->n_announces == h->cap_announces) {
		size_t cap = h->cap_announces ? h->cap_announces * 2 : 8;
		struct announce *v = realloc(h->announces, cap * sizeof *v);
		CHECK(v, ERR_NOMEM, "no memory for a block's announcement");
		h->announces = v;
		h->cap_announces = cap;
	}
	struct wal_cut cut = {.window = w->ulid, .block = ulid_new(), .upto_seq = f->seq};
	struct cut_result res;
	head_window_freeze(w);
	rc = head_cut_write(w, cut.block, cut.upto_seq, &res, err);
	if (rc != OK) {
		/* It goes on growing: the log must be read to its end, and the disk may have room then. */
		head_window_thaw(w);
		log_warn("replay: a window could not be cut to make room in memory", LULID("window", w->ulid), LERR(err));
		metric_add(h->m.cut_failures, 1);
		r->cut_again_seq = f->seq + 1024;
		if (err)
			*err = (struct err){0};
		return OK;
	}
	if (res.n_series > 0) {
		TRY(known_cut(h, &cut, NULL, err));
		h->announces[h->n_announces++] = (struct announce){.cut = cut, .bytes = res.bytes};
		log_info("replay: window cut to make room in memory", LULID("window", cut.window), LULID("block", cut.block),
			LU64("samples", res.n_samples), LU64("upto_frame", f->seq));
	}
	window_drop(r, window_slot(r, cut.window));
fail:
	return rc;
}

/* A series without a window leaves the table, by its newest ref. */
static void leave_unused(struct head *h, struct series *s, uint64_t ref)
{
	if (!s || atomic_load(&s->ref) != ref || s->n_windows > 0)
		return;
	struct shard *sh = &h->shards[s->shard];
	pthread_mutex_lock(&sh->mu);
	s->ws = NULL;
	head_series_remove_locked(h, sh, head_tenant_at(h, s->tenant), s);
	pthread_mutex_unlock(&sh->mu);
}

/* ---- what a snapshot brings ---- */

errc head_replay_reserve(struct head *h, uint64_t n_series, struct err *err)
{
	errc rc = OK;
	TRY(replay_begin(h, err));
	uint64_t mask = 63, pages = n_series / REFS_PER_PAGE;
	while (pages + pages / 16 + 1 > (mask + 1) / 4 * 3)
		mask = mask * 2 + 1;
	if (!h->replay->refs)
		CHECK(refs_resize(h, h->replay, mask), ERR_NOMEM, "no memory for %" PRIu64 " series", n_series);
fail:
	return rc;
}

errc head_replay_series(struct head *h, uint64_t ref, struct series *s, struct err *err)
{
	errc rc = OK;
	TRY(replay_begin(h, err));
	CHECK(ref > 0 && ref <= REF_MAX, ERR_CORRUPT, "a series with the number %" PRIu64, ref);
	struct series **place = ref_place(h, h->replay, ref);
	CHECK(place, ERR_NOMEM, "no memory for %" PRIu64 " series", atomic_load(&h->n_series));
	CHECK(!*place, ERR_CORRUPT, "two series with the number %" PRIu64, ref);
	*place = s;
	ref_page(h->replay, ref)->loaded |= (uint16_t)(1u << ref % REFS_PER_PAGE);
	ref_used(h, ref);
fail:
	return rc;
}

errc head_replay_window(
	struct head *h, struct span tenant, const struct wal_window *ww, uint64_t first_segment, uint64_t seq, struct window **out, struct err *err)
{
	errc rc = OK;
	struct window_slot *e;
	struct tenant *tn;
	*out = NULL;
	TRY(replay_begin(h, err));
	TRY(window_entry(h->replay, ww->window, &e, err));
	CHECK(window_fits(ww) && !e->w, ERR_CORRUPT, "window %s", ulid_text(ww->window).s);
	/* A part of it was cut by a replay behind this snapshot: what is not in that block stands behind the mark. One cut before is not in the snapshot. */
	if (e->closed || (e->upto_seq > 0 && e->upto_seq >= seq))
		return OK;
	TRY(head_tenant_get(h, tenant, &tn, err));
	const struct wal_frame f = {.segment = first_segment};
	struct place p = {.head = h, .f = &f};
	TRY(replay_window(&p, ww, tn, e, err));
	*out = e->w;
fail:
	return rc;
}

void head_replay_idle(struct head *h, const struct series *s)
{
	uint64_t ref = atomic_load_explicit(&s->ref, memory_order_relaxed);
	ref_page(h->replay, ref)->idle |= (uint16_t)(1u << ref % REFS_PER_PAGE);
}

errc head_replay_cut(struct head *h, const struct cut_record *c, struct err *err)
{
	errc rc = OK;
	struct window_slot *e;
	TRY(replay_begin(h, err));
	TRY(window_entry(h->replay, c->cut.window, &e, err));
	TRY(head_cuts_put(h, c, err));
	e->upto_seq = c->cut.upto_seq > e->upto_seq ? c->cut.upto_seq : e->upto_seq;
	e->closed |= c->cut.upto_seq == WAL_CUT_ALL;
fail:
	return rc;
}

bool head_replay_has_file(struct head *h, struct ulid window, const char *name)
{
	struct replay_state *r = h->replay;
	const struct window_slot *e = r && r->windows ? window_slot(r, window) : NULL;
	return e && e->w && head_chunkfile_named(&e->w->file, name);
}

void head_replay_loaded(struct head *h, uint64_t seq, uint64_t synced)
{
	h->replay->loaded_seq = seq;
	h->replay->last_seq = seq;
	h->replay->synced_seq = synced;
}

void head_replay_clear(struct head *h)
{
	struct replay_state *r = h->replay;
	if (!r)
		return;
	for (uint64_t i = 0; r->windows && i <= r->window_mask; i++)
		if (r->windows[i].used && r->windows[i].w)
			window_drop(r, &r->windows[i]);
	for (uint64_t i = 0; r->refs && i <= r->ref_mask; i++) {
		const struct ref_page *p = r->refs[i].page;
		for (uint32_t k = 0; p && k < REFS_PER_PAGE; k++)
			leave_unused(h, p->v[k], r->refs[i].number * REFS_PER_PAGE + k);
	}
	if (r->refs)
		head_memory_sub(h, (r->ref_mask + 1) * sizeof *r->refs);
	head_table_free(r->refs, r->ref_mask + 1, sizeof *r->refs);
	head_pool_destroy(&r->pages);
	r->refs = NULL;
	r->n_pages = r->ref_mask = 0;
	free(r->old_keys);
	r->old_keys = NULL;
	r->n_old_keys = r->old_mask = 0;
	memset(r->near, 0, sizeof r->near);
	r->loaded_seq = r->synced_seq = r->last_seq = 0;
}

struct again {
	struct head *head;
	uint64_t upto;
	bool done;
};

static errc again_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct again *a = arg;
	a->done = f->seq > a->upto;
	return a->done ? ERR_CANCELED : head_replay_frame(a->head, f, err);
}

/* The snapshot named a chunk that can't be read, and the tail needs it: what was read so far is read again, from the log alone. */
static errc replay_again(struct head *h, const struct wal_frame *f, struct err *err)
{
	struct again a = {.head = h, .upto = f->seq};
	log_error("the log is replayed from its beginning", LERR(err));
	*err = (struct err){0};
	head_snapshot_drop(h, "the log's tail could not be replayed over it");
	head_replay_clear(h);
	errc rc = wal_peek(h->cfg.wal, again_frame, &a, err);
	return a.done ? OK : rc;
}

errc head_replay_frame(void *head, const struct wal_frame *f, struct err *err)
{
	struct head *h = head;
	struct place p = {.head = h, .f = f};
	errc rc = OK;
	struct err local = {0};
	if (!err)
		err = &local;
	TRY(replay_begin(h, err));
	struct replay_state *r = h->replay;
	/* A checkpoint's definitions are in the snapshot or behind its mark; their keys would be newer than what stands there. */
	if (f->seq == 0 && r->loaded_seq > 0)
		return peek_frame(h, f, err);
	rc = replay_records(&p, f->payload, false, err);
	if ((rc == ERR_CORRUPT || rc == ERR_IO) && r->loaded_seq > 0)
		rc = replay_again(h, f, err);
	TRY(rc);
	if (f->seq > r->last_seq)
		r->last_seq = f->seq;
	if (f->seq > 0 && f->seq >= r->cut_again_seq && head_memory(h) > h->cfg.max_memory_bytes / 5 * 4) {
		if (!r->peeked) {
			r->peeked = true;
			TRY(wal_peek(h->cfg.wal, peek_frame, h, err));
		}
		if (head_memory(h) > h->cfg.max_memory_bytes / 5 * 4)
			TRY(cut_fullest(h, f, err));
	}
fail:
	return rc;
}

static int newest_first(const void *x, const void *y)
{
	const struct window *a = *(struct window *const *)x, *b = *(struct window *const *)y;
	if (a->start != b->start)
		return a->start < b->start ? -1 : 1;
	if (a->range != b->range)
		return a->range < b->range ? -1 : 1;
	return ulid_cmp(b->ulid, a->ulid);
}

/* Of several open windows of one tenant and time only the newest was still taking samples. */
static errc close_superseded(struct tenant *tn, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&tn->mu);
	struct window **v = malloc((tn->n_windows + 1) * sizeof(struct window *));
	CHECK(v, ERR_NOMEM, "no memory for a list of %u windows", tn->n_windows);
	if (tn->n_windows > 0) {
		memcpy(v, tn->windows, tn->n_windows * sizeof(struct window *));
		qsort(v, tn->n_windows, sizeof(struct window *), newest_first);
	}
	for (uint32_t i = 1; i < tn->n_windows; i++) {
		if (v[i]->start != v[i - 1]->start || v[i]->range != v[i - 1]->range)
			continue;
		v[i]->state = WINDOW_CLOSING;
		v[i]->cut_now = true;
	}
fail:
	pthread_mutex_unlock(&tn->mu);
	free(v);
	return rc;
}

errc head_replay_end(struct head *h, struct err *err)
{
	errc rc = OK;
	struct replay_state *r = h->replay;
	/* The log lacks the end of what it had synced: definitions that stood there are not in it any more. */
	bool defs_lost = r && r->synced_seq > r->last_seq;
	if (defs_lost)
		log_error("the log ends before the frame that it had synced when the snapshot was written: its samples come from the snapshot",
			LU64("frame", r->last_seq), LU64("synced", r->synced_seq));
	for (uint64_t i = 0; r && r->refs && i <= r->ref_mask; i++) {
		const struct ref_page *p = r->refs[i].page;
		for (uint32_t k = 0; defs_lost && p && k < REFS_PER_PAGE; k++)
			if (p->v[k])
				p->v[k]->def_state = DEF_NONE;
		for (uint32_t k = 0; p && k < REFS_PER_PAGE; k++) {
			/* Without looking at it: what got a window still has it. */
			if ((!p->ws[k] && !(p->loaded >> k & 1)) || p->idle >> k & 1 || r->dropped)
				leave_unused(h, p->v[k], r->refs[i].number * REFS_PER_PAGE + k);
		}
	}
	head_replay_free(h);
	for (uint32_t i = 0; i < h->n_tenants; i++)
		TRY(close_superseded(h->tenants[i], err));
	struct wal_status st;
	wal_status(h->cfg.wal, &st);
	h->key_floor = st.pos;
	pthread_mutex_lock(&h->cuts_mu);
	for (size_t i = 0; i < h->cuts.n; i++)
		h->cuts.v[i].last_segment = st.segment_now;
	pthread_mutex_unlock(&h->cuts_mu);
fail:
	return rc;
}
