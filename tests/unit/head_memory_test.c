/* What series leave behind when they go: rows keep what is in them and give back the rest, and a head without series holds next to no memory, however many it had and
 * whatever spelling they came in, beside senders too.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_int.h"
#include "tests/support/head_lab.h"

enum { RANGE = 60000, SERIES = 60000, BATCH = 2000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

/* ---- rows ---- */

enum { CLASSES = 5, OBJECTS = 40000 };
static const size_t sizes[CLASSES] = {16, 32, 136, 344, 6144};

struct object {
	uint64_t *v;
	uint64_t mark;
	uint32_t class;
};

static void mark(struct object *o, uint64_t mark)
{
	o->mark = mark;
	for (size_t i = 0; i < sizes[o->class] / 8; i++)
		o->v[i] = mark + i;
}

static void is_marked(const struct object *o)
{
	for (size_t i = 0; i < sizes[o->class] / 8; i++)
		assert_int_equal(o->v[i], o->mark + i);
}

/* Grows, shrinks to a tenth, grows again ..., with memory given back now and then: nobody's bytes are anybody else's. */
static void rows_keep_what_is_in_them(void **state)
{
	(void)state;
	struct head_rows rs;
	struct err err = {0};
	_Atomic uint64_t total = 0;
	uint64_t r = 42, most = 0;
	static struct object v[OBJECTS];
	size_t n = 0;
	assert_int_equal(head_rows_init(&rs, CLASSES, &total, &err), OK);
	for (uint32_t step = 0; step < 400000; step++) {
		bool grows = step / 50000 % 2 == 0;
		if (n < OBJECTS && (n == 0 || lab_random(&r) % 16 < (grows ? 12 : 2))) {
			struct object *o = &v[n++];
			o->class = (uint32_t)(lab_random(&r) % 64 ? lab_random(&r) % 4 : 4);
			o->v = head_rows_take(&rs, o->class, sizes[o->class]);
			assert_non_null(o->v);
			mark(o, lab_random(&r));
		} else {
			size_t i = grows ? lab_random(&r) % n : n - 1 - lab_random(&r) % ((n + 9) / 10);
			is_marked(&v[i]);
			assert_true(head_rows_free(&rs, v[i].v));
			v[i] = v[--n];
		}
		assert_int_equal(total, rs.held_bytes);
		if (total > most)
			most = total;
		if (step % 25000 == 24999)
			for (uint32_t at = 0; head_rows_give_back(&rs, &at);)
				;
	}
	uint64_t other;
	assert_false(head_rows_free(&rs, &other));
	while (n > 0) {
		is_marked(&v[--n]);
		assert_true(head_rows_free(&rs, v[n].v));
	}
	for (uint32_t at = 0; head_rows_give_back(&rs, &at);)
		;
	print_message("rows: %llu bytes at most, %llu when empty\n", (unsigned long long)most, (unsigned long long)total);
	assert_true(most > 4 * MIB && total < most / 8);
	head_rows_destroy(&rs);
	assert_int_equal(total, 0);
}

/* ---- the head ---- */

static void send(struct lab *l, uint32_t first, uint32_t n, bool v2, int64_t t)
{
	for (uint32_t k = first; k < first + n; k += BATCH) {
		struct lab_batch b;
		struct err err = {0};
		lab_batch_begin(&b, 0);
		b.v2 = v2;
		for (uint32_t i = k; i < k + BATCH && i < first + n; i++) {
			lab_batch_series(&b, i, 0);
			lab_batch_sample(&b, t, i);
		}
		if (lab_send(l, &b, &err) != OK) {
			fprintf(stderr, "send: %s\n", err.msg);
			abort();
		}
		lab_batch_free(&b);
	}
}

/* Behind the cut, and behind what the cutter does after it. */
static struct head_status settled(struct lab *l, uint64_t series, uint64_t bytes)
{
	struct head_status st;
	lab_flush(l);
	for (int i = 0; i < 500; i++) {
		head_status(l->head, &st);
		if (st.series == series && st.memory_bytes <= bytes)
			break;
		io_sleep_ms(10);
	}
	return st;
}

