/* The web config file: who is let in, with which certificate, and what a change of the file does. */
#include <crypt.h>
#include <pthread.h>
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
#include "base/log.h"
#include "net/net.h"
#include "tests/support/raw.h"
#include "tests/support/tmp.h"

#define SECRET "$2b$04$u7cgPMfCYglaBjAkRHfJwOpFkfYkMQSe.xMkWHwiuvqahfuq5El8."
#define OTHER "$2b$04$Ye3VI4IGOzGww96A64GePOx2U7UUukJw61ls0TaFkfhmbrkWMGNRe"
#define GOLDEN "tests/golden/net/"

enum { WAIT_MS = 20000 };

static void hello(void *arg, struct http_request *r)
{
	(void)arg;
	char text[64];
	snprintf(text, sizeof text, "hello %zu", http_body(r).n);
	http_answer(r, 200, NULL, span_cstr(text));
}

static const struct http_route routes[] = {
	{HTTP_GET | HTTP_POST, "/hello", 0, 64 * KIB, hello, NULL},
	{HTTP_GET, "/-/healthy", HTTP_NO_AUTH, 0, hello, NULL},
};

/* Where the certificates are, absolute: paths in the file are relative to the file. */
static const char *here(void)
{
	static char path[1024];
	assert_non_null(getcwd(path, sizeof path));
	return path;
}

static const char *write_config(const char *text)
{
	static const char *path;
	struct err err = {0};
	if (!path)
		path = strdup(tmp_path("%s/web.yml", tmp_dir()));
	if (io_write_file(path, span_cstr(text), &err))
		fail_msg("%s", err.msg);
	return path;
}

