/* A tenant has as many series as it may and never one more, whoever else makes some at the same time; what is known is stored whatever the limit says;
 * replay refuses nothing; by remote write 1.0 and 2.0 alike. And what the head says of a tenant's series is what a plain count of them says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/head_lab.h"

enum { RANGE = 60000, SEGMENT = 256 * 1024 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static void open_lab(struct lab *l, uint32_t shards)
{
	struct err err = {0};
	lab_open(l, 7, RANGE, SEGMENT);
	l->cfg.shards = shards;
	l->quiet_model = true;
	assert_int_equal(lab_start(l, &err), OK);
}

/* Series [first, first + n) of a tenant, one sample each; v2: by remote write 2.0. */
static void put_as(struct lab *l, struct lab_batch *b, bool v2, uint32_t tenant, uint32_t first, uint32_t n, int64_t t)
{
	struct err err = {0};
	lab_batch_begin(b, tenant);
	b->v2 = v2;
	for (uint32_t k = first; k < first + n; k++) {
		lab_batch_series(b, k, 0);
		lab_batch_sample(b, t, f64_bits((double)k + (double)t));
	}
	assert_int_equal(lab_send(l, b, &err), OK);
}

static void put(struct lab *l, struct lab_batch *b, uint32_t tenant, uint32_t first, uint32_t n, int64_t t)
{
	put_as(l, b, false, tenant, first, n, t);
}

static uint64_t sum(const struct lab_batch *b, uint32_t *refused)
{
	uint64_t stored = 0;
	*refused = 0;
	for (size_t i = 0; i < b->n; i++) {
		stored += b->hs[i].stored;
		*refused += b->hs[i].refused;
		if (b->hs[i].refused > 0)
			assert_int_equal(b->hs[i].refused_id, ERRID_TENANT_SERIES);
	}
	assert_int_equal(b->b.refused_by[ERRID_TENANT_SERIES], *refused);
	return stored;
}

static struct head_usage usage(struct lab *l, uint32_t tenant)
{
	struct head_usage u;
	head_tenant_usage(l->head, span_cstr(lab_tenant(tenant)), io_now_ms(), &u);
	return u;
}

static void known_and_new(bool v2)
{
	struct lab l;
	struct lab_batch b;
	uint32_t refused;
	open_lab(&l, 4);
	put_as(&l, &b, false, 0, 0, 60, T0);
	lab_batch_free(&b);
	l.max_series = 100;
	put_as(&l, &b, v2, 0, 20, 120, T0 + 1000); /* 40 known, 80 new, room for 40 */
	assert_int_equal(sum(&b, &refused), 80);
	assert_int_equal(refused, 40);
	assert_int_equal(b.b.tenant_series, 100);
	assert_int_equal(usage(&l, 0).series, 100);
	/* The same again: the same verdicts, and nothing twice. */
	struct lab_batch again;
	put_as(&l, &again, v2, 0, 20, 120, T0 + 1000);
	assert_int_equal(sum(&again, &refused), 0);
	assert_int_equal(refused, 40);
	for (size_t i = 0; i < b.n; i++)
		assert_int_equal(b.hs[i].refused, again.hs[i].refused);
	lab_batch_free(&again);
	lab_batch_free(&b);
	/* Another spelling of a known series is that series. */
	struct err err = {0};
	lab_batch_begin(&b, 0);
	b.v2 = v2;
	lab_batch_series(&b, 0, 5);
	lab_batch_sample(&b, T0 + 2000, 1);
	assert_int_equal(lab_send(&l, &b, &err), OK);
	assert_int_equal(sum(&b, &refused), 1);
	lab_batch_free(&b);
	/* A limit below what there is takes nothing away. */
	l.max_series = 10;
	put_as(&l, &b, v2, 0, 0, 61, T0 + 3000);
	assert_int_equal(sum(&b, &refused), 61);
	lab_batch_free(&b);
	put_as(&l, &b, v2, 0, 1000, 5, T0 + 3000);
	assert_int_equal(sum(&b, &refused), 0);
	assert_int_equal(refused, 5);
	lab_batch_free(&b);
	/* Another tenant has a count of its own. */
	put_as(&l, &b, v2, 1, 0, 12, T0);
	assert_int_equal(sum(&b, &refused), 10);
	assert_int_equal(usage(&l, 1).series, 10);
	lab_batch_free(&b);
	lab_stop(&l);
	lab_free(&l);
}

