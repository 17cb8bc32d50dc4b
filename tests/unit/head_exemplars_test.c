/* Exemplars: the newest stay, each series in order; a retry changes nothing; a restart and the end of old log segments change nothing either; tenants
 * share the room.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_annotations_int.h"
#include "tests/support/annot_lab.h"
#include "tests/support/fail_alloc.h"

enum { RANGE = 600000, MAX = 200 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

static void open_lab(struct lab *l, uint64_t seed, uint64_t max, uint64_t segment_bytes)
{
	lab_open(l, seed, RANGE, segment_bytes);
	l->quiet_model = true;
	l->cfg.max_exemplars = max;
	must_start(l);
}

static void must_send(struct lab *l, struct annot_request *r)
{
	struct err err = {0};
	if (annot_send(l, r, &err) != OK)
		fail_msg("send: %s", err.msg);
}

/* One exemplar of series k, with a sample of it. */
static struct head_annotations send_one(struct lab *l, uint32_t tenant, uint32_t k, int64_t t, double v, const char *trace)
{
	struct annot_request *r = malloc(sizeof *r);
	annot_begin(r, tenant);
	lab_batch_series(&r->b, k, 0);
	lab_batch_sample(&r->b, T0 + k, 1);
	annot_exemplar(r, t, f64_bits(v), trace);
	must_send(l, r);
	struct head_annotations a = r->a;
	annot_free(r);
	free(r);
	return a;
}

static void must_be(struct lab *l, uint32_t tenant, const struct annot_list *want, int64_t start, int64_t end)
{
	struct annot_list have = annot_read(l, tenant, start, end), sorted = {0};
	for (size_t i = 0; i < want->n; i++)
		if (want->v[i].t >= start && want->v[i].t <= end)
			annot_put(&sorted, &want->v[i]);
	if (sorted.n > 1)
		qsort(sorted.v, sorted.n, sizeof *sorted.v, annot_cmp);
	for (size_t i = 0; i < have.n && i < sorted.n; i++)
		if (annot_cmp(&have.v[i], &sorted.v[i]) != 0)
			fail_msg("tenant %u exemplar %zu: series %u t=%lld %s, want series %u t=%lld %s", tenant, i, have.v[i].k,
				(long long)have.v[i].t, have.v[i].trace, sorted.v[i].k, (long long)sorted.v[i].t, sorted.v[i].trace);
	assert_int_equal(have.n, sorted.n);
	free(have.v);
	free(sorted.v);
	annot_sane(l, tenant);
}

/* ---- one tenant against a plain list ---- */

enum verdict { STORED, DUPLICATE, LATE };

/* The rule in so many words. */
static enum verdict model_put(struct annot_list *m, const struct annot_exemplar *e, size_t max)
{
	const struct annot_exemplar *newest = NULL;
	for (size_t i = 0; i < m->n; i++) {
		if (m->v[i].k == e->k && annot_cmp(&m->v[i], e) == 0)
			return DUPLICATE;
		if (m->v[i].k == e->k && (!newest || annot_cmp(&m->v[i], newest) > 0))
			newest = &m->v[i];
	}
	if (newest && annot_cmp(e, newest) < 0)
		return LATE;
	annot_put(m, e);
	if (m->n > max)
		memmove(m->v, m->v + 1, --m->n * sizeof *m->v);
	return STORED;
}

static void random_exemplar(uint64_t *r, int64_t now, int64_t *t, uint64_t *v, char *trace)
{
	static const double values[] = {0, -0.0, 1, -1, 1, 1e300, 1, 1};
	uint64_t x = lab_random(r);
	*t = now + (int64_t)(x % 7) * 100;
	*v = x % 19 == 0 ? NORMAL_NAN_BITS : f64_bits(values[x >> 8 & 7]);
	trace[0] = 0;
	if (x >> 16 & 3)
		snprintf(trace, 40, "%.*x", 8 << (x >> 18 & 1), (unsigned)(x >> 20 & 3));
}

