/* head/head_cutter.c - the one thread that ends windows: which, when, and what follows.
 *
 * A window is due cut_delay after its end and its last sample's arrival; max_age after its first; at once when a flush or a restart asks, when
 * memory passes 80 % (the largest first), or when the log passes its limit (those that hold its oldest segments).
 *
 *     freeze ─▶ block written and renamed ─▶ WAL_CUT logged ─▶ on_block ─▶ out of the tenant's list ─▶ ... destroyed
 *
 * A reader that asks the head first and the blocks afterwards misses nothing; it may see the window and the block, which have one
 * ULID. If the log has no room, the block's own meta.json says what the cut record would until it can be logged; the block is not
 * called settled before.
 *
 * A failed cut leaves the window frozen and readable and is tried again after a second, two, four ... thirty-two.
 *
 * Writing the block is most of the work, and nobody waits for it: a thread of its own does it, at the lowest priority, so that requests have the processor first. It takes
 * no lock that a request waits for. (Who has lowered a thread's priority may not raise it again without privilege; hence a thread each time.)
 *
 * Between cuts the thread looks after cut records (second copies, forgetting), checkpoints, and windows that no reader holds any more.
 */
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include "head/head_annotations_int.h"

enum { TICK_MS = 500, RETRY_MAX_SHIFT = 5 };

void head_cutter_wake(struct head *h)
{
	pthread_mutex_lock(&h->windows_mu);
	h->woken = true;
	pthread_cond_signal(&h->wake);
	pthread_mutex_unlock(&h->windows_mu);
}

/* ---- which ---- */

enum why { NOT_DUE, DUE_TIME, DUE_NOW, DUE_MEMORY, DUE_LOG };

static bool empty(struct window *w)
{
	return atomic_load_explicit(&w->n_samples, memory_order_relaxed) == 0;
}

static bool due_by_time(const struct head *h, struct window *w, int64_t now)
{
	int64_t last = atomic_load_explicit(&w->last_arrival_ms, memory_order_relaxed);
	/* Where the clock was set back, what came "later" came now at the latest: else the window stayed until the clock is there again. */
	if (w->first_arrival_ms > now)
		w->first_arrival_ms = now;
	if (last > now) {
		(void)!atomic_compare_exchange_strong(&w->last_arrival_ms, &last, now);
		last = now;
	}
	if (now - w->first_arrival_ms >= h->cfg.max_age_ms)
		return true;
	int64_t end = w->start + w->range;
	return now >= end && (uint64_t)now - (uint64_t)end >= (uint64_t)h->cfg.cut_delay_ms && now - last >= h->cfg.cut_delay_ms;
}

