/* cmd/cmd_bench_data.c - series, values and bodies of a benchmark, as a pure function of its shape.
 *
 * What a cluster's scrapes look like: targets of 500 series that share instance, pod and node; 10 labels, about 330 bytes a sample in remote write
 * 1.0, a tenth of it after snappy. 40 % of the series stand still (gauges), 50 % count up in whole numbers, 10 % are noisy floats. Ten series in
 * a row have one of each kind of metric, so every request holds the whole mixture.
 *
 * Order. bench_slot is a permutation of a tenant's slots, computed, never stored: strides by division, shuffles by a four-round Feistel network over the
 * next power of four with the results outside walked on (cycle walking). So a sample is sent exactly once in a round, whatever the order.
 *
 * Out of order. A chosen slot exchanges its samples of two neighbouring rounds (2k and 2k+1): the later one is sent first. Both are in the run or neither
 * moves, so the samples of a run are the same with and without disorder.
 *
 * Churn. All series of a target are replaced at once, as when its pod is: target x is at generation floor(minutes * share + phase(x)), with phases spread
 * evenly, so any minute replaces the same share of all series.
 *
 * Spelling. As Prometheus' own sender: fields in the order of their numbers, zeros left out (gogo protobuf), 2.0's symbols in the order of their first use
 * behind "", an empty metadata field in every series.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "cmd/cmd_bench_int.h"
#include "proto/proto.h"

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= UINT64_C(0xff51afd7ed558ccd);
	x ^= x >> 33;
	x *= UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

static uint64_t mix2(uint64_t a, uint64_t b)
{
	return mix(mix(a + UINT64_C(0x9e3779b97f4a7c15)) ^ b);
}

/* ---- tenants, batches, orders ---- */

/* `n` things in `parts` runs as equal as can be, the longer ones first. */
static uint64_t part_first(uint64_t n, uint64_t parts, uint64_t i)
{
	uint64_t longer = n % parts;
	return i * (n / parts) + (i < longer ? i : longer);
}

static uint64_t part_size(uint64_t n, uint64_t parts, uint64_t i)
{
	return n / parts + (i < n % parts);
}

/* The i-th of `n` when one of each of `parts` runs is taken in turn: which run, and which of it. */
static void dealt(uint64_t n, uint64_t parts, uint64_t i, uint64_t *part, uint64_t *in_part)
{
	*part = i % parts;
	*in_part = i / parts;
	ASSERT(*in_part < part_size(n, parts, *part));
}

static uint64_t batches_of(const struct bench_shape *shape, uint64_t tenant)
{
	return (part_size(shape->series, shape->tenants, tenant) + shape->batch - 1) / shape->batch;
}

/* How many tenants have as many batches as the first, which has most. */
static uint64_t tenants_with_most(const struct bench_shape *shape)
{
	uint64_t longer = shape->series % shape->tenants;
	return longer && batches_of(shape, longer) < batches_of(shape, 0) ? longer : shape->tenants;
}

uint64_t bench_batches(const struct bench_shape *shape)
{
	return (batches_of(shape, 0) - 1) * shape->tenants + tenants_with_most(shape);
}

struct bench_batch bench_batch_at(const struct bench_shape *shape, uint64_t batch)
{
	struct bench_batch b;
	uint64_t in_tenant;
	dealt(bench_batches(shape), shape->tenants, batch, &b.tenant, &in_tenant);
	uint64_t size = part_size(shape->series, shape->tenants, b.tenant);
	b.first = in_tenant * shape->batch;
	b.n = size - b.first < shape->batch ? size - b.first : shape->batch;
	return b;
}

/* A permutation of 0 .. n-1. */
static uint64_t shuffled(uint64_t n, uint64_t i, uint64_t key)
{
	unsigned half = 1;
	while (half < 32 && n > UINT64_C(1) << 2 * half)
		half++;
	uint64_t mask = (UINT64_C(1) << half) - 1;
	do {
		uint64_t left = i >> half, right = i & mask;
		for (unsigned k = 0; k < 4; k++) {
			uint64_t next = left ^ (mix2(key + k, right) & mask);
			left = right;
			right = next;
		}
		i = left << half | right;
	} while (i >= n);
	return i;
}

