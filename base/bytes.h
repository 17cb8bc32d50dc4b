/* base/bytes.h - byte codecs: fixed big- and little-endian, LEB128 varints, and a growing buffer with a limit.
 *
 * uvarint = LEB128, 7 bits a byte, low group first, at most 10 bytes; varint = uvarint of the zigzag. The reader never
 * reads past `end`: after a failure `ok` is false for good and every further read gives 0, so a decoder checks once.
 */
#pragma once
#include "base/err.h"
#include "base/span.h"

struct rd {
	const uint8_t *p;
	const uint8_t *end;
	bool ok;
};

static inline struct rd rd_of(const void *p, size_t n)
{
	return (struct rd){(const uint8_t *)p, (const uint8_t *)p + n, true};
}

static inline size_t rd_left(const struct rd *r)
{
	return (size_t)(r->end - r->p);
}

static inline bool rd_need(struct rd *r, size_t n)
{
	if (LIKELY(rd_left(r) >= n))
		return true;
	r->ok = false;
	r->p = r->end;
	return false;
}

static inline uint32_t get_be32(const void *p)
{
	uint32_t x;
	memcpy(&x, p, 4);
	return __builtin_bswap32(x);
}

static inline uint64_t get_be64(const void *p)
{
	uint64_t x;
	memcpy(&x, p, 8);
	return __builtin_bswap64(x);
}

static inline uint32_t get_le32(const void *p)
{
	uint32_t x;
	memcpy(&x, p, 4);
	return x;
}

static inline uint64_t get_le64(const void *p)
{
	uint64_t x;
	memcpy(&x, p, 8);
	return x;
}

static inline void put_be32(void *p, uint32_t x)
{
	x = __builtin_bswap32(x);
	memcpy(p, &x, 4);
}

static inline void put_be64(void *p, uint64_t x)
{
	x = __builtin_bswap64(x);
	memcpy(p, &x, 8);
}

static inline void put_le32(void *p, uint32_t x)
{
	memcpy(p, &x, 4);
}

static inline void put_le64(void *p, uint64_t x)
{
	memcpy(p, &x, 8);
}

/* memcpy for what is mostly short: texts of up to 32 bytes are copied by pieces that overlap, without a call. */
static inline void copy_short(void *to, const void *from, size_t n)
{
	uint8_t *d = to;
	const uint8_t *s = from;
	if (n > 32) {
		memcpy(d, s, n);
	} else if (n >= 16) {
		memcpy(d, s, 16);
		memcpy(d + n - 16, s + n - 16, 16);
	} else if (n >= 8) {
		memcpy(d, s, 8);
		memcpy(d + n - 8, s + n - 8, 8);
	} else if (n >= 4) {
		memcpy(d, s, 4);
		memcpy(d + n - 4, s + n - 4, 4);
	} else if (n > 0) {
		d[0] = s[0];
		d[n / 2] = s[n / 2];
		d[n - 1] = s[n - 1];
	}
}

static inline uint8_t rd_u8(struct rd *r)
{
	return rd_need(r, 1) ? *r->p++ : 0;
}

static inline uint32_t rd_be32(struct rd *r)
{
	if (!rd_need(r, 4))
		return 0;
	uint32_t x = get_be32(r->p);
	r->p += 4;
	return x;
}

static inline uint64_t rd_be64(struct rd *r)
{
	if (!rd_need(r, 8))
		return 0;
	uint64_t x = get_be64(r->p);
	r->p += 8;
	return x;
}

static inline uint32_t rd_le32(struct rd *r)
{
	if (!rd_need(r, 4))
		return 0;
	uint32_t x = get_le32(r->p);
	r->p += 4;
	return x;
}

static inline uint64_t rd_le64(struct rd *r)
{
	if (!rd_need(r, 8))
		return 0;
	uint64_t x = get_le64(r->p);
	r->p += 8;
	return x;
}

/* n bytes, borrowed from the reader's memory. */
static inline struct span rd_bytes(struct rd *r, uint64_t n)
{
	if (UNLIKELY(n > rd_left(r))) {
		r->ok = false;
		r->p = r->end;
		return (struct span){"", 0};
	}
	struct span s = span_of(r->p, (size_t)n);
	r->p += n;
	return s;
}

uint64_t rd_uvarint_slow(struct rd *r);

