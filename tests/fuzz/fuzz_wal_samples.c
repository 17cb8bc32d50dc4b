/* fuzz: needs wal */
/* Columnar samples records, both ways: any bytes as a body, held against a reader that does what docs/format/wal.md says and nothing else; and samples made of the bytes (series
 * that repeat and leap, steady and jumping times, values near their keys and far from them), encoded and read by both.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "wal/wal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x)                                                                                                                                      \
	do {                                                                                                                                         \
		if (!(x)) {                                                                                                                          \
			fprintf(stderr, "%d: %s\n", __LINE__, #x);                                                                                   \
			abort();                                                                                                                     \
		}                                                                                                                                    \
	} while (0)

enum { MOST = 4096, BLOCK = 128, NUMBERS = 32 };

/* Two keys of every series. */
static uint64_t key_of(uint64_t ref, unsigned no)
{
	static const double some[NUMBERS] = {
		0, 1, -1, 2, 1e3, 1e6, 123456789, 0x1p53, -0x1p53, 0x1p52, 0.5, 0.1, 1.0 / 3, 1e-300, 1e300, -0.0, 17, 255, 256, 65536, -7};
	unsigned i = (unsigned)(ref * 2 + no) % NUMBERS;
	return i == NUMBERS - 1 ? UINT64_C(0x7ff0000000000002) : i == NUMBERS - 2 ? UINT64_MAX : f64_bits(some[i]);
}

/* ---- the other reader ---- */

struct model {
	struct wal_window w;
	size_t n, good; /* samples, and how many of them have a ref and a time */
	bool columns_end;
	uint64_t *ref;
	int64_t *t;
	struct rd values;
};

static bool model_open(struct model *m, struct span body)
{
	struct rd r = rd_of(body.p, body.n);
	*m = (struct model){.n = rd_uvarint(&r)};
	m->w.tenant = rd_str(&r);
	(void)rd_bytes(&r, 16);
	m->w.start_ms = rd_varint(&r);
	uint64_t range = rd_uvarint(&r), ref_bytes = rd_uvarint(&r), time_bytes = rd_uvarint(&r);
	m->w.range_ms = (int64_t)range;
	struct span refs = rd_bytes(&r, ref_bytes), times = rd_bytes(&r, time_bytes);
	if (!r.ok || range > INT64_MAX || m->n / 2 > rd_left(&r))
		return false;
	m->values = r;
	m->ref = calloc(m->n + 1, sizeof *m->ref);
	m->t = calloc(m->n + 1, sizeof *m->t);
	MUST(m->ref && m->t);
	struct rd c = rd_of(refs.p, refs.n);
	size_t n_refs = 0, n_times = 0;
	uint64_t last = (uint64_t)-1;
	bool whole_runs = true;
	while (n_refs < m->n) {
		uint64_t first = last + 1 + (uint64_t)rd_varint(&c), run = rd_uvarint(&c);
		if (!c.ok)
			break;
		for (uint64_t k = 0; k <= run >> 1; k++) {
			if (n_refs == m->n) {
				whole_runs = false;
				break;
			}
			last = first + (run & 1) * k;
			m->ref[n_refs++] = last;
		}
	}
	m->columns_end = whole_runs && c.p == c.end;
	c = rd_of(times.p, times.n);
	last = 0;
	whole_runs = true;
	while (n_times < m->n) {
		uint64_t first = last + (uint64_t)rd_varint(&c), more = rd_uvarint(&c), step = more > 0 ? (uint64_t)rd_varint(&c) : 0;
		if (!c.ok)
			break;
		for (uint64_t k = 0; k <= more; k++) {
			if (n_times == m->n) {
				whole_runs = false;
				break;
			}
			last = first + step * k;
			m->t[n_times++] = (int64_t)last;
		}
	}
	m->columns_end = m->columns_end && whole_runs && c.p == c.end;
	m->good = n_refs < n_times ? n_refs : n_times;
	return true;
}

static void model_free(struct model *m)
{
	free(m->ref);
	free(m->t);
}

static bool is_whole(uint64_t bits)
{
	double d = f64_of_bits(bits);
	return fabs(d) < 0x1p53 && trunc(d) == d && bits != f64_bits(-0.0);
}

/* Values of the block that begins at sample `first`. *fits: they are those that were written. False: the bytes end. */
static bool model_values(struct model *m, size_t first, size_t n, uint64_t *v, bool *exact, bool *fits)
{
	struct span codes = rd_bytes(&m->values, (n + 1) / 2);
	uint8_t le[BLOCK * 8];
	*fits = true;
	for (size_t i = 0; i < n && m->values.ok; i++) {
		unsigned code = (uint8_t)codes.p[i / 2] >> (i % 2 * 4) & 15, no = code == 1 || (code >= 8 && code <= 13), bytes = 0;
		bool again = i > 0 && m->ref[first + i] == m->ref[first + i - 1];
		uint64_t base = again ? v[i - 1] : key_of(m->ref[first + i], no), x = 0;
		exact[i] = code >= 14 || (again && exact[i - 1]);
		if (code >= 2)
			bytes = code == 14 ? 8 : code == 15 ? 5 : code <= 7 ? code - 1 : code - 7;
		for (unsigned k = 0; k < bytes; k++)
			x |= (uint64_t)rd_u8(&m->values) << (8 * k);
		if (code == 14) {
			v[i] = x;
		} else if (code == 15) {
			v[i] = x << 24;
		} else if (code < 2) {
			v[i] = base;
		} else {
			*fits = *fits && is_whole(base);
			int64_t d = x & 1 ? -(int64_t)(x >> 1) - 1 : (int64_t)(x >> 1);
			v[i] = is_whole(base) ? f64_bits((double)((int64_t)f64_of_bits(base) + d)) : 0;
		}
		put_le64(le + 8 * i, v[i]);
	}
	uint32_t crc = rd_le32(&m->values);
	*fits = *fits && m->values.ok && crc == crc32c(0, le, n * 8);
	return m->values.ok;
}

