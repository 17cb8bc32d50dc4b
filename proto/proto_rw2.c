/* proto/proto_rw2.c - remote write 2.0 decoded in place.
 *
 *   Request    { 4 repeated string symbols; 5 repeated TimeSeries }
 *   TimeSeries { 1 packed uint32 labels_refs; 2 Sample; 3 Histogram; 4 Exemplar; 5 Metadata; 6 int64 created_timestamp }
 *   Sample     { 1 double value; 2 int64 timestamp; 3 int64 start_timestamp }
 *   Exemplar   { 1 packed uint32 labels_refs; 2 double value; 3 int64 timestamp }
 *   Metadata   { 1 enum type; 3 uint32 help_ref; 4 uint32 unit_ref }
 *
 * Senders write all symbols, then the series, and in a series its fields in the order of their numbers, so references are checked against the
 * symbols as they are read. A body that has symbols behind a series is legal too: it is begun again with all symbols collected first.
 *
 * series_fast reads a series of references, samples, metadata and a created timestamp in one pass, and refuses nothing: whatever is unusual (another
 * order, an exemplar, a reference that points nowhere) is read again from its start by series_any, which takes every spelling and names what is wrong.
 * It has a budget of 50 ns a series of ten labels. proto_rw2_test.c holds both against protobuf-c.
 *
 * Memory: references are decoded once, to 32 bits each, into pieces of the arena. What a few references can stand for is bounded as well (LIMIT_INGEST_LABEL_BYTES): a series of 2.0 never asks for more memory than 1.0 could.
 *
 * Metadata comes with every series, mostly the same as with the series of that name before: it is kept once for each name unless it changes.
 */
#include <inttypes.h>
#include <stdio.h>
#include "base/labels.h"
#include "proto/proto_int.h"

enum { TAG_SYMBOL = 0x22, TAG_SERIES = 0x2a };
enum { TAG_REFS = 0x0a, TAG_SAMPLE = 0x12, TAG_METADATA = 0x2a, TAG_CREATED = 0x30 };
enum { TAG_VALUE = 0x09, TAG_TIME = 0x10, TAG_START = 0x18 };
enum { TAG_TYPE = 0x08, TAG_HELP = 0x18, TAG_UNIT = 0x20 };
enum { REQUEST_SYMBOL = 4, REQUEST_SERIES };
enum { SERIES_HISTOGRAM = 3, SERIES_EXEMPLAR, SERIES_METADATA, SERIES_CREATED };
enum { SYMBOLS_FIRST = 1024, REFS_PIECE = 16384, FAST_REFS_BYTES = 1024, FAST_SAMPLE_BYTES = 20 };

struct rw2 {
	struct rw_decoder d;
	size_t symbols_cap;
	bool complete;	/* all symbols are known */
	uint32_t *refs; /* where the next series' references go, and how many fit */
	size_t refs_left;
	uint64_t n_refs, label_bytes, exemplar_bytes; /* of all series */
	uint32_t name;				      /* a symbol that says __name__, or 0 */
	uint32_t *metadata_of;			      /* by symbol: the latest entry of that family, + 1; NULL until the first */
};

static CHECKED errc bad_ref(const struct rw2 *w, const void *at, uint64_t ref, struct err *err)
{
	char why[80];
	snprintf(why, sizeof why, "reference %" PRIu64 " of %zu symbols", ref, w->d.out->n_symbols);
	return rw_malformed(&w->d, at, why, err);
}

/* ---- symbols ---- */

static CHECKED errc symbols_grow(struct rw2 *w, struct err *err)
{
	struct rw_request *out = w->d.out;
	size_t n = w->symbols_cap ? 2 * w->symbols_cap : SYMBOLS_FIRST;
	if (out->n_symbols >= LIMIT_INGEST_SYMBOLS_PER_REQUEST)
		return err_id(err, ERRID_TOO_MANY_SERIES, ERR_LIMIT, "more than %d symbols in one request", LIMIT_INGEST_SYMBOLS_PER_REQUEST);
	struct span *grown = arena_alloc(w->d.arena, n * sizeof *grown);
	if (!grown)
		return err_set(err, ERR_NOMEM, "remote write: no memory for %zu symbols", n);
	if (out->n_symbols)
		memcpy(grown, out->symbols, out->n_symbols * sizeof *grown);
	out->symbols = grown;
	w->symbols_cap = n;
	return OK;
}

