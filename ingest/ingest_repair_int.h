/* ingest/ingest_repair_int.h - what the files of repair share. Reading order: ingest_digest.c (when two nodes hold the same), ingest_repair_wire.c (bytes),
 * ingest_repair_serve.c (answers), ingest_repair_pass.c (comparing with peers, and taking what differs), ingest_repair.c (when, the thread), ingest_repair_door.c (HTTP).
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "base/limits.h"
#include "base/metrics.h"
#include "ingest/repair.h"

/* ---- digests (ingest_digest.c) ---- */

enum { DIGEST_BUCKETS = 256 };
struct digest_bucket {
	uint64_t series, samples;
	uint64_t sum[2]; /* modulo 2^128, low half first */
};
static inline bool digest_bucket_eq(const struct digest_bucket *a, const struct digest_bucket *b)
{
	return a->series == b->series && a->samples == b->samples && a->sum[0] == b->sum[0] && a->sum[1] == b->sum[1];
}
void digest_bucket_add(struct digest_bucket *a, const struct digest_bucket *b);

/* What is looked at: of an open window, times closed. */
struct digest_range {
	struct span tenant;
	int64_t start, range;
	int64_t mint, maxt;
};

/* Who holds a series, by the ring in force. */
struct shared {
	struct ring_set *set; /* counted; NULL: no ring is in force, and everybody holds all */
	struct ring *ring;    /* of the tenant, counted; NULL: none serves it */
	uint32_t self;	      /* node number; CLUSTER_NO_NODE: not in it */
	uint32_t factor;
	struct ring_hash hash;
};
CHECKED errc shared_begin(struct shared *s, struct ring_set *set, struct span self, struct span tenant, struct err *err);
void shared_end(struct shared *s);
/* The other nodes of a series, if this one is one of them; how many. owners: LIMIT_RING_FACTOR of them. */
uint32_t shared_with(struct shared *s, struct labels l, uint32_t *owners);

/* Slows down who reads much: works half of the time. stop may be NULL. */
struct pace {
	const atomic_bool *stop;
	bool none;
	int64_t began_ns;
	uint32_t steps;
};
CHECKED errc pace_step(struct pace *p, struct err *err); /* once a series; ERR_CANCELED when stopped */

struct digest {
	uint32_t n;		     /* nodes */
	struct digest_bucket **peer; /* by node number: DIGEST_BUCKETS of what this node shares with it; NULL: nothing. Without a ring: one, of all */
	struct digest_bucket all;    /* of all that it holds, shared or not */
	bool open;		     /* there is such a window; else nothing is in it */
};
enum { DIGEST_EVERYBODY = UINT32_MAX };
/* with: one node's number, or DIGEST_EVERYBODY. What comes in meanwhile may be in it or not. */
CHECKED errc digest_make(
	struct head *h, const struct digest_range *r, struct shared *s, uint32_t with, struct pace *pace, struct digest *out, struct err *err);
void digest_free(struct digest *d);
/* The bucket of a series, and its labels' hash. */
uint32_t digest_series(struct labels l, struct buf *scratch, uint64_t id[2]);

/* ---- messages (ingest_repair_wire.c); docs/format/repair.md ---- */

struct repair_window {
	struct span tenant;
	int64_t start, range;
	uint64_t samples;
	bool cut; /* and a block was cut of it, too: what is in it is not all */
};
struct repair_windows {
	uint64_t epoch;
	int64_t since_ms; /* of the ring in force */
	uint32_t next;	  /* tenants to pass over for the next page; UINT32_MAX: that was all */
	struct repair_window *v;
	uint32_t n;
};
struct repair_digest_answer {
	uint64_t epoch;
	bool open, cut;
	struct digest_bucket buckets[DIGEST_BUCKETS];
};
/* Where a window's series went on; of one process. */
struct repair_cursor {
	uint64_t process;
	uint32_t window;
	struct head_place place;
	int64_t t; /* samples of the series at place from here on */
};
struct repair_piece {
	uint64_t epoch;
	bool more; /* cursor says where */
	struct repair_cursor cursor;
	uint64_t series, samples; /* of the frame, a series as often as it stands there */
	struct span frame;	  /* empty: none */
};
enum { REPAIR_CURSOR_TEXT = 80 };
void repair_cursor_text(const struct repair_cursor *c, char out[REPAIR_CURSOR_TEXT]);
bool repair_cursor_parse(struct span text, struct repair_cursor *out);
enum { REPAIR_BUCKETS_BYTES = DIGEST_BUCKETS / 8 };
void repair_buckets_text(const uint8_t set[REPAIR_BUCKETS_BYTES], char out[2 * REPAIR_BUCKETS_BYTES + 1]);
bool repair_buckets_parse(struct span text, uint8_t set[REPAIR_BUCKETS_BYTES]);

