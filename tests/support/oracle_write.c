#include "tests/support/oracle_write.h"
#include <inttypes.h>
#include <stdio.h>
#include "base/labels.h"
#include "base/limits.h"
#include "proto/proto_int.h"

static void *oracle_alloc(void *data, size_t n)
{
	return arena_alloc(data, n);
}

static void oracle_free(void *data, void *p)
{
	(void)data;
	(void)p;
}

static bool same_series(
	const struct rw_request *got, const struct rw_series *s, const Oracle__TimeSeries *want, struct arena *arena, char *why, size_t size)
{
	struct labels labels;
	if (labels_from_wire(s->wire, UINT32_MAX, arena, &labels, NULL) != OK)
		return true; /* field number 0 or a wide varint inside a label; what it must take, it is shown to take by ORACLE_BOTH_OK */
	if (s->n_labels != want->n_labels || labels.n != want->n_labels)
		return snprintf(why, size, "%" PRIu32 " labels for %zu", s->n_labels, want->n_labels), false;
	for (size_t i = 0; i < want->n_labels; i++) {
		const Oracle__Label *l = want->labels[i];
		if (!span_eq(labels.v[i].name, span_of(l->name.data, l->name.len)) ||
			!span_eq(labels.v[i].value, span_of(l->value.data, l->value.len)))
			return snprintf(why, size, "label %zu differs", i), false;
	}
	if (s->n_samples != want->n_samples)
		return snprintf(why, size, "%" PRIu32 " samples for %zu", s->n_samples, want->n_samples), false;
	for (size_t i = 0; i < want->n_samples; i++) {
		const struct rw_sample *a = &got->samples[s->first_sample + i];
		const Oracle__Sample *b = want->samples[i];
		if (a->t != b->timestamp || a->v != f64_bits(b->value))
			return snprintf(why, size, "sample %zu differs: %" PRId64 " for %" PRId64, i, a->t, (int64_t)b->timestamp), false;
	}
	if (s->n_exemplars != want->n_exemplars || s->n_hists != want->n_histograms)
		return snprintf(why, size, "exemplars or histograms are counted wrongly"), false;
	return true;
}

/* Inside labels, where rw1_decode does not look. */
static bool labels_well_formed(const struct rw_request *got)
{
	for (size_t i = 0; i < got->n_series; i++) {
		struct rd r = rd_of(got->series[i].wire.p, got->series[i].wire.n);
		while (r.p < r.end) {
			struct pb_field f;
			const char *why;
			const void *at;
			if (!pb_next(&r, &f, &why) || pb_check(f.bytes, &pb_shape_label, &at))
				return false;
		}
	}
	return true;
}

/* Anywhere, also in text: good enough to excuse a refusal that names a varint. */
static bool has_wide_varint(struct span body)
{
	size_t run = 0;
	for (size_t i = 0; i < body.n; i++) {
		uint8_t b = (uint8_t)body.p[i];
		if (run >= 9 && b > 1)
			return true;
		run = b >= 0x80 ? run + 1 : 0;
	}
	return false;
}

/* The refusals of rw1_decode that protobuf-c does not share. */
static bool stricter(struct span body, const char *msg)
{
	return strstr(msg, "field number out of range") || (strstr(msg, "above 64 bits") && has_wide_varint(body));
}

enum oracle_outcome oracle_write_compare(struct span body, const struct rw_limits *limits, char *why, size_t why_size)
{
	struct arena ours, theirs;
	arena_init(&ours, 256 * MIB);
	arena_init(&theirs, 1024 * MIB);
	enum oracle_outcome outcome = ORACLE_DIFFER;
	struct rw_request got;
	struct err err = {0};
	errc rc = rw1_decode(body, limits, &ours, &got, &err);
	why[0] = '\0';
	if (rc == ERR_LIMIT) {
		outcome = ORACLE_LIMIT;
		goto out;
	}
	ProtobufCAllocator allocator = {oracle_alloc, oracle_free, &theirs};
	const Oracle__WriteRequest *want = oracle__write_request__unpack(&allocator, body.n, (const uint8_t *)body.p);
	if (rc != OK) {
		outcome = want && !stricter(body, err.msg) ? ORACLE_DIFFER : ORACLE_BOTH_REFUSE;
		snprintf(why, why_size, "refused by rw1_decode alone: %s", err.msg);
		goto out;
	}
	if (!want) {
		outcome = labels_well_formed(&got) ? ORACLE_DIFFER : ORACLE_BOTH_REFUSE;
		snprintf(why, why_size, "refused by protobuf-c alone");
		goto out;
	}
	size_t n_histograms = 0, n_exemplars = 0, n_samples = 0;
	if (got.n_series != want->n_timeseries || got.n_metadata != want->n_metadata) {
		snprintf(why, why_size, "%zu series for %zu, %zu metadata for %zu", got.n_series, want->n_timeseries, got.n_metadata,
			want->n_metadata);
		goto out;
	}
	for (size_t i = 0; i < got.n_series; i++) {
		if (!same_series(&got, &got.series[i], want->timeseries[i], &ours, why, why_size))
			goto out;
		n_samples += got.series[i].n_samples;
		n_histograms += got.series[i].n_hists;
		n_exemplars += got.series[i].n_exemplars;
	}
	if (n_samples != got.n_samples || n_histograms != got.n_hists || n_exemplars != got.n_exemplars) {
		snprintf(why, why_size, "totals are not the sums");
		goto out;
	}
	outcome = labels_well_formed(&got) ? ORACLE_BOTH_OK : ORACLE_BOTH_REFUSE;
out:
	arena_free(&ours);
	arena_free(&theirs);
	return outcome;
}
