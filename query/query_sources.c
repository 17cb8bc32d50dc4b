/* query/query_sources.c - which sources a question needs: head windows, local blocks, bucket blocks, each piece of data once.
 *
 * Data moves one way: window, local block, bucket block, under one ULID. Asked in that direction, what moved on before it was asked for is found
 * at the next station, and what moves on afterwards is pinned: nothing is missed. The same ULID met again is skipped: nothing is read twice. Other nodes are asked before all of these (query_fleet_int.h).
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_fleet_int.h"

enum { CATALOG_WAIT_MS = 10000, CATALOG_MEND_MS = 5000, PLANS_MAX = 10 };

void question_init(struct question *qn, struct query *q, struct span tenant, int64_t mint, int64_t maxt)
{
	*qn = (struct question){.q = q,
		.tenant = tenant,
		.mint = mint,
		.maxt = maxt,
		.deadline_mono_ms = io_mono_ms() + q->cfg.timeout_ms,
		.replica = q->replica,
		.n_replica = q->n_replica};
	arena_init(&qn->arena, q->cfg.max_memory_bytes);
}

errc question_check_deadline(const struct question *qn, struct err *err)
{
	if (io_mono_ms() > qn->deadline_mono_ms)
		return err_id(
			err, ERRID_QUERY_TIMEOUT, ERR_TIMEOUT, "the read took longer than --query.timeout=%lld ms", (long long)qn->q->cfg.timeout_ms);
	return OK;
}

/* A window's external labels: the process' own, and tenant_id. */
static errc with_tenant(struct question *qn, struct labels ext, struct labels *out, struct err *err)
{
	struct label tenant = {SPAN("tenant_id"), qn->tenant};
	return external_join(ext, (struct labels){&tenant, 1}, &qn->arena, out, err);
}

static int by_ulid(const void *a, const void *b)
{
	return ulid_cmp(*(const struct ulid *)a, *(const struct ulid *)b);
}

static void wait_mended(struct catalog *c)
{
	for (int64_t until = io_mono_ms() + CATALOG_MEND_MS; catalog_damaged(c) && io_mono_ms() < until;)
		io_sleep_ms(20);
}

/* An answer without a block's samples says so. The reason stays with `varve bucket inspect`: its words may be of the block's bytes. */
static void warn_left_out(struct question *qn, const struct catalog_block *blocks, size_t n)
{
	/* Of the bucket's the one says so who reads the bucket. */
	while (qn->for_peer && n > 0 && blocks[0].in_bucket) {
		blocks++;
		n--;
	}
	if (n > 0 && !qn->warning)
		qn->warning = arena_printf(&qn->arena, "%zu damaged block%s left out of this answer, of them %s (see: varve bucket inspect)", n,
			n == 1 ? " is" : "s are", ulid_text(blocks[0].ulid).s);
}

static errc plan(struct question *qn, struct catalog_block **rows, size_t *n, struct err *err)
{
	size_t left_out = 0;
	struct catalog *c = qn->q->cfg.catalog;
	for (int i = 0;; i++) {
		struct err why = {0};
		int64_t wait = qn->deadline_mono_ms - io_mono_ms();
		uint64_t generation = catalog_generation(c);
		qn->warning = NULL;
		/* What is in directories is known without the bucket. */
		errc rc = qn->for_peer ? OK : catalog_complete(c, wait < CATALOG_WAIT_MS ? wait : CATALOG_WAIT_MS, &why);
		/* A catalog that went while it was asked gives the whole answer or none. */
		if (rc != OK && i > 0)
			return err_set(err, rc, "%s", why.msg);
		if (rc != OK)
			qn->warning = arena_printf(&qn->arena, "%s", why.msg);
		rc = catalog_plan(c, qn->tenant, qn->mint, qn->maxt, &qn->arena, rows, n, &left_out, err);
		/* Made anew since it was found complete: the plan may be of an empty one. */
		bool other = rc == OK && generation != catalog_generation(c);
		if (rc == OK && !other)
			warn_left_out(qn, *rows + *n, left_out);
		if (other && i == PLANS_MAX)
			return err_set(err, ERR_AGAIN, "the catalog is made anew again and again");
		if ((rc != ERR_CORRUPT && !other) || i == PLANS_MAX)
			return rc;
		/* A row's checksum was wrong. The catalog is being made anew; the question waits for it and is asked again. */
		if (rc == ERR_CORRUPT)
			wait_mended(c);
	}
}

/* ---- a block as a source that is opened when it is asked ----
 *
 * A question over years has thousands of blocks, and most of them have one series for it or none: open blocks are kept by query_blocks.c within its
 * bound, and by the iterators that read them.
 */
struct lazy_source {
	struct source base; /* kind: the copy that was opened last, and whose fault an error is */
	struct question *qn;
	struct catalog_block row;
	bool pinned; /* the local directory */
};

