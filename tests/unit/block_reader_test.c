/* Reading blocks: what was written comes back, whatever is asked; damage is found, never believed; reads are few and memory is bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <cmocka.h>
#include "base/errid.h"
#include "base/io.h"
#include "base/limits.h"
#include "block/block_read_int.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/memory_files.h"
#include "tests/support/tmp.h"

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

struct fixture {
	struct model m;
	struct block_meta meta;
	struct memory_files files;
	struct block *b;
	struct source *source;
};

static struct ulid ulid_of(uint8_t x)
{
	struct ulid u = {{1, 0x8b, 0xcf, 0xe5, 0x68, 0}};
	u.b[15] = x;
	return u;
}

static void fixture_write(struct fixture *f, const struct model_config *cfg, uint64_t segment_bytes)
{
	struct err err = {0};
	uint64_t bytes;
	const char *dir = tmp_dir();
	*f = (struct fixture){.b = NULL};
	model_make(&f->m, cfg);
	if (model_write(&f->m, dir, ulid_of(1), segment_bytes, &f->meta, &bytes, &err))
		fail_msg("%s", err.msg);
	memory_files_load(&f->files, tmp_path("%s/%s", dir, ulid_text(ulid_of(1)).s));
}

static void fixture_open(struct fixture *f)
{
	struct err err = {0};
	if (block_open(&f->files.base, &f->meta, NULL, &f->b, &err) || block_source(f->b, "local", &f->source, &err))
		fail_msg("%s", err.msg);
	block_unref(f->b); /* the source has its own */
}

static void fixture_close(struct fixture *f)
{
	f->source->ops->release(f->source);
	assert_int_equal(f->files.closed, 1);
	memory_files_free(&f->files);
	model_free(&f->m);
}

static bool chunk_wanted(const struct chunk *c, const struct select_options *opt)
{
	return c->maxt >= opt->mint && c->mint <= opt->maxt;
}

/* The answer is what asking every series of the model gives. */
static size_t select_agrees(const struct fixture *f, const struct matcher *m, size_t n, const struct select_options *opt)
{
	struct err err = {0};
	struct series_iter *it;
	struct series_view got;
	bool more;
	size_t series = 0;
	if (f->source->ops->select(f->source, m, n, opt, &it, &err))
		fail_msg("%s", err.msg);
	for (size_t i = 0; i < f->m.n; i++) {
		const struct model_series *want = &f->m.v[i];
		size_t n_chunks = 0;
		for (size_t k = 0; k < want->n; k++)
			n_chunks += chunk_wanted(&want->chunks[k], opt);
		if (n_chunks == 0 || !matchers_match_labels(m, n, want->labels))
			continue;
		if (it->ops->next(it, &got, &more, &err))
			fail_msg("%s", err.msg);
		assert_true(more);
		assert_true(labels_eq(got.labels, want->labels));
		assert_int_equal(got.n_deleted, 0);
		assert_int_equal(got.n_chunks, opt->skip_chunks ? 0 : n_chunks);
		for (size_t k = 0, j = 0; j < got.n_chunks; k++) {
			if (!chunk_wanted(&want->chunks[k], opt))
				continue;
			assert_int_equal(got.chunks[j].mint, want->chunks[k].mint);
			assert_int_equal(got.chunks[j].maxt, want->chunks[k].maxt);
			assert_int_equal(got.chunks[j].enc, want->chunks[k].enc);
			assert_true(span_eq(got.chunks[j].data, want->chunks[k].data));
			j++;
		}
		series++;
	}
	assert_int_equal(it->ops->next(it, &got, &more, &err), OK);
	assert_false(more);
	it->ops->close(it);
	return series;
}

