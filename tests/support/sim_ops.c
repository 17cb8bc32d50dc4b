/* tests/support/sim_ops.c - the calls of base/io.h on the simulated disk: descriptors, errno, and where faults and the power cut strike. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "tests/support/sim_int.h"

struct sim *sim_current;

/* ---- paths ---- */

/* The directory and last name of a path. False with errno when a directory on the way is missing. name is "" for the root. */
static bool resolve(const struct disk *d, const char *path, uint32_t *dir, char *name)
{
	*dir = 0;
	name[0] = 0;
	while (*path) {
		size_t n = strcspn(path, "/");
		if (n >= NAME_BYTES) {
			errno = ENAMETOOLONG;
			return false;
		}
		if (n > 0 && !(n == 1 && path[0] == '.')) {
			if (name[0]) {
				uint32_t next = disk_lookup(d, *dir, name);
				if (next == NO_INODE || !d->v[next].is_dir) {
					errno = next == NO_INODE ? ENOENT : ENOTDIR;
					return false;
				}
				*dir = next;
			}
			memcpy(name, path, n);
			name[n] = 0;
			ASSERT(strcmp(name, "..") != 0);
		}
		path += n;
		while (*path == '/')
			path++;
	}
	return true;
}

uint32_t sim_find(const struct disk *d, const char *path)
{
	uint32_t dir;
	char name[NAME_BYTES];
	if (!resolve(d, path, &dir, name))
		return NO_INODE;
	uint32_t ino = name[0] ? disk_lookup(d, dir, name) : 0;
	if (ino == NO_INODE)
		errno = ENOENT;
	return ino;
}

/* ---- what stands before and behind each call ---- */

static struct file *file_of(struct sim *s, int fd)
{
	size_t i = (size_t)(fd - FD_BASE);
	if (fd >= FD_BASE && i < s->n_files && s->files[i].used)
		return &s->files[i];
	errno = EBADF;
	return NULL;
}

/* Takes the lock. False with errno: the power is off, or a fault hits; then the caller leaves at once. The file is named by its path or
 * by fd. *partial: move half. */
static bool enter_any(struct sim *s, unsigned call, const char *path, int fd, bool *partial)
{
	pthread_mutex_lock(&s->mu);
	if (s->off) {
		errno = EIO;
		return false;
	}
	struct sim_fault *f = &s->fault;
	if (!path) {
		const struct file *file = file_of(s, fd);
		path = file ? file->path : NULL;
	}
	if (!(f->calls & call) || (f->path && !(path && strstr(path, f->path))))
		return true;
	uint64_t n = ++s->fault_seen;
	if (s->fault_error_due && f->error) {
		s->fault_error_due = f->sticky;
		s->fault_hits++;
		errno = f->error;
		return false;
	}
	if (n != f->nth && !(f->sticky && n > f->nth && !f->partial))
		return true;
	if (f->partial && partial) {
		s->fault_hits++;
		*partial = true;
		s->fault_error_due = true;
		return true;
	}
	if (f->partial) { /* this call moves no bytes: the next one that does is the one */
		f->nth++;
		return true;
	}
	s->fault_hits++;
	errno = f->error;
	return false;
}

static bool enter(struct sim *s, unsigned call, const char *path)
{
	return enter_any(s, call, path, -1, NULL);
}

static bool enter_fd(struct sim *s, unsigned call, int fd)
{
	return enter_any(s, call, NULL, fd, NULL);
}

static int leave(struct sim *s, int result)
{
	int e = errno;
	pthread_mutex_unlock(&s->mu);
	errno = e;
	return result;
}

static int leave_errno(struct sim *s, int e)
{
	errno = e;
	return leave(s, -1);
}

/* Which inodes have descriptors. */
static bool *open_inodes(struct sim *s)
{
	bool *open = xalloc(s->disk->n);
	for (size_t i = 0; i < s->n_files; i++)
		if (s->files[i].used)
			open[s->files[i].ino] = true;
	return open;
}

