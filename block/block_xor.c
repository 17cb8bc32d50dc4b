/* block/block_xor.c - XOR float chunks (encoding 1): append, read, decode.
 *
 *   offset  size  field
 *        0     2  count      u16 BE, samples
 *        2     -  sample 0   varint t, 64 bits value
 *        -     -  sample 1   uvarint t1 - t0, XOR value
 *        -     -  sample k   code of dod = (t[k] - t[k-1]) - (t[k-1] - t[k-2]), XOR value
 *
 *   dod           0: 0          -8191..8192: 10 + 14 bits      -65535..65536: 110 + 17      -524287..524288: 1110 + 20      else: 1111 + 64
 *   XOR value     0: as before  10 + bits in the last window   11 + 5 bits leading (at most 31) + 6 bits length (64 is 0) + bits
 *
 * Most significant bit first, the last byte filled up with zeros. All differences wrap modulo 2^64.
 *
 * An append makes two codes, time and value, of at most 68 and 77 bits. The common ones together fit a 64-bit word: one
 * big-endian store over the open byte and the seven behind it. That writes zeros up to 8 bytes past the payload's end, inside
 * the room that the caller grants. Equal to the bit-by-bit encoder in tests/unit/block_xor_test.c.
 *
 * Source: Prometheus tsdb/docs/format/chunks.md; Pelkonen et al., Gorilla, VLDB 2015, section 4.1.
 */
#include "block/block_int.h"

enum { NO_WINDOW = 0xff, STORE_BITS = 57 /* a word less the 7 bits that the open byte may hold */ };

void xor_appender_init(struct xor_appender *a)
{
	*a = (struct xor_appender){.leading = NO_WINDOW};
}

/* The low n bits of x behind the payload; n <= STORE_BITS, bits of x above n are 0. Touches 8 bytes from the open one. */
static inline void bits_store(struct xor_appender *a, uint8_t *bytes, uint64_t x, unsigned n)
{
	unsigned free_bits = a->bits_left;
	uint32_t at = a->n_bytes - (free_bits != 0);
	unsigned used = (8 - free_bits) & 7;
	uint64_t word = used ? (uint64_t)bytes[at] << 56 : 0;
	if (LIKELY(n != 0))
		word |= x << (64 - n) >> used;
	put_be64(bytes + at, word);
	unsigned end = used + n;
	a->n_bytes = at + (end + 7) / 8;
	a->bits_left = (uint8_t)(-end & 7);
}

/* The same a byte at a time: nothing is touched behind the last byte. */
static void bits_store_exact(struct xor_appender *a, uint8_t *bytes, uint64_t x, unsigned n)
{
	while (n > 0) {
		if (a->bits_left == 0) {
			bytes[a->n_bytes++] = 0;
			a->bits_left = 8;
		}
		unsigned take = n < a->bits_left ? n : a->bits_left;
		uint8_t piece = (uint8_t)(x >> (n - take) & ((1u << take) - 1));
		bytes[a->n_bytes - 1] |= (uint8_t)(piece << (a->bits_left - take));
		a->bits_left = (uint8_t)(a->bits_left - take);
		n -= take;
	}
}

/* The codes that one word does not hold: head and tail of a long value (a full one is 64 bits). */
static void bits_store_long(struct xor_appender *a, uint8_t *bytes, uint64_t head, unsigned n_head, uint64_t tail, unsigned n_tail)
{
	bits_store_exact(a, bytes, head, n_head);
	bits_store_exact(a, bytes, tail, n_tail);
}

/* Appends `code` (n_code bits, a time's), then the value's. */
static inline void value_append(struct xor_appender *a, uint8_t *bytes, uint64_t code, unsigned n_code, uint64_t v)
{
	uint64_t d = v ^ a->v;
	if (d == 0) {
		bits_store(a, bytes, code << 1, n_code + 1);
		return;
	}
	unsigned leading = (unsigned)__builtin_clzll(d), trailing = (unsigned)__builtin_ctzll(d);
	if (leading > 31)
		leading = 31;
	unsigned n;
	if (a->leading != NO_WINDOW && leading >= a->leading && trailing >= a->trailing) {
		code = code << 2 | 2;
		n_code += 2;
		n = 64u - a->leading - a->trailing;
		d >>= a->trailing;
	} else {
		a->leading = (uint8_t)leading;
		a->trailing = (uint8_t)trailing;
		n = 64 - leading - trailing;
		code = code << 13 | 3u << 11 | leading << 6 | (n & 63);
		n_code += 13;
		d >>= trailing;
	}
	if (LIKELY(n_code + n <= STORE_BITS)) {
		bits_store(a, bytes, code << n | d, n_code + n);
	} else if (n <= STORE_BITS) {
		/* the second store ends at most 7 + 36 + 7 bits + 8 bytes behind the open byte: inside XOR_APPEND_MAX_BYTES */
		bits_store(a, bytes, code, n_code);
		bits_store(a, bytes, d, n);
	} else {
		bits_store_long(a, bytes, code, n_code, d, n);
	}
}

