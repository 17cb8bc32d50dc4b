/* bucket/bucket_catalog_sql.c - connections, statements and row checksums: everything that knows SQLite's ways.
 *
 * A row's CRC-32C runs over its columns before crc, in schema order, each as a type byte (i, t, n) and its value (8 bytes LE, or length
 * as 8 bytes LE and the bytes). So a flipped bit in a cell that SQLite's own structure does not protect is met before it is believed;
 * the structure itself is checked by integrity_check at open.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "base/tenant.h"
#include "bucket/bucket_catalog_int.h"

static const char schema_sql[] =
#include "catalog_schema.inc"
	;

errc catalog_error(struct catalog_conn *conn, const char *what, struct err *err)
{
	int code = conn && conn->db ? sqlite3_errcode(conn->db) & 0xff : SQLITE_NOMEM;
	errc rc = ERR_IO;
	switch (code) {
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_ERROR: /* our statements are what they always were: the schema under them is not */
	case SQLITE_SCHEMA:
	case SQLITE_FORMAT:
	case SQLITE_MISMATCH:
		rc = ERR_CORRUPT;
		break;
	case SQLITE_FULL:
		rc = ERR_NOSPACE;
		break;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		rc = ERR_AGAIN;
		break;
	case SQLITE_NOMEM:
		rc = ERR_NOMEM;
		break;
	default:
		break;
	}
	if (rc == ERR_CORRUPT && conn->catalog) {
		pthread_mutex_lock(&conn->catalog->mu);
		conn->catalog->damaged = true;
		pthread_mutex_unlock(&conn->catalog->mu);
	}
	return err_set(err, rc, "catalog: %s: %s", what, conn && conn->db ? sqlite3_errmsg(conn->db) : "out of memory");
}

errc catalog_run(struct catalog_conn *conn, const char *sql, struct err *err)
{
	return sqlite3_exec(conn->db, sql, NULL, NULL, NULL) == SQLITE_OK ? OK : catalog_error(conn, sql, err);
}

sqlite3_stmt *catalog_stmt(struct catalog_conn *conn, const char *sql, struct err *err)
{
	for (size_t i = 0; i < conn->n_stmts; i++)
		if (conn->stmts[i].sql == sql) {
			sqlite3_reset(conn->stmts[i].stmt);
			sqlite3_clear_bindings(conn->stmts[i].stmt);
			return conn->stmts[i].stmt;
		}
	ASSERT(conn->n_stmts < CATALOG_STATEMENTS);
	sqlite3_stmt *st;
	if (sqlite3_prepare_v3(conn->db, sql, -1, SQLITE_PREPARE_PERSISTENT, &st, NULL) != SQLITE_OK) {
		catalog_error(conn, sql, err);
		return NULL;
	}
	conn->stmts[conn->n_stmts].sql = sql;
	conn->stmts[conn->n_stmts++].stmt = st;
	return st;
}

errc catalog_exec(struct catalog_conn *conn, sqlite3_stmt *st, struct err *err)
{
	if (!st)
		return err && err->code ? err->code : ERR_IO;
	int code = sqlite3_step(st);
	errc rc = code == SQLITE_DONE || code == SQLITE_ROW ? OK : catalog_error(conn, sqlite3_sql(st), err);
	sqlite3_reset(st);
	return rc;
}

errc catalog_end(struct catalog_conn *conn, errc rc, struct err *err)
{
	if (rc == OK)
		rc = catalog_feed_note(conn, err);
	if (rc == OK)
		rc = catalog_run(conn, "COMMIT", err);
	if (rc != OK)
		sqlite3_exec(conn->db, "ROLLBACK", NULL, NULL, NULL);
	catalog_feed_done(conn, rc == OK);
	return rc;
}

/* ---- opening ---- */

errc catalog_fact(struct catalog_conn *conn, const char *name, char *out, size_t n, struct err *err)
{
	errc rc = OK;
	out[0] = 0;
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(conn->db, "SELECT value FROM facts WHERE name=?1", -1, &st, NULL) != SQLITE_OK)
		return catalog_error(conn, "facts", err);
	sqlite3_bind_text(st, 1, name, -1, SQLITE_STATIC);
	int code = sqlite3_step(st);
	if (code == SQLITE_ROW)
		snprintf(out, n, "%s", (const char *)sqlite3_column_text(st, 0));
	else if (code != SQLITE_DONE)
		rc = catalog_error(conn, "facts", err);
	sqlite3_finalize(st);
	return rc;
}

