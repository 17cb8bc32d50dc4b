/* block/block_index_write.c - the index of a block, written in one go from series that arrived one by one.
 *
 *   header     u32 BE magic 0xbaaad700, u8 2
 *   symbols    sorted strings, the empty one first
 *   series     at multiples of 16: ids of names and values, chunk times and references
 *   postings   per name and value the references of its series; first ("", ""): all of them
 *   table      where each list of postings is
 *   TOC        where each section is
 * Fields and offsets: docs/format/block.md. Label-index sections are not written, as Prometheus does since 3.7.
 *
 * Symbol ids follow byte order, so no series can be encoded before the last one has arrived. Until then a series is a record in
 * the spool, a byte or two per label, in arrival's ids:
 *
 *     u32 LE length | uvarint labels | per label: varint (pair - pair of the series before at this place) | chunks as the index has them
 *
 * Who knows all pairs before the first series says them first (index_writer_pair): strings are sorted once then, pairs are numbered in order, and what
 * follows is numbers. Strings that no series has after all are left out.
 *
 * In memory there are: each distinct string, each distinct pair of name and value, one spool buffer; at the end 4 bytes a series.
 * A spool that outgrows its buffer goes to <temporary directory>/series.spool. Postings are collected in passes over the spool,
 * each for as many pairs (in table order) as the budget of one pass holds: a pass costs less than the memory it saves.
 *
 * One file because the sections are made of the same three things, strings, pairs and spool, and none of them means anything without the others.
 *
 * Source: Prometheus tsdb/docs/format/index.md, tsdb/index/index.go for the TOC's values.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block_write_int.h"

enum { SPOOL_BYTES = 256 * 1024, PASS_POSTINGS = 2 * 1024 * 1024, PASS_POSTINGS_MIN = 64 * 1024, PAIR_SLOTS_MIN = 1024 };

#define INDEX_MAGIC UINT32_C(0xbaaad700)
#define NOT_IN_PASS UINT32_MAX

size_t index_writer_pass_postings, index_writer_spool_bytes;

struct pair {
	uint32_t name, value; /* symbol ids; ranks once sorted */
	uint32_t count;	      /* series that have it */
};

/* What stood at a place of the label sets last; the texts are the symbols'. */
struct last_label {
	struct label text;
	uint32_t name;
	uint32_t pair;
};

struct index_writer {
	const char *dir;
	struct symbols symbols;
	struct pair *pairs;
	uint32_t n_pairs, cap_pairs;
	uint32_t *pair_slots;
	uint32_t n_pair_slots;
	struct last_label *last;
	uint32_t n_last, cap_last; /* places ever used */
	uint32_t n_labels;	   /* of the series before; 0 = none yet */
	uint32_t n_series;
	uint64_t n_postings;
	bool ranked; /* pairs were said beforehand; their numbers are their places in order, names and values are ranks */
	struct buf record;
	/* the spool: first in the file, when there is one, then in memory */
	uint8_t *spool;
	size_t n_spool, cap_spool;
	int spool_fd;
	char *spool_path;
	uint64_t spool_file_bytes;
	/* finish */
	uint32_t *symbol_order, *symbol_rank;
	uint32_t *pair_order;
	uint32_t n_listed; /* of pair_order, once pairs without series are out of it */
	uint32_t *refs;
};

errc index_writer_new(const char *dir, struct index_writer **out, struct err *err)
{
	struct index_writer *w = calloc(1, sizeof *w);
	if (!w)
		return err_set(err, ERR_NOMEM, "%s: no memory for an index writer", dir);
	w->dir = dir;
	w->spool_fd = -1;
	symbols_init(&w->symbols, io_random_u64());
	buf_init(&w->record, UINT32_MAX);
	w->cap_spool = index_writer_spool_bytes ? index_writer_spool_bytes : SPOOL_BYTES;
	w->spool = malloc(w->cap_spool);
	if (!w->spool) {
		index_writer_free(w);
		return err_set(err, ERR_NOMEM, "%s: no memory for an index writer", dir);
	}
	*out = w;
	return OK;
}