static const char *const selectors[] = {"{id=~\".+\"}", "metric_3_total", "{__name__=\"metric_3_total\",instance=\"host-0:9100\"}",
	"{instance=~\"host-1.*\"}", "{id=~\"1|5|77|nothing\"}", "{id!=\"3\",job=\"node\"}", "{job=\"node\",long=\"\"}", "{job=\"node\",long!=\"\"}",
	"{id=~\".*7\"}", "{job=\"other\"}", "{nothing=\"x\"}", "{job=\"node\",__name__!~\"metric_1.*\"}", "{\"stra\\u00dfe\"=~\".*1.*\"}",
	"{z_39=~\"1|2\",z_0!=\"\"}"};
enum { SELECTORS = sizeof selectors / sizeof *selectors };

static void what_was_written_comes_back(void **state)
{
	(void)state;
	static const struct {
		size_t series;
		uint32_t samples;
		uint64_t segment_bytes;
		bool strange, nasty;
	} cases[] = {{1, 1, 0, false, false}, {1, 5000, 0, false, true}, {40, 480, 3000, true, true}, {3000, 10, 0, true, false},
		{800, 480, 100000, true, true}};
	size_t found = 0;
	for (size_t c = 0; c < 2 * sizeof cases / sizeof *cases; c++) {
		struct fixture f;
		struct arena a;
		arena_init(&a, 16 * MIB);
		block_symbols_kept_bytes = c % 2 ? 0 : 16 * MIB;
		fixture_write(&f,
			&(struct model_config){.n_series = cases[c / 2].series,
				.samples = cases[c / 2].samples,
				.start_ms = T0,
				.step_ms = 15000,
				.range_ms = RANGE,
				.nasty = cases[c / 2].nasty,
				.strange = cases[c / 2].strange},
			cases[c / 2].segment_bytes);
		if (c % 4 > 1) /* sizes asked of the files instead of meta.json */
			f.meta.n_files = 0;
		fixture_open(&f);
		assert_int_equal(select_agrees(&f, NULL, 0, &EVERYTHING), f.m.n);
		for (int i = 0; i < SELECTORS; i++) {
			struct matcher *m;
			size_t n;
			struct err err = {0};
			if (matchers_parse(span_cstr(selectors[i]), &a, &m, &n, &err))
				fail_msg("%s", err.msg);
			const struct select_options ranges[] = {EVERYTHING, {.mint = T0 + 3600000, .maxt = T0 + 3600000},
				{.mint = f.m.maxt, .maxt = INT64_MAX}, {.mint = 0, .maxt = T0},
				{.mint = T0, .maxt = T0 + 1800000, .skip_chunks = true}, {.mint = INT64_MIN, .maxt = INT64_MAX, .batch_bytes = 1}};
			for (size_t k = 0; k < sizeof ranges / sizeof *ranges; k++)
				found += select_agrees(&f, m, n, &ranges[k]);
			matchers_free(m, n);
		}
		fixture_close(&f);
		arena_free(&a);
	}
	block_symbols_kept_bytes = 16 * MIB;
	assert_true(found > 10000);
}

/* ---- listings ---- */

struct listing {
	struct arena a;
	struct span v[20000];
	size_t n;
};

static errc listing_add(void *arg, struct span value, struct err *err)
{
	struct listing *x = arg;
	(void)err;
	for (size_t i = 0; i < x->n; i++)
		if (span_eq(x->v[i], value))
			return OK;
	assert_true(x->n < 20000);
	x->v[x->n++] = arena_dup(&x->a, value);
	return OK;
}

static int span_order(const void *a, const void *b)
{
	return span_cmp(*(const struct span *)a, *(const struct span *)b);
}

