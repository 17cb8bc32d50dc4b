/* fuzz: needs query */
/* What peers ask of reads, and what they answer: a question that decodes encodes again to what decodes to the same; of an answer each payload decodes or is refused, within memory that follows its bytes, and
 * a series that decodes encodes again to its bytes' meaning. Checksums are made right, since those are no secret. The first byte says which of the two it is.
 */
#include <stdlib.h>
#include "query/query_fleet_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void question(struct span body)
{
	struct arena a;
	struct buf out;
	struct fleet_question q, again;
	arena_init(&a, 512 * MIB);
	buf_init(&out, 64 * MIB);
	if (fleet_question_decode(body, &a, &q, NULL) == OK) {
		must(fleet_question_encode(&q, &out, NULL) == OK);
		must(fleet_question_decode(span_of(out.p, out.n), &a, &again, NULL) == OK);
		must(q.what == again.what && q.mint == again.mint && q.maxt == again.maxt && q.left_ms == again.left_ms &&
			span_eq(q.name, again.name));
		must(q.n_replica == again.n_replica && q.n_sets == again.n_sets);
		for (size_t i = 0; i < q.n_sets; i++)
			must(q.sets[i].n == again.sets[i].n);
		matcher_sets_free((struct matcher_set *)(uintptr_t)q.sets, q.n_sets);
		matcher_sets_free((struct matcher_set *)(uintptr_t)again.sets, again.n_sets);
	}
	buf_free(&out);
	arena_free(&a);
}

static void payload(struct span p)
{
	struct arena a;
	struct labels l;
	struct chunk *c;
	struct exemplar *x;
	struct metadata m;
	struct span s;
	size_t n;
	struct rd r = rd_of(p.p, p.n);
	arena_init(&a, 64 * p.n + 4096);
	switch (rd_u8(&r)) {
	case FLEET_BEGIN:
		(void)!fleet_begin_decode(&r, &s, NULL);
		break;
	case FLEET_ONE_SERIES:
		if (fleet_series_decode(&r, &a, &l, &c, &n, NULL) == OK) {
			struct buf out;
			struct labels l2;
			struct chunk *c2;
			size_t n2;
			buf_init(&out, 64 * MIB);
			fleet_series_encode(l, c, n, &out);
			struct rd again = rd_of(out.p + 1, out.n - 1);
			must(fleet_series_decode(&again, &a, &l2, &c2, &n2, NULL) == OK && labels_eq(l, l2) && n == n2);
			for (size_t i = 0; i < n; i++)
				must(c[i].mint == c2[i].mint && c[i].maxt == c2[i].maxt && c[i].maxt >= c[i].mint && span_eq(c[i].data, c2[i].data));
			buf_free(&out);
		}
		break;
	case FLEET_ONE_EXEMPLARS:
		(void)!fleet_exemplars_decode(&r, &a, &l, &x, &n, NULL);
		break;
	case FLEET_FAMILIES:
		while (rd_left(&r) > 0 && fleet_metadata_decode(&r, &m, NULL) == OK)
			must(m.type < METRIC_TYPES);
		break;
	default:
		break;
	}
	arena_free(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	struct span in = span_of(data + 1, size - 1);
	if (data[0] % 2) {
		question(in);
		return 0;
	}
	struct span got;
	size_t used;
	while (in.n > 0 && fleet_frame(in, MIB, &got, &used, NULL) == OK && used > 0) {
		payload(got);
		in = span_of(in.p + used, in.n - used);
	}
	if (size > 1)
		payload(span_of(data + 1, size - 1));
	return 0;
}
