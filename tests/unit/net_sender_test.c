/* The client that does not wait: many calls at once, against good servers and against peers that are silent, slow, rude, or gone. */
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
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "net/net.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/raw.h"
#include "tests/support/sender_lab.h"
#include "tests/support/tmp.h"

#define GOLDEN "tests/golden/net/"
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { PROMPT_MS = 200 };
#else
enum { PROMPT_MS = 10 };
#endif

/* ---- good servers ---- */

static void echo(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, "application/octet-stream", http_body(r));
}

static void later(void *arg, struct http_request *r)
{
	(void)arg;
	http_set_header(r, "Retry-After", "7");
	http_answer(r, 503, NULL, SPAN("later"));
}

static atomic_int inside, most_inside;

static void sleepy(void *arg, struct http_request *r)
{
	(void)arg;
	int n = ++inside;
	for (int most = most_inside; n > most && !atomic_compare_exchange_weak(&most_inside, &most, n);)
		;
	usleep(10000);
	inside--;
	http_answer(r, 200, NULL, SPAN("ok"));
}

static const struct http_route routes[] = {
	{HTTP_GET | HTTP_HEAD | HTTP_PUT | HTTP_POST | HTTP_DELETE, "/echo", 0, 64 * MIB, echo, NULL},
	{HTTP_GET, "/later", 0, 0, later, NULL},
	{HTTP_GET, "/sleepy", HTTP_WORKER, 0, sleepy, NULL},
};

