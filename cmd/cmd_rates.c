/* cmd/cmd_rates.c - once a second: how much came here for each tenant that has a rate is told to the boards, the first few nodes of the rings (ingest/ingest_fleet.c). */
#include <stdatomic.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/link.h"
#include "cmd/cmd_int.h"

enum { RATES_EVERY_MS = 950, RATES_DEADLINE_MS = 900 }; /* an answer comes before the next telling, or is not waited for */

/* One telling: its text lives until the last board has answered. */
struct rates_told {
	struct ingest *in;
	_Atomic uint32_t refs;
	struct buf said;
};

static void drop(struct rates_told *t)
{
	if (atomic_fetch_sub(&t->refs, 1) != 1)
		return;
	buf_free(&t->said);
	free(t);
}

static void answered(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct rates_told *t = arg;
	(void)err;
	if (rc == OK && status == 200)
		ingest_rates_heard(t->in, answer);
	drop(t);
}

/* This node is a board itself. */
static void tell_self(struct rates_told *t)
{
	struct err err = {0};
	struct buf out;
	buf_init(&out, LIMIT_RATES_BYTES);
	if (ingest_rates_board(t->in, span_of(t->said.p, t->said.n), &out, &err) == OK)
		ingest_rates_heard(t->in, span_of(out.p, out.n));
	buf_free(&out);
}

/* To the boards, and to this node when it is one. */
static void tell(struct server *s, const struct ring_set *set, uint32_t self)
{
	struct err err = {0};
	struct rates_told *t = calloc(1, sizeof *t);
	if (!t)
		return;
	t->in = s->ingest;
	t->refs = 1;
	buf_init(&t->said, LIMIT_RATES_BYTES);
	if (ingest_rates_say(s->ingest, &t->said, &err) != OK) {
		log_warn("rates are not told", LERR(&err));
		t->said.n = 0;
	}
	uint32_t n = t->said.n > 0 ? ring_set_n_nodes(set) : 0;
	for (uint32_t i = 0; i < n && i < LIMIT_RATES_BOARDS; i++) {
		const struct link_call call = {
			.address = ring_set_node(set, i)->address,
			.method = "POST",
			.target = INGEST_RATES_PATH,
			.content_type = "text/plain",
			.body = span_of(t->said.p, t->said.n),
			.deadline_mono_ns = io_mono_ns() + RATES_DEADLINE_MS * INT64_C(1000000),
			.max_answer_bytes = LIMIT_RATES_BYTES,
			.done = answered,
			.arg = t,
		};
		if (i == self) {
			tell_self(t);
			continue;
		}
		atomic_fetch_add(&t->refs, 1);
		if (link_send(s->link, &call, &err) != OK)
			drop(t);
	}
	drop(t);
}

void server_rates_tick(struct server *s)
{
	struct err err = {0};
	struct ring_set *set = ring_file_current(s->rings);
	int64_t now_ms = io_mono_ms();
	uint32_t self = UINT32_MAX;
	if (!set)
		return;
	if (!s->head || s->self.n == 0 || !ring_set_find(set, s->self, &self))
		self = UINT32_MAX;
	if (ring_set_epoch(set) != s->rates.epoch) {
		if (ingest_fleet_rings(s->ingest, set, self, &err) == OK)
			s->rates.epoch = ring_set_epoch(set);
		else
			log_warn("the shares of limits are those of the rings before", LERR(&err));
	}
	if (now_ms - s->rates.said_ms >= RATES_EVERY_MS) {
		s->rates.said_ms = now_ms;
		tell(s, set, self);
	}
	ring_set_unref(set);
}

void server_rates_hear(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct err err = {0};
	if (link_check(s->trust, r, &err) != OK)
		http_error_of(r, &err);
	else
		ingest_rates_hear(s->ingest, r);
}
