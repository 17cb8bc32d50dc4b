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
		*metadata_refused, *zeros, *requests[RW_2 + 1];
};

/* What a 2.0 answer says was written (ingest_rw2.c). */
struct ingest_written {
	uint64_t samples, histograms, exemplars;
};
void ingest_written_headers(struct http_request *r, const struct ingest_written *w);
/* Gives each series of the batch that says where it began a zero there. */
CHECKED errc ingest_zeros(const struct rw_request *rw, struct head_batch *b, struct arena *arena, struct err *err);

/* On what is no float sample (ingest_elements.c). */
struct ingest_verdicts {
	enum errid *hists; /* of each histogram; ERRID_NONE: it is to be stored. NULL: there is none */
	const char *why;   /* of the first invalid one; NULL: none is */
	size_t why_of;
	size_t n_empty; /* series of 2.0 with neither samples nor histograms nor exemplars */
};
/* Histograms of finer schemas than are stored are reduced in place. */
CHECKED errc ingest_judge(struct rw_request *rw, enum rw_version version, struct arena *arena, struct ingest_verdicts *v, struct err *err);
/* Why a series is refused for something that is no sample; *hist: its first histogram that is, when it is one. */
enum errid ingest_series_fault(const struct ingest_verdicts *v, const struct rw_request *rw, enum rw_version version, size_t i, size_t *hist);

/* A write between its verdict and its answer; lives in the request's arena. */
struct ingest_pending {
	struct http_request *r;
	enum rw_version version;
	struct ingest_written written;
	struct span refusal; /* the 400's body, composed before the log is waited for; empty: everything was stored */
	enum errid refusal_id;
};

/* Composes the answer of a partly or wholly refused request: counts per reason, the first offending series, the limit that it met
 * and the flag that changes it. Into the arena; *id is the first reason. Empty when nothing was refused. */
struct span ingest_refusal(const struct ingest *in, const struct head_batch *b, const struct rw_request *rw, enum rw_version version,
	const struct ingest_verdicts *v, struct arena *arena, enum errid *id);

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
/* 2.0 refuses what is out of order or of no series, where 1.0 only counts it: the words, and *id. Empty when nothing was. */
struct span ingest_exemplar_refusal(const struct ingest_annotations *x, struct arena *arena, enum errid *id);
