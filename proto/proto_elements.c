/* proto/proto_elements.c - histograms, exemplars and metadata of a write request, into its arrays.
 *
 * A histogram is walked twice: the first time says what it is (the last of each oneof wins, and count's decides integer or float) and how many
 * buckets each array has, so that all of them are one exact piece of the arena, after the request's limits were asked; the second time fills
 * them. Arrays of the other kind are checked like the rest and left out, as the reference does. What buckets mean is judged elsewhere
 * (histogram_judge).
 */
#include <inttypes.h>
#include "proto/proto_int.h"

enum { ELEMENTS_FIRST = 16 };

/* Doubles an array of the request; copies of its earlier selves stay in the arena, together as much as itself. */
static CHECKED errc grow(struct rw_decoder *d, void *array, size_t n, size_t *cap, size_t size, const char *what, struct err *err)
{
	size_t more = *cap ? *cap * 2 : ELEMENTS_FIRST;
	void *old, *grown = arena_alloc(d->arena, more * size);
	if (!grown)
		return err_set(err, ERR_NOMEM, "remote write: no memory for %zu %s", more, what);
	memcpy(&old, array, sizeof old);
	if (n)
		memcpy(grown, old, n * size);
	memcpy(array, &grown, sizeof grown);
	*cap = more;
	return OK;
}

static CHECKED errc room(struct rw_decoder *d, void *array, size_t n, size_t *cap, size_t size, uint32_t flag, uint32_t fixed, enum errid id,
	const char *what, struct err *err)
{
	uint32_t max = flag < fixed ? flag : fixed;
	if (UNLIKELY(n >= max))
		return err_id(err, id, ERR_LIMIT, "more than %" PRIu32 " %s in one request", max, what);
	return n < *cap ? OK : grow(d, array, n, cap, size, what, err);
}

errc rw_labels_gather(struct rw_decoder *d, struct span message, size_t n_bytes, struct span *out, struct err *err)
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
		if (f.number == SERIES_LABELS) {
			memcpy(run + n, start, (size_t)(r.p - start));
			n += (size_t)(r.p - start);
		}
	}
	ASSERT(n == n_bytes);
	*out = span_of(run, n);
	return OK;
}

/* ---- exemplars ---- */

errc rw_exemplar_room(struct rw_decoder *d, struct err *err)
{
	struct rw_request *out = d->out;
	return room(d, &out->exemplars, out->n_exemplars, &d->exemplars_cap, sizeof *out->exemplars, d->limits->max_samples,
		LIMIT_INGEST_EXEMPLARS_PER_REQUEST, ERRID_TOO_MANY_SAMPLES, "exemplars", err);
}

errc rw_exemplar_add(struct rw_decoder *d, struct span message, struct err *err)
{
	errc rc = OK;
	struct exemplar e = {.wire = {"", 0}};
	const uint8_t *labels_end = NULL;
	bool contiguous = true;
	size_t n_bytes = 0;
	struct rd r = rd_of(message.p, message.n);
	TRY(rw_exemplar_room(d, err));
	while (r.p < r.end) {
		const uint8_t *start = r.p;
		const void *at = start;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(d, at, why, err);
		if (f.number > 3)
			continue;
		if (f.wire != (f.number == 1 ? PB_LEN : f.number == 2 ? PB_I64 : PB_VARINT))
			return rw_malformed(d, at, "wrong wire type in an exemplar", err);
		if (f.number == 2) {
			e.v = f.value;
		} else if (f.number == 3) {
			e.t = (int64_t)f.value;
		} else {
			if (++e.n_labels > d->limits->max_labels_decode)
				return rw_too_many_labels(d, err);
			if ((why = pb_check_label(f.bytes, &at)))
				return rw_malformed(d, at, why, err);
			if (!labels_end)
				e.wire.p = (const char *)start;
			contiguous &= !labels_end || labels_end == start;
			labels_end = r.p;
			n_bytes += (size_t)(r.p - start);
		}
	}
	e.wire.n = n_bytes;
	if (!contiguous)
		TRY(rw_labels_gather(d, message, n_bytes, &e.wire, err));
	d->out->exemplars[d->out->n_exemplars++] = e;
fail:
	return rc;
}

