/* bucket/bucket_dir.c - a directory as an object store: an object is a file, complete and durable, or not there.
 *
 *     put            <root>/.varve-tmp/<key, / as %2F>.<random>  write, fsync ─▶ rename to <root>/<key> ─▶ fsync of every directory up to root
 *     put_if_absent  the same, with link(2) in place of rename: it fails when the name is there, on NFS as well
 *     delete         unlink, fsync, then empty parents go
 *
 * Every directory up to the root is synced, not only those made here: another thread may have made one a moment ago and not synced it yet.
 * Temporary files live in a directory of their own, so that no reader of the tree (Thanos, promtool) ever meets half a file in a block;
 * their names carry the key, so that abort_uploads finds what a killed process left below a prefix.
 *
 * Symbolic links that the owner put below root are followed; keys can't leave it (bucket.c refuses "..").
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_int.h"

#define DIR_TMP ".varve-tmp"
#define DIR_COPY_BYTES (256 * KIB)
#define DIR_TMP_STALE_MS (INT64_C(24) * 3600 * 1000) /* nothing is written for a day */
#define DIR_TMP_NAME_BYTES 180			     /* of the encoded key; with the random end below NAME_MAX */
#define DIR_RACES 16				     /* a delete may take away the parent that a put just made */

/* A file being written by this process: abort_uploads leaves it alone. On the writer's stack. */
struct dir_tmp {
	struct dir_tmp *next;
	const char *name;
};

struct bucket_dir {
	struct bucket base;
	char *root; /* no '/' at the end */
	pthread_mutex_t mu;
	struct dir_tmp *writing; /* guarded by mu */
};

static struct bucket_dir *dir_of(struct bucket *b)
{
	return (struct bucket_dir *)b;
}

/* root/key, malloc'ed. */
static errc path_of(const struct bucket_dir *d, const char *key, char **out, struct err *err)
{
	if (asprintf(out, "%s/%s", d->root, key) >= 0)
		return OK;
	*out = NULL;
	return err_set(err, ERR_NOMEM, "%s/%s: out of memory", d->root, key);
}

static errc root_is_gone(const struct bucket_dir *d, struct err *err)
{
	return err_set(err, ERR_NET, "directory %s is not there", d->root);
}

static bool key_is_own(const char *key)
{
	return strncmp(key, DIR_TMP, sizeof DIR_TMP - 1) == 0 && (key[sizeof DIR_TMP - 1] == '/' || key[sizeof DIR_TMP - 1] == 0);
}

/* ---- temporary files ---- */

static void tmp_name(const char *key, char out[DIR_TMP_NAME_BYTES + 24])
{
	size_t n = 0;
	for (; *key && n + 3 <= DIR_TMP_NAME_BYTES; key++) {
		if (*key == '/' || *key == '%') {
			memcpy(out + n, *key == '/' ? "%2F" : "%25", 3);
			n += 3;
		} else {
			out[n++] = *key;
		}
	}
	out[n] = 0;
}

/* Makes the file and enters it in d->writing; `path` malloc'ed. Undone by tmp_close. */
static errc tmp_open(struct bucket_dir *d, const char *key, struct dir_tmp *t, char **path, int *fd, struct err *err)
{
	errc rc = OK;
	char encoded[DIR_TMP_NAME_BYTES + 24];
	tmp_name(key, encoded);
	int n = asprintf(path, "%s/" DIR_TMP "/%s.%016" PRIx64, d->root, encoded, io_random_u64());
	if (n < 0) {
		*path = NULL;
		return err_set(err, ERR_NOMEM, "%s/%s: out of memory", d->root, key);
	}
	t->name = strrchr(*path, '/') + 1;
	pthread_mutex_lock(&d->mu);
	t->next = d->writing;
	d->writing = t;
	pthread_mutex_unlock(&d->mu);

	rc = io_open(*path, IO_WRITE | IO_CREATE | IO_EXCL, fd, err);
	if (rc == ERR_NOTFOUND) {
		char *dir = NULL;
		TRY(path_of(d, DIR_TMP, &dir, err));
		rc = io_mkdir(dir, err); /* never root itself: it may be a disk that was unmounted */
		free(dir);
		if (rc == ERR_NOTFOUND)
			rc = root_is_gone(d, err);
		TRY(rc);
		TRY(io_open(*path, IO_WRITE | IO_CREATE | IO_EXCL, fd, err));
	}
fail:
	return rc;
}

