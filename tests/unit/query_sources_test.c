/* Where a question's data is read from: every block once while it moves from directory to bucket, without a block that is damaged, and with few requests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_int.h"
#include "tests/support/block_model.h"
#include "tests/support/shaky_bucket.h"
#include "tests/support/tmp.h"

#define HOUR INT64_C(3600000)

struct fixture {
	const char *dir;
	char block_dir[512], bucket_dir[512], cache_dir[512];
	struct bucket *bucket;
	struct shaky *sh;
	struct catalog *c;
	struct query *q;
	struct arena arena;
	uint64_t n_blocks;
	struct answer *want; /* of all blocks */
};

/* What a read gave, in any order of blocks. */
struct answer {
	uint64_t series, samples, sum;
};

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct err err = {0};
	struct bucket *inner;
	bool rebuilt;
	f->dir = tmp_dir();
	snprintf(f->block_dir, sizeof f->block_dir, "%s/blocks", f->dir);
	snprintf(f->bucket_dir, sizeof f->bucket_dir, "%s/bucket", f->dir);
	snprintf(f->cache_dir, sizeof f->cache_dir, "%s/cache", f->dir);
	arena_init(&f->arena, 4 * GIB);
	assert_int_equal(io_mkdirs(f->block_dir, &err), OK);
	assert_int_equal(bucket_open("default", SPAN(""), f->bucket_dir, &inner, &err), OK);
	f->bucket = shaky_bucket(inner, &f->sh);
	struct catalog_config cfg = {.path = tmp_path("%s/catalog.sqlite", f->dir), .node = "n"};
	assert_int_equal(catalog_open(&cfg, &f->c, &rebuilt, &err), OK);
	struct catalog_audit_stats st;
	assert_int_equal(catalog_audit(f->c, f->bucket, NULL, &st, &err), OK);
	struct query_config qc = {.catalog = f->c,
		.bucket = f->bucket,
		.block_dir = f->block_dir,
		.cache_dir = f->cache_dir,
		.cache_bytes = GIB,
		.max_samples = 50000000,
		.max_memory_bytes = GIB,
		.timeout_ms = 120000};
	assert_int_equal(query_open(&qc, &f->q, &err), OK);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	query_close(f->q);
	catalog_close(f->c);
	bucket_close(f->bucket);
	arena_free(&f->arena);
	free(f);
	return 0;
}

/* ---- blocks ---- */

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static void add_sample(struct answer *a, struct labels l, int64_t t, uint64_t v)
{
	/* of the series' own labels: the external ones are the same everywhere */
	uint64_t h = 1;
	for (uint32_t i = 0; i < l.n; i++)
		if (!span_is(l.v[i].name, "replica") && !span_is(l.v[i].name, "tenant_id"))
			h = mix(h ^ crc32c(crc32c(0, l.v[i].name.p, l.v[i].name.n), l.v[i].value.p, l.v[i].value.n));
	a->samples++;
	a->sum += mix(h ^ mix((uint64_t)t) ^ mix(v + 1));
}

static struct answer answer_of(const struct model *m)
{
	struct answer a = {0};
	for (size_t i = 0; i < m->n; i++)
		for (size_t k = 0; k < m->v[i].n; k++) {
			struct chunk_sample s[240];
			size_t n;
			struct err err = {0};
			assert_int_equal(xor_decode(m->v[i].chunks[k].data, s, 240, &n, &err), OK);
			for (size_t j = 0; j < n; j++)
				add_sample(&a, m->v[i].labels, s[j].t, s[j].v);
		}
	return a;
}

struct moving {
	struct ulid ulid;
	struct block_meta meta;
	struct answer a;
};

/* A block of the hour in the block directory, noted. */
static struct moving add_local(struct fixture *f, int64_t hour, size_t series)
{
	struct model m;
	struct moving b = {.ulid = ulid_new()};
	struct err err = {0};
	uint64_t bytes;
	model_make(
		&m, &(struct model_config){
			    .n_series = series, .samples = 120, .start_ms = hour * HOUR, .step_ms = 15000, .range_ms = HOUR, .seed = ++f->n_blocks});
	struct block_meta meta;
	if (model_write(&m, f->block_dir, b.ulid, 0, &meta, &bytes, &err) != OK)
		fail_msg("%s", err.msg);
	struct span json;
	assert_int_equal(io_read_file(tmp_path("%s/%s/meta.json", f->block_dir, ulid_text(b.ulid).s), MIB, &f->arena, &json, &err), OK);
	assert_int_equal(block_meta_parse("meta", json, &f->arena, &b.meta, &err), OK);
	assert_int_equal(catalog_add_local(f->c, &b.meta, bytes, &err), OK);
	b.a = answer_of(&m);
	b.a.series = m.n;
	model_free(&m);
	return b;
}

