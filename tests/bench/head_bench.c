/* bench: needs head
 *
 * What the head costs by itself: new series, known series, memory, replay, cut. Without HTTP, snappy and protobuf.
 *
 *     head_bench DIR [series=200000] [rounds=20] [batch=2000] [version=1] [snapshot=0: after so many rounds]     version 2: as remote write 2.0 spells series
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/log.h"
#include "tests/bench/bench_head.h"

static double cpu_s(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts); /* the bench is no part of the server: no seam */
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static double wall_s(void)
{
	return (double)io_mono_ns() / 1e9;
}

static double rss_mb(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	long pages = 0, resident = 0;
	if (!f || fscanf(f, "%ld %ld", &pages, &resident) != 2)
		resident = 0;
	if (f)
		fclose(f);
	return (double)resident * 4096 / 1e6;
}

/* What remote write 2.0 makes of a batch: symbols in the order of their first use, and references. */
struct spelled {
	struct span *symbols;
	size_t n_symbols;
	uint32_t *refs;
};

static uint32_t symbol_of(struct spelled *s, uint32_t *slots, uint32_t mask, struct span text)
{
	uint32_t i = crc32c(0, text.p, text.n) & mask;
	for (; slots[i]; i = (i + 1) & mask)
		if (span_eq(s->symbols[slots[i] - 1], text))
			return slots[i] - 1;
	s->symbols[s->n_symbols++] = text;
	slots[i] = (uint32_t)s->n_symbols;
	return slots[i] - 1;
}

static struct spelled spell(const struct buf *wire, const size_t *at, uint32_t first, uint32_t n)
{
	uint32_t mask = 65535, *slots = calloc(mask + 1, sizeof *slots);
	struct spelled s = {.symbols = malloc(n * 20 * sizeof *s.symbols), .refs = malloc(n * 20 * sizeof *s.refs)};
	symbol_of(&s, slots, mask, (struct span){"", 0});
	uint32_t k = 0;
	for (uint32_t i = first; i < first + n; i++) {
		struct label l[10];
		uint32_t m;
		if (!labels_from_canonical(span_of(wire->p + at[i], at[i + 1] - at[i]), l, 10, &m) || m != 10)
			exit(1);
		for (m = 0; m < 10; m++) {
			s.refs[k++] = symbol_of(&s, slots, mask, l[m].name);
			s.refs[k++] = symbol_of(&s, slots, mask, l[m].value);
		}
	}
	free(slots);
	return s;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 1;
	snprintf(dir, sizeof dir, "%s", argv[1]);
	uint32_t n = argc > 2 ? (uint32_t)atoi(argv[2]) : 200000, rounds = argc > 3 ? (uint32_t)atoi(argv[3]) : 20;
	uint32_t batch = argc > 4 ? (uint32_t)atoi(argv[4]) : 2000;
	bool v2 = argc > 5 && atoi(argv[5]) == 2;
	uint32_t snapshot = argc > 6 ? (uint32_t)atoi(argv[6]) : 0;
	struct err err = {0};
	log_setup(LOG_WARN, LOG_LOGFMT);
	must(io_mkdirs(dir, &err), &err);
	start();