static void tmp_close(struct bucket_dir *d, struct dir_tmp *t, char *path, int fd)
{
	if (fd >= 0)
		io_close(fd);
	if (!path)
		return;
	errc rc = io_unlink(path, NULL); /* gone already after a rename; else swept later */
	(void)rc;
	pthread_mutex_lock(&d->mu);
	for (struct dir_tmp **p = &d->writing; *p; p = &(*p)->next) {
		if (*p == t) {
			*p = t->next;
			break;
		}
	}
	pthread_mutex_unlock(&d->mu);
	free(path);
}

static bool tmp_is_ours(struct bucket_dir *d, const char *name)
{
	bool ours = false;
	pthread_mutex_lock(&d->mu);
	for (const struct dir_tmp *t = d->writing; t && !ours; t = t->next)
		ours = strcmp(t->name, name) == 0;
	pthread_mutex_unlock(&d->mu);
	return ours;
}

/* Removes what a killed process left: files whose key begins with `prefix`, or any that are older than a day. */
static errc tmp_sweep(struct bucket_dir *d, const char *prefix, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	char encoded[DIR_TMP_NAME_BYTES + 24], *dir = NULL;
	char **names;
	size_t n;

	arena_init(&arena, LIMIT_BUCKET_LIST_BYTES);
	if (prefix)
		tmp_name(prefix, encoded);
	TRY(path_of(d, DIR_TMP, &dir, err));
	rc = io_listdir(dir, &arena, &names, &n, err);
	if (rc == ERR_NOTFOUND) {
		rc = OK;
		goto fail;
	}
	TRY(rc);
	for (size_t i = 0; i < n; i++) {
		struct io_stat st;
		char *path = arena_printf(&arena, "%s/%s", dir, names[i]);
		CHECK(path, ERR_NOMEM, "%s: out of memory", dir);
		TRY(io_stat(path, &st, err));
		bool hit = prefix ? strncmp(names[i], encoded, strlen(encoded)) == 0 : st.mtime_ms < io_now_ms() - DIR_TMP_STALE_MS;
		if (!st.exists || !hit || tmp_is_ours(d, names[i]))
			continue;
		rc = io_unlink(path, err);
		if (rc != ERR_NOTFOUND)
			TRY(rc);
		rc = OK;
		log_info("temporary file of an unfinished put removed", LSTR("path", path));
	}
fail:
	free(dir);
	arena_free(&arena);
	return rc;
}

/* ---- put ---- */

/* Every directory that leads to the key, root included: the name survives a power cut. */
static errc sync_parents(struct bucket_dir *d, const char *path, struct err *err)
{
	errc rc = OK;
	char *dir = strdup(path);
	CHECK(dir, ERR_NOMEM, "%s: out of memory", path);
	for (char *slash; (slash = strrchr(dir, '/')) && (size_t)(slash - dir) >= strlen(d->root);) {
		*slash = 0;
		TRY(io_fsync_dir(dir, err));
	}
fail:
	free(dir);
	return rc;
}

static errc make_parents(const char *path, struct err *err)
{
	errc rc = OK;
	char *dir = strdup(path);
	CHECK(dir, ERR_NOMEM, "%s: out of memory", path);
	*strrchr(dir, '/') = 0;
	rc = io_mkdirs(dir, err);
fail:
	free(dir);
	return rc;
}

