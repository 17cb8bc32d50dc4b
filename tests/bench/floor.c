/* tests/bench/floor.c - what the unavoidable work of a write costs: the measure that `make bench` puts beside the servers.
 *
 *     varve bench write --series=1000000 --rounds=3 --dump=DIR
 *     floor DIR [passes=5] [small]
 *
 * On the same bodies as the servers get, in one thread, after a pass that fills the table: decompress (libsnappy), walk the protobuf message to each
 * series' labels and sample, hash the label bytes (XXH3-128), probe a table and compare the label bytes, store 24 bytes (time, value, count) in the series' own
 * slot. Nothing else: no HTTP, no chunk, no log, no index, no limit, no lock. Lookups are prefetched 16 ahead and everything large stands on huge pages (`small`: on
 * those of 4 KiB). Prints one line of JSON: ns a sample of CPU time (getrusage), and of each stage by the thread's clock. Remote write 1.0 only.
 */
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <snappy-c.h>
#include <xxhash.h>

enum { AHEAD = 16, LINE_BYTES = 64, HUGE_BYTES = 2 << 20, MESSAGE_SERIES_MAX = 1 << 20 };

struct series {
	uint64_t labels_at;
	uint32_t labels_n;
	uint32_t unused;
	/* the slot */
	int64_t t;
	uint64_t v;
	uint64_t count;
} __attribute__((aligned(LINE_BYTES)));

struct entry {
	uint64_t hash;
	uint64_t series; /* number + 1; 0: free */
};

struct body {
	const char *p;
	uint32_t n, samples;
};

/* One sample of the message that is being worked on. */
struct item {
	uint64_t hash;
	const uint8_t *labels;
	uint32_t labels_n;
	int64_t t;
	uint64_t v;
};

static struct body *bodies;
static size_t n_bodies, cap_bodies;
static struct entry *table;
static uint64_t mask;
static struct series *series;
static uint64_t n_series, cap_series;
static uint8_t *labels;
static uint64_t n_labels, cap_labels;
static bool huge = true;

static _Noreturn void die(const char *what, const char *which)
{
	fprintf(stderr, "floor: %s%s%s\n", what, *which ? ": " : "", which);
	exit(1);
}

