/* cluster/cluster_finder_plan.c - from what members say to the ring of them. Pure: no clock, no file, nobody asked.
 *
 * Each is judged alone, by the first line that fits:
 *
 *     it said that it leaves, or that it is drained                                   draining   out
 *     it stores nothing (--target)                                                    joining    out
 *     it answers and says that it is ready                                            active     in
 *     it is in the ring, and
 *         answers (it starts again)                                                   away       in
 *         is silent, and no name stands for it any more                               gone       out
 *         is silent                                                                   away       in: until --peers.gone-after
 *     else                                                                            joining    out
 *
 * Then the ring as a whole: when more than half of it is silent nobody is dropped for that, for it is rather this node that sees nobody; when it would fall below the replication factor those stay
 * that serve best; the first one waits until as many as the factor are ready and everybody that is named was asked once, so that nodes that start together begin with the same ring.
 */
#include "base/json.h"
#include "base/limits.h"
#include "cluster/cluster_finder_int.h"

const char *const finder_state_names[] = {"joining", "active", "away", "draining", "gone"};

static struct finder_verdict judge(const struct finder_view *view, const struct roster_candidate *c)
{
	const struct roster_node *n = &c->node;
	if (n->state == NODE_DRAINED)
		return (struct finder_verdict){FOUND_DRAINING, false, "it is drained"};
	if (n->state == NODE_DRAINING)
		return (struct finder_verdict){FOUND_DRAINING, false, "it leaves"};
	if (!n->stores)
		return (struct finder_verdict){FOUND_JOINING, false, "it stores nothing (--target)"};
	if (n->answers && n->state == NODE_ACTIVE)
		return (struct finder_verdict){FOUND_ACTIVE, true, "it is ready"};
	if (n->in_ring && n->answers)
		return (struct finder_verdict){FOUND_AWAY, true, "it is not ready again yet"};
	if (n->in_ring && view->looked && !c->wanted)
		return (struct finder_verdict){FOUND_GONE, false, "it does not answer, and no name stands for it any more"};
	if (n->in_ring)
		return (struct finder_verdict){FOUND_AWAY, true, "it does not answer"};
	return (struct finder_verdict){FOUND_JOINING, false,
		n->answers ? "it says that it is not ready"
		: c->asked ? "it does not answer"
			   : "it was not asked yet"};
}

static void drop_silent(const struct finder_view *view, struct finder_plan *plan)
{
	size_t silent = 0, members = 0;
	for (size_t i = 0; i < view->n; i++) {
		members += plan->v[i].in;
		silent += plan->v[i].in && !view->nodes[i].node.answers;
	}
	for (size_t i = 0; i < view->n; i++) {
		if (!plan->v[i].in || view->nodes[i].silent_ms <= view->gone_after_ms)
			continue;
		if (silent * 2 > members)
			plan->v[i].reason = "it does not answer for long, but neither does most of the ring: nobody is dropped";
		else
			plan->v[i] = (struct finder_verdict){FOUND_GONE, false, "it does not answer for longer than --peers.gone-after"};
	}
}

/* How well somebody who should leave the ring can still serve; 0: no candidate. */
static int worth_keeping(const struct roster_candidate *c, const struct finder_verdict *v)
{
	if (v->in || !c->node.in_ring || !c->node.stores)
		return 0;
	return c->node.answers ? (c->node.state == NODE_DRAINING ? 4 : 3) : c->node.state == NODE_DRAINED ? 1 : 2;
}

static void keep_last(const struct finder_view *view, struct finder_plan *plan)
{
	while (plan->n_in < view->factor) {
		size_t best = view->n;
		for (size_t i = 0; i < view->n; i++) {
			int worth = worth_keeping(&view->nodes[i], &plan->v[i]);
			if (worth > 0 && (best == view->n || worth > worth_keeping(&view->nodes[best], &plan->v[best])))
				best = i;
		}
		if (best == view->n)
			return;
		plan->v[best].in = true;
		plan->v[best].reason = "it should leave, but the ring would have fewer members than the replication factor";
		plan->n_in++;
	}
}

static errc write_ring(const struct finder_view *view, struct finder_plan *plan, struct arena *arena, struct err *err)
{
	struct buf b = {0};
	buf_init(&b, LIMIT_RING_FILE_BYTES);
	buf_printf(&b, "[{\"hashring\":\"default\",\"endpoints\":[");
	for (size_t i = 0, k = 0; i < view->n; i++) {
		if (!plan->v[i].in)
			continue;
		buf_printf(&b, k++ ? ",\n" : "\n");
		buf_json_string(&b, view->nodes[i].node.address);
	}
	buf_printf(&b, "\n]}]\n");
	plan->text = b.failed ? (struct span){0} : arena_dup(arena, span_of(b.p, b.n));
	buf_free(&b);
	return plan->text.p ? OK : err_set(err, ERR_NOMEM, "no memory for a ring of %zu", plan->n_in);
}

errc finder_plan(const struct finder_view *view, struct arena *arena, struct finder_plan *out, struct err *err)
{
	bool has_ring = false, asked = view->tried;
	*out = (struct finder_plan){.v = arena_calloc(arena, view->n, sizeof *out->v)};
	if (!out->v)
		return err_set(err, ERR_NOMEM, "no memory for a plan of %zu members", view->n);
	for (size_t i = 0; i < view->n; i++) {
		has_ring |= view->nodes[i].node.in_ring;
		asked &= view->nodes[i].asked;
		out->v[i] = judge(view, &view->nodes[i]);
	}
	drop_silent(view, out);
	for (size_t i = 0; i < view->n; i++)
		out->n_in += out->v[i].in;
	if (has_ring) {
		keep_last(view, out);
		return out->n_in ? write_ring(view, out, arena, err) : OK;
	}
	if (out->n_in < view->factor || !asked) {
		out->waits = arena_printf(arena,
			asked ? "the first ring waits for %u members that are ready (--replication-factor); there are %zu"
			      : "the first ring waits until everybody was asked once; %u must be ready, %zu are",
			view->factor, out->n_in);
		return out->waits ? OK : err_set(err, ERR_NOMEM, "no memory for a plan");
	}
	return write_ring(view, out, arena, err);
}
