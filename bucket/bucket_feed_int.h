/* bucket/bucket_feed_int.h - what the files of the feed share: a change as bytes, and the rows behind it. */
#pragma once
#include "base/limits.h"
#include "bucket/bucket_catalog_int.h"
#include "bucket/feed.h"

/* ---- bytes (bucket_feed_wire.c) ---- */

/* What one catalog says of one block. */
struct feed_record {
	uint64_t seq;	  /* in its feed; 0 in a snapshot */
	uint64_t version; /* from 1 */
	struct ulid ulid;
	enum block_state state; /* LIVE, QUARANTINED, SUPERSEDED, DELETING; GONE: nothing follows */
	bool marked;
	struct span reason, objects, meta; /* meta: empty when it could not be read */
	uint64_t bytes, meta_size;
	int64_t meta_mtime;
};
/* The greater one wins: (version, rank, checksum of meta.json). */
uint32_t feed_rank(enum block_state state, bool marked);

struct feed_answer {
	bool gap;
	struct ulid feed;
	uint64_t oldest, last; /* changes that are kept; 0: none */
	uint64_t after;	       /* the changes follow this one */
	uint32_t n;
	struct span node, changes; /* borrowed from the answer's bytes */
};

/* A header to be filled in when its changes stand behind it; `a->n` and `changes` do not count before that. */
void feed_answer_begin(const struct feed_answer *a, struct buf *out);
void feed_answer_end(struct buf *out, size_t begin, uint32_t n);
CHECKED errc feed_answer_decode(struct span bytes, struct feed_answer *out, struct err *err);

void feed_record_encode(const struct feed_record *r, struct buf *out);
/* The next one of a run; ERR_CORRUPT ends it. */
CHECKED errc feed_record_decode(struct span *run, struct feed_record *out, struct err *err);

/* ---- rows (bucket_catalog_feed.c) ---- */

/* What this catalog says of a block; the texts live until the connection's next call for one. */
CHECKED errc feed_record_of(struct catalog *c, struct catalog_conn *conn, struct ulid u, struct feed_record *out, struct err *err);
/* Inside a transaction: takes it, when it is news. */
CHECKED errc feed_record_take(
	struct catalog *c, struct catalog_conn *conn, const struct feed_record *r, struct arena *arena, bool *news, struct err *err);
/* Inside a transaction: this is how far `node` was read. */
CHECKED errc feed_position_set(struct catalog_conn *conn, struct span node, struct feed_position at, struct err *err);
/* What a live block adds to the digest. */
uint64_t feed_digest_of(struct ulid u, bool marked, uint32_t meta_crc);
CHECKED errc feed_digest_read(struct catalog_conn *conn, uint64_t *digest, uint64_t *live, struct err *err);
/* Over the digest and all positions, this node's own among them. Inside a transaction. */
CHECKED errc feed_state_read(struct catalog *c, struct catalog_conn *conn, struct span node, uint64_t *out, struct err *err);

/* ---- three threads (bucket_feed.c, bucket_feed_serve.c, bucket_feed_follow.c) ---- */

/* A question that waits for a change. */
struct feed_held {
	struct feed_held *next;
	struct feed_question q; /* spans: in `text` */
	char text[2 * FEED_NODE_BYTES];
	int64_t until_ns;
	bool looked; /* there was nothing when it came */
	void (*answer)(void *arg, int status, struct span body, const struct err *why);
	void *arg;
};

/* Who asks this node, and how far it is. */
struct feed_asker {
	char node[FEED_NODE_BYTES];
	uint64_t seq;
	int64_t at_ms; /* monotonic */
};

/* One question to a peer; first on its way, then among the answers that wait to be applied. */
struct feed_poll {
	struct feed *feed;
	struct feed_poll *next;
	size_t peer; /* its slot */
	uint64_t peer_id;
	errc rc;
	int status;
	char *bytes;
	size_t n;
	struct err err;
};

struct feed {
	struct feed_config cfg; /* constant, as all to `mu` */
	char node[FEED_NODE_BYTES];
	int64_t wait_ms;
	pthread_t serve_thread, follow_thread, snapshot_thread;
	bool serving, following, minding; /* threads that were started */
	struct metric *m_held, *m_peers, *m_silent, *m_applied, *m_gaps, *m_failures, *m_written, *m_write_failures, *m_bytes, *m_taken;

	pthread_mutex_t mu;
	pthread_cond_t serve, follow, snapshot, idle; /* CLOCK_MONOTONIC */
	bool stop, released;			      /* guarded by mu, as all below */
	bool changed;				      /* for the serving thread: the feed has more */
	struct feed_held *held;
	size_t n_held;
	struct feed_asker *askers;
	size_t n_askers, cap_askers;
	struct feed_poll *arrived; /* newest first */
	size_t arrived_bytes;
	uint32_t in_flight;
	uint64_t wanted, minded; /* looks at the bucket's snapshots: asked for, done */
	uint64_t taken;		 /* generation of the last snapshot that was taken */
};

void *feed_serve_main(void *feed);
void *feed_follow_main(void *feed);
void *feed_snapshot_main(void *feed);
/* Sleeps on a condition of f until mono_ns; f->mu is held. */
void feed_wait(struct feed *f, pthread_cond_t *c, int64_t until_ns);
