/* block/block_write_int.h - the parts of the block writer: a file written front to back, symbols, the index.
 *
 *     block_writer ── chunks ──▶ block_out (chunks/000001 ...)
 *          └── labels, chunk places ──▶ index_writer ── at finish ──▶ block_out (index)
 */
#pragma once
#include <openssl/evp.h>
#include "base/arena.h"
#include "base/bytes.h"
#include "base/labels.h"

/* ---- block_out.c: one file, written front to back, hashed on the way ---- */

/* The first error stays: later writes are dropped, block_out_check says it. One object writes one file after the other. */
struct block_out {
	int fd; /* -1: no file open */
	char *path;
	uint64_t written_bytes; /* of this file, without what is in buf */
	uint64_t sent_bytes;	/* of these, on their way to the disk */
	uint8_t *buf;
	size_t n_buf;
	EVP_MD_CTX *sha;
	/* the CRC section that is open: its bytes in buf begin at crc_from */
	bool crc_open;
	uint32_t crc;
	size_t crc_from;
	struct err failed;
};

enum { BLOCK_OUT_BUF_BYTES = 256 * 1024, BLOCK_OUT_ROOM_BYTES = 4096, BLOCK_OUT_SENT_BYTES = 1024 * 1024 };

CHECKED errc block_out_init(struct block_out *o, struct err *err);
CHECKED errc block_out_open(struct block_out *o, const char *dir, const char *name, struct err *err);
/* Writes out what is buffered, syncs and closes. */
CHECKED errc block_out_finish(struct block_out *o, uint64_t *size_bytes, uint8_t sha256[32], struct err *err);
void block_out_free(struct block_out *o);
void block_out_flush(struct block_out *o);
void block_out_put(struct block_out *o, const void *p, size_t n);
CHECKED errc block_out_check(const struct block_out *o, struct err *err);

/* The offset of the next byte. */
static inline uint64_t block_out_at(const struct block_out *o)
{
	return o->written_bytes + o->n_buf;
}

/* Room for n <= BLOCK_OUT_ROOM_BYTES; what was used of it is added to n_buf. Never NULL. */
static inline uint8_t *block_out_room(struct block_out *o, size_t n)
{
	if (UNLIKELY(BLOCK_OUT_BUF_BYTES - o->n_buf < n))
		block_out_flush(o);
	return o->buf + o->n_buf;
}

static inline void block_out_be32(struct block_out *o, uint32_t x)
{
	put_be32(block_out_room(o, 4), x);
	o->n_buf += 4;
}

static inline void block_out_be64(struct block_out *o, uint64_t x)
{
	put_be64(block_out_room(o, 8), x);
	o->n_buf += 8;
}

static inline void block_out_uvarint(struct block_out *o, uint64_t x)
{
	uint8_t *p = block_out_room(o, UVARINT_MAX_BYTES);
	o->n_buf += (size_t)(put_uvarint(p, x) - p);
}

static inline void block_out_str(struct block_out *o, struct span s)
{
	block_out_uvarint(o, s.n);
	block_out_put(o, s.p, s.n);
}

static inline void block_out_pad(struct block_out *o, uint32_t align)
{
	size_t n = (size_t)(-block_out_at(o) & (align - 1));
	memset(block_out_room(o, n), 0, n);
	o->n_buf += n;
}

/* The CRC over everything put between the two, appended by the second. */
static inline void block_out_crc_begin(struct block_out *o)
{
	o->crc_open = true;
	o->crc = 0;
	o->crc_from = o->n_buf;
}

static inline void block_out_crc_end(struct block_out *o)
{
	uint32_t crc = crc32c(o->crc, o->buf + o->crc_from, o->n_buf - o->crc_from);
	o->crc_open = false;
	block_out_be32(o, crc);
}

/* ---- block_symbols.c: each distinct string once ---- */

struct symbols {
	struct arena text;
	struct symbol {
		const char *p;
		uint32_t n;
		uint32_t hash;
	} * v; /* by id, in the order of arrival */
	uint32_t n, cap;
	uint32_t *slots;  /* id + 1, open addressing */
	uint32_t n_slots; /* a power of two */
	uint64_t seed;
	bool borrows; /* texts live as long as the symbols: they are not copied */
};

void symbols_init(struct symbols *s, uint64_t seed);
void symbols_free(struct symbols *s);
/* The id of the string; its text stays where it is until symbols_free. ERR_NOMEM, ERR_LIMIT. */
CHECKED errc symbols_intern(struct symbols *s, struct span text, uint32_t *id, struct err *err);
/* order[rank] = id and rank[id], by bytes; both malloc'ed, n entries. */
CHECKED errc symbols_sort(const struct symbols *s, uint32_t **order, uint32_t **ranks, struct err *err);

static inline struct span symbols_text(const struct symbols *s, uint32_t id)
{
	return (struct span){s->v[id].p, s->v[id].n};
}

/* ---- block_index_write.c ---- */

struct chunk_place {
	int64_t mint, maxt;
	uint64_t ref; /* (file - 1) << 32 | offset */
};

struct index_writer;
/* `dir` is the block's temporary directory; borrowed. It will hold a spool file once there is much to hold. */
CHECKED errc index_writer_new(const char *dir, struct index_writer **out, struct err *err);
CHECKED errc index_writer_add(struct index_writer *w, struct labels labels, const struct chunk_place *chunks, size_t n, struct err *err);
/* As block_writer_pair, block_writer_pairs_end and block_writer_add_pairs say. */
CHECKED errc index_writer_pair(struct index_writer *w, struct label l, struct err *err);
CHECKED errc index_writer_pairs_end(struct index_writer *w, uint32_t **ranks, struct err *err);
CHECKED errc index_writer_add_pairs(
	struct index_writer *w, const uint32_t *pairs, uint32_t n_labels, const struct chunk_place *chunks, size_t n, struct err *err);
/* Writes the index into `out`, which is open and empty, and removes the spool file. */
CHECKED errc index_writer_finish(struct index_writer *w, struct block_out *out, struct err *err);
void index_writer_free(struct index_writer *w);

/* Test seam: how many postings one pass over the spool may collect, and the spool's buffer; 0 = the normal figure. */
extern size_t index_writer_pass_postings, index_writer_spool_bytes;
