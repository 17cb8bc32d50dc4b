/* fuzz: needs bucket */
/* An object store's YAML: whatever is accepted can be opened, and describes itself in the same words whatever its secrets are. */
#include <stdlib.h>
#include "base/log.h"
#include "bucket/bucket_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arena arena;
	struct bucket_config cfg;
	struct bucket *b = NULL;
	struct err err = {0};

	log_setup(LOG_ERROR, LOG_LOGFMT);
	arena_init(&arena, 16 * MIB);
	errc rc = bucket_config_parse("fuzz.yml", span_of(data, size), "data/bucket", &arena, &cfg, &err);
	if (rc != OK && (err.code != rc || err.msg[0] == 0))
		abort();
	if (rc == OK && cfg.prefix[0] && bucket_key_check(cfg.prefix, NULL))
		abort();
	/* Directories would be made: only S3, which connects to nothing before it is used. */
	if (rc == OK && cfg.type == BUCKET_S3 && cfg.s3.access_key[0] && bucket_s3_open(&cfg, &b, &err) == OK) {
		const char *said = arena_cstr(&arena, span_cstr(bucket_describe(b)));
		bucket_close(b);
		cfg.s3.secret_key = cfg.s3.session_token = "another-secret";
		if (!said || bucket_s3_open(&cfg, &b, &err) != OK || strcmp(bucket_describe(b), said) != 0)
			abort();
		bucket_close(b);
	}
	arena_free(&arena);
	return 0;
}
