/* ingest/ingest_route_answer.c - what a client is told of a write that was spread over nodes.
 *
 *     a series that no quorum stored, and may yet      503, all of the request again: what is stored is a duplicate then
 *     else one that is refused                         400, or 429 when it is for the tenant's series; the rest is stored
 *     else what was refused before (ingest_split.c)    400, 429; 429 goes before a 400 of the nodes
 *     else                                             204
 *
 * The words are those of a node that is alone (ingest_refusal.c): counts per reason, the first series, the limit and its flag. Counts of 2.0 are what a quorum has, by series.
 */
#include <inttypes.h>
#include <stdio.h>
#include "base/limits.h"
#include "base/log.h"
#include "ingest/ingest_int.h"

/* Where an item of the write is. */
struct place {
	const struct ingest_part *part;
	uint32_t at; /* in it; from n_series on its metadata */
};

static struct place place_of(const struct routed *w, uint32_t item)
{
	uint32_t p = 0;
	while (item >= w->parts[p].n_items)
		item -= w->parts[p++].n_items;
	return (struct place){&w->parts[p], item};
}

static const struct rw_series *series_of(struct place p)
{
	return p.at < p.part->rw->n_series ? &p.part->rw->series[p.at] : NULL;
}

static struct ingest_written written_of(const struct routed *w, const struct cluster_outcome *o)
{
	struct ingest_written n = {0};
	for (uint32_t p = 0; p < w->n_parts; p++)
		for (size_t i = 0; i < w->parts[p].rw->n_series; i++) {
			const struct rw_series *s = &w->parts[p].rw->series[i];
			n.samples += s->n_samples;
			n.histograms += s->n_hists;
			n.exemplars += s->n_exemplars;
		}
	for (uint32_t i = 0; i < o->n_items; i++) {
		const struct cluster_item *x = &o->items[i];
		const struct rw_series *s = series_of(place_of(w, x->item));
		if (!s)
			continue;
		n.samples -= s->n_samples - x->samples;
		n.histograms -= s->n_hists - x->hists;
		n.exemplars -= s->n_exemplars - x->exemplars;
	}
	return n;
}

static struct labels labels_of(const struct routed *w, struct place p)
{
	const struct rw_series *s = series_of(p);
	if (s)
		return ingest_labels_of(p.part->rw, s, http_arena(w->r));
	struct label *v = arena_alloc(http_arena(w->r), sizeof *v);
	if (v)
		*v = (struct label){SPAN("__name__"), p.part->rw->metadata[p.at - p.part->rw->n_series].family};
	return (struct labels){v, v ? 1 : 0};
}

static void reasons(const uint64_t by_reason[ERRID_COUNT], struct buf *out)
{
	const char *comma = "";
	for (unsigned i = 1; i < ERRID_COUNT; i++)
		if (by_reason[i]) {
			buf_printf(out, "%s%s %" PRIu64, comma, errid_text((enum errid)i) + sizeof "err-varve-" - 1, by_reason[i]);
			comma = ", ";
		}
}

static void again(const struct routed *w, const struct cluster_outcome *o)
{
	uint64_t by_reason[ERRID_COUNT] = {0};
	const struct cluster_item *first = NULL;
	struct buf out;
	char text[1024];
	for (uint32_t i = 0; i < o->n_items; i++)
		if (o->items[i].state == CLUSTER_AGAIN) {
			by_reason[o->items[i].id]++;
			first = first ? first : &o->items[i];
		}
	enum errid id = first ? first->id : ERRID_OVERLOADED;
	/* A node's reason that is final for itself ("too large for me") is not what the client may go by. */
	if (errid_status(id) != 503)
		id = ERRID_NO_QUORUM;
	buf_init(&out, 64 * KIB);
	buf_printf(
		&out, "%" PRIu32 " of %" PRIu32 " series are not stored by a quorum of their nodes (", o->again, o->stored + o->refused + o->again);
	reasons(by_reason, &out);
	buf_printf(&out, "): send the request again, what is stored is a duplicate then");
	if (first)
		buf_printf(&out, "; first: %s", labels_format(labels_of(w, place_of(w, first->item)), text, sizeof text));
	log_debug("a write without a quorum", LSTR("client", http_client(w->r)), LU64("series", o->again), LSTR("first", errid_text(id)));
	http_error(w->r, id, "%s", out.failed ? "no memory for words" : (const char *)out.p);
	buf_free(&out);
}

static void refused(const struct routed *w, const struct cluster_outcome *o)
{
	uint64_t by_reason[ERRID_COUNT] = {0}, n_refused = 0, n_all = 0;
	const struct cluster_item *first = NULL;
	struct buf out;
	char text[1024];
	for (uint32_t p = 0; p < w->n_parts; p++)
		n_all += w->parts[p].rw->n_samples + w->parts[p].rw->n_hists;
	for (uint32_t i = 0; i < o->n_items; i++) {
		const struct cluster_item *x = &o->items[i];
		const struct rw_series *s = series_of(place_of(w, x->item));
		uint64_t n = s ? (uint64_t)s->n_samples + s->n_hists - x->samples - x->hists : 0;
		n = n > 0 ? n : 1; /* of a series that holds nothing, or only exemplars */
		by_reason[x->id] += n;
		n_refused += n;
		if (!first || (x->id == ERRID_TENANT_SERIES && first->id != ERRID_TENANT_SERIES))
			first = x;
	}
	n_all = n_all > n_refused ? n_all : n_refused;
	struct place p = place_of(w, first->item);
	buf_init(&out, 64 * KIB);
	buf_printf(&out, "%s: %" PRIu64 " of %" PRIu64 " samples refused (", errid_text(first->id), n_refused, n_all);
	reasons(by_reason, &out);
	struct labels l = labels_of(w, p);
	buf_printf(&out, "), the rest is stored; first: %s", labels_format(l, text, sizeof text));
	if (first->t != 0)
		buf_printf(&out, " at %" PRId64, first->t);
	buf_printf(&out, ": ");
	ingest_explain(w->in, p.part, series_of(p), first->id, l, http_arena(w->r), &out);
	buf_printf(&out, "\n");
	metric_add(w->in->requests_partial, 1);
	log_debug("samples refused", LSTR("client", http_client(w->r)), LSPAN("tenant", p.part->tenant), LSPAN("answer", span_of(out.p, out.n)));
	if (first->id == ERRID_TENANT_SERIES) {
		ingest_limits_refused_series(w->in->limits);
		http_set_header(w->r, "Retry-After", "60");
	}
	http_answer(w->r, errid_status(first->id), NULL, out.failed ? span_cstr(errid_text(first->id)) : span_of(out.p, out.n));
	buf_free(&out);
}

static void refused_before(const struct routed *w)
{
	char text[24];
	snprintf(text, sizeof text, "%" PRId64, w->before.retry_s);
	if (w->before.retry_s > 0)
		http_set_header(w->r, "Retry-After", text);
	metric_add(w->in->requests_partial, 1);
	http_answer(w->r, errid_status(w->before.id), NULL, w->before.words);
}

void ingest_route_answer(struct routed *w, const struct cluster_outcome *o)
{
	if (w->parts[0].version == RW_2) {
		struct ingest_written n = o->again == 0 ? written_of(w, o) : (struct ingest_written){0};
		ingest_written_headers(w->r, &n);
	}
	if (o->again > 0)
		again(w, o);
	else if (w->before.id != ERRID_NONE && (o->n_items == 0 || errid_status(w->before.id) == 429))
		refused_before(w);
	else if (o->n_items > 0)
		refused(w, o);
	else
		http_answer(w->r, 204, NULL, SPAN(""));
}
