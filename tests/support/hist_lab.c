/* tests/support/hist_lab.c - see tests/support/hist_lab.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/hist_lab.h"

/* ---- requests ---- */

void hist_request_begin(struct hist_request *r, size_t cap)
{
	*r = (struct hist_request){.cap = cap};
	lab_batch_begin(&r->b, 0);
	r->hists = calloc(cap, sizeof *r->hists);
	r->unpacked = calloc(cap, sizeof *r->unpacked);
	arena_init(&r->arena, 256 * MIB);
}

void hist_request_put(struct hist_request *r, const struct hist_point *p)
{
	if (r->b.n == 0 || r->b.series[r->b.n - 1] != p->series) {
		lab_batch_series(&r->b, p->series, p->series % 3 ? 0 : 2);
		r->b.hs[r->b.n - 1].first_hist = (uint32_t)r->n_hists;
	}
	if (!p->is_hist) {
		lab_batch_sample(&r->b, p->t, p->v);
		return;
	}
	struct err err = {0};
	enum sample_kind kind;
	assert_true(r->n_hists < r->cap);
	assert_int_equal(histogram_unpack(p->packed, &r->arena, &kind, &r->unpacked[r->n_hists], &err), OK);
	r->hists[r->n_hists] = (struct head_hist){.t = p->t, .kind = kind, .h = &r->unpacked[r->n_hists]};
	r->n_hists++;
	r->b.hs[r->b.n - 1].n_hist++;
}

errc hist_request_send(struct lab *l, struct hist_request *r, struct err *err)
{
	struct wal_ticket ticket;
	struct buf records;
	uint32_t n_logged = 0;
	struct lab_batch *b = &r->b;
	fail_alloc_pause();
	for (size_t i = 0; i < b->n; i++)
		b->hs[i].wire = span_of(b->wire.p + b->wire_at[i], b->wire_at[i + 1] - b->wire_at[i]);
	b->b = (struct head_batch){
		.tenant = span_cstr(lab_tenant(b->tenant)),
		.series = b->hs,
		.n_series = b->n,
		.samples = b->samples,
		.n_samples = b->n_samples,
		.hists = r->hists,
		.n_hists = r->n_hists,
		.min_t = INT64_MIN,
		.max_t = INT64_MAX,
		.now_ms = io_now_ms(),
	};
	fail_alloc_resume();
	size_t bound = head_batch_bound(l->head, &b->b);
	errc rc = wal_reserve(l->wal, bound, &ticket, err);
	if (rc != OK)
		return rc;
	buf_init(&records, bound + 1);
	struct err e = {0};
	errc verdict = head_append(l->head, &ticket, &b->b, &records, &n_logged, &e);
	rc = wal_commit_wait(l->wal, &ticket, span_of(records.p, records.n), n_logged, err);
	buf_free(&records);
	if (verdict == OK)
		for (size_t i = 0; i < b->n; i++) {
			const struct head_series *hs = &b->hs[i];
			assert_int_equal(hs->stored + hs->duplicate + hs->refused, hs->n);
			assert_int_equal(hs->hist_stored + hs->hist_duplicate + hs->hist_refused, hs->n_hist);
			assert_int_equal(hs->refused_id, hs->refused + hs->hist_refused ? ERRID_DUPLICATE_TIMESTAMP : ERRID_NONE);
		}
	if (verdict != OK && err)
		*err = e;
	return verdict != OK ? verdict : rc;
}

void hist_request_free(struct hist_request *r)
{
	lab_batch_free(&r->b);
	free(r->hists);
	free(r->unpacked);
	arena_free(&r->arena);
}

/* ---- the array ---- */

static int point_order(const struct hist_point *a, const struct hist_point *b)
{
	bool same;
	int order;
	struct err err = {0};
	if (a->is_hist != b->is_hist)
		return a->is_hist ? 1 : -1;
	if (!a->is_hist)
		return float_winner(a->v, b->v);
	assert_int_equal(histogram_packed_cmp(a->packed, b->packed, &same, &order, &err), OK);
	return order;
}

