/* wal/wal_checkpoint.c - what replay needs from old segments, in two files of the same bytes; then the old segments go.
 *
 * The files are NNNNNNNN.checkpoint.a and .b: a header, frames numbered from 1 as in segments (small ones, so that damage in one copy costs
 * little to read from the other), and an empty frame with the END flag. Both are written as .tmp, synced, renamed, and the
 * directory synced before the first segment is removed: at every moment the old segments or one whole checkpoint are there.
 */
#include <inttypes.h>
#include <lz4.h>
#include <stdlib.h>
#include "wal/wal_int.h"

enum { CHECKPOINT_FRAME_BYTES = 512 * 1024 };

struct wal_checkpoint {
	struct wal *w;
	uint64_t upto;
	uint64_t seq, off;
	int fd[2];
	bool made[2];
	uint8_t *raw, *out;
	size_t raw_n, raw_cap, out_cap;
	void *lz4;
};

static void checkpoint_path(const struct wal_checkpoint *cp, int copy, char path[WAL_PATH_BYTES], char tmp[WAL_PATH_BYTES])
{
	wal_path_checkpoint(path, cp->w->dir, cp->upto, copy);
	wal_path_tmp(tmp, path);
}

static void checkpoint_free(struct wal_checkpoint *cp)
{
	for (int i = 0; i < 2; i++)
		io_close(cp->fd[i]);
	free(cp->lz4);
	free(cp->out);
	free(cp->raw);
	free(cp);
}

void wal_checkpoint_abort(struct wal_checkpoint *cp)
{
	if (!cp)
		return;
	for (int i = 0; i < 2; i++) {
		char path[WAL_PATH_BYTES], tmp[WAL_PATH_BYTES];
		checkpoint_path(cp, i, path, tmp);
		if (cp->made[i])
			(void)!io_unlink(tmp, NULL);
	}
	checkpoint_free(cp);
}

static errc checkpoint_write(struct wal_checkpoint *cp, const uint8_t *p, size_t n, struct err *err)
{
	errc rc = OK;
	for (int i = 0; i < 2; i++)
		TRY(io_pwrite(cp->fd[i], p, n, cp->off, err));
	cp->off += n;
fail:
	return rc;
}

errc wal_checkpoint_begin(struct wal *w, uint64_t upto, struct wal_checkpoint **out, struct err *err)
{
	errc rc = OK;
	struct wal_checkpoint *cp = NULL;
	*out = NULL;
	struct wal_header h = {.checkpoint = true, .segment = upto};

	/* What follows the replaced segments: the first of the rest says where the numbers stand. */
	pthread_mutex_lock(&w->mu);
	bool allowed = w->current && upto > 0 && upto < w->current->number;
	const struct wal_segment *next = w->finished;
	while (next && (next->number <= upto || next->first_seq == 0))
		next = next->next;
	if (!next)
		next = w->current;
	if (next) {
		h.first_seq = next->first_seq ? next->first_seq : 1;
		h.first_sample = next->first_sample;
		h.pos = next->pos;
	}
	pthread_mutex_unlock(&w->mu);
	CHECK(allowed, ERR_INVALID, "a checkpoint up to log segment %" PRIu64 ", which is not finished", upto);
	h.log = w->log;

	cp = calloc(1, sizeof *cp);
	CHECK(cp, ERR_NOMEM, "a checkpoint");
	*cp = (struct wal_checkpoint){.w = w, .upto = upto, .fd = {-1, -1}, .raw_cap = CHECKPOINT_FRAME_BYTES};
	cp->raw = malloc(cp->raw_cap);
	cp->out_cap = (size_t)wal_frame_size(CHECKPOINT_FRAME_BYTES);
	cp->out = malloc(cp->out_cap);
	cp->lz4 = malloc((size_t)LZ4_sizeofState());
	CHECK(cp->raw && cp->out && cp->lz4, ERR_NOMEM, "a checkpoint");
	for (int i = 0; i < 2; i++) {
		char path[WAL_PATH_BYTES], tmp[WAL_PATH_BYTES];
		checkpoint_path(cp, i, path, tmp);
		TRY(io_open(tmp, IO_READ | IO_WRITE | IO_CREATE | IO_TRUNC, &cp->fd[i], err));
		cp->made[i] = true;
	}
	uint8_t bytes[WAL_HEADER_BYTES];
	wal_header_put(bytes, &h);
	TRY(checkpoint_write(cp, bytes, sizeof bytes, err));
	*out = cp;
	return OK;
fail:
	wal_checkpoint_abort(cp);
	return rc;
}

static errc checkpoint_flush(struct wal_checkpoint *cp, uint32_t flags, struct err *err)
{
	struct wal_frame_header h = {.log = cp->w->log, .segment = cp->upto, .seq = ++cp->seq, .flags = flags};
	uint64_t size = wal_frame_pack(&h, span_of(cp->raw, cp->raw_n), cp->out, cp->lz4);
	cp->raw_n = 0;
	return checkpoint_write(cp, cp->out, (size_t)size, err);
}

