/* query/query_remote_read.c - POST /api/v1/read: SAMPLES (one snappy message) or STREAMED_XOR_CHUNKS (a frame a series).
 *
 * Source: Prometheus' remote-read protocol (docs/format/remote.md). A streamed series stands whole in one frame, because clients take each frame for
 * a new series, and its chunks ascend without overlap. Streamed answers hold one series in memory; SAMPLES answers are one message by definition and
 * are bounded by --query.max-samples and --query.max-memory.
 */
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_fleet_int.h"

enum { RETRIES_MAX = 100 };

struct warning {
	const char *text;
	struct warning *next;
};

struct reader {
	struct query *q;
	struct http_request *r;
	struct span tenant;
	struct rr_request req;
	bool streaming; /* the answer has begun: an error can only break it off */
	uint64_t samples;
	struct buf out;
	struct arena series;	  /* one series' memory */
	struct question question; /* of the query at hand */
	struct question *qn;	  /* of the query that is being answered */
	struct warning *warnings; /* of all queries, in the request's arena */
};

/* Hints narrow the range (a rate over 5m asks for more than the hint says it uses); the query's own range is what must be answered. */
static errc matchers_of(const struct rr_query *query, struct arena *arena, struct matcher_set *set, struct err *err)
{
	if (query->n_matchers > LIMIT_QUERY_MATCHERS)
		return err_id(err, ERRID_BAD_MATCHER, ERR_LIMIT, "%zu matchers, at most %d are allowed", query->n_matchers, LIMIT_QUERY_MATCHERS);
	set->m = arena_calloc(arena, query->n_matchers, sizeof *set->m);
	set->n = 0;
	if (!set->m)
		return err_set(err, ERR_NOMEM, "no memory for matchers");
	for (size_t i = 0; i < query->n_matchers; i++) {
		const struct rr_matcher *m = &query->matchers[i];
		if (m->type < 0 || m->type > 3)
			return err_id(err, ERRID_BAD_MATCHER, ERR_INVALID, "matcher type %d is unknown", m->type);
		errc rc = matcher_init(&set->m[i], (enum matcher_type)m->type, m->name, m->value, arena, err);
		if (rc != OK) {
			if (err && !err->id)
				err->id = errid_text(ERRID_BAD_MATCHER);
			return rc;
		}
		set->n++;
	}
	return OK;
}

static void put_labels(struct buf *out, struct labels l)
{
	for (uint32_t i = 0; i < l.n; i++) {
		size_t at = pb_begin(out, 1);
		pb_bytes(out, 1, l.v[i].name);
		pb_bytes(out, 2, l.v[i].value);
		pb_end(out, at);
	}
}

/* ---- SAMPLES ---- */

static errc put_series_samples(struct reader *rd, const struct merged *s, const struct rr_query *query, struct err *err)
{
	errc rc = OK;
	struct buf *out = &rd->out;
	struct sample_iter *it = NULL;
	size_t begin = out->n, at = pb_begin(out, 1);
	uint64_t n = 0;
	put_labels(out, s->labels);
	TRY(samples_open(s, query->start_ms, query->end_ms, &rd->series, &it, err));
	for (;; n++) {
		struct chunk_point p;
		bool more;
		TRY(samples_next(it, &p, &more, err));
		if (!more)
			break;
		if (p.kind == SAMPLE_FLOAT) {
			size_t sample = pb_begin(out, 2);
			/* Zero bits are the default and left out; -0.0 is not zero bits. */
			if (p.v != 0)
				pb_double_bits(out, 1, p.v);
			if (p.t != 0)
				pb_uint(out, 2, (uint64_t)p.t);
			pb_end(out, sample);
		} else {
			pb_histogram(out, 4, p.t, p.kind, p.h);
		}
		if (++rd->samples > rd->q->cfg.max_samples) {
			rc = err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "more than %llu samples in one answer (--query.max-samples)",
				(unsigned long long)rd->q->cfg.max_samples);
			goto fail;
		}
	}
	if (n == 0) {
		out->n = begin;
		goto fail;
	}
	pb_end(out, at);
	metric_add(rd->q->series, 1);
	metric_add(rd->q->samples, n);
	if (out->failed)
		rc = err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "the answer does not fit the memory of one read (--query.max-memory)");
