/* --tenant.split-label, held against a model that is told what each series says: who gets it, what is left of its labels, and that its samples, histograms, exemplars
 * and metadata come with it; in both versions, and as it is sent on to peers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/labels.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "ingest/ingest_int.h"
#include "tests/support/fail_alloc.h"

#define LABEL "team"

static uint64_t rnd(uint64_t *r)
{
	*r ^= *r << 13;
	*r ^= *r >> 7;
	*r ^= *r << 17;
	return *r;
}

/* ---- requests ---- */

enum { LABELS_MAX = 8, SERIES_MAX = 3000, SYMBOLS_MAX = 8192 };

struct want {
	struct label labels[LABELS_MAX]; /* as sent */
	uint32_t n_labels;
	struct span tenant; /* n 0: the request's */
	bool valid;
	uint32_t n_samples, n_exemplars, n_hists;
	bool metadata;
	size_t at; /* where its field begins */
	struct span slice;
};

struct lab {
	uint64_t r;
	enum rw_version version;
	struct arena arena;
	struct want *series;
	size_t n;
	size_t n_metadata; /* 1.0 */
	struct span symbols[SYMBOLS_MAX];
	uint32_t n_symbols;
	struct span body;
};

static char *text(struct lab *l, const char *fmt, ...) PRINTF_LIKE(2, 3);
static char *text(struct lab *l, const char *fmt, ...)
{
	char buf[400];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(buf, sizeof buf, fmt, ap);
	va_end(ap);
	return arena_cstr(&l->arena, span_cstr(buf));
}

static uint32_t symbol(struct lab *l, struct span s)
{
	for (uint32_t i = 0; i < l->n_symbols; i++)
		if (span_eq(l->symbols[i], s))
			return i;
	assert_true(l->n_symbols < SYMBOLS_MAX);
	l->symbols[l->n_symbols] = s;
	return l->n_symbols++;
}

static struct span tenant_for(struct lab *l, struct want *w)
{
	static const char *const bad[] = {"..", ".", "../../etc", "a/b", "a b", "\xff", ".x", "tenant id"};
	uint64_t k = rnd(&l->r) % 20;
	w->valid = k != 0;
	if (k == 0)
		return span_cstr(bad[rnd(&l->r) % 8]);
	return span_cstr(text(l, "t%d", (int)(rnd(&l->r) % (k < 4 ? 3 : 200))));
}

static void series_invent(struct lab *l, struct want *w, size_t i)
{
	uint64_t kind = rnd(&l->r) % 8, at = rnd(&l->r) % 3;
	memset(w, 0, sizeof *w);
	w->valid = true;
	w->n_samples = (uint32_t)(rnd(&l->r) % 3);
	w->n_exemplars = (uint32_t)(rnd(&l->r) % 4 == 0);
	w->n_hists = (uint32_t)(rnd(&l->r) % 5 == 0);
	w->metadata = rnd(&l->r) % 3 == 0;
	for (uint64_t k = 0; k < 4; k++) {
		if (k == at && kind > 1) {
			struct span t = tenant_for(l, w);
			w->tenant = t;
			w->labels[w->n_labels++] = (struct label){SPAN(LABEL), t};
			if (kind == 2) /* twice: the first counts, both go */
				w->labels[w->n_labels++] = (struct label){SPAN(LABEL), SPAN("other")};
		}
		if (k == at && kind == 1)
			w->labels[w->n_labels++] = (struct label){SPAN(LABEL), SPAN("")};
		w->labels[w->n_labels++] = k == 1 ? (struct label){SPAN("__name__"), span_cstr(text(l, "m%d", (int)(i % 7)))}
						  : (struct label){span_cstr(text(l, "l%d", (int)k)), span_cstr(text(l, "v%zu", i * (k == 2)))};
	}
}

