/* cmd/cmd_routes.c - the table of paths, and the small handlers of operations: health, readiness, metrics, flush, reload, status. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cmd/cmd_int.h"

static void healthy(void *arg, struct http_request *r)
{
	struct server *s = arg;
	if (atomic_load(&s->phase) == PHASE_FAILED)
		http_error(r, ERRID_STORAGE_FAILED, "storage has failed, the process is going down");
	else
		http_answer(r, 200, NULL, SPAN("varve is healthy.\n"));
}

static const char *phase_words(struct server *s, char *text, size_t n)
{
	switch (atomic_load(&s->phase)) {
	case PHASE_REPLAY: {
		uint64_t first = atomic_load(&s->replay_first), last = atomic_load(&s->replay_last), now = atomic_load(&s->replay_now);
		snprintf(text, n, "replaying the log: segment %" PRIu64 " of %" PRIu64 " to %" PRIu64, now, first, last);
		return text;
	}
	case PHASE_STOPPING:
		return "stopping";
	case PHASE_FAILED:
		return "storage has failed, the process is going down";
	default:
		return "starting";
	}
}

/* A node that stores is ready once its log is replayed, rings or not; one that only routes has nowhere to send anything without them. */
static bool lacks_ring(struct server *s, struct http_request *r)
{
	struct ring_file_status st;
	if (!s->rings || s->head || !(s->flags->roles & ROLE_ROUTE))
		return false;
	ring_file_status(s->rings, &st);
	if (st.epoch == 0)
		http_error(r, ERRID_NO_RING, "there is no valid hashring yet%s%s", st.good ? "" : ": ", st.good ? "" : st.error);
	return st.epoch == 0;
}

static void ready(void *arg, struct http_request *r)
{
	struct server *s = arg;
	char text[160];
	int phase = atomic_load(&s->phase);
	if (phase == PHASE_READY && lacks_ring(s, r))
		return;
	if (phase == PHASE_READY)
		http_answer(r, 200, NULL, SPAN("varve is ready.\n"));
	else
		http_error(r,
			phase == PHASE_STOPPING ? ERRID_SHUTTING_DOWN
			: phase == PHASE_FAILED ? ERRID_STORAGE_FAILED
						: ERRID_NOT_READY,
			"%s", phase_words(s, text, sizeof text));
}

static void walreplay(void *arg, struct http_request *r)
{
	struct server *s = arg;
	int phase = atomic_load(&s->phase);
	const char *state = phase == PHASE_STARTING ? "waiting" : phase == PHASE_REPLAY ? "in progress" : "done";
	char *body = arena_printf(http_arena(r),
		"{\"status\":\"success\",\"data\":{\"min\":%" PRIu64 ",\"max\":%" PRIu64 ",\"current\":%" PRIu64 ",\"state\":\"%s\"}}\n",
		(uint64_t)atomic_load(&s->replay_first), (uint64_t)atomic_load(&s->replay_last), (uint64_t)atomic_load(&s->replay_now), state);
	http_answer(r, 200, "application/json", span_cstr(body ? body : "{}"));
}

static void buildinfo(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, "application/json",
		SPAN("{\"status\":\"success\",\"data\":{\"application\":\"varve\",\"version\":\"" VARVE_VERSION
		     "\",\"revision\":\"\",\"branch\":\"\",\"buildUser\":\"\",\"buildDate\":\"\",\"goVersion\":\"\"}}\n"));
}

static void metrics(void *arg, struct http_request *r)
{
	(void)arg;
	struct buf out;
	buf_init(&out, 64 * MIB);
	metrics_write(&out);
	if (out.failed)
		http_error(r, ERRID_OVERLOADED, "no memory for the metrics page");
	else
		http_answer(r, 200, "text/plain; version=0.0.4; charset=utf-8", span_of(out.p, out.n));
	buf_free(&out);
}

static void answer_blocks(struct server *s, struct http_request *r)
{
	struct err err = {0};
	struct arena a;
	struct buf out;
	struct catalog_block *blocks;
	size_t n;
	arena_init(&a, GIB);
	buf_init(&out, GIB);
	errc rc = catalog_list(s->catalog, &a, &blocks, &n, &err);
	if (rc == OK) {
		blocks_json(blocks, n, &out);
		if (out.failed)
			rc = err_set(&err, ERR_NOMEM, "no memory for a list of %zu blocks", n);
	}
	if (rc == OK)
		http_answer(r, 200, "application/json", span_of(out.p, out.n));
	else
		http_error_of(r, &err);
	buf_free(&out);
	arena_free(&a);
}

