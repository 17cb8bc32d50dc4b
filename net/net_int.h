/* net/net_int.h - what the files of net/ share: connections, requests, and the generations of the web configuration.
 *
 * Threads of a server: one "door" (accepts, lingers, watches time-outs and the web config file: net_door.c), `threads` loops (each a
 * libmicrohttpd daemon with its own epoll: net_request.c runs on them), `workers` (net_worker.c), and one for bcrypt (net_auth.c).
 *
 * Life of a request: born in request_begin (request line read), judged when its headers are complete, run when its body is, and over
 * in request_over (answer sent, or connection broken). It is freed with its last reference: the loop's, and a stream's writer's.
 */
#pragma once
#include <gnutls/gnutls.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include "base/config.h"
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/tenant.h"
#include "net/net.h"

/* ---- text of requests: net_params.c ---- */
struct net_param {
	struct span name, value;
};
struct net_params {
	struct net_param *v;
	size_t n, cap;
};
/* %XX decoded, '+' is a space when `form`. Borrowed from `in` when there is nothing to decode. ERR_INVALID: malformed escape or NUL. */
CHECKED errc net_unescape(struct span in, bool form, struct arena *arena, struct span *out, struct err *err);
/* Appends a=b&c=d to `p`. */
CHECKED errc net_params_parse(struct span text, struct arena *arena, struct net_params *p, struct err *err);
/* "Basic <base64>" into user and password, both NUL-terminated in the arena. ERR_INVALID: not that, or a NUL inside. */
CHECKED errc net_basic_parse(struct span header, struct arena *arena, const char **user, const char **password, struct err *err);
/* A JSON string with its quotes; what is not UTF-8 becomes U+FFFD. */
void net_json_string(struct buf *out, struct span s);
bool net_is_token(struct span s);

/* ---- web configuration: net_web.c, net_tls.c ---- */
struct net_user {
	const char *name;
	const char *hash; /* bcrypt, 60 characters */
};
struct net_header {
	const char *name;
	const char *value;
};
enum net_client_auth { TLS_CLIENT_NONE, TLS_CLIENT_REQUEST, TLS_CLIENT_REQUIRE_ANY, TLS_CLIENT_VERIFY_IF_GIVEN, TLS_CLIENT_REQUIRE_AND_VERIFY };
struct net_tls_config {
	const char *cert_file, *key_file, *client_ca_file; /* paths, or NULL */
	struct span cert, key, client_ca;		   /* PEM */
	enum net_client_auth client_auth;
	const char **client_sans;
	size_t n_client_sans;
	const char *priorities; /* GnuTLS' notation */
};
struct net_file_stamp {
	const char *path;
	int64_t mtime_ms;
	uint64_t size;
};
/* One generation of the web config file: immutable, counted. Connections and requests hold the one that they began with. */
struct net_web {
	atomic_uint refs;
	struct arena arena;
	bool has_tls;
	struct net_tls_config tls;
	struct net_user *users; /* sorted by name */
	size_t n_users;
	char dummy_setting[64]; /* a bcrypt setting as dear as the dearest user's, for names that are not there */
	struct net_header *headers;
	size_t n_headers;
	struct net_file_stamp stamps[4];
	size_t n_stamps;
	/* made by net_tls_open */
	gnutls_certificate_credentials_t creds;
	gnutls_priority_t priority;
};
CHECKED errc net_web_load(const char *path, struct net_web **out, struct err *err);
struct net_web *net_web_hold(struct net_web *w); /* NULL is fine */
void net_web_drop(struct net_web *w);
/* True when a file it was made from looks different now, or is gone. */
bool net_web_changed(const struct net_web *w);

CHECKED errc net_tls_open(struct net_web *w, struct err *err);
void net_tls_close(struct net_web *w);
/* Puts the generation's certificate, rules and client checks on a session that has not begun. False: do not use the session. */
bool net_tls_session(struct net_web *w, gnutls_session_t session);
/* Whether a session that began under this generation has no client certificate but a verified one. */
bool net_tls_verifies(const struct net_web *w);
/* Go's cipher suite, version and curve names into one GnuTLS priority string. */
CHECKED errc net_tls_priorities(const char *name, const struct yaml *tls, struct arena *arena, const char **out, struct err *err);

