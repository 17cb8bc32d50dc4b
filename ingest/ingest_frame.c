/* ingest/ingest_frame.c - a peer's frame into log and head, for a thread that waits: what repair is given back.
 *
 * It is stored as any request is (ingest_store.c), section by section, but for two things. A sample that contradicts one that is there is judged by the order-free winner, so that
 * replicas agree in the end whatever each took first; and no limit of the tenant is held against it: it was within them when a client sent it.
 */
#include <pthread.h>
#include "base/io.h"
#include "base/limits.h"
#include "ingest/ingest_int.h"
#include "ingest/repair.h"

enum { FRAME_MEMORY_BYTES = 512 << 20 };

struct frame_part {
	struct ingest_store store; /* first */
	pthread_mutex_t mu;
	pthread_cond_t durable;
	bool done;
	errc rc;
	struct err err;
};

static void judged(struct ingest_store *st)
{
	(void)st;
}

static void durable(struct ingest_store *st, errc rc, const struct err *err)
{
	struct frame_part *p = (struct frame_part *)st;
	pthread_mutex_lock(&p->mu);
	p->done = true;
	p->rc = rc;
	if (rc != OK && err)
		p->err = *err;
	pthread_cond_signal(&p->durable);
	pthread_mutex_unlock(&p->mu);
}

static errc part_store(struct ingest *in, const struct peer_request *q, const struct peer_section *s, struct arena *arena, struct repair_stored *out,
	struct err *err)
{
	errc rc = OK;
	const struct rw_limits limits = {LIMIT_INGEST_SERIES_PER_REQUEST, LIMIT_INGEST_SAMPLES_PER_REQUEST, LIMIT_LABELS_DECODE};
	const struct ingest_bounds bounds = {.min_t = q->min_t, .max_t = q->max_t, .now_ms = io_now_ms(), .winner = q->hint};
	struct rw_request *rw = arena_calloc(arena, 1, sizeof *rw);
	struct frame_part part = {.done = false};
	pthread_mutex_init(&part.mu, NULL);
	pthread_cond_init(&part.durable, NULL);
	CHECK(rw, ERR_NOMEM, "no memory for a peer's frame");
	TRY((s->version == RW_2 ? rw2_decode : rw1_decode)(s->body, &limits, arena, rw, err));
	if (rw->n_series != s->n_series) {
		rc = err_id(err, ERRID_PEER_FRAME, ERR_INVALID, "a section of %u series has %zu", s->n_series, rw->n_series);
		goto fail;
	}
	part.store = (struct ingest_store){.in = in, .arena = arena, .rw = rw, .version = s->version, .judged = judged, .done = durable};
	TRY(ingest_batch(&part.store, s->tenant, &bounds, err));
	TRY(ingest_store(&part.store, err));
	pthread_mutex_lock(&part.mu);
	while (!part.done)
		pthread_cond_wait(&part.durable, &part.mu);
	pthread_mutex_unlock(&part.mu);
	if (part.rc != OK) {
		rc = part.rc;
		if (err)
			*err = part.err;
		goto fail;
	}
	const struct head_batch *b = &part.store.b;
	out->stored += b->stored + b->hist_stored;
	out->duplicate += b->duplicate + b->hist_duplicate;
	out->refused += ingest_refused(b) + rw->n_hists - b->n_hists;
fail:
	pthread_cond_destroy(&part.durable);
	pthread_mutex_destroy(&part.mu);
	return rc;
}

errc ingest_frame_store(struct ingest *in, struct span frame, struct repair_stored *out, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct peer_request q;
	*out = (struct repair_stored){0};
	arena_init(&arena, FRAME_MEMORY_BYTES);
	enum errid gate = ingest_gate_id(in);
	if (gate != ERRID_NONE) {
		rc = err_id(err, gate, ERR_AGAIN, "this node takes no writes now");
		goto fail;
	}
	TRY(peer_request_decode(frame, &arena, &q, err));
	for (uint32_t i = 0; i < q.n_sections; i++)
		TRY(part_store(in, &q, &q.sections[i], &arena, out, err));
fail:
	arena_free(&arena);
	return rc;
}
