/* fuzz: needs block */
/* Tombstones, as they are and with their CRC put right: intervals ascend and do not touch, every reference is found again. */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_read_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const uint8_t *data, size_t size)
{
	struct tombstones t;
	if (tombstones_parse("fuzz", span_of(data, size), &t, NULL))
		return;
	for (size_t i = 0; i < t.n; i++) {
		size_t n;
		const struct tombstone *x = tombstones_of(&t, t.v[i].ref, &n);
		if (n == 0 || x > &t.v[i] || x + n <= &t.v[i] || t.v[i].at.mint > t.v[i].at.maxt)
			abort();
		if (i > 0 && (t.v[i - 1].ref > t.v[i].ref || (t.v[i - 1].ref == t.v[i].ref && t.v[i - 1].at.maxt + 1 >= t.v[i].at.mint)))
			abort();
	}
	tombstones_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	check(data, size);
	if (size < 9)
		return 0;
	uint8_t *copy = malloc(size);
	if (!copy)
		return 0;
	memcpy(copy, data, size);
	put_be32(copy, 0x0130BA30);
	copy[4] = 1;
	put_be32(copy + size - 4, crc32c(0, copy + 5, size - 9));
	check(copy, size);
	free(copy);
	return 0;
}
