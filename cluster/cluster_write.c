/* cluster/cluster_write.c - one write, from its series' nodes to its outcome.
 *
 * Every item's nodes are asked of the ring once and sorted into shares by counting: one pass to count, one to place, a few nanoseconds a replica. A share's frame is the client's bytes, run by
 * run. Where every node holds everything (as many nodes as replicas, the smallest fleets) all frames are one, and made once.
 *
 * A write lives until its last share is over, which is at the latest when the sender gives up; its outcome is told earlier, when it is decided. Counted on are: the caller until
 * cluster_write_go, each share until it is over, and the list of deadlines.
 *
 * What a peer missed can be told only when it is known what was stored: so a share that fails keeps its frame until the write is decided, and the thread that decides it has it told; one that fails
 * later has itself told (cluster_missed.c).
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/log.h"
#include "cluster/cluster_write_int.h"

enum { BUFFERS_KEPT = 16, BUFFER_KEPT_BYTES = 2 << 20, FRAME_SLACK = 2 };

/* ---- buffers between writes: their size settles at what clients send ---- */

struct buf cluster_buffer_take(struct cluster *c)
{
	struct buf b = {0};
	pthread_mutex_lock(&c->buffers.mu);
	if (c->buffers.n > 0)
		b = c->buffers.v[--c->buffers.n];
	pthread_mutex_unlock(&c->buffers.mu);
	b.max = PEER_HEADER_BYTES + 2 * LIMIT_PEER_REQUEST_BYTES; /* a compressor asks for a little more than the content */
	return b;
}

void cluster_buffer_give(struct cluster *c, struct buf *b)
{
	buf_clear(b);
	pthread_mutex_lock(&c->buffers.mu);
	if (b->p && c->buffers.n < BUFFERS_KEPT && b->cap <= BUFFER_KEPT_BYTES) {
		c->buffers.v[c->buffers.n++] = *b;
		b->p = NULL;
	}
	pthread_mutex_unlock(&c->buffers.mu);
	free(b->p);
	*b = (struct buf){0};
}

static void frame_put(struct cluster *c, struct cluster_frame *f)
{
	if (!f || atomic_fetch_sub(&f->refs, 1) > 1)
		return;
	cluster_buffer_give(c, &f->b);
	free(f);
}

/* Takes b's content; b is empty or given back afterwards. NULL: no memory. */
static struct cluster_frame *frame_make(struct cluster *c, struct buf *b)
{
	struct cluster_frame *f = calloc(1, sizeof *f);
	if (f && b->cap <= FRAME_SLACK * b->n) {
		f->b = *b;
		*b = (struct buf){0};
	} else if (f) {
		/* A frame may wait for seconds: it keeps no more than it needs. */
		f->b.max = b->n;
		buf_put(&f->b, b->p, b->n);
		cluster_buffer_give(c, b);
		if (f->b.failed) {
			free(f);
			f = NULL;
		}
	}
	if (f)
		atomic_init(&f->refs, 1);
	return f;
}

/* ---- the life of a write ---- */

static void op_free(struct cluster_op *op)
{
	for (uint32_t i = 0; op->shares && i < op->n_shares; i++) {
		frame_put(op->c, op->shares[i].frame);
		arena_free(&op->shares[i].arena);
	}
	cluster_routes_put(op->routes);
	pthread_mutex_destroy(&op->mu);
	free(op->items);
	free(op->shares);
	free(op->counts);
	free(op);
}

void cluster_op_put(struct cluster_op *op)
{
	if (atomic_fetch_sub(&op->refs, 1) > 1)
		return;
	struct cluster *c = op->c;
	op_free(op);
	pthread_mutex_lock(&c->mu);
	metric_set(c->open_writes, (double)--c->n_ops);
	if (c->n_ops == 0)
		pthread_cond_broadcast(&c->idle);
	pthread_mutex_unlock(&c->mu);
}

static void unlink_locked(struct cluster *c, struct cluster_op *op)
{
	*(op->prev ? &op->prev->next : &c->first) = op->next;
	*(op->next ? &op->next->prev : &c->last) = op->prev;
	op->next = op->prev = NULL;
	op->timed = false;
}

