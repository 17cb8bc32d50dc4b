/* shipper/shipper_block.c - one block's upload: chunks, index, meta.json last, each verified.
 *
 *     local ──▶ uploading ──▶ chunks/000001 ... index (each: put, size and SHA-256 against meta.json) ──▶ meta.json ──▶ live (one transaction)
 *
 * A reader takes a block for complete when its meta.json is there, so at no moment is a half block visible. Killed anywhere, the next pass
 * resumes: an object under a key that only this block uses, with the right size, was written and verified whole by an earlier pass
 * (a store shows an object only when its last byte is in) and is kept.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "shipper/shipper_int.h"

/* 2026-11-23T08:00:00.123Z */
static void format_time(int64_t ms, char *out, size_t n)
{
	time_t s = (time_t)(ms / 1000);
	struct tm tm;
	char date[32];
	gmtime_r(&s, &tm);
	strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(out, n, "%s.%03dZ", date, (int)(ms % 1000));
}

static errc read_meta(const struct shipper_config *cfg, struct ulid ulid, struct arena *arena, struct block_meta *meta, struct err *err)
{
	errc rc = OK;
	struct span text;
	char *path = arena_printf(arena, "%s/%s/meta.json", cfg->block_dir, ulid_text(ulid).s);
	CHECK(path, ERR_NOMEM, "no memory");
	TRY(io_read_file(path, LIMIT_META_JSON_BYTES, arena, &text, err));
	TRY(block_meta_parse(path, text, arena, meta, err));
	CHECK(ulid_eq(meta->ulid, ulid), ERR_CORRUPT, "%s says ulid %s", path, ulid_text(meta->ulid).s);
	CHECK(meta->n_files > 0, ERR_INVALID, "%s lists no files: it was not written by varve", path);
fail:
	return rc;
}

/* Is the object there whole, from an earlier pass? */
static errc is_there(const struct shipper_config *cfg, const char *key, uint64_t want, bool *there, struct err *err)
{
	uint64_t size;
	errc rc = bucket_size(cfg->bucket, key, &size, err);
	*there = rc == OK && size == want;
	return rc == ERR_NOTFOUND ? OK : rc;
}

static errc put_one(
	const struct shipper_config *cfg, const char *ulid, const struct block_file *f, bool resume, struct arena *arena, bool *own, struct err *err)
{
	errc rc = OK;
	char *key = arena_printf(arena, "%s/%.*s", ulid, SPAN_ARG(f->rel_path));
	char *path = arena_printf(arena, "%s/%s/%.*s", cfg->block_dir, ulid, SPAN_ARG(f->rel_path));
	CHECK(key && path, ERR_NOMEM, "no memory");
	struct io_stat st;
	TRY(io_stat(path, &st, err));
	*own = true;
	CHECK(st.exists, ERR_NOTFOUND, "%s is missing", path);
	CHECK(st.size == f->size_bytes, ERR_CORRUPT, "%s has %" PRIu64 " bytes, meta.json says %" PRIu64, path, st.size, f->size_bytes);
	*own = false;
	if (resume) {
		bool there;
		TRY(is_there(cfg, key, f->size_bytes, &there, err));
		if (there)
			return OK;
	}
	struct bucket_put put;
	TRY(bucket_put_file(cfg->bucket, key, path, &put, err));
	*own = true;
	CHECK(!f->has_sha256 || memcmp(put.sha256, f->sha256, sizeof put.sha256) == 0, ERR_CORRUPT,
		"%s is damaged: its SHA-256 is not the one in meta.json", path);
	*own = false;
fail:
	return rc;
}

/* The objects of a block that will never be complete. Not where a meta.json is: whoever put it there, that block is whole, and it is not ours to take.
 * Best effort: the audit reports what is left as partial. */
static void take_back(const struct shipper_config *cfg, const char *ulid, const struct block_meta *meta, struct arena *arena)
{
	struct err why = {0};
	uint64_t size;
	char *meta_key = arena_printf(arena, "%s/meta.json", ulid);
	if (meta->n_files == 0 || !meta_key || bucket_size(cfg->bucket, meta_key, &size, &why) != ERR_NOTFOUND)
		return;
	for (size_t i = 0; i < meta->n_files; i++) {
		char *key = arena_printf(arena, "%s/%.*s", ulid, SPAN_ARG(meta->files[i].rel_path));
		if (key && bucket_delete(cfg->bucket, key, &why) != OK)
			log_warn("an object of a quarantined block could not be removed", LSTR("key", key), LERR(&why));
	}
}

static bool is_meta(const struct block_file *f)
{
	return span_is(f->rel_path, "meta.json");
}

