/* head/head_chunkfile.c - where full chunks of an open window leave memory for: head/<ULID>.<number>.chunks.
 *
 *   offset  size  field, little-endian
 *        0     8  the series' ref
 *        8     8  mint, i64 ms
 *       16     8  maxt
 *       24     5  offset of the series' record before this one, all ones: none
 *       29     2  payload bytes of the chunk that are in records before
 *       31     2  samples of the chunk up to here
 *       33     1  encoding
 *       34     1  1: the chunk goes on in another record
 *       35     4  length of the payload
 *       39     -  payload
 *        +     4  crc32c of everything before
 *
 * The log covers it, so it is synced only when a snapshot is about to name it (head_snapshot_write.c): a later process goes on in it then, cut back to what the
 * snapshot knows. head_load removes all others. Leaves refer to records by
 * offset; the checksum is looked at on every read. Writes are gathered: 4 KiB at first, an eighth of the file later, 64 KiB at most, so a
 * thousand small windows hold little. When the disk is full the bytes stay in memory (the memory limit sees them) and are tried again.
 * Few descriptors are open at once, whatever the number of windows.
 */
#include <stdio.h>
#include "head/head_cut_int.h"

enum { CHUNKFILE_FIRST_WRITE = 4096, PATH_BYTES = 4096, AT_PREVIOUS = 24, AT_LEN = 35 };

static void path_of(const struct chunkfile *f, char *path)
{
	snprintf(path, PATH_BYTES, "%s/%s.%08x.chunks", f->head->cfg.chunk_dir, ulid_text(f->ulid).s, f->number);
}

void head_chunkfile_init(struct chunkfile *f, struct head *h, struct ulid ulid, _Atomic uint64_t *total2)
{
	*f = (struct chunkfile){.head = h, .ulid = ulid, .flush_at = CHUNKFILE_FIRST_WRITE, .total2 = total2};
	io_random(&f->number, sizeof f->number);
	pthread_mutex_init(&f->mu, NULL);
}

/* A descriptor to use until fd_put; *slot < 0: it is the caller's alone. */
static errc fd_get(struct chunkfile *f, int *fd, int *slot, struct err *err)
{
	struct chunkfile_fds *c = &f->head->fds;
	pthread_mutex_lock(&c->mu);
	*slot = -1;
	for (int i = 0; i < HEAD_FDS; i++)
		if (c->v[i].file == f)
			*slot = i;
	if (*slot < 0) {
		for (int i = 0; i < HEAD_FDS; i++)
			if (c->v[i].pins == 0 && (*slot < 0 || c->v[i].used < c->v[*slot].used))
				*slot = i;
		char path[PATH_BYTES];
		path_of(f, path);
		errc rc = io_open(path, IO_READ | IO_WRITE | IO_CREATE, fd, err);
		if (rc != OK || *slot < 0) {
			pthread_mutex_unlock(&c->mu);
			return rc;
		}
		if (c->v[*slot].file)
			io_close(c->v[*slot].fd);
		c->v[*slot].file = f;
		c->v[*slot].fd = *fd;
	}
	c->v[*slot].pins++;
	c->v[*slot].used = ++c->clock;
	*fd = c->v[*slot].fd;
	pthread_mutex_unlock(&c->mu);
	return OK;
}

static void fd_put(struct chunkfile *f, int fd, int slot)
{
	if (slot < 0) {
		io_close(fd);
		return;
	}
	struct chunkfile_fds *c = &f->head->fds;
	pthread_mutex_lock(&c->mu);
	c->v[slot].pins--;
	pthread_mutex_unlock(&c->mu);
}

static void count_memory(struct chunkfile *f, size_t from, size_t to)
{
	atomic_fetch_add_explicit(&f->head->memory_bytes, (uint64_t)to - from, memory_order_relaxed);
	atomic_fetch_add_explicit(f->total2, (uint64_t)to - from, memory_order_relaxed);
}

