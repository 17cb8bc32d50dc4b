/* Where the series of a request are in the ring, whatever their spelling and version; its own bytes to send on; and this node's share of it. Requests are random: seeds are printed. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <xxhash.h>
#include "base/io.h"
#include "base/limits.h"
#include "ingest/ingest_int.h"

enum { SERIES_MAX = 40, LABELS_MAX = 30, TEXT_MAX = 400, METADATA_MAX = 5, ROUNDS = 400 };

static uint64_t state;

static uint64_t below(uint64_t n)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (state * UINT64_C(0x2545F4914F6CDD1D) >> 11) % n;
}

struct text {
	char p[TEXT_MAX];
	size_t n;
};

/* A request as it was meant. */
struct want {
	struct text name[SERIES_MAX][LABELS_MAX], value[SERIES_MAX][LABELS_MAX], family[METADATA_MAX];
	uint32_t n_labels[SERIES_MAX], n_samples[SERIES_MAX], n_exemplars[SERIES_MAX];
	uint32_t n_series, n_metadata;
	struct buf body;
	size_t series_at[SERIES_MAX][2], metadata_at[METADATA_MAX][2]; /* from, to */
	struct buf symbols;					       /* 2.0: what all symbol fields say, one behind the other */
};
static struct want w;

static struct span span_text(const struct text *t)
{
	return span_of(t->p, t->n);
}

static void random_text(struct text *t, uint64_t max)
{
	t->n = below(max);
	for (size_t i = 0; i < t->n; i++)
		t->p[i] = (char)('a' + below(26));
	if (t->n > 4 && below(8) == 0)
		memcpy(t->p, "\xc3\xa9", 2); /* not ASCII, and UTF-8 */
}

static void random_request(void)
{
	w.n_series = (uint32_t)below(SERIES_MAX);
	w.n_metadata = (uint32_t)below(METADATA_MAX);
	for (uint32_t i = 0; i < w.n_series; i++) {
		w.n_labels[i] = (uint32_t)below(LABELS_MAX);
		w.n_samples[i] = (uint32_t)below(4);
		w.n_exemplars[i] = (uint32_t)below(3);
		for (uint32_t k = 0; k < w.n_labels[i]; k++) {
			random_text(&w.name[i][k], 40);
			random_text(&w.value[i][k], below(4) ? 60 : TEXT_MAX);
		}
	}
	for (uint32_t i = 0; i < w.n_metadata; i++)
		random_text(&w.family[i], 40);
}

static void put_label(struct buf *b, uint32_t i, uint32_t k)
{
	size_t label = pb_begin(b, 1);
	bool turned = below(10) == 0;
	if (turned)
		pb_bytes(b, 2, span_text(&w.value[i][k]));
	if (w.name[i][k].n > 0 || below(2))
		pb_bytes(b, 1, span_text(&w.name[i][k]));
	if (!turned && (w.value[i][k].n > 0 || below(2)))
		pb_bytes(b, 2, span_text(&w.value[i][k]));
	if (below(20) == 0)
		pb_uint(b, 9, 7); /* unknown */
	pb_end(b, label);
}

static void put_sample(struct buf *b, uint32_t i, uint32_t k)
{
	size_t sample = pb_begin(b, 2);
	pb_double_bits(b, 1, i + 1);
	pb_uint(b, 2, 1000 + k);
	pb_end(b, sample);
}

static void body_1(void)
{
	struct buf *b = &w.body;
	uint32_t metadata = 0;
	buf_clear(b);
	for (uint32_t i = 0; i < w.n_series; i++) {
		if (metadata < w.n_metadata && below(4) == 0) {
			w.metadata_at[metadata][0] = b->n;
			size_t m = pb_begin(b, 3);
			pb_bytes(b, 2, span_text(&w.family[metadata]));
			pb_end(b, m);
			w.metadata_at[metadata++][1] = b->n;
		}
		if (below(10) == 0)
			pb_uint(b, 12, 5);
		w.series_at[i][0] = b->n;
		size_t series = pb_begin(b, 1);
		uint32_t behind = below(10) == 0 && w.n_labels[i] > 0; /* a label behind the samples */
		for (uint32_t k = 0; k < w.n_labels[i] - behind; k++)
			put_label(b, i, k);
		for (uint32_t k = 0; k < w.n_samples[i]; k++)
			put_sample(b, i, k);
		if (behind)
			put_label(b, i, w.n_labels[i] - 1);
		pb_end(b, series);
		w.series_at[i][1] = b->n;
		w.n_exemplars[i] = 0;
	}
	w.n_metadata = metadata;
	assert_false(b->failed);
}

