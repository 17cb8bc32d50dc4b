/* cmd/cmd_bench.c - `varve bench write`: a load that can be repeated, for varve or any other receiver of remote write.
 *
 * Bodies are built before the clock starts, so the sender's core is spent on sending; what is sent is a function of the flags alone (cmd_bench_data.c),
 * so servers can be compared on identical bytes.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/config.h"
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/log.h"
#include "cmd/cmd_bench_int.h"
#include "cmd/cmd_int.h"

enum {
	CONNECTIONS_MAX = 10000,
	BATCH_MAX = 1000000,
	PIDS_MAX = 64,
};
static const uint64_t SERIES_MAX = 1000000000, ROUNDS_MAX = 1000000000, RATE_MAX = 1000000000000;

struct bench_flags {
	const char *url, *tenant, *rw, *order, *churn, *histograms, *out_of_order, *output, *progress, *acks, *dump;
	uint64_t series, rounds, first_round, batch, connections, tenants, labels, start, seed, rate, memory;
	int64_t step_ms, retry_ms;
	struct flag_list pids, headers;
	bool prebuild, start_set;
};

#define F(n, k, field, def, val, comm, text)                                                                                                         \
	{                                                                                                                                            \
		.name = n, .kind = k, .into = &f.field, .fallback = def, .value_name = val, .help = text, .common = comm                             \
	}

/* "5", "5%", "0.25": millionths. */
static CHECKED errc parse_percent(const char *flag, const char *text, uint32_t *ppm, struct err *err)
{
	char *end;
	double x = strtod(text, &end);
	if (*end == '%')
		end++;
	if (end == text || *end || !(x >= 0 && x <= 100))
		return err_set(err, ERR_INVALID, "--%s=%s must be a share in percent, 0 to 100", flag, text);
	*ppm = (uint32_t)lround(x * (BENCH_MILLION / 100));
	return OK;
}

static CHECKED errc between(const char *flag, uint64_t x, uint64_t least, uint64_t most, struct err *err)
{
	if (x >= least && x <= most)
		return OK;
	return err_set(err, ERR_INVALID, "--%s=%" PRIu64 " must be between %" PRIu64 " and %" PRIu64, flag, x, least, most);
}

static CHECKED errc shape_of(const struct bench_flags *f, struct bench_shape *shape, struct err *err)
{
	errc rc = OK;
	TRY(between("series", f->series, 1, SERIES_MAX, err));
	TRY(between("rounds", f->rounds, 1, ROUNDS_MAX, err));
	TRY(between("first-round", f->first_round, 0, ROUNDS_MAX, err));
	TRY(between("batch", f->batch, 1, BATCH_MAX, err));
	TRY(between("connections", f->connections, 1, CONNECTIONS_MAX, err));
	TRY(between("tenants", f->tenants, 1, f->series, err));
	TRY(between("labels", f->labels, BENCH_LABELS_MIN, BENCH_LABELS_MAX, err));
	TRY(between("rate", f->rate, 0, RATE_MAX, err));
	CHECK(f->step_ms > 0 && f->step_ms <= 86400000, ERR_INVALID, "--step must be between 1ms and 1d");
	*shape = (struct bench_shape){
		.series = f->series,
		.rounds = f->rounds,
		.first_round = f->first_round,
		.batch = f->batch,
		.tenants = f->tenants,
		.seed = f->seed,
		.labels = (uint32_t)f->labels,
		.step_ms = f->step_ms,
		.order = strcmp(f->order, "scrape") == 0    ? BENCH_SCRAPE
			 : strcmp(f->order, "strided") == 0 ? BENCH_STRIDED
							    : BENCH_SHUFFLED,
		.version = f->rw[0] - '0',
		.start_ms = (int64_t)f->start,
	};
	TRY(parse_percent("churn", f->churn, &shape->churn_ppm, err));
	TRY(parse_percent("histograms", f->histograms, &shape->histograms_ppm, err));
	TRY(parse_percent("out-of-order", f->out_of_order, &shape->out_of_order_ppm, err));
	if (!f->start_set)
		shape->start_ms = io_now_ms() / f->step_ms * f->step_ms - (int64_t)(f->first_round + f->rounds - 1) * f->step_ms;
fail:
	return rc;
}