static void as_a_plain_list(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= (full() ? 40 : 4); seed++) {
		struct lab l;
		struct annot_list model = {0};
		uint64_t r = seed, counts[3] = {0};
		open_lab(&l, seed, MAX, 4 * MIB);
		struct annot_request *q = malloc(sizeof *q);
		int64_t now = T0;
		for (uint32_t round = 0; round < 120; round++) {
			annot_begin(q, 0);
			uint32_t n = 1 + (uint32_t)(lab_random(&r) % 12);
			for (uint32_t i = 0; i < n; i++) {
				uint32_t k = (uint32_t)(lab_random(&r) % 30);
				lab_batch_series(&q->b, k, (uint32_t)(lab_random(&r) % 8));
				lab_batch_sample(&q->b, now, k);
				for (uint64_t m = lab_random(&r) % 5; m > 0; m--) {
					int64_t t;
					uint64_t v;
					char trace[40];
					random_exemplar(&r, now, &t, &v, trace);
					annot_exemplar(q, t, v, trace);
				}
			}
			for (uint32_t again = 0; again < (round % 4 ? 1 : 2); again++) { /* a retry */
				uint64_t want[3] = {0};
				for (uint32_t i = 0; i < q->n; i++)
					want[model_put(&model, &q->e[i], MAX)]++;
				must_send(&l, q);
				assert_int_equal(q->a.exemplars_by[EXEMPLAR_STORED], want[STORED]);
				assert_int_equal(q->a.exemplars_by[EXEMPLAR_DUPLICATE], want[DUPLICATE]);
				assert_int_equal(q->a.exemplars_by[EXEMPLAR_OUT_OF_ORDER], want[LATE]);
				for (int i = 0; i < 3; i++)
					counts[i] += want[i];
			}
			annot_free(q);
			must_be(&l, 0, &model, INT64_MIN, INT64_MAX);
			must_be(&l, 0, &model, now - 3000, now + 100);
			if (round % 3)
				now += (int64_t)(lab_random(&r) % 300);
			if (round % 20 == 19) {
				lab_crash(&l, round % 40 == 19 ? SIM_KEEP_ALL : SIM_DROP_ALL);
				must_start(&l);
				must_be(&l, 0, &model, INT64_MIN, INT64_MAX);
			}
		}
		printf("seed %llu: %llu stored, %llu twice, %llu late\n", (unsigned long long)seed, (unsigned long long)counts[0],
			(unsigned long long)counts[1], (unsigned long long)counts[2]);
		assert_true(counts[0] > MAX && counts[1] > 10 && counts[2] > 10);
		free(q);
		free(model.v);
		lab_free(&l);
	}
}

/* ---- who is taken ---- */

static void label(struct buf *b, const char *name, const char *value)
{
	struct label l = {span_cstr(name), span_cstr(value)};
	labels_to_wire((struct labels){&l, 1}, b);
}

/* The labels of one exemplar of series 0, as bytes. */
static enum exemplar_result judged(struct lab *l, const struct buf *own, int64_t t)
{
	struct annot_request *r = malloc(sizeof *r);
	enum exemplar_result got = EXEMPLAR_RESULTS;
	annot_begin(r, 0);
	lab_batch_series(&r->b, 0, 0);
	lab_batch_sample(&r->b, T0, 1);
	annot_exemplar(r, t, 1, "");
	buf_put(&r->text, own->p, own->n);
	r->at[1] = r->text.n;
	must_send(l, r);
	for (int i = 0; i < EXEMPLAR_RESULTS; i++)
		if (r->a.exemplars_by[i]) {
			assert_int_equal(got, EXEMPLAR_RESULTS);
			got = (enum exemplar_result)i;
		}
	annot_free(r);
	free(r);
	return got;
}

