/* block/block_chunk_iter.c - samples out of a chunk of any encoding; XOR2 (encoding 4), which is only read, has its bits here.
 *
 *   offset  size  field
 *        0     2  count      u16 BE, samples
 *        2     1  header     bit 7: sample 0 has a start timestamp; bits 6-0: first sample whose start timestamp differs, 0 = none
 *        3     -  sample 0   varint t, 64 bits value, [varint t - start]
 *        -     -  sample 1   uvarint t1 - t0, VAL, [START]
 *        -     -  sample k   0: no second difference of t, value is the base      10: none, then WINDOW      11111: none, stale
 *                            110 + 13, 1110 + 20, 11110 + 64 bits of it in two's complement, then VAL; [START]
 *
 *   base     the last value that was no staleness marker, 0 at the start
 *   VAL      0: the base     10: bits in the last window     110: 5 bits leading, 6 bits length (64 is 0), bits     111: stale
 *   WINDOW   0: bits in the last window     1: 5 bits leading, 6 bits length, bits
 *   START    from the header's sample on, a VBI each; start timestamps are skipped
 *
 * Times of a chunk ascend strictly; a payload where they do not is damaged. Source: Prometheus tsdb/chunkenc/{xor,xor2}.go.
 */
#include "block/block_read_int.h"

enum { XOR2_HEADER_BYTES = 3 };

struct xor2_reader {
	struct bits bits;
	uint32_t n, i;
	uint32_t start_from; /* 0: no sample but the first carries a start timestamp */
	bool first_has_start;
	int64_t t;
	uint64_t v, base, dt;
	struct xor_window window;
};

struct chunk_iter {
	uint8_t enc;
	bool any;
	int64_t last_t;
	size_t payload_bytes;
	union {
		struct xor_reader xor ;
		struct xor2_reader xor2;
		struct hist_reader hist;
	};
};

static errc xor2_init(struct xor2_reader *r, struct span data, struct err *err)
{
	*r = (struct xor2_reader){.n = 0};
	if (data.n < XOR2_HEADER_BYTES)
		return err_set(err, ERR_CORRUPT, "XOR2 chunk of %zu bytes, its header needs %d", data.n, XOR2_HEADER_BYTES);
	const uint8_t *p = (const uint8_t *)data.p;
	r->n = (uint32_t)p[0] << 8 | p[1];
	r->first_has_start = p[2] >> 7;
	r->start_from = p[2] & 0x7f;
	r->bits = bits_of(p + XOR2_HEADER_BYTES, data.n - XOR2_HEADER_BYTES);
	return OK;
}

static void xor2_value_new_window(struct xor2_reader *r)
{
	unsigned leading = (unsigned)bits_read(&r->bits, 5), n = (unsigned)bits_read(&r->bits, 6);
	if (n == 0)
		n = 64;
	if (leading + n > 64) {
		r->bits.ok = false;
		return;
	}
	r->window = (struct xor_window){(uint8_t)leading, (uint8_t)(64 - leading - n)};
	r->v = r->base ^= bits_read(&r->bits, n) << r->window.trailing;
}

static void xor2_value_same_window(struct xor2_reader *r)
{
	r->v = r->base ^= bits_read(&r->bits, 64u - r->window.leading - r->window.trailing) << r->window.trailing;
}

static void xor2_value(struct xor2_reader *r)
{
	switch (bits_ones(&r->bits, 3)) {
	case 0:
		r->v = r->base;
		break;
	case 1:
		xor2_value_same_window(r);
		break;
	case 2:
		xor2_value_new_window(r);
		break;
	default:
		r->v = STALE_NAN_BITS;
	}
}

static bool xor2_first(struct xor2_reader *r)
{
	struct rd rd = rd_of(r->bits.p, (size_t)(r->bits.end - r->bits.p));
	if (r->i == 0) {
		r->t = rd_varint(&rd);
		r->v = rd_be64(&rd);
		if (r->first_has_start)
			(void)rd_varint(&rd);
		r->base = r->v == STALE_NAN_BITS ? 0 : r->v;
	} else {
		r->dt = rd_uvarint(&rd);
		r->t = (int64_t)((uint64_t)r->t + r->dt);
	}
	r->bits.p = rd.p;
	r->bits.ok = rd.ok;
	if (r->i == 1 && rd.ok)
		xor2_value(r);
	return r->bits.ok;
}

