/* Reading blocks: what was written comes back, whatever is asked; reads are few and memory is bounded. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <malloc.h>
#include <pthread.h>
#include <cmocka.h>
#include "base/errid.h"
#include "base/io.h"
#include "base/limits.h"
#include "block/block_read_int.h"
#include "tests/support/block_fixture.h"

static const int64_t T0 = 1700006400000;
static const int64_t RANGE = 7200000;
static const struct select_options EVERYTHING = {.mint = INT64_MIN, .maxt = INT64_MAX};

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
	fixture_close(&f);
	arena_free(&a);
}

/* What a query holds does not grow with the block: a tenth of it is read ahead, the rest comes and goes. */
static void memory_is_the_batch(void **state)
{
	(void)state;
	struct fixture f;
	struct err err = {0};
	fixture_write(&f, &(struct model_config){.n_series = 10000, .samples = 240, .start_ms = T0, .step_ms = 15000, .range_ms = RANGE}, 0);
	fixture_open(&f);
	struct mallinfo2 before = mallinfo2();
	size_t start = before.uordblks + before.hblkhd, peak = 0, series = 0;
	struct select_options opt = EVERYTHING;
	opt.batch_bytes = 64 * KIB;
	struct series_iter *it;
	assert_int_equal(f.source->ops->select(f.source, NULL, 0, &opt, &it, &err), OK);
	for (bool more = true; more; series += more) {
		struct series_view view;
		assert_int_equal(it->ops->next(it, &view, &more, &err), OK);
		struct mallinfo2 now = mallinfo2(); /* all 0 under a sanitizer */
		size_t held = now.uordblks + now.hblkhd;
		peak = held > start && held - start > peak ? held - start : peak;
	}
	it->ops->close(it);
	print_message("%zu series, peak %zu B\n", series, peak);
	assert_int_equal(series, 10000);
	assert_true(peak < MIB);
	fixture_close(&f);
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
	fixture_free(&f);
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
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_written_comes_back),
		cmocka_unit_test(names_and_values),
		cmocka_unit_test(reads_are_few),
		cmocka_unit_test(memory_is_the_batch),
		cmocka_unit_test(ranges_of_the_catalog),
		cmocka_unit_test(golden_blocks),
		cmocka_unit_test(many_threads),
	};
	return cmocka_run_group_tests_name("block_reader", tests, NULL, NULL);
}
