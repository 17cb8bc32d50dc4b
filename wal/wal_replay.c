/* wal/wal_replay.c - what was acknowledged comes back: the walk's frames go to the caller, its findings into log and metrics; then
 * the log is made ready for appending.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "wal/wal_int.h"

enum { PROGRESS_MS = 250 };

struct replay {
	struct wal *w;
	struct wal_walk walk;
	errc (*frame)(void *arg, const struct wal_frame *f, struct err *err);
	void *arg;
	void (*progress)(void *arg, uint64_t first, uint64_t last, uint64_t now);
	int64_t progress_ms;
};

static void replay_progress(struct replay *r, uint64_t now, bool always)
{
	if (!r->progress)
		return;
	int64_t ms = io_mono_ms();
	if (!always && ms - r->progress_ms < PROGRESS_MS)
		return;
	r->progress_ms = ms;
	uint64_t first = 0, last = 0;
	for (size_t i = 0; i < r->walk.n_files; i++) {
		uint64_t n = r->walk.files[i].number;
		if (n <= r->walk.checkpoint)
			continue;
		first = first == 0 ? n : first;
		last = n;
	}
	r->progress(r->arg, first, last, now);
}

static errc replay_frame(void *arg, const struct wal_frame *f, const struct wal_frame_header *h, struct err *err)
{
	struct replay *r = arg;
	(void)h;
	if (r->progress)
		replay_progress(r, f->segment, false);
	return f->payload.n > 0 ? r->frame(r->arg, f, err) : OK;
}

static void replay_event(void *arg, const struct wal_event *e)
{
	struct replay *r = arg;
	struct wal *w = r->w;
	switch (e->kind) {
	case WAL_EVENT_CHECKPOINT:
		break;
	case WAL_EVENT_SEGMENT:
		replay_progress(r, e->segment, false);
		break;
	case WAL_EVENT_DAMAGE:
		log_error("damage in the log: it costs the frames that stood there", LSTR("path", e->path), LU64("offset", e->offset),
			LU64("bytes", e->bytes), LSTR("what", e->why));
		metric_add(w->m_damaged, 1);
		break;
	case WAL_EVENT_TORN:
		log_info("the log's end was torn, as a crash does", LSTR("path", e->path), LU64("offset", e->offset), LU64("bytes", e->bytes));
		break;
	case WAL_EVENT_LOST:
		log_error("log frames are lost", LSTR("path", e->path), LU64("offset", e->offset), LU64("first_seq", e->seq),
			LU64("frames", e->frames), LU64("samples", e->samples), LSTR("what", e->why));
		break;
	case WAL_EVENT_LOST_TORN:
		log_warn("log frames that were not known to be synced are not there", LSTR("path", e->path), LU64("offset", e->offset),
			LU64("first_seq", e->seq), LU64("frames", e->frames), LU64("samples", e->samples));
		break;
	case WAL_EVENT_MISSING:
		log_error("files of the log are missing", LSTR("path", e->path), LU64("first", e->segment), LU64("last", e->segment_last),
			LSTR("what", e->why));
		metric_add(w->m_damaged, 1);
		break;
	case WAL_EVENT_RENAMED:
		log_warn("a log segment has another's name: its header is followed", LSTR("path", e->path), LU64("number", e->segment_last));
		break;
	case WAL_EVENT_FOREIGN:
		log_error("a file of another log is not read", LSTR("path", e->path));
		metric_add(w->m_damaged, 1);
		break;
	case WAL_EVENT_CHAIN:
		log_error("a log segment does not continue the one before it", LSTR("path", e->path), LU64("seq", e->seq), LSTR("what", e->why));
		break;
	}
}

static errc finished_add(struct wal *w, const struct wal_file *f, struct err *err)
{
	struct wal_segment *s = calloc(1, sizeof *s);
	if (!s)
		return err_set(err, ERR_NOMEM, "the list of log segments");
	*s = (struct wal_segment){
		.number = f->number,
		.name = f->name,
		.fd = -1,
		.size = f->size,
		.off = f->size,
		.pos = f->pos,
		.first_seq = f->first_seq,
		.first_sample = f->first_sample,
	};
	struct wal_segment **p = &w->finished;
	while (*p)
		p = &(*p)->next;
	*p = s;
	return OK;
}

/* How appending will start, from how reading ended. */
static void start_plan(struct wal *w, const struct wal_walk *walk)
{
	const struct wal_walk_end *end = &walk->end;
	struct wal_start *st = &w->start;
	const struct wal_file *f = end->file < walk->n_files ? &walk->files[end->file] : NULL;

	w->log = walk->log;
	if (w->log == 0)
		io_random(&w->log, sizeof w->log);
	if (w->log == 0)
		w->log = 1;
	*st = (struct wal_start){.next_seq = walk->next_seq, .next_sample = walk->next_sample, .last_crc = walk->last_crc};
	if (st->next_seq == 0) /* nothing says where the numbers were: far above what they can have been */
		st->next_seq = (WAL_SEQ_STEP << 16) + 1;
	else if (f)
		st->next_seq += WAL_SEQ_STEP;

	if (f) {
		st->from = f->name;
		st->off = end->off;
		st->tail_off = end->tail_off;
		st->data_end = end->data_end;
		st->in_place = f->state == WAL_HEADER_OK && f->number == f->name && f->number == walk->max_name && f->h.log == w->log &&
			       !end->data_behind && f->size >= end->off + WAL_FRAME_BYTES && end->data_end == end->off;
	}
	if (st->in_place) {
		st->header = f->h;
		return;
	}
	st->tail = f && end->data_behind;
	st->header = (struct wal_header){
		.log = w->log,
		.segment = walk->max_name + 1,
		.prev_segment = f ? f->number : walk->checkpoint,
		.prev_seq = st->tail ? end->settled_seq : walk->last_seq,
		.prev_crc = st->tail ? end->settled_crc : walk->last_crc,
		.first_seq = st->tail && end->tail_seq != 0 && end->tail_seq < st->next_seq ? end->tail_seq : st->next_seq,
		.first_sample = st->tail ? end->tail_sample : st->next_sample,
		.pos = walk->next_pos,
	};
}