static void labels_of_an_exemplar_are_judged(void **state)
{
	(void)state;
	struct lab l;
	struct buf b;
	char text[200];
	int64_t t = T0;
	open_lab(&l, 1, MAX, 4 * MIB);
	buf_init(&b, MIB);
	/* 128 characters of names and values together, whatever their bytes */
	for (size_t n = 120; n < 136; n++)
		for (int wide = 0; wide < 2; wide++) {
			buf_clear(&b);
			memset(text, 0, sizeof text);
			struct buf value;
			buf_init(&value, MIB);
			for (size_t i = 8; i < n; i++)
				buf_put(&value, wide ? "\xf0\x9f\x98\x80" : "x", wide ? 4 : 1);
			struct label x = {SPAN("trace_id"), span_of(value.p, value.n)};
			labels_to_wire((struct labels){&x, 1}, &b);
			assert_int_equal(judged(&l, &b, ++t), n <= 128 ? EXEMPLAR_STORED : EXEMPLAR_TOO_LONG);
			buf_free(&value);
		}
	buf_clear(&b);
	for (int i = 0; i < 64; i++) {
		text[0] = (char)('0' + i);
		text[1] = 0;
		label(&b, text, "y");
	}
	assert_int_equal(judged(&l, &b, ++t), EXEMPLAR_STORED);
	text[0] = (char)('0' + 64);
	label(&b, text, "y");
	assert_int_equal(judged(&l, &b, ++t), EXEMPLAR_TOO_LONG);
	/* unsorted and with an empty value: the same as sorted and without */
	buf_clear(&b);
	label(&b, "b", "2");
	buf_put(&b, "\x0a\x03\x0a\x01z", 5);
	label(&b, "a", "1");
	assert_int_equal(judged(&l, &b, ++t), EXEMPLAR_STORED);
	buf_clear(&b);
	label(&b, "a", "1");
	label(&b, "b", "2");
	assert_int_equal(judged(&l, &b, t), EXEMPLAR_DUPLICATE);
	label(&b, "b", "3");
	assert_int_equal(judged(&l, &b, ++t), EXEMPLAR_INVALID);
	buf_clear(&b);
	label(&b, "", "3");
	assert_int_equal(judged(&l, &b, ++t), EXEMPLAR_INVALID);
	buf_clear(&b);
	label(&b, "a", "\xff");
	assert_int_equal(judged(&l, &b, ++t), EXEMPLAR_INVALID);
	buf_clear(&b);
	buf_put(&b, "\x0a\x7f", 2);
	assert_int_equal(judged(&l, &b, ++t), EXEMPLAR_INVALID);
	buf_free(&b);
	lab_free(&l);
}

static void only_of_known_series(void **state)
{
	(void)state;
	struct lab l;
	open_lab(&l, 1, MAX, 4 * MIB);
	struct annot_request *r = malloc(sizeof *r);
	annot_begin(r, 0);
	lab_batch_series(&r->b, 1, 0);
	annot_exemplar(r, T0, 1, "a");
	must_send(&l, r);
	assert_int_equal(r->a.exemplars_by[EXEMPLAR_NO_SERIES], 1); /* the tenant is not even there */
	annot_free(r);
	send_one(&l, 0, 2, T0, 1, "x");
	annot_begin(r, 0);
	lab_batch_series(&r->b, 1, 0);
	annot_exemplar(r, T0, 1, "a");
	for (uint32_t spelling = 0; spelling < 8; spelling++) { /* known by any spelling, also one that its samples never had */
		lab_batch_series(&r->b, 2, spelling);
		annot_exemplar(r, T0 + 1 + spelling, 1, "b");
	}
	must_send(&l, r);
	assert_int_equal(r->a.exemplars_by[EXEMPLAR_NO_SERIES], 1);
	assert_int_equal(r->a.exemplars_by[EXEMPLAR_STORED], 8);
	annot_free(r);
	/* of another tenant */
	annot_begin(r, 1);
	lab_batch_series(&r->b, 2, 0);
	annot_exemplar(r, T0 + 100, 1, "a");
	must_send(&l, r);
	assert_int_equal(r->a.exemplars_by[EXEMPLAR_NO_SERIES], 1);
	annot_free(r);
	struct annot_list got = annot_read(&l, 1, INT64_MIN, INT64_MAX);
	assert_int_equal(got.n, 0);
	free(got.v);
	/* It outlives the windows of its series. */
	lab_flush(&l);
	struct head_status st;
	for (int i = 0; i < 2000; i++) {
		head_status(l.head, &st);
		if (st.series == 0)
			break;
		io_sleep_ms(1);
	}
	assert_int_equal(st.series, 0);
	got = annot_read(&l, 0, INT64_MIN, INT64_MAX);
	assert_int_equal(got.n, 9);
	free(got.v);
	free(r);
	lab_free(&l);
}

