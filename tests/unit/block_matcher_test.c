/* Matchers mean what they mean in Prometheus: patterns against Go's regexp, selectors as its parser takes them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/errid.h"
#include "base/io.h"
#include "base/limits.h"
#include "block/block_matcher.h"
#include "block/block_pattern.h"
#include "block/block_regex.h"

static struct span unhex(struct arena *a, struct span s)
{
	if (span_is(s, "-"))
		return SPAN("");
	char *out = arena_alloc(a, s.n / 2);
	assert_non_null(out);
	for (size_t i = 0; i + 1 < s.n; i += 2) {
		unsigned x;
		assert_int_equal(sscanf(s.p + i, "%2x", &x), 1);
		out[i / 2] = (char)x;
	}
	return span_of(out, s.n / 2);
}

/* The text up to `end`, taken off s. */
static struct span cut(struct span *s, char end)
{
	const char *p = memchr(s->p, end, s->n);
	size_t n = p ? (size_t)(p - s->p) : s->n;
	struct span head = span_of(s->p, n);
	size_t skip = n < s->n ? n + 1 : n;
	*s = span_of(s->p + skip, s->n - skip);
	return head;
}

/* Where two regex engines differ and labels do not: Go lets "." match a byte that is not UTF-8. */
static void patterns_as_in_go(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, 16 * MIB);
	struct span file;
	assert_int_equal(io_read_file("tests/golden/matchers/go_regexp.txt", MIB, &a, &file, NULL), OK);
	(void)cut(&file, '\n');
	struct span line = cut(&file, '\n'), texts[256];
	size_t n = 0, patterns = 0, wrong = 0;
	while (line.n > 0)
		texts[n++] = unhex(&a, cut(&line, ' '));
	assert_true(n > 50);
	while (file.n > 0) {
		line = cut(&file, '\n');
		struct span pattern = unhex(&a, cut(&line, ' '));
		struct matcher m[2];
		struct err err = {0};
		errc rc = matcher_init(&m[0], MATCH_RE, SPAN("x"), pattern, &a, &err);
		patterns++;
		if (line.p[0] == '!' || rc) {
			if (!(line.p[0] == '!' && rc == ERR_INVALID && errid_of(err.id) == ERRID_BAD_MATCHER)) {
				print_error("pattern '%.*s': Go %s, here %s %s\n", SPAN_ARG(pattern), line.p[0] == '!' ? "refuses" : "takes",
					errc_name(rc), err.msg);
				wrong++;
			}
			matchers_free(m, rc == OK);
			continue;
		}
		assert_int_equal(matcher_init(&m[1], MATCH_NRE, SPAN("x"), pattern, &a, &err), OK);
		assert_int_equal(line.n, n);
		for (size_t i = 0; i < n; i++) {
			bool want = line.p[i] == '1';
			if (matcher_matches(&m[0], texts[i]) != want || matcher_matches(&m[1], texts[i]) == want) {
				print_error("pattern '%.*s' text '%.*s': Go says %d\n", SPAN_ARG(pattern), SPAN_ARG(texts[i]), want);
				wrong++;
			}
		}
		assert_int_equal(m[0].matches_empty, matcher_matches(&m[0], SPAN("")));
		assert_int_equal(m[1].matches_empty, !m[0].matches_empty);
		matchers_free(m, 2);
	}
	assert_true(patterns > 300);
	assert_int_equal(wrong, 0);
	arena_free(&a);
}

static uint64_t seed_state;
static uint64_t rnd(uint64_t n)
{
	seed_state = seed_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (seed_state >> 33) % n;
}