/* ---- basic auth: net_auth.c ---- */
struct net_auth;
enum net_verdict { NET_DENIED, NET_ALLOWED, NET_PENDING };
CHECKED errc net_auth_open(struct net_auth **out, struct err *err);
void net_auth_close(struct net_auth *a);
/* From the caches, or NET_PENDING: bcrypt has to run, hand it to net_auth_queue. */
enum net_verdict net_auth_lookup(struct net_auth *a, const struct net_web *w, const char *user, const char *password);
/* Runs bcrypt on the auth thread and remembers the verdict, then calls done(arg). False: too many wait already. */
bool net_auth_queue(struct net_auth *a, struct net_web *w, const char *user, const char *password, void (*done)(void *arg, bool allowed), void *arg);

/* ---- connections ---- */
/* What the client's certificate says of its tenant. */
enum net_certified { CERTIFIED_UNREAD, CERTIFIED_NOBODY, CERTIFIED_NOTHING, CERTIFIED_TENANT };
enum net_phase { CONN_IDLE, CONN_READING, CONN_RUNNING, CONN_ANSWERING };

struct net_loop {
	struct http_server *server;
	struct MHD_Daemon *daemon;
	atomic_uint connections;
};

struct net_conn {
	struct http_server *server;
	struct net_loop *loop;
	struct MHD_Connection *mhd;
	struct net_web *web; /* TLS generation; NULL without TLS */
	int fd;
	char client[64];
	struct net_conn *prev, *next; /* server->conns, under conns_mu */
	/* written by the loop, read by the door */
	_Atomic uint32_t phase;
	_Atomic int64_t since_ns;
	_Atomic uint64_t sent_bytes;
	/* door only */
	uint64_t seen_bytes;
	int64_t seen_ns, seen_since_ns;
	/* loop only */
	bool linger; /* something unread may be there: read it away before closing, or the answer is lost with a reset */
	/* whoever runs its request (net_tenant.c) */
	enum net_certified certified;
	uint32_t certified_n;
	char certified_tenant[TENANT_NAME_MAX + 2];
};

/* ---- requests ---- */
enum net_stage {
	STAGE_HEAD,    /* headers not judged yet, or waiting for bcrypt */
	STAGE_BODY,    /* body arrives */
	STAGE_DISCARD, /* refused, but the body is small: read it away and keep the connection */
	STAGE_RUN,     /* handler called; its answer is in `response` when the loop sees the request again */
	STAGE_SENT,    /* response queued */
};

struct net_stream;
struct net_route {
	struct http_route r;
	_Atomic(struct metric *) by_code[500]; /* from 100 */
	struct metric *seconds;
};

struct http_request {
	struct http_server *server;
	struct net_conn *conn; /* loop only, or while the connection sleeps */
	struct MHD_Connection *mhd;
	struct net_web *web;
	const struct net_route *route; /* never NULL once judged: server->unmatched */
	atomic_uint refs;
	enum net_stage stage;
	enum http_method method;
	const char *method_text;
	bool http10, head, chunked, gzip_ok, json_errors, deferred, answered, close_after, params_parsed, expects_continue;
	enum { AUTH_UNKNOWN, AUTH_YES, AUTH_NO, AUTH_BUSY } auth;
	struct span target, path, query, path_arg;
	struct net_header_in {
		struct span name, value;
	} * headers;
	size_t n_headers, cap_headers;
	struct net_header_out {
		struct net_header_out *next;
		const char *name, *value;
	} * out_headers;
	struct arena arena;
	struct net_params params;
	uint8_t *body;
	size_t body_n, body_cap;
	uint64_t content_length; /* UINT64_MAX: unknown */
	uint64_t discarded_bytes;
	_Atomic uint64_t budget_bytes;
	struct MHD_Response *response;
	int status;
	uint64_t answer_bytes;
	struct net_stream *stream;
	struct http_request *queue_next; /* worker queue */
	int64_t started_ns;
	char id[65];
	char client[64];
};

struct net_worker_pool;
enum { NET_LISTEN_MAX = 2, NET_LOOPS_MAX = 64, NET_LINGER_MAX = 256 };

