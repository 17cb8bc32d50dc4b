/* fuzz: needs wal */
/* A frame's payload of any bytes: every decoder over every record, and what decodes as samples is encoded and decoded again, the same. */
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
	if (!wal_samples_open(body, &d) || d.n > 200000)
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
			MUST(wal_samples_open(rec.body, &again));
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
		if (wal_series_open(rec.body, &sd)) {
			while (wal_series_next(&sd, &ref, &wire, &(struct wal_keys){0}, &ok))
				bytes_seen += wire.n;
			MUST(bytes_seen <= rec.body.n);
		}
		samples_check(rec.body);
		histograms_check(rec.body);
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
	return 0;
}
