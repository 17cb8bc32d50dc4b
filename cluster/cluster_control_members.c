/* cluster/cluster_control_members.c - speaking with members: the only file that knows what they are asked and told.
 *
 *     GET  /-/ready   200: it can store, and has read back what it had
 *     GET  /-/ring?hashrings=0    {"epoch": "<16 hex digits>", ...}: the rings that it goes by; 404: it knows no such question
 *     PUT  /-/ring    these rings, from now on                                       signed (cluster/trust.h)
 *     GET  /-/drain   {"state": "active" | "draining" | "drained"}
 *     POST /-/drain   leave: ship everything, then exit                               signed
 *
 * A few threads go round: whoever is due is asked, and in the same breath told what it does not know yet. A member that does not answer is asked again after a
 * second and stands behind those that do, so that a hung one costs nobody else more than one of the threads, for LIMIT_CONTROL_MEMBER_MS.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "cluster/cluster_control_int.h"
#include "cluster/trust.h"

enum { EAGER_MS = 250, CALM_MS = 3000, FAILED_MS = 1000 };

struct slot {
	char *name, *uid, *ip;
	bool eager, drain;
	struct control_answer answer;
	uint32_t fails;
	int64_t due_ms;
	bool busy, gone; /* gone: nobody wants it any more; whoever has it busy frees it */
	bool said;	 /* a refusal was logged */
};

struct text { /* of a ring, shared by those who are telling it */
	_Atomic uint32_t refs;
	uint64_t epoch;
	size_t n;
	char p[];
};

struct members {
	const struct control_config *cfg;
	void (*woken)(void *arg);
	void *arg;
	struct http_client *http;
	struct trust *trust;	 /* NULL: without a secret nothing is signed */
	pthread_mutex_t tick_mu; /* guards ticked_ms, and trust_tick */
	int64_t ticked_ms;
	pthread_t threads[LIMIT_CONTROL_ASKERS];
	size_t n_threads;
	pthread_mutex_t mu;
	pthread_cond_t wake;
	bool stop;
	struct slot **slots; /* sorted by uid */
	size_t n;
	struct text *text;
	struct metric *told, *refused, *asked, *failed, *drains;
};

static void text_unref(struct text *t)
{
	if (t && atomic_fetch_sub(&t->refs, 1) == 1)
		free(t);
}

static void slot_free(struct slot *s)
{
	if (!s)
		return;
	free(s->name);
	free(s->uid);
	free(s->ip);
	free(s);
}

/* ---- one question ---- */

struct talk {
	struct members *m;
	struct arena arena;
	struct http_call call;
	const char *headers[2];
	const char *ip;
};

static errc ask(struct talk *t, const char *method, const char *path, struct span body, struct err *err)
{
	errc rc = OK;
	const struct control_config *cfg = t->m->cfg;
	t->call.method = method;
	t->call.url = arena_printf(&t->arena, strchr(t->ip, ':') ? "%s://[%s]:%u%s" : "%s://%s:%u%s", cfg->scheme, t->ip, cfg->port, path);
	t->call.headers = t->headers;
	t->call.n_headers = 0;
	t->call.body = body;
	t->call.max_answer_bytes = LIMIT_CONTROL_ANSWER_BYTES;
	CHECK(t->call.url, ERR_NOMEM, "no memory to ask a member");
	if (body.n > 0)
		t->headers[t->call.n_headers++] = "Content-Type: application/json";
	if (t->m->trust) {
		const struct trust_words words = {
			.method = span_cstr(method),
			.target = span_cstr(path),
			.content_type = body.n > 0 ? SPAN("application/json") : SPAN(""),
			.body = body,
		};
		char signature[TRUST_HEADER_BYTES];
		trust_sign(t->m->trust, &words, signature);
		const char *h = arena_printf(&t->arena, TRUST_HEADER ": %s", signature);
		CHECK(h, ERR_NOMEM, "no memory to ask a member");
		t->headers[t->call.n_headers++] = h;
	}
	rc = http_call(t->m->http, &t->call, err);
	metric_add(rc == OK ? t->m->asked : t->m->failed, 1);
fail:
	return rc;
}

static errc ask_json(struct talk *t, const char *path, json_t **out, struct err *err)
{
	*out = NULL;
	errc rc = ask(t, "GET", path, (struct span){0}, err);
	if (rc == OK && t->call.status == 200)
		*out = json_loadb((const char *)t->call.answer.p, t->call.answer.n, 0, NULL);
	return rc;
}

