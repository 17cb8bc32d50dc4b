/* wal/wal.h - the write-ahead log: what was acknowledged survives.
 *
 * One log serves all tenants. A request reserves room before anything is decided, the head decides and encodes its records,
 * the log writes and syncs what waits as one frame (group commit), and then every waiting request is told.
 *
 *     wal_reserve ─▶ (head decides, encodes) ─▶ wal_commit ─▶ pending ─▶ frame ─▶ pwrite ─▶ fdatasync ─▶ done(arg) of each
 *                                                                  └ syncer thread ┘
 *
 * Durability order is ticket order: done() of a ticket is called when its own records and those of every ticket reserved
 * before it are durable. So a request that found only duplicates commits nothing and still waits for what it relied on.
 *
 * Segments are NNNNNNNN.wal, preallocated, chained to their predecessor by its last sequence number and CRC; a checkpoint
 * (NNNNNNNN.checkpoint.a and .b, the same bytes) holds the definitions that replay needs from segments <= N. Bytes: docs/format/wal.md.
 *
 * Damage costs a frame: definitions of series are repeated by the head until two copies stand WAL_COPY_DISTANCE_BYTES apart
 * (wal_ticket tells positions for that), replay resyncs behind a damaged frame and counts what was lost, exactly, by the
 * sequence and sample numbers in the neighbouring frames.
 *
 * Failure: ENOSPC on a write is transient: the frame stays pending in memory and is tried again; meanwhile wal_reserve says ERR_NOSPACE
 * and waiting tickets are told ERR_NOSPACE (their samples stay in the head; the frame is logged before anything later is
 * acknowledged, so a client's retry, a duplicate by then, is acknowledged only when they are durable). Any other failed write
 * and every failed sync is final: wal_failed() turns true, every ticket gets ERR_IO, on_fatal is called once, the process must
 * exit with code 3 and replay. A sync is never tried twice on a descriptor.
 *
 * Threads: reserve, commit, release, position and status from any thread; open, replay, checkpoint and close belong to the owner.
 */
#pragma once
#include "base/annotations.h"
#include "base/bytes.h"
#include "base/err.h"
#include "base/ulid.h"

struct wal; /* opaque; owned by whoever called wal_open */

enum wal_sync { WAL_SYNC_ACK, WAL_SYNC_INTERVAL, WAL_SYNC_OS };

struct wal_config {
	const char *dir;	  /* created if missing; copied */
	enum wal_sync sync;	  /* ACK: done after fdatasync; INTERVAL: done after write, fdatasync every sync_interval_ms; OS: never */
	int64_t sync_interval_ms; /* INTERVAL only; 1 .. 60000; the stated bound of what a power cut may cost */
	uint64_t segment_bytes;	  /* preallocated per segment; LIMIT_WAL_SEGMENT_MIN or more */
	void (*on_fatal)(void *arg, const struct err *why); /* from the syncer thread, once; may be NULL */
	void *on_fatal_arg;
};

/* Opens or creates the log. Does not read it: wal_replay comes before the first reserve, also for a new log. */
CHECKED errc wal_open(const struct wal_config *cfg, struct wal **out, struct err *err);

/* ---- replay ---- */

struct wal_frame {
	uint64_t seq;	       /* frame number, from 1; dense but for steps of 2^32 at starts; 0 for checkpoint frames */
	uint64_t segment;      /* file number */
	uint64_t offset;       /* of the frame in its file */
	uint64_t pos;	       /* of the frame in the log, comparable with a ticket's; 0 for checkpoint frames */
	uint64_t first_sample; /* samples logged before this frame */
	uint32_t samples;      /* in this frame, as its header says */
	struct span payload;   /* decompressed records, valid during the call; read with wal_record_next */
};

