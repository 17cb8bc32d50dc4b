/* head/head_checkpoint.c - what the log must still know when its oldest segments go: live series, cuts that samples may still ask for, exemplars
 * and metadata (head_exemplars.c, head_metadata.c): what stands of them in a closed segment was in memory before it was closed.
 *
 * A segment can go when no window that is not a block yet has samples in it. The definitions of all series in the table go into the
 * checkpoint, whatever segment they were in: a series is in the table exactly as long as some window object holds it, and every window object that
 * exists now is visited. One made later has its samples, and the definitions of series made later, behind what is removed.
 *
 * Nothing is done for less than a quarter of the log, unless it is over its limit: a checkpoint costs the definitions of all series.
 */
#include "head/head_int.h"

static errc put_series(struct head *h, struct wal_checkpoint *cp, struct window *w, struct buf *record, struct buf *wire, struct err *err)
{
	errc rc = OK;
	struct series *slice[HEAD_SLICE];
	uint64_t refs[HEAD_SLICE];
	struct wal_keys keys[HEAD_SLICE];
	for (uint32_t shard = 0; shard < h->n_shards; shard++) {
		struct shard *sh = &h->shards[shard];
		for (uint32_t at = 0;;) {
			uint32_t n = 0;
			pthread_mutex_lock(&sh->mu);
			struct wpart *p = w->parts[shard].p;
			bool end = !p || at >= p->n;
			for (uint32_t k = 0; p && k < HEAD_SLICE && at < p->n; k++, at++) {
				struct series *s = part_series(p, at);
				if (s->checkpoint == h->n_checkpoint)
					continue;
				s->checkpoint = h->n_checkpoint;
				refs[n] = atomic_load_explicit(&s->ref, memory_order_relaxed);
				keys[n] = series_keys(s);
				slice[n++] = s;
			}
			pthread_mutex_unlock(&sh->mu);
			if (end)
				break;
			/* The window is held, so its series and their labels stay. */
			struct wal_series_enc e;
			buf_clear(record);
			wal_series_begin(&e, record, head_tenant_name(w->tenant));
			for (uint32_t k = 0; k < n; k++) {
				buf_clear(wire);
				head_series_wire(h, slice[k], wire);
				CHECK(!wire->failed, ERR_NOMEM, "no memory for a checkpoint");
				wal_series_put(&e, refs[k], span_of(wire->p, wire->n), &keys[k]);
				if (record->n > HEAD_LOG_GROUP_BYTES) {
					wal_series_end(&e);
					CHECK(!record->failed, ERR_NOMEM, "no memory for a checkpoint");
					TRY(wal_checkpoint_put(cp, span_of(record->p, record->n), err));
					buf_clear(record);
					wal_series_begin(&e, record, head_tenant_name(w->tenant));
				}
			}
			wal_series_end(&e);
			CHECK(!record->failed, ERR_NOMEM, "no memory for a checkpoint");
			if (n > 0 && record->n > 0)
				TRY(wal_checkpoint_put(cp, span_of(record->p, record->n), err));
			CHECK(!atomic_load_explicit(&h->stop, memory_order_relaxed), ERR_CANCELED, "stopping");
		}
	}
fail:
	return rc;
}

static errc put_cuts(struct head *h, struct wal_checkpoint *cp, uint64_t upto, struct buf *record, struct cut_list *put, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&h->cuts_mu);
	put->v = malloc((h->cuts.n + 1) * sizeof *put->v);
	for (size_t i = 0; put->v && i < h->cuts.n; i++)
		if (h->cuts.v[i].last_segment > upto)
			put->v[put->n++] = h->cuts.v[i];
	pthread_mutex_unlock(&h->cuts_mu);
	CHECK(put->v, ERR_NOMEM, "no memory for a checkpoint");
	for (size_t i = 0; i < put->n; i++) {
		buf_clear(record);
		wal_cut_put(record, &put->v[i].cut);
		CHECK(!record->failed, ERR_NOMEM, "no memory for a checkpoint");
		TRY(wal_checkpoint_put(cp, span_of(record->p, record->n), err));
	}