static void put_symbol(struct span text)
{
	size_t from = w.body.n;
	pb_bytes(&w.body, 4, text);
	buf_put(&w.symbols, w.body.p + from, w.body.n - from);
}

static void body_2(void)
{
	struct buf *b = &w.body, refs = {.max = MIB};
	uint32_t symbol = 1;
	bool apart = below(3) == 0; /* symbols between the series, those of a series in front of it */
	buf_clear(b);
	buf_clear(&w.symbols);
	put_symbol(SPAN(""));
	for (uint32_t pass = apart; pass < 2; pass++)
		for (uint32_t i = 0; i < w.n_series; i++) {
			for (uint32_t k = 0; pass == apart && k < w.n_labels[i]; k++) {
				put_symbol(span_text(&w.name[i][k]));
				put_symbol(span_text(&w.value[i][k]));
			}
			if (pass == 0)
				continue;
			w.series_at[i][0] = b->n;
			size_t series = pb_begin(b, 5);
			buf_clear(&refs);
			for (uint32_t k = 0; k < 2 * w.n_labels[i]; k++)
				buf_uvarint(&refs, symbol++);
			pb_bytes(b, 1, span_of(refs.p ? (const char *)refs.p : "", refs.n));
			for (uint32_t k = 0; k < w.n_samples[i]; k++)
				put_sample(b, i, k);
			for (uint32_t k = 0; k < w.n_exemplars[i]; k++) {
				size_t x = pb_begin(b, 4);
				pb_double_bits(b, 2, k);
				pb_uint(b, 3, 1000 + k);
				pb_end(b, x);
			}
			pb_end(b, series);
			w.series_at[i][1] = b->n;
		}
	w.n_metadata = 0;
	assert_false(b->failed || w.symbols.failed);
	buf_free(&refs);
}

static void decode(enum rw_version version, struct arena *arena, struct rw_request *rw, struct ingest_part *part)
{
	const struct rw_limits limits = {SERIES_MAX, 1000, LIMIT_LABELS_DECODE};
	struct err err = {0};
	struct span body = span_of(w.body.p ? (const char *)w.body.p : "", w.body.n);
	if ((version == RW_2 ? rw2_decode : rw1_decode)(body, &limits, arena, rw, &err) != OK)
		fail_msg("%s", err.msg);
	assert_int_equal(rw->n_series, w.n_series);
	*part = (struct ingest_part){
		.tenant = SPAN("team-a"), .version = version, .body = body, .rw = rw, .n_items = w.n_series + (version == RW_1 ? w.n_metadata : 0)};
}

/* ---- what must come of it ---- */

static uint64_t hash_of(const struct text *names, const struct text *values, uint32_t n)
{
	static char all[2 * LABELS_MAX * (TEXT_MAX + 1) + 16];
	size_t at = 0;
	memcpy(all, "team-a\xff", 7);
	at = 7;
	for (uint32_t k = 0; k < 2 * n; k++) {
		const struct text *t = k % 2 ? &values[k / 2] : &names[k / 2];
		memcpy(all + at, t->p, t->n);
		at += t->n;
		all[at++] = '\xff';
	}
	return XXH64(all, at, 0);
}

static void check_places(const struct ingest_part *part, struct arena *arena)
{
	uint64_t hashes[SERIES_MAX + METADATA_MAX];
	struct err err = {0};
	static const struct text name = {"__name__", 8};
	if (ingest_places(part, arena, hashes, &err) != OK)
		fail_msg("%s", err.msg);
	for (uint32_t i = 0; i < w.n_series; i++)
		assert_true(hashes[i] == hash_of(w.name[i], w.value[i], w.n_labels[i]));
	for (uint32_t i = 0; i < w.n_metadata; i++)
		assert_true(hashes[w.n_series + i] == hash_of(&name, &w.family[i], 1));
}

static void check_slice(struct span s, const size_t at[2])
{
	assert_ptr_equal(s.p, w.body.p + at[0]);
	assert_int_equal(s.n, at[1] - at[0]);
}

static void check_slices(const struct ingest_part *part, struct arena *arena)
{
	struct rw_slices s;
	struct err err = {0};
	assert_int_equal(rw_slices(part->body, part->version, part->rw, arena, &s, &err), OK);
	for (uint32_t i = 0; i < w.n_series; i++)
		check_slice(s.series[i], w.series_at[i]);
	for (uint32_t i = 0; i < w.n_metadata; i++)
		check_slice(s.metadata[i], w.metadata_at[i]);
	if (part->version != RW_2)
		return;
	struct buf all = {.max = 64 * MIB};
	for (size_t i = 0; i < s.n_symbols; i++)
		buf_put(&all, s.symbols[i].p, s.symbols[i].n);
	assert_int_equal(all.n, w.symbols.n);
	assert_memory_equal(all.p, w.symbols.p, all.n);
	assert_true(s.n_symbols <= 1 + w.n_series);
	buf_free(&all);
}

