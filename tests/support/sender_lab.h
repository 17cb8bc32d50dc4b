/* tests/support/sender_lab.h - for tests of http_sender: calls whose end is remembered, and peers that misbehave. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include "net/net.h"

enum { WAIT_MS = 20000, MS = 1000000 };

/* What became of a call. */
struct outcome {
	struct http_sender *sender;
	atomic_int count; /* how often done came */
	errc rc;
	int status;
	size_t bytes;
	char answer[128];
	char retry_after[16];
	char msg[ERR_MSG_BYTES];
	int64_t at_ns;
};

/* A done for it. */
void landed(void *arg, errc rc, int status, struct span answer, const struct err *err);
void await(struct outcome *o); /* ends the test when it never ends */
struct http_sender *sender_of(uint32_t per_host);
/* 0 ms: no deadline. */
void send_to(struct http_sender *s, struct outcome *o, const char *method, const char *url, struct span body, int64_t ms, size_t max);
struct outcome ask(struct http_sender *s, const char *method, const char *url, struct span body, int64_t ms, size_t max);

/* A server of raw sockets, a thread for each connection. */
struct peer {
	enum {
		SAYS,		  /* reads a request, says `say` (and its last byte `repeat` times more), then `then` */
		MUTE,		  /* reads nothing, says nothing */
		DRIPS,		  /* reads at 10 kB/s */
		TRICKLES,	  /* answers at 10 kB/s */
		DIES_ON_SECOND,	  /* answers one request of a connection; of the next it reads the head, and closes */
		RESETS_ON_SECOND, /* the same, with a reset, while the body comes */
		RESETS_IN_BODY,	  /* always */
	} how;
	const char *say;
	size_t repeat;
	enum { CLOSE, RESET, HANG, NEXT } then;
	const char *ip;
	/* state */
	int listen_fd;
	uint16_t port;
	pthread_t thread;
	atomic_bool stop;
	atomic_int accepted, requests;
	pthread_t threads[256];
	char seen[4096]; /* the last head */
	pthread_mutex_t mu;
	char url[64];
};

void peer_start(struct peer *p);
void peer_start_at(struct peer *p, uint16_t port); /* 0: any */
void peer_stop(struct peer *p);