static struct http_server *serve(const char *web_config)
{
	struct err err = {0};
	struct http_server *s;
	struct http_server_config cfg = {.address = "127.0.0.1:0", .web_config = web_config, .threads = 2, .workers = 16, .worker_queue = 200};
	if (http_server_start(&cfg, routes, sizeof routes / sizeof routes[0], &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

static const char *url_of(char url[96], const struct http_server *s, const char *path)
{
	snprintf(url, 96, "http://127.0.0.1:%u%s", http_server_port(s), path);
	return url;
}

/* ---- tests ---- */

static void answers_good_and_bad(void **state)
{
	(void)state;
	static const struct {
		struct peer p;
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
		{{.say = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffffff\r\nab"}, ERR_NET, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\nContent-Le"}, ERR_NET, 0, 0},
		{{.say = ""}, ERR_NET, 0, 0},
		{{.say = "", .then = RESET}, ERR_NET, 0, 0},
		{{.say = "220 smtp ready\r\n"}, ERR_NET, 0, 0},
		{{.say = "\xff\xfe\x01garbage\r\n\r\n"}, ERR_NET, 0, 0},
		{{.say = "HTTP/1.1 200 OK\r\n\r\n", .then = HANG}, ERR_TIMEOUT, 0, 0},
		{{.say = "", .then = HANG}, ERR_TIMEOUT, 0, 0},
	};
	struct http_sender *s = sender_of(4);
	for (size_t round = 0; round < 2; round++) { /* with fresh handles, and with those that have seen bad days */
		for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
			struct peer p = cases[i].p;
			char place[96];
			peer_start(&p);
			snprintf(place, sizeof place, "%s http://127.0.0.1:%u/path: ", i % 2 ? "POST" : "GET", p.port);
			struct outcome o =
				ask(s, i % 2 ? "POST" : "GET", p.url, span_of("body", i % 2 ? 4 : 0), cases[i].rc == ERR_TIMEOUT ? 100 : 10000, 1000);
			if (o.rc != cases[i].rc || (o.rc == OK && o.status != cases[i].status) || o.bytes != cases[i].bytes)
				fail_msg("%s => %s, %d, %zu bytes: %s", cases[i].p.say, errc_name(o.rc), o.status, o.bytes, o.msg);
			assert_null(strstr(o.msg, "hush"));
			if (o.rc && strncmp(o.msg, place, strlen(place)) != 0)
				fail_msg("%s", o.msg);
			peer_stop(&p);
		}
	}
	http_sender_close(s);
}

static void bodies_of_all_sizes_and_methods(void **state)
{
	(void)state;
	static const size_t sizes[] = {0, 1, 1000, 65000, 65535, 65536, 65537, 1000001, 20000000};
	static const char *const methods[] = {"POST", "PUT", "GET", "DELETE"};
	char url[96];
	struct http_server *server = serve(NULL);
	struct http_sender *s = sender_of(4);
	url_of(url, server, "/echo");
	char *body = malloc(20000000);
	for (size_t k = 0; k < 20000000; k++)
		body[k] = (char)(k * 31 + k / 256);
	for (size_t m = 0; m < 4; m++) {
		for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
			struct outcome o = ask(s, methods[m], url, span_of(body, sizes[i]), WAIT_MS, sizes[i]);
			if (o.rc || o.status != 200 || o.bytes != sizes[i] || memcmp(o.answer, body, o.bytes < 127 ? o.bytes : 127) != 0)
				fail_msg("%s %zu: %d, %zu bytes %s", methods[m], sizes[i], o.status, o.bytes, o.msg);
			if (sizes[i])
				assert_int_equal(ask(s, methods[m], url, span_of(body, sizes[i]), WAIT_MS, sizes[i] - 1).rc, ERR_LIMIT);
		}
	}
	struct outcome o = ask(s, "HEAD", url, (struct span){0}, WAIT_MS, 0);
	assert_int_equal(o.rc, OK);
	assert_int_equal(o.status, 200);
	/* an answer's header, inside done */
	o = ask(s, "GET", url_of(url, server, "/later"), (struct span){0}, WAIT_MS, 100);
	assert_int_equal(o.status, 503);
	assert_string_equal(o.retry_after, "7");
	assert_string_equal(ask(s, "GET", "http://127.0.0.1:1/", (struct span){0}, WAIT_MS, 100).retry_after, "");
	http_sender_close(s);
	http_server_stop(server, 1000);
	free(body);
}

static void requests_say_no_more_than_asked(void **state)
{
	(void)state;
	struct peer p = {.how = SAYS};
	peer_start(&p);
	struct http_sender *s = sender_of(1);
	char url[96], big[70000] = {0};
	snprintf(url, sizeof url, "http://127.0.0.1:%u/a%%20b/../c?x=1", p.port);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(ask(s, "POST", url, span_of(big, i ? sizeof big : 3), WAIT_MS, 10).rc, OK);
		assert_int_equal(strncmp(p.seen, "POST /a%20b/../c?x=1 HTTP/1.1\r\n", 31), 0);
		assert_non_null(strstr(p.seen, i ? "Content-Length: 70000\r\n" : "Content-Length: 3\r\n"));
		assert_non_null(strstr(p.seen, "Authorization: Bearer hush\r\n"));
		assert_null(strcasestr(p.seen, "expect"));
		assert_null(strcasestr(p.seen, "user-agent"));
		assert_null(strcasestr(p.seen, "content-type"));
	}
	assert_int_equal(p.accepted, 1);
	http_sender_close(s);
	peer_stop(&p);
}

/* Thousands of calls from several threads to two servers: each ends once, with its own answer. */
enum { THREADS = 4, CALLS = 1000 };
struct mine {
	struct outcome o;
	char body[200];
	size_t n;
};
struct worker {
	struct http_sender *s;
	const char *urls[2];
	struct mine *mine;
	int id;
};

static void *send_many(void *arg)
{
	struct worker *w = arg;
	for (int i = 0; i < CALLS; i++) {
		struct mine *m = &w->mine[i];
		m->n = (size_t)snprintf(m->body, sizeof m->body, "%d:%d:%*d", w->id, i, i % 100, i);
		send_to(w->s, &m->o, "POST", w->urls[i % 2], span_of(m->body, m->n), 60000, sizeof m->body);
	}
	return NULL;
}