/* Half of what the machine could give now: the other half is the server's, and the page cache's. */
static uint64_t memory_default(void)
{
	struct arena a;
	struct span text;
	unsigned long long kib;
	uint64_t bytes = GIB;
	arena_init(&a, MIB);
	if (io_read_file("/proc/meminfo", 256 * KIB, &a, &text, NULL) == OK) {
		const char *p = strstr(text.p, "MemAvailable:");
		if (p && sscanf(p, "MemAvailable: %llu kB", &kib) == 1)
			bytes = kib * KIB / 2;
	}
	arena_free(&a);
	return bytes;
}

static CHECKED errc pids_of(const struct flag_list *words, uint32_t *pids, size_t *n, struct err *err)
{
	errc rc = OK;
	CHECK(words->n <= PIDS_MAX, ERR_INVALID, "--pid is given %zu times, at most %d", words->n, PIDS_MAX);
	for (size_t i = 0; i < words->n; i++) {
		int64_t pid;
		CHECK(span_to_i64(span_cstr(words->v[i]), &pid) && pid > 0 && pid <= INT32_MAX, ERR_INVALID, "--pid=%s is no process id",
			words->v[i]);
		pids[i] = (uint32_t)pid;
	}
	*n = words->n;
fail:
	return rc;
}

/* The URL of the write endpoint: as given when it has a path, else with the one that varve, Prometheus and VictoriaMetrics share. */
static CHECKED errc url_of(const char *given, struct arena *arena, const char **url, struct err *err)
{
	errc rc = OK;
	const char *host = strstr(given, "://");
	CHECK(strncmp(given, "http://", 7) == 0 || strncmp(given, "https://", 8) == 0, ERR_INVALID, "--url=%s must begin with http:// or https://",
		given);
	const char *path = strchr(host + 3, '/');
	bool bare = !path || path[1] == 0;
	*url = bare ? arena_printf(arena, "%.*s/api/v1/write", path ? (int)(path - given) : (int)strlen(given), given) : given;
	CHECK(*url, ERR_NOMEM, "no memory");
fail:
	return rc;
}

/* ---- the report ---- */

static double ms(uint64_t ns)
{
	return (double)ns / 1e6;
}

static double per(double x, uint64_t n)
{
	return n ? x / (double)n : 0;
}

static void report_json(const struct bench_result *r, bool metered, struct buf *out)
{
	buf_printf(out,
		"{\"requests\":%" PRIu64 ",\"acked\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"retried\":%" PRIu64 ",\"samples\":%" PRIu64
		",\"samples_failed\":%" PRIu64 ",\"seconds\":%.6f,\"samples_per_second\":%.0f,\"bytes\":%" PRIu64 ",\"message_bytes\":%" PRIu64
		",\"bytes_per_sample\":%.2f,\"message_bytes_per_sample\":%.2f,\"passes\":%" PRIu32,
		r->requests, r->acked, r->failed, r->retried, r->samples, r->samples_failed, r->seconds,
		r->seconds > 0 ? (double)r->samples / r->seconds : 0, r->bytes, r->message_bytes, per((double)r->bytes, r->samples),
		per((double)r->message_bytes, r->samples), r->passes);
	if (r->written != UINT64_MAX)
		buf_printf(out, ",\"written\":%" PRIu64, r->written);
	buf_printf(out, ",\"latency_ms\":{\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"max\":%.3f}", ms(bench_latency_at(&r->latency, 0.5)),
		ms(bench_latency_at(&r->latency, 0.9)), ms(bench_latency_at(&r->latency, 0.99)), ms(r->latency.max_ns));
	buf_printf(out, ",\"answers\":{");
	for (int i = 0, n = 0; i < BENCH_STATUSES; i++)
		if (r->statuses[i])
			buf_printf(out, "%s\"%d\":%" PRIu64, n++ ? "," : "", i, r->statuses[i]);
	buf_printf(out, "},\"first_refusal\":");
	if (r->first_refusal[0])
		buf_json_string(out, span_cstr(r->first_refusal));
	else
		buf_printf(out, "null");
	buf_printf(out, ",\"sender_cpu_seconds\":%.6f", r->client_cpu_s);
	if (metered)
		buf_printf(out,
			",\"server\":{\"cpu_seconds\":%.6f,\"cpu_ns_per_sample\":%.1f,\"user_share\":%.3f,\"rss_bytes_before\":%" PRIu64
			",\"rss_bytes_after\":%" PRIu64 "}",
			r->server_cpu_s, per(r->server_cpu_s * 1e9, r->samples), r->server_user_share, r->server_rss_before, r->server_rss_after);
	buf_printf(out, "}\n");
}

