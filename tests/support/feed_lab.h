/* tests/support/feed_lab.h - some catalogs in one process, over one bucket in a directory, and what nodes do to them: for tests of the feed.
 *
 * Nodes are numbers and called node-0, node-1, ...; blocks are numbers, too. An upload gives a block a meta.json that no other one has.
 */
#pragma once
#include "bucket/bucket_feed_int.h"
#include "tests/support/shaky_bucket.h"

enum { LAB_NODES = 3 };

struct lab {
	const char *dir;
	struct bucket *bucket;
	struct shaky *sh;
	struct lab_node {
		struct catalog *c;
		char id[16];
		char path[4096];
	} node[LAB_NODES];
	struct arena arena;
	uint64_t uploads;
	uint64_t samples[1000]; /* of each block's meta.json, so that each upload has another */
};

int lab_setup(void **state);
int lab_teardown(void **state);
/* Catalogs: closed and opened; thrown away and made anew (one, all). */
void lab_reopen(struct lab *l, uint32_t i);
void lab_remake(struct lab *l, uint32_t i);
void lab_fresh(struct lab *l);

struct ulid lab_ulid(uint32_t block);
/* The node's row of it, as its shipper or audit would change it. A block that the node does not know only changes by an upload. */
void lab_upload(struct lab *l, uint32_t i, uint32_t block);
void lab_change(struct lab *l, uint32_t i, uint32_t block, enum block_state to, bool marked);

/* Blocks 1 to n, uploaded in one transaction. */
void lab_bulk(struct lab *l, uint32_t i, uint32_t n);

/* In the bucket, and what an audit makes of it. */
void lab_object(struct lab *l, uint32_t block);
void lab_mark(struct lab *l, uint32_t block);
void lab_remove(struct lab *l, uint32_t block);
void lab_audit(struct lab *l, uint32_t i);

/* What k answers to i's question. The caller frees it. */
void lab_tell(struct lab *l, uint32_t k, uint32_t i, struct buf *out);
/* i applies what k answered: how many changes were news. */
uint32_t lab_apply(struct lab *l, uint32_t i, uint32_t k, const struct buf *answer, bool *gap);
/* i asks k until there is nothing more: how many were news. No gaps. */
uint32_t lab_hear(struct lab *l, uint32_t i, uint32_t k);
/* The same, and a gap is met as a snapshot and a jump would. */
void lab_catch_up(struct lab *l, uint32_t i, uint32_t k);
void lab_jump(struct lab *l, uint32_t i, uint32_t k);
/* All that k knows, to i, without positions. */
void lab_copy(struct lab *l, uint32_t i, uint32_t k);
/* Of its feed only the newest keep + 1 changes stay. */
void lab_prune(struct lab *l, uint32_t i, uint64_t keep);

uint64_t lab_digest(struct lab *l, uint32_t i);
uint64_t lab_digest_by_hand(struct lab *l, uint32_t i);
/* Zeros: the node never heard of it. */
void lab_account(struct lab *l, uint32_t i, uint32_t block, uint64_t *version, uint32_t *rank, uint32_t *meta_crc);
/* Every row as text; valid until the next but one call. */
const char *lab_rows(struct lab *l, uint32_t i);
/* How many blocks a plan over all time has. */
size_t lab_planned(struct lab *l, uint32_t i);