static void many_calls_from_many_threads(void **state)
{
	(void)state;
	char url[2][96];
	struct http_server *servers[2] = {serve(NULL), serve(NULL)};
	struct http_sender *s = sender_of(8);
	struct worker w[THREADS];
	pthread_t t[THREADS];
	url_of(url[0], servers[0], "/echo");
	url_of(url[1], servers[1], "/echo");
	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){s, {url[0], url[1]}, calloc(CALLS, sizeof(struct mine)), i};
		pthread_create(&t[i], NULL, send_many, &w[i]);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	for (int i = 0; i < THREADS; i++) {
		for (int k = 0; k < CALLS; k++) {
			struct mine *m = &w[i].mine[k];
			await(&m->o);
			if (m->o.rc || m->o.status != 200 || m->o.bytes != m->n || memcmp(m->o.answer, m->body, m->n < 127 ? m->n : 127) != 0)
				fail_msg("%d:%d: %s", i, k, m->o.msg);
		}
	}
	http_sender_close(s);
	for (int i = 0; i < THREADS; i++) {
		for (int k = 0; k < CALLS; k++)
			assert_int_equal(w[i].mine[k].o.count, 1);
		free(w[i].mine);
	}
	http_server_stop(servers[0], 1000);
	http_server_stop(servers[1], 1000);
}

/* A done that sends the next call: a chain that never leaves the sender's thread. */
struct chain {
	struct http_sender *s;
	const char *url;
	atomic_int left, bad;
};

static void chain_next(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct chain *c = arg;
	(void)answer;
	(void)err;
	c->bad += rc != OK || status != 200;
	if (c->left == 1) {
		c->left = 0;
		return;
	}
	struct http_send call = {.method = "POST", .url = c->url, .body = SPAN("x"), .max_answer_bytes = 10, .done = chain_next, .arg = c};
	if (http_send(c->s, &call, NULL))
		c->bad++;
	c->left--;
}

static void a_done_may_send(void **state)
{
	(void)state;
	struct peer p = {.how = SAYS};
	peer_start(&p);
	struct chain c = {.s = sender_of(2), .url = p.url, .left = 500};
	struct http_send call = {.method = "POST", .url = c.url, .body = SPAN("x"), .max_answer_bytes = 10, .done = chain_next, .arg = &c};
	assert_int_equal(http_send(c.s, &call, NULL), OK);
	for (int i = 0; i < WAIT_MS && c.left; i++)
		usleep(1000);
	assert_int_equal(c.left, 0);
	assert_int_equal(c.bad, 0);
	assert_int_equal(p.requests, 500);
	assert_int_equal(p.accepted, 1); /* kept */
	http_sender_close(c.s);
	peer_stop(&p);
}

static int by_ns(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
	return (x > y) - (x < y);
}

/* Calls of all ages to silent peers end when they said, whatever else goes on; those that wait for a connection, too. */
static void deadlines_hold(void **state)
{
	(void)state;
	enum { N = 100 };
	struct peer mute = {.how = MUTE}, drips = {.how = DRIPS}, trickles = {.how = TRICKLES, .say = "HTTP/1.1 200 OK\r\n\r\na", .repeat = 1 << 20};
	struct peer *peers[] = {&mute, &drips, &trickles};
	struct http_sender *s = sender_of(10);
	char *body = calloc(1, MIB);
	static struct outcome o[N];
	int64_t due[N], late[N], prompt_ns = INT64_MAX;
	for (int i = 0; i < 3; i++)
		peer_start(peers[i]);
	/* again when others keep the machine busy */
	for (int round = 0; round < 2 && prompt_ns > PROMPT_MS * (int64_t)MS; round++) {
		for (int i = 0; i < N; i++) {
			int64_t ms = 20 + (i * 37) % 500;
			due[i] = io_mono_ns() + ms * MS;
			send_to(s, &o[i], "POST", peers[i % 3]->url, span_of(body, (size_t)MIB), ms, 1 << 22);
		}
		for (int i = 0; i < N; i++) {
			await(&o[i]);
			assert_int_equal(o[i].rc, ERR_TIMEOUT);
			assert_non_null(strstr(o[i].msg, "its deadline"));
			late[i] = o[i].at_ns - due[i];
			assert_true(late[i] >= 0);
		}
		qsort(late, N, sizeof late[0], by_ns);
		prompt_ns = late[N * 9 / 10];
	}
	/* one that is over before it begins */
	assert_int_equal(ask(s, "POST", mute.url, SPAN("x"), -5, 10).rc, ERR_TIMEOUT);
	http_sender_close(s);
	for (int i = 0; i < 3; i++)
		peer_stop(peers[i]);
	free(body);
	if (prompt_ns > PROMPT_MS * (int64_t)MS)
		fail_msg("a tenth is late by more than %lld us", (long long)prompt_ns / 1000);
}