static uint64_t seed_of(const char *test)
{
	const char *s = getenv("VARVE_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : io_random_u64() >> 16;
	print_message("%s: VARVE_SEED=%llu\n", test, (unsigned long long)seed);
	return seed_state = seed;
}

static size_t pattern_random(char *p, size_t n, unsigned depth)
{
	static const char *const atoms[] = {"a", "b", "ab", "c", ".", "[ab]", "[^a]", "[a-c]", "\\.", "\\d", "x", "é", "^", "$", "-"};
	static const char *const ops[] = {"*", "+", "?", "{2}", "{0,1}", "{1}", "*?", "??"};
	size_t at = 0, branches = 1 + (rnd(3) == 0 ? rnd(4) : 0);
	for (size_t k = 0; k < branches; k++) {
		if (k > 0)
			p[at++] = '|';
		for (size_t parts = rnd(4); parts > 0; parts--) {
			if (at + 40 > n)
				return at;
			if (depth < 3 && rnd(5) == 0) {
				p[at++] = '(';
				at += pattern_random(p + at, n - at - 20, depth + 1);
				p[at++] = ')';
			} else {
				const char *s = atoms[rnd(30) == 0 ? 12 + rnd(3) : rnd(12)];
				memcpy(p + at, s, strlen(s));
				at += strlen(s);
			}
			if (rnd(4) == 0) {
				const char *s = ops[rnd(8)];
				memcpy(p + at, s, strlen(s));
				at += strlen(s);
			}
		}
	}
	return at;
}

/* Whatever the analysis makes of a pattern, the answer is the engine's. */
static void analysis_is_the_engine(void **state)
{
	(void)state;
	seed_of("analysis_is_the_engine");
	static const char *const pieces[] = {"a", "b", "c", "x", ".", "1", "-", "é", "ab"};
	size_t rounds = getenv("VARVE_FULL") ? 400000 : 20000, compiled = 0, taken_apart = 0;
	for (size_t round = 0; round < rounds; round++) {
		char pattern[512], why[200];
		size_t n = pattern_random(pattern, sizeof pattern, 0);
		struct arena a;
		arena_init(&a, MIB);
		struct matcher m;
		errc rc = matcher_init(&m, MATCH_RE, SPAN("x"), span_of(pattern, n), &a, NULL);
		struct regex *re = regex_compile(pattern, n, why, sizeof why);
		if ((rc == OK) != (re != NULL))
			fail_msg("pattern %.*s: matcher %s, engine %s", (int)n, pattern, errc_name(rc), re ? "takes it" : why);
		for (size_t k = 0; re && k < 30; k++) {
			char text[64];
			size_t len = 0;
			for (size_t parts = rnd(6); parts > 0; parts--) {
				const char *s = pieces[rnd(9)];
				memcpy(text + len, s, strlen(s));
				len += strlen(s);
			}
			bool want = regex_matches(re, text, len);
			if (matcher_matches(&m, span_of(text, len)) != want)
				fail_msg("pattern %.*s text %.*s: the engine says %d", (int)n, pattern, (int)len, text, want);
			if (want && !span_has_prefix(span_of(text, len), m.prefix))
				fail_msg("pattern %.*s text %.*s does not begin with %.*s", (int)n, pattern, (int)len, text, SPAN_ARG(m.prefix));
		}
		for (size_t k = 0; re && k < m.n_set; k++)
			if (!regex_matches(re, m.set[k].p, m.set[k].n))
				fail_msg("pattern %.*s does not match its literal %.*s", (int)n, pattern, SPAN_ARG(m.set[k]));
		if (re) {
			compiled++;
			taken_apart += m.re == NULL;
			matchers_free(&m, 1);
			regex_free(re);
		}
		arena_free(&a);
	}
	assert_true(compiled > rounds / 2);
	assert_true(taken_apart > rounds / 20);
}

/* What dashboards send needs no engine. */
static void patterns_in_disguise(void **state)
{
	(void)state;
	const struct {
		const char *pattern, *set, *prefix;
		bool rest, nonempty, engine;
	} t[] = {
		{"foo", "foo", "foo", false, false, false},
		{"foo|bar|baz", "bar|baz|foo", "", false, false, false},
		{"^(?:foo|bar)$", "bar|foo", "", false, false, false},
		{"api-(1|2)(a|b)?", "api-1|api-1a|api-1b|api-2|api-2a|api-2b", "api-", false, false, false},
		{"10\\.0\\.0\\.[1-3]", "10.0.0.1|10.0.0.2|10.0.0.3", "10.0.0.", false, false, false},
		{"a|a|", "|a", "", false, false, false},
		{"foo.*", NULL, "foo", true, false, false},
		{"foo.+", NULL, "foo", true, true, false},
		{".*", NULL, "", true, false, false},
		{".+", NULL, "", true, true, false},
		{"(foo.*)", NULL, "foo", true, false, false},
		{"foo.*bar", NULL, "foo", false, false, true},
		{"(foobar|foobaz)x+", NULL, "fooba", false, false, true},
		{"foo[0-9]+", NULL, "foo", false, false, true},
		{"(?i)foo", NULL, "", false, false, true},
		{"foo|(?i:bar)", NULL, "", false, false, true},
		{"fo\\w", NULL, "fo", false, false, true},
	};
	struct arena a;
	arena_init(&a, MIB);
	for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
		struct matcher m;
		assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("x"), span_cstr(t[i].pattern), &a, NULL), OK);
		char set[256] = "";
		for (size_t k = 0; k < m.n_set; k++)
			snprintf(set + strlen(set), sizeof set - strlen(set), "%s%.*s", k ? "|" : "", SPAN_ARG(m.set[k]));
		assert_string_equal(set, t[i].set ? t[i].set : "");
		assert_int_equal(m.set != NULL, t[i].set != NULL);
		assert_true(span_is(m.prefix, t[i].prefix));
		assert_int_equal(m.prefix_rest_any, t[i].rest);
		assert_int_equal(m.rest_nonempty, t[i].nonempty);
		assert_int_equal(m.re != NULL, t[i].engine);
		matchers_free(&m, 1);
	}
	arena_free(&a);
}

