/* tests/support/annot_lab.c - see tests/support/annot_lab.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "head/head_annotations_int.h"
#include "tests/support/annot_lab.h"
#include "tests/support/fail_alloc.h"

void annot_begin(struct annot_request *r, uint32_t tenant)
{
	lab_batch_begin(&r->b, tenant);
	buf_init(&r->text, GIB);
	r->n = r->n_meta = 0;
}

void annot_exemplar(struct annot_request *r, int64_t t, uint64_t v, const char *trace)
{
	assert_true(r->n < ANNOT_MAX && r->b.n > 0);
	struct annot_exemplar *e = &r->e[r->n];
	*e = (struct annot_exemplar){.k = r->b.series[r->b.n - 1], .t = t, .v = v};
	snprintf(e->trace, sizeof e->trace, "%s", trace);
	r->of[r->n] = (uint32_t)(r->b.n - 1);
	r->at[r->n++] = r->text.n;
	struct label l = {SPAN("trace_id"), span_cstr(e->trace)};
	if (*trace)
		labels_to_wire((struct labels){&l, 1}, &r->text);
	r->at[r->n] = r->text.n;
}

void annot_metadata(struct annot_request *r, const char *family, enum metric_type type, const char *help, const char *unit)
{
	assert_true(r->n_meta < ANNOT_MAX);
	struct annot_meta *m = &r->m[r->n_meta++];
	*m = (struct annot_meta){.type = type};
	snprintf(m->family, sizeof m->family, "%s", family);
	snprintf(m->help, sizeof m->help, "%s", help);
	snprintf(m->unit, sizeof m->unit, "%s", unit);
}

/* The request as the head takes it. */
struct made {
	struct exemplar x[ANNOT_MAX];
	struct head_exemplars s[ANNOT_MAX];
	uint32_t of[ANNOT_MAX];
	struct metadata m[ANNOT_MAX];
};

static struct made *make(struct annot_request *r)
{
	fail_alloc_pause();
	struct made *x = calloc(1, sizeof *x);
	fail_alloc_resume();
	struct lab_batch *b = &r->b;
	for (size_t i = 0; i < b->n; i++)
		b->hs[i].wire = span_of(b->wire.p + b->wire_at[i], b->wire_at[i + 1] - b->wire_at[i]);
	b->b = (struct head_batch){
		.tenant = span_cstr(lab_tenant(b->tenant)),
		.series = b->hs,
		.n_series = b->n,
		.samples = b->samples,
		.n_samples = b->n_samples,
		.min_t = INT64_MIN,
		.max_t = INT64_MAX,
		.now_ms = io_now_ms(),
	};
	r->a = (struct head_annotations){
		.tenant = b->b.tenant, .series = x->s, .metadata = x->m, .n_metadata = r->n_meta, .max_t = INT64_MAX, .now_ms = b->b.now_ms};
	for (uint32_t i = 0; i < r->n; i++) {
		x->x[i] = (struct exemplar){.wire = span_of(r->text.p ? (char *)r->text.p + r->at[i] : "", r->at[i + 1] - r->at[i]),
			.n_labels = 1,
			.t = r->e[i].t,
			.v = r->e[i].v};
		if (i == 0 || r->of[i] != r->of[i - 1]) {
			x->of[r->a.n_series] = r->of[i];
			x->s[r->a.n_series++] = (struct head_exemplars){.wire = b->hs[r->of[i]].wire, .v = &x->x[i]};
		}
		x->s[r->a.n_series - 1].n++;
	}
	for (uint32_t i = 0; i < r->n_meta; i++)
		x->m[i] = (struct metadata){span_cstr(r->m[i].family), r->m[i].type, span_cstr(r->m[i].help), span_cstr(r->m[i].unit)};
	return x;
}

size_t annot_bound(struct lab *l, struct annot_request *r)
{
	struct made *x = make(r);
	size_t n = head_batch_bound(l->head, &r->b.b) + head_annotations_bound(l->head, &r->a);
	free(x);
	return n;
}

errc annot_send_under(struct lab *l, struct annot_request *r, const struct wal_ticket *ticket, struct err *err)
{
	struct buf records;
	uint32_t n_logged = 0;
	struct err e = {0};
	struct made *x = make(r);
	buf_init(&records, ticket->bytes + 1);
	errc verdict = head_append(l->head, ticket, &r->b.b, &records, &n_logged, &e);
	if (verdict == OK) {
		for (size_t i = 0; i < r->a.n_series; i++)
			x->s[i].known = r->b.hs[x->of[i]].stored + r->b.hs[x->of[i]].duplicate > 0;
		verdict = head_annotate(l->head, ticket, &r->a, &records, &e);
	}
	errc rc = wal_commit_wait(l->wal, ticket, span_of(records.p, records.n), n_logged, err);
	buf_free(&records);
	free(x);
	r->a.series = NULL;
	r->a.metadata = NULL;
	if (verdict != OK && err)
		*err = e;
	return verdict != OK ? verdict : rc;
}

errc annot_send(struct lab *l, struct annot_request *r, struct err *err)
{
	struct wal_ticket ticket;
	errc rc = wal_reserve(l->wal, annot_bound(l, r), &ticket, err);
	return rc == OK ? annot_send_under(l, r, &ticket, err) : rc;
}

