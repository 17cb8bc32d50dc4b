/* head/head_cut_walk.c - the records of all chains of a chunk file, by one walk through the file.
 *
 *     file     | piece 0 | piece 1 | ... | piece n |        piece by piece from the end: 64 KiB, and a record's length of the next one
 *     pending     ▲ list    ▲ list         ▲ list           series whose next record begins in the piece
 *
 * A chain is known by its last record, and each record names the one before it, which lies before it in the file. So a series waits in the list of the piece that
 * its next record is in, and when the walk comes to that piece it moves on to an earlier one. The file is read once, whatever the order of its records: a series
 * spills when its own pieces are full, so those of one series and of its neighbours are all over the window's time. Memory: six bytes a series, four a piece.
 */
#include "head/head_cut_int.h"

enum { PIECE_BYTES = 64 * 1024, RECORD_BYTES = HEAD_CHUNK_MAX_BYTES + CHUNKFILE_OVERHEAD };

struct cut_walk {
	struct chunkfile *file;
	struct chunkfile_pin pin; /* as head_cut_file.c has it */
	uint64_t end;
	uint32_t n_places, n_pieces;
	uint32_t *first; /* of each piece, the place of the first series that waits for it, + 1; 0: none */
	uint32_t *next;	 /* of each place, the one that waits behind it */
	uint16_t *at;	 /* of each place, where in the piece its next record begins */
	uint8_t *bytes;	 /* of the piece at hand */
	size_t n_bytes;
};

errc head_cut_walk_open(struct window *w, uint32_t n_places, struct cut_walk **out, struct err *err)
{
	errc rc = OK;
	struct cut_walk *k = calloc(1, sizeof *k);
	if (!k)
		return err_set(err, ERR_NOMEM, "no memory to read a chunk file");
	k->file = &w->file;
	k->pin.slot = -1;
	k->pin.fd = -1;
	k->end = head_chunkfile_bytes(&w->file);
	k->n_places = n_places;
	k->n_pieces = (uint32_t)(k->end / PIECE_BYTES) + 1;
	k->first = calloc(k->n_pieces, sizeof *k->first);
	k->next = malloc(n_places * sizeof *k->next);
	k->at = malloc(n_places * sizeof *k->at);
	k->bytes = malloc(PIECE_BYTES + RECORD_BYTES);
	rc = k->first && k->next && k->at && k->bytes ? head_chunkfile_pin(k->file, &k->pin, err)
						      : err_set(err, ERR_NOMEM, "no memory to read a chunk file");
	if (rc != OK) {
		k->file = NULL; /* not pinned */
		head_cut_walk_close(k);
		return rc;
	}
	*out = k;
	return OK;
}

void head_cut_walk_close(struct cut_walk *k)
{
	if (!k)
		return;
	if (k->file)
		head_chunkfile_unpin(k->file, &k->pin);
	free(k->first);
	free(k->next);
	free(k->at);
	free(k->bytes);
	free(k);
}

static errc another(const struct cut_walk *k, uint64_t off, struct err *err)
{
	return err_set(err, ERR_CORRUPT, "chunk file of window %s: there is no record of a chain at offset %llu of %llu", ulid_text(k->file->ulid).s,
		(unsigned long long)off, (unsigned long long)k->end);
}

errc head_cut_walk_add(struct cut_walk *k, uint32_t place, uint64_t off, struct err *err)
{
	ASSERT(place < k->n_places);
	if (off >= k->end)
		return another(k, off, err);
	uint64_t piece = off / PIECE_BYTES;
	k->at[place] = (uint16_t)(off % PIECE_BYTES);
	k->next[place] = k->first[piece];
	k->first[piece] = place + 1;
	return OK;
}

static errc piece_load(struct cut_walk *k, uint64_t from, struct err *err)
{
	errc rc = OK;
	k->n_bytes = k->end - from < PIECE_BYTES + RECORD_BYTES ? (size_t)(k->end - from) : (size_t)(PIECE_BYTES + RECORD_BYTES);
	uint64_t flushed = k->pin.flushed;
	size_t filed = from + k->n_bytes <= flushed ? k->n_bytes : from < flushed ? (size_t)(flushed - from) : 0;
	if (filed > 0)
		TRY(io_pread_full(k->pin.fd, k->bytes, filed, from, err));
	if (filed < k->n_bytes)
		TRY(head_chunkfile_bytes_read(k->file, from + filed, k->n_bytes - filed, k->bytes + filed, err));
fail:
	return rc;
}

/* The record at off, which begins in the piece that is loaded from `from` on. */
static errc record_of(const struct cut_walk *k, uint64_t from, uint64_t off, struct span *out, struct err *err)
{
	const uint8_t *p = k->bytes + (off - from);
	size_t left = k->n_bytes - (size_t)(off - from), n;
	uint32_t len;
	if (left < CHUNKFILE_OVERHEAD || (len = head_chunkfile_record_len(p)) > HEAD_CHUNK_MAX_BYTES || (n = len + (size_t)CHUNKFILE_OVERHEAD) > left)
		return another(k, off, err);
	*out = span_of(p, n);
	return head_chunkfile_judge(k->file, off, len, p, err);
}

errc head_cut_walk(
	struct cut_walk *k, errc (*each)(void *arg, uint32_t place, uint64_t off, struct span record, struct err *err), void *arg, struct err *err)
{
	errc rc = OK;
	for (uint32_t piece = k->n_pieces; piece-- > 0;) {
		const uint64_t from = (uint64_t)piece * PIECE_BYTES;
		if (!k->first[piece])
			continue;
		TRY(piece_load(k, from, err));
		for (uint32_t place = k->first[piece], next; place; place = next) {
			uint64_t off = from + k->at[place - 1], previous;
			next = k->next[place - 1];
			for (;; off = previous) {
				struct span record;
				TRY(record_of(k, from, off, &record, err));
				TRY(each(arg, place - 1, off, record, err));
				previous = head_chunkfile_record_previous((const uint8_t *)record.p);
				if (previous == CHUNKFILE_NONE)
					break;
				CHECK(previous < off, ERR_CORRUPT, "chunk file of window %s: the record at offset %llu names a later one",
					ulid_text(k->file->ulid).s, (unsigned long long)off);
				if (previous < from) {
					TRY(head_cut_walk_add(k, place - 1, previous, err));
					break;
				}
			}
		}
		k->first[piece] = 0;
	}
fail:
	return rc;
}
