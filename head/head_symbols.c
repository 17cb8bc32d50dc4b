/* head/head_symbols.c - label names and label pairs, once per process over all tenants, counted by reference.
 *
 * A series is an array of pair ids; a pair is its name's symbol and the value's bytes: few values stand under two names, and most of a large head's pairs
 * are labels that name one series, for which a table of values would be as large as the values. A pair is found by one probe over the hash of
 * its two strings, so a new series of ten known labels costs ten probes; only a new pair looks for its name. Everything is
 * freed when the last series that has it goes.
 *
 * Pages of pairs never move: a pair of a live series is read without the lock, because whoever sees the series saw it under its shard's
 * lock, after the pair was made. Ids are taken page by page, and a page of which no id is in use goes back to the system when asked: it stays readable, as pairs without
 * references.
 */
#include <xxhash.h>
#include "head/head_int.h"

enum { SYMBOLS_MIN_SLOTS = 1024 };

static uint32_t hash_of(const struct symbols *sy, struct span s)
{
	uint64_t x = XXH3_64bits_withSecret(s.p, s.n, sy->secret, sizeof sy->secret);
	return (uint32_t)(x ^ x >> 32);
}

static uint32_t pair_hash_of(uint32_t name, uint32_t value)
{
	uint64_t x = ((uint64_t)name << 32 | value) * UINT64_C(0x9e3779b97f4a7c15);
	return (uint32_t)(x ^ x >> 32);
}

errc head_symbols_init(struct symbols *sy, _Atomic uint64_t *total, struct err *err)
{
	*sy = (struct symbols){.mask = SYMBOLS_MIN_SLOTS - 1, .n_pair_slots = SYMBOLS_MIN_SLOTS};
	head_pool_init(&sy->pool, total, NULL);
	pthread_mutex_init(&sy->mu, NULL);
	io_random(sy->secret, sizeof sy->secret);
	sy->slots = calloc(SYMBOLS_MIN_SLOTS, sizeof *sy->slots);
	sy->pair_slots = calloc(SYMBOLS_MIN_SLOTS, sizeof *sy->pair_slots);
	sy->pages = calloc(PAIR_PAGES, sizeof *sy->pages); /* address space, touched as pages come */
	sy->page_states = calloc(PAIR_PAGES, sizeof *sy->page_states);
	if (!sy->slots || !sy->pair_slots || !sy->pages || !sy->page_states)
		return err_set(err, ERR_NOMEM, "symbol tables");
	atomic_fetch_add(total, SYMBOLS_MIN_SLOTS * (sizeof *sy->slots + sizeof *sy->pair_slots));
	return OK;
}

void head_symbols_destroy(struct symbols *sy)
{
	for (uint32_t i = 0; i < sy->n_pages; i++)
		io_memory_free(sy->pages[i], PAIRS_PER_PAGE * sizeof(struct label_pair));
	free(sy->pages);
	free(sy->page_states);
	head_table_free(sy->slots, (size_t)sy->mask + 1, sizeof *sy->slots);
	head_table_free(sy->pair_slots, sy->n_pair_slots, sizeof *sy->pair_slots);
	head_pool_destroy(&sy->pool);
	pthread_mutex_destroy(&sy->mu);
}

enum { ADDRESS_BITS = 48 };

static uint64_t slot_of(const struct symbol *y)
{
	uint64_t p = (uint64_t)(uintptr_t)y;
	ASSERT(p >> ADDRESS_BITS == 0);
	return (uint64_t)(y->hash >> 16) << ADDRESS_BITS | p;
}

static struct symbol *symbol_at(uint64_t slot)
{
	return (struct symbol *)(uintptr_t)(slot & ((UINT64_C(1) << ADDRESS_BITS) - 1));
}

