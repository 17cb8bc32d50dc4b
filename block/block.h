/* block/block.h - the TSDB block: a directory that Prometheus, promtool and Thanos open, written and read here.
 *
 *     <ULID>/chunks/000001...  <ULID>/index  <ULID>/meta.json  [<ULID>/tombstones]
 *
 * Bytes: docs/format/block.md (index v2, chunk segments v1). A block is written in <ULID>.tmp-for-creation, every file synced,
 * and renamed: a directory named by a ULID is complete. chunks and index are a function of the sorted samples alone.
 *
 * Source: Prometheus tsdb/docs/format/{chunks,index,tombstones}.md; Thanos' "thanos" section of meta.json.
 */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "base/labels.h"
#include "base/ulid.h"
#include "block/block_chunk.h"
#include "block/block_source.h"

/* ---- meta.json ---- */

struct block_file {
	struct span rel_path; /* "chunks/000001", "index", "meta.json" */
	uint64_t size_bytes;  /* 0 for meta.json */
	bool has_sha256;
	uint8_t sha256[32];
};

struct block_parent {
	struct ulid ulid;
	int64_t mint, maxt;
};

struct block_meta {
	struct ulid ulid;
	int64_t mint, maxt; /* [mint, maxt) */
	uint64_t n_samples, n_float_samples, n_histogram_samples, n_series, n_chunks, n_tombstones;
	uint32_t level;
	struct ulid *sources;
	size_t n_sources;
	struct block_parent *parents;
	size_t n_parents;
	/* thanos */
	bool has_thanos;
	struct labels ext_labels; /* with tenant_id */
	int64_t resolution_ms;	  /* 0, 300000, 3600000 */
	struct span source;	  /* "receive", "sidecar", "compactor", ... */
	struct block_file *files;
	size_t n_files;
	struct span upload_time; /* RFC 3339 or empty */
	/* thanos.extensions.varve: which part of whose log the block holds; absent in foreign blocks */
	bool has_varve;
	struct ulid window;
	uint64_t upto_seq; /* WAL_CUT_ALL, or the last frame whose samples of the window are in here */
	struct span node;  /* who wrote it */
};

/* Everything into the arena. ERR_CORRUPT: not JSON, or version not 1, or a required field wrong (named). Unknown keys are kept out. */
CHECKED errc block_meta_parse(const char *name, struct span json, struct arena *arena, struct block_meta *out, struct err *err);
/* Prometheus' layout, tab indented, newline at the end. */
CHECKED errc block_meta_write(const struct block_meta *m, struct buf *out);

/* ---- writing ---- */

struct block_writer;
struct block_writer_config {
	const char *dir; /* the directory that will hold <ULID>; must exist */
	struct ulid ulid;
	uint64_t chunk_segment_bytes; /* 0 = LIMIT_CHUNK_SEGMENT_BYTES, the most; tests make it small */
	struct arena *arena;	      /* for what finish puts into meta (files, sources); NULL: these are empty again after finish */
};
/* ERR_EXISTS: a block of this ULID is there. What a crashed attempt left under its temporary name is removed. */
CHECKED errc block_writer_open(const struct block_writer_config *cfg, struct block_writer **out, struct err *err);

/* One series with all its chunks, in label order over the block (ASSERTed), chunks ascending and not overlapping, >= 1. `n_samples` of
 * each chunk is read from its payload. Memory: each distinct label string and pair once, and 4 bytes a series at the end; the rest is
 * spooled into the temporary directory. After an error only finish or abort may follow; finish gives that error again. */
CHECKED errc block_writer_add(struct block_writer *w, struct labels labels, const struct chunk *chunks, size_t n, struct err *err);

/* For who knows all label pairs beforehand: no string is looked at again when series come. pair: before the first series, each pair once, in any order (those of one
 * name together cost less); its text is borrowed until finish or abort. end: the k-th pair's place in the order of pairs is (*ranks)[k]; malloc'ed, the
 * caller frees it. add: a series by its pairs' places, which ascend, as its labels do; all else as above. The bytes are the same; pairs that no series has leave no
 * trace. */
CHECKED errc block_writer_pair(struct block_writer *w, struct label l, struct err *err);
CHECKED errc block_writer_pairs_end(struct block_writer *w, uint32_t **ranks, struct err *err);
CHECKED errc block_writer_add_pairs(
	struct block_writer *w, const uint32_t *pairs, uint32_t n_labels, const struct chunk *chunks, size_t n, struct err *err);

/* Writes index and meta.json, syncs everything, renames into place, syncs the directory. `meta` gives level, sources (none: the block
 * itself), labels, source, window and times; the writer fills ulid, stats and files (sizes, SHA-256). mint/maxt: as given in meta. A block without series is
 * ERR_INVALID. *bytes: total size. Frees w in any case; on error the temporary directory is removed. */
CHECKED errc block_writer_finish(struct block_writer *w, struct block_meta *meta, uint64_t *bytes, struct err *err);
void block_writer_abort(struct block_writer *w);

/* Removes leftovers (.tmp-for-creation, .tmp-for-deletion, .tmp) in a directory of blocks. */
CHECKED errc block_clean_dir(const char *dir, struct err *err);
/* Renames to .tmp-for-deletion, then removes. */
CHECKED errc block_remove(const char *dir, struct ulid ulid, struct err *err);

/* ---- reading ---- */

/* Where a block's bytes come from: a directory, or ranged reads of objects. read: exactly n bytes of "index" or "chunks/000001" at
 * off into buf (ERR_CORRUPT when the file is shorter). Any thread. */
struct block_files {
	errc (*read)(struct block_files *f, const char *rel_path, uint64_t off, size_t n, void *buf, struct err *err);
	errc (*size)(struct block_files *f, const char *rel_path, uint64_t *size, struct err *err); /* ERR_NOTFOUND */
	void (*close)(struct block_files *f);
};
CHECKED errc block_files_dir(const char *block_dir, struct block_files **out, struct err *err); /* fds opened on use, few kept */

/* The byte ranges needed to open an index without reading its tail first; kept in the catalog. */
struct block_index_ranges {
	uint64_t index_size;
	uint64_t symbols_off, series_off, postings_off, postings_table_off;
};

/* An open block: index header (symbols, every 32nd entry of the postings table) in memory, the rest read as needed. Checks header,
 * TOC, symbols and table CRCs at open, series, postings and chunk CRCs at use. Takes `files` over (closed with the block).
 * `ranges` may be NULL. Reference counted: block_source pins it. Any thread. */
struct block;
CHECKED errc block_open(
	struct block_files *files, const struct block_meta *meta, const struct block_index_ranges *ranges, struct block **out, struct err *err);
void block_ranges(const struct block *b, struct block_index_ranges *out);
size_t block_memory(const struct block *b); /* bytes held by the open block */
struct block *block_ref(struct block *b);
void block_unref(struct block *b);
/* A source over the block, pinned by a reference. kind: "local" or "bucket". */
CHECKED errc block_source(struct block *b, const char *kind, struct source **out, struct err *err);

/* Reads everything: every CRC, order, ranges, counts against meta. What is wrong goes to `problem`, one call each, with file and offset in
 * words. Returns OK when the reading could be done, however bad the block. */
CHECKED errc block_verify(
	struct block_files *files, const struct block_meta *meta, void (*problem)(void *arg, const char *text), void *arg, struct err *err);
