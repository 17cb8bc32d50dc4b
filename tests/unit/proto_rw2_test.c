/* Remote write 2.0: the in-place decoder reads what protobuf-c reads, refuses what it refuses and references that point nowhere, and hostile bodies
 * cost nothing. One file because all of it stands on one writer of random bodies. */
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
	uint32_t n_symbols; /* references are below, but for a few */
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
	struct writer s = {.g = w->g, .wild = w->wild, .n_symbols = w->n_symbols};
	buf_init(&s.b, 64 * MIB);
	return s;
}

static void end_sub(struct writer *w, uint32_t field, struct writer *s)
{
	put_bytes(w, field, s->b.p, s->b.n);
	buf_free(&s->b);
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
	if (below(w->g, 2))
		pb_uint(&h.b, 17, (uint64_t)some_time(w->g));
	put_unknown(&h);
	end_sub(w, 3, &h);
}

static uint32_t some_ref(struct writer *w)
{
	return (uint32_t)below(w->g, w->n_symbols);
}

/* Packed, or one a field, or both. */
static void put_refs(struct writer *w, uint64_t n)
{
	bool more = true;
	while (more) {
		struct writer a = sub(w);
		uint64_t some = w->wild && below(w->g, 4) == 0 ? below(w->g, n + 1) : n;
		bool packed = !w->wild || below(w->g, 4);
		for (uint64_t i = 0; i < some; i++)
			if (packed)
				put_varint_wild(&a, some_ref(w));
			else
				pb_uint(&w->b, 1, some_ref(w));
		if (packed)
			end_sub(w, 1, &a);
		else
			buf_free(&a.b);
		n -= some;
		more = n > 0;
	}
}

static void put_labels(struct writer *w)
{
	put_refs(w, 2 * below(w->g, 13));
}

static void put_sample(struct writer *w)
{
	struct writer s = sub(w);
	int64_t t = some_time(w->g);
	uint64_t v = below(w->g, 3) ? rnd(w->g) : 0;
	bool swap = w->wild && below(w->g, 4) == 0;
	put_unknown(&s);
	if (!swap && v)
		pb_double_bits(&s.b, 1, v);
	if (below(w->g, 10)) {
		put_varint_wild(&s, 2 << 3);
		put_varint_wild(&s, (uint64_t)t);
	}
	if (below(w->g, 3) == 0)
		pb_uint(&s.b, 3, (uint64_t)some_time(w->g));
	if (swap)
		pb_double_bits(&s.b, 1, v);
	put_unknown(&s);
	end_sub(w, 2, &s);
}

static void put_exemplar(struct writer *w)
{
	struct writer e = sub(w);
	put_refs(&e, 2 * below(w->g, 3));
	pb_double_bits(&e.b, 2, rnd(w->g));
	pb_uint(&e.b, 3, (uint64_t)some_time(w->g));
	put_unknown(&e);
	end_sub(w, 4, &e);
}

static void put_metadata(struct writer *w)
{
	struct writer m = sub(w);
	if (below(w->g, 3))
		pb_uint(&m.b, 1, w->wild && below(w->g, 8) == 0 ? rnd(w->g) : below(w->g, 8));
	if (below(w->g, 3))
		pb_uint(&m.b, 3, some_ref(w));
	if (below(w->g, 3))
		pb_uint(&m.b, 4, some_ref(w));
	put_unknown(&m);
	end_sub(w, 5, &m);
}