/* ---- metadata ---- */

errc rw_metadata_room(struct rw_decoder *d, struct err *err)
{
	struct rw_request *out = d->out;
	return room(d, &out->metadata, out->n_metadata, &d->metadata_cap, sizeof *out->metadata, d->limits->max_series,
		LIMIT_INGEST_METADATA_PER_REQUEST, ERRID_TOO_MANY_SERIES, "metadata entries", err);
}

errc rw_metadata_add(struct rw_decoder *d, struct span message, struct err *err)
{
	errc rc = OK;
	struct metadata m = {.family = {"", 0}, .help = {"", 0}, .unit = {"", 0}};
	struct rd r = rd_of(message.p, message.n);
	TRY(rw_metadata_room(d, err));
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(d, at, why, err);
		if (f.number > 5 || f.number == 3)
			continue;
		if (f.wire != (f.number == 1 ? PB_VARINT : PB_LEN))
			return rw_malformed(d, at, "wrong wire type in metadata", err);
		if (f.number == 1)
			m.type = rw_metric_type(f.value);
		else
			*(f.number == 2 ? &m.family : f.number == 4 ? &m.help : &m.unit) = f.bytes;
	}
	d->out->metadata[d->out->n_metadata++] = m;
fail:
	return rc;
}

/* ---- histograms ---- */

enum hist_field {
	HIST_COUNT = 1,
	HIST_COUNT_FLOAT,
	HIST_SUM,
	HIST_SCHEMA,
	HIST_ZERO_THRESHOLD,
	HIST_ZERO_COUNT,
	HIST_ZERO_COUNT_FLOAT,
	HIST_NEG_SPANS,
	HIST_NEG_DELTAS,
	HIST_NEG_COUNTS,
	HIST_POS_SPANS,
	HIST_POS_DELTAS,
	HIST_POS_COUNTS,
	HIST_RESET_HINT,
	HIST_TIME,
	HIST_CUSTOM,
	HIST_START, /* 2.0 */
	HIST_FIELDS
};

static int32_t sint32_of(uint64_t v)
{
	uint32_t u = (uint32_t)v; /* as protobuf's parsers: 32 bits of it count */
	return (int32_t)((u >> 1) ^ -(u & 1));
}

static CHECKED errc span_decode(const struct rw_decoder *d, struct span message, struct hist_span *s, struct err *err)
{
	struct rd r = rd_of(message.p, message.n);
	*s = (struct hist_span){0, 0};
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(d, at, why, err);
		if (f.number > 2)
			continue;
		if (f.wire != PB_VARINT)
			return rw_malformed(d, at, "wrong wire type in a bucket span", err);
		if (f.number == 1)
			s->offset = sint32_of(f.value);
		else
			s->length = (uint32_t)f.value;
	}
	return OK;
}

