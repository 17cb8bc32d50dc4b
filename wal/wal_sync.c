/* wal/wal_sync.c - the syncer: one thread that writes, syncs and tells.
 *
 *   take every ticket up to the first that is still open ─▶ records into frames ─▶ pwrite ─▶ fdatasync ─▶ done() of each, in order
 *
 * It syncs as soon as something waits; the batch is what arrived during the sync before. Frames hold the records of tickets in ticket
 * order and end at record borders. `out` collects frames for one pwrite; when a segment is full it is synced before the next gets
 * its name, so only the newest segment ever holds bytes that no sync covers.
 *
 * No room: the write is tried again every half second and whenever somebody reserves; whoever waits is told ERR_NOSPACE, once; their
 * records stay in line, so nothing later is acknowledged before they are durable. Any other failure ends the log.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>
#include "wal/wal_int.h"

enum {
	SYNC_RETRY_MS = 500,
	SYNC_RETRY_MIN_MS = 10,		     /* however often somebody reserves */
	SYNC_BATCH_BYTES = 32 * 1024 * 1024, /* of records: who came first needn't wait for the write of all that came later */
};

static void timed_wait_locked(struct wal *w, int64_t until_ms)
{
	struct timespec ts = {.tv_sec = (time_t)(until_ms / 1000), .tv_nsec = (long)(until_ms % 1000) * 1000000};
	pthread_cond_timedwait(&w->work, &w->mu, &ts);
}

/* ---- trouble ---- */

/* Everyone who waits is told; their slots stay. */
static void tell_all(struct wal *w, errc rc, const struct err *why)
{
	struct wal_slot *told = NULL, **tail = &told;
	pthread_mutex_lock(&w->mu);
	for (struct wal_slot *s = w->first; s; s = s->next) {
		if (s->state != WAL_SLOT_COMMITTED)
			continue;
		s->state = WAL_SLOT_TOLD;
		if (!s->done)
			continue;
		s->told = NULL;
		*tail = s;
		tail = &s->told;
	}
	pthread_mutex_unlock(&w->mu);
	for (struct wal_slot *s = told; s; s = s->told)
		s->done(s->arg, rc, why);
}

/* Returns when it is time to try again; false: the log is being closed. */
static bool wait_for_room(struct wal *w, const struct err *why, int64_t *since_ms)
{
	int64_t now = io_mono_ms();
	pthread_mutex_lock(&w->mu);
	if (!w->no_space) {
		*since_ms = now;
		metric_add(w->m_no_space, 1);
		log_warn("the log has no room: writes wait", LSTR("dir", w->dir), LERR(why));
	}
	w->why = *why;
	w->no_space = true;
	metric_set(w->m_waits, 1);
	w->poked = false;
	pthread_cond_broadcast(&w->room);
	pthread_mutex_unlock(&w->mu);
	tell_all(w, ERR_NOSPACE, why);

	int64_t until = now + SYNC_RETRY_MS;
	pthread_mutex_lock(&w->mu);
	while (!w->stop && io_mono_ms() < until) {
		if (w->poked && until > now + SYNC_RETRY_MIN_MS)
			until = now + SYNC_RETRY_MIN_MS;
		timed_wait_locked(w, until);
	}
	bool stop = w->stop;
	pthread_mutex_unlock(&w->mu);
	return !stop;
}

static void room_again(struct wal *w, int64_t since_ms)
{
	pthread_mutex_lock(&w->mu);
	bool was = w->no_space;
	w->no_space = false;
	w->why = (struct err){0};
	metric_set(w->m_waits, 0);
	pthread_mutex_unlock(&w->mu);
	if (was)
		log_info("the log has room again", LSTR("dir", w->dir), LI64("after_ms", io_mono_ms() - since_ms));
}

static void fail_stop(struct wal *w, const struct err *why)
{
	pthread_mutex_lock(&w->mu);
	w->failed = true;
	w->no_space = false;
	w->why = *why;
	pthread_cond_broadcast(&w->room);
	pthread_mutex_unlock(&w->mu);
	log_error("the log has failed: nothing is acknowledged from now on", LSTR("dir", w->dir), LERR(why));
	struct err e = *why;
	e.code = ERR_IO;
	tell_all(w, ERR_IO, &e);
	if (w->on_fatal)
		w->on_fatal(w->on_fatal_arg, why);
}

