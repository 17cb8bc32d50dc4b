/* cluster/cluster_hints_int.h - what the files of the hints share: a node's log, and what is on its way. */
#pragma once
#include <pthread.h>
#include "base/bytes.h"
#include "base/io.h"
#include "base/limits.h"
#include "base/metrics.h"
#include "cluster/hints.h"

/* ---- a node's log of hints (cluster_hints_log.c): one thread's ---- */

enum { HINT_FRAME_BYTES = 48, HINT_COPY_BYTES = 512, HINT_SEGMENT_BYTES = 2 * HINT_COPY_BYTES, HINT_STATE_BYTES = 52 };
#define HINT_PAYLOAD_MAX (PEER_HEADER_BYTES + LIMIT_PEER_REQUEST_BYTES)

struct hint_frame {
	uint64_t seq;	       /* from 1, dense over the life of the log */
	uint64_t first_sample; /* samples in the log before it */
	int64_t added_ms;
	uint32_t samples;
	uint32_t n; /* bytes of payload */
	uint32_t crc;
};

struct hint_segment_head {
	uint32_t log; /* random: what frames of this file are known by */
	uint64_t first_seq, first_sample;
	struct span address; /* borrows from the bytes */
};

/* With padding. */
static inline uint64_t hint_frame_size(uint64_t n)
{
	return HINT_FRAME_BYTES + ((n + 7) & ~UINT64_C(7));
}
void hint_frame_put(uint8_t *out, uint32_t log, const struct hint_frame *f);
bool hint_frame_get(const uint8_t *in, uint32_t log, struct hint_frame *f);
void hint_segment_put(uint8_t out[HINT_SEGMENT_BYTES], const struct hint_segment_head *h);
bool hint_segment_get(const uint8_t in[HINT_SEGMENT_BYTES], struct hint_segment_head *h);

/* A place in the log, and which frame must stand there. */
struct hint_cursor {
	uint64_t no, off;     /* segment, offset in it; 0: its beginning */
	uint64_t seq, sample; /* seq 0: not known */
	int64_t ms;	      /* when what stands before was added */
};

/* What was passed over and can't be read. */
struct hint_loss {
	uint64_t frames, samples;
	int64_t from_ms, to_ms;
};

struct hint_log {
	char *dir, *parent;
	struct span address;
	struct hint_segment {
		uint64_t no, bytes;
	} * v; /* ascending */
	size_t n, cap;
	uint64_t bytes; /* of all */
	uint64_t next_no, next_seq, next_sample;
	uint64_t skip_seq; /* what is below was delivered in an earlier run */

	/* the last segment, when it is being written */
	int fd;
	uint32_t log;
	bool dirty, new_entry, has_dir;
	int64_t wrote_ns;

	/* the segment that is being read */
	int read_fd;
	uint64_t read_no;
	struct hint_segment_head read;

	struct hint_cursor done; /* everything before is delivered, or lost and counted */
};

/* A log that is not on disk yet; takes both strings. */
void hint_log_new(struct hint_log *l, char *parent, char *dir, struct span address);
/* What is in a directory. The address is malloc'd, l->address borrows it. ERR_CORRUPT: nothing in it says whose it is. */
CHECKED errc hint_log_open(struct hint_log *l, const char *parent, const char *dir, char **address, struct hints_owed *owed, struct err *err);
void hint_log_close(struct hint_log *l); /* files and memory, not what is on disk */

/* p: HINT_FRAME_BYTES of room, n bytes of payload, room up to a multiple of 8. On error the frame is not in the log. */
CHECKED errc hint_log_append(struct hint_log *l, uint8_t *p, size_t n, uint32_t samples, int64_t now_ms, struct err *err);
/* What was written is on the disk, as far as the disk says. */
CHECKED errc hint_log_sync(struct hint_log *l, struct err *err);
/* Its files need not stay open: there may be as many logs as nodes. */
void hint_log_rest(struct hint_log *l);

/* The frame at c, or the next one that can be read: c stands on it then. ERR_NOTFOUND: there is none, c is at the end. Other errors: of the file, and may pass. */
CHECKED errc hint_log_next(struct hint_log *l, struct hint_cursor *c, struct hint_frame *f, struct hint_loss *loss, struct err *err);
/* Its payload, after hint_log_next. ERR_CORRUPT: damaged. */
CHECKED errc hint_log_read(struct hint_log *l, const struct hint_cursor *c, const struct hint_frame *f, void *out, struct err *err);
/* Behind it; of a damaged one pass it and count it as lost. */
void hint_log_pass(struct hint_cursor *c, const struct hint_frame *f);
void hint_log_lose(struct hint_cursor *c, const struct hint_frame *f, struct hint_loss *loss);
/* The segment that c is in can't be read: behind it, whatever it holds is lost. */
void hint_log_give_up(struct hint_log *l, struct hint_cursor *c);

