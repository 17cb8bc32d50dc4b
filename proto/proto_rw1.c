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
 *
 * Memory: the series array is sized from what the series so far took of the body (senders' series resemble each other), the sample
 * array for one sample a series. When that does not hold, the rest of the body is counted first and the array is allocated once
 * more, exactly: so a body of a million tiny samples costs one array, and one of too many is refused before it costs any.
 */
#include <inttypes.h>
#include "base/limits.h"
#include "proto/proto_int.h"

enum { TAG_SERIES = 0x0a, TAG_LABEL = 0x0a, TAG_SAMPLE = 0x12, TAG_VALUE = 0x09, TAG_TIME = 0x10 };
enum { SERIES_LABEL = 1, SERIES_SAMPLE, SERIES_EXEMPLAR, SERIES_HISTOGRAM };
enum { REQUEST_SERIES = 1, REQUEST_METADATA = 3 };
enum { SERIES_FIRST_MIN = 16, FAST_LABELS_BYTES = 64 * 1024 };

struct decoder {
	struct span body;
	const struct rw_limits *limits;
	struct arena *arena;
	struct rw_request *out;
	size_t series_cap;
	size_t samples_cap;
};

static CHECKED errc malformed(const struct decoder *d, const void *at, const char *why, struct err *err)
{
	size_t offset = (size_t)((const char *)at - d->body.p);
	return err_id(
		err, ERRID_PROTOBUF, ERR_INVALID, "remote write body, byte %zu of %zu, series %zu: %s", offset, d->body.n, d->out->n_series, why);
}

static CHECKED errc too_many_series(const struct decoder *d, struct err *err)
{
	return err_id(err, ERRID_TOO_MANY_SERIES, ERR_LIMIT, "more than %" PRIu32 " series in one request", d->limits->max_series);
}

static CHECKED errc too_many_samples(const struct decoder *d, struct err *err)
{
	return err_id(err, ERRID_TOO_MANY_SAMPLES, ERR_LIMIT, "more than %" PRIu32 " samples in one request", d->limits->max_samples);
}

static CHECKED errc too_many_labels(const struct decoder *d, struct err *err)
{
	return err_id(err, ERRID_TOO_MANY_LABELS, ERR_LIMIT, "series %zu of the request has more than %" PRIu32 " labels; nothing was stored",
		d->out->n_series, d->limits->max_labels_decode);
}

/* Room for one more series; `series` is the message that needs it. */
static CHECKED errc series_grow(struct decoder *d, struct span series, struct err *err)
{
	struct rw_request *out = d->out;
	if (out->n_series >= d->limits->max_series)
		return too_many_series(d, err);
	size_t seen = (size_t)(series.p + series.n - d->body.p), left = d->body.n - seen, n = out->n_series + 1;
	size_t expect = n + left / (seen / n ? seen / n : 1) + SERIES_FIRST_MIN;
	size_t cap = d->series_cap * 2 > expect ? d->series_cap * 2 : expect;
	if (cap > d->limits->max_series)
		cap = d->limits->max_series;
	struct rw_series *grown = arena_alloc(d->arena, cap * sizeof *grown);
	if (!grown)
		return err_set(err, ERR_NOMEM, "remote write: no memory for %zu series", cap);
	if (out->n_series)
		memcpy(grown, out->series, out->n_series * sizeof *grown);
	out->series = grown;
	d->series_cap = cap;
	return OK;
}

/* The samples of a series from `r` on, as far as it is well formed: what is not is found when it is decoded. Stops above `max`. */
static size_t samples_count_series(struct rd r, size_t max)
{
	size_t n = 0;
	const char *why = NULL;
	struct pb_field f;
	while (n <= max && r.p < r.end && pb_next(&r, &f, &why))
		n += f.number == SERIES_SAMPLE;
	return n;
}

/* Called when the array is full: `series` is what is left of the current series, from the sample that did not fit. Counts, refuses or allocates. */
static CHECKED errc samples_grow(struct decoder *d, struct span series, struct err *err)
{
	struct rw_request *out = d->out;
	uint32_t max = d->limits->max_samples;
	uint64_t n = out->n_samples + samples_count_series(rd_of(series.p, series.n), max);
	const char *rest = series.p + series.n, *why = NULL;
	struct rd r = rd_of(rest, d->body.n - (size_t)(rest - d->body.p));
	struct pb_field f;
	while (n <= max && r.p < r.end && pb_next(&r, &f, &why))
		if (f.number == REQUEST_SERIES && f.wire == PB_LEN)
			n += samples_count_series(rd_of(f.bytes.p, f.bytes.n), max);
	if (n > max)
		return too_many_samples(d, err);
	ASSERT(n > out->n_samples);
	struct rw_sample *grown = arena_alloc(d->arena, (size_t)n * sizeof *grown);
	if (!grown)
		return err_set(err, ERR_NOMEM, "remote write: no memory for %" PRIu64 " samples", n);
	if (out->n_samples)
		memcpy(grown, out->samples, out->n_samples * sizeof *grown);
	out->samples = grown;
	d->samples_cap = (size_t)n;
	return OK;
}

/* A timestamp's varint in one load when 8 bytes may be read and it ends within them (all times of this age take 6). */
static inline const uint8_t *varint_fast(const uint8_t *p, const uint8_t *end, uint64_t *v)
{
	if (UNLIKELY(end - p < 8))
		return NULL;
	uint64_t x = get_le64(p), stop = ~x & UINT64_C(0x8080808080808080);
	if (UNLIKELY(!stop))
		return NULL;
	unsigned last_bit = (unsigned)__builtin_ctzll(stop);
	x &= (UINT64_C(2) << last_bit) - 1; /* last_bit 63 shifts the 2 out: 0 - 1 keeps all */
	x &= UINT64_C(0x7f7f7f7f7f7f7f7f);
	x = (x & UINT64_C(0x007f007f007f007f)) | (x & UINT64_C(0x7f007f007f007f00)) >> 1;
	x = (x & UINT64_C(0x00003fff00003fff)) | (x & UINT64_C(0x3fff00003fff0000)) >> 2;
	x = (x & UINT64_C(0x000000000fffffff)) | (x & UINT64_C(0x0fffffff00000000)) >> 4;
	*v = x;
	return p + last_bit / 8 + 1;
}

enum fast { FAST_DONE, FAST_OTHER, FAST_FULL, FAST_LABELS };

/* Labels, then samples, then nothing, each with a short length and in the shortest spelling. Anything else: FAST_OTHER, and nothing has happened
 * but that `out->samples` beyond n_samples was scribbled on. */
static inline enum fast series_fast(const struct decoder *d, struct span message, struct rw_series *s, size_t *n_samples)
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
	s->wire = span_of(message.p, (size_t)((const char *)p - message.p));
	s->n_labels = n_labels;

	size_t at = *n_samples, cap = d->samples_cap;
	struct rw_sample *samples = d->out->samples;
	while (p < end) {
		/* 12 len 09 value(8) 10 time */
		if (UNLIKELY(end - p < 13 || p[0] != TAG_SAMPLE || p[2] != TAG_VALUE || p[11] != TAG_TIME))
			return FAST_OTHER;
		const uint8_t *sample_end = p + 2 + p[1];
		uint64_t t = 0;
		const uint8_t *q = varint_fast(p + 12, body_end, &t);
		if (UNLIKELY(q != sample_end || q > end))
			return FAST_OTHER;
		if (UNLIKELY(at == cap))
			return FAST_FULL;
		samples[at].t = (int64_t)t;
		samples[at].v = get_le64(p + 3);
		at++;
		p = q;
	}
	s->first_sample = (uint32_t)*n_samples;
	s->n_samples = (uint32_t)(at - *n_samples);
	s->n_hists = s->n_exemplars = 0;
	*n_samples = at;
	return FAST_DONE;
}

