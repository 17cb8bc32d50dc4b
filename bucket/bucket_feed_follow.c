/* bucket/bucket_feed_follow.c - asking peers what changed, all the time, and applying it.
 *
 *     peers() ──once a second──▶ slots ──due──▶ ask() ··held by the peer·· done ──▶ list ──▶ feed_hear ──▶ due again
 *                                  ▲                                                            │
 *                                  └── after a look at the snapshots: again, then jump ◀── gap ─┘
 *
 * One thread, and one question to each peer. Peers beyond LIMIT_FEED_POLLS take turns, each held for a part of the time, so that everybody is heard
 * within it all the same. What comes is applied one answer after the other, each in its own transaction with the position that it reaches.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_feed_int.h"

enum { LIST_MS = 1000, PERIOD_MS = 50, OTHER_NODE_MS = 1000, SILENT_MS = 5000, GONE_FAILURES = 3, MS = 1000000 };

struct slot {
	char *address;
	char node[FEED_NODE_BYTES];
	uint64_t id; /* of the slot's tenant: an answer to an earlier one is nobody's; 0: free */
	bool asked, listed;
	bool leaving;	   /* and when it has failed some times, gone */
	bool failing;	   /* said in the log */
	uint32_t failures; /* in a row */
	uint64_t gap_at;   /* the look at snapshots that its gap waits for; 0: no gap */
	int64_t next_ns, asked_ns, heard_ns;
};

struct follower {
	struct feed *f;
	struct slot *slots;
	size_t n, cap, n_asked;
	uint64_t ids;
	int64_t list_ns;
	bool list_failing;
};

/* ---- whom ---- */

static bool gone(const struct slot *s)
{
	return s->leaving && s->failures >= GONE_FAILURES;
}

/* A node's id goes into a URL as it is. */
static bool node_good(const char *s)
{
	if (!*s)
		return false;
	for (; *s; s++)
		if (!((*s >= '0' && *s <= '9') || (*s >= 'A' && *s <= 'Z') || (*s >= 'a' && *s <= 'z') || *s == '-' || *s == '_' || *s == '.'))
			return false;
	return true;
}

static struct slot *slot_of(struct follower *w, const struct feed_peer *p)
{
	struct slot *unused = NULL;
	for (size_t i = 0; i < w->n; i++) {
		struct slot *s = &w->slots[i];
		if (s->id && span_is(p->address, s->address) && strcmp(s->node, p->node) == 0)
			return s;
		if (!s->id && !unused)
			unused = s;
	}
	if (!unused && w->n == w->cap) {
		size_t more = w->cap ? w->cap * 2 : 16;
		struct slot *v = realloc(w->slots, more * sizeof *v);
		if (!v)
			return NULL;
		w->slots = v;
		w->cap = more;
	}
	struct slot *s = unused ? unused : &w->slots[w->n];
	char *address = malloc(p->address.n + 1);
	if (!address)
		return NULL;
	memcpy(address, p->address.p, p->address.n);
	address[p->address.n] = 0;
	*s = (struct slot){.address = address, .id = ++w->ids, .heard_ns = io_mono_ns()};
	memcpy(s->node, p->node, sizeof s->node);
	s->node[sizeof s->node - 1] = 0;
	w->n += !unused;
	return s;
}

static void slot_free(struct slot *s)
{
	free(s->address);
	*s = (struct slot){0};
}

static void list(struct follower *w)
{
	struct feed *f = w->f;
	struct err err = {0};
	struct arena a;
	struct feed_peer *v;
	size_t n = 0, listed = 0, silent = 0;
	int64_t now = io_mono_ns();
	arena_init(&a, 64 * MIB);
	errc rc = f->cfg.peers(f->cfg.arg, &a, &v, &n, &err);
	if (rc != OK && !w->list_failing)
		log_warn("the nodes whose changes are to be followed are not known", LERR(&err));
	w->list_failing = rc != OK;
	for (size_t i = 0; rc == OK && i < w->n; i++)
		w->slots[i].listed = false;
	for (size_t i = 0; rc == OK && i < n; i++) {
		struct slot *s = v[i].stores && node_good(v[i].node) && strcmp(v[i].node, f->node) != 0 ? slot_of(w, &v[i]) : NULL;
		if (s) {
			s->listed = true;
			s->leaving = v[i].leaving;
		}
	}
	arena_free(&a);
	for (size_t i = 0; i < w->n; i++) {
		struct slot *s = &w->slots[i];
		if (s->id && !s->listed && !s->asked)
			slot_free(s);
		listed += s->listed && !gone(s);
		silent += s->listed && !gone(s) && now - s->heard_ns > SILENT_MS * (int64_t)MS;
	}
	metric_set(f->m_peers, (double)listed);
	metric_set(f->m_silent, (double)silent);
	w->list_ns = now + LIST_MS * (int64_t)MS;
}

/* ---- asking ---- */

