/* Every allocation of the server and the client fails in turn: nothing crashes, nothing hangs, nothing is lost for good. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/limits.h"
#include "base/log.h"
#include "net/net.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/raw.h"
#include "tests/support/tmp.h"

enum { WAIT_MS = 20000 };

static void echo(void *arg, struct http_request *r)
{
	(void)arg;
	struct err err = {0};
	if (http_parse_params(r, &err)) {
		http_error_of(r, &err);
		return;
	}
	http_set_header(r, "X-Extra", "1");
	http_answer(r, 200, NULL, http_body(r));
}

static void stream(void *arg, struct http_request *r)
{
	(void)arg;
	struct err err = {0};
	if (http_stream_begin(r, 200, NULL, &err)) {
		http_error_of(r, &err);
		return;
	}
	errc rc = OK;
	for (int i = 0; rc == OK && i < 50; i++)
		rc = http_stream_write(r, SPAN("0123456789012345678901234567890123456789"), &err);
	http_stream_end(r, rc == OK);
}

static const struct http_route routes[] = {
	{HTTP_GET | HTTP_POST, "/api/v1/echo/*", HTTP_GZIP, 1 * MIB, echo, NULL},
	{HTTP_GET, "/stream", HTTP_WORKER | HTTP_GZIP, 0, stream, NULL},
};

static const char web[] = "basic_auth_users:\n  alice: $2b$04$u7cgPMfCYglaBjAkRHfJwOpFkfYkMQSe.xMkWHwiuvqahfuq5El8.\n"
			  "http_server_config:\n  headers:\n    X-Frame-Options: deny\n";

static char path[4096];

static int write_web(void **state)
{
	(void)state;
	snprintf(path, sizeof path, "%s/web.yml", tmp_dir());
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	fputs(web, f);
	return fclose(f);
}

static errc start(struct http_server **s, struct err *err)
{
	struct http_server_config cfg = {
		.address = "127.0.0.1:0", .web_config = path, .threads = 1, .workers = 1, .worker_queue = 10, .max_connections = 100};
	return http_server_start(&cfg, routes, 2, s, err);
}

static void starting(void **state)
{
	(void)state;
	uint64_t n = 1, hits = 1;
	for (; hits; n++) {
		struct err err = {0};
		struct http_server *s = NULL;
		fail_alloc_at(n, false);
		errc rc = start(&s, &err);
		hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		if (hits == 0)
			assert_int_equal(rc, OK);
		if (rc == OK)
			http_server_stop(s, 1000);
	}
	assert_true(n > 10);
}

static const char auth[] = "Authorization: Basic YWxpY2U6c2VjcmV0\r\n";

/* Status, 0 when the connection was closed; a whole answer must be the right one. */
static int ask(uint16_t port, const char *first, const char *more, const char *body, const char *want)
{
	struct raw c = raw_open(port);
	raw_printf(&c, "%s HTTP/1.1\r\nHost: x\r\n%s%sContent-Length: %zu\r\n\r\n%s", first, auth, more, strlen(body), body);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	int status = a.status;
	if (status == 0)
		assert_true(c.closed);
	if (status == 200 && !a.cut && want)
		assert_string_equal(a.body, want);
	raw_answer_free(&a);
	raw_close(&c);
	return status;
}

static void serving(void **state)
{
	(void)state;
	struct http_server *s;
	struct err err = {0};
	assert_int_equal(start(&s, &err), OK);
	uint16_t port = http_server_port(s);
	char *body = malloc(100001);
	memset(body, 'x', 100000);
	body[100000] = 0;
	for (int kind = 0; kind < 4; kind++) {
		uint64_t n = 1, hits = 1;
		int refused = 0;
		for (; hits; n++) {
			fail_alloc_at(n, false);
			fail_alloc_pause();
			int status = kind == 0	 ? ask(port, "POST /api/v1/echo/a%20b?x=%20y&z=1",
							   "Content-Type: application/x-www-form-urlencoded\r\n", "a=%20", "a=%20")
				     : kind == 1 ? ask(port, "POST /api/v1/echo/a", "", body, body)
				     : kind == 2 ? ask(port, "GET /stream", "Accept-Encoding: gzip\r\n", "", NULL)
						 : ask(port, "GET /nowhere/a/b", "", "", NULL);
			fail_alloc_resume();
			usleep(1000); /* what comes behind the answer */
			hits = fail_alloc_off();
			int good = kind == 3 ? 404 : 200;
			if (hits == 0)
				assert_int_equal(status, good);
			if (status != good && status != 0 && status != 503)
				fail_msg("kind %d, allocation %llu: %d", kind, (unsigned long long)n, status);
			refused += status != good;
		}
		assert_true(n > 5 && refused > 0);
	}
	free(body);
	assert_int_equal(ask(port, "POST /api/v1/echo/a", "", "abc", "abc"), 200);
	http_server_stop(s, 1000);
}

static void calling(void **state)
{
	(void)state;
	struct http_server *s;
	struct err err = {0};
	char url[64];
	assert_int_equal(start(&s, &err), OK);
	snprintf(url, sizeof url, "http://127.0.0.1:%u/api/v1/echo/a", http_server_port(s));
	uint64_t n = 1, hits = 1;
	for (; hits; n++) {
		const char *headers[] = {"Authorization: Basic YWxpY2U6c2VjcmV0"};
		struct http_client *c;
		struct http_client_config cfg = {.max_idle_connections = 1, .ca_file = "/none", .server_name = "localhost"};
		struct http_call call = {
			.method = "POST", .url = url, .headers = headers, .n_headers = 1, .body = SPAN("abc"), .max_answer_bytes = 1000};
		fail_alloc_at(n, false);
		errc rc = http_client_open(&cfg, &c, &err);
		assert_true(rc == OK || rc == ERR_NOMEM);
		if (rc == OK) {
			rc = http_call(c, &call, &err);
			if (rc == OK && call.status == 200)
				assert_true(span_is(span_of(call.answer.p, call.answer.n), "abc"));
			else if (rc != ERR_NOMEM && rc != ERR_NET && !(rc == OK && call.status == 503))
				fail_msg("allocation %llu: %s %d %s", (unsigned long long)n, errc_name(rc), call.status, err.msg);
			http_client_close(c);
		}
		hits = fail_alloc_off();
		if (hits == 0)
			assert_int_equal(rc, OK);
		buf_free(&call.answer);
		buf_free(&call.answer_headers);
	}
	assert_true(n > 5);
	http_server_stop(s, 1000);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(starting),
		cmocka_unit_test(serving),
		cmocka_unit_test(calling),
	};
	return cmocka_run_group_tests(tests, write_web, NULL);
}
