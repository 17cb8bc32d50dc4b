/* Chains: what a series that comes in order keeps in the chunk file is read back for every range, unfolds for a late sample at any place, and damage
 * anywhere in the file is an error, never another sample.
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

enum { RANGE = 7200000, SERIES = 12 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

/* From a bit to ten bytes a sample: one that never spills, and chunks in a dozen records. */
static uint64_t value(uint32_t k, uint32_t i, uint64_t *r)
{
	switch (k % 4) {
	case 0:
		return f64_bits(7);
	case 1:
		return f64_bits(i * 17.0 + k);
	case 2:
		return f64_bits(1.0 / (i + 1));
	default:
		return lab_random(r);
	}
}

static void send_one(struct lab *l, uint32_t first, uint32_t end, int64_t t, uint32_t i, uint64_t *r)
{
	struct lab_batch b;
	struct err err = {0};
	lab_batch_begin(&b, 0);
	for (uint32_t k = first; k < end; k++) {
		lab_batch_series(&b, k, 0);
		lab_batch_sample(&b, t, value(k, i, r));
	}
	if (lab_send(l, &b, &err) != OK)
		fail_msg("send: %s", err.msg);
	lab_batch_free(&b);
}

struct range_found {
	size_t series, samples;
};

/* What a range gives; rc: of the read. */
static errc read_range(struct lab *l, int64_t mint, int64_t maxt, bool skip_chunks, struct range_found *f, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct source **v;
	size_t n;
	*f = (struct range_found){0};
	arena_init(&a, 16 * MIB);
	assert_int_equal(head_sources(l->head, span_cstr(lab_tenant(0)), mint, maxt, &a, &v, &n, err), OK);
	for (size_t i = 0; i < n; i++) {
		struct select_options opt = {.mint = mint, .maxt = maxt, .skip_chunks = skip_chunks};
		struct series_iter *it;
		assert_int_equal(v[i]->ops->select(v[i], NULL, 0, &opt, &it, err), OK);
		for (;;) {
			struct series_view view;
			bool more;
			rc = it->ops->next(it, &view, &more, err);
			if (rc != OK || !more)
				break;
			f->series++;
			for (size_t c = 0; c < view.n_chunks; c++) {
				const struct chunk *x = &view.chunks[c];
				struct chunk_sample s[256];
				size_t count;
				assert_true(x->mint <= maxt && x->maxt >= mint);
				assert_true(c == 0 || view.chunks[c - 1].maxt < x->mint);
				assert_int_equal(xor_decode(x->data, s, 256, &count, err), OK);
				assert_true(count > 0 && s[0].t == x->mint && s[count - 1].t == x->maxt);
				for (size_t k = 0; k < count; k++)
					f->samples += s[k].t >= mint && s[k].t <= maxt;
			}
		}
		it->ops->close(it);
		v[i]->ops->release(v[i]);
	}
	arena_free(&a);
	return rc;
}

static size_t model_count(const struct lab *l, int64_t mint, int64_t maxt)
{
	size_t n = 0;
	for (uint32_t k = 0; k < l->n_series; k++)
		for (size_t i = 0; i < l->series[k].n; i++)
			n += l->series[k].v[i].t >= mint && l->series[k].v[i].t <= maxt;
	return n;
}

static void every_range_is_read(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	uint64_t r = 5;
	int64_t t = T0;
	lab_open(&l, 1, RANGE, 4 * MIB);
	l.n_series = SERIES;
	must_start(&l);
	for (uint32_t i = 0; i < 700; i++) {
		t += 1000 + (int64_t)(lab_random(&r) % 9000);
		send_one(&l, 0, SERIES, t, i, &r);
		for (uint32_t k = 0; k < (i % 16 ? 0 : 8); k++) {
			struct range_found f, names;
			int64_t a = T0 + (int64_t)(lab_random(&r) % (uint64_t)(t + 1000 - T0));
			int64_t b = k < 4 ? a + (int64_t)(lab_random(&r) % 20000) : a + (int64_t)(lab_random(&r) % (uint64_t)(t + 1000 - T0));
			assert_int_equal(read_range(&l, a, b, false, &f, &err), OK);
			assert_int_equal(f.samples, model_count(&l, a, b));
			assert_int_equal(read_range(&l, a, b, true, &names, &err), OK);
			assert_int_equal(names.series, f.series);
		}
	}
	struct head_status st;
	head_status(l.head, &st);
	assert_true(st.chunk_file_bytes > 0);
	lab_check(&l);
	lab_flush(&l);
	lab_check(&l);
	lab_free(&l);
}