static bool symbols_resize(struct symbols *sy, uint32_t mask)
{
	uint64_t *slots = head_table_alloc((size_t)mask + 1, sizeof *slots);
	if (!slots)
		return false;
	for (uint32_t i = 0; i <= sy->mask; i++) {
		if (!sy->slots[i])
			continue;
		uint32_t j = symbol_at(sy->slots[i])->hash & mask;
		while (slots[j])
			j = (j + 1) & mask;
		slots[j] = sy->slots[i];
	}
	atomic_fetch_add(sy->pool.total, ((size_t)mask - sy->mask) * sizeof *slots); /* modulo 2^64 when it shrinks */
	head_table_free(sy->slots, (size_t)sy->mask + 1, sizeof *sy->slots);
	sy->slots = slots;
	sy->mask = mask;
	return true;
}

static struct symbol *symbol_find(struct symbols *sy, struct span s, uint32_t hash)
{
	for (uint32_t i = hash & sy->mask; sy->slots[i]; i = (i + 1) & sy->mask) {
		if (sy->slots[i] >> ADDRESS_BITS != hash >> 16)
			continue;
		struct symbol *y = symbol_at(sy->slots[i]);
		if (y->hash == hash && y->n == s.n && memcmp(y->s, s.p, s.n) == 0)
			return y;
	}
	return NULL;
}

static struct symbol *symbol_ref(struct symbols *sy, struct span s, uint32_t hash)
{
	struct symbol *y = symbol_find(sy, s, hash);
	if (y) {
		y->refs++;
		return y;
	}
	if (sy->n + 1 > sy->mask / 4 * 3 && !symbols_resize(sy, sy->mask * 2 + 1))
		return NULL;
	y = head_pool_alloc(&sy->pool, sizeof *y + s.n);
	if (!y)
		return NULL;
	*y = (struct symbol){.refs = 1, .hash = hash, .n = (uint32_t)s.n};
	memcpy(y->s, s.p, s.n);
	uint32_t i = hash & sy->mask;
	while (sy->slots[i])
		i = (i + 1) & sy->mask;
	sy->slots[i] = slot_of(y);
	sy->n++;
	return y;
}

static void symbol_unref(struct symbols *sy, struct symbol *y)
{
	if (--y->refs > 0)
		return;
	uint32_t i = y->hash & sy->mask;
	const uint64_t mine = slot_of(y);
	while (sy->slots[i] != mine)
		i = (i + 1) & sy->mask;
	/* Backward shift: no tombstones, so a churning table does not grow. */
	for (uint32_t j = (i + 1) & sy->mask; sy->slots[j]; j = (j + 1) & sy->mask) {
		uint32_t home = symbol_at(sy->slots[j])->hash & sy->mask;
		if (((j - home) & sy->mask) >= ((j - i) & sy->mask)) {
			sy->slots[i] = sy->slots[j];
			i = j;
		}
	}
	sy->slots[i] = 0;
	sy->n--;
	head_pool_free(&sy->pool, y, sizeof *y + y->n);
}

static void pair_slot_put(uint64_t *slots, uint32_t n, uint64_t slot)
{
	uint32_t i = head_place((uint32_t)(slot >> 32), n);
	while (slots[i])
		i = head_place_next(i, n);
	slots[i] = slot;
}

static bool pairs_resize(struct symbols *sy, uint32_t n)
{
	uint32_t had = sy->n_pair_slots;
	uint64_t *slots = head_table_alloc(n, sizeof *slots);
	if (!slots)
		return false;
	for (uint32_t i = 0; i < had; i++)
		if (sy->pair_slots[i])
			pair_slot_put(slots, n, sy->pair_slots[i]);
	atomic_fetch_add(sy->pool.total, ((size_t)n - had) * sizeof *slots);
	head_table_free(sy->pair_slots, had, sizeof *slots);
	sy->pair_slots = slots;
	sy->n_pair_slots = n;
	return true;
}

static bool pairs_grow(struct symbols *sy)
{
	uint32_t had = sy->n_pair_slots;
	return had < UINT32_MAX / 3 * 2 && pairs_resize(sy, had + had / 2);
}

