/* query/query_metadata.c - /api/v1/series, /api/v1/labels and /api/v1/label/<name>/values over all sources.
 *
 * Series are streamed as the merge gives them. Names and values of many sources are gathered in one set that holds each once; its memory is the
 * question's. External labels are seen as in Thanos: the label tenant_id has exactly the values of the sources that match.
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/json.h"
#include "base/log.h"
#include "query/query_fleet_int.h"

enum { RETRIES_MAX = 100 };
static const char truncated_words[] = "results truncated due to limit"; /* Prometheus' */

/* ---- a set of strings ---- */

struct names {
	struct span *slots;
	size_t n, cap; /* cap: a power of two */
	struct arena *arena;
};

static uint64_t hash(struct span s)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);
	for (size_t i = 0; i < s.n; i++)
		h = (h ^ (uint8_t)s.p[i]) * UINT64_C(0x100000001b3);
	return h ^ (h >> 29);
}

static struct span *place(const struct names *s, struct span value)
{
	size_t i = (size_t)hash(value) & (s->cap - 1);
	while (s->slots[i].p && !span_eq(s->slots[i], value))
		i = (i + 1) & (s->cap - 1);
	return &s->slots[i];
}

static errc names_add(void *arg, struct span value, struct err *err)
{
	struct names *s = arg;
	if (s->n * 4 >= s->cap * 3) {
		struct names bigger = {.cap = s->cap ? s->cap * 2 : 1024, .arena = s->arena, .n = s->n};
		bigger.slots = arena_calloc(s->arena, bigger.cap, sizeof *bigger.slots);
		if (!bigger.slots)
			return err_id(
				err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "%zu names do not fit the memory of one read (--query.max-memory)", s->n);
		for (size_t i = 0; i < s->cap; i++)
			if (s->slots[i].p)
				*place(&bigger, s->slots[i]) = s->slots[i];
		*s = bigger;
	}
	struct span *at = place(s, value);
	if (at->p)
		return OK;
	*at = arena_dup(s->arena, value);
	if (!at->p)
		return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "%zu names do not fit the memory of one read (--query.max-memory)", s->n);
	s->n++;
	return OK;
}

static int by_span(const void *a, const void *b)
{
	return span_cmp(*(const struct span *)a, *(const struct span *)b);
}

static errc names_sorted(const struct names *s, struct span **out, struct err *err)
{
	struct span *v = arena_alloc(s->arena, s->n * sizeof *v);
	if (!v)
		return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "%zu names do not fit the memory of one read (--query.max-memory)", s->n);
	size_t n = 0;
	for (size_t i = 0; i < s->cap; i++)
		if (s->slots[i].p)
			v[n++] = s->slots[i];
	if (n > 1)
		qsort(v, n, sizeof *v, by_span);
	*out = v;
	return OK;
}

/* ---- what the endpoints share ---- */

struct asked {
	struct query *q;
	struct http_request *r;
	struct span tenant;
	int64_t start, end;
	size_t limit;
	struct span name; /* label values */
	bool values;
};

static errc parse(struct asked *a, struct question *qn, struct err *err)
{
	errc rc = OK;
	TRY(http_parse_params(a->r, err));
	TRY(http_tenant(a->r, &a->tenant, err));
	TRY(param_time_ms(a->r, "start", INT64_MIN, &a->start, err));
	TRY(param_time_ms(a->r, "end", INT64_MAX, &a->end, err));
	TRY(param_limit(a->r, &a->limit, err));
	TRY(question_params(qn, a->r, err));
	qn->tenant = a->tenant;
	qn->mint = a->start;
	qn->maxt = a->end;
	if (a->end < a->start)
		rc = err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"end\": end timestamp must not be before start timestamp");
fail:
	return rc;
}

struct name_question {
	bool values; /* of `name`; else names */
	struct span name;
};

