/* cluster/cluster_ring_shard.c - shuffle sharding: the few nodes of a ring that are a tenant's.
 *
 * Of each zone (or of all nodes at once, zone_awareness_disabled) ceil(shard_size / zones) nodes are drawn. A draw is 64 bits of Go's generator, seeded by MD5
 * of the tenant and the zone: a place on the circle, and the node of the zone's first section at or behind it that was not drawn yet. The nodes drawn make a
 * ring of their own, as if the file had listed only them. In which order zones are drawn makes no difference, and Thanos walks them in no certain one.
 *
 * Rings of tenants that were asked for lately are kept: as many as the file's cache_size says, and beyond that as long as all of them take less than
 * LIMIT_RING_SHARDS_BYTES, for an attacker may send tenants without number and 10,000 honest ones should not make theirs anew with every request. A few
 * locks, each with its own tenants, taken once a request.
 */
#include <stdlib.h>
#include "cluster/cluster_int.h"

enum { PARTS = 8, CACHE_DEFAULT = 100, CHAINS = 1024 };

struct kept {
	struct kept *chain, *newer, *older;
	struct ring *ring;
	uint64_t hash;
	uint32_t tenant_bytes;
	char tenant[];
};

struct ring_shards {
	struct ring *whole;
	uint32_t keep; /* of a part, at least */
	_Atomic uint64_t made;
	struct part {
		_Alignas(64) pthread_mutex_t mu;
		struct kept *chains[CHAINS], *newest, *oldest;
		uint32_t n;
		size_t bytes;
	} parts[PARTS];
};

uint32_t ring_shard_take(const struct ring_conf *conf, uint32_t shard_size)
{
	return conf->zone_blind ? shard_size : shard_size / conf->info.n_zones + (shard_size % conf->info.n_zones != 0);
}

static uint32_t shard_size_of(const struct ring_conf *c, struct span tenant)
{
	for (uint32_t i = 0; i < c->n_overrides; i++) {
		const struct ring_override *o = &c->overrides[i];
		for (uint32_t k = 0; o->applies && k < o->n_tenants; k++)
			if (o->glob ? ring_glob_matches(o->tenants[k], tenant) : span_eq(o->tenants[k], tenant))
				return o->shard_size;
	}
	return c->info.shard_size;
}

/* zone: of which, or any when blind. */
static uint32_t draw(const struct ring *whole, struct span tenant, uint32_t zone, uint32_t take, bool *drawn, const uint16_t *place, uint16_t *out)
{
	const struct ring_conf *c = whole->conf;
	struct go_random random;
	uint32_t n = 0;
	go_random_seed(&random, ring_shard_seed(tenant, c->zone_blind ? SPAN("") : c->zones[zone]));
	while (n < take)
		for (uint32_t i = ring_section(whole, go_random_u64(&random));; i = i + 1 < whole->n_sections ? i + 1 : 0) {
			/* A section's replica 0 is its own node. */
			uint16_t endpoint = place[whole->owners[(size_t)i * whole->factor]];
			if (drawn[endpoint] || (!c->zone_blind && c->endpoints[endpoint].zone != zone))
				continue;
			drawn[endpoint] = true;
			out[n++] = endpoint;
			break;
		}
	return n;
}

static errc shard_make(struct ring_shards *sh, struct span tenant, struct ring **out, struct err *err)
{
	errc rc = OK;
	struct ring *whole = sh->whole;
	struct ring_conf *c = whole->conf;
	uint32_t take = ring_shard_take(c, shard_size_of(c, tenant)), n = 0, groups = c->zone_blind ? 1 : c->info.n_zones;
	bool *drawn = calloc(c->info.n_nodes, sizeof *drawn);
	uint16_t *place = calloc(whole->set->n_nodes, sizeof *place), *endpoints = calloc(c->info.n_nodes, sizeof *endpoints);
	CHECK(drawn && place && endpoints, ERR_NOMEM, "no memory for the ring of a tenant");
	for (uint32_t k = 0; k < c->info.n_nodes; k++)
		place[c->endpoints[k].node] = (uint16_t)k;
	for (uint32_t zone = 0; zone < groups; zone++)
		n += draw(whole, tenant, zone, take, drawn, place, endpoints + n);
	TRY(ring_make(whole->set, c, endpoints, n, out, err));
	(*out)->shard = true;
	(*out)->refs = 1;
	atomic_fetch_add(&sh->made, 1);
fail:
	free(drawn);
	free(place);
	free(endpoints);
	return rc;
}

/* ---- what is kept ---- */

static void unlink_age(struct part *p, struct kept *k)
{
	*(k->newer ? &k->newer->older : &p->newest) = k->older;
	*(k->older ? &k->older->newer : &p->oldest) = k->newer;
}

