/* ingest/ingest_write.c - one write request of a client, from its headers to its answer. What is stored in between: ingest_store.c. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "ingest/ingest_int.h"

enum errid ingest_gate_id(struct ingest *in)
{
	return (enum errid)atomic_load_explicit(&in->gate_id, memory_order_acquire);
}

bool ingest_gate_open(struct ingest *in, struct http_request *r, enum rw_version version)
{
	enum errid id = ingest_gate_id(in);
	if (LIKELY(id == ERRID_NONE))
		return true;
	char text[INGEST_GATE_BYTES];
	pthread_mutex_lock(&in->gate_mu);
	memcpy(text, in->gate_text, sizeof text);
	pthread_mutex_unlock(&in->gate_mu);
	if (version == RW_2)
		ingest_written_headers(r, &(struct ingest_written){0});
	http_error(r, id, "%s", text);
	return false;
}

/* Body to series and samples: everything that can be wrong with the request as such. */
static errc decode(struct ingest *in, struct http_request *r, struct admission *a, struct ingest_part *part, struct err *err)
{
	errc rc = OK;
	size_t declared, max = in->cfg.max_body_bytes * LIMIT_INGEST_DECODED_FACTOR;
	TRY(snappy_declared(http_body(r), &declared, err));
	TRY(ingest_admit_sizes(a, http_body(r).n, declared, err));
	if (declared > max) {
		rc = err_id(err, ERRID_DECODED_TOO_LARGE, ERR_LIMIT,
			"the body says it decompresses to %zu bytes, at most %zu are allowed (%d x --ingest.max-body)", declared, max,
			LIMIT_INGEST_DECODED_FACTOR);
		goto fail;
	}
	if (declared > in->cfg.max_inflight_bytes || http_body(r).n > in->cfg.max_inflight_bytes - declared) {
		rc = err_id(err, ERRID_DECODED_TOO_LARGE, ERR_LIMIT,
			"the body has %zu bytes and decompresses to %zu, together at most %" PRIu64 " are allowed (--ingest.max-inflight)",
			http_body(r).n, declared, in->cfg.max_inflight_bytes);
		goto fail;
	}
	if (!http_budget_take(r, declared)) {
		rc = err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "too many bytes in flight (--ingest.max-inflight)");
		goto fail;
	}
	TRY(snappy_decode(http_body(r), max, http_arena(r), &part->body, err));
	const struct rw_limits limits = {in->cfg.max_series_per_request, in->cfg.max_samples_per_request, LIMIT_LABELS_DECODE};
	TRY((part->version == RW_2 ? rw2_decode : rw1_decode)(part->body, &limits, http_arena(r), part->rw, err));
	TRY(ingest_admit_counts(a, part->rw->n_series, part->rw->n_samples + part->rw->n_hists, err));
	part->n_items = (uint32_t)(part->rw->n_series + (part->version == RW_1 ? part->rw->n_metadata : 0));
fail:
	return rc;
}

/* Composed before the log is waited for: the answer is the log's thread to give. */
static void judged(struct ingest_store *st)
{
	struct ingest_pending *w = (struct ingest_pending *)st;
	struct ingest *in = st->in;
	w->refusal = ingest_refusal(in, &st->b, st->rw, st->version, &st->verdicts, &w->limits, st->arena, &w->refusal_id);
	if (w->refusal.n == 0 && st->version == RW_2)
		w->refusal = ingest_exemplar_refusal(&st->notes, st->arena, &w->refusal_id);
	if (w->refusal.n > 0) {
		metric_add(in->requests_partial, 1);
		if (w->refusal_id == ERRID_TENANT_SERIES)
			ingest_limits_refused_series(in->limits);
		log_debug("samples refused", LSTR("client", http_client(w->r)), LSPAN("tenant", st->b.tenant), LSPAN("answer", w->refusal));
	}
	http_defer(w->r);
}

void ingest_store_failed(struct http_request *r, errc rc, const struct err *err)
{
	if (rc == ERR_NOSPACE)
		http_error(r, ERRID_DISK_FULL, "the log could not be written: %s", err ? err->msg : "disk full");
	else
		http_error(r, ERRID_STORAGE_FAILED, "the log failed: %s", err ? err->msg : errc_name(rc));
}