static void report_table(const struct bench_result *r, bool metered, struct buf *out)
{
	char a[32], b[32];
	buf_printf(out, "requests       %" PRIu64 ": %" PRIu64 " acknowledged, %" PRIu64 " failed, %" PRIu64 " attempts repeated\n", r->requests,
		r->acked, r->failed, r->retried);
	buf_printf(out, "samples        %" PRIu64 " in %.3f s: %.0f a second\n", r->samples, r->seconds,
		r->seconds > 0 ? (double)r->samples / r->seconds : 0);
	buf_printf(out, "size           %.1f bytes a sample, %.1f before compression\n", per((double)r->bytes, r->samples),
		per((double)r->message_bytes, r->samples));
	buf_printf(out, "latency        p50 %.2f ms, p90 %.2f ms, p99 %.2f ms, max %.2f ms\n", ms(bench_latency_at(&r->latency, 0.5)),
		ms(bench_latency_at(&r->latency, 0.9)), ms(bench_latency_at(&r->latency, 0.99)), ms(r->latency.max_ns));
	if (metered) {
		buf_printf(out, "server CPU     %.3f us a sample, %.2f s in all, %.0f %% of it in user mode\n",
			per(r->server_cpu_s * 1e6, r->samples), r->server_cpu_s, r->server_user_share * 100);
		buf_printf(out, "server memory  %s resident, %s before\n", format_size(r->server_rss_after, a, sizeof a),
			format_size(r->server_rss_before, b, sizeof b));
	}
	buf_printf(out, "sender CPU     %.3f us a sample\n", per(r->client_cpu_s * 1e6, r->samples));
	buf_printf(out, "answers       ");
	for (int i = 0; i < BENCH_STATUSES; i++)
		if (r->statuses[i] && i)
			buf_printf(out, " %d: %" PRIu64, i, r->statuses[i]);
		else if (r->statuses[i])
			buf_printf(out, " none: %" PRIu64, r->statuses[i]);
	buf_printf(out, "\n");
	if (r->written != UINT64_MAX)
		buf_printf(out, "written        %" PRIu64 " samples, as the server counts them\n", r->written);
	if (r->first_refusal[0])
		buf_printf(out, "first refusal  %s\n", r->first_refusal);
}

/* ---- the command ---- */

static CHECKED errc run_dump(const struct bench_shape *shape, const char *dir, bool json, struct buf *out, struct err *err)
{
	uint64_t bodies, bytes;
	errc rc = bench_dump(shape, dir, &bodies, &bytes, err);
	if (rc)
		return rc;
	char size[32];
	if (json)
		buf_printf(out, "{\"bodies\":%" PRIu64 ",\"bytes\":%" PRIu64 "}\n", bodies, bytes);
	else
		buf_printf(out, "%" PRIu64 " bodies, %s, in %s\n", bodies, format_size(bytes, size, sizeof size), dir);
	return OK;
}

