/* query/query_external.c - external labels are part of each series, as in Thanos: they win over a series' own, and matchers see them.
 *
 * Joining changes the order. A source gives its series by their own labels; with the same labels E joined to all, two series A < B keep their order
 * unless A is a proper prefix of B, E begins behind A's last label, and B's next label sorts before E: then B goes first. All series that have A
 * as a prefix follow A at once, so it is enough to hold A back until a series comes that is no extension of it, or one that sorts behind it
 * after joining. Held series form a stack of prefixes: at most as deep as a set has labels.
 *
 * Where a source has a label of E's name among its own, or one that replicas differ in and that is taken away, joining replaces values and any order is possible: such a source (rare: a series that
 * carries its own tenant_id or replica) is read whole, sorted, and then given; its memory counts against the question.
 */
#include <stdlib.h>
#include "query/query_int.h"

errc external_matchers(const struct labels ext, const struct matcher *m, size_t n, struct arena *arena, struct matcher **out, size_t *n_out,
	bool *none, struct err *err)
{
	struct matcher *kept = arena_alloc(arena, (n + 1) * sizeof *kept);
	if (!kept)
		return err_set(err, ERR_NOMEM, "no memory for matchers");
	*none = false;
	*n_out = 0;
	for (size_t i = 0; i < n; i++) {
		bool external = false;
		for (uint32_t k = 0; k < ext.n; k++)
			if (span_eq(ext.v[k].name, m[i].name)) {
				external = true;
				*none |= !matcher_matches(&m[i], ext.v[k].value);
			}
		if (!external)
			kept[(*n_out)++] = m[i];
	}
	*out = kept;
	return OK;
}

errc labels_without(struct labels l, const struct span *names, size_t n, struct arena *arena, struct labels *out, struct err *err)
{
	uint32_t kept = 0;
	struct label *v = NULL;
	for (uint32_t i = 0; i < l.n; i++) {
		bool dropped = false;
		for (size_t k = 0; k < n; k++)
			dropped |= span_eq(names[k], l.v[i].name);
		if (dropped && !v) {
			v = arena_alloc(arena, l.n * sizeof *v);
			if (!v)
				return err_set(err, ERR_NOMEM, "no memory for labels");
			memcpy(v, l.v, kept * sizeof *v);
		}
		if (!dropped && v)
			v[kept] = l.v[i];
		kept += !dropped;
	}
	*out = v ? (struct labels){v, kept} : l;
	return OK;
}