static void flush_at_set(struct chunkfile *f)
{
	uint64_t at = f->flushed / 8;
	f->flush_at = at < CHUNKFILE_FIRST_WRITE ? CHUNKFILE_FIRST_WRITE : at > HEAD_CHUNK_BUFFER_BYTES ? HEAD_CHUNK_BUFFER_BYTES : (size_t)at;
}

static void flush(struct chunkfile *f)
{
	struct err err = {0};
	int fd, slot;
	errc rc = fd_get(f, &fd, &slot, &err);
	if (rc == OK) {
		f->exists = true;
		rc = io_pwrite(fd, f->buf, f->n, f->flushed, &err);
		fd_put(f, fd, slot);
	}
	if (rc != OK) {
		metric_add(f->head->m.chunk_write_failures, 1);
		log_warn("full chunks stay in memory", LULID("window", f->ulid), LU64("bytes", f->n), LERR(&err));
		f->flush_at = f->n + HEAD_CHUNK_BUFFER_BYTES;
		return;
	}
	atomic_fetch_add_explicit(&f->head->chunk_file_bytes, f->n, memory_order_relaxed);
	f->flushed += f->n;
	f->n = 0;
	flush_at_set(f);
	if (f->cap > f->flush_at * 2 + HEAD_CHUNK_MAX_BYTES) {
		count_memory(f, f->cap, 0);
		free(f->buf);
		f->buf = NULL;
		f->cap = 0;
	}
}

static void put_le40(uint8_t *p, uint64_t v)
{
	put_le32(p, (uint32_t)v);
	p[4] = (uint8_t)(v >> 32);
}

errc head_chunkfile_append(struct chunkfile *f, const struct chunkfile_record *r, uint64_t *off, struct err *err)
{
	errc rc = OK;
	size_t n = r->data.n + CHUNKFILE_OVERHEAD;
	ASSERT(n <= HEAD_RECORD_MAX_BYTES);
	pthread_mutex_lock(&f->mu);
	if (f->cap - f->n < n) {
		size_t cap = f->cap < 1024 ? 1024 : f->cap;
		while (cap - f->n < n)
			cap += cap / 2;
		uint8_t *buf = realloc(f->buf, cap);
		CHECK(buf, ERR_NOMEM, "no memory for a full chunk");
		count_memory(f, f->cap, cap);
		f->buf = buf;
		f->cap = cap;
	}
	uint8_t *p = f->buf + f->n;
	put_le64(p, r->ref);
	put_le64(p + 8, (uint64_t)r->mint);
	put_le64(p + 16, (uint64_t)r->maxt);
	put_le40(p + 24, r->previous);
	put_le32(p + 29, r->before | (uint32_t)r->n << 16);
	p[33] = r->enc;
	p[34] = r->goes_on;
	put_le32(p + AT_LEN, (uint32_t)r->data.n);
	memcpy(p + CHUNKFILE_HEADER, r->data.p, r->data.n);
	put_le32(p + n - 4, crc32c(0, p, n - 4));
	*off = f->flushed + f->n;
	ASSERT(*off < CHUNKFILE_NONE);
	f->n += n;
	if (f->n >= f->flush_at)
		flush(f);
fail:
	pthread_mutex_unlock(&f->mu);
	return rc;
}

/* A snapshot would bring the damage over the next start: without one the log mends it. */
static errc corrupt(const struct chunkfile *f, uint64_t off, struct err *err)
{
	head_snapshot_drop(f->head, "a chunk of an open window can't be read");
	return err_set(err, ERR_CORRUPT,
		"%s/%s.%08x.chunks: the chunk at offset %llu does not match its checksum; its samples are in the log, a restart brings them back",
		f->head->cfg.chunk_dir, ulid_text(f->ulid).s, f->number, (unsigned long long)off);
}

