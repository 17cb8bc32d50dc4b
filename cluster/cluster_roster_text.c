/* cluster/cluster_roster_text.c - the roster in words: DATA-DIR/roster.json, and what a node answers to GET /-/ring.
 *
 *     answer  {"epoch": "<16 hex digits>", ...,                                                 the handler's
 *              "node": "01J...", "state": "active", "targets": ["ingest", ...], "started_ms": 1790000000000, "remembered": [NODE, ...]}
 *     file    {"version": 1, "nodes": [NODE, ...]}
 *     NODE    {"address": "a:19291", "state": "draining", "left_ms": 1790000000000, "heard_ms": 1790000000000, "id": "01J...", "stores": true}
 *
 * An answer remembers who is in no ring in force any more, drained ones too; the file everybody. What is missing is as if nobody had said it, what is unknown is passed over: fleets are upgraded
 * node by node.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/json.h"
#include "base/limits.h"
#include "cluster/cluster_roster_int.h"

static const char *const names[] = {"unknown", "joining", "active", "draining", "drained"};

const char *node_state_name(enum node_state s)
{
	return names[s];
}

enum node_state node_state_of(const char *name)
{
	for (unsigned i = NODE_JOINING; name && i <= NODE_DRAINED; i++)
		if (strcmp(name, names[i]) == 0)
			return (enum node_state)i;
	return NODE_UNKNOWN;
}

/* ---- reading ---- */

static int64_t time_of(const json_t *o, const char *key)
{
	json_int_t v = json_integer_value(json_object_get(o, key)); /* 0 for what is none */
	return v > 0 ? (int64_t)v : 0;
}

static void id_of(const json_t *o, const char *key, char out[40])
{
	const char *s = json_string_value(json_object_get(o, key));
	snprintf(out, 40, "%s", s && strlen(s) < 40 ? s : "");
}

/* It goes into a URL. */
static bool address_sane(const char *s, size_t n)
{
	if (n == 0 || n > LIMIT_RING_ADDRESS_BYTES)
		return false;
	for (size_t i = 0; i < n; i++)
		if (s[i] <= ' ' || s[i] >= 0x7f || strchr("/?#@\"\\%<>", s[i]))
			return false;
	return true;
}

static errc read_nodes(const json_t *list, struct arena *arena, struct roster_memory **out, size_t *n, struct err *err)
{
	errc rc = OK;
	size_t i, most = json_array_size(list) < LIMIT_ROSTER_NODES ? json_array_size(list) : LIMIT_ROSTER_NODES;
	const json_t *o;
	*n = 0;
	*out = arena_calloc(arena, most, sizeof **out);
	CHECK(*out, ERR_NOMEM, "no memory for %zu nodes", most);
	json_array_foreach(list, i, o)
	{
		const json_t *address = json_object_get(o, "address"), *stores = json_object_get(o, "stores");
		if (*n == most || !json_is_string(address) || !address_sane(json_string_value(address), json_string_length(address)))
			continue;
		struct roster_memory *m = &(*out)[*n];
		m->address = arena_dup(arena, span_of(json_string_value(address), json_string_length(address)));
		CHECK(m->address.p, ERR_NOMEM, "no memory for nodes");
		m->state = node_state_of(json_string_value(json_object_get(o, "state")));
		m->stores = !json_is_false(stores);
		m->left_ms = time_of(o, "left_ms");
		m->heard_ms = time_of(o, "heard_ms");
		id_of(o, "id", m->id);
		++*n;
	}
fail:
	return rc;
}

static errc load(struct span text, json_t **out, struct err *err)
{
	json_error_t e;
	*out = json_loadb(text.p, text.n, 0, &e);
	if (!*out)
		return json_error_code(&e) == json_error_out_of_memory ? err_set(err, ERR_NOMEM, "no memory to read JSON")
								       : err_set(err, ERR_CORRUPT, "line %d: %s", e.line, e.text);
	return json_is_object(*out) ? OK : err_set(err, ERR_CORRUPT, "no JSON object");
}

errc roster_read_answer(struct span text, struct arena *arena, struct roster_words *out, struct err *err)
{
	json_t *o = NULL;
	*out = (struct roster_words){.stores = true};
	errc rc = load(text, &o, err);
	if (rc == OK) {
		const char *epoch = json_string_value(json_object_get(o, "epoch"));
		const json_t *targets = json_object_get(o, "targets"), *t;
		size_t i;
		char *end = NULL;
		out->epoch = epoch && *epoch ? strtoull(epoch, &end, 16) : 0;
		if (end && *end)
			out->epoch = 0;
		out->started_ms = (uint64_t)time_of(o, "started_ms");
		out->state = node_state_of(json_string_value(json_object_get(o, "state")));
		out->stores = !json_is_array(targets);
		json_array_foreach(targets, i, t)
		{
			const char *s = json_string_value(t);
			out->stores |= s && (strcmp(s, "ingest") == 0 || strcmp(s, "all") == 0);
		}
		id_of(o, "node", out->id);
		rc = read_nodes(json_object_get(o, "remembered"), arena, &out->remembered, &out->n_remembered, err);
	}
	json_decref(o);
	return rc;
}

errc roster_read_file(struct span text, struct arena *arena, struct roster_memory **out, size_t *n, struct err *err)
{
	errc rc = OK;
	json_t *o = NULL;
	TRY(load(text, &o, err));
	CHECK(json_integer_value(json_object_get(o, "version")) == 1 && json_is_array(json_object_get(o, "nodes")), ERR_CORRUPT,
		"no roster of version 1");
	rc = read_nodes(json_object_get(o, "nodes"), arena, out, n, err);
fail:
	json_decref(o);
	return rc;
}

/* ---- writing ---- */

void roster_write_node(struct buf *out, const struct roster_node *n)
{
	buf_printf(out, "{\"address\":");
	buf_json_string(out, n->address);
	buf_printf(out, ",\"state\":\"%s\",\"left_ms\":%" PRId64 ",\"heard_ms\":%" PRId64 ",\"id\":", node_state_name(n->state), n->left_ms,
		n->heard_ms);
	buf_json_string(out, span_cstr(n->id));
	buf_printf(out, ",\"stores\":%s}", n->stores ? "true" : "false");
}

void roster_write_self(struct buf *out, const struct roster_config *cfg, enum node_state state, uint64_t started_ms)
{
	buf_printf(out, "\"node\":");
	buf_json_string(out, span_cstr(cfg->id ? cfg->id : ""));
	buf_printf(out, ",\"state\":\"%s\",\"targets\":[", node_state_name(state));
	const char *t = cfg->targets ? cfg->targets : "";
	for (bool first = true; *t; first = false) {
		size_t n = strcspn(t, ",");
		if (!first)
			buf_u8(out, ',');
		buf_json_string(out, span_of(t, n));
		t += n + (t[n] == ',');
	}
	buf_printf(out, "],\"started_ms\":%" PRIu64, started_ms);
}
