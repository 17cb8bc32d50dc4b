/* block/block_index_read.c - opening an index: table of contents, symbols, and every 32nd entry of the postings table.
 *
 *   header          u32 BE 0xBAAAD700, u8 version (2; 3 reads the same)
 *   symbols         u32 BE len, u32 BE count, count * string (uvarint length, bytes), CRC-32C over len bytes; strictly ascending
 *   series          entries at multiples of 16 (block_index_reader.c)
 *   postings        lists (block_index_reader.c)
 *   postings table  u32 BE len, u32 BE count, count * (uvarint 2, string name, string value, uvarint offset), CRC-32C; strictly ascending,
 *                   ("", "") first: the list of all series
 *   TOC             the last 52 bytes: 6 * u64 BE symbols, series, label index, label index table, postings, postings table; CRC-32C
 *
 * Memory of an open index: the symbols when they are few, else an offset for every 32nd; of the table, each label name and every 32nd
 * value of it. Opening reads both sections once, front to back, in pieces, whatever their size.
 *
 * Nothing is believed: lengths are held against the section that they stand in, sections against the file, and order is checked here
 * so that everything after may search by halving.
 *
 * Source: Prometheus tsdb/docs/format/index.md, tsdb/index/index.go.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_read_int.h"

enum { TOC_BYTES = 52, OPEN_READ_BYTES = 1024 * 1024, OPEN_TAIL_BYTES = 256 * 1024 };
static const uint32_t INDEX_MAGIC = 0xBAAAD700;

size_t block_symbols_kept_bytes = 16 * MIB;

/* ---- reading pieces ---- */

static errc piece_read(const struct index_header *ix, uint64_t off, size_t n, void *buf, struct err *err)
{
	if (ix->tail && off >= ix->tail_off) {
		memcpy(buf, ix->tail + (off - ix->tail_off), n);
		return OK;
	}
	return ix->files->read(ix->files, "index", off, n, buf, err);
}

errc index_window(
	const struct index_header *ix, struct window *w, uint64_t off, uint64_t n, size_t ahead, uint64_t end, const uint8_t **p, struct err *err)
{
	errc rc = OK;
	CHECK(off <= end && n <= end - off, ERR_CORRUPT, "%s: %" PRIu64 " bytes at %" PRIu64 " reach beyond their section's end at %" PRIu64,
		ix->label, n, off, end);
	if (off >= w->off && off - w->off <= w->n && n <= w->n - (size_t)(off - w->off)) {
		*p = w->p + (off - w->off);
		return OK;
	}
	CHECK(n <= LIMIT_INDEX_ENTRY_BYTES, ERR_LIMIT, "%s: an entry of %" PRIu64 " bytes at %" PRIu64 ", at most %" PRIu64 " are read", ix->label, n,
		off, LIMIT_INDEX_ENTRY_BYTES);
	size_t want = (size_t)n > ahead ? (size_t)n : ahead;
	if (want > end - off)
		want = (size_t)(end - off);
	*p = (const uint8_t *)"";
	if (want == 0)
		return OK;
	if (want > w->cap) {
		uint8_t *more = realloc(w->p, want);
		CHECK(more, ERR_NOMEM, "%s: %zu bytes at %" PRIu64, ix->label, want, off);
		w->p = more;
		w->cap = want;
	}
	w->n = 0;
	TRY(piece_read(ix, off, want, w->p, err));
	w->off = off;
	w->n = want;
	*p = w->p;
fail:
	return rc;
}

void window_free(struct window *w)
{
	free(w->p);
	*w = (struct window){NULL, 0, 0, 0};
}

/* ---- table of contents ---- */

