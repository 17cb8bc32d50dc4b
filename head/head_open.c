/* head/head_open.c - the open chunk of a series: its state in struct wseries, its payload in pieces.
 *
 *     wseries.first ─▶ [28 bytes | next] ─▶ [28 bytes | next] ─▶ [28 bytes | 0] ◀─ wseries.last
 *
 * Every series of a scrape grows by a sample at the same time. Payloads that are moved to ever larger rooms would leave all smaller rooms behind, for nobody:
 * with pieces of one size there is nothing to outgrow, and what a full chunk leaves serves any series of the part. The price is four bytes in 32 and half a
 * piece at the end. The count that begins a payload is not kept; who reads puts it there.
 *
 * An append encodes into a few bytes on the stack and then stores them: at the last piece alone is looked.
 */
#include "head/head_int.h"

enum { FIRST_PIECES = 16, TAIL_BYTES = XOR_APPEND_MAX_BYTES + 12 };
_Static_assert(sizeof(struct piece) == 32, "two to a cache line");

static bool pieces_more(struct wpart *p)
{
	uint32_t page = p->n_pieces / PIECES_PER_PAGE;
	if (page == 0) {
		/* The first page moves while it grows: pieces have numbers, not addresses. Piece 0 is none. */
		uint32_t cap = p->cap_first ? p->cap_first * 2 : FIRST_PIECES;
		struct piece *v = head_pool_alloc(&p->pool, cap * sizeof *v);
		struct piece **pages = p->pieces ? p->pieces : head_pool_alloc(&p->pool, 2 * sizeof *pages);
		if (!v || !pages) {
			head_pool_free(&p->pool, v, cap * sizeof *v);
			return false;
		}
		if (p->cap_first) {
			memcpy(v, pages[0], p->cap_first * sizeof *v);
			head_pool_free(&p->pool, pages[0], p->cap_first * sizeof *v);
		} else {
			p->n_pieces = 1;
			p->cap_piece_pages = 2;
		}
		p->pieces = pages;
		p->pieces[0] = v;
		p->n_piece_pages = 1;
		p->cap_first = cap;
		return true;
	}
	if (page == p->cap_piece_pages) {
		uint32_t cap = p->cap_piece_pages * 2;
		struct piece **v = head_pool_alloc(&p->pool, cap * sizeof *v);
		if (!v)
			return false;
		memcpy(v, p->pieces, p->cap_piece_pages * sizeof *v);
		head_pool_free(&p->pool, p->pieces, p->cap_piece_pages * sizeof *v);
		p->pieces = v;
		p->cap_piece_pages = cap;
	}
	p->pieces[page] = head_pool_alloc(&p->pool, PIECES_PER_PAGE * sizeof(struct piece));
	if (!p->pieces[page])
		return false;
	p->n_piece_pages = page + 1;
	return true;
}

/* 0: no memory. */
static uint32_t piece_new(struct wpart *p)
{
	uint32_t i = p->free_piece;
	if (i) {
		p->free_piece = part_piece(p, i)->next;
	} else {
		uint32_t page = p->n_pieces / PIECES_PER_PAGE;
		if ((page == 0 ? p->n_pieces == p->cap_first : page == p->n_piece_pages) && !pieces_more(p))
			return 0;
		i = p->n_pieces++;
	}
	part_piece(p, i)->next = 0;
	return i;
}

static void pieces_free(struct wpart *p, uint32_t first, uint32_t last)
{
	if (!first)
		return;
	part_piece(p, last)->next = p->free_piece;
	p->free_piece = first;
}

/* Payload bytes that are in pieces. */
static uint32_t stored(const struct wseries *ws)
{
	return ws->n == 0 ? 0 : ws->n_bytes - (uint32_t)XOR_HEADER_BYTES;
}

bool head_open_append(struct wpart *part, struct wseries *ws, uint32_t t, int64_t window_start, uint64_t v)
{
	struct xor_appender a = {
		.t = window_start + ws->t,
		.v = ws->v,
		.dt = ws->dt,
		.n = ws->n,
		.leading = ws->leading,
		.trailing = ws->trailing,
		.bits_left = ws->bits_left,
		.n_bytes = ws->n_bytes,
	};
	if (ws->n == 0)
		xor_appender_init(&a);
	uint8_t tail[TAIL_BYTES];
	uint32_t at = xor_tail_at(&a) - XOR_HEADER_BYTES, had = stored(ws);
	/* The last piece holds the bytes from `begin` on. */
	uint32_t begin = had ? (had - 1) / PIECE_PAYLOAD * PIECE_PAYLOAD : 0;
	struct piece *p = had ? part_piece(part, ws->last) : NULL;
	tail[0] = at < had ? p->bytes[at - begin] : 0;
	xor_append_tail(&a, tail, window_start + t, v);
	uint32_t n = a.n_bytes - XOR_HEADER_BYTES - at, off = at - begin;
	if (LIKELY(p && n <= 8 && off + 8 <= PIECE_PAYLOAD)) {
		memcpy(p->bytes + off, tail, 8);
	} else {
		uint32_t room = p ? PIECE_PAYLOAD - off : 0, need = n > room ? (n - room + PIECE_PAYLOAD - 1) / PIECE_PAYLOAD : 0;
		uint32_t first = 0, last = 0;
		for (uint32_t k = 0; k < need; k++) {
			uint32_t i = piece_new(part);
			if (!i) {
				pieces_free(part, first, last);
				return false;
			}
			if (last)
				part_piece(part, last)->next = i;
			else
				first = i;
			last = i;
		}
		/* New pieces may have moved the page. */
		p = had ? part_piece(part, ws->last) : NULL;
		uint32_t done = n < room ? n : room;
		if (done)
			memcpy(p->bytes + off, tail, done);
		if (first) {
			if (p)
				p->next = first;
			else
				ws->first = first;
			ws->last = last;
		}
		for (uint32_t i = first; i; i = part_piece(part, i)->next) {
			uint32_t m = n - done < PIECE_PAYLOAD ? n - done : (uint32_t)PIECE_PAYLOAD;
			memcpy(part_piece(part, i)->bytes, tail + done, m);
			done += m;
		}
	}
	ws->t = t;
	ws->v = v;
	ws->dt = (uint32_t)a.dt;
	ws->n = a.n;
	ws->leading = a.leading;
	ws->trailing = a.trailing;
	ws->bits_left = a.bits_left;
	ws->n_bytes = (uint16_t)a.n_bytes;
	return true;
}

size_t head_open_read(const struct wpart *part, const struct wseries *ws, uint8_t *out)
{
	ASSERT(ws->n > 0 && ws->n_bytes <= HEAD_CHUNK_MAX_BYTES);
	out[0] = (uint8_t)(ws->n >> 8);
	out[1] = (uint8_t)ws->n;
	uint32_t at = XOR_HEADER_BYTES;
	for (uint32_t i = ws->first; at < ws->n_bytes;) {
		const struct piece *p = part_piece(part, i);
		uint32_t n = ws->n_bytes - at < PIECE_PAYLOAD ? ws->n_bytes - at : (uint32_t)PIECE_PAYLOAD;
		memcpy(out + at, p->bytes, n);
		at += n;
		i = p->next;
	}
	return at;
}

void head_open_drop(struct wpart *part, struct wseries *ws)
{
	pieces_free(part, ws->first, ws->last);
	ws->first = ws->last = 0;
	ws->n = ws->n_bytes = 0;
	ws->bits_left = 0;
}
