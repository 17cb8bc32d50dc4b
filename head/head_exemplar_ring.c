/* head/head_exemplar_ring.c - one tenant's exemplars: a ring of entries in order of arrival, and a chain through it for each series.
 *
 *     entries  ┌──┬──┬──┬──┬──┐  the oldest arrived gives its place to a new one
 *              └┬─┴──┴┬─┴──┴┬─┘
 *     series ───┴─────┴─────┘    a chain by time, value, labels; a series without entries is forgotten
 *     bytes    the entries' labels, one behind the other, in the same order of arrival
 *
 * Order inside a series is total: time, then value (-Inf .. +Inf, NaN last), then label bytes. So what a series holds does not depend on the order
 * in which two requests reached the log, and replay builds the same chains. A request's exemplar must be newer than all that its series has, as
 * in the reference; one that is there already is a repetition. Repetitions are looked for among the last RING_LOOK_BACK of the series: a retry
 * of a request is recognised, and an old exemplar costs no walk over a long chain.
 *
 * Memory: 32 bytes an entry, its labels, and for each series four bytes a label and some 60: names and values are shared with the windows' series. Both
 * rings grow by a quarter at a time, which copies each entry about four times in its life.
 */
#include <xxhash.h>
#include "head/head_annotations_int.h"

enum { RING_LOOK_BACK = 64, ENTRIES_MIN = 16, BYTES_MIN = 512, SLOTS_MIN = 16, IDS_MIN = 8, MALLOC_OVERHEAD = 16 };

uint32_t exemplar_ring_hash(const struct head *h, struct span wire)
{
	return (uint32_t)XXH3_64bits_withSecret(wire.p, wire.n, h->secret, sizeof h->secret);
}

static size_t series_bytes(const struct exemplar_series *s)
{
	return sizeof *s + s->n_pairs * sizeof *s->pairs + MALLOC_OVERHEAD;
}

static uint32_t count(const struct exemplar_ring *r)
{
	return atomic_load_explicit(&r->n, memory_order_relaxed);
}

static void count_set(struct exemplar_ring *r, uint32_t n)
{
	atomic_store_explicit(&r->n, n, memory_order_relaxed);
}

/* ---- memory ---- */

errc exemplar_ring_new(struct head *h, struct exemplar_ring **out, struct err *err)
{
	struct exemplar_ring *r = calloc(1, sizeof *r);
	if (!r)
		return err_set(err, ERR_NOMEM, "no memory for exemplars");
	r->head = h;
	r->free_id = EXEMPLAR_NONE;
	pthread_mutex_init(&r->mu, NULL);
	head_memory_add(h, sizeof *r);
	*out = r;
	return OK;
}

void exemplar_ring_free(struct exemplar_ring *r)
{
	if (!r)
		return;
	for (uint32_t i = 0; i < r->n_ids; i++)
		free(exemplar_ring_series(r, i)); /* the pairs go with the symbols */
	free(r->v);
	free(r->bytes);
	free(r->series);
	free(r->slots);
	pthread_mutex_destroy(&r->mu);
	free(r);
}

static uint32_t moved(uint32_t at, uint32_t first, uint32_t cap)
{
	return at == EXEMPLAR_NONE ? at : at >= first ? at - first : at + cap - first;
}

static bool entries_resize(struct exemplar_ring *r, uint32_t cap)
{
	uint32_t n = count(r);
	ASSERT(cap >= n);
	struct exemplar_entry *v = malloc(cap * sizeof *v);
	if (!v)
		return false;
	for (uint32_t i = 0; i < n; i++) {
		v[i] = r->v[r->first + i < r->cap ? r->first + i : r->first + i - r->cap];
		v[i].prev = moved(v[i].prev, r->first, r->cap);
		v[i].next = moved(v[i].next, r->first, r->cap);
	}
	for (uint32_t i = 0; i < r->n_ids; i++) {
		struct exemplar_series *s = exemplar_ring_series(r, i);
		if (!s)
			continue;
		s->first = moved(s->first, r->first, r->cap);
		s->last = moved(s->last, r->first, r->cap);
		s->cursor = moved(s->cursor, r->first, r->cap);
	}
	head_memory_add(r->head, cap * sizeof *v);
	head_memory_sub(r->head, r->cap * sizeof *v);
	free(r->v);
	r->v = v;
	r->first = 0;
	r->cap = cap;
	return true;
}