/* After a name or descriptor went away: room comes back. */
void sim_account_locked(struct sim *s)
{
	if (s->capacity_pages == NEVER)
		return;
	bool *open = open_inodes(s);
	disk_account(s->disk, open);
	free(open);
}

/* Does an operation, counts and records it. The operation's strings and data are borrowed. A failed sync is recorded too, because it
 * changes what later syncs can save, but it has no number: it is no operation. */
static void perform(struct sim *s, const struct op *op)
{
	disk_do(s->disk, op);
	s->ops += !op->lost;
	if (s->tape) {
		struct sim_tape *t = s->tape;
		t->v = xgrow(t->v, t->n, &t->cap, sizeof *t->v);
		struct op *copy = &t->v[t->n++];
		*copy = *op;
		for (int i = 0; i < 2; i++)
			copy->name[i] = op->name[i] ? xcopy(op->name[i]) : NULL;
		copy->path = xcopy(op->path ? op->path : "?");
		copy->data = op->data ? memcpy(xalloc((size_t)op->n), op->data, (size_t)op->n) : NULL;
	}
	if (!op->lost && s->power_left != NEVER && --s->power_left == 0)
		s->off = true;
}

/* ---- the table ---- */

static void touch(struct sim *s, uint32_t ino)
{
	s->disk->v[ino].mtime_ms = s->frozen ? s->now_offset_ms : io_posix.now_ms() + s->now_offset_ms;
}

static int file_open(struct sim *s, uint32_t ino, const char *path, int flags)
{
	size_t i = 0;
	while (i < s->n_files && (s->files[i].used || s->files[i].dead))
		i++;
	if (i == s->n_files) {
		s->files = xgrow(s->files, s->n_files, &s->cap_files, sizeof *s->files);
		s->n_files++;
	}
	s->files[i] = (struct file){.used = true, .ino = ino, .flags = flags, .path = xcopy(path)};
	return FD_BASE + (int)i;
}

static int sim_open(const char *path, int flags, mode_t mode)
{
	struct sim *s = sim_current;
	uint32_t dir;
	char name[NAME_BYTES];
	(void)mode;
	if (!enter(s, SIM_OPEN, path) || !resolve(s->disk, path, &dir, name))
		return leave(s, -1);
	uint32_t ino = name[0] ? disk_lookup(s->disk, dir, name) : 0;
	bool writes = (flags & O_ACCMODE) != O_RDONLY;
	if (ino == NO_INODE) {
		if (!(flags & O_CREAT))
			return leave_errno(s, ENOENT);
		ino = s->disk->n;
		perform(s, &(struct op){.kind = OP_CREATE, .ino = ino, .dir = {dir}, .name = {name}, .path = (char *)(uintptr_t)path});
		touch(s, ino);
		return leave(s, file_open(s, ino, path, flags));
	}
	struct inode *f = &s->disk->v[ino];
	if ((flags & O_CREAT) && (flags & O_EXCL))
		return leave_errno(s, EEXIST);
	if (f->is_dir && writes)
		return leave_errno(s, EISDIR);
	if (!f->is_dir && (flags & O_DIRECTORY))
		return leave_errno(s, ENOTDIR);
	if ((flags & O_TRUNC) && writes && f->cached.size > 0) {
		perform(s, &(struct op){.kind = OP_TRUNCATE, .ino = ino, .path = (char *)(uintptr_t)path});
		touch(s, ino);
	}
	return leave(s, file_open(s, ino, path, flags));
}

static int sim_close(int fd)
{
	struct sim *s = sim_current;
	pthread_mutex_lock(&s->mu);
	struct file *f = file_of(s, fd);
	if (!f)
		return leave(s, -1);
	free(f->path);
	*f = (struct file){0};
	sim_account_locked(s);
	return leave(s, 0);
}

