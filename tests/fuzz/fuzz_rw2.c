/* fuzz: needs proto */
/* Remote write 2.0: the input as a protobuf body, held against protobuf-c; and as a snappy body that is decoded if it is one. What histograms it holds are judged:
 * those that are valid stay so, and are of a schema that is stored. */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "tests/support/oracle_write.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct rw_limits limits = {1000, 10000, 64};

static void histograms(struct span body)
{
	struct arena arena;
	struct rw_request rw;
	arena_init(&arena, 64 * MIB);
	if (rw2_decode(body, &limits, &arena, &rw, NULL) == OK)
		for (size_t i = 0; i < rw.n_hists; i++) {
			struct histogram *h = &rw.hists[i].h;
			if (histogram_judge(rw.hists[i].kind, h, &arena, NULL) != OK)
				continue;
			struct histogram again = *h;
			struct buf a;
			buf_init(&a, 64 * MIB);
			histogram_canonical(rw.hists[i].kind, h, &a);
			if (h->schema > HIST_SCHEMA_MAX || histogram_judge(rw.hists[i].kind, &again, &arena, NULL) != OK ||
				again.pos_spans != h->pos_spans)
				abort();
			buf_free(&a);
		}
	arena_free(&arena);
}

static void judge(struct span body)
{
	char why[ERR_MSG_BYTES + 100];
	if (oracle_write2_compare(body, &limits, why, sizeof why) == ORACLE_DIFFER) {
		fprintf(stderr, "%s\n", why);
		abort();
	}
	histograms(body);
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