/* On the sender's thread. */
static void landed(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct feed_poll *p = arg;
	struct feed *f = p->feed;
	p->rc = rc;
	p->status = status;
	if (rc != OK && err)
		p->err = *err;
	if (rc == OK && answer.n > 0) {
		p->bytes = malloc(answer.n);
		p->n = answer.n;
		if (p->bytes)
			memcpy(p->bytes, answer.p, answer.n);
		else
			p->rc = err_set(&p->err, ERR_NOMEM, "no memory for what a peer says has changed");
	}
	pthread_mutex_lock(&f->mu);
	if (p->rc == OK && p->n > 0 && f->arrived_bytes > 0 && f->arrived_bytes + p->n > LIMIT_FEED_QUEUED_BYTES) {
		p->rc = err_set(&p->err, ERR_AGAIN, "too many changes wait to be applied");
		free(p->bytes);
		p->bytes = NULL;
	}
	if (p->rc != OK)
		p->n = 0;
	f->arrived_bytes += p->n;
	p->next = f->arrived;
	f->arrived = p;
	f->in_flight--;
	pthread_cond_signal(&f->follow);
	pthread_cond_broadcast(&f->idle);
	pthread_mutex_unlock(&f->mu);
}

static void failed(struct follower *w, struct slot *s, const struct err *err)
{
	int64_t pause = LIMIT_FEED_BACKOFF_MS;
	for (uint32_t i = 0; i < s->failures && pause < LIMIT_FEED_BACKOFF_MAX_MS; i++)
		pause *= 2;
	s->failures++;
	/* Drawn from its upper half, so that many do not come back in step. */
	pause = pause < LIMIT_FEED_BACKOFF_MAX_MS ? pause : LIMIT_FEED_BACKOFF_MAX_MS;
	s->next_ns = io_mono_ns() + (pause / 2 + (int64_t)(io_random_u64() % (uint64_t)(pause / 2 + 1))) * MS;
	metric_add(w->f->m_failures, 1);
	if (!s->failing && !s->leaving)
		log_warn("a peer does not tell what changed in the bucket; it is asked again, and audits find it meanwhile", LSTR("peer", s->address),
			LSTR("node", s->node), LERR(err));
	s->failing = true;
}

static void ask(struct follower *w, size_t i, int64_t wait_ms)
{
	struct feed *f = w->f;
	struct slot *s = &w->slots[i];
	struct err err = {0};
	errc rc = OK;
	struct feed_position at;
	char target[256], feed[ULID_TEXT_BYTES + 7] = "";
	struct feed_poll *p = calloc(1, sizeof *p);
	if (!p) {
		err_set(&err, ERR_NOMEM, "no memory for a question");
		failed(w, s, &err);
		return;
	}
	rc = feed_where(f->cfg.catalog, span_cstr(s->node), &at, &err);
	if (rc == OK) {
		if (!ulid_is_zero(at.feed))
			snprintf(feed, sizeof feed, "&feed=%s", ulid_text(at.feed).s);
		snprintf(target, sizeof target, FEED_PATH "?node=%s%s&after=%" PRIu64 "&limit=%d&wait=%" PRId64 "ms&by=%s", s->node, feed, at.seq,
			LIMIT_FEED_CHANGES, wait_ms, f->node);
		p->feed = f;
		p->peer = i;
		p->peer_id = s->id;
		s->asked_ns = io_mono_ns();
		const struct feed_ask q = {.address = span_cstr(s->address),
			.target = target,
			.deadline_mono_ns = s->asked_ns + (wait_ms + LIMIT_FEED_SLACK_MS) * MS,
			.max_answer_bytes = LIMIT_FEED_ANSWER_BYTES + LIMIT_FEED_RECORD_BYTES + MIB,
			.done = landed,
			.arg = p};
		pthread_mutex_lock(&f->mu);
		f->in_flight++;
		pthread_mutex_unlock(&f->mu);
		s->asked = true;
		w->n_asked++;
		rc = f->cfg.ask(f->cfg.arg, &q, &err);
		if (rc == OK)
			return;
		pthread_mutex_lock(&f->mu);
		f->in_flight--;
		pthread_mutex_unlock(&f->mu);
		s->asked = false;
		w->n_asked--;
	}
	free(p);
	failed(w, s, &err);
}

/* ---- hearing ---- */

/* What lies between is not told any more. First a snapshot may have it; else it is left to an audit. */
static errc gap(struct follower *w, struct slot *s, const struct feed_heard *h, struct err *err)
{
	struct feed *f = w->f;
	errc rc = OK;
	pthread_mutex_lock(&f->mu);
	bool looked = s->gap_at > 0 && f->minded >= s->gap_at;
	if (s->gap_at == 0) {
		/* A look that is under way may have passed by what this one needs. */
		s->gap_at = ++f->wanted;
		pthread_cond_signal(&f->snapshot);
	}
	pthread_mutex_unlock(&f->mu);
	if (!looked)
		return OK;
	log_info("changes of a peer were missed that no snapshot has: an audit of the bucket finds them", LSTR("peer", s->address),
		LSTR("node", s->node), LU64("read_up_to", h->at.seq), LU64("goes_on_at", h->newest.seq));
	rc = feed_jump(f->cfg.catalog, span_cstr(s->node), h->newest, err);
	if (rc == OK) {
		metric_add(f->m_gaps, 1);
		s->gap_at = 0;
	}
	return rc;
}

