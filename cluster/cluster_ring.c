/* cluster/cluster_ring.c - a set of rings: made whole, counted, never changed.
 *
 * A tenant is looked up in one table of exact names (which gives the first ring that names it), and only against those patterns that stand in rings before
 * that one: the first match wins, as in the file, without walking over the names of all rings.
 *
 * A ring that is handed out counts on its set; a tenant's sub-ring counts itself, too, for what keeps it may let go of it meanwhile.
 */
#include <stdlib.h>
#include "cluster/cluster_int.h"

enum { SET_ARENA_BYTES = 256 * 1024 * 1024 };

const char *ring_algorithm_name(enum ring_algorithm a)
{
	return a == RING_HASHMOD ? "hashmod" : "ketama";
}

bool ring_algorithm_parse(const char *s, enum ring_algorithm *out)
{
	bool ketama = strcmp(s, "ketama") == 0;
	if (!ketama && strcmp(s, "hashmod") != 0)
		return false;
	*out = ketama ? RING_KETAMA : RING_HASHMOD;
	return true;
}

/* ---- tables of names ---- */

static errc names_init(struct ring_names *t, struct arena *a, uint32_t n, struct err *err)
{
	uint32_t slots = 16;
	while (slots < 2 * n)
		slots *= 2;
	t->v = arena_calloc(a, slots, sizeof *t->v);
	t->mask = slots - 1;
	return t->v ? OK : err_set(err, ERR_NOMEM, "no memory for %u tenants of rings", n);
}

/* Its place, or the one where it must go. */
static struct ring_name *names_at(const struct ring_names *t, struct span name)
{
	uint32_t i = (uint32_t)ring_bytes_hash(name) & t->mask;
	while (t->v[i].used && !span_eq(t->v[i].name, name))
		i = (i + 1) & t->mask;
	return &t->v[i];
}

static void names_add(struct ring_names *t, struct span name, uint32_t ring)
{
	struct ring_name *at = names_at(t, name);
	if (!at->used)
		*at = (struct ring_name){name, ring, true};
}

static errc index_tenants(struct ring_set *s, struct err *err)
{
	errc rc = OK;
	uint32_t n_exact = 0, n_listed = 0;
	for (uint32_t i = 0; i < s->n_rings; i++) {
		n_listed += s->confs[i].info.n_tenants;
		n_exact += s->confs[i].info.glob ? 0 : s->confs[i].info.n_tenants;
	}
	TRY(names_init(&s->exact, &s->arena, n_exact, err));
	TRY(names_init(&s->listed, &s->arena, n_listed, err));
	s->others = arena_calloc(&s->arena, s->n_rings, sizeof *s->others);
	CHECK(s->others, ERR_NOMEM, "no memory for %u rings", s->n_rings);
	for (uint32_t i = 0; i < s->n_rings; i++) {
		const struct ring_info *info = &s->confs[i].info;
		for (uint32_t k = 0; k < info->n_tenants; k++) {
			names_add(&s->listed, info->tenants[k], i);
			if (!info->glob)
				names_add(&s->exact, info->tenants[k], i);
		}
		if (info->glob || info->n_tenants == 0)
			s->others[s->n_others++] = i;
	}
fail:
	return rc;
}

/* ---- the epoch ---- */

static int by_bytes(const void *a, const void *b)
{
	return span_cmp(*(const struct span *)a, *(const struct span *)b);
}

static int endpoint_by_address(const void *a, const void *b)
{
	return span_cmp(((const struct ring_conf_endpoint *)a)->address, ((const struct ring_conf_endpoint *)b)->address);
}

