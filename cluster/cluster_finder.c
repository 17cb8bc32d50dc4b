/* cluster/cluster_finder.c - see cluster/finder.h.
 *
 * A name that can't be looked up keeps the addresses that it had: a name service that is down changes nothing. A ring is offered when two thoughts in a row, a second apart, come to the same: what was caught in
 * the middle of a change does not become an epoch.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/cluster_finder_int.h"

struct known { /* what a name stands for, sorted, each once */
	struct span *v;
	size_t n;
	char *text; /* their memory */
	bool tried, fresh;
	char complaint[ERR_MSG_BYTES];
};

struct finder {
	struct finder_config cfg;
	struct arena arena; /* names */
	struct finder_name *names;
	size_t n_names;

	struct known *known; /* of each name; the looking thread's */

	pthread_mutex_t mu; /* guards what follows */
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool stop, poked;
	bool tried, looked; /* of all names */
	struct buf shown;   /* what finder_json says */

	/* the thinking thread's */
	struct buf last; /* the text that the thought before came to */

	pthread_t looker, thinker;
	bool looks, thinks;
	struct metric *found, *failures;
};

/* ---- names ---- */

static errc name_of(struct span text, struct arena *arena, struct finder_name *out, struct err *err)
{
	errc rc = OK;
	*out = (struct finder_name){.kind = FINDER_ADDRESS, .text = text};
	if (span_has_prefix(text, SPAN("dnssrv+"))) {
		out->kind = FINDER_SRV;
		out->name = arena_cstr(arena, span_of(text.p + 7, text.n - 7));
		CHECK(out->name, ERR_NOMEM, "no memory for --peers");
		CHECK(*out->name && !strchr(out->name, ':'), ERR_INVALID, "--peers=%.*s: a name behind dnssrv+, and no port: SRV records say it",
			SPAN_ARG(text));
		return OK;
	}
	struct span host = text;
	if (span_has_prefix(text, SPAN("dns+"))) {
		out->kind = FINDER_DNS;
		host = span_of(text.p + 4, text.n - 4);
	}
	int64_t port = 0;
	const char *colon = host.n ? memrchr(host.p, ':', host.n) : NULL;
	bool good = colon && colon > host.p && span_to_i64(span_of(colon + 1, (size_t)(host.p + host.n - colon) - 1), &port) && port > 0 && port <= 65535;
	CHECK(good && host.n <= LIMIT_RING_ADDRESS_BYTES, ERR_INVALID, "--peers=%.*s: write it as host:port, dns+name:port or dnssrv+name", SPAN_ARG(text));
	out->port = (uint16_t)port;
	if (out->kind == FINDER_DNS) {
		out->name = arena_cstr(arena, span_of(host.p, (size_t)(colon - host.p)));
		CHECK(out->name, ERR_NOMEM, "no memory for --peers");
	}
fail:
	return rc;
}

errc finder_names(const char *const *lists, size_t n_lists, struct arena *arena, struct finder_name **out, size_t *n, struct err *err)
{
	errc rc = OK;
	size_t most = n_lists;
	for (size_t i = 0; i < n_lists; i++)
		for (const char *p = lists[i]; (p = strchr(p, ',')); p++)
			most++;
	*n = 0;
	CHECK(most <= LIMIT_PEERS_NAMES, ERR_LIMIT, "--peers: %zu names, at most %d are taken", most, LIMIT_PEERS_NAMES);
	*out = arena_calloc(arena, most, sizeof **out);
	CHECK(*out, ERR_NOMEM, "no memory for --peers");
	for (size_t i = 0; i < n_lists; i++)
		for (const char *p = lists[i]; *p;) {
			size_t len = strcspn(p, ",");
			struct span s = span_of(p, len);
			while (s.n && *s.p == ' ')
				s = span_of(s.p + 1, s.n - 1);
			while (s.n && s.p[s.n - 1] == ' ')
				s.n--;
			if (s.n)
				TRY(name_of(s, arena, &(*out)[(*n)++], err));
			p += len + (p[len] == ',');
		}
	CHECK(*n > 0, ERR_INVALID, "--peers names nobody");
fail:
	return rc;
}

/* ---- looking names up ---- */

static int by_text(const void *a, const void *b)
{
	return span_cmp(*(const struct span *)a, *(const struct span *)b);
}

