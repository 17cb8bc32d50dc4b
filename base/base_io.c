/* base/base_io.c - the checked functions over the seam's table: EINTR, short transfers, and the composed operations with
 * their crash guarantees.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "base/io.h"

/* One pread or pwrite never moves more than this: Linux stops at 2 GiB - 4 KiB anyway. */
static const size_t TRANSFER_MAX = (size_t)1 << 30;

errc io_open(const char *path, unsigned flags, int *fd, struct err *err)
{
	int f = (flags & IO_WRITE) ? ((flags & IO_READ) ? O_RDWR : O_WRONLY) : O_RDONLY;
	if (flags & IO_CREATE)
		f |= O_CREAT;
	if (flags & IO_EXCL)
		f |= O_EXCL;
	if (flags & IO_TRUNC)
		f |= O_TRUNC;
	if (flags & IO_DIR)
		f |= O_DIRECTORY;
	do
		*fd = io_ops->open(path, f, 0640);
	while (*fd < 0 && errno == EINTR);
	if (*fd < 0) {
		*fd = -1;
		return err_errno(err, errno, "open %s", path);
	}
	return OK;
}

void io_close(int fd)
{
	if (fd >= 0)
		io_ops->close(fd);
}

errc io_pread(int fd, void *buf, size_t n, uint64_t off, size_t *got, struct err *err)
{
	*got = 0;
	while (*got < n) {
		size_t part = n - *got < TRANSFER_MAX ? n - *got : TRANSFER_MAX;
		ssize_t r = io_ops->pread(fd, (uint8_t *)buf + *got, part, (off_t)(off + *got));
		if (r < 0) {
			if (errno == EINTR)
				continue;
			return err_errno(err, errno, "read of %zu bytes at %" PRIu64 " (fd %d)", n, off, fd);
		}
		if (r == 0)
			break;
		*got += (size_t)r;
	}
	return OK;
}

errc io_pread_full(int fd, void *buf, size_t n, uint64_t off, struct err *err)
{
	size_t got;
	errc rc = io_pread(fd, buf, n, off, &got, err);
	if (rc == OK && got < n)
		rc = err_set(err, ERR_CORRUPT, "file ends at byte %" PRIu64 ", %zu bytes were expected at %" PRIu64, off + got, n, off);
	return rc;
}

errc io_pwrite(int fd, const void *buf, size_t n, uint64_t off, struct err *err)
{
	size_t done = 0;
	while (done < n) {
		size_t part = n - done < TRANSFER_MAX ? n - done : TRANSFER_MAX;
		ssize_t w = io_ops->pwrite(fd, (const uint8_t *)buf + done, part, (off_t)(off + done));
		if (w < 0) {
			if (errno == EINTR)
				continue;
			return err_errno(err, errno, "write of %zu bytes at %" PRIu64 " (fd %d)", n, off, fd);
		}
		if (w == 0)
			return err_errno(err, ENOSPC, "write of %zu bytes at %" PRIu64 " (fd %d) made no progress", n, off, fd);
		done += (size_t)w;
	}
	return OK;
}

errc io_fdatasync(int fd, struct err *err)
{
	return io_ops->fdatasync(fd) == 0 ? OK : err_errno(err, errno, "fdatasync (fd %d)", fd);
}

errc io_fsync(int fd, struct err *err)
{
	return io_ops->fsync(fd) == 0 ? OK : err_errno(err, errno, "fsync (fd %d)", fd);
}

errc io_write_out(int fd, uint64_t off, uint64_t n, bool wait, struct err *err)
{
	int e = io_ops->write_out ? io_ops->write_out(fd, (off_t)off, (off_t)n, wait) : 0;
	return e ? err_errno(err, errno, "fd %d: sync_file_range", fd) : OK;
}

errc io_fsync_dir(const char *path, struct err *err)
{
	int fd;
	errc rc = io_open(path, IO_READ | IO_DIR, &fd, err);
	if (rc != OK)
		return rc;
	rc = io_fsync(fd, err);
	io_close(fd);
	if (rc != OK)
		err_wrap(err, "directory %s", path);
	return rc;
}

errc io_truncate(int fd, uint64_t size, struct err *err)
{
	int r;
	do
		r = io_ops->ftruncate(fd, (off_t)size);
	while (r != 0 && errno == EINTR);
	return r == 0 ? OK : err_errno(err, errno, "truncate to %" PRIu64 " bytes (fd %d)", size, fd);
}