static errc toc_read(struct index_header *ix, const struct block_index_ranges *ranges, struct err *err)
{
	errc rc = OK;
	ix->part = "TOC";
	CHECK(ix->size >= INDEX_HEADER_BYTES + TOC_BYTES, ERR_CORRUPT, "%s: %" PRIu64 " bytes, header and TOC need %d", ix->label, ix->size,
		INDEX_HEADER_BYTES + TOC_BYTES);
	CHECK(ix->size <= LIMIT_INDEX_BYTES, ERR_LIMIT, "%s: %" PRIu64 " bytes, at most %" PRIu64 " are read", ix->label, ix->size,
		LIMIT_INDEX_BYTES);
	uint64_t tail = OPEN_TAIL_BYTES;
	if (ranges && ranges->postings_table_off < ix->size && ix->size - ranges->postings_table_off <= OPEN_READ_BYTES &&
		ix->size - ranges->postings_table_off >= TOC_BYTES)
		tail = ix->size - ranges->postings_table_off;
	if (tail > ix->size)
		tail = ix->size;
	uint8_t *p = malloc((size_t)tail);
	CHECK(p, ERR_NOMEM, "%s: %" PRIu64 " bytes", ix->label, tail);
	rc = ix->files->read(ix->files, "index", ix->size - tail, (size_t)tail, p, err);
	if (rc) {
		free(p);
		goto fail;
	}
	ix->tail = p;
	ix->tail_off = ix->size - tail;

	const uint8_t *toc = p + tail - TOC_BYTES;
	uint64_t toc_off = ix->size - TOC_BYTES;
	CHECK(get_be32(toc + 48) == crc32c(0, toc, 48), ERR_CORRUPT, "%s: TOC at %" PRIu64 ": CRC differs", ix->label, toc_off);
	uint64_t symbols = get_be64(toc), series = get_be64(toc + 8), label_index = get_be64(toc + 16), postings = get_be64(toc + 32),
		 table = get_be64(toc + 40);
	CHECK(symbols >= INDEX_HEADER_BYTES && symbols < series && series <= postings && postings <= table && table < toc_off, ERR_CORRUPT,
		"%s: TOC at %" PRIu64 ": sections at %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 " are not in order", ix->label, toc_off,
		symbols, series, postings, table);
	ix->ranges = (struct block_index_ranges){ix->size, symbols, series, postings, table};
	ix->series_end = label_index >= series && label_index < postings ? label_index : postings;
	ix->part = "header";
	uint8_t header[INDEX_HEADER_BYTES];
	TRY(piece_read(ix, 0, sizeof header, header, err));
	CHECK(get_be32(header) == INDEX_MAGIC, ERR_CORRUPT, "%s: begins with %08" PRIx32 ", an index with %08" PRIx32, ix->label, get_be32(header),
		INDEX_MAGIC);
	CHECK(header[4] != 1, ERR_UNSUPPORTED, "%s: index version 1 (Prometheus of 2017) is not read", ix->label);
	CHECK(header[4] == 2 || header[4] == 3, ERR_UNSUPPORTED, "%s: index version %u is not one that this build reads", ix->label, header[4]);
fail:
	return rc;
}

/* A section's length and count; *begin is behind both, *end where its CRC stands. `limit`: what the section must end before. */
static errc section_read(const struct index_header *ix, const char *what, uint64_t off, uint64_t limit, uint64_t *begin, uint64_t *end,
	uint32_t *count, uint32_t *crc, struct err *err)
{
	errc rc = OK;
	uint8_t head[8];
	CHECK(limit - off >= sizeof head + CRC_BYTES, ERR_CORRUPT, "%s: %s at %" PRIu64 ": %" PRIu64 " bytes to the next section", ix->label, what,
		off, limit - off);
	TRY(piece_read(ix, off, sizeof head, head, err));
	uint32_t len = get_be32(head);
	CHECK(len >= 4 && len <= limit - off - 4 - CRC_BYTES, ERR_CORRUPT, "%s: %s at %" PRIu64 ": length %" PRIu32 " does not fit before %" PRIu64,
		ix->label, what, off, len, limit);
	*begin = off + sizeof head;
	*end = off + 4 + len;
	*count = get_be32(head + 4);
	*crc = crc32c(0, head + 4, 4);
fail:
	return rc;
}

static errc section_crc(const struct index_header *ix, const char *what, uint64_t end, uint32_t crc, struct err *err)
{
	errc rc = OK;
	uint8_t stored[CRC_BYTES];
	TRY(piece_read(ix, end, sizeof stored, stored, err));
	CHECK(get_be32(stored) == crc, ERR_CORRUPT, "%s: %s that end at %" PRIu64 ": CRC differs", ix->label, what, end);
fail:
	return rc;
}

