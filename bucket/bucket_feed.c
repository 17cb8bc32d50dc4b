/* bucket/bucket_feed.c - the feed's life, and the thread that minds the snapshots in the bucket.
 *
 * A snapshot is written by the node with the least id of those that answer, when the newest is older than the interval and says something else than would
 * be written now. It is read when a peer's changes can't be read any more, whoever asks for it first; the others wait for the same look.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_feed_int.h"

enum { LOOK_MS = 10000, RETRY_MS = 60000, STALE_STEP = 2 };

void feed_wait(struct feed *f, pthread_cond_t *c, int64_t until_ns)
{
	struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
	(void)pthread_cond_timedwait(c, &f->mu, &t);
}

/* ---- snapshots ---- */

/* What the thread knows from look to look. */
struct minder {
	struct feed_snapshot newest; /* as last seen in the bucket, or written */
	bool seen;
	uint64_t refused; /* generation that another node had the claim to */
};

/* Of the nodes that answer, this one among them, has this one the least id? */
static errc is_ours(struct feed *f, bool *ours, struct err *err)
{
	struct arena a;
	struct feed_peer *v;
	size_t n;
	arena_init(&a, 64 * MIB);
	errc rc = f->cfg.peers(f->cfg.arg, &a, &v, &n, err);
	*ours = rc == OK && f->cfg.stores;
	for (size_t i = 0; *ours && i < n; i++)
		if (v[i].answers && v[i].stores && v[i].node[0] && strcmp(v[i].node, f->node) < 0)
			*ours = false;
	arena_free(&a);
	return rc;
}

/* Milliseconds until the newest is as old as the interval; a clock that was ahead does not count. */
static int64_t due_in(const struct feed *f, const struct feed_snapshot *s)
{
	int64_t left = s->made_ms + f->cfg.snapshot_interval_ms - io_now_ms();
	return s->generation == 0 || left > f->cfg.snapshot_interval_ms ? 0 : left;
}

/* *next_ms: when to look again. */
static errc snapshot_mind(struct feed *f, struct minder *m, int64_t *next_ms, struct err *err)
{
	errc rc = OK;
	bool ours;
	uint64_t state;
	*next_ms = f->cfg.snapshot_interval_ms < LOOK_MS ? f->cfg.snapshot_interval_ms : LOOK_MS;
	if (m->seen && due_in(f, &m->newest) > 0)
		return OK;
	TRY(is_ours(f, &ours, err));
	if (!ours || catalog_complete(f->cfg.catalog, 0, NULL) != OK || catalog_owed(f->cfg.catalog))
		return OK;
	TRY(feed_state(f->cfg.catalog, span_cstr(f->node), &state, err));
	if (m->seen && m->newest.generation > 0 && m->newest.state == state)
		return OK;
	m->seen = false;
	TRY(feed_snapshot_newest(f->cfg.bucket, &m->newest, err));
	m->seen = true;
	if (due_in(f, &m->newest) > 0 || (m->newest.generation > 0 && m->newest.state == state))
		return OK;
	uint64_t generation = m->newest.generation + 1;
	/* Claimed all this while and not written: who had the claim is no more. The same slot, the claim after it. */
	if (m->refused >= generation)
		generation = m->refused + STALE_STEP;
	struct feed_snapshot made;
	rc = feed_snapshot_put(f->cfg.catalog, f->cfg.bucket, f->cfg.snapshot_file, span_cstr(f->node), generation, &made, err);
	if (rc == ERR_EXISTS) {
		m->refused = generation;
		*next_ms = f->cfg.snapshot_interval_ms;
		return OK;
	}
	if (rc != OK)
		goto fail;
	m->newest = made;
	metric_add(f->m_written, 1);
	metric_set(f->m_bytes, (double)made.size_bytes);
	log_info("snapshot of the catalog written", LU64("generation", made.generation), LU64("blocks", made.blocks), LU64("bytes", made.size_bytes));
fail:
	return rc;
}

/* A look at the snapshots for those whose changes can't be read any more. */
static void snapshot_look(struct feed *f)
{
	struct feed_snapshot s;
	struct err err = {0};
	pthread_mutex_lock(&f->mu);
	uint64_t wanted = f->wanted, taken = f->taken;
	pthread_mutex_unlock(&f->mu);
	errc rc = f->cfg.bucket ? feed_snapshot_take(f->cfg.catalog, f->cfg.bucket, span_cstr(f->node), taken, &s, &err) : ERR_NOTFOUND;
	if (rc == OK)
		metric_add(f->m_taken, 1);
	else if (rc != ERR_NOTFOUND && rc != ERR_CANCELED)
		log_warn("no snapshot of the catalog could be taken from the bucket", LERR(&err));
	pthread_mutex_lock(&f->mu);
	if (rc == OK)
		f->taken = s.generation;
	f->minded = wanted;
	pthread_cond_signal(&f->follow);
	pthread_mutex_unlock(&f->mu);
}

