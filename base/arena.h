/* base/arena.h - memory by lifespan: everything of one request, query or job is freed in one step.
 *
 * Blocks double from 4 KiB up to 1 MiB; larger pieces get a block of their own. Not thread-safe: one owner at a time.
 * Every arena is born with its maximum, so nothing from outside sizes memory unchecked.
 */
#pragma once
#include "base/err.h"
#include "base/span.h"

struct arena_block;

struct arena {
	struct arena_block *head; /* newest block; NULL = nothing allocated */
	size_t used_bytes;	  /* handed out, rounded up to 8 */
	size_t held_bytes;	  /* asked from malloc */
	size_t max_bytes;	  /* used_bytes never passes this */
};

void arena_init(struct arena *a, size_t max_bytes);

/* n bytes aligned to 8, not zeroed; NULL when malloc fails or max_bytes would be passed. n == 0 gives a valid pointer. */
void *arena_alloc(struct arena *a, size_t n);
void *arena_calloc(struct arena *a, size_t count, size_t size); /* checks the product; zeroed */

/* Copies; p == NULL in the answer means out of memory (an empty span gives a non-NULL p). */
struct span arena_dup(struct arena *a, struct span s);
char *arena_cstr(struct arena *a, struct span s);
char *arena_printf(struct arena *a, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Frees everything but the largest regular block, for the next request of the same owner. */
void arena_reset(struct arena *a);
/* Frees everything; the arena may be used again. */
void arena_free(struct arena *a);
