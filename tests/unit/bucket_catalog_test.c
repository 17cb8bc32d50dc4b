/* The catalog: what it says of blocks, what it finds in a bucket, and that a damaged file never answers wrongly.
 *
 * One file because every promise is held against the same made-up bucket and the same questions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <sqlite3.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "bucket/bucket_catalog_int.h"
#include "tests/support/shaky_bucket.h"
#include "tests/support/tmp.h"

#define HOUR INT64_C(3600000)

struct fixture {
	const char *dir;
	struct catalog *c;
	struct bucket *bucket;
	struct shaky *sh;
	struct arena arena;
};

static uint64_t seed_of_run(void)
{
	const char *s = getenv("SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : io_random_u64();
	print_message("SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

static uint64_t next_random(uint64_t *x)
{
	*x += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = *x;
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static struct catalog *open_catalog(const char *dir, bool read_only, bool *rebuilt)
{
	struct catalog *c = NULL;
	struct err err = {0};
	struct catalog_config cfg = {.path = tmp_path("%s/catalog.sqlite", dir), .node = "node-1", .read_only = read_only};
	if (catalog_open(&cfg, &c, rebuilt, &err) != OK)
		fail_msg("%s", err.msg);
	return c;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct err err = {0};
	struct bucket *inner;
	bool rebuilt;
	f->dir = tmp_dir();
	arena_init(&f->arena, GIB);
	assert_int_equal(bucket_open("default", SPAN(""), tmp_path("%s/bucket", f->dir), &inner, &err), OK);
	f->bucket = shaky_bucket(inner, &f->sh);
	f->c = open_catalog(f->dir, false, &rebuilt);
	assert_true(rebuilt);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	catalog_close(f->c);
	bucket_close(f->bucket);
	arena_free(&f->arena);
	free(f);
	return 0;
}

static struct ulid ulid_n(uint32_t n)
{
	struct ulid u = {{1, 0x8f, 0, 0, 0, 0}};
	put_be32(u.b + 12, n);
	return u;
}

/* ---- making blocks up ---- */

struct made {
	uint32_t n;
	const char *tenant;
	int64_t mint, maxt;
	int64_t resolution;
	uint32_t level;
	uint32_t sources[8]; /* 0 ends; none: the block itself */
};

static struct block_meta meta_of(struct fixture *f, const struct made *m)
{
	struct label *ext = arena_calloc(&f->arena, 2, sizeof *ext);
	struct ulid *sources = arena_calloc(&f->arena, 8, sizeof *sources);
	struct block_file *files = arena_calloc(&f->arena, 3, sizeof *files);
	size_t n = 0;
	for (; n < 8 && m->sources[n]; n++)
		sources[n] = ulid_n(m->sources[n]);
	if (n == 0)
		sources[n++] = ulid_n(m->n);
	ext[0] = (struct label){SPAN("replica"), SPAN("a")};
	ext[1] = (struct label){SPAN("tenant_id"), span_cstr(m->tenant ? m->tenant : "t")};
	files[0] = (struct block_file){.rel_path = SPAN("chunks/000001"), .size_bytes = 7};
	files[1] = (struct block_file){.rel_path = SPAN("index"), .size_bytes = 5};
	files[2] = (struct block_file){.rel_path = SPAN("meta.json")};
	return (struct block_meta){.ulid = ulid_n(m->n),
		.mint = m->mint,
		.maxt = m->maxt,
		.n_samples = m->n,
		.n_series = 1,
		.n_chunks = 1,
		.level = m->level ? m->level : 1,
		.sources = sources,
		.n_sources = n,
		.has_thanos = true,
		.ext_labels = {ext, 2},
		.resolution_ms = m->resolution,
		.source = SPAN("receive"),
		.files = files,
		.n_files = 3};
}

/* Without a sync: thousands of them. */
static void put_object(struct fixture *f, uint32_t n, const char *name, struct span data)
{
	struct err err = {0};
	int fd;
	const char *dir = tmp_path("%s/bucket/%s/chunks", f->dir, ulid_text(ulid_n(n)).s);
	assert_int_equal(io_mkdirs(dir, &err), OK);
	assert_int_equal(io_open(tmp_path("%s/bucket/%s/%s", f->dir, ulid_text(ulid_n(n)).s, name), IO_WRITE | IO_CREATE | IO_TRUNC, &fd, &err), OK);
	assert_int_equal(io_pwrite(fd, data.p, data.n, 0, &err), OK);
	io_close(fd);
}

static void drop_object(struct fixture *f, uint32_t n, const char *name)
{
	struct err err = {0};
	assert_int_equal(io_unlink(tmp_path("%s/bucket/%s/%s", f->dir, ulid_text(ulid_n(n)).s, name), &err), OK);
}

static void drop_block(struct fixture *f, uint32_t n)
{
	struct err err = {0};
	assert_int_equal(io_remove_tree(tmp_path("%s/bucket/%s", f->dir, ulid_text(ulid_n(n)).s), &err), OK);
}

static void put_block(struct fixture *f, const struct made *m)
{
	struct block_meta meta = meta_of(f, m);
	struct buf json;
	buf_init(&json, MIB);
	assert_int_equal(block_meta_write(&meta, &json), OK);
	put_object(f, m->n, "chunks/000001", SPAN("chunks!"));
	put_object(f, m->n, "index", SPAN("index"));
	put_object(f, m->n, "meta.json", span_of(json.p, json.n));
	buf_free(&json);
}

static struct catalog_audit_stats audit(struct fixture *f)
{
	struct catalog_audit_stats st;
	struct err err = {0};
	if (catalog_audit(f->c, f->bucket, NULL, &st, &err) != OK)
		fail_msg("%s", err.msg);
	return st;
}