static inline uint64_t rd_uvarint(struct rd *r)
{
	if (LIKELY(r->p < r->end && *r->p < 0x80))
		return *r->p++;
	return rd_uvarint_slow(r);
}

static inline int64_t zigzag_decode(uint64_t u)
{
	return (int64_t)(u >> 1) ^ -(int64_t)(u & 1);
}

static inline uint64_t zigzag_encode(int64_t x)
{
	return ((uint64_t)x << 1) ^ (uint64_t)(x >> 63);
}

static inline int64_t rd_varint(struct rd *r)
{
	return zigzag_decode(rd_uvarint(r));
}

/* uvarint length, then that many bytes. */
static inline struct span rd_str(struct rd *r)
{
	uint64_t n = rd_uvarint(r);
	return rd_bytes(r, n);
}

enum { UVARINT_MAX_BYTES = 10 };

static inline size_t uvarint_size(uint64_t x)
{
	size_t n = 1;
	for (; x >= 0x80; x >>= 7)
		n++;
	return n;
}

/* Writes at p (room for UVARINT_MAX_BYTES), returns the byte behind. */
static inline uint8_t *put_uvarint(uint8_t *p, uint64_t x)
{
	for (; x >= 0x80; x >>= 7)
		*p++ = (uint8_t)(x | 0x80);
	*p++ = (uint8_t)x;
	return p;
}

static inline uint8_t *put_varint(uint8_t *p, int64_t x)
{
	return put_uvarint(p, zigzag_encode(x));
}

/* A growing byte buffer, malloc'ed, with its maximum given at birth. After a failed growth `failed` stays true and writes
 * are dropped, so an encoder checks once at the end. Zero-initialise, then buf_init. */
struct buf {
	uint8_t *p;
	size_t n;
	size_t cap;
	size_t max;
	bool failed;
};

void buf_init(struct buf *b, size_t max_bytes);
void buf_free(struct buf *b);
static inline void buf_clear(struct buf *b)
{
	b->n = 0;
	b->failed = false;
}

/* Room for n more bytes at b->p + b->n; false (and failed) when it can't be had. */
bool buf_reserve(struct buf *b, size_t n);
void buf_put(struct buf *b, const void *p, size_t n);
void buf_printf(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);

static inline void buf_span(struct buf *b, struct span s)
{
	buf_put(b, s.p, s.n);
}

static inline void buf_u8(struct buf *b, uint8_t x)
{
	if (LIKELY(buf_reserve(b, 1)))
		b->p[b->n++] = x;
}

static inline void buf_be32(struct buf *b, uint32_t x)
{
	if (LIKELY(buf_reserve(b, 4))) {
		put_be32(b->p + b->n, x);
		b->n += 4;
	}
}

static inline void buf_be64(struct buf *b, uint64_t x)
{
	if (LIKELY(buf_reserve(b, 8))) {
		put_be64(b->p + b->n, x);
		b->n += 8;
	}
}

static inline void buf_uvarint(struct buf *b, uint64_t x)
{
	if (LIKELY(buf_reserve(b, UVARINT_MAX_BYTES)))
		b->n = (size_t)(put_uvarint(b->p + b->n, x) - b->p);
}

static inline void buf_varint(struct buf *b, int64_t x)
{
	buf_uvarint(b, zigzag_encode(x));
}

static inline void buf_str(struct buf *b, struct span s)
{
	buf_uvarint(b, s.n);
	buf_put(b, s.p, s.n);
}

/* CRC-32C (Castagnoli) as Prometheus, SSE 4.2 and iSCSI have it: crc32c(0, "123456789", 9) == 0xe3069283.
 * Chain by passing the previous result. */
uint32_t crc32c(uint32_t crc, const void *p, size_t n);

static inline double f64_of_bits(uint64_t bits)
{
	double d;
	memcpy(&d, &bits, 8);
	return d;
}

static inline uint64_t f64_bits(double d)
{
	uint64_t bits;
	memcpy(&bits, &d, 8);
	return bits;
}

/* Prometheus' staleness marker, and the NaN that it calls ordinary. NaNs are never normalised: compare bits. */
#define STALE_NAN_BITS UINT64_C(0x7ff0000000000002)
#define NORMAL_NAN_BITS UINT64_C(0x7ff8000000000001)
