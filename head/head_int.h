/* head/head_int.h - what the files of head/ share. Reading order: head_pool.c, head_rows.c, head_symbols.c, head_series.c, head_chunkfile.c,
 * head_piece.c, head_open.c, head_chain.c, head_leaf.c, head_hist.c, head_hist_chunks.c, head_window.c, head_postings.c, head_tenant.c, head_spelling.c, head_append.c, head_append_hist.c, head_log.c, head_replay.c, head_replay_tables.c, head_replay_defs.c, head_replay_samples.c, head_replay_lanes.c, head_replay_load.c, head_cut.c, head_cut_order.c, head_cut_file.c, head_cut_walk.c, head_cut_spool.c, head_cutter.c, head_checkpoint.c,
 * head_snapshot.c, head_snapshot_write.c, head_snapshot_load.c, head_snapshot_pairs.c, head_snapshot_hist.c, head_source.c, head_walk.c, head_usage.c, head_cardinality.c, head_full.c, head.c.
 *
 * Exemplars and metadata stand aside: head_annotate.c, head_exemplar_ring.c, head_exemplars.c, head_metadata.c, with head_annotations_int.h.
 *
 * Locks, outermost first; a function that ends in _locked needs the one its comment names:
 *
 *     shard.mu ─▶ tenant.mu ─▶ head.windows_mu ─▶ { chunkfile.mu, fds.mu, symbols.mu, cuts_mu }
 *
 * A shard guards its table, its series and its part of every window. A frozen part is never written again, so whoever saw it frozen
 * (or froze it) under the lock may read it without.
 */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "head/head.h"

#ifdef HEAD_HASH_BITS /* tests: a hash so small that collisions are common */
#define HEAD_VERIFY 1
#endif

/* ---- fixed limits of the head ---- */

#define HEAD_RANGE_MIN_MS INT64_C(60000)
#define HEAD_RANGE_MAX_MS INT64_C(86400000) /* times inside a window are 32-bit offsets */
#define HEAD_LOG_GROUP_BYTES                                                                                                                         \
	(1 * MIB)			   /* a record, or a group of definitions and samples, is closed at this size: what one
						 damaged frame drags along stays small, and it is far below a frame */
#define HEAD_SERIES_WIRE_BYTES (1 * MIB)   /* a series' canonical labels, whatever the flags allow: a group holds at least one */
#define HEAD_CUT_BYTES_PER_S (256 * MIB)   /* block bytes per second while cutting: a disk that also takes the log's syncs */
#define HEAD_CHUNK_BUFFER_BYTES (64 * KIB) /* chunk file write size of a large window; a small one writes 4 KiB at a time */
enum {
	HEAD_SHARDS_MAX = 256,
	HEAD_ALIASES_PER_SERIES = 4, /* spellings of one label set that are found without decoding; senders have one */
	HEAD_RAW_SAMPLES = 240,	     /* a raw leaf is split above; as many as a chunk can have */
	HEAD_RAW_LEAVES = 64,	     /* raw leaves of a series before the farthest one is sealed: 245 kB */
	HEAD_RAW_LEAVES_TIGHT = 2,   /* the same above 60 % of the memory limit */
	HEAD_INDEX_SERIES =
		256, /* of a window's part, from which on postings follow by themselves; those of fewer are made in no time when asked for */
	HEAD_SPILL_SERIES = 256, /* of a window's part, from which on open chunks leave memory before they are full */
	HEAD_SPILL_PIECES = 2,	 /* full pieces of an open chunk that leave for the chunk file together */
	HEAD_FDS = 8,		 /* chunk files open at once */
	HEAD_SLICE = 512,	 /* series handled under one hold of a shard's lock by background work */
	HEAD_SELECT_BATCH = 64,	 /* series read at once by an iterator */
};

static inline int64_t floor_to(int64_t t, int64_t range)
{
	int64_t r = t % range;
	return t - (r < 0 ? r + range : r);
}

/* Whether t lies in [start, start + range). Without sign: from one end of time to the other is more than an int64_t. */
static inline bool range_has(int64_t start, int64_t range, int64_t t)
{
	return t >= start && (uint64_t)t - (uint64_t)start < (uint64_t)range;
}

/* ---- memory: size classes over blocks that are freed together (head_pool.c) ---- */

enum { POOL_CLASSES = 24 };
struct pool_block;
struct pool_big;
struct head_pool {
	uint8_t *at;
	size_t left;
	struct pool_block *blocks;
	struct pool_big *bigs;
	void *free[POOL_CLASSES];
	size_t held_bytes;
	_Atomic uint64_t *total; /* two counters that follow held_bytes; the second may be NULL */
	_Atomic uint64_t *total2;
};
void head_pool_init(struct head_pool *p, _Atomic uint64_t *total, _Atomic uint64_t *total2);
void head_pool_destroy(struct head_pool *p);
void *head_pool_alloc(struct head_pool *p, size_t n);	     /* aligned to 8, not zeroed; NULL: out of memory */
void head_pool_free(struct head_pool *p, void *v, size_t n); /* n as given to alloc */
size_t head_pool_round(size_t n);			     /* what alloc(n) really gives */
/* Aligned to a cache line and without loss to a size class; goes with the pool, never alone. */
void *head_pool_take(struct head_pool *p, size_t n);
/* Zeroed tables that are filled at random: their pages are there at once, huge ones where they fit. */
void *head_table_alloc(size_t n, size_t size);
void head_table_free(void *v, size_t n, size_t size);

