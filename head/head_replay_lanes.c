/* head/head_replay_lanes.c - samples of the log go into their windows beside the thread that reads it.
 *
 *     reader: frame, decompressed ─▶ refs to series, values against keys ─▶ batches ─▶ lane: shards i, i + n, i + 2n ...
 *                                                                             └─────▶ lane ...
 *
 * Reading and finding costs about what insertion does, so two cores halve a start; more cores share the insertion. A series is of one lane, so its samples arrive in the
 * log's order, and what a window holds does not depend on the number of lanes. Of a series a lane touches what says where it is (ws, ws_window, newest_window,
 * n_windows); the reader, whatever is needed to tell values. Whoever needs the shards' locks otherwise waits until the lanes are empty: definitions, histograms, cuts.
 *
 * With one core there is no lane: the reader empties a full batch itself.
 */
#include <sched.h>
#include "head/head_replay_int.h"

enum { ITEMS = 512, BATCHES = 8, LANES_MAX = 16, AHEAD_SERIES = 24, AHEAD_WS = 16, AHEAD_PIECE = 8 };

struct batch {
	uint32_t n;
	struct replay_item v[ITEMS];
};

struct lane {
	struct head *head;
	uint32_t first, step; /* its shards */
	pthread_t thread;
	bool runs;
	pthread_mutex_t mu;
	pthread_cond_t more, room;
	/* mu; batches [done, put) are full; what is behind belongs to the reader */
	uint64_t put, done;
	bool stop;
	errc rc;
	struct err err;
	_Atomic bool failed;
	struct batch v[BATCHES];
};

struct replay_lanes {
	uint32_t n; /* threads; 0: one lane without */
	struct lane *v[LANES_MAX];
};

/* ---- insertion ---- */

static struct wseries *ws_locked(struct head *h, const struct replay_item *x, struct err *err)
{
	struct series *s = x->s;
	if (LIKELY(s->ws && s->ws_window == x->w->serial))
		return s->ws;
	struct wseries *ws = head_window_series_locked(x->w, &h->shards[s->shard], s->shard, s, err);
	if (ws) {
		s->ws = ws;
		s->ws_window = x->w->serial;
	}
	return ws;
}

static errc insert_locked(struct head *h, const struct replay_item *x, uint64_t *stored, struct err *err)
{
	struct wseries *ws = ws_locked(h, x, err);
	if (!ws)
		return ERR_NOMEM;
	if (replay_has(ws, x->behind))
		return OK;
	struct wpart *part = x->w->parts[ws->shard].p;
	int64_t t = x->w->start + x->t;
	bool late;
	switch (head_leaf_insert_locked(x->w, &h->shards[ws->shard], part, ws, t, x->v, true, &late, err)) {
	case INSERT_STORED:
		part->n_samples++;
		part->min_t = t < part->min_t ? t : part->min_t;
		part->max_t = t > part->max_t ? t : part->max_t;
		++*stored;
		return OK;
	case INSERT_FAILED:
		return err->code ? err->code : ERR_NOMEM;
	default:
		return OK;
	}
}

static void count(struct head *h, struct window *w, uint64_t stored)
{
	atomic_fetch_add_explicit(&w->n_samples, stored, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->n_samples, stored, memory_order_relaxed);
}

/* Asks for the cache lines that insertion will touch. */
static void look_ahead(const struct batch *b, uint32_t i)
{
	if (i + AHEAD_SERIES < b->n)
		__builtin_prefetch(b->v[i + AHEAD_SERIES].s, 1);
	if (i + AHEAD_WS < b->n && b->v[i + AHEAD_WS].s->ws)
		__builtin_prefetch(b->v[i + AHEAD_WS].s->ws, 1);
	if (i + AHEAD_PIECE >= b->n)
		return;
	const struct replay_item *x = &b->v[i + AHEAD_PIECE];
	const struct wseries *ws = x->s->ws;
	if (ws && x->s->ws_window == x->w->serial && ws->last)
		__builtin_prefetch(part_piece(x->w->parts[ws->shard].p, ws->last), 1);
}

/* Samples of neighbouring refs are in all shards: all locks of the lane are held for a batch, instead of one for each sample. */
static errc batch_insert(struct lane *l, const struct batch *b, struct err *err)
{
	errc rc = OK;
	struct head *h = l->head;
	uint64_t stored = 0;
	struct window *w = NULL;
	for (uint32_t i = l->first; i < h->n_shards; i += l->step)
		pthread_mutex_lock(&h->shards[i].mu);
	for (uint32_t i = 0; i < b->n && rc == OK; i++) {
		if (UNLIKELY(b->v[i].w != w)) {
			if (w)
				count(h, w, stored);
			w = b->v[i].w;
			stored = 0;
		}
		look_ahead(b, i);
		rc = insert_locked(h, &b->v[i], &stored, err);
	}
	if (w)
		count(h, w, stored);
	for (uint32_t i = l->first; i < h->n_shards; i += l->step)
		pthread_mutex_unlock(&h->shards[i].mu);
	return rc;
}

/* What was put behind an error is dropped: the reader will end, or begin again. */
static void batch_take(struct lane *l, struct batch *b)
{
	if (!atomic_load_explicit(&l->failed, memory_order_relaxed)) {
		struct err err = {0};
		errc rc = batch_insert(l, b, &err);
		if (rc != OK) {
			l->rc = rc;
			l->err = err;
			atomic_store_explicit(&l->failed, true, memory_order_release);
		}
	}
	b->n = 0;
}

