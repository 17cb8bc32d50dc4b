/* cluster/cluster.h - a write, spread over the nodes that hold its series, and answered when a quorum of each series' nodes has.
 *
 *     request ─▶ cluster_write_begin ─┬─ a share for each peer: one frame ──send──▶ peer ──verdicts──┐
 *                                     └─ cluster_write_mine: this node's own ─▶ head, log ─ _done ───┼─▶ counted per series ─▶ done(outcome)
 *                                                                                                    │
 *     deadline ──────────────────────────────────────────────── what is undecided: to be tried again ┘
 *
 * One request goes to each peer, with all that it owes, whatever replicas and tenants that is; a series once, also when a node is two of its replicas. A peer stores what it is
 * sent and sends nothing on, so a client's request is at most as many requests as its series have nodes, and one hop.
 *
 * A series of n different nodes is stored when q of them have it (q the quorum, n at most), refused when so many refused that q never will, whoever tries again, and to be tried again when
 * q can't be reached otherwise, or has not been by the deadline. Nobody waits for the slowest: done is called once, when every series is decided. The rest of the peers is heard out; what
 * one of them missed of that which was stored is told to on_missed, as frames to be delivered later, each with a node that can keep it (cluster_missed.c; cluster/hints.h).
 *
 * Threads: begin, mine and go on the thread of the client's request; verdicts from any (the sender's, the log's); done from whichever of them decides, or from the timer's; on_missed from one of its own, mostly; never while
 * a lock is held. Peers (cluster_peer.c) live as long as a ring in use names them: bytes in flight to each are bounded, and one that fails is left alone for a while.
 */
#pragma once
#include "cluster/ring.h"
#include "cluster/wire.h"

struct cluster;
struct cluster_op;

/* One POST of a frame to a peer. */
struct cluster_send {
	struct span address;	  /* the peer's, as rings have it; borrowed, as body is, until done */
	struct span body;	  /* of type PEER_CONTENT_TYPE, for PEER_WRITE_PATH */
	int64_t deadline_mono_ns; /* done comes by then, with ERR_TIMEOUT */
	size_t max_answer_bytes;  /* a longer one is ERR_LIMIT */
	/* Exactly once, from any thread, also before send returns: OK with status and answer (borrowed for the call), else why not. */
	void (*done)(void *arg, errc rc, int status, struct span answer, const struct err *err);
	void *arg;
};

/* What a peer did not get of that which a quorum stored: each item of a share is told once, with a node that has it. Borrowed for the call. */
struct cluster_missed {
	struct span address; /* who missed it; empty: this node did */
	const struct span *
		holders; /* each stored all of it; the first is to keep it, the others are for when that can't be reached. An empty one is this node, and first */
	uint32_t n_holders;
	uint32_t n_items;
	struct span frame; /* a hint. Empty: there is none, as there was no memory for it, or it is this node's own share */
};

struct cluster_config {
	void (*send)(void *sender, const struct cluster_send *s); /* copies *s */
	void *sender;
	bool lz4;		 /* --peer.compression */
	uint32_t quorum;	 /* --replication.quorum; 0: floor(factor / 2) + 1 */
	uint64_t max_peer_bytes; /* of frames that one peer has not answered; 0: LIMIT_PEER_INFLIGHT_BYTES. One alone may always go */
	/* Of a write that is decided, after its done, or before that has returned. NULL: nobody keeps it. */
	void (*on_missed)(void *arg, const struct cluster_missed *m);
	void *missed_arg;
	bool no_timer; /* for tests: cluster_expire is called instead (cluster/cluster_write_int.h) */
};
CHECKED errc cluster_open(const struct cluster_config *cfg, struct cluster **out, struct err *err);
/* Waits for writes that peers have not answered; none may begin any more. NULL is fine. */
void cluster_close(struct cluster *c);

/* ---- a write ---- */

enum { CLUSTER_NO_NODE = UINT32_MAX };

/* The series of one tenant. Everything is borrowed until cluster_write_begin returns. Items are its series and then its metadata fields; over all parts they are numbered through. */
struct cluster_part {
	struct span tenant; /* tenant_valid */
	enum rw_version version;
	struct ring *ring;	    /* of the tenant; all parts' rings are of one set. The write counts on it */
	uint32_t n_series;	    /* with n_metadata: */
	uint32_t n_metadata;	    /* 1.0's metadata fields: kept where a series {__name__="<family>"} would be */
	const uint64_t *hashes;	    /* of each item (ring_hash_end) */
	const struct span *slices;  /* of each item: the field of the client's message, its tag and length included */
	const struct span *symbols; /* 2.0: the symbols' fields in their order, runs of any number in a span */
	size_t n_symbols;	    /* spans */
};

enum cluster_state { CLUSTER_UNDECIDED, CLUSTER_STORED, CLUSTER_REFUSED, CLUSTER_AGAIN };

/* A series that is not stored. */
struct cluster_item {
	uint32_t item;
	enum cluster_state state;	    /* REFUSED, AGAIN */
	enum errid id;			    /* a node's reason; NO_QUORUM when none gave one */
	int64_t t;			    /* REFUSED: of its first refused sample */
	uint32_t samples, hists, exemplars; /* that a quorum has all the same */
};

struct cluster_outcome {
	uint32_t stored, refused, again;  /* items; all of the write */
	const struct cluster_item *items; /* those not stored, ascending. When there was no memory for them: none, and all are to be tried again */
	uint32_t n_items;
	uint32_t by_reason[ERRID_COUNT]; /* of them */
};

struct cluster_write {
	const struct cluster_part *parts;
	uint32_t n_parts;
	uint32_t self; /* this node's number in the set, CLUSTER_NO_NODE when it stores nothing */
	uint8_t id[PEER_ID_BYTES];
	int64_t now_ms, min_t, max_t; /* the one judgement of time: see struct peer_request */
	int64_t deadline_mono_ns;
	/* Once, at the earliest inside cluster_write_go. The outcome is borrowed for the call. */
	void (*done)(void *arg, const struct cluster_outcome *o);
	void *arg;
};

/* Sends every peer its share. On error nothing was sent, and done is never called: ERR_NOMEM (OVERLOADED), ERR_LIMIT (DECODED_TOO_LARGE: a share above LIMIT_PEER_REQUEST_BYTES). */
CHECKED errc cluster_write_begin(struct cluster *c, const struct cluster_write *w, struct cluster_op **out, struct err *err);
/* This node's share: numbers of items, ascending, valid until cluster_write_mine_done; n may be 0. */
void cluster_write_mine(const struct cluster_op *op, const uint32_t **items, uint32_t *n);
/* When n was not 0, exactly once, before or after go, from any thread: `why` NONE and the verdicts of those not stored in full (`item` counts within the share, ascending; copied), or
 * why nothing was. */
void cluster_write_mine_done(struct cluster_op *op, enum errid why, const struct peer_verdict *verdicts, uint32_t n);
/* The caller needs the client's request no more for what it does itself: done may be called from here on. op is the write's own from here on, but for cluster_write_mine_done. What its own share
 * still needs then (until the log is done with it) must not hang on the client's request, which done answers and so ends. */
void cluster_write_go(struct cluster_op *op);

/* ---- peers, for status pages ---- */

struct cluster_peer_status {
	struct span address;
	uint64_t epoch; /* it last said; 0: it never did */
	uint64_t inflight_bytes;
	uint32_t failures; /* in a row */
	bool open;	   /* left alone */
};
void cluster_peers(struct cluster *c, void (*fn)(void *arg, const struct cluster_peer_status *s), void *arg);