/* Deadlines mostly come in their order: the place is at the end. */
static void op_begins(struct cluster *c, struct cluster_op *op)
{
	pthread_mutex_lock(&c->mu);
	struct cluster_op *before = c->last;
	while (before && before->deadline_ns > op->deadline_ns)
		before = before->prev;
	op->prev = before;
	op->next = before ? before->next : c->first;
	*(op->prev ? &op->prev->next : &c->first) = op;
	*(op->next ? &op->next->prev : &c->last) = op;
	op->timed = true;
	metric_set(c->open_writes, (double)++c->n_ops);
	if (op->deadline_ns < c->wakes_ns)
		pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->mu);
}

/* ---- the outcome ---- */

/* Decided, or too late, and the caller lets go: once, and then done. With op->mu held; released here. */
static void finish_or_unlock(struct cluster_op *op)
{
	struct cluster *c = op->c;
	struct cluster_outcome o;
	struct cluster_item *items = NULL;
	if (!op->going || op->finished || (op->undecided > 0 && !op->expired)) {
		pthread_mutex_unlock(&op->mu);
		return;
	}
	cluster_count_expire_locked(op);
	op->finished = true;
	cluster_outcome_of_locked(op, &o, &items);
	/* Shares of before this are this thread's to tell of, those of afterwards tell themselves. */
	for (uint32_t i = 0; i < op->n_shares; i++)
		op->shares[i].missed = op->shares[i].missed && op->shares[i].over;
	pthread_mutex_unlock(&op->mu);

	metric_add(c->series[CLUSTER_STORED], o.stored);
	metric_add(c->series[CLUSTER_REFUSED], o.refused);
	metric_add(c->series[CLUSTER_AGAIN], o.again);
	op->done(op->arg, &o);
	free(items);
	for (uint32_t i = 0; i < op->n_shares; i++)
		if (op->shares[i].missed)
			cluster_tell_missed(&op->shares[i]);
	pthread_mutex_lock(&c->mu);
	bool timed = op->timed;
	if (timed)
		unlink_locked(c, op);
	pthread_mutex_unlock(&c->mu);
	if (timed)
		cluster_op_put(op);
}

/* A share's verdicts are in (s->why, s->verdicts); the reference that it held goes. */
static void share_over(struct cluster_share *s, enum errid why, const struct peer_answer *a)
{
	struct cluster_op *op = s->op;
	pthread_mutex_lock(&op->mu);
	ASSERT(!s->over);
	s->over = true;
	s->why = why;
	if (a) {
		s->verdicts = a->verdicts;
		s->n_verdicts = a->n_verdicts;
	}
	bool missed = why != ERRID_NONE;
	for (uint32_t i = 0; !missed && i < s->n_verdicts; i++)
		missed = s->verdicts[i].kind == PEER_AGAIN;
	missed = missed && op->c->cfg.on_missed;
	struct cluster_frame *unneeded = missed ? NULL : s->frame;
	if (!missed)
		s->frame = NULL;
	bool late = op->finished;
	if (late) {
		pthread_mutex_unlock(&op->mu);
		if (missed)
			cluster_tell_missed(s);
	} else {
		s->missed = missed;
		cluster_count_share_locked(op, s);
		finish_or_unlock(op);
	}
	frame_put(op->c, unneeded);
	cluster_op_put(op);
}