static void off_is_off(void **state)
{
	(void)state;
	struct lab l;
	open_lab(&l, 1, MAX, 4 * MIB);
	send_one(&l, 0, 2, T0, 1, "x");
	l.cfg.max_exemplars = 0;
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	struct head_annotations a = send_one(&l, 0, 2, T0 + 1, 1, "x");
	assert_int_equal(a.exemplars_by[EXEMPLAR_OFF], 1);
	struct annot_list got = annot_read(&l, 0, INT64_MIN, INT64_MAX);
	assert_int_equal(got.n, 0);
	lab_free(&l);
}

static void not_from_the_future(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	struct wal_ticket t;
	struct buf records;
	open_lab(&l, 1, MAX, 4 * MIB);
	send_one(&l, 0, 1, T0, 1, "x");
	const struct exemplar x[] = {{SPAN(""), 0, T0 + 10, 1}, {SPAN(""), 0, T0 + 11, 1}, {SPAN(""), 0, INT64_MAX, 1}, {SPAN(""), 0, INT64_MIN, 1}};
	struct buf wire;
	buf_init(&wire, 4096);
	lab_wire(1, 0, &wire);
	struct head_exemplars s = {.wire = span_of(wire.p, wire.n), .v = x, .n = 4};
	struct head_annotations a = {.tenant = span_cstr(lab_tenant(0)), .series = &s, .n_series = 1, .max_t = T0 + 10};
	buf_init(&records, MIB);
	assert_int_equal(wal_reserve(l.wal, head_annotations_bound(l.head, &a), &t, &err), OK);
	assert_int_equal(head_annotate(l.head, &t, &a, &records, &err), OK);
	assert_int_equal(wal_commit_wait(l.wal, &t, span_of(records.p, records.n), 0, &err), OK);
	assert_int_equal(a.exemplars_by[EXEMPLAR_STORED], 1);
	assert_int_equal(a.exemplars_by[EXEMPLAR_TOO_FAR_AHEAD], 2);
	assert_int_equal(a.exemplars_by[EXEMPLAR_OUT_OF_ORDER], 1);
	buf_free(&records);
	buf_free(&wire);
	lab_free(&l);
}

/* ---- the limit is shared ---- */

static uint32_t kept(struct lab *l, uint32_t tenant)
{
	struct annot_list got = annot_read(l, tenant, INT64_MIN, INT64_MAX);
	free(got.v);
	annot_sane(l, tenant);
	return (uint32_t)got.n;
}

static uint64_t all_kept(const struct lab *l)
{
	return atomic_load(&l->head->n_exemplars);
}

