/* Answers that come later, from other threads, and bit by bit; and what happens when the other side does not wait for them. */
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
#include <zlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "net/net.h"
#include "tests/support/raw.h"

enum { WAIT_MS = 20000, ANSWERERS = 4 };

/* Threads that answer what handlers hand to them: at once, so that the answer often comes before the handler has returned. */
static struct answerer {
	pthread_mutex_t mu;
	pthread_cond_t filled;
	struct http_request *q[4096];
	size_t n;
	bool closing;
	pthread_t threads[ANSWERERS];
} answerers = {.mu = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER};

static void *answer_main(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&answerers.mu);
	for (;;) {
		while (!answerers.n && !answerers.closing)
			pthread_cond_wait(&answerers.filled, &answerers.mu);
		if (!answerers.n)
			break;
		struct http_request *r = answerers.q[--answerers.n];
		pthread_mutex_unlock(&answerers.mu);
		char text[64];
		int n = snprintf(text, sizeof text, "%.*s", (int)http_body(r).n, http_body(r).p);
		http_answer(r, 200, NULL, span_of(text, (size_t)n));
		pthread_mutex_lock(&answerers.mu);
	}
	pthread_mutex_unlock(&answerers.mu);
	return NULL;
}

static void defer(void *arg, struct http_request *r)
{
	(void)arg;
	http_defer(r);
	pthread_mutex_lock(&answerers.mu);
	answerers.q[answerers.n++] = r;
	pthread_cond_signal(&answerers.filled);
	pthread_mutex_unlock(&answerers.mu);
	if (io_random_u64() % 4 == 0)
		usleep(100); /* let the answer overtake us */
}

static int64_t param(struct http_request *r, const char *name, int64_t otherwise)
{
	struct err err = {0};
	int64_t v = otherwise;
	assert_int_equal(http_parse_params(r, &err), OK);
	struct span s = http_param(r, name, 0);
	if (s.p)
		span_to_i64(s, &v);
	return v;
}

static atomic_int streams_running, streams_canceled;

static void pattern(char *p, size_t n, uint64_t at)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (char)((at + i) * 2654435761u >> 11);
}

/* ?n=bytes&piece=bytes&fail=1&sleep=us */
static void stream(void *arg, struct http_request *r)
{
	(void)arg;
	struct err err = {0};
	int64_t n = param(r, "n", 0), piece = param(r, "piece", 1000), bad = param(r, "fail", 0), pause = param(r, "sleep", 0);
	bool ok = true;
	char *p = malloc((size_t)piece);
	streams_running++;
	if (http_stream_begin(r, 200, "application/octet-stream", &err)) {
		http_error_of(r, &err);
	} else {
		for (int64_t at = 0; ok && at < n; at += piece) {
			size_t k = (size_t)(n - at < piece ? n - at : piece);
			pattern(p, k, (uint64_t)at);
			errc rc = http_stream_write(r, span_of(p, k), &err);
			ok = rc == OK;
			if (rc == ERR_CANCELED)
				streams_canceled++;
			if (pause)
				usleep((useconds_t)pause);
		}
		http_stream_end(r, ok && !bad);
	}
	streams_running--;
	free(p);
}

static atomic_int blocked, blocked_done;
static atomic_bool release;
static void block(void *arg, struct http_request *r)
{
	(void)arg;
	blocked++;
	while (!release && !http_client_gone(r))
		usleep(1000);
	http_answer(r, release ? 200 : 499, NULL, SPAN("done"));
	blocked--;
	blocked_done++;
}

static void small(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, NULL, http_budget_take(r, (uint64_t)param(r, "take", 0)) ? SPAN("yes") : SPAN("no"));
}

static const struct http_route routes[] = {
	{HTTP_POST, "/defer", HTTP_INLINE, 64 * KIB, defer, NULL},
	{HTTP_GET, "/stream", HTTP_WORKER | HTTP_GZIP, 0, stream, NULL},
	{HTTP_GET, "/block", HTTP_WORKER, 0, block, NULL},
	{HTTP_GET | HTTP_POST, "/small", HTTP_INLINE, 1 * MIB, small, NULL},
	{HTTP_GET, "/free", HTTP_NO_BUDGET, 1 * MIB, small, NULL},
};

