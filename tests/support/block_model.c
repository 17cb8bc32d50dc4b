/* tests/support/block_model.c - blocks made up and read back, see block_model.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "tests/support/block_model.h"

uint64_t model_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * UINT64_C(0x2545f4914f6cdd1d);
}

void model_free(struct model *m)
{
	arena_free(&m->arena);
	*m = (struct model){0};
}

static int by_labels(const void *a, const void *b)
{
	return labels_cmp(((const struct model_series *)a)->labels, ((const struct model_series *)b)->labels);
}

struct chunk *model_encode(struct arena *arena, const struct chunk_sample *v, size_t n, int64_t range_ms, size_t *n_chunks)
{
	struct chunk *chunks = arena_calloc(arena, n, sizeof *chunks);
	struct chunk_cutter cutter = {0};
	struct xor_appender a;
	uint8_t *bytes = NULL;
	size_t k = 0;
	assert_non_null(chunks);
	xor_appender_init(&a);
	for (size_t i = 0; i < n; i++) {
		if (chunk_cutter_cut(&cutter, range_ms, a.n, a.n_bytes, i ? v[i - 1].t : 0, v[i].t)) {
			xor_appender_init(&a);
			bytes = arena_alloc(arena, 1024 + 2 * XOR_APPEND_MAX_BYTES);
			assert_non_null(bytes);
			chunks[k++] = (struct chunk){.mint = v[i].t, .enc = CHUNK_XOR};
		}
		xor_append(&a, bytes, v[i].t, v[i].v);
		chunks[k - 1].maxt = v[i].t;
		chunks[k - 1].data = span_of(bytes, a.n_bytes);
	}
	*n_chunks = k;
	return chunks;
}

PRINTF_LIKE(2, 3) static struct span text_make(struct arena *arena, const char *fmt, ...)
{
	char text[256];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return arena_dup(arena, span_of(text, (size_t)n));
}

static void labels_make(struct model *m, struct labels *l, size_t i, bool strange)
{
	struct arena *a = &m->arena;
	uint32_t n = 0, many = strange && i % 17 == 0 ? 40 : 0;
	l->v = arena_calloc(a, 8 + many, sizeof *l->v);
	assert_non_null(l->v);
	l->v[n++] = (struct label){SPAN("__name__"), text_make(a, "metric_%zu_total", i % 23)};
	l->v[n++] = (struct label){SPAN("id"), text_make(a, "%zu", i)};
	l->v[n++] = (struct label){SPAN("instance"), text_make(a, "host-%zu:9100", i / 23)};
	l->v[n++] = (struct label){SPAN("job"), SPAN("node")};
	if (strange && i % 5 == 0)
		l->v[n++] = (struct label){SPAN("stra\xc3\x9f"
						"e"),
			text_make(a, "\xe6\x97\xa5\xe6\x9c\xac %zu \xf0\x9f\x98\x80", i % 3)};
	if (strange && i % 7 == 0) {
		char *p = arena_alloc(a, 5000);
		assert_non_null(p);
		memset(p, 'a' + (int)(i % 26), 5000);
		l->v[n++] = (struct label){SPAN("long"), span_of(p, 5000)};
	}
	for (uint32_t k = 0; k < many; k++)
		l->v[n++] = (struct label){text_make(a, "z_%u", k), text_make(a, "%zu", i % 4)};
	l->n = n;
	labels_sort(*l);
}

void model_make(struct model *m, const struct model_config *cfg)
{
	uint64_t seed = cfg->seed ? cfg->seed : 1;
	*m = (struct model){.n = cfg->n_series, .mint = INT64_MAX, .maxt = INT64_MIN};
	arena_init(&m->arena, 4 * GIB);
	m->v = arena_calloc(&m->arena, m->n, sizeof *m->v);
	struct chunk_sample *s = malloc(cfg->samples * sizeof *s);
	assert_true(m->v && s);
	for (size_t i = 0; i < m->n; i++) {
		labels_make(m, &m->v[i].labels, i, cfg->strange);
		int64_t t = cfg->start_ms + (int64_t)(i % 7);
		uint64_t count = i;
		for (uint32_t k = 0; k < cfg->samples; k++) {
			count += model_random(&seed) % 10;
			s[k] = (struct chunk_sample){t, cfg->nasty ? model_random(&seed) : f64_bits((double)count)};
			t += cfg->step_ms + (cfg->nasty ? (int64_t)(model_random(&seed) % 50) : 0);
		}
		m->v[i].chunks = model_encode(&m->arena, s, cfg->samples, cfg->range_ms, &m->v[i].n);
		if (s[0].t < m->mint)
			m->mint = s[0].t;
		if (s[cfg->samples - 1].t >= m->maxt)
			m->maxt = s[cfg->samples - 1].t + 1;
	}
	free(s);
	qsort(m->v, m->n, sizeof *m->v, by_labels);
}

struct known_pair {
	struct label label;
	uint64_t shuffled;
};

static int by_pair(const void *a, const void *b)
{
	const struct known_pair *x = a, *y = b;
	int c = span_cmp(x->label.name, y->label.name);
	return c ? c : span_cmp(x->label.value, y->label.value);
}

static int by_shuffled(const void *a, const void *b)
{
	const struct known_pair *x = a, *y = b;
	return x->shuffled < y->shuffled ? -1 : x->shuffled > y->shuffled;
}

static errc write_by_pairs(struct model *m, struct block_writer *w, struct err *err)
{
	errc rc = OK;
	uint64_t seed = 99;
	uint32_t *ranks = NULL, pairs[256];
	size_t n = 0;
	for (size_t i = 0; i < m->n; i++)
		n += m->v[i].labels.n;
	struct known_pair *v = malloc((n + 3) * sizeof *v);
	assert_non_null(v);
	n = 0;
	for (size_t i = 0; i < m->n; i++)
		for (uint32_t k = 0; k < m->v[i].labels.n; k++)
			v[n++].label = m->v[i].labels.v[k];
	v[n++].label = (struct label){SPAN("__name__"), SPAN("nobody has it")};
	v[n++].label = (struct label){SPAN("aaa"), SPAN("nobody has it")};
	v[n++].label = (struct label){SPAN("zzzz"), SPAN("up")};
	qsort(v, n, sizeof *v, by_pair);
	size_t distinct = 0;
	for (size_t i = 0; i < n; i++)
		if (i == 0 || by_pair(&v[i], &v[distinct - 1]) != 0)
			v[distinct++] = v[i];
	for (size_t i = 0; i < distinct; i++)
		v[i].shuffled = model_random(&seed);
	qsort(v, distinct, sizeof *v, by_shuffled);
	for (size_t i = 0; i < distinct; i++)
		TRY(block_writer_pair(w, v[i].label, err));
	TRY(block_writer_pairs_end(w, &ranks, err));
	qsort(v, distinct, sizeof *v, by_pair);
	for (size_t i = 0; i < m->n; i++) {
		const struct model_series *s = &m->v[i];
		for (uint32_t k = 0; k < s->labels.n; k++) {
			struct known_pair key = {.label = s->labels.v[k]};
			const struct known_pair *at = bsearch(&key, v, distinct, sizeof *v, by_pair);
			assert_true(at && k < 256);
			pairs[k] = (uint32_t)(at - v);
		}
		TRY(block_writer_add_pairs(w, pairs, s->labels.n, s->chunks, s->n, err));
	}
fail:
	free(ranks);
	free(v);
	return rc;
}

errc model_write(
	struct model *m, const char *dir, struct ulid ulid, uint64_t segment_bytes, struct block_meta *meta, uint64_t *bytes, struct err *err)
{
	static struct label ext[] = {{{"replica", 7}, {"a", 1}}, {{"tenant_id", 9}, {"default-tenant", 14}}};
	struct block_writer_config cfg = {.dir = dir, .ulid = ulid, .chunk_segment_bytes = segment_bytes, .arena = &m->arena};
	struct block_writer *w = NULL;
	*meta = (struct block_meta){.mint = m->mint,
		.maxt = m->maxt,
		.level = 1,
		.has_thanos = true,
		.ext_labels = {ext, 2},
		.source = SPAN("receive"),
		.has_varve = true,
		.window = ulid,
		.upto_seq = UINT64_MAX,
		.node = SPAN("node-1")};
	errc rc = block_writer_open(&cfg, &w, err);
	if (rc)
		return rc;
	if (m->by_pairs)
		rc = write_by_pairs(m, w, err);
	for (size_t i = 0; i < m->n && rc == OK && !m->by_pairs; i++)
		rc = block_writer_add(w, m->v[i].labels, m->v[i].chunks, m->v[i].n, err);
	if (rc) {
		block_writer_abort(w);
		return rc;
	}
	return block_writer_finish(w, meta, bytes, err);
}

/* ---- the slow reader ---- */

