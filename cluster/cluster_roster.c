/* cluster/cluster_roster.c - see cluster/roster.h.
 *
 * One thread asks, reads answers, forgets, writes the file and tells of changes. The sender's thread only lays answers down (landed). Nodes are a sorted array of pointers; a node is freed by the
 * thread alone, and never while a question to it is on its way, so both may hold on to one without the lock.
 *
 *     a node is    asked                                     until
 *     in a ring    every ask_ms, a quarter more or less      --
 *     left         the same                                  it said that it is drained, then no more
 *     silent       less and less often                       LIMIT_ROSTER_ASK_MAX_MS between two questions
 *
 * Those that are silent have half of the questions that may be on their way, so that a part of the fleet that is gone does not keep the rest from being asked.
 *
 * What others remember is taken for who is unknown here. Of a node that is known, what it said itself counts; but that it is drained is believed of others as well, when it does not answer here, is in no
 * ring, and they heard it later.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/cluster_roster_int.h"

enum { SCAN_GAP_MS = 10, SAVE_MS = 1000, MS_NS = 1000000 };

struct node {
	struct roster *roster;
	struct roster_node now; /* its address is this node's own memory */
	bool local;		/* its address is --hashrings.local-endpoint */
	bool wanted;		/* by --peers */
	bool member;		/* is or was in a ring, or somebody remembers it; else it is wanted, and nothing else */
	bool asked;		/* at least once */
	bool asking, silent;	/* silent: the question on its way is one to a node that did not answer the one before */
	bool changed;		/* to be told */
	uint32_t fails;		/* in a row */
	int64_t due_ns;
	int64_t heard_mono_ms; /* its last answer; at first: when it came to be known */
	struct metric *up, *state;

	/* an answer that was laid down */
	struct node *came_next;
	errc came_rc;
	int came_status;
	char *came;
	size_t came_n;
};

struct roster {
	struct roster_config cfg;
	uint64_t started_ms;

	pthread_mutex_t mu;  /* guards what follows, and the nodes */
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool stop, look;
	enum node_state mine;
	uint64_t epoch; /* of the rings in force */
	struct node **nodes;
	size_t n, cap;
	struct node *came;
	uint32_t n_asking, n_silent;
	bool dirty, full_said, save_said;

	pthread_t thread;
	bool started;
	struct metric *answered, *failed, *disagree, *remembered;
};

/* ---- the table ---- */

