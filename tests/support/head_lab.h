/* tests/support/head_lab.h - a head over a log on a simulated disk, and a plain dictionary that says what must be in it.
 *
 * The dictionary knows generations: a window that was cut does not know its samples any more, so a late one may be stored again; on
 * every read the greater value wins. Calls assert (cmocka) as they go.
 */
#pragma once
#include <pthread.h>
#include "head/head.h"
#include "tests/support/sim.h"

enum { LAB_TENANTS = 3 };

struct lab_sample {
	int64_t t;
	uint64_t v;
	uint32_t gen;
	uint64_t acked; /* sim_ops when it was acknowledged */
};
struct lab_series {
	struct lab_sample *v; /* sorted by t, gen */
	size_t n, cap;
};

struct lab {
	struct sim *sim;
	uint64_t seed;
	struct wal *wal;
	struct head *head;
	struct head_config cfg;
	uint64_t segment_bytes;
	enum wal_sync sync; /* ACK unless set before lab_start */
	int64_t sync_interval_ms;
	bool fatal;
	uint32_t n_series;	   /* per tenant */
	struct lab_series *series; /* tenant * n_series + k */
	uint32_t gen;
	/* blocks that on_block told, in order */
	struct ulid *blocks;
	size_t n_blocks, cap_blocks;
	uint32_t refuse_blocks; /* so many more on_block calls fail */
	size_t cut_failures;
	uint64_t stored, duplicates, refused; /* as the head said, summed */
	bool quiet_model;		      /* batches are not entered into the dictionary */
	uint64_t max_series;		      /* of each batch's tenant; with quiet_model */
	pthread_mutex_t mu;
};

/* A fresh disk and an empty log. */
void lab_open(struct lab *l, uint64_t seed, int64_t range_ms, uint64_t segment_bytes);
/* Opens wal and head on the disk as it is and replays; known blocks are told first. */
errc lab_start(struct lab *l, struct err *err);
void lab_stop(struct lab *l);			   /* in order */
void lab_crash(struct lab *l, enum sim_loss loss); /* the power goes; then lab_start */
void lab_free(struct lab *l);

uint64_t lab_random(uint64_t *state);
/* Canonical or, by `spelling`, another wire form of series k's labels. Appends. */
void lab_wire(uint32_t k, uint32_t spelling, struct buf *out);
const char *lab_tenant(uint32_t tenant);

struct lab_batch {
	uint32_t tenant;
	uint32_t *series; /* of each head_series */
	struct head_batch b;
	struct head_sample *samples;
	struct head_series *hs;
	struct buf wire;
	size_t *wire_at;
	size_t n, n_samples, cap_samples, cap;
	bool v2;     /* sent as remote write 2.0: the same labels in the same order, as references into symbols */
	bool winner; /* late, from a peer: conflicts are decided and not refused */
};
void lab_batch_begin(struct lab_batch *b, uint32_t tenant);
void lab_batch_series(struct lab_batch *b, uint32_t k, uint32_t spelling);
void lab_batch_sample(struct lab_batch *b, int64_t t, uint64_t v); /* to the series begun last */
/* reserve, append, commit, wait; verdicts are held against the dictionary (unless quiet_model). */
errc lab_send(struct lab *l, struct lab_batch *b, struct err *err);
void lab_batch_free(struct lab_batch *b);

/* 0: new, 1: a duplicate, 2: another value is there; only 0 enters it. */
int lab_model_put(struct lab *l, uint32_t tenant, uint32_t k, int64_t t, uint64_t v);

/* Everything that head and blocks hold, merged, is what the dictionary holds. */
void lab_check(struct lab *l);
/* What is there, from every source once (a window and its block have one ULID), unsorted and not merged: lab_series of
 * LAB_TENANTS * LAB_SERIES entries. */
enum { LAB_SERIES = 10000 };
struct lab_series *lab_gather(struct lab *l);
void lab_gather_free(struct lab_series *found);
/* What lab_gather is made of, for who keeps blocks elsewhere: all samples of a source, or of a block's directory, go into found. */
void lab_read_source(struct lab *l, uint32_t tenant, struct source *src, struct lab_series *found);
void lab_read_block(struct lab *l, const char *dir, struct lab_series *found);
/* Each sample with acked <= upto is there; nothing is there that was not sent, and nothing twice. For runs that send nothing twice. */
void lab_check_exact(struct lab *l, uint64_t upto);
/* The same of what was gathered by other means; frees it. */
void lab_compare_exact(struct lab *l, struct lab_series *found, uint64_t upto);
/* Removes the blocks' directories, and their samples from the dictionary. */
void lab_forget_blocks(struct lab *l);
/* All windows become blocks. */
void lab_flush(struct lab *l);
