/* Clients that take their time: each is given some, and none takes it from the others. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/socket.h>
#include <cmocka.h>
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/net.h"
#include "tests/support/raw.h"

enum { WAIT_MS = 20000, IDLE_MS = 1000, REQUEST_MS = 800, CONNECTIONS = 40 };

static void echo(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, NULL, http_body(r));
}

static void large(void *arg, struct http_request *r)
{
	(void)arg;
	char *p = calloc(1, 16 * MIB);
	http_answer(r, 200, NULL, span_of(p, 16 * MIB));
	free(p);
}

static atomic_int streaming;
static void stream(void *arg, struct http_request *r)
{
	(void)arg;
	struct err err = {0};
	static const char junk[65536];
	errc rc = http_stream_begin(r, 200, NULL, &err);
	assert_int_equal(rc, OK);
	streaming++;
	while (rc == OK)
		rc = http_stream_write(r, span_of(junk, sizeof junk), &err);
	http_stream_end(r, false);
	streaming--;
}

/* Longer than both time-outs: a handler may think as long as it likes. */
static void think(void *arg, struct http_request *r)
{
	struct err err = {0};
	usleep((IDLE_MS + REQUEST_MS + 300) * 1000);
	if (!arg) {
		http_answer(r, 200, NULL, SPAN("thought"));
		return;
	}
	assert_int_equal(http_stream_begin(r, 200, NULL, &err), OK);
	usleep((IDLE_MS + REQUEST_MS + 300) * 1000);
	assert_int_equal(http_stream_write(r, SPAN("thought"), &err), OK);
	http_stream_end(r, true);
}

static const struct http_route routes[] = {
	{HTTP_GET | HTTP_POST, "/echo", 0, 1 * MIB, echo, NULL},
	{HTTP_GET, "/large", HTTP_WORKER, 0, large, NULL},
	{HTTP_GET, "/stream", HTTP_WORKER, 0, stream, NULL},
	{HTTP_GET, "/think", HTTP_WORKER, 0, think, NULL},
	{HTTP_GET, "/think/stream", HTTP_WORKER, 0, think, (void *)1},
};

static struct http_server *server;
static uint16_t port;

