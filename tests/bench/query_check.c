/* tests/bench/query_check.c - holds what a server has against what `varve bench write` sent and the server acknowledged.
 *
 *     varve bench write --series=5000 --rounds=360 --start=MS --acks=FILE ...
 *     query_check       --series=5000 --rounds=360 --start=MS --acks=FILE ...
 *
 * The data is a function of (series, round), so the checker needs no copy of it: everything is read back by remote read in one stream and compared bit by
 * bit. For loads in scrape order, of one tenant, without churn, histograms or disorder. Prints one line of JSON; exit code 2 when a sample is lost, wrong, twice,
 * or was never sent.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/config.h"
#include "base/io.h"
#include "base/limits.h"
#include "block/block_chunk.h"
#include "cmd/cmd_bench_int.h"
#include "net/net.h"
#include "proto/proto.h"

static struct {
	const char *url, *acks, *tenant;
	uint64_t series, rounds, batch, seed, start;
	int64_t step_ms;
} opt;
static struct bench_shape shape;

static struct {
	uint8_t *acked; /* per round x batch */
	uint8_t *seen;	/* per round x series, one bit each */
	uint64_t found, wrong, phantom, duplicate, series;
	struct buf pending; /* bytes of a frame that is not whole yet */
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
				if (s != UINT64_MAX) {
					const struct bench_sample of = {.slot = s};
					bench_put_labels(&shape, &of, &want);
				}
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
				int64_t off = samples[i].t - shape.start_ms;
				uint64_t round = (uint64_t)(off / opt.step_ms);
				const struct bench_sample of = {.slot = s, .round = round, .t = samples[i].t};
				if (!mine || off < 0 || off % opt.step_ms != 0 || round >= opt.rounds)
					chk.phantom++;
				else if (samples[i].v != bench_value_bits(&shape, &of))
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

static int check(struct http_client *client)
{
	struct err err = {0};
	uint64_t batches = bench_batches(&shape), acked_requests = 0, lost = 0, acked_samples = 0;
	chk.acked = calloc(opt.rounds * batches, 1);
	chk.seen = calloc(opt.rounds * opt.series / 8 + 1, 1);
	FILE *f = fopen(opt.acks, "r");
	if (!chk.acked || !chk.seen || !f) {
		fprintf(stderr, "%s can't be read\n", opt.acks);
		return 1;
	}
	uint64_t round, batch;
	while (fscanf(f, "%" SCNu64 " %" SCNu64, &round, &batch) == 2)
		if (round < opt.rounds && batch < batches && !chk.acked[round * batches + batch]++)
			acked_requests++;
	fclose(f);

	struct buf msg, body;
	buf_init(&msg, MIB);
	buf_init(&body, MIB);
	buf_init(&chk.pending, GIB);
	size_t query = pb_begin(&msg, 1);
	pb_uint(&msg, 1, (uint64_t)shape.start_ms);
	pb_uint(&msg, 2, (uint64_t)(shape.start_ms + (int64_t)opt.rounds * opt.step_ms));
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
	errc rc = http_call(client, &call, &err);
	double seconds = (double)(io_mono_ns() - begin) / 1e9;
	if (rc != OK || call.status != 200) {
		fprintf(stderr, "reading back failed: status %d %s%.*s\n", call.status, err.msg, (int)call.answer.n, (char *)call.answer.p);
		return 1;
	}
	for (uint64_t r = 0; r < opt.rounds; r++)
		for (uint64_t s = 0; s < opt.series; s++) {
			uint64_t i = r * opt.series + s;
			if (!chk.acked[r * batches + s / opt.batch])
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

#define F(n, k, field, def, val, text)                                                                                                               \
	{                                                                                                                                            \
		.name = n, .kind = k, .into = &opt.field, .fallback = def, .value_name = val, .help = text, .common = true                           \
	}

int main(int argc, char **argv)
{
	struct err err = {0};
	struct arena arena;
	arena_init(&arena, MIB);
	struct flag flags[] = {
		F("url", FLAG_STRING, url, "http://127.0.0.1:19291", "URL", "The server."),
		F("tenant", FLAG_STRING, tenant, "", "NAME", "Header THANOS-TENANT."),
		F("acks", FLAG_STRING, acks, "", "FILE", "Acknowledged requests, a line each."),
		F("series", FLAG_U64, series, "100000", "COUNT", "As they were given to varve bench write, like all that follow."),
		F("rounds", FLAG_U64, rounds, "10", "COUNT", ""),
		F("batch", FLAG_U64, batch, "2000", "COUNT", ""),
		F("seed", FLAG_U64, seed, "0", "N", ""),
		F("step", FLAG_DURATION_MS, step_ms, "15s", "DURATION", ""),
		F("start", FLAG_U64, start, "0", "MS", ""),
	};
	struct flag_program program = {.usage = "query_check [FLAGS]",
		.about = "Reads back what varve bench write sent, and compares.",
		.flags = flags,
		.n_flags = sizeof flags / sizeof flags[0]};
	enum flags_action action = FLAGS_RUN;
	struct http_client *client = NULL;
	errc rc = flags_parse(&program, argc, argv, &arena, NULL, &action, &err);
	if (rc == OK && action == FLAGS_EXIT_OK)
		return 0;
	if (rc == OK && (opt.series == 0 || opt.rounds == 0 || opt.batch == 0 || opt.step_ms <= 0 || !opt.acks[0]))
		rc = err_set(&err, ERR_INVALID, "--series, --rounds, --batch, --step and --acks must be given as they were to varve bench write");
	const struct http_client_config config = {.connect_timeout_ms = 2000, .idle_timeout_ms = 60000, .max_idle_connections = 1};
	if (rc == OK)
		rc = http_client_open(&config, &client, &err);
	if (rc != OK) {
		fprintf(stderr, "query_check: %s\n", err.msg);
		return 1;
	}
	shape = (struct bench_shape){
		.series = opt.series,
		.rounds = opt.rounds,
		.batch = opt.batch,
		.tenants = 1,
		.seed = opt.seed,
		.labels = 10,
		.start_ms = (int64_t)opt.start,
		.step_ms = opt.step_ms,
		.version = 1,
	};
	int code = check(client);
	http_client_close(client);
	arena_free(&arena);
	return code;
}
