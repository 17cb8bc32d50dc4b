/* ingest/ingest_share.c - this node's own share of a spread write, as a request of its own.
 *
 * Where it holds everything, which in the smallest fleets it does, that is the request as it is. Else the series are put together anew with what they refer to, so that
 * all that is counted over a request (refused histograms, the room that its log records may take) is counted over the share.
 */
#include <string.h>
#include "ingest/ingest_int.h"

errc ingest_share_of(const struct ingest_part *part, const uint32_t *items, uint32_t n, uint32_t first, struct arena *arena, struct ingest_part *out,
	struct err *err)
{
	const struct rw_request *rw = part->rw;
	uint32_t n_series = 0;
	*out = *part;
	out->n_items = n;
	if (n == part->n_items)
		return OK;
	struct rw_request *own = arena_calloc(arena, 1, sizeof *own);
	while (n_series < n && items[n_series] - first < rw->n_series)
		n_series++;
	size_t n_samples = 0, n_hists = 0;
	for (uint32_t i = 0; i < n_series; i++) {
		n_samples += rw->series[items[i] - first].n_samples;
		n_hists += rw->series[items[i] - first].n_hists;
	}
	if (own)
		*own = (struct rw_request){
			.symbols = rw->symbols,
			.n_symbols = rw->n_symbols,
			.series = arena_alloc(arena, (n_series + 1) * sizeof *own->series),
			.samples = arena_alloc(arena, (n_samples + 1) * sizeof *own->samples),
			.starts = rw->starts ? arena_alloc(arena, (n_samples + 1) * sizeof *own->starts) : NULL,
			.hists = arena_alloc(arena, (n_hists + 1) * sizeof *own->hists),
			.exemplars = rw->exemplars,
			.metadata = rw->metadata,
			.n_metadata = rw->n_metadata,
		};
	if (!own || !own->series || !own->samples || !own->hists || (rw->starts && !own->starts))
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %u series", n_series);
	for (uint32_t i = 0; i < n_series; i++) {
		struct rw_series s = rw->series[items[i] - first];
		if (s.n_samples > 0)
			memcpy(own->samples + own->n_samples, rw->samples + s.first_sample, s.n_samples * sizeof *own->samples);
		if (own->starts && s.n_samples > 0)
			memcpy(own->starts + own->n_samples, rw->starts + s.first_sample, s.n_samples * sizeof *own->starts);
		if (s.n_hists > 0)
			memcpy(own->hists + own->n_hists, rw->hists + s.first_hist, s.n_hists * sizeof *own->hists);
		s.first_sample = (uint32_t)own->n_samples;
		s.first_hist = (uint32_t)own->n_hists;
		own->n_samples += s.n_samples;
		own->n_hists += s.n_hists;
		own->n_exemplars += s.n_exemplars;
		own->series[own->n_series++] = s;
	}
	/* 2.0's metadata is kept once for a family of the request, whichever series said it: all of it, which does no harm where none of them is. */
	if (part->version == RW_1) {
		own->n_metadata = n - n_series;
		own->metadata = arena_alloc(arena, (own->n_metadata + 1) * sizeof *own->metadata);
		if (!own->metadata)
			return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for metadata");
		for (uint32_t i = n_series; i < n; i++)
			own->metadata[i - n_series] = rw->metadata[items[i] - first - rw->n_series];
	}
	out->rw = own;
	return OK;
}