static ssize_t sim_pread(int fd, void *buf, size_t n, off_t off)
{
	struct sim *s = sim_current;
	bool partial = false;
	if (!enter_any(s, SIM_READ, NULL, fd, &partial))
		return leave(s, -1);
	struct file *f = file_of(s, fd);
	if (!f)
		return leave(s, -1);
	if (s->disk->v[f->ino].is_dir)
		return leave_errno(s, EISDIR);
	if ((f->flags & O_ACCMODE) == O_WRONLY)
		return leave_errno(s, EBADF);
	if (partial && n > 1)
		n /= 2;
	size_t got = disk_read(&s->disk->v[f->ino], buf, n, (uint64_t)off);
	leave(s, 0);
	return (ssize_t)got;
}

/* Pages that this file would have more if it ended at `end`. */
static bool fits(struct sim *s, const struct inode *f, uint64_t end)
{
	uint64_t have = disk_file_pages(f), want = (end + PAGE - 1) / PAGE;
	return want <= have || s->disk->used_pages + (want - have) <= s->capacity_pages;
}

static ssize_t sim_pwrite(int fd, const void *buf, size_t n, off_t off)
{
	struct sim *s = sim_current;
	bool partial = false;
	if (!enter_any(s, SIM_WRITE, NULL, fd, &partial))
		return leave(s, -1);
	struct file *f = file_of(s, fd);
	if (!f || (f->flags & O_ACCMODE) == O_RDONLY)
		return leave_errno(s, EBADF);
	if (partial && n > 1)
		n /= 2;
	const struct inode *file = &s->disk->v[f->ino];
	while (n > 0 && !fits(s, file, (uint64_t)off + n)) {
		/* what still fits is written, as a full disk does */
		uint64_t end = ((uint64_t)off + n - 1) / PAGE * PAGE;
		if (end <= (uint64_t)off)
			return leave_errno(s, ENOSPC);
		n = (size_t)(end - (uint64_t)off);
	}
	if (n > 0) {
		perform(s,
			&(struct op){.kind = OP_WRITE, .ino = f->ino, .off = (uint64_t)off, .n = n, .data = (void *)(uintptr_t)buf, .path = f->path});
		touch(s, f->ino);
	}
	leave(s, 0);
	return (ssize_t)n;
}

static int do_sync(int fd)
{
	struct sim *s = sim_current;
	pthread_mutex_lock(&s->mu);
	int64_t delay = s->sync_delay_ms;
	pthread_mutex_unlock(&s->mu);
	if (delay > 0)
		io_posix.sleep_ms(delay);

	bool good = enter_fd(s, SIM_SYNC, fd);
	int e = errno;
	struct file *f = file_of(s, fd);
	if (!f)
		return leave_errno(s, good ? EBADF : e);
	if (!good && s->off)
		return leave_errno(s, e);
	perform(s, &(struct op){.kind = OP_SYNC, .ino = f->ino, .lost = !good, .path = f->path});
	if (!good)
		return leave_errno(s, e);
	if (s->disk->v[f->ino].is_dir) {
		bool *open = open_inodes(s);
		disk_collect(s->disk, open);
		free(open);
	}
	s->syncs++;
	return leave(s, 0);
}

static int sim_ftruncate(int fd, off_t size)
{
	struct sim *s = sim_current;
	if (!enter_fd(s, SIM_SPACE, fd))
		return leave(s, -1);
	struct file *f = file_of(s, fd);
	if (!f || (f->flags & O_ACCMODE) == O_RDONLY)
		return leave_errno(s, f ? EINVAL : EBADF);
	if (!fits(s, &s->disk->v[f->ino], (uint64_t)size))
		return leave_errno(s, ENOSPC);
	perform(s, &(struct op){.kind = OP_TRUNCATE, .ino = f->ino, .n = (uint64_t)size, .path = f->path});
	touch(s, f->ino);
	return leave(s, 0);
}

