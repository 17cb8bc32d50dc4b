/* block/block_index_reader.c - one thread's way through an open index: symbols, lists of postings, series entries.
 *
 *   postings list   u32 BE len = 4 + 4 n, u32 BE n, n * u32 BE series reference ascending, CRC-32C over len bytes
 *   series entry    at a multiple of 16, its reference is offset / 16: uvarint len, body, CRC-32C of the body
 *   body            uvarint labels, each: uvarint name id, uvarint value id; uvarint chunks,
 *                   the first: varint mint, uvarint maxt - mint, uvarint reference
 *                   each other: uvarint mint - previous maxt, uvarint maxt - mint, varint reference - previous reference
 *
 * All differences wrap modulo 2^64. Reads go through windows of 64 KiB or more, so that neighbours come out of one read: matchers ask
 * for values, and series for references, in ascending order.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_read_int.h"

/* ---- symbols ---- */

/* Bytes of the symbols when they are not kept: out of an aligned page, or by a read of their own where they cross its end. */
static errc symbol_bytes(struct index_reader *r, uint64_t off, uint64_t n, const uint8_t **p, struct err *err)
{
	errc rc = OK;
	const struct index_header *ix = r->ix;
	uint64_t page = off / INDEX_READ_BYTES, begin = page * INDEX_READ_BYTES;
	struct window *w = &r->pages[page % SYMBOL_PAGES];
	if (begin < ix->symbols_begin)
		begin = ix->symbols_begin;
	uint64_t end = (page + 1) * INDEX_READ_BYTES;
	if (end > ix->symbols_end)
		end = ix->symbols_end;
	if (off < end && n <= end - off) {
		TRY(index_window(ix, w, begin, end - begin, 0, end, p, err));
		*p += off - begin;
	} else {
		TRY(index_window(ix, &r->long_symbol, off, n, 0, ix->symbols_end, p, err));
	}
fail:
	return rc;
}

static errc symbol_paged(struct index_reader *r, uint32_t id, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	const struct index_header *ix = r->ix;
	uint64_t off = ix->symbols_begin + ix->symbol_offs[id / INDEX_SAMPLE];
	for (uint32_t i = id % INDEX_SAMPLE;; i--) {
		const uint8_t *p;
		uint64_t left = ix->symbols_end - off, head = left < UVARINT_MAX_BYTES ? left : UVARINT_MAX_BYTES;
		TRY(symbol_bytes(r, off, head, &p, err));
		struct rd rd = rd_of(p, (size_t)head);
		uint64_t length = rd_uvarint(&rd);
		head = (uint64_t)(rd.p - p);
		CHECK(rd.ok && length <= left - head, ERR_CORRUPT, "%s: symbol %" PRIu32 " at %" PRIu64 " does not end before %" PRIu64, ix->label,
			id, off, ix->symbols_end);
		off += head;
		if (i == 0) {
			TRY(symbol_bytes(r, off, length, &p, err));
			*out = arena_dup(arena, span_of(p, (size_t)length));
			CHECK(out->p, ERR_NOMEM, "%s: a symbol of %" PRIu64 " bytes", ix->label, length);
			return OK;
		}
		off += length;
	}
fail:
	return rc;
}

/* Checked at open: every string ends inside. */
static struct span symbol_kept(const struct index_header *ix, uint32_t id)
{
	size_t at = ix->symbol_offs[id / INDEX_SAMPLE];
	struct rd rd = rd_of(ix->symbols + at, (size_t)(ix->symbols_end - ix->symbols_begin) - at);
	for (uint32_t i = id % INDEX_SAMPLE; i > 0; i--)
		(void)rd_str(&rd);
	return rd_str(&rd);
}

errc index_symbol(struct index_reader *r, uint64_t id, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	const struct index_header *ix = r->ix;
	CHECK(id < ix->n_symbols, ERR_CORRUPT, "%s: symbol %" PRIu64 " of %" PRIu32, ix->label, id, ix->n_symbols);
	struct index_symbol *slot = &r->symbols[id & r->symbol_mask];
	if (slot->id != id || slot->generation != r->generation) {
		struct span text;
		if (ix->symbols)
			text = symbol_kept(ix, (uint32_t)id);
		else
			TRY(symbol_paged(r, (uint32_t)id, arena, &text, err));
		*slot = (struct index_symbol){(uint32_t)id, r->generation, text};
	}
	*out = slot->text;
fail:
	return rc;
}