static void slow_peers_cost_no_other(void **state)
{
	(void)state;
	enum { STUCK = 120, N = 500 };
	struct peer mute = {.how = MUTE}, drips = {.how = DRIPS}, trickles = {.how = TRICKLES, .say = "HTTP/1.1 200 OK\r\n\r\na", .repeat = 1 << 22};
	struct peer *peers[] = {&mute, &drips, &trickles};
	char *body = calloc(1, MIB), url[96];
	static struct outcome stuck[STUCK], o;
	struct http_server *server = serve(NULL);
	struct http_sender *s = sender_of(10);
	for (int i = 0; i < 3; i++)
		peer_start(peers[i]);
	for (int i = 0; i < STUCK; i++)
		send_to(s, &stuck[i], "POST", peers[i % 3]->url, span_of(body, (size_t)MIB), 0, 1 << 24);
	url_of(url, server, "/echo");
	int64_t took[N];
	for (int i = 0; i < N; i++) {
		int64_t begin = io_mono_ns();
		o = ask(s, "POST", url, SPAN("hello"), WAIT_MS, 10);
		assert_int_equal(o.rc, OK);
		took[i] = o.at_ns - begin;
	}
	qsort(took, N, sizeof took[0], by_ns);
	if (took[N / 2] > 2 * PROMPT_MS * (int64_t)MS)
		fail_msg("%lld us beside slow peers", (long long)took[N / 2] / 1000);
	for (int i = 0; i < STUCK; i++)
		assert_int_equal(stuck[i].count, 0);
	http_sender_close(s);
	for (int i = 0; i < STUCK; i++) {
		assert_int_equal(stuck[i].count, 1);
		assert_int_equal(stuck[i].rc, ERR_CANCELED);
	}
	for (int i = 0; i < 3; i++) {
		assert_int_equal(peers[i]->accepted, 10);
		peer_stop(peers[i]);
	}
	http_server_stop(server, 1000);
	free(body);
}

/* Idle connections are kept however many others are at work; not more of them than was said. */
static void good_connections_stay_beside_slow_peers(void **state)
{
	(void)state;
	enum { STUCK = 50 };
	struct err err = {0};
	struct peer mute = {.how = MUTE}, good[4] = {{.how = SAYS}, {.how = SAYS}, {.how = SAYS}, {.how = SAYS}};
	static struct outcome stuck[STUCK];
	struct http_sender *s;
	struct http_sender_config cfg = {.client.max_idle_connections = 2, .max_connections_per_host = STUCK};
	assert_int_equal(http_sender_open(&cfg, &s, &err), OK);
	peer_start(&mute);
	for (int i = 0; i < STUCK; i++)
		send_to(s, &stuck[i], "POST", mute.url, SPAN("x"), 0, 10);
	for (int i = 0; i < 4; i++)
		peer_start(&good[i]);
	for (int i = 0; i < 100; i++)
		assert_int_equal(ask(s, "POST", good[i % 2].url, SPAN("x"), WAIT_MS, 10).rc, OK);
	assert_int_equal(good[0].accepted + good[1].accepted, 2);
	for (int i = 0; i < 40; i++)
		assert_int_equal(ask(s, "POST", good[i % 4].url, SPAN("x"), WAIT_MS, 10).rc, OK);
	assert_true(good[0].accepted + good[1].accepted + good[2].accepted + good[3].accepted > 20);
	http_sender_close(s);
	peer_stop(&mute);
	for (int i = 0; i < 4; i++)
		peer_stop(&good[i]);
}