/* Every window becomes a block, every block goes to the bucket; the answer comes when they are live. */
static void flush(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct err err = {0};
	errc rc = OK;
	char text[160];
	if (atomic_load(&s->phase) != PHASE_READY) {
		http_error(r, ERRID_NOT_READY, "%s", phase_words(s, text, sizeof text));
		return;
	}
	if (s->head)
		TRY(head_flush(s->head, &err));
	shipper_notify(s->shipper);
	TRY(shipper_flush(s->shipper, s->flags->flush_timeout_ms, &err));
	answer_blocks(s, r);
	return;
fail:
	log_warn("flush failed", LERR(&err));
	if (!err.id)
		err.id = errid_text(rc == ERR_NOSPACE	 ? ERRID_DISK_FULL
				    : rc == ERR_IO	 ? ERRID_STORAGE_FAILED
				    : rc == ERR_CANCELED ? ERRID_SHUTTING_DOWN
							 : ERRID_BUCKET);
	http_error_of(r, &err);
}

/* ?digest=1: only what nodes compare. */
static void blocks(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct err err = {0};
	uint64_t digest, live;
	char text[80];
	errc rc = http_parse_params(r, &err);
	bool brief = rc == OK && span_is(http_param(r, "digest", 0), "1");
	if (rc == OK && !brief) {
		answer_blocks(s, r);
		return;
	}
	if (rc == OK)
		rc = catalog_digest(s->catalog, &digest, &live, &err);
	if (rc != OK) {
		http_error_of(r, &err);
		return;
	}
	int n = snprintf(text, sizeof text, "{\"digest\":\"%016" PRIx64 "\",\"live_blocks\":%" PRIu64 "}\n", digest, live);
	http_answer(r, 200, "application/json", span_of(text, (size_t)n));
}

errc server_reload(struct server *s, struct err *err)
{
	/* Each file by itself: one that is bad does not keep the others from being read. */
	errc rc = http_server_reload(s->http, err);
	errc limits = s->ingest ? ingest_reload(s->ingest, rc == OK ? err : NULL) : OK;
	rc = rc == OK ? limits : rc;
	errc rings = s->rings && s->flags->hashrings_file ? ring_file_reload(s->rings, rc == OK ? err : NULL) : OK;
	rc = rc == OK ? rings : rc;
	if (rc == OK)
		log_info("configuration reloaded", LSTR("web_config", s->flags->web_config_file ? s->flags->web_config_file : ""),
			LSTR("limits", s->flags->limits_file ? s->flags->limits_file : ""),
			LSTR("hashrings", s->flags->hashrings_file ? s->flags->hashrings_file : ""));
	else
		log_error("configuration not reloaded, the old one stays", LERR(err));
	metric_set(metric_gauge("varve_config_last_reload_successful", "1 when the last reload of the configuration worked"), rc == OK);
	return rc;
}

static void reload(void *arg, struct http_request *r)
{
	struct err err = {0};
	if (server_reload(arg, &err) == OK)
		http_answer(r, 200, NULL, SPAN("reloaded\n"));
	else
		http_error(r, ERRID_INTERNAL, "%s", err.msg);
}

static void not_here(void *arg, struct http_request *r)
{
	struct server *s = arg;
	http_error(r, ERRID_NOT_FOUND, "this process does not route writes (--target=%s): send them to one that does (--target=route)",
		s->flags->target);
}

/* Reads need nothing but what is open; while the log is replayed they see what is there so far. */
static void front(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, NULL,
		SPAN("varve " VARVE_VERSION ": long-term storage for Prometheus metrics\n\n"
		     "POST /api/v1/write (also /api/v1/receive, /api/v1/push)   remote write 1.0, 2.0\n"
		     "POST /api/v1/read                                         remote read\n"
		     "GET  /api/v1/series /api/v1/labels /api/v1/label/NAME/values\n"
		     "GET  /api/v1/query_exemplars /api/v1/metadata\n"
		     "GET  /api/v1/status/tsdb /api/v1/status/blocks /api/v1/status/walreplay /api/v1/status/buildinfo\n"
		     "GET  /metrics /-/healthy /-/ready /-/tenants /-/ring /-/drain /-/repair /-/digest\n"
		     "POST /-/flush /-/reload /-/drain /-/repair                PUT /-/ring\n"));
}

