/* head/head_append.c - one request: every sample is judged, and the accepted ones go into their windows.
 *
 *     hash all series ─▶ by shard ─▶ find: known spellings, one hold of each shard's lock; nothing is stored yet
 *                                    the rest must be well-formed, or the request as a whole is refused
 *                                    pass 1: what was found, one hold of each shard's lock
 *                                    pass 2: other spellings of known series, under their home shards' locks
 *                                    pass 3: the rest is decoded, judged, looked up by its canonical bytes, made when new
 *     ─▶ records for the log (head_log.c), after the locks
 *
 * Room for everything that must not fail after a verdict (the log's records, the list of accepted samples) is made first. A verdict
 * that cannot be had for want of memory ends the request there: what was decided stands and is in the records.
 *
 * One file because the steps of a known series, a dozen of a few lines, are one loop to the compiler only while it sees them all.
 */
#include <inttypes.h>
#include "head/head_int.h"

enum { CTX_KEPT = 64, AHEAD = 12, CTX_KEPT_SAMPLES = 262144, MISSED_SEEN = 2, CTX_KEPT_DEFS = 256 };

/* ---- contexts ---- */

static void ctx_free(struct append_ctx *c)
{
	free(c->hashes);
	free(c->order);
	free(c->spare);
	free(c->missed);
	free(c->found);
	free(c->symbols);
	free(c->defs);
	free(c->samples);
	free(c->sorted);
	free(c->meta);
	free(c->sorted_meta);
	free(c->hists);
	free(c->sorted_hists);
	free(c->hist_meta);
	free(c->sorted_hist_meta);
	free(c->wins);
	free(c->win_slots);
	free(c->refused);
	arena_free(&c->arena);
	arena_free(&c->parse);
	buf_free(&c->wire);
	buf_free(&c->group);
	free(c);
}

static struct append_ctx *ctx_take(struct head *h)
{
	pthread_mutex_lock(&h->ctx_mu);
	struct append_ctx *c = h->ctxs;
	if (c) {
		h->ctxs = c->next;
		h->n_ctxs--;
	}
	pthread_mutex_unlock(&h->ctx_mu);
	if (c)
		return c;
	c = calloc(1, sizeof *c);
	if (!c)
		return NULL;
	arena_init(&c->arena, 4 * LIMIT_INGEST_BODY_BYTES * LIMIT_INGEST_DECODED_FACTOR);
	arena_init(&c->parse, LIMIT_INGEST_BODY_BYTES * LIMIT_INGEST_DECODED_FACTOR);
	buf_init(&c->wire, 64 * MIB);
	buf_init(&c->group, 4 * HEAD_LOG_GROUP_BYTES);
	c->cap_wins = 8;
	c->win_mask = 31;
	c->wins = calloc(c->cap_wins, sizeof *c->wins);
	c->win_slots = calloc((size_t)c->win_mask + 1, sizeof *c->win_slots);
	c->refused = calloc(ERRID_COUNT, sizeof *c->refused);
	if (!c->wins || !c->win_slots || !c->refused) {
		ctx_free(c);
		return NULL;
	}
	return c;
}

static void ctx_give(struct head *h, struct append_ctx *c)
{
	for (uint32_t i = 0; i < c->n_wins; i++)
		head_window_unref(c->wins[i].w);
	/* Reserved is much, touched little, unless there were definitions: those pages would stay resident. */
	if (c->n_defs > CTX_KEPT_DEFS)
		buf_free(&c->group);
	memset(c->win_slots, 0, ((size_t)c->win_mask + 1) * sizeof *c->win_slots);
	c->n_wins = 0;
	c->n_logged = c->n_defs = c->n_hists_logged = 0;
	arena_reset(&c->arena);
	bool keep = c->cap_samples <= CTX_KEPT_SAMPLES && c->cap_hists <= CTX_KEPT_SAMPLES / 4 && c->cap_symbols <= CTX_KEPT_SAMPLES &&
		    c->arena.held_bytes <= MIB && c->wire.cap <= MIB && c->cap_wins <= 1024;
	pthread_mutex_lock(&h->ctx_mu);
	keep = keep && h->n_ctxs < CTX_KEPT;
	if (keep) {
		c->next = h->ctxs;
		h->ctxs = c;
		h->n_ctxs++;
	}
	pthread_mutex_unlock(&h->ctx_mu);
	if (!keep)
		ctx_free(c);
}

void head_append_close(struct head *h)
{
	while (h->ctxs) {
		struct append_ctx *c = h->ctxs;
		h->ctxs = c->next;
		ctx_free(c);
	}
}

bool head_append_grow(void *pp, size_t n, size_t size)
{
	void *old;
	memcpy(&old, pp, sizeof old);
	void *p = realloc(old, n * size);
	if (p)
		memcpy(pp, &p, sizeof p);
	/* cppcheck-suppress memleak ; *pp owns it */
	return p != NULL;
}

