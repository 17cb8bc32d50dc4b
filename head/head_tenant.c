/* head/head_tenant.c - tenants: a name, a number, a salt for hashes, and the list of open windows.
 *
 * A tenant is made by its first write and stays: about 300 bytes. What bounds their number is the memory limit.
 */
#include <xxhash.h>
#include "head/head_int.h"

static uint32_t slot_of(const struct head *h, struct span name)
{
	return (uint32_t)XXH3_64bits_withSecret(name.p, name.n, h->secret, sizeof h->secret);
}

static struct tenant *find_locked(struct head *h, struct span name, uint32_t hash)
{
	if (!h->tenant_slots)
		return NULL;
	for (uint32_t i = hash & h->tenant_mask; h->tenant_slots[i]; i = (i + 1) & h->tenant_mask) {
		struct tenant *tn = h->tenants[h->tenant_slots[i] - 1];
		if (span_eq(head_tenant_name(tn), name))
			return tn;
	}
	return NULL;
}

struct tenant *head_tenant_find(struct head *h, struct span name)
{
	pthread_rwlock_rdlock(&h->tenants_mu);
	struct tenant *tn = find_locked(h, name, slot_of(h, name));
	pthread_rwlock_unlock(&h->tenants_mu);
	return tn;
}

struct tenant *head_tenant_at(struct head *h, uint32_t idx)
{
	pthread_rwlock_rdlock(&h->tenants_mu);
	struct tenant *tn = h->tenants[idx];
	pthread_rwlock_unlock(&h->tenants_mu);
	return tn;
}

static bool grow_locked(struct head *h)
{
	uint32_t cap = h->cap_tenants ? h->cap_tenants * 2 : 16, mask = cap * 2 - 1;
	uint32_t *slots = calloc((size_t)mask + 1, sizeof *slots);
	struct tenant **v = slots ? realloc(h->tenants, cap * sizeof *v) : NULL;
	if (!v) {
		free(slots);
		return false;
	}
	for (uint32_t k = 0; k < h->n_tenants; k++) {
		uint32_t i = slot_of(h, head_tenant_name(v[k])) & mask;
		while (slots[i])
			i = (i + 1) & mask;
		slots[i] = k + 1;
	}
	head_memory_add(h, (cap - h->cap_tenants) * (sizeof *v + 2 * sizeof *slots));
	free(h->tenant_slots);
	h->tenant_slots = slots;
	h->tenants = v;
	h->cap_tenants = cap;
	h->tenant_mask = mask;
	return true;
}

static struct tenant *new_locked(struct head *h, struct span name, uint32_t hash)
{
	if (h->n_tenants == h->cap_tenants && !grow_locked(h))
		return NULL;
	struct tenant *tn = calloc(1, sizeof *tn + name.n + 1);
	if (!tn)
		return NULL;
	tn->head = h;
	tn->idx = h->n_tenants;
	tn->name_bytes = (uint32_t)name.n;
	memcpy(tn->name, name.p, name.n);
	io_random(&tn->salt, sizeof tn->salt);
	pthread_mutex_init(&tn->mu, NULL);
	head_memory_add(h, sizeof *tn + name.n + 1);
	uint32_t i = hash & h->tenant_mask;
	while (h->tenant_slots[i])
		i = (i + 1) & h->tenant_mask;
	h->tenant_slots[i] = tn->idx + 1;
	h->tenants[h->n_tenants++] = tn;
	return tn;
}

errc head_tenant_get(struct head *h, struct span name, struct tenant **out, struct err *err)
{
	*out = head_tenant_find(h, name);
	if (*out)
		return OK;
	pthread_rwlock_wrlock(&h->tenants_mu);
	uint32_t hash = slot_of(h, name);
	*out = find_locked(h, name, hash);
	if (!*out)
		*out = new_locked(h, name, hash);
	pthread_rwlock_unlock(&h->tenants_mu);
	return *out ? OK : err_set(err, ERR_NOMEM, "no memory for tenant %.*s", SPAN_ARG(name));
}

/* ---- windows by start: a backfill of ten years has 43,800 of them open ---- */

enum { INDEX_WINDOWS_MIN = 64 };

static struct window **start_chain(const struct tenant *tn, int64_t start)
{
	return &tn->by_start[(uint32_t)((uint64_t)start * UINT64_C(0x9e3779b97f4a7c15) >> 32) & tn->start_mask];
}

void head_tenant_index_grow_locked(struct tenant *tn)
{
	if (tn->cap_windows < INDEX_WINDOWS_MIN)
		return;
	struct window **v = calloc(tn->cap_windows, sizeof *v);
	if (!v)
		return; /* what there is goes on, with longer chains */
	head_memory_add(tn->head, (tn->cap_windows - (tn->by_start ? tn->start_mask + 1 : 0)) * sizeof *v);
	free(tn->by_start);
	tn->by_start = v;
	tn->start_mask = tn->cap_windows - 1;
	for (uint32_t i = tn->n_windows; i-- > 0;) {
		struct window *w = tn->windows[i], **chain = start_chain(tn, w->start);
		w->next_start = *chain;
		*chain = w;
	}
}

void head_tenant_index_add_locked(struct tenant *tn, struct window *w)
{
	tn->n_other_range += w->range != tn->head->cfg.block_range_ms;
	if (!tn->by_start)
		return;
	struct window **at = start_chain(tn, w->start);
	while (*at)
		at = &(*at)->next_start;
	*at = w;
}

void head_tenant_index_remove_locked(struct tenant *tn, struct window *w)
{
	tn->n_other_range -= w->range != tn->head->cfg.block_range_ms;
	if (!tn->by_start)
		return;
	struct window **at = start_chain(tn, w->start);
	while (*at != w)
		at = &(*at)->next_start;
	*at = w->next_start;
	w->next_start = NULL;
}

/* Opened first among those that contain t: windows of another length may overlap after a restart, and a retry must find the one that took the
 * sample the first time. */
struct window *head_tenant_window_locked(const struct tenant *tn, int64_t t)
{
	if (tn->by_start && tn->n_other_range == 0) {
		struct window *w = *start_chain(tn, floor_to(t, tn->head->cfg.block_range_ms));
		while (w && !(w->state == WINDOW_OPEN && range_has(w->start, w->range, t)))
			w = w->next_start;
		return w;
	}
	for (uint32_t i = 0; i < tn->n_windows; i++) {
		struct window *w = tn->windows[i];
		if (w->state == WINDOW_OPEN && range_has(w->start, w->range, t))
			return w;
	}
	return NULL;
}

errc head_tenant_window(struct tenant *tn, int64_t t, int64_t arrival_ms, struct window **out, struct err *err)
{
	errc rc = OK;
	struct head *h = tn->head;
	pthread_mutex_lock(&tn->mu);
	struct window *w = head_tenant_window_locked(tn, t);
	if (!w)
		TRY(head_window_open_locked(tn, NULL, floor_to(t, h->cfg.block_range_ms), h->cfg.block_range_ms, arrival_ms, &w, err));
	*out = head_window_ref(w);
fail:
	pthread_mutex_unlock(&tn->mu);
	return rc;
}

void head_tenants_destroy(struct head *h)
{
	for (uint32_t i = 0; i < h->n_tenants; i++) {
		head_annotations_forget(h->tenants[i]);
		pthread_mutex_destroy(&h->tenants[i]->mu);
		free(h->tenants[i]->windows);
		free(h->tenants[i]->by_start);
		free(h->tenants[i]);
	}
	free(h->tenants);
	free(h->tenant_slots);
}