enum hist_verdict hist_model_put(struct hist_model *m, const struct hist_point *p)
{
	for (size_t i = 0; i < m->n; i++) {
		struct hist_entry *e = &m->v[i];
		if (e->gen != m->gen || e->p.series != p->series || e->p.t != p->t)
			continue;
		if (e->p.is_hist != p->is_hist)
			return HIST_REFUSED;
		if (!p->is_hist)
			return e->p.v == p->v ? HIST_DUPLICATE : HIST_REFUSED;
		bool same;
		int order;
		struct err err = {0};
		assert_int_equal(histogram_packed_cmp(p->packed, e->p.packed, &same, &order, &err), OK);
		if (same && order > 0) {
			e->p = *p;
			return HIST_STORED;
		}
		return same ? HIST_DUPLICATE : HIST_REFUSED;
	}
	if (m->n == m->cap) {
		m->cap = m->cap * 2 + 64;
		m->v = realloc(m->v, m->cap * sizeof *m->v);
	}
	m->v[m->n++] = (struct hist_entry){*p, m->gen};
	return HIST_STORED;
}

void hist_model_free(struct hist_model *m)
{
	free(m->v);
	arena_free(&m->arena);
}

/* ---- what is there ---- */

void hist_read_source(struct source *src, struct hist_founds *f)
{
	struct arena a;
	struct err err = {0};
	struct matcher m;
	struct series_iter *it;
	struct series_view v;
	bool more;
	struct buf canonical;
	arena_init(&a, 256 * MIB);
	buf_init(&canonical, MIB);
	assert_int_equal(matcher_init(&m, MATCH_RE, SPAN("__name__"), SPAN("metric_.*"), &a, &err), OK);
	struct select_options opt = {.mint = INT64_MIN, .maxt = INT64_MAX};
	assert_int_equal(src->ops->select(src, &m, 1, &opt, &it, &err), OK);
	for (;;) {
		if (it->ops->next(it, &v, &more, &err) != OK)
			fail_msg("next: %s", err.msg);
		if (!more)
			break;
		unsigned metric, host;
		assert_int_equal(sscanf(arena_cstr(&a, labels_get(v.labels, SPAN("__name__"))), "metric_%u", &metric), 1);
		assert_int_equal(sscanf(arena_cstr(&a, labels_get(v.labels, SPAN("instance"))), "host-%u:9100", &host), 1);
		int64_t end[2] = {INT64_MIN, INT64_MIN}, mint = INT64_MIN;
		for (size_t c = 0; c < v.n_chunks; c++) {
			struct chunk_iter *ci;
			struct chunk_point p;
			const struct chunk *ch = &v.chunks[c];
			assert_true(ch->mint >= mint && ch->enc < 4);
			mint = ch->mint;
			f->chunks[ch->enc]++;
			assert_int_equal(chunk_iter_new(ch->enc, ch->data, &a, &ci, &err), OK);
			double count_before = 0;
			for (uint32_t i = 0;; i++) {
				if (chunk_iter_next(ci, &p, &more, &err) != OK)
					fail_msg("%s", err.msg);
				if (!more)
					break;
				assert_true(p.t >= ch->mint && p.t <= ch->maxt && (i > 0 || p.t == ch->mint));
				/* Of a window, chunks of floats and of histograms may overlap; in a block nothing does. */
				int which = p.kind != SAMPLE_FLOAT && strcmp(src->kind, "head") == 0;
				assert_true(p.t > end[which]);
				end[which] = p.t;
				if (f->n == f->cap) {
					f->cap = f->cap * 2 + 256;
					f->v = realloc(f->v, f->cap * sizeof *f->v);
				}
				struct hist_found *x = &f->v[f->n++];
				*x = (struct hist_found){.series = host * 5 + metric, .t = p.t, .kind = p.kind, .v = p.v, .first = i == 0};
				if (p.kind == SAMPLE_FLOAT)
					continue;
				buf_clear(&canonical);
				histogram_canonical(p.kind, p.h, &canonical);
				x->canonical = arena_dup(&f->arena, span_of(canonical.p, canonical.n));
				x->hint = p.h->reset_hint;
				double count = p.kind == SAMPLE_HISTOGRAM ? (double)p.h->i_count : f64_of_bits(p.h->f_count);
				if (x->hint == HIST_RESET_NO && p.h->sum != STALE_NAN_BITS)
					assert_true(count >= count_before);
				count_before = count;
			}
		}
	}
	it->ops->close(it);
	matchers_free(&m, 1);
	buf_free(&canonical);
	arena_free(&a);
}

