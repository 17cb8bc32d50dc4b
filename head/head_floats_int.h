/* head/head_floats_int.h - the floats of a series in a window: chunk file, open chunk, chain, leaves. A chapter of head_int.h, which includes it where shards are known.
 */
#pragma once

/* ---- the chunk file of a window (head_chunkfile.c) ---- */

struct chunkfile {
	struct head *head;
	struct ulid ulid;
	uint32_t number; /* random, in its name: the log may bring a window of this ULID back, and a snapshot must not take that one's file for the
			    one it knows */
	pthread_mutex_t mu;
	uint8_t *buf; /* bytes [flushed, flushed + n) */
	size_t n, cap, flush_at;
	uint64_t flushed;
	bool exists;
	bool unsynced;		  /* a sync of it failed: what the disk has is not known */
	_Atomic uint64_t *total2; /* the window's memory */
};
struct chunkfile_fds {
	pthread_mutex_t mu;
	uint64_t clock;
	struct chunkfile_fd {
		const struct chunkfile *file; /* NULL: free */
		int fd;
		uint32_t pins;
		uint64_t used;
	} v[HEAD_FDS];
};
void head_chunkfile_init(struct chunkfile *f, struct head *h, struct ulid ulid, _Atomic uint64_t *total2);
/* One record. A chunk of floats may stand in several: all but the last `goes_on`, and each names the one before it; so do the chunks of a chain. */
#define CHUNKFILE_NONE ((UINT64_C(1) << 40) - 1) /* no offset: smaller ones fit a leaf and a chain */
struct chunkfile_record {
	uint64_t ref;
	int64_t mint, maxt;
	uint64_t previous;  /* CHUNKFILE_NONE: none */
	uint16_t before, n; /* floats: payload bytes of the chunk in records before, and its samples up to here */
	uint8_t enc;
	bool goes_on;
	struct span data; /* of floats without the count that begins a chunk */
};
enum { CHUNKFILE_HEADER = 39, CHUNKFILE_OVERHEAD = CHUNKFILE_HEADER + 4 };
/* Copies it to the file's end. A write that fails (disk full) keeps the bytes in memory; only ERR_NOMEM is an error. */
CHECKED errc head_chunkfile_append(struct chunkfile *f, const struct chunkfile_record *r, uint64_t *off, struct err *err);
/* Reads and checks the record at off; the payload (len bytes) goes to out, which has room for len + CHUNKFILE_OVERHEAD. */
CHECKED errc head_chunkfile_read(struct chunkfile *f, uint64_t off, uint32_t len, uint8_t *out, struct err *err);
/* The parts of it: n bytes that are all in the file, or all in the buffer behind it; whether they are the record at off. */
CHECKED errc head_chunkfile_bytes_read(struct chunkfile *f, uint64_t off, size_t n, uint8_t *out, struct err *err);
CHECKED errc head_chunkfile_judge(const struct chunkfile *f, uint64_t off, uint32_t len, const uint8_t *record, struct err *err);
/* Of a record's bytes. */
uint32_t head_chunkfile_record_len(const uint8_t *record); /* of the payload */
uint64_t head_chunkfile_record_previous(const uint8_t *record);
/* A descriptor for the time until unpin; -1: nothing is in the file yet. flushed: where the buffer begins. */
struct chunkfile_pin {
	int fd, slot;
	uint64_t flushed;
};
CHECKED errc head_chunkfile_pin(struct chunkfile *f, struct chunkfile_pin *pin, struct err *err);
void head_chunkfile_unpin(struct chunkfile *f, const struct chunkfile_pin *pin);
/* The chunk of floats whose last record is at off, with its count, into out (HEAD_CHUNK_MAX_BYTES). cut: the cut that reads, by large pieces; NULL: anybody. */
struct cut_file;
struct chunkfile_chunk {
	int64_t mint, maxt;
	uint64_t previous;	     /* of its first record */
	uint32_t n, n_bytes, n_last; /* samples, bytes with the count, payload bytes of the last record */
};
CHECKED errc head_chunkfile_chunk(struct chunkfile *f, struct cut_file *cut, uint64_t off, uint8_t *out, struct chunkfile_chunk *c, struct err *err);
/* The first n payload bytes of a chunk that is still open, the last of which are at off. *previous: of its first record. */
CHECKED errc head_chunkfile_begun(
	struct chunkfile *f, struct cut_file *cut, uint64_t off, uint32_t n, uint8_t *out, uint64_t *previous, struct err *err);
