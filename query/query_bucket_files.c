/* query/query_bucket_files.c - the files of a block in the bucket: chunks by ranged GETs, the index through the page cache.
 *
 * Sizes come from meta.json (thanos.files); a block whose meta.json does not tell (another writer's) is asked once by HEAD, when it is opened.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "query/query_int.h"

struct bucket_files {
	struct block_files base;
	struct query *q;
	struct ulid ulid;
	pthread_mutex_t mu;
	uint64_t index_size;	  /* guarded by mu; 0 = unknown */
	struct block_file *files; /* constant */
	size_t n_files;
	bool has_tombstones; /* meta.json counts some: the list of files, which is Thanos', never names their file */
	struct arena arena;
};

struct fetch {
	struct bucket_files *f;
	const char *key;
};

static errc fetch(void *arg, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct fetch *x = arg;
	return bucket_get_range(x->f->q->cfg.bucket, x->key, off, n, buf, err);
}

static errc files_size(struct block_files *base, const char *rel_path, uint64_t *size, struct err *err)
{
	struct bucket_files *f = (struct bucket_files *)base;
	char key[256];
	for (size_t i = 0; i < f->n_files; i++)
		if (span_is(f->files[i].rel_path, rel_path) && f->files[i].size_bytes > 0) {
			*size = f->files[i].size_bytes;
			return OK;
		}
	/* With a list of files that does not name it there is none: no request is needed to know. */
	bool may_be_there = strcmp(rel_path, "index") == 0 || (f->has_tombstones && strcmp(rel_path, "tombstones") == 0);
	if (f->n_files > 0 && !may_be_there)
		return err_set(err, ERR_NOTFOUND, "block %s has no file %s", ulid_text(f->ulid).s, rel_path);
	snprintf(key, sizeof key, "%s/%s", ulid_text(f->ulid).s, rel_path);
	return bucket_size(f->q->cfg.bucket, key, size, err);
}

static errc index_size(struct bucket_files *f, uint64_t *size, struct err *err)
{
	pthread_mutex_lock(&f->mu);
	*size = f->index_size;
	pthread_mutex_unlock(&f->mu);
	if (*size > 0)
		return OK;
	errc rc = files_size(&f->base, "index", size, err);
	if (rc == OK) {
		pthread_mutex_lock(&f->mu);
		f->index_size = *size;
		pthread_mutex_unlock(&f->mu);
	}
	return rc;
}

static errc files_read(struct block_files *base, const char *rel_path, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct bucket_files *f = (struct bucket_files *)base;
	char key[256];
	snprintf(key, sizeof key, "%s/%s", ulid_text(f->ulid).s, rel_path);
	if (strcmp(rel_path, "index") != 0)
		return bucket_get_range(f->q->cfg.bucket, key, off, n, buf, err);
	uint64_t size;
	errc rc = index_size(f, &size, err);
	if (rc != OK)
		return rc;
	struct fetch x = {f, key};
	return query_cache_read(f->q->cache, f->ulid, size, off, n, buf, fetch, &x, err);
}

static void files_close(struct block_files *base)
{
	struct bucket_files *f = (struct bucket_files *)base;
	pthread_mutex_destroy(&f->mu);
	arena_free(&f->arena);
	free(f);
}

errc bucket_files_open(struct query *q, const struct block_meta *meta, struct block_files **out, struct err *err)
{
	struct bucket_files *f = calloc(1, sizeof *f);
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for a block");
	*f = (struct bucket_files){.base = {files_read, files_size, files_close}, .q = q, .ulid = meta->ulid};
	pthread_mutex_init(&f->mu, NULL);
	arena_init(&f->arena, 64 * MIB);
	f->files = arena_alloc(&f->arena, meta->n_files * sizeof *f->files);
	for (size_t i = 0; f->files && i < meta->n_files; i++) {
		f->files[i] = meta->files[i];
		f->files[i].rel_path = arena_dup(&f->arena, meta->files[i].rel_path);
		if (!f->files[i].rel_path.p)
			f->files = NULL;
	}
	if (!f->files) {
		files_close(&f->base);
		return err_set(err, ERR_NOMEM, "no memory for a block's files");
	}
	f->n_files = meta->n_files;
	f->has_tombstones = meta->n_tombstones > 0;
	*out = &f->base;
	return OK;
}