static int sim_fallocate(int fd, off_t off, off_t n)
{
	struct sim *s = sim_current;
	if (!enter_fd(s, SIM_SPACE, fd))
		return leave(s, -1);
	struct file *f = file_of(s, fd);
	if (!f || (f->flags & O_ACCMODE) == O_RDONLY)
		return leave_errno(s, EBADF);
	if (off < 0 || n <= 0)
		return leave_errno(s, EINVAL);
	if (!fits(s, &s->disk->v[f->ino], (uint64_t)(off + n)))
		return leave_errno(s, ENOSPC);
	perform(s, &(struct op){.kind = OP_ALLOCATE, .ino = f->ino, .off = (uint64_t)off, .n = (uint64_t)n, .path = f->path});
	return leave(s, 0);
}

static void fill_stat(struct sim *s, uint32_t ino, struct stat *st)
{
	const struct inode *f = &s->disk->v[ino];
	memset(st, 0, sizeof *st);
	st->st_mode = f->is_dir ? S_IFDIR | 0750 : S_IFREG | 0640;
	st->st_ino = ino + 1;
	st->st_dev = 1;
	st->st_nlink = disk_links(s->disk, ino);
	st->st_size = f->is_dir ? PAGE : (off_t)f->cached.size;
	st->st_blksize = PAGE;
	st->st_blocks = (blkcnt_t)(disk_file_pages(f) * (PAGE / 512));
	st->st_mtim.tv_sec = f->mtime_ms / 1000;
	st->st_mtim.tv_nsec = f->mtime_ms % 1000 * 1000000;
}

static int sim_fstat(int fd, struct stat *st)
{
	struct sim *s = sim_current;
	if (!enter_fd(s, SIM_LOOK, fd))
		return leave(s, -1);
	struct file *f = file_of(s, fd);
	if (!f)
		return leave(s, -1);
	fill_stat(s, f->ino, st);
	return leave(s, 0);
}

static int sim_stat(const char *path, struct stat *st)
{
	struct sim *s = sim_current;
	if (!enter(s, SIM_LOOK, path))
		return leave(s, -1);
	uint32_t ino = sim_find(s->disk, path);
	if (ino == NO_INODE)
		return leave(s, -1);
	fill_stat(s, ino, st);
	return leave(s, 0);
}

/* Is `dir` the directory `above` or inside it? */
static bool is_inside(const struct disk *d, uint32_t dir, uint32_t above)
{
	if (dir == above)
		return true;
	for (size_t i = 0; i < d->v[above].now.n; i++) {
		uint32_t child = d->v[above].now.v[i].ino;
		if (d->v[child].is_dir && is_inside(d, dir, child))
			return true;
	}
	return false;
}

static int sim_rename(const char *from, const char *to)
{
	struct sim *s = sim_current;
	struct disk *d = s->disk;
	uint32_t dir[2];
	char name[2][NAME_BYTES];
	if (!enter(s, SIM_NAMES, from))
		return leave(s, -1);
	if (!resolve(d, from, &dir[0], name[0]) || !resolve(d, to, &dir[1], name[1]))
		return leave(s, -1);
	uint32_t a = name[0][0] ? disk_lookup(d, dir[0], name[0]) : NO_INODE;
	uint32_t b = name[1][0] ? disk_lookup(d, dir[1], name[1]) : NO_INODE;
	if (a == NO_INODE || !name[1][0])
		return leave_errno(s, ENOENT);
	if (a == b)
		return leave(s, 0);
	if (b != NO_INODE && d->v[a].is_dir != d->v[b].is_dir)
		return leave_errno(s, d->v[b].is_dir ? EISDIR : ENOTDIR);
	if (b != NO_INODE && d->v[b].is_dir && d->v[b].now.n > 0)
		return leave_errno(s, ENOTEMPTY);
	if (d->v[a].is_dir && is_inside(d, dir[1], a))
		return leave_errno(s, EINVAL);
	perform(s, &(struct op){.kind = OP_RENAME, .ino = a, .dir = {dir[0], dir[1]}, .name = {name[0], name[1]}, .path = (char *)(uintptr_t)to});
	sim_account_locked(s);
	return leave(s, 0);
}

