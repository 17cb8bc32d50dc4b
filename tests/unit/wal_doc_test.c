/* docs/format/wal.md is true: its example is read by this build as the page says, and this build writes the same bytes. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <ctype.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/tmp.h"
#include "wal/wal_int.h"

/* The example: a series and two samples of it in a compressed frame, a cut in one that does not compress, a clean end. */
static size_t example_write(uint8_t *out, size_t cap)
{
	void *lz4 = malloc((size_t)LZ4_sizeofState());
	assert_non_null(lz4);
	struct wal_header h = {.log = 0x11223344,
		.segment = 7,
		.prev_segment = 6,
		.prev_seq = 41,
		.prev_crc = 0xaabbccdd,
		.first_seq = 42,
		.first_sample = 1000,
		.pos = 900000};
	wal_header_put(out, &h);
	size_t n = WAL_HEADER_BYTES;

	struct buf b;
	buf_init(&b, MIB);
	struct wal_series_enc e;
	wal_series_begin(&e, &b, SPAN("team-a"));
	wal_series_put(&e, 5, SPAN("\x0a\x0e\x0a\x08__name__\x12\x02up"), &(struct wal_keys){.v = {f64_bits(1)}});
	wal_series_end(&e);
	struct wal_window w = {SPAN("team-a"), {{1, 0x8b, 0xcf, 0xe5, 0x68, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}, 1700006400000, 7200000};
	struct wal_sample s[2] = {{.ref = 5, .t = 1700006400000, .v = f64_bits(1), .key = f64_bits(1)},
		{.ref = 5, .t = 1700006415000, .v = f64_bits(0), .key = f64_bits(1)}};
	wal_samples_put(&b, &w, s, 2);
	struct wal_frame_header f = {.log = h.log, .segment = 7, .seq = 42, .first_sample = 1000, .durable = 0, .samples = 2};
	assert_true(n + wal_frame_size((uint32_t)b.n) < cap);
	n += wal_frame_pack(&f, span_of(b.p, b.n), out + n, lz4);

	buf_clear(&b);
	struct wal_cut cut = {.window = w.window, .block = w.window, .upto_seq = 42};
	wal_cut_put(&b, &cut);
	f = (struct wal_frame_header){.log = h.log, .segment = 7, .seq = 43, .first_sample = 1002, .durable = n};
	n += wal_frame_pack(&f, span_of(b.p, b.n), out + n, lz4);

	f = (struct wal_frame_header){.log = h.log, .segment = 7, .seq = 44, .first_sample = 1002, .durable = n, .flags = WAL_FRAME_CLEAN};
	n += wal_frame_pack(&f, (struct span){"", 0}, out + n, lz4);
	buf_free(&b);
	free(lz4);
	return n;
}

/* Lines of "00000010  aa bb ..  |text|" between the fences of the block that begins with the word hexdump. */
static size_t example_read(uint8_t *out, size_t cap)
{
	FILE *f = fopen("docs/format/wal.md", "r");
	assert_non_null(f);
	char line[400];
	bool inside = false;
	size_t n = 0;
	while (fgets(line, sizeof line, f)) {
		if (strncmp(line, "```hexdump", 10) == 0) {
			inside = true;
			continue;
		}
		if (strncmp(line, "```", 3) == 0)
			inside = false;
		if (!inside)
			continue;
		char *p;
		assert_int_equal(strtoul(line, &p, 16), n);
		char *end = strchr(p, '|');
		if (end)
			*end = 0;
		for (;;) {
			while (isspace((unsigned char)*p))
				p++;
			if (!isxdigit((unsigned char)*p))
				break;
			assert_true(n < cap);
			out[n++] = (uint8_t)strtoul(p, &p, 16);
		}
	}
	fclose(f);
	return n;
}

static void dump(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i += 16) {
		printf("%08zx ", i);
		for (size_t k = i; k < i + 16; k++)
			k < n ? printf(" %02x", p[k]) : printf("   ");
		printf("  |");
		for (size_t k = i; k < i + 16 && k < n; k++)
			putchar(p[k] >= 0x20 && p[k] < 0x7f && p[k] != '|' ? p[k] : '.');
		printf("|\n");
	}
}

