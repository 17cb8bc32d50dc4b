/* ingest/ingest_write.c - one write request, from its headers to its answer.
 *
 * The order is decision 4's: room in the log is reserved before the head decides, only what it accepted is logged, and the answer waits until
 * everything that its verdict relied on is durable. So a request that holds only duplicates logs nothing and still waits for them.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "ingest/ingest_int.h"

/* The head reads the decoder's samples where they are. */
_Static_assert(sizeof(struct head_sample) == sizeof(struct rw_sample), "one layout");
_Static_assert(offsetof(struct head_sample, v) == offsetof(struct rw_sample, v), "one layout");

static struct buf buffer_take(struct ingest *in, size_t max)
{
	struct buf b = {0};
	pthread_mutex_lock(&in->buffers_mu);
	if (in->n_buffers > 0)
		b = in->buffers[--in->n_buffers];
	pthread_mutex_unlock(&in->buffers_mu);
	b.n = 0;
	b.failed = false;
	b.max = max;
	return b;
}

static void buffer_give(struct ingest *in, struct buf b)
{
	pthread_mutex_lock(&in->buffers_mu);
	/* That of a giant request, or of one full of new series, is not kept: it would stay resident for nothing. Of others little is touched. */
	if (in->n_buffers < INGEST_BUFFERS_KEPT && b.cap <= 4 * MIB && b.n <= MIB / 4) {
		in->buffers[in->n_buffers++] = b;
		b.p = NULL;
	}
	pthread_mutex_unlock(&in->buffers_mu);
	free(b.p);
}

static bool gate_open(struct ingest *in, struct http_request *r, enum rw_version version)
{
	enum errid id = (enum errid)atomic_load_explicit(&in->gate_id, memory_order_acquire);
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
static errc decode(struct ingest *in, struct http_request *r, enum rw_version version, struct admission *a, struct rw_request *rw, struct err *err)
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
	struct span body;
	TRY(snappy_decode(http_body(r), max, http_arena(r), &body, err));
	const struct rw_limits limits = {in->cfg.max_series_per_request, in->cfg.max_samples_per_request, LIMIT_LABELS_DECODE};
	TRY((version == RW_2 ? rw2_decode : rw1_decode)(body, &limits, http_arena(r), rw, err));
	TRY(ingest_admit_counts(a, rw->n_series, rw->n_samples + rw->n_hists, err));
fail:
	return rc;
}

static errc batch_of(
	struct ingest *in, struct http_request *r, const struct rw_request *rw, const struct admission *a, struct head_batch *b, struct err *err)
{
	int64_t now = io_now_ms();
	*b = (struct head_batch){
		.tenant = a->tenant,
		.symbols = rw->symbols,
		.n_symbols = rw->n_symbols,
		.series = arena_alloc(http_arena(r), rw->n_series * sizeof *b->series),
		.n_series = rw->n_series,
		.samples = (const struct head_sample *)(const void *)rw->samples,
		.n_samples = rw->n_samples,
		.min_t = in->cfg.oldest_ms > 0 ? now - in->cfg.oldest_ms : INT64_MIN,
		.max_t = in->cfg.future_ms < INT64_MAX - now ? now + in->cfg.future_ms : INT64_MAX,
		.now_ms = now,
		.max_series = a->limits.v[TENANT_HEAD_SERIES],
	};
	if (!b->series)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %zu series", rw->n_series);
	for (size_t i = 0; i < rw->n_series; i++) {
		const struct rw_series *s = &rw->series[i];
		b->series[i] =
			(struct head_series){.wire = s->wire, .refs = s->refs, .n_labels = s->n_labels, .first = s->first_sample, .n = s->n_samples};
	}
	return in->cfg.created_zero ? ingest_zeros(rw, b, http_arena(r), err) : OK;
}

/* From the log's syncer thread: durable, or not. */
static void durable(void *arg, errc rc, const struct err *err)
{
	struct ingest_pending *w = arg;
	if (w->version == RW_2)
		ingest_written_headers(w->r, rc == OK ? &w->written : &(struct ingest_written){0});
	if (rc == ERR_NOSPACE)
		http_error(w->r, ERRID_DISK_FULL, "the log could not be written: %s", err ? err->msg : "disk full");
	else if (rc != OK)
		http_error(w->r, ERRID_STORAGE_FAILED, "the log failed: %s", err ? err->msg : errc_name(rc));
	else if (w->refusal.n > 0) {
		/* Series leave with their windows: it is hours rather than seconds until there is room for new ones. */
		if (w->refusal_id == ERRID_TENANT_SERIES)
			http_set_header(w->r, "Retry-After", "60");
		http_answer(w->r, errid_status(w->refusal_id), NULL, w->refusal);
	} else
		http_answer(w->r, 204, NULL, (struct span){"", 0});
}

static void count(struct ingest *in, const struct head_batch *b, const struct rw_request *rw, uint32_t n_logged, struct ingest_written *w)
{
	metric_add(in->stored, b->stored + b->hist_stored);
	metric_add(in->duplicate, b->duplicate + b->hist_duplicate);
	metric_add(in->refused, ingest_refused(b) + rw->n_hists - b->n_hists);
	metric_add(in->zeros, n_logged - b->stored - b->hist_stored);
	w->samples = b->stored + b->duplicate;
	w->histograms = b->hist_stored + b->hist_duplicate;
}

