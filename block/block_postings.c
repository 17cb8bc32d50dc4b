/* block/block_postings.c - which series match: the one algorithm over postings, for head windows and block indexes.
 *
 * A matcher that does not match the empty value names the series it wants: the union of the postings of the values that match. One that
 * does match it names the series it does not want: the union of the values that do not match, taken away from what the others left; a
 * series without the label stays.
 *
 * Order by cost: single pairs, sets of literals, then what must look at a name's values; an empty result ends it, so later matchers are
 * never asked for. Once there is a result, a union keeps only what is in it: each list is intersected by galloping before it is added, and
 * no more than one list is held beside the result.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_source.h"

/* Growing u32 list. A union of lists that ascend one after the other needs no sort. */
struct refs {
	uint32_t *v;
	size_t n, cap;
	bool sorted;
};

static errc refs_reserve(struct refs *r, size_t n, struct err *err)
{
	if (r->cap - r->n >= n)
		return OK;
	size_t cap = r->cap * 2 > r->n + n ? r->cap * 2 : r->n + n;
	uint32_t *v = realloc(r->v, cap * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "postings of %zu series", cap);
	r->v = v;
	r->cap = cap;
	return OK;
}

static void refs_add(struct refs *r, const uint32_t *v, size_t n)
{
	if (n == 0)
		return;
	if (r->n > 0 && v[0] <= r->v[r->n - 1])
		r->sorted = false;
	memcpy(r->v + r->n, v, n * sizeof *v);
	r->n += n;
}

/* Least-significant-digit radix sort, 11 bits a pass, then duplicates out. */
static errc refs_sort(struct refs *r, struct err *err)
{
	if (r->sorted)
		return OK;
	uint32_t *other = malloc(r->n * sizeof *other), *from = r->v, *to = other;
	if (!other)
		return err_set(err, ERR_NOMEM, "postings of %zu series", r->n);
	for (unsigned shift = 0; shift < 32; shift += 11) {
		size_t start[2048] = {0};
		for (size_t i = 0; i < r->n; i++)
			start[from[i] >> shift & 2047]++;
		size_t sum = 0;
		for (size_t k = 0; k < 2048; k++) {
			size_t count = start[k];
			start[k] = sum;
			sum += count;
		}
		for (size_t i = 0; i < r->n; i++)
			to[start[from[i] >> shift & 2047]++] = from[i];
		uint32_t *swap = from;
		from = to;
		to = swap;
	}
	/* three passes: the result is in `other` */
	size_t n = 0;
	for (size_t i = 0; i < r->n; i++)
		if (n == 0 || r->v[n - 1] != from[i])
			r->v[n++] = from[i];
	r->n = n;
	r->sorted = true;
	free(other);
	return OK;
}

