/* base/base_span.c - judging text. */
#include "base/span.h"

/* Eight bytes at a time, the last ones twice where they overlap. */
static bool is_ascii(const uint8_t *p, size_t n)
{
	uint64_t high = 0, w = 0;
	if (n < 8) {
		for (size_t i = 0; i < n; i++)
			high |= p[i];
		return high < 0x80;
	}
	for (size_t i = 0; i + 8 < n; i += 8) {
		memcpy(&w, p + i, 8);
		high |= w;
	}
	memcpy(&w, p + n - 8, 8);
	return ((high | w) & UINT64_C(0x8080808080808080)) == 0;
}

/* Table-free validation by the ranges of RFC 3629, section 4. */
bool span_is_utf8(struct span s)
{
	const uint8_t *p = (const uint8_t *)s.p, *end = p + s.n;
	if (is_ascii(p, s.n))
		return true;
	while (p < end) {
		if (end - p >= 8) {
			uint64_t w;
			memcpy(&w, p, 8);
			if ((w & UINT64_C(0x8080808080808080)) == 0) {
				p += 8;
				continue;
			}
		}
		uint8_t c = *p++;
		if (c < 0x80)
			continue;
		uint8_t lo = 0x80, hi = 0xbf;
		int more;
		if (c >= 0xc2 && c <= 0xdf) {
			more = 1;
		} else if (c >= 0xe0 && c <= 0xef) {
			more = 2;
			if (c == 0xe0)
				lo = 0xa0;
			else if (c == 0xed)
				hi = 0x9f;
		} else if (c >= 0xf0 && c <= 0xf4) {
			more = 3;
			if (c == 0xf0)
				lo = 0x90;
			else if (c == 0xf4)
				hi = 0x8f;
		} else {
			return false;
		}
		if (end - p < more || *p < lo || *p > hi)
			return false;
		for (int i = 1; i < more; i++)
			if ((p[i] & 0xc0) != 0x80)
				return false;
		p += more;
	}
	return true;
}

bool span_to_i64(struct span s, int64_t *out)
{
	size_t i = 0;
	bool negative = s.n > 0 && s.p[0] == '-';
	if (negative)
		i = 1;
	if (i == s.n)
		return false;
	uint64_t u = 0;
	const uint64_t max = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX;
	for (; i < s.n; i++) {
		uint64_t d = (uint64_t)(uint8_t)s.p[i] - '0';
		if (d > 9 || u > (max - d) / 10)
			return false;
		u = u * 10 + d;
	}
	*out = negative ? (int64_t)(0 - u) : (int64_t)u;
	return true;
}
