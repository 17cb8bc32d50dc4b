/* net/net_answer.c - answers: whole bodies, errors of the catalogue, and gzip.
 *
 * An answer is made complete (headers, copied or compressed body) on the thread that answers; the loop only sends it. So compressing a large
 * answer costs a worker, not the network.
 *
 * Errors: text "<id>: <message>\n"; routes under /api/v1/ that take GET answer in Prometheus' JSON form, because that is what reads them.
 */
#include <ctype.h>
#include <stdlib.h>
#include <zlib.h>
#include "net/net_int.h"

enum { GZIP_MIN_BYTES = 1000, WHOLE_BODY_BYTES = 256 * 1024, BODY_BLOCK_BYTES = 64 * 1024, ERROR_TEXT_BYTES = 2048 };

static const char text_plain[] = "text/plain; charset=utf-8";

bool answer_can_gzip(const struct http_request *r, int status)
{
	return r->gzip_ok && (r->route->r.flags & HTTP_GZIP) && status != 204 && status != 304;
}

void http_set_header(struct http_request *r, const char *name, const char *value)
{
	struct net_header_out *h = arena_alloc(&r->arena, sizeof *h);
	if (!h)
		return; /* the answer itself will fail for want of memory */
	h->name = arena_cstr(&r->arena, span_cstr(name));
	h->value = arena_cstr(&r->arena, span_cstr(value));
	if (!h->name || !h->value)
		return;
	h->next = r->out_headers;
	r->out_headers = h;
}

/* Seconds after which trying again makes sense; NULL when a header says so already or the status does not. */
static const char *retry_after(const struct http_request *r, int status)
{
	if (status != 503 && status != 429)
		return NULL;
	for (const struct net_header_out *h = r->out_headers; h; h = h->next) {
		if (strcasecmp(h->name, "Retry-After") == 0)
			return NULL;
	}
	return "5";
}

void answer_headers(struct http_request *r, struct MHD_Response *resp, int status, const char *content_type)
{
	if (status != 204)
		MHD_add_response_header(resp, "Content-Type", content_type ? content_type : text_plain);
	MHD_add_response_header(resp, "X-Request-Id", r->id);
	if (r->route->r.flags & HTTP_GZIP)
		MHD_add_response_header(resp, "Vary", "Accept-Encoding");
	const char *retry = retry_after(r, status);
	if (retry)
		MHD_add_response_header(resp, "Retry-After", retry);
	for (const struct net_header_out *h = r->out_headers; h; h = h->next)
		MHD_add_response_header(resp, h->name, h->value);
	for (size_t i = 0; r->web && i < r->web->n_headers; i++)
		MHD_add_response_header(resp, r->web->headers[i].name, r->web->headers[i].value);
	if (r->close_after || r->server->stopping)
		MHD_add_response_header(resp, "Connection", "close");
}

void answer_set(struct http_request *r, struct MHD_Response *resp, int status, uint64_t bytes)
{
	ASSERT(!r->answered);
	r->answered = true;
	r->response = resp;
	r->status = status;
	r->answer_bytes = bytes;
	if (!r->stream) {
		request_body_free(r);
		worker_answered(r);
	}
	if (r->deferred)
		request_resume(r);
}

/* ---- whole bodies ---- */

/* A large body goes out in blocks, so that the door sees whether its client takes it. */
struct body_source {
	struct net_conn *conn;
	size_t n;
	uint8_t p[];
};

static ssize_t body_read(void *cls, uint64_t pos, char *buf, size_t max)
{
	struct body_source *b = cls;
	size_t n = b->n - (size_t)pos;
	if (n > max)
		n = max;
	memcpy(buf, b->p + pos, n);
	atomic_fetch_add_explicit(&b->conn->sent_bytes, n, memory_order_relaxed);
	return (ssize_t)n;
}

static struct body_source *body_new(struct http_request *r, size_t cap)
{
	struct body_source *b = malloc(sizeof *b + cap);
	if (b)
		*b = (struct body_source){.conn = r->conn};
	return b;
}

