/* head/head_series.c - the series table: a series is found by the 128-bit keyed hash of its label bytes as they came.
 *
 *     (tenant, wire bytes) ─ XXH3-128 with a secret of the process, xor the tenant's salt ─▶ shard (top bits) ─▶ slot (low bits)
 *
 * A hit decodes and compares nothing: two series share an entry only if 128 bits of a keyed hash collide, which at 10^9 series is one
 * chance in 10^20, and nobody can search for one without the secret. The secret and the salts never leave the process. Builds with
 * HEAD_VERIFY compare the labels too; tests make one with HEAD_HASH_BITS so small that collisions are common, and none mixes two series.
 *
 * Remote write 2.0 spells a series by its request's symbols: head_spelling.c.
 *
 * The canonical spelling's hash decides the home shard of a series. Another spelling (unsorted labels, an empty value, longer varints)
 * has an alias in the shard of its own hash. An alias knows its series' ref; refs are never given twice and structs of series are
 * never unmapped, so a stale alias shows by itself and is removed when it is met, or swept after a window's end.
 *
 * Slots: open addressing, linear, backward shift on removal; grown at 4/5. A slot is an address and 16 bits of the hash; the whole hash stands with the series
 * or the alias, where a hit goes anyway. One look in 65,000 goes there for nothing.
 */
#ifdef __x86_64__
#include <xxh_x86dispatch.h> /* the widest vectors of the machine that it runs on */
#else
#include <xxhash.h>
#endif
#include "head/head_int.h"

enum { SLOTS_MIN = 64 };

static struct hash128 hash_of_tenant(XXH128_hash_t x, const struct tenant *tn)
{
	struct hash128 y = {x.high64 ^ tn->salt.hi, x.low64 ^ tn->salt.lo};
#ifdef HEAD_HASH_BITS
	y.lo &= (UINT64_C(1) << HEAD_HASH_BITS) - 1;
	y.hi = y.lo << (64 - HEAD_HASH_BITS);
#endif
	return y;
}

struct hash128 head_hash(const struct head *h, const struct tenant *tn, struct span wire)
{
	return hash_of_tenant(XXH3_128bits_withSecret(wire.p, wire.n, h->secret, sizeof h->secret), tn);
}

struct hash128 head_hash_symbol(const struct head *h, struct span symbol)
{
	XXH128_hash_t x = XXH3_128bits_withSecret(symbol.p, symbol.n, h->secret, sizeof h->secret);
	return (struct hash128){x.high64, x.low64};
}

enum { REFS_AT_ONCE = 64 };

/* More than 64 are hashed in rows, each of which begins with the hash of what is before it. */
struct hash128 head_hash_refs(const struct head *h, const struct tenant *tn, const struct hash128 *symbols, const uint32_t *refs, uint32_t n_labels)
{
	struct hash128 v[REFS_AT_ONCE];
	uint32_t n = 2 * n_labels, m = 0;
	while (UNLIKELY(n > REFS_AT_ONCE - m)) {
		n -= REFS_AT_ONCE - m;
		while (m < REFS_AT_ONCE)
			v[m++] = symbols[*refs++];
		XXH128_hash_t x = XXH3_128bits_withSecret(v, sizeof v, h->refs_secret, sizeof h->refs_secret);
		v[0] = (struct hash128){x.high64, x.low64};
		m = 1;
	}
	for (uint32_t k = 0; k < n; k++)
		v[m + k] = symbols[refs[k]];
	return hash_of_tenant(XXH3_128bits_withSecret(v, (m + n) * sizeof *v, h->refs_secret, sizeof h->refs_secret), tn);
}

void head_series_wire(const struct head *h, const struct series *s, struct buf *out)
{
	struct label v[16];
	for (uint32_t i = 0; i < s->n_pairs;) {
		struct labels l = {v, 0};
		for (; i < s->n_pairs && l.n < 16; i++)
			v[l.n++] = head_pair_label(head_pair(&h->symbols, s->pairs[i]));
		labels_to_wire(l, out);
	}
}

