/* base/base_tenant.c - see base/tenant.h. */
#include "base/tenant.h"

static bool plain(uint8_t c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

bool tenant_valid(struct span name)
{
	if (name.n == 0 || name.n > TENANT_NAME_MAX || !plain((uint8_t)name.p[0]))
		return false;
	for (size_t i = 1; i < name.n; i++)
		if (!plain((uint8_t)name.p[i]) && name.p[i] != '.')
			return false;
	return true;
}