static uint64_t epoch_of(const json_t *v)
{
	const char *s = json_string_value(json_object_get(v, "epoch"));
	char *end = NULL;
	uint64_t x = s && *s ? strtoull(s, &end, 16) : 0;
	return end && *end == 0 ? x : 0;
}

static enum control_drain drain_of(const json_t *v)
{
	const char *s = json_string_value(json_object_get(v, "state"));
	if (!s)
		return DRAIN_UNKNOWN;
	return strcmp(s, "active") == 0	    ? DRAIN_ACTIVE
	       : strcmp(s, "draining") == 0 ? DRAIN_DRAINING
	       : strcmp(s, "drained") == 0  ? DRAIN_DRAINED
					    : DRAIN_UNKNOWN;
}

/* ---- one member: asked, and told what it does not know ---- */

struct visit { /* what the visitor needs of the slot, and what it brings back */
	const char *name;
	bool drain;
	struct text *text;
	struct control_answer answer;
	bool complained;
};

static void complain(struct visit *v, const struct slot *s, const char *what, int status, struct span words)
{
	v->complained = true;
	if (!s->said)
		log_warn(what, LSTR("member", v->name), LI64("status", status), LSPAN("answer", span_of(words.p, words.n < 300 ? words.n : 300)));
}

static errc visit(struct talk *t, struct visit *v, const struct slot *s, struct err *err)
{
	errc rc = OK;
	json_t *o = NULL;
	struct control_answer *a = &v->answer;
	*a = (struct control_answer){.asked = true};
	TRY(ask(t, "GET", "/-/ready", (struct span){0}, err));
	a->reached = true;
	a->ready = t->call.status == 200;
	TRY(ask_json(t, "/-/ring?hashrings=0", &o, err));
	a->epoch = epoch_of(o);
	json_decref(o);
	o = NULL;
	if (v->text && a->epoch != v->text->epoch) {
		TRY(ask(t, "PUT", "/-/ring", span_of(v->text->p, v->text->n), err));
		bool good = t->call.status >= 200 && t->call.status <= 299;
		metric_add(good ? t->m->told : t->m->refused, 1);
		if (good)
			a->epoch = v->text->epoch;
		else
			complain(v, s, "a member does not take the ring", t->call.status, span_of(t->call.answer.p, t->call.answer.n));
	}
	TRY(ask_json(t, "/-/drain", &o, err));
	a->drain = drain_of(o);
	if (v->drain && (a->drain == DRAIN_ACTIVE || a->drain == DRAIN_UNKNOWN)) {
		TRY(ask(t, "POST", "/-/drain", (struct span){0}, err));
		metric_add(t->m->drains, 1);
		if (t->call.status < 200 || t->call.status > 299)
			complain(v, s, "a member does not drain", t->call.status, span_of(t->call.answer.p, t->call.answer.n));
		else
			a->drain = DRAIN_DRAINING;
	}
fail:
	json_decref(o);
	if (rc)
		a->ready = false; /* who breaks off in the middle is not well */
	return rc;
}

static bool same_answer(const struct control_answer *a, const struct control_answer *b)
{
	return a->asked == b->asked && a->reached == b->reached && a->ready == b->ready && a->drain == b->drain && a->epoch == b->epoch;
}

/* Who is due first, those that answered before those that did not; NULL: nobody, and when. */
static struct slot *next_locked(struct members *m, int64_t now_ms, int64_t *until_ms)
{
	struct slot *best = NULL;
	for (size_t i = 0; i < m->n; i++) {
		struct slot *s = m->slots[i];
		if (s->busy)
			continue;
		if (s->due_ms > now_ms)
			*until_ms = s->due_ms < *until_ms ? s->due_ms : *until_ms;
		else if (!best || (!s->fails && best->fails) || (!s->fails == !best->fails && s->due_ms < best->due_ms))
			best = s;
	}
	return best;
}

/* The secret may have changed; whoever comes by looks. */
static void look_at_secret(struct members *m)
{
	if (!m->trust || pthread_mutex_trylock(&m->tick_mu) != 0)
		return;
	int64_t now_ms = io_mono_ms();
	if (now_ms - m->ticked_ms >= 1000) {
		m->ticked_ms = now_ms;
		trust_tick(m->trust);
	}
	pthread_mutex_unlock(&m->tick_mu);
}

