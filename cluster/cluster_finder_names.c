/* cluster/cluster_finder_names.c - what --peers names, and for whom that stands.
 *
 * A name service that is away holds whoever asks it for half a minute, and nothing can end that. So names are looked up by a thread that nobody waits for: it touches nothing but its list, and the last one to
 * let go of that frees it. A name that can't be looked up keeps the addresses that it had: a name service that is down changes nothing.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
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

struct finder_watch {
	struct arena arena; /* names */
	struct finder_name *names;
	size_t n_names;
	int64_t look_ms;
	void (*looked)(void *arg); /* called under mu, so not after the end */
	void *arg;

	pthread_mutex_t mu;  /* guards what follows */
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	uint32_t refs;
	bool stop;
	struct known *known; /* of each name; written by the thread alone */

	struct metric *failures;
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
	bool good = colon && colon > host.p && !memchr(host.p, '/', host.n) &&
		    span_to_i64(span_of(colon + 1, (size_t)(host.p + host.n - colon) - 1), &port) && port > 0 && port <= 65535;
	CHECK(good && host.n <= LIMIT_RING_ADDRESS_BYTES, ERR_INVALID, "--peers=%.*s: write it as host:port, dns+name:port or dnssrv+name",
		SPAN_ARG(text));
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
static errc copy_of(const struct net_found *found, struct known *out, struct err *err)
{
	size_t bytes = 0;
	if (found->n)
		qsort(found->v, found->n, sizeof *found->v, by_text);
	for (size_t i = 0; i < found->n; i++)
		bytes += found->v[i].n;
	*out = (struct known){.v = calloc(found->n + 1, sizeof *out->v), .text = malloc(bytes + 1)};
	if (!out->v || !out->text) {
		free(out->v);
		free(out->text);
		return err_set(err, ERR_NOMEM, "no memory for %zu addresses", found->n);
	}
	char *at = out->text;
	for (size_t i = 0; i < found->n; i++) {
		if (out->n && span_eq(out->v[out->n - 1], found->v[i]))
			continue;
		memcpy(at, found->v[i].p, found->v[i].n);
		out->v[out->n++] = span_of(at, found->v[i].n);
		at += found->v[i].n;
	}
	return OK;
}

static errc ask_for(const struct finder_name *name, struct arena *a, struct net_found *found, struct err *err)
{
	if (name->kind == FINDER_DNS)
		return net_find_addresses(name->name, name->port, a, found, err);
	if (name->kind == FINDER_SRV)
		return net_find_services(name->name, a, found, err);
	found->v = arena_calloc(a, 1, sizeof *found->v);
	if (!found->v)
		return err_set(err, ERR_NOMEM, "no memory for an address");
	found->v[0] = name->text;
	found->n = 1;
	return OK;
}

static void look_up(struct finder_watch *w, size_t i)
{
	struct known *k = &w->known[i], now = {0};
	struct net_found found = {0};
	struct err err = {0};
	struct arena a;
	arena_init(&a, 4 * MIB);
	errc rc = ask_for(&w->names[i], &a, &found, &err);
	if (rc == OK)
		rc = copy_of(&found, &now, &err);
	if (rc != OK) {
		metric_add(w->failures, 1);
		if (strcmp(err.msg, k->complaint) != 0)
			log_warn("a name of --peers can't be looked up; what it stood for stays", LSPAN("name", w->names[i].text), LERR(&err));
	}
	pthread_mutex_lock(&w->mu);
	if (rc == OK) {
		free(k->v);
		free(k->text);
		k->v = now.v;
		k->text = now.text;
		k->n = now.n;
	}
	snprintf(k->complaint, sizeof k->complaint, "%s", rc == OK ? "" : err.msg);
	k->tried = true;
	k->fresh = rc == OK;
	pthread_mutex_unlock(&w->mu);
	arena_free(&a);
}

