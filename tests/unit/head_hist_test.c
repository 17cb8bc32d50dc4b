/* Histograms in the head: any order, resent, mixed with floats, replayed, cut in part, cut; what comes back is what an array says that was sent.
 *
 * One file because every test sends the same requests and holds what is read against the same array.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "head/head_cut_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/head_lab.h"
#include "tests/support/hist_make.h"

enum { RANGE = 600000, SERIES = 12 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

static bool full(void)
{
	const char *s = getenv("VARVE_FULL");
	return s && *s == '1';
}

/* ---- requests ---- */

struct point {
	uint32_t series;
	int64_t t;
	bool is_hist;
	uint64_t v;
	struct span packed;
};

struct request {
	struct lab_batch b;
	struct head_hist *hists;
	struct histogram *unpacked;
	size_t n_hists, cap;
	struct arena arena;
};

static void request_begin(struct request *r, size_t cap)
{
	*r = (struct request){.cap = cap};
	lab_batch_begin(&r->b, 0);
	r->hists = calloc(cap, sizeof *r->hists);
	r->unpacked = calloc(cap, sizeof *r->unpacked);
	arena_init(&r->arena, 256 * MIB);
}

static void request_put(struct request *r, const struct point *p)
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

static errc request_send(struct lab *l, struct request *r, struct err *err)
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

static void request_free(struct request *r)
{
	lab_batch_free(&r->b);
	free(r->hists);
	free(r->unpacked);
	arena_free(&r->arena);
}

/* ---- the array ---- */

struct entry {
	struct point p;
	uint32_t gen;
};
struct model {
	struct entry *v;
	size_t n, cap;
	uint32_t gen;
	struct arena arena;
};

enum verdict { STORED, DUPLICATE, REFUSED };

static int point_order(const struct point *a, const struct point *b)
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

/* Windows that were cut don't know their samples any more: gen. */
static enum verdict model_put(struct model *m, const struct point *p)
{
	for (size_t i = 0; i < m->n; i++) {
		struct entry *e = &m->v[i];
		if (e->gen != m->gen || e->p.series != p->series || e->p.t != p->t)
			continue;
		if (e->p.is_hist != p->is_hist)
			return REFUSED;
		if (!p->is_hist)
			return e->p.v == p->v ? DUPLICATE : REFUSED;
		bool same;
		int order;
		struct err err = {0};
		assert_int_equal(histogram_packed_cmp(p->packed, e->p.packed, &same, &order, &err), OK);
		if (same && order > 0) {
			e->p = *p;
			return STORED;
		}
		return same ? DUPLICATE : REFUSED;
	}
	if (m->n == m->cap) {
		m->cap = m->cap * 2 + 64;
		m->v = realloc(m->v, m->cap * sizeof *m->v);
	}
	m->v[m->n++] = (struct entry){*p, m->gen};
	return STORED;
}

static void model_free(struct model *m)
{
	free(m->v);
	arena_free(&m->arena);
}

/* ---- what is there ---- */

struct found_points {
	uint32_t series;
	int64_t t;
	enum sample_kind kind;
	uint64_t v;
	struct span canonical;
	uint8_t hint;
	bool first; /* of its chunk */
};
struct founds {
	struct found_points *v;
	size_t n, cap;
	struct arena arena;
	size_t chunks[4]; /* by encoding */
};

static void read_source(struct source *src, struct founds *f)
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
				struct found_points *x = &f->v[f->n++];
				*x = (struct found_points){.series = host * 5 + metric, .t = p.t, .kind = p.kind, .v = p.v, .first = i == 0};
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

static void read_block(const char *dir, struct founds *f)
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
	read_source(src, f);
	assert_int_equal(meta.n_samples, f->n - before);
	src->ops->release(src);
	block_unref(b);
	arena_free(&a);
}

