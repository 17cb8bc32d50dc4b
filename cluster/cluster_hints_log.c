/* cluster/cluster_hints_log.c - what is kept for one node: frames, one behind the other, in files that go when all of a file is delivered.
 *
 *   segment NNNNNNNN.hints                                   frame, at a multiple of 8
 *   offset  size  field                                      offset  size  field
 *        0     8  "vrvhints"                                      0     4  "vrvH"
 *        8     4  version, 1                                      4     4  number of the segment, as above
 *       12     4  number, random                                  8     8  sequence, dense over the life of the log, from 1
 *       16     8  sequence of its first frame                    16     8  first sample: samples in the log before this frame
 *       24     8  first sample of it                             24     8  when it was added, ms since 1970
 *       32     4  bytes of the address, n                        32     4  samples
 *       36     n  the address of the node that it is for         36     4  n: bytes of payload
 *       36+n   4  crc32c over all before                         40     4  crc32c over the payload
 *      512     -  the same once more                             44     4  crc32c over bytes 0 .. 43
 *     1024     -  frames                                         48     n  a hint as in docs/format/peer.md; then zeros up to a multiple of 8
 *
 *   state: "vrvW", version 1 (4), next: frames below are delivered (8), owed: from, to (ms), samples, frames (8 each), bytes of the address (4), address, crc32c over all before (4)
 *
 * All numbers little-endian. Whose hints they are stands inside, twice in each file; the directory's name is a hash and only has to be unique.
 *
 * A damaged frame costs itself: its header says where the next one is; a damaged header costs a search for the next one, which is known by its segment's random number, so that bytes
 * of a client inside a payload are never taken for one. Sequence and sample numbers of the neighbours say what was lost. A run never writes to a file of an earlier one, so a torn tail is
 * damage like any other.
 *
 * Promised is nothing (see hints.h): a write or a sync that fails ends its file, and the next frame begins another one. Only `state` is written with care, as what is owed is told nowhere else.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"

enum { VERSION = 1, LOOK_BYTES = 64 * 1024, NAMES_BYTES = 16 << 20, NAME_BYTES = 14 };
static const char segment_magic[8] = {'v', 'r', 'v', 'h', 'i', 'n', 't', 's'};
static const char frame_magic[4] = {'v', 'r', 'v', 'H'}, state_magic[4] = {'v', 'r', 'v', 'W'};

/* ---- bytes ---- */

void hint_frame_put(uint8_t *out, uint32_t log, const struct hint_frame *f)
{
	memcpy(out, frame_magic, 4);
	put_le32(out + 4, log);
	put_le64(out + 8, f->seq);
	put_le64(out + 16, f->first_sample);
	put_le64(out + 24, (uint64_t)f->added_ms);
	put_le32(out + 32, f->samples);
	put_le32(out + 36, f->n);
	put_le32(out + 40, f->crc);
	put_le32(out + 44, crc32c(0, out, 44));
}

bool hint_frame_get(const uint8_t *in, uint32_t log, struct hint_frame *f)
{
	if (memcmp(in, frame_magic, 4) != 0 || get_le32(in + 4) != log || crc32c(0, in, 44) != get_le32(in + 44))
		return false;
	*f = (struct hint_frame){
		.seq = get_le64(in + 8),
		.first_sample = get_le64(in + 16),
		.added_ms = (int64_t)get_le64(in + 24),
		.samples = get_le32(in + 32),
		.n = get_le32(in + 36),
		.crc = get_le32(in + 40),
	};
	return f->seq > 0 && f->seq < INT64_MAX && f->first_sample < INT64_MAX && f->n <= HINT_PAYLOAD_MAX;
}

void hint_segment_put(uint8_t out[HINT_SEGMENT_BYTES], const struct hint_segment_head *h)
{
	_Static_assert(36 + LIMIT_RING_ADDRESS_BYTES + 4 <= HINT_COPY_BYTES, "an address fits twice");
	ASSERT(h->address.n <= LIMIT_RING_ADDRESS_BYTES);
	memset(out, 0, HINT_SEGMENT_BYTES);
	memcpy(out, segment_magic, sizeof segment_magic);
	put_le32(out + 8, VERSION);
	put_le32(out + 12, h->log);
	put_le64(out + 16, h->first_seq);
	put_le64(out + 24, h->first_sample);
	put_le32(out + 32, (uint32_t)h->address.n);
	memcpy(out + 36, h->address.p, h->address.n);
	put_le32(out + 36 + h->address.n, crc32c(0, out, 36 + h->address.n));
	memcpy(out + HINT_COPY_BYTES, out, HINT_COPY_BYTES);
}

