/* cluster/cluster_finder.c - see cluster/finder.h.
 *
 * A ring is offered when two thoughts that are some time apart come to the same: what was caught in the middle of a change does not become an epoch.
 */
#include <pthread.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/cluster_finder_int.h"

struct finder {
	struct finder_config cfg;
	struct finder_watch *watch;
	pthread_t thread;
	bool started;

	pthread_mutex_t mu;  /* guards what follows */
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool stop, poked, news;
	struct buf shown; /* what finder_json says */

	/* the thread's */
	bool tried, looked; /* as in finder_view */
	struct buf last;    /* the text that the thought before came to */
	int64_t since_ms;   /* and since when they come to it; monotonic */

	struct metric *found;
};

/* ---- who is named ---- */

static void looked(void *arg)
{
	struct finder *f = arg;
	pthread_mutex_lock(&f->mu);
	f->news = f->poked = true;
	pthread_cond_signal(&f->wake);
	pthread_mutex_unlock(&f->mu);
}

static void want_all(struct finder *f)
{
	struct err err = {0};
	struct arena a;
	struct finder_known k;
	arena_init(&a, 64 * MIB);
	errc rc = finder_watch_known(f->watch, &a, &k, &err);
	if (rc == OK && k.n > LIMIT_PEERS_FOUND) {
		log_error(
			"--peers stands for more than rings can have; the rest is passed over", LU64("found", k.n), LU64("limit", LIMIT_PEERS_FOUND));
		k.n = LIMIT_PEERS_FOUND;
		k.looked = false;
	}
	if (rc == OK)
		rc = roster_want(f->cfg.roster, k.v, k.n, &err);
	if (rc != OK)
		log_error("what --peers stands for can't be asked", LERR(&err));
	else
		metric_set(f->found, (double)k.n);
	f->tried = rc == OK && k.tried;
	f->looked = rc == OK && k.looked;
	arena_free(&a);
}

/* ---- thinking ---- */

static void show(struct finder *f, const struct finder_view *view, const struct finder_plan *plan)
{
	struct buf b = {0};
	buf_init(&b, 8 * MIB);
	buf_printf(&b, "\"members\":[");
	for (size_t i = 0; i < view->n; i++) {
		const struct finder_verdict *v = &plan->v[i];
		buf_printf(&b, "%s{\"address\":", i ? "," : "");
		buf_json_string(&b, view->nodes[i].node.address);
		buf_printf(&b, ",\"state\":\"%s\",\"in\":%s,\"reason\":\"%s\"}", finder_state_names[v->state], v->in ? "true" : "false", v->reason);
	}
	buf_printf(&b, "],\"waits\":");
	buf_json_string(&b, span_cstr(plan->waits ? plan->waits : ""));
	pthread_mutex_lock(&f->mu);
	struct buf old = f->shown;
	f->shown = b;
	pthread_mutex_unlock(&f->mu);
	buf_free(&old);
}

static void remember(struct finder *f, struct span text)
{
	struct err err = {0};
	if (f->cfg.file && io_write_file(f->cfg.file, text, &err) != OK)
		log_warn("the ring can't be kept for the next start", LERR(&err));
}

static void offer(struct finder *f, struct span text)
{
	int64_t now_ms = io_mono_ms();
	if (!span_eq(span_of(f->last.p, f->last.n), text)) {
		f->since_ms = now_ms;
		buf_clear(&f->last);
		buf_span(&f->last, text);
	}
	struct ring_set *now = ring_file_current(f->cfg.rings);
	bool in_force = now && span_eq(ring_set_json(now), text);
	ring_set_unref(now);
	if (in_force || now_ms - f->since_ms < f->cfg.think_ms / 2)
		return;
	if (ring_file_offer(f->cfg.rings, "--peers", text, NULL) == OK) /* else it is logged, and offered again */
		remember(f, text);
}

