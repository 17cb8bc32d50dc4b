/* cluster/link.h - one way to ask a peer something: its address as rings have it, made to a URL, signed (cluster/trust.h), sent by net's sender, which waits for nobody.
 *
 * An address is "host:port", "host" or "[v6]:port"; --hashrings.port changes the port that is connected to, and no address has none: LIMIT_PEER_PORT.
 */
#pragma once
#include "base/err.h"
#include "base/span.h"
#include "cluster/trust.h"
#include "net/net.h"

struct link;
struct link_config {
	struct http_client_config client; /* --peer.tls-*: certificates. Time-outs are the calls' own */
	bool tls;			  /* https */
	uint16_t port;			  /* --hashrings.port, 0: as addresses say */
	struct trust *trust;		  /* borrowed for the life of it */
};
CHECKED errc link_open(const struct link_config *cfg, struct link **out, struct err *err);
void link_cancel(struct link *l); /* for stopping: running calls end with ERR_CANCELED, later ones are refused */
void link_close(struct link *l);  /* as http_sender_close. NULL is fine */

/* "<scheme>://host:port<target>": the one place where addresses become URLs. malloc'd, the caller frees it. NULL: no memory. */
char *link_url_make(const char *scheme, uint16_t port, struct span address, struct span target);
/* The same with the link's own scheme and port, without a target. */
char *link_url(const struct link *l, struct span address);

struct link_call {
	struct span address;
	const char *method, *target; /* target: path and query; copied */
	struct span tenant;	     /* empty: none is named */
	const char *content_type;    /* NULL: no body's type */
	struct span body;	     /* borrowed until done */
	int64_t deadline_mono_ns;    /* 0: none, which only a call that its caller can cancel should have */
	size_t max_answer_bytes;
	/* As http_send's, on the sender's thread: exactly once when link_send was OK; it must not block. */
	void (*done)(void *arg, errc rc, int status, struct span answer, const struct err *err);
	void *arg;
};
/* ERR_NOMEM, ERR_CANCELED: nothing was begun, done is not called. */
CHECKED errc link_send(struct link *l, const struct link_call *c, struct err *err);
/* The same and waits for it: for threads that have nothing else to do. OK when an answer came, whatever its status; the answer is appended to `answer`, which bounds it. done and arg are not used. */
CHECKED errc link_ask(struct link *l, const struct link_call *c, int *status, struct buf *answer, struct err *err);

/* What a server says of a request that says it comes from a peer: its words, its header, its connection. ERR_DENIED as trust_check. */
CHECKED errc link_check(struct trust *t, const struct http_request *r, struct err *err);
/* As trust_check_order: for what people may order as well. */
CHECKED errc link_check_order(struct trust *t, const struct http_request *r, struct err *err);
