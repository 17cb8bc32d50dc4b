/* head/head_chunkfile.c - where full chunks of an open window leave memory for: head/<ULID>.chunks.
 *
 *   offset  size  field, little-endian
 *        0     8  the series' ref
 *        8     8  mint, i64 ms
 *       16     8  maxt
 *       24     1  encoding
 *       25     4  length of the payload
 *       29     -  payload
 *        +     4  crc32c of everything before
 *
 * Never synced and never read by another process: the log covers it, and head_open empties the directory. Leaves refer to records by
 * offset; the checksum is looked at on every read. Writes are gathered: 4 KiB at first, an eighth of the file later, 64 KiB at most, so a
 * thousand small windows hold little. When the disk is full the bytes stay in memory (the memory limit sees them) and are tried again.
 * Few descriptors are open at once, whatever the number of windows.
 */
#include <stdio.h>
#include "head/head_int.h"

enum { CHUNKFILE_FIRST_WRITE = 4096, PATH_BYTES = 4096 };

static void path_of(const struct chunkfile *f, char *path)
{
	snprintf(path, PATH_BYTES, "%s/%s.chunks", f->head->cfg.chunk_dir, ulid_text(f->ulid).s);
}

void head_chunkfile_init(struct chunkfile *f, struct head *h, struct ulid ulid, _Atomic uint64_t *total2)
{
	*f = (struct chunkfile){.head = h, .ulid = ulid, .flush_at = CHUNKFILE_FIRST_WRITE, .total2 = total2};
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
	uint64_t at = f->flushed / 8;
	f->flush_at = at < CHUNKFILE_FIRST_WRITE ? CHUNKFILE_FIRST_WRITE : at > HEAD_CHUNK_BUFFER_BYTES ? HEAD_CHUNK_BUFFER_BYTES : (size_t)at;
	if (f->cap > f->flush_at * 2 + HEAD_CHUNK_MAX_BYTES) {
		count_memory(f, f->cap, 0);
		free(f->buf);
		f->buf = NULL;
		f->cap = 0;
	}
}

errc head_chunkfile_append(struct chunkfile *f, uint64_t ref, const struct chunk *c, uint64_t *off, struct err *err)
{
	errc rc = OK;
	size_t n = c->data.n + CHUNKFILE_OVERHEAD;
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
	put_le64(p, ref);
	put_le64(p + 8, (uint64_t)c->mint);
	put_le64(p + 16, (uint64_t)c->maxt);
	p[24] = c->enc;
	put_le32(p + 25, (uint32_t)c->data.n);
	memcpy(p + CHUNKFILE_HEADER, c->data.p, c->data.n);
	put_le32(p + n - 4, crc32c(0, p, n - 4));
	*off = f->flushed + f->n;
	f->n += n;
	if (f->n >= f->flush_at)
		flush(f);
fail:
	pthread_mutex_unlock(&f->mu);
	return rc;
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

errc head_chunkfile_bytes_read(struct chunkfile *f, uint64_t off, size_t n, uint8_t *out, struct err *err)
{
	errc rc = OK;
	int fd = -1, slot = -1;
	pthread_mutex_lock(&f->mu);
	if (off >= f->flushed) {
		ASSERT(off - f->flushed + n <= f->n);
		memcpy(out, f->buf + (off - f->flushed), n);
		pthread_mutex_unlock(&f->mu);
		return OK;
	}
	pthread_mutex_unlock(&f->mu);
	TRY(fd_get(f, &fd, &slot, err));
	rc = io_pread_full(fd, out, n, off, err);
	fd_put(f, fd, slot);
fail:
	return rc;
}

errc head_chunkfile_judge(const struct chunkfile *f, uint64_t off, uint32_t len, const uint8_t *record, struct err *err)
{
	errc rc = OK;
	size_t n = len + (size_t)CHUNKFILE_OVERHEAD;
	CHECK(get_le32(record + n - 4) == crc32c(0, record, n - 4) && get_le32(record + 25) == len, ERR_CORRUPT,
		"%s/%s.chunks: the chunk at offset %llu does not match its checksum; its samples are in the log, a restart brings them back",
		f->head->cfg.chunk_dir, ulid_text(f->ulid).s, (unsigned long long)off);
fail:
	return rc;
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
	if (f->exists) {
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
