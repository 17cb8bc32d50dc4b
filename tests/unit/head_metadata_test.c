/* Metadata: what was said last of a family; saying it again costs no log; a restart, and the end of old log segments, change nothing; bounded.
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

enum { RANGE = 600000, MINUTE = 60000 };
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

static void open_lab(struct lab *l, uint32_t max, uint64_t segment_bytes)
{
	lab_open(l, 1, RANGE, segment_bytes);
	l->quiet_model = true;
	l->cfg.max_metadata = max;
	sim_set_now(l->sim, T0);
	must_start(l);
}

static struct head_annotations say(struct lab *l, uint32_t tenant, const char *family, enum metric_type type, const char *help, const char *unit)
{
	struct err err = {0};
	struct annot_request *r = malloc(sizeof *r);
	annot_begin(r, tenant);
	annot_metadata(r, family, type, help, unit);
	if (annot_send(l, r, &err) != OK)
		fail_msg("send: %s", err.msg);
	struct head_annotations a = r->a;
	annot_free(r);
	free(r);
	return a;
}

/* "help/unit/type help/unit/type" of a family, newest first. */
static char *told(struct lab *l, uint32_t tenant, const char *family)
{
	static char text[2048];
	struct annot_meta_list got = annot_read_meta(l, tenant, family);
	size_t n = 0;
	text[0] = 0;
	for (size_t i = 0; i < got.n; i++)
		n += (size_t)snprintf(text + n, sizeof text - n, "%s%s/%s/%d", i ? " " : "", got.v[i].help, got.v[i].unit, (int)got.v[i].type);
	free(got.v);
	return text;
}

static uint64_t log_bytes(struct lab *l)
{
	struct wal_status st;
	assert_int_equal(wal_sync_now(l->wal, NULL), OK);
	wal_status(l->wal, &st);
	return st.pos;
}

static void the_last_word_counts_and_repetitions_cost_nothing(void **state)
{
	(void)state;
	struct lab l;
	open_lab(&l, 100, 4 * MIB);
	struct head_annotations a = say(&l, 0, "up", METRIC_GAUGE, "one", "");
	assert_int_equal(a.metadata_new, 1);
	uint64_t before = log_bytes(&l);
	for (int i = 0; i < 50; i++) {
		a = say(&l, 0, "up", METRIC_GAUGE, "one", "");
		assert_int_equal(a.metadata_known, 1);
		assert_false(a.leans);
	}
	assert_int_equal(log_bytes(&l), before);
	/* each part makes another entry; the newest comes first */
	say(&l, 0, "up", METRIC_COUNTER, "one", "");
	say(&l, 0, "up", METRIC_COUNTER, "one", "s");
	say(&l, 0, "up", METRIC_COUNTER, "two", "s");
	assert_string_equal(told(&l, 0, "up"), "two/s/1 one/s/1 one//1 one//2");
	say(&l, 1, "up", METRIC_INFO, "other tenant", "");
	assert_string_equal(told(&l, 1, "up"), "other tenant//6");
	assert_string_equal(told(&l, 1, "down"), "");
	assert_string_equal(told(&l, 2, "up"), "");
	/* what nobody says any more falls behind what is said */
	sim_set_now(l.sim, T0 + 5 * MINUTE);
	say(&l, 0, "up", METRIC_GAUGE, "one", "");
	assert_string_equal(told(&l, 0, "up"), "one//2 two/s/1 one/s/1 one//1");
	for (int k = 0; k < 2; k++) {
		lab_crash(&l, k ? SIM_KEEP_ALL : SIM_DROP_ALL);
		must_start(&l);
		assert_string_equal(told(&l, 0, "up"), "two/s/1 one/s/1 one//1 one//2"); /* the order in which they were new */
		assert_string_equal(told(&l, 1, "up"), "other tenant//6");
		before = log_bytes(&l);
		assert_int_equal(say(&l, 0, "up", METRIC_COUNTER, "two", "s").metadata_known, 1);
		assert_int_equal(log_bytes(&l), before);
	}
	lab_free(&l);
}

