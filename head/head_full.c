/* head/head_full.c - series that a full tenant sends again and again.
 *
 * Whoever is over head_series_limit goes on sending the same new series with every scrape, and each must be decoded and judged before it may be
 * refused. What was found then is a function of its bytes: so their hash is remembered, and the next time they are refused for what a known series
 * costs. Only that the bytes are canonical and their labels allowed is remembered, never that they are refused: whether the tenant is full, and whether
 * the series is known by now, is looked up each time.
 *
 * One table for all tenants, made at the first refusal, 16 bytes an entry and one entry a place: a newer one takes it over. The halves of an entry may
 * be of two writers; such an entry is found by nobody.
 */
#include "head/head_int.h"

enum { FULL_PLACES = 1 << 17 };

struct full_place {
	_Atomic uint64_t hi, lo;
};

static struct full_place *place_of(struct full_place *v, struct hash128 x)
{
	return &v[(x.lo >> 20) & (FULL_PLACES - 1)];
}

bool head_full_seen(struct head *h, struct hash128 x)
{
	struct full_place *v = atomic_load_explicit(&h->full, memory_order_acquire);
	if (!v)
		return false;
	const struct full_place *p = place_of(v, x);
	return atomic_load_explicit(&p->lo, memory_order_relaxed) == x.lo && atomic_load_explicit(&p->hi, memory_order_relaxed) == x.hi;
}

void head_full_note(struct head *h, struct hash128 x)
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
	atomic_store_explicit(&p->lo, x.lo, memory_order_relaxed);
	atomic_store_explicit(&p->hi, x.hi, memory_order_relaxed);
}

void head_full_free(struct head *h)
{
	free(atomic_load(&h->full));
}