static struct http_server *server;
static uint16_t port;

static struct http_server *server_of(uint32_t workers, uint32_t queue)
{
	struct err err = {0};
	struct http_server *s;
	struct http_server_config cfg = {.address = "127.0.0.1:0",
		.threads = 2,
		.workers = workers,
		.worker_queue = queue,
		.max_connections = 1000,
		.idle_timeout_ms = 10000,
		.request_timeout_ms = 10000,
		.max_inflight_bytes = 4 * MIB};
	if (http_server_start(&cfg, routes, sizeof routes / sizeof routes[0], &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

static int start(void **state)
{
	(void)state;
	server = server_of(4, 3);
	port = http_server_port(server);
	for (int i = 0; i < ANSWERERS; i++)
		pthread_create(&answerers.threads[i], NULL, answer_main, NULL);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	http_server_stop(server, 1000);
	pthread_mutex_lock(&answerers.mu);
	answerers.closing = true;
	pthread_cond_broadcast(&answerers.filled);
	pthread_mutex_unlock(&answerers.mu);
	for (int i = 0; i < ANSWERERS; i++)
		pthread_join(answerers.threads[i], NULL);
	return 0;
}

static struct raw_answer get(const char *path, const char *headers)
{
	struct raw c = raw_open(port);
	raw_printf(&c, "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, headers);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	raw_close(&c);
	return a;
}

struct asker {
	pthread_t thread;
	int id, rounds, bad;
};

static void *ask_many(void *arg)
{
	struct asker *k = arg;
	struct raw c = raw_open(port);
	for (int i = 0; i < k->rounds; i += 4) {
		/* four at once on one connection */
		for (int j = 0; j < 4; j++) {
			char body[32];
			int n = snprintf(body, sizeof body, "%d:%d", k->id, i + j);
			raw_printf(&c, "POST /defer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", n, body);
		}
		for (int j = 0; j < 4; j++) {
			char want[32];
			snprintf(want, sizeof want, "%d:%d", k->id, i + j);
			struct raw_answer a = raw_answer(&c, false, WAIT_MS);
			k->bad += a.status != 200 || strcmp(a.body, want) != 0;
			raw_answer_free(&a);
		}
	}
	raw_close(&c);
	return NULL;
}

/* Each answer reaches the request it was made for, however the threads race. */
static void deferred_answers_by_the_thousand(void **state)
{
	(void)state;
	struct asker k[16] = {0};
	for (int i = 0; i < 16; i++) {
		k[i] = (struct asker){.id = i, .rounds = 400};
		pthread_create(&k[i].thread, NULL, ask_many, &k[i]);
	}
	for (int i = 0; i < 16; i++) {
		pthread_join(k[i].thread, NULL);
		assert_int_equal(k[i].bad, 0);
	}
}

/* Clients that go away while their answer is being made harm nobody. */
static void deferred_clients_go_away(void **state)
{
	(void)state;
	for (int i = 0; i < 300; i++) {
		struct raw c = raw_open(port);
		raw_puts(&c, "POST /defer HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
		if (i % 2) {
			struct linger now = {.l_onoff = 1};
			setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
		}
		raw_close(&c);
	}
	struct asker k = {.rounds = 40};
	ask_many(&k);
	assert_int_equal(k.bad, 0);
}

static void check_pattern(const struct raw_answer *a, size_t n)
{
	char *want = malloc(n + 1);
	pattern(want, n, 0);
	assert_int_equal(a->body_n, n);
	assert_memory_equal(a->body, want, n);
	free(want);
}

static void streams_arrive_whole(void **state)
{
	(void)state;
	static const struct {
		long n, piece;
	} cases[] = {
		{0, 10}, {1, 1}, {1000, 7}, {32768, 32768}, {32769, 100}, {1048576, 65536}, {1048577, 1048577}, {5000000, 3333}, {9999999, 4000000}};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		char path[100];
		snprintf(path, sizeof path, "/stream?n=%ld&piece=%ld", cases[i].n, cases[i].piece);
		struct raw_answer a = get(path, "");
		char *encoding = raw_header(&a, "Transfer-Encoding");
		assert_int_equal(a.status, 200);
		assert_string_equal(encoding, "chunked");
		assert_false(a.cut);
		check_pattern(&a, (size_t)cases[i].n);
		free(encoding);
		raw_answer_free(&a);

		a = get(path, "Accept-Encoding: gzip\r\n");
		char *out = malloc((size_t)cases[i].n + 1);
		z_stream z = {.next_in = (Bytef *)a.body, .avail_in = (uInt)a.body_n, .next_out = (Bytef *)out, .avail_out = (uInt)cases[i].n + 1};
		assert_int_equal(inflateInit2(&z, 31), Z_OK);
		assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
		inflateEnd(&z);
		raw_answer_free(&a);
		a = (struct raw_answer){.body = out, .body_n = z.total_out};
		check_pattern(&a, (size_t)cases[i].n);
		raw_answer_free(&a);
	}
}

/* An answer that fails half way must not look complete. */
static void failed_streams_are_cut(void **state)
{
	(void)state;
	struct raw_answer a = get("/stream?n=100000&fail=1", "");
	assert_int_equal(a.status, 200);
	assert_true(a.cut);
	raw_answer_free(&a);
	a = get("/stream?n=10&fail=1", "");
	assert_true(a.cut);
	raw_answer_free(&a);
}

static void http_10_streams_end_with_the_connection(void **state)
{
	(void)state;
	struct raw c = raw_open(port);
	raw_puts(&c, "GET /stream?n=200000 HTTP/1.0\r\n\r\n");
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	check_pattern(&a, 200000);
	assert_true(c.closed && !c.reset);
	raw_answer_free(&a);
	raw_close(&c);
	c = raw_open(port);
	raw_puts(&c, "GET /stream?n=200000&fail=1 HTTP/1.0\r\n\r\n");
	a = raw_answer(&c, false, WAIT_MS);
	assert_true(c.reset || a.body_n < 200000);
	raw_answer_free(&a);
	raw_close(&c);
}

/* The writer is held back: a client that reads slowly costs one buffer, not the answer. */
static void slow_reader_holds_the_writer(void **state)
{
	(void)state;
	struct raw c = raw_open(port);
	int small_buf = 65536;
	setsockopt(c.fd, SOL_SOCKET, SO_RCVBUF, &small_buf, sizeof small_buf);
	raw_puts(&c, "GET /stream?n=10000000&piece=100000 HTTP/1.1\r\nHost: x\r\n\r\n");
	usleep(300000);
	assert_int_equal(streams_running, 1); /* it would have written 10 MB long ago */
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	check_pattern(&a, 10000000);
	raw_answer_free(&a);
	raw_close(&c);
}

static void wait_for(atomic_int *v, int want)
{
	for (int i = 0; i < 10000 && *v != want; i++)
		usleep(1000);
	assert_int_equal(*v, want);
}

static void reader_that_goes_away_ends_the_stream(void **state)
{
	(void)state;
	for (int i = 0; i < 20; i++) {
		int before = streams_canceled;
		struct raw c = raw_open(port);
		raw_puts(&c, i % 2 ? "GET /stream?n=1000000000&piece=100000 HTTP/1.1\r\nHost: x\r\n\r\n"
				   : "GET /stream?n=1000000000&piece=10&sleep=10 HTTP/1.1\r\nHost: x\r\n\r\n");
		if (i % 4 < 2)
			usleep(20000);
		raw_close(&c);
		wait_for(&streams_canceled, before + 1);
		wait_for(&streams_running, 0);
	}
}

/* Four run, three wait, the eighth is told so; the rest goes on. */
static void full_queue_is_503(void **state)
{
	(void)state;
	struct raw c[8];
	release = false;
	for (int i = 0; i < 7; i++) {
		c[i] = raw_open(port);
		raw_puts(&c[i], "GET /block HTTP/1.1\r\nHost: x\r\n\r\n");
		if (i < 4)
			wait_for(&blocked, i + 1);
	}
	usleep(100000);
	int64_t t = raw_now_ms();
	struct raw_answer a = get("/block", "");
	char *retry = raw_header(&a, "Retry-After");
	assert_int_equal(a.status, 503);
	assert_non_null(strstr(a.body, "err-varve-overloaded: 4 requests run and 3 wait already"));
	assert_string_equal(retry, "1");
	assert_true(raw_now_ms() - t < 1000);
	free(retry);
	raw_answer_free(&a);
	a = get("/small", ""); /* not a worker's */
	assert_int_equal(a.status, 200);
	raw_answer_free(&a);
	release = true;
	for (int i = 0; i < 7; i++) {
		a = raw_answer(&c[i], false, WAIT_MS);
		assert_int_equal(a.status, 200);
		raw_answer_free(&a);
		raw_close(&c[i]);
	}
	wait_for(&blocked, 0);
}

static void handlers_see_that_the_client_is_gone(void **state)
{
	(void)state;
	release = false;
	struct raw c = raw_open(port);
	raw_puts(&c, "GET /block HTTP/1.1\r\nHost: x\r\n\r\n");
	wait_for(&blocked, 1);
	raw_close(&c);
	wait_for(&blocked, 0);
}

/* 4 MiB may be in flight: bodies that have arrived count, promises do not, and all comes back. */
static void budget_is_503(void **state)
{
	(void)state;
	char *junk = calloc(1, MIB);
	struct raw c[4];
	struct raw_answer a = get("/small?take=4194304", "");
	assert_string_equal(a.body, "yes");
	raw_answer_free(&a);
	a = get("/small?take=4194305", "");
	assert_string_equal(a.body, "no");
	raw_answer_free(&a);
	for (int i = 0; i < 4; i++) {
		c[i] = raw_open(port);
		raw_printf(&c[i], "POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: %llu\r\n\r\n", (unsigned long long)MIB);
		raw_send(&c[i], junk, MIB - 1);
	}
	usleep(200000);
	struct raw d = raw_open(port);
	raw_printf(&d, "POST /small HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n");
	a = raw_answer(&d, false, WAIT_MS);
	assert_int_equal(a.status, 503);
	assert_non_null(strstr(a.body, "err-varve-overloaded: "));
	raw_answer_free(&a);
	raw_close(&d);
	/* found out only when it arrives */
	d = raw_open(port);
	raw_puts(&d, "POST /small HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n");
	raw_send(&d, junk, 0xffff);
	a = raw_answer(&d, false, WAIT_MS);
	assert_int_equal(a.status, 503);
	raw_answer_free(&a);
	raw_close(&d);
	a = get("/free?take=4000000", "");
	assert_string_equal(a.body, "yes");
	raw_answer_free(&a);
	for (int i = 0; i < 4; i++) {
		if (i == 0) {
			raw_close(&c[0]); /* gives up */
			continue;
		}
		raw_send(&c[i], junk, 1);
		a = raw_answer(&c[i], false, WAIT_MS);
		assert_int_equal(a.status, 200);
		raw_answer_free(&a);
		raw_close(&c[i]);
	}
	usleep(100000);
	a = get("/small?take=4194304", "");
	assert_string_equal(a.body, "yes");
	raw_answer_free(&a);
	free(junk);
}

static void *stop_main(void *arg)
{
	http_server_stop(arg, 5000);
	return NULL;
}

/* What runs ends well; what comes meanwhile is told to go elsewhere; nothing is left. */
static void stopping_lets_requests_end(void **state)
{
	(void)state;
	struct http_server *s = server_of(2, 2);
	uint16_t p = http_server_port(s);
	release = false;
	struct raw running = raw_open(p), idle = raw_open(p), streaming = raw_open(p);
	raw_puts(&running, "GET /block HTTP/1.1\r\nHost: x\r\n\r\n");
	raw_puts(&streaming, "GET /stream?n=300000&piece=1000&sleep=500 HTTP/1.1\r\nHost: x\r\n\r\n");
	raw_puts(&idle, "GET /small HTTP/1.1\r\nHost: x\r\n\r\n");
	struct raw_answer a = raw_answer(&idle, false, WAIT_MS);
	raw_answer_free(&a);
	wait_for(&blocked, 1);
	wait_for(&streams_running, 1);
	pthread_t t;
	pthread_create(&t, NULL, stop_main, s);
	assert_true(raw_wait_closed(&idle, WAIT_MS));
	raw_puts(&running, "GET /small HTTP/1.1\r\nHost: x\r\n\r\n");
	usleep(50000);
	release = true;
	a = raw_answer(&running, false, WAIT_MS);
	char *connection = raw_header(&a, "Connection");
	assert_int_equal(a.status, 200);
	assert_string_equal(a.body, "done");
	assert_non_null(connection);
	free(connection);
	raw_answer_free(&a);
	a = raw_answer(&streaming, false, WAIT_MS);
	check_pattern(&a, 300000);
	assert_false(a.cut);
	raw_answer_free(&a);
	pthread_join(t, NULL);
	raw_close(&running);
	raw_close(&idle);
	raw_close(&streaming);
}

/* After the grace everything that hangs is cut loose: streams to a client that does not read, handlers that look whether the client is gone. */
static void stopping_ends_after_the_grace(void **state)
{
	(void)state;
	struct http_server *s = server_of(2, 2);
	uint16_t p = http_server_port(s);
	release = false;
	int done = blocked_done;
	struct raw running = raw_open(p), stuck = raw_open(p), queued = raw_open(p), half = raw_open(p);
	raw_puts(&running, "GET /block HTTP/1.1\r\nHost: x\r\n\r\n");
	raw_puts(&stuck, "GET /stream?n=1000000000&piece=100000 HTTP/1.1\r\nHost: x\r\n\r\n");
	raw_puts(&half, "POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
	wait_for(&blocked, 1);
	wait_for(&streams_running, 1);
	raw_puts(&queued, "GET /block HTTP/1.1\r\nHost: x\r\n\r\n");
	usleep(50000);
	int64_t t = raw_now_ms();
	http_server_stop(s, 300);
	t = raw_now_ms() - t;
	assert_in_range(t, 250, 3000);
	assert_int_equal(blocked_done, done + 1);
	assert_int_equal(streams_running, 0);
	raw_close(&running);
	raw_close(&stuck);
	raw_close(&queued);
	raw_close(&half);
}

static atomic_bool hammer_stop;
static void *hammer(void *arg)
{
	uint16_t p = *(uint16_t *)arg;
	while (!hammer_stop) {
		int fd_ok = 1;
		struct raw c = raw_try_open(p);
		if (c.fd < 0)
			break;
		for (int i = 0; fd_ok && i < 20 && !hammer_stop; i++) {
			fd_ok = raw_puts(&c, i % 3 ? "POST /defer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
						   : "GET /stream?n=70000 HTTP/1.1\r\nHost: x\r\n\r\n");
			struct raw_answer a = raw_answer(&c, false, 3000);
			fd_ok = fd_ok && a.status;
			raw_answer_free(&a);
		}
		raw_close(&c);
		if (!fd_ok)
			break;
	}
	return NULL;
}

/* Stopping in the middle of everything, again and again, under whatever sanitizer is on. */
static void stopping_under_fire(void **state)
{
	(void)state;
	for (int round = 0; round < 15; round++) {
		struct http_server *s = server_of(2, 100);
		uint16_t p = http_server_port(s);
		pthread_t t[4];
		hammer_stop = false;
		for (int i = 0; i < 4; i++)
			pthread_create(&t[i], NULL, hammer, &p);
		usleep((useconds_t)(20000 + io_random_u64() % 20000));
		http_server_stop(s, round % 3 ? 1000 : 0);
		hammer_stop = true;
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
	}
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(deferred_answers_by_the_thousand),
		cmocka_unit_test(deferred_clients_go_away),
		cmocka_unit_test(streams_arrive_whole),
		cmocka_unit_test(failed_streams_are_cut),
		cmocka_unit_test(http_10_streams_end_with_the_connection),
		cmocka_unit_test(slow_reader_holds_the_writer),
		cmocka_unit_test(reader_that_goes_away_ends_the_stream),
		cmocka_unit_test(full_queue_is_503),
		cmocka_unit_test(handlers_see_that_the_client_is_gone),
		cmocka_unit_test(budget_is_503),
		cmocka_unit_test(stopping_lets_requests_end),
		cmocka_unit_test(stopping_ends_after_the_grace),
		cmocka_unit_test(stopping_under_fire),
	};
	return cmocka_run_group_tests(tests, start, stop);
}
