/* fuzz: needs bucket */
/* S3's answers: the input as a listing, as an error, as a date, and as a name in a listing. */
#include <stdlib.h>
#include "bucket/bucket_s3_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct span in = span_of(data, size), decoded;
	struct arena arena;
	struct s3_page page;
	struct s3_error error;
	int64_t ms;
	bool again;

	arena_init(&arena, 64 * MIB);
	if (s3_page_parse(in, &arena, &page, NULL) == OK) {
		for (size_t i = 0; i < page.n; i++) {
			if (page.items[i].key.n == 0 || page.items[i].size_bytes > INT64_MAX)
				abort();
		}
	}
	s3_error_parse(in, &error);
	for (const char *p = error.message; *p; p++) {
		if (*p < ' ' || *p > '~')
			abort();
	}
	if (s3_error_class(400 + (int)(size % 200), error.code, size & 1, &again) == OK)
		abort();
	if (s3_time_parse(in, &ms) && (ms < 0 || ms > INT64_C(253402300861000)))
		abort();
	if (s3_http_date_parse(in, &ms) && ms < 0)
		abort();
	decoded = s3_url_decode(in, &arena);
	if (decoded.p && decoded.n > size)
		abort();
	arena_free(&arena);
	return 0;
}
