/* query/query_bucket_files.c - the files of a block in the bucket: chunks by ranged GETs, the index through the page cache.
 *
 * Which objects there are, and how long, is what the catalog's listing showed: no HEAD, whoever wrote the block.
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

/* No request: what the listing did not show is not there. */
static errc files_size(struct block_files *base, const char *rel_path, uint64_t *size, struct err *err)
{
	struct bucket_files *f = (struct bucket_files *)base;
	for (size_t i = 0; i < f->n_files; i++)
		if (span_is(f->files[i].rel_path, rel_path)) {
			*size = f->files[i].size_bytes;
			return OK;
		}
	return err_set(err, ERR_NOTFOUND, "block %s has no %s in the bucket", ulid_text(f->ulid).s, rel_path);
}

static errc files_read(struct block_files *base, const char *rel_path, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct bucket_files *f = (struct bucket_files *)base;
	char key[256];
	snprintf(key, sizeof key, "%s/%s", ulid_text(f->ulid).s, rel_path);
	if (strcmp(rel_path, "index") != 0)
		return bucket_get_range(f->q->cfg.bucket, key, off, n, buf, err);
	uint64_t size;
	errc rc = files_size(base, rel_path, &size, err);
	if (rc != OK)
		return rc;
	struct fetch x = {f, key};
	return query_cache_read(f->q->cache, f->ulid, size, off, n, buf, fetch, &x, err);
}

static void files_close(struct block_files *base)
{
	struct bucket_files *f = (struct bucket_files *)base;
	arena_free(&f->arena);
	free(f);
}

errc bucket_files_open(struct query *q, const struct catalog_block *row, struct block_files **out, struct err *err)
{
	errc rc = OK;
	struct bucket_files *f = calloc(1, sizeof *f);
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for a block");
	*f = (struct bucket_files){.base = {files_read, files_size, files_close}, .q = q, .ulid = row->ulid};
	arena_init(&f->arena, 64 * MIB);
	TRY(catalog_objects(row, &f->arena, &f->files, &f->n_files, err));
	*out = &f->base;
	return OK;
fail:
	files_close(&f->base);
	return rc;
}
