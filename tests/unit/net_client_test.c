/* The client against servers that hang, lie, break off and talk too much. */
#include <arpa/inet.h>
#include <netinet/in.h>
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
#include "net/net.h"
#include "tests/support/raw.h"

/* A server that reads one request's head (and `read_body` bytes behind it), sends `say`, and then closes, resets or hangs. */
struct liar {
	const char *say;
	size_t repeat; /* sends the last byte of `say` this many times more */
	size_t read_body;
	enum { CLOSE, RESET, HANG, NEXT } then;
	/* state */
	int listen_fd;
	uint16_t port;
	pthread_t thread;
	atomic_bool stop;
	atomic_int accepted;
	char seen[8192];
};

static void liar_one(struct liar *l, int fd)
{
	for (;;) {
		size_t n = 0;
		char *end = NULL;
		memset(l->seen, 0, sizeof l->seen);
		while (!end && n < sizeof l->seen - 1) {
			ssize_t k = recv(fd, l->seen + n, sizeof l->seen - 1 - n, 0);
			if (k <= 0)
				goto out;
			n += (size_t)k;
			end = strstr(l->seen, "\r\n\r\n");
		}
		if (!end)
			goto out;
		size_t body = n - (size_t)(end + 4 - l->seen);
		while (body < l->read_body) {
			char sink[65536];
			ssize_t k = recv(fd, sink, sizeof sink, 0);
			if (k <= 0)
				goto out;
			body += (size_t)k;
		}
		send(fd, l->say, strlen(l->say), MSG_NOSIGNAL);
		if (l->repeat) {
			char block[65536];
			memset(block, l->say[strlen(l->say) - 1], sizeof block);
			for (size_t left = l->repeat; left && !l->stop;) {
				ssize_t k = send(fd, block, left < sizeof block ? left : sizeof block, MSG_NOSIGNAL);
				if (k <= 0)
					goto out;
				left -= (size_t)k;
			}
		}
		if (l->then != NEXT)
			break;
	}
	while (l->then == HANG && !l->stop)
		usleep(2000);
	if (l->then == RESET) {
		struct linger now = {.l_onoff = 1};
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	}
out:
	close(fd);
}

static void *liar_main(void *arg)
{
	struct liar *l = arg;
	while (!l->stop) {
		int fd = accept(l->listen_fd, NULL, NULL);
		if (fd < 0)
			break;
		l->accepted++;
		liar_one(l, fd);
	}
	return NULL;
}

static void liar_start(struct liar *l)
{
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t n = sizeof sa;
	l->listen_fd = socket(AF_INET, SOCK_STREAM, 0);
	assert_int_equal(bind(l->listen_fd, (struct sockaddr *)&sa, sizeof sa), 0);
	assert_int_equal(listen(l->listen_fd, 10), 0);
	assert_int_equal(getsockname(l->listen_fd, (struct sockaddr *)&sa, &n), 0);
	l->port = ntohs(sa.sin_port);
	pthread_create(&l->thread, NULL, liar_main, l);
}

static void liar_stop(struct liar *l)
{
	l->stop = true;
	shutdown(l->listen_fd, SHUT_RDWR);
	pthread_join(l->thread, NULL);
	close(l->listen_fd);
}

static struct http_client *client_of(int64_t idle_ms, int64_t total_ms)
{
	struct err err = {0};
	struct http_client *c;
	struct http_client_config cfg = {
		.connect_timeout_ms = 2000, .idle_timeout_ms = idle_ms, .total_timeout_ms = total_ms, .max_idle_connections = 4};
	assert_int_equal(http_client_open(&cfg, &c, &err), OK);
	return c;
}

static void call_free(struct http_call *call)
{
	buf_free(&call->answer);
	buf_free(&call->answer_headers);
}

struct result {
	errc rc;
	int status;
	size_t bytes;
	char msg[512];
	int64_t ms;
};