fail:
	return rc;
}

static void cuts_are_safe(struct head *h, const struct cut_list *put)
{
	pthread_mutex_lock(&h->cuts_mu);
	for (size_t k = 0; k < put->n; k++)
		for (size_t i = 0; i < h->cuts.n; i++)
			if (ulid_eq(h->cuts.v[i].cut.block, put->v[k].cut.block) && ulid_eq(h->cuts.v[i].cut.window, put->v[k].cut.window))
				h->cuts.v[i].copies = 2;
	pthread_mutex_unlock(&h->cuts_mu);
}

static errc put_record(void *cp, struct span record, struct err *err)
{
	return wal_checkpoint_put(cp, record, err);
}

errc head_checkpoint_maybe(struct head *h, struct err *err)
{
	errc rc = OK;
	struct wal_status st;
	struct wal_checkpoint *cp = NULL;
	struct window **held = NULL;
	size_t n = 0, cap = 0;
	struct buf record, wire;
	struct cut_list put = {0};
	if (h->checkpoint_retry_ns > io_mono_ns())
		return OK;
	/* The current segment first, the windows after: a window opened in between has its samples behind it. */
	wal_status(h->cfg.wal, &st);
	if (st.failed || st.segment_now <= st.segment_first)
		return OK;
	uint64_t keep = st.segment_now;
	pthread_mutex_lock(&h->windows_mu);
	for (struct window *w = h->windows; w; w = w->next) {
		cap++;
		uint64_t seg = atomic_load_explicit(&w->first_segment, memory_order_relaxed);
		if (!w->gone && seg < keep)
			keep = seg;
	}
	pthread_mutex_unlock(&h->windows_mu);
	if (keep <= st.segment_first)
		return OK;
	uint64_t upto = keep - 1, all = st.segment_now - st.segment_first + 1, go = keep - st.segment_first;
	if (go * 4 < all && st.bytes_on_disk <= h->cfg.wal_max_bytes)
		return OK;

	buf_init(&record, LIMIT_WAL_FRAME_BYTES);
	buf_init(&wire, 2 * HEAD_SERIES_WIRE_BYTES);
	h->n_checkpoint = (h->n_checkpoint + 1) | CHECKPOINT_MARK;
	held = malloc((cap + 64) * sizeof *held);
	CHECK(held, ERR_NOMEM, "no memory for a checkpoint");
	TRY(wal_checkpoint_begin(h->cfg.wal, upto, &cp, err));
	pthread_mutex_lock(&h->windows_mu);
	/* Only this thread destroys, so one without references may be held as well: its series are still in the table. */
	for (struct window *w = h->windows; w && n < cap + 64; w = w->next)
		held[n++] = head_window_ref(w);
	bool more = n == cap + 64;
	pthread_mutex_unlock(&h->windows_mu);
	CHECK(!more, ERR_AGAIN, "windows are being opened faster than they are counted");
	for (size_t i = 0; i < n; i++)
		TRY(put_series(h, cp, held[i], &record, &wire, err));
	TRY(put_cuts(h, cp, upto, &record, &put, err));
	TRY(head_exemplars_checkpoint(h, put_record, cp, &record, err));
	TRY(head_metadata_checkpoint(h, put_record, cp, &record, err));
	struct wal_checkpoint *finish = cp;
	cp = NULL;
	TRY(wal_checkpoint_finish(finish, err));
	cuts_are_safe(h, &put);
	metric_add(h->m.checkpoints, 1);
	head_cuts_maintain(h);
fail:
	wal_checkpoint_abort(cp);
	for (size_t i = 0; i < n; i++)
		head_window_unref(held[i]);
	free(held);
	free(put.v);
	buf_free(&record);
	buf_free(&wire);
	return rc;
}
