/* net/net.h - HTTP: the server that clients and peers talk to, and two clients: one that waits, for buckets, and one that does not, for peers. And names into addresses.
 *
 * Server: libmicrohttpd with an epoll thread pool behind this header. A request reaches its handler when its body is complete (or the route
 * takes none); the handler answers at once, or later from any thread (the connection sleeps meanwhile: that is how a write waits for
 * the log's fdatasync without a thread), or from a worker thread as a stream.
 *
 *     route INLINE:  network thread ─▶ handler ─▶ http_answer now, or http_defer and http_answer later
 *     route WORKER:  network thread ─▶ queue (bounded: else 503) ─▶ worker ─▶ http_answer or http_stream_*
 *
 * The server enforces, before a handler sees anything: method (405 with Allow), body size (413 from Content-Length, and while it arrives),
 * bytes in flight over all requests (503 + Retry-After), idle and total time-outs, header size, connections, basic auth and TLS. Every request has an
 * id (X-Request-Id when sane, else made) that is in the log and in the answer's header. Answers above 1 kB are gzipped when the client
 * accepts it and the route allows it.
 *
 * Spans of a request are valid until it is answered (stream: until http_stream_end returns).
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"
#include "base/errid.h"

struct http_server;
struct http_request;

enum http_method { HTTP_GET = 1, HTTP_HEAD = 2, HTTP_POST = 4, HTTP_PUT = 8, HTTP_DELETE = 16 };
enum http_route_flags {
	HTTP_INLINE = 0,
	HTTP_WORKER = 1,  /* run on the worker pool: anything that reads blocks or waits. Answers on its thread, before it returns */
	HTTP_NO_AUTH = 2, /* health probes */
	HTTP_GZIP = 4,
	HTTP_NO_BUDGET = 8, /* small bodies that must get through under load: /-/healthy, /metrics */
	HTTP_PEER = 16, /* with WORKER: on the workers that peers have for themselves. A question that waits for peers must not keep theirs waiting */
};

struct http_route {
	unsigned methods;
	const char *path; /* exact, or with one "*" segment: /api/v1/label/'*'/values (without quotes); the match is http_path_arg */
	unsigned flags;
	uint64_t max_body_bytes;
	void (*handler)(void *arg, struct http_request *r);
	void *arg;
};

/* Subject field of a client's certificate that names its tenant. As in Thanos the first organization and organizational unit count, and the last common name. */
enum http_tenant_field { HTTP_TENANT_NONE, HTTP_TENANT_ORGANIZATION, HTTP_TENANT_ORGANIZATIONAL_UNIT, HTTP_TENANT_COMMON_NAME };

struct http_server_config {
	const char *address;	/* "127.0.0.1:19291", "[::1]:0", ":19291" */
	const char *web_config; /* Prometheus web-config file or NULL; re-read by http_server_reload and when it or its files change */
	uint32_t threads;	/* network threads; 0 = cores */
	uint32_t workers;	/* concurrent WORKER requests */
	uint32_t worker_queue;	/* waiting ones beyond that */
	uint32_t peer_workers;	/* concurrent requests of routes with HTTP_PEER, and as many may wait; 0: they run on `workers` */
	uint32_t max_connections;
	int64_t idle_timeout_ms, request_timeout_ms;
	uint64_t max_inflight_bytes; /* received bodies not yet answered, all routes with a budget */
	/* Whose a request is (http_tenant). Borrowed for the life of the server. */
	const char *tenant_header;	     /* asked before THANOS-TENANT; NULL: none */
	const char *tenant_default;	     /* who names no tenant; NULL: TENANT_DEFAULT */
	enum http_tenant_field tenant_field; /* another than NONE needs a web_config that verifies client certificates */
};

/* Binds and listens. Zeros in cfg mean the defaults of base/limits.h. Routes are copied; their paths and handlers are borrowed. ERR_INVALID / ERR_IO: "address 127.0.0.1:19291 is taken: ...". */
CHECKED errc http_server_start(
	const struct http_server_config *cfg, const struct http_route *routes, size_t n_routes, struct http_server **out, struct err *err);
uint16_t http_server_port(const struct http_server *s);			 /* the real one, when 0 was asked */
CHECKED errc http_server_reload(struct http_server *s, struct err *err); /* web config; a bad file leaves the old in force */
/* Stops accepting, lets running requests end (at most grace_ms), joins all threads, frees. */
void http_server_stop(struct http_server *s, int64_t grace_ms);

/* ---- the request ---- */
enum http_method http_method(const struct http_request *r);
struct span http_path(const struct http_request *r);
struct span http_target(const struct http_request *r);			 /* path and query, as they travelled */
struct span http_path_arg(const struct http_request *r);		 /* the "*" segment, percent-decoded */
struct span http_header(const struct http_request *r, const char *name); /* first value, trimmed; p == NULL when absent */
/* In Thanos' order: the field of the client's certificate, when the server goes by one, whatever the headers say; else the first that is there of the headers
 * tenant_header, THANOS-TENANT and X-Scope-OrgID, empty or not; else tenant_default. ERR_INVALID (TENANT): no such field, or no certificate that was verified; the name is not allowed; X-Scope-OrgID
 * names another tenant than the header before it. While the request runs, from the thread that runs it. */
