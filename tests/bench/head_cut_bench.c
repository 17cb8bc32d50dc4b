/* bench: needs head
 *
 * What it costs to make a block of a window: CPU a series, memory above what the window holds, memory afterwards. Without a log: what the window holds has
 * the layout that scrapes give it, chunk by chunk over all series, and nothing is sent meanwhile.
 *
 *     head_cut_bench DIR [series=200000] [samples=480] [kind=float]     kind: float, late (each 40th sample comes last), histogram
 *
 * The floor is what the block's bytes cost whoever makes them: checksum, SHA-256, write and sync of as many bytes as it has.
 */
#include <stdio.h>
#include <stdlib.h>
#include <openssl/evp.h>
#include <sys/resource.h>
#include "base/log.h"
#include "tests/bench/bench_head.h"

enum { BATCH = 200, STEP_MS = 15000, PER_BATCH = 120 };
static const int64_t T0 = INT64_C(1700000000000) / 7200000 * 7200000;

/* ---- what the process has used: the bench is no part of the server, so no seam ---- */

struct used {
	double user, system, wall;
};

static struct used used_now(void)
{
	struct rusage r;
	getrusage(RUSAGE_SELF, &r);
	return (struct used){(double)r.ru_utime.tv_sec + (double)r.ru_utime.tv_usec / 1e6,
		(double)r.ru_stime.tv_sec + (double)r.ru_stime.tv_usec / 1e6, (double)io_mono_ns() / 1e9};
}

static struct used used_since(struct used a)
{
	struct used b = used_now();
	return (struct used){b.user - a.user, b.system - a.system, b.wall - a.wall};
}

static double status_mb(const char *key)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	double mb = 0;
	while (f && fgets(line, sizeof line, f))
		if (strncmp(line, key, strlen(key)) == 0)
			mb = atof(line + strlen(key) + 1) * 1024 / 1e6;
	if (f)
		fclose(f);
	return mb;
}

static void peak_reset(void)
{
	FILE *f = fopen("/proc/self/clear_refs", "w");
	if (f) {
		fputs("5", f);
		fclose(f);
	}
}

/* A counter of eight buckets in two spans, of which three in four grow. */
struct hist_source {
	struct histogram h;
	struct hist_span spans[2];
	int64_t deltas[8];
};

static void hist_at(struct hist_source *x, uint32_t s, uint32_t round)
{
	int64_t before = 0;
	x->spans[0] = (struct hist_span){.offset = (int32_t)(s % 5), .length = 5};
	x->spans[1] = (struct hist_span){.offset = 2, .length = 3};
	x->h = (struct histogram){.schema = 3, .zero_threshold = 1e-128, .pos_spans = x->spans, .n_pos_spans = 2, .i_pos = x->deltas, .n_pos = 8};
	for (uint32_t k = 0; k < 8; k++) {
		int64_t count = 1 + k + (int64_t)round * ((s + k) % 4);
		x->deltas[k] = count - before;
		before = count;
		x->h.i_count += (uint64_t)count;
	}
	x->h.sum = f64_bits((double)x->h.i_count * 0.25);
}

static const char *kind = "float";

static bool comes_last(uint32_t s, uint32_t round)
{
	return strcmp(kind, "late") == 0 && (s * 7 + round) % 40 == 0;
}

/* Samples [from, to) of every series. */
static void send(uint32_t n, const struct buf *wire, const size_t *at, uint32_t from, uint32_t to, bool last)
{
	struct err err = {0};
	struct head_series *hs = malloc(BATCH * sizeof *hs);
	struct head_sample *samples = malloc((size_t)BATCH * (to - from) * sizeof *samples);
	bool hist = strcmp(kind, "histogram") == 0;
	size_t n_hists = hist ? (size_t)BATCH * (to - from) : 1;
	struct head_hist *hists = malloc(n_hists * sizeof *hists);
	struct hist_source *sources = malloc(n_hists * sizeof *sources);
	struct buf records;
	buf_init(&records, 4 * GIB);
	for (uint32_t i = 0; i < n; i += BATCH) {
		uint32_t m = n - i < BATCH ? n - i : BATCH, k = 0, n_samples = 0, n_series = 0;
		for (; k < m; k++) {
			uint32_t s = i + k, first = n_samples;
			for (uint32_t round = from; round < to; round++) {
				if (comes_last(s, round) != last)
					continue;
				int64_t t = T0 + (int64_t)round * STEP_MS + s / 500 % 1000;
				if (hist) {
					hist_at(&sources[n_samples], s, round);
					hists[n_samples] = (struct head_hist){.t = t, .kind = SAMPLE_HISTOGRAM, .h = &sources[n_samples].h};
				} else {
					samples[n_samples] = (struct head_sample){t, f64_bits(value_at(s, round))};
				}
				n_samples++;
			}
			if (n_samples == first)
				continue;
			struct head_series *x = &hs[n_series++];
			*x = (struct head_series){.wire = {(const char *)wire->p + at[s], at[s + 1] - at[s]}, .n_labels = 10};
			if (hist) {
				x->first_hist = first;
				x->n_hist = n_samples - first;
			} else {
				x->first = first;
				x->n = n_samples - first;
			}
		}
		struct head_batch b = {.tenant = SPAN("default-tenant"),
			.series = hs,
			.n_series = n_series,
			.samples = samples,
			.n_samples = hist ? 0 : n_samples,
			.hists = hists,
			.n_hists = hist ? n_samples : 0,
			.min_t = INT64_MIN,
			.max_t = INT64_MAX,
			.now_ms = io_now_ms()};
		struct wal_ticket t;
		uint32_t logged;
		if (n_samples == 0)
			continue;
		must(wal_reserve(wal, head_batch_bound(head, &b), &t, &err), &err);
		buf_reserve(&records, t.bytes);
		buf_clear(&records);
		must(head_append(head, &t, &b, &records, &logged, &err), &err);
		if (logged != n_samples)
			exit(1);
		wal_commit(wal, &t, (struct span){"", 0}, 0, NULL, NULL);
	}
	buf_free(&records);
	free(hs);
	free(samples);
	free(hists);
	free(sources);
}