fail:
	samples_close(it);
	return rc;
}

/* ---- STREAMED_XOR_CHUNKS ---- */

static errc send_frame(struct reader *rd, errc (*begin)(struct reader *rd, struct err *err), struct err *err)
{
	uint8_t head[UVARINT_MAX_BYTES + 4];
	uint8_t *p = put_uvarint(head, rd->out.n);
	put_be32(p, crc32c(0, rd->out.p, rd->out.n));
	errc rc = begin(rd, err);
	if (rc == OK)
		rc = http_stream_write(rd->r, span_of(head, (size_t)(p + 4 - head)), err);
	if (rc == OK)
		rc = http_stream_write(rd->r, span_of(rd->out.p, rd->out.n), err);
	return rc;
}

/* What the question warns of, once each. */
static void warnings_take(struct reader *rd)
{
	const char *text;
	for (size_t i = 0; rd->qn && (text = question_warning(rd->qn, i)); i++) {
		struct warning **at = &rd->warnings;
		while (*at && strcmp((*at)->text, text) != 0)
			at = &(*at)->next;
		struct warning *w = *at ? NULL : arena_calloc(http_arena(rd->r), 1, sizeof *w);
		if (w && (w->text = arena_printf(http_arena(rd->r), "%s", text)))
			*at = w;
	}
}

static void warnings_send(const struct reader *rd)
{
	for (const struct warning *w = rd->warnings; w; w = w->next)
		http_set_header(rd->r, "X-Varve-Warning", w->text);
}

static errc begin_stream(struct reader *rd, struct err *err)
{
	if (rd->streaming)
		return OK;
	warnings_take(rd);
	warnings_send(rd);
	errc rc = http_stream_begin(rd->r, 200, "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse", err);
	rd->streaming = rc == OK;
	if (rd->qn)
		rd->qn->committed = !rd->warnings;
	return rc;
}

static errc put_series_chunks(struct reader *rd, const struct merged *s, const struct rr_query *query, size_t index, struct err *err)
{
	struct chunk *chunks;
	size_t n;
	errc rc = samples_chunks(s, query->start_ms, query->end_ms, &rd->series, &chunks, &n, err);
	if (rc != OK || n == 0)
		return rc;
	struct buf *out = &rd->out;
	buf_clear(out);
	size_t series = pb_begin(out, 1);
	put_labels(out, s->labels);
	for (size_t i = 0; i < n; i++) {
		size_t at = pb_begin(out, 2);
		if (chunks[i].mint != 0)
			pb_uint(out, 1, (uint64_t)chunks[i].mint);
		if (chunks[i].maxt != 0)
			pb_uint(out, 2, (uint64_t)chunks[i].maxt);
		pb_uint(out, 3, chunks[i].enc);
		pb_bytes(out, 4, chunks[i].data);
		pb_end(out, at);
	}
	pb_end(out, series);
	if (index > 0)
		pb_uint(out, 2, index);
	if (out->failed)
		return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "a series does not fit the memory of one read (--query.max-memory)");
	metric_add(rd->q->series, 1);
	return send_frame(rd, begin_stream, err);
}

/* ---- both ---- */

static errc run_query(struct reader *rd, struct question *qn, const struct rr_query *query, size_t index, struct err *err)
{
	errc rc = OK;
	struct merge *m = NULL;
	struct matcher_set set = {0};
	TRY(matchers_of(query, &qn->arena, &set, err));
	TRY(fleet_ask(qn, FLEET_SAMPLES, SPAN(""), &set, 1, err));
	TRY(question_sources(qn, err));
	TRY(merge_open(qn, &set, 1, false, &m, err));
	for (;;) {
		struct merged s;
		bool more;
		TRY(merge_next(m, &s, &more, err));
		if (!more)
			break;
		arena_reset(&rd->series);
		if (rd->req.streamed)
			TRY(put_series_chunks(rd, &s, query, index, err));
		else
			TRY(put_series_samples(rd, &s, query, err));
	}
	warnings_take(rd);
fail:
	merge_close(m);
	matchers_free(set.m, set.n);
	return rc;
}

