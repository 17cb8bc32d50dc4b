/* cmd/cmd_bench_send.c - connections that send a benchmark's bodies and take the time.
 *
 *     pass:  builders fill `bodies` ──▶ connections send them ──▶ next pass, when not all fit into memory at once
 *
 * A connection is a thread with a kept-alive HTTP connection, and batch b of every round belongs to connection b modulo their number: a series always takes
 * the same way, so its samples arrive in order, as from Prometheus' shards. Only shuffled rounds move series between requests; there the connections wait
 * for each other after every round.
 *
 * Retries are Prometheus': 429, 5xx and broken connections are sent again after 30 ms, 60 ms ... 5 s, or as much later as Retry-After says; any other
 * refusal is final. What could never succeed (nobody listens, 404, 415, ...) ends the run at the first request.
 *
 * With a rate each request has a time when it is due, and its latency counts from there: a server that stalls is not spared by a sender that waits.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/config.h"
#include "cmd/cmd_bench_int.h"

enum {
	BACKOFF_MIN_MS = 30, /* Prometheus' min_backoff and max_backoff */
	BACKOFF_MAX_MS = 5000,
	BUILDERS_MAX = 8,
	STACK_BYTES = 256 * 1024, /* of a connection's thread: there may be thousands */
	HEADERS_MAX = 32,
	PROGRESS_MS = 200,
};

struct body {
	uint8_t *p;
	uint32_t n, message_bytes;
};

struct run {
	const struct bench_shape *shape;
	const struct bench_send_config *cfg;
	struct http_client *client;
	uint64_t batches, total;

	/* of a pass */
	uint64_t from, to; /* requests, counted over all rounds */
	struct body *bodies;
	atomic_uint_fast64_t next_body;
	int64_t begin_ns;
	pthread_barrier_t round_over;
	bool wait_rounds;

	atomic_bool stop; /* the run can't succeed */
	atomic_bool answered, any_acked;
	atomic_uint_fast64_t acked, samples; /* for the progress line */
	atomic_bool over;

	pthread_mutex_t mu;
	/* guarded by mu */
	errc rc;
	struct err err;
	int acks_fd;
	uint64_t acks_at;
	struct bench_result *result;
};

struct connection {
	struct run *run;
	uint32_t number;
	pthread_t thread;
	struct bench_builder *builder; /* without prebuilt bodies */
	struct buf body;
	struct bench_result result; /* this connection's share */
};

static void run_fail(struct run *r, errc rc, const struct err *why)
{
	pthread_mutex_lock(&r->mu);
	if (r->rc == OK) {
		r->rc = rc;
		r->err = *why;
	}
	pthread_mutex_unlock(&r->mu);
	atomic_store(&r->stop, true);
}

/* ---- building a pass ---- */

static void *build_main(void *arg)
{
	struct run *r = arg;
	struct bench_builder *b = NULL;
	struct buf body;
	struct err err = {0};
	buf_init(&body, GIB);
	errc rc = bench_builder_open(r->shape, &b, &err);
	while (rc == OK && !atomic_load(&r->stop)) {
		uint64_t i = atomic_fetch_add(&r->next_body, 1);
		if (i >= r->to)
			break;
		size_t message_bytes;
		rc = bench_body(b, r->shape->first_round + i / r->batches, i % r->batches, &body, &message_bytes, &err);
		if (rc)
			break;
		struct body *out = &r->bodies[i - r->from];
		out->p = malloc(body.n ? body.n : 1);
		if (!out->p) {
			rc = err_set(&err, ERR_NOMEM, "no memory for the bodies: give less with --memory");
			break;
		}
		memcpy(out->p, body.p, body.n);
		out->n = (uint32_t)body.n;
		out->message_bytes = (uint32_t)message_bytes;
	}
	if (rc)
		run_fail(r, rc, &err);
	bench_builder_close(b);
	buf_free(&body);
	return NULL;
}

static void pass_build(struct run *r)
{
	pthread_t threads[BUILDERS_MAX];
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	int n = 0;
	atomic_store(&r->next_body, r->from);
	while (n < BUILDERS_MAX && n + 1 < cores && pthread_create(&threads[n], NULL, build_main, r) == 0)
		n++;
	build_main(r);
	while (n > 0)
		pthread_join(threads[--n], NULL);
}

