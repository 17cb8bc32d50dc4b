/* cluster/cluster_int.h - what the files of cluster/ share: JSON with line numbers, a set's inner form, and the numbers of shuffle sharding. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "base/bytes.h"
#include "cluster/ring.h"

/* ---- cluster_json.c ---- */

enum json_kind { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* A value; its elements or members hang together by `next`, in their order. */
struct json {
	enum json_kind kind;
	uint32_t line;	  /* where it begins, from 1 */
	uint32_t n;	  /* ARRAY, OBJECT: how many */
	struct span key;  /* of a member of an object */
	struct span text; /* STRING: unescaped, NUL-terminated as well; NUMBER: as written */
	struct json *first, *next;
};
/* One document of RFC 8259, names of an object's members all different. ERR_INVALID and ERR_LIMIT as "<name>:<line>: ...". */
CHECKED errc json_parse(const char *name, struct span text, struct arena *arena, struct json **out, struct err *err);
const struct json *json_get(const struct json *object, const char *key); /* NULL: absent, or null */
const char *json_kind_words(enum json_kind k);				 /* "a string" */

/* ---- cluster_ring_glob.c ---- */

/* Go's filepath.Match, which Thanos matches tenants with. */
bool ring_glob_valid(struct span pattern);
bool ring_glob_matches(struct span pattern, struct span s);

/* ---- cluster_ring_random.c ---- */

enum { GO_RANDOM_WORDS = 607 };
struct go_random {
	uint64_t v[GO_RANDOM_WORDS];
	uint32_t tap, feed;
};
/* math/rand.New(math/rand.NewSource(seed)), which answers the same for ever. */
void go_random_seed(struct go_random *r, int64_t seed);
uint64_t go_random_u64(struct go_random *r);

/* The first eight bytes, big-endian, of the MD5 of the tenant and, unless empty, a zero byte and the zone. */
int64_t ring_shard_seed(struct span tenant, struct span zone);
void md5(struct span s, uint8_t out[16]);

/* ---- a set ---- */

struct ring_override {
	uint32_t shard_size;
	bool applies; /* a matcher type stands with it; without one Thanos never applies it */
	bool glob;
	const struct span *tenants; /* as listed */
	uint32_t n_tenants;
};

/* One ring as the file says it; all memory in the set's arena. */
struct ring_conf {
	struct ring_info info;
	uint32_t line;
	struct ring_conf_endpoint {
		struct span address, az;
		uint32_t line;
		uint16_t node, zone; /* numbers: of the set's nodes, of this ring's zones */
	} * endpoints;		     /* as listed; hashmod: sorted by address */
	const struct span *zones;
	uint32_t *zone_nodes, smallest_zone; /* how many endpoints each has */
	struct labels external_labels;
	bool zone_blind; /* zone_awareness_disabled */
	uint32_t cache_size;
	struct ring_override *overrides;
	uint32_t n_overrides;
};

struct ring {
	struct ring_set *set;
	struct ring_conf *conf;
	bool shard;	       /* of a tenant; else the whole ring, which lives as long as the set */
	_Atomic uint32_t refs; /* shard only */
	uint32_t factor, n_nodes;
	uint16_t *nodes, *zones; /* numbers, node by node */
	/* ketama */
	uint32_t n_sections;
	uint32_t shift;	  /* what is left of a hash is its slot in `first` */
	uint32_t *first;  /* the first section whose hash is at least the slot's lowest */
	uint64_t *hashes; /* of the sections, ascending */
	uint16_t *owners; /* factor nodes (of the set) a section */
	size_t bytes;	  /* all of it */
};

struct ring_shards;

struct ring_names { /* a hash table of names */
	struct ring_name {
		struct span name;
		uint32_t ring;
		bool used;
	} * v;
	uint32_t mask;
};

struct ring_set {
	_Atomic uint32_t refs;
	struct arena arena;
	uint32_t factor;
	enum ring_algorithm algorithm; /* of rings that name none */
	struct span json;
	uint64_t epoch;
	struct ring_node *nodes;
	uint32_t n_nodes;
	struct ring_conf *confs;
	struct ring **rings;	     /* as many */
	struct ring_shards **shards; /* NULL where no shuffle sharding is */
	uint32_t n_rings;
	struct ring_names exact;    /* to the first ring that has the name and no patterns */
	struct ring_names listed;   /* to the first ring that has the name, patterns or not: for external labels */
	uint32_t *others, n_others; /* rings with patterns or for all, ascending */
	struct span remarks;
};

/* cluster_ring_parse.c: fills confs, n_rings, nodes, n_nodes, remarks. */
CHECKED errc ring_set_read(struct ring_set *s, const char *name, struct span json, const struct ring_options *opt, struct err *err);

/* cluster_ring_place.c: a ring over n of conf's endpoints. */
CHECKED errc ring_make(struct ring_set *s, struct ring_conf *conf, const uint16_t *endpoints, uint32_t n, struct ring **out, struct err *err);
void ring_free(struct ring *r);
/* The first section at or behind a hash. */
uint32_t ring_section(const struct ring *r, uint64_t hash);

/* cluster_ring_shard.c: sub-rings, kept for the tenants that were asked for last. */
CHECKED errc ring_shards_new(struct ring *whole, struct ring_shards **out, struct err *err);
void ring_shards_free(struct ring_shards *sh);
/* Counted for the caller. */
CHECKED errc ring_shards_get(struct ring_shards *sh, struct span tenant, struct ring **out, struct err *err);
uint64_t ring_shards_made(struct ring_shards *sh); /* for tests: how many were made so far */
/* How many of each zone (or of all) a shard of this size takes. */
uint32_t ring_shard_take(const struct ring_conf *conf, uint32_t shard_size);

uint64_t ring_bytes_hash(struct span s); /* XXH64, seed 0 */