/* The sender's answer. */
static void sent(void *arg, errc rc, int status, struct span answer, const struct err *err)
{
	struct cluster_share *s = arg;
	struct cluster_op *op = s->op;
	struct peer_answer a;
	struct err why = {0};
	enum peer_result result = PEER_ANSWERED;
	if (rc == OK && status != 200) {
		size_t n = answer.n < 200 ? answer.n : 200;
		rc = err_set(&why, ERR_NET, "status %d: %.*s", status, (int)n, answer.p);
	} else if (rc == OK) {
		rc = peer_answer_decode(answer, s->n, &s->arena, &a, &why);
		if (rc == OK && memcmp(a.id, op->id, PEER_ID_BYTES) != 0)
			rc = err_set(&why, ERR_INVALID, "an answer to another request");
	} else if (err)
		why = *err;
	if (rc != OK) {
		result = rc == ERR_TIMEOUT ? PEER_TIMEOUT : PEER_FAILED;
		log_debug("a peer did not take its share", LSPAN("peer", s->peer->address), LU64("series", s->n), LSTR("err", why.msg));
	} else
		atomic_store(&s->peer->epoch, a.epoch);
	cluster_peer_end(s->peer, s->bytes, result, io_mono_ns() - s->sent_ns);
	share_over(s, rc == OK ? ERRID_NONE : ERRID_NO_QUORUM, rc == OK ? &a : NULL);
}

void cluster_write_mine(const struct cluster_op *op, const uint32_t **items, uint32_t *n)
{
	*items = op->mine ? op->mine->items : NULL;
	*n = op->mine ? op->mine->n : 0;
}

void cluster_write_mine_done(struct cluster_op *op, enum errid why, const struct peer_verdict *verdicts, uint32_t n)
{
	struct cluster_share *s = op->mine;
	struct peer_answer a = {.n_verdicts = n};
	ASSERT(s && (n == 0 || why == ERRID_NONE) && n <= s->n);
	if (n > 0) {
		a.verdicts = arena_alloc(&s->arena, n * sizeof *a.verdicts);
		if (a.verdicts)
			memcpy(a.verdicts, verdicts, n * sizeof *a.verdicts);
		else
			why = ERRID_OVERLOADED;
	}
	for (uint32_t i = 0; i < n; i++)
		ASSERT(verdicts[i].item < s->n && (i == 0 || verdicts[i].item > verdicts[i - 1].item));
	share_over(s, why, why == ERRID_NONE ? &a : NULL);
}

void cluster_write_go(struct cluster_op *op)
{
	pthread_mutex_lock(&op->mu);
	op->going = true;
	finish_or_unlock(op);
	cluster_op_put(op);
}

/* ---- deadlines ---- */

void cluster_expire(struct cluster *c, int64_t now_ns)
{
	for (;;) {
		pthread_mutex_lock(&c->mu);
		struct cluster_op *op = c->first;
		if (op && op->deadline_ns <= now_ns)
			unlink_locked(c, op);
		else
			op = NULL;
		pthread_mutex_unlock(&c->mu);
		if (!op)
			return;
		pthread_mutex_lock(&op->mu);
		op->expired = true;
		finish_or_unlock(op);
		cluster_op_put(op);
	}
}

/* It sleeps until the first deadline that it saw: a write that is decided in time wakes nobody. */
static void *timer(void *arg)
{
	struct cluster *c = arg;
	pthread_mutex_lock(&c->mu);
	while (!c->stop) {
		int64_t now = io_mono_ns();
		if (c->first && c->first->deadline_ns <= now) {
			pthread_mutex_unlock(&c->mu);
			cluster_expire(c, now);
			pthread_mutex_lock(&c->mu);
			continue;
		}
		c->wakes_ns = c->first ? c->first->deadline_ns : INT64_MAX;
		if (c->first) {
			struct timespec t = {c->wakes_ns / 1000000000, c->wakes_ns % 1000000000};
			pthread_cond_timedwait(&c->wake, &c->mu, &t);
		} else
			pthread_cond_wait(&c->wake, &c->mu);
	}
	pthread_mutex_unlock(&c->mu);
	return NULL;
}

/* ---- shares ---- */

static struct cluster_routes *routes_of(struct cluster *c, struct ring_set *set)
{
	pthread_mutex_lock(&c->routes_mu);
	struct cluster_routes *r = c->routes, *old = NULL;
	if (UNLIKELY(!r || r->set != set)) {
		r = cluster_routes_make(set);
		if (r) {
			old = c->routes;
			c->routes = r;
		}
	}
	if (r)
		atomic_fetch_add(&r->refs, 1);
	pthread_mutex_unlock(&c->routes_mu);
	cluster_routes_put(old);
	return r;
}

