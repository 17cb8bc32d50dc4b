/* ingest/ingest_tenants.c - GET /-/tenants: who uses the head, who sends how much, and what each of them may.
 *
 * It names every tenant, so it stands under /-/ with the other paths of who runs varve, and not under /api/v1/, which a proxy in front may hand to
 * tenants. One tenant's own figures are in /api/v1/status/tsdb.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "ingest/ingest_int.h"

enum { TENANTS_LISTED = 100, TENANTS_LISTED_MAX = 100000 };

static int descending(double a, double b)
{
	return (a < b) - (a > b);
}

static int by_name(const struct head_usage *a, const struct head_usage *b, int c)
{
	return c ? c : span_cmp(a->tenant, b->tenant);
}

static int by_series(const void *x, const void *y)
{
	const struct head_usage *a = x, *b = y;
	return by_name(a, b, (a->series < b->series) - (a->series > b->series));
}

static int by_memory(const void *x, const void *y)
{
	const struct head_usage *a = x, *b = y;
	return by_name(a, b, (a->memory_bytes < b->memory_bytes) - (a->memory_bytes > b->memory_bytes));
}

static int by_samples(const void *x, const void *y)
{
	const struct head_usage *a = x, *b = y;
	return by_name(a, b, descending(a->samples_per_second, b->samples_per_second));
}

static int by_new_series(const void *x, const void *y)
{
	const struct head_usage *a = x, *b = y;
	return by_name(a, b, descending(a->new_series_per_minute, b->new_series_per_minute));
}

static const struct {
	const char *word;
	int (*cmp)(const void *, const void *);
} orders[] = {{"series", by_series}, {"memory", by_memory}, {"samples", by_samples}, {"new-series", by_new_series}};

static errc params(struct http_request *r, int (**cmp)(const void *, const void *), size_t *limit, struct err *err)
{
	errc rc = OK;
	TRY(http_parse_params(r, err));
	struct span sort = http_param(r, "sort", 0), n = http_param(r, "limit", 0);
	int64_t count = TENANTS_LISTED;
	*cmp = sort.n == 0 ? by_series : NULL;
	for (size_t i = 0; i < sizeof orders / sizeof *orders; i++)
		if (sort.n > 0 && span_is(sort, orders[i].word))
			*cmp = orders[i].cmp;
	if (!*cmp) {
		rc = err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID,
			"invalid parameter \"sort\": \"%.*s\" is not one of series, memory, samples, new-series", SPAN_ARG(sort));
		goto fail;
	}
	if (n.n > 0 && (!span_to_i64(n, &count) || count < 1 || count > TENANTS_LISTED_MAX)) {
		rc = err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"limit\": \"%.*s\" is not a number from 1 to %d", SPAN_ARG(n),
			TENANTS_LISTED_MAX);
		goto fail;
	}
	*limit = (size_t)count;
fail:
	return rc;
}

static void put_tenant(const struct ingest *in, const struct head_usage *u, struct buf *out)
{
	const struct tenant_limits l = ingest_limits_now(in->limits, u->tenant);
	buf_printf(out, "{\"tenant\":");
	buf_json_string(out, u->tenant);
	buf_printf(out,
		",\"series\":%" PRIu64 ",\"windows\":%" PRIu64 ",\"memoryBytes\":%" PRIu64 ",\"samplesPerSecond\":%.1f,\"newSeriesPerMinute\":%.0f",
		u->series, u->windows, u->memory_bytes, u->samples_per_second, round(u->new_series_per_minute));
	buf_printf(out,
		",\"limits\":{\"request\":{\"size_bytes_limit\":%" PRIu64 ",\"series_limit\":%" PRIu64 ",\"samples_limit\":%" PRIu64
		"},\"head_series_limit\":%" PRIu64 ",\"samples_per_second\":%" PRIu64 ",\"samples_burst\":%" PRIu64 "}}",
		l.v[TENANT_SIZE], l.v[TENANT_SERIES], l.v[TENANT_SAMPLES], l.v[TENANT_HEAD_SERIES], l.v[TENANT_RATE], l.v[TENANT_BURST]);
}

void ingest_tenants(void *arg, struct http_request *r)
{
	struct ingest *in = arg;
	struct err err = {0};
	errc rc = OK;
	int (*cmp)(const void *, const void *) = NULL;
	size_t limit = 0, n = 0;
	struct head_usage *v = NULL;
	struct arena arena;
	struct buf out;
	arena_init(&arena, GIB);
	buf_init(&out, GIB);
	TRY(params(r, &cmp, &limit, &err));
	TRY(head_usages(in->cfg.head, io_now_ms(), &arena, &v, &n, &err));
	if (n > 1)
		qsort(v, n, sizeof *v, cmp);
	buf_printf(&out, "{\"status\":\"success\",\"data\":{\"total\":%zu,\"tenants\":[", n);
	for (size_t i = 0; i < n && i < limit; i++) {
		if (i > 0)
			buf_u8(&out, ',');
		put_tenant(in, &v[i], &out);
	}
	buf_printf(&out, "]}}\n");
	if (out.failed)
		rc = err_set(&err, ERR_NOMEM, "no memory for a list of %zu tenants", n);
fail:
	if (rc == OK)
		http_answer(r, 200, "application/json", span_of(out.p, out.n));
	else {
		if (!err.id)
			err.id = errid_text(ERRID_OVERLOADED);
		http_error_of(r, &err);
	}
	buf_free(&out);
	arena_free(&arena);
}
