/* ingest/ingest_rw2.c - what remote write 2.0 asks for beyond 1.0: exact counts in the answer, and zeros where series began.
 *
 *     X-Prometheus-Remote-Write-{Samples,Histograms,Exemplars}-Written      on every answer to a 2.0 message, and on no other: a sender that gets a 2xx
 *                                                                           without them takes its receiver for a 1.0 one, and its data for lost
 *
 * Written is what is durable when the answer is: what was stored, and what was there already. A 5xx says 0 whatever the head took: it is not durable yet,
 * and sending it again meets duplicates, which count.
 *
 * --ingest.created-timestamp-zero puts a sample of value 0 at a series' start timestamp (the sample's own, else the older one of the series) in front of
 * its first sample, so that a counter's first increase is seen. The head decides (head_series.zero); a zero that does not fit is left out without a word.
 */
#include <inttypes.h>
#include <stdio.h>
#include "ingest/ingest_int.h"

void ingest_written_headers(struct http_request *r, const struct ingest_written *w)
{
	const struct {
		const char *name;
		uint64_t n;
	} headers[] = {
		{"X-Prometheus-Remote-Write-Samples-Written", w->samples},
		{"X-Prometheus-Remote-Write-Histograms-Written", w->histograms},
		{"X-Prometheus-Remote-Write-Exemplars-Written", w->exemplars},
	};
	for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
		char text[24];
		snprintf(text, sizeof text, "%" PRIu64, headers[i].n);
		http_set_header(r, headers[i].name, text);
	}
}

/* Where the series begins, by its first sample; INT64_MAX: not said, or not in front of it. */
static int64_t start_of(const struct rw_request *rw, const struct rw_series *s)
{
	if (s->n_samples == 0)
		return INT64_MAX;
	int64_t start = rw->starts ? rw->starts[s->first_sample] : 0;
	if (start == 0)
		start = s->created;
	return start != 0 && start < rw->samples[s->first_sample].t ? start : INT64_MAX;
}

errc ingest_zeros(const struct rw_request *rw, struct head_batch *b, struct arena *arena, struct err *err)
{
	size_t n = 0;
	for (size_t i = 0; i < rw->n_series; i++)
		n += start_of(rw, &rw->series[i]) != INT64_MAX;
	if (n == 0)
		return OK;
	struct head_sample *v = arena_alloc(arena, (rw->n_samples + n) * sizeof *v);
	if (!v)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %zu samples", rw->n_samples + n);
	size_t at = 0;
	for (size_t i = 0; i < rw->n_series; i++) {
		const struct rw_series *s = &rw->series[i];
		int64_t start = start_of(rw, s);
		b->series[i].first = (uint32_t)at;
		if (start != INT64_MAX) {
			b->series[i].zero = true;
			b->series[i].n++;
			v[at++] = (struct head_sample){.t = start, .v = 0};
		}
		for (uint32_t k = 0; k < s->n_samples; k++)
			v[at++] = b->samples[s->first_sample + k];
	}
	ASSERT(at == rw->n_samples + n);
	b->samples = v;
	b->n_samples = at;
	return OK;
}
