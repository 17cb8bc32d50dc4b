/* cmd/cmd_feed.c - one picture of the bucket on all nodes: bucket/feed.h between the roster (who is there), the link (how they are asked) and the routes.
 *
 * Opened where there are rings and a catalog, after the roster and before the HTTP server; released before that one stops, because it holds its peers' questions.
 */
#include "base/log.h"
#include "cmd/cmd_int.h"

static errc peers(void *arg, struct arena *arena, struct feed_peer **out, size_t *n, struct err *err)
{
	struct server *s = arg;
	struct roster_node *v;
	size_t all;
	errc rc = roster_nodes(s->roster, arena, &v, &all, err);
	if (rc != OK)
		return rc;
	*n = 0;
	*out = arena_calloc(arena, all + 1, sizeof **out);
	if (!*out)
		return err_set(err, ERR_NOMEM, "no memory for %zu nodes", all);
	for (size_t i = 0; i < all; i++) {
		if (v[i].self)
			continue;
		struct feed_peer *p = &(*out)[(*n)++];
		*p = (struct feed_peer){.address = v[i].address,
			.answers = v[i].answers && v[i].state != NODE_DRAINED,
			.stores = v[i].stores,
			.leaving = v[i].state == NODE_DRAINED};
		_Static_assert(sizeof p->node == sizeof v[i].id, "a node's id is as long in both");
		memcpy(p->node, v[i].id, sizeof p->node);
	}
	return OK;
}

static errc ask(void *arg, const struct feed_ask *q, struct err *err)
{
	struct server *s = arg;
	const struct link_call call = {
		.address = q->address,
		.method = "GET",
		.target = q->target,
		.deadline_mono_ns = q->deadline_mono_ns,
		.max_answer_bytes = q->max_answer_bytes,
		.done = q->done,
		.arg = q->arg,
	};
	return link_send(s->link, &call, err);
}

errc server_feed_open(struct server *s, struct err *err)
{
	if (!s->roster || !s->catalog)
		return OK;
	const struct feed_config cfg = {
		.catalog = s->catalog,
		.bucket = s->bucket,
		.snapshot_file = s->feed_file,
		.node = s->dir.node,
		.stores = s->flags->roles & ROLE_INGEST,
		.peers = peers,
		.ask = ask,
		.arg = s,
		.snapshot_interval_ms = s->flags->catalog_snapshot_interval_ms,
	};
	return feed_open(&cfg, &s->feed, err);
}

void server_feed_close(struct server *s)
{
	if (!s->feed)
		return;
	link_cancel(s->link); /* or it would wait for its questions' deadlines */
	feed_close(s->feed);
	s->feed = NULL;
}

bool server_feed_fill(struct server *s)
{
	struct feed_snapshot taken;
	struct err err = {0};
	if (!s->feed)
		return false;
	errc rc = feed_snapshot_take(s->catalog, s->bucket, span_cstr(s->dir.node), 0, &taken, &err);
	if (rc != OK && rc != ERR_NOTFOUND && rc != ERR_CANCELED)
		log_warn("the new catalog can't begin with a snapshot: the bucket is listed", LERR(&err));
	return rc == OK;
}

void server_feed_get(void *arg, struct http_request *r)
{
	struct server *s = arg;
	struct err err = {0};
	if (link_check(s->trust, r, &err) != OK)
		http_error_of(r, &err);
	else
		feed_request(s->feed, r);
}