static void let_go(struct finder_watch *w)
{
	pthread_mutex_lock(&w->mu);
	bool last = --w->refs == 0;
	pthread_mutex_unlock(&w->mu);
	if (!last)
		return;
	for (size_t i = 0; w->known && i < w->n_names; i++) {
		free(w->known[i].v);
		free(w->known[i].text);
	}
	free(w->known);
	arena_free(&w->arena);
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->mu);
	free(w);
}

static void *look(void *arg)
{
	struct finder_watch *w = arg;
	pthread_mutex_lock(&w->mu);
	while (!w->stop) {
		pthread_mutex_unlock(&w->mu);
		for (size_t i = 0; i < w->n_names; i++)
			look_up(w, i);
		pthread_mutex_lock(&w->mu);
		if (w->stop)
			break;
		w->looked(w->arg);
		int64_t until_ns = io_mono_ns() + (w->look_ms * 3 / 4 + (int64_t)(io_random_u64() % (uint64_t)(w->look_ms / 2 + 1))) * 1000000;
		const struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
		while (!w->stop)
			if (pthread_cond_timedwait(&w->wake, &w->mu, &t) != 0)
				break;
	}
	pthread_mutex_unlock(&w->mu);
	let_go(w);
	return NULL;
}

/* ---- the list ---- */

errc finder_watch_known(struct finder_watch *w, struct arena *arena, struct finder_known *out, struct err *err)
{
	errc rc = OK;
	size_t most = 0;
	*out = (struct finder_known){.tried = true, .looked = true};
	pthread_mutex_lock(&w->mu);
	for (size_t i = 0; i < w->n_names; i++) {
		most += w->known[i].n;
		out->tried &= w->known[i].tried;
		out->looked &= w->known[i].fresh;
	}
	out->v = arena_calloc(arena, most, sizeof *out->v);
	CHECK(out->v, ERR_NOMEM, "no memory for %zu addresses", most);
	for (size_t i = 0; i < w->n_names; i++)
		for (size_t j = 0; j < w->known[i].n; j++) {
			out->v[out->n] = arena_dup(arena, w->known[i].v[j]);
			CHECK(out->v[out->n++].p, ERR_NOMEM, "no memory for %zu addresses", most);
		}
fail:
	pthread_mutex_unlock(&w->mu);
	return rc;
}

errc finder_watch_open(const struct finder_config *cfg, void (*looked)(void *arg), void *arg, struct finder_watch **out, struct err *err)
{
	errc rc = OK;
	pthread_t t;
	pthread_attr_t detached;
	pthread_condattr_t attr;
	struct finder_watch *w = calloc(1, sizeof *w);
	if (!w)
		return err_set(err, ERR_NOMEM, "no memory for --peers");
	w->look_ms = cfg->look_ms > 0 ? cfg->look_ms : LIMIT_PEERS_LOOK_MS;
	w->looked = looked;
	w->arg = arg;
	w->refs = 1;
	arena_init(&w->arena, 4 * MIB);
	pthread_mutex_init(&w->mu, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->wake, &attr);
	pthread_condattr_destroy(&attr);
	w->failures = metric_counter("varve_peers_lookup_failures_total", "Names of --peers that could not be looked up");
	TRY(finder_names(cfg->names, cfg->n_names, &w->arena, &w->names, &w->n_names, err));
	w->known = calloc(w->n_names, sizeof *w->known);
	CHECK(w->known, ERR_NOMEM, "no memory for --peers");
	/* the caller's strings may go before the thread does */
	for (size_t i = 0; i < w->n_names; i++) {
		w->names[i].text = arena_dup(&w->arena, w->names[i].text);
		CHECK(w->names[i].text.p, ERR_NOMEM, "no memory for --peers");
	}
	w->refs = 2;
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	bool started = pthread_create(&t, &detached, look, w) == 0;
	pthread_attr_destroy(&detached);
	w->refs = started ? w->refs : 1;
	CHECK(started, ERR_AGAIN, "no thread to look names up");
	*out = w;
	return OK;
fail:
	let_go(w);
	return rc;
}

void finder_watch_close(struct finder_watch *w)
{
	if (!w)
		return;
	pthread_mutex_lock(&w->mu);
	w->stop = true;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->mu);
	let_go(w);
}