/* Sorted and each once, in memory of its own. */
static errc keep(struct known *k, const struct net_found *found, struct err *err)
{
	size_t bytes = 0, n = 0;
	if (found->n)
		qsort(found->v, found->n, sizeof *found->v, by_text);
	for (size_t i = 0; i < found->n; i++)
		bytes += found->v[i].n;
	struct span *v = calloc(found->n + 1, sizeof *v);
	char *text = malloc(bytes + 1), *at = text;
	if (!v || !text) {
		free(v);
		free(text);
		return err_set(err, ERR_NOMEM, "no memory for %zu addresses", found->n);
	}
	for (size_t i = 0; i < found->n; i++) {
		if (n && span_eq(v[n - 1], found->v[i]))
			continue;
		memcpy(at, found->v[i].p, found->v[i].n);
		v[n++] = span_of(at, found->v[i].n);
		at += found->v[i].n;
	}
	free(k->v);
	free(k->text);
	k->v = v;
	k->text = text;
	k->n = n;
	return OK;
}

static void look_up(struct finder *f, size_t i)
{
	const struct finder_name *name = &f->names[i];
	struct known *k = &f->known[i];
	struct net_found found = {0};
	struct span one = name->text;
	struct err err = {0};
	struct arena a;
	errc rc = OK;
	if (name->kind == FINDER_ADDRESS && k->n == 1)
		return;
	arena_init(&a, 4 * MIB);
	if (name->kind == FINDER_ADDRESS)
		found = (struct net_found){&one, 1};
	else
		rc = name->kind == FINDER_DNS ? net_find_addresses(name->name, name->port, &a, &found, &err) : net_find_services(name->name, &a, &found, &err);
	if (rc == OK)
		rc = keep(k, &found, &err);
	if (rc != OK) {
		metric_add(f->failures, 1);
		if (strcmp(err.msg, k->complaint) != 0)
			log_warn("a name of --peers can't be looked up; what it stood for stays", LSPAN("name", name->text), LERR(&err));
	}
	snprintf(k->complaint, sizeof k->complaint, "%s", rc == OK ? "" : err.msg);
	k->tried = true;
	k->fresh = rc == OK;
	arena_free(&a);
}

static void want_all(struct finder *f)
{
	struct err err = {0};
	struct arena a;
	size_t most = 0, n = 0;
	bool tried = true, looked = true;
	for (size_t i = 0; i < f->n_names; i++) {
		most += f->known[i].n;
		tried &= f->known[i].tried;
		looked &= f->known[i].fresh;
	}
	arena_init(&a, LIMIT_PEERS_NAMES * LIMIT_PEERS_FOUND * sizeof(struct span));
	struct span *all = arena_calloc(&a, most, sizeof *all);
	for (size_t i = 0; all && i < f->n_names; i++)
		for (size_t j = 0; j < f->known[i].n; j++)
			all[n++] = f->known[i].v[j];
	if (n > LIMIT_PEERS_FOUND) {
		log_error("--peers names more than rings can have; the rest is passed over", LU64("named", n), LU64("limit", LIMIT_PEERS_FOUND));
		n = LIMIT_PEERS_FOUND;
	}
	errc rc = all ? roster_want(f->cfg.roster, all, n, &err) : err_set(&err, ERR_NOMEM, "no memory for %zu addresses", most);
	if (rc != OK)
		log_error("what --peers names can't be asked", LERR(&err));
	else
		metric_set(f->found, (double)n);
	pthread_mutex_lock(&f->mu);
	f->tried = tried && rc == OK;
	f->looked = looked && rc == OK;
	pthread_mutex_unlock(&f->mu);
	arena_free(&a);
}

/* Until it is time, or somebody wakes who may; true: the end. */
static bool nap_locked(struct finder *f, int64_t ms, bool wakeable)
{
	int64_t until_ns = io_mono_ns() + ms * 1000000;
	const struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
	while (!f->stop && !(wakeable && f->poked))
		if (pthread_cond_timedwait(&f->wake, &f->mu, &t) != 0)
			break;
	return f->stop;
}