static void open_lab(struct lab *l, uint64_t seed)
{
	struct err err = {0};
	lab_open(l, seed, RANGE, 16 * MIB);
	l->quiet_model = true;
	l->n_series = SERIES;
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

static void nothing_is_left_of_series_that_went(void **state)
{
	(void)state;
	struct lab l;
	struct head_status st;
	open_lab(&l, 1);
	head_status(l.head, &st);
	const uint64_t empty = st.memory_bytes, slack = 1 * MIB;
	for (int round = 0; round < 4; round++) {
		int64_t t = T0 + round * 2 * RANGE;
		uint32_t first = round < 2 ? 0 : (uint32_t)round * SERIES; /* the same again, then others */
		send(&l, first, SERIES, round % 2, t);
		send(&l, first, SERIES, round % 2, t + 1000);
		head_status(l.head, &st);
		assert_int_equal(st.series, SERIES);
		assert_true(st.memory_bytes > empty + 10 * slack);
		st = settled(&l, 0, empty + slack);
		if (st.series != 0 || st.memory_bytes > empty + slack)
			fail_msg("round %d: %llu series, %llu bytes; %llu when it was empty", round, (unsigned long long)st.series,
				(unsigned long long)st.memory_bytes, (unsigned long long)empty);
		for (uint32_t i = 0; i < l.head->n_shards; i++) {
			pthread_mutex_lock(&l.head->shards[i].mu);
			assert_int_equal(l.head->shards[i].n_aliases, 0);
			pthread_mutex_unlock(&l.head->shards[i].mu);
		}
	}
	lab_stop(&l);
	lab_free(&l);
}

/* As many labels as --ingest.max-labels may allow: each number has room for its own, also in memory that another one left. */
static void any_number_of_labels(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	struct tenant *tn;
	enum { KINDS = LIMIT_LABELS_DECODE, COPIES = 2, FEW = 600 };
	static struct label v[KINDS];
	static char names[KINDS][16];
	static struct series *made[FEW + COPIES * KINDS];
	static uint32_t labels[FEW + COPIES * KINDS];
	for (uint32_t i = 0; i < KINDS; i++) {
		snprintf(names[i], sizeof names[i], "n%04u", i);
		v[i] = (struct label){span_cstr(names[i]), SPAN("v")};
	}
	open_lab(&l, 4);
	struct shard *sh = &l.head->shards[0];
	assert_int_equal(head_tenant_get(l.head, span_cstr(lab_tenant(0)), &tn, &err), OK);
	uint64_t r = 7;
	for (int turn = 0; turn < 3; turn++) {
		for (uint32_t k = 0; k < FEW + COPIES * KINDS; k++) {
			struct hash128 x = {lab_random(&r) >> l.head->shard_shift >> 1, lab_random(&r)};
			labels[k] = k < FEW ? 1 : 1 + (uint32_t)(lab_random(&r) % KINDS);
			pthread_mutex_lock(&sh->mu);
			errc rc = head_series_new_locked(l.head, sh, tn, x, (struct labels){v, labels[k]}, 0, &made[k], &err);
			pthread_mutex_unlock(&sh->mu);
			assert_int_equal(rc, OK);
		}
		for (uint32_t k = 0; k < FEW + COPIES * KINDS; k++) {
			assert_int_equal(made[k]->n_pairs, labels[k]);
			for (uint32_t i = 0; i < labels[k]; i++)
				assert_true(span_eq(head_pair_label(head_pair(&l.head->symbols, made[k]->pairs[i])).name, v[i].name));
		}
		pthread_mutex_lock(&sh->mu);
		for (uint32_t k = 0; k < FEW + COPIES * KINDS; k++)
			head_series_remove_locked(l.head, sh, tn, made[k]);
		pthread_mutex_unlock(&sh->mu);
		if (turn == 1)
			head_shard_give_back(l.head, sh);
	}
	lab_stop(&l);
	lab_free(&l);
}

/* Of series that came one after the other some stay: what the others took goes. */
static void some_stay(void **state)
{
	(void)state;
	struct lab l;
	struct head_status st;
	open_lab(&l, 2);
	head_status(l.head, &st);
	const uint64_t empty = st.memory_bytes;
	send(&l, 0, SERIES, true, T0);
	head_status(l.head, &st);
	const uint64_t full = st.memory_bytes - empty;
	(void)settled(&l, 0, empty + MIB);
	send(&l, 0, SERIES, true, T0 + RANGE);
	head_status(l.head, &st);
	const uint64_t again = st.memory_bytes - empty;
	send(&l, SERIES / 2, SERIES / 10, true, T0 + 2 * RANGE);
	pthread_mutex_lock(&l.head->windows_mu);
	for (struct window *w = l.head->windows; w; w = w->next)
		w->cut_now = w->start == T0 + RANGE;
	pthread_mutex_unlock(&l.head->windows_mu);
	head_cutter_wake(l.head);
	for (int i = 0; i < 1000; i++) {
		head_status(l.head, &st);
		if (st.series == SERIES / 10 && st.memory_bytes - empty < full / 4)
			break;
		io_sleep_ms(10);
	}
	print_message("%u series: %llu bytes, again %llu; a tenth of them: %llu\n", SERIES, (unsigned long long)full, (unsigned long long)again,
		(unsigned long long)(st.memory_bytes - empty));
	assert_true(again < full + full / 10);
	assert_int_equal(st.series, SERIES / 10);
	assert_true(st.memory_bytes - empty < full / 4);
	/* They are the same series still. */
	send(&l, SERIES / 2, SERIES / 10, true, T0 + 2 * RANGE + 1000);
	send(&l, SERIES / 2, SERIES / 10, false, T0 + 2 * RANGE + 2000);
	head_status(l.head, &st);
	assert_int_equal(st.series, SERIES / 10);
	lab_stop(&l);
	lab_free(&l);
}

/* ---- beside senders ---- */

enum { WRITERS = 3, ROUNDS = 40, EACH = 1500 };
struct writer {
	struct lab *l;
	uint32_t no;
};

static void *write_main(void *arg)
{
	struct writer *w = arg;
	uint64_t r = w->no + 1;
	for (uint32_t round = 0; round < ROUNDS; round++)
		/* Series of rounds before, now of a window behind: their structs and aliases may be going at this moment. */
		send(w->l, (uint32_t)(lab_random(&r) % 8 * EACH / 2), EACH, lab_random(&r) % 3 > 0, T0 + round * RANGE / 2 + w->no);
	return NULL;
}

static void beside_senders(void **state)
{
	(void)state;
	struct lab l;
	struct head_status st;
	pthread_t t[WRITERS];
	struct writer w[WRITERS];
	open_lab(&l, 3);
	head_status(l.head, &st);
	const uint64_t empty = st.memory_bytes;
	for (uint32_t i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){&l, i};
		assert_int_equal(pthread_create(&t[i], NULL, write_main, &w[i]), 0);
	}
	for (int i = 0; i < 30; i++)
		lab_flush(&l);
	for (uint32_t i = 0; i < WRITERS; i++)
		pthread_join(t[i], NULL);
	st = settled(&l, 0, empty + 2 * MIB);
	assert_int_equal(st.series, 0);
	assert_int_equal(l.refused, 0);
	/* Whatever was cut between, each sample is in a block once. */
	struct lab_series *found = lab_gather(&l);
	uint64_t n = 0;
	for (uint32_t k = 0; k < LAB_TENANTS * LAB_SERIES; k++)
		n += found[k].n;
	assert_int_equal(n, l.stored);
	assert_int_equal(n, WRITERS * ROUNDS * EACH);
	lab_gather_free(found);
	lab_stop(&l);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rows_keep_what_is_in_them),
		cmocka_unit_test(nothing_is_left_of_series_that_went),
		cmocka_unit_test(any_number_of_labels),
		cmocka_unit_test(some_stay),
		cmocka_unit_test(beside_senders),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