static void copy_file(struct fixture *f, const char *ulid, const char *name)
{
	struct err err = {0};
	struct span s;
	struct arena a;
	int fd;
	arena_init(&a, 64 * MIB);
	assert_int_equal(io_read_file(tmp_path("%s/%s/%s", f->block_dir, ulid, name), 64 * MIB, &a, &s, &err), OK);
	assert_int_equal(io_mkdirs(tmp_path("%s/%s/chunks", f->bucket_dir, ulid), &err), OK);
	assert_int_equal(io_open(tmp_path("%s/%s/%s", f->bucket_dir, ulid, name), IO_WRITE | IO_CREATE | IO_TRUNC, &fd, &err), OK);
	assert_int_equal(io_pwrite(fd, s.p, s.n, 0, &err), OK);
	io_close(fd);
	arena_free(&a);
}

static void upload(struct fixture *f, const struct moving *b)
{
	struct err err = {0};
	copy_file(f, ulid_text(b->ulid).s, "chunks/000001");
	copy_file(f, ulid_text(b->ulid).s, "index");
	copy_file(f, ulid_text(b->ulid).s, "meta.json");
	assert_int_equal(catalog_uploaded(f->c, &b->meta, 1, &err), OK);
}

static void remove_local(struct fixture *f, const struct moving *b)
{
	struct err err = {0};
	assert_true(query_forget(f->q, b->ulid));
	assert_int_equal(block_remove(f->block_dir, b->ulid, &err), OK);
	assert_int_equal(catalog_drop_local(f->c, b->ulid, &err), OK);
	query_removed(f->q, b->ulid);
}

static struct moving add_bucket(struct fixture *f, int64_t hour, size_t series)
{
	struct moving b = add_local(f, hour, series);
	upload(f, &b);
	remove_local(f, &b);
	return b;
}

static const char *object(struct fixture *f, const struct moving *b, const char *name)
{
	return tmp_path("%s/%s/%s", f->bucket_dir, ulid_text(b->ulid).s, name);
}

static void flip(const char *path, uint64_t off)
{
	struct err err = {0};
	int fd;
	uint8_t x;
	assert_int_equal(io_open(path, IO_READ | IO_WRITE, &fd, &err), OK);
	assert_int_equal(io_pread_full(fd, &x, 1, off, &err), OK);
	x ^= 0x10;
	assert_int_equal(io_pwrite(fd, &x, 1, off, &err), OK);
	io_close(fd);
}

/* ---- asking ---- */

static errc read_all(struct question *qn, struct answer *a, struct err *err)
{
	errc rc = OK;
	struct merge *m = NULL;
	struct sample_iter *it = NULL;
	struct arena series;
	const struct matcher_set all = {0};
	*a = (struct answer){0};
	arena_init(&series, GIB);
	TRY(question_sources(qn, err));
	TRY(merge_open(qn, &all, 1, false, &m, err));
	for (;;) {
		struct merged s;
		bool more;
		TRY(merge_next(m, &s, &more, err));
		if (!more)
			break;
		a->series++;
		arena_reset(&series);
		TRY(samples_open(&s, qn->mint, qn->maxt, &series, &it, err));
		for (;;) {
			struct chunk_point p;
			TRY(samples_next(it, &p, &more, err));
			if (!more)
				break;
			add_sample(a, s.labels, p.t, p.v);
		}
		samples_close(it);
		it = NULL;
	}
fail:
	samples_close(it);
	merge_close(m);
	arena_free(&series);
	return rc;
}

/* As the handlers ask: again without a block that proves damaged. *rounds: how often. */
static errc ask(struct fixture *f, int64_t mint, int64_t maxt, struct answer *a, int *rounds, struct err *err)
{
	struct question qn;
	errc rc;
	question_init(&qn, f->q, SPAN("default-tenant"), mint, maxt);
	for (*rounds = 1;; ++*rounds) {
		rc = read_all(&qn, a, err);
		if (rc == OK || *rounds == 50 || !question_blame(&qn, rc, err))
			break;
		question_release(&qn);
	}
	question_free(&qn);
	return rc;
}