/* Everything but the arrays' content; n[field] is how many elements each array has. */
static CHECKED errc hist_scan(const struct rw_decoder *d, struct span message, bool has_start, struct rw_hist *x, size_t *n, struct err *err)
{
	struct rd r = rd_of(message.p, message.n);
	bool floats = false, zero_float = false;
	uint64_t count = 0, zero = 0;
	struct histogram *h = &x->h;
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(d, at, why, err);
		bool right = true;
		switch (f.number) {
		case HIST_COUNT:
			right = f.wire == PB_VARINT;
			count = f.value;
			floats = false;
			break;
		case HIST_COUNT_FLOAT:
			right = f.wire == PB_I64;
			count = f.value;
			floats = true;
			break;
		case HIST_SUM:
			right = f.wire == PB_I64;
			h->sum = f.value;
			break;
		case HIST_SCHEMA:
			right = f.wire == PB_VARINT;
			h->schema = sint32_of(f.value);
			break;
		case HIST_ZERO_THRESHOLD:
			right = f.wire == PB_I64;
			h->zero_threshold = f64_of_bits(f.value);
			break;
		case HIST_ZERO_COUNT:
			right = f.wire == PB_VARINT;
			zero = f.value;
			zero_float = false;
			break;
		case HIST_ZERO_COUNT_FLOAT:
			right = f.wire == PB_I64;
			zero = f.value;
			zero_float = true;
			break;
		case HIST_NEG_SPANS:
		case HIST_POS_SPANS:
			right = f.wire == PB_LEN;
			n[f.number]++;
			break;
		case HIST_NEG_DELTAS:
		case HIST_POS_DELTAS: /* one element a field is the other spelling of the same */
			right = f.wire == PB_LEN || f.wire == PB_VARINT;
			if (f.wire == PB_LEN && f.bytes.n / UVARINT_MAX_BYTES > LIMIT_HISTOGRAM_BUCKETS)
				n[f.number] += f.bytes.n / UVARINT_MAX_BYTES; /* too many however they are spelled */
			else
				n[f.number] += f.wire == PB_LEN ? pb_packed_count(f.bytes) : 1;
			break;
		case HIST_NEG_COUNTS:
		case HIST_POS_COUNTS:
		case HIST_CUSTOM:
			right = f.wire == PB_LEN || f.wire == PB_I64;
			if (f.wire == PB_LEN && f.bytes.n % 8 != 0)
				return rw_malformed(d, at, "packed doubles of a length that 8 does not divide", err);
			n[f.number] += f.wire == PB_LEN ? f.bytes.n / 8 : 1;
			break;
		case HIST_RESET_HINT:
			right = f.wire == PB_VARINT;
			h->reset_hint = (uint32_t)f.value <= HIST_RESET_GAUGE ? (uint8_t)f.value : HIST_RESET_UNKNOWN;
			break;
		case HIST_TIME:
			right = f.wire == PB_VARINT;
			x->t = (int64_t)f.value;
			break;
		case HIST_START:
			right = !has_start || f.wire == PB_VARINT;
			x->start = has_start ? (int64_t)f.value : 0;
			break;
		default:
			break;
		}
		if (!right)
			return rw_malformed(d, at, "wrong wire type in a histogram", err);
	}
	x->kind = floats ? SAMPLE_FLOAT_HISTOGRAM : SAMPLE_HISTOGRAM;
	if (floats) {
		h->f_count = count;
		h->f_zero_count = zero_float ? zero : 0;
	} else {
		h->i_count = count;
		h->i_zero_count = zero_float ? 0 : zero;
	}
	return OK;
}

/* Fills what hist_scan counted; array[field] NULL: left out, its varints are checked all the same. */
static CHECKED errc hist_fill(const struct rw_decoder *d, struct span message, uint64_t *const *array, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(message.p, message.n);
	size_t at[HIST_FIELDS] = {0};
	while (r.p < r.end) {
		const char *why = NULL;
		struct pb_field f;
		ASSERT(pb_next(&r, &f, &why));
		switch (f.number) {
		case HIST_NEG_SPANS:
		case HIST_POS_SPANS: {
			struct hist_span s;
			TRY(span_decode(d, f.bytes, &s, err));
			memcpy(&array[f.number][at[f.number]++], &s, sizeof s);
			break;
		}
		case HIST_NEG_DELTAS:
		case HIST_POS_DELTAS: {
			uint64_t *out = array[f.number];
			size_t k = at[f.number];
			if (f.wire == PB_VARINT) {
				if (out)
					out[k++] = (uint64_t)zigzag_decode(f.value);
			} else {
				struct rd p = rd_of(f.bytes.p, f.bytes.n);
				while (p.p < p.end) {
					const void *bad = p.p;
					uint64_t v = rd_uvarint(&p);
					if (!p.ok)
						return rw_malformed(d, bad, "varint in a packed array cut off or above 64 bits", err);
					if (out)
						out[k++] = (uint64_t)zigzag_decode(v);
				}
			}
			at[f.number] = k;
			break;
		}
		case HIST_NEG_COUNTS:
		case HIST_POS_COUNTS:
		case HIST_CUSTOM:
			if (!array[f.number])
				break;
			if (f.wire == PB_I64) {
				array[f.number][at[f.number]++] = f.value;
			} else if (f.bytes.n) {
				memcpy(&array[f.number][at[f.number]], f.bytes.p, f.bytes.n);
				at[f.number] += f.bytes.n / 8;
			}
			break;
		default:
			break;
		}
	}
fail:
	return rc;
}

