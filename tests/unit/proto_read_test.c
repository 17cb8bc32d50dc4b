/* Remote read: requests decoded, hostile ones refused; fields of answers written as protobuf-c would pack them. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "proto/proto.h"
#include "proto/remote.pb-c.h"
#include "tests/support/write_oracle.pb-c.h"

static struct span exact(struct span s)
{
	char *p = malloc(s.n ? s.n : 1);
	assert_non_null(p);
	if (s.n)
		memcpy(p, s.p, s.n);
	return span_of(p, s.n);
}

static void put_matcher(struct buf *b, uint64_t type, struct span name, struct span value)
{
	size_t m = pb_begin(b, 3);
	if (type)
		pb_uint(b, 1, type);
	pb_bytes(b, 2, name);
	pb_bytes(b, 3, value);
	pb_end(b, m);
}

static struct buf some_request(void)
{
	struct buf b;
	buf_init(&b, MIB);
	size_t q = pb_begin(&b, 1);
	pb_uint(&b, 1, (uint64_t)INT64_C(-5));
	pb_uint(&b, 2, 1700000000000);
	put_matcher(&b, 0, SPAN("__name__"), SPAN("up"));
	put_matcher(&b, 3, SPAN("job"), SPAN("a\0b"));
	size_t h = pb_begin(&b, 4);
	pb_uint(&b, 1, 15000);
	pb_bytes(&b, 2, SPAN("rate"));
	pb_uint(&b, 3, 100);
	pb_uint(&b, 4, 200);
	pb_bytes(&b, 5, SPAN("instance"));
	pb_uint(&b, 6, 1);
	pb_uint(&b, 7, 300000);
	pb_end(&b, h);
	pb_end(&b, q);
	q = pb_begin(&b, 1);
	pb_end(&b, q);
	pb_bytes(&b, 2, SPAN("\x01\x00")); /* packed: streamed, then samples */
	pb_bytes(&b, 99, SPAN("of a later version"));
	return b;
}

static void a_request_is_read(void **state)
{
	(void)state;
	struct buf b = some_request();
	struct arena arena;
	arena_init(&arena, MIB);
	struct rr_request r;
	assert_int_equal(rr_decode(span_of(b.p, b.n), &arena, &r, NULL), OK);
	memset(b.p, 0, b.n); /* everything was copied */
	assert_int_equal(r.n_queries, 2);
	assert_true(r.streamed);
	const struct rr_query *q = &r.queries[0];
	assert_int_equal(q->start_ms, -5);
	assert_int_equal(q->end_ms, 1700000000000);
	assert_int_equal(q->n_matchers, 2);
	assert_int_equal(q->matchers[0].type, 0);
	assert_true(span_is(q->matchers[0].name, "__name__"));
	assert_true(span_is(q->matchers[0].value, "up"));
	assert_int_equal(q->matchers[1].type, 3);
	assert_true(span_eq(q->matchers[1].value, SPAN("a\0b"))); /* a NUL does not end it */
	assert_int_equal(q->hint_step_ms, 15000);
	assert_int_equal(q->hint_start_ms, 100);
	assert_int_equal(q->hint_end_ms, 200);
	assert_true(span_is(q->hint_func, "rate"));
	assert_int_equal(r.queries[1].n_matchers, 0);
	assert_true(span_is(r.queries[1].hint_func, ""));
	arena_free(&arena);
	buf_free(&b);
}

static void response_types(void **state)
{
	(void)state;
	static const struct {
		struct span body;
		errc rc;
		bool streamed;
	} cases[] = {
		{{"", 0}, OK, false},
		{{"\x10\x00", 2}, OK, false}, /* unpacked */
		{{"\x10\x01", 2}, OK, true},
		{{"\x12\x02\x00\x01", 4}, OK, false},
		{{"\x12\x02\x01\x00", 4}, OK, true},
		{{"\x10\x07\x10\x01", 4}, OK, true}, /* an unknown one is passed over */
		{{"\x10\x07\x10\x00", 4}, OK, false},
		{{"\x10\x07", 2}, ERR_INVALID, false},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct arena arena;
		arena_init(&arena, MIB);
		struct rr_request r;
		assert_int_equal(rr_decode(cases[i].body, &arena, &r, NULL), cases[i].rc);
		if (cases[i].rc == OK)
			assert_true(r.streamed == cases[i].streamed);
		arena_free(&arena);
	}
}