static errc lazy_open(struct lazy_source *s, struct source **out, struct err *err)
{
	errc rc = ERR_NOTFOUND;
	struct block *b = NULL;
	struct arena a;
	struct query *q = s->qn->q;
	struct catalog_block row = s->row;
	arena_init(&a, LIMIT_META_JSON_BYTES);
	if (s->pinned) {
		s->base.kind = "local";
		rc = query_blocks_get(q->blocks, &row, true, &b, err);
	}
	if (rc == ERR_NOTFOUND) {
		/* Not here, or the directory went between the plan and now: then it is in the bucket, maybe since a moment. */
		if (!row.in_bucket) {
			rc = catalog_get(q->cfg.catalog, row.ulid, &a, &row, err);
			if (rc == ERR_CORRUPT)
				rc = ERR_AGAIN;
			TRY(rc);
		}
		CHECK(row.in_bucket && row.state == BLOCK_LIVE, ERR_NOTFOUND, "the directory of block %s is missing", ulid_text(row.ulid).s);
		s->base.kind = "bucket";
		rc = query_blocks_get(q->blocks, &row, false, &b, err);
	}
	/* A version that nobody knows: a flipped byte, or a newer writer's. Either way this block alone is left out, with its reason. */
	if (rc == ERR_UNSUPPORTED)
		rc = ERR_CORRUPT;
	TRY(rc);
	TRY(block_source(b, s->base.kind, out, err));
fail:
	block_unref(b);
	arena_free(&a);
	return rc;
}

static errc lazy_select(
	struct source *base, const struct matcher *m, size_t n, const struct select_options *opt, struct series_iter **out, struct err *err)
{
	struct source *src;
	errc rc = lazy_open((struct lazy_source *)base, &src, err);
	if (rc != OK)
		return rc;
	rc = src->ops->select(src, m, n, opt, out, err);
	src->ops->release(src);
	return rc;
}

static errc lazy_names(struct source *base, const struct matcher *m, size_t n, const struct select_options *opt,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	struct source *src;
	errc rc = lazy_open((struct lazy_source *)base, &src, err);
	if (rc != OK)
		return rc;
	rc = src->ops->label_names(src, m, n, opt, emit, arg, err);
	src->ops->release(src);
	return rc;
}

static errc lazy_values(struct source *base, struct span name, const struct matcher *m, size_t n, const struct select_options *opt,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	struct source *src;
	errc rc = lazy_open((struct lazy_source *)base, &src, err);
	if (rc != OK)
		return rc;
	rc = src->ops->label_values(src, name, m, n, opt, emit, arg, err);
	src->ops->release(src);
	return rc;
}

static void lazy_release(struct source *base)
{
	struct lazy_source *s = (struct lazy_source *)base;
	if (s->pinned)
		query_blocks_unpin(s->qn->q->blocks, base->ulid);
}

static const struct source_ops lazy_ops = {lazy_select, lazy_names, lazy_values, lazy_release};

/* In the question's arena, with the row. */
static errc lazy_source(struct question *qn, const struct catalog_block *row, struct err *err)
{
	errc rc = OK;
	struct qsource *to = &qn->sources[qn->n_sources];
	struct lazy_source *s = arena_alloc(&qn->arena, sizeof *s);
	CHECK(s, ERR_NOMEM, "no memory for sources (--query.max-memory)");
	*s = (struct lazy_source){.qn = qn, .row = *row};
	s->base = (struct source){.ops = &lazy_ops, .ulid = row->ulid, .mint = row->mint, .maxt = row->maxt, .ext_labels = row->ext_labels};
	/* As the block has them: one of another writer that knows no tenants shows none, as in Thanos. */
	*to = (struct qsource){.src = &s->base, .ext = row->ext_labels};
	s->pinned = row->local && query_blocks_pin(qn->q->blocks, row->ulid);
	s->base.kind = s->pinned ? "local" : "bucket";
	qn->n_sources++;
fail:
	return rc;
}

/* For a peer: a directory that the bucket may not have yet, or other nodes' catalogs. */
static bool only_here(const struct question *qn, const struct catalog_block *row)
{
	int64_t age_ms = io_now_ms() - row->added_ms;
	bool live = row->in_bucket && row->state == BLOCK_LIVE;
	return row->local && (!live || (age_ms < qn->q->cfg.handover_ms && age_ms > -qn->q->cfg.handover_ms));
}

