/* Many sources as one stream of series with external labels: the order, what is joined, what matches; held against sorting everything. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "query/query_int.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/fake_source.h"

static uint64_t seed_of_run(void)
{
	const char *s = getenv("SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : io_random_u64() | 1;
	print_message("SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

/* Few names and values, so that prefixes, collisions and equal sets are common. "__name__" sorts before, "zone" behind most. */
static const char *const names[] = {"__name__", "a", "b", "c", "replica", "tenant_id", "zone"};
enum { NAMES = 7, OWN_NAMES = 4 };

static struct labels random_labels(struct arena *a, uint64_t *r, bool collide, size_t most)
{
	struct label *v = arena_calloc(a, NAMES, sizeof *v);
	uint32_t n = 0;
	for (size_t i = 0; i < NAMES && n < most; i++) {
		bool external = i >= OWN_NAMES && i < 6;
		if ((external && !collide) || model_random(r) % 2)
			continue;
		v[n++] = (struct label){span_cstr(names[i]), span_cstr(arena_printf(a, "%c", (int)('p' + model_random(r) % 3)))};
	}
	return (struct labels){v, n};
}

enum { SOURCES = 6, SERIES = 40 };

struct lab {
	struct query q;
	struct question qn;
	struct arena arena; /* of the model */
	struct fake_source fakes[SOURCES];
	struct qsource sources[SOURCES];
	struct fake_series series[SOURCES][SERIES];
	size_t n;
};

static void lab_open(struct lab *l)
{
	*l = (struct lab){.q = {.cfg = {.max_memory_bytes = GIB, .timeout_ms = 60000}}};
	question_init(&l->qn, &l->q, SPAN("t"), 0, 1000);
	arena_init(&l->arena, GIB);
}

static void lab_free(struct lab *l)
{
	arena_free(&l->qn.arena); /* the sources are the lab's own */
	arena_free(&l->arena);
}

/* Each series has one chunk, whose payload says where it is from: "source/series". */
static void lab_make(struct lab *l, uint64_t *r, bool collide)
{
	arena_reset(&l->arena);
	arena_reset(&l->qn.arena);
	l->n = 1 + model_random(r) % SOURCES;
	for (size_t s = 0; s < l->n; s++) {
		size_t n = model_random(r) % (SERIES + 1), kept = 0;
		for (size_t i = 0; i < n; i++) {
			struct fake_series *f = &l->series[s][kept];
			*f = (struct fake_series){.labels = random_labels(&l->arena, r, collide && model_random(r) % 4 == 0, NAMES)};
			bool again = false;
			for (size_t k = 0; k < kept; k++)
				again |= labels_eq(l->series[s][k].labels, f->labels);
			if (again)
				continue;
			f->chunks = arena_calloc(&l->arena, 1, sizeof *f->chunks);
			f->n_chunks = 1;
			int64_t t = (int64_t)(model_random(r) % 1200);
			f->chunks[0] = (struct chunk){t, t + 10, CHUNK_XOR, span_cstr(arena_printf(&l->arena, "%zu/%zu", s, kept))};
			kept++;
		}
		fake_source_init(&l->fakes[s], l->series[s], kept);
		struct label *ext = arena_calloc(&l->arena, 2, sizeof *ext);
		uint32_t n_ext = 0;
		if (model_random(r) % 2)
			ext[n_ext++] = (struct label){SPAN("replica"), model_random(r) % 2 ? SPAN("p") : SPAN("q")};
		ext[n_ext++] = (struct label){SPAN("tenant_id"), SPAN("p")};
		l->fakes[s].base.ulid.b[0] = (uint8_t)(s + 1);
		l->sources[s] = (struct qsource){.src = &l->fakes[s].base, .ext = {ext, n_ext}};
	}
	l->qn.sources = l->sources;
	l->qn.n_sources = l->n;
}

/* ---- the model: everything joined, matched and sorted ---- */

struct want {
	struct labels labels;
	const struct fake_series *of;
};

static int by_labels(const void *a, const void *b)
{
	return labels_cmp(((const struct want *)a)->labels, ((const struct want *)b)->labels);
}