uint64_t bench_slot(const struct bench_shape *shape, uint64_t tenant, uint64_t position, uint64_t round)
{
	uint64_t first = part_first(shape->series, shape->tenants, tenant), n = part_size(shape->series, shape->tenants, tenant);
	uint64_t part, in_part;
	switch (shape->order) {
	case BENCH_SCRAPE:
		return first + position;
	case BENCH_STRIDED:
		dealt(n, n < BENCH_STRIDE ? n : BENCH_STRIDE, position, &part, &in_part);
		return first + part_first(n, n < BENCH_STRIDE ? n : BENCH_STRIDE, part) + in_part;
	case BENCH_SHUFFLED:
		break;
	}
	return first + shuffled(n, position, mix2(shape->seed, round << 20 ^ tenant));
}

/* ---- samples ---- */

static bool chosen(uint64_t seed, uint64_t what, uint32_t ppm)
{
	return ppm > 0 && mix2(seed, what) % BENCH_MILLION < ppm;
}

bool bench_is_histogram(const struct bench_shape *shape, uint64_t slot)
{
	return chosen(shape->seed ^ 0x4849, slot, shape->histograms_ppm);
}

struct bench_sample bench_sample_of(const struct bench_shape *shape, uint64_t slot, uint64_t sent_round)
{
	struct bench_sample s = {.slot = slot, .round = sent_round};
	uint64_t other = sent_round ^ 1;
	if (other >= shape->first_round && other < shape->first_round + shape->rounds &&
		chosen(shape->seed ^ 0x6f6f, slot + (sent_round >> 1) * shape->series, shape->out_of_order_ppm))
		s.round = other;
	s.t = shape->start_ms + (int64_t)s.round * shape->step_ms;
	if (shape->churn_ppm) {
		/* In millionths of a generation; 128 bits hold any run. */
		unsigned __int128 age = (unsigned __int128)s.round * (uint64_t)shape->step_ms * shape->churn_ppm / 60000;
		age += mix2(shape->seed ^ 0x6368, slot / BENCH_TARGET_SERIES) % BENCH_MILLION;
		s.generation = (uint64_t)(age / BENCH_MILLION);
	}
	return s;
}

uint64_t bench_value_bits(const struct bench_shape *shape, const struct bench_sample *s)
{
	uint64_t id = s->slot + (s->generation << 40);
	switch (s->slot % 10) {
	case 0:
	case 1:
	case 2:
	case 3:
		return f64_bits((double)(mix(id ^ shape->seed) % 1000));
	case 9:
		return f64_bits(50 + (double)(mix(id * 1000003 + s->round + shape->seed) % 1000000) / 20000);
	default:
		return f64_bits((double)(s->round * (1 + mix(id) % 100)));
	}
}

/* ---- labels ---- */

enum { TEXT_BYTES = 80 }; /* a label's name and value are below this, so every length on the wire takes one byte */

struct label_text {
	const char *name;
	uint8_t n_name, n;
	char value[TEXT_BYTES];
};

static char *put_text(char *p, const char *s)
{
	size_t n = strlen(s);
	memcpy(p, s, n);
	return p + n;
}

static char *put_decimal(char *p, uint64_t x)
{
	char digits[20];
	size_t n = 0;
	do
		digits[n++] = (char)('0' + x % 10);
	while (x /= 10);
	while (n)
		*p++ = digits[--n];
	return p;
}

static char *put_hex8(char *p, uint32_t x)
{
	for (int shift = 28; shift >= 0; shift -= 4)
		*p++ = "0123456789abcdef"[x >> shift & 15];
	return p;
}

static const char *const metrics[10] = {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "http_requests_total",
	"http_request_duration_seconds_bucket", "node_network_receive_bytes_total", "kube_pod_status_ready", "go_memstats_heap_inuse_bytes",
	"process_open_fds", "rpc_durations_seconds_sum", "queue_depth"};

enum label_id { L_NAME, L_CLUSTER, L_CONTAINER, L_INSTANCE, L_JOB, L_NAMESPACE, L_NODE, L_POD, L_PROMETHEUS, L_SERIES, L_KINDS };
static const struct {
	const char *name;
	uint32_t least; /* shapes with at least so many labels have it */
} label_kinds[L_KINDS] = {{"__name__", 1}, {"cluster", 7}, {"container", 8}, {"instance", 3}, {"job", 4}, {"namespace", 6}, {"node", 9}, {"pod", 5},
	{"prometheus", 10}, {"series", 2}};