/* NULL when it does not get smaller. */
static struct body_source *body_gzip(struct http_request *r, struct span body)
{
	if (body.n > UINT32_MAX / 2)
		return NULL;
	struct body_source *b = body_new(r, body.n);
	z_stream z = {0};
	if (!b || deflateInit2(&z, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
		goto fail;
	z.next_in = (Bytef *)(uintptr_t)body.p;
	z.avail_in = (uInt)body.n;
	z.next_out = b->p;
	z.avail_out = (uInt)body.n;
	int rc = deflate(&z, Z_FINISH);
	b->n = z.total_out;
	deflateEnd(&z);
	if (rc != Z_STREAM_END)
		goto fail;
	return b;
fail:
	free(b);
	return NULL;
}

static void body_free(void *cls)
{
	free(cls);
}

struct MHD_Response *answer_response(struct http_request *r, int status, const char *content_type, struct span body)
{
	struct MHD_Response *resp;
	if (body.n == 0) {
		resp = MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
		if (resp)
			answer_headers(r, resp, status, content_type);
		return resp;
	}
	struct body_source *b = body.n >= GZIP_MIN_BYTES && answer_can_gzip(r, status) ? body_gzip(r, body) : NULL;
	bool gzipped = b != NULL;
	if (!b) {
		b = body_new(r, body.n);
		if (!b)
			return NULL;
		memcpy(b->p, body.p, body.n);
		b->n = body.n;
	}
	/* small ones are sent together with their headers */
	if (b->n <= WHOLE_BODY_BYTES)
		resp = MHD_create_response_from_buffer_with_free_callback_cls(b->n, b->p, body_free, b);
	else
		resp = MHD_create_response_from_callback(b->n, BODY_BLOCK_BYTES, body_read, b, body_free);
	if (!resp) {
		free(b);
		return NULL;
	}
	if (gzipped)
		MHD_add_response_header(resp, "Content-Encoding", "gzip");
	answer_headers(r, resp, status, content_type);
	return resp;
}

void http_answer(struct http_request *r, int status, const char *content_type, struct span body)
{
	ASSERT(status >= 200 && status <= 599);
	struct MHD_Response *resp = answer_response(r, status, content_type, body);
	if (!resp) {
		resp = r->server->oom_response;
		status = 503;
		body.n = 0;
	}
	answer_set(r, resp, status, body.n);
}

/* ---- errors ---- */

/* Prometheus' words for kinds of errors in its API. */
static const char *json_error_type(int status)
{
	switch (status) {
	case 404:
		return "not_found";
	case 422:
		return "execution";
	case 401:
		return "unauthorized";
	case 503:
		return "unavailable";
	case 500:
		return "internal";
	default:
		return "bad_data";
	}
}

static void error_text(char *out, size_t size, const char *message)
{
	size_t n = 0;
	for (; message[n] && n + 1 < size; n++)
		out[n] = message[n] == '\n' || message[n] == '\r' ? ' ' : message[n];
	out[n] = 0;
}

/* The body of an error in the form that the request's readers want, and its content type. */
static void error_body(const struct http_request *r, enum errid id, const char *message, struct buf *out, const char **content_type)
{
	char line[ERROR_TEXT_BYTES + 64], flat[ERROR_TEXT_BYTES];
	error_text(flat, sizeof flat, message);
	int n = snprintf(line, sizeof line, "%s: %s", errid_text(id), flat);
	if (r->json_errors) {
		const char *type = id == ERRID_QUERY_TIMEOUT ? "timeout" : json_error_type(errid_status(id));
		*content_type = "application/json";
		buf_printf(out, "{\"status\":\"error\",\"errorType\":\"%s\",\"error\":", type);
		net_json_string(out, span_of(line, (size_t)n));
		buf_put(out, "}\n", 2);
	} else {
		*content_type = text_plain;
		buf_put(out, line, (size_t)n);
		buf_u8(out, '\n');
	}
}

static void error_send(struct http_request *r, enum errid id, const char *message)
{
	struct buf b = {0};
	const char *content_type;
	buf_init(&b, 16 * ERROR_TEXT_BYTES);
	error_body(r, id, message, &b, &content_type);
	if (id == ERRID_OVERLOADED || id == ERRID_HEAD_MEMORY)
		http_set_header(r, "Retry-After", "1");
	http_answer(r, errid_status(id), content_type, span_of(b.p, b.failed ? 0 : b.n));
	buf_free(&b);
}

void http_error(struct http_request *r, enum errid id, const char *fmt, ...)
{
	char text[ERROR_TEXT_BYTES];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	error_send(r, id, text);
}

static enum errid id_of_class(errc code)
{
	switch (code) {
	case ERR_NOTFOUND:
		return ERRID_NOT_FOUND;
	case ERR_INVALID:
		return ERRID_BAD_REQUEST;
	case ERR_UNSUPPORTED:
		return ERRID_CONTENT_TYPE;
	case ERR_LIMIT:
		return ERRID_QUERY_TOO_LARGE;
	case ERR_AGAIN:
	case ERR_NOMEM:
		return ERRID_OVERLOADED;
	case ERR_NOSPACE:
		return ERRID_DISK_FULL;
	case ERR_NET:
	case ERR_DENIED:
		return ERRID_BUCKET;
	case ERR_TIMEOUT:
		return ERRID_QUERY_TIMEOUT;
	case ERR_CANCELED:
		return ERRID_SHUTTING_DOWN;
	case ERR_CORRUPT:
		return ERRID_BLOCK_DAMAGED;
	default:
		return ERRID_INTERNAL;
	}
}

void http_error_of(struct http_request *r, const struct err *err)
{
	enum errid id = errid_of(err->id);
	error_send(r, id ? id : id_of_class(err->code), err->msg[0] ? err->msg : errc_name(err->code));
}

/* Writes with TLS or without; what does not fit into the socket's buffer at once is lost: these answers are a few hundred bytes. */
static void raw_send(struct http_request *r, const uint8_t *p, size_t n)
{
	if (r->server->tls) {
		gnutls_session_t session = MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION)->tls_session;
		if (gnutls_record_send(session, p, n) < 0)
			return;
	} else if (send(r->conn->fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		return;
	}
	r->answer_bytes = n;
}

void answer_raw(struct http_request *r, enum errid id, const char *message)
{
	struct buf body = {0}, all = {0};
	const char *content_type;
	int status = errid_status(id);
	buf_init(&body, 16 * ERROR_TEXT_BYTES);
	buf_init(&all, 32 * ERROR_TEXT_BYTES);
	error_body(r, id, message, &body, &content_type);
	buf_printf(&all, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nX-Request-Id: %s\r\nConnection: close\r\n", status,
		MHD_get_reason_phrase_for((unsigned)status), content_type, r->id);
	if (status == 503)
		buf_printf(&all, "Retry-After: 1\r\n");
	for (size_t i = 0; r->web && i < r->web->n_headers; i++)
		buf_printf(&all, "%s: %s\r\n", r->web->headers[i].name, r->web->headers[i].value);
	buf_printf(&all, "Content-Length: %zu\r\n\r\n", body.n);
	buf_put(&all, body.p, body.n);
	if (!all.failed && !body.failed)
		raw_send(r, all.p, all.n);
	r->answered = true;
	r->status = status;
	buf_free(&body);
	buf_free(&all);
}