static size_t all_wanted(struct lab *l, const struct matcher_set *sets, size_t n_sets, struct want *out)
{
	struct err err = {0};
	size_t n = 0;
	for (size_t s = 0; s < l->n; s++)
		for (size_t i = 0; i < l->fakes[s].n; i++) {
			const struct fake_series *f = &l->fakes[s].v[i];
			struct want w = {.of = f};
			if (f->chunks[0].maxt < l->qn.mint || f->chunks[0].mint > l->qn.maxt)
				continue;
			assert_int_equal(external_join(f->labels, l->sources[s].ext, &l->arena, &w.labels, &err), OK);
			bool any = n_sets == 0;
			for (size_t k = 0; k < n_sets; k++)
				any |= matchers_match_labels(sets[k].m, sets[k].n, w.labels);
			if (any)
				out[n++] = w;
		}
	if (n > 1)
		qsort(out, n, sizeof *out, by_labels);
	return n;
}

static const char *show(struct labels l)
{
	static char text[512];
	return labels_format(l, text, sizeof text);
}

/* The merge gives each joined set once, ascending, with one part for every series that has it (a part may come once for each set of matchers). */
static void assert_merge(struct lab *l, const struct matcher_set *sets, size_t n_sets, bool skip_chunks)
{
	static struct want want[SOURCES * SERIES];
	struct matcher_set all = {0};
	struct err err = {0};
	struct merge *m;
	size_t n = all_wanted(l, sets, n_sets, want), at = 0;
	if (merge_open(&l->qn, n_sets ? sets : &all, n_sets ? n_sets : 1, skip_chunks, &m, &err) != OK)
		fail_msg("%s", err.msg);
	for (;;) {
		struct merged got;
		bool more;
		if (merge_next(m, &got, &more, &err) != OK)
			fail_msg("%s", err.msg);
		if (!more)
			break;
		if (at == n)
			fail_msg("one too many: %s", show(got.labels));
		if (!labels_eq(got.labels, want[at].labels)) {
			print_message("got %s\n", show(got.labels));
			fail_msg("want %s", show(want[at].labels));
		}
		for (; at < n && labels_eq(got.labels, want[at].labels); at++) {
			bool found = skip_chunks;
			for (size_t p = 0; p < got.n_parts; p++)
				found |= got.parts[p].n_chunks == 1 && span_eq(got.parts[p].chunks[0].data, want[at].of->chunks[0].data);
			assert_true(found);
		}
	}
	assert_int_equal(at, n);
	merge_close(m);
	for (size_t s = 0; s < l->n; s++)
		assert_int_equal(l->fakes[s].opened, l->fakes[s].closed);
}

static void any_sources(void **state)
{
	(void)state;
	uint64_t r = seed_of_run();
	struct lab l;
	lab_open(&l);
	for (int i = 0; i < (getenv("VARVE_FULL") ? 100000 : 4000); i++) {
		lab_make(&l, &r, i % 2);
		assert_merge(&l, NULL, 0, i % 3 == 0);
	}
	lab_free(&l);
}

static void any_matchers(void **state)
{
	(void)state;
	static const char *const values[] = {"", "p", "q", "r", "p|q", ".*", ".+", "[q-r]", "z", "q.*"};
	uint64_t r = seed_of_run();
	struct lab l;
	struct err err = {0};
	lab_open(&l);
	for (int i = 0; i < (getenv("VARVE_FULL") ? 50000 : 2000); i++) {
		struct matcher m[3][3];
		struct matcher_set sets[3];
		lab_make(&l, &r, i % 2);
		size_t n_sets = 1 + model_random(&r) % 3;
		for (size_t s = 0; s < n_sets; s++) {
			sets[s] = (struct matcher_set){m[s], model_random(&r) % 4};
			for (size_t k = 0; k < sets[s].n; k++)
				assert_int_equal(
					matcher_init(&m[s][k], (enum matcher_type)(model_random(&r) % 4), span_cstr(names[model_random(&r) % NAMES]),
						span_cstr(values[model_random(&r) % 10]), &l.arena, &err),
					OK);
		}
		assert_merge(&l, sets, n_sets, i % 3 == 0);
		for (size_t s = 0; s < n_sets; s++)
			matchers_free(m[s], sets[s].n);
	}
	lab_free(&l);
}

