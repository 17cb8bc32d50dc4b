/* bucket/feed.h - one picture of the bucket on all nodes: what one sees change, the others know within two seconds, and nobody lists anything for it.
 *
 *     upload, audit, a damaged block ─▶ catalog: row, version, one more change of this node's feed        (one transaction)
 *                                                            │
 *     GET /-/peer/changes?after=N, held until there is one ◀─┘
 *         │ each other node asks each other node, all the time
 *         ▼
 *     their catalogs: rows, and how far they have read this feed        (one transaction, so a kill between is harmless)
 *
 * A change is numbered without a gap, and tells all that a row has: what the block is by now, its meta.json, and its version. Of two accounts of a block
 * the greater in (version, state, checksum of meta.json) is kept, wherever it comes from and in whatever order they come; whoever sees a block change gives
 * it the next version. So catalogs that have heard the same hold the same, and hearing a thing twice, or late, changes nothing.
 *
 * What an authenticated peer announces is believed. The block is not read for it: its meta.json comes with it and is judged as an audit judges it; whether
 * the objects are there and whole is met by whoever reads them, which is so for every block, and ends in a quarantine that is announced in turn.
 *
 * A node that has been away reads on from where it was. What it can't read any more (its peer keeps LIMIT_FEED_KEPT changes; a catalog that was made anew
 * has a new feed) it finds in the newest snapshot of a catalog that is in the bucket; and what is not in there, by an audit, which it then owes. A node
 * whose catalog is new begins with the snapshot. One node writes it, the one with the least id of those that answer: when two think that they are it, one
 * has the claim, or their snapshots follow each other; each is whole.
 *
 * Threads: three of its own, however many peers there are: one answers, one asks and applies, one minds the snapshots.
 * Bytes: docs/format/feed.md.
 */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "base/ulid.h"
#include "bucket/bucket.h"
#include "bucket/catalog.h"
#include "net/net.h"

enum { FEED_NODE_BYTES = 40 }; /* a node's id, with its end */
#define FEED_CONTENT_TYPE "application/x-varve-changes"
#define FEED_PATH "/-/peer/changes"

/* ---- what a catalog tells and hears: no threads, no network ---- */

struct feed_position {
	struct ulid feed; /* its name; zero: not known, from the beginning then */
	uint64_t seq;	  /* read up to here */
};

/* Changes of this catalog's feed behind `from`, at most `limit` and about LIMIT_FEED_ANSWER_BYTES of them, as a peer is answered; appended to `out`.
 * *gap: they can't be told any more, and the answer only says what can. *n: how many there are. */
CHECKED errc feed_tell(
	struct catalog *c, struct span node, struct feed_position from, uint32_t limit, struct buf *out, uint32_t *n, bool *gap, struct err *err);

struct feed_heard {
	struct feed_position at; /* where this catalog is in that feed now */
	uint64_t last;		 /* the feed's newest change */
	uint32_t n, applied;	 /* changes that came; that were news */
	bool gap;		 /* nothing was applied: see feed_jump */
	struct feed_position newest;
};
/* Applies what `node` answered. ERR_CORRUPT: it is no answer, or not to what was asked. ERR_NOTFOUND: another node answered. */
CHECKED errc feed_hear(struct catalog *c, struct span node, struct span answer, struct feed_heard *out, struct err *err);
/* How far `node` was read; zeros: never. */
CHECKED errc feed_where(struct catalog *c, struct span node, struct feed_position *out, struct err *err);
/* What lies between is left to an audit, which is owed from now on, over restarts too (catalog_owed). */
CHECKED errc feed_jump(struct catalog *c, struct span node, struct feed_position to, struct err *err);

/* ---- snapshots of a catalog, in the bucket ---- */