/* Each appends; decoding takes arrays from the arena, and spans borrow. ERR_INVALID (PEER_FRAME), ERR_NOMEM. */
CHECKED errc repair_windows_encode(const struct repair_windows *m, struct buf *out, struct err *err);
CHECKED errc repair_windows_decode(struct span bytes, struct arena *arena, struct repair_windows *m, struct err *err);
CHECKED errc repair_digest_encode(const struct repair_digest_answer *m, struct buf *out, struct err *err);
CHECKED errc repair_digest_decode(struct span bytes, struct repair_digest_answer *m, struct err *err);
CHECKED errc repair_piece_encode(const struct repair_piece *m, struct buf *out, struct err *err);
CHECKED errc repair_piece_decode(struct span bytes, struct repair_piece *m, struct err *err);
CHECKED errc repair_owed_encode(const struct repair_owed *m, struct buf *out, struct err *err);
CHECKED errc repair_owed_decode(struct span bytes, struct repair_owed *m, struct err *err);

/* ---- what this node says (ingest_repair_serve.c) ---- */

struct repair_question {
	struct span with; /* who asks, as rings have it */
	struct digest_range range;
	uint8_t buckets[REPAIR_BUCKETS_BYTES];
	bool goes_on;
	struct repair_cursor cursor;
	bool metadata; /* of the tenant, and no samples */
};
CHECKED errc repair_serve_windows(struct repair *r, struct span with, uint32_t from, struct buf *out, struct err *err);
CHECKED errc repair_serve_digest(struct repair *r, const struct repair_question *q, struct buf *out, struct err *err);
CHECKED errc repair_serve_piece(struct repair *r, const struct repair_question *q, struct buf *out, struct err *err);
CHECKED errc repair_serve_owed(struct repair *r, struct span with, struct buf *out, struct err *err);

/* The JSON of GET /-/digest. tenant may be empty: all. */
CHECKED errc repair_serve_totals(struct repair *r, struct span tenant, int64_t from, int64_t until, struct buf *out, struct err *err);

/* ---- comparing (ingest_repair_pass.c) ---- */

/* A node to compare with, for one pass. */
struct repair_with {
	char *address;
	bool told;     /* it asked us to: we don't ask it back */
	bool metadata; /* and its metadata, whatever digests say */
	/* out */
	errc rc; /* OK: compared, and what differed is here */
	char why[ERR_MSG_BYTES];
	int64_t owed_to_ms; /* what it had dropped for us up to then is here */
};
/* Compares with all of them and takes what differs. */
void repair_pass(struct repair *r, struct repair_with *v, size_t n);
/* Asks for what it owes. */
CHECKED errc repair_ask_owed(struct repair *r, const char *address, struct repair_owed *out, struct err *err);

/* ---- the repair (ingest_repair.c) ---- */

enum repair_want { WANT_NOTHING = 0, WANT_START = 1, WANT_RETURN = 2, WANT_OWED = 4, WANT_ASKED = 8, WANT_TOLD = 16 };

struct repair_peer {
	char *address;
	bool listed;	     /* in the rings in force, and it stores */
	bool answers;	     /* by the roster */
	uint64_t started_ms; /* as it last said; 0: it never did */
	unsigned want;
	int64_t wanted_ns, not_before_ns, owed_asked_ns;
	int64_t settled_ns; /* what is wanted for a start or a return is seen by a pass from then on, and not by one before */
	int64_t done_ms;    /* wall clock of the last pass that was complete; 0: none */
	uint32_t failures;
	uint64_t owed_bytes;	 /* hints that it still had for us */
	int64_t owed_to_ms;	 /* when the newest that it dropped for us was written; 0: none */
	char why[ERR_MSG_BYTES]; /* what the last try met; empty: nothing */
};

struct repair_counts {
	uint64_t passes, windows_equal, windows_taken, windows_cut, windows_failed, buckets, stored, duplicate, refused, bytes;
};

struct repair_metrics {
	struct metric *equal, *taken, *cut, *failed, *stored, *duplicate, *refused, *bytes, *passes, *waiting, *digests;
};

struct repair {
	struct repair_config cfg; /* constant; strings owned */
	char *self;
	uint64_t process; /* random: whose cursors are ours */
	struct repair_metrics m;
	atomic_bool ready, stop;
	atomic_bool all; /* asked for by repair_all */
	pthread_t thread;
	bool runs;
	pthread_mutex_t serving; /* one digest at a time */
	/* mu */
	pthread_mutex_t mu;
	struct repair_peer *peers;
	size_t n_peers, cap_peers;
	struct repair_counts counts;
	const char *doing; /* static words, for the status */
	uint64_t epoch;	   /* of the rings in force when it last looked; 0: none */
	int64_t since_ms;
	/* the thread's */
	bool begun; /* every node that was in the ring at the start is wanted */
	int64_t rate_from_ns;
	uint64_t rate_bytes;
};

/* Since when the rings in force are; 0: there are none. */
int64_t repair_since(struct repair *r, uint64_t *epoch);
/* Sleeps so that no more than the rate goes by. ERR_CANCELED when stopped. */
CHECKED errc repair_rate(struct repair *r, uint64_t bytes, struct err *err);
CHECKED errc repair_sleep(struct repair *r, int64_t ms, struct err *err);
/* It answers from now on. */
void repair_ready(struct repair *r);
/* One step of the thread: looks at rings and nodes, and compares with whom it is time to. For the thread, and for tests that have none. false: there was nothing to do. */
bool repair_step(struct repair *r);
/* The peer at this address asks us to compare with it. */
/* false: it is none of those that this node compares with. */
bool repair_told(struct repair *r, struct span address);
void repair_json(struct repair *r, struct buf *out);
