/* head/head_piece.c - pieces of 32 bytes, from which a part's open chunks and posting lists are made.
 *
 * Every series of a scrape grows by a sample at the same time. Byte arrays that are moved to ever larger rooms would leave all smaller rooms behind, for
 * nobody: with pieces of one size there is nothing to outgrow, and what a full chunk leaves serves any series of the part. The price is four bytes in 32 for
 * the number of the next one, and half a piece at the end.
 */
#include "head/head_int.h"

enum { PIECES_FIRST = 16 };
_Static_assert(sizeof(struct piece) == 32, "two to a cache line");

static bool more(struct wpart *p)
{
	uint32_t page = p->n_pieces / PIECES_PER_PAGE;
	if (page == 0) {
		/* The first page moves while it grows: pieces have numbers, not addresses. Piece 0 is none. */
		uint32_t cap = p->cap_first ? p->cap_first * 2 : PIECES_FIRST;
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

uint32_t head_piece_new(struct wpart *p)
{
	uint32_t i = p->free_piece;
	if (i) {
		p->free_piece = part_piece(p, i)->next;
		p->n_free_pieces--;
	} else {
		uint32_t page = p->n_pieces / PIECES_PER_PAGE;
		if ((page == 0 ? p->n_pieces == p->cap_first : page == p->n_piece_pages) && !more(p))
			return 0;
		i = p->n_pieces++;
	}
	part_piece(p, i)->next = 0;
	return i;
}

void head_pieces_free(struct wpart *p, uint32_t first, uint32_t last, uint32_t n)
{
	if (!first)
		return;
	part_piece(p, last)->next = p->free_piece;
	p->free_piece = first;
	p->n_free_pieces += n;
}

bool head_pieces_reserve(struct wpart *p, uint32_t n)
{
	while (p->n_free_pieces < n) {
		uint32_t page = p->n_pieces / PIECES_PER_PAGE;
		if ((page == 0 ? p->n_pieces == p->cap_first : page == p->n_piece_pages) && !more(p))
			return false;
		uint32_t i = p->n_pieces++;
		head_pieces_free(p, i, i, 1);
	}
	return true;
}
