/* fuzz: needs head */
/* A snapshot of any bytes beside a real log. What does not begin with 'r' is taken as it is; the rest has its checksums, numbers and mark repaired first, so that what
 * stands behind them is reached. Loading it, replaying over it, reading, appending and cutting never crash.
 *
 * FUZZ_DUMP=FILE writes the snapshot of the log that it is held against, as a seed.
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/log.h"
#include "head/head_snapshot_int.h"
#include "tests/support/hist_make.h"
#include "tests/support/sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x)                                                                                                                                      \
	do {                                                                                                                                         \
		if (!(x)) {                                                                                                                          \
			fprintf(stderr, "%d: %s\n", __LINE__, #x);                                                                                   \
			abort();                                                                                                                     \
		}                                                                                                                                    \
	} while (0)

enum { RANGE = 600000, SERIES = 6, CHAINS = 3, HISTS = 40 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;
static struct sim_tape *tape;
static uint8_t real[65536];
static size_t n_real;
static struct ulid window; /* the log's */

static errc on_block(void *arg, const char *dir, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	(void)arg, (void)dir, (void)meta, (void)bytes, (void)err;
	return OK;
}

static errc start(struct wal **wal, struct head **head)
{
	errc rc = OK;
	struct err *err = NULL;
	struct wal_config wc = {.dir = "data/wal", .segment_bytes = 64 * KIB};
	*wal = NULL;
	*head = NULL;
	TRY(wal_open(&wc, wal, err));
	struct head_config hc = {.chunk_dir = "data/head",
		.block_dir = "data/blocks",
		.wal = *wal,
		.block_range_ms = RANGE,
		.cut_delay_ms = INT64_C(1) << 60,
		.max_age_ms = INT64_C(1) << 60,
		.max_memory_bytes = GIB,
		.wal_max_bytes = GIB,
		.labels = {64, 1024, 4096},
		.node = SPAN("fuzz"),
		.shards = 2,
		.on_block = on_block};
	TRY(head_open(&hc, head, err));
	TRY(head_load(*head, err));
	TRY(wal_replay(*wal, head_replay_frame, *head, NULL, NULL, err));
	TRY(head_start(*head, err));
fail:
	return rc;
}

/* late: but for the first ones, which stay chains. */
static void send(struct wal *wal, struct head *head, int64_t t, uint32_t n, bool late)
{
	struct buf wire, records;
	size_t at[SERIES + 1];
	struct head_series hs[SERIES];
	struct head_sample samples[SERIES * 200];
	struct head_hist hists[SERIES * HISTS];
	struct histogram h[SERIES * HISTS];
	struct arena a;
	uint32_t n_hists = 0;
	arena_init(&a, 64 * MIB);
	buf_init(&wire, MIB);
	for (uint32_t i = 0; i < SERIES; i++) {
		char host[16];
		snprintf(host, sizeof host, "h%u", i / 2);
		struct label l[] = {{SPAN("__name__"), i % 2 ? SPAN("up") : SPAN("down")}, {SPAN("host"), span_cstr(host)}, {SPAN("job"), SPAN("j")}};
		at[i] = wire.n;
		labels_to_wire((struct labels){l, 3}, &wire);
		at[i + 1] = wire.n;
	}
	for (uint32_t i = 0; i < SERIES; i++) {
		hs[i] = (struct head_series){.wire = span_of(wire.p + at[i], at[i + 1] - at[i]), .first = i * n, .n = n};
		for (uint32_t k = 0; k < n; k++)
			samples[i * n + k] =
				(struct head_sample){t + k * 100 + (late && i < CHAINS ? 100000 : 0), f64_bits((double)(k * i * k % 977) / 7)};
		/* The last ones have both kinds. */
		struct hist_maker m;
		hist_maker_init(&m, i);
		hs[i].first_hist = n_hists;
		for (uint32_t k = 0; i >= SERIES - 2 && k < n && k < HISTS; k++, n_hists++) {
			hists[n_hists] = (struct head_hist){.t = t + k * 100 + 33, .h = &h[n_hists]};
			hist_maker_next(&m, &a, &hists[n_hists].kind, &h[n_hists]);
			hs[i].n_hist++;
		}
	}
	struct head_batch b = {.tenant = SPAN("default-tenant"),
		.series = hs,
		.n_series = SERIES,
		.samples = samples,
		.n_samples = SERIES * (size_t)n,
		.hists = hists,
		.n_hists = n_hists,
		.min_t = INT64_MIN,
		.max_t = INT64_MAX,
		.now_ms = io_now_ms()};
	struct wal_ticket ticket;
	uint32_t logged;
	MUST(wal_reserve(wal, head_batch_bound(head, &b), &ticket, NULL) == OK);
	buf_init(&records, ticket.bytes + 1);
	(void)!head_append(head, &ticket, &b, &records, &logged, NULL);
	MUST(wal_commit_wait(wal, &ticket, span_of(records.p, records.n), logged, NULL) == OK);
	buf_free(&records);
	buf_free(&wire);
	arena_free(&a);
}

