/* fuzz: needs bucket */
/* What a peer says has changed, with a checksum that is made right, since that is no secret: whatever decodes, encodes again to the same bytes.
 */
#include <stdlib.h>
#include "bucket/bucket_feed_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { AT_CRC = 56 };

static void must(bool ok)
{
	if (!ok)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct feed_answer a;
	struct buf out;
	uint8_t *copy = malloc(size + 1);
	if (!copy)
		return 0;
	memcpy(copy, data, size);
	if (size >= AT_CRC + 4)
		put_le32(copy + AT_CRC, crc32c(crc32c(0, copy, AT_CRC), copy + AT_CRC + 4, size - AT_CRC - 4));
	buf_init(&out, size + MIB);
	if (feed_answer_decode(span_of(copy, size), &a, NULL) == OK) {
		struct span run = a.changes;
		errc rc = OK;
		feed_answer_begin(&a, &out);
		while (rc == OK && run.n > 0) {
			struct feed_record r;
			rc = feed_record_decode(&run, &r, NULL);
			if (rc == OK)
				feed_record_encode(&r, &out);
		}
		feed_answer_end(&out, 0, a.n);
		must(rc != OK || (out.n == size && memcmp(out.p, copy, size) == 0));
	}
	buf_free(&out);
	free(copy);
	return 0;
}