static void check_share(const struct ingest_part *part, struct arena *arena)
{
	uint32_t items[SERIES_MAX + METADATA_MAX], n = 0, first = (uint32_t)below(1000), n_series = 0, samples = 0, exemplars = 0;
	struct ingest_part own;
	struct err err = {0};
	for (uint32_t i = 0; i < part->n_items; i++)
		if (below(3))
			items[n++] = first + i;
	assert_int_equal(ingest_share_of(part, items, n, first, arena, &own, &err), OK);
	assert_int_equal(own.n_items, n);
	for (uint32_t i = 0; i < n && items[i] - first < w.n_series; i++, n_series++) {
		const struct rw_series *was = &part->rw->series[items[i] - first], *now = &own.rw->series[i];
		assert_int_equal(now->n_labels, was->n_labels);
		assert_int_equal(now->n_samples, was->n_samples);
		assert_int_equal(now->n_exemplars, was->n_exemplars);
		for (uint32_t k = 0; k < was->n_samples; k++) {
			assert_int_equal(own.rw->samples[now->first_sample + k].v, part->rw->samples[was->first_sample + k].v);
			assert_int_equal(own.rw->samples[now->first_sample + k].t, 1000 + k);
		}
		samples += was->n_samples;
		exemplars += was->n_exemplars;
	}
	assert_int_equal(own.rw->n_series, n_series);
	assert_int_equal(own.rw->n_samples, samples);
	assert_int_equal(own.rw->n_exemplars, exemplars);
	if (part->version == RW_1) {
		assert_int_equal(own.rw->n_metadata, n - n_series);
		for (uint32_t i = n_series; i < n; i++)
			assert_true(span_eq(own.rw->metadata[i - n_series].family, span_text(&w.family[items[i] - first - w.n_series])));
	}
}

static void random_requests(void **st)
{
	(void)st;
	struct arena arena;
	arena_init(&arena, 256 * MIB);
	buf_init(&w.body, 64 * MIB);
	buf_init(&w.symbols, 64 * MIB);
	for (int round = 0; round < ROUNDS; round++) {
		enum rw_version version = round % 2 ? RW_2 : RW_1;
		struct rw_request rw;
		struct ingest_part part;
		random_request();
		version == RW_2 ? body_2() : body_1();
		decode(version, &arena, &rw, &part);
		check_places(&part, &arena);
		check_slices(&part, &arena);
		check_share(&part, &arena);
		arena_reset(&arena);
	}
	buf_free(&w.body);
	buf_free(&w.symbols);
	arena_free(&arena);
}

/* What is wrong with labels is found before anything is sent, with the id that a node alone would give. */
static void bad_labels(void **st)
{
	(void)st;
	const struct {
		struct span label;
		const char *id;
	} cases[] = {
		{SPAN("\x0a\x01\xff\x12\x01x"), "err-varve-label-utf8"}, {SPAN("\x0a\x08__name__\x12\x01\xff"), "err-varve-label-utf8"},
		{SPAN("\x0a\x01"
		      "a\x12\x05x"),
			"err-varve-protobuf"},
		{SPAN("\x0a\x7f"), "err-varve-protobuf"},
		{SPAN("\x0a\x01"
		      "a\x12\x01\xff"),
			NULL}, /* a value may be any bytes here: the head refuses that series alone */
	};
	struct arena arena;
	arena_init(&arena, MIB);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct buf b = {.max = 1000};
		struct rw_series s = {.n_labels = 1};
		struct rw_request rw = {.series = &s, .n_series = 1};
		const struct ingest_part part = {.tenant = SPAN("t"), .version = RW_1, .rw = &rw, .n_items = 1};
		uint64_t hash;
		struct err err = {0};
		pb_bytes(&b, 1, cases[i].label);
		s.wire = span_of(b.p, b.n);
		errc rc = ingest_places(&part, &arena, &hash, &err);
		assert_int_equal(rc, cases[i].id ? ERR_INVALID : OK);
		if (cases[i].id)
			assert_string_equal(err.id, cases[i].id);
		buf_free(&b);
	}
	arena_free(&arena);
}

int main(void)
{
	const char *s = getenv("VARVE_SEED");
	state = s ? strtoull(s, NULL, 10) : io_random_u64();
	state = state ? state : 1;
	printf("VARVE_SEED=%" PRIu64 "\n", state);
	const struct CMUnitTest tests[] = {cmocka_unit_test(random_requests), cmocka_unit_test(bad_labels)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