errc head_chunkfile_pin(struct chunkfile *f, struct chunkfile_pin *pin, struct err *err)
{
	*pin = (struct chunkfile_pin){.fd = -1, .slot = -1};
	pthread_mutex_lock(&f->mu);
	pin->flushed = f->flushed;
	pthread_mutex_unlock(&f->mu);
	return pin->flushed ? fd_get(f, &pin->fd, &pin->slot, err) : OK;
}

void head_chunkfile_unpin(struct chunkfile *f, const struct chunkfile_pin *pin)
{
	fd_put(f, pin->fd, pin->slot);
}

/* At least `least` bytes at off into out, up to `most` when they are there. */
static errc bytes_at(struct chunkfile *f, uint64_t off, size_t least, size_t most, uint8_t *out, size_t *got, struct err *err)
{
	errc rc = OK;
	int fd = -1, slot = -1;
	pthread_mutex_lock(&f->mu);
	if (off >= f->flushed) {
		uint64_t at = off - f->flushed;
		*got = at < f->n ? f->n - at : 0;
		*got = *got < most ? *got : most;
		if (*got)
			memcpy(out, f->buf + at, *got);
		pthread_mutex_unlock(&f->mu);
	} else {
		pthread_mutex_unlock(&f->mu);
		TRY(fd_get(f, &fd, &slot, err));
		rc = io_pread(fd, out, most, off, got, err);
		fd_put(f, fd, slot);
		if (rc != OK)
			head_snapshot_drop(f->head, "a chunk of an open window can't be read");
	}
	return rc == OK && *got < least ? corrupt(f, off, err) : rc;
fail:
	return rc;
}

errc head_chunkfile_bytes_read(struct chunkfile *f, uint64_t off, size_t n, uint8_t *out, struct err *err)
{
	size_t got;
	return bytes_at(f, off, n, n, out, &got, err);
}

errc head_chunkfile_sync(struct chunkfile *f, uint64_t *bytes, struct err *err)
{
	errc rc = OK;
	int fd = -1, slot = -1;
	pthread_mutex_lock(&f->mu);
	if (f->n > 0)
		flush(f);
	bool all = f->n == 0;
	*bytes = f->flushed;
	pthread_mutex_unlock(&f->mu);
	CHECK(all, ERR_NOSPACE, "full chunks of window %s could not be written", ulid_text(f->ulid).s);
	CHECK(!f->unsynced, ERR_IO, "the chunk file of window %s could not be synced before", ulid_text(f->ulid).s);
	if (*bytes == 0)
		return OK;
	TRY(fd_get(f, &fd, &slot, err));
	rc = io_fdatasync(fd, err);
	f->unsynced = rc != OK;
	fd_put(f, fd, slot);
fail:
	return rc;
}

errc head_chunkfile_adopt(struct chunkfile *f, uint32_t number, uint64_t *bytes, struct err *err)
{
	struct io_stat st;
	char path[PATH_BYTES];
	f->number = number;
	path_of(f, path);
	errc rc = io_stat(path, &st, err);
	if (rc != OK)
		return rc;
	pthread_mutex_lock(&f->mu);
	f->exists = st.exists;
	*bytes = f->flushed = st.exists ? st.size : 0;
	flush_at_set(f);
	pthread_mutex_unlock(&f->mu);
	atomic_fetch_add_explicit(&f->head->chunk_file_bytes, *bytes, memory_order_relaxed);
	return OK;
}

errc head_chunkfile_cut(struct chunkfile *f, uint64_t bytes, struct err *err)
{
	errc rc = OK;
	int fd = -1, slot = -1;
	CHECK(f->flushed >= bytes, ERR_CORRUPT, "the chunk file of window %s has %llu bytes, the snapshot knows %llu", ulid_text(f->ulid).s,
		(unsigned long long)f->flushed, (unsigned long long)bytes);
	if (f->flushed == bytes)
		return OK;
	TRY(fd_get(f, &fd, &slot, err));
	TRY(io_truncate(fd, bytes, err));
	pthread_mutex_lock(&f->mu);
	atomic_fetch_sub_explicit(&f->head->chunk_file_bytes, f->flushed - bytes, memory_order_relaxed);
	f->flushed = bytes;
	flush_at_set(f);
	pthread_mutex_unlock(&f->mu);
fail:
	if (fd >= 0)
		fd_put(f, fd, slot);
	return rc;
}

