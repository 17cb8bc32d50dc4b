/* fuzz: needs block */
/* Packed histograms { u8 length low, u8 length high, bytes }* of any bytes: what unpacks packs to no more; what is judged valid and is put into chunks as one series comes
 * back from them, by another reader as by block/'s.
 */
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

enum { MOST = 64 };

struct series {
	struct chunk_point p[MOST];
	struct histogram h[MOST];
	size_t n, at;
	struct buf want, got;
};

static errc emit(void *arg, const struct chunk *c, uint32_t n_samples, struct err *err)
{
	struct series *s = arg;
	struct arena a;
	struct chunk_iter *it;
	struct chunk_point p;
	struct hist_model model;
	bool more;
	arena_init(&a, 64 * MIB);
	MUST(hist_model_open(&model, c->enc, c->data) && model.n == n_samples);
	MUST(chunk_iter_new(c->enc, c->data, &a, &it, err) == OK);
	for (uint32_t i = 0; i < n_samples; i++, s->at++) {
		MUST(s->at < s->n && chunk_iter_next(it, &p, &more, err) == OK && more);
		const struct chunk_point *w = &s->p[s->at];
		MUST(p.t == w->t && p.kind == w->kind);
		MUST(hist_model_next(&model, &a) && hist_model_is(&model, &p));
		buf_clear(&s->want);
		buf_clear(&s->got);
		histogram_canonical(w->kind, w->h, &s->want);
		histogram_canonical(p.kind, p.h, &s->got);
		MUST(span_eq(span_of(s->want.p, s->want.n), span_of(s->got.p, s->got.n)));
	}
	arena_free(&a);
	return OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct series s;
	struct arena a;
	struct buf packed;
	struct err err = {0};
	arena_init(&a, 256 * MIB);
	buf_init(&packed, MIB);
	buf_init(&s.want, 16 * MIB);
	buf_init(&s.got, 16 * MIB);
	s.n = s.at = 0;
	while (size >= 2 && s.n < MOST) {
		size_t n = data[0] | (size_t)data[1] << 8;
		data += 2;
		size -= 2;
		n = n < size ? n : size;
		struct chunk_point *p = &s.p[s.n];
		struct histogram *h = &s.h[s.n];
		*p = (struct chunk_point){.t = (int64_t)s.n * 15000, .h = h};
		if (histogram_unpack(span_of(data, n), &a, &p->kind, h, &err) == OK) {
			buf_clear(&packed);
			histogram_pack(p->kind, h, &packed);
			MUST(packed.n <= n && packed.n <= histogram_pack_bound(h));
			s.n += histogram_judge(p->kind, h, &a, &err) == OK;
		}
		data += n;
		size -= n;
	}
	struct chunk_encoder *e;
	MUST(chunk_encoder_open(7200000, emit, &s, &e, &err) == OK);
	for (size_t i = 0; i < s.n; i++)
		MUST(chunk_encoder_put(e, &s.p[i], &err) == OK);
	MUST(chunk_encoder_end(e, &err) == OK && s.at == s.n);
	chunk_encoder_close(e);
	buf_free(&packed);
	buf_free(&s.want);
	buf_free(&s.got);
	arena_free(&a);
	return 0;
}
