/* tests/support/node_lab.c - see tests/support/node_lab.h. */
#include "tests/support/node_lab.h"
#include <stdio.h>
#include <stdlib.h>
#include "base/bytes.h"

static void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "node_lab: %s\n", what);
	abort();
}

static void ring(void *arg, struct http_request *r)
{
	struct fake *f = arg;
	atomic_fetch_add(&f->asked, 1);
	int status = atomic_load(&f->status);
	pthread_mutex_lock(&f->mu);
	http_answer(r, status ? status : 200, "application/json", span_cstr(f->text));
	pthread_mutex_unlock(&f->mu);
}

void fake_says(struct fake *f, const char *state, const char *id, const char *more)
{
	pthread_mutex_lock(&f->mu);
	snprintf(f->text, sizeof f->text,
		"{\"epoch\":\"00000000000000aa\",\"node\":\"%s\",\"state\":\"%s\",\"targets\":[\"all\"],\"started_ms\":7%s}", id, state, more);
	pthread_mutex_unlock(&f->mu);
}

void fake_start(struct fake *f)
{
	struct err err = {0};
	char address[40];
	const struct http_route routes[] = {{HTTP_GET, "/-/ring", HTTP_NO_AUTH, 0, ring, f}};
	snprintf(address, sizeof address, "127.0.0.1:%u", f->port);
	const struct http_server_config cfg = {.address = address, .threads = 1, .workers = 1};
	if (!f->port) {
		pthread_mutex_init(&f->mu, NULL);
		fake_says(f, "active", "", "");
	}
	must(http_server_start(&cfg, routes, 1, &f->server, &err) == OK, err.msg);
	f->port = http_server_port(f->server);
	snprintf(f->address, sizeof f->address, "127.0.0.1:%u", f->port);
}

void fake_stop(struct fake *f)
{
	http_server_stop(f->server, 0);
	f->server = NULL;
}

struct ring_set *ring_of(const char *const *addresses, size_t n)
{
	struct buf b = {0};
	struct ring_set *set = NULL;
	struct err err = {0};
	const struct ring_options opt = {.replication_factor = 1};
	buf_init(&b, 1 << 20);
	buf_printf(&b, "[{\"endpoints\":[");
	for (size_t i = 0; i < n; i++)
		buf_printf(&b, "%s\"%s\"", i ? "," : "", addresses[i]);
	buf_printf(&b, "]}]");
	must(ring_set_parse("test", span_of(b.p, b.n), &opt, &set, &err) == OK, err.msg);
	buf_free(&b);
	return set;
}