static char *put_value(char *p, enum label_id id, const struct bench_sample *s)
{
	uint64_t target = s->slot / BENCH_TARGET_SERIES, in_target = s->slot % BENCH_TARGET_SERIES;
	switch (id) {
	case L_NAME:
		p = put_text(p, metrics[s->slot % 10]);
		*p++ = '_';
		*p++ = (char)('0' + in_target / 100);
		*p++ = (char)('0' + in_target / 10 % 10);
		return p;
	case L_CLUSTER:
		return put_decimal(put_text(p, "eu-central-"), target % 3);
	case L_CONTAINER:
		return put_decimal(put_text(p, "worker-"), in_target % 7);
	case L_INSTANCE:
		p = put_decimal(put_text(p, "10."), target / 65536 % 256);
		*p++ = '.';
		p = put_decimal(p, target / 256 % 256);
		*p++ = '.';
		return put_text(put_decimal(p, target % 256), ":9100");
	case L_JOB:
		return put_decimal(put_text(p, "integrations/kubernetes/"), in_target % 5);
	case L_NAMESPACE:
		return put_decimal(put_text(p, "team-"), target % 20);
	case L_NODE:
		p = put_decimal(put_text(p, "ip-10-"), target / 256 % 256);
		*p++ = '-';
		return put_text(put_decimal(p, target % 256), ".compute.internal");
	case L_POD:
		p = put_decimal(put_text(p, "workload-"), target);
		*p++ = '-';
		return put_hex8(p, (uint32_t)mix(target + (s->generation << 40)));
	case L_PROMETHEUS:
		return put_text(p, "monitoring/k8s");
	case L_SERIES:
		p = put_decimal(p, s->slot);
		if (s->generation == 0)
			return p;
		*p++ = '-';
		return put_decimal(p, s->generation);
	case L_KINDS:
		break;
	}
	return p;
}

/* All labels of a series, sorted by name. `extra` holds the names beyond the usual ten. */
static uint32_t labels_of(const struct bench_shape *shape, const struct bench_sample *s, const char (*extra)[8], struct label_text *out)
{
	uint32_t n = 0;
	for (uint32_t id = 0; id < L_KINDS; id++) {
		if (shape->labels < label_kinds[id].least)
			continue;
		out[n].name = label_kinds[id].name;
		out[n].n_name = (uint8_t)strlen(label_kinds[id].name);
		out[n].n = (uint8_t)(put_value(out[n].value, (enum label_id)id, s) - out[n].value);
		n++;
	}
	for (uint32_t k = L_KINDS; k < shape->labels; k++, n++) {
		out[n].name = extra[k];
		out[n].n_name = (uint8_t)strlen(extra[k]);
		/* A few dozen values each, the same for all series of a target but for every third label. */
		uint64_t of = k % 3 ? s->slot / BENCH_TARGET_SERIES : s->slot;
		out[n].n = (uint8_t)(put_decimal(put_text(out[n].value, "value-"), mix2(k, of) % 40) - out[n].value);
	}
	return n;
}

static void extra_names(char (*extra)[8])
{
	for (unsigned k = L_KINDS; k < BENCH_LABELS_MAX; k++)
		snprintf(extra[k], sizeof extra[k], "tag_%02u", k + 1);
}

/* Label fields of 1.0 at p, which has room for BENCH_LABELS_MAX * 2 * TEXT_BYTES. */
static uint8_t *put_labels1(uint8_t *p, const struct label_text *l, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		*p++ = 0x0a;
		*p++ = (uint8_t)(4 + l[i].n_name + l[i].n);
		*p++ = 0x0a;
		*p++ = l[i].n_name;
		memcpy(p, l[i].name, l[i].n_name);
		p += l[i].n_name;
		*p++ = 0x12;
		*p++ = l[i].n;
		memcpy(p, l[i].value, l[i].n);
		p += l[i].n;
	}
	return p;
}

enum { LABELS_BYTES_MAX = BENCH_LABELS_MAX * 2 * TEXT_BYTES };

