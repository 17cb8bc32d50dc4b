/* base/sort.h - sorting by 64-bit keys, in place: what would be compared a million times is made a number first. */
#pragma once
#include <stddef.h>
#include <stdint.h>

struct keyed {
	uint64_t key;
	uint32_t id;
	uint32_t n; /* the caller's */
};

/* By key; equal keys end up beside each other in any order. No memory but the stack; whatever the keys are, no byte of them is looked at more than twice. */
void keyed_sort(struct keyed *v, size_t n);