/* A TimeSeries' fields: labels in both spellings that there are. */
static void series_put(struct lab *l, const struct want *w, size_t i, struct buf *b)
{
	size_t m = pb_begin(b, l->version == RW_2 ? 5 : 1);
	if (l->version == RW_2) {
		size_t refs = pb_begin(b, 1);
		for (uint32_t k = 0; k < w->n_labels; k++) {
			buf_uvarint(b, symbol(l, w->labels[k].name));
			buf_uvarint(b, symbol(l, w->labels[k].value));
		}
		pb_end(b, refs);
	} else
		for (uint32_t k = 0; k < w->n_labels; k++) {
			/* not in one run, sometimes */
			if (k == 2 && i % 5 == 0)
				pb_uint(b, 77, 1);
			size_t label = pb_begin(b, 1);
			pb_bytes(b, 1, w->labels[k].name);
			pb_bytes(b, 2, w->labels[k].value);
			pb_end(b, label);
		}
	for (uint32_t k = 0; k < w->n_samples; k++) {
		size_t s = pb_begin(b, 2);
		pb_double_bits(b, 1, f64_bits((double)i));
		pb_uint(b, 2, 1000 * i + k + 1);
		pb_end(b, s);
	}
	for (uint32_t k = 0; k < w->n_hists; k++) {
		size_t h = pb_begin(b, l->version == RW_2 ? 3 : 4);
		pb_uint(b, 1, 7);
		pb_double_bits(b, 3, f64_bits((double)i));
		pb_uint(b, 6, 7);
		pb_uint(b, 15, 1000 * i + 500);
		pb_end(b, h);
	}
	for (uint32_t k = 0; k < w->n_exemplars; k++) {
		size_t e = pb_begin(b, l->version == RW_2 ? 4 : 3);
		if (l->version == RW_2) {
			size_t refs = pb_begin(b, 1);
			buf_uvarint(b, symbol(l, SPAN("trace_id")));
			buf_uvarint(b, symbol(l, span_cstr(text(l, "trace %zu", i))));
			pb_end(b, refs);
		}
		pb_double_bits(b, 2, f64_bits((double)i));
		pb_uint(b, 3, 1000 * i + 700);
		pb_end(b, e);
	}
	if (l->version == RW_2 && w->metadata) {
		size_t d = pb_begin(b, 5);
		pb_uint(b, 1, 1 + i % 3);
		pb_uint(b, 3, symbol(l, span_cstr(text(l, "help of %d", (int)(i % 2)))));
		pb_end(b, d);
	}
	pb_end(b, m);
}

static void lab_open(struct lab *l, enum rw_version version, size_t n, uint64_t seed)
{
	struct buf series, body;
	memset(l, 0, sizeof *l);
	arena_init(&l->arena, GIB);
	buf_init(&series, GIB);
	buf_init(&body, GIB);
	l->r = seed;
	l->version = version;
	l->n = n;
	l->series = arena_calloc(&l->arena, n, sizeof *l->series);
	if (version == RW_2)
		l->symbols[l->n_symbols++] = SPAN("");
	for (size_t i = 0; i < n; i++) {
		series_invent(l, &l->series[i], i);
		size_t before = series.n;
		series_put(l, &l->series[i], i, &series);
		l->series[i].at = before;
		l->series[i].slice.n = series.n - before;
	}
	for (uint32_t i = 0; i < l->n_symbols; i++)
		pb_bytes(&body, 4, l->symbols[i]);
	if (version == RW_2)
		assert_true(body.n > 0);
	size_t front = body.n;
	buf_put(&body, series.p ? (const void *)series.p : "", series.n);
	for (size_t i = 0; version == RW_1 && i < seed % 3; i++) {
		size_t m = pb_begin(&body, 3);
		pb_uint(&body, 1, 1);
		pb_bytes(&body, 2, SPAN("family"));
		pb_end(&body, m);
		l->n_metadata++;
	}
	l->body = arena_dup(&l->arena, span_of(body.p ? (const char *)body.p : "", body.n));
	for (size_t i = 0; i < n; i++)
		l->series[i].slice.p = l->body.p + front + l->series[i].at;
	buf_free(&series);
	buf_free(&body);
}

static const struct rw_limits limits = {200000, 2000000, LIMIT_LABELS_DECODE};

static void decode(struct lab *l, struct rw_request *rw)
{
	struct err err = {0};
	if ((l->version == RW_2 ? rw2_decode : rw1_decode)(l->body, &limits, &l->arena, rw, &err) != OK)
		fail_msg("%s", err.msg);
}