_Static_assert(sizeof(struct hist_span) == sizeof(uint64_t), "spans are carved from the same piece");

errc rw_hist_add(struct rw_decoder *d, struct span message, bool has_start, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = d->out;
	struct rw_hist x = {0};
	size_t n[HIST_FIELDS] = {0}, total = 0;
	uint64_t *array[HIST_FIELDS] = {NULL};
	TRY(room(d, &out->hists, out->n_hists, &d->hists_cap, sizeof *out->hists, d->limits->max_samples, LIMIT_INGEST_HISTOGRAMS_PER_REQUEST,
		ERRID_TOO_MANY_SAMPLES, "histograms", err));
	TRY(hist_scan(d, message, has_start, &x, n, err));
	bool floats = x.kind == SAMPLE_FLOAT_HISTOGRAM;
	n[floats ? HIST_NEG_DELTAS : HIST_NEG_COUNTS] = n[floats ? HIST_POS_DELTAS : HIST_POS_COUNTS] = 0;
	for (int k = 0; k < HIST_FIELDS; k++) {
		if (n[k] > LIMIT_HISTOGRAM_BUCKETS)
			return err_id(err, ERRID_TOO_MANY_SAMPLES, ERR_LIMIT, "series %zu of the request has a histogram of more than %d buckets",
				out->n_series, LIMIT_HISTOGRAM_BUCKETS);
		total += n[k];
	}
	d->hist_bytes += total * sizeof(uint64_t);
	if (d->hist_bytes > LIMIT_INGEST_HISTOGRAM_BYTES)
		return err_id(err, ERRID_TOO_MANY_SAMPLES, ERR_LIMIT, "more than %" PRIu64 " bytes of histogram buckets in one request",
			(uint64_t)LIMIT_INGEST_HISTOGRAM_BYTES);
	uint64_t *piece = arena_alloc(d->arena, total * sizeof *piece);
	CHECK(piece, ERR_NOMEM, "remote write: no memory for a histogram of %zu buckets", total);
	for (int k = 0; k < HIST_FIELDS; k++)
		if (n[k]) {
			array[k] = piece;
			piece += n[k];
		}
	TRY(hist_fill(d, message, array, err));
	struct histogram *h = &x.h;
	h->neg_spans = (const struct hist_span *)(const void *)array[HIST_NEG_SPANS];
	h->pos_spans = (const struct hist_span *)(const void *)array[HIST_POS_SPANS];
	h->n_neg_spans = (uint32_t)n[HIST_NEG_SPANS];
	h->n_pos_spans = (uint32_t)n[HIST_POS_SPANS];
	if (floats) {
		h->f_neg = array[HIST_NEG_COUNTS];
		h->f_pos = array[HIST_POS_COUNTS];
	} else {
		h->i_neg = (const int64_t *)array[HIST_NEG_DELTAS];
		h->i_pos = (const int64_t *)array[HIST_POS_DELTAS];
	}
	h->n_neg = (uint32_t)n[floats ? HIST_NEG_COUNTS : HIST_NEG_DELTAS];
	h->n_pos = (uint32_t)n[floats ? HIST_POS_COUNTS : HIST_POS_DELTAS];
	h->custom = array[HIST_CUSTOM];
	h->n_custom = (uint32_t)n[HIST_CUSTOM];
	out->hists[out->n_hists++] = x;
fail:
	return rc;
}
