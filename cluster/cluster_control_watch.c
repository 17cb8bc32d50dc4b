/* cluster/cluster_control_watch.c - what the API has, kept up to date: for each kind a list, then the changes since, and a list again when those are lost.
 *
 *     list (pages) ──resourceVersion──▶ watch ──event──▶ put or remove, wake ──┐
 *       ▲                                 ▲────────────────────────────────────┤  ended by the server (minutes): from the last version on
 *       │                                 └──────── back-off, connection lost ─┤
 *       └── 410 Gone (the version is too old), or RELIST_MS since the last ────┘
 *
 * A list replaces what there was as a whole, so that what was removed unseen is gone as well. While a watch is broken the last state stands: old, but whole;
 * watches_fresh says so, and nothing is decided by it.
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "cluster/cluster_control_int.h"

enum { BACKOFF_MS = 200, BACKOFF_MAX_MS = 5000, RELIST_MS = 300000, WATCH_SECONDS = 240 };

static const char *const kind_names[KUBE_KINDS] = {"StatefulSets", "Pods", "the base ConfigMap", "the generated ConfigMap", "Nodes"};

struct store { /* objects, sorted by name */
	struct kube_object **v;
	size_t n, cap;
};

struct watch {
	struct watches *all;
	enum kube_kind kind;
	char *path; /* of the list, with its selector; NULL: there is nothing to watch */
	pthread_t thread;
	bool started;
	/* the thread's own */
	char version[128];
	int64_t listed_ms;
	bool said; /* that it is broken */
	/* guarded by all->mu */
	struct store store;
	bool synced, standing;
	char why[ERR_MSG_BYTES];
};

struct watches {
	const struct control_config *cfg;
	struct kube *kube;
	void (*woken)(void *arg);
	void *arg;
	pthread_mutex_t mu;
	pthread_cond_t wake;
	bool stop;
	struct watch kinds[KUBE_KINDS];
	struct metric *lists, *broken;
};

/* ---- a store ---- */

