/* ingest/ingest_int.h - what the files of ingest/ share. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "base/metrics.h"
#include "ingest/ingest.h"
#include "proto/proto.h"

enum { INGEST_BUFFERS_KEPT = 64, INGEST_GATE_BYTES = 256 };

/* ---- limits of tenants: the file (ingest_limits_file.c) ---- */

enum tenant_limit { TENANT_SIZE, TENANT_SERIES, TENANT_SAMPLES, TENANT_HEAD_SERIES, TENANT_RATE, TENANT_BURST, TENANT_LIMITS };

/* What holds for one tenant. */
struct tenant_limits {
	uint64_t v[TENANT_LIMITS]; /* 0: no limit */
	uint8_t own;		   /* bit k: v[k] is said under the tenant's name, not under `default` */
};

struct limits_tenant {
	struct span name;
	struct tenant_limits limits; /* what it does not say is the default's */
};

/* A file, read; never changed afterwards. */
struct limits {
	uint64_t max_concurrency;
	struct tenant_limits fallback;
	struct limits_tenant *tenants;
	size_t n_tenants;
	uint32_t *slots; /* index + 1, by name */
	uint32_t mask;
	struct span remarks; /* one a line: what the file says and varve does not do */
	struct arena arena;
};
/* ERR_INVALID says file, line and key. Whatever was accepted can be asked. */
CHECKED errc limits_parse(const char *name, struct span text, struct limits **out, struct err *err);
void limits_free(struct limits *l); /* NULL allowed */
const struct tenant_limits *limits_of(const struct limits *l, struct span tenant);
/* Where a person finds it: write.tenants.acme.request.series_limit, or write.default... */
const char *limits_key(const struct tenant_limits *l, enum tenant_limit k, struct span tenant, char *buf, size_t n);

/* ---- the limits in force (ingest_limits.c) ---- */

struct ingest_limits;
CHECKED errc ingest_limits_open(const char *file, struct ingest_limits **out, struct err *err); /* file NULL: none */
void ingest_limits_close(struct ingest_limits *il);						/* NULL allowed */
CHECKED errc ingest_limits_read(struct ingest_limits *il, struct err *err);			/* now, whether it has changed or not */
void ingest_limits_tick(struct ingest_limits *il);
/* A copy of what holds for the tenant now. Without locks. */
struct tenant_limits ingest_limits_now(struct ingest_limits *il, struct span tenant);
size_t ingest_limits_rates(struct ingest_limits *il); /* tenants with a bucket that is not full, or was not lately; for tests */
/* Requests of which series were refused for the head-series limit. */
void ingest_limits_refused_series(struct ingest_limits *il);

/* For ingest_fleet.c: each tenant with a bucket, and how many bytes a second came for it lately; fn must not block. `round`: not 0, another one each time. */
void ingest_limits_tell(
	struct ingest_limits *il, uint32_t round, double elapsed_s, void (*fn)(void *arg, struct span tenant, double bytes_per_s), void *arg);
/* All nodes together told `total` in this round: this node's share of the tenant's rate is what it told of that, and not below `least`. */
void ingest_limits_told(struct ingest_limits *il, uint32_t round, struct span tenant, double total, double least);

/* ---- the fleet's part in them (ingest_fleet.c) ---- */

struct ingest_fleet;
CHECKED errc ingest_fleet_open(struct ingest_fleet **out, struct err *err);
void ingest_fleet_close(struct ingest_fleet *f); /* NULL allowed */
/* head_series_limit as far as this node is concerned; 0: no limit. */
uint64_t ingest_head_max(struct ingest *in, struct span tenant, const struct tenant_limits *l);

/* One request's way past the limits. */
struct admission {
	struct ingest_limits *il;
	struct span tenant;
	struct tenant_limits limits; /* as they were when it began */
	uint64_t taken;		     /* samples, from the tenant's rate */
	int64_t retry_s;	     /* > 0 after a refusal: when it is worth trying again */
	bool entered, weighed;	     /* weighed: the body's bytes are counted already, for the fleet */
};
void ingest_admit(struct ingest_limits *il, struct span tenant, struct admission *out);
/* Before anything is decompressed: the body's size both ways, and a rate that is used up. ERR_LIMIT with id and words. On OK it is one of
 * write.global.max_concurrency from here on: it waits until there are fewer than that. */