/* ---- symbols ---- */

/* A string at off, and the bytes it takes with its length. */
static errc string_at(const struct index_header *ix, struct window *w, uint64_t off, uint64_t end, struct span *s, size_t *n, struct err *err)
{
	errc rc = OK;
	const uint8_t *p;
	uint64_t left = end - off;
	TRY(index_window(ix, w, off, left < UVARINT_MAX_BYTES ? left : UVARINT_MAX_BYTES, OPEN_READ_BYTES, end, &p, err));
	struct rd rd = rd_of(p, left < UVARINT_MAX_BYTES ? (size_t)left : UVARINT_MAX_BYTES);
	uint64_t length = rd_uvarint(&rd);
	size_t head = (size_t)(rd.p - p);
	CHECK(rd.ok && length <= left - head, ERR_CORRUPT, "%s: a string at %" PRIu64 " does not end before %" PRIu64, ix->label, off, end);
	TRY(index_window(ix, w, off, head + length, OPEN_READ_BYTES, end, &p, err));
	*s = span_of(p + head, (size_t)length);
	*n = head + (size_t)length;
fail:
	return rc;
}

static errc symbols_open(struct index_header *ix, struct err *err)
{
	errc rc = OK;
	struct window w = {NULL, 0, 0, 0};
	struct buf last;
	uint32_t crc;
	buf_init(&last, LIMIT_INDEX_ENTRY_BYTES + 1);
	ix->part = "symbols";
	TRY(section_read(
		ix, "symbols", ix->ranges.symbols_off, ix->ranges.series_off, &ix->symbols_begin, &ix->symbols_end, &ix->n_symbols, &crc, err));
	uint64_t bytes = ix->symbols_end - ix->symbols_begin;
	CHECK(ix->n_symbols <= bytes, ERR_CORRUPT, "%s: %" PRIu32 " symbols in %" PRIu64 " bytes", ix->label, ix->n_symbols, bytes);
	ix->symbol_offs = calloc(ix->n_symbols / INDEX_SAMPLE + 1, sizeof *ix->symbol_offs);
	CHECK(ix->symbol_offs, ERR_NOMEM, "%s: %" PRIu32 " symbols", ix->label, ix->n_symbols);
	if (bytes <= block_symbols_kept_bytes) {
		/* as a window that holds everything already */
		w.p = malloc((size_t)bytes + 1);
		CHECK(w.p, ERR_NOMEM, "%s: %" PRIu64 " bytes of symbols", ix->label, bytes);
		TRY(piece_read(ix, ix->symbols_begin, (size_t)bytes, w.p, err));
		w = (struct window){w.p, (size_t)bytes, ix->symbols_begin, (size_t)bytes};
	}
	uint64_t off = ix->symbols_begin;
	for (uint32_t i = 0; i < ix->n_symbols; i++) {
		struct span s = SPAN("");
		size_t n = 0;
		TRY(string_at(ix, &w, off, ix->symbols_end, &s, &n, err));
		CHECK(i == 0 || span_cmp(span_of(last.p, last.n), s) < 0, ERR_CORRUPT,
			"%s: symbol %" PRIu32 " at %" PRIu64 " is not above the one before it", ix->label, i, off);
		crc = crc32c(crc, s.p - (n - s.n), n);
		buf_clear(&last);
		buf_put(&last, s.p, s.n);
		CHECK(!last.failed && buf_reserve(&last, 1), ERR_NOMEM, "%s: a symbol of %zu bytes", ix->label, s.n);
		if (i % INDEX_SAMPLE == 0)
			ix->symbol_offs[i / INDEX_SAMPLE] = (uint32_t)(off - ix->symbols_begin);
		off += n;
	}
	CHECK(off == ix->symbols_end, ERR_CORRUPT, "%s: %" PRIu32 " symbols end at %" PRIu64 ", their section at %" PRIu64, ix->label, ix->n_symbols,
		off, ix->symbols_end);
	TRY(section_crc(ix, "symbols", ix->symbols_end, crc, err));
	if (bytes <= block_symbols_kept_bytes) {
		ix->symbols = w.p;
		w = (struct window){NULL, 0, 0, 0};
	}
fail:
	window_free(&w);
	buf_free(&last);
	return rc;
}

