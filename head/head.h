/* head/head.h - the newest samples in memory: series, windows, and cutting a window into a block.
 *
 *      series table (128-bit keyed hash of label bytes ─▶ series)          one per process, all tenants, sharded
 *            │
 *            ▼
 *      window (tenant, aligned start): per series a sorted run of leaves   freed in one step when its block is written
 *            │ full chunks ─▶ head/<ULID>.*.chunks (no sync: the log covers it); all of it now and then ─▶ head/snapshot
 *            ▼ due
 *      cutter thread ─▶ blocks/<ULID> ─▶ WAL_CUT record ─▶ on_block (shipper) ─▶ memory freed when the last reader lets go
 *
 * A window is identified by the ULID that its block will have; the log's samples name it, so a window that was cut is never
 * replayed into a second block. A late sample for a window that was cut opens a new one (a second block, merged later by compaction).
 *
 * Invariants: a sample is refused or in exactly one open window and in the caller's log record; two samples of one series at one
 * time, float or histogram, are never both in a window; a window's memory goes away whole.
 *
 * Threads: append, sources, flush and status from any thread; open, replay, start, close by the owner. Across I/O the append path holds a
 * lock only to write full chunks, or to read one back that a late sample falls into.
 *
 * What a request says of one series twice is judged known spelling first, then in its order; a retry gives the same verdicts.
 */
#pragma once
#include "base/annotations.h"
#include "base/labels.h"
#include "base/errid.h"
#include "base/ulid.h"
#include "block/block.h"
#include "wal/wal.h"

struct head;

struct head_config {
	const char *chunk_dir;	   /* per-window chunk files, and the snapshot that may name them: the log can rebuild both */
	const char *block_dir;	   /* where finished blocks appear as <ULID> */
	struct wal *wal;	   /* borrowed, outlives the head */
	int64_t block_range_ms;	   /* window length; 1m .. 24h */
	int64_t cut_delay_ms;	   /* after a window's end and after its last sample arrived */
	int64_t max_age_ms;	   /* after its first sample arrived, at the latest */
	uint64_t max_memory_bytes; /* above 80 %: cut the largest early; above: head_append says ERR_AGAIN / HEAD_MEMORY */
	uint64_t wal_max_bytes;	   /* above: cut the windows that hold the oldest segments */
	uint64_t max_exemplars;	   /* of all tenants together; 0: none are kept */
	uint32_t max_metadata;	   /* metric families of a tenant; 0: none are kept */
	struct labels_limits labels;
	struct labels ext_labels; /* --label pairs; tenant_id is added per tenant; copied */
	struct span node;	  /* who writes blocks: meta.json extensions */
	uint32_t shards;	  /* 0 = a power of two from the cores */
	uint32_t replay_threads;  /* that read the log at a start, one reads and the others insert; 0 = the cores */
	/* A snapshot is written when a start would have to read more of the log than this; 0: none is. And how fast; 0: 64 MiB a second. */
	uint64_t snapshot_tail_bytes, snapshot_bytes_per_s;
	/* From the cutter thread when a block is complete and its cut is durable: by the log's record, or, while the log has no room, by the
	 * block's own meta.json (head_cut_settled says false until the record is there). The block's directory is `dir`. Blocks that replay
	 * cut are told before head_start returns. Not OK: who reads does not find the block yet, so the window stays, and it is told again. */
	errc (*on_block)(void *arg, const char *dir, const struct block_meta *meta, uint64_t bytes, struct err *err);
	void *on_block_arg;
	/* From the cutter thread when cutting fails (disk full, I/O): it is tried again; NULL allowed. */
	void (*on_cut_failed)(void *arg, const struct err *why);
};

CHECKED errc head_open(const struct head_config *cfg, struct head **out, struct err *err);

/* ---- replay: before head_start ---- */

/* Says that `window` (up to a frame, or WAL_CUT_ALL) is already in block `block`: its records are skipped. Called for local blocks with
 * has_varve before wal_replay; the log's own cut records do the same from inside. */
CHECKED errc head_known_cut(struct head *h, const struct wal_cut *cut, struct err *err);
/* Loads the newest snapshot, if there is one that can be relied on, and tells the log to begin behind it; removes everything else from the chunk directory. Before
 * wal_replay, after the cuts are known. Whatever is wrong with a snapshot is logged, and the whole log is read. */
CHECKED errc head_load(struct head *h, struct err *err);
/* For wal_replay: arg is the head. Cuts windows in part when memory runs low, so a log bigger than memory replays: such a block has a ULID
 * of its own, and meta.json says which window and up to which frame. */
errc head_replay_frame(void *head, const struct wal_frame *f, struct err *err);
/* Replay is over (wal_replay has returned, also for an empty log): starts the cutter. */
CHECKED errc head_start(struct head *h, struct err *err);