errc external_join(struct labels own, struct labels ext, struct arena *arena, struct labels *out, struct err *err)
{
	struct label *v = arena_alloc(arena, ((size_t)own.n + ext.n) * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for labels");
	uint32_t n = 0, a = 0, b = 0;
	while (a < own.n || b < ext.n) {
		int c = a == own.n ? 1 : b == ext.n ? -1 : span_cmp(own.v[a].name, ext.v[b].name);
		if (c < 0) {
			v[n++] = own.v[a++];
		} else {
			v[n++] = ext.v[b++];
			a += c == 0;
		}
	}
	*out = (struct labels){v, n};
	return OK;
}

/* ---- the stream ---- */

/* A held series with its own memory. */
struct held {
	struct ext_series s;
	struct arena arena;
};

struct ext_iter {
	struct qsource *src;
	struct labels ext; /* what is joined: without the labels that replicas differ in */
	const struct span *replica;
	size_t n_replica;
	struct series_iter *it;
	size_t max_memory;
	/* reordering: [0, n_held) is the stack of prefixes, `given` the one that the caller reads */
	struct held **held;
	size_t n_held, cap_held;
	struct held *given;
	struct held *next; /* read, not yet placed */
	bool end;
	/* the sorted fallback */
	bool whole;
	struct arena arena;
	struct ext_series *all;
	size_t n_all, at, cap_all;
};

static errc copy_labels(struct labels l, struct arena *arena, struct labels *out, struct err *err)
{
	struct label *v = arena_alloc(arena, l.n * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for labels (--query.max-memory)");
	for (uint32_t i = 0; i < l.n; i++) {
		v[i].name = arena_dup(arena, l.v[i].name);
		v[i].value = arena_dup(arena, l.v[i].value);
		if (!v[i].name.p || !v[i].value.p)
			return err_set(err, ERR_NOMEM, "no memory for labels (--query.max-memory)");
	}
	*out = (struct labels){v, l.n};
	return OK;
}

static errc copy_view(const struct ext_iter *it, const struct series_view *v, struct arena *arena, struct ext_series *out, struct err *err)
{
	errc rc = OK;
	TRY(copy_labels(v->labels, arena, &out->own, err));
	if (it->whole)
		TRY(labels_without(out->own, it->replica, it->n_replica, arena, &out->own, err));
	TRY(external_join(out->own, it->ext, arena, &out->labels, err));
	out->chunks = arena_alloc(arena, v->n_chunks * sizeof *out->chunks);
	struct interval *deleted = arena_alloc(arena, v->n_deleted * sizeof *deleted);
	CHECK(out->chunks && deleted, ERR_NOMEM, "no memory for a series' chunks (--query.max-memory)");
	for (size_t i = 0; i < v->n_chunks; i++) {
		out->chunks[i] = v->chunks[i];
		out->chunks[i].data = arena_dup(arena, v->chunks[i].data);
		CHECK(out->chunks[i].data.p, ERR_NOMEM, "no memory for a series' chunks (--query.max-memory)");
	}
	if (v->n_deleted > 0)
		memcpy(deleted, v->deleted, v->n_deleted * sizeof *deleted);
	out->n_chunks = v->n_chunks;
	out->deleted = deleted;
	out->n_deleted = v->n_deleted;
fail:
	return rc;
}

static errc stop_at_first(void *arg, struct span value, struct err *err)
{
	(void)value;
	*(bool *)arg = true;
	return err_set(err, ERR_CANCELED, "one is enough");
}

/* Has the source a label of an external label's name among its own, or one that replicas differ in? */
static errc collides(const struct ext_iter *it, const struct select_options *opt, bool *yes, struct err *err)
{
	struct qsource *s = it->src;
	*yes = false;
	for (size_t i = 0; i < it->n_replica && !*yes; i++) {
		errc rc = s->src->ops->label_values(s->src, it->replica[i], NULL, 0, opt, stop_at_first, yes, err);
		if (rc != OK && !*yes)
			return rc;
	}
	for (uint32_t i = 0; i < it->ext.n && !*yes; i++) {
		errc rc = s->src->ops->label_values(s->src, it->ext.v[i].name, NULL, 0, opt, stop_at_first, yes, err);
		if (rc != OK && !*yes)
			return rc;
	}
	return OK;
}

static int by_labels(const void *a, const void *b)
{
	return labels_cmp(((const struct ext_series *)a)->labels, ((const struct ext_series *)b)->labels);
}

static errc read_whole(struct ext_iter *it, struct err *err)
{
	errc rc = OK;
	for (;;) {
		struct series_view v;
		bool more;
		TRY(it->it->ops->next(it->it, &v, &more, err));
		if (!more)
			break;
		if (it->n_all == it->cap_all) {
			size_t cap = it->cap_all ? it->cap_all * 2 : 256;
			struct ext_series *all = arena_alloc(&it->arena, cap * sizeof *all);
			CHECK(all, ERR_NOMEM, "no memory for %zu series (--query.max-memory)", cap);
			if (it->n_all)
				memcpy(all, it->all, it->n_all * sizeof *all);
			it->all = all;
			it->cap_all = cap;
		}
		it->all[it->n_all] = (struct ext_series){.src = it->src->src};
		TRY(copy_view(it, &v, &it->arena, &it->all[it->n_all], err));
		it->n_all++;
	}
	it->it->ops->close(it->it);
	it->it = NULL;
	if (it->n_all > 1)
		qsort(it->all, it->n_all, sizeof *it->all, by_labels);
fail:
	return rc;
}

errc ext_iter_open(const struct question *qn, struct qsource *s, const struct matcher *m, size_t n, const struct select_options *opt,
	struct ext_iter **out, struct err *err)
{
	errc rc = OK;
	struct ext_iter *it = calloc(1, sizeof *it);
	if (!it)
		return err_set(err, ERR_NOMEM, "no memory for a stream");
	it->src = s;
	it->max_memory = qn->q->cfg.max_memory_bytes;
	it->replica = qn->replica;
	it->n_replica = qn->n_replica;
	arena_init(&it->arena, it->max_memory);
	TRY(labels_without(s->ext, it->replica, it->n_replica, &it->arena, &it->ext, err));
	bool yes;
	TRY(collides(it, opt, &yes, err));
	it->whole = yes;
	TRY(s->src->ops->select(s->src, m, n, opt, &it->it, err));
	if (it->whole)
		TRY(read_whole(it, err));
	*out = it;
	return OK;
fail:
	ext_iter_close(it);
	return rc;
}

static void held_free(struct held *h)
{
	if (!h)
		return;
	arena_free(&h->arena);
	free(h);
}

static errc read_next(struct ext_iter *it, struct err *err)
{
	errc rc = OK;
	struct series_view v;
	bool more;
	struct held *h = NULL;
	TRY(it->it->ops->next(it->it, &v, &more, err));
	if (!more) {
		/* What the source holds for it is not needed while the last series waits for its turn. */
		it->it->ops->close(it->it);
		it->it = NULL;
		it->end = true;
		return OK;
	}
	h = calloc(1, sizeof *h);
	CHECK(h, ERR_NOMEM, "no memory for a series");
	arena_init(&h->arena, it->max_memory);
	h->s.src = it->src->src;
	TRY(copy_view(it, &v, &h->arena, &h->s, err));
	it->next = h;
	return OK;
fail:
	held_free(h);
	return rc;
}

static bool is_prefix(struct labels a, struct labels b)
{
	if (a.n >= b.n)
		return false;
	return labels_eq(a, (struct labels){b.v, a.n});
}

static errc push(struct ext_iter *it, struct held *h, struct err *err)
{
	if (it->n_held == it->cap_held) {
		size_t cap = it->cap_held ? it->cap_held * 2 : 8;
		struct held **bigger = realloc(it->held, cap * sizeof *bigger);
		if (!bigger)
			return err_set(err, ERR_NOMEM, "no memory for a stream");
		it->held = bigger;
		it->cap_held = cap;
	}
	it->held[it->n_held++] = h;
	return OK;
}

errc ext_iter_next(struct ext_iter *it, struct ext_series *out, bool *more, struct err *err)
{
	*more = true;
	if (it->whole) {
		*more = it->at < it->n_all;
		if (*more)
			*out = it->all[it->at++];
		return OK;
	}
	held_free(it->given);
	it->given = NULL;
	for (;;) {
		if (!it->next && !it->end) {
			errc rc = read_next(it, err);
			if (rc != OK)
				return rc;
		}
		struct held *top = it->n_held > 0 ? it->held[it->n_held - 1] : NULL;
		if (top && (!it->next || !is_prefix(top->s.own, it->next->s.own) || labels_cmp(top->s.labels, it->next->s.labels) < 0)) {
			it->n_held--;
			it->given = top;
			*out = top->s;
			return OK;
		}
		if (!it->next) {
			*more = false;
			return OK;
		}
		errc rc = push(it, it->next, err);
		if (rc != OK)
			return rc;
		it->next = NULL;
	}
}

bool ext_iter_twin(struct ext_iter *it, struct labels labels, struct ext_series *out)
{
	if (!it->whole || it->at == it->n_all || !labels_eq(it->all[it->at].labels, labels))
		return false;
	*out = it->all[it->at++];
	return true;
}

void ext_iter_close(struct ext_iter *it)
{
	if (!it)
		return;
	if (it->it)
		it->it->ops->close(it->it);
	for (size_t i = 0; i < it->n_held; i++)
		held_free(it->held[i]);
	free(it->held);
	held_free(it->given);
	held_free(it->next);
	arena_free(&it->arena);
	free(it);
}
