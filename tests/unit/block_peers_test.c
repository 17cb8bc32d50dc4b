/* varve's blocks and those of others: Prometheus' library's bytes are reproduced, promtool accepts and dumps what varve writes.
 *
 * tests/golden/blocks: blocks that Thanos left (Prometheus' library 3.9). promtool's tests are skipped where it is not installed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "tests/support/block_model.h"
#include "tests/support/tmp.h"

static const int64_t T0 = 1700006400000;
static const int64_t RANGE = 7200000;

static struct ulid ulid_of(uint8_t x)
{
	struct ulid u = {{1, 0x8b, 0xcf, 0xe5, 0x68, 0}};
	u.b[15] = x;
	return u;
}

static void rewrite(struct model *m, const char *dir, struct ulid u, struct model *got)
{
	struct block_meta meta;
	struct err err = {0};
	uint64_t bytes;
	if (model_write(m, dir, u, 0, &meta, &bytes, &err))
		fail_msg("%s", err.msg);
	model_read(got, tmp_path("%s/%s", dir, ulid_text(u).s));
}

/* ---- golden blocks ---- */

struct golden {
	char dir[512];
	struct block_meta meta;
	struct span json;
};

static size_t goldens(struct arena *a, struct golden **out)
{
	static const char root[] = "tests/golden/blocks";
	char **buckets, **blocks;
	size_t n_buckets, n_blocks, n = 0;
	struct err err = {0};
	*out = arena_calloc(a, 256, sizeof **out);
	assert_non_null(*out);
	if (io_listdir(root, a, &buckets, &n_buckets, &err))
		fail_msg("%s", err.msg);
	for (size_t i = 0; i < n_buckets; i++) {
		struct io_stat st;
		const char *bucket = arena_printf(a, "%s/%s", root, buckets[i]);
		assert_int_equal(io_stat(bucket, &st, &err), OK);
		if (!st.is_dir)
			continue;
		assert_int_equal(io_listdir(bucket, a, &blocks, &n_blocks, &err), OK);
		for (size_t k = 0; k < n_blocks && n < 256; k++) {
			struct golden *g = &(*out)[n];
			snprintf(g->dir, sizeof g->dir, "%s/%s", bucket, blocks[k]);
			const char *path = arena_printf(a, "%s/meta.json", g->dir);
			assert_int_equal(io_stat(path, &st, &err), OK);
			if (!st.exists)
				continue;
			assert_int_equal(io_read_file(path, MIB, a, &g->json, &err), OK);
			if (block_meta_parse(path, g->json, a, &g->meta, &err))
				fail_msg("%s", err.msg);
			n++;
		}
	}
	assert_true(n >= 10);
	return n;
}

/* A raw block of the reference, its series and chunks given to our writer: the same index and the same segments, byte for byte. */
static void golden_blocks_byte_for_byte(void **state)
{
	(void)state;
	struct arena a;
	struct golden *g;
	arena_init(&a, GIB);
	size_t n = goldens(&a, &g), raw = 0;
	for (size_t i = 0; i < n; i++) {
		if (g[i].meta.resolution_ms != 0)
			continue;
		struct model m, got;
		model_read(&m, g[i].dir);
		rewrite(&m, tmp_dir(), g[i].meta.ulid, &got);
		assert_int_equal(m.n_segments, got.n_segments);
		for (size_t k = 0; k < m.n_segments; k++)
			assert_true(span_eq(m.segments[k], got.segments[k]));
		assert_int_equal(m.index.n, got.index.n);
		assert_memory_equal(m.index.p, got.index.p, m.index.n);
		model_free(&m);
		model_free(&got);
		raw++;
	}
	printf("%zu blocks\n", raw);
	assert_true(raw >= 8);
	arena_free(&a);
}

/* The block writer that made them had chunks of 40 days' range; found by trying all whole hours. */
static const int64_t GOLDEN_RANGE = INT64_C(40) * 24 * 3600 * 1000;

/* The float series of blocks cut by the reference's head, decoded and encoded anew: the same borders, the same payloads. */
static void golden_chunks_from_samples(void **state)
{
	(void)state;
	struct arena a;
	struct golden *g;
	arena_init(&a, GIB);
	size_t n = goldens(&a, &g), chunks = 0;
	for (size_t i = 0; i < n; i++) {
		if (g[i].meta.resolution_ms != 0 || g[i].meta.level != 1 || !span_is(g[i].meta.source, "receive"))
			continue;
		struct model m;
		model_read(&m, g[i].dir);
		struct chunk_sample *v = arena_calloc(&a, 1000000, sizeof *v);
		assert_non_null(v);
		for (size_t s = 0; s < m.n; s++) {
			struct model_series *x = &m.v[s];
			struct err err = {0};
			size_t n_v = 0, got, n_mine;
			bool floats = true;
			for (size_t k = 0; k < x->n; k++)
				floats = floats && x->chunks[k].enc == CHUNK_XOR;
			if (!floats)
				continue;
			for (size_t k = 0; k < x->n; k++) {
				assert_int_equal(xor_decode(x->chunks[k].data, v + n_v, 1000000 - n_v, &got, &err), OK);
				assert_true(v[n_v].t == x->chunks[k].mint && v[n_v + got - 1].t == x->chunks[k].maxt);
				n_v += got;
			}
			struct chunk *mine = model_encode(&a, v, n_v, GOLDEN_RANGE, &n_mine);
			assert_int_equal(n_mine, x->n);
			for (size_t k = 0; k < n_mine; k++) {
				assert_true(mine[k].mint == x->chunks[k].mint && mine[k].maxt == x->chunks[k].maxt);
				assert_int_equal(mine[k].data.n, x->chunks[k].data.n);
				assert_memory_equal(mine[k].data.p, x->chunks[k].data.p, mine[k].data.n);
			}
			chunks += n_mine;
		}
		model_free(&m);
	}
	printf("%zu chunks\n", chunks);
	assert_true(chunks > 500);
	arena_free(&a);
}

