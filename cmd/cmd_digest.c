/* cmd/cmd_digest.c - `varve digest URL...`: do these nodes hold the same samples?
 *
 *     each node ──GET /-/digest──▶ of every open window: what it shares with each other node of its ring, added up
 *     each pair of nodes: what one says that it shares with the other is what the other says
 *
 * Nodes in a ring are compared by what the ring makes them share, nodes without one by all that they hold. A window of which one of them has cut a block is not compared: what
 * is in the block is in the bucket. Samples from before the ring in force are not, either, but with --all: who held them then need not hold them now.
 * Of a node that is written to meanwhile the newest samples differ: --settle leaves them out.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/io.h"
#include "base/limits.h"
#include "cmd/cmd_int.h"

enum { ASK_TRIES = 30, ASK_AGAIN_MS = 1000, NODES_MAX = 2000 };

struct digest_tool {
	struct arena arena; /* strings */
	struct http_client *http;
	const char *tenant, *ca_file;
	int64_t settle_ms;
	bool all, quiet;
	const char *const *urls;
	size_t n;
	json_t **answers;
};

struct total {
	uint64_t series, samples;
	const char *sum;
};

/* ---- asking ---- */

static errc ask(struct digest_tool *t, const char *url, int64_t from, int64_t until, json_t **out, struct err *err)
{
	errc rc = OK;
	struct http_call call = {.method = "GET", .max_answer_bytes = 4 * (size_t)LIMIT_REPAIR_ANSWER_BYTES};
	call.url = arena_printf(&t->arena, "%s/-/digest?from=%" PRId64 "&until=%" PRId64 "%s%s", url, from, until, t->tenant ? "&tenant=" : "",
		t->tenant ? t->tenant : "");
	CHECK(call.url, ERR_NOMEM, "no memory");
	for (int i = 0; i < ASK_TRIES; i++) {
		TRY(http_call(t->http, &call, err));
		if (call.status != 503)
			break;
		io_sleep_ms(ASK_AGAIN_MS); /* it is starting, or makes another digest */
	}
	CHECK(call.status == 200, ERR_NET, "%s: %d: %.*s", url, call.status, (int)(call.answer.n < 200 ? call.answer.n : 200),
		(const char *)call.answer.p);
	*out = json_loadb((const char *)call.answer.p, call.answer.n, 0, NULL);
	CHECK(json_is_array(json_object_get(*out, "windows")), ERR_INVALID, "%s: what it answers is no digest", url);
fail:
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	return rc;
}

/* The rings in force are the same for so long, by any node's memory. */
static errc since_of(struct digest_tool *t, int64_t *from, struct err *err)
{
	errc rc = OK;
	*from = INT64_MAX;
	for (size_t i = 0; i < t->n; i++) {
		json_t *v = NULL;
		TRY(ask(t, t->urls[i], INT64_MAX, INT64_MAX, &v, err));
		int64_t since = json_integer_value(json_object_get(v, "since"));
		*from = since < *from ? since : *from;
		json_decref(v);
	}
fail:
	return rc;
}

/* ---- comparing ---- */

static const char *text_of(const json_t *v, const char *key)
{
	const char *s = json_string_value(json_object_get(v, key));
	return s ? s : "";
}

static struct total total_of(const json_t *v)
{
	return (struct total){(uint64_t)json_integer_value(json_object_get(v, "series")), (uint64_t)json_integer_value(json_object_get(v, "samples")),
		v ? text_of(v, "sum") : ""};
}

static bool total_eq(const struct total *a, const struct total *b)
{
	return a->series == b->series && a->samples == b->samples && (a->samples == 0 || strcmp(a->sum, b->sum) == 0);
}

static json_t *window_of(const json_t *answer, const json_t *like)
{
	size_t i;
	json_t *v;
	json_array_foreach(json_object_get(answer, "windows"), i, v)
	{
		if (strcmp(text_of(v, "tenant"), text_of(like, "tenant")) == 0 &&
			json_equal(json_object_get(v, "start"), json_object_get(like, "start")) &&
			json_equal(json_object_get(v, "end"), json_object_get(like, "end")))
			return v;
	}
	return NULL;
}

/* What `window` shares with the node at `address`; all of it when there are no rings. */
static struct total shared_of(const json_t *window, const char *address)
{
	size_t i;
	json_t *v;
	if (!window)
		return (struct total){.sum = ""};
	if (!address)
		return total_of(json_object_get(window, "all"));
	json_array_foreach(json_object_get(window, "peers"), i, v)
	{
		if (strcmp(text_of(v, "address"), address) == 0)
			return total_of(v);
	}
	return (struct total){.sum = ""};
}

