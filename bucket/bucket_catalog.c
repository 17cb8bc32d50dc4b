/* bucket/bucket_catalog.c - the catalog's life, this node's blocks, and what queries ask. See bucket/catalog.h. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "bucket/bucket_catalog_int.h"

const char *block_state_name(enum block_state s)
{
	static const char *const names[] = {"cutting", "local", "uploading", "live", "superseded", "deleting", "gone", "quarantined"};
	ASSERT((unsigned)s <= BLOCK_QUARANTINED);
	return names[s];
}

/* ---- open, set aside, close ---- */

static errc set_aside(struct catalog *c, const char *why, struct err *err)
{
	static const char *const suffixes[] = {"", "-wal", "-shm"};
	int64_t now = io_now_ms();
	log_error("the catalog is damaged: it is set aside and rebuilt from the bucket and the local blocks", LSTR("path", c->path),
		LI64("suffix_damaged", now), LSTR("reason", why));
	for (size_t i = 0; i < 3; i++) {
		char from[4096], to[4200];
		snprintf(from, sizeof from, "%s%s", c->path, suffixes[i]);
		snprintf(to, sizeof to, "%s.damaged-%" PRId64 "%s", c->path, now, suffixes[i]);
		errc rc = io_rename(from, to, err);
		if (rc != OK && rc != ERR_NOTFOUND)
			return rc;
	}
	metric_add(c->rebuilds, 1);
	return OK;
}

/* Opens the first connection; a damaged file is set aside once and made anew. */
static errc first_connection(struct catalog *c, bool *rebuilt, struct err *err)
{
	bool fresh = false;
	struct catalog_conn *conn = NULL;
	errc rc = catalog_conn_open(c, &fresh, &conn, err);
	if (rc == ERR_CORRUPT && !c->read_only) {
		char why[ERR_MSG_BYTES];
		snprintf(why, sizeof why, "%s", err ? err->msg : "damaged");
		rc = set_aside(c, why, err);
		if (rc == OK)
			rc = catalog_conn_open(c, &fresh, &conn, err);
		fresh = true;
	}
	if (rc == OK)
		rc = catalog_feed_load(c, conn, err);
	if (rc != OK) {
		if (conn)
			catalog_conn_close(conn);
		return rc;
	}
	sqlite3_stmt *st = catalog_stmt(conn, "SELECT value FROM facts WHERE name='complete'", err);
	bool complete = st && sqlite3_step(st) == SQLITE_ROW && span_is(catalog_column(st, 0), "1");
	*rebuilt = fresh || !complete;
	pthread_mutex_lock(&c->mu);
	c->complete = complete;
	c->damaged = c->moved = false;
	if (st)
		sqlite3_reset(st);
	conn->next = c->idle;
	c->idle = conn;
	c->n_idle++;
	pthread_mutex_unlock(&c->mu);
	return OK;
}

errc catalog_open(const struct catalog_config *cfg, struct catalog **out, bool *rebuilt, struct err *err)
{
	errc rc = OK;
	struct catalog *c = calloc(1, sizeof *c);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for the catalog");
	pthread_rwlock_init(&c->file_lock, NULL);
	pthread_mutex_init(&c->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->audited, &attr);
	pthread_condattr_destroy(&attr);
	c->path = strdup(cfg->path);
	c->node = strdup(cfg->node ? cfg->node : "");
	c->read_only = cfg->read_only;
	c->rebuilds = metric_counter("varve_catalog_rebuilds_total", "Times the catalog was found damaged and set aside");
	c->row_errors = metric_counter("varve_catalog_row_errors_total", "Catalog rows whose checksum was wrong");
	c->announced = metric_counter("varve_feed_announced_total", "Changes of the bucket that this node saw first, and tells the others");
	CHECK(c->path && c->node, ERR_NOMEM, "no memory for the catalog");
	TRY(first_connection(c, rebuilt, err));
	*out = c;
	return OK;
fail:
	catalog_close(c);
	return rc;
}

