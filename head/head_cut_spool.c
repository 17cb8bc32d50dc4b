/* head/head_cut_spool.c - a window's chunks from the order in which its series came to the order of their labels.
 *
 *     put(place, ...) ─▶ bucket of places ─▶ 32 KiB buffer ─▶ <ULID>.cut, extent by extent        get(place): its bucket is read whole
 *
 * Reading a chunk file in the order of labels is a random read for each chunk. So what a cut makes of a series goes into the bucket that its place belongs to, and
 * bucket after bucket comes back: every byte is written and read once more, in large pieces. There are as many buckets as make the buffers of all of them as large
 * as one bucket: memory grows with the square root of the window.
 *
 *   in a bucket, one behind the other: u32 place in the bucket, u32 chunks, u32 crc32c of what follows; of each chunk i64 mint, i64 maxt, u32 encoding, u32 bytes;
 *   then the chunks' bytes. Or of a record of the chunk file: u32 place, u32 length + 2^31, u64 its offset there, its bytes, which have a checksum
 *
 * The file is never synced, and goes with the cut; head_open empties its directory.
 */
#include <stdio.h>
#include "head/head_cut_int.h"

enum { BUFFER_BYTES = 32 * 1024, BUCKETS_MIN = 2, BUCKETS_MAX = 1024, RECORD_HEADER = 12, CHUNK_HEADER = 24, RAW_HEADER = 16, PLACES_AHEAD = 4 };
#define RAW (UINT32_C(1) << 31)

uint64_t head_cut_direct_bytes;
size_t head_cut_spool_buffer_bytes;

struct bucket {
	uint8_t *buf; /* NULL: nothing was put yet */
	uint32_t n;
	uint32_t first, last; /* extents */
	uint64_t bytes;	      /* all */
};

struct cut_spool {
	char *path;
	int fd;
	size_t extent_bytes;
	size_t each, n_places; /* places of a bucket, of all */
	uint32_t n_buckets;
	struct bucket *buckets;
	uint32_t *next; /* of each extent, the one behind it in its bucket */
	uint32_t n_extents, cap_extents;
	/* the bucket that is read */
	uint32_t loaded; /* UINT32_MAX: none */
	uint8_t *bytes;
	size_t cap_bytes;
	uint32_t *begin; /* each + 1: of each place of it, its first one in at */
	uint32_t *at;	 /* where what was put is, by place, else as it was put */
	size_t cap_at;
	struct chunk *chunks;
	size_t cap_chunks;
	struct chain_record *records;
	size_t cap_records;
};

static uint32_t buckets_for(uint64_t bytes, size_t extent_bytes)
{
	uint64_t n = BUCKETS_MIN;
	while (n < BUCKETS_MAX && n * n * extent_bytes < bytes)
		n += n / 8 + 1;
	return (uint32_t)n;
}

errc head_cut_spool_open(struct window *w, size_t n_series, uint64_t bytes, struct cut_spool **out, struct err *err)
{
	errc rc = OK;
	struct cut_spool *s = calloc(1, sizeof *s);
	if (!s)
		return err_set(err, ERR_NOMEM, "no memory for the spool of a cut");
	s->fd = -1;
	s->loaded = UINT32_MAX;
	s->extent_bytes = head_cut_spool_buffer_bytes ? head_cut_spool_buffer_bytes : BUFFER_BYTES;
	s->n_places = n_series;
	s->n_buckets = buckets_for(bytes, s->extent_bytes);
	s->each = (n_series + s->n_buckets - 1) / s->n_buckets;
	s->buckets = calloc(s->n_buckets, sizeof *s->buckets);
	s->begin = malloc((s->each + 1) * sizeof *s->begin);
	if (asprintf(&s->path, "%s/%s.cut", w->head->cfg.chunk_dir, ulid_text(w->ulid).s) < 0)
		s->path = NULL;
	CHECK(s->buckets && s->begin && s->path, ERR_NOMEM, "no memory for the spool of a cut");
	TRY(io_open(s->path, IO_READ | IO_WRITE | IO_CREATE | IO_TRUNC, &s->fd, err));
	*out = s;
	return OK;
fail:
	head_cut_spool_close(s);
	return rc;
}

