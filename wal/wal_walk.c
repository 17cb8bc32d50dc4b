/* wal/wal_walk.c - reading a whole log: the rules by which replay and inspection find what is there and name what is not.
 *
 * 1. The newest checkpoint N is read first; a frame that its .a has lost comes from its .b. Segments <= N are not read.
 * 2. Segments follow in the order of the numbers in their headers (a renamed file is found where it belongs); a file whose header is
 *    damaged goes by its name. A file of another log is not read.
 * 3. A segment's frames end where the next one's `first sequence` begins: what stands behind was copied there by a later start, after a
 *    sync that may have failed, and only the copy counts. A number that was read before is skipped.
 * 4. Numbers are dense but for steps of WAL_SEQ_STEP at starts, so a jump says exactly how many frames and samples are missing. It is damage (lost) when a later frame or a later
 *    segment says that those bytes were synced; else it is what a power cut leaves (torn).
 */
#include <inttypes.h>
#include <stdlib.h>
#include "wal/wal_int.h"

enum { WALK_ARENA_BYTES = 256 * 1024 * 1024, WALK_PENDING = 32 };

/* Bytes without a valid frame, and the frames that are missing with them. In the newest segment it waits for a sync that covers it, or for the
 * end of the log, to be called damage or torn. */
struct hole {
	uint64_t offset, bytes;
	uint64_t seq, frames, samples;
	const char *why;
};

struct walk {
	struct wal_walk *w;
	struct wal_reader reader, reader_b;
	uint8_t *raw; /* a decompressed frame */
	size_t raw_cap;
	struct wal_file *file;
	char path[WAL_PATH_BYTES];
	struct hole hole; /* before the next frame; bytes 0: none */
	struct hole pending[WALK_PENDING];
	size_t n_pending;
};

/* Room for a frame's records: at most LIMIT_WAL_FRAME_BYTES, as its header was checked for. */
static errc raw_room(struct walk *k, size_t n, struct err *err)
{
	if (n <= k->raw_cap)
		return OK;
	size_t cap = 64 * 1024;
	while (cap < n)
		cap *= 2;
	free(k->raw);
	k->raw_cap = 0;
	k->raw = malloc(cap);
	if (!k->raw)
		return err_set(err, ERR_NOMEM, "%s: a frame of %zu bytes", k->path, n);
	k->raw_cap = cap;
	return OK;
}

static void event(struct walk *k, struct wal_event e)
{
	if (e.kind == WAL_EVENT_DAMAGE || e.kind == WAL_EVENT_MISSING || e.kind == WAL_EVENT_FOREIGN)
		k->w->damaged_ranges++;
	if (!e.path)
		e.path = k->path;
	if (k->w->event)
		k->w->event(k->w->arg, &e);
}

static void event_hole(struct walk *k, const struct hole *p, bool torn)
{
	struct wal_walk *w = k->w;
	struct wal_event e = {.segment = k->file->number, .offset = p->offset, .bytes = p->bytes, .why = p->why};
	if (p->bytes > 0) {
		e.kind = torn ? WAL_EVENT_TORN : WAL_EVENT_DAMAGE;
		event(k, e);
	}
	if (p->frames == 0 && p->samples == 0)
		return;
	*(torn ? &w->frames_torn : &w->frames_lost) += p->frames;
	*(torn ? &w->samples_torn : &w->samples_lost) += p->samples;
	e.kind = torn ? WAL_EVENT_LOST_TORN : WAL_EVENT_LOST;
	e.seq = p->seq;
	e.frames = p->frames;
	e.samples = p->samples;
	event(k, e);
}

/* Holes before `durable` are damage; the rest waits until the end of the log says torn. */
static void pending_settle(struct walk *k, uint64_t durable)
{
	size_t n = 0;
	for (size_t i = 0; i < k->n_pending; i++) {
		if (k->pending[i].offset < durable)
			event_hole(k, &k->pending[i], false);
		else
			k->pending[n++] = k->pending[i];
	}
	k->n_pending = n;
}

static void pending_end(struct walk *k, bool torn)
{
	for (size_t i = 0; i < k->n_pending; i++)
		event_hole(k, &k->pending[i], torn);
	k->n_pending = 0;
}

