/* Peers asking each other over real connections: what is signed is what the other one checks, with every method, tenant, type, query and size; and what nobody signed, or somebody changed on the way, is refused. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/link.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/raw.h"
#include "tests/support/tmp.h"

#define GOLDEN "tests/golden/net/"
enum { WAIT_MS = 20000 };

/* ---- a node ---- */

static struct trust *server_trust;

static void peer(void *arg, struct http_request *r)
{
	struct err err = {0};
	errc (*check)(struct trust * t, const struct http_request *r, struct err *err) = arg ? link_check_order : link_check;
	if (check(server_trust, r, &err) != OK) {
		http_error_of(r, &err);
		return;
	}
	struct span tenant = http_header(r, "THANOS-TENANT"), body = http_body(r);
	char *text = arena_printf(http_arena(r), "%.*s|%.*s|%zu|%08x", SPAN_ARG(http_target(r)), SPAN_ARG(tenant.p ? tenant : SPAN("-")), body.n,
		crc32c(0, body.p, body.n));
	http_answer(r, 200, NULL, span_cstr(text ? text : "no memory"));
}

static const struct http_route routes[] = {
	{HTTP_GET | HTTP_POST | HTTP_PUT | HTTP_DELETE, "/-/peer/x", HTTP_NO_AUTH, 64 * MIB, peer, NULL},
	{HTTP_POST, "/-/drain", HTTP_NO_AUTH, 64 * KIB, peer, &server_trust},
};

