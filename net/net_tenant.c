/* net/net_tenant.c - whose request is it: one rule for every door (base/tenant.h judges the name). */
#include "base/tenant.h"
#include "net/net.h"

errc http_tenant(const struct http_request *r, struct span *tenant, struct err *err)
{
	*tenant = http_header(r, "THANOS-TENANT");
	if (!tenant->p)
		*tenant = http_header(r, "X-Scope-OrgID");
	if (!tenant->p)
		*tenant = span_cstr(TENANT_DEFAULT);
	if (!tenant_valid(*tenant))
		return err_id(
			err, ERRID_TENANT, ERR_INVALID, "tenant name of %zu bytes is not of the form [A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", tenant->n);
	return OK;
}