static CHECKED errc symbol_add(struct rw2 *w, const void *at, struct span text, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = w->d.out;
	if (UNLIKELY(out->n_symbols == 0 && text.n != 0))
		return rw_malformed(&w->d, at, "the first symbol is not the empty string", err);
	if (UNLIKELY(out->n_symbols == w->symbols_cap))
		TRY(symbols_grow(w, err));
	out->symbols[out->n_symbols++] = text;
fail:
	return rc;
}

/* For a body that has symbols behind series. */
static CHECKED errc symbols_collect(struct rw2 *w, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(w->d.body.p, w->d.body.n);
	w->d.out->n_symbols = 0;
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(&w->d, at, why, err);
		if (f.number == REQUEST_SYMBOL && f.wire != PB_LEN)
			return rw_malformed(&w->d, at, "wrong wire type in the request", err);
		if (f.number == REQUEST_SYMBOL)
			TRY(symbol_add(w, at, f.bytes, err));
	}
	w->complete = true;
fail:
	return rc;
}

/* ---- references ---- */

static CHECKED errc refs_room(struct rw2 *w, size_t n, struct err *err)
{
	if (LIKELY(n <= w->refs_left))
		return OK;
	size_t piece = w->d.body.n < REFS_PIECE ? w->d.body.n : REFS_PIECE; /* no more of them than bytes */
	piece = piece < n ? n : piece;
	w->refs = arena_alloc(w->d.arena, piece * sizeof *w->refs);
	w->refs_left = w->refs ? piece : 0;
	return w->refs ? OK : err_set(err, ERR_NOMEM, "remote write: no memory for %zu label references", piece);
}

enum { REF_READ_AHEAD = 3 };

/* The reference at p, of which three bytes may be read whatever it takes; UINT32_MAX when it takes more, so is above two million. */
static inline uint32_t ref_fast(const uint8_t **pp)
{
	const uint8_t *p = *pp;
	uint32_t x = *p++;
	if (x >= 0x80) {
		uint32_t y = *p++;
		x = (x & 0x7f) | y << 7;
		if (UNLIKELY(y >= 0x80)) {
			if (*p >= 0x80)
				return UINT32_MAX;
			x = (x & 0x3fff) | (uint32_t)*p++ << 14;
		}
	}
	*pp = p;
	return x;
}

/* Bytes that the labels take in 1.0's form, at most: tags and lengths of a label are 6, and 3 more for each 124 bytes of text. */
static inline uint64_t wire_bound(uint64_t text, uint32_t n_labels)
{
	return text + 6 * (uint64_t)n_labels + 3 * (text / 124);
}

static CHECKED errc labels_account(struct rw2 *w, const struct rw_series *s, struct err *err)
{
	w->n_refs += 2 * (uint64_t)s->n_labels;
	w->label_bytes += s->wire.n;
	if (UNLIKELY(w->n_refs > LIMIT_INGEST_LABEL_REFS))
		return err_id(err, ERRID_TOO_MANY_SERIES, ERR_LIMIT, "more than %d label references in one request", LIMIT_INGEST_LABEL_REFS);
	if (UNLIKELY(w->label_bytes > LIMIT_INGEST_LABEL_BYTES))
		return err_id(err, ERRID_DECODED_TOO_LARGE, ERR_LIMIT, "the labels of the request's series stand for more than %" PRIu64 " bytes",
			(uint64_t)LIMIT_INGEST_LABEL_BYTES);
	return OK;
}

/* ---- metadata ---- */

