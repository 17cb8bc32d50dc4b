/* Appenders, readers, cuts and checkpoints at once: nothing acknowledged is missing at the end, and no read ever shows a series out of order or
 * a sample that was not sent. Meant for TSan too.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "tests/support/head_lab.h"

enum { RANGE = 60000, WRITERS = 4, READERS = 2, SERIES = 48 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

struct shared {
	struct lab *l;
	_Atomic bool stop;
	_Atomic uint64_t reads, flushes, excluded;
	uint32_t batches;
};
struct writer {
	struct shared *s;
	uint32_t no;
	uint64_t sent;
};

/* Writer no. owns series no, no + WRITERS ... of every tenant. A value says who and when. */
static uint64_t value_of(uint32_t series, int64_t t)
{
	return f64_bits((double)(t - T0) * 1000 + series);
}

static void *write_main(void *arg)
{
	struct writer *w = arg;
	struct lab *l = w->s->l;
	uint64_t r = l->seed + w->no;
	int64_t clock = T0;
	for (uint32_t i = 0; i < w->s->batches; i++) {
		struct lab_batch b;
		struct err err = {0};
		lab_batch_begin(&b, (uint32_t)(lab_random(&r) % LAB_TENANTS));
		b.v2 = lab_random(&r) % 2;
		for (uint32_t k = w->no; k < SERIES; k += WRITERS) {
			if (lab_random(&r) % 4 == 0)
				continue;
			lab_batch_series(&b, k, lab_random(&r) % 6 ? 0 : (uint32_t)(lab_random(&r) % 8));
			for (uint32_t n = 0; n < 1 + lab_random(&r) % 3; n++) {
				int64_t t = lab_random(&r) % 5 ? clock + n : clock - (int64_t)(lab_random(&r) % RANGE);
				lab_batch_sample(&b, t, value_of(k, t));
			}
		}
		errc rc = lab_send(l, &b, &err);
		if (rc != OK) {
			fprintf(stderr, "send: %s\n", err.msg);
			abort();
		}
		/* The dictionary, under the lab's lock: what is there already keeps its place. */
		pthread_mutex_lock(&l->mu);
		for (size_t k = 0; k < b.n; k++)
			for (uint32_t n = 0; n < b.hs[k].n; n++)
				lab_model_put(l, b.tenant, b.series[k], b.samples[b.hs[k].first + n].t, b.samples[b.hs[k].first + n].v);
		pthread_mutex_unlock(&l->mu);
		w->sent += b.n_samples;
		lab_batch_free(&b);
		clock += (int64_t)(lab_random(&r) % 1000);
	}
	return NULL;
}

static void *read_main(void *arg)
{
	struct shared *s = arg;
	while (!atomic_load(&s->stop)) {
		for (uint32_t t = 0; t < LAB_TENANTS; t++) {
			struct arena a;
			struct source **v;
			size_t n;
			struct err err = {0};
			struct matcher m;
			arena_init(&a, MIB);
			if (matcher_init(&m, MATCH_RE, SPAN("__name__"), SPAN("metric_[0-9]"), &a, &err) != OK ||
				head_sources(s->l->head, span_cstr(lab_tenant(t)), INT64_MIN, INT64_MAX, &a, &v, &n, &err) != OK)
				abort();
			for (size_t i = 0; i < n; i++) {
				struct series_iter *it;
				struct select_options opt = {.mint = INT64_MIN, .maxt = INT64_MAX};
				struct series_view view;
				bool more = true;
				if (v[i]->ops->select(v[i], &m, 1, &opt, &it, &err) != OK)
					abort();
				while (it->ops->next(it, &view, &more, &err) == OK && more) {
					int64_t last = INT64_MIN;
					for (size_t c = 0; c < view.n_chunks; c++) {
						struct chunk_sample out[300];
						size_t got;
						if (xor_decode(view.chunks[c].data, out, 300, &got, &err) != OK)
							abort();
						for (size_t k = 0; k < got; last = out[k++].t)
							if (out[k].t <= last)
								abort();
					}
				}
				it->ops->close(it);
				v[i]->ops->release(v[i]);
			}
			matchers_free(&m, 1);
			arena_free(&a);
		}
		atomic_fetch_add(&s->reads, 1);
	}
	return NULL;
}

static void *flush_main(void *arg)
{
	struct shared *s = arg;
	while (!atomic_load(&s->stop)) {
		struct err err = {0};
		if (head_flush(s->l->head, &err) != OK) {
			fprintf(stderr, "flush: %s\n", err.msg);
			abort();
		}
		atomic_fetch_add(&s->flushes, 1);
		struct head_status st;
		head_status(s->l->head, &st);
		for (int i = 0; i < 20 && !atomic_load(&s->stop); i++)
			io_sleep_ms(1);
	}
	return NULL;
}

