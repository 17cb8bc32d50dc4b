/* bucket/bucket_catalog_hide.c - tenants that are being deleted: their blocks are in no plan, whatever rows there are. Told anew at each start, by whoever deletes. */
#include <stdlib.h>
#include <string.h>
#include "bucket/bucket_catalog_int.h"

struct catalog_hidden {
	struct catalog_hidden *next;
	int64_t upto_ms;
	size_t n;
	char tenant[];
};

errc catalog_hide(struct catalog *c, struct span tenant, int64_t upto_ms, struct err *err)
{
	pthread_mutex_lock(&c->mu);
	struct catalog_hidden *h = c->hidden;
	while (h && !span_eq(span_of(h->tenant, h->n), tenant))
		h = h->next;
	if (!h && (h = calloc(1, sizeof *h + tenant.n))) {
		memcpy(h->tenant, tenant.p, tenant.n);
		h->n = tenant.n;
		h->next = c->hidden;
		c->hidden = h;
	}
	if (h)
		h->upto_ms = upto_ms;
	pthread_mutex_unlock(&c->mu);
	return h ? OK : err_set(err, ERR_NOMEM, "no memory to hide a tenant's blocks");
}

int64_t catalog_hidden_upto(struct catalog *c, struct span tenant)
{
	pthread_mutex_lock(&c->mu);
	const struct catalog_hidden *h = c->hidden;
	while (h && !span_eq(span_of(h->tenant, h->n), tenant))
		h = h->next;
	int64_t upto = h ? h->upto_ms : INT64_MIN;
	pthread_mutex_unlock(&c->mu);
	return upto;
}

void catalog_hidden_free(struct catalog *c)
{
	while (c->hidden) {
		struct catalog_hidden *h = c->hidden;
		c->hidden = h->next;
		free(h);
	}
}
