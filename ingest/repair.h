/* ingest/repair.h - replicas hold the same samples again, from each other's open windows.
 *
 *     this node                                                        a peer that it shares series with
 *     ─────────                                                        ─────────────────────────────────
 *     back, or owed more than hints hold ──GET /-/peer/owed─────────▶  what it still has for us: wait until that is delivered
 *                                        ──GET /-/peer/windows──────▶  its open windows
 *     digest of what we share, by bucket ──GET /-/peer/digest───────▶  the same of its own; equal: done, and nothing was sent
 *     buckets that differ                ──GET /-/peer/window───────▶  their series, in frames as of cluster/wire.h ──▶ stored by the order-free winner
 *     still differ: it lacks something   ──POST /-/peer/repair──────▶  it compares with us
 *
 * Hints are the quick way to even out what a replica missed; this is the sure one. It asks for nothing to be remembered: what differs shows, whatever the reason was
 * (a lost disk, hints that did not fit, a write that only one node took). A node repairs itself: it asks, and what it is given it stores like any other late write.
 * What is not in an open window any more is in a block, and in the bucket; a window of which this node has cut a block is left alone.
 *
 * A digest is of the series that two nodes both hold by the ring in force. A series is placed by its labels as its sender wrote them, and the head knows them sorted: of senders that
 * do not sort them (no Prometheus is one) series are compared with, and brought to, the nodes that they would be on if sorted, which costs copies and loses nothing.
 * Samples from before the ring in force are left alone: who held them then need not hold them now. ring_since is remembered over restarts.
 *
 * Threads: one of its own compares and stores, one peer's window at a time, at --repair.rate; serving is on the callers' threads, one digest at a time.
 */
#pragma once
#include "cluster/roster.h"
#include "cluster/wire.h"
#include "head/head.h"

struct repair;

/* A call to a peer, as link_ask; its deadline is always set. */
struct repair_ask {
	struct span address;
	const char *method, *target;
	int64_t deadline_mono_ns;
	size_t max_answer_bytes;
};

/* What storing a frame came to. */
struct repair_stored {
	uint64_t stored, duplicate, refused; /* samples and histograms */
};

/* What this node has to tell a peer for that was down: hints that wait, and when the oldest and newest were written that did not fit. */
struct repair_owed {
	uint64_t pending_bytes;
	int64_t from_ms, to_ms; /* of what was dropped; 0: nothing was */
};

struct repair_config {
	struct head *head;		      /* borrowed, as all that follows */
	struct span self;		      /* --hashrings.local-endpoint; empty: nothing is ever repaired */
	const char *file;		      /* DATA-DIR/repair.state; NULL: since when the ring is in force is forgotten */
	uint64_t bytes_per_s;		      /* --repair.rate, of frames before compression; 0: LIMIT_REPAIR_BYTES_PER_S */
	int64_t settle_ms;		      /* samples of the last so many are not compared: they are on their way; 0: LIMIT_REPAIR_SETTLE_MS */
	struct trust *trust;		      /* of who asks */
	void *arg;			      /* of the following */
	struct ring_set *(*rings)(void *arg); /* in force, counted; NULL: none */
	errc (*nodes)(void *arg, struct arena *arena, struct roster_node **out, size_t *n, struct err *err);
	errc (*ask)(void *arg, const struct repair_ask *a, int *status, struct buf *answer, struct err *err);
	/* A hint frame, durable when it returns OK. ERR_AGAIN, ERR_NOSPACE: later. */
	errc (*store)(void *arg, struct span frame, struct repair_stored *out, struct err *err);
	bool (*cut)(void *arg, struct span tenant, int64_t start, int64_t end); /* this node has a block of samples of [start, end); NULL: never */
	void (*owed)(void *arg, struct span address, struct repair_owed *out);	/* NULL: nothing ever is */
	void (*repaired)(void *arg, struct span address, int64_t to_ms);	/* what was dropped for it up to then it has now; NULL */
};
CHECKED errc repair_open(const struct repair_config *cfg, struct repair **out, struct err *err);
/* The log is replayed: it answers from now on, and compares with every node of the ring. */
CHECKED errc repair_start(struct repair *r, struct err *err);
/* For stopping: running work ends at its next step. */
void repair_cancel(struct repair *r);
void repair_close(struct repair *r); /* NULL is fine */
/* Compare with all nodes now. */
void repair_all(struct repair *r);

/* ---- handlers; arg is the repair ---- */
void repair_peer_windows(void *repair, struct http_request *r); /* GET  /-/peer/windows  WORKER */
void repair_peer_digest(void *repair, struct http_request *r);	/* GET  /-/peer/digest   WORKER */
void repair_peer_window(void *repair, struct http_request *r);	/* GET  /-/peer/window   WORKER */
void repair_peer_owed(void *repair, struct http_request *r);	/* GET  /-/peer/owed, POST: it has been repaired */
void repair_peer_ask(void *repair, struct http_request *r);	/* POST /-/peer/repair */
void repair_status(void *repair, struct http_request *r);	/* GET  /-/repair, POST: repair_all */
/* GET /-/digest?tenant=&from=&until= for `varve digest`: of every open window, what it holds together with each other node. WORKER */
void repair_digest(void *repair, struct http_request *r);

/* ---- a frame of a peer, into log and head; waits until it is durable (ingest_frame.c) ---- */
struct ingest;
CHECKED errc ingest_frame_store(struct ingest *in, struct span frame, struct repair_stored *out, struct err *err);
