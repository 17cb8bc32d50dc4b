/* Remote write 1.0: the in-place decoder reads what protobuf-c reads, refuses what it refuses, and hostile bodies cost nothing. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/labels.h"
#include "base/limits.h"
#include "proto/proto.h"
#include "tests/support/oracle_write.h"

static const struct rw_limits normal = {LIMIT_INGEST_SERIES_PER_REQUEST, LIMIT_INGEST_SAMPLES_PER_REQUEST, LIMIT_LABELS_DECODE};

/* ---- random bodies in every spelling ---- */

struct rng {
	uint64_t s;
};

static uint64_t rnd(struct rng *g)
{
	g->s ^= g->s << 13;
	g->s ^= g->s >> 7;
	g->s ^= g->s << 17;
	return g->s * UINT64_C(0x2545F4914F6CDD1D);
}

static uint64_t below(struct rng *g, uint64_t n)
{
	return rnd(g) % n;
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

/* How a body is spelled: 0 as senders do, 1 anything goes. */
struct writer {
	struct buf b;
	struct rng *g;
	bool wild;
};

static void put_varint_wild(struct writer *w, uint64_t x)
{
	buf_uvarint(&w->b, x);
	if (w->wild && below(w->g, 8) == 0 && uvarint_size(x) < 4) { /* longer than it need be */
		w->b.p[w->b.n - 1] |= 0x80;
		buf_u8(&w->b, 0);
	}
}

static void put_bytes(struct writer *w, uint32_t field, const void *p, size_t n)
{
	put_varint_wild(w, (uint64_t)field << 3 | 2);
	put_varint_wild(w, n);
	buf_put(&w->b, p, n);
}

static void put_unknown(struct writer *w)
{
	if (!w->wild || below(w->g, 6))
		return;
	uint32_t field = 20 + (uint32_t)below(w->g, 1000);
	switch (below(w->g, 4)) {
	case 0:
		pb_uint(&w->b, field, rnd(w->g));
		break;
	case 1:
		pb_double_bits(&w->b, field, rnd(w->g));
		break;
	case 2:
		pb_bytes(&w->b, field, SPAN("what is this"));
		break;
	default:
		pb_tag(&w->b, field, 5);
		buf_put(&w->b, "abcd", 4);
	}
}

static struct writer sub(struct writer *w)
{
	struct writer s = {.g = w->g, .wild = w->wild};
	buf_init(&s.b, 64 * MIB);
	return s;
}

static void end_sub(struct writer *w, uint32_t field, struct writer *s)
{
	put_bytes(w, field, s->b.p, s->b.n);
	buf_free(&s->b);
}

static void put_label(struct writer *w, uint32_t field)
{
	struct writer l = sub(w);
	char text[400];
	size_t n = 1 + below(w->g, 20), m = below(w->g, w->wild && below(w->g, 20) == 0 ? 399 : 40);
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = (char)below(w->g, 256);
	bool swap = w->wild && below(w->g, 4) == 0;
	put_unknown(&l);
	if (swap)
		put_bytes(&l, 2, text, m);
	put_bytes(&l, 1, text, n);
	if (!swap)
		put_bytes(&l, 2, text, m);
	put_unknown(&l);
	end_sub(w, field, &l);
}

static int64_t some_time(struct rng *g)
{
	switch (below(g, 6)) {
	case 0:
		return (int64_t)rnd(g);
	case 1:
		return (int64_t)below(g, 300) - 150;
	default:
		return 1700000000000 + (int64_t)below(g, 1000000000);
	}
}

static void put_sample(struct writer *w)
{
	struct writer s = sub(w);
	bool swap = w->wild && below(w->g, 4) == 0;
	int64_t t = some_time(w->g);
	uint64_t v = rnd(w->g);
	put_unknown(&s);
	if (w->wild && below(w->g, 8) == 0)
		pb_double_bits(&s.b, 1, ~v); /* the last of a repeated field wins */
	if (!swap && below(w->g, 10))
		pb_double_bits(&s.b, 1, v);
	if (below(w->g, 10)) {
		put_varint_wild(&s, 2 << 3);
		put_varint_wild(&s, (uint64_t)t);
	}
	if (swap)
		pb_double_bits(&s.b, 1, v);
	put_unknown(&s);
	end_sub(w, 2, &s);
}

static void put_exemplar(struct writer *w)
{
	struct writer e = sub(w);
	for (uint64_t n = below(w->g, 3); n; n--)
		put_label(&e, 1);
	pb_double_bits(&e.b, 2, rnd(w->g));
	pb_uint(&e.b, 3, (uint64_t)some_time(w->g));
	put_unknown(&e);
	end_sub(w, 3, &e);
}

static void put_numbers(struct writer *w, uint32_t field, bool doubles)
{
	struct writer a = sub(w);
	uint64_t n = below(w->g, 6);
	bool packed = !w->wild || below(w->g, 2);
	for (uint64_t i = 0; i < n; i++) {
		if (doubles && packed)
			buf_put(&a.b, "12345678", 8);
		else if (doubles)
			pb_double_bits(&w->b, field, rnd(w->g));
		else if (packed)
			buf_uvarint(&a.b, rnd(w->g) >> below(w->g, 64));
		else
			pb_sint(&w->b, field, (int64_t)rnd(w->g));
	}
	if (packed)
		end_sub(w, field, &a);
	else
		buf_free(&a.b);
}

static void put_histogram(struct writer *w)
{
	struct writer h = sub(w);
	/* the last of a oneof wins, and count's says which buckets count */
	for (uint64_t n = w->wild ? below(w->g, 4) : 1; n; n--) {
		if (below(w->g, 2))
			pb_uint(&h.b, 1, rnd(w->g));
		else
			pb_double_bits(&h.b, 2, rnd(w->g));
	}
	pb_double_bits(&h.b, 3, rnd(w->g));
	pb_sint(&h.b, 4, (int64_t)below(w->g, 12) - 4);
	pb_double_bits(&h.b, 5, rnd(w->g));
	for (uint64_t n = w->wild ? below(w->g, 4) : 1; n; n--) {
		if (below(w->g, 2))
			pb_uint(&h.b, 6, rnd(w->g));
		else
			pb_double_bits(&h.b, 7, rnd(w->g));
	}
	for (uint32_t field = 8; field <= 11; field += 3) {
		for (uint64_t n = below(w->g, 3); n; n--) {
			struct writer s = sub(&h);
			pb_sint(&s.b, 1, (int64_t)below(w->g, 10) - 5);
			pb_uint(&s.b, 2, below(w->g, 10));
			end_sub(&h, field, &s);
		}
		put_numbers(&h, field + 1, false);
		put_numbers(&h, field + 2, true);
	}
	pb_uint(&h.b, 14, w->wild && below(w->g, 5) == 0 ? rnd(w->g) : below(w->g, 4));
	pb_uint(&h.b, 15, (uint64_t)some_time(w->g));
	put_numbers(&h, 16, true);
	put_unknown(&h);
	end_sub(w, 4, &h);
}

static void put_series(struct writer *w)
{
	struct writer s = sub(w);
	uint64_t n_labels = below(w->g, 13), n_samples = below(w->g, 4), n_exemplars = below(w->g, 6) ? 0 : 1,
		 n_histograms = below(w->g, 8) ? 0 : 1 + below(w->g, 2);
	if (w->wild && below(w->g, 10) == 0)
		n_samples = 200;
	if (w->wild && below(w->g, 3) == 0) { /* any order */
		while (n_labels + n_samples + n_exemplars + n_histograms) {
			put_unknown(&s);
			switch (below(w->g, 4)) {
			case 0:
				n_labels = n_labels ? (put_label(&s, 1), n_labels - 1) : 0;
				break;
			case 1:
				n_samples = n_samples ? (put_sample(&s), n_samples - 1) : 0;
				break;
			case 2:
				n_exemplars = n_exemplars ? (put_exemplar(&s), n_exemplars - 1) : 0;
				break;
			default:
				n_histograms = n_histograms ? (put_histogram(&s), n_histograms - 1) : 0;
			}
		}
	}
	for (; n_labels; n_labels--)
		put_label(&s, 1);
	for (; n_samples; n_samples--)
		put_sample(&s);
	for (; n_exemplars; n_exemplars--)
		put_exemplar(&s);
	for (; n_histograms; n_histograms--)
		put_histogram(&s);
	end_sub(w, 1, &s);
}

static struct buf random_body(struct rng *g, bool wild, unsigned max_series)
{
	struct writer w = {.g = g, .wild = wild};
	buf_init(&w.b, 64 * MIB);
	for (uint64_t n = below(g, max_series + 1); n; n--) {
		put_unknown(&w);
		put_series(&w);
		if (below(g, 10) == 0) {
			struct writer m = sub(&w);
			pb_uint(&m.b, 1, below(g, 8));
			pb_bytes(&m.b, 2, SPAN("some_metric_total"));
			pb_bytes(&m.b, 4, SPAN("Some help."));
			end_sub(&w, 3, &m);
		}
	}
	assert_false(w.b.failed);
	return w.b;
}

/* ---- agreement ---- */

/* A copy of exactly its size, so that AddressSanitizer sees a read behind the end. */
static struct span exact(struct span s)
{
	char *p = malloc(s.n ? s.n : 1);
	assert_non_null(p);
	if (s.n)
		memcpy(p, s.p, s.n);
	return span_of(p, s.n);
}

static void print_body(struct span s)
{
	for (size_t i = 0; i < s.n && i < 2000; i++)
		fprintf(stderr, "%02x", (unsigned char)s.p[i]);
	fputc('\n', stderr);
}

static enum oracle_outcome compare_limited(struct span body, const struct rw_limits *limits)
{
	char why[600];
	struct span copy = exact(body);
	enum oracle_outcome o = oracle_write_compare(copy, limits, why, sizeof why);
	if (o == ORACLE_DIFFER) {
		print_body(body);
		fail_msg("%s", why);
	}
	free((char *)(uintptr_t)copy.p);
	return o;
}

static enum oracle_outcome compare(struct span body)
{
	return compare_limited(body, &normal);
}

static void plain_bodies_agree(void **state)
{
	(void)state;
	struct rng g = {new_seed()};
	for (unsigned i = 0; i < rounds(500, 20000); i++) {
		struct buf b = random_body(&g, false, 30);
		assert_int_equal(compare(span_of(b.p, b.n)), ORACLE_BOTH_OK);
		buf_free(&b);
	}
}

static void every_spelling_agrees(void **state)
{
	(void)state;
	struct rng g = {new_seed()};
	for (unsigned i = 0; i < rounds(1500, 60000); i++) {
		struct buf b = random_body(&g, true, 12);
		assert_int_equal(compare(span_of(b.p, b.n)), ORACLE_BOTH_OK);
		buf_free(&b);
	}
}

static void every_truncation_agrees(void **state)
{
	(void)state;
	struct rng g = {new_seed()};
	for (unsigned i = 0; i < rounds(20, 400); i++) {
		struct buf b = random_body(&g, i % 2, 3);
		for (size_t n = 0; n < b.n; n++)
			compare(span_of(b.p, n));
		buf_free(&b);
	}
}

/* Every byte of a body set to other values: both decoders agree, and nothing is read outside. */
static void every_flipped_byte_agrees(void **state)
{
	(void)state;
	struct rng g = {new_seed()};
	unsigned both = 0, neither = 0;
	for (unsigned i = 0; i < rounds(20, 400); i++) {
		struct buf b = random_body(&g, i % 2, 3);
		for (size_t at = 0; at < b.n; at++) {
			uint8_t was = b.p[at];
			for (unsigned k = 0; k < 4; k++) {
				b.p[at] = (uint8_t)(k == 0 ? was ^ 0xffu : was ^ 1u << below(&g, 8));
				enum oracle_outcome o = compare(span_of(b.p, b.n));
				both += o == ORACLE_BOTH_OK;
				neither += o == ORACLE_BOTH_REFUSE;
			}
			b.p[at] = was;
		}
		buf_free(&b);
	}
	assert_true(both > 100 && neither > 100); /* the sweep sees both sides */
}

/* ---- bytes written down ---- */

static void golden(void **state)
{
	(void)state;
	/* {__name__="up", job="x"} 1.5 at 1700000000000 */
	struct buf b;
	buf_init(&b, KIB);
	size_t s = pb_begin(&b, 1);
	buf_put(&b, "\x0a\x0e\x0a\x08__name__\x12\x02up", 16);
	buf_put(&b, "\x0a\x08\x0a\x03job\x12\x01x", 10);
	buf_put(&b, "\x12\x10\x09\0\0\0\0\0\0\xf8\x3f\x10\x80\xd0\x95\xff\xbc\x31", 18);
	pb_end(&b, s);
	static const char *const hex = "0a2c0a0e0a085f5f6e616d655f5f120275700a080a036a6f6212017812100900000000"
				       "0000f83f1080d095ffbc31";
	char got_hex[200] = "";
	for (size_t i = 0; i < b.n; i++)
		snprintf(got_hex + 2 * i, 3, "%02x", b.p[i]);
	assert_string_equal(got_hex, hex);

	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw1_decode(span_of(b.p, b.n), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.n_series, 1);
	assert_int_equal(r.n_samples, 1);
	assert_int_equal(r.series[0].n_labels, 2);
	assert_ptr_equal(r.series[0].wire.p, b.p + 2); /* in place */
	assert_int_equal(r.series[0].wire.n, 26);
	assert_int_equal(r.samples[0].t, 1700000000000);
	assert_int_equal(r.samples[0].v, f64_bits(1.5));
	arena_free(&arena);
	buf_free(&b);
}

static void an_empty_body_is_an_empty_request(void **state)
{
	(void)state;
	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw1_decode(SPAN(""), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.n_series, 0);
	/* a remote write 2.0 body has no field 1 and decodes as empty */
	assert_int_equal(rw1_decode(SPAN("\x22\x00\x22\x01"
					 "a"),
				 &normal, &arena, &r, NULL),
		OK);
	assert_int_equal(r.n_series, 0);
	arena_free(&arena);
}

/* Labels with samples between them are one run, as if they had come so. */
static void scattered_labels_are_gathered(void **state)
{
	(void)state;
	static const char label_a[] = "\x0a\x06\x0a\x01"
				      "a\x12\x01"
				      "1",
			  label_b[] = "\x0a\x06\x0a\x01"
				      "b\x12\x01"
				      "2",
			  sample[] = "\x12\x02\x10\x07";
	struct buf b;
	buf_init(&b, KIB);
	size_t s = pb_begin(&b, 1);
	buf_put(&b, label_a, 8);
	buf_put(&b, sample, 4);
	buf_put(&b, label_b, 8);
	pb_end(&b, s);
	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw1_decode(span_of(b.p, b.n), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.series[0].n_labels, 2);
	assert_int_equal(r.series[0].wire.n, 16);
	assert_memory_equal(r.series[0].wire.p, label_a, 8);
	assert_memory_equal(r.series[0].wire.p + 8, label_b, 8);
	assert_int_equal(r.samples[0].t, 7);
	arena_free(&arena);
	buf_free(&b);
}

/* What senders write: every field once, arrays packed. */
static void a_histogram_in_full(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, KIB);
	size_t s = pb_begin(&b, 1), h = pb_begin(&b, 4), e;
	pb_uint(&b, 1, 12);
	pb_double_bits(&b, 3, f64_bits(18.4));
	pb_sint(&b, 4, -2);
	pb_double_bits(&b, 5, f64_bits(0.001));
	pb_uint(&b, 6, 2);
	e = pb_begin(&b, 8);
	pb_sint(&b, 1, -3);
	pb_uint(&b, 2, 2);
	pb_end(&b, e);
	pb_bytes(&b, 9, SPAN("\x02\x03"));  /* 1, -2 */
	pb_bytes(&b, 10, SPAN("12345678")); /* of the other kind: left out */
	e = pb_begin(&b, 11);
	pb_uint(&b, 2, 1);
	pb_end(&b, e);
	pb_bytes(&b, 12, SPAN("\xd8\x04")); /* 300 */
	pb_uint(&b, 14, 3);
	pb_uint(&b, 15, 1700000000000);
	pb_uint(&b, 17, 5); /* a start timestamp is 2.0's */
	pb_end(&b, h);
	pb_end(&b, s);
	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw1_decode(span_of(b.p, b.n), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.n_hists, 1);
	assert_int_equal(r.series[0].n_hists, 1);
	assert_int_equal(r.series[0].first_hist, 0);
	const struct rw_hist *x = &r.hists[0];
	assert_int_equal(x->kind, SAMPLE_HISTOGRAM);
	assert_int_equal(x->t, 1700000000000);
	assert_int_equal(x->start, 0);
	assert_int_equal(x->h.schema, -2);
	assert_int_equal(x->h.reset_hint, HIST_RESET_GAUGE);
	assert_int_equal(x->h.i_count, 12);
	assert_int_equal(x->h.i_zero_count, 2);
	assert_true(x->h.zero_threshold == 0.001 && x->h.sum == f64_bits(18.4));
	assert_int_equal(x->h.n_neg_spans, 1);
	assert_int_equal(x->h.neg_spans[0].offset, -3);
	assert_int_equal(x->h.neg_spans[0].length, 2);
	assert_int_equal(x->h.n_neg, 2);
	assert_int_equal(x->h.i_neg[0], 1);
	assert_int_equal(x->h.i_neg[1], -2);
	assert_null(x->h.f_neg);
	assert_int_equal(x->h.n_pos, 1);
	assert_int_equal(x->h.i_pos[0], 300);
	assert_int_equal(x->h.n_custom, 0);
	arena_free(&arena);
	buf_free(&b);
}