CHECKED errc http_tenant(struct http_request *r, struct span *tenant, struct err *err);
/* For a request of a peer that is believed: THANOS-TENANT as it stands there. A peer's certificate names the peer. */
CHECKED errc http_tenant_of_peer(const struct http_request *r, struct span *tenant, struct err *err);
struct span http_body(const struct http_request *r);
const char *http_request_id(const struct http_request *r);
const char *http_client(const struct http_request *r); /* "127.0.0.1:51234" */
/* The client showed a certificate that is valid (web.config's client_auth_type verifies), and `name` is among its alternative names; NULL: whatever they are. Inside the handler, before http_defer. */
bool http_client_certified(const struct http_request *r, const char *name);
struct arena *http_arena(struct http_request *r); /* lives as long as the request, at most max_inflight_bytes: http_budget_take before filling it */
int64_t http_started_mono_ns(const struct http_request *r);
/* Form body (as Go, first) and query string, decoded, in order. Returns the n-th value of `name` or p == NULL. ERR_INVALID for a malformed
 * escape comes from http_parse_params, called first. */
CHECKED errc http_parse_params(struct http_request *r, struct err *err);
struct span http_param(const struct http_request *r, const char *name, size_t nth);
size_t http_param_count(const struct http_request *r);
void http_param_at(const struct http_request *r, size_t i, struct span *name, struct span *value);
/* A hint, one system call: the client has closed or at least finished its side, or the server's grace is over. An answer is sent either way. */
bool http_client_gone(struct http_request *r);

/* Reserves further bytes of the in-flight budget for this request (decompressed size); false: answer OVERLOADED. Given back with the request. */
bool http_budget_take(struct http_request *r, uint64_t bytes);

/* ---- the answer: exactly one of these families per request ---- */
/* Adds a header before the answer. Copied. Retry-After on 503 and 429 comes by itself unless set here. */
void http_set_header(struct http_request *r, const char *name, const char *value);
/* Copies the body. r is gone afterwards. Any thread. content_type NULL: text/plain; charset=utf-8. */
void http_answer(struct http_request *r, int status, const char *content_type, struct span body);
/* An error of the catalogue: its status, body "<id>: <message>\n" (for routes under /api/v1/ other than writes: Prometheus' JSON error), Retry-After on 503. */
void http_error(struct http_request *r, enum errid id, const char *fmt, ...) PRINTF_LIKE(3, 4);
void http_error_of(struct http_request *r, const struct err *err); /* by err->id, else by class */
/* INLINE handlers only: I will answer later, from any thread. Call before the other thread can answer. The server cannot stop before that answer. */
void http_defer(struct http_request *r);
/* WORKER handlers: a body of unknown length. write blocks while it is LIMIT_HTTP_STREAM_BYTES ahead of the client; ERR_CANCELED when that went away or
 * the server's grace is over. Once begin was OK, end is owed, also after a failed write; with ok = false it breaks the connection off, so that the
 * client sees a cut body. After a begin that failed nothing was answered yet. */
CHECKED errc http_stream_begin(struct http_request *r, int status, const char *content_type, struct err *err);
CHECKED errc http_stream_write(struct http_request *r, struct span data, struct err *err);
void http_stream_end(struct http_request *r, bool ok);
/* What was written goes out now, however little it is: the reader waits for it. Of no use on a route with HTTP_GZIP. */
void http_stream_flush(struct http_request *r);

/* ---- the client ---- */
struct http_client; /* a pool of kept-alive libcurl handles; any thread */
struct http_client_config {
	int64_t connect_timeout_ms; /* 10 s */
	int64_t idle_timeout_ms;    /* no byte for this long: ERR_TIMEOUT */
	int64_t total_timeout_ms;   /* 0 = none */
	bool insecure_skip_verify;
	const char *ca_file, *cert_file, *key_file, *server_name; /* NULL = default */
	uint32_t max_idle_connections;
};
CHECKED errc http_client_open(const struct http_client_config *cfg, struct http_client **out, struct err *err);
void http_client_close(struct http_client *c);	/* no call may run */
void http_client_cancel(struct http_client *c); /* for stopping: running and later calls return ERR_CANCELED at once */

