/* tests/unit/base_flags_test.c - the command line: what is taken, what is refused in which words, and the help. */
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/config.h"
#include "base/limits.h"
#include "tests/support/fail_alloc.h"

#define N(array) (sizeof(array) / sizeof *(array))

static struct {
	const char *dir, *sync, *file;
	bool wait, compress;
	uint64_t n, size;
	int64_t range_ms;
	struct flag_list labels;
} o;

static struct flag table[] = {
	{.name = "data-dir",
		.kind = FLAG_STRING,
		.into = &o.dir,
		.fallback = "./data",
		.value_name = "PATH",
		.help = "Where data lives.",
		.common = true},
	{.name = "wal.sync",
		.kind = FLAG_CHOICE,
		.into = &o.sync,
		.fallback = "ack",
		.value_name = "ack|interval|os",
		.help = "When.",
		.common = true},
	{.name = "objstore.config-file", .kind = FLAG_STRING, .into = &o.file, .value_name = "FILE", .help = "Bucket.", .common = true},
	{.name = "wait", .kind = FLAG_BOOL, .into = &o.wait, .help = "Wait.", .common = true},
	{.name = "compress", .kind = FLAG_BOOL, .into = &o.compress, .fallback = "true", .help = "Compress."},
	{.name = "query.max", .kind = FLAG_U64, .into = &o.n, .fallback = "20", .help = "Queries."},
	{.name = "wal.max-size", .kind = FLAG_SIZE, .into = &o.size, .fallback = "8GiB", .help = "Bytes."},
	{.name = "head.block-range", .kind = FLAG_DURATION_MS, .into = &o.range_ms, .fallback = "2h", .help = "Range."},
	{.name = "label", .kind = FLAG_LIST, .into = &o.labels, .fallback = "a=b", .value_name = "K=V", .help = "External label, repeatable."},
};

static struct arena arena;
static struct flag_list args;
static enum flags_action action;
static struct err err;

/* Words separated by '|', so that empty ones and blanks can be said. */
static errc parse(const char *line, bool positionals)
{
	static char copy[1000];
	char *argv[32] = {(char *)(uintptr_t) "varve"}, *at = copy;
	int argc = 1;
	snprintf(copy, sizeof copy, "%s", line);
	while (*line && at) {
		argv[argc++] = at;
		at = strchr(at, '|');
		if (at)
			*at++ = 0;
	}
	arena_free(&arena);
	arena_init(&arena, 1 << 16);
	err = (struct err){0};
	struct flag_program p = {
		.usage = "varve [FLAGS]", .about = "Long-term storage.", .flags = table, .n_flags = N(table), .positionals = positionals};
	return flags_parse(&p, argc, argv, &arena, &args, &action, &err);
}

static void defaults_then_flags(void **state)
{
	(void)state;
	assert_int_equal(parse("", false), OK);
	assert_string_equal(o.dir, "./data");
	assert_string_equal(o.sync, "ack");
	assert_null(o.file);
	assert_true(!o.wait && o.compress && o.n == 20 && o.size == 8 * GIB && o.range_ms == 7200000 && o.labels.n == 1);
	for (size_t i = 0; i < N(table); i++)
		assert_false(table[i].set);
	assert_int_equal(parse("--data-dir=/"
			       "x|--wal.sync|os|--wait|--no-compress|--query.max=0|--wal.max-size|1MiB|--head.block-range=1m|--label|x=1|--label=y=2"
			       "|--label|z=3|--objstore.config-file=",
				 false),
		OK);
	assert_string_equal(o.dir, "/x");
	assert_string_equal(o.sync, "os");
	assert_string_equal(o.file, "");
	assert_true(o.wait && !o.compress && o.n == 0 && o.size == MIB && o.range_ms == 60000);
	assert_int_equal(o.labels.n, 3);
	assert_string_equal(o.labels.v[0], "x=1");
	assert_string_equal(o.labels.v[1], "y=2");
	assert_string_equal(o.labels.v[2], "z=3");
	assert_int_equal(parse("--wait=false|--compress=false", false), OK);
	assert_true(!o.wait && !o.compress);
}

static void words_land_in_args(void **state)
{
	(void)state;
	assert_int_equal(parse("inspect|--wait|a|-|--|--not-a-flag|-x", true), OK);
	assert_int_equal(args.n, 5);
	static const char *const want[] = {"inspect", "a", "-", "--not-a-flag", "-x"};
	for (size_t i = 0; i < 5; i++)
		assert_string_equal(args.v[i], want[i]);
	assert_true(o.wait);
}

