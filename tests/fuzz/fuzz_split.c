/* fuzz: needs ingest */
/* A request split by a label, of either version (first byte): every series is in one part or refused, every part's name is a tenant's, a part decodes to as many samples as it took, and
 * its symbols and metadata are within bounds; what is sent on for a series is a series.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "base/tenant.h"
#include "ingest/ingest_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void part_holds(struct ingest_split *sp, uint32_t k, const struct rw_slices *whole, struct arena *arena)
{
	struct rw_request part;
	struct err err = {0};
	size_t samples = 0, hists = 0, exemplars = 0;
	if (!tenant_valid(sp->parts[k].tenant))
		abort();
	errc rc = ingest_split_part(sp, k, arena, &part, &err);
	if (rc == ERR_NOMEM)
		return;
	if (rc != OK || part.n_series != sp->parts[k].n_series)
		abort();
	for (size_t i = 0; i < part.n_series; i++) {
		const struct rw_series *s = &part.series[i];
		for (uint32_t j = 0; s->refs && j < 2 * s->n_labels; j++)
			if (s->refs[j] >= part.n_symbols)
				abort();
		if (s->n_hists > 0 && s->first_hist + s->n_hists > part.n_hists)
			abort();
		samples += s->n_samples;
		hists += s->n_hists;
		exemplars += s->n_exemplars;
		(void)ingest_labels_of(&part, s, arena);
	}
	if (samples != part.n_samples || hists != part.n_hists || exemplars != part.n_exemplars)
		abort();
	/* As it is sent on: a message of the same. */
	const struct rw_limits limits = {1000, 10000, 64};
	struct rw_slices own;
	struct rw_request again;
	struct buf body;
	if (ingest_split_slices(sp, k, whole, &part, &own, &err) != OK)
		abort();
	buf_init(&body, 64 * MIB);
	for (size_t i = 0; sp->version == RW_2 && i < own.n_symbols; i++)
		buf_span(&body, own.symbols[i]);
	for (size_t i = 0; i < part.n_series; i++)
		buf_span(&body, own.series[i]);
	rc = (sp->version == RW_2 ? rw2_decode : rw1_decode)(span_of(body.n ? (const char *)body.p : "", body.n), &limits, arena, &again, &err);
	if (rc != OK && rc != ERR_LIMIT && rc != ERR_NOMEM)
		abort();
	if (rc == OK && (again.n_series != part.n_series || again.n_samples != part.n_samples || again.n_exemplars != part.n_exemplars))
		abort();
	buf_free(&body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct rw_limits limits = {1000, 10000, 64};
	struct arena arena;
	struct rw_request rw, decoded;
	struct ingest_split sp;
	struct err err = {0};
	if (size < 2)
		return 0;
	enum rw_version version = data[0] & 1 ? RW_2 : RW_1;
	struct span body = span_of(data + 1, size - 1);
	arena_init(&arena, 256 * MIB);
	if ((version == RW_2 ? rw2_decode : rw1_decode)(body, &limits, &arena, &rw, &err) == OK && (decoded = rw, true) &&
		ingest_split(&rw, version, SPAN("mine"), "team", &arena, &sp, &err) == OK) {
		size_t n = sp.n_refused;
		struct rw_slices whole;
		if (rw_slices(body, version, &decoded, &arena, &whole, &err) != OK)
			abort();
		for (uint32_t k = 0; k < sp.n_parts; k++) {
			n += sp.parts[k].n_series;
			part_holds(&sp, k, &whole, &arena);
		}
		if (n != rw.n_series)
			abort();
	}
	/* The body in a field's place. */
	struct span out;
	struct rw_series s = {.wire = SPAN("\x0a\x06\x0a\x01x\x12\x01y"), .n_labels = 1};
	if (rw_slice_relabel(body, &s, &arena, &out, &err) == OK && out.n < 2 + s.wire.n)
		abort();
	arena_free(&arena);
	return 0;
}
