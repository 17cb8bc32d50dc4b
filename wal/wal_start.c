/* wal/wal_start.c - from a log that was read to one that can be appended to.
 *
 * A log that ends in order goes on in its newest segment. After a crash the frames behind the last known sync are copied into a new segment first:
 * the page cache that replay read them from may hold what a failed fsync left off the disk, and what was replayed is about to
 * be relied on. The copy is written and synced under another name, so a crash meanwhile changes nothing; its header says from
 * which sequence number on it replaces what stands in the old segment.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "wal/wal_int.h"

static errc current_set(struct wal *w, int fd, uint64_t size, uint64_t off, struct err *err)
{
	const struct wal_header *h = &w->start.header;
	struct wal_segment *s = calloc(1, sizeof *s);
	if (!s) {
		io_close(fd);
		return err_set(err, ERR_NOMEM, "a log segment");
	}
	*s = (struct wal_segment){
		.number = h->segment,
		.name = h->segment,
		.fd = fd,
		.size = size,
		.off = off,
		.synced = off,
		.pos = h->pos,
		.first_seq = h->first_seq,
		.first_sample = h->first_sample,
		.named = true,
	};
	w->out_seq = w->start.next_seq - (w->start.marked ? 0 : 1);
	w->out_sample = w->start.next_sample;
	w->out_crc = w->start.last_crc;
	pthread_mutex_lock(&w->mu);
	w->current = s;
	w->seq = w->out_seq;
	w->sample = w->out_sample;
	w->pos = s->pos + off;
	w->mark = w->out_mark;
	wal_gauges_locked(w);
	pthread_mutex_unlock(&w->mu);
	w->started = true;
	return OK;
}

/* An empty frame with the stepped number, synced before anything is told: without it the next start might step from the same number again. */
static errc start_mark(struct wal *w, int fd, uint64_t *off, struct err *err)
{
	struct wal_frame_header h = {
		.log = w->log,
		.segment = w->start.header.segment,
		.seq = w->start.next_seq,
		.first_sample = w->start.next_sample,
		.durable = w->start.in_place ? *off : 0,
	};
	uint8_t bytes[WAL_FRAME_BYTES];
	wal_frame_put(bytes, &h);
	errc rc = io_pwrite(fd, bytes, sizeof bytes, *off, err);
	if (rc != OK)
		return rc;
	w->out_mark = (struct wal_mark){
		.seq = h.seq,
		.first_sample = h.first_sample,
		.segment = h.segment,
		.offset = *off,
		.pos = w->start.header.pos + *off,
		.log = h.log,
		.crc = h.header_crc,
	};
	*off += sizeof bytes;
	w->start.marked = true;
	w->start.last_crc = h.header_crc;
	return OK;
}

static errc start_in_place(struct wal *w, struct err *err)
{
	errc rc = OK;
	char path[WAL_PATH_BYTES];
	int fd = -1;
	uint64_t size, off = w->start.off;
	/* Whoever named it may have been killed before that was synced. */
	rc = io_fsync_dir(w->dir, err);
	if (rc != OK)
		return ERR_IO;
	wal_path_segment(path, w->dir, w->start.from);
	TRY(io_open(path, IO_READ | IO_WRITE, &fd, err));
	TRY(io_size(fd, &size, err));
	TRY(start_mark(w, fd, &off, err));
	rc = io_fdatasync(fd, err);
	if (rc != OK) {
		rc = ERR_IO;
		goto fail;
	}
	return current_set(w, fd, size, off, err);
fail:
	io_close(fd);
	return rc;
}

