/* When windows end: by their time, by age, by the log's size; and what readers see meanwhile.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "tests/support/head_lab.h"

enum { RANGE = 600000, MINUTE = 60000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

static void send(struct lab *l, uint32_t tenant, int64_t t, uint32_t n, uint64_t *r)
{
	struct lab_batch b;
	struct err err = {0};
	lab_batch_begin(&b, tenant);
	for (uint32_t k = 0; k < l->n_series; k++) {
		lab_batch_series(&b, k, 0);
		for (uint32_t i = 0; i < n; i++)
			lab_batch_sample(&b, t + i * 100, lab_random(r));
	}
	if (lab_send(l, &b, &err) != OK)
		fail_msg("send: %s", err.msg);
	lab_batch_free(&b);
}

static uint64_t windows(struct lab *l)
{
	struct head_status st;
	head_status(l->head, &st);
	return st.windows;
}

/* The cutter looks twice a second. */
static bool cut_within(struct lab *l, uint64_t left, int ms)
{
	for (; ms > 0 && windows(l) > left; ms -= 5)
		io_sleep_ms(5);
	return windows(l) <= left;
}

static void cut_by_time(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 10;
	l.cfg.cut_delay_ms = 2 * MINUTE;
	l.cfg.max_age_ms = 60 * MINUTE;
	sim_set_now(l.sim, T0 + MINUTE);
	must_start(&l);
	send(&l, 0, T0, 5, &r);
	send(&l, 1, T0 - RANGE, 5, &r); /* a window of the past: two minutes after its last sample arrived */
	assert_false(cut_within(&l, 1, 700));
	sim_set_now(l.sim, T0 + 2 * MINUTE);
	send(&l, 1, T0 - RANGE + 1000, 5, &r);
	sim_set_now(l.sim, T0 + 3 * MINUTE + MINUTE / 2);
	assert_false(cut_within(&l, 1, 700));
	sim_set_now(l.sim, T0 + 4 * MINUTE + 1);
	assert_true(cut_within(&l, 1, 3000));
	sim_set_now(l.sim, T0 + RANGE + 2 * MINUTE - 5000);
	assert_false(cut_within(&l, 0, 700));
	sim_set_now(l.sim, T0 + RANGE + 2 * MINUTE);
	assert_true(cut_within(&l, 0, 3000));
	assert_int_equal(l.n_blocks, 2);
	l.gen++;
	lab_check(&l);
	/* A late sample for a window that is a block: another block of the same time. */
	send(&l, 0, T0 + 50, 1, &r);
	lab_check(&l);
	lab_flush(&l);
	assert_int_equal(l.n_blocks, 3);
	lab_check(&l);
	lab_free(&l);
}

static void a_straggler_pins_nothing(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 10;
	l.cfg.cut_delay_ms = 2 * MINUTE;
	l.cfg.max_age_ms = 20 * MINUTE;
	must_start(&l);
	for (int m = 0; m < 20; m++) {
		sim_set_now(l.sim, T0 + m * MINUTE);
		send(&l, 0, T0 - RANGE + m * 1000, 1, &r);
	}
	assert_false(cut_within(&l, 0, 700));
	sim_set_now(l.sim, T0 + 20 * MINUTE);
	assert_true(cut_within(&l, 0, 3000));
	lab_free(&l);
}

/* The clock was a year ahead when samples came and was set right then: windows end by the right clock, not next year. */
static void a_clock_that_was_ahead(void **state)
{
	(void)state;
	const int64_t year = INT64_C(365) * 24 * 60 * MINUTE;
	struct lab l;
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 10;
	l.cfg.cut_delay_ms = 2 * MINUTE;
	l.cfg.max_age_ms = 20 * MINUTE;
	sim_set_now(l.sim, T0 + year);
	must_start(&l);
	send(&l, 0, T0, 1, &r);
	send(&l, 1, T0 + year, 1, &r);
	sim_set_now(l.sim, T0 + MINUTE);
	assert_false(cut_within(&l, 1, 700));
	sim_set_now(l.sim, T0 + RANGE + 2 * MINUTE);
	assert_true(cut_within(&l, 1, 3000));
	assert_false(cut_within(&l, 0, 700));
	sim_set_now(l.sim, T0 + 21 * MINUTE);
	assert_true(cut_within(&l, 0, 3000));
	l.gen++;
	lab_check(&l);
	lab_free(&l);
}