/* The hole before a frame, or before a segment, with the numbers that are missing between what was read and `seq`. */
static void hole_close(struct walk *k, uint64_t seq, uint64_t first_sample, bool torn)
{
	struct wal_walk *w = k->w;
	struct hole p = k->hole;
	k->hole = (struct hole){0};
	p.seq = w->next_seq;
	p.frames = 0;
	p.samples = 0;
	if (w->next_seq != 0 && seq > w->next_seq) {
		p.frames = (seq - w->next_seq) % WAL_SEQ_STEP;
		p.samples = first_sample > w->next_sample ? first_sample - w->next_sample : 0;
	}
	if (p.frames == 0 && p.samples == 0 && p.bytes == 0)
		return;
	if (!p.why)
		p.why = "numbers are missing";
	if (torn) {
		event_hole(k, &p, true);
		return;
	}
	if (k->n_pending == WALK_PENDING) {
		event_hole(k, &k->pending[0], false);
		memmove(k->pending, k->pending + 1, (WALK_PENDING - 1) * sizeof k->pending[0]);
		k->n_pending--;
	}
	k->pending[k->n_pending++] = p;
}

/* ---- the list of files ---- */

static int file_cmp(const void *a, const void *b)
{
	const struct wal_file *x = a, *y = b;
	if (x->number != y->number)
		return x->number < y->number ? -1 : 1;
	return x->name < y->name ? -1 : x->name > y->name;
}

static errc file_header(struct wal_file *f, const char *path, struct err *err)
{
	errc rc = OK;
	int fd = -1;
	uint8_t bytes[WAL_HEADER_BYTES];
	size_t got = 0;
	uint32_t version;
	TRY(io_open(path, IO_READ, &fd, err));
	TRY(io_size(fd, &f->size, err));
	f->state = WAL_HEADER_DAMAGED;
	rc = io_pread(fd, bytes, sizeof bytes, 0, &got, err);
	if (rc == ERR_IO) { /* an unreadable page is damage */
		rc = OK;
		got = 1;
	}
	TRY(rc);
	if (got == WAL_HEADER_BYTES)
		f->state = wal_header_get(bytes, &f->h, &version);
	else if (got == 0)
		f->state = WAL_HEADER_ZERO;
	CHECK(f->state != WAL_HEADER_NEWER, ERR_UNSUPPORTED, "%s has version %u, this varve reads up to %d: start the newer varve that wrote it",
		path, version, WAL_VERSION);
fail:
	io_close(fd);
	return rc;
}

static errc walk_list(struct walk *k, struct err *err)
{
	errc rc = OK;
	struct wal_walk *w = k->w;
	char **names;
	size_t n;
	TRY(io_listdir(w->dir, &w->arena, &names, &n, err));
	w->files = arena_calloc(&w->arena, n + 1, sizeof *w->files);
	CHECK(w->files, ERR_NOMEM, "%s: list of %zu files", w->dir, n);
	for (size_t i = 0; i < n; i++) {
		uint64_t number;
		enum wal_name kind = wal_name_parse(names[i], &number);
		if (kind == WAL_NAME_OTHER || kind == WAL_NAME_TMP)
			continue;
		if (number > w->max_name)
			w->max_name = number;
		if (kind != WAL_NAME_SEGMENT) {
			if (number > w->checkpoint)
				w->checkpoint = number;
			continue;
		}
		struct wal_file *f = &w->files[w->n_files];
		*f = (struct wal_file){.name = number, .number = number};
		wal_path_segment(k->path, w->dir, number);
		rc = file_header(f, k->path, err);
		if (rc == ERR_NOTFOUND) { /* removed while we look, by the server beside us */
			rc = OK;
			continue;
		}
		TRY(rc);
		w->n_files++;
		if (f->state == WAL_HEADER_OK && f->h.checkpoint)
			f->state = WAL_HEADER_DAMAGED;
		if (f->state == WAL_HEADER_OK) {
			f->number = f->h.segment;
			if (f->number > w->max_name)
				w->max_name = f->number;
		}
	}
	/* The log's number is the one that most headers have. */
	size_t votes = 0;
	for (size_t i = 0; i < w->n_files; i++) {
		if (w->files[i].state != WAL_HEADER_OK)
			continue;
		if (votes == 0)
			w->log = w->files[i].h.log;
		votes += w->files[i].h.log == w->log ? 1 : (size_t)-1;
	}
fail:
	return rc;
}

