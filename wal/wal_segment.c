/* wal/wal_segment.c - the files of a log: their names, their headers, their birth.
 *
 * The header of NNNNNNNN.wal and of NNNNNNNN.checkpoint.a / .b, all numbers little-endian:
 *
 *   offset  size  field
 *        0     8  magic         "varvewal" or "varvecpt"
 *        8     4  version       u32, 1
 *       12     4  log           u32, random at birth of the log
 *       16     8  segment       u64, own number; of a checkpoint: the last segment that it replaces
 *       24     8  prev segment  u64, 0 when there was none
 *       32     8  prev sequence u64, last frame before this file ...
 *       40     8  first sequence u64, frames of this number and above stand in this file and later ones, never in earlier ones
 *       48     8  first sample  u64, samples logged before first sequence
 *       56     8  position      u64, log position of this file's byte 0: bytes ever written before it
 *       64     8  synced        u64, bytes of this file that were synced before it got its name
 *       72     4  prev crc      u32, ... and that frame's header crc: the chain
 *       76     4  crc32c        u32 over bytes 0 .. 75
 *
 * A segment is born as prepared.N.tmp, zeros that are allocated and synced; it gets its number and name when the one before
 * it is full and synced. So only the newest segment may hold bytes that a power cut takes.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "wal/wal_int.h"

static const char magic_segment[8] = {'v', 'a', 'r', 'v', 'e', 'w', 'a', 'l'};
static const char magic_checkpoint[8] = {'v', 'a', 'r', 'v', 'e', 'c', 'p', 't'};

void wal_header_put(uint8_t *out, const struct wal_header *h)
{
	memcpy(out, h->checkpoint ? magic_checkpoint : magic_segment, 8);
	put_le32(out + 8, WAL_VERSION);
	put_le32(out + 12, h->log);
	put_le64(out + 16, h->segment);
	put_le64(out + 24, h->prev_segment);
	put_le64(out + 32, h->prev_seq);
	put_le64(out + 40, h->first_seq);
	put_le64(out + 48, h->first_sample);
	put_le64(out + 56, h->pos);
	put_le64(out + 64, h->synced);
	put_le32(out + 72, h->prev_crc);
	put_le32(out + 76, crc32c(0, out, 76));
}

enum wal_header_state wal_header_get(const uint8_t *in, struct wal_header *h, uint32_t *version)
{
	static const uint8_t zeros[WAL_HEADER_BYTES];
	*h = (struct wal_header){0};
	*version = 0;
	if (memcmp(in, zeros, WAL_HEADER_BYTES) == 0)
		return WAL_HEADER_ZERO;
	bool checkpoint = memcmp(in, magic_checkpoint, 8) == 0;
	if ((!checkpoint && memcmp(in, magic_segment, 8) != 0) || crc32c(0, in, 76) != get_le32(in + 76))
		return WAL_HEADER_DAMAGED;
	*version = get_le32(in + 8);
	if (*version > WAL_VERSION)
		return WAL_HEADER_NEWER;
	h->checkpoint = checkpoint;
	h->log = get_le32(in + 12);
	h->segment = get_le64(in + 16);
	h->prev_segment = get_le64(in + 24);
	h->prev_seq = get_le64(in + 32);
	h->first_seq = get_le64(in + 40);
	h->first_sample = get_le64(in + 48);
	h->pos = get_le64(in + 56);
	h->synced = get_le64(in + 64);
	h->prev_crc = get_le32(in + 72);
	if (*version == 0 || h->segment == 0 || h->segment > INT64_MAX || h->prev_segment > INT64_MAX || h->first_seq == 0 ||
		h->first_seq > INT64_MAX || h->first_sample > INT64_MAX || h->pos > INT64_MAX)
		return WAL_HEADER_DAMAGED;
	return WAL_HEADER_OK;
}

enum wal_name wal_name_parse(const char *name, uint64_t *number)
{
	size_t n = strlen(name);
	*number = 0;
	if (n > 4 && strcmp(name + n - 4, ".tmp") == 0)
		return WAL_NAME_TMP;
	size_t digits = strspn(name, "0123456789");
	int64_t v;
	/* At least 8 digits, none superfluous: one number has one name. */
	if (digits < 8 || (digits > 8 && name[0] == '0') || !span_to_i64(span_of(name, digits), &v) || v < 1)
		return WAL_NAME_OTHER;
	*number = (uint64_t)v;
	const char *rest = name + digits;
	if (strcmp(rest, ".wal") == 0)
		return WAL_NAME_SEGMENT;
	if (strcmp(rest, ".checkpoint.a") == 0)
		return WAL_NAME_CHECKPOINT_A;
	if (strcmp(rest, ".checkpoint.b") == 0)
		return WAL_NAME_CHECKPOINT_B;
	return WAL_NAME_OTHER;
}

void wal_path_segment(char out[WAL_PATH_BYTES], const char *dir, uint64_t number)
{
	int n = snprintf(out, WAL_PATH_BYTES, "%s/%08" PRIu64 ".wal", dir, number);
	ASSERT(n > 0 && n < WAL_PATH_BYTES);
}

void wal_path_checkpoint(char out[WAL_PATH_BYTES], const char *dir, uint64_t number, int copy)
{
	int n = snprintf(out, WAL_PATH_BYTES, "%s/%08" PRIu64 ".checkpoint.%c", dir, number, copy == 0 ? 'a' : 'b');
	ASSERT(n > 0 && n < WAL_PATH_BYTES);
}

void wal_path_tmp(char out[WAL_PATH_BYTES], const char *path)
{
	int n = snprintf(out, WAL_PATH_BYTES, "%s.tmp", path);
	ASSERT(n > 0 && n < WAL_PATH_BYTES);
}

/* Where the file system can't allocate, zeros are written: room that was promised must be there. */
static errc segment_fill(int fd, uint64_t size, struct err *err)
{
	errc rc = OK;
	size_t step = (size_t)(size < MIB ? size : MIB);
	uint8_t *zeros = calloc(1, step);
	CHECK(zeros, ERR_NOMEM, "a log segment's zeros");
	for (uint64_t off = 0; off < size; off += step) {
		uint64_t left = size - off;
		TRY(io_pwrite(fd, zeros, left < step ? (size_t)left : step, off, err));
	}
fail:
	free(zeros);
	return rc;
}

errc wal_segment_allocate(const char *dir, const char *name, uint64_t size, int *fd, struct err *err)
{
	errc rc = OK;
	char path[WAL_PATH_BYTES];
	int n = snprintf(path, sizeof path, "%s/%s", dir, name);
	ASSERT(n > 0 && n < WAL_PATH_BYTES);
	*fd = -1;
	TRY(io_open(path, IO_READ | IO_WRITE | IO_CREATE | IO_TRUNC, fd, err));
	rc = io_allocate(*fd, 0, size, err);
	if (rc != OK && rc != ERR_NOSPACE)
		rc = segment_fill(*fd, size, err);
	TRY(rc);
	TRY(io_fsync(*fd, err));
	return OK;
fail:
	io_close(*fd);
	if (*fd >= 0)
		(void)!io_unlink(path, NULL);
	*fd = -1;
	return rc;
}

void wal_segments_free(struct wal_segment *list)
{
	while (list) {
		struct wal_segment *next = list->next;
		io_close(list->fd);
		free(list);
		list = next;
	}
}
