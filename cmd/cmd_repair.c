/* cmd/cmd_repair.c - repair (ingest/repair.h) among the server's parts: what it asks, and whom.
 *
 *     rings ─ roster ─ link ─┐
 *     head ─ ingest ─────────┴─ repair: opened when the write endpoints are, begins when the log is replayed, ended before any of them
 */
#include "base/limits.h"
#include "base/log.h"
#include "cmd/cmd_int.h"

static struct ring_set *rings(void *arg)
{
	struct server *s = arg;
	return s->rings ? ring_file_current(s->rings) : NULL;
}

static errc nodes(void *arg, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	struct server *s = arg;
	return roster_nodes(s->roster, arena, out, n, err);
}

static errc ask(void *arg, const struct repair_ask *a, int *status, struct buf *answer, struct err *err)
{
	struct server *s = arg;
	const struct link_call call = {
		.address = a->address,
		.method = a->method,
		.target = a->target,
		.deadline_mono_ns = a->deadline_mono_ns,
		.max_answer_bytes = a->max_answer_bytes,
	};
	return link_ask(s->link, &call, status, answer, err);
}

static errc store(void *arg, struct span frame, struct repair_stored *out, struct err *err)
{
	struct server *s = arg;
	return ingest_frame_store(s->ingest, frame, out, err);
}

/* Its meta.json says that this data directory wrote it. */
static bool made_here(struct server *s, const struct catalog_block *b, struct arena *arena)
{
	struct span json;
	struct block_meta meta;
	return catalog_meta_json(s->catalog, b->ulid, arena, &json, NULL) == OK && block_meta_parse("meta.json", json, arena, &meta, NULL) == OK &&
	       meta.has_varve && span_eq(meta.node, span_cstr(s->dir.node));
}

/* A block of this node, wherever it is by now: made by this data directory, so that one that was lost does not count. A catalog that can't be asked says no: what is taken then is
 * there twice, which compaction evens out. */
static bool was_cut(void *arg, struct span tenant, int64_t start, int64_t end)
{
	struct server *s = arg;
	struct arena arena;
	struct catalog_block *v;
	size_t n;
	bool found = false;
	/* A tenant that was deleted since: a peer that does not know yet, or was away, must not bring it back. */
	if (start <= catalog_hidden_upto(s->catalog, tenant))
		return true;
	arena_init(&arena, 256 * MIB);
	if (catalog_plan(s->catalog, tenant, start, end - 1, &arena, &v, &n, NULL, NULL) == OK)
		for (size_t i = 0; i < n && !found; i++)
			found = (v[i].local && !v[i].in_bucket) || (v[i].level == 1 && made_here(s, &v[i], &arena));
	arena_free(&arena);
	return found;
}

/* ---- what hints say ---- */

struct wanted {
	struct span address;
	struct repair_owed *out;
};

static void pending_of(void *arg, const struct hints_status *h)
{
	const struct wanted *w = arg;
	if (span_eq(h->address, w->address))
		w->out->pending_bytes = h->pending_bytes;
}

static void owed(void *arg, struct span address, struct repair_owed *out)
{
	struct server *s = arg;
	struct wanted w = {address, out};
	struct hints_owed o;
	*out = (struct repair_owed){0};
	if (!s->hints)
		return;
	hints_each(s->hints, pending_of, &w);
	if (hints_owed(s->hints, address, &o)) {
		out->from_ms = o.from_ms;
		out->to_ms = o.to_ms;
	}
}

static void repaired(void *arg, struct span address, int64_t to_ms)
{
	struct server *s = arg;
	if (s->hints)
		hints_repaired(s->hints, address, to_ms);
}

errc server_repair_open(struct server *s, struct err *err)
{
	if (!s->head || !s->ingest)
		return OK;
	const struct repair_config cfg = {
		.head = s->head,
		.self = s->self,
		.file = arena_printf(&s->arena, "%s/repair.state", s->dir.path),
		.bytes_per_s = s->flags->repair_rate,
		.trust = s->trust,
		.arg = s,
		.rings = rings,
		.nodes = nodes,
		.ask = ask,
		.store = store,
		.cut = was_cut,
		.owed = owed,
		.repaired = repaired,
	};
	return cfg.file ? repair_open(&cfg, &s->repair, err) : err_set(err, ERR_NOMEM, "no memory for paths");
}

void server_repair_ready(struct server *s)
{
	struct err err = {0};
	if (s->repair && repair_start(s->repair, &err) != OK)
		log_error("replicas are not compared", LERR(&err));
}
