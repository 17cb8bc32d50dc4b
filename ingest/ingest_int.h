/* ingest/ingest_int.h - what the files of ingest/ share. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "base/metrics.h"
#include "ingest/ingest.h"
#include "proto/proto.h"

enum { INGEST_BUFFERS_KEPT = 64, INGEST_GATE_BYTES = 256 };

struct ingest {
	struct ingest_config cfg; /* constant after open */

	atomic_int gate_id; /* enum errid; the text is guarded by gate_mu */
	pthread_mutex_t gate_mu;
	char gate_text[INGEST_GATE_BYTES];

	/* Record buffers between requests: their size settles at what senders send, so the hot path allocates nothing. */
	pthread_mutex_t buffers_mu;
	struct buf buffers[INGEST_BUFFERS_KEPT];
	size_t n_buffers;

	struct metric *stored, *duplicate, *refused, *requests_partial, *exemplars[EXEMPLAR_RESULTS], *metadata_new, *metadata_known,
		*metadata_refused;
};

/* A write between its verdict and its answer; lives in the request's arena. */
struct ingest_pending {
	struct http_request *r;
	struct span refusal; /* the 400's body, composed before the log is waited for; empty: everything was stored */
	enum errid refusal_id;
};

/* Composes the answer of a partly or wholly refused request: counts per reason, the first offending series, the limit that it met
 * and the flag that changes it. Into the arena; *id is the first reason. Empty when nothing was refused. */
struct span ingest_refusal(const struct ingest *in, const struct head_batch *b, const struct rw_request *rw, struct arena *arena, enum errid *id);

/* ---- exemplars and metadata (ingest_annotations.c) ---- */

struct ingest_annotations {
	struct head_annotations a;
	struct head_exemplars *v; /* of a */
	uint32_t *of;		  /* which series of the request each of them is */
};
void ingest_annotations_open(struct ingest *in);
/* From the decoded request; arrays from the arena. */
CHECKED errc ingest_annotations_of(
	const struct rw_request *rw, const struct head_batch *b, struct arena *arena, struct ingest_annotations *x, struct err *err);
/* Behind head_append of the same batch and ticket; `records` are committed in any case. */
CHECKED errc ingest_annotate(struct ingest *in, const struct wal_ticket *ticket, const struct head_batch *b, struct ingest_annotations *x,
	struct buf *records, struct err *err);
/* For X-Prometheus-Remote-Write-Exemplars-Written: those that are there now. */
uint64_t ingest_exemplars_written(const struct ingest_annotations *x);
