/* The server against clients that do everything HTTP allows, and much that it does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <zlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "base/metrics.h"
#include "net/net.h"
#include "tests/support/raw.h"

enum { WAIT_MS = 10000 };

/* Says back what it got: method, path, argument, params, length of the body. */
static void echo(void *arg, struct http_request *r)
{
	(void)arg;
	struct err err = {0};
	struct buf b;
	buf_init(&b, 16 * MIB);
	if (http_parse_params(r, &err)) {
		http_error_of(r, &err);
		return;
	}
	struct span path = http_path(r), a = http_path_arg(r);
	buf_printf(&b, "%d %.*s", (int)http_method(r), SPAN_ARG(path));
	if (a.p)
		buf_printf(&b, " arg=%.*s", SPAN_ARG(a));
	for (size_t i = 0; i < http_param_count(r); i++) {
		struct span name, value;
		http_param_at(r, i, &name, &value);
		buf_printf(&b, " %.*s=%.*s", SPAN_ARG(name), SPAN_ARG(value));
	}
	struct span body = http_body(r);
	uint32_t crc = (uint32_t)crc32(0, (const Bytef *)body.p, (uInt)body.n);
	buf_printf(&b, " body=%zu:%08x", body.n, crc);
	http_answer(r, 200, NULL, span_of(b.p, b.n));
	buf_free(&b);
}

static void large(void *arg, struct http_request *r)
{
	(void)arg;
	struct err err = {0};
	assert_int_equal(http_parse_params(r, &err), OK);
	int64_t n = 0;
	span_to_i64(http_param(r, "n", 0), &n);
	char *p = malloc((size_t)n + 1);
	for (int64_t i = 0; i < n; i++)
		p[i] = (char)('a' + i % 26);
	http_answer(r, 200, "application/octet-stream", span_of(p, (size_t)n));
	free(p);
}

static void refuse(void *arg, struct http_request *r)
{
	http_error(r, (enum errid)(intptr_t)arg, "said \"no\"\nin two lines");
}

static const struct http_route routes[] = {
	{HTTP_GET | HTTP_POST, "/echo", 0, 64 * KIB, echo, NULL},
	{HTTP_PUT | HTTP_DELETE, "/put", 0, 64 * KIB, echo, NULL},
	{HTTP_GET, "/api/v1/label/*/values", 0, 0, echo, NULL},
	{HTTP_GET, "/api/v1/label/exact/values", 0, 0, refuse, (void *)(intptr_t)ERRID_INTERNAL},
	{HTTP_POST, "/api/v1/write", 0, 1 * MIB, echo, NULL},
	{HTTP_GET | HTTP_POST, "/api/v1/series", 0, 64 * KIB, refuse, (void *)(intptr_t)ERRID_BAD_MATCHER},
	{HTTP_POST, "/api/v1/refuse", 0, 64 * KIB, refuse, (void *)(intptr_t)ERRID_NOT_READY},
	{HTTP_GET, "/large", HTTP_GZIP, 0, large, NULL},
	{HTTP_GET, "/plain", 0, 0, large, NULL},
	{HTTP_POST, "/big", 0, 32 * MIB, echo, NULL},
};

static struct http_server *server;
static uint16_t port;

static int start(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_server_config cfg = {.address = "127.0.0.1:0",
		.threads = 2,
		.workers = 2,
		.worker_queue = 2,
		.max_connections = 64,
		.idle_timeout_ms = 5000,
		.request_timeout_ms = 10000,
		.max_inflight_bytes = 128 * MIB};
	if (http_server_start(&cfg, routes, sizeof routes / sizeof routes[0], &server, &err))
		fail_msg("%s", err.msg);
	port = http_server_port(server);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	http_server_stop(server, 1000);
	return 0;
}

static struct raw_answer ask(const char *request)
{
	struct raw c = raw_open(port);
	raw_puts(&c, request);
	struct raw_answer a = raw_answer(&c, strncmp(request, "HEAD", 4) == 0, WAIT_MS);
	raw_close(&c);
	return a;
}

/* Status and a part of the body. */
static void expect(const char *request, int status, const char *part)
{
	struct raw_answer a = ask(request);
	if (a.status != status || (part && (!a.body || !strstr(a.body, part))))
		fail_msg("%.200s\n=> %d %s\nwanted %d %s", request, a.status, a.body ? a.body : "-", status, part ? part : "");
	raw_answer_free(&a);
}