static void refusals_say_where(void **state)
{
	(void)state;
	static const struct {
		struct span body;
		const char *text;
	} cases[] = {
		{SPAN("\x0a\x05\x0a\x03"), "byte 0 of 4, series 0: series goes beyond the end"},
		{SPAN("\x0a\x00\x0a\x02\x08\x01"), "byte 4 of 6, series 1: wrong wire type in a series"},
		{SPAN("\x0a\x04\x12\x02\x08\x01"), "byte 4 of 6, series 0: wrong wire type in a sample"},
		{SPAN("\x0a\x03\x12\x01\x10"), "byte 4 of 5, series 0: varint cut off or above 64 bits"},
		{SPAN("\x08\x01"), "byte 0 of 2, series 0: wrong wire type in the request"}, {SPAN("\x0b"), "unknown wire type"},
		{SPAN("\x00\x00"), "field number out of range"},
		{SPAN("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "tag cut off or above 64 bits"},
		{SPAN("\x0a\x05\x22\x03\x4a\x01\x80"), "varint in a packed array cut off"},
		{SPAN("\x0a\x05\x22\x03\x6a\x01\x00"), "8 does not divide"},
		{SPAN("\x0a\x06\x1a\x04\x0a\x02\x08\x01"), "byte 6 of 8, series 0: wrong wire type"},
		{SPAN("\x1a\x02\x0d\x01"), "truncated 32-bit value"},
		{SPAN("\x5a\xff\xff\xff\xff\x03"
		      "abc"),
			"length beyond the end"}, /* an unknown field of 1 GiB, as it says */
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct arena arena;
		arena_init(&arena, MIB);
		struct rw_request r;
		struct err err = {0};
		assert_int_equal(rw1_decode(cases[i].body, &normal, &arena, &r, &err), ERR_INVALID);
		assert_string_equal(err.id, errid_text(ERRID_PROTOBUF));
		if (!strstr(err.msg, cases[i].text))
			fail_msg("case %zu: %s", i, err.msg);
		arena_free(&arena);
	}
}

/* ---- limits ---- */

static void limits_are_exact(void **state)
{
	(void)state;
	struct rng g = {new_seed()};
	for (unsigned i = 0; i < 200; i++) {
		struct buf b = random_body(&g, i % 2, 12);
		struct span body = span_of(b.p, b.n);
		struct arena arena;
		arena_init(&arena, 16 * MIB);
		struct rw_request r;
		assert_int_equal(rw1_decode(body, &normal, &arena, &r, NULL), OK);
		uint32_t labels = 0;
		for (size_t k = 0; k < r.n_series; k++)
			labels = r.series[k].n_labels > labels ? r.series[k].n_labels : labels;
		for (size_t k = 0; k < r.n_exemplars; k++)
			labels = r.exemplars[k].n_labels > labels ? r.exemplars[k].n_labels : labels;
		size_t n = r.n_samples > r.n_hists ? r.n_samples : r.n_hists;
		n = r.n_exemplars > n ? r.n_exemplars : n;
		size_t m = r.n_series > r.n_metadata ? r.n_series : r.n_metadata;
		struct rw_limits tight = {(uint32_t)m, (uint32_t)n, labels};
		assert_int_equal(compare_limited(body, &tight), ORACLE_BOTH_OK);
		struct rw_limits less = tight;
		if (m) {
			less.max_series--;
			assert_int_equal(compare_limited(body, &less), ORACLE_LIMIT);
		}
		less = tight;
		if (n) {
			less.max_samples--;
			assert_int_equal(compare_limited(body, &less), ORACLE_LIMIT);
		}
		less = tight;
		if (labels) {
			less.max_labels_decode--;
			assert_int_equal(compare_limited(body, &less), ORACLE_LIMIT);
		}
		arena_free(&arena);
		buf_free(&b);
	}
}

static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static struct buf repeated(struct span unit, size_t n, struct span outer)
{
	struct buf b;
	buf_init(&b, 256 * MIB);
	size_t mark = 0;
	if (outer.n)
		mark = pb_begin(&b, (uint32_t)outer.n);
	for (size_t i = 0; i < n; i++)
		buf_span(&b, unit);
	if (outer.n)
		pb_end(&b, mark);
	assert_false(b.failed);
	return b;
}

static struct buf packed_histograms(size_t n, size_t n_bytes, uint32_t field)
{
	struct buf b;
	buf_init(&b, 256 * MIB);
	size_t series = pb_begin(&b, 1);
	for (size_t i = 0; i < n; i++) {
		size_t h = pb_begin(&b, 4);
		pb_tag(&b, field, 2);
		buf_uvarint(&b, n_bytes);
		assert_true(buf_reserve(&b, n_bytes));
		memset(b.p + b.n, 0, n_bytes);
		b.n += n_bytes;
		pb_end(&b, h);
	}
	pb_end(&b, series);
	assert_false(b.failed);
	return b;
}

/* Bodies of measured peers' bad days: refused as a count passes its limit, with at most 0.1 CPU seconds and 64 MiB, decompression included. */
static void hostile_bodies_cost_little(void **state)
{
	(void)state;
	struct span none = {"", 0}, in_series = {"x", 1};
	struct {
		const char *name;
		struct buf body;
		enum errid id;
	} cases[] = {
		{"8.4 M empty series", repeated(SPAN("\x0a\x00"), 8400000, none), ERRID_TOO_MANY_SERIES},
		{"1 M labels in one series",
			repeated(SPAN("\x0a\x06\x0a\x01"
				      "a\x12\x01"
				      "b"),
				1000000, in_series),
			ERRID_TOO_MANY_LABELS},
		{"8 M empty samples in one series", repeated(SPAN("\x12\x00"), 8000000, in_series), ERRID_TOO_MANY_SAMPLES},
		{"4 M series of one empty sample", repeated(SPAN("\x0a\x02\x12\x00"), 4000000, none), ERRID_TOO_MANY_SERIES},
		{"4 M empty histograms", repeated(SPAN("\x22\x00"), 4000000, in_series), ERRID_TOO_MANY_SAMPLES},
		{"4 M empty exemplars", repeated(SPAN("\x1a\x00"), 4000000, in_series), ERRID_TOO_MANY_SAMPLES},
		{"one histogram of 60 M deltas", packed_histograms(1, 60000000, 12), ERRID_TOO_MANY_SAMPLES},
		{"8,000 histograms of 3,000 deltas", packed_histograms(8000, 3000, 9), ERRID_TOO_MANY_SAMPLES},
		{"200,000 histograms of counts that do not count", packed_histograms(200000, 16, 13), ERRID_TOO_MANY_SAMPLES},
		{"6 M empty bucket spans", repeated(SPAN("\x22\x04\x42\x00\x5a\x00"), 3000000, in_series), ERRID_TOO_MANY_SAMPLES},
		{"8 M empty metadata", repeated(SPAN("\x1a\x00"), 8000000, none), ERRID_TOO_MANY_SERIES},
		{"10 M tiny unknown fields", repeated(SPAN("\x58\x01"), 10000000, none), ERRID_NONE},
		{"2 M empty samples in one series", repeated(SPAN("\x12\x00"), 2000000, in_series), ERRID_NONE},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct buf z;
		buf_init(&z, 256 * MIB);
		assert_int_equal(snappy_encode(span_of(cases[i].body.p, cases[i].body.n), &z, NULL), OK);
		buf_free(&cases[i].body);
		struct arena arena;
		arena_init(&arena, GIB);
		struct rw_request r;
		struct err err = {0};
		struct span body;
		double before = cpu_seconds();
		assert_int_equal(snappy_decode(span_of(z.p, z.n), 4 * LIMIT_INGEST_BODY_BYTES, &arena, &body, &err), OK);
		errc rc = rw1_decode(body, &normal, &arena, &r, &err);
		double cpu = cpu_seconds() - before;
		print_message(
			"%s: %zu bytes sent, %.3f CPU s, %zu KiB: %s\n", cases[i].name, z.n, cpu, arena.held_bytes / 1024, rc ? err.msg : "taken");
		if (cases[i].id == ERRID_NONE) {
			assert_int_equal(rc, OK);
		} else {
			assert_int_equal(rc, ERR_LIMIT);
			assert_string_equal(err.id, errid_text(cases[i].id));
		}
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
		assert_true(cpu < 0.1);
#endif
		assert_true(arena.held_bytes <= 64 * MIB);
		arena_free(&arena);
		buf_free(&z);
	}
}

/* An arena that ends anywhere gives ERR_NOMEM or success, nothing else. */
static void short_of_memory(void **state)
{
	(void)state;
	struct rng g = {new_seed()};
	struct buf b = random_body(&g, true, 40);
	bool passed = false;
	for (size_t max = 0; !passed; max += 64) {
		struct arena arena;
		arena_init(&arena, max);
		struct rw_request r;
		struct err err = {0};
		errc rc = rw1_decode(span_of(b.p, b.n), &normal, &arena, &r, &err);
		assert_true(rc == OK || rc == ERR_NOMEM);
		passed = rc == OK;
		arena_free(&arena);
	}
	buf_free(&b);
}

/* Not a test of speed, a number to look at: VARVE_FULL=1. */
static void speed(void **state)
{
	(void)state;
	if (!getenv("VARVE_FULL"))
		return;
	enum { SERIES = 2000, LABELS = 10, ROUNDS = 2000 };
	struct buf b;
	buf_init(&b, 64 * MIB);
	for (int i = 0; i < SERIES; i++) {
		size_t s = pb_begin(&b, 1);
		for (int k = 0; k < LABELS; k++) {
			char name[32], value[32];
			snprintf(name, sizeof name, "label_%02d", k);
			snprintf(value, sizeof value, "value-%d-%016d", k, k ? k : i);
			size_t l = pb_begin(&b, 1);
			pb_bytes(&b, 1, span_cstr(name));
			pb_bytes(&b, 2, span_cstr(value));
			pb_end(&b, l);
		}
		size_t l = pb_begin(&b, 2);
		pb_double_bits(&b, 1, f64_bits(i));
		pb_uint(&b, 2, 1700000000000);
		pb_end(&b, l);
		pb_end(&b, s);
	}
	struct arena arena;
	arena_init(&arena, 64 * MIB);
	struct rw_request r;
	double before = cpu_seconds();
	for (int i = 0; i < ROUNDS; i++) {
		arena_reset(&arena);
		assert_int_equal(rw1_decode(span_of(b.p, b.n), &normal, &arena, &r, NULL), OK);
	}
	print_message("%zu bytes a series: %.1f ns a series\n", b.n / SERIES, (cpu_seconds() - before) * 1e9 / SERIES / ROUNDS);
	arena_free(&arena);
	buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden),
		cmocka_unit_test(an_empty_body_is_an_empty_request),
		cmocka_unit_test(scattered_labels_are_gathered),
		cmocka_unit_test(a_histogram_in_full),
		cmocka_unit_test(refusals_say_where),
		cmocka_unit_test(plain_bodies_agree),
		cmocka_unit_test(every_spelling_agrees),
		cmocka_unit_test(every_truncation_agrees),
		cmocka_unit_test(every_flipped_byte_agrees),
		cmocka_unit_test(limits_are_exact),
		cmocka_unit_test(hostile_bodies_cost_little),
		cmocka_unit_test(short_of_memory),
		cmocka_unit_test(speed),
	};
	return cmocka_run_group_tests_name("remote write 1.0", tests, NULL, NULL);
}
