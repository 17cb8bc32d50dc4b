/* Bodies of `varve bench`: the same flags give the same bytes, and every order, version and disorder gives the same samples. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "cmd/cmd_bench_int.h"
#include "proto/proto.h"
#include "tests/support/tmp.h"

static uint64_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s * UINT64_C(0x2545F4914F6CDD1D);
}

static uint64_t new_seed(void)
{
	const char *s = getenv("VARVE_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 10) : io_random_u64();
	print_message("VARVE_SEED=%" PRIu64 "\n", seed);
	return seed ? seed : 1;
}

static unsigned rounds(unsigned sample, unsigned full)
{
	return getenv("VARVE_FULL") ? full : sample;
}

static struct bench_shape plain(uint64_t series, uint64_t n_rounds)
{
	return (struct bench_shape){.series = series,
		.rounds = n_rounds,
		.batch = 100,
		.tenants = 1,
		.labels = 10,
		.start_ms = INT64_C(1700000000000),
		.step_ms = 15000,
		.version = 1};
}

/* ---- what a body says, read by hand: the decoders under test elsewhere are not asked ---- */

struct one {
	char *labels; /* name=value,name=value, as they stand */
	int64_t t;
	uint64_t v;
	char *histogram; /* its field's content in hex, or NULL */
};

struct many {
	struct one *v;
	size_t n, cap;
};

static void many_free(struct many *m)
{
	for (size_t i = 0; i < m->n; i++) {
		free(m->v[i].labels);
		free(m->v[i].histogram);
	}
	free(m->v);
	*m = (struct many){0};
}

static struct one *many_add(struct many *m)
{
	if (m->n == m->cap) {
		m->cap = m->cap ? m->cap * 2 : 256;
		m->v = realloc(m->v, m->cap * sizeof *m->v);
		assert_non_null(m->v);
	}
	m->v[m->n] = (struct one){0};
	return &m->v[m->n++];
}

static void read_sample(struct span msg, struct one *o)
{
	struct rd r = rd_of(msg.p, msg.n);
	while (rd_left(&r)) {
		uint64_t tag = rd_uvarint(&r);
		if (tag == (1 << 3 | 1))
			o->v = rd_le64(&r);
		else if (tag == 2 << 3)
			o->t = (int64_t)rd_uvarint(&r);
		else
			fail_msg("tag %" PRIu64 " in a sample", tag);
		assert_true(r.ok);
	}
}

static void read_histogram(struct span msg, struct one *o)
{
	o->histogram = malloc(msg.n * 2 + 1);
	assert_non_null(o->histogram);
	for (size_t i = 0; i < msg.n; i++)
		snprintf(o->histogram + i * 2, 3, "%02x", (uint8_t)msg.p[i]);
	/* Integer count = zero bucket + buckets, and the time is the sample's. */
	struct rd r = rd_of(msg.p, msg.n);
	uint64_t count = 0, zeros = 0, spans = 0, buckets = 0;
	int64_t at = 0, sum = 0;
	while (rd_left(&r)) {
		uint64_t tag = rd_uvarint(&r);
		if (tag == 1 << 3) {
			count = rd_uvarint(&r);
		} else if (tag == 6 << 3) {
			zeros = rd_uvarint(&r);
		} else if (tag == 15 << 3) {
			o->t = (int64_t)rd_uvarint(&r);
		} else if (tag == (11 << 3 | 2)) {
			struct span s = rd_str(&r);
			struct rd q = rd_of(s.p, s.n);
			assert_int_equal(rd_u8(&q), 1 << 3);
			rd_varint(&q);
			assert_int_equal(rd_u8(&q), 2 << 3);
			spans += rd_uvarint(&q);
		} else if (tag == (12 << 3 | 2)) {
			struct span s = rd_str(&r);
			struct rd q = rd_of(s.p, s.n);
			while (rd_left(&q)) {
				at += rd_varint(&q);
				assert_true(at >= 0);
				sum += at;
				buckets++;
			}
		} else if ((tag & 7) == 1) {
			rd_le64(&r);
		} else {
			rd_uvarint(&r);
		}
		assert_true(r.ok);
	}
	assert_int_equal(spans, buckets);
	assert_int_equal(count, zeros + (uint64_t)sum);
}