static void pass_free(struct run *r)
{
	for (uint64_t i = 0; r->bodies && i < r->to - r->from; i++)
		free(r->bodies[i].p);
	free(r->bodies);
	r->bodies = NULL;
}

/* ---- one request ---- */

static void one_line(char *out, size_t n, int status, const char *text, size_t text_n)
{
	int used = status ? snprintf(out, n, "%d: ", status) : 0;
	size_t at = used > 0 ? (size_t)used : 0;
	for (size_t i = 0; i < text_n && at + 1 < n; i++) {
		if (text[i] == '\n' && i + 1 == text_n)
			break;
		out[at++] = (uint8_t)text[i] < ' ' ? ' ' : text[i];
	}
	out[at] = 0;
}

/* Refusals that every further request would get as well. */
static bool hopeless(int status)
{
	return status == 401 || status == 403 || status == 404 || status == 405 || status == 415 || status / 100 == 3;
}

static uint64_t header_number(const struct http_call *call, const char *name)
{
	int64_t n;
	return span_to_i64(http_call_header(call, name), &n) && n >= 0 ? (uint64_t)n : UINT64_MAX;
}

static void count_written(struct bench_result *res, const struct http_call *call)
{
	uint64_t samples = header_number(call, "x-prometheus-remote-write-samples-written");
	uint64_t histograms = header_number(call, "x-prometheus-remote-write-histograms-written");
	if (samples == UINT64_MAX && histograms == UINT64_MAX)
		return;
	if (res->written == UINT64_MAX)
		res->written = 0;
	res->written += (samples == UINT64_MAX ? 0 : samples) + (histograms == UINT64_MAX ? 0 : histograms);
}

static void note_ack(struct run *r, uint64_t round, uint64_t batch)
{
	char line[64];
	struct err err = {0};
	int n = snprintf(line, sizeof line, "%" PRIu64 " %" PRIu64 "\n", round, batch);
	pthread_mutex_lock(&r->mu);
	errc rc = io_pwrite(r->acks_fd, line, (size_t)n, r->acks_at, &err);
	r->acks_at += (uint64_t)n;
	pthread_mutex_unlock(&r->mu);
	if (rc) {
		err_wrap(&err, "%s", r->cfg->acks);
		run_fail(r, rc, &err);
	}
}

