/* Random rings against the slow and obvious algorithm: sections sorted by qsort, owners by walking from the series' hash, shards by filtering; 1 to 40 nodes
 * (200 now and then), 0 to 5 zones of any sizes, factors 1 to 5. And what follows from it: shares and moves are what counting finds, two hundred nodes are balanced, a
 * node more moves little more than its share, epochs are of the content, and 10,000 tenants find their rings.
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 makes 2,000 rings of 60.
 */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include <xxhash.h>
#include "base/io.h"
#include "cluster/cluster_int.h"

static uint64_t seed, state;

static uint64_t next(void)
{
	state += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = state;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static uint32_t below(uint32_t n)
{
	return (uint32_t)(next() % n);
}

/* ---- the model ---- */

enum { NODES_MAX = 220, SECTIONS = 1000 };

struct section {
	uint64_t hash;
	uint32_t node;
};

struct model {
	bool hashmod;
	uint32_t n, factor;
	char address[NODES_MAX][64];
	uint32_t zone[NODES_MAX];
	struct section *sections; /* n * SECTIONS, sorted */
};

static int by_hash(const void *a, const void *b)
{
	const struct section *x = a, *y = b;
	return (x->hash > y->hash) - (x->hash < y->hash);
}

static void model_sort(struct model *m)
{
	m->sections = calloc(m->n * SECTIONS, sizeof *m->sections);
	for (uint32_t k = 0; k < m->n; k++)
		for (uint32_t i = 1; i <= SECTIONS; i++) {
			char name[80];
			int w = snprintf(name, sizeof name, "%s:%u", m->address[k], i);
			m->sections[k * SECTIONS + i - 1] = (struct section){XXH64(name, (size_t)w, 0), k};
		}
	qsort(m->sections, m->n * SECTIONS, sizeof *m->sections, by_hash);
}

/* The owners of a hash by the rule as it is said. false: Thanos would walk for ever. */
static bool model_owners(const struct model *m, uint64_t hash, uint32_t *out)
{
	if (m->hashmod) { /* addresses are sorted */
		for (uint32_t k = 0; k < m->factor; k++)
			out[k] = (uint32_t)((hash + k) % m->n);
		return true;
	}
	uint32_t n_sections = m->n * SECTIONS, at = 0, n = 0, spread[NODES_MAX] = {0}, has[NODES_MAX] = {0}, zones = 0;
	bool taken[NODES_MAX] = {0};
	for (uint32_t k = 0; k < m->n; k++)
		zones += has[m->zone[k]]++ == 0;
	while (at < n_sections && m->sections[at].hash < hash)
		at++;
	for (uint32_t step = 0; n < m->factor; step++, at++) {
		if (step > 3 * n_sections)
			return false;
		uint32_t node = m->sections[at % n_sections].node, least = UINT32_MAX, zone = m->zone[node];
		for (uint32_t k = 0; k < m->n; k++)
			least = spread[m->zone[k]] < least ? spread[m->zone[k]] : least;
		if (taken[node] || (zones > 1 && spread[zone] > 0 && spread[zone] > least))
			continue;
		taken[node] = true;
		spread[zone]++;
		out[n++] = node;
	}
	return true;
}

static void model_json(const struct model *m, bool zones, struct buf *b)
{
	buf_clear(b);
	buf_printf(b, "[{\"algorithm\":\"%s\",\"endpoints\":[", m->hashmod ? "hashmod" : "ketama");
	for (uint32_t k = 0; k < m->n; k++)
		if (zones && m->zone[k] > 0) /* zone 0 is the one without a name */
			buf_printf(b, "%s{\"az\":\"z%u\",\"address\":\"%s\"}", k ? "," : "", m->zone[k], m->address[k]);
		else
			buf_printf(b, "%s\"%s\"", k ? "," : "", m->address[k]);
	buf_printf(b, "]}]");
}

static struct ring_set *parse(struct buf *b, uint32_t factor)
{
	struct ring_options opt = {.replication_factor = factor};
	struct ring_set *set;
	struct err err = {0};
	if (ring_set_parse("model", span_of(b->p, b->n), &opt, &set, &err) != OK)
		fail_msg("seed %" PRIu64 ": %s", seed, err.msg);
	return set;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(a, b);
}

static void model_random(struct model *m, uint32_t n, uint32_t n_zones)
{
	*m = (struct model){.n = n, .factor = 1 + below(n < 5 ? n : 5), .hashmod = n_zones == 0 && below(4) == 0};
	for (uint32_t k = 0; k < n; k++) {
		snprintf(m->address[k], sizeof m->address[k], "node-%u.%" PRIx64 ":%u", k, next() >> below(64), 1 + below(65535));
		/* Uneven: the first zones are larger. */
		m->zone[k] = n_zones ? below(1 + below(n_zones)) : 0;
	}
	qsort(m->address, n, sizeof m->address[0], by_name); /* the zones are random, and stay where they are */
	model_sort(m);
}

static uint64_t some_hash(const struct model *m)
{
	uint64_t at = m->sections[below(m->n * SECTIONS)].hash;
	switch (below(8)) {
	case 0:
		return at;
	case 1:
		return at + 1;
	case 2:
		return at - 1;
	case 3:
		return below(2) ? below(3) : UINT64_MAX - below(3);
	default:
		return next();
	}
}

static void places_as_the_model(void **unused)
{
	(void)unused;
	struct buf b;
	buf_init(&b, MIB);
	unsigned rings = getenv("VARVE_FULL") ? 2000 : 60, endless = 0;
	struct model *m = malloc(sizeof *m);
	for (unsigned r = 0; r < rings; r++) {
		model_random(m, r % 30 == 29 ? 200 : 1 + below(40), below(6));
		model_json(m, true, &b);
		struct ring_set *set = parse(&b, m->factor);
		struct ring *ring = ring_set_ring(set, 0);
		for (unsigned i = 0; i < 300; i++) {
			uint64_t hash = some_hash(m);
			uint32_t want[LIMIT_RING_FACTOR], got[LIMIT_RING_FACTOR];
			ring_owners(ring, hash, got);
			for (uint32_t k = 0; k < m->factor; k++)
				for (uint32_t j = 0; j < k; j++)
					assert_true(got[k] != got[j] || (m->hashmod && hash > UINT64_MAX - m->factor));
			if (!model_owners(m, hash, want)) {
				endless++;
				break;
			}
			for (uint32_t k = 0; k < m->factor; k++)
				if (want[k] != got[k])
					fail_msg("seed %" PRIu64 " ring %u hash %016" PRIx64 " replica %u: %u, must be %u", seed, r, hash, k, got[k],
						want[k]);
		}
		ring_unref(ring);
		ring_set_unref(set);
		free(m->sections);
	}
	free(m);
	buf_free(&b);
	assert_true(endless < rings / 2);
}

/* A zone that has run out of nodes: the others go on, as evenly as they can. */
static void a_small_zone_holds_nobody_up(void **unused)
{
	(void)unused;
	struct buf b;
	buf_init(&b, MIB);
	buf_printf(&b, "[{\"endpoints\":[{\"address\":\"a:1\",\"az\":\"small\"}");
	for (int k = 0; k < 9; k++)
		buf_printf(&b, ",{\"address\":\"%c:1\",\"az\":\"%s\"}", 'b' + k, k < 3 ? "middle" : "large");
	buf_printf(&b, "]}]");
	struct ring_set *set = parse(&b, 7);
	struct ring *ring = ring_set_ring(set, 0);
	for (int i = 0; i < 10000; i++) {
		uint32_t owners[7], n[3] = {0};
		ring_owners(ring, next(), owners);
		for (int k = 0; k < 7; k++)
			n[owners[k] == 0 ? 0 : owners[k] < 4 ? 1 : 2]++;
		assert_int_equal(n[0], 1);
		assert_int_equal(n[1], 3);
		assert_int_equal(n[2], 3);
	}
	ring_unref(ring);
	ring_set_unref(set);
	buf_free(&b);
}

/* ---- shuffle sharding ---- */

/* The nodes of a tenant, zone by zone; what is drawn is filtered from all sections. */
static uint32_t model_shard(const struct model *m, const char *tenant, uint32_t take, bool blind, bool *drawn)
{
	uint32_t n = 0, n_sections = m->n * SECTIONS;
	for (uint32_t zone = 0; zone < NODES_MAX; zone++) {
		struct section *own = malloc(n_sections * sizeof *own);
		uint32_t n_own = 0;
		char name[16];
		for (uint32_t i = 0; i < n_sections; i++)
			if (blind || m->zone[m->sections[i].node] == zone)
				own[n_own++] = m->sections[i];
		if (n_own > 0) {
			struct go_random random;
			snprintf(name, sizeof name, "z%u", zone);
			go_random_seed(&random, ring_shard_seed(span_cstr(tenant), blind || zone == 0 ? SPAN("") : span_cstr(name)));
			for (uint32_t k = 0; k < take; k++) {
				uint64_t at = go_random_u64(&random);
				uint32_t i = 0;
				while (i < n_own && own[i].hash < at)
					i++;
				while (drawn[own[i % n_own].node])
					i++;
				drawn[own[i % n_own].node] = true;
				n++;
			}
		}
		free(own);
		if (blind)
			break;
	}
	return n;
}

static void shards_as_the_model(void **unused)
{
	(void)unused;
	struct buf b;
	buf_init(&b, MIB);
	struct model *m = malloc(sizeof *m);
	for (unsigned r = 0; r < (getenv("VARVE_FULL") ? 500u : 25u); r++) {
		uint32_t n_zones = 1 + below(4), each = 2 + below(5);
		bool blind = below(3) == 0;
		model_random(m, n_zones * each, n_zones);
		m->hashmod = false;
		for (uint32_t k = 0; k < m->n; k++)
			m->zone[k] = k % n_zones;
		uint32_t size = 1 + below(blind ? m->n : each * n_zones), take = blind ? size : (size + n_zones - 1) / n_zones,
			 all = blind ? take : take * n_zones;
		m->factor = 1 + below(all < 3 ? all : 3);
		model_json(m, true, &b);
		b.n -= 2;
		buf_printf(&b, ",\"shuffle_sharding_config\":{\"shard_size\":%u,\"zone_awareness_disabled\":%s}}]", size, blind ? "true" : "false");
		struct ring_set *set = parse(&b, m->factor);
		for (int t = 0; t < 10; t++) {
			char tenant[32];
			bool drawn[NODES_MAX] = {0};
			const uint16_t *nodes;
			struct ring *ring;
			struct model part = {.factor = m->factor};
			snprintf(tenant, sizeof tenant, "tenant-%" PRIx64, next() >> below(60));
			uint32_t n = model_shard(m, tenant, take, blind, drawn), numbers[NODES_MAX];
			assert_int_equal(ring_for_tenant(set, span_cstr(tenant), &ring, NULL), OK);
			assert_int_equal(ring_nodes(ring, &nodes), n);
			for (uint32_t k = 0; k < n; k++)
				assert_true(drawn[nodes[k]]);
			for (uint32_t k = 0; k < m->n; k++)
				if (drawn[k]) {
					numbers[part.n] = k;
					part.zone[part.n] = m->zone[k];
					memcpy(part.address[part.n++], m->address[k], sizeof m->address[k]);
				}
			model_sort(&part);
			for (int i = 0; i < 50; i++) {
				uint64_t hash = some_hash(&part);
				uint32_t want[LIMIT_RING_FACTOR], got[LIMIT_RING_FACTOR];
				ring_owners(ring, hash, got);
				if (!model_owners(&part, hash, want))
					break;
				for (uint32_t k = 0; k < m->factor; k++)
					assert_int_equal(got[k], numbers[want[k]]);
			}
			free(part.sections);
			ring_unref(ring);
		}
		ring_set_unref(set);
		free(m->sections);
	}
	free(m);
	buf_free(&b);
}

/* Sub-rings are kept while they fit, made again when they are asked for again, and never go while somebody has one. */
static void shards_are_kept_within_bounds(void **unused)
{
	(void)unused;
	struct buf b;
	struct model *m = malloc(sizeof *m);
	buf_init(&b, MIB);
	model_random(m, 12, 0);
	m->hashmod = false;
	m->factor = 3;
	model_json(m, false, &b);
	b.n -= 2;
	buf_printf(&b, ",\"shuffle_sharding_config\":{\"shard_size\":4}}]");
	struct ring_set *set = parse(&b, 3);
	struct ring *held, *ring;
	assert_int_equal(ring_for_tenant(set, SPAN("held"), &held, NULL), OK);
	for (int round = 0; round < 3; round++)
		for (int t = 0; t < 40; t++) {
			char tenant[16];
			snprintf(tenant, sizeof tenant, "t%d", t);
			assert_int_equal(ring_for_tenant(set, span_cstr(tenant), &ring, NULL), OK);
			ring_unref(ring);
		}
	assert_int_equal(ring_shards_made(set->shards[0]), 41);
	size_t kept = LIMIT_RING_SHARDS_BYTES / held->bytes + 100;
	for (unsigned t = 0; t < 3 * kept; t++) {
		char tenant[16];
		snprintf(tenant, sizeof tenant, "u%u", t);
		assert_int_equal(ring_for_tenant(set, span_cstr(tenant), &ring, NULL), OK);
		ring_unref(ring);
	}
	uint32_t owners[3];
	ring_owners(held, 7, owners);
	uint64_t made = ring_shards_made(set->shards[0]);
	assert_int_equal(made, 41 + 3 * kept);
	assert_int_equal(ring_for_tenant(set, SPAN("held"), &ring, NULL), OK);
	assert_int_equal(ring_shards_made(set->shards[0]), made + 1);
	assert_ptr_not_equal(ring, held);
	ring_set_unref(set); /* both are still good */
	ring_owners(ring, 7, owners);
	ring_owners(held, 7, owners);
	ring_unref(ring);
	ring_unref(held);
	free(m->sections);
	free(m);
	buf_free(&b);
}

/* ---- shares and moves ---- */

static void count_moves(const struct ring *was, const struct ring *now, unsigned n, double *moved, double *share0)
{
	uint64_t k_moved = 0, k_share = 0;
	uint32_t a[LIMIT_RING_FACTOR], b[LIMIT_RING_FACTOR];
	const struct ring_set *x = ring_set_of(was), *y = ring_set_of(now);
	for (unsigned i = 0; i < n; i++) {
		uint64_t hash = next();
		ring_owners(was, hash, a);
		ring_owners(now, hash, b);
		for (uint32_t k = 0; k < ring_set_factor(y); k++) {
			bool there = false;
			for (uint32_t j = 0; j < ring_set_factor(x); j++)
				there |= span_eq(ring_set_node(x, a[j])->address, ring_set_node(y, b[k])->address);
			k_moved += !there;
			k_share += b[k] == 0;
		}
	}
	*moved = (double)k_moved / n / ring_set_factor(y);
	*share0 = (double)k_share / n;
}

static void shares_and_moves_are_what_counting_finds(void **unused)
{
	(void)unused;
	enum { COUNTED = 40000 };
	struct buf b;
	struct model *m = malloc(sizeof *m);
	buf_init(&b, MIB);
	for (unsigned r = 0; r < 40; r++) {
		uint32_t n_zones = below(4);
		model_random(m, 5 + below(20), n_zones);
		m->hashmod &= r % 2 == 0;
		model_json(m, true, &b);
		struct ring_set *was = parse(&b, m->factor);
		/* Some go, some come, the algorithm may be another one. */
		uint32_t gone = below(m->n - 4);
		m->n -= gone;
		for (uint32_t k = below(4); k > 0; k--, m->n++)
			snprintf(m->address[m->n], sizeof m->address[0], "zz-%u.new:1", m->n);
		m->hashmod = n_zones == 0 && below(2);
		model_json(m, true, &b);
		struct ring_set *now = parse(&b, m->factor);
		struct ring *x = ring_set_ring(was, 0), *y = ring_set_ring(now, 0);
		struct ring_change change;
		double shares[NODES_MAX], sum = 0, moved, share0;
		assert_int_equal(ring_compare(x, y, &change, NULL), OK);
		assert_int_equal(ring_shares(y, shares, NULL), OK);
		for (uint32_t k = 0; k < m->n; k++)
			sum += shares[k];
		assert_true(fabs(sum - m->factor) < 1e-6);
		count_moves(x, y, COUNTED, &moved, &share0);
		if (fabs(moved - change.moved) > 0.02 || fabs(share0 - shares[0]) > 0.02)
			fail_msg(
				"seed %" PRIu64 ": moved %.4f, counted %.4f; share %.4f, counted %.4f", seed, change.moved, moved, shares[0], share0);
		assert_int_equal(change.removed, gone);
		assert_true(n_zones > 1 || change.ideal <= change.moved + 0.02 + 0.12 * change.ideal); /* zones make shares unequal */
		ring_unref(x);
		ring_unref(y);
		ring_set_unref(was);
		ring_set_unref(now);
		free(m->sections);
	}
	free(m);
	buf_free(&b);
}

/* As real pods are called. */
static struct ring_set *pods(uint32_t n, uint32_t factor, struct buf *b)
{
	buf_clear(b);
	buf_printf(b, "[{\"endpoints\":[");
	for (uint32_t k = 0; k < n; k++)
		buf_printf(b, "%s\"varve-ingest-%u.varve-ingest.monitoring.svc.cluster.local:19291\"", k ? "," : "", k);
	buf_printf(b, "]}]");
	return parse(b, factor);
}

/* max/mean <= 1.12 with 200 nodes, and one node more moves at most 1.2 times its share. The balance is Thanos' own. */
static void large_rings_are_balanced_and_move_little(void **unused)
{
	(void)unused;
	struct buf b;
	buf_init(&b, MIB);
	struct ring_set *was = NULL;
	for (uint32_t n = 196; n <= 201; n++) {
		struct ring_set *now = pods(n, 3, &b);
		struct ring *ring = ring_set_ring(now, 0), *old;
		double shares[NODES_MAX], most = 0;
		assert_int_equal(ring_shares(ring, shares, NULL), OK);
		for (uint32_t k = 0; k < n; k++)
			most = shares[k] > most ? shares[k] : most;
		assert_true(most * n / 3 <= 1.12);
		if (was) {
			struct ring_change change;
			old = ring_set_ring(was, 0);
			assert_int_equal(ring_compare(old, ring, &change, NULL), OK);
			assert_int_equal(change.added, 1);
			assert_true(change.moved <= 1.2 * change.ideal);
			ring_unref(old);
		}
		ring_unref(ring);
		ring_set_unref(was);
		was = now;
	}
	ring_set_unref(was);
	buf_free(&b);
}

/* ---- tenants, epochs, hashes ---- */

static struct ring_set *parse_text(const char *text, uint32_t factor)
{
	struct buf b;
	buf_init(&b, MIB);
	buf_printf(&b, "%s", text);
	struct ring_set *set = parse(&b, factor);
	buf_free(&b);
	return set;
}

static void the_first_match_wins(void **unused)
{
	(void)unused;
	struct ring_set *set =
		parse_text("[{\"hashring\":\"0\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\"]},"
			   "{\"hashring\":\"1\",\"tenants\":[\"c-*\",\"b\"],\"tenant_matcher_type\":\"glob\",\"endpoints\":[\"b:1\"],"
			   "\"external_labels\":{\"z\":\"1\",\"a\":\"2\",\"empty\":\"\"}},"
			   "{\"hashring\":\"2\",\"tenants\":[\"c-1\",\"d\",\"a\"],\"endpoints\":[\"c:1\"],\"external_labels\":{\"x\":\"y\"}},"
			   "{\"hashring\":\"3\",\"tenants\":[\"?\"],\"tenant_matcher_type\":\"glob\",\"endpoints\":[\"d:1\"]}]",
			1);
	static const struct {
		const char *tenant;
		int ring;
		uint32_t n_labels;
	} cases[] = {{"a", 0, 0}, {"b", 0, 0}, {"c-1", 1, 1}, {"c-", 1, 0}, {"c-xyz", 1, 0}, {"d", 2, 1}, {"e", 3, 0}, {"ee", -1, 0}, {"", -1, 0},
		{"c-*", 1, 2}};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct ring *ring;
		assert_int_equal(ring_for_tenant(set, span_cstr(cases[i].tenant), &ring, NULL), OK);
		if (cases[i].ring < 0) {
			assert_null(ring);
			continue;
		}
		assert_int_equal(ring_index(ring), cases[i].ring);
		assert_int_equal(ring_external_labels(set, span_cstr(cases[i].tenant)).n, cases[i].n_labels);
		ring_unref(ring);
	}
	/* "b" stands in ring 0 first, and "c-*" is what ring 1 lists: labels are for who is named letter by letter. */
	struct labels l = ring_external_labels(set, SPAN("c-*"));
	assert_true(span_is(l.v[0].name, "a") && span_is(l.v[1].name, "z"));
	uint32_t node;
	assert_true(ring_set_find(set, SPAN("c:1"), &node) && node == 2);
	assert_false(ring_set_find(set, SPAN("c:2"), &node));
	assert_null(ring_set_node(set, 4));
	ring_set_unref(set);
}

