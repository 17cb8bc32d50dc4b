/* Chunks of every encoding: golden vectors, every truncation, and what is not read says so. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "base/limits.h"
#include "block/block_chunk.h"

static size_t unhex(const char *hex, uint8_t *out)
{
	size_t n = 0;
	for (const char *p = hex; *p;) {
		if (*p == ' ') {
			p++;
			continue;
		}
		unsigned x = 0;
		assert_int_equal(sscanf(p, "%2x", &x), 1);
		out[n++] = (uint8_t)x;
		p += 2;
	}
	return n;
}

struct want_float {
	int64_t t;
	uint64_t v;
};

struct golden {
	const char *hex;
	uint8_t enc;
	size_t n;
	struct want_float want[6];
};

#define F(x) UINT64_C(x)
static const struct golden floats[] = {
	{"0004 d00f 3ff0000000000000 9875309bffd8001c00c0", CHUNK_XOR, 4,
		{{1000, F(0x3ff0000000000000)}, {16000, F(0x3ff0000000000000)}, {31000, F(0x4004000000000000)}, {46001, F(0xc004000000000000)}}},
	{"0005 00 d00f 3ff0000000000000 9875509bffdc001c007f", CHUNK_XOR2, 5,
		{{1000, F(0x3ff0000000000000)}, {16000, F(0x3ff0000000000000)}, {31000, F(0x4004000000000000)}, {46001, F(0xc004000000000000)},
			{61002, STALE_NAN_BITS}}},
	{"0004 83 d00f 3ff0000000000000 e807 9875509bffdc001a0020", CHUNK_XOR2, 4,
		{{1000, F(0x3ff0000000000000)}, {16000, F(0x3ff0000000000000)}, {31000, F(0x4004000000000000)}, {46001, 0}}},
};

static void golden_floats(void **state)
{
	(void)state;
	for (size_t g = 0; g < sizeof floats / sizeof *floats; g++) {
		uint8_t bytes[64];
		size_t n = unhex(floats[g].hex, bytes);
		struct arena a;
		arena_init(&a, MIB);
		struct err err = {0};
		struct chunk_iter *it;
		uint32_t count;
		assert_int_equal(chunk_count(floats[g].enc, span_of(bytes, n), &count, &err), OK);
		assert_int_equal(count, floats[g].n);
		assert_int_equal(chunk_iter_new(floats[g].enc, span_of(bytes, n), &a, &it, &err), OK);
		struct chunk_point p;
		bool more;
		for (size_t i = 0; i < floats[g].n; i++) {
			assert_int_equal(chunk_iter_next(it, &p, &more, &err), OK);
			assert_true(more);
			assert_int_equal(p.kind, SAMPLE_FLOAT);
			assert_int_equal(p.t, floats[g].want[i].t);
			assert_int_equal(p.v, floats[g].want[i].v);
		}
		assert_int_equal(chunk_iter_next(it, &p, &more, &err), OK);
		assert_false(more);
		assert_int_equal(chunk_iter_next(it, &p, &more, &err), OK);
		assert_false(more);
		arena_free(&a);
	}
}

static const char hist_hex[] = "0003 00 ff3f50624dd2f1a9fc 8c6478fa29100000000000000008c7e0ea622c26c005110010";
static const char float_hist_hex[] =
	"0002 00 74465178fa10020000000000000ff800000000000000000000000000000ffc0000000000000ffe0000000000003e0ea63585b09b001c25fff0";
static const char nhcb_hex[] = "0001 00 00ee5c644f8cbdf51feaaaaaaaaaaaaaf8fa263ff000000000000095c0";

static struct chunk_iter *open_hex(const char *hex, uint8_t enc, uint8_t *bytes, struct arena *a)
{
	size_t n = unhex(hex, bytes);
	struct chunk_iter *it;
	assert_int_equal(chunk_iter_new(enc, span_of(bytes, n), a, &it, NULL), OK);
	return it;
}

static void golden_histogram(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	uint8_t bytes[64];
	struct chunk_iter *it = open_hex(hist_hex, CHUNK_HISTOGRAM, bytes, &a);
	struct chunk_point p;
	bool more;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(chunk_iter_next(it, &p, &more, NULL), OK);
		assert_true(more);
		assert_int_equal(p.kind, SAMPLE_HISTOGRAM);
		assert_int_equal(p.t, 1000 + 15000 * i);
		assert_int_equal(p.h->schema, 1);
		assert_true(f64_bits(p.h->zero_threshold) == f64_bits(0.001));
		assert_int_equal(p.h->i_zero_count, 1);
		assert_int_equal(p.h->i_count, 4 + i);
		assert_int_equal(p.h->sum, f64_bits(2.5 * i));
		assert_int_equal(p.h->n_pos_spans, 1);
		assert_int_equal(p.h->pos_spans[0].offset, 0);
		assert_int_equal(p.h->pos_spans[0].length, 2);
		assert_int_equal(p.h->n_pos, 2);
		assert_int_equal(p.h->i_pos[0], 1);
		assert_int_equal(p.h->i_pos[1], 1 + i);
		assert_int_equal(p.h->n_neg, 0);
		assert_int_equal(p.h->reset_hint, i == 0 ? 0 : 2);
	}
	assert_int_equal(chunk_iter_next(it, &p, &more, NULL), OK);
	assert_false(more);
	arena_free(&a);
}

static void golden_float_histogram(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	uint8_t bytes[64];
	struct chunk_iter *it = open_hex(float_hist_hex, CHUNK_FLOAT_HISTOGRAM, bytes, &a);
	struct chunk_point p;
	bool more;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(chunk_iter_next(it, &p, &more, NULL), OK);
		assert_true(more);
		assert_int_equal(p.kind, SAMPLE_FLOAT_HISTOGRAM);
		assert_int_equal(p.t, 1000 + 15000 * i);
		assert_int_equal(p.h->schema, 0);
		assert_true(p.h->zero_threshold == 0x1p-128);
		assert_int_equal(p.h->f_zero_count, f64_bits(0.5));
		assert_int_equal(p.h->f_count, f64_bits(3 + i));
		assert_int_equal(p.h->sum, f64_bits(2.5 * i));
		assert_int_equal(p.h->pos_spans[0].offset, 1);
		assert_int_equal(p.h->pos_spans[0].length, 2);
		assert_int_equal(p.h->n_pos, 2);
		assert_int_equal(p.h->f_pos[0], f64_bits(1 + i));
		assert_int_equal(p.h->f_pos[1], f64_bits(1.5));
	}
	assert_int_equal(chunk_iter_next(it, &p, &more, NULL), OK);
	assert_false(more);
	arena_free(&a);
}

static void golden_custom_buckets(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	uint8_t bytes[64];
	struct chunk_iter *it = open_hex(nhcb_hex, CHUNK_HISTOGRAM, bytes, &a);
	struct chunk_point p;
	bool more;
	assert_int_equal(chunk_iter_next(it, &p, &more, NULL), OK);
	assert_true(more);
	assert_int_equal(p.h->schema, -53);
	assert_int_equal(p.t, 1000);
	assert_int_equal(p.h->i_count, 3);
	assert_int_equal(p.h->sum, f64_bits(1));
	assert_int_equal(p.h->n_custom, 3);
	assert_int_equal(p.h->custom[0], f64_bits(0.1));
	assert_int_equal(p.h->custom[1], f64_bits(0.5));
	assert_int_equal(p.h->custom[2], f64_bits(1.0 / 3));
	assert_int_equal(p.h->n_pos, 2);
	assert_int_equal(p.h->i_pos[0], 2);
	assert_int_equal(p.h->i_pos[1], -1);
	arena_free(&a);
}

/* Any prefix of any golden payload ends in an error or in fewer samples than it has, and never reads behind its end (malloc'ed to size). */
static void every_truncation(void **state)
{
	(void)state;
	const struct {
		const char *hex;
		uint8_t enc;
	} all[] = {{floats[0].hex, CHUNK_XOR}, {floats[1].hex, CHUNK_XOR2}, {floats[2].hex, CHUNK_XOR2}, {hist_hex, CHUNK_HISTOGRAM},
		{float_hist_hex, CHUNK_FLOAT_HISTOGRAM}, {nhcb_hex, CHUNK_HISTOGRAM}};
	for (size_t g = 0; g < sizeof all / sizeof *all; g++) {
		uint8_t bytes[64];
		size_t n = unhex(all[g].hex, bytes);
		for (size_t cut = 0; cut < n; cut++) {
			uint8_t *copy = malloc(cut ? cut : 1);
			assert_non_null(copy);
			memcpy(copy, bytes, cut);
			struct arena a;
			arena_init(&a, MIB);
			struct err err = {0};
			struct chunk_iter *it;
			errc rc = chunk_iter_new(all[g].enc, span_of(copy, cut), &a, &it, &err);
			bool more = true;
			struct chunk_point p;
			uint32_t count = 0;
			while (rc == OK && more) {
				rc = chunk_iter_next(it, &p, &more, &err);
				count += rc == OK && more;
			}
			/* the last byte of a stream may be padding only */
			if (rc == OK)
				assert_int_equal(count, (uint32_t)bytes[0] << 8 | bytes[1]);
			else
				assert_int_equal(rc, ERR_CORRUPT);
			if (cut + 1 < n)
				assert_int_equal(rc, ERR_CORRUPT);
			arena_free(&a);
			free(copy);
		}
	}
}

