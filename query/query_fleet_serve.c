/* query/query_fleet_serve.c - POST /-/peer/read: what this node has that the bucket may not have yet, for the node that a reader asked.
 *
 * It asks nobody itself, so the workers that serve peers (HTTP_PEER) never wait for one another's nodes. The answer begins when everything it is made of is pinned and open: from then on the asker may look at
 * the bucket. Until then a damaged block is left out and the question asked again; later it breaks the answer off.
 */
#include <stdlib.h>
#include "base/log.h"
#include "query/query_fleet_int.h"

enum { RETRIES_MAX = 100, STRINGS_BYTES = 64 * 1024 };

struct serving {
	struct query *q;
	struct http_request *r;
	struct fleet_question asked;
	struct question qn;
	struct buf out;
	struct arena series;
	uint64_t frames;
	bool begun;
};

static errc frame_send(struct serving *s, struct err *err)
{
	errc rc = OK;
	uint8_t head[FLEET_FRAME_HEAD];
	if (s->out.failed)
		return err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "a series does not fit the memory of one read (--query.max-memory)");
	struct span payload = span_of(s->out.p, s->out.n);
	size_t n = fleet_frame_head(payload, head);
	TRY(http_stream_write(s->r, span_of(head, n), err));
	TRY(http_stream_write(s->r, payload, err));
	buf_clear(&s->out);
	s->frames++;
fail:
	return rc;
}

static errc answer_begin(struct serving *s, struct err *err)
{
	errc rc = OK;
	TRY(http_stream_begin(s->r, 200, FLEET_ANSWER_TYPE, err));
	s->begun = true;
	buf_clear(&s->out);
	fleet_begin_encode(s->qn.warning, &s->out);
	TRY(frame_send(s, err));
	http_stream_flush(s->r);
fail:
	return rc;
}

static errc answer_end(struct serving *s, struct err *err)
{
	uint64_t n = s->frames;
	buf_u8(&s->out, FLEET_END);
	buf_uvarint(&s->out, n);
	return frame_send(s, err);
}

static errc give_series(struct serving *s, struct err *err)
{
	errc rc = OK;
	struct merge *m = NULL;
	bool labels_only = s->asked.what == FLEET_SERIES;
	TRY(question_sources(&s->qn, err));
	TRY(merge_open(&s->qn, s->asked.sets, s->asked.n_sets, labels_only, &m, err));
	TRY(answer_begin(s, err));
	for (;;) {
		struct merged one;
		bool more;
		struct chunk *chunks = NULL;
		size_t n = 0;
		TRY(merge_next(m, &one, &more, err));
		if (!more)
			break;
		arena_reset(&s->series);
		if (!labels_only)
			TRY(samples_chunks(&one, s->qn.mint, s->qn.maxt, &s->series, &chunks, &n, err));
		if (n == 0 && !labels_only)
			continue;
		fleet_series_encode(one.labels, chunks, n, &s->out);
		TRY(frame_send(s, err));
	}
	TRY(answer_end(s, err));
fail:
	merge_close(m);
	return rc;
}

static errc give_names(struct serving *s, struct err *err)
{
	errc rc = OK;
	struct span *v = NULL;
	size_t n = 0;
	TRY(names_gather(&s->qn, s->asked.what == FLEET_VALUES, s->asked.name, s->asked.sets, s->asked.n_sets, &v, &n, err));
	TRY(answer_begin(s, err));
	for (size_t i = 0; i < n; i++) {
		if (s->out.n == 0)
			buf_u8(&s->out, FLEET_STRINGS);
		buf_str(&s->out, v[i]);
		if (s->out.n >= STRINGS_BYTES || i + 1 == n)
			TRY(frame_send(s, err));
	}
	TRY(answer_end(s, err));
fail:
	return rc;
}

static errc give_exemplars(struct serving *s, struct err *err)
{
	errc rc = OK;
	struct exemplar_series *v = NULL;
	size_t n = 0;
	TRY(exemplars_gather(&s->qn, s->asked.sets, s->asked.n_sets, &v, &n, err));
	TRY(answer_begin(s, err));
	for (size_t i = 0; i < n; i++) {
		fleet_exemplars_encode(v[i].labels, v[i].v, v[i].n, &s->out);
		TRY(frame_send(s, err));
	}
	TRY(answer_end(s, err));
fail:
	return rc;
}

static errc give_metadata(struct serving *s, struct err *err)
{
	errc rc = OK;
	const struct metadata **v = NULL;
	size_t n = 0;
	struct span metric = s->asked.name.n > 0 ? s->asked.name : (struct span){0};
	TRY(metadata_gather(&s->qn, metric, &v, &n, err));
	TRY(answer_begin(s, err));
	for (size_t i = 0; i < n; i++) {
		if (s->out.n == 0)
			buf_u8(&s->out, FLEET_FAMILIES);
		fleet_metadata_encode(v[i], &s->out);
		if (s->out.n >= STRINGS_BYTES || i + 1 == n)
			TRY(frame_send(s, err));
	}
	TRY(answer_end(s, err));
fail:
	return rc;
}

static errc give(struct serving *s, struct err *err)
{
	switch (s->asked.what) {
	case FLEET_NAMES:
	case FLEET_VALUES:
		return give_names(s, err);
	case FLEET_EXEMPLARS:
		return give_exemplars(s, err);
	case FLEET_METADATA:
		return give_metadata(s, err);
	default:
		return give_series(s, err);
	}
}

void query_peer_read(void *arg, struct http_request *r)
{
	errc rc = OK;
	struct query *q = arg;
	struct err err = {0};
	struct serving s = {.q = q, .r = r};
	struct span tenant;
	if (!q->fleet) {
		http_error(r, ERRID_NOT_FOUND, "this node is not in a fleet");
		return;
	}
	const struct query_fleet *cfg = fleet_config(q->fleet);
	buf_init(&s.out, q->cfg.max_memory_bytes);
	arena_init(&s.series, q->cfg.max_memory_bytes);
	question_init(&s.qn, q, SPAN(""), 0, 0);
	TRY(cfg->check(cfg->trust, r, &err));
	TRY(http_tenant(r, &tenant, &err));
	TRY(fleet_question_decode(http_body(r), http_arena(r), &s.asked, &err));
	/* What is not replayed yet would be missing without a word. */
	if (cfg->whole && !cfg->whole(cfg->whole_arg))
		TRY(err_id(&err, ERRID_NOT_READY, ERR_AGAIN, "the log is being replayed"));
	question_init(&s.qn, q, tenant, s.asked.mint, s.asked.maxt);
	s.qn.alone = s.qn.for_peer = true;
	s.qn.replica = s.asked.replica;
	s.qn.n_replica = s.asked.n_replica;
	if (s.asked.left_ms > 0 && s.asked.left_ms < q->cfg.timeout_ms)
		s.qn.deadline_mono_ms += s.asked.left_ms - q->cfg.timeout_ms;
	metric_add(q->peer_reads, 1);
	for (int i = 0;; i++) {
		rc = give(&s, &err);
		if (rc == OK || i == RETRIES_MAX || !question_blame(&s.qn, rc, &err) || s.begun)
			break;
		metric_add(q->retries, 1);
		question_release(&s.qn);
	}
fail:
	/* The question is in the request's memory, which goes with its end. */
	matcher_sets_free((struct matcher_set *)(uintptr_t)s.asked.sets, s.asked.n_sets);
	question_free(&s.qn);
	if (s.begun)
		http_stream_end(r, rc == OK);
	else if (rc != OK)
		query_error(r, rc, &err);
	arena_free(&s.series);
	buf_free(&s.out);
}