/* Numbers that leave no room to go on were not written by a log: better to stop than to write what no reader believes. */
static errc numbers_check(const struct wal *w, const struct wal_walk *walk, struct err *err)
{
	errc rc = OK;
	const uint64_t most = INT64_MAX / 2;
	CHECK(walk->next_seq < most && walk->next_sample < most && walk->next_pos < most && walk->max_name < most, ERR_CORRUPT,
		"%s: frame %" PRIu64 ", sample %" PRIu64 ", position %" PRIu64 ", segment %" PRIu64 ": no log gets that far", w->dir, walk->next_seq,
		walk->next_sample, walk->next_pos, walk->max_name);
fail:
	return rc;
}

/* What a crash or an interrupted checkpoint left behind. Failing to remove costs disk, nothing else. */
static errc leftovers_remove(struct wal *w, const struct wal_walk *walk, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	char **names;
	size_t n;
	char path[WAL_PATH_BYTES];
	arena_init(&arena, 64 * MIB);
	TRY(io_listdir(w->dir, &arena, &names, &n, err));
	for (size_t i = 0; i < n; i++) {
		uint64_t number;
		enum wal_name kind = wal_name_parse(names[i], &number);
		bool old = (kind == WAL_NAME_CHECKPOINT_A || kind == WAL_NAME_CHECKPOINT_B) && number < walk->checkpoint && walk->checkpoint_whole;
		if ((kind != WAL_NAME_TMP && !old) || strlen(w->dir) + strlen(names[i]) + 2 > sizeof path)
			continue;
		memcpy(path, w->dir, strlen(w->dir));
		path[strlen(w->dir)] = '/';
		memcpy(path + strlen(w->dir) + 1, names[i], strlen(names[i]) + 1);
		(void)!io_unlink(path, NULL);
	}
	for (size_t i = 0; i < walk->n_files; i++) {
		const struct wal_file *f = &walk->files[i];
		wal_path_segment(path, w->dir, f->name);
		bool replaced = f->number <= walk->checkpoint && f->name <= walk->checkpoint && walk->checkpoint_whole;
		if (!replaced && !f->empty) {
			if (!(w->start.in_place && f->name == w->start.from))
				TRY(finished_add(w, f, err));
		} else if (io_unlink(path, NULL) == OK) {
			log_info("log segment removed", LSTR("path", path), LSTR("why", f->empty ? "never used" : "replaced by a checkpoint"));
		}
	}
fail:
	arena_free(&arena);
	return rc;
}

