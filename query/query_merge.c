/* query/query_merge.c - many streams of series, one ascending stream: a binary heap by labels.
 *
 * A stream per source and matcher set. Equal labels (from a head window and a block, two blocks, two matcher sets, or one source whose own labels
 * became equal under external ones) become one series with several parts; a part found twice in one source by two matcher sets
 * is the same chunks again, which merging by time drops.
 *
 * Every stream must be at its first series before the merge can begin: a few requests of the bucket for each of perhaps thousands of blocks. They are
 * opened by several threads; from then on the caller's thread reads alone. What peers were asked for comes in as a stream each, for all matcher sets together.
 */
#include <stdatomic.h>
#include <stdlib.h>
#include "query/query_fleet_int.h"

#define BATCH_SHARE 8 /* of the question's memory for what sources read ahead; they hold about twice that */
#define BATCH_MIN (16 * KIB)
#define BATCH_MAX (1 * MIB)

struct stream {
	struct ext_iter *it;
	struct qsource *src;
	struct fleet_peer *peer; /* instead of the two */
	const struct matcher *matchers;
	size_t n_matchers;
	struct ext_series cur;
	bool more;
};

enum { OPENERS = 8, STREAMS_EACH = 4 /* a thread for less than so many is not worth it */ };

/* The streams being opened. */
struct opening {
	struct merge *m;
	const struct select_options *opt;
	atomic_size_t next;
	pthread_mutex_t mu;
	atomic_bool failed;
	errc rc; /* of the first that failed; guarded by mu, as what follows */
	struct err err;
	const struct stream *at;
};

struct merge {
	struct question *qn;
	struct stream *streams; /* in the question's arena */
	size_t n_streams;
	struct stream **heap;
	size_t n_heap;
	/* those whose current series was given out and that must move on before the next */
	struct stream **given;
	size_t n_given;
	struct ext_series *parts;
	size_t n_parts, cap_parts;
	uint32_t calls;
};

static bool before(const struct stream *a, const struct stream *b)
{
	return labels_cmp(a->cur.labels, b->cur.labels) < 0;
}

static void sift_down(struct merge *m, size_t i)
{
	for (;;) {
		size_t least = i, l = 2 * i + 1, r = l + 1;
		if (l < m->n_heap && before(m->heap[l], m->heap[least]))
			least = l;
		if (r < m->n_heap && before(m->heap[r], m->heap[least]))
			least = r;
		if (least == i)
			return;
		struct stream *t = m->heap[i];
		m->heap[i] = m->heap[least];
		m->heap[least] = t;
		i = least;
	}
}

static void heap_push(struct merge *m, struct stream *s)
{
	size_t i = m->n_heap++;
	m->heap[i] = s;
	while (i > 0 && before(m->heap[i], m->heap[(i - 1) / 2])) {
		size_t up = (i - 1) / 2;
		struct stream *t = m->heap[i];
		m->heap[i] = m->heap[up];
		m->heap[up] = t;
		i = up;
	}
}

static struct stream *heap_pop(struct merge *m)
{
	struct stream *s = m->heap[0];
	m->heap[0] = m->heap[--m->n_heap];
	sift_down(m, 0);
	return s;
}

static errc blame(struct merge *m, const struct stream *s, errc rc)
{
	if (s->src) {
		m->qn->blamed = s->src->src->ulid;
		m->qn->blamed_kind = s->src->src->kind;
	}
	return rc;
}

static errc advance(struct stream *s, struct err *err)
{
	if (s->peer)
		return fleet_next_series(s->peer, &s->cur, &s->more, err);
	errc rc = ext_iter_next(s->it, &s->cur, &s->more, err);
	if (rc == OK && !s->more) {
		ext_iter_close(s->it);
		s->it = NULL;
	}
	return rc;
}

static errc stream_open(struct opening *o, struct stream *s, struct err *err)
{
	errc rc = OK;
	const struct question *qn = o->m->qn;
	TRY(question_check_deadline(qn, err));
	TRY(ext_iter_open(qn, s->src, s->matchers, s->n_matchers, o->opt, &s->it, err));
	TRY(advance(s, err));
fail:
	return rc;
}

static void *opener(void *arg)
{
	struct opening *o = arg;
	for (;;) {
		struct err err = {0};
		size_t i = atomic_fetch_add(&o->next, 1);
		if (i >= o->m->n_streams || atomic_load(&o->failed))
			return NULL;
		errc rc = stream_open(o, &o->m->streams[i], &err);
		if (rc == OK)
			continue;
		pthread_mutex_lock(&o->mu);
		if (!atomic_exchange(&o->failed, true)) {
			o->rc = rc;
			o->err = err;
			o->at = &o->m->streams[i];
		}
		pthread_mutex_unlock(&o->mu);
	}
}