/* The nodes of each item, each once: node numbers in `owners`, factor apart, and how many of them in the counts; and how many items each node has. */
static void owners_of(struct cluster_op *op, const struct cluster_write *w, uint32_t factor, uint16_t *owners, uint32_t *per_node)
{
	uint32_t at = 0;
	for (uint32_t p = 0; p < w->n_parts; p++) {
		const struct cluster_part *part = &w->parts[p];
		for (uint32_t i = 0; i < part->n_series + part->n_metadata; i++, at++) {
			uint32_t nodes[LIMIT_RING_FACTOR], n = 0;
			uint16_t *out = owners + (size_t)at * factor;
			ring_owners(part->ring, part->hashes[i], nodes);
			for (uint32_t k = 0; k < factor; k++) {
				bool twice = false;
				for (uint32_t j = 0; j < n; j++)
					twice |= out[j] == nodes[k];
				if (LIKELY(!twice)) {
					out[n++] = (uint16_t)nodes[k];
					per_node[nodes[k]]++;
				}
			}
			op->counts[at].nodes = (uint8_t)(n & 31);
		}
	}
}

/* Every node's items, ascending, one list behind the other. */
static errc shares_of(struct cluster_op *op, const struct cluster_write *w, struct err *err)
{
	struct ring_set *set = op->routes->set;
	uint32_t n_nodes = ring_set_n_nodes(set), factor = ring_set_factor(set), total = 0, n_shares = 0;
	uint16_t *owners = malloc((size_t)op->n_items * factor * sizeof *owners + 1);
	uint32_t *at = calloc(n_nodes, sizeof *at);
	errc rc = OK;
	CHECK(owners && at, ERR_NOMEM, "no memory for the nodes of %u series", op->n_items);
	owners_of(op, w, factor, owners, at);
	for (uint32_t i = 0; i < n_nodes; i++) {
		n_shares += at[i] > 0;
		total += at[i];
	}
	op->items = malloc((size_t)total * sizeof *op->items + 1);
	op->shares = calloc((size_t)n_shares + 1, sizeof *op->shares);
	CHECK(op->items && op->shares, ERR_NOMEM, "no memory for the shares of %u series", op->n_items);
	total = 0;
	for (uint32_t i = 0; i < n_nodes; i++) {
		if (at[i] == 0)
			continue;
		struct cluster_share *s = &op->shares[op->n_shares++];
		*s = (struct cluster_share){.op = op, .node = i, .items = op->items + total, .n = at[i]};
		arena_init(&s->arena, (size_t)s->n * sizeof *s->verdicts + 64);
		if (i == w->self)
			op->mine = s;
		at[i] = total;
		total += s->n;
	}
	for (uint32_t i = 0; i < op->n_items; i++)
		for (uint32_t k = 0; k < op->counts[i].nodes; k++)
			op->items[at[owners[(size_t)i * factor + k]]++] = i;
fail:
	free(owners);
	free(at);
	return rc;
}

/* ---- frames ---- */

/* The client's bytes, as long runs of them as lie together. */
struct run {
	const char *p;
	size_t n;
};

static inline void run_add(struct buf *raw, struct run *r, struct span s)
{
	if (r->p + r->n == s.p) {
		r->n += s.n;
		return;
	}
	buf_put(raw, r->p, r->n);
	*r = (struct run){s.p, s.n};
}

static uint32_t raw_of(const struct cluster_write *w, const struct cluster_share *s, struct buf *raw)
{
	uint32_t first = 0, at = 0, n_sections = 0;
	for (uint32_t p = 0; p < w->n_parts; p++) {
		const struct cluster_part *part = &w->parts[p];
		uint32_t end = first + part->n_series + part->n_metadata, from = at;
		struct peer_section section = {.tenant = part->tenant, .version = part->version};
		for (; at < s->n && s->items[at] < end; at++)
			*(s->items[at] - first < part->n_series ? &section.n_series : &section.n_metadata) += 1;
		if (at > from) {
			size_t mark = peer_section_begin(raw, &section);
			struct run run = {"", 0};
			for (size_t i = 0; i < part->n_symbols; i++)
				run_add(raw, &run, part->symbols[i]);
			for (uint32_t i = from; i < at; i++)
				run_add(raw, &run, part->slices[s->items[i] - first]);
			buf_put(raw, run.p, run.n);
			peer_section_end(raw, mark);
			n_sections++;
		}
		first = end;
	}
	return n_sections;
}