static int assert_answer(struct fixture *f, struct answer want)
{
	struct answer got;
	struct err err = {0};
	int rounds;
	if (ask(f, INT64_MIN, INT64_MAX, &got, &rounds, &err) != OK)
		fail_msg("%s", err.msg);
	assert_int_equal(got.samples, want.samples);
	assert_true(got.sum == want.sum);
	return rounds;
}

static struct answer plus(struct answer a, struct answer b)
{
	return (struct answer){0, a.samples + b.samples, a.sum + b.sum};
}

static struct catalog_block row(struct fixture *f, const struct moving *b)
{
	struct catalog_block r;
	struct err err = {0};
	if (catalog_get(f->c, b->ulid, &f->arena, &r, &err) != OK)
		fail_msg("%s", err.msg);
	return r;
}

/* ---- tests ---- */

/* Directory, both, bucket: the same data at every step, and no step asks twice. */
static void a_block_moves(void **state)
{
	struct fixture *f = *state;
	struct moving a = add_local(f, 1, 20), b = add_local(f, 2, 20);
	struct answer all = plus(a.a, b.a);
	assert_int_equal(assert_answer(f, all), 1);
	upload(f, &a);
	assert_int_equal(assert_answer(f, all), 1);
	remove_local(f, &a);
	assert_int_equal(assert_answer(f, all), 1);
	upload(f, &b);
	remove_local(f, &b);
	assert_int_equal(assert_answer(f, all), 1);
	assert_int_equal(f->sh->sizes + f->sh->lists, 1); /* the audit's listing at the start */
	/* another tenant sees nothing */
	struct question qn;
	struct err err = {0};
	question_init(&qn, f->q, SPAN("other"), INT64_MIN, INT64_MAX);
	assert_int_equal(question_sources(&qn, &err), OK);
	assert_int_equal(qn.n_sources, 0);
	question_free(&qn);
}

/* scope=local: what the bucket does not have, and for a while what other nodes may not know that it has; nothing that is in the bucket alone. */
static void only_what_others_may_not_see(void **state)
{
	struct fixture *f = *state;
	struct moving a = add_local(f, 1, 20), b = add_local(f, 2, 10), c = add_bucket(f, 3, 10);
	upload(f, &b);
	struct {
		int64_t handover_ms;
		struct answer want;
	} cases[] = {{INT64_MAX, plus(a.a, b.a)}, {HOUR, plus(a.a, b.a)}, {0, a.a}};
	for (size_t i = 0; i < 3; i++) {
		struct question qn;
		struct answer got;
		struct err err = {0};
		f->q->cfg.handover_ms = cases[i].handover_ms;
		question_init(&qn, f->q, SPAN("default-tenant"), INT64_MIN, INT64_MAX);
		qn.for_peer = true;
		assert_int_equal(read_all(&qn, &got, &err), OK);
		assert_true(got.samples == cases[i].want.samples && got.sum == cases[i].want.sum);
		question_free(&qn);
	}
	assert_answer(f, plus(plus(a.a, b.a), c.a));
}

/* What was planned as a directory is gone when it is opened. */
static void gone_between_plan_and_open(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	double before = metric_value(f->q->quarantined);
	struct moving a = add_local(f, 1, 5);
	upload(f, &a);
	/* the row still says that it is here */
	assert_int_equal(block_remove(f->block_dir, a.ulid, &err), OK);
	assert_true(row(f, &a).local);
	assert_int_equal(assert_answer(f, a.a), 1);
	assert_true(metric_value(f->q->quarantined) == before);
	assert_int_equal(row(f, &a).state, BLOCK_LIVE);

	/* without a copy in the bucket it is lost, and named */
	struct moving b = add_local(f, 2, 5);
	assert_int_equal(block_remove(f->block_dir, b.ulid, &err), OK);
	assert_answer(f, a.a);
	assert_int_equal(row(f, &b).state, BLOCK_QUARANTINED);
	assert_true(row(f, &b).reason.n > 0);

	/* and an answer for its time says that it lacks something, a retried one too */
	struct question qn;
	question_init(&qn, f->q, SPAN("default-tenant"), INT64_MIN, INT64_MAX);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(question_sources(&qn, &err), OK);
		assert_int_equal(qn.n_sources, 1);
		assert_non_null(qn.warning);
		assert_non_null(strstr(qn.warning, ulid_text(b.ulid).s));
		question_release(&qn);
		assert_null(qn.warning);
	}
	question_free(&qn);
	question_init(&qn, f->q, SPAN("default-tenant"), row(f, &b).maxt, INT64_MAX);
	assert_int_equal(question_sources(&qn, &err), OK);
	assert_null(qn.warning);
	question_free(&qn);
}