void head_cut_spool_close(struct cut_spool *s)
{
	if (!s)
		return;
	struct err ignored;
	if (s->fd >= 0) {
		io_close(s->fd);
		(void)!io_unlink(s->path, &ignored);
	}
	for (uint32_t i = 0; s->buckets && i < s->n_buckets; i++)
		free(s->buckets[i].buf);
	free(s->buckets);
	free(s->path);
	free(s->next);
	free(s->bytes);
	free(s->begin);
	free(s->at);
	free(s->chunks);
	free(s->records);
	free(s);
}

/* ---- in ---- */

static errc extent_write(struct cut_spool *s, struct bucket *b, struct err *err)
{
	errc rc = OK;
	if (s->n_extents == s->cap_extents) {
		uint32_t cap = s->cap_extents + s->cap_extents / 2 + 64;
		uint32_t *next = realloc(s->next, cap * sizeof *next);
		CHECK(next, ERR_NOMEM, "no memory for the spool of a cut");
		s->next = next;
		s->cap_extents = cap;
	}
	uint32_t extent = s->n_extents;
	rc = io_pwrite(s->fd, b->buf, b->n, (uint64_t)extent * s->extent_bytes, err);
	if (rc != OK) {
		err_wrap(err, "%s", s->path);
		return rc;
	}
	if (b->bytes == b->n)
		b->first = extent;
	else
		s->next[b->last] = extent;
	b->last = extent;
	b->n = 0;
	s->n_extents++;
fail:
	return rc;
}

static errc bucket_put(struct cut_spool *s, struct bucket *b, const void *bytes, size_t n, struct err *err)
{
	errc rc = OK;
	const uint8_t *p = bytes;
	if (!b->buf) {
		b->buf = malloc(s->extent_bytes);
		CHECK(b->buf, ERR_NOMEM, "no memory for the spool of a cut");
	}
	while (n > 0) {
		if (b->n == s->extent_bytes)
			TRY(extent_write(s, b, err));
		size_t part = s->extent_bytes - b->n < n ? s->extent_bytes - b->n : n;
		memcpy(b->buf + b->n, p, part);
		b->n += (uint32_t)part;
		b->bytes += part;
		p += part;
		n -= part;
	}
fail:
	return rc;
}

static void chunk_header(const struct chunk *c, uint8_t *out)
{
	put_le64(out, (uint64_t)c->mint);
	put_le64(out + 8, (uint64_t)c->maxt);
	put_le32(out + 16, c->enc);
	put_le32(out + 20, (uint32_t)c->data.n);
}

errc head_cut_spool_put(struct cut_spool *s, size_t place, const struct chunk *chunks, size_t n, struct err *err)
{
	errc rc = OK;
	uint8_t head[RECORD_HEADER], of_chunk[CHUNK_HEADER];
	struct bucket *b = &s->buckets[place / s->each];
	uint32_t crc = 0;
	for (size_t i = 0; i < n; i++) {
		chunk_header(&chunks[i], of_chunk);
		crc = crc32c(crc, of_chunk, sizeof of_chunk);
	}
	for (size_t i = 0; i < n; i++)
		crc = crc32c(crc, chunks[i].data.p, chunks[i].data.n);
	put_le32(head, (uint32_t)(place % s->each));
	put_le32(head + 4, (uint32_t)n);
	put_le32(head + 8, crc);
	TRY(bucket_put(s, b, head, sizeof head, err));
	for (size_t i = 0; i < n; i++) {
		chunk_header(&chunks[i], of_chunk);
		TRY(bucket_put(s, b, of_chunk, sizeof of_chunk, err));
	}
	for (size_t i = 0; i < n; i++)
		TRY(bucket_put(s, b, chunks[i].data.p, chunks[i].data.n, err));
fail:
	return rc;
}

