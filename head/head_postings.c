/* head/head_postings.c - the postings of a part of a window: label pair ─▶ the local numbers of its series, ascending.
 *
 *     slots (pair ─▶ its only number, or that of its list) ─▶ lists ─▶ { n, newest, pieces: uvarint of each number less the one before }
 *     names ─▶ the pairs of each label name
 *
 * Series that come together have neighbouring numbers, so an entry is a byte, most of the time. A label that names one series only takes its slot and
 * nothing else. Postings follow the series in slices, see head_window_index in head_int.h.
 */
#include "head/head_int.h"

enum { POSTINGS_FIRST = 16, INDEX_SLICE = 1024, INDEX_AHEAD = 4 };

/* The low half of a slot: ONE | the number, NONE, or the list's number + 1. */
#define ONE (UINT32_C(1) << 31)
#define NONE (ONE - 1)

static uint64_t *slot_find(const struct wpart *p, uint32_t pair)
{
	if (!p || !p->posting_slots)
		return NULL;
	const uint32_t n = p->n_posting_slots;
	for (uint32_t i = head_place(head_spread(pair), n); p->posting_slots[i]; i = head_place_next(i, n))
		if (p->posting_slots[i] >> 32 == pair)
			return &p->posting_slots[i];
	return NULL;
}

static struct posting *slot_list(const struct wpart *p, uint64_t slot)
{
	uint32_t x = (uint32_t)slot;
	return x & ONE || x == NONE ? NULL : part_posting(p, x - 1);
}

static uint32_t slot_count(const struct wpart *p, uint64_t slot)
{
	const struct posting *e = slot_list(p, slot);
	return e ? e->n : (uint32_t)slot >> 31;
}

uint32_t head_posting_count(const struct wpart *p, uint32_t pair)
{
	const uint64_t *slot = slot_find(p, pair);
	return slot ? slot_count(p, *slot) : 0;
}

bool head_part_pair(const struct wpart *p, uint64_t *at, uint32_t *pair)
{
	for (; p && p->posting_slots && *at < p->n_posting_slots; ++*at) {
		uint64_t slot = p->posting_slots[*at];
		if (slot == 0 || slot_count(p, slot) == 0)
			continue;
		*pair = (uint32_t)(slot >> 32);
		++*at;
		return true;
	}
	return false;
}

struct name_pairs *head_part_name(const struct wpart *p, const struct symbol *name)
{
	for (uint32_t i = 0; i < p->n_names; i++)
		if (p->names[i].name == name)
			return &p->names[i];
	return NULL;
}

uint32_t head_posting_read(const struct wpart *p, uint32_t pair, uint32_t below, uint32_t *out)
{
	const uint64_t *slot = slot_find(p, pair);
	if (!slot || slot_count(p, *slot) == 0)
		return 0;
	const struct posting *e = slot_list(p, *slot);
	if (!e || e->n == 1) {
		*out = e ? e->newest : (uint32_t)*slot & ~ONE;
		return *out < below;
	}
	const struct piece *piece = part_piece(p, e->first);
	uint32_t at = 0, x = 0;
	for (uint32_t k = 0; k < e->n; k++) {
		uint32_t d = 0;
		for (unsigned shift = 0;; shift += 7) {
			if (at == PIECE_PAYLOAD) {
				piece = part_piece(p, piece->next);
				at = 0;
			}
			uint8_t byte = piece->bytes[at++];
			d |= (uint32_t)(byte & 0x7f) << shift;
			if (byte < 0x80)
				break;
		}
		x += d;
		if (x >= below)
			return k;
		out[k] = x;
	}
	return e->n;
}

static void slot_put(uint64_t *v, uint32_t n, uint64_t slot)
{
	uint32_t i = head_place(head_spread(slot >> 32), n);
	while (v[i])
		i = head_place_next(i, n);
	v[i] = slot;
}

static bool slots_grow(struct wpart *p)
{
	uint32_t had = p->n_posting_slots, n = had ? had + had / 2 : 16;
	uint64_t *v = had < UINT32_MAX / 3 * 2 ? head_pool_alloc(&p->pool, n * sizeof *v) : NULL;
	if (!v)
		return false;
	memset(v, 0, n * sizeof *v);
	for (uint32_t i = 0; i < had; i++)
		if (p->posting_slots[i])
			slot_put(v, n, p->posting_slots[i]);
	if (had)
		head_pool_free(&p->pool, p->posting_slots, had * sizeof *v);
	p->posting_slots = v;
	p->n_posting_slots = n;
	return true;
}

/* Room for one more list. The first page moves while it grows. */
static bool postings_room(struct wpart *p)
{
	uint32_t page = p->n_postings / POSTINGS_PER_PAGE;
	if (page == 0 ? p->n_postings < p->cap_first_postings : page < p->n_posting_pages)
		return true;
	if (page == p->cap_posting_pages) {
		uint32_t cap = page ? page * 2 : 1;
		struct posting **v = head_pool_alloc(&p->pool, cap * sizeof *v);
		if (!v)
			return false;
		if (page)
			memcpy(v, p->postings, page * sizeof *v);
		head_pool_free(&p->pool, p->postings, page * sizeof *v);
		p->postings = v;
		p->cap_posting_pages = cap;
	}
	uint32_t had = page ? 0 : p->cap_first_postings, cap = page ? (uint32_t)POSTINGS_PER_PAGE : had ? had * 2 : (uint32_t)POSTINGS_FIRST;
	struct posting *v = head_pool_alloc(&p->pool, cap * sizeof *v);
	if (!v)
		return false;
	if (had) {
		memcpy(v, p->postings[0], had * sizeof *v);
		head_pool_free(&p->pool, p->postings[0], had * sizeof *v);
	}
	p->postings[page] = v;
	p->n_posting_pages = page + 1;
	if (page == 0)
		p->cap_first_postings = cap;
	return true;
}