struct wal_replay_stats {
	uint64_t segments, frames, samples, bytes;
	uint64_t frames_lost, samples_lost; /* by gaps in the numbers; also varve_wal_frames_lost_total, varve_wal_samples_lost_total */
	uint64_t frames_torn, samples_torn; /* missing too, but behind the last sync that the log knows of: a power cut takes such */
	uint64_t damaged_ranges;	    /* byte ranges that held no valid frame and were not a torn tail, missing segments, foreign files */
	int64_t duration_ms;
};

/* Calls frame() for each valid frame of the newest checkpoint, then of each segment in order; damage is logged with file
 * and byte range and skipped. A repeated sequence number (a tail copied at an earlier start) is skipped. An error from
 * frame() ends the replay with it. Then the tail that is not known to be synced is copied into a new segment and synced,
 * the log is open for appending, and the syncer runs. Memory: a few frames. progress (may be NULL) is called a few times a second. */
CHECKED errc wal_replay(struct wal *wal, errc (*frame)(void *arg, const struct wal_frame *f, struct err *err), void *arg,
	void (*progress)(void *arg, uint64_t segment_first, uint64_t segment_last, uint64_t segment_now), struct wal_replay_stats *stats,
	struct err *err);

/* A frame of the log, by which a copy of what the log says (head_snapshot.c) knows how far it goes. */
struct wal_mark {
	uint64_t seq, first_sample, pos; /* as of struct wal_frame */
	uint64_t segment, offset;	 /* where it stands */
	uint64_t checkpoint;		 /* newest one then; 0: none */
	uint32_t log, crc;		 /* the log's number; of the frame's header */
};
/* The newest frame written: whatever is in it and in those before was committed. False: this process has written none so far. */
bool wal_mark(struct wal *wal, struct wal_mark *out);
/* Before wal_replay: its caller knows all up to this frame, so only what stands behind is read; of a checkpoint only when it was made later. The frame is known to be
 * synced. ERR_NOTFOUND: the log does not have this frame, or lacks something behind it; nothing changed. NULL: the whole log after all. */
CHECKED errc wal_replay_behind(struct wal *wal, const struct wal_mark *mark, struct err *err);

/* Reads the same frames once more, by the way: nothing is logged, counted or changed. Also from inside frame() of wal_replay, for
 * who must know what comes later in the log. Always the whole log. */
CHECKED errc wal_peek(struct wal *wal, errc (*frame)(void *arg, const struct wal_frame *f, struct err *err), void *arg, struct err *err);

/* ---- appending ---- */

struct wal_ticket {
	uint64_t no;	       /* dense, from 1 */
	uint64_t segment;      /* the log's current segment at reserve: these records stand in it or a later one */
	uint64_t pos_min;      /* the records will stand at or behind this log position (bytes ever written) */
	uint64_t pos_max;      /* and before this one */
	uint64_t bytes;	       /* reserved */
	uint64_t last_seq;     /* newest frame number written at reserve: these records get a higher one */
	struct wal_slot *slot; /* private */
};

/* Reserves room for records of at most max_bytes (before compression). ERR_NOSPACE: no room on disk, or an earlier write still waits
 * for it; ERR_AGAIN: too many tickets or bytes are waiting; ERR_IO: the log has failed; ERR_LIMIT: above LIMIT_WAL_RECORD_BYTES.
 * Each ticket must be committed or released, soon: later tickets wait for it. */
CHECKED errc wal_reserve(struct wal *wal, uint64_t max_bytes, struct wal_ticket *ticket, struct err *err);

/* rc OK: durable in the sense of the sync mode. ERR_NOSPACE or ERR_IO: not. From the syncer thread, or from wal_commit itself when
 * nothing is left to wait for. Must not block. */
typedef void (*wal_done)(void *arg, errc rc, const struct err *err);

/* Hands over the ticket's records (copied; n <= reserved; may be empty: then it only waits for earlier tickets). `samples` is the
 * number of samples in them (what its WAL_SAMPLES and WAL_HISTOGRAMS records say: asserted). done may be NULL. Records are split over frames at record
 * borders; a record is <= LIMIT_WAL_FRAME_BYTES. */
