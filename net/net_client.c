/* net/net_client.c - HTTP client: libcurl handles in a pool, each with its own kept-alive connection.
 *
 * A call takes a lane (an easy handle in a multi handle of its own) and drives it itself: curl_multi_poll can be woken, so that cancelling is
 * immediate, and the idle time-out is counted in milliseconds. Lanes are kept up to max_idle_connections; the last used is used first, so that the
 * others' connections can age.
 *
 * What a caller of a bucket or peer must be able to rely on: no redirect is followed (credentials would go with it), no proxy, netrc or cookie from
 * the environment, no answer above its limit, no header of the request in any message, and no query string either (it may be presigned).
 */
#include <curl/curl.h>
#include <signal.h>
#include <stdlib.h>
#include "net/net_int.h"

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
	char *ca_file, *cert_file, *key_file, *server_name;
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
	char place[160]; /* "PUT http://host:port/path", without query */
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
	curl_off_t declared = -1;
	curl_easy_getinfo(x->lane->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &declared);
	if (call->answer.n + bytes > call->max_answer_bytes || (declared >= 0 && (uint64_t)declared > call->max_answer_bytes)) {
		x->rc = err_set(&x->err, ERR_LIMIT, "the answer has more than %zu bytes", call->max_answer_bytes);
		return 0;
	}
	buf_put(&call->answer, p, bytes);
	if (call->answer.failed) {
		x->rc = err_set(&x->err, ERR_NOMEM, "no memory for an answer of %zu bytes", call->answer.n + bytes);
		return 0;
	}
	return bytes;
}

static size_t take_header(char *p, size_t size, size_t n, void *arg)
{
	struct exchange *x = arg;
	struct buf *out = &x->call->answer_headers;
	size_t bytes = size * n;
	x->moved_ns = io_mono_ns();
	struct span line = span_of(p, bytes);
	while (line.n && (line.p[line.n - 1] == '\r' || line.p[line.n - 1] == '\n'))
		line.n--;
	if (span_has_prefix(line, SPAN("HTTP/"))) {
		buf_clear(out); /* what came before belonged to an interim answer */
		x->headers_whole = false;
		return bytes;
	}
	x->headers_whole |= line.n == 0;
	const char *colon = line.n ? memchr(line.p, ':', line.n) : NULL;
	if (!colon)
		return bytes;
	struct span name = span_of(line.p, (size_t)(colon - line.p)), value = span_of(colon + 1, line.n - (size_t)(colon - line.p) - 1);
	while (value.n && (*value.p == ' ' || *value.p == '\t'))
		value = span_of(value.p + 1, value.n - 1);
	while (value.n && (value.p[value.n - 1] == ' ' || value.p[value.n - 1] == '\t'))
		value.n--;
	for (size_t i = 0; i < name.n; i++)
		buf_u8(out, (uint8_t)(name.p[i] >= 'A' && name.p[i] <= 'Z' ? name.p[i] | 0x20 : name.p[i]));
	buf_put(out, ": ", 2);
	buf_span(out, value);
	buf_u8(out, '\n');
	if (out->failed) {
		if (out->n + bytes + 2 > out->max)
			x->rc = err_set(&x->err, ERR_LIMIT, "the answer's headers have more than %zu bytes", out->max);
		else
			x->rc = err_set(&x->err, ERR_NOMEM, "no memory for the answer's headers");
		return 0;
	}
	return bytes;
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

static void set_place(struct exchange *x)
{
	const char *url = x->call->url, *end = url + strcspn(url, "?#");
	const char *host = strstr(url, "://");
	host = host && host < end ? host + 3 : url;
	size_t authority = strcspn(host, "/?#");
	const char *at = memrchr(host, '@', authority);
	const char *from = at ? at + 1 : host;
	snprintf(x->place, sizeof x->place, "%s %.*s%.*s", x->call->method, (int)(host - url), url, (int)(end - from > 110 ? 110 : end - from), from);
}

/* Connect to the URL's host, but speak to it (SNI, certificate) as server_name. */
static errc set_server_name(struct exchange *x, struct curl_slist **connect_to, struct curl_slist **headers, struct err *err)
{
	errc rc = OK;
	CURLU *u = curl_url();
	char *host = NULL, *port = NULL, *full = NULL, text[640];
	const char *name = x->client->server_name;
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

/* Options that hold for every call; numbers must be long for libcurl's varargs. */
static bool set_fixed(struct exchange *x)
{
	CURL *e = x->lane->easy;
	const struct http_client *c = x->client;
	const struct http_client_config *cfg = &c->cfg;
	bool bad = false;
	x->lane->text[0] = 0;
	bad |= curl_easy_setopt(e, CURLOPT_ERRORBUFFER, x->lane->text) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L) != 0; /* cancelling does not wait for a name to be resolved */
	bad |= curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https") != 0;
	bad |= curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_PROXY, "") != 0;
	bad |= curl_easy_setopt(e, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_PATH_AS_IS, 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_BUFFERSIZE, (long)CURL_BUFFER_BYTES) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_UPLOAD_BUFFERSIZE, (long)CURL_BUFFER_BYTES) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)(cfg->connect_timeout_ms > 0 ? cfg->connect_timeout_ms : 10000)) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_TIMEOUT_MS, (long)(cfg->total_timeout_ms > 0 ? cfg->total_timeout_ms : 0)) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_SSL_VERIFYPEER, cfg->insecure_skip_verify ? 0L : 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_SSL_VERIFYHOST, cfg->insecure_skip_verify ? 0L : 2L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) != 0;
	if (c->ca_file)
		bad |= curl_easy_setopt(e, CURLOPT_CAINFO, c->ca_file) != 0;
	if (c->cert_file)
		bad |= curl_easy_setopt(e, CURLOPT_SSLCERT, c->cert_file) != 0;
	if (c->key_file)
		bad |= curl_easy_setopt(e, CURLOPT_SSLKEY, c->key_file) != 0;
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