void *feed_snapshot_main(void *arg)
{
	struct feed *f = arg;
	struct minder m = {.seen = false};
	bool writes = f->cfg.snapshot_interval_ms > 0 && f->cfg.bucket;
	int64_t next_ns = io_mono_ns();
	char said[ERR_MSG_BYTES] = "";
	pthread_mutex_lock(&f->mu);
	while (!f->stop) {
		if (f->wanted > f->minded) {
			pthread_mutex_unlock(&f->mu);
			snapshot_look(f);
			pthread_mutex_lock(&f->mu);
		} else if (writes && io_mono_ns() >= next_ns && !f->released) {
			int64_t next_ms;
			struct err err = {0};
			pthread_mutex_unlock(&f->mu);
			errc rc = snapshot_mind(f, &m, &next_ms, &err);
			if (rc != OK && rc != ERR_CANCELED) {
				metric_add(f->m_write_failures, 1);
				next_ms = f->cfg.snapshot_interval_ms < RETRY_MS ? f->cfg.snapshot_interval_ms : RETRY_MS;
				if (strcmp(said, err.msg) != 0)
					log_warn("no snapshot of the catalog could be written; it is tried again", LERR(&err));
			}
			memcpy(said, err.msg, sizeof said);
			next_ns = io_mono_ns() + next_ms * 1000000;
			pthread_mutex_lock(&f->mu);
		} else {
			feed_wait(f, &f->snapshot, writes && !f->released ? next_ns : io_mono_ns() + LOOK_MS * INT64_C(1000000));
		}
	}
	pthread_mutex_unlock(&f->mu);
	return NULL;
}

/* ---- open and close ---- */

/* On the thread that changed the catalog, which holds its lock. */
static void fed(void *arg)
{
	struct feed *f = arg;
	pthread_mutex_lock(&f->mu);
	f->changed = true;
	pthread_cond_signal(&f->serve);
	pthread_mutex_unlock(&f->mu);
}

static void conditions(struct feed *f, int (*fn)(pthread_cond_t *c))
{
	fn(&f->serve);
	fn(&f->follow);
	fn(&f->snapshot);
	fn(&f->idle);
}

static int condition_init(pthread_cond_t *c)
{
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	int e = pthread_cond_init(c, &attr);
	pthread_condattr_destroy(&attr);
	return e;
}

errc feed_open(const struct feed_config *cfg, struct feed **out, struct err *err)
{
	errc rc = OK;
	struct feed *f = calloc(1, sizeof *f);
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for the feed");
	f->cfg = *cfg;
	f->wait_ms = cfg->wait_ms > 0 ? cfg->wait_ms : LIMIT_FEED_WAIT_MS;
	snprintf(f->node, sizeof f->node, "%s", cfg->node);
	pthread_mutex_init(&f->mu, NULL);
	conditions(f, condition_init);
	f->m_held = metric_gauge("varve_feed_held", "Questions of peers that wait for a change of the bucket");
	f->m_peers = metric_gauge("varve_feed_peers", "Nodes whose changes of the bucket are followed");
	f->m_silent = metric_gauge("varve_feed_peers_silent", "Of them, nodes that have not answered for 5 s");
	f->m_applied = metric_counter("varve_feed_applied_total", "Changes of the bucket that a peer told and that were news");
	f->m_gaps = metric_counter("varve_feed_gaps_total", "Times that a peer's changes could not be read on, and an audit came to be owed");
	f->m_failures = metric_counter("varve_feed_failures_total", "Questions for a peer's changes that failed");
	f->m_written = metric_counter("varve_catalog_snapshots_total", "Snapshots of the catalog that this node wrote into the bucket");
	f->m_write_failures = metric_counter("varve_catalog_snapshot_failures_total", "Snapshots of the catalog that could not be written");
	f->m_bytes = metric_gauge("varve_catalog_snapshot_bytes", "Size of the last snapshot that this node wrote");
	f->m_taken = metric_counter("varve_catalog_snapshots_taken_total", "Snapshots that were taken from the bucket because changes were missed");
	CHECK(f->node[0], ERR_INVALID, "feed: a node without an id");
	catalog_on_fed(f->cfg.catalog, fed, f);
	f->serving = pthread_create(&f->serve_thread, NULL, feed_serve_main, f) == 0;
	f->following = f->serving && pthread_create(&f->follow_thread, NULL, feed_follow_main, f) == 0;
	f->minding = f->following && pthread_create(&f->snapshot_thread, NULL, feed_snapshot_main, f) == 0;
	CHECK(f->minding, ERR_NOMEM, "the feed's threads could not be started");
	*out = f;
	return OK;
fail:
	feed_close(f);
	return rc;
}

void feed_release(struct feed *f)
{
	if (!f)
		return;
	pthread_mutex_lock(&f->mu);
	f->released = true;
	pthread_cond_broadcast(&f->serve);
	pthread_cond_broadcast(&f->follow);
	pthread_cond_broadcast(&f->snapshot);
	pthread_mutex_unlock(&f->mu);
}

void feed_close(struct feed *f)
{
	if (!f)
		return;
	catalog_on_fed(f->cfg.catalog, NULL, NULL);
	feed_release(f);
	pthread_mutex_lock(&f->mu);
	f->stop = true;
	pthread_cond_broadcast(&f->serve);
	pthread_cond_broadcast(&f->follow);
	pthread_cond_broadcast(&f->snapshot);
	pthread_mutex_unlock(&f->mu);
	if (f->serving)
		pthread_join(f->serve_thread, NULL);
	if (f->following)
		pthread_join(f->follow_thread, NULL);
	if (f->minding)
		pthread_join(f->snapshot_thread, NULL);
	pthread_mutex_lock(&f->mu);
	while (f->in_flight > 0)
		pthread_cond_wait(&f->idle, &f->mu);
	for (struct feed_poll *p = f->arrived; p;) {
		struct feed_poll *next = p->next;
		free(p->bytes);
		free(p);
		p = next;
	}
	pthread_mutex_unlock(&f->mu);
	free(f->askers);
	conditions(f, pthread_cond_destroy);
	pthread_mutex_destroy(&f->mu);
	free(f);
}
