/* fuzz: needs net */
/* A name service's answer to a question for SRV records. */
#include <stdlib.h>
#include "net/net_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arena a;
	struct net_found f;
	arena_init(&a, 4 * MIB);
	if (net_srv_read("x", data, size, &a, &f, NULL) == OK)
		for (size_t i = 0; i < f.n; i++)
			if (f.v[i].n < 3 || !memchr(f.v[i].p, ':', f.v[i].n))
				abort();
	arena_free(&a);
	return 0;
}