uint64_t head_chunkfile_bytes(struct chunkfile *f);
/* All that was appended is on disk; *bytes: how much that is. */
CHECKED errc head_chunkfile_sync(struct chunkfile *f, uint64_t *bytes, struct err *err);
/* Goes on in the file that a snapshot knows: its size; and when all leaves are there it is cut back to what they need. ERR_CORRUPT: it is shorter. */
CHECKED errc head_chunkfile_adopt(struct chunkfile *f, uint32_t number, uint64_t *bytes, struct err *err);
CHECKED errc head_chunkfile_cut(struct chunkfile *f, uint64_t bytes, struct err *err);
bool head_chunkfile_named(const struct chunkfile *f, const char *name);
void head_chunkfile_remove(struct chunkfile *f);

/* ---- a series in a window (head_leaf.c) ---- */

/* The payload of an open chunk, without its count, is a list of pieces: it grows without being moved, and what was outgrown is of use for any other series. */
enum { PIECE_PAYLOAD = 28, PIECES_PER_PAGE = 1024 };
struct piece {
	uint8_t bytes[PIECE_PAYLOAD];
	uint32_t next; /* number of the next piece; 0: none */
};

enum leaf_kind { LEAF_FILE, LEAF_RAW };
/* 16 bytes: at four full chunks a window they are a sixth of what a series takes. */
struct leaf {
	uint32_t mint, maxt; /* from the window's start */
	union {
		struct {
			uint64_t kind : 1;
			uint64_t touched : 1; /* not what the cutting rule made of the samples as they came in order, or not known to end where the
						 rule ends it */
			uint64_t n : 8;
			uint64_t len : 14; /* FILE: payload bytes of its last record */
			uint64_t off : 40; /* FILE: of that in the chunk file */
		};
		struct {
			uint64_t : 10;
			uint64_t room : 9; /* RAW: in samples */
			uint64_t raw : 45; /* RAW: address / 8, from the part's pool */
		};
	};
};
static inline struct chunk_sample *leaf_raw(const struct leaf *l)
{
	return (struct chunk_sample *)(uintptr_t)((uint64_t)l->raw * 8);
}

/* Leaves are disjoint and ascend; the open chunk lies behind all of them. */
struct leaves {
	uint32_t n, cap;
	uint16_t n_raw;
	bool touched; /* some leaf is */
	struct leaf v[];
};

/* A series in a window. One cache line; times are from the window's start. */
struct wseries {
	union {
		struct leaves *leaves; /* NULL: none */
		uint64_t chain;	       /* odd: what lies before the open chunk's pieces is in the file (head_chain.c) */
	};
	uint64_t v;	      /* of the open chunk's last sample */
	uint32_t t, dt;	      /* its time, and that less the one before */
	uint32_t start;	      /* of the open chunk */
	uint32_t next_at;     /* where the rule will end it */
	uint32_t first, last; /* pieces; 0: none */
	uint16_t n, n_bytes;  /* samples of the open chunk (0: none is open), and its payload bytes with the count */
	uint8_t leading, trailing, bits_left;
	uint8_t shard;
	uint32_t local; /* number in its part */
	uint8_t fill;	/* bytes used of the last piece */
	uint8_t unused;
	uint16_t known;		  /* replay's: it came from a snapshot with all samples of this many frames behind the mark, less 1; 0: it did not */
	struct hist_series *hist; /* NULL: it has no histograms */
};
_Static_assert(sizeof(struct wseries) == 64, "one cache line");

/* A chain: bit 0 set | 40 bits: offset of its last record | 9 bits: pieces of the open chunk that are there | 14 bits: samples of its full chunks. */
#define CHAIN_SAMPLES_MAX 16383u
static inline bool ws_chained(const struct wseries *ws)
{
	return ws->chain & 1;
}
static inline uint64_t chain_of(uint64_t off, uint32_t spilled, uint32_t samples)
{
	return 1 | off << 1 | (uint64_t)(spilled / PIECE_PAYLOAD) << 41 | (uint64_t)samples << 50;
}
static inline uint64_t chain_off(uint64_t chain)
{
	return chain >> 1 & CHUNKFILE_NONE;
}
static inline uint32_t chain_spilled(uint64_t chain)
{
	return chain & 1 ? ((uint32_t)(chain >> 41) & 511) * PIECE_PAYLOAD : 0;
}
static inline uint32_t chain_samples(uint64_t chain)
{
	return chain & 1 ? (uint32_t)(chain >> 50) : 0;
}

static inline uint32_t ws_leaves(const struct wseries *ws)
{
	return ws->leaves && !ws_chained(ws) ? ws->leaves->n : 0;
}

