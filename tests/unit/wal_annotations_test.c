/* Records of exemplars and metadata: what goes in comes out, within the stated bounds; a cut or changed body gives a part, or says that it is damaged.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/labels.h"
#include "base/limits.h"
#include "wal/wal.h"

static uint64_t next(uint64_t *s)
{
	uint64_t x = *s += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	return x ^ x >> 27;
}

enum { N = 60, SERIES = 9 };

struct made {
	char text[N + SERIES][400];
	struct span series[SERIES];
	uint32_t of[N];
	struct exemplar x[N];
};

static void make(struct made *m, uint64_t seed)
{
	uint64_t r = seed;
	for (uint32_t i = 0; i < SERIES; i++) {
		size_t n = next(&r) % 300 + 1;
		memset(m->text[N + i], 'a' + (int)i, n);
		m->series[i] = span_of(m->text[N + i], n);
	}
	for (uint32_t i = 0; i < N; i++) {
		size_t n = next(&r) % 4 ? next(&r) % 60 : 0;
		memset(m->text[i], 'A' + (int)(i % 26), n);
		int64_t t = next(&r) % 9 ? INT64_C(1700000000000) + (int64_t)(next(&r) % 100000) : (int64_t)next(&r);
		m->of[i] = (uint32_t)(next(&r) % SERIES);
		m->x[i] = (struct exemplar){.wire = span_of(m->text[i], n), .t = t, .v = next(&r)};
	}
}

static struct buf encode(const struct made *m, uint32_t n, size_t *bound)
{
	struct buf b;
	struct wal_exemplars_enc e;
	uint32_t place[SERIES] = {0};
	buf_init(&b, MIB);
	*bound = wal_exemplars_bound(6);
	wal_exemplars_begin(&e, &b, SPAN("team-a"));
	for (uint32_t i = 0; i < n; i++) {
		uint32_t s = m->of[i];
		*bound += wal_exemplar_bound(place[s] ? 0 : m->series[s].n, m->x[i].wire.n);
		place[s] = wal_exemplars_put(&e, place[s] ? SPAN("") : m->series[s], place[s], &m->x[i]);
	}
	wal_exemplars_end(&e);
	assert_false(b.failed);
	return b;
}

static struct span body_of(const struct buf *b, enum wal_kind kind)
{
	struct rd r = rd_of(b->p, b->n);
	struct wal_record rec;
	bool ok;
	assert_true(wal_record_next(&r, &rec, &ok));
	assert_int_equal(rec.kind, kind);
	struct span body = rec.body;
	assert_false(wal_record_next(&r, &rec, &ok));
	assert_true(ok);
	return body;
}

static void exemplars_come_back(void **state)
{
	(void)state;
	struct made *m = malloc(sizeof *m);
	for (uint64_t seed = 1; seed <= 200; seed++) {
		make(m, seed);
		uint32_t n = 1 + (uint32_t)(seed % N);
		size_t bound;
		struct buf b = encode(m, n, &bound);
		assert_true(b.n <= bound);
		struct wal_exemplars_dec d;
		struct span series, first[SERIES] = {{NULL, 0}};
		struct exemplar x;
		bool ok;
		uint32_t i = 0;
		assert_true(wal_exemplars_open(body_of(&b, WAL_EXEMPLARS), &d));
		assert_true(span_is(d.tenant, "team-a"));
		for (; wal_exemplars_next(&d, &series, &x, &ok); i++) {
			assert_true(i < n && span_eq(series, m->series[m->of[i]]));
			assert_true(x.t == m->x[i].t && x.v == m->x[i].v && span_eq(x.wire, m->x[i].wire));
			assert_true(!first[m->of[i]].p || first[m->of[i]].p == series.p);
			first[m->of[i]] = series;
		}
		assert_true(ok && i == n);
		buf_free(&b);
	}
	free(m);
}

static void a_record_of_nothing_is_none(void **state)
{
	(void)state;
	struct buf b;
	struct wal_exemplars_enc e;
	struct wal_metadata_enc m;
	buf_init(&b, MIB);
	buf_u8(&b, 7);
	wal_exemplars_begin(&e, &b, SPAN("team-a"));
	wal_exemplars_end(&e);
	wal_metadata_begin(&m, &b, SPAN("team-a"));
	wal_metadata_end(&m);
	assert_int_equal(b.n, 1);
	buf_free(&b);
}

/* Each prefix gives the exemplars before the cut, each changed byte at most as many as there were: never bytes outside of the body. */
static void damage_is_noticed(void **state)
{
	(void)state;
	struct made *m = malloc(sizeof *m);
	size_t bound;
	make(m, 5);
	struct buf b = encode(m, 12, &bound);
	struct span body = body_of(&b, WAL_EXEMPLARS);
	struct wal_exemplars_dec d;
	struct span series;
	struct exemplar x;
	bool ok;
	uint32_t before = 0;
	for (size_t n = 0; n <= body.n; n++) {
		char *copy = malloc(n + 1);
		memcpy(copy, body.p, n);
		uint32_t i = 0;
		if (wal_exemplars_open(span_of(copy, n), &d)) {
			while (wal_exemplars_next(&d, &series, &x, &ok)) {
				assert_true(series.p >= copy && series.p + series.n <= copy + n && x.wire.p + x.wire.n <= copy + n);
				assert_true(x.t == m->x[i].t && span_eq(x.wire, m->x[i].wire) && span_eq(series, m->series[m->of[i]]));
				i++;
			}
			assert_true(i >= before && (i < 12 || ok));
			before = i;
		}
		free(copy);
	}
	assert_int_equal(before, 12);
	for (size_t at = 0; at < body.n; at++)
		for (unsigned bit = 0; bit < 8; bit++) {
			char *copy = malloc(body.n);
			memcpy(copy, body.p, body.n);
			copy[at] = (char)(copy[at] ^ 1 << bit);
			uint32_t i = 0;
			if (wal_exemplars_open(span_of(copy, body.n), &d))
				while (wal_exemplars_next(&d, &series, &x, &ok)) {
					assert_true(series.p >= copy && series.p + series.n <= copy + body.n && x.wire.p + x.wire.n <= copy + body.n);
					assert_true(++i <= body.n);
				}
			free(copy);
		}
	buf_free(&b);
	free(m);
}