uint32_t head_chunkfile_record_len(const uint8_t *record)
{
	return get_le32(record + AT_LEN);
}

uint64_t head_chunkfile_record_previous(const uint8_t *record)
{
	return get_le32(record + AT_PREVIOUS) | (uint64_t)record[AT_PREVIOUS + 4] << 32;
}

errc head_chunkfile_judge(const struct chunkfile *f, uint64_t off, uint32_t len, const uint8_t *record, struct err *err)
{
	size_t n = len + (size_t)CHUNKFILE_OVERHEAD;
	if (get_le32(record + AT_LEN) != len || get_le32(record + n - 4) != crc32c(0, record, n - 4))
		return corrupt(f, off, err);
	return OK;
}

errc head_chunkfile_read(struct chunkfile *f, uint64_t off, uint32_t len, uint8_t *out, struct err *err)
{
	errc rc = OK;
	TRY(head_chunkfile_bytes_read(f, off, len + (size_t)CHUNKFILE_OVERHEAD, out, err));
	TRY(head_chunkfile_judge(f, off, len, out, err));
	memmove(out, out + CHUNKFILE_HEADER, len);
fail:
	return rc;
}

/* A record of floats. Most are small: the first read gets them whole. */
enum { RECORD_GUESS = 192, RECORD_BYTES = HEAD_CHUNK_MAX_BYTES + CHUNKFILE_OVERHEAD };
static errc record_bytes(struct chunkfile *f, struct cut_file *cut, uint64_t off, uint8_t *room, const uint8_t **out, struct err *err)
{
	errc rc = OK;
	size_t got, more;
	if (cut) {
		TRY(head_cut_file_bytes(cut, off, CHUNKFILE_OVERHEAD, out, err));
		uint32_t len = get_le32(*out + AT_LEN);
		if (len > HEAD_CHUNK_MAX_BYTES)
			return corrupt(f, off, err);
		return head_cut_file_bytes(cut, off, len + (size_t)CHUNKFILE_OVERHEAD, out, err);
	}
	TRY(bytes_at(f, off, CHUNKFILE_OVERHEAD, RECORD_GUESS, room, &got, err));
	uint32_t len = get_le32(room + AT_LEN);
	size_t n = len + (size_t)CHUNKFILE_OVERHEAD;
	if (len > HEAD_CHUNK_MAX_BYTES)
		return corrupt(f, off, err);
	if (n > got)
		TRY(bytes_at(f, off + got, n - got, n - got, room + got, &more, err));
	*out = room;
fail:
	return rc;
}

/* Its payload stays until the next one is read. */
static errc record_at(struct chunkfile *f, struct cut_file *cut, uint64_t off, uint8_t *room, struct chunkfile_record *r, struct err *err)
{
	errc rc = OK;
	const uint8_t *bytes = NULL;
	TRY(record_bytes(f, cut, off, room, &bytes, err));
	uint32_t len = get_le32(bytes + AT_LEN);
	size_t n = len + (size_t)CHUNKFILE_OVERHEAD;
	*r = (struct chunkfile_record){
		.ref = get_le64(bytes),
		.mint = (int64_t)get_le64(bytes + 8),
		.maxt = (int64_t)get_le64(bytes + 16),
		.previous = head_chunkfile_record_previous(bytes),
		.before = (uint16_t)get_le32(bytes + 29),
		.n = (uint16_t)(get_le32(bytes + 29) >> 16),
		.enc = bytes[33],
		.goes_on = bytes[34] == 1,
		.data = span_of(bytes + CHUNKFILE_HEADER, len),
	};
	if (get_le32(bytes + n - 4) != crc32c(0, bytes, n - 4) || r->enc != CHUNK_XOR || (r->previous != CHUNKFILE_NONE && r->previous >= off))
		return corrupt(f, off, err);
fail:
	return rc;
}

