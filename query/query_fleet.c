/* query/query_fleet.c - the other nodes: who is asked, the rings of lately, and when an answer is whole without somebody.
 *
 * A sample is acknowledged when q of the nodes that its ring gives it have stored it, q being the quorum of that ring set. So, of one ring set:
 *
 *     missing nodes of the tenant's ring < q   ⟹   of the q that stored the sample at least one is not missing   ⟹   the answer has it
 *
 * and an answer is whole when that holds for each set that a sample may have been written by which the bucket may not have yet: the one in force and those of the last --ring.remember, each by itself, since a
 * write counts on one of them only. A node that is missing and is in none of the tenant's rings changes nothing. (Where two replicas of a series are one node, which takes a hash that nobody meets by chance,
 * its quorum is what it has; such a series may be missed.)
 *
 * What this process has not seen it can't count by: rings from before its start, or of a node that says an epoch that is not known here. Then fewer than q of all nodes may be missing, whichever ring they are in:
 * that is stricter than each of those rings would be by itself, as long as none had a smaller quorum than the one in force.
 *
 * A node that answers has all that it stored: while it replays its log it refuses (fleet->whole), and is missing; so is this one while it does.
 */
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_fleet_int.h"

enum { NEVER_HEARD_MS = 5000 /* after which a node that never answered is known not to */ };

/* A ring set that writes may have counted on. */
struct lately {
	struct ring_set *set;
	int64_t left_ms; /* of io_mono_ms, when another came into force; INT64_MAX: it is in force */
};

struct fleet {
	struct query_fleet cfg;
	struct http_client_config client;
	struct http_sender *sender;
	int64_t opened_ms;
	pthread_mutex_t mu; /* what follows */
	struct lately *v;
	size_t n, cap;
};

errc fleet_open(const struct query_fleet *cfg, uint32_t connections, struct fleet **out, struct err *err)
{
	struct fleet *f = calloc(1, sizeof *f);
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for reads of the fleet");
	f->cfg = *cfg;
	f->opened_ms = io_mono_ms();
	pthread_mutex_init(&f->mu, NULL);
	/* A sender of their own: long answers must not hold the connections that writes are forwarded on. */
	const struct http_sender_config sc = {.client = cfg->client, .max_connections_per_host = connections};
	errc rc = http_sender_open(&sc, &f->sender, err);
	if (rc == OK)
		*out = f;
	else
		fleet_close(f);
	return rc;
}

void fleet_cancel(struct fleet *f)
{
	if (f)
		http_sender_cancel(f->sender);
}

void fleet_close(struct fleet *f)
{
	if (!f)
		return;
	http_sender_close(f->sender);
	for (size_t i = 0; i < f->n; i++)
		ring_set_unref(f->v[i].set);
	free(f->v);
	pthread_mutex_destroy(&f->mu);
	free(f);
}

const struct query_fleet *fleet_config(const struct fleet *f)
{
	return &f->cfg;
}

struct http_sender *fleet_sender(const struct fleet *f)
{
	return f->sender;
}

/* ---- rings ---- */

static void forget_locked(struct fleet *f, int64_t now_ms)
{
	size_t n = 0;
	for (size_t i = 0; i < f->n; i++)
		if (f->v[i].left_ms == INT64_MAX || now_ms - f->v[i].left_ms <= f->cfg.remember_ms)
			f->v[n++] = f->v[i];
		else
			ring_set_unref(f->v[i].set);
	f->n = n;
}

void fleet_rings(struct fleet *f, struct ring_set *now)
{
	int64_t now_ms = io_mono_ms();
	pthread_mutex_lock(&f->mu);
	forget_locked(f, now_ms);
	/* One that was in force before is one entry, the last. */
	size_t n = 0;
	for (size_t i = 0; i < f->n; i++) {
		if (f->v[i].left_ms == INT64_MAX)
			f->v[i].left_ms = now_ms;
		if (ring_set_epoch(f->v[i].set) == ring_set_epoch(now))
			ring_set_unref(f->v[i].set);
		else
			f->v[n++] = f->v[i];
	}
	f->n = n;
	if (f->n == f->cap) {
		size_t cap = f->cap ? f->cap * 2 : 8;
		struct lately *bigger = realloc(f->v, cap * sizeof *bigger);
		/* Without memory the set is not known here: what its nodes say of their epoch makes reads strict (fleet_view_take). */
		if (!bigger)
			log_error("no memory to remember a ring for reads");
		if (bigger) {
			f->v = bigger;
			f->cap = cap;
		}
	}
	if (f->n < f->cap)
		f->v[f->n++] = (struct lately){ring_set_ref(now), INT64_MAX};
	pthread_mutex_unlock(&f->mu);
}