static CHECKED errc run_write(const struct bench_flags *f, const struct bench_shape *shape, struct bench_result *res, struct arena *arena, bool json,
	struct buf *out, struct err *err)
{
	errc rc = OK;
	uint32_t pids[PIDS_MAX];
	struct bench_meter meter = {.pids = pids};
	struct bench_send_config cfg = {
		.tenant = f->tenant,
		.headers = f->headers.v,
		.n_headers = f->headers.n,
		.connections = (uint32_t)f->connections,
		.rate = f->rate,
		.retry_ms = f->retry_ms,
		.memory_bytes = !f->prebuild ? 0
				: f->memory  ? f->memory
					     : memory_default(),
		.acks = f->acks,
		.progress = strcmp(f->progress, "line") == 0,
		.say = true,
	};
	CHECK(f->headers.n <= 16, ERR_INVALID, "--header is given %zu times, at most 16", f->headers.n);
	TRY(url_of(f->url, arena, &cfg.url, err));
	TRY(pids_of(&f->pids, pids, &meter.n, err));
	if (meter.n) {
		/* A wrong id is told before bodies are built for minutes. */
		struct bench_cost now;
		TRY(bench_meter_read(&meter, &now, err));
		cfg.meter = &meter;
	}
	rc = bench_send(shape, &cfg, res, err);
	if (res->acked > 0 || rc == OK) {
		if (json)
			report_json(res, meter.n > 0, out);
		else
			report_table(res, meter.n > 0, out);
	}
fail:
	return rc;
}