errc head_cut_spool_put_record(struct cut_spool *s, size_t place, uint64_t off, struct span record, struct err *err)
{
	errc rc = OK;
	uint8_t head[RAW_HEADER];
	struct bucket *b = &s->buckets[place / s->each];
	ASSERT(record.n < RAW);
	put_le32(head, (uint32_t)(place % s->each));
	put_le32(head + 4, (uint32_t)record.n | RAW);
	put_le64(head + 8, off);
	TRY(bucket_put(s, b, head, sizeof head, err));
	TRY(bucket_put(s, b, record.p, record.n, err));
fail:
	return rc;
}

/* ---- out ---- */

/* The bytes of bucket b, together. Its buffer goes. */
static errc bucket_read(struct cut_spool *s, struct bucket *b, struct err *err)
{
	errc rc = OK;
	if (s->cap_bytes < b->bytes) {
		free(s->bytes);
		s->cap_bytes = 0;
		s->bytes = malloc(b->bytes);
		CHECK(s->bytes, ERR_NOMEM, "no memory for %llu bytes of a cut", (unsigned long long)b->bytes);
		s->cap_bytes = b->bytes;
	}
	uint64_t filed = b->bytes - b->n, at = 0;
	for (uint32_t extent = b->first; at < filed; extent = s->next[extent], at += s->extent_bytes)
		TRY(io_pread_full(s->fd, s->bytes + at, s->extent_bytes, (uint64_t)extent * s->extent_bytes, err));
	ASSERT(at == filed);
	if (b->n > 0)
		memcpy(s->bytes + filed, b->buf, b->n);
	free(b->buf);
	b->buf = NULL;
fail:
	return rc;
}

/* The head of what is at r->p, which is checked but for a record of the chunk file; r behind it. */
static bool record_next(struct rd *r, uint32_t *place, bool *raw)
{
	uint64_t bytes = 0;
	*place = rd_le32(r);
	uint32_t n = rd_le32(r);
	*raw = n & RAW;
	if (*raw)
		return rd_bytes(r, 8 + (uint64_t)(n & ~RAW)).p != NULL && r->ok;
	uint32_t crc = rd_le32(r);
	if (!r->ok || rd_left(r) / CHUNK_HEADER < n)
		return false;
	for (uint32_t i = 0; i < n; i++)
		bytes += get_le32(r->p + (size_t)i * CHUNK_HEADER + 20);
	bytes += (uint64_t)n * CHUNK_HEADER;
	if (rd_left(r) < bytes || crc32c(0, r->p, bytes) != crc)
		return false;
	r->p += bytes;
	return true;
}

/* What is in the bucket, by place. */
static errc bucket_index(struct cut_spool *s, const struct bucket *b, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(s->bytes, b->bytes);
	uint32_t place;
	bool raw;
	memset(s->begin, 0, (s->each + 1) * sizeof *s->begin);
	while (rd_left(&r) > 0) {
		CHECK(record_next(&r, &place, &raw) && place < s->each && (raw || s->begin[place + 1] == 0), ERR_CORRUPT,
			"%s: what was written is not what is read", s->path);
		s->begin[place + 1]++;
	}
	for (size_t i = 0; i < s->each; i++)
		s->begin[i + 1] += s->begin[i];
	if (s->cap_at < s->begin[s->each]) {
		free(s->at);
		s->cap_at = 0;
		s->at = malloc(s->begin[s->each] * sizeof *s->at);
		CHECK(s->at, ERR_NOMEM, "no memory for the series of a cut");
		s->cap_at = s->begin[s->each];
	}
	/* Each place's count up, then back to where it began. */
	r = rd_of(s->bytes, b->bytes);
	while (rd_left(&r) > 0) {
		uint32_t off = (uint32_t)(r.p - s->bytes);
		(void)record_next(&r, &place, &raw);
		s->at[s->begin[place]++] = off;
	}
	memmove(s->begin + 1, s->begin, s->each * sizeof *s->begin);
	s->begin[0] = 0;
fail:
	return rc;
}

