/* fuzz: needs wal */
/* A log directory of any bytes: { u8 kind, u16 LE length, bytes }* become its files. Reading it, inspecting it and going on with it never crash, and what
 * was read once is read again after an append. Bit 7 of a kind repairs the file's checksums, so that the bytes behind them are reached.
 */
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/sim.h"
#include "wal/wal_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x)                                                                                                                                      \
	do {                                                                                                                                         \
		if (!(x)) {                                                                                                                          \
			fprintf(stderr, "%d: %s\n", __LINE__, #x);                                                                                   \
			abort();                                                                                                                     \
		}                                                                                                                                    \
	} while (0)

static void repair(uint8_t *p, size_t n)
{
	if (n >= WAL_HEADER_BYTES)
		put_le32(p + 76, crc32c(0, p, 76));
	for (size_t i = WAL_HEADER_BYTES; i + WAL_FRAME_BYTES <= n; i += 8) {
		if (memcmp(p + i, "vrvF", 4) != 0)
			continue;
		uint32_t stored = get_le32(p + i + 40);
		if (stored <= n - i - WAL_FRAME_BYTES)
			put_le32(p + i + 56, crc32c(0, p + i + WAL_FRAME_BYTES, stored));
		put_le32(p + i + 60, crc32c(0, p + i, 60));
	}
}

static errc file_write(uint8_t kind, const uint8_t *p, size_t n)
{
	char path[64];
	unsigned number = (kind >> 2 & 7) + 1;
	switch (kind & 3) {
	case 0:
	case 1:
		snprintf(path, sizeof path, "wal/%08u.wal", number);
		break;
	default:
		snprintf(path, sizeof path, "wal/%08u.checkpoint.%c", number, (kind & 3) == 2 ? 'a' : 'b');
	}
	uint8_t *copy = malloc(n + 1);
	MUST(copy);
	memcpy(copy, p, n);
	if (kind & 0x80)
		repair(copy, n);
	errc rc = io_write_file(path, span_of(copy, n), NULL);
	free(copy);
	return rc;
}

struct seen {
	uint64_t frames, records, hash;
};

static errc frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct seen *x = arg;
	struct rd r = rd_of(f->payload.p, f->payload.n);
	struct wal_record rec;
	bool ok;
	(void)err;
	x->frames++;
	x->hash = crc32c((uint32_t)x->hash, f->payload.p, f->payload.n);
	while (wal_record_next(&r, &rec, &ok)) {
		x->records++;
		struct wal_samples_dec d;
		struct wal_sample s;
		if (wal_samples_open(rec.kind, rec.body, &d)) {
			while (wal_samples_next(&d, &s, &ok))
				x->hash += s.v;
		}
	}
	return OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	struct sim *sim = sim_new(1);
	MUST(io_mkdir("wal", NULL) == OK);
	struct rd r = rd_of(data, size);
	while (rd_left(&r) > 3) {
		uint8_t kind = rd_u8(&r);
		size_t n = rd_u8(&r);
		n |= (size_t)rd_u8(&r) << 8;
		if (n > rd_left(&r))
			n = rd_left(&r);
		struct span s = rd_bytes(&r, n);
		MUST(file_write(kind, (const uint8_t *)s.p, s.n) == OK);
	}
	struct buf out;
	struct err err = {0};
	buf_init(&out, MIB);
	errc rc = wal_inspect("wal", &(struct wal_inspect_options){.json = size & 1, .frames = size & 2}, &out, &err);
	MUST(rc == OK || err.msg[0]);
	buf_free(&out);

	/* Going on takes two threads and a hundred times as long: for some of the inputs. */
	if (size > 0 && crc32c(0, data, size) % 16 != 0) {
		sim_free(sim);
		return 0;
	}
	struct wal_config cfg = {.dir = "wal", .sync = WAL_SYNC_ACK, .segment_bytes = LIMIT_WAL_SEGMENT_MIN};
	struct seen first = {0}, second = {0};
	struct wal *w;
	MUST(wal_open(&cfg, &w, &err) == OK);
	rc = wal_replay(w, frame, &first, NULL, NULL, &err);
	if (rc == OK) {
		struct wal_ticket t;
		uint8_t record[] = {99, 3, 'a', 'b', 'c'};
		MUST(wal_reserve(w, sizeof record, &t, &err) == OK);
		MUST(wal_commit_wait(w, &t, span_of(record, sizeof record), 0, &err) == OK);
	}
	wal_close(w);
	if (rc == OK) {
		MUST(wal_open(&cfg, &w, &err) == OK);
		MUST(wal_replay(w, frame, &second, NULL, NULL, &err) == OK);
		MUST(second.frames == first.frames + 1);
		wal_close(w);
	}
	sim_free(sim);
	return 0;
}