static bool is_name(struct rw2 *w, uint32_t symbol)
{
	if (LIKELY(symbol == w->name && symbol != 0))
		return true;
	if (!span_is(w->d.out->symbols[symbol], "__name__"))
		return false;
	w->name = symbol;
	return true;
}

/* Of the family that the series is named after. What says nothing, or belongs to no metric, is left out. */
static CHECKED errc metadata_add(struct rw2 *w, struct rw_series *s, uint64_t type, uint32_t help, uint32_t unit, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = w->d.out;
	uint32_t k = 0;
	struct metadata m = {.type = rw_metric_type(type), .help = out->symbols[help], .unit = out->symbols[unit]};
	if (m.type == METRIC_UNKNOWN && m.help.n == 0 && m.unit.n == 0)
		return OK;
	while (k < s->n_labels && !is_name(w, s->refs[2 * k]))
		k++;
	if (k == s->n_labels)
		return OK;
	uint32_t family = s->refs[2 * k + 1];
	m.family = out->symbols[family];
	if (m.family.n == 0)
		return OK;
	if (UNLIKELY(!w->metadata_of)) {
		/* later symbols start over */
		w->metadata_of = arena_calloc(w->d.arena, out->n_symbols, sizeof *w->metadata_of);
		CHECK(w->metadata_of, ERR_NOMEM, "remote write: no memory for metadata of %zu symbols", out->n_symbols);
	}
	if (w->metadata_of[family]) {
		const struct metadata *old = &out->metadata[w->metadata_of[family] - 1];
		s->metadata = w->metadata_of[family];
		if (LIKELY(old->type == m.type && span_eq(old->help, m.help) && span_eq(old->unit, m.unit)))
			return OK;
	}
	TRY(rw_metadata_room(&w->d, err));
	out->metadata[out->n_metadata++] = m;
	s->metadata = w->metadata_of[family] = (uint32_t)out->n_metadata;
fail:
	return rc;
}

/* ---- a series as senders write it ---- */

enum fast { FAST_DONE, FAST_OTHER };
struct fast_metadata {
	uint32_t type, help, unit;
};

/* Reads up to REF_READ_AHEAD bytes behind `end`. */
static inline bool metadata_fast(const uint8_t *p, const uint8_t *end, size_t n_symbols, struct fast_metadata *m)
{
	*m = (struct fast_metadata){0, 0, 0};
	while (p < end) {
		uint8_t tag = *p++;
		uint32_t v = ref_fast(&p);
		if (UNLIKELY(v >= n_symbols && tag != TAG_TYPE))
			return false;
		if (tag == TAG_TYPE && v < METRIC_TYPES)
			m->type = v;
		else if (tag == TAG_HELP)
			m->help = v;
		else if (LIKELY(tag == TAG_UNIT))
			m->unit = v;
		else
			return false;
	}
	return p == end;
}

