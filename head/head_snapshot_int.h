/* head/head_snapshot_int.h - what a snapshot's writer and its reader share. Bytes: docs/format/snapshot.md. */
#pragma once
#include "head/head_int.h"

enum { SNAPSHOT_VERSION = 3, SNAPSHOT_HEADER = 16, SNAPSHOT_SECTION_HEADER = 20 };
#define SNAPSHOT_SECTION_MAX (64 * MIB) /* a series of a million chunks fits */
#define SNAPSHOT_BYTES_PER_S (64 * MIB) /* unless the configuration says otherwise */
enum snapshot_section {
	SNAPSHOT_MARK = 1,
	SNAPSHOT_CUTS,
	SNAPSHOT_TENANTS,
	SNAPSHOT_PAIRS,
	SNAPSHOT_SERIES,
	SNAPSHOT_WINDOW,
	SNAPSHOT_STATES,
	SNAPSHOT_WINDOW_END,
	SNAPSHOT_END,
	SNAPSHOT_RECORDS,
	SNAPSHOT_OPTIONAL = 128, /* and above: who does not know it goes on */
};
enum {
	SNAPSHOT_HAS_LEAVES = 1,
	SNAPSHOT_HAS_OPEN = 2,
	SNAPSHOT_HAS_HISTOGRAMS = 4,
	SNAPSHOT_HAS_CHAIN = 8,
	SNAPSHOT_OPEN_BYTES = 30,
	SNAPSHOT_CUT_BYTES = 57,
	SNAPSHOT_MARK_BYTES = 80
};

/* The histograms of a state (head_snapshot_hist.c). get: into ws, whose shard's lock the caller has; w NULL: only read over. *why: what is wrong with them, or NULL. */
struct snapshot_hists {
	uint32_t first, last; /* times, from the window's start */
	uint64_t n;
	uint64_t chunk_bytes; /* that the window's chunk file must have */
};
void head_snapshot_hist_put(struct buf *b, const struct hist_series *hs);
CHECKED errc head_snapshot_hist_get(struct rd *b, struct window *w, struct wpart *part, struct wseries *ws, int64_t range, uint64_t chunk_room,
	struct snapshot_hists *out, const char **why, struct err *err);

/* Label pairs, by number (head_snapshot_pairs.c). section: of the number, whose body is b, is known. use: a series has these; counted by settle, after which no number
 * is asked for; settle comes before any of the series goes. */
struct snapshot_pairs;
CHECKED errc snapshot_pairs_open(struct head *h, const char *path, int fd, uint64_t size, uint32_t id, struct snapshot_pairs **out, struct err *err);
CHECKED errc snapshot_pairs_section(struct snapshot_pairs *p, uint32_t number, struct rd *b, struct err *err);
uint32_t snapshot_pairs_n(const struct snapshot_pairs *p);
uint32_t snapshot_pair(const struct snapshot_pairs *p, uint32_t number);
void snapshot_pairs_use(struct snapshot_pairs *p, const uint32_t *numbers, uint32_t n);
void snapshot_pairs_settle(struct snapshot_pairs *p);
void snapshot_pairs_free(struct snapshot_pairs *p);
