/* net/net_request.c - one request from its first line to its end; the steps that libmicrohttpd calls back.
 *
 *     request_begin   first line          born
 *     request_step    headers complete    judged: smuggling, path, auth, method, size, budget ─▶ refused here, before any body is read
 *                     a piece of body     kept, if limit and budget allow
 *                     body complete       handed to the handler, on this thread or through the worker queue
 *                     woken               the answer is there: sent
 *     request_over    sent or broken off  logged, dropped
 *
 * A connection sleeps (is suspended) from http_defer on, which the loop calls itself before any other thread can know the request; an answer from
 * another thread puts it into r->response and wakes the connection, even if the handler has not returned yet: libmicrohttpd takes it up only
 * when the loop comes round. Nobody but the loop queues responses.
 *
 * What libmicrohttpd leaves to us: names of headers with odd bytes, several Content-Length, Transfer-Encoding beside Content-Length. Two servers
 * in a row that read those differently see different requests (smuggling), so they are refused and the connection is closed.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include "net/net_int.h"

enum { BODY_FIRST_BYTES = 16 * 1024 };

/* ---- birth and death ---- */

static bool id_is_sane(struct span s)
{
	if (s.n == 0 || s.n > 64)
		return false;
	for (size_t i = 0; i < s.n; i++) {
		char c = s.p[i];
		bool alnum = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
		if (!alnum && !strchr("-_.:+/=@", c))
			return false;
	}
	return true;
}

void *request_begin(void *cls, const char *uri, struct MHD_Connection *mhd)
{
	struct net_loop *loop = cls;
	struct http_server *s = loop->server;
	struct net_conn *c = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
	struct http_request *r = c ? calloc(1, sizeof *r) : NULL;
	if (!r)
		return NULL;
	r->server = s;
	r->conn = c;
	r->mhd = mhd;
	r->route = &s->unmatched;
	r->refs = 1;
	r->started_ns = io_mono_ns();
	memcpy(r->client, c->client, sizeof r->client);
	snprintf(r->id, sizeof r->id, "%08x-%" PRIx64, s->id_prefix, atomic_fetch_add_explicit(&s->id_counter, 1, memory_order_relaxed));
	arena_init(&r->arena, s->cfg.max_inflight_bytes);
	r->target = arena_dup(&r->arena, span_cstr(uri ? uri : ""));
	if (!r->target.p) {
		arena_free(&r->arena);
		free(r);
		return NULL;
	}
	r->path = r->target;
	atomic_fetch_add(&s->active, 1);
	conn_phase(c, CONN_READING);
	return r;
}

void request_drop(struct http_request *r)
{
	if (atomic_fetch_sub(&r->refs, 1) != 1)
		return;
	request_body_free(r);
	stream_free(r->stream);
	net_web_drop(r->web);
	arena_free(&r->arena);
	free(r);
}

void request_over(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_RequestTerminationCode why)
{
	(void)cls;
	struct http_request *r = *ctx;
	*ctx = NULL;
	if (!r)
		return;
	struct http_server *s = r->server;
	if (!r->status) {
		const union MHD_ConnectionInfo *info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_HTTP_STATUS);
		r->status = info ? (int)info->http_status : 0;
	}
	if (why == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED)
		metric_add(r->stage == STAGE_SENT ? net_metrics.timeouts_write : net_metrics.timeouts_read, 1);
	stream_abort(r);
	conn_phase(r->conn, CONN_IDLE);
	access_log(r, why);
	/* a response that was made but not queued */
	if (r->response && r->stage != STAGE_SENT && r->response != s->oom_response)
		MHD_destroy_response(r->response);
	request_drop(r);
	atomic_fetch_sub(&s->active, 1);
}

void request_resume(struct http_request *r)
{
	struct http_server *s = r->server;
	atomic_fetch_add(&s->resuming, 1);
	MHD_resume_connection(r->mhd);
	atomic_fetch_sub(&s->resuming, 1);
}

void http_defer(struct http_request *r)
{
	ASSERT(!r->deferred && !r->answered);
	r->deferred = true;
	conn_phase(r->conn, CONN_RUNNING);
	MHD_suspend_connection(r->mhd);
}

/* ---- budget and body ---- */

