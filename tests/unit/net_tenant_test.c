/* Whose a request is: headers in Thanos' order, a certificate before all of them, and no name that could be anything but a name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "net/net.h"
#include "tests/support/raw.h"
#include "tests/support/tmp.h"

#define GOLDEN "tests/golden/net/"

enum { WAIT_MS = 20000 };

static void say(void *arg, struct http_request *r)
{
	struct err err = {0};
	struct span tenant;
	if ((arg ? http_tenant_of_peer(r, &tenant, &err) : http_tenant(r, &tenant, &err)) == OK)
		http_answer(r, 200, NULL, tenant);
	else
		http_error_of(r, &err);
}

static const struct http_route routes[] = {
	{HTTP_POST, "/tenant", HTTP_INLINE, 64 * KIB, say, NULL},
	{HTTP_POST, "/worker", HTTP_WORKER, 64 * KIB, say, NULL},
	{HTTP_POST, "/peer", HTTP_INLINE, 64 * KIB, say, (void *)(intptr_t)1},
};

static errc try_serve(struct http_server_config cfg, struct http_server **s, struct err *err)
{
	cfg.address = "127.0.0.1:0";
	return http_server_start(&cfg, routes, sizeof routes / sizeof *routes, s, err);
}

static struct http_server *serve(struct http_server_config cfg)
{
	struct http_server *s;
	struct err err = {0};
	if (try_serve(cfg, &s, &err) != OK)
		fail_msg("%s", err.msg);
	return s;
}

static void answers(struct http_server *s, const char *path, const char *headers, int status, const char *body)
{
	struct raw c = raw_open(http_server_port(s));
	raw_printf(&c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%s\r\n", path, headers);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	if (a.status != status || !a.body || (status == 200 ? strcmp(a.body, body) != 0 : !strstr(a.body, body)))
		fail_msg("%s%s\n=> %d %s\nwanted %d %s", path, headers, a.status, a.body ? a.body : "-", status, body);
	raw_answer_free(&a);
	raw_close(&c);
}

/* Every subset of the headers, with and without the flags: the first that is there in the order of the flags, THANOS-TENANT, X-Scope-OrgID, default. */
static void headers_in_order(void **state)
{
	(void)state;
	for (int flags = 0; flags < 4; flags++) {
		struct http_server *s = serve(
			(struct http_server_config){.tenant_header = flags & 1 ? "X-Team" : NULL, .tenant_default = flags & 2 ? "nobody" : NULL});
		for (int set = 0; set < 27; set++) {
			static const char *const names[] = {"X-Team", "THANOS-TENANT", "X-Scope-OrgID"};
			char text[256] = "";
			const char *want = NULL;
			int from = -1;
			int there[3] = {set % 3, set / 3 % 3, set / 9}; /* not there, empty, there */
			for (int k = 0; k < 3; k++) {
				if (there[k] > 0)
					snprintf(text + strlen(text), sizeof text - strlen(text), "%s: %s\r\n", names[k],
						there[k] == 2 ? names[k] : "");
				if (there[k] > 0 && from < 0 && (k > 0 || flags & 1)) {
					from = k;
					want = there[k] == 2 ? names[k] : "";
				}
			}
			/* They all say something else: X-Scope-OrgID beside another one is a contradiction. */
			bool contradicts = there[2] > 0 && from != 2 && !(there[2] == 1 && want[0] == 0), empty = want && !want[0];
			answers(s, set % 2 ? "/tenant" : "/worker", text, contradicts || empty ? 400 : 200,
				contradicts ? "name two tenants"
				: empty	    ? "of 0 bytes"
				: want	    ? want
				: flags & 2 ? "nobody"
					    : TENANT_DEFAULT);
		}
		answers(s, "/tenant", "THANOS-TENANT: a\r\nX-Scope-OrgID: a\r\n", 200, "a");
		answers(s, "/tenant", "thanos-tenant: a\r\nTHANOS-TENANT: b\r\n", 200, "a");
		answers(s, "/peer", "THANOS-TENANT: a\r\nX-Scope-OrgID: b\r\nX-Team: c\r\n", 200, "a");
		answers(s, "/peer", "X-Scope-OrgID: b\r\n", 400, "tenant");
		http_server_stop(s, 1000);
	}
}

/* What would be a path, a pattern, a control character or another word in somebody's hands. */
static void hostile_names(void **state)
{
	(void)state;
	static const char *const bad[] = {".", "..", "../a", "a/b", "/etc/passwd", "a\\b", "a b", "a%2fb", "%2e%2e", ".hidden", "a:b", "a\tb", "a*",
		"*", "?", "a;b", "a'b", "a\"b", "{}", "~", "\xc3\xbc", "\xff", "a,b", "a|b"};
	struct http_server *s = serve((struct http_server_config){.tenant_header = "X-Team"});
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		for (int k = 0; k < 3; k++) {
			static const char *const names[] = {"X-Team", "THANOS-TENANT", "X-Scope-OrgID"};
			char text[256];
			snprintf(text, sizeof text, "%s: %s\r\n", names[k], bad[i]);
			answers(s, "/tenant", text, 400, "err-varve-tenant");
		}
	char text[400], name[130];
	memset(name, 'a', sizeof name);
	name[129] = 0;
	snprintf(text, sizeof text, "THANOS-TENANT: %s\r\n", name);
	answers(s, "/tenant", text, 400, "129 bytes");
	name[128] = 0;
	snprintf(text, sizeof text, "THANOS-TENANT: %s\r\n", name);
	answers(s, "/tenant", text, 200, name);
	http_server_stop(s, 1000);
}

