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

static bool same_labels(struct span wire, uint32_t n_labels, Oracle__Label **want, size_t n, struct arena *arena)
{
	struct labels labels;
	if (labels_from_wire(wire, UINT32_MAX, arena, &labels, NULL) != OK)
		return true; /* field number 0 or a wide varint inside a label; what it must take, it is shown to take by ORACLE_BOTH_OK */
	if (n_labels != n || labels.n != n)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!span_eq(labels.v[i].name, span_of(want[i]->name.data, want[i]->name.len)) ||
			!span_eq(labels.v[i].value, span_of(want[i]->value.data, want[i]->value.len)))
			return false;
	return true;
}

static bool same_spans(const struct hist_span *a, uint32_t n, Oracle__BucketSpan **b, size_t n_b)
{
	if (n != n_b)
		return false;
	for (size_t i = 0; i < n; i++)
		if (a[i].offset != b[i]->offset || a[i].length != b[i]->length)
			return false;
	return true;
}

static bool same_bits(const void *a, uint32_t n, const void *b, size_t n_b)
{
	return n == n_b && (n == 0 || memcmp(a, b, n * sizeof(uint64_t)) == 0);
}

static bool same_histogram(const struct rw_hist *got, const Oracle__Histogram *want)
{
	const struct histogram *h = &got->h;
	bool floats = want->count_case == ORACLE__HISTOGRAM__COUNT_COUNT_FLOAT;
	bool zero_float = want->zero_count_case == ORACLE__HISTOGRAM__ZERO_COUNT_ZERO_COUNT_FLOAT,
	     zero_int = want->zero_count_case == ORACLE__HISTOGRAM__ZERO_COUNT_ZERO_COUNT_INT;
	uint64_t i_count = want->count_case == ORACLE__HISTOGRAM__COUNT_COUNT_INT ? want->count_int : 0;
	if (got->kind != (floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM) || got->t != want->timestamp || got->start != 0 ||
		h->schema != want->schema || h->sum != f64_bits(want->sum) || f64_bits(h->zero_threshold) != f64_bits(want->zero_threshold))
		return false;
	if (h->reset_hint != ((uint32_t)want->reset_hint <= HIST_RESET_GAUGE ? want->reset_hint : HIST_RESET_UNKNOWN))
		return false;
	if (!same_spans(h->neg_spans, h->n_neg_spans, want->negative_spans, want->n_negative_spans) ||
		!same_spans(h->pos_spans, h->n_pos_spans, want->positive_spans, want->n_positive_spans) ||
		!same_bits(h->custom, h->n_custom, want->custom_values, want->n_custom_values))
		return false;
	if (floats)
		return h->f_count == f64_bits(want->count_float) && h->f_zero_count == (zero_float ? f64_bits(want->zero_count_float) : 0) &&
		       same_bits(h->f_neg, h->n_neg, want->negative_counts, want->n_negative_counts) &&
		       same_bits(h->f_pos, h->n_pos, want->positive_counts, want->n_positive_counts);
	return h->i_count == i_count && h->i_zero_count == (zero_int ? want->zero_count_int : 0) &&
	       same_bits(h->i_neg, h->n_neg, want->negative_deltas, want->n_negative_deltas) &&
	       same_bits(h->i_pos, h->n_pos, want->positive_deltas, want->n_positive_deltas);
}