static void prepare(void)
{
	struct wal *wal;
	struct head *head;
	struct arena a;
	struct span s;
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	head_spill_series = 0;
	struct sim *sim = sim_new(1);
	sim_record(sim);
	MUST(io_mkdirs("data", NULL) == OK && start(&wal, &head) == OK);
	send(wal, head, T0, 150, false);
	send(wal, head, T0 + 50, 3, true);
	MUST(head_snapshot(head, NULL) == OK);
	send(wal, head, T0 + 20000, 5, false);
	send(wal, head, T0 + 30, 2, true);
	head_close(head);
	wal_close(wal);
	arena_init(&a, MIB);
	MUST(io_read_file("data/head/snapshot", sizeof real, &a, &s, NULL) == OK);
	n_real = s.n;
	memcpy(real, s.p, s.n);
	char **names;
	size_t n;
	MUST(io_listdir("data/head", &a, &names, &n, NULL) == OK);
	for (size_t i = 0; i < n; i++)
		(void)!ulid_parse(span_of(names[i], ULID_TEXT_BYTES < strlen(names[i]) ? ULID_TEXT_BYTES : 0), &window);
	MUST(!ulid_is_zero(window));
	arena_free(&a);
	tape = sim_tape_take(sim);
	sim_free(sim);
	const char *dump = getenv("FUZZ_DUMP");
	FILE *f = dump ? fopen(dump, "wb") : NULL;
	if (f) {
		fputc('r', f);
		fwrite(real, 1, n_real, f);
		fclose(f);
	}
}

static void repair(uint8_t *p, size_t n)
{
	const size_t mark = SNAPSHOT_HEADER + SNAPSHOT_SECTION_HEADER + SNAPSHOT_MARK_BYTES;
	memcpy(p, real, n < mark ? n : mark);
	uint32_t number = 0;
	for (size_t at = SNAPSHOT_HEADER; at + SNAPSHOT_SECTION_HEADER <= n;) {
		size_t len = get_le32(p + at + 4), left = n - at - SNAPSHOT_SECTION_HEADER;
		if (len > left) {
			len = left;
			put_le32(p + at + 4, (uint32_t)len);
		}
		put_le32(p + at + 8, number++);
		memcpy(p + at + 12, p + 12, 4);
		/* The seed's window was another one. */
		if (get_le32(p + at) == SNAPSHOT_WINDOW && len >= 17)
			memcpy(p + at + SNAPSHOT_SECTION_HEADER + 1, window.b, 16);
		put_le32(p + at + 16, crc32c(crc32c(0, p + at, 16), p + at + SNAPSHOT_SECTION_HEADER, len));
		at += SNAPSHOT_SECTION_HEADER + len;
	}
}

static void read_all(struct head *head)
{
	struct arena a;
	struct source **v;
	size_t n;
	struct matcher m;
	arena_init(&a, 64 * MIB);
	MUST(matcher_init(&m, MATCH_RE, SPAN("__name__"), SPAN(".*"), &a, NULL) == OK);
	MUST(head_sources(head, SPAN("default-tenant"), INT64_MIN, INT64_MAX, &a, &v, &n, NULL) == OK);
	for (size_t i = 0; i < n; i++) {
		struct series_iter *it;
		struct series_view view;
		struct select_options opt = {.mint = INT64_MIN, .maxt = INT64_MAX};
		bool more = true;
		if (v[i]->ops->select(v[i], &m, 1, &opt, &it, NULL) == OK) {
			while (it->ops->next(it, &view, &more, NULL) == OK && more)
				;
			it->ops->close(it);
		}
		v[i]->ops->release(v[i]);
	}
	matchers_free(&m, 1);
	arena_free(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct wal *wal;
	struct head *head;
	int fd;
	if (!tape)
		prepare();
	if (size == 0 || size > 65536)
		return 0;
	uint8_t *copy = malloc(size);
	MUST(copy);
	memcpy(copy, data + 1, size - 1);
	if (data[0] == 'r')
		repair(copy, size - 1);
	struct sim *sim = sim_tape_crash(tape, sim_tape_len(tape), SIM_KEEP_ALL, 1);
	sim_use(sim);
	MUST(io_open("data/head/snapshot", IO_READ | IO_WRITE | IO_TRUNC, &fd, NULL) == OK);
	MUST(io_pwrite(fd, copy, size - 1, 0, NULL) == OK);
	io_close(fd);
	MUST(start(&wal, &head) == OK);
	read_all(head);
	send(wal, head, T0 + 10, 4, true);
	send(wal, head, T0 + 25000, 150, false);
	if (size % 4 == 0)
		(void)!head_snapshot(head, NULL);
	if (size % 4 == 1)
		(void)!head_flush(head, NULL);
	head_close(head);
	wal_close(wal);
	sim_free(sim);
	free(copy);
	return 0;
}
