/* bench: needs proto
 *
 * What decoding a write request costs by itself, after snappy: 1.0 and 2.0 of the same 2,000 series with 10 labels, one sample each.
 *
 *     proto_bench [rounds=2000] [1|2]
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/limits.h"
#include "proto/proto.h"

enum { SERIES = 2000, LABELS = 10, SYMBOL_BYTES = 64 };

static const char *const names[LABELS] = {
	"__name__", "availability_zone", "cluster", "container", "handler", "instance", "job", "namespace", "pod", "service"};

static void values_of(uint32_t i, char v[LABELS][SYMBOL_BYTES])
{
	uint32_t target = i / 500, metric = i % 500;
	snprintf(v[0], SYMBOL_BYTES, "process_something_%u_seconds_total", metric % 100);
	snprintf(v[1], SYMBOL_BYTES, "eu-central-1");
	snprintf(v[2], SYMBOL_BYTES, "kube-prod-%u", target % 10);
	snprintf(v[3], SYMBOL_BYTES, "container-%u", metric % 20);
	snprintf(v[4], SYMBOL_BYTES, "/api/v1/handler/%u", metric / 100);
	snprintf(v[5], SYMBOL_BYTES, "10.%u.%u.%u:9100", target >> 16 & 255, target >> 8 & 255, target & 255);
	snprintf(v[6], SYMBOL_BYTES, "kubernetes-service-endpoints");
	snprintf(v[7], SYMBOL_BYTES, "monitoring-%u", target % 50);
	snprintf(v[8], SYMBOL_BYTES, "pod-%08x-%04x", target * 2654435761u, target & 0xffff);
	snprintf(v[9], SYMBOL_BYTES, "service-%u", target % 200);
}

static void put_sample(struct buf *b, uint32_t i)
{
	size_t m = pb_begin(b, 2);
	if (i % 3) /* Go leaves zeros out */
		pb_double_bits(b, 1, f64_bits(i * 1.5));
	pb_uint(b, 2, 1700000000000 + i);
	pb_end(b, m);
}

/* Linear: built once. */
static uint32_t symbol(struct buf *table, uint32_t *n, const char *text)
{
	for (uint32_t i = 0; i < *n; i++)
		if (strcmp((const char *)table->p + (size_t)i * SYMBOL_BYTES, text) == 0)
			return i;
	char padded[SYMBOL_BYTES] = "";
	snprintf(padded, sizeof padded, "%s", text);
	buf_put(table, padded, sizeof padded);
	return (*n)++;
}

static void body_1(struct buf *out)
{
	for (uint32_t i = 0; i < SERIES; i++) {
		char v[LABELS][SYMBOL_BYTES];
		values_of(i, v);
		size_t s = pb_begin(out, 1);
		for (int k = 0; k < LABELS; k++) {
			size_t l = pb_begin(out, 1);
			pb_bytes(out, 1, span_cstr(names[k]));
			pb_bytes(out, 2, span_cstr(v[k]));
			pb_end(out, l);
		}
		put_sample(out, i);
		pb_end(out, s);
	}
}

static void body_2(struct buf *out, bool metadata)
{
	struct buf table, series, refs;
	uint32_t n = 0;
	buf_init(&table, 64 * MIB);
	buf_init(&series, 64 * MIB);
	buf_init(&refs, MIB);
	symbol(&table, &n, "");
	for (uint32_t i = 0; i < SERIES; i++) {
		char v[LABELS][SYMBOL_BYTES], help[SYMBOL_BYTES];
		values_of(i, v);
		size_t s = pb_begin(&series, 5);
		buf_clear(&refs);
		for (int k = 0; k < LABELS; k++) {
			buf_uvarint(&refs, symbol(&table, &n, names[k]));
			buf_uvarint(&refs, symbol(&table, &n, v[k]));
		}
		pb_bytes(&series, 1, span_of(refs.p, refs.n));
		put_sample(&series, i);
		size_t m = pb_begin(&series, 5);
		if (metadata) {
			snprintf(help, sizeof help, "Seconds that something number %u took.", i % 100);
			pb_uint(&series, 1, 1);
			pb_uint(&series, 3, symbol(&table, &n, help));
		}
		pb_end(&series, m);
		pb_end(&series, s);
	}
	for (uint32_t i = 0; i < n; i++)
		pb_bytes(out, 4, span_cstr((const char *)table.p + (size_t)i * SYMBOL_BYTES));
	buf_span(out, span_of(series.p, series.n));
	buf_free(&table);
	buf_free(&series);
	buf_free(&refs);
}

static double cpu_s(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts); /* the bench is no part of the server: no seam */
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

typedef errc decode_fn(struct span, const struct rw_limits *, struct arena *, struct rw_request *, struct err *);

static void run(const char *what, decode_fn *decode, const struct buf *b, uint32_t rounds)
{
	static const struct rw_limits limits = {LIMIT_INGEST_SERIES_PER_REQUEST, LIMIT_INGEST_SAMPLES_PER_REQUEST, LIMIT_LABELS_DECODE};
	struct arena arena;
	struct rw_request r = {0};
	struct err err = {0};
	arena_init(&arena, GIB);
	double best = 1e9, all = 0;
	for (uint32_t i = 0; i < rounds; i++) {
		arena_reset(&arena);
		double before = cpu_s();
		if (decode(span_of(b->p, b->n), &limits, &arena, &r, &err) != OK) {
			fprintf(stderr, "%s\n", err.msg);
			exit(1);
		}
		double took = cpu_s() - before;
		all += took;
		best = took < best ? took : best;
	}
	printf("%-28s %5zu bytes a series, %zu symbols: %5.1f ns a series, %5.1f at best\n", what, b->n / SERIES, r.n_symbols,
		all / rounds / SERIES * 1e9, best / SERIES * 1e9);
	arena_free(&arena);
}

int main(int argc, char **argv)
{
	uint32_t rounds = argc > 1 ? (uint32_t)atoi(argv[1]) : 2000;
	int only = argc > 2 ? atoi(argv[2]) : 0;
	struct buf one, bare, full;
	buf_init(&one, 64 * MIB);
	buf_init(&bare, 64 * MIB);
	buf_init(&full, 64 * MIB);
	body_1(&one);
	body_2(&bare, false);
	body_2(&full, true);
	if (only != 2)
		run("remote write 1.0", rw1_decode, &one, rounds);
	if (only != 1) {
		run("remote write 2.0", rw2_decode, &bare, rounds);
		run("remote write 2.0, metadata", rw2_decode, &full, rounds);
	}
	buf_free(&one);
	buf_free(&bare);
	buf_free(&full);
	return 0;
}