CHECKED errc ingest_admit_sizes(struct admission *a, size_t body_bytes, size_t decoded_bytes, struct err *err);
/* When it is decoded; takes its samples from the rate. */
CHECKED errc ingest_admit_counts(struct admission *a, uint64_t n_series, uint64_t n_samples, struct err *err);
/* The work is done. Not stored: what it took is given back. */
void ingest_admit_end(struct admission *a, bool stored);

struct ingest {
	struct ingest_config cfg; /* constant after open */
	struct ingest_limits *limits;
	struct ingest_fleet *fleet;

	atomic_int gate_id; /* enum errid; the text is guarded by gate_mu */
	pthread_mutex_t gate_mu;
	char gate_text[INGEST_GATE_BYTES];

	/* Record buffers between requests: their size settles at what senders send, so the hot path allocates nothing. */
	pthread_mutex_t buffers_mu;
	struct buf buffers[INGEST_BUFFERS_KEPT];
	size_t n_buffers;

	struct metric *peer_requests[2]; /* by being a hint */
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
/* The valid ones become the batch's. */
CHECKED errc ingest_hists(const struct rw_request *rw, const struct ingest_verdicts *v, struct head_batch *b, struct arena *arena, struct err *err);
/* Why a series is refused for something that is no sample; *hist: its first histogram that is, when it is one. */
enum errid ingest_series_fault(const struct ingest_verdicts *v, const struct rw_request *rw, enum rw_version version, size_t i, size_t *hist);

/* A series' labels for messages; none when there is no memory for them, or they are none. */
struct labels ingest_labels_of(const struct rw_request *rw, const struct rw_series *s, struct arena *arena);
/* Appends why a series (NULL: a metadata field) of a spread write is refused, with the limit and the flag or key that changes it. */
struct ingest_part;
void ingest_explain(const struct ingest *in, const struct ingest_part *part, const struct rw_series *s, enum errid id, struct labels l,
	struct arena *arena, struct buf *out);
/* Samples and histograms of a batch that the head refused. */
uint64_t ingest_refused(const struct head_batch *b);
/* Composes the answer of a partly or wholly refused request: counts per reason, the first offending series, the limit that it met
 * and the flag or key that changes it. Into the arena; *id is the first reason, TENANT_SERIES before all others. Empty when nothing was refused. */
struct span ingest_refusal(const struct ingest *in, const struct head_batch *b, const struct rw_request *rw, enum rw_version version,
	const struct ingest_verdicts *v, const struct tenant_limits *limits, struct arena *arena, enum errid *id);

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

/* ---- a decoded request into log and head (ingest_store.c) ---- */

/* Judged once, where the client's request came in. */
struct ingest_bounds {
	int64_t min_t, max_t, now_ms;
	uint64_t max_series; /* of the tenant */
	bool winner;	     /* late, from a peer: a conflict is decided by the order-free winner (head_batch) */
};

/* Lives, with all that it points at, until done or an error of ingest_store. */
struct ingest_store {
	struct ingest *in;
	struct arena *arena;
	struct rw_request *rw;
	enum rw_version version;
	/* The verdicts are there and stand: what the answer says is made now. Before the log is waited for. */
	void (*judged)(struct ingest_store *st);
	/* Behind judged, mostly on the log's thread: all that the verdicts rely on is durable; or it is not, and nothing is known. */
	void (*done)(struct ingest_store *st, errc rc, const struct err *err);
	/* Stored under the same ticket of the log: judged comes for each, done once, with the first. NULL: no more. */
	struct ingest_store *next;
	/* out, for judged and later */
	enum errid fault; /* of one of several, and why: it is malformed, nothing of it was stored. NONE otherwise */
	const char *why;
	size_t bound; /* of its records */
	struct head_batch b;
	struct ingest_verdicts verdicts;
	struct ingest_annotations notes;
	struct ingest_written written;
};
/* Makes st->b from the request. */
CHECKED errc ingest_batch(struct ingest_store *st, struct span tenant, const struct ingest_bounds *bounds, struct err *err);
/* Reserve, verdict, log. On OK st is no longer the caller's. Else neither callback is called, and the error says why nothing, or not all, was stored. */
CHECKED errc ingest_store(struct ingest_store *st, struct err *err);

/* ---- parts of a request (ingest_many.c): what is of one tenant ---- */

struct ingest_part {
	struct span tenant;
	enum rw_version version;
	struct span body;		/* rw was decoded from it; of a peer's: not needed */
	const struct rw_slices *slices; /* what is sent on of it; NULL: as it stands in body */
	struct rw_request *rw;
	uint32_t n_items;    /* its series, and 1.0's metadata fields behind them */
	uint64_t max_series; /* of the tenant in the head, 0: no limit */
};

struct ingest_many;
struct ingest_stored_part {
	struct ingest_store store; /* first */
	struct ingest_many *of;
	uint32_t first, n_items; /* numbers of its items */
	bool failed;		 /* one verdict for all: */
	enum peer_verdict_kind failed_kind;
	enum errid failed_id;
	struct peer_verdict *verdicts;
	uint32_t n_verdicts;
};

/* Lives by itself, from new to free. */
struct ingest_many {
	struct ingest *in;
	void (*done)(struct ingest_many *m); /* all is durable, or has its verdict; mostly on the log's thread */
	void *arg;
	_Atomic uint32_t waiting; /* parts that are not durable, and whoever stores them */
	uint32_t n_parts;
	struct ingest_stored_part parts[];
};
struct ingest_many *ingest_many_new(struct ingest *in, uint32_t n_parts, void (*done)(struct ingest_many *m), void *arg); /* NULL: no memory */
void ingest_many_free(struct ingest_many *m);										  /* NULL is fine */
/* The i-th part, whose first item has the number `first`. Nothing of the part or the arena is needed afterwards; max_series of the bounds is the part's. */
void ingest_many_store(
	struct ingest_many *m, uint32_t i, const struct ingest_part *part, uint32_t first, const struct ingest_bounds *bounds, struct arena *arena);
/* Nothing of it is stored, for this reason. */
void ingest_many_refuse(struct ingest_many *m, uint32_t i, uint32_t first, uint32_t n_items, errc rc, const struct err *why);
/* All parts were given: done comes, at the earliest inside. */
void ingest_many_go(struct ingest_many *m);
/* For done: the verdicts of all that was not simply stored, by item when the parts' numbers ascend. */
uint32_t ingest_many_count(const struct ingest_many *m);
void ingest_many_verdicts(const struct ingest_many *m, struct peer_verdict *out);

/* ---- a write that is spread over nodes ---- */

/* What was refused of a request before it is stored, with its words; NONE: nothing was. */
struct ingest_before {
	enum errid id;
	struct span words;
	int64_t retry_s; /* 0: nothing to say */
};
/* One client's request; in its arena. */
struct routed {
	struct ingest *in;
	struct http_request *r;
	struct ingest_before before;
	const struct ingest_part *parts; /* of one version */
	uint32_t n_parts;
};
/* Takes the request when it is OK: its answer comes when its series' nodes have spoken. parts live in the request's arena. Else nothing was stored. */
CHECKED errc ingest_route(struct ingest *in, struct http_request *r, const struct ingest_part *parts, uint32_t n_parts,
	const struct ingest_bounds *bounds, const struct ingest_before *before, struct err *err);
void ingest_route_answer(struct routed *w, const struct cluster_outcome *o);
/* The hash of each item (ingest_place.c): n_items of them. ERR_INVALID (PROTOBUF, LABEL_UTF8), ERR_NOMEM. */
CHECKED errc ingest_places(const struct ingest_part *part, struct arena *arena, uint64_t *out, struct err *err);
/* Those of a part's items, whose first has the number `first`, as a part (ingest_share.c); arrays from the arena, all else borrowed from `part`. ERR_NOMEM. */
CHECKED errc ingest_share_of(const struct ingest_part *part, const uint32_t *items, uint32_t n, uint32_t first, struct arena *arena,
	struct ingest_part *out, struct err *err);
/* Of the rings in force; 0: none. */
uint64_t ingest_epoch(struct ingest *in);

/* ---- one request of several tenants (ingest_split.c) ---- */

struct ingest_split_part {
	struct span tenant;
	const uint32_t *series; /* their numbers in the request, ascending */
	uint32_t n_series;
	bool metadata; /* 1.0's metadata fields are with it: with the request's own tenant, and nobody else */
};
struct ingest_split {
	struct rw_request
		*rw; /* the client's. Series that had the label have lost it: wire and refs are new ones, refs number the client's symbols */
	const uint8_t *relabeled;	 /* of each series: 1, it had it. What is sent on is made by rw_slice_relabel */
	struct ingest_split_part *parts; /* by the first series of each */
	uint32_t n_parts;
	const uint32_t *refused; /* series whose label names no valid tenant, ascending; they are in no part */
	uint32_t n_refused;
	enum rw_version version;
	struct span label;
	/* of the part that was made last */
	struct arena *arena;
	uint32_t *symbol_met, *symbol_number, *metadata_met, round;
	struct span *symbols;
	size_t n_symbols, symbols_cap;
	bool failed;
};
/* By --tenant.split-label=`label`; `tenant` is the request's own. All in the arena. ERR_INVALID (PROTOBUF): labels that are none; ERR_LIMIT (TOO_MANY_SERIES): above LIMIT_PEER_SECTIONS
 * tenants; ERR_NOMEM (OVERLOADED). */
CHECKED errc ingest_split(struct rw_request *rw, enum rw_version version, struct span tenant, const char *label, struct arena *arena,
	struct ingest_split *out, struct err *err);
/* A part as a request of its own. rw_series.metadata still numbers the client's entries. */
CHECKED errc ingest_split_part(struct ingest_split *sp, uint32_t part, struct arena *arena, struct rw_request *out, struct err *err);
/* Directly behind ingest_split_part: the part's fields as they are sent on; `whole` are those of the client's message. rw gets the symbols that only exemplars and metadata name. */
CHECKED errc ingest_split_slices(
	struct ingest_split *sp, uint32_t part, const struct rw_slices *whole, struct rw_request *rw, struct rw_slices *out, struct err *err);
/* The words of a 400 for those of no valid tenant; empty: there are none. */
struct span ingest_split_refusal(const struct ingest_split *sp, struct arena *arena);
/* Stores the parts, here or on the nodes of their rings, and answers (ingest_split_write.c). `body` is what the request was decoded from. On OK r is no longer the caller's;
 * bounds->max_series is not used. */
CHECKED errc ingest_split_write(struct ingest *in, struct http_request *r, const struct ingest_split *split, struct span body,
	const struct ingest_bounds *bounds, struct err *err);

/* ---- a write of a client (ingest_write.c) ---- */

/* Answers what ingest_store's done says: the log could not be written, or has failed. */
void ingest_store_failed(struct http_request *r, errc rc, const struct err *err);

/* Between its verdict and its answer; lives in the request's arena. */
struct ingest_pending {
	struct ingest_store store; /* first */
	struct http_request *r;
	struct tenant_limits limits; /* as they were when it came */
	struct span refusal;	     /* the 400's body, composed before the log is waited for; empty: everything was stored */
	enum errid refusal_id;
};

/* ERRID_NONE: writes are taken. */
enum errid ingest_gate_id(struct ingest *in);
/* false: answered with what the gate says. */
bool ingest_gate_open(struct ingest *in, struct http_request *r, enum rw_version version);