/* The valid frames of `r` from where it stands, under the new segment's number. A gap among them was never known to be synced, and says so. */
static errc tail_copy(struct wal *w, struct wal_reader *r, int fd, uint64_t *off, struct err *err)
{
	errc rc = OK;
	uint64_t next = w->start.header.first_seq;
	for (;;) {
		struct wal_item item;
		TRY(wal_reader_next(r, &item, err));
		if (item.kind == WAL_ITEM_END)
			break;
		/* What is to come has numbers from start.next_seq on: it would be taken for older than a frame above that, which no log of this name wrote. */
		if (item.kind != WAL_ITEM_FRAME || item.h.seq < next || item.h.seq >= w->start.next_seq)
			continue;
		struct wal_frame_header h = item.h;
		h.segment = w->start.header.segment;
		h.durable = 0;
		h.flags &= ~(uint32_t)WAL_FRAME_CLEAN;
		if ((h.seq - next) % WAL_SEQ_STEP != 0)
			h.flags |= WAL_FRAME_GAP;
		next = h.seq + 1;
		uint64_t size = wal_frame_size(h.stored);
		memcpy(w->out + WAL_FRAME_BYTES, item.stored, h.stored);
		memset(w->out + WAL_FRAME_BYTES + h.stored, 0, (size_t)size - WAL_FRAME_BYTES - h.stored);
		wal_frame_put(w->out, &h);
		TRY(io_pwrite(fd, w->out, (size_t)size, *off, err));
		*off += size;
		w->start.last_crc = h.header_crc;
	}
fail:
	return rc;
}

static errc start_anew(struct wal *w, struct err *err)
{
	errc rc = OK;
	struct wal_start *st = &w->start;
	struct wal_header *h = &st->header;
	char from[WAL_PATH_BYTES], to[WAL_PATH_BYTES], tmp[WAL_PATH_BYTES];
	struct wal_reader r = WAL_READER_INIT;
	int fd = -1;
	bool written = false;
	uint64_t off = WAL_HEADER_BYTES, size = w->segment_bytes;

	wal_path_segment(to, w->dir, h->segment);
	wal_path_tmp(tmp, to);
	if (st->tail) {
		wal_path_segment(from, w->dir, st->from);
		TRY(wal_reader_open(&r, from, err));
		r.off = st->tail_off > WAL_HEADER_BYTES ? st->tail_off : WAL_HEADER_BYTES;
		r.segment = h->prev_segment;
		r.log = w->log;
		uint64_t need = WAL_HEADER_BYTES + st->data_end - r.off + WAL_FRAME_BYTES;
		if (size < need)
			size = (need + 4095) & ~UINT64_C(4095);
	}
	TRY(wal_segment_allocate(w->dir, tmp + strlen(w->dir) + 1, size, &fd, err));
	written = true;
	if (st->tail)
		TRY(tail_copy(w, &r, fd, &off, err));
	if (st->from != 0)
		TRY(start_mark(w, fd, &off, err));
	h->synced = off;
	uint8_t bytes[WAL_HEADER_BYTES];
	wal_header_put(bytes, h);
	TRY(io_pwrite(fd, bytes, sizeof bytes, 0, err));
	rc = io_fsync(fd, err);
	if (rc != OK) {
		rc = ERR_IO;
		goto fail;
	}
	TRY(io_rename(tmp, to, err));
	written = false;
	rc = io_fsync_dir(w->dir, err);
	if (rc != OK) {
		/* Final, and the next start must not go on in a file that only seems to have a name. */
		(void)!io_unlink(to, NULL);
		rc = ERR_IO;
		goto fail;
	}
	wal_reader_free(&r);
	return current_set(w, fd, size, off, err);
fail:
	wal_reader_free(&r);
	io_close(fd);
	if (written)
		(void)!io_unlink(tmp, NULL);
	return rc;
}

/* The old segment's unused rest goes back to the file system; what damage left behind its frames stays for a person to look at. */
static void from_shrink(struct wal *w)
{
	char path[WAL_PATH_BYTES];
	int fd = -1;
	if (w->start.from == 0)
		return;
	wal_path_segment(path, w->dir, w->start.from);
	uint64_t end = w->start.data_end > w->start.off ? w->start.data_end : w->start.off, size;
	if (io_open(path, IO_READ | IO_WRITE, &fd, NULL) == OK && io_size(fd, &size, NULL) == OK && size > end && io_truncate(fd, end, NULL) == OK) {
		pthread_mutex_lock(&w->mu);
		for (struct wal_segment *s = w->finished; s; s = s->next) {
			if (s->name == w->start.from)
				s->size = end;
		}
		wal_gauges_locked(w);
		pthread_mutex_unlock(&w->mu);
	}
	io_close(fd);
}

errc wal_start(struct wal *w, struct err *err)
{
	if (w->start.in_place)
		return start_in_place(w, err);
	errc rc = start_anew(w, err);
	if (rc == OK)
		from_shrink(w);
	return rc;
}