static void known_series_are_stored_and_new_ones_are_not(void **state)
{
	(void)state;
	known_and_new(false);
	known_and_new(true);
}

/* What is out of bounds is refused for that, makes no series and takes no place. */
static void what_is_refused_for_good_takes_no_place(void **state)
{
	(void)state;
	struct lab l;
	struct lab_batch b;
	uint32_t refused;
	open_lab(&l, 1);
	l.max_series = 3;
	struct err err = {0};
	lab_batch_begin(&b, 0);
	for (uint32_t k = 0; k < 6; k++) {
		lab_batch_series(&b, k, 0);
		lab_batch_sample(&b, k < 3 ? INT64_MIN : T0, 1);
	}
	assert_int_equal(lab_send(&l, &b, &err), OK);
	for (uint32_t k = 0; k < 6; k++)
		assert_int_equal(b.hs[k].refused_id, k < 3 ? ERRID_TOO_OLD : ERRID_NONE);
	lab_batch_free(&b);
	put(&l, &b, 0, 10, 1, T0);
	assert_int_equal(sum(&b, &refused), 0);
	lab_batch_free(&b);
	lab_stop(&l);
	lab_free(&l);
}

static void raw_label(struct buf *out, const char *name, const char *value)
{
	buf_u8(out, 0x0a);
	buf_u8(out, (uint8_t)(4 + strlen(name) + strlen(value)));
	buf_u8(out, 0x0a);
	buf_str(out, span_cstr(name));
	buf_u8(out, 0x12);
	buf_str(out, span_cstr(value));
}

enum how { BY_1, BY_1_CUT, BY_2 };
static uint64_t fail_at, failed; /* which allocation of the append, and whether it was asked for */

/* One sample at T0 of a series with these names and values, up to the first NULL; its verdict, and the call's error id when nothing was stored; OVERLOADED
 * without memory. */
static enum errid verdict_of(struct lab *l, const char *const *labels, enum how how)
{
	struct buf wire, records;
	struct span symbols[7] = {{"", 0}};
	const uint32_t refs[6] = {1, 2, 3, 4, 5, 6};
	uint32_t n = 0, n_logged = 0;
	buf_init(&wire, MIB);
	for (; n < 3 && labels[2 * n]; n++) {
		raw_label(&wire, labels[2 * n], labels[2 * n + 1]);
		symbols[2 * n + 1] = span_cstr(labels[2 * n]);
		symbols[2 * n + 2] = span_cstr(labels[2 * n + 1]);
	}
	struct head_sample sample = {T0, 1};
	struct head_series s = {.wire = span_of(wire.p, wire.n - (how == BY_1_CUT)), .n_labels = n, .n = 1};
	struct head_batch b = {.tenant = span_cstr(lab_tenant(0)),
		.series = &s,
		.n_series = 1,
		.samples = &sample,
		.n_samples = 1,
		.min_t = INT64_MIN,
		.max_t = INT64_MAX,
		.now_ms = T0,
		.max_series = l->max_series};
	if (how == BY_2) {
		s.wire.p = NULL;
		s.refs = refs;
		b.symbols = symbols;
		b.n_symbols = 2 * n + 1;
	}
	struct wal_ticket ticket;
	struct err err = {0}, wal_err = {0};
	size_t bound = head_batch_bound(l->head, &b);
	assert_int_equal(wal_reserve(l->wal, bound, &ticket, &err), OK);
	buf_init(&records, bound + 1);
	if (fail_at)
		fail_alloc_at(fail_at, false);
	errc rc = head_append(l->head, &ticket, &b, &records, &n_logged, &err);
	failed = fail_alloc_off();
	assert_int_equal(wal_commit_wait(l->wal, &ticket, span_of(records.p, records.n), n_logged, &wal_err), OK);
	buf_free(&records);
	buf_free(&wire);
	return rc == OK ? s.refused_id : rc == ERR_NOMEM ? ERRID_OVERLOADED : errid_of(err.id);
}