/* One call to a liar that exists for this one. */
static struct result ask_liar(struct liar l, struct http_call call, int64_t idle_ms, int64_t total_ms)
{
	struct err err = {0};
	char url[128];
	liar_start(&l);
	struct http_client *c = client_of(idle_ms, total_ms);
	snprintf(url, sizeof url, "http://user:hush@127.0.0.1:%u/path?signature=hush", l.port);
	const char *headers[] = {"Authorization: Bearer hush"};
	call.url = url;
	call.headers = headers;
	call.n_headers = 1;
	if (!call.method)
		call.method = "GET";
	if (!call.max_answer_bytes)
		call.max_answer_bytes = 1000;
	int64_t begin = raw_now_ms();
	struct result x = {.rc = http_call(c, &call, &err)};
	x.ms = raw_now_ms() - begin;
	x.status = call.status;
	x.bytes = call.answer.n;
	snprintf(x.msg, sizeof x.msg, "%s", err.msg);
	assert_null(strstr(x.msg, "hush"));
	if (x.rc) {
		char place[64];
		snprintf(place, sizeof place, "%s http://127.0.0.1:%u/path: ", call.method, l.port);
		if (strncmp(x.msg, place, strlen(place)) != 0)
			fail_msg("%s", x.msg);
		assert_int_equal(err.code, x.rc);
	}
	call_free(&call);
	http_client_close(c);
	liar_stop(&l);
	return x;
}