bool request_budget_take(struct http_request *r, uint64_t bytes)
{
	struct http_server *s = r->server;
	if (r->route->r.flags & HTTP_NO_BUDGET)
		return true;
	uint64_t now = atomic_load_explicit(&s->inflight_bytes, memory_order_relaxed);
	do {
		if (bytes > s->cfg.max_inflight_bytes || now > s->cfg.max_inflight_bytes - bytes)
			return false;
	} while (!atomic_compare_exchange_weak_explicit(&s->inflight_bytes, &now, now + bytes, memory_order_relaxed, memory_order_relaxed));
	atomic_fetch_add_explicit(&r->budget_bytes, bytes, memory_order_relaxed);
	return true;
}

bool http_budget_take(struct http_request *r, uint64_t bytes)
{
	return request_budget_take(r, bytes);
}

void request_body_free(struct http_request *r)
{
	free(r->body);
	r->body = NULL;
	r->body_n = r->body_cap = 0;
	uint64_t taken = atomic_exchange_explicit(&r->budget_bytes, 0, memory_order_relaxed);
	atomic_fetch_sub_explicit(&r->server->inflight_bytes, taken, memory_order_relaxed);
}

/* Room for n more bytes, doubling up to what was declared; memory follows what has arrived, never what was promised. */
static errc body_reserve(struct http_request *r, size_t n, struct err *err)
{
	errc rc = OK;
	size_t need = r->body_n + n;
	uint64_t max = r->route->r.max_body_bytes;
	CHECK(need <= max, ERR_LIMIT, "the body is larger than the limit of %" PRIu64 " bytes", max);
	if (need <= r->body_cap)
		return OK;
	size_t cap = r->body_cap ? r->body_cap * 2 : BODY_FIRST_BYTES;
	if (cap < need)
		cap = need;
	uint64_t most = r->content_length < max ? r->content_length : max;
	if (cap > most)
		cap = most < need ? need : (size_t)most;
	CHECK(request_budget_take(r, cap - r->body_cap), ERR_AGAIN, "too many bytes in flight, try again");
	uint8_t *p = realloc(r->body, cap);
	CHECK(p, ERR_NOMEM, "no memory for a body of %zu bytes", cap);
	r->body = p;
	r->body_cap = cap;
fail:
	return rc;
}

/* ---- refusing ---- */

static enum MHD_Result send_response(struct http_request *r)
{
	struct MHD_Response *resp = r->response;
	r->stage = STAGE_SENT;
	conn_phase(r->conn, CONN_ANSWERING);
	enum MHD_Result ok = MHD_queue_response(r->mhd, (unsigned)r->status, resp);
	if (resp != r->server->oom_response)
		MHD_destroy_response(resp); /* the connection has its own reference */
	return ok;
}

/* After http_error in the head stage: send at once and close, or first read away a body that is small and promised. */
static enum MHD_Result refused(struct http_request *r, bool broken)
{
	bool small = !r->chunked && r->content_length <= LIMIT_HTTP_DISCARD_BYTES;
	if (!broken && small && (r->content_length == 0 || !r->expects_continue)) {
		r->stage = STAGE_DISCARD;
		return MHD_YES;
	}
	r->conn->linger = true;
	return send_response(r);
}

#define REFUSE(r, broken, ...)                                                                                                                       \
	do {                                                                                                                                         \
		(r)->close_after |= (broken);                                                                                                        \
		http_error(r, __VA_ARGS__);                                                                                                          \
		return refused(r, broken);                                                                                                           \
	} while (0)

/* In the middle of a body libmicrohttpd takes no answer: write it past it, then close. */
static enum MHD_Result refused_in_body(struct http_request *r, const struct err *err)
{
	enum errid id = err->code == ERR_LIMIT ? ERRID_BODY_TOO_LARGE : ERRID_OVERLOADED;
	r->conn->linger = true;
	answer_raw(r, id, err->msg);
	request_body_free(r);
	return MHD_NO;
}

/* ---- headers ---- */

struct head_scan {
	struct http_request *r;
	unsigned content_lengths, transfer_encodings;
	bool broken, nomem;
	const char *what;
};

