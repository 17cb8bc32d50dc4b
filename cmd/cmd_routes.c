/* cmd/cmd_routes.c - the table of paths, and the small handlers of operations: health, readiness, metrics, flush, reload, status. */
#include <inttypes.h>
#include <stdio.h>
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

static void ready(void *arg, struct http_request *r)
{
	struct server *s = arg;
	char text[160];
	int phase = atomic_load(&s->phase);
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

static void blocks(void *arg, struct http_request *r)
{
	answer_blocks(arg, r);
}

errc server_reload(struct server *s, struct err *err)
{
	errc rc = http_server_reload(s->http, err);
	/* Each file by itself: one that is bad does not keep the other from being read. */
	errc limits = ingest_reload(s->ingest, rc == OK ? err : NULL);
	rc = rc == OK ? limits : rc;
	if (rc == OK)
		log_info("configuration reloaded", LSTR("web_config", s->flags->web_config_file ? s->flags->web_config_file : ""),
			LSTR("limits", s->flags->limits_file ? s->flags->limits_file : ""));
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
		     "GET  /metrics /-/healthy /-/ready /-/tenants      POST /-/flush /-/reload\n"));
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

errc server_listen(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	const uint64_t max_body = f->ingest_max_body < f->ingest_max_inflight ? f->ingest_max_body : f->ingest_max_inflight;
	const struct http_route routes[] = {
		{HTTP_POST, "/api/v1/receive", HTTP_INLINE, max_body, ingest_write, s->ingest},
		{HTTP_POST, "/api/v1/write", HTTP_INLINE, max_body, ingest_write, s->ingest},
		{HTTP_POST, "/api/v1/push", HTTP_INLINE, max_body, ingest_write, s->ingest},
		{HTTP_POST, "/api/v1/read", HTTP_WORKER, LIMIT_HTTP_READ_BODY_BYTES, query_remote_read, s->query},
		{HTTP_GET | HTTP_POST, "/api/v1/series", HTTP_WORKER | HTTP_GZIP, LIMIT_HTTP_FORM_BYTES, query_series, s->query},
		{HTTP_GET | HTTP_POST, "/api/v1/labels", HTTP_WORKER | HTTP_GZIP, LIMIT_HTTP_FORM_BYTES, query_labels, s->query},
		{HTTP_GET, "/api/v1/label/*/values", HTTP_WORKER | HTTP_GZIP, 0, query_label_values, s->query},
		{HTTP_GET | HTTP_POST, "/api/v1/query_exemplars", HTTP_WORKER | HTTP_GZIP, LIMIT_HTTP_FORM_BYTES, query_exemplars, s->query},
		{HTTP_GET, "/api/v1/metadata", HTTP_WORKER | HTTP_GZIP, 0, query_metadata, s->query},
		{HTTP_GET, "/api/v1/status/walreplay", HTTP_NO_BUDGET, 0, walreplay, s},
		{HTTP_GET, "/api/v1/status/buildinfo", HTTP_NO_BUDGET, 0, buildinfo, s},
		{HTTP_GET, "/api/v1/status/blocks", HTTP_WORKER | HTTP_GZIP, 0, blocks, s},
		{HTTP_GET, "/api/v1/status/tsdb", HTTP_WORKER | HTTP_GZIP, 0, query_status_tsdb, s->query},
		{HTTP_GET | HTTP_DELETE, "/-/tenants/*", HTTP_WORKER, 0, tenant_route, s},
		{HTTP_GET, "/-/tenants", HTTP_WORKER | HTTP_GZIP, 0, ingest_tenants, s->ingest},
		{HTTP_GET, "/metrics", HTTP_NO_BUDGET | HTTP_GZIP, 0, metrics, s},
		{HTTP_GET, "/-/healthy", HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, healthy, s},
		{HTTP_GET, "/-/ready", HTTP_NO_AUTH | HTTP_NO_BUDGET, 0, ready, s},
		{HTTP_POST | HTTP_PUT, "/-/flush", HTTP_WORKER | HTTP_GZIP, 64 * KIB, flush, s},
		{HTTP_POST | HTTP_PUT, "/-/reload", HTTP_NO_BUDGET, 64 * KIB, reload, s},
		{HTTP_GET, "/", HTTP_NO_BUDGET, 0, front, s},
	};
	const struct http_server_config cfg = {
		.address = f->http_address,
		.web_config = f->web_config_file,
		.threads = (uint32_t)f->http_threads,
		.workers = (uint32_t)f->query_max_concurrency,
		.worker_queue = (uint32_t)f->query_max_concurrency,
		.max_connections = (uint32_t)f->http_max_connections,
		.idle_timeout_ms = f->http_idle_timeout_ms,
		.request_timeout_ms = f->http_request_timeout_ms,
		.max_inflight_bytes = f->ingest_max_inflight,
		.tenant_header = word(f->tenant_header),
		.tenant_default = f->tenant_default,
		.tenant_field = tenant_field(f->tenant_certificate_field),
	};
	return http_server_start(&cfg, routes, sizeof routes / sizeof routes[0], &s->http, err);
}
