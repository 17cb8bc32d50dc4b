/* query/query.h - reading series from head, local and bucket blocks as one: remote read, series, labels, label values; exemplars and metadata.
 *
 *      head windows ∪ local blocks ∪ bucket blocks chosen by one SQL statement ─▶ k-way merge by labels ─▶ merge by time ─▶ answer stream
 *
 * Sources are asked in the direction in which data moves (head, local, bucket) and named by ULID, so a window that is being cut, shipped or
 * removed meanwhile is read exactly once. Bucket blocks are read by ranged GETs with a bounded on-disk cache of index parts; memory is bounded by the
 * answer stream. External labels are part of each series and win over its own, as in Thanos; all matcher kinds and label listings see them.
 *
 * A damaged block is quarantined with its reason and the query is tried again without it; the answer then carries a warning.
 *
 * Threads: handlers run on HTTP workers.
 */
#pragma once
#include "bucket/catalog.h"
#include "head/head.h"
#include "net/net.h"

struct query;
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
	int64_t timeout_ms; /* --query.timeout */
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

/* A local block, live in the bucket, is about to be removed: new questions read the bucket's copy. false: somebody still reads the directory; ask
 * again later. query_removed: it is gone, or stays after all. Any thread. */
bool query_forget(struct query *q, struct ulid block);
void query_removed(struct query *q, struct ulid block);