struct http_server {
	struct http_server_config cfg;
	char *address;
	char *web_path;
	struct net_route *routes;
	size_t n_routes;
	struct net_route unmatched;
	struct net_loop loops[NET_LOOPS_MAX];
	uint32_t n_loops;
	bool tls;
	uint16_t port;
	int listen_fd[NET_LISTEN_MAX];
	size_t n_listen;
	int wake_fd;
	pthread_t door;
	bool door_running;
	struct net_auth *auth;
	struct net_worker_pool *pool;
	struct net_worker_pool *peer_pool; /* NULL: peers' requests run on the other */
	struct MHD_Response *oom_response;
	uint32_t id_prefix;
	_Atomic uint64_t id_counter;

	pthread_mutex_t web_mu;
	struct net_web *web; /* under web_mu; NULL without a file */
	pthread_mutex_t reload_mu;

	pthread_mutex_t conns_mu;
	struct net_conn *conns;
	atomic_uint n_conns;

	pthread_mutex_t linger_mu;
	struct net_linger {
		int fd;
		int64_t until_ns;
		uint64_t bytes;
	} linger_new[NET_LINGER_MAX];
	size_t n_linger_new;

	_Atomic uint64_t inflight_bytes;
	atomic_uint active;   /* requests begun and not over */
	atomic_uint resuming; /* threads inside MHD_resume_connection */
	atomic_bool stopping; /* new requests are refused */
	atomic_bool doomed;   /* the grace is over: streams end, clients count as gone */
	atomic_bool door_stop;

	pthread_mutex_t warn_mu;
	int64_t warn_second[2];
	uint32_t warned[2], suppressed[2];

	struct http_server *next; /* all servers of the process, for the gauges */
};

/* net_names.c: the SRV records of an answer as it came. */
CHECKED errc net_srv_read(const char *name, const uint8_t *answer, size_t n, struct arena *arena, struct net_found *out, struct err *err);

/* net_request.c */
void *request_begin(void *cls, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result request_step(void *cls, struct MHD_Connection *mhd, const char *url, const char *method, const char *version, const char *upload,
	size_t *upload_n, void **ctx);
void request_over(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_RequestTerminationCode why);
void request_drop(struct http_request *r); /* one reference */
bool request_budget_take(struct http_request *r, uint64_t bytes);
void request_body_free(struct http_request *r); /* and its budget */
void request_resume(struct http_request *r);	/* r may be gone afterwards */

/* net_route.c */
/* The route for method and path, else NULL and in *allow the methods that the path has. */
CHECKED errc route_match(struct http_server *s, struct http_request *r, const struct net_route **out, unsigned *allow, struct err *err);

/* net_answer.c */
struct MHD_Response *answer_response(struct http_request *r, int status, const char *content_type, struct span body);
void answer_headers(struct http_request *r, struct MHD_Response *resp, int status, const char *content_type);
void answer_set(struct http_request *r, struct MHD_Response *resp, int status, uint64_t bytes);
bool answer_can_gzip(const struct http_request *r, int status);
/* The whole answer as bytes, for when libmicrohttpd takes no answer any more: in the middle of a body. */
void answer_raw(struct http_request *r, enum errid id, const char *message);

/* net_stream.c */
struct MHD_Response *stream_response(struct http_request *r);
void stream_abort(struct http_request *r);
bool stream_client_gone(struct http_request *r);
void stream_free(struct net_stream *st);

/* net_worker.c */
CHECKED errc worker_pool_open(uint32_t workers, uint32_t queue, struct net_worker_pool **out, struct err *err);
bool worker_pool_put(struct net_worker_pool *p, struct http_request *r);
void worker_pool_close(struct net_worker_pool *p);
void worker_answered(struct http_request *r);

/* net_door.c */
CHECKED errc door_listen(struct http_server *s, const char *address, struct err *err);
CHECKED errc door_open(struct http_server *s, struct err *err);
void door_close(struct http_server *s);
void door_linger(struct http_server *s, int fd); /* takes the descriptor */
void conn_changed(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_ConnectionNotificationCode code);
void conn_phase(struct net_conn *c, enum net_phase phase);
size_t conn_shutdown(struct http_server *s, bool all); /* idle ones, or all; how many */

/* net_access.c */
extern struct net_metrics {
	struct metric *refused_connections, *timeouts_read, *timeouts_write, *auth_failures, *streams_aborted;
} net_metrics;
void access_init(void);
void access_server(struct http_server *s, bool add);
void access_log(struct http_request *r, enum MHD_RequestTerminationCode why);