/* From the log's syncer thread: durable, or not. */
static void durable(struct ingest_store *st, errc rc, const struct err *err)
{
	const struct ingest_pending *w = (const struct ingest_pending *)st;
	if (st->version == RW_2)
		ingest_written_headers(w->r, rc == OK ? &st->written : &(struct ingest_written){0});
	if (rc != OK)
		ingest_store_failed(w->r, rc, err);
	else if (w->refusal.n > 0) {
		/* Series leave with their windows: it is hours rather than seconds until there is room for new ones. */
		if (w->refusal_id == ERRID_TENANT_SERIES)
			http_set_header(w->r, "Retry-After", "60");
		http_answer(w->r, errid_status(w->refusal_id), NULL, w->refusal);
	} else
		http_answer(w->r, 204, NULL, (struct span){"", 0});
}

static struct ingest_bounds bounds_now(const struct ingest *in)
{
	int64_t now = io_now_ms();
	return (struct ingest_bounds){
		.min_t = in->cfg.oldest_ms > 0 ? now - in->cfg.oldest_ms : INT64_MIN,
		.max_t = in->cfg.future_ms < INT64_MAX - now ? now + in->cfg.future_ms : INT64_MAX,
		.now_ms = now,
	};
}

/* On OK the answer is the log's to give and r is no longer ours. */
static errc store(struct ingest *in, struct http_request *r, const struct ingest_part *part, const struct admission *a, struct err *err)
{
	errc rc = OK;
	struct ingest_bounds bounds = bounds_now(in);
	bounds.max_series = part->max_series;
	if (in->cfg.cluster)
		return ingest_route(in, r, part, 1, &bounds, NULL, err);
	struct ingest_pending *w = arena_calloc(http_arena(r), 1, sizeof *w);
	if (!w)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory");
	w->store =
		(struct ingest_store){.in = in, .arena = http_arena(r), .rw = part->rw, .version = part->version, .judged = judged, .done = durable};
	w->r = r;
	w->limits = a->limits;
	TRY(ingest_batch(&w->store, part->tenant, &bounds, err));
	TRY(ingest_store(&w->store, err));
fail:
	return rc;
}

/* The same, by the label that names tenants. */
static errc store_split(struct ingest *in, struct http_request *r, const struct ingest_part *part, const struct admission *a, struct err *err)
{
	errc rc = OK;
	struct rw_request *rw = part->rw;
	struct ingest_split split;
	const struct ingest_bounds bounds = bounds_now(in);
	size_t bytes = 0; /* of labels, which are put together anew */
	for (size_t i = 0; i < rw->n_series; i++)
		bytes += part->version == RW_2 ? 4 * sizeof(uint32_t) * rw->series[i].n_labels : rw->series[i].wire.n;
	if (!http_budget_take(r, bytes))
		return err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "too many bytes in flight (--ingest.max-inflight)");
	TRY(ingest_split(rw, part->version, a->tenant, in->cfg.split_label, http_arena(r), &split, err));
	TRY(ingest_split_write(in, r, &split, part->body, &bounds, err));
fail:
	return rc;
}

void ingest_write(void *arg, struct http_request *r)
{
	struct ingest *in = arg;
	struct err err = {0};
	errc rc = OK;
	struct ingest_part *part = NULL;
	struct span tenant;
	struct admission a = {.retry_s = 0};
	enum rw_version version;
	rc = rw_negotiate(http_header(r, "Content-Type"), http_header(r, "Content-Encoding"), &version, &err);
	if (!ingest_gate_open(in, r, version))
		return;
	metric_add(in->requests[version], 1);
	TRY(rc);
	TRY(http_tenant(r, &tenant, &err));
	ingest_admit(in->limits, tenant, &a);
	if (in->cfg.split_label) {
		/* It pays for the size; what else is held against limits is each of its tenants' own. */
		a.limits.v[TENANT_SERIES] = a.limits.v[TENANT_SAMPLES] = a.limits.v[TENANT_RATE] = 0;
	}
	part = arena_calloc(http_arena(r), 1, sizeof *part + sizeof *part->rw); /* until it is answered */
	if (!part) {
		rc = err_id(&err, ERRID_OVERLOADED, ERR_NOMEM, "no memory");
		goto fail;
	}
	*part = (struct ingest_part){
		.tenant = tenant, .version = version, .rw = (struct rw_request *)(part + 1), .max_series = ingest_head_max(in, tenant, &a.limits)};
	TRY(decode(in, r, &a, part, &err));
	TRY((in->cfg.split_label ? store_split : store)(in, r, part, &a, &err));
	ingest_admit_end(&a, true);
	return;
fail:
	ASSERT(rc != OK);
	ingest_admit_end(&a, false);
	if (a.retry_s > 0) {
		char text[24];
		snprintf(text, sizeof text, "%" PRId64, a.retry_s);
		http_set_header(r, "Retry-After", text);
	}
	if (version == RW_2)
		ingest_written_headers(r, &(struct ingest_written){0});
	http_error_of(r, &err);
}