static void epochs_are_of_the_content(void **unused)
{
	(void)unused;
	static const char *const same[] = {
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":\"z\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"2\"}}]",
		"\n[ {\"external_labels\": {\"y\":\"2\",\"x\":\"1\"}, \"endpoints\": "
		"[{\"az\":\"z\",\"address\":\"b:1\",\"capnproto_address\":\"b:2\"},\r\n\t\"a:1\"],"
		"\"algorithm\": \"ketama\", \"tenant_matcher_type\":\"exact\", "
		"\"tenants\":[\"b\",\"a\"],\"hashring\":\"\\u0068\",\"shuffle_sharding_config\":null}]\n",
	};
	static const char *const others[] = {
		"[{\"hashring\":\"i\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":\"z\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"2\"}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"c\"],\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":\"z\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"2\"}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:2\",{\"address\":\"b:1\",\"az\":\"z\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"2\"}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":\"y\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"2\"}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":\"z\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"3\"}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"tenant_matcher_type\":\"glob\",\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":"
		"\"z\"}],"
		"\"external_labels\":{\"x\":\"1\",\"y\":\"2\"}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":\"z\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"2\"},"
		"\"shuffle_sharding_config\":{\"shard_size\":2}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\",\"b:1\"],\"algorithm\":\"hashmod\",\"external_labels\":{\"x\":"
		"\"1\",\"y\":\"2\"}}]",
		"[{\"hashring\":\"h\",\"tenants\":[\"a\",\"b\"],\"endpoints\":[\"a:1\",{\"address\":\"b:1\",\"az\":\"z\"}],\"external_labels\":{"
		"\"x\":\"1\",\"y\":\"2\"}},"
		"{\"endpoints\":[\"a:1\"]}]",
	};
	uint64_t epochs[12];
	size_t n = 0;
	struct ring_set *a = parse_text(same[0], 1), *b = parse_text(same[1], 1), *two = parse_text("[{\"endpoints\":[\"a:1\",\"b:1\"]}]", 2);
	assert_true(ring_set_epoch(a) == ring_set_epoch(b));
	struct ring_options opt = ring_set_options(b);
	struct ring_set *again;
	assert_int_equal(ring_set_parse("again", ring_set_json(b), &opt, &again, NULL), OK);
	assert_true(ring_set_epoch(again) == ring_set_epoch(b));
	ring_set_unref(again);
	/* It goes over the wire: another number is another protocol. */
	assert_int_equal(ring_set_epoch(two), UINT64_C(0x8f31ce047718ffd2));
	epochs[n++] = ring_set_epoch(a);
	epochs[n++] = ring_set_epoch(two);
	struct ring_set *one = parse_text("[{\"endpoints\":[\"a:1\",\"b:1\"]}]", 1);
	epochs[n++] = ring_set_epoch(one);
	for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
		struct ring_set *o = parse_text(others[i], 1);
		epochs[n++] = ring_set_epoch(o);
		ring_set_unref(o);
	}
	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < i; k++)
			assert_true(epochs[i] != epochs[k]);
	ring_set_unref(a);
	ring_set_unref(b);
	ring_set_unref(one);
	ring_set_unref(two);
}

