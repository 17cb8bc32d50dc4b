/* block/block_dir.c - directories of blocks: what crashes left behind, removal, and the files of one block for its reader.
 *
 * Descriptors are kept in one small pool for the whole process, the least recently used one goes: thousands of local blocks cost
 * LIMIT_BLOCK_OPEN_FILES descriptors. The pool's lock is held to find a descriptor, never while reading.
 */
#include <pthread.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block.h"

/* <ULID> plus one of the endings: never anything that is not ours. */
static bool is_leftover(const char *name)
{
	static const char *const endings[] = {".tmp-for-creation", ".tmp-for-deletion", ".tmp"};
	struct ulid u;
	if (strlen(name) <= ULID_TEXT_BYTES || !ulid_parse(span_of(name, ULID_TEXT_BYTES), &u))
		return false;
	for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
		if (strcmp(name + ULID_TEXT_BYTES, endings[i]) == 0)
			return true;
	return false;
}

errc block_clean_dir(const char *dir, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	char **names;
	size_t n;
	arena_init(&arena, LIMIT_DIR_LISTING_BYTES);
	TRY(io_listdir(dir, &arena, &names, &n, err));
	for (size_t i = 0; i < n; i++) {
		if (!is_leftover(names[i]))
			continue;
		const char *path = arena_printf(&arena, "%s/%s", dir, names[i]);
		CHECK(path, ERR_NOMEM, "%s: no memory for %zu names", dir, n);
		TRY(io_remove_tree(path, err));
	}
fail:
	arena_free(&arena);
	return rc;
}

errc block_remove(const char *dir, struct ulid ulid, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct ulid_text name = ulid_text(ulid);
	arena_init(&arena, LIMIT_DIR_LISTING_BYTES);
	const char *from = arena_printf(&arena, "%s/%s", dir, name.s);
	const char *to = arena_printf(&arena, "%s/%s.tmp-for-deletion", dir, name.s);
	CHECK(from && to, ERR_NOMEM, "%s/%s: no memory to remove it", dir, name.s);
	TRY(io_remove_tree(to, err)); /* of an earlier try */
	TRY(io_rename(from, to, err));
	TRY(io_fsync_dir(dir, err)); /* so that the block does not come back half removed */
	TRY(io_remove_tree(to, err));
fail:
	arena_free(&arena);
	return rc;
}

/* ---- the files of one block ---- */

struct dir_files {
	struct block_files base;
	size_t n_dir;
	char dir[]; /* NUL-terminated */
};

enum { NAME_MAX_BYTES = 32 /* "chunks/000001", with room */ };

struct pooled {
	const struct dir_files *owner; /* NULL: free */
	char name[NAME_MAX_BYTES];
	int fd;
	unsigned pins;
	uint64_t used_at;
};

static struct pool {
	pthread_mutex_t mu;
	struct pooled v[LIMIT_BLOCK_OPEN_FILES];
	uint64_t clock;
} pool = {.mu = PTHREAD_MUTEX_INITIALIZER};

static struct pooled *pool_find_locked(const struct dir_files *owner, const char *name)
{
	for (size_t i = 0; i < LIMIT_BLOCK_OPEN_FILES; i++)
		if (pool.v[i].owner == owner && strcmp(pool.v[i].name, name) == 0)
			return &pool.v[i];
	return NULL;
}

/* A pinned descriptor, or NULL when the file is not open. */
static struct pooled *pool_get(const struct dir_files *owner, const char *name)
{
	pthread_mutex_lock(&pool.mu);
	struct pooled *p = pool_find_locked(owner, name);
	if (p) {
		p->pins++;
		p->used_at = ++pool.clock;
	}
	pthread_mutex_unlock(&pool.mu);
	return p;
}

static void pool_unpin(struct pooled *p)
{
	pthread_mutex_lock(&pool.mu);
	p->pins--;
	pthread_mutex_unlock(&pool.mu);
}

