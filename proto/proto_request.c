/* proto/proto_request.c - what decoding either version of remote write needs: refusals, and arrays that grow under their limits.
 *
 * Memory: the series array is sized from what the series so far took of the body (senders' series resemble each other), the sample
 * array for one sample a series. When that does not hold, the rest of the body is counted first and the array is allocated once
 * more, exactly: so a body of a million tiny samples costs one array, and one of too many is refused before it costs any.
 */
#include <inttypes.h>
#include "proto/proto_int.h"

enum { SERIES_FIRST_MIN = 16 };

errc rw_malformed(const struct rw_decoder *d, const void *at, const char *why, struct err *err)
{
	size_t offset = (size_t)((const char *)at - d->body.p);
	return err_id(
		err, ERRID_PROTOBUF, ERR_INVALID, "remote write body, byte %zu of %zu, series %zu: %s", offset, d->body.n, d->out->n_series, why);
}

errc rw_too_many_labels(const struct rw_decoder *d, struct err *err)
{
	return err_id(err, ERRID_TOO_MANY_LABELS, ERR_LIMIT, "series %zu of the request has more than %" PRIu32 " labels; nothing was stored",
		d->out->n_series, d->limits->max_labels_decode);
}

static CHECKED errc too_many_samples(const struct rw_decoder *d, struct err *err)
{
	return err_id(err, ERRID_TOO_MANY_SAMPLES, ERR_LIMIT, "more than %" PRIu32 " samples in one request", d->limits->max_samples);
}

static CHECKED errc series_grow(struct rw_decoder *d, struct span series, struct err *err)
{
	struct rw_request *out = d->out;
	if (out->n_series >= d->limits->max_series)
		return err_id(err, ERRID_TOO_MANY_SERIES, ERR_LIMIT, "more than %" PRIu32 " series in one request", d->limits->max_series);
	if (!d->first)
		d->first = series.p;
	size_t seen = (size_t)(series.p + series.n - d->first), left = (size_t)(d->body.p + d->body.n - series.p) - series.n, n = out->n_series + 1;
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

errc rw_series_room(struct rw_decoder *d, struct span message, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = d->out;
	if (LIKELY(out->n_series < d->series_cap))
		return OK;
	TRY(series_grow(d, message, err));
	if (!out->samples) {
		size_t cap = d->series_cap < d->limits->max_samples ? d->series_cap : d->limits->max_samples;
		out->samples = arena_alloc(d->arena, cap * sizeof *out->samples);
		CHECK(out->samples, ERR_NOMEM, "remote write: no memory for %zu samples", cap);
		d->samples_cap = cap;
	}
fail:
	return rc;
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

errc rw_samples_grow(struct rw_decoder *d, struct span series, struct err *err)
{
	struct rw_request *out = d->out;
	uint32_t max = d->limits->max_samples;
	uint64_t n = out->n_samples + samples_count_series(rd_of(series.p, series.n), max);
	const char *rest = series.p + series.n, *why = NULL;
	struct rd r = rd_of(rest, d->body.n - (size_t)(rest - d->body.p));
	struct pb_field f;
	while (n <= max && r.p < r.end && pb_next(&r, &f, &why))
		if (f.number == d->series_field && f.wire == PB_LEN)
			n += samples_count_series(rd_of(f.bytes.p, f.bytes.n), max);
	if (n > max)
		return too_many_samples(d, err);
	ASSERT(n > out->n_samples);
	struct rw_sample *grown = arena_alloc(d->arena, (size_t)n * sizeof *grown);
	int64_t *starts = out->starts ? arena_calloc(d->arena, (size_t)n, sizeof *starts) : NULL;
	if (!grown || (out->starts && !starts))
		return err_set(err, ERR_NOMEM, "remote write: no memory for %" PRIu64 " samples", n);
	if (out->n_samples)
		memcpy(grown, out->samples, out->n_samples * sizeof *grown);
	if (starts && out->n_samples)
		memcpy(starts, out->starts, out->n_samples * sizeof *starts);
	out->samples = grown;
	out->starts = starts;
	d->samples_cap = (size_t)n;
	return OK;
}

errc rw_starts_begin(struct rw_decoder *d, struct err *err)
{
	if (d->out->starts)
		return OK;
	d->out->starts = arena_calloc(d->arena, d->samples_cap, sizeof *d->out->starts);
	return d->out->starts ? OK : err_set(err, ERR_NOMEM, "remote write: no memory for %zu start timestamps", d->samples_cap);
}

errc rw_sample_any(const struct rw_decoder *d, struct span message, struct rw_sample *s, int64_t *start, struct err *err)
{
	struct rd r = rd_of(message.p, message.n);
	uint32_t last = start ? 3 : 2;
	*s = (struct rw_sample){0, 0};
	if (start)
		*start = 0;
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(d, at, why, err);
		if (f.number > last)
			continue;
		if (f.wire != (f.number == 1 ? PB_I64 : PB_VARINT))
			return rw_malformed(d, at, "wrong wire type in a sample", err);
		if (f.number == 1)
			s->v = f.value;
		else if (f.number == 2)
			s->t = (int64_t)f.value;
		else
			*start = (int64_t)f.value;
	}
	return OK;
}