static errc put_tenants(struct buf *b, const struct span *tenants, uint32_t n, struct err *err)
{
	struct span *v = malloc((n + 1) * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for %u tenants of rings", n);
	if (n > 0)
		memcpy(v, tenants, n * sizeof *v);
	qsort(v, n, sizeof *v, by_bytes);
	buf_uvarint(b, n);
	for (uint32_t i = 0; i < n; i++)
		buf_str(b, v[i]);
	free(v);
	return OK;
}

static errc put_ring(struct buf *b, const struct ring_conf *c, struct err *err)
{
	errc rc = OK;
	uint32_t n = c->info.n_nodes;
	struct ring_conf_endpoint *v = malloc(n * sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory for %u endpoints", n);
	memcpy(v, c->endpoints, n * sizeof *v);
	qsort(v, n, sizeof *v, endpoint_by_address);
	buf_str(b, c->info.name);
	buf_str(b, span_cstr(ring_algorithm_name(c->info.algorithm)));
	buf_u8(b, c->info.glob && c->info.n_tenants > 0);
	TRY(put_tenants(b, c->info.tenants, c->info.n_tenants, err));
	buf_uvarint(b, n);
	for (uint32_t i = 0; i < n; i++) {
		buf_str(b, v[i].address);
		buf_str(b, v[i].az);
	}
	buf_uvarint(b, c->external_labels.n);
	for (uint32_t i = 0; i < c->external_labels.n; i++) {
		buf_str(b, c->external_labels.v[i].name);
		buf_str(b, c->external_labels.v[i].value);
	}
	buf_uvarint(b, c->info.shard_size);
	if (c->info.shard_size > 0) {
		buf_u8(b, c->zone_blind);
		for (uint32_t i = 0; i < c->n_overrides; i++) {
			const struct ring_override *o = &c->overrides[i];
			if (!o->applies || o->n_tenants == 0)
				continue;
			buf_uvarint(b, o->shard_size);
			buf_u8(b, o->glob);
			TRY(put_tenants(b, o->tenants, o->n_tenants, err));
		}
		buf_uvarint(b, 0);
	}
fail:
	free(v);
	return rc;
}

static errc make_epoch(struct ring_set *s, struct err *err)
{
	errc rc = OK;
	struct buf b;
	buf_init(&b, 4 * LIMIT_RING_FILE_BYTES);
	buf_span(&b, SPAN("varve ring 1\n"));
	buf_uvarint(&b, s->factor);
	buf_uvarint(&b, s->n_rings);
	for (uint32_t i = 0; i < s->n_rings; i++)
		TRY(put_ring(&b, &s->confs[i], err));
	CHECK(!b.failed, ERR_NOMEM, "no memory for %zu bytes of rings", b.n);
	s->epoch = ring_bytes_hash(span_of(b.p, b.n));
	s->epoch += s->epoch == 0;
fail:
	buf_free(&b);
	return rc;
}

/* ---- life ---- */

static errc make_rings(struct ring_set *s, struct err *err)
{
	errc rc = OK;
	uint16_t all[LIMIT_RING_ENDPOINTS];
	s->rings = arena_calloc(&s->arena, s->n_rings, sizeof *s->rings);
	s->shards = arena_calloc(&s->arena, s->n_rings, sizeof *s->shards);
	CHECK(s->rings && s->shards, ERR_NOMEM, "no memory for %u rings", s->n_rings);
	for (uint32_t i = 0; i < LIMIT_RING_ENDPOINTS; i++)
		all[i] = (uint16_t)i;
	for (uint32_t i = 0; i < s->n_rings; i++) {
		TRY(ring_make(s, &s->confs[i], all, s->confs[i].info.n_nodes, &s->rings[i], err));
		if (s->confs[i].info.shard_size > 0)
			TRY(ring_shards_new(s->rings[i], &s->shards[i], err));
	}
fail:
	return rc;
}

errc ring_set_parse(const char *name, struct span json, const struct ring_options *opt, struct ring_set **out, struct err *err)
{
	errc rc = OK;
	struct ring_set *s = calloc(1, sizeof *s);
	CHECK(s, ERR_NOMEM, "%s: no memory", name);
	arena_init(&s->arena, SET_ARENA_BYTES);
	s->refs = 1;
	s->factor = opt->replication_factor;
	CHECK(s->factor >= 1 && s->factor <= LIMIT_RING_FACTOR, ERR_INVALID, "a replication factor of %u, it must be between 1 and %d", s->factor,
		LIMIT_RING_FACTOR);
	s->algorithm = opt->algorithm;
	TRY(ring_set_read(s, name, json, opt, err));
	s->json = arena_dup(&s->arena, json);
	CHECK(s->json.p, ERR_NOMEM, "%s: no memory", name);
	TRY(index_tenants(s, err));
	TRY(make_epoch(s, err));
	TRY(make_rings(s, err));
	*out = s;
	return OK;
fail:
	ring_set_unref(s);
	return rc;
}

struct ring_set *ring_set_ref(struct ring_set *s)
{
	atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
	return s;
}

void ring_set_unref(struct ring_set *s)
{
	if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) > 1)
		return;
	for (uint32_t i = 0; i < s->n_rings; i++) {
		if (s->shards)
			ring_shards_free(s->shards[i]);
		if (s->rings)
			ring_free(s->rings[i]);
	}
	arena_free(&s->arena);
	free(s);
}

