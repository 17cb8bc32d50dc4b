/* cmd/cmd_tenants.c - `varve tenants [URL]`: who holds what, and sends how much; of one node, or with --fleet of all that it knows of.
 *
 *     GET URL/-/tenants                                        one node
 *     GET URL/-/ring ─▶ addresses ─▶ GET each /-/tenants       all: summed up by tenant
 *
 * A sum counts each replica: with factor 3 a series stands in it three times, as it does in memory. A node that does not answer is said on stderr, and the exit code
 * is 1: then the sums are without it.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/json.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "cmd/cmd_int.h"

#define TENANTS_ANSWER_BYTES (64 * MIB)
enum { TENANTS_ASKED = 100000, TENANTS_MS = 10000 };

struct tenant_row {
	struct span name; /* in the arena */
	uint32_t nodes;
	uint64_t series, windows, memory_bytes, head_series_limit, samples_limit;
	double samples_per_second, new_series_per_minute;
};

struct tenants_tool {
	struct arena arena;
	struct http_client *http;
	const char *url, *sort, *confirm, *ca_file, *cert_file, *key_file;
	struct flag_list headers;
	uint64_t limit, port;
	bool fleet, json;
	struct tenant_row *rows;
	size_t n, cap;
	uint32_t asked, silent;
	struct buf out;
};

/* ---- asking ---- */

static errc ask(struct tenants_tool *t, const char *url, json_t **out, struct err *err)
{
	errc rc = OK;
	json_error_t why;
	struct http_call call = {
		.method = "GET", .url = url, .headers = t->headers.v, .n_headers = t->headers.n, .max_answer_bytes = TENANTS_ANSWER_BYTES};
	TRY(http_call(t->http, &call, err));
	CHECK(call.status == 200, ERR_DENIED, "%s: %d: %.*s", url, call.status, (int)(call.answer.n < 200 ? call.answer.n : 200),
		(const char *)call.answer.p);
	*out = json_loadb((const char *)call.answer.p, call.answer.n, JSON_REJECT_DUPLICATES, &why);
	CHECK(*out, ERR_INVALID, "%s: the answer is not JSON: %s", url, why.text);
fail:
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	return rc;
}

static uint64_t number(const json_t *v, const char *key)
{
	json_int_t n = json_integer_value(json_object_get(v, key));
	return n > 0 ? (uint64_t)n : 0;
}

static errc row_add(struct tenants_tool *t, const json_t *v, struct err *err)
{
	const char *name = json_string_value(json_object_get(v, "tenant"));
	const json_t *limits = json_object_get(v, "limits");
	if (!name)
		return OK;
	if (t->n == t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 256;
		struct tenant_row *grown = realloc(t->rows, cap * sizeof *grown);
		if (!grown)
			return err_set(err, ERR_NOMEM, "no memory for %zu tenants", cap);
		t->rows = grown;
		t->cap = cap;
	}
	struct tenant_row *r = &t->rows[t->n++];
	*r = (struct tenant_row){
		.name = arena_dup(&t->arena, span_cstr(name)),
		.nodes = 1,
		.series = number(v, "series"),
		.windows = number(v, "windows"),
		.memory_bytes = number(v, "memoryBytes"),
		.samples_per_second = json_number_value(json_object_get(v, "samplesPerSecond")),
		.new_series_per_minute = json_number_value(json_object_get(v, "newSeriesPerMinute")),
		.head_series_limit = number(limits, "head_series_limit"),
		.samples_limit = number(limits, "samples_per_second"),
	};
	return r->name.p ? OK : err_set(err, ERR_NOMEM, "no memory for %zu tenants", t->n);
}

/* One node's. */
static errc ask_node(struct tenants_tool *t, const char *url, struct err *err)
{
	errc rc = OK;
	json_t *v = NULL, *one;
	size_t i;
	char *full = arena_printf(&t->arena, "%s/-/tenants?limit=%d", url, TENANTS_ASKED);
	CHECK(full, ERR_NOMEM, "no memory");
	t->asked++;
	TRY(ask(t, full, &v, err));
	json_array_foreach(json_object_get(json_object_get(v, "data"), "tenants"), i, one)
	{
		TRY(row_add(t, one, err));
	}
fail:
	json_decref(v);
	return rc;
}

