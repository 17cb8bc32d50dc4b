/* wal/wal_open.c - birth, tickets and end of a log. What is written and synced, and when, is in wal_sync.c.
 *
 * Room is promised in bytes before compression: a ticket's bound is its records plus the headers of the frames that they may be split
 * over (wal_bound), and the promise holds for any way of packing them into what is left of the current segment and the prepared
 * ones (wal_room_locked). A ticket's buffer is taken at reserve, so that commit cannot fail.
 */
#include <inttypes.h>
#include <lz4.h>
#include <stdlib.h>
#include "wal/wal_int.h"

enum {
	SLOTS_KEPT = 256,		     /* buffers kept for the next tickets: */
	SLOT_KEPT_BYTES = 1024 * 1024,	     /* not larger than this one by one */
	SLOTS_KEPT_BYTES = 32 * 1024 * 1024, /* and together */
};

uint64_t wal_bound(uint64_t max_bytes)
{
	/* Two frames in a row hold more than a full one, whatever the borders; one more where tickets meet and one where a segment ends. */
	return max_bytes + (2 * (max_bytes / LIMIT_WAL_FRAME_BYTES) + 3) * WAL_FRAME_OVERHEAD;
}

static errc config_check(const struct wal_config *cfg, struct err *err)
{
	errc rc = OK;
	CHECK(cfg->segment_bytes >= LIMIT_WAL_SEGMENT_MIN, ERR_INVALID, "log segments of %" PRIu64 " bytes, the least is %" PRIu64,
		cfg->segment_bytes, LIMIT_WAL_SEGMENT_MIN);
	CHECK(cfg->segment_bytes <= LIMIT_WAL_SEGMENT_MAX, ERR_INVALID, "log segments of %" PRIu64 " bytes, the most is %" PRIu64, cfg->segment_bytes,
		LIMIT_WAL_SEGMENT_MAX);
	CHECK(cfg->sync != WAL_SYNC_INTERVAL || (cfg->sync_interval_ms >= 1 && cfg->sync_interval_ms <= 60000), ERR_INVALID,
		"log sync interval of %" PRId64 " ms, 1 to 60000 are allowed", cfg->sync_interval_ms);
	CHECK(strlen(cfg->dir) + 64 < WAL_PATH_BYTES, ERR_INVALID, "the log directory's path of %zu bytes is too long", strlen(cfg->dir));
fail:
	return rc;
}

/* The directory that `path`'s last name stands in, in place. */
static void parent_of(char *path)
{
	size_t n = strlen(path);
	while (n > 1 && path[n - 1] == '/')
		n--;
	while (n > 0 && path[n - 1] != '/')
		n--;
	while (n > 1 && path[n - 1] == '/')
		n--;
	path[n] = 0;
	if (n == 0)
		memcpy(path, ".", 2);
}

/* The directory itself must survive a power cut, and each of its parents that is made here. One that was there is synced again: who made it may
 * have been killed before that. */
static errc dir_make(const char *dir, struct err *err)
{
	errc rc = OK;
	struct io_stat st;
	char path[WAL_PATH_BYTES], parent[WAL_PATH_BYTES];
	size_t n = strlen(dir);
	for (size_t i = 1; i <= n; i++) {
		if (dir[i] != '/' && dir[i] != 0)
			continue;
		memcpy(path, dir, i);
		path[i] = 0;
		TRY(io_stat(path, &st, err));
		if (st.exists && i < n)
			continue;
		memcpy(parent, path, i + 1);
		parent_of(parent);
		if (!st.exists)
			TRY(io_mkdir(path, err));
		rc = io_fsync_dir(parent, err);
		if (rc != OK) {
			/* Final, and the next start must not find a directory that only seems to be there. */
			if (!st.exists)
				(void)!io_rmdir(path, NULL);
			rc = ERR_IO;
			goto fail;
		}
	}
fail:
	return rc;
}