/* A full tenant is told what is wrong with its series for good, and only else that it is full; the first time and, once remembered, every time. */
static void a_full_tenant_is_told_the_same_every_time(void **state)
{
	(void)state;
	struct lab l;
	struct lab_batch b;
	open_lab(&l, 4);
	l.max_series = 4;
	put(&l, &b, 0, 0, 4, T0);
	lab_batch_free(&b);
	static const struct {
		const char *labels[6];
		enum errid id;
	} t[] = {
		{{"__name__", "new", "a", "b"}, ERRID_TENANT_SERIES},
		{{"a", "b", "__name__", "new"}, ERRID_TENANT_SERIES},
		{{"__name__", "new", "a", "b", "empty", ""}, ERRID_TENANT_SERIES},
		{{"a", "b"}, ERRID_NO_METRIC_NAME},
		{{"__name__", "new", "a", "b", "a", "c"}, ERRID_DUPLICATE_LABEL},
		{{"__name__", "new", "", "b"}, ERRID_EMPTY_LABEL_NAME},
		{{"__name__", "new", "a", "\xff"}, ERRID_LABEL_UTF8},
		{{"__name__", "new\xff"}, ERRID_LABEL_UTF8},
	};
	for (int again = 0; again < 3; again++) {
		for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
			assert_int_equal(verdict_of(&l, t[i].labels, BY_1), t[i].id);
			assert_int_equal(verdict_of(&l, t[i].labels, BY_2), t[i].id);
			/* Cut short it is no label set at all. */
			assert_int_equal(verdict_of(&l, t[i].labels, BY_1_CUT), ERRID_PROTOBUF);
		}
		assert_int_equal(usage(&l, 0).series, 4);
	}
	/* What was remembered while it was full is taken when it is not, and then known for good, by whichever version it is asked for. */
	l.max_series = 5;
	assert_int_equal(verdict_of(&l, t[0].labels, BY_1), ERRID_NONE);
	for (int again = 0; again < 2; again++)
		for (size_t i = 0; i < 3; i++) {
			assert_int_equal(verdict_of(&l, t[i].labels, BY_2), ERRID_NONE);
			assert_int_equal(verdict_of(&l, t[i].labels, BY_1), ERRID_NONE);
		}
	assert_int_equal(usage(&l, 0).series, 5);
	lab_stop(&l);
	lab_free(&l);
}

/* Each allocation on the way to a refusal fails: it is refused all the same, or told to come again. */
static void refused_without_memory(void **state)
{
	(void)state;
	static const char *const labels[] = {"__name__", "new", "a", "b", NULL};
	for (enum how how = BY_1; how <= BY_2; how += BY_2)
		for (failed = 1, fail_at = 1; failed; fail_at++) {
			struct lab l;
			struct lab_batch b;
			open_lab(&l, 4);
			l.max_series = 4;
			put(&l, &b, 0, 0, 4, T0);
			lab_batch_free(&b);
			enum errid id = verdict_of(&l, labels, how);
			uint64_t hits = failed, nth = fail_at;
			assert_true(id == ERRID_TENANT_SERIES || (hits > 0 && id == ERRID_OVERLOADED));
			fail_at = 0;
			assert_int_equal(verdict_of(&l, labels, how), ERRID_TENANT_SERIES);
			assert_int_equal(usage(&l, 0).series, 4);
			lab_stop(&l);
			lab_free(&l);
			fail_at = nth;
			failed = hits;
		}
	fail_at = 0;
}

