/* cluster/hints.h - what a node that was away has missed, kept by one that has it, delivered when it is back.
 *
 *     cluster (on_missed) ─┬─ this node has it ───────────────────────▶ queue ─▶ DATA-DIR/hints/<hash>/NNNNNNNN.hints ─▶ its node, in order
 *                          └─ another has it ──POST /-/peer/hint?for=──▶ (the same there)
 *
 * A hint is no promise: a quorum has its samples, and the client was told so before. So nothing waits for a hint, and when there is no room for one it is left out and said to be
 * owed: to whom, from when to when. What is owed is kept over restarts and is for repair (on_overflow, hints_owed).
 *
 * What is kept is delivered at least once, frame by frame, in its order, and gone when the node has said "stored" or "refused" to all of it. It is not held against clocks or limits again: a quorum
 * took it. Hints that are older than any open window (max_age_ms) help nobody: what they hold is in blocks by then. They go, as do those for a node that left the rings and is drained or not
 * heard of any more.
 *
 * Bounds: max_bytes on disk over all nodes, and each may have as much as is still free beside: one alone comes to a half, two to a third each, so the next one that goes down finds room. Memory:
 * LIMIT_HINTS_QUEUE_BYTES wait for the disk, as much is on its way to other keepers, and a batch for each of LIMIT_HINTS_FLIGHTS nodes.
 *
 * Threads: everything here may be called from any thread and waits for nobody, but open and close. One thread of its own writes, reads and delivers: no other touches a file.
 * Bytes on disk: docs/format/hints.md (cluster_hints_log.c).
 */
#pragma once
#include "cluster/cluster.h"
#include "cluster/link.h"
#include "cluster/roster.h"

struct hints;
struct http_request;

#define HINTS_PATH "/-/peer/hint" /* POST, ?for=<address of whom it is for>; the body is a hint: 204, or 503 when it is not taken */

struct hints_config {
	const char *dir;     /* DATA-DIR/hints; NULL: this node stores nothing, and hands hints to those that do. Copied */
	struct span self;    /* --hashrings.local-endpoint; copied */
	uint64_t max_bytes;  /* --hints.max-size; 0: LIMIT_HINTS_BYTES */
	int64_t max_age_ms;  /* --hints.max-age */
	uint64_t rate;	     /* --hints.rate, bytes a second over all nodes; 0: LIMIT_HINTS_RATE */
	int64_t remember_ms; /* --ring.remember */
	bool lz4;	     /* --peer.compression */
	/* link_send, roster_nodes and link_check of the trust */
	errc (*send)(void *link, const struct link_call *c, struct err *err);
	void *link;
	errc (*nodes)(void *roster, struct arena *arena, struct roster_node **out, size_t *n, struct err *err);
	void *roster;
	errc (*check)(void *trust, const struct http_request *r, struct err *err);
	void *trust;
	/* Samples of writes of this time are owed to a node, and no hint tells of them; at most once a second for each node, on the thread of the hints. NULL: nobody asks */
	void (*on_overflow)(void *arg, struct span address, int64_t from_ms, int64_t to_ms);
	void *arg;
	bool no_thread; /* for tests: hints_step is called instead (cluster/cluster_hints_int.h) */
};
/* What an earlier run left is taken up. ERR_NOMEM, and errors of the directory itself: what is wrong with what is in it costs hints, and is logged. */
CHECKED errc hints_open(const struct hints_config *cfg, struct hints **out, struct err *err);
/* Waits for calls that are on their way (after link_cancel they end at once), writes what waits, and says what is done. Before link_close and roster_close; NULL is fine. */
void hints_close(struct hints *h);

/* cluster_config.on_missed; missed_arg is the hints. */
void hints_missed(void *hints, const struct cluster_missed *m);
/* The handler of HINTS_PATH; arg is the hints. HTTP_INLINE. */
void hints_receive(void *hints, struct http_request *r);

/* ---- what is kept, and what is owed ---- */

struct hints_owed {
	int64_t from_ms, to_ms;	  /* by this node's clock, of the writes; 0: nothing is owed */
	uint64_t samples, frames; /* as far as is known: of damaged frames it may not be */
};
/* false: nothing. */
bool hints_owed(struct hints *h, struct span address, struct hints_owed *out);
/* Repair has brought the node what it owed of writes up to this time. */
void hints_repaired(struct hints *h, struct span address, int64_t until_ms);

struct hints_status {
	struct span address;
	uint64_t pending_samples, pending_bytes;
	int64_t oldest_ms; /* when the oldest that is pending was kept; 0: none is */
	struct hints_owed owed;
};
/* Of each node for which something is pending or owed; as of at most a second ago. No lock of the hints may be needed by fn: it must not call back. */
void hints_each(struct hints *h, void (*fn)(void *arg, const struct hints_status *s), void *arg);
