/* Escapes, query strings and basic auth headers, alone: what is malformed is refused, what is well formed comes back as it went in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "net/net_int.h"

static struct arena arena;

static int clear(void **state)
{
	(void)state;
	arena_free(&arena);
	return 0;
}

/* Every byte but NUL, escaped in either case, bare where it may be. */
static void each_byte_survives(void **state)
{
	(void)state;
	for (int c = 1; c < 256; c++) {
		char text[8];
		struct span out;
		for (int upper = 0; upper < 2; upper++) {
			int n = snprintf(text, sizeof text, upper ? "%%%02X" : "%%%02x", (unsigned)c);
			assert_int_equal(net_unescape(span_of(text, (size_t)n), true, &arena, &out, NULL), OK);
			assert_int_equal(out.n, 1);
			assert_int_equal((uint8_t)out.p[0], c);
		}
		char bare = (char)c;
		if (c == '%' || c == '+')
			continue;
		assert_int_equal(net_unescape(span_of(&bare, 1), true, &arena, &out, NULL), OK);
		assert_int_equal((uint8_t)out.p[0], c);
	}
	struct span out;
	assert_int_equal(net_unescape(SPAN("a+b"), true, &arena, &out, NULL), OK);
	assert_true(span_is(out, "a b"));
	assert_int_equal(net_unescape(SPAN("a+b"), false, &arena, &out, NULL), OK);
	assert_true(span_is(out, "a+b"));
}

/* % followed by any two bytes: valid exactly for two hexadecimal digits that are not 00. */
static void all_escapes(void **state)
{
	(void)state;
	for (int a = 0; a < 256; a++) {
		for (int b = 0; b < 256; b++) {
			char text[3] = {'%', (char)a, (char)b};
			struct span out;
			bool hex = a && b && strchr("0123456789abcdefABCDEF", a) && strchr("0123456789abcdefABCDEF", b);
			bool want = hex && !(a == '0' && b == '0');
			assert_int_equal(net_unescape(span_of(text, 3), true, &arena, &out, NULL) == OK, want);
		}
		arena_reset(&arena);
	}
	struct span out;
	assert_int_equal(net_unescape(SPAN("%"), true, &arena, &out, NULL), ERR_INVALID);
	assert_int_equal(net_unescape(SPAN("abc%"), true, &arena, &out, NULL), ERR_INVALID);
	assert_int_equal(net_unescape(SPAN("%4"), true, &arena, &out, NULL), ERR_INVALID);
}