/* A directory that is being read is not removed; who comes later reads the bucket's copy. */
static void readers_pin_the_directory(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct moving a = add_local(f, 1, 600);
	upload(f, &a);
	struct question qn;
	struct merge *m;
	struct merged s;
	const struct matcher_set all = {0};
	bool more;
	question_init(&qn, f->q, SPAN("default-tenant"), INT64_MIN, INT64_MAX);
	assert_int_equal(question_sources(&qn, &err), OK);
	assert_string_equal(qn.sources[0].src->kind, "local");
	assert_int_equal(merge_open(&qn, &all, 1, false, &m, &err), OK);
	assert_int_equal(merge_next(m, &s, &more, &err), OK);

	assert_false(query_forget(f->q, a.ulid));
	struct question later;
	question_init(&later, f->q, SPAN("default-tenant"), INT64_MIN, INT64_MAX);
	assert_int_equal(question_sources(&later, &err), OK);
	assert_string_equal(later.sources[0].src->kind, "bucket");
	question_free(&later);
	assert_false(query_forget(f->q, a.ulid));

	uint64_t series = 1;
	for (; more; series++)
		assert_int_equal(merge_next(m, &s, &more, &err), OK);
	assert_int_equal(series - 1, 600);
	merge_close(m);
	question_free(&qn);
	remove_local(f, &a);
	assert_int_equal(assert_answer(f, a.a), 1);
}

static void damaged_directory_good_object(void **state)
{
	struct fixture *f = *state;
	struct moving a = add_local(f, 1, 20), b = add_local(f, 2, 20);
	upload(f, &a);
	flip(tmp_path("%s/%s/chunks/000001", f->block_dir, ulid_text(a.ulid).s), 300);
	flip(tmp_path("%s/%s/index", f->block_dir, ulid_text(b.ulid).s), 20);
	assert_int_equal(assert_answer(f, a.a), 3);
	assert_int_equal(row(f, &a).state, BLOCK_LIVE);
	assert_false(row(f, &a).local);
	assert_int_equal(row(f, &b).state, BLOCK_QUARANTINED);
	assert_int_equal(assert_answer(f, a.a), 1);
}

/* The directory is gone and the object that is read instead is damaged: the object is blamed. */
static void damaged_object_in_place_of_a_directory(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	for (int i = 0; i < 2; i++) {
		struct moving a = add_local(f, i, 20);
		upload(f, &a);
		assert_int_equal(block_remove(f->block_dir, a.ulid, &err), OK);
		flip(object(f, &a, i ? "index" : "chunks/000001"), 200);
		assert_int_equal(assert_answer(f, (struct answer){0}), 2 + (i == 0 ? 1 : 1));
		assert_int_equal(row(f, &a).state, BLOCK_QUARANTINED);
	}
}