static void close_idle(struct catalog *c)
{
	while (c->idle) {
		struct catalog_conn *next = c->idle->next;
		catalog_conn_close(c->idle);
		c->idle = next;
	}
	c->n_idle = 0;
}

void catalog_close(struct catalog *c)
{
	if (!c)
		return;
	close_idle(c);
	pthread_cond_destroy(&c->audited);
	pthread_mutex_destroy(&c->mu);
	pthread_rwlock_destroy(&c->file_lock);
	free(c->path);
	free(c->node);
	catalog_hidden_free(c);
	free(c);
}

bool catalog_damaged(struct catalog *c)
{
	pthread_mutex_lock(&c->mu);
	bool damaged = c->damaged;
	pthread_mutex_unlock(&c->mu);
	return damaged;
}

void catalog_watch(struct catalog *c)
{
	pthread_mutex_lock(&c->mu);
	int moved = 0;
	if (c->idle && sqlite3_file_control(c->idle->db, NULL, SQLITE_FCNTL_HAS_MOVED, &moved) == SQLITE_OK && moved)
		c->damaged = c->moved = true;
	pthread_mutex_unlock(&c->mu);
}

errc catalog_reset(struct catalog *c, struct err *err)
{
	ASSERT(!c->read_only);
	bool rebuilt;
	pthread_rwlock_wrlock(&c->file_lock);
	close_idle(c);
	errc rc = set_aside(c, c->moved ? "the file was removed or replaced" : "a row's checksum was wrong", err);
	if (rc == OK)
		rc = first_connection(c, &rebuilt, err);
	/* Whatever file is there now: it is whole when the bucket and the directories have been read again. */
	pthread_mutex_lock(&c->mu);
	c->generation++;
	c->complete = false;
	pthread_mutex_unlock(&c->mu);
	pthread_rwlock_unlock(&c->file_lock);
	return rc;
}

uint64_t catalog_generation(struct catalog *c)
{
	pthread_mutex_lock(&c->mu);
	uint64_t generation = c->generation;
	pthread_mutex_unlock(&c->mu);
	return generation;
}

errc catalog_complete(struct catalog *c, int64_t timeout_ms, struct err *err)
{
	int64_t until = io_mono_ns() + timeout_ms * 1000000;
	struct timespec t = {until / 1000000000, until % 1000000000};
	errc rc = OK;
	pthread_mutex_lock(&c->mu);
	/* A failed audit does not make a reader wait: it is told at once. */
	while (!c->complete && !(c->audit_failed && !c->auditing) && timeout_ms > 0)
		if (pthread_cond_timedwait(&c->audited, &c->mu, &t) != 0)
			break;
	if (!c->complete)
		rc = c->audit_failed ? err_set(err, ERR_NET, "the bucket could not be read since the catalog was made: %s", c->audit_error)
				     : err_set(err, ERR_AGAIN, "the catalog is being rebuilt from the bucket");
	pthread_mutex_unlock(&c->mu);
	return rc;
}

/* ---- this node's blocks ---- */

/* meta.json as it stands or will stand in the bucket, and the list of objects that follows from it. */
static errc meta_text(const struct block_meta *meta, struct buf *json, struct buf *objects, struct err *err)
{
	errc rc = block_meta_write(meta, json);
	if (rc == OK)
		catalog_objects_of(meta, json->n, objects);
	if (rc == OK && objects->failed)
		rc = ERR_NOMEM;
	if (rc != OK)
		err_set(err, rc, "catalog: meta.json of %s %s", ulid_text(meta->ulid).s,
			rc == ERR_INVALID ? "has text that is not UTF-8" : "does not fit its memory");
	return rc;
}

