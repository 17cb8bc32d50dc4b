/* cluster/cluster_control_kube.c - one request to the Kubernetes API: where it is, who we are, and what its answers mean.
 *
 * In a Pod everything is where the kubelet puts it: KUBERNETES_SERVICE_HOST and _PORT, and token, CA and namespace below SERVICE_ACCOUNT. The token is read for
 * every request: the kubelet replaces it every hour or so. Watches have a client of their own, because a time limit of calls would end them.
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "cluster/cluster_control_int.h"

#define SERVICE_ACCOUNT "/var/run/secrets/kubernetes.io/serviceaccount/"

enum { CALL_MS = 10000, CONNECT_MS = 5000, WATCH_IDLE_MS = 100000 /* the API sends a bookmark a minute */ };

struct kube {
	struct arena arena;
	struct http_client *calls, *watches;
	const char *url, *token_file;
	const char *namespace;
	struct metric *good, *bad;
};

static errc in_cluster(struct kube *k, struct err *err)
{
	const char *host = getenv("KUBERNETES_SERVICE_HOST"), *port = getenv("KUBERNETES_SERVICE_PORT");
	if (!host || !*host || !port || !*port)
		return err_set(err, ERR_INVALID, "KUBERNETES_SERVICE_HOST is not set, so this is no Pod: say --control.kube-url");
	k->url = arena_printf(&k->arena, strchr(host, ':') ? "https://[%s]:%s" : "https://%s:%s", host, port);
	return k->url ? OK : err_set(err, ERR_NOMEM, "no memory");
}

static errc find_namespace(struct kube *k, const struct control_config *cfg, struct err *err)
{
	errc rc = OK;
	struct span s;
	k->namespace = cfg->namespace;
	if (k->namespace)
		return OK;
	if (io_read_file(SERVICE_ACCOUNT "namespace", 256, &k->arena, &s, NULL) == OK && s.n > 0)
		k->namespace = s.p;
	CHECK(k->namespace, ERR_INVALID, "--namespace is not given, and there is no " SERVICE_ACCOUNT "namespace");
fail:
	return rc;
}

errc kube_open(const struct control_config *cfg, struct kube **out, struct err *err)
{
	errc rc = OK;
	struct io_stat st;
	struct kube *k = calloc(1, sizeof *k);
	if (!k)
		return err_set(err, ERR_NOMEM, "no memory for the Kubernetes API");
	arena_init(&k->arena, MIB);
	k->good = metric_counter_with("varve_control_kube_requests_total", "Requests to the Kubernetes API by their end", "result", "ok");
	k->bad = metric_counter_with("varve_control_kube_requests_total", "Requests to the Kubernetes API by their end", "result", "failed");
	k->url = cfg->kube_url;
	k->token_file = cfg->kube_token_file;
	struct http_client_config http = {.connect_timeout_ms = CONNECT_MS,
		.idle_timeout_ms = CALL_MS,
		.total_timeout_ms = CALL_MS,
		.ca_file = cfg->kube_ca_file,
		.max_idle_connections = 4};
	if (!k->url) {
		TRY(in_cluster(k, err));
		if (!k->token_file)
			k->token_file = SERVICE_ACCOUNT "token";
		if (!http.ca_file && io_stat(SERVICE_ACCOUNT "ca.crt", &st, NULL) == OK && st.exists)
			http.ca_file = SERVICE_ACCOUNT "ca.crt";
	}
	TRY(find_namespace(k, cfg, err));
	TRY(http_client_open(&http, &k->calls, err));
	http.total_timeout_ms = 0;
	http.idle_timeout_ms = WATCH_IDLE_MS;
	TRY(http_client_open(&http, &k->watches, err));
	*out = k;
	return OK;
fail:
	kube_close(k);
	return rc;
}

void kube_cancel(struct kube *k)
{
	http_client_cancel(k->calls);
	http_client_cancel(k->watches);
}

void kube_close(struct kube *k)
{
	if (!k)
		return;
	http_client_close(k->calls);
	http_client_close(k->watches);
	arena_free(&k->arena);
	free(k);
}

const char *kube_namespace(const struct kube *k)
{
	return k->namespace;
}

/* ---- requests ---- */

struct request {
	struct arena arena;
	const char *headers[3];
	struct http_call call;
};

