/* cluster/cluster_peer.c - the nodes that writes are sent to: found by address, bounded, and left alone while they fail.
 *
 * A peer is one address, however many sets of rings name it, so what is known of it outlives a change of the ring. It is made when something is first sent to it and goes with the last
 * set that names it.
 *
 * The breaker:  closed ──LIMIT_PEER_FAILURES in a row──▶ open ──back-off over──▶ one request goes, to see ──answered──▶ closed
 *                                                         ▲                               │
 *                                                         └──fails: twice the back-off────┘
 *
 * The back-off is drawn from its upper half, so that nodes that lost the same peer don't come back to it all at once. While it is open a share fails at once instead of at the
 * deadline: that costs the quorum nothing, and a client nothing of its time.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <xxhash.h>
#include "base/log.h"
#include "cluster/cluster_write_int.h"

static const char *const result_names[PEER_RESULTS] = {"answered", "failed", "timeout", "open", "busy"};

/* ---- the table ---- */

void cluster_peers_init(struct cluster_peers *t, uint64_t max_bytes)
{
	*t = (struct cluster_peers){.max_bytes = max_bytes ? max_bytes : LIMIT_PEER_INFLIGHT_BYTES};
	pthread_mutex_init(&t->mu, NULL);
	t->seconds = metric_histogram("varve_forward_duration_seconds", "From sending a peer its share to its answer, or to giving up",
		metric_latency_bounds, metric_latency_bounds_n);
}

void cluster_peers_free(struct cluster_peers *t)
{
	for (size_t i = 0; i < PEER_ROWS; i++)
		ASSERT(!t->rows[i]);
	pthread_mutex_destroy(&t->mu);
}

static void peer_free(struct cluster_peer *p)
{
	if (!p)
		return;
	pthread_mutex_destroy(&p->mu);
	free((void *)(uintptr_t)p->address.p);
	free(p);
}

static struct cluster_peer *peer_make(struct cluster_peers *t, struct span address, uint64_t hash)
{
	struct cluster_peer *p = calloc(1, sizeof *p);
	if (!p)
		return NULL;
	pthread_mutex_init(&p->mu, NULL);
	char *copy = strndup(address.p, address.n);
	p->table = t;
	p->hash = hash;
	p->address = span_of(copy, address.n);
	atomic_init(&p->refs, 1);
	if (!copy) {
		peer_free(p);
		return NULL;
	}
	for (int i = 0; i < PEER_RESULTS; i++)
		p->results[i] = metric_counter_with2("varve_forward_requests_total", "Shares of writes for other nodes by what became of them",
			"peer", copy, "result", result_names[i]);
	p->inflight_gauge = metric_gauge_with("varve_forward_inflight_bytes", "Sent to a node, or about to be, and not answered", "peer", copy);
	p->open_gauge = metric_gauge_with("varve_forward_breaker_open", "1 while a node that failed is left alone", "peer", copy);
	return p;
}

struct cluster_peer *cluster_peer_get(struct cluster_peers *t, struct span address)
{
	uint64_t hash = XXH64(address.p, address.n, 0);
	struct cluster_peer **row = &t->rows[hash % PEER_ROWS], *p;
	pthread_mutex_lock(&t->mu);
	for (p = *row; p; p = p->next)
		if (p->hash == hash && span_eq(p->address, address))
			break;
	if (p)
		atomic_fetch_add(&p->refs, 1);
	else if ((p = peer_make(t, address, hash)) != NULL) {
		p->next = *row;
		*row = p;
	}
	pthread_mutex_unlock(&t->mu);
	return p;
}

void cluster_peer_put(struct cluster_peer *p)
{
	if (!p)
		return;
	struct cluster_peers *t = p->table;
	pthread_mutex_lock(&t->mu);
	bool last = atomic_fetch_sub(&p->refs, 1) == 1;
	if (last) {
		struct cluster_peer **at = &t->rows[p->hash % PEER_ROWS];
		while (*at != p)
			at = &(*at)->next;
		*at = p->next;
		metric_set(p->open_gauge, 0);
	}
	pthread_mutex_unlock(&t->mu);
	if (last)
		peer_free(p);
}

/* ---- the breaker, and the bytes ---- */

bool cluster_peer_may(struct cluster_peer *p)
{
	pthread_mutex_lock(&p->mu);
	bool may = !p->open;
	if (UNLIKELY(!may) && !p->probing && io_mono_ns() >= p->until_ns)
		may = p->probing = true;
	pthread_mutex_unlock(&p->mu);
	if (!may)
		metric_add(p->results[PEER_OPEN], 1);
	return may;
}

