/* bucket/bucket_catalog_feed.c - the catalog's change feed: what each change of a row leaves behind, what it tells of it, and how another's account is taken.
 *
 * A change of a block leaves, in the transaction that makes it: the block's next version, the digest's step, and its number in the feed. The feed has no
 * more than numbers and ULIDs: what is told of a change is what the block is when it is told. So a feed is as small as a list can be, nobody is told
 * what is no longer so, and whoever has read up to the newest number has each block as it is here.
 *
 * The digest is a sum over the live blocks, of a hash of what plans take from each, modulo 2^64: a step is a subtraction and an addition, and no order
 * is in it. It is made again from the rows when the file is opened.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <xxhash.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_feed_int.h"

enum { PRUNE_EVERY = 1024, FACT_BYTES = 64 };

/* ---- what a block is ---- */

static bool states_of_the_bucket(enum block_state s)
{
	return s >= BLOCK_LIVE;
}

static errc row_bad(struct catalog_conn *conn, struct ulid u, struct err *err)
{
	if (conn->catalog)
		return catalog_row_bad(conn->catalog, span_cstr(ulid_text(u).s), err);
	return err_set(err, ERR_CORRUPT, "catalog: the row of block %s", ulid_text(u).s);
}

errc catalog_standing(struct catalog_conn *conn, struct ulid u, struct catalog_standing *out, struct err *err)
{
	static const char get[] = "SELECT state, marked, meta_crc FROM blocks WHERE ulid=?1";
	errc rc = OK;
	*out = (struct catalog_standing){.state = BLOCK_GONE};
	sqlite3_stmt *st = catalog_stmt(conn, get, err);
	if (!st)
		return ERR_IO;
	catalog_bind_ulid(st, 1, u);
	int code = sqlite3_step(st);
	if (code == SQLITE_ROW) {
		out->marked = sqlite3_column_int64(st, 1) != 0;
		out->meta_crc = (uint32_t)sqlite3_column_int64(st, 2);
		if (!catalog_state_parse(catalog_column(st, 0), &out->state) || !states_of_the_bucket(out->state))
			rc = row_bad(conn, u, err);
	} else if (code != SQLITE_DONE) {
		rc = catalog_error(conn, "a block's state", err);
	}
	sqlite3_reset(st);
	return rc;
}

uint64_t feed_digest_of(struct ulid u, bool marked, uint32_t meta_crc)
{
	uint8_t b[sizeof u.b + 5];
	memcpy(b, u.b, sizeof u.b);
	b[sizeof u.b] = marked;
	put_le32(b + sizeof u.b + 1, meta_crc);
	return XXH64(b, sizeof b, 0);
}

static void digest_step(struct catalog_conn *conn, struct ulid u, const struct catalog_standing *was, const struct catalog_standing *now)
{
	if (was->state == BLOCK_LIVE) {
		conn->digest_step -= feed_digest_of(u, was->marked, was->meta_crc);
		conn->live_step--;
	}
	if (now->state == BLOCK_LIVE) {
		conn->digest_step += feed_digest_of(u, now->marked, now->meta_crc);
		conn->live_step++;
	}
}

/* 0: nobody ever said anything of it. */
static errc version_of(struct catalog_conn *conn, struct ulid u, uint64_t *out, struct err *err)
{
	static const char get[] = "SELECT version FROM block_versions WHERE ulid=?1";
	errc rc = OK;
	*out = 0;
	sqlite3_stmt *st = catalog_stmt(conn, get, err);
	if (!st)
		return ERR_IO;
	catalog_bind_ulid(st, 1, u);
	int code = sqlite3_step(st);
	if (code == SQLITE_ROW)
		*out = (uint64_t)sqlite3_column_int64(st, 0);
	else if (code != SQLITE_DONE)
		rc = catalog_error(conn, "a block's version", err);
	sqlite3_reset(st);
	return rc;
}