static errc open_all(struct merge *m, const struct select_options *opt, struct err *err)
{
	struct opening o = {.m = m, .opt = opt};
	pthread_t threads[OPENERS];
	size_t n = m->n_streams / STREAMS_EACH, started = 0;
	pthread_mutex_init(&o.mu, NULL);
	/* This thread is one of them; those that can't be had are done without. */
	while (started + 1 < n && started + 1 < OPENERS && pthread_create(&threads[started], NULL, opener, &o) == 0)
		started++;
	opener(&o);
	while (started > 0)
		pthread_join(threads[--started], NULL);
	pthread_mutex_destroy(&o.mu);
	if (o.rc == OK)
		return OK;
	if (err)
		*err = o.err;
	return blame(m, o.at, o.rc);
}

errc merge_open(struct question *qn, const struct matcher_set *sets, size_t n_sets, bool skip_chunks, struct merge **out, struct err *err)
{
	errc rc = OK;
	struct merge *m = calloc(1, sizeof *m);
	if (!m)
		return err_set(err, ERR_NOMEM, "no memory for a merge");
	m->qn = qn;
	size_t n_peers = fleet_ask_peers(qn->ask), max = qn->n_sources * n_sets + n_peers;
	m->streams = arena_calloc(&qn->arena, max + 1, sizeof *m->streams);
	m->heap = arena_alloc(&qn->arena, (max + 1) * sizeof *m->heap);
	m->given = arena_alloc(&qn->arena, (max + 1) * sizeof *m->given);
	CHECK(m->streams && m->heap && m->given, ERR_NOMEM, "no memory for %zu sources (--query.max-memory)", max);
	/* Every source reads ahead; together they stay within a fraction of the question's memory. */
	size_t batch = qn->q->cfg.max_memory_bytes / BATCH_SHARE / (max + 1);
	const struct select_options opt = {.mint = qn->mint,
		.maxt = qn->maxt,
		.skip_chunks = skip_chunks,
		.batch_bytes = batch < BATCH_MIN   ? BATCH_MIN
			       : batch > BATCH_MAX ? BATCH_MAX
						   : batch};
	for (size_t i = 0; i < qn->n_sources; i++)
		for (size_t k = 0; k < n_sets; k++) {
			struct matcher *own;
			size_t n_own;
			bool none;
			TRY(external_matchers(qn->sources[i].ext, sets[k].m, sets[k].n, &qn->arena, &own, &n_own, &none, err));
			if (!none)
				m->streams[m->n_streams++] = (struct stream){.src = &qn->sources[i], .matchers = own, .n_matchers = n_own};
		}
	TRY(open_all(m, &opt, err));
	/* They are at work since they were asked; this thread alone waits for them. */
	for (size_t i = 0; i < n_peers; i++) {
		struct stream *s = &m->streams[m->n_streams++];
		*s = (struct stream){.peer = fleet_ask_peer(qn->ask, i)};
		TRY(advance(s, err));
	}
	for (size_t i = 0; i < m->n_streams; i++)
		if (m->streams[i].more)
			heap_push(m, &m->streams[i]);
	*out = m;
	return OK;
fail:
	merge_close(m);
	return rc;
}

static errc add_part(struct merge *m, const struct ext_series *s, struct err *err)
{
	if (m->n_parts == m->cap_parts) {
		size_t cap = m->cap_parts ? m->cap_parts * 2 : 64;
		struct ext_series *bigger = realloc(m->parts, cap * sizeof *bigger);
		if (!bigger)
			return err_set(err, ERR_NOMEM, "no memory for %zu parts of a series", cap);
		m->parts = bigger;
		m->cap_parts = cap;
	}
	m->parts[m->n_parts++] = *s;
	return OK;
}

errc merge_next(struct merge *m, struct merged *out, bool *more, struct err *err)
{
	errc rc = OK;
	if (m->calls++ % 64 == 0)
		TRY(question_check_deadline(m->qn, err));
	for (size_t i = 0; i < m->n_given; i++) {
		struct stream *s = m->given[i];
		rc = advance(s, err);
		if (rc != OK)
			return blame(m, s, rc);
		if (s->more)
			heap_push(m, s);
	}
	m->n_given = 0;
	m->n_parts = 0;
	*more = m->n_heap > 0;
	if (!*more)
		return OK;

	struct stream *first = heap_pop(m);
	TRY(add_part(m, &first->cur, err));
	m->given[m->n_given++] = first;
	struct labels labels = first->cur.labels;
	while (m->n_heap > 0 && labels_eq(m->heap[0]->cur.labels, labels)) {
		struct stream *s = heap_pop(m);
		TRY(add_part(m, &s->cur, err));
		m->given[m->n_given++] = s;
	}
	/* A source whose own labels were replaced can hold the same labels twice. */
	for (size_t i = 0; i < m->n_given; i++) {
		struct ext_series twin;
		while (m->given[i]->it && ext_iter_twin(m->given[i]->it, labels, &twin))
			TRY(add_part(m, &twin, err));
	}
	*out = (struct merged){m->qn, labels, m->parts, m->n_parts};
fail:
	return rc;
}

void merge_close(struct merge *m)
{
	if (!m)
		return;
	for (size_t i = 0; i < m->n_streams; i++)
		ext_iter_close(m->streams[i].it);
	free(m->parts);
	free(m);
}