/* ---- what must come out ---- */

static bool splits(const struct want *w)
{
	return w->tenant.n > 0;
}

/* Labels as sent, less the label when it named a tenant. */
static void labels_are(struct lab *l, const struct rw_request *rw, const struct rw_series *s, const struct want *w)
{
	struct labels got = ingest_labels_of(rw, s, &l->arena);
	uint32_t k = 0;
	assert_int_equal(got.n, s->n_labels);
	for (uint32_t i = 0; i < w->n_labels; i++) {
		if (splits(w) && span_is(w->labels[i].name, LABEL))
			continue;
		assert_true(k < got.n && span_eq(got.v[k].name, w->labels[i].name) && span_eq(got.v[k].value, w->labels[i].value));
		k++;
	}
	assert_int_equal(k, got.n);
}

static void part_is(struct lab *l, struct ingest_split *sp, uint32_t part)
{
	const struct ingest_split_part *p = &sp->parts[part];
	struct rw_request rw;
	struct err err = {0};
	size_t samples = 0, hists = 0, exemplars = 0;
	assert_int_equal(ingest_split_part(sp, part, &l->arena, &rw, &err), OK);
	assert_int_equal(rw.n_series, p->n_series);
	if (l->version == RW_2)
		assert_true(rw.n_symbols > 0 && rw.symbols[0].n == 0);
	for (uint32_t i = 0; i < p->n_series; i++) {
		const struct want *w = &l->series[p->series[i]];
		const struct rw_series *s = &rw.series[i];
		size_t no = p->series[i];
		labels_are(l, &rw, s, w);
		assert_int_equal(s->n_samples, w->n_samples);
		assert_int_equal(s->n_hists, w->n_hists);
		assert_int_equal(s->n_exemplars, w->n_exemplars);
		for (uint32_t k = 0; k < w->n_samples; k++)
			assert_true(rw.samples[s->first_sample + k].t == (int64_t)(1000 * no + k + 1));
		for (uint32_t k = 0; k < w->n_hists; k++)
			assert_true(rw.hists[s->first_hist + k].t == (int64_t)(1000 * no + 500) && s->first_hist + k < rw.n_hists);
		for (uint32_t k = 0; k < w->n_exemplars; k++)
			assert_true(rw.exemplars[s->first_exemplar + k].t == (int64_t)(1000 * no + 700));
		samples += w->n_samples;
		hists += w->n_hists;
		exemplars += w->n_exemplars;
	}
	assert_int_equal(rw.n_samples, samples);
	assert_int_equal(rw.n_hists, hists);
	assert_int_equal(rw.n_exemplars, exemplars);
	if (l->version == RW_1)
		assert_int_equal(rw.n_metadata, p->metadata ? l->n_metadata : 0);
}

/* 2.0: exactly what the part's own series say, and nobody else's words. */
static void metadata_is(struct lab *l, struct ingest_split *sp, uint32_t part)
{
	const struct ingest_split_part *p = &sp->parts[part];
	struct rw_request rw;
	struct err err = {0};
	assert_int_equal(ingest_split_part(sp, part, &l->arena, &rw, &err), OK);
	for (size_t m = 0; m < rw.n_metadata; m++) {
		bool said = false;
		for (uint32_t i = 0; i < p->n_series && !said; i++) {
			size_t no = p->series[i];
			char help[32], family[32];
			snprintf(help, sizeof help, "help of %d", (int)(no % 2));
			snprintf(family, sizeof family, "m%d", (int)(no % 7));
			said = l->series[no].metadata && span_is(rw.metadata[m].help, help) && span_is(rw.metadata[m].family, family) &&
			       rw.metadata[m].type == (enum metric_type)(1 + no % 3);
		}
		assert_true(said);
	}
	for (uint32_t i = 0; i < p->n_series; i++) {
		bool there = !l->series[p->series[i]].metadata;
		char family[32];
		snprintf(family, sizeof family, "m%d", (int)(p->series[i] % 7));
		for (size_t m = 0; m < rw.n_metadata && !there; m++)
			there = span_is(rw.metadata[m].family, family);
		assert_true(there);
	}
}