/* Remembered while it was new, by one version, and made by the other: it is known, though its spelling is not; what is new beside it is still refused. */
static void remembered_by_one_version_made_by_the_other(void **state)
{
	(void)state;
	for (int v2 = 0; v2 < 2; v2++) {
		struct lab l;
		struct lab_batch b;
		uint32_t refused;
		open_lab(&l, 4);
		put(&l, &b, 0, 0, 4, T0);
		lab_batch_free(&b);
		l.max_series = 4;
		for (int i = 0; i < 3; i++) {
			put_as(&l, &b, v2, 0, 20, 10, T0 + i);
			assert_int_equal(sum(&b, &refused), 0);
			assert_int_equal(refused, 10);
			lab_batch_free(&b);
		}
		l.max_series = 7;
		put_as(&l, &b, !v2, 0, 22, 3, T0 + 10);
		assert_int_equal(sum(&b, &refused), 3);
		lab_batch_free(&b);
		for (int i = 0; i < 3; i++) {
			put_as(&l, &b, v2, 0, 20, 10, T0 + 20 + i);
			assert_int_equal(sum(&b, &refused), 3);
			assert_int_equal(refused, 7);
			for (size_t k = 0; k < b.n; k++)
				assert_int_equal(b.hs[k].stored, k >= 2 && k < 5);
			lab_batch_free(&b);
		}
		assert_int_equal(usage(&l, 0).series, 7);
		lab_stop(&l);
		lab_free(&l);
	}
}

/* The last place is taken by a series that the same request names again: both are stored, the first time and when the request comes again. */
static void twice(bool v2)
{
	struct lab l;
	struct lab_batch b;
	struct err err = {0};
	open_lab(&l, 4);
	put_as(&l, &b, v2, 0, 0, 4, T0);
	lab_batch_free(&b);
	l.max_series = 4;
	put_as(&l, &b, v2, 0, 0, 40, T0 + 1); /* all that is new is remembered */
	lab_batch_free(&b);
	l.max_series = 5;
	for (int again = 0; again < 3; again++) {
		lab_batch_begin(&b, 0);
		b.v2 = v2;
		for (int i = 0; i < 6; i++) {
			lab_batch_series(&b, i < 2 ? 20 : i < 4 ? 21 : 20, i == 5 ? 5 : 0);
			lab_batch_sample(&b, T0 + 10 + i, 1);
		}
		assert_int_equal(lab_send(&l, &b, &err), OK);
		for (size_t i = 0; i < 6; i++) {
			assert_int_equal(b.hs[i].refused_id, i == 2 || i == 3 ? ERRID_TENANT_SERIES : ERRID_NONE);
			assert_int_equal(b.hs[i].stored + b.hs[i].duplicate, i == 2 || i == 3 ? 0 : 1);
		}
		lab_batch_free(&b);
	}
	lab_stop(&l);
	lab_free(&l);
}

static void twice_in_one_request(void **state)
{
	(void)state;
	twice(false);
	twice(true);
}

static void series_leave_with_their_last_window(void **state)
{
	(void)state;
	struct lab l;
	struct lab_batch b;
	uint32_t refused;
	open_lab(&l, 2);
	l.max_series = 50;
	put(&l, &b, 0, 0, 50, T0);
	lab_batch_free(&b);
	put(&l, &b, 0, 0, 20, T0 + RANGE);
	lab_batch_free(&b);
	assert_true(usage(&l, 0).memory_bytes > 50 * 100);
	lab_flush(&l);
	for (int i = 0; i < 200 && usage(&l, 0).series > 0; i++)
		io_posix.sleep_ms(10);
	assert_int_equal(usage(&l, 0).series, 0);
	assert_int_equal(usage(&l, 0).memory_bytes, 0);
	put(&l, &b, 0, 1000, 60, T0 + 2 * RANGE);
	assert_int_equal(sum(&b, &refused), 50);
	lab_batch_free(&b);
	lab_stop(&l);
	lab_free(&l);
}

static void replay_refuses_nothing(void **state)
{
	(void)state;
	struct lab l;
	struct lab_batch b;
	struct err err = {0};
	uint32_t refused;
	open_lab(&l, 4);
	put(&l, &b, 0, 0, 500, T0);
	lab_batch_free(&b);
	put(&l, &b, 2, 0, 7, T0);
	lab_batch_free(&b);
	l.max_series = 5;
	lab_crash(&l, SIM_DROP_ALL);
	l.fatal = false;
	assert_int_equal(lab_start(&l, &err), OK);
	assert_int_equal(usage(&l, 0).series, 500);
	assert_int_equal(usage(&l, 2).series, 7);
	/* What was there before is no news. */
	assert_true(usage(&l, 0).new_series_per_minute < 0.5);
	put(&l, &b, 0, 490, 20, T0 + 1000);
	assert_int_equal(sum(&b, &refused), 10);
	assert_int_equal(refused, 10);
	lab_batch_free(&b);
	lab_stop(&l);
	lab_free(&l);
}

