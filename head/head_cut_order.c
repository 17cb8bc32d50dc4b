/* head/head_cut_order.c - a window's series in the order of their labels.
 *
 *     pairs of the window ─▶ block writer ─▶ their ranks          label sets compare as their ranks do, pair by pair
 *     series ─▶ counted into groups by the first pair ─▶ each group by the next pairs' ranks, as many as fit into a key of 64 bits ─▶ what is equal by those behind
 *
 * Four bytes a series stay; while a group is sorted 16 more for each of its own.
 */
#include "base/sort.h"
#include "head/head_cut_int.h"

size_t head_cut_count(const struct window *w)
{
	size_t n = 0;
	for (uint32_t i = 0; i < w->head->n_shards; i++) {
		const struct wpart *p = w->parts[i].p;
		for (uint32_t k = 0; p && k < p->n; k++)
			n += !ws_empty(part_ws(p, k));
	}
	return n;
}

void head_cut_order_free(struct head *h, struct cut_order *o)
{
	for (size_t i = 0; i < o->n_pairs; i++)
		head_pair(&h->symbols, o->pairs[i])->rank = 0;
	free(o->pairs);
	free(o->v);
	*o = (struct cut_order){0};
}

static errc pairs_say(struct window *w, struct block_writer *bw, struct cut_order *o, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	uint32_t *ranks = NULL;
	size_t n = 0;
	for (uint32_t i = 0; i < h->n_shards; i++) {
		TRY(head_window_index(w, i, err));
		n += w->parts[i].p ? w->parts[i].p->n_pairs : 0;
	}
	o->pairs = malloc((n + 1) * sizeof *o->pairs);
	CHECK(o->pairs, ERR_NOMEM, "no memory to sort %zu label pairs", n);
	for (uint32_t i = 0; i < h->n_shards; i++) {
		uint64_t at = 0;
		for (uint32_t pair; head_part_pair(w->parts[i].p, &at, &pair);) {
			struct label_pair *lp = head_pair(&h->symbols, pair);
			if (lp->rank != 0)
				continue;
			lp->rank = 1;
			o->pairs[o->n_pairs++] = pair;
			TRY(block_writer_pair(bw, head_pair_label(lp), err));
		}
	}
	TRY(block_writer_pairs_end(bw, &ranks, err));
	for (size_t i = 0; i < o->n_pairs; i++)
		head_pair(&h->symbols, o->pairs[i])->rank = ranks[i] + 1;
fail:
	free(ranks);
	return rc;
}

/* ---- sorting ---- */

struct sorting {
	const struct window *w;
	unsigned bits;	  /* of a rank */
	uint32_t at_once; /* ranks in a key */
};

static const struct series *series_of(const struct window *w, uint32_t number)
{
	return part_series(w->parts[cut_shard(w->head, number)].p, cut_local(w->head, number));
}

/* Series that are equal in the pairs before `at`. keys: as many as v. */
static void group_sort(const struct sorting *s, uint32_t *v, size_t n, uint32_t at, struct keyed *keys)
{
	const struct symbols *symbols = &s->w->head->symbols;
	if (n < 2)
		return;
	ASSERT(at <= UINT16_MAX); /* label sets differ */
	for (size_t i = 0; i < n; i++) {
		if (i + 8 < n)
			__builtin_prefetch(&series_of(s->w, v[i + 8])->pairs[at]);
		const struct series *x = series_of(s->w, v[i]);
		uint64_t key = 0;
		for (uint32_t k = at; k < at + s->at_once; k++)
			key = key << s->bits | (k < x->n_pairs ? head_pair(symbols, x->pairs[k])->rank : 0);
		keys[i] = (struct keyed){.key = key, .id = v[i]};
	}
	keyed_sort(keys, n);
	for (size_t i = 0; i < n; i++)
		v[i] = keys[i].id;
	for (size_t from = 0, to; from < n; from = to) {
		for (to = from + 1; to < n && keys[to].key == keys[from].key;)
			to++;
		group_sort(s, v + from, to - from, at + s->at_once, keys + from);
	}
}

static uint32_t first_rank(const struct head *h, const struct series *s)
{
	return head_pair(&h->symbols, s->pairs[0])->rank - 1;
}

static errc series_sort(struct window *w, struct cut_order *o, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	size_t largest = 0, sum = 0;
	struct keyed *keys = NULL;
	uint32_t *at = calloc(o->n_pairs + 1, sizeof *at);
	o->v = malloc(o->n * sizeof *o->v);
	CHECK(at && o->v, ERR_NOMEM, "no memory to sort %zu series", o->n);
	for (uint32_t i = 0; i < h->n_shards; i++) {
		const struct wpart *p = w->parts[i].p;
		for (uint32_t k = 0; p && k < p->n; k++)
			if (!ws_empty(part_ws(p, k)))
				at[first_rank(h, part_series(p, k))]++;
	}
	for (size_t r = 0; r < o->n_pairs; r++) {
		size_t count = at[r];
		at[r] = (uint32_t)sum;
		sum += count;
		largest = count > largest ? count : largest;
	}
	ASSERT(sum == o->n);
	for (uint32_t i = 0; i < h->n_shards; i++) {
		const struct wpart *p = w->parts[i].p;
		for (uint32_t k = 0; p && k < p->n; k++)
			if (!ws_empty(part_ws(p, k)))
				o->v[at[first_rank(h, part_series(p, k))]++] = cut_number(h, i, k);
	}
	keys = malloc(largest * sizeof *keys);
	CHECK(keys, ERR_NOMEM, "no memory to sort %zu series", o->n);
	struct sorting s = {.w = w, .bits = 64 - (unsigned)__builtin_clzll(o->n_pairs)};
	s.at_once = 64 / s.bits;
	for (size_t r = 0, from = 0; r < o->n_pairs; from = at[r++])
		group_sort(&s, o->v + from, at[r] - from, 1, keys);
fail:
	free(at);
	free(keys);
	return rc;
}

errc head_cut_order(struct window *w, struct block_writer *bw, struct cut_order *o, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	uint32_t most = 0;
	*o = (struct cut_order){0};
	for (uint32_t i = 0; i < h->n_shards; i++)
		most = w->parts[i].p && w->parts[i].p->n > most ? w->parts[i].p->n : most;
	ASSERT((h->n_shards & (h->n_shards - 1)) == 0);
	CHECK(most <= UINT32_MAX / h->n_shards, ERR_LIMIT, "a window of more than %u series", UINT32_MAX);
	o->n = head_cut_count(w);
	o->n_numbers = most * h->n_shards;
	TRY(pairs_say(w, bw, o, err));
	TRY(series_sort(w, o, err));
fail:
	if (rc != OK)
		head_cut_order_free(h, o);
	return rc;
}
