/* query/query_fleet_int.h - the other nodes: whom a question is asked, what comes back, and what it means that somebody does not answer.
 *
 *     question ─ fleet_ask ─▶ every storing node, at once ─▶ frames, as there is room ─▶ merge
 *                   │                                                          ▲
 *                   └─ waits until each has fixed what it will give, or failed ─┴─ and only then the catalog is planned (query_sources.c)
 *
 *     query_fleet.c        nodes, rings of lately, and whether an answer without some nodes is whole
 *     query_fleet_ask.c    one question, many answers: buffers, waiting, failing
 *     query_fleet_wire.c   bytes of questions and answers
 *     query_fleet_serve.c  the other side
 *
 * Seen at least once. A node answers from its windows and its directories, and for a block of its own that went live it answers for handover_ms longer; it fixes which those are before its answer begins. The
 * catalog is planned after that. So a sample that the node had acknowledged is in its answer, or in a block that was live for handover_ms when the node looked, which every catalog knows by then. What goes live
 * in between is in both: the same samples, of which the merge gives one. (The other order would lose a block that goes live between plan and question.)
 */
#pragma once
#include "query/query_int.h"

/* ---- bytes ---- */

enum fleet_what { FLEET_SAMPLES = 1, FLEET_SERIES, FLEET_NAMES, FLEET_VALUES, FLEET_EXEMPLARS, FLEET_METADATA, FLEET_WHAT_END };

struct fleet_question {
	enum fleet_what what;
	int64_t mint, maxt; /* closed */
	int64_t left_ms;    /* until nobody waits any more */
	struct span name;   /* VALUES: the label; METADATA: the family, empty: all */
	const struct span *replica;
	size_t n_replica;
	const struct matcher_set *sets; /* a series that any of them finds; NAMES and VALUES: none means all */
	size_t n_sets;
};
CHECKED errc fleet_question_encode(const struct fleet_question *q, struct buf *out, struct err *err);
/* Into the arena; what it compiled is freed with matcher_sets_free(sets, n_sets). ERR_INVALID, ERR_LIMIT. */
CHECKED errc fleet_question_decode(struct span body, struct arena *arena, struct fleet_question *out, struct err *err);

#define FLEET_QUESTION_TYPE "application/x-varve-question"
#define FLEET_ANSWER_TYPE "application/x-varve-answer"

/* An answer is frames: length, CRC-32C, and a payload that begins with its kind. The first is BEGIN, the last END. */
enum fleet_kind { FLEET_BEGIN = 'b', FLEET_ONE_SERIES = 's', FLEET_STRINGS = 'n', FLEET_ONE_EXEMPLARS = 'x', FLEET_FAMILIES = 'm', FLEET_END = 'e' };
enum { FLEET_FRAME_HEAD = UVARINT_MAX_BYTES + 4 };
/* What stands before a payload; returns its length. */
size_t fleet_frame_head(struct span payload, uint8_t out[FLEET_FRAME_HEAD]);
/* Of bytes as they came; *used 0: the frame is not whole yet. ERR_CORRUPT, ERR_LIMIT: above max_bytes. */
CHECKED errc fleet_frame(struct span in, size_t max_bytes, struct span *payload, size_t *used, struct err *err);

/* Payloads, kind included. */
void fleet_begin_encode(const char *warning, struct buf *out); /* NULL: none */
CHECKED errc fleet_begin_decode(struct rd *r, struct span *warning, struct err *err);
void fleet_series_encode(struct labels l, const struct chunk *c, size_t n, struct buf *out);
/* Labels ascend, chunks have their order and an encoding; spans borrow. */
CHECKED errc fleet_series_decode(struct rd *r, struct arena *arena, struct labels *l, struct chunk **c, size_t *n, struct err *err);
void fleet_exemplars_encode(struct labels l, const struct exemplar *x, size_t n, struct buf *out);
CHECKED errc fleet_exemplars_decode(struct rd *r, struct arena *arena, struct labels *l, struct exemplar **x, size_t *n, struct err *err);
void fleet_metadata_encode(const struct metadata *m, struct buf *out); /* one; several follow each other behind the kind */
CHECKED errc fleet_metadata_decode(struct rd *r, struct metadata *out, struct err *err);

/* ---- who is there ---- */

CHECKED errc fleet_open(const struct query_fleet *cfg, uint32_t connections, struct fleet **out, struct err *err);
void fleet_close(struct fleet *f); /* no question runs; NULL is fine */
void fleet_cancel(struct fleet *f);
void fleet_rings(struct fleet *f, struct ring_set *now);
const struct query_fleet *fleet_config(const struct fleet *f);
struct http_sender *fleet_sender(const struct fleet *f);

/* What a question sees of the fleet: taken once, before anybody is asked. In the question's arena; fleet_view_free lets go of the rings. */
struct fleet_view {
	struct roster_node *nodes;
	size_t n;
	struct ring_set **sets; /* in force, or lately; the one in force is the last */
	size_t n_sets;
	bool in_force;	 /* there are rings */
	bool known;	 /* these are all that there were within --ring.remember */
	uint32_t wanted; /* --replication.quorum */
};
CHECKED errc fleet_view_take(struct fleet *f, struct arena *arena, struct fleet_view *out, struct err *err);
void fleet_view_free(struct fleet_view *v);
/* Is a node to be asked? Without those that say that they are drained or store nothing. *down: it is, and is known not to answer. */
bool fleet_view_asks(struct fleet *f, const struct roster_node *n, bool *down);
/* Does an answer without these nodes have every sample of the tenant that was acknowledged? */
bool fleet_view_whole(const struct fleet_view *v, struct span tenant, const struct span *missing, size_t n);

/* ---- a question to all ---- */

struct fleet_peer; /* one that was asked */

/* Asks, when the question is of the fleet, and waits until each has begun to answer or has failed. ERR_NET (INCOMPLETE): without those that failed the answer would not be whole, and it must be. The
 * sets are looked at during the call only. */
CHECKED errc fleet_ask(struct question *qn, enum fleet_what what, struct span name, const struct matcher_set *sets, size_t n_sets, struct err *err);
void fleet_ask_close(struct fleet_ask *a); /* NULL is fine */
size_t fleet_ask_peers(const struct fleet_ask *a);
struct fleet_peer *fleet_ask_peer(struct fleet_ask *a, size_t i);
const char *fleet_ask_warning(const struct fleet_ask *a, size_t i); /* NULL: no more */

/* What a peer has next; it lives until the next call for the same peer. *more false: that was all, or it failed and may be done without. Errors: as fleet_ask. */
CHECKED errc fleet_next_series(struct fleet_peer *p, struct ext_series *out, bool *more, struct err *err);
CHECKED errc fleet_each_string(struct fleet_peer *p, errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err);
CHECKED errc fleet_next_exemplars(struct fleet_peer *p, struct labels *l, struct exemplar **x, size_t *n, bool *more, struct err *err);
CHECKED errc fleet_each_metadata(
	struct fleet_peer *p, errc (*emit)(void *arg, const struct metadata *m, struct err *err), void *arg, struct err *err);
