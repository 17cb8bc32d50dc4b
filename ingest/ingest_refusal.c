/* ingest/ingest_refusal.c - the words of a 400, or of the 429 of a tenant that has all its series: what a person needs to find the sender and the flag at
 * night.
 *
 *     err-varve-too-old: 3 of 2000 samples refused (too-old 2, duplicate-timestamp 1), the rest is stored; first: {__name__="up", ...}
 *     at 1700000000000: older than --ingest.oldest=30d allows
 *
 * Nothing in them comes from the clock: the same body again gets the same answer.
 *
 * A request that has samples refused for good and series refused for head_series_limit is answered 429: a sender that tries again after a 429 may still
 * get those series stored, and is told 400 for the rest when they are.
 */
#include <inttypes.h>
#include <string.h>
#include "base/config.h"
#include "base/limits.h"
#include "ingest/ingest_int.h"

static const char *short_id(enum errid id)
{
	const char *text = errid_text(id);
	return text + sizeof "err-varve-" - 1;
}

/* The limit of the tenant's series, with its value, where it stands and who said it. */
static void explain_tenant_series(const struct head_batch *b, const struct tenant_limits *limits, struct buf *out)
{
	char key[192];
	uint64_t n = 0;
	for (size_t i = 0; i < b->n_series; i++)
		n += b->series[i].refused_id == ERRID_TENANT_SERIES;
	buf_printf(out,
		"tenant %.*s has %" PRIu64 " series in the head, at most %" PRIu64 " are allowed (%s in --limits.file): %" PRIu64
		" of the request's %zu series are new",
		SPAN_ARG(b->tenant), b->tenant_series, b->max_series, limits_key(limits, TENANT_HEAD_SERIES, b->tenant, key, sizeof key), n,
		b->n_series);
	if (b->max_series != limits->v[TENANT_HEAD_SERIES])
		buf_printf(out, "; that is this node's part of the fleet's %" PRIu64, limits->v[TENANT_HEAD_SERIES]);
}

/* Why this one was refused, with the limit, its value and the flag that changes it. */
static void explain(const struct ingest *in, uint32_t n_labels, enum errid id, struct labels l, struct buf *out)
{
	char text[32];
	switch (id) {
	case ERRID_TOO_OLD:
		if (in->cfg.oldest_ms > 0)
			buf_printf(out, "older than --ingest.oldest=%s allows", format_duration_ms(in->cfg.oldest_ms, text, sizeof text));
		else
			buf_printf(out, "no window begins that early");
		break;
	case ERRID_TOO_FAR_AHEAD:
		buf_printf(out, "further ahead than --ingest.future=%s allows; check the sender's clock",
			format_duration_ms(in->cfg.future_ms, text, sizeof text));
		break;
	case ERRID_DUPLICATE_TIMESTAMP:
		buf_printf(out, "another value is already stored for this series at this time");
		break;
	case ERRID_TOO_MANY_LABELS:
		buf_printf(out, "%" PRIu32 " labels, at most %" PRIu32 " are allowed (--ingest.max-labels)", n_labels, in->cfg.labels.max_labels);
		break;
	case ERRID_LABEL_NAME_TOO_LONG:
		buf_printf(out, "a label name is longer than %" PRIu32 " bytes (--ingest.max-label-name)", in->cfg.labels.max_name_bytes);
		break;
	case ERRID_LABEL_VALUE_TOO_LONG:
		buf_printf(out, "a label value is longer than %" PRIu32 " bytes (--ingest.max-label-value)", in->cfg.labels.max_value_bytes);
		for (uint32_t i = 0; i < l.n; i++)
			if (l.v[i].value.n > in->cfg.labels.max_value_bytes) {
				buf_printf(out, ": %zu bytes in %.*s", l.v[i].value.n, SPAN_ARG(l.v[i].name));
				break;
			}
		break;
	case ERRID_NO_METRIC_NAME:
		buf_printf(out, "the label __name__ is missing or empty");
		break;
	case ERRID_EMPTY_LABEL_NAME:
		buf_printf(out, "a label name is empty");
		break;
	case ERRID_DUPLICATE_LABEL:
		buf_printf(out, "a label name occurs twice");
		break;
	case ERRID_LABEL_UTF8:
		buf_printf(out, "a label name or value is not UTF-8");
		break;
	case ERRID_NO_SAMPLES:
		buf_printf(out, "a TimeSeries of remote write 2.0 must hold samples or histograms");
		break;
	case ERRID_EXEMPLAR_OUT_OF_ORDER:
		buf_printf(out, "an exemplar is older than its series' newest");
		break;
	case ERRID_EXEMPLAR_NO_SERIES:
		buf_printf(out, "an exemplar of a series that nobody sent a sample of");
		break;
	case ERRID_HISTOGRAM_TOO_LARGE:
		buf_printf(out, "a histogram takes more than %" PRIu64 " bytes in the log", (uint64_t)LIMIT_HISTOGRAM_PACKED_BYTES);
		break;
	default:
		buf_printf(out, "refused");
		break;
	}
}

