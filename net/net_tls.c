/* net/net_tls.c - TLS by generations: each session gets certificate, rules and client checks of the web config in force when it began.
 *
 * libmicrohttpd knows one certificate for its life. It tells us of a new connection before the handshake, so every session is given its own
 * generation's credentials then; a renewed certificate needs neither a restart nor a new socket, and old sessions keep what they have.
 *
 * Names in the file are Go's, because the format is Prometheus'. A cipher suite of Go names key exchange, cipher and MAC together; GnuTLS is told
 * the union of each, which for the suites Go still offers (all ECDHE, AEAD or SHA-1) allows no combination weaker than the weakest one named.
 */
#include <gnutls/x509.h>
#include <stdlib.h>
#include "net/net_int.h"

static const char *const go_versions[] = {"TLS10", "TLS11", "TLS12", "TLS13"};
static const char *const gnutls_versions[] = {"+VERS-TLS1.0", "+VERS-TLS1.1", "+VERS-TLS1.2", "+VERS-TLS1.3"};

static const struct {
	const char *name;
	const char *parts; /* without the leading ':' */
} suites[] = {
	{"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "+ECDHE-ECDSA:+AES-128-GCM:+AEAD"},
	{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "+ECDHE-RSA:+AES-128-GCM:+AEAD"},
	{"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "+ECDHE-ECDSA:+AES-256-GCM:+AEAD"},
	{"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", "+ECDHE-RSA:+AES-256-GCM:+AEAD"},
	{"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", "+ECDHE-ECDSA:+CHACHA20-POLY1305:+AEAD"},
	{"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", "+ECDHE-RSA:+CHACHA20-POLY1305:+AEAD"},
	{"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "+ECDHE-ECDSA:+CHACHA20-POLY1305:+AEAD"},
	{"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "+ECDHE-RSA:+CHACHA20-POLY1305:+AEAD"},
	{"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", "+ECDHE-ECDSA:+AES-128-CBC:+SHA1"},
	{"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "+ECDHE-RSA:+AES-128-CBC:+SHA1"},
	{"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", "+ECDHE-ECDSA:+AES-256-CBC:+SHA1"},
	{"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", "+ECDHE-RSA:+AES-256-CBC:+SHA1"},
};
static const struct {
	const char *name;
	const char *part;
} curves[] = {
	{"CurveP256", "+GROUP-SECP256R1"},
	{"CurveP384", "+GROUP-SECP384R1"},
	{"CurveP521", "+GROUP-SECP521R1"},
	{"X25519", "+GROUP-X25519"},
};

static errc version_of(const char *name, const struct yaml *tls, const char *key, int *out, struct err *err)
{
	errc rc = OK;
	const char *word = NULL;
	TRY(yaml_string(name, tls, key, &word, err));
	if (!word || !*word)
		return OK;
	for (int i = 0; i < 4; i++) {
		if (strcmp(word, go_versions[i]) == 0) {
			*out = i;
			return OK;
		}
	}
	rc = err_set(err, ERR_INVALID, "%s: %s \"%s\" is not one of TLS10, TLS11, TLS12, TLS13", name, key, word);
fail:
	return rc;
}

static errc add_suites(const char *name, const struct yaml *list, struct buf *out, struct err *err)
{
	errc rc = OK;
	CHECK(list->kind == YAML_LIST, ERR_INVALID, "%s:%d: cipher_suites must be a list", name, list->line);
	if (list->n == 0)
		return OK;
	/* TLS 1.3's own suites are not configurable, as in Go */
	buf_printf(out, ":-KX-ALL:-CIPHER-ALL:-MAC-ALL:+AEAD:+AES-256-GCM:+AES-128-GCM:+CHACHA20-POLY1305");
	bool aead = false;
	for (size_t i = 0; i < list->n; i++) {
		const struct yaml *item = list->items[i];
		size_t k = 0, n = sizeof suites / sizeof suites[0];
		while (k < n && !(item->kind == YAML_SCALAR && span_is(item->scalar, suites[k].name)))
			k++;
		CHECK(k < n, ERR_UNSUPPORTED,
			"%s:%d: cipher suite \"%.*s\" is not supported (TLS 1.2 suites with ECDHE are; those of TLS 1.3 need no naming)", name,
			item->line, SPAN_ARG(item->scalar));
		buf_printf(out, ":%s", suites[k].parts);
		aead |= strstr(suites[k].parts, "AEAD") != NULL;
	}
	CHECK(aead, ERR_UNSUPPORTED, "%s:%d: cipher_suites needs at least one suite with GCM or CHACHA20", name, list->line);
fail:
	return rc;
}

static errc add_curves(const char *name, const struct yaml *list, struct buf *out, struct err *err)
{
	errc rc = OK;
	CHECK(list->kind == YAML_LIST, ERR_INVALID, "%s:%d: curve_preferences must be a list", name, list->line);
	if (list->n)
		buf_printf(out, ":-GROUP-ALL");
	for (size_t i = 0; i < list->n; i++) {
		const struct yaml *item = list->items[i];
		size_t k = 0, n = sizeof curves / sizeof curves[0];
		while (k < n && !(item->kind == YAML_SCALAR && span_is(item->scalar, curves[k].name)))
			k++;
		CHECK(k < n, ERR_UNSUPPORTED, "%s:%d: curve \"%.*s\" is not one of CurveP256, CurveP384, CurveP521, X25519", name, item->line,
			SPAN_ARG(item->scalar));
		buf_printf(out, ":%s", curves[k].part);
	}
fail:
	return rc;
}

errc net_tls_priorities(const char *name, const struct yaml *tls, struct arena *arena, const char **out, struct err *err)
{
	errc rc = OK;
	struct buf b = {0};
	int min = 2, max = 3;
	bool server_order = true;
	buf_init(&b, 4096);
	TRY(version_of(name, tls, "min_version", &min, err));
	TRY(version_of(name, tls, "max_version", &max, err));
	TRY(yaml_bool(name, tls, "prefer_server_cipher_suites", &server_order, err));
	CHECK(min <= max, ERR_INVALID, "%s: min_version %s is above max_version %s", name, go_versions[min], go_versions[max]);
	buf_printf(&b, "NORMAL:-VERS-ALL");
	for (int v = max; v >= min; v--)
		buf_printf(&b, ":%s", gnutls_versions[v]);
	const struct yaml *list = yaml_get(tls, "cipher_suites");
	if (list)
		TRY(add_suites(name, list, &b, err));
	list = yaml_get(tls, "curve_preferences");
	if (list)
		TRY(add_curves(name, list, &b, err));
	if (server_order)
		buf_printf(&b, ":%%SERVER_PRECEDENCE");
	CHECK(!b.failed && (*out = arena_cstr(arena, span_of(b.p, b.n))), ERR_NOMEM, "%s: no memory for its TLS settings", name);
fail:
	buf_free(&b);
	return rc;
}

static gnutls_datum_t datum(struct span s)
{
	return (gnutls_datum_t){(unsigned char *)(uintptr_t)s.p, (unsigned)s.n};
}

errc net_tls_open(struct net_web *w, struct err *err)
{
	errc rc = OK;
	const char *cert = w->tls.cert_file ? w->tls.cert_file : "cert", *key = w->tls.key_file ? w->tls.key_file : "key";
	const char *ca = w->tls.client_ca_file ? w->tls.client_ca_file : "client_ca", *where;
	int e = gnutls_priority_init(&w->priority, w->tls.priorities, &where);
	CHECK(e == 0, ERR_UNSUPPORTED, "TLS settings not possible together: %s", gnutls_strerror(e));
	e = gnutls_certificate_allocate_credentials(&w->creds);
	CHECK(e == 0, ERR_NOMEM, "TLS: %s", gnutls_strerror(e));
	gnutls_datum_t c = datum(w->tls.cert), k = datum(w->tls.key), a = datum(w->tls.client_ca);
	e = gnutls_certificate_set_x509_key_mem(w->creds, &c, &k, GNUTLS_X509_FMT_PEM);
	CHECK(e >= 0, ERR_INVALID, "certificate %s with key %s: %s", cert, key, gnutls_strerror(e));
	if (w->tls.client_ca.p) {
		e = gnutls_certificate_set_x509_trust_mem(w->creds, &a, GNUTLS_X509_FMT_PEM);
		CHECK(e > 0, ERR_INVALID, "client CA %s: %s", ca, e < 0 ? gnutls_strerror(e) : "no certificate in it");
	}
	gnutls_certificate_set_known_dh_params(w->creds, GNUTLS_SEC_PARAM_MEDIUM);
fail:
	return rc;
}

void net_tls_close(struct net_web *w)
{
	if (w->creds)
		gnutls_certificate_free_credentials(w->creds);
	if (w->priority)
		gnutls_priority_deinit(w->priority);
}

/* One of the peer certificate's alternative names is on the list. */
static bool san_among(gnutls_session_t session, const char *const *names, size_t n_names)
{
	unsigned n;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &n);
	gnutls_x509_crt_t crt;
	bool found = false;
	if (!chain || !n || gnutls_x509_crt_init(&crt))
		return false;
	if (gnutls_x509_crt_import(crt, &chain[0], GNUTLS_X509_FMT_DER) == 0) {
		for (unsigned i = 0; !found; i++) {
			char san[1024];
			size_t size = sizeof san - 1;
			unsigned critical;
			int type = gnutls_x509_crt_get_subject_alt_name(crt, i, san, &size, &critical);
			if (type == GNUTLS_E_SHORT_MEMORY_BUFFER)
				continue;
			if (type < 0)
				break;
			char text[64];
			const char *name = san;
			san[size] = 0;
			if (type == GNUTLS_SAN_IPADDRESS) {
				if (size == 4)
					snprintf(
						text, sizeof text, "%u.%u.%u.%u", (uint8_t)san[0], (uint8_t)san[1], (uint8_t)san[2], (uint8_t)san[3]);
				else
					continue;
				name = text;
			} else if (strlen(san) != size) {
				continue; /* a NUL inside: made to look like another name */
			}
			for (size_t k = 0; k < n_names && !found; k++)
				found = strcmp(name, names[k]) == 0;
		}
	}
	gnutls_x509_crt_deinit(crt);
	return found;
}

bool net_tls_verifies(const struct net_web *w)
{
	return w->tls.client_auth == TLS_CLIENT_VERIFY_IF_GIVEN || w->tls.client_auth == TLS_CLIENT_REQUIRE_AND_VERIFY;
}

/* During the handshake; non-zero ends it. */
static int verify_client(gnutls_session_t session)
{
	const struct net_web *w = gnutls_db_get_ptr(session);
	unsigned n = 0, status = 0;
	gnutls_certificate_get_peers(session, &n);
	if (n == 0)
		return w->tls.client_auth == TLS_CLIENT_VERIFY_IF_GIVEN ? 0 : GNUTLS_E_NO_CERTIFICATE_FOUND;
	gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)(uintptr_t)GNUTLS_KP_TLS_WWW_CLIENT};
	if (gnutls_certificate_verify_peers(session, &purpose, 1, &status) || status)
		return GNUTLS_E_CERTIFICATE_ERROR;
	if (w->tls.n_client_sans && !san_among(session, w->tls.client_sans, w->tls.n_client_sans))
		return GNUTLS_E_CERTIFICATE_ERROR;
	return 0;
}

bool net_tls_session(struct net_web *w, gnutls_session_t session)
{
	static const gnutls_certificate_request_t ask[] = {[TLS_CLIENT_NONE] = GNUTLS_CERT_IGNORE,
		[TLS_CLIENT_REQUEST] = GNUTLS_CERT_REQUEST,
		[TLS_CLIENT_REQUIRE_ANY] = GNUTLS_CERT_REQUIRE,
		[TLS_CLIENT_VERIFY_IF_GIVEN] = GNUTLS_CERT_REQUEST,
		[TLS_CLIENT_REQUIRE_AND_VERIFY] = GNUTLS_CERT_REQUIRE};
	gnutls_certificate_server_set_request(session, ask[w->tls.client_auth]);
	if (net_tls_verifies(w)) {
		/* the session's own pointer is libmicrohttpd's; its database pointer is free, as no session is ever cached */
		gnutls_db_set_ptr(session, w);
		gnutls_session_set_verify_function(session, verify_client);
	}
	return gnutls_priority_set(session, w->priority) == 0 && gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, w->creds) == 0;
}

/* What is given was verified in the handshake, or there was none: sessions are not resumed. */
bool http_client_certified(const struct http_request *r, const char *name)
{
	unsigned n = 0;
	if (!r->conn->web || !net_tls_verifies(r->conn->web))
		return false;
	gnutls_session_t session = MHD_get_connection_info(r->mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION)->tls_session;
	return gnutls_certificate_get_peers(session, &n) && n > 0 && (!name || san_among(session, &name, 1));
}