static errc code_of(CURL *easy, CURLcode code)
{
	long port = 0;
	switch (code) {
	case CURLE_OPERATION_TIMEDOUT:
		return ERR_TIMEOUT;
	case CURLE_OUT_OF_MEMORY:
		return ERR_NOMEM;
	case CURLE_UNSUPPORTED_PROTOCOL:
		/* the URL's, or what an answer's first line says */
		curl_easy_getinfo(easy, CURLINFO_PRIMARY_PORT, &port);
		return port ? ERR_NET : ERR_INVALID;
	case CURLE_URL_MALFORMAT:
	case CURLE_BAD_FUNCTION_ARGUMENT:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CACERT_BADFILE:
		return ERR_INVALID;
	default:
		return ERR_NET;
	}
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
		rc = err_set(err, code_of(l->easy, code), "%s: %s", x->place, l->text[0] ? l->text : curl_easy_strerror(code));
	} else if (!x->headers_whole) {
		/* libcurl takes an answer that ends within its headers for one without a body */
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
	set_place(&x);
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
	if (c->server_name) {
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
	struct span rest = span_of(call->answer_headers.p, call->answer_headers.n), want = span_cstr(name);
	while (rest.n) {
		const char *nl = memchr(rest.p, '\n', rest.n);
		struct span line = span_of(rest.p, nl ? (size_t)(nl - rest.p) : rest.n);
		if (line.n >= want.n + 2 && span_has_prefix(line, want) && line.p[want.n] == ':')
			return span_of(line.p + want.n + 2, line.n - want.n - 2);
		size_t used = nl ? line.n + 1 : line.n;
		rest = span_of(rest.p + used, rest.n - used);
	}
	return (struct span){0};
}

/* ---- the client ---- */

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_ready;

static void curl_start(void)
{
	/* without signals in libcurl (CURLOPT_NOSIGNAL) a TLS write to a connection that is gone would end the process */
	struct sigaction now;
	if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL)
		signal(SIGPIPE, SIG_IGN);
	curl_ready = curl_global_init(CURL_GLOBAL_DEFAULT);
}

static bool copy(char **out, const char *s)
{
	return !s || !*s || (*out = strdup(s));
}

errc http_client_open(const struct http_client_config *cfg, struct http_client **out, struct err *err)
{
	errc rc = OK;
	struct http_client *c = calloc(1, sizeof *c);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for an HTTP client");
	pthread_once(&curl_once, curl_start);
	pthread_mutex_init(&c->mu, NULL);
	c->cfg = *cfg;
	CHECK(curl_ready == CURLE_OK, ERR_IO, "libcurl: %s", curl_easy_strerror(curl_ready));
	CHECK(copy(&c->ca_file, cfg->ca_file) && copy(&c->cert_file, cfg->cert_file) && copy(&c->key_file, cfg->key_file) &&
			copy(&c->server_name, cfg->server_name),
		ERR_NOMEM, "no memory for an HTTP client");
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
	free(c->ca_file);
	free(c->cert_file);
	free(c->key_file);
	free(c->server_name);
	free(c);
}