errc catalog_add_local(struct catalog *c, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	struct buf json, objects;
	buf_init(&json, LIMIT_META_JSON_BYTES);
	buf_init(&objects, LIMIT_META_JSON_BYTES);
	TRY(meta_text(meta, &json, &objects, err));
	TRY(catalog_take(c, &conn, err));
	/* A directory whose block is in the bucket already (a rebuilt catalog) is as good as shipped; the shipper looks after it. */
	const struct catalog_put p = {.meta = meta,
		.json = span_of(json.p, json.n),
		.bytes = bytes,
		.state = BLOCK_LOCAL,
		.meta_size = json.n,
		.objects = span_of(objects.p, objects.n)};
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	TRY(catalog_end(conn, catalog_put_local(c, conn, &p, err), err));
fail:
	catalog_give(c, conn);
	buf_free(&json);
	buf_free(&objects);
	return rc;
}

errc catalog_set_local_state(struct catalog *c, struct ulid u, enum block_state s, const char *reason, struct err *err)
{
	static const char update[] = "UPDATE local_blocks SET state=?2, reason=?3 WHERE ulid=?1";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	sqlite3_stmt *st = catalog_stmt(conn, update, err);
	if (st) {
		catalog_bind_ulid(st, 1, u);
		sqlite3_bind_text(st, 2, block_state_name(s), -1, SQLITE_STATIC);
		sqlite3_bind_text(st, 3, reason ? reason : "", -1, SQLITE_TRANSIENT);
	}
	rc = catalog_exec(conn, st, err);
	if (rc == OK && sqlite3_changes(conn->db) == 0)
		rc = err_set(err, ERR_NOTFOUND, "catalog: no local block %s", ulid_text(u).s);
	if (rc == OK)
		rc = catalog_seal(conn, true, u, err);
	TRY(catalog_end(conn, rc, err));
fail:
	catalog_give(c, conn);
	return rc;
}

errc catalog_uploaded(struct catalog *c, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	static const char live[] = "UPDATE local_blocks SET state='live', reason='', added_at=?2 WHERE ulid=?1";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	struct buf json, objects;
	buf_init(&json, LIMIT_META_JSON_BYTES);
	buf_init(&objects, LIMIT_META_JSON_BYTES);
	TRY(meta_text(meta, &json, &objects, err));
	TRY(catalog_take(c, &conn, err));
	const struct catalog_put p = {.meta = meta,
		.json = span_of(json.p, json.n),
		.bytes = bytes,
		.state = BLOCK_LIVE,
		.meta_size = json.n,
		.objects = span_of(objects.p, objects.n)};
	struct catalog_standing was;
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	rc = catalog_standing(conn, meta->ulid, &was, err);
	if (rc == OK)
		rc = catalog_put_block(c, conn, &p, err);
	sqlite3_stmt *st = rc == OK ? catalog_stmt(conn, live, err) : NULL;
	if (st) {
		catalog_bind_ulid(st, 1, meta->ulid);
		sqlite3_bind_int64(st, 2, io_now_ms());
		rc = catalog_exec(conn, st, err);
		if (rc == OK && sqlite3_changes(conn->db) > 0)
			rc = catalog_seal(conn, true, meta->ulid, err);
	}
	if (rc == OK)
		rc = catalog_changed(c, conn, meta->ulid, &was, err);
	TRY(catalog_end(conn, rc, err));
fail:
	catalog_give(c, conn);
	buf_free(&json);
	buf_free(&objects);
	return rc;
}

errc catalog_drop_local(struct catalog *c, struct ulid u, struct err *err)
{
	static const char drop[] = "DELETE FROM local_blocks WHERE ulid=?1 AND state='live'";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	sqlite3_stmt *st = catalog_stmt(conn, drop, err);
	if (st)
		catalog_bind_ulid(st, 1, u);
	TRY(catalog_exec(conn, st, err));
fail:
	catalog_give(c, conn);
	return rc;
}

/* ---- lists ---- */

