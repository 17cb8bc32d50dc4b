/* base/io.h - the seam: every file, clock and random number of varve goes through here.
 *
 * Tests swap `io_ops` for a table that fails the n-th call, keeps a simulated disk, or jumps the clock; a lint in
 * `make check` fails when another file calls open, write, fsync, rename, clock_gettime ... itself. Of files only
 * finished ones are mapped, for reading. Retries on EINTR and short writes are done here.
 *
 * Threads: any, unless a function says otherwise. Paths are NUL-terminated, borrowed for the call.
 * Errors: as err_errno maps them, the message names the path (or "fd N") and the operation.
 */
#pragma once
#include <sys/types.h>
#include <sys/stat.h>
#include "base/arena.h"
#include "base/err.h"
#include "base/span.h"

/* The table, with POSIX' signatures and errno, so that an injector is a few lines. */
struct io_ops {
	int (*open)(const char *path, int flags, mode_t mode);
	int (*close)(int fd);
	ssize_t (*pread)(int fd, void *buf, size_t n, off_t off);
	ssize_t (*pwrite)(int fd, const void *buf, size_t n, off_t off);
	int (*fdatasync)(int fd);
	int (*fsync)(int fd);
	int (*write_out)(int fd, off_t off, off_t n, bool wait); /* NULL in a table: does nothing */
	int (*ftruncate)(int fd, off_t size);
	int (*fallocate)(int fd, off_t off, off_t n); /* allocates and extends the size */
	int (*fstat)(int fd, struct stat *st);
	int (*stat)(const char *path, struct stat *st);
	int (*rename)(const char *from, const char *to);
	int (*link)(const char *from, const char *to);
	int (*unlink)(const char *path);
	int (*mkdir)(const char *path, mode_t mode);
	int (*rmdir)(const char *path);
	/* Names of a directory except . and .., each NUL-terminated, in one malloc'ed buffer; returns the count or -1. */
	int (*listdir)(const char *path, char **names, size_t *names_bytes);
	off_t (*data_end)(int fd);	    /* behind the last byte that was ever written; -1: not known. NULL in a table: never known */
	void *(*mmap_ro)(int fd, size_t n); /* MAP_FAILED on error */
	int (*munmap)(void *p, size_t n);
	int (*flock_nb)(int fd); /* exclusive, without waiting */
	int (*statfs)(const char *path, uint64_t *total_bytes, uint64_t *free_bytes);
	int64_t (*now_ms)(void);  /* wall clock, milliseconds since 1970 */
	int64_t (*mono_ns)(void); /* monotonic */
	void (*sleep_ms)(int64_t ms);
	void (*random)(void *p, size_t n);
};

extern const struct io_ops io_posix;
extern const struct io_ops *io_ops; /* &io_posix unless a test says otherwise; set before threads start */

enum {
	IO_READ = 1,
	IO_WRITE = 2,
	IO_CREATE = 4,
	IO_EXCL = 8, /* with IO_CREATE: ERR_EXISTS when it is there */
	IO_TRUNC = 16,
	IO_DIR = 32,
};

CHECKED errc io_open(const char *path, unsigned flags, int *fd, struct err *err);
void io_close(int fd); /* -1 is allowed; nothing depends on close's result: what matters was synced before */

/* Up to n bytes; *got < n only at the end of the file. */
CHECKED errc io_pread(int fd, void *buf, size_t n, uint64_t off, size_t *got, struct err *err);
/* Exactly n bytes, else ERR_CORRUPT ("file ends at ..."). */
CHECKED errc io_pread_full(int fd, void *buf, size_t n, uint64_t off, struct err *err);
/* All n bytes, or an error with an unknown part of them written. */
CHECKED errc io_pwrite(int fd, const void *buf, size_t n, uint64_t off, struct err *err);

