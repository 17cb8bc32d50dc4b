/* bench: needs cluster
 *
 * What spreading a write costs the node that spreads it, and decoding a share the node that gets it: 2,000 series of 10 labels, one sample each, 1.0.
 *
 *     cluster_bench [rounds=300] [nodes=9] [factor=3] [lz4|none]
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/limits.h"
#include "cluster/cluster.h"

enum { SERIES = 2000, LABELS = 10, TEXT = 64, SENDS_MAX = 64 };

static const char *const names[LABELS] = {
	"__name__", "availability_zone", "cluster", "container", "handler", "instance", "job", "namespace", "pod", "service"};

static struct span labels[SERIES][LABELS];
static struct span slices[SERIES];
static uint64_t hashes[SERIES];
static struct cluster_send sends[SENDS_MAX];
static uint32_t n_sends;
static uint64_t n_done;

static void values_of(uint32_t i, char v[LABELS][TEXT])
{
	uint32_t target = i / 500, metric = i % 500;
	snprintf(v[0], TEXT, "process_something_%u_seconds_total", metric % 100);
	snprintf(v[1], TEXT, "eu-central-1");
	snprintf(v[2], TEXT, "kube-prod-%u", target % 10);
	snprintf(v[3], TEXT, "container-%u", metric % 20);
	snprintf(v[4], TEXT, "/api/v1/handler/%u", metric / 100);
	snprintf(v[5], TEXT, "10.%u.%u.%u:9100", target >> 16 & 255, target >> 8 & 255, target & 255);
	snprintf(v[6], TEXT, "kubernetes-service-endpoints");
	snprintf(v[7], TEXT, "monitoring-%u", target % 50);
	snprintf(v[8], TEXT, "pod-%08x-%04x", target * 2654435761u, target & 0xffff);
	snprintf(v[9], TEXT, "service-%u", target % 200);
}

/* The request's body; spans into it once it stands still. */
static void body_make(struct buf *out)
{
	size_t at[SERIES + 1];
	for (uint32_t i = 0; i < SERIES; i++) {
		char v[LABELS][TEXT];
		values_of(i, v);
		at[i] = out->n;
		size_t s = pb_begin(out, 1);
		for (int k = 0; k < LABELS; k++) {
			size_t l = pb_begin(out, 1);
			pb_bytes(out, 1, span_cstr(names[k]));
			pb_bytes(out, 2, span_cstr(v[k]));
			pb_end(out, l);
			labels[i][k] = span_cstr(strdup(v[k]));
		}
		size_t m = pb_begin(out, 2);
		pb_double_bits(out, 1, f64_bits(i * 1.5));
		pb_uint(out, 2, 1700000000000 + i);
		pb_end(out, m);
		pb_end(out, s);
	}
	at[SERIES] = out->n;
	for (uint32_t i = 0; i < SERIES; i++)
		slices[i] = span_of(out->p + at[i], at[i + 1] - at[i]);
}

static double cpu_s(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts); /* the bench is no part of the server: no seam */
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void say(const char *what, double since, uint32_t rounds)
{
	printf("%-44s %7.1f ns/series\n", what, (cpu_s() - since) * 1e9 / rounds / SERIES);
}

static void keep(void *arg, const struct cluster_send *s)
{
	(void)arg;
	if (n_sends < SENDS_MAX)
		sends[n_sends++] = *s;
}

static void done(void *arg, const struct cluster_outcome *o)
{
	(void)arg;
	if (o->stored == SERIES)
		n_done++;
}

static struct ring_set *ring_make(uint32_t nodes, uint32_t factor)
{
	struct buf json;
	struct ring_set *set = NULL;
	struct ring_options opt = {RING_KETAMA, factor};
	struct err err = {0};
	buf_init(&json, MIB);
	buf_printf(&json, "[{\"endpoints\":[");
	for (uint32_t i = 0; i < nodes; i++)
		buf_printf(&json, "%s\"varve-%u.varve.monitoring.svc:19291\"", i ? "," : "", i);
	buf_printf(&json, "]}]");
	if (ring_set_parse("bench", span_of(json.p, json.n), &opt, &set, &err) != OK) {
		fprintf(stderr, "%s\n", err.msg);
		exit(1);
	}
	buf_free(&json);
	return set;
}