static void every_series_goes_where_its_label_says(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 40; seed++)
		for (enum rw_version v = RW_1; v <= RW_2; v++) {
			struct lab l;
			struct rw_request rw;
			struct ingest_split sp;
			struct err err = {0};
			lab_open(&l, v, seed < 6 ? seed - 1 : seed * 20, seed * 0x9e3779b97f4a7c15u);
			decode(&l, &rw);
			assert_int_equal(ingest_split(&rw, v, SPAN("mine"), LABEL, &l.arena, &sp, &err), OK);
			uint8_t *met = calloc(l.n + 1, 1);
			for (uint32_t p = 0; p < sp.n_parts; p++) {
				assert_true(tenant_valid(sp.parts[p].tenant));
				assert_true(sp.parts[p].n_series > 0 || sp.parts[p].metadata);
				assert_true(!sp.parts[p].metadata || span_is(sp.parts[p].tenant, "mine"));
				for (uint32_t q = 0; q < p; q++)
					assert_false(span_eq(sp.parts[p].tenant, sp.parts[q].tenant));
				for (uint32_t i = 0; i < sp.parts[p].n_series; i++) {
					uint32_t no = sp.parts[p].series[i];
					const struct want *w = &l.series[no];
					assert_true(no < l.n && !met[no] && w->valid && (i == 0 || sp.parts[p].series[i - 1] < no));
					met[no] = 1;
					assert_true(span_eq(sp.parts[p].tenant, splits(w) ? w->tenant : SPAN("mine")));
				}
				part_is(&l, &sp, p);
			}
			for (uint32_t p = 0; v == RW_2 && p < sp.n_parts; p++)
				metadata_is(&l, &sp, p);
			for (uint32_t i = 0; i < sp.n_refused; i++) {
				assert_true(!met[sp.refused[i]] && !l.series[sp.refused[i]].valid && (i == 0 || sp.refused[i - 1] < sp.refused[i]));
				met[sp.refused[i]] = 1;
			}
			for (size_t i = 0; i < l.n; i++) {
				assert_true(met[i]);
				assert_int_equal(sp.relabeled[i], splits(&l.series[i]));
				labels_are(&l, &rw, &rw.series[i], &l.series[i]);
			}
			struct span words = ingest_split_refusal(&sp, &l.arena);
			assert_int_equal(words.n > 0, sp.n_refused > 0);
			if (words.n > 0)
				assert_true(span_has_prefix(words, SPAN("err-varve-tenant: ")));
			free(met);
			arena_free(&l.arena);
		}
}

/* A body of the series as they are sent on is what it was, less the label. */
static void what_is_sent_on_has_lost_the_label(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 30; seed++)
		for (enum rw_version v = RW_1; v <= RW_2; v++) {
			struct lab l;
			struct rw_request rw, again;
			struct ingest_split sp;
			struct err err = {0};
			struct buf body;
			buf_init(&body, GIB);
			lab_open(&l, v, seed * 10, seed * 0xc2b2ae3d27d4eb4fu);
			decode(&l, &rw);
			assert_int_equal(ingest_split(&rw, v, SPAN("mine"), LABEL, &l.arena, &sp, &err), OK);
			for (uint32_t i = 0; i < l.n_symbols; i++)
				pb_bytes(&body, 4, l.symbols[i]);
			for (size_t i = 0; i < l.n; i++) {
				struct span out = l.series[i].slice;
				if (sp.relabeled[i])
					assert_int_equal(rw_slice_relabel(l.series[i].slice, &rw.series[i], &l.arena, &out, &err), OK);
				buf_span(&body, out);
			}
			struct span was = l.body;
			l.body = arena_dup(&l.arena, span_of(body.p, body.n));
			decode(&l, &again);
			l.body = was;
			assert_int_equal(again.n_series, l.n);
			assert_int_equal(again.n_samples, rw.n_samples);
			assert_int_equal(again.n_hists, rw.n_hists);
			assert_int_equal(again.n_exemplars, rw.n_exemplars);
			for (size_t i = 0; i < l.n; i++) {
				const struct rw_series *a = &again.series[i], *b = &rw.series[i];
				labels_are(&l, &again, a, &l.series[i]);
				assert_true(a->n_samples == b->n_samples && a->n_hists == b->n_hists && a->n_exemplars == b->n_exemplars);
				assert_int_equal(a->metadata, b->metadata);
			}
			assert_memory_equal(again.samples, rw.samples, rw.n_samples * sizeof *rw.samples);
			/* Any bytes in a field's place are refused or taken, never read beyond. */
			for (size_t n = 0; l.n > 0 && n < l.series[0].slice.n; n++) {
				struct span out, cut = arena_dup(&l.arena, span_of(l.series[0].slice.p, n));
				if (rw_slice_relabel(cut, &rw.series[0], &l.arena, &out, &err) == OK)
					fail_msg("a field cut to %zu of %zu bytes was taken", n, l.series[0].slice.n);
			}
			buf_free(&body);
			arena_free(&l.arena);
		}
}

