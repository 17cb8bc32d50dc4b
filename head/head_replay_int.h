/* head/head_replay_int.h - what the files of replay share. Story: head_replay.c. */
#pragma once
#include "head/head_int.h"

/* ---- what a record is found by (head_replay_tables.c) ---- */

/* Refs are given in order, so they come in runs: a page has the series of thirty neighbours, and fills 256 bytes. */
enum { REFS_PER_PAGE = 30, REFS_NEAR = 64 };
#define REF_MAX (UINT64_MAX / 2)
struct ref_page {
	struct series *v[REFS_PER_PAGE];
	uint32_t loaded, idle, seen; /* a bit for each: it came from a snapshot; is in no window there; had a sample in the log */
};
_Static_assert(sizeof(struct ref_page) == 256, "four cache lines");
struct ref_slot {
	uint64_t number;       /* of the page: ref / REFS_PER_PAGE */
	struct ref_page *page; /* NULL: empty */
};
struct window_slot {
	struct ulid ulid;
	bool used;
	bool closed;	   /* cut whole */
	uint64_t upto_seq; /* cut in part up to this frame */
	struct window *w;  /* open, or NULL */
};
struct old_key {
	uint64_t ref; /* 0: empty */
	struct wal_keys keys;
};
struct replay_lanes;
struct replay_state {
	struct ref_slot *refs;
	uint64_t n_pages, ref_mask;
	struct head_pool pages;
	struct ref_slot near[REFS_NEAR]; /* pages used last, by the low bits of their number */
	struct window_slot *windows;
	uint64_t n_windows, window_mask;
	struct label labels[LIMIT_LABELS_DECODE]; /* of the definition at hand */
	uint64_t unknown_seq;			  /* frame for which unknown series were logged last */
	uint64_t cut_again_seq;
	/* Keys of refs that are not their series' newest one. */
	struct old_key *old_keys;
	uint64_t n_old_keys, old_mask;
	bool peeked;
	bool dropped; /* a window went, so that what was seen may be of the past */
	/* from a snapshot; 0: from the log alone */
	uint64_t loaded_seq; /* it has all up to this frame */
	uint64_t synced_seq; /* it was written when the log was synced up to this one */
	uint64_t last_seq;   /* of the newest frame with records */
	struct replay_lanes *lanes;
};

static inline struct replay_state *replay_of(struct head *h)
{
	ASSERT(h->replay);
	return h->replay;
}

/* MurmurHash3's finalizer (public domain). */
static inline uint64_t replay_spread(uint64_t x)
{
	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}
static inline struct ref_slot *replay_ref_slot(const struct replay_state *r, uint64_t number)
{
	uint64_t i = replay_spread(number) & r->ref_mask;
	while (r->refs[i].page && r->refs[i].number != number)
		i = (i + 1) & r->ref_mask;
	return &r->refs[i];
}
static inline struct ref_page *replay_ref_page(struct replay_state *r, uint64_t ref)
{
	uint64_t number = ref / REFS_PER_PAGE;
	struct ref_slot *near = &r->near[number % REFS_NEAR];
	if ((!near->page || near->number != number) && r->refs)
		*near = *replay_ref_slot(r, number);
	return near->page;
}
/* NULL: not defined so far. */
static inline struct series *replay_ref_series(struct replay_state *r, uint64_t ref)
{
	const struct ref_page *p = ref <= REF_MAX ? replay_ref_page(r, ref) : NULL;
	return p ? p->v[ref % REFS_PER_PAGE] : NULL;
}
CHECKED errc replay_begin(struct head *h, struct err *err); /* the state, made when absent */
bool replay_refs_resize(struct head *h, struct replay_state *r, uint64_t mask);
/* Where the series of ref goes; NULL: no memory. */
struct series **replay_ref_place(struct head *h, struct replay_state *r, uint64_t ref);
/* No series gets a ref that the log has, even where only samples still tell of it. */
void replay_ref_used(struct head *h, uint64_t ref);
struct old_key *replay_old_key(const struct replay_state *r, uint64_t ref);
CHECKED errc replay_old_key_put(struct replay_state *r, uint64_t ref, const struct wal_keys *keys, struct err *err);
struct window_slot *replay_window_slot(struct replay_state *r, struct ulid u);
CHECKED errc replay_window_entry(struct replay_state *r, struct ulid u, struct window_slot **out, struct err *err); /* made when absent */
/* But for windows and what is known of cuts. */
void replay_tables_clear(struct head *h);