static errc version_set(struct catalog_conn *conn, struct ulid u, uint64_t version, bool gone, struct err *err)
{
	static const char set[] = "INSERT INTO block_versions VALUES (?1, ?2, ?3) ON CONFLICT (ulid) DO UPDATE SET version=?2, gone_at=?3";
	sqlite3_stmt *st = catalog_stmt(conn, set, err);
	if (st) {
		catalog_bind_ulid(st, 1, u);
		sqlite3_bind_int64(st, 2, (int64_t)version);
		if (gone)
			sqlite3_bind_int64(st, 3, io_now_ms());
		else
			sqlite3_bind_null(st, 3);
	}
	return catalog_exec(conn, st, err);
}

/* ---- this node saw a change ---- */

static errc append(struct catalog_conn *conn, struct ulid u, const struct catalog_standing *now, struct err *err)
{
	static const char add[] = "INSERT INTO feed (at, kind, ulid) VALUES (?1, ?2, ?3)";
	static const char prune[] = "DELETE FROM feed WHERE seq<=?1";
	errc rc = OK;
	sqlite3_stmt *st = catalog_stmt(conn, add, err);
	if (st) {
		sqlite3_bind_int64(st, 1, io_now_ms());
		sqlite3_bind_text(st, 2, now->state == BLOCK_LIVE && now->marked ? "marked" : block_state_name(now->state), -1, SQLITE_STATIC);
		catalog_bind_ulid(st, 3, u);
	}
	TRY(catalog_exec(conn, st, err));
	conn->fed = (uint64_t)sqlite3_last_insert_rowid(conn->db);
	conn->n_fed++;
	if (conn->fed % PRUNE_EVERY == 0 && conn->fed > LIMIT_FEED_KEPT) {
		st = catalog_stmt(conn, prune, err);
		if (st)
			sqlite3_bind_int64(st, 1, (int64_t)(conn->fed - LIMIT_FEED_KEPT));
		TRY(catalog_exec(conn, st, err));
	}
fail:
	return rc;
}

errc catalog_changed(struct catalog *c, struct catalog_conn *conn, struct ulid u, const struct catalog_standing *was, struct err *err)
{
	(void)c;
	errc rc = OK;
	struct catalog_standing now;
	uint64_t version;
	TRY(catalog_standing(conn, u, &now, err));
	if (now.state == was->state && now.marked == was->marked && now.meta_crc == was->meta_crc)
		return OK;
	digest_step(conn, u, was, &now);
	TRY(version_of(conn, u, &version, err));
	TRY(version_set(conn, u, version + 1, now.state == BLOCK_GONE, err));
	if (!conn->quiet)
		TRY(append(conn, u, &now, err));
fail:
	return rc;
}

errc catalog_drop_block(struct catalog_conn *conn, struct ulid u, struct err *err)
{
	static const char *const drops[] = {"DELETE FROM blocks WHERE ulid=?1", "DELETE FROM block_sources WHERE ulid=?1"};
	errc rc = OK;
	for (int i = 0; rc == OK && i < 2; i++) {
		sqlite3_stmt *st = catalog_stmt(conn, drops[i], err);
		if (st)
			catalog_bind_ulid(st, 1, u);
		rc = catalog_exec(conn, st, err);
	}
	return rc;
}

/* ---- the digest ---- */

static errc digest_scan(struct catalog_conn *conn, uint64_t *digest, uint64_t *live, struct err *err)
{
	static const char all[] = "SELECT ulid, marked, meta_crc FROM blocks WHERE state='live'";
	*digest = *live = 0;
	sqlite3_stmt *st = catalog_stmt(conn, all, err);
	if (!st)
		return ERR_IO;
	int code;
	while ((code = sqlite3_step(st)) == SQLITE_ROW) {
		struct ulid u;
		/* A name that is none is met by whoever reads the row. */
		if (!ulid_parse(catalog_column(st, 0), &u))
			continue;
		*digest += feed_digest_of(u, sqlite3_column_int64(st, 1) != 0, (uint32_t)sqlite3_column_int64(st, 2));
		(*live)++;
	}
	errc rc = code == SQLITE_DONE ? OK : catalog_error(conn, "the digest", err);
	sqlite3_reset(st);
	return rc;
}