void bench_put_labels(const struct bench_shape *shape, const struct bench_sample *s, struct buf *out)
{
	char extra[BENCH_LABELS_MAX][8];
	struct label_text l[BENCH_LABELS_MAX];
	extra_names(extra);
	uint32_t n = labels_of(shape, s, extra, l);
	if (buf_reserve(out, LABELS_BYTES_MAX))
		out->n = (size_t)(put_labels1(out->p + out->n, l, n) - out->p);
}

/* ---- messages ---- */

struct symbol {
	uint32_t at, n; /* its text in `texts` */
	uint32_t hash;
};

struct bench_builder {
	struct bench_shape shape;
	char extra[BENCH_LABELS_MAX][8];
	struct label_text labels[BENCH_LABELS_MAX];
	struct buf message, series; /* series: 2.0's, which follow the symbols */
	/* 2.0's symbols of one request; slots hold a symbol's number + 1 */
	struct symbol *symbols;
	uint32_t n_symbols, cap_symbols;
	uint32_t *slots;
	uint32_t n_slots;
	struct buf texts;
};

errc bench_builder_open(const struct bench_shape *shape, struct bench_builder **out, struct err *err)
{
	errc rc = OK;
	struct bench_builder *b = calloc(1, sizeof *b);
	CHECK(b, ERR_NOMEM, "no memory to build requests");
	b->shape = *shape;
	extra_names(b->extra);
	buf_init(&b->message, GIB);
	buf_init(&b->series, GIB);
	buf_init(&b->texts, GIB);
	if (shape->version == 2) {
		b->n_slots = 4096;
		b->slots = calloc(b->n_slots, sizeof *b->slots);
		CHECK(b->slots, ERR_NOMEM, "no memory to build requests");
	}
	*out = b;
	return OK;
fail:
	bench_builder_close(b);
	return rc;
}

void bench_builder_close(struct bench_builder *b)
{
	if (!b)
		return;
	buf_free(&b->message);
	buf_free(&b->series);
	buf_free(&b->texts);
	free(b->symbols);
	free(b->slots);
	free(b);
}

static uint32_t text_hash(const char *p, size_t n)
{
	uint64_t h = n;
	for (; n >= 8; p += 8, n -= 8)
		h = (h ^ get_le64(p)) * UINT64_C(0x9e3779b97f4a7c15);
	for (; n; p++, n--)
		h = (h ^ (uint8_t)*p) * UINT64_C(0x9e3779b97f4a7c15);
	return (uint32_t)(mix(h) >> 32);
}

static bool slots_grow(struct bench_builder *b)
{
	uint32_t n = b->n_slots * 2;
	uint32_t *grown = calloc(n, sizeof *grown);
	if (!grown)
		return false;
	for (uint32_t k = 0; k < b->n_symbols; k++) {
		uint32_t i = b->symbols[k].hash & (n - 1);
		while (grown[i])
			i = (i + 1) & (n - 1);
		grown[i] = k + 1;
	}
	free(b->slots);
	b->slots = grown;
	b->n_slots = n;
	return true;
}

/* The number of a text among the request's symbols; UINT32_MAX: out of memory. */
static uint32_t symbol_of(struct bench_builder *b, const char *p, size_t n)
{
	uint32_t hash = text_hash(p, n), i = hash & (b->n_slots - 1);
	for (; b->slots[i]; i = (i + 1) & (b->n_slots - 1)) {
		const struct symbol *s = &b->symbols[b->slots[i] - 1];
		if (s->hash == hash && s->n == n && memcmp(b->texts.p + s->at, p, n) == 0)
			return b->slots[i] - 1;
	}
	if (b->n_symbols == b->cap_symbols) {
		uint32_t cap = b->cap_symbols ? b->cap_symbols * 2 : 1024;
		struct symbol *grown = realloc(b->symbols, cap * sizeof *grown);
		if (!grown)
			return UINT32_MAX;
		b->symbols = grown;
		b->cap_symbols = cap;
	}
	if (!buf_reserve(&b->texts, n + 1))
		return UINT32_MAX;
	b->symbols[b->n_symbols] = (struct symbol){(uint32_t)b->texts.n, (uint32_t)n, hash};
	buf_put(&b->texts, p, n);
	b->slots[i] = ++b->n_symbols;
	if (b->n_symbols > b->n_slots / 2 && !slots_grow(b))
		return UINT32_MAX;
	return b->n_symbols - 1;
}

