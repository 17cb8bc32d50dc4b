/* query/query_annotations.c - /api/v1/query_exemplars and /api/v1/metadata.
 *
 * Both are answered from heads alone, this node's and its peers': exemplars and metadata are of the newest time and do not go into blocks. A series shows its external labels, as
 * everywhere; two that they make the same are one.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/json.h"
#include "query/query_fleet_int.h"

static errc too_large(struct err *err, const char *what)
{
	return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "%s do not fit the memory of one read (--query.max-memory)", what);
}

/* Twice as many, or `least`; the arena keeps the old ones until the question is over. */
static void *grown(struct arena *a, const void *v, size_t n, size_t *cap, size_t size, size_t least)
{
	size_t more = *cap ? *cap * 2 : least;
	void *p = arena_alloc(a, more * size);
	if (p && n > 0)
		memcpy(p, v, n * size);
	if (p)
		*cap = more;
	return p;
}

/* ---- exemplars ---- */

struct exemplar_question {
	struct question *qn;
	struct labels ext;
	struct matcher_set *own; /* what of the selectors is left to ask of a series' own labels */
	size_t n_own;
	struct exemplar_series *v;
	size_t n, cap;
};

static bool exemplar_match(void *arg, struct labels series)
{
	const struct exemplar_question *x = arg;
	for (size_t i = 0; i < x->n_own; i++)
		if (matchers_match_labels(x->own[i].m, x->own[i].n, series))
			return true;
	return false;
}

static errc labels_copy(struct labels l, struct arena *arena, struct labels *out, struct err *err)
{
	struct label *v = arena_alloc(arena, l.n * sizeof *v);
	if (!v)
		return too_large(err, "series");
	for (uint32_t i = 0; i < l.n; i++) {
		v[i] = (struct label){arena_dup(arena, l.v[i].name), arena_dup(arena, l.v[i].value)};
		if (!v[i].name.p || !v[i].value.p)
			return too_large(err, "series");
	}
	*out = (struct labels){v, l.n};
	return OK;
}

static errc exemplar_give(void *arg, struct labels series, bool begins, const struct exemplar *e, struct err *err)
{
	errc rc = OK;
	struct exemplar_question *x = arg;
	struct arena *a = &x->qn->arena;
	if (begins) {
		struct labels own;
		TRY(question_check_deadline(x->qn, err));
		if (x->n == x->cap && !(x->v = grown(a, x->v, x->n, &x->cap, sizeof *x->v, 64)))
			return too_large(err, "series");
		struct exemplar_series *s = &x->v[x->n];
		*s = (struct exemplar_series){0};
		TRY(labels_copy(series, a, &own, err));
		TRY(labels_without(own, x->qn->replica, x->qn->n_replica, a, &own, err));
		TRY(external_join(own, x->ext, a, &s->labels, err));
		x->n++;
	}
	struct exemplar_series *s = &x->v[x->n - 1];
	if (s->n == s->cap && !(s->v = grown(a, s->v, s->n, &s->cap, sizeof *s->v, 4)))
		return too_large(err, "exemplars");
	s->v[s->n] = *e;
	s->v[s->n].wire = arena_dup(a, e->wire);
	if (!s->v[s->n].wire.p)
		return too_large(err, "exemplars");
	s->n++;
fail:
	return rc;
}

static int by_labels(const void *a, const void *b)
{
	const struct exemplar_series *x = a, *y = b;
	return labels_cmp(x->labels, y->labels);
}

/* By time; of one time in an order that does not depend on who said it. */
static int by_time(const void *a, const void *b)
{
	const struct exemplar *x = a, *y = b;
	if (x->t != y->t)
		return x->t < y->t ? -1 : 1;
	if (x->v != y->v)
		return x->v < y->v ? -1 : 1;
	return span_cmp(x->wire, y->wire);
}

