/* Damage is found, never believed: every byte of a small block changed, every file cut, every read and allocation failing; and what was
 * deleted stays away. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/errid.h"
#include "base/io.h"
#include "base/limits.h"
#include "block/block_read_int.h"
#include "tests/support/block_fixture.h"
#include "tests/support/fail_alloc.h"

static const int64_t T0 = 1700006400000;
static const int64_t RANGE = 7200000;
static const struct select_options EVERYTHING = {.mint = INT64_MIN, .maxt = INT64_MAX};

static uint64_t seed_print(const char *test)
{
	const char *s = getenv("VARVE_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : io_random_u64() | 1;
	print_message("%s: VARVE_SEED=%llu\n", test, (unsigned long long)seed);
	return seed;
}

static size_t below(uint64_t *seed, size_t n)
{
	return (size_t)(model_random(seed) >> 20) % n;
}

struct pair {
	struct source *s;
	struct buf *out;
	struct span name;
};

/* Which series have this value. */
static errc pair_count(void *arg, struct span value, struct err *err)
{
	errc rc = OK;
	struct pair *x = arg;
	struct arena a;
	struct matcher m;
	struct series_iter *it = NULL;
	struct select_options opt = EVERYTHING;
	opt.skip_chunks = true;
	arena_init(&a, MIB);
	TRY(matcher_init(&m, MATCH_EQ, x->name, value, &a, err));
	TRY(x->s->ops->select(x->s, &m, 1, &opt, &it, err));
	buf_printf(x->out, "%.*s=%.*s:", SPAN_ARG(x->name), SPAN_ARG(value));
	for (;;) {
		struct series_view view;
		bool more;
		TRY(it->ops->next(it, &view, &more, err));
		if (!more)
			break;
		buf_printf(x->out, " %.*s", SPAN_ARG(labels_get(view.labels, SPAN("id"))));
	}
	buf_printf(x->out, "\n");
fail:
	if (it)
		it->ops->close(it);
	arena_free(&a);
	return rc;
}

static errc name_count(void *arg, struct span name, struct err *err)
{
	struct pair *x = arg;
	x->name = name;
	return x->s->ops->label_values(x->s, name, NULL, 0, &EVERYTHING, pair_count, x, err);
}

/* All of a block as one text: labels, samples that are not deleted, series per pair. ERR_*: what reading gave instead; the text is what
 * came before. */
static errc read_all(struct memory_files *files, const struct block_meta *meta, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct block *b = NULL;
	struct source *s = NULL;
	struct series_iter *it = NULL;
	struct arena a;
	arena_init(&a, 64 * MIB);
	rc = block_open(&files->base, meta, NULL, &b, err);
	if (rc)
		goto done;
	rc = block_source(b, "local", &s, err);
	if (rc == OK)
		rc = s->ops->select(s, NULL, 0, &EVERYTHING, &it, err);
	for (bool more = true; rc == OK && more;) {
		struct series_view view;
		rc = it->ops->next(it, &view, &more, err);
		if (rc || !more)
			break;
		for (uint32_t i = 0; i < view.labels.n; i++)
			buf_printf(out, "%.*s=%.*s,", SPAN_ARG(view.labels.v[i].name), SPAN_ARG(view.labels.v[i].value));
		for (size_t i = 0; i < view.n_chunks && rc == OK; i++) {
			struct chunk_iter *ci;
			struct chunk_point p;
			rc = chunk_iter_new(view.chunks[i].enc, view.chunks[i].data, &a, &ci, err);
			for (bool some = true; rc == OK && some;) {
				rc = chunk_iter_next(ci, &p, &some, err);
				bool deleted = false;
				for (size_t d = 0; rc == OK && some && d < view.n_deleted; d++)
					deleted = deleted || (p.t >= view.deleted[d].mint && p.t <= view.deleted[d].maxt);
				if (rc == OK && some && !deleted)
					buf_printf(out, " %lld:%llx", (long long)p.t, (unsigned long long)(p.kind == SAMPLE_FLOAT ? p.v : p.h->sum));
			}
			arena_reset(&a);
		}
		buf_printf(out, "\n");
	}
	if (rc == OK)
		rc = s->ops->label_names(s, NULL, 0, &EVERYTHING, name_count, &(struct pair){.s = s, .out = out}, err);
done:
	if (it)
		it->ops->close(it);
	if (s)
		s->ops->release(s);
	block_unref(b);
	arena_free(&a);
	return rc;
}