/* FAST_OTHER: nothing has happened but that memory beyond n_samples and at w->refs was scribbled on. */
static inline enum fast series_fast(struct rw2 *w, struct span message, struct rw_series *s, bool *has_metadata, struct fast_metadata *m)
{
	struct rw_request *out = w->d.out;
	const uint8_t *p = (const uint8_t *)message.p, *end = p + message.n, *body_end = (const uint8_t *)w->d.body.p + w->d.body.n;
	const struct span *symbols = out->symbols;
	const size_t n_symbols = out->n_symbols;
	if (UNLIKELY(message.n < 4 || p[0] != TAG_REFS || n_symbols == 0)) /* without symbols even what is left out refers to none */
		return FAST_OTHER;
	size_t n = p[1];
	p += 2;
	if (n >= 0x80) {
		if (UNLIKELY(*p >= 0x80))
			return FAST_OTHER;
		n = (n & 0x7f) | (size_t)*p++ << 7;
	}
	if (UNLIKELY((size_t)(end - p) < n || n > w->refs_left || n > FAST_REFS_BYTES || (size_t)(body_end - p) < n + REF_READ_AHEAD))
		return FAST_OTHER;
	const uint8_t *refs_end = p + n;
	uint32_t *refs = w->refs;
	uint64_t text = 0;
	n = 0;
	while (p < refs_end) {
		uint32_t ref = ref_fast(&p);
		if (UNLIKELY(ref >= n_symbols))
			return FAST_OTHER;
		refs[n++] = ref;
		text += symbols[ref].n;
	}
	if (UNLIKELY(p != refs_end || n % 2 != 0 || n > 2 * (size_t)w->d.limits->max_labels_decode))
		return FAST_OTHER;

	size_t at = out->n_samples;
	struct rw_sample *samples = out->samples;
	while (p < end && *p == TAG_SAMPLE) {
		/* 12 len [09 value(8)] 10 time [18 start] */
		if (UNLIKELY(body_end - p < FAST_SAMPLE_BYTES || at == w->d.samples_cap))
			return FAST_OTHER;
		const uint8_t *sample_end = p + 2 + p[1];
		uint64_t valued = p[2] == TAG_VALUE, t = 0, start = 0;
		const uint8_t *time = p + 2 + 9 * valued;
		if (UNLIKELY(time[0] != TAG_TIME))
			return FAST_OTHER;
		const uint8_t *q = pb_varint_fast(time + 1, body_end, &t);
		if (UNLIKELY(q != sample_end || q > end)) {
			if (!q || q >= sample_end || sample_end > end || *q != TAG_START || !out->starts)
				return FAST_OTHER;
			q = pb_varint_fast(q + 1, body_end, &start);
			if (q != sample_end)
				return FAST_OTHER;
		}
		if (out->starts)
			out->starts[at] = (int64_t)start;
		samples[at].t = (int64_t)t;
		samples[at].v = get_le64(p + 3) & (0 - valued);
		at++;
		p = q;
	}
	*has_metadata = false;
	if (end - p >= 2 && *p == TAG_METADATA) {
		size_t len = p[1];
		p += 2;
		if (UNLIKELY((size_t)(end - p) < len || len >= 0x80 ||
			     (len > 0 && ((size_t)(body_end - p) < len + REF_READ_AHEAD || !metadata_fast(p, p + len, n_symbols, m)))))
			return FAST_OTHER;
		*has_metadata = len > 0;
		p += len;
	}
	uint64_t created = 0;
	if (end - p >= 2 && *p == TAG_CREATED) {
		p = pb_varint_fast(p + 1, body_end, &created);
		if (UNLIKELY(!p))
			return FAST_OTHER;
	}
	if (UNLIKELY(p != end))
		return FAST_OTHER;
	*s = (struct rw_series){
		.wire = {NULL, wire_bound(text, (uint32_t)n / 2)},
		.refs = refs,
		.n_labels = (uint32_t)n / 2,
		.first_sample = (uint32_t)out->n_samples,
		.n_samples = (uint32_t)(at - out->n_samples),
		.created = (int64_t)created,
	};
	w->refs += n;
	w->refs_left -= n;
	out->n_samples = at;
	return FAST_DONE;
}

/* ---- any field order and spelling ---- */