static void what_is_not_read_says_so(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	for (unsigned enc = 0; enc < 256; enc++) {
		struct chunk_iter *it;
		struct err err = {0};
		uint32_t n;
		errc rc = chunk_iter_new((uint8_t)enc, SPAN("\0\0\0"), &a, &it, &err);
		assert_int_equal(rc, enc >= 1 && enc <= 4 ? OK : ERR_UNSUPPORTED);
		assert_int_equal(chunk_count((uint8_t)enc, SPAN("\0\0\0"), &n, &err), rc);
		if (enc == CHUNK_THANOS_AGGR)
			assert_non_null(strstr(err.msg, "downsampled"));
	}
	arena_free(&a);
}

/* A chunk whose times stand still or go back is damaged, however well it decodes. */
static void time_must_ascend(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	/* two samples, the second at dt = 0, same value */
	uint8_t bytes[] = {0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
	struct chunk_iter *it;
	struct chunk_point p;
	bool more;
	assert_int_equal(chunk_iter_new(CHUNK_XOR, span_of(bytes, sizeof bytes), &a, &it, NULL), OK);
	assert_int_equal(chunk_iter_next(it, &p, &more, NULL), OK);
	assert_int_equal(chunk_iter_next(it, &p, &more, NULL), ERR_CORRUPT);
	arena_free(&a);
}

/* A payload that promises a million buckets is refused before memory is asked for. */
static void promises_do_not_size_memory(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, 64 * KIB);
	/* threshold 0, schema 0, then "11111111" + 64 bits of ones: spans */
	uint8_t bytes[] = {0, 1, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	struct chunk_iter *it;
	struct chunk_point p;
	bool more;
	for (uint8_t enc = CHUNK_HISTOGRAM; enc <= CHUNK_FLOAT_HISTOGRAM; enc++) {
		assert_int_equal(chunk_iter_new(enc, span_of(bytes, sizeof bytes), &a, &it, NULL), OK);
		assert_int_equal(chunk_iter_next(it, &p, &more, NULL), ERR_CORRUPT);
	}
	assert_true(a.used_bytes < 4 * KIB);
	arena_free(&a);
}

static struct span canonical(enum sample_kind kind, const struct histogram *h, struct arena *a)
{
	struct buf b;
	buf_init(&b, MIB);
	histogram_canonical(kind, h, &b);
	assert_false(b.failed);
	struct span s = arena_dup(a, span_of(b.p, b.n));
	buf_free(&b);
	return s;
}

/* The same histogram written with wider spans is the same; one bucket more is not; a stale one loses. */
static void canonical_form(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	/* buckets 0: 1, 3: 2 */
	struct hist_span narrow[] = {{0, 1}, {2, 1}}, wide[] = {{-1, 6}}, neg[] = {{5, 1}};
	int64_t dn[] = {1, 1}, dw[] = {0, 1, -1, 0, 2, -2}, one[] = {1};
	struct histogram x = {.schema = 3, .sum = f64_bits(7), .i_count = 3, .pos_spans = narrow, .n_pos_spans = 2, .i_pos = dn, .n_pos = 2};
	struct histogram y = x;
	y.pos_spans = wide;
	y.n_pos_spans = 1;
	y.i_pos = dw;
	y.n_pos = 6;
	y.reset_hint = 2;
	assert_true(span_eq(canonical(SAMPLE_HISTOGRAM, &x, &a), canonical(SAMPLE_HISTOGRAM, &y, &a)));
	struct histogram z = x;
	z.neg_spans = neg;
	z.n_neg_spans = 1;
	z.i_neg = one;
	z.n_neg = 1;
	assert_false(span_eq(canonical(SAMPLE_HISTOGRAM, &x, &a), canonical(SAMPLE_HISTOGRAM, &z, &a)));
	z = x;
	struct hist_span moved[] = {{1, 1}, {2, 1}};
	z.pos_spans = moved;
	assert_false(span_eq(canonical(SAMPLE_HISTOGRAM, &x, &a), canonical(SAMPLE_HISTOGRAM, &z, &a)));
	struct histogram stale = {.sum = STALE_NAN_BITS};
	assert_true(span_cmp(canonical(SAMPLE_FLOAT_HISTOGRAM, &stale, &a), canonical(SAMPLE_HISTOGRAM, &x, &a)) < 0);
	/* floats: the same counts as doubles are another kind */
	uint64_t fb[] = {f64_bits(1), f64_bits(2)};
	struct histogram f = {
		.schema = 3, .sum = f64_bits(7), .f_count = f64_bits(3), .pos_spans = narrow, .n_pos_spans = 2, .f_pos = fb, .n_pos = 2};
	assert_true(span_cmp(canonical(SAMPLE_FLOAT_HISTOGRAM, &f, &a), canonical(SAMPLE_HISTOGRAM, &x, &a)) > 0);
	arena_free(&a);
}

static void winner_is_free_of_order(void **state)
{
	(void)state;
	const uint64_t v[] = {
		0, 1, f64_bits(1), f64_bits(-1), f64_bits(-0.0), NORMAL_NAN_BITS, STALE_NAN_BITS, UINT64_MAX, UINT64_C(0x7ff0000000000000)};
	size_t n = sizeof v / sizeof *v;
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < n; j++) {
			assert_int_equal(float_winner(v[i], v[j]), -float_winner(v[j], v[i]));
			assert_int_equal(float_winner(v[i], v[j]) == 0, i == j);
			if (i != j && v[j] == STALE_NAN_BITS)
				assert_true(float_winner(v[i], v[j]) > 0);
		}
	assert_true(float_winner(f64_bits(2), f64_bits(1)) > 0);
	assert_true(float_winner(f64_bits(-1), f64_bits(1)) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_floats),
		cmocka_unit_test(golden_histogram),
		cmocka_unit_test(golden_float_histogram),
		cmocka_unit_test(golden_custom_buckets),
		cmocka_unit_test(every_truncation),
		cmocka_unit_test(what_is_not_read_says_so),
		cmocka_unit_test(time_must_ascend),
		cmocka_unit_test(promises_do_not_size_memory),
		cmocka_unit_test(canonical_form),
		cmocka_unit_test(winner_is_free_of_order),
	};
	return cmocka_run_group_tests_name("block_chunk_iter", tests, NULL, NULL);
}
