/* The log on a real disk: what is committed comes back, in order, told once, in every mode and over every kind of end. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/tmp.h"
#include "wal/wal_int.h"

/* ---- fixture: records that say who they are ---- */

struct got {
	uint64_t *ids; /* as replayed */
	size_t n, cap;
	uint64_t samples;
};

/* A samples record of one sample whose ref is the id, padded by a record of an unknown kind. */
static void record_put(struct buf *b, uint64_t id, size_t pad)
{
	struct wal_window w = {SPAN("tenant-a"), {{1, 2, 3}}, 7200000, 7200000};
	struct wal_sample s = {.ref = id, .t = (int64_t)id * 1000, .v = id * 77};
	wal_samples_put(b, &w, &s, 1);
	if (pad > 0) {
		uint64_t x = id * 0x9e3779b97f4a7c15u + 1;
		buf_u8(b, 99);
		buf_uvarint(b, pad);
		for (size_t i = 0; i < pad; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			buf_u8(b, (uint8_t)x);
		}
	}
}

static errc got_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct got *g = arg;
	struct rd r = rd_of(f->payload.p, f->payload.n);
	struct wal_record rec;
	bool ok;
	uint64_t samples = 0;
	(void)err;
	while (wal_record_next(&r, &rec, &ok)) {
		if (rec.kind != WAL_SAMPLES)
			continue;
		struct wal_samples_dec d;
		struct wal_sample s;
		assert_true(wal_samples_open(rec.kind, rec.body, &d));
		assert_true(span_is(d.w.tenant, "tenant-a"));
		while (wal_samples_next(&d, &s, &ok)) {
			assert_int_equal(s.t, (int64_t)s.ref * 1000);
			assert_int_equal(s.v, s.ref * 77);
			if (g->n == g->cap)
				g->ids = realloc(g->ids, (g->cap = g->cap * 2 + 64) * sizeof *g->ids);
			g->ids[g->n++] = s.ref;
			samples++;
		}
		assert_true(ok);
	}
	assert_true(ok);
	assert_int_equal(samples, f->samples);
	if (f->seq > 0)
		assert_int_equal(f->first_sample, g->samples);
	g->samples += samples;
	return OK;
}

static struct wal *log_open(const char *dir, enum wal_sync sync, struct got *g, struct wal_replay_stats *stats)
{
	struct wal_config cfg = {.dir = dir, .sync = sync, .sync_interval_ms = 20, .segment_bytes = MIB};
	struct wal *w;
	struct err err = {0};
	if (wal_open(&cfg, &w, &err) != OK || wal_replay(w, got_frame, g, NULL, stats, &err) != OK)
		fail_msg("%s", err.msg);
	return w;
}

static void put_wait(struct wal *w, uint64_t id, size_t pad)
{
	struct buf b;
	struct wal_ticket t;
	struct err err = {0};
	buf_init(&b, 64 * MIB);
	record_put(&b, id, pad);
	if (wal_reserve(w, b.n, &t, &err) != OK || wal_commit_wait(w, &t, span_of(b.p, b.n), 1, &err) != OK)
		fail_msg("%s", err.msg);
	buf_free(&b);
}

static void got_is(const struct got *g, uint64_t first, uint64_t last)
{
	assert_int_equal(g->n, last - first + 1);
	for (size_t i = 0; i < g->n; i++)
		assert_int_equal(g->ids[i], first + i);
}

/* ---- tests ---- */

static void empty_log_starts_and_ends(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	for (int i = 0; i < 3; i++) {
		struct got g = {0};
		struct wal_replay_stats st;
		struct wal *w = log_open(tmp_path("%s/a/wal", dir), WAL_SYNC_ACK, &g, &st);
		assert_int_equal(g.n, 0);
		assert_int_equal(st.damaged_ranges + st.frames_lost + st.frames_torn, 0);
		struct wal_status s;
		wal_status(w, &s);
		assert_int_equal(s.segment_now, 1);
		assert_int_equal(s.bytes_on_disk, MIB);
		wal_close(w);
	}
}

/* Restarted in order after every request, over several segments. */
static void round_trip_in_every_mode(void **state)
{
	(void)state;
	for (enum wal_sync mode = WAL_SYNC_ACK; mode <= WAL_SYNC_OS; mode++) {
		const char *dir = tmp_dir();
		uint64_t id = 1;
		for (int run = 0; run < 5; run++) {
			struct got g = {0};
			struct wal_replay_stats st;
			struct wal *w = log_open(dir, mode, &g, &st);
			got_is(&g, 1, id - 1);
			assert_int_equal(st.damaged_ranges + st.frames_lost + st.frames_torn, 0);
			assert_int_equal(st.samples, id - 1);
			for (int i = 0; i < 20; i++)
				put_wait(w, id++, 60000);
			struct err err = {0};
			assert_int_equal(wal_sync_now(w, &err), OK);
			wal_close(w);
			free(g.ids);
		}
		struct got g = {0};
		wal_close(log_open(dir, mode, &g, NULL));
		got_is(&g, 1, 100);
		free(g.ids);
	}
}

