/* cluster/cluster_control_int.h - what the files of the controller share: what is seen, what is planned, and who speaks to whom. */
#pragma once
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include "base/arena.h"
#include "base/metrics.h"
#include "cluster/control.h"
#include "net/net.h"

/* ---- what is seen: one moment, all memory of one arena ---- */

struct control_set { /* a StatefulSet */
	struct span name, ring, service;
	uint32_t first, replicas; /* the numbers that are wanted: first .. first + replicas - 1 */
	bool leaving;		  /* is being deleted: nothing is wanted of it */
	bool blind;		  /* its template does not give its Pods the label, so none of them is seen */
};

enum control_drain { DRAIN_UNKNOWN, DRAIN_ACTIVE, DRAIN_DRAINING, DRAIN_DRAINED };

/* What a member said of itself last. */
struct control_answer {
	bool asked;   /* at least once */
	bool reached; /* it answered at all */
	bool ready;
	enum control_drain drain;
	uint64_t epoch; /* 0: no ring, or not known */
};

struct control_pod {
	struct span name, uid, ip, node, zone; /* empty: not known */
	struct span set;		       /* the StatefulSet that owns it; empty: none. Then it is told of rings and never in one */
	bool running;			       /* its phase */
	bool terminating;
	struct control_answer answer;
};

struct control_absence { /* since when a member of the ring was not seen to serve */
	struct span address;
	int64_t since_ms;
};

struct control_view {
	const struct control_config *cfg;
	struct span base;		/* the base ConfigMap's text; p == NULL: there is none */
	struct span in_force;		/* the ring as published last; p == NULL: none */
	const struct control_set *sets; /* sorted by name */
	size_t n_sets;
	const struct control_pod *pods; /* sorted by name */
	size_t n_pods;
	const struct control_absence *absences; /* as the plan before left them */
	size_t n_absences;
	int64_t now_ms; /* monotonic */
};

/* ---- cluster_control_plan.c: pure ---- */

enum control_state { MEMBER_JOINING, MEMBER_ACTIVE, MEMBER_AWAY, MEMBER_DRAINING, MEMBER_GONE, MEMBER_STATES };
extern const char *const control_state_names[MEMBER_STATES];

struct control_member {
	struct span ring, address, az;
	const struct control_pod *pod; /* NULL: there is none */
	const struct control_set *set; /* NULL: of no StatefulSet that is there */
	uint32_t ordinal;
	enum control_state state;
	bool was_in, in; /* the ring */
	bool ask_drain;
	int64_t since_ms; /* AWAY: the first time that it did not serve; else -1 */
	const char *reason;
};

struct control_plan {
	struct control_member *members; /* by ring as the base has them, set, number */
	size_t n_members;
	struct span text;   /* the ring that should be in force; p == NULL: none yet, or nothing can be said */
	bool change;	    /* text says other than view.in_force does */
	const char **words; /* what is waited for, or wrong, a sentence each */
	size_t n_words;
	struct control_absence *absences; /* for the next view */
	size_t n_absences;
	int64_t wake_ms; /* when time alone may change the plan; -1: never */
};
/* All memory in `arena`. ERR_INVALID: the base can't be read, or what would come of it is no valid ring: nothing may change. ERR_NOMEM. */
CHECKED errc control_plan(const struct control_view *v, struct arena *arena, struct control_plan *out, struct err *err);

/* ---- cluster_control_text.c: rings in, rings out ---- */

struct control_endpoint {
	struct span address, az;
	bool taken; /* the plan's: a Pod that is there has this address */
};
struct control_ring {
	struct span name;
	struct control_endpoint *endpoints; /* of the text; the plan puts its own */
	size_t n_endpoints;
	bool by_hand; /* no StatefulSet has its name: what stands there stays */
	json_t *object;
};
/* The rings of a text, all memory in the arena but for *root, which is the caller's to json_decref and holds `object`. `name` for messages. */
CHECKED errc control_rings_read(
	const char *name, struct span text, struct arena *arena, json_t **root, struct control_ring **out, size_t *n, struct err *err);
/* Every key as it was, but for the endpoints. Rings without endpoints are left out. */
CHECKED errc control_rings_write(const struct control_ring *rings, size_t n, bool az_aware, struct arena *arena, struct span *out, struct err *err);
/* What tells a text that this program wrote from one that a person changed. */
uint64_t control_text_hash(struct span text);

/* ---- cluster_control_objects.c: what the API's objects say, and nothing more of them ---- */