errc catalog_fact_set(struct catalog_conn *conn, const char *name, const char *value, struct err *err)
{
	static const char set[] = "INSERT INTO facts VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value=?2";
	sqlite3_stmt *st = catalog_stmt(conn, set, err);
	if (st) {
		sqlite3_bind_text(st, 1, name, -1, SQLITE_TRANSIENT);
		sqlite3_bind_text(st, 2, value, -1, SQLITE_TRANSIENT);
	}
	return catalog_exec(conn, st, err);
}

static errc pragma_int(struct catalog_conn *conn, const char *sql, int64_t *out, struct err *err)
{
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(conn->db, sql, -1, &st, NULL) != SQLITE_OK)
		return catalog_error(conn, sql, err);
	errc rc = sqlite3_step(st) == SQLITE_ROW ? OK : catalog_error(conn, sql, err);
	*out = rc == OK ? sqlite3_column_int64(st, 0) : 0;
	sqlite3_finalize(st);
	return rc;
}

static errc integrity(struct catalog_conn *conn, struct err *err)
{
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(conn->db, "PRAGMA integrity_check(1)", -1, &st, NULL) != SQLITE_OK)
		return catalog_error(conn, "integrity check", err);
	errc rc = sqlite3_step(st) == SQLITE_ROW ? OK : catalog_error(conn, "integrity check", err);
	const char *word = rc == OK ? (const char *)sqlite3_column_text(st, 0) : "";
	if (rc == OK && (!word || strcmp(word, "ok") != 0))
		rc = err_set(err, ERR_CORRUPT, "catalog: integrity check: %s", word ? word : "no answer");
	sqlite3_finalize(st);
	return rc;
}

