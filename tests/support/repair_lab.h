/* tests/support/repair_lab.h - a fleet in one process, on one simulated disk: each node with its log, head, ingest and repair; what they say to each other goes from function to function.
 *
 * A dictionary knows what was written to whom; what each owner must hold when all is repaired is the winner of all that was written to any owner. Calls assert (cmocka) as they go.
 */
#pragma once
#include "ingest/ingest_int.h"
#include "ingest/ingest_repair_int.h"
#include "tests/support/hist_make.h"
#include "tests/support/sim.h"

enum { RLAB_NODES = 7, RLAB_TENANTS = 2, RLAB_SERIES = 60 };

struct rlab;
struct rlab_node {
	struct rlab *lab;
	char address[24], dir[16];
	struct wal *wal;
	struct head *head;
	struct ingest *ingest;
	struct repair *repair;
	bool up;
	uint64_t started;
	uint32_t asks_left; /* so many questions, then it is stopped at the next one; UINT32_MAX: never */
	uint64_t asked;
	struct repair_owed owes; /* what it says that it owes, whoever asks */
	int64_t repaired_ms;	 /* what it was told by POST /-/peer/owed */
};
struct rlab_sample {
	int64_t t;
	bool is_hist;
	uint64_t v;
	struct span packed;
	uint32_t owners; /* bit by node: it was written there */
};
struct rlab_series {
	struct rlab_sample *v;
	size_t n, cap;
};
struct rlab {
	struct sim *sim;
	uint64_t seed;
	uint32_t n;
	int64_t range;
	struct ring_set *set;
	struct rlab_node v[RLAB_NODES];
	struct rlab_series series[RLAB_TENANTS][RLAB_SERIES];
	struct arena arena; /* histograms of the dictionary */
	struct hist_maker maker[RLAB_SERIES];
	uint32_t garbage; /* one answer in so many has a bit turned over; 0: none */
	bool cut;	  /* every node says that it has cut every window */
	uint64_t random;
};

/* n nodes, all up; the ring is of the first in_ring of them, and comes into force at now_ms. */
void rlab_open(struct rlab *l, uint64_t seed, uint32_t n, uint32_t in_ring, uint32_t factor, int64_t range_ms, int64_t now_ms);
void rlab_free(struct rlab *l);
void rlab_ring(struct rlab *l, uint32_t in_ring, uint32_t factor); /* another ring */
void rlab_start(struct rlab *l, uint32_t i);
void rlab_stop(struct rlab *l, uint32_t i);
void rlab_wipe(struct rlab *l, uint32_t i); /* its disk is lost; it was stopped */

const char *rlab_tenant(uint32_t tenant);
/* Who holds series k, as bits. */
uint32_t rlab_owners(struct rlab *l, uint32_t tenant, uint32_t k);
/* A request of one tenant being put together, for any node. */
struct rlab_request {
	uint32_t tenant, n_series, n_metadata;
	struct buf body;
	struct arena arena;
};
void rlab_begin(struct rlab_request *q, uint32_t tenant);
void rlab_float(struct rlab_request *q, uint32_t k, int64_t t, uint64_t v);
void rlab_hist(struct rlab_request *q, uint32_t k, int64_t t, struct span packed);
void rlab_metadata(struct rlab_request *q, const char *family, enum metric_type type, const char *help);
/* As a client's (conflicts are refused) or as a hint. */
void rlab_send(struct rlab *l, uint32_t node, struct rlab_request *q, bool hint);
void rlab_end(struct rlab_request *q);

/* A random sample of a random series, in the dictionary as written to the owners of `to` (bits); series 0 to 9 have histograms, 10 to 14 both. */
struct rlab_sample rlab_random(struct rlab *l, uint32_t tenant, uint32_t k, int64_t t);
void rlab_note(struct rlab *l, uint32_t tenant, uint32_t k, const struct rlab_sample *s, uint32_t to);
void rlab_put(struct rlab_request *q, uint32_t k, const struct rlab_sample *s);

/* One step of a node, with everything that it waits for being over. */
bool rlab_step(struct rlab *l, uint32_t i);
/* All nodes that are up, until none wants anything. Every node is asked to compare with all at first. */
void rlab_repair(struct rlab *l);
/* Nothing is wanted by node i any more. */
bool rlab_settled(struct rlab *l, uint32_t i);

/* The digest of window `start` that node i shares with node k; added up. */
struct digest_bucket rlab_digest(struct rlab *l, uint32_t i, uint32_t k, uint32_t tenant, int64_t start);
/* All nodes that are up agree, pair by pair, in windows from `from` to `to`, and hold what the dictionary says. */
void rlab_check(struct rlab *l, int64_t from, int64_t to);
