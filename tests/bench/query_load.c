/* tests/bench/query_load.c - a sender and a checker for demonstrations and benchmarks: real remote write over HTTP, read back by remote read.
 *
 *     query_load send  --url=http://127.0.0.1:19291 --series=5000 --rounds=360 --step=1m [--retry] [--acks=FILE]
 *     query_load check --url=http://127.0.0.1:19291 --acks=FILE ...the same shape...
 *
 * The data is a function of (series, round): 40 % constant gauges, 50 % integer counters, 10 % noisy floats, 10 labels, about 330 bytes a sample
 * before snappy. So the checker needs no copy of it. A request holds --batch series with one sample each, as scrapes arrive. The acks file has a
 * line per acknowledged request: "round batch". With --retry a request is sent again until it is acknowledged, as Prometheus does with 5xx and
 * broken connections; without it a failure is counted and left.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/config.h"
#include "base/io.h"
#include "base/limits.h"
#include "block/block_chunk.h"
#include "net/net.h"
#include "proto/proto.h"

static struct {
	const char *url, *path, *acks, *tenant, *progress;
	uint64_t series, rounds, batch, connections, first_round, salt, start;
	int64_t step_ms, start_ms;
	bool retry, prebuild;
} opt;

/* ---- the data ---- */

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= UINT64_C(0xff51afd7ed558ccd);
	x ^= x >> 33;
	x *= UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

static uint64_t value_bits(uint64_t series, uint64_t round)
{
	switch (series % 10) {
	case 0:
	case 1:
	case 2:
	case 3:
		return f64_bits((double)(mix(series ^ opt.salt) % 1000));
	case 9:
		return f64_bits(50 + (double)(mix(series * 1000003 + round + opt.salt) % 1000000) / 20000);
	default:
		return f64_bits((double)(round * (1 + mix(series) % 100)));
	}
}

static void put_label(struct buf *out, const char *name, const char *value)
{
	size_t at = pb_begin(out, 1);
	pb_bytes(out, 1, span_cstr(name));
	pb_bytes(out, 2, span_cstr(value));
	pb_end(out, at);
}

/* Canonical label bytes of a series: what a node and its workloads look like to a scraper. */
static void put_labels(struct buf *out, uint64_t s)
{
	static const char *const metrics[] = {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "http_requests_total",
		"http_request_duration_seconds_bucket", "node_network_receive_bytes_total", "kube_pod_status_ready", "go_memstats_heap_inuse_bytes",
		"process_open_fds", "rpc_durations_seconds_sum", "queue_depth"};
	char text[9][96];
	uint64_t target = s / 500, in_target = s % 500;
	snprintf(text[0], sizeof text[0], "%s_%02" PRIu64, metrics[s % 10], in_target / 10);
	snprintf(text[1], sizeof text[1], "eu-central-%" PRIu64, target % 3);
	snprintf(text[2], sizeof text[2], "worker-%" PRIu64, in_target % 7);
	snprintf(text[3], sizeof text[3], "10.%" PRIu64 ".%" PRIu64 ".%" PRIu64 ":9100", target / 65536 % 256, target / 256 % 256, target % 256);
	snprintf(text[4], sizeof text[4], "integrations/kubernetes/%" PRIu64, in_target % 5);
	snprintf(text[5], sizeof text[5], "team-%" PRIu64, target % 20);
	snprintf(text[6], sizeof text[6], "ip-10-%" PRIu64 "-%" PRIu64 ".compute.internal", target / 256 % 256, target % 256);
	snprintf(text[7], sizeof text[7], "workload-%" PRIu64 "-%08" PRIx64, target, mix(target) & 0xffffffff);
	snprintf(text[8], sizeof text[8], "%" PRIu64, s);
	put_label(out, "__name__", text[0]);
	put_label(out, "cluster", text[1]);
	put_label(out, "container", text[2]);
	put_label(out, "instance", text[3]);
	put_label(out, "job", text[4]);
	put_label(out, "namespace", text[5]);
	put_label(out, "node", text[6]);
	put_label(out, "pod", text[7]);
	put_label(out, "prometheus", "monitoring/k8s");
	put_label(out, "series", text[8]);
}

