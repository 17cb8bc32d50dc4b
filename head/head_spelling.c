/* head/head_spelling.c - remote write 2.0: a series is spelled as references into the symbols of its request.
 *
 *     symbol ─ XXH3-128 with the process' secret ─▶ h(symbol)                               once for each symbol of a request
 *     (tenant, symbols in order) ─ XXH3-128 of h(s1) h(s2) ... with a second secret, xor the tenant's salt ─▶ alias ─▶ series
 *
 * So a known series costs a copy of 16 bytes a reference and one hash of them; no label is looked at and nothing is allocated. What misses is put together as labels
 * and goes the way of every unknown spelling (head_append.c, pass 3): the series is looked up by its canonical bytes, and this spelling becomes an alias of
 * it. That makes a series the same one whichever version it came by, before a restart and after.
 *
 * Why two series can't be mixed up: two different sequences of symbols share an alias only if two of their symbols have one 128-bit hash, or if
 * two different sequences of hashes have; both hashes are keyed with secrets that never leave the process, so nobody can search for either, and by
 * chance it is as rare as with 1.0 (head_series.c). The order of symbols is part of what is hashed, and so is their number, by its length. 1.0 hashes with
 * the first secret alone: a hash of the one version is not a hash of the other. HEAD_VERIFY builds compare the labels as well.
 */
#include "head/head_int.h"

errc head_spelling_begin(struct append_ctx *c, struct err *err)
{
	const struct head_batch *b = c->batch;
	if (b->n_symbols > c->cap_symbols) {
		size_t n = b->n_symbols + b->n_symbols / 4;
		struct hash128 *v = realloc(c->symbols, n * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "no memory for %zu symbols of a request", b->n_symbols);
		c->symbols = v;
		c->cap_symbols = n;
	}
	for (size_t i = 0; i < b->n_symbols; i++)
		c->symbols[i] = head_hash_symbol(c->head, b->symbols[i]);
	return OK;
}

errc head_spelling_labels(struct append_ctx *c, uint32_t i, struct labels *l, struct err *err)
{
	const struct head_series *s = &c->batch->series[i];
	if (s->n_labels > LIMIT_LABELS_DECODE)
		return err_set(err, ERR_LIMIT, "more than %d labels", LIMIT_LABELS_DECODE);
	l->n = s->n_labels;
	l->v = arena_alloc(&c->parse, l->n * sizeof *l->v);
	if (!l->v)
		return err_set(err, ERR_NOMEM, "no memory for %u labels", l->n);
	for (uint32_t k = 0; k < l->n; k++) {
		ASSERT(s->refs[2 * k] < c->batch->n_symbols && s->refs[2 * k + 1] < c->batch->n_symbols);
		l->v[k] = (struct label){c->batch->symbols[s->refs[2 * k]], c->batch->symbols[s->refs[2 * k + 1]]};
	}
	return OK;
}

errc head_spelling_wires(struct append_ctx *c, struct err *err)
{
	for (uint32_t i = 0; i < c->batch->n_series; i++) {
		struct labels l;
		arena_reset(&c->parse);
		errc rc = head_spelling_labels(c, i, &l, err);
		if (rc != OK)
			return rc;
		buf_clear(&c->wire);
		buf_u8(&c->wire, 0);
		labels_to_wire(l, &c->wire);
		struct span wire = c->wire.failed ? (struct span){NULL, 0} : arena_dup(&c->arena, span_of(c->wire.p, c->wire.n));
		if (!wire.p)
			return err_set(err, ERR_NOMEM, "no memory for the labels of a series");
		c->batch->series[i].wire = wire;
	}
	return OK;
}
