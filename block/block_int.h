/* block/block_int.h - what the files of block/ share: the bit reader of all chunk encodings, and the XOR stream.
 */
#pragma once
#include "base/bytes.h"
#include "block/block_chunk.h"

/* ---- bits, most significant first ---- */

/* `acc` holds `have` bits at its top; bits below them may be set, they are those that follow in the stream. */
struct bits {
	const uint8_t *p, *end;
	uint64_t acc;
	unsigned have;
	bool ok; /* false for good once more bits were asked than there are; further reads give 0 */
};

static inline struct bits bits_of(const void *p, size_t n)
{
	return (struct bits){.p = (const uint8_t *)p, .end = (const uint8_t *)p + n, .ok = true};
}

/* At least 56 bits, or all that are left. */
static inline void bits_refill(struct bits *b)
{
	if (LIKELY(b->end - b->p >= 8)) {
		b->acc |= get_be64(b->p) >> b->have;
		b->p += (63 - b->have) >> 3;
		b->have |= 56;
		return;
	}
	while (b->have <= 56 && b->p < b->end) {
		b->acc |= (uint64_t)*b->p++ << (56 - b->have);
		b->have += 8;
	}
}

/* Takes n of the bits that are there: 1 <= n <= 56, after a refill. */
static inline uint64_t bits_take(struct bits *b, unsigned n)
{
	if (UNLIKELY(b->have < n)) {
		b->ok = false;
		b->acc = 0;
		b->have = 0;
		b->p = b->end;
		return 0;
	}
	uint64_t x = b->acc >> (64 - n);
	b->acc <<= n;
	b->have -= n;
	return x;
}

/* 0 <= n <= 64 */
static inline uint64_t bits_read(struct bits *b, unsigned n)
{
	if (n == 0)
		return 0;
	bits_refill(b);
	if (LIKELY(n <= 56))
		return bits_take(b, n);
	uint64_t high = bits_take(b, n - 32);
	bits_refill(b);
	return high << 32 | bits_take(b, 32);
}

/* The 1s before the next 0, at most `max`; the 0 is taken, after `max` ones nothing is. max <= 8. */
static inline unsigned bits_ones(struct bits *b, unsigned max)
{
	bits_refill(b);
	unsigned ones = b->acc == UINT64_MAX ? 64 : (unsigned)__builtin_clzll(~b->acc);
	if (ones > max)
		ones = max;
	(void)bits_take(b, ones < max ? ones + 1 : max);
	return ones;
}

/* The range code R(x, n) of the reference: n bits, more room on the plus side. */
static inline int64_t bits_range(uint64_t u, unsigned n)
{
	return u > UINT64_C(1) << (n - 1) ? (int64_t)(u - (UINT64_C(1) << n)) : (int64_t)u;
}

/* A value's window: how many bits at its top and bottom are 0. Readers begin with 0, 0. */
struct xor_window {
	uint8_t leading, trailing;
};

/* The value after `old` (docs/format/block.md, XOR values). A window wider than 64 bits clears ok. */
static inline uint64_t xor_value_read(struct bits *b, struct xor_window *w, uint64_t old)
{
	bits_refill(b);
	if (bits_take(b, 1) == 0)
		return old;
	if (bits_take(b, 1) != 0) {
		unsigned leading = (unsigned)bits_take(b, 5), n = (unsigned)bits_take(b, 6);
		if (n == 0)
			n = 64;
		if (UNLIKELY(leading + n > 64)) {
			b->ok = false;
			return old;
		}
		w->leading = (uint8_t)leading;
		w->trailing = (uint8_t)(64 - leading - n);
	}
	return old ^ bits_read(b, 64u - w->leading - w->trailing) << w->trailing;
}

/* ---- the XOR stream, sample by sample ---- */

struct xor_reader {
	struct bits bits;
	uint32_t n, i; /* samples in the payload, samples read */
	int64_t t;
	uint64_t v;
	uint64_t dt;
	struct xor_window window;
};

/* ERR_CORRUPT when the payload can't hold its count. */
CHECKED errc xor_reader_init(struct xor_reader *r, struct span data, struct err *err);
/* The next sample into r->t, r->v. false: all read (r->i == r->n), or the payload ends too early (r->i < r->n). */
bool xor_reader_next(struct xor_reader *r);

/* ---- histogram chunks being written, for who has a rule of his own where they end (block_hist_append.c) ---- */

struct hist_progress {
	int64_t t; /* of the last sample */
	uint32_t n, n_bytes;
	enum sample_kind kind;
};
struct hist_progress hist_appender_progress(const struct hist_appender *a);
/* Only what its samples demand ends the chunk. */
void hist_appender_by_rule(struct hist_appender *a);
/* The sample begins another chunk, though it may be able to join: the next appender's header is decided by it. */
void hist_appender_refuse(struct hist_appender *a, enum sample_kind kind, const struct histogram *h);