static int64_t time_of(uint64_t round)
{
	return opt.start_ms + (int64_t)round * opt.step_ms;
}

static uint64_t n_batches(void)
{
	return (opt.series + opt.batch - 1) / opt.batch;
}

static bool build(uint64_t round, uint64_t batch, struct buf *raw, struct buf *out, struct err *err)
{
	buf_clear(raw);
	buf_clear(out);
	uint64_t end = (batch + 1) * opt.batch < opt.series ? (batch + 1) * opt.batch : opt.series;
	for (uint64_t s = batch * opt.batch; s < end; s++) {
		size_t at = pb_begin(raw, 1);
		put_labels(raw, s);
		size_t sample = pb_begin(raw, 2);
		pb_double_bits(raw, 1, value_bits(s, round));
		pb_uint(raw, 2, (uint64_t)time_of(round));
		pb_end(raw, sample);
		pb_end(raw, at);
	}
	return !raw->failed && snappy_encode(span_of(raw->p, raw->n), out, err) == OK;
}

/* ---- sending ---- */

static struct {
	struct http_client *client;
	atomic_uint_fast64_t next, acked, failed, retried, samples, bytes;
	pthread_mutex_t mu;
	FILE *acks;
	struct buf *prebuilt;
	char url[512];
	uint64_t total;
	atomic_bool stop;
} run;

static int post(struct span body)
{
	struct err err = {0};
	char tenant[160];
	snprintf(tenant, sizeof tenant, "THANOS-TENANT: %s", opt.tenant);
	const char *const headers[] = {
		"Content-Type: application/x-protobuf", "Content-Encoding: snappy", "X-Prometheus-Remote-Write-Version: 0.1.0", tenant};
	struct http_call call = {
		.method = "POST", .url = run.url, .headers = headers, .n_headers = opt.tenant[0] ? 4 : 3, .body = body, .max_answer_bytes = 64 * KIB};
	errc rc = http_call(run.client, &call, &err);
	int status = rc == OK ? call.status : 0;
	if (status / 100 != 2 && !opt.retry)
		fprintf(stderr, "status %d: %s%.*s\n", status, err.msg, (int)call.answer.n, (char *)call.answer.p);
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	return status;
}

static void *sender(void *arg)
{
	(void)arg;
	struct buf raw, body;
	struct err err = {0};
	buf_init(&raw, GIB);
	buf_init(&body, GIB);
	for (;;) {
		uint64_t i = atomic_fetch_add(&run.next, 1);
		if (i >= run.total)
			break;
		uint64_t round = opt.first_round + i / n_batches(), batch = i % n_batches();
		struct buf *b = run.prebuilt ? &run.prebuilt[i] : &body;
		if (!run.prebuilt && !build(round, batch, &raw, &body, &err)) {
			fprintf(stderr, "a body could not be built: %s\n", err.msg);
			exit(1);
		}
		uint64_t n = (batch + 1) * opt.batch < opt.series ? opt.batch : opt.series - batch * opt.batch;
		for (;;) {
			int status = post(span_of(b->p, b->n));
			if (status / 100 == 2) {
				atomic_fetch_add(&run.acked, 1);
				atomic_fetch_add(&run.samples, n);
				atomic_fetch_add(&run.bytes, b->n);
				if (run.acks) {
					pthread_mutex_lock(&run.mu);
					fprintf(run.acks, "%" PRIu64 " %" PRIu64 "\n", round, batch);
					pthread_mutex_unlock(&run.mu);
				}
				break;
			}
			atomic_fetch_add(&run.retried, 1);
			if (!opt.retry || (status / 100 == 4 && status != 429)) {
				atomic_fetch_add(&run.failed, 1);
				break;
			}
			io_sleep_ms(30);
		}
	}
	buf_free(&raw);
	buf_free(&body);
	return NULL;
}

