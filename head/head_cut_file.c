/* head/head_cut_file.c - the chunk file of a frozen window, read in pieces of 64 KiB by one thread.
 *
 * Chunks were written as they became full: in a round of all series, about in the order in which these came first. A cut that goes through the series in that order
 * walks along several places of the file at once, and finds most of what it wants in a piece that it has read. A piece is read when something in it or in the one
 * before it was wanted not long ago; else only the record is, because what is asked for at random gains nothing from its neighbours.
 *
 * Pieces are read and not mapped: what is mapped counts as the process' memory, and this is the whole file.
 */
#include "head/head_cut_int.h"

enum { PIECE_BYTES = 64 * 1024, PIECES = CUT_FILE_CACHE_BYTES / PIECE_BYTES, WANTED = 64 };

struct file_piece {
	uint64_t no; /* UINT64_MAX: none */
	uint64_t used;
	uint8_t *bytes;
};

struct cut_file {
	struct chunkfile *file;
	struct file_piece pieces[PIECES];
	uint64_t clock;
	uint64_t wanted[WANTED]; /* pieces of which a record was read alone, newest last; a ring */
	uint32_t at_wanted;
	struct chunkfile_pin pin; /* held all the time: a thread of low priority takes no lock that requests wait for */
	uint8_t *record;
	size_t cap_record;
	const struct chain_record *served;
	size_t n_served, at_served; /* the one asked for last */
};

errc head_cut_file_open(struct chunkfile *f, struct cut_file **out, struct err *err)
{
	struct cut_file *r = calloc(1, sizeof *r);
	if (!r)
		return err_set(err, ERR_NOMEM, "no memory to read a chunk file");
	errc rc = head_chunkfile_pin(f, &r->pin, err);
	if (rc != OK) {
		free(r);
		return rc;
	}
	r->file = f;
	for (int i = 0; i < PIECES; i++)
		r->pieces[i].no = UINT64_MAX;
	for (int i = 0; i < WANTED; i++)
		r->wanted[i] = UINT64_MAX - 1;
	*out = r;
	return OK;
}

void head_cut_file_close(struct cut_file *r)
{
	if (!r)
		return;
	for (int i = 0; i < PIECES; i++)
		free(r->pieces[i].bytes);
	head_chunkfile_unpin(r->file, &r->pin);
	free(r->record);
	free(r);
}

static struct file_piece *piece_find(struct cut_file *r, uint64_t no)
{
	for (int i = 0; i < PIECES; i++) {
		if (r->pieces[i].no == no) {
			r->pieces[i].used = ++r->clock;
			return &r->pieces[i];
		}
	}
	return NULL;
}

/* Whether this piece is worth reading. */
static bool wanted_before(struct cut_file *r, uint64_t no)
{
	for (int i = 0; i < PIECES; i++)
		if (r->pieces[i].no + 1 == no)
			return true;
	for (int i = 0; i < WANTED; i++)
		if (r->wanted[i] == no || r->wanted[i] + 1 == no)
			return true;
	r->wanted[r->at_wanted++ % WANTED] = no;
	return false;
}

/* NULL: no memory, or it can't be read: then reading the record alone says why. */
static struct file_piece *piece_read(struct cut_file *r, uint64_t no)
{
	struct file_piece *p = &r->pieces[0];
	for (int i = 1; i < PIECES; i++)
		if (r->pieces[i].used < p->used)
			p = &r->pieces[i];
	p->no = UINT64_MAX;
	if (!p->bytes)
		p->bytes = malloc(PIECE_BYTES);
	uint64_t from = no * PIECE_BYTES, n = r->pin.flushed - from < PIECE_BYTES ? r->pin.flushed - from : PIECE_BYTES;
	if (!p->bytes || io_pread_full(r->pin.fd, p->bytes, (size_t)n, from, NULL) != OK)
		return NULL;
	p->no = no;
	p->used = ++r->clock;
	return p;
}

void head_cut_file_serve(struct cut_file *r, const struct chain_record *v, size_t n)
{
	r->served = v;
	r->n_served = n;
	r->at_served = 0;
}

/* NULL: it is not among them. */
static const uint8_t *served(struct cut_file *r, uint64_t off, size_t n)
{
	for (; r->at_served < r->n_served; r->at_served++) {
		const struct chain_record *x = &r->served[r->at_served];
		if (x->off == off)
			return n <= x->bytes.n ? (const uint8_t *)x->bytes.p : NULL;
	}
	return NULL;
}

errc head_cut_file_bytes(struct cut_file *r, uint64_t off, size_t n, const uint8_t **out, struct err *err)
{
	uint64_t no = off / PIECE_BYTES, last = (off + n - 1) / PIECE_BYTES;
	bool in_file = off + n <= r->pin.flushed;
	*out = served(r, off, n);
	if (*out)
		return OK;
	if (r->cap_record < n) {
		uint8_t *p = realloc(r->record, n);
		if (!p)
			return err_set(err, ERR_NOMEM, "no memory for a chunk of %zu bytes", n);
		r->record = p;
		r->cap_record = n;
	}
	*out = r->record;
	size_t done = 0;
	for (; in_file && no <= last; no++) {
		struct file_piece *p = piece_find(r, no);
		if (!p && (no > off / PIECE_BYTES || wanted_before(r, no)))
			p = piece_read(r, no);
		if (!p)
			break;
		size_t at = (size_t)(off + done - no * PIECE_BYTES), part = PIECE_BYTES - at < n - done ? PIECE_BYTES - at : n - done;
		if (part == n) {
			*out = p->bytes + at;
			return OK;
		}
		memcpy(r->record + done, p->bytes + at, part);
		done += part;
	}
	if (done == n)
		return OK;
	/* As anybody reads it: that knows what to do when it can't be read. */
	return head_chunkfile_bytes_read(r->file, off, n, r->record, err);
}

errc head_cut_file_read(struct cut_file *r, uint64_t off, uint32_t len, const uint8_t **payload, struct err *err)
{
	errc rc = OK;
	const uint8_t *bytes = NULL;
	size_t n = len + (size_t)CHUNKFILE_OVERHEAD;
	TRY(head_cut_file_bytes(r, off, n, &bytes, err));
	TRY(head_chunkfile_judge(r->file, off, len, bytes, err));
	*payload = bytes + CHUNKFILE_HEADER;
fail:
	return rc;
}
