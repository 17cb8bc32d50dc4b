/* tests/support/sender_lab.c - see sender_lab.h. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/io.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sender_lab.h"

/* ---- what became of a call ---- */

void landed(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct outcome *o = arg;
	o->at_ns = io_mono_ns();
	o->rc = rc;
	o->status = status;
	o->bytes = answer.n;
	if (answer.n)
		memcpy(o->answer, answer.p, answer.n < sizeof o->answer - 1 ? answer.n : sizeof o->answer - 1);
	snprintf(o->msg, sizeof o->msg, "%s", err->msg);
	struct span header = http_send_header(o->sender, "retry-after");
	snprintf(o->retry_after, sizeof o->retry_after, "%.*s", SPAN_ARG(header));
	if (rc != err->code)
		snprintf(o->msg, sizeof o->msg, "rc %s and err %s", errc_name(rc), errc_name(err->code));
	o->count++;
}

void await(struct outcome *o)
{
	for (int i = 0; i < WAIT_MS && !o->count; i++)
		usleep(1000);
	if (!o->count)
		fail_msg("the call never ended");
}

struct http_sender *sender_of(uint32_t per_host)
{
	struct err err = {0};
	struct http_sender *s;
	struct http_sender_config cfg = {.client.connect_timeout_ms = 5000, .max_connections_per_host = per_host};
	if (http_sender_open(&cfg, &s, &err))
		fail_msg("%s", err.msg);
	return s;
}

void send_to(struct http_sender *s, struct outcome *o, const char *method, const char *url, struct span body, int64_t ms, size_t max)
{
	struct err err = {0};
	memset(o, 0, sizeof *o);
	o->sender = s;
	const char *headers[] = {"Authorization: Bearer hush"};
	struct http_send call = {.method = method,
		.url = url,
		.headers = headers,
		.n_headers = 1,
		.body = body,
		.deadline_mono_ns = ms ? io_mono_ns() + ms * MS : 0,
		.max_answer_bytes = max,
		.done = landed,
		.arg = o};
	if (http_send(s, &call, &err))
		fail_msg("%s", err.msg);
}

struct outcome ask(struct http_sender *s, const char *method, const char *url, struct span body, int64_t ms, size_t max)
{
	struct outcome o;
	send_to(s, &o, method, url, body, ms, max);
	await(&o);
	return o;
}

/* ---- peers that misbehave ---- */

struct visit {
	struct peer *peer;
	int fd;
};

static void reset(int fd)
{
	struct linger now = {.l_onoff = 1};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
}

/* Waits for bytes while the peer is not stopped. */
static ssize_t take(struct peer *p, int fd, char *buf, size_t n)
{
	struct timeval tv = {.tv_usec = 20000};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
	for (;;) {
		ssize_t k = recv(fd, buf, n, 0);
		if (k >= 0 || p->stop)
			return k > 0 ? k : 0;
		if (errno != EAGAIN && errno != EINTR)
			return 0;
	}
}

/* A head, and of the body behind it at least `body` bytes, or as much as Content-Length says. */
static bool take_request(struct peer *p, int fd, int64_t body)
{
	char buf[4096];
	size_t n = 0;
	char *end = NULL;
	while (!end) {
		ssize_t k = n < sizeof buf - 1 ? take(p, fd, buf + n, sizeof buf - 1 - n) : 0;
		if (k == 0)
			return false;
		n += (size_t)k;
		buf[n] = 0;
		end = strstr(buf, "\r\n\r\n");
	}
	p->requests++;
	int64_t have = (int64_t)n - (end + 4 - buf);
	end[2] = 0;
	pthread_mutex_lock(&p->mu);
	memcpy(p->seen, buf, sizeof buf);
	pthread_mutex_unlock(&p->mu);
	const char *length = strcasestr(buf, "content-length:");
	int64_t want = body >= 0 ? body : length ? atoll(length + 15) : 0;
	while (have < want && !p->stop) {
		char sink[65536];
		ssize_t k = take(p, fd, sink, p->how == DRIPS ? 200 : sizeof sink);
		if (k == 0)
			return false;
		have += k;
		if (p->how == DRIPS)
			usleep(20000);
	}
	return true;
}

static bool say(struct peer *p, int fd)
{
	send(fd, p->say, strlen(p->say), MSG_NOSIGNAL);
	char block[65536];
	memset(block, p->say[0] ? p->say[strlen(p->say) - 1] : 0, sizeof block);
	for (size_t left = p->repeat; left && !p->stop;) {
		ssize_t k = send(fd, block, p->how == TRICKLES ? 200 : left < sizeof block ? left : sizeof block, MSG_NOSIGNAL);
		if (k <= 0)
			return false;
		left -= (size_t)k < left ? (size_t)k : left;
		if (p->how == TRICKLES)
			usleep(20000);
	}
	return true;
}

static void *peer_visit(void *arg)
{
	struct visit v = *(struct visit *)arg;
	struct peer *p = v.peer;
	free(arg);
	for (int i = 0; p->how != MUTE && !p->stop; i++) {
		bool rude = p->how == RESETS_IN_BODY || (i == 1 && (p->how == DIES_ON_SECOND || p->how == RESETS_ON_SECOND));
		if (!take_request(p, v.fd, rude ? p->how == DIES_ON_SECOND ? 0 : 100000 : -1))
			goto out;
		if (rude) {
			if (p->how != DIES_ON_SECOND)
				reset(v.fd);
			goto out;
		}
		if (!say(p, v.fd))
			goto out;
		if (p->then != NEXT)
			break;
	}
	while ((p->how == MUTE || p->then == HANG) && !p->stop)
		usleep(2000);
	if (p->then == RESET)
		reset(v.fd);
out:
	close(v.fd);
	return NULL;
}

static void *peer_main(void *arg)
{
	struct peer *p = arg;
	fail_alloc_pause();
	while (!p->stop) {
		int fd = accept(p->listen_fd, NULL, NULL);
		if (fd < 0)
			break;
		struct visit *v = malloc(sizeof *v);
		*v = (struct visit){p, fd};
		int n = p->accepted++;
		if (n >= 256 || pthread_create(&p->threads[n], NULL, peer_visit, v)) {
			fprintf(stderr, "too many connections\n");
			abort();
		}
	}
	return NULL;
}

void peer_start_at(struct peer *p, uint16_t port)
{
	int one = 1;
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port)};
	socklen_t n = sizeof sa;
	inet_pton(AF_INET, p->ip ? p->ip : "127.0.0.1", &sa.sin_addr);
	if (!p->say) {
		p->say = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
		p->then = NEXT;
	}
	pthread_mutex_init(&p->mu, NULL);
	p->listen_fd = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(p->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	assert_int_equal(bind(p->listen_fd, (struct sockaddr *)&sa, sizeof sa), 0);
	assert_int_equal(listen(p->listen_fd, 128), 0);
	assert_int_equal(getsockname(p->listen_fd, (struct sockaddr *)&sa, &n), 0);
	p->port = ntohs(sa.sin_port);
	snprintf(p->url, sizeof p->url, "http://user:hush@127.0.0.1:%u/path?signature=hush", p->port);
	pthread_create(&p->thread, NULL, peer_main, p);
}

void peer_start(struct peer *p)
{
	peer_start_at(p, 0);
}

void peer_stop(struct peer *p)
{
	p->stop = true;
	shutdown(p->listen_fd, SHUT_RDWR);
	pthread_join(p->thread, NULL);
	for (int i = 0; i < p->accepted; i++)
		pthread_join(p->threads[i], NULL);
	close(p->listen_fd);
}
