/* cmd/cmd_leave.c - POST /-/drain: this node leaves, in good order, and the process ends.
 *
 *     active ──POST──▶ draining: says so to who asks, and takes writes as before,
 *                         │      until no ring has it and nobody sends it anything         (leave_waits_for)
 *                         │      every window becomes a block, every block goes to the bucket, with the doors open; what came in between, the same again
 *                         │      hints for nodes that answer are delivered
 *                         │      the doors are closed (503, to be tried again elsewhere); what is left, the same again, until nothing is
 *                         └▶ drained: says so for some seconds, so that the others hear of it, then exit 0
 *
 * Nothing is refused before it is nobody's matter any more to send it here, and nothing is given up: whatever fails (a bucket that is down) is tried again for as long as it takes. After --drain.timeout
 * the log says what holds it up, as GET /-/drain does all the time.
 *
 * It is this process that drains, not its data directory: killed in the middle of it, it starts again as a node like any other, with everything it had, and is told again.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cmd/cmd_int.h"
#include "cmd/cmd_leave_int.h"

enum { LOOK_MS = 250, RETRY_MS = 1000, LINGER_MS = 3000, LINGER_MAX_MS = 10000, ROUNDS_OPEN = 3, SHIP_MS = 2000 };

struct leave {
	struct server *s;
	pthread_t thread;

	pthread_mutex_t mu;  /* guards what follows */
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool stop, started;
	enum node_state state; /* ACTIVE, DRAINING, DRAINED */
	int64_t since_ms;      /* wall clock, of the state */
	char waits[ERR_MSG_BYTES];

	/* the thread's */
	int64_t began_ms, agreed_since_ms, said_ms; /* monotonic; agreed_since 0: they don't */

	struct metric *gauge;
};

/* ---- what is known ---- */

static bool in_ring(const struct server *s)
{
	struct ring_set *set = s->rings ? ring_file_current(s->rings) : NULL;
	uint32_t node;
	bool in = set && s->self.n > 0 && ring_set_find(set, s->self, &node);
	ring_set_unref(set);
	return in;
}

/* Nobody sends it anything by other rings: those that do not answer can't be known. */
static bool all_agree(const struct server *s)
{
	struct arena a;
	struct roster_node *v;
	size_t n;
	struct ring_set *set = s->rings ? ring_file_current(s->rings) : NULL;
	uint64_t epoch = set ? ring_set_epoch(set) : 0;
	ring_set_unref(set);
	if (!s->roster)
		return true;
	arena_init(&a, 16 * MIB);
	bool agree = roster_nodes(s->roster, &a, &v, &n, NULL) == OK;
	for (size_t i = 0; agree && i < n; i++)
		agree = !v[i].in_ring || v[i].self || (v[i].answers && v[i].epoch == epoch);
	arena_free(&a);
	return agree;
}

/* ---- the thread ---- */

/* true: the process stops. */
static bool nap(struct leave *l, int64_t ms)
{
	int64_t until_ns = io_mono_ns() + ms * 1000000;
	const struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
	pthread_mutex_lock(&l->mu);
	while (!l->stop)
		if (pthread_cond_timedwait(&l->wake, &l->mu, &t) != 0)
			break;
	bool stop = l->stop;
	pthread_mutex_unlock(&l->mu);
	return stop;
}

static void say_state(struct leave *l, enum node_state state)
{
	pthread_mutex_lock(&l->mu);
	l->state = state;
	l->since_ms = io_now_ms();
	l->waits[0] = 0;
	pthread_mutex_unlock(&l->mu);
	metric_set(l->gauge, state == NODE_DRAINED ? 2 : 1);
	if (l->s->roster)
		roster_say(l->s->roster, state);
}

static void waits(struct leave *l, const char *why)
{
	pthread_mutex_lock(&l->mu);
	snprintf(l->waits, sizeof l->waits, "%s", why);
	pthread_mutex_unlock(&l->mu);
	int64_t now_ms = io_mono_ms();
	if (now_ms - l->said_ms < l->s->flags->drain_timeout_ms)
		return;
	l->said_ms = now_ms;
	log_warn("the drain takes longer than --drain.timeout; it goes on", LI64("ms", now_ms - l->began_ms), LSTR("waits_for", why));
}