static errc frame_of(struct cluster *c, const struct cluster_write *w, struct cluster_share *s, struct err *err)
{
	errc rc = OK;
	struct buf raw = cluster_buffer_take(c), out = cluster_buffer_take(c);
	int64_t left_ms = (w->deadline_mono_ns - io_mono_ns()) / 1000000;
	struct peer_request r = {.epoch = ring_set_epoch(s->op->routes->set),
		.left_ms = left_ms < 1		  ? 1
			   : left_ms > UINT32_MAX ? UINT32_MAX
						  : (uint32_t)left_ms,
		.now_ms = w->now_ms,
		.min_t = w->min_t,
		.max_t = w->max_t};
	memcpy(r.id, w->id, PEER_ID_BYTES);
	if (peer_raw_begin(&raw))
		r.n_sections = raw_of(w, s, &raw);
	TRY(peer_raw_finish(&r, c->cfg.lz4, &raw, &out, err));
	s->frame = frame_make(c, &out);
	CHECK(s->frame, ERR_NOMEM, "no memory for what a peer is sent");
fail:
	cluster_buffer_give(c, &raw);
	cluster_buffer_give(c, &out);
	return rc;
}

/* The frames of all peers that may get one, before any is sent. */
static errc frames_of(struct cluster *c, const struct cluster_write *w, struct cluster_op *op, struct err *err)
{
	errc rc = OK;
	struct cluster_frame *whole = NULL; /* of those that get everything */
	for (uint32_t i = 0; i < op->n_shares; i++) {
		struct cluster_share *s = &op->shares[i];
		if (s == op->mine)
			continue;
		s->peer = cluster_routes_peer(op->routes, &c->peers, s->node);
		CHECK(s->peer, ERR_NOMEM, "no memory for a peer");
		bool may = cluster_peer_may(s->peer);
		if (!may)
			s->why = ERRID_NO_QUORUM;
		if (!may && !c->cfg.on_missed)
			continue;
		if (s->n == op->n_items && whole) {
			atomic_fetch_add(&whole->refs, 1);
			s->frame = whole;
		} else {
			rc = frame_of(c, w, s, err);
			if (rc != OK) {
				if (may)
					cluster_peer_leave(s->peer);
				goto fail;
			}
			if (s->n == op->n_items)
				whole = s->frame;
		}
		s->bytes = s->frame->b.n;
		if (may && !cluster_peer_enter(s->peer, s->bytes))
			s->why = ERRID_OVERLOADED;
		s->entered = s->why == ERRID_NONE;
	}
	return OK;
fail:
	for (uint32_t i = 0; i < op->n_shares; i++)
		if (op->shares[i].entered)
			cluster_peer_back(op->shares[i].peer, op->shares[i].bytes);
	return rc;
}

