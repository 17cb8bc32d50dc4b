/* cluster/cluster_hints_deliver.c - what is kept for a node, to the node: in order, a batch at a time, at a bounded rate.
 *
 *     log ─▶ batch: frames that are small, put together as the wire allows ──POST /-/peer/write──▶ node
 *                                                                             ◀── stored, refused: done ── try again, no answer: the same again after a back-off
 *
 * A batch is one request of several clients' requests: the sections of all, and the widest of their time bounds. That admits nothing: a quorum has judged each of these series by its own bounds,
 * and what was out of them was refused there and is in no hint.
 *
 * Until its verdict is there a batch is only read; then log.done moves behind it. So a crash, or an answer that is lost, delivers it once more, which is a duplicate.
 */
#include <stdlib.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"

enum { SECOND_NS = 1000000000, MS_NS = 1000000 };

void hint_metrics(struct hint_peer *p)
{
	uint64_t samples = hint_log_pending_samples(&p->log), bytes = hint_log_pending_bytes(&p->log);
	metric_set(p->pending_gauge, (double)samples);
	pthread_mutex_lock(&p->h->mu);
	p->status.pending_samples = samples;
	p->status.pending_bytes = bytes;
	p->status.oldest_ms = p->oldest_ms;
	pthread_mutex_unlock(&p->h->mu);
}

/* Behind what was delivered, is too old, or can't be read. */
static void commit(struct hint_peer *p, const struct hint_cursor *end, const struct hint_loss *loss, uint64_t aged)
{
	struct hints *h = p->h;
	if (loss->frames > 0) {
		log_warn("hints are damaged", LSPAN("peer", p->address), LU64("frames", loss->frames), LU64("samples", loss->samples));
		hints_drop(h, p->address, DROP_DAMAGED, loss);
	}
	if (aged > 0)
		hints_drop(h, p->address, DROP_AGE, &(struct hint_loss){.frames = 1, .samples = aged});
	h->disk_bytes -= hint_log_done(&p->log, end);
	p->oldest_ms = hint_log_pending(&p->log) ? end->ms : 0; /* or a little later */
	hint_metrics(p);
}

/* A log that can't be read is tried again, each second, and not for ever. false: again later. */
static bool given_up(struct hint_peer *p, struct hint_cursor *c, const struct err *why)
{
	int64_t now = io_mono_ns();
	if (p->unreadable_ns == 0) {
		p->unreadable_ns = now;
		log_warn("hints can't be read", LSPAN("peer", p->address), LERR(why));
	}
	if (now - p->unreadable_ns < LIMIT_HINTS_UNREADABLE_MS * MS_NS)
		return false;
	log_error("hints can't be read and are given up", LSPAN("peer", p->address), LERR(why));
	p->unreadable_ns = 0;
	hint_log_give_up(&p->log, c);
	return true;
}

static bool too_old(const struct hint_peer *p, const struct hint_frame *f, int64_t now_ms)
{
	return p->h->cfg.max_age_ms > 0 && now_ms - f->added_ms > p->h->cfg.max_age_ms;
}

void hint_age(struct hint_peer *p)
{
	struct hint_cursor c = p->log.done;
	struct hint_frame f = {0};
	struct hint_loss loss = {0};
	struct err err = {0};
	int64_t now = io_now_ms();
	uint64_t aged = 0;
	errc rc;
	if (!hint_log_pending(&p->log)) {
		p->oldest_ms = 0;
		return;
	}
	f.added_ms = p->oldest_ms;
	if (p->oldest_ms > 0 && !too_old(p, &f, now))
		return;
	for (;;) {
		rc = hint_log_next(&p->log, &c, &f, &loss, &err);
		if (rc == OK && too_old(p, &f, now)) {
			aged += f.samples;
			hint_log_pass(&c, &f);
		} else if (rc == OK || rc == ERR_NOTFOUND || !given_up(p, &c, &err))
			break;
	}
	if (rc == OK || rc == ERR_NOTFOUND)
		p->unreadable_ns = 0;
	commit(p, &c, &loss, aged);
	if (rc == OK)
		p->oldest_ms = f.added_ms;
}

