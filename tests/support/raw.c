/* tests/support/raw.c - sockets, and just enough HTTP to cut answers apart. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "tests/support/raw.h"

int64_t raw_now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

struct raw raw_try_open(uint16_t port)
{
	struct raw c = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (c.fd >= 0 && connect(c.fd, (struct sockaddr *)&sa, sizeof sa))
		raw_close(&c);
	return c;
}

struct raw raw_open(uint16_t port)
{
	struct raw c = raw_try_open(port);
	if (c.fd < 0) {
		perror("raw_open");
		abort();
	}
	return c;
}

void raw_close(struct raw *c)
{
	if (c->fd >= 0)
		close(c->fd);
	free(c->in);
	*c = (struct raw){.fd = -1};
}

bool raw_send(struct raw *c, const void *p, size_t n)
{
	const char *at = p;
	while (n) {
		ssize_t k = send(c->fd, at, n, MSG_NOSIGNAL);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return false;
		at += k;
		n -= (size_t)k;
	}
	return true;
}

bool raw_puts(struct raw *c, const char *s)
{
	return raw_send(c, s, strlen(s));
}

bool raw_printf(struct raw *c, const char *fmt, ...)
{
	char *text;
	va_list ap;
	va_start(ap, fmt);
	int n = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (n < 0)
		abort();
	bool ok = raw_send(c, text, (size_t)n);
	free(text);
	return ok;
}

/* More bytes; false at the end or when the time is up. */
static bool fill(struct raw *c, int64_t until_ms)
{
	if (c->closed)
		return false;
	int64_t left = until_ms - raw_now_ms();
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	if (left < 0 || poll(&p, 1, (int)left) <= 0)
		return false;
	if (c->cap - c->n < 65536) {
		c->cap = c->cap * 2 + 65536;
		c->in = realloc(c->in, c->cap);
		if (!c->in)
			abort();
	}
	ssize_t k = recv(c->fd, c->in + c->n, c->cap - c->n, 0);
	if (k <= 0) {
		c->closed = true;
		c->reset = k < 0;
		return false;
	}
	c->n += (size_t)k;
	return true;
}

static void take(struct raw *c, size_t n)
{
	memmove(c->in, c->in + n, c->n - n);
	c->n -= n;
}

static bool need(struct raw *c, size_t n, int64_t until_ms)
{
	while (c->n < n) {
		if (!fill(c, until_ms))
			return false;
	}
	return true;
}

static ssize_t find(struct raw *c, const char *what, int64_t until_ms)
{
	for (;;) {
		const char *p = c->n ? memmem(c->in, c->n, what, strlen(what)) : NULL;
		if (p)
			return p - c->in;
		if (!fill(c, until_ms))
			return -1;
	}
}

char *raw_header(const struct raw_answer *a, const char *name)
{
	size_t n = strlen(name);
	for (const char *line = a->headers; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
		if (strncasecmp(line, name, n) == 0 && line[n] == ':') {
			const char *v = line + n + 1;
			v += strspn(v, " ");
			return strndup(v, strcspn(v, "\r\n"));
		}
	}
	return NULL;
}

static void read_chunks(struct raw *c, struct raw_answer *a, int64_t until)
{
	for (;;) {
		ssize_t eol = find(c, "\r\n", until);
		if (eol < 0)
			break;
		size_t n = strtoul(c->in, NULL, 16);
		if (!need(c, (size_t)eol + 2 + n + 2, until))
			break;
		a->body = realloc(a->body, a->body_n + n + 1);
		if (!a->body)
			abort();
		memcpy(a->body + a->body_n, c->in + eol + 2, n);
		a->body_n += n;
		take(c, (size_t)eol + 2 + n + 2);
		if (n == 0)
			return;
	}
	a->cut = true;
}

struct raw_answer raw_answer(struct raw *c, bool head, int timeout_ms)
{
	struct raw_answer a = {0};
	int64_t until = raw_now_ms() + timeout_ms;
	ssize_t end = find(c, "\r\n\r\n", until);
	if (end < 0)
		return a;
	a.headers = strndup(c->in, (size_t)end + 2);
	take(c, (size_t)end + 4);
	sscanf(a.headers, "HTTP/1.%*d %d", &a.status);
	char *length = raw_header(&a, "Content-Length"), *encoding = raw_header(&a, "Transfer-Encoding");
	a.body = calloc(1, 1);
	if (head || a.status == 204 || a.status < 200) {
		;
	} else if (encoding) {
		read_chunks(c, &a, until);
	} else if (length) {
		size_t n = strtoul(length, NULL, 10);
		a.cut = !need(c, n, until);
		a.body_n = c->n < n ? c->n : n;
		a.body = realloc(a.body, a.body_n + 1);
		memcpy(a.body, c->in, a.body_n);
		take(c, a.body_n);
	} else {
		while (fill(c, until))
			;
		a.body_n = c->n;
		a.body = realloc(a.body, a.body_n + 1);
		memcpy(a.body, c->in, a.body_n);
		take(c, a.body_n);
	}
	a.body[a.body_n] = 0;
	free(length);
	free(encoding);
	return a;
}

void raw_answer_free(struct raw_answer *a)
{
	free(a->headers);
	free(a->body);
	*a = (struct raw_answer){0};
}

bool raw_wait_closed(struct raw *c, int timeout_ms)
{
	int64_t until = raw_now_ms() + timeout_ms;
	while (fill(c, until))
		;
	return c->closed;
}