static void wal_metrics(struct wal *w)
{
	w->m_fsyncs = metric_counter("varve_wal_fsyncs_total", "fdatasync calls of the log");
	w->m_fsync_seconds = metric_histogram(
		"varve_wal_fsync_duration_seconds", "How long an fdatasync of the log took", metric_latency_bounds, metric_latency_bounds_n);
	w->m_bytes = metric_counter("varve_wal_bytes_total", "Bytes written to the log");
	w->m_raw_bytes = metric_counter("varve_wal_record_bytes_total", "Bytes of records written to the log, before compression");
	w->m_frames = metric_counter("varve_wal_frames_total", "Frames written to the log");
	w->m_samples = metric_counter("varve_wal_samples_total", "Samples written to the log");
	w->m_frames_lost = metric_counter("varve_wal_frames_lost_total", "Frames that replay found missing or damaged");
	w->m_samples_lost = metric_counter("varve_wal_samples_lost_total", "Samples in the frames that replay found missing or damaged");
	w->m_damaged = metric_counter("varve_wal_damaged_ranges_total", "Damaged byte ranges and missing segments that replay found");
	w->m_segments = metric_gauge("varve_wal_segments", "Log segments, with prepared ones");
	w->m_size = metric_gauge("varve_wal_size_bytes", "Log segments' size on disk, preallocated ones whole");
	w->m_waits = metric_gauge("varve_wal_no_space", "1 while a write of the log waits for room on disk");
	w->m_no_space = metric_counter("varve_wal_no_space_total", "Times that the log found no room on disk");
}

errc wal_open(const struct wal_config *cfg, struct wal **out, struct err *err)
{
	errc rc = OK;
	struct wal *w = NULL;
	*out = NULL;
	TRY(config_check(cfg, err));
	w = calloc(1, sizeof *w);
	CHECK(w, ERR_NOMEM, "the log");
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&w->mu, NULL);
	pthread_cond_init(&w->work, &attr);
	pthread_cond_init(&w->prepare, &attr);
	pthread_cond_init(&w->room, &attr);
	pthread_condattr_destroy(&attr);
	w->sync = cfg->sync;
	w->sync_interval_ms = cfg->sync_interval_ms;
	w->segment_bytes = cfg->segment_bytes;
	w->on_fatal = cfg->on_fatal;
	w->on_fatal_arg = cfg->on_fatal_arg;
	w->next_no = 1;
	w->dir = strdup(cfg->dir);
	w->raw = malloc(LIMIT_WAL_FRAME_BYTES);
	w->out = malloc(WAL_OUT_BYTES);
	w->lz4 = malloc((size_t)LZ4_sizeofState());
	CHECK(w->dir && w->raw && w->out && w->lz4, ERR_NOMEM, "the log's buffers");
	TRY(dir_make(w->dir, err));
	wal_metrics(w);
	*out = w;
	return OK;
fail:
	wal_close(w);
	return rc;
}

static void slot_free(struct wal_slot *s)
{
	free(s->p);
	free(s);
}

void wal_close(struct wal *w)
{
	if (!w)
		return;
	pthread_mutex_lock(&w->mu);
	w->stop = true;
	pthread_cond_broadcast(&w->work);
	pthread_cond_broadcast(&w->prepare);
	pthread_cond_broadcast(&w->room);
	pthread_mutex_unlock(&w->mu);
	if (w->has_syncer)
		pthread_join(w->syncer, NULL);
	if (w->has_preparer)
		pthread_join(w->preparer, NULL);
	for (struct wal_segment *s = w->prepared; s; s = s->next) {
		char path[WAL_PATH_BYTES];
		wal_path_prepared(path, w->dir, s);
		(void)!io_unlink(path, NULL); /* one that is left over is removed by the next start */
	}
	wal_segments_free(w->prepared);
	wal_segments_free(w->current);
	wal_segments_free(w->finished);
	for (struct wal_slot *s = w->first, *next; s; s = next) {
		next = s->next;
		slot_free(s);
	}
	for (struct wal_slot *s = w->free, *next; s; s = next) {
		next = s->next;
		slot_free(s);
	}
	pthread_cond_destroy(&w->room);
	pthread_cond_destroy(&w->prepare);
	pthread_cond_destroy(&w->work);
	pthread_mutex_destroy(&w->mu);
	free(w->lz4);
	free(w->out);
	free(w->raw);
	free(w->dir);
	free(w);
}

