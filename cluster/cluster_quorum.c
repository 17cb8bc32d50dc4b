/* cluster/cluster_quorum.c - when a series is decided, and what a client is told of it.
 *
 * Of a series' n nodes, s have stored it, r refuse it, a could not and may later, p have not said; q is its quorum.
 *
 *     stored      s >= q
 *     refused     r > n - q, and s + r >= q or p = 0    q can't be reached, though all others store it: trying again changes nothing
 *     try again   s + p < q and r + p <= n - q  q can't be reached now, nor can it still turn out to be refused
 *
 * The last condition waits for peers that may still refuse although the quorum is out of reach already: a node that is down says "try again" at once, and a value that the others refuse
 * would be sent over and over for as long as it is. Where that no longer matters nothing is waited for.
 *
 * A refusal waits for q nodes to have spoken, though less shows that it is one: what is there of the series, which 2.0 is told, is what q of them have.
 *
 * What is there of a series that is not stored: the most samples that q nodes have, so the q-th greatest of what they report; who stored it in full has more than any of the others.
 */
#include <stdlib.h>
#include "cluster/cluster_write_int.h"

static inline void decide(struct cluster_op *op, struct cluster_count *k)
{
	uint32_t need = cluster_need(op, k), spare = k->nodes - need;
	uint32_t pending = (uint32_t)k->nodes - k->stored - k->refused - k->again;
	if (k->stored >= need)
		k->state = CLUSTER_STORED;
	else if (k->refused > spare && (k->stored + k->refused >= need || pending == 0))
		k->state = CLUSTER_REFUSED;
	else if (k->stored + pending < need && k->refused + pending <= spare)
		k->state = CLUSTER_AGAIN;
	else
		return;
	op->undecided--;
}

void cluster_count_share_locked(struct cluster_op *op, const struct cluster_share *s)
{
	const struct peer_verdict *v = s->verdicts, *end = v + s->n_verdicts;
	for (uint32_t i = 0; i < s->n; i++) {
		struct cluster_count *k = &op->counts[s->items[i]];
		enum peer_verdict_kind kind = PEER_STORED;
		if (UNLIKELY(s->why != ERRID_NONE))
			kind = PEER_AGAIN;
		else if (UNLIKELY(v < end && v->item == i))
			kind = v++->kind;
		if (LIKELY(kind == PEER_STORED))
			k->stored++;
		else if (kind == PEER_REFUSED)
			k->refused++;
		else
			k->again++;
		if (k->state == CLUSTER_UNDECIDED)
			decide(op, k);
	}
	ASSERT(v == end || s->why != ERRID_NONE);
}

void cluster_count_expire_locked(struct cluster_op *op)
{
	for (uint32_t i = 0; op->undecided > 0 && i < op->n_items; i++)
		if (op->counts[i].state == CLUSTER_UNDECIDED) {
			struct cluster_count *k = &op->counts[i];
			k->state = k->refused > k->nodes - cluster_need(op, k) ? CLUSTER_REFUSED : CLUSTER_AGAIN;
			op->undecided--;
		}
}

/* ---- the outcome ---- */

/* A node's verdict of an item that is not stored. */
struct report {
	uint32_t item, share; /* of the write */
	const struct peer_verdict *v;
};

static int by_item(const void *a, const void *b)
{
	const struct report *x = a, *y = b;
	return x->item != y->item ? (x->item > y->item) - (x->item < y->item) : (x->share > y->share) - (x->share < y->share);
}

static size_t reports_of(const struct cluster_op *op, struct report *out)
{
	size_t n = 0;
	for (uint32_t i = 0; i < op->n_shares; i++) {
		const struct cluster_share *s = &op->shares[i];
		for (uint32_t k = 0; s->over && k < s->n_verdicts; k++) {
			uint32_t item = s->items[s->verdicts[k].item];
			if (op->counts[item].state == CLUSTER_STORED)
				continue;
			if (out)
				out[n] = (struct report){item, i, &s->verdicts[k]};
			n++;
		}
	}
	return n;
}

static void insert(uint32_t *v, uint32_t *n, uint32_t x)
{
	uint32_t i = (*n)++;
	for (; i > 0 && v[i - 1] < x; i--)
		v[i] = v[i - 1];
	v[i] = x;
}

static void item_of(const struct cluster_op *op, const struct report *r, size_t n, struct cluster_item *out)
{
	const struct cluster_count *k = &op->counts[out->item];
	uint32_t samples[LIMIT_RING_FACTOR], hists[LIMIT_RING_FACTOR], exemplars[LIMIT_RING_FACTOR], a = 0, b = 0, c = 0;
	uint32_t full = k->stored; /* nodes that have all of it */
	enum peer_verdict_kind wanted = out->state == CLUSTER_REFUSED ? PEER_REFUSED : PEER_AGAIN;
	ASSERT(n <= LIMIT_RING_FACTOR);
	for (size_t i = 0; i < n; i++) {
		const struct peer_verdict *v = r[i].v;
		full -= v->kind == PEER_STORED;
		if (v->kind == wanted && out->id == ERRID_NONE) {
			out->id = v->id;
			out->t = v->kind == PEER_REFUSED ? v->t : 0;
		}
		insert(samples, &a, v->samples);
		insert(hists, &b, v->hists);
		insert(exemplars, &c, v->exemplars);
	}
	uint32_t nth = cluster_need(op, k) - full; /* of the partial ones, from 1 */
	if (nth > n)
		return;
	out->samples = samples[nth - 1];
	out->hists = hists[nth - 1];
	out->exemplars = exemplars[nth - 1];
}

void cluster_outcome_of_locked(const struct cluster_op *op, struct cluster_outcome *o, struct cluster_item **items)
{
	struct report *reports = NULL;
	enum errid why = ERRID_NONE; /* of the first share of which nothing was stored */
	size_t n_reports, at = 0;
	*o = (struct cluster_outcome){0};
	*items = NULL;
	for (uint32_t i = 0; i < op->n_items; i++) {
		o->stored += op->counts[i].state == CLUSTER_STORED;
		o->refused += op->counts[i].state == CLUSTER_REFUSED;
		o->again += op->counts[i].state == CLUSTER_AGAIN;
	}
	uint32_t n = o->refused + o->again;
	if (LIKELY(n == 0))
		return;
	for (uint32_t i = 0; i < op->n_shares && why == ERRID_NONE; i++)
		why = op->shares[i].over ? op->shares[i].why : ERRID_NONE;
	n_reports = reports_of(op, NULL);
	*items = calloc(n, sizeof **items);
	reports = malloc((n_reports + 1) * sizeof *reports);
	if (!*items || !reports) {
		free(*items);
		*items = NULL;
		*o = (struct cluster_outcome){.again = op->n_items};
		o->by_reason[ERRID_OVERLOADED] = op->n_items;
		goto out;
	}
	reports_of(op, reports);
	qsort(reports, n_reports, sizeof *reports, by_item);
	for (uint32_t i = 0; i < op->n_items; i++) {
		if (op->counts[i].state == CLUSTER_STORED)
			continue;
		struct cluster_item *x = &(*items)[o->n_items++];
		size_t from = at;
		while (at < n_reports && reports[at].item == i)
			at++;
		*x = (struct cluster_item){.item = i, .state = op->counts[i].state};
		item_of(op, reports + from, at - from, x);
		if (x->id == ERRID_NONE)
			x->id = why != ERRID_NONE ? why : ERRID_NO_QUORUM;
		o->by_reason[x->id]++;
	}
	o->items = *items;
out:
	free(reports);
}