static bool bytes_resize(struct exemplar_ring *r, size_t cap)
{
	ASSERT(cap > r->bytes_n);
	uint8_t *p = cap <= UINT32_MAX ? malloc(cap) : NULL;
	if (!p)
		return false;
	size_t front = r->bytes_cap - r->bytes_first < r->bytes_n ? r->bytes_cap - r->bytes_first : r->bytes_n;
	if (r->bytes_n > 0) {
		memcpy(p, r->bytes + r->bytes_first, front);
		memcpy(p + front, r->bytes, r->bytes_n - front);
	}
	for (uint32_t i = 0, n = count(r), at = r->first; i < n; i++, at = at + 1 < r->cap ? at + 1 : 0)
		r->v[at].at = (uint32_t)(r->v[at].at >= r->bytes_first ? r->v[at].at - r->bytes_first : r->v[at].at + r->bytes_cap - r->bytes_first);
	head_memory_add(r->head, cap);
	head_memory_sub(r->head, r->bytes_cap);
	free(r->bytes);
	r->bytes = p;
	r->bytes_first = 0;
	r->bytes_cap = cap;
	return true;
}

/* Room for one entry more, with n bytes of labels. One byte stays free: full and empty differ. */
static bool room(struct exemplar_ring *r, size_t n)
{
	if (count(r) == r->cap && !entries_resize(r, r->cap + r->cap / 4 + ENTRIES_MIN))
		return false;
	size_t need = r->bytes_n + n + 1;
	return need <= r->bytes_cap || bytes_resize(r, need + need / 4 + BYTES_MIN);
}

/* ---- entries ---- */

static size_t labels_of(const struct exemplar_ring *r, uint32_t at)
{
	uint32_t next = at + 1 < r->cap ? at + 1 : 0;
	bool newest = exemplar_ring_seq(r, at) + 1 == r->first_seq + count(r);
	size_t end = newest ? r->bytes_first + r->bytes_n : r->v[next].at;
	if (newest && end >= r->bytes_cap)
		end -= r->bytes_cap;
	return end >= r->v[at].at ? end - r->v[at].at : end + r->bytes_cap - r->v[at].at;
}

void exemplar_ring_get(const struct exemplar_ring *r, uint32_t at, struct exemplar *x, uint8_t *wire)
{
	const struct exemplar_entry *e = &r->v[at];
	size_t n = labels_of(r, at), front = r->bytes_cap - e->at < n ? r->bytes_cap - e->at : n;
	ASSERT(n <= EXEMPLAR_WIRE_BYTES);
	if (n > 0) {
		memcpy(wire, r->bytes + e->at, front);
		memcpy(wire + front, r->bytes, n - front);
	}
	*x = (struct exemplar){.t = e->t, .v = e->v, .wire = span_of(wire, n)};
}