static errc digest_write(struct catalog_conn *conn, uint64_t digest, uint64_t live, struct err *err)
{
	char text[FACT_BYTES];
	snprintf(text, sizeof text, "%016" PRIx64 " %" PRIu64, digest, live);
	return catalog_fact_set(conn, "digest", text, err);
}

errc feed_digest_read(struct catalog_conn *conn, uint64_t *digest, uint64_t *live, struct err *err)
{
	char text[FACT_BYTES];
	errc rc = catalog_fact(conn, "digest", text, sizeof text, err);
	if (rc == OK && sscanf(text, "%" SCNx64 " %" SCNu64, digest, live) != 2)
		rc = digest_scan(conn, digest, live, err);
	return rc;
}

errc catalog_digest(struct catalog *c, uint64_t *digest, uint64_t *live_blocks, struct err *err)
{
	struct catalog_conn *conn = NULL;
	errc rc = catalog_take(c, &conn, err);
	if (rc == OK)
		rc = feed_digest_read(conn, digest, live_blocks, err);
	catalog_give(c, conn);
	return rc;
}

/* ---- a file's feed ---- */

static errc name_feed(struct catalog_conn *conn, struct err *err)
{
	return catalog_fact_set(conn, "feed", ulid_text(ulid_new()).s, err);
}

errc catalog_feed_new(struct catalog_conn *conn, struct err *err)
{
	errc rc = name_feed(conn, err);
	return rc == OK ? catalog_feed_check(conn, err) : rc;
}

errc catalog_feed_check(struct catalog_conn *conn, struct err *err)
{
	errc rc = OK;
	char text[FACT_BYTES], want[FACT_BYTES];
	struct ulid feed;
	uint64_t digest, live;
	TRY(catalog_fact(conn, "feed", text, sizeof text, err));
	if (!ulid_parse(span_cstr(text), &feed))
		TRY(name_feed(conn, err));
	TRY(digest_scan(conn, &digest, &live, err));
	snprintf(want, sizeof want, "%016" PRIx64 " %" PRIu64, digest, live);
	TRY(catalog_fact(conn, "digest", text, sizeof text, err));
	if (strcmp(text, want) != 0)
		TRY(digest_write(conn, digest, live, err));
fail:
	return rc;
}

static errc feed_ends(struct catalog_conn *conn, uint64_t *oldest, uint64_t *last, struct err *err)
{
	static const char ends[] = "SELECT (SELECT min(seq) FROM feed), (SELECT max(seq) FROM feed)";
	sqlite3_stmt *st = catalog_stmt(conn, ends, err);
	if (!st)
		return ERR_IO;
	errc rc = sqlite3_step(st) == SQLITE_ROW ? OK : catalog_error(conn, "the feed", err);
	if (rc == OK) {
		*oldest = (uint64_t)sqlite3_column_int64(st, 0);
		*last = (uint64_t)sqlite3_column_int64(st, 1);
	}
	sqlite3_reset(st);
	return rc;
}

errc catalog_feed_load(struct catalog *c, struct catalog_conn *conn, struct err *err)
{
	errc rc = OK;
	char name[FACT_BYTES], owed[FACT_BYTES];
	uint64_t oldest, last;
	TRY(catalog_fact(conn, "feed", name, sizeof name, err));
	TRY(catalog_fact(conn, "owed", owed, sizeof owed, err));
	TRY(feed_ends(conn, &oldest, &last, err));
	pthread_mutex_lock(&c->mu);
	if (!ulid_parse(span_cstr(name), &c->feed))
		c->feed = (struct ulid){0};
	c->fed = last;
	if (strcmp(owed, "1") == 0)
		c->jumps++;
	pthread_mutex_unlock(&c->mu);
fail:
	return rc;
}

errc catalog_feed_note(struct catalog_conn *conn, struct err *err)
{
	uint64_t digest, live;
	if (conn->digest_step == 0 && conn->live_step == 0)
		return OK;
	errc rc = feed_digest_read(conn, &digest, &live, err);
	return rc == OK ? digest_write(conn, digest + conn->digest_step, live + (uint64_t)conn->live_step, err) : rc;
}

