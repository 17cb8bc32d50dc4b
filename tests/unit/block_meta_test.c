/* meta.json: the exact text, the way there and back, and what is refused and how it is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "block/block.h"

static const char FULL[] = "{\n"
			   "\t\"ulid\": \"01HF7YAT000000000000000001\",\n"
			   "\t\"minTime\": 1700006400000,\n"
			   "\t\"maxTime\": 1700013600000,\n"
			   "\t\"stats\": {\n"
			   "\t\t\"numSamples\": 30,\n"
			   "\t\t\"numFloatSamples\": 20,\n"
			   "\t\t\"numHistogramSamples\": 10,\n"
			   "\t\t\"numSeries\": 3,\n"
			   "\t\t\"numChunks\": 4,\n"
			   "\t\t\"numTombstones\": 5\n"
			   "\t},\n"
			   "\t\"compaction\": {\n"
			   "\t\t\"level\": 2,\n"
			   "\t\t\"sources\": [\n"
			   "\t\t\t\"01HF7YAT000000000000000002\",\n"
			   "\t\t\t\"01HF7YAT000000000000000003\"\n"
			   "\t\t],\n"
			   "\t\t\"parents\": [\n"
			   "\t\t\t{\n"
			   "\t\t\t\t\"ulid\": \"01HF7YAT000000000000000002\",\n"
			   "\t\t\t\t\"minTime\": -5,\n"
			   "\t\t\t\t\"maxTime\": 9223372036854775807\n"
			   "\t\t\t}\n"
			   "\t\t]\n"
			   "\t},\n"
			   "\t\"version\": 1,\n"
			   "\t\"thanos\": {\n"
			   "\t\t\"version\": 1,\n"
			   "\t\t\"labels\": {\n"
			   "\t\t\t\"a\": \"quote \\\" back \\\\ tab \\t line \\n \\u003cb\\u003e \\u0026 \\u0001 \\u2028 \xc3\xa9\",\n"
			   "\t\t\t\"tenant_id\": \"t\"\n"
			   "\t\t},\n"
			   "\t\t\"downsample\": {\n"
			   "\t\t\t\"resolution\": 300000\n"
			   "\t\t},\n"
			   "\t\t\"source\": \"receive\",\n"
			   "\t\t\"segment_files\": [\n"
			   "\t\t\t\"000001\"\n"
			   "\t\t],\n"
			   "\t\t\"files\": [\n"
			   "\t\t\t{\n"
			   "\t\t\t\t\"rel_path\": \"chunks/000001\",\n"
			   "\t\t\t\t\"size_bytes\": 100,\n"
			   "\t\t\t\t\"hash\": {\n"
			   "\t\t\t\t\t\"hashFunc\": \"SHA256\",\n"
			   "\t\t\t\t\t\"value\": \"000102030405060708090a0b0c0d0e0ff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff\"\n"
			   "\t\t\t\t}\n"
			   "\t\t\t},\n"
			   "\t\t\t{\n"
			   "\t\t\t\t\"rel_path\": \"meta.json\"\n"
			   "\t\t\t}\n"
			   "\t\t],\n"
			   "\t\t\"index_stats\": {},\n"
			   "\t\t\"extensions\": {\n"
			   "\t\t\t\"varve\": {\n"
			   "\t\t\t\t\"window\": \"01HF7YAT000000000000000004\",\n"
			   "\t\t\t\t\"upto_seq\": \"18446744073709551614\",\n"
			   "\t\t\t\t\"node\": \"n1\",\n"
			   "\t\t\t\t\"crc32c\": \"34c7364f\"\n"
			   "\t\t\t}\n"
			   "\t\t},\n"
			   "\t\t\"upload_time\": \"2026-11-23T06:04:20.720557737Z\"\n"
			   "\t}\n"
			   "}\n";

static errc parse(const char *text, size_t n, struct arena *a, struct block_meta *m, struct err *err)
{
	/* exactly allocated, so that a sanitizer sees a read behind the end */
	char *exact = malloc(n ? n : 1);
	assert_non_null(exact);
	memcpy(exact, text, n);
	errc rc = block_meta_parse("x/meta.json", span_of(exact, n), a, m, err);
	free(exact);
	return rc;
}