void index_writer_free(struct index_writer *w)
{
	if (!w)
		return;
	symbols_free(&w->symbols);
	io_close(w->spool_fd);
	buf_free(&w->record);
	free(w->pairs);
	free(w->pair_slots);
	free(w->last);
	free(w->spool);
	free(w->spool_path);
	free(w->symbol_order);
	free(w->symbol_rank);
	free(w->pair_order);
	free(w->refs);
	free(w);
}

/* ---- pairs ---- */

static uint32_t pair_hash(const struct index_writer *w, uint32_t name, uint32_t value)
{
	uint64_t x = ((uint64_t)name << 32 | value) ^ w->symbols.seed;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return (uint32_t)(x ^ x >> 31);
}

static bool pairs_room(struct index_writer *w)
{
	if (w->n_pairs < w->cap_pairs)
		return true;
	if (w->n_pairs > UINT32_MAX / 2)
		return false;
	uint32_t cap = w->cap_pairs < 256 ? 256 : w->cap_pairs + w->cap_pairs / 2;
	struct pair *p = realloc(w->pairs, cap * sizeof *p);
	if (!p)
		return false;
	w->pairs = p;
	w->cap_pairs = cap;
	return true;
}

static bool pair_slots_room(struct index_writer *w)
{
	if (w->n_pairs < w->n_pair_slots / 3 * 2)
		return true;
	if (w->n_pair_slots >= UINT32_C(1) << 31)
		return false;
	uint32_t n = w->n_pair_slots ? w->n_pair_slots * 2 : PAIR_SLOTS_MIN;
	uint32_t *slots = calloc(n, sizeof *slots);
	if (!slots)
		return false;
	for (uint32_t id = 0; id < w->n_pairs; id++) {
		uint32_t i = pair_hash(w, w->pairs[id].name, w->pairs[id].value) & (n - 1);
		while (slots[i])
			i = (i + 1) & (n - 1);
		slots[i] = id + 1;
	}
	free(w->pair_slots);
	w->pair_slots = slots;
	w->n_pair_slots = n;
	return true;
}

static errc pair_intern(struct index_writer *w, uint32_t name, uint32_t value, uint32_t *id, struct err *err)
{
	if (!pairs_room(w) || !pair_slots_room(w))
		return err_set(err, ERR_NOMEM, "block index: no memory for %u pairs of labels", w->n_pairs);
	uint32_t i = pair_hash(w, name, value) & (w->n_pair_slots - 1);
	for (; w->pair_slots[i]; i = (i + 1) & (w->n_pair_slots - 1)) {
		const struct pair *p = &w->pairs[w->pair_slots[i] - 1];
		if (p->name == name && p->value == value) {
			*id = w->pair_slots[i] - 1;
			return OK;
		}
	}
	w->pairs[w->n_pairs] = (struct pair){name, value, 0};
	w->pair_slots[i] = w->n_pairs + 1;
	*id = w->n_pairs++;
	return OK;
}

/* ---- the spool ---- */

static errc spool_write(struct index_writer *w, const void *p, size_t n, struct err *err)
{
	errc rc = OK;
	if (w->spool_fd < 0) {
		size_t n_dir = strlen(w->dir);
		w->spool_path = malloc(n_dir + sizeof "/series.spool");
		CHECK(w->spool_path, ERR_NOMEM, "%s: no memory for a path", w->dir);
		memcpy(w->spool_path, w->dir, n_dir);
		memcpy(w->spool_path + n_dir, "/series.spool", sizeof "/series.spool");
		TRY(io_open(w->spool_path, IO_READ | IO_WRITE | IO_CREATE | IO_TRUNC, &w->spool_fd, err));
	}
	rc = io_pwrite(w->spool_fd, p, n, w->spool_file_bytes, err);
	if (rc != OK)
		err_wrap(err, "%s", w->spool_path);
	w->spool_file_bytes += n;
fail:
	return rc;
}

static errc spool_flush(struct index_writer *w, struct err *err)
{
	errc rc = w->n_spool > 0 ? spool_write(w, w->spool, w->n_spool, err) : OK;
	w->n_spool = 0;
	return rc;
}