static void damaged_objects(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct moving good = add_bucket(f, 1, 10), v[6];
	for (int i = 0; i < 6; i++)
		v[i] = add_bucket(f, 2 + i, 10);
	struct io_stat st;
	flip(object(f, &v[0], "chunks/000001"), 200);
	flip(object(f, &v[1], "index"), 30);
	assert_int_equal(io_unlink(object(f, &v[2], "index"), &err), OK);
	assert_int_equal(io_unlink(object(f, &v[3], "chunks/000001"), &err), OK);
	assert_int_equal(io_remove_tree(object(f, &v[4], ""), &err), OK);
	assert_int_equal(io_stat(object(f, &v[5], "chunks/000001"), &st, &err), OK);
	int fd;
	assert_int_equal(io_open(object(f, &v[5], "chunks/000001"), IO_READ | IO_WRITE, &fd, &err), OK);
	assert_int_equal(io_truncate(fd, st.size / 2, &err), OK);
	io_close(fd);
	assert_int_equal(assert_answer(f, good.a), 7);
	for (int i = 0; i < 6; i++) {
		assert_int_equal(row(f, &v[i]).state, BLOCK_QUARANTINED);
		assert_true(row(f, &v[i]).reason.n > 0);
	}
	assert_int_equal(row(f, &good).state, BLOCK_LIVE);
	/* mended by hand, it is given another chance */
	flip(object(f, &v[0], "chunks/000001"), 200);
	struct catalog_audit_stats stats;
	assert_int_equal(catalog_audit(f->c, f->bucket, &(struct catalog_audit_options){.reread = true}, &stats, &err), OK);
	assert_answer(f, plus(good.a, v[0].a));
}

/* A bucket that does not answer is nobody's fault: no block is put aside for it. */
static void bucket_down(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct moving a = add_bucket(f, 1, 10), b = add_bucket(f, 2, 10);
	static const errc codes[] = {ERR_NET, ERR_DENIED, ERR_AGAIN, ERR_TIMEOUT, ERR_NOTFOUND};
	for (size_t k = 0; k < 5; k++)
		for (uint64_t n = 1;; n++) {
			struct answer got;
			int rounds;
			query_blocks_drop(f->q->blocks, a.ulid);
			query_blocks_drop(f->q->blocks, b.ulid);
			query_cache_forget(f->q->cache, a.ulid);
			query_cache_forget(f->q->cache, b.ulid);
			f->sh->calls = 0;
			f->sh->fail_code = (int)codes[k];
			f->sh->fail_from = n;
			/* "not found" for everything: the meta.json's absence can't be told from a bucket that lost everything */
			f->sh->fail_to = codes[k] == ERR_NOTFOUND ? n : UINT64_MAX;
			errc rc = ask(f, INT64_MIN, INT64_MAX, &got, &rounds, &err);
			f->sh->fail_from = 0;
			if (codes[k] == ERR_NOTFOUND) {
				/* one object answered 404 while its block's meta.json is there: the block is damaged, as far as anybody knows */
				assert_int_equal(rc, OK);
				struct catalog_audit_stats st;
				assert_int_equal(catalog_audit(f->c, f->bucket, &(struct catalog_audit_options){.reread = true}, &st, &err), OK);
			} else if (rc != OK) {
				assert_int_equal(rc, codes[k]);
			}
			assert_int_equal(row(f, &a).state, BLOCK_LIVE);
			assert_int_equal(row(f, &b).state, BLOCK_LIVE);
			if (rounds == 1 && rc == OK)
				break;
		}
	assert_answer(f, plus(a.a, b.a));
}

/* ---- deletions and requests ---- */

static void put_tombstones(struct fixture *f, const struct moving *b, int64_t mint, int64_t maxt)
{
	struct model m;
	struct buf t;
	struct err err = {0};
	model_read(&m, object(f, b, ""));
	buf_init(&t, MIB);
	buf_be32(&t, 0x0130ba30);
	buf_u8(&t, 1);
	buf_uvarint(&t, (m.toc.series + 15) / 16);
	buf_varint(&t, mint);
	buf_varint(&t, maxt);
	buf_be32(&t, crc32c(0, t.p + 5, t.n - 5));
	assert_int_equal(io_write_file(object(f, b, "tombstones"), span_of(t.p, t.n), &err), OK);
	buf_free(&t);
	model_free(&m);
}

/* Tombstones beside a foreign block are known from the listing, also when they come later. */
static void deletions(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct moving a = add_bucket(f, 1, 1);
	struct catalog_audit_stats st;
	assert_int_equal(assert_answer(f, a.a), 1);
	put_tombstones(f, &a, HOUR, HOUR + 29 * 15000);
	assert_int_equal(catalog_audit(f->c, f->bucket, NULL, &st, &err), OK);
	struct answer got;
	int rounds;
	assert_int_equal(ask(f, INT64_MIN, INT64_MAX, &got, &rounds, &err), OK);
	assert_int_equal(a.a.samples - got.samples, 30);
	assert_int_equal(f->sh->sizes, 0);
	/* and gone again */
	assert_int_equal(io_unlink(object(f, &a, "tombstones"), &err), OK);
	assert_int_equal(catalog_audit(f->c, f->bucket, NULL, &st, &err), OK);
	assert_answer(f, a.a);
}