/* ---- a batch ---- */

struct gathered {
	struct peer_request all;
	struct span only; /* the frame, when it is one */
	size_t bytes, raw_bytes;
	uint32_t cap;
};

/* The frame's sections behind those that are there. ERR_LIMIT: it is for the next batch. */
static errc gather(struct hint_peer *p, struct gathered *g, const struct hint_cursor *c, const struct hint_frame *f, struct err *err)
{
	errc rc = OK;
	struct arena *a = &p->h->arena;
	struct peer_request r;
	size_t raw;
	uint8_t *bytes = arena_alloc(a, f->n);
	CHECK(bytes, ERR_NOMEM, "no memory for a hint of %u bytes", f->n);
	TRY(hint_log_read(&p->log, c, f, bytes, err));
	struct span frame = span_of(bytes, f->n);
	TRY(peer_request_declared(frame, &raw, err));
	bool first = p->batch.n_frames == 0;
	if (!first && g->raw_bytes + raw > LIMIT_HINTS_BATCH_RAW_BYTES)
		return ERR_LIMIT;
	TRY(peer_request_decode(frame, a, &r, err));
	if (!first && g->all.n_sections + r.n_sections > LIMIT_PEER_SECTIONS)
		return ERR_LIMIT;
	if (g->all.n_sections + r.n_sections > g->cap) {
		uint32_t cap = 2 * (g->all.n_sections + r.n_sections);
		struct peer_section *v = arena_alloc(a, cap * sizeof *v);
		CHECK(v, ERR_NOMEM, "no memory for %u sections", cap);
		if (g->all.n_sections > 0)
			memcpy(v, g->all.sections, g->all.n_sections * sizeof *v);
		g->all.sections = v;
		g->cap = cap;
	}
	if (first) {
		struct peer_section *own = g->all.sections;
		g->all = r;
		g->all.sections = own;
		g->all.n_sections = g->all.n_items = 0;
		g->only = frame;
	}
	if (r.n_sections > 0)
		memcpy(g->all.sections + g->all.n_sections, r.sections, r.n_sections * sizeof *r.sections);
	g->all.n_sections += r.n_sections;
	g->all.n_items += r.n_items;
	g->all.min_t = r.min_t < g->all.min_t ? r.min_t : g->all.min_t;
	g->all.max_t = r.max_t > g->all.max_t ? r.max_t : g->all.max_t;
	g->all.now_ms = r.now_ms > g->all.now_ms ? r.now_ms : g->all.now_ms;
	g->bytes += f->n;
	g->raw_bytes += raw;
fail:
	return rc;
}

static bool batch_is_full(const struct hint_peer *p, const struct gathered *g, const struct hint_frame *f)
{
	return p->batch.n_frames > 0 && (p->alone || p->batch.n_frames >= LIMIT_HINTS_BATCH_FRAMES || g->bytes + f->n > LIMIT_HINTS_BATCH_BYTES);
}

/* false: not now. What is passed over on the way is in the batch as well. */
static bool batch_read(struct hint_peer *p, struct gathered *g)
{
	int64_t now = io_now_ms();
	p->batch.end = p->log.done;
	p->batch.loss = (struct hint_loss){0};
	p->batch.n_frames = p->batch.n_items = 0;
	p->batch.samples = p->batch.aged = 0;
	for (;;) {
		struct hint_frame f;
		struct err err = {0};
		struct hint_cursor *c = &p->batch.end;
		errc rc = hint_log_next(&p->log, c, &f, &p->batch.loss, &err);
		if (rc == ERR_NOTFOUND || (rc == OK && batch_is_full(p, g, &f)))
			return true;
		if (rc == OK && too_old(p, &f, now)) {
			p->batch.aged += f.samples;
			hint_log_pass(c, &f);
			continue;
		}
		bool stands = rc == OK;
		if (stands)
			rc = gather(p, g, c, &f, &err);
		if (rc == OK) {
			p->unreadable_ns = 0;
			p->batch.n_frames++;
			p->batch.samples += f.samples;
			hint_log_pass(c, &f);
		} else if (rc == ERR_LIMIT && p->batch.n_frames > 0) {
			return true;
		} else if (stands && (rc == ERR_CORRUPT || rc == ERR_INVALID || rc == ERR_UNSUPPORTED || rc == ERR_LIMIT)) {
			hint_log_lose(c, &f, &p->batch.loss);
		} else if (p->batch.n_frames > 0) {
			return true; /* these first */
		} else if (rc == ERR_NOMEM || !given_up(p, c, &err))
			return false;
	}
}