static void walk_drop_foreign(struct walk *k)
{
	struct wal_walk *w = k->w;
	size_t n = 0;
	for (size_t i = 0; i < w->n_files; i++) {
		struct wal_file *f = &w->files[i];
		wal_path_segment(k->path, w->dir, f->name);
		if (f->state == WAL_HEADER_OK && w->log != 0 && f->h.log != w->log) {
			event(k,
				(struct wal_event){.kind = WAL_EVENT_FOREIGN, .segment = f->name, .bytes = f->size, .why = "belongs to another log"});
			continue;
		}
		if (f->number != f->name)
			event(k, (struct wal_event){.kind = WAL_EVENT_RENAMED,
					 .segment = f->name,
					 .segment_last = f->number,
					 .why = "its header has another number than its name"});
		w->files[n++] = *f;
	}
	w->n_files = n;
	if (n > 0)
		qsort(w->files, n, sizeof *w->files, file_cmp);
}

/* ---- the checkpoint ---- */

struct copy {
	struct wal_reader *r;
	char path[WAL_PATH_BYTES];
	bool there, done;
	struct wal_item item; /* next frame, when not done */
};

static errc copy_open(struct walk *k, struct copy *c, struct wal_reader *r, int which, struct wal_header *h, bool *header_ok, struct err *err)
{
	struct wal_walk *w = k->w;
	errc rc = OK;
	const uint8_t *p;
	size_t got;
	uint32_t version;
	*c = (struct copy){.r = r};
	*header_ok = false;
	wal_path_checkpoint(c->path, w->dir, w->checkpoint, which);
	rc = wal_reader_open(r, c->path, err);
	if (rc == ERR_NOTFOUND) {
		c->done = true;
		return OK;
	}
	TRY(rc);
	c->there = true;
	TRY(wal_reader_peek(r, 0, WAL_HEADER_BYTES, &p, &got, err));
	if (got == WAL_HEADER_BYTES) {
		enum wal_header_state state = wal_header_get(p, h, &version);
		CHECK(state != WAL_HEADER_NEWER, ERR_UNSUPPORTED, "%s has version %u, this varve reads up to %d: start the newer varve that wrote it",
			c->path, version, WAL_VERSION);
		*header_ok = state == WAL_HEADER_OK && h->checkpoint && h->segment == w->checkpoint;
	}
	r->off = WAL_HEADER_BYTES;
	r->segment = w->checkpoint;
	r->log = w->log;
	r->any_log = w->log == 0;
fail:
	return rc;
}

/* To the next valid frame; damage on the way is an event. */
static errc copy_next(struct walk *k, struct copy *c, struct err *err)
{
	errc rc = OK;
	while (!c->done) {
		TRY(wal_reader_next(c->r, &c->item, err));
		if (c->item.kind == WAL_ITEM_FRAME && !(c->item.h.flags & ~(uint32_t)WAL_FRAME_KNOWN))
			break;
		c->done = c->item.kind == WAL_ITEM_END;
		if (!c->done)
			event(k, (struct wal_event){.kind = WAL_EVENT_DAMAGE,
					 .path = c->path,
					 .segment = k->w->checkpoint,
					 .offset = c->item.offset,
					 .bytes = c->item.bytes,
					 .why = "no valid frame; the other copy is asked"});
	}
fail:
	return rc;
}

static errc checkpoint_frame(struct walk *k, struct copy *c, struct err *err)
{
	struct wal_walk *w = k->w;
	struct wal_frame f = {.segment = w->checkpoint, .offset = c->item.offset};
	if (w->behind.seq > 0 && w->checkpoint <= w->behind.checkpoint)
		return OK;
	errc rc = raw_room(k, c->item.h.raw, err);
	if (rc != OK)
		return rc;
	w->bytes += c->item.bytes;
	if (!wal_frame_unpack(&c->item.h, c->item.stored, k->raw, &f.payload)) {
		w->frames_lost++;
		w->checkpoint_whole = false;
		event(k, (struct wal_event){.kind = WAL_EVENT_DAMAGE,
				 .path = c->path,
				 .segment = w->checkpoint,
				 .offset = c->item.offset,
				 .bytes = c->item.bytes,
				 .why = "a valid frame does not decompress"});
		return OK;
	}
	w->frames++;
	return f.payload.n > 0 ? w->frame(w->arg, &f, &c->item.h, err) : OK;
}