uint64_t wal_bytes_on_disk_locked(const struct wal *w)
{
	uint64_t bytes = w->current ? w->current->size : 0;
	for (const struct wal_segment *s = w->prepared; s; s = s->next)
		bytes += s->size;
	for (const struct wal_segment *s = w->finished; s; s = s->next)
		bytes += s->size;
	return bytes;
}

void wal_gauges_locked(struct wal *w)
{
	size_t n = w->current ? 1 : 0;
	for (const struct wal_segment *s = w->prepared; s; s = s->next)
		n++;
	for (const struct wal_segment *s = w->finished; s; s = s->next)
		n++;
	const struct wal_segment *oldest = w->finished ? w->finished : w->current;
	atomic_store_explicit(&w->kept_from, oldest ? oldest->pos : 0, memory_order_relaxed);
	metric_set(w->m_segments, (double)n);
	metric_set(w->m_size, (double)wal_bytes_on_disk_locked(w));
}

uint64_t wal_kept_from(const struct wal *w)
{
	return atomic_load_explicit(&w->kept_from, memory_order_relaxed);
}

uint64_t wal_drawn_to(const struct wal *w)
{
	return atomic_load_explicit(&w->drawn_to, memory_order_relaxed);
}

void wal_status(struct wal *w, struct wal_status *out)
{
	pthread_mutex_lock(&w->mu);
	*out = (struct wal_status){
		.segment_now = w->current ? w->current->number : 0,
		.bytes_on_disk = wal_bytes_on_disk_locked(w),
		.pos = w->pos,
		.seq = w->seq,
		.no_space = w->no_space,
		.failed = w->failed,
	};
	out->segment_first = w->finished ? w->finished->number : out->segment_now;
	pthread_mutex_unlock(&w->mu);
}

/* ---- tickets ---- */

/* Gives back a slot for max_bytes, or NULL. Takes and releases mu. */
static struct wal_slot *slot_take(struct wal *w, size_t max_bytes)
{
	struct wal_slot *s = NULL;
	pthread_mutex_lock(&w->mu);
	for (struct wal_slot **p = &w->free; *p; p = &(*p)->next) {
		if ((*p)->cap < max_bytes)
			continue;
		s = *p;
		*p = s->next;
		w->n_free--;
		w->free_bytes -= s->cap;
		break;
	}
	pthread_mutex_unlock(&w->mu);
	if (s)
		return s;
	s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	/* Rounded up, so that the next request, a little larger, finds it fitting. */
	s->cap = 4096;
	while (s->cap < max_bytes)
		s->cap *= 2;
	s->p = malloc(s->cap);
	if (!s->p) {
		free(s);
		return NULL;
	}
	return s;
}

static void slot_give_locked(struct wal *w, struct wal_slot *s)
{
	if (s->cap > SLOT_KEPT_BYTES || w->n_free >= SLOTS_KEPT || w->free_bytes + s->cap > SLOTS_KEPT_BYTES) {
		slot_free(s);
		return;
	}
	s->next = w->free;
	w->free = s;
	w->n_free++;
	w->free_bytes += s->cap;
}

void wal_slot_pop_locked(struct wal *w)
{
	struct wal_slot *s = w->first;
	w->first = s->next;
	if (!w->first)
		w->last = NULL;
	w->n_slots--;
	w->held_bytes -= s->held;
	w->done_no = s->no;
	if (w->done_no >= w->frame_max_no) {
		w->frame_max_old = w->frame_max;
		w->frame_max = 0;
		w->frame_max_no = w->next_no;
	}
	slot_give_locked(w, s);
}

