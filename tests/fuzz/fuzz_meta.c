/* fuzz: needs block */
/* meta.json: what parses is written, parses again and is written the same. */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arena a;
	struct block_meta m, again;
	struct buf first, second;
	struct err err = {0};
	arena_init(&a, 64 * MIB);
	buf_init(&first, 64 * MIB);
	buf_init(&second, 64 * MIB);
	if (block_meta_parse("fuzz", span_of(data, size), &a, &m, &err) == OK && block_meta_write(&m, &first) == OK) {
		if (block_meta_parse("written", span_of(first.p, first.n), &a, &again, &err) || block_meta_write(&again, &second)) {
			fprintf(stderr, "%s\n%.*s\n", err.msg, (int)first.n, (const char *)first.p);
			abort();
		}
		if (!span_eq(span_of(first.p, first.n), span_of(second.p, second.n))) {
			fprintf(stderr, "%.*s\n%.*s\n", (int)first.n, (const char *)first.p, (int)second.n, (const char *)second.p);
			abort();
		}
	}
	buf_free(&first);
	buf_free(&second);
	arena_free(&a);
	return 0;
}