/* "host", "host:port" or "[v6]:port", as rings have it: where it listens. */
static char *url_of(struct tenants_tool *t, const char *scheme, const char *address)
{
	const char *colon = strrchr(address, ':'), *bracket = strrchr(address, ']');
	if (colon && bracket && colon < bracket)
		colon = NULL;
	int host = colon ? (int)(colon - address) : (int)strlen(address);
	if (t->port > 0)
		return arena_printf(&t->arena, "%s://%.*s:%" PRIu64, scheme, host, address, t->port);
	return colon ? arena_printf(&t->arena, "%s://%s", scheme, address) : arena_printf(&t->arena, "%s://%s:%u", scheme, address, LIMIT_PEER_PORT);
}

/* Into the set of addresses: those of a ring, or of the nodes that left and may still hold something. */
static errc addresses_add(json_t *set, const json_t *list, struct err *err)
{
	size_t i;
	const json_t *one;
	json_array_foreach(list, i, one)
	{
		const char *address = json_is_string(one) ? json_string_value(one) : json_string_value(json_object_get(one, "address"));
		const char *state = json_string_value(json_object_get(one, "state"));
		if (address && !(state && strcmp(state, "drained") == 0) && json_object_set_new(set, address, json_true()) != 0)
			return err_set(err, ERR_NOMEM, "no memory for %zu nodes", i);
	}
	return OK;
}

/* All nodes of the rings; one that is not there is said, and left out. */
static errc ask_fleet(struct tenants_tool *t, struct err *err)
{
	errc rc = OK;
	json_t *v = NULL, *one, *set = json_object();
	const char *scheme = strncmp(t->url, "https:", 6) == 0 ? "https" : "http", *address;
	char *full = arena_printf(&t->arena, "%s/-/ring", t->url);
	size_t i;
	CHECK(full && set, ERR_NOMEM, "no memory");
	TRY(ask(t, full, &v, err));
	TRY(addresses_add(set, json_object_get(v, "remembered"), err));
	json_array_foreach(json_object_get(v, "hashrings"), i, one)
	{
		TRY(addresses_add(set, json_object_get(one, "endpoints"), err));
	}
	json_object_foreach(set, address, one)
	{
		struct err why = {0};
		char *url = url_of(t, scheme, address);
		CHECK(url, ERR_NOMEM, "no memory");
		if (ask_node(t, url, &why) != OK) {
			fprintf(stderr, "varve: %s\n", why.msg);
			t->silent++;
		}
	}
	CHECK(t->asked > 0, ERR_INVALID, "%s names no nodes", full);
fail:
	json_decref(v);
	json_decref(set);
	return rc;
}

/* ---- sums ---- */

static int by_name(const void *a, const void *b)
{
	return span_cmp(((const struct tenant_row *)a)->name, ((const struct tenant_row *)b)->name);
}

static void sum_up(struct tenants_tool *t)
{
	size_t n = 0;
	if (t->n > 1)
		qsort(t->rows, t->n, sizeof *t->rows, by_name);
	for (size_t i = 0; i < t->n; i++) {
		const struct tenant_row *r = &t->rows[i];
		struct tenant_row *sum = n > 0 && span_eq(t->rows[n - 1].name, r->name) ? &t->rows[n - 1] : NULL;
		if (!sum) {
			t->rows[n++] = *r;
			continue;
		}
		sum->nodes++;
		sum->series += r->series;
		sum->windows += r->windows;
		sum->memory_bytes += r->memory_bytes;
		sum->samples_per_second += r->samples_per_second;
		sum->new_series_per_minute += r->new_series_per_minute;
	}
	t->n = n;
}

static double key_of(const struct tenant_row *r, const char *sort)
{
	return strcmp(sort, "series") == 0    ? (double)r->series
	       : strcmp(sort, "memory") == 0  ? (double)r->memory_bytes
	       : strcmp(sort, "samples") == 0 ? r->samples_per_second
					      : r->new_series_per_minute;
}

static const char *sort_word;
static int by_key(const void *a, const void *b)
{
	double x = key_of(a, sort_word), y = key_of(b, sort_word);
	return x < y ? 1 : x > y ? -1 : by_name(a, b);
}

/* ---- printing ---- */