/* The next window to cut, referenced; NULL: none. */
static struct window *next_due(struct head *h, enum why *why)
{
	int64_t now = io_now_ms(), mono = io_mono_ns();
	struct wal_status st;
	wal_status(h->cfg.wal, &st);
	uint64_t log_upto = 0;
	if (st.bytes_on_disk > h->cfg.wal_max_bytes) {
		/* As many of the oldest segments as are too much; never the one that is being written. */
		uint64_t all = st.segment_now - st.segment_first + 1, each = st.bytes_on_disk / all;
		log_upto = st.segment_first + (st.bytes_on_disk - h->cfg.wal_max_bytes + each) / (each + 1);
		log_upto = log_upto < st.segment_now ? log_upto : st.segment_now;
	}
	uint64_t freeing = 0;
	struct window *pick = NULL, *largest = NULL, *oldest = NULL;
	*why = NOT_DUE;
	pthread_mutex_lock(&h->windows_mu);
	for (struct window *w = h->windows; w; w = w->next) {
		if (w->gone) {
			freeing += atomic_load_explicit(&w->memory_bytes, memory_order_relaxed);
			continue;
		}
		if (w->retry_at_ns > mono)
			continue;
		if (*why != DUE_NOW && (w->frozen || w->cut_now)) {
			pick = w;
			*why = DUE_NOW;
		}
		/* All tenants' windows are over at one time: one after the other, the one first that holds most. */
		if (*why != DUE_NOW && due_by_time(h, w, now) &&
			(!pick || atomic_load_explicit(&w->memory_bytes, memory_order_relaxed) >
					  atomic_load_explicit(&pick->memory_bytes, memory_order_relaxed))) {
			pick = w;
			*why = DUE_TIME;
		}
		if (empty(w))
			continue;
		if (!largest || atomic_load_explicit(&w->memory_bytes, memory_order_relaxed) >
					atomic_load_explicit(&largest->memory_bytes, memory_order_relaxed))
			largest = w;
		uint64_t seg = atomic_load_explicit(&w->first_segment, memory_order_relaxed);
		if (seg < log_upto && (!oldest || seg < atomic_load_explicit(&oldest->first_segment, memory_order_relaxed)))
			oldest = w;
	}
	/* A head that is full of series and symbols gains nothing from blocks of a few samples each. */
	uint64_t held = head_memory(h);
	if (!pick && largest && atomic_load(&largest->memory_bytes) >= h->cfg.max_memory_bytes / 64 && held > h->cfg.max_memory_bytes / 5 * 4 &&
		held - freeing > h->cfg.max_memory_bytes / 5 * 4) {
		pick = largest;
		*why = DUE_MEMORY;
	}
	if (!pick && oldest) {
		pick = oldest;
		*why = DUE_LOG;
	}
	if (pick)
		head_window_ref(pick);
	pthread_mutex_unlock(&h->windows_mu);
	return pick;
}

/* ---- one cut ---- */

/* After how many seconds a cut that failed is tried again. */
static uint64_t again_s(const struct window *w)
{
	return UINT64_C(1) << (w->failures < RETRY_MAX_SHIFT ? w->failures : RETRY_MAX_SHIFT);
}

static void done_signal(struct head *h, struct window *w, errc rc)
{
	pthread_mutex_lock(&h->windows_mu);
	w->last_error = rc;
	if (rc != OK) {
		w->retry_at_ns = io_mono_ns() + (int64_t)again_s(w) * 1000000000;
		w->failures++;
	}
	pthread_cond_broadcast(&h->done);
	pthread_mutex_unlock(&h->windows_mu);
}

struct writing {
	struct window *w;
	struct cut_result *out;
	struct err *err;
	errc rc;
};

static void *writing_main(void *arg)
{
	struct writing *x = arg;
	enum { LOWEST = 19 };
	/* Of this thread alone, as Linux has it. Without it the block is written all the same. */
	(void)!setpriority(PRIO_PROCESS, 0, LOWEST);
	x->rc = head_cut_write(x->w, x->w->ulid, WAL_CUT_ALL, x->out, x->err);
	return NULL;
}

static errc write_block(struct window *w, struct cut_result *out, struct err *err)
{
	struct writing x = {.w = w, .out = out, .err = err};
	pthread_t thread;
	/* What takes shards' locks is done here. */
	for (uint32_t i = 0; i < w->head->n_shards; i++) {
		errc rc = head_window_index(w, i, err);
		if (rc != OK)
			return rc;
	}
	if (pthread_create(&thread, NULL, writing_main, &x) != 0)
		return head_cut_write(w, w->ulid, WAL_CUT_ALL, out, err);
	pthread_join(thread, NULL);
	return x.rc;
}