struct feed_snapshot {
	uint64_t generation; /* 0: there is none */
	int64_t made_ms;
	uint64_t size_bytes, blocks;
	uint64_t digest; /* of the live blocks */
	uint64_t state;	 /* of what is in it, positions too: another one has something new */
	char node[FEED_NODE_BYTES];
};
/* The newest that looks whole, by two small reads. OK with generation 0 when there is none. */
CHECKED errc feed_snapshot_newest(struct bucket *b, struct feed_snapshot *out, struct err *err);
/* Writes the catalog as this generation; two are kept, an even and an odd one. file: where it is put together. ERR_EXISTS: another node has the claim to
 * it, or died with it. */
CHECKED errc feed_snapshot_put(
	struct catalog *c, struct bucket *b, const char *file, struct span node, uint64_t generation, struct feed_snapshot *out, struct err *err);
/* Takes what is news into the catalog, and its positions where they are ahead; the catalog counts as complete then. When it knows of a feed that `node`,
 * this one, had before, what that told since is lost, and an audit is owed. The newest first, then the other one. ERR_NOTFOUND: none is newer than
 * generation `than`. ERR_CORRUPT: none is whole; what was taken from it until then was whole. */
CHECKED errc feed_snapshot_take(struct catalog *c, struct bucket *b, struct span node, uint64_t than, struct feed_snapshot *out, struct err *err);
/* What feed_snapshot's `state` would be now. */
CHECKED errc feed_state(struct catalog *c, struct span node, uint64_t *out, struct err *err);

/* ---- following each other ---- */

struct feed_peer {
	struct span address;
	char node[FEED_NODE_BYTES]; /* its id; empty: not known yet, it is not asked */
	bool answers;		    /* it is there: counts when it is decided who writes snapshots */
	bool stores;		    /* as roster_node's: who does not, has no feed */
	bool leaving;		    /* it has told all that it will: asked until it fails to answer, and silent then is no news */
};

struct feed_ask {
	struct span address;
	const char *target; /* path and query; copied */
	int64_t deadline_mono_ns;
	size_t max_answer_bytes;
	/* Exactly once when ask was OK, from any thread; borrowed for the call. It does not block. */
	void (*done)(void *arg, errc rc, int status, struct span answer, const struct err *err);
	void *arg;
};

struct feed;
struct feed_config {
	struct catalog *catalog;
	struct bucket *bucket;
	const char *snapshot_file; /* where a snapshot is put together: on the data directory's disk */
	const char *node;	   /* this one's id */
	bool stores;		   /* this node may write snapshots */
	/* All other nodes, from the arena. On the feed's threads; may be asked each second. */
	errc (*peers)(void *arg, struct arena *arena, struct feed_peer **out, size_t *n, struct err *err);
	errc (*ask)(void *arg, const struct feed_ask *q, struct err *err);
	void *arg;
	int64_t snapshot_interval_ms; /* --catalog.snapshot-interval; 0: none is written */
	int64_t wait_ms;	      /* how long a peer is asked to hold a question; 0: LIMIT_FEED_WAIT_MS */
};
CHECKED errc feed_open(const struct feed_config *cfg, struct feed **out, struct err *err);
/* For stopping, before the HTTP server's: who waits is answered, who comes later is not held. */
void feed_release(struct feed *f);
/* Answers to ask may come until it returns: close the sender before. NULL is fine. */
void feed_close(struct feed *f);

/* ?node=&feed=&after=&limit=&wait=&by= of a request that has been found to come from a peer; answered now or when there is a change. */
void feed_request(struct feed *f, struct http_request *r);
/* The same without HTTP: `answer` is called once, from the feed's thread or at once; status as HTTP's. */
struct feed_question {
	struct span node; /* whose feed; empty: whoever hears it */
	struct span by;	  /* who asks; empty: it does not say */
	struct feed_position from;
	uint32_t limit;
	int64_t wait_ms;
};
void feed_question(
	struct feed *f, const struct feed_question *q, void (*answer)(void *arg, int status, struct span body, const struct err *why), void *arg);

/* For leaving in good order: true when every node that asked within the last `within_ms` has asked for what comes behind this feed's newest change. */
bool feed_all_heard(struct feed *f, int64_t within_ms);
