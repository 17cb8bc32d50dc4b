/* cluster/ring.h - the hashring: which nodes hold a series.
 *
 * A ring file is Thanos' hashrings.json, and every series is placed exactly where Thanos Receive places it:
 *
 *     tenant ──first ring that matches──▶ ring ──(shuffle sharding)──▶ the tenant's sub-ring ─┐
 *     tenant ff (name ff value ff)* ──XXH64──▶ hash ──────────────────────────────────────────┴─▶ replica 0, 1, ... factor-1
 *
 * A set of rings is validated as a unit: it is whole and right, or refused with the line and the reason. It never changes once it is made, so any
 * number of threads may use one; it lives as long as somebody counts on it. Two processes that read the same rings with the same factor, however
 * they are written down, call them by the same epoch.
 *
 * Nodes are numbered by the set, 0 to ring_set_n_nodes() - 1 in the order of their addresses: an address is one node, whichever rings it is in.
 * The file in force, and its changes: cluster/ring_file.h.
 */
#pragma once
#include "base/bytes.h"
#include "base/err.h"
#include "base/labels.h"
#include "base/limits.h"
#include "base/span.h"

struct ring_set;
struct ring;

enum ring_algorithm { RING_KETAMA, RING_HASHMOD };
const char *ring_algorithm_name(enum ring_algorithm a);
bool ring_algorithm_parse(const char *s, enum ring_algorithm *out);

struct ring_options {
	enum ring_algorithm algorithm; /* of rings that name none */
	uint32_t replication_factor;   /* 1 .. LIMIT_RING_FACTOR */
};

/* `name` is what messages call the text: a path, or "--hashrings". ERR_INVALID, ERR_LIMIT: "<name>:<line>: <what is wrong>"; ERR_NOMEM. */
CHECKED errc ring_set_parse(const char *name, struct span json, const struct ring_options *opt, struct ring_set **out, struct err *err);
struct ring_set *ring_set_ref(struct ring_set *s); /* s */
void ring_set_unref(struct ring_set *s);	   /* NULL is fine */

/* The hash of what the rings say and of the factor; docs/cluster.md has its bytes. Never 0. */
uint64_t ring_set_epoch(const struct ring_set *s);
uint32_t ring_set_factor(const struct ring_set *s);
/* The text and the options that it was made of: to show it, and to remember it over a restart. */
struct span ring_set_json(const struct ring_set *s);
struct ring_options ring_set_options(const struct ring_set *s);

struct ring_node {
	struct span address; /* as the file has it; NUL-terminated as well */
	struct span az;	     /* in the first ring that has it; empty: none */
};
uint32_t ring_set_n_nodes(const struct ring_set *s);
const struct ring_node *ring_set_node(const struct ring_set *s, uint32_t node);
bool ring_set_find(const struct ring_set *s, struct span address, uint32_t *node);

/* What Thanos takes and does something unexpected with, a line each, every one ended by a newline: for the log and `varve ring check`. */
struct span ring_set_remarks(const struct ring_set *s);

/* ---- rings ---- */

struct ring_info {
	struct span name; /* may be empty */
	enum ring_algorithm algorithm;
	bool glob;		    /* tenants are patterns */
	const struct span *tenants; /* none: every tenant */
	uint32_t n_tenants;
	uint32_t n_nodes, n_zones; /* of the ring; of a sub-ring: of the ring that it is of */
	uint32_t shard_size;	   /* 0: no shuffle sharding */
};
uint32_t ring_set_n_rings(const struct ring_set *s);
const struct ring_info *ring_set_info(const struct ring_set *s, uint32_t i);
/* The i-th ring whole, before shuffle sharding. Counted: ring_unref. */
struct ring *ring_set_ring(struct ring_set *s, uint32_t i);

/* The ring of a tenant, or its sub-ring of it; *out is NULL when no ring serves the tenant. Counted: ring_unref. A sub-ring that was not asked for lately is
 * made first (less than a millisecond). ERR_NOMEM; ERR_INVALID: a name above LIMIT_RING_NAME_BYTES, which no valid tenant has. */
