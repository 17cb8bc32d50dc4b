/* base/base_arena.c - a chain of blocks, newest first, each bumped from the front. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/arena.h"

enum { BLOCK_MIN_BYTES = 4096, BLOCK_MAX_BYTES = 1 << 20 };

struct arena_block {
	struct arena_block *next;
	size_t size; /* bytes behind the header */
	size_t used;
};

void arena_init(struct arena *a, size_t max_bytes)
{
	*a = (struct arena){.max_bytes = max_bytes};
}

static uint8_t *block_bytes(struct arena_block *b)
{
	return (uint8_t *)(b + 1);
}

static struct arena_block *block_new(struct arena *a, size_t size)
{
	struct arena_block *b = malloc(sizeof *b + size);
	if (!b)
		return NULL;
	b->size = size;
	b->used = 0;
	a->held_bytes += sizeof *b + size;
	return b;
}

void *arena_alloc(struct arena *a, size_t n)
{
	if (n > a->max_bytes)
		return NULL;
	n = n ? (n + 7) & ~(size_t)7 : 8;
	if (n > a->max_bytes - a->used_bytes)
		return NULL;
	struct arena_block *b = a->head;
	if (!b || b->size - b->used < n) {
		size_t size = b ? b->size * 2 : BLOCK_MIN_BYTES - sizeof *b;
		if (size > BLOCK_MAX_BYTES)
			size = BLOCK_MAX_BYTES;
		if (n > size / 4 && n > BLOCK_MIN_BYTES) {
			/* A large piece gets its own block, behind the open one, which stays open. */
			struct arena_block *own = block_new(a, n);
			if (!own)
				return NULL;
			own->used = n;
			if (b) {
				own->next = b->next;
				b->next = own;
			} else {
				own->next = NULL;
				a->head = own;
			}
			a->used_bytes += n;
			return block_bytes(own);
		}
		b = block_new(a, size < n ? n : size);
		if (!b)
			return NULL;
		b->next = a->head;
		a->head = b;
	}
	void *p = block_bytes(b) + b->used;
	b->used += n;
	a->used_bytes += n;
	return p;
}

void *arena_calloc(struct arena *a, size_t count, size_t size)
{
	size_t n;
	if (__builtin_mul_overflow(count, size, &n))
		return NULL;
	void *p = arena_alloc(a, n);
	return p ? memset(p, 0, n) : NULL;
}

struct span arena_dup(struct arena *a, struct span s)
{
	char *p = arena_alloc(a, s.n);
	if (!p)
		return (struct span){NULL, 0};
	if (s.n)
		memcpy(p, s.p, s.n);
	return (struct span){p, s.n};
}

char *arena_cstr(struct arena *a, struct span s)
{
	if (s.n == SIZE_MAX)
		return NULL;
	char *p = arena_alloc(a, s.n + 1);
	if (!p)
		return NULL;
	if (s.n)
		memcpy(p, s.p, s.n);
	p[s.n] = 0;
	return p;
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
	va_list ap, again;
	va_start(ap, fmt);
	va_copy(again, ap);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	char *p = n < 0 ? NULL : arena_alloc(a, (size_t)n + 1);
	if (p)
		vsnprintf(p, (size_t)n + 1, fmt, again);
	va_end(again);
	return p;
}

void arena_reset(struct arena *a)
{
	struct arena_block *keep = NULL;
	for (struct arena_block *b = a->head, *next; b; b = next) {
		next = b->next;
		if (b->size <= BLOCK_MAX_BYTES && (!keep || b->size > keep->size)) {
			free(keep);
			keep = b;
		} else {
			free(b);
		}
	}
	a->head = keep;
	a->used_bytes = 0;
	a->held_bytes = 0;
	if (keep) {
		keep->next = NULL;
		keep->used = 0;
		a->held_bytes = sizeof *keep + keep->size;
	}
}

void arena_free(struct arena *a)
{
	for (struct arena_block *b = a->head, *next; b; b = next) {
		next = b->next;
		free(b);
	}
	a->head = NULL;
	a->used_bytes = 0;
	a->held_bytes = 0;
}