int cmd_bench(int argc, char **argv)
{
	struct err err = {0};
	struct arena arena;
	struct bench_flags f = {0};
	struct buf out;
	struct bench_result *res = NULL;
	struct bench_shape shape;
	arena_init(&arena, 16 * MIB);
	buf_init(&out, MIB);
	struct flag table[] = {
		F("url", FLAG_STRING, url, "http://127.0.0.1:19291", "URL", true,
			"The receiver. Without a path, /api/v1/write is added: varve, Prometheus and VictoriaMetrics have it there."),
		F("series", FLAG_U64, series, "100000", "COUNT", true, "Series that are written at any time."),
		F("rounds", FLAG_U64, rounds, "10", "COUNT", true, "Samples of each series."),
		F("batch", FLAG_U64, batch, "2000", "COUNT", true, "Series in a request, one sample each."),
		F("connections", FLAG_U64, connections, "4", "COUNT", true, "Connections; a series stays on one of them."),
		F("rw", FLAG_CHOICE, rw, "1", "1|2", true, "Version of remote write."),
		F("order", FLAG_CHOICE, order, "scrape", "scrape|strided|shuffled", true,
			"Order of the series: target by target, one of each of 1,000 targets in turn, or another random order each round."),
		F("churn", FLAG_STRING, churn, "0", "PERCENT", true,
			"Share of the series that new ones replace in each minute of sample time (--step a round). All 500 of a target go together."),
		F("histograms", FLAG_STRING, histograms, "0", "PERCENT", true, "Share of the series that carry native histograms."),
		F("out-of-order", FLAG_STRING, out_of_order, "0", "PERCENT", true,
			"Share of the samples that change places with their series' next or previous one."),
		F("tenants", FLAG_U64, tenants, "1", "COUNT", true,
			"Tenants that share the series; requests take them in turn. Above 1 the header THANOS-TENANT is TENANT-00000 and so on."),
		F("tenant", FLAG_STRING, tenant, NULL, "NAME", true, "Header THANOS-TENANT. Default: none, or 'bench' with several tenants."),
		F("labels", FLAG_U64, labels, "10", "COUNT", true, "Labels of a series, 2 to 64."),
		F("rate", FLAG_U64, rate, "0", "COUNT", true,
			"Samples a second; 0 = as fast as they are answered. Latency then counts from when a request was due."),
		F("step", FLAG_DURATION_MS, step_ms, "15s", "DURATION", true, "Between rounds, in sample time."),
		F("start", FLAG_U64, start, NULL, "MS", true,
			"Time of round 0, milliseconds since 1970; give it to send the same bytes again. Default: the last round is now."),
		F("first-round", FLAG_U64, first_round, "0", "N", true, "Go on with this round: 0 to N-1 were sent by an earlier call."),
		F("seed", FLAG_U64, seed, "0", "N", true, "Another seed gives other values, and other choices of what is shuffled or late."),
		F("pid", FLAG_LIST, pids, NULL, "PID", true, "A process of the server, for its CPU and memory. Repeatable: they are added up."),
		F("prebuild", FLAG_BOOL, prebuild, "true", NULL, true,
			"Build bodies before they are sent; what does not fit into --memory is built and sent in several passes, and only sending "
			"is timed. With --no-prebuild each is built when its turn comes."),
		F("memory", FLAG_SIZE, memory, NULL, "SIZE", true, "For bodies. Default: half of what is available."),
		F("retry", FLAG_DURATION_MS, retry_ms, "1m", "DURATION", true,
			"How long a request is repeated that got 429, 5xx or no answer, before it counts as failed."),
		F("output", FLAG_CHOICE, output, "table", "table|json", true, "Form of the report."),
		F("dump", FLAG_STRING, dump, NULL, "DIR", true, "Write the bodies to files there instead of sending them."),
		F("acks", FLAG_STRING, acks, NULL, "FILE", false, "A line 'ROUND BATCH' for each acknowledged request."),
		F("progress", FLAG_CHOICE, progress, "none", "none|line", false, "A line on stdout, five times a second."),
		F("header", FLAG_LIST, headers, NULL, "NAME: VALUE", false, "Another header of every request, for example for authorization."),
	};
	struct flag_program program = {
		.usage = "varve bench write [FLAGS]\n"
			 "\n"
			 "  varve bench write --series=1000000 --pid=$(pidof varve)        a million series, ten samples each\n"
			 "  varve bench write --order=strided --rw=2 --connections=64      the same from many senders\n"
			 "  varve bench write --rate=100000 --rounds=1000 --churn=5        a steady load, for latencies\n"
			 "  varve bench write --url=http://127.0.0.1:9090 --output=json    another receiver",
		.about = "Sends made-up metrics by remote write as fast as they are acknowledged, and prints rates, latencies and what the server "
			 "spent: "
			 "40 % of the series stand still, 50 % count up, 10 % are noisy. The same flags give the same bytes. Exit code 1 when a "
			 "request "
			 "failed, or nobody listens.",
		.flags = table,
		.n_flags = sizeof table / sizeof table[0],
		.positionals = true,
	};
	struct flag_list args = {0};
	enum flags_action action = FLAGS_RUN;
	bool failed = false;
	errc rc = flags_parse(&program, argc, argv, &arena, &args, &action, &err);
	if (rc != OK || action == FLAGS_EXIT_OK)
		goto done;
	log_setup(LOG_WARN, LOG_LOGFMT);
	bool json = strcmp(f.output, "json") == 0;
	for (size_t i = 0; i < program.n_flags; i++)
		if (table[i].into == &f.start)
			f.start_set = table[i].set;
	if (args.n != 1 || strcmp(args.v[0], "write") != 0) {
		rc = err_set(&err, ERR_INVALID, "usage: varve bench write [FLAGS]");
		goto done;
	}
	rc = shape_of(&f, &shape, &err);
	if (rc != OK)
		goto done;
	if (f.dump) {
		rc = run_dump(&shape, f.dump, json, &out, &err);
		goto done;
	}
	res = calloc(1, sizeof *res);
	rc = res ? run_write(&f, &shape, res, &arena, json, &out, &err) : err_set(&err, ERR_NOMEM, "no memory");
	failed = rc == OK && res->acked < res->requests;
done:
	if (out.n > 0)
		fwrite(out.p, 1, out.n, stdout);
	int code = rc != OK ? cmd_fail(EXIT_USAGE, &err) : failed ? EXIT_USAGE : EXIT_CLEAN;
	free(res);
	buf_free(&out);
	arena_free(&arena);
	return code;
}
