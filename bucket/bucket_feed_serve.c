/* bucket/bucket_feed_serve.c - answering peers: a question is held until there is a change behind what its asker has, or until its time is over.
 *
 * One thread answers all of them, from the catalog; what is held is a list, not threads. A question that comes when there is something is answered as
 * soon as the thread gets to it. Network threads only put questions on the list.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/config.h"
#include "base/io.h"
#include "bucket/bucket_feed_int.h"

enum { WAIT_MAX_MS = 30000, ASKERS_MAX = 4096 };

static void answer_one(struct feed *f, struct feed_held *h, struct buf *out, bool *kept)
{
	struct err err = {0};
	uint32_t n = 0;
	bool gap = false, over;
	struct feed_position from = h->q.from;
	pthread_mutex_lock(&f->mu);
	over = f->released || io_mono_ns() >= h->until_ns;
	pthread_mutex_unlock(&f->mu);
	*kept = false;
	buf_clear(out);
	/* Of another node's feed nothing can be told here; the answer says whose this one is. */
	if (h->q.node.n > 0 && !span_is(h->q.node, f->node))
		from = (struct feed_position){.seq = INT64_MAX};
	errc rc = feed_tell(f->cfg.catalog, span_cstr(f->node), from, h->q.limit, out, &n, &gap, &err);
	/* Who does not know the feed's name yet is told it at once. */
	if (rc == OK && n == 0 && !gap && !over && !ulid_is_zero(from.feed)) {
		h->looked = *kept = true;
		return;
	}
	if (rc == OK)
		h->answer(h->arg, gap ? 410 : 200, span_of(out->p, out->n), NULL);
	else
		h->answer(h->arg, 0, SPAN(""), &err);
	free(h);
}

/* When must the thread look again, whatever happens? f->mu is held. */
static int64_t next_look(const struct feed *f)
{
	int64_t next = io_mono_ns() + INT64_C(1000000000);
	for (const struct feed_held *h = f->held; h; h = h->next) {
		int64_t t = h->looked ? h->until_ns : 0;
		next = t < next ? t : next;
	}
	return next;
}

void *feed_serve_main(void *arg)
{
	struct feed *f = arg;
	struct buf out;
	buf_init(&out, LIMIT_FEED_ANSWER_BYTES + LIMIT_FEED_RECORD_BYTES + MIB);
	pthread_mutex_lock(&f->mu);
	for (;;) {
		int64_t next = next_look(f);
		bool all = f->changed || f->released;
		if (f->stop && !f->held)
			break;
		if (!all && !f->stop && io_mono_ns() < next) {
			feed_wait(f, &f->serve, next);
			continue;
		}
		f->changed = false;
		struct feed_held *list = f->held;
		f->held = NULL;
		pthread_mutex_unlock(&f->mu);
		int64_t now = io_mono_ns();
		struct feed_held *keep = NULL;
		size_t answered = 0;
		while (list) {
			struct feed_held *h = list;
			list = h->next;
			bool kept = true;
			if (all || !h->looked || now >= h->until_ns)
				answer_one(f, h, &out, &kept);
			if (kept) {
				h->next = keep;
				keep = h;
			}
			answered += !kept;
		}
		if (out.cap > 4 * LIMIT_FEED_ANSWER_BYTES) {
			buf_free(&out);
			buf_init(&out, LIMIT_FEED_ANSWER_BYTES + LIMIT_FEED_RECORD_BYTES + MIB);
		}
		pthread_mutex_lock(&f->mu);
		while (keep) {
			struct feed_held *h = keep;
			keep = h->next;
			h->next = f->held;
			f->held = h;
		}
		f->n_held -= answered;
		metric_set(f->m_held, (double)f->n_held);
		/* Released with nothing held: wait to be stopped. */
		if (f->released && !f->held && !f->stop)
			feed_wait(f, &f->serve, io_mono_ns() + INT64_C(1000000000));
	}
	pthread_mutex_unlock(&f->mu);
	buf_free(&out);
	return NULL;
}

/* f->mu is held. One that can't be noted is not waited for by a node that leaves. */
static void note_asker(struct feed *f, const struct feed_question *q)
{
	struct feed_asker *a = NULL, *oldest = NULL;
	for (size_t i = 0; !a && i < f->n_askers; i++) {
		if (span_is(q->by, f->askers[i].node))
			a = &f->askers[i];
		if (!oldest || f->askers[i].at_ms < oldest->at_ms)
			oldest = &f->askers[i];
	}
	if (!a && f->n_askers == f->cap_askers && f->cap_askers < ASKERS_MAX) {
		size_t more = f->cap_askers ? f->cap_askers * 2 : 16;
		struct feed_asker *v = realloc(f->askers, more * sizeof *v);
		if (!v)
			return;
		f->askers = v;
		f->cap_askers = more;
	}
	if (!a)
		a = f->n_askers < f->cap_askers ? &f->askers[f->n_askers++] : oldest;
	memset(a->node, 0, sizeof a->node);
	memcpy(a->node, q->by.p, q->by.n);
	a->seq = q->from.seq;
	a->at_ms = io_mono_ms();
}

