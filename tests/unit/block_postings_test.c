/* Selecting by postings is nothing but asking every series, only cheaper: random label sets and matchers against brute force. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "block/block_source.h"

enum { NAMES = 6, SERIES_MAX = 400 };
static const char *const names[NAMES] = {"__name__", "a", "b", "c", "job", "zone"};
static const char *const values[] = {"x", "y", "xy", "xyz", "foo", "foobar", "bar", "1", "2", "12", "é", "x.y"};
enum { VALUES = sizeof values / sizeof *values };

/* Series i has the reference refs[i] and for each name a value or none (-1). */
struct memory_index {
	struct postings_index ix;
	size_t n;
	uint32_t refs[SERIES_MAX];
	int8_t value[SERIES_MAX][NAMES];
	bool shuffled;	    /* values come in any order */
	bool locked;	    /* while values are listed nothing else may be asked */
	size_t gets, lists; /* how often it was asked */
	size_t fail_at;	    /* the call that fails, from 1; 0 = none */
	size_t calls;
};

static errc call(struct memory_index *x, struct err *err)
{
	assert_false(x->locked);
	return ++x->calls == x->fail_at ? err_set(err, ERR_IO, "call %zu", x->calls) : OK;
}

static errc memory_all(struct postings_index *ix, struct arena *arena, struct postings *out, struct err *err)
{
	struct memory_index *x = (struct memory_index *)ix;
	(void)arena;
	*out = (struct postings){x->refs, x->n};
	return call(x, err);
}

static errc memory_get(struct postings_index *ix, struct span name, struct span value, struct arena *arena, struct postings *out, struct err *err)
{
	struct memory_index *x = (struct memory_index *)ix;
	x->gets++;
	uint32_t *v = arena_calloc(arena, x->n, sizeof *v);
	assert_non_null(v);
	size_t n = 0;
	for (size_t i = 0; i < x->n; i++)
		for (int k = 0; k < NAMES; k++)
			if (x->value[i][k] >= 0 && span_is(name, names[k]) && span_is(value, values[x->value[i][k]]))
				v[n++] = x->refs[i];
	*out = (struct postings){v, n};
	return call(x, err);
}

static errc memory_values(struct postings_index *ix, struct span name, struct span prefix,
	errc (*emit)(void *arg, struct span value, struct err *err), void *arg, struct err *err)
{
	struct memory_index *x = (struct memory_index *)ix;
	errc rc = call(x, err);
	x->lists++;
	x->locked = true;
	for (int j = 0; j < VALUES && rc == OK; j++) {
		int v = x->shuffled ? (j * 7 + 5) % VALUES : j;
		bool there = false;
		for (size_t i = 0; i < x->n; i++)
			for (int k = 0; k < NAMES; k++)
				there = there || (span_is(name, names[k]) && x->value[i][k] == v);
		if (there && span_has_prefix(span_cstr(values[v]), prefix)) {
			/* valid during the call only */
			char *copy = strdup(values[v]);
			assert_non_null(copy);
			rc = emit(arg, span_cstr(copy), err);
			free(copy);
		}
	}
	x->locked = false;
	return rc;
}

static const struct postings_index_ops memory_ops = {memory_all, memory_get, memory_values};

static uint64_t seed_state;
static uint64_t rnd(uint64_t n)
{
	seed_state = seed_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (seed_state >> 33) % n;
}

static void seed_print(const char *test)
{
	const char *s = getenv("VARVE_SEED");
	seed_state = s ? strtoull(s, NULL, 0) : io_random_u64() >> 16;
	print_message("%s: VARVE_SEED=%llu\n", test, (unsigned long long)seed_state);
}

static void index_random(struct memory_index *x)
{
	*x = (struct memory_index){.ix = {&memory_ops}};
	static const size_t sizes[] = {0, 1, 2, 10, 60, SERIES_MAX};
	x->n = sizes[rnd(6)];
	x->shuffled = rnd(2);
	uint32_t ref = 0;
	for (size_t i = 0; i < x->n; i++) {
		ref += 1 + (uint32_t)(rnd(4) == 0 ? rnd(1u << 22) : rnd(10));
		x->refs[i] = ref;
		for (int k = 0; k < NAMES; k++)
			x->value[i][k] = (int8_t)(rnd(3) == 0 ? -1 : (int8_t)rnd(rnd(4) == 0 ? VALUES : 3));
	}
}

static void matcher_random(struct matcher *m, struct arena *a)
{
	static const char *const patterns[] = {"", "x", "x|y", "x|", "x.*", "x.+", ".*", ".+", "foo|bar.*", "[xy]+", "(x|y)y?", "f.*r", "\\d+",
		"\\d*", "(?i)X", "nothing", "nothing|", "é|x\\.y", ".*y.*"};
	static const char *const absent[] = {"", "nothing", "absent"};
	const char *name = rnd(12) == 0 ? "absent" : names[rnd(NAMES)];
	enum matcher_type type = (enum matcher_type)rnd(4);
	const char *value;
	if (type == MATCH_RE || type == MATCH_NRE)
		value = patterns[rnd(sizeof patterns / sizeof *patterns)];
	else
		value = rnd(4) == 0 ? absent[rnd(3)] : values[rnd(VALUES)];
	assert_int_equal(matcher_init(m, type, span_cstr(name), span_cstr(value), a, NULL), OK);
}