static const char *time_text(int64_t ms, char out[32])
{
	struct tm tm;
	time_t s = (time_t)(ms / 1000);
	if (!gmtime_r(&s, &tm) || strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
		snprintf(out, 32, "%" PRId64, ms);
	return out;
}

/* One window, of all nodes; whether all pairs agree. */
static bool compare(struct digest_tool *t, const json_t *like, json_t **of)
{
	bool cut = false, same = true;
	uint64_t samples = 0;
	char when[32];
	for (size_t i = 0; i < t->n; i++) {
		of[i] = window_of(t->answers[i], like);
		cut |= json_is_true(json_object_get(of[i], "cut"));
	}
	for (size_t i = 0; i < t->n; i++) {
		struct total all = shared_of(of[i], NULL);
		samples = all.samples > samples ? all.samples : samples;
	}
	const char *tenant = text_of(like, "tenant");
	time_text(json_integer_value(json_object_get(like, "start")), when);
	for (size_t i = 0; i < t->n && !cut; i++)
		for (size_t k = 0; k < i; k++) {
			const char *a = text_of(t->answers[i], "self"), *b = text_of(t->answers[k], "self");
			bool ring = *a && *b;
			struct total x = shared_of(of[i], ring ? b : NULL), y = shared_of(of[k], ring ? a : NULL);
			if (total_eq(&x, &y))
				continue;
			same = false;
			printf("differ  %s  %s  of what they share %s has %" PRIu64 " samples in %" PRIu64 " series, %s has %" PRIu64 " in %" PRIu64
			       "%s\n",
				tenant, when, t->urls[i], x.samples, x.series, t->urls[k], y.samples, y.series,
				x.samples == y.samples && x.series == y.series ? ", of other values or times" : "");
		}
	if (cut)
		printf("cut     %s  %s  a node has a block of it: not compared\n", tenant, when);
	else if (same && !t->quiet)
		printf("agree   %s  %s  %" PRIu64 " samples\n", tenant, when, samples);
	return same;
}

static errc run(struct digest_tool *t, bool *same, struct err *err)
{
	errc rc = OK;
	int64_t from = INT64_MIN, until = t->settle_ms > 0 ? io_now_ms() - t->settle_ms : INT64_MAX;
	size_t compared = 0;
	json_t **of = calloc(t->n, sizeof(json_t *));
	*same = true;
	CHECK(of, ERR_NOMEM, "no memory for %zu nodes", t->n);
	if (!t->all)
		TRY(since_of(t, &from, err));
	for (size_t i = 0; i < t->n; i++) {
		TRY(ask(t, t->urls[i], from, until, &t->answers[i], err));
		const char *epoch = text_of(t->answers[i], "epoch");
		CHECK(strcmp(epoch, text_of(t->answers[0], "epoch")) == 0, ERR_AGAIN,
			"%s and %s run other rings (epochs %s and %s): compare when they agree", t->urls[0], t->urls[i],
			text_of(t->answers[0], "epoch"), epoch);
		for (size_t k = 0; k < i; k++)
			CHECK(*text_of(t->answers[i], "self") == 0 || strcmp(text_of(t->answers[i], "self"), text_of(t->answers[k], "self")) != 0,
				ERR_INVALID, "%s and %s are one node", t->urls[k], t->urls[i]);
	}
	for (size_t i = 0; i < t->n; i++) {
		size_t w;
		json_t *v;
		json_array_foreach(json_object_get(t->answers[i], "windows"), w, v)
		{
			bool before = false;
			for (size_t k = 0; k < i && !before; k++)
				before = window_of(t->answers[k], v);
			if (before)
				continue;
			*same &= compare(t, v, of);
			compared++;
		}
	}
	if (compared == 0)
		printf("no window is open\n");
fail:
	free(of);
	return rc;
}

int cmd_digest(int argc, char **argv)
{
	static struct digest_tool t;
	struct err err = {0};
	struct flag table[] = {
		{.name = "tenant",
			.kind = FLAG_STRING,
			.into = &t.tenant,
			.value_name = "NAME",
			.help = "Only this tenant's windows.",
			.common = true},
		{.name = "settle",
			.kind = FLAG_DURATION_MS,
			.into = &t.settle_ms,
			.fallback = "0s",
			.value_name = "DURATION",
			.help = "Leave samples of the last so long out, for nodes that are being written to.",
			.common = true},
		{.name = "all", .kind = FLAG_BOOL, .into = &t.all, .help = "Compare samples from before the rings in force as well.", .common = true},
		{.name = "quiet", .kind = FLAG_BOOL, .into = &t.quiet, .help = "Say only what differs.", .common = true},
		{.name = "peer.ca-file",
			.kind = FLAG_STRING,
			.into = &t.ca_file,
			.value_name = "PATH",
			.help = "Who signed their certificates.",
			.common = true},
	};
	struct flag_program program = {
		.usage = "varve digest URL URL... [FLAGS]",
		.about = "Whether nodes hold the same samples in their open windows. Exit 1 when two of them differ.",
		.flags = table,
		.n_flags = sizeof table / sizeof *table,
		.positionals = true,
	};
	struct flag_list args = {0};
	enum flags_action action = FLAGS_RUN;
	bool same = true;
	arena_init(&t.arena, 64 * MIB);
	errc rc = flags_parse(&program, argc, argv, &t.arena, &args, &action, &err);
	if (rc == OK && action == FLAGS_RUN && (args.n < 2 || args.n > NODES_MAX))
		rc = err_set(&err, ERR_INVALID, "usage: varve digest URL URL...: two nodes or more");
	if (rc == OK && action == FLAGS_RUN) {
		const struct http_client_config http = {
			.connect_timeout_ms = 5000, .idle_timeout_ms = 300000, .total_timeout_ms = 600000, .ca_file = t.ca_file};
		t.urls = (const char *const *)args.v;
		t.n = args.n;
		t.answers = calloc(t.n, sizeof(json_t *));
		rc = t.answers ? http_client_open(&http, &t.http, &err) : err_set(&err, ERR_NOMEM, "no memory");
		if (rc == OK)
			rc = run(&t, &same, &err);
		for (size_t i = 0; t.answers && i < t.n; i++)
			json_decref(t.answers[i]);
		free(t.answers);
		if (t.http)
			http_client_close(t.http);
	}
	arena_free(&t.arena);
	return rc != OK ? cmd_fail(EXIT_USAGE, &err) : same ? EXIT_CLEAN : EXIT_USAGE;
}