bool feed_all_heard(struct feed *f, int64_t within_ms)
{
	struct feed_position end = {0};
	pthread_mutex_lock(&f->cfg.catalog->mu);
	end.seq = f->cfg.catalog->fed;
	pthread_mutex_unlock(&f->cfg.catalog->mu);
	bool all = true;
	pthread_mutex_lock(&f->mu);
	for (size_t i = 0; i < f->n_askers; i++)
		if (io_mono_ms() - f->askers[i].at_ms <= within_ms && f->askers[i].seq < end.seq)
			all = false;
	pthread_mutex_unlock(&f->mu);
	return all;
}

void feed_question(
	struct feed *f, const struct feed_question *q, void (*answer)(void *arg, int status, struct span body, const struct err *why), void *arg)
{
	struct err err = {0};
	struct feed_held *h = calloc(1, sizeof *h);
	if (!h || q->node.n >= FEED_NODE_BYTES || q->by.n >= FEED_NODE_BYTES) {
		errc rc = h ? err_id(&err, ERRID_BAD_PARAMETER, ERR_INVALID, "a node's id has less than %d bytes", FEED_NODE_BYTES)
			    : err_id(&err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a question of a peer");
		(void)rc;
		free(h);
		answer(arg, 0, SPAN(""), &err);
		return;
	}
	h->q = *q;
	h->q.node.p = memcpy(h->text, q->node.n ? q->node.p : "", q->node.n);
	h->q.by.p = memcpy(h->text + FEED_NODE_BYTES, q->by.n ? q->by.p : "", q->by.n);
	if (h->q.limit == 0 || h->q.limit > LIMIT_FEED_CHANGES)
		h->q.limit = LIMIT_FEED_CHANGES;
	h->answer = answer;
	h->arg = arg;
	int64_t wait_ms = q->wait_ms < 0 ? 0 : q->wait_ms > WAIT_MAX_MS ? WAIT_MAX_MS : q->wait_ms;
	pthread_mutex_lock(&f->mu);
	h->until_ns = io_mono_ns() + (f->n_held < LIMIT_FEED_HELD ? wait_ms : 0) * 1000000;
	if (q->by.n > 0 && (q->node.n == 0 || span_is(q->node, f->node)))
		note_asker(f, q);
	h->next = f->held;
	f->held = h;
	f->n_held++;
	metric_set(f->m_held, (double)f->n_held);
	pthread_cond_signal(&f->serve);
	pthread_mutex_unlock(&f->mu);
}

/* ---- HTTP ---- */

static void answer_http(void *arg, int status, struct span body, const struct err *why)
{
	if (why)
		http_error_of(arg, why);
	else
		http_answer(arg, status, FEED_CONTENT_TYPE, body);
}

static errc number(struct http_request *r, const char *name, int64_t max, int64_t *out, struct err *err)
{
	struct span text = http_param(r, name, 0);
	*out = 0;
	if (text.n == 0)
		return OK;
	if (!span_to_i64(text, out) || *out < 0 || *out > max)
		return err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "%s=%.*s is not a number from 0 to %" PRId64, name, SPAN_ARG(text), max);
	return OK;
}

void feed_request(struct feed *f, struct http_request *r)
{
	struct err why = {0}, *err = &why;
	errc rc = OK;
	struct feed_question q = {0};
	int64_t after, limit;
	TRY(http_parse_params(r, err));
	TRY(number(r, "after", INT64_MAX, &after, err));
	TRY(number(r, "limit", LIMIT_FEED_CHANGES, &limit, err));
	struct span feed = http_param(r, "feed", 0), wait = http_param(r, "wait", 0);
	if (feed.n > 0 && !ulid_parse(feed, &q.from.feed)) {
		rc = err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "feed=%.*s is no ULID", SPAN_ARG(feed));
		goto fail;
	}
	if (wait.n > 0) {
		rc = parse_duration_ms(wait, &q.wait_ms, err);
		if (rc != OK) {
			rc = err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "wait=%.*s is no duration", SPAN_ARG(wait));
			goto fail;
		}
	}
	q.from.seq = (uint64_t)after;
	q.limit = (uint32_t)limit;
	q.node = http_param(r, "node", 0);
	q.by = http_param(r, "by", 0);
	http_defer(r);
	feed_question(f, &q, answer_http, r);
	return;
fail:
	http_error_of(r, err);
}
