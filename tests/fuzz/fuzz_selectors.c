/* fuzz: needs query */
/* Any text as an expression: its selectors, or a refusal that says where. What is taken is taken again with blanks around it, with as many selectors. */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "query/query_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool take(struct span text, size_t *n, size_t *matchers)
{
	struct arena a;
	struct matcher_set *sets = NULL;
	struct err err = {0};
	*n = *matchers = 0;
	arena_init(&a, 256 * MIB);
	errc rc = selectors_of(text, &a, &sets, n, &err);
	for (size_t i = 0; rc == OK && i < *n; i++)
		*matchers += sets[i].n;
	if (rc == OK)
		matcher_sets_free(sets, *n);
	else if (!err.msg[0] || (rc != ERR_INVALID && rc != ERR_LIMIT && rc != ERR_NOMEM))
		abort();
	arena_free(&a);
	return rc == OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t n, matchers, n2, matchers2;
	size_t depth = 0;
	for (size_t i = 0; i < size; i++)
		depth += data[i] == '(';
	if (size > 4096 || depth > 400 || !take(span_of(data, size), &n, &matchers))
		return 0;
	char *wide = malloc(size + 8);
	if (!wide)
		return 0;
	wide[0] = '(';
	memcpy(wide + 1, data, size);
	memcpy(wide + 1 + size, "\n)", 2);
	if (!take(span_of(wide, size + 3), &n2, &matchers2) || n2 != n || matchers2 != matchers)
		abort();
	free(wide);
	return 0;
}
