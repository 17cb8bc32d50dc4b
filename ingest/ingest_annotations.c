/* ingest/ingest_annotations.c - a request's exemplars and metadata, on their way to the head.
 *
 * They ride along: under the request's ticket, behind its samples, durable with the same answer. What was not taken is counted by its reason. As in the
 * reference, a sender of 1.0 is never refused for it; one of 2.0 is for exemplars out of order or without their series, but not for those that are too long.
 * A series that its tenant's limit keeps out has none either.
 */
#include <inttypes.h>
#include "base/limits.h"
#include "ingest/ingest_int.h"

/* A series' label fields. 2.0 has them as symbols. */
static errc wire_of(const struct rw_request *rw, const struct rw_series *s, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	struct buf b;
	*out = s->wire;
	if (!s->refs)
		return OK;
	buf_init(&b, 16 * MIB);
	for (uint32_t i = 0; i < s->n_labels; i++) {
		struct label l = {rw->symbols[s->refs[2 * i]], rw->symbols[s->refs[2 * i + 1]]};
		labels_to_wire((struct labels){&l, 1}, &b);
	}
	*out = arena_dup(arena, span_of(b.p ? (const char *)b.p : "", b.n));
	if (b.failed || !out->p)
		rc = err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for the labels of a series");
	buf_free(&b);
	return rc;
}

errc ingest_annotations_of(
	const struct rw_request *rw, const struct head_batch *b, struct arena *arena, struct ingest_annotations *x, struct err *err)
{
	errc rc = OK;
	*x = (struct ingest_annotations){
		.a = {.tenant = b->tenant, .metadata = rw->metadata, .n_metadata = rw->n_metadata, .max_t = b->max_t, .now_ms = b->now_ms}};
	if (LIKELY(rw->n_exemplars == 0))
		return OK;
	size_t n = 0;
	for (size_t i = 0; i < rw->n_series; i++)
		n += rw->series[i].n_exemplars > 0;
	x->v = arena_calloc(arena, n, sizeof *x->v);
	x->of = arena_calloc(arena, n, sizeof *x->of);
	if (!x->v || !x->of)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for the exemplars of %zu series", n);
	for (size_t i = 0; i < rw->n_series; i++) {
		const struct rw_series *s = &rw->series[i];
		if (s->n_exemplars == 0)
			continue;
		struct head_exemplars *e = &x->v[x->a.n_series];
		*e = (struct head_exemplars){.v = rw->exemplars + s->first_exemplar, .n = s->n_exemplars};
		TRY(wire_of(rw, s, arena, &e->wire, err));
		x->of[x->a.n_series++] = (uint32_t)i;
	}
	x->a.series = x->v;
fail:
	return rc;
}

errc ingest_annotate(struct ingest *in, const struct wal_ticket *ticket, const struct head_batch *b, struct ingest_annotations *x,
	struct buf *records, struct err *err)
{
	if (LIKELY(x->a.n_series == 0 && x->a.n_metadata == 0))
		return OK;
	for (size_t i = 0; i < x->a.n_series; i++) {
		const struct head_series *s = &b->series[x->of[i]];
		x->v[i].known = s->stored + s->duplicate > 0;
	}
	errc rc = head_annotate(in->cfg.head, ticket, &x->a, records, err);
	for (size_t i = 0; i < EXEMPLAR_RESULTS; i++)
		metric_add(in->exemplars[i], x->a.exemplars_by[i]);
	metric_add(in->metadata_new, x->a.metadata_new);
	metric_add(in->metadata_known, x->a.metadata_known);
	metric_add(in->metadata_refused, x->a.metadata_refused);
	return rc;
}

uint64_t ingest_exemplars_written(const struct ingest_annotations *x)
{
	return x->a.exemplars_by[EXEMPLAR_STORED] + x->a.exemplars_by[EXEMPLAR_DUPLICATE];
}

struct span ingest_exemplar_refusal(const struct ingest_annotations *x, struct arena *arena, enum errid *id)
{
	uint64_t late = x->a.exemplars_by[EXEMPLAR_OUT_OF_ORDER], alone = x->a.exemplars_by[EXEMPLAR_NO_SERIES];
	if (late + alone == 0)
		return (struct span){"", 0};
	*id = late > 0 ? ERRID_EXEMPLAR_OUT_OF_ORDER : ERRID_EXEMPLAR_NO_SERIES;
	const char *text = arena_printf(arena,
		"%s: %" PRIu64 " exemplars refused (%" PRIu64 " older than their series' newest, %" PRIu64
		" of series that nobody sent a sample of), the rest is stored\n",
		errid_text(*id), late + alone, late, alone);
	return span_cstr(text ? text : errid_text(*id));
}

void ingest_annotations_open(struct ingest *in)
{
	for (size_t i = 0; i < EXEMPLAR_RESULTS; i++)
		in->exemplars[i] = metric_counter_with("varve_ingest_exemplars_total", "Exemplars of write requests by what became of them", "result",
			exemplar_result_text((enum exemplar_result)i));
	static const char help[] = "Metadata entries of write requests by what became of them";
	in->metadata_new = metric_counter_with("varve_ingest_metadata_total", help, "result", "new");
	in->metadata_known = metric_counter_with("varve_ingest_metadata_total", help, "result", "known");
	in->metadata_refused = metric_counter_with("varve_ingest_metadata_total", help, "result", "refused");
}