static void a_family_keeps_sixteen(void **state)
{
	(void)state;
	struct lab l;
	open_lab(&l, 100, 4 * MIB);
	char help[16];
	for (int i = 0; i < 40; i++) {
		sim_set_now(l.sim, T0 + i / 3 * MINUTE);
		snprintf(help, sizeof help, "h%d", i);
		say(&l, 0, "many", METRIC_GAUGE, help, "");
		say(&l, 0, "many", METRIC_GAUGE, "h5", ""); /* said all the time */
		struct annot_meta_list got = annot_read_meta(&l, 0, "many");
		assert_true(got.n <= 16);
		bool fresh = false, always = i < 5;
		for (size_t k = 0; k < got.n; k++) {
			fresh = fresh || strcmp(got.v[k].help, help) == 0;
			always = always || strcmp(got.v[k].help, "h5") == 0;
		}
		assert_true(fresh && always);
		if (i > 20)
			assert_int_equal(got.n, 16);
		free(got.v);
	}
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	struct annot_meta_list got = annot_read_meta(&l, 0, NULL);
	assert_int_equal(got.n, 16);
	free(got.v);
	lab_free(&l);
}

/* The family that nobody spoke of for longest gives way. */
static void families_are_bounded(void **state)
{
	(void)state;
	struct lab l;
	open_lab(&l, 50, 4 * MIB);
	char name[32];
	struct head_status before, after;
	for (int i = 0; i < 500; i++) {
		sim_set_now(l.sim, T0 + i * MINUTE);
		snprintf(name, sizeof name, "family_%d", i);
		say(&l, 0, name, METRIC_GAUGE, "help", "");
		say(&l, 0, "family_0", METRIC_GAUGE, "help", "");
		if (i == 100)
			head_status(l.head, &before);
	}
	head_status(l.head, &after);
	assert_true(after.memory_bytes < before.memory_bytes + 8192);
	struct annot_meta_list got = annot_read_meta(&l, 0, NULL);
	assert_int_equal(got.n, 50);
	bool first = false;
	for (size_t i = 0; i < got.n; i++) {
		int k = atoi(got.v[i].family + 7);
		first = first || k == 0;
		assert_true(k == 0 || k > 500 - 50);
	}
	assert_true(first);
	free(got.v);
	/* others are not touched by it */
	for (int i = 0; i < 50; i++) {
		snprintf(name, sizeof name, "family_%d", i);
		say(&l, 1, name, METRIC_GAUGE, "help", "");
	}
	got = annot_read_meta(&l, 0, NULL);
	assert_int_equal(got.n, 50);
	free(got.v);
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	for (uint32_t t = 0; t < 2; t++) {
		got = annot_read_meta(&l, t, NULL);
		assert_int_equal(got.n, 50);
		free(got.v);
	}
	/* texts are the tenants' together */
	assert_int_equal(atomic_load(&l.head->n_metadata), 100);
	l.cfg.max_metadata = 0;
	lab_crash(&l, SIM_KEEP_ALL);
	must_start(&l);
	got = annot_read_meta(&l, 0, NULL);
	assert_int_equal(got.n, 0);
	assert_int_equal(say(&l, 0, "x", METRIC_GAUGE, "help", "").metadata_refused, 1);
	lab_free(&l);
}

/* A head with little memory keeps fewer than it may: an eighth of it. */
static void memory_is_a_limit_too(void **state)
{
	(void)state;
	struct lab l;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.quiet_model = true;
	l.cfg.max_metadata = 100000;
	l.cfg.max_memory_bytes = MIB;
	must_start(&l);
	struct annot_request *r = malloc(sizeof *r);
	char name[32], help[48];
	for (uint32_t i = 0; i < 40; i++) {
		struct err err = {0};
		annot_begin(r, i % 2);
		for (uint32_t k = 0; k < 100; k++) {
			snprintf(name, sizeof name, "family_%u", i * 50 + k / 2);
			snprintf(help, sizeof help, "help %u", i * 100 + k);
			annot_metadata(r, name, METRIC_GAUGE, help, "");
			if (k % 10 == 0)
				annot_metadata(r, "many", METRIC_GAUGE, help, "");
		}
		if (annot_send(&l, r, &err) != OK)
			fail_msg("send: %s", err.msg);
		annot_free(r);
		assert_true(atomic_load(&l.head->metadata_bytes) <= MIB / 8 + 1024);
	}
	assert_true(atomic_load(&l.head->metadata_bytes) > MIB / 8 / 2);
	struct annot_meta_list got = annot_read_meta(&l, 1, "family_1999");
	assert_true(got.n >= 1 && strcmp(got.v[0].help, "help 3999") == 0);
	free(got.v);
	free(r);
	lab_free(&l);
}