static enum MHD_Result head_one(void *cls, enum MHD_ValueKind kind, const char *key, size_t key_n, const char *value, size_t value_n)
{
	(void)kind;
	struct head_scan *h = cls;
	struct http_request *r = h->r;
	struct span name = span_of(key, key_n), text = span_of(value ? value : "", value ? value_n : 0);
	while (text.n && (text.p[text.n - 1] == ' ' || text.p[text.n - 1] == '\t'))
		text.n--;
	bool odd = !net_is_token(name);
	for (size_t i = 0; i < text.n; i++)
		odd |= ((unsigned char)text.p[i] < 0x20 && text.p[i] != '\t') || text.p[i] == 0x7f;
	if (odd) {
		h->broken = true;
		h->what = "a header has bytes that no header may have";
		return MHD_NO;
	}
	if (r->n_headers == r->cap_headers) {
		size_t cap = r->cap_headers ? r->cap_headers * 2 : 16;
		struct net_header_in *v = arena_alloc(&r->arena, cap * sizeof *v);
		if (!v) {
			h->nomem = true;
			return MHD_NO;
		}
		if (r->n_headers)
			memcpy(v, r->headers, r->n_headers * sizeof *v);
		r->headers = v;
		r->cap_headers = cap;
	}
	struct net_header_in *in = &r->headers[r->n_headers];
	in->name = arena_dup(&r->arena, name);
	in->value = arena_dup(&r->arena, text);
	if (!in->name.p || !in->value.p) {
		h->nomem = true;
		return MHD_NO;
	}
	r->n_headers++;
	h->content_lengths += name.n == 14 && strncasecmp(key, "Content-Length", 14) == 0;
	h->transfer_encodings += name.n == 17 && strncasecmp(key, "Transfer-Encoding", 17) == 0;
	return MHD_YES;
}

struct span http_header(const struct http_request *r, const char *name)
{
	size_t n = strlen(name);
	for (size_t i = 0; i < r->n_headers; i++) {
		if (r->headers[i].name.n == n && strncasecmp(r->headers[i].name.p, name, n) == 0)
			return r->headers[i].value;
	}
	return (struct span){0};
}

/* Framing, as strict as it gets; what is wrong in `what`. */
static bool head_framing(struct http_request *r, struct head_scan *h)
{
	struct span length = http_header(r, "Content-Length"), encoding = http_header(r, "Transfer-Encoding");
	if (h->content_lengths && h->transfer_encodings)
		h->what = "Content-Length beside Transfer-Encoding";
	else if (h->content_lengths > 1)
		h->what = "more than one Content-Length";
	else if (h->transfer_encodings > 1 || (encoding.p && !(encoding.n == 7 && strncasecmp(encoding.p, "chunked", 7) == 0)))
		h->what = "a Transfer-Encoding other than chunked";
	else if (encoding.p && r->http10)
		h->what = "Transfer-Encoding in HTTP/1.0";
	if (h->what)
		return false;
	r->chunked = encoding.p != NULL;
	r->content_length = r->chunked ? UINT64_MAX : 0;
	if (length.p) {
		int64_t n;
		if (length.n == 0 || length.p[0] < '0' || length.p[0] > '9' || !span_to_i64(length, &n)) {
			h->what = "a Content-Length that is not a number";
			return false;
		}
		r->content_length = (uint64_t)n;
	}
	return true;
}

/* Does a list like "gzip;q=0.5, br" allow gzip? */
static bool accepts_gzip(struct span list)
{
	bool any = false;
	while (list.n) {
		const char *comma = memchr(list.p, ',', list.n);
		struct span item = span_of(list.p, comma ? (size_t)(comma - list.p) : list.n);
		size_t used = comma ? item.n + 1 : item.n;
		list = span_of(list.p + used, list.n - used);
		while (item.n && (*item.p == ' ' || *item.p == '\t'))
			item = span_of(item.p + 1, item.n - 1);
		const char *semi = memchr(item.p, ';', item.n);
		struct span word = span_of(item.p, semi ? (size_t)(semi - item.p) : item.n);
		while (word.n && (word.p[word.n - 1] == ' ' || word.p[word.n - 1] == '\t'))
			word.n--;
		bool gzip = word.n == 4 && strncasecmp(word.p, "gzip", 4) == 0, star = span_is(word, "*");
		if (!gzip && !star)
			continue;
		bool zero = false;
		const char *q = semi ? memchr(semi, '=', item.n - (size_t)(semi - item.p)) : NULL;
		if (q) {
			zero = true;
			for (const char *p = q + 1; p < item.p + item.n; p++)
				zero &= *p == '0' || *p == '.' || *p == ' ';
		}
		if (gzip)
			return !zero;
		any |= !zero;
	}
	return any;
}

static enum http_method method_of(const char *text)
{
	static const struct {
		const char *text;
		enum http_method m;
	} table[] = {{"GET", HTTP_GET}, {"HEAD", HTTP_HEAD}, {"POST", HTTP_POST}, {"PUT", HTTP_PUT}, {"DELETE", HTTP_DELETE}};
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
		if (strcmp(text, table[i].text) == 0)
			return table[i].m;
	}
	return 0;
}

