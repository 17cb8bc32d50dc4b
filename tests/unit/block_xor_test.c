/* XOR chunks: what is appended is read back bit for bit, in exactly the bytes of an encoder that writes one bit at a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "block/block_int.h"

enum { ROOM = 32 * 1024, MANY = 1200 };

static uint64_t seed = 20230927;

static uint64_t rnd(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed * UINT64_C(0x2545f4914f6cdd1d);
}

/* ---- the slow, obvious encoder ---- */

struct slow {
	uint8_t bytes[ROOM];
	size_t bits;
};

static void slow_bit(struct slow *s, unsigned bit)
{
	if (s->bits % 8 == 0)
		s->bytes[s->bits / 8] = 0;
	s->bytes[s->bits / 8] |= (uint8_t)(bit << (7 - s->bits % 8));
	s->bits++;
}

static void slow_bits(struct slow *s, uint64_t x, int n)
{
	while (n-- > 0)
		slow_bit(s, (unsigned)(x >> n & 1));
}

static void slow_uvarint(struct slow *s, uint64_t x)
{
	for (; x >= 128; x /= 128)
		slow_bits(s, x % 128 + 128, 8);
	slow_bits(s, x, 8);
}

static bool fits(int64_t x, int n)
{
	return -((INT64_C(1) << (n - 1)) - 1) <= x && x <= INT64_C(1) << (n - 1);
}

static size_t slow_encode(struct slow *s, const struct chunk_sample *v, size_t n)
{
	int lead = -1, trail = 0;
	s->bits = 0;
	slow_bits(s, n, 16);
	for (size_t i = 0; i < n; i++) {
		uint64_t dt = i ? (uint64_t)v[i].t - (uint64_t)v[i - 1].t : 0;
		if (i == 0) {
			slow_uvarint(s, v[0].t < 0 ? ~((uint64_t)v[0].t << 1) : (uint64_t)v[0].t << 1);
			slow_bits(s, v[0].v, 64);
			continue;
		}
		if (i == 1) {
			slow_uvarint(s, dt);
		} else {
			uint64_t before = (uint64_t)v[i - 1].t - (uint64_t)v[i - 2].t;
			int64_t dod = (int64_t)(dt - before);
			if (dod == 0) {
				slow_bits(s, 0, 1);
			} else if (fits(dod, 14)) {
				slow_bits(s, 2, 2);
				slow_bits(s, (uint64_t)dod, 14);
			} else if (fits(dod, 17)) {
				slow_bits(s, 6, 3);
				slow_bits(s, (uint64_t)dod, 17);
			} else if (fits(dod, 20)) {
				slow_bits(s, 14, 4);
				slow_bits(s, (uint64_t)dod, 20);
			} else {
				slow_bits(s, 15, 4);
				slow_bits(s, (uint64_t)dod, 64);
			}
		}
		uint64_t x = v[i].v ^ v[i - 1].v;
		if (x == 0) {
			slow_bits(s, 0, 1);
			continue;
		}
		int l = 0, t = 0;
		while (l < 31 && (x >> (63 - l) & 1) == 0)
			l++;
		while ((x >> t & 1) == 0)
			t++;
		if (lead >= 0 && l >= lead && t >= trail) {
			slow_bits(s, 2, 2);
		} else {
			lead = l;
			trail = t;
			slow_bits(s, 3, 2);
			slow_bits(s, (uint64_t)l, 5);
			slow_bits(s, (uint64_t)(64 - l - t), 6);
		}
		slow_bits(s, x >> trail, 64 - lead - trail);
	}
	return (s->bits + 7) / 8;
}

/* ---- one round ---- */

/* Appends into a buffer with a guard behind the promised room, after each append; compares bytes, then reads both ways. */
static void round_trip(const struct chunk_sample *v, size_t n)
{
	static struct slow slow;
	static uint8_t bytes[ROOM];
	struct xor_appender a;
	xor_appender_init(&a);
	for (size_t i = 0; i < n; i++) {
		uint8_t *guard = bytes + a.n_bytes + XOR_APPEND_MAX_BYTES;
		memset(guard, 0xa5, 16);
		xor_append(&a, bytes, v[i].t, v[i].v);
		for (int g = 0; g < 16; g++)
			assert_int_equal(guard[g], 0xa5);
		assert_true(bytes + a.n_bytes <= guard);
	}
	size_t want = slow_encode(&slow, v, n);
	assert_int_equal(a.n_bytes, want);
	assert_int_equal(a.n, n);
	assert_memory_equal(bytes, slow.bytes, want);

	static struct chunk_sample out[MANY];
	size_t got = 0;
	struct err err = {0};
	/* exactly allocated, so that a sanitizer sees a read behind the end */
	uint8_t *exact = malloc(want);
	assert_non_null(exact);
	memcpy(exact, bytes, want);
	struct span data = span_of(exact, want);
	assert_int_equal(xor_decode(data, out, MANY, &got, &err), OK);
	assert_int_equal(got, n);
	struct xor_reader r;
	assert_int_equal(xor_reader_init(&r, data, &err), OK);
	for (size_t i = 0; i < n; i++) {
		assert_true(out[i].t == v[i].t && out[i].v == v[i].v);
		assert_true(xor_reader_next(&r));
		assert_true(r.t == v[i].t && r.v == v[i].v);
	}
	assert_false(xor_reader_next(&r));
	if (n > 0)
		assert_int_equal(xor_decode(data, out, n - 1, &got, &err), ERR_LIMIT);
	free(exact);
}

