/* base/handover.h - one pointer that many threads read and one replaces now and then: limits, rings.
 *
 *     reader: announces itself in one of two counters ─▶ loads ─▶ copies, or counts on what it points at ─▶ leaves
 *     writer: exchanges the pointer ─▶ waits until each counter was seen at 0 ─▶ the old one is its own
 *
 * Reading takes no lock and never waits. Whoever holds the old pointer stood in one of the counters when it was exchanged; new readers are sent to the other one
 * meanwhile, so the writer's wait ends. It is a microsecond, and the writer's alone.
 */
#pragma once
#include <stdatomic.h>
#include <stdint.h>

/* All zeros: it points nowhere. Its alignment makes that of what it is in: allocate that with aligned_alloc(64, ...). */
struct handover {
	_Atomic(void *) now;
	_Atomic uint32_t turn; /* which counter readers take */
	struct {
		_Alignas(64) _Atomic uint64_t n;
	} readers[2];
};

/* Valid until handover_end with the same turn. NULL: it points nowhere. Any thread. */
static inline void *handover_begin(struct handover *h, uint32_t *turn)
{
	*turn = atomic_load(&h->turn) & 1;
	atomic_fetch_add(&h->readers[*turn].n, 1);
	return atomic_load(&h->now);
}
static inline void handover_end(struct handover *h, uint32_t turn)
{
	atomic_fetch_sub(&h->readers[turn].n, 1);
}
/* What it pointed at, which no reader holds any more. One writer at a time. */
void *handover_swap(struct handover *h, void *now);
