/* block_verify finds what is wrong, all of it where it can go on, and nothing in blocks that are right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block_read_int.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/memory_files.h"
#include "tests/support/tmp.h"

static const int64_t T0 = 1700006400000;

struct told {
	size_t n;
	char text[8][512];
};

static void collect(void *arg, const char *text)
{
	struct told *t = arg;
	if (t->n < 8)
		snprintf(t->text[t->n], sizeof t->text[0], "%s", text);
	t->n++;
}

struct fixture {
	struct model m;
	struct block_meta meta;
	struct memory_files files;
};

static void fixture_make(struct fixture *f, size_t series, uint32_t samples, uint64_t segment_bytes)
{
	struct err err = {0};
	uint64_t bytes;
	struct ulid u = {{1, 0x8b, 0xcf, 0xe5, 0x68, 0, [15] = 9}};
	const char *dir = tmp_dir();
	model_make(&f->m, &(struct model_config){.n_series = series,
				  .samples = samples,
				  .start_ms = T0,
				  .step_ms = 15000,
				  .range_ms = 7200000,
				  .nasty = true,
				  .strange = series > 20});
	if (model_write(&f->m, dir, u, segment_bytes, &f->meta, &bytes, &err))
		fail_msg("%s", err.msg);
	memory_files_load(&f->files, tmp_path("%s/%s", dir, ulid_text(u).s));
}

static void fixture_free(struct fixture *f)
{
	memory_files_free(&f->files);
	model_free(&f->m);
}

static struct told verify(struct fixture *f)
{
	struct told t = {.n = 0};
	struct err err = {0};
	if (block_verify(&f->files.base, &f->meta, collect, &t, &err))
		fail_msg("%s", err.msg);
	assert_int_equal(f->files.closed, 0);
	return t;
}

static void assert_told(const struct told *t, const char *what)
{
	for (size_t i = 0; i < t->n && i < 8; i++)
		if (strstr(t->text[i], what))
			return;
	fail_msg("%zu problems, none says '%s': %s", t->n, what, t->n ? t->text[0] : "");
}

static void right_blocks(void **state)
{
	(void)state;
	static const struct {
		size_t series;
		uint32_t samples;
		uint64_t segment_bytes;
	} cases[] = {{1, 1, 0}, {100, 480, 20000}, {2000, 20, 0}};
	for (size_t c = 0; c < 6; c++) {
		struct fixture f;
		block_symbols_kept_bytes = c % 2 ? 0 : 16 * MIB;
		fixture_make(&f, cases[c / 2].series, cases[c / 2].samples, cases[c / 2].segment_bytes);
		struct told t = verify(&f);
		if (t.n)
			fail_msg("%s", t.text[0]);
		fixture_free(&f);
	}
	block_symbols_kept_bytes = 16 * MIB;
}

static void golden_blocks(void **state)
{
	(void)state;
	static const char *const buckets[] = {"downsample", "dedup-one-to-one", "dedup-penalty"};
	struct arena a;
	struct err err = {0};
	size_t blocks = 0;
	arena_init(&a, 64 * MIB);
	for (size_t i = 0; i < 3; i++) {
		char **names;
		size_t n;
		const char *bucket = arena_printf(&a, "tests/golden/blocks/%s", buckets[i]);
		assert_int_equal(io_listdir(bucket, &a, &names, &n, &err), OK);
		for (size_t k = 0; k < n; k++, blocks++) {
			const char *dir = arena_printf(&a, "%s/%s", bucket, names[k]);
			struct span json;
			struct block_meta meta;
			struct block_files *files;
			struct told t = {.n = 0};
			assert_int_equal(io_read_file(arena_printf(&a, "%s/meta.json", dir), MIB, &a, &json, &err), OK);
			assert_int_equal(block_meta_parse(dir, json, &a, &meta, &err), OK);
			assert_int_equal(block_files_dir(dir, &files, &err), OK);
			assert_int_equal(block_verify(files, &meta, collect, &t, &err), OK);
			if (t.n)
				fail_msg("%s: %zu problems: %s", dir, t.n, t.text[0]);
			files->close(files);
		}
	}
	assert_true(blocks > 20);
	arena_free(&a);
}

/* A block with checksums in its meta.json: no byte of index and chunks can change unseen. Without them what is not seen is not read. */
static void every_flip(void **state)
{
	(void)state;
	struct fixture f;
	size_t unseen = 0, flips = 0;
	fixture_make(&f, 4, 130, 900);
	size_t n_files = f.meta.n_files;
	for (size_t file = 0; file < f.files.n; file++) {
		struct memory_file *m = &f.files.v[file];
		for (size_t i = 0; i < m->n; i++) {
			m->p[i] ^= (uint8_t)(1u << i % 8);
			struct told t = verify(&f);
			if (t.n == 0)
				fail_msg("%s: byte %zu of %zu", m->path, i, m->n);
			assert_true(strlen(t.text[0]) > 20);
			f.meta.n_files = 0;
			t = verify(&f);
			unseen += t.n == 0;
			flips++;
			f.meta.n_files = n_files;
			m->p[i] ^= (uint8_t)(1u << i % 8);
		}
	}
	print_message("%zu flips, %zu unseen without SHA-256\n", flips, unseen);
	/* padding in segment headers, between series and before postings; the TOC's CRC covers what it says of sections that nobody reads */
	assert_true(unseen < 100);
	fixture_free(&f);
}

