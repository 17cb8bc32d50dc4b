/* fuzz: needs proto */
/* Remote write 2.0: the input as a protobuf body, held against protobuf-c; and as a snappy body that is decoded if it is one. */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "tests/support/oracle_write.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void judge(struct span body)
{
	static const struct rw_limits limits = {1000, 10000, 64};
	char why[ERR_MSG_BYTES + 100];
	if (oracle_write2_compare(body, &limits, why, sizeof why) == ORACLE_DIFFER) {
		fprintf(stderr, "%s\n", why);
		abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct span in = span_of(data, size), body;
	struct arena arena;
	judge(in);
	arena_init(&arena, 4 * MIB);
	if (snappy_decode(in, MIB, &arena, &body, NULL) == OK)
		judge(body);
	arena_free(&arena);
	return 0;
}
