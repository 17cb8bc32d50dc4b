/* base/base_io_posix.c - the real table behind the seam: the only file that makes these system calls. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>
#include "base/io.h"

static int posix_open(const char *path, int flags, mode_t mode)
{
	return open(path, flags | O_CLOEXEC, mode);
}

static int posix_fallocate_errno(int fd, off_t off, off_t n)
{
	int e = posix_fallocate(fd, off, n);
	if (e == 0)
		return 0;
	errno = e;
	return -1;
}

static int posix_fstat(int fd, struct stat *st)
{
	return fstat(fd, st);
}

static int posix_stat(const char *path, struct stat *st)
{
	return stat(path, st);
}

static int posix_listdir(const char *path, char **names, size_t *names_bytes)
{
	DIR *d = opendir(path);
	if (!d)
		return -1;
	char *buf = NULL;
	size_t n = 0, cap = 0;
	int count = 0;
	for (;;) {
		errno = 0;
		struct dirent *e = readdir(d);
		if (!e)
			break;
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		size_t len = strlen(e->d_name) + 1;
		if (n + len > cap) {
			cap = cap ? cap * 2 : 4096;
			char *bigger = realloc(buf, cap);
			if (!bigger) {
				errno = ENOMEM;
				break;
			}
			buf = bigger;
		}
		memcpy(buf + n, e->d_name, len);
		n += len;
		count++;
	}
	int e = errno;
	closedir(d);
	if (e != 0) {
		free(buf);
		errno = e;
		return -1;
	}
	*names = buf;
	*names_bytes = n;
	return count;
}

static int posix_write_out(int fd, off_t off, off_t n, bool wait)
{
	unsigned how = SYNC_FILE_RANGE_WRITE | (wait ? SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER : 0);
	int rc = sync_file_range(fd, off, n, how);
	/* A file system that can't has its sync. */
	return rc && (errno == ENOSYS || errno == EINVAL || errno == ESPIPE) ? 0 : rc;
}

static off_t posix_data_end(int fd)
{
	enum { EXTENTS_MAX = 100000 };
	off_t end = 0;
	for (int i = 0; i < EXTENTS_MAX; i++) {
		off_t at = lseek(fd, end, SEEK_DATA);
		if (at < 0)
			return errno == ENXIO ? end : -1;
		end = lseek(fd, at, SEEK_HOLE);
		if (end < 0)
			return -1;
	}
	return -1;
}

static void *posix_mmap_ro(int fd, size_t n)
{
	return mmap(NULL, n, PROT_READ, MAP_SHARED, fd, 0);
}

static int posix_flock_nb(int fd)
{
	return flock(fd, LOCK_EX | LOCK_NB);
}

static int posix_statfs(const char *path, uint64_t *total, uint64_t *free_bytes)
{
	struct statvfs s;
	if (statvfs(path, &s) != 0)
		return -1;
	*total = (uint64_t)s.f_blocks * s.f_frsize;
	*free_bytes = (uint64_t)s.f_bavail * s.f_frsize;
	return 0;
}

static int64_t posix_now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t posix_mono_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void posix_sleep_ms(int64_t ms)
{
	struct timespec t = {ms / 1000, (ms % 1000) * 1000000};
	while (nanosleep(&t, &t) != 0 && errno == EINTR)
		;
}

static void posix_random(void *p, size_t n)
{
	uint8_t *at = p;
	while (n > 0) {
		ssize_t got = getrandom(at, n, 0);
		if (got < 0) {
			if (errno == EINTR)
				continue;
			fprintf(stderr, "varve: getrandom failed: errno %d\n", errno);
			abort();
		}
		at += got;
		n -= (size_t)got;
	}
}

void *io_memory(size_t n)
{
	size_t more = n >= IO_HUGE_BYTES ? IO_HUGE_BYTES : 0;
	uint8_t *v = mmap(NULL, n + more, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (v == MAP_FAILED)
		return NULL;
	if (more) {
		size_t before = (IO_HUGE_BYTES - (uintptr_t)v % IO_HUGE_BYTES) % IO_HUGE_BYTES;
		if (before)
			(void)munmap(v, before);
		if (more - before)
			(void)munmap(v + before + n, more - before);
		v += before;
		(void)madvise(v, n, MADV_HUGEPAGE);
	}
	(void)madvise(v, n, MADV_POPULATE_WRITE);
	return v;
}

void io_memory_free(void *p, size_t n)
{
	(void)munmap(p, n);
}

bool io_memory_drop(void *p, size_t n)
{
	return madvise(p, n, MADV_DONTNEED) == 0;
}

const struct io_ops io_posix = {
	.open = posix_open,
	.close = close,
	.pread = pread,
	.pwrite = pwrite,
	.fdatasync = fdatasync,
	.fsync = fsync,
	.ftruncate = ftruncate,
	.fallocate = posix_fallocate_errno,
	.fstat = posix_fstat,
	.stat = posix_stat,
	.rename = rename,
	.link = link,
	.unlink = unlink,
	.mkdir = mkdir,
	.rmdir = rmdir,
	.listdir = posix_listdir,
	.data_end = posix_data_end,
	.write_out = posix_write_out,
	.mmap_ro = posix_mmap_ro,
	.munmap = munmap,
	.flock_nb = posix_flock_nb,
	.statfs = posix_statfs,
	.now_ms = posix_now_ms,
	.mono_ns = posix_mono_ns,
	.sleep_ms = posix_sleep_ms,
	.random = posix_random,
};

const struct io_ops *io_ops = &io_posix;