/* A block that nobody takes note of is found by no read: its window stays until somebody does. */
static void a_window_stays_until_its_block_is_noted(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	struct wal_status before, after;
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 10;
	must_start(&l);
	send(&l, 0, T0, 5, &r);
	l.refuse_blocks = 2;
	assert_int_equal(head_flush(l.head, &err), ERR_NOSPACE);
	assert_int_equal(windows(&l), 1);
	assert_int_equal(l.n_blocks, 0);
	lab_check(&l);
	wal_status(l.wal, &before);
	assert_true(cut_within(&l, 0, 10000));
	wal_status(l.wal, &after);
	assert_int_equal(l.refuse_blocks, 0);
	assert_int_equal(l.n_blocks, 1);
	assert_int_equal(before.pos, after.pos); /* no second cut record beside the first */
	assert_false(head_cut_settled(l.head, l.blocks[0]));
	l.gen++;
	lab_check(&l);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	lab_check(&l);
	lab_free(&l);
}

/* The log stays near its limit: the windows that hold its oldest segments become blocks. */
static void the_log_is_bounded(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 1 * MIB);
	l.n_series = 50;
	l.cfg.wal_max_bytes = 4 * MIB;
	must_start(&l);
	uint64_t most = 0;
	for (int i = 0; i < 160; i++) {
		l.gen = (uint32_t)i; /* no two sends share a time */
		send(&l, (uint32_t)i % 2, T0 + (int64_t)i * 20000, 200, &r);
		struct wal_status st;
		wal_status(l.wal, &st);
		for (int k = 0; st.bytes_on_disk > 7 * MIB && k < 400; k++) {
			io_sleep_ms(5);
			wal_status(l.wal, &st);
		}
		most = st.bytes_on_disk > most ? st.bytes_on_disk : most;
	}
	printf("at most %llu MiB of log, %zu blocks\n", (unsigned long long)(most / MIB), l.n_blocks);
	assert_true(most <= 7 * MIB);
	assert_true(l.n_blocks > 0);
	lab_check_exact(&l, UINT64_MAX);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	lab_check_exact(&l, UINT64_MAX);
	lab_free(&l);
}

/* A source that was handed out before a cut reads on, after the block is written and its window is gone. */
static void a_source_stays_readable_over_a_cut(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 100;
	must_start(&l);
	for (int i = 0; i < 5; i++)
		send(&l, 0, T0 + i * 60000, 100, &r);
	struct arena a;
	struct source **v;
	size_t n;
	arena_init(&a, MIB);
	assert_int_equal(head_sources(l.head, span_cstr(lab_tenant(0)), T0, T0, &a, &v, &n, &err), OK);
	assert_int_equal(n, 1);
	lab_flush(&l);
	assert_int_equal(windows(&l), 0);
	struct matcher m;
	struct series_iter *it;
	assert_int_equal(matcher_init(&m, MATCH_EQ, SPAN("__name__"), SPAN("metric_1"), &a, &err), OK);
	struct select_options opt = {.mint = T0 + 60000, .maxt = T0 + 120000};
	assert_int_equal(v[0]->ops->select(v[0], &m, 1, &opt, &it, &err), OK);
	size_t series = 0;
	for (;;) {
		struct series_view view;
		bool more;
		assert_int_equal(it->ops->next(it, &view, &more, &err), OK);
		if (!more)
			break;
		series++;
		assert_true(view.n_chunks > 0);
		for (size_t c = 0; c < view.n_chunks; c++)
			assert_true(view.chunks[c].mint <= opt.maxt && view.chunks[c].maxt >= opt.mint);
	}
	assert_int_equal(series, 20);
	it->ops->close(it);
	v[0]->ops->release(v[0]);
	arena_free(&a);
	struct head_status st;
	for (int i = 0; i < 1000; i++) {
		head_status(l.head, &st);
		if (st.series == 0)
			break;
		io_sleep_ms(5);
	}
	assert_int_equal(st.series, 0);
	assert_int_equal(st.samples_in_memory, 0);
	assert_int_equal(st.chunk_file_bytes, 0);
	lab_free(&l);
}