/* Until it may go; true: the process stops. */
static bool wait_until_let_go(struct leave *l)
{
	struct server *s = l->s;
	for (;;) {
		int64_t now_ms = io_mono_ms(), wrote_ms = (int64_t)atomic_load(&s->peer_wrote_ms);
		bool agreed = all_agree(s);
		l->agreed_since_ms = !agreed ? 0 : l->agreed_since_ms ? l->agreed_since_ms : now_ms;
		const struct leave_view v = {
			.in_ring = in_ring(s),
			.agreed = agreed,
			.agreed_ms = agreed ? now_ms - l->agreed_since_ms : 0,
			.quiet_ms = now_ms - (wrote_ms > l->began_ms ? wrote_ms : l->began_ms),
			.need_ms = s->flags->drain_quiet_ms,
		};
		const char *why = atomic_load(&s->phase) == PHASE_REPLAY ? "the log is being replayed" : leave_waits_for(&v);
		if (!why)
			return false;
		waits(l, why);
		if (nap(l, LOOK_MS))
			return true;
	}
}

static bool nothing_left(const struct server *s)
{
	struct head_status h = {0};
	if (s->head)
		head_status(s->head, &h);
	return h.windows == 0 && h.cutting == 0;
}

/* Everything that is here when it begins into the bucket, however long that takes; true: the process stops. */
static bool ship_all(struct leave *l)
{
	struct server *s = l->s;
	char said[ERR_MSG_BYTES] = "";
	for (;;) {
		struct err err = {0};
		errc rc = s->head ? head_flush(s->head, &err) : OK;
		if (rc == OK && s->shipper) {
			shipper_notify(s->shipper);
			rc = shipper_flush(s->shipper, SHIP_MS, &err);
		}
		if (rc == OK)
			return false;
		if (nap(l, 0))
			return true;
		if (rc != ERR_CANCELED && strcmp(said, err.msg) != 0)
			log_warn("what this node has can't be shipped yet; it is tried again", LERR(&err));
		snprintf(said, sizeof said, "%s", err.msg);
		waits(l, err.msg);
		if (nap(l, RETRY_MS))
			return true;
	}
}

struct owed {
	const struct roster_node *nodes;
	size_t n;
	uint64_t samples;
};

static void count_owed(void *arg, const struct hints_status *h)
{
	struct owed *o = arg;
	for (size_t i = 0; i < o->n; i++)
		if (o->nodes[i].answers && span_eq(o->nodes[i].address, h->address))
			o->samples += h->pending_samples;
}

/* Samples that are kept here for nodes that were away and are back. Who is still away gets them by repair, from others. */
static uint64_t owed_to_others(const struct server *s)
{
	struct arena a;
	struct owed o = {0};
	struct roster_node *v = NULL;
	if (!s->hints)
		return 0;
	arena_init(&a, 16 * MIB);
	if (roster_nodes(s->roster, &a, &v, &o.n, NULL) == OK) {
		o.nodes = v;
		hints_each(s->hints, count_owed, &o);
	}
	arena_free(&a);
	return o.samples;
}

/* Hints are no promise, so they hold a drain up for --drain.timeout at most; true: the process stops. */
static bool wait_for_hints(struct leave *l)
{
	int64_t until_ms = io_mono_ms() + l->s->flags->drain_timeout_ms;
	while (owed_to_others(l->s) > 0 && io_mono_ms() < until_ms) {
		waits(l, "samples that it keeps for nodes that were away are delivered");
		if (nap(l, LOOK_MS))
			return true;
	}
	return false;
}

/* It stays for who asks what became of it: a while, and somewhat longer for who has not heard of its last blocks (bucket/feed.h). */
static bool lingers(const struct server *s, int64_t since_ms)
{
	int64_t ms = io_mono_ms() - since_ms;
	return since_ms == 0 || ms < LINGER_MS || (ms < LINGER_MAX_MS && s->feed && !feed_all_heard(s->feed, LINGER_MAX_MS));
}