static void read1(struct span msg, struct many *out)
{
	struct rd r = rd_of(msg.p, msg.n);
	while (rd_left(&r)) {
		assert_int_equal(rd_u8(&r), 1 << 3 | 2);
		struct span series = rd_str(&r);
		assert_true(r.ok);
		struct rd q = rd_of(series.p, series.n);
		struct one *o = many_add(out);
		struct buf text;
		buf_init(&text, MIB);
		size_t values = 0;
		while (rd_left(&q)) {
			uint64_t tag = rd_uvarint(&q);
			struct span s = rd_str(&q);
			assert_true(q.ok);
			if (tag == (1 << 3 | 2)) {
				struct rd l = rd_of(s.p, s.n);
				assert_int_equal(rd_u8(&l), 1 << 3 | 2);
				struct span name = rd_str(&l);
				assert_int_equal(rd_u8(&l), 2 << 3 | 2);
				struct span value = rd_str(&l);
				assert_true(l.ok && rd_left(&l) == 0 && values == 0);
				buf_printf(&text, "%.*s=%.*s,", SPAN_ARG(name), SPAN_ARG(value));
			} else if (tag == (2 << 3 | 2)) {
				read_sample(s, o);
				values++;
			} else {
				assert_int_equal(tag, 4 << 3 | 2);
				read_histogram(s, o);
				values++;
			}
		}
		assert_int_equal(values, 1);
		buf_u8(&text, 0);
		o->labels = (char *)text.p;
	}
}

static void read2(struct span msg, struct many *out)
{
	struct rd r = rd_of(msg.p, msg.n);
	static struct span symbols[100000];
	size_t n = 0;
	bool in_series = false;
	while (rd_left(&r)) {
		uint64_t tag = rd_uvarint(&r);
		struct span s = rd_str(&r);
		assert_true(r.ok);
		if (tag == (4 << 3 | 2)) {
			assert_false(in_series);
			assert_true(n < 100000);
			symbols[n++] = s;
			continue;
		}
		in_series = true;
		assert_int_equal(tag, 5 << 3 | 2);
		assert_true(n > 0 && symbols[0].n == 0);
		struct rd q = rd_of(s.p, s.n);
		struct one *o = many_add(out);
		struct buf text;
		buf_init(&text, MIB);
		bool metadata = false;
		while (rd_left(&q)) {
			uint64_t field = rd_uvarint(&q);
			struct span f = rd_str(&q);
			assert_true(q.ok);
			if (field == (1 << 3 | 2)) {
				struct rd l = rd_of(f.p, f.n);
				while (rd_left(&l)) {
					uint64_t name = rd_uvarint(&l), value = rd_uvarint(&l);
					assert_true(l.ok && name < n && value < n);
					buf_printf(&text, "%.*s=%.*s,", SPAN_ARG(symbols[name]), SPAN_ARG(symbols[value]));
				}
			} else if (field == (2 << 3 | 2)) {
				read_sample(f, o);
			} else if (field == (3 << 3 | 2)) {
				read_histogram(f, o);
			} else {
				assert_int_equal(field, 5 << 3 | 2);
				assert_int_equal(f.n, 0);
				metadata = true;
			}
		}
		assert_true(metadata);
		buf_u8(&text, 0);
		o->labels = (char *)text.p;
	}
	/* Each symbol once. */
	for (size_t i = 0; i < n && n < 2000; i++)
		for (size_t k = 0; k < i; k++)
			assert_false(span_eq(symbols[i], symbols[k]));
}