static void golden_vector(void **state)
{
	(void)state;
	static const uint8_t want[] = {
		0x00, 0x04, 0xd0, 0x0f, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0x98, 0x75, 0x30, 0x9b, 0xff, 0xd8, 0x00, 0x1c, 0x00, 0xc0};
	struct chunk_sample v[] = {{1000, f64_bits(1.0)}, {16000, f64_bits(1.0)}, {31000, f64_bits(2.5)}, {46001, f64_bits(-2.5)}};
	uint8_t bytes[128];
	struct xor_appender a;
	xor_appender_init(&a);
	for (int i = 0; i < 4; i++)
		xor_append(&a, bytes, v[i].t, v[i].v);
	assert_int_equal(a.n_bytes, sizeof want);
	assert_memory_equal(bytes, want, sizeof want);
	round_trip(v, 4);
}

static const uint64_t nasty[] = {0, UINT64_C(0x8000000000000000), 1, UINT64_C(0x8000000000000001), UINT64_C(0x000fffffffffffff),
	UINT64_C(0x0010000000000000), UINT64_C(0x3ff0000000000000), UINT64_C(0x3ff0000000000001), UINT64_C(0xbff0000000000000),
	UINT64_C(0x7fefffffffffffff), UINT64_C(0x7ff0000000000000), UINT64_C(0xfff0000000000000), STALE_NAN_BITS, NORMAL_NAN_BITS,
	UINT64_C(0x7ff8000000000000), UINT64_C(0xffffffffffffffff), UINT64_C(0x7ff4dead0000beef), UINT64_C(0xaaaaaaaaaaaaaaaa),
	UINT64_C(0x5555555555555555), UINT64_C(0x00000000ffffffff), UINT64_C(0xffffffff00000000)};
enum { N_NASTY = sizeof nasty / sizeof *nasty };

/* Every ordered triple of nasty values, each in a chunk with regular time. */
static void nasty_values(void **state)
{
	(void)state;
	for (int a = 0; a < N_NASTY; a++)
		for (int b = 0; b < N_NASTY; b++)
			for (int c = 0; c < N_NASTY; c++)
				round_trip((struct chunk_sample[]){{0, nasty[a]}, {15000, nasty[b]}, {30000, nasty[c]}, {45000, nasty[a]}}, 4);
}

/* Each border of the time codes, from three below to three above, with a short, a full and an equal value behind it. */
static void time_borders(void **state)
{
	(void)state;
	static const int64_t border[] = {0, -8191, 8192, -65535, 65536, -524287, 524288, INT32_MIN, INT32_MAX, INT64_MIN / 2, INT64_MAX / 2};
	for (size_t i = 0; i < sizeof border / sizeof *border; i++)
		for (int64_t off = -3; off <= 3; off++)
			for (int a = 0; a < N_NASTY; a++) {
				uint64_t step = UINT64_C(1) << 20, t = 5000;
				struct chunk_sample v[6];
				for (int k = 0; k < 6; k++) {
					v[k] = (struct chunk_sample){(int64_t)t, nasty[(a * (k + 1)) % N_NASTY]};
					t += step;
					if (k > 0)
						step += (uint64_t)(border[i] + off);
				}
				round_trip(v, 6);
			}
}

/* The ends of int64: first samples, differences that wrap. */
static void time_extremes(void **state)
{
	(void)state;
	static const int64_t at[] = {INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX};
	enum { N = sizeof at / sizeof *at };
	for (int a = 0; a < N; a++) {
		round_trip((struct chunk_sample[]){{at[a], nasty[a]}}, 1);
		for (int b = 0; b < N; b++)
			for (int c = 0; c < N; c++)
				round_trip((struct chunk_sample[]){{at[a], nasty[a]}, {at[b], nasty[b]}, {at[c], nasty[c]}, {at[a], nasty[15]}}, 4);
	}
}