static void read_block(const char *dir, struct hist_founds *f)
{
	struct arena a;
	struct err err = {0};
	struct span json;
	struct block_meta meta;
	struct block_files *files;
	struct block *b = NULL;
	struct source *src = NULL;
	char path[300];
	arena_init(&a, 64 * MIB);
	snprintf(path, sizeof path, "%s/meta.json", dir);
	if (io_read_file(path, MIB, &a, &json, &err) != OK || block_meta_parse(path, json, &a, &meta, &err) != OK ||
		block_files_dir(dir, &files, &err) != OK || block_open(files, &meta, NULL, &b, &err) != OK ||
		block_source(b, "local", &src, &err) != OK)
		fail_msg("%s: %s", dir, err.msg);
	size_t before = f->n;
	hist_read_source(src, f);
	assert_int_equal(meta.n_samples, f->n - before);
	src->ops->release(src);
	block_unref(b);
	arena_free(&a);
}

static int found_order(const void *a, const void *b)
{
	const struct hist_found *x = a, *y = b;
	if (x->series != y->series)
		return x->series < y->series ? -1 : 1;
	if (x->t != y->t)
		return x->t < y->t ? -1 : 1;
	/* the winner first */
	if ((x->kind == SAMPLE_FLOAT) != (y->kind == SAMPLE_FLOAT))
		return x->kind == SAMPLE_FLOAT ? 1 : -1;
	return x->kind == SAMPLE_FLOAT ? -float_winner(x->v, y->v) : -span_cmp(x->canonical, y->canonical);
}

void hist_gather(struct lab *l, struct hist_founds *f)
{
	struct err err = {0};
	struct arena a;
	struct source **v;
	size_t n;
	struct ulid seen[64];
	*f = (struct hist_founds){0};
	arena_init(&a, 16 * MIB);
	arena_init(&f->arena, GIB);
	assert_int_equal(head_sources(l->head, span_cstr(lab_tenant(0)), INT64_MIN, INT64_MAX, &a, &v, &n, &err), OK);
	assert_true(n < 64);
	for (size_t i = 0; i < n; i++) {
		hist_read_source(v[i], f);
		seen[i] = v[i]->ulid;
		v[i]->ops->release(v[i]);
	}
	for (size_t i = 0; i < l->n_blocks; i++) {
		bool dup = false;
		for (size_t k = 0; k < n; k++)
			dup = dup || ulid_eq(seen[k], l->blocks[i]);
		for (size_t k = 0; k < i; k++)
			dup = dup || ulid_eq(l->blocks[k], l->blocks[i]);
		char dir[256];
		snprintf(dir, sizeof dir, "data/blocks/%s", ulid_text(l->blocks[i]).s);
		if (!dup)
			read_block(dir, f);
	}
	if (f->n > 1)
		qsort(f->v, f->n, sizeof *f->v, found_order);
	arena_free(&a);
}

void hist_founds_free(struct hist_founds *f)
{
	free(f->v);
	arena_free(&f->arena);
}

static int entry_order(const void *a, const void *b)
{
	const struct hist_point *x = &((const struct hist_entry *)a)->p, *y = &((const struct hist_entry *)b)->p;
	if (x->series != y->series)
		return x->series < y->series ? -1 : 1;
	if (x->t != y->t)
		return x->t < y->t ? -1 : 1;
	return -point_order(x, y);
}

static bool is_gauge(const struct histogram *h)
{
	return h->reset_hint == HIST_RESET_GAUGE;
}

