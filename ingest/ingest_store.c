/* ingest/ingest_store.c - a decoded request into log and head, whatever door it came by.
 *
 * The order is decision 4's: room in the log is reserved before the head decides, only what it accepted is logged, and the answer waits until
 * everything that its verdict relied on is durable. So a request that holds only duplicates logs nothing and still waits for them.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "ingest/ingest_int.h"

/* The head reads the decoder's samples where they are. */
_Static_assert(sizeof(struct head_sample) == sizeof(struct rw_sample), "one layout");
_Static_assert(offsetof(struct head_sample, v) == offsetof(struct rw_sample, v), "one layout");

static struct buf buffer_take(struct ingest *in, size_t max)
{
	struct buf b = {0};
	pthread_mutex_lock(&in->buffers_mu);
	if (in->n_buffers > 0)
		b = in->buffers[--in->n_buffers];
	pthread_mutex_unlock(&in->buffers_mu);
	b.n = 0;
	b.failed = false;
	b.max = max;
	return b;
}

static void buffer_give(struct ingest *in, struct buf b)
{
	pthread_mutex_lock(&in->buffers_mu);
	/* That of a giant request, or of one full of new series, is not kept: it would stay resident for nothing. Of others little is touched. */
	if (in->n_buffers < INGEST_BUFFERS_KEPT && b.cap <= 4 * MIB && b.n <= MIB / 4) {
		in->buffers[in->n_buffers++] = b;
		b.p = NULL;
	}
	pthread_mutex_unlock(&in->buffers_mu);
	free(b.p);
}

errc ingest_batch(struct ingest_store *st, struct span tenant, const struct ingest_bounds *bounds, struct err *err)
{
	const struct rw_request *rw = st->rw;
	struct head_batch *b = &st->b;
	*b = (struct head_batch){
		.tenant = tenant,
		.symbols = rw->symbols,
		.n_symbols = rw->n_symbols,
		.series = arena_alloc(st->arena, rw->n_series * sizeof *b->series),
		.n_series = rw->n_series,
		.samples = (const struct head_sample *)(const void *)rw->samples,
		.n_samples = rw->n_samples,
		.min_t = bounds->min_t,
		.max_t = bounds->max_t,
		.now_ms = bounds->now_ms,
		.max_series = bounds->max_series,
		.winner = bounds->winner,
	};
	if (!b->series)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %zu series", rw->n_series);
	for (size_t i = 0; i < rw->n_series; i++) {
		const struct rw_series *s = &rw->series[i];
		b->series[i] =
			(struct head_series){.wire = s->wire, .refs = s->refs, .n_labels = s->n_labels, .first = s->first_sample, .n = s->n_samples};
	}
	return st->in->cfg.created_zero ? ingest_zeros(rw, b, st->arena, err) : OK;
}

static void count(struct ingest_store *st, uint32_t n_logged)
{
	struct ingest *in = st->in;
	const struct head_batch *b = &st->b;
	metric_add(in->stored, b->stored + b->hist_stored);
	metric_add(in->duplicate, b->duplicate + b->hist_duplicate);
	metric_add(in->refused, ingest_refused(b) + st->rw->n_hists - b->n_hists);
	metric_add(in->zeros, n_logged - b->stored - b->hist_stored);
	st->written = (struct ingest_written){
		.samples = b->stored + b->duplicate,
		.histograms = b->hist_stored + b->hist_duplicate,
		.exemplars = ingest_exemplars_written(&st->notes),
	};
}

static errc reserve(struct ingest *in, size_t bytes, struct wal_ticket *ticket, struct err *err)
{
	errc rc = wal_reserve(in->cfg.wal, bytes, ticket, err);
	if (rc != OK)
		err->id = errid_text(rc == ERR_NOSPACE ? ERRID_DISK_FULL
				     : rc == ERR_IO    ? ERRID_STORAGE_FAILED
				     : rc == ERR_LIMIT ? ERRID_TOO_MANY_SAMPLES
						       : ERRID_OVERLOADED);
	return rc;
}

static void durable(void *arg, errc rc, const struct err *err)
{
	struct ingest_store *st = arg;
	st->done(st, rc, err);
}

/* What it is made of, and room for its records. */
static errc prepare(struct ingest_store *st, struct err *err)
{
	errc rc = OK;
	const struct head *h = st->in->cfg.head;
	TRY(ingest_judge(st->rw, st->version, st->arena, &st->verdicts, err));
	TRY(ingest_hists(st->rw, &st->verdicts, &st->b, st->arena, err));
	TRY(ingest_annotations_of(st->rw, &st->b, st->arena, &st->notes, err));
	st->bound = head_batch_bound(h, &st->b) + head_annotations_bound(h, &st->notes.a);
fail:
	return rc;
}

static errc append(struct ingest_store *st, const struct wal_ticket *ticket, struct buf *records, uint32_t *n_logged, struct err *err)
{
	errc rc = OK;
	struct wal_ticket own = *ticket; /* its part of the room */
	uint32_t n = 0;
	own.bytes = st->bound;
	rc = head_append(st->in->cfg.head, &own, &st->b, records, &n, err);
	if (rc == OK)
		rc = ingest_annotate(st->in, &own, &st->b, &st->notes, records, err);
	*n_logged += n;
	if (rc == OK)
		count(st, n);
	return rc;
}

/* One of several can be malformed by itself; everything else that goes wrong goes wrong for all. */
static bool set_aside(struct ingest_store *st, errc rc, const struct err *err)
{
	if (rc != ERR_INVALID || !err->id)
		return false;
	st->fault = errid_of(err->id);
	st->why = arena_cstr(st->arena, span_cstr(err->msg));
	return st->why != NULL;
}

errc ingest_store(struct ingest_store *first, struct err *err)
{
	errc rc = OK;
	struct err local = {0};
	struct ingest *in = first->in;
	struct wal_ticket ticket;
	size_t bound = 0;
	bool leans = false;
	err = err ? err : &local;
	for (struct ingest_store *st = first; st; st = st->next) {
		TRY(prepare(st, err));
		bound += st->bound;
	}
	TRY(reserve(in, bound, &ticket, err));
	struct buf records = buffer_take(in, bound);
	uint32_t n_logged = 0;
	for (struct ingest_store *st = first; st; st = st->next) {
		rc = append(st, &ticket, &records, &n_logged, err);
		if (rc != OK && (st != first || st->next) && set_aside(st, rc, err))
			rc = OK;
		if (rc != OK) {
			/* Out of memory half-way: what the head took must reach the log all the same; the client tries again and meets duplicates. */
			wal_commit(in->cfg.wal, &ticket, span_of(records.p, records.n), n_logged, NULL, NULL);
			if (!err->id)
				err->id = errid_text(ERRID_OVERLOADED);
			goto fail_buffer;
		}
		leans |= st->b.leans || st->notes.a.leans;
	}
	if (leans) {
		/* A duplicate's original may wait under a younger ticket than ours: only one drawn now is behind all that the verdict saw. */
		wal_commit(in->cfg.wal, &ticket, span_of(records.p, records.n), n_logged, NULL, NULL);
		rc = reserve(in, 0, &ticket, err);
		if (rc != OK)
			goto fail_buffer;
		records.n = 0;
		n_logged = 0;
	}
	for (struct ingest_store *st = first; st; st = st->next)
		st->judged(st);
	wal_commit(in->cfg.wal, &ticket, span_of(records.p, records.n), n_logged, durable, first);
fail_buffer:
	buffer_give(in, records);
fail:
	return rc;
}
