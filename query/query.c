/* query/query.c - open and close. See query/query.h; the reading order of the files is in query_int.h. */
#include <stdlib.h>
#include "query/query_int.h"

errc query_open(const struct query_config *cfg, struct query **out, struct err *err)
{
	errc rc = OK;
	struct query *q = calloc(1, sizeof *q);
	if (!q)
		return err_set(err, ERR_NOMEM, "no memory for reads");
	q->cfg = *cfg;
	arena_init(&q->arena, MIB);
	struct label *v = arena_alloc(&q->arena, cfg->ext_labels.n * sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory for external labels");
	for (uint32_t i = 0; i < cfg->ext_labels.n; i++) {
		v[i].name = arena_dup(&q->arena, cfg->ext_labels.v[i].name);
		v[i].value = arena_dup(&q->arena, cfg->ext_labels.v[i].value);
		CHECK(v[i].name.p && v[i].value.p, ERR_NOMEM, "no memory for external labels");
	}
	q->cfg.ext_labels.v = v;
	q->reads = metric_counter("varve_query_reads_total", "Questions asked: remote reads, series, labels, label values");
	q->series = metric_counter("varve_query_series_total", "Series in answers");
	q->samples = metric_counter("varve_query_samples_total", "Samples in remote-read answers of type SAMPLES");
	q->quarantined = metric_counter("varve_query_blocks_quarantined_total", "Blocks that a read found damaged");
	q->retries = metric_counter("varve_query_retries_total", "Questions asked again without a damaged block");
	TRY(query_cache_open(cfg->cache_dir, cfg->cache_bytes, &q->cache, err));
	TRY(query_blocks_open(q, &q->blocks, err));
	*out = q;
	return OK;
fail:
	query_close(q);
	return rc;
}

void query_close(struct query *q)
{
	if (!q)
		return;
	query_blocks_close(q->blocks);
	query_cache_close(q->cache);
	arena_free(&q->arena);
	free(q);
}

bool query_forget(struct query *q, struct ulid block)
{
	return query_blocks_forget(q->blocks, block);
}

void query_removed(struct query *q, struct ulid block)
{
	query_blocks_removed(q->blocks, block);
}