void wal_commit(struct wal *wal, const struct wal_ticket *ticket, struct span records, uint32_t samples, wal_done done, void *arg);

/* Gives the ticket back without waiting. */
void wal_release(struct wal *wal, const struct wal_ticket *ticket);

/* wal_commit and wait; for cut records, checkpoints and tests. Not from a done function. */
CHECKED errc wal_commit_wait(struct wal *wal, const struct wal_ticket *ticket, struct span records, uint32_t samples, struct err *err);

/* Everything committed so far is written and synced, whatever the mode. */
CHECKED errc wal_sync_now(struct wal *wal, struct err *err);

/* ---- segments and checkpoints ---- */

struct wal_status {
	uint64_t segment_first, segment_now; /* file numbers */
	uint64_t bytes_on_disk;		     /* preallocated segments count whole */
	uint64_t pos;			     /* bytes ever written (after compression) */
	uint64_t seq;			     /* newest frame */
	bool no_space;			     /* a write waits for room */
	bool failed;
};
void wal_status(struct wal *wal, struct wal_status *out);
/* Two positions without a lock: where the oldest segment that is kept begins, and what no ticket drawn so far goes beyond. */
uint64_t wal_kept_from(const struct wal *wal);
uint64_t wal_drawn_to(const struct wal *wal);

/* A checkpoint replaces what replay needs from segments <= upto: the caller puts the definitions and cuts that are still
 * alive. finish writes both files, syncs them, renames, syncs the directory, then removes segments <= upto and older checkpoints.
 * upto must be below the current segment. Appending goes on meanwhile. */
struct wal_checkpoint;
CHECKED errc wal_checkpoint_begin(struct wal *wal, uint64_t upto, struct wal_checkpoint **out, struct err *err);
CHECKED errc wal_checkpoint_put(struct wal_checkpoint *cp, struct span record, struct err *err);
CHECKED errc wal_checkpoint_finish(struct wal_checkpoint *cp, struct err *err); /* frees cp in any case */
void wal_checkpoint_abort(struct wal_checkpoint *cp);

/* Syncs, marks the end as clean, stops the syncer, frees. NULL is allowed. */
void wal_close(struct wal *wal);

/* `varve wal inspect DIR`: reads only, also beside a running server. Prints segments, frames, records by kind, damage. */
struct wal_inspect_options {
	bool json;
	bool frames;	  /* a line for each frame */
	const char *also; /* what the caller knows beside: a line, or a JSON member; NULL: nothing */
};
CHECKED errc wal_inspect(const char *dir, const struct wal_inspect_options *opt, struct buf *out, struct err *err);

/* ---- records: what a frame's payload is made of ----
 *
 * { u8 kind, uvarint length, body }*. Unknown kinds are skipped by length, so an older binary survives a newer log's additions.
 */
enum wal_kind {
	WAL_SERIES_1 = 1,  /* as version 0.1.0 wrote them: without keys, read still */
	WAL_SAMPLES_1 = 2, /* the same: values as they are, in planes */
	WAL_SERIES = 9,	   /* definitions */
	WAL_SAMPLES = 10,  /* float samples of one window */
	WAL_CUT = 3,	   /* a window, or a part of its log range, is a block now */
	WAL_KEYS = 8,	   /* keys of series that changed */
	WAL_GROUP = 4,	   /* records that stand in one frame: definitions and the samples that need them; its body is records, no groups */
	WAL_EXEMPLARS = 5,
	WAL_METADATA = 6,
	WAL_HISTOGRAMS = 7, /* native histograms of one window */
};

struct wal_record {
	uint8_t kind;
	struct span body;
};
/* false at the end or (with *ok = false) at damage inside a frame whose CRC was right, which is a bug or a newer format. */
bool wal_record_next(struct rd *r, struct wal_record *rec, bool *ok);