/* The same samples in every series of a kind, and one late sample at another place in each. */
static void unfolds_anywhere(void **state)
{
	(void)state;
	struct lab l;
	uint64_t r = 9;
	enum { N = 480, SAMPLES = 400 };
	lab_open(&l, 2, RANGE, 8 * MIB);
	l.n_series = N;
	must_start(&l);
	for (uint32_t i = 0; i < SAMPLES; i++)
		send_one(&l, 0, N, T0 + i * INT64_C(15000), i, &r);
	for (uint32_t k = 0; k < N; k++) {
		int64_t place = k * INT64_C(15000) * SAMPLES / N;
		switch (k % 5) {
		case 0: /* what is there: told to be, and nothing changes */
			send_one(&l, k, k + 1, T0 + place / 15000 * 15000, (uint32_t)(place / 15000), &r);
			break;
		case 1: /* another value */
			send_one(&l, k, k + 1, T0 + place / 15000 * 15000, 5000, &r);
			break;
		default:
			send_one(&l, k, k + 1, T0 + place / 15000 * 15000 + 1 + (int64_t)(lab_random(&r) % 14000), 7000, &r);
		}
	}
	lab_check(&l);
	for (uint32_t i = SAMPLES; i < SAMPLES + 50; i++)
		send_one(&l, 0, N, T0 + i * INT64_C(15000), i, &r);
	lab_check(&l);
	lab_crash(&l, SIM_DROP_ALL);
	must_start(&l);
	lab_check(&l);
	lab_flush(&l);
	lab_check(&l);
	lab_free(&l);
}

/* A snapshot knows chains by their newest records: they go on after a start, unfold after a start, and are counted as before. */
static void goes_on_after_a_start(void **state)
{
	(void)state;
	for (uint64_t seed = 0; seed < 3; seed++) {
		struct lab l;
		struct err err = {0};
		struct head_status was, is;
		uint64_t r = seed, loads = 0;
		enum { N = 24, SAMPLES = 1500 };
		lab_open(&l, seed, RANGE, 8 * MIB);
		l.n_series = N;
		must_start(&l);
		for (uint32_t i = 0; i < SAMPLES; i++) {
			send_one(&l, 0, N, T0 + i * INT64_C(4000), i, &r);
			if (lab_random(&r) % 60 == 0) { /* a late one unfolds it; the even ones stay chains */
				uint32_t k = (uint32_t)(lab_random(&r) % (N / 2)) * 2 + 1;
				send_one(&l, k, k + 1, T0 + (int64_t)(lab_random(&r) % (i + 1)) * 4000 + 1 + i % 3000, 9000, &r);
			}
			if (lab_random(&r) % 150 == 0 && head_snapshot(l.head, &err) != OK)
				fail_msg("snapshot: %s", err.msg);
			if (lab_random(&r) % 200 != 0)
				continue;
			head_status(l.head, &was);
			lab_crash(&l, (enum sim_loss)(i % SIM_LOSSES));
			l.cfg.shards = 1u << lab_random(&r) % 4;
			l.cfg.replay_threads = 1 + (uint32_t)(lab_random(&r) % 4);
			must_start(&l);
			head_status(l.head, &is);
			loads += is.chunk_file_bytes > 0;
			assert_int_equal(is.samples_in_memory, was.samples_in_memory);
			assert_int_equal(is.min_t, was.min_t);
			assert_int_equal(is.max_t, was.max_t);
			if (lab_random(&r) % 2)
				lab_check(&l);
		}
		assert_true(loads > 0);
		lab_check(&l);
		lab_flush(&l);
		lab_check(&l);
		do { /* the cutter lets go of the window a moment later */
			io_sleep_ms(10);
			head_status(l.head, &is);
		} while (is.windows + is.cutting > 0);
		assert_int_equal(is.samples_in_memory, 0);
		lab_free(&l);
	}
}

/* Each byte of the file in turn: the read is an error, or was not of that byte. */
static void damage_is_an_error(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	struct range_found f;
	uint64_t r = 3;
	lab_open(&l, 3, RANGE, 4 * MIB);
	l.n_series = 3;
	must_start(&l);
	for (uint32_t i = 0; i < 2500 && i * INT64_C(2000) < RANGE; i++)
		send_one(&l, 1, 3, T0 + i * INT64_C(2000), i, &r);
	struct head_status st;
	head_status(l.head, &st);
	struct arena a;
	char **names, path[200];
	size_t n;
	arena_init(&a, MIB);
	assert_int_equal(io_listdir(l.cfg.chunk_dir, &a, &names, &n, &err), OK);
	assert_int_equal(n, 1);
	snprintf(path, sizeof path, "%s/%s", l.cfg.chunk_dir, names[0]);
	arena_free(&a);
	/* The last records are still in memory. */
	uint64_t off = 0, met = 0;
	for (uint8_t mask; mask = (uint8_t)(1u << lab_random(&r) % 8), sim_flip(l.sim, path, off, mask); off++) {
		errc rc = read_range(&l, T0, T0 + RANGE, false, &f, &err);
		if (rc == OK) {
			assert_int_equal(f.samples, model_count(&l, T0, T0 + RANGE));
		} else {
			assert_int_equal(rc, ERR_CORRUPT);
			assert_non_null(strstr(err.msg, ".chunks"));
			met++;
		}
		assert_true(sim_flip(l.sim, path, off, mask));
	}
	assert_true(off > 16384 && off <= st.chunk_file_bytes);
	assert_int_equal(met, off);
	lab_check(&l);
	lab_free(&l);
}

int main(void)
{
	head_spill_series = 0;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_range_is_read),
		cmocka_unit_test(unfolds_anywhere),
		cmocka_unit_test(goes_on_after_a_start),
		cmocka_unit_test(damage_is_an_error),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
