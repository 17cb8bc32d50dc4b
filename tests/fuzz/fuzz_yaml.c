/* fuzz: needs base */
/* tests/fuzz/fuzz_yaml.c - configuration text: parsed or refused with a message that names file and line, never more memory than the
 * arena's limit; what was parsed can be read in every typed way. */
#include <stdlib.h>
#include "base/config.h"
#include "base/limits.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void walk(const struct yaml *y, int depth)
{
	struct err err = {0};
	ASSERT(depth <= LIMIT_YAML_DEPTH + 1 && y->line >= 1);
	if (y->kind == YAML_SCALAR) {
		ASSERT(strlen(y->scalar.p) == y->scalar.n);
	} else if (y->kind == YAML_LIST) {
		for (size_t i = 0; i < y->n; i++)
			walk(y->items[i], depth + 1);
	} else {
		static const char *const keys[] = {"type", "config", "prefix"};
		(void)!yaml_only("fuzz", y, "here", keys, 3, &err);
		for (size_t i = 0; i < y->n && i < 64; i++) {
			const char *key = y->pairs[i].key.p, *s;
			bool b;
			uint64_t u;
			int64_t ms;
			if (strlen(key) != y->pairs[i].key.n)
				continue;
			(void)!yaml_string("fuzz", y, key, &s, &err);
			(void)!yaml_bool("fuzz", y, key, &b, &err);
			(void)!yaml_size("fuzz", y, key, &u, &err);
			(void)!yaml_duration_ms("fuzz", y, key, &ms, &err);
		}
		for (size_t i = 0; i < y->n; i++)
			walk(y->pairs[i].value, depth + 1);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct arena a;
	struct err err = {0};
	struct yaml *y = NULL;
	arena_init(&a, 8 << 20);
	if (yaml_parse("fuzz", span_of(data, n), &a, &y, &err) == OK)
		walk(y, 0);
	else
		ASSERT(err.code != OK && strncmp(err.msg, "fuzz", 4) == 0);
	ASSERT(a.used_bytes <= a.max_bytes);
	arena_free(&a);
	return 0;
}