/* A flag that is given empty is not given. */
static const char *word(const char *s)
{
	return s && *s ? s : NULL;
}

static enum http_tenant_field tenant_field(const char *s)
{
	return !s				      ? HTTP_TENANT_NONE
	       : strcmp(s, "organization") == 0	      ? HTTP_TENANT_ORGANIZATION
	       : strcmp(s, "organizationalUnit") == 0 ? HTTP_TENANT_ORGANIZATIONAL_UNIT
						      : HTTP_TENANT_COMMON_NAME;
}

/* ---- the table ---- */

enum { ROUTES_MAX = 64 };
struct routes {
	struct http_route v[ROUTES_MAX];
	size_t n;
};

static void add(struct routes *t, const struct http_route *v, size_t n)
{
	ASSERT(t->n + n <= ROUTES_MAX);
	memcpy(t->v + t->n, v, n * sizeof *v);
	t->n += n;
}

#define ADD(t, ...) add(t, (const struct http_route[]){__VA_ARGS__}, sizeof((const struct http_route[]){__VA_ARGS__}) / sizeof(struct http_route))

/* Every process. */
static void routes_common(struct server *s, struct routes *t)
{
	ADD(t, {HTTP_GET, "/api/v1/status/walreplay", HTTP_NO_BUDGET, 0, walreplay, s},
		{HTTP_GET, "/api/v1/status/buildinfo", HTTP_NO_BUDGET, 0, buildinfo, s},
		{HTTP_GET, "/metrics", HTTP_NO_BUDGET | HTTP_GZIP, 0, metrics, s},
		{HTTP_GET, "/-/healthy", HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, healthy, s},
		{HTTP_GET, "/-/ready", HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, ready, s},
		{HTTP_GET, "/-/drain", HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, server_drain_get, s},
		{HTTP_POST, "/-/drain", HTTP_NO_BUDGET | (s->trust ? HTTP_NO_AUTH : 0), 64 * KIB, server_drain_post, s},
		{HTTP_POST | HTTP_PUT, "/-/reload", HTTP_NO_BUDGET, 64 * KIB, reload, s}, {HTTP_GET, "/", HTTP_NO_BUDGET, 0, front, s});
}

static void routes_write(struct server *s, struct routes *t)
{
	const struct server_flags *f = s->flags;
	const uint64_t max_body = f->ingest_max_body < f->ingest_max_inflight ? f->ingest_max_body : f->ingest_max_inflight;
	void (*write)(void *arg, struct http_request *r) = f->roles & ROLE_ROUTE ? ingest_write : not_here;
	void *arg = f->roles & ROLE_ROUTE ? (void *)s->ingest : s;
	ADD(t, {HTTP_POST, "/api/v1/receive", HTTP_INLINE, max_body, write, arg}, {HTTP_POST, "/api/v1/write", HTTP_INLINE, max_body, write, arg},
		{HTTP_POST, "/api/v1/push", HTTP_INLINE, max_body, write, arg});
	if (s->rings && s->head)
		ADD(t, {HTTP_POST, PEER_WRITE_PATH, HTTP_INLINE | HTTP_NO_AUTH, f->ingest_max_inflight, server_peer_write, s},
			{HTTP_POST, HINTS_PATH, HTTP_INLINE | HTTP_NO_AUTH, f->ingest_max_inflight, hints_receive, s->hints},
			{HTTP_POST, TENANT_DELETE_PATH, HTTP_WORKER | HTTP_NO_AUTH, 0, tenant_delete_hear, s},
			{HTTP_POST, INGEST_RATES_PATH, HTTP_WORKER | HTTP_NO_AUTH, LIMIT_RATES_BYTES, server_rates_hear, s});
	if (s->head)
		ADD(t, {HTTP_GET, "/-/tenants", HTTP_WORKER | HTTP_GZIP, 0, ingest_tenants, s->ingest});
}