static errc reserve(struct ingest *in, size_t bytes, struct wal_ticket *ticket, struct err *err)
{
	errc rc = wal_reserve(in->cfg.wal, bytes, ticket, err);
	if (rc != OK)
		err->id = errid_text(rc == ERR_NOSPACE ? ERRID_DISK_FULL
				     : rc == ERR_IO    ? ERRID_STORAGE_FAILED
				     : rc == ERR_LIMIT ? ERRID_TOO_MANY_SAMPLES
						       : ERRID_OVERLOADED);
	return rc;
}

/* Reserve, verdict, log. On OK the answer is the log's to give and r is no longer ours. */
static errc store(struct ingest *in, struct http_request *r, enum rw_version version, struct rw_request *rw, const struct admission *a,
	struct head_batch *b, struct err *err)
{
	errc rc = OK;
	struct ingest_pending *w = arena_calloc(http_arena(r), 1, sizeof *w);
	if (!w)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory");
	struct ingest_verdicts verdicts;
	struct ingest_annotations notes;
	rc = ingest_judge(rw, version, http_arena(r), &verdicts, err);
	if (rc == OK)
		rc = ingest_hists(rw, &verdicts, b, http_arena(r), err);
	if (rc == OK)
		rc = ingest_annotations_of(rw, b, http_arena(r), &notes, err);
	if (rc != OK)
		return rc;
	size_t bound = head_batch_bound(in->cfg.head, b) + head_annotations_bound(in->cfg.head, &notes.a);
	struct wal_ticket ticket;
	rc = reserve(in, bound, &ticket, err);
	if (rc != OK)
		return rc;
	struct buf records = buffer_take(in, bound);
	uint32_t n_logged = 0;
	rc = head_append(in->cfg.head, &ticket, b, &records, &n_logged, err);
	if (rc == OK)
		rc = ingest_annotate(in, &ticket, b, &notes, &records, err);
	if (rc != OK) {
		/* Out of memory half-way: what the head took must reach the log all the same; the client tries again and meets duplicates. */
		wal_commit(in->cfg.wal, &ticket, span_of(records.p, records.n), n_logged, NULL, NULL);
		if (!err->id)
			err->id = errid_text(ERRID_OVERLOADED);
		goto fail;
	}
	w->r = r;
	w->version = version;
	count(in, b, rw, n_logged, &w->written);
	w->written.exemplars = ingest_exemplars_written(&notes);
	w->refusal = ingest_refusal(in, b, rw, version, &verdicts, &a->limits, http_arena(r), &w->refusal_id);
	if (w->refusal.n == 0 && version == RW_2)
		w->refusal = ingest_exemplar_refusal(&notes, http_arena(r), &w->refusal_id);
	if (w->refusal.n > 0) {
		metric_add(in->requests_partial, 1);
		if (w->refusal_id == ERRID_TENANT_SERIES)
			ingest_limits_refused_series(in->limits);
		log_debug("samples refused", LSTR("client", http_client(r)), LSPAN("tenant", b->tenant), LSPAN("answer", w->refusal));
	}
	if (b->leans || notes.a.leans) {
		/* A duplicate's original may wait under a younger ticket than ours: only one drawn now is behind all that the verdict saw. */
		wal_commit(in->cfg.wal, &ticket, span_of(records.p, records.n), n_logged, NULL, NULL);
		rc = reserve(in, 0, &ticket, err);
		if (rc != OK)
			goto fail;
		records.n = 0;
		n_logged = 0;
	}
	http_defer(r);
	wal_commit(in->cfg.wal, &ticket, span_of(records.p, records.n), n_logged, durable, w);
fail:
	buffer_give(in, records);
	return rc;
}

void ingest_write(void *arg, struct http_request *r)
{
	struct ingest *in = arg;
	struct err err = {0};
	errc rc = OK;
	struct span tenant;
	struct rw_request rw = {0};
	struct head_batch b;
	struct admission a = {.retry_s = 0};
	enum rw_version version;
	rc = rw_negotiate(http_header(r, "Content-Type"), http_header(r, "Content-Encoding"), &version, &err);
	if (!gate_open(in, r, version))
		return;
	metric_add(in->requests[version], 1);
	TRY(rc);
	TRY(http_tenant(r, &tenant, &err));
	ingest_admit(in->limits, tenant, &a);
	TRY(decode(in, r, version, &a, &rw, &err));
	TRY(batch_of(in, r, &rw, &a, &b, &err));
	TRY(store(in, r, version, &rw, &a, &b, &err));
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
	ASSERT(cfg->head && cfg->wal && cfg->max_body_bytes > 0);
	struct ingest *in = calloc(1, sizeof *in);
	if (!in)
		return err_set(err, ERR_NOMEM, "no memory for the write endpoints");
	in->cfg = *cfg;
	errc rc = ingest_limits_open(cfg->limits_file, &in->limits, err);
	if (rc != OK) {
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
	ingest_limits_close(in->limits);
	free(in);
}
