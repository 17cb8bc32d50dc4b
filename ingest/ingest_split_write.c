/* ingest/ingest_split_write.c - a client's request of several tenants, stored on this node: several batches, one answer.
 *
 *     parts ─ each held against its tenant's limits ─▶ those that pass: one ticket of the log, one batch each ╌╌▶ durable: one answer
 *              429, the others go on
 *
 * The answer is the gravest that any part has: try again (503) before a tenant's limit (429) before what is refused for good (400); its words are that part's, and say
 * how many more tenants are affected. What 2.0's headers say is written is the sum.
 *
 * The rate of a tenant is asked when its samples are known, here: before it is decoded a request has no tenant, but the one who pays for its size.
 */
#include <inttypes.h>
#include <stdio.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "ingest/ingest_int.h"

struct split_write;
struct split_part {
	struct ingest_store store; /* first */
	struct split_write *of;
	struct rw_request rw;
	struct admission admission;
	struct span refusal;
	enum errid refusal_id; /* NONE: everything was stored */
};

/* Lives in the request's arena until it is answered. */
struct split_write {
	struct ingest *in;
	struct http_request *r;
	struct ingest_split split;
	struct split_part *parts; /* of the split */
	int64_t retry_s;	  /* 0: no rate was over */
};

/* ---- the answer ---- */

static int gravity(enum errid id)
{
	int status = id == ERRID_NONE ? 0 : errid_status(id);
	return status == 503 ? 3 : status == 429 ? 2 : status > 0 ? 1 : 0;
}

/* "<words>" -> "<words> (tenant a; 3 other tenants' samples were refused as well)" */
static struct span in_words(const struct split_write *w, const struct split_part *p, uint32_t n_others)
{
	struct span s = p->refusal;
	if (s.n > 0 && s.p[s.n - 1] == '\n')
		s.n--;
	const char *text = n_others == 0 ? arena_printf(http_arena(w->r), "%.*s (tenant %.*s)\n", SPAN_ARG(s), SPAN_ARG(p->store.b.tenant))
					 : arena_printf(http_arena(w->r), "%.*s (tenant %.*s; of %" PRIu32 " more tenants something was refused)\n",
						   SPAN_ARG(s), SPAN_ARG(p->store.b.tenant), n_others);
	return text ? span_cstr(text) : p->refusal;
}

/* The gravest that is refused. */
static struct ingest_before refusal_of(const struct split_write *w)
{
	const struct split_part *worst = NULL;
	struct span nobody = ingest_split_refusal(&w->split, http_arena(w->r));
	uint32_t n = 0;
	for (uint32_t k = 0; k < w->split.n_parts; k++) {
		const struct split_part *p = &w->parts[k];
		n += p->refusal_id != ERRID_NONE;
		if (p->refusal_id != ERRID_NONE && (!worst || gravity(p->refusal_id) > gravity(worst->refusal_id)))
			worst = p;
	}
	if (nobody.n > 0 && (!worst || gravity(worst->refusal_id) == gravity(ERRID_TENANT)))
		return (struct ingest_before){.id = ERRID_TENANT, .words = nobody};
	if (!worst)
		return (struct ingest_before){.id = ERRID_NONE};
	return (struct ingest_before){
		.id = worst->refusal_id,
		.words = in_words(w, worst, n - 1),
		.retry_s = w->retry_s > 0			      ? w->retry_s
			   : worst->refusal_id == ERRID_TENANT_SERIES ? 60
								      : 0,
	};
}

static void answer(struct split_write *w)
{
	struct ingest_written sum = {0};
	const struct ingest_before refused = refusal_of(w);
	char text[24];
	for (uint32_t k = 0; k < w->split.n_parts; k++) {
		sum.samples += w->parts[k].store.written.samples;
		sum.histograms += w->parts[k].store.written.histograms;
		sum.exemplars += w->parts[k].store.written.exemplars;
	}
	if (w->split.version == RW_2)
		ingest_written_headers(w->r, &sum);
	if (refused.id == ERRID_NONE) {
		http_answer(w->r, 204, NULL, (struct span){"", 0});
		return;
	}
	metric_add(w->in->requests_partial, 1);
	snprintf(text, sizeof text, "%" PRId64, refused.retry_s);
	if (refused.retry_s > 0)
		http_set_header(w->r, "Retry-After", text);
	http_answer(w->r, errid_status(refused.id), NULL, refused.words);
}

/* ---- storing ---- */

static void refuse(struct split_part *p, enum errid id, struct span words)
{
	p->refusal_id = id;
	p->refusal = words.p ? words : span_cstr(errid_text(id));
}

static void judged(struct ingest_store *st)
{
	struct split_part *p = (struct split_part *)st;
	struct ingest *in = st->in;
	if (st->fault != ERRID_NONE) {
		const char *text = arena_printf(st->arena, "%s: %s\n", errid_text(st->fault), st->why);
		refuse(p, st->fault, text ? span_cstr(text) : (struct span){NULL, 0});
		return;
	}
	enum errid id = ERRID_NONE;
	struct span words = ingest_refusal(in, &st->b, st->rw, st->version, &st->verdicts, &p->admission.limits, st->arena, &id);
	if (words.n == 0 && st->version == RW_2)
		words = ingest_exemplar_refusal(&st->notes, st->arena, &id);
	if (words.n == 0)
		return;
	refuse(p, id, words);
	if (id == ERRID_TENANT_SERIES)
		ingest_limits_refused_series(in->limits);
	log_debug("samples refused", LSTR("client", http_client(p->of->r)), LSPAN("tenant", st->b.tenant), LSPAN("answer", words));
}