errc question_sources(struct question *qn, struct err *err)
{
	errc rc = OK;
	struct source **windows = NULL;
	size_t n_windows = 0, n_rows = 0, taken = 0;
	struct catalog_block *rows = NULL;
	qn->blamed = (struct ulid){{0}};
	qn->blamed_kind = NULL;
	if (qn->q->cfg.head)
		TRY(head_sources(qn->q->cfg.head, qn->tenant, qn->mint, qn->maxt, &qn->arena, &windows, &n_windows, err));
	TRY(plan(qn, &rows, &n_rows, err));
	qn->sources = arena_alloc(&qn->arena, (n_windows + n_rows) * sizeof *qn->sources);
	CHECK(qn->sources, ERR_NOMEM, "no memory for %zu sources (--query.max-memory)", n_windows + n_rows);
	struct labels own;
	TRY(with_tenant(qn, qn->q->cfg.ext_labels, &own, err));
	for (; taken < n_windows; taken++)
		qn->sources[qn->n_sources++] = (struct qsource){.src = windows[taken], .ext = own};

	/* Thousands of blocks against a handful of windows: sorted once. */
	struct ulid *in_head = arena_alloc(&qn->arena, n_windows * sizeof *in_head);
	CHECK(in_head, ERR_NOMEM, "no memory for sources");
	for (size_t i = 0; i < n_windows; i++)
		in_head[i] = windows[i]->ulid;
	if (n_windows > 1)
		qsort(in_head, n_windows, sizeof *in_head, by_ulid);
	for (size_t i = 0; i < n_rows; i++) {
		if (bsearch(&rows[i].ulid, in_head, n_windows, sizeof *in_head, by_ulid))
			continue;
		if (qn->for_peer && !only_here(qn, &rows[i]))
			continue;
		TRY(lazy_source(qn, &rows[i], err));
	}
fail:
	for (; rc != OK && taken < n_windows; taken++)
		windows[taken]->ops->release(windows[taken]);
	return rc;
}

void question_release(struct question *qn)
{
	fleet_ask_close(qn->ask);
	qn->ask = NULL;
	for (size_t i = 0; i < qn->n_sources; i++)
		qn->sources[i].src->ops->release(qn->sources[i].src);
	query_blocks_note(qn->q->blocks);
	qn->n_sources = 0;
	qn->sources = NULL;
	qn->warning = NULL;
	arena_reset(&qn->arena);
}

void question_free(struct question *qn)
{
	question_release(qn);
	arena_free(&qn->arena);
}

/* Is the block really gone from the bucket, or only a part of it? */
static bool meta_is_there(struct question *qn, errc *rc)
{
	char key[64];
	uint64_t size;
	snprintf(key, sizeof key, "%s/meta.json", ulid_text(qn->blamed).s);
	*rc = bucket_size(qn->q->cfg.bucket, key, &size, NULL);
	return *rc == OK;
}

bool question_blame(struct question *qn, errc rc, struct err *err)
{
	/* The catalog was damaged where a block was looked up: no block is to blame, and the next plan is made by a catalog made anew. */
	if (rc == ERR_AGAIN) {
		wait_mended(qn->q->cfg.catalog);
		return true;
	}
	if ((rc != ERR_CORRUPT && rc != ERR_NOTFOUND) || ulid_is_zero(qn->blamed) || !qn->blamed_kind || strcmp(qn->blamed_kind, "head") == 0)
		return false;
	bool local = strcmp(qn->blamed_kind, "local") == 0;
	char reason[ERR_MSG_BYTES];
	snprintf(reason, sizeof reason, "%s", err->msg);
	struct err why = {0};
	errc done;
	query_blocks_drop(qn->q->blocks, qn->blamed);
	if (local) {
		done = catalog_set_local_state(qn->q->cfg.catalog, qn->blamed, BLOCK_QUARANTINED, reason, &why);
	} else {
		errc there = OK;
		if (rc == ERR_NOTFOUND && !meta_is_there(qn, &there) && there != ERR_NOTFOUND)
			return false; /* the bucket does not answer: nobody's block is to blame */
		/* Removed as a whole (by a compactor that is not ours, say): the next audit forgets it; until then it is left out all the same. */
		query_cache_forget(qn->q->cache, qn->blamed);
		done = catalog_quarantine(qn->q->cfg.catalog, qn->blamed, reason, &why);
		/* A directory that was to go is needed again. */
		query_blocks_removed(qn->q->blocks, qn->blamed);
	}
	/* Its row went while it was being read: the next plan knows where it is now. */
	if (done == ERR_NOTFOUND)
		return true;
	log_error("block is damaged and is left out of reads", LULID("block", qn->blamed), LSTR("kind", qn->blamed_kind), LSTR("reason", reason));
	if (done != OK) {
		log_error("the quarantine could not be noted", LERR(&why));
		return false;
	}
	metric_add(qn->q->quarantined, 1);
	return true;
}

/* ---- what the answer lacks ---- */

const char *question_warning(const struct question *qn, size_t i)
{
	if (qn->warning && i-- == 0)
		return qn->warning;
	return fleet_ask_warning(qn->ask, i);
}

void question_warning_headers(const struct question *qn, struct http_request *r)
{
	const char *text;
	for (size_t i = 0; (text = question_warning(qn, i)); i++)
		http_set_header(r, "X-Varve-Warning", text);
}