/* As much page cache as the cut will take was used before: memory that a virtual machine touches first can cost more than the cut. */
static void page_cache_touch(uint64_t bytes)
{
	struct err err = {0};
	char path[1200];
	enum { PIECE = 256 * 1024 };
	uint8_t *p = calloc(1, PIECE);
	int fd;
	snprintf(path, sizeof path, "%s/touch", dir);
	must(io_open(path, IO_WRITE | IO_CREATE, &fd, &err), &err);
	for (uint64_t off = 0; off < bytes; off += PIECE)
		must(io_pwrite(fd, p, PIECE, off, &err), &err);
	io_close(fd);
	must(io_unlink(path, &err), &err);
	free(p);
}

static void floor_print(uint32_t n)
{
	struct err err = {0};
	char path[1200];
	enum { PIECE = 256 * 1024 };
	uint8_t *p = malloc(PIECE), sha[32];
	int fd;
	unsigned got;
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	io_random(p, PIECE);
	snprintf(path, sizeof path, "%s/floor", dir);
	must(io_open(path, IO_WRITE | IO_CREATE, &fd, &err), &err);
	static const char *const words[] = {"checksum", "SHA-256", "write", "sync"};
	double us[4] = {0};
	uint64_t bytes = block_bytes;
	for (int what = 0; what < 4; what++) {
		struct used u = used_now();
		EVP_DigestInit_ex(md, EVP_sha256(), NULL);
		for (uint64_t off = 0; off < bytes && what < 3; off += PIECE) {
			if (what == 0)
				p[0] = (uint8_t)crc32c(0, p, PIECE);
			else if (what == 1)
				EVP_DigestUpdate(md, p, PIECE);
			else
				must(io_pwrite(fd, p, PIECE, off, &err), &err);
		}
		if (what == 1)
			EVP_DigestFinal_ex(md, sha, &got);
		if (what == 3)
			must(io_fdatasync(fd, &err), &err);
		u = used_since(u);
		us[what] = (u.user + u.system) / n * 1e6;
	}
	printf("floor: %.2f us a series:", us[0] + us[1] + us[2] + us[3]);
	for (int what = 0; what < 4; what++)
		printf(" %s %.2f", words[what], us[what]);
	printf("\n");
	io_close(fd);
	must(io_unlink(path, &err), &err);
	EVP_MD_CTX_free(md);
	free(p);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 1;
	snprintf(dir, sizeof dir, "%s", argv[1]);
	uint32_t n = argc > 2 ? (uint32_t)atoi(argv[2]) : 200000, rounds = argc > 3 ? (uint32_t)atoi(argv[3]) : 480;
	kind = argc > 4 ? argv[4] : kind;
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
	double empty = status_mb("VmRSS");
	for (uint32_t from = 0; from < rounds; from += PER_BATCH)
		send(n, &wire, at, from, rounds - from < PER_BATCH ? rounds : from + PER_BATCH, false);
	if (strcmp(kind, "late") == 0)
		send(n, &wire, at, 0, rounds, true);
	struct head_status st;
	double full = status_mb("VmRSS");
	head_status(head, &st);
	uint64_t held = st.memory_bytes;
	printf("%u series, %u samples each, %s: %.0f B resident a series, head says %.0f, chunk file %.0f\n", n, rounds, kind,
		(full - empty) * 1e6 / n, (double)held / n, (double)st.chunk_file_bytes / n);
	page_cache_touch(st.chunk_file_bytes * 5 / 2 + (uint64_t)n * 300);
	peak_reset();
	struct used u = used_now();
	must(head_flush(head, &err), &err);
	struct used cut = used_since(u);
	double peak = status_mb("VmHWM");
	for (int i = 0; i < 1000 && st.memory_bytes > held / 20; i++) {
		io_sleep_ms(20);
		head_status(head, &st);
	}
	io_sleep_ms(1000);
	struct used all = used_since(u);
	printf("cut: %.2f us CPU a series (user %.2f, system %.2f), %.2f s wall; with the window's end %.2f us\n", (cut.user + cut.system) / n * 1e6,
		cut.user / n * 1e6, cut.system / n * 1e6, cut.wall, (all.user + all.system) / n * 1e6);
	printf("     resident %.0f MB, at most %.0f (%+.1f %%), afterwards %.0f; before the first series %.0f\n", full, peak,
		(peak - full) / (full - empty) * 100, status_mb("VmRSS"), empty);
	char path[1300];
	struct io_stat index;
	snprintf(path, sizeof path, "%s/index", block_dir);
	must(io_stat(path, &index, &err), &err);
	printf("     block %.2f B a sample: chunks %.1f B a series, index %.1f\n", (double)block_bytes / n / rounds,
		(double)(block_bytes - index.size) / n, (double)index.size / n);
	floor_print(n);
	head_close(head);
	wal_close(wal);
	return 0;
}
