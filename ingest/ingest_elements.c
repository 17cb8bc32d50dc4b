/* ingest/ingest_elements.c - verdicts on what is no float sample: histograms, and series of 2.0 that hold nothing.
 *
 * A histogram that is none (histogram_judge) is refused alone, with words for the first; the rest of the request is stored.
 */
#include <stdio.h>
#include "ingest/ingest_int.h"

/* Prometheus' own sender (3.5) puts each exemplar into a TimeSeries of its own: that is not refused, whatever the specification says of it. */
static bool is_empty(const struct rw_series *s)
{
	return s->n_samples + s->n_hists + s->n_exemplars == 0;
}

errc ingest_judge(struct rw_request *rw, enum rw_version version, struct arena *arena, struct ingest_verdicts *v, struct err *err)
{
	*v = (struct ingest_verdicts){.n_empty = 0};
	if (version == RW_2)
		for (size_t i = 0; i < rw->n_series; i++)
			v->n_empty += is_empty(&rw->series[i]);
	if (LIKELY(rw->n_hists == 0))
		return OK;
	v->hists = arena_calloc(arena, rw->n_hists, sizeof *v->hists);
	if (!v->hists)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %zu histograms", rw->n_hists);
	for (size_t i = 0; i < rw->n_hists; i++) {
		struct err why = {0};
		errc rc = histogram_judge(rw->hists[i].kind, &rw->hists[i].h, arena, &why);
		if (rc == ERR_NOMEM)
			return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "%s", why.msg);
		v->hists[i] = rc == OK ? ERRID_NONE : ERRID_HISTOGRAM_INVALID;
		if (rc != OK && !v->why) {
			v->why = arena_cstr(arena, span_cstr(why.msg));
			v->why_of = i;
		}
	}
	return OK;
}

errc ingest_hists(const struct rw_request *rw, const struct ingest_verdicts *v, struct head_batch *b, struct arena *arena, struct err *err)
{
	if (LIKELY(rw->n_hists == 0))
		return OK;
	struct head_hist *out = arena_alloc(arena, rw->n_hists * sizeof *out);
	if (!out)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %zu histograms", rw->n_hists);
	b->hists = out;
	b->n_hists = 0;
	for (size_t i = 0; i < rw->n_series; i++) {
		const struct rw_series *s = &rw->series[i];
		b->series[i].first_hist = (uint32_t)b->n_hists;
		for (uint32_t k = s->first_hist; k < s->first_hist + s->n_hists; k++)
			if (v->hists[k] == ERRID_NONE)
				out[b->n_hists++] = (struct head_hist){.t = rw->hists[k].t, .kind = rw->hists[k].kind, .h = &rw->hists[k].h};
		b->series[i].n_hist = (uint32_t)b->n_hists - b->series[i].first_hist;
	}
	return OK;
}

enum errid ingest_series_fault(const struct ingest_verdicts *v, const struct rw_request *rw, enum rw_version version, size_t i, size_t *hist)
{
	const struct rw_series *s = &rw->series[i];
	for (*hist = s->first_hist; *hist < (size_t)s->first_hist + s->n_hists; ++*hist)
		if (v->hists[*hist] != ERRID_NONE)
			return v->hists[*hist];
	return version == RW_2 && is_empty(s) ? ERRID_NO_SAMPLES : ERRID_NONE;
}