/* A record larger than a checkpoint's usual frame gets a frame of its own. */
static errc checkpoint_grow(struct wal_checkpoint *cp, size_t n, struct err *err)
{
	errc rc = OK;
	CHECK(n <= LIMIT_WAL_FRAME_BYTES, ERR_LIMIT, "a log record of %zu bytes, the most is %" PRIu64, n, (uint64_t)LIMIT_WAL_FRAME_BYTES);
	size_t out_cap = (size_t)wal_frame_size((uint32_t)n);
	uint8_t *raw = realloc(cp->raw, n);
	CHECK(raw, ERR_NOMEM, "a checkpoint");
	cp->raw = raw;
	cp->raw_cap = n;
	uint8_t *out = realloc(cp->out, out_cap);
	CHECK(out, ERR_NOMEM, "a checkpoint");
	cp->out = out;
	cp->out_cap = out_cap;
fail:
	return rc;
}

errc wal_checkpoint_put(struct wal_checkpoint *cp, struct span record, struct err *err)
{
	errc rc = OK;
	for (size_t i = 0; i < record.n;) {
		uint32_t samples;
		size_t size = wal_record_size((const uint8_t *)record.p + i, record.n - i, &samples);
		ASSERT(size > 0);
		if (cp->raw_n > 0 && cp->raw_n + size > CHECKPOINT_FRAME_BYTES)
			TRY(checkpoint_flush(cp, 0, err));
		if (size > cp->raw_cap || wal_frame_size((uint32_t)size) > cp->out_cap)
			TRY(checkpoint_grow(cp, size, err));
		memcpy(cp->raw + cp->raw_n, record.p + i, size);
		cp->raw_n += size;
		i += size;
	}
fail:
	return rc;
}

/* Older checkpoints, and segments that this one replaces. What can't be removed now is removed by the next start. */
static void checkpoint_clean(struct wal *w, uint64_t upto)
{
	struct arena arena;
	char **names;
	size_t n;
	char path[WAL_PATH_BYTES];
	arena_init(&arena, 64 * MIB);
	struct err err = {0};
	if (io_listdir(w->dir, &arena, &names, &n, &err) == OK) {
		for (size_t i = 0; i < n; i++) {
			uint64_t number;
			enum wal_name kind = wal_name_parse(names[i], &number);
			if ((kind != WAL_NAME_CHECKPOINT_A && kind != WAL_NAME_CHECKPOINT_B) || number >= upto)
				continue;
			wal_path_checkpoint(path, w->dir, number, kind == WAL_NAME_CHECKPOINT_B);
			if (io_unlink(path, &err) != OK)
				log_warn("an old checkpoint could not be removed", LERR(&err));
		}
	}
	arena_free(&arena);

	struct wal_segment *gone = NULL;
	pthread_mutex_lock(&w->mu);
	w->checkpoint = upto;
	for (struct wal_segment **p = &w->finished; *p;) {
		struct wal_segment *s = *p;
		if (s->number > upto) {
			p = &s->next;
			continue;
		}
		*p = s->next;
		s->next = gone;
		gone = s;
	}
	wal_gauges_locked(w);
	pthread_mutex_unlock(&w->mu);
	for (struct wal_segment *s = gone; s; s = s->next) {
		wal_path_segment(path, w->dir, s->name);
		if (io_unlink(path, &err) != OK)
			log_warn("an old log segment could not be removed", LERR(&err));
		else
			log_info("log segment removed", LSTR("path", path), LU64("checkpoint", upto));
	}
	wal_segments_free(gone);
}

errc wal_checkpoint_finish(struct wal_checkpoint *cp, struct err *err)
{
	errc rc = OK;
	if (cp->raw_n > 0)
		TRY(checkpoint_flush(cp, 0, err));
	TRY(checkpoint_flush(cp, WAL_FRAME_END, err));
	for (int i = 0; i < 2; i++)
		TRY(io_fsync(cp->fd[i], err));
	for (int i = 0; i < 2; i++) {
		char path[WAL_PATH_BYTES], tmp[WAL_PATH_BYTES];
		checkpoint_path(cp, i, path, tmp);
		TRY(io_rename(tmp, path, err));
		cp->made[i] = false;
	}
	TRY(io_fsync_dir(cp->w->dir, err));
	checkpoint_clean(cp->w, cp->upto);
	checkpoint_free(cp);
	return OK;
fail:
	wal_checkpoint_abort(cp);
	return rc;
}

errc wal_checkpoint_mend(const char *dir, uint64_t upto, int missing, struct err *err)
{
	errc rc = OK;
	char from[WAL_PATH_BYTES], to[WAL_PATH_BYTES], tmp[WAL_PATH_BYTES];
	int in = -1, out = -1;
	uint8_t *p = malloc(CHECKPOINT_FRAME_BYTES);
	CHECK(p, ERR_NOMEM, "a checkpoint's copy");
	wal_path_checkpoint(from, dir, upto, !missing);
	wal_path_checkpoint(to, dir, upto, missing);
	wal_path_tmp(tmp, to);
	TRY(io_open(from, IO_READ, &in, err));
	TRY(io_open(tmp, IO_READ | IO_WRITE | IO_CREATE | IO_TRUNC, &out, err));
	size_t got;
	for (uint64_t off = 0;; off += got) {
		TRY(io_pread(in, p, CHECKPOINT_FRAME_BYTES, off, &got, err));
		if (got == 0)
			break;
		TRY(io_pwrite(out, p, got, off, err));
	}
	TRY(io_fsync(out, err));
	TRY(io_rename(tmp, to, err));
	TRY(io_fsync_dir(dir, err));
fail:
	io_close(in);
	io_close(out);
	free(p);
	return rc;
}
