/* fuzz: needs bucket */
/* An object store's YAML: whatever is accepted can be opened, and describes itself without its secrets (unless the secret is also the name of
 * something: then it is none). */
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
		const char *secret = cfg.s3.secret_key;
		bool named = strstr(cfg.s3.endpoint, secret) || strstr(cfg.s3.bucket, secret) || strstr(cfg.prefix, secret);
		if (strlen(secret) > 8 && !named && strstr(bucket_describe(b), secret))
			abort();
		bucket_close(b);
	}
	arena_free(&arena);
	return 0;
}
