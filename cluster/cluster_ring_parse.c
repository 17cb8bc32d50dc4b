/* cluster/cluster_ring_parse.c - Thanos' hashrings.json, judged as a whole.
 *
 *   [{"hashring": "name", "tenants": ["a", "b"], "tenant_matcher_type": "exact" | "glob", "algorithm": "ketama" | "hashmod",
 *     "endpoints": ["host:port", {"address": "host:port", "az": "zone", "capnproto_address": "host:port"}], "external_labels": {"name": "value"},
 *     "shuffle_sharding_config": {"shard_size": 2, "cache_size": 100, "zone_awareness_disabled": false,
 *       "overrides": [{"shard_size": 3, "tenants": ["p-*"], "tenant_matcher_type": "glob"}]}}]
 *
 * What Thanos takes and must not be meant is refused: it drops keys that it does not know, makes hashmod of an algorithm that it does not know, counts an
 * endpoint that stands there twice as two nodes, and meets a bad pattern, or a shard larger than its zone, when a tenant comes that way; then that tenant's
 * requests fail for ever. What it takes and does something else with than was meant (an override without a matcher type is never applied) is done as it does
 * it, and said in a remark: the placement is the same for whoever comes from there.
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/config.h"
#include "base/tenant.h"
#include "cluster/cluster_int.h"

enum { REMARKS_MAX = 20, WHERE_BYTES = 320, MESSAGE_NAME_BYTES = 64 };

struct parse {
	const char *name;
	struct ring_set *set;
	const struct ring_options *opt;
	struct err *err;
	struct buf remarks;
	uint32_t n_remarks, n_endpoints, n_tenants, n_patterns;
	char where[WHERE_BYTES]; /* ring "default" */
};

/* Names come from the file: what would break a line of a log or a terminal is not passed on. */
static void one_line(struct err *err)
{
	bool utf8 = span_is_utf8(span_cstr(err->msg));
	for (char *c = err->msg; *c; c++)
		if ((uint8_t)*c < 0x20 || *c == 0x7f || ((uint8_t)*c >= 0x80 && !utf8))
			*c = '?';
}

static void remark(struct parse *p, struct err *said)
{
	one_line(said);
	if (p->n_remarks++ < REMARKS_MAX)
		buf_printf(&p->remarks, "%s\n", said->msg);
}

