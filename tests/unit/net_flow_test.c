/* Answers that are taken in pieces (http_flow): whoever has no room makes the other side wait, and nothing is lost. */
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
#include "tests/support/sender_lab.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { PROMPT_MS = 200 };
#else
enum { PROMPT_MS = 10 };
#endif

static void echo(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 200, "application/octet-stream", http_body(r));
}

static void later(void *arg, struct http_request *r)
{
	(void)arg;
	http_answer(r, 503, NULL, SPAN("later"));
}

static struct http_server *serve(void)
{
	static const struct http_route routes[] = {{HTTP_POST, "/echo", 0, 64 * MIB, echo, NULL}, {HTTP_GET, "/later", 0, 0, later, NULL}};
	struct err err = {0};
	struct http_server *s;
	const struct http_server_config cfg = {.address = "127.0.0.1:0", .threads = 2};
	if (http_server_start(&cfg, routes, sizeof routes / sizeof routes[0], &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

static const char *url_of(char url[96], const struct http_server *s, const char *path)
{
	snprintf(url, 96, "http://127.0.0.1:%u%s", http_server_port(s), path);
	return url;
}

struct taker {
	struct outcome o; /* first: done's arg is the taker */
	pthread_mutex_t mu;
	struct buf got;
	uint64_t random;
	unsigned stops_of_8; /* how often there is no room */
	size_t stop_after;   /* no room ever again from so many bytes on; 0: there is */
	bool stopped;
	uint64_t stops;
};

static bool taker_data(void *arg, struct span piece)
{
	struct taker *t = arg;
	pthread_mutex_lock(&t->mu);
	t->random ^= t->random << 13, t->random ^= t->random >> 7, t->random ^= t->random << 17;
	bool room = t->random % 8 >= t->stops_of_8 && !(t->stop_after && t->got.n >= t->stop_after);
	if (room)
		buf_put(&t->got, piece.p, piece.n);
	t->stopped = !room;
	t->stops += !room;
	pthread_mutex_unlock(&t->mu);
	return room;
}

static void taker_begin(
	struct taker *t, struct http_sender *s, struct http_flow **flow, const char *method, const char *url, struct span body, int64_t ms)
{
	struct err err = {0};
	uint64_t r = t->random;
	unsigned stops = t->stops_of_8;
	size_t after = t->stop_after;
	*t = (struct taker){.random = r | 1, .stops_of_8 = stops, .stop_after = after};
	pthread_mutex_init(&t->mu, NULL);
	buf_init(&t->got, 64 * MIB);
	t->o.sender = s;
	struct http_send call = {.method = method,
		.url = url,
		.body = body,
		.deadline_mono_ns = ms ? io_mono_ns() + ms * MS : 0,
		.max_answer_bytes = 100,
		.done = landed,
		.data = taker_data,
		.arg = t};
	if (http_flow_open(s, &call, flow, &err))
		fail_msg("%s", err.msg);
}

/* Makes room whenever there was none, until the call is over. */
static void taker_run(struct taker *t, struct http_flow *flow)
{
	for (int i = 0; i < WAIT_MS * 10 && !t->o.count; i++) {
		pthread_mutex_lock(&t->mu);
		bool stopped = t->stopped;
		t->stopped = false;
		pthread_mutex_unlock(&t->mu);
		if (stopped)
			http_flow_more(flow);
		usleep(100);
	}
	await(&t->o);
}

static void taker_free(struct taker *t)
{
	buf_free(&t->got);
	pthread_mutex_destroy(&t->mu);
}

/* Whatever their size, and however often there is no room: all bytes, in their order, once. */
static void answers_in_pieces(void **state)
{
	(void)state;
	static const size_t sizes[] = {0, 1, 1000, 16384, 16385, 100000, 3000000};
	struct http_server *server = serve();
	struct http_sender *s = sender_of(4);
	uint8_t *body = malloc(3000000);
	char url[96];
	for (size_t i = 0; i < 3000000; i++)
		body[i] = (uint8_t)(i * 2654435761u >> 13);
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
		for (unsigned stops = 0; stops < 8; stops += 3) {
			struct taker t = {.random = i * 8 + stops + 77, .stops_of_8 = stops};
			struct http_flow *flow;
			taker_begin(&t, s, &flow, "POST", url_of(url, server, "/echo"), span_of(body, sizes[i]), 0);
			taker_run(&t, flow);
			http_flow_close(flow);
			assert_int_equal(t.o.rc, OK);
			assert_int_equal(t.o.status, 200);
			assert_int_equal(t.got.n, sizes[i]);
			assert_true(sizes[i] == 0 || memcmp(t.got.p, body, sizes[i]) == 0);
			assert_true(stops == 0 || sizes[i] < 100000 || t.stops > 0);
			assert_int_equal(t.o.count, 1);
			taker_free(&t);
		}
	/* An error comes whole. */
	struct taker t = {.random = 1};
	struct http_flow *flow;
	taker_begin(&t, s, &flow, "GET", url_of(url, server, "/later"), SPAN(""), 0);
	taker_run(&t, flow);
	http_flow_close(flow);
	assert_int_equal(t.o.status, 503);
	assert_string_equal(t.o.answer, "later");
	assert_int_equal(t.got.n, 0);
	taker_free(&t);
	http_sender_close(s);
	http_server_stop(server, 1000);
	free(body);
}

/* Who has no room stops the other side: it can't send more than buffers hold. The deadline holds all the same, and so does the end that the taker makes. */
static void no_room_stops_the_peer(void **state)
{
	(void)state;
	struct http_sender *s = sender_of(4);
	struct peer p = {.say = "HTTP/1.1 200 OK\r\n\r\na", .repeat = 100 * 1024 * 1024, .then = HANG};
	peer_start(&p);
	for (int how = 0; how < 2; how++) {
		struct taker t = {.random = 5, .stop_after = 100000};
		struct http_flow *flow;
		int64_t begin_ns = io_mono_ns();
		taker_begin(&t, s, &flow, "GET", p.url, SPAN(""), how == 0 ? 300 : 0);
		if (how == 1) {
			usleep(200000);
			assert_int_equal(t.o.count, 0);
			http_flow_close(flow);
		}
		await(&t.o);
		assert_int_equal(t.o.rc, how == 0 ? ERR_TIMEOUT : ERR_CANCELED);
		assert_in_range((t.o.at_ns - begin_ns) / MS, how == 0 ? 290 : 190, how == 0 ? 300 + 20 * PROMPT_MS : 200 + 20 * PROMPT_MS);
		assert_in_range(t.got.n, 100000, 100000 + 64 * 1024);
		assert_true(t.stops > 0 && t.stops < 10);
		assert_int_equal(t.o.count, 1);
		if (how == 0)
			http_flow_close(flow);
		taker_free(&t);
	}
	peer_stop(&p);
	/* Nobody there, closed at once, and never made to begin: one done each. */
	struct taker t = {.random = 5};
	struct http_flow *flow;
	taker_begin(&t, s, &flow, "GET", "http://127.0.0.1:1/", SPAN(""), 0);
	http_flow_close(flow);
	await(&t.o);
	assert_true(t.o.rc == ERR_CANCELED || t.o.rc == ERR_NET);
	taker_free(&t);
	http_sender_close(s);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_in_pieces),
		cmocka_unit_test(no_room_stops_the_peer),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
