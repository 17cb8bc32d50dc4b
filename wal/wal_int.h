/* wal/wal_int.h - what the files of wal/ share. Bytes: docs/format/wal.md; the way through the files: wal/README.md. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "wal/wal.h"

/* ---- files: wal_segment.c ---- */

enum { WAL_VERSION = 2, WAL_HEADER_BYTES = 80, WAL_PATH_BYTES = 4096 };

/* Opens a segment or a checkpoint. */
struct wal_header {
	bool checkpoint;
	uint32_t log;	       /* random, the same in all files of one log: a foreign file is told from a damaged one */
	uint64_t segment;      /* own number; a checkpoint's: the last segment it replaces */
	uint64_t prev_segment; /* 0: none */
	uint64_t prev_seq;     /* last frame before this file, */
	uint32_t prev_crc;     /* and its header_crc; 0: none */
	uint64_t first_seq;    /* of this segment; a checkpoint's: of the first segment it does not replace */
	uint64_t first_sample; /* likewise */
	uint64_t pos;	       /* log position of this file's byte 0; a checkpoint's: of what follows */
	uint64_t synced;       /* bytes of this file that were synced before it got its name */
};

enum wal_header_state { WAL_HEADER_OK, WAL_HEADER_ZERO, WAL_HEADER_DAMAGED, WAL_HEADER_NEWER };

void wal_header_put(uint8_t *out, const struct wal_header *h);
enum wal_header_state wal_header_get(const uint8_t *in, struct wal_header *h, uint32_t *version);

enum wal_name { WAL_NAME_OTHER, WAL_NAME_SEGMENT, WAL_NAME_CHECKPOINT_A, WAL_NAME_CHECKPOINT_B, WAL_NAME_TMP };
enum wal_name wal_name_parse(const char *name, uint64_t *number);

/* The path in a static-size buffer; ERR_LIMIT when the directory's name is too long, checked once at open. */
void wal_path_segment(char out[WAL_PATH_BYTES], const char *dir, uint64_t number);
void wal_path_checkpoint(char out[WAL_PATH_BYTES], const char *dir, uint64_t number, int copy); /* 0 = .a, 1 = .b */
void wal_path_tmp(char out[WAL_PATH_BYTES], const char *path);

/* A segment that exists: prepared (no number of its own yet), current, or finished. */
struct wal_segment {
	struct wal_segment *next;
	uint64_t number;
	uint64_t name; /* the number in its file's name; differs from number only when somebody renamed files */
	int fd;	       /* -1: finished */
	uint64_t size;
	uint64_t off;	 /* behind the last frame */
	uint64_t synced; /* bytes known to be on disk */
	uint64_t pos;	 /* log position of byte 0 */
	uint64_t first_seq, first_sample;
	char tmp[32]; /* file name while prepared */
	bool named;   /* renamed to its number, which is not synced yet */
};

/* Creates dir/name with `size` zero bytes that are allocated on disk. The file is synced, its name is not. */
CHECKED errc wal_segment_allocate(const char *dir, const char *name, uint64_t size, int *fd, struct err *err);

/* ---- frames: wal_frame.c ---- */

enum { WAL_FRAME_BYTES = 64, WAL_FRAME_OVERHEAD = WAL_FRAME_BYTES + 8 };

enum wal_frame_flags {
	WAL_FRAME_LZ4 = 1,   /* payload is compressed */
	WAL_FRAME_CLEAN = 2, /* no records: everything before it is synced and the writer left in order */
	WAL_FRAME_GAP = 4,   /* the numbers missing before this frame were not synced when the power went: no damage */
	WAL_FRAME_END = 8,   /* no records: a checkpoint is complete */
	WAL_FRAME_KNOWN = 15,
};

/* Each start raises the sequence number by this: a number that a block or a reader may have seen before a power cut took its frame (and all
 * behind a clean end) is never given again. So a gap modulo the step is what is missing. */
#define WAL_SEQ_STEP (UINT64_C(1) << 32)