/* The first index >= i where v[index] >= x; doubling steps, then halving. */
static size_t gallop(const uint32_t *v, size_t n, size_t i, uint32_t x)
{
	size_t step = 1, low = i;
	while (i < n && v[i] < x) {
		low = i + 1;
		i += step;
		step *= 2;
	}
	size_t high = i < n ? i : n;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (v[mid] < x)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* Into out, which may be a.v or b.v itself: it is never written ahead of what was read. Returns the count, at most min(a.n, b.n). */
static size_t intersect(struct postings a, struct postings b, uint32_t *out)
{
	if (a.n > b.n) {
		struct postings swap = a;
		a = b;
		b = swap;
	}
	size_t n = 0, j = 0;
	for (size_t i = 0; i < a.n && j < b.n; i++) {
		uint32_t x = a.v[i];
		j = gallop(b.v, b.n, j, x);
		if (j < b.n && b.v[j] == x)
			out[n++] = x;
	}
	return n;
}

static size_t subtract(struct postings a, struct postings b, uint32_t *out)
{
	size_t n = 0, j = 0;
	for (size_t i = 0; i < a.n; i++) {
		uint32_t x = a.v[i];
		if (j < b.n)
			j = gallop(b.v, b.n, j, x);
		if (j >= b.n || b.v[j] != x)
			out[n++] = x;
	}
	return n;
}

/* ---- one matcher ---- */

struct select {
	struct postings_index *ix;
	struct arena lists; /* what the index hands out, one list at a time */
	struct refs result;
	bool any;	 /* result holds one; else all series */
	struct refs sum; /* the union of the matcher at hand */
};

/* Adds the pair's postings, as far as they are in the result, to the union. */
static errc sum_pair(struct select *s, struct span name, struct span value, struct err *err)
{
	errc rc = OK;
	struct postings p;
	TRY(s->ix->ops->get(s->ix, name, value, &s->lists, &p, err));
	if (s->any) {
		struct postings have = {s->result.v, s->result.n};
		size_t room = p.n < have.n ? p.n : have.n;
		if (room == 0)
			goto fail;
		TRY(refs_reserve(&s->sum, room, err));
		/* behind the union; then it is added in place */
		uint32_t *at = s->sum.v + s->sum.n;
		size_t n = intersect(p, have, at);
		if (n > 0 && s->sum.n > 0 && at[0] <= at[-1])
			s->sum.sorted = false;
		s->sum.n += n;
	} else {
		TRY(refs_reserve(&s->sum, p.n, err));
		refs_add(&s->sum, p.v, p.n);
	}
fail:
	arena_reset(&s->lists);
	return rc;
}

/* The values of a name that a union is made of; kept, since an index may hold a lock while it lists them. */
struct values {
	const struct matcher *m;
	bool want; /* take values for which matcher_matches says this */
	struct arena text;
	struct span *v;
	size_t n, cap;
};

static errc values_take(void *arg, struct span value, struct err *err)
{
	struct values *x = arg;
	if (value.n == 0 || matcher_matches(x->m, value) != x->want)
		return OK;
	if (x->n == x->cap) {
		size_t cap = x->cap ? 2 * x->cap : 64;
		struct span *v = realloc(x->v, cap * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "%zu values of label %.*s", cap, SPAN_ARG(x->m->name));
		x->v = v;
		x->cap = cap;
	}
	struct span copy = arena_dup(&x->text, value);
	if (!copy.p)
		return err_set(err, ERR_NOMEM, "values of label %.*s", SPAN_ARG(x->m->name));
	x->v[x->n++] = copy;
	return OK;
}

static int by_bytes(const void *a, const void *b)
{
	return span_cmp(*(const struct span *)a, *(const struct span *)b);
}

static errc sum_values(struct select *s, const struct matcher *m, bool want, struct err *err)
{
	errc rc = OK;
	struct values x = {.m = m, .want = want};
	arena_init(&x.text, LIMIT_QUERY_MEMORY_BYTES);
	/* only values with the prefix can match a pattern; what is asked for is "matches" for one side of = and !~ */
	bool pattern_side = (m->type == MATCH_RE) == want;
	struct span prefix = (m->type == MATCH_RE || m->type == MATCH_NRE) && pattern_side ? m->prefix : SPAN("");
	TRY(s->ix->ops->values(s->ix, m->name, prefix, values_take, &x, err));
	/* ascending asks are the cheap ones for an index on disk */
	bool ascending = true;
	for (size_t i = 1; ascending && i < x.n; i++)
		ascending = span_cmp(x.v[i - 1], x.v[i]) < 0;
	if (!ascending)
		qsort(x.v, x.n, sizeof *x.v, by_bytes);
	for (size_t i = 0; i < x.n; i++)
		TRY(sum_pair(s, m->name, x.v[i], err));
fail:
	free(x.v);
	arena_free(&x.text);
	return rc;
}

/* The union of the pairs for whose values matcher_matches says `want`. */
static errc sum_make(struct select *s, const struct matcher *m, bool want, struct err *err)
{
	errc rc = OK;
	s->sum.n = 0;
	s->sum.sorted = true;
	bool positive = m->type == MATCH_EQ || m->type == MATCH_RE;
	bool literals = m->type == MATCH_EQ || m->type == MATCH_NEQ || m->set;
	if (literals && positive == want) {
		size_t n = m->set ? m->n_set : 1;
		for (size_t i = 0; i < n; i++) {
			struct span value = m->set ? m->set[i] : m->value;
			if (value.n > 0)
				TRY(sum_pair(s, m->name, value, err));
		}
	} else {
		TRY(sum_values(s, m, want, err));
	}
	TRY(refs_sort(&s->sum, err));
fail:
	return rc;
}

static errc select_step(struct select *s, const struct matcher *m, struct err *err)
{
	errc rc = OK;
	if (m->matches_empty) {
		/* .* takes nothing away */
		if (m->type == MATCH_RE && m->prefix_rest_any)
			return OK;
		TRY(sum_make(s, m, false, err));
		s->result.n = subtract((struct postings){s->result.v, s->result.n}, (struct postings){s->sum.v, s->sum.n}, s->result.v);
		return OK;
	}
	TRY(sum_make(s, m, true, err));
	/* the union holds only what is in the result, so it is the intersection */
	struct refs swap = s->result;
	s->result = s->sum;
	s->sum = swap;
	s->any = true;
fail:
	return rc;
}

/* Cheap ones first, and those that take away when there is something to take from. */
static unsigned cost(const struct matcher *m)
{
	if (!m->matches_empty) {
		if (m->type == MATCH_EQ)
			return 0;
		if (m->type == MATCH_RE && m->set)
			return 1;
		return m->type == MATCH_RE && m->prefix.n > 0 ? 2 : 3;
	}
	if (m->type == MATCH_NEQ || (m->type == MATCH_NRE && m->set))
		return 4;
	return m->type == MATCH_NRE && m->prefix.n > 0 ? 5 : 6;
}

errc postings_select(struct postings_index *ix, const struct matcher *m, size_t n, struct arena *arena, struct postings *out, struct err *err)
{
	errc rc = OK;
	struct select s = {.ix = ix};
	arena_init(&s.lists, LIMIT_QUERY_MEMORY_BYTES);
	*out = (struct postings){NULL, 0};
	for (unsigned class = 0; class <= 6; class ++) {
		if (class == 4 && !s.any) {
			struct postings all;
			TRY(ix->ops->all(ix, &s.lists, &all, err));
			TRY(refs_reserve(&s.result, all.n, err));
			refs_add(&s.result, all.v, all.n);
			s.any = true;
			arena_reset(&s.lists);
		}
		for (size_t i = 0; i < n; i++) {
			if (s.any && s.result.n == 0)
				goto fail;
			if (cost(&m[i]) == class)
				TRY(select_step(&s, &m[i], err));
		}
	}
	uint32_t *v = arena_calloc(arena, s.result.n, sizeof *v);
	CHECK(v, ERR_NOMEM, "postings of %zu series", s.result.n);
	if (s.result.n > 0)
		memcpy(v, s.result.v, s.result.n * sizeof *v);
	*out = (struct postings){v, s.result.n};
fail:
	free(s.result.v);
	free(s.sum.v);
	arena_free(&s.lists);
	return rc;
}
