/* cluster/cluster_ring_compare.c - how much each node has, and what a change moves.
 *
 * A hash is as likely to be here as there, so a section's part of all series is its arc's part of the circle, and nothing has to be sampled. Two ketama
 * rings cut the circle into the arcs between the sections of both; on each of them both have constant owners. Two hashmod rings are walked by what a hash
 * leaves of both numbers of nodes, all pairs of which are equally likely. Between the two kinds, where in an arc a hash is says nothing about
 * what it leaves, an arc being far longer than there are nodes: there probabilities multiply.
 */
#include <stdlib.h>
#include "cluster/cluster_int.h"

static const double circle = 18446744073709551616.0;

/* From the section before it, round the end. */
static uint64_t arc(const struct ring *r, uint32_t i)
{
	return r->hashes[i] - r->hashes[i ? i - 1 : r->n_sections - 1];
}

errc ring_shares(const struct ring *r, double *shares, struct err *err)
{
	uint32_t n = r->set->n_nodes;
	memset(shares, 0, n * sizeof *shares);
	if (r->conf->info.algorithm == RING_HASHMOD) {
		for (uint32_t k = 0; k < r->n_nodes; k++)
			shares[r->nodes[k]] = (double)r->factor / r->n_nodes;
		return OK;
	}
	__extension__ unsigned __int128 *sum = calloc(n, sizeof *sum);
	if (!sum)
		return err_set(err, ERR_NOMEM, "no memory for the shares of %u nodes", n);
	for (uint32_t i = 0; i < r->n_sections; i++)
		for (uint32_t k = 0; k < r->factor; k++)
			sum[r->owners[(size_t)i * r->factor + k]] += arc(r, i);
	for (uint32_t k = 0; k < n; k++)
		shares[k] = (double)sum[k] / circle;
	free(sum);
	return OK;
}

/* Numbers of `now` by those of `was`; UINT32_MAX: not there. */
static uint32_t *old_numbers(const struct ring_set *was, const struct ring_set *now)
{
	uint32_t *v = malloc(now->n_nodes * sizeof *v);
	for (uint32_t i = 0; v && i < now->n_nodes; i++)
		if (!ring_set_find(was, now->nodes[i].address, &v[i]))
			v[i] = UINT32_MAX;
	return v;
}

/* Slots of `now` whose node had none of `was`. */
static uint32_t strangers(const uint32_t *old, const uint16_t *now_owners, uint32_t n_now, const uint16_t *was_owners, uint32_t n_was)
{
	uint32_t n = 0;
	for (uint32_t k = 0; k < n_now; k++) {
		uint32_t i = 0;
		while (i < n_was && was_owners[i] != old[now_owners[k]])
			i++;
		n += i == n_was;
	}
	return n;
}

static double moved_ketama(const struct ring *was, const struct ring *now, const uint32_t *old)
{
	double moved = 0;
	uint64_t from = 0;
	/* Behind the last section the first one's owners go on to the end of the circle. */
	for (uint32_t i = 0, k = 0;;) {
		bool end_i = i == was->n_sections, end_k = k == now->n_sections;
		uint32_t at_i = end_i ? 0 : i, at_k = end_k ? 0 : k;
		uint64_t to_i = end_i ? UINT64_MAX : was->hashes[i], to_k = end_k ? UINT64_MAX : now->hashes[k], to = to_i < to_k ? to_i : to_k;
		uint32_t n =
			strangers(old, now->owners + (size_t)at_k * now->factor, now->factor, was->owners + (size_t)at_i * was->factor, was->factor);
		moved += n * (double)(to - from);
		from = to;
		if (end_i && end_k)
			return moved / circle;
		i += !end_i && to_i == to;
		k += !end_k && to_k == to;
	}
}

static double moved_hashmod(const struct ring *was, const struct ring *now, const uint32_t *old)
{
	uint32_t a = was->n_nodes, b = now->n_nodes, x = a, y = b;
	while (y) {
		uint32_t t = x % y;
		x = y;
		y = t;
	}
	uint64_t all = (uint64_t)a / x * b, n = 0;
	uint16_t was_owners[LIMIT_RING_FACTOR], now_owners[LIMIT_RING_FACTOR];
	for (uint64_t h = 0; h < all; h++) {
		for (uint32_t k = 0; k < was->factor; k++)
			was_owners[k] = was->nodes[(h + k) % a];
		for (uint32_t k = 0; k < now->factor; k++)
			now_owners[k] = now->nodes[(h + k) % b];
		n += strangers(old, now_owners, now->factor, was_owners, was->factor);
	}
	return (double)n / (double)all;
}

errc ring_compare(const struct ring *was, const struct ring *now, struct ring_change *out, struct err *err)
{
	errc rc = OK;
	*out = (struct ring_change){0};
	bool *in_was = calloc(was->set->n_nodes + 1, sizeof *in_was);
	double *was_shares = calloc(was->set->n_nodes + 1, sizeof *was_shares), *now_shares = calloc(now->set->n_nodes + 1, sizeof *now_shares);
	uint32_t *old = old_numbers(was->set, now->set), stayed = 0;
	CHECK(in_was && was_shares && now_shares && old, ERR_NOMEM, "no memory to compare rings of %u and %u nodes", was->n_nodes, now->n_nodes);
	for (uint32_t k = 0; k < was->n_nodes; k++)
		in_was[was->nodes[k]] = true;
	for (uint32_t k = 0; k < now->n_nodes; k++)
		stayed += old[now->nodes[k]] != UINT32_MAX && in_was[old[now->nodes[k]]];
	out->added = now->n_nodes - stayed;
	out->removed = was->n_nodes - stayed;
	enum ring_algorithm a = was->conf->info.algorithm, b = now->conf->info.algorithm;
	if (a == RING_KETAMA && b == RING_KETAMA) {
		out->moved = moved_ketama(was, now, old);
	} else if (a == RING_HASHMOD && b == RING_HASHMOD) {
		out->moved = moved_hashmod(was, now, old);
	} else {
		TRY(ring_shares(was, was_shares, err));
		TRY(ring_shares(now, now_shares, err));
		for (uint32_t k = 0; k < now->set->n_nodes; k++)
			out->moved += now_shares[k] * (old[k] == UINT32_MAX ? 1 : 1 - was_shares[old[k]]);
	}
	out->moved /= now->factor;
	/* With equal shares before and after: what comes, or what goes, whichever is more; and replicas that there were not. */
	double new_share = (double)now->factor / now->n_nodes, old_share = (double)was->factor / was->n_nodes;
	out->ideal = out->added * new_share;
	if (new_share > old_share)
		out->ideal += stayed * (new_share - old_share);
	out->ideal /= now->factor;
fail:
	free(in_was);
	free(was_shares);
	free(now_shares);
	free(old);
	return rc;
}

bool ring_set_match(const struct ring_set *was, const struct ring_set *now, uint32_t i, uint32_t *old)
{
	struct span name = now->confs[i].info.name;
	for (uint32_t k = 0; name.n > 0 && k < was->n_rings; k++)
		if (span_eq(was->confs[k].info.name, name)) {
			*old = k;
			return true;
		}
	*old = i;
	return i < was->n_rings && (name.n == 0 || was->confs[i].info.name.n == 0);
}
