/* net/net_sender_flight.c - one call of a sender: an easy handle with everything that belongs to it, used again and again.
 *
 * A kept connection may be dead without knowing. libcurl looks at the socket before it uses it, and begins again on another connection when the peer
 * turns out to have closed it: when sending the head fails, or reading, and nothing has come. Not when sending what follows the head fails (bodies of 64
 * KiB and more), and not on more than five dead ones: those are sent again here, on a connection that is fresh for sure.
 *
 * Bodies are not copied, but for what libcurl does itself: one below 64 KiB goes behind the head, so that both leave with one system call, a longer one
 * passes through a buffer of WRITE_BYTES.
 */
#include <stdlib.h>
#include "net/net_sender_int.h"

enum {
	READ_BYTES = 16 * 1024,	 /* answers are small; libcurl takes this anew for each call */
	WRITE_BYTES = 64 * 1024, /* the same, for bodies that do not fit behind the head */
	POOL_FLIGHTS = 64,	 /* kept for the next calls */
	POOL_BYTES = 64 * 1024,	 /* of each buffer of one that is kept */
	LIST_EXTRA = 3,		 /* Expect, Content-Type, Host */
};

/* ---- handles ---- */

void flight_free(struct flight *f)
{
	if (!f)
		return;
	if (f->easy)
		curl_easy_cleanup(f->easy);
	buf_free(&f->answer);
	buf_free(&f->headers);
	free(f->text);
	free(f->list);
	free(f);
}

static struct flight *flight_new(void)
{
	struct flight *f = calloc(1, sizeof *f);
	if (!f || !(f->easy = curl_easy_init())) {
		flight_free(f);
		return NULL;
	}
	buf_init(&f->answer, 0);
	buf_init(&f->headers, LIMIT_HTTP_ANSWER_HEADER_BYTES);
	return f;
}

static void flight_give(struct http_sender *s, struct flight *f)
{
	if (f->answer.cap > POOL_BYTES)
		buf_free(&f->answer);
	if (f->text_cap > POOL_BYTES) {
		free(f->text);
		f->text = NULL;
		f->text_cap = 0;
	}
	pthread_mutex_lock(&s->mu);
	bool keep = s->n_pool < POOL_FLIGHTS;
	if (keep) {
		f->next = s->pool;
		s->pool = f;
		s->n_pool++;
	}
	pthread_mutex_unlock(&s->mu);
	if (!keep)
		flight_free(f);
}

static char *text_put(char **at, struct span a, struct span b, struct span c)
{
	char *start = *at;
	memcpy(start, a.p, a.n);
	memcpy(start + a.n, b.p, b.n);
	memcpy(start + a.n + b.n, c.p, c.n);
	start[a.n + b.n + c.n] = 0;
	*at = start + a.n + b.n + c.n + 1;
	return start;
}

static void list_add(struct flight *f, size_t *n, const char *text)
{
	f->list[*n] = (struct curl_slist){.data = (char *)(uintptr_t)text};
	if (*n)
		f->list[*n - 1].next = &f->list[*n];
	++*n;
}

/* Copies the call's texts. */
static bool flight_fill(struct flight *f, const struct http_send *call, const char *server_name)
{
	const struct span none = SPAN("");
	struct span url = span_cstr(call->url), before, name, behind, host = none;
	bool typed = false;
	/* speak to the URL's host as server_name (SNI, certificate): that goes into the URL, and the host into its header */
	bool renamed = server_name && sender_url_split(call->url, &before, &name, &behind);
	if (renamed)
		host = span_of(before.p + before.n, (size_t)(behind.p - before.p) - before.n + strcspn(behind.p, "/?#"));
	size_t need = strlen(call->method) + 1 + url.n + 1 + (renamed ? url.n + strlen(server_name) + 1 + sizeof "Host: " + host.n : 0);
	for (size_t i = 0; i < call->n_headers; i++)
		need += strlen(call->headers[i]) + 1;
	if (need > f->text_cap) {
		free(f->text);
		f->text_cap = 0;
		f->text = malloc(need);
		if (!f->text)
			return false;
		f->text_cap = need;
	}
	if (call->n_headers + LIST_EXTRA > f->list_cap) {
		free(f->list);
		f->list_cap = 0;
		f->list = calloc(call->n_headers + LIST_EXTRA, sizeof *f->list);
		if (!f->list)
			return false;
		f->list_cap = call->n_headers + LIST_EXTRA;
	}
	char *at = f->text;
	size_t n = 0;
	f->call = *call;
	f->call.method = text_put(&at, span_cstr(call->method), none, none);
	f->call.url = text_put(&at, url, none, none);
	f->url = renamed ? text_put(&at, before, span_cstr(server_name), behind) : f->call.url;
	f->call.headers = NULL;
	/* waiting for "100 Continue" costs a round trip, or a second where the server does not know it */
	list_add(f, &n, "Expect:");
	for (size_t i = 0; i < call->n_headers; i++) {
		typed |= strncasecmp(call->headers[i], "Content-Type:", 13) == 0;
		list_add(f, &n, text_put(&at, span_cstr(call->headers[i]), none, none));
	}
	if (!typed)
		list_add(f, &n, "Content-Type:"); /* or libcurl says that a body is a form */
	if (renamed)
		list_add(f, &n, text_put(&at, SPAN("Host: "), host, none));
	return true;
}