static errc ctx_room(struct append_ctx *c, size_t n_series, size_t n_samples, struct err *err)
{
	if (n_series > c->cap_series) {
		size_t n = n_series + n_series / 4;
		if (!head_append_grow(&c->hashes, n, sizeof *c->hashes) || !head_append_grow(&c->order, n, sizeof *c->order) ||
			!head_append_grow(&c->spare, n, sizeof *c->spare) || !head_append_grow(&c->missed, n, sizeof *c->missed) ||
			!head_append_grow(&c->found, n, sizeof *c->found) || !head_append_grow(&c->defs, n, sizeof *c->defs))
			return err_set(err, ERR_NOMEM, "no memory for %zu series of a request", n_series);
		c->cap_series = n;
	}
	if (n_samples > c->cap_samples) {
		size_t n = n_samples + n_samples / 4;
		if (!head_append_grow(&c->samples, n, sizeof *c->samples) || !head_append_grow(&c->sorted, n, sizeof *c->sorted) ||
			!head_append_grow(&c->meta, n, sizeof *c->meta) || !head_append_grow(&c->sorted_meta, n, sizeof *c->sorted_meta))
			return err_set(err, ERR_NOMEM, "no memory for %zu samples of a request", n_samples);
		c->cap_samples = n;
	}
	return OK;
}

/* ---- windows of the request ---- */

static uint32_t win_slot(const struct append_ctx *c, int64_t t)
{
	int64_t start = floor_to(t, c->head->cfg.block_range_ms);
	return (uint32_t)((uint64_t)start * UINT64_C(0x9e3779b97f4a7c15) >> 32) & c->win_mask;
}

static bool win_has(const struct window *w, int64_t t)
{
	return range_has(w->start, w->range, t);
}

static errc win_add(struct append_ctx *c, int64_t t, struct err *err)
{
	if (c->n_wins == c->cap_wins) {
		uint32_t mask = c->win_mask * 2 + 1;
		uint32_t *slots = calloc((size_t)mask + 1, sizeof *slots);
		if (!slots || !head_append_grow(&c->wins, c->cap_wins * 2, sizeof *c->wins)) {
			free(slots);
			return err_set(err, ERR_NOMEM, "no memory for windows of a request");
		}
		c->cap_wins *= 2;
		free(c->win_slots);
		c->win_slots = slots;
		c->win_mask = mask;
		/* Windows of another length than the flag's are found again through the tenant. */
		for (uint32_t i = 0; i < c->n_wins; i++) {
			uint32_t s = win_slot(c, c->wins[i].w->start);
			c->wins[i].next = slots[s];
			slots[s] = i + 1;
		}
	}
	struct window *w;
	errc rc = head_tenant_window(c->tenant, t, c->batch->now_ms, &w, err);
	if (rc != OK)
		return rc;
	uint32_t s = win_slot(c, t);
	c->wins[c->n_wins] = (struct append_window){.w = w, .next = c->win_slots[s]};
	c->win_slots[s] = ++c->n_wins;
	c->cur = c->n_wins - 1;
	uint64_t seg = atomic_load_explicit(&w->first_segment, memory_order_relaxed);
	while (c->ticket->segment < seg && !atomic_compare_exchange_weak(&w->first_segment, &seg, c->ticket->segment))
		;
	return OK;
}

/* Makes c->cur the window that takes t; under the lock of shard number `shard`. */
static errc win_for(struct append_ctx *c, uint32_t shard, int64_t t, struct err *err)
{
	if (LIKELY(c->n_wins > 0 && win_has(c->wins[c->cur].w, t) && !c->wins[c->cur].w->parts[shard].frozen))
		return OK;
	/* The newest entry of a start comes first, so one that was closed meanwhile is not asked again. */
	for (uint32_t i = c->n_wins ? c->win_slots[win_slot(c, t)] : 0; i; i = c->wins[i - 1].next) {
		struct window *w = c->wins[i - 1].w;
		if (win_has(w, t) && !w->parts[shard].frozen) {
			c->cur = i - 1;
			return OK;
		}
	}
	return win_add(c, t, err);
}

/* ---- verdicts ---- */

static void refuse(struct append_ctx *c, struct head_series *out, enum errid id, int64_t t)
{
	if (out->refused++ == 0) {
		out->refused_id = id;
		out->refused_t = t;
	}
	c->refused[id]++;
}

static void refuse_all(struct append_ctx *c, struct head_series *out, enum errid id)
{
	for (uint32_t k = out->zero; k < out->n; k++)
		refuse(c, out, id, c->batch->samples[out->first + k].t);
	head_append_hists_refuse(c, out, id);
}

/* Window starts and ends are int64 themselves, so the last range of either end of time is out of reach whatever the bounds. */
static enum errid bounds(const struct append_ctx *c, int64_t t)
{
	if (UNLIKELY(t < c->batch->min_t || t < INT64_MIN + 2 * HEAD_RANGE_MAX_MS))
		return ERRID_TOO_OLD;
	if (UNLIKELY(t > c->batch->max_t || t > INT64_MAX - 2 * HEAD_RANGE_MAX_MS))
		return ERRID_TOO_FAR_AHEAD;
	return ERRID_NONE;
}

/* Whether this ticket's records must carry the definition. Two copies must stand in front of these records whatever the order in which
 * requests reach the log, and far enough from each other. */
static bool def_needed(const struct append_ctx *c, const struct series *s)
{
	return !(s->def_state == DEF_TWICE && s->def_pos <= c->ticket->pos_min);
}

static void def_logged(const struct append_ctx *c, struct series *s)
{
	if (s->def_state == DEF_NONE || s->def_state == KEY_NONE) {
		s->def_state = s->def_state == DEF_NONE ? DEF_ONCE : KEY_ONCE;
		s->def_pos = c->ticket->pos_max;
	} else if (s->def_state != DEF_TWICE && c->ticket->pos_min >= s->def_pos + WAL_COPY_DISTANCE_BYTES) {
		/* Requests that were judged before a change of key are among those that have a ticket by now. */
		s->def_pos = s->def_state == KEY_ONCE ? wal_drawn_to(c->head->cfg.wal) : c->ticket->pos_max;
		s->def_state = DEF_TWICE;
	}
}

