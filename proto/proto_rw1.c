/* proto/proto_rw1.c - remote write 1.0 decoded in place.
 *
 *   WriteRequest { 1 repeated TimeSeries; 3 repeated MetricMetadata }
 *   TimeSeries   { 1 repeated Label; 2 repeated Sample; 3 repeated Exemplar; 4 repeated Histogram }
 *   Label        { 1 name; 2 value }            only stepped over: the head looks inside when it has not seen these bytes before
 *   Sample       { 1 double value; 2 int64 timestamp }
 *
 * Every sender writes a series as its labels in one run, then its samples. series_fast reads exactly that and nothing else, with one
 * load and one branch a label; it is the second stage of the ingest path after snappy and has a budget of some 30 ns a series of ten labels. Whatever looks
 * different is read again from its start by series_any, which takes every order and spelling that protobuf allows. proto_rw1_test.c
 * holds both against protobuf-c.
 */
#include <inttypes.h>
#include "proto/proto_int.h"

enum { TAG_SERIES = 0x0a, TAG_LABEL = 0x0a, TAG_SAMPLE = 0x12, TAG_VALUE = 0x09, TAG_TIME = 0x10 };
enum { SERIES_EXEMPLAR = 3, SERIES_HISTOGRAM };
enum { REQUEST_SERIES = 1, REQUEST_METADATA = 3 };
enum { FAST_LABELS_BYTES = 64 * 1024, FAST_SAMPLE_BYTES = 20 };

enum fast { FAST_DONE, FAST_OTHER, FAST_FULL, FAST_LABELS };

/* Labels, then samples, then nothing, each with a short length and in the shortest spelling. Anything else: FAST_OTHER, and nothing has happened
 * but that `out->samples` beyond n_samples was scribbled on. */
static inline enum fast series_fast(const struct rw_decoder *d, struct span message, struct rw_series *s, size_t *n_samples)
{
	const uint8_t *p = (const uint8_t *)message.p, *end = p + message.n, *body_end = (const uint8_t *)d->body.p + d->body.n;
	/* A label takes two bytes or more: what has more of them than fit here is for series_any, which stops at its limit. */
	const uint8_t *labels_end = message.n < FAST_LABELS_BYTES ? end : p + FAST_LABELS_BYTES;
	uint32_t n_labels = 0;
	while (labels_end - p >= 2 && p[0] == TAG_LABEL) {
		size_t n = p[1];
		p += 2;
		if (UNLIKELY(n >= 0x80)) {
			if (p == end || *p >= 0x80)
				return FAST_OTHER;
			n = (n & 0x7f) | (size_t)*p++ << 7;
		}
		if (UNLIKELY((size_t)(end - p) < n))
			return FAST_OTHER;
		p += n;
		n_labels++;
	}
	if (UNLIKELY(n_labels > d->limits->max_labels_decode))
		return FAST_LABELS;
	size_t labels_bytes = (size_t)((const char *)p - message.p);

	size_t at = *n_samples, cap = d->samples_cap;
	struct rw_sample *samples = d->out->samples;
	while (p < end) {
		/* 12 len [09 value(8)] 10 time: Go's encoder leaves a value of 0 out, and zeros come at random, so there is no branch on it */
		if (UNLIKELY(body_end - p < FAST_SAMPLE_BYTES || p[0] != TAG_SAMPLE))
			return FAST_OTHER;
		uint64_t valued = p[2] == TAG_VALUE, t = 0;
		const uint8_t *time = p + 2 + 9 * valued;
		if (UNLIKELY(time[0] != TAG_TIME))
			return FAST_OTHER;
		const uint8_t *q = pb_varint_fast(time + 1, body_end, &t);
		if (UNLIKELY(q != p + 2 + p[1] || q > end))
			return FAST_OTHER;
		if (UNLIKELY(at == cap))
			return FAST_FULL;
		samples[at].t = (int64_t)t;
		samples[at].v = get_le64(p + 3) & (0 - valued);
		at++;
		p = q;
	}
	*s = (struct rw_series){
		.wire = span_of(message.p, labels_bytes),
		.n_labels = n_labels,
		.first_sample = (uint32_t)*n_samples,
		.n_samples = (uint32_t)(at - *n_samples),
	};
	*n_samples = at;
	return FAST_DONE;
}