/* A query, again without a block that proves damaged, as long as nothing of it has been sent. */
static errc answer_query(struct reader *rd, const struct rr_query *query, size_t index, struct err *err)
{
	errc rc;
	struct question *qn = &rd->question;
	size_t begin = rd->out.n;
	uint64_t samples = rd->samples;
	question_init(qn, rd->q, rd->tenant, query->start_ms, query->end_ms);
	rd->qn = qn;
	rc = question_params(qn, rd->r, err);
	if (rc != OK)
		goto fail;
	/* Whoever was warned already may miss more. */
	qn->committed = rd->streaming && !rd->warnings;
	for (int i = 0;; i++) {
		if (!rd->req.streamed) {
			rd->out.n = begin;
			rd->samples = samples;
		}
		size_t result = rd->req.streamed ? 0 : pb_begin(&rd->out, 1);
		rc = query->start_ms <= query->end_ms ? run_query(rd, qn, query, index, err) : OK;
		if (rc == OK && !rd->req.streamed)
			pb_end(&rd->out, result);
		if (rc == OK || rd->streaming || i == RETRIES_MAX || !question_blame(qn, rc, err))
			break;
		metric_add(rd->q->retries, 1);
		question_release(qn);
	}
	/* Broken off in mid-stream by a damaged block: noted, so that the client's next try goes without it. */
	if (rc != OK && rd->streaming)
		(void)question_blame(qn, rc, err);
fail:
	question_free(qn);
	rd->qn = NULL;
	return rc;
}

static errc decode(struct reader *rd, struct err *err)
{
	errc rc = OK;
	struct span body;
	struct arena *a = http_arena(rd->r);
	TRY(http_parse_params(rd->r, err));
	TRY(http_tenant(rd->r, &rd->tenant, err));
	TRY(snappy_decode(http_body(rd->r), LIMIT_HTTP_READ_BODY_BYTES * LIMIT_INGEST_DECODED_FACTOR, a, &body, err));
	TRY(rr_decode(body, a, &rd->req, err));
fail:
	return rc;
}

static void send_samples(struct reader *rd)
{
	struct buf packed;
	struct err err = {0};
	buf_init(&packed, rd->q->cfg.max_memory_bytes + MIB);
	if (snappy_encode(span_of(rd->out.p, rd->out.n), &packed, &err) != OK) {
		http_error(rd->r, ERRID_QUERY_TOO_LARGE, "the answer does not fit the memory of one read (--query.max-memory)");
	} else {
		warnings_send(rd);
		http_set_header(rd->r, "Content-Encoding", "snappy");
		http_answer(rd->r, 200, "application/x-protobuf", span_of(packed.p, packed.n));
	}
	buf_free(&packed);
}

void query_remote_read(void *arg, struct http_request *r)
{
	struct query *q = arg;
	struct err err = {0};
	errc rc = OK;
	struct reader rd = {.q = q, .r = r};
	buf_init(&rd.out, q->cfg.max_memory_bytes);
	arena_init(&rd.series, q->cfg.max_memory_bytes);
	metric_add(q->reads, 1);
	TRY(decode(&rd, &err));
	for (size_t i = 0; i < rd.req.n_queries; i++)
		TRY(answer_query(&rd, &rd.req.queries[i], i, &err));
	if (rd.req.streamed)
		TRY(begin_stream(&rd, &err));
fail:
	if (rc != OK)
		log_debug("remote read failed", LERR(&err));
	if (rd.streaming)
		http_stream_end(r, rc == OK);
	else if (rc == OK && !rd.req.streamed)
		send_samples(&rd);
	else
		query_error(r, rc, &err);
	arena_free(&rd.series);
	buf_free(&rd.out);
}
