/* cluster/cluster_missed.c - what a node missed of a write, and who is to keep it until that node is back.
 *
 * Told is what a quorum stored and this node did not; so of each item there are nodes that said they have it, and what they have they can keep for another:
 *
 *     items of the share:   a  b  c  d  e  f        c was stored here (or refused): no matter of hints
 *     who has them:         1  1     2  1  2
 *                           2  3     3  2  3
 *     kept by:              1  1     2  1  2        1 has most of them: a, b, e; of what is left 2 has as much as 3
 *
 * This node comes first, whatever it has: nothing has to travel for that. Then whoever has most of what is left, until nothing is: a few frames, and none of them larger than the share. With each
 * goes who else has all of it, for when the first can't be reached.
 *
 * Shares that are over don't change any more, so once it is known which are, the rest needs no lock. It needs time: frames are taken apart and put together. So it is done by a thread of its own, the
 * teller, and not by those that find out, which are the log's and the sender's; when that one does not keep up with it they do it themselves.
 */
#include <stdlib.h>
#include "base/log.h"
#include "cluster/cluster_write_int.h"

enum { NO_KEEPER = UINT16_MAX };

struct missed {
	uint32_t at; /* number within the share */
	uint16_t keeper;
	uint8_t n_holders;
	uint16_t holders[LIMIT_RING_FACTOR]; /* numbers of shares */
};

struct telling {
	struct cluster_share *s;
	struct missed *v;
	uint32_t n;
	bool *over;	 /* of each share: its verdicts are in, and it stored something */
	uint32_t *has;	 /* of each share: how many items without a keeper it has */
	uint32_t *tally; /* of each share: how many of the keeper's it has */
	struct span *addresses;
};

/* Its verdict of the i-th item of a share; items are asked ascending, *at is where to look. */
static enum peer_verdict_kind verdict_of(const struct cluster_share *s, uint32_t i, uint32_t *at)
{
	if (s->why != ERRID_NONE)
		return PEER_AGAIN;
	while (*at < s->n_verdicts && s->verdicts[*at].item < i)
		++*at;
	return *at < s->n_verdicts && s->verdicts[*at].item == i ? s->verdicts[*at].kind : PEER_STORED;
}

/* The write is finished, so its counts stand still. */
static uint32_t missed_of(const struct cluster_share *s, struct missed *out)
{
	uint32_t n = 0, at = 0;
	for (uint32_t i = 0; i < s->n; i++) {
		if (s->op->counts[s->items[i]].state != CLUSTER_STORED || verdict_of(s, i, &at) != PEER_AGAIN)
			continue;
		if (out)
			out[n] = (struct missed){.at = i, .keeper = NO_KEEPER};
		n++;
	}
	return n;
}

/* Both lists of items ascend. */
static void holds_what(struct telling *t, uint16_t number)
{
	const struct cluster_op *op = t->s->op;
	const struct cluster_share *k = &op->shares[number];
	uint32_t i = 0, verdict = 0;
	for (uint32_t m = 0; m < t->n; m++) {
		uint32_t item = t->s->items[t->v[m].at];
		while (i < k->n && k->items[i] < item)
			i++;
		if (i == k->n)
			return;
		if (k->items[i] != item || verdict_of(k, i, &verdict) != PEER_STORED)
			continue;
		ASSERT(t->v[m].n_holders < LIMIT_RING_FACTOR);
		t->v[m].holders[t->v[m].n_holders++] = number;
		t->has[number]++;
	}
}

static bool has(const struct missed *m, uint16_t share)
{
	for (uint8_t i = 0; i < m->n_holders; i++)
		if (m->holders[i] == share)
			return true;
	return false;
}

/* How many it takes. */
static uint32_t give(struct telling *t, uint16_t keeper)
{
	uint32_t n = 0;
	for (uint32_t m = 0; m < t->n; m++) {
		struct missed *x = &t->v[m];
		if (x->keeper != NO_KEEPER || !has(x, keeper))
			continue;
		x->keeper = keeper;
		for (uint8_t i = 0; i < x->n_holders; i++)
			t->has[x->holders[i]]--;
		n++;
	}
	return n;
}

struct picking {
	const struct telling *t;
	uint16_t keeper;
	uint32_t at;
};

/* Asked for all items of a share, ascending. */
static bool is_kept(void *arg, uint32_t item)
{
	struct picking *p = arg;
	const struct telling *t = p->t;
	while (p->at < t->n && t->v[p->at].at < item)
		p->at++;
	return p->at < t->n && t->v[p->at].at == item && t->v[p->at].keeper == p->keeper;
}

static struct span address_of(const struct cluster_op *op, uint32_t share)
{
	return op->shares[share].peer ? op->shares[share].peer->address : (struct span){"", 0};
}

static void tell(struct cluster_share *s, const struct cluster_missed *m)
{
	s->op->c->cfg.on_missed(s->op->c->cfg.missed_arg, m);
}

/* n items that nobody can be asked to keep: their number is all that is left of them. */
static void tell_lost(struct cluster_share *s, uint32_t n)
{
	tell(s, &(struct cluster_missed){.address = address_of(s->op, (uint32_t)(s - s->op->shares)), .n_items = n});
}