void index_reader_forget(struct index_reader *r)
{
	if (r->ix->symbols)
		return;
	if (++r->generation == 0) {
		memset(r->symbols, 0, ((size_t)r->symbol_mask + 1) * sizeof *r->symbols);
		r->generation = 1;
	}
}

/* ---- postings ---- */

/* refs[0..n) as they stand in the file, in place to host order; ascending and inside the series section. */
static errc refs_check(const struct index_header *ix, uint64_t off, uint32_t *refs, size_t n, struct err *err)
{
	errc rc = OK;
	bool ascending = true;
	for (size_t i = 0; i < n; i++) {
		refs[i] = __builtin_bswap32(refs[i]);
		ascending = ascending && (i == 0 || refs[i - 1] < refs[i]);
	}
	CHECK(ascending, ERR_CORRUPT, "%s: postings at %" PRIu64 " do not ascend", ix->label, off);
	CHECK(n == 0 || ((uint64_t)refs[0] * SERIES_ALIGN >= ix->ranges.series_off && (uint64_t)refs[n - 1] * SERIES_ALIGN < ix->series_end),
		ERR_CORRUPT, "%s: postings at %" PRIu64 " name series outside of %" PRIu64 "..%" PRIu64, ix->label, off, ix->ranges.series_off,
		ix->series_end);
fail:
	return rc;
}

errc index_postings_read(struct index_reader *r, uint64_t off, struct arena *arena, struct postings *out, struct err *err)
{
	errc rc = OK;
	const struct index_header *ix = r->ix;
	uint64_t end = ix->ranges.postings_table_off;
	const uint8_t *p;
	TRY(index_window(ix, &r->lists, off, 8, INDEX_READ_BYTES, end, &p, err));
	uint64_t len = get_be32(p), n = get_be32(p + 4);
	CHECK(len == 4 + 4 * n && len + 4 + CRC_BYTES <= end - off, ERR_CORRUPT,
		"%s: postings at %" PRIu64 ": length %" PRIu64 " with %" PRIu64 " series", ix->label, off, len, n);
	uint32_t crc = crc32c(0, p + 4, 4), stored;
	uint32_t *refs = arena_calloc(arena, (size_t)n, sizeof *refs);
	CHECK(refs, ERR_NOMEM, "%s: postings of %" PRIu64 " series", ix->label, n);
	if (len + 8 <= INDEX_READ_BYTES) {
		TRY(index_window(ix, &r->lists, off, len + 8, INDEX_READ_BYTES, end, &p, err));
		memcpy(refs, p + 8, (size_t)n * 4);
		stored = get_be32(p + 8 + 4 * n);
	} else {
		uint8_t tail[CRC_BYTES];
		TRY(ix->files->read(ix->files, "index", off + 8, (size_t)n * 4, refs, err));
		TRY(ix->files->read(ix->files, "index", off + 8 + 4 * n, sizeof tail, tail, err));
		stored = get_be32(tail);
	}
	crc = crc32c(crc, refs, (size_t)n * 4);
	CHECK(crc == stored, ERR_CORRUPT, "%s: postings at %" PRIu64 ": CRC differs", ix->label, off);
	TRY(refs_check(ix, off, refs, (size_t)n, err));
	*out = (struct postings){refs, (size_t)n};
fail:
	return rc;
}

static errc reader_all(struct postings_index *px, struct arena *arena, struct postings *out, struct err *err)
{
	struct index_reader *r = (struct index_reader *)px;
	if (r->ix->all_off == 0)
		return err_set(err, ERR_CORRUPT, "%s: the postings table has no list of all series", r->ix->label);
	return index_postings_read(r, r->ix->all_off, arena, out, err);
}

/* Where to begin looking for `value` among a name's entries: the last sample that is not above it. NULL: all are. */
static const struct index_sample *sample_before(const struct index_header *ix, const struct index_name *name, struct span value)
{
	size_t low = 0, high = name->n_samples;
	const struct index_sample *s = ix->samples + name->first_sample;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (span_cmp(s[mid].value, value) <= 0)
			low = mid + 1;
		else
			high = mid;
	}
	return low ? &s[low - 1] : NULL;
}