/* ---- threads ---- */

static void *lane_main(void *arg)
{
	struct lane *l = arg;
	pthread_mutex_lock(&l->mu);
	while (!l->stop || l->done < l->put) {
		if (l->done == l->put) {
			pthread_cond_wait(&l->more, &l->mu);
			continue;
		}
		struct batch *b = &l->v[l->done % BATCHES];
		pthread_mutex_unlock(&l->mu);
		batch_take(l, b);
		pthread_mutex_lock(&l->mu);
		l->done++;
		pthread_cond_signal(&l->room);
	}
	pthread_mutex_unlock(&l->mu);
	return NULL;
}

static uint32_t cores(void)
{
	cpu_set_t set;
	if (sched_getaffinity(0, sizeof set, &set) != 0)
		return 1;
	int n = CPU_COUNT(&set);
	return n > 1 ? (uint32_t)n : 1;
}

uint32_t head_replay_threads(const struct head *h)
{
	return h->cfg.replay_threads ? h->cfg.replay_threads : cores();
}

errc replay_lanes_open(struct head *h, struct err *err)
{
	errc rc = OK;
	uint32_t n = head_replay_threads(h) - 1;
	n = n > LANES_MAX ? LANES_MAX : n;
	n = n > h->n_shards ? h->n_shards : n;
	struct replay_lanes *ls = calloc(1, sizeof *ls);
	CHECK(ls, ERR_NOMEM, "no memory for replay");
	h->replay->lanes = ls;
	for (uint32_t i = 0; i < (n > 0 ? n : 1); i++) {
		struct lane *l = calloc(1, sizeof *l);
		CHECK(l, ERR_NOMEM, "no memory for replay");
		ls->v[i] = l;
		l->head = h;
		l->first = i;
		l->step = n > 0 ? n : 1;
		pthread_mutex_init(&l->mu, NULL);
		pthread_cond_init(&l->more, NULL);
		pthread_cond_init(&l->room, NULL);
	}
	/* All of them or none: their shards are dealt out. */
	for (; ls->n < n; ls->n++) {
		struct lane *l = ls->v[ls->n];
		CHECK(pthread_create(&l->thread, NULL, lane_main, l) == 0, ERR_AGAIN, "no thread for replay");
		l->runs = true;
	}
fail:
	return rc;
}

void replay_lanes_close(struct replay_state *r)
{
	struct replay_lanes *ls = r->lanes;
	if (!ls)
		return;
	for (uint32_t i = 0; i < LANES_MAX && ls->v[i]; i++) {
		struct lane *l = ls->v[i];
		if (l->runs) {
			pthread_mutex_lock(&l->mu);
			l->stop = true;
			pthread_cond_signal(&l->more);
			pthread_mutex_unlock(&l->mu);
			pthread_join(l->thread, NULL);
		}
		pthread_mutex_destroy(&l->mu);
		pthread_cond_destroy(&l->more);
		pthread_cond_destroy(&l->room);
		free(l);
	}
	free(ls);
	r->lanes = NULL;
}

/* ---- the reader's side ---- */

/* The batch that is being filled goes to the lane. */
static void hand_over(struct lane *l)
{
	if (!l->runs) {
		batch_take(l, &l->v[0]);
		return;
	}
	pthread_mutex_lock(&l->mu);
	l->put++;
	pthread_cond_signal(&l->more);
	while (l->put - l->done == BATCHES)
		pthread_cond_wait(&l->room, &l->mu);
	pthread_mutex_unlock(&l->mu);
}

struct replay_item *replay_lanes_put(struct replay_state *r, uint32_t shard)
{
	struct replay_lanes *ls = r->lanes;
	struct lane *l = ls->v[ls->n > 1 ? shard % ls->n : 0];
	/* put is written by the reader alone. */
	struct batch *b = &l->v[l->put % BATCHES];
	if (UNLIKELY(b->n == ITEMS)) {
		hand_over(l);
		b = &l->v[l->put % BATCHES];
	}
	return &b->v[b->n++];
}

bool replay_lanes_failed(const struct replay_state *r)
{
	const struct replay_lanes *ls = r->lanes;
	bool any = false;
	for (uint32_t i = 0; ls && i < LANES_MAX && ls->v[i]; i++)
		any |= atomic_load_explicit(&ls->v[i]->failed, memory_order_acquire);
	return any;
}

errc replay_lanes_drain(struct replay_state *r, struct err *err)
{
	errc rc = OK;
	struct replay_lanes *ls = r->lanes;
	for (uint32_t i = 0; ls && i < LANES_MAX && ls->v[i]; i++)
		if (ls->v[i]->v[ls->v[i]->put % BATCHES].n > 0)
			hand_over(ls->v[i]);
	for (uint32_t i = 0; ls && i < LANES_MAX && ls->v[i]; i++) {
		struct lane *l = ls->v[i];
		pthread_mutex_lock(&l->mu);
		while (l->runs && l->done < l->put)
			pthread_cond_wait(&l->room, &l->mu);
		pthread_mutex_unlock(&l->mu);
		if (!atomic_load_explicit(&l->failed, memory_order_acquire))
			continue;
		if (rc == OK) {
			rc = l->rc;
			if (err)
				*err = l->err;
		}
		l->rc = OK;
		l->err = (struct err){0};
		atomic_store_explicit(&l->failed, false, memory_order_relaxed);
	}
	return rc;
}