/* ---- writing ---- */

static errc sync_current(struct wal *w, struct err *err)
{
	int64_t start = io_mono_ns();
	errc rc = io_fdatasync(w->current->fd, err);
	metric_add(w->m_fsyncs, 1);
	metric_observe(w->m_fsync_seconds, (double)(io_mono_ns() - start) / 1e9);
	if (rc != OK) {
		err_wrap(err, "log segment %" PRIu64, w->current->number);
		return rc;
	}
	pthread_mutex_lock(&w->mu);
	w->current->synced = w->current->off;
	pthread_mutex_unlock(&w->mu);
	w->dirty = false;
	return OK;
}

/* What `out` holds goes to the current segment. ERR_CANCELED: no room, and the log is being closed. */
static errc flush(struct wal *w, struct err *err)
{
	if (w->out_n == 0)
		return OK;
	int64_t since_ms = 0;
	for (;;) {
		struct err e = {0};
		errc rc = io_pwrite(w->current->fd, w->out, w->out_n, w->current->off, &e);
		if (rc == OK)
			break;
		if (rc != ERR_NOSPACE) {
			if (err)
				*err = e;
			return err_wrap(err, "log segment %" PRIu64 " at byte %" PRIu64, w->current->number, w->current->off);
		}
		if (!wait_for_room(w, &e, &since_ms))
			return err_set(err, ERR_CANCELED, "no room for the log when it was closed: %s", e.msg);
	}
	metric_add(w->m_bytes, w->out_n);
	if (w->no_space) /* only this thread writes it */
		room_again(w, since_ms);
	pthread_mutex_lock(&w->mu);
	w->current->off += w->out_n;
	w->pos = w->current->pos + w->current->off;
	w->seq = w->out_seq;
	w->sample = w->out_sample;
	w->mark = w->out_mark;
	w->reserved_bytes -= w->out_consumed;
	w->batch_consumed += w->out_consumed;
	bool half = !w->prepared && w->current->off > w->current->size / 2;
	if (half)
		pthread_cond_signal(&w->prepare);
	pthread_mutex_unlock(&w->mu);
	w->out_n = 0;
	w->out_consumed = 0;
	w->dirty = true;
	return OK;
}

/* The current segment is full: it is synced, then the oldest prepared one gets its number and name. Repeatable after ERR_NOSPACE. */
static errc rotate_try(struct wal *w, struct err *err)
{
	errc rc = OK;
	struct wal_segment *cur = w->current;
	if (w->dirty)
		TRY(sync_current(w, err));
	pthread_mutex_lock(&w->mu);
	struct wal_segment *next = w->prepared;
	pthread_mutex_unlock(&w->mu);
	if (!next) {
		TRY(wal_prepare_one(w, 0, err));
		pthread_mutex_lock(&w->mu);
		next = w->prepared;
		pthread_mutex_unlock(&w->mu);
	}
	char from[WAL_PATH_BYTES], to[WAL_PATH_BYTES];
	wal_path_prepared(from, w->dir, next);
	wal_path_segment(to, w->dir, cur->number + 1);
	if (!next->named)
		TRY(io_rename(from, to, err));
	next->named = true;
	rc = io_fsync_dir(w->dir, err);
	if (rc != OK) { /* final, even when it says that there is no room */
		rc = ERR_IO;
		goto fail;
	}

	/* What is left of the full one goes back to the file system; when that fails it is merely larger. */
	uint64_t size = cur->size;
	if (cur->off < size && io_truncate(cur->fd, cur->off, NULL) == OK)
		size = cur->off;
	io_close(cur->fd);

	struct wal_header h = {
		.log = w->log,
		.segment = cur->number + 1,
		.prev_segment = cur->number,
		.prev_seq = w->out_seq,
		.prev_crc = w->out_crc,
		.first_seq = w->out_seq + 1,
		.first_sample = w->out_sample,
		.pos = cur->pos + cur->off,
	};
	wal_header_put(w->out, &h);
	w->out_n = WAL_HEADER_BYTES;

	pthread_mutex_lock(&w->mu);
	w->prepared = next->next;
	next->next = NULL;
	next->number = next->name = h.segment;
	next->pos = h.pos;
	next->first_seq = h.first_seq;
	next->first_sample = h.first_sample;
	cur->fd = -1;
	cur->size = size;
	struct wal_segment **p = &w->finished;
	while (*p)
		p = &(*p)->next;
	*p = cur;
	w->current = next;
	wal_gauges_locked(w);
	pthread_mutex_unlock(&w->mu);
fail:
	return rc;
}