errc head_chunkfile_begun(struct chunkfile *f, struct cut_file *cut, uint64_t off, uint32_t n, uint8_t *out, uint64_t *previous, struct err *err)
{
	errc rc = OK;
	uint8_t room[RECORD_BYTES];
	struct chunkfile_record r;
	ASSERT(n > 0);
	do {
		CHECK(off != CHUNKFILE_NONE, ERR_CORRUPT, "chunk file of window %s: a chunk without its first records", ulid_text(f->ulid).s);
		TRY(record_at(f, cut, off, room, &r, err));
		if (!r.goes_on || r.before + r.data.n != n)
			return corrupt(f, off, err);
		memcpy(out + r.before, r.data.p, r.data.n);
		n = r.before;
		off = r.previous;
	} while (n > 0);
	*previous = off;
fail:
	return rc;
}

errc head_chunkfile_chunk(struct chunkfile *f, struct cut_file *cut, uint64_t off, uint8_t *out, struct chunkfile_chunk *c, struct err *err)
{
	errc rc = OK;
	uint8_t room[RECORD_BYTES];
	struct chunkfile_record r;
	TRY(record_at(f, cut, off, room, &r, err));
	size_t n_bytes = XOR_HEADER_BYTES + r.before + r.data.n;
	if (r.goes_on || n_bytes > HEAD_CHUNK_MAX_BYTES)
		return corrupt(f, off, err);
	out[0] = (uint8_t)(r.n >> 8);
	out[1] = (uint8_t)r.n;
	memcpy(out + XOR_HEADER_BYTES + r.before, r.data.p, r.data.n);
	*c = (struct chunkfile_chunk){
		.mint = r.mint, .maxt = r.maxt, .previous = r.previous, .n = r.n, .n_bytes = (uint32_t)n_bytes, .n_last = (uint32_t)r.data.n};
	if (r.before > 0)
		TRY(head_chunkfile_begun(f, cut, r.previous, r.before, out + XOR_HEADER_BYTES, &c->previous, err));
fail:
	return rc;
}

bool head_chunkfile_named(const struct chunkfile *f, const char *name)
{
	char path[PATH_BYTES];
	path_of(f, path);
	return f->exists && strcmp(path + strlen(f->head->cfg.chunk_dir) + 1, name) == 0;
}

uint64_t head_chunkfile_bytes(struct chunkfile *f)
{
	pthread_mutex_lock(&f->mu);
	uint64_t n = f->flushed + f->n;
	pthread_mutex_unlock(&f->mu);
	return n;
}

void head_chunkfile_remove(struct chunkfile *f)
{
	struct chunkfile_fds *c = &f->head->fds;
	pthread_mutex_lock(&c->mu);
	for (int i = 0; i < HEAD_FDS; i++) {
		if (c->v[i].file == f) {
			ASSERT(c->v[i].pins == 0);
			io_close(c->v[i].fd);
			c->v[i] = (struct chunkfile_fd){0};
		}
	}
	pthread_mutex_unlock(&c->mu);
	if (f->exists && !f->head->closing) {
		char path[PATH_BYTES];
		struct err err = {0};
		path_of(f, path);
		if (io_unlink(path, &err) != OK && err.code != ERR_NOTFOUND)
			log_warn("chunk file not removed", LSTR("path", path), LERR(&err));
		atomic_fetch_sub_explicit(&f->head->chunk_file_bytes, f->flushed, memory_order_relaxed);
	}
	count_memory(f, f->cap, 0);
	free(f->buf);
	pthread_mutex_destroy(&f->mu);
}