static void *run(void *arg)
{
	struct members *m = arg;
	struct talk t = {.m = m};
	arena_init(&t.arena, MIB);
	pthread_mutex_lock(&m->mu);
	while (!m->stop) {
		int64_t now_ms = io_mono_ms(), until_ms = now_ms + 60000;
		struct slot *s = next_locked(m, now_ms, &until_ms);
		if (!s) {
			struct timespec at = {until_ms / 1000, until_ms % 1000 * 1000000};
			pthread_cond_timedwait(&m->wake, &m->mu, &at);
			continue;
		}
		s->busy = true;
		struct visit v = {.name = s->name, .drain = s->drain, .text = m->text};
		if (v.text)
			atomic_fetch_add(&v.text->refs, 1);
		pthread_mutex_unlock(&m->mu);

		struct err err = {0};
		look_at_secret(m);
		t.ip = s->ip;
		errc rc = visit(&t, &v, s, &err);
		arena_reset(&t.arena);

		pthread_mutex_lock(&m->mu);
		s->busy = false;
		if (rc && rc != ERR_CANCELED && s->fails == 0)
			log_info("a member does not answer", LSTR("member", s->name), LERR(&err));
		s->fails = rc ? s->fails + 1 : 0;
		s->said = v.complained;
		bool changed = !same_answer(&s->answer, &v.answer), gone = s->gone;
		s->answer = v.answer;
		/* what it should know changed meanwhile: at once again */
		bool again = !rc && (m->text != v.text || s->drain != v.drain);
		s->due_ms = again ? 0 : io_mono_ms() + (rc || v.complained ? FAILED_MS : s->eager ? EAGER_MS : CALM_MS);
		text_unref(v.text);
		if (gone)
			slot_free(s);
		else if (changed) {
			pthread_mutex_unlock(&m->mu);
			m->woken(m->arg);
			pthread_mutex_lock(&m->mu);
		}
	}
	pthread_mutex_unlock(&m->mu);
	buf_free(&t.call.answer);
	buf_free(&t.call.answer_headers);
	arena_free(&t.arena);
	return NULL;
}

/* ---- who there is ---- */