struct wal_frame_header {
	uint32_t log;
	uint64_t segment;
	uint64_t seq;
	uint64_t first_sample;
	uint64_t durable; /* bytes of this file known to be synced when the frame was written */
	uint32_t stored;
	uint32_t raw;
	uint32_t samples;
	uint32_t flags;
	uint32_t crc;	     /* of the stored bytes */
	uint32_t header_crc; /* of the header; chains segments */
};

static inline uint64_t wal_frame_size(uint32_t stored)
{
	return WAL_FRAME_BYTES + (((uint64_t)stored + 7) & ~UINT64_C(7));
}

uint64_t wal_frame_key(uint32_t log);			      /* a frame's first 8 bytes, as a little-endian number */
void wal_frame_put(uint8_t *out, struct wal_frame_header *h); /* sets header_crc */
bool wal_frame_get(const uint8_t *in, struct wal_frame_header *h);
/* Compresses `raw` into out (room for wal_frame_size(raw.n)), header included; fills stored, raw, crc, header_crc and the
 * LZ4 flag of h, and returns the frame's size. lz4 is LZ4_sizeofState() bytes. */
uint64_t wal_frame_pack(struct wal_frame_header *h, struct span raw, uint8_t *out, void *lz4);
/* out has room for h->raw bytes; the payload's CRC was checked. False: not what the header says. */
bool wal_frame_unpack(const struct wal_frame_header *h, const uint8_t *stored, uint8_t *out, struct span *payload);

/* Size of the whole record at p, 0 when none stands there; *samples is what it holds. */
size_t wal_record_size(const uint8_t *p, size_t n, uint32_t *samples);

/* ---- reading one file: wal_reader.c ---- */

struct wal_reader {
	int fd;
	uint64_t size;
	uint64_t written_end; /* zeros behind, by the file system's word */
	uint64_t off;	      /* where the next frame is looked for */
	uint64_t segment;
	uint32_t log;
	bool any_log; /* no header says which log: believe the first frame */
	uint64_t buf_off;
	size_t buf_n, cap;
	uint8_t *buf;
	uint64_t bad_reads; /* pages that could not be read; they count as zeros */
};

#define WAL_READER_INIT                                                                                                                              \
	{                                                                                                                                            \
		.fd = -1                                                                                                                             \
	}

enum wal_item_kind { WAL_ITEM_FRAME, WAL_ITEM_BAD_PAYLOAD, WAL_ITEM_NOTHING, WAL_ITEM_END };

struct wal_item {
	enum wal_item_kind kind;
	uint64_t offset, bytes;
	uint64_t data_bytes;	   /* NOTHING: up to its last byte that is not zero */
	struct wal_frame_header h; /* FRAME, BAD_PAYLOAD */
	const uint8_t *stored;	   /* FRAME: until the next call */
};

CHECKED errc wal_reader_open(struct wal_reader *r, const char *path, struct err *err); /* r: WAL_READER_INIT; keeps its buffer */
CHECKED errc wal_reader_next(struct wal_reader *r, struct wal_item *item, struct err *err);
/* Up to n bytes at off, from the buffer: *got < n only at the end of the file. */
CHECKED errc wal_reader_peek(struct wal_reader *r, uint64_t off, size_t n, const uint8_t **p, size_t *got, struct err *err);
void wal_reader_close(struct wal_reader *r); /* keeps the buffer */
void wal_reader_free(struct wal_reader *r);

/* ---- reading a whole log: wal_walk.c ---- */

struct wal_file {
	uint64_t name;
	uint64_t number; /* as its header says, else as its name says */
	uint64_t size;
	enum wal_header_state state;
	struct wal_header h;
	bool empty;			       /* zeros only: named, never used */
	uint64_t first_seq, first_sample, pos; /* by its header, or by what was read before it; 0: unknown */
};

enum wal_event_kind {
	WAL_EVENT_CHECKPOINT, /* a checkpoint's file is about to be read */
	WAL_EVENT_SEGMENT,    /* likewise a segment */
	WAL_EVENT_DAMAGE,     /* bytes without a valid frame where there was one */
	WAL_EVENT_TORN,	      /* the same behind the last known sync: what a power cut or kill leaves */
	WAL_EVENT_LOST,	      /* frames that are missing */
	WAL_EVENT_LOST_TORN,  /* frames that are missing and were never known to be synced */
	WAL_EVENT_MISSING,    /* segments (or a checkpoint's) that are not there: [segment, segment_last] */
	WAL_EVENT_RENAMED,    /* header and name disagree; the header is followed */
	WAL_EVENT_FOREIGN,    /* a file of another log; not read */
	WAL_EVENT_CHAIN,      /* a segment does not continue the one before it */
};