int head_series_cmp(const struct head *h, const struct series *a, const struct series *b)
{
	uint32_t n = a->n_pairs < b->n_pairs ? a->n_pairs : b->n_pairs;
	for (uint32_t i = 0; i < n; i++) {
		if (a->pairs[i] == b->pairs[i])
			continue;
		struct label x = head_pair_label(head_pair(&h->symbols, a->pairs[i]));
		struct label y = head_pair_label(head_pair(&h->symbols, b->pairs[i]));
		int c = span_cmp(x.name, y.name);
		return c ? c : span_cmp(x.value, y.value);
	}
	return (a->n_pairs > b->n_pairs) - (a->n_pairs < b->n_pairs);
}

#ifdef HEAD_VERIFY
static bool verify(struct head *h, uintptr_t p, uint32_t tenant, struct span wire)
{
	if (p & 1) {
		const struct alias *a = (struct alias *)(p - 1);
		return a->series->tenant == tenant && span_eq(a->wire, wire);
	}
	struct series *s = (struct series *)p;
	struct buf b;
	buf_init(&b, 64 * MIB);
	head_series_wire(h, s, &b);
	bool same = s->tenant == tenant && span_eq(wire, span_of(b.p, b.n));
	buf_free(&b);
	return same;
}
#endif

static struct hash128 hash_of(table_slot sl)
{
	uintptr_t p = head_slot_address(sl);
	return p & 1 ? ((const struct alias *)(p - 1))->hash : ((const struct series *)p)->hash;
}

uintptr_t head_table_find_locked(struct head *h, struct shard *sh, struct hash128 x, uint32_t tenant, struct span wire)
{
	(void)h, (void)tenant, (void)wire;
	if (!sh->slots)
		return 0;
	for (uint64_t i = x.lo & sh->mask; sh->slots[i]; i = (i + 1) & sh->mask) {
		table_slot sl = sh->slots[i];
		if ((sl ^ head_slot_tag(x)) >> 48)
			continue;
		struct hash128 y = hash_of(sl);
		if (y.lo != x.lo || y.hi != x.hi)
			continue;
#ifdef HEAD_VERIFY
		if (!verify(h, head_slot_address(sl), tenant, wire))
			continue;
#endif
		return head_slot_address(sl);
	}
	return 0;
}

enum { GROW_AHEAD = 16 };

static bool table_resize(struct head *h, struct shard *sh, uint64_t mask)
{
	table_slot *slots = head_table_alloc(mask + 1, sizeof *slots);
	if (!slots)
		return false;
	for (uint64_t i = 0; sh->slots && i <= sh->mask; i++) {
		/* The hashes are where the series are: asked for ahead of need. */
		table_slot ahead = i + GROW_AHEAD <= sh->mask ? sh->slots[i + GROW_AHEAD] : 0;
		__builtin_prefetch((const void *)(head_slot_address(ahead) & ~(uintptr_t)1));
		if (!sh->slots[i])
			continue;
		uint64_t j = hash_of(sh->slots[i]).lo & mask;
		while (slots[j])
			j = (j + 1) & mask;
		slots[j] = sh->slots[i];
	}
	head_memory_add(h, (mask + 1 - (sh->slots ? sh->mask + 1 : 0)) * sizeof *slots);
	head_table_free(sh->slots, sh->mask + 1, sizeof *slots);
	sh->slots = slots;
	sh->mask = mask;
	return true;
}

static bool table_grow(struct head *h, struct shard *sh)
{
	return table_resize(h, sh, sh->slots ? sh->mask * 2 + 1 : SLOTS_MIN - 1);
}

void head_table_reserve_locked(struct head *h, struct shard *sh, uint64_t n)
{
	uint64_t mask = sh->slots ? sh->mask : SLOTS_MIN - 1;
	while (n > (mask + 1) / 5 * 4)
		mask = mask * 2 + 1;
	if (!sh->slots || mask > sh->mask)
		(void)!table_resize(h, sh, mask);
}