/* A question asks for no sizes and lists nothing; its second time needs the chunks only, and after a restart the index is still here. */
static void few_requests(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct moving a = add_bucket(f, 1, 50);
	/* a foreign one: its meta.json lists no files */
	struct moving b = add_local(f, 2, 50);
	struct block_meta foreign = b.meta;
	struct buf json;
	copy_file(f, ulid_text(b.ulid).s, "chunks/000001");
	copy_file(f, ulid_text(b.ulid).s, "index");
	foreign.n_files = 0;
	foreign.has_varve = false;
	buf_init(&json, MIB);
	assert_int_equal(block_meta_write(&foreign, &json), OK);
	assert_int_equal(io_write_file(object(f, &b, "meta.json"), span_of(json.p, json.n), &err), OK);
	buf_free(&json);
	struct catalog_audit_stats st;
	assert_int_equal(catalog_audit(f->c, f->bucket, NULL, &st, &err), OK);
	assert_int_equal(st.added, 1);
	assert_int_equal(catalog_set_local_state(f->c, b.ulid, BLOCK_LIVE, NULL, &err), OK);
	remove_local(f, &b);

	uint64_t lists = f->sh->lists, gets = f->sh->gets;
	assert_answer(f, plus(a.a, b.a));
	uint64_t first = f->sh->gets - gets;
	gets = f->sh->gets;
	assert_answer(f, plus(a.a, b.a));
	uint64_t second = f->sh->gets - gets;
	print_message("GETs: %d the first time, %d the second\n", (int)first, (int)second);
	assert_int_equal(second, 2); /* the chunks of each */
	assert_true(first <= 8);
	struct query_config cfg = f->q->cfg;
	query_close(f->q);
	assert_int_equal(query_open(&cfg, &f->q, &err), OK);
	gets = f->sh->gets;
	assert_answer(f, plus(a.a, b.a));
	assert_int_equal(f->sh->gets - gets, 2);
	assert_int_equal(f->sh->sizes, 0);
	assert_int_equal(f->sh->lists, lists);
	assert_true(row(f, &a).has_ranges && row(f, &b).has_ranges);
}

/* ---- readers while blocks move ---- */

struct crowd {
	struct fixture *f;
	struct answer want;
	atomic_bool *stop;
	atomic_int *asked;
};

static void *reader(void *arg)
{
	struct crowd *w = arg;
	while (!atomic_load(w->stop)) {
		assert_answer(w->f, w->want);
		atomic_fetch_add(w->asked, 1);
	}
	return NULL;
}

static void reads_while_blocks_move(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	enum { BLOCKS = 12, READERS = 3 };
	struct moving v[BLOCKS];
	struct crowd w = {.f = f};
	atomic_bool stop = false;
	atomic_int asked = 0;
	pthread_t t[READERS];
	for (int i = 0; i < BLOCKS; i++) {
		v[i] = add_local(f, i, 10);
		w.want = plus(w.want, v[i].a);
	}
	w.stop = &stop;
	w.asked = &asked;
	for (int i = 0; i < READERS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, reader, &w), 0);
	for (int i = 0; i < BLOCKS; i++) {
		upload(f, &v[i]);
		int before = atomic_load(&asked);
		while (atomic_load(&asked) < before + 2)
			io_sleep_ms(1);
		while (!query_forget(f->q, v[i].ulid))
			io_sleep_ms(1);
		assert_int_equal(block_remove(f->block_dir, v[i].ulid, &err), OK);
		assert_int_equal(catalog_drop_local(f->c, v[i].ulid, &err), OK);
		query_removed(f->q, v[i].ulid);
	}
	atomic_store(&stop, true);
	for (int i = 0; i < READERS; i++)
		pthread_join(t[i], NULL);
	print_message("%d questions\n", atomic_load(&asked));
	assert_int_equal(assert_answer(f, w.want), 1);
}

/* ---- a year ---- */

static size_t heap_bytes(void)
{
	return mallinfo2().uordblks + mallinfo2().hblkhd;
}

