/* cluster/cluster_link.c - see cluster/link.h. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "cluster/cluster_trust_int.h"
#include "cluster/link.h"

struct link {
	struct link_config cfg;
	struct http_sender *sender;
};

/* ---- addresses ---- */

/* "[::1]:80" has its port behind the bracket; what has several colons and no bracket has none, and gets brackets. */
char *link_url_make(const char *scheme, uint16_t port, struct span address, struct span target)
{
	const char *colon = address.n ? memrchr(address.p, ':', address.n) : NULL;
	const char *bracket = address.n ? memrchr(address.p, ']', address.n) : NULL;
	bool alone = colon && memchr(address.p, ':', address.n) == colon;
	bool has_port = colon && colon > bracket && (bracket || alone), bare6 = colon && !bracket && !alone;
	struct span host = has_port ? span_of(address.p, (size_t)(colon - address.p)) : address;
	size_t room = strlen(scheme) + address.n + target.n + 20;
	char *url = malloc(room);
	if (!url)
		return NULL;
	int n = port == 0 && has_port ? snprintf(url, room, "%s://%.*s", scheme, (int)address.n, address.p)
				      : snprintf(url, room, bare6 ? "%s://[%.*s]:%u" : "%s://%.*s:%u", scheme, (int)host.n, host.p,
						port ? (unsigned)port : LIMIT_PEER_PORT);
	ASSERT(n > 0 && (size_t)n + target.n < room);
	memcpy(url + n, target.p, target.n);
	url[(size_t)n + target.n] = 0;
	return url;
}

char *link_url(const struct link *l, struct span address)
{
	return link_url_make(l->cfg.tls ? "https" : "http", l->cfg.port, address, SPAN(""));
}

/* ---- calls ---- */

errc link_send(struct link *l, const struct link_call *c, struct err *err)
{
	errc rc = OK;
	char signature[TRUST_HEADER_BYTES], header[sizeof TRUST_HEADER + 2 + TRUST_HEADER_BYTES], tenant[sizeof "THANOS-TENANT: " + TENANT_NAME_MAX],
		type[160];
	const char *headers[3];
	size_t n = 0;
	const struct trust_words words = {
		.method = span_cstr(c->method),
		.target = span_cstr(c->target),
		.tenant = c->tenant,
		.content_type = c->content_type ? span_cstr(c->content_type) : SPAN(""),
		.body = c->body,
	};
	ASSERT(c->tenant.n <= TENANT_NAME_MAX && words.content_type.n < sizeof type - sizeof "Content-Type: ");
	char *url = link_url_make(l->cfg.tls ? "https" : "http", l->cfg.port, c->address, words.target);
	CHECK(url, ERR_NOMEM, "no memory for a request to a peer");
	trust_sign(l->cfg.trust, &words, signature);
	if (signature[0]) {
		snprintf(header, sizeof header, TRUST_HEADER ": %s", signature);
		headers[n++] = header;
	}
	if (c->tenant.n > 0) {
		snprintf(tenant, sizeof tenant, "THANOS-TENANT: %.*s", SPAN_ARG(c->tenant));
		headers[n++] = tenant;
	}
	if (c->content_type) {
		snprintf(type, sizeof type, "Content-Type: %s", c->content_type);
		headers[n++] = type;
	}
	rc = http_send(l->sender,
		&(struct http_send){.method = c->method,
			.url = url,
			.headers = headers,
			.n_headers = n,
			.body = c->body,
			.deadline_mono_ns = c->deadline_mono_ns,
			.max_answer_bytes = c->max_answer_bytes,
			.done = c->done,
			.arg = c->arg},
		err);
fail:
	free(url);
	return rc;
}

struct question {
	pthread_mutex_t mu;
	pthread_cond_t answered;
	bool over;
	errc rc;
	int status;
	struct buf *answer;
	struct err err;
};

static void over(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct question *q = arg;
	q->rc = rc;
	q->status = status;
	if (rc != OK) {
		q->err = *err;
	} else {
		buf_span(q->answer, answer);
		if (q->answer->failed)
			q->rc = err_set(&q->err, ERR_NOMEM, "no memory for a peer's answer of %zu bytes", answer.n);
	}
	pthread_mutex_lock(&q->mu);
	q->over = true;
	pthread_cond_signal(&q->answered); /* under the lock: the question is gone when the asker has it */
	pthread_mutex_unlock(&q->mu);
}

errc link_ask(struct link *l, const struct link_call *c, int *status, struct buf *answer, struct err *err)
{
	struct question q = {.mu = PTHREAD_MUTEX_INITIALIZER, .answered = PTHREAD_COND_INITIALIZER, .answer = answer};
	struct link_call call = *c;
	call.done = over;
	call.arg = &q;
	errc rc = link_send(l, &call, err);
	if (rc != OK)
		return rc;
	pthread_mutex_lock(&q.mu);
	while (!q.over)
		pthread_cond_wait(&q.answered, &q.mu);
	pthread_mutex_unlock(&q.mu);
	pthread_mutex_destroy(&q.mu);
	pthread_cond_destroy(&q.answered);
	*status = q.status;
	if (q.rc != OK && err)
		*err = q.err;
	return q.rc;
}

/* ---- the other side ---- */

static struct trust_claim claim_of(const struct trust *t, const struct http_request *r)
{
	enum http_method m = http_method(r);
	struct trust_claim c = {
		.words =
			{
				.method = m == HTTP_GET	     ? SPAN("GET")
					  : m == HTTP_HEAD   ? SPAN("HEAD")
					  : m == HTTP_POST   ? SPAN("POST")
					  : m == HTTP_PUT    ? SPAN("PUT")
					  : m == HTTP_DELETE ? SPAN("DELETE")
							     : SPAN(""),
				.target = http_target(r),
				.tenant = http_header(r, "THANOS-TENANT"),
				.content_type = http_header(r, "Content-Type"),
				.body = http_body(r),
			},
		.header = http_header(r, TRUST_HEADER),
		.authorization = http_header(r, "Authorization"),
		.address = span_cstr(http_client(r)),
		.certificate = http_client_certified(r, trust_peer_name(t)),
	};
	/* peers don't send it: whoever put it there must not name a tenant that the signature does not */
	if (!c.words.tenant.p)
		c.words.tenant = http_header(r, "X-Scope-OrgID");
	return c;
}

errc link_check(struct trust *t, const struct http_request *r, struct err *err)
{
	const struct trust_claim c = claim_of(t, r);
	return trust_check(t, &c, err);
}

errc link_check_order(struct trust *t, const struct http_request *r, struct err *err)
{
	const struct trust_claim c = claim_of(t, r);
	return trust_check_order(t, &c, err);
}

/* ---- life ---- */

errc link_open(const struct link_config *cfg, struct link **out, struct err *err)
{
	struct link *l = calloc(1, sizeof *l);
	if (!l)
		return err_set(err, ERR_NOMEM, "no memory for links to peers");
	l->cfg = *cfg;
	const struct http_sender_config sender = {.client = cfg->client};
	errc rc = http_sender_open(&sender, &l->sender, err);
	if (rc != OK) {
		free(l);
		return rc;
	}
	*out = l;
	return OK;
}

void link_cancel(struct link *l)
{
	http_sender_cancel(l->sender);
}

void link_close(struct link *l)
{
	if (!l)
		return;
	http_sender_close(l->sender);
	free(l);
}