static bool same_files(const struct block_meta *a, const struct block_meta *b)
{
	bool same = a->n_files == b->n_files && a->n_files > 0;
	for (size_t i = 0; same && i < a->n_files; i++) {
		const struct block_file *x = &a->files[i], *y = &b->files[i];
		same = span_eq(x->rel_path, y->rel_path) && x->size_bytes == y->size_bytes && x->has_sha256 == y->has_sha256 &&
		       memcmp(x->sha256, y->sha256, sizeof x->sha256) == 0;
	}
	return same;
}

/* Is the block whole in the bucket already? Known from its row; where the catalog may have forgotten (a crash behind the last put, a rebuild that is
 * still reading), from its meta.json. Its objects are not written again: what a reader may be reading stays as it is. */
static errc is_live(
	const struct shipper_config *cfg, struct ulid u, bool ask, const struct block_meta *meta, struct arena *arena, bool *live, struct err *err)
{
	errc rc = OK;
	struct catalog_block row;
	struct block_meta there;
	struct span json;
	char key[64];
	*live = false;
	TRY(catalog_get(cfg->catalog, u, arena, &row, err));
	if (row.in_bucket && row.state == BLOCK_LIVE) {
		*live = true;
		return catalog_set_local_state(cfg->catalog, u, BLOCK_LIVE, NULL, err);
	}
	if (row.in_bucket || !(ask || catalog_complete(cfg->catalog, 0, NULL) != OK))
		return OK;
	snprintf(key, sizeof key, "%s/meta.json", ulid_text(u).s);
	rc = bucket_get(cfg->bucket, key, LIMIT_META_JSON_BYTES, arena, &json, err);
	if (rc == ERR_NOTFOUND)
		return OK;
	TRY(rc);
	if (block_meta_parse(key, json, arena, &there, NULL) != OK || !ulid_eq(there.ulid, u) || !same_files(&there, meta))
		return OK;
	uint64_t bytes = json.n;
	for (size_t i = 0; i < there.n_files; i++)
		bytes += there.files[i].size_bytes;
	TRY(catalog_uploaded(cfg->catalog, &there, bytes, err));
	*live = true;
fail:
	return rc;
}

errc ship_block(const struct shipper_config *cfg, struct ulid u, bool resume, struct arena *arena, struct ship_result *res, struct err *err)
{
	errc rc = OK;
	struct ulid_text ulid = ulid_text(u);
	struct block_meta meta = {0};
	struct buf json;
	bool live;
	buf_init(&json, LIMIT_META_JSON_BYTES);
	*res = (struct ship_result){0};
	errc read = read_meta(cfg, u, arena, &meta, err);
	if (read != OK)
		meta = (struct block_meta){0};
	struct err why = {0};
	rc = is_live(cfg, u, resume, &meta, arena, &live, &why);
	CHECK(rc == OK, rc, "%s", why.msg);
	if (live)
		goto fail;
	res->own_fault = read == ERR_CORRUPT || read == ERR_NOTFOUND || read == ERR_INVALID || read == ERR_LIMIT;
	TRY(read);
	if (resume) {
		char prefix[ULID_TEXT_BYTES + 2];
		snprintf(prefix, sizeof prefix, "%s/", ulid.s);
		TRY(bucket_abort_uploads(cfg->bucket, prefix, err));
	}
	TRY(catalog_set_local_state(cfg->catalog, u, BLOCK_UPLOADING, NULL, err));
	/* meta.json lists its files by name, so chunks come before index; what is not meta.json must be there before it. */
	for (size_t i = 0; i < meta.n_files; i++)
		if (!is_meta(&meta.files[i])) {
			TRY(put_one(cfg, ulid.s, &meta.files[i], resume, arena, &res->own_fault, err));
			res->bytes += meta.files[i].size_bytes;
		}

	char now[48], key[64];
	format_time(io_now_ms(), now, sizeof now);
	meta.upload_time = span_cstr(now);
	rc = block_meta_write(&meta, &json);
	CHECK(rc == OK, rc, "meta.json %s", rc == ERR_INVALID ? "has text that is not UTF-8" : "does not fit its memory");
	snprintf(key, sizeof key, "%s/meta.json", ulid.s);
	TRY(bucket_put_bytes(cfg->bucket, key, span_of(json.p, json.n), err));
	res->bytes += json.n;
	TRY(catalog_uploaded(cfg->catalog, &meta, res->bytes, err));
fail:
	if (rc != OK && res->own_fault)
		take_back(cfg, ulid.s, &meta, arena);
	buf_free(&json);
	return rc;
}