int main(int argc, char **argv)
{
	uint32_t rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 300, nodes = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 9;
	uint32_t factor = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 3;
	bool lz4 = argc <= 4 || strcmp(argv[4], "none") != 0;
	struct buf body, answer;
	struct cluster_config cfg = {.send = keep, .lz4 = lz4, .max_peer_bytes = GIB};
	struct cluster *c;
	struct ring *ring;
	struct err err = {0};
	if (nodes > SENDS_MAX)
		return 1;
	buf_init(&body, 64 * MIB);
	buf_init(&answer, MIB);
	body_make(&body);
	struct ring_set *set = ring_make(nodes, factor);
	if (ring_for_tenant(set, SPAN("default-tenant"), &ring, &err) != OK || cluster_open(&cfg, &c, &err) != OK)
		return 1;

	struct ring_hash h;
	ring_hash_begin(&h, SPAN("default-tenant"));
	double t = cpu_s();
	for (uint32_t k = 0; k < rounds; k++)
		for (uint32_t i = 0; i < SERIES; i++) {
			for (int l = 0; l < LABELS; l++)
				ring_hash_add(&h, span_cstr(names[l]), labels[i][l]);
			hashes[i] = ring_hash_end(&h);
		}
	say("hash, of labels that are read", t, rounds);

	double spread = 0, counted = 0, read = 0;
	size_t frame_bytes = 0;
	struct cluster_part part = {
		.tenant = SPAN("default-tenant"), .version = RW_1, .ring = ring, .n_series = SERIES, .hashes = hashes, .slices = slices};
	for (uint32_t k = 0; k < rounds; k++) {
		struct cluster_write w = {.parts = &part, .n_parts = 1, .self = CLUSTER_NO_NODE, .done = done, .deadline_mono_ns = INT64_MAX};
		struct cluster_op *op;
		n_sends = 0;
		t = cpu_s();
		if (cluster_write_begin(c, &w, &op, &err) != OK)
			return 1;
		cluster_write_go(op);
		spread += cpu_s() - t;
		for (uint32_t i = 0; i < n_sends; i++) {
			struct arena arena;
			struct peer_request r;
			size_t declared;
			t = cpu_s();
			if (peer_request_declared(sends[i].body, &declared, &err) != OK)
				return 1;
			arena_init(&arena, declared + 64);
			if (peer_request_decode(sends[i].body, &arena, &r, &err) != OK)
				return 1;
			read += cpu_s() - t;
			arena_free(&arena);
			frame_bytes += sends[i].body.n;
			struct peer_answer a = {.epoch = 1};
			buf_clear(&answer);
			if (peer_answer_encode(&a, &answer, &err) != OK)
				return 1;
			t = cpu_s();
			sends[i].done(sends[i].arg, OK, 200, span_of(answer.p, answer.n), NULL);
			counted += cpu_s() - t;
		}
	}
	printf("%-44s %7.1f ns/series\n", "owners, shares, frames", spread * 1e9 / rounds / SERIES);
	printf("%-44s %7.1f ns/series\n", "answers, counted", counted * 1e9 / rounds / SERIES);
	printf("%-44s %7.1f ns/series and replica\n", "decode of a share (CRC, LZ4)", read * 1e9 / rounds / SERIES / factor);
	printf("%u nodes, factor %u, %s: %.1f bytes/series and replica of %.1f, %u requests\n", nodes, factor, lz4 ? "lz4" : "none",
		(double)frame_bytes / rounds / SERIES / factor, (double)body.n / SERIES, n_sends);
	cluster_close(c);
	ring_unref(ring);
	ring_set_unref(set);
	buf_free(&body);
	buf_free(&answer);
	return n_done == rounds ? 0 : 1;
}
