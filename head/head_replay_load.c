/* head/head_replay_load.c - what a snapshot brings goes into replay's tables before the first frame of the log's tail. See head_snapshot_load.c. */
#include <inttypes.h>
#include "head/head_replay_int.h"

errc head_replay_reserve(struct head *h, uint64_t n_series, struct err *err)
{
	errc rc = OK;
	TRY(replay_begin(h, err));
	uint64_t mask = 63, pages = n_series / REFS_PER_PAGE;
	while (pages + pages / 16 + 1 > (mask + 1) / 4 * 3)
		mask = mask * 2 + 1;
	if (!h->replay->refs)
		CHECK(replay_refs_resize(h, h->replay, mask), ERR_NOMEM, "no memory for %" PRIu64 " series", n_series);
fail:
	return rc;
}

errc head_replay_series(struct head *h, uint64_t ref, struct series *s, struct err *err)
{
	errc rc = OK;
	TRY(replay_begin(h, err));
	CHECK(ref > 0 && ref <= REF_MAX, ERR_CORRUPT, "a series with the number %" PRIu64, ref);
	struct series **place = replay_ref_place(h, h->replay, ref);
	CHECK(place, ERR_NOMEM, "no memory for %" PRIu64 " series", atomic_load(&h->n_series));
	CHECK(!*place, ERR_CORRUPT, "two series with the number %" PRIu64, ref);
	*place = s;
	replay_ref_page(h->replay, ref)->loaded |= 1u << ref % REFS_PER_PAGE;
	replay_ref_used(h, ref);
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
	TRY(replay_window_entry(h->replay, ww->window, &e, err));
	CHECK(replay_window_fits(ww) && !e->w, ERR_CORRUPT, "window %s", ulid_text(ww->window).s);
	/* A part of it was cut by a replay behind this snapshot: what is not in that block stands behind the mark. One cut before is not in the snapshot. */
	if (e->closed || (e->upto_seq > 0 && e->upto_seq >= seq))
		return OK;
	TRY(head_tenant_get(h, tenant, &tn, err));
	TRY(replay_window_open(ww, first_segment, tn, e, err));
	*out = e->w;
fail:
	return rc;
}

void head_replay_idle(struct head *h, const struct series *s)
{
	uint64_t ref = atomic_load_explicit(&s->ref, memory_order_relaxed);
	replay_ref_page(h->replay, ref)->idle |= 1u << ref % REFS_PER_PAGE;
}

errc head_replay_cut(struct head *h, const struct cut_record *c, struct err *err)
{
	errc rc = OK;
	struct window_slot *e;
	TRY(replay_begin(h, err));
	TRY(replay_window_entry(h->replay, c->cut.window, &e, err));
	TRY(head_cuts_put(h, c, err));
	e->upto_seq = c->cut.upto_seq > e->upto_seq ? c->cut.upto_seq : e->upto_seq;
	e->closed |= c->cut.upto_seq == WAL_CUT_ALL;
fail:
	return rc;
}

bool head_replay_has_file(struct head *h, struct ulid window, const char *name)
{
	struct replay_state *r = h->replay;
	const struct window_slot *e = r && r->windows ? replay_window_slot(r, window) : NULL;
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
	/* What the lanes found wrong is of what goes now. */
	(void)!replay_lanes_drain(r, NULL);
	for (uint64_t i = 0; r->windows && i <= r->window_mask; i++)
		if (r->windows[i].used && r->windows[i].w)
			replay_window_drop(r, &r->windows[i]);
	for (uint64_t i = 0; r->refs && i <= r->ref_mask; i++) {
		const struct ref_page *p = r->refs[i].page;
		for (uint32_t k = 0; p && k < REFS_PER_PAGE; k++)
			replay_leave_unused(h, p->v[k], r->refs[i].number * REFS_PER_PAGE + k);
	}
	replay_tables_clear(h);
	r->loaded_seq = r->synced_seq = r->last_seq = 0;
}