/* Sends one body until it is acknowledged, refused for good, or put off for too long. */
static void request_send(struct connection *c, const struct body *body, uint64_t round, uint64_t batch, int64_t due_ns)
{
	struct run *r = c->run;
	const struct bench_send_config *cfg = r->cfg;
	struct bench_result *res = &c->result;
	struct bench_batch of = bench_batch_at(r->shape, batch);
	char tenant[192];
	const char *headers[HEADERS_MAX + 5];
	size_t n = 0;
	headers[n++] = r->shape->version == 2 ? "Content-Type: application/x-protobuf;proto=io.prometheus.write.v2.Request"
					      : "Content-Type: application/x-protobuf";
	headers[n++] = "Content-Encoding: snappy";
	headers[n++] = r->shape->version == 2 ? "X-Prometheus-Remote-Write-Version: 2.0.0" : "X-Prometheus-Remote-Write-Version: 0.1.0";
	headers[n++] = "User-Agent: varve-bench";
	if (r->shape->tenants > 1)
		snprintf(tenant, sizeof tenant, "THANOS-TENANT: %s-%05" PRIu64, cfg->tenant ? cfg->tenant : "bench", of.tenant);
	else if (cfg->tenant)
		snprintf(tenant, sizeof tenant, "THANOS-TENANT: %s", cfg->tenant);
	if (r->shape->tenants > 1 || cfg->tenant)
		headers[n++] = tenant;
	for (size_t i = 0; i < cfg->n_headers && i < HEADERS_MAX; i++)
		headers[n++] = cfg->headers[i];
	struct http_call call = {.method = "POST",
		.url = cfg->url,
		.headers = headers,
		.n_headers = n,
		.body = span_of(body->p, body->n),
		.max_answer_bytes = 64 * KIB};

	int64_t backoff_ms = BACKOFF_MIN_MS, first_ns = io_mono_ns();
	res->requests++;
	while (!atomic_load(&r->stop)) {
		struct err err = {0};
		int64_t sent_ns = io_mono_ns();
		errc rc = http_call(r->client, &call, &err);
		int64_t now_ns = io_mono_ns();
		int status = rc == OK ? call.status : 0;
		res->statuses[status > 0 && status < BENCH_STATUSES ? status : 0]++;
		if (status)
			atomic_store(&r->answered, true);
		if (status / 100 == 2) {
			/* It may be sent a little early (sleep_until); who was early has waited for nothing. */
			int64_t since_ns = due_ns && due_ns < sent_ns ? due_ns : sent_ns;
			bench_latency_add(&res->latency, (uint64_t)(now_ns - since_ns));
			res->acked++;
			res->samples += of.n;
			res->bytes += body->n;
			res->message_bytes += body->message_bytes;
			count_written(res, &call);
			atomic_store(&r->any_acked, true);
			atomic_fetch_add(&r->acked, 1);
			atomic_fetch_add(&r->samples, of.n);
			if (r->acks_fd >= 0)
				note_ack(r, round, batch);
			break;
		}
		if (!res->first_refusal[0]) {
			if (status)
				one_line(res->first_refusal, sizeof res->first_refusal, status, (const char *)call.answer.p, call.answer.n);
			else
				one_line(res->first_refusal, sizeof res->first_refusal, 0, err.msg, strlen(err.msg));
		}
		if (!status && !atomic_load(&r->answered)) {
			run_fail(r, rc, &err);
			break;
		}
		if (hopeless(status) && !atomic_load(&r->any_acked)) {
			err_set(&err, ERR_INVALID, "%s answers %s", cfg->url, res->first_refusal);
			run_fail(r, ERR_INVALID, &err);
			break;
		}
		bool again = status == 0 || status == 429 || status / 100 == 5;
		if (!again || now_ns - first_ns >= cfg->retry_ms * 1000000) {
			count_written(res, &call);
			res->failed++;
			res->samples_failed += of.n;
			break;
		}
		uint64_t asked = header_number(&call, "retry-after");
		int64_t wait_ms = asked != UINT64_MAX && asked < 3600 && (int64_t)asked * 1000 > backoff_ms ? (int64_t)asked * 1000 : backoff_ms;
		backoff_ms = backoff_ms * 2 < BACKOFF_MAX_MS ? backoff_ms * 2 : BACKOFF_MAX_MS;
		res->retried++;
		io_sleep_ms(wait_ms);
	}
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
}

/* ---- a pass over all connections ---- */

/* When a request is due, or 0. */
static int64_t due_at(const struct run *r, uint64_t request)
{
	if (r->cfg->rate == 0)
		return 0;
	double samples = (double)(request - r->from) * (double)r->shape->series / (double)r->batches;
	return r->begin_ns + (int64_t)(samples / (double)r->cfg->rate * 1e9);
}

static void sleep_until(int64_t ns)
{
	/* The seam sleeps in milliseconds: early by less than one, never late by one. */
	int64_t left = ns - io_mono_ns();
	if (left >= 1000000)
		io_sleep_ms(left / 1000000);
}

static void *connection_main(void *arg)
{
	struct connection *c = arg;
	struct run *r = c->run;
	const uint64_t step = r->cfg->connections;
	for (uint64_t round = r->from / r->batches; round * r->batches < r->to; round++) {
		for (uint64_t batch = c->number; batch < r->batches; batch += step) {
			uint64_t i = round * r->batches + batch;
			if (i < r->from || i >= r->to || atomic_load(&r->stop))
				continue;
			uint64_t sent_round = r->shape->first_round + round;
			struct body made, *body = r->bodies ? &r->bodies[i - r->from] : &made;
			if (!r->bodies) {
				struct err err = {0};
				size_t message_bytes = 0;
				errc rc = bench_body(c->builder, sent_round, batch, &c->body, &message_bytes, &err);
				if (rc) {
					run_fail(r, rc, &err);
					continue;
				}
				made = (struct body){c->body.p, (uint32_t)c->body.n, (uint32_t)message_bytes};
			}
			int64_t due_ns = due_at(r, i);
			if (due_ns)
				sleep_until(due_ns);
			request_send(c, body, sent_round, batch, due_ns);
		}
		if (r->wait_rounds)
			pthread_barrier_wait(&r->round_over);
	}
	return NULL;
}

