/* tests/support/fail_alloc.c - the wrapped allocators: see fail_alloc.h. */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include "tests/support/fail_alloc.h"

static _Atomic uint64_t seen, fail_from = UINT64_MAX, failed;
static _Atomic bool fail_on;
static __thread int paused;

void fail_alloc_at(uint64_t nth, bool sticky)
{
	atomic_store(&seen, 0);
	atomic_store(&failed, 0);
	atomic_store(&fail_from, nth);
	atomic_store(&fail_on, sticky);
}

uint64_t fail_alloc_off(void)
{
	atomic_store(&fail_from, UINT64_MAX);
	return atomic_load(&failed);
}

uint64_t fail_alloc_count(void)
{
	return atomic_load(&seen);
}

void fail_alloc_pause(void)
{
	paused++;
}

void fail_alloc_resume(void)
{
	paused--;
}

static bool must_fail(void)
{
	uint64_t from = atomic_load_explicit(&fail_from, memory_order_relaxed);
	if (from == UINT64_MAX || paused)
		return false;
	uint64_t n = atomic_fetch_add(&seen, 1) + 1;
	if (n != from && !(n > from && atomic_load(&fail_on)))
		return false;
	atomic_fetch_add(&failed, 1);
	errno = ENOMEM;
	return true;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
int __real_posix_memalign(void **p, size_t align, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);
int __wrap_posix_memalign(void **p, size_t align, size_t n);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);

void *__wrap_malloc(size_t n)
{
	return must_fail() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t count, size_t size)
{
	return must_fail() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *p, size_t n)
{
	return must_fail() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t align, size_t n)
{
	return must_fail() ? NULL : __real_aligned_alloc(align, n);
}

int __wrap_posix_memalign(void **p, size_t align, size_t n)
{
	return must_fail() ? ENOMEM : __real_posix_memalign(p, align, n);
}

char *__wrap_strndup(const char *s, size_t n)
{
	size_t len = strnlen(s, n);
	char *p = __wrap_malloc(len + 1);
	if (!p)
		return NULL;
	memcpy(p, s, len);
	p[len] = 0;
	return p;
}

char *__wrap_strdup(const char *s)
{
	return __wrap_strndup(s, strlen(s));
}
