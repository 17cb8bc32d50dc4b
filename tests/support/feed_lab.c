/* tests/support/feed_lab.c - see feed_lab.h. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "tests/support/feed_lab.h"
#include "tests/support/tmp.h"

#define HOUR INT64_C(3600000)

/* ---- catalogs ---- */

static void open_node(struct lab *l, uint32_t i)
{
	struct err err = {0};
	bool rebuilt;
	const struct catalog_config cfg = {.path = l->node[i].path, .node = l->node[i].id};
	if (catalog_open(&cfg, &l->node[i].c, &rebuilt, &err) != OK)
		fail_msg("%s", err.msg);
}

void lab_reopen(struct lab *l, uint32_t i)
{
	catalog_close(l->node[i].c);
	open_node(l, i);
}

void lab_remake(struct lab *l, uint32_t i)
{
	catalog_close(l->node[i].c);
	(void)!io_unlink(l->node[i].path, NULL);
	(void)!io_unlink(tmp_path("%s-wal", l->node[i].path), NULL);
	(void)!io_unlink(tmp_path("%s-shm", l->node[i].path), NULL);
	open_node(l, i);
}

void lab_fresh(struct lab *l)
{
	for (uint32_t i = 0; i < LAB_NODES; i++)
		lab_remake(l, i);
}

int lab_setup(void **state)
{
	struct lab *l = calloc(1, sizeof *l);
	struct err err = {0};
	struct bucket *inner;
	l->dir = tmp_dir();
	arena_init(&l->arena, GIB);
	assert_int_equal(bucket_open("default", SPAN(""), tmp_path("%s/bucket", l->dir), &inner, &err), OK);
	l->bucket = shaky_bucket(inner, &l->sh);
	for (uint32_t i = 0; i < LAB_NODES; i++) {
		snprintf(l->node[i].id, sizeof l->node[i].id, "node-%u", i);
		snprintf(l->node[i].path, sizeof l->node[i].path, "%s/catalog-%u.sqlite", l->dir, i);
		open_node(l, i);
	}
	*state = l;
	return 0;
}

int lab_teardown(void **state)
{
	struct lab *l = *state;
	for (uint32_t i = 0; i < LAB_NODES; i++)
		catalog_close(l->node[i].c);
	bucket_close(l->bucket);
	arena_free(&l->arena);
	free(l);
	return 0;
}

/* ---- blocks ---- */

struct ulid lab_ulid(uint32_t block)
{
	struct ulid u = {{1, 0x8f, 0, 0, 0, 0}};
	put_be32(u.b + 12, block);
	return u;
}

static struct block_meta meta_of(struct lab *l, uint32_t block, uint64_t samples)
{
	struct label *ext = arena_calloc(&l->arena, 1, sizeof *ext);
	struct ulid *sources = arena_calloc(&l->arena, 1, sizeof *sources);
	struct block_file *files = arena_calloc(&l->arena, 2, sizeof *files);
	sources[0] = lab_ulid(block);
	ext[0] = (struct label){SPAN("tenant_id"), SPAN("t")};
	files[0] = (struct block_file){.rel_path = SPAN("chunks/000001"), .size_bytes = 7};
	files[1] = (struct block_file){.rel_path = SPAN("index"), .size_bytes = 5};
	return (struct block_meta){.ulid = lab_ulid(block),
		.mint = block * HOUR,
		.maxt = (block + 1) * HOUR,
		.n_samples = samples,
		.n_series = 1,
		.n_chunks = 1,
		.level = 1,
		.sources = sources,
		.n_sources = 1,
		.has_thanos = true,
		.ext_labels = {ext, 1},
		.source = SPAN("receive"),
		.files = files,
		.n_files = 2};
}

void lab_upload(struct lab *l, uint32_t i, uint32_t block)
{
	struct err err = {0};
	struct block_meta meta = meta_of(l, block, l->samples[block] = ++l->uploads);
	if (catalog_uploaded(l->node[i].c, &meta, 12, &err) != OK)
		fail_msg("%s", err.msg);
	arena_reset(&l->arena);
}