static void everything_at_once(void **state)
{
	(void)state;
	const char *env = getenv("VARVE_FULL");
	for (uint32_t round = 0; round < (env && *env == '1' ? 10 : 1); round++) {
		struct lab l;
		struct err err = {0};
		lab_open(&l, 9 + round, RANGE, 1 * MIB);
		l.n_series = SERIES;
		l.quiet_model = true;
		assert_int_equal(lab_start(&l, &err), OK);
		struct shared s = {.l = &l, .batches = 150};
		struct writer w[WRITERS];
		pthread_t wt[WRITERS], rt[READERS], ft;
		for (uint32_t i = 0; i < WRITERS; i++) {
			w[i] = (struct writer){&s, i, 0};
			assert_int_equal(pthread_create(&wt[i], NULL, write_main, &w[i]), 0);
		}
		for (uint32_t i = 0; i < READERS; i++)
			assert_int_equal(pthread_create(&rt[i], NULL, read_main, &s), 0);
		assert_int_equal(pthread_create(&ft, NULL, flush_main, &s), 0);
		uint64_t sent = 0;
		for (uint32_t i = 0; i < WRITERS; i++) {
			pthread_join(wt[i], NULL);
			sent += w[i].sent;
		}
		atomic_store(&s.stop, true);
		for (uint32_t i = 0; i < READERS; i++)
			pthread_join(rt[i], NULL);
		pthread_join(ft, NULL);
		assert_int_equal(l.stored + l.duplicates + l.refused, sent);
		assert_int_equal(l.refused, 0);
		lab_check(&l);
		printf("%llu samples, %zu blocks, %llu reads\n", (unsigned long long)l.stored, l.n_blocks, (unsigned long long)atomic_load(&s.reads));
		lab_crash(&l, SIM_DROP_ALL);
		assert_int_equal(lab_start(&l, &err), OK);
		lab_check(&l);
		lab_free(&l);
	}
}

/* Asks for what no series is, while series are being made. */
static void *exclude_main(void *arg)
{
	struct shared *s = arg;
	struct arena mine, a;
	struct matcher m[5];
	struct err err = {0};
	arena_init(&mine, MIB);
	arena_init(&a, MIB);
	for (int i = 0; i < 5; i++) {
		char value[16];
		snprintf(value, sizeof value, "metric_%d", i);
		if (matcher_init(&m[i], MATCH_NEQ, SPAN("__name__"), span_cstr(value), &mine, &err) != OK)
			abort();
	}
	while (!atomic_load(&s->stop)) {
		struct source **v;
		size_t n;
		arena_reset(&a);
		if (head_sources(s->l->head, span_cstr(lab_tenant(0)), INT64_MIN, INT64_MAX, &a, &v, &n, &err) != OK)
			abort();
		for (size_t i = 0; i < n; i++) {
			struct series_iter *it;
			struct select_options opt = {.mint = INT64_MIN, .maxt = INT64_MAX, .skip_chunks = true};
			struct series_view view;
			bool more = false;
			if (v[i]->ops->select(v[i], m, 5, &opt, &it, &err) != OK || it->ops->next(it, &view, &more, &err) != OK)
				abort();
			atomic_fetch_add(&s->excluded, more);
			it->ops->close(it);
			v[i]->ops->release(v[i]);
		}
		atomic_fetch_add(&s->reads, n);
	}
	matchers_free(m, 5);
	arena_free(&a);
	arena_free(&mine);
	return NULL;
}

enum { NEW = 500 };

static void *new_main(void *arg)
{
	struct writer *w = arg;
	for (uint32_t i = 0; i < w->s->batches; i++) {
		struct lab_batch b;
		struct err err = {0};
		uint32_t first = (i * WRITERS + w->no) * NEW;
		lab_batch_begin(&b, 0);
		for (uint32_t k = first; k < first + NEW; k++) {
			lab_batch_series(&b, k, 0);
			lab_batch_sample(&b, T0 + i, value_of(k, T0 + i));
		}
		if (lab_send(w->s->l, &b, &err) != OK)
			abort();
		lab_batch_free(&b);
	}
	return NULL;
}

/* A series is found by its labels from the moment on that it is in a window, or it is not there yet: never there without them. */
static void a_question_never_shows_what_it_excludes(void **state)
{
	(void)state;
	struct lab l;
	struct err err = {0};
	lab_open(&l, 3, RANGE, 4 * MIB);
	struct shared s = {.l = &l, .batches = 8};
	l.n_series = NEW * WRITERS * s.batches;
	l.quiet_model = true;
	assert_int_equal(lab_start(&l, &err), OK);
	struct writer w[WRITERS];
	pthread_t wt[WRITERS], rt[READERS];
	for (uint32_t i = 0; i < READERS; i++)
		assert_int_equal(pthread_create(&rt[i], NULL, exclude_main, &s), 0);
	for (uint32_t i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){&s, i, 0};
		assert_int_equal(pthread_create(&wt[i], NULL, new_main, &w[i]), 0);
	}
	for (uint32_t i = 0; i < WRITERS; i++)
		pthread_join(wt[i], NULL);
	atomic_store(&s.stop, true);
	for (uint32_t i = 0; i < READERS; i++)
		pthread_join(rt[i], NULL);
	printf("%llu reads beside %u new series\n", (unsigned long long)atomic_load(&s.reads), l.n_series);
	assert_int_equal(atomic_load(&s.excluded), 0);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_at_once),
		cmocka_unit_test(a_question_never_shows_what_it_excludes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