static void listings_agree(const struct fixture *f, const struct matcher *m, size_t n, const struct select_options *opt)
{
	static const char *const names[] = {"", "__name__", "id", "instance", "long", "z_7", "absent"};
	static struct listing want, got;
	struct err err = {0};
	for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
		struct span name = span_cstr(names[k]);
		want.n = got.n = 0;
		arena_init(&want.a, 64 * MIB);
		arena_init(&got.a, 64 * MIB);
		for (size_t i = 0; i < f->m.n; i++) {
			const struct model_series *s = &f->m.v[i];
			bool in = false;
			for (size_t c = 0; c < s->n; c++)
				in = in || chunk_wanted(&s->chunks[c], opt);
			/* without matchers the whole block answers */
			if ((n > 0 && !in) || !matchers_match_labels(m, n, s->labels))
				continue;
			for (uint32_t l = 0; l < s->labels.n; l++)
				if (name.n == 0)
					listing_add(&want, s->labels.v[l].name, NULL);
				else if (span_eq(s->labels.v[l].name, name))
					listing_add(&want, s->labels.v[l].value, NULL);
		}
		errc rc = name.n == 0 ? f->source->ops->label_names(f->source, m, n, opt, listing_add, &got, &err)
				      : f->source->ops->label_values(f->source, name, m, n, opt, listing_add, &got, &err);
		if (rc)
			fail_msg("%s", err.msg);
		assert_int_equal(got.n, want.n);
		qsort(want.v, want.n, sizeof *want.v, span_order);
		qsort(got.v, got.n, sizeof *got.v, span_order);
		for (size_t i = 0; i < got.n; i++)
			assert_true(span_eq(got.v[i], want.v[i]));
		arena_free(&want.a);
		arena_free(&got.a);
	}
}

static errc emit_refuses(void *arg, struct span value, struct err *err)
{
	(void)arg;
	(void)value;
	return err_set(err, ERR_CANCELED, "enough");
}

static void names_and_values(void **state)
{
	(void)state;
	struct fixture f;
	struct arena a;
	arena_init(&a, MIB);
	fixture_write(
		&f, &(struct model_config){.n_series = 300, .samples = 480, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE, .strange = true}, 0);
	fixture_open(&f);
	listings_agree(&f, NULL, 0, &EVERYTHING);
	for (int i = 0; i < SELECTORS; i++) {
		struct matcher *m;
		size_t n;
		assert_int_equal(matchers_parse(span_cstr(selectors[i]), &a, &m, &n, NULL), OK);
		listings_agree(&f, m, n, &EVERYTHING);
		listings_agree(&f, m, n, &(struct select_options){.mint = T0 + 7000000, .maxt = T0 + 7100000});
		struct err err = {0};
		if (select_agrees(&f, m, n, &EVERYTHING) > 0) {
			assert_int_equal(f.source->ops->label_names(f.source, m, n, &EVERYTHING, emit_refuses, NULL, &err), ERR_CANCELED);
			assert_int_equal(
				f.source->ops->label_values(f.source, SPAN("id"), m, n, &EVERYTHING, emit_refuses, NULL, &err), ERR_CANCELED);
		}
		matchers_free(m, n);
	}
	/* outside of the block's time there is nothing */
	struct select_options before = {.mint = 0, .maxt = f.m.mint - 1};
	struct err err = {0};
	assert_int_equal(f.source->ops->label_names(f.source, NULL, 0, &before, emit_refuses, NULL, &err), OK);
	assert_int_equal(f.source->ops->label_values(f.source, SPAN("id"), NULL, 0, &before, emit_refuses, NULL, &err), OK);
	fixture_close(&f);
	arena_free(&a);
}

/* ---- cost ---- */