static int sim_link(const char *from, const char *to)
{
	struct sim *s = sim_current;
	uint32_t dir;
	char name[NAME_BYTES];
	if (!enter(s, SIM_NAMES, to))
		return leave(s, -1);
	uint32_t a = sim_find(s->disk, from);
	if (a == NO_INODE || !resolve(s->disk, to, &dir, name))
		return leave(s, -1);
	if (s->disk->v[a].is_dir)
		return leave_errno(s, EPERM);
	if (!name[0] || disk_lookup(s->disk, dir, name) != NO_INODE)
		return leave_errno(s, EEXIST);
	perform(s, &(struct op){.kind = OP_LINK, .ino = a, .dir = {0, dir}, .name = {NULL, name}, .path = (char *)(uintptr_t)to});
	return leave(s, 0);
}

static int remove_name(const char *path, bool is_dir)
{
	struct sim *s = sim_current;
	uint32_t dir;
	char name[NAME_BYTES];
	if (!enter(s, SIM_NAMES, path) || !resolve(s->disk, path, &dir, name))
		return leave(s, -1);
	uint32_t ino = name[0] ? disk_lookup(s->disk, dir, name) : 0;
	if (ino == NO_INODE)
		return leave_errno(s, ENOENT);
	if (s->disk->v[ino].is_dir != is_dir)
		return leave_errno(s, is_dir ? ENOTDIR : EISDIR);
	if (ino == 0 || (is_dir && s->disk->v[ino].now.n > 0))
		return leave_errno(s, ino == 0 ? EBUSY : ENOTEMPTY);
	perform(s, &(struct op){.kind = is_dir ? OP_RMDIR : OP_UNLINK, .ino = ino, .dir = {dir}, .name = {name}, .path = (char *)(uintptr_t)path});
	sim_account_locked(s);
	return leave(s, 0);
}

static int sim_unlink(const char *path)
{
	return remove_name(path, false);
}

static int sim_rmdir(const char *path)
{
	return remove_name(path, true);
}

static int sim_mkdir(const char *path, mode_t mode)
{
	struct sim *s = sim_current;
	uint32_t dir;
	char name[NAME_BYTES];
	(void)mode;
	if (!enter(s, SIM_NAMES, path) || !resolve(s->disk, path, &dir, name))
		return leave(s, -1);
	if (!name[0] || disk_lookup(s->disk, dir, name) != NO_INODE)
		return leave_errno(s, EEXIST);
	uint32_t ino = s->disk->n;
	perform(s, &(struct op){.kind = OP_MKDIR, .ino = ino, .dir = {dir}, .name = {name}, .path = (char *)(uintptr_t)path});
	touch(s, ino);
	return leave(s, 0);
}

static int sim_listdir(const char *path, char **names, size_t *names_bytes)
{
	struct sim *s = sim_current;
	if (!enter(s, SIM_LOOK, path))
		return leave(s, -1);
	uint32_t ino = sim_find(s->disk, path);
	if (ino == NO_INODE)
		return leave(s, -1);
	if (!s->disk->v[ino].is_dir)
		return leave_errno(s, ENOTDIR);
	const struct entries *e = &s->disk->v[ino].now;
	size_t n = 0;
	for (size_t i = 0; i < e->n; i++)
		n += strlen(e->v[i].name) + 1;
	char *buf = xalloc(n), *at = buf;
	for (size_t i = 0; i < e->n; i++)
		at = stpcpy(at, e->v[i].name) + 1;
	*names = buf;
	*names_bytes = n;
	return leave(s, (int)e->n);
}