/* Reads a body with both; want: what has to be in it, or NULL. */
static void both(struct span body, const struct wal_sample *want, size_t n_want)
{
	static struct wal_samples_dec d;
	struct model m = {0};
	bool opened = wal_samples_open(WAL_SAMPLES, body, &d);
	if (opened && d.n > 1000000)
		return;
	MUST(model_open(&m, body) == opened);
	if (!opened) {
		MUST(!want);
		model_free(&m);
		return;
	}
	MUST(d.n == m.n && span_eq(d.w.tenant, m.w.tenant) && d.w.start_ms == m.w.start_ms && d.w.range_ms == m.w.range_ms);
	MUST(!want || m.n == n_want);
	size_t at = 0;
	bool ok, damaged = false;
	while (!damaged) {
		struct wal_sample s[WAL_BLOCK_SAMPLES];
		uint64_t v[BLOCK];
		bool exact[BLOCK], fits;
		size_t n = wal_samples_block(&d, s, &ok), due = m.n - at < BLOCK ? m.n - at : BLOCK;
		if (due == 0) {
			MUST(n == 0 && ok == (m.columns_end && m.values.p == m.values.end));
			break;
		}
		bool readable = at + due <= m.good && rd_left(&m.values) >= (due + 1) / 2;
		MUST(n == (readable ? due : 0) && ok == readable);
		if (!readable)
			break;
		for (size_t i = 0; i < n; i++) {
			MUST(s[i].ref == m.ref[at + i] && s[i].t == m.t[at + i]);
			s[i].key = key_of(s[i].ref, s[i].key_no);
		}
		bool same = wal_samples_values(&d, s, n, &ok);
		damaged = !model_values(&m, at, n, v, exact, &fits);
		MUST(ok == !damaged);
		if (damaged)
			break;
		MUST(same == fits);
		for (size_t i = 0; i < n; i++) {
			MUST(!fits || (s[i].v == v[i] && s[i].exact == exact[i]));
			MUST(!want || (s[i].ref == want[at + i].ref && s[i].t == want[at + i].t && s[i].v == want[at + i].v));
		}
		MUST(!want || fits);
		at += n;
	}
	MUST(!want || at == n_want);
	model_free(&m);
}

/* ---- samples made of the bytes ---- */

static uint64_t value_made(struct rd *r, unsigned kind, uint64_t key, uint64_t before)
{
	int64_t near = (int8_t)rd_u8(r);
	switch (kind) {
	case 0:
		return key;
	case 1:
		return before;
	case 2:
		return f64_bits(f64_of_bits(key) + (double)near);
	case 3:
		return f64_bits(f64_of_bits(before) + (double)near);
	case 4:
		return f64_bits((double)(near * ((int64_t)1 << (rd_u8(r) % 56))));
	case 5:
		return rd_le64(r) << 24;
	case 6:
		return f64_bits(f64_of_bits(before) + 0.25);
	default:
		return rd_le64(r);
	}
}

static void made(struct rd r)
{
	static struct wal_sample s[MOST];
	size_t n = 0;
	uint64_t ref = rd_le32(&r), before = 0, step = 0;
	int64_t t = (int64_t)rd_le64(&r);
	while (rd_left(&r) >= 2 && n < MOST) {
		uint8_t a = rd_u8(&r), b = rd_u8(&r), copies = (b & 3) == 3 ? rd_u8(&r) : 0;
		for (unsigned k = 0; k <= copies && n < MOST; k++) {
			ref += (a & 3) == 3 ? rd_u8(&r) * UINT64_C(0x100000001) : a & 3;
			step = (a >> 2 & 3) == 0   ? step
			       : (a >> 2 & 3) == 1 ? 15000
			       : (a >> 2 & 3) == 2 ? (uint64_t)(int64_t)(int8_t)rd_u8(&r)
						   : rd_le64(&r);
			t = (int64_t)((uint64_t)t + step);
			unsigned no = b >> 2 & 1;
			s[n] = (struct wal_sample){.ref = ref, .t = t, .key = key_of(ref, no), .key_no = (uint8_t)no};
			s[n].v = value_made(&r, a >> 4 & 7, s[n].key, before);
			before = s[n++].v;
		}
	}
	if (n == 0)
		return;
	struct wal_window w = {.tenant = SPAN("tenant"), .start_ms = t, .range_ms = 7200000};
	struct buf b;
	buf_init(&b, 64 * MIB);
	wal_samples_put(&b, &w, s, n);
	MUST(!b.failed && b.n <= wal_samples_bound(w.tenant.n, n));
	struct rd records = rd_of(b.p, b.n);
	struct wal_record rec;
	bool ok;
	MUST(wal_record_next(&records, &rec, &ok) && rec.kind == WAL_SAMPLES && rd_left(&records) == 0);
	both(rec.body, s, n);
	buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	if (data[0] & 1)
		made(rd_of(data + 1, size - 1));
	else
		both(span_of(data + 1, size - 1), NULL, 0);
	return 0;
}