/* {a} before {a, b}, but with an external label between a and b it is the other way round, and so for every depth. */
static void prefixes_turn_round(void **state)
{
	(void)state;
	struct lab l;
	lab_open(&l);
	l.n = 1;
	struct label a[5] = {{SPAN("a"), SPAN("1")}, {SPAN("b"), SPAN("1")}, {SPAN("n"), SPAN("1")}, {SPAN("x"), SPAN("1")}, {SPAN("y"), SPAN("1")}};
	struct label ext[2] = {{SPAN("m"), SPAN("e")}, {SPAN("xx"), SPAN("e")}};
	struct chunk c = {0, 1, CHUNK_XOR, SPAN("0/0")};
	for (uint32_t i = 0; i < 5; i++)
		l.series[0][i] = (struct fake_series){.labels = {a, i + 1}, .chunks = &c, .n_chunks = 1};
	fake_source_init(&l.fakes[0], l.series[0], 5);
	l.sources[0] = (struct qsource){.src = &l.fakes[0].base, .ext = {ext, 2}};
	l.qn.sources = l.sources;
	l.qn.n_sources = 1;
	assert_merge(&l, NULL, 0, false);
	lab_free(&l);
}

/* Labels that replicas differ in are left out, external ones and own ones, and what is the same then comes as one series; matchers still see them. */
static void replicas_are_one(void **state)
{
	(void)state;
	static const char *const values[] = {"p", "q", "r", "p|q", ".+", ""};
	static const struct span drop[] = {{"replica", 7}, {"b", 1}};
	uint64_t r = seed_of_run();
	struct lab l;
	struct err err = {0};
	lab_open(&l);
	size_t joined = 0;
	for (int i = 0; i < (getenv("VARVE_FULL") ? 50000 : 2000); i++) {
		struct matcher m;
		lab_make(&l, &r, i % 2);
		l.qn.replica = drop;
		l.qn.n_replica = 1 + (size_t)i % 2;
		assert_int_equal(matcher_init(&m, (enum matcher_type)(model_random(&r) % 4), SPAN("replica"), span_cstr(values[model_random(&r) % 6]),
					 &l.arena, &err),
			OK);
		const struct matcher_set set = {&m, (size_t)i % 3 > 0};
		/* the model: match, then leave out, then sort */
		static struct want want[SOURCES * SERIES];
		size_t n = all_wanted(&l, &set, 1, want), at = 0;
		for (size_t k = 0; k < n; k++)
			assert_int_equal(labels_without(want[k].labels, drop, l.qn.n_replica, &l.arena, &want[k].labels, &err), OK);
		if (n > 1)
			qsort(want, n, sizeof *want, by_labels);
		struct merge *merge;
		assert_int_equal(merge_open(&l.qn, &set, 1, true, &merge, &err), OK);
		for (;;) {
			struct merged got;
			bool more;
			assert_int_equal(merge_next(merge, &got, &more, &err), OK);
			if (!more)
				break;
			assert_true(at < n && labels_eq(got.labels, want[at].labels));
			size_t from = at;
			while (at < n && labels_eq(got.labels, want[at].labels))
				at++;
			assert_true(got.n_parts >= at - from);
			joined += at - from > 1;
		}
		assert_int_equal(at, n);
		merge_close(merge);
		matchers_free(&m, 1);
	}
	assert_true(joined > 100);
	lab_free(&l);
}