/* Whether a ticket of `bound` bytes may be given; waits for the preparer when there is no room yet. */
static errc reserve_locked(struct wal *w, uint64_t bound, uint64_t record, size_t held, struct err *err)
{
	errc rc = OK;
	uint64_t tries = w->prepare_tries;
	for (;;) {
		CHECK(w->running && !w->stop, ERR_AGAIN, "the log is not open for appending");
		CHECK(!w->failed, ERR_IO, "the log has failed: %s", w->why.msg);
		if (w->no_space) {
			w->poked = true;
			pthread_cond_signal(&w->work);
			CHECK(false, ERR_NOSPACE, "the log has no room: %s", w->why.msg);
		}
		CHECK(w->n_slots < LIMIT_WAL_TICKETS, ERR_AGAIN, "%zu requests wait for the log", w->n_slots);
		CHECK(held == 0 || w->held_bytes == 0 || w->held_bytes + held <= LIMIT_WAL_WAITING_BYTES, ERR_AGAIN,
			"%" PRIu64 " bytes wait for the log", w->held_bytes);
		if (bound == 0)
			return OK;
		uint64_t frame = record;
		if (frame < w->frame_max)
			frame = w->frame_max;
		if (frame < w->frame_max_old)
			frame = w->frame_max_old;
		uint64_t room = wal_room_locked(w, frame), need = w->reserved_bytes + bound;
		if (need <= room)
			return OK;
		/* One failed try since we came is an answer; a success of which others took the room is not. */
		CHECK(w->prepare_tries == tries || w->prepare_rc == OK, ERR_NOSPACE, "no room for a log segment: %s", w->why.msg);
		uint64_t size = need - room + frame + WAL_FRAME_OVERHEAD + WAL_HEADER_BYTES;
		if (w->prepare_bytes < size)
			w->prepare_bytes = size;
		pthread_cond_signal(&w->prepare);
		pthread_cond_wait(&w->room, &w->mu);
	}
fail:
	return rc;
}

static errc reserve(struct wal *w, uint64_t max_bytes, bool sync, struct wal_ticket *ticket, struct err *err)
{
	errc rc = OK;
	struct wal_slot *s = NULL;
	*ticket = (struct wal_ticket){0};
	CHECK(max_bytes <= LIMIT_WAL_RECORD_BYTES, ERR_LIMIT, "%" PRIu64 " bytes of log records, the most is %" PRIu64, max_bytes,
		LIMIT_WAL_RECORD_BYTES);
	s = slot_take(w, (size_t)max_bytes);
	CHECK(s, ERR_NOMEM, "%" PRIu64 " bytes for log records", max_bytes);
	uint64_t bound = max_bytes > 0 ? wal_bound(max_bytes) : 0;
	uint64_t record = (max_bytes < LIMIT_WAL_FRAME_BYTES ? max_bytes : LIMIT_WAL_FRAME_BYTES) + WAL_FRAME_OVERHEAD;

	pthread_mutex_lock(&w->mu);
	s->held = max_bytes > 0 ? s->cap : 0;
	rc = reserve_locked(w, bound, record, s->held, err);
	if (rc != OK) {
		slot_give_locked(w, s);
		pthread_mutex_unlock(&w->mu);
		return rc;
	}
	s->next = NULL;
	s->no = w->next_no++;
	s->state = WAL_SLOT_RESERVED;
	s->sync = sync;
	s->bound = bound;
	s->n = 0;
	s->done = NULL;
	s->arg = NULL;
	if (w->last)
		w->last->next = s;
	else
		w->first = s;
	w->last = s;
	w->n_slots++;
	w->held_bytes += s->held;
	w->reserved_bytes += bound;
	if (bound > 0 && w->frame_max < record)
		w->frame_max = record;
	*ticket = (struct wal_ticket){
		.no = s->no,
		.segment = w->current->number,
		.pos_min = w->pos,
		.pos_max = w->pos + w->reserved_bytes + WAL_FRAME_OVERHEAD,
		.bytes = max_bytes,
		.last_seq = w->seq,
		.slot = s,
	};
	for (const struct wal_segment *p = w->prepared; p; p = p->next)
		ticket->pos_max += WAL_HEADER_BYTES;
	if (ticket->pos_max > atomic_load_explicit(&w->drawn_to, memory_order_relaxed))
		atomic_store_explicit(&w->drawn_to, ticket->pos_max, memory_order_relaxed);
	pthread_mutex_unlock(&w->mu);
	return OK;
fail:
	return rc;
}

errc wal_reserve(struct wal *w, uint64_t max_bytes, struct wal_ticket *ticket, struct err *err)
{
	return reserve(w, max_bytes, false, ticket, err);
}