struct wal_event {
	enum wal_event_kind kind;
	const char *path;
	uint64_t segment, segment_last;
	uint64_t offset, bytes;
	uint64_t seq, frames, samples; /* LOST: first missing number, how many, with how many samples */
	const char *why;
};

struct wal_walk {
	/* in */
	const char *dir;
	errc (*frame)(void *arg, const struct wal_frame *f, const struct wal_frame_header *h, struct err *err);
	void (*event)(void *arg, const struct wal_event *e);
	void *arg;
	struct wal_mark behind; /* seq 0: from the beginning. Else frames up to it are neither unpacked nor told */

	/* out */
	struct arena arena;	/* of the lists */
	struct wal_file *files; /* by number */
	size_t n_files;
	uint64_t checkpoint; /* replaces segments <= this; 0: none */
	bool checkpoint_whole;
	bool checkpoint_missing[2]; /* .a, .b */
	struct wal_header checkpoint_header;
	uint64_t max_name; /* highest number in any name or header */
	uint32_t log;	   /* 0: unknown */
	uint64_t next_seq, next_sample, next_pos;
	uint64_t last_seq; /* of the newest frame read, */
	uint32_t last_crc; /* and its header_crc */
	uint64_t frames, samples, bytes, frames_lost, samples_lost, frames_torn, samples_torn, damaged_ranges;

	/* out: how the last file with frames ends */
	struct wal_walk_end {
		size_t file;			/* index in files; n_files: no segment at all */
		bool first;			/* no frame was seen */
		uint64_t seen_seq;		/* highest number seen in it */
		bool clean;			/* the last frame says that the writer left in order */
		uint64_t off;			/* behind its last valid frame */
		uint64_t data_end;		/* behind its last byte that is not zero */
		uint64_t durable;		/* bytes known to be synced */
		uint64_t tail_off;		/* no frame that is not known to be synced stands before */
		bool data_behind;		/* frames with records stand behind durable */
		uint64_t settled_seq;		/* last frame before that, */
		uint32_t settled_crc;		/* and its header_crc */
		uint64_t tail_seq, tail_sample; /* what follows it */
	} end;
};

/* The same rules for replay and inspection. Creates and changes nothing. */
CHECKED errc wal_walk_run(struct wal_walk *w, struct err *err);
void wal_walk_free(struct wal_walk *w);

/* ---- the log itself: wal_open.c ---- */

/* One ticket. Born RESERVED with room for its records, so that commit cannot fail. */
enum wal_slot_state { WAL_SLOT_RESERVED, WAL_SLOT_COMMITTED, WAL_SLOT_RELEASED, WAL_SLOT_TOLD };

struct wal_slot {
	struct wal_slot *next; /* in ticket order, or in the list of free ones */
	struct wal_slot *told; /* next to be told of a failure */
	uint64_t no;
	enum wal_slot_state state; /* TOLD: its done was called with ERR_NOSPACE; its records still wait */
	bool sync;		   /* sync whatever the mode */
	uint64_t bound;		   /* bytes of the log set aside for it */
	uint8_t *p;
	size_t n, cap;
	size_t held; /* of LIMIT_WAL_WAITING_BYTES */
	wal_done done;
	void *arg;
};

struct wal {
	/* constant after open */
	char *dir;
	enum wal_sync sync;
	int64_t sync_interval_ms;
	uint64_t segment_bytes;
	void (*on_fatal)(void *arg, const struct err *why);
	void *on_fatal_arg;

	_Atomic uint64_t kept_from, drawn_to; /* written under mu */
	pthread_mutex_t mu;
	pthread_cond_t work;	/* the syncer's: something to write, room may be there again, stop */
	pthread_cond_t prepare; /* the preparer's */
	pthread_cond_t room;	/* reserve's: the preparer tried */