static void a_host_gets_no_more_connections_than_allowed(void **state)
{
	(void)state;
	enum { N = 60 };
	static struct outcome o[N];
	char url[96];
	struct http_server *server = serve(NULL);
	struct http_sender *s = sender_of(3);
	url_of(url, server, "/sleepy");
	most_inside = 0;
	for (int i = 0; i < N; i++)
		send_to(s, &o[i], "GET", url, (struct span){0}, i == N - 1 ? 5 : 0, 10);
	for (int i = 0; i < N; i++) {
		await(&o[i]);
		assert_int_equal(o[i].rc, i == N - 1 ? ERR_TIMEOUT : OK);
	}
	assert_non_null(strstr(o[N - 1].msg, "no free connection by its deadline"));
	assert_int_equal(most_inside, 3);
	http_sender_close(s);
	http_server_stop(server, 1000);
}

/* Kept connections that their peer closes or resets, before the next request, when it has come, or in the middle of it: nobody notices. */
static void dead_kept_connections_are_replaced(void **state)
{
	(void)state;
	char *body = calloc(1, 4 * MIB);
	static const size_t sizes[] = {0, 3, 60000, 200000, 4 * MIB};
	static const struct peer kinds[] = {
		{.how = SAYS, .say = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", .then = CLOSE},
		{.how = SAYS, .say = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", .then = RESET},
		{.how = DIES_ON_SECOND},
		{.how = RESETS_ON_SECOND},
	};
	for (size_t k = 0; k < 4; k++) {
		for (size_t i = k == 3 ? 3 : 0; i < 5; i++) {
			struct peer p = kinds[k];
			peer_start(&p);
			struct http_sender *s = sender_of(4);
			for (int n = 0; n < 10; n++) {
				struct outcome o = ask(s, "POST", p.url, span_of(body, sizes[i]), WAIT_MS, 10);
				if (o.rc || o.status != 200)
					fail_msg("kind %zu, %zu bytes, call %d: %s", k, sizes[i], n, o.msg);
				if (n % 2)
					usleep(3000);
			}
			assert_in_range(p.accepted, k < 2 ? 10 : 5, 10);
			http_sender_close(s);
			peer_stop(&p);
		}
	}
	/* where nothing was kept nothing is tried again */
	struct peer p = {.how = RESETS_IN_BODY};
	peer_start(&p);
	struct http_sender *s = sender_of(4);
	for (int n = 0; n < 5; n++)
		assert_int_equal(ask(s, "POST", p.url, span_of(body, 4 * MIB), WAIT_MS, 10).rc, ERR_NET);
	assert_int_equal(p.accepted, 5);
	http_sender_close(s);
	peer_stop(&p);
	free(body);
}

static void a_peer_that_restarts(void **state)
{
	(void)state;
	struct http_sender *s = sender_of(4);
	struct peer p = {.how = SAYS};
	peer_start(&p);
	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < 5; i++)
			assert_int_equal(ask(s, "POST", p.url, SPAN("x"), WAIT_MS, 10).rc, OK);
		assert_int_equal(p.accepted, 1);
		uint16_t port = p.port;
		peer_stop(&p);
		for (int i = 0; i < 3; i++)
			assert_int_equal(ask(s, "POST", p.url, SPAN("x"), WAIT_MS, 10).rc, ERR_NET);
		p = (struct peer){.how = SAYS};
		peer_start_at(&p, port);
	}
	http_sender_close(s);
	peer_stop(&p);
}

/* Closing ends what runs, what waits and what has only just come, at once; nobody is called twice, and nobody can begin anything. */
static atomic_int refused;

static void send_after(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct outcome *o = arg;
	struct http_send call = {.method = "GET", .url = "http://127.0.0.1:1/", .done = send_after, .arg = arg};
	refused += http_send(o->sender, &call, NULL) == ERR_CANCELED;
	landed(arg, rc, status, answer, err);
}