static bool same_histogram2(const struct rw_hist *got, const Oracle__Histogram2 *want)
{
	const struct histogram *h = &got->h;
	bool floats = want->count_case == ORACLE__HISTOGRAM2__COUNT_COUNT_FLOAT;
	bool zero_float = want->zero_count_case == ORACLE__HISTOGRAM2__ZERO_COUNT_ZERO_COUNT_FLOAT,
	     zero_int = want->zero_count_case == ORACLE__HISTOGRAM2__ZERO_COUNT_ZERO_COUNT_INT;
	uint64_t i_count = want->count_case == ORACLE__HISTOGRAM2__COUNT_COUNT_INT ? want->count_int : 0;
	if (got->kind != (floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM) || got->t != want->timestamp || got->start != want->start_timestamp ||
		h->schema != want->schema || h->sum != f64_bits(want->sum) || f64_bits(h->zero_threshold) != f64_bits(want->zero_threshold))
		return false;
	if (h->reset_hint != ((uint32_t)want->reset_hint <= HIST_RESET_GAUGE ? want->reset_hint : HIST_RESET_UNKNOWN))
		return false;
	if (!same_spans(h->neg_spans, h->n_neg_spans, want->negative_spans, want->n_negative_spans) ||
		!same_spans(h->pos_spans, h->n_pos_spans, want->positive_spans, want->n_positive_spans) ||
		!same_bits(h->custom, h->n_custom, want->custom_values, want->n_custom_values))
		return false;
	if (floats)
		return h->f_count == f64_bits(want->count_float) && h->f_zero_count == (zero_float ? f64_bits(want->zero_count_float) : 0) &&
		       same_bits(h->f_neg, h->n_neg, want->negative_counts, want->n_negative_counts) &&
		       same_bits(h->f_pos, h->n_pos, want->positive_counts, want->n_positive_counts);
	return h->i_count == i_count && h->i_zero_count == (zero_int ? want->zero_count_int : 0) &&
	       same_bits(h->i_neg, h->n_neg, want->negative_deltas, want->n_negative_deltas) &&
	       same_bits(h->i_pos, h->n_pos, want->positive_deltas, want->n_positive_deltas);
}