static void put_series(struct writer *w)
{
	struct writer s = sub(w);
	uint64_t n_samples = below(w->g, 10) ? 1 : below(w->g, 4), n_exemplars = below(w->g, 6) ? 0 : 1,
		 n_hists = below(w->g, 8) ? 0 : 1 + below(w->g, 2);
	bool labels = true, metadata = below(w->g, 4);
	if (w->wild && below(w->g, 10) == 0)
		n_samples = 200;
	if (w->wild && below(w->g, 3) == 0) { /* any order */
		while (labels || n_samples + n_exemplars + n_hists) {
			put_unknown(&s);
			switch (below(w->g, 6)) {
			case 0:
				if (labels)
					put_labels(&s);
				labels = false;
				break;
			case 1:
				n_samples = n_samples ? (put_sample(&s), n_samples - 1) : 0;
				break;
			case 2:
				n_exemplars = n_exemplars ? (put_exemplar(&s), n_exemplars - 1) : 0;
				break;
			case 3:
				n_hists = n_hists ? (put_histogram(&s), n_hists - 1) : 0;
				break;
			case 4:
				if (metadata)
					put_metadata(&s);
				metadata = below(w->g, 20) == 0;
				break;
			default:
				pb_uint(&s.b, 6, (uint64_t)some_time(w->g));
			}
		}
	}
	if (labels)
		put_labels(&s);
	for (; n_samples; n_samples--)
		put_sample(&s);
	for (; n_hists; n_hists--)
		put_histogram(&s);
	for (; n_exemplars; n_exemplars--)
		put_exemplar(&s);
	if (metadata)
		put_metadata(&s);
	if (below(w->g, 6) == 0)
		pb_uint(&s.b, 6, (uint64_t)some_time(w->g));
	end_sub(w, 5, &s);
}

static void put_symbol(struct writer *w, uint32_t i)
{
	char text[400];
	size_t n = below(w->g, w->wild && below(w->g, 20) == 0 ? 399 : 30);
	for (size_t k = 0; k < sizeof text; k++)
		text[k] = (char)below(w->g, 256);
	if (i == 0)
		n = 0;
	if (i % 20 == 1) {
		memcpy(text, "__name__", 8);
		n = 8;
	}
	put_bytes(w, 4, text, n);
}

static struct buf random_body(struct rng *g, bool wild, unsigned max_series)
{
	struct writer w = {.g = g, .wild = wild};
	buf_init(&w.b, 64 * MIB);
	uint64_t n = below(g, max_series + 1);
	uint32_t symbols = 0;
	/* 128 and more take two bytes, 16384 and more three */
	w.n_symbols = 2 + (uint32_t)below(g, below(g, 3) == 0 ? 200 : wild && below(g, 60) == 0 ? 20000 : 8);
	while (symbols < w.n_symbols && !(wild && below(g, 20) == 0))
		put_symbol(&w, symbols++);
	for (; n; n--) {
		put_unknown(&w);
		put_series(&w);
		if (wild && symbols < w.n_symbols)
			put_symbol(&w, symbols++);
	}
	while (symbols < w.n_symbols)
		put_symbol(&w, symbols++);
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
	for (size_t i = 0; i < s.n && i < 20000; i++)
		fprintf(stderr, "%02x", (unsigned char)s.p[i]);
	fputc('\n', stderr);
}