static void closing_ends_everything(void **state)
{
	(void)state;
	enum { N = 100 };
	static struct outcome o[N];
	struct err err = {0};
	struct peer mute = {.how = MUTE};
	peer_start(&mute);
	for (int round = 0; round < 4; round++) {
		struct http_sender *s = sender_of(4);
		refused = 0;
		for (int i = 0; i < N; i++) {
			memset(&o[i], 0, sizeof o[i]);
			o[i].sender = s;
			struct http_send call = {.method = "POST",
				.url = mute.url,
				.body = SPAN("x"),
				.deadline_mono_ns = i % 2 ? io_mono_ns() + 60000 * (int64_t)MS : 0,
				.max_answer_bytes = 10,
				.done = send_after,
				.arg = &o[i]};
			assert_int_equal(http_send(s, &call, &err), OK);
		}
		usleep((useconds_t)round * 30000);
		int64_t begin = raw_now_ms();
		if (round % 2) {
			http_sender_cancel(s);
			for (int i = 0; i < N; i++)
				await(&o[i]);
			struct http_send call = {.method = "GET", .url = mute.url, .done = landed, .arg = &o[0]};
			assert_int_equal(http_send(s, &call, &err), ERR_CANCELED);
		}
		http_sender_close(s);
		assert_true(raw_now_ms() - begin < 1000);
		for (int i = 0; i < N; i++) {
			assert_int_equal(o[i].count, 1);
			assert_int_equal(o[i].rc, ERR_CANCELED);
		}
		assert_int_equal(refused, N);
	}
	peer_stop(&mute);
}

static void nobody_there(void **state)
{
	(void)state;
	static const struct {
		const char *url;
		errc rc;
	} cases[] = {
		{"http://127.0.0.1:1/x", ERR_NET},
		{"http://[::1]:1/x", ERR_NET},
		{"http://no.such.host.invalid/x", ERR_NET},
		{"https://no.such.host.invalid:12/x", ERR_NET},
		{"ftp://127.0.0.1/x", ERR_INVALID},
		{"file:///etc/passwd", ERR_INVALID},
		{"no url", ERR_INVALID},
		{"", ERR_INVALID},
		{"http://", ERR_INVALID},
		{"http:///x", ERR_INVALID},
		{"http://[::1/x", ERR_INVALID},
		{"http://127.0.0.1:99999/", ERR_INVALID},
	};
	struct http_sender *s = sender_of(2);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
			struct outcome o = ask(s, "GET", cases[i].url, (struct span){0}, WAIT_MS, 10);
			if (o.rc != cases[i].rc)
				fail_msg("%s: %s %s", cases[i].url, errc_name(o.rc), o.msg);
		}
	}
	http_sender_close(s);
}

static void tls_with_client_certificates(void **state)
{
	(void)state;
	struct err err = {0};
	char text[8192], url[96], pwd[1024];
	assert_non_null(getcwd(pwd, sizeof pwd));
	const char *path = tmp_path("%s/web.yml", tmp_dir());
	snprintf(text, sizeof text,
		"tls_server_config:\n  cert_file: %s/" GOLDEN "server.pem\n  key_file: %s/" GOLDEN "server.key\n  client_ca_file: %s/" GOLDEN
		"ca.pem\n  client_auth_type: RequireAndVerifyClientCert\n",
		pwd, pwd, pwd);
	if (io_write_file(path, span_cstr(text), &err))
		fail_msg("%s", err.msg);
	struct http_server *server = serve(path);
	static const struct {
		struct http_client_config c;
		errc rc;
	} cases[] = {
		{{.ca_file = GOLDEN "ca.pem", .cert_file = GOLDEN "client.pem", .key_file = GOLDEN "client.key"}, OK},
		{{.ca_file = GOLDEN "ca.pem", .cert_file = GOLDEN "client.pem", .key_file = GOLDEN "client.key", .server_name = "one.test"}, OK},
		{{.ca_file = GOLDEN "ca.pem", .cert_file = GOLDEN "client.pem", .key_file = GOLDEN "client.key", .server_name = "two.test"}, ERR_NET},
		{{.insecure_skip_verify = true, .cert_file = GOLDEN "client.pem", .key_file = GOLDEN "client.key", .server_name = "two.test"}, OK},
		{{.ca_file = GOLDEN "ca.pem", .cert_file = GOLDEN "stranger.pem", .key_file = GOLDEN "stranger.key"}, ERR_NET},
		{{.ca_file = GOLDEN "ca.pem"}, ERR_NET},
		{{.cert_file = GOLDEN "client.pem", .key_file = GOLDEN "client.key"}, ERR_NET},
		{{.ca_file = GOLDEN "none.pem", .cert_file = GOLDEN "client.pem", .key_file = GOLDEN "client.key"}, ERR_INVALID},
		{{.ca_file = GOLDEN "ca.pem", .cert_file = GOLDEN "none.pem", .key_file = GOLDEN "client.key"}, ERR_INVALID},
	};
	snprintf(url, sizeof url, "https://127.0.0.1:%u/echo", http_server_port(server));
	char *body = calloc(1, MIB);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct http_sender *s;
		struct http_sender_config cfg = {.client = cases[i].c};
		assert_int_equal(http_sender_open(&cfg, &s, &err), OK);
		enum { N = 8 };
		static struct outcome o[N];
		for (int k = 0; k < N; k++)
			send_to(s, &o[k], "POST", url, span_of(body, k % 2 ? (size_t)MIB : 10), WAIT_MS, (size_t)MIB);
		for (int k = 0; k < N; k++) {
			await(&o[k]);
			if (o[k].rc != cases[i].rc || (o[k].rc == OK && (o[k].status != 200 || o[k].bytes != (k % 2 ? (size_t)MIB : 10))))
				fail_msg("case %zu: %s %s", i, errc_name(o[k].rc), o[k].msg);
		}
		http_sender_close(s);
	}
	/* a peer that hangs before the handshake */
	struct peer mute = {.how = MUTE};
	peer_start(&mute);
	struct http_sender *s = sender_of(2);
	snprintf(url, sizeof url, "https://127.0.0.1:%u/echo", mute.port);
	assert_int_equal(ask(s, "POST", url, SPAN("x"), 100, 10).rc, ERR_TIMEOUT);
	http_sender_close(s);
	peer_stop(&mute);
	http_server_stop(server, 1000);
	free(body);
}