static void reads_are_few(void **state)
{
	(void)state;
	struct fixture f;
	struct arena a;
	struct matcher *m;
	size_t n;
	arena_init(&a, MIB);
	fixture_write(&f, &(struct model_config){.n_series = 10000, .samples = 240, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE}, 0);
	uint64_t index_bytes = memory_files_find(&f.files, "index")->n, chunk_bytes = memory_files_find(&f.files, "chunks/000001")->n;
	fixture_open(&f);
	/* opening: symbols and postings table in pieces, TOC, tombstones asked for */
	print_message("index %llu B, chunks %llu B; open: %zu reads, %llu B, holds %zu B\n", (unsigned long long)index_bytes,
		(unsigned long long)chunk_bytes, f.files.reads, (unsigned long long)f.files.bytes, block_memory(f.b));
	assert_true(f.files.reads <= 10);
	assert_true(f.files.sizes <= 2);

	/* everything: about every byte once */
	memory_files_clear_counters(&f.files);
	assert_int_equal(select_agrees(&f, NULL, 0, &EVERYTHING), 10000);
	print_message("everything: %zu reads, %llu B\n", f.files.reads, (unsigned long long)f.files.bytes);
	assert_true(f.files.reads < 60);
	assert_true(f.files.bytes < (index_bytes + chunk_bytes) * 5 / 4);
	assert_true(f.files.biggest <= 2 * MIB);
	assert_int_equal(f.files.sizes, 0);

	/* one series: one look each at table, list, entry and chunks */
	memory_files_clear_counters(&f.files);
	assert_int_equal(matchers_parse(SPAN("{id=\"4711\"}"), &a, &m, &n, NULL), OK);
	assert_int_equal(select_agrees(&f, m, n, &EVERYTHING), 1);
	print_message("one series: %zu reads, %llu B\n", f.files.reads, (unsigned long long)f.files.bytes);
	assert_true(f.files.reads <= 4);
	assert_true(f.files.bytes < 160 * KIB);
	matchers_free(m, n);

	/* every 23rd */
	memory_files_clear_counters(&f.files);
	assert_int_equal(matchers_parse(SPAN("metric_5_total"), &a, &m, &n, NULL), OK);
	assert_true(select_agrees(&f, m, n, &EVERYTHING) > 400);
	print_message("one name: %zu reads, %llu B\n", f.files.reads, (unsigned long long)f.files.bytes);
	assert_true(f.files.reads <= 8);
	matchers_free(m, n);

	/* labels only: no chunk is touched */
	memory_files_clear_counters(&f.files);
	struct select_options labels_only = EVERYTHING;
	labels_only.skip_chunks = true;
	assert_int_equal(select_agrees(&f, NULL, 0, &labels_only), 10000);
	assert_true(f.files.bytes < index_bytes * 5 / 4);
	f.files.closed = 0;
	fixture_close(&f);
	arena_free(&a);
}

/* With the ranges of an earlier opening nobody is asked for the index' size, and stale ranges do no harm. */
static void ranges_of_the_catalog(void **state)
{
	(void)state;
	struct fixture f;
	fixture_write(&f, &(struct model_config){.n_series = 50, .samples = 20, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE}, 0);
	struct block_index_ranges ranges;
	struct block *b;
	struct err err = {0};
	assert_int_equal(block_open(&f.files.base, &f.meta, NULL, &b, &err), OK);
	block_ranges(b, &ranges);
	block_unref(b);
	assert_int_equal(ranges.index_size, memory_files_find(&f.files, "index")->n);
	memory_files_clear_counters(&f.files);
	assert_int_equal(block_open(&f.files.base, &f.meta, &ranges, &b, &err), OK);
	assert_int_equal(f.files.sizes, 1); /* tombstones */
	assert_true(b->index.n_names > 3);
	block_unref(b);
	struct block_index_ranges stale = ranges;
	stale.postings_table_off -= 16;
	stale.symbols_off += 100;
	assert_int_equal(block_open(&f.files.base, &f.meta, &stale, &b, &err), OK);
	block_unref(b);
	stale.index_size += 7;
	assert_int_equal(block_open(&f.files.base, &f.meta, &stale, &b, &err), ERR_CORRUPT);
	assert_int_equal(f.files.closed, 3 - 0);
	memory_files_free(&f.files);
	model_free(&f.m);
}