/* The finished temporary file gets its name, by rename or (absent only) by link. */
static errc publish(struct bucket_dir *d, const char *tmp, const char *path, bool absent, struct err *err)
{
	errc rc = OK;
	for (int i = 0;; i++) {
		rc = absent ? io_link(tmp, path, err) : io_rename(tmp, path, err);
		if (rc != ERR_NOTFOUND || i == DIR_RACES)
			break;
		rc = make_parents(path, err);
		if (rc && rc != ERR_NOTFOUND)
			break;
	}
	TRY(rc);
	TRY(sync_parents(d, path, err));
fail:
	return rc;
}

static errc copy_file(struct bucket_dir *d, const char *from, int to, struct bucket_put *put, struct err *err)
{
	errc rc = OK;
	int fd = -1;
	uint8_t *buf = malloc(DIR_COPY_BYTES);
	struct bucket_hash hash = {0};
	struct bucket_digest digest;

	CHECK(buf, ERR_NOMEM, "%s: out of memory", from);
	TRY(bucket_hash_begin(&hash, false, err));
	TRY(io_open(from, IO_READ, &fd, err));
	for (uint64_t off = 0;;) {
		size_t got;
		TRY(bucket_alive(&d->base, err));
		TRY(io_pread(fd, buf, DIR_COPY_BYTES, off, &got, err));
		TRY(bucket_hash_add(&hash, buf, got, err));
		TRY(io_pwrite(to, buf, got, off, err));
		off += got;
		if (got < DIR_COPY_BYTES)
			break;
	}
	TRY(bucket_hash_end(&hash, &digest, err));
	*put = (struct bucket_put){.size_bytes = digest.size_bytes, .crc32c = digest.crc32c};
	memcpy(put->sha256, digest.sha256, SHA256_BYTES);
fail:
	bucket_hash_drop(&hash);
	io_close(fd);
	free(buf);
	return rc;
}

/* From a file (source) or from memory. */
static errc dir_put(struct bucket_dir *d, const char *key, const char *source, struct span data, bool absent, struct bucket_put *put, struct err *err)
{
	errc rc = OK;
	char *path = NULL, *tmp = NULL;
	int fd = -1;
	struct dir_tmp entry = {0};
	uint64_t size, want = data.n;

	CHECK(!key_is_own(key), ERR_INVALID, "%s: " DIR_TMP " is for temporary files", key);
	TRY(path_of(d, key, &path, err));
	TRY(tmp_open(d, key, &entry, &tmp, &fd, err));
	if (source) {
		TRY(copy_file(d, source, fd, put, err));
		want = put->size_bytes;
	} else {
		TRY(io_pwrite(fd, data.p, data.n, 0, err));
	}
	TRY(io_fsync(fd, err));
	TRY(io_size(fd, &size, err));
	CHECK(size == want, ERR_CORRUPT, "%s: wrote %" PRIu64 " bytes, the file has %" PRIu64, path, want, size);
	TRY(publish(d, tmp, path, absent, err));
fail:
	tmp_close(d, &entry, tmp, fd);
	free(path);
	return rc;
}

static errc dir_put_file(struct bucket *b, const char *key, const char *path, struct bucket_put *put, struct err *err)
{
	return dir_put(dir_of(b), key, path, SPAN(""), false, put, err);
}

static errc dir_put_bytes(struct bucket *b, const char *key, struct span data, struct err *err)
{
	return dir_put(dir_of(b), key, NULL, data, false, NULL, err);
}

static errc dir_put_if_absent(struct bucket *b, const char *key, struct span data, struct err *err)
{
	return dir_put(dir_of(b), key, NULL, data, true, NULL, err);
}

/* ---- get ---- */

/* Opens an object; a directory is none. */
static errc object_open(struct bucket_dir *d, const char *key, int *fd, uint64_t *size, struct err *err)
{
	errc rc = OK;
	char *path = NULL;
	struct io_stat st, root;
	*fd = -1;
	TRY(path_of(d, key, &path, err));
	TRY(io_stat(path, &st, err));
	if (!st.exists) {
		TRY(io_stat(d->root, &root, err));
		if (!root.exists) {
			rc = root_is_gone(d, err);
			goto fail;
		}
	}
	CHECK(st.exists && !st.is_dir && !key_is_own(key), ERR_NOTFOUND, "%s: no such object", path);
	TRY(io_open(path, IO_READ, fd, err));
	TRY(io_size(*fd, size, err));
fail:
	free(path);
	return rc;
}