static void what_does_not_fit_is_refused(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	struct wal_ticket t;
	struct buf records;
	open_lab(&l, 50, 4 * MIB);
	char *text = calloc(1, 20000);
	memset(text, 'x', 19999);
	struct metadata m[] = {
		{span_of(text, METADATA_FAMILY_BYTES), METRIC_GAUGE, span_of(text, METADATA_HELP_BYTES), span_of(text, METADATA_UNIT_BYTES)},
		{span_of(text, METADATA_FAMILY_BYTES + 1), METRIC_GAUGE, SPAN(""), SPAN("")},
		{SPAN("a"), METRIC_GAUGE, span_of(text, METADATA_HELP_BYTES + 1), SPAN("")},
		{SPAN("a"), METRIC_GAUGE, SPAN(""), span_of(text, METADATA_UNIT_BYTES + 1)}, {SPAN(""), METRIC_GAUGE, SPAN("x"), SPAN("")},
		{SPAN("a"), METRIC_GAUGE, SPAN("\xff"), SPAN("")}, {SPAN("\xc0"), METRIC_GAUGE, SPAN("x"), SPAN("")},
		{SPAN("a"), METRIC_GAUGE, SPAN("x"), SPAN("\xed\xa0\x80")}, {SPAN("a"), METRIC_TYPES, SPAN("x"), SPAN("")},
		{SPAN("a"), METRIC_UNKNOWN, SPAN(""), SPAN("")}, /* says nothing: 2.0 has that beside every series */
	};
	struct head_annotations a = {.tenant = SPAN("default-tenant"), .metadata = m, .n_metadata = sizeof m / sizeof *m};
	buf_init(&records, MIB);
	assert_int_equal(wal_reserve(l.wal, head_annotations_bound(l.head, &a), &t, &err), OK);
	assert_int_equal(head_annotate(l.head, &t, &a, &records, &err), OK);
	assert_int_equal(wal_commit_wait(l.wal, &t, span_of(records.p, records.n), 0, &err), OK);
	assert_int_equal(a.metadata_new, 1);
	assert_int_equal(a.metadata_known, 1);
	assert_int_equal(a.metadata_refused, sizeof m / sizeof *m - 2);
	assert_int_equal(atomic_load(&l.head->n_metadata), 1);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	assert_int_equal(atomic_load(&l.head->n_metadata), 1);
	buf_free(&records);
	free(text);
	lab_free(&l);
}

/* 2.0 says the same of each series of a family, with the same symbols. */
static void a_request_may_repeat_itself(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	struct wal_ticket t;
	struct buf records;
	enum { N = 5000, FAMILIES = 700 };
	open_lab(&l, 1000, 4 * MIB);
	char(*names)[16] = calloc(FAMILIES, sizeof *names);
	struct metadata *m = calloc(N, sizeof *m);
	for (uint32_t i = 0; i < FAMILIES; i++)
		snprintf(names[i], sizeof *names, "f%u", i);
	for (uint32_t i = 0; i < N; i++)
		m[i] = (struct metadata){span_cstr(names[i * 7 % FAMILIES]), METRIC_COUNTER, span_cstr(names[i % 3]), SPAN("")};
	struct head_annotations a = {.tenant = SPAN("default-tenant"), .metadata = m, .n_metadata = N};
	buf_init(&records, MIB);
	assert_int_equal(wal_reserve(l.wal, head_annotations_bound(l.head, &a), &t, &err), OK);
	assert_int_equal(head_annotate(l.head, &t, &a, &records, &err), OK);
	assert_int_equal(wal_commit_wait(l.wal, &t, span_of(records.p, records.n), 0, &err), OK);
	assert_int_equal(a.metadata_new + a.metadata_known, N);
	struct annot_meta_list got = annot_read_meta(&l, 0, NULL);
	assert_int_equal(got.n, a.metadata_new);
	free(got.v);
	/* a younger ticket's words are leaned on, an older one's are not */
	struct wal_ticket older, younger;
	struct metadata x = {SPAN("lean"), METRIC_COUNTER, SPAN("h"), SPAN("")};
	a = (struct head_annotations){.tenant = SPAN("default-tenant"), .metadata = &x, .n_metadata = 1};
	assert_int_equal(wal_reserve(l.wal, 1000, &older, &err), OK);
	assert_int_equal(wal_reserve(l.wal, 1000, &younger, &err), OK);
	buf_clear(&records);
	assert_int_equal(head_annotate(l.head, &younger, &a, &records, &err), OK);
	assert_true(a.metadata_new == 1 && !a.leans);
	size_t n = records.n;
	assert_int_equal(head_annotate(l.head, &older, &a, &records, &err), OK);
	assert_true(a.metadata_known == 1 && a.leans && records.n == n);
	wal_release(l.wal, &older);
	assert_int_equal(wal_commit_wait(l.wal, &younger, span_of(records.p, records.n), 0, &err), OK);
	assert_int_equal(wal_reserve(l.wal, 1000, &younger, &err), OK);
	assert_int_equal(head_annotate(l.head, &younger, &a, &records, &err), OK);
	assert_true(a.metadata_known == 1 && !a.leans);
	wal_release(l.wal, &younger);
	buf_free(&records);
	free(names);
	free(m);
	lab_free(&l);
}

