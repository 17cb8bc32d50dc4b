/* bucket/bucket_catalog_audit.c - the bucket's truth against the catalog: one recursive LIST, and GETs only of what is new or changed.
 *
 *     LIST (ascending keys) ─▶ per <ULID>/: size and time of meta.json, mark, bytes ─▶ same as the row? done
 *                                                                                     └▶ job: GET meta.json ─▶ row (a few fetchers)
 *     rows that the LIST did not show: missing + 1; at 2 the row goes
 *
 * One absence never removes anything: listings of some stores lag. A block that this node put there while the LIST ran is younger than
 * the audit and is not judged. Memory: 40 bytes a block and the jobs.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/tenant.h"
#include "bucket/bucket_catalog_int.h"

enum { FETCHERS = 8, MISSING_MAX = 2, BATCH = 32, PROGRESS = 1000 };

/* A block as the listing shows it. */
struct seen {
	struct ulid ulid;
	uint64_t bytes;
	uint64_t meta_size;
	int64_t meta_mtime;
	bool has_meta, marked;
	struct span objects; /* JSON, in the audit's text arena */
};

struct audit {
	struct catalog *c;
	struct bucket *b;
	const struct catalog_audit_options *opt;
	struct catalog_audit_stats *st;
	int64_t started_ms;
	bool filling; /* the first audit of a catalog: what it finds is new to nobody else */

	struct seen cur;    /* being listed */
	struct buf objects; /* of cur */
	struct arena text;  /* objects of jobs */
	bool open;
	struct catalog_conn *conn; /* the lister's */

	struct seen *jobs;
	size_t n_jobs, cap_jobs;
	struct ulid *present;
	size_t n_present, cap_present;

	/* fetchers */
	atomic_size_t next_job, done;
	pthread_mutex_t mu;
	errc rc; /* first failure that is not one block's own; guarded by mu */
	struct err err;
};

static errc grow(void **v, size_t n, size_t *cap, size_t size, struct err *err)
{
	if (n < *cap)
		return OK;
	size_t more = *cap ? *cap * 2 : 1024;
	void *bigger = realloc(*v, more * size);
	if (!bigger)
		return err_set(err, ERR_NOMEM, "audit: no memory for %zu blocks", more);
	*v = bigger;
	*cap = more;
	return OK;
}

/* ---- listing ---- */

/* Is the row as the bucket shows the block? Notes a first listing's time on our own uploads without reading them again. */
static errc compare(struct audit *a, const struct seen *s, bool *same, struct err *err)
{
	static const char get[] = "SELECT meta_size, meta_mtime, marked, objects, missing, bytes FROM blocks WHERE ulid=?1";
	static const char touch[] = "UPDATE blocks SET meta_mtime=?2, missing=0, bytes=?3, objects=?4 WHERE ulid=?1";
	*same = false;
	sqlite3_stmt *st = catalog_stmt(a->conn, get, err);
	if (!st)
		return ERR_IO;
	catalog_bind_ulid(st, 1, s->ulid);
	int code = sqlite3_step(st);
	if (code == SQLITE_DONE) {
		a->st->added++;
		sqlite3_reset(st);
		return OK;
	}
	if (code != SQLITE_ROW) {
		errc rc = catalog_error(a->conn, "audit", err);
		sqlite3_reset(st);
		return rc;
	}
	uint64_t size = (uint64_t)sqlite3_column_int64(st, 0), bytes = (uint64_t)sqlite3_column_int64(st, 5);
	int64_t mtime = sqlite3_column_int64(st, 1), missing = sqlite3_column_int64(st, 4);
	bool marked = sqlite3_column_int64(st, 2) != 0, same_objects = span_eq(catalog_column(st, 3), s->objects);
	sqlite3_reset(st);
	*same = size == s->meta_size && (mtime == s->meta_mtime || mtime == 0) && marked == s->marked && !(a->opt && a->opt->reread);
	if (!*same)
		a->st->changed++;
	if (!*same || (mtime == s->meta_mtime && missing == 0 && bytes == s->bytes && same_objects))
		return OK;
	errc rc = catalog_run(a->conn, "BEGIN IMMEDIATE", err);
	if (rc != OK)
		return rc;
	st = catalog_stmt(a->conn, touch, err);
	if (st) {
		catalog_bind_ulid(st, 1, s->ulid);
		sqlite3_bind_int64(st, 2, s->meta_mtime);
		sqlite3_bind_int64(st, 3, (int64_t)s->bytes);
		catalog_bind_span(st, 4, s->objects);
	}
	rc = catalog_exec(a->conn, st, err);
	if (rc == OK)
		rc = catalog_seal(a->conn, false, s->ulid, err);
	return catalog_end(a->conn, rc, err);
}