errc io_allocate(int fd, uint64_t off, uint64_t n, struct err *err)
{
	int r;
	do
		r = io_ops->fallocate(fd, (off_t)off, (off_t)n);
	while (r != 0 && errno == EINTR);
	return r == 0 ? OK : err_errno(err, errno, "allocate %" PRIu64 " bytes (fd %d)", n, fd);
}

errc io_size(int fd, uint64_t *size, struct err *err)
{
	struct stat st;
	if (io_ops->fstat(fd, &st) != 0)
		return err_errno(err, errno, "stat (fd %d)", fd);
	*size = (uint64_t)st.st_size;
	return OK;
}

uint64_t io_data_end(int fd, uint64_t size)
{
	off_t end = io_ops->data_end ? io_ops->data_end(fd) : -1;
	return end < 0 || (uint64_t)end > size ? size : (uint64_t)end;
}

errc io_rename(const char *from, const char *to, struct err *err)
{
	return io_ops->rename(from, to) == 0 ? OK : err_errno(err, errno, "rename %s to %s", from, to);
}

errc io_link(const char *from, const char *to, struct err *err)
{
	return io_ops->link(from, to) == 0 ? OK : err_errno(err, errno, "link %s to %s", from, to);
}

errc io_unlink(const char *path, struct err *err)
{
	return io_ops->unlink(path) == 0 ? OK : err_errno(err, errno, "remove %s", path);
}

errc io_mkdir(const char *path, struct err *err)
{
	if (io_ops->mkdir(path, 0750) == 0 || errno == EEXIST)
		return OK;
	return err_errno(err, errno, "mkdir %s", path);
}

errc io_mkdirs(const char *path, struct err *err)
{
	char part[4096];
	size_t n = strlen(path);
	if (n >= sizeof part)
		return err_set(err, ERR_INVALID, "path of %zu bytes is too long", n);
	memcpy(part, path, n + 1);
	for (size_t i = 1; i < n; i++) {
		if (part[i] != '/')
			continue;
		part[i] = 0;
		struct io_stat st;
		errc rc = io_stat(part, &st, err);
		if (rc == OK && !st.exists)
			rc = io_mkdir(part, err);
		if (rc != OK)
			return rc;
		part[i] = '/';
	}
	return io_mkdir(path, err);
}

errc io_rmdir(const char *path, struct err *err)
{
	return io_ops->rmdir(path) == 0 ? OK : err_errno(err, errno, "rmdir %s", path);
}

errc io_stat(const char *path, struct io_stat *out, struct err *err)
{
	struct stat st;
	*out = (struct io_stat){0};
	if (io_ops->stat(path, &st) != 0) {
		if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP)
			return OK;
		return err_errno(err, errno, "stat %s", path);
	}
	out->exists = true;
	out->is_dir = S_ISDIR(st.st_mode);
	out->size = (uint64_t)st.st_size;
	out->inode = (uint64_t)st.st_ino;
	out->mtime_ms = (int64_t)st.st_mtim.tv_sec * 1000 + st.st_mtim.tv_nsec / 1000000;
	return OK;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

errc io_listdir(const char *path, struct arena *arena, char ***names, size_t *n, struct err *err)
{
	char *text = NULL;
	size_t bytes = 0;
	int count = io_ops->listdir(path, &text, &bytes);
	if (count < 0)
		return err_errno(err, errno, "list %s", path);
	struct span copy = arena_dup(arena, span_of(text ? text : "", bytes));
	char **v = arena_alloc(arena, (size_t)count * sizeof *v);
	free(text);
	if (!copy.p || !v)
		return err_set(err, ERR_NOMEM, "list %s: no memory for %d names", path, count);
	char *p = (char *)(uintptr_t)copy.p;
	for (int i = 0; i < count; i++) {
		v[i] = p;
		p += strlen(p) + 1;
	}
	if (count > 1)
		qsort(v, (size_t)count, sizeof *v, by_text);
	*names = v;
	*n = (size_t)count;
	return OK;
}

errc io_map(int fd, size_t n, const void **p, struct err *err)
{
	if (n == 0) {
		*p = "";
		return OK;
	}
	void *m = io_ops->mmap_ro(fd, n);
	if (m == MAP_FAILED)
		return err_errno(err, errno, "map %zu bytes (fd %d)", n, fd);
	*p = m;
	return OK;
}

void io_unmap(const void *p, size_t n)
{
	if (n > 0)
		io_ops->munmap((void *)(uintptr_t)p, n);
}