void hist_check(struct lab *l, const struct hist_model *m, size_t *chunks)
{
	struct hist_founds f;
	struct arena a;
	struct buf canonical;
	hist_gather(l, &f);
	arena_init(&a, MIB);
	buf_init(&canonical, MIB);
	struct hist_entry *want = malloc((m->n + 1) * sizeof *want);
	if (m->n > 0) {
		memcpy(want, m->v, m->n * sizeof *want);
		qsort(want, m->n, sizeof *want, entry_order);
	}
	size_t k = 0, i = 0;
	for (; k < m->n; k++) {
		const struct hist_point *p = &want[k].p;
		if (k > 0 && want[k - 1].p.series == p->series && want[k - 1].p.t == p->t)
			continue;
		while (i > 0 && i < f.n && f.v[i].series == f.v[i - 1].series && f.v[i].t == f.v[i - 1].t)
			i++;
		if (i >= f.n || f.v[i].series != p->series || f.v[i].t != p->t)
			fail_msg("seed %llu: series %u t=%lld is not there", (unsigned long long)l->seed, p->series, (long long)p->t);
		const struct hist_found *x = &f.v[i++];
		assert_int_equal(x->kind != SAMPLE_FLOAT, p->is_hist);
		if (!p->is_hist) {
			assert_int_equal(x->v, p->v);
			continue;
		}
		struct histogram h;
		enum sample_kind kind;
		struct err err = {0};
		arena_reset(&a);
		assert_int_equal(histogram_unpack(p->packed, &a, &kind, &h, &err), OK);
		buf_clear(&canonical);
		histogram_canonical(kind, &h, &canonical);
		if (x->kind != kind || !span_eq(x->canonical, span_of(canonical.p, canonical.n)))
			fail_msg("series %u t=%lld is another histogram", p->series, (long long)p->t);
		if (h.sum != STALE_NAN_BITS) {
			assert_int_equal(x->hint == HIST_RESET_GAUGE, is_gauge(&h));
			if (h.reset_hint == HIST_RESET_YES)
				assert_true(x->first);
		}
	}
	while (i > 0 && i < f.n && f.v[i].series == f.v[i - 1].series && f.v[i].t == f.v[i - 1].t)
		i++;
	assert_int_equal(i, f.n);
	for (int e = 0; chunks && e < 4; e++)
		chunks[e] += f.chunks[e];
	free(want);
	arena_free(&a);
	buf_free(&canonical);
	hist_founds_free(&f);
}

/* ---- the model test ---- */

static struct span packed_of(struct arena *a, enum sample_kind kind, const struct histogram *h)
{
	struct buf b;
	buf_init(&b, MIB);
	histogram_pack(kind, h, &b);
	struct span s = arena_dup(a, span_of(b.p, b.n));
	assert_true(s.p && !b.failed);
	buf_free(&b);
	return s;
}

struct hist_point hist_point_make(uint32_t series, int64_t t, struct hist_maker *m, struct arena *keep, uint64_t *r)
{
	bool is_hist = series >= 2 && (series <= 8 || lab_random(r) % 8 != 0);
	struct hist_point p = {.series = series, .t = t, .is_hist = is_hist, .v = f64_bits((double)(lab_random(r) % 50))};
	if (is_hist) {
		struct arena a;
		enum sample_kind kind;
		struct histogram h, laid_out;
		arena_init(&a, MIB);
		hist_maker_next(m, &a, &kind, &h);
		if (lab_random(r) % 16 == 0) {
			hist_relayout(&a, kind, &h, &laid_out);
			h = laid_out;
		}
		p.packed = packed_of(keep, kind, &h);
		arena_free(&a);
	}
	return p;
}

struct hist_point hist_point_again(struct hist_model *m, uint64_t *r)
{
	struct hist_point p = m->v[lab_random(r) % m->n].p;
	struct arena a;
	enum sample_kind kind;
	struct histogram h, other;
	struct err err = {0};
	if (!p.is_hist || lab_random(r) % 3 == 0)
		return p;
	arena_init(&a, MIB);
	assert_int_equal(histogram_unpack(p.packed, &a, &kind, &h, &err), OK);
	hist_relayout(&a, kind, &h, &other);
	p.packed = packed_of(&m->arena, kind, &other);
	arena_free(&a);
	return p;
}
