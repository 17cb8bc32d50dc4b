/* ingest/ingest_repair_door.c - HTTP of repair: parameters in, messages out. Whoever asks as a peer is one (cluster/trust.h), before anything else is looked at. */
#include "base/tenant.h"
#include "cluster/link.h"
#include "ingest/ingest_repair_int.h"

#define REPAIR_CONTENT_TYPE "application/x-varve-repair"

static errc bad(struct err *err, const char *name, struct span text)
{
	return err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"%s\": \"%.*s\"", name, SPAN_ARG(text));
}

/* A number that must be there, or with `fallback` need not. */
static errc number(const struct http_request *q, const char *name, const int64_t *fallback, int64_t *out, struct err *err)
{
	struct span s = http_param(q, name, 0);
	if (!s.p && fallback) {
		*out = *fallback;
		return OK;
	}
	return s.p && span_to_i64(s, out) ? OK : bad(err, name, s.p ? s : SPAN(""));
}

static errc with_of(const struct http_request *q, struct span *with, struct err *err)
{
	*with = http_param(q, "with", 0);
	return with->p && with->n > 0 && with->n <= LIMIT_RING_ADDRESS_BYTES ? OK : bad(err, "with", with->p ? *with : SPAN(""));
}

static errc begin(struct repair *r, struct http_request *q, struct span *with, struct err *err)
{
	errc rc = OK;
	TRY(link_check(r->cfg.trust, q, err));
	TRY(http_parse_params(q, err));
	TRY(with_of(q, with, err));
fail:
	return rc;
}

/* Half open outside, closed inside; from and until are within any window's reach or they are cut to it. */
static errc question_of(struct repair *r, struct http_request *q, struct repair_question *out, struct err *err)
{
	errc rc = OK;
	struct digest_range *g = &out->range;
	*out = (struct repair_question){.goes_on = false};
	TRY(begin(r, q, &out->with, err));
	g->tenant = http_param(q, "tenant", 0);
	if (!g->tenant.p || !tenant_valid(g->tenant)) {
		rc = bad(err, "tenant", g->tenant.p ? g->tenant : SPAN(""));
		goto fail;
	}
	TRY(number(q, "start", NULL, &g->start, err));
	TRY(number(q, "range", NULL, &g->range, err));
	TRY(number(q, "from", NULL, &g->mint, err));
	TRY(number(q, "until", NULL, &g->maxt, err));
	if (g->range <= 0 || g->start > INT64_MAX - g->range)
		rc = bad(err, "range", http_param(q, "range", 0));
fail:
	return rc;
}

static void answer(struct http_request *q, errc rc, const char *type, const struct buf *out, const struct err *err)
{
	if (rc == OK)
		http_answer(q, 200, type, span_of(out->p, out->n));
	else
		http_error_of(q, err);
}

void repair_peer_windows(void *arg, struct http_request *q)
{
	struct repair *r = arg;
	static const int64_t none;
	struct err err = {0};
	errc rc = OK;
	struct span with;
	struct buf out;
	int64_t from;
	buf_init(&out, LIMIT_REPAIR_ANSWER_BYTES);
	TRY(begin(r, q, &with, &err));
	TRY(number(q, "from", &none, &from, &err));
	if (from < 0 || from >= UINT32_MAX)
		rc = bad(&err, "from", http_param(q, "from", 0));
	else
		rc = repair_serve_windows(r, with, (uint32_t)from, &out, &err);
fail:
	answer(q, rc, REPAIR_CONTENT_TYPE, &out, &err);
	buf_free(&out);
}

void repair_peer_digest(void *arg, struct http_request *q)
{
	struct repair *r = arg;
	struct err err = {0};
	errc rc = OK;
	struct repair_question question;
	struct buf out;
	buf_init(&out, LIMIT_REPAIR_ANSWER_BYTES);
	TRY(question_of(r, q, &question, &err));
	TRY(repair_serve_digest(r, &question, &out, &err));
fail:
	answer(q, rc, REPAIR_CONTENT_TYPE, &out, &err);
	buf_free(&out);
}

