/* cluster/cluster_ring_place.c - from a series' hash to its owners.
 *
 * hashmod: endpoints sorted by address; replica r is number (hash + r) mod n, the sum wrapping at 2^64.
 *
 * ketama: each endpoint has a thousand sections on the circle of 64-bit hashes, XXH64 of "<address>:<i>", i = 1 to 1000. A series belongs to the first
 * section at or behind its hash, round the end; its replicas are that section's endpoint and those of the sections that follow, passing over
 *
 *   - endpoints that have a replica already,
 *   - endpoints in zones that have more replicas than the zone that has the fewest (where there are two zones or more).
 *
 *     hash ──▶ ....A....b..A.c.........B....      A, a, ...: endpoints, upper case in zone 1, lower case in zone 2
 *               └▶ 0: A    └ 1: b (A: has one; zone 1 waits for zone 2)    2: A' or whatever zone comes first now: both have one
 *
 * A zone that has no endpoint left does not hold up the others. (Thanos walks round for ever in that case, so there is nothing to be equal to; in every
 * other one it never matters, for then the zone with the fewest has endpoints left.)
 *
 * Owners are worked out for every section when the ring is made, and a table of as many slots as there are sections, by the upper bits of a hash, tells where
 * to begin to look: hashes are spread evenly, so the section is there or next to it. A lookup is three cache lines and no search.
 */
#define XXH_STATIC_LINKING_ONLY
#include <stdlib.h>
#include <xxhash.h>
#include "base/sort.h"
#include "cluster/cluster_int.h"

enum { SECTIONS = 1000, SECTION_NAME_BYTES = LIMIT_RING_ADDRESS_BYTES + 8 };

_Static_assert(sizeof(XXH64_state_t) <= RING_HASH_STATE_BYTES, "the streaming state fits");
_Static_assert(LIMIT_RING_ENDPOINTS < UINT16_MAX, "node numbers have 16 bits");

/* ---- the hash ---- */

uint64_t ring_bytes_hash(struct span s)
{
	return XXH64(s.p, s.n, 0);
}

void ring_hash_begin(struct ring_hash *h, struct span tenant)
{
	ASSERT(tenant.n < sizeof h->buf);
	memcpy(h->buf, tenant.p, tenant.n);
	h->buf[tenant.n] = '\xff';
	h->n = h->tenant_bytes = (uint32_t)tenant.n + 1;
	h->streaming = false;
}

/* From here on it streams; the buffer keeps the tenant for the next series. */
void ring_hash_add_long(struct ring_hash *h, struct span name, struct span value)
{
	XXH64_state_t *state = (XXH64_state_t *)h->state;
	if (!h->streaming) {
		XXH64_reset(state, 0);
		XXH64_update(state, h->buf, h->n);
		h->streaming = true;
	}
	if (name.n > 0)
		XXH64_update(state, name.p, name.n);
	XXH64_update(state, "\xff", 1);
	if (value.n > 0)
		XXH64_update(state, value.p, value.n);
	XXH64_update(state, "\xff", 1);
}

uint64_t ring_hash_end(struct ring_hash *h)
{
	uint64_t hash = h->streaming ? XXH64_digest((XXH64_state_t *)h->state) : XXH64(h->buf, h->n, 0);
	h->streaming = false;
	h->n = h->tenant_bytes;
	return hash;
}

/* ---- owners ---- */

uint32_t ring_section(const struct ring *r, uint64_t hash)
{
	uint32_t i = r->first[hash >> r->shift];
	while (i < r->n_sections && r->hashes[i] < hash)
		i++;
	return i < r->n_sections ? i : 0;
}

void ring_owners(const struct ring *r, uint64_t hash, uint32_t *nodes)
{
	if (r->conf->info.algorithm == RING_HASHMOD) {
		for (uint32_t k = 0; k < r->factor; k++)
			nodes[k] = r->nodes[(hash + k) % r->n_nodes];
		return;
	}
	const uint16_t *owners = r->owners + (size_t)ring_section(r, hash) * r->factor;
	for (uint32_t k = 0; k < r->factor; k++)
		nodes[k] = owners[k];
}

/* ---- making a ring ---- */