static errc cut(struct window *w, enum why why, struct err *err)
{
	static const char *const words[] = {"", "time", "asked", "memory", "log size"};
	errc rc = OK;
	struct head *h = w->head;
	int64_t begin = io_mono_ns();
	if (!w->frozen)
		head_window_freeze(w);
	if (!w->written) {
		struct cut_result res;
		rc = write_block(w, &res, err);
		if (rc != OK) {
			/* A rename that was not synced may have left a whole block behind. */
			struct io_stat st;
			char dir[4096];
			snprintf(dir, sizeof dir, "%s/%s", h->cfg.block_dir, ulid_text(w->ulid).s);
			if (io_stat(dir, &st, NULL) == OK && st.exists)
				(void)!block_remove(h->cfg.block_dir, w->ulid, NULL);
			goto fail;
		}
		w->written = true;
		w->block_series = res.n_series;
		w->block_bytes = res.bytes;
		metric_observe(h->m.cut_seconds, (double)(io_mono_ns() - begin) / 1e9);
		if (res.n_series > 0)
			log_info("window cut", LULID("block", w->ulid), LSPAN("tenant", head_tenant_name(w->tenant)), LSTR("why", words[why]),
				LI64("start", w->start), LU64("series", res.n_series), LU64("samples", res.n_samples), LU64("bytes", res.bytes),
				LI64("ms", (io_mono_ns() - begin) / 1000000));
	}
	if (w->block_series > 0) {
		struct wal_cut c = {.window = w->ulid, .block = w->ulid, .upto_seq = WAL_CUT_ALL};
		TRY(head_cuts_log(h, &c, err));
		TRY(head_cut_announce(h, w->ulid, w->block_bytes, err));
		metric_add(h->m.cut, 1);
	}
fail:
	return rc;
}

static void cut_and_leave(struct window *w, enum why why)
{
	struct head *h = w->head;
	struct err err = {0};
	atomic_fetch_add(&h->n_cutting, 1);
	errc rc = cut(w, why, &err);
	atomic_fetch_sub(&h->n_cutting, 1);
	if (rc == OK) {
		head_window_leave(w);
	} else if (rc != ERR_CANCELED) {
		metric_add(h->m.cut_failures, 1);
		log_error("window not cut; it stays readable and is tried again", LULID("window", w->ulid),
			LSPAN("tenant", head_tenant_name(w->tenant)), LU64("again_in_s", again_s(w)), LERR(&err));
		if (h->cfg.on_cut_failed)
			h->cfg.on_cut_failed(h->cfg.on_block_arg, &err);
	}
	done_signal(h, w, rc);
	head_window_unref(w);
}

/* ---- cut records ---- */

errc head_cuts_put(struct head *h, const struct cut_record *r, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&h->cuts_mu);
	struct cut_list *l = &h->cuts;
	for (size_t i = 0; i < l->n; i++) {
		struct cut_record *x = &l->v[i];
		if (!ulid_eq(x->cut.window, r->cut.window) || !ulid_eq(x->cut.block, r->cut.block))
			continue;
		if (x->cut.upto_seq < r->cut.upto_seq)
			x->cut.upto_seq = r->cut.upto_seq;
		if (r->copies == 2 || (x->copies == 1 && r->copies == 1 && r->pos_max >= x->pos_max + 2 * WAL_COPY_DISTANCE_BYTES)) {
			x->copies = 2;
		} else if (x->copies == 0 && r->copies == 1) {
			x->copies = 1;
			x->pos_max = r->pos_max;
		}
		goto fail;
	}
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 16;
		struct cut_record *v = realloc(l->v, cap * sizeof *v);
		CHECK(v, ERR_NOMEM, "no memory for a cut record");
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = *r;
fail:
	pthread_mutex_unlock(&h->cuts_mu);
	return rc;
}