struct names {
	char v[64][64];
	size_t n;
};

static errc name_add(void *arg, struct span value, struct err *err)
{
	struct names *s = arg;
	(void)err;
	for (size_t i = 0; i < s->n; i++)
		if (span_is(value, s->v[i]))
			return OK;
	snprintf(s->v[s->n++], 64, "%.*s", SPAN_ARG(value));
	return OK;
}

static bool has(const struct names *s, const char *name)
{
	for (size_t i = 0; i < s->n; i++)
		if (strcmp(s->v[i], name) == 0)
			return true;
	return false;
}

static void names_and_values(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 1;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = 20;
	must_start(&l);
	send(&l, 0, T0, 1, &r);
	struct arena a;
	struct source **v;
	size_t n;
	arena_init(&a, MIB);
	assert_int_equal(head_sources(l.head, SPAN("nobody"), T0, T0, &a, &v, &n, &err), OK);
	assert_int_equal(n, 0);
	assert_int_equal(head_sources(l.head, span_cstr(lab_tenant(0)), T0 + RANGE, T0 + RANGE, &a, &v, &n, &err), OK);
	assert_int_equal(n, 0);
	assert_int_equal(head_sources(l.head, span_cstr(lab_tenant(0)), T0 + RANGE - 1, T0 + RANGE, &a, &v, &n, &err), OK);
	assert_int_equal(n, 1);
	struct names s = {.n = 0};
	assert_int_equal(v[0]->ops->label_names(v[0], NULL, 0, NULL, name_add, &s, &err), OK);
	assert_int_equal(s.n, 4);
	assert_true(has(&s, "__name__") && has(&s, "instance") && has(&s, "job") && has(&s, "zone"));
	s.n = 0;
	assert_int_equal(v[0]->ops->label_values(v[0], SPAN("__name__"), NULL, 0, NULL, name_add, &s, &err), OK);
	assert_int_equal(s.n, 5);
	s.n = 0;
	assert_int_equal(v[0]->ops->label_values(v[0], SPAN("nothing"), NULL, 0, NULL, name_add, &s, &err), OK);
	assert_int_equal(s.n, 0);
	/* host-1 has series 5 to 9: job on 6 and 9, zone on 5 and 9 */
	struct matcher m;
	assert_int_equal(matcher_init(&m, MATCH_EQ, SPAN("instance"), SPAN("host-1:9100"), &a, &err), OK);
	s.n = 0;
	assert_int_equal(v[0]->ops->label_values(v[0], SPAN("job"), &m, 1, NULL, name_add, &s, &err), OK);
	assert_int_equal(s.n, 2);
	s.n = 0;
	assert_int_equal(matcher_init(&m, MATCH_EQ, SPAN("instance"), SPAN("host-0:9100"), &a, &err), OK);
	assert_int_equal(v[0]->ops->label_names(v[0], &m, 1, NULL, name_add, &s, &err), OK);
	assert_int_equal(s.n, 4);
	for (size_t i = 0; i < n; i++)
		v[i]->ops->release(v[i]);
	arena_free(&a);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cut_by_time),
		cmocka_unit_test(a_straggler_pins_nothing),
		cmocka_unit_test(a_clock_that_was_ahead),
		cmocka_unit_test(a_window_stays_until_its_block_is_noted),
		cmocka_unit_test(the_log_is_bounded),
		cmocka_unit_test(a_source_stays_readable_over_a_cut),
		cmocka_unit_test(names_and_values),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