void lab_change(struct lab *l, uint32_t i, uint32_t block, enum block_state to, bool marked)
{
	struct catalog *c = l->node[i].c;
	struct catalog_conn *conn;
	struct catalog_standing was;
	struct feed_record r;
	struct err err = {0};
	errc rc = catalog_take(c, &conn, &err);
	assert_int_equal(rc, OK);
	assert_int_equal(catalog_run(conn, "BEGIN IMMEDIATE", &err), OK);
	assert_int_equal(catalog_standing(conn, lab_ulid(block), &was, &err), OK);
	if (was.state != BLOCK_GONE && to == BLOCK_GONE) {
		rc = catalog_drop_block(conn, lab_ulid(block), &err);
	} else if (was.state != BLOCK_GONE) {
		assert_int_equal(feed_record_of(c, conn, lab_ulid(block), &r, &err), OK);
		struct span json = arena_dup(&l->arena, r.meta), objects = arena_dup(&l->arena, r.objects);
		struct block_meta meta;
		assert_int_equal(block_meta_parse("lab", json, &l->arena, &meta, &err), OK);
		const struct catalog_put p = {.meta = &meta,
			.json = json,
			.bytes = 12,
			.state = to,
			.reason = to == BLOCK_QUARANTINED ? "bad" : "",
			.marked = marked,
			.meta_size = json.n,
			.objects = objects};
		rc = catalog_put_block(c, conn, &p, &err);
	}
	if (rc == OK)
		rc = catalog_changed(c, conn, lab_ulid(block), &was, &err);
	if (catalog_end(conn, rc, &err) != OK)
		fail_msg("%s", err.msg);
	catalog_give(c, conn);
	arena_reset(&l->arena);
}

void lab_bulk(struct lab *l, uint32_t i, uint32_t n)
{
	struct catalog *c = l->node[i].c;
	struct catalog_conn *conn;
	struct err err = {0};
	struct buf json, objects;
	buf_init(&json, MIB);
	buf_init(&objects, MIB);
	assert_int_equal(catalog_take(c, &conn, &err), OK);
	assert_int_equal(catalog_run(conn, "BEGIN IMMEDIATE", &err), OK);
	for (uint32_t block = 1; block <= n; block++) {
		struct block_meta meta = meta_of(l, block, ++l->uploads);
		struct catalog_standing was;
		buf_clear(&json);
		buf_clear(&objects);
		assert_int_equal(block_meta_write(&meta, &json), OK);
		catalog_objects_of(&meta, json.n, &objects);
		const struct catalog_put p = {.meta = &meta,
			.json = span_of(json.p, json.n),
			.bytes = 12,
			.state = BLOCK_LIVE,
			.meta_size = json.n,
			.objects = span_of(objects.p, objects.n)};
		assert_int_equal(catalog_standing(conn, meta.ulid, &was, &err), OK);
		assert_int_equal(catalog_put_block(c, conn, &p, &err), OK);
		assert_int_equal(catalog_changed(c, conn, meta.ulid, &was, &err), OK);
		arena_reset(&l->arena);
	}
	if (catalog_end(conn, OK, &err) != OK)
		fail_msg("%s", err.msg);
	catalog_give(c, conn);
	buf_free(&json);
	buf_free(&objects);
}

/* ---- the bucket ---- */

static void put_file(struct lab *l, uint32_t block, const char *name, struct span data)
{
	struct err err = {0};
	int fd;
	assert_int_equal(io_mkdirs(tmp_path("%s/bucket/%s/chunks", l->dir, ulid_text(lab_ulid(block)).s), &err), OK);
	const char *path = tmp_path("%s/bucket/%s/%s", l->dir, ulid_text(lab_ulid(block)).s, name);
	assert_int_equal(io_open(path, IO_WRITE | IO_CREATE | IO_TRUNC, &fd, &err), OK);
	assert_int_equal(io_pwrite(fd, data.p, data.n, 0, &err), OK);
	io_close(fd);
}

void lab_object(struct lab *l, uint32_t block)
{
	struct block_meta meta = meta_of(l, block, l->samples[block]);
	struct buf json;
	buf_init(&json, MIB);
	assert_int_equal(block_meta_write(&meta, &json), OK);
	put_file(l, block, "chunks/000001", SPAN("chunks!"));
	put_file(l, block, "index", SPAN("index"));
	put_file(l, block, "meta.json", span_of(json.p, json.n));
	buf_free(&json);
}