/* Rows of a statement whose first columns are BLOCK_COLUMNS and whose two next ones say in_bucket and local, appended to *v. */
static errc collect(struct catalog *c, struct catalog_conn *conn, sqlite3_stmt *st, struct arena *arena, struct catalog_block **v, size_t *n,
	size_t *cap, struct err *err)
{
	if (!st)
		return ERR_IO;
	for (;;) {
		int code = sqlite3_step(st);
		if (code == SQLITE_DONE)
			break;
		errc rc = code == SQLITE_ROW ? OK : catalog_error(conn, "reading blocks", err);
		if (rc == OK && *n == *cap) {
			size_t more = *cap ? *cap * 2 : 64;
			struct catalog_block *bigger = arena_alloc(arena, more * sizeof **v);
			if (!bigger) {
				rc = err_set(err, ERR_NOMEM, "catalog: no memory for %zu blocks", more);
			} else {
				if (*n)
					memcpy(bigger, *v, *n * sizeof **v);
				*v = bigger;
				*cap = more;
			}
		}
		if (rc == OK)
			rc = catalog_row(c, st, arena, &(*v)[*n], err);
		if (rc != OK) {
			sqlite3_reset(st);
			return rc;
		}
		(*v)[*n].in_bucket = sqlite3_column_int64(st, COL_EXTRA) != 0;
		(*v)[*n].local = sqlite3_column_int64(st, COL_EXTRA + 1) != 0;
		(*n)++;
	}
	sqlite3_reset(st);
	return OK;
}

static errc list(struct catalog *c, const char *sql, void (*bind)(sqlite3_stmt *st, const void *arg), const void *arg, struct arena *arena,
	struct catalog_block **out, size_t *n, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	size_t cap = 0;
	*out = NULL;
	*n = 0;
	TRY(catalog_take(c, &conn, err));
	sqlite3_stmt *st = catalog_stmt(conn, sql, err);
	if (st && bind)
		bind(st, arg);
	TRY(collect(c, conn, st, arena, out, n, &cap, err));
fail:
	catalog_give(c, conn);
	return rc;
}

#define HAS_LOCAL "EXISTS (SELECT 1 FROM local_blocks l WHERE l.ulid=b.ulid AND l.state<>'quarantined')"

errc catalog_pending(struct catalog *c, struct arena *arena, struct catalog_block **out, size_t *n, struct err *err)
{
	static const char sql[] = "SELECT " BLOCK_COLUMNS ", 0, 1 FROM local_blocks WHERE state IN ('local','uploading') ORDER BY min_time, ulid";
	return list(c, sql, NULL, NULL, arena, out, n, err);
}

errc catalog_local_live(struct catalog *c, struct arena *arena, struct catalog_block **out, size_t *n, struct err *err)
{
	static const char sql[] =
		"SELECT " BLOCK_COLUMNS ", 1, 1 FROM local_blocks b WHERE state='live' AND EXISTS (SELECT 1 FROM blocks g WHERE g.ulid=b.ulid AND "
		"g.state='live' AND g.missing=0) ORDER BY added_at, ulid";
	return list(c, sql, NULL, NULL, arena, out, n, err);
}

struct plan {
	struct span tenant;
	int64_t mint, maxt;
};

static void bind_plan(sqlite3_stmt *st, const void *arg)
{
	const struct plan *p = arg;
	catalog_bind_span(st, 1, p->tenant);
	sqlite3_bind_int64(st, 2, p->mint);
	sqlite3_bind_int64(st, 3, p->maxt);
}

/* Every span a block may have, and with it the seek in blocks_by_time that finds those of it. What would be before the beginning of time stops there:
 * SQLite would go on in floating point. */
#define SPANS "(WITH RECURSIVE k(n) AS (SELECT 0 UNION ALL SELECT n+1 FROM k WHERE n<63) SELECT n FROM k)"
#define TIME_MIN "(-9223372036854775807-1)"
#define OVERLAPS                                                                                                                                     \
	"WHERE b.tenant=?1 AND b.resolution=0 AND b.span=n AND b.min_time<=?3"                                                                       \
	" AND b.min_time>=iif(n=63 OR ?2<" TIME_MIN "+(1<<n)," TIME_MIN ",?2-(1<<n)) AND b.max_time>?2"