static void *look(void *arg)
{
	struct finder *f = arg;
	pthread_mutex_lock(&f->mu);
	while (!f->stop) {
		pthread_mutex_unlock(&f->mu);
		for (size_t i = 0; i < f->n_names; i++)
			look_up(f, i);
		want_all(f);
		pthread_mutex_lock(&f->mu);
		int64_t ms = f->cfg.look_ms;
		if (nap_locked(f, ms * 3 / 4 + (int64_t)(io_random_u64() % (uint64_t)(ms / 2 + 1)), false))
			break;
	}
	pthread_mutex_unlock(&f->mu);
	return NULL;
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
	struct ring_set *now = ring_file_current(f->cfg.rings);
	bool in_force = now && span_eq(ring_set_json(now), text), settled = span_eq(span_of(f->last.p, f->last.n), text);
	ring_set_unref(now);
	buf_clear(&f->last);
	buf_span(&f->last, text);
	if (in_force || !settled)
		return;
	if (ring_file_offer(f->cfg.rings, "--peers", text, NULL) == OK) /* else it is logged, and offered again */
		remember(f, text);
}

static void think(struct finder *f, bool tried, bool looked)
{
	struct arena a;
	struct err err = {0};
	struct finder_plan plan = {0};
	struct roster_candidate *v = NULL;
	size_t n = 0;
	arena_init(&a, 64 * MIB);
	errc rc = roster_candidates(f->cfg.roster, &a, &v, &n, &err);
	const struct finder_view view = {v, n, tried, looked, f->cfg.factor, f->cfg.gone_after_ms};
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

static void *thinks(void *arg)
{
	struct finder *f = arg;
	pthread_mutex_lock(&f->mu);
	while (!f->stop) {
		bool tried = f->tried, looked = f->looked;
		f->poked = false;
		pthread_mutex_unlock(&f->mu);
		think(f, tried, looked);
		pthread_mutex_lock(&f->mu);
		if (nap_locked(f, f->cfg.think_ms, true))
			break;
	}
	pthread_mutex_unlock(&f->mu);
	return NULL;
}

void finder_wake(struct finder *f)
{
	pthread_mutex_lock(&f->mu);
	f->poked = true;
	pthread_cond_broadcast(&f->wake);
	pthread_mutex_unlock(&f->mu);
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
	struct finder *f = calloc(1, sizeof *f);
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for --peers");
	f->cfg = *cfg;
	f->cfg.look_ms = cfg->look_ms > 0 ? cfg->look_ms : LIMIT_PEERS_LOOK_MS;
	f->cfg.think_ms = cfg->think_ms > 0 ? cfg->think_ms : LIMIT_PEERS_THINK_MS;
	arena_init(&f->arena, 4 * MIB);
	buf_init(&f->last, LIMIT_RING_FILE_BYTES);
	pthread_mutex_init(&f->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&f->wake, &attr);
	pthread_condattr_destroy(&attr);
	f->found = metric_gauge("varve_peers_found", "Addresses that --peers stands for");
	f->failures = metric_counter("varve_peers_lookup_failures_total", "Names of --peers that could not be looked up");
	TRY(finder_names(cfg->names, cfg->n_names, &f->arena, &f->names, &f->n_names, err));
	f->known = calloc(f->n_names, sizeof *f->known);
	CHECK(f->known, ERR_NOMEM, "no memory for --peers");
	recall(f);
	CHECK(pthread_create(&f->looker, NULL, look, f) == 0, ERR_AGAIN, "no thread to look names up");
	f->looks = true;
	CHECK(pthread_create(&f->thinker, NULL, thinks, f) == 0, ERR_AGAIN, "no thread to find peers");
	f->thinks = true;
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
	pthread_mutex_lock(&f->mu);
	f->stop = true;
	pthread_cond_broadcast(&f->wake);
	pthread_mutex_unlock(&f->mu);
	if (f->thinks)
		pthread_join(f->thinker, NULL);
	if (f->looks)
		pthread_join(f->looker, NULL);
	for (size_t i = 0; f->known && i < f->n_names; i++) {
		free(f->known[i].v);
		free(f->known[i].text);
	}
	free(f->known);
	buf_free(&f->last);
	buf_free(&f->shown);
	arena_free(&f->arena);
	pthread_cond_destroy(&f->wake);
	pthread_mutex_destroy(&f->mu);
	free(f);
}
