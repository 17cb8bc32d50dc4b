/* query/query_merge.c - many streams of series, one ascending stream: a binary heap by labels.
 *
 * A stream per source and matcher set. Equal labels (from a head window and a block, two blocks, two matcher sets, or one source whose own labels
 * became equal under external ones) become one series with several parts; a part found twice in one source by two matcher sets
 * is the same chunks again, which merging by time drops.
 */
#include <stdlib.h>
#include "query/query_int.h"

#define BATCH_SHARE 8 /* of the question's memory for what sources read ahead; they hold about twice that */
#define BATCH_MIN (16 * KIB)
#define BATCH_MAX (1 * MIB)

struct stream {
	struct ext_iter *it;
	struct qsource *src;
	struct ext_series cur;
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

static errc advance(struct merge *m, struct stream *s, bool *more, struct err *err)
{
	errc rc = ext_iter_next(s->it, &s->cur, more, err);
	if (rc != OK) {
		m->qn->blamed = s->src->src->ulid;
		m->qn->blamed_kind = s->src->src->kind;
	} else if (!*more) {
		ext_iter_close(s->it);
		s->it = NULL;
	}
	return rc;
}

errc merge_open(struct question *qn, const struct matcher_set *sets, size_t n_sets, bool skip_chunks, struct merge **out, struct err *err)
{
	errc rc = OK;
	struct merge *m = calloc(1, sizeof *m);
	if (!m)
		return err_set(err, ERR_NOMEM, "no memory for a merge");
	m->qn = qn;
	size_t max = qn->n_sources * n_sets;
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
			bool none, more;
			TRY(external_matchers(qn->sources[i].ext, sets[k].m, sets[k].n, &qn->arena, &own, &n_own, &none, err));
			if (none)
				continue;
			struct stream *s = &m->streams[m->n_streams++];
			s->src = &qn->sources[i];
			qn->blamed = s->src->src->ulid;
			qn->blamed_kind = s->src->src->kind;
			TRY(question_check_deadline(qn, err));
			TRY(ext_iter_open(s->src, own, n_own, &opt, qn->q->cfg.max_memory_bytes, &s->it, err));
			TRY(advance(m, s, &more, err));
			if (more)
				heap_push(m, s);
		}
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
		bool any;
		TRY(advance(m, m->given[i], &any, err));
		if (any)
			heap_push(m, m->given[i]);
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
		while (ext_iter_twin(m->given[i]->it, labels, &twin))
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
