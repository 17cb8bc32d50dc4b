/* fuzz: needs cluster */
/* A file of hints of any bytes, and a state beside it. What begins with 'r' has its checksums and numbers repaired first, so that what stands behind them is reached. Opening it, reading it to
 * the end and going on behind it never crash, and end; what is read has the checksum that its header says.
 */
#include <stdlib.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"
#include "tests/support/sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SIZE_MAX_BYTES = 1 << 16, LOG = 7 };

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void repair(uint8_t *p, size_t n)
{
	struct hint_segment_head h = {.log = LOG, .first_seq = 1, .address = SPAN("n:1")};
	if (n < HINT_SEGMENT_BYTES)
		return;
	hint_segment_put(p, &h);
	for (size_t at = HINT_SEGMENT_BYTES; at + HINT_FRAME_BYTES <= n;) {
		struct hint_frame f = {.seq = get_le64(p + at + 8) % 1000 + 1,
			.first_sample = get_le64(p + at + 16) % 100000,
			.added_ms = (int64_t)get_le64(p + at + 24),
			.samples = get_le32(p + at + 32),
			.n = get_le32(p + at + 36) % 200};
		bool whole = at + hint_frame_size(f.n) <= n;
		f.crc = whole && p[at] != 0 ? crc32c(0, p + at + HINT_FRAME_BYTES, f.n) : get_le32(p + at + 40);
		/* Some stay as they are: damage. */
		if (p[at + 1] % 8 > 0)
			hint_frame_put(p + at, LOG, &f);
		at += hint_frame_size(f.n);
	}
}

static void read_all(struct hint_log *l)
{
	struct hint_cursor c = l->done;
	struct hint_frame f;
	struct hint_loss loss = {0};
	uint64_t steps = 0, off = 0, no = 0;
	errc rc;
	while ((rc = hint_log_next(l, &c, &f, &loss, NULL)) == OK) {
		must(c.no > no || c.off > off);
		no = c.no;
		off = c.off;
		must(f.n <= SIZE_MAX_BYTES && ++steps < SIZE_MAX_BYTES);
		uint8_t *p = malloc(f.n + 1);
		must(p != NULL);
		rc = hint_log_read(l, &c, &f, p, NULL);
		must(rc == ERR_CORRUPT || (rc == OK && crc32c(0, p, f.n) == f.crc));
		if (rc == OK)
			hint_log_pass(&c, &f);
		else
			hint_log_lose(&c, &f, &loss);
		free(p);
	}
	must(rc == ERR_NOTFOUND);
	(void)hint_log_pending_samples(l);
	(void)hint_log_pending_bytes(l);
	(void)hint_log_done(l, &c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2 || size > SIZE_MAX_BYTES)
		return 0;
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	struct sim *sim = sim_new(1);
	struct hint_log l;
	struct hints_owed owed;
	char *address;
	uint8_t *copy = malloc(size);
	must(copy != NULL);
	size_t n = size - 2;
	memcpy(copy, data + 2, n);
	if (data[0] == 'r')
		repair(copy, n);
	must(io_mkdirs("hints/x", NULL) == OK);
	/* 's': it is the state; else a part of it may be a second file */
	size_t cut = data[0] == 's' ? 0 : data[1] % 4 == 0 ? n / 2 : n;
	if (data[0] == 's')
		must(io_write_file("hints/x/state", span_of(copy, n), NULL) == OK);
	else
		must(io_write_file("hints/x/00000001.hints", span_of(copy, cut), NULL) == OK);
	if (cut < n && data[0] != 's')
		must(io_write_file("hints/x/00000002.hints", span_of(copy + cut, n - cut), NULL) == OK);
	errc rc = hint_log_open(&l, "hints", "hints/x", &address, &owed, NULL);
	must(rc == OK || rc == ERR_CORRUPT);
	if (rc == OK) {
		uint8_t frame[HINT_FRAME_BYTES + 8] = {0};
		read_all(&l);
		must(hint_log_append(&l, frame, 5, 1, 1, NULL) == OK);
		must(hint_log_pending(&l));
		read_all(&l);
		must(!hint_log_pending(&l));
		must(hint_log_save(&l, &owed, NULL) == OK);
		hint_log_close(&l);
		free(address);
	}
	must(sim_open_fds(sim) == 0);
	sim_free(sim);
	free(copy);
	return 0;
}