static errc walk_checkpoint(struct walk *k, struct err *err)
{
	errc rc = OK;
	struct wal_walk *w = k->w;
	struct copy *a = &(struct copy){0}, *b = &(struct copy){0};
	struct wal_header ha, hb;
	bool a_ok, b_ok;
	uint64_t next = 1;
	bool complete = false;

	w->checkpoint_whole = true;
	if (w->checkpoint == 0)
		return OK;
	w->next_seq = 0; /* until a header says */
	TRY(copy_open(k, a, &k->reader, 0, &ha, &a_ok, err));
	TRY(copy_open(k, b, &k->reader_b, 1, &hb, &b_ok, err));
	w->checkpoint_header = a_ok ? ha : b_ok ? hb : (struct wal_header){0};
	if (a_ok || b_ok) {
		if (w->log == 0)
			w->log = w->checkpoint_header.log;
		w->next_seq = w->checkpoint_header.first_seq;
		w->next_sample = w->checkpoint_header.first_sample;
		w->next_pos = w->checkpoint_header.pos;
		a->r->log = b->r->log = w->log;
		a->r->any_log = b->r->any_log = false;
	}
	/* As long as what it replaces is there, finishing it was interrupted: a copy that is not there yet was never missed. */
	bool finished = true;
	for (size_t i = 0; i < w->n_files; i++)
		finished = finished && w->files[i].number > w->checkpoint;
	for (int i = 1; i >= 0; i--) {
		const struct copy *c = i ? b : a;
		w->checkpoint_missing[i] = !c->there;
		struct wal_event e = {.path = c->path, .segment = w->checkpoint, .segment_last = w->checkpoint, .why = "a copy of the checkpoint"};
		if (c->there) {
			e.kind = WAL_EVENT_CHECKPOINT;
			e.bytes = c->r->size;
			event(k, e);
		} else if (finished) {
			e.kind = WAL_EVENT_MISSING;
			event(k, e);
		}
		if (c->there && !(i ? b_ok : a_ok))
			event(k, (struct wal_event){.kind = WAL_EVENT_DAMAGE,
					 .path = c->path,
					 .segment = w->checkpoint,
					 .bytes = WAL_HEADER_BYTES,
					 .why = "header"});
	}
	TRY(copy_next(k, a, err));
	bool b_begun = false;
	while (!complete) {
		struct copy *c = a;
		while (!a->done && a->item.h.seq < next)
			TRY(copy_next(k, a, err));
		if (a->done || a->item.h.seq > next) {
			if (!b_begun) {
				/* Without headers the first frame says which log: one answer for both copies. */
				if (!a->r->any_log) {
					b->r->log = a->r->log;
					b->r->any_log = false;
				}
				TRY(copy_next(k, b, err));
			}
			b_begun = true;
			while (!b->done && b->item.h.seq < next)
				TRY(copy_next(k, b, err));
			if (!b->done && (a->done || b->item.h.seq < a->item.h.seq))
				c = b;
		}
		if (c->done)
			break;
		if (c->item.h.seq > next) {
			w->checkpoint_whole = false;
			w->frames_lost += c->item.h.seq - next;
			event(k, (struct wal_event){.kind = WAL_EVENT_LOST,
					 .path = c->path,
					 .segment = w->checkpoint,
					 .offset = c->item.offset,
					 .seq = next,
					 .frames = c->item.h.seq - next,
					 .why = "missing in both copies of the checkpoint"});
		}
		next = c->item.h.seq + 1;
		complete = c->item.h.flags & WAL_FRAME_END;
		TRY(checkpoint_frame(k, c, err));
	}
	for (int i = 0; i < 2; i++) {
		const struct copy *c = i ? b : a;
		if (w->log == 0 && c->there && !c->r->any_log)
			w->log = c->r->log; /* headers gone: as its frames say */
	}
	if (!complete) {
		w->checkpoint_whole = false;
		w->frames_lost++;
		event(k, (struct wal_event){.kind = WAL_EVENT_LOST,
				 .path = a->path,
				 .segment = w->checkpoint,
				 .seq = next,
				 .frames = 1,
				 .why = "the end is missing in both copies of the checkpoint"});
	}
fail:
	wal_reader_close(&k->reader);
	wal_reader_close(&k->reader_b);
	return rc;
}

