/* head/head_usage.c - how much of the head a tenant holds, and how fast that grows.
 *
 * Series and their bytes are counted where they enter and leave the table, memory where a window's pools grow; both are only added up here. Rates are
 * sums that decay by e in a minute: two numbers, touched once a request, and a steady stream of r a second settles at 60 r.
 */
#include <math.h>
#include "head/head_int.h"

/* A clock that was set back stands still until it is where it was. */
static double rate_now(const struct head_rate *r, int64_t now_ms)
{
	return now_ms > r->at_ms ? r->sum * exp(-(double)(now_ms - r->at_ms) / (double)HEAD_RATE_MS) : r->sum;
}

static void rate_add(struct head_rate *r, int64_t now_ms, uint64_t n)
{
	if (n == 0)
		return;
	r->sum = rate_now(r, now_ms) + (double)n;
	if (now_ms > r->at_ms)
		r->at_ms = now_ms;
}

void head_tenant_account(struct tenant *tn, int64_t now_ms, uint64_t stored, uint64_t created)
{
	if (stored == 0 && created == 0)
		return;
	pthread_mutex_lock(&tn->mu);
	rate_add(&tn->stored, now_ms, stored);
	rate_add(&tn->created, now_ms, created);
	pthread_mutex_unlock(&tn->mu);
}

static void usage_of(struct tenant *tn, int64_t now_ms, struct head_usage *out)
{
	*out = (struct head_usage){
		.tenant = head_tenant_name(tn),
		.series = atomic_load_explicit(&tn->n_series, memory_order_relaxed),
		.memory_bytes = atomic_load_explicit(&tn->series_bytes, memory_order_relaxed),
	};
	pthread_mutex_lock(&tn->mu);
	out->windows = tn->n_windows;
	for (uint32_t i = 0; i < tn->n_windows; i++)
		out->memory_bytes += atomic_load_explicit(&tn->windows[i]->memory_bytes, memory_order_relaxed);
	out->new_series_per_minute = rate_now(&tn->created, now_ms);
	out->samples_per_second = rate_now(&tn->stored, now_ms) / ((double)HEAD_RATE_MS / 1000);
	pthread_mutex_unlock(&tn->mu);
}

void head_tenant_usage(struct head *h, struct span tenant, int64_t now_ms, struct head_usage *out)
{
	struct tenant *tn = head_tenant_find(h, tenant);
	if (tn)
		usage_of(tn, now_ms, out);
	else
		*out = (struct head_usage){.tenant = tenant};
}

errc head_usages(struct head *h, int64_t now_ms, struct arena *arena, struct head_usage **out, size_t *n, struct err *err)
{
	/* Tenants are never removed: those that there are now are found by their numbers. */
	pthread_rwlock_rdlock(&h->tenants_mu);
	uint32_t count = h->n_tenants;
	pthread_rwlock_unlock(&h->tenants_mu);
	*n = 0;
	*out = arena_alloc(arena, count * sizeof **out);
	if (!*out)
		return err_set(err, ERR_NOMEM, "no memory for a list of %u tenants", count);
	for (uint32_t i = 0; i < count; i++)
		usage_of(head_tenant_at(h, i), now_ms, &(*out)[i]);
	*n = count;
	return OK;
}
