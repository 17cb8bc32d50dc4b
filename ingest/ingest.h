/* ingest/ingest.h - the write endpoints: decode, tenant, validate, limit, log, append, answer.
 *
 *      POST body ─▶ headers judged ─▶ budget ─▶ snappy ─▶ rw1_decode, rw2_decode ─▶ wal_reserve ─▶ head_append ─▶ wal_commit ╌╌▶ answer
 *                   415, 400          503       400, 413   400, 413                  503             verdicts                      204 | 400 | 503
 *
 * 2xx means durable (the log's sync mode). The valid rest of a partly bad request is stored and the answer is 400 with counts per reason and the
 * first offending series; sending the same body again gives the same answer and no duplicates.
 *
 * Threads: the handler runs on network threads; the answer comes from the log's syncer thread.
 */
#pragma once
#include "head/head.h"
#include "net/net.h"
#include "wal/wal.h"

struct ingest;
struct ingest_config {
	struct head *head;
	struct wal *wal;
	uint64_t max_body_bytes;	 /* --ingest.max-body */
	uint64_t max_inflight_bytes;	 /* --ingest.max-inflight: what is above it alone is refused for good, not until later */
	uint32_t max_series_per_request; /* --ingest.max-series-per-request */
	uint32_t max_samples_per_request;
	int64_t oldest_ms, future_ms; /* --ingest.oldest, --ingest.future; oldest 0 = no bound */
	bool created_zero;	      /* --ingest.created-timestamp-zero */
	struct labels_limits labels;  /* for messages */
};
CHECKED errc ingest_open(const struct ingest_config *cfg, struct ingest **out, struct err *err);
/* The handler of /api/v1/receive, /api/v1/write and /api/v1/push. arg is the ingest. */
void ingest_write(void *ingest, struct http_request *r);

/* While not ready, or refusing for a reason (replay, disk below the reserve, shutdown), writes get 503 with this id and message at once.
 * ERRID_NONE: open. Any thread. */
void ingest_gate(struct ingest *in, enum errid id, const char *message);
void ingest_close(struct ingest *in);