void catalog_feed_done(struct catalog_conn *conn, bool committed)
{
	struct catalog *c = conn->catalog;
	if (committed && conn->fed > 0 && c) {
		metric_add(c->announced, conn->n_fed);
		pthread_mutex_lock(&c->mu);
		if (conn->fed > c->fed)
			c->fed = conn->fed;
		if (c->on_fed)
			c->on_fed(c->on_fed_arg);
		pthread_mutex_unlock(&c->mu);
	}
	conn->digest_step = conn->fed = conn->n_fed = 0;
	conn->live_step = 0;
}

void catalog_on_fed(struct catalog *c, void (*fn)(void *arg), void *arg)
{
	pthread_mutex_lock(&c->mu);
	c->on_fed = fn;
	c->on_fed_arg = arg;
	pthread_mutex_unlock(&c->mu);
}

/* ---- audits that are owed ---- */

uint64_t catalog_owed(struct catalog *c)
{
	pthread_mutex_lock(&c->mu);
	uint64_t owed = c->jumps > c->paid ? c->jumps : 0;
	pthread_mutex_unlock(&c->mu);
	return owed;
}

/* Also what is done now and then: versions of blocks that are gone for long are forgotten. */
errc catalog_paid(struct catalog *c, struct catalog_conn *conn, uint64_t jumps, struct err *err)
{
	static const char forget[] = "DELETE FROM block_versions WHERE gone_at<?1";
	errc rc = catalog_run(conn, "BEGIN IMMEDIATE", err);
	if (rc != OK)
		return rc;
	/* Jumps are counted inside their transactions, so none comes between this and the commit. */
	pthread_mutex_lock(&c->mu);
	bool all = c->jumps == jumps, any = jumps > c->paid;
	pthread_mutex_unlock(&c->mu);
	if (all && any)
		rc = catalog_fact_set(conn, "owed", "0", err);
	if (rc == OK) {
		sqlite3_stmt *st = catalog_stmt(conn, forget, err);
		if (st)
			sqlite3_bind_int64(st, 1, io_now_ms() - LIMIT_FEED_GONE_MS);
		rc = catalog_exec(conn, st, err);
	}
	rc = catalog_end(conn, rc, err);
	if (rc == OK) {
		pthread_mutex_lock(&c->mu);
		c->paid = jumps;
		pthread_mutex_unlock(&c->mu);
	}
	return rc;
}

/* ---- positions ---- */

static errc where(struct catalog_conn *conn, struct span node, struct feed_position *out, struct err *err)
{
	static const char get[] = "SELECT feed, seq FROM followed WHERE node=?1";
	errc rc = OK;
	*out = (struct feed_position){0};
	sqlite3_stmt *st = catalog_stmt(conn, get, err);
	if (!st)
		return ERR_IO;
	catalog_bind_span(st, 1, node);
	int code = sqlite3_step(st);
	if (code == SQLITE_ROW) {
		/* A name that is none: from the beginning, which at worst is a gap. */
		if (ulid_parse(catalog_column(st, 0), &out->feed))
			out->seq = (uint64_t)sqlite3_column_int64(st, 1);
	} else if (code != SQLITE_DONE) {
		rc = catalog_error(conn, "followed", err);
	}
	sqlite3_reset(st);
	return rc;
}

errc feed_position_set(struct catalog_conn *conn, struct span node, struct feed_position at, struct err *err)
{
	static const char set[] = "INSERT INTO followed VALUES (?1, ?2, ?3, ?4) ON CONFLICT (node) DO UPDATE SET feed=?2, seq=?3, at=?4";
	sqlite3_stmt *st = catalog_stmt(conn, set, err);
	if (st) {
		catalog_bind_span(st, 1, node);
		catalog_bind_ulid(st, 2, at.feed);
		sqlite3_bind_int64(st, 3, (int64_t)at.seq);
		sqlite3_bind_int64(st, 4, io_now_ms());
	}
	return catalog_exec(conn, st, err);
}

errc feed_where(struct catalog *c, struct span node, struct feed_position *out, struct err *err)
{
	struct catalog_conn *conn = NULL;
	errc rc = catalog_take(c, &conn, err);
	if (rc == OK)
		rc = where(conn, node, out, err);
	catalog_give(c, conn);
	return rc;
}