static errc bucket_load(struct cut_spool *s, uint32_t no, struct err *err)
{
	errc rc = OK;
	struct bucket *b = &s->buckets[no];
	s->loaded = UINT32_MAX;
	CHECK(b->bytes < UINT32_MAX, ERR_LIMIT, "%s: %llu bytes of %zu series", s->path, (unsigned long long)b->bytes, s->each);
	TRY(bucket_read(s, b, err));
	TRY(bucket_index(s, b, err));
	s->loaded = no;
fail:
	return rc;
}

/* Where the place's are in at: *from to *to. Those of places that follow soon are asked of memory. */
static errc place_find(struct cut_spool *s, size_t place, uint32_t *from, uint32_t *to, struct err *err)
{
	errc rc = OK;
	ASSERT(place < s->n_places);
	if (place / s->each != s->loaded)
		TRY(bucket_load(s, (uint32_t)(place / s->each), err));
	size_t i = place % s->each, ahead = i + PLACES_AHEAD;
	*from = s->begin[i];
	*to = s->begin[i + 1];
	for (uint32_t k = ahead < s->each ? s->begin[ahead] : 1, end = ahead < s->each ? s->begin[ahead + 1] : 0; k < end; k++) {
		__builtin_prefetch(s->bytes + s->at[k]);
		__builtin_prefetch(s->bytes + s->at[k] + 64);
	}
fail:
	return rc;
}

/* *pp: the address of an array that is to hold n. */
static errc room(void *pp, size_t *cap, size_t n, size_t size, struct err *err)
{
	if (n <= *cap)
		return OK;
	if (!head_append_grow(pp, n + n / 2, size))
		return err_set(err, ERR_NOMEM, "no memory for the chunks of a series");
	*cap = n + n / 2;
	return OK;
}

errc head_cut_spool_records(struct cut_spool *s, size_t place, struct chain_record **v, size_t *n, struct err *err)
{
	errc rc = OK;
	uint32_t from, to;
	*n = 0;
	TRY(place_find(s, place, &from, &to, err));
	TRY(room(&s->records, &s->cap_records, to - from, sizeof *s->records, err));
	for (uint32_t k = from; k < to; k++) {
		const uint8_t *p = s->bytes + s->at[k];
		ASSERT(get_le32(p + 4) & RAW);
		s->records[(*n)++] = (struct chain_record){get_le64(p + 8), span_of(p + RAW_HEADER, get_le32(p + 4) & ~RAW)};
	}
	*v = s->records;
fail:
	return rc;
}

errc head_cut_spool_get(struct cut_spool *s, size_t place, struct chunk **chunks, size_t *n, struct err *err)
{
	errc rc = OK;
	uint32_t from, to;
	*n = 0;
	TRY(place_find(s, place, &from, &to, err));
	if (from == to)
		return OK;
	const uint8_t *p = s->bytes + s->at[from];
	uint32_t count = get_le32(p + 4);
	ASSERT(to == from + 1 && !(count & RAW));
	TRY(room(&s->chunks, &s->cap_chunks, count, sizeof *s->chunks, err));
	p += RECORD_HEADER;
	const uint8_t *data = p + (size_t)count * CHUNK_HEADER;
	for (uint32_t i = 0; i < count; i++, p += CHUNK_HEADER) {
		s->chunks[i] = (struct chunk){.mint = (int64_t)get_le64(p),
			.maxt = (int64_t)get_le64(p + 8),
			.enc = (uint8_t)get_le32(p + 16),
			.data = span_of(data, get_le32(p + 20))};
		data += get_le32(p + 20);
	}
	*chunks = s->chunks;
	*n = count;
fail:
	return rc;
}