	struct buf wire;
	buf_init(&wire, 16 * GIB);
	size_t *at = malloc(((size_t)n + 1) * sizeof *at);
	for (uint32_t i = 0; i < n; i++) {
		at[i] = wire.n;
		series_wire(i, &wire);
	}
	at[n] = wire.n;
	struct spelled *spelled = calloc(n / batch + 1, sizeof *spelled);
	for (uint32_t i = 0; v2 && i < n; i += batch)
		spelled[i / batch] = spell(&wire, at, i, n - i < batch ? n - i : batch);
	struct head_series *hs = malloc(batch * sizeof *hs);
	struct head_sample *samples = malloc(batch * sizeof *samples);
	struct buf records;
	buf_init(&records, GIB);
	double rss0 = rss_mb();
	printf("%u series, %.0f bytes each, batches of %u\n", n, (double)wire.n / n, batch);
	int64_t t0 = INT64_C(1700000000000) / 7200000 * 7200000;
	double cpu = 0, append = 0;
	for (uint32_t round = 0; round < rounds; round++) {
		if (round <= 1) {
			cpu = cpu_s();
			append = 0;
		}
		for (uint32_t i = 0; i < n; i += batch) {
			uint32_t m = n - i < batch ? n - i : batch;
			for (uint32_t k = 0; k < m; k++) {
				uint32_t s = i + k;
				size_t bytes = at[s + 1] - at[s];
				hs[k] = (struct head_series){.wire = {v2 ? NULL : (const char *)wire.p + at[s], bytes},
					.refs = v2 ? spelled[i / batch].refs + (size_t)k * 20 : NULL,
					.n_labels = 10,
					.first = k,
					.n = 1};
				samples[k] = (struct head_sample){t0 + (int64_t)round * 15000 + s / 500 % 1000, f64_bits(value_at(s, round))};
			}
			struct head_batch b = {.tenant = SPAN("default-tenant"),
				.symbols = v2 ? spelled[i / batch].symbols : NULL,
				.n_symbols = spelled[i / batch].n_symbols,
				.series = hs,
				.n_series = m,
				.samples = samples,
				.n_samples = m,
				.min_t = INT64_MIN,
				.max_t = INT64_MAX,
				.now_ms = io_now_ms()};
			struct wal_ticket t;
			uint32_t logged;
			must(wal_reserve(wal, head_batch_bound(head, &b), &t, &err), &err);
			if (records.cap < t.bytes)
				buf_reserve(&records, t.bytes);
			buf_clear(&records);
			double a = cpu_s();
			must(head_append(head, &t, &b, &records, &logged, &err), &err);
			append += cpu_s() - a;
			if (logged != m)
				return 1;
			if (i + batch >= n)
				must(wal_commit_wait(wal, &t, span_of(records.p, records.n), logged, &err), &err);
			else
				wal_commit(wal, &t, span_of(records.p, records.n), logged, NULL, NULL);
		}
		if (round == 0)
			printf("new series:   %6.0f ns in head_append, %6.0f ns all CPU; %4.0f B resident a series\n", append / n * 1e9,
				(cpu_s() - cpu) / n * 1e9, (rss_mb() - rss0) * 1e6 / n);
		if (round + 1 == snapshot)
			must(head_snapshot(head, &err), &err);
	}
	if (rounds > 1)
		printf("known series: %6.0f ns in head_append, %6.0f ns all CPU\n", append / n / (rounds - 1) * 1e9,
			(cpu_s() - cpu) / n / (rounds - 1) * 1e9);
	struct head_status st;
	struct wal_status ws;
	head_status(head, &st);
	wal_status(wal, &ws);
	printf("after %u rounds: %.0f B resident a series, head says %.0f; chunk file %.1f B and log %.1f B a sample\n", rounds,
		(rss_mb() - rss0) * 1e6 / n, (double)st.memory_bytes / n, (double)st.chunk_file_bytes / n / rounds, (double)ws.pos / n / rounds);
	head_close(head);
	wal_close(wal);

	double w0 = wall_s();
	cpu = cpu_s();
	start();
	printf("replay: %.2f s wall, %.2f s CPU, %.0f ns a sample\n", wall_s() - w0, cpu_s() - cpu, (cpu_s() - cpu) / n / rounds * 1e9);
	head_status(head, &st);
	printf("after replay: head says %.0f B a series\n", (double)st.memory_bytes / n);
	cpu = cpu_s();
	w0 = wall_s();
	must(head_snapshot(head, &err), &err);
	printf("snapshot: %.2f s wall, %.2f us CPU a series; resident %.0f MB\n", wall_s() - w0, (cpu_s() - cpu) / n * 1e6, rss_mb());
	head_close(head);
	wal_close(wal);
	cpu = cpu_s();
	w0 = wall_s();
	start();
	printf("start from it: %.2f s wall, %.2f s CPU, %.2f us a series; resident %.0f MB\n", wall_s() - w0, cpu_s() - cpu,
		(cpu_s() - cpu) / n * 1e6, rss_mb());
	head_status(head, &st);
	printf("after it: head says %.0f B a series\n", (double)st.memory_bytes / n);
	cpu = cpu_s();
	w0 = wall_s();
	double before = rss_mb();
	must(head_flush(head, &err), &err);
	printf("cut: %.2f s wall, %.2f us CPU a series, %.2f B a sample; resident %.0f -> %.0f MB\n", wall_s() - w0, (cpu_s() - cpu) / n * 1e6,
		(double)block_bytes / n / rounds, before, rss_mb());
	head_close(head);
	wal_close(wal);
	return 0;
}
