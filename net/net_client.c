/* net/net_client.c - HTTP client: libcurl handles in a pool, each with its own kept-alive connection.
 *
 * A call takes a lane (an easy handle in a multi handle of its own) and drives it itself: curl_multi_poll can be woken, so that cancelling is
 * immediate, and the idle time-out is counted in milliseconds. Lanes are kept up to max_idle_connections; the last used is used first, so that the
 * others' connections can age. What holds for every call of either client stands in net_curl.c.
 */
#include <stdlib.h>
#include "net/net_curl_int.h"

enum { CURL_BUFFER_BYTES = 128 * 1024 };

struct lane {
	struct lane *next;		  /* idle list */
	struct lane *run_prev, *run_next; /* running list */
	CURL *easy;
	CURLM *multi;
	char text[CURL_ERROR_SIZE];
};

struct http_client {
	struct http_client_config cfg;
	pthread_mutex_t mu;
	struct lane *idle;
	uint32_t n_idle;
	struct lane *running;
	atomic_bool canceled;
};

/* One call's state while it runs. */
struct exchange {
	struct http_client *client;
	struct http_call *call;
	struct lane *lane;
	uint64_t sent;
	int64_t moved_ns; /* when the last byte went in either direction */
	curl_off_t moved_bytes;
	bool headers_whole;
	errc rc; /* of our own callbacks; libcurl's error is only a consequence then */
	struct err err;
	char place[NET_PLACE_BYTES];
};

/* ---- lanes ---- */

static void lane_free(struct lane *l)
{
	if (!l)
		return;
	if (l->easy)
		curl_easy_cleanup(l->easy);
	if (l->multi)
		curl_multi_cleanup(l->multi);
	free(l);
}

static struct lane *lane_take(struct http_client *c)
{
	pthread_mutex_lock(&c->mu);
	struct lane *l = c->idle;
	if (l) {
		c->idle = l->next;
		c->n_idle--;
	}
	pthread_mutex_unlock(&c->mu);
	if (!l) {
		l = calloc(1, sizeof *l);
		if (!l)
			return NULL;
		l->easy = curl_easy_init();
		l->multi = curl_multi_init();
		if (!l->easy || !l->multi || curl_multi_setopt(l->multi, CURLMOPT_MAXCONNECTS, 2L)) {
			lane_free(l);
			return NULL;
		}
	}
	pthread_mutex_lock(&c->mu);
	l->run_prev = NULL;
	l->run_next = c->running;
	if (l->run_next)
		l->run_next->run_prev = l;
	c->running = l;
	pthread_mutex_unlock(&c->mu);
	return l;
}

static void lane_give(struct http_client *c, struct lane *l)
{
	curl_easy_reset(l->easy); /* keeps the connection, which is the multi handle's */
	pthread_mutex_lock(&c->mu);
	if (l->run_next)
		l->run_next->run_prev = l->run_prev;
	if (l->run_prev)
		l->run_prev->run_next = l->run_next;
	else
		c->running = l->run_next;
	bool keep = c->n_idle < c->cfg.max_idle_connections && !c->canceled;
	if (keep) {
		l->next = c->idle;
		c->idle = l;
		c->n_idle++;
	}
	pthread_mutex_unlock(&c->mu);
	if (!keep)
		lane_free(l);
}

/* ---- callbacks ---- */

static size_t give_body(char *buf, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	struct http_call *call = x->call;
	size_t want = size * n, got = 0;
	uint64_t total = call->read ? call->body_bytes : call->body.n;
	if (want > total - x->sent)
		want = (size_t)(total - x->sent);
	if (want == 0)
		return 0;
	if (call->read) {
		x->rc = call->read(call->arg, buf, want, &got, &x->err);
		if (x->rc == OK && (got == 0 || got > want))
			x->rc = err_set(&x->err, ERR_INVALID, "the body ended after %llu of %llu bytes", (unsigned long long)x->sent,
				(unsigned long long)total);
		if (x->rc)
			return CURL_READFUNC_ABORT;
	} else {
		memcpy(buf, call->body.p + x->sent, want);
		got = want;
	}
	x->sent += got;
	return got;
}

/* libcurl rewinds when a kept connection turns out dead before anything was answered. */
static int rewind_body(void *arg, curl_off_t offset, int origin)
{
	struct exchange *x = arg;
	if (origin != SEEK_SET || (x->call->read && offset != (curl_off_t)x->sent))
		return CURL_SEEKFUNC_CANTSEEK;
	x->sent = (uint64_t)offset;
	return CURL_SEEKFUNC_OK;
}

static size_t take_body(char *p, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	struct http_call *call = x->call;
	size_t bytes = size * n;
	long status = 0;
	curl_easy_getinfo(x->lane->easy, CURLINFO_RESPONSE_CODE, &status);
	if (call->write && status >= 200 && status < 300) {
		x->rc = call->write(call->arg, p, bytes, &x->err);
		return x->rc ? 0 : bytes;
	}
	x->rc = net_curl_answer(&call->answer, x->lane->easy, p, bytes, &x->err);
	return x->rc ? 0 : bytes;
}