/* One more copy of a cut record in the log, synced. Fails quietly when the log has no room now. */
static void log_copy(struct head *h, struct ulid window, struct ulid block)
{
	struct wal_ticket t;
	struct err err = {0};
	struct buf b;
	if (wal_reserve(h->cfg.wal, 128, &t, &err) != OK)
		return;
	struct wal_cut c = {.window = window, .block = block, .upto_seq = WAL_CUT_ALL};
	buf_init(&b, 128);
	wal_cut_put(&b, &c);
	if (b.failed)
		b.n = 0;
	errc rc = wal_commit_wait(h->cfg.wal, &t, span_of(b.p, b.n), 0, &err);
	/* In any mode: a block's directory goes because of it, and older segments are synced. */
	if (rc == OK)
		rc = wal_sync_now(h->cfg.wal, &err);
	bool copied = rc == OK && b.n > 0;
	buf_free(&b);
	if (!copied)
		return;
	/* Every ticket from before the freeze is done by now: no sample of the window comes behind this segment. */
	struct wal_status st;
	wal_status(h->cfg.wal, &st);
	pthread_mutex_lock(&h->cuts_mu);
	for (size_t i = 0; i < h->cuts.n; i++) {
		struct cut_record *x = &h->cuts.v[i];
		if (!ulid_eq(x->cut.window, window) || !ulid_eq(x->cut.block, block))
			continue;
		if (x->last_segment == UINT64_MAX)
			x->last_segment = st.segment_now;
		if (x->copies < 2) {
			x->copies++;
			x->pos_max = st.pos;
		}
	}
	pthread_mutex_unlock(&h->cuts_mu);
}

static bool has_copy(struct head *h, const struct wal_cut *cut)
{
	bool has = false;
	pthread_mutex_lock(&h->cuts_mu);
	for (size_t i = 0; i < h->cuts.n && !has; i++) {
		const struct cut_record *x = &h->cuts.v[i];
		has = ulid_eq(x->cut.window, cut->window) && ulid_eq(x->cut.block, cut->block) && x->copies > 0;
	}
	pthread_mutex_unlock(&h->cuts_mu);
	return has;
}

errc head_cuts_log(struct head *h, const struct wal_cut *cut, struct err *err)
{
	struct cut_record r = {.cut = *cut, .last_segment = UINT64_MAX};
	errc rc = head_cuts_put(h, &r, err);
	/* A cut that is tried again has its first copy; the second stands far from it. */
	if (rc == OK && !has_copy(h, cut))
		log_copy(h, cut->window, cut->block);
	return rc;
}

void head_cuts_maintain(struct head *h)
{
	struct wal_status st;
	wal_status(h->cfg.wal, &st);
	if (st.failed)
		return;
	for (size_t i = 0;; i++) {
		pthread_mutex_lock(&h->cuts_mu);
		while (i < h->cuts.n && h->cuts.v[i].last_segment < st.segment_first)
			h->cuts.v[i] = h->cuts.v[--h->cuts.n];
		bool end = i >= h->cuts.n;
		struct cut_record x = end ? (struct cut_record){0} : h->cuts.v[i];
		pthread_mutex_unlock(&h->cuts_mu);
		if (end)
			return;
		/* A cut in part is not logged: see head_replay.c. */
		if (x.cut.upto_seq != WAL_CUT_ALL || st.no_space)
			continue;
		if (x.copies == 0 || (x.copies == 1 && st.pos >= x.pos_max + WAL_COPY_DISTANCE_BYTES))
			log_copy(h, x.cut.window, x.cut.block);
	}
}

bool head_cut_settled(struct head *h, struct ulid block)
{
	bool settled = true;
	pthread_mutex_lock(&h->cuts_mu);
	for (size_t i = 0; i < h->cuts.n && settled; i++)
		if (ulid_eq(h->cuts.v[i].cut.block, block))
			settled = h->cuts.v[i].cut.upto_seq == WAL_CUT_ALL && h->cuts.v[i].copies >= 2;
	pthread_mutex_unlock(&h->cuts_mu);
	return settled;
}

/* ---- the thread ---- */