static void small_block(struct fixture *f)
{
	fixture_write(
		f, &(struct model_config){.n_series = 4, .samples = 130, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE, .nasty = true}, 900);
	/* the second series loses its first half hour, the third one all */
	struct block *b;
	assert_int_equal(block_open(&f->files.base, &f->meta, NULL, &b, NULL), OK);
	struct index_reader r;
	struct arena a;
	struct postings all;
	arena_init(&a, MIB);
	assert_int_equal(index_reader_init(&r, &b->index, NULL), OK);
	assert_int_equal(postings_select(&r.postings, NULL, 0, &a, &all, NULL), OK);
	assert_int_equal(all.n, 4);
	struct buf t;
	buf_init(&t, MIB);
	buf_be32(&t, 0x0130BA30);
	buf_u8(&t, 1);
	buf_uvarint(&t, all.v[2]);
	buf_varint(&t, INT64_MIN);
	buf_varint(&t, INT64_MAX);
	buf_uvarint(&t, all.v[1]);
	buf_varint(&t, T0);
	buf_varint(&t, T0 + 1800000);
	buf_be32(&t, crc32c(0, t.p + 5, t.n - 5));
	memory_files_set(&f->files, "tombstones", t.p, t.n);
	buf_free(&t);
	index_reader_free(&r);
	arena_free(&a);
	block_unref(b);
}

/* Each byte of index, chunks and tombstones changed in turn, in one bit and in all: an error, or the same answer. Never wrong samples. */
static void every_flip(void **state)
{
	(void)state;
	uint64_t seed = seed_print("every_flip");
	struct fixture f;
	small_block(&f);
	struct buf good, got;
	struct err err = {0};
	buf_init(&good, 16 * MIB);
	buf_init(&got, 16 * MIB);
	assert_int_equal(read_all(&f.files, &f.meta, &good, &err), OK);
	size_t errors = 0, harmless = 0;
	assert_true(f.files.n >= 4);
	for (size_t file = 0; file < f.files.n; file++) {
		struct memory_file *m = &f.files.v[file];
		for (size_t i = 0; i < m->n; i++) {
			uint8_t was = m->p[i];
			for (int k = 0; k < 2; k++) {
				block_symbols_kept_bytes = k ? 0 : 16 * MIB;
				m->p[i] = (uint8_t)(was ^ (k ? 0xff : 1u << below(&seed, 8)));
				err = (struct err){0};
				buf_clear(&got);
				errc rc = read_all(&f.files, &f.meta, &got, &err);
				if (rc == OK) {
					if (!span_eq(span_of(got.p, got.n), span_of(good.p, good.n)))
						fail_msg("%s: byte %zu: %02x -> %02x gives another answer", m->path, i, was, m->p[i]);
					harmless++;
				} else {
					if (rc != ERR_CORRUPT && rc != ERR_UNSUPPORTED && rc != ERR_LIMIT && rc != ERR_NOTFOUND)
						fail_msg("%s: byte %zu: %s %s", m->path, i, errc_name(rc), err.msg);
					assert_true(strlen(err.msg) > 10);
					errors++;
				}
			}
			m->p[i] = was;
		}
	}
	block_symbols_kept_bytes = 16 * MIB;
	print_message("%zu found, %zu harmless\n", errors, harmless);
	/* harmless: segment headers, padding, what the TOC says of sections that are not read, lists that this query does not read */
	assert_true(errors > harmless);
	buf_free(&good);
	buf_free(&got);
	fixture_free(&f);
}

/* Each file cut at every length; meta.json's sizes believed and not. */
static void every_truncation(void **state)
{
	(void)state;
	struct fixture f;
	small_block(&f);
	struct buf good, got;
	struct err err = {0};
	size_t n_files = f.meta.n_files, found = 0, cuts = 0;
	buf_init(&good, 16 * MIB);
	buf_init(&got, 16 * MIB);
	assert_int_equal(read_all(&f.files, &f.meta, &good, &err), OK);
	for (size_t file = 0; file < f.files.n; file++) {
		char path[32];
		size_t n = f.files.v[file].n;
		uint8_t *whole = malloc(n);
		assert_non_null(whole);
		memcpy(whole, f.files.v[file].p, n);
		memcpy(path, f.files.v[file].path, sizeof path);
		cuts += n;
		for (size_t cut = 0; cut < n; cut++) {
			memory_files_set(&f.files, path, whole, cut);
			f.meta.n_files = cut % 2 ? n_files : 0;
			buf_clear(&got);
			errc rc = read_all(&f.files, &f.meta, &got, &err);
			bool same = span_eq(span_of(got.p, got.n), span_of(good.p, good.n));
			/* the chunks of a series that is deleted whole are not read */
			if (rc != ERR_CORRUPT && !(rc == OK && same && strncmp(path, "chunks/", 7) == 0))
				fail_msg("%s cut to %zu of %zu: %s %s", path, cut, n, errc_name(rc), err.msg);
			found += rc != OK;
		}
		memory_files_set(&f.files, path, whole, n);
		free(whole);
	}
	assert_true(found > cuts / 2);
	buf_free(&good);
	buf_free(&got);
	fixture_free(&f);
}