static void link_newest(struct part *p, struct kept *k)
{
	k->newer = NULL;
	k->older = p->newest;
	*(p->newest ? &p->newest->newer : &p->oldest) = k;
	p->newest = k;
}

static struct kept **chain_of(struct part *p, uint64_t hash)
{
	return &p->chains[hash >> 8 & (CHAINS - 1)];
}

/* Counted for the caller, and the newest from now on. */
static struct ring *find_locked(struct part *p, uint64_t hash, struct span tenant)
{
	struct kept *k = *chain_of(p, hash);
	while (k && !(k->hash == hash && span_eq(span_of(k->tenant, k->tenant_bytes), tenant)))
		k = k->chain;
	if (!k)
		return NULL;
	unlink_age(p, k);
	link_newest(p, k);
	atomic_fetch_add(&k->ring->refs, 1);
	return k->ring;
}

static void drop(struct ring *r)
{
	if (atomic_fetch_sub(&r->refs, 1) == 1)
		ring_free(r);
}

static void remove_oldest_locked(struct part *p)
{
	struct kept *k = p->oldest, **at = chain_of(p, k->hash);
	while (*at != k)
		at = &(*at)->chain;
	*at = k->chain;
	unlink_age(p, k);
	p->n--;
	p->bytes -= k->ring->bytes;
	drop(k->ring);
	free(k);
}

static void add_locked(struct ring_shards *sh, struct part *p, struct kept *k)
{
	struct kept **at = chain_of(p, k->hash);
	k->chain = *at;
	*at = k;
	link_newest(p, k);
	p->n++;
	p->bytes += k->ring->bytes;
	while (p->n > sh->keep && p->bytes > LIMIT_RING_SHARDS_BYTES / PARTS && p->n > 1)
		remove_oldest_locked(p);
}

errc ring_shards_get(struct ring_shards *sh, struct span tenant, struct ring **out, struct err *err)
{
	errc rc = OK;
	struct ring *made = NULL;
	CHECK(tenant.n <= LIMIT_RING_NAME_BYTES, ERR_INVALID, "a tenant's name of %zu bytes", tenant.n);
	uint64_t hash = ring_bytes_hash(tenant);
	struct part *p = &sh->parts[hash & (PARTS - 1)];
	pthread_mutex_lock(&p->mu);
	*out = find_locked(p, hash, tenant);
	pthread_mutex_unlock(&p->mu);
	if (*out)
		return OK;
	TRY(shard_make(sh, tenant, &made, err));
	struct kept *k = malloc(sizeof *k + tenant.n);
	CHECK(k, ERR_NOMEM, "no memory for the ring of a tenant");
	*k = (struct kept){.ring = made, .hash = hash, .tenant_bytes = (uint32_t)tenant.n};
	if (tenant.n > 0)
		memcpy(k->tenant, tenant.p, tenant.n);
	pthread_mutex_lock(&p->mu);
	*out = find_locked(p, hash, tenant); /* another thread may have been faster */
	if (!*out) {
		*out = made;
		atomic_fetch_add(&made->refs, 1);
		add_locked(sh, p, k);
		made = NULL;
		k = NULL;
	}
	pthread_mutex_unlock(&p->mu);
	free(k);
fail:
	ring_free(made);
	return rc;
}

errc ring_shards_new(struct ring *whole, struct ring_shards **out, struct err *err)
{
	uint32_t keep = whole->conf->cache_size ? whole->conf->cache_size : CACHE_DEFAULT;
	struct ring_shards *sh = aligned_alloc(64, sizeof *sh);
	if (!sh)
		return err_set(err, ERR_NOMEM, "no memory for a ring's shards");
	memset(sh, 0, sizeof *sh);
	sh->whole = whole;
	sh->keep = ((keep < LIMIT_RING_SHARDS_KEPT ? keep : LIMIT_RING_SHARDS_KEPT) + PARTS - 1) / PARTS;
	for (int i = 0; i < PARTS; i++)
		pthread_mutex_init(&sh->parts[i].mu, NULL);
	/* What the generator works out once is worked out here, and not in somebody's request. */
	struct go_random random;
	go_random_seed(&random, 0);
	*out = sh;
	return OK;
}

void ring_shards_free(struct ring_shards *sh)
{
	if (!sh)
		return;
	for (int i = 0; i < PARTS; i++) {
		while (sh->parts[i].oldest)
			remove_oldest_locked(&sh->parts[i]);
		pthread_mutex_destroy(&sh->parts[i].mu);
	}
	free(sh);
}

uint64_t ring_shards_made(struct ring_shards *sh)
{
	return atomic_load(&sh->made);
}