static CHECKED errc sample_any(struct decoder *d, struct span message, struct rw_sample *s, struct err *err)
{
	struct rd r = rd_of(message.p, message.n);
	*s = (struct rw_sample){0, 0};
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return malformed(d, at, why, err);
		if (f.number > 2)
			continue;
		if (f.wire != (f.number == 1 ? PB_I64 : PB_VARINT))
			return malformed(d, at, "wrong wire type in a sample", err);
		if (f.number == 1)
			s->v = f.value;
		else
			s->t = (int64_t)f.value;
	}
	return OK;
}

/* Puts label fields that other fields stand between into one run, in the arena. The message was walked before: it is well formed. */
static CHECKED errc labels_gather(struct decoder *d, struct span message, size_t n_bytes, struct rw_series *s, struct err *err)
{
	char *run = arena_alloc(d->arena, n_bytes);
	if (!run)
		return err_set(err, ERR_NOMEM, "remote write: no memory for %zu bytes of labels", n_bytes);
	struct rd r = rd_of(message.p, message.n);
	size_t n = 0;
	while (r.p < r.end) {
		const uint8_t *start = r.p;
		const char *why = NULL;
		struct pb_field f;
		ASSERT(pb_next(&r, &f, &why));
		if (f.number == SERIES_LABEL) {
			memcpy(run + n, start, (size_t)(r.p - start));
			n += (size_t)(r.p - start);
		}
	}
	ASSERT(n == n_bytes);
	s->wire = span_of(run, n);
	return OK;
}

