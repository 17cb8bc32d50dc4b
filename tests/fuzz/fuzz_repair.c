/* fuzz: needs ingest */
/* What nodes answer each other about their windows, with checksums that are made right, since those are no secret: whatever decodes, encodes again to the same bytes, but for buckets' order,
 * which is one. The first byte chooses the kind; texts of cursors and buckets are read from the same bytes.
 */
#include <stdlib.h>
#include "ingest/ingest_repair_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void texts(struct span s)
{
	struct repair_cursor c;
	uint8_t set[REPAIR_BUCKETS_BYTES];
	char text[REPAIR_CURSOR_TEXT], buckets[2 * REPAIR_BUCKETS_BYTES + 1];
	if (repair_cursor_parse(s, &c)) {
		repair_cursor_text(&c, text);
		must(span_is(s, text));
	}
	if (repair_buckets_parse(s, set)) {
		repair_buckets_text(set, buckets);
		must(span_is(s, buckets));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arena a;
	struct buf again;
	struct err err = {0};
	if (size < 1 + 12)
		return 0;
	uint8_t kind = data[0] % 4, *p = calloc(1, size - 1);
	size_t n = size - 1;
	must(p);
	memcpy(p, data + 1, n);
	texts(span_of(p, n));
	put_le32(p + 8, crc32c(crc32c(0, p, 8), p + 12, n - 12));
	struct span s = span_of(p, n);
	arena_init(&a, 64 * MIB);
	buf_init(&again, 64 * MIB);
	bool decoded = false;
	if (kind == 0) {
		struct repair_windows m;
		decoded = repair_windows_decode(s, &a, &m, &err) == OK;
		must(!decoded || repair_windows_encode(&m, &again, &err) == OK);
	} else if (kind == 1) {
		struct repair_digest_answer m;
		decoded = repair_digest_decode(s, &m, &err) == OK;
		must(!decoded || repair_digest_encode(&m, &again, &err) == OK);
	} else if (kind == 2) {
		struct repair_piece m;
		decoded = repair_piece_decode(s, &m, &err) == OK;
		must(!decoded || repair_piece_encode(&m, &again, &err) == OK);
	} else {
		struct repair_owed m;
		decoded = repair_owed_decode(s, &m, &err) == OK;
		must(!decoded || repair_owed_encode(&m, &again, &err) == OK);
	}
	must(!decoded || span_eq(span_of(again.p, again.n), s));
	buf_free(&again);
	arena_free(&a);
	free(p);
	return 0;
}