enum { KEY_CHANGE_AT = 16, KEY_FAR_BYTES = 3 };

/* Looked at once a chunk. A key costs some 20 bytes of log and saves two or more a sample; values that neither stay nor count have none that is near. The place of the
 * older key is free when everything that replay may ever read was written after the change before. */
static bool key_change(const struct head *h, struct series *s, uint64_t v, uint64_t before)
{
	uint64_t kept = wal_kept_from(h->cfg.wal);
	if (s->key_changed && (s->def_pos > kept || h->key_floor > kept))
		return false;
	if (wal_value_bytes(v, s->keys[s->key_no]) < KEY_FAR_BYTES || !(v == before || wal_value_whole(v)))
		return false;
	s->key_no ^= 1;
	s->key_changed = 1;
	s->keys[s->key_no] = v;
	s->def_state = KEY_NONE;
	return true;
}

/* Whether the zero in front of a series' samples is stored: it lies before them, in their window or one that is open, and the series has nothing at its
 * time or behind it. A series that is written without a break has, in the window that was asked last: then that is all that it costs. */
static bool zero_fits_locked(const struct append_ctx *c, uint32_t shard, const struct series *s, const struct head_sample *samples)
{
	int64_t t = samples[0].t;
	if (t >= samples[1].t || bounds(c, t) != ERRID_NONE || bounds(c, samples[1].t) != ERRID_NONE)
		return false;
	const struct window *w = c->n_wins ? c->wins[c->cur].w : NULL;
	if (LIKELY(w && s->ws && s->ws_window == w->serial && head_ws_newest(w, s->ws) >= t))
		return false;
	return head_window_zero_fits_locked(c->tenant, shard, s, t, samples[1].t);
}

/* Samples of series i of the batch go to s. `wire`: its canonical bytes, valid until the request ends; p == NULL: not at hand. */
static errc append_series_locked(
	struct append_ctx *c, struct shard *sh, uint32_t shard, struct series *s, uint32_t i, struct span wire, struct err *err)
{
	errc rc = OK;
	struct head_series *out = &c->batch->series[i];
	const struct head_sample *samples = c->batch->samples + out->first;
	uint64_t ref = atomic_load_explicit(&s->ref, memory_order_relaxed);
	uint32_t def = UINT32_MAX;
	bool young = def_needed(c, s);
	if (young && s->def_state <= DEF_TWICE && !wire.p) {
		buf_clear(&c->wire);
		head_series_wire(c->head, s, &c->wire);
		CHECK(!c->wire.failed, ERR_NOMEM, "no memory for a definition");
		wire = arena_dup(&c->arena, span_of(c->wire.p, c->wire.n));
		CHECK(wire.p, ERR_NOMEM, "no memory for a definition");
	}
	const bool zero = UNLIKELY(out->zero) && zero_fits_locked(c, shard, s, samples);
	for (uint32_t k = out->zero && !zero; k < out->n; k++) {
		int64_t t = samples[k].t;
		enum errid id = bounds(c, t);
		if (id != ERRID_NONE) {
			refuse(c, out, id, t);
			continue;
		}
		TRY(win_for(c, shard, t, err));
		struct window *w = c->wins[c->cur].w;
		struct wseries *ws = s->ws;
		if (UNLIKELY(!ws || s->ws_window != w->serial)) {
			ws = head_window_series_locked(w, sh, shard, s, err);
			if (!ws)
				return err ? err->code : ERR_NOMEM;
			s->ws = ws;
			s->ws_window = w->serial;
		}
		bool late;
		struct wpart *part = w->parts[shard].p;
		bool look = ws->n == KEY_CHANGE_AT - 1;
		uint64_t before = ws->v;
		switch (head_leaf_insert_locked(w, sh, part, ws, t, samples[k].v, c->batch->winner, &late, err)) {
		case INSERT_STORED:
		case INSERT_REPLACED:
			break;
		case INSERT_DUPLICATE:
			out->duplicate++;
			c->n_dup++;
			c->batch->leans = true;
			continue;
		case INSERT_CONFLICT:
			refuse(c, out, ERRID_DUPLICATE_TIMESTAMP, t);
			c->batch->leans = true;
			continue;
		case INSERT_FAILED:
			return err && err->code ? err->code : ERR_NOMEM;
		}
		out->stored++;
		c->n_late += late;
		part->n_samples++;
		if (t < part->min_t)
			part->min_t = t;
		if (t > part->max_t)
			part->max_t = t;
		c->wins[c->cur].n++;
		if (UNLIKELY(look) && !young)
			young = key_change(c->head, s, samples[k].v, before);
		if (young && def == UINT32_MAX) {
			if (s->def_state == DEF_NONE)
				s->keys[0] = samples[k].v;
			def = head_append_def_locked(c, s, wire);
		}
		uint32_t at = out->first + k;
		c->samples[at] = (struct wal_sample){.ref = ref, .t = t, .v = samples[k].v, .key = s->keys[s->key_no], .key_no = s->key_no};
		c->meta[at] = (struct log_meta){.win = c->cur, .def = def};
		c->n_logged++;
		if (UNLIKELY(zero) && k == 0) { /* it is nobody's sample */
			out->stored--;
			c->n_zeros++;
		}
	}
	if (UNLIKELY(out->n_hist > 0))
		TRY(head_append_hists_locked(c, sh, shard, s, out, wire, young, def, err));
fail:
	return rc;
}