/* ---- postings table ---- */

errc index_table_entry(const struct index_header *ix, struct window *w, size_t ahead, uint64_t *off, struct table_entry *e, struct err *err)
{
	errc rc = OK;
	const uint8_t *p;
	uint64_t left = ix->table_end - *off, have = left < 256 ? left : 256;
	for (;;) {
		TRY(index_window(ix, w, *off, have, ahead, ix->table_end, &p, err));
		/* all that the window has, so that most entries need one look */
		size_t n = w->n - (size_t)(p - w->p);
		struct rd rd = rd_of(p, n < left ? n : (size_t)left);
		uint64_t keys = rd_uvarint(&rd);
		CHECK(!rd.ok || keys == 2, ERR_CORRUPT, "%s: postings table entry at %" PRIu64 ": %" PRIu64 " keys instead of 2", ix->label, *off,
			keys);
		e->name = rd_str(&rd);
		e->value = rd_str(&rd);
		e->postings_off = rd_uvarint(&rd);
		if (rd.ok) {
			*off += (uint64_t)(rd.p - p);
			return OK;
		}
		CHECK(n < left, ERR_CORRUPT, "%s: postings table entry at %" PRIu64 " does not end before %" PRIu64, ix->label, *off, ix->table_end);
		have = 2 * (uint64_t)n < left ? 2 * (uint64_t)n : left;
	}
fail:
	return rc;
}

static bool grow(void **v, size_t *cap, size_t n, size_t size)
{
	if (n < *cap)
		return true;
	size_t more = *cap ? 2 * *cap : 64;
	void *p = realloc(*v, more * size);
	if (!p)
		return false;
	*v = p;
	*cap = more;
	return true;
}

/* `name` is what the entry's name is called in ix->text. */
static errc table_sample(struct index_header *ix, const struct table_entry *e, uint64_t off, bool new_name, struct err *err)
{
	errc rc = OK;
	if (new_name) {
		CHECK(grow((void **)&ix->names, &ix->cap_names, ix->n_names, sizeof *ix->names), ERR_NOMEM, "%s: %zu label names", ix->label,
			ix->n_names);
		struct span name = arena_dup(&ix->text, e->name);
		CHECK(name.p, ERR_NOMEM, "%s: label names", ix->label);
		ix->names[ix->n_names++] = (struct index_name){.name = name, .begin = off, .end = off, .first_sample = ix->n_samples};
	}
	struct index_name *name = &ix->names[ix->n_names - 1];
	if (name->n_values++ % INDEX_SAMPLE == 0) {
		CHECK(grow((void **)&ix->samples, &ix->cap_samples, ix->n_samples, sizeof *ix->samples), ERR_NOMEM, "%s: %zu values", ix->label,
			ix->n_samples);
		struct span value = arena_dup(&ix->text, e->value);
		CHECK(value.p, ERR_NOMEM, "%s: values of labels", ix->label);
		ix->samples[ix->n_samples++] = (struct index_sample){value, off};
		name->n_samples++;
	}
fail:
	return rc;
}