static void pairs(void **state)
{
	(void)state;
	static const struct {
		const char *text, *want; /* name=value; ... */
	} cases[] = {
		{"", ""},
		{"&", ""},
		{"&&a&&", "a=;"},
		{"a=b", "a=b;"},
		{"a=b=c", "a=b=c;"},
		{"=b", "=b;"},
		{"=", "=;"},
		{"a", "a=;"},
		{"a=%26&b=%3D", "a=&;b==;"},
		{"a;b=c", "a;b=c;"},
		{"match[]=1&match%5B%5D=2", "match[]=1;match[]=2;"},
		{"a=1&a=2&b=3&a=4", "a=1;a=2;b=3;a=4;"},
		{"q=%e2%82%ac+x", "q=\u20ac x;"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct net_params p = {0};
		char got[200] = "";
		size_t n = 0;
		assert_int_equal(net_params_parse(span_cstr(cases[i].text), &arena, &p, NULL), OK);
		for (size_t k = 0; k < p.n; k++)
			n += (size_t)snprintf(got + n, sizeof got - n, "%.*s=%.*s;", SPAN_ARG(p.v[k].name), SPAN_ARG(p.v[k].value));
		assert_string_equal(got, cases[i].want);
	}
	struct net_params p = {0};
	assert_int_equal(net_params_parse(SPAN("a=1&b=%"), &arena, &p, NULL), ERR_INVALID);
	assert_int_equal(net_params_parse(SPAN("%zz=1"), &arena, &p, NULL), ERR_INVALID);
}

static void too_many_pairs(void **state)
{
	(void)state;
	struct err err = {0};
	char *text = malloc(3 * LIMIT_HTTP_PARAMS + 3);
	for (int above = 0; above < 2; above++) {
		struct net_params p = {0};
		size_t n = (size_t)LIMIT_HTTP_PARAMS + (size_t)above;
		for (size_t i = 0; i < n; i++)
			memcpy(text + 2 * i, "a&", 2);
		assert_int_equal(net_params_parse(span_of(text, 2 * n), &arena, &p, &err), above ? ERR_LIMIT : OK);
	}
	assert_string_equal(err.id, "err-varve-bad-parameter");
	free(text);
}

static void no_memory_is_an_error(void **state)
{
	(void)state;
	static const char text[] = "a=%20b&c=d&e=%20%20%20%20&f=g&1=1&2=1&3=1&4=1&5=1&6=1&7=1&8=1&9=1&10=1&11=1&12=1&13=1&14=1&15=1&16=1&17=%30";
	size_t max = 0;
	errc rc;
	do {
		struct arena small;
		struct net_params p = {0};
		struct err err = {0};
		arena_init(&small, max);
		rc = net_params_parse(SPAN(text), &small, &p, &err);
		assert_true(rc == OK || rc == ERR_NOMEM);
		arena_free(&small);
		max += 8;
	} while (rc);
	assert_in_range(max, 100, 4096);
}

static void basic_headers(void **state)
{
	(void)state;
	static const struct {
		const char *header, *user, *password; /* user NULL: refused */
	} cases[] = {
		{"Basic YTpi", "a", "b"},
		{"bAsIc   YTpi", "a", "b"},
		{"Basic Og==", "", ""},
		{"Basic YTo=", "a", ""},
		{"Basic YTpiOmM=", "a", "b:c"},
		{"Basic", NULL, NULL},
		{"Basic ", NULL, NULL},
		{"Basic YQ==", NULL, NULL}, /* no colon */
		{"Basic YTpi=", NULL, NULL},
		{"Basic YTp", NULL, NULL},
		{"Basic YTp i", NULL, NULL},
		{"Basic YTpi ", NULL, NULL},
		{"Basic YTo", NULL, NULL},
		{"Basic Y===", NULL, NULL},
		{"Basic YTr=", NULL, NULL}, /* bits behind the end */
		{"Basic YT==pi==", NULL, NULL},
		{"Basic YTpiAA==", NULL, NULL}, /* a:b\0 */
		{"Basic AGE6Yg==", NULL, NULL},
		{"Basic YTp-", NULL, NULL},
		{"Bearer YTpi", NULL, NULL},
		{"", NULL, NULL},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		const char *user = NULL, *password = NULL;
		struct err err = {0};
		errc rc = net_basic_parse(span_cstr(cases[i].header), &arena, &user, &password, &err);
		if ((rc == OK) != (cases[i].user != NULL))
			fail_msg("%s: %s", cases[i].header, errc_name(rc));
		if (rc) {
			assert_string_equal(err.id, "err-varve-unauthorized");
			assert_null(strstr(err.msg, "YT"));
			continue;
		}
		assert_string_equal(user, cases[i].user);
		assert_string_equal(password, cases[i].password);
	}
}

static void json_strings(void **state)
{
	(void)state;
	static const struct {
		struct span in;
		const char *want;
	} cases[] = {
		{{"", 0}, "\"\""},
		{{"plain", 5}, "\"plain\""},
		{{"a\"b\\c\n\t\x7f", 8}, "\"a\\\"b\\\\c\\n\\u0009\\u007f\""},
		{{"\0", 1}, "\"\\u0000\""},
		{{"\u20ac\U0001f600", 7}, "\"\u20ac\U0001f600\""},
		{{"\xff", 1}, "\"\\ufffd\""},
		{{"\xe2\x82", 2}, "\"\\ufffd\\ufffd\""},
		{{"\xe2\x82x", 3}, "\"\\ufffd\\ufffdx\""},
		{{"\xc0\x80", 2}, "\"\\ufffd\\ufffd\""},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct buf b;
		buf_init(&b, 1000);
		net_json_string(&b, cases[i].in);
		buf_u8(&b, 0);
		assert_string_equal((char *)b.p, cases[i].want);
		buf_free(&b);
	}
}

int main(void)
{
	arena_init(&arena, 64 * MIB);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(each_byte_survives, clear),
		cmocka_unit_test_teardown(all_escapes, clear),
		cmocka_unit_test_teardown(pairs, clear),
		cmocka_unit_test_teardown(too_many_pairs, clear),
		cmocka_unit_test(no_memory_is_an_error),
		cmocka_unit_test_teardown(basic_headers, clear),
		cmocka_unit_test(json_strings),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