static int start(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_server_config cfg = {.address = "127.0.0.1:0",
		.threads = 2,
		.workers = 4,
		.worker_queue = 2,
		.max_connections = CONNECTIONS,
		.idle_timeout_ms = IDLE_MS,
		.request_timeout_ms = REQUEST_MS};
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

/* What a slow client does, and within which time it must be thrown out. */
struct slow {
	const char *name;
	const char *first; /* sent at once */
	const char *drip;  /* then byte by byte, again and again, one each pause_ms */
	int pause_ms;
	int min_ms, max_ms; /* the machine may be busy: what matters is that it is not WAIT_MS */
	pthread_t thread;
	int64_t lived_ms;
};

static void *slow_main(void *arg)
{
	struct slow *s = arg;
	struct raw c = raw_open(port);
	int64_t begin = raw_now_ms();
	raw_puts(&c, s->first);
	for (size_t i = 0; !c.closed && raw_now_ms() - begin < WAIT_MS; i++) {
		if (s->drip && !raw_send(&c, &s->drip[i % strlen(s->drip)], 1))
			break;
		if (raw_wait_closed(&c, s->pause_ms))
			break;
	}
	s->lived_ms = raw_now_ms() - begin;
	raw_close(&c);
	return NULL;
}

static void check_slow_clients(void)
{
	struct slow cases[] = {
		{"silent", "", NULL, 100, IDLE_MS - 100, 5000, 0, 0},
		{"idle after a request", "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", NULL, 100, IDLE_MS - 100, 5000, 0, 0},
		{"body that stands still", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc", NULL, 100, REQUEST_MS - 10, 5000, 0,
			0}, /* the shorter one ends it */
		{"dripping first line", "GET /", "a", 100, REQUEST_MS, 6000, 0, 0},
		{"dripping empty lines", "", "\r\n", 100, REQUEST_MS, 6000, 0, 0},
		{"dripping headers", "GET /echo HTTP/1.1\r\nHost: x\r\n", "X: y\r\n", 100, REQUEST_MS, 5000, 0, 0},
		{"dripping body", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", "a", 100, REQUEST_MS, 5000, 0, 0},
		{"dripping chunks", "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\na\r\n", 100, REQUEST_MS, 4500, 0,
			0},
		{"dripping refused body", "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", "a", 100, REQUEST_MS, 5000, 0, 0},
	};
	enum { N = sizeof cases / sizeof cases[0] };
	for (int i = 0; i < N; i++)
		pthread_create(&cases[i].thread, NULL, slow_main, &cases[i]);
	for (int i = 0; i < N; i++)
		pthread_join(cases[i].thread, NULL);
	for (int i = 0; i < N; i++) {
		if (cases[i].lived_ms < cases[i].min_ms || cases[i].lived_ms > cases[i].max_ms)
			fail_msg("%s: thrown out after %lld ms, not %d to %d", cases[i].name, (long long)cases[i].lived_ms, cases[i].min_ms,
				cases[i].max_ms);
	}
}

/* Takes a kilobyte now and then: it moves, but an answer must not be held for ever. */
static void *sip_main(void *arg)
{
	const char *path = arg;
	struct raw c = raw_open(port);
	int tiny = 4096;
	setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &tiny, sizeof tiny);
	raw_printf(&c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
	char sip[1024];
	int64_t begin = raw_now_ms();
	while (raw_now_ms() - begin < 6000) {
		if (recv(c.fd, sip, sizeof sip, 0) <= 0)
			break;
		usleep(100000);
	}
	raw_close(&c);
	return NULL;
}

/* All at the same time, because each takes its time: who drips, who sips, and handlers that think for longer than any client may wait. */
static void slow_clients_are_thrown_out_slow_handlers_are_not(void **state)
{
	(void)state;
	struct metric *m = metric_counter_with("varve_http_timeouts_total", "connections broken off for being slow", "side", "write");
	double before = metric_value(m);
	pthread_t sip[2];
	pthread_create(&sip[0], NULL, sip_main, (void *)(intptr_t) "/large");
	pthread_create(&sip[1], NULL, sip_main, (void *)(intptr_t) "/stream");
	struct raw a = raw_open(port), b = raw_open(port);
	raw_puts(&a, "GET /think HTTP/1.1\r\nHost: x\r\n\r\n");
	raw_puts(&b, "GET /think/stream HTTP/1.1\r\nHost: x\r\n\r\n");
	check_slow_clients();
	struct raw_answer x = raw_answer(&a, false, WAIT_MS);
	assert_int_equal(x.status, 200);
	assert_string_equal(x.body, "thought");
	raw_answer_free(&x);
	x = raw_answer(&b, false, WAIT_MS);
	assert_int_equal(x.status, 200);
	assert_string_equal(x.body, "thought");
	assert_false(x.cut);
	raw_answer_free(&x);
	raw_close(&a);
	raw_close(&b);
	for (int i = 0; i < 120 && (streaming || metric_value(m) < before + 2); i++)
		usleep(50000);
	assert_true(metric_value(m) >= before + 2);
	assert_int_equal(streaming, 0);
	pthread_join(sip[0], NULL);
	pthread_join(sip[1], NULL);
}

/* One connection too many is told so at once, and there is room again when one has gone. */
static void too_many_connections_are_503(void **state)
{
	(void)state;
	struct raw c[CONNECTIONS];
	for (int i = 0; i < CONNECTIONS; i++) {
		c[i] = raw_open(port);
		raw_puts(&c[i], "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
		struct raw_answer a = raw_answer(&c[i], false, WAIT_MS);
		assert_int_equal(a.status, 200);
		raw_answer_free(&a);
	}
	for (int i = 0; i < 10; i++) {
		struct raw d = raw_open(port);
		raw_puts(&d, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n");
		int64_t t = raw_now_ms();
		struct raw_answer a = raw_answer(&d, false, WAIT_MS);
		char *retry = raw_header(&a, "Retry-After");
		assert_int_equal(a.status, 503);
		assert_string_equal(a.body, "err-varve-overloaded: too many open connections\n");
		assert_non_null(retry);
		assert_true(raw_now_ms() - t < 500);
		free(retry);
		raw_answer_free(&a);
		raw_close(&d);
	}
	raw_close(&c[0]);
	usleep(100000);
	c[0] = raw_open(port);
	raw_puts(&c[0], "GET /echo HTTP/1.1\r\nHost: x\r\n\r\n");
	struct raw_answer a = raw_answer(&c[0], false, WAIT_MS);
	assert_int_equal(a.status, 200);
	raw_answer_free(&a);
	for (int i = 0; i < CONNECTIONS; i++)
		raw_close(&c[i]);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(slow_clients_are_thrown_out_slow_handlers_are_not),
		cmocka_unit_test(too_many_connections_are_503),
	};
	return cmocka_run_group_tests(tests, start, stop);
}