static bool copy_get(const uint8_t *in, struct hint_segment_head *h)
{
	uint32_t n = get_le32(in + 32);
	if (memcmp(in, segment_magic, sizeof segment_magic) != 0 || get_le32(in + 8) != VERSION || n == 0 || n > LIMIT_RING_ADDRESS_BYTES)
		return false;
	if (crc32c(0, in, 36 + n) != get_le32(in + 36 + n))
		return false;
	*h = (struct hint_segment_head){get_le32(in + 12), get_le64(in + 16), get_le64(in + 24), span_of(in + 36, n)};
	return h->first_seq > 0 && h->first_seq < INT64_MAX && h->first_sample < INT64_MAX;
}

bool hint_segment_get(const uint8_t in[HINT_SEGMENT_BYTES], struct hint_segment_head *h)
{
	return copy_get(in, h) || copy_get(in + HINT_COPY_BYTES, h);
}

/* ---- files ---- */

static errc path_of(const struct hint_log *l, uint64_t no, char *out, size_t room, struct err *err)
{
	int n = no ? snprintf(out, room, "%s/%08" PRIu64 ".hints", l->dir, no) : snprintf(out, room, "%s/state", l->dir);
	return n > 0 && (size_t)n < room ? OK : err_set(err, ERR_INVALID, "%s: the path is too long", l->dir);
}

static struct hint_segment *segment_from(const struct hint_log *l, uint64_t no)
{
	for (size_t i = 0; i < l->n; i++)
		if (l->v[i].no >= no)
			return &l->v[i];
	return NULL;
}

static errc segment_add(struct hint_log *l, uint64_t no, uint64_t bytes, struct err *err)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 8;
		struct hint_segment *v = realloc(l->v, cap * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "no memory for the segments of %s", l->dir);
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = (struct hint_segment){no, bytes};
	l->bytes += bytes;
	return OK;
}

static void read_end(struct hint_log *l)
{
	io_close(l->read_fd);
	l->read_fd = -1;
	l->read_no = 0;
}

static errc read_begin(struct hint_log *l, const struct hint_segment *s, struct err *err)
{
	errc rc = OK;
	char path[4096];
	uint8_t head[HINT_SEGMENT_BYTES];
	size_t got;
	if (l->read_no == s->no)
		return OK;
	read_end(l);
	TRY(path_of(l, s->no, path, sizeof path, err));
	TRY(io_open(path, IO_READ, &l->read_fd, err));
	TRY(io_pread(l->read_fd, head, sizeof head, 0, &got, err));
	memset(head + got, 0, sizeof head - got);
	CHECK(hint_segment_get(head, &l->read), ERR_CORRUPT, "%s: it does not begin as hints do", path);
	CHECK(span_eq(l->read.address, l->address), ERR_CORRUPT, "%s: hints for %.*s", path, SPAN_ARG(l->read.address));
	l->read.address = l->address;
	l->read_no = s->no;
	return OK;
fail:
	read_end(l);
	return rc;
}

/* The first header at or behind *off that is one; false: none up to `end`. Payloads are not looked at. */
static errc frame_from(struct hint_log *l, uint64_t end, uint64_t *off, struct hint_frame *f, bool *found, struct err *err)
{
	errc rc = OK;
	uint8_t head[HINT_FRAME_BYTES], *look = NULL;
	size_t got;
	*found = false;
	TRY(io_pread(l->read_fd, head, sizeof head, *off, &got, err));
	if (got == sizeof head && hint_frame_get(head, l->read.log, f)) {
		*found = true;
		return OK;
	}
	/* Damage: frames begin at multiples of 8, with a word that is known. */
	look = malloc(LOOK_BYTES + HINT_FRAME_BYTES);
	CHECK(look, ERR_NOMEM, "no memory to look for hints");
	for (uint64_t at = *off; at + HINT_FRAME_BYTES <= end && !*found; at += LOOK_BYTES) {
		TRY(io_pread(l->read_fd, look, LOOK_BYTES + HINT_FRAME_BYTES, at, &got, err));
		for (size_t i = 0; i < LOOK_BYTES && i + HINT_FRAME_BYTES <= got && !*found; i += 8)
			if (hint_frame_get(look + i, l->read.log, f)) {
				*found = true;
				*off = at + i;
			}
	}
fail:
	free(look);
	return rc;
}

