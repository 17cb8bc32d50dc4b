/* net/net_sender_flow.c - calls whose answers are taken in pieces: how their owners, on any thread, speak with the sender's.
 *
 *     libcurl ─ take_body ─▶ data(piece) ─ no room ─▶ the transfer stands still, the peer's sends fill the socket and stop
 *                                ▲                                                │
 *                                └── curl_easy_pause(CONT) ◀── flows_serve ◀── http_flow_more, from the thread that made room
 *
 * A flow outlives its flight, which goes back to the pool when it lands: the owner's words reach the flight through the flow, on the sender's thread, or nobody.
 */
#include <stdlib.h>
#include "net/net_sender_int.h"

static void flow_unref(struct http_flow *f)
{
	if (atomic_fetch_sub(&f->refs, 1) == 1)
		free(f);
}

void flow_landed(struct http_flow *f)
{
	f->flight = NULL;
	flow_unref(f);
}

void flows_serve(struct http_sender *s, struct http_flow *list)
{
	while (list) {
		struct http_flow *f = list;
		pthread_mutex_lock(&s->mu);
		list = f->next;
		bool over = f->over, more = f->more;
		f->queued = f->more = false;
		pthread_mutex_unlock(&s->mu);
		if (f->flight && over) {
			f->flight->rc = err_set(&f->flight->err, ERR_CANCELED, "canceled");
			flight_end(s, f->flight);
		} else if (f->flight && more) {
			flight_more(s, f->flight);
		}
		flow_unref(f);
	}
}

errc http_flow_open(struct http_sender *s, const struct http_send *call, struct http_flow **out, struct err *err)
{
	ASSERT(call->data);
	struct http_flow *f = calloc(1, sizeof *f);
	*out = NULL;
	if (!f)
		return err_set(err, ERR_NOMEM, "no memory for a call");
	f->sender = s;
	atomic_init(&f->refs, 2);
	errc rc = sender_take(s, call, f, err);
	if (rc != OK)
		free(f);
	else
		*out = f;
	return rc;
}

void http_flow_more(struct http_flow *f)
{
	pthread_mutex_lock(&f->sender->mu);
	f->more = true;
	sender_want(f->sender, f);
}

void http_flow_close(struct http_flow *f)
{
	if (!f)
		return;
	pthread_mutex_lock(&f->sender->mu);
	f->over = true;
	sender_want(f->sender, f);
	flow_unref(f);
}