static errc table_open(struct index_header *ix, struct err *err)
{
	errc rc = OK;
	struct window w = {NULL, 0, 0, 0};
	struct buf last; /* name and value of the entry before */
	uint32_t count, crc;
	size_t last_name = 0;
	buf_init(&last, 2 * LIMIT_INDEX_ENTRY_BYTES);
	ix->part = "postings table";
	TRY(section_read(
		ix, "postings table", ix->ranges.postings_table_off, ix->size - TOC_BYTES, &ix->table_begin, &ix->table_end, &count, &crc, err));
	uint64_t off = ix->table_begin;
	for (uint32_t i = 0; i < count; i++) {
		struct table_entry e;
		uint64_t at = off;
		const uint8_t *p;
		TRY(index_table_entry(ix, &w, OPEN_READ_BYTES, &off, &e, err));
		TRY(index_window(ix, &w, at, off - at, OPEN_READ_BYTES, ix->table_end, &p, err));
		crc = crc32c(crc, p, (size_t)(off - at));
		struct span name = span_of(last.p, last_name), value = last.n ? span_of(last.p + last_name, last.n - last_name) : SPAN("");
		int by_name = i == 0 ? -1 : span_cmp(name, e.name);
		CHECK(by_name < 0 || (by_name == 0 && span_cmp(value, e.value) < 0), ERR_CORRUPT,
			"%s: postings table entry %" PRIu32 " at %" PRIu64 " is not above the one before it", ix->label, i, at);
		CHECK(e.postings_off >= ix->ranges.postings_off && e.postings_off < ix->ranges.postings_table_off &&
				ix->ranges.postings_table_off - e.postings_off >= 8 + CRC_BYTES,
			ERR_CORRUPT, "%s: postings table entry at %" PRIu64 " names a list at %" PRIu64 ", outside of the postings", ix->label, at,
			e.postings_off);
		if (e.name.n == 0 && e.value.n == 0)
			ix->all_off = e.postings_off;
		TRY(table_sample(ix, &e, at, by_name != 0, err));
		ix->names[ix->n_names - 1].end = off;
		last_name = e.name.n;
		buf_clear(&last);
		buf_put(&last, e.name.p, e.name.n);
		buf_put(&last, e.value.p, e.value.n);
		CHECK(!last.failed && buf_reserve(&last, 1), ERR_NOMEM, "%s: a label of %zu bytes", ix->label, e.name.n + e.value.n);
	}
	CHECK(off == ix->table_end, ERR_CORRUPT, "%s: %" PRIu32 " postings table entries end at %" PRIu64 ", their section at %" PRIu64, ix->label,
		count, off, ix->table_end);
	TRY(section_crc(ix, "postings table entries", ix->table_end, crc, err));
fail:
	window_free(&w);
	buf_free(&last);
	return rc;
}

/* ---- open, close, search ---- */

errc index_open(struct index_header *ix, struct block_files *files, struct ulid ulid, const struct block_index_ranges *ranges, struct err *err)
{
	errc rc = OK;
	*ix = (struct index_header){.files = files};
	struct ulid_text name = ulid_text(ulid);
	memcpy(ix->label, name.s, ULID_TEXT_BYTES);
	memcpy(ix->label + ULID_TEXT_BYTES, "/index", sizeof "/index");
	arena_init(&ix->text, LIMIT_INDEX_TEXT_BYTES);
	ix->part = "file";
	if (ranges && ranges->index_size > 0)
		ix->size = ranges->index_size;
	else
		TRY(files->size(files, "index", &ix->size, err));
	TRY(toc_read(ix, ranges, err));
	TRY(symbols_open(ix, err));
	TRY(table_open(ix, err));
	ix->part = NULL;
	free(ix->tail);
	ix->tail = NULL;
	return OK;
fail:
	if (rc == ERR_CORRUPT && err && !strstr(err->msg, ix->label))
		err_wrap(err, "%s", ix->label);
	index_close(ix);
	return rc;
}

void index_close(struct index_header *ix)
{
	free(ix->tail);
	free(ix->symbol_offs);
	free(ix->symbols);
	free(ix->names);
	free(ix->samples);
	arena_free(&ix->text);
	ix->tail = NULL;
	ix->symbol_offs = NULL;
	ix->symbols = NULL;
	ix->names = NULL;
	ix->samples = NULL;
}

size_t index_memory(const struct index_header *ix)
{
	size_t n = (ix->n_symbols / INDEX_SAMPLE + 1) * sizeof *ix->symbol_offs + ix->cap_names * sizeof *ix->names +
		   ix->cap_samples * sizeof *ix->samples + ix->text.held_bytes;
	if (ix->symbols)
		n += (size_t)(ix->symbols_end - ix->symbols_begin);
	return n;
}

const struct index_name *index_name_find(const struct index_header *ix, struct span name)
{
	size_t low = 0, high = ix->n_names;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		int c = span_cmp(ix->names[mid].name, name);
		if (c == 0)
			return &ix->names[mid];
		if (c < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}
