/* cluster/cluster_finder_int.h - what the files of the finder share: the plan, which is pure, and names. */
#pragma once
#include "cluster/finder.h"

/* ---- cluster_finder_plan.c ---- */

enum finder_state { FOUND_JOINING, FOUND_ACTIVE, FOUND_AWAY, FOUND_DRAINING, FOUND_GONE };
extern const char *const finder_state_names[];

struct finder_view {
	const struct roster_candidate *nodes; /* sorted by address */
	size_t n;
	bool tried;  /* every name was looked up once, whatever came of it */
	bool looked; /* and all of them answered the last time: who is not wanted is not named */
	uint32_t factor;
	int64_t gone_after_ms;
};
struct finder_verdict {
	enum finder_state state;
	bool in;
	const char *reason; /* a sentence */
};
struct finder_plan {
	struct finder_verdict *v; /* of each node */
	size_t n_in;
	struct span text;  /* the ring file; p NULL: there is no ring yet, and `waits` says why */
	const char *waits; /* or NULL */
};
CHECKED errc finder_plan(const struct finder_view *view, struct arena *arena, struct finder_plan *out, struct err *err);

/* ---- cluster_finder_names.c ---- */

enum finder_kind { FINDER_ADDRESS, FINDER_DNS, FINDER_SRV };
struct finder_name {
	enum finder_kind kind;
	struct span text; /* as it was given; borrowed */
	const char *name; /* DNS, SRV: what is looked up */
	uint16_t port;	  /* DNS */
};
/* Splits lists, judges each. ERR_INVALID, ERR_LIMIT. */
CHECKED errc finder_names(const char *const *lists, size_t n_lists, struct arena *arena, struct finder_name **out, size_t *n, struct err *err);

struct finder_known {
	struct span *v; /* perhaps one twice */
	size_t n;
	bool tried, looked; /* as in finder_view */
};
struct finder_watch;
/* looked: after each round, on the watch's thread, and not after finder_watch_close; it must not call anything of this. */
CHECKED errc finder_watch_open(const struct finder_config *cfg, void (*looked)(void *arg), void *arg, struct finder_watch **out, struct err *err);
void finder_watch_close(struct finder_watch *w); /* waits for nobody; NULL is fine */
CHECKED errc finder_watch_known(struct finder_watch *w, struct arena *arena, struct finder_known *out, struct err *err);