/* One source's share of names or values, for one set of matchers (n == 0: all series). */
static errc from_source(
	const struct name_question *a, struct question *qn, struct qsource *s, const struct matcher_set *set, struct names *out, struct err *err)
{
	errc rc = OK;
	struct matcher *own = NULL;
	size_t n_own = 0;
	bool none = false;
	struct labels shown;
	const struct select_options opt = {.mint = qn->mint, .maxt = qn->maxt, .skip_chunks = true};
	TRY(labels_without(s->ext, qn->replica, qn->n_replica, &qn->arena, &shown, err));
	if (set)
		TRY(external_matchers(s->ext, set->m, set->n, &qn->arena, &own, &n_own, &none, err));
	if (none)
		return OK;
	/* External labels are there for every series: one matching series is enough. */
	bool external = false;
	for (uint32_t i = 0; i < shown.n; i++)
		external |= a->values && span_eq(shown.v[i].name, a->name);
	if (external || (!a->values && n_own > 0)) {
		struct series_iter *it;
		struct series_view v;
		bool more = false;
		TRY(s->src->ops->select(s->src, own, n_own, &opt, &it, err));
		rc = it->ops->next(it, &v, &more, err);
		it->ops->close(it);
		if (rc != OK || !more)
			return rc;
	}
	if (external) {
		for (uint32_t i = 0; i < shown.n; i++)
			if (span_eq(shown.v[i].name, a->name))
				TRY(names_add(out, shown.v[i].value, err));
		return OK;
	}
	if (a->values)
		return s->src->ops->label_values(s->src, a->name, own, n_own, &opt, names_add, out, err);
	size_t before = out->n;
	TRY(s->src->ops->label_names(s->src, own, n_own, &opt, names_add, out, err));
	/* Without matchers an empty source must not show its external labels; names it had before may all be known already. */
	if (n_own > 0 || out->n > before || before > 0)
		for (uint32_t i = 0; i < shown.n; i++)
			TRY(names_add(out, shown.v[i].name, err));
fail:
	return rc;
}

static bool is_replica(const struct question *qn, struct span name)
{
	for (size_t i = 0; i < qn->n_replica; i++)
		if (span_eq(qn->replica[i], name))
			return true;
	return false;
}

errc names_gather(struct question *qn, bool values, struct span name, const struct matcher_set *sets, size_t n_sets, struct span **v, size_t *n,
	struct err *err)
{
	errc rc = OK;
	const struct name_question a = {values, name};
	struct names names = {.arena = &qn->arena};
	*n = 0;
	/* A label that is left out has no values. */
	if (values && is_replica(qn, name))
		return OK;
	TRY(fleet_ask(qn, values ? FLEET_VALUES : FLEET_NAMES, name, sets, n_sets, err));
	TRY(question_sources(qn, err));
	for (size_t i = 0; i < qn->n_sources; i++) {
		TRY(question_check_deadline(qn, err));
		for (size_t k = 0; k < (n_sets ? n_sets : 1); k++) {
			rc = from_source(&a, qn, &qn->sources[i], n_sets ? &sets[k] : NULL, &names, err);
			if (rc == OK)
				continue;
			qn->blamed = qn->sources[i].src->ulid;
			qn->blamed_kind = qn->sources[i].src->kind;
			goto fail;
		}
	}
	for (size_t i = 0; i < fleet_ask_peers(qn->ask); i++)
		TRY(fleet_each_string(fleet_ask_peer(qn->ask, i), names_add, &names, err));
	TRY(names_sorted(&names, v, err));
	for (size_t i = 0; i < names.n; i++)
		if (values || !is_replica(qn, (*v)[i]))
			(*v)[(*n)++] = (*v)[i];
fail:
	return rc;
}

static errc gather(struct asked *a, struct question *qn, struct span **v, size_t *n, struct err *err)
{
	errc rc = OK;
	struct matcher_set *sets = NULL;
	size_t n_sets = 0;
	TRY(param_matchers(a->r, &qn->arena, &sets, &n_sets, err));
	TRY(names_gather(qn, a->values, a->name, sets, n_sets, v, n, err));
fail:
	matcher_sets_free(sets, n_sets);
	return rc;
}

