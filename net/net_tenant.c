/* net/net_tenant.c - whose request is it: one rule for every door (base/tenant.h judges the name). */
#include "base/tenant.h"
#include "net/net.h"

errc http_tenant(const struct http_request *r, struct span *tenant, struct err *err)
{
	struct span other = http_header(r, "X-Scope-OrgID");
	*tenant = http_header(r, "THANOS-TENANT");
	if (!tenant->p)
		*tenant = other;
	if (!tenant->p)
		*tenant = span_cstr(TENANT_DEFAULT);
	/* A proxy that sets one of them must not be outwitted by a client that sends the other. */
	if (other.p && !span_eq(other, *tenant))
		return err_id(err, ERRID_TENANT, ERR_INVALID, "THANOS-TENANT and X-Scope-OrgID name two tenants: send one of them");
	if (!tenant_valid(*tenant))
		return err_id(
			err, ERRID_TENANT, ERR_INVALID, "tenant name of %zu bytes is not of the form [A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", tenant->n);
	return OK;
}