struct http_call {
	const char *method; /* "GET", "PUT", ... */
	const char *url;
	const char *const *headers; /* "Name: value" */
	size_t n_headers;
	/* request body: either a span, or read(arg, buf, n, &got) until total bytes */
	struct span body;
	errc (*read)(void *arg, void *buf, size_t n, size_t *got, struct err *err);
	uint64_t body_bytes; /* with read */
	/* answer: at most max_answer_bytes go to `answer` (a buf of the caller's), or to write() when given (2xx answers only; an error body still goes to answer) */
	errc (*write)(void *arg, const void *p, size_t n, struct err *err);
	void *arg;
	size_t max_answer_bytes;
	/* out; both buffers zeroed before the first call, reused by the next one, freed by the caller with buf_free */
	int status;
	struct buf answer;
	struct buf answer_headers; /* "name: value\n" lines, names in lower case */
};
/* OK whenever an HTTP answer came whole, whatever its status. No redirects are followed, no cookies, no proxies from the environment. Messages name
 * method, host and path, never headers or the query. Tries once: retrying is the caller's. Errors of read() and write() come back as they are. */
CHECKED errc http_call(struct http_client *c, struct http_call *call, struct err *err);
/* Value of a header of the answer; p == NULL when absent. `name` in lower case. */
struct span http_call_header(const struct http_call *call, const char *name);

/* ---- the client that does not wait ----
 *
 * One thread drives any number of calls at once over kept-alive connections, so that a peer that is slow or silent costs no thread and no other call:
 *
 *     any thread ─ http_send ─▶ inbox ─▶ sender's thread: host (waiting ─▶ running, max_connections_per_host) ─▶ done(rc, status, answer)
 *
 * A call ends by its deadline, whatever its peer, the connection or the name service do. Names are resolved beside the calls; after a call could not
 * reach its host the name is asked anew while the address that is known stays in use, so that a name service that is down costs nobody a peer that is up.
 * A call that was sent on a kept connection which its peer had closed is sent again, once, on a fresh one, if nothing of an answer has come: a request
 * may arrive twice. Nothing else is tried again: that is the caller's. */
struct http_sender;
struct http_sender_config {
	struct http_client_config client; /* all but idle_timeout_ms and total_timeout_ms; max_idle_connections over all hosts, 0 = LIMIT_HTTP_KEPT */
	uint32_t max_connections_per_host; /* calls beyond wait their turn, until their deadlines; 0 = LIMIT_HTTP_CONNECTIONS_PER_HOST */
};
CHECKED errc http_sender_open(const struct http_sender_config *cfg, struct http_sender **out, struct err *err);
/* For stopping, any thread: running calls end at once with ERR_CANCELED, later http_sends are refused with it. */
void http_sender_cancel(struct http_sender *s);
/* Cancels, waits until the done of every call has returned, frees. Not from a done; nobody calls http_send any more when it returns. */
void http_sender_close(struct http_sender *s);

struct http_send {
	const char *method, *url;
	const char *const *headers; /* "Name: value"; all texts are copied */
	size_t n_headers;
	struct span body;	  /* borrowed until done */
	int64_t deadline_mono_ns; /* of io_mono_ns; 0: none */
	size_t max_answer_bytes;
	/* On the sender's thread, exactly once, never from inside http_send; it must not block: all calls wait for it. It may http_send. OK whenever an
	 * answer came whole, whatever its status; answer and err are borrowed for the call. ERR_TIMEOUT: the deadline, or no connection in time. ERR_NET:
	 * not reached or broken off. ERR_INVALID: the URL, or certificate files. ERR_LIMIT: answer too long. ERR_CANCELED. Messages as those of http_call. */
	void (*done)(void *arg, errc rc, int status, struct span answer, const struct err *err);
	void *arg;
	/* http_flow_open only: the body of a 2xx answer as it comes; `answer` is empty then. On the sender's thread; it must not block. false: no room; the same bytes come
	 * again after http_flow_more, and until then nothing is read from the connection, so that who sends them has to wait. */
	bool (*data)(void *arg, struct span piece);
};
/* Any thread. ERR_NOMEM, ERR_CANCELED: nothing was begun, done is not called. */
CHECKED errc http_send(struct http_sender *s, const struct http_send *call, struct err *err);
/* A call whose answer is taken in pieces, when there is room for them. An answer that is not 2xx comes whole, as ever. The sender must outlive it. */
struct http_flow;
CHECKED errc http_flow_open(struct http_sender *s, const struct http_send *call, struct http_flow **out, struct err *err);
void http_flow_more(struct http_flow *f); /* there is room again; any thread */
/* Once, from any thread, also before or after done has come: the call ends with ERR_CANCELED when it still runs. done, if it has not, comes soon all the same. NULL is fine. */
void http_flow_close(struct http_flow *f);
/* Only inside done: a header of the answer, its name in lower case; p == NULL when absent. */
struct span http_send_header(const struct http_sender *s, const char *name);

/* ---- names ----
 *
 * Addresses as "host:port" or "[v6]:port", in no order, some perhaps twice; all memory is the arena's. ERR_NET: the name service knows none, or does not answer. Both wait as long as it does. */
struct net_found {
	struct span *v;
	size_t n;
};
CHECKED errc net_find_addresses(const char *name, uint16_t port, struct arena *arena, struct net_found *out, struct err *err); /* A and AAAA */
CHECKED errc net_find_services(const char *name, struct arena *arena, struct net_found *out, struct err *err); /* SRV: targets with their ports */