/* ---- segments ---- */

static errc segment_frame(struct walk *k, const struct wal_item *item, uint64_t limit_seq, bool last, struct err *err)
{
	struct wal_walk *w = k->w;
	const struct wal_frame_header *h = &item->h;
	struct wal_walk_end *end = &w->end;
	const struct wal_header *file = k->file->state == WAL_HEADER_OK ? &k->file->h : NULL;

	/* Numbers ascend in a segment, from its header's on: anything else was not written by a log. */
	if (h->seq <= end->seen_seq) {
		if (item->kind == WAL_ITEM_FRAME)
			end->off = end->data_end = item->offset + item->bytes;
		return OK;
	}
	end->seen_seq = h->seq;

	/* What a header says about syncs holds even when its payload is damaged. */
	if (h->durable > end->durable || end->first) {
		if (h->durable > end->durable)
			end->durable = h->durable < item->offset ? h->durable : item->offset;
		/* Where no frame was read it may point into one that is damaged: who looks from there on would miss what follows. */
		end->tail_off = end->durable < end->off ? end->durable & ~UINT64_C(7) : end->off;
		bool gapless = end->durable <= end->off && w->next_seq != 0 && w->next_seq <= h->seq;
		end->first = false;
		end->data_behind = false;
		end->settled_seq = w->last_seq;
		end->settled_crc = w->last_crc;
		end->tail_seq = gapless ? w->next_seq : h->seq;
		end->tail_sample = gapless ? w->next_sample : h->first_sample;
		if (last)
			pending_settle(k, end->durable);
	}
	if (item->kind == WAL_ITEM_BAD_PAYLOAD || (h->flags & ~(uint32_t)WAL_FRAME_KNOWN))
		return OK;
	end->off = item->offset + item->bytes;
	end->data_end = end->off;
	end->clean = h->flags & WAL_FRAME_CLEAN;
	if (file && end->off <= file->synced) {
		/* Copied here and synced by the start that made this segment. */
		end->durable = end->off > end->durable ? end->off : end->durable;
		end->tail_off = end->off;
		end->settled_seq = h->seq;
		end->settled_crc = h->header_crc;
		end->tail_seq = h->seq + 1;
		end->tail_sample = h->first_sample + h->samples;
	} else if (!end->clean) {
		end->data_behind = true;
	}
	if (h->seq >= limit_seq || h->seq < w->next_seq) {
		k->hole = (struct hole){0};
		return OK;
	}
	hole_close(k, h->seq, h->first_sample, h->flags & WAL_FRAME_GAP);
	if (last)
		pending_settle(k, end->durable);

	struct wal_frame f = {.seq = h->seq,
		.segment = k->file->number,
		.offset = item->offset,
		.pos = (file ? file->pos : w->next_pos) + item->offset,
		.first_sample = h->first_sample,
		.samples = h->samples};
	w->next_seq = h->seq + 1;
	w->next_sample = h->first_sample + h->samples;
	w->last_seq = h->seq;
	w->last_crc = h->header_crc;
	if (h->seq <= w->behind.seq)
		return OK;
	errc rc = raw_room(k, h->raw, err);
	if (rc != OK)
		return rc;
	if (!wal_frame_unpack(h, item->stored, k->raw, &f.payload)) {
		w->frames_lost++;
		w->samples_lost += h->samples;
		event(k, (struct wal_event){.kind = WAL_EVENT_DAMAGE,
				 .segment = f.segment,
				 .offset = item->offset,
				 .bytes = item->bytes,
				 .seq = h->seq,
				 .samples = h->samples,
				 .why = "a valid frame does not decompress"});
		return OK;
	}
	w->frames++;
	w->samples += h->samples;
	w->bytes += item->bytes;
	return w->frame(w->arg, &f, h, err);
}

