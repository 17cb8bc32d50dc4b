/* query/query.h - reading series from head, local and bucket blocks as one: remote read, series, labels, label values; exemplars and metadata. Of this node, and of the fleet.
 *
 *      head windows ∪ local blocks ∪ bucket blocks chosen by one SQL statement ─▶ k-way merge by labels ─▶ merge by time ─▶ answer stream
 *
 * Sources are asked in the direction in which data moves (head, local, bucket) and named by ULID, so a window that is being cut, shipped or
 * removed meanwhile is read exactly once. Bucket blocks are read by ranged GETs with a bounded on-disk cache of index parts; memory is bounded by the
 * answer stream. External labels are part of each series and win over its own, as in Thanos; all matcher kinds and label listings see them.
 *
 * Of many nodes each asks all others what they have that the bucket may not have yet (struct query_fleet), and reads the bucket itself. A label that replicas differ in is taken
 * away before streams are merged, so that a sample that three nodes hold is given once.
 *
 * A damaged block is quarantined with its reason and the query is tried again without it; the answer then carries a warning.
 *
 * Threads: handlers run on HTTP workers.
 */
#pragma once
#include "bucket/catalog.h"
#include "cluster/roster.h"
#include "head/head.h"
#include "net/net.h"

struct query;

/* The other nodes. What belongs to the roster, the links and the trust comes as their functions: tests have fleets of their own. Any thread calls them. */
struct query_fleet {
	struct roster *roster;
	errc (*nodes)(struct roster *r, struct arena *arena, struct roster_node **out, size_t *n, struct err *err); /* roster_nodes */
	struct link *link;
	char *(*url)(const struct link *l, struct span address); /* link_url */
	struct trust *trust;
	void (*sign)(struct trust *t, const struct trust_words *w, char out[TRUST_HEADER_BYTES]); /* trust_sign */
	errc (*check)(struct trust *t, const struct http_request *r, struct err *err);		  /* link_check */
	/* Does this node have all that it stored: is its log replayed? NULL: it stores nothing. */
	bool (*whole)(void *arg);
	void *whole_arg;
	struct http_client_config client; /* as link_config has it */
	int64_t peer_timeout_ms;	  /* --query.peer-timeout */
	int64_t remember_ms;		  /* --ring.remember */
	uint32_t quorum;		  /* --replication.quorum; 0: floor(factor / 2) + 1 */
};

struct query_config {
	struct head *head; /* NULL: none */
	struct catalog *catalog;
	struct bucket *bucket;
	const char *block_dir; /* local blocks */
	const char *cache_dir;
	uint64_t cache_bytes;	  /* --cache.dir-size */
	struct labels ext_labels; /* this process' --label pairs, for head windows; tenant_id is added. Copied. */
	uint64_t max_samples;	  /* --query.max-samples */
	uint64_t max_memory_bytes;
	int64_t timeout_ms;		   /* --query.timeout */
	const char *const *replica_labels; /* --query.replica-label; copied */
	size_t n_replica_labels;
	const struct query_fleet *fleet; /* NULL: alone. Copied; what it points to is borrowed */
	int64_t handover_ms; /* how long this node still answers for a block that it put into the bucket: until every other one knows of it. Its directory must stay as long */
};
CHECKED errc query_open(const struct query_config *cfg, struct query **out, struct err *err);
void query_close(struct query *q);

/* Handlers; arg is the query. */
void query_remote_read(void *q, struct http_request *r);
void query_series(void *q, struct http_request *r);
void query_labels(void *q, struct http_request *r);
void query_label_values(void *q, struct http_request *r); /* /api/v1/label/'*'/values */
void query_exemplars(void *q, struct http_request *r);
void query_metadata(void *q, struct http_request *r);
void query_status_tsdb(void *q, struct http_request *r); /* what the tenant's series in the head are made of */

/* POST /-/peer/read: what this node has, for a peer (docs/format/peer.md). A route with HTTP_WORKER, HTTP_PEER and HTTP_NO_AUTH: it asks link_check itself. */
void query_peer_read(void *q, struct http_request *r);
/* These rings are in force from now on; before anybody writes by them (ring_file_config.on_change). */
void query_rings(struct query *q, struct ring_set *now);
/* For stopping, before the HTTP server is: questions to peers end at once. */
void query_cancel(struct query *q);

/* A local block, live in the bucket, is about to be removed: new questions read the bucket's copy. false: somebody still reads the directory; ask
 * again later. query_removed: it is gone, or stays after all. Any thread. */
bool query_forget(struct query *q, struct ulid block);
void query_removed(struct query *q, struct ulid block);
