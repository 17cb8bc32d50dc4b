/* head/head_pool.c - small memory that lives as long as its owner: a part of a window, a shard's series, the symbols.
 *
 * Size classes 16, 24, 32, 48, 64, 96 ...: a piece wastes a third at most. Above 49,152 bytes each is malloc's own. Freed pieces are used again for the same class, in
 * a small pool also for smaller ones: thousands of small windows are where waste adds up. The blocks go back to malloc all at once. A block is an
 * eighth of what is held and a kilobyte at least, so a window of a million series loses 12 % at its edge. held_bytes counts what
 * malloc gave: it is what the memory limit is held against.
 */
#include <sys/mman.h>
#include "head/head_int.h"

struct pool_block {
	struct pool_block *next;
	size_t n;
};

struct pool_big {
	struct pool_big *prev, *next;
	size_t n;
};

enum { POOL_BLOCK_MIN = 1024, POOL_BLOCK_MAX = 1 << 20, POOL_CUT_UP_MAX = 64 * 1024, MALLOC_OVERHEAD = 16, POOL_POPULATE_MIN = 256 * 1024 };

static size_t class_size(uint32_t c)
{
	return (size_t)(c & 1 ? 24 : 16) << (c >> 1);
}

static uint32_t class_of(size_t n)
{
	if (n <= 16)
		return 0;
	uint32_t k = 63 - (uint32_t)__builtin_clzll(n - 1);
	return 2 * (k - 4) + (n <= (size_t)3 << (k - 1) ? 1 : 2);
}

size_t head_pool_round(size_t n)
{
	return class_size(class_of(n));
}

void head_pool_init(struct head_pool *p, _Atomic uint64_t *total, _Atomic uint64_t *total2)
{
	*p = (struct head_pool){.total = total, .total2 = total2};
}

static void held_add(struct head_pool *p, size_t n)
{
	p->held_bytes += n;
	atomic_fetch_add_explicit(p->total, n, memory_order_relaxed);
	if (p->total2)
		atomic_fetch_add_explicit(p->total2, n, memory_order_relaxed);
}

static void held_sub(struct head_pool *p, size_t n)
{
	p->held_bytes -= n;
	atomic_fetch_sub_explicit(p->total, n, memory_order_relaxed);
	if (p->total2)
		atomic_fetch_sub_explicit(p->total2, n, memory_order_relaxed);
}

/* What is left of the current block becomes free pieces. */
static void use_up(struct head_pool *p)
{
	while (p->left >= 16) {
		uint32_t c = class_of(p->left);
		while (c >= POOL_CLASSES || class_size(c) > p->left)
			c--;
		*(void **)(void *)p->at = p->free[c];
		p->free[c] = p->at;
		p->at += class_size(c);
		p->left -= class_size(c);
	}
}

/* A small pool cuts up what its growing arrays gave back: a tenth of a window of a hundred series (tests/e2e/test_thousand_tenants.py). In a
 * large one that is no matter, and pieces keep their size. */
static bool cut_up(struct head_pool *p, size_t need)
{
	if (p->held_bytes >= POOL_CUT_UP_MAX)
		return false;
	for (uint32_t c = class_of(need) + 1; c < POOL_CLASSES; c++) {
		uint8_t *v = p->free[c];
		if (!v)
			continue;
		memcpy(&p->free[c], v, sizeof p->free[c]);
		use_up(p);
		p->at = v;
		p->left = class_size(c);
		return true;
	}
	return false;
}

/* One call brings the pages of memory that will soon be full, instead of a fault for each. */
static void populate(void *v, size_t n)
{
	if (n >= POOL_POPULATE_MIN)
		(void)madvise((void *)(((uintptr_t)v + 4095) / 4096 * 4096), (n - 4096) / 4096 * 4096, MADV_POPULATE_WRITE);
}

void *head_table_alloc(size_t n, size_t size)
{
	void *v = calloc(n, size);
	if (v)
		populate(v, n * size);
	return v;
}

static bool more(struct head_pool *p, size_t need)
{
	if (cut_up(p, need))
		return true;
	size_t n = p->held_bytes / 8;
	n = n < POOL_BLOCK_MIN ? POOL_BLOCK_MIN : n > POOL_BLOCK_MAX ? POOL_BLOCK_MAX : n;
	if (n < need + sizeof(struct pool_block))
		n = need + sizeof(struct pool_block);
	n = (n + 511) / 512 * 512 - MALLOC_OVERHEAD;
	if (n < need + sizeof(struct pool_block))
		n += 512;
	struct pool_block *b = malloc(n);
	if (!b)
		return false;
	populate(b, n);
	use_up(p);
	*b = (struct pool_block){.next = p->blocks, .n = n};
	p->blocks = b;
	p->at = (uint8_t *)(b + 1);
	p->left = n - sizeof *b;
	held_add(p, n + MALLOC_OVERHEAD);
	return true;
}

void *head_pool_alloc(struct head_pool *p, size_t n)
{
	uint32_t c = class_of(n);
	if (UNLIKELY(c >= POOL_CLASSES)) {
		n = n < SIZE_MAX / 4 ? class_size(c) : n;
		struct pool_big *b = n < SIZE_MAX / 4 ? malloc(sizeof *b + n) : NULL;
		if (!b)
			return NULL;
		*b = (struct pool_big){.next = p->bigs, .n = n};
		if (p->bigs)
			p->bigs->prev = b;
		p->bigs = b;
		held_add(p, sizeof *b + n + MALLOC_OVERHEAD);
		return b + 1;
	}
	void *v = p->free[c];
	if (v) {
		memcpy(&p->free[c], v, sizeof p->free[c]);
		return v;
	}
	size_t size = class_size(c);
	if (p->left < size && !more(p, size))
		return NULL;
	v = p->at;
	p->at += size;
	p->left -= size;
	return v;
}

void head_pool_free(struct head_pool *p, void *v, size_t n)
{
	if (!v)
		return;
	uint32_t c = class_of(n);
	if (UNLIKELY(c >= POOL_CLASSES)) {
		struct pool_big *b = (struct pool_big *)v - 1;
		if (b->prev)
			b->prev->next = b->next;
		else
			p->bigs = b->next;
		if (b->next)
			b->next->prev = b->prev;
		held_sub(p, sizeof *b + b->n + MALLOC_OVERHEAD);
		free(b);
		return;
	}
	memcpy(v, &p->free[c], sizeof p->free[c]);
	p->free[c] = v;
}

void head_pool_destroy(struct head_pool *p)
{
	while (p->blocks) {
		struct pool_block *b = p->blocks;
		p->blocks = b->next;
		free(b);
	}
	while (p->bigs) {
		struct pool_big *b = p->bigs;
		p->bigs = b->next;
		free(b);
	}
	if (p->held_bytes)
		held_sub(p, p->held_bytes);
	head_pool_init(p, p->total, p->total2);
}