static errc batch_make(struct hint_peer *p, struct err *err)
{
	errc rc = OK;
	struct hints *h = p->h;
	struct gathered g = {0};
	arena_reset(&h->arena);
	if (!batch_read(p, &g))
		return ERR_AGAIN;
	if (p->batch.n_frames == 0)
		return ERR_NOTFOUND;
	buf_init(&p->batch.body, PEER_HEADER_BYTES + 2 * LIMIT_PEER_REQUEST_BYTES);
	memcpy(p->batch.id, g.all.id, PEER_ID_BYTES);
	p->batch.n_items = g.all.n_items;
	if (p->batch.n_frames == 1) {
		buf_span(&p->batch.body, g.only);
		CHECK(!p->batch.body.failed, ERR_NOMEM, "no memory for a hint of %zu bytes", g.only.n);
	} else {
		g.all.hint = true;
		g.all.left_ms = 0;
		TRY(peer_request_encode(&g.all, h->cfg.lz4, &p->batch.body, err));
	}
fail:
	if (rc != OK)
		buf_free(&p->batch.body);
	return rc;
}

/* ---- on its way ---- */

static void later(struct hint_peer *p, int64_t now_ns)
{
	p->backoff_ms = p->backoff_ms == 0 ? LIMIT_PEER_BACKOFF_MS : 2 * p->backoff_ms;
	if (p->backoff_ms > LIMIT_PEER_BACKOFF_MAX_MS)
		p->backoff_ms = LIMIT_PEER_BACKOFF_MAX_MS;
	int64_t ns = p->backoff_ms * MS_NS;
	p->until_ns = now_ns + ns / 2 + (int64_t)(io_random_u64() % (uint64_t)(ns / 2));
}

/* On the sender's thread. */
static void done(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct hint_peer *p = arg;
	struct hints *h = p->h;
	if (rc != OK || status != 200)
		log_debug("a node did not take its hints", LSPAN("peer", p->address), LI64("status", status), LSTR("err", err ? err->msg : ""));
	pthread_mutex_lock(&h->mu);
	buf_init(&p->landed, answer.n + 1);
	if (rc == OK)
		buf_span(&p->landed, answer);
	p->landed_rc = p->landed.failed ? ERR_NOMEM : rc;
	p->landed_status = status;
	p->flight = FLIGHT_LANDED;
	h->landed++;
	if (--h->calls == 0)
		pthread_cond_broadcast(&h->idle);
	pthread_cond_signal(&h->wake);
	pthread_mutex_unlock(&h->mu);
}

static void tokens_now(struct hints *h, int64_t now_ns)
{
	double most = (double)h->cfg.rate;
	h->tokens += (double)(now_ns - h->tokens_ns) / SECOND_NS * most;
	h->tokens = h->tokens > most ? most : h->tokens;
	h->tokens_ns = now_ns;
}

static void sooner(int64_t *wake_ns, int64_t ns)
{
	*wake_ns = ns < *wake_ns ? ns : *wake_ns;
}

