/* cluster/cluster_ring_file.c - see cluster/ring_file.h.
 *
 * Polling, and not inotify: a ConfigMap's path goes through two symbolic links, either of which may be what changes, on file systems that tell of
 * nothing (NFS, some overlays) changes would be missed, and a watch on a removed inode ends silently, which is how Thanos loses sight of its file. A stat
 * ten times a second is 20 microseconds of a core a second. The content is read when the stat differs, while its time stamp is so young that a second write
 * could have the same one, and every five seconds whatever the stat says; it is compared by its hash.
 *
 * The current set is handed out by base/handover.h: a reader counts on it before it leaves.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/handover.h"
#include "base/io.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/cluster_int.h"
#include "cluster/ring_file.h"

enum { TICK_MS = 100, YOUNG_MS = 2500, READ_ANYWAY_TICKS = 50, NAMES_LOGGED = 10 };

struct ring_file {
	struct ring_file_config cfg;
	struct handover now; /* struct ring_set */

	pthread_mutex_t mu; /* guards what follows, and is held while rings are replaced */
	struct io_stat stat;
	uint32_t ticks;	       /* since the content was read */
	uint64_t seen, judged; /* hashes of the content: at the last look; that was taken or refused last */
	struct ring_file_status status;

	pthread_t thread;
	bool started;
	pthread_mutex_t stop_mu;
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool stop;	     /* guarded by stop_mu */

	struct metric *good, *good_time, *taken, *refused, *nodes;
};

/* ---- the pointer ---- */

struct ring_set *ring_file_current(struct ring_file *rf)
{
	uint32_t turn;
	struct ring_set *s = handover_begin(&rf->now, &turn);
	if (s)
		ring_set_ref(s);
	handover_end(&rf->now, turn);
	return s;
}

/* ---- what is said of a change ---- */

static void say_remarks(const struct ring_set *s)
{
	for (struct span rest = ring_set_remarks(s); rest.n > 0;) {
		struct span line = span_of(rest.p, (size_t)((const char *)memchr(rest.p, '\n', rest.n) - rest.p));
		log_warn("rings", LSPAN("remark", line));
		rest = span_of(rest.p + line.n + 1, rest.n - line.n - 1);
	}
}

/* The nodes of a that b has not: how many, and some of their addresses. */
static uint32_t missing(const struct ring_set *a, const struct ring_set *b, struct buf *names)
{
	uint32_t n = 0, node;
	for (uint32_t i = 0; a && i < a->n_nodes; i++) {
		if (b && ring_set_find(b, a->nodes[i].address, &node))
			continue;
		if (n++ < NAMES_LOGGED)
			buf_printf(names, "%s%.*s", n > 1 ? "," : "", SPAN_ARG(a->nodes[i].address));
	}
	if (n > NAMES_LOGGED)
		buf_printf(names, ",... (%u)", n);
	return n;
}

/* Of the ring that moves most. */
static double most_moved(struct ring_set *was, struct ring_set *now)
{
	double most = 0;
	for (uint32_t i = 0; was && i < now->n_rings; i++) {
		uint32_t old;
		struct ring_change change;
		if (ring_set_match(was, now, i, &old) && ring_compare(was->rings[old], now->rings[i], &change, NULL) == OK && change.moved > most)
			most = change.moved;
	}
	return most;
}

static void say(struct ring_set *was, struct ring_set *now)
{
	char epoch[17], old[17] = "none";
	struct buf added, removed;
	buf_init(&added, MIB);
	buf_init(&removed, MIB);
	snprintf(epoch, sizeof epoch, "%016" PRIx64, now->epoch);
	if (was)
		snprintf(old, sizeof old, "%016" PRIx64, was->epoch);
	missing(now, was, &added);
	missing(was, now, &removed);
	log_info("rings in force", LSTR("epoch", epoch), LSTR("was", old), LU64("rings", now->n_rings), LU64("nodes", now->n_nodes),
		LSPAN("added", span_of(added.p, added.n)), LSPAN("removed", span_of(removed.p, removed.n)), LF64("moved", most_moved(was, now)));
	metric_info("varve_ring_info", "The epoch of the rings in force", "epoch", epoch);
	buf_free(&added);
	buf_free(&removed);
	say_remarks(now);
}