/* Every read and every question for a size fails in turn: that error comes through, nothing leaks, the block is closed. */
static void every_read_fails(void **state)
{
	(void)state;
	struct fixture f;
	small_block(&f);
	struct buf got;
	buf_init(&got, 16 * MIB);
	for (size_t n = 1;; n++) {
		struct err err = {0};
		memory_files_clear_counters(&f.files);
		f.files.fail_at = n;
		buf_clear(&got);
		errc rc = read_all(&f.files, &f.meta, &got, &err);
		assert_int_equal(f.files.closed, 1);
		if (f.files.reads + f.files.sizes < n) {
			assert_int_equal(rc, OK);
			assert_true(n > 6);
			break;
		}
		assert_int_equal(rc, ERR_IO);
		assert_int_equal(err.code, ERR_IO);
	}
	buf_free(&got);
	fixture_free(&f);
}

static void every_allocation_fails(void **state)
{
	(void)state;
	struct fixture f;
	small_block(&f);
	struct buf got, good;
	buf_init(&got, 16 * MIB);
	buf_init(&good, 16 * MIB);
	assert_int_equal(read_all(&f.files, &f.meta, &good, NULL), OK);
	/* so that the test's own text needs no memory */
	assert_true(buf_reserve(&got, good.n + 4096));
	for (int paged = 0; paged < 2; paged++) {
		block_symbols_kept_bytes = paged ? 0 : 16 * MIB;
		for (uint64_t n = 1;; n++) {
			struct err err = {0};
			memory_files_clear_counters(&f.files);
			buf_clear(&got);
			fail_alloc_at(n, false);
			errc rc = read_all(&f.files, &f.meta, &got, &err);
			uint64_t hits = fail_alloc_off();
			assert_int_equal(f.files.closed, 1);
			if (hits == 0) {
				assert_int_equal(rc, OK);
				assert_true(n > 20);
				break;
			}
			assert_int_equal(rc, ERR_NOMEM);
		}
	}
	block_symbols_kept_bytes = 16 * MIB;
	buf_free(&got);
	buf_free(&good);
	fixture_free(&f);
}

/* A damaged chunk names block, file, offset, and the id that a client is shown. */
static void damage_is_named(void **state)
{
	(void)state;
	struct fixture f;
	small_block(&f);
	struct err err = {0};
	struct buf got;
	buf_init(&got, 16 * MIB);
	memory_files_find(&f.files, "chunks/000002")->p[100] ^= 1;
	assert_int_equal(read_all(&f.files, &f.meta, &got, &err), ERR_CORRUPT);
	assert_non_null(strstr(err.msg, ulid_text(f.meta.ulid).s));
	assert_non_null(strstr(err.msg, "chunks/000002"));
	assert_non_null(strstr(err.msg, " at "));
	assert_non_null(strstr(err.msg, "CRC"));
	assert_int_equal(errid_of(err.id), ERRID_BLOCK_DAMAGED);
	buf_free(&got);
	fixture_free(&f);
}

/* ---- deletion ---- */

static void deleted_intervals(void **state)
{
	(void)state;
	struct fixture f;
	struct err err = {0};
	struct series_iter *it;
	struct series_view view;
	bool more;
	small_block(&f);
	fixture_open(&f);
	for (int labels_only = 0; labels_only < 2; labels_only++) {
		struct select_options opt = EVERYTHING;
		opt.skip_chunks = labels_only;
		assert_int_equal(f.source->ops->select(f.source, NULL, 0, &opt, &it, &err), OK);
		for (size_t i = 0; i < 4; i++) {
			if (i == 2) /* deleted whole */
				continue;
			if (it->ops->next(it, &view, &more, &err))
				fail_msg("%s", err.msg);
			assert_true(more);
			assert_true(labels_eq(view.labels, f.m.v[i].labels));
			if (labels_only)
				continue;
			assert_int_equal(view.n_deleted, i == 1 ? 1 : 0);
			if (i == 1) {
				assert_int_equal(view.deleted[0].mint, T0);
				assert_int_equal(view.deleted[0].maxt, T0 + 1800000);
			}
			/* a chunk that is deleted whole is not even read */
			size_t want = 0;
			for (size_t k = 0; k < f.m.v[i].n; k++)
				want += i != 1 || f.m.v[i].chunks[k].maxt > T0 + 1800000;
			assert_int_equal(view.n_chunks, want);
			assert_true(i != 1 || want < f.m.v[i].n);
		}
		assert_int_equal(it->ops->next(it, &view, &more, &err), OK);
		assert_false(more);
		it->ops->close(it);
	}
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_flip),
		cmocka_unit_test(every_truncation),
		cmocka_unit_test(every_read_fails),
		cmocka_unit_test(every_allocation_fails),
		cmocka_unit_test(damage_is_named),
		cmocka_unit_test(deleted_intervals),
	};
	return cmocka_run_group_tests_name("block_damage", tests, NULL, NULL);
}
