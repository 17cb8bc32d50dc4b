/* bucket/catalog.h - the block index: DATA_DIR/catalog.sqlite, one row per block (schema: bucket/catalog_schema.sql).
 *
 * Three separate things, from the first schema on: what the bucket holds (blocks: a cache, rebuilt from meta.json files), what this node has
 * not finished (local_blocks: authoritative, synchronous=FULL), and the change feed (node, seq) that peers will read.
 *
 *      cutting ─▶ local ─▶ uploading ─▶ live ─▶ superseded ─▶ deleting ─▶ gone          quarantined(reason)
 *
 * Every row carries a CRC-32C over its columns, checked on read; a mismatch, a failed open or a failed integrity check sets the file
 * aside (catalog.sqlite.damaged-<time>) and the catalog is rebuilt from the bucket and the local directory. Nothing that is not a cache
 * lives only here: local blocks are found again by their directories.
 *
 * Threads: any; one SQLite connection per thread that uses it, WAL mode. Never on the ingest path.
 */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "base/ulid.h"
#include "block/block.h"
#include "bucket/bucket.h"

struct catalog;

enum block_state { BLOCK_CUTTING, BLOCK_LOCAL, BLOCK_UPLOADING, BLOCK_LIVE, BLOCK_SUPERSEDED, BLOCK_DELETING, BLOCK_GONE, BLOCK_QUARANTINED };
const char *block_state_name(enum block_state s);

/* A block as lists and plans show it. Spans live in the arena that the call was given. */
struct catalog_block {
	struct ulid ulid;
	struct span tenant;
	int64_t mint, maxt;
	int64_t resolution_ms;
	uint32_t level;
	enum block_state state;
	struct labels ext_labels;
	uint64_t n_samples, n_series, n_chunks, bytes;
	struct span source; /* thanos.source */
	struct span reason; /* quarantine, in words */
	bool in_bucket;	    /* row of blocks: objects are there */
	bool local;	    /* directory is here */
	bool marked;	    /* deletion-mark.json */
	int64_t added_ms;   /* when the row came; of a live local one: when it went live */
	bool has_ranges;
	struct block_index_ranges ranges;
	struct span objects; /* as JSON: catalog_objects reads it */
};

struct catalog_config {
	const char *path; /* catalog.sqlite */
	const char *node; /* this node's id, for the feed */
	bool read_only;	  /* beside a running server */
};
/* Migrates an older schema; ERR_UNSUPPORTED for a newer one, in words, untouched. *rebuilt: it was missing or set aside: the caller
 * must fill it (local directories, catalog_audit). */
CHECKED errc catalog_open(const struct catalog_config *cfg, struct catalog **out, bool *rebuilt, struct err *err);
void catalog_close(struct catalog *c);

/* ---- this node's blocks ---- */

/* A block directory is complete: state local. `meta` is copied. Known already: fine. */
CHECKED errc catalog_add_local(struct catalog *c, const struct block_meta *meta, uint64_t bytes, struct err *err);
CHECKED errc catalog_set_local_state(struct catalog *c, struct ulid u, enum block_state s, const char *reason, struct err *err);
/* One transaction: the bucket's row, this node's row to live, the feed. */
CHECKED errc catalog_uploaded(struct catalog *c, const struct block_meta *meta, uint64_t bytes, struct err *err);
/* The directory is gone: forget the local row (live ones only). */
CHECKED errc catalog_drop_local(struct catalog *c, struct ulid u, struct err *err);
/* Blocks to ship, oldest min time first: local and uploading, not quarantined. */
CHECKED errc catalog_pending(struct catalog *c, struct arena *arena, struct catalog_block **out, size_t *n, struct err *err);

/* Live blocks whose directories are still here and whose bucket row is live, in the order in which they went live: for the shipper's clean-up. */
CHECKED errc catalog_local_live(struct catalog *c, struct arena *arena, struct catalog_block **out, size_t *n, struct err *err);

/* ---- queries ---- */

/* Blocks of a tenant whose [mint, maxt) overlaps [mint, maxt] (closed), at resolution 0, readable: by one SQL statement. Of those marked for deletion
 * only where no unmarked live block covers their sources. Local ones have local = true. Quarantined ones can't be read: they stand behind the n
 * others, *n_left_out of them (NULL: not asked). */
CHECKED errc catalog_plan(struct catalog *c, struct span tenant, int64_t mint, int64_t maxt, struct arena *arena, struct catalog_block **out,
	size_t *n, size_t *n_left_out, struct err *err);