static errc spool_put(struct index_writer *w, const void *p, size_t n, struct err *err)
{
	errc rc = OK;
	if (w->cap_spool - w->n_spool < n)
		TRY(spool_flush(w, err));
	if (n > w->cap_spool)
		return spool_write(w, p, n, err);
	memcpy(w->spool + w->n_spool, p, n);
	w->n_spool += n;
fail:
	return rc;
}

/* Records in order. Without a file they are read where they lie. */
struct spool_reader {
	struct index_writer *w;
	uint8_t *buf;
	size_t at, n, cap;
	uint64_t file_at;
};

static errc spool_open(struct index_writer *w, struct spool_reader *r, struct err *err)
{
	*r = (struct spool_reader){.w = w};
	if (w->spool_fd < 0)
		return OK;
	errc rc = spool_flush(w, err);
	if (rc)
		return rc;
	r->cap = w->cap_spool;
	r->buf = malloc(r->cap);
	return r->buf ? OK : err_set(err, ERR_NOMEM, "%s: no memory to read it", w->spool_path);
}

static void spool_close(struct spool_reader *r)
{
	free(r->buf);
}

/* The next n bytes, together. */
static errc spool_take(struct spool_reader *r, size_t n, const uint8_t **p, struct err *err)
{
	errc rc = OK;
	struct index_writer *w = r->w;
	if (w->spool_fd < 0) {
		CHECK(w->n_spool - r->at >= n, ERR_CORRUPT, "%s: the series in memory end early", w->dir);
		*p = w->spool + r->at;
		r->at += n;
		return OK;
	}
	if (r->n - r->at < n) {
		CHECK(w->spool_file_bytes - r->file_at + (r->n - r->at) >= n, ERR_CORRUPT, "%s: a record of %zu bytes ends behind the file",
			w->spool_path, n);
		if (r->cap < n) {
			uint8_t *buf = realloc(r->buf, n);
			CHECK(buf, ERR_NOMEM, "%s: no memory for a record of %zu bytes", w->spool_path, n);
			r->buf = buf;
			r->cap = n;
		}
		r->n -= r->at;
		memmove(r->buf, r->buf + r->at, r->n);
		r->at = 0;
		uint64_t left = w->spool_file_bytes - r->file_at;
		size_t want = left < r->cap - r->n ? (size_t)left : r->cap - r->n;
		TRY(io_pread_full(w->spool_fd, r->buf + r->n, want, r->file_at, err));
		r->n += want;
		r->file_at += want;
	}
	*p = r->buf + r->at;
	r->at += n;
fail:
	return rc;
}

static errc spool_next(struct spool_reader *r, struct rd *record, struct err *err)
{
	const uint8_t *p;
	errc rc = spool_take(r, 4, &p, err);
	if (rc)
		return rc;
	uint32_t n = get_le32(p);
	rc = spool_take(r, n, &p, err);
	if (rc)
		return rc;
	*record = rd_of(p, n);
	return OK;
}

/* ---- strings and pairs in order ---- */

/* Stable counting sort of the pairs in `from` by key, where key < n_keys. */
static void pairs_sort_by(
	const struct pair *pairs, size_t key_offset, uint32_t *count, uint32_t n_keys, const uint32_t *from, uint32_t *to, uint32_t n)
{
	memset(count, 0, (n_keys + (size_t)1) * sizeof *count);
#define KEY(id) (*(const uint32_t *)(const void *)((const char *)&pairs[id] + key_offset))
	for (uint32_t i = 0; i < n; i++)
		count[KEY(i) + 1]++;
	for (uint32_t k = 0; k < n_keys; k++)
		count[k + 1] += count[k];
	for (uint32_t i = 0; i < n; i++) {
		uint32_t id = from ? from[i] : i;
		to[count[KEY(id)]++] = id;
	}
#undef KEY
}