static errc block_listed(struct audit *a, struct err *err)
{
	struct seen *s = &a->cur;
	errc rc = OK;
	buf_u8(&a->objects, '}');
	/* Too many objects to list are not a block of anybody's; what reads need is asked of meta.json then. */
	s->objects = a->objects.failed ? SPAN("") : span_of(a->objects.p, a->objects.n);
	if (!s->has_meta) {
		/* Half uploaded, or half deleted: nobody's block yet. */
		a->st->partial++;
		return OK;
	}
	a->st->blocks++;
	TRY(grow((void **)&a->present, a->n_present, &a->cap_present, sizeof *a->present, err));
	a->present[a->n_present++] = s->ulid;
	bool same;
	TRY(compare(a, s, &same, err));
	if (!same) {
		TRY(grow((void **)&a->jobs, a->n_jobs, &a->cap_jobs, sizeof *a->jobs, err));
		a->jobs[a->n_jobs] = *s;
		a->jobs[a->n_jobs].objects = arena_dup(&a->text, s->objects);
		CHECK(a->jobs[a->n_jobs].objects.p, ERR_NOMEM, "audit: no memory for the objects of %zu blocks", a->n_jobs);
		a->n_jobs++;
	}
fail:
	return rc;
}

static errc object_listed(void *arg, const struct bucket_object *o, struct err *err)
{
	struct audit *a = arg;
	struct ulid u;
	a->st->objects++;
	/* Blocks are directories named by a ULID at the top; everything else (varve/, debug/, ...) is not ours to judge. */
	if (o->key.n <= ULID_TEXT_BYTES + 1 || o->key.p[ULID_TEXT_BYTES] != '/' || !ulid_parse(span_of(o->key.p, ULID_TEXT_BYTES), &u))
		return OK;
	if (a->open && !ulid_eq(u, a->cur.ulid)) {
		errc rc = block_listed(a, err);
		if (rc != OK)
			return rc;
		a->open = false;
	}
	if (!a->open) {
		a->cur = (struct seen){.ulid = u};
		buf_clear(&a->objects);
		buf_u8(&a->objects, '{');
		a->open = true;
	}
	struct span rest = span_of(o->key.p + ULID_TEXT_BYTES + 1, o->key.n - ULID_TEXT_BYTES - 1);
	a->cur.bytes += o->size_bytes;
	catalog_objects_add(&a->objects, rest, o->size_bytes);
	if (span_is(rest, "meta.json")) {
		a->cur.has_meta = true;
		a->cur.meta_size = o->size_bytes;
		a->cur.meta_mtime = o->mtime_ms;
	} else if (span_is(rest, "deletion-mark.json")) {
		a->cur.marked = true;
	}
	return OK;
}

/* ---- reading what is new ---- */

errc catalog_judge(struct ulid u, const struct block_meta *m, struct err *err)
{
	errc rc = OK;
	CHECK(ulid_eq(m->ulid, u), ERR_CORRUPT, "meta.json says ulid %s", ulid_text(m->ulid).s);
	CHECK(m->mint <= m->maxt, ERR_CORRUPT, "meta.json says minTime %" PRId64 " and maxTime %" PRId64, m->mint, m->maxt);
	struct span tenant = labels_get(m->ext_labels, SPAN("tenant_id"));
	CHECK(tenant.n == 0 || tenant_valid(tenant), ERR_CORRUPT, "meta.json's tenant_id is not of the form [A-Za-z0-9_-][A-Za-z0-9._-]{0,127}");
fail:
	return rc;
}

/* A block that was read, or why it can't be. */
struct fetched {
	const struct seen *s;
	struct span json;
	struct block_meta meta;
	bool gone, bad;
	const char *why;
};

/* What is wrong with the block will stand in its row; only trouble with the bucket or the catalog is an error. */
static errc fetch(struct audit *a, const struct seen *s, struct arena *arena, struct fetched *f, struct err *err)
{
	char key[64];
	struct err why = {0};
	*f = (struct fetched){.s = s};
	snprintf(key, sizeof key, "%s/meta.json", ulid_text(s->ulid).s);
	errc rc = bucket_get(a->b, key, LIMIT_META_JSON_BYTES, arena, &f->json, &why);
	/* deleted meanwhile: the next audit says so */
	f->gone = rc == ERR_NOTFOUND;
	if (f->gone)
		return OK;
	if (rc == OK)
		rc = block_meta_parse(key, f->json, arena, &f->meta, &why);
	if (rc == OK)
		rc = catalog_judge(s->ulid, &f->meta, &why);
	f->bad = rc == ERR_CORRUPT || rc == ERR_INVALID || rc == ERR_LIMIT || rc == ERR_UNSUPPORTED;
	if (rc != OK && !f->bad)
		return err_set(err, rc, "%s", why.msg);
	if (f->bad) {
		log_error("block in the bucket can't be read and is left out", LULID("block", s->ulid), LERR(&why));
		f->why = arena_printf(arena, "%s", why.msg);
		pthread_mutex_lock(&a->mu);
		a->st->bad++;
		pthread_mutex_unlock(&a->mu);
	}
	return OK;
}

