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
}

/* Why this one was refused, with the limit, its value and the flag that changes it. */
static void explain(const struct ingest *in, const struct head_series *s, enum errid id, struct labels l, struct buf *out)
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
		buf_printf(out, "%" PRIu32 " labels, at most %" PRIu32 " are allowed (--ingest.max-labels)", s->n_labels, in->cfg.labels.max_labels);
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
	case ERRID_HISTOGRAMS:
		buf_printf(out, "native histograms are not stored by this version");
		break;
	default:
		buf_printf(out, "refused");
		break;
	}
}

struct span ingest_refusal(const struct ingest *in, const struct head_batch *b, const struct rw_request *rw, const struct tenant_limits *limits,
	struct arena *arena, enum errid *id)
{
	uint64_t by_reason[ERRID_COUNT], refused = rw->n_hists;
	const struct head_series *first = NULL;
	memcpy(by_reason, b->refused_by, sizeof by_reason);
	for (size_t i = 0; i < b->n_series; i++) {
		refused += b->series[i].refused;
		bool try_again = b->series[i].refused_id == ERRID_TENANT_SERIES && first && first->refused_id != ERRID_TENANT_SERIES;
		if (try_again || (!first && (b->series[i].refused > 0 || rw->series[i].n_hists > 0)))
			first = &b->series[i];
	}
	by_reason[ERRID_HISTOGRAMS] += rw->n_hists;
	*id = !first ? ERRID_NONE : first->refused > 0 ? first->refused_id : ERRID_HISTOGRAMS;
	if (*id == ERRID_NONE)
		return (struct span){"", 0};

	struct buf out;
	buf_init(&out, 64 * 1024);
	buf_printf(&out, "%s: %" PRIu64 " of %zu samples refused (", errid_text(*id), refused, b->n_samples + rw->n_hists);
	const char *comma = "";
	for (unsigned i = 1; i < ERRID_COUNT; i++)
		if (by_reason[i]) {
			buf_printf(&out, "%s%s %" PRIu64, comma, short_id((enum errid)i), by_reason[i]);
			comma = ", ";
		}
	struct labels l = {NULL, 0};
	char text[1024];
	if (labels_from_wire(first->wire, LIMIT_LABELS_DECODE, arena, &l, NULL) != OK)
		l.n = 0;
	buf_printf(&out, "), the rest is stored; first: %s", labels_format(l, text, sizeof text));
	if (first->refused > 0)
		buf_printf(&out, " at %" PRId64, first->refused_t);
	buf_printf(&out, ": ");
	if (*id == ERRID_TENANT_SERIES)
		explain_tenant_series(b, limits, &out);
	else
		explain(in, first, *id, l, &out);
	buf_printf(&out, "\n");
	struct span body = out.failed ? (struct span){NULL, 0} : arena_dup(arena, span_of(out.p, out.n));
	buf_free(&out);
	/* Out of memory for words: the id alone still tells the truth. */
	return body.p ? body : span_cstr(errid_text(*id));
}