/* Names and values become ranks, pair_order goes by name, then value. */
static errc pairs_sort(struct index_writer *w, struct err *err)
{
	errc rc = OK;
	uint32_t n = w->n_pairs;
	for (uint32_t i = 0; i < n; i++) {
		w->pairs[i].name = w->symbol_rank[w->pairs[i].name];
		w->pairs[i].value = w->symbol_rank[w->pairs[i].value];
	}
	free(w->symbol_rank);
	w->symbol_rank = NULL;
	uint32_t *by_value = malloc((size_t)n * sizeof *by_value);
	uint32_t *count = malloc((w->symbols.n + (size_t)1) * sizeof *count);
	w->pair_order = malloc((size_t)n * sizeof *w->pair_order);
	CHECK(by_value && count && w->pair_order, ERR_NOMEM, "block index: no memory to sort %u pairs of labels", n);
	pairs_sort_by(w->pairs, offsetof(struct pair, value), count, w->symbols.n, NULL, by_value, n);
	pairs_sort_by(w->pairs, offsetof(struct pair, name), count, w->symbols.n, by_value, w->pair_order, n);
fail:
	free(by_value);
	free(count);
	return rc;
}

/* Every string gets its rank, the empty one the first; every pair its place. Nothing is interned any more. */
static errc strings_sort(struct index_writer *w, struct err *err)
{
	errc rc = OK;
	uint32_t id;
	TRY(symbols_intern(&w->symbols, SPAN(""), &id, err));
	/* nothing is looked up any more, and sorting wants memory */
	free(w->symbols.slots);
	w->symbols.slots = NULL;
	w->symbols.n_slots = 0;
	free(w->pair_slots);
	w->pair_slots = NULL;
	TRY(symbols_sort(&w->symbols, &w->symbol_order, &w->symbol_rank, err));
	TRY(pairs_sort(w, err));
fail:
	return rc;
}

/* ---- adding ---- */

static errc last_grow(struct index_writer *w, uint32_t n, struct err *err)
{
	if (n <= w->cap_last)
		return OK;
	uint32_t cap = n + n / 2 + 16;
	struct last_label *last = realloc(w->last, cap * sizeof *last);
	if (!last)
		return err_set(err, ERR_NOMEM, "block index: no memory for %u labels", n);
	w->last = last;
	w->cap_last = cap;
	return OK;
}

/* Sets the text of w->last[i] to the label's; neighbours in a sorted block share most of theirs, so a compare mostly saves the lookups. */
static errc label_intern(struct index_writer *w, uint32_t i, struct label l, uint32_t *pair, struct err *err)
{
	struct last_label *last = &w->last[i];
	errc rc = OK;
	uint32_t value;
	bool known = i < w->n_last && span_eq(last->text.name, l.name);
	if (known && span_eq(last->text.value, l.value)) {
		*pair = last->pair;
		return OK;
	}
	if (!known) {
		TRY(symbols_intern(&w->symbols, l.name, &last->name, err));
		last->text.name = symbols_text(&w->symbols, last->name);
	}
	TRY(symbols_intern(&w->symbols, l.value, &value, err));
	last->text.value = symbols_text(&w->symbols, value);
	TRY(pair_intern(w, last->name, value, pair, err));
fail:
	return rc;
}

static void chunks_put(struct buf *b, const struct chunk_place *c, size_t n)
{
	buf_uvarint(b, n);
	for (size_t i = 0; i < n; i++) {
		if (i == 0)
			buf_varint(b, c[0].mint);
		else
			buf_uvarint(b, (uint64_t)c[i].mint - (uint64_t)c[i - 1].maxt);
		buf_uvarint(b, (uint64_t)c[i].maxt - (uint64_t)c[i].mint);
		if (i == 0)
			buf_uvarint(b, c[0].ref);
		else
			buf_varint(b, (int64_t)(c[i].ref - c[i - 1].ref));
	}
}

static errc record_put(struct index_writer *w, uint32_t n_labels, const struct chunk_place *chunks, size_t n, struct err *err)
{
	errc rc = OK;
	struct buf *rec = &w->record;
	chunks_put(rec, chunks, n);
	CHECK(!rec->failed, ERR_NOMEM, "block index: no memory for a series of %zu chunks", n);
	uint8_t head[4];
	put_le32(head, (uint32_t)rec->n);
	TRY(spool_put(w, head, sizeof head, err));
	TRY(spool_put(w, rec->p, rec->n, err));
	w->n_labels = n_labels;
	w->n_postings += n_labels;
	w->n_series++;
fail:
	return rc;
}

