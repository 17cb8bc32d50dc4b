/* query/query_status.c - /api/v1/status/tsdb: what the tenant's series in the head are made of, in Prometheus' fields and some of our own.
 *
 *     headStats { numSeries, numLabelPairs, chunkCount, minTime, maxTime }
 *     seriesCountByMetricName, labelValueCountByLabelName, memoryInBytesByLabelName, seriesCountByLabelValuePair: [{ name, value }], most first
 *     varve { memoryBytes, windows, newSeriesPerMinute, samplesPerSecond }
 *
 * `limit` entries of each list, 10 unless asked, 10,000 at most. memoryInBytesByLabelName is what Prometheus 3 counts: the bytes of a label's pairs if
 * each series had them for itself. varve keeps every string once, so it tells what a label weighs and not what it costs; memoryBytes is measured.
 */
#include <inttypes.h>
#include <math.h>
#include "base/io.h"
#include "base/json.h"
#include "query/query_int.h"

enum { STATUS_LISTED = 10, STATUS_LISTED_MAX = 10000 };

static errc status_limit(struct http_request *r, size_t *limit, struct err *err)
{
	struct span v = http_param(r, "limit", 0);
	int64_t n = STATUS_LISTED;
	if (v.n > 0 && (!span_to_i64(v, &n) || n < 1))
		return err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "limit must be a positive number");
	if (n > STATUS_LISTED_MAX)
		return err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "limit must not exceed %d", STATUS_LISTED_MAX);
	*limit = (size_t)n;
	return OK;
}

static void put_top(struct buf *out, const char *key, const struct head_top *t, bool pairs, struct buf *scratch)
{
	buf_printf(out, ",\"%s\":[", key);
	for (size_t i = 0; i < t->n; i++) {
		buf_clear(scratch);
		buf_span(scratch, t->v[i].name);
		if (pairs) {
			buf_u8(scratch, '=');
			buf_span(scratch, t->v[i].value);
		}
		buf_printf(out, "%s{\"name\":", i ? "," : "");
		buf_json_string(out, span_of(scratch->p, scratch->n));
		buf_printf(out, ",\"value\":%" PRIu64 "}", t->v[i].n);
	}
	buf_u8(out, ']');
}

void query_status_tsdb(void *arg, struct http_request *r)
{
	struct query *q = arg;
	struct err err = {0};
	errc rc = OK;
	struct span tenant;
	size_t limit = 0;
	struct head_cardinality c = {.min_t = INT64_MAX, .max_t = INT64_MIN};
	struct head_usage u = {.series = 0};
	struct arena arena;
	struct buf out, scratch;
	arena_init(&arena, q->cfg.max_memory_bytes);
	buf_init(&out, q->cfg.max_memory_bytes);
	buf_init(&scratch, MIB);
	metric_add(q->reads, 1);
	TRY(http_parse_params(r, &err));
	TRY(http_tenant(r, &tenant, &err));
	TRY(status_limit(r, &limit, &err));
	if (q->cfg.head) {
		TRY(head_tenant_cardinality(q->cfg.head, tenant, limit, q->cfg.max_memory_bytes, &arena, &c, &err));
		head_tenant_usage(q->cfg.head, tenant, io_now_ms(), &u);
	}
	buf_printf(&out,
		"{\"status\":\"success\",\"data\":{\"headStats\":{\"numSeries\":%" PRIu64 ",\"numLabelPairs\":%" PRIu64 ",\"chunkCount\":%" PRIu64
		",\"minTime\":%" PRId64 ",\"maxTime\":%" PRId64 "}",
		c.series, c.label_pairs, c.chunks, c.min_t, c.max_t);
	put_top(&out, "seriesCountByMetricName", &c.metrics, false, &scratch);
	put_top(&out, "labelValueCountByLabelName", &c.label_values, false, &scratch);
	put_top(&out, "memoryInBytesByLabelName", &c.label_bytes, false, &scratch);
	put_top(&out, "seriesCountByLabelValuePair", &c.pairs, true, &scratch);
	buf_printf(&out, ",\"varve\":{\"memoryBytes\":%" PRIu64 ",\"windows\":%" PRIu64 ",\"newSeriesPerMinute\":%.0f,\"samplesPerSecond\":%.1f}}}",
		u.memory_bytes, u.windows, round(u.new_series_per_minute), u.samples_per_second);
	if (out.failed || scratch.failed)
		TRY(err_id(&err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "the answer does not fit the memory of one read (--query.max-memory)"));
	http_answer(r, 200, "application/json", span_of(out.p, out.n));
fail:
	if (rc != OK)
		query_error(r, rc, &err);
	buf_free(&scratch);
	buf_free(&out);
	arena_free(&arena);
}
