/* head/head_open.c - the open chunk of a series: its state in struct wseries, its payload in pieces.
 *
 *     wseries.first ─▶ [28 bytes | next] ─▶ [28 bytes | next] ─▶ [28 bytes | 0] ◀─ wseries.last
 *
 * The count that begins a payload is not kept; who reads puts it there. Of a long chunk the first pieces are in the chunk file already (head_chain.c).
 *
 * An append encodes into a few bytes on the stack and then stores them: at the last piece alone is looked.
 */
#include "head/head_int.h"

uint32_t head_spill_series = HEAD_SPILL_SERIES;

enum { TAIL_BYTES = XOR_APPEND_MAX_BYTES + 12 };

bool head_open_append(struct window *w, struct wpart *part, struct wseries *ws, uint32_t t, uint64_t v)
{
	struct xor_appender a = {
		.t = w->start + ws->t,
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
	struct piece *p = ws->last ? part_piece(part, ws->last) : NULL;
	/* The open byte, if there is one, is the last piece's last. */
	uint32_t at = xor_tail_at(&a), off = ws->fill - (uint32_t)(a.bits_left != 0);
	tail[0] = a.bits_left ? p->bytes[off] : 0;
	xor_append_tail(&a, tail, w->start + t, v);
	uint32_t n = a.n_bytes - at, full = 0, full_last = 0;
	if (LIKELY(p && n <= 8 && off + 8 <= PIECE_PAYLOAD)) {
		memcpy(p->bytes + off, tail, 8);
		ws->fill = (uint8_t)(off + n);
	} else {
		uint32_t room = p ? PIECE_PAYLOAD - off : 0, need = n > room ? (n - room + PIECE_PAYLOAD - 1) / PIECE_PAYLOAD : 0;
		uint32_t first = 0, last = 0;
		if (need > 0) {
			full = (ws_in_pieces(ws) + PIECE_PAYLOAD - 1) / PIECE_PAYLOAD;
			full_last = ws->last;
		}
		for (uint32_t k = 0; k < need; k++) {
			uint32_t i = head_piece_new(part);
			if (!i) {
				head_pieces_free(part, first, last, k);
				return false;
			}
			if (last)
				part_piece(part, last)->next = i;
			else
				first = i;
			last = i;
		}
		/* New pieces may have moved the page. */
		p = ws->last ? part_piece(part, ws->last) : NULL;
		uint32_t done = n < room ? n : room;
		if (done)
			memcpy(p->bytes + off, tail, done);
		ws->fill = (uint8_t)(off + done);
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
			ws->fill = (uint8_t)m;
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
	/* Series of a scrape grow together: they begin at different lengths, or all would be longest at one time. A small window's open chunks are less than the buffer
	 * of its file. */
	if (UNLIKELY(full >= 2) && full >= (chain_spilled(ws->chain) ? HEAD_SPILL_PIECES : 2 + ws->local % HEAD_SPILL_PIECES) &&
		part->n >= head_spill_series && ws_may_chain(ws))
		head_chain_spill_locked(w, part, ws, full_last, full);
	return true;
}

size_t head_open_read_pieces(const struct wpart *part, const struct wseries *ws, uint8_t *out)
{
	ASSERT(ws->n > 0 && ws->n_bytes <= HEAD_CHUNK_MAX_BYTES);
	out[0] = (uint8_t)(ws->n >> 8);
	out[1] = (uint8_t)ws->n;
	uint32_t at = (uint32_t)XOR_HEADER_BYTES + chain_spilled(ws->chain);
	for (uint32_t i = ws->first; at < ws->n_bytes;) {
		const struct piece *p = part_piece(part, i);
		uint32_t n = ws->n_bytes - at < PIECE_PAYLOAD ? ws->n_bytes - at : (uint32_t)PIECE_PAYLOAD;
		memcpy(out + at, p->bytes, n);
		at += n;
		i = p->next;
	}
	return at;
}

errc head_open_read(struct window *w, const struct wpart *part, const struct wseries *ws, uint8_t *out, size_t *n, struct err *err)
{
	uint64_t previous;
	*n = head_open_read_pieces(part, ws, out);
	if (LIKELY(chain_spilled(ws->chain) == 0))
		return OK;
	return head_chunkfile_begun(&w->file, NULL, chain_off(ws->chain), chain_spilled(ws->chain), out + XOR_HEADER_BYTES, &previous, err);
}

void head_open_drop(struct wpart *part, struct wseries *ws)
{
	head_pieces_free(part, ws->first, ws->last, (ws_in_pieces(ws) + PIECE_PAYLOAD - 1) / PIECE_PAYLOAD);
	ws->first = ws->last = 0;
	ws->n = ws->n_bytes = 0;
	ws->bits_left = ws->fill = 0;
}
