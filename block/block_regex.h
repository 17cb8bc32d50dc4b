/* block/block_regex.h - the regex engine behind C: RE2, with the meaning of Go's regexp as Prometheus uses it.
 *
 * Anchored at both ends, "." matches newline, linear time, bounded memory. Text is UTF-8; where Go lets "." match a byte that is
 * not UTF-8, RE2 does not: labels are checked to be UTF-8 when they come in.
 */
#pragma once
#include <stddef.h>
#include <stdbool.h>
#ifdef __cplusplus
extern "C" {
#endif

struct regex;

/* NULL: `why` says what is wrong with the pattern. */
struct regex *regex_compile(const char *pattern, size_t n, char *why, size_t why_size);
/* Any thread. */
bool regex_matches(const struct regex *re, const char *text, size_t n);
void regex_free(struct regex *re);

#ifdef __cplusplus
}
#endif
