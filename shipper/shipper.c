/* shipper/shipper.c - one worker that moves finished blocks into the bucket, oldest first, and tidies up behind itself.
 *
 * A pass: every pending block is shipped; a block whose own files are wrong is quarantined alone; one that can't be read or that arrives damaged is
 * left for the next pass, and the others go on; trouble with the bucket itself ends the pass. The next one comes after a pause drawn between 0
 * and a growing bound (full jitter), so that a fleet does not come back in step.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "shipper/shipper.h"
#include "shipper/shipper_int.h"

enum { PAUSE_FIRST_MS = 500, PAUSE_MAX_MS = 60000, TIDY_INTERVAL_MS = 30000, FLUSH_PATIENCE_MS = 30000 };

struct shipper {
	struct shipper_config cfg;
	pthread_t thread;

	pthread_mutex_t mu;
	pthread_cond_t wake, done;	/* CLOCK_MONOTONIC */
	bool stop, released, woken;	/* guarded by mu */
	uint64_t passes, failed_passes; /* guarded by mu */
	char last_error[ERR_MSG_BYTES]; /* guarded by mu */

	struct metric *blocks, *bytes, *failures, *quarantined, *removed;
};

static struct timespec deadline(int64_t ms)
{
	int64_t until = io_mono_ns() + ms * 1000000;
	return (struct timespec){until / 1000000000, until % 1000000000};
}

/* Trouble that may be one block's own: the next one is tried all the same. */
static bool may_go_on(errc rc)
{
	return rc == ERR_IO || rc == ERR_CORRUPT;
}

/* Ships all that is pending. ERR_*: the bucket, the catalog or the disk failed; what was done stays done. */
static errc ship_pass(struct shipper *s, struct err *err)
{
	errc rc = OK;
	struct arena list, work;
	struct catalog_block *v;
	size_t n;
	errc failed = OK;
	arena_init(&list, GIB);
	arena_init(&work, 8 * LIMIT_META_JSON_BYTES);
	TRY(catalog_pending(s->cfg.catalog, &list, &v, &n, err));
	for (size_t i = 0; i < n; i++) {
		pthread_mutex_lock(&s->mu);
		bool stop = s->stop;
		pthread_mutex_unlock(&s->mu);
		if (stop)
			break;
		struct err why = {0};
		struct ship_result res;
		int64_t begin = io_mono_ms();
		rc = ship_block(&s->cfg, v[i].ulid, v[i].state == BLOCK_UPLOADING, &work, &res, &why);
		arena_reset(&work);
		if (rc == OK) {
			metric_add(s->blocks, 1);
			metric_add(s->bytes, res.bytes);
			log_info("block is live", LULID("block", v[i].ulid), LSPAN("tenant", v[i].tenant), LU64("bytes", res.bytes),
				LI64("ms", io_mono_ms() - begin));
		} else if (res.own_fault) {
			log_error("local block can't be shipped and is quarantined; it stays on disk", LULID("block", v[i].ulid), LERR(&why));
			metric_add(s->quarantined, 1);
			rc = catalog_set_local_state(s->cfg.catalog, v[i].ulid, BLOCK_QUARANTINED, why.msg, err);
			if (rc != OK && rc != ERR_NOTFOUND)
				goto fail;
		} else {
			if (failed == OK)
				failed = err_set(err, rc, "block %s: %s", ulid_text(v[i].ulid).s, why.msg);
			if (!may_go_on(rc))
				break;
		}
	}
	rc = failed;
fail:
	arena_free(&work);
	arena_free(&list);
	return rc;
}