static void *sim_mmap_ro(int fd, size_t n)
{
	struct sim *s = sim_current;
	if (!enter_fd(s, SIM_READ, fd)) {
		leave(s, -1);
		return MAP_FAILED;
	}
	struct file *f = file_of(s, fd);
	if (!f || n == 0) {
		leave_errno(s, f ? EINVAL : EBADF);
		return MAP_FAILED;
	}
	/* A real mapping, so that reading behind its last page faults as it would. */
	void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p != MAP_FAILED) {
		disk_read(&s->disk->v[f->ino], p, n, 0);
		mprotect(p, n, PROT_READ);
	}
	leave(s, 0);
	return p;
}

static int sim_flock_nb(int fd)
{
	struct sim *s = sim_current;
	if (!enter_fd(s, SIM_LOOK, fd))
		return leave(s, -1);
	struct file *f = file_of(s, fd);
	if (!f)
		return leave(s, -1);
	for (size_t i = 0; i < s->n_files; i++)
		if (s->files[i].used && s->files[i].locked && s->files[i].ino == f->ino && &s->files[i] != f)
			return leave_errno(s, EWOULDBLOCK);
	f->locked = true;
	return leave(s, 0);
}

static int sim_statfs(const char *path, uint64_t *total_bytes, uint64_t *free_bytes)
{
	struct sim *s = sim_current;
	if (!enter(s, SIM_LOOK, path))
		return leave(s, -1);
	if (sim_find(s->disk, path) == NO_INODE)
		return leave(s, -1);
	uint64_t pages = s->capacity_pages == NEVER ? (UINT64_C(1) << 40) / PAGE : s->capacity_pages;
	*total_bytes = pages * PAGE;
	*free_bytes = pages > s->disk->used_pages ? (pages - s->disk->used_pages) * PAGE : 0;
	return leave(s, 0);
}

static int64_t sim_now_ms(void)
{
	struct sim *s = sim_current;
	pthread_mutex_lock(&s->mu);
	int64_t t = s->frozen ? s->now_offset_ms : io_posix.now_ms() + s->now_offset_ms;
	pthread_mutex_unlock(&s->mu);
	return t;
}

static int64_t sim_mono_ns(void)
{
	struct sim *s = sim_current;
	pthread_mutex_lock(&s->mu);
	int64_t t = s->frozen ? s->mono_offset_ns : io_posix.mono_ns() + s->mono_offset_ns;
	pthread_mutex_unlock(&s->mu);
	return t;
}

static void sim_sleep_ms(int64_t ms)
{
	struct sim *s = sim_current;
	pthread_mutex_lock(&s->mu);
	bool frozen = s->frozen;
	pthread_mutex_unlock(&s->mu);
	if (frozen)
		sim_advance(s, ms);
	else
		io_posix.sleep_ms(ms);
}

static void sim_random(void *p, size_t n)
{
	struct sim *s = sim_current;
	pthread_mutex_lock(&s->mu);
	for (size_t i = 0; i < n; i++)
		((uint8_t *)p)[i] = (uint8_t)(sim_random_next(&s->random) >> 32);
	pthread_mutex_unlock(&s->mu);
}

const struct io_ops sim_table = {
	.open = sim_open,
	.close = sim_close,
	.pread = sim_pread,
	.pwrite = sim_pwrite,
	.fdatasync = do_sync,
	.fsync = do_sync,
	.ftruncate = sim_ftruncate,
	.fallocate = sim_fallocate,
	.fstat = sim_fstat,
	.stat = sim_stat,
	.rename = sim_rename,
	.link = sim_link,
	.unlink = sim_unlink,
	.mkdir = sim_mkdir,
	.rmdir = sim_rmdir,
	.listdir = sim_listdir,
	.mmap_ro = sim_mmap_ro,
	.munmap = munmap,
	.flock_nb = sim_flock_nb,
	.statfs = sim_statfs,
	.now_ms = sim_now_ms,
	.mono_ns = sim_mono_ns,
	.sleep_ms = sim_sleep_ms,
	.random = sim_random,
};