static int one_cmp(const void *x, const void *y)
{
	const struct one *a = x, *b = y;
	int c = strcmp(a->labels, b->labels);
	if (c == 0)
		c = (a->t > b->t) - (a->t < b->t);
	if (c == 0)
		c = (a->v > b->v) - (a->v < b->v);
	return c;
}

/* Every sample of a run, sorted. */
static struct many everything(const struct bench_shape *shape)
{
	struct many out = {0};
	struct bench_builder *b;
	struct err err = {0};
	assert_int_equal(bench_builder_open(shape, &b, &err), OK);
	for (uint64_t round = shape->first_round; round < shape->first_round + shape->rounds; round++) {
		size_t before = out.n;
		for (uint64_t batch = 0; batch < bench_batches(shape); batch++) {
			struct span msg;
			size_t had = out.n;
			assert_int_equal(bench_message(b, round, batch, &msg, &err), OK);
			if (shape->version == 1)
				read1(msg, &out);
			else
				read2(msg, &out);
			assert_int_equal(out.n - had, bench_batch_at(shape, batch).n);
			assert_in_range(out.n - had, 1, shape->batch);
		}
		assert_int_equal(out.n - before, shape->series);
	}
	bench_builder_close(b);
	qsort(out.v, out.n, sizeof *out.v, one_cmp);
	return out;
}

static void assert_same(const struct many *a, const struct many *b)
{
	assert_int_equal(a->n, b->n);
	for (size_t i = 0; i < a->n; i++) {
		assert_string_equal(a->v[i].labels, b->v[i].labels);
		assert_int_equal(a->v[i].t, b->v[i].t);
		assert_true(a->v[i].v == b->v[i].v);
		assert_int_equal(a->v[i].histogram != NULL, b->v[i].histogram != NULL);
		if (a->v[i].histogram)
			assert_string_equal(a->v[i].histogram, b->v[i].histogram);
	}
}

/* ---- the tests ---- */

static void same_flags_same_bytes(void **state)
{
	(void)state;
	struct err err = {0};
	for (int version = 1; version <= 2; version++) {
		struct bench_shape shape = plain(2345, 4), other;
		shape.version = version;
		shape.churn_ppm = 100000;
		shape.histograms_ppm = 50000;
		shape.out_of_order_ppm = 50000;
		shape.order = BENCH_SHUFFLED;
		other = shape;
		other.seed = 1;
		struct bench_builder *a, *b, *c;
		struct buf x, y, z;
		buf_init(&x, GIB);
		buf_init(&y, GIB);
		buf_init(&z, GIB);
		assert_int_equal(bench_builder_open(&shape, &a, &err), OK);
		assert_int_equal(bench_builder_open(&shape, &b, &err), OK);
		assert_int_equal(bench_builder_open(&other, &c, &err), OK);
		/* b has built others before, in another order. */
		for (uint64_t i = bench_batches(&shape) * 4; i-- > 0;)
			assert_int_equal(bench_body(b, i % 4, i / 4, &y, NULL, &err), OK);
		for (uint64_t round = 0; round < 4; round++)
			for (uint64_t batch = 0; batch < bench_batches(&shape); batch++) {
				size_t n;
				assert_int_equal(bench_body(a, round, batch, &x, &n, &err), OK);
				assert_int_equal(bench_body(b, round, batch, &y, NULL, &err), OK);
				assert_int_equal(bench_body(c, round, batch, &z, NULL, &err), OK);
				assert_true(x.n > 0 && n > x.n);
				assert_true(span_eq(span_of(x.p, x.n), span_of(y.p, y.n)));
				assert_false(span_eq(span_of(x.p, x.n), span_of(z.p, z.n)));
			}
		bench_builder_close(a);
		bench_builder_close(b);
		bench_builder_close(c);
		buf_free(&x);
		buf_free(&y);
		buf_free(&z);
	}
}