/* -Inf .. +Inf in ascending order, NaN by their sign at the ends. */
static uint64_t value_key(uint64_t bits)
{
	return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

int exemplar_ring_cmp(const struct exemplar_ring *r, uint32_t at, const struct exemplar *x)
{
	const struct exemplar_entry *e = &r->v[at];
	if (e->t != x->t)
		return e->t < x->t ? -1 : 1;
	if (e->v != x->v)
		return value_key(e->v) < value_key(x->v) ? -1 : 1;
	size_t n = labels_of(r, at), front = r->bytes_cap - e->at < n ? r->bytes_cap - e->at : n;
	if (front == n)
		return span_cmp(span_of(r->bytes + e->at, n), x->wire);
	struct span head = span_of(x->wire.p, x->wire.n < front ? x->wire.n : front);
	int c = span_cmp(span_of(r->bytes + e->at, front), head);
	return c ? c : span_cmp(span_of(r->bytes, n - front), span_of(x->wire.p + head.n, x->wire.n - head.n));
}

static void series_forget(struct exemplar_ring *r, uint32_t id)
{
	struct exemplar_series *s = r->series[id];
	uint32_t i = s->hash & r->mask;
	while (r->slots[i] != id + 1)
		i = (i + 1) & r->mask;
	for (uint32_t j = (i + 1) & r->mask; r->slots[j]; j = (j + 1) & r->mask) {
		uint32_t home = r->series[r->slots[j] - 1]->hash & r->mask;
		if (((j - home) & r->mask) >= ((j - i) & r->mask)) {
			r->slots[i] = r->slots[j];
			i = j;
		}
	}
	r->slots[i] = 0;
	head_pairs_unref(&r->head->symbols, s->pairs, s->n_pairs);
	head_memory_sub(r->head, series_bytes(s));
	r->series_bytes -= series_bytes(s);
	free(s);
	r->series[id] = (struct exemplar_series *)((uintptr_t)r->free_id << 1 | 1);
	r->free_id = id;
	r->n_series--;
}

/* keep: a series that stays though its last entry goes, or EXEMPLAR_NONE. */
static void drop_oldest(struct exemplar_ring *r, uint32_t keep)
{
	uint32_t at = r->first;
	const struct exemplar_entry *e = &r->v[at];
	struct exemplar_series *s = r->series[e->series];
	if (e->prev == EXEMPLAR_NONE)
		s->first = e->next;
	else
		r->v[e->prev].next = e->next;
	if (e->next == EXEMPLAR_NONE)
		s->last = e->prev;
	else
		r->v[e->next].prev = e->prev;
	if (s->cursor == at)
		s->cursor = e->next != EXEMPLAR_NONE ? e->next : e->prev;
	size_t n = labels_of(r, at);
	r->bytes_first = r->bytes_first + n < r->bytes_cap ? r->bytes_first + n : r->bytes_first + n - r->bytes_cap;
	r->bytes_n -= n;
	r->first = at + 1 < r->cap ? at + 1 : 0;
	r->first_seq++;
	count_set(r, count(r) - 1);
	metric_add(r->head->m.exemplars_evicted, 1);
	if (--s->n == 0 && e->series != keep)
		series_forget(r, e->series);
}

void exemplar_ring_drop(struct exemplar_ring *r, uint32_t k)
{
	while (k-- > 0 && count(r) > 0)
		drop_oldest(r, EXEMPLAR_NONE);
}

/* Behind `prev` in the chain of s; EXEMPLAR_NONE: before all others. Room was made. */
static void entry_add(struct exemplar_ring *r, struct exemplar_series *s, uint32_t id, uint32_t prev, const struct exemplar *x)
{
	uint32_t n = count(r), at = r->first + n < r->cap ? r->first + n : r->first + n - r->cap;
	uint32_t next = prev == EXEMPLAR_NONE ? s->first : r->v[prev].next;
	size_t to = r->bytes_first + r->bytes_n < r->bytes_cap ? r->bytes_first + r->bytes_n : r->bytes_first + r->bytes_n - r->bytes_cap;
	r->v[at] = (struct exemplar_entry){.t = x->t, .v = x->v, .series = id, .prev = prev, .next = next, .at = (uint32_t)to};
	size_t front = r->bytes_cap - to < x->wire.n ? r->bytes_cap - to : x->wire.n;
	if (x->wire.n > 0) {
		memcpy(r->bytes + to, x->wire.p, front);
		memcpy(r->bytes, x->wire.p + front, x->wire.n - front);
	}
	r->bytes_n += x->wire.n;
	if (prev == EXEMPLAR_NONE)
		s->first = at;
	else
		r->v[prev].next = at;
	if (next == EXEMPLAR_NONE)
		s->last = at;
	else
		r->v[next].prev = at;
	s->cursor = at;
	s->n++;
	count_set(r, n + 1);
}

/* ---- series ---- */

static bool series_is(const struct exemplar_ring *r, const struct exemplar_series *s, struct labels l)
{
	if (s->n_pairs != l.n)
		return false;
	for (uint32_t i = 0; i < l.n; i++) {
		struct label own = head_pair_label(head_pair(&r->head->symbols, s->pairs[i]));
		if (!span_eq(own.name, l.v[i].name) || !span_eq(own.value, l.v[i].value))
			return false;
	}
	return true;
}

struct exemplar_series *exemplar_ring_find(const struct exemplar_ring *r, struct labels l, uint32_t hash, uint32_t *id)
{
	if (!r->slots)
		return NULL;
	for (uint32_t i = hash & r->mask; r->slots[i]; i = (i + 1) & r->mask) {
		struct exemplar_series *s = r->series[r->slots[i] - 1];
		if (s->hash == hash && series_is(r, s, l)) {
			*id = r->slots[i] - 1;
			return s;
		}
	}
	return NULL;
}

static bool slots_resize(struct exemplar_ring *r, uint32_t mask)
{
	uint32_t *slots = calloc((size_t)mask + 1, sizeof *slots);
	if (!slots)
		return false;
	for (uint32_t id = 0; id < r->n_ids; id++) {
		const struct exemplar_series *s = exemplar_ring_series(r, id);
		if (!s)
			continue;
		uint32_t i = s->hash & mask;
		while (slots[i])
			i = (i + 1) & mask;
		slots[i] = id + 1;
	}
	head_memory_add(r->head, ((size_t)mask + 1 - (r->slots ? (size_t)r->mask + 1 : 0)) * sizeof *slots);
	free(r->slots);
	r->slots = slots;
	r->mask = mask;
	return true;
}

void exemplar_ring_shrink(struct exemplar_ring *r)
{
	uint32_t n = count(r);
	if (r->cap > 4 * ENTRIES_MIN && n < r->cap / 4)
		(void)entries_resize(r, n + n / 4 + ENTRIES_MIN);
	if (r->bytes_cap > 4 * BYTES_MIN && r->bytes_n < r->bytes_cap / 4)
		(void)bytes_resize(r, r->bytes_n + r->bytes_n / 4 + BYTES_MIN);
	if (r->slots && r->mask >= 16 * SLOTS_MIN && r->n_series < r->mask / 8)
		(void)slots_resize(r, r->mask / 4);
}

static bool ids_grow(struct exemplar_ring *r)
{
	uint32_t cap = r->cap_ids + r->cap_ids / 2 + IDS_MIN;
	struct exemplar_series **v = realloc(r->series, cap * sizeof *v);
	if (!v)
		return false;
	head_memory_add(r->head, (cap - r->cap_ids) * sizeof *v);
	r->series = v;
	r->cap_ids = cap;
	return true;
}

static struct exemplar_series *series_new(struct exemplar_ring *r, struct labels l, uint32_t hash, uint32_t *out)
{
	if ((!r->slots || r->n_series + 1 > r->mask / 4 * 3) && !slots_resize(r, r->slots ? r->mask * 2 + 1 : SLOTS_MIN - 1))
		return NULL;
	if (r->free_id == EXEMPLAR_NONE && r->n_ids == r->cap_ids && !ids_grow(r))
		return NULL;
	struct exemplar_series *s = malloc(sizeof *s + l.n * sizeof *s->pairs);
	if (!s)
		return NULL;
	if (head_pairs_ref(&r->head->symbols, l, s->pairs, NULL) != OK) {
		free(s);
		return NULL;
	}
	s->first = s->last = s->cursor = EXEMPLAR_NONE;
	s->n = s->record = s->place = 0;
	s->hash = hash;
	s->serial = r->next_serial++;
	s->n_pairs = l.n;
	uint32_t id = r->free_id;
	if (id == EXEMPLAR_NONE)
		id = r->n_ids++;
	else
		r->free_id = (uint32_t)((uintptr_t)r->series[id] >> 1);
	r->series[id] = s;
	uint32_t i = hash & r->mask;
	while (r->slots[i])
		i = (i + 1) & r->mask;
	r->slots[i] = id + 1;
	r->n_series++;
	head_memory_add(r->head, series_bytes(s));
	r->series_bytes += series_bytes(s);
	*out = id;
	return s;
}

/* ---- the verdict ---- */

/* Newest first, as far as a repetition is looked for. */
static enum ring_verdict judge_newest(const struct exemplar_ring *r, const struct exemplar_series *s, const struct exemplar *x)
{
	uint32_t at = s->last;
	for (int i = 0; i < RING_LOOK_BACK && at != EXEMPLAR_NONE; i++, at = r->v[at].prev) {
		int c = exemplar_ring_cmp(r, at, x);
		if (c == 0)
			return RING_DUPLICATE;
		if (c < 0)
			return i == 0 ? RING_STORED : RING_LATE;
	}
	return s->last == EXEMPLAR_NONE ? RING_STORED : RING_LATE;
}

/* *prev: the last one before x. The log is nearly in order, so the search begins where the last one ended. */
static enum ring_verdict judge_anywhere(const struct exemplar_ring *r, struct exemplar_series *s, const struct exemplar *x, uint32_t *prev)
{
	uint32_t at = s->cursor;
	int c = 0;
	*prev = EXEMPLAR_NONE;
	while (at != EXEMPLAR_NONE && (c = exemplar_ring_cmp(r, at, x)) > 0)
		at = r->v[at].prev;
	while (at != EXEMPLAR_NONE && c < 0) {
		*prev = at;
		at = r->v[at].next;
		c = at == EXEMPLAR_NONE ? 1 : exemplar_ring_cmp(r, at, x);
	}
	if (at != EXEMPLAR_NONE && c == 0) {
		s->cursor = at;
		return RING_DUPLICATE;
	}
	return RING_STORED;
}

enum ring_verdict exemplar_ring_put(
	struct exemplar_ring *r, struct labels l, uint32_t hash, const struct exemplar *x, enum ring_order order, bool drop, uint32_t *id)
{
	ASSERT(x->wire.n <= EXEMPLAR_WIRE_BYTES);
	uint32_t prev = EXEMPLAR_NONE;
	struct exemplar_series *s = exemplar_ring_find(r, l, hash, id);
	if (s) {
		enum ring_verdict v = order == RING_NEWEST ? judge_newest(r, s, x) : judge_anywhere(r, s, x, &prev);
		if (v != RING_STORED)
			return v;
	}
	bool made = !s;
	if (made && !(s = series_new(r, l, hash, id)))
		return RING_NOMEM;
	/* The oldest goes first: what it gives back is often all that is needed. */
	if (drop && count(r) > 0)
		drop_oldest(r, *id);
	while (r->bytes_n + x->wire.n >= EXEMPLAR_RING_BYTES)
		drop_oldest(r, *id);
	if (!room(r, x->wire.n)) {
		if (s->n == 0)
			series_forget(r, *id);
		return RING_NOMEM;
	}
	if (order == RING_NEWEST)
		prev = s->last;
	else
		(void)judge_anywhere(r, s, x, &prev);
	entry_add(r, s, *id, prev, x);
	return RING_STORED;
}

bool exemplar_ring_sane(const struct exemplar_ring *r)
{
	uint32_t n = 0, n_series = 0, n_slots = 0;
	for (uint32_t id = 0; id < r->n_ids; id++) {
		const struct exemplar_series *s = exemplar_ring_series(r, id);
		if (!s)
			continue;
		n_series++;
		uint32_t k = 0, before = EXEMPLAR_NONE;
		for (uint32_t at = s->first; at != EXEMPLAR_NONE; before = at, at = r->v[at].next) {
			struct exemplar x;
			uint8_t wire[EXEMPLAR_WIRE_BYTES];
			if (r->v[at].series != id || r->v[at].prev != before || exemplar_ring_seq(r, at) >= r->first_seq + count(r))
				return false;
			exemplar_ring_get(r, at, &x, wire);
			if (before != EXEMPLAR_NONE && exemplar_ring_cmp(r, before, &x) >= 0)
				return false;
			k++;
		}
		if (k == 0 || k != s->n || s->last != before)
			return false;
		n += k;
	}
	for (uint32_t i = 0; r->slots && i <= r->mask; i++)
		n_slots += r->slots[i] != 0;
	return n == count(r) && n_series == r->n_series && n_slots == n_series;
}