static void routing(void **state)
{
	(void)state;
	expect("GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", 200, "1 /echo body=0:00000000");
	expect("GET http://x/echo?a=b HTTP/1.1\r\nHost: x\r\n\r\n", 200, "1 /echo a=b");
	expect("GET /%65cho HTTP/1.1\r\nHost: x\r\n\r\n", 200, "1 /%65cho");
	expect("GET /echo/ HTTP/1.1\r\nHost: x\r\n\r\n", 404, "err-varve-not-found: ");
	expect("GET /ech%6 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "err-varve-bad-request: ");
	expect("GET /ech%00 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "err-varve-bad-request: ");
	expect("GET /api/v1/label/a%2Fb/values HTTP/1.1\r\nHost: x\r\n\r\n", 200, "arg=a/b body");
	expect("GET /api/v1/label//values HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not-found");
	expect("GET /api/v1/label/exact/values HTTP/1.1\r\nHost: x\r\n\r\n", 500, "internal");
	expect("PUT /put HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 200, "8 /put body=3:352441c2");
	expect("DELETE /put HTTP/1.1\r\nHost: x\r\n\r\n", 200, "16 /put");
	expect("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "must begin with /");
	expect("BREW /echo HTTP/1.1\r\nHost: x\r\n\r\n", 405, "err-varve-method: BREW");
}

static void head_is_get_without_body(void **state)
{
	(void)state;
	struct raw c = raw_open(port);
	raw_puts(&c, "HEAD /plain?n=5000 HTTP/1.1\r\nHost: x\r\n\r\nGET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
	struct raw_answer a = raw_answer(&c, true, WAIT_MS);
	char *length = raw_header(&a, "Content-Length");
	assert_int_equal(a.status, 200);
	assert_string_equal(length, "5000");
	free(length);
	raw_answer_free(&a);
	a = raw_answer(&c, false, WAIT_MS);
	assert_string_equal(a.body, "1 /echo body=0:00000000");
	raw_answer_free(&a);
	raw_close(&c);
}

static void wrong_method_says_which(void **state)
{
	(void)state;
	static const char *const cases[][2] = {{"POST /plain", "GET, HEAD"}, {"GET /put", "PUT, DELETE"}, {"PUT /echo", "GET, HEAD, POST"}};
	for (size_t i = 0; i < 3; i++) {
		char text[200];
		snprintf(text, sizeof text, "%s HTTP/1.1\r\nHost: x\r\n\r\n", cases[i][0]);
		struct raw_answer a = ask(text);
		char *allow = raw_header(&a, "Allow");
		assert_int_equal(a.status, 405);
		assert_non_null(allow);
		assert_string_equal(allow, cases[i][1]);
		free(allow);
		raw_answer_free(&a);
	}
}

static void errors_have_two_forms(void **state)
{
	(void)state;
	expect("GET /api/v1/series HTTP/1.1\r\nHost: x\r\n\r\n", 400,
		"{\"status\":\"error\",\"errorType\":\"bad_data\",\"error\":\"err-varve-bad-matcher: said \\\"no\\\" in two lines\"}\n");
	expect("POST /api/v1/series HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400, "{\"status\":\"error\"");
	expect("GET /api/v1/nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, "\"errorType\":\"not_found\"");
	struct raw_answer a = ask("POST /api/v1/refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
	char *retry = raw_header(&a, "Retry-After"), *type = raw_header(&a, "Content-Type");
	assert_int_equal(a.status, 503);
	assert_string_equal(a.body, "err-varve-not-ready: said \"no\" in two lines\n");
	assert_string_equal(type, "text/plain; charset=utf-8");
	assert_non_null(retry);
	free(retry);
	free(type);
	raw_answer_free(&a);
}

static void request_ids(void **state)
{
	(void)state;
	static const struct {
		const char *given;
		bool kept;
	} cases[] = {{"abc-123", true}, {"with space", false}, {"quote\"", false}, {"", false},
		{"0123456789012345678901234567890123456789012345678901234567890123", true},
		{"01234567890123456789012345678901234567890123456789012345678901234", false}};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char text[300];
		snprintf(text, sizeof text, "GET /echo HTTP/1.1\r\nHost: x\r\nX-Request-Id: %s\r\n\r\n", cases[i].given);
		struct raw_answer a = ask(text);
		char *id = raw_header(&a, "X-Request-Id");
		assert_non_null(id);
		assert_int_equal(strcmp(id, cases[i].given) == 0, cases[i].kept);
		assert_true(strlen(id) > 0);
		free(id);
		raw_answer_free(&a);
	}
}

static void params_from_query_and_form(void **state)
{
	(void)state;
	expect("GET /echo?match[]=up&match%5B%5D=a%3D%22b+c%22&&flag&x= HTTP/1.1\r\nHost: x\r\n\r\n", 200,
		" match[]=up match[]=a=\"b c\" flag= x= body");
	expect("POST /echo?q=1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 7\r\n\r\na=b&c=d", 200,
		"a=b c=d q=1 body=7");
	expect("POST /echo?q=1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded; charset=UTF-8\r\nContent-Length: "
	       "7\r\n\r\na=b&c=d",
		200, "a=b c=d q=1 body=7");
	expect("POST /echo?q=1 HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\na=b&c=d", 200, "/echo q=1 body=7");
	expect("GET /echo?a=%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "err-varve-bad-parameter: ");
	expect("GET /echo?a=%4 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "err-varve-bad-parameter: ");
}

/* Every way to cut a pipelined pair of requests into two packets gives the same two answers. */
static void pipelining_cut_anywhere(void **state)
{
	(void)state;
	static const char text[] = "POST /echo?n=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
				   "POST /echo?n=2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
	struct raw c = raw_open(port);
	for (size_t cut = 0; cut < sizeof text - 1; cut++) {
		raw_send(&c, text, cut);
		if (cut % 8 == 0)
			usleep(300);
		raw_send(&c, text + cut, sizeof text - 1 - cut);
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		assert_string_equal(a.body, "4 /echo n=1 body=5:3610a686");
		raw_answer_free(&a);
		a = raw_answer(&c, false, WAIT_MS);
		assert_string_equal(a.body, "4 /echo n=2 body=5:8587d865");
		raw_answer_free(&a);
	}
	raw_close(&c);
}

static void large_bodies_arrive_whole(void **state)
{
	(void)state;
	static const size_t sizes[] = {1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 65536, 1000003, 32 * 1024 * 1024};
	char *body = malloc(32 * MIB);
	for (size_t i = 0; i < 32 * MIB; i++)
		body[i] = (char)(i * 2654435761u >> 13);
	struct raw c = raw_open(port);
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
		char want[64];
		snprintf(want, sizeof want, "4 /big body=%zu:%08x", sizes[i], (uint32_t)crc32(0, (Bytef *)body, (uInt)sizes[i]));
		raw_printf(&c, "POST /big HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", sizes[i]);
		assert_true(raw_send(&c, body, sizes[i]));
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		assert_string_equal(a.body, want);
		raw_answer_free(&a);
		raw_printf(&c, "POST /big HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
		for (size_t at = 0; at < sizes[i];) {
			size_t n = sizes[i] - at < 70000 ? sizes[i] - at : 70000;
			raw_printf(&c, "%zx\r\n", n);
			raw_send(&c, body + at, n);
			raw_puts(&c, "\r\n");
			at += n;
		}
		raw_puts(&c, "0\r\n\r\n");
		a = raw_answer(&c, false, WAIT_MS);
		assert_string_equal(a.body, want);
		raw_answer_free(&a);
	}
	raw_close(&c);
	free(body);
}

static void expect_continue(void **state)
{
	(void)state;
	struct raw c = raw_open(port);
	raw_puts(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	assert_int_equal(a.status, 100);
	raw_answer_free(&a);
	raw_puts(&c, "abc");
	a = raw_answer(&c, false, WAIT_MS);
	assert_string_equal(a.body, "4 /echo body=3:352441c2");
	raw_answer_free(&a);
	raw_close(&c);
	/* too large: refused instead of continued */
	expect("POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 65537\r\n\r\n", 413,
		"err-varve-body-too-large: the body has 65537 bytes, the limit is 65536\n");
	expect("POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 200-maybe\r\nContent-Length: 0\r\n\r\n", 400, "Expect");
}

/* The client that sends on although it was refused must still see why. */
static void refusal_survives_the_rest_of_the_body(void **state)
{
	(void)state;
	char *junk = calloc(1, 8 * MIB);
	for (int round = 0; round < 20; round++) {
		struct raw c = raw_open(port);
		raw_printf(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %llu\r\n\r\n", 8ull * MIB);
		assert_true(raw_send(&c, junk, 8 * MIB));
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		assert_int_equal(a.status, 413);
		raw_answer_free(&a);
		assert_true(raw_wait_closed(&c, WAIT_MS));
		assert_false(c.reset);
		raw_close(&c);

		c = raw_open(port);
		raw_puts(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n800000\r\n");
		assert_true(raw_send(&c, junk, 8 * MIB));
		a = raw_answer(&c, false, WAIT_MS);
		assert_int_equal(a.status, 413);
		assert_string_equal(a.body, "err-varve-body-too-large: the body is larger than the limit of 65536 bytes\n");
		raw_answer_free(&a);
		assert_true(raw_wait_closed(&c, WAIT_MS));
		assert_false(c.reset);
		raw_close(&c);
	}
	free(junk);
}

static void small_refused_bodies_keep_the_connection(void **state)
{
	(void)state;
	struct raw c = raw_open(port);
	char *junk = calloc(1, 100000);
	raw_printf(&c, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
	raw_send(&c, junk, 100000);
	raw_puts(&c, "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
	static const int want[] = {413, 404, 200};
	for (int i = 0; i < 3; i++) {
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		assert_int_equal(a.status, want[i]);
		raw_answer_free(&a);
	}
	free(junk);
	raw_close(&c);
}

static uint64_t resident_kib(void)
{
	char line[256];
	uint64_t kib = 0;
	FILE *f = fopen("/proc/self/status", "r");
	while (fgets(line, sizeof line, f))
		sscanf(line, "VmRSS: %lu", &kib);
	fclose(f);
	return kib;
}

/* Forty clients promise 32 MiB each and send a byte: memory follows the byte. */
static void promised_bodies_cost_nothing(void **state)
{
	(void)state;
	struct raw c[40];
	uint64_t before = resident_kib();
	for (int i = 0; i < 40; i++) {
		c[i] = raw_open(port);
		raw_puts(&c[i], "POST /big HTTP/1.1\r\nHost: x\r\nContent-Length: 33554432\r\n\r\nx");
	}
	usleep(200000);
	uint64_t after = resident_kib();
	assert_true(after < before + 16 * 1024);
	for (int i = 0; i < 40; i++)
		raw_close(&c[i]);
}

static void garbage(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		int status; /* 0: closed without a word */
	} cases[] = {
		{"\x16\x03\x01\x02\r\n\r\n", 0},
		{"GET\r\n\r\n", 0},
		{"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505},
		{"GET /echo\r\n\r\n", 400},
		{"GET /echo HTTP/1.1\r\n\r\n", 400},
		{"GET /echo HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400},
		{"GET /echo HTTP/1.1\r\nHost: x\r\nbad name: 1\r\n\r\n", 400},
		{"GET /echo HTTP/1.1\r\nHost: x\r\nX: a\x01z\r\n\r\n", 400},
		{"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", 400},
		{"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
		{"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx", 400},
		{"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 413},
		{"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
		{"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", 413},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct raw_answer a = ask(cases[i].text);
		if (a.status != cases[i].status)
			fail_msg("%s => %d, wanted %d", cases[i].text, a.status, cases[i].status);
		raw_answer_free(&a);
	}
	expect("GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", 200, NULL);
}

/* Whatever two servers may read differently is refused, and what follows on the connection is not read at all. */
static void smuggling_is_refused(void **state)
{
	(void)state;
	static const char *const headers[] = {
		"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n",
		"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
		"Content-Length: 6\r\nContent-Length: 5\r\n",
		"Content-Length: 6\r\nContent-Length: 6\r\n",
		"Content-Length: 6, 6\r\n",
		"Content-Length : 6\r\n",
		"Transfer-Encoding : chunked\r\n",
		"Transfer-Encoding: identity\r\n",
		"Transfer-Encoding: chunked, identity\r\n",
		"Transfer-Encoding: xchunked\r\n",
		"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
		"Transfer-Encoding:\vchunked\r\n",
		"Content-Length: 0x6\r\n",
		"Content-Length: 6 6\r\n",
	};
	for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
		struct raw c = raw_open(port);
		raw_printf(&c, "POST /echo HTTP/1.1\r\nHost: x\r\n%s\r\n0\r\n\r\nGGET /echo?smuggled=1 HTTP/1.1\r\nHost: x\r\n\r\n", headers[i]);
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		if (a.status != 400)
			fail_msg("%s => %d %s", headers[i], a.status, a.body);
		raw_answer_free(&a);
		a = raw_answer(&c, false, WAIT_MS);
		assert_int_equal(a.status, 0);
		assert_true(c.closed);
		raw_close(&c);
	}
	expect("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, NULL);
}

static void header_floods_end(void **state)
{
	(void)state;
	struct raw c = raw_open(port);
	char line[1024];
	memset(line, 'a', sizeof line);
	memcpy(line, "X-Flood: ", 9);
	memcpy(line + sizeof line - 2, "\r\n", 2);
	raw_puts(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n");
	bool ok = true;
	for (int i = 0; ok && i < 20000; i++)
		ok = raw_send(&c, line, sizeof line);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	assert_true(a.status == 431 || a.status == 413 || (a.status == 0 && c.closed));
	raw_answer_free(&a);
	raw_close(&c);

	/* just above the limit, and just below */
	for (int above = 0; above < 2; above++) {
		c = raw_open(port);
		raw_puts(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n");
		for (int i = 0; i < 31 + 2 * above; i++)
			raw_send(&c, line, sizeof line);
		raw_puts(&c, "\r\n");
		a = raw_answer(&c, false, WAIT_MS);
		assert_int_equal(a.status, above ? 400 : 200);
		raw_answer_free(&a);
		raw_close(&c);
	}
	/* and one endless line */
	c = raw_open(port);
	raw_puts(&c, "GET /");
	ok = true;
	for (int i = 0; ok && i < 20000; i++)
		ok = raw_send(&c, line + 9, 1000);
	assert_true(raw_wait_closed(&c, WAIT_MS));
	raw_close(&c);
}

/* A client may end its side when it has asked; the answer still comes. */
static void half_closed_clients_are_answered(void **state)
{
	(void)state;
	for (int i = 0; i < 20; i++) {
		struct raw c = raw_open(port);
		raw_puts(&c, "GET /plain?n=3000000 HTTP/1.1\r\nHost: x\r\n\r\n");
		shutdown(c.fd, SHUT_WR);
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		assert_int_equal(a.status, 200);
		assert_int_equal(a.body_n, 3000000);
		raw_answer_free(&a);
		raw_close(&c);
	}
}

static void gzip_when_wanted(void **state)
{
	(void)state;
	static const struct {
		const char *path, *accept;
		bool gzip;
	} cases[] = {
		{"/large?n=200000", "gzip", true},
		{"/large?n=2000000", "deflate, gzip;q=0.5", true},
		{"/large?n=200000", "*", true},
		{"/large?n=200000", "GZIP ; q=1", true},
		{"/large?n=200000", "gzip;q=0", false},
		{"/large?n=200000", "gzip;q=0.000, *", false},
		{"/large?n=200000", "br", false},
		{"/large?n=200000", "xgzip", false},
		{"/large?n=900", "gzip", false},
		{"/plain?n=200000", "gzip", false},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char text[300];
		snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: x\r\nAccept-Encoding: %s\r\n\r\n", cases[i].path, cases[i].accept);
		struct raw_answer a = ask(text);
		char *encoding = raw_header(&a, "Content-Encoding");
		assert_int_equal(a.status, 200);
		assert_int_equal(encoding != NULL, cases[i].gzip);
		size_t n = strtoul(strchr(cases[i].path, '=') + 1, NULL, 10);
		unsigned char *out = malloc(n + 1);
		if (encoding) {
			z_stream z = {.next_in = (Bytef *)a.body, .avail_in = (uInt)a.body_n, .next_out = out, .avail_out = (uInt)n + 1};
			assert_true(a.body_n < n / 10);
			assert_int_equal(inflateInit2(&z, 31), Z_OK);
			assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
			assert_int_equal(z.total_out, n);
			inflateEnd(&z);
		} else {
			assert_int_equal(a.body_n, n);
			memcpy(out, a.body, n);
		}
		for (size_t k = 0; k < n; k++)
			assert_int_equal(out[k], 'a' + k % 26);
		free(out);
		free(encoding);
		raw_answer_free(&a);
	}
}

static void address_errors_say_what_to_do(void **state)
{
	(void)state;
	char taken[64];
	snprintf(taken, sizeof taken, "127.0.0.1:%u", port);
	const struct {
		const char *address, *words;
	} cases[] = {
		{taken, "is taken: another process listens there"},
		{"127.0.0.1", "write HOST:PORT"},
		{"127.0.0.1:x", "the port must be 0 to 65535"},
		{"127.0.0.1:65536", "the port must be 0 to 65535"},
		{"::1:80", "write an IPv6 address as [ADDRESS]:PORT"},
		{"198.51.100.1:0", "is not an address of this machine"},
		{"no.such.host.invalid:1", "address no.such.host.invalid:1: "},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct err err = {0};
		struct http_server *s;
		struct http_server_config cfg = {.address = cases[i].address};
		assert_int_not_equal(http_server_start(&cfg, routes, 1, &s, &err), OK);
		if (!strstr(err.msg, cases[i].words))
			fail_msg("%s: %s", cases[i].address, err.msg);
	}
}

static void listens_on_any_address(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_server *s;
	struct http_server_config cfg = {.address = ":0"};
	assert_int_equal(http_server_start(&cfg, routes, 1, &s, &err), OK);
	struct raw c = raw_open(http_server_port(s));
	raw_puts(&c, "GET /echo HTTP/1.0\r\n\r\n");
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	assert_int_equal(a.status, 200);
	raw_answer_free(&a);
	assert_true(raw_wait_closed(&c, WAIT_MS));
	raw_close(&c);
	http_server_stop(s, 100);
}

static void metrics_count(void **state)
{
	(void)state;
	struct metric *m =
		metric_counter_with2("varve_http_requests_total", "requests answered, by route and status", "handler", "/echo", "code", "200");
	double before = metric_value(m);
	struct raw c = raw_open(port);
	for (int i = 0; i < 10; i++) {
		raw_puts(&c, "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
		struct raw_answer a = raw_answer(&c, false, WAIT_MS);
		raw_answer_free(&a);
	}
	raw_close(&c);
	for (int i = 0; i < 100 && metric_value(m) < before + 10; i++)
		usleep(10000);
	assert_true(metric_value(m) == before + 10);
	struct buf b;
	buf_init(&b, 16 * MIB);
	metrics_write(&b);
	buf_u8(&b, 0);
	assert_non_null(strstr((char *)b.p, "varve_http_connections "));
	assert_non_null(strstr((char *)b.p, "varve_http_inflight_bytes 0\n"));
	assert_non_null(strstr((char *)b.p, "varve_http_requests_total{handler=\"other\",code=\"404\"}"));
	buf_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(routing),
		cmocka_unit_test(head_is_get_without_body),
		cmocka_unit_test(wrong_method_says_which),
		cmocka_unit_test(errors_have_two_forms),
		cmocka_unit_test(request_ids),
		cmocka_unit_test(params_from_query_and_form),
		cmocka_unit_test(pipelining_cut_anywhere),
		cmocka_unit_test(large_bodies_arrive_whole),
		cmocka_unit_test(expect_continue),
		cmocka_unit_test(refusal_survives_the_rest_of_the_body),
		cmocka_unit_test(small_refused_bodies_keep_the_connection),
		cmocka_unit_test(promised_bodies_cost_nothing),
		cmocka_unit_test(garbage),
		cmocka_unit_test(smuggling_is_refused),
		cmocka_unit_test(header_floods_end),
		cmocka_unit_test(half_closed_clients_are_answered),
		cmocka_unit_test(gzip_when_wanted),
		cmocka_unit_test(address_errors_say_what_to_do),
		cmocka_unit_test(listens_on_any_address),
		cmocka_unit_test(metrics_count),
	};
	return cmocka_run_group_tests(tests, start, stop);
}