/* ---- series and their aliases: objects in rows that go back to the system when nothing is in them (head_rows.c) ---- */

struct row;
struct row_block;
struct head_rows {
	struct row_block **blocks; /* by address */
	struct row_block *newest;
	uint32_t n_blocks, cap_blocks;
	struct row **room; /* two lists of each class: rows that have objects and room, rows without objects */
	uint32_t n_classes;
	size_t held_bytes;
	_Atomic uint64_t *total; /* follows held_bytes */
};
enum { HEAD_ROW_BYTES = 3 * 4096 };
CHECKED errc head_rows_init(struct head_rows *rs, uint32_t n_classes, _Atomic uint64_t *total, struct err *err);
void head_rows_destroy(struct head_rows *rs);
/* An object of `bytes`, a multiple of 8 and always the same for a class; its content is what the last user left there, or zero. NULL: out of memory. */
void *head_rows_take(struct head_rows *rs, uint32_t class, size_t bytes);
/* Its second eight bytes are used while it is free, the rest stays. false: it is none of theirs. */
bool head_rows_free(struct head_rows *rs, void *v);
/* Gives rows without objects back, of one block: *at goes from 0 on; false: that was the last. Their memory stays readable, as zeros, and goes to the same class only. */
bool head_rows_give_back(struct head_rows *rs, uint32_t *at);

/* ---- label names and label pairs, shared by all tenants (head_symbols.c) ---- */

struct symbol {
	uint32_t refs, hash, n;
	char s[];
};
/* Two to a cache line. */
enum { PAIR_INLINE = 12 };
struct label_pair {
	struct symbol *name;
	uint32_t refs;		 /* 0: free */
	uint32_t rank;		 /* the cutter's alone: place in the order of a window's pairs; 0 at rest. Of a free one: the next free id */
	uint32_t n;		 /* bytes of the value */
	char bytes[PAIR_INLINE]; /* the value; a longer one's address in the last eight */
};
_Static_assert(sizeof(struct label_pair) == 32, "nothing lost between them");
enum { HEAD_SERIES_CLASSES = LIMIT_LABELS_PER_SERIES + 24 }; /* one for each usual number of labels, then growing ones */
enum { PAIRS_PER_PAGE = 4096, PAIR_PAGES = 1 << 20 };
/* What becomes of a page's ids. */
struct pair_page {
	uint16_t used, fresh; /* pairs in it; ids from here on were never used since its memory came */
	uint16_t free;	      /* the first free id in it + 1, they are linked by rank; 0: none */
	bool listed, away;    /* it has room and is in the list of such pages; its memory was given back */
	uint32_t next;	      /* in that list: page + 1 */
};
enum { SYMBOLS_RECENT = 32 };
struct symbols {
	pthread_mutex_t mu;
	struct head_pool pool;
	uint64_t *slots; /* open addressing: the top 16 bits of the hash over the symbol's address, so that a miss touches no symbol */
	uint32_t n, mask;
	uint64_t *pair_slots; /* hash << 32 | id + 1 */
	uint32_t n_pairs, n_pair_slots;
	uint32_t n_pages, room;		 /* pages that there are; the first one that has room + 1, 0: none */
	struct label_pair **pages;	 /* PAIR_PAGES, never moved: a pair of a live series is read without the lock */
	struct pair_page *page_states;	 /* of each */
	uint32_t recent[SYMBOLS_RECENT]; /* the pair that stood in each place of the series before */
	uint8_t secret[192];
};
CHECKED errc head_symbols_init(struct symbols *sy, _Atomic uint64_t *total, struct err *err);
void head_symbols_destroy(struct symbols *sy);
/* Interns all or nothing. */
CHECKED errc head_pairs_ref(struct symbols *sy, struct labels l, uint32_t *ids, struct err *err);
void head_pairs_unref(struct symbols *sy, const uint32_t *ids, uint32_t n);
/* For who loads a snapshot: of many different pairs, HEAD_PAIRS_LOAD at most, a reference each; ERR_NOMEM: the first *n have one. reserve: so many more, if there is
 * memory. */
enum { HEAD_PAIRS_LOAD = 32 };
CHECKED errc head_pairs_load(struct symbols *sy, const struct label *l, uint32_t *n, uint32_t *ids, struct err *err);
void head_pairs_reserve(struct symbols *sy, uint64_t n);
/* Gives memory back that nothing is in: page *at, which goes from 0 on; false: that was the last, and the tables fit what is left. */
bool head_symbols_give_back(struct symbols *sy, uint32_t *at);
/* The id of a pair that some live series has, or false. For queries. */
bool head_pair_find(struct symbols *sy, struct span name, struct span value, uint32_t *id);

