/* net/net_sender_int.h - inside a sender: its hosts (whose turn it is, and at which address they are), its calls, those whose answers come in pieces, and its thread, to which
 * nearly all belongs. */
#pragma once
#include <stdatomic.h>
#include "net/net_curl_int.h"

struct flight; /* a call on its way */
struct flights {
	struct flight *first, *last;
};

/* ---- hosts: net_sender_host.c ---- */
/* "http://name:port": all calls whose URLs begin so. */
struct sender_host {
	struct sender_host *next;	/* of its bucket */
	struct sender_host *ready_next; /* hosts with calls that may be begun */
	bool ready;
	struct flights waiting, running;
	uint32_t n_running;

	char *name; /* to be resolved; NULL: an address, or nothing that has one */
	bool resolving;
	bool doubted; /* a call did not reach it since it was asked for */
	int64_t asked_ns;
	size_t n_addresses, address;
	char addresses[NET_NAME_ADDRESSES][48];

	size_t key_n;
	char key[]; /* ends with a NUL */
};

struct sender_hosts {
	struct sender_host **buckets;
	size_t n, sweep_at;
	struct net_resolver *resolver;
};

CHECKED errc sender_hosts_open(struct sender_hosts *hs, void (*wake)(void *arg), void *arg, struct err *err);
void sender_hosts_close(struct sender_hosts *hs);
/* The host of a URL, made when it is not there. NULL: no memory. */
struct sender_host *sender_host_of(struct sender_hosts *hs, const char *url);
struct sender_host *sender_hosts_next(const struct sender_hosts *hs, const struct sender_host *h); /* all of them; NULL begins and ends */

enum sender_where {
	HOST_KNOWN,   /* begin */
	HOST_ASKED,   /* wait: sender_host_learn comes */
	HOST_UNKNOWN, /* *err says why: waiting calls end with it */
};
/* Whether a call may be begun, and asks for the host's name when it must be known, was doubted, or its answer is old. */
enum sender_where sender_host_where(struct sender_hosts *hs, struct sender_host *h, struct err *err);
/* What CURLOPT_CONNECT_TO says: "::[::1]:"; false when libcurl is to take the host of the URL as it stands. */
bool sender_host_connect_to(const struct sender_host *h, const char *server_name, char *out, size_t size);
/* A call did not reach the host (`connected`: it got a connection, but no answer). */
void sender_host_doubt(struct sender_hosts *hs, struct sender_host *h, bool connected);
/* Takes an answer of the resolver. False: the host has no address, why is in *err. */
bool sender_host_learn(struct sender_host *h, const struct net_name *q, struct err *err);

/* Where the host's name is in a URL: text before it (scheme, user), name without brackets, what follows (port, path). False: not http(s)://name... */
bool sender_url_split(const char *url, struct span *before, struct span *name, struct span *behind);

/* ---- a call on its way: net_sender_flight.c ---- */
enum flight_kind { FLIGHT_NONE, FLIGHT_GET, FLIGHT_HEAD, FLIGHT_BODY };

struct flight {
	struct flight *prev, *next; /* inbox, waiting or running; next alone: pool */
	struct sender_host *host;
	bool running;
	size_t heap_at; /* from 1; 0: not there */
	/* the call */
	struct http_send call; /* texts point into `text` */
	const char *url;       /* as libcurl is to see it */
	char *text;
	size_t text_cap;
	struct curl_slist *list; /* headers, in one array */
	size_t list_cap;
	/* what has come of it */
	CURL *easy;
	enum flight_kind kind; /* what easy is set up for */
	bool sent_twice;       /* may not be sent again */
	bool answered;	       /* a byte came */
	bool headers_whole;
	bool paused;		/* data had no room */
	struct http_flow *flow; /* NULL: a call whose answer comes whole */
	struct buf answer, headers;
	errc rc; /* of our own callbacks; libcurl's error is only a consequence then */
	struct err err;
	char error_text[CURL_ERROR_SIZE];
	struct curl_slist connect_to;
	char connect_to_text[300];
};

/* A call whose answer is taken in pieces. */
struct http_flow {
	struct http_sender *sender;
	atomic_int refs; /* its owner's; its call's, until done was called; that of the sender's list */
	/* guarded by the sender's mu */
	struct http_flow *next;
	bool queued, more, over;
	/* the sender's thread's, once it is sent */
	struct flight *flight; /* NULL: landed */
};

struct http_sender {
	struct http_client_config cfg;
	uint32_t max_running; /* per host */
	uint32_t max_kept;
	CURLM *multi;
	int epoll_fd, wake_fd;
	pthread_t thread;
	bool thread_runs;

	pthread_mutex_t mu;
	struct flights inbox;
	struct http_flow *flows; /* of which something is wanted */
	struct flight *pool;
	size_t n_pool;
	bool sleeping, canceled, stop, answers;

	/* the thread's */
	struct sender_hosts hosts;
	struct sender_host *ready;
	struct flight **heap; /* by deadline; [0] is not used */
	size_t n_heap, cap_heap;
	int64_t timer_ns; /* when libcurl wants to be called; INT64_MAX: not */
	bool broken;	  /* a flight that cannot be watched */
	size_t n_running;
	struct flight *landing;
};

/* From the pool, or new, with its texts copied; any thread. NULL: no memory, or canceled. */
struct flight *flight_take(struct http_sender *s, const struct http_send *call);
void flight_free(struct flight *f);
/* All others on the sender's thread. From waiting to running; ended at once when libcurl refuses it. */
void flight_start(struct http_sender *s, struct flight *f);
/* libcurl is done with it: it is sent once more, or ends. */
void flight_landed(struct http_sender *s, struct flight *f, CURLcode code);
/* f->rc and f->err say how; done is called; f is gone afterwards. Waiting or running, or without a host. */
void flight_end(struct http_sender *s, struct flight *f);
/* The host was not reached, or did not answer in time. */
void flight_doubt(struct http_sender *s, struct flight *f);
/* data has room again. */
void flight_more(struct http_sender *s, struct flight *f);

static inline void flights_put(struct flights *l, struct flight *f)
{
	f->next = NULL;
	f->prev = l->last;
	if (l->last)
		l->last->next = f;
	else
		l->first = f;
	l->last = f;
}

static inline void flights_out(struct flights *l, struct flight *f)
{
	if (f->prev)
		f->prev->next = f->next;
	else
		l->first = f->next;
	if (f->next)
		f->next->prev = f->prev;
	else
		l->last = f->prev;
}

/* ---- net_sender.c ---- */
void sender_ready(struct http_sender *s, struct sender_host *h); /* looks at the host's waiting calls before the thread sleeps */
void sender_working(struct http_sender *s, int more);
void sender_deadline_out(struct http_sender *s, struct flight *f);
/* Copies the call; from any thread. ERR_NOMEM, ERR_CANCELED. */
CHECKED errc sender_take(struct http_sender *s, const struct http_send *call, struct http_flow *flow, struct err *err);
/* Something is wanted of the flow, whose owner has said so: mu is held, and let go of. */
void sender_want(struct http_sender *s, struct http_flow *f);

/* ---- net_sender_flow.c: on the sender's thread ---- */
/* What is wanted of these. */
void flows_serve(struct http_sender *s, struct http_flow *list);
/* Its call is over. */
void flow_landed(struct http_flow *f);