static void hear(struct follower *w, struct slot *s, const struct feed_poll *p)
{
	struct feed *f = w->f;
	struct err err = p->err;
	struct feed_heard h = {0};
	errc rc = p->rc;
	int64_t now = io_mono_ns();
	if (rc == OK && p->status != 200 && p->status != 410)
		rc = err_set(&err, ERR_NET, "status %d: %.*s", p->status, (int)(p->n < 200 ? p->n : 200), p->bytes ? p->bytes : "");
	else if (rc == OK)
		rc = feed_hear(f->cfg.catalog, span_cstr(s->node), span_of(p->bytes ? p->bytes : "", p->n), &h, &err);
	if (rc == ERR_NOTFOUND) {
		/* Its address is another node's now: the list will say so. */
		s->next_ns = now + OTHER_NODE_MS * (int64_t)MS;
		return;
	}
	if (rc == OK && h.gap)
		rc = gap(w, s, &h, &err);
	else if (rc == OK)
		s->gap_at = 0;
	if (rc != OK) {
		failed(w, s, &err);
		return;
	}
	if (s->failing)
		log_info("a peer tells what changed in the bucket again", LSTR("peer", s->address), LSTR("node", s->node));
	metric_add(f->m_applied, h.applied);
	s->failing = false;
	s->failures = 0;
	s->heard_ns = now;
	/* At once when there is more; and a peer that does not hold questions is not asked in a circle. */
	s->next_ns = h.n > 0 ? now : s->asked_ns + PERIOD_MS * (int64_t)MS;
}

static void hear_all(struct follower *w)
{
	struct feed *f = w->f;
	pthread_mutex_lock(&f->mu);
	struct feed_poll *list = NULL;
	while (f->arrived) {
		struct feed_poll *p = f->arrived;
		f->arrived = p->next;
		p->next = list;
		list = p;
	}
	pthread_mutex_unlock(&f->mu);
	while (list) {
		struct feed_poll *p = list;
		list = p->next;
		struct slot *s = &w->slots[p->peer];
		if (s->id == p->peer_id) {
			s->asked = false;
			w->n_asked--;
			hear(w, s, p);
		}
		pthread_mutex_lock(&f->mu);
		f->arrived_bytes -= p->n;
		pthread_mutex_unlock(&f->mu);
		free(p->bytes);
		free(p);
	}
}

/* ---- the thread ---- */

/* Asks whom it is time to ask; returns when to look again. */
static int64_t ask_due(struct follower *w)
{
	struct feed *f = w->f;
	int64_t now = io_mono_ns(), next = w->list_ns;
	size_t listed = 0;
	for (size_t i = 0; i < w->n; i++)
		listed += w->slots[i].listed && !gone(&w->slots[i]);
	/* Peers that all hold their questions to the end leave in waves: this many. */
	int64_t waves = (int64_t)((listed + LIMIT_FEED_POLLS - 1) / LIMIT_FEED_POLLS);
	int64_t wait_ms = waves > 1 ? f->wait_ms / waves : f->wait_ms;
	pthread_mutex_lock(&f->mu);
	uint64_t minded = f->minded;
	pthread_mutex_unlock(&f->mu);
	/* Who has waited longest comes first. */
	for (;;) {
		size_t best = w->n;
		for (size_t i = 0; i < w->n; i++) {
			const struct slot *s = &w->slots[i];
			if (!s->listed || s->asked || s->gap_at > minded || gone(s))
				continue;
			if (best == w->n || s->next_ns < w->slots[best].next_ns)
				best = i;
		}
		if (best == w->n)
			return next;
		if (w->slots[best].next_ns > now)
			return w->slots[best].next_ns < next ? w->slots[best].next_ns : next;
		if (w->n_asked >= LIMIT_FEED_POLLS)
			return next;
		ask(w, best, wait_ms);
	}
}

void *feed_follow_main(void *arg)
{
	struct feed *f = arg;
	struct follower w = {.f = f};
	for (;;) {
		pthread_mutex_lock(&f->mu);
		bool stop = f->stop || f->released;
		pthread_mutex_unlock(&f->mu);
		if (stop)
			break;
		if (io_mono_ns() >= w.list_ns)
			list(&w);
		hear_all(&w);
		int64_t next = ask_due(&w);
		pthread_mutex_lock(&f->mu);
		if (!f->arrived && !f->stop && !f->released)
			feed_wait(f, &f->follow, next);
		pthread_mutex_unlock(&f->mu);
	}
	for (size_t i = 0; i < w.n; i++)
		slot_free(&w.slots[i]);
	free(w.slots);
	return NULL;
}