static bool pair_is(const struct label_pair *p, struct span name, struct span value)
{
	return p->n == value.n && p->name->n == name.n && memcmp(head_pair_value(p).p, value.p, value.n) == 0 &&
	       memcmp(p->name->s, name.p, name.n) == 0;
}

static bool pair_find(struct symbols *sy, struct span name, struct span value, uint32_t hash, uint32_t *id)
{
	const uint32_t n = sy->n_pair_slots;
	for (uint32_t i = head_place(hash, n); sy->pair_slots[i]; i = head_place_next(i, n)) {
		if (sy->pair_slots[i] >> 32 != hash)
			continue;
		uint32_t x = (uint32_t)sy->pair_slots[i] - 1;
		if (pair_is(head_pair(sy, x), name, value)) {
			*id = x;
			return true;
		}
	}
	return false;
}

static void page_list(struct symbols *sy, uint32_t page)
{
	struct pair_page *pg = &sy->page_states[page];
	pg->next = sy->room;
	pg->listed = true;
	sy->room = page + 1;
}

static bool page_new(struct symbols *sy)
{
	if (sy->n_pages >= PAIR_PAGES || !(sy->pages[sy->n_pages] = io_memory(PAIRS_PER_PAGE * sizeof(struct label_pair))))
		return false;
	atomic_fetch_add(sy->pool.total, PAIRS_PER_PAGE * sizeof(struct label_pair));
	page_list(sy, sy->n_pages++);
	return true;
}

/* An id that no pair has. */
static bool id_take(struct symbols *sy, uint32_t *id)
{
	if (!sy->room && !page_new(sy))
		return false;
	uint32_t page = sy->room - 1;
	struct pair_page *pg = &sy->page_states[page];
	uint32_t at = pg->free ? pg->free - 1U : pg->fresh++;
	*id = page * PAIRS_PER_PAGE + at;
	if (pg->free)
		pg->free = (uint16_t)head_pair(sy, *id)->rank;
	if (pg->used == 0 && pg->away) {
		pg->away = false;
		atomic_fetch_add(sy->pool.total, PAIRS_PER_PAGE * sizeof(struct label_pair));
	}
	if (++pg->used == PAIRS_PER_PAGE) {
		sy->room = pg->next;
		pg->listed = false;
	}
	return true;
}

static void id_give(struct symbols *sy, uint32_t id)
{
	uint32_t page = id / PAIRS_PER_PAGE;
	struct pair_page *pg = &sy->page_states[page];
	*head_pair(sy, id) = (struct label_pair){.rank = pg->free};
	pg->free = (uint16_t)(id % PAIRS_PER_PAGE + 1);
	pg->used--;
	if (!pg->listed)
		page_list(sy, page);
}

/* False: no memory. */
static bool pair_fill(struct symbols *sy, struct label_pair *p, struct label l, uint32_t name_hash)
{
	char *large = l.value.n > PAIR_INLINE ? head_pool_alloc(&sy->pool, l.value.n) : NULL;
	if (l.value.n > PAIR_INLINE && !large)
		return false;
	struct symbol *name = symbol_ref(sy, l.name, name_hash);
	if (!name) {
		if (large)
			head_pool_free(&sy->pool, large, l.value.n);
		return false;
	}
	*p = (struct label_pair){.name = name, .refs = 1, .n = (uint32_t)l.value.n};
	if (large)
		memcpy(p->bytes + PAIR_INLINE - sizeof large, &large, sizeof large);
	memcpy(large ? large : p->bytes, l.value.p, l.value.n);
	return true;
}

static bool pair_ref(struct symbols *sy, struct label l, uint32_t hn, uint32_t hv, uint32_t *id)
{
	uint32_t hash = pair_hash_of(hn, hv);
	if (pair_find(sy, l.name, l.value, hash, id)) {
		head_pair(sy, *id)->refs++;
		return true;
	}
	if (sy->n_pairs + 1 > sy->n_pair_slots / 4 * 3 && !pairs_grow(sy))
		return false;
	if (!id_take(sy, id))
		return false;
	if (!pair_fill(sy, head_pair(sy, *id), l, hn)) {
		id_give(sy, *id);
		return false;
	}
	pair_slot_put(sy->pair_slots, sy->n_pair_slots, (uint64_t)hash << 32 | (*id + 1));
	sy->n_pairs++;
	return true;
}

