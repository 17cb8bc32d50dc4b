/* base/base_sort.c - radix sort by the highest byte that differs, in place (American flag), small runs by insertion.
 *
 * Which bits differ at all is looked up first, so bytes that all keys share cost no pass, and a key's width need not be known.
 *
 * Source: McIlroy, Bostic, McIlroy, "Engineering Radix Sort" (1993), section 4.
 */
#include <stdbool.h>
#include "base/sort.h"

enum { INSERTION = 24 };

static void insertion(struct keyed *v, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		struct keyed x = v[i];
		size_t k = i;
		for (; k > 0 && v[k - 1].key > x.key; k--)
			v[k] = v[k - 1];
		v[k] = x;
	}
}

void keyed_sort(struct keyed *v, size_t n)
{
	if (n <= INSERTION) {
		insertion(v, n);
		return;
	}
	uint64_t any = 0, all = UINT64_MAX;
	bool ascends = true;
	for (size_t i = 0; i < n; i++) {
		any |= v[i].key;
		all &= v[i].key;
		ascends &= i == 0 || v[i - 1].key <= v[i].key;
	}
	if (ascends)
		return;
	/* The bits above the highest one that differs are the same in all. */
	unsigned top = 64 - (unsigned)__builtin_clzll(any & ~all), shift = top > 8 ? top - 8 : 0;
	size_t at[256] = {0}, end[256], sum = 0;
	for (size_t i = 0; i < n; i++)
		at[v[i].key >> shift & 255]++;
	for (unsigned d = 0; d < 256; d++) {
		size_t count = at[d];
		at[d] = sum;
		sum += count;
		end[d] = sum;
	}
	for (unsigned d = 0; d < 256; d++) {
		while (at[d] < end[d]) {
			struct keyed x = v[at[d]];
			for (unsigned to = x.key >> shift & 255; to != d; to = x.key >> shift & 255) {
				struct keyed y = v[at[to]];
				v[at[to]++] = x;
				x = y;
			}
			v[at[d]++] = x;
		}
	}
	for (unsigned d = 0; d < 256 && shift > 0; d++) {
		size_t from = d ? end[d - 1] : 0;
		if (end[d] - from > 1)
			keyed_sort(v + from, end[d] - from);
	}
}
