/* tests/support/node_lab.h - nodes that answer GET /-/ring with what a test wants them to say. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "cluster/ring.h"
#include "net/net.h"

struct fake {
	struct http_server *server;
	uint16_t port;
	char address[40];
	atomic_int asked, status; /* status 0: 200 */
	pthread_mutex_t mu;
	char text[8192];
};
/* Listens at 127.0.0.1, at a port of its own (or again at the one it had), and is active. */
void fake_start(struct fake *f);
void fake_stop(struct fake *f);
/* Its answer from now on. `more`: further members, with a comma in front. */
void fake_says(struct fake *f, const char *state, const char *id, const char *more);
/* A ring of the n addresses. */
struct ring_set *ring_of(const char *const *addresses, size_t n);