static inline struct label_pair *head_pair(const struct symbols *sy, uint32_t id)
{
	return &sy->pages[id / PAIRS_PER_PAGE][id % PAIRS_PER_PAGE];
}
static inline struct span head_pair_value(const struct label_pair *p)
{
	const char *large;
	if (LIKELY(p->n <= PAIR_INLINE))
		return (struct span){p->bytes, p->n};
	memcpy(&large, p->bytes + PAIR_INLINE - sizeof large, sizeof large);
	return (struct span){large, p->n};
}
static inline struct label head_pair_label(const struct label_pair *p)
{
	return (struct label){{p->name->s, p->name->n}, head_pair_value(p)};
}

/* ---- series (head_series.c) ---- */

struct hash128 {
	uint64_t hi, lo;
};

/* How often the log has what samples of the series need to be read: its definition, then (KEY_*) the change of its key. */
enum def_state { DEF_NONE, DEF_ONCE, DEF_TWICE, KEY_NONE, KEY_ONCE };

#define CHECKPOINT_MARK UINT32_C(0x80000000)

/* Structs are reused for series of as many labels and never unmapped, so that an alias can look whether `ref` is still the one it knew: of memory that was given back it
 * is 0. What a known sample needs is the first 64 bytes. */
struct series {
	_Atomic uint64_t ref; /* never reused; 0: free, `ws` links the free ones */
	struct wseries *ws;   /* in the window with serial ws_window, the one used last; NULL: none */
	struct hash128 hash;  /* of its canonical bytes: the table holds 16 bits of it, this decides */
	uint64_t keys[2];     /* what the log tells its values against, see wal_record.c */
	uint64_t def_pos;     /* log position behind the newest counted copy of the definition or key */
	uint32_t ws_window;
	uint32_t newest_window; /* the greatest serial of a window it was ever in */
	uint32_t tenant;
	uint32_t checkpoint; /* CHECKPOINT_MARK and the number of the last checkpoint that holds it, or its number in a snapshot */
	uint32_t n_windows;
	uint16_t n_pairs; /* constant, read without the lock: beside no bit-field */
	uint8_t n_aliases : 3, def_state : 3, key_no : 1, key_changed : 1;
	uint8_t shard;
	uint32_t pairs[]; /* in name order */
};

/* Of refs, counted from 1, no more than these bits will ever be in use. */
#define HEAD_REF_MASK ((UINT64_C(1) << 56) - 1)

/* 32 bytes: every series that 2.0 writes has one. */
struct alias {
	struct series *series;
	uint64_t ref : 56;  /* the series' when it was made: another one now, and the alias is stale */
	uint64_t shard : 8; /* the series' */
	struct hash128 hash;
#ifdef HEAD_VERIFY
	struct span wire;
#endif
};

/* Address in the low 48 bits, 16 bits of the hash above; bit 0: an alias, else a series; 0: empty. Eight to a cache line: at a million series the table is in the
 * cache, and one miss leads to the series. */
typedef uint64_t table_slot;

struct shard {
	_Alignas(64) pthread_mutex_t mu;
	table_slot *slots;
	uint64_t n_slots_used, mask;
	struct head_pool pool;				 /* a small shard's series one by one, and what is too large for a row */
	struct head_rows rows;				 /* series by class, behind them aliases */
	struct series *free_series[HEAD_SERIES_CLASSES]; /* of the pool's */
	uint64_t n_aliases;
	uint64_t n_series;
	uint64_t n_removed;	      /* series since aliases were swept and memory was given back */
	struct chunk_sample *scratch; /* HEAD_RAW_SAMPLES + 1, for one decoded leaf */
	uint8_t *scratch_bytes;
};
enum { HEAD_CHUNK_MAX_BYTES = 8192 }; /* 240 samples of 20 bytes, record header and checksum */
#define HEAD_RECORD_MAX_BYTES (MIB)   /* in the chunk file: histograms are up to LIMIT_HISTOGRAM_PACKED_BYTES each */

struct tenant;
struct hash128 head_hash(const struct head *h, const struct tenant *tn, struct span wire);
/* 2.0 (head_spelling.c): of one symbol, and of a series from its symbols'. */
struct hash128 head_hash_symbol(const struct head *h, struct span symbol);
struct hash128 head_hash_refs(const struct head *h, const struct tenant *tn, const struct hash128 *symbols, const uint32_t *refs, uint32_t n_labels);
static inline uint32_t head_shard_of(const struct head *h, struct hash128 x);
static inline struct wal_keys series_keys(const struct series *s)
{
	return (struct wal_keys){{s->keys[0], s->keys[1]}, s->key_no, s->key_changed};
}

static inline table_slot head_slot_tag(struct hash128 x)
{
	return x.hi << 48;
}
static inline uintptr_t head_slot_address(table_slot s)
{
	return (uintptr_t)(s & ((UINT64_C(1) << 48) - 1));
}