static void every_truncation_and_flip_is_survived(void **state)
{
	(void)state;
	struct buf b = some_request();
	unsigned refused = 0;
	for (size_t at = 0; at < b.n; at++)
		for (unsigned x = 0; x < 256; x++) {
			b.p[at] ^= (uint8_t)x;
			struct span body = exact(span_of(b.p, x == 0 ? at : b.n));
			struct arena arena;
			arena_init(&arena, MIB);
			struct rr_request r;
			struct err err = {0};
			errc rc = rr_decode(body, &arena, &r, &err);
			assert_true(rc == OK || rc == ERR_INVALID);
			assert_true(rc == OK || err.id);
			refused += rc != OK;
			b.p[at] ^= (uint8_t)x;
			arena_free(&arena);
			free((char *)(uintptr_t)body.p);
		}
	assert_true(refused > 100);
	buf_free(&b);
}

static void hostile_requests_are_refused(void **state)
{
	(void)state;
	struct arena arena;
	struct rr_request r;
	struct err err = {0};
	struct buf b;
	buf_init(&b, 64 * MIB);

	for (int i = 0; i < LIMIT_READ_QUERIES + 1; i++)
		buf_put(&b, "\x0a\x00", 2);
	arena_init(&arena, MIB);
	assert_int_equal(rr_decode(span_of(b.p, b.n), &arena, &r, &err), ERR_LIMIT);
	assert_int_equal(rr_decode(span_of(b.p, b.n - 2), &arena, &r, &err), OK);
	arena_free(&arena);

	buf_clear(&b); /* 4 M queries */
	for (int i = 0; i < 4000000; i++)
		buf_put(&b, "\x0a\x00", 2);
	arena_init(&arena, MIB);
	assert_int_equal(rr_decode(span_of(b.p, b.n), &arena, &r, &err), ERR_LIMIT);
	assert_string_equal(err.id, errid_text(ERRID_QUERY_TOO_LARGE));
	arena_free(&arena);

	buf_clear(&b);
	size_t q = pb_begin(&b, 1);
	for (int i = 0; i < LIMIT_QUERY_MATCHERS + 1; i++)
		put_matcher(&b, 0, SPAN("a"), SPAN("b"));
	pb_end(&b, q);
	arena_init(&arena, MIB);
	assert_int_equal(rr_decode(span_of(b.p, b.n), &arena, &r, &err), ERR_LIMIT);
	assert_string_equal(err.id, errid_text(ERRID_BAD_MATCHER));
	arena_free(&arena);

	buf_clear(&b);
	q = pb_begin(&b, 1);
	put_matcher(&b, 4, SPAN("a"), SPAN("b"));
	pb_end(&b, q);
	arena_init(&arena, MIB);
	assert_int_equal(rr_decode(span_of(b.p, b.n), &arena, &r, &err), ERR_INVALID);
	assert_string_equal(err.id, errid_text(ERRID_BAD_MATCHER));
	arena_free(&arena);
	buf_free(&b);

	b = some_request();
	for (size_t max = 0;; max += 8) { /* the caller's arena ends anywhere */
		arena_init(&arena, max);
		errc rc = rr_decode(span_of(b.p, b.n), &arena, &r, NULL);
		arena_free(&arena);
		if (rc == OK)
			break;
		assert_int_equal(rc, ERR_NOMEM);
	}
	buf_free(&b);
}