/* From the log's syncer thread: durable, or not. */
static void durable(struct ingest_store *st, errc rc, const struct err *err)
{
	struct split_write *w = ((struct split_part *)st)->of;
	if (rc == OK)
		answer(w);
	else {
		if (w->split.version == RW_2)
			ingest_written_headers(w->r, &(struct ingest_written){0});
		ingest_store_failed(w->r, rc, err);
	}
}

/* The part as a request of its own, held against its tenant's limits. ERR_LIMIT is the part's own. */
static errc part_prepare(struct split_write *w, uint32_t k, struct err *err)
{
	errc rc = OK;
	struct split_part *p = &w->parts[k];
	struct span tenant = w->split.parts[k].tenant;
	*p = (struct split_part){.of = w};
	p->store = (struct ingest_store){.in = w->in,
		.arena = http_arena(w->r),
		.rw = &p->rw,
		.version = w->split.version,
		.judged = judged,
		.done = durable,
		.b = {.tenant = tenant}};
	TRY(ingest_split_part(&w->split, k, http_arena(w->r), &p->rw, err));
	ingest_admit(w->in->limits, tenant, &p->admission);
	rc = ingest_admit_counts(&p->admission, p->rw.n_series, p->rw.n_samples + p->rw.n_hists, err);
	if (rc == ERR_LIMIT) {
		const char *text = arena_printf(http_arena(w->r), "%s: %s\n", err->id, err->msg);
		refuse(p, errid_of(err->id), text ? span_cstr(text) : (struct span){NULL, 0});
		if (p->admission.retry_s > w->retry_s)
			w->retry_s = p->admission.retry_s;
	}
fail:
	return rc;
}

/* Nothing was stored: what the first n parts took from their tenants' rates. */
static void give_back(struct split_write *w, uint32_t n)
{
	for (uint32_t k = 0; k < n; k++)
		ingest_admit_end(&w->parts[k].admission, false);
}

static errc here(struct split_write *w, const struct ingest_bounds *bounds, struct err *err)
{
	errc rc = OK;
	struct ingest_store *first = NULL, **last = &first;
	for (uint32_t k = 0; k < w->split.n_parts; k++) {
		struct split_part *p = &w->parts[k];
		struct ingest_bounds own = *bounds;
		if (p->refusal_id != ERRID_NONE)
			continue;
		own.max_series = ingest_head_max(w->in, p->store.b.tenant, &p->admission.limits);
		TRY(ingest_batch(&p->store, p->store.b.tenant, &own, err));
		*last = &p->store;
		last = &p->store.next;
	}
	if (!first) {
		answer(w);
		return OK;
	}
	http_defer(w->r); /* the log may answer before this thread comes back */
	rc = ingest_store(first, err);
fail:
	return rc;
}

/* On the nodes of the tenants' rings. */
static errc routed(struct split_write *w, struct span body, const struct ingest_bounds *bounds, struct err *err)
{
	errc rc = OK;
	struct arena *arena = http_arena(w->r);
	struct rw_slices whole, *slices = arena_alloc(arena, w->split.n_parts * sizeof *slices);
	struct ingest_part *parts = arena_alloc(arena, w->split.n_parts * sizeof *parts);
	uint32_t n = 0;
	if (!slices || !parts)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %" PRIu32 " tenants", w->split.n_parts);
	TRY(rw_slices(body, w->split.version, w->split.rw, arena, &whole, err));
	for (uint32_t k = 0; k < w->split.n_parts; k++) {
		struct split_part *p = &w->parts[k];
		if (p->refusal_id != ERRID_NONE)
			continue;
		TRY(ingest_split_part(&w->split, k, arena, &p->rw, err));
		TRY(ingest_split_slices(&w->split, k, &whole, &p->rw, &slices[n], err));
		parts[n] = (struct ingest_part){
			.tenant = p->store.b.tenant,
			.version = w->split.version,
			.slices = &slices[n],
			.rw = &p->rw,
			.n_items = (uint32_t)(p->rw.n_series + (w->split.version == RW_1 ? p->rw.n_metadata : 0)),
			.max_series = ingest_head_max(w->in, p->store.b.tenant, &p->admission.limits),
		};
		n++;
	}
	if (n == 0) {
		answer(w);
		return OK;
	}
	const struct ingest_before before = refusal_of(w);
	TRY(ingest_route(w->in, w->r, parts, n, bounds, &before, err));
fail:
	return rc;
}

errc ingest_split_write(struct ingest *in, struct http_request *r, const struct ingest_split *split, struct span body,
	const struct ingest_bounds *bounds, struct err *err)
{
	errc rc = OK;
	uint32_t n = 0;
	struct split_write *w = arena_calloc(http_arena(r), 1, sizeof *w);
	if (!w)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory");
	w->in = in;
	w->r = r;
	w->split = *split;
	if (!http_budget_take(r, split->n_parts * sizeof *w->parts))
		return err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "too many bytes in flight (--ingest.max-inflight)");
	w->parts = arena_calloc(http_arena(r), split->n_parts, sizeof *w->parts);
	if (!w->parts)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %" PRIu32 " tenants", split->n_parts);
	for (; n < split->n_parts; n++) {
		rc = part_prepare(w, n, err);
		if (rc != OK && w->parts[n].refusal_id == ERRID_NONE) {
			n++;
			goto fail;
		}
	}
	for (uint32_t k = 0; k < split->n_refused; k++) {
		const struct rw_series *s = &split->rw->series[split->refused[k]];
		metric_add(in->refused, s->n_samples + s->n_hists);
	}
	rc = in->cfg.cluster ? routed(w, body, bounds, err) : here(w, bounds, err);
	if (rc == OK)
		return OK;
fail:
	give_back(w, n);
	return rc;
}