/* Whatever is not a frame that can be read widens the hole before the next one. */
static void hole_add(struct walk *k, const struct wal_item *item)
{
	struct hole *hole = &k->hole;
	bool newer = item->kind == WAL_ITEM_FRAME && (item->h.flags & ~(uint32_t)WAL_FRAME_KNOWN);
	if (item->kind == WAL_ITEM_FRAME && !newer)
		return;
	/* Zeros at the end were never used. */
	bool to_end = item->offset + item->bytes == k->reader.size;
	uint64_t bytes = to_end && item->kind == WAL_ITEM_NOTHING ? item->data_bytes : item->bytes;
	if (bytes == 0)
		return;
	if (hole->bytes == 0)
		*hole = (struct hole){
			.offset = item->offset, .seq = item->h.seq, .why = newer ? "flags that only a newer varve knows" : "no valid frame"};
	hole->bytes = item->offset + bytes - hole->offset;
	k->w->end.data_end = item->offset + bytes;
	if (item->kind == WAL_ITEM_NOTHING)
		return;
	hole->frames++;
	hole->samples += item->h.samples;
	hole->seq = hole->seq == 0 ? item->h.seq : hole->seq;
}

/* The numbers that a segment's header gives, against where the log stands. */
static void segment_begin(struct walk *k, const struct wal_file *before)
{
	struct wal_walk *w = k->w;
	const struct wal_file *f = k->file;
	uint64_t expected = before && before->number > w->checkpoint ? before->number : w->checkpoint;
	uint64_t predecessor = f->state == WAL_HEADER_OK ? f->h.prev_segment : f->number - 1;
	event(k, (struct wal_event){.kind = WAL_EVENT_SEGMENT, .segment = f->number, .bytes = f->size});
	if (predecessor > expected && f->state != WAL_HEADER_ZERO)
		event(k, (struct wal_event){
				 .kind = WAL_EVENT_MISSING, .segment = expected + 1, .segment_last = predecessor, .why = "segments are not there"});
	if (f->state != WAL_HEADER_OK)
		return;
	if (f->h.first_seq > w->next_seq) {
		bool cut_off = before && predecessor == before->number && w->end.data_end == w->end.off && w->next_seq != 0;
		if (cut_off && (f->h.first_seq - w->next_seq) % WAL_SEQ_STEP != 0) {
			char path[WAL_PATH_BYTES];
			wal_path_segment(path, w->dir, before->name);
			event(k, (struct wal_event){.kind = WAL_EVENT_DAMAGE,
					 .path = path,
					 .segment = before->number,
					 .offset = w->end.off,
					 .bytes = f->h.pos > w->next_pos ? f->h.pos - w->next_pos : 0,
					 .why = "its end is gone"});
		}
		hole_close(k, f->h.first_seq, f->h.first_sample, false);
		pending_end(k, false);
		w->next_seq = f->h.first_seq;
		w->next_sample = f->h.first_sample;
	} else if (f->h.prev_seq == w->last_seq && w->last_seq != 0 && f->h.prev_crc != w->last_crc) {
		event(k, (struct wal_event){.kind = WAL_EVENT_CHAIN,
				 .segment = f->number,
				 .seq = w->last_seq,
				 .why = "the frame before it is another one than when it was written"});
	}
	w->next_pos = f->h.pos;
}

/* Nothing is missing between what was read and a segment that begins with limit_seq: a later start took over the numbers. */
static bool taken_over(const struct walk *k, uint64_t limit_seq)
{
	uint64_t next = k->w->next_seq;
	return limit_seq != UINT64_MAX && (next >= limit_seq || (limit_seq - next) % WAL_SEQ_STEP == 0);
}

/* A header that is not there, though something is: judged like any other hole. */
static void header_hole(struct walk *k, uint64_t limit_seq)
{
	ASSERT(k->n_pending == 0);
	if (!taken_over(k, limit_seq))
		k->pending[k->n_pending++] = (struct hole){.bytes = WAL_HEADER_BYTES, .why = "header"};
}