/* All under the shard's lock. find gives 0 when absent; wire is looked at in HEAD_VERIFY builds only. */
uintptr_t head_table_find_locked(struct head *h, struct shard *sh, struct hash128 x, uint32_t tenant, struct span wire);
/* ERR_LIMIT, without words, when the tenant has max_series of them already (0: any number); exact whatever happens beside it. */
CHECKED errc head_series_new_locked(struct head *h, struct shard *sh, struct tenant *tn, struct hash128 x, struct labels l, uint64_t max_series,
	struct series **out, struct err *err);
/* Room for n series in all, so that the table need not grow step by step. Best effort. */
void head_table_reserve_locked(struct head *h, struct shard *sh, uint64_t n);
/* A series of a snapshot, whose pairs the caller has counted for it. *out NULL: it is there already. ERR_NOMEM: nothing was changed. */
CHECKED errc head_series_load_locked(struct head *h, struct shard *sh, struct tenant *tn, struct hash128 x, struct span wire, const uint32_t *pairs,
	uint32_t n, uint64_t ref, struct series **out, struct err *err);
void head_series_remove_locked(struct head *h, struct shard *sh, struct tenant *tn, struct series *s);
/* Asks for the memory that removing it will look at. */
static inline __attribute__((always_inline)) void head_series_remove_soon_locked(const struct shard *sh, const struct series *s)
{
	__builtin_prefetch(&sh->slots[s->hash.lo & sh->mask]);
}
/* Best effort: without memory the next request of this spelling is decoded again. */
void head_alias_add_locked(struct head *h, struct shard *sh, struct hash128 x, struct span wire, struct series *s, uint64_t ref);
void head_alias_remove_locked(struct shard *sh, struct alias *a);
/* After series were removed: whether so many are gone that sweeping and giving back is due; it begins to count again. Then the shard's memory fits what is left, as far as it can. */
bool head_shard_due(struct shard *sh);
void head_shard_give_back(struct head *h, struct shard *sh);
/* Looks at some slots from *at on and removes aliases of series that are gone; false at the end. One that a growing table carries past it stays until it is met, or
 * the next time. */
bool head_alias_sweep(struct shard *sh, uint64_t *at);
/* Appends the canonical bytes. */
void head_series_wire(const struct head *h, const struct series *s, struct buf *out);
int head_series_cmp(const struct head *h, const struct series *a, const struct series *b);

/* ---- its floats in a window, and its histograms ---- */

#include "head/head_floats_int.h"
#include "head/head_hist_int.h"

static inline uint32_t ws_hists(const struct wseries *ws)
{
	return ws->hist ? ws->hist->n : 0;
}
static inline bool ws_empty(const struct wseries *ws)
{
	return ws->n == 0 && ws_leaves(ws) == 0 && !ws_chained(ws) && ws_hists(ws) == 0;
}

static inline uint32_t head_spread(uint64_t x)
{
	return (uint32_t)(x * UINT64_C(0x9e3779b97f4a7c15) >> 32);
}
/* The place of a hash among n slots. Tables whose n is no power of two grow by half: a third less stands empty. */
static inline uint32_t head_place(uint32_t hash, uint32_t n)
{
	return (uint32_t)((uint64_t)hash * n >> 32);
}
static inline uint32_t head_place_next(uint32_t i, uint32_t n)
{
	return i + 1 == n ? 0 : i + 1;
}
/* Whether what has its home at `home` and stands at j may stand at i, which is before j: linear probing, wrapped at n. */
static inline bool head_place_may(uint32_t home, uint32_t i, uint32_t j)
{
	return i <= j ? home <= i || home > j : home <= i && home > j;
}

/* ---- windows and their postings (head_window.c, head_postings.c) ---- */

enum { POSTINGS_PER_PAGE = 256 };
struct posting {
	uint32_t n, newest;   /* entries, and the last of them */
	uint32_t first, last; /* pieces; none while n < 2 */
	uint32_t bytes;	      /* in pieces */
};
struct name_pairs {
	const struct symbol *name;
	uint32_t *v;
	uint32_t n, cap;
};

/* Series of a part, by local number; pages are never moved, and grow with the part: a window of a hundred series is small. */
enum { WS_PAGE_FIRST = 8, WS_PAGE_LAST = 512, WS_PAGES_GROWING = 6, WS_GROWING = WS_PAGE_LAST - WS_PAGE_FIRST };
struct ws_page {
	struct wseries *ws; /* aligned to a cache line */
	struct series **series;
};

struct wpart {
	struct head_pool pool;
	struct ws_page *pages;
	uint32_t n, n_pages, cap_pages;
	struct piece **pieces; /* pages of PIECES_PER_PAGE; the first one may be smaller */
	uint32_t n_pieces, cap_first, n_piece_pages, cap_piece_pages, free_piece, n_free_pieces;
	uint64_t *map; /* low half of the series' hash << 32 | local + 1, open addressing; made when it is first asked for */
	uint32_t map_mask, n_mapped;
	uint32_t n_indexed;		   /* series whose labels are in the postings: they follow in slices (head_window_index) */
	uint64_t *posting_slots;	   /* pair << 32 | its only number or its list, open addressing */
	uint32_t n_posting_slots, n_pairs; /* how many of them are taken */
	struct posting **postings;	   /* lists, in pages; the first one may be smaller */
	uint32_t n_postings, cap_first_postings, n_posting_pages, cap_posting_pages;
	struct name_pairs *names;
	uint32_t n_names, cap_names;
	uint64_t n_samples;
	int64_t min_t, max_t;
};