static void answer_names(struct asked *a)
{
	errc rc = OK;
	struct err err = {0};
	struct question qn;
	struct buf out;
	buf_init(&out, a->q->cfg.max_memory_bytes);
	metric_add(a->q->reads, 1);
	question_init(&qn, a->q, a->tenant, 0, 0);
	TRY(parse(a, &qn, &err));
	struct span *v = NULL;
	size_t n = 0;
	for (int i = 0;; i++) {
		rc = gather(a, &qn, &v, &n, &err);
		if (rc == OK || i == RETRIES_MAX || !question_blame(&qn, rc, &err))
			break;
		metric_add(a->q->retries, 1);
		question_release(&qn);
	}
	TRY(rc);
	bool truncated = a->limit > 0 && n > a->limit;
	n = truncated ? a->limit : n;
	buf_printf(&out, "{\"status\":\"success\",\"data\":[");
	for (size_t i = 0; i < n; i++) {
		if (i > 0)
			buf_u8(&out, ',');
		buf_json_string(&out, v[i]);
	}
	buf_u8(&out, ']');
	json_warnings(&out, &qn, truncated ? truncated_words : NULL);
	buf_u8(&out, '}');
	if (out.failed)
		TRY(err_id(&err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "the answer does not fit the memory of one read (--query.max-memory)"));
	question_warning_headers(&qn, a->r);
	http_answer(a->r, 200, "application/json", span_of(out.p, out.n));
fail:
	if (rc != OK)
		query_error(a->r, rc, &err);
	question_free(&qn);
	buf_free(&out);
}

void query_labels(void *q, struct http_request *r)
{
	struct asked a = {.q = q, .r = r};
	answer_names(&a);
}

/* Prometheus' escape for names that are not plain: U__ in front, _HEX_ for a code point, __ for an underscore. */
static struct span unescape(struct span name, struct arena *arena)
{
	if (!span_has_prefix(name, SPAN("U__")))
		return name;
	char *out = arena_alloc(arena, name.n * 2);
	size_t n = 0;
	for (size_t i = 3; out && i < name.n; i++) {
		if (name.p[i] != '_') {
			out[n++] = name.p[i];
			continue;
		}
		if (i + 1 < name.n && name.p[i + 1] == '_') {
			out[n++] = '_';
			i++;
			continue;
		}
		uint32_t c = 0;
		size_t k = i + 1;
		for (; k < name.n && name.p[k] != '_' && k - i < 8; k++) {
			int d = name.p[k] >= '0' && name.p[k] <= '9'   ? name.p[k] - '0'
				: name.p[k] >= 'a' && name.p[k] <= 'f' ? name.p[k] - 'a' + 10
				: name.p[k] >= 'A' && name.p[k] <= 'F' ? name.p[k] - 'A' + 10
								       : -1;
			if (d < 0)
				return name;
			c = c << 4 | (uint32_t)d;
		}
		if (k == name.n || name.p[k] != '_' || k == i + 1 || c > 0x10ffff)
			return name;
		if (c < 0x80) {
			out[n++] = (char)c;
		} else if (c < 0x800) {
			out[n++] = (char)(0xc0 | c >> 6);
			out[n++] = (char)(0x80 | (c & 0x3f));
		} else if (c < 0x10000) {
			out[n++] = (char)(0xe0 | c >> 12);
			out[n++] = (char)(0x80 | (c >> 6 & 0x3f));
			out[n++] = (char)(0x80 | (c & 0x3f));
		} else {
			out[n++] = (char)(0xf0 | c >> 18);
			out[n++] = (char)(0x80 | (c >> 12 & 0x3f));
			out[n++] = (char)(0x80 | (c >> 6 & 0x3f));
			out[n++] = (char)(0x80 | (c & 0x3f));
		}
		i = k;
	}
	return out ? span_of(out, n) : name;
}