CHECKED errc ring_for_tenant(struct ring_set *s, struct span tenant, struct ring **out, struct err *err);
void ring_unref(struct ring *r); /* NULL is fine */
struct ring_set *ring_set_of(const struct ring *r);
const struct ring_info *ring_info(const struct ring *r);
uint32_t ring_index(const struct ring *r); /* of its ring in the set */
/* The numbers of its nodes, of a sub-ring those that were drawn. Borrowed from r. */
uint32_t ring_nodes(const struct ring *r, const uint16_t **nodes);
/* The zone of its k-th node; empty: none. */
struct span ring_az(const struct ring *r, uint32_t k);

/* external_labels of the first ring that names the tenant (a pattern names nobody), sorted; borrowed from s. */
struct labels ring_external_labels(const struct ring_set *s, struct span tenant);

/* ---- where a series goes ---- */

/* XXH64 over tenant ff (name ff value ff)*, labels as the sender wrote them: neither sorted nor judged. No allocation; a series of up to a kibibyte is put
 * together on the way and hashed in one go, a longer one is hashed label by label. ring_hash_end leaves it at the tenant, ready for the next series. */
enum { RING_HASH_BYTES = 1024, RING_HASH_STATE_BYTES = 96 };
struct ring_hash {
	uint32_t n, tenant_bytes; /* in buf: all, and of them the tenant's with its ff */
	bool streaming;		  /* the state has it all, and goes on */
	uint64_t state[RING_HASH_STATE_BYTES / 8];
	char buf[RING_HASH_BYTES];
};
/* tenant: at most RING_HASH_BYTES - 1 bytes; a valid one (base/tenant.h) always is. */
void ring_hash_begin(struct ring_hash *h, struct span tenant);
void ring_hash_add_long(struct ring_hash *h, struct span name, struct span value);
uint64_t ring_hash_end(struct ring_hash *h);

static inline void ring_hash_add(struct ring_hash *h, struct span name, struct span value)
{
	if (UNLIKELY(h->streaming || name.n >= sizeof h->buf || value.n >= sizeof h->buf || h->n + name.n + value.n + 2 > sizeof h->buf)) {
		ring_hash_add_long(h, name, value);
		return;
	}
	char *p = h->buf + h->n;
	copy_short(p, name.p, name.n);
	p[name.n] = '\xff';
	copy_short(p + name.n + 1, value.p, value.n);
	p[name.n + 1 + value.n] = '\xff';
	h->n += (uint32_t)(name.n + value.n + 2);
}

/* The set's factor of node numbers, replica 0 first. O(1). All different; but for hashmod and a hash less than the factor below 2^64, whose sum wraps: there, as
 * in Thanos, two replicas may be one node (a sender has to look for such a hash; who counts replicas counts nodes). */
void ring_owners(const struct ring *r, uint64_t hash, uint32_t *nodes);

/* ---- how much each has, and what a change moves: exact, by the arcs of the ring and not by samples ---- */

/* What part of all series each node holds a replica of, by the set's node numbers (0 for who is not in the ring); they add up to the factor. */
CHECKED errc ring_shares(const struct ring *r, double *shares, struct err *err);

struct ring_change {
	double moved;		 /* of all replica slots: those whose node did not hold the series before */
	double ideal;		 /* the least that must move so that every node has an equal share */
	uint32_t added, removed; /* nodes of the ring */
};
/* From `was` to `now`, two rings of different sets, nodes compared by address. */
CHECKED errc ring_compare(const struct ring *was, const struct ring *now, struct ring_change *out, struct err *err);
/* The ring of `was` that is `now`'s i-th: of the same name, or without names the one in its place. false: there was none. */
bool ring_set_match(const struct ring_set *was, const struct ring_set *now, uint32_t i, uint32_t *old);