void lab_mark(struct lab *l, uint32_t block)
{
	put_file(l, block, "deletion-mark.json", SPAN("{}"));
}

void lab_remove(struct lab *l, uint32_t block)
{
	assert_int_equal(io_remove_tree(tmp_path("%s/bucket/%s", l->dir, ulid_text(lab_ulid(block)).s), NULL), OK);
}

void lab_audit(struct lab *l, uint32_t i)
{
	struct catalog_audit_stats st;
	struct err err = {0};
	if (catalog_audit(l->node[i].c, l->bucket, NULL, &st, &err) != OK)
		fail_msg("%s", err.msg);
}

/* ---- telling and hearing ---- */

void lab_tell(struct lab *l, uint32_t k, uint32_t i, struct buf *out)
{
	struct err err = {0};
	struct feed_position at;
	uint32_t n;
	bool gap;
	buf_init(out, 64 * MIB);
	assert_int_equal(feed_where(l->node[i].c, span_cstr(l->node[k].id), &at, &err), OK);
	if (feed_tell(l->node[k].c, span_cstr(l->node[k].id), at, l->uploads < 1000 ? 1 + (uint32_t)(l->uploads % 7) : LIMIT_FEED_CHANGES, out, &n,
		    &gap, &err) != OK)
		fail_msg("%s", err.msg);
}

uint32_t lab_apply(struct lab *l, uint32_t i, uint32_t k, const struct buf *answer, bool *gap)
{
	struct err err = {0};
	struct feed_heard h;
	errc rc = feed_hear(l->node[i].c, span_cstr(l->node[k].id), span_of(answer->p, answer->n), &h, &err);
	/* one that came late is behind what is known by now, or asked before a jump */
	*gap = rc == OK && h.gap;
	if (rc != OK)
		fail_msg("%s", err.msg);
	return h.applied;
}

uint32_t lab_hear(struct lab *l, uint32_t i, uint32_t k)
{
	uint32_t applied = 0;
	for (;;) {
		struct err err = {0};
		struct buf a;
		struct feed_heard h;
		lab_tell(l, k, i, &a);
		if (feed_hear(l->node[i].c, span_cstr(l->node[k].id), span_of(a.p, a.n), &h, &err) != OK)
			fail_msg("%s", err.msg);
		buf_free(&a);
		assert_false(h.gap);
		applied += h.applied;
		if (h.n == 0)
			return applied;
	}
}

void lab_catch_up(struct lab *l, uint32_t i, uint32_t k)
{
	struct buf a;
	bool gap;
	lab_tell(l, k, i, &a);
	lab_apply(l, i, k, &a, &gap);
	buf_free(&a);
	if (gap) {
		lab_copy(l, i, k);
		lab_jump(l, i, k);
	}
	lab_hear(l, i, k);
}

void lab_jump(struct lab *l, uint32_t i, uint32_t k)
{
	struct err err = {0};
	struct catalog *c = l->node[k].c;
	assert_int_equal(feed_jump(l->node[i].c, span_cstr(l->node[k].id), (struct feed_position){c->feed, c->fed}, &err), OK);
}

void lab_copy(struct lab *l, uint32_t i, uint32_t k)
{
	struct err err = {0};
	struct catalog_conn *from, *to;
	bool news;
	assert_int_equal(catalog_take(l->node[k].c, &from, &err), OK);
	assert_int_equal(catalog_take(l->node[i].c, &to, &err), OK);
	assert_int_equal(catalog_run(to, "BEGIN IMMEDIATE", &err), OK);
	sqlite3_stmt *st = catalog_stmt(from, "SELECT ulid FROM block_versions", &err);
	while (sqlite3_step(st) == SQLITE_ROW) {
		struct ulid u;
		struct feed_record r;
		assert_true(ulid_parse(catalog_column(st, 0), &u));
		assert_int_equal(feed_record_of(l->node[k].c, from, u, &r, &err), OK);
		assert_int_equal(feed_record_take(l->node[i].c, to, &r, &l->arena, &news, &err), OK);
	}
	assert_int_equal(catalog_end(to, OK, &err), OK);
	catalog_give(l->node[k].c, from);
	catalog_give(l->node[i].c, to);
	arena_reset(&l->arena);
}