static void *run(void *arg)
{
	struct leave *l = arg;
	struct server *s = l->s;
	l->began_ms = l->said_ms = io_mono_ms();
	say_state(l, NODE_DRAINING);
	log_info("draining: this node leaves when no ring has it any more, and ships everything");
	if (wait_until_let_go(l))
		return NULL;
	log_info("nobody sends this node anything any more: its windows become blocks and go to the bucket", LI64("ms", io_mono_ms() - l->began_ms));
	for (int i = 0; i == 0 || (i < ROUNDS_OPEN && !nothing_left(s)); i++) {
		waits(l, "what it has is shipped");
		if (ship_all(l))
			return NULL;
	}
	if (wait_for_hints(l))
		return NULL;
	atomic_store(&s->left, true);
	server_gate(s);
	/* A write that passed the doors just before ends within the linger. */
	for (int64_t since_ms = 0; lingers(s, since_ms);) {
		if (since_ms == 0 || !nothing_left(s)) {
			since_ms = 0;
			waits(l, "the last of what it has is shipped");
			if (ship_all(l))
				return NULL;
			if (!nothing_left(s))
				continue;
			since_ms = io_mono_ms();
			say_state(l, NODE_DRAINED);
			log_info("drained: everything is in the bucket", LI64("ms", io_mono_ms() - l->began_ms));
		}
		if (nap(l, LOOK_MS))
			return NULL;
	}
	server_stop(s, EXIT_CLEAN);
	return NULL;
}

/* ---- what is asked ---- */

static void answer(struct leave *l, struct http_request *r)
{
	struct server *s = l->s;
	struct head_status h = {0};
	struct shipper_status sh = {0};
	struct buf out;
	bool in = in_ring(s);
	buf_init(&out, 64 * KIB);
	if (s->head)
		head_status(s->head, &h);
	if (s->shipper)
		shipper_status(s->shipper, &sh);
	pthread_mutex_lock(&l->mu);
	buf_printf(&out,
		"{\"state\":\"%s\",\"in_ring\":%s,\"windows\":%" PRIu64 ",\"blocks_pending\":%" PRIu64 ",\"bytes_pending\":%" PRIu64
		",\"since_ms\":%" PRId64,
		node_state_name(l->state), in ? "true" : "false", h.windows + h.cutting, sh.pending_blocks, sh.pending_bytes, l->since_ms);
	buf_printf(&out, ",\"waits_for\":");
	buf_json_string(&out, span_cstr(l->waits));
	buf_printf(&out, "}\n");
	pthread_mutex_unlock(&l->mu);
	if (out.failed)
		http_error(r, ERRID_OVERLOADED, "no memory for an answer");
	else
		http_answer(r, 200, "application/json", span_of(out.p, out.n));
	buf_free(&out);
}

void server_drain_get(void *arg, struct http_request *r)
{
	struct server *s = arg;
	answer(s->leave, r);
}

static errc begin(struct leave *l, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&l->mu);
	bool first = !l->started && !l->stop;
	if (first && pthread_create(&l->thread, NULL, run, l) != 0) {
		rc = err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "no thread to drain");
		first = false;
	}
	if (first) {
		l->started = true;
		l->state = NODE_DRAINING;
	}
	pthread_mutex_unlock(&l->mu);
	return rc;
}

void server_drain_post(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct err err = {0};
	errc rc = s->trust ? link_check_order(s->trust, r, &err) : OK; /* without peers it is a request like others: basic auth, if there is any */
	if (rc == OK)
		rc = begin(s->leave, &err);
	if (rc != OK)
		http_error_of(r, &err);
	else
		answer(s->leave, r);
}

void server_peer_write(void *arg, struct http_request *r)
{
	struct server *s = arg;
	atomic_store_explicit(&s->peer_wrote_ms, (uint64_t)io_mono_ms(), memory_order_relaxed);
	ingest_peer_write(s->ingest, r);
}

/* ---- life ---- */

errc server_leave_open(struct server *s, struct err *err)
{
	struct leave *l = calloc(1, sizeof *l);
	if (!l)
		return err_set(err, ERR_NOMEM, "no memory");
	l->s = s;
	l->state = NODE_ACTIVE;
	l->since_ms = io_now_ms();
	l->gauge = metric_gauge("varve_drain_state", "0 while this node stays, 1 while it drains, 2 when it has drained");
	metric_set(l->gauge, 0);
	pthread_mutex_init(&l->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->wake, &attr);
	pthread_condattr_destroy(&attr);
	s->leave = l;
	return OK;
}

void server_leave_close(struct server *s)
{
	struct leave *l = s->leave;
	if (!l)
		return;
	pthread_mutex_lock(&l->mu);
	l->stop = true;
	pthread_cond_signal(&l->wake);
	pthread_mutex_unlock(&l->mu);
	if (l->started)
		pthread_join(l->thread, NULL);
	pthread_cond_destroy(&l->wake);
	pthread_mutex_destroy(&l->mu);
	free(l);
	s->leave = NULL;
}