/* After an error from a sync the descriptor's data is lost for good: never sync it again (docs/architecture.md, decision 2). */
CHECKED errc io_fdatasync(int fd, struct err *err);
CHECKED errc io_fsync(int fd, struct err *err);
CHECKED errc io_fsync_dir(const char *path, struct err *err);
/* Bytes that were written begin their way to the disk now, or (wait) have got there: no promise for a power cut, and a sync later has less to do at once. An
 * error means what one of a sync means. */
CHECKED errc io_write_out(int fd, uint64_t off, uint64_t n, bool wait, struct err *err);

CHECKED errc io_truncate(int fd, uint64_t size, struct err *err);
CHECKED errc io_allocate(int fd, uint64_t off, uint64_t n, struct err *err);
CHECKED errc io_size(int fd, uint64_t *size, struct err *err);
/* Where the bytes end that may be something else than zeros, at most `size`: what was allocated and never written lies behind. `size` where the file
 * system can't say. Pages that were read count as written while the page cache has them: ask before reading. */
uint64_t io_data_end(int fd, uint64_t size);
CHECKED errc io_rename(const char *from, const char *to, struct err *err);
CHECKED errc io_link(const char *from, const char *to, struct err *err);
CHECKED errc io_unlink(const char *path, struct err *err);
CHECKED errc io_mkdir(const char *path, struct err *err); /* an existing directory is fine */
CHECKED errc io_mkdirs(const char *path, struct err *err);
CHECKED errc io_rmdir(const char *path, struct err *err);

struct io_stat {
	bool exists;
	bool is_dir;
	uint64_t size;
	uint64_t inode; /* of what a link leads to, so that a link that leads elsewhere shows */
	int64_t mtime_ms;
};
/* Missing is not an error: exists is false. */
CHECKED errc io_stat(const char *path, struct io_stat *st, struct err *err);

/* Sorted names (unsigned bytes) without . and .., array and text from the arena. */
CHECKED errc io_listdir(const char *path, struct arena *arena, char ***names, size_t *n, struct err *err);

CHECKED errc io_map(int fd, size_t n, const void **p, struct err *err);
void io_unmap(const void *p, size_t n);

/* Memory that the system gives and takes back by itself, whatever malloc holds: zeroed, n a multiple of 4096; from IO_HUGE_BYTES on a multiple of that,
 * aligned to it, and in huge pages where there are any. Its pages come in one call instead of with a fault for each. NULL: there is none. Not of the
 * table: it is no file. */
enum { IO_HUGE_BYTES = 2 << 20 };
void *io_memory(size_t n);
void io_memory_free(void *p, size_t n);
/* Gives a part of it back, in whole pages: it stays there, reads as zeros, and costs again what is written. false: it is as it was. */
bool io_memory_drop(void *p, size_t n);

/* Takes the lock or says ERR_AGAIN when another process has it. Held until the descriptor is closed. */
CHECKED errc io_lock(int fd, struct err *err);
CHECKED errc io_statfs(const char *path, uint64_t *total_bytes, uint64_t *free_bytes, struct err *err);

/* Whole small files. Reading refuses more than max_bytes with ERR_LIMIT. *out from the arena, NUL behind the last byte. */
CHECKED errc io_read_file(const char *path, size_t max_bytes, struct arena *arena, struct span *out, struct err *err);

/* Writes path.tmp, syncs it, renames it over path, syncs the directory: after OK it survives a power cut; after a crash there
 * is the old file or the new one, never a mixture. */
CHECKED errc io_write_file(const char *path, struct span data, struct err *err);

/* Removes a tree, links in it but not what they lead to; what is missing is fine. Not atomic: rename away first when a half-removed tree must not be seen. */
CHECKED errc io_remove_tree(const char *path, struct err *err);

int64_t io_now_ms(void);
int64_t io_mono_ns(void);
static inline int64_t io_mono_ms(void)
{
	return io_mono_ns() / 1000000;
}
void io_sleep_ms(int64_t ms);
void io_random(void *p, size_t n);
uint64_t io_random_u64(void);