/* Zeros that take room only once they are touched. */
static void *big(uint64_t bytes)
{
	uint64_t all = (bytes + 2 * HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
	char *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		die("no memory", "");
	p += (HUGE_BYTES - (uintptr_t)p % HUGE_BYTES) % HUGE_BYTES;
	madvise(p, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return p;
}

/* ---- reading the bodies ---- */

static uint32_t le32(const char *p)
{
	uint32_t x;
	memcpy(&x, p, 4);
	return x;
}

static void load(const char *path)
{
	FILE *f = fopen(path, "rb");
	if (!f || fseek(f, 0, SEEK_END))
		die(strerror(errno), path);
	long n = ftell(f);
	char *p = n > 0 ? malloc((size_t)n) : NULL;
	rewind(f);
	if (!p || fread(p, 1, (size_t)n, f) != (size_t)n)
		die("can't be read", path);
	fclose(f);
	if (n < 8 || memcmp(p, "vrvbody1", 8) != 0)
		die("not a file of varve bench write --dump", path);
	for (size_t at = 8; at < (size_t)n;) {
		if ((size_t)n - at < 16 || (size_t)n - at - 16 < le32(p + at + 12))
			die("cut off", path);
		if (le32(p + at) != 1)
			die("holds remote write 2.0; this program walks 1.0", path);
		if (n_bodies == cap_bodies) {
			cap_bodies = cap_bodies ? cap_bodies * 2 : 1024;
			bodies = realloc(bodies, cap_bodies * sizeof *bodies);
			if (!bodies)
				die("no memory", "");
		}
		bodies[n_bodies++] = (struct body){p + at + 16, le32(p + at + 12), le32(p + at + 4)};
		at += 16 + le32(p + at + 12);
	}
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void load_all(const char *dir)
{
	DIR *d = opendir(dir);
	char *names[100000], path[4200];
	size_t n = 0;
	if (!d)
		die(strerror(errno), dir);
	for (struct dirent *e = readdir(d); e && n < 100000; e = readdir(d))
		if (strstr(e->d_name, ".bodies"))
			names[n++] = strdup(e->d_name);
	closedir(d);
	if (n == 0)
		die("no bodies there", dir);
	qsort(names, n, sizeof *names, by_name);
	for (size_t i = 0; i < n; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, names[i]);
		load(path);
		free(names[i]);
	}
}

/* ---- the work ---- */

static const uint8_t *varint(const uint8_t *p, const uint8_t *end, uint64_t *v)
{
	uint64_t x = 0;
	for (unsigned shift = 0; p < end && shift < 64; shift += 7) {
		x |= (uint64_t)(*p & 0x7f) << shift;
		if (*p++ < 0x80) {
			*v = x;
			return p;
		}
	}
	die("a message is not protobuf", "");
}

/* To each series' labels, their hash, and its sample. */
static size_t walk(const uint8_t *p, size_t n, struct item *out)
{
	const uint8_t *end = p + n;
	size_t count = 0;
	while (p < end) {
		uint64_t size;
		if (*p != 0x0a || count == MESSAGE_SERIES_MAX)
			die("a message is not as varve bench writes it", "");
		p = varint(p + 1, end, &size);
		const uint8_t *series_end = p + size;
		struct item *o = &out[count++];
		if (size > (size_t)(end - p))
			die("a message is not protobuf", "");
		o->labels = p;
		while (p + 1 < series_end && *p == 0x0a && p[1] < 0x80)
			p += 2 + p[1];
		o->labels_n = (uint32_t)(p - o->labels);
		o->hash = XXH3_128bits_withSeed(o->labels, o->labels_n, 0x76617276).low64; /* now: its bytes are in the nearest cache */
		o->t = 0;
		o->v = 0;
		if (series_end - p < 2 || *p != 0x12 || p + 2 + p[1] != series_end)
			die("a message is not as varve bench writes it", "");
		p += 2;
		if (series_end - p >= 9 && *p == 0x09) {
			memcpy(&o->v, p + 1, 8);
			p += 9;
		}
		if (p < series_end && *p == 0x10)
			p = varint(p + 1, series_end, (uint64_t *)&o->t);
		if (p != series_end)
			die("a message is not as varve bench writes it", "");
	}
	return count;
}

static uint64_t add(const struct item *o, uint64_t slot)
{
	if (n_series == cap_series || n_labels + o->labels_n > cap_labels || n_series * 2 > mask)
		die("more series than the first count found", "");
	series[n_series].labels_at = n_labels;
	series[n_series].labels_n = o->labels_n;
	memcpy(labels + n_labels, o->labels, o->labels_n);
	n_labels += o->labels_n;
	table[slot] = (struct entry){o->hash, n_series + 1};
	return n_series++;
}

/* Finds each item's series and stores its sample; known series are in the table, and what the hash finds is compared. */
static void probe_all(const struct item *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (i + 2 * AHEAD < n)
			__builtin_prefetch(&table[v[i + 2 * AHEAD].hash & mask]);
		if (i + AHEAD < n) {
			uint64_t near = table[v[i + AHEAD].hash & mask].series;
			if (near)
				__builtin_prefetch(&series[near - 1], 1);
		}
		if (i + AHEAD / 2 < n) {
			uint64_t near = table[v[i + AHEAD / 2].hash & mask].series;
			if (near)
				for (uint32_t b = 0; b < 320; b += LINE_BYTES)
					__builtin_prefetch(labels + series[near - 1].labels_at + b);
		}
		const struct item *o = &v[i];
		uint64_t slot = o->hash & mask, found;
		for (;; slot = (slot + 1) & mask) {
			if (!table[slot].series) {
				found = add(o, slot);
				break;
			}
			found = table[slot].series - 1;
			if (table[slot].hash == o->hash && series[found].labels_n == o->labels_n &&
				memcmp(labels + series[found].labels_at, o->labels, o->labels_n) == 0)
				break;
		}
		series[found].t = o->t;
		series[found].v = o->v;
		series[found].count++;
	}
}

static double clock_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static double cpu_ns(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e9 + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e3;
}

static double stage[3];

static uint64_t pass(char *message, struct item *items)
{
	uint64_t samples = 0;
	for (size_t i = 0; i < n_bodies; i++) {
		size_t n;
		double t0 = clock_ns();
		snappy_uncompressed_length(bodies[i].p, bodies[i].n, &n);
		if (snappy_uncompress(bodies[i].p, bodies[i].n, message, &n) != SNAPPY_OK)
			die("a body is not snappy", "");
		double t1 = clock_ns();
		size_t count = walk((const uint8_t *)message, n, items);
		double t2 = clock_ns();
		probe_all(items, count);
		double t3 = clock_ns();
		stage[0] += t1 - t0;
		stage[1] += t2 - t1;
		stage[2] += t3 - t2;
		samples += count;
	}
	return samples;
}

int main(int argc, char **argv)
{
	unsigned passes = 5;
	if (argc < 2) {
		fprintf(stderr, "usage: floor DIR [passes=5] [small]\n");
		return 1;
	}
	for (int i = 2; i < argc; i++) {
		if (strncmp(argv[i], "passes=", 7) == 0)
			passes = (unsigned)atoi(argv[i] + 7);
		else if (strcmp(argv[i], "small") == 0)
			huge = false;
	}
	load_all(argv[1]);
	uint64_t all = 0, largest = 0;
	for (size_t i = 0; i < n_bodies; i++) {
		size_t n;
		if (snappy_uncompressed_length(bodies[i].p, bodies[i].n, &n) != SNAPPY_OK)
			die("a body is not snappy", "");
		if (n > largest)
			largest = n;
		all += bodies[i].samples;
		cap_labels += n;
	}
	cap_series = all;
	char *message = big(largest + LINE_BYTES);
	struct item *items = big(MESSAGE_SERIES_MAX * sizeof *items);
	/* A first look only counts the series, so that the table gets the size that they need; what it touched is given back. */
	for (int look = 0; look < 2; look++) {
		uint64_t slots = 1024, expect = look ? n_series : all;
		while (slots < expect * 2)
			slots *= 2;
		table = big(slots * sizeof *table);
		mask = slots - 1;
		series = big(cap_series * sizeof *series);
		labels = big(cap_labels);
		if (look)
			break;
		pass(message, items);
		cap_labels = n_labels;
		cap_series = n_series;
		if (munmap(table, slots * sizeof *table) || munmap(series, all * sizeof *series) || munmap(labels, n_labels))
			die("memory can't be given back", "");
	}
	n_series = n_labels = 0;

	double begin = cpu_ns();
	pass(message, items);
	double first = cpu_ns() - begin;
	memset(stage, 0, sizeof stage);
	begin = cpu_ns();
	uint64_t samples = 0;
	for (unsigned i = 0; i < passes; i++)
		samples += pass(message, items);
	double took = cpu_ns() - begin, n = (double)samples;
	printf("{\"series\":%llu,\"samples\":%llu,\"ns_per_sample\":%.2f,\"snappy_ns\":%.2f,\"walk_hash_ns\":%.2f,\"probe_ns\":%.2f,"
	       "\"new_series_pass_ns\":%.2f}\n",
		(unsigned long long)n_series, (unsigned long long)samples, took / n, stage[0] / n, stage[1] / n, stage[2] / n,
		first / (double)n_series);
	return 0;
}
