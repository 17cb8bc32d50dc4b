/* ingest/ingest_many.c - parts of several tenants stored as one: a verdict for each series that is not simply stored, when the last part is durable.
 *
 *     parts ─▶ each: batch, reserve, verdict, log ╌╌▶ durable: one part less ─▶ the last: done(verdicts)
 *
 * What is wrong with one part (no memory, labels that are no protobuf, the log) is the verdict of its series and nobody else's.
 */
#include <stdlib.h>
#include "ingest/ingest_int.h"

struct ingest_many *ingest_many_new(struct ingest *in, uint32_t n_parts, void (*done)(struct ingest_many *m), void *arg)
{
	struct ingest_many *m = calloc(1, sizeof *m + n_parts * sizeof m->parts[0]);
	if (!m)
		return NULL;
	m->in = in;
	m->done = done;
	m->arg = arg;
	m->n_parts = n_parts;
	atomic_init(&m->waiting, 1);
	for (uint32_t i = 0; i < n_parts; i++)
		m->parts[i].of = m;
	return m;
}

void ingest_many_free(struct ingest_many *m)
{
	for (uint32_t i = 0; m && i < m->n_parts; i++)
		free(m->parts[i].verdicts);
	free(m);
}

static void one_less(struct ingest_many *m)
{
	if (atomic_fetch_sub_explicit(&m->waiting, 1, memory_order_acq_rel) == 1)
		m->done(m);
}

/* One verdict for all of the part. */
static void part_failed(struct ingest_stored_part *p, errc rc, const struct err *err)
{
	p->failed = true;
	p->failed_kind = rc == ERR_INVALID || rc == ERR_LIMIT ? PEER_REFUSED : PEER_AGAIN;
	p->failed_id = err && errid_of(err->id) != ERRID_NONE ? errid_of(err->id) : ERRID_STORAGE_FAILED;
	p->store.written = (struct ingest_written){0};
}

/* ---- verdicts ---- */

static bool exemplars_whole(const struct ingest_annotations *x)
{
	for (size_t i = 0; i < x->a.n_series; i++)
		if (x->v[i].written != x->v[i].n)
			return false;
	return true;
}

static bool all_stored(const struct ingest_store *st)
{
	return st->rw->n_hists == 0 && st->verdicts.n_empty == 0 && ingest_refused(&st->b) == 0 && exemplars_whole(&st->notes);
}

/* Of the i-th series; false: it was stored in full. *notes: the next series with exemplars. */
static bool verdict_of(const struct ingest_store *st, uint32_t i, size_t *notes, struct peer_verdict *v)
{
	const struct head_series *s = &st->b.series[i];
	const struct ingest_annotations *x = &st->notes;
	const struct head_exemplars *e = NULL;
	size_t hist = 0;
	if (*notes < x->a.n_series && x->of[*notes] == i)
		e = &x->v[(*notes)++];
	bool refused = s->refused + s->hist_refused > 0;
	enum errid id = refused ? s->refused_id : ingest_series_fault(&st->verdicts, st->rw, st->version, i, &hist);
	int64_t t = refused ? s->refused_t : id != ERRID_NONE && st->rw->series[i].n_hists > 0 ? st->rw->hists[hist].t : 0;
	/* 1.0 only counts exemplars that are not taken. */
	if (id == ERRID_NONE && e && st->version == RW_2)
		id = e->refused == EXEMPLAR_OUT_OF_ORDER ? ERRID_EXEMPLAR_OUT_OF_ORDER
		     : e->refused == EXEMPLAR_NO_SERIES	 ? ERRID_EXEMPLAR_NO_SERIES
							 : ERRID_NONE;
	*v = (struct peer_verdict){
		.kind = id == ERRID_NONE ? PEER_STORED : PEER_REFUSED,
		.id = id,
		.t = t,
		.samples = s->stored + s->duplicate,
		.hists = s->hist_stored + s->hist_duplicate,
		.exemplars = e ? e->written : 0,
	};
	return id != ERRID_NONE || (e && e->written != e->n);
}

/* The verdicts stand; what they say is kept apart from the request, which may be gone when the log has them. */
static void judged(struct ingest_store *st)
{
	struct ingest_stored_part *p = (struct ingest_stored_part *)st;
	if (LIKELY(all_stored(st)))
		return;
	size_t notes = 0;
	p->verdicts = malloc(st->b.n_series * sizeof *p->verdicts);
	if (!p->verdicts) {
		const struct err why = {.id = errid_text(ERRID_OVERLOADED)};
		part_failed(p, ERR_NOMEM, &why);
		return;
	}
	for (uint32_t i = 0; i < st->b.n_series; i++) {
		struct peer_verdict *v = &p->verdicts[p->n_verdicts];
		if (verdict_of(st, i, &notes, v)) {
			v->item = p->first + i;
			p->n_verdicts++;
		}
	}
}

static void durable(struct ingest_store *st, errc rc, const struct err *err)
{
	struct ingest_stored_part *p = (struct ingest_stored_part *)st;
	if (rc != OK) {
		const struct err why = {.id = errid_text(rc == ERR_NOSPACE ? ERRID_DISK_FULL : ERRID_STORAGE_FAILED)};
		(void)err;
		part_failed(p, ERR_AGAIN, &why);
	}
	one_less(p->of);
}

void ingest_many_store(
	struct ingest_many *m, uint32_t i, const struct ingest_part *part, uint32_t first, const struct ingest_bounds *bounds, struct arena *arena)
{
	errc rc = OK;
	struct err err = {0};
	struct ingest_stored_part *p = &m->parts[i];
	struct ingest_bounds own = *bounds;
	p->first = first;
	p->n_items = part->n_items;
	p->store = (struct ingest_store){.in = m->in, .arena = arena, .rw = part->rw, .version = part->version, .judged = judged, .done = durable};
	own.max_series = part->max_series;
	TRY(ingest_batch(&p->store, part->tenant, &own, &err));
	atomic_fetch_add_explicit(&m->waiting, 1, memory_order_relaxed);
	rc = ingest_store(&p->store, &err);
	if (rc != OK)
		atomic_fetch_sub_explicit(&m->waiting, 1, memory_order_relaxed);
fail:
	if (rc != OK)
		part_failed(p, rc, &err);
}

void ingest_many_refuse(struct ingest_many *m, uint32_t i, uint32_t first, uint32_t n_items, errc rc, const struct err *why)
{
	m->parts[i].first = first;
	m->parts[i].n_items = n_items;
	part_failed(&m->parts[i], rc, why);
}

void ingest_many_go(struct ingest_many *m)
{
	one_less(m);
}

uint32_t ingest_many_count(const struct ingest_many *m)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < m->n_parts; i++)
		n += m->parts[i].failed ? m->parts[i].n_items : m->parts[i].n_verdicts;
	return n;
}

void ingest_many_verdicts(const struct ingest_many *m, struct peer_verdict *out)
{
	for (uint32_t i = 0; i < m->n_parts; i++) {
		const struct ingest_stored_part *p = &m->parts[i];
		if (!p->failed) {
			if (p->n_verdicts > 0)
				memcpy(out, p->verdicts, p->n_verdicts * sizeof *out);
			out += p->n_verdicts;
		} else
			for (uint32_t k = 0; k < p->n_items; k++)
				*out++ = (struct peer_verdict){.item = p->first + k, .kind = p->failed_kind, .id = p->failed_id};
	}
}