void lab_prune(struct lab *l, uint32_t i, uint64_t keep)
{
	struct err err = {0};
	struct catalog_conn *conn;
	char sql[128];
	snprintf(sql, sizeof sql, "DELETE FROM feed WHERE seq<(SELECT max(seq) FROM feed)-%" PRIu64, keep);
	assert_int_equal(catalog_take(l->node[i].c, &conn, &err), OK);
	assert_int_equal(catalog_run(conn, sql, &err), OK);
	catalog_give(l->node[i].c, conn);
}

/* ---- looking ---- */

uint64_t lab_digest(struct lab *l, uint32_t i)
{
	struct err err = {0};
	uint64_t digest, live;
	if (catalog_digest(l->node[i].c, &digest, &live, &err) != OK)
		fail_msg("%s", err.msg);
	return digest;
}

uint64_t lab_digest_by_hand(struct lab *l, uint32_t i)
{
	struct err err = {0};
	struct catalog_conn *conn;
	uint64_t sum = 0;
	assert_int_equal(catalog_take(l->node[i].c, &conn, &err), OK);
	sqlite3_stmt *st = catalog_stmt(conn, "SELECT ulid, marked, meta FROM blocks WHERE state='live'", &err);
	while (sqlite3_step(st) == SQLITE_ROW) {
		struct ulid u;
		struct span meta = catalog_column(st, 2);
		assert_true(ulid_parse(catalog_column(st, 0), &u));
		sum += feed_digest_of(u, sqlite3_column_int(st, 1), crc32c(0, meta.p, meta.n));
	}
	catalog_give(l->node[i].c, conn);
	return sum;
}

void lab_account(struct lab *l, uint32_t i, uint32_t block, uint64_t *version, uint32_t *rank, uint32_t *meta_crc)
{
	struct err err = {0};
	struct catalog_conn *conn;
	struct catalog_standing s;
	*version = 0;
	*rank = *meta_crc = 0;
	assert_int_equal(catalog_take(l->node[i].c, &conn, &err), OK);
	sqlite3_stmt *st = catalog_stmt(conn, "SELECT version FROM block_versions WHERE ulid=?1", &err);
	catalog_bind_ulid(st, 1, lab_ulid(block));
	if (sqlite3_step(st) == SQLITE_ROW) {
		*version = (uint64_t)sqlite3_column_int64(st, 0);
		assert_int_equal(catalog_standing(conn, lab_ulid(block), &s, &err), OK);
		*rank = feed_rank(s.state, s.marked);
		*meta_crc = s.meta_crc;
	}
	catalog_give(l->node[i].c, conn);
}

const char *lab_rows(struct lab *l, uint32_t i)
{
	static char text[2][65536];
	static int turn;
	struct err err = {0};
	struct catalog_conn *conn;
	char *out = text[turn++ % 2];
	size_t at = 0;
	out[0] = 0;
	assert_int_equal(catalog_take(l->node[i].c, &conn, &err), OK);
	sqlite3_stmt *st = catalog_stmt(conn,
		"SELECT v.ulid, v.version, coalesce(b.state, 'gone'), b.marked, b.reason, b.objects, b.meta FROM block_versions v LEFT JOIN blocks b "
		"ON "
		"b.ulid=v.ulid ORDER BY v.ulid",
		&err);
	assert_non_null(st);
	while (sqlite3_step(st) == SQLITE_ROW)
		for (int k = 0; k < 7; k++) {
			struct span s = catalog_column(st, k);
			at += (size_t)snprintf(out + at, sizeof text[0] - at, "%.*s%s", SPAN_ARG(s), k == 6 ? "\n" : " ");
			assert_true(at < sizeof text[0]);
		}
	catalog_give(l->node[i].c, conn);
	return out;
}

size_t lab_planned(struct lab *l, uint32_t i)
{
	struct err err = {0};
	struct catalog_block *v;
	size_t n;
	if (catalog_plan(l->node[i].c, SPAN("t"), 0, 100000 * HOUR, &l->arena, &v, &n, NULL, &err) != OK)
		fail_msg("%s", err.msg);
	arena_reset(&l->arena);
	return n;
}
