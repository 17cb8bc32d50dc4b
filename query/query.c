/* query/query.c - open and close. See query/query.h; the reading order of the files is in query_int.h. */
#include <stdlib.h>
#include "query/query_fleet_int.h"

/* The labels that replicas differ in; copied. */
static errc replica_open(struct query *q, const struct query_config *cfg, struct err *err)
{
	q->replica = arena_alloc(&q->arena, cfg->n_replica_labels * sizeof *q->replica);
	for (size_t i = 0; q->replica && i < cfg->n_replica_labels; i++) {
		q->replica[i] = arena_dup(&q->arena, span_cstr(cfg->replica_labels[i]));
		if (!q->replica[i].p)
			return err_set(err, ERR_NOMEM, "no memory for replica labels");
		q->n_replica++;
	}
	return q->replica ? OK : err_set(err, ERR_NOMEM, "no memory for replica labels");
}

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
	TRY(replica_open(q, cfg, err));
	q->reads = metric_counter("varve_query_reads_total", "Questions asked: remote reads, series, labels, label values");
	q->series = metric_counter("varve_query_series_total", "Series in answers");
	q->samples = metric_counter("varve_query_samples_total", "Samples in remote-read answers of type SAMPLES");
	q->quarantined = metric_counter("varve_query_blocks_quarantined_total", "Blocks that a read found damaged");
	q->retries = metric_counter("varve_query_retries_total", "Questions asked again without a damaged block");
	q->peer_questions = metric_counter("varve_query_peer_questions_total", "Peers asked for reads of the fleet");
	q->peer_failures = metric_counter("varve_query_peer_failures_total", "Peers that did not answer a read, or not to its end");
	q->peer_reads = metric_counter("varve_query_peer_reads_total", "Questions of peers that were answered");
	TRY(query_cache_open(cfg->cache_dir, cfg->cache_bytes, &q->cache, err));
	TRY(query_blocks_open(q, &q->blocks, err));
	if (cfg->fleet)
		TRY(fleet_open(cfg->fleet, LIMIT_QUERY_PEER_CONNECTIONS, &q->fleet, err));
	q->cfg.fleet = NULL; /* it was copied */
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
	fleet_close(q->fleet);
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

void query_rings(struct query *q, struct ring_set *now)
{
	if (q->fleet)
		fleet_rings(q->fleet, now);
}

void query_cancel(struct query *q)
{
	fleet_cancel(q->fleet);
}