/* Directories of live blocks go when the log has no need of them and nobody asked to keep them. One that can't be removed is left for the next pass. */
static errc tidy(struct shipper *s, struct err *err)
{
	errc rc = OK, failed = OK;
	struct arena list;
	struct catalog_block *v;
	size_t n;
	arena_init(&list, GIB);
	TRY(catalog_local_live(s->cfg.catalog, &list, &v, &n, err));
	int64_t now = io_now_ms();
	for (size_t i = 0; i < n; i++) {
		/* Farther ahead than it may be old: the clock was set back since. */
		int64_t age_ms = now - v[i].added_ms;
		if ((age_ms < s->cfg.local_keep_ms && age_ms > -s->cfg.local_keep_ms) || !s->cfg.may_remove(s->cfg.arg, v[i].ulid))
			continue;
		if (!s->cfg.forget(s->cfg.arg, v[i].ulid))
			continue;
		struct err why = {0};
		rc = block_remove(s->cfg.block_dir, v[i].ulid, &why);
		if (rc == OK || rc == ERR_NOTFOUND)
			rc = catalog_drop_local(s->cfg.catalog, v[i].ulid, &why);
		s->cfg.removed(s->cfg.arg, v[i].ulid);
		if (rc != OK) {
			if (failed == OK)
				failed = err_set(err, rc, "block %s: %s", ulid_text(v[i].ulid).s, why.msg);
			continue;
		}
		metric_add(s->removed, 1);
		log_debug("local copy of a live block removed", LULID("block", v[i].ulid));
	}
	rc = failed;
fail:
	arena_free(&list);
	return rc;
}

static int64_t jitter(int64_t bound_ms)
{
	return (int64_t)(io_random_u64() % (uint64_t)(bound_ms + 1));
}

static void *worker(void *arg)
{
	struct shipper *s = arg;
	int64_t bound = PAUSE_FIRST_MS;
	for (;;) {
		struct err err = {0};
		errc rc = ship_pass(s, &err);
		bool said = false;
		pthread_mutex_lock(&s->mu);
		s->passes++;
		if (rc != OK && rc != ERR_CANCELED) {
			s->failed_passes++;
			said = strcmp(s->last_error, err.msg) == 0;
			memcpy(s->last_error, err.msg, sizeof s->last_error);
		} else {
			if (s->last_error[0])
				log_info("shipping works again");
			s->last_error[0] = 0;
		}
		pthread_cond_broadcast(&s->done);
		pthread_mutex_unlock(&s->mu);
		if (rc != OK && rc != ERR_CANCELED) {
			metric_add(s->failures, 1);
			bound = bound * 2 < PAUSE_MAX_MS ? bound * 2 : PAUSE_MAX_MS;
			/* The same words every time would bury the rest of the log. */
			if (!said)
				log_warn("shipping failed; blocks wait on disk and it is tried again", LI64("within_ms", bound), LERR(&err));
		} else {
			bound = PAUSE_FIRST_MS;
		}
		struct err why = {0};
		errc tidied = tidy(s, &why);
		if (tidied != OK && tidied != ERR_CANCELED)
			log_warn("local copies of live blocks could not be removed", LERR(&why));

		struct timespec until = deadline(rc == OK ? TIDY_INTERVAL_MS : jitter(bound));
		pthread_mutex_lock(&s->mu);
		/* A failing bucket is not asked more often because new blocks arrive. */
		while (!s->stop && !(s->woken && rc == OK))
			if (pthread_cond_timedwait(&s->wake, &s->mu, &until) != 0)
				break;
		s->woken = false;
		bool stop = s->stop;
		pthread_mutex_unlock(&s->mu);
		if (stop)
			return NULL;
	}
}

errc shipper_start(const struct shipper_config *cfg, struct shipper **out, struct err *err)
{
	struct shipper *s = calloc(1, sizeof *s);
	if (!s)
		return err_set(err, ERR_NOMEM, "no memory for the shipper");
	s->cfg = *cfg;
	pthread_mutex_init(&s->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->wake, &attr);
	pthread_cond_init(&s->done, &attr);
	pthread_condattr_destroy(&attr);
	s->blocks = metric_counter("varve_ship_blocks_total", "Blocks that went live in the bucket");
	s->bytes = metric_counter("varve_ship_bytes_total", "Bytes of blocks that went live in the bucket");
	s->failures = metric_counter("varve_ship_failures_total", "Passes that the bucket, the catalog or the disk ended");
	s->quarantined = metric_counter("varve_ship_quarantined_total", "Local blocks whose own files were wrong");
	s->removed = metric_counter("varve_ship_local_removed_total", "Local copies of live blocks that were removed");
	if (pthread_create(&s->thread, NULL, worker, s) != 0) {
		free(s);
		return err_set(err, ERR_NOMEM, "the shipper's thread could not be started");
	}
	*out = s;
	return OK;
}