struct labels ingest_labels_of(const struct rw_request *rw, const struct rw_series *s, struct arena *arena)
{
	struct labels l = {NULL, 0};
	if (!s->refs)
		return labels_from_wire(s->wire, LIMIT_LABELS_DECODE, arena, &l, NULL) == OK ? l : (struct labels){NULL, 0};
	l.v = arena_alloc(arena, s->n_labels * sizeof *l.v);
	for (; l.v && l.n < s->n_labels; l.n++)
		l.v[l.n] = (struct label){rw->symbols[s->refs[2 * l.n]], rw->symbols[s->refs[2 * l.n + 1]]};
	return l;
}

/* Why the first histogram of a series that is none is none. */
static bool explain_histogram(const struct rw_request *rw, const struct rw_series *s, struct arena *arena, struct buf *out)
{
	for (uint32_t k = s->first_hist; k < s->first_hist + s->n_hists; k++) {
		struct err why = {0};
		if (histogram_judge(rw->hists[k].kind, &rw->hists[k].h, arena, &why) != OK) {
			buf_printf(out, "%s", why.msg);
			return true;
		}
	}
	return false;
}

void ingest_explain(const struct ingest *in, const struct ingest_part *part, const struct rw_series *s, enum errid id, struct labels l,
	struct arena *arena, struct buf *out)
{
	char key[192];
	if (id == ERRID_TENANT_SERIES) {
		struct tenant_limits limits = ingest_limits_now(in->limits, part->tenant);
		buf_printf(out, "tenant %.*s has as many series as it may (%s=%" PRIu64 " in --limits.file), this one is new", SPAN_ARG(part->tenant),
			limits_key(&limits, TENANT_HEAD_SERIES, part->tenant, key, sizeof key), limits.v[TENANT_HEAD_SERIES]);
		return;
	}
	if (id == ERRID_HISTOGRAM_INVALID && s && explain_histogram(part->rw, s, arena, out))
		return;
	explain(in, s ? s->n_labels : 0, id, l, out);
}

uint64_t ingest_refused(const struct head_batch *b)
{
	uint64_t n = 0;
	for (unsigned i = 1; i < ERRID_COUNT; i++)
		n += b->refused_by[i];
	return n;
}

struct span ingest_refusal(const struct ingest *in, const struct head_batch *b, const struct rw_request *rw, enum rw_version version,
	const struct ingest_verdicts *v, const struct tenant_limits *limits, struct arena *arena, enum errid *id)
{
	uint64_t by_reason[ERRID_COUNT], refused = v->n_empty;
	size_t first = SIZE_MAX, hist = 0;
	*id = ERRID_NONE;
	if (LIKELY(rw->n_hists == 0 && v->n_empty == 0 && ingest_refused(b) == 0))
		return (struct span){"", 0};
	memcpy(by_reason, b->refused_by, sizeof by_reason);
	by_reason[ERRID_NO_SAMPLES] += v->n_empty;
	for (size_t i = 0; i < rw->n_hists; i++) {
		by_reason[v->hists[i]]++;
		refused += v->hists[i] != ERRID_NONE;
	}
	for (size_t i = 0; i < b->n_series; i++) {
		uint32_t n = b->series[i].refused + b->series[i].hist_refused;
		refused += n;
		size_t at = 0;
		enum errid why = n > 0 ? b->series[i].refused_id : ingest_series_fault(v, rw, version, i, &at);
		if (why != ERRID_NONE && (*id == ERRID_NONE || (why == ERRID_TENANT_SERIES && *id != ERRID_TENANT_SERIES))) {
			*id = why;
			first = i;
			hist = at;
		}
	}
	if (*id == ERRID_NONE)
		return (struct span){"", 0};

	struct buf out;
	buf_init(&out, 64 * 1024);
	buf_printf(&out, "%s: %" PRIu64 " of %zu samples refused (", errid_text(*id), refused, rw->n_samples + rw->n_hists + v->n_empty);
	const char *comma = "";
	for (unsigned i = 1; i < ERRID_COUNT; i++)
		if (by_reason[i]) {
			buf_printf(&out, "%s%s %" PRIu64, comma, short_id((enum errid)i), by_reason[i]);
			comma = ", ";
		}
	const struct head_series *s = &b->series[first];
	struct labels l = ingest_labels_of(rw, &rw->series[first], arena);
	char text[1024];
	buf_printf(&out, "), the rest is stored; first: %s", labels_format(l, text, sizeof text));
	if (s->refused + s->hist_refused > 0)
		buf_printf(&out, " at %" PRId64, s->refused_t);
	else if (rw->series[first].n_hists > 0)
		buf_printf(&out, " at %" PRId64, rw->hists[hist].t);
	buf_printf(&out, ": ");
	if (*id == ERRID_TENANT_SERIES)
		explain_tenant_series(b, limits, &out);
	else if (*id == ERRID_HISTOGRAM_INVALID && v->why && hist == v->why_of)
		buf_printf(&out, "%s", v->why);
	else
		explain(in, s->n_labels, *id, l, &out);
	buf_printf(&out, "\n");
	struct span body = out.failed ? (struct span){NULL, 0} : arena_dup(arena, span_of(out.p, out.n));
	buf_free(&out);
	/* Out of memory for words: the id alone still tells the truth. */
	return body.p ? body : span_cstr(errid_text(*id));
}
