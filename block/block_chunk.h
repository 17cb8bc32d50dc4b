/* block/block_chunk.h - chunk payloads: what a series' samples are inside a block, the head and a remote-read frame.
 *
 * Encodings (byte): 1 XOR floats, 2 integer histograms, 3 float histograms (all as Prometheus writes them by default), 4 XOR2
 * floats (read only), 255 Thanos' downsampled aggregates (listed, not read here). Bits: docs/format/block.md; source: Prometheus
 * tsdb/docs/format/chunks.md and its chunkenc, Gorilla (VLDB 2015) section 4.1.
 *
 * Chunk bytes of varve are a function of the samples alone: always encoded from the first sample with a fresh state.
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"
#include "base/histogram.h"

enum chunk_enc { CHUNK_NONE = 0, CHUNK_XOR = 1, CHUNK_HISTOGRAM = 2, CHUNK_FLOAT_HISTOGRAM = 3, CHUNK_XOR2 = 4, CHUNK_THANOS_AGGR = 255 };

/* A chunk as it travels: borrowed bytes (payload without length, encoding byte or CRC). */
struct chunk {
	int64_t mint, maxt; /* of the first and last sample, both included */
	uint8_t enc;
	struct span data;
};

struct chunk_sample {
	int64_t t;
	uint64_t v; /* float bits */
};

/* ---- appending floats (XOR) ---- */

/* An open XOR chunk: 56 bytes of state, its bytes in a buffer of the caller's. The payload is valid to read after each append. */
struct xor_appender {
	int64_t t;
	uint64_t v;
	int64_t dt;
	uint16_t n;	 /* samples; 0 = empty */
	uint8_t leading; /* 0xff = no window yet */
	uint8_t trailing;
	uint8_t bits_left; /* free bits in the last byte, 0..7 */
	uint32_t n_bytes;  /* payload so far, count included */
};

/* The longest that one append can make the payload. */
enum { XOR_APPEND_MAX_BYTES = 20, XOR_HEADER_BYTES = 2 };

void xor_appender_init(struct xor_appender *a);
/* `bytes` has room for a->n_bytes + XOR_APPEND_MAX_BYTES (the first append also writes the 2-byte count). t > a->t. */
void xor_append(struct xor_appender *a, uint8_t *bytes, int64_t t, uint64_t v);

/* The same for who keeps the payload in pieces, without its count: `tail` is where byte xor_tail_at(a) of the payload stands (the open byte, or the one
 * behind the end) and has XOR_APPEND_MAX_BYTES from there. The count (big-endian, the first XOR_HEADER_BYTES) is a->n. */
static inline uint32_t xor_tail_at(const struct xor_appender *a)
{
	return a->n == 0 ? XOR_HEADER_BYTES : a->n_bytes - (a->bits_left != 0);
}
void xor_append_tail(struct xor_appender *a, uint8_t *tail, int64_t t, uint64_t v);

/* ---- the reference's rule for where a float chunk ends, applied to sorted samples ---- */

enum { CHUNK_TARGET_SAMPLES = 120 };
/* Prometheus' head: target 120 samples, the end re-estimated at the 30th, never beyond the aligned range, never above 240 samples
 * or 1005 bytes. Feeding the same samples gives the same borders, whoever feeds them. */
struct chunk_cutter {
	int64_t start, next_at;
};
/* Called for each sample in order with the open chunk's count, first and last time and bytes BEFORE appending t; true = begin a new
 * chunk with t (the cutter is then set up for it). range_ms: the window's length. */
bool chunk_cutter_cut(struct chunk_cutter *c, int64_t range_ms, uint32_t n, uint32_t n_bytes, int64_t last_t, int64_t t);

/* ---- reading any encoding ---- */

struct chunk_iter; /* opaque, from the arena */

struct chunk_point {
	int64_t t;
	enum sample_kind kind;
	uint64_t v;		   /* SAMPLE_FLOAT */
	const struct histogram *h; /* the others; arrays live in the iterator until its next call */
};

/* ERR_UNSUPPORTED: an encoding this build does not decode; ERR_CORRUPT: the payload ends before its count says. */
CHECKED errc chunk_iter_new(uint8_t enc, struct span data, struct arena *arena, struct chunk_iter **out, struct err *err);
CHECKED errc chunk_iter_next(struct chunk_iter *it, struct chunk_point *p, bool *more, struct err *err);
/* Samples as the payload's count field says. */
CHECKED errc chunk_count(uint8_t enc, struct span data, uint32_t *n, struct err *err);

/* The fast path for floats: decodes all of an XOR chunk into out[0..cap), *n = count. ERR_LIMIT: cap too small. */
CHECKED errc xor_decode(struct span data, struct chunk_sample *out, size_t cap, size_t *n, struct err *err);

/* The order-free winner of two samples of one series at one time (docs/architecture.md, decision 4): histogram over float, non-stale over
 * stale, then the greater bit pattern (floats: of the value; histograms: of the canonical encoding, memcmp). > 0: a wins, 0: equal. */
int float_winner(uint64_t a, uint64_t b);

/* ---- appending histograms (encodings 2 and 3) ---- */

struct hist_appender; /* an open chunk; memory from the arena */
/* `after`: the appender that refused the sample which begins this chunk, finished or not, else NULL. What it found decides whether the new chunk's
 * header says reset, no reset or unknown; a gauge says so itself. */
CHECKED errc hist_appender_new(
	enum sample_kind kind, const struct hist_appender *after, struct arena *arena, struct hist_appender **out, struct err *err);
/* *appended = false: the sample can't join this chunk (other kind, schema, threshold or bounds, gauge/counter switch, after a stale one, a counter
 * reset, or the chunk is full): finish it and begin a new one with this sample. A bucket that the chunk's layout lacks makes the layout wider. t above
 * the last one's. The first append always joins. */
CHECKED errc hist_append(struct hist_appender *a, int64_t t, enum sample_kind kind, const struct histogram *h, bool *appended, struct err *err);
/* The chunk's bytes, copied into `arena`. Nothing may be appended afterwards. */
CHECKED errc hist_appender_finish(struct hist_appender *a, struct arena *arena, struct chunk *out, struct err *err);

/* ---- a series' sorted samples, floats and histograms, as the chunks that the reference's head would make of them (block_encoder.c) ---- */

/* Where histogram chunks end, beside what the samples demand; as chunk_cutter. n_bytes: of the payload. */
struct hist_cutter {
	int64_t start, next_at;
	bool estimated;
};
bool hist_cutter_cut(struct hist_cutter *c, int64_t range_ms, uint32_t n, uint32_t n_bytes, int64_t last_t, int64_t t);
/* The samples demanded a new chunk, which begins with t. */
void hist_cutter_demanded(struct hist_cutter *c, int64_t range_ms, int64_t t);

/* Memory: one chunk's. */
struct chunk_encoder;
/* emit gets each chunk when it is complete; its bytes are lent for the call. */
CHECKED errc chunk_encoder_open(int64_t range_ms, errc (*emit)(void *arg, const struct chunk *c, uint32_t n_samples, struct err *err), void *arg,
	struct chunk_encoder **out, struct err *err);
/* Times ascend. */
CHECKED errc chunk_encoder_put(struct chunk_encoder *e, const struct chunk_point *p, struct err *err);
/* The open chunk is emitted; the next sample is another series'. */
CHECKED errc chunk_encoder_end(struct chunk_encoder *e, struct err *err);
/* What was put since the last end is forgotten. */
void chunk_encoder_drop(struct chunk_encoder *e);
void chunk_encoder_close(struct chunk_encoder *e); /* NULL allowed */