void cluster_peer_leave(struct cluster_peer *p)
{
	pthread_mutex_lock(&p->mu);
	p->probing = false;
	pthread_mutex_unlock(&p->mu);
}

static void took(struct cluster_peer *p, uint64_t bytes)
{
	uint64_t left = atomic_fetch_sub(&p->inflight_bytes, bytes) - bytes;
	metric_set(p->inflight_gauge, (double)left);
}

void cluster_peer_back(struct cluster_peer *p, uint64_t bytes)
{
	took(p, bytes);
	cluster_peer_leave(p);
}

bool cluster_peer_enter(struct cluster_peer *p, uint64_t bytes)
{
	uint64_t before = atomic_fetch_add(&p->inflight_bytes, bytes);
	metric_set(p->inflight_gauge, (double)(before + bytes));
	if (LIKELY(before == 0 || before + bytes <= p->table->max_bytes))
		return true;
	cluster_peer_back(p, bytes);
	metric_add(p->results[PEER_BUSY], 1);
	return false;
}

static void leave_alone_locked(struct cluster_peer *p)
{
	int64_t ns = p->backoff_ms * 1000000;
	p->until_ns = io_mono_ns() + ns / 2 + (int64_t)(io_random_u64() % (uint64_t)(ns / 2));
}

void cluster_peer_end(struct cluster_peer *p, uint64_t bytes, enum peer_result result, int64_t took_ns)
{
	bool opens = false, closes = false;
	took(p, bytes);
	metric_add(p->results[result], 1);
	metric_observe(p->table->seconds, (double)took_ns / 1e9);
	pthread_mutex_lock(&p->mu);
	if (result == PEER_ANSWERED) {
		closes = p->open;
		p->failures = 0;
		p->open = p->probing = false;
	} else {
		p->failures++;
		if (p->open && p->probing) {
			p->probing = false;
			p->backoff_ms = p->backoff_ms * 2 < LIMIT_PEER_BACKOFF_MAX_MS ? p->backoff_ms * 2 : LIMIT_PEER_BACKOFF_MAX_MS;
			leave_alone_locked(p);
		} else if (!p->open && p->failures >= LIMIT_PEER_FAILURES) {
			opens = p->open = true;
			p->backoff_ms = LIMIT_PEER_BACKOFF_MS;
			leave_alone_locked(p);
		}
	}
	if (opens || closes)
		metric_set(p->open_gauge, p->open);
	pthread_mutex_unlock(&p->mu);
	if (opens)
		log_warn("a peer fails and is left alone for a while", LSPAN("peer", p->address));
	if (closes)
		log_info("a peer answers again", LSPAN("peer", p->address));
}

/* ---- peers of a set of rings ---- */

struct cluster_routes *cluster_routes_make(struct ring_set *set)
{
	struct cluster_routes *r = calloc(1, sizeof *r + ring_set_n_nodes(set) * sizeof *r->peers);
	if (!r)
		return NULL;
	atomic_init(&r->refs, 1);
	r->set = ring_set_ref(set);
	return r;
}

void cluster_routes_put(struct cluster_routes *r)
{
	if (!r || atomic_fetch_sub(&r->refs, 1) > 1)
		return;
	for (uint32_t i = 0; i < ring_set_n_nodes(r->set); i++)
		cluster_peer_put(atomic_load(&r->peers[i]));
	ring_set_unref(r->set);
	free(r);
}

struct cluster_peer *cluster_routes_peer(struct cluster_routes *r, struct cluster_peers *t, uint32_t node)
{
	struct cluster_peer *p = atomic_load(&r->peers[node]), *none = NULL;
	if (LIKELY(p != NULL))
		return p;
	p = cluster_peer_get(t, ring_set_node(r->set, node)->address);
	if (p && !atomic_compare_exchange_strong(&r->peers[node], &none, p)) {
		cluster_peer_put(p);
		p = none;
	}
	return p;
}

void cluster_peers(struct cluster *c, void (*fn)(void *arg, const struct cluster_peer_status *s), void *arg)
{
	struct cluster_peers *t = &c->peers;
	pthread_mutex_lock(&t->mu);
	for (size_t i = 0; i < PEER_ROWS; i++)
		for (struct cluster_peer *p = t->rows[i]; p; p = p->next) {
			pthread_mutex_lock(&p->mu);
			struct cluster_peer_status s = {p->address, atomic_load(&p->epoch), atomic_load(&p->inflight_bytes), p->failures, p->open};
			pthread_mutex_unlock(&p->mu);
			fn(arg, &s);
		}
	pthread_mutex_unlock(&t->mu);
}