/* A marked block counts only while no unmarked live block of its tenant and resolution holds all of its sources. */
#define READABLE                                                                                                                                     \
	"(b.marked=0 OR NOT EXISTS (SELECT 1 FROM block_sources s1 JOIN block_sources s2 ON s2.source=s1.source JOIN blocks x ON x.ulid=s2.ulid"     \
	" WHERE s1.ulid=b.ulid AND x.ulid<>b.ulid AND x.marked=0 AND x.state='live' AND x.tenant=b.tenant AND x.resolution=b.resolution"             \
	" AND NOT EXISTS (SELECT 1 FROM block_sources o WHERE o.ulid=b.ulid AND NOT EXISTS (SELECT 1 FROM block_sources w WHERE w.source=o.source "  \
	"AND w.ulid=x.ulid))))"

errc catalog_plan(struct catalog *c, struct span tenant, int64_t mint, int64_t maxt, struct arena *arena, struct catalog_block **out, size_t *n,
	size_t *n_left_out, struct err *err)
{
	/* A quarantined copy matters only where there is no other one; one whose meta.json can't be read has no times, and maybe no data. */
	static const char sql[] =
		"SELECT " BLOCK_COLUMNS ", 1, " HAS_LOCAL " FROM " SPANS " CROSS JOIN blocks b " OVERLAPS " AND " READABLE " AND (state='live' OR "
		"state='quarantined' AND max_time>min_time AND NOT " HAS_LOCAL ")"
		" UNION ALL SELECT " BLOCK_COLUMNS ", 0, 1 FROM " SPANS " CROSS JOIN local_blocks b " OVERLAPS
		" AND NOT EXISTS (SELECT 1 FROM blocks g WHERE g.ulid=b.ulid AND (g.state='live' OR b.state='quarantined'))";
	const struct plan p = {tenant, mint, maxt};
	size_t all;
	*n = 0;
	errc rc = list(c, sql, bind_plan, &p, arena, out, &all, err);
	if (rc != OK)
		return rc;
	int64_t hidden_ms = catalog_hidden_upto(c, tenant);
	if (hidden_ms != INT64_MIN) {
		size_t kept = 0;
		for (size_t i = 0; i < all; i++)
			if (ulid_time_ms((*out)[i].ulid) > hidden_ms)
				(*out)[kept++] = (*out)[i];
		all = kept;
	}
	for (size_t i = 0; i < all; i++)
		if ((*out)[i].state != BLOCK_QUARANTINED) {
			struct catalog_block readable = (*out)[i];
			(*out)[i] = (*out)[*n];
			(*out)[(*n)++] = readable;
		}
	if (n_left_out)
		*n_left_out = all - *n;
	return OK;
}

errc catalog_list(struct catalog *c, struct arena *arena, struct catalog_block **out, size_t *n, struct err *err)
{
	static const char sql[] = "SELECT " BLOCK_COLUMNS ", 1, " HAS_LOCAL " FROM blocks b UNION ALL SELECT " BLOCK_COLUMNS
				  ", 0, 1 FROM local_blocks b WHERE NOT EXISTS (SELECT 1 FROM blocks g WHERE g.ulid=b.ulid) ORDER BY 2, 3, 5, 1";
	return list(c, sql, NULL, NULL, arena, out, n, err);
}

static void bind_ulid(sqlite3_stmt *st, const void *arg)
{
	catalog_bind_ulid(st, 1, *(const struct ulid *)arg);
}

errc catalog_get(struct catalog *c, struct ulid u, struct arena *arena, struct catalog_block *out, struct err *err)
{
	static const char sql[] = "SELECT " BLOCK_COLUMNS ", 1, " HAS_LOCAL " FROM blocks b WHERE ulid=?1 UNION ALL SELECT " BLOCK_COLUMNS
				  ", 0, 1 FROM local_blocks b WHERE ulid=?1 AND NOT EXISTS (SELECT 1 FROM blocks g WHERE g.ulid=b.ulid)";
	struct catalog_block *v;
	size_t n;
	errc rc = list(c, sql, bind_ulid, &u, arena, &v, &n, err);
	if (rc == OK && n == 0)
		rc = err_set(err, ERR_NOTFOUND, "no block %s in the catalog", ulid_text(u).s);
	if (rc == OK)
		*out = v[0];
	return rc;
}