/* ---- rings come ---- */

static errc take_locked(struct ring_file *rf, const char *name, struct span json, struct err *err)
{
	struct ring_set *s = NULL, *was = atomic_load(&rf->now.now);
	errc rc = ring_set_parse(name, json, &rf->cfg.options, &s, err);
	if (rc != OK)
		return rc;
	if (was && was->epoch == s->epoch) {
		ring_set_unref(s);
		return OK;
	}
	was = handover_swap(&rf->now, s);
	rf->status.epoch = s->epoch;
	rf->status.sequence++;
	rf->status.since_ms = io_now_ms();
	metric_set(rf->nodes, s->n_nodes);
	say(was, s);
	if (rf->cfg.on_change)
		rf->cfg.on_change(rf->cfg.arg, was, s);
	ring_set_unref(was);
	return OK;
}

static errc judged_locked(struct ring_file *rf, errc rc, const struct err *err)
{
	rf->status.good = rc == OK;
	snprintf(rf->status.error, sizeof rf->status.error, "%s", rc == OK ? "" : err->msg);
	metric_set(rf->good, rc == OK);
	metric_add(rc == OK ? rf->taken : rf->refused, 1);
	if (rc == OK)
		metric_set(rf->good_time, (double)io_now_ms() / 1000);
	else
		log_error(rf->status.epoch ? "rings refused, the old ones stay in force" : "rings refused, there are none in force", LERR(err));
	return rc;
}

/* What can't be read is a content like another: it is told once, by its message. */
static errc content(struct ring_file *rf, struct arena *a, struct span *text, uint64_t *hash, struct err *err)
{
	errc rc = io_read_file(rf->cfg.path, LIMIT_RING_FILE_BYTES, a, text, err);
	*hash = ring_bytes_hash(rc == OK ? *text : span_cstr(err->msg)) + (rc == OK ? 0 : 1);
	return rc;
}

/* At once: whatever the file is like, it is judged. */
static errc read_locked(struct ring_file *rf, struct err *err)
{
	struct arena a;
	struct span text;
	arena_init(&a, 2 * LIMIT_RING_FILE_BYTES);
	if (io_stat(rf->cfg.path, &rf->stat, err) != OK)
		rf->stat = (struct io_stat){0};
	rf->ticks = 0;
	errc rc = content(rf, &a, &text, &rf->judged, err);
	rf->seen = rf->judged;
	if (rc == OK)
		rc = take_locked(rf, rf->cfg.path, text, err);
	rc = judged_locked(rf, rc, err);
	arena_free(&a);
	return rc;
}

static bool stat_same(const struct io_stat *a, const struct io_stat *b)
{
	return a->exists == b->exists && a->size == b->size && a->inode == b->inode && a->mtime_ms == b->mtime_ms;
}

static void tick_locked(struct ring_file *rf)
{
	struct arena a;
	struct span text;
	struct err err = {0};
	struct io_stat st;
	uint64_t hash;
	if (io_stat(rf->cfg.path, &st, &err) != OK)
		st = (struct io_stat){0};
	int64_t age_ms = io_now_ms() - st.mtime_ms;
	bool young = st.exists && age_ms < YOUNG_MS && age_ms > -YOUNG_MS;
	if (stat_same(&st, &rf->stat) && !young && rf->seen == rf->judged && ++rf->ticks < READ_ANYWAY_TICKS)
		return;
	rf->stat = st;
	rf->ticks = 0;
	arena_init(&a, 2 * LIMIT_RING_FILE_BYTES);
	errc rc = content(rf, &a, &text, &hash, &err);
	bool settled = hash == rf->seen;
	rf->seen = hash;
	if (settled && hash != rf->judged && rc != ERR_NOMEM) {
		rf->judged = hash;
		if (rc == OK)
			rc = take_locked(rf, rf->cfg.path, text, &err);
		if (rc == ERR_NOMEM)
			rf->judged = ~hash; /* not the file's fault: it is tried again */
		judged_locked(rf, rc, &err);
	}
	arena_free(&a);
}