errc feed_jump(struct catalog *c, struct span node, struct feed_position to, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	TRY(catalog_take(c, &conn, err));
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	pthread_mutex_lock(&c->mu);
	c->jumps++;
	pthread_mutex_unlock(&c->mu);
	rc = feed_position_set(conn, node, to, err);
	if (rc == OK)
		rc = catalog_fact_set(conn, "owed", "1", err);
	TRY(catalog_end(conn, rc, err));
fail:
	catalog_give(c, conn);
	return rc;
}

/* What two nodes with the same state and positions would write into a snapshot, as one number. */
errc feed_state_read(struct catalog *c, struct catalog_conn *conn, struct span node, uint64_t *out, struct err *err)
{
	static const char all[] = "SELECT node, feed, seq FROM followed WHERE node<>?1 ORDER BY node";
	errc rc = OK;
	uint64_t digest, live, oldest, last;
	TRY(feed_digest_read(conn, &digest, &live, err));
	TRY(feed_ends(conn, &oldest, &last, err));
	/* A sum: this node's own position stands where another's snapshot has it among those that it follows. */
	uint64_t sum = digest;
	char text[128];
	pthread_mutex_lock(&c->mu);
	struct ulid feed = c->feed;
	pthread_mutex_unlock(&c->mu);
	int n = snprintf(text, sizeof text, "%.*s %s %" PRIu64, SPAN_ARG(node), ulid_text(feed).s, last);
	sum += last ? XXH64(text, (size_t)n, 0) : 0;
	sqlite3_stmt *st = catalog_stmt(conn, all, err);
	if (!st)
		return ERR_IO;
	catalog_bind_span(st, 1, node);
	int code;
	while ((code = sqlite3_step(st)) == SQLITE_ROW) {
		n = snprintf(text, sizeof text, "%.*s %.*s %" PRIu64, SPAN_ARG(catalog_column(st, 0)), SPAN_ARG(catalog_column(st, 1)),
			(uint64_t)sqlite3_column_int64(st, 2));
		if (n > 0 && (size_t)n < sizeof text && sqlite3_column_int64(st, 2) > 0)
			sum += XXH64(text, (size_t)n, 0);
	}
	rc = code == SQLITE_DONE ? OK : catalog_error(conn, "followed", err);
	sqlite3_reset(st);
	*out = sum;
fail:
	return rc;
}

/* ---- telling ---- */

errc feed_record_of(struct catalog *c, struct catalog_conn *conn, struct ulid u, struct feed_record *out, struct err *err)
{
	static const char get[] = "SELECT " BLOCK_COLUMNS ", meta FROM blocks WHERE ulid=?1";
	errc rc = OK;
	*out = (struct feed_record){.ulid = u, .state = BLOCK_GONE};
	TRY(version_of(conn, u, &out->version, err));
	if (out->version == 0)
		out->version = 1;
	sqlite3_stmt *st = catalog_stmt(conn, get, err);
	if (!st)
		return ERR_IO;
	catalog_bind_ulid(st, 1, u);
	int code = sqlite3_step(st);
	if (code == SQLITE_DONE) {
		sqlite3_reset(st);
		return OK;
	}
	if (code != SQLITE_ROW)
		return catalog_error(conn, "a block", err);
	out->meta = catalog_column(st, COL_EXTRA);
	if (!catalog_row_whole(st) || crc32c(0, out->meta.p, out->meta.n) != (uint32_t)sqlite3_column_int64(st, COL_META_CRC) ||
		!catalog_state_parse(catalog_column(st, COL_STATE), &out->state) || !states_of_the_bucket(out->state))
		return catalog_row_bad(c, span_cstr(ulid_text(u).s), err);
	out->marked = sqlite3_column_int64(st, COL_MARKED) != 0;
	out->reason = catalog_column(st, COL_REASON);
	out->objects = catalog_column(st, COL_OBJECTS);
	out->bytes = (uint64_t)sqlite3_column_int64(st, COL_BYTES);
	out->meta_size = (uint64_t)sqlite3_column_int64(st, COL_META_SIZE);
	out->meta_mtime = sqlite3_column_int64(st, COL_META_MTIME);
fail:
	return rc;
}