errc catalog_quarantine(struct catalog *c, struct ulid u, const char *reason, struct err *err)
{
	static const char block[] = "UPDATE blocks SET state='quarantined', reason=?2 WHERE ulid=?1";
	static const char local[] = "UPDATE local_blocks SET state='quarantined', reason=?2 WHERE ulid=?1";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	bool any = false;
	struct catalog_standing was;
	rc = catalog_standing(conn, u, &was, err);
	for (int i = 0; rc == OK && !any && i < 2; i++) {
		sqlite3_stmt *st = catalog_stmt(conn, i ? local : block, err);
		if (st) {
			catalog_bind_ulid(st, 1, u);
			sqlite3_bind_text(st, 2, reason, -1, SQLITE_TRANSIENT);
		}
		rc = catalog_exec(conn, st, err);
		any = rc == OK && sqlite3_changes(conn->db) > 0;
		if (any)
			rc = catalog_seal(conn, i == 1, u, err);
	}
	if (rc == OK && !any)
		rc = err_set(err, ERR_NOTFOUND, "no block %s in the catalog", ulid_text(u).s);
	if (rc == OK)
		rc = catalog_changed(c, conn, u, &was, err);
	TRY(catalog_end(conn, rc, err));
fail:
	catalog_give(c, conn);
	return rc;
}

errc catalog_set_ranges(struct catalog *c, const struct catalog_ranges *v, size_t n, struct err *err)
{
	static const char update[] =
		"UPDATE blocks SET index_size=?2, symbols_off=?3, series_off=?4, postings_off=?5, postings_table_off=?6 WHERE ulid=?1";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	for (size_t k = 0; rc == OK && k < n; k++) {
		const struct block_index_ranges *r = &v[k].ranges;
		const uint64_t x[] = {r->index_size, r->symbols_off, r->series_off, r->postings_off, r->postings_table_off};
		sqlite3_stmt *st = catalog_stmt(conn, update, err);
		if (st) {
			catalog_bind_ulid(st, 1, v[k].ulid);
			for (int i = 0; i < 5; i++)
				sqlite3_bind_int64(st, 2 + i, (int64_t)x[i]);
		}
		rc = catalog_exec(conn, st, err);
		if (rc == OK && sqlite3_changes(conn->db) > 0)
			rc = catalog_seal(conn, false, v[k].ulid, err);
	}
	TRY(catalog_end(conn, rc, err));
fail:
	catalog_give(c, conn);
	return rc;
}

errc catalog_meta_json(struct catalog *c, struct ulid u, struct arena *arena, struct span *json, struct err *err)
{
	static const char sql[] = "SELECT meta, meta_crc FROM blocks WHERE ulid=?1 UNION ALL SELECT meta, meta_crc FROM local_blocks WHERE ulid=?1";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	sqlite3_stmt *st = catalog_stmt(conn, sql, err);
	CHECK(st, ERR_IO, "catalog: meta.json of %s", ulid_text(u).s);
	catalog_bind_ulid(st, 1, u);
	int code = sqlite3_step(st);
	CHECK(code != SQLITE_DONE, ERR_NOTFOUND, "no block %s in the catalog", ulid_text(u).s);
	if (code != SQLITE_ROW) {
		rc = catalog_error(conn, "meta.json", err);
		goto fail;
	}
	struct span text = catalog_column(st, 0);
	if (crc32c(0, text.p, text.n) != (uint32_t)sqlite3_column_int64(st, 1)) {
		rc = catalog_row_bad(c, span_cstr(ulid_text(u).s), err);
		goto fail;
	}
	*json = arena_dup(arena, text);
	CHECK(json->p, ERR_NOMEM, "catalog: no memory for a meta.json");
fail:
	catalog_give(c, conn);
	return rc;
}