/* The longest pattern allowed, as ten thousands of literals, and one byte more. */
static void long_patterns(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, 64 * MIB);
	size_t n = LIMIT_QUERY_REGEX_BYTES;
	char *p = arena_alloc(&a, n + 1);
	memset(p, '|', n + 1);
	struct matcher m;
	for (size_t i = 0; i + 4 < n; i += 4)
		for (size_t k = 0; k < 3; k++)
			p[i + k] = (char)('a' + (i / 4 / (k == 0 ? 1 : k == 1 ? 26 : 676)) % 26);
	assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("x"), span_of(p, n), &a, NULL), OK);
	assert_non_null(m.set);
	assert_true(m.n_set > 16000);
	assert_true(matcher_matches(&m, span_of(p, 3)));
	assert_false(matcher_matches(&m, SPAN("aaaa")));
	struct err err = {0};
	assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("x"), span_of(p, n + 1), &a, &err), ERR_LIMIT);
	/* nesting and choices that would cost are bounded, not suffered */
	memset(p, '(', n / 2);
	memset(p + n / 2, ')', n / 2);
	assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("x"), span_of(p, n), &a, &err), OK);
	assert_true(m.matches_empty);
	matchers_free(&m, 1);
	size_t at = 0;
	while (at + 8 < n / 16) {
		memcpy(p + at, "(a|bc)?", 7);
		at += 7;
	}
	assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("x"), span_of(p, at), &a, &err), OK);
	assert_true(matcher_matches(&m, SPAN("abcaabc")));
	matchers_free(&m, 1);
	arena_free(&a);
}

static void describe(const struct matcher *m, size_t n, char *out, size_t size)
{
	static const char *const op[] = {"=", "!=", "=~", "!~"};
	out[0] = 0;
	for (size_t i = 0; i < n; i++)
		snprintf(out + strlen(out), size - strlen(out), "%s%.*s%s%.*s", i ? ";" : "", SPAN_ARG(m[i].name), op[m[i].type],
			SPAN_ARG(m[i].value));
}

