/* wal/wal_prepare.c - segments are made before they are needed: the next one by a thread of its own, when the current one is half full or
 * when a reserve finds no room.
 *
 * Why a thread: allocating 128 MiB and syncing them takes milliseconds to a second, which neither the syncer nor a request
 * should stand still for. A small deployment pays for the current segment and at most one prepared one.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "wal/wal_int.h"

enum { PREPARE_RETRY_MS = 500 };

void wal_path_prepared(char out[WAL_PATH_BYTES], const char *dir, const struct wal_segment *s)
{
	int n = snprintf(out, WAL_PATH_BYTES, "%s/%s", dir, s->tmp);
	ASSERT(n > 0 && n < WAL_PATH_BYTES);
}

static uint64_t left(uint64_t size, uint64_t off, uint64_t waste)
{
	return size > off + waste ? size - off - waste : 0;
}

/* Frames are packed greedily and a frame is cut to what fits as long as one record does: each segment but the last wastes less
 * than the largest record with its header, and holds one header more. */
uint64_t wal_room_locked(const struct wal *w, uint64_t frame)
{
	uint64_t waste = frame + WAL_FRAME_OVERHEAD, room = 0;
	if (w->current)
		room += left(w->current->size, w->current->off, w->prepared ? waste : 0);
	for (const struct wal_segment *s = w->prepared; s; s = s->next)
		room += left(s->size, WAL_HEADER_BYTES, s->next ? waste : 0);
	return room;
}

errc wal_prepare_one(struct wal *w, uint64_t size, struct err *err)
{
	errc rc = OK;
	struct wal_segment *s = calloc(1, sizeof *s);
	CHECK(s, ERR_NOMEM, "a log segment");
	s->size = size > w->segment_bytes ? (size + 4095) & ~UINT64_C(4095) : w->segment_bytes;
	pthread_mutex_lock(&w->mu);
	snprintf(s->tmp, sizeof s->tmp, "prepared.%" PRIu64 ".tmp", w->prepare_no++ % 1000000);
	pthread_mutex_unlock(&w->mu);
	TRY(wal_segment_allocate(w->dir, s->tmp, s->size, &s->fd, err));

	pthread_mutex_lock(&w->mu);
	struct wal_segment **p = &w->prepared;
	while (*p)
		p = &(*p)->next;
	*p = s;
	wal_gauges_locked(w);
	pthread_mutex_unlock(&w->mu);
	return OK;
fail:
	free(s);
	return rc;
}

/* How large a segment is wanted now; 0: none. */
static uint64_t wanted_locked(const struct wal *w)
{
	if (w->prepare_bytes > 0)
		return w->prepare_bytes;
	if (w->current && !w->prepared && w->current->off > w->current->size / 2)
		return w->segment_bytes;
	return 0;
}

void *wal_preparer(void *arg)
{
	struct wal *w = arg;
	pthread_mutex_lock(&w->mu);
	for (;;) {
		uint64_t size = 0;
		while (!w->stop && (w->failed || (size = wanted_locked(w)) == 0))
			pthread_cond_wait(&w->prepare, &w->mu);
		if (w->stop)
			break;
		w->prepare_bytes = 0;
		pthread_mutex_unlock(&w->mu);
		struct err e = {0};
		errc rc = wal_prepare_one(w, size, &e);
		pthread_mutex_lock(&w->mu);
		bool first = w->prepare_rc == OK;
		w->prepare_tries++;
		w->prepare_rc = rc;
		if (rc != OK) {
			/* Nothing that was logged is touched: whatever went wrong, it may go right next time. */
			if (!w->no_space && !w->failed)
				w->why = e;
			metric_add(w->m_no_space, 1);
			if (first)
				log_warn("no log segment could be prepared", LSTR("dir", w->dir), LERR(&e));
		}
		pthread_cond_broadcast(&w->room);
		if (rc == OK)
			continue;
		/* A reserve wakes us earlier, by asking. */
		struct timespec until;
		int64_t ns = io_mono_ns() + (int64_t)PREPARE_RETRY_MS * 1000000;
		until.tv_sec = (time_t)(ns / 1000000000);
		until.tv_nsec = (long)(ns % 1000000000);
		while (!w->stop && w->prepare_bytes == 0) {
			if (pthread_cond_timedwait(&w->prepare, &w->mu, &until) != 0)
				break;
		}
	}
	pthread_mutex_unlock(&w->mu);
	return NULL;
}