/* Who has blocks; what it answers is what it has. */
static void routes_data(struct server *s, struct routes *t)
{
	ADD(t, {HTTP_POST, "/api/v1/read", HTTP_WORKER, LIMIT_HTTP_READ_BODY_BYTES, query_remote_read, s->query},
		{HTTP_GET | HTTP_POST, "/api/v1/series", HTTP_WORKER | HTTP_GZIP, LIMIT_HTTP_FORM_BYTES, query_series, s->query},
		{HTTP_GET | HTTP_POST, "/api/v1/labels", HTTP_WORKER | HTTP_GZIP, LIMIT_HTTP_FORM_BYTES, query_labels, s->query},
		{HTTP_GET, "/api/v1/label/*/values", HTTP_WORKER | HTTP_GZIP, 0, query_label_values, s->query},
		{HTTP_GET | HTTP_POST, "/api/v1/query_exemplars", HTTP_WORKER | HTTP_GZIP, LIMIT_HTTP_FORM_BYTES, query_exemplars, s->query},
		{HTTP_GET, "/api/v1/metadata", HTTP_WORKER | HTTP_GZIP, 0, query_metadata, s->query},
		{HTTP_GET, "/api/v1/status/blocks", HTTP_WORKER | HTTP_GZIP, 0, blocks, s},
		{HTTP_GET, "/api/v1/status/tsdb", HTTP_WORKER | HTTP_GZIP, 0, query_status_tsdb, s->query},
		{HTTP_GET | HTTP_DELETE, "/-/tenants/*", HTTP_WORKER, 0, tenant_route, s},
		{HTTP_POST | HTTP_PUT, "/-/flush", HTTP_WORKER | HTTP_GZIP, 64 * KIB, flush, s});
	if (s->roster)
		ADD(t, {HTTP_POST, "/-/peer/read", HTTP_WORKER | HTTP_PEER | HTTP_NO_AUTH, LIMIT_HTTP_READ_BODY_BYTES, query_peer_read, s->query});
}

enum { PEER_WORKERS = 3 /* nodes that clients read from at once, each with --query.max-concurrency reads, before peers' questions queue up */ };

errc server_listen(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	struct routes t = {.n = 0};
	routes_common(s, &t);
	if (s->ingest)
		routes_write(s, &t);
	if (s->query)
		routes_data(s, &t);
	if (s->rings)
		ADD(&t, {HTTP_GET, "/-/ring", HTTP_NO_AUTH | HTTP_NO_BUDGET | HTTP_GZIP, 0, server_ring_get, s},
			{HTTP_PUT, "/-/ring", HTTP_NO_AUTH, LIMIT_RING_FILE_BYTES, server_ring_put, s});
	if (s->repair)
		ADD(&t, {HTTP_GET, "/-/digest", HTTP_WORKER | HTTP_GZIP, 0, repair_digest, s->repair},
			{HTTP_GET | HTTP_POST | HTTP_PUT, "/-/repair", HTTP_NO_BUDGET, 64 * KIB, repair_status, s->repair});
	if (s->repair && s->rings)
		ADD(&t, {HTTP_GET, "/-/peer/windows", HTTP_WORKER | HTTP_NO_AUTH, 0, repair_peer_windows, s->repair},
			{HTTP_GET, "/-/peer/digest", HTTP_WORKER | HTTP_NO_AUTH, 0, repair_peer_digest, s->repair},
			{HTTP_GET, "/-/peer/window", HTTP_WORKER | HTTP_NO_AUTH, 0, repair_peer_window, s->repair},
			{HTTP_GET | HTTP_POST, "/-/peer/owed", HTTP_NO_AUTH | HTTP_NO_BUDGET, 64 * KIB, repair_peer_owed, s->repair},
			{HTTP_POST, "/-/peer/repair", HTTP_NO_AUTH | HTTP_NO_BUDGET, 64 * KIB, repair_peer_ask, s->repair});
	if (s->feed)
		ADD(&t, {HTTP_GET, FEED_PATH, HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, server_feed_get, s});
	const struct http_server_config cfg = {
		.address = f->http_address,
		.web_config = f->web_config_file,
		.threads = (uint32_t)f->http_threads,
		.workers = (uint32_t)f->query_max_concurrency,
		.worker_queue = (uint32_t)f->query_max_concurrency,
		.peer_workers = s->roster && s->query ? (uint32_t)f->query_max_concurrency * PEER_WORKERS : 0,
		.max_connections = (uint32_t)f->http_max_connections,
		.idle_timeout_ms = f->http_idle_timeout_ms,
		.request_timeout_ms = f->http_request_timeout_ms,
		.max_inflight_bytes = f->ingest_max_inflight,
		.tenant_header = word(f->tenant_header),
		.tenant_default = f->tenant_default,
		.tenant_field = tenant_field(f->tenant_certificate_field),
	};
	return http_server_start(&cfg, t.v, t.n, &s->http, err);
}