/* Damage costs itself: the rest is still read, so two damages are both told. */
static void goes_on_behind_damage(void **state)
{
	(void)state;
	struct fixture f;
	fixture_make(&f, 30, 130, 0);
	f.meta.n_files = 0;
	struct memory_file *chunks = memory_files_find(&f.files, "chunks/000001"), *index = memory_files_find(&f.files, "index");
	chunks->p[50] ^= 1;
	chunks->p[chunks->n - 50] ^= 1;
	struct told t = verify(&f);
	assert_told(&t, "chunks/000001: chunk at 8: CRC differs");
	assert_true(t.n >= 2);
	chunks->p[50] ^= 1;
	chunks->p[chunks->n - 50] ^= 1;
	index->p[f.meta.n_series > 0 ? get_be64(index->p + index->n - 52 + 8) + 20 : 0] ^= 1;
	t = verify(&f);
	assert_told(&t, "CRC differs");
	assert_told(&t, "30 series, the block has 29");
	assert_told(&t, "not what the series' labels say");
	fixture_free(&f);
}

static void meta_is_held_against_the_block(void **state)
{
	(void)state;
	struct fixture f;
	struct told t;
	fixture_make(&f, 30, 130, 20000);
	const struct block_meta was = f.meta;
	f.meta.n_series++;
	f.meta.n_chunks--;
	f.meta.n_samples += 2;
	t = verify(&f);
	assert_int_equal(t.n, 3);
	assert_told(&t, "31 series, the block has 30");
	f.meta = was;
	f.meta.mint = T0 + 100;
	t = verify(&f);
	assert_told(&t, "outside of the block's");
	f.meta = was;
	f.meta.maxt--;
	t = verify(&f);
	assert_told(&t, "outside of the block's");
	f.meta = was;
	f.meta.files[1].size_bytes++;
	t = verify(&f);
	assert_told(&t, "meta.json says");
	f.meta.files[1].size_bytes--;
	f.meta.files[0].sha256[3] ^= 4;
	t = verify(&f);
	assert_int_equal(t.n, 1);
	assert_told(&t, "SHA-256");
	f.meta.files[0].sha256[3] ^= 4;
	f.meta.resolution_ms = 300000;
	t = verify(&f);
	assert_told(&t, "in a downsampled block");
	f.meta = was;
	/* a segment that is missing */
	snprintf(memory_files_find(&f.files, "chunks/000002")->path, 32, "chunks/000099");
	t = verify(&f);
	assert_told(&t, "chunks/000002");
	fixture_free(&f);
}