/* One series of a year in as many blocks as two-hour windows, all in the bucket: in memory that does not grow with the blocks' other series. */
static void a_year_of_blocks(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	int64_t blocks = getenv("VARVE_FULL") ? 4380 : 200;
	struct matcher m;
	for (int64_t i = 0; i < blocks; i++) {
		add_bucket(f, 2 * i, 20);
		arena_reset(&f->arena);
	}
	for (int round = 0; round < 2; round++) {
		size_t before = heap_bytes(), most = 0;
		int64_t begin = io_mono_ms();
		uint64_t gets = f->sh->gets;
		struct question qn;
		struct merge *mg;
		struct merged s;
		bool more;
		struct arena series;
		uint64_t samples = 0, n = 0;
		arena_init(&series, GIB);
		question_init(&qn, f->q, SPAN("default-tenant"), INT64_MIN, INT64_MAX);
		assert_int_equal(question_sources(&qn, &err), OK);
		size_t opened = heap_bytes() - before;
		assert_int_equal(matcher_init(&m, MATCH_EQ, SPAN("id"), SPAN("7"), &qn.arena, &err), OK);
		const struct matcher_set set = {&m, round == 0 ? 1 : 0};
		assert_int_equal(merge_open(&qn, &set, 1, false, &mg, &err), OK);
		for (;; n++) {
			assert_int_equal(merge_next(mg, &s, &more, &err), OK);
			size_t now = heap_bytes() - before;
			most = now > most ? now : most;
			if (!more)
				break;
			struct chunk *v;
			size_t k;
			arena_reset(&series);
			assert_int_equal(samples_chunks(&s, qn.mint, qn.maxt, &series, &v, &k, &err), OK);
			for (size_t i = 0; i < k; i++) {
				uint32_t count;
				assert_int_equal(chunk_count(v[i].enc, v[i].data, &count, &err), OK);
				samples += count;
			}
		}
		merge_close(mg);
		question_free(&qn);
		arena_free(&series);
		print_message("%lld blocks, %s: %llu series, %llu samples, %lld ms, %llu GETs, %zu KiB opened, %zu KiB at most\n", (long long)blocks,
			round ? "all series" : "one series", (unsigned long long)n, (unsigned long long)samples, (long long)(io_mono_ms() - begin),
			(unsigned long long)(f->sh->gets - gets), opened / 1024, most / 1024);
		assert_int_equal(samples, (uint64_t)blocks * 120 * (round ? 20 : 1));
	}
}

/* ---- a catalog that is made anew ---- */

enum { REMAKES = 60 };
struct remaking {
	struct fixture *f;
	atomic_bool done;
};

static void *remake(void *arg)
{
	struct remaking *w = arg;
	struct err err = {0};
	struct catalog_audit_stats st;
	for (int i = 0; i < REMAKES; i++) {
		assert_int_equal(catalog_reset(w->f->c, &err), OK);
		assert_int_equal(catalog_audit(w->f->c, w->f->bucket, NULL, &st, &err), OK);
		io_sleep_ms(2);
	}
	atomic_store(&w->done, true);
	return NULL;
}

/* Deleted or damaged and read from the bucket again, while questions are asked: each answer is whole. */
static void catalog_made_anew_under_questions(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct moving a = add_local(f, 1, 50), b = add_local(f, 2, 50);
	upload(f, &a);
	upload(f, &b);
	assert_int_equal(block_remove(f->block_dir, a.ulid, &err), OK);
	assert_int_equal(block_remove(f->block_dir, b.ulid, &err), OK);
	struct remaking w = {.f = f};
	pthread_t t;
	assert_int_equal(pthread_create(&t, NULL, remake, &w), 0);
	while (!atomic_load(&w.done))
		assert_answer(f, plus(a.a, b.a));
	pthread_join(t, NULL);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	log_setup((enum log_level)(LOG_ERROR + 1), LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		TEST(a_block_moves),
		TEST(only_what_others_may_not_see),
		TEST(gone_between_plan_and_open),
		TEST(readers_pin_the_directory),
		TEST(damaged_directory_good_object),
		TEST(damaged_object_in_place_of_a_directory),
		TEST(damaged_objects),
		TEST(bucket_down),
		TEST(deletions),
		TEST(few_requests),
		TEST(reads_while_blocks_move),
		TEST(a_year_of_blocks),
		TEST(catalog_made_anew_under_questions),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