static void tenants_share_the_room(void **state)
{
	(void)state;
	struct lab l;
	open_lab(&l, 1, 90, 4 * MIB);
	for (uint32_t i = 0; i < 200; i++) {
		send_one(&l, 0, i % 50, T0 + i, i, "one");
		assert_int_equal(kept(&l, 0), i < 90 ? i + 1 : 90);
	}
	for (uint32_t i = 0; i < 100; i++) { /* another one takes from the first until both have the same */
		send_one(&l, 1, i % 50, T0 + i, i, "two");
		assert_int_equal(kept(&l, 1), i < 45 ? i + 1 : 45);
		assert_int_equal(kept(&l, 0), i < 45 ? 89 - i : 45);
	}
	for (uint32_t i = 0; i < 100; i++) {
		send_one(&l, 2, i % 50, T0 + i, i, "three");
		assert_int_equal(kept(&l, 2), i < 30 ? i + 1 : 30);
		assert_true(all_kept(&l) <= 90 && kept(&l, 0) + kept(&l, 1) + kept(&l, 2) == all_kept(&l));
	}
	assert_int_equal(kept(&l, 0), 30);
	assert_int_equal(kept(&l, 1), 30);
	/* what stays is the newest */
	struct annot_list got = annot_read(&l, 0, INT64_MIN, T0 + 169);
	assert_int_equal(got.n, 0);
	free(got.v);
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	assert_true(all_kept(&l) <= 90);
	for (uint32_t t = 0; t < LAB_TENANTS; t++)
		assert_int_equal(kept(&l, t), 30);
	/* less room at the next start */
	l.cfg.max_exemplars = 2;
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	assert_true(all_kept(&l) <= 2);
	send_one(&l, 1, 1, T0 + 1000, 1, "");
	assert_int_equal(kept(&l, 1), 1);
	assert_true(all_kept(&l) <= 2);
	lab_free(&l);
}

/* A head with little memory keeps fewer than it may: an eighth of it, shared as well. */
static void memory_is_a_limit_too(void **state)
{
	(void)state;
	struct lab l;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.quiet_model = true;
	l.cfg.max_exemplars = 1000000;
	l.cfg.max_memory_bytes = 2 * MIB;
	must_start(&l);
	struct annot_request *r = malloc(sizeof *r);
	for (uint32_t i = 0; i < 60; i++)
		for (uint32_t tenant = 0; tenant < (i < 30 ? 1 : 2); tenant++) {
			struct err err = {0};
			annot_begin(r, tenant);
			for (uint32_t k = 0; k < 100; k++) {
				char trace[40];
				snprintf(trace, sizeof trace, "%032x", i * 100 + k);
				lab_batch_series(&r->b, k, 0);
				lab_batch_sample(&r->b, T0 + k, 1);
				annot_exemplar(r, T0 + i * 100 + k, k, trace);
			}
			if (annot_send(&l, r, &err) != OK)
				fail_msg("send: %s", err.msg);
			annot_free(r);
			assert_true(atomic_load(&l.head->exemplar_bytes) <= 2 * MIB / 8);
			annot_sane(&l, tenant);
		}
	uint32_t a = kept(&l, 0), b = kept(&l, 1);
	printf("%u and %u kept in %u kB\n", a, b, (unsigned)(2 * MIB / 8 / KIB));
	assert_true(a + b > 2000 && a + b < 4000 && a > b / 10 * 9 && b > a / 10 * 9);
	struct annot_list got = annot_read(&l, 0, INT64_MIN, T0 + 6000 - a - 1);
	assert_int_equal(got.n, 0); /* the newest */
	free(got.v);
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	assert_true(atomic_load(&l.head->exemplar_bytes) <= 2 * MIB / 8);
	assert_true(kept(&l, 0) + kept(&l, 1) > 2000);
	free(r);
	lab_free(&l);
}