static void metadata_comes_back(void **state)
{
	(void)state;
	uint64_t r = 3;
	static char text[9000];
	memset(text, 'h', sizeof text);
	for (int round = 0; round < 200; round++) {
		struct metadata v[40], m;
		size_t n = 1 + next(&r) % 40, bytes = 0, i = 0;
		struct buf b;
		struct wal_metadata_enc e;
		struct wal_metadata_dec d;
		bool ok;
		buf_init(&b, MIB);
		wal_metadata_begin(&e, &b, SPAN("t"));
		for (size_t k = 0; k < n; k++) {
			v[k] = (struct metadata){span_of(text, next(&r) % 100), (enum metric_type)(next(&r) % METRIC_TYPES),
				span_of(text, next(&r) % 3 ? next(&r) % 200 : next(&r) % 9000), span_of(text, next(&r) % 10)};
			bytes += v[k].family.n + v[k].help.n + v[k].unit.n;
			wal_metadata_put(&e, &v[k]);
		}
		wal_metadata_end(&e);
		assert_true(!b.failed && b.n <= wal_metadata_bound(1, n, bytes));
		struct span body = body_of(&b, WAL_METADATA);
		assert_true(wal_metadata_open(body, &d) && span_is(d.tenant, "t"));
		for (; wal_metadata_next(&d, &m, &ok); i++)
			assert_true(i < n && m.type == v[i].type && span_eq(m.family, v[i].family) && span_eq(m.help, v[i].help) &&
				    span_eq(m.unit, v[i].unit));
		assert_true(ok && i == n);
		for (size_t cut = 0; cut < body.n; cut += 1 + body.n / 50) {
			char *copy = malloc(cut + 1);
			memcpy(copy, body.p, cut);
			i = 0;
			if (wal_metadata_open(span_of(copy, cut), &d))
				while (wal_metadata_next(&d, &m, &ok))
					i++;
			assert_true(i < n);
			free(copy);
		}
		buf_free(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exemplars_come_back),
		cmocka_unit_test(a_record_of_nothing_is_none),
		cmocka_unit_test(damage_is_noticed),
		cmocka_unit_test(metadata_comes_back),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