/* meta.json read and written: the same text, but for index_stats, which is empty here, and the section's version, which is always there. */
static void golden_metas(void **state)
{
	(void)state;
	struct arena a;
	struct golden *g;
	arena_init(&a, GIB);
	size_t n = goldens(&a, &g);
	for (size_t i = 0; i < n; i++) {
		struct buf out = {0};
		buf_init(&out, MIB);
		assert_int_equal(block_meta_write(&g[i].meta, &out), OK);
		buf_u8(&out, 0);
		const char *want = g[i].json.p, *stats = strstr(want, "\"index_stats\": {");
		if (stats) {
			stats += strlen("\"index_stats\": {");
			const char *end = strchr(stats, '}');
			assert_non_null(end);
			want = arena_printf(&a, "%.*s%s", (int)(stats - want), want, end);
		}
		static const char open[] = "\"thanos\": {\n";
		const char *thanos = strstr(want, open) + sizeof open - 1;
		if (strncmp(thanos, "\t\t\"version\"", 11) != 0)
			want = arena_printf(&a, "%.*s\t\t\"version\": 1,\n%s", (int)(thanos - want), want, thanos);
		assert_string_equal((const char *)out.p, want);
		buf_free(&out);
	}
	arena_free(&a);
}

/* ---- promtool ---- */

static bool promtool_missing(void)
{
	return system("promtool --version >/dev/null 2>&1") != 0;
}

static void run(struct buf *out, const char *command)
{
	char part[65536];
	FILE *f = popen(command, "r");
	assert_non_null(f);
	buf_init(out, GIB);
	for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;)
		buf_put(out, part, n);
	int status = pclose(f);
	buf_u8(out, 0);
	assert_false(out->failed);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("%s: status %d: %s", command, status, (const char *)out->p);
}

/* The dump is exactly the samples: labels, times, values, in order. */
static void dump_agrees(const struct model *m, const char *dir)
{
	struct buf out;
	struct chunk_sample v[250];
	struct err err = {0};
	static char labels[64 * 1024];
	run(&out, tmp_path("promtool tsdb dump %s 2>&1", dir));
	char *line = (char *)out.p;
	for (size_t i = 0; i < m->n; i++) {
		labels_format(m->v[i].labels, labels, sizeof labels);
		size_t n_labels = strlen(labels), n;
		for (size_t k = 0; k < m->v[i].n; k++) {
			assert_int_equal(xor_decode(m->v[i].chunks[k].data, v, 250, &n, &err), OK);
			for (size_t s = 0; s < n; s++) {
				char *end;
				if (strncmp(line, labels, n_labels) != 0)
					fail_msg("series %zu: %s, not %.200s", i, labels, line);
				assert_true(f64_bits(strtod(line + n_labels, &end)) == v[s].v);
				assert_int_equal(strtoll(end, &end, 10), v[s].t);
				assert_int_equal(*end, '\n');
				line = end + 1;
			}
		}
	}
	assert_int_equal(*line, 0);
	buf_free(&out);
}

static void promtool_accepts(void **state)
{
	(void)state;
	if (promtool_missing())
		skip();
	static const struct {
		size_t series;
		uint32_t samples;
		uint64_t segment_bytes;
		bool strange;
	} cases[] = {{1, 1, 0, false}, {2, 480, 0, false}, {120, 480, 3000, true}, {10000, 3, 100000, true}, {10000, 120, 0, false}};
	size_t n_cases = sizeof cases / sizeof *cases;
	for (size_t i = 0; i < (getenv("VARVE_FULL") ? n_cases : n_cases - 1); i++) {
		const char *dir = tmp_dir();
		struct model m;
		struct block_meta meta;
		struct err err = {0};
		struct buf out;
		uint64_t bytes;
		model_make(&m, &(struct model_config){.n_series = cases[i].series,
				       .samples = cases[i].samples,
				       .start_ms = T0,
				       .step_ms = 14990,
				       .range_ms = RANGE,
				       .strange = cases[i].strange});
		m.mint = T0;
		m.maxt = T0 + RANGE;
		if (model_write(&m, dir, ulid_of(1), cases[i].segment_bytes, &meta, &bytes, &err))
			fail_msg("%s", err.msg);
		assert_int_equal(io_mkdir(tmp_path("%s/wal", dir), &err), OK);

		run(&out, tmp_path("promtool tsdb list %s 2>&1", dir));
		assert_non_null(strstr((char *)out.p, ulid_text(ulid_of(1)).s));
		const char *row = strstr((char *)out.p, "2h0m0s");
		assert_non_null(row);
		char want[64];
		snprintf(want, sizeof want, "%zu", cases[i].series * cases[i].samples);
		assert_non_null(strstr(row, want));
		buf_free(&out);

		run(&out, tmp_path("promtool tsdb analyze --extended %s %s 2>&1", dir, ulid_text(ulid_of(1)).s));
		snprintf(want, sizeof want, "\nSeries: %zu\n", cases[i].series);
		if (!strstr((char *)out.p, want))
			fail_msg("%s is not in: %.1000s", want, (const char *)out.p);
		buf_free(&out);
		dump_agrees(&m, dir);
		model_free(&m);
	}
}