/* Shapes at random: whatever the order, version, number of tenants and batches, and disorder, a run has the same samples. */
static void every_way_gives_the_same_samples(void **state)
{
	(void)state;
	uint64_t seed = new_seed();
	for (unsigned i = 0; i < rounds(12, 300); i++) {
		struct bench_shape shape = plain(1 + rnd(&seed) % 3000, 1 + rnd(&seed) % 5);
		shape.first_round = rnd(&seed) % 4;
		shape.seed = rnd(&seed) % 3;
		shape.labels = (uint32_t)(2 + rnd(&seed) % 20);
		shape.churn_ppm = rnd(&seed) % 2 ? (uint32_t)(rnd(&seed) % 1000000) : 0;
		shape.histograms_ppm = rnd(&seed) % 2 ? (uint32_t)(rnd(&seed) % 1000000) : 0;
		struct many want = everything(&shape);
		for (int order = BENCH_SCRAPE; order <= BENCH_SHUFFLED; order++)
			for (int version = 1; version <= 2; version++) {
				struct bench_shape other = shape;
				other.order = (enum bench_order)order;
				other.version = version;
				other.batch = 1 + rnd(&seed) % 2000;
				other.tenants = 1 + (rnd(&seed) % 2 ? rnd(&seed) % shape.series : 0);
				other.out_of_order_ppm = (uint32_t)(rnd(&seed) % 1000001);
				struct many got = everything(&other);
				assert_same(&want, &got);
				many_free(&got);
			}
		many_free(&want);
	}
}

/* The server's own decoder reads what the hand above reads. */
static void the_decoder_agrees(void **state)
{
	(void)state;
	struct err err = {0};
	struct bench_shape shape = plain(3000, 2);
	struct bench_builder *b;
	struct arena arena;
	const struct rw_limits limits = {LIMIT_INGEST_SERIES_PER_REQUEST, LIMIT_INGEST_SAMPLES_PER_REQUEST, LIMIT_LABELS_DECODE};
	arena_init(&arena, GIB);
	assert_int_equal(bench_builder_open(&shape, &b, &err), OK);
	for (uint64_t round = 0; round < 2; round++)
		for (uint64_t batch = 0; batch < bench_batches(&shape); batch++) {
			struct buf body, labels;
			struct span plain_body;
			struct rw_request q;
			size_t n;
			buf_init(&body, GIB);
			buf_init(&labels, MIB);
			assert_int_equal(bench_body(b, round, batch, &body, &n, &err), OK);
			assert_int_equal(snappy_decode(span_of(body.p, body.n), GIB, &arena, &plain_body, &err), OK);
			assert_int_equal(plain_body.n, n);
			assert_int_equal(rw1_decode(plain_body, &limits, &arena, &q, &err), OK);
			assert_int_equal(q.n_series, bench_batch_at(&shape, batch).n);
			for (size_t i = 0; i < q.n_series; i++) {
				struct bench_sample s = bench_sample_of(&shape, batch * shape.batch + i, round);
				buf_clear(&labels);
				bench_put_labels(&shape, &s, &labels);
				assert_int_equal(q.series[i].n_samples, 1);
				assert_int_equal(q.series[i].n_labels, 10);
				assert_true(span_eq(q.series[i].wire, span_of(labels.p, labels.n)));
				assert_int_equal(q.samples[q.series[i].first_sample].t, shape.start_ms + (int64_t)round * 15000);
				assert_true(q.samples[q.series[i].first_sample].v == bench_value_bits(&shape, &s));
			}
			buf_free(&body);
			buf_free(&labels);
			arena_reset(&arena);
		}
	arena_free(&arena);
	bench_builder_close(b);
}