enum kube_kind { KUBE_SETS, KUBE_PODS, KUBE_BASE, KUBE_GENERATED, KUBE_NODES, KUBE_KINDS };

struct kube_map { /* a ConfigMap */
	struct span version;
	struct span text;    /* of the file's key; p == NULL: it has none */
	struct span written; /* the annotation: control_text_hash of what was written last; empty: none */
};

struct kube_object {
	struct arena arena;
	struct span name;
	enum kube_kind kind;
	union {
		struct control_set set;
		struct control_pod pod;
		struct kube_map map;
		struct span node_zone;
	};
};
/* NULL without memory, or (err says so) when it is not such an object. */
struct kube_object *kube_object_read(enum kube_kind kind, const struct control_config *cfg, const json_t *o, struct err *err);
void kube_object_free(struct kube_object *o);
#define KUBE_RING_LABEL "controller.receive.thanos.io/hashring"
#define KUBE_ZONE_LABEL "topology.kubernetes.io/zone"
#define KUBE_WRITTEN "varve.control/written"

/* ---- cluster_control_kube.c: one request to the API ---- */

struct kube;
CHECKED errc kube_open(const struct control_config *cfg, struct kube **out, struct err *err);
void kube_cancel(struct kube *k); /* running and later requests: ERR_CANCELED */
void kube_close(struct kube *k);
const char *kube_namespace(const struct kube *k);
/* `path` from the host on, with its query; body NULL: none. *answer is the caller's to json_decref; NULL for an answer without JSON.
 * ERR_NOTFOUND 404, ERR_EXISTS 409 (there, or changed meanwhile), ERR_DENIED 401 403, ERR_INVALID other 4xx, ERR_AGAIN 429 5xx, ERR_NET, ERR_TIMEOUT. */
CHECKED errc kube_call(
	struct kube *k, const char *method, const char *path, const char *content_type, const json_t *body, json_t **answer, struct err *err);
/* A watch: every line of the answer goes to take(). Returns OK when the server ended it, ERR_NOTFOUND with `gone` for 410. */
CHECKED errc kube_stream(
	struct kube *k, const char *path, errc (*take)(void *arg, struct span line, struct err *err), void *arg, bool *gone, struct err *err);

/* ---- cluster_control_watch.c: what the API has, kept up to date ---- */

struct watches;
/* woken(arg) after every change, from a watching thread. */
CHECKED errc watches_open(
	const struct control_config *cfg, struct kube *k, void (*woken)(void *arg), void *arg, struct watches **out, struct err *err);
void watches_close(struct watches *w);			     /* after kube_cancel */
bool watches_synced(struct watches *w, char *why, size_t n); /* everything was listed once */
bool watches_fresh(struct watches *w, char *why, size_t n);  /* and every watch stands */
/* What there is, copied into the arena. */
struct watched {
	struct control_set *sets;
	size_t n_sets;
	struct control_pod *pods;
	size_t n_pods;
	struct kube_map base, generated;
	bool has_base, has_generated;
};
CHECKED errc watches_view(struct watches *w, struct arena *arena, struct watched *out, struct err *err);

/* What the API answered to a write of ours, before the watch tells of it. */
CHECKED errc watches_put(struct watches *w, enum kube_kind kind, const json_t *object, struct err *err);

/* ---- cluster_control_lease.c: one of many ---- */

struct lease;
CHECKED errc lease_open(const struct control_config *cfg, struct kube *k, void (*woken)(void *arg), void *arg, struct lease **out, struct err *err);
bool lease_held(struct lease *l); /* now, and for the moment */
void lease_holder(struct lease *l, char *out, size_t n);
void lease_close(struct lease *l, bool release); /* before kube_cancel when it is to be let go */

/* ---- cluster_control_members.c: speaking with members; the only place that knows their endpoints ---- */

struct members;
struct members_target { /* somebody to ask and tell */
	struct span name, uid, ip;
	bool eager; /* something is waited for: ask often */
	bool drain; /* tell it to */
};
CHECKED errc members_open(const struct control_config *cfg, void (*woken)(void *arg), void *arg, struct members **out, struct err *err);
void members_close(struct members *m);
/* Who is asked from now on; who is not named is forgotten. `text` (p == NULL: none) and its epoch are told to whoever says another epoch. */
CHECKED errc members_set(struct members *m, const struct members_target *v, size_t n, struct span text, uint64_t epoch, struct err *err);
/* What it said last; zeros for who is not known. */
struct control_answer members_answer(struct members *m, struct span uid);
/* How many of those that answer say another epoch. */
size_t members_behind(struct members *m);