static errc record_begin(struct index_writer *w, uint32_t n_labels, size_t n, struct err *err)
{
	errc rc = OK;
	CHECK(n_labels > 0 && n > 0, ERR_INVALID, "block index: a series of %u labels and %zu chunks", n_labels, n);
	CHECK(w->n_series < UINT32_MAX, ERR_LIMIT, "block index: %u series", w->n_series);
	TRY(last_grow(w, n_labels, err));
	buf_clear(&w->record);
	buf_uvarint(&w->record, n_labels);
fail:
	return rc;
}

static void record_pair(struct index_writer *w, uint32_t place, uint32_t pair)
{
	uint32_t before = 0;
	if (place < w->n_last)
		before = w->last[place].pair;
	else
		w->n_last = place + 1;
	w->last[place].pair = pair;
	w->pairs[pair].count++;
	buf_varint(&w->record, (int64_t)pair - (int64_t)before);
}

errc index_writer_add(struct index_writer *w, struct labels labels, const struct chunk_place *chunks, size_t n, struct err *err)
{
	errc rc = OK;
	bool ordered = false; /* the sets differ at a place already passed, the right way round */
	ASSERT(!w->ranked);
	TRY(record_begin(w, labels.n, n, err));
	for (uint32_t i = 0; i < labels.n; i++) {
		struct label l = labels.v[i];
		CHECK(l.name.n > 0 && l.value.n > 0 && (i == 0 || span_cmp(labels.v[i - 1].name, l.name) < 0), ERR_INVALID,
			"block index: label %u of a series is empty or out of order: %.*s", i, SPAN_ARG(l.name));
		if (!ordered && i < w->n_labels) {
			int c = span_cmp(w->last[i].text.name, l.name);
			if (c == 0)
				c = span_cmp(w->last[i].text.value, l.value);
			ASSERT(c <= 0);
			ordered = c < 0;
		}
		uint32_t pair = 0;
		TRY(label_intern(w, i, l, &pair, err));
		record_pair(w, i, pair);
	}
	ASSERT(ordered || labels.n > w->n_labels);
	TRY(record_put(w, labels.n, chunks, n, err));
fail:
	return rc;
}

errc index_writer_pair(struct index_writer *w, struct label l, struct err *err)
{
	errc rc = OK;
	ASSERT(!w->ranked && w->n_series == 0);
	struct pair *before = w->n_pairs ? &w->pairs[w->n_pairs - 1] : NULL, p = {0};
	w->symbols.borrows = true;
	CHECK(l.name.n > 0 && l.value.n > 0, ERR_INVALID, "block index: an empty label: %.*s", SPAN_ARG(l.name));
	if (before && span_eq(symbols_text(&w->symbols, before->name), l.name))
		p.name = before->name;
	else
		TRY(symbols_intern(&w->symbols, l.name, &p.name, err));
	TRY(symbols_intern(&w->symbols, l.value, &p.value, err));
	CHECK(pairs_room(w), ERR_NOMEM, "block index: no memory for %u pairs of labels", w->n_pairs);
	w->pairs[w->n_pairs++] = p;
fail:
	return rc;
}

errc index_writer_pairs_end(struct index_writer *w, uint32_t **ranks, struct err *err)
{
	errc rc = OK;
	struct pair *sorted = malloc((w->n_pairs + (size_t)1) * sizeof *sorted);
	uint32_t *r = malloc((w->n_pairs + (size_t)1) * sizeof *r);
	*ranks = NULL;
	CHECK(sorted && r, ERR_NOMEM, "block index: no memory to sort %u pairs of labels", w->n_pairs);
	TRY(strings_sort(w, err));
	for (uint32_t i = 0; i < w->n_pairs; i++) {
		r[w->pair_order[i]] = i;
		sorted[i] = w->pairs[w->pair_order[i]];
		w->pair_order[i] = i;
		ASSERT(i == 0 || sorted[i].name != sorted[i - 1].name || sorted[i].value != sorted[i - 1].value);
	}
	free(w->pairs);
	w->pairs = sorted;
	w->cap_pairs = w->n_pairs;
	w->ranked = true;
	*ranks = r;
	return OK;
fail:
	free(sorted);
	free(r);
	return rc;
}