/* ---- for histograms (head_append_hist.c) ---- */

enum errid head_append_bounds(const struct append_ctx *c, int64_t t)
{
	return bounds(c, t);
}

errc head_append_place_locked(
	struct append_ctx *c, struct shard *sh, uint32_t shard, struct series *s, int64_t t, struct wseries **ws, struct err *err)
{
	errc rc = win_for(c, shard, t, err);
	if (rc != OK)
		return rc;
	struct window *w = c->wins[c->cur].w;
	if (!s->ws || s->ws_window != w->serial) {
		struct wseries *found = head_window_series_locked(w, sh, shard, s, err);
		if (!found)
			return err ? err->code : ERR_NOMEM;
		s->ws = found;
		s->ws_window = w->serial;
	}
	*ws = s->ws;
	return OK;
}

uint32_t head_append_def_locked(struct append_ctx *c, struct series *s, struct span wire)
{
	uint32_t def = (uint32_t)c->n_defs++;
	uint64_t ref = atomic_load_explicit(&s->ref, memory_order_relaxed);
	bool whole = s->def_state <= DEF_TWICE;
	c->defs[def] = (struct log_def){.ref = ref, .wire = whole ? wire : (struct span){NULL, 0}, .keys = series_keys(s), .group = UINT32_MAX};
	def_logged(c, s);
	return def;
}

/* Order of c->order[0..n) by shard_of; c->spare is scratch. Returns the start of each shard's run in begin[0..n_shards]. */
static void by_shard(struct append_ctx *c, uint32_t n, uint32_t (*shard_of)(const struct append_ctx *, uint32_t), uint32_t *begin)
{
	uint32_t shards = c->head->n_shards;
	memset(begin, 0, (shards + 1) * sizeof *begin);
	for (uint32_t k = 0; k < n; k++)
		begin[shard_of(c, c->order[k]) + 1]++;
	for (uint32_t k = 0; k < shards; k++)
		begin[k + 1] += begin[k];
	uint32_t at[HEAD_SHARDS_MAX];
	memcpy(at, begin, shards * sizeof *at);
	for (uint32_t k = 0; k < n; k++)
		c->spare[at[shard_of(c, c->order[k])]++] = c->order[k];
	uint32_t *swap = c->order;
	c->order = c->spare;
	c->spare = swap;
}

static uint32_t shard_by_hash(const struct append_ctx *c, uint32_t i)
{
	return head_shard_of(c->head, c->hashes[i]);
}

/* Once it is found. */
static uint32_t shard_by_home(const struct append_ctx *c, uint32_t i)
{
	return c->found[i].shard;
}

/* Put aside by pass 1 for pass 2. */
struct alias_seen {
	struct series *series;
	uint64_t ref;
	uint32_t i, shard;
};

/* In the shard that is its home. */
static void found_here(struct append_ctx *c, const struct shard *sh, uint32_t i, struct series *s)
{
	c->found[i] = (struct found){
		.series = s,
		.ref = atomic_load_explicit(&s->ref, memory_order_relaxed) & HEAD_REF_MASK,
		.shard = (uint8_t)(sh - c->head->shards),
	};
}

/* The slow way of one series: other spellings, and a slot whose 16 bits were another's. */
static void find_one_locked(struct append_ctx *c, struct shard *sh, uint32_t i, struct alias_seen *aliases, uint32_t *n_aliases)
{
	uintptr_t p = head_table_find_locked(c->head, sh, c->hashes[i], c->tenant->idx, c->batch->series[i].wire);
	c->found[i] = (struct found){0};
	if (p && !(p & 1)) {
		found_here(c, sh, i, (struct series *)p);
		return;
	}
	struct alias *al = p ? (struct alias *)(p - 1) : NULL;
	if (al && atomic_load_explicit(&al->series->ref, memory_order_relaxed) == al->ref) {
		aliases[(*n_aliases)++] = (struct alias_seen){al->series, al->ref, i, al->shard};
		return;
	}
	if (al)
		head_alias_remove_locked(sh, al);
	c->missed[i] = 1;
	c->n_missed++;
}

/* Where the series of c->order[k] may be: the first slot with its 16 bits is nearly always the one. */
static void find_candidate(struct append_ctx *c, const struct shard *sh, uint32_t i)
{
	struct hash128 x = c->hashes[i];
	table_slot sl = 0;
	for (uint64_t at = x.lo & sh->mask; (sl = sh->slots[at]) && (sl ^ head_slot_tag(x)) >> 48; at = (at + 1) & sh->mask)
		;
	uintptr_t p = head_slot_address(sl);
	c->found[i].series = p & 1 ? NULL : (struct series *)p;
	__builtin_prefetch((void *)p);
	__builtin_prefetch((const char *)p + 56); /* it may begin at any multiple of 8 */
}

static void find_verify_locked(struct append_ctx *c, struct shard *sh, uint32_t i, struct alias_seen *aliases, uint32_t *n_aliases)
{
#ifndef HEAD_VERIFY
	const struct found *f = &c->found[i];
	if (LIKELY(f->series && f->series->hash.lo == c->hashes[i].lo && f->series->hash.hi == c->hashes[i].hi)) {
		found_here(c, sh, i, f->series);
		return;
	}
#endif
	find_one_locked(c, sh, i, aliases, n_aliases);
}