errc feed_tell(
	struct catalog *c, struct span node, struct feed_position from, uint32_t limit, struct buf *out, uint32_t *n, bool *gap, struct err *err)
{
	static const char behind[] = "SELECT seq, ulid FROM feed WHERE seq>?1 ORDER BY seq LIMIT ?2";
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	struct feed_answer a = {.node = node, .after = from.seq};
	size_t begin = out->n;
	*n = 0;
	*gap = false;
	TRY(catalog_take(c, &conn, err));
	pthread_mutex_lock(&c->mu);
	a.feed = c->feed;
	pthread_mutex_unlock(&c->mu);
	TRY(catalog_run(conn, "BEGIN", err)); /* one picture for all of it */
	rc = feed_ends(conn, &a.oldest, &a.last, err);
	bool known = ulid_is_zero(from.feed) ? from.seq == 0 : ulid_eq(from.feed, a.feed);
	a.gap = *gap = !known || from.seq > a.last || (a.last > 0 && from.seq + 1 < a.oldest);
	if (rc == OK)
		feed_answer_begin(&a, out);
	sqlite3_stmt *st = rc == OK && !a.gap ? catalog_stmt(conn, behind, err) : NULL;
	if (rc == OK && !a.gap && !st)
		rc = ERR_IO;
	if (st) {
		sqlite3_bind_int64(st, 1, (int64_t)from.seq);
		sqlite3_bind_int64(st, 2, limit);
	}
	while (st && rc == OK && (*n == 0 || out->n - begin < LIMIT_FEED_ANSWER_BYTES)) {
		struct feed_record r;
		struct ulid u;
		int code = sqlite3_step(st);
		if (code == SQLITE_DONE)
			break;
		if (code != SQLITE_ROW) {
			rc = catalog_error(conn, "the feed", err);
			break;
		}
		uint64_t seq = (uint64_t)sqlite3_column_int64(st, 0);
		if (seq != from.seq + *n + 1 || !ulid_parse(catalog_column(st, 1), &u)) {
			rc = catalog_row_bad(c, catalog_column(st, 1), err);
			break;
		}
		rc = feed_record_of(c, conn, u, &r, err);
		r.seq = seq;
		if (rc == OK)
			feed_record_encode(&r, out);
		*n += rc == OK;
	}
	if (st)
		sqlite3_reset(st);
	if (rc == OK)
		feed_answer_end(out, begin, *n);
	TRY(catalog_end(conn, rc, err));
	CHECK(!out->failed, ERR_NOMEM, "feed: no memory for an answer");
fail:
	catalog_give(c, conn);
	return rc;
}

/* ---- hearing ---- */

/* Whether a text is what column objects holds; what is not is left out, and reads ask meta.json. */
static bool objects_good(struct span text)
{
	json_t *o = json_loadb(text.p, text.n, 0, NULL);
	bool good = json_is_object(o);
	json_decref(o);
	return good;
}

/* A block that is there, by another's account. What is wrong with its meta.json is the block's, as in an audit. */
static errc put(struct catalog *c, struct catalog_conn *conn, const struct feed_record *r, struct arena *arena, struct err *err)
{
	struct err why = {0};
	struct block_meta meta;
	struct catalog_put p = {.meta = &meta,
		.json = r->meta,
		.bytes = r->bytes,
		.state = r->state,
		.reason = arena_cstr(arena, r->reason),
		.marked = r->marked,
		.meta_size = r->meta_size,
		.meta_mtime = r->meta_mtime,
		.objects = objects_good(r->objects) ? r->objects : SPAN("")};
	if (!p.reason)
		return err_set(err, ERR_NOMEM, "feed: no memory for a block");
	if (r->meta.n == 0)
		return catalog_put_bad(c, conn, r->ulid, p.reason, &p, err);
	errc rc = block_meta_parse(ulid_text(r->ulid).s, r->meta, arena, &meta, &why);
	if (rc == OK)
		rc = catalog_judge(r->ulid, &meta, &why);
	if (rc == ERR_CORRUPT || rc == ERR_INVALID || rc == ERR_LIMIT || rc == ERR_UNSUPPORTED) {
		log_error("a peer announced a block that can't be read: it is left out", LULID("block", r->ulid), LERR(&why));
		return catalog_put_bad(c, conn, r->ulid, why.msg, &p, err);
	}
	if (rc != OK)
		return err_set(err, rc, "%s", why.msg);
	return catalog_put_block(c, conn, &p, err);
}

