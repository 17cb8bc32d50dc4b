/* docs/format/block.md: the example on the page is what the writer makes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "tests/support/block_model.h"
#include "tests/support/tmp.h"

/* The bytes of the page's ```hexdump NAME``` block. */
static struct span page_bytes(struct arena *a, struct span page, const char *name)
{
	const char *at = strstr(page.p, arena_printf(a, "```hexdump %s\n", name));
	assert_non_null(at);
	uint8_t *out = arena_alloc(a, page.n);
	assert_non_null(out);
	size_t n = 0;
	for (at = strchr(at, '\n') + 1; strncmp(at, "```", 3) != 0; at = strchr(at, '\n') + 1) {
		char *end;
		assert_int_equal(strtoull(at, &end, 16), n);
		const char *text = strchr(at, '|');
		assert_non_null(text);
		size_t in_line = n;
		while (end < text) {
			char *before = end;
			unsigned long byte = strtoul(before, &end, 16);
			if (end == before || end > text)
				break;
			out[n++] = (uint8_t)byte;
		}
		for (size_t i = in_line; i < n; i++)
			assert_int_equal(text[1 + i - in_line], out[i] >= 0x20 && out[i] < 0x7f ? out[i] : '.');
	}
	return span_of(out, n);
}

static void dump(struct span s)
{
	for (size_t i = 0; i < s.n; i += 16) {
		printf("%08zx ", i);
		for (size_t k = i; k < i + 16; k++) {
			printf(k % 8 == 0 ? " " : "");
			if (k < s.n)
				printf("%02x ", (uint8_t)s.p[k]);
			else
				printf("   ");
		}
		printf("|");
		for (size_t k = i; k < i + 16 && k < s.n; k++)
			printf("%c", s.p[k] >= 0x20 && s.p[k] < 0x7f ? s.p[k] : '.');
		printf("|\n");
	}
}

static void same(struct span page, struct span file, const char *name)
{
	if (span_eq(page, file))
		return;
	dump(file);
	fail_msg("the example of %s on the page is not what the writer makes (above)", name);
}

static void example_on_the_page(void **state)
{
	(void)state;
	struct arena a;
	struct err err = {0};
	struct span page;
	struct model m = {.mint = 0, .maxt = 7200000, .n = 2}, got;
	struct block_meta meta;
	uint64_t bytes;
	struct ulid u;
	struct label la[] = {{SPAN("__name__"), SPAN("up")}, {SPAN("job"), SPAN("a")}};
	struct label lb[] = {{SPAN("__name__"), SPAN("up")}, {SPAN("job"), SPAN("b")}};
	struct chunk_sample v[] = {{1000, f64_bits(1)}, {16000, f64_bits(1)}, {31000, f64_bits(2.5)}, {46001, f64_bits(-2.5)}};
	struct chunk_sample zero = {1000, f64_bits(0)};
	struct model_series s[2] = {{.labels = {la, 2}}, {.labels = {lb, 2}}};
	arena_init(&a, 16 * MIB);
	arena_init(&m.arena, 16 * MIB);
	assert_int_equal(io_read_file("docs/format/block.md", MIB, &a, &page, &err), OK);
	s[0].chunks = model_encode(&m.arena, v, 4, 7200000, &s[0].n);
	s[1].chunks = model_encode(&m.arena, &zero, 1, 7200000, &s[1].n);
	m.v = s;
	assert_true(ulid_parse(SPAN("01HF7YAT000000000000000001"), &u));
	const char *dir = tmp_dir();
	if (model_write(&m, dir, u, 0, &meta, &bytes, &err))
		fail_msg("%s", err.msg);
	model_read(&got, tmp_path("%s/01HF7YAT000000000000000001", dir));
	model_assert_equal(&m, &got);
	same(page_bytes(&a, page, "chunks/000001"), got.segments[0], "chunks/000001");
	same(page_bytes(&a, page, "index"), got.index, "index");
	model_free(&got);
	arena_free(&m.arena);
	arena_free(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(example_on_the_page)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