/* Our own invariant: whole records, each fit for a frame, with as many samples as the caller says. */
static void records_check(struct span records, uint32_t samples)
{
	uint64_t sum = 0;
	for (size_t i = 0; i < records.n;) {
		uint32_t n;
		size_t size = wal_record_size((const uint8_t *)records.p + i, records.n - i, &n);
		ASSERT(size > 0 && size <= LIMIT_WAL_FRAME_BYTES);
		sum += n;
		i += size;
	}
	ASSERT(sum == samples);
}

void wal_commit(struct wal *w, const struct wal_ticket *ticket, struct span records, uint32_t samples, wal_done done, void *arg)
{
	struct wal_slot *s = ticket->slot;
	ASSERT(s && s->no == ticket->no && records.n <= ticket->bytes);
	records_check(records, samples);
	if (records.n > 0)
		memcpy(s->p, records.p, records.n);
	s->n = records.n;
	s->done = done;
	s->arg = arg;

	errc told = OK;
	bool tell = false;
	struct err why;
	pthread_mutex_lock(&w->mu);
	ASSERT(s->state == WAL_SLOT_RESERVED);
	if (w->failed || w->no_space) {
		tell = true;
		why = w->why;
		told = w->failed ? ERR_IO : ERR_NOSPACE;
		why.code = told;
		s->state = WAL_SLOT_TOLD;
	} else if (records.n == 0 && !s->sync && s == w->first) {
		/* Everything before it is told: a slot leaves the list after that. */
		tell = true;
		w->reserved_bytes -= s->bound;
		wal_slot_pop_locked(w);
		if (w->first && w->first->state != WAL_SLOT_RESERVED)
			pthread_cond_signal(&w->work);
	} else {
		s->state = WAL_SLOT_COMMITTED;
		if (s == w->first)
			pthread_cond_signal(&w->work);
	}
	pthread_mutex_unlock(&w->mu);
	if (tell && done)
		done(arg, told, told == OK ? NULL : &why);
}

void wal_release(struct wal *w, const struct wal_ticket *ticket)
{
	struct wal_slot *s = ticket->slot;
	ASSERT(s && s->no == ticket->no);
	pthread_mutex_lock(&w->mu);
	ASSERT(s->state == WAL_SLOT_RESERVED);
	s->state = WAL_SLOT_RELEASED;
	w->reserved_bytes -= s->bound;
	w->held_bytes -= s->held;
	s->bound = 0;
	s->held = 0;
	s->n = 0;
	s->done = NULL;
	if (s == w->first)
		pthread_cond_signal(&w->work);
	pthread_mutex_unlock(&w->mu);
}

/* ---- waiting ---- */

struct waiter {
	pthread_mutex_t mu;
	pthread_cond_t cv;
	bool done;
	errc rc;
	struct err err;
};

static void waiter_done(void *arg, errc rc, const struct err *err)
{
	struct waiter *x = arg;
	pthread_mutex_lock(&x->mu);
	x->done = true;
	x->rc = rc;
	if (err)
		x->err = *err;
	pthread_cond_signal(&x->cv);
	pthread_mutex_unlock(&x->mu);
}

errc wal_commit_wait(struct wal *w, const struct wal_ticket *ticket, struct span records, uint32_t samples, struct err *err)
{
	struct waiter x = {.mu = PTHREAD_MUTEX_INITIALIZER, .cv = PTHREAD_COND_INITIALIZER};
	wal_commit(w, ticket, records, samples, waiter_done, &x);
	pthread_mutex_lock(&x.mu);
	while (!x.done)
		pthread_cond_wait(&x.cv, &x.mu);
	pthread_mutex_unlock(&x.mu);
	if (x.rc != OK && err)
		*err = x.err;
	pthread_cond_destroy(&x.cv);
	pthread_mutex_destroy(&x.mu);
	return x.rc;
}

errc wal_sync_now(struct wal *w, struct err *err)
{
	struct wal_ticket t;
	errc rc = reserve(w, 0, true, &t, err);
	return rc == OK ? wal_commit_wait(w, &t, (struct span){"", 0}, 0, err) : rc;
}
