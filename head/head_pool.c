/* head/head_pool.c - small memory that lives as long as its owner: a part of a window, a shard's series, the symbols.
 *
 * Size classes 16, 24, 32, 48, 64, 96 ...: a piece wastes a third at most. Above 49,152 bytes each is malloc's own. Freed pieces are used again for the same class, in
 * a small pool also for smaller ones: thousands of small windows are where waste adds up. The blocks go back all at once. A block is an eighth of what is held,
 * a kilobyte at least and 2 MiB at most. held_bytes counts what was given: it is what the memory limit is held against.
 *
 * What is large is mapped by itself: it goes back to the system when it is freed, and leaves no holes among small things when a table has outgrown it. From 2 MiB on
 * it asks for huge pages: a head of a million series is met at random, and with small pages each step would first wait for where its page is.
 */
#include "head/head_int.h"

struct pool_block {
	struct pool_block *next;
	size_t n;
};

struct pool_big {
	struct pool_big *prev, *next;
	size_t n;
};

enum { POOL_BLOCK_MIN = 1024, POOL_BLOCK_MAX = 2 << 20, POOL_CUT_UP_MAX = 64 * 1024, MALLOC_OVERHEAD = 16, LARGE_MIN = 256 * 1024 };

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

/* ---- large memory ---- */

/* What io_memory takes. */
static size_t large_size(size_t n)
{
	size_t unit = n >= IO_HUGE_BYTES ? IO_HUGE_BYTES : 4096;
	return (n + unit - 1) / unit * unit;
}

void *head_table_alloc(size_t n, size_t size)
{
	size_t bytes = n * size;
	return bytes < LARGE_MIN ? calloc(n, size) : io_memory(large_size(bytes));
}

void head_table_free(void *v, size_t n, size_t size)
{
	if (v && n * size >= LARGE_MIN)
		io_memory_free(v, large_size(n * size));
	else
		free(v);
}

static bool more(struct head_pool *p, size_t need)
{
	if (cut_up(p, need))
		return true;
	size_t n = p->held_bytes / 8;
	n = n < POOL_BLOCK_MIN ? POOL_BLOCK_MIN : n > POOL_BLOCK_MAX / 2 ? POOL_BLOCK_MAX : n;
	if (n < need + sizeof(struct pool_block))
		n = need + sizeof(struct pool_block);
	struct pool_block *b;
	if (n < LARGE_MIN) {
		n = (n + 511) / 512 * 512 - MALLOC_OVERHEAD;
		if (n < need + sizeof(struct pool_block))
			n += 512;
		b = malloc(n);
	} else {
		n = large_size(n);
		b = io_memory(n);
	}
	if (!b)
		return false;
	use_up(p);
	*b = (struct pool_block){.next = p->blocks, .n = n};
	p->blocks = b;
	p->at = (uint8_t *)(b + 1);
	p->left = n - sizeof *b;
	held_add(p, n < LARGE_MIN ? n + MALLOC_OVERHEAD : n);
	return true;
}

void *head_pool_take(struct head_pool *p, size_t n)
{
	size_t skip = (64 - (uintptr_t)p->at % 64) % 64;
	if (p->left < n + skip) {
		if (!more(p, n + 64))
			return NULL;
		skip = (64 - (uintptr_t)p->at % 64) % 64;
	}
	uint8_t *v = p->at + skip;
	p->at = v + n;
	p->left -= n + skip;
	return v;
}

/* What alloc makes for a piece above the classes, with its header. */
static size_t big_size(size_t n)
{
	n += sizeof(struct pool_big);
	return n < LARGE_MIN ? n + MALLOC_OVERHEAD : large_size(n);
}

static void big_free(struct pool_big *b)
{
	if (sizeof *b + b->n < LARGE_MIN)
		free(b);
	else
		io_memory_free(b, big_size(b->n));
}

void *head_pool_alloc(struct head_pool *p, size_t n)
{
	uint32_t c = class_of(n);
	if (UNLIKELY(c >= POOL_CLASSES)) {
		if (n > SIZE_MAX / 4)
			return NULL;
		n = class_size(c);
		struct pool_big *b = sizeof *b + n < LARGE_MIN ? malloc(sizeof *b + n) : io_memory(big_size(n));
		if (!b)
			return NULL;
		*b = (struct pool_big){.next = p->bigs, .n = n};
		if (p->bigs)
			p->bigs->prev = b;
		p->bigs = b;
		held_add(p, big_size(n));
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
		held_sub(p, big_size(b->n));
		big_free(b);
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
		if (b->n < LARGE_MIN)
			free(b);
		else
			io_memory_free(b, b->n);
	}
	while (p->bigs) {
		struct pool_big *b = p->bigs;
		p->bigs = b->next;
		big_free(b);
	}
	if (p->held_bytes)
		held_sub(p, p->held_bytes);
	head_pool_init(p, p->total, p->total2);
}