void shipper_notify(struct shipper *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->mu);
	s->woken = true;
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->mu);
}

/* Is any of these still pending? */
static errc still_pending(struct shipper *s, const struct catalog_block *asked, size_t n_asked, bool *any, struct err *err)
{
	struct arena a;
	struct catalog_block *v;
	size_t n;
	arena_init(&a, GIB);
	errc rc = catalog_pending(s->cfg.catalog, &a, &v, &n, err);
	*any = false;
	for (size_t i = 0; rc == OK && !*any && i < n; i++)
		for (size_t k = 0; k < n_asked && !*any; k++)
			*any = ulid_eq(v[i].ulid, asked[k].ulid);
	arena_free(&a);
	return rc;
}

errc shipper_flush(struct shipper *s, int64_t deadline_ms, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct catalog_block *asked;
	size_t n;
	arena_init(&a, GIB);
	int64_t begin = io_mono_ms();
	TRY(catalog_pending(s->cfg.catalog, &a, &asked, &n, err));
	pthread_mutex_lock(&s->mu);
	uint64_t failed_before = s->failed_passes;
	pthread_mutex_unlock(&s->mu);
	for (;;) {
		bool any;
		TRY(still_pending(s, asked, n, &any, err));
		if (!any)
			break;
		int64_t waited = io_mono_ms() - begin;
		pthread_mutex_lock(&s->mu);
		if (s->stop || s->released)
			rc = err_set(err, ERR_CANCELED, "the server is stopping: blocks are cut and safe on disk, but not all are in the bucket yet");
		else if (waited >= deadline_ms || (waited >= FLUSH_PATIENCE_MS && s->failed_passes > failed_before && s->last_error[0]))
			rc = err_set(err, s->last_error[0] ? ERR_NET : ERR_TIMEOUT,
				"blocks are cut and safe on disk, but not all are in the bucket yet: %s",
				s->last_error[0] ? s->last_error : "time is up");
		if (rc == OK) {
			uint64_t passes = s->passes;
			struct timespec until = deadline(deadline_ms - waited < 1000 ? deadline_ms - waited : 1000);
			s->woken = true;
			pthread_cond_signal(&s->wake);
			while (s->passes == passes && !s->stop && !s->released)
				if (pthread_cond_timedwait(&s->done, &s->mu, &until) != 0)
					break;
		}
		pthread_mutex_unlock(&s->mu);
		if (rc != OK)
			goto fail;
	}
fail:
	arena_free(&a);
	return rc;
}

void shipper_status(struct shipper *s, struct shipper_status *out)
{
	struct arena a;
	struct catalog_block *v;
	size_t n;
	*out = (struct shipper_status){0};
	arena_init(&a, GIB);
	if (catalog_pending(s->cfg.catalog, &a, &v, &n, NULL) == OK)
		for (size_t i = 0; i < n; i++) {
			int64_t age = io_now_ms() - v[i].added_ms;
			out->pending_blocks++;
			out->pending_bytes += v[i].bytes;
			if (age > out->oldest_pending_ms)
				out->oldest_pending_ms = age;
		}
	arena_free(&a);
	pthread_mutex_lock(&s->mu);
	snprintf(out->last_error, sizeof out->last_error, "%s", s->last_error);
	pthread_mutex_unlock(&s->mu);
}

void shipper_release(struct shipper *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->mu);
	s->released = true;
	pthread_cond_broadcast(&s->done);
	pthread_mutex_unlock(&s->mu);
}

void shipper_stop(struct shipper *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->mu);
	s->stop = true;
	pthread_cond_broadcast(&s->wake);
	pthread_cond_broadcast(&s->done);
	pthread_mutex_unlock(&s->mu);
	pthread_join(s->thread, NULL);
	pthread_cond_destroy(&s->wake);
	pthread_cond_destroy(&s->done);
	pthread_mutex_destroy(&s->mu);
	free(s);
}
