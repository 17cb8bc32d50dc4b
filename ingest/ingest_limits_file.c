/* ingest/ingest_limits_file.c - the limits file: Thanos Receive's, and a rate.
 *
 *     write:
 *       global:  { max_concurrency, meta_monitoring_url, meta_monitoring_http_client, meta_monitoring_limit_query }
 *       default: { request: { size_bytes_limit, series_limit, samples_limit }, head_series_limit, samples_per_second, samples_burst }
 *       tenants: { NAME: { the same as under default } }
 *
 * 0 is no limit. What `default` does not say is no limit, what a tenant does not say is the default's. meta_monitoring_* is read over: it tells Thanos
 * where to ask how many series a tenant has, and varve counts them itself.
 *
 * Why an empty file is refused, which Thanos takes for no limits: it is what a template leaves that was not filled in, or what is there for a moment
 * while a file is written anew. "write: {}" says it on purpose.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>
#include "base/config.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "ingest/ingest_int.h"

enum { LIMITS_WHERE_BYTES = 256, REMARKS_MAX = 64 };
#define LIMITS_ARENA_BYTES (256 * MIB) /* the tree of a file of LIMIT_CONFIG_BYTES */

static const char *const request_keys[] = {"size_bytes_limit", "series_limit", "samples_limit"};
static const char *const limit_keys[] = {"request", "head_series_limit", "samples_per_second", "samples_burst"};
/* In the order of enum tenant_limit. */
static const char *const paths[TENANT_LIMITS] = {
	"request.size_bytes_limit", "request.series_limit", "request.samples_limit", "head_series_limit", "samples_per_second", "samples_burst"};

#define KEYS(list) list, sizeof list / sizeof *list

const char *limits_key(const struct tenant_limits *l, enum tenant_limit k, struct span tenant, char *buf, size_t n)
{
	if (l->own & 1u << k)
		snprintf(buf, n, "write.tenants.%.*s.%s", SPAN_ARG(tenant), paths[k]);
	else
		snprintf(buf, n, "write.default.%s", paths[k]);
	return buf;
}

/* ---- numbers ---- */

/* As YAML writes whole numbers: 1000, 1_000, 1e3; a size may have a unit. Negative is allowed where Thanos has a signed number, and is no limit. */
static bool number_parse(struct span s, bool size, bool may_be_negative, uint64_t *out)
{
	char digits[32];
	size_t n = 0, at = 0;
	bool negative = s.n > 0 && s.p[0] == '-';
	uint64_t x = 0;
	int64_t whole;
	at += negative || (s.n > 0 && s.p[0] == '+');
	for (; at < s.n && n < sizeof digits && ((s.p[at] >= '0' && s.p[at] <= '9') || (s.p[at] == '_' && n > 0)); at++)
		if (s.p[at] != '_')
			digits[n++] = s.p[at];
	if (n == 0 || !span_to_i64(span_of(digits, n), &whole) || (negative && !may_be_negative && whole != 0))
		return false;
	x = (uint64_t)whole;
	if (at < s.n && (s.p[at] == 'e' || s.p[at] == 'E')) {
		int64_t exponent;
		at += at + 1 < s.n && s.p[at + 1] == '+' ? 2u : 1u;
		if (!span_to_i64(span_of(s.p + at, s.n - at), &exponent) || exponent < 0 || exponent > 18)
			return false;
		while (exponent-- > 0)
			if (__builtin_mul_overflow(x, 10u, &x))
				return false;
		at = s.n;
	}
	if (at < s.n) {
		if (negative || !size || parse_size(s, &x, NULL) != OK)
			return false;
	}
	if (x > INT64_MAX)
		return false;
	*out = negative ? 0 : x;
	return true;
}