static uint64_t first_segment(struct lab *l)
{
	struct wal_status st;
	wal_status(l->wal, &st);
	return st.segment_first;
}

static void segments_go_and_metadata_stays(void **state)
{
	(void)state;
	struct lab l;
	char name[32];
	uint64_t r = 3;
	struct err err = {0};
	lab_open(&l, 1, RANGE, 64 * KIB);
	l.quiet_model = true;
	l.cfg.max_metadata = 5000;
	l.cfg.wal_max_bytes = 256 * KIB;
	must_start(&l);
	for (int i = 0; i < 1500; i++) {
		snprintf(name, sizeof name, "family_%d", i);
		say(&l, (uint32_t)i % 2, name, METRIC_HISTOGRAM, name + 3, "s");
		say(&l, (uint32_t)i % 2, name, METRIC_HISTOGRAM, "second", "s");
	}
	uint64_t before = first_segment(&l);
	for (int round = 0; round < 3; round++) {
		struct annot_request *q = malloc(sizeof *q);
		for (int i = 0; i < 20; i++) {
			annot_begin(q, 0);
			for (uint32_t k = 0; k < 100; k++) {
				lab_batch_series(&q->b, k, 0);
				for (uint32_t s = 0; s < 20; s++)
					lab_batch_sample(&q->b, T0 + round * 100000 + i * 100 + s, lab_random(&r));
			}
			assert_int_equal(annot_send(&l, q, &err), OK);
			annot_free(q);
		}
		free(q);
		lab_flush(&l);
		lab_forget_blocks(&l);
		for (int i = 0; i < 3000 && first_segment(&l) == before; i++)
			io_sleep_ms(1);
		assert_true(first_segment(&l) > before);
		before = first_segment(&l);
		lab_crash(&l, round % 2 ? SIM_KEEP_ALL : SIM_DROP_ALL);
		must_start(&l);
		for (uint32_t t = 0; t < 2; t++) {
			struct annot_meta_list got = annot_read_meta(&l, t, NULL);
			assert_int_equal(got.n, 1500);
			for (size_t i = 0; i < got.n; i++) {
				assert_true(got.v[i].type == METRIC_HISTOGRAM && strcmp(got.v[i].unit, "s") == 0);
				assert_string_equal(got.v[i].help, i % 2 ? got.v[i].family + 3 : "second");
			}
			free(got.v);
		}
	}
	lab_free(&l);
}

static void any_allocation_may_fail(void **state)
{
	(void)state;
	struct lab l;
	uint64_t failures = 0, n;
	char name[32];
	open_lab(&l, 150, 4 * MIB);
	struct annot_request *q = malloc(sizeof *q);
	for (uint32_t round = 0; round < 60; round++) {
		annot_begin(q, round % 2);
		for (uint32_t i = 0; i < 8; i++) {
			snprintf(name, sizeof name, "family_%u", round * 4 + i);
			annot_metadata(q, name, METRIC_COUNTER, name, i % 2 ? "s" : "");
		}
		n = 0;
		for (uint64_t hits = 1; hits > 0;) {
			struct err err = {0};
			fail_alloc_at(++n, false);
			errc rc = annot_send(&l, q, &err);
			hits = fail_alloc_off();
			assert_true(rc == OK || (rc == ERR_NOMEM && hits > 0));
			failures += rc != OK;
		}
		annot_free(q);
	}
	assert_true(failures > 20);
	struct annot_meta_list want[2] = {annot_read_meta(&l, 0, NULL), annot_read_meta(&l, 1, NULL)};
	assert_true(want[0].n >= 150);
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
	for (uint32_t t = 0; t < 2; t++) {
		struct annot_meta_list got = annot_read_meta(&l, t, NULL);
		assert_int_equal(got.n, want[t].n);
		free(got.v);
		free(want[t].v);
	}
	free(q);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_last_word_counts_and_repetitions_cost_nothing),
		cmocka_unit_test(a_family_keeps_sixteen),
		cmocka_unit_test(families_are_bounded),
		cmocka_unit_test(memory_is_a_limit_too),
		cmocka_unit_test(what_does_not_fit_is_refused),
		cmocka_unit_test(a_request_may_repeat_itself),
		cmocka_unit_test(segments_go_and_metadata_stays),
		cmocka_unit_test(any_allocation_may_fail),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