/* What a series' values are told against: two, of which `now` is the one that new samples use. Bits of a value; 0 at first. */
struct wal_keys {
	uint64_t v[2];
	uint8_t now;
	bool changed; /* both were used */
};

/* WAL_SERIES: tenant, then ref, canonical label bytes and keys of each */
struct wal_series_enc {
	struct buf *out;
	struct span tenant; /* borrowed until end: a long list becomes several records */
	size_t start;	    /* of the record, and its first series */
	size_t first;
	uint64_t last_ref;
};
void wal_series_begin(struct wal_series_enc *e, struct buf *out, struct span tenant);
void wal_series_put(struct wal_series_enc *e, uint64_t ref, struct span wire, const struct wal_keys *keys);
void wal_series_end(struct wal_series_enc *e);

/* WAL_SAMPLES: the window's identity stands in each record, so that no other frame is needed to place the samples. */
struct wal_window {
	struct span tenant;
	struct ulid window; /* the ULID that its block will have */
	int64_t start_ms;   /* aligned start */
	int64_t range_ms;   /* length: the flag may change between starts */
};
struct wal_sample {
	uint64_t ref;
	int64_t t;
	uint64_t v;	/* bits */
	uint64_t key;	/* of its series, that it is told against */
	uint8_t key_no; /* which of the two that is */
	bool exact;	/* decoder: v leans on no key */
};
/* Bytes of a value beside its code; 0: it is the key. And whether it is a whole number, which is short whenever the key is near. */
unsigned wal_value_bytes(uint64_t v, uint64_t key);
bool wal_value_whole(uint64_t v);
/* Upper bound of a samples record with n samples, and of a definition, for wal_reserve. */
size_t wal_samples_bound(size_t tenant_bytes, size_t n);
size_t wal_series_bound(size_t tenant_bytes, size_t wire_bytes);
void wal_samples_put(struct buf *out, const struct wal_window *w, const struct wal_sample *s, size_t n);

/* WAL_HISTOGRAMS: the window as in WAL_SAMPLES. A histogram leans on nothing but its series' definition. */
struct wal_histogram {
	uint64_t ref;
	int64_t t;
	struct span packed; /* base/histogram.h; LIMIT_HISTOGRAM_PACKED_BYTES at most, not empty */
};
/* n of them whose packed forms are so long together. */
size_t wal_histograms_bound(size_t tenant_bytes, size_t n, size_t packed_bytes);
void wal_histograms_put(struct buf *out, const struct wal_window *w, const struct wal_histogram *h, size_t n);

/* WAL_KEYS: new keys of known series. */
struct wal_key_change {
	uint64_t ref;
	struct wal_keys keys;
};
size_t wal_keys_bound(void); /* of a record of one, and more than each further one takes */
void wal_keys_put(struct buf *out, const struct wal_key_change *c, size_t n);

/* WAL_CUT */
#define WAL_CUT_ALL UINT64_MAX
struct wal_cut {
	struct ulid window;
	struct ulid block;
	/* Samples of the window in frames <= this are in the block (or were empty); WAL_CUT_ALL = all of it, the window is closed. */
	uint64_t upto_seq;
};
void wal_cut_put(struct buf *out, const struct wal_cut *c);

/* Decoding; false = damaged body. Spans borrow from the frame. */
struct wal_series_dec {
	struct rd r;
	struct span tenant;
	uint64_t last_ref;
	bool v1; /* without keys */
};
bool wal_series_open(uint8_t kind, struct span body, struct wal_series_dec *d); /* WAL_SERIES or WAL_SERIES_1 */
bool wal_series_next(struct wal_series_dec *d, uint64_t *ref, struct span *wire, struct wal_keys *keys, bool *ok);
/* Over the body; c->ref is 0 before the first. */
bool wal_keys_next(struct rd *body, struct wal_key_change *c, bool *ok);

