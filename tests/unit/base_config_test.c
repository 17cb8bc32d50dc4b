/* tests/unit/base_config_test.c - durations, sizes, ${ENV}, suggestions and YAML, as people write them. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "base/config.h"
#include "base/limits.h"
#include "tests/support/fail_alloc.h"

#define N(array) (sizeof(array) / sizeof *(array))

static void durations_are_prometheus(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		int64_t ms;
	} good[] = {{"0", 0}, {"0s", 0}, {"90s", 90000}, {"2h", 7200000}, {"1h30m", 5400000}, {"15d", 1296000000}, {"1y2w3d4h5m6s7ms", 33019506007},
		{"250ms", 250}, {"1m500ms", 60500}, {"1w", 604800000}, {"292277024y", INT64_C(292277024) * 365 * 86400000}};
	for (size_t i = 0; i < N(good); i++) {
		int64_t ms = -1;
		assert_int_equal(parse_duration_ms(span_cstr(good[i].text), &ms, NULL), OK);
		assert_true(ms == good[i].ms);
	}
	static const char *const bad[] = {"", "1", "s", "1x", "1h1h", "1m1h", "-1s", "+1s", " 1s", "1s ", "1.5h", "1H", "00", "9223372036854775807s",
		"9223372036854775808ms", "292471209y", "1ms1s", "1hh", "١s"};
	for (size_t i = 0; i < N(bad); i++) {
		struct err err = {0};
		int64_t ms;
		assert_int_equal(parse_duration_ms(span_cstr(bad[i]), &ms, &err), ERR_INVALID);
		assert_non_null(strstr(err.msg, "1h30m"));
	}
	/* formatting gives the text back, over all scales */
	char buf[64];
	for (int64_t ms = 1; ms > 0 && ms < INT64_MAX / 5; ms = ms * 5 + ms / 3) {
		int64_t back;
		format_duration_ms(ms, buf, sizeof buf);
		assert_int_equal(parse_duration_ms(span_cstr(buf), &back, NULL), OK);
		assert_true(back == ms);
	}
	assert_string_equal(format_duration_ms(0, buf, sizeof buf), "0s");
	assert_string_equal(format_duration_ms(5400000, buf, sizeof buf), "1h30m");
	assert_string_equal(format_duration_ms(INT64_C(30) * 86400000, buf, sizeof buf), "30d");
	assert_string_equal(format_duration_ms(-60000, buf, sizeof buf), "-1m");
	assert_string_equal(format_duration_ms(INT64_MIN, buf, 32), "-106751991167d7h12m55s808ms");
	assert_string_equal(format_duration_ms(INT64_MAX, buf, 32), "106751991167d7h12m55s807ms");
}

static void sizes_have_units(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {{"0", 0}, {"1", 1}, {"512MiB", 512 * MIB}, {"8GiB", 8 * GIB}, {"100MB", 100000000}, {"1.5GiB", 3 * GIB / 2},
		{"1.5 GiB", 3 * GIB / 2}, {"2kB", 2000}, {"2KB", 2000}, {"2kib", 2048}, {"3TB", UINT64_C(3000000000000)}, {"7B", 7},
		{"0.25MiB", 256 * KIB}, {"9223372036854775807", INT64_MAX}};
	for (size_t i = 0; i < N(good); i++) {
		uint64_t b = 1;
		assert_int_equal(parse_size(span_cstr(good[i].text), &b, NULL), OK);
		assert_true(b == good[i].bytes);
	}
	static const char *const bad[] = {"", "MiB", "-1", "1XB", "1Gi", "1.5", "1.B", ".5MiB", "1 2", "1  MiB", "1MiB ", "17000000TiB",
		"1.1234567MiB", "0x10", "99999999999999999999"};
	for (size_t i = 0; i < N(bad); i++) {
		uint64_t b;
		assert_int_equal(parse_size(span_cstr(bad[i]), &b, NULL), ERR_INVALID);
	}
	static const struct {
		uint64_t bytes;
		const char *text;
	} shown[] = {
		{0, "0 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"}, {MIB - 1, "1 MiB"}, {8 * GIB, "8 GiB"}, {UINT64_MAX, "16 EiB"}};
	char buf[32];
	for (size_t i = 0; i < N(shown); i++)
		assert_string_equal(format_size(shown[i].bytes, buf, sizeof buf), shown[i].text);
}