/* References of a message: of fields number 1, packed and not, in sequence. Twice: counted against the limit, then decoded. */
static CHECKED errc refs_any(struct rw2 *w, struct span message, const uint32_t **refs, uint32_t *n_labels, uint64_t *text, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = w->d.out;
	size_t n = 0, max = 2 * (size_t)w->d.limits->max_labels_decode;
	*text = 0;
	*refs = NULL;
	*n_labels = 0;
	for (int fill = 0; fill < 2; fill++) {
		struct rd r = rd_of(message.p, message.n);
		size_t k = 0;
		while (r.p < r.end) {
			const void *at = r.p;
			const char *why = NULL;
			struct pb_field f;
			if (!pb_next(&r, &f, &why))
				return rw_malformed(&w->d, at, why, err);
			if (f.number != SERIES_LABELS)
				continue;
			if (f.wire != PB_LEN && f.wire != PB_VARINT)
				return rw_malformed(&w->d, at, "wrong wire type of label references", err);
			if (!fill) {
				/* every element takes ten bytes or fewer: what has too many of them shows without counting */
				n += f.wire == PB_VARINT ? 1 : f.bytes.n / UVARINT_MAX_BYTES > max ? max + 1 : pb_packed_count(f.bytes);
				if (n > max)
					return rw_too_many_labels(&w->d, err);
				continue;
			}
			struct rd p = rd_of(f.bytes.p, f.wire == PB_LEN ? f.bytes.n : 0);
			do {
				const void *ref_at = f.wire == PB_LEN ? p.p : at;
				if (f.wire == PB_LEN && p.p == p.end)
					break;
				uint64_t ref = f.wire == PB_LEN ? rd_uvarint(&p) : f.value;
				if (!p.ok)
					return rw_malformed(&w->d, ref_at, "varint in a packed array cut off or above 64 bits", err);
				ref = (uint32_t)ref; /* as protobuf's parsers: 32 bits of it count */
				if (ref >= out->n_symbols)
					return bad_ref(w, ref_at, ref, err);
				w->refs[k++] = (uint32_t)ref;
				*text += out->symbols[ref].n;
			} while (f.wire == PB_LEN);
		}
		if (!fill)
			TRY(refs_room(w, n, err));
		else
			n = k;
	}
	if (n % 2 != 0)
		return rw_malformed(&w->d, message.p, "an odd number of label references", err);
	*refs = w->refs;
	*n_labels = (uint32_t)n / 2;
	w->refs += n;
	w->refs_left -= n;
fail:
	return rc;
}

static uint8_t *put_text(uint8_t *p, uint8_t tag, struct span text)
{
	*p++ = tag;
	p = put_uvarint(p, text.n);
	if (text.n)
		memcpy(p, text.p, text.n);
	return p + text.n;
}

/* An exemplar's labels as 1.0 would send them. */
static CHECKED errc exemplar_wire(struct rw2 *w, const uint32_t *refs, struct exemplar *e, struct err *err)
{
	const struct span *symbols = w->d.out->symbols;
	size_t size = 0;
	for (uint32_t k = 0; k < 2 * e->n_labels; k += 2) {
		struct label l = {symbols[refs[k]], symbols[refs[k + 1]]};
		size += labels_wire_size((struct labels){&l, 1});
	}
	w->exemplar_bytes += size;
	if (w->exemplar_bytes > LIMIT_INGEST_EXEMPLAR_BYTES)
		return err_id(err, ERRID_TOO_MANY_SAMPLES, ERR_LIMIT, "the labels of the request's exemplars stand for more than %" PRIu64 " bytes",
			(uint64_t)LIMIT_INGEST_EXEMPLAR_BYTES);
	uint8_t *p = arena_alloc(w->d.arena, size);
	if (!p)
		return err_set(err, ERR_NOMEM, "remote write: no memory for %zu bytes of an exemplar's labels", size);
	e->wire = span_of(p, size);
	for (uint32_t k = 0; k < 2 * e->n_labels; k += 2) {
		struct span name = symbols[refs[k]], value = symbols[refs[k + 1]];
		*p++ = TAG_REFS; /* Label's number is that of references */
		p = put_uvarint(p, 2 + uvarint_size(name.n) + name.n + uvarint_size(value.n) + value.n);
		p = put_text(p, 0x0a, name);
		p = put_text(p, 0x12, value);
	}
	return OK;
}