static bool table_add(struct head *h, struct shard *sh, struct hash128 x, uintptr_t p)
{
	if ((!sh->slots || sh->n_slots_used + 1 > (sh->mask + 1) / 5 * 4) && !table_grow(h, sh))
		return false;
	uint64_t i = x.lo & sh->mask;
	while (sh->slots[i])
		i = (i + 1) & sh->mask;
	ASSERT((uint64_t)p >> 48 == 0);
	sh->slots[i] = head_slot_tag(x) | p;
	sh->n_slots_used++;
	return true;
}

/* x: the hash it was added under. */
static void table_remove(struct shard *sh, struct hash128 x, uintptr_t p)
{
	uint64_t i = x.lo & sh->mask;
	while (head_slot_address(sh->slots[i]) != p) {
		ASSERT(sh->slots[i]);
		i = (i + 1) & sh->mask;
	}
	for (uint64_t j = (i + 1) & sh->mask; sh->slots[j]; j = (j + 1) & sh->mask) {
		uint64_t home = hash_of(sh->slots[j]).lo & sh->mask;
		if (((j - home) & sh->mask) >= ((j - i) & sh->mask)) {
			sh->slots[i] = sh->slots[j];
			i = j;
		}
	}
	sh->slots[i] = 0;
	sh->n_slots_used--;
}

/* Usual numbers of labels have a class each, so that nothing is lost to rounding; the rest have one for each of the pool's sizes. All objects of a class are of one size. */
static uint32_t series_class(uint32_t n_pairs, size_t *bytes)
{
	*bytes = (sizeof(struct series) + n_pairs * sizeof(uint32_t) + 7) / 8 * 8;
	if (n_pairs <= LIMIT_LABELS_PER_SERIES)
		return n_pairs;
	*bytes = head_pool_round(*bytes);
	uint32_t c = LIMIT_LABELS_PER_SERIES + 1;
	for (size_t n = 256; n < *bytes; n = head_pool_round(n + 1))
		c++;
	ASSERT(c < HEAD_SERIES_CLASSES);
	return c;
}

/* Compared and counted in one step: two requests in two shards never take the last place both, and none is refused for one that is given back. */
static bool tenant_take(struct tenant *tn, uint64_t max_series)
{
	uint64_t n = atomic_load_explicit(&tn->n_series, memory_order_relaxed);
	do
		if (max_series > 0 && n >= max_series)
			return false;
	while (!atomic_compare_exchange_weak_explicit(&tn->n_series, &n, n + 1, memory_order_relaxed, memory_order_relaxed));
	return true;
}

enum { FEW_SERIES = 256 };

/* A series of the class. While a shard has few they come one by one: a row of each class would be more than all of them. */
static struct series *series_take(struct shard *sh, uint8_t shard, uint32_t c, size_t bytes)
{
	struct series *s = sh->free_series[c];
	if (s)
		sh->free_series[c] = (struct series *)(void *)s->ws;
	else if (bytes <= HEAD_ROW_BYTES / 2 && sh->n_series >= FEW_SERIES)
		s = head_rows_take(&sh->rows, c, bytes);
	else if ((s = head_pool_alloc(&sh->pool, bytes)))
		atomic_init(&s->ref, 0);
	if (s) {
		s->ws = NULL;
		s->shard = shard;
	}
	return s;
}

static void series_give(struct shard *sh, uint32_t c, struct series *s)
{
	if (head_rows_free(&sh->rows, s))
		return;
	s->ws = (struct wseries *)(void *)sh->free_series[c];
	sh->free_series[c] = s;
}

