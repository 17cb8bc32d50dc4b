/* Remote write 2.0 in the head: a series is the same series whichever version it came by, and what is refused is refused alike. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_int.h"
#include "tests/support/head_lab.h"

enum { RANGE = 600000, SERIES = 300 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static void send(struct lab *l, bool v2, uint32_t spelling, int64_t t)
{
	for (uint32_t tenant = 0; tenant < LAB_TENANTS; tenant++) {
		struct lab_batch b;
		struct err err = {0};
		lab_batch_begin(&b, tenant);
		b.v2 = v2;
		for (uint32_t k = 0; k < SERIES; k++) {
			lab_batch_series(&b, k, spelling);
			lab_batch_sample(&b, t, (uint64_t)t * (k + 1));
		}
		if (lab_send(l, &b, &err) != OK)
			fail_msg("send: %s", err.msg);
		lab_batch_free(&b);
	}
}

static uint64_t aliases(const struct lab *l)
{
	uint64_t n = 0;
	for (uint32_t i = 0; i < l->head->n_shards; i++)
		n += l->head->shards[i].n_aliases;
	return n;
}

static uint64_t series(const struct lab *l)
{
	struct head_status st;
	head_status(l->head, &st);
	return st.series;
}

static void open_lab(struct lab *l, uint64_t seed)
{
	struct err err = {0};
	lab_open(l, seed, RANGE, 4 * MIB);
	l->n_series = SERIES;
	assert_int_equal(lab_start(l, &err), OK);
}

/* Both orders of versions, unsorted labels and empty ones, with a restart between: never a series more. */
static void one_series_by_both_versions(void **state)
{
	(void)state;
	for (uint32_t order = 0; order < 2; order++) {
		struct lab l;
		struct err err = {0};
		int64_t t = T0;
		open_lab(&l, order + 1);
		for (uint32_t i = 0; i < 4; i++) {
			send(&l, (i + order) % 2, i < 2 ? 0 : 5, t += 1000);
			assert_int_equal(series(&l), LAB_TENANTS * SERIES);
		}
		lab_check(&l);
		uint64_t spellings = aliases(&l);
		assert_int_equal(spellings, 3 * LAB_TENANTS * SERIES); /* all but the canonical one, each once */
		send(&l, true, 0, t += 1000);
		send(&l, true, 5, t += 1000);
		assert_int_equal(aliases(&l), spellings);
		lab_crash(&l, SIM_DROP_ALL);
		assert_int_equal(lab_start(&l, &err), OK);
		for (uint32_t i = 0; i < 4; i++)
			send(&l, (i + order + 1) % 2, i < 2 ? 5 : 0, t += 1000);
		assert_int_equal(series(&l), LAB_TENANTS * SERIES);
		lab_check(&l);
		lab_flush(&l);
		lab_check(&l);
		lab_free(&l);
	}
}

/* A spelling does not outlive its series, and finds the one that comes after it. */
static void spellings_go_with_their_series(void **state)
{
	(void)state;
	struct lab l;
	int64_t t = T0;
	open_lab(&l, 3);
	for (int i = 0; i < 5; i++) {
		send(&l, true, 0, t += 1000);
		send(&l, i % 2, 1, t += 1000);
		lab_flush(&l);
		for (int k = 0; k < 1000 && (series(&l) || aliases(&l)); k++)
			usleep(10000); /* the cutter's thread takes it from here */
		assert_int_equal(series(&l), 0);
		assert_int_equal(aliases(&l), 0);
	}
	/* Series that are gone, and their spellings there still: as between the end of a window and the sweep. */
	send(&l, true, 0, t += 1000);
	lab_check(&l);
	lab_free(&l);
}

/* ---- one request by hand ---- */

struct hand {
	const char *symbols[24];
	uint32_t refs[8][8];
	uint32_t n_labels[8];
	struct head_series hs[8];
	struct head_sample samples[16];
};

static errc put(struct lab *l, struct hand *h, uint32_t n_series, uint32_t n_samples, uint32_t *n_logged, struct err *err)
{
	struct span symbols[24];
	size_t n = 0;
	for (; h->symbols[n]; n++)
		symbols[n] = span_cstr(h->symbols[n]);
	for (uint32_t i = 0; i < n_series; i++) {
		h->hs[i].refs = h->refs[i];
		h->hs[i].n_labels = h->n_labels[i];
		h->hs[i].wire = (struct span){NULL, 200};
	}
	struct head_batch b = {.tenant = SPAN("default-tenant"),
		.symbols = symbols,
		.n_symbols = n,
		.series = h->hs,
		.n_series = n_series,
		.samples = h->samples,
		.n_samples = n_samples,
		.min_t = T0 - 100 * RANGE,
		.max_t = T0 + 100 * RANGE,
		.now_ms = T0};
	struct wal_ticket ticket;
	struct buf records;
	assert_int_equal(wal_reserve(l->wal, head_batch_bound(l->head, &b), &ticket, err), OK);
	buf_init(&records, ticket.bytes + 1);
	errc rc = head_append(l->head, &ticket, &b, &records, n_logged, err);
	assert_int_equal(wal_commit_wait(l->wal, &ticket, span_of(records.p, records.n), *n_logged, NULL), OK);
	buf_free(&records);
	return rc;
}