void annot_free(struct annot_request *r)
{
	lab_batch_free(&r->b);
	buf_free(&r->text);
}

/* ---- reading ---- */

void annot_put(struct annot_list *l, const struct annot_exemplar *e)
{
	if (l->n == l->cap) {
		l->cap = l->cap * 2 + 64;
		l->v = realloc(l->v, l->cap * sizeof *l->v);
	}
	l->v[l->n++] = *e;
}

static uint64_t key(uint64_t bits)
{
	return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

int annot_cmp(const void *a, const void *b)
{
	const struct annot_exemplar *x = a, *y = b;
	if (x->k != y->k)
		return x->k < y->k ? -1 : 1;
	if (x->t != y->t)
		return x->t < y->t ? -1 : 1;
	if (x->v != y->v)
		return key(x->v) < key(y->v) ? -1 : 1;
	size_t n = strlen(x->trace), m = strlen(y->trace);
	if (n != m) /* the wire form begins with its length */
		return n == 0 || m == 0 ? (n > m) - (n < m) : n < m ? -1 : 1;
	return strcmp(x->trace, y->trace);
}

struct reader {
	struct annot_list out;
	uint32_t k;
	struct lab *lab;
};

/* Which series of the lab these labels are. */
static uint32_t series_of(struct lab *lab, struct labels l)
{
	struct buf wire, other;
	buf_init(&wire, MIB);
	buf_init(&other, MIB);
	labels_to_wire(l, &wire);
	struct span instance = labels_get(l, SPAN("instance")), name = labels_get(l, SPAN("__name__"));
	uint32_t k = (uint32_t)(strtoul(instance.p + 5, NULL, 10) * 5 + (uint32_t)(name.p[7] - '0'));
	lab_wire(k, 0, &other);
	assert_true(k < LAB_SERIES && wire.n == other.n && memcmp(wire.p, other.p, wire.n) == 0);
	buf_free(&wire);
	buf_free(&other);
	(void)lab;
	return k;
}

static bool all(void *arg, struct labels l)
{
	(void)arg;
	assert_true(l.n > 0);
	return true;
}

static errc give(void *arg, struct labels series, bool begins, const struct exemplar *x, struct err *err)
{
	struct reader *r = arg;
	(void)err;
	fail_alloc_pause();
	if (begins)
		r->k = series_of(r->lab, series);
	struct annot_exemplar e = {.k = r->k, .t = x->t, .v = x->v};
	struct arena a;
	struct labels l;
	arena_init(&a, MIB);
	assert_int_equal(labels_from_wire(x->wire, 8, &a, &l, NULL), OK);
	assert_true(l.n <= 1);
	struct span trace = labels_get(l, SPAN("trace_id"));
	assert_true(trace.n < sizeof e.trace);
	memcpy(e.trace, trace.p, trace.n);
	arena_free(&a);
	if (!begins)
		assert_true(annot_cmp(&r->out.v[r->out.n - 1], &e) < 0);
	annot_put(&r->out, &e);
	fail_alloc_resume();
	return OK;
}

struct annot_list annot_read(struct lab *l, uint32_t tenant, int64_t start, int64_t end)
{
	struct err err = {0};
	struct reader r = {.lab = l};
	const struct head_exemplar_read ask = {.start = start, .end = end, .match = all, .give = give, .arg = &r};
	if (head_exemplars_read(l->head, span_cstr(lab_tenant(tenant)), &ask, &err) != OK)
		fail_msg("read: %s", err.msg);
	if (r.out.n > 1)
		qsort(r.out.v, r.out.n, sizeof *r.out.v, annot_cmp);
	return r.out;
}

static errc give_meta(void *arg, const struct metadata *m, struct err *err)
{
	struct annot_meta_list *l = arg;
	(void)err;
	fail_alloc_pause();
	if (l->n == l->cap) {
		l->cap = l->cap * 2 + 64;
		l->v = realloc(l->v, l->cap * sizeof *l->v);
	}
	struct annot_meta *to = &l->v[l->n++];
	*to = (struct annot_meta){.type = m->type};
	assert_true(m->family.n < sizeof to->family && m->help.n < sizeof to->help && m->unit.n < sizeof to->unit);
	memcpy(to->family, m->family.p, m->family.n);
	memcpy(to->help, m->help.p, m->help.n);
	memcpy(to->unit, m->unit.p, m->unit.n);
	fail_alloc_resume();
	return OK;
}

struct annot_meta_list annot_read_meta(struct lab *l, uint32_t tenant, const char *family)
{
	struct err err = {0};
	struct annot_meta_list out = {0};
	struct span f = family ? span_cstr(family) : (struct span){NULL, 0};
	if (head_metadata_read(l->head, span_cstr(lab_tenant(tenant)), f, give_meta, &out, &err) != OK)
		fail_msg("read: %s", err.msg);
	return out;
}

void annot_sane(struct lab *l, uint32_t tenant)
{
	const struct tenant *tn = head_tenant_find(l->head, span_cstr(lab_tenant(tenant)));
	struct exemplar_ring *r = tn ? tn->exemplars : NULL;
	if (!r)
		return;
	pthread_mutex_lock(&r->mu);
	bool sane = exemplar_ring_sane(r);
	pthread_mutex_unlock(&r->mu);
	assert_true(sane);
}