/* ---- what a question sees ---- */

static uint32_t quorum_of(const struct fleet_view *v, const struct ring_set *s)
{
	uint32_t factor = ring_set_factor(s), q = v->wanted ? v->wanted : factor / 2 + 1;
	return q < factor ? q : factor;
}

static bool in_sets(const struct fleet_view *v, struct span address)
{
	uint32_t node;
	for (size_t i = 0; i < v->n_sets; i++)
		if (ring_set_find(v->sets[i], address, &node))
			return true;
	return false;
}

static bool epoch_known(const struct fleet_view *v, uint64_t epoch)
{
	for (size_t i = 0; i < v->n_sets; i++)
		if (ring_set_epoch(v->sets[i]) == epoch)
			return true;
	return epoch == 0;
}

errc fleet_view_take(struct fleet *f, struct arena *arena, struct fleet_view *out, struct err *err)
{
	errc rc = OK;
	int64_t now_ms = io_mono_ms();
	*out = (struct fleet_view){.wanted = f->cfg.quorum};
	/* Rings first: a node of theirs is known to the roster by then. One that comes into force in between brings nodes that are in no set here. */
	pthread_mutex_lock(&f->mu);
	forget_locked(f, now_ms);
	out->sets = arena_alloc(arena, (f->n + 1) * sizeof(struct ring_set *));
	for (size_t i = 0; out->sets && i < f->n; i++) {
		out->sets[out->n_sets++] = ring_set_ref(f->v[i].set);
		out->in_force |= f->v[i].left_ms == INT64_MAX;
	}
	pthread_mutex_unlock(&f->mu);
	CHECK(out->sets, ERR_NOMEM, "no memory for rings (--query.max-memory)");
	TRY(f->cfg.nodes(f->cfg.roster, arena, &out->nodes, &out->n, err));
	out->known = now_ms - f->opened_ms >= f->cfg.remember_ms;
	for (size_t i = 0; i < out->n; i++) {
		bool down;
		if (fleet_view_asks(f, &out->nodes[i], &down))
			out->known &= in_sets(out, out->nodes[i].address) && epoch_known(out, out->nodes[i].epoch);
	}
fail:
	return rc;
}

void fleet_view_free(struct fleet_view *v)
{
	for (size_t i = 0; i < v->n_sets; i++)
		ring_set_unref(v->sets[i]);
	v->n_sets = 0;
}

bool fleet_view_asks(struct fleet *f, const struct roster_node *n, bool *down)
{
	bool heard = n->heard_ms > 0 || io_mono_ms() - f->opened_ms > NEVER_HEARD_MS;
	*down = !n->self && !n->answers && heard;
	return n->stores && n->state != NODE_DRAINED;
}

/* How many of these nodes may have series of the tenant by this set. All of them, when that can't be found out. */
static size_t missing_of(struct ring_set *s, struct span tenant, const struct span *missing, size_t n)
{
	struct ring *ring;
	const uint16_t *nodes = NULL;
	size_t found = 0;
	if (ring_for_tenant(s, tenant, &ring, NULL) != OK)
		return n;
	uint32_t n_nodes = ring ? ring_nodes(ring, &nodes) : 0;
	for (size_t i = 0; n_nodes > 0 && i < n; i++) {
		uint32_t node;
		if (!ring_set_find(s, missing[i], &node))
			continue;
		for (uint32_t k = 0; k < n_nodes; k++)
			found += nodes[k] == node;
	}
	ring_unref(ring);
	return found;
}

bool fleet_view_whole(const struct fleet_view *v, struct span tenant, const struct span *missing, size_t n)
{
	if (n == 0)
		return true;
	/* Without rings each node may have what no other has. */
	uint32_t least = v->in_force ? quorum_of(v, v->sets[v->n_sets - 1]) : 1;
	if ((!v->known || !v->in_force) && n >= least)
		return false;
	for (size_t i = 0; i < v->n_sets; i++)
		if (missing_of(v->sets[i], tenant, missing, n) >= quorum_of(v, v->sets[i]))
			return false;
	return true;
}