static CHECKED errc exemplar_any(struct rw2 *w, struct span message, struct err *err)
{
	errc rc = OK;
	struct exemplar e = {.wire = {"", 0}};
	const uint32_t *refs;
	uint64_t text;
	struct rd r = rd_of(message.p, message.n);
	TRY(rw_exemplar_room(&w->d, err));
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(&w->d, at, why, err);
		if (f.number != 2 && f.number != 3)
			continue;
		if (f.wire != (f.number == 2 ? PB_I64 : PB_VARINT))
			return rw_malformed(&w->d, at, "wrong wire type in an exemplar", err);
		if (f.number == 2)
			e.v = f.value;
		else
			e.t = (int64_t)f.value;
	}
	TRY(refs_any(w, message, &refs, &e.n_labels, &text, err));
	TRY(exemplar_wire(w, refs, &e, err));
	w->refs -= 2 * (size_t)e.n_labels; /* nobody asks for them again */
	w->refs_left += 2 * (size_t)e.n_labels;
	w->d.out->exemplars[w->d.out->n_exemplars++] = e;
fail:
	return rc;
}

static CHECKED errc metadata_any(struct rw2 *w, struct span message, uint64_t *type, uint32_t *help, uint32_t *unit, struct err *err)
{
	struct rd r = rd_of(message.p, message.n);
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(&w->d, at, why, err);
		if (f.number != 1 && f.number != 3 && f.number != 4)
			continue;
		if (f.wire != PB_VARINT)
			return rw_malformed(&w->d, at, "wrong wire type in metadata", err);
		if (f.number == 1) {
			*type = f.value;
			continue;
		}
		*(f.number == 3 ? help : unit) = (uint32_t)f.value; /* the last one counts, and is judged then */
	}
	return OK;
}

static CHECKED errc series_any(struct rw2 *w, struct span message, struct rw_series *s, struct err *err)
{
	errc rc = OK;
	struct rw_decoder *d = &w->d;
	struct rw_request *out = d->out;
	struct rd r = rd_of(message.p, message.n);
	size_t first_sample = out->n_samples, first_hist = out->n_hists, first_exemplar = out->n_exemplars;
	uint64_t type = 0, created = 0, text = 0;
	uint32_t help = 0, unit = 0, n_labels;
	const uint32_t *refs;
	if (out->n_symbols == 0)
		return rw_malformed(d, message.p, "a series, and no symbols: the first one must be the empty string", err);
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			return rw_malformed(d, at, why, err);
		if (f.number > SERIES_CREATED || f.number == SERIES_LABELS)
			continue; /* references are read when it is known to be well formed so far */
		if (f.wire != (f.number == SERIES_CREATED ? PB_VARINT : PB_LEN))
			return rw_malformed(d, at, "wrong wire type in a series", err);
		switch (f.number) {
		case SERIES_SAMPLE: {
			int64_t start = 0;
			if (out->n_samples == d->samples_cap)
				TRY(rw_samples_grow(d, span_of(at, (size_t)(r.end - (const uint8_t *)at)), err));
			TRY(rw_sample_any(d, f.bytes, &out->samples[out->n_samples], &start, err));
			if (start != 0)
				TRY(rw_starts_begin(d, err));
			if (out->starts)
				out->starts[out->n_samples] = start;
			out->n_samples++;
			break;
		}
		case SERIES_HISTOGRAM:
			TRY(rw_hist_add(d, f.bytes, true, err));
			break;
		case SERIES_EXEMPLAR:
			TRY(exemplar_any(w, f.bytes, err));
			break;
		case SERIES_METADATA:
			TRY(metadata_any(w, f.bytes, &type, &help, &unit, err));
			break;
		default:
			created = f.value;
			break;
		}
	}
	TRY(refs_any(w, message, &refs, &n_labels, &text, err));
	*s = (struct rw_series){
		.wire = {NULL, wire_bound(text, n_labels)},
		.refs = refs,
		.n_labels = n_labels,
		.first_sample = (uint32_t)first_sample,
		.n_samples = (uint32_t)(out->n_samples - first_sample),
		.first_hist = (uint32_t)first_hist,
		.n_hists = (uint32_t)(out->n_hists - first_hist),
		.first_exemplar = (uint32_t)first_exemplar,
		.n_exemplars = (uint32_t)(out->n_exemplars - first_exemplar),
		.created = (int64_t)created,
	};
	if (help >= out->n_symbols || unit >= out->n_symbols)
		return bad_ref(w, message.p, help >= out->n_symbols ? help : unit, err);
	TRY(metadata_add(w, s, type, help, unit, err));