/* Series that external labels made the same, or that several nodes have, become one, in the order of time; what replicas have in common is there once. */
static errc twins_join(struct exemplar_question *x, struct err *err)
{
	size_t n = 0;
	for (size_t i = 0; i < x->n;) {
		size_t k = i + 1, all = x->v[i].n;
		for (; k < x->n && labels_eq(x->v[i].labels, x->v[k].labels); k++)
			all += x->v[k].n;
		struct exemplar_series s = x->v[i];
		if (k > i + 1) {
			s.v = arena_alloc(&x->qn->arena, all * sizeof *s.v);
			if (!s.v)
				return too_large(err, "exemplars");
			s.n = 0;
			for (size_t j = i; j < k; j++) {
				memcpy(s.v + s.n, x->v[j].v, x->v[j].n * sizeof *s.v);
				s.n += x->v[j].n;
			}
			qsort(s.v, s.n, sizeof *s.v, by_time);
			size_t once = 1;
			for (size_t j = 1; j < s.n; j++)
				if (by_time(&s.v[once - 1], &s.v[j]) != 0)
					s.v[once++] = s.v[j];
			s.n = once;
		}
		x->v[n++] = s;
		i = k;
	}
	x->n = n;
	return OK;
}

static errc exemplars_of_peer(struct exemplar_question *x, struct fleet_peer *p, struct err *err)
{
	errc rc = OK;
	struct arena *a = &x->qn->arena;
	for (;;) {
		struct labels l;
		struct exemplar *v;
		size_t n;
		bool more;
		TRY(fleet_next_exemplars(p, &l, &v, &n, &more, err));
		if (!more)
			return OK;
		if (x->n == x->cap && !(x->v = grown(a, x->v, x->n, &x->cap, sizeof *x->v, 64)))
			return too_large(err, "series");
		struct exemplar_series *s = &x->v[x->n];
		*s = (struct exemplar_series){.v = arena_alloc(a, n * sizeof *v), .n = n, .cap = n};
		if (!s->v)
			return too_large(err, "exemplars");
		TRY(labels_copy(l, a, &s->labels, err));
		for (size_t i = 0; i < n; i++) {
			s->v[i] = v[i];
			s->v[i].wire = arena_dup(a, v[i].wire);
			if (!s->v[i].wire.p)
				return too_large(err, "exemplars");
		}
		x->n++;
	}
fail:
	return rc;
}

static errc exemplars_find(struct exemplar_question *x, const struct matcher_set *sets, size_t n, struct err *err)
{
	errc rc = OK;
	struct question *qn = x->qn;
	struct query *q = qn->q;
	struct label tenant = {SPAN("tenant_id"), qn->tenant};
	struct labels ext;
	TRY(external_join(q->cfg.ext_labels, (struct labels){&tenant, 1}, &qn->arena, &ext, err));
	TRY(labels_without(ext, qn->replica, qn->n_replica, &qn->arena, &x->ext, err));
	x->own = arena_calloc(&qn->arena, n + 1, sizeof *x->own);
	if (!x->own)
		return too_large(err, "selectors");
	for (size_t i = 0; i < n; i++) {
		bool none = false;
		struct matcher_set *own = &x->own[x->n_own];
		TRY(external_matchers(ext, sets[i].m, sets[i].n, &qn->arena, &own->m, &own->n, &none, err));
		x->n_own += !none;
	}
	const struct head_exemplar_read read = {
		.start = qn->mint,
		.end = qn->maxt,
		.match = exemplar_match,
		.give = exemplar_give,
		.arg = x,
	};
	TRY(fleet_ask(qn, FLEET_EXEMPLARS, SPAN(""), sets, n, err));
	if (q->cfg.head && x->n_own > 0)
		TRY(head_exemplars_read(q->cfg.head, qn->tenant, &read, err));
	for (size_t i = 0; i < fleet_ask_peers(qn->ask); i++)
		TRY(exemplars_of_peer(x, fleet_ask_peer(qn->ask, i), err));
	if (x->n > 1)
		qsort(x->v, x->n, sizeof *x->v, by_labels);
	TRY(twins_join(x, err));
fail:
	return rc;
}

errc exemplars_gather(struct question *qn, const struct matcher_set *sets, size_t n, struct exemplar_series **v, size_t *n_series, struct err *err)
{
	struct exemplar_question x = {.qn = qn};
	errc rc = exemplars_find(&x, sets, n, err);
	*v = x.v;
	*n_series = x.n;
	return rc;
}