/* Everything before c needs not be kept. Returns the bytes that this frees. */
uint64_t hint_log_done(struct hint_log *l, const struct hint_cursor *c);
/* All of it, pending or not. The next frame begins a new file. */
uint64_t hint_log_clear(struct hint_log *l);
static inline bool hint_log_pending(const struct hint_log *l)
{
	return l->n > 0 && l->done.seq < l->next_seq;
}
uint64_t hint_log_pending_bytes(const struct hint_log *l);
uint64_t hint_log_pending_samples(const struct hint_log *l);
/* Where delivery has come to, and what is owed, for the next run. */
CHECKED errc hint_log_save(struct hint_log *l, const struct hints_owed *owed, struct err *err);
/* Of a log without segments, of which nothing is owed: its directory goes. */
void hint_log_vanish(struct hint_log *l);

/* ---- a node ---- */

enum hint_drop {
	DROP_SIZE,
	DROP_QUEUE,
	DROP_DISK,
	DROP_DAMAGED,
	DROP_MEMORY,
	DROP_HOLDER,
	DROP_LARGE,
	DROP_AGE,
	DROP_GONE,
	DROP_REFUSED,
	HINT_DROPS
};
enum hint_flight { FLIGHT_NONE, FLIGHT_ON, FLIGHT_LANDED };

struct hint_peer {
	struct hints *h;
	struct hint_peer *next_row; /* guarded by mu */
	struct hint_peer *next;	    /* of all; the thread alone changes it, under mu */
	uint64_t hash;
	char *address_text;
	struct span address;

	/* guarded by mu */
	uint32_t queued;  /* frames that wait for the disk */
	uint64_t refused; /* bytes of a frame that there was no room for, 0: none lately. Peers that bring one are told so */
	struct hints_owed owed;
	bool owed_news, owed_unsaved;
	struct hints_status status;
	enum hint_flight flight;
	errc landed_rc;
	int landed_status;
	struct buf landed;

	/* the thread's */
	struct hint_log log;
	bool unlogged; /* no memory for its log so far */
	enum { PEER_WAIT, PEER_DELIVER, PEER_FORGET } judged;
	bool alone; /* the next batch is one frame */
	int64_t backoff_ms, until_ns;
	int64_t unreadable_ns; /* since when its log can't be read; 0: it can */
	int64_t complained_ns;
	int64_t oldest_ms; /* of the frame at log.done; 0: not known, or none */
	struct {
		struct buf body;
		uint8_t id[PEER_ID_BYTES];
		struct hint_cursor end;
		struct hint_loss loss;
		uint32_t n_frames, n_items;
		uint64_t samples, aged;
	} batch;
	struct metric *pending_gauge, *owed_gauge;
};

/* A frame that waits for the disk. */
struct hint_waiting {
	struct hint_waiting *next;
	struct hint_peer *peer;
	size_t n;
	uint8_t p[]; /* as hint_log_append takes it */
};

enum { HINT_ROWS = 1024 };
struct hints {
	struct hints_config cfg;
	char *dir, *self_text;

	pthread_mutex_t mu; /* guards: */
	struct hint_peer *rows[HINT_ROWS], *peers;
	uint32_t n_peers;
	struct hint_waiting *first, **last;
	uint64_t queue_bytes, errand_bytes;
	uint32_t calls;	 /* deliveries and errands on their way */
	uint32_t landed; /* deliveries to be looked at */
	bool stop;
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	pthread_cond_t idle; /* calls is 0 */

	/* the thread's */
	pthread_t thread;
	bool has_thread;
	struct arena arena; /* of one batch */
	uint64_t disk_bytes;
	int64_t ticked_ns, tokens_ns;
	double tokens;
	uint32_t flights;
	struct hint_peer *turn; /* who is asked first the next time */
	bool closing;

	struct metric *pending_bytes, *oldest, *delivered, *dropped[HINT_DROPS];
};

/* One round of the thread: what waits is written, what has landed is looked at, what may go is sent; once a second the rest. When to come back, at the latest. */
int64_t hints_step(struct hints *h);

/* ---- between the files ---- */

/* Made when it is not there; NULL: no memory, or too many. mu is held. */
struct hint_peer *hint_peer_locked(struct hints *h, struct span address);
/* Into the queue; false: not taken, and (unless it may still go elsewhere) counted as owed. */
bool hints_add(struct hints *h, struct span address, struct span frame, bool elsewhere);
/* Samples are lost to hints; those of some reasons are owed. */
void hints_drop(struct hints *h, struct span address, enum hint_drop why, const struct hint_loss *loss);
uint64_t hints_samples_of(struct span frame);
/* To another node that is to keep it. */
void hints_hand_over(struct hints *h, const struct cluster_missed *m);

/* cluster_hints_deliver.c, on the thread */
void hint_deliver(struct hint_peer *p, int64_t now_ns, int64_t *wake_ns);
void hint_landed(struct hint_peer *p, int64_t now_ns);
/* Those that are too old, while nothing is on its way. */
void hint_age(struct hint_peer *p);
void hint_metrics(struct hint_peer *p);