static errc walk_segment(struct walk *k, size_t index, struct err *err)
{
	errc rc = OK;
	struct wal_walk *w = k->w;
	struct wal_file *f = k->file = &w->files[index];
	const struct wal_file *next = index + 1 < w->n_files ? f + 1 : NULL;
	uint64_t limit_seq = next && next->state == WAL_HEADER_OK && next->h.prev_segment == f->number ? next->h.first_seq : UINT64_MAX;
	bool last = true; /* no later file has frames */
	for (size_t i = index + 1; i < w->n_files && last; i++)
		last = w->files[i].state == WAL_HEADER_ZERO;

	wal_path_segment(k->path, w->dir, f->name);
	rc = wal_reader_open(&k->reader, k->path, err);
	if (rc == ERR_NOTFOUND)
		return OK;
	TRY(rc);
	segment_begin(k, index > 0 ? f - 1 : NULL);
	f->first_seq = f->state == WAL_HEADER_OK ? f->h.first_seq : w->next_seq;
	f->first_sample = f->state == WAL_HEADER_OK ? f->h.first_sample : w->next_sample;
	f->pos = w->next_pos;
	if (f->state == WAL_HEADER_DAMAGED)
		header_hole(k, limit_seq);
	/* Where the caller's knowledge ends, its last frame is read as if it were the segment's first: what stands before is synced and of no interest. */
	bool behind = w->behind.seq > 0 && f->number == w->behind.segment;
	if (behind) {
		w->next_seq = w->behind.seq;
		w->next_sample = w->behind.first_sample;
	}
	k->reader.off = behind ? w->behind.offset : WAL_HEADER_BYTES;
	k->reader.segment = f->number;
	k->reader.log = w->log;
	k->reader.any_log = w->log == 0;
	k->hole = (struct hole){0};
	struct wal_walk_end begin = {.file = index,
		.first = true,
		.seen_seq = f->state == WAL_HEADER_OK ? f->h.first_seq - 1 : 0,
		.off = k->reader.off,
		.data_end = k->reader.off,
		.settled_seq = w->last_seq,
		.settled_crc = w->last_crc,
		.tail_seq = w->next_seq,
		.tail_sample = w->next_sample};
	bool any = f->state != WAL_HEADER_ZERO;
	struct wal_walk_end end_before = w->end;
	w->end = begin;

	for (;;) {
		struct wal_item item;
		TRY(wal_reader_next(&k->reader, &item, err));
		if (item.kind == WAL_ITEM_END)
			break;
		if (!any && item.kind != WAL_ITEM_NOTHING)
			header_hole(k, limit_seq);
		any |= item.kind != WAL_ITEM_NOTHING;
		hole_add(k, &item);
		if (item.kind != WAL_ITEM_NOTHING)
			TRY(segment_frame(k, &item, limit_seq, last, err));
		if (!last)
			pending_end(k, false);
	}
	/* What no frame follows: torn at the log's end. Before a segment that took over the numbers, nothing is missed. */
	if (k->hole.bytes > 0 && !taken_over(k, limit_seq)) {
		if (!last || k->hole.seq < w->next_seq)
			k->hole.frames = k->hole.samples = 0; /* the next segment counts */
		event_hole(k, &k->hole, last);
	}
	k->hole = (struct hole){0};
	if (w->log == 0 && !k->reader.any_log)
		w->log = k->reader.log;
	pending_end(k, last);
	f->empty = !behind && !any && w->end.data_end == WAL_HEADER_BYTES;
	if (f->empty)
		w->end = end_before;
	else
		w->next_pos += w->end.off;
fail:
	wal_reader_close(&k->reader);
	return rc;
}

/* All in it is known. */
static void file_skip(struct walk *k, size_t index)
{
	struct wal_file *f = &k->w->files[index];
	if (f->state == WAL_HEADER_OK) {
		f->first_seq = f->h.first_seq;
		f->first_sample = f->h.first_sample;
		f->pos = f->h.pos;
	}
	k->w->next_seq = 0; /* until a header says */
}

errc wal_walk_run(struct wal_walk *w, struct err *err)
{
	errc rc = OK;
	struct walk *k = calloc(1, sizeof *k);
	CHECK(k, ERR_NOMEM, "%s: no memory for reading the log", w->dir);
	k->w = w;
	arena_init(&w->arena, WALK_ARENA_BYTES);
	w->next_seq = 1;
	k->reader = k->reader_b = (struct wal_reader)WAL_READER_INIT;
	TRY(walk_list(k, err));
	TRY(walk_checkpoint(k, err));
	walk_drop_foreign(k);
	w->end.file = w->n_files;
	for (size_t i = 0; i < w->n_files; i++) {
		if (w->files[i].number > w->checkpoint && w->files[i].number >= w->behind.segment)
			TRY(walk_segment(k, i, err));
		else if (w->files[i].number > w->checkpoint)
			file_skip(k, i);
	}
fail:
	if (k) {
		wal_reader_free(&k->reader);
		wal_reader_free(&k->reader_b);
		free(k->raw);
	}
	free(k);
	return rc;
}

void wal_walk_free(struct wal_walk *w)
{
	arena_free(&w->arena);
}