static void selectors(void **state)
{
	(void)state;
	static const struct {
		const char *text, *want; /* NULL: refused */
	} t[] = {
		{"up", "__name__=up"},
		{"up{}", "__name__=up"},
		{"  up  ", "__name__=up"},
		{"job:up:sum5m", "__name__=job:up:sum5m"},
		{":a", "__name__=:a"},
		{"up{job=\"x\"}", "__name__=up;job=x"},
		{"up{job='x'}", "__name__=up;job=x"},
		{"up{job=`x\\n`}", "__name__=up;job=x\\n"},
		{"up {\n\tjob = \"x\" , # of the scrape\n\tinstance != \"y\",\n}", "__name__=up;job=x;instance!=y"},
		{"{a=\"b\",c!~\"d\"}", "a=b;c!~d"},
		{"{a=~\"b.*\",}", "a=~b.*"},
		{"{\"utf8 name\", \"x.y\"=\"z\"}", "__name__=utf8 name;x.y=z"},
		{"{'a.b'}", "__name__=a.b"},
		{"{\"a\" , b=\"c\"}", "__name__=a;b=c"},
		{"{b=\"c\", \"a\"}", "b=c;__name__=a"},
		{"{`a b`=~`c|d`}", "a b=~c|d"},
		{"{__name__=\"x\"}", "__name__=x"},
		{"{__name__=~\"x.+\", __name__!=\"xy\"}", "__name__=~x.+;__name__!=xy"},
		{"up{__name__=\"x\"}", "__name__=up;__name__=x"},
		{"up{__name__=~\"u.*\"}", "__name__=up;__name__=~u.*"},
		{"up{\"down\"}", "__name__=up;__name__=down"},
		{"{\"up\",\"down\"}", "__name__=up;__name__=down"},
		{"{a=\"\",b=\"c\"}", "a=;b=c"},
		{"{a=\"\\a\\b\\f\\n\\r\\t\\v\\\\\\\"\\x41\\101\\u00e4\\U0001f600\"}", "a=\a\b\f\n\r\t\v\\\"AA\xc3\xa4\xf0\x9f\x98\x80"},
		{"{a='\\''}", "a='"},
		{"{a=\"it's # not a comment }\"}", "a=it's # not a comment }"},
		{"{a!=\"\"}", "a!="},
		{"{a=~\".+\"}", "a=~.+"},
		{"up # nothing else", "__name__=up"},
		{"sum{a=\"b\"}", "__name__=sum;a=b"},
		{"{日=\"x\"}", NULL},
		{"", NULL},
		{"  ", NULL},
		{"{}", NULL},
		{"{,}", NULL},
		{"{a=\"b\",,}", NULL},
		{"{a=\"b\" c=\"d\"}", NULL},
		{"{a=\"b\"", NULL},
		{"{a=\"b}", NULL},
		{"{a=b}", NULL},
		{"{a}", NULL},
		{"{a=}", NULL},
		{"{=\"b\"}", NULL},
		{"{a==\"b\"}", NULL},
		{"{a!\"b\"}", NULL},
		{"{a~\"b\"}", NULL},
		{"{a=\"b\"} x", NULL},
		{"up{a=\"b\"}[5m]", NULL},
		{"up offset 5m", NULL},
		{"5up", NULL},
		{"up-down", NULL},
		{"{a:b=\"c\"}", NULL},
		{"{a=\"b\nc\"}", NULL},
		{"{a=\"\\q\"}", NULL},
		{"{a=\"\\'\"}", NULL},
		{"{a=\"\\x4\"}", NULL},
		{"{a=\"\\400\"}", NULL},
		{"{a=\"\\18\"}", NULL},
		{"{a=\"\\ud800\"}", NULL},
		{"{a=\"\\U00110000\"}", NULL},
		{"{a=\"\\", NULL},
		{"{a=\"\\\"", NULL},
		{"{a=\"\"}", NULL},
		{"{a!=\"b\"}", NULL},
		{"{a=~\".*\"}", NULL},
		{"{a=~\"b|\"}", NULL},
		{"{a!~\".+\"}", NULL},
		{"{a=~\"(\"}", NULL},
		{"{\"\"}", NULL},
	};
	for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
		struct arena a;
		arena_init(&a, MIB);
		struct matcher *m;
		size_t n;
		struct err err = {0};
		errc rc = matchers_parse(span_cstr(t[i].text), &a, &m, &n, &err);
		if ((rc == OK) != (t[i].want != NULL))
			fail_msg("%s: %s %s", t[i].text, errc_name(rc), err.msg);
		if (rc == OK) {
			char got[512];
			describe(m, n, got, sizeof got);
			assert_string_equal(got, t[i].want);
			matchers_free(m, n);
		} else {
			assert_int_equal(rc, ERR_INVALID);
			assert_int_equal(errid_of(err.id), ERRID_BAD_MATCHER);
			assert_true(strlen(err.msg) > 10);
		}
		arena_free(&a);
	}
}

