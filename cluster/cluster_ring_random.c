/* cluster/cluster_ring_random.c - the numbers that shuffle sharding draws by: MD5 (RFC 1321) makes the seed, Go's math/rand the draws.
 *
 * Go's generator is an additive lagged Fibonacci generator, y(k) = y(k-607) + y(k-273) mod 2^64 (Mitchell and Reeds; Knuth, TAOCP 2, 3.2.2). A seed fills its
 * 607 words by a multiplicative generator (48271 x mod 2^31 - 1), and so that near seeds give far streams each word is xored with the state that the
 * generator itself has after 7.8e12 steps from seed 1. Go keeps that state as a table; here it is worked out when it is first needed. The
 * recurrence is linear, so the words after N steps are the first ones times x^N mod (x^607 - x^334 - 1), coefficients mod 2^64: 43 squarings,
 * about ten milliseconds. tests/unit/cluster_ring_random_test.c holds it against Go's own numbers.
 *
 * MD5 is written out because libraries refuse it where policy forbids it as a signature, and here it signs nothing.
 */
#include "cluster/cluster_int.h"

enum { WORDS = GO_RANDOM_WORDS, TAP = 273, FEED = WORDS - TAP };
static const uint64_t cooking_steps = UINT64_C(7800000000000);

/* x(n+1) = 48271 x(n) mod 2^31 - 1, by Schrage's division so that nothing overflows. */
static int32_t seed_next(int32_t x)
{
	x = 48271 * (x % 44488) - 3399 * (x / 44488);
	return x < 0 ? x + INT32_MAX : x;
}

static uint64_t seed_word(int32_t *x, unsigned shift)
{
	uint64_t u = 0;
	for (int i = 2; i >= 0; i--) {
		*x = seed_next(*x);
		u ^= (uint64_t)*x << (shift * (unsigned)i);
	}
	return u;
}

static int32_t seed_start(int64_t seed)
{
	int32_t x = (int32_t)(seed % INT32_MAX);
	if (x < 0)
		x += INT32_MAX;
	if (x == 0)
		x = 89482311;
	for (int i = 0; i < 20; i++)
		x = seed_next(x);
	return x;
}

/* p *= q, modulo x^607 = x^334 + 1. */
static void multiply(uint64_t p[WORDS], const uint64_t q[WORDS])
{
	uint64_t t[2 * WORDS - 1] = {0};
	for (int i = 0; i < WORDS; i++)
		for (int k = 0; k < WORDS; k++)
			t[i + k] += p[i] * q[k];
	for (int i = 2 * WORDS - 2; i >= WORDS; i--) {
		t[i - WORDS] += t[i];
		t[i - WORDS + FEED] += t[i];
	}
	memcpy(p, t, WORDS * sizeof *p);
}

static uint64_t cooked[WORDS];

static void cook(void)
{
	/* The sequence s(0), s(1), ... holds y(-606) first; y(k) stands in word 334 - k of the state, modulo 607. */
	uint64_t vec[WORDS], s[2 * WORDS];
	int32_t x = seed_start(1);
	for (int i = 0; i < WORDS; i++)
		vec[i] = seed_word(&x, 10);
	for (int i = 0; i < WORDS; i++)
		s[i] = vec[(FEED - (i - (WORDS - 1)) + WORDS) % WORDS];
	for (int i = WORDS; i < 2 * WORDS; i++)
		s[i] = s[i - WORDS] + s[i - TAP];
	uint64_t p[WORDS] = {1}, one[WORDS] = {0, 1};
	for (int bit = 63 - __builtin_clzll(cooking_steps); bit >= 0; bit--) {
		uint64_t square[WORDS];
		memcpy(square, p, sizeof p);
		multiply(p, square);
		if (cooking_steps >> bit & 1)
			multiply(p, one);
	}
	for (int j = 0; j < WORDS; j++) {
		uint64_t y = 0;
		for (int i = 0; i < WORDS; i++)
			y += p[i] * s[i + j];
		int64_t k = (int64_t)cooking_steps - (WORDS - 1) + j, word = (FEED - k) % WORDS;
		cooked[word < 0 ? word + WORDS : word] = y;
	}
}

void go_random_seed(struct go_random *r, int64_t seed)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, cook);
	int32_t x = seed_start(seed);
	r->tap = 0;
	r->feed = FEED;
	for (int i = 0; i < WORDS; i++)
		r->v[i] = seed_word(&x, 20) ^ cooked[i];
}

uint64_t go_random_u64(struct go_random *r)
{
	r->tap = (r->tap ? r->tap : WORDS) - 1;
	r->feed = (r->feed ? r->feed : WORDS) - 1;
	return r->v[r->feed] += r->v[r->tap];
}

/* ---- MD5 ---- */

static void md5_block(uint32_t h[4], const uint8_t *p)
{
	/* floor(2^32 |sin(i + 1)|) */
	static const uint32_t sines[64] = {0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501, 0x698098d8,
		0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa,
		0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8, 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9,
		0x8d2a4c8a, 0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70, 0x289b7ec6, 0xeaa127fa,
		0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665, 0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3,
		0x8f0ccc92, 0xffeff47d, 0x85845dd1, 0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};
	static const uint8_t turns[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
	uint32_t a = h[0], b = h[1], c = h[2], d = h[3];
	for (unsigned i = 0; i < 64; i++) {
		unsigned round = i >> 4, word = round == 0 ? i : round == 1 ? 5 * i + 1 : round == 2 ? 3 * i + 5 : 7 * i, turn = turns[round][i & 3];
		uint32_t f = round == 0 ? (b & c) | (~b & d) : round == 1 ? (d & b) | (~d & c) : round == 2 ? b ^ c ^ d : c ^ (b | ~d);
		uint32_t x = a + f + sines[i] + get_le32(p + 4 * (word & 15));
		a = d;
		d = c;
		c = b;
		b += x << turn | x >> (32 - turn);
	}
	h[0] += a;
	h[1] += b;
	h[2] += c;
	h[3] += d;
}

void md5(struct span s, uint8_t out[16])
{
	uint32_t h[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
	uint8_t tail[128] = {0};
	size_t whole = s.n & ~(size_t)63, left = s.n - whole, n = left < 56 ? 64 : 128;
	for (size_t i = 0; i < whole; i += 64)
		md5_block(h, (const uint8_t *)s.p + i);
	if (left > 0)
		memcpy(tail, s.p + whole, left);
	tail[left] = 0x80;
	put_le64(tail + n - 8, (uint64_t)s.n * 8);
	for (size_t i = 0; i < n; i += 64)
		md5_block(h, tail + i);
	for (int i = 0; i < 4; i++)
		put_le32(out + 4 * i, h[i]);
}

int64_t ring_shard_seed(struct span tenant, struct span zone)
{
	char text[2 * LIMIT_RING_NAME_BYTES + 1];
	uint8_t sum[16];
	size_t n = tenant.n;
	ASSERT(tenant.n <= LIMIT_RING_NAME_BYTES && zone.n <= LIMIT_RING_NAME_BYTES);
	memcpy(text, tenant.p, n);
	if (zone.n > 0) {
		text[n++] = 0;
		memcpy(text + n, zone.p, zone.n);
		n += zone.n;
	}
	md5(span_of(text, n), sum);
	return (int64_t)get_be64(sum);
}