static void refused_as_in_1_0(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint32_t n_logged;
	open_lab(&l, 4);
	struct hand h = {.symbols = {"", "__name__", "up", "job", "x", "\xff"},
		.refs = {{1, 2, 3, 4}, {3, 4}, {1, 2, 3, 4, 3, 4}, {1, 0}, {1, 2, 0, 4}, {1, 2, 3, 5}, {0}, {3, 4, 1, 2}},
		.n_labels = {2, 1, 3, 1, 2, 2, 0, 2}};
	static const enum errid want[8] = {ERRID_NONE, ERRID_NO_METRIC_NAME, ERRID_DUPLICATE_LABEL, ERRID_NO_METRIC_NAME, ERRID_EMPTY_LABEL_NAME,
		ERRID_LABEL_UTF8, ERRID_NO_METRIC_NAME, ERRID_NONE};
	for (uint32_t i = 0; i < 8; i++) {
		h.hs[i] = (struct head_series){.first = i, .n = 1};
		h.samples[i] = (struct head_sample){T0 + i, i};
	}
	for (int again = 0; again < 2; again++) {
		assert_int_equal(put(&l, &h, 8, 8, &n_logged, &err), OK);
		for (uint32_t i = 0; i < 8; i++) {
			assert_int_equal(h.hs[i].refused_id, want[i]);
			assert_int_equal(h.hs[i].stored + h.hs[i].duplicate, want[i] == ERRID_NONE);
			assert_int_equal(h.hs[i].stored, want[i] == ERRID_NONE && !again);
		}
		assert_int_equal(series(&l), 1);
	}
	/* A name that is not UTF-8, as a label's or as the metric's: nothing of the request. */
	for (int k = 0; k < 2; k++) {
		struct hand bad = {.symbols = {"", "__name__", "other", "job", "x", "\xff"}, .refs = {{1, 2}, {1, 2, 5, 4}}, .n_labels = {1, 2}};
		if (k)
			bad.refs[1][1] = 5, bad.n_labels[1] = 1;
		bad.hs[0] = (struct head_series){.first = 0, .n = 1};
		bad.hs[1] = (struct head_series){.first = 1, .n = 1};
		bad.samples[0] = bad.samples[1] = (struct head_sample){T0, 1};
		assert_int_equal(put(&l, &bad, 2, 2, &n_logged, &err), ERR_INVALID);
		assert_string_equal(err.id, errid_text(ERRID_LABEL_UTF8));
		assert_int_equal(series(&l), 1);
	}
	lab_free(&l);
}

/* The order of symbols is part of a spelling, names and values are not mixed, and a tenant has its own: each is a series. */
static void what_differs_is_another_series(void **state)
{
	(void)state;
	struct lab l;
	uint32_t n_logged;
	open_lab(&l, 5);
	struct hand h = {.symbols = {"", "__name__", "a", "b", "c"},
		.refs = {{1, 2}, {1, 3}, {1, 2, 2, 3}, {1, 2, 3, 2}, {1, 3, 2, 2}, {1, 2, 2, 2}, {1, 2, 2, 3, 3, 2}, {1, 2, 2, 3, 3, 4}},
		.n_labels = {1, 1, 2, 2, 2, 2, 3, 3}};
	for (int round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < 8; i++) {
			h.hs[i] = (struct head_series){.first = i, .n = 1};
			h.samples[i] = (struct head_sample){T0 + round, i};
		}
		assert_int_equal(put(&l, &h, 8, 8, &n_logged, NULL), OK);
		assert_int_equal(n_logged, 8);
		assert_int_equal(series(&l), 8);
	}
	lab_free(&l);
}