errc head_series_new_locked(struct head *h, struct shard *sh, struct tenant *tn, struct hash128 x, struct labels l, uint64_t max_series,
	struct series **out, struct err *err)
{
	ASSERT(l.n > 0 && l.n <= LIMIT_LABELS_DECODE);
	size_t bytes;
	uint32_t c = series_class(l.n, &bytes);
	if (!tenant_take(tn, max_series))
		return ERR_LIMIT;
	struct series *s = series_take(sh, (uint8_t)(sh - h->shards), c, bytes);
	if (!s) {
		atomic_fetch_sub_explicit(&tn->n_series, 1, memory_order_relaxed);
		return err_set(err, ERR_NOMEM, "no memory for a new series");
	}
	s->hash = x;
	if (head_pairs_ref(&h->symbols, l, s->pairs, err) != OK)
		goto nomem;
	if (!table_add(h, sh, x, (uintptr_t)s)) {
		head_pairs_unref(&h->symbols, s->pairs, l.n);
		goto nomem;
	}
	s->ws_window = 0;
	s->keys[0] = s->keys[1] = 0;
	s->key_no = 0;
	s->key_changed = 0;
	s->def_pos = 0;
	s->def_state = DEF_NONE;
	s->newest_window = 0;
	s->tenant = tn->idx;
	s->checkpoint = 0;
	s->n_windows = 0;
	s->n_pairs = (uint16_t)l.n;
	s->n_aliases = 0;
	atomic_store_explicit(&s->ref, atomic_fetch_add_explicit(&h->next_ref, 1, memory_order_relaxed), memory_order_relaxed);
	sh->n_series++;
	atomic_fetch_add_explicit(&h->n_series, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&tn->series_bytes, bytes + sizeof(table_slot), memory_order_relaxed);
	*out = s;
	return OK;
nomem:
	atomic_fetch_sub_explicit(&tn->n_series, 1, memory_order_relaxed);
	series_give(sh, c, s);
	return err_set(err, ERR_NOMEM, "no memory for a new series");
}

errc head_series_load_locked(struct head *h, struct shard *sh, struct tenant *tn, struct hash128 x, struct span wire, const uint32_t *pairs,
	uint32_t n, uint64_t ref, struct series **out, struct err *err)
{
	ASSERT(n > 0 && n <= LIMIT_LABELS_DECODE);
	*out = NULL;
	if (head_table_find_locked(h, sh, x, tn->idx, wire))
		return OK;
	size_t bytes;
	uint32_t c = series_class(n, &bytes);
	struct series *s = series_take(sh, (uint8_t)(sh - h->shards), c, bytes);
	if (!s)
		return err_set(err, ERR_NOMEM, "no memory for a series");
	if (!table_add(h, sh, x, (uintptr_t)s)) {
		series_give(sh, c, s);
		return err_set(err, ERR_NOMEM, "no memory for a series");
	}
	atomic_store_explicit(&s->ref, ref, memory_order_relaxed);
	s->hash = x;
	s->keys[0] = s->keys[1] = 0;
	s->def_pos = 0;
	s->ws_window = s->newest_window = 0;
	s->tenant = tn->idx;
	s->checkpoint = 0;
	s->n_windows = 0;
	s->n_pairs = (uint16_t)n;
	s->n_aliases = 0;
	s->def_state = DEF_NONE;
	s->key_no = 0;
	s->key_changed = 0;
	atomic_fetch_add_explicit(&tn->n_series, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&tn->series_bytes, bytes + sizeof(table_slot), memory_order_relaxed);
	memcpy(s->pairs, pairs, n * sizeof *pairs);
	sh->n_series++;
	atomic_fetch_add_explicit(&h->n_series, 1, memory_order_relaxed);
	*out = s;
	return OK;
}

void head_series_remove_locked(struct head *h, struct shard *sh, struct tenant *tn, struct series *s)
{
	ASSERT(s->n_windows == 0 && !s->ws && s->tenant == tn->idx);
	table_remove(sh, s->hash, (uintptr_t)s);
	head_pairs_unref(&h->symbols, s->pairs, s->n_pairs);
	atomic_store_explicit(&s->ref, 0, memory_order_relaxed);
	size_t bytes;
	uint32_t c = series_class(s->n_pairs, &bytes);
	series_give(sh, c, s);
	sh->n_series--;
	sh->n_removed++;
	atomic_fetch_sub_explicit(&h->n_series, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&tn->n_series, 1, memory_order_relaxed);
	atomic_fetch_sub_explicit(&tn->series_bytes, bytes + sizeof(table_slot), memory_order_relaxed);
}