static int found_order(const void *a, const void *b)
{
	const struct found_points *x = a, *y = b;
	if (x->series != y->series)
		return x->series < y->series ? -1 : 1;
	if (x->t != y->t)
		return x->t < y->t ? -1 : 1;
	/* the winner first */
	if ((x->kind == SAMPLE_FLOAT) != (y->kind == SAMPLE_FLOAT))
		return x->kind == SAMPLE_FLOAT ? 1 : -1;
	return x->kind == SAMPLE_FLOAT ? -float_winner(x->v, y->v) : -span_cmp(x->canonical, y->canonical);
}

static void gather(struct lab *l, struct founds *f)
{
	struct err err = {0};
	struct arena a;
	struct source **v;
	size_t n;
	struct ulid seen[64];
	*f = (struct founds){0};
	arena_init(&a, 16 * MIB);
	arena_init(&f->arena, GIB);
	assert_int_equal(head_sources(l->head, span_cstr(lab_tenant(0)), INT64_MIN, INT64_MAX, &a, &v, &n, &err), OK);
	assert_true(n < 64);
	for (size_t i = 0; i < n; i++) {
		read_source(v[i], f);
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

static void founds_free(struct founds *f)
{
	free(f->v);
	arena_free(&f->arena);
}

static int entry_order(const void *a, const void *b)
{
	const struct point *x = &((const struct entry *)a)->p, *y = &((const struct entry *)b)->p;
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

static void check(struct lab *l, const struct model *m, size_t *chunks)
{
	struct founds f;
	struct arena a;
	struct buf canonical;
	gather(l, &f);
	arena_init(&a, MIB);
	buf_init(&canonical, MIB);
	struct entry *want = malloc((m->n + 1) * sizeof *want);
	if (m->n > 0) {
		memcpy(want, m->v, m->n * sizeof *want);
		qsort(want, m->n, sizeof *want, entry_order);
	}
	size_t k = 0, i = 0;
	for (; k < m->n; k++) {
		const struct point *p = &want[k].p;
		if (k > 0 && want[k - 1].p.series == p->series && want[k - 1].p.t == p->t)
			continue;
		while (i > 0 && i < f.n && f.v[i].series == f.v[i - 1].series && f.v[i].t == f.v[i - 1].t)
			i++;
		if (i >= f.n || f.v[i].series != p->series || f.v[i].t != p->t)
			fail_msg("seed %llu: series %u t=%lld is not there", (unsigned long long)l->seed, p->series, (long long)p->t);
		const struct found_points *x = &f.v[i++];
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
	founds_free(&f);
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

/* Series 0, 1: floats; 2 to 8: histograms; the rest both. */
static struct point make_point(uint32_t series, int64_t t, struct hist_maker *m, struct arena *keep, uint64_t *r)
{
	bool is_hist = series >= 2 && (series <= 8 || lab_random(r) % 8 != 0);
	struct point p = {.series = series, .t = t, .is_hist = is_hist, .v = f64_bits((double)(lab_random(r) % 50))};
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

static void must_start(struct lab *l)
{
	struct err err = {0};
	if (lab_start(l, &err) != OK)
		fail_msg("start: %s", err.msg);
}

static struct point again(struct model *m, uint64_t *r)
{
	struct point p = m->v[lab_random(r) % m->n].p;
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

/* One life of a head. */
static void model_run(uint64_t seed, size_t *chunks, size_t *verdicts)
{
	struct lab l;
	struct model m = {0};
	struct hist_maker makers[SERIES];
	uint64_t r = seed;
	int64_t now[SERIES];
	lab_open(&l, seed, RANGE, 1 * MIB);
	l.n_series = SERIES;
	if (seed % 3 == 0)
		l.cfg.max_memory_bytes = 6 * MIB; /* raw leaves go at once, and a long replay is cut in part */
	arena_init(&m.arena, GIB);
	for (uint32_t k = 0; k < SERIES; k++) {
		hist_maker_init(&makers[k], seed * 100 + k);
		makers[k].steady = k == 3;
		now[k] = T0 + (int64_t)(lab_random(&r) % 1000);
	}
	must_start(&l);
	for (int op = 0; op < 60; op++) {
		uint64_t what = lab_random(&r) % 40;
		if (what == 0) {
			lab_crash(&l, SIM_KEEP_ALL);
			must_start(&l);
		} else if (what == 1) {
			lab_stop(&l);
			must_start(&l);
		} else if (what == 2) {
			lab_flush(&l);
			m.gen++;
		} else if (what < 6) {
			check(&l, &m, chunks);
		}
		struct request q;
		struct err err = {0};
		struct point sent[200];
		size_t n = 1 + lab_random(&r) % 200;
		uint64_t style = lab_random(&r) % 4;
		request_begin(&q, 200);
		for (size_t i = 0; i < n; i++) {
			uint32_t k = i > 0 && lab_random(&r) % 8 ? sent[i - 1].series : (uint32_t)(lab_random(&r) % SERIES);
			int64_t t = now[k] += (int64_t)(lab_random(&r) % 3000);
			if (style == 0 || lab_random(&r) % 20 == 0)
				t = T0 + (int64_t)(lab_random(&r) % (uint64_t)(now[k] - T0 + 1));
			if (m.n > 0 && lab_random(&r) % 30 == 0)
				sent[i] = again(&m, &r);
			else
				sent[i] = make_point(k, t, &makers[k], &m.arena, &r);
			request_put(&q, &sent[i]);
		}
		if (request_send(&l, &q, &err) != OK)
			fail_msg("seed %llu: %s", (unsigned long long)seed, err.msg);
		/* Floats of a series' entry come before its histograms. */
		size_t want[3] = {0}, got[3] = {0};
		for (size_t i = 0, end; i < n; i = end) {
			for (end = i; end < n && sent[end].series == sent[i].series; end++)
				;
			for (size_t k = i; k < 2 * end - i; k++) {
				const struct point *p = &sent[k < end ? k : k - (end - i)];
				if (p->is_hist != (k >= end))
					continue;
				enum verdict v = model_put(&m, p);
				want[v]++;
				verdicts[v]++;
			}
		}
		for (size_t i = 0; i < q.b.n; i++) {
			got[STORED] += q.b.hs[i].stored + q.b.hs[i].hist_stored;
			got[DUPLICATE] += q.b.hs[i].duplicate + q.b.hs[i].hist_duplicate;
			got[REFUSED] += q.b.hs[i].refused + q.b.hs[i].hist_refused;
		}
		for (int v = 0; v < 3; v++)
			if (want[v] != got[v])
				fail_msg("seed %llu op %d: stored %zu duplicate %zu refused %zu, want %zu %zu %zu", (unsigned long long)seed, op,
					got[0], got[1], got[2], want[0], want[1], want[2]);
		request_free(&q);
		if (op == 59) {
			check(&l, &m, chunks);
			lab_crash(&l, SIM_KEEP_ALL);
			must_start(&l);
			check(&l, &m, chunks);
			lab_flush(&l);
			check(&l, &m, chunks);
		}
	}
	lab_free(&l);
	model_free(&m);
}

static void what_was_sent_comes_back(void **state)
{
	(void)state;
	const char *env = getenv("VARVE_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 0) : 1000;
	uint64_t rounds = full() ? 400 : 8;
	size_t chunks[4] = {0}, verdicts[3] = {0};
	for (uint64_t i = 0; i < rounds; i++)
		model_run(seed + i, chunks, verdicts);
	print_message("seed %llu: %zu float chunks, %zu and %zu of histograms; %zu stored, %zu duplicates, %zu refused\n", (unsigned long long)seed,
		chunks[1], chunks[2], chunks[3], verdicts[0], verdicts[1], verdicts[2]);
	assert_true(chunks[1] > 20 && chunks[2] > 20 && chunks[3] > 20 && verdicts[0] > 1000 && verdicts[1] > 20 && verdicts[2] > 0);
}

/* ---- any order gives the same bytes ---- */

static struct span slurp(struct arena *a, struct ulid u, const char *file)
{
	char path[256];
	struct span s;
	struct err err = {0};
	snprintf(path, sizeof path, "data/blocks/%s/%s", ulid_text(u).s, file);
	if (io_read_file(path, GIB, a, &s, &err) != OK)
		fail_msg("%s", err.msg);
	return s;
}

static void reorder(uint32_t *to, size_t n, int order, uint64_t *r)
{
	size_t k = 0;
	for (size_t i = 0; i < n; i++)
		to[i] = (uint32_t)(order == 1 ? n - 1 - i : i);
	for (size_t stride = 0; order == 2 && stride < 7; stride++)
		for (size_t i = stride; i < n; i += 7)
			to[k++] = (uint32_t)i;
	for (size_t i = n; order == 3 && i > 1; i--) {
		size_t j = lab_random(r) % i;
		uint32_t x = to[i - 1];
		to[i - 1] = to[j];
		to[j] = x;
	}
	for (size_t i = 0; order == 4 && i + 40 < n; i++) {
		size_t j = lab_random(r) % 50 ? i : i + lab_random(r) % 40;
		uint32_t x = to[i];
		memmove(&to[i], &to[i + 1], (j - i) * sizeof *to);
		to[j] = x;
	}
}

static void send_some(struct lab *l, const struct point *v, const uint32_t *to, size_t from, size_t end, uint64_t *r)
{
	while (from < end) {
		struct request q;
		struct err err = {0};
		size_t n = 1 + lab_random(r) % 400;
		request_begin(&q, n);
		for (; n > 0 && from < end; n--)
			request_put(&q, &v[to[from++]]);
		if (request_send(l, &q, &err) != OK)
			fail_msg("send: %s", err.msg);
		for (size_t i = 0; i < q.b.n; i++)
			assert_int_equal(q.b.hs[i].refused + q.b.hs[i].hist_refused, 0);
		request_free(&q);
	}
}

static void any_order_gives_the_same_bytes(void **state)
{
	(void)state;
	uint64_t rounds = full() ? 30 : 2;
	for (uint64_t round = 0; round < rounds; round++) {
		struct arena keep;
		struct span index = {0}, chunks = {0};
		struct point *v = malloc(40000 * sizeof *v);
		uint64_t r = round;
		size_t n = 0;
		arena_init(&keep, GIB);
		for (uint32_t k = 0; k < SERIES; k++) {
			struct hist_maker m;
			hist_maker_init(&m, round * 100 + k);
			m.steady = k % 2;
			int64_t step = k % 3 == 0 ? 1000 : k % 3 == 1 ? 5000 : 400;
			for (int64_t t = T0 + (int64_t)(lab_random(&r) % 1000); t < T0 + RANGE;
				t += step + (k % 2 ? (int64_t)(lab_random(&r) % 50) : 0)) {
				v[n++] = make_point(k, t, &m, &keep, &r);
				if (v[n - 1].is_hist && lab_random(&r) % 30 == 0) {
					struct model one = {.v = (struct entry[]){{v[n - 1], 0}}, .n = 1};
					arena_init(&one.arena, MIB);
					v[n] = again(&one, &r);
					v[n].packed = arena_dup(&keep, v[n].packed);
					arena_free(&one.arena);
					n++;
				}
			}
		}
		uint32_t *to = malloc(n * sizeof *to);
		for (int o = 0; o < 10; o++) {
			struct lab l;
			bool tight = o >= 5; /* raw leaves go at once, and the run is killed midway */
			lab_open(&l, round * 10 + (uint64_t)o, RANGE, 4 * MIB);
			l.n_series = SERIES;
			l.cfg.max_memory_bytes = tight ? 8 * MIB : GIB;
			must_start(&l);
			reorder(to, n, o % 5, &r);
			size_t kill = tight ? lab_random(&r) % n : 0;
			l.cfg.max_memory_bytes = GIB;
			send_some(&l, v, to, 0, kill, &r);
			if (tight) {
				lab_crash(&l, SIM_KEEP_ALL);
				must_start(&l);
			}
			send_some(&l, v, to, kill, n, &r);
			head_cut_direct_bytes = (uint64_t)(o % 2); /* every other time through the spool */
			lab_flush(&l);
			head_cut_direct_bytes = 0;
			assert_int_equal(l.n_blocks, 1);
			struct arena a;
			arena_init(&a, GIB);
			struct span i = slurp(&a, l.blocks[0], "index"), c = slurp(&a, l.blocks[0], "chunks/000001");
			if (o == 0) {
				index = arena_dup(&keep, i);
				chunks = arena_dup(&keep, c);
			} else if (!span_eq(chunks, c) || !span_eq(index, i)) {
				fail_msg("round %llu: order %d gives other bytes", (unsigned long long)round, o);
			}
			arena_free(&a);
			lab_free(&l);
		}
		print_message("%zu samples, %zu bytes of chunks\n", n, chunks.n);
		free(to);
		free(v);
		arena_free(&keep);
	}
}

/* ---- no memory ---- */

/* Any allocation fails: nothing is lost that was acknowledged, and the same request again stores the rest. */
static void allocations_fail(void **state)
{
	(void)state;
	for (uint64_t n = 1, hits = 1; hits > 0; n += full() ? 1 : 1 + n / 16) {
		struct lab l;
		struct model m = {0};
		struct hist_maker maker;
		struct point v[120];
		struct request q;
		struct err err = {0};
		uint64_t r = 5;
		lab_open(&l, n, RANGE, 1 * MIB);
		l.n_series = SERIES;
		must_start(&l);
		arena_init(&m.arena, GIB);
		hist_maker_init(&maker, 17);
		for (size_t i = 0; i < 120; i++)
			v[i] = make_point((uint32_t)(2 + i / 12), T0 + (int64_t)(i * 7919 % 120) * 1000, &maker, &m.arena, &r);
		request_begin(&q, 120);
		for (size_t i = 0; i < 120; i++)
			request_put(&q, &v[i]);
		fail_alloc_at(n, false);
		errc rc = request_send(&l, &q, &err);
		hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM || rc == ERR_AGAIN);
		if (rc != OK && request_send(&l, &q, &err) != OK)
			fail_msg("n %llu: %s", (unsigned long long)n, err.msg);
		for (size_t i = 0; i < 120; i++)
			model_put(&m, &v[i]);
		check(&l, &m, NULL);
		lab_crash(&l, SIM_KEEP_ALL);
		must_start(&l);
		check(&l, &m, NULL);
		request_free(&q);
		lab_free(&l);
		model_free(&m);
	}
}

/* Replay, reading and cutting without memory say so, and work when there is some. */
static void reading_without_memory(void **state)
{
	(void)state;
	struct lab l;
	struct model m = {0};
	struct hist_maker maker;
	struct request q;
	struct err err = {0};
	uint64_t r = 5;
	lab_open(&l, 1, RANGE, 1 * MIB);
	l.n_series = SERIES;
	must_start(&l);
	arena_init(&m.arena, GIB);
	hist_maker_init(&maker, 17);
	request_begin(&q, 400);
	for (size_t i = 0; i < 400; i++) {
		struct point p = make_point(9, T0 + (int64_t)(i % 7 ? i : 400 - i) * 1000, &maker, &m.arena, &r);
		if (model_put(&m, &p) == STORED)
			request_put(&q, &p);
	}
	assert_int_equal(request_send(&l, &q, &err), OK);
	for (uint64_t n = 1, hits = 1; hits > 0; n += full() ? 1 : 1 + n / 8) {
		fail_alloc_at(n, false);
		errc rc = head_flush(l.head, &err);
		hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		if (rc == OK)
			break;
		check(&l, &m, NULL);
		lab_crash(&l, SIM_KEEP_ALL);
		fail_alloc_at(n, false);
		rc = lab_start(&l, &err);
		hits += fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		if (rc != OK)
			must_start(&l);
		check(&l, &m, NULL);
	}
	check(&l, &m, NULL);
	request_free(&q);
	lab_free(&l);
	model_free(&m);
}

/* ---- many threads ---- */

enum { WRITERS = 3, REQUESTS = 60 };

struct writer {
	struct lab *lab;
	uint32_t no;
	_Atomic uint64_t *stored;
};

/* Times are the writer's alone; series are everybody's. */
static void *write_some(void *arg)
{
	struct writer *w = arg;
	struct hist_maker m;
	struct arena keep;
	uint64_t r = w->no;
	hist_maker_init(&m, w->no);
	arena_init(&keep, GIB);
	for (int i = 0; i < REQUESTS; i++) {
		struct request q;
		struct err err = {0};
		request_begin(&q, 50);
		for (int k = 0; k < 50; k++) {
			int64_t t = T0 + ((int64_t)((i * 50 + k) * 7919 % (REQUESTS * 50)) * WRITERS + w->no) * 100;
			struct point p = make_point(2 + (uint32_t)(lab_random(&r) % 10), t, &m, &keep, &r);
			request_put(&q, &p);
		}
		if (request_send(w->lab, &q, &err) != OK)
			fail_msg("send: %s", err.msg);
		for (size_t k = 0; k < q.b.n; k++)
			*w->stored += q.b.hs[k].stored + q.b.hs[k].hist_stored;
		request_free(&q);
	}
	arena_free(&keep);
	return NULL;
}

struct reader {
	struct lab *lab;
	_Atomic bool stop;
};

static void *read_on(void *arg)
{
	struct reader *x = arg;
	while (!x->stop) {
		struct founds f = {0};
		struct err err = {0};
		struct arena a;
		struct source **v;
		size_t n;
		arena_init(&a, 16 * MIB);
		arena_init(&f.arena, GIB);
		assert_int_equal(head_sources(x->lab->head, span_cstr(lab_tenant(0)), INT64_MIN, INT64_MAX, &a, &v, &n, &err), OK);
		for (size_t i = 0; i < n; i++) {
			read_source(v[i], &f);
			v[i]->ops->release(v[i]);
		}
		founds_free(&f);
		arena_free(&a);
	}
	return NULL;
}

static void writers_readers_and_cuts(void **state)
{
	(void)state;
	struct lab l;
	struct founds f;
	_Atomic uint64_t stored = 0;
	struct writer w[WRITERS];
	pthread_t threads[WRITERS], reading;
	struct err err = {0};
	lab_open(&l, 1, RANGE, 8 * MIB);
	l.n_series = SERIES;
	must_start(&l);
	struct reader x = {.lab = &l};
	assert_int_equal(pthread_create(&reading, NULL, read_on, &x), 0);
	for (uint32_t i = 0; i < WRITERS; i++) {
		w[i] = (struct writer){&l, i, &stored};
		assert_int_equal(pthread_create(&threads[i], NULL, write_some, &w[i]), 0);
	}
	for (int i = 0; i < 3; i++)
		assert_int_equal(head_flush(l.head, &err), OK);
	for (uint32_t i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	x.stop = true;
	pthread_join(reading, NULL);
	assert_int_equal(stored, WRITERS * REQUESTS * 50);
	gather(&l, &f);
	assert_int_equal(f.n, stored);
	founds_free(&f);
	assert_int_equal(head_flush(l.head, &err), OK);
	gather(&l, &f);
	assert_int_equal(f.n, stored);
	founds_free(&f);
	lab_free(&l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_sent_comes_back),
		cmocka_unit_test(any_order_gives_the_same_bytes),
		cmocka_unit_test(allocations_fail),
		cmocka_unit_test(reading_without_memory),
		cmocka_unit_test(writers_readers_and_cuts),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
