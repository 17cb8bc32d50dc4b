/* tests/crash/recorder.c - LD_PRELOAD: what a program does to a directory, in order, with its data; and a kill -9 before any of it.
 *
 *     LD_PRELOAD=recorder.so VARVE_RECORD_ROOT=/abs/data VARVE_RECORD=/abs/log varve ...        writes the log that tests/crash/power.py reads
 *     LD_PRELOAD=recorder.so VARVE_RECORD_ROOT=/abs/data VARVE_KILL_AT=17 VARVE_KILL_ARMED=/abs/flag varve ...
 *                                          counts operations from the moment that the file /abs/flag is there, and ends the process before the 17th
 *
 * One operation is one call that changes something below the root or makes it durable, by the program or by a library in it (SQLite): open that
 * creates or truncates, write, ftruncate, posix_fallocate, fsync, rename, link, unlink, mkdir, rmdir. They run one at a time here,
 * so that the log's order is the order in which they happened. What a program writes through a mapping is not seen: SQLite's -shm, which it rebuilds.
 *
 * The log: { struct record, path, second path, data }*, in the machine's byte order. Files are told apart by inode, which a creation begins anew.
 */
#undef _FORTIFY_SOURCE /* its inline wrappers have the names that are defined here */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
	CREATE = 'C',
	WRITE = 'W',
	TRUNCATE = 'T',
	ALLOCATE = 'A',
	SYNC = 'S',
	SYNC_DIR = 'D',
	RENAME = 'R',
	LINK = 'L',
	UNLINK = 'U',
	MKDIR = 'M',
	RMDIR = 'X'
};

struct record {
	uint32_t magic; /* RECORD_MAGIC */
	uint32_t kind;
	uint64_t ino, off, len;
	uint32_t a_n, b_n, data_n, thread;
};
enum { RECORD_MAGIC = 0x31524556 };

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_n;
static int log_fd = -1;
static uint64_t kill_at, seen;
static const char *armed_path;
static bool armed;

#define REAL(name) real_##name
#define RESOLVE(name) REAL(name) = (__typeof__(REAL(name)))dlsym(RTLD_NEXT, #name)

static int (*REAL(open))(const char *, int, ...);
static ssize_t (*REAL(write))(int, const void *, size_t);
static ssize_t (*REAL(pwrite))(int, const void *, size_t, off_t);
static int (*REAL(ftruncate))(int, off_t);
static int (*REAL(posix_fallocate))(int, off_t, off_t);
static int (*REAL(fsync))(int);
static int (*REAL(fdatasync))(int);
static int (*REAL(rename))(const char *, const char *);
static int (*REAL(link))(const char *, const char *);
static int (*REAL(unlink))(const char *);
static int (*REAL(mkdir))(const char *, mode_t);
static int (*REAL(rmdir))(const char *);

__attribute__((constructor)) static void begin(void)
{
	RESOLVE(open);
	RESOLVE(write);
	RESOLVE(pwrite);
	RESOLVE(ftruncate);
	RESOLVE(posix_fallocate);
	RESOLVE(fsync);
	RESOLVE(fdatasync);
	RESOLVE(rename);
	RESOLVE(link);
	RESOLVE(unlink);
	RESOLVE(mkdir);
	RESOLVE(rmdir);
	root = getenv("VARVE_RECORD_ROOT");
	root_n = root ? strlen(root) : 0;
	const char *path = getenv("VARVE_RECORD"), *at = getenv("VARVE_KILL_AT");
	armed_path = getenv("VARVE_KILL_ARMED");
	kill_at = at ? strtoull(at, NULL, 10) : 0;
	if (root && path)
		log_fd = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static bool below(const char *path)
{
	return root && strncmp(path, root, root_n) == 0 && (path[root_n] == '/' || path[root_n] == 0);
}

/* Is this descriptor a file or directory below the root? Fills st and the path. */
static bool fd_below(int fd, struct stat *st, char path[PATH_MAX])
{
	if (!root)
		return false;
	char link_name[32];
	int before = errno;
	snprintf(link_name, sizeof link_name, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link_name, path, PATH_MAX - 1);
	if (n > 0)
		path[n] = 0;
	bool yes = n > 0 && below(path) && fstat(fd, st) == 0 && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode));
	errno = before;
	return yes;
}

/* Takes the lock; the process may end here. */
static void enter(void)
{
	int before = errno;
	pthread_mutex_lock(&mu);
	if (kill_at > 0) {
		if (!armed)
			armed = !armed_path || access(armed_path, F_OK) == 0;
		if (armed && ++seen == kill_at) {
			kill(getpid(), SIGKILL);
			for (;;)
				pause();
		}
	}
	errno = before;
}

static void put(enum kind kind, uint64_t ino, uint64_t off, uint64_t len, const char *a, const char *b, const void *data, size_t n)
{
	if (log_fd < 0)
		return;
	int before = errno;
	struct record r = {
		RECORD_MAGIC, kind, ino, off, len, a ? (uint32_t)strlen(a) : 0, b ? (uint32_t)strlen(b) : 0, (uint32_t)n, (uint32_t)gettid()};
	struct iovec v[4] = {{&r, sizeof r}, {(void *)(uintptr_t)a, r.a_n}, {(void *)(uintptr_t)b, r.b_n}, {(void *)(uintptr_t)data, n}};
	ssize_t want = (ssize_t)(sizeof r + r.a_n + r.b_n + n);
	if (writev(log_fd, v, 4) != want)
		abort();
	errno = before;
}