static struct http_server *serve(const char *config)
{
	struct err err = {0};
	struct http_server *s;
	struct http_server_config cfg = {.address = "127.0.0.1:0",
		.web_config = write_config(config),
		.threads = 2,
		.workers = 1,
		.max_connections = 1000,
		.idle_timeout_ms = 10000,
		.request_timeout_ms = 10000};
	if (http_server_start(&cfg, routes, 2, &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

static void base64(const char *in, char *out)
{
	static const char abc[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	size_t n = strlen(in);
	for (size_t i = 0; i < n; i += 3) {
		unsigned bits = (unsigned)(unsigned char)in[i] << 16;
		bits |= i + 1 < n ? (unsigned)(unsigned char)in[i + 1] << 8 : 0;
		bits |= i + 2 < n ? (unsigned char)in[i + 2] : 0;
		*out++ = abc[bits >> 18 & 63];
		*out++ = abc[bits >> 12 & 63];
		*out++ = i + 1 < n ? abc[bits >> 6 & 63] : '=';
		*out++ = i + 2 < n ? abc[bits & 63] : '=';
	}
	*out = 0;
}

/* Status of GET /hello with "user:password". */
static int login(uint16_t port, const char *who)
{
	char b64[512];
	base64(who, b64);
	struct raw c = raw_open(port);
	raw_printf(&c, "GET /hello HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %s\r\n\r\n", b64);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	int status = a.status;
	raw_answer_free(&a);
	raw_close(&c);
	return status;
}

static int with_header(uint16_t port, const char *path, const char *header)
{
	struct raw c = raw_open(port);
	raw_printf(&c, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, header);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	int status = a.status;
	char *challenge = raw_header(&a, "WWW-Authenticate");
	assert_int_equal(challenge != NULL, status == 401);
	free(challenge);
	raw_answer_free(&a);
	raw_close(&c);
	return status;
}

static void only_the_right_password(void **state)
{
	(void)state;
	struct http_server *s = serve("basic_auth_users:\n  alice: " SECRET "\n  bob: " OTHER "\n");
	uint16_t port = http_server_port(s);
	/* twice: once by bcrypt, once from memory */
	for (int round = 0; round < 2; round++) {
		assert_int_equal(login(port, "alice:secret"), 200);
		assert_int_equal(login(port, "bob:other"), 200);
		assert_int_equal(login(port, "alice:other"), 401);
		assert_int_equal(login(port, "bob:secret"), 401);
		assert_int_equal(login(port, "alice:secre"), 401);
		assert_int_equal(login(port, "alice:secrett"), 401);
		assert_int_equal(login(port, "alice:"), 401);
		assert_int_equal(login(port, ":secret"), 401);
		assert_int_equal(login(port, "alic:esecret"), 401);
		assert_int_equal(login(port, "nobody:secret"), 401);
		assert_int_equal(login(port, "alice:" SECRET), 401);
		assert_int_equal(login(port, "nobody:$2y$04$QOauhQNbBCuQDKes6eFzPe"), 401);
		assert_int_equal(login(port, "Alice:secret"), 401);
		assert_int_equal(login(port, "alicesecret"), 401);
	}
	assert_int_equal(with_header(port, "/hello", ""), 401);
	assert_int_equal(with_header(port, "/nowhere", ""), 401); /* what there is is nobody's business */
	assert_int_equal(with_header(port, "/-/healthy", ""), 200);
	assert_int_equal(with_header(port, "/hello", "Authorization: Basic !!!\r\n"), 401);
	assert_int_equal(with_header(port, "/hello", "Authorization: Basic YWxpY2U6c2VjcmV0\r\n"), 200);
	assert_int_equal(with_header(port, "/hello", "authorization: basic  YWxpY2U6c2VjcmV0\r\n"), 200);
	assert_int_equal(with_header(port, "/hello", "Authorization: Basic YWxpY2U6c2VjcmV0AA==\r\n"), 401); /* NUL behind the password */
	assert_int_equal(with_header(port, "/hello", "Authorization: Bearer YWxpY2U6c2VjcmV0\r\n"), 401);
	http_server_stop(s, 1000);
}

/* The body waits while bcrypt runs, with and without Expect. */
static void bodies_wait_for_the_verdict(void **state)
{
	(void)state;
	struct http_server *s = serve("basic_auth_users:\n  alice: " SECRET "\n  bob: " OTHER "\n");
	uint16_t port = http_server_port(s);
	struct raw c = raw_open(port);
	raw_puts(&c, "POST /hello HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWxpY2U6c2VjcmV0\r\nContent-Length: 3\r\n\r\nabc"
		     "POST /hello HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWxpY2U6d3Jvbmc=\r\nContent-Length: 3\r\n\r\nabc"
		     "POST /hello HTTP/1.1\r\nHost: x\r\nAuthorization: Basic Ym9iOm90aGVy\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
	static const int want[] = {200, 401, 100};
	for (int i = 0; i < 3; i++) {
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		assert_int_equal(a.status, want[i]);
		raw_answer_free(&a);
	}
	raw_puts(&c, "abcd");
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	assert_string_equal(a.body, "hello 4");
	raw_answer_free(&a);
	raw_close(&c);
	http_server_stop(s, 1000);
}

struct flood {
	pthread_t thread;
	uint16_t port;
	int id;
	int statuses[600];
};

static void *flood_main(void *arg)
{
	struct flood *f = arg;
	for (int i = 0; i < 2; i++) {
		char who[64];
		snprintf(who, sizeof who, "alice:wrong-%d-%d", f->id, i);
		f->statuses[login(f->port, who)]++;
	}
	return NULL;
}

/* A hundred guessers, at 10 ms and more a guess, do not hold up those who are in, and the line of waiting guesses is bounded. */
static void guessing_slows_nobody(void **state)
{
	(void)state;
	char salt[64], config[300];
	struct crypt_data data = {0};
	snprintf(salt, sizeof salt, "$2y$08$%.22s", &OTHER[7]);
	snprintf(config, sizeof config, "basic_auth_users:\n  alice: %s\n", crypt_r("secret", salt, &data));
	struct http_server *s = serve(config);
	uint16_t port = http_server_port(s);
	struct flood f[100] = {0};
	assert_int_equal(login(port, "alice:secret"), 200);
	for (int i = 0; i < 100; i++) {
		f[i].port = port;
		f[i].id = i;
		pthread_create(&f[i].thread, NULL, flood_main, &f[i]);
	}
	usleep(100000);
	for (int i = 0; i < 20; i++) {
		int64_t t = raw_now_ms();
		assert_int_equal(login(port, "alice:secret"), 200);
		assert_true(raw_now_ms() - t < 1000);
	}
	int denied = 0, busy = 0;
	for (int i = 0; i < 100; i++) {
		pthread_join(f[i].thread, NULL);
		denied += f[i].statuses[401];
		busy += f[i].statuses[503];
	}
	assert_int_equal(denied + busy, 200);
	assert_true(busy > 0);
	assert_int_equal(login(port, "alice:secret"), 200);
	http_server_stop(s, 1000);
}

static void reload_changes_the_rules(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_server *s = serve("basic_auth_users:\n  alice: " SECRET "\nhttp_server_config:\n  headers:\n    X-Frame-Options: deny\n");
	uint16_t port = http_server_port(s);
	assert_int_equal(login(port, "alice:secret"), 200);
	assert_int_equal(login(port, "alice:other"), 401);
	write_config("basic_auth_users:\n  alice: " OTHER "\n");
	assert_int_equal(http_server_reload(s, &err), OK);
	assert_int_equal(login(port, "alice:secret"), 401); /* although it was remembered */
	assert_int_equal(login(port, "alice:other"), 200);
	write_config("basic_auth_users:\n  alice: " OTHER "\n  bob: plain\n");
	assert_int_equal(http_server_reload(s, &err), ERR_INVALID);
	assert_non_null(strstr(err.msg, "user bob: not a bcrypt hash"));
	assert_null(strstr(err.msg, "plain"));
	assert_int_equal(login(port, "alice:other"), 200);
	write_config("tls_server_config:\n  cert_file: /dev/null\n  key_file: /dev/null\n");
	assert_int_not_equal(http_server_reload(s, &err), OK);
	assert_int_equal(login(port, "alice:other"), 200);
	/* and by itself, when the file changes */
	write_config("basic_auth_users:\n  alice: " SECRET "\n  bob: " OTHER "\n");
	int status = 0;
	for (int i = 0; i < 50 && status != 200; i++) {
		usleep(100000);
		status = login(port, "bob:other");
	}
	assert_int_equal(status, 200);
	http_server_stop(s, 1000);
}

static void headers_are_added(void **state)
{
	(void)state;
	struct http_server *s = serve(
		"http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n    Content-Security-Policy: \"default-src 'self'\"\n");
	struct raw c = raw_open(http_server_port(s));
	raw_puts(&c, "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	char *frame = raw_header(&a, "X-Frame-Options"), *policy = raw_header(&a, "Content-Security-Policy");
	assert_string_equal(frame, "deny");
	assert_string_equal(policy, "default-src 'self'");
	free(frame);
	free(policy);
	raw_answer_free(&a);
	raw_close(&c);
	http_server_stop(s, 1000);
}

static void mistakes_are_named(void **state)
{
	(void)state;
	char pem[4096];
	snprintf(pem, sizeof pem, "tls_server_config:\n  cert_file: %s/" GOLDEN "server.pem\n  key_file: %s/" GOLDEN "server.key\n", here(), here());
	const struct {
		const char *text, *words;
		bool with_pem;
	} cases[] = {
		{"basic_auth_user:\n  a: b\n", "basic_auth_users", false},
		{"basic_auth_users: [a]\n", "must map names", false},
		{"basic_auth_users:\n  \"a:b\": " SECRET "\n", "colon", false},
		{"basic_auth_users:\n  a: $2b$04$short\n", "user a: not a bcrypt hash", false},
		{"basic_auth_users:\n  a: $2b$99$u7cgPMfCYglaBjAkRHfJwOpFkfYkMQSe.xMkWHwiuvqahfuq5El8.\n", "user a: not a bcrypt hash", false},
		{"tls_server_config:\n  cert_file: x.pem\n", "x.pem: there is no such file", false},
		{"tls_server_config:\n  key: abc\n", "needs cert_file and key_file", false},
		{"tls_server_config:\n  cert: abc\n  key: abc\n", "certificate cert with key key: ", false},
		{"http_server_config:\n  headers:\n    X-Other: 1\n", "X-Other", false},
		{"  min_version: TLS14\n", "min_version \"TLS14\" is not one of", true},
		{"  min_version: TLS13\n  max_version: TLS12\n", "min_version TLS13 is above max_version TLS12", true},
		{"  cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]\n", "cipher suite \"TLS_RSA_WITH_RC4_128_SHA\" is not supported", true},
		{"  curve_preferences: [CurveP999]\n", "curve \"CurveP999\" is not one of", true},
		{"  client_auth_type: Maybe\n", "client_auth_type \"Maybe\" is not one of", true},
		{"  client_auth_type: RequireAndVerifyClientCert\n", "needs client_ca_file", true},
		{"  client_ca_file: missing.pem\n  client_auth_type: RequireAndVerifyClientCert\n", "missing.pem: there is no such file", true},
		{"  client_allowed_sans: [x]\n", "client_allowed_sans needs", true},
		{"- a\n", "web.yml", false},
		{"a: [\n", "web.yml", false},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct err err = {0};
		struct http_server *s;
		char text[8192];
		snprintf(text, sizeof text, "%s%s", cases[i].with_pem ? pem : "", cases[i].text);
		struct http_server_config cfg = {.address = "127.0.0.1:0", .web_config = write_config(text)};
		assert_int_not_equal(http_server_start(&cfg, routes, 2, &s, &err), OK);
		if (!strstr(err.msg, cases[i].words))
			fail_msg("%s\n%s", text, err.msg);
	}
}

/* ---- TLS ---- */

static const char *tls_config(const char *name, const char *more)
{
	static char text[8192];
	const char *pwd = here();
	snprintf(text, sizeof text, "tls_server_config:\n  cert_file: %s/" GOLDEN "%s.pem\n  key_file: %s/" GOLDEN "%s.key\n%s", pwd, name, pwd, name,
		more);
	return text;
}

static const char *client_ca(const char *type, const char *more)
{
	static char text[4096];
	snprintf(text, sizeof text, "  client_ca_file: %s/" GOLDEN "ca.pem\n  client_auth_type: %s\n%s", here(), type, more);
	return text;
}

/* GET /hello by TLS; OK and 200, or what went wrong. */
static errc tls_get(uint16_t port, const struct http_client_config *cfg, char *msg, size_t size)
{
	struct err err = {0};
	struct http_client *c;
	char url[64];
	assert_int_equal(http_client_open(cfg, &c, &err), OK);
	snprintf(url, sizeof url, "https://127.0.0.1:%u/hello", port);
	struct http_call call = {.method = "GET", .url = url, .max_answer_bytes = 1000};
	errc rc = http_call(c, &call, &err);
	if (rc == OK)
		assert_int_equal(call.status, 200);
	snprintf(msg, size, "%s", err.msg);
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	http_client_close(c);
	return rc;
}

static void tls_with_our_certificate(void **state)
{
	(void)state;
	char msg[512];
	struct http_server *s = serve(tls_config("server", ""));
	uint16_t port = http_server_port(s);
	struct http_client_config cfg = {.ca_file = GOLDEN "ca.pem", .connect_timeout_ms = 5000, .idle_timeout_ms = 5000};
	assert_int_equal(tls_get(port, &cfg, msg, sizeof msg), OK);
	cfg.server_name = "one.test";
	assert_int_equal(tls_get(port, &cfg, msg, sizeof msg), OK);
	cfg.server_name = "two.test";
	assert_int_equal(tls_get(port, &cfg, msg, sizeof msg), ERR_NET);
	assert_non_null(strstr(msg, "two.test"));
	cfg.insecure_skip_verify = true;
	assert_int_equal(tls_get(port, &cfg, msg, sizeof msg), OK);
	cfg = (struct http_client_config){.connect_timeout_ms = 5000};
	assert_int_equal(tls_get(port, &cfg, msg, sizeof msg), ERR_NET);
	assert_non_null(strstr(msg, "certificate"));
	/* somebody who speaks plain HTTP, and somebody who says nothing */
	struct raw c = raw_open(port), silent = raw_open(port);
	raw_puts(&c, "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
	assert_true(raw_wait_closed(&c, WAIT_MS));
	raw_close(&c);
	http_server_stop(s, 200);
	raw_close(&silent);
}

/* A renewed certificate is used by the next connection; the old one's keep theirs. */
static void tls_certificate_renewed(void **state)
{
	(void)state;
	char msg[512];
	struct err err = {0};
	struct http_server *s = serve(tls_config("server", ""));
	uint16_t port = http_server_port(s);
	struct http_client_config one = {.ca_file = GOLDEN "ca.pem",
					  .server_name = "one.test",
					  .connect_timeout_ms = 5000,
					  .max_idle_connections = 1},
				  two = {.ca_file = GOLDEN "ca.pem", .server_name = "two.test", .connect_timeout_ms = 5000};
	struct http_client *kept;
	char url[64];
	snprintf(url, sizeof url, "https://127.0.0.1:%u/hello", port);
	assert_int_equal(http_client_open(&one, &kept, &err), OK);
	struct http_call call = {.method = "GET", .url = url, .max_answer_bytes = 1000};
	assert_int_equal(http_call(kept, &call, &err), OK);
	assert_int_equal(tls_get(port, &two, msg, sizeof msg), ERR_NET);
	write_config(tls_config("server2", ""));
	assert_int_equal(http_server_reload(s, &err), OK);
	assert_int_equal(tls_get(port, &two, msg, sizeof msg), OK);
	assert_int_equal(tls_get(port, &one, msg, sizeof msg), ERR_NET);
	assert_int_equal(http_call(kept, &call, &err), OK);
	/* a certificate that does not belong to its key stays out */
	char bad[4096];
	snprintf(bad, sizeof bad, "tls_server_config:\n  cert_file: %s/" GOLDEN "server.pem\n  key_file: %s/" GOLDEN "server2.key\n", here(), here());
	write_config(bad);
	assert_int_equal(http_server_reload(s, &err), ERR_INVALID);
	assert_int_equal(tls_get(port, &two, msg, sizeof msg), OK);
	write_config("");
	assert_int_equal(http_server_reload(s, &err), ERR_INVALID);
	assert_non_null(strstr(err.msg, "TLS cannot be switched off while running"));
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	http_client_close(kept);
	http_server_stop(s, 1000);
}

static void tls_client_certificates(void **state)
{
	(void)state;
	static const struct {
		const char *type, *more;
		bool none, alice, stranger;
	} cases[] = {
		{"RequestClientCert", "", true, true, true},
		{"RequireAnyClientCert", "", false, true, true},
		{"VerifyClientCertIfGiven", "", true, true, false},
		{"RequireAndVerifyClientCert", "", false, true, false},
		{"RequireAndVerifyClientCert", "  client_allowed_sans: [bob.test, alice.test]\n", false, true, false},
		{"RequireAndVerifyClientCert", "  client_allowed_sans: [alice@test]\n", false, true, false},
		{"RequireAndVerifyClientCert", "  client_allowed_sans: [bob.test]\n", false, false, false},
		{"VerifyClientCertIfGiven", "  client_allowed_sans: [bob.test]\n", true, false, false},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char msg[512];
		struct http_server *s = serve(tls_config("server", client_ca(cases[i].type, cases[i].more)));
		uint16_t port = http_server_port(s);
		struct http_client_config cfg = {.ca_file = GOLDEN "ca.pem", .connect_timeout_ms = 5000, .idle_timeout_ms = 5000};
		assert_int_equal(tls_get(port, &cfg, msg, sizeof msg) == OK, cases[i].none);
		cfg.cert_file = GOLDEN "client.pem";
		cfg.key_file = GOLDEN "client.key";
		if ((tls_get(port, &cfg, msg, sizeof msg) == OK) != cases[i].alice)
			fail_msg("case %zu: %s", i, msg);
		cfg.cert_file = GOLDEN "stranger.pem";
		cfg.key_file = GOLDEN "stranger.key";
		assert_int_equal(tls_get(port, &cfg, msg, sizeof msg) == OK, cases[i].stranger);
		/* a server's certificate is not a client's */
		cfg.cert_file = GOLDEN "server2.pem";
		cfg.key_file = GOLDEN "server2.key";
		assert_int_equal(tls_get(port, &cfg, msg, sizeof msg) == OK, cases[i].stranger);
		http_server_stop(s, 1000);
	}
}

static void tls_settings_work(void **state)
{
	(void)state;
	static const char *const cases[] = {
		"  min_version: TLS12\n  max_version: TLS12\n",
		"  min_version: TLS13\n",
		"  cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]\n  max_version: TLS12\n",
		"  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305]\n",
		"  curve_preferences: [CurveP256]\n",
		"  curve_preferences: [X25519, CurveP384]\n  prefer_server_cipher_suites: false\n",
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char msg[512];
		struct http_server *s = serve(tls_config("server", cases[i]));
		struct http_client_config cfg = {.ca_file = GOLDEN "ca.pem", .connect_timeout_ms = 5000, .idle_timeout_ms = 5000};
		if (tls_get(http_server_port(s), &cfg, msg, sizeof msg))
			fail_msg("%s%s", cases[i], msg);
		http_server_stop(s, 1000);
	}
}

/* Refusals in the middle of a body go through TLS too. */
static void tls_refusals(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_server *s = serve(tls_config("server", ""));
	struct http_client_config cfg = {.ca_file = GOLDEN "ca.pem", .connect_timeout_ms = 5000, .idle_timeout_ms = 5000};
	struct http_client *c;
	char url[64], *junk = calloc(1, 4 * MIB);
	assert_int_equal(http_client_open(&cfg, &c, &err), OK);
	snprintf(url, sizeof url, "https://127.0.0.1:%u/hello", http_server_port(s));
	for (int chunked = 0; chunked < 2; chunked++) {
		const char *headers[] = {"Transfer-Encoding: chunked"};
		struct http_call call = {.method = "POST",
			.url = url,
			.max_answer_bytes = 1000,
			.body = span_of(junk, 4 * MIB),
			.headers = headers,
			.n_headers = (size_t)chunked};
		if (http_call(c, &call, &err))
			fail_msg("%s", err.msg);
		assert_int_equal(call.status, 413);
		buf_free(&call.answer);
		buf_free(&call.answer_headers);
	}
	free(junk);
	http_client_close(c);
	http_server_stop(s, 1000);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_the_right_password),
		cmocka_unit_test(bodies_wait_for_the_verdict),
		cmocka_unit_test(guessing_slows_nobody),
		cmocka_unit_test(reload_changes_the_rules),
		cmocka_unit_test(headers_are_added),
		cmocka_unit_test(mistakes_are_named),
		cmocka_unit_test(tls_with_our_certificate),
		cmocka_unit_test(tls_certificate_renewed),
		cmocka_unit_test(tls_client_certificates),
		cmocka_unit_test(tls_settings_work),
		cmocka_unit_test(tls_refusals),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