static inline uint32_t ws_page_of(uint32_t local, uint32_t *at)
{
	if (local >= WS_GROWING) {
		*at = (local - WS_GROWING) % WS_PAGE_LAST;
		return WS_PAGES_GROWING + (local - WS_GROWING) / WS_PAGE_LAST;
	}
	uint32_t k = 31 - (uint32_t)__builtin_clz((local + WS_PAGE_FIRST) / WS_PAGE_FIRST);
	*at = local + WS_PAGE_FIRST - ((uint32_t)WS_PAGE_FIRST << k);
	return k;
}
static inline struct wseries *part_ws(const struct wpart *p, uint32_t local)
{
	uint32_t at, page = ws_page_of(local, &at);
	return &p->pages[page].ws[at];
}
static inline struct series *part_series(const struct wpart *p, uint32_t local)
{
	uint32_t at, page = ws_page_of(local, &at);
	return p->pages[page].series[at];
}
static inline struct piece *part_piece(const struct wpart *p, uint32_t number)
{
	return &p->pieces[number / PIECES_PER_PAGE][number % PIECES_PER_PAGE];
}

enum window_state { WINDOW_OPEN, WINDOW_CLOSING };

struct window {
	/* constant */
	struct head *head;
	struct tenant *tenant;
	struct ulid ulid;
	int64_t start, range;
	uint32_t serial;
	/* atomics */
	_Atomic uint32_t refs;
	_Atomic uint64_t first_segment;
	_Atomic int64_t last_arrival_ms;
	_Atomic uint64_t memory_bytes, n_samples;
	_Atomic bool to_index; /* is large and has series that the cutter's tick has not seen: head_window_index */
	/* tenant->mu */
	enum window_state state;
	struct window *next_start; /* in the tenant's by_start */
	/* head->windows_mu */
	struct window *prev, *next;
	bool cut_now; /* flush, memory or log size ask for it */
	bool gone;    /* has left its tenant's list */
	uint32_t failures;
	errc last_error;
	int64_t retry_at_ns;
	/* the cutter's */
	int64_t first_arrival_ms;
	bool frozen;
	bool written; /* its block is complete, or it was empty */
	uint64_t block_series, block_bytes;
	struct chunkfile file;
	/* shard[i].mu */
	struct window_part {
		struct wpart *p;
		bool frozen;
	} parts[];
};

/* What a chained series has in full chunks lies before this. */
static inline int64_t ws_chain_before(const struct window *w, const struct wseries *ws)
{
	return w->start + (ws->n > 0 ? ws->start : ws->t + INT64_C(1));
}

/* The time of a series' newest sample in a window; it has one. */
static inline int64_t head_ws_newest(const struct window *w, const struct wseries *ws)
{
	uint32_t t = ws->n > 0 || ws_leaves(ws) == 0 ? ws->t : ws->leaves->v[ws->leaves->n - 1].maxt; /* of a chain: t is behind it */
	if (UNLIKELY(ws_hists(ws) > 0 && ws->hist->v[ws->hist->n - 1].maxt > t))
		t = ws->hist->v[ws->hist->n - 1].maxt;
	return w->start + t;
}

/* Opens a window under tenant->mu. ulid NULL: a new one. The tenant's list holds one reference. */
CHECKED errc head_window_open_locked(
	struct tenant *tn, const struct ulid *ulid, int64_t start, int64_t range, int64_t arrival_ms, struct window **out, struct err *err);
static inline struct window *head_window_ref(struct window *w)
{
	atomic_fetch_add_explicit(&w->refs, 1, memory_order_relaxed);
	return w;
}
void head_window_unref(struct window *w);
void head_window_freeze(struct window *w);
void head_window_thaw(struct window *w); /* replay: it goes on taking samples */
/* Out of the tenant's list; drops the list's reference. */
void head_window_leave(struct window *w);
/* refs == 0: releases its series and frees everything. The cutter's, or the owner's when there is none. */
void head_window_destroy(struct window *w);
void head_window_forget(struct window *w); /* the same at close: its series go with the table */
/* The series' state in this part, made when absent. */
struct wseries *head_window_series_locked(struct window *w, struct shard *sh, uint32_t shard, struct series *s, struct err *err);
/* Under the shard's lock: whether a sample of s at t, in front of one at `first`, falls into their window or another open one, and s has none at t or behind it. */
bool head_window_zero_fits_locked(struct tenant *tn, uint32_t shard, const struct series *s, int64_t t, int64_t first);
/* Postings follow the series that there are when it is called, a slice a lock hold: before a question, before the cut, and of large windows by the cutter's tick. So a new series costs the
 * request, and a start, no postings. */