static bool symbols_begin(struct bench_builder *b)
{
	memset(b->slots, 0, b->n_slots * sizeof *b->slots);
	b->n_symbols = 0;
	buf_clear(&b->texts);
	return symbol_of(b, "", 0) == 0;
}

/* Sample { 1 double value; 2 int64 timestamp }, the same in both versions. */
static void put_sample(struct buf *out, uint64_t bits, int64_t t)
{
	size_t at = pb_begin(out, 2);
	if (bits & ~(UINT64_C(1) << 63)) /* gogo compares with 0, so -0 is left out, too */
		pb_double_bits(out, 1, bits);
	if (t != 0)
		pb_uint(out, 2, (uint64_t)t);
	pb_end(out, at);
}

enum { HIST_BUCKETS = 8, HIST_SCHEMA = 3 };

/* A request duration's histogram: eight buckets in two runs around 100 ms that fill at speeds of their own. */
static void put_histogram(struct buf *out, uint32_t field, const struct bench_shape *shape, const struct bench_sample *s)
{
	uint64_t id = s->slot + (s->generation << 40), key = mix2(shape->seed ^ 0x6869, id);
	uint64_t zeros = (s->round + 1) * (key % 3), count = zeros, counts[HIST_BUCKETS];
	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		counts[i] = (s->round + 1) * (1 + mix2(key, i) % 20) + mix2(key ^ s->round, i) % 2;
		count += counts[i];
	}
	size_t at = pb_begin(out, field);
	pb_uint(out, 1, count);
	pb_double_bits(out, 3, f64_bits((double)count * 0.1 + (double)(key % 1000) / 1000 + 0.001));
	pb_sint(out, 4, HIST_SCHEMA);
	pb_double_bits(out, 5, UINT64_C(0x37f0000000000000)); /* 2^-128, the client libraries' zero bucket */
	pb_uint(out, 6, zeros);
	static const struct {
		int64_t offset;
		uint64_t length;
	} spans[] = {{-30, 5}, {2, 3}};
	for (unsigned i = 0; i < 2; i++) {
		size_t span = pb_begin(out, 11);
		pb_sint(out, 1, spans[i].offset);
		pb_uint(out, 2, spans[i].length);
		pb_end(out, span);
	}
	size_t deltas = pb_begin(out, 12);
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		buf_varint(out, (int64_t)(counts[i] - (i ? counts[i - 1] : 0)));
	pb_end(out, deltas);
	if (s->t != 0)
		pb_uint(out, 15, (uint64_t)s->t);
	pb_end(out, at);
}

static void put_series1(struct bench_builder *b, const struct bench_sample *s, bool histogram)
{
	struct buf *out = &b->message;
	uint32_t n = labels_of(&b->shape, s, (const char(*)[8])b->extra, b->labels);
	size_t at = pb_begin(out, 1);
	if (!buf_reserve(out, LABELS_BYTES_MAX))
		return;
	out->n = (size_t)(put_labels1(out->p + out->n, b->labels, n) - out->p);
	if (histogram)
		put_histogram(out, 4, &b->shape, s);
	else
		put_sample(out, bench_value_bits(&b->shape, s), s->t);
	pb_end(out, at);
}

static bool put_series2(struct bench_builder *b, const struct bench_sample *s, bool histogram)
{
	struct buf *out = &b->series;
	uint32_t n = labels_of(&b->shape, s, (const char(*)[8])b->extra, b->labels);
	size_t at = pb_begin(out, 5), refs = pb_begin(out, 1);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t name = symbol_of(b, b->labels[i].name, b->labels[i].n_name), value = symbol_of(b, b->labels[i].value, b->labels[i].n);
		if (name == UINT32_MAX || value == UINT32_MAX)
			return false;
		buf_uvarint(out, name);
		buf_uvarint(out, value);
	}
	pb_end(out, refs);
	if (histogram)
		put_histogram(out, 3, &b->shape, s);
	else
		put_sample(out, bench_value_bits(&b->shape, s), s->t);
	pb_bytes(out, 5, (struct span){"", 0}); /* the sender's struct has it by value, so it is always there */
	pb_end(out, at);
	return true;
}