/* ---- append ---- */

struct head_sample {
	int64_t t;  /* ms */
	uint64_t v; /* float bits */
};

/* A native histogram, judged valid (histogram_judge). */
struct head_hist {
	int64_t t;		   /* ms */
	enum sample_kind kind;	   /* no float */
	const struct histogram *h; /* borrowed for the call */
};

struct head_series {
	struct span wire;     /* label fields as they came (base/labels.h), borrowed for the call; 2.0: p is NULL, n what they would take at most */
	const uint32_t *refs; /* 2.0: n_labels pairs of indexes into the batch's symbols */
	uint32_t n_labels;    /* label fields in wire, or pairs */
	uint32_t first, n;    /* its samples in the batch */
	uint32_t first_hist, n_hist; /* its histograms; judged behind its samples */
	/* Its first sample is a zero at its start timestamp, before the others: stored when the series has no sample at that time or behind it
	 * and a window for it is open or about to be. Else it is left out, which is no refusal; and it is not in the counts. */
	bool zero;
	/* out: per series verdict; the counts of a request are sums over these */
	enum errid refused_id; /* first reason in this series; ERRID_NONE: nothing refused */
	uint32_t stored;       /* accepted and in the log record */
	uint32_t duplicate;    /* same series, time and value again: success */
	uint32_t refused;
	int64_t refused_t; /* time of its first refused sample */
	/* the same of its histograms. One that says the same in another layout is a duplicate, or stored in the other's place: the same one stays whatever the order */
	uint32_t hist_stored, hist_duplicate, hist_refused;
};

struct head_batch {
	struct span tenant;	    /* checked by tenant_valid */
	const struct span *symbols; /* remote write 2.0; NULL: 1.0 */
	size_t n_symbols;
	struct head_series *series;
	size_t n_series;
	const struct head_sample *samples;
	size_t n_samples;
	const struct head_hist *hists;
	size_t n_hists;
	int64_t min_t, max_t; /* bounds, judged once, by the caller's clock; samples outside are TOO_OLD / TOO_FAR_AHEAD */
	int64_t now_ms;	      /* arrival */
	uint64_t max_series;  /* of the tenant in the table: above it new ones are refused (TENANT_SERIES), known ones stored; 0 = no limit */
	/* It came late from a peer: what contradicts a sample that is there is not refused, the order-free winner (block_chunk.h) stays; the other counts as a duplicate. */
	bool winner;
	/* out: a verdict (duplicate, or refused beside a stored value) leans on samples of other requests, whose tickets may be younger than
	 * this one's. The answer waits for a ticket reserved after head_append: commit this one without `done`, reserve 0 bytes, commit
	 * nothing under the new one with `done`. */
	bool leans;
	uint64_t refused_by[ERRID_COUNT]; /* out: refused samples and histograms by reason */
	/* out: sums over the series */
	uint64_t stored, duplicate, hist_stored, hist_duplicate;
	uint64_t tenant_series; /* out: the tenant's series afterwards */
};

/* Upper bound of the log records of a batch, for wal_reserve. Counts, so it may be above what any reservation gets. */
size_t head_batch_bound(const struct head *h, const struct head_batch *b);

/* Decides each sample and encodes the accepted ones (and definitions still young) into `records` (its max at least head_batch_bound). The
 * caller MUST then wal_commit the ticket with these records (records->n may be 0), *n_logged samples and histograms. Everything decided stands: OK even
 * when all was refused. ERR_AGAIN (id HEAD_MEMORY): over the memory limit, nothing was stored; ERR_INVALID (PROTOBUF,
 * LABEL_UTF8): a series' labels are malformed, nothing was stored. ERR_NOMEM: an allocation failed; series
 * before it are stored (records hold them; commit them), the rest is not: answer 503. Any thread. */
CHECKED errc head_append(
	struct head *h, const struct wal_ticket *ticket, struct head_batch *b, struct buf *records, uint32_t *n_logged, struct err *err);

/* ---- exemplars and metadata ----
 *
 * Kept beside the series, not in windows: the newest exemplars of a tenant, and what it said last of its metric families. Logged with the request that
 * brought them, and put into each checkpoint of the log: a restart finds them, a cut does not end them. Tenants share max_exemplars: when it is
 * reached a new one takes the place of its own tenant's oldest, or, while its tenant has less than an equal share, of the largest tenant's.
 */

