/* block/block_encoder.c - a series' sorted samples become chunks: the cutting rules (block_cutter.c) over both kinds of appenders.
 *
 * A chunk has one encoding, so a change of kind ends it. Of the histogram chunk before only the last sample's relation to the new one is needed, for the new
 * header; so two arenas take turns, and the memory is that of two chunks however long the series is.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_int.h"

/* 240 samples at the most, and one more sample's room. */
enum { XOR_ROOM = 242 * XOR_APPEND_MAX_BYTES };
#define WORK_BYTES (1 * GIB) /* layouts of LAYOUT_MAX buckets, made wider ten times */

struct chunk_encoder {
	int64_t range_ms;
	errc (*emit)(void *arg, const struct chunk *c, uint32_t n_samples, struct err *err);
	void *arg;
	struct xor_appender xor ;
	struct chunk_cutter xor_cutter;
	struct hist_appender *hist; /* NULL: none is open */
	struct hist_cutter hist_cutter;
	struct arena work[2];
	unsigned at; /* in which of them the open histogram chunk is */
	uint8_t bytes[XOR_ROOM];
};

errc chunk_encoder_open(int64_t range_ms, errc (*emit)(void *arg, const struct chunk *c, uint32_t n_samples, struct err *err), void *arg,
	struct chunk_encoder **out, struct err *err)
{
	struct chunk_encoder *e = malloc(sizeof *e);
	if (!e)
		return err_set(err, ERR_NOMEM, "no memory for chunks");
	e->range_ms = range_ms;
	e->emit = emit;
	e->arg = arg;
	e->hist = NULL;
	e->at = 0;
	xor_appender_init(&e->xor);
	arena_init(&e->work[0], WORK_BYTES);
	arena_init(&e->work[1], WORK_BYTES);
	*out = e;
	return OK;
}

static errc xor_end(struct chunk_encoder *e, struct err *err)
{
	if (e->xor.n == 0)
		return OK;
	struct chunk c = {.mint = e->xor_cutter.start, .maxt = e->xor.t, .enc = CHUNK_XOR, .data = span_of(e->bytes, e->xor.n_bytes)};
	uint32_t n = e->xor.n;
	xor_appender_init(&e->xor);
	return e->emit(e->arg, &c, n, err);
}

static errc hist_end(struct chunk_encoder *e, struct err *err)
{
	if (!e->hist)
		return OK;
	struct chunk c;
	struct hist_appender *a = e->hist;
	e->hist = NULL;
	errc rc = hist_appender_finish(a, &e->work[e->at], &c, err);
	return rc == OK ? e->emit(e->arg, &c, hist_appender_progress(a).n, err) : rc;
}

static errc put_float(struct chunk_encoder *e, const struct chunk_point *p, struct err *err)
{
	errc rc = OK;
	TRY(hist_end(e, err));
	struct chunk_cutter c = e->xor_cutter;
	if (chunk_cutter_cut(&c, e->range_ms, e->xor.n, e->xor.n_bytes, e->xor.t, p->t))
		TRY(xor_end(e, err));
	e->xor_cutter = c;
	xor_append(&e->xor, e->bytes, p->t, p->v);
fail:
	return rc;
}

static errc put_hist(struct chunk_encoder *e, const struct chunk_point *p, struct err *err)
{
	errc rc = OK;
	bool appended = false;
	TRY(xor_end(e, err));
	struct hist_progress at = e->hist ? hist_appender_progress(e->hist) : (struct hist_progress){.n = 0};
	if (hist_cutter_cut(&e->hist_cutter, e->range_ms, at.n > 0 && at.kind == p->kind ? at.n : 0, at.n_bytes, at.t, p->t)) {
		if (e->hist)
			hist_appender_refuse(e->hist, p->kind, p->h);
	} else {
		TRY(hist_append(e->hist, p->t, p->kind, p->h, &appended, err));
		if (appended)
			return OK;
		hist_cutter_demanded(&e->hist_cutter, e->range_ms, p->t);
	}
	struct arena *other = &e->work[!e->at];
	arena_reset(other);
	struct hist_appender *next;
	TRY(hist_appender_new(p->kind, e->hist, other, &next, err));
	hist_appender_by_rule(next);
	TRY(hist_append(next, p->t, p->kind, p->h, &appended, err));
	ASSERT(appended);
	TRY(hist_end(e, err));
	e->at = !e->at;
	e->hist = next;
fail:
	return rc;
}

errc chunk_encoder_put(struct chunk_encoder *e, const struct chunk_point *p, struct err *err)
{
	return p->kind == SAMPLE_FLOAT ? put_float(e, p, err) : put_hist(e, p, err);
}

errc chunk_encoder_end(struct chunk_encoder *e, struct err *err)
{
	errc rc = xor_end(e, err);
	return rc == OK ? hist_end(e, err) : rc;
}

void chunk_encoder_drop(struct chunk_encoder *e)
{
	xor_appender_init(&e->xor);
	e->hist = NULL;
}

void chunk_encoder_close(struct chunk_encoder *e)
{
	if (!e)
		return;
	arena_free(&e->work[0]);
	arena_free(&e->work[1]);
	free(e);
}