/* Path and query of the target; an absolute one ("http://host/path") loses its front. */
static bool head_target(struct http_request *r)
{
	struct span t = r->target;
	if (t.n > 7 && strncasecmp(t.p, "http://", 7) == 0)
		t = span_of(t.p + 7, t.n - 7);
	else if (t.n > 8 && strncasecmp(t.p, "https://", 8) == 0)
		t = span_of(t.p + 8, t.n - 8);
	if (t.p != r->target.p) {
		const char *slash = memchr(t.p, '/', t.n);
		t = slash ? span_of(slash, t.n - (size_t)(slash - t.p)) : SPAN("/");
	}
	const char *mark = t.n ? memchr(t.p, '?', t.n) : NULL;
	r->path = span_of(t.p, mark ? (size_t)(mark - t.p) : t.n);
	r->query = mark ? span_of(mark + 1, t.n - r->path.n - 1) : SPAN("");
	return r->path.n && r->path.p[0] == '/';
}

static void auth_done(void *arg, bool allowed)
{
	struct http_request *r = arg;
	r->auth = allowed ? AUTH_YES : AUTH_NO;
	r->deferred = false;
	request_resume(r);
}

/* NET_PENDING: the connection sleeps, the step is taken again when bcrypt has run. */
static enum net_verdict head_auth(struct http_request *r, struct err *err)
{
	struct http_server *s = r->server;
	if (!r->web || !r->web->n_users)
		return NET_ALLOWED;
	if (r->auth == AUTH_BUSY)
		err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "too many logins are being checked, try again");
	if (r->auth != AUTH_UNKNOWN)
		return r->auth == AUTH_YES ? NET_ALLOWED : NET_DENIED;
	struct span header = http_header(r, "Authorization");
	if (!header.p) {
		err_id(err, ERRID_UNAUTHORIZED, ERR_DENIED, "user and password are needed");
		return NET_DENIED;
	}
	const char *user, *password;
	if (net_basic_parse(header, &r->arena, &user, &password, err))
		return NET_DENIED;
	enum net_verdict v = net_auth_lookup(s->auth, r->web, user, password);
	if (v == NET_PENDING) {
		/* asleep before the auth thread can know it */
		http_defer(r);
		if (!net_auth_queue(s->auth, r->web, user, password, auth_done, r)) {
			r->auth = AUTH_BUSY;
			r->deferred = false;
			request_resume(r);
		}
	}
	return v;
}

static const char *allow_text(struct arena *a, unsigned allow)
{
	return arena_printf(a, "%s%s%s%s",
		allow & HTTP_GET    ? "GET, HEAD, "
		: allow & HTTP_HEAD ? "HEAD, "
				    : "",
		allow & HTTP_POST ? "POST, " : "", allow & HTTP_PUT ? "PUT, " : "", allow & HTTP_DELETE ? "DELETE, " : "");
}

static enum MHD_Result refuse_method(struct http_request *r, unsigned allow)
{
	const char *list = allow_text(&r->arena, allow);
	struct span text = span_cstr(list ? list : "");
	char *trimmed = arena_cstr(&r->arena, span_of(text.p, text.n >= 2 ? text.n - 2 : 0));
	if (trimmed)
		http_set_header(r, "Allow", trimmed);
	REFUSE(r, false, ERRID_METHOD, "%s is not a method of this path", r->method_text);
}

static enum MHD_Result head_sizes(struct http_request *r)
{
	struct http_server *s = r->server;
	uint64_t max = r->route->r.max_body_bytes;
	if (!r->chunked && r->content_length > max)
		REFUSE(r, false, ERRID_BODY_TOO_LARGE, "the body has %" PRIu64 " bytes, the limit is %" PRIu64, r->content_length, max);
	/* refusing now is cheaper than half way through; what counts is taken as it arrives */
	uint64_t now = atomic_load_explicit(&s->inflight_bytes, memory_order_relaxed);
	if (!r->chunked && r->content_length && !(r->route->r.flags & HTTP_NO_BUDGET) &&
		(r->content_length > s->cfg.max_inflight_bytes || now > s->cfg.max_inflight_bytes - r->content_length))
		REFUSE(r, false, ERRID_OVERLOADED, "%" PRIu64 " bytes are in flight, the limit is %" PRIu64 ": try again", now,
			s->cfg.max_inflight_bytes);
	r->stage = STAGE_BODY;
	return MHD_YES;
}