static void answers_good_and_bad(void **state)
{
	(void)state;
	static const struct {
		struct liar l;
		errc rc;
		int status;
		size_t bytes;
	} cases[] = {
		{{.say = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"}, OK, 200, 3},
		{{.say = "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"}, OK, 404, 0},
		{{.say = "HTTP/1.1 301 Away\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"}, OK, 301, 0},
		{{.say = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n"}, OK, 204, 0},
		{{.say = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"}, OK, 200, 3},
		{{.say = "HTTP/1.1 200 OK\r\n\r\nto the end"}, OK, 200, 10},
		{{.say = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\na", .repeat = 999}, OK, 200, 1000},
		{{.say = "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\na", .repeat = 1000}, ERR_LIMIT, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\na", .then = HANG}, ERR_LIMIT, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\n\r\na", .repeat = 100 * 1024 * 1024}, ERR_LIMIT, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\nX: a", .repeat = 100 * 1024 * 1024}, ERR_NOMEM, 0, 0}, /* libcurl's word for it */
		{{.say = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"}, ERR_NET, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", .then = RESET}, ERR_NET, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab"}, ERR_NET, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\nContent-Le"}, ERR_NET, 0, 0},
		{{.say = ""}, ERR_NET, 0, 0},
		{{.say = "", .then = RESET}, ERR_NET, 0, 0},
		{{.say = "220 smtp ready\r\n"}, ERR_NET, 0, 0},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct result x = ask_liar(cases[i].l, (struct http_call){0}, 5000, 10000);
		if (x.rc != cases[i].rc || (x.rc == OK && (x.status != cases[i].status || x.bytes != cases[i].bytes)))
			fail_msg("%s => %s, %d, %zu bytes: %s", cases[i].l.say, errc_name(x.rc), x.status, x.bytes, x.msg);
	}
}

static void header_floods_end(void **state)
{
	(void)state;
	char *text = calloc(1, 1 * MIB);
	size_t n = (size_t)sprintf(text, "HTTP/1.1 200 OK\r\n");
	for (int i = 0; i < 2000; i++)
		n += (size_t)sprintf(text + n, "X-Flood-%d: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", i);
	sprintf(text + n, "\r\n");
	struct result x = ask_liar((struct liar){.say = text}, (struct http_call){0}, 5000, 0);
	assert_int_equal(x.rc, ERR_LIMIT);
	free(text);
}

static void headers_are_kept_in_lower_case(void **state)
{
	(void)state;
	struct err err = {0};
	struct liar l = {.say = "HTTP/1.1 100 Continue\r\nX-Interim: 1\r\n\r\nHTTP/1.1 200 OK\r\nETag: \"Abc\"\r\nX-Empty:\r\nx-amz-A:   b  "
				"\r\nContent-Length: 0\r\n\r\n"};
	char url[64];
	liar_start(&l);
	struct http_client *c = client_of(5000, 0);
	snprintf(url, sizeof url, "http://127.0.0.1:%u/a%%20b/../c", l.port);
	struct http_call call = {.method = "GET", .url = url, .max_answer_bytes = 10};
	assert_int_equal(http_call(c, &call, &err), OK);
	assert_true(span_is(http_call_header(&call, "etag"), "\"Abc\""));
	assert_true(span_is(http_call_header(&call, "x-amz-a"), "b"));
	assert_int_equal(http_call_header(&call, "x-empty").n, 0);
	assert_non_null(http_call_header(&call, "x-empty").p);
	assert_null(http_call_header(&call, "x-interim").p);
	assert_null(http_call_header(&call, "etagg").p);
	assert_null(http_call_header(&call, "eta").p);
	assert_memory_equal(l.seen, "GET /a%20b/../c HTTP/1.1\r\n", 26); /* as signed */
	assert_null(strcasestr(l.seen, "user-agent"));
	call_free(&call);
	http_client_close(c);
	liar_stop(&l);
}

static void hanging_servers_time_out(void **state)
{
	(void)state;
	static const char *const says[] = {"", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"};
	for (size_t i = 0; i < 3; i++) {
		struct result x = ask_liar((struct liar){.say = says[i], .then = HANG}, (struct http_call){0}, 300, 0);
		assert_int_equal(x.rc, ERR_TIMEOUT);
		assert_in_range(x.ms, 250, 2000);
		assert_non_null(strstr(x.msg, "not a byte for 300 ms"));
		x = ask_liar((struct liar){.say = says[i], .then = HANG}, (struct http_call){0}, 5000, 300);
		assert_int_equal(x.rc, ERR_TIMEOUT);
		assert_in_range(x.ms, 250, 2000);
	}
	/* a server that does not take the body */
	char *junk = calloc(1, 64 * MIB);
	struct result x =
		ask_liar((struct liar){.say = "", .then = HANG}, (struct http_call){.method = "PUT", .body = span_of(junk, 64 * MIB)}, 300, 0);
	assert_int_equal(x.rc, ERR_TIMEOUT);
	free(junk);
}

static void nobody_there(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_client *c = client_of(1000, 2000);
	static const struct {
		const char *url;
		errc rc;
	} cases[] = {
		{"http://127.0.0.1:1/x", ERR_NET},
		{"http://no.such.host.invalid/x", ERR_NET},
		{"ftp://127.0.0.1/x", ERR_INVALID},
		{"file:///etc/passwd", ERR_INVALID},
		{"no url", ERR_INVALID},
		{"http://127.0.0.1:99999/", ERR_INVALID},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct http_call call = {.method = "GET", .url = cases[i].url, .max_answer_bytes = 10};
		errc rc = http_call(c, &call, &err);
		if (rc != cases[i].rc)
			fail_msg("%s: %s %s", cases[i].url, errc_name(rc), err.msg);
		call_free(&call);
	}
	http_client_close(c);
}

/* ---- against our own server ---- */

static void echo(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, http_method(r) == HTTP_GET && http_body(r).n == 0 ? 201 : 200, "application/octet-stream", http_body(r));
}

static _Atomic(struct http_request *) hung;
static void hang(void *arg, struct http_request *r)
{
	(void)arg;
	http_defer(r);
	hung = r;
}

static const struct http_route routes[] = {
	{HTTP_GET | HTTP_PUT | HTTP_POST | HTTP_DELETE, "/echo", 0, 64 * MIB, echo, NULL},
	{HTTP_GET, "/hang", 0, 0, hang, NULL},
};

static struct http_server *server;
static char base_url[64];

static int start(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_server_config cfg = {.address = "127.0.0.1:0", .threads = 1, .workers = 1, .max_connections = 100};
	/* what the environment says is not listened to */
	setenv("http_proxy", "http://127.0.0.1:1", 1);
	setenv("all_proxy", "http://127.0.0.1:1", 1);
	if (http_server_start(&cfg, routes, 2, &server, &err))
		fail_msg("%s", err.msg);
	snprintf(base_url, sizeof base_url, "http://127.0.0.1:%u", http_server_port(server));
	return 0;
}

static int stop(void **state)
{
	(void)state;
	http_server_stop(server, 1000);
	return 0;
}

struct source {
	size_t at, n, step, fail_at;
	uint64_t crc;
};

static errc read_some(void *arg, void *buf, size_t n, size_t *got, struct err *err)
{
	struct source *s = arg;
	if (s->fail_at && s->at >= s->fail_at)
		return err_set(err, ERR_CORRUPT, "page %d is torn", 7);
	size_t k = n < s->step ? n : s->step;
	for (size_t i = 0; i < k; i++)
		((uint8_t *)buf)[i] = (uint8_t)((s->at + i) * 31);
	s->at += k;
	*got = k;
	return OK;
}

static errc write_some(void *arg, const void *p, size_t n, struct err *err)
{
	struct source *s = arg;
	for (size_t i = 0; i < n; i++) {
		if (((const uint8_t *)p)[i] != (uint8_t)((s->n + i) * 31))
			return err_set(err, ERR_CORRUPT, "byte %zu is wrong", s->n + i);
	}
	s->n += n;
	if (s->fail_at && s->n >= s->fail_at)
		return err_set(err, ERR_NOSPACE, "disk full");
	return OK;
}

static void bodies_in_and_out(void **state)
{
	(void)state;
	static const size_t sizes[] = {0, 1, 1000, 65536, 1000001, 20000000};
	static const char *const methods[] = {"PUT", "POST", "DELETE", "GET"};
	struct err err = {0};
	struct http_client *c = client_of(5000, 0);
	char url[128];
	snprintf(url, sizeof url, "%s/echo", base_url);
	for (size_t m = 0; m < 4; m++) {
		for (size_t i = 0; i < 6; i++) {
			char *body = malloc(sizes[i] + 1);
			for (size_t k = 0; k < sizes[i]; k++)
				body[k] = (char)(k * 31);
			/* span to buffer */
			struct http_call call = {.method = methods[m], .url = url, .body = span_of(body, sizes[i]), .max_answer_bytes = sizes[i]};
			if (http_call(c, &call, &err))
				fail_msg("%s", err.msg);
			assert_int_equal(call.status, m == 3 && sizes[i] == 0 ? 201 : 200);
			assert_int_equal(call.answer.n, sizes[i]);
			if (sizes[i])
				assert_memory_equal(call.answer.p, body, sizes[i]);
			/* callback to callback, in the same call struct */
			struct source s = {.step = 7001};
			call.body = (struct span){0};
			call.read = read_some;
			call.write = write_some;
			call.arg = &s;
			call.body_bytes = sizes[i];
			if (http_call(c, &call, &err))
				fail_msg("%s", err.msg);
			assert_int_equal(s.n, sizes[i]);
			call_free(&call);
			free(body);
		}
	}
	struct http_call call = {.method = "HEAD", .url = url, .max_answer_bytes = 10};
	assert_int_equal(http_call(c, &call, &err), OK);
	assert_int_equal(call.status, 200);
	call_free(&call);
	http_client_close(c);
}

static void callbacks_that_fail(void **state)
{
	(void)state;
	struct err err = {0};
	struct http_client *c = client_of(5000, 0);
	char url[128];
	snprintf(url, sizeof url, "%s/echo", base_url);
	struct source s = {.step = 1000, .fail_at = 50000};
	struct http_call call = {.method = "PUT", .url = url, .read = read_some, .arg = &s, .body_bytes = 100000, .max_answer_bytes = 10};
	assert_int_equal(http_call(c, &call, &err), ERR_CORRUPT);
	assert_non_null(strstr(err.msg, "page 7 is torn"));
	char *body = malloc(1000000);
	for (size_t k = 0; k < 1000000; k++)
		body[k] = (char)(k * 31);
	s = (struct source){.fail_at = 300000};
	struct http_call down = {.method = "PUT", .url = url, .body = span_of(body, 1000000), .write = write_some, .arg = &s};
	assert_int_equal(http_call(c, &down, &err), ERR_NOSPACE);
	assert_non_null(strstr(err.msg, "disk full"));
	/* the client goes on */
	struct http_call ok = {.method = "GET", .url = url, .max_answer_bytes = 10};
	assert_int_equal(http_call(c, &ok, &err), OK);
	free(body);
	call_free(&call);
	call_free(&down);
	call_free(&ok);
	http_client_close(c);
}

static void connections_are_kept(void **state)
{
	(void)state;
	struct err err = {0};
	struct liar l = {.say = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", .then = NEXT};
	char url[64];
	liar_start(&l);
	struct http_client *c = client_of(5000, 0);
	snprintf(url, sizeof url, "http://127.0.0.1:%u/", l.port);
	for (int i = 0; i < 20; i++) {
		struct http_call call = {.method = "GET", .url = url, .max_answer_bytes = 10};
		assert_int_equal(http_call(c, &call, &err), OK);
		call_free(&call);
	}
	assert_int_equal(l.accepted, 1);
	http_client_close(c);
	liar_stop(&l);
}

/* A kept connection that the server has closed meanwhile is replaced, not reported. */
static void dead_kept_connections_are_replaced(void **state)
{
	(void)state;
	struct err err = {0};
	struct liar l = {.say = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", .then = CLOSE, .read_body = 3};
	char url[64];
	liar_start(&l);
	struct http_client *c = client_of(5000, 0);
	snprintf(url, sizeof url, "http://127.0.0.1:%u/", l.port);
	for (int i = 0; i < 10; i++) {
		struct http_call call = {.method = "PUT", .url = url, .body = SPAN("abc"), .max_answer_bytes = 10};
		if (http_call(c, &call, &err))
			fail_msg("%s", err.msg);
		call_free(&call);
		if (i % 2)
			usleep(5000);
	}
	http_client_close(c);
	liar_stop(&l);
}

static struct http_client *shared;

static void *call_hang(void *arg)
{
	(void)arg;
	struct err err = {0};
	char url[128];
	snprintf(url, sizeof url, "%s/hang", base_url);
	struct http_call call = {.method = "GET", .url = url, .max_answer_bytes = 10};
	errc rc = http_call(shared, &call, &err);
	call_free(&call);
	return (void *)(intptr_t)rc;
}

static void cancel_is_immediate(void **state)
{
	(void)state;
	struct err err = {0};
	pthread_t t;
	void *rc;
	shared = client_of(60000, 0);
	hung = NULL;
	pthread_create(&t, NULL, call_hang, NULL);
	while (!hung)
		usleep(1000);
	usleep(1100000); /* beyond libcurl's own timers: from here on it looks once a second, unless it is woken */
	int64_t begin = raw_now_ms();
	http_client_cancel(shared);
	pthread_join(t, &rc);
	assert_true(raw_now_ms() - begin < 300);
	assert_int_equal((intptr_t)rc, ERR_CANCELED);
	struct http_call call = {.method = "GET", .url = base_url, .max_answer_bytes = 10};
	assert_int_equal(http_call(shared, &call, &err), ERR_CANCELED);
	call_free(&call);
	http_client_close(shared);
	http_answer(hung, 200, NULL, SPAN(""));
}

static void *call_many(void *arg)
{
	struct err err = {0};
	char url[128];
	snprintf(url, sizeof url, "%s/echo", base_url);
	intptr_t bad = 0;
	for (int i = 0; i < 100; i++) {
		char text[32];
		int n = snprintf(text, sizeof text, "%d:%d", *(int *)arg, i);
		struct http_call call = {.method = "POST", .url = url, .body = span_of(text, (size_t)n), .max_answer_bytes = 100};
		bad += http_call(shared, &call, &err) != OK || !span_eq(call.body, span_of(call.answer.p, call.answer.n));
		call_free(&call);
	}
	return (void *)bad;
}

static void many_threads_share_a_client(void **state)
{
	(void)state;
	pthread_t t[8];
	int id[8];
	shared = client_of(5000, 0);
	for (int i = 0; i < 8; i++) {
		id[i] = i;
		pthread_create(&t[i], NULL, call_many, &id[i]);
	}
	for (int i = 0; i < 8; i++) {
		void *bad;
		pthread_join(t[i], &bad);
		assert_null(bad);
	}
	http_client_close(shared);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_good_and_bad),
		cmocka_unit_test(header_floods_end),
		cmocka_unit_test(headers_are_kept_in_lower_case),
		cmocka_unit_test(hanging_servers_time_out),
		cmocka_unit_test(nobody_there),
		cmocka_unit_test(bodies_in_and_out),
		cmocka_unit_test(callbacks_that_fail),
		cmocka_unit_test(connections_are_kept),
		cmocka_unit_test(dead_kept_connections_are_replaced),
		cmocka_unit_test(cancel_is_immediate),
		cmocka_unit_test(many_threads_share_a_client),
	};
	return cmocka_run_group_tests(tests, start, stop);
}