/* Everything but the count. */
static inline void append(struct xor_appender *a, uint8_t *bytes, int64_t t, uint64_t v)
{
	ASSERT(a->n < UINT16_MAX);
	if (UNLIKELY(a->n < 2)) {
		if (a->n == 0) {
			uint8_t *p = put_varint(bytes + XOR_HEADER_BYTES, t);
			put_be64(p, v);
			a->n_bytes = (uint32_t)(p + 8 - bytes);
		} else {
			a->dt = (int64_t)((uint64_t)t - (uint64_t)a->t);
			a->n_bytes = (uint32_t)(put_uvarint(bytes + a->n_bytes, (uint64_t)a->dt) - bytes);
			value_append(a, bytes, 0, 0, v);
		}
	} else {
		int64_t dt = (int64_t)((uint64_t)t - (uint64_t)a->t);
		uint64_t u = (uint64_t)dt - (uint64_t)a->dt;
		int64_t dod = (int64_t)u;
		a->dt = dt;
		if (LIKELY(dod == 0)) {
			value_append(a, bytes, 0, 1, v);
		} else if (LIKELY(dod >= -8191 && dod <= 8192)) {
			value_append(a, bytes, 2u << 14 | (u & 0x3fff), 16, v);
		} else if (dod >= -65535 && dod <= 65536) {
			value_append(a, bytes, 6u << 17 | (u & 0x1ffff), 20, v);
		} else if (dod >= -524287 && dod <= 524288) {
			value_append(a, bytes, 14u << 20 | (u & 0xfffff), 24, v);
		} else {
			bits_store_long(a, bytes, 15, 4, u, 64);
			value_append(a, bytes, 0, 0, v);
		}
	}
	a->t = t;
	a->v = v;
	a->n++;
}

void xor_append(struct xor_appender *a, uint8_t *bytes, int64_t t, uint64_t v)
{
	append(a, bytes, t, v);
	bytes[0] = (uint8_t)(a->n >> 8);
	bytes[1] = (uint8_t)a->n;
}

void xor_append_tail(struct xor_appender *a, uint8_t *tail, int64_t t, uint64_t v)
{
	/* Where the payload would begin if it were all there: nothing before the tail is touched. */
	append(a, (uint8_t *)((uintptr_t)tail - xor_tail_at(a)), t, v);
}

/* ---- reading ---- */

static const uint8_t DOD_BITS[5] = {0, 14, 17, 20, 64}; /* by the number of ones before them */

errc xor_reader_init(struct xor_reader *r, struct span data, struct err *err)
{
	*r = (struct xor_reader){.bits = bits_of(data.p, 0)};
	if (data.n < XOR_HEADER_BYTES)
		return err_set(err, ERR_CORRUPT, "XOR chunk of %zu bytes, its count needs 2", data.n);
	const uint8_t *p = (const uint8_t *)data.p;
	r->n = (uint32_t)p[0] << 8 | p[1];
	r->bits = bits_of(p + XOR_HEADER_BYTES, data.n - XOR_HEADER_BYTES);
	/* the first sample takes 9 bytes or more, each other one two bits or more */
	uint64_t bits_left = (uint64_t)(data.n - XOR_HEADER_BYTES) * 8;
	if (r->n > 0 && 72 + 2 * (uint64_t)(r->n - 1) > bits_left)
		return err_set(err, ERR_CORRUPT, "XOR chunk of %zu bytes says it holds %u samples", data.n, r->n);
	return OK;
}