static size_t take_header(char *p, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	x->moved_ns = io_mono_ns();
	x->rc = net_curl_header(&x->call->answer_headers, p, size * n, &x->headers_whole, &x->err);
	return x->rc ? 0 : size * n;
}

static int moved(void *arg, curl_off_t dl_total, curl_off_t dl_now, curl_off_t ul_total, curl_off_t ul_now)
{
	(void)dl_total;
	(void)ul_total;
	struct exchange *x = arg;
	if (dl_now + ul_now != x->moved_bytes) {
		x->moved_bytes = dl_now + ul_now;
		x->moved_ns = io_mono_ns();
	}
	return 0;
}

/* ---- one call ---- */

/* Connect to the URL's host, but speak to it (SNI, certificate) as server_name. */
static errc set_server_name(struct exchange *x, struct curl_slist **connect_to, struct curl_slist **headers, struct err *err)
{
	errc rc = OK;
	CURLU *u = curl_url();
	char *host = NULL, *port = NULL, *full = NULL, text[640];
	const char *name = x->client->cfg.server_name;
	CHECK(u, ERR_NOMEM, "no memory for a URL");
	CHECK(curl_url_set(u, CURLUPART_URL, x->call->url, CURLU_PATH_AS_IS) == CURLUE_OK && curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
			curl_url_get(u, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK,
		ERR_INVALID, "not a URL with host and port");
	snprintf(text, sizeof text, "%s:%s:%s:%s", name, port, host, port);
	struct curl_slist *grown = curl_slist_append(*connect_to, text);
	CHECK(grown, ERR_NOMEM, "no memory for a URL");
	*connect_to = grown;
	snprintf(text, sizeof text, "Host: %s:%s", host, port);
	grown = curl_slist_append(*headers, text);
	CHECK(grown, ERR_NOMEM, "no memory for a header");
	*headers = grown;
	CHECK(curl_url_set(u, CURLUPART_HOST, name, 0) == CURLUE_OK && curl_url_get(u, CURLUPART_URL, &full, 0) == CURLUE_OK, ERR_INVALID,
		"%s is not a server name", name);
	CHECK(curl_easy_setopt(x->lane->easy, CURLOPT_URL, full) == CURLE_OK, ERR_NOMEM, "no memory for a URL");
fail:
	curl_free(host);
	curl_free(port);
	curl_free(full);
	curl_url_cleanup(u);
	return rc;
}

static bool set_fixed(struct exchange *x)
{
	CURL *e = x->lane->easy;
	const struct http_client_config *cfg = &x->client->cfg;
	bool bad = !net_curl_set_fixed(e, cfg, x->lane->text);
	bad |= curl_easy_setopt(e, CURLOPT_BUFFERSIZE, (long)CURL_BUFFER_BYTES) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, (long)CURL_BUFFER_BYTES) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)(cfg->total_timeout_ms > 0 ? cfg->total_timeout_ms : 0)) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, take_header) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_HEADERDATA, x) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, take_body) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_WRITEDATA, x) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_NOPROGRESS, 0L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_XFERINFOFUNCTION, moved) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_XFERINFODATA, x) != 0;
	return !bad;
}

static bool set_method(struct exchange *x)
{
	CURL *e = x->lane->easy;
	const struct http_call *call = x->call;
	uint64_t total = call->read ? call->body_bytes : call->body.n;
	bool sends = total || strcmp(call->method, "PUT") == 0 || strcmp(call->method, "POST") == 0;
	bool bad = curl_easy_setopt(e, CURLOPT_URL, call->url) != 0;
	if (strcmp(call->method, "HEAD") == 0)
		return !bad && curl_easy_setopt(e, CURLOPT_NOBODY, 1L) == 0;
	if (sends) {
		bad |= curl_easy_setopt(e, CURLOPT_UPLOAD, 1L) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_INFILESIZE_LARGE, (curl_off_t)total) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_READFUNCTION, give_body) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_READDATA, x) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_SEEKFUNCTION, rewind_body) != 0;
		bad |= curl_easy_setopt(e, CURLOPT_SEEKDATA, x) != 0;
	} else {
		bad |= curl_easy_setopt(e, CURLOPT_HTTPGET, 1L) != 0;
	}
	return !bad && curl_easy_setopt(e, CURLOPT_CUSTOMREQUEST, call->method) == 0;
}

static errc set_headers(const struct http_call *call, struct curl_slist **out, struct err *err)
{
	/* waiting for "100 Continue" costs a round trip, or a second where the server does not know it */
	struct curl_slist *list = curl_slist_append(NULL, "Expect:");
	for (size_t i = 0; list && i < call->n_headers; i++) {
		struct curl_slist *grown = curl_slist_append(list, call->headers[i]);
		if (!grown) {
			curl_slist_free_all(list);
			list = NULL;
			break;
		}
		list = grown;
	}
	*out = list;
	return list ? OK : err_set(err, ERR_NOMEM, "no memory for headers");
}