/* Submessages of every size around the lengths where a varint grows, nested: as protobuf-c packs them. */
static void answers_are_written_in_the_shortest_form(void **state)
{
	(void)state;
	static const size_t sizes[] = {0, 1, 100, 109, 110, 111, 112, 113, 126, 127, 128, 16360, 16370, 16375, 16380, 16383, 16384, 2097100, 2097160};
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		uint8_t *text = malloc(sizes[i] + 1);
		assert_non_null(text);
		memset(text, 'x', sizes[i]);
		Oracle__Label label = ORACLE__LABEL__INIT, *labels[1] = {&label};
		label.name = (ProtobufCBinaryData){3, (uint8_t *)(uintptr_t) "job"};
		label.value = (ProtobufCBinaryData){sizes[i], text};
		Oracle__Sample sample = ORACLE__SAMPLE__INIT, *samples[1] = {&sample};
		sample.value = -1.5;
		sample.timestamp = -77;
		Oracle__BucketSpan span = ORACLE__BUCKET_SPAN__INIT, *spans[1] = {&span};
		span.offset = -3;
		span.length = 200;
		Oracle__Histogram histogram = ORACLE__HISTOGRAM__INIT, *histograms[1] = {&histogram};
		histogram.positive_spans = spans;
		histogram.n_positive_spans = 1;
		Oracle__TimeSeries series = ORACLE__TIME_SERIES__INIT, *all[1] = {&series};
		series.labels = labels;
		series.samples = samples;
		series.histograms = histograms;
		series.n_labels = series.n_samples = series.n_histograms = 1;
		Oracle__WriteRequest request = ORACLE__WRITE_REQUEST__INIT;
		request.timeseries = all;
		request.n_timeseries = 1;
		size_t n = oracle__write_request__get_packed_size(&request);
		uint8_t *want = malloc(n);
		assert_non_null(want);
		oracle__write_request__pack(&request, want);

		struct buf b;
		buf_init(&b, 16 * MIB);
		size_t s = pb_begin(&b, 1), l = pb_begin(&b, 1);
		pb_bytes(&b, 1, SPAN("job"));
		if (sizes[i])
			pb_bytes(&b, 2, span_of(text, sizes[i]));
		pb_end(&b, l);
		l = pb_begin(&b, 2);
		pb_double_bits(&b, 1, f64_bits(-1.5));
		pb_uint(&b, 2, (uint64_t)INT64_C(-77));
		pb_end(&b, l);
		l = pb_begin(&b, 4);
		size_t sp = pb_begin(&b, 11);
		pb_sint(&b, 1, -3);
		pb_uint(&b, 2, 200);
		pb_end(&b, sp);
		pb_end(&b, l);
		pb_end(&b, s);
		assert_int_equal(b.n, n);
		assert_memory_equal(b.p, want, n);
		buf_free(&b);
		free(want);
		free(text);
	}
}

/* A buffer that is full at any point stays failed, and nothing is written outside. */
static void a_full_buffer_is_survived(void **state)
{
	(void)state;
	for (size_t max = 0; max < 200; max++) {
		struct buf b;
		buf_init(&b, max);
		size_t a = pb_begin(&b, 1), c = pb_begin(&b, 2);
		pb_bytes(&b, 3, SPAN("0123456789012345678901234567890123456789012345678901234567890123456789"));
		pb_bytes(&b, 3, SPAN("0123456789012345678901234567890123456789012345678901234567890123456789"));
		pb_end(&b, c);
		pb_end(&b, a);
		assert_true(b.failed == (max < 150));
		buf_free(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_request_is_read),
		cmocka_unit_test(response_types),
		cmocka_unit_test(every_truncation_and_flip_is_survived),
		cmocka_unit_test(hostile_requests_are_refused),
		cmocka_unit_test(answers_are_written_in_the_shortest_form),
		cmocka_unit_test(a_full_buffer_is_survived),
	};
	return cmocka_run_group_tests_name("remote read", tests, NULL, NULL);
}