/* Everything that can be said before the body: see the top. Runs twice when bcrypt was needed. */
static enum MHD_Result request_head(struct http_request *r, const char *method, const char *version)
{
	struct http_server *s = r->server;
	struct err err = {0};
	if (!r->method_text) {
		struct head_scan scan = {.r = r};
		r->http10 = strcmp(version, "HTTP/1.0") == 0;
		r->method_text = arena_cstr(&r->arena, span_cstr(method));
		r->method = method_of(method);
		r->head = r->method == HTTP_HEAD;
		MHD_get_connection_values_n(r->mhd, MHD_HEADER_KIND, head_one, &scan);
		if (scan.nomem || !r->method_text)
			return MHD_NO;
		struct span id = http_header(r, "X-Request-Id");
		if (id_is_sane(id)) {
			memcpy(r->id, id.p, id.n);
			r->id[id.n] = 0;
		}
		bool framed = !scan.broken && head_framing(r, &scan);
		bool target = head_target(r);
		r->json_errors = span_has_prefix(r->path, SPAN("/api/v1/")) && (r->method & (HTTP_GET | HTTP_HEAD));
		if (!framed)
			REFUSE(r, true, ERRID_BAD_REQUEST, "%s", scan.what);
		if (!target)
			REFUSE(r, true, ERRID_BAD_REQUEST, "the path must begin with /");
		const union MHD_ConnectionInfo *size = MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
		if (size && size->header_size > LIMIT_HTTP_HEADER_BYTES)
			REFUSE(r, true, ERRID_BAD_REQUEST, "request line and headers have %zu bytes, the limit is %" PRIu64, size->header_size,
				LIMIT_HTTP_HEADER_BYTES);
		struct span expect = http_header(r, "Expect");
		r->expects_continue = expect.p != NULL;
		if (expect.p && !(expect.n == 12 && strncasecmp(expect.p, "100-continue", 12) == 0))
			REFUSE(r, true, ERRID_BAD_REQUEST, "an Expect other than 100-continue");
		r->gzip_ok = accepts_gzip(http_header(r, "Accept-Encoding"));
		if (s->web_path) {
			pthread_mutex_lock(&s->web_mu);
			r->web = net_web_hold(s->web);
			pthread_mutex_unlock(&s->web_mu);
		}
	}
	if (s->stopping)
		REFUSE(r, true, ERRID_SHUTTING_DOWN, "the server is stopping");

	const struct net_route *route;
	unsigned allow;
	if (route_match(s, r, &route, &allow, &err)) {
		http_error_of(r, &err);
		return refused(r, false);
	}
	if (!route || !(route->r.flags & HTTP_NO_AUTH)) {
		enum net_verdict v = head_auth(r, &err);
		if (v == NET_PENDING)
			return MHD_YES;
		if (v == NET_DENIED) {
			if (!err.code)
				err_id(&err, ERRID_UNAUTHORIZED, ERR_DENIED, "wrong user or password");
			if (errid_of(err.id) == ERRID_UNAUTHORIZED) {
				metric_add(net_metrics.auth_failures, 1);
				http_set_header(r, "WWW-Authenticate", "Basic realm=\"varve\", charset=\"UTF-8\"");
			}
			http_error_of(r, &err);
			return refused(r, false);
		}
	}
	if (!route && allow)
		return refuse_method(r, allow);
	if (!route)
		REFUSE(r, false, ERRID_NOT_FOUND, "there is nothing at this path");
	r->route = route;
	r->json_errors = span_has_prefix(r->path, SPAN("/api/v1/")) && (route->r.methods & HTTP_GET);
	return head_sizes(r);
}

/* ---- steps ---- */

static enum MHD_Result request_body_step(struct http_request *r, const char *upload, size_t *n)
{
	struct err err = {0};
	if (body_reserve(r, *n, &err))
		return refused_in_body(r, &err);
	memcpy(r->body + r->body_n, upload, *n);
	r->body_n += *n;
	*n = 0;
	return MHD_YES;
}

static enum MHD_Result request_discard_step(struct http_request *r, size_t *n)
{
	r->discarded_bytes += *n;
	*n = 0;
	return r->discarded_bytes > LIMIT_HTTP_DISCARD_BYTES ? MHD_NO : MHD_YES;
}