static void exact_text(void **state)
{
	(void)state;
	struct arena a;
	struct block_meta m;
	struct err err = {0};
	struct buf out = {0};
	arena_init(&a, MIB);
	buf_init(&out, MIB);
	if (parse(FULL, sizeof FULL - 1, &a, &m, &err))
		fail_msg("%s", err.msg);
	assert_true(m.mint == 1700006400000 && m.maxt == 1700013600000 && m.level == 2);
	assert_true(m.n_samples == 30 && m.n_float_samples == 20 && m.n_histogram_samples == 10 && m.n_series == 3 && m.n_chunks == 4 &&
		    m.n_tombstones == 5);
	assert_true(m.n_sources == 2 && m.n_parents == 1 && m.parents[0].mint == -5 && m.parents[0].maxt == INT64_MAX);
	assert_true(m.has_thanos && m.resolution_ms == 300000 && span_is(m.source, "receive"));
	assert_true(m.ext_labels.n == 2 &&
		    span_is(labels_get(m.ext_labels, SPAN("a")), "quote \" back \\ tab \t line \n <b> & \1 \xe2\x80\xa8 \xc3\xa9"));
	assert_true(
		m.n_files == 2 && m.files[0].has_sha256 && m.files[0].sha256[31] == 0xff && m.files[0].size_bytes == 100 && !m.files[1].has_sha256);
	assert_true(m.has_varve && m.upto_seq == UINT64_MAX - 1 && span_is(m.node, "n1"));
	assert_int_equal(block_meta_write(&m, &out), OK);
	buf_u8(&out, 0);
	assert_string_equal((const char *)out.p, FULL);
	buf_free(&out);
	arena_free(&a);
}

/* Each bit of each byte flipped: not read, or read as what it was, or said to be somebody else's work. */
static void a_flipped_bit_is_seen(void **state)
{
	(void)state;
	size_t refused = 0, same = 0, foreign = 0;
	for (size_t i = 0; i < sizeof FULL - 1; i++) {
		for (int bit = 0; bit < 8; bit++) {
			char text[sizeof FULL];
			struct arena a;
			struct block_meta m;
			struct err err = {0};
			struct buf out;
			arena_init(&a, MIB);
			buf_init(&out, MIB);
			memcpy(text, FULL, sizeof FULL);
			text[i] = (char)(text[i] ^ 1 << bit);
			if (parse(text, sizeof FULL - 1, &a, &m, &err) != OK) {
				refused++;
			} else if (m.has_thanos && m.has_varve && span_is(m.source, "receive")) {
				assert_int_equal(block_meta_write(&m, &out), OK);
				/* The key's own name is not covered. */
				if (!span_is(span_of(out.p, out.n), FULL))
					fail_msg("byte %zu bit %d: believed\n%.*s", i, bit, (int)out.n, (const char *)out.p);
				same++;
			} else {
				foreign++;
			}
			buf_free(&out);
			arena_free(&a);
		}
	}
	printf("%zu refused, %zu the same, %zu another's\n", refused, same, foreign);
	assert_true(refused > 10 * (same + foreign));
}

/* The least that is a block; and what a writer leaves out comes back as zero. */
static void least(void **state)
{
	(void)state;
	static const char text[] = "{\"version\":1,\"ulid\":\"01HF7YAT000000000000000001\",\"minTime\":-7,\"maxTime\":-7,\"compaction\":{\"level\":1}"
				   ",\"unknown\":[1.5,{}]}";
	static const char again[] = "{\n\t\"ulid\": \"01HF7YAT000000000000000001\",\n\t\"minTime\": -7,\n\t\"maxTime\": -7,\n\t\"stats\": {},\n"
				    "\t\"compaction\": {\n\t\t\"level\": 1\n\t},\n\t\"version\": 1\n}\n";
	struct arena a;
	struct block_meta m;
	struct err err = {0};
	struct buf out = {0};
	arena_init(&a, MIB);
	buf_init(&out, MIB);
	if (parse(text, sizeof text - 1, &a, &m, &err))
		fail_msg("%s", err.msg);
	assert_true(!m.has_thanos && !m.has_varve && m.n_files == 0 && m.n_sources == 0 && m.ext_labels.n == 0);
	assert_int_equal(block_meta_write(&m, &out), OK);
	buf_u8(&out, 0);
	assert_string_equal((const char *)out.p, again);
	buf_free(&out);
	arena_free(&a);
}

