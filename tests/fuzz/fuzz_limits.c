/* fuzz: needs ingest */
/* A limits file: whatever is accepted answers for every name it holds and for any other, with numbers that say where they are from; whatever is refused
 * says why.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "base/log.h"
#include "ingest/ingest_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void ask(const struct limits *l, struct span tenant)
{
	const struct tenant_limits *t = limits_of(l, tenant);
	char key[192];
	for (unsigned k = 0; k < TENANT_LIMITS; k++) {
		if (t->v[k] > INT64_MAX)
			abort();
		if (!(t->own & 1u << k) && t->v[k] != l->fallback.v[k])
			abort();
		if (strncmp(limits_key(t, (enum tenant_limit)k, tenant, key, sizeof key), "write.", 6) != 0)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct limits *l = NULL;
	struct err err = {0};
	log_setup(LOG_ERROR, LOG_LOGFMT);
	errc rc = limits_parse("fuzz.yml", span_of(data, size), &l, &err);
	if (rc != OK) {
		if (l || err.code != rc || err.msg[0] == 0)
			abort();
		return 0;
	}
	for (size_t i = 0; i < l->n_tenants; i++) {
		ask(l, l->tenants[i].name);
		if (limits_of(l, l->tenants[i].name) != &l->tenants[i].limits)
			abort();
	}
	ask(l, SPAN("default-tenant"));
	ask(l, span_of(data, size < 128 ? size : 128));
	if (l->remarks.n > 0 && l->remarks.p[l->remarks.n - 1] != '\n')
		abort();
	limits_free(l);
	return 0;
}