CHECKED errc head_window_index(struct window *w, uint32_t shard, struct err *err);
/* How many series of a part have a pair. */
uint32_t head_posting_count(const struct wpart *p, uint32_t pair);
/* The pairs that series of a part have, in no order: *at goes from 0 on; false: no more. */
bool head_part_pair(const struct wpart *p, uint64_t *at, uint32_t *pair);
struct name_pairs *head_part_name(const struct wpart *p, const struct symbol *name);
/* The numbers of a pair's series below `below` into out, which has room for all of them; how many. */
uint32_t head_posting_read(const struct wpart *p, uint32_t pair, uint32_t below, uint32_t *out);
static inline struct posting *part_posting(const struct wpart *p, uint32_t number)
{
	return &p->postings[number / POSTINGS_PER_PAGE][number % POSTINGS_PER_PAGE];
}

/* ---- tenants (head_tenant.c) ---- */

/* A sum that decays by e in HEAD_RATE_MS: what came in about the last minute (head_usage.c). */
#define HEAD_RATE_MS INT64_C(60000)
struct head_rate {
	double sum;
	int64_t at_ms;
};

struct exemplar_ring;
struct metadata_table;
struct tenant {
	struct head *head;
	uint32_t idx;
	struct hash128 salt;
	_Atomic uint64_t n_series, series_bytes; /* in the table; the bytes of their structs and slots */
	pthread_mutex_t mu;
	struct head_rate created, stored; /* mu */
	struct window **windows;	  /* mu; in the order they were opened */
	uint32_t n_windows, cap_windows;
	struct window **by_start; /* mu; by hash of the start, each chain in the order of opening; NULL while they are few */
	uint32_t start_mask;
	uint32_t n_other_range;			   /* mu; windows of another length than the flag's */
	_Atomic(struct exemplar_ring *) exemplars; /* NULL: never had any; as metadata made under mu */
	_Atomic(struct metadata_table *) metadata;
	uint32_t name_bytes;
	char name[];
};
CHECKED errc head_tenant_get(struct head *h, struct span name, struct tenant **out, struct err *err); /* made when absent */
struct tenant *head_tenant_find(struct head *h, struct span name);				      /* NULL: never seen */
struct tenant *head_tenant_at(struct head *h, uint32_t idx);
static inline struct span head_tenant_name(const struct tenant *tn)
{
	return (struct span){tn->name, tn->name_bytes};
}
/* The same when it is there; not referenced. Under tn->mu. */
struct window *head_tenant_window_locked(const struct tenant *tn, int64_t t);
/* The open window that takes t: the one opened first among those that contain it, else a new one. Referenced for the caller. */
CHECKED errc head_tenant_window(struct tenant *tn, int64_t t, int64_t arrival_ms, struct window **out, struct err *err);
/* by_start follows windows: after it was made larger, after w was put at its end, after w left it. */
void head_tenant_index_grow_locked(struct tenant *tn);
void head_tenant_index_add_locked(struct tenant *tn, struct window *w);
void head_tenant_index_remove_locked(struct tenant *tn, struct window *w);
void head_tenants_destroy(struct head *h);
/* Once a request. */
void head_tenant_account(struct tenant *tn, int64_t now_ms, uint64_t stored, uint64_t created);

/* ---- what one request needs (head_append.c, head_log.c) ---- */

struct log_def {
	uint64_t ref;
	struct span wire; /* canonical; borrowed from the request or the context's arena. p NULL: the keys alone */
	struct wal_keys keys;
	uint32_t group; /* last group that holds it */
};
struct log_meta {
	uint32_t win; /* index into wins; UINT32_MAX: the sample is not logged */
	uint32_t def; /* index into defs, or UINT32_MAX */
};
struct append_window {
	struct window *w;
	uint32_t next; /* older entry of the same hash slot, + 1 */
	uint32_t n;    /* logged samples */
	uint32_t n_hists;
};
/* A known spelling's series, as it was when it was looked up. It may be gone since, and its memory too: nothing but `ref` is read before the shard's lock says that it is not. */
struct found {
	struct series *series;
	uint64_t ref : 56, shard : 8;
};
struct append_ctx {
	struct append_ctx *next;
	struct hash128 *hashes;
	uint32_t *order;
	uint32_t *spare;
	uint8_t *missed;
	struct found *found;
	struct hash128 *symbols; /* 2.0: of the request's symbols */
	size_t cap_symbols;
	uint32_t n_missed;
	struct log_def *defs;
	size_t cap_series;
	struct wal_sample *samples; /* at the places that they have in the batch, so that the log has them in the sender's order */
	struct wal_sample *sorted;
	struct log_meta *meta, *sorted_meta;
	size_t cap_samples;
	struct wal_histogram *hists; /* packed; at the places that they have in the batch */
	struct wal_histogram *sorted_hists;
	struct log_meta *hist_meta, *sorted_hist_meta;
	size_t cap_hists, n_hists_logged;
	struct append_window *wins;
	uint32_t n_wins, cap_wins, cur;
	uint32_t *win_slots;
	uint32_t win_mask;
	size_t n_logged, n_defs;
	struct arena arena; /* lives as long as the request */
	struct arena parse; /* one series' labels */
	struct buf wire, group;
	/* the request */
	struct head *head;
	struct tenant *tenant;
	const struct wal_ticket *ticket;
	struct head_batch *batch;
	uint64_t n_late, n_dup, n_hist_dup, n_created, n_zeros;
	uint64_t *refused; /* by errid */
};
void head_append_close(struct head *h); /* frees the contexts */
/* *pp: the address of a pointer. false: no memory, nothing was changed. */
bool head_append_grow(void *pp, size_t n, size_t size);
/* For head_append_hist.c. place: the window that takes t is c->cur then, and *ws the series in it. def: what the log must know of a young series, as an index. */
enum errid head_append_bounds(const struct append_ctx *c, int64_t t);
CHECKED errc head_append_place_locked(
	struct append_ctx *c, struct shard *sh, uint32_t shard, struct series *s, int64_t t, struct wseries **ws, struct err *err);
