/* ingest/ingest_route.c - a client's write where there are rings: each series to its nodes, this one among them or not, and one answer when a quorum of each has spoken.
 *
 *     decoded request ─▶ a hash for each series ─▶ cluster_write_begin ─▶ peers' shares, on their way
 *                                                       │ mine                          ╎
 *                                                       ▼                               ╎
 *                                              ingest_many ╌╌ durable ╌╌▶ verdicts ◀╌╌╌╌┘
 *                                                                            │
 *                                                                            ▼
 *                                                 204 | 400, 429 | 503 (ingest_route_answer.c)
 *
 * Time bounds, sizes and rates are judged here and nowhere else. What is borrowed from the client's request (its body, decompressed) is needed until cluster_write_go: by then
 * frames are made, and the node's own share is in the head and handed to the log. The answer may come before the log has it, when other nodes were faster; what the log calls back
 * with lives by itself therefore (struct ingest_many).
 */
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "ingest/ingest_int.h"

/* ---- this node's share ---- */

static void mine_done(struct ingest_many *m)
{
	struct cluster_op *op = m->arg;
	uint32_t n = ingest_many_count(m);
	struct peer_verdict *v = n > 0 ? malloc(n * sizeof *v) : NULL;
	if (v)
		ingest_many_verdicts(m, v);
	if (n == 0 || v)
		cluster_write_mine_done(op, ERRID_NONE, v, n);
	else
		cluster_write_mine_done(op, ERRID_OVERLOADED, NULL, 0);
	free(v);
	ingest_many_free(m);
}

static void mine_store(struct routed *w, struct cluster_op *op, const struct ingest_bounds *bounds)
{
	const uint32_t *items;
	uint32_t n, at = 0, first = 0;
	cluster_write_mine(op, &items, &n);
	if (n == 0)
		return;
	enum errid gate = ingest_gate_id(w->in);
	struct ingest_many *m = gate == ERRID_NONE ? ingest_many_new(w->in, w->n_parts, mine_done, op) : NULL;
	if (!m) {
		cluster_write_mine_done(op, gate != ERRID_NONE ? gate : ERRID_OVERLOADED, NULL, 0);
		return;
	}
	for (uint32_t p = 0; p < w->n_parts; p++) {
		uint32_t from = at;
		struct ingest_part own;
		struct err err = {0};
		while (at < n && items[at] - first < w->parts[p].n_items)
			at++;
		if (at > from) {
			errc rc = ingest_share_of(&w->parts[p], items + from, at - from, first, http_arena(w->r), &own, &err);
			if (rc == OK)
				ingest_many_store(m, p, &own, from, bounds, http_arena(w->r));
			else
				ingest_many_refuse(m, p, from, at - from, rc, &err);
		}
		first += w->parts[p].n_items;
	}
	ingest_many_go(m);
}

/* ---- the write ---- */

static errc place(struct routed *w, struct ring_set *set, struct cluster_part *out, struct err *err)
{
	errc rc = OK;
	struct arena *arena = http_arena(w->r);
	for (uint32_t p = 0; p < w->n_parts; p++) {
		const struct ingest_part *part = &w->parts[p];
		struct rw_slices slices;
		uint64_t *hashes = arena_alloc(arena, (part->n_items + 1) * sizeof *hashes);
		struct span *fields = NULL;
		if (!hashes)
			return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory to place %u series", part->n_items);
		TRY(ingest_places(part, arena, hashes, err));
		if (part->slices)
			slices = *part->slices;
		else
			TRY(rw_slices(part->body, part->version, part->rw, arena, &slices, err));
		fields = slices.series;
		if (slices.metadata && part->n_items > part->rw->n_series) {
			fields = arena_alloc(arena, part->n_items * sizeof *fields);
			if (!fields)
				return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory to send on %u series", part->n_items);
			memcpy(fields, slices.series, part->rw->n_series * sizeof *fields);
			memcpy(fields + part->rw->n_series, slices.metadata, (part->n_items - part->rw->n_series) * sizeof *fields);
		}
		out[p] = (struct cluster_part){
			.tenant = part->tenant,
			.version = part->version,
			.n_series = (uint32_t)part->rw->n_series,
			.n_metadata = part->n_items - (uint32_t)part->rw->n_series,
			.hashes = hashes,
			.slices = fields,
			.symbols = slices.symbols,
			.n_symbols = slices.n_symbols,
		};
		TRY(ring_for_tenant(set, part->tenant, &out[p].ring, err));
		if (!out[p].ring) {
			rc = err_id(err, ERRID_NO_RING, ERR_AGAIN,
				"no hashring serves tenant %.*s (epoch %016llx; varve ring check tells which tenants each serves)",
				SPAN_ARG(part->tenant), (unsigned long long)ring_set_epoch(set));
			goto fail;
		}
	}
fail:
	return rc;
}

static void routed_done(void *arg, const struct cluster_outcome *o)
{
	ingest_route_answer(arg, o);
}

errc ingest_route(struct ingest *in, struct http_request *r, const struct ingest_part *parts, uint32_t n_parts, const struct ingest_bounds *bounds,
	const struct ingest_before *before, struct err *err)
{
	errc rc = OK;
	struct cluster_op *op;
	struct arena *arena = http_arena(r);
	struct ring_set *set = ring_file_current(in->cfg.rings);
	struct routed *w = arena_calloc(arena, 1, sizeof *w);
	struct cluster_part *placed = arena_calloc(arena, n_parts, sizeof *placed);
	uint32_t self = CLUSTER_NO_NODE;
	if (!set) {
		rc = err_id(err, ERRID_NO_RING, ERR_AGAIN, "there is no valid hashring yet: GET /-/ring says why");
		goto fail;
	}
	if (!w || !placed) {
		rc = err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory");
		goto fail;
	}
	*w = (struct routed){.in = in, .r = r, .parts = parts, .n_parts = n_parts};
	if (before)
		w->before = *before;
	if (in->cfg.head && in->cfg.self.n > 0)
		(void)ring_set_find(set, in->cfg.self, &self);
	TRY(place(w, set, placed, err));
	struct cluster_write write = {
		.parts = placed,
		.n_parts = n_parts,
		.self = self,
		.now_ms = bounds->now_ms,
		.min_t = bounds->min_t,
		.max_t = bounds->max_t,
		.deadline_mono_ns = io_mono_ns() + in->cfg.peer_timeout_ms * 1000000,
		.done = routed_done,
		.arg = w,
	};
	io_random(write.id, sizeof write.id);
	http_defer(r);
	TRY(cluster_write_begin(in->cfg.cluster, &write, &op, err));
	mine_store(w, op, bounds);
	for (uint32_t p = 0; p < n_parts; p++) {
		ring_unref(placed[p].ring);
		placed[p].ring = NULL;
	}
	cluster_write_go(op); /* w and r may be gone */
	ring_set_unref(set);
	return OK;
fail:
	for (uint32_t p = 0; placed && p < n_parts; p++)
		ring_unref(placed[p].ring);
	ring_set_unref(set);
	return rc;
}

uint64_t ingest_epoch(struct ingest *in)
{
	struct ring_set *set = in->cfg.rings ? ring_file_current(in->cfg.rings) : NULL;
	uint64_t epoch = set ? ring_set_epoch(set) : 0;
	ring_set_unref(set);
	return epoch;
}