static void merge(struct bench_result *into, const struct bench_result *from)
{
	into->requests += from->requests;
	into->acked += from->acked;
	into->failed += from->failed;
	into->retried += from->retried;
	into->samples += from->samples;
	into->samples_failed += from->samples_failed;
	into->bytes += from->bytes;
	into->message_bytes += from->message_bytes;
	if (from->written != UINT64_MAX)
		into->written = (into->written == UINT64_MAX ? 0 : into->written) + from->written;
	for (size_t i = 0; i < BENCH_STATUSES; i++)
		into->statuses[i] += from->statuses[i];
	if (!into->first_refusal[0])
		memcpy(into->first_refusal, from->first_refusal, sizeof into->first_refusal);
	bench_latency_merge(&into->latency, &from->latency);
}

static CHECKED errc pass_send(struct run *r, struct connection *v, uint32_t n, struct err *err)
{
	errc rc = OK;
	uint32_t started = 0;
	struct bench_result *res = r->result;
	const struct bench_meter *meter = r->cfg->meter;
	struct bench_cost before = {0}, after = {0};
	pthread_attr_t attr;
	bool attr_set = false;
	if (meter)
		TRY(bench_meter_read(meter, &before, err));
	if (res->passes++ == 0)
		res->server_rss_before = before.rss_bytes;
	CHECK(pthread_attr_init(&attr) == 0, ERR_NOMEM, "no memory for threads");
	attr_set = true;
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	double own = bench_own_cpu_s();
	r->begin_ns = io_mono_ns();
	for (; started < n; started++)
		if (pthread_create(&v[started].thread, &attr, connection_main, &v[started]) != 0) {
			/* Those that wait for each other would wait for ever. */
			CHECK(!r->wait_rounds, ERR_NOMEM, "%" PRIu32 " threads can't be had", n);
			atomic_store(&r->stop, true);
			break;
		}
	for (uint32_t i = 0; i < started; i++)
		pthread_join(v[i].thread, NULL);
	res->seconds += (double)(io_mono_ns() - r->begin_ns) / 1e9;
	res->client_cpu_s += bench_own_cpu_s() - own;
	CHECK(started == n, ERR_NOMEM, "%" PRIu32 " threads can't be had, %" PRIu32 " can", n, started);
	if (meter) {
		TRY(bench_meter_settle(meter, &after, err));
		double cpu = after.cpu_s - before.cpu_s, parts = after.user_s - before.user_s + after.system_s - before.system_s;
		res->server_user_share = parts > 0 ? (res->server_user_share * res->server_cpu_s + (after.user_s - before.user_s) / parts * cpu) /
							     (res->server_cpu_s + cpu)
						   : 0;
		res->server_cpu_s += cpu;
		res->server_rss_after = after.rss_bytes;
	}
fail:
	if (attr_set)
		pthread_attr_destroy(&attr);
	return rc;
}

static void *progress_main(void *arg)
{
	struct run *r = arg;
	int64_t begin = io_mono_ms();
	while (!atomic_load(&r->over)) {
		io_sleep_ms(PROGRESS_MS);
		printf("progress %.3f samples %" PRIu64 " rate %.0f\n", (double)atomic_load(&r->acked) / (double)r->total,
			(uint64_t)atomic_load(&r->samples), (double)atomic_load(&r->samples) * 1000 / (double)(io_mono_ms() - begin + 1));
		fflush(stdout);
	}
	return NULL;
}

