/* cluster/cluster_control_objects.c - what the API's objects say: the few fields that a plan is made of, copied out of their JSON.
 *
 * A field that is missing or of another type is as if it were empty; only an object without a name is refused. The API server has validated the rest, and what
 * a strange value could do is judged where it is used.
 */
#include <stdlib.h>
#include "cluster/cluster_control_int.h"

static const json_t *at(const json_t *o, const char *const *path)
{
	for (; o && *path; path++)
		o = json_object_get(o, *path);
	return o;
}
#define AT(o, ...) at(o, (const char *const[]){__VA_ARGS__, NULL})

static struct span text_at(struct kube_object *k, const json_t *v, bool *bad)
{
	if (!json_is_string(v))
		return (struct span){"", 0};
	struct span s = arena_dup(&k->arena, span_of(json_string_value(v), json_string_length(v)));
	*bad |= s.p == NULL;
	return s;
}

static uint32_t number_at(const json_t *v, uint32_t fallback)
{
	if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
		return json_is_integer(v) ? 0 : fallback;
	return (uint32_t)json_integer_value(v);
}

/* Would these labels be chosen by the selector? Of its words only key=value is looked at; others are taken to fit. */
static bool chosen(const json_t *labels, const char *selector)
{
	char key[400];
	for (const char *p = selector; *p;) {
		size_t n = strcspn(p, ","), k = 0;
		while (k < n && p[k] != '=' && p[k] != '!' && p[k] != ' ' && p[k] != '(')
			k++;
		if (k < n && k < sizeof key && p[k] == '=') {
			size_t v = k + 1 + (p[k + 1] == '=');
			memcpy(key, p, k);
			key[k] = 0;
			const json_t *have = json_object_get(labels, key);
			if (!json_is_string(have) || !span_eq(span_of(json_string_value(have), json_string_length(have)), span_of(p + v, n - v)))
				return false;
		}
		p += n + (p[n] == ',');
	}
	return true;
}

static bool read_set(struct kube_object *k, const struct control_config *cfg, const json_t *o)
{
	bool bad = false;
	const json_t *spec = json_object_get(o, "spec");
	k->set = (struct control_set){.name = k->name,
		.ring = text_at(k, AT(o, "metadata", "labels", KUBE_RING_LABEL), &bad),
		.service = text_at(k, json_object_get(spec, "serviceName"), &bad),
		.first = number_at(AT(spec, "ordinals", "start"), 0),
		.replicas = number_at(json_object_get(spec, "replicas"), 1),
		.leaving = AT(o, "metadata", "deletionTimestamp") != NULL,
		.blind = !chosen(AT(spec, "template", "metadata", "labels"), cfg->label)};
	return !bad;
}

static bool read_pod(struct kube_object *k, const struct control_config *cfg, const json_t *o)
{
	bool bad = false;
	const json_t *owners = AT(o, "metadata", "ownerReferences"), *zone = NULL;
	struct control_pod *p = &k->pod;
	if (cfg->az_annotation)
		zone = AT(o, "metadata", "annotations", cfg->az_annotation);
	if (!zone)
		zone = AT(o, "metadata", "labels", KUBE_ZONE_LABEL);
	*p = (struct control_pod){.name = k->name,
		.uid = text_at(k, AT(o, "metadata", "uid"), &bad),
		.ip = text_at(k, AT(o, "status", "podIP"), &bad),
		.node = text_at(k, AT(o, "spec", "nodeName"), &bad),
		.zone = text_at(k, zone, &bad),
		.set = SPAN(""),
		.terminating = AT(o, "metadata", "deletionTimestamp") != NULL};
	const json_t *phase = AT(o, "status", "phase");
	p->running = json_is_string(phase) && strcmp(json_string_value(phase), "Running") == 0;
	for (size_t i = 0; i < json_array_size(owners); i++) {
		const json_t *owner = json_array_get(owners, i), *kind = json_object_get(owner, "kind");
		if (json_is_true(json_object_get(owner, "controller")) && json_is_string(kind) && strcmp(json_string_value(kind), "StatefulSet") == 0)
			p->set = text_at(k, json_object_get(owner, "name"), &bad);
	}
	return !bad;
}

static bool read_map(struct kube_object *k, const struct control_config *cfg, const json_t *o)
{
	bool bad = false;
	const json_t *text = AT(o, "data", cfg->file_name);
	k->map = (struct kube_map){.version = text_at(k, AT(o, "metadata", "resourceVersion"), &bad),
		.written = text_at(k, AT(o, "metadata", "annotations", KUBE_WRITTEN), &bad)};
	if (json_is_string(text))
		k->map.text = text_at(k, text, &bad);
	return !bad;
}

static bool read_node(struct kube_object *k, const json_t *o)
{
	bool bad = false;
	k->node_zone = text_at(k, AT(o, "metadata", "labels", KUBE_ZONE_LABEL), &bad);
	return !bad;
}

static bool read_kind(struct kube_object *k, const struct control_config *cfg, const json_t *o)
{
	switch (k->kind) {
	case KUBE_SETS:
		return read_set(k, cfg, o);
	case KUBE_PODS:
		return read_pod(k, cfg, o);
	case KUBE_NODES:
		return read_node(k, o);
	default:
		return read_map(k, cfg, o);
	}
}

struct kube_object *kube_object_read(enum kube_kind kind, const struct control_config *cfg, const json_t *o, struct err *err)
{
	bool bad = false;
	struct kube_object *k = calloc(1, sizeof *k);
	if (!k) {
		err_set(err, ERR_NOMEM, "no memory for an object");
		return NULL;
	}
	arena_init(&k->arena, LIMIT_KUBE_OBJECT_BYTES);
	k->kind = kind;
	k->name = text_at(k, AT(o, "metadata", "name"), &bad);
	if (!bad && k->name.n == 0) {
		err_set(err, ERR_INVALID, "an object without a name");
		kube_object_free(k);
		return NULL;
	}
	if (!bad)
		bad = !read_kind(k, cfg, o);
	if (bad) {
		err_set(err, ERR_NOMEM, "no memory for %s", k->name.p ? "an object's fields" : "an object's name");
		kube_object_free(k);
		return NULL;
	}
	return k;
}

void kube_object_free(struct kube_object *o)
{
	if (!o)
		return;
	arena_free(&o->arena);
	free(o);
}