void repair_peer_window(void *arg, struct http_request *q)
{
	struct repair *r = arg;
	struct err err = {0};
	errc rc = OK;
	struct repair_question question;
	struct buf out;
	buf_init(&out, LIMIT_REPAIR_ANSWER_BYTES);
	TRY(question_of(r, q, &question, &err));
	question.metadata = http_param(q, "metadata", 0).n > 0;
	struct span buckets = http_param(q, "buckets", 0), cursor = http_param(q, "cursor", 0);
	if (!question.metadata && (!buckets.p || !repair_buckets_parse(buckets, question.buckets))) {
		rc = bad(&err, "buckets", buckets.p ? buckets : SPAN(""));
		goto fail;
	}
	question.goes_on = cursor.p && cursor.n > 0;
	if (question.goes_on && !repair_cursor_parse(cursor, &question.cursor)) {
		rc = bad(&err, "cursor", cursor);
		goto fail;
	}
	TRY(repair_serve_piece(r, &question, &out, &err));
fail:
	answer(q, rc, REPAIR_CONTENT_TYPE, &out, &err);
	buf_free(&out);
}

void repair_peer_owed(void *arg, struct http_request *q)
{
	struct repair *r = arg;
	struct err err = {0};
	errc rc = OK;
	struct span with;
	int64_t to;
	struct buf out;
	buf_init(&out, LIMIT_REPAIR_ANSWER_BYTES);
	TRY(begin(r, q, &with, &err));
	if (http_method(q) == HTTP_POST) {
		TRY(number(q, "to", NULL, &to, &err));
		if (r->cfg.repaired)
			r->cfg.repaired(r->cfg.arg, with, to);
	}
	TRY(repair_serve_owed(r, with, &out, &err));
fail:
	answer(q, rc, REPAIR_CONTENT_TYPE, &out, &err);
	buf_free(&out);
}

void repair_peer_ask(void *arg, struct http_request *q)
{
	struct repair *r = arg;
	struct err err = {0};
	errc rc = OK;
	struct span with;
	TRY(begin(r, q, &with, &err));
	if (!repair_told(r, with))
		rc = err_id(&err, ERRID_NOT_READY, ERR_AGAIN, "%.*s is none of the nodes that this one compares with", SPAN_ARG(with));
fail:
	if (rc == OK)
		http_answer(q, 200, NULL, SPAN("noted\n"));
	else
		http_error_of(q, &err);
}

void repair_status(void *arg, struct http_request *q)
{
	struct repair *r = arg;
	struct err err = {0};
	errc rc = OK;
	struct buf out;
	buf_init(&out, LIMIT_REPAIR_ANSWER_BYTES);
	if (http_method(q) == HTTP_POST || http_method(q) == HTTP_PUT)
		repair_all(r);
	repair_json(r, &out);
	if (out.failed)
		rc = err_id(&err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for the state of repair");
	answer(q, rc, "application/json", &out, &err);
	buf_free(&out);
}

void repair_digest(void *arg, struct http_request *q)
{
	struct repair *r = arg;
	static const int64_t least = INT64_MIN, most = INT64_MAX;
	struct err err = {0};
	errc rc = OK;
	int64_t from, until;
	struct buf out;
	buf_init(&out, 2 * LIMIT_REPAIR_ANSWER_BYTES);
	TRY(http_parse_params(q, &err));
	struct span tenant = http_param(q, "tenant", 0);
	if (tenant.p && !tenant_valid(tenant)) {
		rc = bad(&err, "tenant", tenant);
		goto fail;
	}
	TRY(number(q, "from", &least, &from, &err));
	TRY(number(q, "until", &most, &until, &err));
	TRY(repair_serve_totals(r, tenant.p ? tenant : SPAN(""), from, until, &out, &err));
fail:
	answer(q, rc, "application/json", &out, &err);
	buf_free(&out);
}