static void think(struct finder *f)
{
	struct arena a;
	struct err err = {0};
	struct finder_plan plan = {0};
	struct roster_candidate *v = NULL;
	size_t n = 0;
	arena_init(&a, 64 * MIB);
	errc rc = roster_candidates(f->cfg.roster, &a, &v, &n, &err);
	const struct finder_view view = {v, n, f->tried, f->looked, f->cfg.factor, f->cfg.gone_after_ms};
	if (rc == OK)
		rc = finder_plan(&view, &a, &plan, &err);
	if (rc == OK) {
		show(f, &view, &plan);
		if (plan.text.p)
			offer(f, plan.text);
	} else {
		log_warn("no ring could be made of --peers; it is tried again", LERR(&err));
	}
	arena_free(&a);
}

static void *run(void *arg)
{
	struct finder *f = arg;
	pthread_mutex_lock(&f->mu);
	while (!f->stop) {
		bool news = f->news;
		f->poked = f->news = false;
		pthread_mutex_unlock(&f->mu);
		if (news)
			want_all(f);
		think(f);
		pthread_mutex_lock(&f->mu);
		int64_t until_ns = io_mono_ns() + f->cfg.think_ms * 1000000;
		const struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
		while (!f->stop && !f->poked)
			if (pthread_cond_timedwait(&f->wake, &f->mu, &t) != 0)
				break;
	}
	pthread_mutex_unlock(&f->mu);
	return NULL;
}

void finder_json(struct finder *f, struct buf *out)
{
	pthread_mutex_lock(&f->mu);
	if (f->shown.n)
		buf_put(out, f->shown.p, f->shown.n);
	else
		buf_printf(out, "\"members\":[],\"waits\":\"names are looked up\"");
	pthread_mutex_unlock(&f->mu);
}

/* ---- life ---- */

/* The ring that was in force when this node stopped. */
static void recall(struct finder *f)
{
	struct arena a;
	struct span text;
	struct err err = {0};
	if (!f->cfg.file)
		return;
	arena_init(&a, 2 * LIMIT_RING_FILE_BYTES);
	errc rc = io_read_file(f->cfg.file, LIMIT_RING_FILE_BYTES, &a, &text, &err);
	if (rc == OK)
		rc = ring_file_offer(f->cfg.rings, f->cfg.file, text, &err);
	if (rc != OK && rc != ERR_NOTFOUND)
		log_warn("the ring of the last run can't be used; one is found anew", LERR(&err));
	arena_free(&a);
}

errc finder_open(const struct finder_config *cfg, struct finder **out, struct err *err)
{
	errc rc = OK;
	pthread_condattr_t attr;
	struct finder *f = calloc(1, sizeof *f);
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for --peers");
	f->cfg = *cfg;
	f->cfg.think_ms = cfg->think_ms > 0 ? cfg->think_ms : LIMIT_PEERS_THINK_MS;
	buf_init(&f->last, LIMIT_RING_FILE_BYTES);
	pthread_mutex_init(&f->mu, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&f->wake, &attr);
	pthread_condattr_destroy(&attr);
	f->found = metric_gauge("varve_peers_found", "Addresses that --peers stands for");
	recall(f);
	TRY(finder_watch_open(cfg, looked, f, &f->watch, err));
	CHECK(pthread_create(&f->thread, NULL, run, f) == 0, ERR_AGAIN, "no thread to find peers");
	f->started = true;
	*out = f;
	return OK;
fail:
	finder_close(f);
	return rc;
}

void finder_close(struct finder *f)
{
	if (!f)
		return;
	finder_watch_close(f->watch);
	if (f->started) {
		pthread_mutex_lock(&f->mu);
		f->stop = true;
		pthread_cond_signal(&f->wake);
		pthread_mutex_unlock(&f->mu);
		pthread_join(f->thread, NULL);
	}
	buf_free(&f->last);
	buf_free(&f->shown);
	pthread_cond_destroy(&f->wake);
	pthread_mutex_destroy(&f->mu);
	free(f);
}