static errc request_begin(struct kube *k, struct request *r, const char *method, const char *path, const char *content_type, struct err *err)
{
	errc rc = OK;
	arena_init(&r->arena, MIB);
	r->call = (struct http_call){.method = method, .headers = r->headers, .max_answer_bytes = LIMIT_KUBE_ANSWER_BYTES};
	r->call.url = arena_printf(&r->arena, "%s%s", k->url, path);
	r->headers[r->call.n_headers++] = "Accept: application/json";
	CHECK(r->call.url, ERR_NOMEM, "no memory for a request");
	if (content_type) {
		r->headers[r->call.n_headers++] = arena_printf(&r->arena, "Content-Type: %s", content_type);
		CHECK(r->headers[r->call.n_headers - 1], ERR_NOMEM, "no memory for a request");
	}
	if (k->token_file) {
		struct span token;
		TRY(io_read_file(k->token_file, LIMIT_KUBE_TOKEN_BYTES, &r->arena, &token, err));
		while (token.n > 0 && (token.p[token.n - 1] == '\n' || token.p[token.n - 1] == '\r' || token.p[token.n - 1] == ' '))
			token.n--;
		char *h = arena_alloc(&r->arena, token.n + sizeof "Authorization: Bearer ");
		CHECK(h, ERR_NOMEM, "no memory for a request");
		memcpy(h, "Authorization: Bearer ", sizeof "Authorization: Bearer " - 1);
		memcpy(h + sizeof "Authorization: Bearer " - 1, token.p, token.n);
		h[sizeof "Authorization: Bearer " - 1 + token.n] = 0;
		r->headers[r->call.n_headers++] = h;
	}
fail:
	return rc;
}

static void request_end(struct request *r)
{
	buf_free(&r->call.answer);
	buf_free(&r->call.answer_headers);
	arena_free(&r->arena);
}

/* A status that is no success, with the API's own words. */
static errc refused(const struct request *r, struct err *err)
{
	int status = r->call.status;
	json_t *v = json_loadb((const char *)r->call.answer.p, r->call.answer.n, 0, NULL);
	const char *words = json_string_value(json_object_get(v, "message"));
	errc rc = status == 404			   ? ERR_NOTFOUND
		  : status == 409		   ? ERR_EXISTS
		  : status == 401 || status == 403 ? ERR_DENIED
		  : status == 429 || status >= 500 ? ERR_AGAIN
						   : ERR_INVALID;
	const char *path = strchr(r->call.url + 8, '/');
	err_set(err, rc, "Kubernetes: %s %.*s: %d%s%s", r->call.method, path ? (int)strcspn(path, "?") : 0, path ? path : "", status,
		words ? ": " : "", words ? words : "");
	json_decref(v);
	return rc;
}

errc kube_call(struct kube *k, const char *method, const char *path, const char *content_type, const json_t *body, json_t **answer, struct err *err)
{
	errc rc = OK;
	struct request r = {0};
	char *text = NULL;
	*answer = NULL;
	TRY(request_begin(k, &r, method, path, content_type, err));
	if (body) {
		text = json_dumps(body, JSON_COMPACT);
		CHECK(text, ERR_NOMEM, "no memory for a request");
		r.call.body = span_cstr(text);
	}
	TRY(http_call(k->calls, &r.call, err));
	if (r.call.status < 200 || r.call.status > 299) {
		rc = refused(&r, err);
		goto fail;
	}
	if (r.call.answer.n > 0) {
		json_error_t e;
		*answer = json_loadb((const char *)r.call.answer.p, r.call.answer.n, 0, &e);
		CHECK(*answer, ERR_NET, "Kubernetes: %s %s: its answer is no JSON: %s", method, path, e.text);
	}
fail:
	metric_add(rc == OK || rc == ERR_NOTFOUND || rc == ERR_EXISTS ? k->good : k->bad, 1);
	request_end(&r);
	free(text);
	return rc;
}

/* ---- watches ---- */

struct lines {
	struct buf line;
	errc (*take)(void *arg, struct span line, struct err *err);
	void *arg;
};

static errc take_bytes(void *arg, const void *data, size_t n, struct err *err)
{
	struct lines *l = arg;
	errc rc = OK;
	const char *p = data, *end = p + n;
	while (p < end) {
		const char *nl = memchr(p, '\n', (size_t)(end - p));
		buf_put(&l->line, p, (size_t)((nl ? nl : end) - p));
		CHECK(!l->line.failed, ERR_LIMIT, "an event of more than %d bytes", (int)LIMIT_KUBE_LINE_BYTES);
		if (!nl)
			break;
		if (l->line.n > 0)
			TRY(l->take(l->arg, span_of(l->line.p, l->line.n), err));
		buf_clear(&l->line);
		p = nl + 1;
	}
fail:
	return rc;
}

errc kube_stream(struct kube *k, const char *path, errc (*take)(void *arg, struct span line, struct err *err), void *arg, bool *gone, struct err *err)
{
	errc rc = OK;
	struct request r = {0};
	struct lines l = {.take = take, .arg = arg};
	*gone = false;
	buf_init(&l.line, LIMIT_KUBE_LINE_BYTES);
	TRY(request_begin(k, &r, "GET", path, NULL, err));
	r.call.write = take_bytes;
	r.call.arg = &l;
	TRY(http_call(k->watches, &r.call, err));
	if (r.call.status < 200 || r.call.status > 299) {
		*gone = r.call.status == 410;
		rc = refused(&r, err);
	}
fail:
	metric_add(rc == OK || *gone ? k->good : k->bad, 1);
	buf_free(&l.line);
	request_end(&r);
	return rc;
}