errc ingest_reload(struct ingest *in, struct err *err)
{
	return ingest_limits_read(in->limits, err);
}

void ingest_tick(struct ingest *in)
{
	ingest_limits_tick(in->limits);
}

errc ingest_open(const struct ingest_config *cfg, struct ingest **out, struct err *err)
{
	ASSERT(!cfg->head == !cfg->wal && (cfg->head || cfg->cluster) && !cfg->cluster == !cfg->rings && cfg->max_body_bytes > 0);
	struct ingest *in = calloc(1, sizeof *in);
	if (!in)
		return err_set(err, ERR_NOMEM, "no memory for the write endpoints");
	in->cfg = *cfg;
	errc rc = ingest_limits_open(cfg->limits_file, &in->limits, err);
	if (rc == OK)
		rc = ingest_fleet_open(&in->fleet, err);
	if (rc != OK) {
		ingest_limits_close(in->limits);
		free(in);
		return rc;
	}
	pthread_mutex_init(&in->gate_mu, NULL);
	pthread_mutex_init(&in->buffers_mu, NULL);
	in->stored = metric_counter_with("varve_ingest_samples_total", "Samples of write requests by what became of them", "result", "stored");
	in->duplicate = metric_counter_with("varve_ingest_samples_total", "Samples of write requests by what became of them", "result", "duplicate");
	in->refused = metric_counter_with("varve_ingest_samples_total", "Samples of write requests by what became of them", "result", "refused");
	in->requests_partial =
		metric_counter("varve_ingest_requests_refused_in_part_total", "Write requests of which at least one sample was refused (400, 429)");
	ingest_annotations_open(in);
	in->zeros = metric_counter(
		"varve_ingest_created_zeros_total", "Zeros stored where series began, by their start timestamps (--ingest.created-timestamp-zero)");
	static const char peers_help[] = "Requests of peers, with what they owe this node";
	in->peer_requests[false] = metric_counter_with("varve_ingest_peer_requests_total", peers_help, "kind", "write");
	in->peer_requests[true] = metric_counter_with("varve_ingest_peer_requests_total", peers_help, "kind", "hint");
	static const char help[] = "Write requests by the protocol of their headers";
	in->requests[RW_NONE] = metric_counter_with("varve_ingest_requests_total", help, "version", "none");
	in->requests[RW_1] = metric_counter_with("varve_ingest_requests_total", help, "version", "1.0");
	in->requests[RW_2] = metric_counter_with("varve_ingest_requests_total", help, "version", "2.0");
	*out = in;
	return OK;
}

void ingest_gate(struct ingest *in, enum errid id, const char *message)
{
	pthread_mutex_lock(&in->gate_mu);
	size_t n = message ? strlen(message) : 0;
	if (n >= sizeof in->gate_text)
		n = sizeof in->gate_text - 1;
	memcpy(in->gate_text, message ? message : "", n);
	in->gate_text[n] = 0;
	atomic_store_explicit(&in->gate_id, id, memory_order_release);
	pthread_mutex_unlock(&in->gate_mu);
}

void ingest_close(struct ingest *in)
{
	if (!in)
		return;
	for (size_t i = 0; i < in->n_buffers; i++)
		buf_free(&in->buffers[i]);
	pthread_mutex_destroy(&in->gate_mu);
	pthread_mutex_destroy(&in->buffers_mu);
	ingest_fleet_close(in->fleet);
	ingest_limits_close(in->limits);
	free(in);
}