/* Any number of labels: sorted, and a set of its own for every series and generation. */
static void labels_are_a_series_of_their_own(void **state)
{
	(void)state;
	for (uint32_t n = BENCH_LABELS_MIN; n <= BENCH_LABELS_MAX; n++) {
		struct bench_shape shape = plain(1200, 3);
		shape.labels = n;
		shape.churn_ppm = 1000000; /* all of them each minute, so within three rounds some */
		struct many got = everything(&shape);
		for (size_t i = 0; i < got.n; i++) {
			uint32_t found = 0;
			char last[64] = "", *save = NULL, text[8192];
			snprintf(text, sizeof text, "%s", got.v[i].labels);
			for (char *pair = strtok_r(text, ",", &save); pair; pair = strtok_r(NULL, ",", &save), found++) {
				char *equals = strchr(pair, '=');
				assert_non_null(equals);
				assert_true(equals[1] != 0);
				*equals = 0;
				assert_true(strcmp(last, pair) < 0);
				snprintf(last, sizeof last, "%s", pair);
			}
			assert_int_equal(found, n);
			if (i > 0) /* a series has each time once */
				assert_true(one_cmp(&got.v[i - 1], &got.v[i]) < 0 &&
					    (strcmp(got.v[i - 1].labels, got.v[i].labels) || got.v[i - 1].t < got.v[i].t));
		}
		many_free(&got);
	}
}

/* 5 % a minute: of 400 targets 20 are replaced in any minute, all series of a target together. */
static void churn_replaces_its_share(void **state)
{
	(void)state;
	struct bench_shape shape = plain(400 * BENCH_TARGET_SERIES, 1000);
	shape.churn_ppm = 50000;
	for (uint64_t minute = 0; minute < 20; minute++) {
		uint64_t replaced = 0;
		for (uint64_t slot = 0; slot < shape.series; slot++) {
			uint64_t was = bench_sample_of(&shape, slot, minute * 4).generation,
				 is = bench_sample_of(&shape, slot, minute * 4 + 4).generation;
			assert_in_range(is - was, 0, 1);
			assert_int_equal(is, bench_sample_of(&shape, slot - slot % BENCH_TARGET_SERIES, minute * 4 + 4).generation);
			replaced += is - was;
		}
		assert_in_range(replaced, shape.series / 40, shape.series / 10);
	}
	/* In twenty minutes each once. */
	for (uint64_t slot = 0; slot < shape.series; slot += BENCH_TARGET_SERIES)
		assert_int_equal(bench_sample_of(&shape, slot, 80).generation - bench_sample_of(&shape, slot, 0).generation, 1);
	shape.churn_ppm = 0;
	assert_int_equal(bench_sample_of(&shape, 7, 999).generation, 0);
}

/* Each order is a permutation of each tenant's slots, and tenants share nothing. */
static void orders_are_permutations(void **state)
{
	(void)state;
	uint64_t seed = new_seed();
	for (unsigned i = 0; i < rounds(300, 5000); i++) {
		struct bench_shape shape = plain(1 + rnd(&seed) % 5000, 1);
		shape.tenants = 1 + rnd(&seed) % shape.series;
		shape.batch = 1 + rnd(&seed) % 300;
		shape.order = (enum bench_order)(rnd(&seed) % 3);
		uint8_t *seen = calloc(shape.series, 1);
		uint64_t *tenant_of = calloc(shape.series, sizeof *tenant_of);
		assert_true(seen && tenant_of);
		for (uint64_t batch = 0; batch < bench_batches(&shape); batch++) {
			struct bench_batch b = bench_batch_at(&shape, batch);
			assert_true(b.tenant < shape.tenants && b.n > 0);
			for (uint64_t k = 0; k < b.n; k++) {
				uint64_t slot = bench_slot(&shape, b.tenant, b.first + k, 3), again = bench_slot(&shape, b.tenant, b.first + k, 4);
				assert_true(slot < shape.series && again < shape.series);
				assert_int_equal(seen[slot], 0);
				seen[slot] = 1;
				tenant_of[slot] = b.tenant;
				if (shape.order != BENCH_SHUFFLED)
					assert_int_equal(slot, again);
			}
		}
		for (uint64_t slot = 0; slot < shape.series; slot++)
			assert_true(seen[slot] && (slot == 0 || tenant_of[slot - 1] <= tenant_of[slot]));
		free(seen);
		free(tenant_of);
	}
}

