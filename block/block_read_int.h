/* block/block_read_int.h - what the reading files of block/ share: histogram payloads, the regex engine, an open index, tombstones.
 */
#pragma once
#include <stdatomic.h>
#include <pthread.h>
#include "block/block.h"
#include "block/block_int.h"
#include "block/block_regex.h"

/* ---- variable bit codes of histograms and start timestamps ---- */

/* Ones before the 0 choose the width; no one at all is the value 0. */
static inline uint64_t bits_vbu(struct bits *b)
{
	static const uint8_t width[9] = {0, 3, 6, 9, 12, 18, 25, 56, 64};
	unsigned ones = bits_ones(b, 8);
	return bits_read(b, width[ones]);
}

static inline int64_t bits_vbi(struct bits *b)
{
	static const uint8_t width[9] = {0, 3, 6, 9, 12, 18, 25, 56, 64};
	unsigned n = width[bits_ones(b, 8)];
	uint64_t u = bits_read(b, n);
	return n == 0 ? 0 : n == 64 ? (int64_t)u : bits_range(u, n);
}

static inline uint64_t bits_left(const struct bits *b)
{
	return (uint64_t)(b->end - b->p) * 8 + b->have;
}

/* ---- histogram chunks, block_chunk_hist.c ---- */

/* Of one side's buckets: values as stored, and what the next sample's codes refer to. */
struct hist_side {
	struct hist_span *spans;
	uint32_t n_spans;
	uint32_t n;
	uint64_t *v;		   /* integer: deltas between neighbours (two's complement); float: bits */
	uint64_t *dv;		   /* integer: change of v between the last two samples */
	struct xor_window *window; /* float */
};

struct hist_reader {
	struct bits bits;
	struct arena *arena;
	bool floats;
	uint8_t reset; /* the header's two bits */
	uint32_t n, i;
	int64_t t;
	uint64_t dt;
	uint64_t count, zero_count, sum;
	uint64_t dcount, dzero_count;
	struct xor_window count_window, zero_count_window, sum_window;
	struct hist_side pos, neg;
	struct histogram layout; /* schema, threshold, spans, bounds: the same for every sample of the chunk */
	struct histogram h;	 /* the sample last read */
};

CHECKED errc hist_reader_init(struct hist_reader *r, bool floats, struct span data, struct arena *arena, struct err *err);
/* r->i < r->n. The sample is in r->t and r->h. */
CHECKED errc hist_reader_next(struct hist_reader *r, struct err *err);

/* ---- an open index, block_index_read.c ---- */

/* Symbols up to this are kept in memory whole, else every 32nd offset and pages as needed. Tests make it 0. */
extern size_t block_symbols_kept_bytes;

enum { INDEX_SAMPLE = 32, INDEX_TAIL_BYTES = 52 + 4, INDEX_HEADER_BYTES = 5, SERIES_ALIGN = 16, CRC_BYTES = 4 };
/* What one read of the index fetches at least: a page of a cache, a few hundred series, a thousand table entries. */
enum { INDEX_READ_BYTES = 64 * 1024 };

struct index_sample {
	struct span value;
	uint64_t off; /* of its entry in the postings table */
};

struct index_name {
	struct span name;
	uint64_t begin, end;		/* its entries in the postings table */
	size_t first_sample, n_samples; /* of every 32nd value */
	uint64_t n_values;
};

struct index_header {
	struct block_files *files; /* borrowed */
	char label[40];		   /* "<ULID>/index": for messages */
	uint64_t size;
	struct block_index_ranges ranges;
	uint64_t series_end; /* behind the last series entry */
	/* symbols */
	uint32_t n_symbols;
	uint64_t symbols_begin, symbols_end; /* of the strings */
	uint32_t *symbol_offs;		     /* of every 32nd, from symbols_begin */
	uint8_t *symbols;		     /* all strings, or NULL */
	/* postings table */
	uint64_t table_begin, table_end; /* of the entries */
	struct index_name *names;
	size_t n_names, cap_names;
	struct index_sample *samples;
	size_t n_samples, cap_samples;
	struct arena text; /* of names and samples */
	uint64_t all_off;  /* the postings of ("", ""), 0 = not there */
	/* the end of the file, while it is opened: TOC and table come out of one read when they are small */
	uint8_t *tail;
	uint64_t tail_off;
	/* ERR_CORRUPT found by index_open in this part: "symbols", "postings table" ...; for block_verify */
	const char *part;
};

/* Zero-initialised by the caller. ranges may be NULL. On error everything is freed. */
CHECKED errc index_open(
	struct index_header *ix, struct block_files *files, struct ulid ulid, const struct block_index_ranges *ranges, struct err *err);
void index_close(struct index_header *ix);
size_t index_memory(const struct index_header *ix);
const struct index_name *index_name_find(const struct index_header *ix, struct span name);

/* A piece of the index in memory. */
struct window {
	uint8_t *p;
	size_t cap;
	uint64_t off;
	size_t n;
};

