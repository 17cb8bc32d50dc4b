/* head/head_cut_int.h - what the files of a cut share: the order of a window's series, its chunk file read in large pieces, the spool that turns one order into the
 * other. A window here is frozen: nothing of it is locked.
 */
#pragma once
#include "head/head_int.h"

/* ---- the order of series (head_cut_order.c) ---- */

/* A series of a window by one number: which of its part's, and which part. */
static inline uint32_t cut_number(const struct head *h, uint32_t shard, uint32_t local)
{
	return local * h->n_shards + shard;
}
static inline uint32_t cut_shard(const struct head *h, uint32_t number)
{
	return number & (h->n_shards - 1);
}
static inline uint32_t cut_local(const struct head *h, uint32_t number)
{
	return number >> __builtin_ctz(h->n_shards);
}

struct cut_order {
	uint32_t *v; /* numbers of the series that have samples, in the order of their labels */
	size_t n;
	uint32_t n_numbers; /* all numbers are below */
	uint32_t *pairs;    /* ids of the window's label pairs, whose ranks are their places in bw's order + 1 */
	size_t n_pairs;
};
/* Series that have samples; no series without it. */
size_t head_cut_count(const struct window *w);
/* Says the window's pairs to bw. */
CHECKED errc head_cut_order(struct window *w, struct block_writer *bw, struct cut_order *o, struct err *err);
void head_cut_order_free(struct head *h, struct cut_order *o);

/* ---- the chunk file, read by one thread (head_cut_file.c) ---- */

struct cut_file;
CHECKED errc head_cut_file_open(struct chunkfile *f, struct cut_file **out, struct err *err);
/* Checks the record at off; its payload, len bytes, stays until the next call. */
CHECKED errc head_cut_file_read(struct cut_file *r, uint64_t off, uint32_t len, const uint8_t **payload, struct err *err);
/* n bytes at off, of one record: wherever they are. */
CHECKED errc head_cut_file_bytes(struct cut_file *r, uint64_t off, size_t n, const uint8_t **out, struct err *err);
/* The records of one series that are at hand, in the order in which they are asked for: they are not read. Borrowed until another call; n 0: none. */
struct chain_record {
	uint64_t off;
	struct span bytes; /* whole */
};
void head_cut_file_serve(struct cut_file *r, const struct chain_record *v, size_t n);
void head_cut_file_close(struct cut_file *r); /* NULL allowed */
/* A file up to this size is read once, whatever the order. */
#define CUT_FILE_CACHE_BYTES (2 * MIB)

/* ---- the records of all chains, by one walk through the chunk file (head_cut_walk.c) ---- */

struct cut_walk;
CHECKED errc head_cut_walk_open(struct window *w, uint32_t n_places, struct cut_walk **out, struct err *err);
/* A chain by its last record; a place is any number below n_places, once. */
CHECKED errc head_cut_walk_add(struct cut_walk *k, uint32_t place, uint64_t off, struct err *err);
/* Every record of every chain, checked and borrowed for the call: those of one chain from the last to the first, those of different ones in no order. */
CHECKED errc head_cut_walk(
	struct cut_walk *k, errc (*each)(void *arg, uint32_t place, uint64_t off, struct span record, struct err *err), void *arg, struct err *err);
void head_cut_walk_close(struct cut_walk *k); /* NULL allowed */

/* ---- what comes in one order and goes in another (head_cut_spool.c) ---- */

struct cut_spool;
CHECKED errc head_cut_spool_open(struct window *w, size_t n_series, uint64_t bytes, struct cut_spool **out, struct err *err);
/* The chunks of a series, once; or records of its chain, one after the other. */
CHECKED errc head_cut_spool_put(struct cut_spool *s, size_t place, const struct chunk *chunks, size_t n, struct err *err);
CHECKED errc head_cut_spool_put_record(struct cut_spool *s, size_t place, uint64_t off, struct span record, struct err *err);
/* All is put; places in order follow. What comes back stays until the next call. *n == 0: nothing was put there. */
CHECKED errc head_cut_spool_get(struct cut_spool *s, size_t place, struct chunk **chunks, size_t *n, struct err *err);
CHECKED errc head_cut_spool_records(struct cut_spool *s, size_t place, struct chain_record **v, size_t *n, struct err *err); /* as they were put */
void head_cut_spool_close(struct cut_spool *s);										     /* NULL allowed */

/* Test seam: chunk files above go through the spool, and its buffers' size; 0 = the normal figure. */
extern uint64_t head_cut_direct_bytes;
extern size_t head_cut_spool_buffer_bytes;