void ring_unref(struct ring *r)
{
	if (!r)
		return;
	struct ring_set *s = r->set;
	if (r->shard && atomic_fetch_sub(&r->refs, 1) == 1)
		ring_free(r);
	ring_set_unref(s);
}

/* ---- questions ---- */

uint64_t ring_set_epoch(const struct ring_set *s)
{
	return s->epoch;
}

uint32_t ring_set_factor(const struct ring_set *s)
{
	return s->factor;
}

struct span ring_set_json(const struct ring_set *s)
{
	return s->json;
}

struct ring_options ring_set_options(const struct ring_set *s)
{
	return (struct ring_options){s->algorithm, s->factor};
}

uint32_t ring_set_n_nodes(const struct ring_set *s)
{
	return s->n_nodes;
}

const struct ring_node *ring_set_node(const struct ring_set *s, uint32_t node)
{
	return node < s->n_nodes ? &s->nodes[node] : NULL;
}

bool ring_set_find(const struct ring_set *s, struct span address, uint32_t *node)
{
	uint32_t lo = 0, hi = s->n_nodes;
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;
		int c = span_cmp(s->nodes[mid].address, address);
		if (c == 0) {
			*node = mid;
			return true;
		}
		if (c < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return false;
}

struct span ring_set_remarks(const struct ring_set *s)
{
	return s->remarks;
}

uint32_t ring_set_n_rings(const struct ring_set *s)
{
	return s->n_rings;
}

const struct ring_info *ring_set_info(const struct ring_set *s, uint32_t i)
{
	return i < s->n_rings ? &s->confs[i].info : NULL;
}

struct ring *ring_set_ring(struct ring_set *s, uint32_t i)
{
	return i < s->n_rings ? ring_set_ref(s)->rings[i] : NULL;
}

static bool matches_any(const struct ring_info *info, struct span tenant)
{
	for (uint32_t k = 0; k < info->n_tenants; k++)
		if (ring_glob_matches(info->tenants[k], tenant))
			return true;
	return info->n_tenants == 0;
}

errc ring_for_tenant(struct ring_set *s, struct span tenant, struct ring **out, struct err *err)
{
	errc rc = OK;
	const struct ring_name *exact = names_at(&s->exact, tenant);
	uint32_t ring = exact->used ? exact->ring : s->n_rings;
	for (uint32_t i = 0; i < s->n_others && s->others[i] < ring; i++)
		if (matches_any(&s->confs[s->others[i]].info, tenant))
			ring = s->others[i];
	*out = NULL;
	if (ring == s->n_rings)
		return OK;
	if (s->shards[ring])
		TRY(ring_shards_get(s->shards[ring], tenant, out, err));
	else
		*out = s->rings[ring];
	ring_set_ref(s);
fail:
	return rc;
}

struct labels ring_external_labels(const struct ring_set *s, struct span tenant)
{
	const struct ring_name *listed = names_at(&s->listed, tenant);
	return listed->used ? s->confs[listed->ring].external_labels : (struct labels){NULL, 0};
}

struct ring_set *ring_set_of(const struct ring *r)
{
	return r->set;
}

const struct ring_info *ring_info(const struct ring *r)
{
	return &r->conf->info;
}

uint32_t ring_index(const struct ring *r)
{
	return (uint32_t)(r->conf - r->set->confs);
}

uint32_t ring_nodes(const struct ring *r, const uint16_t **nodes)
{
	*nodes = r->nodes;
	return r->n_nodes;
}

struct span ring_az(const struct ring *r, uint32_t k)
{
	return r->conf->zones[r->zones[k]];
}