/* What becomes of an exemplar: the first two are written, the others are not. */
enum exemplar_result {
	EXEMPLAR_STORED,
	EXEMPLAR_DUPLICATE,	/* it is there already */
	EXEMPLAR_NO_SERIES,	/* nobody sent a sample of its series */
	EXEMPLAR_OUT_OF_ORDER,	/* its series has a newer one */
	EXEMPLAR_TOO_LONG,	/* its labels have more than 128 characters, as OpenMetrics allows */
	EXEMPLAR_INVALID,	/* its labels are none: a name twice, an empty one, not UTF-8 */
	EXEMPLAR_TOO_FAR_AHEAD, /* behind max_t: it would stand in the way of all that follow */
	EXEMPLAR_OFF,		/* max_exemplars is 0 */
	EXEMPLAR_RESULTS
};
const char *exemplar_result_text(enum exemplar_result r); /* "out-of-order", for metrics */

/* Exemplars of one series of a request. */
struct head_exemplars {
	struct span wire;	  /* the series' label fields as they came, borrowed for the call */
	bool known;		  /* head_append has stored or met a sample of it; else it is looked for */
	const struct exemplar *v; /* labels as they came */
	uint32_t n;
	uint32_t written;	      /* out: of them are there now */
	enum exemplar_result refused; /* out: NO_SERIES or OUT_OF_ORDER when that is so of one of them, the last such; else STORED */
};

struct head_annotations {
	struct span tenant; /* checked by tenant_valid */
	struct head_exemplars *series;
	size_t n_series;
	const struct metadata *metadata;
	size_t n_metadata;
	int64_t max_t;	/* of exemplars */
	int64_t now_ms; /* arrival */
	/* out */
	bool leans; /* as in head_batch */
	uint64_t exemplars_by[EXEMPLAR_RESULTS];
	uint64_t metadata_new, metadata_known, metadata_refused;
};

/* Upper bound of their log records: add it to head_batch_bound's before wal_reserve. */
size_t head_annotations_bound(const struct head *h, const struct head_annotations *a);
/* Behind head_append of the same ticket, which says what series there are, and before its wal_commit: appends to `records`. The caller MUST commit
 * them, whatever is returned. Out-of-order and other refused exemplars are counted and no error. ERR_NOMEM: the rest was not looked at: answer 503. Any thread. */
CHECKED errc head_annotate(struct head *h, const struct wal_ticket *ticket, struct head_annotations *a, struct buf *records, struct err *err);

/* Reads. Both callbacks run under a lock that the tenant's writes wait for: they copy what they want and do not block; what they are given lives
 * until they return. Not a snapshot: what is there all the time is given once. */
struct head_exemplar_read {
	int64_t start, end; /* closed */
	bool (*match)(void *arg, struct labels series);
	/* An exemplar of a series that matches, in order; begins: the first one of its series. x->n_labels is 0. */
	errc (*give)(void *arg, struct labels series, bool begins, const struct exemplar *x, struct err *err);
	void *arg;
};
CHECKED errc head_exemplars_read(struct head *h, struct span tenant, const struct head_exemplar_read *r, struct err *err);
/* All of a family's, newest first, one behind the other. family.p NULL: of every family, in no order. */
CHECKED errc head_metadata_read(struct head *h, struct span tenant, struct span family,
	errc (*give)(void *arg, const struct metadata *m, struct err *err), void *arg, struct err *err);

/* ---- reading ---- */

/* Sources over every window of the tenant that overlaps [mint, maxt] (closed), open or being cut, pinned; array from the arena, newest state
 * of each at the time of the call of select. A window stays pinned over its cut. An empty tenant (n = 0) means every tenant is refused:
 * pass the name. */
CHECKED errc head_sources(
	struct head *h, struct span tenant, int64_t mint, int64_t maxt, struct arena *arena, struct source ***out, size_t *n, struct err *err);

/* ---- what open windows hold, sample by sample: for digests, and for a peer that lost its own (head_walk.c) ---- */

struct head_window {
	int64_t start, range;
	uint64_t samples; /* about */
	bool open;	  /* takes samples; else it is being cut */
};
/* Of a tenant, in the order in which they were opened; array from the arena. */
CHECKED errc head_windows(struct head *h, struct span tenant, struct arena *arena, struct head_window **out, size_t *n, struct err *err);

/* A window being walked; pinned until closed. One thread. */
struct head_walk;
/* ERR_NOTFOUND: none of this start and length is open. */
CHECKED errc head_walk_open(struct head *h, struct span tenant, int64_t start, int64_t range, struct head_walk **out, struct err *err);
void head_walk_close(struct head_walk *k); /* NULL allowed */
/* Which window it is, in this process. */
uint32_t head_walk_window(const struct head_walk *k);
/* Where a series stands. Places stay, and new series come behind those of their shard: who goes on where another walk ended misses only what joined before. */
struct head_place {
	uint32_t shard, local;
};
/* The next series is the first one at this place or behind it. */
void head_walk_seek(struct head_walk *k, struct head_place place);
/* Labels are valid until the next call, their text until the walk is closed. */
CHECKED errc head_walk_next(struct head_walk *k, struct labels *l, struct head_place *place, bool *more, struct err *err);
struct head_packed {
	int64_t t;
	struct span packed; /* base/histogram.h */
};
struct head_samples {
	const struct chunk_sample *floats; /* by time, as histograms are; at one time there is one of both */
	size_t n_floats;
	const struct head_packed *hists;
	size_t n_hists;
	bool more; /* it was too much for once: the rest begins at next_t */
	int64_t next_t;
};
/* Of the series given last, from mint to maxt (closed); about max_bytes at once. Valid until the next call. */
CHECKED errc head_walk_samples(struct head_walk *k, int64_t mint, int64_t maxt, size_t max_bytes, struct head_samples *out, struct err *err);