struct flight *flight_take(struct http_sender *s, const struct http_send *call)
{
	pthread_mutex_lock(&s->mu);
	bool canceled = s->canceled;
	struct flight *f = canceled ? NULL : s->pool;
	if (f) {
		s->pool = f->next;
		s->n_pool--;
	}
	pthread_mutex_unlock(&s->mu);
	if (!f && !canceled)
		f = flight_new();
	if (!f || !flight_fill(f, call, s->cfg.server_name)) {
		flight_free(f);
		return NULL;
	}
	f->host = NULL;
	f->flow = NULL;
	f->running = f->sent_twice = f->answered = f->headers_whole = f->paused = false;
	f->heap_at = 0;
	buf_clear(&f->answer);
	f->answer.max = call->max_answer_bytes;
	buf_clear(&f->headers);
	f->rc = OK;
	f->err.code = OK;
	f->err.id = NULL;
	f->err.msg[0] = 0;
	f->error_text[0] = 0;
	return f;
}

/* ---- libcurl's callbacks ---- */

static size_t take_header(char *p, size_t size, size_t n, void *arg)
{
	struct flight *f = arg;
	f->answered = true;
	f->rc = net_curl_header(&f->headers, p, size * n, &f->headers_whole, &f->err);
	return f->rc ? 0 : size * n;
}

static size_t take_body(char *p, size_t size, size_t n, void *arg)
{
	struct flight *f = arg;
	f->answered = true;
	long status = 0;
	if (f->flow)
		curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
	if (status / 100 == 2) {
		f->paused = !f->call.data(f->call.arg, span_of(p, size * n));
		return f->paused ? CURL_WRITEFUNC_PAUSE : size * n;
	}
	f->rc = net_curl_answer(&f->answer, f->easy, p, size * n, &f->err);
	return f->rc ? 0 : size * n;
}

/* ---- from take-off to landing ---- */

void flight_end(struct http_sender *s, struct flight *f)
{
	struct sender_host *h = f->host;
	long status = 0;
	if (f->running) {
		if (f->rc == OK)
			curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
		curl_multi_remove_handle(s->multi, f->easy);
		h->n_running--;
		sender_working(s, -1);
	}
	if (h) {
		flights_out(f->running ? &h->running : &h->waiting, f);
		sender_ready(s, h);
	}
	sender_deadline_out(s, f);
	if (f->rc) {
		char place[NET_PLACE_BYTES];
		net_curl_place(place, f->call.method, f->call.url);
		err_wrap(&f->err, "%s", place);
		buf_clear(&f->answer);
	}
	s->landing = f;
	f->call.done(f->call.arg, f->rc, (int)status, span_of(f->answer.p, f->answer.n), &f->err);
	s->landing = NULL;
	if (f->flow)
		flow_landed(f->flow);
	flight_give(s, f);
}