static void refusals_say_what_to_do(void **state)
{
	(void)state;
	static const struct {
		const char *line, *why;
	} t[] = {
		{"--wal.snyc=os", "unknown flag --wal.snyc, did you mean --wal.sync?"},
		{"--sync=os", "unknown flag --sync, did you mean --wal.sync?"},
		{"--data_dir=/x", "unknown flag --data_dir, did you mean --data-dir?"},
		{"--hepl", "unknown flag --hepl, did you mean --help?"},
		{"--frobnicate", "unknown flag --frobnicate, see --help-all"},
		{"--wal.s=os", "unknown flag --wal.s, did you mean --wal.sync?"},
		{"-wait", "unknown flag -wait, did you mean --wait?"},
		{"-x", "unknown flag -x, see --help-all"},
		{"--no-wal.sync", "unknown flag --no-wal.sync, did you mean --wal.sync?"},
		{"--=x", "unknown flag --, see --help-all"},
		{"--wal.sync=always", "--wal.sync: \"always\" is not one of ack|interval|os"},
		{"--wal.sync=", "--wal.sync: \"\" is not one of ack|interval|os"},
		{"--wal.sync=ack|--wal.sync=os", "--wal.sync is given twice"},
		{"--wal.sync", "--wal.sync needs a value: --wal.sync=ack|interval|os"},
		{"--wal.sync|--wait", "--wal.sync needs a value: --wal.sync=ack|interval|os"},
		{"--wait=yes", "--wait: \"yes\" is neither true nor false"},
		{"--wait|false", "\"false\" is not a flag: flags start with --, and values are written --flag=value"},
		{"--query.max=-1", "--query.max: \"-1\" is not a whole number of at least 0"},
		{"--query.max=18446744073709551616", "--query.max: \"18446744073709551616\" is not a whole number of at least 0"},
		{"--wal.max-size=lots",
			"--wal.max-size: \"lots\" is not a size: use bytes or a number with KiB, MiB, GiB, TiB, kB, MB, GB, TB, like 512MiB or 8GiB"},
		{"--head.block-range=2",
			"--head.block-range: \"2\" is not a duration: use numbers with y, w, d, h, m, s, ms in this order, like 90s, 2h or 1h30m"},
		{"data", "\"data\" is not a flag: flags start with --, and values are written --flag=value"},
	};
	for (size_t i = 0; i < N(t); i++) {
		assert_int_equal(parse(t[i].line, false), ERR_INVALID);
		assert_string_equal(err.msg, t[i].why);
	}
	assert_int_equal(parse("--query.max=18446744073709551615", false), OK);
	assert_true(o.n == UINT64_MAX);
	char line[300];
	memset(line, 'a', sizeof line);
	memcpy(line, "--", 2);
	line[299] = 0;
	assert_int_equal(parse(line, false), ERR_INVALID);
}

/* What --help prints. */
static char *printed(const char *line)
{
	fflush(stdout);
	FILE *f = tmpfile();
	int real = dup(1);
	dup2(fileno(f), 1);
	errc rc = parse(line, false);
	fflush(stdout);
	dup2(real, 1);
	close(real);
	assert_int_equal(rc, OK);
	assert_int_equal(action, FLAGS_EXIT_OK);
	size_t n = (size_t)lseek(fileno(f), 0, SEEK_END);
	char *text = calloc(1, n + 1);
	assert_int_equal(pread(fileno(f), text, n, 0), n);
	fclose(f);
	return text;
}

static void help_is_short_and_complete(void **state)
{
	(void)state;
	char *text = printed("--wait|--help");
	assert_non_null(strstr(text, "usage: varve [FLAGS]\n\nLong-term storage.\n\n"));
	assert_non_null(strstr(text, "  --data-dir=PATH                   Where data lives. (default ./data)\n"));
	assert_non_null(strstr(text, "  --wal.sync=ack|interval|os        When. (default ack)\n"));
	assert_null(strstr(text, "--query.max"));
	assert_non_null(strstr(text, "5 more, rarely needed: --help-all\n"));
	free(text);
	text = printed("--help-all");
	for (size_t i = 0; i < N(table); i++)
		assert_non_null(strstr(text, table[i].name));
	assert_non_null(strstr(text, "  --[no-]compress"));
	assert_non_null(strstr(text, "  --label=K=V ..."));
	for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		assert_true(strlen(line) <= 110);
	free(text);
	text = printed("--version");
	assert_memory_equal(text, "varve ", 6);
	assert_string_equal(text + 6 + strlen(varve_version), "\n");
	free(text);
}

static void a_full_arena_is_an_error(void **state)
{
	(void)state;
	for (uint64_t n = 1; n < 5; n++) {
		fail_alloc_at(n, true);
		errc rc = parse("--label=a|--label=b|--frobnicate", false);
		fail_alloc_off();
		assert_true(rc == ERR_NOMEM || rc == ERR_INVALID);
	}
	arena_free(&arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults_then_flags),
		cmocka_unit_test(words_land_in_args),
		cmocka_unit_test(refusals_say_what_to_do),
		cmocka_unit_test(help_is_short_and_complete),
		cmocka_unit_test(a_full_arena_is_an_error),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