/* Samples 0 and 1 begin with whole bytes. */
static bool first_read(struct xor_reader *r)
{
	struct rd rd = rd_of(r->bits.p, (size_t)(r->bits.end - r->bits.p));
	if (r->i == 0) {
		r->t = rd_varint(&rd);
		r->v = rd_be64(&rd);
	} else {
		r->dt = rd_uvarint(&rd);
		r->t = (int64_t)((uint64_t)r->t + r->dt);
	}
	r->bits.p = rd.p;
	if (!rd.ok)
		return false;
	if (r->i == 1)
		r->v = xor_value_read(&r->bits, &r->window, r->v);
	return r->bits.ok;
}

static inline bool next_read(struct xor_reader *r)
{
	if (UNLIKELY(r->i < 2)) {
		if (!first_read(r))
			return false;
	} else {
		unsigned code = bits_ones(&r->bits, 4);
		if (code != 0) {
			unsigned n = DOD_BITS[code];
			uint64_t u = bits_read(&r->bits, n);
			r->dt += n == 64 ? u : (uint64_t)bits_range(u, n);
		}
		r->t = (int64_t)((uint64_t)r->t + r->dt);
		r->v = xor_value_read(&r->bits, &r->window, r->v);
		if (UNLIKELY(!r->bits.ok))
			return false;
	}
	r->i++;
	return true;
}

bool xor_reader_next(struct xor_reader *r)
{
	return r->i < r->n && next_read(r);
}

/* Samples from r->i on while 16 bytes are left, so that no bit needs a check: time code and value control fit one refill (at most
 * 24 + 13 of 56 bits). Stops early at what is rare: a 64-bit time, a damaged window. next_read is the same, slower and for all cases. */
static void decode_fast(struct xor_reader *r, struct chunk_sample *out)
{
	struct bits b = r->bits;
	uint64_t t = (uint64_t)r->t, dt = r->dt, v = r->v;
	unsigned lead = r->window.leading, trail = r->window.trailing;
	uint32_t i = r->i;
	for (; i < r->n && b.end - b.p >= 16; i++) {
		bits_refill(&b);
		uint64_t acc = b.acc;
		unsigned used = 1;
		if (acc >> 63) {
			unsigned ones = (unsigned)__builtin_clzll(~acc | 1);
			if (UNLIKELY(ones >= 4))
				break;
			unsigned n = DOD_BITS[ones];
			dt += (uint64_t)bits_range(acc << (ones + 1) >> (64 - n), n);
			used = ones + 1 + n;
		}
		acc <<= used;
		if (acc >> 63 == 0) {
			b.acc = acc << 1;
			b.have -= used + 1;
		} else {
			if (acc >> 62 == 2) {
				b.acc = acc << 2;
				b.have -= used + 2;
			} else {
				unsigned new_lead = (unsigned)(acc >> 57) & 31, n = (unsigned)(acc >> 51) & 63;
				n = n ? n : 64;
				if (UNLIKELY(new_lead + n > 64))
					break;
				lead = new_lead;
				trail = 64 - new_lead - n;
				b.acc = acc << 13;
				b.have -= used + 13;
			}
			unsigned n = 64 - lead - trail;
			uint64_t x = 0;
			if (n > b.have) {
				/* what is there, then the rest from a fresh word: have is at least 16, so the rest is at most 48 bits */
				unsigned rest = n - b.have;
				x = b.acc >> (64 - b.have) << rest;
				b.acc = 0;
				b.have = 0;
				bits_refill(&b);
				n = rest;
			}
			x |= b.acc >> (64 - n);
			b.acc <<= n;
			b.have -= n;
			v ^= x << trail;
		}
		t += dt;
		out[i] = (struct chunk_sample){(int64_t)t, v};
		r->bits = b;
		r->t = (int64_t)t;
		r->dt = dt;
		r->v = v;
		r->window = (struct xor_window){(uint8_t)lead, (uint8_t)trail};
	}
	r->i = i;
}

errc xor_decode(struct span data, struct chunk_sample *out, size_t cap, size_t *n, struct err *err)
{
	struct xor_reader r;
	errc rc = xor_reader_init(&r, data, err);
	if (rc)
		return rc;
	if (r.n > cap)
		return err_set(err, ERR_LIMIT, "XOR chunk of %u samples, room for %zu", r.n, cap);
	while (r.i < r.n) {
		if (UNLIKELY(!next_read(&r)))
			return err_set(err, ERR_CORRUPT, "XOR chunk of %zu bytes ends in sample %u of %u", data.n, r.i, r.n);
		out[r.i - 1] = (struct chunk_sample){r.t, r.v};
		if (r.i >= 2)
			decode_fast(&r, out);
	}
	*n = r.n;
	return OK;
}