static void tell_keeper(struct telling *t, uint16_t keeper, uint32_t n)
{
	struct cluster_share *s = t->s;
	struct cluster_op *op = s->op;
	struct cluster *c = op->c;
	struct cluster_missed told = {.address = s->peer->address, .holders = t->addresses, .n_items = n};
	struct picking p = {.t = t, .keeper = keeper};
	struct buf hint = cluster_buffer_take(c);
	struct span frame = span_of(s->frame->b.p, s->frame->b.n);
	struct err err = {0};
	uint32_t picked = n;
	errc rc = n == s->n ? peer_request_as_hint(frame, &hint, &err) : peer_request_pick(frame, c->cfg.lz4, is_kept, &p, &picked, &hint, &err);
	if (rc == OK) {
		ASSERT(picked == n);
		memset(t->tally, 0, op->n_shares * sizeof *t->tally);
		for (uint32_t m = 0; m < t->n; m++)
			for (uint8_t i = 0; t->v[m].keeper == keeper && i < t->v[m].n_holders; i++)
				t->tally[t->v[m].holders[i]]++;
		t->addresses[told.n_holders++] = address_of(op, keeper);
		for (uint32_t k = 0; k < op->n_shares; k++)
			if (k != keeper && t->tally[k] == n)
				t->addresses[told.n_holders++] = address_of(op, k);
		told.frame = span_of(hint.p, hint.n);
		tell(s, &told);
	} else {
		log_warn("what a peer missed could not be told", LSPAN("peer", s->peer->address), LU64("series", n), LERR(&err));
		tell_lost(s, n);
	}
	cluster_buffer_give(c, &hint);
}

static void tell_all(struct telling *t)
{
	struct cluster_op *op = t->s->op;
	pthread_mutex_lock(&op->mu);
	for (uint32_t k = 0; k < op->n_shares; k++)
		t->over[k] = op->shares[k].over && op->shares[k].why == ERRID_NONE;
	pthread_mutex_unlock(&op->mu);
	for (uint32_t k = 0; k < op->n_shares; k++)
		if (t->over[k] && &op->shares[k] != t->s)
			holds_what(t, (uint16_t)k);
	uint32_t mine = op->mine ? (uint32_t)(op->mine - op->shares) : UINT32_MAX;
	for (uint32_t left = t->n; left > 0;) {
		uint32_t best = 0;
		for (uint32_t k = 1; k < op->n_shares; k++)
			if (t->has[k] > t->has[best])
				best = k;
		if (mine != UINT32_MAX && t->has[mine] > 0)
			best = mine;
		/* A quorum said so, or it would not be stored. */
		ASSERT(t->has[best] > 0);
		uint32_t n = give(t, (uint16_t)best);
		tell_keeper(t, (uint16_t)best, n);
		left -= n;
	}
}

static void tell_now(struct cluster_share *s)
{
	struct cluster_op *op = s->op;
	struct telling t = {.s = s, .n = missed_of(s, NULL)};
	_Static_assert(LIMIT_RING_ENDPOINTS < NO_KEEPER, "a share's number has 16 bits");
	if (t.n == 0)
		return;
	if (!s->frame) {
		/* This node's own share: it was never made a frame. */
		tell_lost(s, t.n);
		return;
	}
	t.v = malloc(t.n * sizeof *t.v);
	t.over = calloc(op->n_shares, sizeof *t.over);
	t.has = calloc(op->n_shares, sizeof *t.has);
	t.tally = calloc(op->n_shares, sizeof *t.tally);
	t.addresses = calloc(op->n_shares, sizeof *t.addresses);
	if (t.v && t.over && t.has && t.tally && t.addresses) {
		missed_of(s, t.v);
		tell_all(&t);
	} else {
		log_warn("no memory to tell what a peer missed", LSPAN("peer", s->peer->address), LU64("series", t.n));
		tell_lost(s, t.n);
	}
	free(t.v);
	free(t.over);
	free(t.has);
	free(t.tally);
	free(t.addresses);
}

/* ---- the teller ---- */

static void *teller(void *arg)
{
	struct cluster_teller *t = arg;
	pthread_mutex_lock(&t->mu);
	for (;;) {
		while (!t->first && !t->stop)
			pthread_cond_wait(&t->some, &t->mu);
		struct cluster_share *s = t->first;
		if (!s)
			break;
		t->first = s->next_told;
		if (!t->first)
			t->last = &t->first;
		pthread_mutex_unlock(&t->mu);
		uint64_t bytes = s->bytes;
		tell_now(s);
		cluster_op_put(s->op);
		pthread_mutex_lock(&t->mu);
		t->bytes -= bytes;
	}
	pthread_mutex_unlock(&t->mu);
	return NULL;
}

void cluster_tell_missed(struct cluster_share *s)
{
	struct cluster_teller *t = &s->op->c->teller;
	bool taken = false;
	pthread_mutex_lock(&t->mu);
	if (t->runs && (t->bytes == 0 || t->bytes + s->bytes <= LIMIT_HINTS_QUEUE_BYTES)) {
		atomic_fetch_add(&s->op->refs, 1);
		s->next_told = NULL;
		*t->last = s;
		t->last = &s->next_told;
		t->bytes += s->bytes;
		taken = true;
		pthread_cond_signal(&t->some);
	}
	pthread_mutex_unlock(&t->mu);
	if (!taken)
		tell_now(s);
}

void cluster_teller_init(struct cluster_teller *t)
{
	pthread_mutex_init(&t->mu, NULL);
	pthread_cond_init(&t->some, NULL);
	t->last = &t->first;
}

errc cluster_teller_start(struct cluster_teller *t, struct err *err)
{
	t->runs = pthread_create(&t->thread, NULL, teller, t) == 0;
	return t->runs ? OK : err_set(err, ERR_AGAIN, "no thread for what peers miss");
}

void cluster_teller_free(struct cluster_teller *t)
{
	pthread_mutex_lock(&t->mu);
	t->stop = true;
	pthread_cond_signal(&t->some);
	pthread_mutex_unlock(&t->mu);
	if (t->runs)
		pthread_join(t->thread, NULL);
	pthread_mutex_destroy(&t->mu);
	pthread_cond_destroy(&t->some);
}