/* Rows of what was read, in one transaction: its sync is what a row costs. */
static errc store(struct audit *a, struct catalog_conn *conn, const struct fetched *v, size_t n, struct err *err)
{
	errc rc = catalog_run(conn, "BEGIN IMMEDIATE", err);
	if (rc != OK)
		return rc;
	for (size_t i = 0; rc == OK && i < n; i++) {
		const struct seen *s = v[i].s;
		const struct catalog_put p = {.meta = &v[i].meta,
			.json = v[i].json,
			.bytes = s->bytes,
			.state = BLOCK_LIVE,
			.marked = s->marked,
			.meta_size = s->meta_size,
			.meta_mtime = s->meta_mtime,
			.objects = s->objects};
		struct catalog_standing was;
		if (v[i].gone)
			continue;
		rc = catalog_standing(conn, s->ulid, &was, err);
		if (rc == OK)
			rc = v[i].bad ? catalog_put_bad(a->c, conn, s->ulid, v[i].why, &p, err) : catalog_put_block(a->c, conn, &p, err);
		if (rc == OK)
			rc = catalog_changed(a->c, conn, s->ulid, &was, err);
	}
	return catalog_end(conn, rc, err);
}

static void *fetcher(void *arg)
{
	struct audit *a = arg;
	struct arena arena;
	struct err err = {0};
	struct catalog_conn *conn = NULL;
	struct fetched batch[BATCH];
	arena_init(&arena, 4 * LIMIT_META_JSON_BYTES);
	errc rc = catalog_take(a->c, &conn, &err);
	if (rc == OK)
		conn->quiet = a->filling;
	for (bool more = true; more && rc == OK;) {
		size_t n = 0;
		while (rc == OK && n < BATCH && arena.used_bytes < LIMIT_META_JSON_BYTES) {
			size_t i = atomic_fetch_add(&a->next_job, 1);
			more = i < a->n_jobs;
			if (!more)
				break;
			rc = fetch(a, &a->jobs[i], &arena, &batch[n], &err);
			n += rc == OK;
		}
		if (n > 0) {
			errc stored = store(a, conn, batch, n, rc == OK ? &err : NULL);
			rc = rc == OK ? stored : rc;
		}
		arena_reset(&arena);
		size_t before = atomic_fetch_add(&a->done, n), done = before + n;
		if (a->opt && a->opt->progress && before / PROGRESS != done / PROGRESS)
			a->opt->progress(a->opt->arg, done, a->n_jobs);
	}
	catalog_give(a->c, conn);
	arena_free(&arena);
	if (rc != OK) {
		pthread_mutex_lock(&a->mu);
		if (a->rc == OK) {
			a->rc = rc;
			a->err = err;
		}
		pthread_mutex_unlock(&a->mu);
		atomic_store(&a->next_job, a->n_jobs);
	}
	return NULL;
}