/* The number under `key`; *set when there is one. */
static errc number_get(const char *name, const struct yaml *map, const char *where, const char *key, bool size, bool may_be_negative, uint64_t *out,
	bool *set, struct err *err)
{
	errc rc = OK;
	const struct yaml *y = yaml_get(map, key);
	if (!y)
		return OK;
	CHECK(y->kind == YAML_SCALAR, ERR_INVALID, "%s:%d: %s.%s must be a single number", name, y->line, where, key);
	CHECK(number_parse(y->scalar, size, may_be_negative, out), ERR_INVALID, "%s:%d: %s.%s is \"%.*s\", must be a whole number%s, 0 = no limit",
		name, y->line, where, key, SPAN_ARG(y->scalar), size ? " of bytes (64KiB, 1MiB ... are understood too)" : "");
	*set = true;
fail:
	return rc;
}

/* ---- the parts ---- */

/* One place of limits: `default`, or a tenant. Sets what is said. */
static errc read_limits(const char *name, const struct yaml *map, const char *where, struct tenant_limits *l, uint8_t *said, struct err *err)
{
	errc rc = OK;
	char inner[LIMITS_WHERE_BYTES + 16];
	TRY(yaml_only(name, map, where, KEYS(limit_keys), err));
	const struct yaml *request = yaml_get(map, "request");
	snprintf(inner, sizeof inner, "%s.request", where);
	if (request)
		TRY(yaml_only(name, request, inner, KEYS(request_keys), err));
	for (unsigned k = 0; k < TENANT_LIMITS; k++) {
		bool set = false, in_request = k <= TENANT_SAMPLES;
		const struct yaml *from = in_request ? request : map;
		const char *key = in_request ? request_keys[k] : limit_keys[1 + k - TENANT_HEAD_SERIES];
		if (from)
			TRY(number_get(name, from, in_request ? inner : where, key, k == TENANT_SIZE, in_request, &l->v[k], &set, err));
		if (set)
			*said = (uint8_t)(*said | 1u << k);
	}
fail:
	return rc;
}

static void remark(struct buf *b, size_t *n, const char *what, struct span name, const char *why)
{
	if ((*n)++ < REMARKS_MAX)
		buf_printf(b, "%s%.*s %s\n", what, SPAN_ARG(name), why);
}

static errc read_global(const char *name, const struct yaml *write, struct limits *l, struct buf *remarks, size_t *n_remarks, struct err *err)
{
	static const char *const keys[] = {"max_concurrency", "meta_monitoring_url", "meta_monitoring_http_client", "meta_monitoring_limit_query"};
	errc rc = OK;
	bool set = false;
	const struct yaml *global = yaml_get(write, "global");
	if (!global)
		return OK;
	TRY(yaml_only(name, global, "write.global", KEYS(keys), err));
	TRY(number_get(name, global, "write.global", keys[0], false, true, &l->max_concurrency, &set, err));
	for (size_t i = 1; i < sizeof keys / sizeof *keys; i++)
		if (yaml_get(global, keys[i]))
			remark(remarks, n_remarks, "write.global.", span_cstr(keys[i]),
				"is not used: varve counts each tenant's series itself, for head_series_limit");
fail:
	return rc;
}

static uint32_t slot_of(struct span name)
{
	return (uint32_t)XXH3_64bits(name.p, name.n);
}