/* An empty database in memory with the schema that a new file would have. */
static errc schema_model(sqlite3 **db, struct err *err)
{
	if (sqlite3_open_v2(":memory:", db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK ||
		sqlite3_exec(*db, schema_sql, NULL, NULL, NULL) != SQLITE_OK)
		return err_set(err, ERR_NOMEM, "catalog: the schema could not be made: %s", sqlite3_errmsg(*db));
	return OK;
}

/* Does the file's schema say, word for word, what a new one's would? */
static errc schema_check(struct catalog_conn *conn, struct err *err)
{
	static const char sql[] = "SELECT type, name, tbl_name, coalesce(sql,'') FROM sqlite_schema ORDER BY type, name";
	errc rc = OK;
	sqlite3 *model = NULL;
	sqlite3_stmt *a = NULL, *b = NULL;
	bool same = true, more = true;
	TRY(schema_model(&model, err));
	CHECK(sqlite3_prepare_v2(model, sql, -1, &a, NULL) == SQLITE_OK, ERR_NOMEM, "catalog: the schema could not be read: %s",
		sqlite3_errmsg(model));
	if (sqlite3_prepare_v2(conn->db, sql, -1, &b, NULL) != SQLITE_OK) {
		rc = catalog_error(conn, "schema", err);
		goto fail;
	}
	while (same && more) {
		int want = sqlite3_step(a), got = sqlite3_step(b);
		same = want == got;
		more = want == SQLITE_ROW;
		for (int i = 0; same && more && i < 4; i++)
			same = span_eq(catalog_column(a, i), catalog_column(b, i));
	}
	CHECK(same, ERR_CORRUPT, "catalog: the file's schema is not that of version %d", CATALOG_SCHEMA);
fail:
	sqlite3_finalize(a);
	sqlite3_finalize(b);
	sqlite3_close(model);
	return rc;
}

/* Version 1 had a feed that nobody read, and nothing of versions: each block that it knows is at its first. */
static errc migrate_1(struct catalog_conn *conn, struct err *err)
{
	static const char made[] =
		"SELECT sql FROM sqlite_schema WHERE name IN ('block_versions', 'block_versions_gone', 'feed', 'followed') ORDER BY type DESC";
	errc rc = OK;
	sqlite3 *model = NULL;
	sqlite3_stmt *st = NULL;
	TRY(schema_model(&model, err));
	CHECK(sqlite3_prepare_v2(model, made, -1, &st, NULL) == SQLITE_OK, ERR_NOMEM, "catalog: the schema could not be read: %s",
		sqlite3_errmsg(model));
	TRY(catalog_run(conn, "DROP TABLE feed", err));
	while (sqlite3_step(st) == SQLITE_ROW)
		TRY(catalog_run(conn, (const char *)sqlite3_column_text(st, 0), err));
	TRY(catalog_run(conn, "INSERT INTO block_versions SELECT ulid, 1, NULL FROM blocks", err));
	TRY(catalog_feed_new(conn, err));
	TRY(catalog_run(conn, "UPDATE facts SET value='2' WHERE name='schema'; PRAGMA user_version=2", err));
fail:
	sqlite3_finalize(st);
	sqlite3_close(model);
	return rc;
}

errc catalog_conn_open(struct catalog *c, bool *fresh, struct catalog_conn **out, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = calloc(1, sizeof *conn);
	if (!conn)
		return err_set(err, ERR_NOMEM, "catalog: no memory for a connection");
	int flags = c->read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
	if (sqlite3_open_v2(c->path, &conn->db, flags | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
		rc = catalog_error(conn, c->path, err);
		goto fail;
	}
	sqlite3_extended_result_codes(conn->db, 1);
	sqlite3_busy_timeout(conn->db, CATALOG_BUSY_MS);
	/* FULL: what this node has uploaded must not be forgotten in a power cut; with it a commit is a sync of the SQLite log. */
	if (!c->read_only)
		TRY(catalog_run(conn,
			"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=OFF; PRAGMA trusted_schema=OFF; PRAGMA "
			"cell_size_check=ON",
			err));
	if (fresh) {
		int64_t version, tables;
		TRY(pragma_int(conn, "PRAGMA user_version", &version, err));
		TRY(pragma_int(conn, "SELECT count(*) FROM sqlite_schema", &tables, err));
		*fresh = tables == 0 && version == 0;
		if (*fresh) {
			CHECK(!c->read_only, ERR_NOTFOUND, "catalog: %s holds nothing yet", c->path);
			TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
			rc = catalog_run(conn, schema_sql, err);
			if (rc == OK)
				rc = catalog_run(conn, "INSERT INTO facts VALUES ('schema', '2'); PRAGMA user_version=2", err);
			if (rc == OK)
				rc = catalog_feed_new(conn, err);
			TRY(catalog_end(conn, rc, err));
		} else {
			char schema[16];
			TRY(catalog_fact(conn, "schema", schema, sizeof schema, err));
			/* Two places say the version: only when both agree is it believed, so that a flipped byte is damage and not "newer". */
			CHECK(atoll(schema) == version, ERR_CORRUPT, "catalog: the file says version %" PRId64 ", its facts say '%s'", version,
				schema);
			CHECK(version <= CATALOG_SCHEMA, ERR_UNSUPPORTED,
				"catalog: %s has schema version %" PRId64
				", this varve knows up to %d: run the newer varve again; nothing was changed",
				c->path, version, CATALOG_SCHEMA);
			CHECK(version == CATALOG_SCHEMA || !c->read_only, ERR_UNSUPPORTED,
				"catalog: %s has schema version %" PRId64 ": a server of this version brings it up to %d when it starts", c->path,
				version, CATALOG_SCHEMA);
			if (version == 1) {
				TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
				TRY(catalog_end(conn, migrate_1(conn, err), err));
			}
			TRY(schema_check(conn, err));
			TRY(integrity(conn, err));
			if (!c->read_only) {
				TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
				TRY(catalog_end(conn, catalog_feed_check(conn, err), err));
			}
		}
	}
	conn->catalog = c;
	*out = conn;
	return OK;
fail:
	catalog_conn_close(conn);
	return rc;
}

void catalog_conn_close(struct catalog_conn *conn)
{
	for (size_t i = 0; i < conn->n_stmts; i++)
		sqlite3_finalize(conn->stmts[i].stmt);
	sqlite3_close(conn->db);
	free(conn);
}

errc catalog_take(struct catalog *c, struct catalog_conn **conn, struct err *err)
{
	pthread_rwlock_rdlock(&c->file_lock);
	pthread_mutex_lock(&c->mu);
	*conn = c->idle;
	if (*conn) {
		c->idle = (*conn)->next;
		c->n_idle--;
	}
	pthread_mutex_unlock(&c->mu);
	if (*conn)
		return OK;
	errc rc = catalog_conn_open(c, NULL, conn, err);
	if (rc != OK) {
		*conn = NULL;
		pthread_rwlock_unlock(&c->file_lock);
	}
	return rc;
}

void catalog_give(struct catalog *c, struct catalog_conn *conn)
{
	if (!conn)
		return;
	for (size_t i = 0; i < conn->n_stmts; i++)
		sqlite3_reset(conn->stmts[i].stmt);
	conn->quiet = false;
	pthread_mutex_lock(&c->mu);
	bool keep = c->n_idle < CATALOG_IDLE_CONNECTIONS;
	if (keep) {
		conn->next = c->idle;
		c->idle = conn;
		c->n_idle++;
	}
	pthread_mutex_unlock(&c->mu);
	if (!keep)
		catalog_conn_close(conn);
	pthread_rwlock_unlock(&c->file_lock);
}

/* ---- values ---- */

void catalog_bind_ulid(sqlite3_stmt *st, int at, struct ulid u)
{
	sqlite3_bind_text(st, at, ulid_text(u).s, ULID_TEXT_BYTES, SQLITE_TRANSIENT);
}

void catalog_bind_span(sqlite3_stmt *st, int at, struct span s)
{
	sqlite3_bind_text64(st, at, s.p ? s.p : "", s.n, SQLITE_TRANSIENT, SQLITE_UTF8);
}

struct span catalog_column(sqlite3_stmt *st, int at)
{
	const char *p = (const char *)sqlite3_column_text(st, at);
	return p ? span_of(p, (size_t)sqlite3_column_bytes(st, at)) : (struct span){"", 0};
}

static uint32_t row_crc(sqlite3_stmt *st)
{
	uint32_t crc = 0;
	for (int i = 0; i < COL_CRC; i++) {
		uint8_t head[9] = {'n'};
		switch (sqlite3_column_type(st, i)) {
		case SQLITE_INTEGER:
			head[0] = 'i';
			put_le64(head + 1, (uint64_t)sqlite3_column_int64(st, i));
			crc = crc32c(crc, head, 9);
			break;
		case SQLITE_TEXT: {
			struct span s = catalog_column(st, i);
			head[0] = 't';
			put_le64(head + 1, s.n);
			crc = crc32c(crc, head, 9);
			crc = crc32c(crc, s.p, s.n);
			break;
		}
		default:
			crc = crc32c(crc, head, 1);
			break;
		}
	}
	return crc;
}

bool catalog_row_whole(sqlite3_stmt *st)
{
	return row_crc(st) == (uint32_t)sqlite3_column_int64(st, COL_CRC);
}

errc catalog_seal(struct catalog_conn *conn, bool local, struct ulid u, struct err *err)
{
	static const char get_block[] = "SELECT " BLOCK_COLUMNS " FROM blocks WHERE ulid=?1";
	static const char get_local[] = "SELECT " BLOCK_COLUMNS " FROM local_blocks WHERE ulid=?1";
	static const char set_block[] = "UPDATE blocks SET crc=?2 WHERE ulid=?1";
	static const char set_local[] = "UPDATE local_blocks SET crc=?2 WHERE ulid=?1";
	sqlite3_stmt *st = catalog_stmt(conn, local ? get_local : get_block, err);
	if (!st)
		return ERR_IO;
	catalog_bind_ulid(st, 1, u);
	if (sqlite3_step(st) != SQLITE_ROW) {
		errc rc = catalog_error(conn, "seal", err);
		sqlite3_reset(st);
		return rc;
	}
	uint32_t crc = row_crc(st);
	sqlite3_reset(st);
	st = catalog_stmt(conn, local ? set_local : set_block, err);
	if (!st)
		return ERR_IO;
	catalog_bind_ulid(st, 1, u);
	sqlite3_bind_int64(st, 2, crc);
	return catalog_exec(conn, st, err);
}

bool catalog_state_parse(struct span s, enum block_state *out)
{
	for (int i = 0; i <= BLOCK_QUARANTINED; i++)
		if (span_is(s, block_state_name((enum block_state)i))) {
			*out = (enum block_state)i;
			return true;
		}
	return false;
}

/* {"name":"value",...}, sorted into labels. */
static bool labels_of_json(struct span text, struct arena *arena, struct labels *out)
{
	json_t *o = json_loadb(text.p, text.n, 0, NULL);
	bool ok = json_is_object(o);
	struct label *v = ok ? arena_alloc(arena, (json_object_size(o) + 1) * sizeof *v) : NULL;
	uint32_t n = 0;
	const char *name;
	json_t *value;
	ok = v != NULL;
	if (ok)
		json_object_foreach(o, name, value)
		{
			v[n].name = arena_dup(arena, span_cstr(name));
			v[n].value = arena_dup(arena, span_of(json_string_value(value) ? json_string_value(value) : "", json_string_length(value)));
			ok = ok && v[n].name.p && v[n].value.p;
			n++;
		}
	json_decref(o);
	*out = (struct labels){v, n};
	if (ok)
		labels_sort(*out);
	return ok;
}

errc catalog_row_bad(struct catalog *c, struct span ulid, struct err *err)
{
	metric_add(c->row_errors, 1);
	pthread_mutex_lock(&c->mu);
	c->damaged = true;
	pthread_mutex_unlock(&c->mu);
	return err_set(err, ERR_CORRUPT, "catalog: a row's checksum is wrong (block %.*s): the catalog is rebuilt", SPAN_ARG(ulid));
}

errc catalog_row(struct catalog *c, sqlite3_stmt *st, struct arena *arena, struct catalog_block *b, struct err *err)
{
	*b = (struct catalog_block){0};
	bool ok = catalog_row_whole(st) && ulid_parse(catalog_column(st, COL_ULID), &b->ulid) &&
		  catalog_state_parse(catalog_column(st, COL_STATE), &b->state);
	if (!ok)
		return catalog_row_bad(c, catalog_column(st, COL_ULID), err);
	b->tenant = arena_dup(arena, catalog_column(st, COL_TENANT));
	b->mint = sqlite3_column_int64(st, COL_MIN);
	b->maxt = sqlite3_column_int64(st, COL_MAX);
	b->resolution_ms = sqlite3_column_int64(st, COL_RESOLUTION);
	b->level = (uint32_t)sqlite3_column_int64(st, COL_LEVEL);
	b->reason = arena_dup(arena, catalog_column(st, COL_REASON));
	b->source = arena_dup(arena, catalog_column(st, COL_SOURCE));
	b->n_samples = (uint64_t)sqlite3_column_int64(st, COL_SAMPLES);
	b->n_series = (uint64_t)sqlite3_column_int64(st, COL_SERIES);
	b->n_chunks = (uint64_t)sqlite3_column_int64(st, COL_CHUNKS);
	b->bytes = (uint64_t)sqlite3_column_int64(st, COL_BYTES);
	b->marked = sqlite3_column_int64(st, COL_MARKED) != 0;
	b->added_ms = sqlite3_column_int64(st, COL_ADDED);
	b->objects = arena_dup(arena, catalog_column(st, COL_OBJECTS));
	b->has_ranges = sqlite3_column_type(st, COL_INDEX_SIZE) == SQLITE_INTEGER;
	b->ranges = (struct block_index_ranges){
		.index_size = (uint64_t)sqlite3_column_int64(st, COL_INDEX_SIZE),
		.symbols_off = (uint64_t)sqlite3_column_int64(st, COL_SYMBOLS),
		.series_off = (uint64_t)sqlite3_column_int64(st, COL_SERIES_OFF),
		.postings_off = (uint64_t)sqlite3_column_int64(st, COL_POSTINGS),
		.postings_table_off = (uint64_t)sqlite3_column_int64(st, COL_POSTINGS_TABLE),
	};
	if (!b->tenant.p || !b->reason.p || !b->source.p || !b->objects.p || !labels_of_json(catalog_column(st, COL_LABELS), arena, &b->ext_labels))
		return err_set(err, ERR_NOMEM, "catalog: no memory for a row");
	return OK;
}

/* ---- what a block's objects are ---- */

unsigned catalog_span(int64_t mint, int64_t maxt)
{
	uint64_t n = (uint64_t)maxt - (uint64_t)mint;
	return maxt <= mint ? 0 : n >> 63 ? 63 : 64 - (unsigned)__builtin_clzll(n);
}

void catalog_objects_add(struct buf *out, struct span rel_path, uint64_t size_bytes)
{
	if (out->n > 0 && out->p[out->n - 1] != '{')
		buf_u8(out, ',');
	buf_json_string(out, rel_path);
	buf_printf(out, ":%" PRIu64, size_bytes);
}

static int by_path(const void *a, const void *b)
{
	return span_cmp((*(const struct block_file *const *)a)->rel_path, (*(const struct block_file *const *)b)->rel_path);
}

void catalog_objects_of(const struct block_meta *meta, uint64_t meta_bytes, struct buf *out)
{
	const struct block_file **v = calloc(meta->n_files + 1, sizeof *v);
	if (!v) {
		out->failed = true;
		return;
	}
	const struct block_file own = {.rel_path = SPAN("meta.json"), .size_bytes = meta_bytes};
	size_t n = 0;
	for (size_t i = 0; i < meta->n_files; i++)
		if (!span_is(meta->files[i].rel_path, "meta.json"))
			v[n++] = &meta->files[i];
	if (meta_bytes > 0)
		v[n++] = &own;
	qsort(v, n, sizeof *v, by_path);
	buf_u8(out, '{');
	for (size_t i = 0; i < n; i++)
		catalog_objects_add(out, v[i]->rel_path, v[i]->size_bytes);
	buf_u8(out, '}');
	free(v);
}

errc catalog_objects(const struct catalog_block *b, struct arena *arena, struct block_file **out, size_t *n, struct err *err)
{
	errc rc = OK;
	*out = NULL;
	*n = 0;
	if (b->objects.n == 0)
		return OK;
	json_t *o = json_loadb(b->objects.p, b->objects.n, 0, NULL);
	const char *path;
	json_t *size;
	CHECK(json_is_object(o), ERR_CORRUPT, "catalog: the objects of %s are not listed as they should be", ulid_text(b->ulid).s);
	struct block_file *v = arena_calloc(arena, json_object_size(o) + 1, sizeof *v);
	CHECK(v, ERR_NOMEM, "catalog: no memory for the objects of a block");
	json_object_foreach(o, path, size)
	{
		v[*n] = (struct block_file){.rel_path = arena_dup(arena, span_cstr(path)), .size_bytes = (uint64_t)json_integer_value(size)};
		CHECK(v[*n].rel_path.p, ERR_NOMEM, "catalog: no memory for the objects of a block");
		(*n)++;
	}
	*out = v;
fail:
	json_decref(o);
	return rc;
}

/* ---- writing rows ---- */

static char *labels_json(struct labels l)
{
	json_t *o = json_object();
	for (uint32_t i = 0; o && i < l.n; i++)
		json_object_setn_new_nocheck(o, l.v[i].name.p, l.v[i].name.n, json_stringn_nocheck(l.v[i].value.p, l.v[i].value.n));
	char *text = o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
	json_decref(o);
	return text;
}

static errc put_row(struct catalog_conn *conn, const char *sql, const struct catalog_put *p, struct err *err)
{
	const struct block_meta *m = p->meta;
	sqlite3_stmt *st = catalog_stmt(conn, sql, err);
	char *labels = labels_json(m->ext_labels);
	if (!st || !labels) {
		free(labels);
		return st ? err_set(err, ERR_NOMEM, "catalog: no memory") : ERR_IO;
	}
	struct span tenant = labels_get(m->ext_labels, SPAN("tenant_id"));
	if (tenant.n == 0)
		tenant = span_cstr(TENANT_DEFAULT);
	catalog_bind_ulid(st, 1, m->ulid);
	catalog_bind_span(st, 2, tenant);
	sqlite3_bind_int64(st, 3, m->mint);
	sqlite3_bind_int64(st, 4, m->maxt);
	sqlite3_bind_int64(st, 5, m->resolution_ms);
	sqlite3_bind_int64(st, 6, m->level);
	sqlite3_bind_text(st, 7, block_state_name(p->state), -1, SQLITE_STATIC);
	sqlite3_bind_text(st, 8, p->reason ? p->reason : "", -1, SQLITE_TRANSIENT);
	sqlite3_bind_text(st, 9, labels, -1, SQLITE_TRANSIENT);
	free(labels);
	catalog_bind_span(st, 10, m->source);
	sqlite3_bind_int64(st, 11, (int64_t)m->n_samples);
	sqlite3_bind_int64(st, 12, (int64_t)m->n_series);
	sqlite3_bind_int64(st, 13, (int64_t)m->n_chunks);
	sqlite3_bind_int64(st, 14, (int64_t)p->bytes);
	sqlite3_bind_int64(st, 15, p->marked);
	sqlite3_bind_int64(st, 16, io_now_ms());
	sqlite3_bind_int64(st, 17, (int64_t)p->meta_size);
	sqlite3_bind_int64(st, 18, p->meta_mtime);
	sqlite3_bind_int64(st, 19, crc32c(0, p->json.p, p->json.n));
	catalog_bind_span(st, 20, p->json);
	sqlite3_bind_int64(st, 21, catalog_span(m->mint, m->maxt));
	catalog_bind_span(st, 22, p->objects);
	return catalog_exec(conn, st, err);
}

#define PUT_COLUMNS                                                                                                                                  \
	"(ulid,tenant,min_time,max_time,resolution,level,state,reason,labels,source,samples,series,chunks,bytes,marked,missing,added_at,meta_size,"  \
	"meta_mtime,meta_crc,crc,meta,span,objects)"
#define PUT_VALUES "VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,0,?16,?17,?18,?19,0,?20,?21,?22)"

errc catalog_put_block(struct catalog *c, struct catalog_conn *conn, const struct catalog_put *p, struct err *err)
{
	static const char upsert[] =
		"INSERT INTO blocks " PUT_COLUMNS " " PUT_VALUES
		" ON CONFLICT (ulid) DO UPDATE SET tenant=?2,min_time=?3,max_time=?4,resolution=?5,level=?6,state=?7,reason=?8,labels=?9,source=?10,"
		"samples=?11,series=?12,chunks=?13,bytes=?14,marked=?15,missing=0,meta_size=?17,meta_mtime=?18,"
		"index_size=iif(meta_crc=?19,index_size,NULL),meta_crc=?19,meta=?20,span=?21,objects=?22";
	static const char drop_sources[] = "DELETE FROM block_sources WHERE ulid=?1";
	static const char add_source[] = "INSERT OR IGNORE INTO block_sources (source, ulid) VALUES (?1, ?2)";
	(void)c;
	errc rc = OK;
	TRY(put_row(conn, upsert, p, err));
	sqlite3_stmt *st = catalog_stmt(conn, drop_sources, err);
	if (st)
		catalog_bind_ulid(st, 1, p->meta->ulid);
	TRY(catalog_exec(conn, st, err));
	for (size_t i = 0; i < p->meta->n_sources; i++) {
		st = catalog_stmt(conn, add_source, err);
		if (st) {
			catalog_bind_ulid(st, 1, p->meta->sources[i]);
			catalog_bind_ulid(st, 2, p->meta->ulid);
		}
		TRY(catalog_exec(conn, st, err));
	}
	TRY(catalog_seal(conn, false, p->meta->ulid, err));
fail:
	return rc;
}

errc catalog_put_local(struct catalog *c, struct catalog_conn *conn, const struct catalog_put *p, struct err *err)
{
	static const char insert[] = "INSERT INTO local_blocks " PUT_COLUMNS " " PUT_VALUES " ON CONFLICT (ulid) DO NOTHING";
	(void)c;
	errc rc = put_row(conn, insert, p, err);
	if (rc == OK && sqlite3_changes(conn->db) > 0)
		rc = catalog_seal(conn, true, p->meta->ulid, err);
	return rc;
}

errc catalog_put_bad(struct catalog *c, struct catalog_conn *conn, struct ulid u, const char *reason, const struct catalog_put *seen, struct err *err)
{
	const struct block_meta meta = {.ulid = u, .source = {"", 0}};
	const struct catalog_put p = {.meta = &meta,
		.json = {"", 0},
		.bytes = seen->bytes,
		.state = BLOCK_QUARANTINED,
		.reason = reason,
		.marked = seen->marked,
		.meta_size = seen->meta_size,
		.meta_mtime = seen->meta_mtime,
		.objects = seen->objects};
	return catalog_put_block(c, conn, &p, err);
}
