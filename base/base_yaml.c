/* base/base_yaml.c - YAML as people write configuration, on libyaml's events; a tree in an arena.
 *
 * The useful subset is read and the rest refused with its line: one document, unique keys that are scalars, no anchors, aliases,
 * merge keys or tags (they make a small file large, and a value's type depend on its spelling), nesting up to LIMIT_YAML_DEPTH.
 * Refusing a second document matters: the peers ignore it silently, and with it what somebody configured there.
 *
 * ${ENV} is expanded inside the values, after parsing: a password with a colon, a quote or a # in it stays a value and cannot
 * become structure, and a comment may mention a variable that is not set.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <yaml.h>
#include "base/config.h"
#include "base/limits.h"

struct reader {
	yaml_parser_t parser;
	const char *name;
	struct arena *arena;
};

static int line_of(const yaml_event_t *ev)
{
	return (int)ev->start_mark.line + 1;
}

static errc next_event(struct reader *r, yaml_event_t *ev, struct err *err)
{
	if (yaml_parser_parse(&r->parser, ev))
		return OK;
	memset(ev, 0, sizeof *ev);
	if (r->parser.error == YAML_MEMORY_ERROR)
		return err_set(err, ERR_NOMEM, "%s: no memory to parse it", r->name);
	const char *what = r->parser.problem ? r->parser.problem : "not YAML";
	return err_set(err, ERR_INVALID, "%s:%d: %s", r->name, (int)r->parser.problem_mark.line + 1, what);
}

static struct yaml *node_new(struct reader *r, int line)
{
	struct yaml *y = arena_calloc(r->arena, 1, sizeof *y);
	if (y) {
		y->line = line;
		y->scalar = span_of("", 0);
	}
	return y;
}

/* Room for one more element of an arena array that doubles; what is outgrown stays in the arena until it is freed. */
static void *grow(struct arena *arena, void *v, size_t n, size_t *cap, size_t size)
{
	if (n < *cap)
		return v;
	size_t want = *cap ? *cap * 2 : 4;
	void *p = arena_calloc(arena, want, size);
	if (!p)
		return NULL;
	if (n)
		memcpy(p, v, n * size);
	*cap = want;
	return p;
}

static int by_key(const void *a, const void *b)
{
	const struct yaml_pair *x = *(const struct yaml_pair *const *)a, *y = *(const struct yaml_pair *const *)b;
	return span_cmp(x->key, y->key);
}

/* Sorted, so that a hostile file of 100,000 keys costs n log n. */
static errc check_unique(struct reader *r, const struct yaml *map, struct err *err)
{
	if (map->n < 2)
		return OK;
	const struct yaml_pair **v = calloc(map->n, sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "%s: no memory for %zu keys", r->name, map->n);
	for (size_t i = 0; i < map->n; i++)
		v[i] = &map->pairs[i];
	qsort(v, map->n, sizeof *v, by_key);
	errc rc = OK;
	for (size_t i = 1; rc == OK && i < map->n; i++) {
		if (span_eq(v[i - 1]->key, v[i]->key)) {
			int a = v[i - 1]->value->line, b = v[i]->value->line;
			rc = err_set(err, ERR_INVALID, "%s:%d: key \"%.*s\" is there twice, first in line %d", r->name, a > b ? a : b,
				SPAN_ARG(v[i]->key), a < b ? a : b);
		}
	}
	free(v);
	return rc;
}

static errc read_scalar(struct reader *r, const yaml_event_t *ev, struct yaml **out, struct err *err)
{
	errc rc = OK;
	int line = line_of(ev);
	struct span raw = span_of(ev->data.scalar.value, ev->data.scalar.length);
	CHECK(!ev->data.scalar.anchor, ERR_INVALID, "%s:%d: anchors (&name) are not supported", r->name, line);
	CHECK(!ev->data.scalar.tag, ERR_INVALID, "%s:%d: tags (!name) are not supported", r->name, line);
	CHECK(raw.n == 0 || !memchr(raw.p, 0, raw.n), ERR_INVALID, "%s:%d: a value contains a NUL byte", r->name, line);
	struct yaml *y = node_new(r, line);
	CHECK(y, ERR_NOMEM, "%s: no memory for its values", r->name);
	y->quoted = ev->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
	rc = config_expand_env(raw, r->arena, &y->scalar, err);
	if (rc) {
		err_wrap(err, "%s:%d", r->name, line);
		goto fail;
	}
	*out = y;
fail:
	return rc;
}

static errc read_node(struct reader *r, const yaml_event_t *ev, int depth, struct yaml **out, struct err *err);