uint32_t head_append_def_locked(struct append_ctx *c, struct series *s, struct span wire);
/* The histograms of a request, all of them packed; of a series: how many are within bounds; all refused (NONE: each by its bounds); judged, as append_series_locked
 * does: def and young are what the floats left. */
CHECKED errc head_append_hists_pack(struct append_ctx *c, struct err *err);
uint32_t head_append_hists_inside(const struct append_ctx *c, const struct head_series *s);
void head_append_hists_refuse(struct append_ctx *c, struct head_series *out, enum errid id);
CHECKED errc head_append_hists_locked(struct append_ctx *c, struct shard *sh, uint32_t shard, struct series *s, struct head_series *out,
	struct span wire, bool young, uint32_t def, struct err *err);
/* 2.0 (head_spelling.c). begin: the symbols' hashes. labels: of series i, as they came, into c->parse; ERR_LIMIT: too many. wires: for HEAD_VERIFY builds, bytes that
 * tell spellings apart, into each series' `wire`; they are no 1.0 spelling's. */
CHECKED errc head_spelling_begin(struct append_ctx *c, struct err *err);
CHECKED errc head_spelling_labels(struct append_ctx *c, uint32_t i, struct labels *l, struct err *err);
CHECKED errc head_spelling_wires(struct append_ctx *c, struct err *err);
/* Encodes what ctx holds; never fails: room was made before the verdicts. */
void head_log_encode(struct append_ctx *ctx, struct buf *out);

/* ---- series refused for their tenant's limit (head_full.c) ---- */

/* A spelling that was judged before: its labels are allowed, and this is the hash of its canonical bytes. */
bool head_full_seen(struct head *h, struct hash128 x, struct hash128 *canonical);
/* Series i of the request, of which its spelling is unknown, is none of the head's, and nothing but the limit speaks against it. false: that takes
 * judging it. seen: by head_full_seen. Takes the lock of its shard. */
bool head_full_new(struct append_ctx *c, uint32_t i, bool seen);
void head_full_free(struct head *h);

/* ---- cuts (head_cut.c, head_cutter.c, head_checkpoint.c) ---- */

struct cut_record {
	struct wal_cut cut;
	uint64_t pos_max;      /* behind the newest counted copy in the log */
	uint64_t last_segment; /* no sample of the window stands behind it; UINT64_MAX: not known yet */
	uint8_t copies;	       /* in two frames far apart, or in a checkpoint: 2 */
};
struct cut_list {
	struct cut_record *v;
	size_t n, cap;
};
/* Replaces an entry of the same window and block. */
CHECKED errc head_cuts_put(struct head *h, const struct cut_record *r, struct err *err);
/* Log copies that are due, and forgetting what no replay can need. */
void head_cuts_maintain(struct head *h);
/* Adds the record if it is not there, and tries to log it. */
CHECKED errc head_cuts_log(struct head *h, const struct wal_cut *cut, struct err *err);

struct cut_result {
	struct ulid block;
	uint64_t bytes;
	uint64_t n_series, n_samples;
};
/* Writes the window's samples as block `block`. The window is frozen, or replay owns it. n_series == 0: it was empty, no block. */
CHECKED errc head_cut_write(struct window *w, struct ulid block, uint64_t upto_seq, struct cut_result *out, struct err *err);
/* Tells on_block; reads meta.json back. */
CHECKED errc head_cut_announce(struct head *h, struct ulid block, uint64_t bytes, struct err *err);
CHECKED errc head_checkpoint_maybe(struct head *h, struct err *err);
/* What the log must still know of exemplars and metadata, of all tenants. record: scratch. */
/* As records for the log, each given to put: for a checkpoint or a snapshot. */
CHECKED errc head_exemplars_checkpoint(
	struct head *h, errc (*put)(void *arg, struct span record, struct err *err), void *arg, struct buf *record, struct err *err);
CHECKED errc head_metadata_checkpoint(
	struct head *h, errc (*put)(void *arg, struct span record, struct err *err), void *arg, struct buf *record, struct err *err);
/* A record of the log. *why: what does not fit in it, NULL when all does. */
CHECKED errc head_exemplars_replay(struct head *h, struct span body, const char **why, struct err *err);
CHECKED errc head_metadata_replay(struct head *h, struct span body, const char **why, struct err *err);
void head_annotations_forget(struct tenant *tn);
void *head_cutter_main(void *head);
void head_cutter_wake(struct head *h);
void head_gauges(struct head *h);

