/* ingest/ingest_peer.c - the door for other varves: what a peer owes this node is stored, and never sent on.
 *
 *     frame ─▶ sections ─▶ each: decode ─▶ stored as one (ingest_many.c) ╌╌▶ durable: a verdict for each series that was not simply stored
 *
 * Time bounds come with the frame: they were judged where the client's request came in, and a second judgement by another clock, or later, would make replicas differ. So are the
 * limits of the request: whoever sends a frame has held the client's against them.
 */
#include "base/limits.h"
#include "base/log.h"
#include "cluster/link.h"
#include "ingest/ingest_int.h"

/* Lives in the request's arena until it is answered. */
struct peer_write {
	struct ingest *in;
	struct http_request *r;
	struct peer_request request;
};

static void answer(struct ingest_many *m)
{
	const struct peer_write *w = m->arg;
	struct http_request *r = w->r;
	struct peer_answer a = {.epoch = ingest_epoch(w->in), .n_verdicts = ingest_many_count(m)};
	struct err err = {0};
	struct buf out;
	memcpy(a.id, w->request.id, sizeof a.id);
	buf_init(&out, peer_answer_max(w->request.n_items));
	a.verdicts = arena_alloc(http_arena(r), (a.n_verdicts + 1) * sizeof *a.verdicts);
	if (a.verdicts)
		ingest_many_verdicts(m, a.verdicts);
	for (uint32_t i = 0; i < m->n_parts; i++) {
		a.samples += m->parts[i].store.written.samples;
		a.hists += m->parts[i].store.written.histograms;
		a.exemplars += m->parts[i].store.written.exemplars;
	}
	ingest_many_free(m);
	if (!a.verdicts)
		http_error(r, ERRID_OVERLOADED, "no memory for an answer of %u verdicts", a.n_verdicts);
	else if (peer_answer_encode(&a, &out, &err) == OK)
		http_answer(r, 200, PEER_CONTENT_TYPE, span_of(out.p, out.n));
	else
		http_error_of(r, &err);
	buf_free(&out);
}

static errc section_read(struct peer_write *w, const struct peer_section *s, struct ingest_part *part, struct err *err)
{
	errc rc = OK;
	const struct rw_limits limits = {s->n_series + s->n_metadata, LIMIT_PEER_SAMPLES, LIMIT_LABELS_DECODE}; /* metadata counts as series */
	const struct tenant_limits own = ingest_limits_now(w->in->limits, s->tenant);
	const struct ingest_config *cfg = &w->in->cfg;
	if (w->request.hint && cfg->gone_upto && w->request.now_ms <= cfg->gone_upto(cfg->gone_arg, s->tenant))
		return err_id(err, ERRID_TENANT, ERR_INVALID, "the tenant was deleted after this was sent");
	struct rw_request *rw = arena_calloc(http_arena(w->r), 1, sizeof *rw);
	if (!rw)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory");
	TRY((s->version == RW_2 ? rw2_decode : rw1_decode)(s->body, &limits, http_arena(w->r), rw, err));
	/* 2.0's metadata stands in its series. */
	if (rw->n_series != s->n_series || (s->version == RW_1 && rw->n_metadata != s->n_metadata))
		return err_id(err, ERRID_PEER_FRAME, ERR_INVALID, "a section of %u series and %u metadata fields has %zu and %zu", s->n_series,
			s->n_metadata, rw->n_series, rw->n_metadata);
	*part = (struct ingest_part){
		.tenant = s->tenant,
		.version = s->version,
		.rw = rw,
		.n_items = s->n_series + s->n_metadata,
		.max_series = ingest_head_max(w->in, s->tenant, &own),
	};
fail:
	return rc;
}

static errc frame_read(struct peer_write *w, struct err *err)
{
	errc rc = OK;
	size_t n;
	TRY(peer_request_declared(http_body(w->r), &n, err));
	if (!http_budget_take(w->r, n))
		return err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "too many bytes in flight (--ingest.max-inflight)");
	TRY(peer_request_decode(http_body(w->r), http_arena(w->r), &w->request, err));
	if (!http_budget_take(w->r, w->request.n_sections * sizeof(struct ingest_stored_part)))
		return err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "too many bytes in flight (--ingest.max-inflight)");
fail:
	return rc;
}

static errc begin(struct ingest *in, struct http_request *r, struct peer_write **out, struct ingest_many **many, struct err *err)
{
	errc rc = OK;
	struct peer_write *w = arena_calloc(http_arena(r), 1, sizeof *w);
	CHECK(w, ERR_NOMEM, "no memory for a peer's request");
	w->in = in;
	w->r = r;
	TRY(frame_read(w, err));
	*out = w;
	*many = ingest_many_new(in, w->request.n_sections, answer, w);
	CHECK(*many, ERR_NOMEM, "no memory for %u sections", w->request.n_sections);
fail:
	if (rc != OK && !err->id)
		err->id = errid_text(ERRID_OVERLOADED);
	return rc;
}

void ingest_peer_write(void *arg, struct http_request *r)
{
	struct ingest *in = arg;
	struct err err = {0};
	struct peer_write *w = NULL;
	struct ingest_many *m = NULL;
	if (link_check(in->cfg.trust, r, &err) != OK) {
		http_error_of(r, &err);
		return;
	}
	if (!ingest_gate_open(in, r, RW_NONE))
		return;
	if (begin(in, r, &w, &m, &err) != OK) {
		http_error_of(r, &err);
		return;
	}
	metric_add(in->peer_requests[w->request.hint], 1);
	const struct ingest_bounds bounds = {
		.min_t = w->request.min_t, .max_t = w->request.max_t, .now_ms = w->request.now_ms, .winner = w->request.hint};
	http_defer(r);
	for (uint32_t i = 0; i < w->request.n_sections; i++) {
		const struct peer_section *s = &w->request.sections[i];
		struct ingest_part part;
		struct err why = {0};
		errc rc = section_read(w, s, &part, &why);
		if (rc == OK) {
			ingest_many_store(m, i, &part, s->first, &bounds, http_arena(r));
			continue;
		}
		log_warn("a part of a peer's request is not stored", LSTR("client", http_client(r)), LSPAN("tenant", s->tenant), LERR(&why));
		ingest_many_refuse(m, i, s->first, s->n_series + s->n_metadata, rc, &why);
	}
	ingest_many_go(m);
}