static void *watch(void *arg)
{
	struct ring_file *rf = arg;
	for (;;) {
		int64_t until = io_mono_ns() + (int64_t)TICK_MS * 1000000;
		struct timespec t = {until / 1000000000, until % 1000000000};
		pthread_mutex_lock(&rf->stop_mu);
		while (!rf->stop)
			if (pthread_cond_timedwait(&rf->wake, &rf->stop_mu, &t) != 0)
				break;
		bool stop = rf->stop;
		pthread_mutex_unlock(&rf->stop_mu);
		if (stop)
			return NULL;
		pthread_mutex_lock(&rf->mu);
		tick_locked(rf);
		pthread_mutex_unlock(&rf->mu);
	}
}

errc ring_file_reload(struct ring_file *rf, struct err *err)
{
	struct err local = {0};
	err = err ? err : &local;
	if (!rf->cfg.path)
		return OK;
	pthread_mutex_lock(&rf->mu);
	errc rc = read_locked(rf, err);
	pthread_mutex_unlock(&rf->mu);
	return rc;
}

errc ring_file_offer(struct ring_file *rf, const char *name, struct span json, struct err *err)
{
	struct err local = {0};
	err = err ? err : &local;
	pthread_mutex_lock(&rf->mu);
	errc rc = judged_locked(rf, take_locked(rf, name, json, err), err);
	pthread_mutex_unlock(&rf->mu);
	return rc;
}

void ring_file_status(struct ring_file *rf, struct ring_file_status *out)
{
	pthread_mutex_lock(&rf->mu);
	*out = rf->status;
	pthread_mutex_unlock(&rf->mu);
}

/* ---- life ---- */

static void metrics_open(struct ring_file *rf)
{
	static const char name[] = "varve_ring_reloads_total", help[] = "Rings that were read or offered, by what became of them";
	rf->taken = metric_counter_with(name, help, "result", "taken");
	rf->refused = metric_counter_with(name, help, "result", "refused");
	rf->good = metric_gauge("varve_ring_last_reload_successful", "1 when the rings that were read or offered last were taken");
	rf->good_time = metric_gauge("varve_ring_last_reload_success_timestamp_seconds", "When rings were taken last");
	rf->nodes = metric_gauge("varve_ring_nodes", "Nodes of the rings in force");
	metric_set(rf->nodes, 0);
}

errc ring_file_open(const struct ring_file_config *cfg, struct ring_file **out, struct err *err)
{
	errc rc = OK;
	struct err local = {0};
	struct ring_file *rf = aligned_alloc(64, sizeof *rf);
	err = err ? err : &local;
	if (!rf)
		return err_set(err, ERR_NOMEM, "no memory for rings");
	memset(rf, 0, sizeof *rf);
	rf->cfg = *cfg;
	pthread_mutex_init(&rf->mu, NULL);
	pthread_mutex_init(&rf->stop_mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&rf->wake, &attr);
	pthread_condattr_destroy(&attr);
	metrics_open(rf);
	if (cfg->path) {
		/* What is wrong was logged, and may be mended. */
		errc read = ring_file_reload(rf, NULL);
		CHECK(read != ERR_NOMEM, ERR_NOMEM, "no memory for the rings of %s", cfg->path);
		CHECK(pthread_create(&rf->thread, NULL, watch, rf) == 0, ERR_AGAIN, "no thread to watch %s", cfg->path);
		rf->started = true;
	} else if (cfg->text) {
		TRY(ring_file_offer(rf, "--hashrings", span_cstr(cfg->text), err));
	}
	*out = rf;
	return OK;
fail:
	ring_file_close(rf);
	return rc;
}

void ring_file_close(struct ring_file *rf)
{
	if (!rf)
		return;
	if (rf->started) {
		pthread_mutex_lock(&rf->stop_mu);
		rf->stop = true;
		pthread_cond_signal(&rf->wake);
		pthread_mutex_unlock(&rf->stop_mu);
		pthread_join(rf->thread, NULL);
	}
	ring_set_unref(atomic_load(&rf->now.now));
	pthread_cond_destroy(&rf->wake);
	pthread_mutex_destroy(&rf->stop_mu);
	pthread_mutex_destroy(&rf->mu);
	free(rf);
}
