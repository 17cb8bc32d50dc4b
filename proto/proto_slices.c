/* proto/proto_slices.c - where in a body its series stand, for whoever sends them on as they are.
 *
 * A second walk over the fields of the request, which the decoder has just judged: a few nanoseconds a series, and only for requests that travel on. Decoding for the
 * node itself, which is the hot path, keeps nothing for it.
 */
#include "proto/proto_int.h"

enum { RW1_SERIES = 1, RW1_METADATA = 3, RW2_SYMBOL = 4, RW2_SERIES = 5 };

errc rw_slices(struct span body, enum rw_version version, const struct rw_request *rw, struct arena *arena, struct rw_slices *out, struct err *err)
{
	const uint32_t series_field = version == RW_2 ? RW2_SERIES : RW1_SERIES, other_field = version == RW_2 ? RW2_SYMBOL : RW1_METADATA;
	const size_t max_other = version == RW_2 ? rw->n_symbols : rw->n_metadata;
	size_t n_series = 0, n_other = 0, n_runs = 0;
	*out = (struct rw_slices){
		.series = arena_alloc(arena, (rw->n_series + 1) * sizeof *out->series),
		.metadata = arena_alloc(arena, (max_other + 1) * sizeof *out->metadata),
	};
	if (!out->series || !out->metadata)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory to send on %zu series", rw->n_series);
	struct rd r = rd_of(body.p, body.n);
	while (r.p < r.end) {
		const uint8_t *start = r.p;
		const char *why;
		struct pb_field f;
		if (!pb_next(&r, &f, &why))
			break;
		struct span field = span_of(start, (size_t)(r.p - start));
		if (f.number == series_field && n_series < rw->n_series)
			out->series[n_series++] = field;
		else if (f.number == other_field && n_other < max_other) {
			n_other++;
			struct span *last = n_runs > 0 ? &out->metadata[n_runs - 1] : NULL;
			if (version == RW_2 && last && last->p + last->n == field.p)
				last->n += field.n;
			else
				out->metadata[n_runs++] = field;
		}
	}
	/* The decoder took these very fields. */
	ASSERT(n_series == rw->n_series && n_other == max_other);
	if (version == RW_2) {
		out->symbols = out->metadata;
		out->n_symbols = n_runs;
		out->metadata = NULL;
	}
	return OK;
}