/* Every allocation fails in turn. */
static void without_memory(void **state)
{
	(void)state;
	struct peer p = {.how = SAYS};
	peer_start(&p);
	char url[96];
	snprintf(url, sizeof url, "http://localhost:%u/", p.port);
	uint64_t n = 1, hits = 1;
	for (; hits; n++) {
		struct err err = {0};
		struct http_sender *s = NULL;
		struct http_sender_config cfg = {.client = {.ca_file = "/none", .server_name = "localhost"}};
		const char *headers[] = {"X-Some: thing"};
		struct outcome o = {0};
		struct http_send call = {
			.method = "POST", .url = url, .headers = headers, .n_headers = 1, .max_answer_bytes = 100, .done = landed, .arg = &o};
		call.deadline_mono_ns = io_mono_ns() + WAIT_MS * (int64_t)MS;
		fail_alloc_at(n, false);
		errc rc = http_sender_open(&cfg, &s, &err);
		if (rc == OK) {
			o.sender = s;
			rc = http_send(s, &call, &err);
			if (rc == OK) {
				await(&o);
				rc = o.rc;
			}
		}
		http_sender_close(s);
		hits = fail_alloc_off();
		if (rc != (hits ? ERR_NOMEM : OK))
			fail_msg("allocation %llu: %s %s", (unsigned long long)n, errc_name(rc), o.msg);
	}
	assert_true(n > 8);
	peer_stop(&p);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_good_and_bad),
		cmocka_unit_test(bodies_of_all_sizes_and_methods),
		cmocka_unit_test(requests_say_no_more_than_asked),
		cmocka_unit_test(many_calls_from_many_threads),
		cmocka_unit_test(a_done_may_send),
		cmocka_unit_test(deadlines_hold),
		cmocka_unit_test(slow_peers_cost_no_other),
		cmocka_unit_test(good_connections_stay_beside_slow_peers),
		cmocka_unit_test(a_host_gets_no_more_connections_than_allowed),
		cmocka_unit_test(dead_kept_connections_are_replaced),
		cmocka_unit_test(a_peer_that_restarts),
		cmocka_unit_test(closing_ends_everything),
		cmocka_unit_test(nobody_there),
		cmocka_unit_test(tls_with_client_certificates),
		cmocka_unit_test(without_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