static struct span section(const struct model *m, uint64_t from, uint64_t to)
{
	return span_of(m->index.p + from, to - from);
}

/* Blocks that promtool makes of OpenMetrics text: given to our writer, chunks, symbols, series and postings are the same bytes; our
 * encoder and cutter make the same chunks of the samples (promtool 2.42 leaves a zero byte behind some payloads). */
static void promtool_blocks_byte_for_byte(void **state)
{
	(void)state;
	if (promtool_missing())
		skip();
	const char *dir = tmp_dir();
	struct buf text = {0}, out;
	struct err err = {0};
	struct arena a;
	uint64_t seed = 11;
	char **names;
	size_t n_names, blocks = 0;
	arena_init(&a, GIB);
	buf_init(&text, GIB);
	for (int s = 0; s < 40; s++) {
		double v = 0;
		buf_printf(&text, "# TYPE m%02d gauge\n", s);
		for (int k = 0; k < 700; k++) {
			v = s % 3 == 0 ? v + (double)(model_random(&seed) % 100) : s % 3 == 1 ? 4.5 : (double)model_random(&seed) / 1e15;
			buf_printf(&text, "m%02d{job=\"j\",id=\"%d\",k=\"v%d\"} %.17g %lld.%03d\n", s, s, s % 4, v, (long long)(T0 / 1000 + 15 * k),
				s % 5 ? 0 : k % 4);
		}
	}
	buf_printf(&text, "# EOF\n");
	assert_int_equal(io_write_file(tmp_path("%s/in.txt", dir), span_of(text.p, text.n), &err), OK);
	buf_free(&text);
	run(&out, tmp_path("promtool tsdb create-blocks-from openmetrics %s/in.txt %s/data 2>&1", dir, dir));
	buf_free(&out);
	const char *data = arena_printf(&a, "%s/data", dir);
	assert_int_equal(io_listdir(data, &a, &names, &n_names, &err), OK);
	for (size_t i = 0; i < n_names; i++) {
		struct ulid u;
		struct model m, got;
		if (!ulid_parse(span_cstr(names[i]), &u))
			continue;
		blocks++;
		model_read(&m, tmp_path("%s/%s", data, names[i]));
		rewrite(&m, dir, ulid_of((uint8_t)(i + 1)), &got);
		model_assert_equal(&m, &got);
		assert_int_equal(m.n_segments, 1);
		assert_true(span_eq(m.segments[0], got.segments[0]));
		assert_true(span_eq(section(&m, 0, m.toc.label_index), section(&got, 0, got.toc.label_index)));
		assert_true(span_eq(section(&m, (m.toc.postings + 3) & ~UINT64_C(3), m.toc.label_table),
			section(&got, (got.toc.postings + 3) & ~UINT64_C(3), got.toc.table)));
		struct chunk_sample v[1000];
		for (size_t s = 0; s < m.n; s++) {
			size_t n = 0, part, n_mine;
			struct model_series *x = &m.v[s];
			for (size_t k = 0; k < x->n; k++) {
				assert_int_equal(xor_decode(x->chunks[k].data, v + n, 1000 - n, &part, &err), OK);
				n += part;
			}
			struct chunk *mine = model_encode(&a, v, n, RANGE, &n_mine);
			size_t biggest = 0;
			for (size_t k = 0; k < x->n; k++)
				biggest = x->chunks[k].data.n > biggest ? x->chunks[k].data.n : biggest;
			if (biggest > 1005) /* 2.42 knows no end by bytes */
				continue;
			assert_int_equal(n_mine, x->n);
			for (size_t k = 0; k < n_mine; k++) {
				struct span theirs = x->chunks[k].data;
				if (theirs.n == mine[k].data.n + 1 && theirs.p[theirs.n - 1] == 0)
					theirs.n--;
				assert_true(span_eq(theirs, mine[k].data));
			}
		}
		model_free(&m);
		model_free(&got);
	}
	assert_true(blocks >= 2);
	arena_free(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_blocks_byte_for_byte),
		cmocka_unit_test(golden_chunks_from_samples),
		cmocka_unit_test(golden_metas),
		cmocka_unit_test(promtool_accepts),
		cmocka_unit_test(promtool_blocks_byte_for_byte),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