errc feed_record_take(struct catalog *c, struct catalog_conn *conn, const struct feed_record *r, struct arena *arena, bool *news, struct err *err)
{
	errc rc = OK;
	struct catalog_standing was, now;
	uint64_t version;
	TRY(catalog_standing(conn, r->ulid, &was, err));
	TRY(version_of(conn, r->ulid, &version, err));
	uint32_t had = feed_rank(was.state, was.marked), has = feed_rank(r->state, r->marked), crc = crc32c(0, r->meta.p, r->meta.n);
	*news = r->version != version ? r->version > version : has != had ? has > had : crc > was.meta_crc;
	if (!*news)
		return OK;
	TRY(r->state == BLOCK_GONE ? catalog_drop_block(conn, r->ulid, err) : put(c, conn, r, arena, err));
	TRY(catalog_standing(conn, r->ulid, &now, err));
	digest_step(conn, r->ulid, &was, &now);
	TRY(version_set(conn, r->ulid, r->version, r->state == BLOCK_GONE, err));
fail:
	return rc;
}

errc feed_hear(struct catalog *c, struct span node, struct span answer, struct feed_heard *out, struct err *err)
{
	errc rc = OK;
	struct catalog_conn *conn = NULL;
	struct feed_answer a;
	struct arena arena;
	bool open = false;
	arena_init(&arena, 8 * LIMIT_META_JSON_BYTES);
	*out = (struct feed_heard){0};
	TRY(feed_answer_decode(answer, &a, err));
	CHECK(span_eq(a.node, node), ERR_NOTFOUND, "feed: node %.*s answered instead of %.*s", SPAN_ARG(a.node), SPAN_ARG(node));
	out->newest = (struct feed_position){a.feed, a.last};
	out->last = a.last;
	out->gap = a.gap;
	TRY(catalog_take(c, &conn, err));
	TRY(where(conn, node, &out->at, err));
	/* The most frequent answer is that there is nothing; it costs no transaction. */
	if (a.gap || (a.n == 0 && ulid_eq(out->at.feed, a.feed)))
		goto fail;
	TRY(catalog_run(conn, "BEGIN IMMEDIATE", err));
	open = true;
	TRY(where(conn, node, &out->at, err));
	CHECK(ulid_is_zero(out->at.feed) ? a.after == 0 : ulid_eq(out->at.feed, a.feed) && a.after <= out->at.seq, ERR_CORRUPT,
		"feed: %.*s tells what follows change %" PRIu64 ", it was read up to %" PRIu64, SPAN_ARG(node), a.after, out->at.seq);
	for (struct span run = a.changes; out->n < a.n || run.n > 0; out->n++) {
		struct feed_record r;
		bool news;
		TRY(feed_record_decode(&run, &r, err));
		CHECK(out->n < a.n && r.seq == a.after + out->n + 1, ERR_CORRUPT, "feed: change %" PRIu64 " stands where %" PRIu64 " should", r.seq,
			a.after + out->n + 1);
		TRY(feed_record_take(c, conn, &r, &arena, &news, err));
		out->applied += news;
		arena_reset(&arena);
	}
	if (!ulid_eq(out->at.feed, a.feed) || out->at.seq < a.after + a.n) {
		out->at = (struct feed_position){a.feed, a.after + a.n};
		TRY(feed_position_set(conn, node, out->at, err));
	}
fail:
	if (open)
		rc = catalog_end(conn, rc, err);
	catalog_give(c, conn);
	arena_free(&arena);
	return rc;
}