static size_t place_of(const struct roster *r, struct span address)
{
	size_t lo = 0, hi = r->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (span_cmp(r->nodes[mid]->now.address, address) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct node *find_locked(const struct roster *r, struct span address)
{
	size_t i = place_of(r, address);
	return i < r->n && span_eq(r->nodes[i]->now.address, address) ? r->nodes[i] : NULL;
}

static void node_free(struct node *n)
{
	if (!n)
		return;
	free((void *)(uintptr_t)n->now.address.p);
	free(n->came);
	free(n);
}

/* NULL: no memory. */
static struct node *add_locked(struct roster *r, struct span address)
{
	struct node *n = calloc(1, sizeof *n);
	char *copy = strndup(address.p, address.n);
	if (r->n == r->cap && n && copy) {
		size_t cap = r->cap ? 2 * r->cap : 32;
		struct node **grown = realloc(r->nodes, cap * sizeof *grown);
		if (grown) {
			r->nodes = grown;
			r->cap = cap;
		}
	}
	if (!n || !copy || r->n == r->cap) {
		free(n);
		free(copy);
		return NULL;
	}
	n->roster = r;
	n->now.address = span_of(copy, address.n);
	n->now.stores = true;
	n->heard_mono_ms = io_mono_ms();
	n->local = n->now.self = n->now.answers = span_eq(address, r->cfg.self);
	n->changed = true;
	if (!n->local) {
		n->up = metric_gauge_with("varve_peer_up", "1 when a node answered the last question to it", "peer", copy);
		n->state = metric_gauge_with(
			"varve_peer_state", "What a node said of itself last: 0 nothing, 1 joining, 2 active, 3 draining, 4 drained", "peer", copy);
		metric_set(n->up, 0);
		metric_set(n->state, 0);
	}
	size_t at = place_of(r, address);
	memmove(r->nodes + at + 1, r->nodes + at, (r->n - at) * sizeof *r->nodes);
	r->nodes[at] = n;
	r->n++;
	r->dirty = true;
	return n;
}

static void forget_locked(struct roster *r, size_t at)
{
	struct node *n = r->nodes[at];
	if (n->up) {
		metric_set(n->up, 0);
		metric_set(n->state, 0);
	}
	memmove(r->nodes + at, r->nodes + at + 1, (r->n - at - 1) * sizeof *r->nodes);
	r->n--;
	r->dirty = true;
	node_free(n);
}

static bool may_go(const struct node *n)
{
	return !n->now.in_ring && !n->local && !n->wanted && !n->asking && !n->changed;
}

/* Who left so long ago that what it had is in the bucket or nowhere; and who left first, when there are too many. */
static void forget_old_locked(struct roster *r)
{
	int64_t now_ms = io_now_ms();
	for (size_t i = r->n; i-- > 0;) {
		const struct node *n = r->nodes[i];
		if (!may_go(n) || now_ms - n->now.left_ms <= r->cfg.remember_ms)
			continue;
		log_info("a node that left is forgotten", LSPAN("node", n->now.address), LSTR("state", node_state_name(n->now.state)));
		forget_locked(r, i);
	}
	while (r->n > LIMIT_ROSTER_NODES) {
		size_t first = r->n;
		for (size_t i = 0; i < r->n; i++)
			if (may_go(r->nodes[i]) && (first == r->n || r->nodes[i]->now.left_ms < r->nodes[first]->now.left_ms))
				first = i;
		if (first == r->n)
			break;
		if (!r->full_said)
			log_warn("too many nodes left the rings: those that left first are forgotten", LU64("limit", LIMIT_ROSTER_NODES));
		r->full_said = true;
		forget_locked(r, first);
	}
}

/* ---- what is learned ---- */

static void set_left_locked(struct roster *r, struct node *n, int64_t left_ms)
{
	n->now.in_ring = left_ms == 0;
	n->now.left_ms = left_ms;
	n->member = n->changed = r->dirty = true;
}

void roster_rings(struct roster *r, struct ring_set *now)
{
	int64_t now_ms = io_now_ms();
	uint32_t node;
	pthread_mutex_lock(&r->mu);
	r->epoch = now ? ring_set_epoch(now) : 0;
	for (uint32_t i = 0; now && i < ring_set_n_nodes(now); i++) {
		struct span address = ring_set_node(now, i)->address;
		struct node *n = find_locked(r, address);
		n = n ? n : add_locked(r, address);
		if (!n)
			log_error("no memory to remember a node of the ring: it is not asked", LSPAN("node", address));
		else if (!n->now.in_ring)
			set_left_locked(r, n, 0);
	}
	for (size_t i = 0; i < r->n; i++) {
		struct node *n = r->nodes[i];
		if (n->now.in_ring && !(now && ring_set_find(now, n->now.address, &node)))
			set_left_locked(r, n, now_ms);
	}
	r->look = true;
	pthread_cond_signal(&r->wake);
	pthread_mutex_unlock(&r->mu);
}

/* Not: who left long ago, and who said that it left in times to come. */
static void learn_locked(struct roster *r, const struct roster_memory *m)
{
	int64_t now_ms = io_now_ms();
	struct node *n = find_locked(r, m->address);
	int64_t left_ms = m->left_ms > 0 && m->left_ms < now_ms ? m->left_ms : now_ms;
	if (n && n->local)
		return;
	if (n && n->member) {
		bool drained = m->state == NODE_DRAINED && !n->now.in_ring && !n->now.self && !n->now.answers && m->heard_ms >= n->now.heard_ms;
		if (drained && n->now.state != NODE_DRAINED) {
			n->now.state = NODE_DRAINED;
			n->now.heard_ms = m->heard_ms;
			n->changed = r->dirty = true;
		}
		return;
	}
	if (now_ms - left_ms > r->cfg.remember_ms || (!n && (r->n >= LIMIT_ROSTER_NODES || !(n = add_locked(r, m->address)))))
		return;
	set_left_locked(r, n, left_ms);
	if (n->now.heard_ms != 0) /* it said itself what it is */
		return;
	n->now.state = m->state;
	n->now.stores = m->stores;
	n->now.heard_ms = m->heard_ms;
	memcpy(n->now.id, m->id, sizeof n->now.id);
}

static int64_t later_ns(int64_t ms)
{
	int64_t ns = ms * MS_NS;
	return io_mono_ns() + ns * 3 / 4 + (int64_t)(io_random_u64() % (uint64_t)(ns / 2 + 1));
}

static void silent_locked(struct roster *r, struct node *n, const struct err *why)
{
	metric_add(r->failed, 1);
	if (n->now.answers || n->fails == 0)
		log_info("a node does not answer", LSPAN("node", n->now.address), LERR(why));
	n->changed |= n->now.answers;
	n->now.answers = n->now.self = false;
	n->fails += n->fails < 16;
	int64_t ms = r->cfg.ask_ms << n->fails;
	n->due_ns = later_ns(ms < LIMIT_ROSTER_ASK_MAX_MS ? ms : LIMIT_ROSTER_ASK_MAX_MS);
}

static void heard_locked(struct roster *r, struct node *n, const struct roster_words *w)
{
	struct roster_node *now = &n->now;
	metric_add(r->answered, 1);
	bool self = r->cfg.id && *r->cfg.id && strcmp(w->id, r->cfg.id) == 0;
	if (self && !now->self)
		log_warn("a node of the rings is this one: --hashrings.local-endpoint says otherwise", LSPAN("node", now->address),
			LSPAN("local", r->cfg.self));
	bool restarted = now->started_ms != 0 && now->started_ms != w->started_ms;
	bool other = now->state != w->state || strcmp(now->id, w->id) != 0 || now->stores != w->stores;
	n->changed |= other || restarted || !now->answers || now->self != self;
	r->dirty |= other;
	now->answers = true;
	now->self = self;
	now->state = w->state;
	now->stores = w->stores;
	now->epoch = w->epoch;
	now->heard_ms = io_now_ms();
	n->heard_mono_ms = io_mono_ms();
	now->started_ms = w->started_ms;
	memcpy(now->id, w->id, sizeof now->id);
	n->fails = 0;
	n->due_ns = later_ns(r->cfg.ask_ms);
	for (size_t i = 0; i < w->n_remembered; i++)
		learn_locked(r, &w->remembered[i]);
}

/* ---- questions ---- */

static void landed(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct node *n = arg;
	struct roster *r = n->roster;
	char *copy = NULL;
	size_t len = rc == OK ? answer.n : strlen(err->msg);
	if ((copy = malloc(len + 1)) != NULL) {
		memcpy(copy, rc == OK ? answer.p : err->msg, len);
		copy[len] = 0;
	}
	pthread_mutex_lock(&r->mu);
	n->came_rc = rc == OK && !copy ? ERR_NOMEM : rc;
	n->came_status = status;
	n->came = copy;
	n->came_n = copy ? len : 0;
	n->came_next = r->came;
	r->came = n;
	pthread_cond_signal(&r->wake);
	pthread_mutex_unlock(&r->mu);
}

static void read_locked(struct roster *r, struct node *n)
{
	struct arena a;
	struct err err = {0};
	struct roster_words w;
	errc rc = n->came_rc;
	arena_init(&a, 16 * LIMIT_ROSTER_ANSWER_BYTES);
	n->asking = false;
	n->asked = true;
	r->n_asking--;
	r->n_silent -= n->silent;
	if (rc != OK)
		err_set(&err, rc, "%s", n->came ? n->came : "no memory for its answer");
	else if (n->came_status != 200)
		rc = err_set(&err, ERR_DENIED, "%d %.*s", n->came_status, n->came_n > 200 ? 200 : (int)n->came_n, n->came);
	else
		rc = roster_read_answer(span_of(n->came, n->came_n), &a, &w, &err);
	if (rc == OK)
		heard_locked(r, n, &w);
	else if (!r->stop)
		silent_locked(r, n, &err);
	if (n->up) {
		metric_set(n->up, n->now.answers);
		metric_set(n->state, n->now.state);
	}
	free(n->came);
	n->came = NULL;
	arena_free(&a);
}

static bool worth_asking(const struct node *n)
{
	return !n->local && !n->asking && (n->now.in_ring || n->wanted || (n->member && n->now.state != NODE_DRAINED));
}

/* Those that are due, as many as may be on their way; *next_ns: when the next one is. */
static size_t pick_locked(struct roster *r, struct node *out[LIMIT_ROSTER_ASKED], int64_t *next_ns)
{
	size_t k = 0;
	int64_t now_ns = io_mono_ns();
	for (int silent = 0; silent < 2; silent++)
		for (size_t i = 0; i < r->n; i++) {
			struct node *n = r->nodes[i];
			if (!worth_asking(n) || (n->fails > 0) != silent)
				continue;
			if (n->due_ns > now_ns) {
				*next_ns = n->due_ns < *next_ns ? n->due_ns : *next_ns;
				continue;
			}
			if (r->n_asking >= LIMIT_ROSTER_ASKED || (silent && r->n_silent >= LIMIT_ROSTER_ASKED / 2))
				continue; /* an answer wakes us */
			n->asking = true;
			n->silent = silent;
			r->n_asking++;
			r->n_silent += n->silent;
			out[k++] = n;
		}
	return k;
}

static void ask(struct node *n)
{
	struct err err = {0};
	const struct link_call c = {
		.address = n->now.address,
		.method = "GET",
		.target = "/-/ring?hashrings=0",
		.deadline_mono_ns = io_mono_ns() + (int64_t)LIMIT_ROSTER_ANSWER_MS * MS_NS,
		.max_answer_bytes = LIMIT_ROSTER_ANSWER_BYTES,
		.done = landed,
		.arg = n,
	};
	errc rc = link_send(n->roster->cfg.link, &c, &err);
	if (rc != OK)
		landed(n, rc, 0, SPAN(""), &err);
}

/* ---- the file ---- */

static void write_all_locked(const struct roster *r, struct buf *out)
{
	buf_printf(out, ROSTER_FILE_HEAD);
	for (size_t i = 0, k = 0; i < r->n; i++) {
		if (r->nodes[i]->local || !r->nodes[i]->member)
			continue;
		buf_printf(out, k++ ? ",\n" : "\n");
		roster_write_node(out, &r->nodes[i]->now);
	}
	buf_printf(out, "\n]}\n");
}

static void save(struct roster *r)
{
	struct buf b = {0};
	struct err err = {0};
	buf_init(&b, 2 * LIMIT_ROSTER_FILE_BYTES);
	pthread_mutex_lock(&r->mu);
	write_all_locked(r, &b);
	r->dirty = false;
	pthread_mutex_unlock(&r->mu);
	errc rc = b.failed ? err_set(&err, ERR_NOMEM, "no memory") : io_write_file(r->cfg.file, span_of(b.p, b.n), &err);
	if (rc != OK) {
		if (!r->save_said)
			log_warn("the roster can't be written; it is tried again every second", LERR(&err));
		pthread_mutex_lock(&r->mu);
		r->dirty = true;
		pthread_mutex_unlock(&r->mu);
	}
	r->save_said = rc != OK;
	buf_free(&b);
}

/* A roster that can't be read costs the memory of nodes that left; the peers remember them as well. */
static errc load(struct roster *r, struct err *err)
{
	struct arena a;
	struct span text;
	struct roster_memory *v = NULL;
	size_t n = 0;
	struct err local = {0};
	arena_init(&a, 16 * LIMIT_ROSTER_FILE_BYTES);
	errc rc = io_read_file(r->cfg.file, LIMIT_ROSTER_FILE_BYTES, &a, &text, &local);
	if (rc == OK)
		rc = roster_read_file(text, &a, &v, &n, &local);
	for (size_t i = 0; rc == OK && i < n; i++)
		learn_locked(r, &v[i]);
	if (rc != OK && rc != ERR_NOTFOUND && rc != ERR_NOMEM)
		log_warn("the roster can't be read: it begins empty, and is asked of peers", LSTR("file", r->cfg.file), LERR(&local));
	arena_free(&a);
	return rc == ERR_NOMEM ? err_set(err, ERR_NOMEM, "%s: %s", r->cfg.file, local.msg) : OK;
}

/* ---- the thread ---- */

/* The nodes stay: only this thread frees them. */
static void tell(struct roster *r)
{
	for (size_t i = 0;; i++) {
		struct roster_node copy;
		bool changed = false, member = false;
		pthread_mutex_lock(&r->mu);
		while (i < r->n && !r->nodes[i]->changed)
			i++;
		if (i < r->n) {
			changed = true;
			r->nodes[i]->changed = false;
			member = r->nodes[i]->member || r->nodes[i]->local;
			copy = r->nodes[i]->now;
		}
		pthread_mutex_unlock(&r->mu);
		if (!changed)
			return;
		if (r->cfg.on_change && member)
			r->cfg.on_change(r->cfg.arg, &copy);
	}
}

static void count_locked(const struct roster *r)
{
	size_t disagree = 0, left = 0;
	for (size_t i = 0; i < r->n; i++) {
		const struct roster_node *n = &r->nodes[i]->now;
		disagree += n->in_ring && n->answers && !n->self && n->epoch != r->epoch;
		left += r->nodes[i]->member && !n->in_ring && !n->self && n->state != NODE_DRAINED;
	}
	metric_set(r->disagree, (double)disagree);
	metric_set(r->remembered, (double)left);
}

static bool changes_locked(const struct roster *r)
{
	for (size_t i = 0; i < r->n; i++)
		if (r->nodes[i]->changed)
			return true;
	return false;
}

static void *run(void *arg)
{
	struct roster *r = arg;
	struct node *due[LIMIT_ROSTER_ASKED];
	int64_t next_ns = 0, scanned_ns = 0, saved_ns = 0;
	bool room = false; /* since the last look over all: a question may go that had to wait */
	pthread_mutex_lock(&r->mu);
	while (!r->stop || r->n_asking > 0) {
		for (struct node *n; (n = r->came);) {
			r->came = n->came_next;
			read_locked(r, n);
			room = true;
			next_ns = n->due_ns < next_ns ? n->due_ns : next_ns;
		}
		int64_t now_ns = io_mono_ns();
		size_t k = 0;
		if (!r->stop && (r->look || room || now_ns >= next_ns) && (r->look || now_ns >= scanned_ns + (int64_t)SCAN_GAP_MS * MS_NS)) {
			r->look = room = false;
			scanned_ns = now_ns;
			next_ns = now_ns + (int64_t)LIMIT_ROSTER_ASK_MAX_MS * MS_NS; /* somebody may have to be forgotten */
			forget_old_locked(r);
			count_locked(r);
			k = pick_locked(r, due, &next_ns);
		}
		bool changes = changes_locked(r), write = r->cfg.file && r->dirty && now_ns >= saved_ns + (int64_t)SAVE_MS * MS_NS;
		if (k > 0 || changes || write) {
			pthread_mutex_unlock(&r->mu);
			for (size_t i = 0; i < k; i++)
				ask(due[i]);
			if (changes)
				tell(r);
			if (write) {
				saved_ns = now_ns;
				save(r);
			}
			pthread_mutex_lock(&r->mu);
			continue;
		}
		if (r->came || r->look)
			continue;
		int64_t gap_ns = scanned_ns + (int64_t)SCAN_GAP_MS * MS_NS, until_ns = room || next_ns < gap_ns ? gap_ns : next_ns;
		if (r->cfg.file && r->dirty && saved_ns + (int64_t)SAVE_MS * MS_NS < until_ns)
			until_ns = saved_ns + (int64_t)SAVE_MS * MS_NS;
		const struct timespec t = {until_ns / 1000000000, until_ns % 1000000000};
		pthread_cond_timedwait(&r->wake, &r->mu, &t);
	}
	pthread_mutex_unlock(&r->mu);
	return NULL;
}

/* ---- what others ask ---- */

void roster_say(struct roster *r, enum node_state s)
{
	pthread_mutex_lock(&r->mu);
	bool other = r->mine != s;
	r->mine = s;
	struct node *self = other && r->cfg.self.n > 0 ? find_locked(r, r->cfg.self) : NULL;
	if (self) {
		self->now.state = s;
		self->changed = true;
		pthread_cond_signal(&r->wake);
	}
	pthread_mutex_unlock(&r->mu);
	if (other)
		log_info("this node says of itself", LSTR("state", node_state_name(s)));
}

enum node_state roster_said(struct roster *r)
{
	pthread_mutex_lock(&r->mu);
	enum node_state s = r->mine;
	pthread_mutex_unlock(&r->mu);
	return s;
}

static struct roster_node shown_locked(const struct roster *r, const struct node *n)
{
	struct roster_node v = n->now;
	if (v.self) {
		v.answers = true;
		v.state = r->mine;
		v.epoch = r->epoch;
		v.heard_ms = io_now_ms();
	}
	return v;
}

errc roster_nodes(struct roster *r, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	pthread_mutex_lock(&r->mu);
	*n = 0;
	*out = arena_calloc(arena, r->n, sizeof **out);
	bool good = *out != NULL;
	for (size_t i = 0; good && i < r->n; i++) {
		if (!r->nodes[i]->member && !r->nodes[i]->local)
			continue;
		struct roster_node *v = &(*out)[(*n)++];
		*v = shown_locked(r, r->nodes[i]);
		v->address = arena_dup(arena, v->address);
		good = v->address.p != NULL;
	}
	pthread_mutex_unlock(&r->mu);
	return good ? OK : err_set(err, ERR_NOMEM, "no memory for a list of the nodes");
}

/* ---- candidates ---- */

errc roster_want(struct roster *r, const struct span *addresses, size_t n, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&r->mu);
	for (size_t i = 0; i < r->n; i++)
		r->nodes[i]->wanted = false;
	for (size_t i = 0; i < n; i++) {
		struct node *v = find_locked(r, addresses[i]);
		v = v ? v : add_locked(r, addresses[i]);
		if (!v)
			rc = err_set(err, ERR_NOMEM, "no memory for %zu nodes", n);
		else
			v->wanted = true;
	}
	r->look = true;
	pthread_cond_signal(&r->wake);
	pthread_mutex_unlock(&r->mu);
	return rc;
}

errc roster_candidates(struct roster *r, struct arena *arena, struct roster_candidate **out, size_t *n, struct err *err)
{
	pthread_mutex_lock(&r->mu);
	*n = 0;
	*out = arena_calloc(arena, r->n, sizeof **out);
	bool good = *out != NULL;
	for (size_t i = 0; good && i < r->n; i++) {
		const struct node *v = r->nodes[i];
		if (!v->wanted && !v->now.in_ring)
			continue;
		struct roster_candidate *c = &(*out)[(*n)++];
		*c = (struct roster_candidate){.node = shown_locked(r, v), .wanted = v->wanted, .asked = v->asked || v->local};
		c->silent_ms = c->node.answers ? 0 : io_mono_ms() - v->heard_mono_ms;
		c->node.address = arena_dup(arena, c->node.address);
		good = c->node.address.p != NULL;
	}
	pthread_mutex_unlock(&r->mu);
	return good ? OK : err_set(err, ERR_NOMEM, "no memory for a list of the nodes");
}

void roster_look(struct roster *r, struct span address)
{
	pthread_mutex_lock(&r->mu);
	struct node *n = find_locked(r, address);
	if (n) {
		n->due_ns = 0;
		r->look = true;
		pthread_cond_signal(&r->wake);
	}
	pthread_mutex_unlock(&r->mu);
}

void roster_json(struct roster *r, struct buf *out)
{
	pthread_mutex_lock(&r->mu);
	roster_write_self(out, &r->cfg, r->mine, r->started_ms);
	buf_printf(out, ",\"remembered\":[");
	for (size_t i = 0, k = 0; i < r->n; i++) {
		const struct roster_node *n = &r->nodes[i]->now;
		if (n->in_ring || n->self || !r->nodes[i]->member)
			continue;
		if (k++)
			buf_u8(out, ',');
		roster_write_node(out, n);
	}
	buf_u8(out, ']');
	pthread_mutex_unlock(&r->mu);
}

/* ---- life ---- */

static void metrics_open(struct roster *r)
{
	static const char name[] = "varve_roster_questions_total", help[] = "Questions to other nodes what they are, by their end";
	r->answered = metric_counter_with(name, help, "result", "answered");
	r->failed = metric_counter_with(name, help, "result", "failed");
	r->disagree = metric_gauge("varve_ring_disagreeing_nodes", "Nodes of the rings in force that go by other ones, as they last said");
	r->remembered = metric_gauge("varve_roster_left_nodes", "Nodes that left the rings and may still have something that nobody else has");
}

errc roster_open(const struct roster_config *cfg, struct roster **out, struct err *err)
{
	errc rc = OK;
	struct node *self = NULL;
	struct roster *r = calloc(1, sizeof *r);
	if (!r)
		return err_set(err, ERR_NOMEM, "no memory for a roster");
	r->cfg = *cfg;
	r->cfg.ask_ms = cfg->ask_ms > 0 ? cfg->ask_ms : LIMIT_ROSTER_ASK_MS;
	r->started_ms = (uint64_t)io_now_ms();
	r->mine = NODE_JOINING;
	pthread_mutex_init(&r->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->wake, &attr);
	pthread_condattr_destroy(&attr);
	metrics_open(r);
	if (cfg->self.n > 0) {
		self = add_locked(r, cfg->self);
		CHECK(self, ERR_NOMEM, "no memory for a roster");
		self->now.state = r->mine;
		self->now.left_ms = io_now_ms();
	}
	if (cfg->file)
		TRY(load(r, err));
	CHECK(pthread_create(&r->thread, NULL, run, r) == 0, ERR_AGAIN, "no thread to ask nodes");
	r->started = true;
	*out = r;
	return OK;
fail:
	roster_close(r);
	return rc;
}

void roster_close(struct roster *r)
{
	if (!r)
		return;
	if (r->started) {
		pthread_mutex_lock(&r->mu);
		r->stop = true;
		pthread_cond_signal(&r->wake);
		pthread_mutex_unlock(&r->mu);
		pthread_join(r->thread, NULL);
		if (r->cfg.file && r->dirty)
			save(r);
	}
	for (size_t i = 0; i < r->n; i++)
		node_free(r->nodes[i]);
	free(r->nodes);
	pthread_cond_destroy(&r->wake);
	pthread_mutex_destroy(&r->mu);
	free(r);
}