static size_t place_of(const struct members *m, struct span uid)
{
	size_t lo = 0, hi = m->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (span_cmp(span_cstr(m->slots[mid]->uid), uid) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct slot *find(const struct members *m, struct span uid)
{
	size_t i = place_of(m, uid);
	return i < m->n && span_is(uid, m->slots[i]->uid) ? m->slots[i] : NULL;
}

static struct slot *slot_new(const struct members_target *t)
{
	struct slot *s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	s->name = strndup(t->name.p, t->name.n);
	s->uid = strndup(t->uid.p, t->uid.n);
	s->ip = strndup(t->ip.p, t->ip.n);
	if (s->name && s->uid && s->ip)
		return s;
	slot_free(s);
	return NULL;
}

static int by_uid(const void *a, const void *b)
{
	return strcmp((*(struct slot *const *)a)->uid, (*(struct slot *const *)b)->uid);
}

static struct text *text_new(struct span text, uint64_t epoch)
{
	struct text *t = malloc(sizeof *t + text.n);
	if (!t)
		return NULL;
	atomic_init(&t->refs, 1);
	t->epoch = epoch;
	t->n = text.n;
	memcpy(t->p, text.p, text.n);
	return t;
}

static bool same_text(const struct text *t, struct span text)
{
	return t ? text.p && span_eq(span_of(t->p, t->n), text) : !text.p;
}

errc members_set(struct members *m, const struct members_target *v, size_t n, struct span text, uint64_t epoch, struct err *err)
{
	errc rc = OK;
	size_t made = 0;
	struct text *t = NULL;
	struct slot **next = calloc(n + 1, sizeof *next);
	bool *is_new = calloc(n + 1, sizeof *is_new);
	pthread_mutex_lock(&m->mu);
	bool new_text = !same_text(m->text, text);
	if (new_text && text.p)
		t = text_new(text, epoch);
	CHECK(next && is_new && (t || !new_text || !text.p), ERR_NOMEM, "no memory for %zu members", n);
	for (size_t i = 0; i < n; i++) {
		struct slot *s = find(m, v[i].uid);
		is_new[i] = !s || !span_is(v[i].ip, s->ip);
		next[i] = is_new[i] ? slot_new(&v[i]) : s;
		made++;
		CHECK(next[i], ERR_NOMEM, "no memory for %zu members", n);
	}
	for (size_t i = 0; i < n; i++) {
		struct slot *s = next[i];
		if (new_text || (s->eager != v[i].eager && v[i].eager) || s->drain != v[i].drain)
			s->due_ms = 0;
		s->eager = v[i].eager;
		s->drain = v[i].drain;
	}
	if (n > 0)
		qsort(next, n, sizeof *next, by_uid);
	/* who is not among them any more */
	for (size_t i = 0, k = 0; i < m->n; i++) {
		while (k < n && strcmp(next[k]->uid, m->slots[i]->uid) < 0)
			k++;
		if (k < n && next[k] == m->slots[i])
			continue;
		m->slots[i]->gone = true;
		if (!m->slots[i]->busy)
			slot_free(m->slots[i]);
	}
	free(m->slots);
	m->slots = next;
	m->n = n;
	next = NULL;
	if (new_text) {
		text_unref(m->text);
		m->text = t;
		t = NULL;
	}
	pthread_cond_broadcast(&m->wake);
fail:
	for (size_t i = 0; rc && next && is_new && i < made; i++)
		if (is_new[i])
			slot_free(next[i]);
	pthread_mutex_unlock(&m->mu);
	text_unref(t);
	free(next);
	free(is_new);
	return rc;
}

struct control_answer members_answer(struct members *m, struct span uid)
{
	struct control_answer a = {0};
	pthread_mutex_lock(&m->mu);
	const struct slot *s = find(m, uid);
	if (s)
		a = s->answer;
	pthread_mutex_unlock(&m->mu);
	return a;
}

size_t members_behind(struct members *m)
{
	size_t n = 0;
	pthread_mutex_lock(&m->mu);
	for (size_t i = 0; m->text && i < m->n; i++)
		n += m->slots[i]->answer.reached && m->slots[i]->answer.epoch != m->text->epoch;
	pthread_mutex_unlock(&m->mu);
	return n;
}

/* ---- life ---- */

errc members_open(const struct control_config *cfg, void (*woken)(void *arg), void *arg, struct members **out, struct err *err)
{
	errc rc = OK;
	struct members *m = calloc(1, sizeof *m);
	if (!m)
		return err_set(err, ERR_NOMEM, "no memory for members");
	m->cfg = cfg;
	m->woken = woken;
	m->arg = arg;
	static const char tells[] = "varve_control_tells_total", tells_help[] = "Rings that members were told, by their answer";
	static const char asks[] = "varve_control_member_requests_total", asks_help[] = "Requests to members by their end";
	m->told = metric_counter_with(tells, tells_help, "result", "taken");
	m->refused = metric_counter_with(tells, tells_help, "result", "refused");
	m->asked = metric_counter_with(asks, asks_help, "result", "ok");
	m->failed = metric_counter_with(asks, asks_help, "result", "failed");
	m->drains = metric_counter("varve_control_drains_total", "Times that a member was told to drain");
	pthread_mutex_init(&m->tick_mu, NULL);
	pthread_mutex_init(&m->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&m->wake, &attr);
	pthread_condattr_destroy(&attr);
	struct http_client_config http = {.connect_timeout_ms = LIMIT_CONTROL_MEMBER_MS / 2,
		.idle_timeout_ms = LIMIT_CONTROL_MEMBER_MS,
		.total_timeout_ms = LIMIT_CONTROL_MEMBER_MS,
		.ca_file = cfg->member_ca,
		.cert_file = cfg->member_cert,
		.key_file = cfg->member_key,
		.max_idle_connections = LIMIT_CONTROL_ASKERS};
	TRY(http_client_open(&http, &m->http, err));
	if (cfg->secret_file)
		TRY(trust_open(&(struct trust_config){.secret_file = cfg->secret_file}, &m->trust, err));
	for (; m->n_threads < LIMIT_CONTROL_ASKERS; m->n_threads++)
		CHECK(pthread_create(&m->threads[m->n_threads], NULL, run, m) == 0, ERR_AGAIN, "no thread to ask members");
	*out = m;
	return OK;
fail:
	members_close(m);
	return rc;
}

void members_close(struct members *m)
{
	if (!m)
		return;
	pthread_mutex_lock(&m->mu);
	m->stop = true;
	pthread_cond_broadcast(&m->wake);
	pthread_mutex_unlock(&m->mu);
	if (m->http)
		http_client_cancel(m->http);
	for (size_t i = 0; i < m->n_threads; i++)
		pthread_join(m->threads[i], NULL);
	for (size_t i = 0; i < m->n; i++)
		slot_free(m->slots[i]);
	free(m->slots);
	text_unref(m->text);
	http_client_close(m->http);
	trust_close(m->trust);
	pthread_mutex_destroy(&m->tick_mu);
	pthread_cond_destroy(&m->wake);
	pthread_mutex_destroy(&m->mu);
	free(m);
}