static void print_json(struct tenants_tool *t, size_t shown)
{
	buf_printf(&t->out, "{\"nodes\":%" PRIu32 ",\"silent\":%" PRIu32 ",\"total\":%zu,\"tenants\":[", t->asked, t->silent, t->n);
	for (size_t i = 0; i < shown; i++) {
		const struct tenant_row *r = &t->rows[i];
		buf_printf(&t->out, "%s\n{\"tenant\":", i ? "," : "");
		buf_json_string(&t->out, r->name);
		buf_printf(&t->out,
			",\"nodes\":%" PRIu32 ",\"series\":%" PRIu64 ",\"windows\":%" PRIu64 ",\"memoryBytes\":%" PRIu64
			",\"samplesPerSecond\":%.1f,\"newSeriesPerMinute\":%.0f,\"head_series_limit\":%" PRIu64 ",\"samples_per_second\":%" PRIu64
			"}",
			r->nodes, r->series, r->windows, r->memory_bytes, r->samples_per_second, r->new_series_per_minute, r->head_series_limit,
			r->samples_limit);
	}
	buf_printf(&t->out, "]}\n");
}

static const char *limit_text(uint64_t n, char *buf, size_t size)
{
	if (n > 0)
		snprintf(buf, size, "%" PRIu64, n);
	else
		snprintf(buf, size, "-");
	return buf;
}

static void print_table(struct tenants_tool *t, size_t shown)
{
	char memory[32], series[24], rate[24];
	uint64_t all = 0, bytes = 0;
	double samples = 0;
	int width = 6;
	for (size_t i = 0; i < shown; i++)
		width = (int)t->rows[i].name.n > width ? (int)t->rows[i].name.n : width;
	buf_printf(&t->out, "%-*s  %5s  %12s  %12s  %10s  %12s  %12s  %10s\n", width, "TENANT", "NODES", "SERIES", "LIMIT", "MEMORY", "SAMPLES/S",
		"LIMIT", "NEW/MIN");
	for (size_t i = 0; i < t->n; i++) {
		const struct tenant_row *r = &t->rows[i];
		all += r->series;
		bytes += r->memory_bytes;
		samples += r->samples_per_second;
		if (i < shown)
			buf_printf(&t->out, "%-*.*s  %5" PRIu32 "  %12" PRIu64 "  %12s  %10s  %12.1f  %12s  %10.0f\n", width, SPAN_ARG(r->name),
				r->nodes, r->series, limit_text(r->head_series_limit, series, sizeof series),
				format_size(r->memory_bytes, memory, sizeof memory), r->samples_per_second,
				limit_text(r->samples_limit, rate, sizeof rate), r->new_series_per_minute);
	}
	buf_printf(&t->out, "%zu tenants on %" PRIu32 " of %" PRIu32 " nodes: %" PRIu64 " series, %s, %.1f samples/s%s\n", t->n, t->asked - t->silent,
		t->asked, all, format_size(bytes, memory, sizeof memory), samples, t->fleet ? ", each replica counted" : "");
}

/* ---- deleting ---- */

static errc delete_tenant(struct tenants_tool *t, const char *name, struct err *err)
{
	errc rc = OK;
	struct http_call call = {.method = "DELETE", .headers = t->headers.v, .n_headers = t->headers.n, .max_answer_bytes = MIB};
	CHECK(tenant_valid(span_cstr(name)), ERR_INVALID, "\"%s\" is no tenant's name", name);
	CHECK(t->confirm && strcmp(t->confirm, name) == 0, ERR_INVALID, "everything of tenant %s would be deleted: say so with --confirm=%s", name,
		name);
	call.url = arena_printf(&t->arena, "%s/-/tenants/%s?confirm=%s", t->url, name, name);
	CHECK(call.url, ERR_NOMEM, "no memory");
	TRY(http_call(t->http, &call, err));
	CHECK(call.status == 202, ERR_DENIED, "%s: %d: %.*s", t->url, call.status, (int)(call.answer.n < 400 ? call.answer.n : 400),
		(const char *)call.answer.p);
	fwrite(call.answer.p, 1, call.answer.n, stdout);
fail:
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	return rc;
}