static void *reporter(void *arg)
{
	int64_t begin = io_mono_ms();
	(void)arg;
	while (!atomic_load(&run.stop)) {
		io_sleep_ms(500);
		/* One line that a script can read: what is done, and the share of the whole. */
		printf("progress %.3f samples %" PRIu64 " rate %.0f\n", (double)atomic_load(&run.acked) / (double)run.total,
			(uint64_t)atomic_load(&run.samples), (double)atomic_load(&run.samples) * 1000 / (double)(io_mono_ms() - begin + 1));
		fflush(stdout);
	}
	return NULL;
}

static int do_send(void)
{
	struct err err = {0};
	run.total = opt.rounds * n_batches();
	snprintf(run.url, sizeof run.url, "%s%s", opt.url, opt.path);
	if (opt.acks[0] && !(run.acks = fopen(opt.acks, "a"))) {
		fprintf(stderr, "%s can't be written\n", opt.acks);
		return 1;
	}
	if (opt.prebuild) {
		struct buf raw;
		buf_init(&raw, GIB);
		run.prebuilt = calloc(run.total, sizeof *run.prebuilt);
		for (uint64_t i = 0; run.prebuilt && i < run.total; i++) {
			buf_init(&run.prebuilt[i], GIB);
			if (!build(opt.first_round + i / n_batches(), i % n_batches(), &raw, &run.prebuilt[i], &err))
				return 1;
		}
		buf_free(&raw);
		printf("built %" PRIu64 " bodies\n", run.total);
		fflush(stdout);
	}
	pthread_t threads[256], report;
	uint64_t n = opt.connections < 256 ? opt.connections : 256;
	int64_t begin = io_mono_ns();
	bool reporting = strcmp(opt.progress, "line") == 0 && pthread_create(&report, NULL, reporter, NULL) == 0;
	for (uint64_t i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, sender, NULL) != 0)
			return 1;
	for (uint64_t i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	double seconds = (double)(io_mono_ns() - begin) / 1e9;
	atomic_store(&run.stop, true);
	if (reporting)
		pthread_join(report, NULL);
	if (run.acks)
		fclose(run.acks);
	printf("{\"requests\":%" PRIu64 ",\"acked\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"retried\":%" PRIu64 ",\"samples\":%" PRIu64
	       ",\"bytes\":%" PRIu64 ",\"seconds\":%.3f,\"samples_per_second\":%.0f}\n",
		run.total, (uint64_t)run.acked, (uint64_t)run.failed, (uint64_t)run.retried, (uint64_t)run.samples, (uint64_t)run.bytes, seconds,
		(double)run.samples / seconds);
	for (uint64_t i = 0; run.prebuilt && i < run.total; i++)
		buf_free(&run.prebuilt[i]);
	free(run.prebuilt);
	return run.failed == 0 ? 0 : 2;
}

/* ---- checking ---- */

static struct {
	uint8_t *acked; /* per round x batch */
	uint8_t *seen;	/* per round x series, one bit each */
	uint64_t found, wrong, phantom, duplicate, series;
	struct buf pending; /* bytes of a frame that is not whole yet */
	struct arena arena;
	errc rc;
	struct err err;
} chk;

static bool seen_set(uint64_t round, uint64_t s)
{
	uint64_t i = round * opt.series + s;
	bool was = chk.seen[i / 8] >> (i % 8) & 1;
	chk.seen[i / 8] |= (uint8_t)(1 << (i % 8));
	return was;
}