/* Bytes [off, off + n) into *p, out of the window or by reading max(n, ahead) bytes, never beyond `end`. ERR_CORRUPT: off + n > end. */
CHECKED errc index_window(
	const struct index_header *ix, struct window *w, uint64_t off, uint64_t n, size_t ahead, uint64_t end, const uint8_t **p, struct err *err);
void window_free(struct window *w);

/* One entry of the postings table at *off; *off moves behind it. Spans live until the window's next use. */
struct table_entry {
	struct span name, value;
	uint64_t postings_off;
};
CHECKED errc index_table_entry(const struct index_header *ix, struct window *w, size_t ahead, uint64_t *off, struct table_entry *e, struct err *err);

/* ---- one thread's way through an index, block_index_reader.c ---- */

struct index_symbol {
	uint32_t id;
	uint32_t generation; /* of the arena that the text lives in; 0 = empty slot */
	struct span text;
};

enum { SYMBOL_SLOTS = 4096, SYMBOL_PAGES = 32, SETTLED_SYMBOLS = 16 /* slots for each series that is read */ };

struct index_reader {
	struct postings_index postings; /* first member: postings_select works on it */
	const struct index_header *ix;
	struct window table, lists, series;
	struct window pages[SYMBOL_PAGES]; /* symbols that are not kept in memory; page k in slot k % SYMBOL_PAGES */
	struct window long_symbol;
	struct index_symbol *symbols; /* direct mapped by id */
	uint32_t symbol_mask;	      /* slots less 1: as many as the index has symbols, at most SYMBOL_SLOTS */
	uint32_t generation;
};

CHECKED errc index_reader_init(struct index_reader *r, const struct index_header *ix, struct err *err);
/* Postings are selected: what only selecting needs is freed, and symbols are kept for so many series. */
void index_reader_settle(struct index_reader *r, size_t n_series);
/* May be called again. */
void index_reader_free(struct index_reader *r);

/* Text of a symbol: kept memory, or from `arena` until index_reader_forget. */
CHECKED errc index_symbol(struct index_reader *r, uint64_t id, struct arena *arena, struct span *out, struct err *err);
/* The arena given to index_symbol was reset. */
void index_reader_forget(struct index_reader *r);

/* One chunk of a series as the index has it. */
struct index_chunk {
	int64_t mint, maxt;
	uint64_t ref;
};

struct index_series {
	struct labels labels;
	struct index_chunk *chunks;
	size_t n_chunks;
	uint64_t next_off; /* behind the entry and its CRC */
};

/* The series entry at byte offset `off`; `ahead`: how far to read when it is not in the window. `arena` keeps labels and chunks. */
CHECKED errc index_series_read(struct index_reader *r, uint64_t off, size_t ahead, struct arena *arena, struct index_series *out, struct err *err);

/* The list at `off` in the file, checked, into the arena. */
CHECKED errc index_postings_read(struct index_reader *r, uint64_t off, struct arena *arena, struct postings *out, struct err *err);

/* ---- tombstones, block_tombstones.c ---- */

/* Deleted intervals of every series, ascending by reference, then time; those of one series neither overlap nor touch. */
struct tombstones {
	struct tombstone {
		uint64_t ref;
		struct interval at;
	} * v;
	size_t n;
};

/* Frees nothing on error that it did not take; *out is then empty. `name`: for messages. */
CHECKED errc tombstones_parse(const char *name, struct span data, struct tombstones *out, struct err *err);
/* The block's file; none is none. */
CHECKED errc tombstones_read(struct block_files *files, const char *name, struct tombstones *out, struct err *err);
void tombstones_free(struct tombstones *t);
/* Of one series: the first, and how many. */
const struct tombstone *tombstones_of(const struct tombstones *t, uint64_t ref, size_t *n);

/* ---- chunk segments, block_reader.c ---- */

enum { SEGMENT_HEADER_BYTES = 8, CHUNK_LEN_MAX_BYTES = 5 };

static inline uint32_t chunk_ref_segment(uint64_t ref)
{
	return (uint32_t)(ref >> 32) + 1;
}

struct segment_name {
	char s[24]; /* "chunks/000001" */
};
struct segment_name segment_name(uint32_t segment);

struct block {
	_Atomic uint32_t refs;
	struct block_files *files;
	struct ulid ulid;
	struct ulid_text name;
	int64_t mint, maxt;
	struct labels ext_labels;
	uint64_t *segment_sizes; /* of chunks/000001 ..., as meta.json has them; 0 = not known */
	size_t n_segments;
	struct arena arena;
	struct index_header index;
	struct tombstones tombstones;
};

/* Size of a segment, from meta.json or asked of the files. */
CHECKED errc block_segment_size(const struct block *b, uint32_t segment, uint64_t *size, struct err *err);

/* A chunk in memory at p, `have` bytes of its segment from `off` on. *whole false: more are needed, *need says how many. Checks the CRC.
 * `where`: "<ULID>/chunks/000001". */
CHECKED errc chunk_parse(const char *where, uint64_t off, const uint8_t *p, size_t have, bool *whole, size_t *need, uint8_t *enc,
	struct span *payload, struct err *err);
