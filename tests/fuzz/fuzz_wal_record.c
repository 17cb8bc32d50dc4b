/* fuzz: needs wal */
/* A frame's payload of any bytes: every decoder over every record, and what decodes as samples, exemplars or metadata is encoded and decoded again, the
 * same. */
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

static void samples_check(struct span body)
{
	struct wal_samples_dec d;
	if (!wal_samples_open(WAL_SAMPLES, body, &d) || d.n > 200000)
		return;
	MUST(d.n / 2 <= body.n);
	struct wal_sample *s = calloc(d.n + 1, sizeof *s);
	MUST(s);
	size_t n = 0;
	bool ok;
	while (wal_samples_next(&d, &s[n], &ok))
		MUST(++n <= d.n);
	if (ok && n > 0) {
		struct buf b;
		buf_init(&b, 64 * MIB);
		wal_samples_put(&b, &d.w, s, n);
		MUST(!b.failed && b.n <= wal_samples_bound(d.w.tenant.n, n));
		struct rd r = rd_of(b.p, b.n);
		struct wal_record rec;
		size_t i = 0;
		while (wal_record_next(&r, &rec, &ok)) {
			struct wal_samples_dec again;
			struct wal_sample x;
			MUST(wal_samples_open(rec.kind, rec.body, &again));
			while (wal_samples_next(&again, &x, &ok)) {
				MUST(i < n && x.ref == s[i].ref && x.t == s[i].t && x.v == s[i].v);
				i++;
			}
			MUST(ok);
		}
		MUST(i == n);
		buf_free(&b);
	}
	free(s);
}

static void histograms_check(struct span body)
{
	struct wal_histograms_dec d;
	struct wal_histogram h;
	bool ok;
	uint64_t bytes = 0;
	size_t n = 0;
	if (!wal_histograms_open(body, &d))
		return;
	MUST(d.n <= body.n / 4);
	while (wal_histograms_next(&d, &h, &ok)) {
		bytes += h.packed.n;
		MUST(++n <= d.n && bytes <= body.n);
	}
}

static void exemplars_check(struct span body)
{
	struct wal_exemplars_dec d;
	struct span series, first = {NULL, 0};
	struct exemplar x;
	bool ok;
	if (!wal_exemplars_open(body, &d))
		return;
	struct buf b;
	struct wal_exemplars_enc e;
	size_t n = 0, bound = wal_exemplars_bound(d.tenant.n);
	uint32_t place = 0;
	buf_init(&b, 64 * MIB);
	wal_exemplars_begin(&e, &b, d.tenant);
	while (wal_exemplars_next(&d, &series, &x, &ok) && n < 2000 && b.n < MIB) {
		MUST(series.p >= body.p && series.p + series.n <= body.p + body.n);
		MUST(x.wire.p >= body.p && x.wire.p + x.wire.n <= body.p + body.n);
		bool again = first.p == series.p && first.n == series.n;
		bound += wal_exemplar_bound(again ? 0 : series.n, x.wire.n);
		place = wal_exemplars_put(&e, series, again ? place : 0, &x);
		MUST(place > 0);
		first = series;
		n++;
	}
	wal_exemplars_end(&e);
	MUST(!b.failed && b.n <= bound);
	struct rd r = rd_of(b.p, b.n);
	struct wal_record rec;
	struct wal_exemplars_dec was, is;
	MUST(wal_exemplars_open(body, &was));
	if (wal_record_next(&r, &rec, &ok)) {
		struct span other;
		struct exemplar y;
		MUST(rec.kind == WAL_EXEMPLARS && wal_exemplars_open(rec.body, &is) && span_eq(was.tenant, is.tenant));
		size_t i = 0;
		for (; wal_exemplars_next(&is, &other, &y, &ok); i++) {
			bool fine;
			MUST(wal_exemplars_next(&was, &series, &x, &fine));
			MUST(span_eq(series, other) && x.t == y.t && x.v == y.v && span_eq(x.wire, y.wire));
		}
		MUST(ok && i == n);
	} else {
		MUST(n == 0);
	}
	buf_free(&b);
}

static void metadata_check(struct span body)
{
	struct wal_metadata_dec d, again;
	struct metadata m, o;
	bool ok;
	if (!wal_metadata_open(body, &d))
		return;
	struct buf b;
	struct wal_metadata_enc e;
	size_t n = 0, text = 0;
	buf_init(&b, 64 * MIB);
	wal_metadata_begin(&e, &b, d.tenant);
	while (wal_metadata_next(&d, &m, &ok)) {
		MUST((unsigned)m.type < METRIC_TYPES);
		text += m.family.n + m.help.n + m.unit.n;
		wal_metadata_put(&e, &m);
		n++;
	}
	wal_metadata_end(&e);
	MUST(!b.failed && text <= body.n && b.n <= wal_metadata_bound(d.tenant.n, n, text));
	struct rd r = rd_of(b.p, b.n);
	struct wal_record rec;
	if (wal_record_next(&r, &rec, &ok)) {
		MUST(rec.kind == WAL_METADATA && wal_metadata_open(rec.body, &again) && wal_metadata_open(body, &d));
		for (; n > 0; n--) {
			MUST(wal_metadata_next(&d, &m, &ok) && wal_metadata_next(&again, &o, &ok));
			MUST(m.type == o.type && span_eq(m.family, o.family) && span_eq(m.help, o.help) && span_eq(m.unit, o.unit));
		}
	}
	MUST(n == 0);
	buf_free(&b);
}

static void records_check(struct span bytes, int depth)
{
	struct rd r = rd_of(bytes.p, bytes.n);
	struct wal_record rec;
	bool ok;
	while (wal_record_next(&r, &rec, &ok)) {
		struct wal_series_dec sd;
		struct wal_cut cut;
		uint64_t ref, bytes_seen = 0;
		struct span wire;
		if (wal_series_open(rec.kind, rec.body, &sd)) {
			while (wal_series_next(&sd, &ref, &wire, &(struct wal_keys){0}, &ok))
				bytes_seen += wire.n;
			MUST(bytes_seen <= rec.body.n);
		}
		samples_check(rec.body);
		histograms_check(rec.body);
		exemplars_check(rec.body);
		metadata_check(rec.body);
		(void)wal_cut_get(rec.body, &cut);
		if (rec.kind == WAL_GROUP && depth == 0)
			records_check(rec.body, 1);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	records_check(span_of(data, size), 0);
	samples_check(span_of(data, size));
	histograms_check(span_of(data, size));
	exemplars_check(span_of(data, size));
	metadata_check(span_of(data, size));
	return 0;
}