/* ---- taken up ---- */

void hint_log_new(struct hint_log *l, char *parent, char *dir, struct span address)
{
	*l = (struct hint_log){
		.dir = dir, .parent = parent, .address = address, .next_no = 1, .next_seq = 1, .fd = -1, .read_fd = -1, .done = {.seq = 1}};
}

static void at_least(struct hint_log *l, uint64_t seq, uint64_t sample)
{
	if (seq <= l->next_seq)
		return;
	l->next_seq = seq;
	l->next_sample = sample;
}

/* Numbers go on behind those of the last segment in which there are any. */
static errc numbers_of(struct hint_log *l, const struct hint_segment *s, bool *any, struct err *err)
{
	errc rc = OK;
	struct hint_frame f;
	TRY(read_begin(l, s, err));
	for (uint64_t off = HINT_SEGMENT_BYTES; off < s->bytes;) {
		bool found;
		TRY(frame_from(l, s->bytes, &off, &f, &found, err));
		if (!found)
			break;
		*any = true;
		at_least(l, f.seq + 1, f.first_sample + f.samples);
		off += hint_frame_size(f.n);
	}
	at_least(l, l->read.first_seq, l->read.first_sample);
fail:
	return rc;
}

static bool number_of(const char *name, uint64_t *no)
{
	*no = 0;
	for (int i = 0; i < 8; i++) {
		if (name[i] < '0' || name[i] > '9')
			return false;
		*no = *no * 10 + (uint64_t)(name[i] - '0');
	}
	return *no > 0 && strcmp(name + 8, ".hints") == 0;
}

static errc segments_of(struct hint_log *l, struct arena *arena, struct err *err)
{
	errc rc = OK;
	char **names, path[4096];
	size_t n;
	TRY(io_listdir(l->dir, arena, &names, &n, err));
	for (size_t i = 0; i < n; i++) {
		uint64_t no;
		struct io_stat st;
		if (strlen(names[i]) != NAME_BYTES || !number_of(names[i], &no))
			continue;
		TRY(path_of(l, no, path, sizeof path, err));
		TRY(io_stat(path, &st, err));
		if (st.exists && !st.is_dir)
			TRY(segment_add(l, no, st.size, err));
		if (no >= l->next_no)
			l->next_no = no + 1;
	}
fail:
	return rc;
}

/* false: there is none that can be read. *damaged: something was there. */
static bool state_get(struct hint_log *l, struct arena *arena, struct span *address, struct hints_owed *owed, bool *damaged)
{
	char path[4096];
	struct span s;
	struct err err = {0};
	*damaged = false;
	if (path_of(l, 0, path, sizeof path, NULL) != OK)
		return false;
	errc rc = io_read_file(path, 4096, arena, &s, &err);
	if (rc != OK) {
		*damaged = rc == ERR_LIMIT;
		if (rc != ERR_NOTFOUND)
			log_warn("the state of hints can't be read", LSTR("path", path), LERR(&err));
		return false;
	}
	const uint8_t *p = (const uint8_t *)s.p;
	uint32_t n = s.n >= HINT_STATE_BYTES + 4 ? get_le32(p + 48) : 0;
	*damaged = n == 0 || n > LIMIT_RING_ADDRESS_BYTES || s.n != HINT_STATE_BYTES + n + 4 || memcmp(p, state_magic, 4) != 0 ||
		   get_le32(p + 4) != VERSION || crc32c(0, p, HINT_STATE_BYTES + n) != get_le32(p + HINT_STATE_BYTES + n) ||
		   get_le64(p + 8) >= INT64_MAX;
	if (*damaged) {
		log_warn("the state of hints is damaged: what was delivered goes again, and all is taken to be owed", LSTR("path", path));
		return false;
	}
	l->skip_seq = get_le64(p + 8);
	*owed = (struct hints_owed){(int64_t)get_le64(p + 16), (int64_t)get_le64(p + 24), get_le64(p + 32), get_le64(p + 40)};
	*address = span_of(p + HINT_STATE_BYTES, n);
	return true;
}