errc io_lock(int fd, struct err *err)
{
	if (io_ops->flock_nb(fd) == 0)
		return OK;
	if (errno == EWOULDBLOCK)
		return err_set(err, ERR_AGAIN, "another process holds the lock");
	return err_errno(err, errno, "lock (fd %d)", fd);
}

errc io_statfs(const char *path, uint64_t *total_bytes, uint64_t *free_bytes, struct err *err)
{
	return io_ops->statfs(path, total_bytes, free_bytes) == 0 ? OK : err_errno(err, errno, "statfs %s", path);
}

errc io_read_file(const char *path, size_t max_bytes, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	int fd = -1;
	uint64_t size;
	TRY(io_open(path, IO_READ, &fd, err));
	TRY(io_size(fd, &size, err));
	/* /proc files say size 0 and have content: read up to the limit, in pieces. */
	size_t cap = size > 0 ? (size_t)size : 64 * 1024;
	CHECK(size <= max_bytes, ERR_LIMIT, "%s: %" PRIu64 " bytes, at most %zu are read", path, size, max_bytes);
	char *p = arena_alloc(arena, cap + 1);
	CHECK(p, ERR_NOMEM, "%s: no memory for %zu bytes", path, cap);
	size_t got;
	rc = io_pread(fd, p, cap, 0, &got, err);
	if (rc != OK) {
		err_wrap(err, "%s", path);
		goto fail;
	}
	p[got] = 0;
	*out = span_of(p, got);
fail:
	io_close(fd);
	return rc;
}

static errc fsync_parent(const char *path, struct err *err)
{
	char dir[4096];
	const char *slash = strrchr(path, '/');
	if (!slash)
		return io_fsync_dir(".", err);
	size_t n = slash == path ? 1 : (size_t)(slash - path);
	if (n >= sizeof dir)
		return err_set(err, ERR_INVALID, "path of %zu bytes is too long", n);
	memcpy(dir, path, n);
	dir[n] = 0;
	return io_fsync_dir(dir, err);
}

errc io_write_file(const char *path, struct span data, struct err *err)
{
	errc rc = OK;
	int fd = -1;
	char tmp[4096];
	int n = snprintf(tmp, sizeof tmp, "%s.tmp", path);
	if (n < 0 || (size_t)n >= sizeof tmp)
		return err_set(err, ERR_INVALID, "path of %zu bytes is too long", strlen(path));
	TRY(io_open(tmp, IO_WRITE | IO_CREATE | IO_TRUNC, &fd, err));
	rc = io_pwrite(fd, data.p, data.n, 0, err);
	if (rc == OK)
		rc = io_fsync(fd, err);
	if (rc != OK) {
		err_wrap(err, "%s", tmp);
		goto fail;
	}
	io_close(fd);
	fd = -1;
	TRY(io_rename(tmp, path, err));
	TRY(fsync_parent(path, err));
	return OK;
fail:
	io_close(fd);
	io_ops->unlink(tmp);
	return rc;
}

errc io_remove_tree(const char *path, struct err *err)
{
	struct io_stat st;
	errc rc = io_stat(path, &st, err);
	if (rc != OK)
		return rc;
	/* A link goes by itself, wherever it leads. */
	if (io_ops->unlink(path) == 0 || errno == ENOENT)
		return OK;
	if (!st.is_dir || (errno != EISDIR && errno != EPERM))
		return err_errno(err, errno, "remove %s", path);
	struct arena arena;
	arena_init(&arena, (size_t)256 << 20);
	char **names;
	size_t n;
	rc = io_listdir(path, &arena, &names, &n, err);
	for (size_t i = 0; rc == OK && i < n; i++) {
		const char *child = arena_printf(&arena, "%s/%s", path, names[i]);
		rc = child ? io_remove_tree(child, err) : err_set(err, ERR_NOMEM, "remove %s", path);
	}
	arena_free(&arena);
	if (rc == OK)
		rc = io_rmdir(path, err);
	return rc == ERR_NOTFOUND ? OK : rc;
}

int64_t io_now_ms(void)
{
	return io_ops->now_ms();
}

int64_t io_mono_ns(void)
{
	return io_ops->mono_ns();
}

void io_sleep_ms(int64_t ms)
{
	io_ops->sleep_ms(ms);
}

void io_random(void *p, size_t n)
{
	io_ops->random(p, n);
}

uint64_t io_random_u64(void)
{
	uint64_t x;
	io_random(&x, sizeof x);
	return x;
}