/* Random chunks of several kinds of series, up to MANY samples. */
static void random_series(void **state)
{
	(void)state;
	printf("seed %llu\n", (unsigned long long)seed);
	static struct chunk_sample v[MANY];
	int rounds = getenv("VARVE_FULL") ? 20000 : 600;
	for (int round = 0; round < rounds; round++) {
		size_t n = 1 + rnd() % 250;
		if (round % 50 == 0)
			n = MANY;
		uint64_t t = rnd() >> 20, kind = rnd() % 6, time_kind = rnd() % 4;
		double f = (double)(rnd() % 1000);
		for (size_t i = 0; i < n; i++) {
			switch (kind) {
			case 0:
				f += (double)(rnd() % 50);
				break;
			case 1:
				f += (double)rnd() / 1e19 - 0.5;
				break;
			case 2:
				f = f64_of_bits(rnd());
				break;
			case 3:
				f = f64_of_bits(nasty[rnd() % N_NASTY]);
				break;
			case 4:
				f = f64_of_bits((rnd() & rnd() & rnd()) << rnd() % 64 >> rnd() % 64);
				break;
			default:
				break;
			}
			v[i] = (struct chunk_sample){(int64_t)t, f64_bits(f)};
			t += 15000;
			if (time_kind == 1)
				t += rnd() % 20;
			else if (time_kind == 2)
				t += rnd() >> (20 + rnd() % 44);
			else if (time_kind == 3)
				t += rnd();
		}
		round_trip(v, n);
	}
}

/* Each prefix of a payload is ERR_CORRUPT, each flipped bit gives an answer or ERR_CORRUPT; no read behind the end (sanitizers). */
static void damage(void **state)
{
	(void)state;
	struct chunk_sample v[60], out[65535];
	uint8_t bytes[60 * XOR_APPEND_MAX_BYTES + XOR_APPEND_MAX_BYTES];
	struct xor_appender a;
	xor_appender_init(&a);
	for (int i = 0; i < 60; i++) {
		v[i] = (struct chunk_sample){(int64_t)(1000 * i + (int64_t)(rnd() % 7 * 9000)), i % 3 ? rnd() : nasty[i % N_NASTY]};
		xor_append(&a, bytes, v[i].t, v[i].v);
	}
	struct err err = {0};
	size_t n;
	for (size_t len = 0; len < a.n_bytes; len++) {
		uint8_t *exact = malloc(len ? len : 1);
		assert_non_null(exact);
		memcpy(exact, bytes, len);
		assert_int_equal(xor_decode(span_of(exact, len), out, 65535, &n, &err), ERR_CORRUPT);
		free(exact);
	}
	for (size_t bit = 0; bit < 8 * (size_t)a.n_bytes; bit++) {
		uint8_t *exact = malloc(a.n_bytes);
		assert_non_null(exact);
		memcpy(exact, bytes, a.n_bytes);
		exact[bit / 8] ^= (uint8_t)(1 << bit % 8);
		errc rc = xor_decode(span_of(exact, a.n_bytes), out, 65535, &n, &err);
		assert_true(rc == OK || rc == ERR_CORRUPT);
		free(exact);
	}
	/* one byte more is ignored, as older writers leave it */
	bytes[a.n_bytes] = 0;
	assert_int_equal(xor_decode(span_of(bytes, a.n_bytes + 1), out, 65535, &n, &err), OK);
	assert_int_equal(n, 60);
}

/* VARVE_FULL: how long an append and a read take; the aim is 20 ns and 10 ns. */
static void speed(void **state)
{
	(void)state;
	if (!getenv("VARVE_FULL"))
		skip();
	enum { N = 120, ROUNDS = 100000 };
	static uint8_t bytes[N * XOR_APPEND_MAX_BYTES + XOR_APPEND_MAX_BYTES];
	struct chunk_sample v[2][N], out[N];
	double gauge = 12.5, counter = 1e6;
	for (int i = 0; i < N; i++) {
		v[0][i] = (struct chunk_sample){1700000000000 + 15000 * i + (int64_t)(rnd() % 5), f64_bits(counter += (double)(rnd() % 100))};
		v[1][i] = (struct chunk_sample){1700000000000 + 15000 * i, f64_bits(gauge += (double)rnd() / 1e19)};
	}
	for (int k = 0; k < 2; k++) {
		struct xor_appender a;
		struct err err;
		size_t n = 0;
		int64_t t0 = io_mono_ns();
		for (int r = 0; r < ROUNDS; r++) {
			xor_appender_init(&a);
			for (int i = 0; i < N; i++)
				xor_append(&a, bytes, v[k][i].t, v[k][i].v);
		}
		int64_t t1 = io_mono_ns();
		for (int r = 0; r < ROUNDS; r++)
			assert_int_equal(xor_decode(span_of(bytes, a.n_bytes), out, N, &n, &err), OK);
		int64_t t2 = io_mono_ns();
		printf("%s: append %.1f ns, decode %.1f ns, %.2f bytes a sample\n", k ? "gauge, all bits" : "counter, jitter",
			(double)(t1 - t0) / N / ROUNDS, (double)(t2 - t1) / N / ROUNDS, (double)a.n_bytes / N);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_vector),
		cmocka_unit_test(nasty_values),
		cmocka_unit_test(time_borders),
		cmocka_unit_test(time_extremes),
		cmocka_unit_test(random_series),
		cmocka_unit_test(damage),
		cmocka_unit_test(speed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
