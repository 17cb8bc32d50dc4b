/* Blocks of a real Prometheus: what varve reads is what promtool dumps, deleted intervals left out; tombstones as they come. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <sys/wait.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block_read_int.h"
#include "tests/support/block_model.h"
#include "tests/support/tmp.h"

static const struct select_options EVERYTHING = {.mint = INT64_MIN, .maxt = INT64_MAX};

static struct source *source_open(const char *dir, struct arena *a, struct block_meta *meta)
{
	struct err err = {0};
	struct span json;
	struct block_files *files;
	struct block *b = NULL;
	struct source *s = NULL;
	if (io_read_file(arena_printf(a, "%s/meta.json", dir), MIB, a, &json, &err) || block_meta_parse(dir, json, a, meta, &err) ||
		block_files_dir(dir, &files, &err) || block_open(files, meta, NULL, &b, &err) || block_source(b, "bucket", &s, &err))
		fail_msg("%s", err.msg);
	block_unref(b);
	return s;
}

static void told(void *arg, const char *text)
{
	++*(size_t *)arg;
	print_error("%s\n", text);
}

static size_t problems(const char *dir, const struct block_meta *meta)
{
	struct err err = {0};
	struct block_files *files;
	size_t n = 0;
	if (block_files_dir(dir, &files, &err) || block_verify(files, meta, told, &n, &err))
		fail_msg("%s", err.msg);
	files->close(files);
	return n;
}

/* Lines "<name or labels> <value> <time>", in order; *line moves behind those of this block. */
static size_t agrees_with_dump(struct source *s, const char **line, bool names_only)
{
	struct err err = {0};
	struct series_iter *it;
	struct series_view view;
	struct arena a;
	bool more;
	size_t samples = 0;
	static char labels[64 * 1024];
	arena_init(&a, 64 * MIB);
	assert_int_equal(s->ops->select(s, NULL, 0, &EVERYTHING, &it, &err), OK);
	for (;;) {
		if (it->ops->next(it, &view, &more, &err))
			fail_msg("%s", err.msg);
		if (!more)
			break;
		if (names_only)
			snprintf(labels, sizeof labels, "%.*s", SPAN_ARG(labels_get(view.labels, SPAN("__name__"))));
		else
			labels_format(view.labels, labels, sizeof labels);
		for (size_t k = 0; k < view.n_chunks; k++) {
			struct chunk_iter *ci;
			struct chunk_point p;
			bool some;
			assert_int_equal(chunk_iter_new(view.chunks[k].enc, view.chunks[k].data, &a, &ci, &err), OK);
			while (chunk_iter_next(ci, &p, &some, &err) == OK && some) {
				bool deleted = false;
				for (size_t d = 0; d < view.n_deleted; d++)
					deleted = deleted || (p.t >= view.deleted[d].mint && p.t <= view.deleted[d].maxt);
				if (deleted)
					continue;
				if (strncmp(*line, labels, strlen(labels)) != 0)
					fail_msg("%s, not %.100s", labels, *line);
				char *end;
				double v = strtod(*line + strlen(labels), &end);
				assert_true(f64_bits(v) == p.v || (isnan(v) && isnan(f64_of_bits(p.v))));
				assert_int_equal(strtoll(end, &end, 10), p.t);
				assert_int_equal(*end, '\n');
				*line = end + 1;
				samples++;
			}
			arena_reset(&a);
		}
	}
	it->ops->close(it);
	arena_free(&a);
	return samples;
}

static void tombstones_of_prometheus(void **state)
{
	(void)state;
	static const char dir[] = "tests/golden/prometheus/01M83SQW1JSTYZ5004D5ZF3MXM";
	struct arena a;
	struct block_meta meta;
	struct span dump;
	arena_init(&a, 64 * MIB);
	struct source *s = source_open(dir, &a, &meta);
	assert_int_equal(meta.n_tombstones, 4);
	assert_int_equal(io_read_file("tests/golden/prometheus/dump.txt", MIB, &a, &dump, NULL), OK);
	const char *line = dump.p;
	assert_int_equal(agrees_with_dump(s, &line, true), 2308);
	assert_int_equal(*line, 0);
	s->ops->release(s);
	assert_int_equal(problems(dir, &meta), 0);
	arena_free(&a);
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
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("%s: status %d: %s", command, status, (const char *)out->p);
}