	/* guarded by mu */
	bool running, stop, failed, no_space, poked;
	struct err why; /* failed or no_space */
	struct wal_slot *first, *last, *free;
	size_t n_slots, n_free, free_bytes;
	uint64_t next_no;
	uint64_t done_no;		   /* every ticket up to this one was told */
	uint64_t held_bytes;		   /* by the slots in the list */
	uint64_t reserved_bytes;	   /* bounds of what is not written */
	uint64_t frame_max, frame_max_old; /* largest record that may wait, in two epochs so that it can shrink */
	uint64_t frame_max_no;		   /* the epoch ends when this ticket is done */
	struct wal_segment *current;	   /* NULL while the first one waits for room */
	struct wal_segment *prepared;	   /* oldest first */
	struct wal_segment *finished;	   /* oldest first */
	uint64_t prepare_bytes;		   /* wanted: a segment of at least this size */
	uint64_t prepare_tries;
	errc prepare_rc;	   /* of the last try */
	uint64_t prepare_no;	   /* names prepared files */
	uint64_t seq, sample, pos; /* written */
	struct wal_mark mark;	   /* of the newest frame written; seq 0: none */
	uint64_t checkpoint;	   /* newest one; 0: none */

	/* the syncer's own */
	uint32_t log;
	struct wal_mark out_mark;     /* of the last frame in `out`, or before it */
	uint64_t out_seq, out_sample; /* as the frames in `out` will leave them */
	uint32_t out_crc;
	uint64_t out_consumed;	 /* reserved bytes that `out` stands for, */
	uint64_t batch_consumed; /* and that this batch has written */
	uint8_t *raw;		 /* records of the frame being built */
	size_t raw_n;
	uint8_t *out; /* what the next pwrite takes */
	size_t out_n;
	void *lz4;
	int64_t sync_due_ms; /* INTERVAL */
	bool dirty;	     /* written and not synced */

	/* replay's, then the syncer's: how to start appending */
	struct wal_start {
		bool in_place;
		uint64_t from;			  /* name of the newest segment; 0: none */
		uint64_t off, tail_off, data_end; /* end of its frames, where those that may not be synced begin, end of its bytes */
		bool tail;			  /* frames behind tail_off must be copied */
		struct wal_header header;	  /* of the segment to make, or of the one to go on with */
		uint64_t next_seq, next_sample;
		bool marked; /* next_seq was given to the start's own frame */
		uint32_t last_crc;
	} start;
	bool started;

	pthread_t syncer, preparer;
	bool has_syncer, has_preparer;
	bool replayed;
	struct wal_mark behind; /* replay begins there */

	struct metric *m_fsyncs, *m_fsync_seconds, *m_bytes, *m_frames, *m_frames_lost, *m_samples_lost, *m_segments, *m_size, *m_no_space, *m_waits,
		*m_samples, *m_raw_bytes, *m_damaged;
};

enum { WAL_OUT_BYTES = 2 * (4 * 1024 * 1024 + WAL_FRAME_OVERHEAD) + WAL_HEADER_BYTES };

uint64_t wal_bound(uint64_t max_bytes);
void wal_segments_free(struct wal_segment *list);
uint64_t wal_bytes_on_disk_locked(const struct wal *w);
void wal_gauges_locked(struct wal *w);

/* wal_sync.c */
void *wal_syncer(void *wal);

void wal_slot_pop_locked(struct wal *w); /* the oldest ticket is done */

/* wal_prepare.c */
void wal_path_prepared(char out[WAL_PATH_BYTES], const char *dir, const struct wal_segment *s);
void *wal_preparer(void *wal);
CHECKED errc wal_prepare_one(struct wal *w, uint64_t size, struct err *err);
/* Bytes that can still be promised when no frame is larger than `frame`. */
uint64_t wal_room_locked(const struct wal *w, uint64_t frame);

/* wal_checkpoint.c: makes the copy that a crash or a person left out, from the other one. */
CHECKED errc wal_checkpoint_mend(const char *dir, uint64_t upto, int missing, struct err *err);

/* wal_start.c: from a replayed log to one that can be appended to. ERR_NOSPACE: may be tried again. */
CHECKED errc wal_start(struct wal *w, struct err *err);
