/* wal/wal_reader.c - one file of the log as a sequence of frames and of ranges that hold none.
 *
 * A window of one frame and a bit slides over the file, filled by reads of a megabyte and more. Where no valid header stands, the next
 * one is looked for in steps of 8 bytes. A page that the disk refuses to give counts as zeros: it costs its frame, not the start.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "wal/wal_int.h"

enum { READER_BUF_BYTES = 4 * 1024 * 1024 + 1024 * 1024, READER_PAGE_BYTES = 4096 };

errc wal_reader_open(struct wal_reader *r, const char *path, struct err *err)
{
	errc rc = OK;
	r->fd = -1;
	TRY(io_open(path, IO_READ, &r->fd, err));
	TRY(io_size(r->fd, &r->size, err));
	CHECK(r->size <= INT64_MAX, ERR_CORRUPT, "%s: %" PRIu64 " bytes are no log file", path, r->size);
	r->written_end = io_data_end(r->fd, r->size);
	size_t cap = r->size < READER_BUF_BYTES ? (size_t)r->size + 1 : READER_BUF_BYTES;
	if (r->cap < cap) {
		free(r->buf);
		r->cap = 0;
		r->buf = malloc(cap);
		CHECK(r->buf, ERR_NOMEM, "%s: no memory for reading", path);
		r->cap = cap;
	}
	r->off = 0;
	r->buf_off = 0;
	r->buf_n = 0;
	r->bad_reads = 0;
	return OK;
fail:
	wal_reader_close(r);
	return rc;
}

void wal_reader_close(struct wal_reader *r)
{
	io_close(r->fd);
	r->fd = -1;
}

void wal_reader_free(struct wal_reader *r)
{
	wal_reader_close(r);
	free(r->buf);
	r->buf = NULL;
	r->cap = 0;
}

/* Page by page, so that one bad sector costs itself. */
static void reader_salvage(struct wal_reader *r, uint8_t *out, size_t n, uint64_t off)
{
	for (size_t i = 0; i < n; i += READER_PAGE_BYTES) {
		size_t len = n - i < READER_PAGE_BYTES ? n - i : READER_PAGE_BYTES, got = 0;
		errc rc = io_pread(r->fd, out + i, len, off + i, &got, NULL);
		if (rc != OK)
			r->bad_reads++;
		if (rc != OK || got < len)
			memset(out + i + got, 0, len - got);
	}
}

errc wal_reader_peek(struct wal_reader *r, uint64_t off, size_t n, const uint8_t **p, size_t *got, struct err *err)
{
	ASSERT(n <= READER_BUF_BYTES && off >= r->buf_off);
	uint64_t left = off < r->size ? r->size - off : 0;
	if (n > left)
		n = (size_t)left;
	if (off + n > r->buf_off + r->buf_n) {
		size_t keep = 0;
		if (off < r->buf_off + r->buf_n) {
			keep = (size_t)(r->buf_off + r->buf_n - off);
			memmove(r->buf, r->buf + (off - r->buf_off), keep);
		}
		size_t want = r->cap - keep;
		if (want > left - keep)
			want = (size_t)(left - keep);
		size_t have = 0;
		errc rc = io_pread(r->fd, r->buf + keep, want, off + keep, &have, err);
		if (rc == ERR_IO) {
			reader_salvage(r, r->buf + keep, want, off + keep);
			have = want;
		} else if (rc != OK) {
			return rc;
		}
		r->buf_off = off;
		r->buf_n = keep + have;
		if (have < want) /* truncated while we read */
			r->size = off + r->buf_n;
		if (n > r->buf_n)
			n = r->buf_n;
	}
	*p = r->buf + (off - r->buf_off);
	*got = n;
	return OK;
}

/* A header that may be believed: right by itself, of this log and this segment. */
static bool reader_header(struct wal_reader *r, const uint8_t *p, struct wal_frame_header *h)
{
	if (!wal_frame_get(p, h) || h->segment != r->segment)
		return false;
	if (r->any_log) {
		r->log = h->log;
		r->any_log = false;
	}
	return h->log == r->log;
}

/* From r->off, where no header stands, to the next one or to the end of the file. */
static errc reader_resync(struct wal_reader *r, struct wal_item *item, struct err *err)
{
	errc rc = OK;
	uint64_t off = r->off, data_end = r->off;
	for (;;) {
		const uint8_t *p;
		size_t got;
		TRY(wal_reader_peek(r, off, MIB, &p, &got, err));
		uint64_t key = wal_frame_key(r->log);
		uint64_t mask = r->any_log ? UINT32_MAX : UINT64_MAX;
		size_t i = 0;
		bool found = false;
		for (; i + WAL_FRAME_BYTES <= got; i += 8) {
			uint64_t word = get_le64(p + i);
			if (LIKELY(word == 0))
				continue;
			struct wal_frame_header h;
			if (UNLIKELY((word & mask) == (key & mask)) && off + i > r->off && reader_header(r, p + i, &h)) {
				found = true;
				break;
			}
			data_end = off + i + 8;
		}
		uint64_t base = off;
		off += i;
		if (found)
			break;
		/* What follows the frames of the newest segment was allocated and never written: a hundred MiB that need not be read. */
		if (off >= r->written_end) {
			off = r->size;
			break;
		}
		if (off + WAL_FRAME_BYTES > r->size) {
			for (; i < got; i++) {
				if (p[i] != 0)
					data_end = base + i + 1;
			}
			off = r->size;
			break;
		}
	}
	item->kind = WAL_ITEM_NOTHING;
	item->offset = r->off;
	item->bytes = off - r->off;
	item->data_bytes = (data_end < off ? data_end : off) - r->off;
	r->off = off;
fail:
	return rc;
}

errc wal_reader_next(struct wal_reader *r, struct wal_item *item, struct err *err)
{
	errc rc = OK;
	const uint8_t *p;
	size_t got;
	*item = (struct wal_item){.kind = WAL_ITEM_END, .offset = r->off};
	if (r->off >= r->size)
		return OK;
	TRY(wal_reader_peek(r, r->off, WAL_FRAME_BYTES, &p, &got, err));
	if (got == 0)
		return OK;
	if (got < WAL_FRAME_BYTES || !reader_header(r, p, &item->h))
		return reader_resync(r, item, err);

	uint64_t size = wal_frame_size(item->h.stored), left = r->size - r->off;
	TRY(wal_reader_peek(r, r->off, (size_t)(WAL_FRAME_BYTES + item->h.stored), &p, &got, err));
	bool whole = got == WAL_FRAME_BYTES + item->h.stored && crc32c(0, p + WAL_FRAME_BYTES, item->h.stored) == item->h.crc;
	item->kind = whole ? WAL_ITEM_FRAME : WAL_ITEM_BAD_PAYLOAD;
	item->bytes = size < left ? size : left;
	item->data_bytes = item->bytes;
	item->stored = p + WAL_FRAME_BYTES;
	r->off += item->bytes;
fail:
	return rc;
}
