/* base/ulid.h - block and window identifiers: 48 bits of milliseconds, 80 random bits, 26 Crockford base32 characters.
 *
 * Source: https://github.com/ulid/spec, as Prometheus names its blocks. Comparison of the bytes is comparison by time.
 */
#pragma once
#include "base/err.h"
#include "base/span.h"

enum { ULID_TEXT_BYTES = 26 };

struct ulid {
	uint8_t b[16];
};

/* From the clock and random source of base/io.h; two calls in one process never give the same. Any thread. */
struct ulid ulid_new(void);
int64_t ulid_time_ms(struct ulid u);
bool ulid_is_zero(struct ulid u);

static inline int ulid_cmp(struct ulid a, struct ulid b)
{
	return memcmp(a.b, b.b, 16);
}

static inline bool ulid_eq(struct ulid a, struct ulid b)
{
	return memcmp(a.b, b.b, 16) == 0;
}

struct ulid_text {
	char s[ULID_TEXT_BYTES + 1];
};

/* printf("%s", ulid_text(u).s) */
struct ulid_text ulid_text(struct ulid u);

/* Exactly 26 upper-case characters of the alphabet, the first 0-7; anything else is false. */
bool ulid_parse(struct span s, struct ulid *out);