struct full_place;   /* head_full.c */
struct replay_state; /* head_replay.c */
void head_replay_free(struct head *h);
CHECKED errc head_replay_end(struct head *h, struct err *err);

/* ---- snapshots (head_snapshot*.c) ---- */

struct head_snapshots {
	/* mu: the file's name, too */
	pthread_mutex_t mu;
	_Atomic bool damaged; /* a chunk that a snapshot may name can't be read: there is none any more, and none is written */
	/* atomics */
	_Atomic int64_t written_ms; /* 0: none */
	_Atomic uint64_t bytes;
	/* windows_mu */
	bool wanted;
	uint64_t tries;
	errc last;
	/* the cutter's */
	uint64_t pos;	   /* of the newest one's mark in the log */
	uint64_t n_series; /* seen at the tick before */
	int64_t not_before_ns;
};
enum { SNAPSHOT_PATH_BYTES = 4096 };
void head_snapshot_path(const struct head *h, bool tmp, char *out);
/* Writes one. The cutter's. */
CHECKED errc head_snapshot_write(struct head *h, struct err *err);
/* The same when it is time to, or when somebody asks; `stopping`: the last chance. */
void head_snapshot_maybe(struct head *h, bool stopping);
/* What it names can't be relied on: it is removed, and the next start reads the whole log. Any thread, without locks below fds.mu. */
void head_snapshot_drop(struct head *h, const char *why);

struct announce {
	struct wal_cut cut;
	uint64_t bytes;
};

struct head_metrics {
	struct metric *series, *windows, *memory, *appended, *duplicate, *late, *created, *cut, *cut_seconds, *cut_failures, *refused[ERRID_COUNT],
		*unknown, *checkpoints, *chunk_write_failures, *snapshots, *snapshot_failures, *snapshot_seconds, *snapshot_bytes, *snapshot_age,
		*snapshot_loaded, *exemplars, *exemplars_evicted, *metadata;
};

struct head {
	/* constant after open */
	struct head_config cfg; /* strings owned */
	struct arena cfg_arena;
	uint32_t n_shards, shard_shift;
	struct shard *shards;
	_Alignas(64) uint8_t secret[192], refs_secret[192];
	struct head_metrics m;
	struct chunkfile_fds fds;
	struct symbols symbols;
	_Atomic(struct full_place *) full;
	/* atomics */
	_Atomic uint64_t memory_bytes, n_series, n_windows, n_cutting, n_samples, chunk_file_bytes;
	_Atomic uint64_t next_ref;
	_Atomic uint32_t next_serial;
	uint64_t key_floor;	   /* constant after start: where the log ended then; what stands before was told against who knows which keys */
	_Atomic int64_t min_range; /* of any window that may be open */
	_Atomic bool stop, released;
	/* tenants */
	pthread_rwlock_t tenants_mu;
	struct tenant **tenants;
	uint32_t n_tenants, cap_tenants;
	uint32_t *tenant_slots; /* idx + 1 */
	uint32_t tenant_mask;
	/* every window that is not destroyed; wake is signalled for the cutter, done for whoever waits for cuts */
	pthread_mutex_t windows_mu;
	pthread_cond_t wake, done;
	struct window *windows, *windows_tail;
	bool woken, announced;
	/* exemplars and metadata */
	_Atomic uint64_t n_exemplars, n_metadata;	 /* kept, all tenants */
	_Atomic uint64_t exemplar_bytes, metadata_bytes; /* what they take, without what is allocated ahead */
	_Atomic uint32_t n_exemplar_rings;		 /* tenants that have any */
	pthread_mutex_t reclaim_mu;			 /* who takes exemplars from the largest tenant */
	/* request contexts */
	pthread_mutex_t ctx_mu;
	struct append_ctx *ctxs;
	uint32_t n_ctxs;
	/* cuts */
	pthread_mutex_t cuts_mu;
	struct cut_list cuts;
	struct head_snapshots snap;
	bool loaded;  /* head_load was called */
	bool closing; /* chunk files stay: a snapshot may name them */
	/* the cutter's */
	pthread_t cutter;
	bool cutter_runs;
	uint32_t n_checkpoint;
	int64_t checkpoint_retry_ns;
	struct announce *announces;
	size_t n_announces, cap_announces;
	/* replay's; NULL afterwards */
	struct replay_state *replay;
};

static inline uint32_t head_shard_of(const struct head *h, struct hash128 x)
{
	return h->n_shards == 1 ? 0 : (uint32_t)(x.hi >> h->shard_shift);
}
static inline void head_memory_add(struct head *h, uint64_t n)
{
	atomic_fetch_add_explicit(&h->memory_bytes, n, memory_order_relaxed);
}
static inline void head_memory_sub(struct head *h, uint64_t n)
{
	atomic_fetch_sub_explicit(&h->memory_bytes, n, memory_order_relaxed);
}
static inline uint64_t head_memory(const struct head *h)
{
	return atomic_load_explicit(&h->memory_bytes, memory_order_relaxed);
}