/* Looks order[a..b) up. A million series are never in the cache, so each step asks for the lines of the next one AHEAD series before it is there: slot, series. */
static void find_locked(struct append_ctx *c, struct shard *sh, uint32_t a, uint32_t b, struct alias_seen *aliases, uint32_t *n_aliases)
{
	if (!sh->slots) {
		for (; a < b; a++)
			find_one_locked(c, sh, c->order[a], aliases, n_aliases);
		return;
	}
	for (uint32_t k = a; k < b + 2 * AHEAD; k++) {
		if (k < b)
			__builtin_prefetch(&sh->slots[c->hashes[c->order[k]].lo & sh->mask]);
		if (k >= a + AHEAD && k < b + AHEAD)
			find_candidate(c, sh, c->order[k - AHEAD]);
		if (k >= a + 2 * AHEAD)
			find_verify_locked(c, sh, c->order[k - 2 * AHEAD], aliases, n_aliases);
	}
}

/* The same for spellings of 2.0: from the slot to the alias, and from there to the series. An alias that is stale shows in pass_known. */
static void find_spelled_candidate(struct append_ctx *c, const struct shard *sh, uint32_t i)
{
	struct hash128 x = c->hashes[i];
	table_slot sl = 0;
	for (uint64_t at = x.lo & sh->mask; (sl = sh->slots[at]) && (sl ^ head_slot_tag(x)) >> 48; at = (at + 1) & sh->mask)
		;
	uintptr_t p = head_slot_address(sl);
	c->found[i].series = p & 1 ? (struct series *)(p - 1) : NULL; /* the alias, for a moment */
	__builtin_prefetch(c->found[i].series);
}

static void find_spelled_verify_locked(struct append_ctx *c, struct shard *sh, uint32_t i, struct alias_seen *aliases, uint32_t *n_aliases)
{
#ifndef HEAD_VERIFY
	const struct alias *al = (const void *)c->found[i].series;
	if (LIKELY(al && al->hash.lo == c->hashes[i].lo && al->hash.hi == c->hashes[i].hi)) {
		c->found[i] = (struct found){al->series, al->ref, al->shard};
		__builtin_prefetch(al->series);
		return;
	}
#endif
	find_one_locked(c, sh, i, aliases, n_aliases);
}

static void find_spelled_locked(struct append_ctx *c, struct shard *sh, uint32_t a, uint32_t b, struct alias_seen *aliases, uint32_t *n_aliases)
{
	if (!sh->slots) {
		for (; a < b; a++)
			find_one_locked(c, sh, c->order[a], aliases, n_aliases);
		return;
	}
	for (uint32_t k = a; k < b + 2 * AHEAD; k++) {
		if (k < b)
			__builtin_prefetch(&sh->slots[c->hashes[c->order[k]].lo & sh->mask]);
		if (k >= a + AHEAD && k < b + AHEAD)
			find_spelled_candidate(c, sh, c->order[k - AHEAD]);
		if (k >= a + 2 * AHEAD)
			find_spelled_verify_locked(c, sh, c->order[k - 2 * AHEAD], aliases, n_aliases);
	}
}

/* Requests that come together begin with different shards, or all would wait for the first one. */
static uint32_t shard_in_turn(const struct append_ctx *c, uint32_t k)
{
	return (uint32_t)(c->ticket->no + k) & (c->head->n_shards - 1);
}

static void pass_find(struct append_ctx *c, const uint32_t *begin, struct alias_seen *aliases, uint32_t *n_aliases)
{
	struct head *h = c->head;
	void (*find)(struct append_ctx *, struct shard *, uint32_t, uint32_t, struct alias_seen *, uint32_t *) =
		c->batch->symbols ? find_spelled_locked : find_locked;
	for (uint32_t k = 0; k < h->n_shards; k++) {
		uint32_t shard = shard_in_turn(c, k), a = begin[shard], b = begin[shard + 1];
		if (a == b)
			continue;
		struct shard *sh = &h->shards[shard];
		pthread_mutex_lock(&sh->mu);
		find(c, sh, a, b, aliases, n_aliases);
		pthread_mutex_unlock(&sh->mu);
	}
}

/* canonical: its wire bytes are those that the head itself would write; of 1.0, where nearly all senders sort, that is found in one pass. */
static errc labels_of(struct append_ctx *c, uint32_t i, struct labels *l, bool *canonical, struct err *why)
{
	struct span wire = c->batch->series[i].wire;
	*canonical = false;
	if (c->batch->symbols)
		return head_spelling_labels(c, i, l, why);
	l->v = arena_alloc(&c->parse, LIMIT_LABELS_PER_SERIES * sizeof *l->v);
	if (!l->v)
		return err_set(why, ERR_NOMEM, "no memory for labels");
	*canonical = labels_from_canonical(wire, l->v, LIMIT_LABELS_PER_SERIES, &l->n);
	return *canonical ? OK : labels_from_wire(wire, LIMIT_LABELS_DECODE, &c->parse, l, why);
}

/* A known spelling was decoded once and is well-formed. What is not known must be protobuf with names in UTF-8, or nothing of the request is stored:
 * such bytes are a broken sender's, and the rest of them is not to be trusted either. */