struct seen {
	uint64_t frames, series, samples, cuts;
};

static errc seen_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct seen *x = arg;
	struct rd r = rd_of(f->payload.p, f->payload.n);
	struct wal_record rec;
	bool ok;
	(void)err;
	x->frames++;
	while (wal_record_next(&r, &rec, &ok)) {
		struct wal_series_dec sd;
		struct wal_samples_dec d;
		struct wal_sample s[WAL_BLOCK_SAMPLES];
		struct wal_keys keys = {0};
		struct wal_cut cut;
		uint64_t ref = 0;
		struct span wire;
		switch (rec.kind) {
		case WAL_SERIES:
			assert_int_equal(f->seq, 42);
			assert_true(wal_series_open(rec.kind, rec.body, &sd) && wal_series_next(&sd, &ref, &wire, &keys, &ok));
			assert_int_equal(ref, 5);
			assert_true(keys.v[0] == f64_bits(1) && keys.v[1] == 0 && keys.now == 0);
			assert_int_equal(wire.n, 16);
			x->series++;
			break;
		case WAL_SAMPLES:
			assert_true(wal_samples_open(rec.kind, rec.body, &d));
			assert_int_equal(d.w.start_ms, 1700006400000);
			assert_int_equal(d.w.range_ms, 7200000);
			assert_int_equal(wal_samples_block(&d, s, &ok), 2);
			s[0].key = s[1].key = f64_bits(1);
			assert_true(wal_samples_values(&d, s, 2, &ok) && ok);
			assert_true(s[0].ref == 5 && s[0].t == 1700006400000 && s[0].v == f64_bits(1));
			assert_true(s[1].ref == 5 && s[1].t == 1700006415000 && s[1].v == 0);
			x->samples += 2;
			break;
		case WAL_CUT:
			assert_int_equal(f->seq, 43);
			assert_true(wal_cut_get(rec.body, &cut) && cut.upto_seq == 42);
			x->cuts++;
			break;
		default:
			fail();
		}
	}
	assert_true(ok);
	return OK;
}

static void the_example_is_what_this_build_writes(void **state)
{
	(void)state;
	if (LZ4_versionNumber() != 10904) /* another liblz4 may compress in another way; reading is what must agree */
		skip();
	uint8_t ours[4096], page[4096];
	size_t n = example_write(ours, sizeof ours), m = example_read(page, sizeof page);
	if (n != m || memcmp(ours, page, n) != 0)
		dump(ours, n);
	assert_int_equal(n, m);
	assert_memory_equal(ours, page, n);
}

static void the_example_is_what_this_build_reads(void **state)
{
	(void)state;
	uint8_t page[4096];
	size_t n = example_read(page, sizeof page);
	const char *dir = tmp_dir();
	struct err err = {0};
	assert_int_equal(io_write_file(tmp_path("%s/00000007.wal", dir), span_of(page, n), &err), OK);
	struct wal_config cfg = {.dir = dir, .sync = WAL_SYNC_ACK, .segment_bytes = LIMIT_WAL_SEGMENT_MIN};
	struct wal *w;
	struct seen x = {0};
	struct wal_replay_stats st;
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	assert_int_equal(wal_open(&cfg, &w, &err), OK);
	assert_int_equal(wal_replay(w, seen_frame, &x, NULL, &st, &err), OK);
	assert_int_equal(x.frames, 2);
	assert_int_equal(x.series, 1);
	assert_int_equal(x.samples, 2);
	assert_int_equal(x.cuts, 1);
	/* The example is the seventh segment: the page says that the six before it are then reported. */
	assert_int_equal(st.frames_lost, 41);
	assert_int_equal(st.samples_lost, 1000);
	wal_close(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_example_is_what_this_build_writes),
		cmocka_unit_test(the_example_is_what_this_build_reads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