static errc dir_get_range(struct bucket *b, const char *key, uint64_t off, size_t n, void *buf, struct err *err)
{
	errc rc = OK;
	int fd;
	uint64_t size;
	TRY(object_open(dir_of(b), key, &fd, &size, err));
	CHECK(off <= size && n <= size - off, ERR_CORRUPT, "%s/%s: %" PRIu64 " bytes, wanted %zu at %" PRIu64, dir_of(b)->root, key, size, n, off);
	TRY(io_pread_full(fd, buf, n, off, err));
fail:
	io_close(fd);
	return rc;
}

static errc dir_get(struct bucket *b, const char *key, size_t max_bytes, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	int fd;
	uint64_t size;
	TRY(object_open(dir_of(b), key, &fd, &size, err));
	CHECK(size <= max_bytes, ERR_LIMIT, "%s/%s: %" PRIu64 " bytes, at most %zu", dir_of(b)->root, key, size, max_bytes);
	char *p = arena_alloc(arena, (size_t)size + 1);
	CHECK(p, ERR_NOMEM, "%s/%s: out of memory", dir_of(b)->root, key);
	TRY(io_pread_full(fd, p, (size_t)size, 0, err));
	p[size] = 0;
	*out = span_of(p, (size_t)size);
fail:
	io_close(fd);
	return rc;
}

static errc dir_size(struct bucket *b, const char *key, uint64_t *size, struct err *err)
{
	int fd;
	errc rc = object_open(dir_of(b), key, &fd, size, err);
	io_close(fd);
	return rc;
}

/* ---- delete ---- */

static errc dir_remove(struct bucket *b, const char *key, struct err *err)
{
	errc rc = OK;
	struct bucket_dir *d = dir_of(b);
	char *path = NULL;
	struct io_stat st;
	TRY(path_of(d, key, &path, err));
	TRY(io_stat(path, &st, err));
	if (!st.exists || st.is_dir || key_is_own(key))
		goto fail;
	rc = io_unlink(path, err);
	if (rc == ERR_NOTFOUND)
		rc = OK;
	TRY(rc);

	/* Empty parents go; the first that stays is synced, and with it everything that went. */
	for (char *slash; (slash = strrchr(path, '/')) && (size_t)(slash - path) > strlen(d->root);) {
		*slash = 0;
		if (io_rmdir(path, NULL)) {
			rc = io_fsync_dir(path, err);
			if (rc == ERR_NOTFOUND) { /* another delete was faster */
				rc = OK;
				continue;
			}
			goto fail;
		}
	}
	rc = io_fsync_dir(d->root, err);
fail:
	free(path);
	return rc;
}

/* ---- list ---- */

struct entry {
	char *name; /* a directory's ends with '/': then byte order of names is byte order of keys */
	uint64_t size_bytes;
	int64_t mtime_ms;
	bool is_dir;
};

static int entry_cmp(const void *x, const void *y)
{
	const struct entry *a = x, *b = y;
	return span_cmp(span_cstr(a->name), span_cstr(b->name));
}

struct listing {
	struct bucket_dir *d;
	struct span prefix;
	errc (*fn)(void *arg, const struct bucket_object *o, struct err *err);
	void *arg;
	uint64_t *pages;
};

/* Could anything at or below `key` begin with the prefix? */
static bool may_match(const struct listing *l, struct span key, bool is_dir)
{
	return span_has_prefix(key, l->prefix) || (is_dir && span_has_prefix(l->prefix, key));
}