/* How many requests a pass may hold, by the size of the first body of the run. */
static CHECKED errc pass_size(struct run *r, uint64_t *requests, struct err *err)
{
	errc rc = OK;
	struct bench_builder *b = NULL;
	struct buf body;
	size_t message_bytes;
	char need[32], have[32], one[32];
	buf_init(&body, GIB);
	TRY(bench_builder_open(r->shape, &b, err));
	TRY(bench_body(b, r->shape->first_round, 0, &body, &message_bytes, err));
	uint64_t each = body.n + sizeof(struct body) + 16, fit = r->cfg->memory_bytes / each;
	CHECK(fit > 0, ERR_LIMIT, "one body has %zu bytes: --memory=%" PRIu64 " holds none", body.n, r->cfg->memory_bytes);
	*requests = fit < r->total ? fit : r->total;
	if (r->cfg->say)
		fprintf(stderr, "bench: %" PRIu64 " bodies of about %s, %.1fx compressed: %s in memory, %s allowed, so %" PRIu64 " pass%s\n",
			r->total, format_size(body.n, one, sizeof one), (double)message_bytes / (double)body.n,
			format_size(each * *requests, need, sizeof need), format_size(r->cfg->memory_bytes, have, sizeof have),
			(r->total + *requests - 1) / *requests, fit < r->total ? "es" : "");
fail:
	bench_builder_close(b);
	buf_free(&body);
	return rc;
}

errc bench_send(const struct bench_shape *shape, const struct bench_send_config *cfg, struct bench_result *out, struct err *err)
{
	errc rc = OK;
	uint64_t batches = bench_batches(shape), pass = 0;
	uint32_t n = cfg->connections < batches ? cfg->connections : (uint32_t)batches;
	struct run r = {.shape = shape, .cfg = cfg, .batches = batches, .total = batches * shape->rounds, .acks_fd = -1, .result = out};
	struct connection *v = NULL;
	bool barrier = false, reporting = false;
	pthread_t report;
	memset(out, 0, sizeof *out);
	out->written = UINT64_MAX;
	pthread_mutex_init(&r.mu, NULL);
	r.wait_rounds = shape->order == BENCH_SHUFFLED && n > 1;

	v = calloc(n, sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory for %" PRIu32 " connections", n);
	for (uint32_t i = 0; i < n; i++) {
		v[i].run = &r;
		v[i].number = i;
		v[i].result.written = UINT64_MAX;
		buf_init(&v[i].body, GIB);
		if (cfg->memory_bytes == 0)
			TRY(bench_builder_open(shape, &v[i].builder, err));
	}
	const struct http_client_config client = {.connect_timeout_ms = 10000, .idle_timeout_ms = 120000, .max_idle_connections = cfg->connections};
	TRY(http_client_open(&client, &r.client, err));
	if (cfg->acks) {
		TRY(io_open(cfg->acks, IO_WRITE | IO_CREATE, &r.acks_fd, err));
		TRY(io_size(r.acks_fd, &r.acks_at, err));
	}
	CHECK(!r.wait_rounds || pthread_barrier_init(&r.round_over, NULL, n) == 0, ERR_NOMEM, "no memory for %" PRIu32 " threads", n);
	barrier = r.wait_rounds;
	reporting = cfg->progress && pthread_create(&report, NULL, progress_main, &r) == 0;

	pass = r.total;
	if (cfg->memory_bytes)
		TRY(pass_size(&r, &pass, err));
	for (r.from = 0; r.from < r.total && !atomic_load(&r.stop); r.from = r.to) {
		r.to = r.total - r.from < pass ? r.total : r.from + pass;
		if (cfg->memory_bytes) {
			r.bodies = calloc(r.to - r.from, sizeof *r.bodies);
			CHECK(r.bodies, ERR_NOMEM, "no memory for %" PRIu64 " bodies", r.to - r.from);
			pass_build(&r);
		}
		if (!atomic_load(&r.stop))
			TRY(pass_send(&r, v, n, err));
		pass_free(&r);
	}
	if (r.rc) {
		if (err)
			*err = r.err;
		rc = r.rc;
	}
fail:
	pass_free(&r);
	atomic_store(&r.over, true);
	if (reporting)
		pthread_join(report, NULL);
	if (barrier)
		pthread_barrier_destroy(&r.round_over);
	for (uint32_t i = 0; v && i < n; i++) {
		merge(out, &v[i].result);
		bench_builder_close(v[i].builder);
		buf_free(&v[i].body);
	}
	free(v);
	if (r.client)
		http_client_close(r.client);
	io_close(r.acks_fd);
	pthread_mutex_destroy(&r.mu);
	return rc;
}