static errc run(struct exchange *x, struct err *err)
{
	errc rc = OK;
	struct lane *l = x->lane;
	int64_t idle_ns = x->client->cfg.idle_timeout_ms * 1000000;
	bool added = false;
	CHECK(curl_multi_add_handle(l->multi, l->easy) == CURLM_OK, ERR_NOMEM, "%s: cannot start", x->place);
	added = true;
	x->moved_ns = io_mono_ns();
	for (;;) {
		int busy = 0;
		CHECK(!x->client->canceled, ERR_CANCELED, "%s: canceled", x->place);
		CHECK(curl_multi_perform(l->multi, &busy) == CURLM_OK, ERR_NOMEM, "%s: libcurl gave up", x->place);
		if (!busy)
			break;
		int64_t quiet_ns = io_mono_ns() - x->moved_ns;
		CHECK(idle_ns <= 0 || quiet_ns < idle_ns, ERR_TIMEOUT, "%s: not a byte for %lld ms", x->place,
			(long long)x->client->cfg.idle_timeout_ms);
		int64_t wait_ms = idle_ns > 0 ? (idle_ns - quiet_ns) / 1000000 + 1 : 1000;
		CHECK(curl_multi_poll(l->multi, NULL, 0, (int)(wait_ms > 1000 ? 1000 : wait_ms), NULL) == CURLM_OK, ERR_NET, "%s: cannot wait",
			x->place);
	}
	int left;
	const CURLMsg *msg = curl_multi_info_read(l->multi, &left);
	ASSERT(msg && msg->msg == CURLMSG_DONE);
	CURLcode code = msg->data.result;
	if (x->rc) {
		rc = err_set(err, x->rc, "%s: %s", x->place, x->err.msg);
		if (err)
			err->id = x->err.id;
	} else if (code != CURLE_OK) {
		rc = err_set(err, net_curl_code(l->easy, code), "%s: %s", x->place, l->text[0] ? l->text : curl_easy_strerror(code));
	} else if (!x->headers_whole) {
		rc = err_set(err, ERR_NET, "%s: the answer broke off within its headers", x->place);
	}
fail:
	if (added)
		curl_multi_remove_handle(l->multi, l->easy);
	return rc;
}

errc http_call(struct http_client *c, struct http_call *call, struct err *err)
{
	errc rc = OK;
	struct exchange x = {.client = c, .call = call};
	struct curl_slist *headers = NULL, *connect_to = NULL;
	net_curl_place(x.place, call->method, call->url);
	buf_free(&call->answer);
	buf_free(&call->answer_headers);
	buf_init(&call->answer, call->max_answer_bytes);
	buf_init(&call->answer_headers, LIMIT_HTTP_ANSWER_HEADER_BYTES);
	call->status = 0;
	CHECK(!c->canceled, ERR_CANCELED, "%s: canceled", x.place);
	x.lane = lane_take(c);
	CHECK(x.lane, ERR_NOMEM, "%s: no memory for a connection", x.place);
	TRY(set_headers(call, &headers, err));
	CHECK(set_fixed(&x) && set_method(&x), ERR_INVALID, "%s: libcurl refuses the request", x.place);
	if (c->cfg.server_name) {
		rc = set_server_name(&x, &connect_to, &headers, err);
		if (rc) {
			err_wrap(err, "%s", x.place);
			goto fail;
		}
		CHECK(curl_easy_setopt(x.lane->easy, CURLOPT_CONNECT_TO, connect_to) == CURLE_OK, ERR_NOMEM, "%s: no memory", x.place);
	}
	CHECK(curl_easy_setopt(x.lane->easy, CURLOPT_HTTPHEADER, headers) == CURLE_OK, ERR_NOMEM, "%s: no memory for headers", x.place);
	TRY(run(&x, err));
	long status = 0;
	curl_easy_getinfo(x.lane->easy, CURLINFO_RESPONSE_CODE, &status);
	call->status = (int)status;
fail:
	if (x.lane)
		lane_give(c, x.lane);
	curl_slist_free_all(headers);
	curl_slist_free_all(connect_to);
	return rc;
}

struct span http_call_header(const struct http_call *call, const char *name)
{
	return net_curl_header_value(&call->answer_headers, name);
}

/* ---- the client ---- */

errc http_client_open(const struct http_client_config *cfg, struct http_client **out, struct err *err)
{
	errc rc = OK;
	struct http_client *c = calloc(1, sizeof *c);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for an HTTP client");
	pthread_mutex_init(&c->mu, NULL);
	TRY(net_curl_open(&c->cfg, cfg, err));
	*out = c;
	return OK;
fail:
	http_client_close(c);
	return rc;
}

void http_client_cancel(struct http_client *c)
{
	c->canceled = true;
	pthread_mutex_lock(&c->mu);
	for (struct lane *l = c->running; l; l = l->run_next)
		curl_multi_wakeup(l->multi);
	pthread_mutex_unlock(&c->mu);
}

void http_client_close(struct http_client *c)
{
	if (!c)
		return;
	ASSERT(!c->running);
	while (c->idle) {
		struct lane *l = c->idle;
		c->idle = l->next;
		lane_free(l);
	}
	pthread_mutex_destroy(&c->mu);
	net_curl_close(&c->cfg);
	free(c);
}
