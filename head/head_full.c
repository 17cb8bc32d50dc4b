/* head/head_full.c - series that a full tenant sends again and again.
 *
 * Whoever is over head_series_limit goes on sending the same new series with every scrape, and each must be decoded and judged before it may be
 * refused. What was found then is a function of its bytes: so their hash is remembered, and the next time they are refused for what a known series
 * costs. Only that their labels are allowed is remembered, and the hash of their canonical bytes (of 1.0 the same, of 2.0 another one), never that they
 * are refused: whether the tenant is full, and whether the series is known by now, is looked up each time.
 *
 * One table for all tenants, made at the first refusal, 32 bytes an entry and one entry a place: a newer one takes it over. What was asked for stands in
 * an entry mixed with what was found, half by half, so an entry of two writers is found by nobody.
 */
#include "head/head_int.h"

enum { FULL_PLACES = 1 << 17 };

struct full_place {
	_Atomic uint64_t hi, lo; /* of the bytes as they came, xor canonical's */
	_Atomic uint64_t canonical_hi, canonical_lo;
};

static struct full_place *place_of(struct full_place *v, struct hash128 x)
{
	return &v[(x.lo >> 20) & (FULL_PLACES - 1)];
}

bool head_full_seen(struct head *h, struct hash128 x, struct hash128 *canonical)
{
	struct full_place *v = atomic_load_explicit(&h->full, memory_order_acquire);
	if (!v)
		return false;
	const struct full_place *p = place_of(v, x);
	canonical->hi = atomic_load_explicit(&p->canonical_hi, memory_order_relaxed);
	canonical->lo = atomic_load_explicit(&p->canonical_lo, memory_order_relaxed);
	return (atomic_load_explicit(&p->hi, memory_order_relaxed) ^ canonical->hi) == x.hi &&
	       (atomic_load_explicit(&p->lo, memory_order_relaxed) ^ canonical->lo) == x.lo;
}

static void note(struct head *h, struct hash128 x, struct hash128 canonical)
{
	struct full_place *v = atomic_load_explicit(&h->full, memory_order_acquire);
	if (!v) {
		struct full_place *made = calloc(FULL_PLACES, sizeof *made);
		if (!made)
			return;
		if (!atomic_compare_exchange_strong_explicit(&h->full, &v, made, memory_order_acq_rel, memory_order_acquire)) {
			free(made);
		} else {
			head_memory_add(h, FULL_PLACES * sizeof *made);
			v = made;
		}
	}
	struct full_place *p = place_of(v, x);
	atomic_store_explicit(&p->hi, x.hi ^ canonical.hi, memory_order_relaxed);
	atomic_store_explicit(&p->lo, x.lo ^ canonical.lo, memory_order_relaxed);
	atomic_store_explicit(&p->canonical_hi, canonical.hi, memory_order_relaxed);
	atomic_store_explicit(&p->canonical_lo, canonical.lo, memory_order_relaxed);
}

/* The canonical bytes of series i and their hash. false: it is to be judged like any other. Bytes of 1.0 that are canonical have nothing that decoding
 * could add; series of 2.0 are put together, which costs little more. */
static bool canonical_of(struct append_ctx *c, uint32_t i, struct span *wire, struct hash128 *x)
{
	struct head *h = c->head;
	const struct head_series *s = &c->batch->series[i];
	struct labels l;
	struct err why = {0};
	uint32_t which;
	arena_reset(&c->parse);
	if (c->batch->symbols) {
		if (head_spelling_labels(c, i, &l, &why) != OK)
			return false;
	} else {
		l = (struct labels){arena_alloc(&c->parse, s->n_labels * sizeof *l.v), 0};
		if (!l.v || !labels_from_canonical(s->wire, l.v, s->n_labels, &l.n))
			return false;
	}
	if (labels_normalize(&l, &h->cfg.labels, &which) != LABELS_OK || l.n == 0 || labels_wire_size(l) > HEAD_SERIES_WIRE_BYTES)
		return false;
	*wire = s->wire;
	*x = c->hashes[i];
	if (!c->batch->symbols)
		return true;
	buf_clear(&c->wire);
	labels_to_wire(l, &c->wire);
	*wire = span_of(c->wire.p, c->wire.n);
	*x = head_hash(h, c->tenant, *wire);
	return !c->wire.failed;
}

bool head_full_new(struct append_ctx *c, uint32_t i, bool seen)
{
	struct head *h = c->head;
	struct span wire = c->batch->series[i].wire;
	struct hash128 x;
	seen = seen && head_full_seen(h, c->hashes[i], &x);
#ifdef HEAD_VERIFY
	seen = seen && !c->batch->symbols; /* the canonical bytes are compared as well */
#endif
	if (!seen) {
		if (!canonical_of(c, i, &wire, &x))
			return false;
		note(h, c->hashes[i], x);
	}
	struct shard *sh = &h->shards[head_shard_of(h, x)];
	pthread_mutex_lock(&sh->mu);
	bool known = head_table_find_locked(h, sh, x, c->tenant->idx, wire) != 0;
	pthread_mutex_unlock(&sh->mu);
	return !known;
}

void head_full_free(struct head *h)
{
	free(atomic_load(&h->full));
}
