/* net/net_tenant.c - whose request is it: one rule for every door (base/tenant.h judges the name).
 *
 *     certificate's field (tenant_field) ─ or, without one: tenant_header ─▶ THANOS-TENANT ─▶ X-Scope-OrgID ─▶ tenant_default
 *
 * A certificate decides alone: a header that says something else is not looked at, as in Thanos, so nobody who has a certificate writes or reads as
 * another. Where tenants have certificates, a request without a verified one, or without the field, has no tenant and is refused.
 *
 * What a certificate says holds for its connection, so it is read once for each.
 */
#include <gnutls/x509.h>
#include "net/net_int.h"

static errc judge(struct span tenant, struct err *err)
{
	if (!tenant_valid(tenant))
		return err_id(
			err, ERRID_TENANT, ERR_INVALID, "tenant name of %zu bytes is not of the form [A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", tenant.n);
	return OK;
}

/* ---- headers ---- */

static errc tenant_of_headers(struct http_request *r, struct span *tenant, struct err *err)
{
	const struct http_server_config *cfg = &r->server->cfg;
	struct span other = http_header(r, "X-Scope-OrgID");
	*tenant = cfg->tenant_header ? http_header(r, cfg->tenant_header) : (struct span){NULL, 0};
	if (!tenant->p)
		*tenant = http_header(r, "THANOS-TENANT");
	if (!tenant->p)
		*tenant = other;
	if (!tenant->p)
		*tenant = span_cstr(cfg->tenant_default ? cfg->tenant_default : TENANT_DEFAULT);
	/* A proxy that sets one of them must not be outwitted by a client that sends the other. */
	if (other.p && !span_eq(other, *tenant))
		return err_id(err, ERRID_TENANT, ERR_INVALID, "the tenant's header and X-Scope-OrgID name two tenants: send one of them");
	return OK;
}

/* ---- certificates ---- */

static const struct {
	const char *oid, *words;
	bool last; /* of several, as Go's x509 has it */
} fields[] = {
	[HTTP_TENANT_ORGANIZATION] = {GNUTLS_OID_X520_ORGANIZATION_NAME, "organization", false},
	[HTTP_TENANT_ORGANIZATIONAL_UNIT] = {GNUTLS_OID_X520_ORGANIZATIONAL_UNIT_NAME, "organizational unit", false},
	[HTTP_TENANT_COMMON_NAME] = {GNUTLS_OID_X520_COMMON_NAME, "common name", true},
};

/* The subject's field into the connection. What is longer than a tenant's name can be is no name, whatever it says. */
static enum net_certified field_read(struct net_conn *c, gnutls_x509_crt_t crt, enum http_tenant_field field)
{
	enum net_certified found = CERTIFIED_NOTHING;
	for (unsigned i = 0; i == 0 || fields[field].last; i++) {
		char text[TENANT_NAME_MAX + 2];
		size_t n = sizeof text;
		int e = gnutls_x509_crt_get_dn_by_oid(crt, fields[field].oid, i, 0, text, &n);
		if (e == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
			break;
		found = e == 0 && n > 0 ? CERTIFIED_TENANT : CERTIFIED_NOTHING;
		if (found == CERTIFIED_TENANT) {
			memcpy(c->certified_tenant, text, n);
			c->certified_n = (uint32_t)n;
		} else if (e == GNUTLS_E_SHORT_MEMORY_BUFFER) {
			found = CERTIFIED_TENANT;
			c->certified_n = sizeof c->certified_tenant; /* which no name has */
		}
	}
	return found;
}

static enum net_certified certificate_read(struct net_conn *c, enum http_tenant_field field)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(c->mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION);
	unsigned n = 0;
	/* What nobody verified may say anything. */
	if (!c->web || !net_tls_verifies(c->web) || !info || !info->tls_session)
		return CERTIFIED_NOBODY;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(info->tls_session, &n);
	gnutls_x509_crt_t crt;
	enum net_certified found = CERTIFIED_NOBODY;
	if (!chain || n == 0 || gnutls_x509_crt_init(&crt) != 0)
		return CERTIFIED_NOBODY;
	if (gnutls_x509_crt_import(crt, &chain[0], GNUTLS_X509_FMT_DER) == 0)
		found = field_read(c, crt, field);
	gnutls_x509_crt_deinit(crt);
	return found;
}

static errc tenant_of_certificate(struct http_request *r, struct span *tenant, struct err *err)
{
	struct net_conn *c = r->conn;
	enum http_tenant_field field = r->server->cfg.tenant_field;
	if (c->certified == CERTIFIED_UNREAD)
		c->certified = certificate_read(c, field);
	if (c->certified == CERTIFIED_NOBODY)
		return err_id(err, ERRID_TENANT, ERR_INVALID, "a client certificate must name the tenant, and there is none that was verified");
	if (c->certified == CERTIFIED_NOTHING)
		return err_id(err, ERRID_TENANT, ERR_INVALID, "the client's certificate has no %s, which must name the tenant", fields[field].words);
	/* The connection may be gone before the request is. */
	*tenant = arena_dup(&r->arena, span_of(c->certified_tenant, c->certified_n));
	if (!tenant->p)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a tenant's name");
	return OK;
}

errc http_tenant(struct http_request *r, struct span *tenant, struct err *err)
{
	errc rc = OK;
	TRY((r->server->cfg.tenant_field != HTTP_TENANT_NONE ? tenant_of_certificate : tenant_of_headers)(r, tenant, err));
	TRY(judge(*tenant, err));
fail:
	return rc;
}

errc http_tenant_of_peer(const struct http_request *r, struct span *tenant, struct err *err)
{
	*tenant = http_header(r, "THANOS-TENANT");
	return judge(*tenant, err);
}