/* The plan as "1 2L 7": numbers of blocks in order, L where a directory is here. */
static const char *plan(struct fixture *f, const char *tenant, int64_t mint, int64_t maxt)
{
	static char text[4096];
	struct catalog_block *v;
	size_t n, at = 0;
	struct err err = {0};
	if (catalog_plan(f->c, span_cstr(tenant), mint, maxt, &f->arena, &v, &n, NULL, &err) != OK)
		fail_msg("%s", err.msg);
	uint32_t last = 0;
	text[0] = 0;
	for (size_t round = 0; round < n; round++) {
		uint32_t least = UINT32_MAX;
		bool local = false;
		for (size_t i = 0; i < n; i++) {
			uint32_t k = get_be32(v[i].ulid.b + 12);
			if (k > last && k < least) {
				least = k;
				local = v[i].local;
			}
		}
		at += (size_t)snprintf(text + at, sizeof text - at, "%s%u%s", round ? " " : "", least, local ? "L" : "");
		last = least;
	}
	return text;
}

static struct catalog_block get(struct fixture *f, uint32_t n)
{
	struct catalog_block b;
	struct err err = {0};
	if (catalog_get(f->c, ulid_n(n), &f->arena, &b, &err) != OK)
		fail_msg("%s", err.msg);
	return b;
}

static bool known(struct fixture *f, uint32_t n)
{
	struct catalog_block b;
	return catalog_get(f->c, ulid_n(n), &f->arena, &b, NULL) == OK;
}

static const char *text_of(struct span s)
{
	static char text[1024];
	snprintf(text, sizeof text, "%.*s", SPAN_ARG(s));
	return text;
}