static errc rotate(struct wal *w, struct err *err)
{
	errc rc = OK;
	TRY(flush(w, err));
	int64_t since_ms = 0;
	bool synced = !w->dirty;
	while ((rc = rotate_try(w, err)) != OK) {
		/* A sync that failed is final whatever it says; preparing and naming may be tried again. */
		if (rc != ERR_NOSPACE || (!synced && w->dirty))
			return rc;
		struct err e = *err;
		if (!wait_for_room(w, &e, &since_ms))
			return err_set(err, ERR_CANCELED, "no room for the log when it was closed: %s", e.msg);
	}
	if (w->no_space)
		room_again(w, since_ms);
fail:
	return rc;
}

/* The longest run of whole records within max bytes of raw. */
static size_t raw_prefix(const struct wal *w, size_t max, uint32_t *samples)
{
	size_t n = 0;
	*samples = 0;
	while (n < w->raw_n) {
		uint32_t s;
		size_t size = wal_record_size(w->raw + n, w->raw_n - n, &s);
		if (n + size > max)
			break;
		n += size;
		*samples += s;
	}
	return n;
}

/* Makes a frame of the first n bytes of raw and puts it behind `out`; false: it does not fit the current segment. */
static bool frame_put(struct wal *w, size_t n, uint32_t samples, uint32_t flags)
{
	struct wal_frame_header h = {
		.log = w->log,
		.segment = w->current->number,
		.seq = w->out_seq + 1,
		.first_sample = w->out_sample,
		.durable = w->current->synced,
		.samples = samples,
		.flags = flags,
	};
	uint64_t size = wal_frame_pack(&h, span_of(w->raw, n), w->out + w->out_n, w->lz4);
	if (w->current->off + w->out_n + size > w->current->size)
		return false;
	w->out_mark = (struct wal_mark){
		.seq = h.seq,
		.first_sample = h.first_sample,
		.segment = h.segment,
		.offset = w->current->off + w->out_n,
		.pos = w->current->pos + w->current->off + w->out_n,
		.log = h.log,
		.crc = h.header_crc,
	};
	w->out_n += size;
	w->out_seq++;
	w->out_sample += samples;
	w->out_crc = h.header_crc;
	metric_add(w->m_frames, 1);
	metric_add(w->m_samples, samples);
	metric_add(w->m_raw_bytes, n);
	return true;
}

/* Everything in raw becomes frames. */
static errc frames_make(struct wal *w, struct err *err)
{
	errc rc = OK;
	while (w->raw_n > 0) {
		uint32_t samples;
		size_t n = raw_prefix(w, w->raw_n, &samples);
		ASSERT(n == w->raw_n);
		if (WAL_OUT_BYTES - w->out_n < wal_frame_size((uint32_t)n))
			TRY(flush(w, err));
		if (!frame_put(w, n, samples, 0)) {
			/* As many records as fit for certain, then the next segment. */
			uint64_t left = w->current->size - w->current->off - w->out_n;
			n = left > WAL_FRAME_OVERHEAD ? raw_prefix(w, (size_t)(left - WAL_FRAME_OVERHEAD), &samples) : 0;
			if (n == 0) {
				TRY(rotate(w, err));
				continue;
			}
			bool fits = frame_put(w, n, samples, 0);
			ASSERT(fits);
		}
		w->out_consumed += n;
		w->raw_n -= n;
		memmove(w->raw, w->raw + n, w->raw_n);
	}
fail:
	return rc;
}

/* ---- batches ---- */

struct batch {
	struct wal_slot *first, *last;
	size_t n;
	uint64_t bound;
	bool records, sync;
};

/* The tickets that can be written now: up to the first that is still open. */
static struct batch batch_take_locked(struct wal *w)
{
	struct batch b = {.first = w->first};
	uint64_t bytes = 0;
	for (struct wal_slot *s = w->first; s && s->state != WAL_SLOT_RESERVED && bytes < SYNC_BATCH_BYTES; s = s->next) {
		b.last = s;
		b.n++;
		b.bound += s->bound;
		b.records |= s->n > 0;
		b.sync |= s->sync;
		bytes += s->n;
	}
	return b;
}