/* ---- damage ---- */

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
	memory_files_free(&f.files);
	model_free(&f.m);
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
	memory_files_free(&f.files);
	model_free(&f.m);
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
	memory_files_free(&f.files);
	model_free(&f.m);
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
	memory_files_free(&f.files);
	model_free(&f.m);
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
	memory_files_free(&f.files);
	model_free(&f.m);
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
	f.files.closed = 0;
	fixture_close(&f);
}

/* ---- golden blocks ---- */

struct counts {
	uint64_t floats, histograms, chunks, series;
};

static void golden_read(const char *dir, const struct block_meta *meta, struct counts *c)
{
	struct block_files *files;
	struct block *b = NULL;
	struct source *s = NULL;
	struct series_iter *it;
	struct err err = {0};
	struct arena a;
	struct model m;
	arena_init(&a, 64 * MIB);
	model_read(&m, dir);
	if (block_files_dir(dir, &files, &err) || block_open(files, meta, NULL, &b, &err) || block_source(b, "bucket", &s, &err))
		fail_msg("%s", err.msg);
	block_unref(b);
	assert_int_equal(s->mint, meta->mint);
	assert_int_equal(s->maxt, meta->maxt);
	assert_true(labels_eq(s->ext_labels, meta->ext_labels));
	assert_int_equal(s->ops->select(s, NULL, 0, &EVERYTHING, &it, &err), OK);
	*c = (struct counts){0};
	for (;; c->series++) {
		struct series_view view;
		bool more;
		if (it->ops->next(it, &view, &more, &err))
			fail_msg("%s: %s", dir, err.msg);
		if (!more)
			break;
		assert_true(labels_eq(view.labels, m.v[c->series].labels));
		assert_int_equal(view.n_chunks, m.v[c->series].n);
		for (size_t k = 0; k < view.n_chunks; k++) {
			const struct chunk *x = &view.chunks[k];
			struct chunk_iter *ci;
			struct chunk_point p = {0};
			uint32_t n, i = 0;
			assert_true(span_eq(x->data, m.v[c->series].chunks[k].data));
			c->chunks++;
			if (meta->resolution_ms > 0) {
				assert_int_equal(chunk_iter_new(x->enc, x->data, &a, &ci, &err), ERR_UNSUPPORTED);
				continue;
			}
			assert_int_equal(chunk_count(x->enc, x->data, &n, &err), OK);
			if (chunk_iter_new(x->enc, x->data, &a, &ci, &err))
				fail_msg("%s", err.msg);
			for (;; i++) {
				bool some;
				if (chunk_iter_next(ci, &p, &some, &err))
					fail_msg("%s", err.msg);
				if (!some)
					break;
				if (i == 0)
					assert_int_equal(p.t, x->mint);
				if (p.kind == SAMPLE_FLOAT) {
					c->floats++;
					continue;
				}
				c->histograms++;
				/* what every integer histogram keeps */
				uint64_t sum = p.h->i_zero_count;
				int64_t bucket = 0;
				for (uint32_t j = 0; j < p.h->n_pos; j++)
					sum += (uint64_t)(bucket += p.h->i_pos[j]);
				bucket = 0;
				for (uint32_t j = 0; j < p.h->n_neg; j++)
					sum += (uint64_t)(bucket += p.h->i_neg[j]);
				if (p.kind == SAMPLE_HISTOGRAM)
					assert_int_equal(sum, p.h->i_count);
			}
			assert_int_equal(i, n);
			assert_int_equal(p.t, x->maxt);
			arena_reset(&a);
		}
	}
	it->ops->close(it);
	s->ops->release(s);
	model_free(&m);
	arena_free(&a);
}