/* Own labels that the external ones replace make series equal: their parts come together. */
static void twins(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	lab_open(&l);
	l.n = 1;
	struct label own[4][2] = {{{SPAN("a"), SPAN("1")}, {SPAN("replica"), SPAN("x")}}, {{SPAN("a"), SPAN("1")}, {SPAN("replica"), SPAN("y")}},
		{{SPAN("a"), SPAN("1")}}, {{SPAN("a"), SPAN("2")}, {SPAN("replica"), SPAN("x")}}};
	struct chunk c[4];
	struct label ext = {SPAN("replica"), SPAN("e")};
	for (uint32_t i = 0; i < 4; i++) {
		c[i] = (struct chunk){i * 10, i * 10 + 5, CHUNK_XOR, span_cstr(arena_printf(&l.arena, "%u", i))};
		l.series[0][i] = (struct fake_series){.labels = {own[i], i == 2 ? 1 : 2}, .chunks = &c[i], .n_chunks = 1};
	}
	fake_source_init(&l.fakes[0], l.series[0], 4);
	l.sources[0] = (struct qsource){.src = &l.fakes[0].base, .ext = {&ext, 1}};
	l.qn.sources = l.sources;
	l.qn.n_sources = 1;
	struct merge *m;
	struct matcher_set all = {0};
	struct merged got;
	bool more;
	assert_int_equal(merge_open(&l.qn, &all, 1, false, &m, &err), OK);
	assert_int_equal(merge_next(m, &got, &more, &err), OK);
	assert_int_equal(got.n_parts, 3);
	assert_string_equal(show(got.labels), "{a=\"1\", replica=\"e\"}");
	assert_int_equal(merge_next(m, &got, &more, &err), OK);
	assert_int_equal(got.n_parts, 1);
	assert_int_equal(merge_next(m, &got, &more, &err), OK);
	assert_false(more);
	merge_close(m);
	lab_free(&l);
}

/* The source that fails is the one that is blamed, wherever in its stream. */
static void failures_name_their_source(void **state)
{
	(void)state;
	uint64_t r = seed_of_run();
	struct lab l;
	struct matcher_set all = {0};
	lab_open(&l);
	size_t hit = 0;
	for (int i = 0; i < 1000; i++) {
		struct err err = {0};
		struct merge *m = NULL;
		lab_make(&l, &r, i % 2);
		size_t bad = model_random(&r) % l.n;
		l.fakes[bad].fail_at = 1 + model_random(&r) % 30;
		l.fakes[bad].fail_code = ERR_CORRUPT;
		errc rc = merge_open(&l.qn, &all, 1, false, &m, &err);
		bool more = rc == OK;
		while (rc == OK && more) {
			struct merged got;
			rc = merge_next(m, &got, &more, &err);
		}
		if (rc != OK) {
			hit++;
			assert_int_equal(rc, ERR_CORRUPT);
			assert_true(ulid_eq(l.qn.blamed, l.fakes[bad].base.ulid));
		}
		if (m)
			merge_close(m);
		for (size_t s = 0; s < l.n; s++)
			assert_int_equal(l.fakes[s].opened, l.fakes[s].closed);
	}
	assert_true(hit > 100);
	lab_free(&l);
}

static void deadline_ends_it(void **state)
{
	(void)state;
	uint64_t r = 1;
	struct lab l;
	struct err err = {0};
	struct matcher_set all = {0};
	struct merge *m;
	lab_open(&l);
	lab_make(&l, &r, false);
	l.qn.deadline_mono_ms = io_mono_ms() - 1;
	assert_int_equal(merge_open(&l.qn, &all, 1, false, &m, &err), ERR_TIMEOUT);
	lab_free(&l);
}

static void out_of_memory(void **state)
{
	(void)state;
	uint64_t r = 5;
	struct lab l;
	struct matcher_set all = {0};
	lab_open(&l);
	for (int i = 0; i < 6; i++)
		for (uint64_t n = 1;; n++) {
			struct err err = {0};
			struct merge *m = NULL;
			uint64_t seed = r;
			lab_make(&l, &seed, i % 2);
			arena_free(&l.qn.arena);
			fail_alloc_at(n, false);
			errc rc = merge_open(&l.qn, &all, 1, false, &m, &err);
			for (bool more = true; rc == OK && more;) {
				struct merged got;
				rc = merge_next(m, &got, &more, &err);
			}
			uint64_t hits = fail_alloc_off();
			if (m)
				merge_close(m);
			if (hits == 0) {
				assert_int_equal(rc, OK);
				r = seed;
				break;
			}
		}
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_sources),
		cmocka_unit_test(any_matchers),
		cmocka_unit_test(prefixes_turn_round),
		cmocka_unit_test(replicas_are_one),
		cmocka_unit_test(twins),
		cmocka_unit_test(failures_name_their_source),
		cmocka_unit_test(deadline_ends_it),
		cmocka_unit_test(out_of_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