/* Well-formed, every CRC right, and still wrong: a list that names another series, an index that says another time, an interval of nobody. */
static void lies_with_good_checksums(void **state)
{
	(void)state;
	struct fixture f;
	struct told t;
	fixture_make(&f, 6, 20, 0);
	f.meta.n_files = 0;
	struct memory_file *index = memory_files_find(&f.files, "index");
	uint8_t *toc = index->p + index->n - 52;
	/* the last list of postings before the table */
	struct index_header ix;
	struct err err = {0};
	assert_int_equal(index_open(&ix, &f.files.base, f.meta.ulid, NULL, &err), OK);
	struct window w = {0};
	struct table_entry e = {0};
	uint64_t off = index_name_find(&ix, SPAN("id"))->begin;
	assert_int_equal(index_table_entry(&ix, &w, 4096, &off, &e, &err), OK);
	uint8_t *list = index->p + e.postings_off;
	assert_int_equal(get_be32(list + 4), 1);
	struct index_reader r;
	struct arena a;
	struct postings all;
	arena_init(&a, MIB);
	assert_int_equal(index_reader_init(&r, &ix, &err), OK);
	assert_int_equal(postings_select(&r.postings, NULL, 0, &a, &all, &err), OK);
	uint32_t ref = get_be32(list + 8);
	put_be32(list + 8, ref == all.v[0] ? all.v[1] : all.v[0]);
	t = verify(&f);
	assert_told(&t, "CRC differs");
	put_be32(list + 12, crc32c(0, list + 4, 8));
	t = verify(&f);
	assert_int_equal(t.n, 1);
	assert_told(&t, "not what the series' labels say");
	put_be32(list + 8, ref);
	put_be32(list + 12, crc32c(0, list + 4, 8));
	t = verify(&f);
	assert_int_equal(t.n, 0);

	/* the list of all, two of them changed about */
	uint8_t *everyone = index->p + ix.all_off;
	assert_int_equal(get_be32(everyone + 4), 6);
	put_be32(everyone + 8, all.v[1]);
	put_be32(everyone + 12, all.v[0]);
	put_be32(everyone + 32, crc32c(0, everyone + 4, 28));
	t = verify(&f);
	assert_told(&t, "do not ascend");
	put_be32(everyone + 8, all.v[0]);
	put_be32(everyone + 12, all.v[1]);
	/* one of them outside of the series */
	put_be32(everyone + 28, all.v[5] + 1000);
	put_be32(everyone + 32, crc32c(0, everyone + 4, 28));
	t = verify(&f);
	assert_told(&t, "name series outside of");
	/* one of them where none begins */
	put_be32(everyone + 28, all.v[5] + 1);
	put_be32(everyone + 32, crc32c(0, everyone + 4, 28));
	t = verify(&f);
	assert_told(&t, "is not in the list of all");
	assert_told(&t, "where none begins");
	put_be32(everyone + 28, all.v[5]);
	put_be32(everyone + 32, crc32c(0, everyone + 4, 28));
	assert_int_equal(verify(&f).n, 0);

	/* the first series' first chunk begins a millisecond later: the varint behind labels and counts */
	uint8_t *entry = index->p + (get_be64(toc + 8) + 15) / 16 * 16;
	struct rd rd = rd_of(entry, 200);
	uint64_t len = rd_uvarint(&rd);
	uint8_t *body = (uint8_t *)rd.p;
	uint64_t labels = rd_uvarint(&rd);
	for (uint64_t i = 0; i < 2 * labels; i++)
		(void)rd_uvarint(&rd);
	(void)rd_uvarint(&rd);
	*(uint8_t *)rd.p ^= 2;
	put_be32(body + len, crc32c(0, body, len));
	t = verify(&f);
	assert_true(t.n >= 1);
	assert_told(&t, "first sample is at");
	*(uint8_t *)rd.p ^= 2;
	put_be32(body + len, crc32c(0, body, len));

	struct buf b;
	buf_init(&b, MIB);
	buf_be32(&b, 0x0130BA30);
	buf_u8(&b, 1);
	buf_uvarint(&b, all.v[0] + 1000000);
	buf_varint(&b, 1);
	buf_varint(&b, 2);
	buf_be32(&b, crc32c(0, b.p + 5, b.n - 5));
	memory_files_set(&f.files, "tombstones", b.p, b.n);
	t = verify(&f);
	assert_int_equal(t.n, 1);
	assert_told(&t, "which is not there");
	buf_free(&b);
	window_free(&w);
	index_reader_free(&r);
	index_close(&ix);
	arena_free(&a);
	fixture_free(&f);
}

static void every_read_and_allocation_fails(void **state)
{
	(void)state;
	struct fixture f;
	fixture_make(&f, 4, 130, 900);
	for (size_t n = 1;; n++) {
		struct told t = {.n = 0};
		struct err err = {0};
		memory_files_clear_counters(&f.files);
		f.files.fail_at = n;
		errc rc = block_verify(&f.files.base, &f.meta, collect, &t, &err);
		if (f.files.reads + f.files.sizes < n) {
			assert_int_equal(rc, OK);
			break;
		}
		assert_int_equal(rc, ERR_IO);
		assert_int_equal(err.code, ERR_IO);
		assert_int_equal(t.n, 0);
	}
	memory_files_clear_counters(&f.files);
	for (uint64_t n = 1;; n++) {
		struct told t = {.n = 0};
		struct err err = {0};
		fail_alloc_at(n, false);
		errc rc = block_verify(&f.files.base, &f.meta, collect, &t, &err);
		uint64_t hits = fail_alloc_off();
		assert_int_equal(t.n, 0);
		if (hits == 0) {
			assert_int_equal(rc, OK);
			break;
		}
		assert_int_equal(rc, ERR_NOMEM);
		assert_int_equal(err.code, ERR_NOMEM);
	}
	fixture_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(right_blocks),
		cmocka_unit_test(golden_blocks),
		cmocka_unit_test(every_flip),
		cmocka_unit_test(goes_on_behind_damage),
		cmocka_unit_test(meta_is_held_against_the_block),
		cmocka_unit_test(lies_with_good_checksums),
		cmocka_unit_test(every_read_and_allocation_fails),
	};
	return cmocka_run_group_tests_name("block_verify", tests, NULL, NULL);
}