/* The feed as "1 live 5, 2 gone 5". */
static const char *feed(struct fixture *f)
{
	static char text[8192];
	sqlite3 *db;
	sqlite3_stmt *st;
	size_t at = 0;
	assert_int_equal(sqlite3_open_v2(tmp_path("%s/catalog.sqlite", f->dir), &db, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_prepare_v2(db, "SELECT seq, kind, ulid FROM feed ORDER BY seq", -1, &st, NULL), SQLITE_OK);
	text[0] = 0;
	while (sqlite3_step(st) == SQLITE_ROW) {
		struct ulid u;
		assert_true(ulid_parse(span_cstr((const char *)sqlite3_column_text(st, 2)), &u));
		at += (size_t)snprintf(text + at, sizeof text - at, "%s%d %s %u", at ? ", " : "", sqlite3_column_int(st, 0),
			(const char *)sqlite3_column_text(st, 1), get_be32(u.b + 12));
	}
	sqlite3_finalize(st);
	sqlite3_close(db);
	return text;
}

/* ---- this node's blocks ---- */

static void local_states(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct catalog_block *v;
	size_t n;
	struct block_meta a = meta_of(f, &(struct made){1, "t", 0, HOUR, .level = 1}), b = meta_of(f, &(struct made){2, "t", -HOUR, 0, .level = 1});
	assert_int_equal(catalog_add_local(f->c, &a, 100, &err), OK);
	assert_int_equal(catalog_add_local(f->c, &b, 200, &err), OK);
	assert_int_equal(catalog_add_local(f->c, &a, 100, &err), OK);
	assert_string_equal(plan(f, "t", -HOUR, HOUR), "1L 2L");
	assert_false(get(f, 1).in_bucket);
	assert_int_equal(get(f, 1).state, BLOCK_LOCAL);
	assert_string_equal(text_of(get(f, 1).ext_labels.v[1].value), "t");

	/* oldest first */
	assert_int_equal(catalog_pending(f->c, &f->arena, &v, &n, &err), OK);
	assert_int_equal(n, 2);
	assert_true(ulid_eq(v[0].ulid, ulid_n(2)));

	assert_int_equal(catalog_set_local_state(f->c, ulid_n(2), BLOCK_UPLOADING, NULL, &err), OK);
	assert_int_equal(get(f, 2).state, BLOCK_UPLOADING);
	assert_int_equal(catalog_uploaded(f->c, &b, 222, &err), OK);
	assert_int_equal(get(f, 2).state, BLOCK_LIVE);
	assert_true(get(f, 2).in_bucket && get(f, 2).local);
	assert_int_equal(get(f, 2).bytes, 222);
	assert_int_equal(catalog_local_live(f->c, &f->arena, &v, &n, &err), OK);
	assert_int_equal(n, 1);

	/* only live ones may be forgotten */
	assert_int_equal(catalog_drop_local(f->c, ulid_n(1), &err), OK);
	assert_int_equal(catalog_drop_local(f->c, ulid_n(2), &err), OK);
	assert_string_equal(plan(f, "t", -HOUR, HOUR), "1L 2");

	assert_int_equal(catalog_set_local_state(f->c, ulid_n(1), BLOCK_QUARANTINED, "chunks/000001: checksum", &err), OK);
	assert_string_equal(text_of(get(f, 1).reason), "chunks/000001: checksum");
	assert_string_equal(plan(f, "t", -HOUR, HOUR), "2");
	assert_int_equal(catalog_pending(f->c, &f->arena, &v, &n, &err), OK);
	assert_int_equal(n, 0);
	assert_int_equal(catalog_set_local_state(f->c, ulid_n(9), BLOCK_UPLOADING, NULL, &err), ERR_NOTFOUND);
	/* what is only here is no change of the bucket */
	assert_string_equal(feed(f), "1 live 2");
}

/* Text that is no UTF-8 is refused in words, and nothing of it stays. */
static void meta_that_cant_be_written(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct block_meta a = meta_of(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	a.ext_labels.v[0].value = SPAN("\xff");
	assert_int_equal(catalog_add_local(f->c, &a, 1, &err), ERR_INVALID);
	assert_non_null(strstr(err.msg, "UTF-8"));
	assert_false(known(f, 1));
}

/* A damaged copy leaves the other one readable, and a local copy never goes while the bucket's is not live. */
static void quarantine_takes_one_copy(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct catalog_block *v;
	size_t n;
	struct block_meta a = meta_of(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	assert_int_equal(catalog_add_local(f->c, &a, 1, &err), OK);
	assert_int_equal(catalog_uploaded(f->c, &a, 1, &err), OK);
	assert_int_equal(catalog_quarantine(f->c, ulid_n(1), "bad object", &err), OK);
	assert_string_equal(plan(f, "t", 0, HOUR), "1L");
	assert_int_equal(catalog_local_live(f->c, &f->arena, &v, &n, &err), OK);
	assert_int_equal(n, 0);
	assert_int_equal(catalog_set_local_state(f->c, ulid_n(1), BLOCK_QUARANTINED, "bad too", &err), OK);
	assert_string_equal(plan(f, "t", 0, HOUR), "");
	assert_int_equal(catalog_quarantine(f->c, ulid_n(7), "?", &err), ERR_NOTFOUND);

	struct block_meta b = meta_of(f, &(struct made){2, "t", 0, HOUR, .level = 1});
	assert_int_equal(catalog_add_local(f->c, &b, 1, &err), OK);
	assert_int_equal(catalog_uploaded(f->c, &b, 1, &err), OK);
	assert_int_equal(catalog_set_local_state(f->c, ulid_n(2), BLOCK_QUARANTINED, "bad directory", &err), OK);
	assert_string_equal(plan(f, "t", 0, HOUR), "2");
}

/* ---- planning ---- */

static void plan_edges(void **state)
{
	struct fixture *f = *state;
	put_block(f, &(struct made){1, "t", 0, 2 * HOUR, .level = 1});
	put_block(f, &(struct made){2, "t", 2 * HOUR, 4 * HOUR, .level = 1});
	put_block(f, &(struct made){3, "other", 0, 2 * HOUR, .level = 1});
	put_block(f, &(struct made){4, "t", 0, 2 * HOUR, .resolution = 300000, .level = 1});
	put_block(f, &(struct made){5, "t", INT64_MIN, INT64_MAX, .level = 1});
	put_block(f, &(struct made){6, "t", 5 * HOUR, 5 * HOUR + 1, .level = 1});
	put_block(f, &(struct made){7, "t", -8 * HOUR, -6 * HOUR, .level = 1});
	put_block(f, &(struct made){8, "t", INT64_MIN + HOUR, INT64_MIN + 3 * HOUR, .level = 1});
	assert_int_equal(audit(f).added, 8);
	assert_string_equal(plan(f, "t", INT64_MIN, INT64_MAX), "1 2 5 6 7 8");
	assert_string_equal(plan(f, "t", INT64_MIN, INT64_MIN), "5");
	assert_string_equal(plan(f, "t", INT64_MIN, INT64_MIN + HOUR), "5 8");
	assert_string_equal(plan(f, "t", INT64_MIN + 3 * HOUR - 1, INT64_MIN + 3 * HOUR), "5 8");
	assert_string_equal(plan(f, "t", INT64_MIN + 3 * HOUR, -9 * HOUR), "5");
	assert_string_equal(plan(f, "t", 0, 0), "1 5");
	assert_string_equal(plan(f, "t", 2 * HOUR - 1, 2 * HOUR - 1), "1 5");
	assert_string_equal(plan(f, "t", 2 * HOUR, 2 * HOUR), "2 5");
	assert_string_equal(plan(f, "t", 2 * HOUR - 1, 2 * HOUR), "1 2 5");
	assert_string_equal(plan(f, "t", 4 * HOUR, 5 * HOUR - 1), "5");
	assert_string_equal(plan(f, "t", 4 * HOUR, 5 * HOUR), "5 6");
	assert_string_equal(plan(f, "t", 5 * HOUR + 1, INT64_MAX), "5");
	assert_string_equal(plan(f, "t", INT64_MIN, -8 * HOUR - 1), "5 8");
	assert_string_equal(plan(f, "t", INT64_MIN, -8 * HOUR), "5 7 8");
	assert_string_equal(plan(f, "t", -6 * HOUR, -1), "5");
	assert_string_equal(plan(f, "other", INT64_MIN, INT64_MAX), "3");
	assert_string_equal(plan(f, "nobody", INT64_MIN, INT64_MAX), "");
	assert_int_equal(get(f, 4).resolution_ms, 300000);
}

/* Random blocks and ranges against the definition. */
static void plan_model(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	uint64_t r = seed_of_run();
	enum { N = 400 };
	static struct made m[N + 1];
	struct catalog_conn *conn;
	assert_int_equal(catalog_take(f->c, &conn, &err), OK);
	assert_int_equal(catalog_run(conn, "BEGIN IMMEDIATE", &err), OK);
	for (uint32_t i = 1; i <= N; i++) {
		m[i] = (struct made){i, "t", (int64_t)(next_random(&r) % 2000) - 1000, 0, .level = 1};
		m[i].maxt = m[i].mint + 1 + (int64_t)(next_random(&r) % (UINT64_C(1) << next_random(&r) % 12));
		struct block_meta meta = meta_of(f, &m[i]);
		const struct catalog_put p = {.meta = &meta, .json = SPAN("{}"), .state = BLOCK_LIVE};
		assert_int_equal(catalog_put_block(f->c, conn, &p, &err), OK);
	}
	assert_int_equal(catalog_end(conn, OK, &err), OK);
	catalog_give(f->c, conn);
	for (int round = 0; round < 300; round++) {
		int64_t a = (int64_t)(next_random(&r) % 7000) - 2000, b = a + (int64_t)(next_random(&r) % 300);
		char want[4096] = "";
		size_t at = 0;
		for (uint32_t i = 1; i <= N; i++)
			if (m[i].mint <= b && m[i].maxt > a)
				at += (size_t)snprintf(want + at, sizeof want - at, "%s%u", at ? " " : "", i);
		assert_string_equal(plan(f, "t", a, b), want);
		arena_reset(&f->arena);
	}
}

/* 1 and 2 were compacted into 3. */
static void marked_blocks(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	put_block(f, &(struct made){1, "t", 0, 2 * HOUR, .level = 1});
	put_block(f, &(struct made){2, "t", 2 * HOUR, 4 * HOUR, .level = 1});
	put_object(f, 1, "deletion-mark.json", SPAN("{}"));
	put_object(f, 2, "deletion-mark.json", SPAN("{}"));
	audit(f);
	assert_true(get(f, 1).marked);
	/* nothing covers them */
	assert_string_equal(plan(f, "t", 0, 4 * HOUR), "1 2");
	/* one that holds a part of the sources covers that block only */
	put_block(f, &(struct made){3, "t", 0, 4 * HOUR, .level = 2, .sources = {1, 9}});
	audit(f);
	assert_string_equal(plan(f, "t", 0, 4 * HOUR), "2 3");
	put_block(f, &(struct made){4, "t", 0, 4 * HOUR, .level = 2, .sources = {1, 2}});
	audit(f);
	assert_string_equal(plan(f, "t", 0, 4 * HOUR), "3 4");
	/* a covering block of another tenant or resolution is none */
	put_block(f, &(struct made){5, "u", 0, 2 * HOUR, .level = 1});
	put_object(f, 5, "deletion-mark.json", SPAN("{}"));
	put_block(f, &(struct made){6, "v", 0, 2 * HOUR, .level = 2, .sources = {5}});
	put_block(f, &(struct made){7, "u", 0, 2 * HOUR, .resolution = 300000, .level = 2, .sources = {5}});
	audit(f);
	assert_string_equal(plan(f, "u", 0, 4 * HOUR), "5");
	/* the covering one proves bad: its sources are read again */
	assert_int_equal(catalog_quarantine(f->c, ulid_n(4), "chunks/000001: checksum", &err), OK);
	assert_string_equal(plan(f, "t", 0, 4 * HOUR), "2 3");
	/* the covering one is marked itself, without a successor */
	put_object(f, 3, "deletion-mark.json", SPAN("{}"));
	audit(f);
	assert_string_equal(plan(f, "t", 0, 4 * HOUR), "1 2 3");
	/* a mark that was taken back */
	drop_object(f, 1, "deletion-mark.json");
	assert_int_equal(audit(f).changed, 1);
	assert_false(get(f, 1).marked);
}

/* ---- the audit ---- */

static void audit_changes(void **state)
{
	struct fixture *f = *state;
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	put_block(f, &(struct made){2, "t", HOUR, 2 * HOUR, .level = 1});
	put_object(f, 3, "index", SPAN("half"));
	put_object(f, 4, "meta.json", SPAN("{ nonsense"));
	put_block(f, &(struct made){5, "t", 0, HOUR, .level = 1});
	struct err err = {0};
	assert_int_equal(io_mkdirs(tmp_path("%s/bucket/debug/metas", f->dir), &err), OK);
	assert_int_equal(io_write_file(tmp_path("%s/bucket/debug/metas/x.json", f->dir), SPAN("{}"), &err), OK);
	assert_int_equal(io_write_file(tmp_path("%s/bucket/top", f->dir), SPAN("?"), &err), OK);

	assert_int_equal(catalog_complete(f->c, 0, &err), ERR_AGAIN);
	struct catalog_audit_stats st = audit(f);
	assert_int_equal(catalog_complete(f->c, 0, &err), OK);
	assert_int_equal(st.objects, 13);
	assert_int_equal(st.blocks, 4);
	assert_int_equal(st.added, 4);
	assert_int_equal(st.partial, 1);
	assert_int_equal(st.bad, 1);
	assert_int_equal(get(f, 4).state, BLOCK_QUARANTINED);
	assert_non_null(strstr(text_of(get(f, 4).reason), "meta.json"));
	assert_string_equal(plan(f, "t", 0, 2 * HOUR), "1 2 5");

	/* nothing changed: no GET at all */
	uint64_t gets = f->sh->gets;
	st = audit(f);
	assert_int_equal(st.added + st.changed + st.removed + st.bad, 0);
	assert_int_equal(f->sh->gets, gets);
	assert_int_equal(f->sh->sizes, 0);

	/* what is missed once stays, twice it goes */
	drop_block(f, 2);
	assert_int_equal(audit(f).removed, 0);
	assert_string_equal(plan(f, "t", 0, 2 * HOUR), "1 2 5");
	assert_int_equal(audit(f).removed, 1);
	assert_string_equal(plan(f, "t", 0, 2 * HOUR), "1 5");
	assert_false(known(f, 2));
	/* missed, back, missed: it stays */
	drop_block(f, 5);
	audit(f);
	put_block(f, &(struct made){5, "t", 0, HOUR, .level = 1});
	audit(f);
	drop_block(f, 5);
	audit(f);
	assert_true(known(f, 5));

	/* a partial one that is completed, a bad one that is mended */
	put_block(f, &(struct made){3, "t", 0, HOUR, .level = 1});
	put_block(f, &(struct made){4, "t", 0, HOUR, .level = 1});
	audit(f);
	assert_string_equal(plan(f, "t", 0, 2 * HOUR), "1 3 4");

	/* quarantined by a read: only a reread gives it another chance */
	assert_int_equal(catalog_quarantine(f->c, ulid_n(1), "bad", &err), OK);
	audit(f);
	assert_string_equal(plan(f, "t", 0, 2 * HOUR), "3 4");
	assert_int_equal(catalog_audit(f->c, f->bucket, &(struct catalog_audit_options){.reread = true}, &st, &err), OK);
	assert_string_equal(plan(f, "t", 0, 2 * HOUR), "1 3 4");
}

static int64_t an_hour_ahead(void)
{
	return io_posix.now_ms() + HOUR;
}

/* A block that was found while the clock was ahead goes with its objects, not when the clock is there again. */
static void audit_after_the_clock_was_ahead(void **state)
{
	struct fixture *f = *state;
	const struct io_ops *before = io_ops;
	struct io_ops ops = *io_ops;
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	ops.now_ms = an_hour_ahead;
	io_ops = &ops;
	uint64_t added = audit(f).added;
	io_ops = before;
	assert_int_equal(added, 1);
	drop_block(f, 1);
	assert_int_equal(audit(f).removed, 0);
	assert_int_equal(audit(f).removed, 1);
}

/* What a block's objects are is known from the listing, whoever wrote it. */
static void audit_objects(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct block_file *v;
	size_t n;
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	put_object(f, 1, "tombstones", SPAN("123456789"));
	audit(f);
	struct catalog_block b = get(f, 1);
	assert_int_equal(catalog_objects(&b, &f->arena, &v, &n, &err), OK);
	assert_int_equal(n, 4);
	assert_string_equal(text_of(v[0].rel_path), "chunks/000001");
	assert_int_equal(v[0].size_bytes, 7);
	assert_string_equal(text_of(v[3].rel_path), "tombstones");
	assert_int_equal(v[3].size_bytes, 9);

	/* own uploads: the same text before and after they were listed */
	struct made m = {2, "t", 0, HOUR, .level = 1};
	struct block_meta meta = meta_of(f, &m);
	put_block(f, &m);
	assert_int_equal(catalog_uploaded(f->c, &meta, 1, &err), OK);
	char before[1024];
	snprintf(before, sizeof before, "%s", text_of(get(f, 2).objects));
	uint64_t gets = f->sh->gets;
	struct catalog_audit_stats st = audit(f);
	assert_int_equal(st.changed + st.added, 0);
	assert_int_equal(f->sh->gets, gets);
	assert_string_equal(text_of(get(f, 2).objects), before);
	/* the listing's time was noted: an overwritten meta.json of the same size is seen */
	assert_int_equal(audit(f).changed, 0);

	/* tombstones that come later need no GET of meta.json */
	put_object(f, 2, "tombstones", SPAN("later"));
	assert_int_equal(audit(f).changed, 0);
	assert_int_equal(f->sh->gets, gets);
	assert_non_null(strstr(text_of(get(f, 2).objects), "\"tombstones\":5"));
}

/* A bucket that fails at any call ends the audit with its words, keeps what was known, and the next one completes. */
static void audit_failures(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct catalog_audit_stats st;
	for (uint32_t i = 1; i <= 20; i++)
		put_block(f, &(struct made){i, "t", 0, HOUR, .level = 1});
	for (uint64_t n = 1;; n++) {
		bool rebuilt;
		catalog_close(f->c);
		assert_int_equal(io_unlink(tmp_path("%s/catalog.sqlite", f->dir), &err), OK);
		f->c = open_catalog(f->dir, false, &rebuilt);
		assert_true(rebuilt);
		f->sh->calls = 0;
		f->sh->fail_from = f->sh->fail_to = n;
		errc rc = catalog_audit(f->c, f->bucket, NULL, &st, &err);
		f->sh->fail_from = 0;
		if (rc == OK)
			break;
		assert_int_equal(rc, ERR_NET);
		assert_int_equal(catalog_complete(f->c, 0, &err), ERR_NET);
		assert_non_null(strstr(err.msg, "connection reset by the test"));
		assert_int_equal(catalog_audit(f->c, f->bucket, NULL, &st, &err), OK);
		assert_int_equal(catalog_complete(f->c, 0, &err), OK);
		struct catalog_block *v;
		size_t rows;
		assert_int_equal(catalog_list(f->c, &f->arena, &v, &rows, &err), OK);
		assert_int_equal(rows, 20);
	}
	assert_true(f->sh->calls >= 21);
}

/* ---- lost, older, newer, read beside ---- */

static void rebuilt_after_delete(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	bool rebuilt;
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	put_block(f, &(struct made){2, "t", 0, HOUR, .level = 1});
	audit(f);
	catalog_close(f->c);
	f->c = open_catalog(f->dir, false, &rebuilt);
	assert_false(rebuilt);
	assert_string_equal(plan(f, "t", 0, HOUR), "1 2");
	catalog_close(f->c);
	assert_int_equal(io_unlink(tmp_path("%s/catalog.sqlite", f->dir), &err), OK);
	f->c = open_catalog(f->dir, false, &rebuilt);
	assert_true(rebuilt);
	assert_int_equal(catalog_complete(f->c, 1, &err), ERR_AGAIN);
	audit(f);
	assert_string_equal(plan(f, "t", 0, HOUR), "1 2");
	/* garbage of any length */
	for (size_t n = 0; n <= 8192; n = n ? n * 2 : 1) {
		char *junk = malloc(n + 1);
		io_random(junk, n);
		catalog_close(f->c);
		assert_int_equal(io_write_file(tmp_path("%s/catalog.sqlite", f->dir), span_of(junk, n), &err), OK);
		free(junk);
		f->c = open_catalog(f->dir, false, &rebuilt);
		assert_true(rebuilt);
		audit(f);
		assert_string_equal(plan(f, "t", 0, HOUR), "1 2");
	}
}

static void run_sql(struct fixture *f, const char *sql)
{
	sqlite3 *db;
	char *msg = NULL;
	assert_int_equal(sqlite3_open(tmp_path("%s/catalog.sqlite", f->dir), &db), SQLITE_OK);
	if (sqlite3_exec(db, sql, NULL, NULL, &msg) != SQLITE_OK)
		fail_msg("%s", msg);
	sqlite3_close(db);
}

static void newer_is_refused(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct arena a;
	struct span before, after;
	arena_init(&a, 16 * MIB);
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	audit(f);
	catalog_close(f->c);
	run_sql(f, "PRAGMA user_version=3; UPDATE facts SET value='3' WHERE name='schema'; PRAGMA wal_checkpoint(TRUNCATE)");
	const char *path = tmp_path("%s/catalog.sqlite", f->dir);
	assert_int_equal(io_read_file(path, 16 * MIB, &a, &before, &err), OK);
	bool rebuilt;
	struct catalog_config cfg = {.path = path, .node = "n"};
	assert_int_equal(catalog_open(&cfg, &f->c, &rebuilt, &err), ERR_UNSUPPORTED);
	assert_non_null(strstr(err.msg, "version 3"));
	assert_int_equal(io_read_file(path, 16 * MIB, &a, &after, &err), OK);
	assert_true(span_eq(before, after));
	f->c = NULL;
	arena_free(&a);
}

/* A file of version 1 keeps its rows: what it lacks is added. */
static void older_is_brought_up(void **state)
{
	struct fixture *f = *state;
	bool rebuilt;
	uint64_t before, after, live;
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	put_block(f, &(struct made){2, "t", 0, HOUR, .level = 1});
	audit(f);
	assert_int_equal(catalog_digest(f->c, &before, &live, NULL), OK);
	assert_int_equal(live, 2);
	catalog_close(f->c);
	run_sql(f, "DROP TABLE feed; DROP TABLE followed; DROP TABLE block_versions; DELETE FROM facts WHERE name IN ('feed', 'digest');"
		   "CREATE TABLE feed (node TEXT NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, kind TEXT NOT NULL, ulid TEXT NOT NULL,"
		   " PRIMARY KEY (node, seq)) STRICT, WITHOUT ROWID; INSERT INTO feed VALUES ('n', 1, 1, 'live', 'x');"
		   "PRAGMA user_version=1; UPDATE facts SET value='1' WHERE name='schema'");
	struct catalog *old;
	struct err err = {0};
	struct catalog_config cfg = {.path = tmp_path("%s/catalog.sqlite", f->dir), .node = "", .read_only = true};
	assert_int_equal(catalog_open(&cfg, &old, &rebuilt, &err), ERR_UNSUPPORTED);
	f->c = open_catalog(f->dir, false, &rebuilt);
	assert_false(rebuilt);
	assert_string_equal(plan(f, "t", 0, HOUR), "1 2");
	assert_int_equal(catalog_digest(f->c, &after, &live, NULL), OK);
	assert_true(after == before && live == 2);
	assert_string_equal(feed(f), "");
	assert_int_equal(catalog_quarantine(f->c, ulid_n(1), "bad", &err), OK);
	assert_string_equal(feed(f), "1 quarantined 1");
	assert_int_equal(audit(f).changed, 0);
}

/* A schema that says its version but not its words is damage. */
static void altered_schema_is_damage(void **state)
{
	struct fixture *f = *state;
	bool rebuilt;
	static const char *const changes[] = {
		"DROP INDEX blocks_by_time", "ALTER TABLE blocks RENAME COLUMN tenant TO tanant", "CREATE TABLE more (x)", "DROP TABLE feed"};
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	for (size_t i = 0; i < 4; i++) {
		catalog_close(f->c);
		run_sql(f, changes[i]);
		f->c = open_catalog(f->dir, false, &rebuilt);
		assert_true(rebuilt);
		audit(f);
		assert_string_equal(plan(f, "t", 0, HOUR), "1");
	}
}

static void read_only_beside_a_writer(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	bool rebuilt;
	put_block(f, &(struct made){1, "t", 0, HOUR, .level = 1});
	audit(f);
	struct catalog *beside = open_catalog(f->dir, true, &rebuilt), *writer = f->c;
	assert_false(rebuilt);
	f->c = beside;
	assert_string_equal(plan(f, "t", 0, HOUR), "1");
	f->c = writer;
	put_block(f, &(struct made){2, "t", 0, HOUR, .level = 1});
	audit(f);
	f->c = beside;
	assert_string_equal(plan(f, "t", 0, HOUR), "1 2");
	assert_int_equal(catalog_quarantine(beside, ulid_n(1), "no", &err), ERR_IO);
	catalog_close(beside);
	f->c = writer;
	/* without a writer, and without a file */
	catalog_close(f->c);
	f->c = open_catalog(f->dir, true, &rebuilt);
	assert_string_equal(plan(f, "t", 0, HOUR), "1 2");
	catalog_close(f->c);
	f->c = NULL;
	struct catalog *none;
	struct catalog_config cfg = {.path = tmp_path("%s/none.sqlite", f->dir), .node = "", .read_only = true};
	assert_int_not_equal(catalog_open(&cfg, &none, &rebuilt, &err), OK);
	struct io_stat st;
	assert_int_equal(io_stat(cfg.path, &st, &err), OK);
	assert_false(st.exists);
}

/* ---- damage ---- */

/* Everything that anybody can ask, as one text. ERR_CORRUPT: the catalog said that it is damaged. */
static errc answers(struct catalog *c, struct buf *out)
{
	errc rc = OK;
	struct err why, *err = &why;
	struct arena a;
	struct catalog_block *v;
	size_t n;
	arena_init(&a, 64 * MIB);
	buf_clear(out);
	TRY(catalog_list(c, &a, &v, &n, err));
	for (size_t i = 0; i < n; i++) {
		struct span json;
		TRY(catalog_meta_json(c, v[i].ulid, &a, &json, err));
		buf_printf(out, "%s %.*s %lld %lld %d %u %s %u %llu %llu %d %d %d %.*s %.*s\n%.*s\n", ulid_text(v[i].ulid).s, SPAN_ARG(v[i].tenant),
			(long long)v[i].mint, (long long)v[i].maxt, (int)v[i].resolution_ms, v[i].level, block_state_name(v[i].state),
			v[i].ext_labels.n, (unsigned long long)v[i].n_samples, (unsigned long long)v[i].bytes, v[i].in_bucket, v[i].local,
			v[i].marked, SPAN_ARG(v[i].reason), SPAN_ARG(v[i].objects), SPAN_ARG(json));
	}
	for (int64_t t = -HOUR; t < 10 * HOUR; t += HOUR / 2) {
		TRY(catalog_plan(c, SPAN("t"), t, t + HOUR, &a, &v, &n, NULL, err));
		buf_printf(out, "at %lld:", (long long)t);
		for (size_t i = 0; i < n; i++)
			buf_printf(out, " %s%d", ulid_text(v[i].ulid).s, v[i].local);
	}
	TRY(catalog_pending(c, &a, &v, &n, err));
	buf_printf(out, "pending %zu", n);
	TRY(catalog_local_live(c, &a, &v, &n, err));
	buf_printf(out, "local live %zu", n);
fail:
	arena_free(&a);
	return rc;
}

/* Local blocks as the server finds them again by their directories. */
static void fill(struct fixture *f, struct catalog *c)
{
	struct err err = {0};
	struct block_meta a = meta_of(f, &(struct made){20, "t", 6 * HOUR, 7 * HOUR, .level = 1});
	struct block_meta b = meta_of(f, &(struct made){21, "t", 7 * HOUR, 8 * HOUR, .level = 1});
	assert_int_equal(catalog_add_local(c, &a, 10, &err), OK);
	assert_int_equal(catalog_add_local(c, &b, 10, &err), OK);
	struct catalog *was = f->c;
	f->c = c;
	audit(f);
	f->c = was;
}

/* Any byte of the file, with any of its bits turned: it gives the same answers, or says that it is damaged and is the same again after the rebuild. */
static void any_flipped_byte(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct buf want, got;
	struct arena a;
	struct span file;
	bool rebuilt;
	uint64_t r = seed_of_run();
	buf_init(&want, 16 * MIB);
	buf_init(&got, 16 * MIB);
	arena_init(&a, 64 * MIB);
	put_block(f, &(struct made){1, "t", 0, 2 * HOUR, .level = 1});
	put_block(f, &(struct made){2, "t", 2 * HOUR, 4 * HOUR, .level = 1});
	put_block(f, &(struct made){3, "t", 0, 4 * HOUR, .level = 2, .sources = {1, 2}});
	put_object(f, 1, "deletion-mark.json", SPAN("{}"));
	put_object(f, 4, "meta.json", SPAN("bad"));
	fill(f, f->c);
	assert_int_equal(answers(f->c, &want), OK);
	catalog_close(f->c);
	f->c = NULL;
	const char *path = strdup(tmp_path("%s/catalog.sqlite", f->dir));
	assert_int_equal(io_read_file(path, 64 * MIB, &a, &file, &err), OK);
	size_t n_tries = getenv("VARVE_FULL") ? file.n : 400, at_open = 0, at_use = 0, harmless = 0;
	for (size_t i = 0; i < n_tries; i++) {
		size_t at = n_tries == file.n ? i : i < 100 ? i : next_random(&r) % file.n;
		uint8_t mask = (uint8_t)(1u << next_random(&r) % 8);
		char *bytes = malloc(file.n);
		int fd;
		memcpy(bytes, file.p, file.n);
		bytes[at] ^= (char)mask;
		assert_int_equal(io_open(path, IO_WRITE | IO_CREATE | IO_TRUNC, &fd, &err), OK);
		assert_int_equal(io_pwrite(fd, bytes, file.n, 0, &err), OK);
		io_close(fd);
		free(bytes);
		(void)!io_unlink(tmp_path("%s-wal", path), NULL);
		(void)!io_unlink(tmp_path("%s-shm", path), NULL);
		struct catalog *c = NULL;
		struct catalog_config cfg = {.path = path, .node = "node-1"};
		if (catalog_open(&cfg, &c, &rebuilt, &err) != OK)
			fail_msg("byte %zu, mask %02x: %s", at, mask, err.msg);
		errc rc = OK;
		if (rebuilt) {
			fill(f, c);
			at_open++;
		}
		rc = answers(c, &got);
		if (rc != OK) {
			if (rc != ERR_CORRUPT || !catalog_damaged(c))
				fail_msg("byte %zu, mask %02x: %s", at, mask, errc_name(rc));
			assert_int_equal(catalog_reset(c, &err), OK);
			fill(f, c);
			assert_false(catalog_damaged(c));
			assert_int_equal(answers(c, &got), OK);
			at_use++;
		} else if (!rebuilt) {
			harmless++;
		}
		if (want.n != got.n || memcmp(want.p, got.p, want.n) != 0)
			fail_msg("byte %zu, mask %02x: other answers\n%.*s\n---\n%.*s", at, mask, (int)want.n, (const char *)want.p, (int)got.n,
				(const char *)got.p);
		catalog_close(c);
		/* what was set aside */
		char **names;
		size_t n;
		struct arena list;
		arena_init(&list, MIB);
		assert_int_equal(io_listdir(f->dir, &list, &names, &n, &err), OK);
		for (size_t k = 0; k < n; k++)
			if (strstr(names[k], ".damaged-"))
				(void)!io_unlink(tmp_path("%s/%s", f->dir, names[k]), NULL);
		arena_free(&list);
	}
	print_message("%zu of %zu bytes: %zu met at open, %zu when used, %zu harmless\n", n_tries, file.n, at_open, at_use, harmless);
	assert_true(at_open > 0 && at_use > 0);
	free((char *)path);
	arena_free(&a);
	buf_free(&want);
	buf_free(&got);
}

/* ---- threads ---- */

struct crowd {
	struct fixture *f;
	uint32_t first;
	atomic_bool *stop;
};

static void *adder(void *arg)
{
	struct crowd *w = arg;
	struct err err = {0};
	struct fixture own = {.dir = w->f->dir, .c = w->f->c};
	arena_init(&own.arena, 64 * MIB);
	for (uint32_t i = 0; i < 12; i++) {
		struct block_meta m = meta_of(&own, &(struct made){w->first + i, "t", i * HOUR, (i + 1) * HOUR, .level = 1});
		assert_int_equal(catalog_add_local(own.c, &m, 1, &err), OK);
		assert_int_equal(catalog_set_local_state(own.c, m.ulid, BLOCK_UPLOADING, NULL, &err), OK);
		assert_int_equal(catalog_uploaded(own.c, &m, 2, &err), OK);
		assert_int_equal(catalog_set_ranges(own.c, &(struct catalog_ranges){m.ulid, {1, 2, 3, 4, 5}}, 1, &err), OK);
		assert_int_equal(catalog_drop_local(own.c, m.ulid, &err), OK);
	}
	arena_free(&own.arena);
	return NULL;
}

static void *reader(void *arg)
{
	struct crowd *w = arg;
	struct err err = {0};
	struct arena a;
	arena_init(&a, 64 * MIB);
	while (!atomic_load(w->stop)) {
		struct catalog_block *v;
		size_t n;
		assert_int_equal(catalog_plan(w->f->c, SPAN("t"), 0, 100 * HOUR, &a, &v, &n, NULL, &err), OK);
		assert_int_equal(catalog_list(w->f->c, &a, &v, &n, &err), OK);
		arena_reset(&a);
	}
	arena_free(&a);
	return NULL;
}

static void many_threads(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	pthread_t t[6];
	struct crowd w[6];
	atomic_bool stop = false;
	for (uint32_t i = 0; i < 6; i++) {
		w[i] = (struct crowd){f, 1 + i * 100, &stop};
		assert_int_equal(pthread_create(&t[i], NULL, i < 4 ? adder : reader, &w[i]), 0);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	atomic_store(&stop, true);
	pthread_join(t[4], NULL);
	pthread_join(t[5], NULL);
	struct catalog_block *v;
	size_t n;
	assert_int_equal(catalog_list(f->c, &f->arena, &v, &n, &err), OK);
	assert_int_equal(n, 48);
	for (size_t i = 0; i < n; i++)
		assert_true(v[i].in_bucket && !v[i].local && v[i].has_ranges && v[i].state == BLOCK_LIVE);
	/* the feed is dense */
	const char *text = feed(f);
	int lines = 1;
	for (const char *p = text; (p = strchr(p, ',')); p++)
		lines++;
	assert_int_equal(lines, 48);
}

/* ---- size ---- */

static void listing_of_ten_thousand(void **state)
{
	struct fixture *f = *state;
	uint32_t n = getenv("VARVE_FULL") ? 10000 : 1000;
	for (uint32_t i = 1; i <= n; i++) {
		put_block(f, &(struct made){i, "t", i * HOUR, (i + 1) * HOUR, .level = 1});
		arena_reset(&f->arena);
	}
	struct catalog_audit_stats st = audit(f);
	assert_int_equal(st.added, n);
	print_message("%u blocks: first audit %lld ms", n, (long long)st.duration_ms);
	st = audit(f);
	assert_int_equal(st.added + st.changed + st.removed, 0);
	print_message(", second %lld ms\n", (long long)st.duration_ms);
	assert_true(st.duration_ms < 5000);
}

/* A question's plan over a hundred thousand rows costs what its own rows cost, wherever in time it asks. */
static void plan_over_many_rows(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	enum { ROWS = 100000 };
	struct catalog_conn *conn;
	assert_int_equal(catalog_take(f->c, &conn, &err), OK);
	assert_int_equal(catalog_run(conn, "BEGIN IMMEDIATE", &err), OK);
	for (uint32_t i = 1; i <= ROWS; i++) {
		bool merged = i % 100 == 0;
		struct block_meta meta = meta_of(f, &(struct made){i, "t", i * 2 * HOUR, (i + (merged ? 80 : 1)) * 2 * HOUR, .level = 1});
		const struct catalog_put p = {.meta = &meta, .json = SPAN("{}"), .state = BLOCK_LIVE, .objects = SPAN("{\"index\":1}")};
		assert_int_equal(catalog_put_block(f->c, conn, &p, &err), OK);
		arena_reset(&f->arena);
	}
	assert_int_equal(catalog_end(conn, OK, &err), OK);
	catalog_give(f->c, conn);
	for (int k = 0; k < 4; k++) {
		struct catalog_block *v;
		size_t n;
		uint32_t at = k == 0 ? 5 : k == 1 ? ROWS / 2 : k == 2 ? ROWS - 3 : 2 * ROWS;
		int64_t best = INT64_MAX;
		for (int round = 0; round < 20; round++) {
			int64_t begin = io_mono_ns();
			assert_int_equal(catalog_plan(f->c, SPAN("t"), at * 2 * HOUR + 1, (at + 1) * 2 * HOUR, &f->arena, &v, &n, NULL, &err), OK);
			int64_t took = io_mono_ns() - begin;
			best = took < best ? took : best;
		}
		print_message("plan at row %u: %zu blocks in %lld us\n", at, n, (long long)best / 1000);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
		assert_true(best < 1000000);
#endif
	}
}

/* A tenant that is deleted: what was begun up to a time is in no plan, what is younger is, and others' are; by tenant, and until it is said otherwise. */
static void hidden_blocks_are_in_no_plan(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	for (uint32_t i = 1; i <= 6; i++)
		put_block(f, &(struct made){.n = i, .tenant = i % 2 ? "gone" : "stays", .mint = 0, .maxt = 2 * HOUR});
	audit(f);
	assert_string_equal(plan(f, "gone", 0, HOUR), "1 3 5");
	int64_t begun = ulid_time_ms(ulid_n(1));
	assert_int_equal(catalog_hide(f->c, SPAN("gone"), begun - 1, &err), OK);
	assert_string_equal(plan(f, "gone", 0, HOUR), "1 3 5");
	for (int again = 0; again < 2; again++) {
		assert_int_equal(catalog_hide(f->c, SPAN("gone"), begun, &err), OK);
		assert_string_equal(plan(f, "gone", 0, HOUR), "");
		assert_string_equal(plan(f, "stays", 0, HOUR), "2 4 6");
		struct catalog_block *v;
		size_t n;
		assert_int_equal(catalog_list(f->c, &f->arena, &v, &n, &err), OK);
		assert_int_equal(n, 6);
	}
	assert_int_equal(catalog_hide(f->c, SPAN("gon"), INT64_MAX, &err), OK);
	assert_int_equal(catalog_hide(f->c, SPAN("gone"), INT64_MIN, &err), OK);
	assert_string_equal(plan(f, "gone", 0, HOUR), "1 3 5");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	log_setup((enum log_level)(LOG_ERROR + 1), LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		TEST(local_states),
		TEST(meta_that_cant_be_written),
		TEST(quarantine_takes_one_copy),
		TEST(plan_edges),
		TEST(plan_model),
		TEST(marked_blocks),
		TEST(hidden_blocks_are_in_no_plan),
		TEST(audit_changes),
		TEST(audit_after_the_clock_was_ahead),
		TEST(audit_objects),
		TEST(audit_failures),
		TEST(rebuilt_after_delete),
		TEST(newer_is_refused),
		TEST(older_is_brought_up),
		TEST(altered_schema_is_damage),
		TEST(read_only_beside_a_writer),
		TEST(any_flipped_byte),
		TEST(many_threads),
		TEST(listing_of_ten_thousand),
		TEST(plan_over_many_rows),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