/* Three hours of OpenMetrics text made blocks by promtool, read by both. */
static void promtool_blocks(void **state)
{
	(void)state;
	if (system("promtool --version >/dev/null 2>&1") != 0)
		skip();
	const char *dir = tmp_dir();
	struct buf text, out;
	struct err err = {0};
	struct arena a;
	uint64_t seed = 5;
	arena_init(&a, 256 * MIB);
	buf_init(&text, GIB);
	for (int s = 0; s < 60; s++) {
		buf_printf(&text, "# TYPE m%02d gauge\n", s);
		for (int k = 0; k < 700; k++)
			buf_printf(&text, "m%02d{job=\"j\",id=\"%d\",k=\"v%d\"} %.17g %d\n", s, s * 7, s % 4,
				s % 2 ? (double)(model_random(&seed) >> 12) / 1e6 : (double)(k / 9), 1700006400 + 15 * k);
	}
	buf_printf(&text, "# EOF\n");
	assert_int_equal(io_write_file(tmp_path("%s/in.txt", dir), span_of(text.p, text.n), &err), OK);
	buf_free(&text);
	run(&out, tmp_path("promtool tsdb create-blocks-from openmetrics %s/in.txt %s/data 2>&1", dir, dir));
	buf_free(&out);
	char **names;
	size_t n, blocks = 0, samples = 0;
	const char *data = arena_printf(&a, "%s/data", dir);
	assert_int_equal(io_listdir(data, &a, &names, &n, &err), OK);
	for (size_t i = 0; i < n; i++) {
		struct ulid u;
		struct block_meta meta;
		if (!ulid_parse(span_cstr(names[i]), &u))
			continue;
		const char *block = arena_printf(&a, "%s/%s", data, names[i]);
		struct source *s = source_open(block, &a, &meta);
		/* promtool merges blocks series by series: a window each */
		run(&out,
			tmp_path("promtool tsdb dump --min-time=%lld --max-time=%lld %s 2>&1", (long long)meta.mint, (long long)meta.maxt - 1, data));
		const char *line = (const char *)out.p;
		samples += agrees_with_dump(s, &line, false);
		assert_int_equal(*line, 0);
		buf_free(&out);
		s->ops->release(s);
		assert_int_equal(problems(block, &meta), 0);
		blocks++;
	}
	assert_true(blocks >= 2);
	assert_int_equal(samples, 60 * 700);
	arena_free(&a);
}

/* ---- tombstones files ---- */

static void put(struct buf *b, uint64_t ref, int64_t mint, int64_t maxt)
{
	buf_uvarint(b, ref);
	buf_varint(b, mint);
	buf_varint(b, maxt);
}

static void intervals_are_put_together(void **state)
{
	(void)state;
	struct buf b;
	struct tombstones t;
	struct err err = {0};
	buf_init(&b, MIB);
	buf_be32(&b, 0x0130BA30);
	buf_u8(&b, 1);
	put(&b, 7, 100, 200);
	put(&b, 3, 50, 60);
	put(&b, 7, 201, 300); /* touches */
	put(&b, 7, 500, 600);
	put(&b, 7, 150, 160); /* inside */
	put(&b, 3, INT64_MIN, 10);
	put(&b, 9, 5, INT64_MAX);
	put(&b, 9, 7, 8);
	buf_be32(&b, crc32c(0, b.p + 5, b.n - 5));
	assert_int_equal(tombstones_parse("t", span_of(b.p, b.n), &t, &err), OK);
	static const struct tombstone want[] = {{3, {INT64_MIN, 10}}, {3, {50, 60}}, {7, {100, 300}}, {7, {500, 600}}, {9, {5, INT64_MAX}}};
	assert_int_equal(t.n, 5);
	for (size_t i = 0; i < 5; i++)
		assert_true(t.v[i].ref == want[i].ref && t.v[i].at.mint == want[i].at.mint && t.v[i].at.maxt == want[i].at.maxt);
	size_t n;
	(void)tombstones_of(&t, 7, &n);
	assert_int_equal(n, 2);
	(void)tombstones_of(&t, 8, &n);
	assert_int_equal(n, 0);
	tombstones_free(&t);
	for (size_t cut = 0; cut < b.n; cut++)
		assert_int_equal(tombstones_parse("t", span_of(b.p, cut), &t, &err), ERR_CORRUPT);
	b.p[4] = 2;
	assert_int_equal(tombstones_parse("t", span_of(b.p, b.n), &t, &err), ERR_UNSUPPORTED);
	/* an interval that ends before it begins */
	b.n = 5;
	b.p[4] = 1;
	put(&b, 1, 10, 9);
	buf_be32(&b, crc32c(0, b.p + 5, b.n - 5));
	assert_int_equal(tombstones_parse("t", span_of(b.p, b.n), &t, &err), ERR_CORRUPT);
	/* none: the CRC of nothing is 0 */
	assert_int_equal(tombstones_parse("t", SPAN("\x01\x30\xba\x30\x01\0\0\0\0"), &t, &err), OK);
	assert_int_equal(t.n, 0);
	buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tombstones_of_prometheus),
		cmocka_unit_test(promtool_blocks),
		cmocka_unit_test(intervals_are_put_together),
	};
	return cmocka_run_group_tests_name("block_foreign", tests, NULL, NULL);
}