static void announce_replayed(struct head *h)
{
	for (size_t i = 0; i < h->n_announces; i++) {
		struct err err = {0};
		if (head_cut_announce(h, h->announces[i].cut.block, h->announces[i].bytes, &err) != OK)
			log_error("a block that replay cut was not announced; the next start finds it", LULID("block", h->announces[i].cut.block),
				LERR(&err));
		else
			metric_add(h->m.cut, 1);
	}
	free(h->announces);
	h->announces = NULL;
	h->n_announces = h->cap_announces = 0;
	pthread_mutex_lock(&h->windows_mu);
	h->announced = true;
	pthread_cond_broadcast(&h->done);
	pthread_mutex_unlock(&h->windows_mu);
}

/* What series that are gone leave behind, once a good part of a shard's are. */
static void give_back(struct head *h)
{
	bool any = false;
	for (uint32_t i = 0; i < h->n_shards; i++) {
		struct shard *sh = &h->shards[i];
		if (!head_shard_due(sh))
			continue;
		for (uint64_t at = 0; head_alias_sweep(sh, &at);)
			;
		head_shard_give_back(h, sh);
		any = true;
	}
	if (any)
		for (uint32_t at = 0; head_symbols_give_back(&h->symbols, &at);)
			;
}

static void destroy_dead(struct head *h)
{
	uint64_t freed = 0;
	for (;;) {
		pthread_mutex_lock(&h->windows_mu);
		struct window *w = h->windows;
		while (w && !(w->gone && atomic_load_explicit(&w->refs, memory_order_acquire) == 0))
			w = w->next;
		pthread_mutex_unlock(&h->windows_mu);
		if (!w)
			break;
		freed += atomic_load_explicit(&w->memory_bytes, memory_order_relaxed);
		head_window_destroy(w);
	}
	if (freed == 0)
		return;
	give_back(h);
	if (freed > 16 * MIB)
		malloc_trim(0);
}

void head_gauges(struct head *h)
{
	metric_set(h->m.series, (double)atomic_load(&h->n_series));
	metric_set(h->m.windows, (double)atomic_load(&h->n_windows));
	metric_set(h->m.memory, (double)head_memory(h));
	int64_t written = atomic_load(&h->snap.written_ms), now = io_now_ms();
	metric_set(h->m.snapshot_age, written == 0 ? -1 : written < now ? (double)(now - written) / 1000 : 0);
	metric_set(h->m.snapshot_bytes, (double)atomic_load(&h->snap.bytes));
	metric_set(h->m.exemplars, (double)atomic_load(&h->n_exemplars));
	metric_set(h->m.metadata, (double)atomic_load(&h->n_metadata));
}

static void wait_tick(struct head *h)
{
	struct timespec ts;
	int64_t at = io_mono_ns() + TICK_MS * INT64_C(1000000);
	ts.tv_sec = at / 1000000000;
	ts.tv_nsec = at % 1000000000;
	pthread_mutex_lock(&h->windows_mu);
	while (!h->woken && !atomic_load(&h->stop))
		if (pthread_cond_timedwait(&h->wake, &h->windows_mu, &ts) != 0)
			break;
	h->woken = false;
	pthread_mutex_unlock(&h->windows_mu);
}

/* Postings follow in the background, so that a question finds little left to do. Without memory they wait until somebody needs them. */
static void index_windows(struct head *h)
{
	errc rc = OK;
	struct window *w = NULL;
	/* Once over the list, which only this thread takes windows from: new series that keep coming must not keep it from cutting. */
	while (rc == OK && !atomic_load(&h->stop)) {
		pthread_mutex_lock(&h->windows_mu);
		w = w ? w->next : h->windows;
		while (w && (w->gone || !atomic_load_explicit(&w->to_index, memory_order_relaxed)))
			w = w->next;
		pthread_mutex_unlock(&h->windows_mu);
		if (!w)
			return;
		atomic_store(&w->to_index, false);
		for (uint32_t shard = 0; shard < h->n_shards && rc == OK; shard++)
			rc = head_window_index(w, shard, NULL);
		if (rc != OK)
			atomic_store(&w->to_index, true);
	}
}