static bool same_series(
	const struct rw_request *got, const struct rw_series *s, const Oracle__TimeSeries *want, struct arena *arena, char *why, size_t size)
{
	if (!same_labels(s->wire, s->n_labels, want->labels, want->n_labels, arena))
		return snprintf(why, size, "labels differ: %" PRIu32 " for %zu", s->n_labels, want->n_labels), false;
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
	if (s->refs || s->created)
		return snprintf(why, size, "a series of 1.0 has what only 2.0 says"), false;
	for (size_t i = 0; i < want->n_exemplars; i++) {
		const struct exemplar *a = &got->exemplars[s->first_exemplar + i];
		const Oracle__Exemplar *b = want->exemplars[i];
		if (a->t != b->timestamp || a->v != f64_bits(b->value) || !same_labels(a->wire, a->n_labels, b->labels, b->n_labels, arena))
			return snprintf(why, size, "exemplar %zu differs", i), false;
	}
	for (size_t i = 0; i < want->n_histograms; i++)
		if (!same_histogram(&got->hists[s->first_hist + i], want->histograms[i]))
			return snprintf(why, size, "histogram %zu differs", i), false;
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
			if (!pb_next(&r, &f, &why) || pb_check_label(f.bytes, &at))
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
	for (size_t i = 0; i < got.n_metadata; i++) {
		const struct metadata *a = &got.metadata[i];
		const Oracle__MetricMetadata *b = want->metadata[i];
		if (a->type != ((uint32_t)b->type < METRIC_TYPES ? (enum metric_type)b->type : METRIC_UNKNOWN) ||
			!span_eq(a->family, span_of(b->metric_family_name.data, b->metric_family_name.len)) ||
			!span_eq(a->help, span_of(b->help.data, b->help.len)) || !span_eq(a->unit, span_of(b->unit.data, b->unit.len))) {
			snprintf(why, why_size, "metadata entry %zu differs", i);
			goto out;
		}
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

/* ---- 2.0 ---- */

static bool refs_valid(const uint32_t *refs, size_t n, size_t n_symbols)
{
	for (size_t i = 0; i < n; i++)
		if (refs[i] >= n_symbols)
			return false;
	return n % 2 == 0;
}

static bool request2_valid(const Oracle__Request2 *r, bool *unsure)
{
	if (r->n_symbols > 0 ? r->symbols[0].len != 0 : r->n_timeseries > 0)
		return false;
	for (size_t i = 0; i < r->n_timeseries; i++) {
		const Oracle__TimeSeries2 *s = r->timeseries[i];
		if (!refs_valid(s->labels_refs, s->n_labels_refs, r->n_symbols))
			return false;
		for (size_t k = 0; k < s->n_exemplars; k++)
			if (!refs_valid(s->exemplars[k]->labels_refs, s->exemplars[k]->n_labels_refs, r->n_symbols))
				return false;
		for (size_t k = 0; k < s->n_metadata; k++) /* several are one message in parts, and the last reference counts */
			*unsure |= s->n_metadata > 1 && (s->metadata[k]->help_ref >= r->n_symbols || s->metadata[k]->unit_ref >= r->n_symbols);
		if (s->n_metadata == 1)
			if (s->metadata[0]->help_ref >= r->n_symbols || s->metadata[0]->unit_ref >= r->n_symbols)
				return false;
	}
	return true;
}

static struct span symbol(const Oracle__Request2 *r, uint32_t ref)
{
	return span_of(r->symbols[ref].data, r->symbols[ref].len);
}

static bool same_series2(const struct rw_request *got, const struct rw_series *s, const Oracle__Request2 *r, const Oracle__TimeSeries2 *want,
	struct arena *arena, char *why, size_t size)
{
	if (s->wire.p || 2 * (size_t)s->n_labels != want->n_labels_refs ||
		(s->n_labels && memcmp(s->refs, want->labels_refs, want->n_labels_refs * sizeof *s->refs) != 0))
		return snprintf(why, size, "references differ: %" PRIu32 " labels for %zu references", s->n_labels, want->n_labels_refs), false;
	struct label *v = arena_alloc(arena, s->n_labels * sizeof *v);
	for (uint32_t i = 0; v && i < s->n_labels; i++)
		v[i] = (struct label){symbol(r, s->refs[2 * i]), symbol(r, s->refs[2 * i + 1])};
	if (v && labels_wire_size((struct labels){v, s->n_labels}) > s->wire.n)
		return snprintf(why, size, "its labels take more than %zu bytes", s->wire.n), false;
	if (s->n_samples != want->n_samples || s->created != want->created_timestamp)
		return snprintf(why, size, "%" PRIu32 " samples for %zu", s->n_samples, want->n_samples), false;
	for (size_t i = 0; i < want->n_samples; i++) {
		const struct rw_sample *a = &got->samples[s->first_sample + i];
		const Oracle__Sample2 *b = want->samples[i];
		int64_t start = got->starts ? got->starts[s->first_sample + i] : 0;
		if (a->t != b->timestamp || a->v != f64_bits(b->value) || start != b->start_timestamp)
			return snprintf(why, size, "sample %zu differs: %" PRId64 " for %" PRId64, i, a->t, (int64_t)b->timestamp), false;
	}
	if (s->n_exemplars != want->n_exemplars || s->n_hists != want->n_histograms)
		return snprintf(why, size, "exemplars or histograms are counted wrongly"), false;
	for (size_t i = 0; i < want->n_exemplars; i++) {
		const struct exemplar *a = &got->exemplars[s->first_exemplar + i];
		const Oracle__Exemplar2 *b = want->exemplars[i];
		struct labels l;
		if (a->t != b->timestamp || a->v != f64_bits(b->value) || labels_from_wire(a->wire, UINT32_MAX, arena, &l, NULL) != OK ||
			a->n_labels != l.n || 2 * (size_t)l.n != b->n_labels_refs)
			return snprintf(why, size, "exemplar %zu differs", i), false;
		for (uint32_t k = 0; k < l.n; k++)
			if (!span_eq(l.v[k].name, symbol(r, b->labels_refs[2 * k])) || !span_eq(l.v[k].value, symbol(r, b->labels_refs[2 * k + 1])))
				return snprintf(why, size, "exemplar %zu: label %" PRIu32 " differs", i, k), false;
	}
	for (size_t i = 0; i < want->n_histograms; i++)
		if (!same_histogram2(&got->hists[s->first_hist + i], want->histograms[i]))
			return snprintf(why, size, "histogram %zu differs", i), false;
	return true;
}

/* What rw_request.metadata must be: each series' says something new about its name, or nothing. */
static bool same_metadata2(const struct rw_request *got, const Oracle__Request2 *r, struct arena *arena)
{
	const Oracle__Metadata2 **last = arena_calloc(arena, r->n_symbols, sizeof *last);
	size_t n = 0;
	for (size_t i = 0; last && i < r->n_timeseries; i++) {
		const Oracle__TimeSeries2 *s = r->timeseries[i];
		const Oracle__Metadata2 *m = s->n_metadata ? s->metadata[0] : NULL;
		if (s->n_metadata > 1)
			return true; /* its parts are one message, and what they say together is not known here */
		uint32_t family = 0;
		for (size_t k = s->n_labels_refs; k > 0; k -= 2)
			if (span_is(symbol(r, s->labels_refs[k - 2]), "__name__"))
				family = s->labels_refs[k - 1];
		if (!m || symbol(r, family).n == 0)
			continue;
		enum metric_type type = (uint32_t)m->type < METRIC_TYPES ? (enum metric_type)m->type : METRIC_UNKNOWN;
		struct span help = symbol(r, m->help_ref), unit = symbol(r, m->unit_ref);
		if (type == METRIC_UNKNOWN && help.n == 0 && unit.n == 0)
			continue;
		const Oracle__Metadata2 *old = last[family];
		if (old && ((uint32_t)old->type < METRIC_TYPES ? (enum metric_type)old->type : METRIC_UNKNOWN) == type &&
			span_eq(symbol(r, old->help_ref), help) && span_eq(symbol(r, old->unit_ref), unit))
			continue;
		last[family] = m;
		if (n == got->n_metadata)
			return false;
		const struct metadata *a = &got->metadata[n++];
		if (a->type != type || !span_eq(a->family, symbol(r, family)) || !span_eq(a->help, help) || !span_eq(a->unit, unit))
			return false;
	}
	return n == got->n_metadata;
}

enum oracle_outcome oracle_write2_compare(struct span body, const struct rw_limits *limits, char *why, size_t why_size)
{
	struct arena ours, theirs;
	arena_init(&ours, 256 * MIB);
	arena_init(&theirs, 1024 * MIB);
	enum oracle_outcome outcome = ORACLE_DIFFER;
	struct rw_request got;
	struct err err = {0};
	errc rc = rw2_decode(body, limits, &ours, &got, &err);
	why[0] = '\0';
	if (rc == ERR_LIMIT) {
		outcome = ORACLE_LIMIT;
		goto out;
	}
	ProtobufCAllocator allocator = {oracle_alloc, oracle_free, &theirs};
	const Oracle__Request2 *want = oracle__request2__unpack(&allocator, body.n, (const uint8_t *)body.p);
	bool unsure = false;
	if (want && !request2_valid(want, &unsure))
		want = NULL;
	if (want && unsure) {
		outcome = rc == OK ? ORACLE_BOTH_OK : ORACLE_BOTH_REFUSE;
		goto out;
	}
	if (rc != OK) {
		outcome = want && !stricter(body, err.msg) ? ORACLE_DIFFER : ORACLE_BOTH_REFUSE;
		snprintf(why, why_size, "refused by rw2_decode alone: %s", err.msg);
		goto out;
	}
	if (!want) {
		snprintf(why, why_size, "refused by protobuf-c alone");
		goto out;
	}
	if (got.n_series != want->n_timeseries || got.n_symbols != want->n_symbols) {
		snprintf(why, why_size, "%zu series for %zu, %zu symbols for %zu", got.n_series, want->n_timeseries, got.n_symbols, want->n_symbols);
		goto out;
	}
	for (size_t i = 0; i < got.n_symbols; i++)
		if (!span_eq(got.symbols[i], symbol(want, (uint32_t)i))) {
			snprintf(why, why_size, "symbol %zu differs", i);
			goto out;
		}
	size_t n_hists = 0, n_exemplars = 0, n_samples = 0;
	for (size_t i = 0; i < got.n_series; i++) {
		if (!same_series2(&got, &got.series[i], want, want->timeseries[i], &ours, why, why_size))
			goto out;
		n_samples += got.series[i].n_samples;
		n_hists += got.series[i].n_hists;
		n_exemplars += got.series[i].n_exemplars;
	}
	if (n_samples != got.n_samples || n_hists != got.n_hists || n_exemplars != got.n_exemplars) {
		snprintf(why, why_size, "totals are not the sums");
		goto out;
	}
	if (!same_metadata2(&got, want, &ours)) {
		snprintf(why, why_size, "metadata differs");
		goto out;
	}
	outcome = ORACLE_BOTH_OK;
out:
	arena_free(&ours);
	arena_free(&theirs);
	return outcome;
}
