/* The selectors of an expression, found without a parser of the language; and numbers in the API's words.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "query/query_int.h"
#include "tests/support/fail_alloc.h"

/* "up{job="x"} 3{...}": names and matchers of each selector in one line. */
static char *found(const char *text, errc *rc, struct err *err)
{
	static char out[4096];
	struct arena a;
	struct matcher_set *sets = NULL;
	size_t n = 0, at = 0;
	static const char *const ops[] = {"=", "!=", "=~", "!~"};
	arena_init(&a, 16 * MIB);
	*err = (struct err){0};
	*rc = selectors_of(span_cstr(text), &a, &sets, &n, err);
	out[0] = 0;
	for (size_t i = 0; *rc == OK && i < n; i++) {
		at += (size_t)snprintf(out + at, sizeof out - at, "%s", i ? " | " : "");
		for (size_t k = 0; k < sets[i].n; k++) {
			const struct matcher *m = &sets[i].m[k];
			if (m->type == MATCH_EQ && span_is(m->name, "__name__"))
				at += (size_t)snprintf(out + at, sizeof out - at, "%.*s ", SPAN_ARG(m->value));
			else
				at += (size_t)snprintf(out + at, sizeof out - at, "%.*s%s%.*s ", SPAN_ARG(m->name), ops[m->type], SPAN_ARG(m->value));
		}
	}
	if (*rc == OK)
		matcher_sets_free(sets, n);
	arena_free(&a);
	return out;
}

static void selectors_are_found(void **state)
{
	(void)state;
	static const struct {
		const char *text, *want;
	} v[] = {
		{"up", "up "},
		{" up ", "up "},
		{"up{}", "up "},
		{"{__name__=\"up\"}", "up "},
		{"{\"up.x\", a=\"b\"}", "up.x a=b "},
		{"a:b:c{x!=\"1\",y=~\"2|3\",z!~`4`,}", "a:b:c x!=1 y=~2|3 z!~4 "},
		{"up{a=\"}\",b='{',c=\"\\\"}\"}", "up a=} b={ c=\"} "},
		{"up # a comment with { and ( and \"\n{ a = \"b\" # }\n}", "up a=b "},
		{"up[5m]", "up "},
		{"up[5m:1m]", "up "},
		{"up[1h30m] offset 5m", "up "},
		{"up offset -5m", "up "},
		{"up offset (5m + 1s)", "up "},
		{"up @ 1600000000.123", "up "},
		{"up @ -1e3", "up "},
		{"up @ start()", "up "},
		{"up @ end ( ) offset 1w", "up "},
		{"rate(up[5m])", "up "},
		{"rate(up[5m]) + on(job, instance) group_left(x) sum by (job) (down{x=\"y\"})", "up  | down x=y "},
		{"rate ( up [5m] )", "up "},
		{"sum(up)", "up "},
		{"sum by(job)(up)", "up "},
		{"SUM BY (job, le) (up)", "up "},
		{"sum(up) by (job)", "up "},
		{"sum without () (up)", "up "},
		{"sum (up) without (job) > 3", "up "},
		{"topk(5, up)", "up "},
		{"count_values(\"ver\\\"sion\", build)", "build "},
		{"histogram_quantile(0.9, sum by (le) (rate(http_bucket{code=~\"5..\"}[5m])))", "http_bucket code=~5.. "},
		{"label_replace(up, \"a\", \"$1\", \"b\", \"(.*)\")", "up "},
		{"a + b", "a  | b "},
		{"a+b*c^-d", "a  | b  | c  | d "},
		{"a and b or c unless d", "a  | b  | c  | d "},
		{"a AND b", "a  | b "},
		{"a == bool b", "a  | b "},
		{"a >= bool on (x) b", "a  | b "},
		{"a atan2 b", "a  | b "},
		{"a / on(x) group_right b", "a  | b "},
		{"a / ignoring(x,y) group_left () b", "a  | b "},
		{"(a)", "a "},
		{"((a) + (b))", "a  | b "},
		{"-a", "a "},
		{"-(a + +b)", "a  | b "},
		{"1", ""},
		{"1 + 1", ""},
		{"0x1F * 1e-3 + .5 - 1_000 % 5m", ""},
		{"Inf - NaN + inf", ""},
		{"\"a string\"", ""},
		{"time()", ""},
		{"time() - up", "up "},
		{"vector(1)", ""},
		{"sum", "sum "},
		{"sum + by", "sum  | by "},
		{"sum{a=\"b\"}", "sum a=b "},
		{"offset offset 5m", "offset "},
		{"min(min)", "min "},
		{"count by (by) (by)", "by "},
		{"and and and", "and  | and "},
		{"start", "start "},
		{"rate(up[5m:])", "up "},
		{"max_over_time(rate(up{a=\"b\"}[5m])[1h:5m] offset 1d)", "up a=b "},
		{"absent({a=\"b\"})", "a=b "},
		{"a > 1 < 2 >= 3 <= 4 != 5 == 6", "a "},
		{"quantile(0.9, a, )", "a "},
		{"a</b", "a  | b "},
	};
	for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
		errc rc;
		struct err err;
		const char *got = found(v[i].text, &rc, &err);
		if (rc != OK || strcmp(got, v[i].want) != 0)
			fail_msg("%s: have '%s' (%s), want '%s'", v[i].text, got, err.msg, v[i].want);
	}
}