/* One ChunkedSeries. */
static errc check_series(struct span msg, struct err *err)
{
	errc rc = OK;
	struct rd r = rd_of(msg.p, msg.n);
	uint64_t s = UINT64_MAX;
	struct buf want;
	bool labels_checked = false;
	struct buf got;
	buf_init(&want, MIB);
	buf_init(&got, MIB);
	while (r.ok && rd_left(&r) > 0) {
		uint64_t tag = rd_uvarint(&r);
		if (tag == (1 << 3 | 2)) {
			struct span body = rd_str(&r);
			struct rd l = rd_of(body.p, body.n);
			struct span name = {"", 0}, value = {"", 0};
			while (l.ok && rd_left(&l) > 0) {
				uint64_t t = rd_uvarint(&l);
				struct span v = rd_str(&l);
				*(t == (1 << 3 | 2) ? &name : &value) = v;
			}
			if (span_is(name, "series")) {
				int64_t n;
				if (span_to_i64(value, &n) && n >= 0 && (uint64_t)n < opt.series)
					s = (uint64_t)n;
			}
			/* tenant_id is varve's own. */
			if (!span_is(name, "tenant_id")) {
				pb_bytes(&got, 1, body);
			}
		} else if (tag == (2 << 3 | 2)) {
			struct span body = rd_str(&r);
			if (!labels_checked) {
				if (s != UINT64_MAX)
					put_labels(&want, s);
				labels_checked = true;
				chk.series++;
			}
			bool mine = s != UINT64_MAX && got.n == want.n && memcmp(got.p, want.p, got.n) == 0;
			struct rd c = rd_of(body.p, body.n);
			struct span data = {"", 0};
			uint64_t enc = 0;
			while (c.ok && rd_left(&c) > 0) {
				uint64_t t = rd_uvarint(&c);
				if (t == (4 << 3 | 2))
					data = rd_str(&c);
				else if (t == (3 << 3))
					enc = rd_uvarint(&c);
				else
					rd_uvarint(&c);
			}
			struct chunk_sample samples[2048];
			size_t n = 0;
			CHECK(enc == CHUNK_XOR, ERR_CORRUPT, "chunk of encoding %" PRIu64, enc);
			TRY(xor_decode(data, samples, 2048, &n, err));
			for (size_t i = 0; i < n; i++) {
				int64_t off = samples[i].t - opt.start_ms;
				uint64_t round = (uint64_t)(off / opt.step_ms);
				if (!mine || off < 0 || off % opt.step_ms != 0 || round >= opt.rounds)
					chk.phantom++;
				else if (samples[i].v != value_bits(s, round))
					chk.wrong++;
				else if (seen_set(round, s))
					chk.duplicate++;
				else
					chk.found++;
			}
		} else {
			rd_str(&r);
		}
	}
	CHECK(r.ok, ERR_CORRUPT, "a frame is not protobuf");
fail:
	buf_free(&want);
	buf_free(&got);
	return rc;
}

static errc check_frames(void *arg, const void *p, size_t n, struct err *err)
{
	(void)arg;
	buf_put(&chk.pending, p, n);
	size_t at = 0;
	errc rc = OK;
	CHECK(!chk.pending.failed, ERR_NOMEM, "no memory for a frame");
	for (;;) {
		struct rd r = rd_of(chk.pending.p + at, chk.pending.n - at);
		uint64_t size = rd_uvarint(&r);
		if (!r.ok || rd_left(&r) < 4 + size)
			break;
		uint32_t crc = rd_be32(&r);
		struct span msg = rd_bytes(&r, size);
		CHECK(crc32c(0, msg.p, msg.n) == crc, ERR_CORRUPT, "a frame's checksum is wrong");
		struct rd m = rd_of(msg.p, msg.n);
		while (m.ok && rd_left(&m) > 0) {
			uint64_t tag = rd_uvarint(&m);
			if (tag == (1 << 3 | 2))
				TRY(check_series(rd_str(&m), err));
			else
				rd_uvarint(&m);
		}
		at = (size_t)(r.p - chk.pending.p);
	}
	memmove(chk.pending.p, chk.pending.p + at, chk.pending.n - at);
	chk.pending.n -= at;
fail:
	return rc;
}

