/* block/block_matcher.h - label matchers with Prometheus' meaning: = != =~ !~, regexes anchored at both ends, "." matches newline,
 * a missing label is the empty value.
 *
 * Literals, prefixes and sets ("a|b|c") are found at compile time and never run the regex engine; the rest is RE2 in one C++ file
 * (block_regex.cc), linear time. Threads: compiled matchers are read-only, any thread may match.
 */
#pragma once
#include "base/arena.h"
#include "base/err.h"
#include "base/labels.h"

enum matcher_type { MATCH_EQ, MATCH_NEQ, MATCH_RE, MATCH_NRE }; /* numbers of remote read */

struct regex; /* block_regex.cc */

struct matcher {
	enum matcher_type type;
	struct span name;
	struct span value;
	/* compiled */
	bool matches_empty;	/* a series without the label matches */
	const struct span *set; /* RE/NRE: the pattern is exactly one of these literals, sorted; NULL = not a set */
	size_t n_set;
	struct span prefix;   /* RE/NRE: every match begins with this; may be empty */
	bool prefix_rest_any; /* the pattern is prefix.* (or .+ with rest_nonempty): no regex needed */
	bool rest_nonempty;
	struct regex *re; /* NULL when not needed; freed by matchers_free */
};

/* Copies name and value into the arena. ERR_INVALID: a pattern that does not compile (message has the reason and the pattern);
 * ERR_LIMIT: LIMIT_QUERY_REGEX_BYTES. */
CHECKED errc matcher_init(struct matcher *m, enum matcher_type type, struct span name, struct span value, struct arena *arena, struct err *err);
bool matcher_matches(const struct matcher *m, struct span value);
void matchers_free(struct matcher *m, size_t n); /* the regexes; arrays belong to their arena */

/* All matchers hold for the set (missing label = ""). */
bool matchers_match_labels(const struct matcher *m, size_t n, struct labels l);

/* Parses a series selector as match[] has it: name, {a="b",c!~"d"}, name{...}, {"utf8 name", "x.y"="z"}; quotes ", ', `; Go escapes.
 * At least one matcher must not match the empty string, as Prometheus demands. ERR_INVALID with position. */
CHECKED errc matchers_parse(struct span text, struct arena *arena, struct matcher **out, size_t *n, struct err *err);