/* Every prefix of a selector with everything in it: an error or an answer, and no byte behind the end is read. */
static void every_prefix(void **state)
{
	(void)state;
	static const char text[] = "up{job=\"a\\x41\\u00e4\\101\", \"x.y\"!='z', c=~`a|b`, d!~\"(?i)q\", } # end";
	for (size_t n = 0; n < sizeof text; n++) {
		char *copy = malloc(n + 1);
		assert_non_null(copy);
		memcpy(copy, text, n);
		struct arena a;
		arena_init(&a, MIB);
		struct matcher *m;
		size_t count;
		if (matchers_parse(span_of(copy, n), &a, &m, &count, NULL) == OK)
			matchers_free(m, count);
		arena_free(&a);
		free(copy);
	}
}

static void too_many_matchers(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, MIB);
	buf_printf(&b, "{");
	for (int i = 0; i < LIMIT_QUERY_MATCHERS; i++)
		buf_printf(&b, "a=\"b\",");
	struct arena a;
	arena_init(&a, MIB);
	struct matcher *m;
	size_t n;
	struct err err = {0};
	buf_printf(&b, "}");
	assert_int_equal(matchers_parse(span_of(b.p, b.n), &a, &m, &n, &err), OK);
	assert_int_equal(n, LIMIT_QUERY_MATCHERS);
	b.n--;
	buf_printf(&b, "a=\"b\"}");
	assert_int_equal(matchers_parse(span_of(b.p, b.n), &a, &m, &n, &err), ERR_LIMIT);
	buf_free(&b);
	arena_free(&a);
}

/* An arena of every size: the answer is out of memory or right, the regexes are freed (leak checker). */
static void memory_runs_out(void **state)
{
	(void)state;
	size_t ok = 0;
	for (size_t max = 0; max < 4096; max += 8) {
		struct arena a;
		arena_init(&a, max);
		struct matcher *m;
		size_t n;
		errc rc = matchers_parse(
			SPAN("up{a=~\"x+\",b=~\"c|d|e\",f=~\"g.*\",h!~\"i+\",j=\"k\",l=\"m\",n=\"o\",p=\"q\",r=\"s\"}"), &a, &m, &n, NULL);
		assert_true(rc == OK || rc == ERR_NOMEM);
		if (rc == OK) {
			ok++;
			assert_int_equal(n, 10);
			matchers_free(m, n);
		}
		arena_free(&a);
	}
	assert_true(ok > 0 && ok < 512);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(patterns_as_in_go),
		cmocka_unit_test(analysis_is_the_engine),
		cmocka_unit_test(patterns_in_disguise),
		cmocka_unit_test(long_patterns),
		cmocka_unit_test(selectors),
		cmocka_unit_test(every_prefix),
		cmocka_unit_test(too_many_matchers),
		cmocka_unit_test(memory_runs_out),
	};
	return cmocka_run_group_tests_name("block_matcher", tests, NULL, NULL);
}