/* ---- who uses it ---- */

struct head_usage {
	struct span tenant;
	uint64_t series;       /* in the table: what a limit is held against */
	uint64_t windows;      /* open or being cut */
	uint64_t memory_bytes; /* of its windows and series. Label strings are shared by all tenants and stand in no tenant's sum */
	/* Sums that decay by e in a minute, so each is what the last minute brought. Replay counts in neither. */
	double new_series_per_minute, samples_per_second;
};
/* One tenant, the name borrowed; zeros when it never wrote. */
void head_tenant_usage(struct head *h, struct span tenant, int64_t now_ms, struct head_usage *out);
/* All tenants in the order of their first write; the names live as long as the head. */
CHECKED errc head_usages(struct head *h, int64_t now_ms, struct arena *arena, struct head_usage **out, size_t *n, struct err *err);

struct head_count {
	struct span name, value; /* value: pairs only */
	uint64_t n;
};
struct head_top {
	struct head_count *v; /* most first; what is equal by name */
	size_t n;
};
/* What a tenant's series are made of, as Prometheus' /api/v1/status/tsdb tells it: a series in several windows counts once, its chunks all. */
struct head_cardinality {
	uint64_t series, label_pairs, chunks;
	int64_t min_t, max_t;	      /* INT64_MAX, INT64_MIN when empty */
	struct head_top metrics;      /* series by __name__ */
	struct head_top label_values; /* distinct values by label name */
	struct head_top label_bytes;  /* by label name: bytes that its pairs would take if each series had them for itself */
	struct head_top pairs;	      /* series by label pair */
};
/* The `limit` largest of each, copied to the arena. Takes each lock for a slice of series only, so that writes go on, and no more working memory
 * than max_memory (ERR_LIMIT). What is written meanwhile may be seen or not. */
CHECKED errc head_tenant_cardinality(
	struct head *h, struct span tenant, size_t limit, size_t max_memory, struct arena *arena, struct head_cardinality *out, struct err *err);

/* ---- life ---- */

/* Cuts every window now (new samples go to new windows) and returns when all blocks are written and on_block was called for each. */
CHECKED errc head_flush(struct head *h, struct err *err);
/* The same of one tenant, and only of its windows that were begun up to upto_ms; its exemplars up to then go, and what it said of its metrics and not again since. For
 * who deletes a tenant: the blocks are his to remove. They come back with the log, if it still has them at the next start: call it then, too. */
CHECKED errc head_flush_tenant(struct head *h, struct span tenant, int64_t upto_ms, struct err *err);
/* Writes a snapshot now and returns when it is there. */
CHECKED errc head_snapshot(struct head *h, struct err *err);
/* What a snapshot stands for, from its mark alone; for who looks at a data directory. ERR_NOTFOUND: there is no such file. */
struct head_snapshot_info {
	uint64_t bytes, frame, segment, offset; /* the newest frame that is in it, and where that stands in the log */
	uint64_t series;			/* about */
	int64_t written_ms;
};
CHECKED errc head_snapshot_look(const char *path, struct head_snapshot_info *out, struct err *err);
/* The process is about to stop: whoever waits in head_flush, or comes later, gets ERR_CANCELED; what is not cut yet stays in the log. */
void head_release(struct head *h);

/* The block's cut can't be forgotten by any one damaged frame, or its window's samples left the log: the local directory may go. A block
 * that this head does not know is settled. */
bool head_cut_settled(struct head *h, struct ulid block);

struct head_status {
	uint64_t series;  /* in the table */
	uint64_t windows; /* open */
	uint64_t cutting;
	uint64_t memory_bytes;
	uint64_t samples_in_memory;
	uint64_t chunk_file_bytes;
	int64_t min_t, max_t; /* of open windows; INT64_MAX / INT64_MIN when none */
};
void head_status(struct head *h, struct head_status *out); /* refreshes the head's gauges as well */

/* Stops the cutter (a running cut is finished or abandoned: its window replays). Does not cut. After it on_block is called no more: who is told of
 * blocks may go. From the thread that will close; NULL allowed. */
void head_stop(struct head *h);
/* head_stop, and everything goes. NULL allowed. */
void head_close(struct head *h);