enum { WAL_BLOCK_SAMPLES = 128 };
struct wal_samples_dec {
	struct wal_window w;
	size_t n;
	struct rd refs, times, values; /* private, as all that follows */
	const uint8_t *codes;
	bool v1;
	size_t i, at, in_block;
	uint64_t ref, ref_run, ref_step, t, time_run, t_step;
	struct wal_sample block[WAL_BLOCK_SAMPLES];
};
bool wal_samples_open(uint8_t kind, struct span body, struct wal_samples_dec *d); /* WAL_SAMPLES or WAL_SAMPLES_1 */
/* A block at a time, WAL_BLOCK_SAMPLES at most, in two steps: refs, times and key_no into s (0: the end, or *ok = false: damaged); then, with the keys filled in,
 * the values. values returns false when they are not those that were written (a key is not the right one): only the exact ones are to be used. */
size_t wal_samples_block(struct wal_samples_dec *d, struct wal_sample *s, bool *ok);
bool wal_samples_values(struct wal_samples_dec *d, struct wal_sample *s, size_t n, bool *ok);
/* One at a time, with all keys 0: for samples that were written so. */
bool wal_samples_next(struct wal_samples_dec *d, struct wal_sample *s, bool *ok);
struct wal_histograms_dec {
	struct wal_window w;
	size_t n;
	struct rd r; /* private, as what follows */
	size_t i;
	uint64_t ref;
	int64_t t;
};
bool wal_histograms_open(struct span body, struct wal_histograms_dec *d);
/* false at the end or (*ok = false) at damage. What is packed is the caller's to judge. */
bool wal_histograms_next(struct wal_histograms_dec *d, struct wal_histogram *h, bool *ok);
bool wal_cut_get(struct span body, struct wal_cut *c);

/* ---- exemplars and metadata (wal_annotations.c): records that need no other record; they count no samples ---- */

/* WAL_EXEMPLARS. Whoever writes begins another record when out->n - e->start passes what it wants to lose with one frame. */
struct wal_exemplars_enc {
	struct buf *out;
	size_t start, first; /* of the record, and of its first exemplar */
	int64_t last_t;
};
/* Upper bounds: a record without exemplars, and one exemplar with its series' canonical bytes and its own labels'. */
size_t wal_exemplars_bound(size_t tenant_bytes);
size_t wal_exemplar_bound(size_t series_bytes, size_t label_bytes);
void wal_exemplars_begin(struct wal_exemplars_enc *e, struct buf *out, struct span tenant);
/* x->wire is canonical. place: 0, or what an earlier put of the same series into this record gave; then `series` is not looked at. */
uint32_t wal_exemplars_put(struct wal_exemplars_enc *e, struct span series, uint32_t place, const struct exemplar *x);
void wal_exemplars_end(struct wal_exemplars_enc *e);

struct wal_exemplars_dec {
	struct rd r;
	struct span tenant;
	const uint8_t *body;
	int64_t last_t;
};
bool wal_exemplars_open(struct span body, struct wal_exemplars_dec *d);
/* Exemplars of one series have the same series.p when the record told the series once. x->n_labels is not known here: 0. */
bool wal_exemplars_next(struct wal_exemplars_dec *d, struct span *series, struct exemplar *x, bool *ok);

/* WAL_METADATA */
struct wal_metadata_enc {
	struct buf *out;
	size_t start, first;
};
size_t wal_metadata_bound(size_t tenant_bytes, size_t n, size_t text_bytes); /* n entries, their strings together */
void wal_metadata_begin(struct wal_metadata_enc *e, struct buf *out, struct span tenant);
void wal_metadata_put(struct wal_metadata_enc *e, const struct metadata *m);
void wal_metadata_end(struct wal_metadata_enc *e);
struct wal_metadata_dec {
	struct rd r;
	struct span tenant;
};
bool wal_metadata_open(struct span body, struct wal_metadata_dec *d);
bool wal_metadata_next(struct wal_metadata_dec *d, struct metadata *m, bool *ok);