/* "<file>:<line>: <ring>: <what>" */
#define REFUSE(code, line, fmt, ...)                                                                                                                 \
	do {                                                                                                                                         \
		rc = err_set(p->err, code, "%s:%u: %s" fmt, p->name, line, p->where, ##__VA_ARGS__);                                                 \
		goto fail;                                                                                                                           \
	} while (0)
#define NEED(cond, code, line, fmt, ...)                                                                                                             \
	do {                                                                                                                                         \
		if (UNLIKELY(!(cond)))                                                                                                               \
			REFUSE(code, line, fmt, ##__VA_ARGS__);                                                                                      \
	} while (0)
#define REMARK(line, fmt, ...)                                                                                                                       \
	do {                                                                                                                                         \
		struct err said = {0};                                                                                                               \
		err_set(&said, ERR_INVALID, "%s:%u: %s" fmt, p->name, line, p->where, ##__VA_ARGS__);                                                \
		remark(p, &said);                                                                                                                    \
	} while (0)
#define NO_MEMORY(ptr) NEED(ptr, ERR_NOMEM, 0u, "no memory")
/* A name in a message, not all of a long one. */
#define SHORT(s) (int)((s).n < MESSAGE_NAME_BYTES ? (s).n : MESSAGE_NAME_BYTES), (s).p

static errc only_keys(struct parse *p, const struct json *object, const char *what, const char *const *keys, size_t n)
{
	errc rc = OK;
	NEED(object->kind == JSON_OBJECT, ERR_INVALID, object->line, "%s must be an object, not %s", what, json_kind_words(object->kind));
	for (const struct json *m = object->first; m; m = m->next) {
		size_t i = 0;
		while (i < n && !span_is(m->key, keys[i]))
			i++;
		if (i < n)
			continue;
		const char *meant = did_you_mean(m->key.p, keys, n);
		REFUSE(ERR_INVALID, m->line, "%s has no key \"%.*s\"%s%s%s", what, SHORT(m->key), meant ? ", did you mean \"" : "",
			meant ? meant : "", meant ? "\"?" : "");
	}
fail:
	return rc;
}

#define KEYS(list) list, sizeof list / sizeof *list

/* Absent: out stays. */
static errc text_of(struct parse *p, const struct json *object, const char *key, size_t max, struct span *out)
{
	errc rc = OK;
	const struct json *v = json_get(object, key);
	if (!v)
		return OK;
	NEED(v->kind == JSON_STRING, ERR_INVALID, v->line, "%s must be a string, not %s", key, json_kind_words(v->kind));
	NEED(v->text.n <= max, ERR_LIMIT, v->line, "%s of %zu bytes, at most %zu are allowed", key, v->text.n, max);
	*out = v->text;
fail:
	return rc;
}

static errc count_of(struct parse *p, const struct json *object, const char *key, uint32_t *out)
{
	errc rc = OK;
	const struct json *v = json_get(object, key);
	int64_t x = 0;
	if (!v)
		return OK;
	NEED(v->kind == JSON_NUMBER, ERR_INVALID, v->line, "%s must be a whole number, not %s", key, json_kind_words(v->kind));
	NEED(span_to_i64(v->text, &x), ERR_INVALID, v->line, "%s must be a whole number, not %.*s", key, SHORT(v->text));
	NEED(x >= 0 && x <= UINT32_MAX, ERR_INVALID, v->line, "%s must be between 0 and %u, not %.*s", key, UINT32_MAX, SHORT(v->text));
	*out = (uint32_t)x;
fail:
	return rc;
}

static errc matcher_of(struct parse *p, const struct json *object, bool *given, bool *glob)
{
	errc rc = OK;
	struct span type = SPAN("");
	TRY(text_of(p, object, "tenant_matcher_type", LIMIT_RING_NAME_BYTES, &type));
	*given = type.n > 0;
	*glob = span_is(type, "glob");
	NEED(type.n == 0 || *glob || span_is(type, "exact"), ERR_INVALID, json_get(object, "tenant_matcher_type")->line,
		"tenant_matcher_type must be \"exact\" or \"glob\", not \"%.*s\"", SHORT(type));
fail:
	return rc;
}

static errc read_tenants(struct parse *p, const struct json *object, bool glob, const struct span **out, uint32_t *n)
{
	errc rc = OK;
	const struct json *list = json_get(object, "tenants");
	*n = 0;
	if (!list)
		return OK;
	NEED(list->kind == JSON_ARRAY, ERR_INVALID, list->line, "tenants must be a list, not %s", json_kind_words(list->kind));
	p->n_tenants += list->n;
	p->n_patterns += glob ? list->n : 0;
	NEED(p->n_tenants <= LIMIT_RING_TENANTS, ERR_LIMIT, list->line, "more than %d tenants in all rings", LIMIT_RING_TENANTS);
	NEED(p->n_patterns <= LIMIT_RING_PATTERNS, ERR_LIMIT, list->line, "more than %d patterns of tenants in all rings", LIMIT_RING_PATTERNS);
	struct span *v = arena_alloc(&p->set->arena, (list->n + 1) * sizeof *v);
	NO_MEMORY(v);
	for (const struct json *t = list->first; t; t = t->next) {
		NEED(t->kind == JSON_STRING, ERR_INVALID, t->line, "a tenant must be a string, not %s", json_kind_words(t->kind));
		NEED(t->text.n <= LIMIT_RING_NAME_BYTES, ERR_LIMIT, t->line, "a tenant of %zu bytes, at most %d are allowed", t->text.n,
			LIMIT_RING_NAME_BYTES);
		if (glob)
			NEED(ring_glob_valid(t->text), ERR_INVALID, t->line, "the pattern \"%.*s\" is malformed", SHORT(t->text));
		else if (!tenant_valid(t->text))
			REMARK(t->line, "\"%.*s\" is no name that a tenant can have%s", SHORT(t->text),
				strpbrk(t->text.p, "*?[") ? "; a pattern needs \"tenant_matcher_type\": \"glob\"" : "");
		v[(*n)++] = t->text;
	}
	*out = v;
fail:
	return rc;
}

/* host:port, as something that is connected to: no scheme, no path, IPv6 in brackets. */
static const char *address_fault(struct span a)
{
	const char *colon = memrchr(a.p, ':', a.n);
	for (size_t i = 0; i < a.n; i++)
		if ((uint8_t)a.p[i] < 0x21 || (uint8_t)a.p[i] > 0x7e || strchr("/@?#\\\"", a.p[i]))
			return "must be host:port and nothing else";
	if (!colon)
		return "has no port";
	struct span host = span_of(a.p, (size_t)(colon - a.p)), port = span_of(colon + 1, a.n - host.n - 1);
	int64_t x;
	if (port.n > 5 || !span_to_i64(port, &x) || x < 1 || x > 65535)
		return "has a port that is not between 1 and 65535";
	if (host.n == 0)
		return "has no host";
	bool bracketed = host.p[0] == '[' && host.p[host.n - 1] == ']';
	if (!bracketed && memchr(host.p, ':', host.n))
		return "has more than one colon: an IPv6 address stands in brackets, [::1]:19291";
	return NULL;
}

static int by_text(const void *a, const void *b, void *conf)
{
	const struct ring_conf_endpoint *v = ((const struct ring_conf *)conf)->endpoints;
	uint16_t x = *(const uint16_t *)a, y = *(const uint16_t *)b;
	int c = span_cmp(v[x].address, v[y].address);
	return c ? c : (x > y) - (x < y);
}

static errc read_endpoints(struct parse *p, const struct json *object, struct ring_conf *c)
{
	static const char *const keys[] = {"address", "az", "capnproto_address"};
	errc rc = OK;
	struct arena *a = &p->set->arena;
	const struct json *list = json_get(object, "endpoints");
	NEED(list, ERR_INVALID, object->line, "no endpoints");
	NEED(list->kind == JSON_ARRAY, ERR_INVALID, list->line, "endpoints must be a list, not %s", json_kind_words(list->kind));
	NEED(list->n > 0, ERR_INVALID, list->line, "no endpoints");
	p->n_endpoints += list->n;
	NEED(p->n_endpoints <= LIMIT_RING_ENDPOINTS, ERR_LIMIT, list->line, "more than %d endpoints in all rings", LIMIT_RING_ENDPOINTS);
	c->endpoints = arena_calloc(a, list->n, sizeof *c->endpoints);
	struct span *zones = arena_calloc(a, list->n, sizeof *zones);
	uint16_t *order = arena_alloc(a, list->n * sizeof *order);
	c->zone_nodes = arena_calloc(a, list->n, sizeof *c->zone_nodes);
	NO_MEMORY(c->endpoints && zones && order && c->zone_nodes);
	c->zones = zones;
	for (const struct json *e = list->first; e; e = e->next) {
		struct ring_conf_endpoint *at = &c->endpoints[c->info.n_nodes];
		*at = (struct ring_conf_endpoint){.address = e->text, .az = SPAN(""), .line = e->line};
		struct span other = SPAN("");
		NEED(e->kind == JSON_STRING || e->kind == JSON_OBJECT, ERR_INVALID, e->line,
			"an endpoint must be \"host:port\" or an object with an address, not %s", json_kind_words(e->kind));
		if (e->kind == JSON_OBJECT) {
			at->address = SPAN("");
			TRY(only_keys(p, e, "an endpoint", KEYS(keys)));
			TRY(text_of(p, e, "address", LIMIT_RING_ADDRESS_BYTES, &at->address));
			TRY(text_of(p, e, "az", LIMIT_RING_NAME_BYTES, &at->az));
			TRY(text_of(p, e, "capnproto_address", LIMIT_RING_ADDRESS_BYTES, &other));
		}
		NEED(at->address.n > 0, ERR_INVALID, e->line, "an endpoint without an address");
		NEED(at->address.n <= LIMIT_RING_ADDRESS_BYTES, ERR_LIMIT, e->line, "an address of %zu bytes, at most %d are allowed", at->address.n,
			LIMIT_RING_ADDRESS_BYTES);
		const char *fault = address_fault(at->address);
		NEED(!fault, ERR_INVALID, e->line, "the endpoint \"%.*s\" %s", SPAN_ARG(at->address), fault);
		NEED(c->info.algorithm == RING_KETAMA || at->az.n == 0, ERR_INVALID, e->line,
			"the endpoint \"%.*s\" has an az, but hashmod knows no zones: \"algorithm\": \"ketama\" does", SPAN_ARG(at->address));
		uint32_t z = 0;
		while (z < c->info.n_zones && !span_eq(zones[z], at->az))
			z++;
		zones[z] = at->az;
		c->info.n_zones += z == c->info.n_zones;
		at->zone = (uint16_t)z;
		c->zone_nodes[z]++;
		order[c->info.n_nodes] = (uint16_t)c->info.n_nodes;
		c->info.n_nodes++;
	}
	for (uint32_t z = 1; z < c->info.n_zones; z++)
		if (c->zone_nodes[z] < c->zone_nodes[c->smallest_zone])
			c->smallest_zone = z;
	qsort_r(order, c->info.n_nodes, sizeof *order, by_text, c);
	for (uint32_t i = 1; i < c->info.n_nodes; i++) {
		const struct ring_conf_endpoint *x = &c->endpoints[order[i - 1]], *y = &c->endpoints[order[i]];
		NEED(!span_eq(x->address, y->address), ERR_INVALID, y->line, "the endpoint \"%.*s\" stands there twice, first on line %u",
			SPAN_ARG(y->address), x->line);
	}
	NEED(c->info.n_nodes >= p->set->factor, ERR_INVALID, list->line, "%u endpoint%s, fewer than the replication factor of %u", c->info.n_nodes,
		c->info.n_nodes == 1 ? "" : "s", p->set->factor);
	if (c->info.algorithm == RING_HASHMOD) {
		struct ring_conf_endpoint *sorted = arena_alloc(a, c->info.n_nodes * sizeof *sorted);
		NO_MEMORY(sorted);
		for (uint32_t i = 0; i < c->info.n_nodes; i++)
			sorted[i] = c->endpoints[order[i]];
		c->endpoints = sorted;
	}
fail:
	return rc;
}

static errc check_shard(struct parse *p, const struct ring_conf *c, uint32_t size, uint32_t line)
{
	errc rc = OK;
	uint32_t take = ring_shard_take(c, size), groups = c->zone_blind ? 1 : c->info.n_zones;
	NEED(size <= c->info.n_nodes, ERR_INVALID, line, "a shard_size of %u is more than the ring's %u endpoints", size, c->info.n_nodes);
	NEED((uint64_t)take * groups >= p->set->factor, ERR_INVALID, line,
		"a shard_size of %u gives a tenant %u endpoints, fewer than the replication factor of %u", size, take * groups, p->set->factor);
	NEED(c->zone_blind || take <= c->zone_nodes[c->smallest_zone], ERR_INVALID, line,
		"a shard_size of %u takes %u endpoints of each of %u zones, and zone \"%.*s\" has %u", size, take, c->info.n_zones,
		SHORT(c->zones[c->smallest_zone]), c->zone_nodes[c->smallest_zone]);
fail:
	return rc;
}

static errc read_overrides(struct parse *p, const struct json *list, struct ring_conf *c)
{
	static const char *const keys[] = {"shard_size", "tenants", "tenant_matcher_type"};
	errc rc = OK;
	NEED(list->kind == JSON_ARRAY, ERR_INVALID, list->line, "overrides must be a list, not %s", json_kind_words(list->kind));
	c->overrides = arena_calloc(&p->set->arena, list->n + 1, sizeof *c->overrides);
	NO_MEMORY(c->overrides);
	for (const struct json *o = list->first; o; o = o->next) {
		struct ring_override *v = &c->overrides[c->n_overrides++];
		TRY(only_keys(p, o, "an override", KEYS(keys)));
		TRY(matcher_of(p, o, &v->applies, &v->glob));
		TRY(read_tenants(p, o, v->glob, &v->tenants, &v->n_tenants));
		TRY(count_of(p, o, "shard_size", &v->shard_size));
		NEED(v->shard_size > 0, ERR_INVALID, o->line, "an override needs a shard_size above 0");
		TRY(check_shard(p, c, v->shard_size, o->line));
		if (!v->applies)
			REMARK(o->line, "an override without tenant_matcher_type is never applied, here as in Thanos: say \"exact\" or \"glob\"");
		else if (v->n_tenants == 0)
			REMARK(o->line, "an override without tenants is never applied");
	}
fail:
	return rc;
}

static errc read_sharding(struct parse *p, const struct json *object, struct ring_conf *c)
{
	static const char *const keys[] = {"shard_size", "cache_size", "zone_awareness_disabled", "overrides"};
	errc rc = OK;
	const struct json *v = json_get(object, "shuffle_sharding_config");
	if (!v)
		return OK;
	TRY(only_keys(p, v, "shuffle_sharding_config", KEYS(keys)));
	TRY(count_of(p, v, "shard_size", &c->info.shard_size));
	TRY(count_of(p, v, "cache_size", &c->cache_size));
	const struct json *blind = json_get(v, "zone_awareness_disabled"), *overrides = json_get(v, "overrides");
	NEED(!blind || blind->kind == JSON_TRUE || blind->kind == JSON_FALSE, ERR_INVALID, blind->line,
		"zone_awareness_disabled must be true or false, not %s", json_kind_words(blind->kind));
	c->zone_blind = blind && blind->kind == JSON_TRUE;
	if (c->info.shard_size == 0) {
		REMARK(v->line, "a shuffle_sharding_config without a shard_size above 0 shards nothing%s",
			overrides ? ", and its overrides are not applied, here as in Thanos" : "");
		return OK;
	}
	NEED(c->info.algorithm == RING_KETAMA, ERR_INVALID, v->line, "shuffle sharding needs \"algorithm\": \"ketama\"");
	TRY(check_shard(p, c, c->info.shard_size, v->line));
	if (overrides)
		TRY(read_overrides(p, overrides, c));
fail:
	return rc;
}

static errc read_external_labels(struct parse *p, const struct json *object, struct ring_conf *c)
{
	errc rc = OK;
	const struct json *v = json_get(object, "external_labels");
	if (!v)
		return OK;
	NEED(v->kind == JSON_OBJECT, ERR_INVALID, v->line, "external_labels must be an object, not %s", json_kind_words(v->kind));
	struct labels *l = &c->external_labels;
	l->v = arena_calloc(&p->set->arena, v->n + 1, sizeof *l->v);
	NO_MEMORY(l->v);
	for (const struct json *m = v->first; m; m = m->next) {
		NEED(m->kind == JSON_STRING, ERR_INVALID, m->line, "the external label \"%.*s\" must be a string, not %s", SHORT(m->key),
			json_kind_words(m->kind));
		NEED(m->key.n > 0, ERR_INVALID, m->line, "an external label without a name");
		if (m->text.n > 0)
			l->v[l->n++] = (struct label){m->key, m->text};
	}
	labels_sort(*l);
fail:
	return rc;
}

static errc read_ring(struct parse *p, const struct json *object, struct ring_conf *c, uint32_t number)
{
	static const char *const keys[] = {
		"hashring", "tenants", "tenant_matcher_type", "endpoints", "algorithm", "external_labels", "shuffle_sharding_config"};
	errc rc = OK;
	bool given;
	struct span algorithm = SPAN("");
	*c = (struct ring_conf){.info = {.name = SPAN(""), .algorithm = p->opt->algorithm}, .line = object->line};
	snprintf(p->where, sizeof p->where, "ring %u: ", number);
	TRY(only_keys(p, object, "a ring", KEYS(keys)));
	TRY(text_of(p, object, "hashring", LIMIT_RING_NAME_BYTES, &c->info.name));
	if (c->info.name.n > 0)
		snprintf(p->where, sizeof p->where, "ring \"%.*s\": ", SHORT(c->info.name));
	TRY(text_of(p, object, "algorithm", LIMIT_RING_NAME_BYTES, &algorithm));
	NEED(algorithm.n == 0 || ring_algorithm_parse(algorithm.p, &c->info.algorithm), ERR_INVALID, json_get(object, "algorithm")->line,
		"algorithm must be \"ketama\" or \"hashmod\", not \"%.*s\"", SHORT(algorithm));
	TRY(matcher_of(p, object, &given, &c->info.glob));
	TRY(read_tenants(p, object, c->info.glob, &c->info.tenants, &c->info.n_tenants));
	TRY(read_endpoints(p, object, c));
	TRY(read_sharding(p, object, c));
	TRY(read_external_labels(p, object, c));
fail:
	return rc;
}

struct numbered {
	struct ring_conf_endpoint *e;
	uint32_t ring;
};

static int by_address(const void *a, const void *b)
{
	const struct numbered *x = a, *y = b;
	int c = span_cmp(x->e->address, y->e->address);
	return c ? c : (x->ring > y->ring) - (x->ring < y->ring);
}

/* An address is one node, in however many rings it stands. */
static errc number_nodes(struct parse *p)
{
	errc rc = OK;
	struct ring_set *s = p->set;
	uint32_t n = 0;
	p->where[0] = 0;
	struct numbered *v = malloc((p->n_endpoints + 1) * sizeof *v);
	s->nodes = arena_calloc(&s->arena, p->n_endpoints + 1, sizeof *s->nodes);
	NO_MEMORY(v && s->nodes);
	for (uint32_t i = 0; i < s->n_rings; i++)
		for (uint32_t k = 0; k < s->confs[i].info.n_nodes; k++)
			v[n++] = (struct numbered){&s->confs[i].endpoints[k], i};
	qsort(v, n, sizeof *v, by_address);
	for (uint32_t i = 0; i < n; i++) {
		if (i == 0 || !span_eq(v[i - 1].e->address, v[i].e->address))
			s->nodes[s->n_nodes++] = (struct ring_node){v[i].e->address, v[i].e->az};
		v[i].e->node = (uint16_t)(s->n_nodes - 1);
	}
fail:
	free(v);
	return rc;
}

static errc read_rings(struct parse *p, const struct json *root)
{
	errc rc = OK;
	struct ring_set *s = p->set;
	NEED(root->kind == JSON_ARRAY, ERR_INVALID, root->line, "the hashring file must be a list of rings, not %s", json_kind_words(root->kind));
	NEED(root->n > 0, ERR_INVALID, root->line, "the hashring file has no rings");
	NEED(root->n <= LIMIT_RINGS, ERR_LIMIT, root->line, "%u rings, at most %d are allowed", root->n, LIMIT_RINGS);
	s->confs = arena_calloc(&s->arena, root->n, sizeof *s->confs);
	NO_MEMORY(s->confs);
	const struct ring_conf *for_all = NULL;
	for (const struct json *r = root->first; r; r = r->next) {
		struct ring_conf *c = &s->confs[s->n_rings++];
		TRY(read_ring(p, r, c, s->n_rings));
		if (for_all)
			REMARK(r->line, "is never used: the ring on line %u has no tenants, so it takes all", for_all->line);
		else if (c->info.n_tenants == 0)
			for_all = c;
	}
	TRY(number_nodes(p));
fail:
	return rc;
}

errc ring_set_read(struct ring_set *s, const char *name, struct span json, const struct ring_options *opt, struct err *err)
{
	errc rc = OK;
	struct parse parse = {.name = name, .set = s, .opt = opt, .err = err}, *p = &parse;
	struct json *root;
	buf_init(&p->remarks, MIB);
	size_t blank = 0;
	while (blank < json.n && strchr(" \t\r\n", json.p[blank]) && json.p[blank])
		blank++;
	CHECK(json.n <= LIMIT_RING_FILE_BYTES, ERR_LIMIT, "%s: %zu bytes, at most %d are read", name, json.n, (int)LIMIT_RING_FILE_BYTES);
	CHECK(blank < json.n, ERR_INVALID, "%s:1: the hashring file is empty", name);
	/* The tree stays in the set's arena: the rings' names and addresses lie in it. */
	TRY(json_parse(name, json, &s->arena, &root, err));
	TRY(read_rings(p, root));
	if (p->n_remarks > REMARKS_MAX)
		buf_printf(&p->remarks, "%s: and %u remarks more\n", name, p->n_remarks - REMARKS_MAX);
	s->remarks = p->remarks.n ? arena_dup(&s->arena, span_of(p->remarks.p, p->remarks.n)) : SPAN("");
	CHECK(s->remarks.p && !p->remarks.failed, ERR_NOMEM, "%s: no memory", name);
fail:
	if (rc != OK && err)
		one_line(err);
	buf_free(&p->remarks);
	return rc;
}