/* ---- records (head_replay_defs.c, head_replay_samples.c) ---- */

struct replay_place {
	struct head *head;
	const struct wal_frame *f;
	bool damaged;
};
void replay_damage(struct replay_place *p, const char *what);
CHECKED errc replay_series(struct replay_place *p, uint8_t kind, struct span body, struct err *err);
CHECKED errc replay_keys(struct replay_place *p, struct span body, struct err *err);
CHECKED errc replay_samples(struct replay_place *p, uint8_t kind, struct span body, struct err *err);
CHECKED errc replay_histograms(struct replay_place *p, struct span body, struct err *err);
bool replay_window_fits(const struct wal_window *w);
/* Opens the window of an entry that has none. */
CHECKED errc replay_window_open(const struct wal_window *ww, uint64_t segment, struct tenant *tn, struct window_slot *e, struct err *err);
/* Unlinks the window; it is destroyed when no reader holds it. The lanes are empty. */
void replay_window_drop(struct replay_state *r, struct window_slot *e);

/* The snapshot that ws is from has the samples of this frame. */
static inline bool replay_has(const struct wseries *ws, uint64_t behind_mark)
{
	return behind_mark < ws->known;
}

/* ---- insertion beside reading (head_replay_lanes.c) ---- */

struct replay_item {
	struct series *s;
	struct window *w;
	uint64_t v;
	uint32_t t;	 /* from the window's start */
	uint32_t behind; /* frames behind the snapshot's mark; UINT32_MAX: so many, or no snapshot */
};
/* Threads that a start may use. */
uint32_t head_replay_threads(const struct head *h);
CHECKED errc replay_lanes_open(struct head *h, struct err *err);
void replay_lanes_close(struct replay_state *r);
/* Room for an item of the shard, to be filled before the next call. The first error of a lane is told by replay_lanes_drain. */
struct replay_item *replay_lanes_put(struct replay_state *r, uint32_t shard);
bool replay_lanes_failed(const struct replay_state *r);
/* Whatever was put is in its window; what the lanes found wrong since the last time. */
CHECKED errc replay_lanes_drain(struct replay_state *r, struct err *err);

/* A series without a window leaves the table, by its newest ref. */
void replay_leave_unused(struct head *h, struct series *s, uint64_t ref);

/* ---- what a snapshot brings (head_replay_load.c) ---- */

/* reserve: so many series. series: the log calls s by this ref; ERR_CORRUPT: another one, too. window: *out NULL: what it held is in blocks. idle: it is in
 * no window. clear: as if nothing had been read so far, but for cuts. loaded: all of frames <= seq is there, and the log was synced up to `synced`. */
CHECKED errc head_replay_reserve(struct head *h, uint64_t n_series, struct err *err);
CHECKED errc head_replay_series(struct head *h, uint64_t ref, struct series *s, struct err *err);
CHECKED errc head_replay_window(
	struct head *h, struct span tenant, const struct wal_window *ww, uint64_t first_segment, uint64_t seq, struct window **out, struct err *err);
void head_replay_idle(struct head *h, const struct series *s);
CHECKED errc head_replay_cut(struct head *h, const struct cut_record *r, struct err *err);
bool head_replay_has_file(struct head *h, struct ulid window, const char *name);
void head_replay_clear(struct head *h);
void head_replay_loaded(struct head *h, uint64_t seq, uint64_t synced);