/* A request larger than a segment, with records as large as a frame. */
static void large_requests(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct got g = {0};
	struct wal *w = log_open(dir, WAL_SYNC_ACK, &g, NULL);
	struct buf b;
	struct err err = {0};
	buf_init(&b, 64 * MIB);
	for (uint64_t id = 1; id <= 6; id++)
		record_put(&b, id, id % 2 ? 3 * MIB : 2000000);
	struct wal_ticket t;
	assert_int_equal(wal_reserve(w, b.n, &t, &err), OK);
	assert_int_equal(wal_commit_wait(w, &t, span_of(b.p, b.n), 6, &err), OK);
	buf_clear(&b);
	for (uint64_t id = 7; id <= 3000; id++)
		record_put(&b, id, 5000);
	assert_int_equal(wal_reserve(w, b.n, &t, &err), OK);
	assert_int_equal(wal_commit_wait(w, &t, span_of(b.p, b.n), 2994, &err), OK);
	buf_free(&b);
	assert_int_equal(wal_reserve(w, LIMIT_WAL_RECORD_BYTES + 1, &t, &err), ERR_LIMIT);
	wal_close(w);
	wal_close(log_open(dir, WAL_SYNC_ACK, &g, NULL));
	got_is(&g, 1, 3000);
	free(g.ids);
}

/* ---- many threads ---- */

struct crowd {
	struct wal *w;
	pthread_mutex_t mu;
	pthread_cond_t cv;
	uint64_t last_no; /* told; ascending */
	uint64_t told, expect;
	unsigned threads;
};

struct request {
	struct crowd *c;
	uint64_t no;
	_Atomic int times;
};

static void request_done(void *arg, errc rc, const struct err *err)
{
	struct request *r = arg;
	(void)err;
	assert_int_equal(rc, OK);
	assert_int_equal(r->times++, 0);
	pthread_mutex_lock(&r->c->mu);
	assert_true(r->no > r->c->last_no);
	r->c->last_no = r->no;
	r->c->told++;
	pthread_cond_broadcast(&r->c->cv);
	pthread_mutex_unlock(&r->c->mu);
}

enum { CROWD_REQUESTS = 400, CROWD_THREADS = 6 };

static void *crowd_thread(void *arg)
{
	struct crowd *c = arg;
	static _Atomic unsigned seeds;
	unsigned seed = ++seeds;
	struct request *requests = calloc(CROWD_REQUESTS, sizeof *requests);
	uint64_t mine = 0;
	for (int i = 0; i < CROWD_REQUESTS; i++) {
		struct request *r = &requests[i];
		struct wal_ticket t;
		struct err err = {0};
		struct buf b;
		buf_init(&b, MIB);
		int what = rand_r(&seed) % 10;
		size_t pad = (size_t)(rand_r(&seed) % 3000);
		assert_int_equal(wal_reserve(c->w, 4096, &t, &err), OK);
		r->c = c;
		r->no = t.no;
		if (what == 0) {
			wal_release(c->w, &t);
		} else {
			if (what > 2)
				record_put(&b, t.no, pad);
			mine++;
			wal_commit(c->w, &t, span_of(b.p, b.n), b.n > 0, request_done, r);
		}
		buf_free(&b);
	}
	pthread_mutex_lock(&c->mu);
	c->expect += mine;
	c->threads++;
	while (c->threads < CROWD_THREADS || c->told < c->expect)
		pthread_cond_wait(&c->cv, &c->mu);
	pthread_cond_broadcast(&c->cv);
	pthread_mutex_unlock(&c->mu);
	free(requests);
	return NULL;
}

/* Each ticket is told once, in ticket order, and its records stand in ticket order. */
static void crowd_is_told_in_order(void **state)
{
	(void)state;
	for (enum wal_sync mode = WAL_SYNC_ACK; mode <= WAL_SYNC_OS; mode++) {
		const char *dir = tmp_dir();
		struct got g = {0};
		struct crowd c = {.mu = PTHREAD_MUTEX_INITIALIZER, .cv = PTHREAD_COND_INITIALIZER};
		c.w = log_open(dir, mode, &g, NULL);
		double syncs = metric_value(metric_counter("varve_wal_fsyncs_total", ""));
		pthread_t t[CROWD_THREADS];
		for (size_t i = 0; i < CROWD_THREADS; i++)
			assert_int_equal(pthread_create(&t[i], NULL, crowd_thread, &c), 0);
		for (size_t i = 0; i < CROWD_THREADS; i++)
			pthread_join(t[i], NULL);
		syncs = metric_value(metric_counter("varve_wal_fsyncs_total", "")) - syncs;
		if (mode == WAL_SYNC_ACK)
			assert_true(syncs < (double)c.told / 2);
		wal_close(c.w);
		wal_close(log_open(dir, mode, &g, NULL));
		for (size_t i = 1; i < g.n; i++)
			assert_true(g.ids[i] > g.ids[i - 1]);
		assert_true(g.n > CROWD_REQUESTS * CROWD_THREADS / 2);
		free(g.ids);
	}
}

