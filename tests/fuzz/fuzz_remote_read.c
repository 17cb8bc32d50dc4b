/* fuzz: needs proto */
/* Remote read requests, and the headers of a write request. */
#include "base/limits.h"
#include "proto/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arena arena;
	struct rr_request r;
	struct err err = {0};
	arena_init(&arena, 4 * MIB);
	errc rc = rr_decode(span_of(data, size), &arena, &r, &err);
	ASSERT(rc == OK || rc == ERR_NOMEM || err.id);
	if (rc == OK)
		for (size_t i = 0; i < r.n_queries; i++)
			for (size_t k = 0; k < r.queries[i].n_matchers; k++)
				ASSERT(r.queries[i].matchers[k].name.p && r.queries[i].matchers[k].value.p);
	arena_free(&arena);
	enum rw_version v;
	size_t half = size / 2;
	rc = rw_negotiate(span_of(data, half), span_of(data + half, size - half), &v, NULL);
	ASSERT((rc == OK) == (v != RW_NONE));
	return 0;
}