static enum MHD_Result request_run(struct http_request *r)
{
	const struct http_route *route = &r->route->r;
	r->stage = STAGE_RUN;
	if (route->flags & HTTP_WORKER) {
		http_defer(r);
		/* the queue's lock publishes the request; from here on it belongs to a worker */
		const struct http_server *s = r->server;
		bool peers = route->flags & HTTP_PEER && s->peer_pool;
		if (!worker_pool_put(peers ? s->peer_pool : s->pool, r))
			http_error(r, ERRID_OVERLOADED, "%u requests run and %u wait already, try again",
				peers ? s->cfg.peer_workers : s->cfg.workers, peers ? s->cfg.peer_workers : s->cfg.worker_queue);
		return MHD_YES;
	}
	conn_phase(r->conn, CONN_RUNNING);
	log_thread_request(r->id);
	route->handler(route->arg, r);
	log_thread_request(NULL);
	/* a deferred one may be answered by now, but the loop has not come round: r is still there */
	if (r->deferred)
		return MHD_YES;
	ASSERT(r->answered);
	return send_response(r);
}

enum MHD_Result request_step(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version, const char *upload,
	size_t *upload_n, void **ctx)
{
	(void)cls;
	(void)mhd;
	(void)url;
	struct http_request *r = *ctx;
	if (!r)
		return MHD_NO; /* no memory for it */
	switch (r->stage) {
	case STAGE_HEAD:
		return request_head(r, method, version);
	case STAGE_BODY:
		return upload && *upload_n ? request_body_step(r, upload, upload_n) : request_run(r);
	case STAGE_DISCARD:
		return upload && *upload_n ? request_discard_step(r, upload_n) : send_response(r);
	case STAGE_RUN:
		ASSERT(r->answered); /* woken by its answer */
		return send_response(r);
	case STAGE_SENT:
		break;
	}
	return MHD_NO;
}

/* ---- what handlers ask ---- */

enum http_method http_method(const struct http_request *r)
{
	return r->method;
}

struct span http_path(const struct http_request *r)
{
	return r->path;
}

struct span http_target(const struct http_request *r)
{
	uintptr_t path = (uintptr_t)r->path.p, begin = (uintptr_t)r->target.p, end = begin + r->target.n;
	/* a target without any path has one that does not stand in it */
	return path >= begin && path < end ? span_of(r->path.p, end - path) : r->path;
}

struct span http_path_arg(const struct http_request *r)
{
	return r->path_arg;
}

struct span http_body(const struct http_request *r)
{
	return r->body_n ? span_of(r->body, r->body_n) : SPAN("");
}

const char *http_request_id(const struct http_request *r)
{
	return r->id;
}

const char *http_client(const struct http_request *r)
{
	return r->client;
}

struct arena *http_arena(struct http_request *r)
{
	return &r->arena;
}

int64_t http_started_mono_ns(const struct http_request *r)
{
	return r->started_ns;
}

errc http_parse_params(struct http_request *r, struct err *err)
{
	errc rc = OK;
	if (r->params_parsed)
		return OK;
	struct span type = http_header(r, "Content-Type");
	static const char form[] = "application/x-www-form-urlencoded";
	size_t n = sizeof form - 1;
	if (r->body_n && type.n >= n && strncasecmp(type.p, form, n) == 0 && (type.n == n || type.p[n] == ';' || type.p[n] == ' '))
		TRY(net_params_parse(http_body(r), &r->arena, &r->params, err));
	TRY(net_params_parse(r->query, &r->arena, &r->params, err));
	r->params_parsed = true;
fail:
	return rc;
}

struct span http_param(const struct http_request *r, const char *name, size_t nth)
{
	ASSERT(r->params_parsed);
	for (size_t i = 0; i < r->params.n; i++) {
		if (span_is(r->params.v[i].name, name) && nth-- == 0)
			return r->params.v[i].value;
	}
	return (struct span){0};
}

size_t http_param_count(const struct http_request *r)
{
	return r->params.n;
}

void http_param_at(const struct http_request *r, size_t i, struct span *name, struct span *value)
{
	ASSERT(i < r->params.n);
	*name = r->params.v[i].name;
	*value = r->params.v[i].value;
}

bool http_client_gone(struct http_request *r)
{
	if (r->server->doomed)
		return true;
	if (r->stream)
		return stream_client_gone(r);
	/* the connection sleeps or this is its loop: the descriptor is open */
	struct pollfd p = {.fd = r->conn->fd, .events = POLLRDHUP};
	return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}