/* Sections by hash; of equal ones (two addresses in 2^64) the lower node first, so that two processes never differ. */
static void sort_sections(struct keyed *v, size_t n)
{
	keyed_sort(v, n);
	for (size_t i = 1; i < n; i++)
		for (size_t k = i; k > 0 && v[k - 1].key == v[k].key && v[k - 1].n > v[k].n; k--) {
			struct keyed t = v[k];
			v[k] = v[k - 1];
			v[k - 1] = t;
		}
}

/* What the walk for replicas needs; the same for all sections. */
struct walk {
	const struct keyed *sections; /* id: which of the ring's nodes; n: its number in the set */
	struct ring *ring;
	uint32_t n_zones;
	bool *taken;	  /* by node of the ring */
	uint32_t *spread; /* by zone: replicas in it */
	uint32_t *deeper; /* by level: zones with more nodes than that */
	/* zones by where their next section is, nearest first: a list with a head at n_zones */
	uint32_t *next, *prev;
	uint64_t *place; /* where that section is, counted on behind the end */
};

static void zone_to_front(struct walk *w, uint32_t z, uint64_t place)
{
	uint32_t head = w->n_zones;
	if (w->next[z] != UINT32_MAX) {
		w->next[w->prev[z]] = w->next[z];
		w->prev[w->next[z]] = w->prev[z];
	}
	w->next[z] = w->next[head];
	w->prev[z] = head;
	w->prev[w->next[z]] = z;
	w->next[head] = z;
	w->place[z] = place;
}

/* The owners of the section that the list of zones stands at. The first round gives each zone its nearest section, which the list knows: a zone of one node
 * among hundreds is not walked to. Then the walk goes on behind the last of them, by levels: a level is full when every zone that has nodes left has got one
 * more, which is when the fewest are one more. */
static void section_owners(struct walk *w, uint16_t *owners)
{
	struct ring *r = w->ring;
	uint32_t picks = 0, picked[LIMIT_RING_FACTOR], n = r->n_sections;
	uint64_t at = 0;
	for (uint32_t z = w->next[w->n_zones]; z != w->n_zones && picks < r->factor; z = w->next[z]) {
		at = w->place[z];
		picked[picks++] = w->sections[at % n].id;
		owners[picks - 1] = (uint16_t)w->sections[at % n].n;
	}
	if (picks == r->factor)
		return;
	for (uint32_t k = 0; k < picks; k++) {
		w->taken[picked[k]] = true;
		w->spread[r->zones[picked[k]]]++;
	}
	for (uint32_t level = 1, left = w->deeper[1]; picks < r->factor;) {
		const struct keyed *s = &w->sections[++at % n];
		uint32_t zone = r->zones[s->id];
		if (w->taken[s->id] || w->spread[zone] > level)
			continue;
		w->taken[s->id] = true;
		w->spread[zone]++;
		picked[picks] = s->id;
		owners[picks++] = (uint16_t)s->n;
		if (--left == 0)
			left = w->deeper[++level];
	}
	for (uint32_t k = 0; k < picks; k++) {
		w->taken[picked[k]] = false;
		w->spread[r->zones[picked[k]]] = 0;
	}
}

static errc all_owners(struct ring *r, const struct keyed *sections, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct walk w = {.sections = sections, .ring = r};
	uint32_t n_zones = r->conf->info.n_zones;
	arena_init(&a, 16 * MIB);
	w.taken = arena_calloc(&a, r->n_nodes, sizeof *w.taken);
	w.spread = arena_calloc(&a, n_zones, sizeof *w.spread);
	w.deeper = arena_calloc(&a, r->n_nodes + 2, sizeof *w.deeper);
	w.next = arena_calloc(&a, n_zones + 1, sizeof *w.next);
	w.prev = arena_calloc(&a, n_zones + 1, sizeof *w.prev);
	w.place = arena_calloc(&a, n_zones, sizeof *w.place);
	CHECK(w.taken && w.spread && w.deeper && w.next && w.prev && w.place, ERR_NOMEM, "no memory for a ring of %u nodes", r->n_nodes);
	w.n_zones = n_zones; /* a sub-ring has nodes in some of them only */
	for (uint32_t k = 0; k < r->n_nodes; k++)
		w.deeper[w.spread[r->zones[k]]++]++;
	memset(w.spread, 0, n_zones * sizeof *w.spread);
	for (uint32_t z = 0; z < n_zones; z++)
		w.next[z] = UINT32_MAX;
	w.next[n_zones] = w.prev[n_zones] = n_zones;
	for (uint64_t k = 2 * (uint64_t)r->n_sections; k-- > 0;) {
		uint32_t i = (uint32_t)(k % r->n_sections);
		zone_to_front(&w, r->zones[sections[i].id], k);
		if (k < r->n_sections)
			section_owners(&w, r->owners + (size_t)i * r->factor);
	}
fail:
	arena_free(&a);
	return rc;
}