static void xor2_later(struct xor2_reader *r)
{
	static const uint8_t width[5] = {0, 0, 13, 20, 64};
	unsigned code = bits_ones(&r->bits, 5), n = code < 5 ? width[code] : 0;
	if (n != 0) {
		uint64_t u = bits_read(&r->bits, n);
		r->dt += n == 64 ? u : (uint64_t)((int64_t)(u << (64 - n)) >> (64 - n));
	}
	r->t = (int64_t)((uint64_t)r->t + r->dt);
	if (code == 0)
		r->v = r->base;
	else if (code == 5)
		r->v = STALE_NAN_BITS;
	else if (code > 1)
		xor2_value(r);
	else if (bits_read(&r->bits, 1) == 0)
		xor2_value_same_window(r);
	else
		xor2_value_new_window(r);
}

static bool xor2_next(struct xor2_reader *r)
{
	if (r->i >= r->n)
		return false;
	if (r->i < 2) {
		if (!xor2_first(r))
			return false;
	} else {
		xor2_later(r);
	}
	if (r->start_from != 0 && r->i >= r->start_from)
		(void)bits_vbi(&r->bits);
	if (!r->bits.ok)
		return false;
	r->i++;
	return true;
}

static errc unsupported(uint8_t enc, struct err *err)
{
	switch (enc) {
	case CHUNK_THANOS_AGGR:
		return err_set(err, ERR_UNSUPPORTED, "a downsampled chunk (Thanos' aggregates, encoding 255): listed, not read");
	case 5:
	case 6:
		return err_set(
			err, ERR_UNSUPPORTED, "chunk encoding %u (histograms with start timestamps, experimental in Prometheus) is not read", enc);
	default:
		return err_set(err, ERR_UNSUPPORTED, "chunk encoding %u is not one that this build reads", enc);
	}
}

errc chunk_iter_new(uint8_t enc, struct span data, struct arena *arena, struct chunk_iter **out, struct err *err)
{
	errc rc = OK;
	if (enc < CHUNK_XOR || enc > CHUNK_XOR2)
		return unsupported(enc, err);
	struct chunk_iter *it = arena_calloc(arena, 1, sizeof *it);
	CHECK(it, ERR_NOMEM, "chunk iterator");
	it->enc = enc;
	it->payload_bytes = data.n;
	if (enc == CHUNK_XOR)
		TRY(xor_reader_init(&it->xor, data, err));
	else if (enc == CHUNK_XOR2)
		TRY(xor2_init(&it->xor2, data, err));
	else
		TRY(hist_reader_init(&it->hist, enc == CHUNK_FLOAT_HISTOGRAM, data, arena, err));
	*out = it;
fail:
	return rc;
}

errc chunk_iter_next(struct chunk_iter *it, struct chunk_point *p, bool *more, struct err *err)
{
	errc rc = OK;
	*more = false;
	switch (it->enc) {
	case CHUNK_XOR:
		if (!xor_reader_next(&it->xor)) {
			CHECK(it->xor.i == it->xor.n, ERR_CORRUPT, "XOR chunk of %zu bytes ends in sample %u of %u", it->payload_bytes, it->xor.i,
				it->xor.n);
			return OK;
		}
		*p = (struct chunk_point){.t = it->xor.t, .kind = SAMPLE_FLOAT, .v = it->xor.v};
		break;
	case CHUNK_XOR2:
		if (!xor2_next(&it->xor2)) {
			CHECK(it->xor2.i == it->xor2.n, ERR_CORRUPT, "XOR2 chunk of %zu bytes ends in sample %u of %u", it->payload_bytes, it->xor2.i,
				it->xor2.n);
			return OK;
		}
		*p = (struct chunk_point){.t = it->xor2.t, .kind = SAMPLE_FLOAT, .v = it->xor2.v};
		break;
	default:
		if (it->hist.i == it->hist.n)
			return OK;
		TRY(hist_reader_next(&it->hist, err));
		*p = (struct chunk_point){.t = it->hist.t, .kind = it->hist.floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM, .h = &it->hist.h};
	}
	CHECK(!it->any || p->t > it->last_t, ERR_CORRUPT, "a chunk's time goes from %lld to %lld", (long long)it->last_t, (long long)p->t);
	it->any = true;
	it->last_t = p->t;
	*more = true;
fail:
	return rc;
}

errc chunk_count(uint8_t enc, struct span data, uint32_t *n, struct err *err)
{
	if (enc < CHUNK_XOR || enc > CHUNK_XOR2)
		return unsupported(enc, err);
	if (data.n < 2)
		return err_set(err, ERR_CORRUPT, "a chunk of %zu bytes, its count needs 2", data.n);
	*n = (uint32_t)(uint8_t)data.p[0] << 8 | (uint8_t)data.p[1];
	return OK;
}

int float_winner(uint64_t a, uint64_t b)
{
	bool a_stale = a == STALE_NAN_BITS, b_stale = b == STALE_NAN_BITS;
	if (a_stale != b_stale)
		return a_stale ? -1 : 1;
	return (a > b) - (a < b);
}