static errc batch_write(struct wal *w, const struct batch *b, struct err *err)
{
	errc rc = OK;
	struct wal_slot *s = b->first;
	for (size_t i = 0; i < b->n; i++, s = i < b->n ? s->next : NULL) {
		for (size_t at = 0; at < s->n;) {
			uint32_t samples;
			size_t size = wal_record_size(s->p + at, s->n - at, &samples);
			if (w->raw_n + size > LIMIT_WAL_FRAME_BYTES)
				TRY(frames_make(w, err));
			memcpy(w->raw + w->raw_n, s->p + at, size);
			w->raw_n += size;
			at += size;
		}
	}
	TRY(frames_make(w, err));
	TRY(flush(w, err));
fail:
	return rc;
}

/* Tells all, in order, then lets them go. */
static void batch_done(struct wal *w, const struct batch *b)
{
	struct wal_slot *s = b->first;
	for (size_t i = 0; i < b->n; i++, s = i < b->n ? s->next : NULL) {
		if (s->state == WAL_SLOT_COMMITTED && s->done)
			s->done(s->arg, OK, NULL);
	}
	pthread_mutex_lock(&w->mu);
	ASSERT(w->batch_consumed <= b->bound);
	w->reserved_bytes -= b->bound - w->batch_consumed;
	w->batch_consumed = 0;
	for (size_t i = 0; i < b->n; i++)
		wal_slot_pop_locked(w);
	pthread_mutex_unlock(&w->mu);
}

/* The end of a log that was closed in order: the next start need not copy its tail. */
static errc mark_clean(struct wal *w, struct err *err)
{
	errc rc = OK;
	if (w->dirty)
		TRY(sync_current(w, err));
	w->raw_n = 0;
	if (!frame_put(w, 0, 0, WAL_FRAME_CLEAN))
		return OK; /* 64 bytes short of full: the next start copies a frame, no harm */
	TRY(flush(w, err));
	TRY(sync_current(w, err));
fail:
	return rc;
}

/* Before anything is acknowledged: the tail that may not be on disk is copied, or the first segment made. */
static errc start_late(struct wal *w, struct err *err)
{
	errc rc;
	int64_t since_ms = 0;
	while ((rc = wal_start(w, err)) == ERR_NOSPACE) {
		struct err e = *err;
		if (!wait_for_room(w, &e, &since_ms))
			return ERR_CANCELED;
	}
	if (rc == OK)
		room_again(w, since_ms);
	return rc;
}

void *wal_syncer(void *arg)
{
	struct wal *w = arg;
	struct err err = {0};
	errc rc = OK;
	if (!w->started)
		TRY(start_late(w, &err));
	for (;;) {
		pthread_mutex_lock(&w->mu);
		bool due = false;
		struct batch b;
		for (;;) {
			b = batch_take_locked(w);
			due = w->dirty && w->sync == WAL_SYNC_INTERVAL && io_mono_ms() >= w->sync_due_ms;
			if (b.n > 0 || due || w->stop)
				break;
			if (w->dirty && w->sync == WAL_SYNC_INTERVAL)
				timed_wait_locked(w, w->sync_due_ms);
			else
				pthread_cond_wait(&w->work, &w->mu);
		}
		bool stop = w->stop && b.n == 0;
		pthread_mutex_unlock(&w->mu);
		if (stop)
			break;

		bool was_dirty = w->dirty;
		if (b.records)
			TRY(batch_write(w, &b, &err));
		if (w->dirty && (w->sync == WAL_SYNC_ACK || b.sync || due))
			TRY(sync_current(w, &err));
		if (w->dirty && !was_dirty)
			w->sync_due_ms = io_mono_ms() + w->sync_interval_ms;
		batch_done(w, &b);
	}
	TRY(mark_clean(w, &err));
	return NULL;
fail:
	if (rc != ERR_CANCELED)
		fail_stop(w, &err);
	else
		log_warn("the log was closed while it had no room: what was not acknowledged is not kept", LSTR("dir", w->dir), LERR(&err));
	return NULL;
}
