/* head/head_replay_samples.c - samples of the log: the window that a record names, the series that its refs mean, the values that they are told against.
 *
 * No bounds of time are judged again. Floats are put into their windows by the lanes (head_replay_lanes.c); histograms, which are few or large, here.
 */
#include <inttypes.h>
#include "base/tenant.h"
#include "head/head_replay_int.h"

/* ---- windows ---- */

bool replay_window_fits(const struct wal_window *w)
{
	return tenant_valid(w->tenant) && w->range_ms >= HEAD_RANGE_MIN_MS && w->range_ms <= HEAD_RANGE_MAX_MS && w->start_ms % w->range_ms == 0 &&
	       w->start_ms >= INT64_MIN + HEAD_RANGE_MAX_MS && w->start_ms <= INT64_MAX - 2 * HEAD_RANGE_MAX_MS;
}

errc replay_window_open(const struct wal_window *ww, uint64_t segment, struct tenant *tn, struct window_slot *e, struct err *err)
{
	int64_t now = io_now_ms(), opened = ulid_time_ms(ww->window);
	pthread_mutex_lock(&tn->mu);
	errc rc = head_window_open_locked(tn, &ww->window, ww->start_ms, ww->range_ms, opened < now ? opened : now, &e->w, err);
	pthread_mutex_unlock(&tn->mu);
	if (rc == OK) {
		atomic_store(&e->w->last_arrival_ms, now);
		atomic_store(&e->w->first_segment, segment);
	}
	return rc;
}

void replay_window_drop(struct replay_state *r, struct window_slot *e)
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

/* The window that a record's samples go to; *out NULL: they are in a block, or the record is damaged. */
static errc record_window(struct replay_place *p, const struct wal_window *ww, struct window **out, struct err *err)
{
	errc rc = OK;
	struct tenant *tn;
	struct window_slot *e;
	*out = NULL;
	if (!replay_window_fits(ww)) {
		replay_damage(p, "samples of no window");
		return OK;
	}
	TRY(replay_window_entry(replay_of(p->head), ww->window, &e, err));
	if (e->closed || p->f->seq <= e->upto_seq)
		return OK;
	TRY(head_tenant_get(p->head, ww->tenant, &tn, err));
	if (e->w && (e->w->tenant != tn || e->w->start != ww->start_ms || e->w->range != ww->range_ms)) {
		replay_damage(p, "a window with another tenant or time than before");
		return OK;
	}
	if (!e->w)
		TRY(replay_window_open(ww, p->f->segment, tn, e, err));
	*out = e->w;
fail:
	return rc;
}

/* What a record of w had of samples whose series or key is not known. */
static void record_counts(struct replay_place *p, const struct window *w, uint64_t unknown, uint64_t keyless)
{
	struct head *h = p->head;
	if (unknown + keyless == 0)
		return;
	metric_add(h->m.unknown, unknown + keyless);
	if (replay_of(h)->unknown_seq != p->f->seq)
		log_error("samples of series whose definitions or keys were lost: dropped", LU64("definitions", unknown), LU64("keys", keyless),
			LU64("segment", p->f->segment), LU64("offset", p->f->offset), LU64("frame", p->f->seq),
			LSPAN("tenant", head_tenant_name(w->tenant)));
	replay_of(h)->unknown_seq = p->f->seq;
}

/* ---- floats ---- */

struct found_ref {
	struct ref_page *page;
	uint32_t i;  /* of the sample in its block */
	uint32_t at; /* of its series in the page */
};

static void ref_ahead(const struct replay_state *r, uint64_t ref)
{
	uint64_t number = ref / REFS_PER_PAGE;
	if (r->refs && number != r->near[number % REFS_NEAR].number)
		__builtin_prefetch(&r->refs[replay_spread(number) & r->ref_mask]);
}

/* The known series of a block of samples, in order, and the keys of them. */
static uint32_t block_find(struct replay_state *r, const struct tenant *tn, struct wal_sample *s, uint32_t n, struct found_ref *v)
{
	uint32_t m = 0;
	for (uint32_t i = 0; i < n; i++)
		ref_ahead(r, s[i].ref);
	for (uint32_t i = 0; i < n; i++) {
		struct found_ref x = {
			.page = s[i].ref <= REF_MAX ? replay_ref_page(r, s[i].ref) : NULL, .i = i, .at = (uint32_t)(s[i].ref % REFS_PER_PAGE)};
		if (!x.page || !x.page->v[x.at])
			continue;
		__builtin_prefetch(x.page->v[x.at]);
		v[m++] = x;
	}
	n = m;
	m = 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct series *se = v[i].page->v[v[i].at];
		if (se->tenant != tn->idx)
			continue;
		struct wal_sample *x = &s[v[i].i];
		x->key = se->keys[x->key_no];
		if (UNLIKELY(atomic_load_explicit(&se->ref, memory_order_relaxed) != x->ref))
			x->key = r->old_keys ? replay_old_key(r, x->ref)->keys.v[x->key_no] : 0;
		v[m++] = v[i];
	}
	return m;
}