/* However it is put together, the hash is XXH64 of the whole string; and the next series begins at the tenant again. */
static void hashes_are_of_the_string(void **unused)
{
	(void)unused;
	struct ring_hash h;
	char tenant[128], *text = malloc(16384), *labels = malloc(16384);
	memset(tenant, 't', sizeof tenant);
	for (size_t i = 0; i < 16384; i++)
		labels[i] = (char)next();
	for (size_t n = 0; n <= 5000; n++) {
		size_t t = 1 + below(sizeof tenant), at = t + 1, left = n;
		memcpy(text, tenant, t);
		text[t] = '\xff';
		if (n % 7 == 0)
			ring_hash_begin(&h, span_of(tenant, t));
		else
			at = h.tenant_bytes, memcpy(text, h.buf, at);
		bool first = true;
		while (left > 0 || (first && n % 2)) {
			size_t name = left ? below((uint32_t)(left > 300 && below(4) ? 300 : left) + 1) : 0, value = left - name;
			if (value > 100 && below(3))
				value = below(100);
			ring_hash_add(&h, span_of(labels, name), span_of(labels + name, value));
			memcpy(text + at, labels, name);
			text[at + name] = '\xff';
			memcpy(text + at + name + 1, labels + name, value);
			text[at + name + 1 + value] = '\xff';
			at += name + value + 2;
			left -= name + value;
			first = false;
		}
		assert_true(ring_hash_end(&h) == XXH64(text, at, 0));
	}
	free(text);
	free(labels);
}

static int choose_seed(void **unused)
{
	(void)unused;
	const char *given = getenv("VARVE_SEED");
	seed = given ? strtoull(given, NULL, 10) : io_random_u64() >> 32;
	state = seed;
	printf("VARVE_SEED=%" PRIu64 "\n", seed);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hashes_are_of_the_string),
		cmocka_unit_test(places_as_the_model),
		cmocka_unit_test(a_small_zone_holds_nobody_up),
		cmocka_unit_test(shards_as_the_model),
		cmocka_unit_test(shards_are_kept_within_bounds),
		cmocka_unit_test(shares_and_moves_are_what_counting_finds),
		cmocka_unit_test(large_rings_are_balanced_and_move_little),
		cmocka_unit_test(the_first_match_wins),
		cmocka_unit_test(epochs_are_of_the_content),
	};
	return cmocka_run_group_tests(tests, choose_seed, NULL);
}