static errc make_sections(struct ring *r, const uint16_t *endpoints, struct err *err)
{
	errc rc = OK;
	char name[SECTION_NAME_BYTES];
	r->n_sections = r->n_nodes * SECTIONS;
	unsigned bits = 32 - (unsigned)__builtin_clz(r->n_sections - 1);
	r->shift = 64 - bits;
	uint32_t n_slots = 1u << bits;
	struct keyed *v = malloc(r->n_sections * sizeof *v);
	r->hashes = malloc(r->n_sections * sizeof *r->hashes);
	r->owners = malloc((size_t)r->n_sections * r->factor * sizeof *r->owners);
	r->first = malloc(n_slots * sizeof *r->first);
	r->bytes += r->n_sections * (sizeof *r->hashes + r->factor * sizeof *r->owners) + n_slots * sizeof *r->first;
	CHECK(v && r->hashes && r->owners && r->first, ERR_NOMEM, "no memory for a ring of %u nodes", r->n_nodes);
	for (uint32_t k = 0; k < r->n_nodes; k++) {
		struct span address = r->conf->endpoints[endpoints[k]].address;
		memcpy(name, address.p, address.n);
		name[address.n] = ':';
		for (uint32_t i = 1; i <= SECTIONS; i++) {
			char *to = name + address.n + 1;
			for (uint32_t power = i >= 1000 ? 1000 : i >= 100 ? 100 : i >= 10 ? 10 : 1; power > 0; power /= 10)
				*to++ = (char)('0' + i / power % 10);
			v[k * SECTIONS + i - 1] = (struct keyed){XXH64(name, (size_t)(to - name), 0), k, r->nodes[k]};
		}
	}
	sort_sections(v, r->n_sections);
	uint32_t slot = 0;
	for (uint32_t i = 0; i < r->n_sections; i++) {
		r->hashes[i] = v[i].key;
		for (; slot <= v[i].key >> r->shift; slot++)
			r->first[slot] = i;
	}
	for (; slot < n_slots; slot++)
		r->first[slot] = r->n_sections;
	TRY(all_owners(r, v, err));
fail:
	free(v);
	return rc;
}

errc ring_make(struct ring_set *s, struct ring_conf *conf, const uint16_t *endpoints, uint32_t n, struct ring **out, struct err *err)
{
	errc rc = OK;
	struct ring *r = calloc(1, sizeof *r);
	CHECK(r, ERR_NOMEM, "no memory for a ring of %u nodes", n);
	ASSERT(n >= s->factor && n > 0);
	*r = (struct ring){.set = s, .conf = conf, .factor = s->factor, .n_nodes = n, .bytes = sizeof *r + 2 * n * sizeof *r->nodes};
	r->nodes = malloc(n * sizeof *r->nodes);
	r->zones = malloc(n * sizeof *r->zones);
	CHECK(r->nodes && r->zones, ERR_NOMEM, "no memory for a ring of %u nodes", n);
	for (uint32_t k = 0; k < n; k++) {
		r->nodes[k] = conf->endpoints[endpoints[k]].node;
		r->zones[k] = conf->endpoints[endpoints[k]].zone;
	}
	if (conf->info.algorithm == RING_KETAMA)
		TRY(make_sections(r, endpoints, err));
	*out = r;
	return OK;
fail:
	ring_free(r);
	return rc;
}

void ring_free(struct ring *r)
{
	if (!r)
		return;
	free(r->nodes);
	free(r->zones);
	free(r->hashes);
	free(r->owners);
	free(r->first);
	free(r);
}