static struct alias *alias_take(struct shard *sh)
{
	return sh->n_series + sh->n_aliases < FEW_SERIES ? head_pool_alloc(&sh->pool, sizeof(struct alias))
							 : head_rows_take(&sh->rows, HEAD_SERIES_CLASSES, sizeof(struct alias));
}

static void alias_give(struct shard *sh, struct alias *a)
{
	if (!head_rows_free(&sh->rows, a))
		head_pool_free(&sh->pool, a, sizeof *a);
}

void head_alias_add_locked(struct head *h, struct shard *sh, struct hash128 x, struct span wire, struct series *s, uint64_t ref)
{
	uintptr_t p = head_table_find_locked(h, sh, x, s->tenant, wire);
	if (p) { /* of a series that is gone, or another request was faster */
		ASSERT(p & 1);
		struct alias *a = (struct alias *)(p - 1);
		a->series = s;
		a->ref = ref & HEAD_REF_MASK;
		a->shard = s->shard;
		return;
	}
	struct alias *a = alias_take(sh);
	if (!a)
		return;
	*a = (struct alias){.series = s, .ref = ref & HEAD_REF_MASK, .shard = s->shard, .hash = x};
#ifdef HEAD_VERIFY
	char *copy = head_pool_alloc(&sh->pool, wire.n);
	if (!copy) {
		alias_give(sh, a);
		return;
	}
	memcpy(copy, wire.p, wire.n);
	a->wire = span_of(copy, wire.n);
#endif
	if (!table_add(h, sh, x, (uintptr_t)a | 1)) {
		alias_give(sh, a);
		return;
	}
	sh->n_aliases++;
}

void head_alias_remove_locked(struct shard *sh, struct alias *a)
{
	table_remove(sh, a->hash, (uintptr_t)a | 1);
	alias_give(sh, a);
	sh->n_aliases--;
}

bool head_alias_sweep(struct shard *sh, uint64_t *at)
{
	pthread_mutex_lock(&sh->mu);
	bool any = sh->n_aliases > 0;
	for (uint32_t k = 0; any && k < 4 * HEAD_SLICE && *at <= sh->mask; k++) {
		uintptr_t p = head_slot_address(sh->slots[*at]);
		struct alias *a = p & 1 ? (struct alias *)(p - 1) : NULL;
		if (a && atomic_load_explicit(&a->series->ref, memory_order_relaxed) != a->ref)
			head_alias_remove_locked(sh, a); /* another slot takes its place */
		else
			++*at;
	}
	bool more = any && *at <= sh->mask;
	pthread_mutex_unlock(&sh->mu);
	return more;
}

bool head_shard_due(struct shard *sh)
{
	pthread_mutex_lock(&sh->mu);
	bool due = sh->n_removed > sh->n_series / 4;
	if (due)
		sh->n_removed = 0;
	pthread_mutex_unlock(&sh->mu);
	return due;
}

void head_shard_give_back(struct head *h, struct shard *sh)
{
	bool more = true;
	for (uint32_t at = 0; more;) {
		pthread_mutex_lock(&sh->mu);
		more = head_rows_give_back(&sh->rows, &at);
		pthread_mutex_unlock(&sh->mu);
	}
	pthread_mutex_lock(&sh->mu);
	uint64_t mask = SLOTS_MIN - 1;
	while (sh->n_slots_used > (mask + 1) / 2)
		mask = mask * 2 + 1;
	if (sh->slots && mask < sh->mask / 2)
		(void)!table_resize(h, sh, mask);
	pthread_mutex_unlock(&sh->mu);
}