static int do_check(void)
{
	struct err err = {0};
	uint64_t acked_requests = 0, lost = 0, acked_samples = 0;
	chk.acked = calloc(opt.rounds * n_batches(), 1);
	chk.seen = calloc(opt.rounds * opt.series / 8 + 1, 1);
	FILE *f = fopen(opt.acks, "r");
	if (!chk.acked || !chk.seen || !f) {
		fprintf(stderr, "%s can't be read\n", opt.acks);
		return 1;
	}
	uint64_t round, batch;
	while (fscanf(f, "%" SCNu64 " %" SCNu64, &round, &batch) == 2)
		if (round < opt.rounds && batch < n_batches() && !chk.acked[round * n_batches() + batch]++)
			acked_requests++;
	fclose(f);

	struct buf msg, body;
	buf_init(&msg, MIB);
	buf_init(&body, MIB);
	buf_init(&chk.pending, GIB);
	size_t query = pb_begin(&msg, 1);
	pb_uint(&msg, 1, (uint64_t)opt.start_ms);
	pb_uint(&msg, 2, (uint64_t)time_of(opt.rounds));
	size_t matcher = pb_begin(&msg, 3);
	pb_uint(&msg, 1, 2);
	pb_bytes(&msg, 2, SPAN("__name__"));
	pb_bytes(&msg, 3, SPAN(".+"));
	pb_end(&msg, matcher);
	pb_end(&msg, query);
	pb_uint(&msg, 2, 1); /* STREAMED_XOR_CHUNKS */
	char url[512], tenant[160];
	snprintf(url, sizeof url, "%s/api/v1/read", opt.url);
	snprintf(tenant, sizeof tenant, "THANOS-TENANT: %s", opt.tenant);
	if (snappy_encode(span_of(msg.p, msg.n), &body, &err) != OK)
		return 1;
	const char *const headers[] = {
		"Content-Type: application/x-protobuf", "Content-Encoding: snappy", "X-Prometheus-Remote-Read-Version: 0.1.0", tenant};
	struct http_call call = {.method = "POST",
		.url = url,
		.headers = headers,
		.n_headers = opt.tenant[0] ? 4 : 3,
		.body = span_of(body.p, body.n),
		.write = check_frames,
		.max_answer_bytes = 64 * KIB};
	int64_t begin = io_mono_ns();
	errc rc = http_call(run.client, &call, &err);
	double seconds = (double)(io_mono_ns() - begin) / 1e9;
	if (rc != OK || call.status != 200) {
		fprintf(stderr, "reading back failed: status %d %s%.*s\n", call.status, err.msg, (int)call.answer.n, (char *)call.answer.p);
		return 1;
	}
	for (uint64_t r = 0; r < opt.rounds; r++)
		for (uint64_t s = 0; s < opt.series; s++) {
			uint64_t i = r * opt.series + s;
			if (!chk.acked[r * n_batches() + s / opt.batch])
				continue;
			acked_samples++;
			lost += !(chk.seen[i / 8] >> (i % 8) & 1);
		}
	printf("{\"acked_requests\":%" PRIu64 ",\"acked_samples\":%" PRIu64 ",\"found\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"wrong\":%" PRIu64
	       ",\"phantom\":%" PRIu64 ",\"duplicate\":%" PRIu64 ",\"series\":%" PRIu64 ",\"seconds\":%.3f}\n",
		acked_requests, acked_samples, chk.found, lost, chk.wrong, chk.phantom, chk.duplicate, chk.series, seconds);
	buf_free(&msg);
	buf_free(&body);
	buf_free(&chk.pending);
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	free(chk.acked);
	free(chk.seen);
	return lost || chk.wrong || chk.phantom || chk.duplicate ? 2 : 0;
}

