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
 *     frame ─▶ definitions, keys      head_replay_defs.c        ┐
 *              floats, histograms     head_replay_samples.c     ├ refs, keys, windows by name: head_replay_tables.c
 *                └─▶ lanes ─▶ windows head_replay_lanes.c       │
 *     snapshot ─▶                     head_replay_load.c        ┘
 */
#include <inttypes.h>
#include "head/head_replay_int.h"

/* ---- records ---- */

void replay_damage(struct replay_place *p, const char *what)
{
	if (!p->damaged)
		log_error("a log frame with a right checksum holds what it should not: skipped", LSTR("what", what), LU64("segment", p->f->segment),
			LU64("offset", p->f->offset), LU64("frame", p->f->seq));
	p->damaged = true;
}

static errc known_cut(struct head *h, const struct wal_cut *cut, const struct wal_frame *f, struct err *err)
{
	errc rc = OK;
	struct window_slot *e;
	TRY(replay_window_entry(replay_of(h), cut->window, &e, err));
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
		if (e->w) {
			TRY(replay_lanes_drain(replay_of(h), err));
			replay_window_drop(replay_of(h), e);
		}
	}
fail:
	return rc;
}

errc head_known_cut(struct head *h, const struct wal_cut *cut, struct err *err)
{
	errc rc = replay_begin(h, err);
	return rc == OK ? known_cut(h, cut, NULL, err) : rc;
}

static errc replay_records(struct replay_place *p, struct span body, bool group, struct err *err)
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
				replay_damage(p, "a cut that is none");
			break;
		case WAL_EXEMPLARS:
			rc = head_exemplars_replay(p->head, rec.body, &why, err);
			break;
		case WAL_METADATA:
			rc = head_metadata_replay(p->head, rec.body, &why, err);
			break;
		case WAL_GROUP:
			if (group)
				replay_damage(p, "a group in a group");
			else
				rc = replay_records(p, rec.body, true, err);
			break;
		default:
			break;
		}
		if (why)
			replay_damage(p, why);
	}
	if (rc == OK && !ok)
		replay_damage(p, "a record cut short");
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
	struct replay_state *r = replay_of(h);
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
	replay_window_drop(r, replay_window_slot(r, cut.window));
fail:
	return rc;
}

/* ---- the whole ---- */

void replay_leave_unused(struct head *h, struct series *s, uint64_t ref)
{
	if (!s || atomic_load(&s->ref) != ref || s->n_windows > 0)
		return;
	struct shard *sh = &h->shards[s->shard];
	pthread_mutex_lock(&sh->mu);
	s->ws = NULL;
	head_series_remove_locked(h, sh, head_tenant_at(h, s->tenant), s);
	pthread_mutex_unlock(&sh->mu);
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
static errc replay_again(struct head *h, uint64_t upto, struct err *err)
{
	struct again a = {.head = h, .upto = upto};
	log_error("the log is replayed from its beginning", LERR(err));
	*err = (struct err){0};
	head_snapshot_drop(h, "the log's tail could not be replayed over it");
	head_replay_clear(h);
	errc rc = wal_peek(h->cfg.wal, again_frame, &a, err);
	return a.done || rc == OK ? replay_lanes_drain(h->replay, err) : rc;
}

/* rc: of frames up to this one. */
static errc replay_settle(struct head *h, uint64_t seq, errc rc, struct err *err)
{
	return (rc == ERR_CORRUPT || rc == ERR_IO) && h->replay->loaded_seq > 0 ? replay_again(h, seq, err) : rc;
}

errc head_replay_frame(void *head, const struct wal_frame *f, struct err *err)
{
	struct head *h = head;
	struct replay_place p = {.head = h, .f = f};
	errc rc = OK;
	struct err local = {0};
	if (!err)
		err = &local;
	TRY(replay_begin(h, err));
	struct replay_state *r = h->replay;
	/* A checkpoint's definitions are in the snapshot or behind its mark; their keys would be newer than what stands there. */
	if (f->seq == 0 && r->loaded_seq > 0)
		return peek_frame(h, f, err);
	if (!r->lanes)
		TRY(replay_lanes_open(h, err));
	rc = replay_records(&p, f->payload, false, err);
	if (rc == OK && replay_lanes_failed(r))
		rc = replay_lanes_drain(r, err);
	TRY(replay_settle(h, f->seq, rc, err));
	if (f->seq > r->last_seq)
		r->last_seq = f->seq;
	if (f->seq > 0 && f->seq >= r->cut_again_seq && head_memory(h) > h->cfg.max_memory_bytes / 5 * 4) {
		if (!r->peeked) {
			r->peeked = true;
			TRY(wal_peek(h->cfg.wal, peek_frame, h, err));
		}
		TRY(replay_settle(h, f->seq, replay_lanes_drain(r, err), err));
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
	struct err local = {0};
	if (!err)
		err = &local;
	if (r)
		TRY(replay_settle(h, UINT64_MAX, replay_lanes_drain(r, err), err));
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
			if (!((p->seen | (p->loaded & ~p->idle)) >> k & 1) || r->dropped)
				replay_leave_unused(h, p->v[k], r->refs[i].number * REFS_PER_PAGE + k);
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