/* Any field order and spelling. */
static CHECKED errc series_any(struct rw_decoder *d, struct span message, struct rw_series *s, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = d->out;
	struct rd r = rd_of(message.p, message.n);
	const uint8_t *labels_start = NULL, *labels_end = NULL;
	size_t labels_bytes = 0;
	bool contiguous = true;
	uint32_t n_labels = 0;
	size_t first_sample = out->n_samples, first_hist = out->n_hists, first_exemplar = out->n_exemplars;

	while (r.p < r.end) {
		const uint8_t *start = r.p;
		const void *at = start;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(d, at, why, err);
		if (f.number > SERIES_HISTOGRAM)
			continue;
		if (f.wire != PB_LEN)
			return rw_malformed(d, at, "wrong wire type in a series", err);
		switch (f.number) {
		case SERIES_LABELS:
			if (++n_labels > d->limits->max_labels_decode)
				return rw_too_many_labels(d, err);
			if (!labels_start)
				labels_start = start;
			else if (labels_end != start)
				contiguous = false;
			labels_end = r.p;
			labels_bytes += (size_t)(r.p - start);
			break;
		case SERIES_SAMPLE:
			if (out->n_samples == d->samples_cap)
				TRY(rw_samples_grow(d, span_of(start, (size_t)(r.end - start)), err));
			TRY(rw_sample_any(d, f.bytes, &out->samples[out->n_samples], NULL, err));
			out->n_samples++;
			break;
		case SERIES_EXEMPLAR:
			TRY(rw_exemplar_add(d, f.bytes, err));
			break;
		case SERIES_HISTOGRAM:
			TRY(rw_hist_add(d, f.bytes, false, err));
			break;
		default:
			break;
		}
	}
	*s = (struct rw_series){
		.wire = span_of(labels_start ? labels_start : (const uint8_t *)message.p, contiguous ? labels_bytes : 0),
		.n_labels = n_labels,
		.first_sample = (uint32_t)first_sample,
		.n_samples = (uint32_t)(out->n_samples - first_sample),
		.first_hist = (uint32_t)first_hist,
		.n_hists = (uint32_t)(out->n_hists - first_hist),
		.first_exemplar = (uint32_t)first_exemplar,
		.n_exemplars = (uint32_t)(out->n_exemplars - first_exemplar),
	};
	if (!contiguous)
		TRY(rw_labels_gather(d, message, labels_bytes, &s->wire, err));
fail:
	return rc;
}

static CHECKED errc series_decode(struct rw_decoder *d, struct span message, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = d->out;
	TRY(rw_series_room(d, message, err));
	struct rw_series *s = &out->series[out->n_series];
	enum fast fast = series_fast(d, message, s, &out->n_samples);
	if (UNLIKELY(fast != FAST_DONE)) {
		if (fast == FAST_LABELS)
			return rw_too_many_labels(d, err);
		TRY(series_any(d, message, s, err));
	}
	out->n_series++;
fail:
	return rc;
}

errc rw1_decode(struct span body, const struct rw_limits *limits, struct arena *arena, struct rw_request *out, struct err *err)
{
	ASSERT(limits && arena && out && (body.p || body.n == 0));
	errc rc = OK;
	*out = (struct rw_request){0};
	struct rw_decoder d = {.body = body, .limits = limits, .arena = arena, .out = out, .series_field = REQUEST_SERIES};
	struct rd r = rd_of(body.p, body.n);
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (LIKELY(*r.p == TAG_SERIES)) {
			r.p++;
			struct span message = pb_message(&r);
			if (UNLIKELY(!r.ok))
				return rw_malformed(&d, at, "series goes beyond the end", err);
			TRY(series_decode(&d, message, err));
			continue;
		}
		if (!pb_next(&r, &f, &why))
			return rw_malformed(&d, at, why, err);
		if (f.number != REQUEST_SERIES && f.number != REQUEST_METADATA)
			continue;
		if (f.wire != PB_LEN)
			return rw_malformed(&d, at, "wrong wire type in the request", err);
		if (f.number == REQUEST_SERIES) {
			TRY(series_decode(&d, f.bytes, err));
			continue;
		}
		TRY(rw_metadata_add(&d, f.bytes, err));
	}
fail:
	return rc;
}