static bool series_matches(const struct memory_index *x, size_t i, const struct matcher *m, size_t n)
{
	struct label l[NAMES];
	struct labels set = {l, 0};
	for (int k = 0; k < NAMES; k++)
		if (x->value[i][k] >= 0)
			l[set.n++] = (struct label){span_cstr(names[k]), span_cstr(values[x->value[i][k]])};
	return matchers_match_labels(m, n, set);
}

static void same_as_brute_force(void **state)
{
	(void)state;
	seed_print("same_as_brute_force");
	size_t rounds = getenv("VARVE_FULL") ? 100000 : 3000, selected = 0;
	struct memory_index *x = malloc(sizeof *x);
	assert_non_null(x);
	for (size_t round = 0; round < rounds; round++) {
		index_random(x);
		for (int k = 0; k < 5; k++) {
			struct arena a;
			arena_init(&a, 16 * MIB);
			struct matcher m[5];
			size_t n = rnd(5);
			for (size_t i = 0; i < n; i++)
				matcher_random(&m[i], &a);
			struct postings got;
			assert_int_equal(postings_select(&x->ix, m, n, &a, &got, NULL), OK);
			size_t at = 0;
			for (size_t i = 0; i < x->n; i++) {
				bool want = series_matches(x, i, m, n), have = at < got.n && got.v[at] == x->refs[i];
				if (want != have)
					fail_msg("round %zu: series %zu: matches %d, selected %d", round, i, want, have);
				at += have;
			}
			assert_int_equal(at, got.n);
			selected += got.n;
			matchers_free(m, n);
			arena_free(&a);
		}
	}
	assert_true(selected > rounds);
	free(x);
}

/* An error of the index at any call comes through; nothing leaks. */
static void every_call_fails(void **state)
{
	(void)state;
	struct memory_index *x = malloc(sizeof *x);
	assert_non_null(x);
	seed_state = 42;
	do
		index_random(x);
	while (x->n < 50);
	struct arena a;
	arena_init(&a, 16 * MIB);
	struct matcher *m;
	size_t n;
	assert_int_equal(matchers_parse(SPAN("{a=~\"x.*|y\",b!=\"x\",c!~\"x.+\",job=~\"x|y|xy\",zone=~\".+\"}"), &a, &m, &n, NULL), OK);
	for (x->fail_at = 1;; x->fail_at++) {
		x->calls = 0;
		struct postings p;
		struct err err = {0};
		errc rc = postings_select(&x->ix, m, n, &a, &p, &err);
		if (rc == OK)
			break;
		assert_int_equal(rc, ERR_IO);
		assert_int_equal(err.code, ERR_IO);
	}
	assert_true(x->fail_at > 8);
	matchers_free(m, n);
	arena_free(&a);
	free(x);
}

/* Only what the matchers need is asked for. */
static void asks_for_little(void **state)
{
	(void)state;
	struct memory_index *x = malloc(sizeof *x);
	assert_non_null(x);
	seed_state = 7;
	do
		index_random(x);
	while (x->n < 50);
	static const struct {
		const char *selector;
		size_t gets, lists;
	} t[] = {
		{"{a=\"x\"}", 1, 0},
		{"{a=\"x\",b!=\"y\"}", 2, 0},
		{"{a=~\"x|y|foo\"}", 3, 0},
		{"{a=\"x\",b=~\".*\"}", 1, 0},
		{"{zone=~\".+\",job=~\"f.*r\",a=\"nothing\"}", 1, 0},
		{"{a=\"x\",b!~\"x|y\"}", 3, 0},
		{"{a=~\"xyz?\"}", 2, 0},
		{"{absent=~\"x.*y\",a=\"x\"}", 1, 1},
	};
	for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
		struct arena a;
		arena_init(&a, 16 * MIB);
		struct matcher *m;
		size_t n;
		struct postings p;
		assert_int_equal(matchers_parse(span_cstr(t[i].selector), &a, &m, &n, NULL), OK);
		x->gets = x->lists = 0;
		assert_int_equal(postings_select(&x->ix, m, n, &a, &p, NULL), OK);
		assert_int_equal(x->gets, t[i].gets);
		assert_int_equal(x->lists, t[i].lists);
		matchers_free(m, n);
		arena_free(&a);
	}
	free(x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(same_as_brute_force),
		cmocka_unit_test(every_call_fails),
		cmocka_unit_test(asks_for_little),
	};
	return cmocka_run_group_tests_name("block_postings", tests, NULL, NULL);
}