static errc fetch_all(struct audit *a, struct err *err)
{
	pthread_t threads[FETCHERS];
	size_t n = a->n_jobs < FETCHERS ? a->n_jobs : FETCHERS, started = 0;
	for (size_t i = 1; i < n; i++)
		if (pthread_create(&threads[started], NULL, fetcher, a) == 0)
			started++;
	fetcher(a);
	for (size_t i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	if (a->rc != OK && err)
		*err = a->err;
	return a->rc;
}

/* ---- rows whose block is gone ---- */

static int ulid_order(const void *x, const void *y)
{
	return ulid_cmp(*(const struct ulid *)x, *(const struct ulid *)y);
}

static errc row_missing(struct audit *a, struct ulid u, int64_t missing, struct err *err)
{
	static const char more[] = "UPDATE blocks SET missing=missing+1 WHERE ulid=?1";
	bool gone = missing + 1 >= MISSING_MAX;
	struct catalog_standing was;
	errc rc = catalog_run(a->conn, "BEGIN IMMEDIATE", err);
	if (rc != OK)
		return rc;
	rc = catalog_standing(a->conn, u, &was, err);
	if (rc == OK && gone) {
		rc = catalog_drop_block(a->conn, u, err);
		if (rc == OK)
			rc = catalog_changed(a->c, a->conn, u, &was, err);
	} else if (rc == OK) {
		sqlite3_stmt *st = catalog_stmt(a->conn, more, err);
		if (st)
			catalog_bind_ulid(st, 1, u);
		rc = catalog_exec(a->conn, st, err);
		if (rc == OK)
			rc = catalog_seal(a->conn, false, u, err);
	}
	if (rc == OK && gone) {
		a->st->removed++;
		log_warn("block is no longer in the bucket", LULID("block", u));
	}
	return catalog_end(a->conn, rc, err);
}

static errc find_missing(struct audit *a, struct err *err)
{
	/* From before the listing; or from a clock that was ahead and has been set back. */
	static const char sql[] = "SELECT ulid, missing FROM blocks WHERE (added_at<?1 OR added_at>?3) AND ulid>?2 ORDER BY ulid LIMIT 1000";
	/* Keys ascend, so `present` does; sorted again because the order is a store's promise, not ours. */
	if (a->n_present > 1)
		qsort(a->present, a->n_present, sizeof *a->present, ulid_order);
	char last[ULID_TEXT_BYTES + 1] = "";
	for (;;) {
		struct ulid gone[1000];
		int64_t missing[1000];
		size_t n = 0, rows = 0;
		sqlite3_stmt *st = catalog_stmt(a->conn, sql, err);
		if (!st)
			return ERR_IO;
		sqlite3_bind_int64(st, 1, a->started_ms);
		sqlite3_bind_text(st, 2, last, -1, SQLITE_TRANSIENT);
		sqlite3_bind_int64(st, 3, io_now_ms());
		int code;
		while ((code = sqlite3_step(st)) == SQLITE_ROW && rows < 1000) {
			struct ulid u;
			struct span text = catalog_column(st, 0);
			rows++;
			if (!ulid_parse(text, &u)) {
				sqlite3_reset(st);
				return catalog_row_bad(a->c, text, err);
			}
			memcpy(last, text.p, ULID_TEXT_BYTES);
			if (a->n_present == 0 || !bsearch(&u, a->present, a->n_present, sizeof u, ulid_order)) {
				gone[n] = u;
				missing[n++] = sqlite3_column_int64(st, 1);
			}
		}
		errc rc = code == SQLITE_ROW || code == SQLITE_DONE ? OK : catalog_error(a->conn, "audit", err);
		sqlite3_reset(st);
		for (size_t i = 0; rc == OK && i < n; i++)
			rc = row_missing(a, gone[i], missing[i], err);
		if (rc != OK || rows < 1000)
			return rc;
	}
}

static errc note_complete(struct audit *a, struct err *err)
{
	return catalog_fact_set(a->conn, "complete", "1", err);
}

errc catalog_audit(struct catalog *c, struct bucket *b, const struct catalog_audit_options *opt, struct catalog_audit_stats *stats, struct err *err)
{
	ASSERT(!c->read_only);
	errc rc = OK;
	struct err own = {0};
	if (!err)
		err = &own;
	struct audit a = {.c = c, .b = b, .opt = opt, .st = stats, .started_ms = io_now_ms()};
	int64_t begin = io_mono_ms();
	*stats = (struct catalog_audit_stats){0};
	pthread_mutex_init(&a.mu, NULL);
	buf_init(&a.objects, LIMIT_META_JSON_BYTES);
	arena_init(&a.text, GIB);
	pthread_mutex_lock(&c->mu);
	c->auditing = true;
	a.filling = !c->complete;
	uint64_t jumps = c->jumps;
	pthread_mutex_unlock(&c->mu);

	TRY(catalog_take(c, &a.conn, err));
	TRY(bucket_list(b, "", object_listed, &a, &stats->pages, err));
	if (a.open)
		TRY(block_listed(&a, err));
	TRY(fetch_all(&a, err));
	TRY(find_missing(&a, err));
	TRY(note_complete(&a, err));
	TRY(catalog_paid(c, a.conn, jumps, err));
fail:
	catalog_give(c, a.conn);
	free(a.jobs);
	free(a.present);
	buf_free(&a.objects);
	arena_free(&a.text);
	stats->duration_ms = io_mono_ms() - begin;
	pthread_mutex_lock(&c->mu);
	c->auditing = false;
	c->audit_failed = rc != OK;
	if (rc == OK)
		c->complete = true;
	else
		snprintf(c->audit_error, sizeof c->audit_error, "%s", err->msg);
	pthread_cond_broadcast(&c->audited);
	pthread_mutex_unlock(&c->mu);
	pthread_mutex_destroy(&a.mu);
	return rc;
}