/* What the ring says it holds is what it took from the head's memory, and all of it comes back. */
static void memory_is_accounted(void **state)
{
	(void)state;
	struct lab l;
	enum { MANY = 20000, SERIES = 500 };
	open_lab(&l, 1, MANY, 16 * MIB);
	struct annot_request *r = malloc(sizeof *r);
	annot_begin(r, 0);
	for (uint32_t k = 0; k < SERIES; k++) {
		lab_batch_series(&r->b, k, 0);
		lab_batch_sample(&r->b, T0, 1);
	}
	must_send(&l, r);
	annot_free(r);
	struct head_status before, after;
	head_status(l.head, &before);
	for (uint32_t i = 0; i < MANY; i += 500) {
		annot_begin(r, 0);
		for (uint32_t k = 0; k < 500; k++) {
			char trace[40];
			snprintf(trace, sizeof trace, "%032x", i + k);
			lab_batch_series(&r->b, (i + k) % SERIES, 0);
			annot_exemplar(r, T0 + i + k, k, trace);
		}
		must_send(&l, r);
		annot_free(r);
	}
	head_status(l.head, &after);
	double each = (double)(after.memory_bytes - before.memory_bytes) / MANY;
	printf("%.1f bytes an exemplar with a trace id of 32 digits, %d series\n", each, SERIES);
	assert_true(each > 78 && each < 110);
	struct exemplar_ring *ring = head_tenant_find(l.head, span_cstr(lab_tenant(0)))->exemplars;
	pthread_mutex_lock(&ring->mu);
	exemplar_ring_drop(ring, MANY - 10);
	exemplar_ring_shrink(ring);
	assert_true(exemplar_ring_sane(ring));
	pthread_mutex_unlock(&ring->mu);
	head_status(l.head, &after);
	assert_true(after.memory_bytes < before.memory_bytes + 200 * KIB); /* postings follow meanwhile */
	free(r);
	lab_free(&l);
}

/* ---- restarts ---- */

/* Two requests reach the log in the other order than the head: replay builds the same. */
static void the_order_in_the_log_does_not_matter(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	open_lab(&l, 1, MAX, 4 * MIB);
	send_one(&l, 0, 1, T0, 1, "first");
	struct annot_list want = annot_read(&l, 0, INT64_MIN, INT64_MAX);
	enum { N = 6 };
	struct annot_request *r[N];
	struct wal_ticket t[N];
	for (uint32_t i = 0; i < N; i++) {
		r[i] = malloc(sizeof *r[i]);
		annot_begin(r[i], 0);
		lab_batch_series(&r[i]->b, 1, 0);
		lab_batch_sample(&r[i]->b, T0 + 1000 + i, 1);
		annot_exemplar(r[i], T0 + 100 - i, 1, "x"); /* the last ticket has the oldest */
		annot_put(&want, &r[i]->e[0]);
		assert_int_equal(wal_reserve(l.wal, annot_bound(&l, r[i]), &t[i], &err), OK);
	}
	/* Verdicts from the last ticket to the first, each newer than the one before; records wait for their turn. */
	struct buf records[N];
	uint32_t n_logged[N];
	for (uint32_t i = N; i-- > 0;) {
		struct exemplar x = {SPAN(""), 0, T0 + 100 - i, 1};
		struct label v = {SPAN("trace_id"), SPAN("x")};
		struct buf own;
		buf_init(&own, 4096);
		labels_to_wire((struct labels){&v, 1}, &own);
		x.wire = span_of(own.p, own.n);
		buf_init(&records[i], t[i].bytes + 1);
		assert_int_equal(head_append(l.head, &t[i], &r[i]->b.b, &records[i], &n_logged[i], &err), OK);
		struct head_exemplars s = {.wire = r[i]->b.hs[0].wire, .v = &x, .n = 1};
		struct head_annotations a = {.tenant = span_cstr(lab_tenant(0)), .series = &s, .n_series = 1, .max_t = INT64_MAX};
		assert_int_equal(head_annotate(l.head, &t[i], &a, &records[i], &err), OK);
		assert_int_equal(a.exemplars_by[EXEMPLAR_STORED], 1);
		assert_false(a.leans);
		if (i == 2) { /* what ticket 2 put there is met by ticket 0: it leans on a younger one */
			struct head_annotations again = {.tenant = span_cstr(lab_tenant(0)), .series = &s, .n_series = 1, .max_t = INT64_MAX};
			struct buf none;
			buf_init(&none, 4096);
			assert_int_equal(head_annotate(l.head, &t[0], &again, &none, &err), OK);
			assert_int_equal(again.exemplars_by[EXEMPLAR_DUPLICATE], 1);
			assert_true(again.leans);
			assert_int_equal(none.n, 0);
			buf_free(&none);
		}
		buf_free(&own);
	}
	for (uint32_t i = 0; i < N - 1; i++)
		wal_commit(l.wal, &t[i], span_of(records[i].p, records[i].n), n_logged[i], NULL, NULL);
	assert_int_equal(wal_commit_wait(l.wal, &t[N - 1], span_of(records[N - 1].p, records[N - 1].n), n_logged[N - 1], &err), OK);
	must_be(&l, 0, &want, INT64_MIN, INT64_MAX);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	must_be(&l, 0, &want, INT64_MIN, INT64_MAX);
	for (uint32_t i = 0; i < N; i++) {
		annot_free(r[i]);
		free(r[i]);
		buf_free(&records[i]);
	}
	free(want.v);
	lab_free(&l);
}