/* REPLACED: the same histogram in another layout, in the other's place: no new sample, but it must be logged. */
enum insert_verdict { INSERT_STORED, INSERT_DUPLICATE, INSERT_CONFLICT, INSERT_FAILED, INSERT_REPLACED };
struct window;
struct wpart;
/* The open chunk (head_open.c), under the shard's lock. append: t is behind its last sample, or it is empty; false: no memory, nothing was changed. read: the payload
 * with its count into out (HEAD_CHUNK_MAX_BYTES are enough). read_pieces: the same but for chain_spilled(ws->chain) bytes behind the count, which
 * are left as they are. drop: it is empty again. */
bool head_open_append(struct window *w, struct wpart *part, struct wseries *ws, uint32_t t, uint64_t v);
CHECKED errc head_open_read(struct window *w, const struct wpart *part, const struct wseries *ws, uint8_t *out, size_t *n, struct err *err);
size_t head_open_read_pieces(const struct wpart *part, const struct wseries *ws, uint8_t *out);
void head_open_drop(struct wpart *part, struct wseries *ws);
/* Its payload bytes that are in pieces. */
static inline uint32_t ws_in_pieces(const struct wseries *ws)
{
	return ws->n == 0 ? 0 : ws->n_bytes - (uint32_t)XOR_HEADER_BYTES - chain_spilled(ws->chain);
}

/* Chains (head_chain.c), under the shard's lock, or of a frozen part. may: no leaves and no histograms, so that the next full chunk goes into one. spill: the open
 * chunk's first pieces, up to `last` and n of them, go to the file if there is memory for it. end: all of it goes there. unfold: leaves take the chain's place, and pieces
 * what was spilled. */
static inline bool ws_may_chain(const struct wseries *ws)
{
	return (ws->chain == 0 || ws_chained(ws)) && !ws->hist;
}
extern uint32_t head_spill_series; /* HEAD_SPILL_SERIES, but for tests of few series */
void head_chain_spill_locked(struct window *w, struct wpart *part, struct wseries *ws, uint32_t last, uint32_t n);
CHECKED errc head_chain_end_locked(struct window *w, struct wpart *part, struct wseries *ws, struct err *err);
CHECKED errc head_chain_unfold_locked(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, struct err *err);
/* Its full chunks from the newest on, with the payloads in out (HEAD_CHUNK_MAX_BYTES); no lock is needed. chain: as copied. spilled: where the open chunk's bytes
 * go: behind the count in out. */
struct chain_reader {
	struct window *w;
	struct cut_file *cut; /* as for head_chunkfile_chunk */
	uint64_t off, at;     /* of the next chunk to read, and of the one read last */
	int64_t before;	      /* that begins here */
};
CHECKED errc head_chain_open(
	struct window *w, struct cut_file *cut, uint64_t chain, int64_t open_mint, uint8_t *spilled, struct chain_reader *out, struct err *err);
CHECKED errc head_chain_next(struct chain_reader *r, uint8_t *out, struct chunkfile_chunk *c, bool *more, struct err *err);

/* Under the shard's lock, t inside the window. FAILED: err says why, nothing was changed. winner: a conflict is decided by float_winner
 * (replay) instead of refused. *late is set when t was not behind all others. */
enum insert_verdict head_leaf_insert_locked(
	struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t t, uint64_t v, bool winner, bool *late, struct err *err);
/* The samples of a leaf into out (HEAD_RAW_SAMPLES + 1 entries). bytes: room for a chunk (HEAD_CHUNK_MAX_BYTES). cut: as for head_chunkfile_chunk. */
CHECKED errc head_leaf_decode(
	struct window *w, struct cut_file *cut, const struct leaf *l, struct chunk_sample *out, uint8_t *bytes, size_t *n, struct err *err);

/* Room for more leaves behind those that there are. */
CHECKED errc head_leaves_room(struct wpart *part, struct wseries *ws, uint32_t more, struct err *err);

/* Whether a float of time t is there. */
CHECKED errc head_leaf_has_locked(
	struct window *w, struct shard *sh, const struct wpart *part, const struct wseries *ws, int64_t t, bool *has, struct err *err);

/* Pieces (head_piece.c). new: 0 is no memory, or what reserve granted; its `next` is 0. free: a list of n. */
uint32_t head_piece_new(struct wpart *p);
void head_pieces_free(struct wpart *p, uint32_t first, uint32_t last, uint32_t n);
bool head_pieces_reserve(struct wpart *p, uint32_t n);