/* Any field order and spelling. */
static CHECKED errc series_any(struct decoder *d, struct span message, struct rw_series *s, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = d->out;
	struct rd r = rd_of(message.p, message.n);
	const uint8_t *labels_start = NULL, *labels_end = NULL;
	size_t labels_bytes = 0;
	bool contiguous = true;
	uint32_t n_labels = 0, n_exemplars = 0, n_hists = 0;
	size_t first_sample = out->n_samples;

	while (r.p < r.end) {
		const uint8_t *start = r.p;
		const void *at = start;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return malformed(d, at, why, err);
		if (f.number > SERIES_HISTOGRAM)
			continue;
		if (f.wire != PB_LEN)
			return malformed(d, at, "wrong wire type in a series", err);
		switch (f.number) {
		case SERIES_LABEL:
			if (++n_labels > d->limits->max_labels_decode)
				return too_many_labels(d, err);
			if (!labels_start)
				labels_start = start;
			else if (labels_end != start)
				contiguous = false;
			labels_end = r.p;
			labels_bytes += (size_t)(r.p - start);
			break;
		case SERIES_SAMPLE:
			if (out->n_samples == d->samples_cap)
				TRY(samples_grow(d, span_of(start, (size_t)(r.end - start)), err));
			TRY(sample_any(d, f.bytes, &out->samples[out->n_samples], err));
			out->n_samples++;
			break;
		case SERIES_EXEMPLAR:
		case SERIES_HISTOGRAM:
			why = pb_check(f.bytes, f.number == SERIES_EXEMPLAR ? &pb_shape_exemplar : &pb_shape_histogram, &at);
			if (why)
				return malformed(d, at, why, err);
			if (f.number == SERIES_EXEMPLAR)
				n_exemplars++;
			else
				n_hists++;
			if (out->n_exemplars + n_exemplars > d->limits->max_samples || out->n_hists + n_hists > d->limits->max_samples)
				return too_many_samples(d, err);
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
		.n_hists = n_hists,
		.n_exemplars = n_exemplars,
	};
	if (!contiguous)
		TRY(labels_gather(d, message, labels_bytes, s, err));
	out->n_exemplars += n_exemplars;
	out->n_hists += n_hists;
fail:
	return rc;
}

static CHECKED errc series_decode(struct decoder *d, struct span message, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = d->out;
	if (UNLIKELY(out->n_series == d->series_cap)) {
		TRY(series_grow(d, message, err));
		if (!out->samples) {
			size_t cap = d->series_cap < d->limits->max_samples ? d->series_cap : d->limits->max_samples;
			out->samples = arena_alloc(d->arena, cap * sizeof *out->samples);
			CHECK(out->samples, ERR_NOMEM, "remote write: no memory for %zu samples", cap);
			d->samples_cap = cap;
		}
	}
	struct rw_series *s = &out->series[out->n_series];
	enum fast fast = series_fast(d, message, s, &out->n_samples);
	if (UNLIKELY(fast != FAST_DONE)) {
		if (fast == FAST_LABELS)
			return too_many_labels(d, err);
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
	struct decoder d = {.body = body, .limits = limits, .arena = arena, .out = out};
	struct rd r = rd_of(body.p, body.n);
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (LIKELY(*r.p == TAG_SERIES)) {
			r.p++;
			struct span message = pb_message(&r);
			if (UNLIKELY(!r.ok))
				return malformed(&d, at, "series goes beyond the end", err);
			TRY(series_decode(&d, message, err));
			continue;
		}
		if (!pb_next(&r, &f, &why))
			return malformed(&d, at, why, err);
		if (f.number != REQUEST_SERIES && f.number != REQUEST_METADATA)
			continue;
		if (f.wire != PB_LEN)
			return malformed(&d, at, "wrong wire type in the request", err);
		if (f.number == REQUEST_SERIES) {
			TRY(series_decode(&d, f.bytes, err));
			continue;
		}
		if (++out->n_metadata > limits->max_series)
			return err_id(
				err, ERRID_TOO_MANY_SERIES, ERR_LIMIT, "more than %" PRIu32 " metadata entries in one request", limits->max_series);
		if ((why = pb_check(f.bytes, &pb_shape_metadata, &at)))
			return malformed(&d, at, why, err);
	}
fail:
	return rc;
}