static void golden_blocks(void **state)
{
	(void)state;
	static const char *const buckets[] = {"downsample", "dedup-one-to-one", "dedup-penalty"};
	struct arena a;
	struct err err = {0};
	size_t blocks = 0, downsampled = 0;
	uint64_t histograms = 0, samples = 0;
	arena_init(&a, 64 * MIB);
	for (size_t i = 0; i < 3; i++) {
		char **names;
		size_t n;
		const char *bucket = arena_printf(&a, "tests/golden/blocks/%s", buckets[i]);
		assert_int_equal(io_listdir(bucket, &a, &names, &n, &err), OK);
		for (size_t k = 0; k < n; k++) {
			const char *dir = arena_printf(&a, "%s/%s", bucket, names[k]);
			struct span json;
			struct block_meta meta;
			struct counts c;
			assert_int_equal(io_read_file(arena_printf(&a, "%s/meta.json", dir), MIB, &a, &json, &err), OK);
			assert_int_equal(block_meta_parse(dir, json, &a, &meta, &err), OK);
			golden_read(dir, &meta, &c);
			assert_int_equal(c.series, meta.n_series);
			assert_int_equal(c.chunks, meta.n_chunks);
			blocks++;
			if (meta.resolution_ms > 0) {
				downsampled++;
				continue;
			}
			assert_int_equal(c.floats + c.histograms, meta.n_samples);
			if (meta.n_float_samples + meta.n_histogram_samples > 0) {
				assert_int_equal(c.floats, meta.n_float_samples);
				assert_int_equal(c.histograms, meta.n_histogram_samples);
			}
			histograms += c.histograms;
			samples += c.floats;
		}
	}
	print_message("%zu blocks, %zu of them downsampled; %llu floats, %llu histograms\n", blocks, downsampled, (unsigned long long)samples,
		(unsigned long long)histograms);
	assert_int_equal(downsampled, 2);
	assert_true(blocks > 20 && histograms > 6000);
	arena_free(&a);
}

/* ---- threads ---- */

struct crowd {
	struct fixture *f;
	const char *selector;
	size_t series;
};

static void *crowd_member(void *arg)
{
	struct crowd *c = arg;
	for (int round = 0; round < 20; round++) {
		struct arena a;
		struct matcher *m;
		size_t n;
		struct series_iter *it;
		struct series_view view;
		bool more = true;
		arena_init(&a, MIB);
		if (matchers_parse(span_cstr(c->selector), &a, &m, &n, NULL) || c->f->source->ops->select(c->f->source, m, n, &EVERYTHING, &it, NULL))
			abort();
		for (c->series = 0; more; c->series += more)
			if (it->ops->next(it, &view, &more, NULL))
				abort();
		it->ops->close(it);
		matchers_free(m, n);
		arena_free(&a);
	}
	return NULL;
}

static void many_threads(void **state)
{
	(void)state;
	struct fixture f;
	fixture_write(&f, &(struct model_config){.n_series = 400, .samples = 50, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE}, 0);
	fixture_open(&f);
	struct crowd crowd[8];
	pthread_t threads[8];
	for (int i = 0; i < 8; i++) {
		crowd[i] = (struct crowd){&f, i % 2 ? "{instance=~\"host-(1|2).*\"}" : "{id=~\".+\"}", 0};
		assert_int_equal(pthread_create(&threads[i], NULL, crowd_member, &crowd[i]), 0);
	}
	for (int i = 0; i < 8; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(crowd[i].series, crowd[i % 2].series);
	}
	assert_int_equal(crowd[0].series, 400);
	f.files.closed = 0;
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_written_comes_back),
		cmocka_unit_test(names_and_values),
		cmocka_unit_test(reads_are_few),
		cmocka_unit_test(ranges_of_the_catalog),
		cmocka_unit_test(every_flip),
		cmocka_unit_test(every_truncation),
		cmocka_unit_test(every_read_fails),
		cmocka_unit_test(every_allocation_fails),
		cmocka_unit_test(damage_is_named),
		cmocka_unit_test(deleted_intervals),
		cmocka_unit_test(golden_blocks),
		cmocka_unit_test(many_threads),
	};
	return cmocka_run_group_tests_name("block_reader", tests, NULL, NULL);
}