void *head_cutter_main(void *arg)
{
	struct head *h = arg;
	announce_replayed(h);
	while (!atomic_load(&h->stop)) {
		enum why why;
		struct window *w;
		destroy_dead(h);
		index_windows(h);
		while (!atomic_load(&h->stop) && (w = next_due(h, &why))) {
			cut_and_leave(w, why);
			destroy_dead(h);
		}
		if (atomic_load(&h->stop))
			break;
		head_cuts_maintain(h);
		struct err err = {0};
		if (head_checkpoint_maybe(h, &err) != OK) {
			log_warn("no checkpoint of the log now; it is tried again", LERR(&err));
			h->checkpoint_retry_ns = io_mono_ns() + INT64_C(5000000000);
		}
		head_snapshot_maybe(h, false);
		head_gauges(h);
		wait_tick(h);
	}
	head_snapshot_maybe(h, true);
	return NULL;
}

void head_release(struct head *h)
{
	pthread_mutex_lock(&h->windows_mu);
	atomic_store(&h->released, true);
	pthread_cond_broadcast(&h->done);
	pthread_mutex_unlock(&h->windows_mu);
}

/* Whether a flush is for this window. */
static bool flushes(const struct window *w, const struct tenant *tn, int64_t upto_ms)
{
	return !w->gone && (!tn || (w->tenant == tn && ulid_time_ms(w->ulid) <= upto_ms));
}

/* tn NULL: every tenant. */
static errc flush(struct head *h, const struct tenant *tn, int64_t upto_ms, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&h->windows_mu);
	if (!h->cutter_runs) {
		pthread_mutex_unlock(&h->windows_mu);
		return err_set(err, ERR_AGAIN, "replay is not over");
	}
	uint32_t last = 0, n = 0;
	struct flushed {
		struct window *w;
		uint32_t failures;
	} *v = NULL;
	for (struct window *w = h->windows; w; w = w->next)
		last += flushes(w, tn, upto_ms);
	if (last > 0)
		v = malloc(last * sizeof *v);
	if (last > 0 && !v) {
		pthread_mutex_unlock(&h->windows_mu);
		return err_set(err, ERR_NOMEM, "no memory to flush %u windows", last);
	}
	for (struct window *w = h->windows; w; w = w->next) {
		if (!flushes(w, tn, upto_ms))
			continue;
		w->cut_now = true;
		w->retry_at_ns = 0;
		v[n++] = (struct flushed){head_window_ref(w), w->failures};
	}
	h->woken = true;
	pthread_cond_signal(&h->wake);
	for (uint32_t i = 0; i < n && rc == OK; i++) {
		while (!v[i].w->gone && v[i].w->failures == v[i].failures && !atomic_load(&h->stop) && !atomic_load(&h->released))
			pthread_cond_wait(&h->done, &h->windows_mu);
		if (!v[i].w->gone)
			rc = atomic_load(&h->stop) || atomic_load(&h->released)
				     ? err_set(err, ERR_CANCELED, "the server is stopping: what is not cut yet stays in the log")
				     : err_set(err, v[i].w->last_error, "window %s of tenant %s could not be cut (see the log); it is tried again",
					       ulid_text(v[i].w->ulid).s, v[i].w->tenant->name);
	}
	pthread_mutex_unlock(&h->windows_mu);
	for (uint32_t i = 0; i < n; i++)
		head_window_unref(v[i].w);
	free(v);
	return rc;
}

errc head_flush(struct head *h, struct err *err)
{
	return flush(h, NULL, 0, err);
}

errc head_flush_tenant(struct head *h, struct span tenant, int64_t upto_ms, struct err *err)
{
	struct tenant *tn = head_tenant_find(h, tenant);
	if (!tn)
		return OK;
	exemplars_drop(tn, upto_ms);
	metadata_drop(tn, upto_ms);
	return flush(h, tn, upto_ms, err);
}
