/* Writers of all tenants, readers, cuts and checkpoints at once, over a limit that makes tenants take room from each other: every read is in order and of
 * what was sent, the limit holds, a restart finds the newest. Meant for TSan too.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_annotations_int.h"
#include "tests/support/annot_lab.h"

enum { RANGE = 600000, WRITERS = 4, READERS = 2, SERIES = 40, REQUESTS = 250, MAX = 3000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

struct shared {
	struct lab *l;
	_Atomic bool stop;
	_Atomic uint64_t stored, reads, failed;
};
struct writer {
	struct shared *s;
	uint32_t no;
};

/* Writer no. has series no, no + WRITERS, ...: their exemplars come in order. */
static void *write_main(void *arg)
{
	const struct writer *w = arg;
	struct lab *l = w->s->l;
	uint64_t r = w->no;
	struct annot_request *q = malloc(sizeof *q);
	for (uint32_t i = 0; i < REQUESTS; i++) {
		struct err err = {0};
		char text[40];
		annot_begin(q, (uint32_t)(lab_random(&r) % 7 ? w->no % LAB_TENANTS : lab_random(&r) % LAB_TENANTS));
		for (uint32_t k = w->no; k < SERIES; k += WRITERS) {
			lab_batch_series(&q->b, k, lab_random(&r) % 4 ? 0 : 3);
			lab_batch_sample(&q->b, T0 + i * 100, k);
			snprintf(text, sizeof text, "%x", (unsigned)lab_random(&r));
			if (lab_random(&r) % 4)
				annot_exemplar(q, T0 + i * 100, k, text);
		}
		for (uint32_t k = 0; k < 5; k++) {
			snprintf(text, sizeof text, "family_%u", (unsigned)(lab_random(&r) % 60));
			annot_metadata(q, text, METRIC_GAUGE, lab_random(&r) % 3 ? "help" : "other", "");
		}
		if (annot_send(l, q, &err) != OK) {
			fprintf(stderr, "send: %s\n", err.msg);
			w->s->failed++;
		}
		w->s->stored += q->a.exemplars_by[EXEMPLAR_STORED];
		if (q->a.exemplars_by[EXEMPLAR_STORED] != q->n)
			w->s->failed++;
		annot_free(q);
	}
	free(q);
	return NULL;
}

static errc look(void *arg, struct labels series, bool begins, const struct exemplar *x, struct err *err)
{
	struct exemplar *last = arg;
	(void)err;
	if (series.n < 2 || x->t < T0 || x->wire.n < 15 || (!begins && x->t <= last->t))
		abort();
	last->t = x->t;
	return OK;
}

static bool match(void *arg, struct labels series)
{
	(void)arg;
	return series.n > 0;
}

static errc look_meta(void *arg, const struct metadata *m, struct err *err)
{
	(void)arg, (void)err;
	if (m->type != METRIC_GAUGE || m->help.n < 4)
		abort();
	return OK;
}

static void *read_main(void *arg)
{
	struct shared *s = arg;
	while (!atomic_load(&s->stop))
		for (uint32_t t = 0; t < LAB_TENANTS; t++) {
			struct exemplar last = {0};
			const struct head_exemplar_read ask = {.start = T0, .end = INT64_MAX, .match = match, .give = look, .arg = &last};
			struct span tenant = span_cstr(lab_tenant(t));
			if (head_exemplars_read(s->l->head, tenant, &ask, NULL) != OK ||
				head_metadata_read(s->l->head, tenant, (struct span){NULL, 0}, look_meta, NULL, NULL) != OK)
				s->failed++;
			s->reads++;
		}
	return NULL;
}

static void *flush_main(void *arg)
{
	struct shared *s = arg;
	while (!atomic_load(&s->stop)) {
		struct err err = {0};
		if (head_flush(s->l->head, &err) != OK)
			s->failed++;
		io_sleep_ms(5);
	}
	return NULL;
}

static void all_at_once(void **state)
{
	(void)state;
	struct lab l;
	struct shared s = {.l = &l};
	struct writer w[WRITERS];
	pthread_t writers[WRITERS], readers[READERS], flusher;
	lab_open(&l, 1, RANGE, 64 * KIB);
	l.quiet_model = true;
	l.cfg.max_exemplars = MAX;
	l.cfg.max_metadata = 40;
	l.cfg.wal_max_bytes = 256 * KIB;
	struct err err = {0};
	if (lab_start(&l, &err) != OK)
		fail_msg("start: %s", err.msg);
	uint64_t segment = 0;
	for (uint32_t i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){&s, i};
		pthread_create(&writers[i], NULL, write_main, &w[i]);
	}
	for (uint32_t i = 0; i < READERS; i++)
		pthread_create(&readers[i], NULL, read_main, &s);
	pthread_create(&flusher, NULL, flush_main, &s);
	for (uint32_t i = 0; i < WRITERS; i++)
		pthread_join(writers[i], NULL);
	atomic_store(&s.stop, true);
	for (uint32_t i = 0; i < READERS; i++)
		pthread_join(readers[i], NULL);
	pthread_join(flusher, NULL);
	struct wal_status st;
	wal_status(l.wal, &st);
	segment = st.segment_first;
	printf("%llu stored, %llu kept, %llu reads, segments from %llu on\n", (unsigned long long)s.stored,
		(unsigned long long)atomic_load(&l.head->n_exemplars), (unsigned long long)s.reads, (unsigned long long)segment);
	assert_int_equal(s.failed, 0);
	assert_true(s.stored > MAX && atomic_load(&l.head->n_exemplars) <= MAX && segment > 1);
	uint64_t kept = 0;
	struct annot_list before[LAB_TENANTS];
	for (uint32_t t = 0; t < LAB_TENANTS; t++) {
		annot_sane(&l, t);
		before[t] = annot_read(&l, t, INT64_MIN, INT64_MAX);
		kept += before[t].n;
		struct annot_meta_list meta = annot_read_meta(&l, t, NULL);
		assert_true(meta.n <= 2 * 40);
		free(meta.v);
	}
	assert_int_equal(kept, atomic_load(&l.head->n_exemplars));
	assert_true(kept > MAX / 10 * 9);
	lab_crash(&l, SIM_DROP_ALL);
	if (lab_start(&l, &err) != OK)
		fail_msg("start: %s", err.msg);
	for (uint32_t t = 0; t < LAB_TENANTS; t++) {
		struct annot_list after = annot_read(&l, t, INT64_MIN, INT64_MAX);
		annot_sane(&l, t);
		size_t common = 0;
		for (size_t i = 0; i < before[t].n; i++)
			common += bsearch(&before[t].v[i], after.v, after.n, sizeof *after.v, annot_cmp) != NULL;
		/* At the limit the log's order decides which of the oldest stay. */
		assert_true(common >= before[t].n / 100 * 95);
		free(after.v);
		free(before[t].v);
	}
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(all_at_once)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
