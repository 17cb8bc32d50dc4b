/* ingest/ingest.h - the write endpoints: decode, tenant, validate, limit, log, append, answer.
 *
 *      POST body ─▶ headers judged ─▶ tenant's limits ─▶ budget ─▶ snappy ─▶ rw1_decode, rw2_decode ─▶ tenant's limits ─▶ wal_reserve ...
 *                   415, 400          429                503       400, 413   400, 413                  429                 503
 *      ... ─▶ head_append ─▶ wal_commit ╌╌▶ answer
 *             verdicts                      204 | 400 | 429 | 503
 *
 * 2xx means durable (the log's sync mode). The valid rest of a partly bad request is stored and the answer is 400 with counts per reason and the
 * first offending series; sending the same body again gives the same answer and no duplicates. 429 is a limit of the tenant's: of a request that is too
 * large or too much for its rate nothing is stored; above head_series_limit known series are stored and new ones are not.
 *
 * Where there are rings a request's series are spread over their nodes (cluster/cluster.h), this one among them or not; 2xx then means that a quorum of each series' nodes has it
 * durable. What peers send comes by a door of its own, is stored here and never sent on.
 *
 * Threads: the handlers run on network threads; answers come from the log's syncer thread, or from whichever thread hears the deciding peer.
 */
#pragma once
#include "cluster/cluster.h"
#include "cluster/ring_file.h"
#include "cluster/trust.h"
#include "head/head.h"
#include "net/net.h"
#include "wal/wal.h"

struct ingest;
struct ingest_config {
	struct head *head; /* head and wal both NULL: a router, which stores nothing */
	struct wal *wal;
	/* Where there are rings; all borrowed. NULL: this node is alone, and stores what it is sent. */
	struct cluster *cluster;
	struct ring_file *rings;
	struct trust *trust;		 /* for ingest_peer_write */
	struct span self;		 /* this node's address in the rings; empty: it is in none */
	int64_t peer_timeout_ms;	 /* --peer.timeout: a client is answered by then */
	uint64_t max_body_bytes;	 /* --ingest.max-body */
	uint64_t max_inflight_bytes;	 /* --ingest.max-inflight: what is above it alone is refused for good, not until later */
	uint32_t max_series_per_request; /* --ingest.max-series-per-request */
	uint32_t max_samples_per_request;
	int64_t oldest_ms, future_ms; /* --ingest.oldest, --ingest.future; oldest 0 = no bound */
	bool created_zero;	      /* --ingest.created-timestamp-zero */
	struct labels_limits labels;  /* for messages */
	const char *limits_file;      /* --limits.file, NULL = none; borrowed. A bad one: ERR_INVALID */
	/* Hints of what clients sent up to this time are not stored: the tenant was deleted since. INT64_MIN: it was not. NULL: nobody ever is */
	int64_t (*gone_upto)(void *arg, struct span tenant);
	void *gone_arg;
	const char *split_label;  /* --tenant.split-label: whose series they are; NULL: the request's tenant's. Borrowed */
	int64_t ring_remember_ms; /* how long after a ring change a node may still hold what it took before: --ring.remember */
};
CHECKED errc ingest_open(const struct ingest_config *cfg, struct ingest **out, struct err *err);
/* The handler of /api/v1/receive, /api/v1/write and /api/v1/push. arg is the ingest. */
void ingest_write(void *ingest, struct http_request *r);
/* The handler of PEER_WRITE_PATH: what a peer owes this node. arg is the ingest, which has a head. */
void ingest_peer_write(void *ingest, struct http_request *r);

/* While not ready, or refusing for a reason (replay, disk below the reserve, shutdown), writes get 503 with this id and message at once.
 * ERRID_NONE: open. Any thread. */
void ingest_gate(struct ingest *in, enum errid id, const char *message);

/* Reads --limits.file again; a bad one is refused and logged, the limits stay as they are. Any thread. */
CHECKED errc ingest_reload(struct ingest *in, struct err *err);
/* Twice a second or so, from one thread: reads it when it has changed, also when it is reached over links that lead elsewhere now. */
void ingest_tick(struct ingest *in);
/* Handler: all tenants with what they hold, send and may; ?sort=series|memory|samples|new-series &limit=100. arg is the ingest. */
void ingest_tenants(void *ingest, struct http_request *r);

/* ---- limits of a fleet (ingest_fleet.c) ---- */

#define INGEST_RATES_PATH "/-/peer/rates"
/* The rings in force have changed; NULL: there are none, and the numbers of the limits file are this node's alone. self: its number in them, UINT32_MAX: it stores nothing. ERR_NOMEM: what was
 * known stays. Any thread; not for every request. */
CHECKED errc ingest_fleet_rings(struct ingest *in, struct ring_set *now, uint32_t self, struct err *err);
/* Once a second, from one thread: what is to be POSTed to INGEST_RATES_PATH of the first LIMIT_RATES_BOARDS nodes of the rings, this one included; nothing when `out` stays empty. */
CHECKED errc ingest_rates_say(struct ingest *in, struct buf *out, struct err *err);
/* What a node that is told it answers; for this one, when it is one of them. */
CHECKED errc ingest_rates_board(struct ingest *in, struct span said, struct buf *out, struct err *err);
/* An answer to that: before the next ingest_rates_say. Any thread. */
void ingest_rates_heard(struct ingest *in, struct span answer);
/* Handler of INGEST_RATES_PATH (WORKER, LIMIT_RATES_BYTES), for peers that were checked. arg is the ingest. */
void ingest_rates_hear(void *ingest, struct http_request *r);

void ingest_close(struct ingest *in);