errc bench_message(struct bench_builder *b, uint64_t round, uint64_t batch, struct span *out, struct err *err)
{
	errc rc = OK;
	const struct bench_shape *shape = &b->shape;
	struct bench_batch requested = bench_batch_at(shape, batch);
	buf_clear(&b->message);
	buf_clear(&b->series);
	CHECK(shape->version == 1 || symbols_begin(b), ERR_NOMEM, "no memory to build a request");
	for (uint64_t i = 0; i < requested.n; i++) {
		uint64_t slot = bench_slot(shape, requested.tenant, requested.first + i, round);
		struct bench_sample s = bench_sample_of(shape, slot, round);
		if (shape->version == 1)
			put_series1(b, &s, bench_is_histogram(shape, slot));
		else
			CHECK(put_series2(b, &s, bench_is_histogram(shape, slot)), ERR_NOMEM, "no memory to build a request");
	}
	if (shape->version == 2) {
		for (uint32_t k = 0; k < b->n_symbols; k++)
			pb_bytes(&b->message, 4, span_of(b->texts.p + b->symbols[k].at, b->symbols[k].n));
		buf_put(&b->message, b->series.p, b->series.n);
	}
	CHECK(!b->message.failed && !b->series.failed, ERR_NOMEM, "no memory to build a request of %" PRIu64 " series", requested.n);
	*out = span_of(b->message.p, b->message.n);
fail:
	return rc;
}

errc bench_body(struct bench_builder *b, uint64_t round, uint64_t batch, struct buf *out, size_t *message_bytes, struct err *err)
{
	errc rc = OK;
	struct span message;
	TRY(bench_message(b, round, batch, &message, err));
	buf_clear(out);
	TRY(snappy_encode(message, out, err));
	if (message_bytes)
		*message_bytes = message.n;
fail:
	return rc;
}

/* ---- bodies in files ---- */

enum { FILE_WRITE_BYTES = 1 << 20 };

errc bench_dump(const struct bench_shape *shape, const char *dir, uint64_t *bodies, uint64_t *bytes, struct err *err)
{
	errc rc = OK;
	struct bench_builder *b = NULL;
	struct buf body, file;
	int fd = -1;
	buf_init(&body, GIB);
	buf_init(&file, 2 * GIB);
	*bodies = *bytes = 0;
	TRY(bench_builder_open(shape, &b, err));
	TRY(io_mkdirs(dir, err));
	for (uint64_t round = shape->first_round; round < shape->first_round + shape->rounds; round++) {
		char path[4096];
		uint64_t at = 0, n = bench_batches(shape);
		CHECK((size_t)snprintf(path, sizeof path, "%s/round-%06" PRIu64 ".bodies", dir, round) < sizeof path, ERR_INVALID, "%s: too long",
			dir);
		TRY(io_open(path, IO_WRITE | IO_CREATE | IO_TRUNC, &fd, err));
		buf_clear(&file);
		buf_put(&file, BENCH_FILE_MAGIC, 8);
		for (uint64_t batch = 0; batch < n; batch++) {
			struct bench_batch of = bench_batch_at(shape, batch);
			TRY(bench_body(b, round, batch, &body, NULL, err));
			uint8_t head[16];
			put_le32(head, (uint32_t)shape->version);
			put_le32(head + 4, (uint32_t)of.n);
			put_le32(head + 8, (uint32_t)of.tenant);
			put_le32(head + 12, (uint32_t)body.n);
			buf_put(&file, head, sizeof head);
			buf_put(&file, body.p, body.n);
			CHECK(!file.failed, ERR_NOMEM, "%s: no memory to write it", path);
			*bytes += body.n;
			++*bodies;
			if (file.n >= FILE_WRITE_BYTES || batch + 1 == n) {
				TRY(io_pwrite(fd, file.p, file.n, at, err));
				at += file.n;
				buf_clear(&file);
			}
		}
		io_close(fd);
		fd = -1;
	}
fail:
	io_close(fd);
	bench_builder_close(b);
	buf_free(&body);
	buf_free(&file);
	return rc;
}