static void words_are_suggested(void **state)
{
	(void)state;
	static const char *const words[] = {"bucket", "endpoint", "access_key", "secret_key", "insecure"};
	static const struct {
		const char *typed, *meant;
	} t[] = {{"buckets", "bucket"}, {"bukcet", "bucket"}, {"endpiont", "endpoint"}, {"acces_key", "access_key"}, {"secret-key", "secret_key"},
		{"insecure", "insecure"}, {"b", NULL}, {"", NULL}, {"xyzzy", NULL}, {"end", NULL}};
	for (size_t i = 0; i < N(t); i++) {
		const char *got = did_you_mean(t[i].typed, words, N(words));
		assert_true((got == NULL) == (t[i].meant == NULL));
		if (got)
			assert_string_equal(got, t[i].meant);
	}
	char big[300];
	memset(big, 'a', sizeof big - 1);
	big[sizeof big - 1] = 0;
	assert_null(did_you_mean(big, words, N(words)));
	const char *bigs[] = {big};
	assert_null(did_you_mean("a", bigs, 1));
}

static void environment_is_expanded(void **state)
{
	(void)state;
	setenv("VARVE_T_A", "value", 1);
	setenv("VARVE_T_EMPTY", "", 1);
	unsetenv("VARVE_T_NONE");
	static const struct {
		const char *in, *out;
	} t[] = {{"", ""}, {"plain", "plain"}, {"${VARVE_T_A}", "value"}, {"x${VARVE_T_A}y${VARVE_T_A}", "xvalueyvalue"}, {"${VARVE_T_EMPTY}", ""},
		{"${VARVE_T_EMPTY:-d}", "d"}, {"${VARVE_T_NONE:-d e}", "d e"}, {"${VARVE_T_NONE:-}", ""}, {"$$", "$"},
		{"$${VARVE_T_A}", "${VARVE_T_A}"}, {"a$b", "a$b"}, {"$", "$"}, {"$2y$10$abc", "$2y$10$abc"}, {"${VARVE_T_NONE}", NULL}, {"${", NULL},
		{"${}", NULL}, {"${1A}", NULL}, {"${A-B}", NULL}, {"${A:B}", NULL}, {"${VARVE_T_A", NULL}, {"${VARVE T A}", NULL}};
	for (size_t i = 0; i < N(t); i++) {
		struct arena a;
		struct span out;
		struct err err = {0};
		arena_init(&a, 1 << 16);
		errc rc = config_expand_env(span_cstr(t[i].in), &a, &out, &err);
		assert_int_equal(rc, t[i].out ? OK : ERR_INVALID);
		if (t[i].out)
			assert_true(span_is(out, t[i].out) && out.p[out.n] == 0);
		else
			assert_true(strlen(err.msg) > 10);
		arena_free(&a);
	}
}

static struct yaml *parse(const char *text, struct arena *a, struct err *err)
{
	struct yaml *y = NULL;
	arena_init(a, 1 << 20);
	return yaml_parse("f.yml", span_cstr(text), a, &y, err) == OK ? y : NULL;
}