/* A request without records waits for those before it, and no longer. */
static _Atomic int order[3], order_n;

static void order_done(void *arg, errc rc, const struct err *err)
{
	(void)err;
	assert_int_equal(rc, OK);
	order[order_n++] = (int)(intptr_t)arg;
}

static void empty_commit_waits_for_earlier(void **state)
{
	(void)state;
	struct got g = {0};
	struct wal *w = log_open(tmp_dir(), WAL_SYNC_ACK, &g, NULL);
	struct wal_ticket a, b, c;
	struct err err = {0};
	struct buf buf;
	buf_init(&buf, MIB);
	record_put(&buf, 1, 0);
	assert_int_equal(wal_reserve(w, 4096, &a, &err), OK);
	assert_int_equal(wal_reserve(w, 4096, &b, &err), OK);
	assert_int_equal(wal_reserve(w, 0, &c, &err), OK);
	assert_true(a.no < b.no && b.no < c.no);
	wal_commit(w, &c, (struct span){"", 0}, 0, order_done, (void *)3);
	wal_commit(w, &b, (struct span){"", 0}, 0, order_done, (void *)2);
	io_sleep_ms(50);
	assert_int_equal(order_n, 0);
	wal_commit(w, &a, span_of(buf.p, buf.n), 1, order_done, (void *)1);
	assert_int_equal(wal_sync_now(w, &err), OK);
	assert_int_equal(order_n, 3);
	assert_int_equal(order[0] * 100 + order[1] * 10 + order[2], 123);
	io_sleep_ms(20);
	/* Nothing to wait for: told by commit itself. */
	assert_int_equal(wal_reserve(w, 4096, &a, &err), OK);
	order_n = 0;
	wal_commit(w, &a, (struct span){"", 0}, 0, order_done, (void *)1);
	assert_int_equal(order_n, 1);
	buf_free(&buf);
	wal_close(w);
}

/* Positions bracket where a ticket's records are found again, also over segments and restarts. */
struct place {
	uint64_t id, min, max, segment, last_seq;
};

struct places {
	struct place *v;
	size_t found;
};

static errc place_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct places *p = arg;
	struct rd r = rd_of(f->payload.p, f->payload.n);
	struct wal_record rec;
	bool ok;
	(void)err;
	while (wal_record_next(&r, &rec, &ok)) {
		struct wal_samples_dec d;
		struct wal_sample s;
		if (rec.kind != WAL_SAMPLES)
			continue;
		assert_true(wal_samples_open(rec.kind, rec.body, &d) && wal_samples_next(&d, &s, &ok));
		const struct place *x = &p->v[s.ref];
		assert_true(f->pos >= x->min && f->pos < x->max);
		assert_true(f->segment >= x->segment);
		assert_true(f->seq > x->last_seq);
		p->found++;
	}
	return OK;
}

static void tickets_tell_where(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	enum { N = 300 };
	struct place *places = calloc(N, sizeof *places);
	struct err err = {0};
	for (int run = 0; run < 3; run++) {
		struct got g = {0};
		struct wal *w = log_open(dir, WAL_SYNC_ACK, &g, NULL);
		free(g.ids);
		for (uint64_t i = 0; i < N / 3; i += 5) {
			struct wal_ticket t[5];
			struct buf b;
			buf_init(&b, MIB);
			for (uint64_t k = 0; k < 5; k++)
				assert_int_equal(wal_reserve(w, 40000, &t[k], &err), OK);
			for (uint64_t k = 0; k < 5; k++) {
				uint64_t id = (uint64_t)run * (N / 3) + i + k;
				places[id] = (struct place){id, t[k].pos_min, t[k].pos_max, t[k].segment, t[k].last_seq};
				buf_clear(&b);
				record_put(&b, id, 20000 + id * 10);
				wal_commit(w, &t[k], span_of(b.p, b.n), 1, NULL, NULL);
			}
			buf_free(&b);
			if (i % 3 == 0)
				assert_int_equal(wal_sync_now(w, &err), OK);
		}
		wal_close(w);
	}
	struct places p = {places, 0};
	struct wal_config cfg = {.dir = dir, .sync = WAL_SYNC_ACK, .segment_bytes = MIB};
	struct wal *w;
	assert_int_equal(wal_open(&cfg, &w, &err), OK);
	assert_int_equal(wal_replay(w, place_frame, &p, NULL, NULL, &err), OK);
	assert_int_equal(p.found, N);
	wal_close(w);
	free(places);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty_log_starts_and_ends),
		cmocka_unit_test(round_trip_in_every_mode),
		cmocka_unit_test(large_requests),
		cmocka_unit_test(crowd_is_told_in_order),
		cmocka_unit_test(empty_commit_waits_for_earlier),
		cmocka_unit_test(tickets_tell_where),
	};
	log_setup(LOG_ERROR, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