/* Sets what differs from call to call; all else only when the last call with this handle was of another kind. */
static bool flight_set(struct http_sender *s, struct flight *f)
{
	CURL *e = f->easy;
	const struct http_send *call = &f->call;
	enum flight_kind kind = strcmp(call->method, "HEAD") == 0 ? FLIGHT_HEAD : FLIGHT_GET;
	if (call->body.n || strcmp(call->method, "POST") == 0 || strcmp(call->method, "PUT") == 0)
		kind = FLIGHT_BODY;
	bool bad = false;
	if (f->kind != kind) {
		f->kind = FLIGHT_NONE;
		curl_easy_reset(e);
		bad |= !net_curl_set_fixed(e, &s->cfg, f->error_text);
		bad |= curl_easy_setopt(e, CURLOPT_PRIVATE, f) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_BUFFERSIZE, (long)READ_BYTES) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, (long)WRITE_BYTES) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_MAXAGE_CONN, (long)LIMIT_HTTP_KEPT_MS / 1000) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, take_header) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_HEADERDATA, f) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, take_body) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_WRITEDATA, f) != 0;
		if (kind == FLIGHT_HEAD)
			bad |= curl_easy_setopt(e, CURLOPT_NOBODY, 1L) != 0;
		else if (kind == FLIGHT_GET)
			bad |= curl_easy_setopt(e, CURLOPT_HTTPGET, 1L) != 0;
		else
			bad |= curl_easy_setopt(e, CURLOPT_POST, 1L) != 0;
		if (!bad)
			f->kind = kind;
	}
	if (kind == FLIGHT_BODY) {
		bad |= curl_easy_setopt(e, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)call->body.n) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_POSTFIELDS, call->body.n ? call->body.p : "") != 0; /* libcurl keeps the pointer */
	}
	bool to = sender_host_connect_to(f->host, s->cfg.server_name, f->connect_to_text, sizeof f->connect_to_text);
	f->connect_to = (struct curl_slist){.data = f->connect_to_text};
	bad |= curl_easy_setopt(e, CURLOPT_CONNECT_TO, to ? &f->connect_to : NULL) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_URL, f->url) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, kind == FLIGHT_HEAD ? NULL : call->method) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_HTTPHEADER, f->list) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_FRESH_CONNECT, 0L) != 0;
	return !bad;
}

void flight_start(struct http_sender *s, struct flight *f)
{
	struct sender_host *h = f->host;
	flights_out(&h->waiting, f);
	flights_put(&h->running, f);
	f->running = true;
	h->n_running++;
	sender_working(s, 1);
	if (!h->key_n)
		f->rc = err_set(&f->err, ERR_INVALID, "not the URL of an HTTP server");
	else if (!flight_set(s, f))
		f->rc = err_set(&f->err, ERR_INVALID, "libcurl refuses the request");
	else if (curl_multi_add_handle(s->multi, f->easy) != CURLM_OK)
		f->rc = err_set(&f->err, ERR_NOMEM, "no memory for a connection");
	if (f->rc)
		flight_end(s, f);
}

/* On a connection that nothing was asked on before. */
static bool flight_again(struct http_sender *s, struct flight *f, CURLcode code)
{
	long fresh = 0;
	if (f->sent_twice || f->answered || (code != CURLE_SEND_ERROR && code != CURLE_RECV_ERROR && code != CURLE_GOT_NOTHING))
		return false;
	curl_easy_getinfo(f->easy, CURLINFO_NUM_CONNECTS, &fresh);
	if (fresh)
		return false;
	f->sent_twice = true;
	f->error_text[0] = 0;
	curl_multi_remove_handle(s->multi, f->easy);
	return curl_easy_setopt(f->easy, CURLOPT_FRESH_CONNECT, 1L) == CURLE_OK && curl_multi_add_handle(s->multi, f->easy) == CURLM_OK;
}

void flight_doubt(struct http_sender *s, struct flight *f)
{
	double connected_s = 0; /* of a kept connection, too */
	curl_easy_getinfo(f->easy, CURLINFO_PRETRANSFER_TIME, &connected_s);
	sender_host_doubt(&s->hosts, f->host, connected_s > 0);
}

void flight_more(struct http_sender *s, struct flight *f)
{
	if (!f->paused)
		return;
	f->paused = false;
	/* it may call take_body before it returns */
	CURLcode code = curl_easy_pause(f->easy, CURLPAUSE_CONT);
	if (code == CURLE_OK)
		return;
	if (f->rc == OK)
		f->rc = err_set(&f->err, net_curl_code(f->easy, code), "%s", curl_easy_strerror(code));
	flight_end(s, f);
}

void flight_landed(struct http_sender *s, struct flight *f, CURLcode code)
{
	if (f->rc == OK && code != CURLE_OK) {
		if (flight_again(s, f, code))
			return;
		f->rc = err_set(&f->err, net_curl_code(f->easy, code), "%s", f->error_text[0] ? f->error_text : curl_easy_strerror(code));
		if (f->rc == ERR_NET || f->rc == ERR_TIMEOUT)
			flight_doubt(s, f);
	} else if (f->rc == OK && !f->headers_whole) {
		f->rc = err_set(&f->err, ERR_NET, "the answer broke off within its headers");
	}
	flight_end(s, f);
}
