/* cluster/cluster_hints_hand.c - a hint on its way to the node that is to keep it: from who routed the write to who stored it.
 *
 *     POST /-/peer/hint?for=<address of whom it is for>       the body is the hint; 204: it is kept
 *
 * One attempt for each node that has all of it, the best first, each with a deadline; after the last one it is kept here, when this node keeps any at all, and else owed. Memory: all that is on its
 * way is LIMIT_HINTS_QUEUE_BYTES at most.
 */
#include <stdlib.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"

enum { ANSWER_BYTES = 4096, TARGET_BYTES = sizeof HINTS_PATH + 8 + 3 * LIMIT_RING_ADDRESS_BYTES };

struct errand {
	struct hints *h;
	struct span address, frame;
	uint32_t n_holders, at; /* at: the one that is asked, or would be next */
	struct span *holders;
	char bytes[]; /* of all that */
};

static struct errand *errand_make(struct hints *h, const struct cluster_missed *m)
{
	size_t n = sizeof(struct errand) + m->address.n + m->frame.n + 8;
	for (uint32_t i = 0; i < m->n_holders; i++)
		n += sizeof *m->holders + m->holders[i].n;
	struct errand *e = malloc(n);
	if (!e)
		return NULL;
	*e = (struct errand){.h = h, .n_holders = m->n_holders};
	/* the spans first, which are aligned there */
	e->holders = (struct span *)(void *)(((uintptr_t)e->bytes + 7) & ~(uintptr_t)7);
	char *p = (char *)(e->holders + m->n_holders);
	memcpy(p, m->address.p, m->address.n);
	e->address = span_of(p, m->address.n);
	p += m->address.n;
	memcpy(p, m->frame.p, m->frame.n);
	e->frame = span_of(p, m->frame.n);
	p += m->frame.n;
	for (uint32_t i = 0; i < m->n_holders; i++) {
		if (m->holders[i].n > 0)
			memcpy(p, m->holders[i].p, m->holders[i].n);
		e->holders[i] = span_of(p, m->holders[i].n);
		p += m->holders[i].n;
	}
	return e;
}

static void errand_end(struct errand *e, bool kept)
{
	struct hints *h = e->h;
	if (!kept && h->dir)
		(void)hints_add(h, e->address, e->frame, false);
	else if (!kept) {
		int64_t now = io_now_ms();
		struct hint_loss loss = {1, hints_samples_of(e->frame), now, now};
		hints_drop(h, e->address, DROP_HOLDER, &loss);
	}
	pthread_mutex_lock(&h->mu);
	h->errand_bytes -= e->frame.n;
	if (--h->calls == 0)
		pthread_cond_broadcast(&h->idle);
	pthread_cond_signal(&h->wake);
	pthread_mutex_unlock(&h->mu);
	free(e);
}

/* What a query may say as it is. */
static bool is_plain(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
}

static void target_of(struct span address, char out[TARGET_BYTES])
{
	static const char hex[] = "0123456789ABCDEF";
	static const char begin[] = HINTS_PATH "?for=";
	memcpy(out, begin, sizeof begin - 1);
	out += sizeof begin - 1;
	for (size_t i = 0; i < address.n; i++) {
		uint8_t c = (uint8_t)address.p[i];
		if (is_plain((char)c))
			*out++ = (char)c;
		else {
			*out++ = '%';
			*out++ = hex[c >> 4];
			*out++ = hex[c & 15];
		}
	}
	*out = 0;
}

static void errand_go(struct errand *e);

/* On the sender's thread. */
static void done(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct errand *e = arg;
	if (rc == OK && status == 204) {
		errand_end(e, true);
		return;
	}
	log_debug("a node does not keep a hint", LSPAN("holder", e->holders[e->at]), LSPAN("peer", e->address), LI64("status", status),
		LSTR("err", rc != OK && err ? err->msg : ""), LSPAN("answer", rc == OK ? answer : span_of("", 0)));
	e->at++;
	errand_go(e);
}

static void errand_go(struct errand *e)
{
	struct hints *h = e->h;
	char target[TARGET_BYTES];
	target_of(e->address, target);
	for (; e->at < e->n_holders; e->at++) {
		struct link_call call = {.address = e->holders[e->at],
			.method = "POST",
			.target = target,
			.content_type = PEER_CONTENT_TYPE,
			.body = e->frame,
			.deadline_mono_ns = io_mono_ns() + LIMIT_HINTS_HAND_MS * INT64_C(1000000),
			.max_answer_bytes = ANSWER_BYTES,
			.done = done,
			.arg = e};
		/* This node is tried last of all, whatever the order says. */
		if (call.address.n > 0 && h->cfg.send(h->cfg.link, &call, NULL) == OK)
			return;
	}
	errand_end(e, false);
}

void hints_hand_over(struct hints *h, const struct cluster_missed *m)
{
	enum hint_drop why = DROP_MEMORY;
	struct errand *e = m->address.n <= LIMIT_RING_ADDRESS_BYTES ? errand_make(h, m) : NULL;
	if (e) {
		pthread_mutex_lock(&h->mu);
		bool room = h->errand_bytes == 0 || h->errand_bytes + e->frame.n <= LIMIT_HINTS_QUEUE_BYTES;
		if (room) {
			h->errand_bytes += e->frame.n;
			h->calls++;
		}
		pthread_mutex_unlock(&h->mu);
		if (room) {
			errand_go(e);
			return;
		}
		why = DROP_QUEUE;
		free(e);
	}
	int64_t now = io_now_ms();
	struct hint_loss loss = {1, hints_samples_of(m->frame), now, now};
	hints_drop(h, m->address, why, &loss);
}
