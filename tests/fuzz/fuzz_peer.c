/* fuzz: needs cluster */
/* A peer's request and its answer, with checksums that are made right, since those are no secret: whatever decodes, encodes again to what decodes to the same; uncompressed
 * it is the same bytes. A part of a request can be taken, all items or every other, and decodes. The first byte chooses which of the two it is, and how many items were asked for.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "cluster/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void seal(uint8_t *p, size_t n, size_t at)
{
	if (n >= at + 4)
		put_le32(p + at, crc32c(crc32c(0, p, at), p + at + 4, n - at - 4));
}

static bool every(void *arg, uint32_t item)
{
	return item % *(uint32_t *)arg == 0;
}

static void same(const struct peer_request *a, const struct peer_request *b)
{
	must(a->epoch == b->epoch && a->hint == b->hint && a->left_ms == b->left_ms && a->now_ms == b->now_ms && a->min_t == b->min_t &&
		a->max_t == b->max_t);
	must(memcmp(a->id, b->id, PEER_ID_BYTES) == 0 && a->n_sections == b->n_sections && a->n_items == b->n_items);
	for (uint32_t i = 0; i < a->n_sections; i++) {
		const struct peer_section *s = &a->sections[i], *t = &b->sections[i];
		must(span_eq(s->tenant, t->tenant) && span_eq(s->body, t->body) && s->version == t->version);
		must(s->n_series == t->n_series && s->n_metadata == t->n_metadata && s->first == t->first);
	}
}

static void request(struct span frame)
{
	struct arena arena;
	struct peer_request r, again;
	struct buf out;
	size_t declared;
	arena_init(&arena, 512 * MIB);
	buf_init(&out, 512 * MIB);
	errc rc = peer_request_decode(frame, &arena, &r, NULL);
	if (rc == OK) {
		must(peer_request_declared(frame, &declared, NULL) == OK && arena.used_bytes <= declared + 16);
		must(peer_request_peek(frame, &again, NULL) == OK && again.n_sections == r.n_sections && again.min_t == r.min_t &&
			again.hint == r.hint);
		must(peer_request_samples(&r) <= frame.n * 128);
		bool plain = (frame.p[6] & 1) == 0;
		must(peer_request_encode(&r, !plain, &out, NULL) == OK);
		must(!plain || span_eq(frame, span_of(out.p, out.n)));
		must(peer_request_decode(span_of(out.p, out.n), &arena, &again, NULL) == OK);
		same(&r, &again);
		for (uint32_t step = 1; step <= 2; step++) {
			uint32_t n_kept;
			buf_clear(&out);
			if (peer_request_pick(frame, false, every, &step, &n_kept, &out, NULL) != OK || n_kept == 0)
				continue;
			must(peer_request_decode(span_of(out.p, out.n), &arena, &again, NULL) == OK && again.n_items == n_kept);
			must(n_kept == (r.n_items + step - 1) / step);
		}
	}
	buf_free(&out);
	arena_free(&arena);
}

static void answer(struct span bytes, uint32_t n_items)
{
	struct arena arena;
	struct peer_answer a, again;
	struct buf out;
	arena_init(&arena, 64 * MIB);
	buf_init(&out, 64 * MIB);
	if (peer_answer_decode(bytes, n_items, &arena, &a, NULL) == OK) {
		must(peer_answer_encode(&a, &out, NULL) == OK && out.n <= peer_answer_max(n_items));
		must(peer_answer_decode(span_of(out.p, out.n), n_items, &arena, &again, NULL) == OK);
		must(a.epoch == again.epoch && a.samples == again.samples && a.hists == again.hists && a.exemplars == again.exemplars);
		must(a.n_verdicts == again.n_verdicts && memcmp(a.id, again.id, PEER_ID_BYTES) == 0);
		for (uint32_t i = 0; i < a.n_verdicts; i++) {
			const struct peer_verdict *v = &a.verdicts[i], *w = &again.verdicts[i];
			must(v->item == w->item && v->kind == w->kind && v->id == w->id && v->t == w->t && v->samples == w->samples &&
				v->hists == w->hists && v->exemplars == w->exemplars);
		}
	}
	buf_free(&out);
	arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size == 0)
		return 0;
	size_t n = size - 1;
	uint8_t *p = malloc(n ? n : 1);
	must(p != NULL);
	memcpy(p, data + 1, n);
	seal(p, n, data[0] & 1 ? 64 : 72);
	if (data[0] & 1)
		answer(span_of(p, n), data[0] >> 1);
	else
		request(span_of(p, n));
	free(p);
	return 0;
}