static bool name_add(struct wpart *p, const struct symbol *name, uint32_t pair)
{
	struct name_pairs *np = head_part_name(p, name);
	if (!np) {
		if (p->n_names == p->cap_names) {
			uint32_t cap = p->cap_names ? p->cap_names * 2 : 16;
			struct name_pairs *v = head_pool_alloc(&p->pool, cap * sizeof *v);
			if (!v)
				return false;
			if (p->n_names)
				memcpy(v, p->names, p->n_names * sizeof *v);
			if (p->names)
				head_pool_free(&p->pool, p->names, p->cap_names * sizeof *v);
			p->names = v;
			p->cap_names = cap;
		}
		np = &p->names[p->n_names++];
		*np = (struct name_pairs){.name = name};
	}
	if (np->n == np->cap) {
		uint32_t cap = np->cap ? np->cap + np->cap / 2 : 4;
		uint32_t *v = head_pool_alloc(&p->pool, cap * sizeof *v);
		if (!v)
			return false;
		if (np->n)
			memcpy(v, np->v, np->n * sizeof *v);
		if (np->v)
			head_pool_free(&p->pool, np->v, np->cap * sizeof *v);
		np->v = v;
		np->cap = cap;
	}
	np->v[np->n++] = pair;
	return true;
}

/* Room for the pair's next number: its slot, and a list for the second one. An empty one does no harm. */
static bool posting_make(struct head *h, struct wpart *p, uint32_t pair)
{
	uint64_t *slot = slot_find(p, pair);
	if (slot && (uint32_t)*slot & ONE) {
		if (!postings_room(p))
			return false;
		*part_posting(p, p->n_postings++) = (struct posting){.n = 1, .newest = (uint32_t)*slot & ~ONE};
		*slot = (uint64_t)pair << 32 | p->n_postings;
	}
	if (slot)
		return true;
	if (p->n_pairs + 1 > p->n_posting_slots / 4 * 3 && !slots_grow(p))
		return false;
	if (!name_add(p, head_pair(&h->symbols, pair)->name, pair))
		return false;
	slot_put(p->posting_slots, p->n_posting_slots, (uint64_t)pair << 32 | NONE);
	p->n_pairs++;
	return true;
}

static void posting_byte(struct wpart *p, struct posting *e, uint8_t byte)
{
	uint32_t at = e->bytes % PIECE_PAYLOAD;
	if (at == 0) {
		uint32_t i = head_piece_new(p);
		ASSERT(i); /* reserved */
		if (e->last)
			part_piece(p, e->last)->next = i;
		else
			e->first = i;
		e->last = i;
	}
	part_piece(p, e->last)->bytes[at] = byte;
	e->bytes++;
}

static void posting_number(struct wpart *p, struct posting *e, uint32_t x)
{
	for (; x >= 0x80; x >>= 7)
		posting_byte(p, e, (uint8_t)(x | 0x80));
	posting_byte(p, e, (uint8_t)x);
}

static void posting_add(struct wpart *p, uint32_t pair, uint32_t local)
{
	uint64_t *slot = slot_find(p, pair);
	struct posting *e = slot_list(p, *slot);
	if (!e) {
		*slot = (uint64_t)pair << 32 | ONE | local;
		return;
	}
	if (e->n == 1)
		posting_number(p, e, e->newest);
	if (e->n > 0)
		posting_number(p, e, local - e->newest);
	e->newest = local;
	e->n++;
}

/* All of a series' pairs or none: what may fail comes first. */
static bool series_index(struct head *h, struct wpart *p, const struct series *s, uint32_t local)
{
	for (uint32_t i = 0; i < s->n_pairs; i++)
		if (!posting_make(h, p, s->pairs[i]))
			return false;
	/* An entry takes five bytes at most, or ten with the one before it: one piece more. */
	if (!head_pieces_reserve(p, s->n_pairs))
		return false;
	for (uint32_t i = 0; i < s->n_pairs; i++)
		posting_add(p, s->pairs[i], local);
	return true;
}

static void index_ahead(const struct wpart *p, uint32_t local)
{
	if (local >= p->n || !p->posting_slots)
		return;
	const struct series *s = part_series(p, local);
	for (uint32_t i = 0; i < s->n_pairs; i++)
		__builtin_prefetch(&p->posting_slots[head_place(head_spread(s->pairs[i]), p->n_posting_slots)], 1);
}

errc head_window_index(struct window *w, uint32_t shard, struct err *err)
{
	struct shard *sh = &w->head->shards[shard];
	uint32_t upto = 0;
	bool more = true, room = true;
	for (bool first = true; more && room; first = false) {
		pthread_mutex_lock(&sh->mu);
		struct wpart *p = w->parts[shard].p;
		if (first && p)
			upto = p->n;
		for (uint32_t k = 0; p && k < INDEX_SLICE && p->n_indexed < upto && room; k++) {
			index_ahead(p, p->n_indexed + INDEX_AHEAD);
			room = series_index(w->head, p, part_series(p, p->n_indexed), p->n_indexed);
			p->n_indexed += room;
		}
		more = p && p->n_indexed < upto;
		pthread_mutex_unlock(&sh->mu);
	}
	return room ? OK : err_set(err, ERR_NOMEM, "no memory for the postings of a window");
}