errc index_writer_add_pairs(
	struct index_writer *w, const uint32_t *pairs, uint32_t n_labels, const struct chunk_place *chunks, size_t n, struct err *err)
{
	errc rc = OK;
	bool ordered = false;
	ASSERT(w->ranked);
	TRY(record_begin(w, n_labels, n, err));
	for (uint32_t i = 0; i < n_labels; i++) {
		ASSERT(pairs[i] < w->n_pairs && (i == 0 || w->pairs[pairs[i - 1]].name < w->pairs[pairs[i]].name));
		if (!ordered && i < w->n_labels) {
			ASSERT(w->last[i].pair <= pairs[i]);
			ordered = w->last[i].pair < pairs[i];
		}
		record_pair(w, i, pairs[i]);
	}
	ASSERT(ordered || n_labels > w->n_labels);
	TRY(record_put(w, n_labels, chunks, n, err));
fail:
	return rc;
}

/* ---- the sections ---- */

/* Leaves out the pairs that no series has, and the symbols that only they have: ranks close up. */
static errc symbols_used(struct index_writer *w, uint32_t *n, struct err *err)
{
	errc rc = OK;
	uint32_t *at = calloc(w->symbols.n + (size_t)1, sizeof *at);
	*n = 0;
	CHECK(at, ERR_NOMEM, "block index: no memory for %u symbols", w->symbols.n);
	for (uint32_t i = 0; i < w->n_pairs; i++) {
		const struct pair *p = &w->pairs[w->pair_order[i]];
		if (p->count == 0)
			continue;
		at[p->name] = at[p->value] = 1;
		w->pair_order[w->n_listed++] = w->pair_order[i];
	}
	for (uint32_t i = 0; i < w->symbols.n; i++) {
		if (i > 0 && !at[i])
			continue;
		w->symbol_order[*n] = w->symbol_order[i];
		at[i] = (*n)++;
	}
	for (uint32_t i = 0; i < w->n_pairs; i++) {
		w->pairs[i].name = at[w->pairs[i].name];
		w->pairs[i].value = at[w->pairs[i].value];
	}
fail:
	free(at);
	return rc;
}

static errc symbols_write(struct index_writer *w, struct block_out *out, struct err *err)
{
	errc rc = OK;
	uint32_t n;
	if (!w->ranked)
		TRY(strings_sort(w, err));
	TRY(symbols_used(w, &n, err));
	uint64_t size = 4;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t bytes = w->symbols.v[w->symbol_order[i]].n;
		size += uvarint_size(bytes) + bytes;
	}
	CHECK(size <= UINT32_MAX, ERR_LIMIT, "block index: %" PRIu64 " bytes of symbols, the format holds 4 GiB", size);
	block_out_be32(out, (uint32_t)size);
	block_out_crc_begin(out);
	block_out_be32(out, n);
	for (uint32_t i = 0; i < n; i++)
		block_out_str(out, symbols_text(&w->symbols, w->symbol_order[i]));
	block_out_crc_end(out);
fail:
	return rc;
}

/* Walks the spool's label part: pair ids by place, differences to the series before. */
struct pair_walk {
	uint32_t *last;
	uint32_t n_places, n_pairs;
};

static inline bool pair_next(struct pair_walk *walk, struct rd *rec, uint32_t place, uint32_t *pair)
{
	uint64_t p = (uint64_t)walk->last[place] + (uint64_t)rd_varint(rec);
	if (UNLIKELY(p >= walk->n_pairs || !rec->ok))
		return false;
	*pair = walk->last[place] = (uint32_t)p;
	return true;
}

static errc walk_init(struct index_writer *w, struct pair_walk *walk, struct err *err)
{
	*walk = (struct pair_walk){calloc(w->n_last, sizeof *walk->last), w->n_last, w->n_pairs};
	return walk->last ? OK : err_set(err, ERR_NOMEM, "block index: no memory for %u labels", w->n_last);
}