static errc read_list(struct reader *r, const yaml_event_t *start, int depth, struct yaml **out, struct err *err)
{
	errc rc = OK;
	size_t cap = 0;
	yaml_event_t ev = {0};
	struct yaml *y = node_new(r, line_of(start));
	CHECK(y, ERR_NOMEM, "%s: no memory for its values", r->name);
	y->kind = YAML_LIST;
	for (;;) {
		TRY(next_event(r, &ev, err));
		if (ev.type == YAML_SEQUENCE_END_EVENT)
			break;
		struct yaml **v = grow(r->arena, y->items, y->n, &cap, sizeof *v);
		CHECK(v, ERR_NOMEM, "%s: no memory for its values", r->name);
		y->items = v;
		TRY(read_node(r, &ev, depth + 1, &v[y->n], err));
		y->n++;
		yaml_event_delete(&ev);
	}
	*out = y;
fail:
	yaml_event_delete(&ev);
	return rc;
}

static errc read_map(struct reader *r, const yaml_event_t *start, int depth, struct yaml **out, struct err *err)
{
	errc rc = OK;
	size_t cap = 0;
	yaml_event_t ev = {0};
	struct yaml *y = node_new(r, line_of(start));
	CHECK(y, ERR_NOMEM, "%s: no memory for its values", r->name);
	y->kind = YAML_MAP;
	for (;;) {
		TRY(next_event(r, &ev, err));
		if (ev.type == YAML_MAPPING_END_EVENT)
			break;
		CHECK(ev.type == YAML_SCALAR_EVENT && !ev.data.scalar.anchor && !ev.data.scalar.tag, ERR_INVALID, "%s:%d: a key must be a plain word",
			r->name, line_of(&ev));
		struct yaml_pair *v = grow(r->arena, y->pairs, y->n, &cap, sizeof *v);
		CHECK(v, ERR_NOMEM, "%s: no memory for its values", r->name);
		y->pairs = v;
		struct span key = span_of(ev.data.scalar.value, ev.data.scalar.length);
		char *copy = arena_cstr(r->arena, key);
		CHECK(copy, ERR_NOMEM, "%s: no memory for its values", r->name);
		v[y->n].key = span_of(copy, key.n);
		yaml_event_delete(&ev);
		TRY(next_event(r, &ev, err));
		TRY(read_node(r, &ev, depth + 1, &v[y->n].value, err));
		y->n++;
		yaml_event_delete(&ev);
	}
	TRY(check_unique(r, y, err));
	*out = y;
fail:
	yaml_event_delete(&ev);
	return rc;
}

/* The node that starts with `ev`. Recursion is bounded by LIMIT_YAML_DEPTH. */
static errc read_node(struct reader *r, const yaml_event_t *ev, int depth, struct yaml **out, struct err *err)
{
	errc rc = OK;
	int line = line_of(ev);
	CHECK(depth <= LIMIT_YAML_DEPTH, ERR_INVALID, "%s:%d: nested deeper than %d levels", r->name, line, LIMIT_YAML_DEPTH);
	switch (ev->type) {
	case YAML_SCALAR_EVENT:
		return read_scalar(r, ev, out, err);
	case YAML_SEQUENCE_START_EVENT:
		CHECK(!ev->data.sequence_start.anchor && !ev->data.sequence_start.tag, ERR_INVALID, "%s:%d: anchors and tags are not supported",
			r->name, line);
		return read_list(r, ev, depth, out, err);
	case YAML_MAPPING_START_EVENT:
		CHECK(!ev->data.mapping_start.anchor && !ev->data.mapping_start.tag, ERR_INVALID, "%s:%d: anchors and tags are not supported",
			r->name, line);
		return read_map(r, ev, depth, out, err);
	default:
		CHECK(false, ERR_INVALID, "%s:%d: aliases (*name) are not supported", r->name, line);
	}
fail:
	return rc;
}

/* libyaml's stream: STREAM-START [DOCUMENT-START node DOCUMENT-END] STREAM-END. */
static errc read_stream(struct reader *r, struct yaml **out, struct err *err)
{
	errc rc = OK;
	yaml_event_t ev = {0};
	struct yaml *y = node_new(r, 1);
	CHECK(y, ERR_NOMEM, "%s: no memory for its values", r->name);
	y->kind = YAML_MAP;
	TRY(next_event(r, &ev, err));
	yaml_event_delete(&ev);
	TRY(next_event(r, &ev, err));
	if (ev.type == YAML_DOCUMENT_START_EVENT) {
		yaml_event_delete(&ev);
		TRY(next_event(r, &ev, err));
		bool nothing = ev.type == YAML_SCALAR_EVENT && ev.data.scalar.length == 0 && ev.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
		if (!nothing)
			TRY(read_node(r, &ev, 0, &y, err));
		yaml_event_delete(&ev);
		TRY(next_event(r, &ev, err)); /* the document's end */
		yaml_event_delete(&ev);
		TRY(next_event(r, &ev, err));
		CHECK(ev.type == YAML_STREAM_END_EVENT, ERR_INVALID, "%s:%d: a second document starts here, only one is read", r->name, line_of(&ev));
	}
	*out = y;
fail:
	yaml_event_delete(&ev);
	return rc;
}