static uint64_t first_segment(struct lab *l)
{
	struct wal_status st;
	wal_status(l->wal, &st);
	return st.segment_first;
}

/* The log's segments go with the windows; what they told of exemplars stands in the checkpoint. */
static void segments_go_and_exemplars_stay(void **state)
{
	(void)state;
	struct lab l;
	struct annot_list model[2] = {{0}, {0}};
	uint64_t r = 9;
	lab_open(&l, 3, RANGE, 64 * KIB);
	l.quiet_model = true;
	l.cfg.max_exemplars = 2000;
	l.cfg.wal_max_bytes = 256 * KIB;
	must_start(&l);
	struct annot_request *q = malloc(sizeof *q);
	int64_t now = T0;
	for (uint32_t round = 0; round < 12; round++) {
		uint64_t before = first_segment(&l);
		for (uint32_t i = 0; i < 30; i++) {
			uint32_t tenant = i % 2;
			annot_begin(q, tenant);
			for (uint32_t k = 0; k < 100; k++) {
				lab_batch_series(&q->b, k, 0);
				for (uint32_t s = 0; s < 10; s++)
					lab_batch_sample(&q->b, now + s, lab_random(&r));
				if (lab_random(&r) % 8 == 0) {
					char trace[40];
					snprintf(trace, sizeof trace, "%016llx", (unsigned long long)lab_random(&r));
					annot_exemplar(q, now, lab_random(&r), trace);
				}
			}
			for (uint32_t k = 0; k < q->n; k++)
				model_put(&model[tenant], &q->e[k], 1000);
			must_send(&l, q);
			annot_free(q);
			now += 1000;
		}
		lab_flush(&l);
		for (int i = 0; i < 3000 && first_segment(&l) == before; i++)
			io_sleep_ms(1);
		assert_true(first_segment(&l) > before);
		lab_forget_blocks(&l);
		if (round % 3 == 2) {
			lab_crash(&l, round % 2 ? SIM_KEEP_ALL : SIM_DROP_ALL);
			must_start(&l);
		}
		/* Two tenants: half of the room each, once it is full; what each has until then is a part of its newest. */
		for (uint32_t t = 0; t < 2; t++) {
			struct annot_list got = annot_read(&l, t, INT64_MIN, INT64_MAX);
			assert_true(got.n >= (model[t].n < 1000 ? model[t].n : 1000));
			free(got.v);
			annot_sane(&l, t);
		}
	}
	must_be(&l, 0, &model[0], INT64_MIN, INT64_MAX);
	must_be(&l, 1, &model[1], INT64_MIN, INT64_MAX);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	must_be(&l, 0, &model[0], INT64_MIN, INT64_MAX);
	must_be(&l, 1, &model[1], INT64_MIN, INT64_MAX);
	free(model[0].v);
	free(model[1].v);
	free(q);
	lab_free(&l);
}

