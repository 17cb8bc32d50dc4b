/* How fast the log is: requests of 2,000 samples from several threads, each waited for; then the replay of what they wrote.
 *
 *     make bench/wal_bench          [THREADS] [SECONDS] [ack|interval|os]
 *
 * Prints requests and syncs a second, bytes a sample, CPU a sample (user + system, all threads), and the replay's speed.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "wal/wal.h"

enum { SAMPLES = 2000 };

struct load {
	struct wal *w;
	int64_t until_ms;
	uint64_t requests, seed;
};

static uint64_t rnd(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static void *sender(void *arg)
{
	struct load *l = arg;
	struct buf b;
	static const struct wal_window win = {{"default-tenant", 14}, {{1}}, 0, 7200000};
	struct wal_sample *s = calloc(SAMPLES, sizeof *s);
	double *value = calloc(SAMPLES, sizeof *value);
	buf_init(&b, 16 * MIB);
	int64_t t = 1700000000000;
	while (io_mono_ms() < l->until_ms) {
		for (size_t i = 0; i < SAMPLES; i++) {
			value[i] += (double)(rnd(&l->seed) % 100) * (i % 3 == 0 ? 0.25 : 1);
			s[i] = (struct wal_sample){.ref = l->seed % 100 == 0 ? i * 7 : i + 5000, .t = t, .v = f64_bits(value[i])};
		}
		t += 15000;
		buf_clear(&b);
		wal_samples_put(&b, &win, s, SAMPLES);
		struct wal_ticket ticket;
		struct err err = {0};
		if (wal_reserve(l->w, wal_samples_bound(14, SAMPLES), &ticket, &err) != OK ||
			wal_commit_wait(l->w, &ticket, span_of(b.p, b.n), SAMPLES, &err) != OK) {
			fprintf(stderr, "%s\n", err.msg);
			break;
		}
		l->requests++;
	}
	buf_free(&b);
	free(value);
	free(s);
	return NULL;
}

static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static uint64_t sum, raw_bytes;

static errc frame(void *arg, const struct wal_frame *f, struct err *err)
{
	bool decode = *(bool *)arg;
	struct rd r = rd_of(f->payload.p, f->payload.n);
	struct wal_record rec;
	bool ok;
	(void)err;
	raw_bytes += f->payload.n;
	while (decode && wal_record_next(&r, &rec, &ok)) {
		struct wal_samples_dec d;
		struct wal_sample s;
		if (rec.kind == WAL_SAMPLES && wal_samples_open(rec.kind, rec.body, &d)) {
			while (wal_samples_next(&d, &s, &ok))
				sum += s.v;
		}
	}
	return OK;
}

int main(int argc, char **argv)
{
	size_t threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 4;
	int64_t seconds = argc > 2 ? strtol(argv[2], NULL, 10) : 3;
	const char *mode = argc > 3 ? argv[3] : "ack";
	const char *dir = "build/wal_bench";
	if (threads < 1 || threads > 64)
		threads = 4;
	struct err err = {0};
	struct wal_config cfg = {.dir = dir,
		.sync = strcmp(mode, "os") == 0		? WAL_SYNC_OS
			: strcmp(mode, "interval") == 0 ? WAL_SYNC_INTERVAL
							: WAL_SYNC_ACK,
		.sync_interval_ms = 100,
		.segment_bytes = LIMIT_WAL_SEGMENT_BYTES};
	struct wal *w;
	log_setup(LOG_WARN, LOG_LOGFMT);
	bool decode = false;
	if (io_remove_tree(dir, &err) != OK || wal_open(&cfg, &w, &err) != OK || wal_replay(w, frame, &decode, NULL, NULL, &err) != OK) {
		fprintf(stderr, "%s\n", err.msg);
		return 1;
	}
	struct load loads[64] = {0};
	pthread_t ids[64];
	double cpu = cpu_seconds();
	int64_t start = io_mono_ms();
	for (size_t i = 0; i < threads; i++) {
		loads[i] = (struct load){w, start + seconds * 1000, 0, i + 1};
		pthread_create(&ids[i], NULL, sender, &loads[i]);
	}
	uint64_t requests = 0;
	for (size_t i = 0; i < threads; i++) {
		pthread_join(ids[i], NULL);
		requests += loads[i].requests;
	}
	double took = (double)(io_mono_ms() - start) / 1000;
	cpu = cpu_seconds() - cpu;
	double samples = (double)requests * SAMPLES;
	struct wal_status st;
	wal_status(w, &st);
	wal_close(w);
	printf("%s, %zu threads: %.0f requests/s, %.2f M samples/s, %.0f syncs/s, %.1f MB/s to disk, %.2f B/sample, CPU %.1f ns/sample (with making "
	       "them)\n",
		mode, threads, (double)requests / took, samples / took / 1e6, metric_value(metric_counter("varve_wal_fsyncs_total", "")) / took,
		(double)st.pos / took / 1e6, (double)st.pos / samples, cpu * 1e9 / samples);
	for (int i = 0; i < 2; i++) {
		struct wal_replay_stats rs;
		decode = i == 1;
		raw_bytes = 0;
		cpu = cpu_seconds();
		int64_t ns = io_mono_ns();
		if (wal_open(&cfg, &w, &err) != OK || wal_replay(w, frame, &decode, NULL, &rs, &err) != OK) {
			fprintf(stderr, "%s\n", err.msg);
			return 1;
		}
		took = (double)(io_mono_ns() - ns) / 1e9;
		cpu = cpu_seconds() - cpu;
		wal_close(w);
		printf("replay %s: %.2f s, %.2f GB/s of records, %.1f M samples/s, CPU %.1f ns/sample\n", decode ? "with decoding" : "alone", took,
			(double)raw_bytes / took / 1e9, (double)rs.samples / took / 1e6, cpu * 1e9 / (double)rs.samples);
	}
	if (io_remove_tree(dir, &err) != OK)
		fprintf(stderr, "%s\n", err.msg);
	return sum == 42;
}