static errc well_formed(struct append_ctx *c, struct err *err)
{
	for (uint32_t i = 0; i < c->batch->n_series && c->n_missed > 0; i++) {
		if (!c->missed[i] || c->missed[i] == MISSED_SEEN)
			continue;
		struct labels l;
		struct err why = {0};
		arena_reset(&c->parse);
		bool canonical;
		errc rc = labels_of(c, i, &l, &canonical, &why);
		if (rc == ERR_NOMEM)
			return err_set(err, ERR_NOMEM, "%s", why.msg);
		if (rc == ERR_LIMIT)
			continue; /* refused alone */
		if (rc != OK)
			return err_id(err, ERRID_PROTOBUF, ERR_INVALID, "series %" PRIu32 " of the request: %s; nothing was stored", i, why.msg);
		for (uint32_t k = 0; k < l.n; k++)
			if (!span_is_utf8(l.v[k].name) || (span_is(l.v[k].name, "__name__") && !span_is_utf8(l.v[k].value))) {
				char text[512];
				return err_id(err, ERRID_LABEL_UTF8, ERR_INVALID,
					"a label's or the metric's name is not UTF-8 in series %s; nothing was stored",
					labels_format(l, text, sizeof text));
			}
	}
	return OK;
}

/* It may have gone with its last window since it was found: then it is new again. */
static void known_ahead(struct append_ctx *c, uint32_t i)
{
	struct found *f = &c->found[i];
	if (UNLIKELY(!f->series))
		return;
	if (UNLIKELY(atomic_load_explicit(&f->series->ref, memory_order_relaxed) != f->ref)) {
		f->series = NULL;
		c->missed[i] = 1;
	} else if (LIKELY(f->series->ws != NULL)) {
		__builtin_prefetch(f->series->ws, 1);
	}
}

/* Pieces are those of the window that the samples before went to. */
static void known_piece_ahead(const struct append_ctx *c, const struct series *s, uint32_t shard)
{
	const struct window *w = c->n_wins ? c->wins[c->cur].w : NULL;
	if (LIKELY(w && s && s->ws && s->ws_window == w->serial && s->ws->last))
		__builtin_prefetch(part_piece(w->parts[shard].p, s->ws->last), 1);
}

static errc pass_known(struct append_ctx *c, const uint32_t *begin, struct err *err)
{
	errc rc = OK;
	struct head *h = c->head;
	const bool spelled = c->batch->symbols != NULL;
	for (uint32_t turn = 0; turn < h->n_shards && rc == OK; turn++) {
		uint32_t shard = shard_in_turn(c, turn), a = begin[shard], b = begin[shard + 1];
		if (a == b)
			continue;
		struct shard *sh = &h->shards[shard];
		pthread_mutex_lock(&sh->mu);
		for (uint32_t k = a; k < b + 2 * AHEAD && rc == OK; k++) {
			if (k < b)
				known_ahead(c, c->order[k]);
			if (k >= a + AHEAD && k < b + AHEAD)
				known_piece_ahead(c, c->found[c->order[k - AHEAD]].series, shard);
			if (k < a + 2 * AHEAD)
				continue;
			uint32_t i = c->order[k - 2 * AHEAD];
			if (LIKELY(c->found[i].series != NULL))
				rc = append_series_locked(
					c, sh, shard, c->found[i].series, i, spelled ? (struct span){NULL, 0} : c->batch->series[i].wire, err);
		}
		pthread_mutex_unlock(&sh->mu);
	}
	return rc;
}

static int alias_order(const void *a, const void *b)
{
	const struct alias_seen *x = a, *y = b;
	if (x->shard != y->shard)
		return x->shard < y->shard ? -1 : 1;
	return (x->i > y->i) - (x->i < y->i);
}

static errc pass_aliases(struct append_ctx *c, struct alias_seen *v, uint32_t n, struct err *err)
{
	errc rc = OK;
	qsort(v, n, sizeof *v, alias_order);
	for (uint32_t k = 0; k < n && rc == OK;) {
		uint32_t shard = v[k].shard;
		struct shard *sh = &c->head->shards[shard];
		pthread_mutex_lock(&sh->mu);
		for (; k < n && v[k].shard == shard && rc == OK; k++) {
			if (atomic_load_explicit(&v[k].series->ref, memory_order_relaxed) == v[k].ref)
				rc = append_series_locked(c, sh, shard, v[k].series, v[k].i, (struct span){NULL, 0}, err);
			else
				c->missed[v[k].i] = 1;
		}
		pthread_mutex_unlock(&sh->mu);
	}
	return rc;
}

static enum errid errid_of_fault(enum labels_fault f)
{
	switch (f) {
	case LABELS_OK:
		return ERRID_NONE;
	case LABELS_EMPTY_SET:
	case LABELS_NO_NAME:
		return ERRID_NO_METRIC_NAME;
	case LABELS_EMPTY_NAME:
		return ERRID_EMPTY_LABEL_NAME;
	case LABELS_DUPLICATE_NAME:
		return ERRID_DUPLICATE_LABEL;
	case LABELS_BAD_UTF8:
		return ERRID_LABEL_UTF8;
	case LABELS_TOO_MANY:
		return ERRID_TOO_MANY_LABELS;
	case LABELS_NAME_TOO_LONG:
		return ERRID_LABEL_NAME_TOO_LONG;
	case LABELS_VALUE_TOO_LONG:
		return ERRID_LABEL_VALUE_TOO_LONG;
	}
	return ERRID_BAD_REQUEST;
}

static bool full(const struct append_ctx *c)
{
	uint64_t max = c->batch->max_series;
	return UNLIKELY(max > 0) && atomic_load_explicit(&c->tenant->n_series, memory_order_relaxed) >= max;
}

/* A tenant that is full and sends new series all the same is refused for less than storing them would cost (head_full.c). false: judge it like any
 * other. */