/* ---- certificates: client.pem says CN=alice and nothing else ---- */

static const char *web_config(const char *type)
{
	static const char *path;
	char text[8192], here[1024];
	struct err err = {0};
	if (!path)
		path = strdup(tmp_path("%s/web.yml", tmp_dir()));
	assert_non_null(getcwd(here, sizeof here));
	int n = snprintf(
		text, sizeof text, "tls_server_config:\n  cert_file: %s/" GOLDEN "server.pem\n  key_file: %s/" GOLDEN "server.key\n", here, here);
	if (type)
		snprintf(text + n, sizeof text - (size_t)n, "  client_ca_file: %s/" GOLDEN "ca.pem\n  client_auth_type: %s\n", here, type);
	if (io_write_file(path, span_cstr(text), &err))
		fail_msg("%s", err.msg);
	return path;
}

static void tls_answers(struct http_server *s, const char *path, bool certificate, const char *header, int status, const char *body)
{
	struct err err = {0};
	struct http_client *c;
	char url[64];
	struct http_client_config cfg = {.ca_file = GOLDEN "ca.pem", .connect_timeout_ms = WAIT_MS, .idle_timeout_ms = WAIT_MS};
	if (certificate) {
		cfg.cert_file = GOLDEN "client.pem";
		cfg.key_file = GOLDEN "client.key";
	}
	assert_int_equal(http_client_open(&cfg, &c, &err), OK);
	snprintf(url, sizeof url, "https://127.0.0.1:%u%s", http_server_port(s), path);
	struct http_call call = {.method = "POST", .url = url, .headers = &header, .n_headers = 1, .max_answer_bytes = 1000};
	for (int again = 0; again < 3; again++) { /* on one connection */
		if (http_call(c, &call, &err) != OK)
			fail_msg("%s", err.msg);
		assert_int_equal(call.status, status);
		char text[1001];
		snprintf(text, sizeof text, "%.*s", (int)call.answer.n, (const char *)call.answer.p);
		if (status == 200 ? strcmp(text, body) != 0 : !strstr(text, body))
			fail_msg("%s, wanted %s", text, body);
	}
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	http_client_close(c);
}

static void a_certificate_decides_alone(void **state)
{
	(void)state;
	struct http_server *s =
		serve((struct http_server_config){.web_config = web_config("VerifyClientCertIfGiven"), .tenant_field = HTTP_TENANT_COMMON_NAME});
	tls_answers(s, "/tenant", true, "X-Other: 1", 200, "alice");
	tls_answers(s, "/worker", true, "THANOS-TENANT: bob", 200, "alice");
	tls_answers(s, "/tenant", true, "X-Scope-OrgID: bob", 200, "alice");
	tls_answers(s, "/tenant", true, "THANOS-TENANT: ../bob", 200, "alice");
	tls_answers(s, "/tenant", false, "THANOS-TENANT: alice", 400, "there is none that was verified");
	tls_answers(s, "/peer", true, "THANOS-TENANT: bob", 200, "bob");
	http_server_stop(s, 1000);
	s = serve((struct http_server_config){.web_config = web_config("RequireAndVerifyClientCert"), .tenant_field = HTTP_TENANT_ORGANIZATION});
	tls_answers(s, "/tenant", true, "THANOS-TENANT: alice", 400, "has no organization");
	http_server_stop(s, 1000);
	s = serve(
		(struct http_server_config){.web_config = web_config("RequireAndVerifyClientCert"), .tenant_field = HTTP_TENANT_ORGANIZATIONAL_UNIT});
	tls_answers(s, "/worker", true, "THANOS-TENANT: alice", 400, "has no organizational unit");
	/* Rules that let anybody in are believed no more than nobody. */
	struct err err = {0};
	web_config("RequireAnyClientCert");
	assert_int_equal(http_server_reload(s, &err), OK);
	tls_answers(s, "/tenant", true, "THANOS-TENANT: alice", 400, "there is none that was verified");
	http_server_stop(s, 1000);
}

static void certificates_that_nobody_verifies_name_nobody(void **state)
{
	(void)state;
	static const char *const types[] = {NULL, "RequestClientCert", "RequireAnyClientCert"};
	for (size_t i = 0; i <= sizeof types / sizeof *types; i++) {
		struct http_server *s = NULL;
		struct err err = {0};
		struct http_server_config cfg = {.tenant_field = HTTP_TENANT_COMMON_NAME};
		if (i < sizeof types / sizeof *types)
			cfg.web_config = web_config(types[i]);
		assert_int_equal(try_serve(cfg, &s, &err), ERR_INVALID);
		if (!strstr(err.msg, "RequireAndVerifyClientCert"))
			fail_msg("%zu: %s", i, err.msg);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(headers_in_order),
		cmocka_unit_test(hostile_names),
		cmocka_unit_test(a_certificate_decides_alone),
		cmocka_unit_test(certificates_that_nobody_verifies_name_nobody),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