static void yaml_as_thanos_writes_it(void **state)
{
	(void)state;
	struct arena a;
	struct err err = {0};
	setenv("VARVE_T_SECRET", "p: \"w\" #x", 1);
	struct yaml *y = parse("# a comment with ${NO_SUCH_VARIABLE}\n"
			       "type: S3\n"
			       "config:\n"
			       "  bucket: \"metrics\"\n"
			       "  secret_key: ${VARVE_T_SECRET}\n"
			       "  insecure: true\n"
			       "  signature_version2: false\n"
			       "  part_size: 16MiB\n"
			       "  empty:\n"
			       "  tilde: ~\n"
			       "  quoted_null: \"null\"\n"
			       "  http_config: {idle_conn_timeout: 1m30s, \"list\": [a, b, c]}\n"
			       "prefix: ''\n",
		&a, &err);
	assert_non_null(y);
	struct yaml *c = yaml_get(y, "config"), *h = yaml_get(c, "http_config");
	const char *s = "untouched";
	bool b = false, sig = true;
	uint64_t size = 0;
	int64_t ms = 0;
	assert_int_equal(yaml_string("f.yml", c, "bucket", &s, &err), OK);
	assert_string_equal(s, "metrics");
	assert_int_equal(yaml_string("f.yml", c, "secret_key", &s, &err), OK);
	assert_string_equal(s, "p: \"w\" #x");
	assert_int_equal(yaml_bool("f.yml", c, "insecure", &b, &err) | yaml_bool("f.yml", c, "signature_version2", &sig, &err), OK);
	assert_true(b && !sig);
	assert_int_equal(yaml_size("f.yml", c, "part_size", &size, &err), OK);
	assert_int_equal(size, 16 * MIB);
	assert_int_equal(yaml_duration_ms("f.yml", h, "idle_conn_timeout", &ms, &err), OK);
	assert_int_equal(ms, 90000);
	s = "untouched";
	assert_int_equal(
		yaml_string("f.yml", c, "empty", &s, &err) | yaml_string("f.yml", c, "tilde", &s, &err) | yaml_string("f.yml", c, "no", &s, &err),
		OK);
	assert_string_equal(s, "untouched");
	assert_int_equal(yaml_string("f.yml", c, "quoted_null", &s, &err), OK);
	assert_string_equal(s, "null");
	assert_int_equal(yaml_string("f.yml", y, "prefix", &s, &err), OK);
	assert_string_equal(s, "");
	struct yaml *list = yaml_get(h, "list");
	assert_true(list && list->kind == YAML_LIST && list->n == 3 && span_is(list->items[2]->scalar, "c"));
	assert_int_equal(yaml_get(c, "bucket")->line, 4);

	assert_int_equal(yaml_string("f.yml", y, "config", &s, &err), ERR_INVALID);
	assert_string_equal(err.msg, "f.yml:4: config must be a single value");
	assert_int_equal(yaml_bool("f.yml", c, "bucket", &b, &err), ERR_INVALID);
	assert_string_equal(err.msg, "f.yml:4: bucket is \"metrics\", must be true or false");
	assert_int_equal(yaml_size("f.yml", c, "insecure", &size, &err), ERR_INVALID);
	assert_memory_equal(err.msg, "f.yml:6: insecure: ", 19);
	static const char *const known[] = {"type", "config", "prefx"};
	assert_int_equal(yaml_only("f.yml", y, "the file", known, 3, &err), ERR_INVALID);
	assert_string_equal(err.msg, "f.yml:13: unknown key \"prefix\" in the file, did you mean \"prefx\"? Known are: type, config, prefx");
	static const char *const few[] = {"type", "config"};
	assert_int_equal(yaml_only("f.yml", y, "the file", few, 2, &err), ERR_INVALID);
	assert_string_equal(err.msg, "f.yml:13: unknown key \"prefix\" in the file. Known are: type, config");
	assert_int_equal(yaml_only("f.yml", list, "list", few, 2, &err), ERR_INVALID);
	assert_null(yaml_get(list, "a"));
	assert_null(yaml_get(NULL, "a"));
	arena_free(&a);
}