static errc series_write(struct index_writer *w, struct block_out *out, struct err *err)
{
	errc rc = OK;
	struct spool_reader spool = {0};
	struct pair_walk walk = {0};
	struct buf *body = &w->record;
	struct rd rec;
	TRY(walk_init(w, &walk, err));
	TRY(spool_open(w, &spool, err));
	w->refs = malloc((size_t)w->n_series * sizeof *w->refs);
	CHECK(w->refs, ERR_NOMEM, "block index: no memory for %u series", w->n_series);
	for (uint32_t s = 0; s < w->n_series; s++) {
		TRY(spool_next(&spool, &rec, err));
		uint64_t n = rd_uvarint(&rec);
		CHECK(n <= walk.n_places, ERR_CORRUPT, "%s: series %u of the spool is damaged", w->dir, s);
		buf_clear(body);
		buf_uvarint(body, n);
		for (uint32_t i = 0; i < n; i++) {
			uint32_t pair = 0;
			CHECK(pair_next(&walk, &rec, i, &pair), ERR_CORRUPT, "%s: series %u of the spool is damaged", w->dir, s);
			buf_uvarint(body, w->pairs[pair].name);
			buf_uvarint(body, w->pairs[pair].value);
		}
		buf_put(body, rec.p, rd_left(&rec));
		CHECK(!body->failed, ERR_NOMEM, "block index: no memory for a series of %zu bytes", rd_left(&rec));

		block_out_pad(out, 16);
		uint64_t ref = block_out_at(out) / 16;
		CHECK(ref <= UINT32_MAX, ERR_LIMIT, "block index: series beyond %" PRIu64 " bytes", LIMIT_INDEX_BYTES);
		w->refs[s] = (uint32_t)ref;
		block_out_uvarint(out, body->n);
		block_out_crc_begin(out);
		block_out_put(out, body->p, body->n);
		block_out_crc_end(out);
		TRY(block_out_check(out, err));
	}
fail:
	spool_close(&spool);
	free(walk.last);
	return rc;
}

static void list_write(struct block_out *out, const uint32_t *refs_be, uint32_t n)
{
	block_out_be32(out, 4 + 4 * n);
	block_out_crc_begin(out);
	block_out_be32(out, n);
	block_out_put(out, refs_be, (size_t)n * 4);
	block_out_crc_end(out);
}

/* Collects the postings of the pairs that have a place in `at` and moves the places on. */
static errc pass_collect(struct index_writer *w, uint32_t *at, uint32_t *postings, struct err *err)
{
	errc rc = OK;
	struct spool_reader spool = {0};
	struct pair_walk walk = {0};
	struct rd rec;
	TRY(walk_init(w, &walk, err));
	TRY(spool_open(w, &spool, err));
	for (uint32_t s = 0; s < w->n_series; s++) {
		TRY(spool_next(&spool, &rec, err));
		uint64_t n = rd_uvarint(&rec);
		CHECK(n <= walk.n_places, ERR_CORRUPT, "%s: series %u of the spool is damaged", w->dir, s);
		for (uint32_t i = 0; i < n; i++) {
			uint32_t pair = 0;
			CHECK(pair_next(&walk, &rec, i, &pair), ERR_CORRUPT, "%s: series %u of the spool is damaged", w->dir, s);
			if (at[pair] != NOT_IN_PASS)
				put_be32(&postings[at[pair]++], w->refs[s]);
		}
	}
fail:
	spool_close(&spool);
	free(walk.last);
	return rc;
}

static errc postings_write(struct index_writer *w, struct block_out *out, struct err *err)
{
	errc rc = OK;
	/* Four passes over a small index, so that its lists take no more memory than its series did; more over a large one. */
	size_t quarter = w->n_postings / 4 < PASS_POSTINGS_MIN ? (size_t)PASS_POSTINGS_MIN : w->n_postings / 4;
	size_t budget = index_writer_pass_postings ? index_writer_pass_postings : quarter < PASS_POSTINGS ? quarter : (size_t)PASS_POSTINGS;
	if (budget < w->n_postings / 16)
		budget = w->n_postings / 16;
	if (budget > w->n_postings)
		budget = w->n_postings;
	if (budget < w->n_series)
		budget = w->n_series;
	uint32_t *postings = malloc(budget * sizeof *postings);
	uint32_t *at = malloc((size_t)w->n_pairs * sizeof *at);
	CHECK(postings && at && budget < NOT_IN_PASS, ERR_NOMEM, "block index: no memory for %zu postings", budget);

	block_out_pad(out, 4);
	for (uint32_t s = 0; s < w->n_series; s++)
		put_be32(&postings[s], w->refs[s]);
	list_write(out, postings, w->n_series);

	for (uint32_t begin = 0, end; begin < w->n_listed; begin = end) {
		uint32_t n = 0;
		memset(at, 0xff, (size_t)w->n_pairs * sizeof *at);
		for (end = begin; end < w->n_listed; end++) {
			uint32_t pair = w->pair_order[end];
			if (w->pairs[pair].count > budget - n)
				break;
			at[pair] = n;
			n += w->pairs[pair].count;
		}
		TRY(pass_collect(w, at, postings, err));
		n = 0;
		for (uint32_t i = begin; i < end; i++) {
			const struct pair *p = &w->pairs[w->pair_order[i]];
			CHECK(at[w->pair_order[i]] == n + p->count, ERR_CORRUPT, "%s: the spool of series is damaged", w->dir);
			list_write(out, postings + n, p->count);
			n += p->count;
			TRY(block_out_check(out, err));
		}
	}
fail:
	free(postings);
	free(at);
	return rc;
}