/* ---- threads ---- */

enum { MAKERS = 4, ROUNDS = 40, EACH = 25, MOST = 777 };

struct maker {
	struct lab *l;
	uint32_t no;
	_Atomic bool *stop;
	uint64_t stored, refused;
};

static void *maker_main(void *arg)
{
	struct maker *m = arg;
	for (uint32_t i = 0; i < ROUNDS; i++) {
		struct lab_batch b;
		uint32_t refused;
		put_as(m->l, &b, (m->no + i) % 2, 0, (m->no + i * MAKERS) * EACH, EACH, T0 + i);
		m->stored += sum(&b, &refused);
		m->refused += refused;
		assert_true(b.b.tenant_series <= MOST);
		lab_batch_free(&b);
	}
	return NULL;
}

static void *asker_main(void *arg)
{
	struct maker *m = arg;
	while (!atomic_load(m->stop)) {
		struct arena a;
		struct head_cardinality c;
		struct head_usage *v;
		size_t n;
		struct err err = {0};
		arena_init(&a, 64 * MIB);
		if (head_tenant_cardinality(m->l->head, span_cstr(lab_tenant(0)), 10, 64 * MIB, &a, &c, &err) != OK || c.series > MOST ||
			head_usages(m->l->head, io_now_ms(), &a, &v, &n, &err) != OK)
			abort();
		for (size_t i = 0; i < n; i++)
			if (v[i].series > MOST)
				abort();
		arena_free(&a);
	}
	return NULL;
}

/* New series from many threads and shards, each asking for a place: exactly as many get one as there are, while others count them. */
static void never_one_more(void **state)
{
	(void)state;
	struct lab l;
	_Atomic bool stop = false;
	struct maker m[MAKERS], asker;
	pthread_t t[MAKERS], ask;
	uint64_t stored = 0, refused = 0;
	open_lab(&l, 8);
	l.max_series = MOST;
	asker = (struct maker){.l = &l, .stop = &stop};
	pthread_create(&ask, NULL, asker_main, &asker);
	for (uint32_t i = 0; i < MAKERS; i++) {
		m[i] = (struct maker){.l = &l, .no = i};
		pthread_create(&t[i], NULL, maker_main, &m[i]);
	}
	for (uint32_t i = 0; i < MAKERS; i++) {
		pthread_join(t[i], NULL);
		stored += m[i].stored;
		refused += m[i].refused;
	}
	atomic_store(&stop, true);
	pthread_join(ask, NULL);
	assert_int_equal(stored, MOST);
	assert_int_equal(refused, MAKERS * ROUNDS * EACH - MOST);
	assert_int_equal(usage(&l, 0).series, MOST);
	lab_stop(&l);
	lab_free(&l);
}

/* ---- rates ---- */

static int64_t fake_now;
static int64_t now_ms(void)
{
	return fake_now;
}

/* A steady stream of r a second is shown as r; a minute of silence leaves 1/e of it. */
static void rates_follow_the_last_minute(void **state)
{
	(void)state;
	struct lab l;
	struct lab_batch b;
	open_lab(&l, 1);
	const struct io_ops *real = io_ops;
	struct io_ops ops = *real;
	ops.now_ms = now_ms;
	io_ops = &ops;
	fake_now = T0;
	for (int i = 0; i < 600; i++) {
		put(&l, &b, 0, (uint32_t)(i * 2), 12, T0 + i);
		lab_batch_free(&b);
		fake_now += 1000;
	}
	struct head_usage u = usage(&l, 0);
	assert_float_equal(u.samples_per_second, 12, 0.3);
	assert_float_equal(u.new_series_per_minute, 120, 3);
	fake_now += 60000;
	u = usage(&l, 0);
	assert_in_range((uint64_t)(u.samples_per_second * 100), 430, 452); /* 12 / e */
	/* A clock that is set back neither adds nor takes. */
	fake_now -= 3600000;
	put(&l, &b, 0, 0, 12, T0 + 1000);
	lab_batch_free(&b);
	assert_in_range((uint64_t)usage(&l, 0).samples_per_second, 11, 13);
	fake_now += 7200000;
	assert_true(usage(&l, 0).samples_per_second < 0.001);
	io_ops = real;
	lab_stop(&l);
	lab_free(&l);
}