/* Hashes of more symbols than are hashed at once: every number around the borders is found again, and is no other. */
static void series_of_many_labels(void **state)
{
	(void)state;
	struct lab l;
	open_lab(&l, 7);
	enum { MOST = 64 };
	static char text[2 * MOST + 2][16];
	struct span symbols[2 * MOST + 4];
	uint32_t n_symbols = 0, refs[MOST][2 * MOST], n_logged;
	symbols[n_symbols++] = (struct span){"", 0};
	symbols[n_symbols++] = SPAN("__name__");
	symbols[n_symbols++] = SPAN("up");
	for (uint32_t k = 0; k < MOST; k++) {
		snprintf(text[k], sizeof text[k], "label_%02u", k);
		symbols[n_symbols++] = span_cstr(text[k]);
	}
	struct head_series hs[MOST];
	struct head_sample samples[MOST];
	for (int round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < MOST; i++) {
			refs[i][0] = 1;
			refs[i][1] = 2;
			for (uint32_t k = 1; k <= i; k++) {
				refs[i][2 * k] = 3 + k;
				refs[i][2 * k + 1] = 3 + (k + 1) % MOST;
			}
			hs[i] = (struct head_series){.wire = {NULL, 4096}, .refs = refs[i], .n_labels = i + 1, .first = i, .n = 1};
			samples[i] = (struct head_sample){T0 + round, i};
		}
		struct head_batch b = {.tenant = SPAN("default-tenant"),
			.symbols = symbols,
			.n_symbols = n_symbols,
			.series = hs,
			.n_series = MOST,
			.samples = samples,
			.n_samples = MOST,
			.min_t = INT64_MIN,
			.max_t = INT64_MAX,
			.now_ms = T0};
		struct wal_ticket ticket;
		struct buf records;
		assert_int_equal(wal_reserve(l.wal, head_batch_bound(l.head, &b), &ticket, NULL), OK);
		buf_init(&records, ticket.bytes + 1);
		assert_int_equal(head_append(l.head, &ticket, &b, &records, &n_logged, NULL), OK);
		assert_int_equal(wal_commit_wait(l.wal, &ticket, span_of(records.p, records.n), n_logged, NULL), OK);
		buf_free(&records);
		assert_int_equal(n_logged, MOST);
		assert_int_equal(series(&l), MOST);
		assert_int_equal(aliases(&l), MOST);
	}
	lab_free(&l);
}

/* ---- zeros at start timestamps ---- */

/* One series: a zero at `start`, a sample at t. Whether the zero was stored. */
static bool zero(struct lab *l, uint32_t k, int64_t start, int64_t t)
{
	struct hand h = {.symbols = {"", "__name__", "up", "k", "0", "1", "2", "3", "4", "5", "6", "7"}, .refs = {{1, 2, 3, 4 + k}}, .n_labels = {2}};
	uint32_t n_logged;
	h.hs[0] = (struct head_series){.first = 0, .n = 2, .zero = true};
	h.samples[0] = (struct head_sample){start, 0};
	h.samples[1] = (struct head_sample){t, f64_bits(1.5)};
	assert_int_equal(put(l, &h, 1, 2, &n_logged, NULL), OK);
	assert_int_equal(h.hs[0].refused, 0);
	assert_int_equal(h.hs[0].stored + h.hs[0].duplicate, 1); /* the zero is not counted */
	assert_in_range(n_logged, h.hs[0].stored, h.hs[0].stored + 1);
	return n_logged > h.hs[0].stored;
}

static void zeros_are_stored_where_a_series_begins(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	open_lab(&l, 6);
	for (int restart = 0; restart < 2; restart++) {
		int64_t t = T0 + restart * 10 * RANGE;
		assert_true(zero(&l, 0, t + 10, t + 1000));
		assert_false(zero(&l, 0, t + 10, t + 2000));   /* it has one there */
		assert_false(zero(&l, 0, t + 500, t + 3000));  /* and others behind */
		assert_false(zero(&l, 0, t + 1000, t + 3000)); /* again: a duplicate is success */
		assert_false(zero(&l, 0, t + 2000, t + 3500));
		assert_true(zero(&l, 0, t + 3600, t + 4000)); /* it began anew behind all of them */
		assert_false(zero(&l, 0, t + 5000, t + 5000));
		assert_false(zero(&l, 0, t + 7000, t + 6000)); /* not in front of its sample */
		assert_false(zero(&l, 0, t + 3700, t + 8000));
		/* Another window: only one that is open, and only when the series has nothing in it behind the zero. */
		assert_false(zero(&l, 1, t - 4 * RANGE, t + 1000));
		assert_true(zero(&l, 2, t + 1, t + RANGE + 1000));
		assert_false(zero(&l, 2, t + RANGE + 10, t + RANGE + 2000));
		assert_false(zero(&l, 2, t + 500, t + 2 * RANGE + 500));
		assert_true(zero(&l, 3, t + RANGE + 10, t + 2 * RANGE + 1000));
		assert_false(zero(&l, 3, t + 10, t + 3 * RANGE));
		/* Out of bounds: left out. */
		assert_false(zero(&l, 4, INT64_MIN, t + 1000));
		assert_false(zero(&l, 4, T0 - 101 * RANGE, t + 1500));
		if (!restart) {
			lab_stop(&l);
			assert_int_equal(lab_start(&l, &err), OK);
			assert_false(zero(&l, 0, t + 3900, t + 9000));
			assert_true(zero(&l, 0, t + 9500, t + 10000));
		}
	}
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_series_by_both_versions),
		cmocka_unit_test(spellings_go_with_their_series),
		cmocka_unit_test(refused_as_in_1_0),
		cmocka_unit_test(what_differs_is_another_series),
		cmocka_unit_test(series_of_many_labels),
		cmocka_unit_test(zeros_are_stored_where_a_series_begins),
	};
	return cmocka_run_group_tests_name("remote write 2.0 in the head", tests, NULL, NULL);
}