/* A part as it is sent on is a message of its own: with its series, what comes with them, and in 2.0 no symbols but its own. */
static void a_part_is_a_message(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 25; seed++)
		for (enum rw_version v = RW_1; v <= RW_2; v++) {
			struct lab l;
			struct rw_request rw;
			struct ingest_split sp;
			struct rw_slices whole;
			struct err err = {0};
			lab_open(&l, v, seed < 4 ? seed : seed * 8, seed * 0xd6e8feb86659fd93u);
			decode(&l, &rw);
			assert_int_equal(rw_slices(l.body, v, &rw, &l.arena, &whole, &err), OK);
			assert_int_equal(ingest_split(&rw, v, SPAN("mine"), LABEL, &l.arena, &sp, &err), OK);
			for (uint32_t k = 0; k < sp.n_parts; k++) {
				struct rw_request part, again;
				struct rw_slices own;
				struct buf body;
				buf_init(&body, GIB);
				assert_int_equal(ingest_split_part(&sp, k, &l.arena, &part, &err), OK);
				assert_int_equal(ingest_split_slices(&sp, k, &whole, &part, &own, &err), OK);
				for (size_t i = 0; v == RW_2 && i < own.n_symbols; i++)
					buf_span(&body, own.symbols[i]);
				for (uint32_t i = 0; i < sp.parts[k].n_series; i++)
					buf_span(&body, own.series[i]);
				for (size_t i = 0; v == RW_1 && sp.parts[k].metadata && i < rw.n_metadata; i++)
					buf_span(&body, own.metadata[i]);
				struct span was = l.body;
				l.body = arena_dup(&l.arena, span_of(body.n ? (const char *)body.p : "", body.n));
				decode(&l, &again);
				l.body = was;
				buf_free(&body);
				assert_int_equal(again.n_series, sp.parts[k].n_series);
				assert_true(
					again.n_samples == part.n_samples && again.n_hists == part.n_hists && again.n_exemplars == part.n_exemplars);
				assert_int_equal(again.n_symbols, part.n_symbols);
				for (size_t i = 0; i < again.n_symbols; i++)
					assert_true(span_eq(again.symbols[i], part.symbols[i]));
				for (uint32_t i = 0; i < sp.parts[k].n_series; i++) {
					const struct want *w = &l.series[sp.parts[k].series[i]];
					const struct rw_series *s = &again.series[i];
					labels_are(&l, &again, s, w);
					assert_true(s->n_samples == w->n_samples && s->n_exemplars == w->n_exemplars && s->n_hists == w->n_hists);
					assert_int_equal(s->metadata > 0, v == RW_2 && w->metadata);
					char help[32];
					snprintf(help, sizeof help, "help of %d", (int)(sp.parts[k].series[i] % 2));
					if (s->metadata > 0)
						assert_true(span_is(again.metadata[s->metadata - 1].help, help));
					for (uint32_t x = 0; x < w->n_exemplars; x++) {
						struct labels e;
						assert_int_equal(
							labels_from_wire(again.exemplars[s->first_exemplar + x].wire, 10, &l.arena, &e, &err), OK);
						assert_int_equal(e.n, v == RW_2);
						if (v == RW_2)
							assert_true(
								span_is(e.v[0].name, "trace_id") && span_has_prefix(e.v[0].value, SPAN("trace ")));
					}
				}
			}
			arena_free(&l.arena);
		}
}

