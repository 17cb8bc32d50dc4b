/* cluster/roster.h - who is in the fleet: every node of any ring that was in force lately, and what it last said of itself.
 *
 *     rings in force ──added──▶ ┌────────┐ ──GET /-/ring?hashrings=0, each, once a second──▶ state, epoch, node id; and whom it remembers
 *     roster file ────at start─▶│ roster │ ◀──────────────────────────────────────────
 *                               └────────┘ ──▶ readers ask these, until a node said that it is drained, or --ring.remember is over
 *
 * A node that left the rings keeps what it took until its blocks are in the bucket, so it is asked for as long as it may have something that nobody else has. What is remembered
 * is in a small file in the data directory; a node without one (a router) asks the peers of its rings whom they remember, which every node does at its start.
 *
 * That a node is drained is remembered as long, and told to others: it says so for a few seconds only, and who was away then would miss it for hours.
 *
 * Threads: one of its own asks; everything here may be called from any thread and waits for nobody.
 */
#pragma once
#include "base/arena.h"
#include "cluster/link.h"
#include "cluster/ring.h"

enum node_state { NODE_UNKNOWN, NODE_JOINING, NODE_ACTIVE, NODE_DRAINING, NODE_DRAINED };
const char *node_state_name(enum node_state s);
enum node_state node_state_of(const char *name); /* UNKNOWN for what is none, NULL too */

struct roster_node {
	struct span address; /* as rings have it */
	bool in_ring;	     /* of the rings in force */
	bool self;
	enum node_state state; /* as it last said; UNKNOWN: it never did */
	bool answers;	       /* the last question to it was answered */
	bool stores;	       /* it may hold samples: its targets have `ingest` (UNKNOWN: taken as true) */
	uint64_t epoch;	       /* of its rings, as it last said; 0: none */
	int64_t heard_ms;      /* wall clock of its last answer; 0: never */
	int64_t left_ms;       /* wall clock since when it is in no ring in force; 0: it is in one */
	char id[40];	       /* its node id (its data directory's); empty: it never said */
	uint64_t started_ms;   /* a new one: it was restarted */
};

struct roster;
struct roster_config {		  /* all that is pointed to is borrowed for the life of the roster */
	const char *file;	  /* DATA-DIR/roster.json; NULL: nothing is kept */
	struct span self;	  /* --hashrings.local-endpoint; empty: none */
	const char *id, *targets; /* what this node says of itself: its node id (NULL: it has none), and --target as it is */
	struct link *link;
	int64_t remember_ms; /* --ring.remember */
	int64_t ask_ms;	     /* between two questions to a node; 0: LIMIT_ROSTER_ASK_MS */
	/* A node's state, its being in a ring, or whether it answers has changed, or it was restarted; on the roster's thread, no lock held. NULL: nobody asks */
	void (*on_change)(void *arg, const struct roster_node *n);
	void *arg;
};
CHECKED errc roster_open(const struct roster_config *cfg, struct roster **out, struct err *err);
void roster_close(struct roster *r); /* before link_close, and quickly after link_cancel; NULL is fine */
/* The rings in force have changed (ring_file_config.on_change). */
void roster_rings(struct roster *r, struct ring_set *now);
/* What this node is from now on: JOINING at first. The others hear of it when they ask next. */
void roster_say(struct roster *r, enum node_state s);
enum node_state roster_said(struct roster *r);
/* All nodes that are or were in a ring, this one included, by address; copied into the arena. ERR_NOMEM. */
CHECKED errc roster_nodes(struct roster *r, struct arena *arena, struct roster_node **out, size_t *n, struct err *err);
/* --peers: these are asked as well, though they are in no ring (yet); instead of those of the last call. */
CHECKED errc roster_want(struct roster *r, const struct span *addresses, size_t n, struct err *err);
/* The wanted ones and those of the rings in force, by address: what a ring can be made of. */
struct roster_candidate {
	struct roster_node node;
	bool wanted;
	bool asked;	   /* at least once since the start */
	int64_t silent_ms; /* it did not answer for so long, by the monotonic clock, since the start or since it is known at most; 0: it answers */
};
CHECKED errc roster_candidates(struct roster *r, struct arena *arena, struct roster_candidate **out, size_t *n, struct err *err);
/* Ask this node now instead of within the second. */
void roster_look(struct roster *r, struct span address);
/* What this node says of itself, to answer with: the members of GET /-/ring, as JSON without the braces. The epoch is not among them. */
void roster_json(struct roster *r, struct buf *out);