/* Files hold the bodies that would be sent. */
static void dumped_bodies_are_the_bodies(void **state)
{
	(void)state;
	struct err err = {0};
	const char *dir = tmp_dir();
	struct bench_shape shape = plain(1050, 3);
	struct bench_builder *b;
	struct buf body;
	uint64_t bodies, bytes, seen = 0;
	shape.first_round = 2;
	shape.tenants = 3;
	buf_init(&body, GIB);
	assert_int_equal(bench_dump(&shape, dir, &bodies, &bytes, &err), OK);
	assert_int_equal(bodies, 3 * bench_batches(&shape));
	assert_int_equal(bench_builder_open(&shape, &b, &err), OK);
	for (uint64_t round = 2; round < 5; round++) {
		char path[4200];
		struct arena arena;
		struct span file;
		arena_init(&arena, GIB);
		snprintf(path, sizeof path, "%s/round-%06" PRIu64 ".bodies", dir, round);
		assert_int_equal(io_read_file(path, GIB, &arena, &file, &err), OK);
		struct rd r = rd_of(file.p, file.n);
		assert_true(span_is(rd_bytes(&r, 8), BENCH_FILE_MAGIC));
		for (uint64_t batch = 0; batch < bench_batches(&shape); batch++) {
			struct bench_batch of = bench_batch_at(&shape, batch);
			assert_int_equal(rd_le32(&r), 1);
			assert_int_equal(rd_le32(&r), of.n);
			assert_int_equal(rd_le32(&r), of.tenant);
			uint32_t n = rd_le32(&r);
			assert_int_equal(bench_body(b, round, batch, &body, NULL, &err), OK);
			assert_true(span_eq(rd_bytes(&r, n), span_of(body.p, body.n)));
			seen += n;
		}
		assert_true(r.ok && rd_left(&r) == 0);
		arena_free(&arena);
	}
	assert_int_equal(seen, bytes);
	bench_builder_close(b);
	buf_free(&body);
}

/* Any quantile is within 1/32 of the exact one. */
static void latencies_are_right_to_three_percent(void **state)
{
	(void)state;
	uint64_t seed = new_seed();
	enum { N = 5000 };
	static uint64_t v[N];
	struct bench_latency *l = calloc(1, sizeof *l), *half = calloc(1, sizeof *half);
	assert_true(l && half);
	assert_int_equal(bench_latency_at(l, 0.5), 0);
	for (unsigned i = 0; i < N; i++) {
		v[i] = rnd(&seed) >> rnd(&seed) % 64;
		if (v[i] > UINT64_C(1) << 62)
			v[i] >>= 2;
		bench_latency_add(i % 2 ? l : half, v[i]);
	}
	bench_latency_merge(l, half);
	for (unsigned i = 1; i < N; i++)
		for (unsigned k = i; k > 0 && v[k] < v[k - 1]; k--) {
			uint64_t x = v[k];
			v[k] = v[k - 1];
			v[k - 1] = x;
		}
	for (unsigned i = 0; i < N; i++) {
		double want = (double)v[i], got = (double)bench_latency_at(l, ((double)i + 0.5) / N);
		assert_true(got >= want * (1 - 1.0 / 32) - 1 && got <= want * (1 + 1.0 / 32) + 1);
	}
	assert_int_equal(l->max_ns, v[N - 1]);
	free(l);
	free(half);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(same_flags_same_bytes),
		cmocka_unit_test(every_way_gives_the_same_samples),
		cmocka_unit_test(the_decoder_agrees),
		cmocka_unit_test(labels_are_a_series_of_their_own),
		cmocka_unit_test(churn_replaces_its_share),
		cmocka_unit_test(orders_are_permutations),
		cmocka_unit_test(dumped_bodies_are_the_bodies),
		cmocka_unit_test(latencies_are_right_to_three_percent),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