/* Reads one directory (key: "" or ends with '/') into sorted entries that may match. */
static errc dir_read(const struct listing *l, const char *key, struct arena *arena, struct entry **out, size_t *n_out, struct err *err)
{
	errc rc = OK;
	char **names, *dir = NULL;
	size_t n, m = 0;
	*n_out = 0;
	dir = arena_printf(arena, "%s/%s", l->d->root, key);
	CHECK(dir, ERR_NOMEM, "%s/%s: out of memory", l->d->root, key);
	dir[strlen(dir) - 1] = 0;
	rc = io_listdir(dir, arena, &names, &n, err);
	if (rc == ERR_NOTFOUND)
		return OK; /* deleted since its parent was read */
	TRY(rc);
	++*l->pages;

	struct entry *e = arena_calloc(arena, n + 1, sizeof *e);
	CHECK(e, ERR_NOMEM, "%s: listing %zu names: out of memory", dir, n);
	for (size_t i = 0; i < n; i++) {
		char path[4096], child[4096];
		struct io_stat st;
		/* lost+found: of a file system whose root is the bucket; nobody but root may read it. */
		if (key[0] == 0 && (strcmp(names[i], DIR_TMP) == 0 || strcmp(names[i], "lost+found") == 0))
			continue;
		int cn = snprintf(child, sizeof child, "%s%s/", key, names[i]);
		if (cn < 0 || (size_t)cn >= sizeof child || (size_t)snprintf(path, sizeof path, "%s/%s", dir, names[i]) >= sizeof path)
			continue; /* longer than any key */
		if (!may_match(l, span_of(child, (size_t)cn - 1), true) && !may_match(l, span_of(child, (size_t)cn), true))
			continue;
		TRY(io_stat(path, &st, err));
		if (!st.exists || !may_match(l, span_of(child, (size_t)cn - (st.is_dir ? 0 : 1)), st.is_dir))
			continue;
		e[m] = (struct entry){arena_printf(arena, "%s%s", names[i], st.is_dir ? "/" : ""), st.size, st.mtime_ms, st.is_dir};
		CHECK(e[m].name, ERR_NOMEM, "%s: listing %zu names: out of memory", dir, n);
		m++;
	}
	qsort(e, m, sizeof *e, entry_cmp);
	*out = e;
	*n_out = m;
fail:
	return rc;
}

/* Depth first; holds the names of one directory per level. */
static errc walk(const struct listing *l, const char *key, int depth, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct entry *e = NULL;
	size_t n = 0;

	arena_init(&arena, LIMIT_BUCKET_LIST_BYTES);
	CHECK(depth <= LIMIT_BUCKET_DIR_DEPTH, ERR_LIMIT, "%s/%s: more than %d directories deep", l->d->root, key, LIMIT_BUCKET_DIR_DEPTH);
	TRY(bucket_alive(&l->d->base, err));
	TRY(dir_read(l, key, &arena, &e, &n, err));
	for (size_t i = 0; i < n; i++) {
		char child[4096];
		int cn = snprintf(child, sizeof child, "%s%s", key, e[i].name);
		ASSERT(cn > 0 && (size_t)cn < sizeof child);
		if (e[i].is_dir) {
			TRY(walk(l, child, depth + 1, err));
		} else {
			struct bucket_object o = {span_of(child, (size_t)cn), e[i].size_bytes, e[i].mtime_ms};
			TRY(l->fn(l->arg, &o, err));
		}
	}
fail:
	arena_free(&arena);
	return rc;
}

static errc dir_list(struct bucket *b, const char *prefix, errc (*fn)(void *arg, const struct bucket_object *o, struct err *err), void *arg,
	uint64_t *pages, struct err *err)
{
	errc rc = OK;
	/* Start where the prefix leads: "a/b/c" needs a/b/ only. */
	char start[LIMIT_BUCKET_KEY_BYTES + 1] = "";
	const char *slash = strrchr(prefix, '/');
	if (slash)
		memcpy(start, prefix, (size_t)(slash - prefix) + 1);
	struct listing l = {dir_of(b), span_cstr(prefix), fn, arg, pages};
	char *path = NULL;
	struct io_stat st;
	TRY(path_of(dir_of(b), start, &path, err));
	TRY(io_stat(path, &st, err));
	if (st.exists && st.is_dir && !key_is_own(start))
		TRY(walk(&l, start, 0, err));
	else if (!start[0])
		rc = root_is_gone(dir_of(b), err); /* which is not the same as empty */
fail:
	free(path);
	return rc;
}