/* Keeps fd, or closes it when another thread keeps the same file or every place is pinned; closes the one that had to go. */
static void pool_put(const struct dir_files *owner, const char *name, int fd)
{
	int out = fd;
	pthread_mutex_lock(&pool.mu);
	if (strlen(name) < NAME_MAX_BYTES && !pool_find_locked(owner, name)) {
		struct pooled *to = NULL;
		for (size_t i = 0; i < LIMIT_BLOCK_OPEN_FILES; i++) {
			struct pooled *p = &pool.v[i];
			if (p->pins == 0 && (!to || (to->owner && (!p->owner || p->used_at < to->used_at))))
				to = p;
		}
		if (to) {
			out = to->owner ? to->fd : -1;
			*to = (struct pooled){.owner = owner, .fd = fd, .used_at = ++pool.clock};
			memcpy(to->name, name, strlen(name) + 1);
		}
	}
	pthread_mutex_unlock(&pool.mu);
	io_close(out);
}

static void pool_drop(const struct dir_files *owner)
{
	int fds[LIMIT_BLOCK_OPEN_FILES];
	size_t n = 0;
	pthread_mutex_lock(&pool.mu);
	for (size_t i = 0; i < LIMIT_BLOCK_OPEN_FILES; i++) {
		if (pool.v[i].owner != owner)
			continue;
		ASSERT(pool.v[i].pins == 0);
		fds[n++] = pool.v[i].fd;
		pool.v[i] = (struct pooled){0};
	}
	pthread_mutex_unlock(&pool.mu);
	while (n > 0)
		io_close(fds[--n]);
}

static errc path_of(const struct dir_files *d, const char *rel_path, char *path, size_t size, struct err *err)
{
	size_t n = strlen(rel_path);
	if (d->n_dir + 1 + n >= size)
		return err_set(err, ERR_INVALID, "%s: the path of %s is too long", d->dir, rel_path);
	memcpy(path, d->dir, d->n_dir);
	path[d->n_dir] = '/';
	memcpy(path + d->n_dir + 1, rel_path, n + 1);
	return OK;
}

static errc dir_read(struct block_files *f, const char *rel_path, uint64_t off, size_t n, void *buf, struct err *err)
{
	const struct dir_files *d = (const struct dir_files *)f;
	errc rc = OK;
	struct pooled *p = pool_get(d, rel_path);
	if (p) {
		rc = io_pread_full(p->fd, buf, n, off, err);
		pool_unpin(p);
	} else {
		char path[4096];
		int fd = -1;
		TRY(path_of(d, rel_path, path, sizeof path, err));
		TRY(io_open(path, IO_READ, &fd, err));
		rc = io_pread_full(fd, buf, n, off, err);
		pool_put(d, rel_path, fd);
	}
	if (rc)
		err_wrap(err, "%s/%s", d->dir, rel_path);
fail:
	return rc;
}

static errc dir_size(struct block_files *f, const char *rel_path, uint64_t *size, struct err *err)
{
	errc rc = OK;
	char path[4096];
	struct io_stat st;
	TRY(path_of((const struct dir_files *)f, rel_path, path, sizeof path, err));
	TRY(io_stat(path, &st, err));
	CHECK(st.exists, ERR_NOTFOUND, "%s is not there", path);
	*size = st.size;
fail:
	return rc;
}

static void dir_close(struct block_files *f)
{
	if (!f)
		return;
	pool_drop((const struct dir_files *)f);
	free(f);
}

errc block_files_dir(const char *block_dir, struct block_files **out, struct err *err)
{
	size_t n = strlen(block_dir);
	struct dir_files *d = malloc(sizeof *d + n + 1);
	if (!d)
		return err_set(err, ERR_NOMEM, "%s: no memory to read it", block_dir);
	d->base = (struct block_files){.read = dir_read, .size = dir_size, .close = dir_close};
	d->n_dir = n;
	memcpy(d->dir, block_dir, n + 1);
	*out = &d->base;
	return OK;
}