static void what_is_no_expression_is_refused(void **state)
{
	(void)state;
	static const char *const v[] = {"", "  ", "# only", "up{", "up{a=\"b\"", "up{a=\"b}", "(up", "up)", "sum(up", "up up", "up + ", "+",
		"up,down", "up[5m", "up @", "up @ x", "up offset", "up{a=b}", "{}", "{a=\"\"}", "up{a=~\"(\"}", "$x", "a ! b", "\"a", "'a\n'", "`a",
		"sum by (x) up", "]", "up]", "}", "a ? b", "1 2", "rate(,up)", "up{} {a=\"b\"}", "@ 5"};
	for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
		errc rc;
		struct err err;
		const char *got = found(v[i], &rc, &err);
		if (rc == OK)
			fail_msg("%s: taken, with '%s'", v[i], got);
		assert_int_equal(rc, ERR_INVALID);
		assert_non_null(strstr(err.msg, "\"query\""));
	}
	struct arena a;
	struct matcher_set *sets;
	size_t n_sets;
	arena_init(&a, MIB);
	assert_int_equal(selectors_of(SPAN("up\0down"), &a, &sets, &n_sets, NULL), ERR_INVALID);
	arena_free(&a);
	/* depth and number are bounded */
	char *deep = malloc(3000);
	memset(deep, '(', 2999);
	deep[2999] = 0;
	errc rc;
	struct err err;
	found(deep, &rc, &err);
	assert_int_equal(rc, ERR_INVALID);
	char *many = malloc(10000);
	size_t n = 0;
	for (int i = 0; i < 300; i++)
		n += (size_t)sprintf(many + n, "%sup", i ? "+" : "");
	found(many, &rc, &err);
	assert_int_equal(rc, ERR_INVALID);
	free(deep);
	free(many);
}

/* Each prefix of a long expression is taken or refused, and never read over its end. */
static void prefixes(void **state)
{
	(void)state;
	static const char text[] =
		"histogram_quantile(0.9, sum by (le, \"x\") (rate(http_bucket{code=~\"5..\",a!='\\'b'}[5m] offset -1h @ end()))) > bool on(a) "
		"group_left(`b`) (-up{} # c\n ^ 2e+3)";
	size_t taken = 0;
	for (size_t n = 0; n < sizeof text; n++) {
		char *copy = malloc(n + 1);
		struct arena a;
		struct matcher_set *sets;
		size_t n_sets;
		memcpy(copy, text, n);
		arena_init(&a, MIB);
		if (selectors_of(span_of(copy, n), &a, &sets, &n_sets, NULL) == OK) {
			matcher_sets_free(sets, n_sets);
			taken++;
		}
		arena_free(&a);
		free(copy);
	}
	assert_true(taken > 1);
}