static errc threads_start(struct wal *w, struct err *err)
{
	errc rc = OK;
	CHECK(pthread_create(&w->preparer, NULL, wal_preparer, w) == 0, ERR_AGAIN, "no thread for the log's segments");
	w->has_preparer = true;
	CHECK(pthread_create(&w->syncer, NULL, wal_syncer, w) == 0, ERR_AGAIN, "no thread for the log's syncs");
	w->has_syncer = true;
fail:
	return rc;
}

errc wal_replay(struct wal *w, errc (*frame)(void *arg, const struct wal_frame *f, struct err *err), void *arg,
	void (*progress)(void *arg, uint64_t segment_first, uint64_t segment_last, uint64_t segment_now), struct wal_replay_stats *stats,
	struct err *err)
{
	errc rc = OK;
	ASSERT(!w->replayed);
	w->replayed = true;
	struct replay r = {
		.w = w,
		.frame = frame,
		.arg = arg,
		.progress = progress,
		.walk = {.dir = w->dir, .frame = replay_frame, .event = replay_event, .arg = &r, .behind = w->behind},
	};
	int64_t start = io_mono_ms();
	struct err e = {0};
	TRY(wal_walk_run(&r.walk, err));
	TRY(numbers_check(w, &r.walk, err));
	metric_add(w->m_frames_lost, r.walk.frames_lost);
	metric_add(w->m_samples_lost, r.walk.samples_lost);

	for (int i = 0; i < 2; i++) {
		if (r.walk.checkpoint == 0 || !r.walk.checkpoint_whole || !r.walk.checkpoint_missing[i])
			continue;
		rc = wal_checkpoint_mend(w->dir, r.walk.checkpoint, i, &e);
		if (rc != OK)
			log_warn("a checkpoint has one copy only", LSTR("dir", w->dir), LU64("checkpoint", r.walk.checkpoint), LERR(&e));
	}
	start_plan(w, &r.walk);
	w->checkpoint = r.walk.checkpoint;
	TRY(leftovers_remove(w, &r.walk, err));
	rc = wal_start(w, &e);
	if (rc == ERR_NOSPACE) {
		/* The syncer tries on; reading works meanwhile. */
		w->no_space = true;
		metric_set(w->m_waits, 1);
		w->why = e;
		log_warn("the log has no room: writes wait", LSTR("dir", w->dir), LERR(&e));
	} else if (rc != OK) {
		if (err)
			*err = e;
		goto fail;
	}
	w->running = true;
	TRY(threads_start(w, err));
	rc = OK;
	struct wal_status now;
	wal_status(w, &now);
	replay_progress(&r, now.segment_now, true);
	if (stats) {
		size_t segments = 0;
		for (size_t i = 0; i < r.walk.n_files; i++)
			segments += !r.walk.files[i].empty && r.walk.files[i].number > r.walk.checkpoint;
		*stats = (struct wal_replay_stats){
			.segments = segments,
			.frames = r.walk.frames,
			.samples = r.walk.samples,
			.bytes = r.walk.bytes,
			.frames_lost = r.walk.frames_lost,
			.samples_lost = r.walk.samples_lost,
			.frames_torn = r.walk.frames_torn,
			.samples_torn = r.walk.samples_torn,
			.damaged_ranges = r.walk.damaged_ranges,
			.duration_ms = io_mono_ms() - start,
		};
	}
fail:
	wal_walk_free(&r.walk);
	return rc;
}