/* From now on no plan has blocks of the tenant that were begun (by their ULIDs) up to this time; INT64_MIN: all are there again. Not kept over a start. */
CHECKED errc catalog_hide(struct catalog *c, struct span tenant, int64_t upto_ms, struct err *err);
int64_t catalog_hidden_upto(struct catalog *c, struct span tenant); /* INT64_MIN: none are hidden */
/* All, by tenant and time; filter fields may be empty. */
CHECKED errc catalog_list(struct catalog *c, struct arena *arena, struct catalog_block **out, size_t *n, struct err *err);
CHECKED errc catalog_get(struct catalog *c, struct ulid u, struct arena *arena, struct catalog_block *out, struct err *err); /* ERR_NOTFOUND */
/* The bucket's copy; where there is none, this node's. The other copy stays readable. */
CHECKED errc catalog_quarantine(struct catalog *c, struct ulid u, const char *reason, struct err *err);
/* A cache, filled on first use; many in one transaction. Unknown blocks are passed over. */
struct catalog_ranges {
	struct ulid ulid;
	struct block_index_ranges ranges;
};
CHECKED errc catalog_set_ranges(struct catalog *c, const struct catalog_ranges *v, size_t n, struct err *err);
/* The meta.json of a block as stored (whole text), for readers of ext labels and files. */
CHECKED errc catalog_meta_json(struct catalog *c, struct ulid u, struct arena *arena, struct span *json, struct err *err);

/* What lies below the block's name in the bucket, from the listing (of a local block: its files), with sizes: meta.json of other writers need not say
 * it, and objects like tombstones stand in none. So a read asks the bucket for no sizes. Array from the arena. */
CHECKED errc catalog_objects(const struct catalog_block *b, struct arena *arena, struct block_file **out, size_t *n, struct err *err);

/* ---- the bucket's truth ---- */

struct catalog_audit_stats {
	uint64_t pages, objects, blocks, added, removed, changed, partial, bad;
	int64_t duration_ms;
};
struct catalog_audit_options {
	bool reread; /* read every meta.json again, and give quarantined blocks another chance: `varve bucket rebuild` */
	void (*progress)(void *arg, uint64_t done, uint64_t total); /* meta.json files read so far; may be NULL */
	void *arg;
};
/* One recursive paged LIST; GETs meta.json only of blocks that are new or whose meta.json changed (size or time), deletion marks likewise. Blocks
 * that vanished lose their row only when two audits in a row miss them. A directory without meta.json is partial: reported, not touched.
 * A meta.json that does not parse: quarantined with the reason. */
CHECKED errc catalog_audit(
	struct catalog *c, struct bucket *b, const struct catalog_audit_options *opt, struct catalog_audit_stats *stats, struct err *err);

/* Has the bucket been read in whole since the catalog was made? Waits up to timeout_ms for an audit that is under way. ERR_AGAIN: not yet; ERR_NET:
 * the last audit failed (its message). Reads go on with what is known and say so. */
CHECKED errc catalog_complete(struct catalog *c, int64_t timeout_ms, struct err *err);

/* A row's CRC was wrong: the owner must set the file aside and rebuild (the calls that met it said ERR_CORRUPT). */
bool catalog_damaged(struct catalog *c);
/* Notices that the file was removed or replaced behind our back, which counts as damage. Costs one stat. */
void catalog_watch(struct catalog *c);
/* How often the file was made anew: between two equal answers it was one catalog, complete or not. */
uint64_t catalog_generation(struct catalog *c);
/* Empties the bucket's rows and forgets the damage; local rows are read again from the directories by the caller. */
CHECKED errc catalog_reset(struct catalog *c, struct err *err);

/* ---- one picture on all nodes (bucket/feed.h) ---- */

/* Of the blocks that plans are made of: ulid, mark and meta.json of each live one. Equal on two nodes: they plan the same blocks. Kept beside the rows,
 * in their transactions. */
CHECKED errc catalog_digest(struct catalog *c, uint64_t *digest, uint64_t *live_blocks, struct err *err);
/* Changes were passed over that only an audit can find, and none that began since is done; over restarts. 0: none were; else a number that grows with
 * each. */
uint64_t catalog_owed(struct catalog *c);
/* Called after each change that this process makes in the feed; quick, and nothing of this header. NULL: no more, and none runs any longer. */
void catalog_on_fed(struct catalog *c, void (*fn)(void *arg), void *arg);
