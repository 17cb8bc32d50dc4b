/* tests/support/fake_source.h - a source over plain arrays, sorted and matched the slow and obvious way; fails at will.
 */
#pragma once
#include <stdatomic.h>
#include "block/block_source.h"

struct fake_series {
	struct labels labels; /* sorted */
	struct chunk *chunks;
	size_t n_chunks;
	struct interval *deleted;
	size_t n_deleted;
};

struct fake_source {
	struct source base;
	struct fake_series *v; /* sorted by fake_source_init */
	size_t n;
	size_t fail_at; /* the next() that fails, from 1; 0 = none */
	errc fail_code;
	atomic_size_t releases, opened, closed;
};

/* v is borrowed, and sorted by labels in place. */
void fake_source_init(struct fake_source *f, struct fake_series *v, size_t n);