static void leave(void)
{
	pthread_mutex_unlock(&mu);
}

/* ---- the calls ---- */

static int opened(const char *path, int flags, mode_t mode)
{
	if (!below(path) || !(flags & (O_CREAT | O_TRUNC)))
		return REAL(open)(path, flags, mode);
	struct stat st;
	bool there = stat(path, &st) == 0;
	if (there && !((flags & O_TRUNC) && st.st_size > 0))
		return REAL(open)(path, flags, mode);
	enter();
	int fd = REAL(open)(path, flags, mode);
	if (fd >= 0 && fstat(fd, &st) == 0) {
		if (!there)
			put(CREATE, st.st_ino, 0, 0, path, NULL, NULL, 0);
		else
			put(TRUNCATE, st.st_ino, 0, 0, path, NULL, NULL, 0);
	}
	leave();
	return fd;
}

int open(const char *path, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	return opened(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	return opened(path, flags, mode);
}

static ssize_t written(int fd, const void *p, size_t n, off_t off, bool at)
{
	struct stat st;
	char path[PATH_MAX];
	if (!fd_below(fd, &st, path) || !S_ISREG(st.st_mode))
		return at ? REAL(pwrite)(fd, p, n, off) : REAL(write)(fd, p, n);
	enter();
	if (!at)
		off = lseek(fd, 0, SEEK_CUR);
	ssize_t got = at ? REAL(pwrite)(fd, p, n, off) : REAL(write)(fd, p, n);
	if (got > 0)
		put(WRITE, st.st_ino, (uint64_t)off, (uint64_t)got, path, NULL, p, (size_t)got);
	leave();
	return got;
}

ssize_t write(int fd, const void *p, size_t n)
{
	return written(fd, p, n, 0, false);
}
ssize_t pwrite(int fd, const void *p, size_t n, off_t off)
{
	return written(fd, p, n, off, true);
}
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t off)
{
	return written(fd, p, n, off, true);
}

static int sized(int fd, off_t size)
{
	struct stat st;
	char path[PATH_MAX];
	if (!fd_below(fd, &st, path))
		return REAL(ftruncate)(fd, size);
	enter();
	int rc = REAL(ftruncate)(fd, size);
	if (rc == 0)
		put(TRUNCATE, st.st_ino, 0, (uint64_t)size, path, NULL, NULL, 0);
	leave();
	return rc;
}

int ftruncate(int fd, off_t size)
{
	return sized(fd, size);
}
int ftruncate64(int fd, off64_t size)
{
	return sized(fd, size);
}

int posix_fallocate(int fd, off_t off, off_t n)
{
	struct stat st;
	char path[PATH_MAX];
	if (!fd_below(fd, &st, path))
		return REAL(posix_fallocate)(fd, off, n);
	enter();
	int rc = REAL(posix_fallocate)(fd, off, n);
	if (rc == 0)
		put(ALLOCATE, st.st_ino, (uint64_t)off, (uint64_t)n, path, NULL, NULL, 0);
	leave();
	return rc;
}

static int synced(int fd, int (*real)(int))
{
	struct stat st;
	char path[PATH_MAX];
	if (!fd_below(fd, &st, path))
		return real(fd);
	enter();
	int rc = real(fd);
	if (rc == 0)
		put(S_ISDIR(st.st_mode) ? SYNC_DIR : SYNC, st.st_ino, 0, 0, path, NULL, NULL, 0);
	leave();
	return rc;
}

int fsync(int fd)
{
	return synced(fd, REAL(fsync));
}
int fdatasync(int fd)
{
	return synced(fd, REAL(fdatasync));
}

static int named(enum kind kind, const char *a, const char *b, int (*real)(const char *, const char *))
{
	if (!below(a) && !below(b))
		return real(a, b);
	enter();
	int rc = real(a, b);
	if (rc == 0)
		put(kind, 0, 0, 0, a, b, NULL, 0);
	leave();
	return rc;
}

int rename(const char *from, const char *to)
{
	return named(RENAME, from, to, REAL(rename));
}
int link(const char *from, const char *to)
{
	return named(LINK, from, to, REAL(link));
}

static int gone(enum kind kind, const char *path, int (*real)(const char *))
{
	if (!below(path))
		return real(path);
	enter();
	int rc = real(path);
	if (rc == 0)
		put(kind, 0, 0, 0, path, NULL, NULL, 0);
	leave();
	return rc;
}

int unlink(const char *path)
{
	return gone(UNLINK, path, REAL(unlink));
}
int rmdir(const char *path)
{
	return gone(RMDIR, path, REAL(rmdir));
}

int mkdir(const char *path, mode_t mode)
{
	if (!below(path))
		return REAL(mkdir)(path, mode);
	enter();
	int rc = REAL(mkdir)(path, mode);
	if (rc == 0)
		put(MKDIR, 0, 0, 0, path, NULL, NULL, 0);
	leave();
	return rc;
}