errc cluster_write_begin(struct cluster *c, const struct cluster_write *w, struct cluster_op **out, struct err *err)
{
	ASSERT(w->n_parts > 0 && w->done);
	errc rc = OK;
	struct ring_set *set = ring_set_of(w->parts[0].ring);
	struct cluster_op *op = calloc(1, sizeof *op);
	if (!op)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a write");
	op->c = c;
	pthread_mutex_init(&op->mu, NULL);
	op->deadline_ns = w->deadline_mono_ns;
	op->done = w->done;
	op->arg = w->arg;
	memcpy(op->id, w->id, PEER_ID_BYTES);
	for (uint32_t p = 0; p < w->n_parts; p++) {
		ASSERT(ring_set_of(w->parts[p].ring) == set);
		op->n_items += w->parts[p].n_series + w->parts[p].n_metadata;
	}
	op->undecided = op->n_items;
	op->quorum = c->cfg.quorum ? c->cfg.quorum : ring_set_factor(set) / 2 + 1;
	op->counts = calloc((size_t)op->n_items + 1, sizeof *op->counts);
	op->routes = routes_of(c, set);
	CHECK(op->counts && op->routes, ERR_NOMEM, "no memory for a write of %u series", op->n_items);
	TRY(shares_of(op, w, err));
	TRY(frames_of(c, w, op, err));

	/* The caller, the list of deadlines, and each share. */
	atomic_init(&op->refs, op->n_shares + 2);
	op_begins(c, op);
	for (uint32_t i = 0; i < op->n_shares; i++) {
		struct cluster_share *s = &op->shares[i];
		if (s == op->mine)
			continue;
		if (!s->entered) {
			share_over(s, s->why, NULL);
			continue;
		}
		s->sent_ns = io_mono_ns();
		metric_set(c->hops, 1); /* who gets it sends nothing on */
		c->cfg.send(c->cfg.sender, &(struct cluster_send){.address = s->peer->address,
						   .body = span_of(s->frame->b.p, s->frame->b.n),
						   .deadline_mono_ns = w->deadline_mono_ns,
						   .max_answer_bytes = peer_answer_max(s->n),
						   .done = sent,
						   .arg = s});
	}
	*out = op;
	return OK;
fail:
	op_free(op);
	if (err && !err->id)
		err->id = errid_text(ERRID_OVERLOADED);
	return rc;
}

/* ---- the cluster ---- */

errc cluster_open(const struct cluster_config *cfg, struct cluster **out, struct err *err)
{
	ASSERT(cfg->send);
	errc rc = OK;
	struct cluster *c = calloc(1, sizeof *c);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for the cluster");
	c->cfg = *cfg;
	cluster_peers_init(&c->peers, cfg->max_peer_bytes);
	pthread_mutex_init(&c->buffers.mu, NULL);
	cluster_teller_init(&c->teller);
	pthread_mutex_init(&c->routes_mu, NULL);
	pthread_mutex_init(&c->mu, NULL);
	pthread_cond_init(&c->idle, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->wake, &attr);
	pthread_condattr_destroy(&attr);
	c->hops = metric_gauge("varve_forward_hops_max", "The most hops that a write of a client took from here");
	c->open_writes = metric_gauge("varve_forward_writes", "Writes of which a node has not answered, also when the client has been");
	static const char help[] = "Series of clients' writes by what the fleet's nodes made of them";
	c->series[CLUSTER_STORED] = metric_counter_with("varve_forward_series_total", help, "result", "stored");
	c->series[CLUSTER_REFUSED] = metric_counter_with("varve_forward_series_total", help, "result", "refused");
	c->series[CLUSTER_AGAIN] = metric_counter_with("varve_forward_series_total", help, "result", "again");
	if (!cfg->no_timer) {
		c->has_timer = pthread_create(&c->timer, NULL, timer, c) == 0;
		if (!c->has_timer) {
			rc = err_set(err, ERR_AGAIN, "no thread for the deadlines of writes");
			goto fail;
		}
		if (cfg->on_missed)
			TRY(cluster_teller_start(&c->teller, err));
	}
	*out = c;
	return OK;
fail:
	cluster_close(c);
	return rc;
}

void cluster_close(struct cluster *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->mu);
	while (c->n_ops > 0)
		pthread_cond_wait(&c->idle, &c->mu);
	c->stop = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->mu);
	if (c->has_timer)
		pthread_join(c->timer, NULL);
	cluster_teller_free(&c->teller);
	cluster_routes_put(c->routes);
	cluster_peers_free(&c->peers);
	for (size_t i = 0; i < c->buffers.n; i++)
		free(c->buffers.v[i].p);
	pthread_mutex_destroy(&c->buffers.mu);
	pthread_mutex_destroy(&c->routes_mu);
	pthread_mutex_destroy(&c->mu);
	pthread_cond_destroy(&c->idle);
	pthread_cond_destroy(&c->wake);
	free(c);
}
