/* fuzz: needs block */
/* Chunk payloads: the first byte is the encoding. Both ways to read floats agree; histograms are what a reader says that shares nothing with this one. */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_chunk.h"
#include "tests/support/hist_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x)                                                                                                                                      \
	do {                                                                                                                                         \
		if (!(x)) {                                                                                                                          \
			fprintf(stderr, "%d: %s\n", __LINE__, #x);                                                                                   \
			abort();                                                                                                                     \
		}                                                                                                                                    \
	} while (0)

static void histogram_check(const struct chunk_point *p, struct buf *text)
{
	const struct histogram *h = p->h;
	uint64_t buckets = 0;
	for (uint32_t i = 0; i < h->n_pos_spans; i++)
		buckets += h->pos_spans[i].length;
	MUST(buckets == h->n_pos);
	buf_clear(text);
	histogram_canonical(p->kind, h, text);
	MUST(text->n > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	uint8_t enc = data[0];
	struct span payload = span_of(data + 1, size - 1);
	struct arena a;
	struct buf text;
	struct chunk_iter *it;
	struct chunk_point p;
	struct hist_model model;
	static struct chunk_sample v[65536];
	size_t n_v = 0;
	uint32_t count = 0, n = 0;
	bool more = true;
	arena_init(&a, 64 * MIB);
	buf_init(&text, 64 * MIB);
	errc decoded = enc == CHUNK_XOR ? xor_decode(payload, v, 65536, &n_v, NULL) : ERR_UNSUPPORTED;
	errc counted = chunk_count(enc, payload, &count, NULL);
	errc rc = chunk_iter_new(enc, payload, &a, &it, NULL);
	MUST((rc == ERR_UNSUPPORTED) == (counted == ERR_UNSUPPORTED) || size < 4);
	bool modelled = hist_model_open(&model, enc, payload);
	int64_t last = INT64_MIN;
	while (rc == OK && (rc = chunk_iter_next(it, &p, &more, NULL)) == OK && more) {
		MUST(n == 0 || p.t > last);
		last = p.t;
		if (p.kind == SAMPLE_FLOAT && decoded == OK)
			MUST(n < n_v && v[n].t == p.t && v[n].v == p.v);
		if (p.kind != SAMPLE_FLOAT) {
			histogram_check(&p, &text);
			MUST(modelled && hist_model_next(&model, &a) && hist_model_is(&model, &p));
		}
		n++;
	}
	if (rc == OK)
		MUST(n == count);
	if (decoded == OK && rc == OK)
		MUST(n == n_v);
	arena_free(&a);
	buf_free(&text);
	return 0;
}
