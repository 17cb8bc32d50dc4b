/* cluster/cluster_write_int.h - what the files of a spread write share: the peers, the op, and the counting. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/metrics.h"
#include "cluster/cluster.h"

/* ---- peers (cluster_peer.c) ---- */

enum peer_result { PEER_ANSWERED, PEER_FAILED, PEER_TIMEOUT, PEER_OPEN, PEER_BUSY, PEER_RESULTS };

struct cluster_peer {
	struct cluster_peer *next; /* in its row of the table */
	_Atomic uint32_t refs;	   /* 0 only under the table's lock */
	struct cluster_peers *table;
	uint64_t hash;
	struct span address;
	_Atomic uint64_t inflight_bytes, epoch;

	pthread_mutex_t mu; /* guards the breaker: */
	uint32_t failures;  /* in a row */
	bool open, probing; /* probing: one request is on its way to see */
	int64_t backoff_ms, until_ns;

	struct metric *results[PEER_RESULTS], *inflight_gauge, *open_gauge;
};

enum { PEER_ROWS = 1024 };
struct cluster_peers {
	uint64_t max_bytes;
	pthread_mutex_t mu; /* guards rows */
	struct cluster_peer *rows[PEER_ROWS];
	struct metric *seconds;
};
void cluster_peers_init(struct cluster_peers *t, uint64_t max_bytes);
void cluster_peers_free(struct cluster_peers *t); /* nobody counts on one any more */

/* Counted; NULL: no memory. */
struct cluster_peer *cluster_peer_get(struct cluster_peers *t, struct span address);
void cluster_peer_put(struct cluster_peer *p); /* NULL is fine */

/* May a request go now? false: OPEN, counted. After true, cluster_peer_enter or cluster_peer_leave. */
bool cluster_peer_may(struct cluster_peer *p);
/* Room for its bytes; false: BUSY, counted, and it is over. */
bool cluster_peer_enter(struct cluster_peer *p, uint64_t bytes);
/* It is not sent after all: before an enter, and after one. */
void cluster_peer_leave(struct cluster_peer *p);
void cluster_peer_back(struct cluster_peer *p, uint64_t bytes);
/* It is over; after an enter. result: ANSWERED, FAILED, TIMEOUT. */
void cluster_peer_end(struct cluster_peer *p, uint64_t bytes, enum peer_result result, int64_t took_ns);

/* The peers of a set of rings, by node; made when they are first needed. */
struct cluster_routes {
	_Atomic uint32_t refs;
	struct ring_set *set;
	_Atomic(struct cluster_peer *) peers[]; /* ring_set_n_nodes */
};
struct cluster_routes *cluster_routes_make(struct ring_set *set);					    /* NULL: no memory */
void cluster_routes_put(struct cluster_routes *r);							    /* NULL is fine */
struct cluster_peer *cluster_routes_peer(struct cluster_routes *r, struct cluster_peers *t, uint32_t node); /* borrowed from r; NULL: no memory */

/* ---- frames ---- */

struct cluster_frame {
	_Atomic uint32_t refs;
	struct buf b;
};

/* ---- a write (cluster_write.c) ---- */

struct cluster_share {
	struct cluster_op *op;
	uint32_t node;
	struct cluster_peer *peer; /* NULL: this node's own. Borrowed from the op's routes */
	const uint32_t *items;
	uint32_t n;
	struct cluster_frame *frame; /* kept until it is known that the peer missed nothing */
	bool entered;		     /* the peer may have it, and its bytes are counted */
	uint64_t bytes;
	int64_t sent_ns;
	struct cluster_share *next_told; /* the teller's list */

	/* guarded by the op's mu */
	bool over;	    /* its verdicts are in */
	bool missed;	    /* something of it is to be told to on_missed when the write is decided */
	enum errid why;	    /* nothing of it was stored, as far as is known; NONE: */
	struct arena arena; /* of the verdicts */
	struct peer_verdict *verdicts;
	uint32_t n_verdicts;
};

/* What is known of an item: how many of its nodes said what. */
struct cluster_count {
	uint8_t stored, refused, again;
	uint8_t nodes : 5, state : 3;
};

struct cluster_op {
	struct cluster *c;
	_Atomic uint32_t refs;
	struct cluster_routes *routes;
	struct cluster_op *next, *prev; /* guarded by c->mu: in the order of deadlines */
	bool timed;			/* in it */
	int64_t deadline_ns;
	uint8_t id[PEER_ID_BYTES];
	void (*done)(void *arg, const struct cluster_outcome *o);
	void *arg;
	uint32_t n_items, n_shares, quorum;
	struct cluster_share *shares;
	struct cluster_share *mine; /* NULL: it owes nothing */
	uint32_t *items;	    /* of all shares */

	pthread_mutex_t mu; /* guards what follows, and the shares' outcome */
	struct cluster_count *counts;
	uint32_t undecided;
	bool going, expired;
	bool finished; /* counts do not change any more */
};

struct cluster_buffers {
	pthread_mutex_t mu;
	struct buf v[16];
	size_t n;
};

struct cluster_teller {
	pthread_mutex_t mu; /* guards: */
	pthread_cond_t some;
	struct cluster_share *first, **last;
	uint64_t bytes; /* of their frames */
	bool stop;
	bool runs; /* constant after open */
	pthread_t thread;
};

struct cluster {
	struct cluster_config cfg;
	struct cluster_peers peers;
	struct cluster_buffers buffers;
	struct cluster_teller teller;

	pthread_mutex_t routes_mu;
	struct cluster_routes *routes; /* of the rings that were used last */

	pthread_mutex_t mu; /* guards: */
	struct cluster_op *first, *last;
	uint64_t n_ops;
	pthread_cond_t idle; /* n_ops is 0 */
	pthread_cond_t wake; /* CLOCK_MONOTONIC: an earlier deadline, or the end */
	int64_t wakes_ns;    /* when the timer looks again by itself */
	bool stop;
	pthread_t timer;
	bool has_timer;

	struct metric *hops, *open_writes, *series[CLUSTER_AGAIN + 1];
};

/* Ends what is due; what the timer does. */
void cluster_expire(struct cluster *c, int64_t now_ns);

/* ---- counting (cluster_quorum.c) ---- */

static inline uint32_t cluster_need(const struct cluster_op *op, const struct cluster_count *k)
{
	return op->quorum < k->nodes ? op->quorum : k->nodes;
}
/* The verdicts of a share that is over, into the counts. The op's mu is held. */
void cluster_count_share_locked(struct cluster_op *op, const struct cluster_share *s);
/* What is undecided is to be tried again. */
void cluster_count_expire_locked(struct cluster_op *op);
/* Of a write that is decided; *items is freed by the caller. */
void cluster_outcome_of_locked(const struct cluster_op *op, struct cluster_outcome *o, struct cluster_item **items);

/* ---- what a peer missed (cluster_missed.c) ---- */

/* Of a share that is over, of a write that is finished; no lock is held. By the teller, when there is one and it keeps up. */
void cluster_tell_missed(struct cluster_share *s);
void cluster_teller_init(struct cluster_teller *t);
CHECKED errc cluster_teller_start(struct cluster_teller *t, struct err *err);
void cluster_teller_free(struct cluster_teller *t); /* after all is told */

/* cluster_write.c: one less counts on it. */
void cluster_op_put(struct cluster_op *op);
/* Buffers between writes (cluster_write.c). An empty one is fine. */
struct buf cluster_buffer_take(struct cluster *c);
void cluster_buffer_give(struct cluster *c, struct buf *b);