static errc read_tenants(const char *name, const struct yaml *write, struct limits *l, struct buf *remarks, size_t *n_remarks, struct err *err)
{
	errc rc = OK;
	char where[LIMITS_WHERE_BYTES];
	const struct yaml *tenants = yaml_get(write, "tenants");
	if (!tenants)
		return OK;
	CHECK(tenants->kind == YAML_MAP, ERR_INVALID, "%s:%d: write.tenants must be a map of tenants' names and their limits", name, tenants->line);
	uint64_t slots = 16;
	while (slots < 2 * (uint64_t)tenants->n)
		slots *= 2;
	l->mask = (uint32_t)(slots - 1);
	l->tenants = arena_calloc(&l->arena, tenants->n + 1, sizeof *l->tenants);
	l->slots = arena_calloc(&l->arena, slots, sizeof *l->slots);
	CHECK(l->tenants && l->slots, ERR_NOMEM, "%s: no memory for %zu tenants", name, tenants->n);
	for (size_t i = 0; i < tenants->n; i++) {
		struct span tenant = tenants->pairs[i].key;
		struct limits_tenant *t = &l->tenants[l->n_tenants];
		uint8_t said = 0;
		*t = (struct limits_tenant){.name = arena_dup(&l->arena, tenant), .limits = l->fallback};
		CHECK(t->name.p, ERR_NOMEM, "%s: no memory for %zu tenants", name, tenants->n);
		snprintf(where, sizeof where, "write.tenants.%.*s", (int)(tenant.n < 128 ? tenant.n : 128), tenant.p);
		if (!tenant_valid(tenant))
			remark(remarks, n_remarks, "write.tenants.", span_of(tenant.p, tenant.n < 128 ? tenant.n : 128),
				"is no name that a tenant can have, so its limits are nobody's");
		struct yaml none = {.kind = YAML_MAP};
		const struct yaml *map = tenants->pairs[i].value;
		/* A name with nothing behind it: a tenant like any other. */
		if (map->kind == YAML_SCALAR && !map->quoted && (map->scalar.n == 0 || span_is(map->scalar, "~") || span_is(map->scalar, "null")))
			map = &none;
		TRY(read_limits(name, map, where, &t->limits, &said, err));
		t->limits.own = said;
		uint32_t s = slot_of(t->name) & l->mask;
		while (l->slots[s])
			s = (s + 1) & l->mask;
		l->slots[s] = (uint32_t)++l->n_tenants;
	}
fail:
	return rc;
}

errc limits_parse(const char *name, struct span text, struct limits **out, struct err *err)
{
	static const char *const root_keys[] = {"write"}, *const write_keys[] = {"global", "default", "tenants"};
	errc rc = OK;
	struct err local = {0};
	struct arena tree;
	struct buf remarks;
	size_t n_remarks = 0;
	struct yaml *root;
	uint8_t said = 0;
	*out = NULL;
	err = err ? err : &local;
	arena_init(&tree, LIMITS_ARENA_BYTES);
	buf_init(&remarks, MIB);
	struct limits *l = calloc(1, sizeof *l);
	CHECK(l, ERR_NOMEM, "%s: no memory for limits", name);
	arena_init(&l->arena, LIMITS_ARENA_BYTES);
	TRY(yaml_parse(name, text, &tree, &root, err));
	TRY(yaml_only(name, root, "the limits file", KEYS(root_keys), err));
	CHECK(root->n > 0, ERR_INVALID, "%s is empty: it must have limits under \"write\"; \"write: {}\" is no limits", name);
	const struct yaml *write = yaml_get(root, "write");
	if (write) {
		TRY(yaml_only(name, write, "write", KEYS(write_keys), err));
		TRY(read_global(name, write, l, &remarks, &n_remarks, err));
		const struct yaml *fallback = yaml_get(write, "default");
		if (fallback)
			TRY(read_limits(name, fallback, "write.default", &l->fallback, &said, err));
		TRY(read_tenants(name, write, l, &remarks, &n_remarks, err));
	}
	if (n_remarks > REMARKS_MAX)
		buf_printf(&remarks, "... and %zu more\n", n_remarks - REMARKS_MAX);
	l->remarks = remarks.n ? arena_dup(&l->arena, span_of(remarks.p, remarks.n)) : SPAN("");
	CHECK(l->remarks.p && !remarks.failed, ERR_NOMEM, "%s: no memory for limits", name);
	*out = l;
	l = NULL;
fail:
	limits_free(l);
	buf_free(&remarks);
	arena_free(&tree);
	return rc;
}

void limits_free(struct limits *l)
{
	if (!l)
		return;
	arena_free(&l->arena);
	free(l);
}

const struct tenant_limits *limits_of(const struct limits *l, struct span tenant)
{
	if (!l->slots)
		return &l->fallback;
	for (uint32_t s = slot_of(tenant) & l->mask; l->slots[s]; s = (s + 1) & l->mask) {
		const struct limits_tenant *t = &l->tenants[l->slots[s] - 1];
		if (span_eq(t->name, tenant))
			return &t->limits;
	}
	return &l->fallback;
}