static errc reader_get(
	struct postings_index *px, struct span name_text, struct span value, struct arena *arena, struct postings *out, struct err *err)
{
	errc rc = OK;
	struct index_reader *r = (struct index_reader *)px;
	*out = (struct postings){NULL, 0};
	const struct index_name *name = name_text.n ? index_name_find(r->ix, name_text) : NULL;
	const struct index_sample *from = name ? sample_before(r->ix, name, value) : NULL;
	if (!from)
		return OK;
	for (uint64_t off = from->off; off < name->end;) {
		struct table_entry e;
		TRY(index_table_entry(r->ix, &r->table, INDEX_READ_BYTES, &off, &e, err));
		int c = span_cmp(e.value, value);
		if (c == 0)
			return index_postings_read(r, e.postings_off, arena, out, err);
		if (c > 0)
			break;
	}
fail:
	return rc;
}

static errc reader_values(struct postings_index *px, struct span name_text, struct span prefix,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	errc rc = OK;
	struct index_reader *r = (struct index_reader *)px;
	const struct index_name *name = name_text.n ? index_name_find(r->ix, name_text) : NULL;
	if (!name)
		return OK;
	const struct index_sample *from = sample_before(r->ix, name, prefix);
	for (uint64_t off = from ? from->off : name->begin; off < name->end;) {
		struct table_entry e;
		TRY(index_table_entry(r->ix, &r->table, 4 * INDEX_READ_BYTES, &off, &e, err));
		if (span_has_prefix(e.value, prefix))
			TRY(emit(arg, e.value, err));
		else if (span_cmp(e.value, prefix) > 0)
			break;
	}
fail:
	return rc;
}

static const struct postings_index_ops reader_ops = {reader_all, reader_get, reader_values};

/* ---- series ---- */

static errc series_labels(struct index_reader *r, uint64_t off, struct rd *rd, struct arena *arena, struct labels *out, struct err *err)
{
	errc rc = OK;
	const char *file = r->ix->label;
	uint64_t n = rd_uvarint(rd);
	CHECK(rd->ok && n <= rd_left(rd) / 2, ERR_CORRUPT, "%s: series at %" PRIu64 ": %" PRIu64 " labels in %zu bytes", file, off, n, rd_left(rd));
	struct label *v = arena_calloc(arena, (size_t)n, sizeof *v);
	CHECK(v, ERR_NOMEM, "%s: series at %" PRIu64 ": %" PRIu64 " labels", file, off, n);
	uint32_t used = 0;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t name = rd_uvarint(rd), value = rd_uvarint(rd);
		CHECK(rd->ok, ERR_CORRUPT, "%s: series at %" PRIu64 " ends in its labels", file, off);
		TRY(index_symbol(r, name, arena, &v[used].name, err));
		TRY(index_symbol(r, value, arena, &v[used].value, err));
		CHECK(v[used].name.n > 0 && (used == 0 || span_cmp(v[used - 1].name, v[used].name) < 0), ERR_CORRUPT,
			"%s: series at %" PRIu64 ": label names do not ascend", file, off);
		used += v[used].value.n > 0;
	}
	*out = (struct labels){v, used};
fail:
	return rc;
}

static int by_mint(const void *a, const void *b)
{
	const struct index_chunk *x = a, *y = b;
	return x->mint != y->mint ? (x->mint > y->mint) - (x->mint < y->mint) : (x->ref > y->ref) - (x->ref < y->ref);
}

static errc series_chunks(struct index_reader *r, uint64_t off, struct rd *rd, struct arena *arena, struct index_series *out, struct err *err)
{
	errc rc = OK;
	const char *file = r->ix->label;
	uint64_t n = rd_uvarint(rd);
	CHECK(rd->ok && n <= rd_left(rd) / 3, ERR_CORRUPT, "%s: series at %" PRIu64 ": %" PRIu64 " chunks in %zu bytes", file, off, n, rd_left(rd));
	struct index_chunk *v = arena_calloc(arena, (size_t)n, sizeof *v);
	CHECK(v, ERR_NOMEM, "%s: series at %" PRIu64 ": %" PRIu64 " chunks", file, off, n);
	uint64_t t = 0, ref = 0;
	bool ascending = true;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t mint = t + (i == 0 ? (uint64_t)rd_varint(rd) : rd_uvarint(rd));
		t = mint + rd_uvarint(rd);
		ref += i == 0 ? rd_uvarint(rd) : (uint64_t)rd_varint(rd);
		v[i] = (struct index_chunk){(int64_t)mint, (int64_t)t, ref};
		CHECK(rd->ok && v[i].mint <= v[i].maxt, ERR_CORRUPT,
			"%s: series at %" PRIu64 ": chunk %" PRIu64 " of %" PRIu64 " ends early or before it begins", file, off, i, n);
		ascending = ascending && (i == 0 || v[i - 1].mint <= v[i].mint);
	}
	/* in blocks of others chunks may overlap; in theirs and ours the order by time is what readers are promised */
	if (!ascending)
		qsort(v, (size_t)n, sizeof *v, by_mint);
	out->chunks = v;
	out->n_chunks = (size_t)n;