static bool refuse_full(struct append_ctx *c, uint32_t i)
{
	struct head_series *out = &c->batch->series[i];
	if (!full(c) || out->n == 0)
		return false;
	for (uint32_t k = out->zero; k < out->n; k++)
		if (bounds(c, c->batch->samples[out->first + k].t) != ERRID_NONE)
			return false;
	if (!head_full_new(c, i, c->missed[i] == MISSED_SEEN))
		return false;
	refuse_all(c, out, ERRID_TENANT_SERIES);
	return true;
}

static errc append_unknown(struct append_ctx *c, uint32_t i, struct err *err)
{
	errc rc = OK;
	struct head *h = c->head;
	struct head_series *out = &c->batch->series[i];
	struct labels l;
	struct err why = {0};
	bool locked = false;
	struct shard *sh = NULL;
	uint32_t which;

	if (refuse_full(c, i))
		return OK;
	/* Nothing to keep: no series is made for samples that are all out of bounds. */
	uint32_t inside = 0;
	for (uint32_t k = out->zero; k < out->n; k++)
		inside += bounds(c, c->batch->samples[out->first + k].t) == ERRID_NONE;
	inside += head_append_hists_inside(c, out);

	arena_reset(&c->parse);
	bool canonical;
	rc = labels_of(c, i, &l, &canonical, &why);
	if (rc == ERR_NOMEM)
		return err_set(err, ERR_NOMEM, "%s", why.msg);
	if (rc != OK) {
		refuse_all(c, out, rc == ERR_LIMIT ? ERRID_TOO_MANY_LABELS : ERRID_PROTOBUF);
		return OK;
	}
	enum errid id = errid_of_fault(labels_normalize(&l, &h->cfg.labels, &which));
	if (id == ERRID_NONE && l.n == 0)
		id = ERRID_NO_METRIC_NAME;
	if (id == ERRID_NONE && (canonical ? out->wire.n : labels_wire_size(l)) > HEAD_SERIES_WIRE_BYTES)
		id = ERRID_LABEL_VALUE_TOO_LONG;
	if (id != ERRID_NONE) {
		refuse_all(c, out, id);
		return OK;
	}
	if (inside == 0) {
		for (uint32_t k = out->zero; k < out->n; k++) {
			int64_t t = c->batch->samples[out->first + k].t;
			refuse(c, out, bounds(c, t), t);
		}
		head_append_hists_refuse(c, out, ERRID_NONE);
		return OK;
	}
	struct span wire = out->wire;
	if (!canonical) {
		buf_clear(&c->wire);
		labels_to_wire(l, &c->wire);
		CHECK(!c->wire.failed, ERR_NOMEM, "no memory for the labels of a series");
		wire = arena_dup(&c->arena, span_of(c->wire.p, c->wire.n));
		CHECK(wire.p, ERR_NOMEM, "no memory for the labels of a series");
		canonical = !c->batch->symbols && span_eq(wire, out->wire);
	}
	struct hash128 x = canonical ? c->hashes[i] : head_hash(h, c->tenant, wire);
	uint32_t shard = head_shard_of(h, x);
	sh = &h->shards[shard];
	pthread_mutex_lock(&sh->mu);
	locked = true;
	uintptr_t p = head_table_find_locked(h, sh, x, c->tenant->idx, wire);
	struct series *s = (struct series *)p;
	ASSERT(!(p & 1)); /* an alias is never canonical */
	if (!s) {
		rc = head_series_new_locked(h, sh, c->tenant, x, l, c->batch->max_series, &s, err);
		if (rc == ERR_LIMIT) {
			refuse_all(c, out, ERRID_TENANT_SERIES);
			rc = OK;
			goto fail;
		}
		TRY(rc);
		c->n_created++;
	}
	rc = append_series_locked(c, sh, shard, s, i, wire, err);
	uint64_t ref = atomic_load_explicit(&s->ref, memory_order_relaxed);
	bool alias = !canonical && s->n_windows > 0 && s->n_aliases < HEAD_ALIASES_PER_SERIES;
	if (alias)
		s->n_aliases++;
	if (s->n_windows == 0)
		head_series_remove_locked(h, sh, c->tenant, s);
	pthread_mutex_unlock(&sh->mu);
	locked = false;
	if (alias) {
		struct shard *own = &h->shards[shard_by_hash(c, i)];
		pthread_mutex_lock(&own->mu);
		head_alias_add_locked(h, own, c->hashes[i], out->wire, s, ref);
		pthread_mutex_unlock(&own->mu);
	}
fail:
	if (locked)
		pthread_mutex_unlock(&sh->mu);
	return rc;
}