static enum oracle_outcome compare_limited(struct span body, const struct rw_limits *limits)
{
	char why[600];
	struct span copy = exact(body);
	enum oracle_outcome o = oracle_write2_compare(copy, limits, why, sizeof why);
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

/* For sweeps over all its bytes, which cost the square of its size: those with tens of thousands of symbols are left to the others. */
static struct buf small_body(struct rng *g, bool wild)
{
	struct buf b = random_body(g, wild, 3);
	for (; b.n >= 4096; b = random_body(g, wild, 3))
		buf_free(&b);
	return b;
}

static void every_truncation_agrees(void **state)
{
	(void)state;
	struct rng g = {new_seed()};
	for (unsigned i = 0; i < rounds(20, 400); i++) {
		struct buf b = small_body(&g, i % 2);
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
		struct buf b = small_body(&g, i % 2);
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

static void put_good(struct buf *b, const char *const *symbols, size_t n)
{
	for (size_t i = 0; i < n; i++)
		pb_bytes(b, 4, span_cstr(symbols[i]));
}

static const char *const words[] = {"", "__name__", "up", "job", "x", "It is up.", "seconds", "trace_id", "abc"};
enum { WORDS = sizeof words / sizeof *words };

static void golden(void **state)
{
	(void)state;
	/* {__name__="up", job="x"} 1.5 at 1700000000000, started at 1699999990000, an exemplar, a gauge */
	struct buf b;
	buf_init(&b, KIB);
	put_good(&b, words, WORDS);
	size_t s = pb_begin(&b, 5);
	pb_bytes(&b, 1, SPAN("\x01\x02\x03\x04"));
	size_t e = pb_begin(&b, 2);
	pb_double_bits(&b, 1, f64_bits(1.5));
	pb_uint(&b, 2, 1700000000000);
	pb_uint(&b, 3, 1699999990000);
	pb_end(&b, e);
	e = pb_begin(&b, 4);
	pb_bytes(&b, 1, SPAN("\x07\x08"));
	pb_double_bits(&b, 2, f64_bits(2.5));
	pb_uint(&b, 3, 1700000000001);
	pb_end(&b, e);
	e = pb_begin(&b, 5);
	pb_uint(&b, 1, 2);
	pb_uint(&b, 3, 5);
	pb_uint(&b, 4, 6);
	pb_end(&b, e);
	pb_uint(&b, 6, 77);
	pb_end(&b, s);
	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw2_decode(span_of(b.p, b.n), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.n_symbols, WORDS);
	assert_int_equal(r.n_series, 1);
	assert_int_equal(r.series[0].n_labels, 2);
	assert_int_equal(r.series[0].refs[3], 4);
	assert_null(r.series[0].wire.p);
	assert_int_equal(r.series[0].wire.n, 8 + 2 + 3 + 1 + 2 * 6);
	assert_int_equal(r.series[0].created, 77);
	assert_int_equal(r.n_samples, 1);
	assert_int_equal(r.samples[0].t, 1700000000000);
	assert_int_equal(r.samples[0].v, f64_bits(1.5));
	assert_int_equal(r.starts[0], 1699999990000);
	assert_int_equal(r.n_exemplars, 1);
	assert_int_equal(r.exemplars[0].n_labels, 1);
	assert_true(span_eq(r.exemplars[0].wire, SPAN("\x0a\x0f\x0a\x08trace_id\x12\x03"
						      "abc")));
	assert_int_equal(r.exemplars[0].t, 1700000000001);
	assert_int_equal(r.n_metadata, 1);
	assert_true(span_is(r.metadata[0].family, "up") && span_is(r.metadata[0].help, "It is up.") && span_is(r.metadata[0].unit, "seconds"));
	assert_int_equal(r.metadata[0].type, METRIC_GAUGE);
	arena_free(&arena);
	buf_free(&b);
}

static void an_empty_body_is_an_empty_request(void **state)
{
	(void)state;
	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw2_decode(SPAN(""), &normal, &arena, &r, NULL), OK);
	/* a 1.0 body has no fields that 2.0 knows */
	assert_int_equal(rw2_decode(SPAN("\x0a\x00"), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.n_series, 0);
	assert_int_equal(rw2_decode(SPAN("\x22\x00\x22\x01"
					 "a"),
				 &normal, &arena, &r, NULL),
		OK);
	assert_int_equal(r.n_series, 0);
	assert_int_equal(r.n_symbols, 2);
	arena_free(&arena);
}

/* A batch of series that are alike says what a family is once. */
static void metadata_is_kept_once_a_family(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, KIB);
	put_good(&b, words, WORDS);
	static const char *const metadata[] = {"\x08\x02\x18\x05", "\x08\x02\x18\x05", "\x08\x01\x18\x05", "", "\x08\x01\x18\x05"};
	for (int i = 0; i < 5; i++) {
		size_t s = pb_begin(&b, 5);
		pb_bytes(&b, 1, i % 2 ? SPAN("\x03\x04\x01\x02") : SPAN("\x01\x02\x03\x04"));
		pb_bytes(&b, 2, SPAN("\x10\x07"));
		pb_bytes(&b, 5, span_cstr(metadata[i]));
		pb_end(&b, s);
	}
	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw2_decode(span_of(b.p, b.n), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.n_series, 5);
	assert_int_equal(r.n_metadata, 2);
	assert_int_equal(r.metadata[0].type, METRIC_GAUGE);
	assert_int_equal(r.metadata[1].type, METRIC_COUNTER);
	arena_free(&arena);
	buf_free(&b);
}

/* Fields of one message that came in parts, as protobuf has it. */
static void metadata_in_parts_adds_up(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, KIB);
	put_good(&b, words, WORDS);
	size_t s = pb_begin(&b, 5);
	pb_bytes(&b, 5, SPAN("\x08\x02\x18\x05"));
	pb_bytes(&b, 1, SPAN("\x01\x02"));
	pb_bytes(&b, 5, SPAN("\x08\x03\x20\x06"));
	pb_end(&b, s);
	struct arena arena;
	arena_init(&arena, MIB);
	struct rw_request r;
	assert_int_equal(rw2_decode(span_of(b.p, b.n), &normal, &arena, &r, NULL), OK);
	assert_int_equal(r.n_metadata, 1);
	assert_int_equal(r.metadata[0].type, METRIC_HISTOGRAM);
	assert_true(span_is(r.metadata[0].help, "It is up.") && span_is(r.metadata[0].unit, "seconds"));
	arena_free(&arena);
	buf_free(&b);
}

static void refusals_say_where(void **state)
{
	(void)state;
#define SYMBOLS                                                                                                                                      \
	"\x22\x00\x22\x01"                                                                                                                           \
	"a"
	static const struct {
		struct span body;
		const char *text;
	} cases[] = {
		{SPAN("\x22\x01"
		      "a"),
			"byte 0 of 3, series 0: the first symbol is not the empty string"},
		{SPAN("\x2a\x02\x0a\x00"), "and no symbols"},
		{SPAN(SYMBOLS "\x2a\x04\x0a\x02\x01\x02"), "byte 10 of 11, series 0: reference 2 of 2 symbols"},
		{SPAN(SYMBOLS "\x2a\x03\x0a\x01\x01"), "odd number of label references"},
		{SPAN(SYMBOLS "\x2a\x05\x22\x03\x0a\x01\x01"), "odd number of label references"},
		{SPAN(SYMBOLS "\x2a\x06\x22\x04\x0a\x02\x01\x05"), "reference 5 of 2 symbols"},
		{SPAN(SYMBOLS "\x2a\x04\x2a\x02\x18\x02"), "reference 2 of 2 symbols"},
		{SPAN(SYMBOLS "\x2a\x04\x2a\x02\x20\x03"), "reference 3 of 2 symbols"},
		{SPAN(SYMBOLS "\x2a\x04\x2a\x02\x1a\x00"), "wrong wire type in metadata"},
		{SPAN(SYMBOLS "\x2a\x02\x32\x00"), "wrong wire type in a series"},
		{SPAN(SYMBOLS "\x2a\x04\x12\x02\x1a\x00"), "wrong wire type in a sample"},
		{SPAN(SYMBOLS "\x2a\x03\x0a\x01\x80"), "cut off"},
		{SPAN(SYMBOLS "\x2a\x05\x0a"), "length beyond the end"},
		{SPAN("\x20\x01"), "wrong wire type in the request"},
	};
#undef SYMBOLS
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct arena arena;
		arena_init(&arena, MIB);
		struct rw_request r;
		struct err err = {0};
		assert_int_equal(rw2_decode(cases[i].body, &normal, &arena, &r, &err), ERR_INVALID);
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
		assert_int_equal(rw2_decode(body, &normal, &arena, &r, NULL), OK);
		uint32_t labels = 0;
		for (size_t k = 0; k < r.n_series; k++)
			labels = r.series[k].n_labels > labels ? r.series[k].n_labels : labels;
		for (size_t k = 0; k < r.n_exemplars; k++)
			labels = r.exemplars[k].n_labels > labels ? r.exemplars[k].n_labels : labels;
		size_t n = r.n_samples > r.n_hists ? r.n_samples : r.n_hists;
		n = r.n_exemplars > n ? r.n_exemplars : n;
		struct rw_limits tight = {(uint32_t)r.n_series, (uint32_t)n, labels};
		assert_int_equal(compare_limited(body, &tight), ORACLE_BOTH_OK);
		struct rw_limits less = tight;
		if (r.n_series) {
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

/* Symbols "" and one of n bytes, then `count` times a series of these bytes. */
static struct buf amplified(size_t n, size_t refs, uint8_t field, size_t count)
{
	struct buf b;
	buf_init(&b, 256 * MIB);
	pb_bytes(&b, 4, SPAN(""));
	pb_tag(&b, 4, 2);
	buf_uvarint(&b, n);
	assert_true(buf_reserve(&b, n));
	memset(b.p + b.n, 'a', n);
	b.n += n;
	for (size_t i = 0; i < count; i++) {
		size_t s = pb_begin(&b, 5), e = 0;
		if (field != 1)
			e = pb_begin(&b, field);
		pb_tag(&b, 1, 2);
		buf_uvarint(&b, refs);
		assert_true(buf_reserve(&b, refs));
		memset(b.p + b.n, 1, refs);
		b.n += refs;
		if (field != 1)
			pb_end(&b, e);
		else
			pb_bytes(&b, 2, SPAN("\x10\x07"));
		pb_end(&b, s);
	}
	assert_false(b.failed);
	return b;
}

/* Refused as a count passes its limit, with at most 0.1 CPU seconds and 64 MiB, decompression included. */
static void hostile_bodies_cost_little(void **state)
{
	(void)state;
	struct span none = {"", 0}, in_series = {"12345", 5};
	struct {
		const char *name;
		struct buf body;
		enum errid id;
	} cases[] = {
		{"10 M empty symbols", repeated(SPAN("\x22\x00"), 10000000, none), ERRID_TOO_MANY_SERIES},
		{"4 M empty series", amplified(1, 0, 1, 4000000), ERRID_TOO_MANY_SERIES},
		{"1 M labels in one series", amplified(1, 2000000, 1, 1), ERRID_TOO_MANY_LABELS},
		{"10,000 series of 1,000 labels", amplified(1, 2000, 1, 10000), ERRID_TOO_MANY_SERIES},
		{"100,000 series of 60 labels of 4 KiB", amplified(4096, 120, 1, 100000), ERRID_DECODED_TOO_LARGE},
		{"100,000 exemplars of 20 labels of 4 KiB", amplified(4096, 40, 4, 100000), ERRID_TOO_MANY_SAMPLES},
		{"8 M empty samples in one series", repeated(SPAN("\x12\x00"), 8000000, in_series), ERRID_PROTOBUF},
		{"10 M tiny unknown fields", repeated(SPAN("\x58\x01"), 10000000, none), ERRID_NONE},
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
		errc rc = rw2_decode(body, &normal, &arena, &r, &err);
		double cpu = cpu_seconds() - before;
		print_message(
			"%s: %zu bytes sent, %.3f CPU s, %zu KiB: %s\n", cases[i].name, z.n, cpu, arena.held_bytes / 1024, rc ? err.msg : "taken");
		if (cases[i].id == ERRID_NONE) {
			assert_int_equal(rc, OK);
		} else {
			assert_int_not_equal(rc, OK);
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
		errc rc = rw2_decode(span_of(b.p, b.n), &normal, &arena, &r, &err);
		assert_true(rc == OK || rc == ERR_NOMEM);
		passed = rc == OK;
		arena_free(&arena);
	}
	buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden),
		cmocka_unit_test(an_empty_body_is_an_empty_request),
		cmocka_unit_test(metadata_is_kept_once_a_family),
		cmocka_unit_test(metadata_in_parts_adds_up),
		cmocka_unit_test(refusals_say_where),
		cmocka_unit_test(plain_bodies_agree),
		cmocka_unit_test(every_spelling_agrees),
		cmocka_unit_test(every_truncation_agrees),
		cmocka_unit_test(every_flipped_byte_agrees),
		cmocka_unit_test(limits_are_exact),
		cmocka_unit_test(hostile_bodies_cost_little),
		cmocka_unit_test(short_of_memory),
	};
	return cmocka_run_group_tests_name("remote write 2.0", tests, NULL, NULL);
}