int main(int argc, char **argv)
{
	struct err err = {0};
	struct arena arena;
	arena_init(&arena, MIB);
	struct flag flags[] = {
		{.name = "url",
			.kind = FLAG_STRING,
			.into = &opt.url,
			.fallback = "http://127.0.0.1:19291",
			.value_name = "URL",
			.help = "The server.",
			.common = true},
		{.name = "path",
			.kind = FLAG_STRING,
			.into = &opt.path,
			.fallback = "/api/v1/write",
			.value_name = "PATH",
			.help = "Of its remote-write endpoint.",
			.common = true},
		{.name = "tenant",
			.kind = FLAG_STRING,
			.into = &opt.tenant,
			.fallback = "",
			.value_name = "NAME",
			.help = "Header THANOS-TENANT.",
			.common = true},
		{.name = "acks",
			.kind = FLAG_STRING,
			.into = &opt.acks,
			.fallback = "",
			.value_name = "FILE",
			.help = "Acknowledged requests, a line each.",
			.common = true},
		{.name = "series",
			.kind = FLAG_U64,
			.into = &opt.series,
			.fallback = "5000",
			.value_name = "COUNT",
			.help = "Series.",
			.common = true},
		{.name = "rounds",
			.kind = FLAG_U64,
			.into = &opt.rounds,
			.fallback = "10",
			.value_name = "COUNT",
			.help = "Samples of each.",
			.common = true},
		{.name = "first-round",
			.kind = FLAG_U64,
			.into = &opt.first_round,
			.fallback = "0",
			.value_name = "N",
			.help = "Number of the first round (send).",
			.common = true},
		{.name = "batch",
			.kind = FLAG_U64,
			.into = &opt.batch,
			.fallback = "2000",
			.value_name = "COUNT",
			.help = "Series a request.",
			.common = true},
		{.name = "connections",
			.kind = FLAG_U64,
			.into = &opt.connections,
			.fallback = "4",
			.value_name = "COUNT",
			.help = "Connections.",
			.common = true},
		{.name = "salt",
			.kind = FLAG_U64,
			.into = &opt.salt,
			.fallback = "0",
			.value_name = "N",
			.help = "Changes the values.",
			.common = true},
		{.name = "step",
			.kind = FLAG_DURATION_MS,
			.into = &opt.step_ms,
			.fallback = "15s",
			.value_name = "DURATION",
			.help = "Between rounds, in sample time.",
			.common = true},
		{.name = "start",
			.kind = FLAG_U64,
			.into = &opt.start,
			.fallback = "0",
			.value_name = "MS",
			.help = "Time of round 0; default: so that the last round is now.",
			.common = true},
		{.name = "retry",
			.kind = FLAG_BOOL,
			.into = &opt.retry,
			.fallback = "false",
			.help = "Send again until acknowledged.",
			.common = true},
		{.name = "prebuild",
			.kind = FLAG_BOOL,
			.into = &opt.prebuild,
			.fallback = "false",
			.help = "Build all bodies before the first is sent.",
			.common = true},
		{.name = "progress",
			.kind = FLAG_CHOICE,
			.into = &opt.progress,
			.fallback = "none",
			.value_name = "none|line",
			.help = "A line twice a second.",
			.common = true},
	};
	struct flag_program program = {.usage = "query_load send|check [FLAGS]",
		.about = "Sends made-up metrics, or reads them back and compares.",
		.flags = flags,
		.n_flags = sizeof flags / sizeof flags[0],
		.positionals = true};
	struct flag_list words = {0};
	enum flags_action action = FLAGS_RUN;
	errc rc = flags_parse(&program, argc, argv, &arena, &words, &action, &err);
	if (rc == OK && action == FLAGS_EXIT_OK)
		return 0;
	if (rc == OK && (words.n != 1 || opt.series == 0 || opt.batch == 0 || opt.step_ms <= 0))
		rc = err_set(&err, ERR_INVALID, "usage: query_load send|check [FLAGS]");
	const struct http_client_config client = {.connect_timeout_ms = 2000, .idle_timeout_ms = 60000, .max_idle_connections = 256};
	if (rc == OK)
		rc = http_client_open(&client, &run.client, &err);
	if (rc != OK) {
		fprintf(stderr, "query_load: %s\n", err.msg);
		return 1;
	}
	opt.start_ms = (int64_t)opt.start;
	if (opt.start_ms == 0)
		opt.start_ms = io_now_ms() / opt.step_ms * opt.step_ms - (int64_t)(opt.rounds - 1) * opt.step_ms;
	pthread_mutex_init(&run.mu, NULL);
	int code = strcmp(words.v[0], "send") == 0 ? do_send() : strcmp(words.v[0], "check") == 0 ? do_check() : 1;
	http_client_close(run.client);
	arena_free(&arena);
	return code;
}