/* What any of the segments says, when the state does not. */
static errc whose(struct hint_log *l, struct arena *arena, struct span *address, struct err *err)
{
	errc rc = OK;
	char path[4096];
	for (size_t i = 0; i < l->n; i++) {
		uint8_t *head = arena_alloc(arena, HINT_SEGMENT_BYTES);
		struct hint_segment_head h;
		int fd = -1;
		size_t got = 0;
		CHECK(head, ERR_NOMEM, "no memory for %s", l->dir);
		TRY(path_of(l, l->v[i].no, path, sizeof path, err));
		if (io_open(path, IO_READ, &fd, NULL) != OK || io_pread(fd, head, HINT_SEGMENT_BYTES, 0, &got, NULL) != OK)
			got = 0;
		io_close(fd);
		memset(head + got, 0, HINT_SEGMENT_BYTES - got);
		if (hint_segment_get(head, &h)) {
			*address = h.address;
			return OK;
		}
	}
	rc = err_set(err, ERR_CORRUPT, "%s: nothing in it says whose hints these are", l->dir);
fail:
	return rc;
}

errc hint_log_open(struct hint_log *l, const char *parent, const char *dir, char **address, struct hints_owed *owed, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct span from = {"", 0};
	struct hint_frame f;
	struct hint_loss loss = {0};
	bool any = false, damaged;
	arena_init(&arena, 2 * NAMES_BYTES);
	*address = NULL;
	*owed = (struct hints_owed){0};
	hint_log_new(l, strdup(parent), strdup(dir), from);
	l->has_dir = true;
	CHECK(l->dir && l->parent, ERR_NOMEM, "no memory for %s", dir);
	TRY(segments_of(l, &arena, err));
	if (!state_get(l, &arena, &from, owed, &damaged))
		TRY(whose(l, &arena, &from, err));
	if (damaged)
		*owed = (struct hints_owed){1, io_now_ms(), 0, 1};
	*address = strndup(from.p, from.n);
	CHECK(*address, ERR_NOMEM, "no memory for %s", dir);
	l->address = span_of(*address, from.n);
	for (size_t i = l->n; i > 0 && !any; i--) {
		struct err why = {0};
		if (numbers_of(l, &l->v[i - 1], &any, &why) != OK)
			log_warn("hints that can't be read", LSTR("dir", dir), LU64("segment", l->v[i - 1].no), LERR(&why));
	}
	if (l->next_seq < l->skip_seq)
		l->next_seq = l->skip_seq;
	/* Where the first one that is pending stands. What can't be read is counted when it is delivered. */
	l->done = (struct hint_cursor){.seq = 0};
	struct hint_cursor c = l->done;
	rc = l->n > 0 ? hint_log_next(l, &c, &f, &loss, NULL) : ERR_NOTFOUND;
	if (l->n > 0 && (rc == OK || rc == ERR_NOTFOUND) && loss.frames == 0)
		l->done = c;
	else if (l->n == 0)
		l->done = (struct hint_cursor){.seq = l->next_seq, .sample = l->next_sample};
	rc = OK;
fail:
	arena_free(&arena);
	if (rc != OK) {
		free(*address);
		*address = NULL;
		hint_log_close(l);
	}
	return rc;
}

void hint_log_close(struct hint_log *l)
{
	io_close(l->fd);
	read_end(l);
	free(l->v);
	free(l->dir);
	free(l->parent);
	l->fd = -1;
	l->v = NULL;
	l->dir = l->parent = NULL;
	l->n = l->cap = 0;
}

/* ---- written ---- */

static void write_end(struct hint_log *l)
{
	io_close(l->fd);
	l->fd = -1;
	l->dirty = false;
}