static void crc_assert(struct span all, uint64_t from, uint64_t n)
{
	assert_true(from + n + 4 <= all.n);
	assert_int_equal(crc32c(0, all.p + from, n), get_be32(all.p + from + n));
}

static struct span file_read(struct model *m, const char *dir, const char *name)
{
	struct span s = {0};
	struct err err = {0};
	const char *path = arena_printf(&m->arena, "%s/%s", dir, name);
	assert_non_null(path);
	if (io_read_file(path, (size_t)1 << 31, &m->arena, &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

static void segments_read(struct model *m, const char *dir)
{
	char **names;
	struct err err = {0};
	const char *path = arena_printf(&m->arena, "%s/chunks", dir);
	assert_int_equal(io_listdir(path, &m->arena, &names, &m->n_segments, &err), OK);
	m->segments = arena_calloc(&m->arena, m->n_segments, sizeof *m->segments);
	for (size_t i = 0; i < m->n_segments; i++) {
		char want[32];
		snprintf(want, sizeof want, "%06zu", i + 1);
		assert_string_equal(names[i], want);
		m->segments[i] = file_read(m, path, names[i]);
		assert_true(m->segments[i].n >= 8);
		assert_memory_equal(m->segments[i].p, "\x85\xbd\x40\xdd\1\0\0\0", 8);
	}
}

static void chunk_read(struct model *m, uint64_t ref, struct chunk *c)
{
	assert_true(ref >> 32 < m->n_segments);
	struct span seg = m->segments[ref >> 32];
	uint64_t off = ref & UINT32_MAX;
	assert_true(off >= 8 && off < seg.n);
	struct rd r = rd_of(seg.p + off, seg.n - off);
	uint64_t n = rd_uvarint(&r);
	uint64_t at = (uint64_t)(r.p - (const uint8_t *)seg.p);
	c->enc = rd_u8(&r);
	c->data = rd_bytes(&r, n);
	assert_true(r.ok);
	crc_assert(seg, at, n + 1);
}

static struct span *symbols_read(struct model *m, uint32_t *n)
{
	uint32_t len = get_be32(m->index.p + m->toc.symbols);
	crc_assert(m->index, m->toc.symbols + 4, len);
	struct rd r = rd_of(m->index.p + m->toc.symbols + 4, len);
	*n = rd_be32(&r);
	struct span *v = arena_calloc(&m->arena, *n, sizeof *v);
	assert_non_null(v);
	for (uint32_t i = 0; i < *n; i++) {
		v[i] = rd_str(&r);
		assert_true(i == 0 || span_cmp(v[i - 1], v[i]) < 0);
	}
	assert_true(r.ok && rd_left(&r) == 0);
	assert_int_equal(m->toc.series, m->toc.symbols + 4 + len + 4);
	return v;
}

static uint64_t varint_at(struct rd *r)
{
	return (uint64_t)rd_varint(r);
}

static void series_read(struct model *m, const struct span *symbols, uint32_t n_symbols, uint32_t **refs)
{
	size_t cap = 16;
	struct model_series *v = malloc(cap * sizeof *v);
	uint32_t *ref = malloc(cap * sizeof *ref);
	uint64_t at = m->toc.series, chunk_before = 0;
	m->n = 0;
	m->mint = INT64_MAX;
	m->maxt = INT64_MIN;
	for (;;) {
		uint64_t aligned = (at + 15) / 16 * 16;
		if (aligned >= m->toc.label_index)
			break;
		for (; at < aligned; at++)
			assert_int_equal(m->index.p[at], 0);
		struct rd r = rd_of(m->index.p + at, m->index.n - at);
		uint64_t len = rd_uvarint(&r);
		uint64_t body_at = (uint64_t)(r.p - (const uint8_t *)m->index.p);
		crc_assert(m->index, body_at, len);
		struct rd b = rd_of(r.p, len);
		if (m->n == cap) {
			cap *= 2;
			v = realloc(v, cap * sizeof *v);
			ref = realloc(ref, cap * sizeof *ref);
			assert_true(v && ref);
		}
		struct model_series *s = &v[m->n];
		ref[m->n] = (uint32_t)(at / 16);
		s->labels.n = (uint32_t)rd_uvarint(&b);
		s->labels.v = arena_calloc(&m->arena, s->labels.n, sizeof *s->labels.v);
		for (uint32_t i = 0; i < s->labels.n; i++) {
			uint64_t name = rd_uvarint(&b), value = rd_uvarint(&b);
			assert_true(name < n_symbols && value < n_symbols);
			s->labels.v[i] = (struct label){symbols[name], symbols[value]};
			assert_true(i == 0 || span_cmp(s->labels.v[i - 1].name, symbols[name]) < 0);
		}
		s->n = rd_uvarint(&b);
		assert_true(s->n > 0);
		s->chunks = arena_calloc(&m->arena, s->n, sizeof *s->chunks);
		uint64_t maxt = 0, chunk_ref = 0;
		for (size_t i = 0; i < s->n; i++) {
			uint64_t mint = i ? maxt + rd_uvarint(&b) : varint_at(&b);
			assert_true(i == 0 || (int64_t)mint > (int64_t)maxt);
			maxt = mint + rd_uvarint(&b);
			chunk_ref = i ? chunk_ref + varint_at(&b) : rd_uvarint(&b);
			assert_true(chunk_ref > chunk_before);
			chunk_before = chunk_ref;
			s->chunks[i].mint = (int64_t)mint;
			s->chunks[i].maxt = (int64_t)maxt;
			chunk_read(m, chunk_ref, &s->chunks[i]);
		}
		assert_true(b.ok && rd_left(&b) == 0);
		assert_true(m->n == 0 || labels_cmp(v[m->n - 1].labels, s->labels) < 0);
		if (s->chunks[0].mint < m->mint)
			m->mint = s->chunks[0].mint;
		if ((int64_t)maxt >= m->maxt)
			m->maxt = (int64_t)maxt + 1;
		m->n++;
		at = body_at + len + 4;
	}
	m->v = arena_calloc(&m->arena, m->n, sizeof *m->v);
	memcpy(m->v, v, m->n * sizeof *v);
	free(v);
	*refs = ref;
}

/* Each list holds exactly the series that have the pair; all pairs have one. */
static void postings_read(struct model *m, const uint32_t *refs)
{
	uint32_t len = get_be32(m->index.p + m->toc.table);
	crc_assert(m->index, m->toc.table + 4, len);
	assert_int_equal(m->toc.table + 4 + len + 4 + 52, m->index.n);
	struct rd r = rd_of(m->index.p + m->toc.table + 4, len);
	uint32_t n = rd_be32(&r);
	struct label before = {0};
	uint64_t seen = 0, want = 0;
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(rd_uvarint(&r), 2);
		struct label l;
		l.name = rd_str(&r);
		l.value = rd_str(&r);
		uint64_t off = rd_uvarint(&r);
		assert_true(r.ok && off % 4 == 0 && off >= m->toc.postings && off < m->toc.table);
		if (i == 0)
			assert_true(l.name.n == 0 && l.value.n == 0);
		else
			assert_true(span_cmp(before.name, l.name) < 0 || (span_eq(before.name, l.name) && span_cmp(before.value, l.value) < 0));
		before = l;
		uint32_t bytes = get_be32(m->index.p + off), count = get_be32(m->index.p + off + 4);
		assert_int_equal(bytes, 4 + 4 * count);
		crc_assert(m->index, off + 4, bytes);
		uint32_t k = 0;
		for (size_t s = 0; s < m->n; s++) {
			if (i > 0 && !span_eq(labels_get(m->v[s].labels, l.name), l.value))
				continue;
			assert_true(k < count);
			assert_int_equal(get_be32(m->index.p + off + 8 + 4 * k), refs[s]);
			k++;
		}
		assert_int_equal(k, count);
		if (i > 0)
			seen += count;
	}
	assert_true(r.ok && rd_left(&r) == 0);
	for (size_t s = 0; s < m->n; s++)
		want += m->v[s].labels.n;
	assert_int_equal(seen, want);
}

void model_read(struct model *m, const char *block_dir)
{
	*m = (struct model){0};
	arena_init(&m->arena, 4 * GIB);
	m->index = file_read(m, block_dir, "index");
	segments_read(m, block_dir);
	assert_true(m->index.n > 57);
	assert_memory_equal(m->index.p, "\xba\xaa\xd7\0\2", 5);
	const char *toc = m->index.p + m->index.n - 52;
	crc_assert(m->index, m->index.n - 52, 48);
	m->toc.symbols = get_be64(toc);
	m->toc.series = get_be64(toc + 8);
	m->toc.label_index = get_be64(toc + 16);
	m->toc.label_table = get_be64(toc + 24);
	m->toc.postings = get_be64(toc + 32);
	m->toc.table = get_be64(toc + 40);
	assert_int_equal(m->toc.symbols, 5);
	assert_true(m->toc.series < m->toc.label_index && m->toc.label_index <= m->toc.postings && m->toc.postings < m->toc.table);
	uint32_t n_symbols, *refs;
	struct span *symbols = symbols_read(m, &n_symbols);
	series_read(m, symbols, n_symbols, &refs);
	postings_read(m, refs);
	free(refs);
}

void model_assert_equal(const struct model *a, const struct model *b)
{
	assert_int_equal(a->n, b->n);
	for (size_t i = 0; i < a->n; i++) {
		const struct model_series *x = &a->v[i], *y = &b->v[i];
		assert_true(labels_eq(x->labels, y->labels));
		assert_int_equal(x->n, y->n);
		for (size_t k = 0; k < x->n; k++) {
			assert_true(x->chunks[k].mint == y->chunks[k].mint && x->chunks[k].maxt == y->chunks[k].maxt);
			assert_int_equal(x->chunks[k].enc, y->chunks[k].enc);
			assert_true(span_eq(x->chunks[k].data, y->chunks[k].data));
		}
	}
}