static struct http_server *serve(const char *web_config)
{
	struct err err = {0};
	struct http_server *s;
	const struct http_server_config cfg = {.address = "127.0.0.1:0", .web_config = web_config, .threads = 2};
	if (http_server_start(&cfg, routes, sizeof routes / sizeof routes[0], &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

static struct trust *trust_of(const char *secret, bool certificates, const char *name)
{
	static char paths[64][160];
	static size_t n;
	struct trust *t;
	char *path = paths[n++];
	assert_true(n < 64);
	snprintf(path, sizeof paths[0], "%s/secret", tmp_dir());
	if (secret)
		assert_int_equal(io_write_file(path, span_cstr(secret), NULL), OK);
	const struct trust_config cfg = {.secret_file = secret ? path : NULL, .certificates = certificates, .name = name};
	assert_int_equal(trust_open(&cfg, &t, NULL), OK);
	return t;
}

static struct link *link_of(struct trust *t, bool tls, const struct http_client_config *client)
{
	struct link *l;
	struct link_config cfg = {.tls = tls, .trust = t};
	if (client)
		cfg.client = *client;
	cfg.client.connect_timeout_ms = 5000;
	assert_int_equal(link_open(&cfg, &l, NULL), OK);
	return l;
}

struct reply {
	errc rc;
	int status;
	char text[512];
};

static struct reply ask(struct link *l, uint16_t port, const char *method, const char *target, const char *tenant, const char *type, struct span body)
{
	char address[32];
	struct buf answer;
	struct reply r = {0};
	struct err err = {0};
	snprintf(address, sizeof address, "127.0.0.1:%u", port);
	buf_init(&answer, sizeof r.text - 1);
	const struct link_call c = {.address = span_cstr(address),
		.method = method,
		.target = target,
		.tenant = span_cstr(tenant),
		.content_type = type,
		.body = body,
		.deadline_mono_ns = io_mono_ns() + (int64_t)WAIT_MS * 1000000,
		.max_answer_bytes = sizeof r.text - 1};
	r.rc = link_ask(l, &c, &r.status, &answer, &err);
	if (answer.n)
		memcpy(r.text, answer.p, answer.n);
	buf_free(&answer);
	return r;
}

static const char first[] = "a secret of tests, long enough", other[] = "another secret of tests, as long";

/* ---- tests ---- */

static void what_is_signed_is_what_arrives(void **st)
{
	(void)st;
	static const char *const methods[] = {"GET", "POST", "PUT", "DELETE"}, *const tenants[] = {"", "team-a"},
				 *const types[] = {NULL, "application/x-varve-peer"},
				 *const targets[] = {"/-/peer/x", "/-/peer/x?", "/-/peer/x?a=b&c=%2F+%20", "/-/peer/x?a=?&/"};
	static const size_t sizes[] = {0, 1, 1000, 63 * 1024, 64 * 1024, 70000, 3 << 20};
	struct http_server *s = serve(NULL);
	char *body = malloc(3 << 20);
	memset(body, 'x', 3 << 20);
	for (int secret = 0; secret < 2; secret++) {
		struct trust *mine = trust_of(secret ? first : NULL, false, NULL);
		server_trust = trust_of(secret ? first : NULL, false, NULL);
		struct link *l = link_of(mine, false, NULL);
		for (size_t m = 0; m < 4; m++)
			for (size_t t = 0; t < 2; t++)
				for (size_t c = 0; c < 2; c++)
					for (size_t p = 0; p < 4; p++)
						for (size_t z = 0; z < (m == 1 || m == 2 ? 7 : 1); z++) {
							char want[512];
							struct reply r = ask(l, http_server_port(s), methods[m], targets[p], tenants[t], types[c],
								span_of(body, sizes[z]));
							assert_int_equal(r.rc, OK);
							snprintf(want, sizeof want, "%s|%s|%zu|%08x", targets[p], *tenants[t] ? tenants[t] : "-",
								sizes[z], crc32c(0, body, sizes[z]));
							assert_string_equal(r.text, want);
							assert_int_equal(r.status, 200);
						}
		link_close(l);
		trust_close(mine);
		trust_close(server_trust);
	}
	free(body);
	http_server_stop(s, 1000);
}

static void another_secret_and_none_are_refused(void **st)
{
	(void)st;
	struct http_server *s = serve(NULL);
	uint16_t port = http_server_port(s);
	struct trust *liar = trust_of(other, false, NULL), *nobody = trust_of(NULL, false, NULL);
	server_trust = trust_of(first, false, NULL);
	struct link *l = link_of(liar, false, NULL), *n = link_of(nobody, false, NULL);
	struct reply r = ask(l, port, "POST", "/-/peer/x", "", NULL, SPAN("body"));
	assert_int_equal(r.status, 403);
	assert_int_equal(strncmp(r.text, "err-varve-peer-forged: ", 23), 0);
	r = ask(n, port, "POST", "/-/peer/x", "", NULL, SPAN("body"));
	assert_int_equal(r.status, 401);
	assert_int_equal(strncmp(r.text, "err-varve-peer-unknown: ", 24), 0);
	link_close(l);
	link_close(n);
	trust_close(liar);
	trust_close(nobody);
	trust_close(server_trust);
	http_server_stop(s, 1000);
}

/* A signed request as it travels, and what somebody between the two might make of it. */
static int said_by_hand(uint16_t port, const char *line, const char *signature, const char *more, const char *body)
{
	struct raw c = raw_open(port);
	raw_printf(&c, "%s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n%s%s%s%s\r\n%s", line, strlen(body), *signature ? "X-Varve-Peer: " : "",
		signature, *signature ? "\r\n" : "", more, body);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	int status = a.status;
	raw_answer_free(&a);
	raw_close(&c);
	return status;
}

static void what_is_changed_on_the_way_is_refused(void **st)
{
	(void)st;
	struct http_server *s = serve(NULL);
	uint16_t port = http_server_port(s);
	char signature[TRUST_HEADER_BYTES], named[TRUST_HEADER_BYTES];
	server_trust = trust_of(first, false, NULL);
	trust_sign(server_trust, &(struct trust_words){SPAN("POST"), SPAN("/-/peer/x?a=1"), SPAN(""), SPAN(""), SPAN("body")}, signature);
	trust_sign(server_trust, &(struct trust_words){SPAN("POST"), SPAN("/-/peer/x?a=1"), SPAN("t"), SPAN(""), SPAN("body")}, named);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", signature, "", "body"), 200);
	assert_int_equal(said_by_hand(port, "POST http://x/-/peer/x?a=1", signature, "", "body"), 200); /* the same target, said in full */
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", signature, "", "Body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", signature, "", ""), 403);
	assert_int_equal(said_by_hand(port, "PUT /-/peer/x?a=1", signature, "", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=2", signature, "", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x", signature, "", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=%31", signature, "", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", signature, "Content-Type: text/plain\r\n", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", signature, "THANOS-TENANT: t\r\n", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", signature, "X-Scope-OrgID: t\r\n", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", named, "THANOS-TENANT: t\r\n", "body"), 200);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", named, "THANOS-TENANT: u\r\n", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", named, "", "body"), 403);
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", "", "", "body"), 401);
	/* people, and only for orders */
	static const char bearer[] = "Authorization: Bearer a secret of tests, long enough\r\n";
	assert_int_equal(said_by_hand(port, "POST /-/peer/x?a=1", "", bearer, "body"), 401);
	assert_int_equal(said_by_hand(port, "POST /-/drain", "", bearer, ""), 200);
	assert_int_equal(said_by_hand(port, "POST /-/drain", "", "Authorization: Bearer a secret of tests, long enougH\r\n", ""), 403);
	assert_int_equal(said_by_hand(port, "POST /-/drain", "", "", ""), 401);
	trust_close(server_trust);
	http_server_stop(s, 1000);
}

/* Who shows which certificate, to a server that asks for it or not, that knows a name for peers or not. */
static void certificates(void **st)
{
	(void)st;
	static const struct {
		const char *type, *name;
		bool shows;
		int status; /* 0: the handshake fails */
	} cases[] = {
		{"RequireAndVerifyClientCert", NULL, true, 200},
		{"RequireAndVerifyClientCert", "alice.test", true, 200},
		{"RequireAndVerifyClientCert", "bob.test", true, 401}, /* another tenant's, say */
		{"RequireAndVerifyClientCert", NULL, false, 0},
		{"VerifyClientCertIfGiven", "alice.test", true, 200},
		{"VerifyClientCertIfGiven", NULL, false, 401},
		{"RequireAnyClientCert", NULL, true, 401}, /* nobody looked whether it is a good one */
		{"RequestClientCert", NULL, true, 401},
	};
	char pwd[512], config[4096];
	assert_non_null(getcwd(pwd, sizeof pwd));
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		const char *path = tmp_path("%s/web.yml", tmp_dir());
		bool verifies = strstr(cases[i].type, "Verify") != NULL;
		snprintf(config, sizeof config,
			"tls_server_config:\n  cert_file: %s/" GOLDEN "server.pem\n  key_file: %s/" GOLDEN "server.key\n  client_auth_type: %s\n",
			pwd, pwd, cases[i].type);
		if (verifies)
			snprintf(config + strlen(config), sizeof config - strlen(config), "  client_ca_file: %s/" GOLDEN "ca.pem\n", pwd);
		assert_int_equal(io_write_file(path, span_cstr(config), NULL), OK);
		struct http_server *s = serve(path);
		server_trust = trust_of(NULL, true, cases[i].name);
		struct http_client_config client = {.ca_file = GOLDEN "ca.pem"};
		if (cases[i].shows) {
			client.cert_file = GOLDEN "client.pem";
			client.key_file = GOLDEN "client.key";
		}
		struct link *l = link_of(server_trust, true, &client);
		struct reply r = ask(l, http_server_port(s), "POST", "/-/peer/x", "", NULL, SPAN("body"));
		if (cases[i].status == 0)
			assert_int_equal(r.rc, ERR_NET);
		else
			assert_int_equal(r.status, cases[i].status);
		link_close(l);
		trust_close(server_trust);
		http_server_stop(s, 1000);
	}
}

static void a_silent_peer_costs_its_deadline(void **st)
{
	(void)st;
	struct trust *t = trust_of(first, false, NULL);
	struct link *l = link_of(t, false, NULL);
	struct buf answer;
	int status;
	buf_init(&answer, 100);
	int64_t began_ms = io_mono_ms();
	const struct link_call c = {.address = SPAN("192.0.2.1:9"),
		.method = "GET",
		.target = "/",
		.deadline_mono_ns = io_mono_ns() + 200 * 1000000LL,
		.max_answer_bytes = 100};
	errc rc = link_ask(l, &c, &status, &answer, NULL);
	assert_true(rc == ERR_TIMEOUT || rc == ERR_NET);
	assert_in_range(io_mono_ms() - began_ms, 0, 5000);
	link_cancel(l);
	assert_int_equal(link_ask(l, &c, &status, &answer, NULL), ERR_CANCELED);
	buf_free(&answer);
	link_close(l);
	trust_close(t);
}

static void no_memory_is_met(void **st)
{
	(void)st;
	struct http_server *s = serve(NULL);
	server_trust = trust_of(first, false, NULL);
	struct link *l = link_of(server_trust, false, NULL);
	ask(l, http_server_port(s), "GET", "/-/peer/x", "", NULL, SPAN(""));
	char address[32];
	snprintf(address, sizeof address, "127.0.0.1:%u", http_server_port(s));
	for (uint64_t n = 1; n < 200; n++) { /* the server's allocations are among them: any end is a good one but a crash or a hang */
		struct buf answer;
		int status = 0;
		buf_init(&answer, 500);
		const struct link_call c = {.address = span_cstr(address),
			.method = "GET",
			.target = "/-/peer/x",
			.deadline_mono_ns = io_mono_ns() + 300 * 1000000LL,
			.max_answer_bytes = 500};
		fail_alloc_at(n, false);
		errc rc = link_ask(l, &c, &status, &answer, NULL);
		uint64_t hits = fail_alloc_off();
		buf_free(&answer);
		if (rc == OK && hits == 0)
			break;
	}
	link_close(l);
	trust_close(server_trust);
	http_server_stop(s, 1000);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_signed_is_what_arrives),
		cmocka_unit_test(another_secret_and_none_are_refused),
		cmocka_unit_test(what_is_changed_on_the_way_is_refused),
		cmocka_unit_test(certificates),
		cmocka_unit_test(a_silent_peer_costs_its_deadline),
		cmocka_unit_test(no_memory_is_met),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