fail:
	return rc;
}

/* ---- the request ---- */

static CHECKED errc series_decode(struct rw2 *w, struct span message, struct err *err)
{
	errc rc = OK;
	struct rw_request *out = w->d.out;
	TRY(rw_series_room(&w->d, message, err));
	TRY(refs_room(w, message.n < FAST_REFS_BYTES ? message.n : FAST_REFS_BYTES, err));
	struct rw_series *s = &out->series[out->n_series];
	bool has_metadata;
	struct fast_metadata m;
	if (LIKELY(series_fast(w, message, s, &has_metadata, &m) == FAST_DONE)) {
		if (has_metadata)
			TRY(metadata_add(w, s, m.type, m.help, m.unit, err));
	} else {
		TRY(series_any(w, message, s, err));
	}
	TRY(labels_account(w, s, err));
	out->n_series++;
fail:
	return rc;
}

static CHECKED errc request_decode(struct rw2 *w, struct err *err)
{
	errc rc = OK;
	struct rw_decoder *d = &w->d;
	struct rd r = rd_of(d->body.p, d->body.n);
	while (r.p < r.end) {
		const void *at = r.p;
		const char *why = NULL;
		struct pb_field f;
		if (LIKELY(*r.p == TAG_SERIES || *r.p == TAG_SYMBOL)) {
			f.number = *r.p++ == TAG_SERIES ? REQUEST_SERIES : REQUEST_SYMBOL;
			f.bytes = pb_message(&r);
			if (UNLIKELY(!r.ok))
				return rw_malformed(d, at, "length beyond the end", err);
		} else {
			if (!pb_next(&r, &f, &why))
				return rw_malformed(d, at, why, err);
			if (f.number != REQUEST_SERIES && f.number != REQUEST_SYMBOL)
				continue;
			if (f.wire != PB_LEN)
				return rw_malformed(d, at, "wrong wire type in the request", err);
		}
		if (f.number == REQUEST_SERIES) {
			TRY(series_decode(w, f.bytes, err));
		} else if (!w->complete) {
			if (d->out->n_series > 0)
				return rw_malformed(d, at, "symbols behind series", err); /* rw2_decode begins again */
			TRY(symbol_add(w, at, f.bytes, err));
		}
	}
fail:
	return rc;
}

/* Legal, and nobody does it: so it is asked when the first reading fails. */
static bool symbols_behind_series(struct span body)
{
	struct rd r = rd_of(body.p, body.n);
	bool series = false;
	const char *why = NULL;
	struct pb_field f;
	while (r.p < r.end && pb_next(&r, &f, &why)) {
		if (series && f.number == REQUEST_SYMBOL)
			return true;
		series |= f.number == REQUEST_SERIES;
	}
	return !r.ok; /* malformed further on: symbols_collect says where */
}

errc rw2_decode(struct span body, const struct rw_limits *limits, struct arena *arena, struct rw_request *out, struct err *err)
{
	ASSERT(limits && arena && out && (body.p || body.n == 0));
	errc rc = OK;
	*out = (struct rw_request){0};
	struct rw2 w = {.d = {.body = body, .limits = limits, .arena = arena, .out = out, .series_field = REQUEST_SERIES}};
	rc = request_decode(&w, err);
	if (LIKELY(rc != ERR_INVALID) || !symbols_behind_series(body))
		return rc;
	*out = (struct rw_request){0};
	w = (struct rw2){.d = w.d};
	w.d.series_cap = w.d.samples_cap = w.d.hists_cap = w.d.exemplars_cap = w.d.metadata_cap = 0;
	w.d.hist_bytes = 0;
	w.d.first = NULL;
	TRY(symbols_collect(&w, err));
	TRY(request_decode(&w, err));
fail:
	return rc;
}