static void any_allocation_may_fail(void **state)
{
	(void)state;
	for (uint64_t n = 1, hits = 1; hits > 0; n++) {
		struct arena a;
		struct matcher_set *sets;
		size_t n_sets;
		arena_init(&a, 16 * MIB);
		fail_alloc_at(n, false);
		errc rc = selectors_of(SPAN("a{b=~\"c.*d\"} + b{c!~\"(x|y)+\"} + c + d + e + f + g + h + i + j"), &a, &sets, &n_sets, NULL);
		hits = fail_alloc_off();
		assert_true(rc == OK || hits > 0);
		if (rc == OK)
			matcher_sets_free(sets, n_sets);
		arena_free(&a);
	}
}

static void value_is(double v, const char *want)
{
	struct buf b;
	buf_init(&b, 4096);
	json_value(&b, f64_bits(v));
	buf_u8(&b, 0);
	assert_string_equal((char *)b.p, want);
	buf_free(&b);
}

static void values_as_go_writes_them(void **state)
{
	(void)state;
	value_is(0, "\"0\"");
	value_is(-0.0, "\"-0\"");
	value_is(6, "\"6\"");
	value_is(-1.5, "\"-1.5\"");
	value_is(0.1, "\"0.1\"");
	value_is(0.05, "\"0.05\"");
	value_is(100, "\"100\"");
	value_is(123456.789, "\"123456.789\"");
	value_is(1e-6, "\"0.000001\"");
	value_is(9.5e-7, "\"9.5e-07\"");
	value_is(1e20, "\"100000000000000000000\"");
	value_is(1.5e20, "\"150000000000000000000\"");
	value_is(1e21, "\"1e+21\"");
	value_is(1e300, "\"1e+300\"");
	value_is(-1e-300, "\"-1e-300\"");
	value_is(1.0 / 3, "\"0.3333333333333333\"");
	value_is(9007199254740993.0, "\"9007199254740992\"");
	value_is(NAN, "\"NaN\"");
	value_is(INFINITY, "\"+Inf\"");
	value_is(-INFINITY, "\"-Inf\"");
	value_is(f64_of_bits(STALE_NAN_BITS), "\"NaN\"");
	/* and all read back */
	uint64_t r = 1;
	for (int i = 0; i < 200000; i++) {
		struct buf b;
		r = r * 6364136223846793005u + 1442695040888963407u;
		uint64_t bits = i % 2 ? r : f64_bits((double)(int64_t)r / (double)(1 << (i % 31)));
		if (!isfinite(f64_of_bits(bits)))
			continue;
		buf_init(&b, 4096);
		json_value(&b, bits);
		buf_u8(&b, 0);
		if (f64_bits(strtod((char *)b.p + 1, NULL)) != bits)
			fail_msg("%a is written as %s", f64_of_bits(bits), (char *)b.p);
		buf_free(&b);
	}
}

static void seconds_are(int64_t t, const char *want)
{
	struct buf b;
	buf_init(&b, 4096);
	json_seconds(&b, t);
	buf_u8(&b, 0);
	assert_string_equal((char *)b.p, want);
	buf_free(&b);
}

static void times_as_go_writes_them(void **state)
{
	(void)state;
	seconds_are(0, "0");
	seconds_are(1, "0.001");
	seconds_are(1500, "1.500");
	seconds_are(-1, "-0.001");
	seconds_are(-1500, "-1.500");
	seconds_are(1600096945479, "1600096945.479");
	seconds_are(1600096945000, "1600096945");
	seconds_are(INT64_MAX, "9223372036854775.807");
	seconds_are(INT64_MIN, "-9223372036854775.808");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(selectors_are_found),
		cmocka_unit_test(what_is_no_expression_is_refused),
		cmocka_unit_test(prefixes),
		cmocka_unit_test(any_allocation_may_fail),
		cmocka_unit_test(values_as_go_writes_them),
		cmocka_unit_test(times_as_go_writes_them),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