static errc exemplars_json(const struct exemplar_question *x, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct arena a;
	arena_init(&a, MIB);
	buf_printf(out, "{\"status\":\"success\",\"data\":[");
	for (size_t i = 0; i < x->n; i++) {
		const struct exemplar_series *s = &x->v[i];
		buf_printf(out, "%s{\"seriesLabels\":", i > 0 ? "," : "");
		json_labels(out, s->labels);
		buf_printf(out, ",\"exemplars\":[");
		for (size_t k = 0; k < s->n; k++) {
			struct labels own;
			arena_reset(&a);
			TRY(labels_from_wire(s->v[k].wire, LIMIT_LABELS_DECODE, &a, &own, err));
			buf_printf(out, "%s{\"labels\":", k > 0 ? "," : "");
			json_labels(out, own);
			buf_printf(out, ",\"value\":");
			json_value(out, s->v[k].v);
			buf_printf(out, ",\"timestamp\":");
			json_seconds(out, s->v[k].t);
			buf_u8(out, '}');
		}
		buf_printf(out, "]}");
	}
	buf_u8(out, ']');
	json_warnings(out, x->qn, NULL);
	buf_u8(out, '}');
	if (out->failed)
		rc = too_large(err, "exemplars");
fail:
	arena_free(&a);
	return rc;
}

void query_exemplars(void *arg, struct http_request *r)
{
	errc rc = OK;
	struct query *q = arg;
	struct err err = {0};
	struct question qn;
	struct exemplar_question x = {.qn = &qn};
	struct matcher_set *sets = NULL;
	size_t n_sets = 0;
	struct buf out;
	buf_init(&out, q->cfg.max_memory_bytes);
	metric_add(q->reads, 1);
	question_init(&qn, q, (struct span){"", 0}, 0, 0);
	TRY(http_parse_params(r, &err));
	TRY(http_tenant(r, &qn.tenant, &err));
	TRY(question_params(&qn, r, &err));
	TRY(param_time_ms(r, "start", INT64_MIN, &qn.mint, &err));
	TRY(param_time_ms(r, "end", INT64_MAX, &qn.maxt, &err));
	if (qn.maxt < qn.mint) {
		rc = err_id(&err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"end\": end timestamp must not be before start timestamp");
		goto fail;
	}
	struct span text = http_param(r, "query", 0);
	TRY(selectors_of(text.p ? text : SPAN(""), &qn.arena, &sets, &n_sets, &err));
	/* An expression without selectors asks for nothing and gets a list of nothing, where the reference says 204 without a body. */
	TRY(exemplars_find(&x, sets, n_sets, &err));
	TRY(exemplars_json(&x, &out, &err));
	question_warning_headers(&qn, r);
	http_answer(r, 200, "application/json", span_of(out.p, out.n));
fail:
	if (rc != OK)
		query_error(r, rc, &err);
	matcher_sets_free(sets, n_sets);
	question_free(&qn);
	buf_free(&out);
}

/* ---- metadata ---- */

struct metadata_question {
	struct arena *arena;
	struct metadata *v;
	size_t n, cap;
};

static errc metadata_give(void *arg, const struct metadata *m, struct err *err)
{
	struct metadata_question *x = arg;
	struct arena *a = x->arena;
	bool again = x->n > 0 && span_eq(x->v[x->n - 1].family, m->family);
	if (x->n == x->cap && !(x->v = grown(a, x->v, x->n, &x->cap, sizeof *x->v, 256)))
		return too_large(err, "metadata");
	x->v[x->n] = (struct metadata){
		.family = again ? x->v[x->n - 1].family : arena_dup(a, m->family),
		.type = m->type,
		.help = arena_dup(a, m->help),
		.unit = arena_dup(a, m->unit),
	};
	if (!x->v[x->n].family.p || !x->v[x->n].help.p || !x->v[x->n].unit.p)
		return too_large(err, "metadata");
	x->n++;
	return OK;
}

static int by_family(const void *a, const void *b)
{
	const struct metadata *const *x = a, *const *y = b;
	int c = span_cmp((*x)->family, (*y)->family);
	return c ? c : (*x > *y) - (*x < *y); /* as they came */
}

static bool metadata_same(const struct metadata *a, const struct metadata *b)
{
	return a->type == b->type && span_eq(a->help, b->help) && span_eq(a->unit, b->unit);
}