static errc run(struct tenants_tool *t, struct err *err)
{
	errc rc = OK;
	TRY(t->fleet ? ask_fleet(t, err) : ask_node(t, t->url, err));
	sum_up(t);
	sort_word = t->sort;
	if (t->n > 1)
		qsort(t->rows, t->n, sizeof *t->rows, by_key);
	size_t shown = t->n < t->limit ? t->n : (size_t)t->limit;
	(t->json ? print_json : print_table)(t, shown);
	CHECK(!t->out.failed, ERR_NOMEM, "no memory for %zu tenants", t->n);
	fwrite(t->out.p, 1, t->out.n, stdout);
	CHECK(t->silent == 0, ERR_NET, "%" PRIu32 " of %" PRIu32 " nodes did not answer", t->silent, t->asked);
fail:
	return rc;
}

int cmd_tenants(int argc, char **argv)
{
	static struct tenants_tool t;
	struct err err = {0};
#define F(n, k, field, def, val, text)                                                                                                               \
	{                                                                                                                                            \
		.name = n, .kind = k, .into = &t.field, .fallback = def, .value_name = val, .help = text, .common = true                             \
	}
	struct flag table[] = {
		F("fleet", FLAG_BOOL, fleet, "false", "BOOL", "All nodes that it knows of (GET /-/ring), summed up."),
		F("json", FLAG_BOOL, json, "false", "BOOL", "As JSON."),
		F("sort", FLAG_CHOICE, sort, "series", "series|memory|samples|new-series", "The largest first, of this."),
		F("limit", FLAG_U64, limit, "100", "COUNT", "So many are printed; sums are of all."),
		F("port", FLAG_U64, port, "0", "PORT", "With --fleet: where nodes listen, when it is not what the rings say (--hashrings.port)."),
		F("confirm", FLAG_STRING, confirm, NULL, "NAME", "With delete: the name once more."),
		F("header", FLAG_LIST, headers, NULL, "NAME: VALUE", "Sent along, for Authorization. Repeatable."),
		F("ca-file", FLAG_STRING, ca_file, NULL, "FILE", "Who signed the servers' certificates."),
		F("cert-file", FLAG_STRING, cert_file, NULL, "FILE", "The certificate that it shows."),
		F("key-file", FLAG_STRING, key_file, NULL, "FILE", "Its key."),
	};
#undef F
	struct flag_program program = {
		.usage = "varve tenants [URL] [FLAGS]\n       varve tenants delete NAME [URL] --confirm=NAME    everything that was stored of it up "
			 "to now",
		.about = "What each tenant has in memory and sends, as a running varve (http://127.0.0.1:19291) sees it. Series, memory and windows "
			 "are of\n"
			 "what is not in the bucket yet; samples and new series are what about the last minute brought.",
		.flags = table,
		.n_flags = sizeof table / sizeof *table,
		.positionals = true,
	};
	struct flag_list args = {0};
	struct arena words; /* the flags' strings */
	enum flags_action action = FLAGS_RUN;
	arena_init(&words, MIB);
	arena_init(&t.arena, GIB);
	buf_init(&t.out, GIB);
	errc rc = flags_parse(&program, argc, argv, &words, &args, &action, &err);
	bool deletes = args.n > 0 && strcmp(args.v[0], "delete") == 0;
	size_t at = deletes ? 2 : 0;
	if (rc == OK && action == FLAGS_RUN && (args.n > at + 1 || args.n < at))
		rc = err_set(&err, ERR_INVALID, "usage: varve tenants [URL], or varve tenants delete NAME [URL] --confirm=NAME");
	t.url = args.n > at ? args.v[at] : "http://127.0.0.1:19291";
	if (rc == OK && action == FLAGS_RUN) {
		const struct http_client_config http = {.connect_timeout_ms = 2000,
			.idle_timeout_ms = TENANTS_MS,
			.total_timeout_ms = 2 * TENANTS_MS,
			.ca_file = t.ca_file,
			.cert_file = t.cert_file,
			.key_file = t.key_file};
		rc = http_client_open(&http, &t.http, &err);
		if (rc == OK)
			rc = deletes ? delete_tenant(&t, args.v[1], &err) : run(&t, &err);
		http_client_close(t.http);
	}
	free(t.rows);
	buf_free(&t.out);
	arena_free(&t.arena);
	arena_free(&words);
	return rc == OK ? EXIT_CLEAN : cmd_fail(EXIT_USAGE, &err);
}