static errc judge(struct append_ctx *c, struct err *err)
{
	errc rc = OK;
	struct head_batch *b = c->batch;
	uint32_t n = 0, n_bare = 0, n_aliases = 0;
	if (LIKELY(b->n_samples > 0))
		memset(c->meta, 0xff, b->n_samples * sizeof *c->meta);
	if (b->n_hists > 0)
		TRY(head_append_hists_pack(c, err));
	if (b->symbols)
		TRY(head_spelling_begin(c, err));
#ifdef HEAD_VERIFY
	if (b->symbols)
		TRY(head_spelling_wires(c, err));
#endif
	for (uint32_t i = 0; i < b->n_series; i++) {
		struct head_series *s = &b->series[i];
		ASSERT(s->first <= b->n_samples && s->n <= b->n_samples - s->first);
		s->refused_id = ERRID_NONE;
		s->stored = s->duplicate = s->refused = 0;
		s->hist_stored = s->hist_duplicate = s->hist_refused = 0;
		ASSERT(s->first_hist <= b->n_hists && s->n_hist <= b->n_hists - s->first_hist);
		s->refused_t = 0;
		c->missed[i] = 0;
		if (s->n == 0 && s->n_hist == 0) {
			/* Nothing to store; its labels must be well-formed all the same. */
			c->missed[i] = s->wire.n > 0;
			n_bare += c->missed[i];
			continue;
		}
		c->hashes[i] =
			b->symbols ? head_hash_refs(c->head, c->tenant, c->symbols, s->refs, s->n_labels) : head_hash(c->head, c->tenant, s->wire);
		c->order[n++] = i;
	}
	c->n_missed = n_bare;
	if (n + n_bare == 0)
		return OK;
	struct alias_seen *aliases = arena_alloc(&c->arena, n * sizeof *aliases);
	CHECK(aliases, ERR_NOMEM, "no memory for a request");
	uint32_t begin[HEAD_SHARDS_MAX + 1];
	by_shard(c, n, shard_by_hash, begin);
	pass_find(c, begin, aliases, &n_aliases);
	if (full(c)) {
		struct hash128 canonical;
		for (uint32_t k = 0; k < n; k++)
			if (c->missed[c->order[k]] && head_full_seen(c->head, c->hashes[c->order[k]], &canonical))
				c->missed[c->order[k]] = MISSED_SEEN;
	}
	if (b->symbols && c->head->n_shards > 1)
		by_shard(c, n, shard_by_home, begin);
	TRY(well_formed(c, err));
	TRY(pass_known(c, begin, err));
	TRY(pass_aliases(c, aliases, n_aliases, err));
	for (uint32_t i = 0; i < b->n_series; i++)
		if (c->missed[i])
			TRY(append_unknown(c, i, err));
fail:
	return rc;
}

static void account(struct append_ctx *c)
{
	struct head *h = c->head;
	for (uint32_t i = 0; i < c->n_wins; i++) {
		struct window *w = c->wins[i].w;
		atomic_fetch_add_explicit(&w->n_samples, c->wins[i].n + c->wins[i].n_hists, memory_order_relaxed);
		if (c->batch->now_ms > atomic_load_explicit(&w->last_arrival_ms, memory_order_relaxed))
			atomic_store_explicit(&w->last_arrival_ms, c->batch->now_ms, memory_order_relaxed);
	}
	atomic_fetch_add_explicit(&h->n_samples, c->n_logged + c->n_hists_logged, memory_order_relaxed);
	metric_add(h->m.appended, c->n_logged + c->n_hists_logged);
	metric_add(h->m.duplicate, c->n_dup + c->n_hist_dup);
	metric_add(h->m.late, c->n_late);
	metric_add(h->m.created, c->n_created);
	for (int id = 0; id < ERRID_COUNT; id++)
		if (c->refused[id] && h->m.refused[id])
			metric_add(h->m.refused[id], c->refused[id]);
	c->batch->tenant_series = atomic_load_explicit(&c->tenant->n_series, memory_order_relaxed);
	head_tenant_account(c->tenant, c->batch->now_ms, c->n_logged, c->n_created);
}

errc head_append(struct head *h, const struct wal_ticket *ticket, struct head_batch *b, struct buf *records, uint32_t *n_logged, struct err *err)
{
	errc rc = OK;
	struct err local = {0};
	*n_logged = 0;
	b->leans = false;
	if (!err)
		err = &local;
	if (head_memory(h) > h->cfg.max_memory_bytes) {
		head_cutter_wake(h);
		return err_id(err, ERRID_HEAD_MEMORY, ERR_AGAIN,
			"the head holds %llu bytes, its limit (--head.max-memory) is %llu: windows are being cut, try again",
			(unsigned long long)head_memory(h), (unsigned long long)h->cfg.max_memory_bytes);
	}
	struct append_ctx *c = ctx_take(h);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for a request");
	c->head = h;
	c->ticket = ticket;
	c->batch = b;
	c->cur = 0;
	c->n_late = c->n_dup = c->n_hist_dup = c->n_created = c->n_zeros = 0;
	memset(c->refused, 0, ERRID_COUNT * sizeof *c->refused);
	TRY(ctx_room(c, b->n_series, b->n_samples, err));
	buf_clear(&c->group); /* a request before this one may have been short of memory */
	CHECK(buf_reserve(records, ticket->bytes) && buf_reserve(&c->group, 2 * HEAD_LOG_GROUP_BYTES + HEAD_SERIES_WIRE_BYTES), ERR_NOMEM,
		"no memory for log records of %llu bytes", (unsigned long long)ticket->bytes);
	TRY(head_tenant_get(h, b->tenant, &c->tenant, err));
	rc = judge(c, err);
	size_t before = records->n;
	head_log_encode(c, records);
	ASSERT(!records->failed && records->n - before <= ticket->bytes);
	*n_logged = (uint32_t)(c->n_logged + c->n_hists_logged);
	memcpy(b->refused_by, c->refused, sizeof b->refused_by);
	b->stored = c->n_logged - c->n_zeros;
	b->duplicate = c->n_dup;
	b->hist_stored = c->n_hists_logged;
	b->hist_duplicate = c->n_hist_dup;
	account(c);
fail:
	ctx_give(h, c);
	return rc;
}
