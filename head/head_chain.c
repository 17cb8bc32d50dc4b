/* head/head_chain.c - what a series that comes in order keeps in memory of its window: the end of the open chunk, and where the rest is.
 *
 *     wseries.chain ─▶ [goes on] ─▶ [goes on] ─▶ [chunk] ─▶ [chunk's end] ─▶ [goes on]        in the chunk file, each names the one before it
 *                      └─ of the open chunk ─┘              └── one chunk in two records ──┘
 *
 * A leaf takes 16 bytes a chunk and an open chunk grows to some hundred: after two hours that would be more than all else that a series takes. So
 * full pieces of an open chunk leave for the file as soon as there are a few, and full chunks are found by way of the newest one: eight bytes, however
 * much there is. Memory does not grow with the samples of a window.
 *
 * The first late sample, or histogram, unfolds it: leaves take the place of the chain, what was spilled comes back, and from there on the series is as
 * head_leaf.c has it. Chains hold chunks as the cutting rule made them, and nothing else.
 */
#include "head/head_int.h"

static uint64_t last_off(const struct wseries *ws)
{
	return ws_chained(ws) ? chain_off(ws->chain) : CHUNKFILE_NONE;
}

/* The open chunk's first n payload bytes in pieces, or all, as the next record. */
static errc put(struct window *w, struct wpart *part, const struct wseries *ws, uint32_t n, bool end, uint64_t *off, struct err *err)
{
	uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
	uint32_t at = 0;
	for (uint32_t i = ws->first; at < n; i = part_piece(part, i)->next) {
		const struct piece *p = part_piece(part, i);
		uint32_t m = n - at < PIECE_PAYLOAD ? n - at : (uint32_t)PIECE_PAYLOAD;
		memcpy(bytes + at, p->bytes, m);
		at += m;
	}
	struct chunkfile_record r = {
		.ref = atomic_load_explicit(&part_series(part, ws->local)->ref, memory_order_relaxed),
		.mint = w->start + ws->start,
		.maxt = w->start + ws->t,
		.previous = last_off(ws),
		.before = (uint16_t)chain_spilled(ws->chain),
		.n = ws->n,
		.enc = CHUNK_XOR,
		.goes_on = !end,
		.data = span_of(bytes, n),
	};
	return head_chunkfile_append(&w->file, &r, off, err);
}

void head_chain_spill_locked(struct window *w, struct wpart *part, struct wseries *ws, uint32_t last, uint32_t n)
{
	uint64_t off;
	uint32_t bytes = n * PIECE_PAYLOAD;
	ASSERT(ws_may_chain(ws) && bytes < ws_in_pieces(ws));
	if (put(w, part, ws, bytes, false, &off, NULL) != OK)
		return;
	uint32_t next = part_piece(part, last)->next;
	head_pieces_free(part, ws->first, last, n);
	ws->first = next;
	ws->chain = chain_of(off, chain_spilled(ws->chain) + bytes, chain_samples(ws->chain));
}

errc head_chain_end_locked(struct window *w, struct wpart *part, struct wseries *ws, struct err *err)
{
	uint64_t off;
	ASSERT(ws_may_chain(ws) && ws->n > 0);
	errc rc = put(w, part, ws, ws_in_pieces(ws), true, &off, err);
	if (rc != OK)
		return rc;
	uint32_t samples = chain_samples(ws->chain) + ws->n;
	ASSERT(samples <= CHAIN_SAMPLES_MAX);
	head_open_drop(part, ws);
	ws->chain = chain_of(off, 0, samples);
	return OK;
}

errc head_chain_open(
	struct window *w, struct cut_file *cut, uint64_t chain, int64_t open_mint, uint8_t *spilled, struct chain_reader *out, struct err *err)
{
	*out = (struct chain_reader){.w = w, .cut = cut, .off = chain & 1 ? chain_off(chain) : CHUNKFILE_NONE, .before = open_mint};
	if (chain_spilled(chain) == 0)
		return OK;
	return head_chunkfile_begun(&w->file, cut, chain_off(chain), chain_spilled(chain), spilled, &out->off, err);
}

errc head_chain_next(struct chain_reader *r, uint8_t *out, struct chunkfile_chunk *c, bool *more, struct err *err)
{
	errc rc = OK;
	*more = r->off != CHUNKFILE_NONE;
	if (!*more)
		return OK;
	TRY(head_chunkfile_chunk(&r->w->file, r->cut, r->off, out, c, err));
	CHECK(c->mint <= c->maxt && c->maxt < r->before && range_has(r->w->start, r->w->range, c->mint), ERR_CORRUPT,
		"chunk file of window %s: the chunk at offset %llu is another one", ulid_text(r->w->ulid).s, (unsigned long long)r->off);
	r->before = c->mint;
	r->at = r->off;
	r->off = c->previous;
fail:
	return rc;
}

/* Its chunks as leaves, the newest first. */
struct unfolded {
	struct leaf *v;
	uint32_t n, cap;
};

static errc unfolded_add(struct unfolded *u, struct leaf l, struct err *err)
{
	if (u->n == u->cap) {
		uint32_t cap = u->cap ? u->cap * 2 : 16;
		struct leaf *v = realloc(u->v, cap * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "no memory for chunks of a series");
		u->v = v;
		u->cap = cap;
	}
	u->v[u->n++] = l;
	return OK;
}

errc head_chain_unfold_locked(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, struct err *err)
{
	errc rc = OK;
	struct unfolded u = {0};
	struct wseries plain = *ws;
	struct chain_reader r;
	struct chunkfile_chunk c;
	uint8_t begun[HEAD_CHUNK_MAX_BYTES];
	bool more;
	ASSERT(ws_chained(ws));
	plain.leaves = NULL;
	TRY(head_chain_open(w, NULL, ws->chain, ws_chain_before(w, ws), begun, &r, err));
	for (;;) {
		TRY(head_chain_next(&r, sh->scratch_bytes, &c, &more, err));
		if (!more)
			break;
		struct leaf l = {.mint = (uint32_t)(c.mint - w->start), .maxt = (uint32_t)(c.maxt - w->start)};
		l.kind = LEAF_FILE;
		l.n = (uint8_t)c.n;
		l.len = c.n_last & 16383u;
		l.off = r.at & CHUNKFILE_NONE;
		TRY(unfolded_add(&u, l, err));
	}
	uint32_t n_pieces = chain_spilled(ws->chain) / PIECE_PAYLOAD;
	ASSERT(n_pieces * PIECE_PAYLOAD == chain_spilled(ws->chain));
	CHECK(head_pieces_reserve(part, n_pieces), ERR_NOMEM, "no memory for an open chunk");
	if (u.n > 0)
		TRY(head_leaves_room(part, &plain, u.n, err));
	for (uint32_t k = 0; k < u.n; k++)
		plain.leaves->v[k] = u.v[u.n - 1 - k];
	if (u.n > 0)
		plain.leaves->n = u.n;
	for (uint32_t k = n_pieces; k-- > 0;) {
		uint32_t i = head_piece_new(part);
		ASSERT(i && plain.first); /* reserved; and the end is never spilled */
		struct piece *p = part_piece(part, i);
		memcpy(p->bytes, begun + k * PIECE_PAYLOAD, PIECE_PAYLOAD);
		p->next = plain.first;
		plain.first = i;
	}
	*ws = plain;
fail:
	free(u.v);
	return rc;
}