static uint64_t list_bytes(uint32_t n)
{
	return 12 + 4 * (uint64_t)n;
}

/* `off`: of the first list. */
static errc table_write(struct index_writer *w, struct block_out *out, uint64_t off, struct err *err)
{
	errc rc = OK;
	const struct symbols *y = &w->symbols;
	uint64_t first = off, size = 4 + 3 + uvarint_size(off);
	off += list_bytes(w->n_series);
	for (uint32_t i = 0; i < w->n_listed; i++) {
		const struct pair *p = &w->pairs[w->pair_order[i]];
		uint32_t n_name = y->v[w->symbol_order[p->name]].n, n_value = y->v[w->symbol_order[p->value]].n;
		size += 1 + uvarint_size(n_name) + n_name + uvarint_size(n_value) + n_value + uvarint_size(off);
		off += list_bytes(p->count);
	}
	CHECK(size <= UINT32_MAX, ERR_LIMIT, "block index: a postings table of %" PRIu64 " bytes, the format holds 4 GiB", size);
	block_out_be32(out, (uint32_t)size);
	block_out_crc_begin(out);
	block_out_be32(out, w->n_listed + 1);
	off = first;
	block_out_uvarint(out, 2);
	block_out_str(out, SPAN(""));
	block_out_str(out, SPAN(""));
	block_out_uvarint(out, off);
	off += list_bytes(w->n_series);
	for (uint32_t i = 0; i < w->n_listed; i++) {
		const struct pair *p = &w->pairs[w->pair_order[i]];
		block_out_uvarint(out, 2);
		block_out_str(out, symbols_text(y, w->symbol_order[p->name]));
		block_out_str(out, symbols_text(y, w->symbol_order[p->value]));
		block_out_uvarint(out, off);
		off += list_bytes(p->count);
	}
	block_out_crc_end(out);
fail:
	return rc;
}

errc index_writer_finish(struct index_writer *w, struct block_out *out, struct err *err)
{
	errc rc = OK;
	ASSERT(w->n_series > 0 && block_out_at(out) == 0);
	block_out_be32(out, INDEX_MAGIC);
	block_out_put(out, "\2", 1);
	uint64_t symbols = block_out_at(out);
	TRY(symbols_write(w, out, err));
	uint64_t series = block_out_at(out);
	TRY(series_write(w, out, err));
	uint64_t postings = block_out_at(out); /* before the padding, as the reference notes it */
	TRY(postings_write(w, out, err));
	uint64_t table = block_out_at(out);
	TRY(table_write(w, out, (postings + 3) & ~UINT64_C(3), err));
	block_out_crc_begin(out);
	block_out_be64(out, symbols);
	block_out_be64(out, series);
	block_out_be64(out, postings); /* label indexes: none */
	block_out_be64(out, table);
	block_out_be64(out, postings);
	block_out_be64(out, table);
	block_out_crc_end(out);
	TRY(block_out_check(out, err));
	if (w->spool_fd >= 0) {
		io_close(w->spool_fd);
		w->spool_fd = -1;
		TRY(io_unlink(w->spool_path, err));
	}
fail:
	return rc;
}
