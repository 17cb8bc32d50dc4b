/* block/block_regex.cc - RE2 behind block_regex.h, and the two places where its syntax is not Go's. */
#include <re2/re2.h>
#include <cstdio>
#include <new>
#include <string>
#include "base/limits.h"
#include "block/block_regex.h"

struct regex {
	RE2 re;
	regex(const re2::StringPiece &pattern, const RE2::Options &options) : re(pattern, options)
	{
	}
};

/* Go has no \C and writes a named group as (?<name>...) too; a \Q left open swallows the parenthesis that Prometheus puts behind a
 * pattern. Everything else of the two syntaxes is the same. Returns what is wrong, or NULL. */
static const char *pattern_from_go(const char *p, size_t n, std::string *out)
{
	bool quoted = false; /* \Q ... \E */
	bool in_class = false;
	size_t class_start = 0;
	for (size_t i = 0; i < n; i++) {
		if (p[i] == '\\' && i + 1 < n) {
			if (quoted) {
				quoted = p[i + 1] != 'E';
			} else {
				if (p[i + 1] == 'C')
					return "invalid escape sequence: \\C";
				quoted = p[i + 1] == 'Q' && !in_class;
			}
			/* inside \Q, a backslash that begins no \E stands for itself: the byte after it may begin one */
			out->push_back(p[i]);
			if (!quoted || p[i + 1] == 'Q')
				out->push_back(p[++i]);
			continue;
		}
		if (!quoted && in_class) {
			if (p[i] == ']' && i > class_start) { /* a first ']' is a member */
				in_class = false;
			} else if (p[i] == '[' && i + 1 < n && p[i + 1] == ':') { /* [:alpha:] ends at its own ']' */
				size_t end = i + 2;
				while (end + 1 < n && p[end] != ':' && p[end] != ']')
					end++;
				if (end + 1 < n && p[end] == ':' && p[end + 1] == ']') {
					out->append(p + i, end + 1 - i);
					i = end + 1;
				}
			}
		} else if (!quoted && p[i] == '[') {
			in_class = true;
			class_start = i + 1;
			if (class_start < n && p[class_start] == '^')
				class_start++;
		}
		out->push_back(p[i]);
		if (!quoted && !in_class && p[i] == '(' && i + 3 < n && p[i + 1] == '?' && p[i + 2] == '<' && p[i + 3] != '=' && p[i + 3] != '!') {
			out->append("?P");
			i++;
		}
	}
	return quoted ? "missing \\E" : nullptr;
}

struct regex *regex_compile(const char *pattern, size_t n, char *why, size_t why_size)
{
	RE2::Options options;
	options.set_dot_nl(true);
	options.set_log_errors(false);
	options.set_max_mem(LIMIT_QUERY_REGEX_MEMORY_BYTES);
	std::string text;
	text.reserve(n + 16);
	const char *fault = pattern_from_go(pattern, n, &text);
	if (fault != nullptr) {
		std::snprintf(why, why_size, "%s", fault);
		return nullptr;
	}
	struct regex *re = new (std::nothrow) regex(text, options);
	if (re == nullptr) {
		std::snprintf(why, why_size, "out of memory");
		return nullptr;
	}
	if (!re->re.ok()) {
		std::snprintf(why, why_size, "%s", re->re.error().c_str());
		delete re;
		return nullptr;
	}
	return re;
}

bool regex_matches(const struct regex *re, const char *text, size_t n)
{
	return RE2::FullMatch(re2::StringPiece(text, n), re->re);
}

void regex_free(struct regex *re)
{
	delete re;
}
