/* base/base_bytes.c - the slow paths of the byte codecs, the growing buffer, CRC-32C. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <isa-l/crc.h>
#include "base/bytes.h"

uint64_t rd_uvarint_slow(struct rd *r)
{
	uint64_t x = 0;
	for (unsigned shift = 0; shift < 70 && r->p < r->end; shift += 7) {
		uint8_t b = *r->p++;
		/* The tenth byte holds one bit: more would not fit 64. */
		if (shift == 63 && b > 1)
			break;
		x |= (uint64_t)(b & 0x7f) << shift;
		if (b < 0x80)
			return x;
	}
	r->ok = false;
	r->p = r->end;
	return 0;
}

void buf_init(struct buf *b, size_t max_bytes)
{
	*b = (struct buf){.max = max_bytes};
}

void buf_free(struct buf *b)
{
	free(b->p);
	*b = (struct buf){.max = b->max};
}

bool buf_reserve(struct buf *b, size_t n)
{
	if (LIKELY(!b->failed && n <= b->cap - b->n))
		return true;
	if (b->failed)
		return false;
	if (n > b->max || b->n > b->max - n) {
		b->failed = true;
		return false;
	}
	size_t cap = b->cap < 256 ? 256 : b->cap * 2;
	if (cap < b->n + n)
		cap = b->n + n;
	if (cap > b->max)
		cap = b->max;
	uint8_t *p = realloc(b->p, cap);
	if (!p) {
		b->failed = true;
		return false;
	}
	b->p = p;
	b->cap = cap;
	return true;
}

void buf_put(struct buf *b, const void *p, size_t n)
{
	if (n && buf_reserve(b, n)) {
		memcpy(b->p + b->n, p, n);
		b->n += n;
	}
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list ap, again;
	va_start(ap, fmt);
	va_copy(again, ap);
	int n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	/* One byte more for the NUL that vsnprintf writes; it is not counted. */
	if (n >= 0 && buf_reserve(b, (size_t)n + 1)) {
		vsnprintf((char *)b->p + b->n, (size_t)n + 1, fmt, again);
		b->n += (size_t)n;
	}
	va_end(again);
}

uint32_t crc32c(uint32_t crc, const void *p, size_t n)
{
	const uint8_t *bytes = p;
	crc = ~crc;
	/* isa-l takes an int length. */
	while (n > 0) {
		size_t part = n < ((size_t)1 << 30) ? n : (size_t)1 << 30;
		crc = crc32_iscsi((unsigned char *)(uintptr_t)bytes, (int)part, crc);
		bytes += part;
		n -= part;
	}
	return ~crc;
}