static void more_tenants_than_a_request_may_name(void **state)
{
	(void)state;
	struct lab l;
	struct rw_request rw;
	struct ingest_split sp;
	struct err err = {0};
	for (int more = 0; more < 2; more++) {
		struct buf body;
		memset(&l, 0, sizeof l);
		l.version = RW_1;
		arena_init(&l.arena, GIB);
		buf_init(&body, GIB);
		for (int i = 0; i < LIMIT_PEER_SECTIONS + more; i++) {
			char name[32];
			snprintf(name, sizeof name, "t%d", i);
			size_t s = pb_begin(&body, 1), label = pb_begin(&body, 1);
			pb_bytes(&body, 1, SPAN(LABEL));
			pb_bytes(&body, 2, span_cstr(name));
			pb_end(&body, label);
			pb_end(&body, s);
		}
		l.body = span_of(body.p, body.n);
		decode(&l, &rw);
		assert_int_equal(ingest_split(&rw, RW_1, SPAN("mine"), LABEL, &l.arena, &sp, &err), more ? ERR_LIMIT : OK);
		assert_int_equal(errid_of(err.id), more ? ERRID_TOO_MANY_SERIES : ERRID_NONE);
		if (!more)
			assert_int_equal(sp.n_parts, LIMIT_PEER_SECTIONS);
		buf_free(&body);
		arena_free(&l.arena);
	}
}

/* Labels that are no protobuf are the request's fault, as they are without the flag. */
static void malformed_labels_refuse_the_request(void **state)
{
	(void)state;
	struct lab l;
	struct rw_request rw;
	struct ingest_split sp;
	struct err err = {0};
	lab_open(&l, RW_1, 3, 5);
	decode(&l, &rw);
	rw.series[1].wire = span_of("\x0a\x03\x0a\x09z", 5);
	assert_int_equal(ingest_split(&rw, RW_1, SPAN("mine"), LABEL, &l.arena, &sp, &err), ERR_INVALID);
	assert_int_equal(errid_of(err.id), ERRID_PROTOBUF);
	arena_free(&l.arena);
}

/* Every allocation fails once. */
static void memory_may_end_anywhere(void **state)
{
	(void)state;
	for (enum rw_version v = RW_1; v <= RW_2; v++) {
		struct lab l;
		struct rw_request rw;
		struct rw_slices whole, own;
		struct err before = {0};
		lab_open(&l, v, 200, 77);
		decode(&l, &rw);
		assert_int_equal(rw_slices(l.body, v, &rw, &l.arena, &whole, &before), OK);
		size_t failed = 0;
		for (uint64_t nth = 1;; nth++) {
			struct arena arena;
			struct ingest_split sp = {0};
			struct rw_request part, copy = rw;
			struct err err = {0};
			arena_init(&arena, GIB);
			copy.series = arena_alloc(&l.arena, rw.n_series * sizeof *rw.series);
			assert_non_null(copy.series);
			memcpy(copy.series, rw.series, rw.n_series * sizeof *rw.series);
			fail_alloc_at(nth, false);
			errc rc = ingest_split(&copy, v, SPAN("mine"), LABEL, &arena, &sp, &err);
			for (uint32_t p = 0; rc == OK && p < sp.n_parts; p++) {
				rc = ingest_split_part(&sp, p, &arena, &part, &err);
				if (rc == OK)
					rc = ingest_split_slices(&sp, p, &whole, &part, &own, &err);
			}
			fail_alloc_off();
			arena_free(&arena);
			if (rc == OK)
				break;
			assert_int_equal(rc, ERR_NOMEM);
			assert_int_equal(errid_of(err.id), ERRID_OVERLOADED);
			failed++;
		}
		assert_true(failed > 2);
		arena_free(&l.arena);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_series_goes_where_its_label_says),
		cmocka_unit_test(what_is_sent_on_has_lost_the_label),
		cmocka_unit_test(a_part_is_a_message),
		cmocka_unit_test(more_tenants_than_a_request_may_name),
		cmocka_unit_test(malformed_labels_refuse_the_request),
		cmocka_unit_test(memory_may_end_anywhere),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