static void segment_remove(struct hint_log *l, size_t i)
{
	char path[4096];
	struct err err = {0};
	if (l->v[i].no == l->read_no)
		read_end(l);
	if (i + 1 == l->n)
		write_end(l);
	errc rc = path_of(l, l->v[i].no, path, sizeof path, &err);
	if (rc == OK)
		rc = io_unlink(path, &err);
	if (rc != OK && rc != ERR_NOTFOUND)
		log_warn("hints that were delivered can't be removed, and will be once more", LSTR("dir", l->dir), LERR(&err));
	l->bytes -= l->v[i].bytes;
	memmove(l->v + i, l->v + i + 1, (l->n - i - 1) * sizeof *l->v);
	l->n--;
}

static errc segment_begin(struct hint_log *l, struct err *err)
{
	errc rc = OK;
	char path[4096];
	uint8_t head[HINT_SEGMENT_BYTES];
	bool made = false;
	struct hint_segment_head h = {.first_seq = l->next_seq, .first_sample = l->next_sample, .address = l->address};
	if (!l->has_dir) {
		TRY(io_mkdir(l->dir, err));
		l->has_dir = true;
	}
	io_random(&h.log, sizeof h.log);
	hint_segment_put(head, &h);
	uint64_t no = l->next_no++;
	TRY(path_of(l, no, path, sizeof path, err));
	TRY(io_open(path, IO_READ | IO_WRITE | IO_CREATE | IO_TRUNC, &l->fd, err));
	made = true;
	TRY(io_pwrite(l->fd, head, sizeof head, 0, err));
	TRY(segment_add(l, no, sizeof head, err));
	l->log = h.log;
	l->new_entry = true;
	return OK;
fail:
	write_end(l);
	if (made)
		(void)!io_unlink(path, NULL);
	return rc;
}

errc hint_log_append(struct hint_log *l, uint8_t *p, size_t n, uint32_t samples, int64_t now_ms, struct err *err)
{
	errc rc = OK;
	uint64_t size = hint_frame_size(n);
	ASSERT(n <= HINT_PAYLOAD_MAX);
	struct hint_frame f = {.seq = l->next_seq, .first_sample = l->next_sample, .added_ms = now_ms, .samples = samples, .n = (uint32_t)n};
	if (l->fd >= 0 && l->v[l->n - 1].bytes > HINT_SEGMENT_BYTES && l->v[l->n - 1].bytes + size > LIMIT_HINTS_SEGMENT_BYTES) {
		struct err why = {0};
		if (hint_log_sync(l, &why) != OK)
			log_warn("hints are not known to be on the disk", LSTR("dir", l->dir), LERR(&why));
		write_end(l);
	}
	if (l->fd < 0)
		TRY(segment_begin(l, err));
	struct hint_segment *s = &l->v[l->n - 1];
	f.crc = crc32c(0, p + HINT_FRAME_BYTES, n);
	hint_frame_put(p, l->log, &f);
	memset(p + HINT_FRAME_BYTES + n, 0, size - HINT_FRAME_BYTES - n);
	rc = io_pwrite(l->fd, p, size, s->bytes, err);
	if (rc != OK) {
		/* Some of it may be there; it must not be taken for delivered or lost later. */
		bool cut = io_truncate(l->fd, s->bytes, NULL) == OK;
		write_end(l);
		if (s->bytes == HINT_SEGMENT_BYTES)
			segment_remove(l, l->n - 1);
		else if (!cut)
			log_warn("a hint that was left out may be in its file", LSTR("dir", l->dir));
		goto fail;
	}
	s->bytes += size;
	l->bytes += size;
	l->next_seq++;
	l->next_sample += samples;
	l->dirty = true;
	l->wrote_ns = io_mono_ns();
fail:
	return rc;
}

errc hint_log_sync(struct hint_log *l, struct err *err)
{
	errc rc = OK;
	if (l->fd < 0 || !l->dirty)
		return OK;
	l->dirty = false;
	rc = io_fdatasync(l->fd, err);
	if (rc != OK) {
		/* What it did not write is lost for later syncs, too. */
		write_end(l);
		goto fail;
	}
	if (l->new_entry) {
		TRY(io_fsync_dir(l->dir, err));
		TRY(io_fsync_dir(l->parent, err));
		l->new_entry = false;
	}
fail:
	return rc;
}