void query_label_values(void *q, struct http_request *r)
{
	struct asked a = {.q = q, .r = r, .values = true, .name = unescape(http_path_arg(r), http_arena(r))};
	if (a.name.n == 0 || !span_is_utf8(a.name)) {
		http_error(r, ERRID_BAD_PARAMETER, "invalid label name");
		return;
	}
	answer_names(&a);
}

/* ---- series ---- */

struct series_answer {
	struct asked *a;
	struct buf out;
	bool streaming;
	size_t n;
	bool truncated;
};

enum { FLUSH_BYTES = 256 * 1024 };

static errc flush(struct series_answer *s, struct question *qn, struct err *err)
{
	errc rc = OK;
	if (!s->streaming) {
		question_warning_headers(qn, s->a->r);
		TRY(http_stream_begin(s->a->r, 200, "application/json", err));
		s->streaming = true;
	}
	TRY(http_stream_write(s->a->r, span_of(s->out.p, s->out.n), err));
	buf_clear(&s->out);
fail:
	return rc;
}

static errc series_all(struct series_answer *s, struct question *qn, struct err *err)
{
	errc rc = OK;
	struct matcher_set *sets = NULL;
	size_t n_sets = 0;
	struct merge *m = NULL;
	TRY(param_matchers(s->a->r, &qn->arena, &sets, &n_sets, err));
	if (n_sets == 0) {
		rc = err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "no match[] parameter provided");
		goto fail;
	}
	TRY(fleet_ask(qn, FLEET_SERIES, SPAN(""), sets, n_sets, err));
	TRY(question_sources(qn, err));
	TRY(merge_open(qn, sets, n_sets, true, &m, err));
	buf_printf(&s->out, "{\"status\":\"success\",\"data\":[");
	for (;;) {
		struct merged one;
		bool more;
		TRY(merge_next(m, &one, &more, err));
		if (!more)
			break;
		if (s->a->limit > 0 && s->n == s->a->limit) {
			s->truncated = true;
			break;
		}
		if (s->n++ > 0)
			buf_u8(&s->out, ',');
		json_labels(&s->out, one.labels);
		if (s->out.n >= FLUSH_BYTES)
			TRY(flush(s, qn, err));
	}
	buf_u8(&s->out, ']');
	json_warnings(&s->out, qn, s->truncated ? truncated_words : NULL);
	buf_u8(&s->out, '}');
	CHECK(!s->out.failed, ERR_NOMEM, "no memory for a part of the answer");
	metric_add(s->a->q->series, s->n);
fail:
	merge_close(m);
	matcher_sets_free(sets, n_sets);
	return rc;
}

void query_series(void *q, struct http_request *r)
{
	struct asked a = {.q = q, .r = r};
	struct series_answer s = {.a = &a};
	struct err err = {0};
	struct question qn;
	errc rc = OK;
	buf_init(&s.out, 64 * MIB);
	metric_add(a.q->reads, 1);
	question_init(&qn, a.q, a.tenant, 0, 0);
	TRY(parse(&a, &qn, &err));
	for (int i = 0;; i++) {
		rc = series_all(&s, &qn, &err);
		if (rc == OK || s.streaming || i == RETRIES_MAX || !question_blame(&qn, rc, &err))
			break;
		metric_add(a.q->retries, 1);
		question_release(&qn);
		buf_clear(&s.out);
		s.n = 0;
	}
	if (rc == OK && s.streaming)
		rc = flush(&s, &qn, &err);
fail:
	if (s.streaming)
		http_stream_end(r, rc == OK);
	else if (rc == OK) {
		question_warning_headers(&qn, r);
		http_answer(r, 200, "application/json", span_of(s.out.p, s.out.n));
	} else
		query_error(r, rc, &err);
	question_free(&qn);
	buf_free(&s.out);
}