/* ---- cardinality ---- */

struct plain {
	struct plain_count {
		char name[96];
		uint64_t n, bytes;
		bool metric;
	} pairs[4096], names[16];
	size_t n_pairs, n_names;
};

static struct plain_count *plain_at(struct plain_count *v, size_t *n, const char *name)
{
	for (size_t i = 0; i < *n; i++)
		if (strcmp(v[i].name, name) == 0)
			return &v[i];
	snprintf(v[*n].name, sizeof v->name, "%s", name);
	v[*n].n = v[*n].bytes = 0;
	return &v[(*n)++];
}

static void plain_series(struct plain *p, uint32_t k)
{
	struct buf wire;
	struct arena a;
	struct labels l;
	struct err err = {0};
	arena_init(&a, MIB);
	buf_init(&wire, MIB);
	lab_wire(k, 0, &wire);
	assert_int_equal(labels_from_wire(span_of(wire.p, wire.n), 64, &a, &l, &err), OK);
	for (uint32_t i = 0; i < l.n; i++) {
		char pair[200], name[96];
		snprintf(pair, sizeof pair, "%.*s=%.*s", SPAN_ARG(l.v[i].name), SPAN_ARG(l.v[i].value));
		snprintf(name, sizeof name, "%.*s", SPAN_ARG(l.v[i].name));
		size_t before = p->n_pairs;
		plain_at(p->pairs, &p->n_pairs, pair)->n++;
		plain_at(p->names, &p->n_names, name)->n += p->n_pairs > before;
		plain_at(p->names, &p->n_names, name)->bytes += l.v[i].name.n + l.v[i].value.n + 2;
	}
	buf_free(&wire);
	arena_free(&a);
}

static int plain_cmp(const void *x, const void *y)
{
	const struct plain_count *a = x, *b = y;
	return a->n != b->n ? (a->n > b->n ? -1 : 1) : strcmp(a->name, b->name);
}

static void same(const struct head_top *t, struct plain_count *v, size_t n, size_t limit, bool pairs)
{
	qsort(v, n, sizeof *v, plain_cmp);
	assert_int_equal(t->n, n < limit ? n : limit);
	for (size_t i = 0; i < t->n; i++) {
		char text[200];
		snprintf(text, sizeof text, pairs ? "%.*s=%.*s" : "%.*s%.*s", SPAN_ARG(t->v[i].name), SPAN_ARG(t->v[i].value));
		assert_string_equal(text, v[i].name);
		assert_int_equal(t->v[i].n, v[i].n);
	}
}

static void check_cardinality(struct lab *l, uint32_t tenant, const bool *there, size_t limit, int64_t min_t, int64_t max_t)
{
	static struct plain p, q;
	struct arena a;
	struct head_cardinality c;
	struct err err = {0};
	uint64_t n = 0;
	p = (struct plain){.n_pairs = 0};
	for (uint32_t k = 0; k < 400; k++)
		if (there[k]) {
			plain_series(&p, k);
			n++;
		}
	arena_init(&a, 16 * MIB);
	assert_int_equal(head_tenant_cardinality(l->head, span_cstr(lab_tenant(tenant)), limit, 16 * MIB, &a, &c, &err), OK);
	assert_int_equal(c.series, n);
	assert_int_equal(c.label_pairs, p.n_pairs);
	assert_int_equal(c.min_t, min_t);
	assert_int_equal(c.max_t, max_t);
	same(&c.pairs, p.pairs, p.n_pairs, limit, true);
	same(&c.label_values, p.names, p.n_names, limit, false);
	q = (struct plain){.n_pairs = 0};
	for (size_t i = 0; i < p.n_pairs; i++)
		if (strncmp(p.pairs[i].name, "__name__=", 9) == 0)
			plain_at(q.pairs, &q.n_pairs, p.pairs[i].name + 9)->n = p.pairs[i].n;
	same(&c.metrics, q.pairs, q.n_pairs, limit, false);
	for (size_t i = 0; i < p.n_names; i++)
		p.names[i].n = p.names[i].bytes;
	same(&c.label_bytes, p.names, p.n_names, limit, false);
	arena_free(&a);
}

