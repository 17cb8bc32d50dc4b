/* base/base_handover.c - replacing what many read. See base/handover.h. */
#include "base/handover.h"
#include "base/io.h"

void *handover_swap(struct handover *h, void *now)
{
	void *was = atomic_exchange(&h->now, now);
	for (int k = 0; k < 2; k++) {
		uint32_t turn = atomic_fetch_add(&h->turn, 1) & 1;
		while (atomic_load(&h->readers[turn].n) > 0)
			io_sleep_ms(1);
	}
	return was;
}