/* A chain longer than one step of a read, parts of it asked for. */
static void long_chains_are_read_in_steps(void **state)
{
	(void)state;
	struct lab l;
	struct annot_list want = {0};
	open_lab(&l, 1, 9000, 16 * MIB);
	struct annot_request *r = malloc(sizeof *r);
	for (uint32_t i = 0; i < 12000; i += 500) {
		annot_begin(r, 0);
		for (uint32_t k = 0; k < 500; k++) {
			lab_batch_series(&r->b, k % 250 ? 7 : k, 0);
			lab_batch_sample(&r->b, T0, 1);
			annot_exemplar(r, T0 + i + k, k, "x");
		}
		for (uint32_t k = 0; k < r->n; k++)
			model_put(&want, &r->e[k], 9000);
		must_send(&l, r);
		annot_free(r);
	}
	must_be(&l, 0, &want, INT64_MIN, INT64_MAX);
	must_be(&l, 0, &want, T0 + 8000, T0 + 8100);
	must_be(&l, 0, &want, T0 + 3000, T0 + 3010);
	must_be(&l, 0, &want, T0 + 12000, INT64_MAX);
	free(want.v);
	free(r);
	lab_free(&l);
}

/* ---- memory ---- */

static void any_allocation_may_fail(void **state)
{
	(void)state;
	struct lab l;
	struct annot_list model = {0};
	uint64_t r = 1, n = 0, failures = 0;
	open_lab(&l, 1, MAX, 4 * MIB);
	struct annot_request *q = malloc(sizeof *q);
	int64_t now = T0;
	for (uint32_t round = 0; round < 60; round++, now += 1000) {
		annot_begin(q, 0);
		for (uint32_t i = 0; i < 8; i++) {
			lab_batch_series(&q->b, round + i, i % 2 ? 3 : 0);
			lab_batch_sample(&q->b, now, 1);
			char trace[40];
			snprintf(trace, sizeof trace, "%016llx", (unsigned long long)lab_random(&r));
			annot_exemplar(q, now, i, trace);
		}
		for (uint64_t hits = 1; hits > 0;) {
			struct err err = {0};
			fail_alloc_at(++n, false);
			errc rc = annot_send(&l, q, &err);
			hits = fail_alloc_off();
			assert_true(rc == OK || (rc == ERR_NOMEM && hits > 0));
			failures += rc != OK;
			annot_sane(&l, 0);
		}
		n = 0;
		for (uint32_t i = 0; i < q->n; i++)
			model_put(&model, &q->e[i], MAX);
		annot_free(q);
	}
	assert_true(failures > 20);
	/* A failure may cost the oldest when the ring is full; what a request that was answered brought is there. */
	struct annot_list got = annot_read(&l, 0, INT64_MIN, INT64_MAX);
	assert_in_range(got.n, MAX / 4 * 3, MAX);
	free(got.v);
	lab_stop(&l);
	for (n = 1;; n += full() ? 1 : 1 + n / 20) {
		struct err err = {0};
		fail_alloc_at(n, false);
		errc rc = lab_start(&l, &err);
		uint64_t hits = fail_alloc_off();
		if (rc == OK)
			lab_stop(&l);
		else
			assert_int_equal(rc, ERR_NOMEM);
		if (rc == OK && hits == 0)
			break;
	}
	must_start(&l);
	must_be(&l, 0, &model, INT64_MIN, INT64_MAX);
	free(model.v);
	free(q);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(as_a_plain_list),
		cmocka_unit_test(labels_of_an_exemplar_are_judged),
		cmocka_unit_test(only_of_known_series),
		cmocka_unit_test(off_is_off),
		cmocka_unit_test(not_from_the_future),
		cmocka_unit_test(tenants_share_the_room),
		cmocka_unit_test(memory_is_a_limit_too),
		cmocka_unit_test(memory_is_accounted),
		cmocka_unit_test(the_order_in_the_log_does_not_matter),
		cmocka_unit_test(segments_go_and_exemplars_stay),
		cmocka_unit_test(long_chains_are_read_in_steps),
		cmocka_unit_test(any_allocation_may_fail),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
