/* head/head_annotations_int.h - what the files of exemplars and metadata share: head_exemplar_ring.c, head_exemplars.c, head_metadata.c.
 *
 * Locks, beside those of head_int.h and never under them:
 *
 *     head.reclaim_mu ─▶ exemplar_ring.mu, metadata_table.mu ─▶ symbols.mu
 */
#pragma once
#include "head/head_int.h"

/* ---- one tenant's exemplars (head_exemplar_ring.c) ---- */

#define EXEMPLAR_WIRE_BYTES (1 * KIB) /* an exemplar's own labels, canonical: 128 characters of 4 bytes, or 64 labels of two, are below */
#define EXEMPLAR_RING_BYTES (3 * GIB) /* of all labels of a tenant: places in the ring of bytes have 32 bits */
#define EXEMPLAR_CHARACTERS 128	      /* names and values together, by OpenMetrics */
enum { EXEMPLAR_NONE = UINT32_MAX };

/* 32 bytes, and its labels (a trace id: 46). */
struct exemplar_entry {
	int64_t t;
	uint64_t v;
	uint32_t series;
	uint32_t prev, next; /* of its series, in order; places in the ring */
	uint32_t at;	     /* its labels' first byte in the ring of bytes; they end where the next entry's begin */
};

/* Labels are pairs of head/head_symbols.c: they outlive the series in the windows. */
struct exemplar_series {
	uint32_t first, last; /* oldest and newest by exemplar order; EXEMPLAR_NONE while empty */
	uint32_t cursor;      /* where replay put the last one */
	uint32_t n;
	uint32_t hash;
	uint32_t serial;	/* not that of any other series that had this id */
	uint32_t record, place; /* where the record being written tells of it */
	uint32_t n_pairs;
	uint32_t pairs[];
};

/* Entries stand in order of arrival and the oldest goes first, so both rings are first in, first out. */
struct exemplar_ring {
	struct head *head;
	pthread_mutex_t mu;
	_Atomic uint32_t n; /* written under mu, read by whoever looks for the largest */
	struct exemplar_entry *v;
	uint32_t first, cap;
	uint64_t first_seq; /* exemplars that arrived before the oldest */
	uint8_t *bytes;
	size_t bytes_first, bytes_n, bytes_cap;
	size_t series_bytes;
	struct exemplar_series **series; /* by id; a free one: (next free id << 1 | 1) */
	uint32_t n_ids, cap_ids, free_id, n_series, next_serial;
	uint32_t *slots; /* id + 1, open addressing by hash */
	uint32_t mask;
	uint32_t record; /* number of the record being written */
	uint64_t ticket; /* the youngest that put one here */
};

enum ring_order { RING_NEWEST, RING_ANYWHERE };
enum ring_verdict { RING_STORED, RING_DUPLICATE, RING_LATE, RING_NOMEM };

CHECKED errc exemplar_ring_new(struct head *h, struct exemplar_ring **out, struct err *err);
void exemplar_ring_free(struct exemplar_ring *r);
/* The rest under ring.mu. `wire` is canonical, its labels are l. */
struct exemplar_series *exemplar_ring_find(const struct exemplar_ring *r, struct labels l, uint32_t hash, uint32_t *id);
uint32_t exemplar_ring_hash(const struct head *h, struct span wire);
/* Judges x (canonical labels) and puts it into its series, made when absent. RING_NEWEST: only behind the newest, as requests do, where a repetition is
 * looked for among the last few; RING_ANYWHERE: into its place in order. drop: the tenant's oldest gives its place. */
enum ring_verdict exemplar_ring_put(
	struct exemplar_ring *r, struct labels l, uint32_t hash, const struct exemplar *x, enum ring_order order, bool drop, uint32_t *id);
/* Removes the oldest k. */
void exemplar_ring_drop(struct exemplar_ring *r, uint32_t k);
/* Gives memory back when little of it is used. */
void exemplar_ring_shrink(struct exemplar_ring *r);
/* The exemplar at a place; labels into `wire` (EXEMPLAR_WIRE_BYTES). */
void exemplar_ring_get(const struct exemplar_ring *r, uint32_t at, struct exemplar *x, uint8_t *wire);
int exemplar_ring_cmp(const struct exemplar_ring *r, uint32_t at, const struct exemplar *x); /* sign of (entry - x) */
static inline uint64_t exemplar_ring_seq(const struct exemplar_ring *r, uint32_t at)
{
	return r->first_seq + (at >= r->first ? at - r->first : at + r->cap - r->first);
}
static inline uint32_t exemplar_ring_at(const struct exemplar_ring *r, uint64_t seq)
{
	uint64_t at = r->first + (seq - r->first_seq);
	return (uint32_t)(at >= r->cap ? at - r->cap : at);
}
static inline struct exemplar_series *exemplar_ring_series(const struct exemplar_ring *r, uint32_t id)
{
	uintptr_t p = (uintptr_t)r->series[id];
	return p & 1 ? NULL : (struct exemplar_series *)p;
}
static inline size_t exemplar_ring_bytes(const struct exemplar_ring *r)
{
	return atomic_load_explicit(&r->n, memory_order_relaxed) * sizeof *r->v + r->bytes_n + r->series_bytes;
}
bool exemplar_ring_sane(const struct exemplar_ring *r); /* for tests */

/* A labels array of pairs; v has room for n_pairs. */
static inline struct labels pairs_labels(const struct head *h, const uint32_t *pairs, uint32_t n, struct label *v)
{
	for (uint32_t i = 0; i < n; i++)
		v[i] = head_pair_label(head_pair(&h->symbols, pairs[i]));
	return (struct labels){v, n};
}

/* Neither exemplars nor metadata of all tenants take more than this part of the head's memory, whatever their own limits are: windows can be cut to make room,
 * these can't. */
static inline uint64_t annotations_bytes_max(const struct head *h)
{
	return h->cfg.max_memory_bytes / 8;
}

/* ---- exemplars of all tenants (head_exemplars.c) ---- */

size_t exemplars_bound(const struct head *h, const struct head_annotations *a);
CHECKED errc exemplars_append(struct head *h, const struct wal_ticket *ticket, struct head_annotations *a, struct buf *records, struct err *err);

/* ---- metadata (head_metadata.c) ---- */

enum {
	METADATA_FAMILY_BYTES = 4096, /* a metric's name, as a label's value */
	METADATA_HELP_BYTES = 8192,   /* the longest known are some hundred */
	METADATA_UNIT_BYTES = 256,
	METADATA_PER_FAMILY = 16, /* different ones that are kept, the newest */
};
size_t metadata_bound(const struct head *h, const struct head_annotations *a);
CHECKED errc metadata_append(struct head *h, const struct wal_ticket *ticket, struct head_annotations *a, struct buf *records, struct err *err);
struct metadata_table;
void metadata_table_free(struct metadata_table *t);
/* For a tenant that is deleted: exemplars up to then; what was not said since. */
void exemplars_drop(struct tenant *tn, int64_t upto_ms);
void metadata_drop(struct tenant *tn, int64_t upto_ms);