static uint32_t behind_mark(const struct replay_state *r, uint64_t seq)
{
	uint64_t n = seq - r->loaded_seq;
	return r->loaded_seq > 0 && n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

errc replay_samples(struct replay_place *p, uint8_t kind, struct span body, struct err *err)
{
	errc rc = OK;
	struct replay_state *r = replay_of(p->head);
	struct wal_samples_dec d;
	struct window *w;
	if (!wal_samples_open(kind, body, &d)) {
		replay_damage(p, "samples of no window");
		return OK;
	}
	TRY(record_window(p, &d.w, &w, err));
	if (!w)
		return OK;
	struct wal_sample samples[WAL_BLOCK_SAMPLES];
	struct found_ref v[WAL_BLOCK_SAMPLES];
	bool ok = true;
	uint64_t unknown = 0, keyless = 0, ref_max = 0;
	uint32_t n, behind = behind_mark(r, p->f->seq);
	while ((n = (uint32_t)wal_samples_block(&d, samples, &ok)) > 0) {
		uint32_t known = block_find(r, w->tenant, samples, n, v);
		bool right = wal_samples_values(&d, samples, n, &ok);
		if (!ok)
			break;
		unknown += n - known;
		for (uint32_t i = 0; i < n; i++)
			ref_max = samples[i].ref > ref_max ? samples[i].ref : ref_max;
		for (uint32_t i = 0; i < known; i++) {
			const struct wal_sample *s = &samples[v[i].i];
			struct series *se = v[i].page->v[v[i].at];
			if (!right && !s->exact) {
				keyless++;
				continue;
			}
			if (!range_has(w->start, w->range, s->t)) {
				replay_damage(p, "a sample outside its window");
				continue;
			}
			v[i].page->seen |= 1u << v[i].at;
			*replay_lanes_put(r, se->shard) = (struct replay_item){se, w, s->v, (uint32_t)(s->t - w->start), behind};
		}
	}
	if (!ok)
		replay_damage(p, "samples cut short");
	if (ref_max <= REF_MAX)
		replay_ref_used(p->head, ref_max);
	record_counts(p, w, unknown, keyless);
fail:
	return rc;
}

/* ---- histograms ---- */

/* One histogram of the log, which may be anything. *stored counts it. */
static errc replay_histogram(
	struct replay_place *p, struct window *w, struct series *s, const struct wal_histogram *wh, uint64_t *stored, struct err *err)
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
		replay_damage(p, rc != OK ? "a histogram that is none" : "a sample outside its window");
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
		v = replay_has(s->ws, behind_mark(replay_of(h), p->f->seq))
			    ? INSERT_DUPLICATE
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

errc replay_histograms(struct replay_place *p, struct span body, struct err *err)
{
	errc rc = OK;
	struct replay_state *r = replay_of(p->head);
	struct wal_histograms_dec d;
	struct wal_histogram wh;
	struct window *w;
	uint64_t unknown = 0, stored = 0;
	bool ok = true;
	if (!wal_histograms_open(body, &d)) {
		replay_damage(p, "histograms of no window");
		return OK;
	}
	TRY(record_window(p, &d.w, &w, err));
	if (!w)
		return OK;
	TRY(replay_lanes_drain(r, err));
	while (rc == OK && wal_histograms_next(&d, &wh, &ok)) {
		struct series *s = replay_ref_series(r, wh.ref);
		if (wh.ref <= REF_MAX)
			replay_ref_used(p->head, wh.ref);
		if (!s || s->tenant != w->tenant->idx) {
			unknown++;
			continue;
		}
		replay_ref_page(r, wh.ref)->seen |= 1u << wh.ref % REFS_PER_PAGE;
		rc = replay_histogram(p, w, s, &wh, &stored, err);
	}
	if (rc == OK && !ok)
		replay_damage(p, "histograms cut short");
	atomic_fetch_add_explicit(&w->n_samples, stored, memory_order_relaxed);
	atomic_fetch_add_explicit(&p->head->n_samples, stored, memory_order_relaxed);
	record_counts(p, w, unknown, 0);
fail:
	return rc;
}