/* One text replaced in the full file: refused, and the message names the file and the key. */
static void refused_by_name(void **state)
{
	(void)state;
	static const struct {
		const char *old, *now, *named;
	} cases[] = {
		{"\"version\": 1,\n\t\"thanos\"", "\"version\": 2,\n\t\"thanos\"", "version is 2"},
		{"\"version\": 1,\n\t\"thanos\"", "\"thanos\"", "version"},
		{"\"ulid\": \"01HF7YAT000000000000000001\"", "\"ulid\": \"01HF7YAT00000000000000000\"", "ulid"},
		{"\"ulid\": \"01HF7YAT000000000000000001\"", "\"ulid\": 3", "ulid"},
		{"\"minTime\": 1700006400000", "\"minTime\": 1.5", "minTime"},
		{"\"minTime\": 1700006400000", "\"minTime\": \"1\"", "minTime"},
		{"\"minTime\": 1700006400000,", "", "minTime"},
		{"\"maxTime\": 1700013600000", "\"maxTime\": 1700006399999", "maxTime"},
		{"\"maxTime\": 1700013600000", "\"maxTime\": 99999999999999999999", "integer"},
		{"\"numSamples\": 30", "\"numSamples\": -1", "stats.numSamples"},
		{"\"level\": 2", "\"level\": null", "compaction.level"},
		{"\"compaction\": {", "\"compaction2\": {", "compaction"},
		{"\"01HF7YAT000000000000000003\"", "7", "compaction.sources"},
		{"\"minTime\": -5", "\"minTime\": {}", "compaction.parents.minTime"},
		{"\"thanos\": {", "\"thanos\": 1, \"x\": {", "thanos"},
		{"\"tenant_id\": \"t\"", "\"tenant_id\": 1", "thanos.labels"},
		{"\"tenant_id\": \"t\"", "\"\": \"t\"", "thanos.labels"},
		{"\"resolution\": 300000", "\"resolution\": -300000", "thanos.resolution"},
		{"\"source\": \"receive\"", "\"source\": []", "thanos.source"},
		{"\"chunks/000001\"", "\"../chunks/000001\"", "thanos.files.rel_path"},
		{"\"chunks/000001\"", "\"/chunks/000001\"", "thanos.files.rel_path"},
		{"\"chunks/000001\"", "\"chunks/./000001\"", "thanos.files.rel_path"},
		{"\"chunks/000001\"", "\"chunks//000001\"", "thanos.files.rel_path"},
		{"\"chunks/000001\"", "\"\"", "thanos.files.rel_path"},
		{"\"size_bytes\": 100", "\"size_bytes\": 1e2", "thanos.files.size_bytes"},
		{"0001020304", "000102030", "thanos.files.hash.value"},
		{"0001020304", "00010203zz", "thanos.files.hash.value"},
		{"\"window\": \"01HF7YAT000000000000000004\"", "\"window\": \"\"", "thanos.extensions.varve.window"},
		{"\"18446744073709551614\"", "18446744073709551", "thanos.extensions.varve.upto_seq"},
		{"\"18446744073709551614\"", "\"18446744073709551616\"", "thanos.extensions.varve.upto_seq"},
		{"\"18446744073709551614\"", "\"99999999999999999999\"", "thanos.extensions.varve.upto_seq"},
		{"\"18446744073709551614\"", "\"-1\"", "thanos.extensions.varve.upto_seq"},
		{"\"18446744073709551614\"", "\"\"", "thanos.extensions.varve.upto_seq"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		char text[sizeof FULL + 100];
		const char *at = strstr(FULL, cases[i].old);
		struct arena a;
		struct block_meta m;
		struct err err = {0};
		assert_non_null(at);
		snprintf(text, sizeof text, "%.*s%s%s", (int)(at - FULL), FULL, cases[i].now, at + strlen(cases[i].old));
		arena_init(&a, MIB);
		errc rc = parse(text, strlen(text), &a, &m, &err);
		if (rc != ERR_CORRUPT || !strstr(err.msg, cases[i].named) || strncmp(err.msg, "x/meta.json: ", 13) != 0)
			fail_msg("%s -> %s: %s: %s", cases[i].old, cases[i].now, errc_name(rc), err.msg);
		arena_free(&a);
	}
}

/* Every prefix is refused (but the one that lacks the newline only), every flipped bit refused or read; nothing crashes. */
static void damage(void **state)
{
	(void)state;
	struct arena a;
	struct block_meta m;
	struct err err = {0};
	arena_init(&a, MIB);
	for (size_t n = 0; n < sizeof FULL - 2; n++) {
		assert_int_equal(parse(FULL, n, &a, &m, &err), ERR_CORRUPT);
		arena_reset(&a);
	}
	for (size_t bit = 0; bit < 8 * (sizeof FULL - 1); bit++) {
		char text[sizeof FULL];
		memcpy(text, FULL, sizeof text);
		text[bit / 8] = (char)(text[bit / 8] ^ 1 << bit % 8);
		errc rc = parse(text, sizeof FULL - 1, &a, &m, &err);
		assert_true(rc == OK || rc == ERR_CORRUPT);
		arena_reset(&a);
	}
	arena_free(&a);
	/* an arena that is too small at every size says so */
	for (size_t max = 0; max < 1200; max += 8) {
		arena_init(&a, max);
		errc rc = parse(FULL, sizeof FULL - 1, &a, &m, &err);
		assert_true(rc == OK || rc == ERR_NOMEM);
		arena_free(&a);
	}
}

static void not_utf8(void **state)
{
	(void)state;
	struct block_meta m = {.has_thanos = true, .source = SPAN("receive\xff")};
	struct buf out = {0};
	buf_init(&out, MIB);
	assert_int_equal(block_meta_write(&m, &out), ERR_INVALID);
	m.source = SPAN("receive");
	assert_int_equal(block_meta_write(&m, &out), OK);
	buf_free(&out);
	buf_init(&out, 100);
	assert_int_equal(block_meta_write(&m, &out), ERR_NOMEM);
	buf_free(&out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exact_text),
		cmocka_unit_test(a_flipped_bit_is_seen),
		cmocka_unit_test(least),
		cmocka_unit_test(refused_by_name),
		cmocka_unit_test(damage),
		cmocka_unit_test(not_utf8),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
