/* fuzz: needs block */
/* Series selectors, and patterns: first byte 'p' is a pattern, a newline and a text, and what the analysis says is what the engine says. */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_matcher.h"
#include "block/block_regex.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void selector(struct span text, struct arena *a)
{
	struct matcher *m;
	size_t n;
	if (matchers_parse(text, a, &m, &n, NULL))
		return;
	struct label l[2] = {{SPAN("__name__"), text}, {SPAN("a"), SPAN("b")}};
	(void)matchers_match_labels(m, n, (struct labels){l, 2});
	for (size_t i = 0; i < n; i++)
		if (matcher_matches(&m[i], SPAN("")) != m[i].matches_empty)
			abort();
	matchers_free(m, n);
}

static void pattern(struct span in, struct arena *a)
{
	const char *newline = memchr(in.p, '\n', in.n);
	size_t n = newline ? (size_t)(newline - in.p) : in.n;
	struct span text = newline ? span_of(newline + 1, in.n - n - 1) : SPAN("");
	struct matcher m;
	char why[200];
	errc rc = matcher_init(&m, MATCH_RE, SPAN("x"), span_of(in.p, n), a, NULL);
	struct regex *re = regex_compile(in.p, n, why, sizeof why);
	/* a set of literals may be too large for the engine, never the other way round */
	if (rc == ERR_INVALID && re)
		abort();
	if (rc == OK && !re && m.re)
		abort();
	/* where text is not UTF-8 the engine's "." is not Go's, and never meets it */
	if (rc == OK && re && span_is_utf8(text)) {
		bool want = regex_matches(re, text.p, text.n);
		if (matcher_matches(&m, text) != want) {
			fprintf(stderr, "the engine says %d\n", want);
			abort();
		}
	}
	if (re)
		regex_free(re);
	if (rc == OK)
		matchers_free(&m, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arena a;
	arena_init(&a, 64 * MIB);
	if (size > 0 && data[0] == 'p' && size < 2048)
		pattern(span_of(data + 1, size - 1), &a);
	else
		selector(span_of(data, size), &a);
	arena_free(&a);
	return 0;
}
