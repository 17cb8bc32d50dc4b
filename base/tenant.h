/* base/tenant.h - the one function that judges a tenant's name, called at every door: header, label, log, catalog, bucket.
 *
 * A tenant's name reaches paths, rows and metrics, so it is checked before anything is named after it.
 */
#pragma once
#include "base/span.h"

enum { TENANT_NAME_MAX = 128 };
#define TENANT_DEFAULT "default-tenant"

/* [A-Za-z0-9_-][A-Za-z0-9._-]{0,127}; "." and ".." fail by the first character. */
bool tenant_valid(struct span name);