void hint_log_rest(struct hint_log *l)
{
	if (l->fd >= 0 && !l->dirty)
		write_end(l);
	read_end(l);
}

/* ---- read ---- */

static void lost(struct hint_loss *loss, uint64_t frames, uint64_t samples, int64_t from_ms, int64_t to_ms)
{
	if (loss->frames == 0 || from_ms < loss->from_ms)
		loss->from_ms = from_ms;
	if (loss->frames == 0 || to_ms > loss->to_ms)
		loss->to_ms = to_ms;
	loss->frames += frames;
	loss->samples += samples;
}

/* What comes next is number seq. Numbers that are missing are lost; damage that none is missing for (what was torn off, before an earlier start gave its numbers to others) is one frame at least. */
static void arrive(struct hint_cursor *c, uint64_t seq, uint64_t sample, int64_t ms, bool damaged, struct hint_loss *loss)
{
	int64_t from = c->ms > 0 ? c->ms : 1;
	if (c->seq > 0 && seq > c->seq)
		lost(loss, seq - c->seq, sample > c->sample ? sample - c->sample : 0, from, ms);
	else if (damaged)
		lost(loss, 1, 0, from, ms);
	if (seq > c->seq) {
		c->seq = seq;
		c->sample = sample;
	}
}

/* c is moved into segment s; the file is open. ERR_NOTFOUND: there is no further segment. */
static errc enter(struct hint_log *l, struct hint_cursor *c, struct hint_segment **s, bool *damaged, struct err *err)
{
	while ((*s = segment_from(l, c->no)) != NULL) {
		struct err why = {0};
		if ((*s)->no != c->no)
			c->off = 0;
		c->no = (*s)->no;
		errc rc = read_begin(l, *s, &why);
		if (rc == OK)
			break;
		if (rc != ERR_CORRUPT && rc != ERR_NOTFOUND) {
			if (err)
				*err = why;
			return rc;
		}
		log_warn("hints that can't be read", LSTR("dir", l->dir), LERR(&why));
		*damaged = true;
		c->no++;
		c->off = 0;
	}
	if (!*s)
		return ERR_NOTFOUND;
	if (c->off == 0)
		c->off = HINT_SEGMENT_BYTES;
	if (c->seq == 0) {
		c->seq = l->read.first_seq;
		c->sample = l->read.first_sample;
	}
	return OK;
}

errc hint_log_next(struct hint_log *l, struct hint_cursor *c, struct hint_frame *f, struct hint_loss *loss, struct err *err)
{
	errc rc = OK;
	struct hint_segment *s;
	bool damaged = false;
	for (;;) {
		rc = enter(l, c, &s, &damaged, err);
		if (rc == ERR_NOTFOUND)
			break;
		TRY(rc);
		bool found = false;
		uint64_t at = c->off;
		while (at + HINT_FRAME_BYTES <= s->bytes) {
			TRY(frame_from(l, s->bytes, &at, f, &found, err));
			if (!found || at + hint_frame_size(f->n) <= s->bytes)
				break;
			/* It goes beyond the end: torn off. */
			found = false;
			at += 8;
		}
		damaged |= found ? at > c->off : c->off < s->bytes;
		c->off = found ? at : s->bytes;
		if (!found) {
			/* More may come where it is written; elsewhere the next segment follows. */
			if (s == &l->v[l->n - 1])
				break;
			c->no++;
			c->off = 0;
			continue;
		}
		if (f->seq >= l->skip_seq) {
			arrive(c, f->seq, f->first_sample, f->added_ms, damaged, loss);
			return OK;
		}
		hint_log_pass(c, f);
	}
	arrive(c, l->next_seq, l->next_sample, io_now_ms(), damaged, loss);
	/* Numbers never go back, whatever files say. */
	if (c->seq > l->next_seq) {
		l->next_seq = c->seq;
		l->next_sample = c->sample > l->next_sample ? c->sample : l->next_sample;
	}
	return err_set(err, ERR_NOTFOUND, "no more hints");
fail:
	return rc;
}

