/* base/span.h - a borrowed run of bytes, and the text of it.
 *
 * A span owns nothing. A span into a receive buffer never outlives the request; what is kept is copied into the keeper's
 * arena (base/arena.h). A function that keeps one says so.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <string.h>

struct span {
	const char *p;
	size_t n;
};

#define SPAN(literal) ((struct span){(literal), sizeof(literal) - 1})
/* printf("%.*s", SPAN_ARG(s)) */
#define SPAN_ARG(s) (int)((s).n > 4096 ? 4096 : (s).n), (s).p

static inline struct span span_of(const void *p, size_t n)
{
	return (struct span){(const char *)p, n};
}

static inline struct span span_cstr(const char *s)
{
	return (struct span){s, strlen(s)};
}

static inline bool span_eq(struct span a, struct span b)
{
	return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static inline bool span_is(struct span a, const char *s)
{
	return span_eq(a, span_cstr(s));
}

/* Unsigned byte order, the shorter first when one is a prefix: the order of Prometheus' symbols and labels. */
static inline int span_cmp(struct span a, struct span b)
{
	size_t n = a.n < b.n ? a.n : b.n;
	int c = n ? memcmp(a.p, b.p, n) : 0;
	if (c != 0)
		return c;
	return (a.n > b.n) - (a.n < b.n);
}

static inline bool span_has_prefix(struct span s, struct span prefix)
{
	return s.n >= prefix.n && (prefix.n == 0 || memcmp(s.p, prefix.p, prefix.n) == 0);
}

/* Well-formed UTF-8 as Go's unicode/utf8 sees it (no surrogates, no overlong forms, at most U+10FFFF). */
bool span_is_utf8(struct span s);

/* Decimal int64 without sign tricks or white space; false when it is not one or does not fit. */
bool span_to_i64(struct span s, int64_t *out);
