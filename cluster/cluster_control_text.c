/* cluster/cluster_control_text.c - rings as text: Thanos' form, every key of the base kept but for the endpoints.
 *
 * Here a text is only taken apart as far as its endpoints; whether it is a good ring file is judged by ring_set_parse on what comes out, which is what members
 * will do. That is why jansson reads it: it gives the other keys back as they were, in their order, also those that only a later version knows.
 */
#include <stdlib.h>
#include <xxhash.h>
#include "cluster/cluster_control_int.h"

uint64_t control_text_hash(struct span text)
{
	return XXH64(text.p, text.n, 0);
}

static struct span text_of(const json_t *v)
{
	return json_is_string(v) ? span_of(json_string_value(v), json_string_length(v)) : (struct span){0};
}

static errc endpoints_read(const char *name, const json_t *list, struct arena *arena, struct control_ring *ring, struct err *err)
{
	errc rc = OK;
	size_t n = json_array_size(list);
	CHECK(!list || json_is_null(list) || json_is_array(list), ERR_INVALID, "%s: endpoints that are no list", name);
	CHECK(n <= LIMIT_RING_ENDPOINTS, ERR_LIMIT, "%s: %zu endpoints, at most %d are read", name, n, LIMIT_RING_ENDPOINTS);
	ring->endpoints = arena_calloc(arena, n, sizeof *ring->endpoints);
	CHECK(ring->endpoints, ERR_NOMEM, "no memory for %s", name);
	for (size_t i = 0; i < n; i++) {
		const json_t *e = json_array_get(list, i);
		struct span address = text_of(json_is_object(e) ? json_object_get(e, "address") : e), az = text_of(json_object_get(e, "az"));
		CHECK(address.n > 0, ERR_INVALID, "%s: an endpoint without address", name);
		ring->endpoints[i].address = arena_dup(arena, address);
		ring->endpoints[i].az = arena_dup(arena, az);
		CHECK(ring->endpoints[i].address.p && ring->endpoints[i].az.p, ERR_NOMEM, "no memory for %s", name);
	}
	ring->n_endpoints = n;
fail:
	return rc;
}

errc control_rings_read(const char *name, struct span text, struct arena *arena, json_t **root, struct control_ring **out, size_t *n, struct err *err)
{
	errc rc = OK;
	json_error_t e;
	CHECK(text.n <= LIMIT_RING_FILE_BYTES, ERR_LIMIT, "%s: %zu bytes, at most %d are read", name, text.n, (int)LIMIT_RING_FILE_BYTES);
	*root = json_loadb(text.p, text.n, JSON_REJECT_DUPLICATES, &e);
	CHECK(*root, ERR_INVALID, "%s:%d: %s", name, e.line, e.text);
	CHECK(json_is_array(*root), ERR_INVALID, "%s: must be a list of rings", name);
	size_t rings = json_array_size(*root);
	CHECK(rings <= LIMIT_RINGS, ERR_LIMIT, "%s: %zu rings, at most %d are read", name, rings, LIMIT_RINGS);
	struct control_ring *v = arena_calloc(arena, rings, sizeof *v);
	CHECK(v, ERR_NOMEM, "no memory for %s", name);
	for (size_t i = 0; i < rings; i++) {
		v[i].object = json_array_get(*root, i);
		CHECK(json_is_object(v[i].object), ERR_INVALID, "%s: ring %zu is no object", name, i + 1);
		v[i].name = arena_dup(arena, text_of(json_object_get(v[i].object, "hashring")));
		CHECK(v[i].name.p, ERR_NOMEM, "no memory for %s", name);
		TRY(endpoints_read(name, json_object_get(v[i].object, "endpoints"), arena, &v[i], err));
	}
	*out = v;
	*n = rings;
fail:
	return rc;
}

static json_t *endpoints_make(const struct control_ring *ring, bool az_aware)
{
	json_t *list = json_array();
	for (size_t i = 0; list && i < ring->n_endpoints; i++) {
		const struct control_endpoint *e = &ring->endpoints[i];
		json_t *v = az_aware ? json_pack("{s:s%,s:s%}", "address", e->address.p, e->address.n, "az", e->az.p, e->az.n)
				     : json_stringn(e->address.p, e->address.n);
		if (!v || json_array_append_new(list, v) != 0) {
			json_decref(list);
			list = NULL;
		}
	}
	return list;
}

errc control_rings_write(const struct control_ring *rings, size_t n, bool az_aware, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	char *text = NULL;
	json_t *root = json_array();
	CHECK(root, ERR_NOMEM, "no memory for a ring");
	for (size_t i = 0; i < n; i++) {
		if (rings[i].n_endpoints == 0)
			continue;
		json_t *ring = json_copy(rings[i].object); /* shallow: members are shared, the object is its own */
		CHECK(ring && json_array_append_new(root, ring) == 0, ERR_NOMEM, "no memory for a ring");
		json_t *list = rings[i].by_hand ? NULL : endpoints_make(&rings[i], az_aware);
		CHECK(rings[i].by_hand || (list && json_object_set_new(ring, "endpoints", list) == 0), ERR_NOMEM, "no memory for a ring");
	}
	text = json_dumps(root, JSON_INDENT(2));
	CHECK(text, ERR_NOMEM, "no memory for a ring");
	*out = arena_dup(arena, span_cstr(text));
	CHECK(out->p, ERR_NOMEM, "no memory for a ring");
fail:
	free(text);
	json_decref(root);
	return rc;
}