static void pair_unref(struct symbols *sy, uint32_t id)
{
	struct label_pair *p = head_pair(sy, id);
	ASSERT(p->refs > 0);
	if (--p->refs > 0)
		return;
	struct span value = head_pair_value(p);
	const uint32_t n = sy->n_pair_slots;
	uint32_t i = head_place(pair_hash_of(p->name->hash, hash_of(sy, value)), n);
	while ((uint32_t)sy->pair_slots[i] != id + 1)
		i = head_place_next(i, n);
	for (uint32_t j = head_place_next(i, n); sy->pair_slots[j]; j = head_place_next(j, n)) {
		if (head_place_may(head_place((uint32_t)(sy->pair_slots[j] >> 32), n), i, j)) {
			sy->pair_slots[i] = sy->pair_slots[j];
			i = j;
		}
	}
	sy->pair_slots[i] = 0;
	sy->n_pairs--;
	symbol_unref(sy, p->name);
	if (value.n > PAIR_INLINE)
		head_pool_free(&sy->pool, (void *)(uintptr_t)value.p, value.n);
	id_give(sy, id);
}

/* What a label of a series may be, before it is looked up. */
struct pair_wanted {
	uint32_t hn, hv; /* of its name and value; not made when it is as before */
	bool before;
};

/* Series that come one after the other share most of their labels: the pair that stood in the same place last time is compared before anything is
 * hashed, and its name often serves when its value does not. An id of a pair that went away since has no references, one that was used again has
 * other strings. What must be looked up is asked of memory at once. */
static struct pair_wanted pair_want(struct symbols *sy, uint32_t place, struct label l)
{
	const struct symbol *name = NULL;
	struct label_pair *p = sy->recent[place] / PAIRS_PER_PAGE < sy->n_pages ? head_pair(sy, sy->recent[place]) : NULL;
	if (p && p->refs > 0 && p->name->n == l.name.n && memcmp(p->name->s, l.name.p, l.name.n) == 0) {
		name = p->name;
		if (p->n == l.value.n && memcmp(head_pair_value(p).p, l.value.p, l.value.n) == 0)
			return (struct pair_wanted){.before = true};
	}
	struct pair_wanted w = {name ? name->hash : hash_of(sy, l.name), hash_of(sy, l.value), false};
	__builtin_prefetch(&sy->pair_slots[head_place(pair_hash_of(w.hn, w.hv), sy->n_pair_slots)], 1);
	return w;
}

static bool pairs_any(struct symbols *sy, struct labels l, uint32_t *ids, uint32_t *n)
{
	struct pair_wanted w[SYMBOLS_RECENT];
	uint32_t some = l.n < SYMBOLS_RECENT ? l.n : SYMBOLS_RECENT;
	for (uint32_t i = 0; i < some; i++)
		w[i] = pair_want(sy, i, l.v[i]);
	for (*n = 0; *n < some; ++*n) {
		uint32_t i = *n;
		ids[i] = sy->recent[i];
		if (w[i].before)
			head_pair(sy, ids[i])->refs++;
		else if (!pair_ref(sy, l.v[i], w[i].hn, w[i].hv, &ids[i]))
			return false;
		sy->recent[i] = ids[i];
	}
	for (; *n < l.n; ++*n)
		if (!pair_ref(sy, l.v[*n], hash_of(sy, l.v[*n].name), hash_of(sy, l.v[*n].value), &ids[*n]))
			return false;
	return true;
}