errc hint_log_read(struct hint_log *l, const struct hint_cursor *c, const struct hint_frame *f, void *out, struct err *err)
{
	ASSERT(l->read_no == c->no);
	errc rc = io_pread_full(l->read_fd, out, f->n, c->off + HINT_FRAME_BYTES, err);
	if (rc == OK && crc32c(0, out, f->n) != f->crc)
		rc = err_set(err, ERR_CORRUPT, "%s: the frame at %" PRIu64 " of segment %" PRIu64 " is damaged", l->dir, c->off, c->no);
	return rc;
}

void hint_log_pass(struct hint_cursor *c, const struct hint_frame *f)
{
	c->off += hint_frame_size(f->n);
	c->seq = f->seq + 1;
	c->sample = f->first_sample + f->samples;
	c->ms = f->added_ms;
}

void hint_log_lose(struct hint_cursor *c, const struct hint_frame *f, struct hint_loss *loss)
{
	lost(loss, 1, f->samples, f->added_ms, f->added_ms);
	hint_log_pass(c, f);
}

void hint_log_give_up(struct hint_log *l, struct hint_cursor *c)
{
	read_end(l);
	/* What is written goes to another file from here on, so that this one can go. */
	if (l->n > 0 && l->v[l->n - 1].no == c->no)
		write_end(l);
	c->no++;
	c->off = 0;
}

/* ---- done ---- */

uint64_t hint_log_done(struct hint_log *l, const struct hint_cursor *c)
{
	uint64_t before = l->bytes;
	l->done = *c;
	while (l->n > 0 && l->v[0].no < c->no)
		segment_remove(l, 0);
	return before - l->bytes;
}

uint64_t hint_log_clear(struct hint_log *l)
{
	uint64_t before = l->bytes;
	while (l->n > 0)
		segment_remove(l, 0);
	l->done = (struct hint_cursor){.no = l->next_no, .seq = l->next_seq, .sample = l->next_sample, .ms = l->done.ms};
	return before - l->bytes;
}

uint64_t hint_log_pending_bytes(const struct hint_log *l)
{
	if (!hint_log_pending(l))
		return 0;
	uint64_t before = l->n > 0 && l->v[0].no == l->done.no ? l->done.off : 0;
	return l->bytes - (before < l->bytes ? before : l->bytes);
}

uint64_t hint_log_pending_samples(const struct hint_log *l)
{
	/* After a start with damage at the front it is not known until the first is read. */
	return hint_log_pending(l) && l->done.seq > 0 && l->next_sample > l->done.sample ? l->next_sample - l->done.sample : 0;
}

errc hint_log_save(struct hint_log *l, const struct hints_owed *owed, struct err *err)
{
	errc rc = OK;
	uint8_t p[HINT_STATE_BYTES + LIMIT_RING_ADDRESS_BYTES + 4] = {0};
	char path[4096];
	size_t n = HINT_STATE_BYTES + l->address.n;
	memcpy(p, state_magic, 4);
	put_le32(p + 4, VERSION);
	put_le64(p + 8, l->done.seq > 0 ? l->done.seq : l->skip_seq);
	put_le64(p + 16, (uint64_t)owed->from_ms);
	put_le64(p + 24, (uint64_t)owed->to_ms);
	put_le64(p + 32, owed->samples);
	put_le64(p + 40, owed->frames);
	put_le32(p + 48, (uint32_t)l->address.n);
	memcpy(p + HINT_STATE_BYTES, l->address.p, l->address.n);
	put_le32(p + n, crc32c(0, p, n));
	if (!l->has_dir) {
		TRY(io_mkdir(l->dir, err));
		TRY(io_fsync_dir(l->parent, err));
		l->has_dir = true;
	}
	TRY(path_of(l, 0, path, sizeof path, err));
	TRY(io_write_file(path, span_of(p, n + 4), err));
fail:
	return rc;
}

void hint_log_vanish(struct hint_log *l)
{
	struct err err = {0};
	ASSERT(l->n == 0);
	if (!l->has_dir)
		return;
	if (io_remove_tree(l->dir, &err) != OK)
		log_warn("an empty directory of hints can't be removed", LSTR("dir", l->dir), LERR(&err));
	else
		l->has_dir = false;
}