/* ---- the rest ---- */

static errc dir_check(struct bucket *b, struct err *err)
{
	errc rc = OK;
	struct bucket_dir *d = dir_of(b);
	struct dir_tmp entry = {0};
	char *tmp = NULL;
	int fd = -1;
	TRY(tmp_open(d, BUCKET_PROBE_PREFIX "check", &entry, &tmp, &fd, err));
fail:
	tmp_close(d, &entry, tmp, fd);
	if (rc)
		err_wrap(err, "%s can't be written", b->describe);
	return rc;
}

static errc dir_abort_uploads(struct bucket *b, const char *prefix, struct err *err)
{
	return tmp_sweep(dir_of(b), prefix, err);
}

static void dir_cancel(struct bucket *b)
{
	(void)b; /* loops look at b->canceled */
}

static void dir_close(struct bucket *b)
{
	struct bucket_dir *d = dir_of(b);
	pthread_mutex_destroy(&d->mu);
	free((char *)b->describe);
	free(d->root);
	free(d);
}

static const struct bucket_ops dir_ops = {dir_close, dir_cancel, dir_put_file, dir_put_bytes, dir_put_if_absent, dir_get_range, dir_get, dir_size,
	dir_remove, dir_list, dir_check, dir_abort_uploads};

/* Makes root where it is missing, and its name durable. */
static errc root_make(const char *root, struct err *err)
{
	errc rc = OK;
	char *dir = NULL;
	struct io_stat st;
	TRY(io_stat(root, &st, err));
	if (st.exists) {
		CHECK(st.is_dir, ERR_INVALID, "%s is not a directory", root);
		return OK;
	}
	TRY(io_mkdirs(root, err));
	dir = strdup(root);
	CHECK(dir, ERR_NOMEM, "directory %s: out of memory", root);
	for (char *slash; (slash = strrchr(dir, '/')) && slash > dir;) {
		*slash = 0;
		rc = io_fsync_dir(dir, err);
		if (rc == ERR_DENIED) /* an ancestor that we may not read, and did not make */
			rc = OK;
		TRY(rc);
	}
	if (root[0] != '/')
		TRY(io_fsync_dir(".", err));
fail:
	free(dir);
	return rc;
}

errc bucket_dir_open(const struct bucket_config *cfg, struct bucket **out, struct err *err)
{
	errc rc = OK;
	struct bucket_dir *d = calloc(1, sizeof *d);
	char *describe = NULL;
	CHECK(d, ERR_NOMEM, "directory %s: out of memory", cfg->directory);
	pthread_mutex_init(&d->mu, NULL);
	d->base.ops = &dir_ops;

	int dir_n = (int)strlen(cfg->directory);
	while (dir_n > 1 && cfg->directory[dir_n - 1] == '/')
		dir_n--;
	if (asprintf(&d->root, "%.*s%s%s", dir_n, cfg->directory, cfg->prefix[0] ? "/" : "", cfg->prefix) < 0)
		d->root = NULL;
	CHECK(d->root, ERR_NOMEM, "directory %s: out of memory", cfg->directory);
	if (asprintf(&describe, "directory %s", d->root) < 0)
		describe = NULL;
	CHECK(describe, ERR_NOMEM, "directory %s: out of memory", cfg->directory);
	d->base.describe = describe;
	d->base.dir = d->root;
	TRY(root_make(d->root, err));
	TRY(tmp_sweep(d, NULL, err));
	*out = &d->base;
	return OK;
fail:
	if (d)
		dir_close(&d->base);
	return rc;
}