void hint_deliver(struct hint_peer *p, int64_t now_ns, int64_t *wake_ns)
{
	struct hints *h = p->h;
	struct err err = {0};
	pthread_mutex_lock(&h->mu);
	bool flies = p->flight != FLIGHT_NONE;
	pthread_mutex_unlock(&h->mu);
	if (flies || p->judged != PEER_DELIVER || !hint_log_pending(&p->log) || h->flights >= LIMIT_HINTS_FLIGHTS)
		return;
	if (now_ns < p->until_ns) {
		sooner(wake_ns, p->until_ns);
		return;
	}
	tokens_now(h, now_ns);
	/* What is larger than what there is goes on credit, and the next ones wait for it. */
	if (h->tokens <= 0) {
		sooner(wake_ns, now_ns + (int64_t)((1 - h->tokens) / (double)h->cfg.rate * SECOND_NS) + MS_NS);
		return;
	}
	errc rc = batch_make(p, &err);
	if (rc == ERR_NOTFOUND) {
		commit(p, &p->batch.end, &p->batch.loss, p->batch.aged);
		return;
	}
	if (rc == OK) {
		struct link_call call = {.address = p->address,
			.method = "POST",
			.target = PEER_WRITE_PATH,
			.content_type = PEER_CONTENT_TYPE,
			.body = span_of(p->batch.body.p, p->batch.body.n),
			.deadline_mono_ns = now_ns + LIMIT_HINTS_TIMEOUT_MS * (int64_t)MS_NS,
			.max_answer_bytes = peer_answer_max(p->batch.n_items),
			.done = done,
			.arg = p};
		pthread_mutex_lock(&h->mu);
		p->flight = FLIGHT_ON;
		h->calls++;
		pthread_mutex_unlock(&h->mu);
		h->flights++;
		h->tokens -= (double)p->batch.body.n;
		rc = h->cfg.send(h->cfg.link, &call, &err);
		if (rc == OK)
			return;
		pthread_mutex_lock(&h->mu);
		p->flight = FLIGHT_NONE;
		if (--h->calls == 0)
			pthread_cond_broadcast(&h->idle);
		pthread_mutex_unlock(&h->mu);
		h->flights--;
		buf_free(&p->batch.body);
	}
	log_debug("hints are not sent", LSPAN("peer", p->address), LERR(&err));
	later(p, now_ns);
	sooner(wake_ns, p->until_ns);
}

/* ---- the verdict ---- */

/* Everything is stored or refused; *there: samples that the node has now. */
static bool is_taken(struct hint_peer *p, uint64_t *there)
{
	struct peer_answer a;
	struct err err = {0};
	bool taken = false;
	arena_reset(&p->h->arena);
	errc rc = peer_answer_decode(span_of(p->landed.p, p->landed.n), p->batch.n_items, &p->h->arena, &a, &err);
	if (rc == OK && memcmp(a.id, p->batch.id, PEER_ID_BYTES) == 0) {
		taken = true;
		for (uint32_t i = 0; i < a.n_verdicts; i++)
			taken &= a.verdicts[i].kind != PEER_AGAIN;
		*there = a.samples + a.hists;
	} else
		log_warn("an answer to hints that is none", LSPAN("peer", p->address), LSTR("err", rc == OK ? "of another request" : err.msg));
	return taken;
}

void hint_landed(struct hint_peer *p, int64_t now_ns)
{
	struct hints *h = p->h;
	uint64_t there = 0;
	bool taken = p->landed_rc == OK && p->landed_status == 200 && is_taken(p, &there);
	/* Too large for its server, today and tomorrow: the others must not wait for it. */
	bool never = p->landed_rc == OK && p->landed_status == 413 && p->batch.n_frames == 1;
	p->alone = p->landed_rc == OK && p->landed_status == 413;
	pthread_mutex_lock(&h->mu);
	p->flight = FLIGHT_NONE;
	h->landed--;
	pthread_mutex_unlock(&h->mu);
	h->flights--;
	buf_free(&p->landed);
	buf_free(&p->batch.body);
	if (never) {
		struct hint_loss loss = {.frames = 1, .samples = p->batch.samples, .from_ms = p->batch.end.ms, .to_ms = p->batch.end.ms};
		hints_drop(h, p->address, DROP_LARGE, &loss);
		commit(p, &p->batch.end, &p->batch.loss, p->batch.aged);
	} else if (taken) {
		there = there < p->batch.samples ? there : p->batch.samples;
		metric_add(h->delivered, there);
		hints_drop(h, p->address, DROP_REFUSED, &(struct hint_loss){.frames = 1, .samples = p->batch.samples - there});
		commit(p, &p->batch.end, &p->batch.loss, p->batch.aged);
	}
	if (taken || never)
		p->backoff_ms = p->until_ns = 0;
	else if (!p->alone || p->batch.n_frames == 1)
		later(p, now_ns);
}