/* Series in one window, in two, and in none of this tenant's; lists of every length up to all. */
static void counts_are_those_of_a_plain_count(void **state)
{
	(void)state;
	struct lab l;
	struct lab_batch b;
	bool there[400] = {false}, none[400] = {false};
	open_lab(&l, 4);
	check_cardinality(&l, 0, none, 10, INT64_MAX, INT64_MIN);
	put(&l, &b, 0, 0, 120, T0);
	lab_batch_free(&b);
	put(&l, &b, 0, 60, 200, T0 + RANGE + 5);
	lab_batch_free(&b);
	put(&l, &b, 0, 100, 3, T0 - 40 * RANGE);
	lab_batch_free(&b);
	put(&l, &b, 1, 300, 100, T0 + 9);
	lab_batch_free(&b);
	for (uint32_t k = 0; k < 260; k++)
		there[k] = true;
	for (size_t limit = 1; limit < 400; limit += limit < 12 ? 1 : 31)
		check_cardinality(&l, 0, there, limit, T0 - 40 * RANGE, T0 + RANGE + 5);
	memset(there, 0, sizeof there);
	for (uint32_t k = 300; k < 400; k++)
		there[k] = true;
	check_cardinality(&l, 1, there, 10, T0 + 9, T0 + 9);
	check_cardinality(&l, 2, none, 10, INT64_MAX, INT64_MIN);

	/* Every allocation fails in turn, and every bound of its memory is kept. */
	for (uint64_t nth = 1;; nth++) {
		struct arena a;
		struct head_cardinality c;
		struct err err = {0};
		arena_init(&a, 16 * MIB);
		fail_alloc_at(nth, false);
		errc rc = head_tenant_cardinality(l.head, span_cstr(lab_tenant(0)), 10, 16 * MIB, &a, &c, &err);
		uint64_t hits = fail_alloc_off();
		arena_free(&a);
		if (hits == 0) {
			assert_int_equal(rc, OK);
			break;
		}
		assert_true(rc == ERR_NOMEM || rc == ERR_LIMIT);
		assert_true(err.msg[0]);
	}
	bool refused = false, served = false;
	for (size_t memory = 0; memory < 64 * KIB; memory += 512) {
		struct arena a;
		struct head_cardinality c;
		struct err err = {0};
		arena_init(&a, MIB);
		errc rc = head_tenant_cardinality(l.head, span_cstr(lab_tenant(0)), 10, memory, &a, &c, &err);
		assert_true(rc == OK || (rc == ERR_LIMIT && errid_of(err.id) == ERRID_QUERY_TOO_LARGE));
		refused |= rc == ERR_LIMIT;
		served |= rc == OK;
		arena_free(&a);
	}
	assert_true(refused && served);
	lab_stop(&l);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(known_series_are_stored_and_new_ones_are_not),
		cmocka_unit_test(what_is_refused_for_good_takes_no_place),
		cmocka_unit_test(a_full_tenant_is_told_the_same_every_time),
		cmocka_unit_test(refused_without_memory),
		cmocka_unit_test(remembered_by_one_version_made_by_the_other),
		cmocka_unit_test(twice_in_one_request),
		cmocka_unit_test(series_leave_with_their_last_window),
		cmocka_unit_test(replay_refuses_nothing),
		cmocka_unit_test(never_one_more),
		cmocka_unit_test(rates_follow_the_last_minute),
		cmocka_unit_test(counts_are_those_of_a_plain_count),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