static void what_yaml_is_refused(void **state)
{
	(void)state;
	static const struct {
		const char *text, *why;
	} t[] = {
		{"a: 1\n---\nb: 2\n", "f.yml:2: a second document starts here, only one is read"},
		{"a: 1\nb: 2\na: 3\n", "f.yml:3: key \"a\" is there twice, first in line 1"},
		{"x:\n  a: 1\n  \"a\": 2\n", "f.yml:3: key \"a\" is there twice, first in line 2"},
		{"a: &x 1\n", "f.yml:1: anchors (&name) are not supported"},
		{"a: *x\n", "f.yml:1: aliases (*name) are not supported"},
		{"a: &x {b: 1}\n", "f.yml:1: anchors and tags are not supported"},
		{"a: &x [b]\n", "f.yml:1: anchors and tags are not supported"},
		{"a: !!str 1\n", "f.yml:1: tags (!name) are not supported"},
		{"? [a]\n: 1\n", "f.yml:1: a key must be a plain word"},
		{"&k a: 1\n", "f.yml:1: a key must be a plain word"},
		{"a: \"x\\0y\"\n", "f.yml:1: a value contains a NUL byte"},
		{"a: ${VARVE_T_NONE}\n", "f.yml:1: environment variable VARVE_T_NONE is not set (${VARVE_T_NONE:-default} would give it a default)"},
		{"a: [1, 2\n", "f.yml:2: "},
		{"a: b: c\n", "f.yml:1: "},
		{"\ta: 1\n", "f.yml:1: "},
		{"a: \xff\n", "f.yml: not UTF-8"},
		{"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n", "f.yml:1: nested deeper than 32 levels"},
	};
	unsetenv("VARVE_T_NONE");
	for (size_t i = 0; i < N(t); i++) {
		struct arena a;
		struct err err = {0};
		assert_null(parse(t[i].text, &a, &err));
		assert_int_equal(err.code, ERR_INVALID);
		if (strncmp(err.msg, t[i].why, strlen(t[i].why)) != 0)
			print_message("%s\n%s\n", err.msg, t[i].why);
		assert_memory_equal(err.msg, t[i].why, strlen(t[i].why));
		arena_free(&a);
	}
	static const char *const empty[] = {"", "\n\n", "# only a comment\n", "---\n", "---\n...\n", "{}\n"};
	for (size_t i = 0; i < N(empty); i++) {
		struct arena a;
		struct yaml *y = parse(empty[i], &a, NULL);
		assert_true(y && y->kind == YAML_MAP && y->n == 0);
		arena_free(&a);
	}
}

/* 50,000 keys, deep and wide: read in a moment, or refused by the arena's limit; never more. */
static void hostile_sizes(void **state)
{
	(void)state;
	struct arena a;
	struct buf b;
	struct yaml *y;
	buf_init(&b, 2 * LIMIT_CONFIG_BYTES);
	for (int i = 0; i < 50000; i++)
		buf_printf(&b, "key%d: %d\n", i, i);
	arena_init(&a, 64 << 20);
	assert_int_equal(yaml_parse("big", span_of(b.p, b.n), &a, &y, NULL), OK);
	assert_int_equal(y->n, 50000);
	arena_free(&a);
	arena_init(&a, 100000);
	assert_int_equal(yaml_parse("big", span_of(b.p, b.n), &a, &y, NULL), ERR_NOMEM);
	arena_free(&a);
	while (b.n <= LIMIT_CONFIG_BYTES)
		buf_printf(&b, "more%zu: 1\n", b.n);
	arena_init(&a, 64 << 20);
	assert_int_equal(yaml_parse("big", span_of(b.p, b.n), &a, &y, NULL), ERR_LIMIT);
	arena_free(&a);
	buf_free(&b);
}

static void yaml_without_memory(void **state)
{
	(void)state;
	for (uint64_t n = 1;; n++) {
		struct arena a;
		struct yaml *y;
		arena_init(&a, 1 << 20);
		fail_alloc_at(n, true);
		errc rc = yaml_parse("f", SPAN("a: 1\nb: [x, \"${HOME:-y}\"]\nc: {d: e}\n"), &a, &y, NULL);
		bool hit = fail_alloc_off() > 0;
		assert_int_equal(rc, hit ? ERR_NOMEM : OK);
		arena_free(&a);
		if (!hit)
			break;
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(durations_are_prometheus),
		cmocka_unit_test(sizes_have_units),
		cmocka_unit_test(words_are_suggested),
		cmocka_unit_test(environment_is_expanded),
		cmocka_unit_test(yaml_as_thanos_writes_it),
		cmocka_unit_test(what_yaml_is_refused),
		cmocka_unit_test(hostile_sizes),
		cmocka_unit_test(yaml_without_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