errc head_pairs_ref(struct symbols *sy, struct labels l, uint32_t *ids, struct err *err)
{
	uint32_t n;
	pthread_mutex_lock(&sy->mu);
	bool all = pairs_any(sy, l, ids, &n);
	for (uint32_t i = 0; !all && i < n; i++)
		pair_unref(sy, ids[i]);
	pthread_mutex_unlock(&sy->mu);
	return all ? OK : err_set(err, ERR_NOMEM, "no memory for the labels of a new series");
}

errc head_pairs_load(struct symbols *sy, const struct label *l, uint32_t *n, uint32_t *ids, struct err *err)
{
	uint32_t hn[HEAD_PAIRS_LOAD], hv[HEAD_PAIRS_LOAD], done = 0;
	ASSERT(*n <= HEAD_PAIRS_LOAD);
	for (uint32_t i = 0; i < *n; i++) {
		hn[i] = i > 0 && l[i].name.p == l[i - 1].name.p ? hn[i - 1] : hash_of(sy, l[i].name);
		hv[i] = hash_of(sy, l[i].value);
	}
	pthread_mutex_lock(&sy->mu);
	/* Where they go is asked of memory before the first is needed. */
	for (uint32_t i = 0; i < *n; i++)
		__builtin_prefetch(&sy->pair_slots[head_place(pair_hash_of(hn[i], hv[i]), sy->n_pair_slots)], 1);
	while (done < *n && pair_ref(sy, l[done], hn[done], hv[done], &ids[done]))
		done++;
	pthread_mutex_unlock(&sy->mu);
	bool all = done == *n;
	*n = done;
	return all ? OK : err_set(err, ERR_NOMEM, "no memory for labels of a snapshot");
}

void head_pairs_reserve(struct symbols *sy, uint64_t n)
{
	pthread_mutex_lock(&sy->mu);
	uint64_t slots = (sy->n_pairs + n) / 3 * 4 + 16;
	if (slots > sy->n_pair_slots && slots < UINT32_MAX / 3 * 2)
		(void)!pairs_resize(sy, (uint32_t)slots);
	pthread_mutex_unlock(&sy->mu);
}

void head_pairs_unref(struct symbols *sy, const uint32_t *ids, uint32_t n)
{
	pthread_mutex_lock(&sy->mu);
	for (uint32_t i = 0; i < n; i++)
		pair_unref(sy, ids[i]);
	pthread_mutex_unlock(&sy->mu);
}

bool head_symbols_give_back(struct symbols *sy, uint32_t *at)
{
	pthread_mutex_lock(&sy->mu);
	bool more = false;
	while (*at < sy->n_pages && !more) {
		struct pair_page *pg = &sy->page_states[*at];
		more = pg->used == 0 && !pg->away && io_memory_drop(sy->pages[*at], PAIRS_PER_PAGE * sizeof(struct label_pair));
		if (more) {
			pg->away = true;
			pg->free = pg->fresh = 0;
			atomic_fetch_sub(sy->pool.total, PAIRS_PER_PAGE * sizeof(struct label_pair));
		}
		++*at;
	}
	if (!more) {
		uint32_t n = sy->n_pair_slots, mask = sy->mask;
		while (n > 2 * SYMBOLS_MIN_SLOTS && sy->n_pairs < n / 4)
			n /= 2;
		if (n < sy->n_pair_slots)
			(void)!pairs_resize(sy, n);
		while (mask >= 2 * SYMBOLS_MIN_SLOTS && sy->n < mask / 4)
			mask /= 2;
		if (mask < sy->mask)
			(void)!symbols_resize(sy, mask);
		if (sy->n == 0)
			head_pool_destroy(&sy->pool);
	}
	pthread_mutex_unlock(&sy->mu);
	return more;
}

bool head_pair_find(struct symbols *sy, struct span name, struct span value, uint32_t *id)
{
	pthread_mutex_lock(&sy->mu);
	bool found = pair_find(sy, name, value, pair_hash_of(hash_of(sy, name), hash_of(sy, value)), id);
	pthread_mutex_unlock(&sy->mu);
	return found;
}