fail:
	return rc;
}

errc index_series_read(struct index_reader *r, uint64_t off, size_t ahead, struct arena *arena, struct index_series *out, struct err *err)
{
	errc rc = OK;
	const struct index_header *ix = r->ix;
	const uint8_t *p;
	CHECK(off >= ix->ranges.series_off && off < ix->series_end, ERR_CORRUPT, "%s: series at %" PRIu64 ", outside of %" PRIu64 "..%" PRIu64,
		ix->label, off, ix->ranges.series_off, ix->series_end);
	uint64_t left = ix->series_end - off, head = left < UVARINT_MAX_BYTES ? left : UVARINT_MAX_BYTES;
	TRY(index_window(ix, &r->series, off, head, ahead, ix->series_end, &p, err));
	struct rd rd = rd_of(p, (size_t)head);
	uint64_t len = rd_uvarint(&rd);
	head = (uint64_t)(rd.p - p);
	CHECK(rd.ok && len <= left - head && CRC_BYTES <= left - head - len, ERR_CORRUPT,
		"%s: series at %" PRIu64 ": length %" PRIu64 " does not fit before %" PRIu64, ix->label, off, len, ix->series_end);
	TRY(index_window(ix, &r->series, off, head + len + CRC_BYTES, ahead, ix->series_end, &p, err));
	CHECK(crc32c(0, p + head, (size_t)len) == get_be32(p + head + len), ERR_CORRUPT, "%s: series at %" PRIu64 ": CRC differs", ix->label, off);
	rd = rd_of(p + head, (size_t)len);
	TRY(series_labels(r, off, &rd, arena, &out->labels, err));
	TRY(series_chunks(r, off, &rd, arena, out, err));
	CHECK(rd_left(&rd) == 0, ERR_CORRUPT, "%s: series at %" PRIu64 ": %zu bytes behind its chunks", ix->label, off, rd_left(&rd));
	out->next_off = off + head + len + CRC_BYTES;
fail:
	return rc;
}

/* ---- begin, end ---- */

errc index_reader_init(struct index_reader *r, const struct index_header *ix, struct err *err)
{
	*r = (struct index_reader){.postings = {&reader_ops}, .ix = ix, .generation = 1};
	while (r->symbol_mask + 1 < SYMBOL_SLOTS && r->symbol_mask + 1 < ix->n_symbols)
		r->symbol_mask = 2 * r->symbol_mask + 1;
	r->symbols = calloc((size_t)r->symbol_mask + 1, sizeof *r->symbols);
	return r->symbols ? OK : err_set(err, ERR_NOMEM, "%s: a reader", ix->label);
}

void index_reader_settle(struct index_reader *r, size_t n_series)
{
	uint32_t mask = r->symbol_mask;
	window_free(&r->table);
	window_free(&r->lists);
	while (mask >= SETTLED_SYMBOLS && mask / SETTLED_SYMBOLS >= n_series)
		mask /= 2;
	/* A slot's symbol stays where it is when the upper half goes. */
	struct index_symbol *fewer = mask < r->symbol_mask ? realloc(r->symbols, ((size_t)mask + 1) * sizeof *fewer) : NULL;
	if (fewer) {
		r->symbols = fewer;
		r->symbol_mask = mask;
	}
}

void index_reader_free(struct index_reader *r)
{
	window_free(&r->table);
	window_free(&r->lists);
	window_free(&r->series);
	window_free(&r->long_symbol);
	for (size_t i = 0; i < SYMBOL_PAGES; i++)
		window_free(&r->pages[i]);
	free(r->symbols);
	r->symbols = NULL;
}