bool wal_mark(struct wal *w, struct wal_mark *out)
{
	pthread_mutex_lock(&w->mu);
	*out = w->mark;
	out->checkpoint = w->checkpoint;
	pthread_mutex_unlock(&w->mu);
	return out->seq > 0;
}

/* Only segments that a checkpoint replaces ever go, the oldest first: who finds the frame's own segment finds all that was written behind. */
errc wal_replay_behind(struct wal *w, const struct wal_mark *mark, struct err *err)
{
	errc rc = OK;
	int fd = -1;
	struct arena arena;
	char **names, path[WAL_PATH_BYTES];
	size_t n, got = 0;
	uint8_t bytes[WAL_HEADER_BYTES];
	struct wal_header file;
	struct wal_frame_header h;
	uint32_t version;
	ASSERT(!w->replayed);
	arena_init(&arena, 64 * MIB);
	if (!mark) {
		w->behind = (struct wal_mark){0};
		return OK;
	}
	TRY(io_listdir(w->dir, &arena, &names, &n, err));
	for (size_t i = 0; i < n; i++) {
		uint64_t number;
		enum wal_name kind = wal_name_parse(names[i], &number);
		if (kind == WAL_NAME_CHECKPOINT_A || kind == WAL_NAME_CHECKPOINT_B)
			CHECK(number < mark->segment, ERR_NOTFOUND, "%s: checkpoint %" PRIu64 " has replaced segment %" PRIu64, w->dir, number,
				mark->segment);
	}
	CHECK(mark->seq > 0 && mark->offset <= INT64_MAX / 2, ERR_NOTFOUND, "%s: no frame of a log", w->dir);
	wal_path_segment(path, w->dir, mark->segment);
	TRY(io_open(path, IO_READ, &fd, err));
	TRY(io_pread(fd, bytes, sizeof bytes, 0, &got, err));
	CHECK(got == sizeof bytes && wal_header_get(bytes, &file, &version) == WAL_HEADER_OK && !file.checkpoint && file.segment == mark->segment &&
			file.log == mark->log && file.first_seq <= mark->seq,
		ERR_NOTFOUND, "%s: another segment than it was", path);
	TRY(io_pread(fd, bytes, WAL_FRAME_BYTES, mark->offset, &got, err));
	CHECK(got == WAL_FRAME_BYTES && wal_frame_get(bytes, &h) && h.log == mark->log && h.segment == mark->segment && h.seq == mark->seq &&
			h.header_crc == mark->crc && h.first_sample == mark->first_sample && file.pos + mark->offset == mark->pos,
		ERR_NOTFOUND, "%s: frame %" PRIu64 " does not stand at byte %" PRIu64, path, mark->seq, mark->offset);
	w->behind = *mark;
fail:
	io_close(fd);
	arena_free(&arena);
	return rc;
}

struct peek {
	errc (*frame)(void *arg, const struct wal_frame *f, struct err *err);
	void *arg;
};

static errc peek_frame(void *arg, const struct wal_frame *f, const struct wal_frame_header *h, struct err *err)
{
	struct peek *p = arg;
	(void)h;
	return f->payload.n > 0 ? p->frame(p->arg, f, err) : OK;
}

errc wal_peek(struct wal *w, errc (*frame)(void *arg, const struct wal_frame *f, struct err *err), void *arg, struct err *err)
{
	struct peek p = {frame, arg};
	struct wal_walk walk = {.dir = w->dir, .frame = peek_frame, .arg = &p};
	errc rc = wal_walk_run(&walk, err);
	wal_walk_free(&walk);
	return rc;
}