/* Of this node's head and of its peers', by family; what several say is there once. */
errc metadata_gather(struct question *qn, struct span metric, const struct metadata ***out, size_t *n, struct err *err)
{
	errc rc = OK;
	struct query *q = qn->q;
	struct metadata_question x = {.arena = &qn->arena};
	TRY(fleet_ask(qn, FLEET_METADATA, metric.p ? metric : SPAN(""), NULL, 0, err));
	if (q->cfg.head)
		TRY(head_metadata_read(q->cfg.head, qn->tenant, metric, metadata_give, &x, err));
	for (size_t i = 0; i < fleet_ask_peers(qn->ask); i++)
		TRY(fleet_each_metadata(fleet_ask_peer(qn->ask, i), metadata_give, &x, err));
	const struct metadata **v = arena_alloc(&qn->arena, x.n * sizeof(struct metadata *));
	if (!v)
		return too_large(err, "metadata");
	for (size_t i = 0; i < x.n; i++)
		v[i] = &x.v[i];
	if (x.n > 1)
		qsort(v, x.n, sizeof *v, by_family);
	size_t kept = 0, family = 0;
	for (size_t i = 0; i < x.n; i++) {
		if (kept == 0 || !span_eq(v[family]->family, v[i]->family))
			family = kept;
		bool known = false;
		for (size_t k = family; k < kept && !known; k++)
			known = metadata_same(v[k], v[i]);
		if (!known)
			v[kept++] = v[i];
	}
	*out = v;
	*n = kept;
fail:
	return rc;
}

/* A number as Go's Atoi has it; *out stays when the parameter is not there or empty. */
static errc number(struct http_request *r, const char *name, int64_t *out, struct err *err)
{
	struct span v = http_param(r, name, 0);
	if (!v.p || v.n == 0 || span_to_i64(v, out))
		return OK;
	return err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "%s must be a number", name);
}

static void metadata_json(const struct question *qn, const struct metadata *const *v, size_t n, int64_t limit, int64_t per_family, struct buf *out)
{
	static const char *const types[METRIC_TYPES] = {"unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"};
	buf_printf(out, "{\"status\":\"success\",\"data\":{");
	int64_t families = 0, of_family = 0;
	for (size_t i = 0; i < n; i++) {
		bool begins = i == 0 || !span_eq(v[i]->family, v[i - 1]->family);
		if (begins && limit >= 0 && families == limit)
			break;
		if (begins) {
			buf_printf(out, "%s", families++ > 0 ? "]," : "");
			buf_json_string(out, v[i]->family);
		}
		of_family = begins ? 1 : of_family + 1;
		if (per_family > 0 && of_family > per_family)
			continue;
		buf_printf(out, "%s{\"type\":\"%s\",\"help\":", begins ? ":[" : ",", types[v[i]->type]);
		buf_json_string(out, v[i]->help);
		buf_printf(out, ",\"unit\":");
		buf_json_string(out, v[i]->unit);
		buf_u8(out, '}');
	}
	buf_printf(out, "%s}", families > 0 ? "]" : "");
	json_warnings(out, qn, NULL);
	buf_u8(out, '}');
}

void query_metadata(void *arg, struct http_request *r)
{
	errc rc = OK;
	struct query *q = arg;
	struct err err = {0};
	struct question qn;
	struct buf out;
	int64_t limit = -1, per_family = -1;
	buf_init(&out, q->cfg.max_memory_bytes);
	metric_add(q->reads, 1);
	question_init(&qn, q, (struct span){"", 0}, 0, 0);
	TRY(http_parse_params(r, &err));
	TRY(http_tenant(r, &qn.tenant, &err));
	TRY(question_params(&qn, r, &err));
	TRY(number(r, "limit", &limit, &err));
	TRY(number(r, "limit_per_metric", &per_family, &err));
	struct span metric = http_param(r, "metric", 0);
	if (metric.n == 0)
		metric.p = NULL;
	const struct metadata **v;
	size_t n;
	TRY(metadata_gather(&qn, metric, &v, &n, &err));
	metadata_json(&qn, v, n, limit, per_family, &out);
	if (out.failed)
		TRY(too_large(&err, "metadata"));
	question_warning_headers(&qn, r);
	http_answer(r, 200, "application/json", span_of(out.p, out.n));
fail:
	if (rc != OK)
		query_error(r, rc, &err);
	question_free(&qn);
	buf_free(&out);
}