static size_t place_of(const struct store *s, struct span name)
{
	size_t lo = 0, hi = s->n;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (span_cmp(s->v[mid]->name, name) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static void store_remove(struct store *s, struct span name)
{
	size_t i = place_of(s, name);
	if (i == s->n || !span_eq(s->v[i]->name, name))
		return;
	kube_object_free(s->v[i]);
	memmove(s->v + i, s->v + i + 1, (s->n - i - 1) * sizeof *s->v);
	s->n--;
}

/* Takes o, also when it fails. */
static errc store_put(struct store *s, struct kube_object *o, struct err *err)
{
	errc rc = OK;
	size_t i = place_of(s, o->name);
	if (i < s->n && span_eq(s->v[i]->name, o->name)) {
		kube_object_free(s->v[i]);
		s->v[i] = o;
		return OK;
	}
	CHECK(s->n < LIMIT_KUBE_OBJECTS, ERR_LIMIT, "more than %d objects", LIMIT_KUBE_OBJECTS);
	if (s->n == s->cap) {
		size_t cap = s->cap ? 2 * s->cap : 16;
		struct kube_object **grown = realloc(s->v, cap * sizeof *grown);
		CHECK(grown, ERR_NOMEM, "no memory for objects");
		s->v = grown;
		s->cap = cap;
	}
	memmove(s->v + i + 1, s->v + i, (s->n - i) * sizeof *s->v);
	s->v[i] = o;
	s->n++;
	return OK;
fail:
	kube_object_free(o);
	return rc;
}

static void store_free(struct store *s)
{
	for (size_t i = 0; i < s->n; i++)
		kube_object_free(s->v[i]);
	free(s->v);
	*s = (struct store){0};
}

/* ---- list ---- */

static void keep_version(struct watch *w, const json_t *o)
{
	const char *v = json_string_value(json_object_get(json_object_get(o, "metadata"), "resourceVersion"));
	if (v && strlen(v) < sizeof w->version)
		strcpy(w->version, v);
}

static errc put_items(struct watch *w, const json_t *list, struct store *s, struct err *err)
{
	errc rc = OK;
	const json_t *items = json_object_get(list, "items");
	for (size_t i = 0; i < json_array_size(items); i++) {
		struct err one = {0};
		struct kube_object *o = kube_object_read(w->kind, w->all->cfg, json_array_get(items, i), &one);
		CHECK(o || one.code != ERR_NOMEM, ERR_NOMEM, "%s", one.msg);
		if (o)
			TRY(store_put(s, o, err));
	}
fail:
	return rc;
}

/* For a query: what is not plain is escaped. */
static errc put_escaped(struct buf *b, const char *s, struct err *err)
{
	for (; *s; s++) {
		if ((*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9') || strchr("-._~", *s))
			buf_u8(b, (uint8_t)*s);
		else
			buf_printf(b, "%%%02X", (unsigned)(uint8_t)*s);
	}
	return b->failed ? err_set(err, ERR_NOMEM, "no memory for a path") : OK;
}

static errc list(struct watch *w, struct err *err)
{
	errc rc = OK;
	struct store fresh = {0};
	json_t *page = NULL;
	struct buf path;
	buf_init(&path, MIB);
	metric_add(w->all->lists, 1);
	const char *more = NULL;
	do {
		buf_clear(&path);
		buf_printf(&path, "%s&limit=%d", w->path, LIMIT_KUBE_PAGE);
		if (more) {
			buf_printf(&path, "&continue=");
			TRY(put_escaped(&path, more, err));
		}
		buf_u8(&path, 0);
		CHECK(!path.failed, ERR_NOMEM, "no memory for a path");
		json_decref(page);
		page = NULL;
		TRY(kube_call(w->all->kube, "GET", (const char *)path.p, NULL, NULL, &page, err));
		TRY(put_items(w, page, &fresh, err));
		more = json_string_value(json_object_get(json_object_get(page, "metadata"), "continue"));
	} while (more && *more);
	keep_version(w, page);
	w->listed_ms = io_mono_ms();
	pthread_mutex_lock(&w->all->mu);
	struct store old = w->store;
	w->store = fresh;
	w->synced = w->standing = true;
	pthread_mutex_unlock(&w->all->mu);
	fresh = old;
	w->all->woken(w->all->arg);
fail:
	store_free(&fresh);
	json_decref(page);
	buf_free(&path);
	return rc;
}

/* ---- watch ---- */

static errc take_event(void *arg, struct span line, struct err *err)
{
	errc rc = OK;
	struct watch *w = arg;
	json_error_t e;
	struct kube_object *o = NULL;
	json_t *event = json_loadb(line.p, line.n, 0, &e);
	CHECK(event, ERR_NET, "an event that is no JSON: %s", e.text);
	const char *type = json_string_value(json_object_get(event, "type"));
	const json_t *object = json_object_get(event, "object");
	CHECK(type && object, ERR_NET, "an event without type or object");
	if (strcmp(type, "ERROR") == 0) {
		const char *words = json_string_value(json_object_get(object, "message"));
		if (json_integer_value(json_object_get(object, "code")) == 410)
			w->version[0] = 0;
		rc = err_set(err, ERR_NET, "the watch was ended: %s", words ? words : "without a reason");
		goto fail;
	}
	keep_version(w, object);
	if (strcmp(type, "BOOKMARK") == 0)
		goto fail;
	o = kube_object_read(w->kind, w->all->cfg, object, err);
	if (!o) {
		w->version[0] = 0;
		rc = ERR_NOMEM;
		goto fail;
	}
	pthread_mutex_lock(&w->all->mu);
	if (strcmp(type, "DELETED") == 0) {
		store_remove(&w->store, o->name);
		kube_object_free(o);
	} else {
		rc = store_put(&w->store, o, err);
	}
	pthread_mutex_unlock(&w->all->mu);
	if (rc)
		w->version[0] = 0; /* it is missing now: list again */
	w->all->woken(w->all->arg);
fail:
	json_decref(event);
	return rc;
}

static errc watch_once(struct watch *w, struct err *err)
{
	errc rc = OK;
	char *path = NULL;
	bool gone = false;
	if (!w->version[0] || io_mono_ms() - w->listed_ms > RELIST_MS)
		TRY(list(w, err));
	int seconds = WATCH_SECONDS - (int)(io_random_u64() % (WATCH_SECONDS / 4)); /* not all at once */
	if (asprintf(&path, "%s&watch=1&allowWatchBookmarks=true&resourceVersion=%s&timeoutSeconds=%d", w->path, w->version, seconds) < 0)
		return err_set(err, ERR_NOMEM, "no memory for a path");
	rc = kube_stream(w->all->kube, path, take_event, w, &gone, err);
	if (gone)
		w->version[0] = 0;
fail:
	free(path);
	return rc;
}

static void broken(struct watch *w, const struct err *err)
{
	metric_add(w->all->broken, 1);
	pthread_mutex_lock(&w->all->mu);
	bool was = w->standing || !w->said;
	w->standing = false;
	snprintf(w->why, sizeof w->why, "%s", err->msg);
	pthread_mutex_unlock(&w->all->mu);
	if (was && err->code != ERR_CANCELED)
		log_warn("a watch is broken; what was seen last stands", LSTR("of", kind_names[w->kind]), LERR(err));
	w->said = true;
	w->all->woken(w->all->arg);
}

static bool rest(struct watches *all, int64_t ms)
{
	int64_t until = io_mono_ns() + ms * 1000000;
	struct timespec t = {until / 1000000000, until % 1000000000};
	pthread_mutex_lock(&all->mu);
	while (!all->stop)
		if (pthread_cond_timedwait(&all->wake, &all->mu, &t) != 0)
			break;
	bool stop = all->stop;
	pthread_mutex_unlock(&all->mu);
	return !stop;
}

static void *run(void *arg)
{
	struct watch *w = arg;
	int64_t wait_ms = BACKOFF_MS;
	for (;;) {
		struct err err = {0};
		int64_t began_ms = io_mono_ms();
		errc rc = watch_once(w, &err);
		if (rc) {
			/* a list again at once finds what changed meanwhile, and says whether the API is there */
			broken(w, &err);
			w->version[0] = 0;
			if (io_mono_ms() - began_ms > 10 * BACKOFF_MAX_MS)
				wait_ms = BACKOFF_MS;
		} else {
			wait_ms = BACKOFF_MS;
			w->said = false;
		}
		int64_t pause_ms = rc ? wait_ms / 2 + (int64_t)(io_random_u64() % (uint64_t)wait_ms) : 1;
		if (!rest(w->all, pause_ms))
			return NULL;
		if (rc)
			wait_ms = 2 * wait_ms < BACKOFF_MAX_MS ? 2 * wait_ms : BACKOFF_MAX_MS;
	}
}

/* ---- what there is ---- */

bool watches_synced(struct watches *w, char *why, size_t n)
{
	bool good = true;
	pthread_mutex_lock(&w->mu);
	for (int i = 0; i < KUBE_KINDS && good; i++)
		if (w->kinds[i].path && !w->kinds[i].synced) {
			good = false;
			snprintf(why, n, "%s were not listed yet%s%s", kind_names[i], w->kinds[i].why[0] ? ": " : "", w->kinds[i].why);
		}
	pthread_mutex_unlock(&w->mu);
	return good;
}

bool watches_fresh(struct watches *w, char *why, size_t n)
{
	bool good = true;
	pthread_mutex_lock(&w->mu);
	for (int i = 0; i < KUBE_KINDS && good; i++)
		if (w->kinds[i].path && !w->kinds[i].standing) {
			good = false;
			snprintf(why, n, "the watch of %s is broken: %s", kind_names[i], w->kinds[i].why);
		}
	pthread_mutex_unlock(&w->mu);
	return good;
}

static bool copied(struct arena *a, struct span *s)
{
	if (!s->p)
		return true;
	*s = arena_dup(a, *s);
	return s->p != NULL;
}

static bool copy_map(struct arena *a, const struct store *s, struct kube_map *out, bool *has)
{
	*has = s->n > 0;
	if (!*has)
		return true;
	*out = s->v[0]->map;
	return copied(a, &out->version) && copied(a, &out->text) && copied(a, &out->written);
}

static struct span zone_of_node(const struct store *nodes, struct span name)
{
	size_t i = place_of(nodes, name);
	return i < nodes->n && span_eq(nodes->v[i]->name, name) ? nodes->v[i]->node_zone : SPAN("");
}

static bool copy_all(struct watches *w, struct arena *a, struct watched *out)
{
	const struct store *sets = &w->kinds[KUBE_SETS].store, *pods = &w->kinds[KUBE_PODS].store;
	bool good = true;
	out->n_sets = sets->n;
	out->n_pods = pods->n;
	out->sets = arena_calloc(a, sets->n, sizeof *out->sets);
	out->pods = arena_calloc(a, pods->n, sizeof *out->pods);
	if (!out->sets || !out->pods)
		return false;
	for (size_t i = 0; i < sets->n && good; i++) {
		struct control_set *s = &out->sets[i];
		*s = sets->v[i]->set;
		good = copied(a, &s->name) && copied(a, &s->ring) && copied(a, &s->service);
	}
	for (size_t i = 0; i < pods->n && good; i++) {
		struct control_pod *p = &out->pods[i];
		*p = pods->v[i]->pod;
		if (p->zone.n == 0 && p->node.n > 0)
			p->zone = zone_of_node(&w->kinds[KUBE_NODES].store, p->node);
		good = copied(a, &p->name) && copied(a, &p->uid) && copied(a, &p->ip) && copied(a, &p->node) && copied(a, &p->zone) &&
		       copied(a, &p->set);
	}
	return good && copy_map(a, &w->kinds[KUBE_BASE].store, &out->base, &out->has_base) &&
	       copy_map(a, &w->kinds[KUBE_GENERATED].store, &out->generated, &out->has_generated);
}

errc watches_view(struct watches *w, struct arena *arena, struct watched *out, struct err *err)
{
	*out = (struct watched){0};
	pthread_mutex_lock(&w->mu);
	bool good = copy_all(w, arena, out);
	pthread_mutex_unlock(&w->mu);
	return good ? OK : err_set(err, ERR_NOMEM, "no memory to look at %zu Pods", out->n_pods);
}

errc watches_put(struct watches *w, enum kube_kind kind, const json_t *object, struct err *err)
{
	struct kube_object *o = kube_object_read(kind, w->cfg, object, err);
	if (!o)
		return ERR_NOMEM;
	pthread_mutex_lock(&w->mu);
	errc rc = store_put(&w->kinds[kind].store, o, err);
	pthread_mutex_unlock(&w->mu);
	return rc;
}

/* ---- life ---- */

static errc set_path(struct watch *w, const char *prefix, const char *kind, const char *selector, const char *value, struct err *err)
{
	errc rc = OK;
	struct buf b;
	buf_init(&b, MIB);
	buf_printf(&b, "%s/namespaces/%s/%s?%s=", prefix, kube_namespace(w->all->kube), kind, selector);
	TRY(put_escaped(&b, value, err));
	buf_u8(&b, 0);
	CHECK(!b.failed && (w->path = strdup((const char *)b.p)), ERR_NOMEM, "no memory for a path");
fail:
	buf_free(&b);
	return rc;
}

static errc set_map_path(struct watch *w, const char *name, struct err *err)
{
	char field[300];
	snprintf(field, sizeof field, "metadata.name=%s", name);
	return set_path(w, "/api/v1", "configmaps", "fieldSelector", field, err);
}

errc watches_open(const struct control_config *cfg, struct kube *k, void (*woken)(void *arg), void *arg, struct watches **out, struct err *err)
{
	errc rc = OK;
	struct watches *w = calloc(1, sizeof *w);
	if (!w)
		return err_set(err, ERR_NOMEM, "no memory for watches");
	w->cfg = cfg;
	w->kube = k;
	w->woken = woken;
	w->arg = arg;
	w->lists = metric_counter("varve_control_lists_total", "Lists of the Kubernetes API that were asked for");
	w->broken = metric_counter("varve_control_watches_broken_total", "Lists and watches of the Kubernetes API that failed");
	pthread_mutex_init(&w->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->wake, &attr);
	pthread_condattr_destroy(&attr);
	for (int i = 0; i < KUBE_KINDS; i++) {
		w->kinds[i].all = w;
		w->kinds[i].kind = (enum kube_kind)i;
	}
	TRY(set_path(&w->kinds[KUBE_SETS], "/apis/apps/v1", "statefulsets", "labelSelector", cfg->label, err));
	TRY(set_path(&w->kinds[KUBE_PODS], "/api/v1", "pods", "labelSelector", cfg->label, err));
	if (cfg->configmap)
		TRY(set_map_path(&w->kinds[KUBE_BASE], cfg->configmap, err));
	TRY(set_map_path(&w->kinds[KUBE_GENERATED], cfg->generated, err));
	/* of all namespaces, hence rights that not everybody gives */
	if (cfg->az_aware && cfg->node_zones)
		CHECK((w->kinds[KUBE_NODES].path = strdup("/api/v1/nodes?pretty=false")), ERR_NOMEM, "no memory for a path");
	for (int i = 0; i < KUBE_KINDS; i++) {
		struct watch *one = &w->kinds[i];
		if (!one->path)
			continue;
		CHECK(pthread_create(&one->thread, NULL, run, one) == 0, ERR_AGAIN, "no thread to watch");
		one->started = true;
	}
	*out = w;
	return OK;
fail:
	kube_cancel(k);
	watches_close(w);
	return rc;
}

void watches_close(struct watches *w)
{
	if (!w)
		return;
	pthread_mutex_lock(&w->mu);
	w->stop = true;
	pthread_cond_broadcast(&w->wake);
	pthread_mutex_unlock(&w->mu);
	for (int i = 0; i < KUBE_KINDS; i++) {
		if (w->kinds[i].started)
			pthread_join(w->kinds[i].thread, NULL);
		store_free(&w->kinds[i].store);
		free(w->kinds[i].path);
	}
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->mu);
	free(w);
}