errc yaml_parse(const char *name, struct span text, struct arena *arena, struct yaml **out, struct err *err)
{
	struct reader r = {.name = name, .arena = arena};
	if (text.n > LIMIT_CONFIG_BYTES)
		return err_set(err, ERR_LIMIT, "%s: %zu bytes, at most %" PRIu64 " are read", name, text.n, LIMIT_CONFIG_BYTES);
	if (!span_is_utf8(text))
		return err_set(err, ERR_INVALID, "%s: not UTF-8", name);
	if (!yaml_parser_initialize(&r.parser))
		return err_set(err, ERR_NOMEM, "%s: no memory to parse it", name);
	yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&r.parser, (const unsigned char *)text.p, text.n);
	errc rc = read_stream(&r, out, err);
	yaml_parser_delete(&r.parser);
	return rc;
}

/* ---- reading the tree ---- */

/* `key:` with nothing, ~ or null behind it says nothing: as if it were not there. */
static bool is_null(const struct yaml *y)
{
	return y->kind == YAML_SCALAR && !y->quoted && (y->scalar.n == 0 || span_is(y->scalar, "~") || span_is(y->scalar, "null"));
}

struct yaml *yaml_get(const struct yaml *map, const char *key)
{
	if (!map || map->kind != YAML_MAP)
		return NULL;
	for (size_t i = 0; i < map->n; i++)
		if (span_is(map->pairs[i].key, key))
			return is_null(map->pairs[i].value) ? NULL : map->pairs[i].value;
	return NULL;
}

errc yaml_only(const char *name, const struct yaml *map, const char *where, const char *const *keys, size_t n, struct err *err)
{
	errc rc = OK;
	CHECK(map->kind == YAML_MAP, ERR_INVALID, "%s:%d: %s must be a map of keys and values", name, map->line, where);
	for (size_t i = 0; i < map->n; i++) {
		struct span key = map->pairs[i].key;
		bool known = false;
		for (size_t k = 0; k < n && !known; k++)
			known = span_is(key, keys[k]);
		if (known)
			continue;
		const char *near = did_you_mean(key.p, keys, n);
		char list[400];
		size_t at = 0;
		list[0] = 0;
		for (size_t k = 0; k < n && at < sizeof list; k++)
			at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", k ? ", " : "", keys[k]);
		CHECK(false, ERR_INVALID, "%s:%d: unknown key \"%.*s\" in %s%s%s%sKnown are: %s", name, map->pairs[i].value->line, SPAN_ARG(key),
			where, near ? ", did you mean \"" : "", near ? near : "", near ? "\"? " : ". ", list);
	}
fail:
	return rc;
}

/* The scalar under key: *out is NULL when it is absent. */
static errc scalar_get(const char *name, const struct yaml *map, const char *key, const struct yaml **out, struct err *err)
{
	const struct yaml *y = yaml_get(map, key);
	*out = y;
	if (y && y->kind != YAML_SCALAR)
		return err_set(err, ERR_INVALID, "%s:%d: %s must be a single value", name, y->line, key);
	return OK;
}

errc yaml_string(const char *name, const struct yaml *map, const char *key, const char **out, struct err *err)
{
	const struct yaml *y;
	errc rc = scalar_get(name, map, key, &y, err);
	if (rc == OK && y)
		*out = y->scalar.p;
	return rc;
}

errc yaml_bool(const char *name, const struct yaml *map, const char *key, bool *out, struct err *err)
{
	static const char *const yes[] = {"true", "True", "TRUE", "yes", "on"}, *const no[] = {"false", "False", "FALSE", "no", "off"};
	const struct yaml *y;
	errc rc = scalar_get(name, map, key, &y, err);
	if (rc != OK || !y)
		return rc;
	for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
		if (span_is(y->scalar, yes[i]) || span_is(y->scalar, no[i])) {
			*out = span_is(y->scalar, yes[i]);
			return OK;
		}
	}
	return err_set(err, ERR_INVALID, "%s:%d: %s is \"%.*s\", must be true or false", name, y->line, key, SPAN_ARG(y->scalar));
}

errc yaml_size(const char *name, const struct yaml *map, const char *key, uint64_t *out, struct err *err)
{
	const struct yaml *y;
	errc rc = scalar_get(name, map, key, &y, err);
	if (rc == OK && y) {
		rc = parse_size(y->scalar, out, err);
		if (rc)
			err_wrap(err, "%s:%d: %s", name, y->line, key);
	}
	return rc;
}

errc yaml_duration_ms(const char *name, const struct yaml *map, const char *key, int64_t *out, struct err *err)
{
	const struct yaml *y;
	errc rc = scalar_get(name, map, key, &y, err);
	if (rc == OK && y) {
		rc = parse_duration_ms(y->scalar, out, err);
		if (rc)
			err_wrap(err, "%s:%d: %s", name, y->line, key);
	}
	return rc;
}
