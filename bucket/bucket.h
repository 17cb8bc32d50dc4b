/* bucket/bucket.h - object stores behind one interface: a directory, or S3 (AWS, MinIO, Ceph, ...).
 *
 * Configuration is Thanos' object store YAML (type: FILESYSTEM | S3, config:, prefix:), ${ENV} expanded; unknown types and keys are
 * refused with the list of what is known. Keys are relative to the prefix, '/'-separated, checked: no "..", no leading '/', no empty parts.
 *
 * Errors: ERR_NOTFOUND (404), ERR_EXISTS (412 of put_if_absent), ERR_DENIED (403, bad credentials), ERR_NET (could not reach, 5xx after all
 * attempts), ERR_CORRUPT (checksum or length differs), ERR_CANCELED (bucket_cancel). Messages say endpoint, bucket, key and the server's words,
 * never a secret. Retries inside: full jitter, Retry-After obeyed, LIMIT_S3_ATTEMPTS within `deadline_ms` of the call.
 *
 * Threads: any; connections are pooled.
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"

struct bucket;

/* yaml: the file's text; name: its path, for messages. default_dir: the directory when yaml is empty (the embedded default). */
CHECKED errc bucket_open(const char *name, struct span yaml, const char *default_dir, struct bucket **out, struct err *err);
void bucket_close(struct bucket *b);
/* "s3://metrics/prefix at http://127.0.0.1:9000" or "directory /x": for logs and messages. Borrowed from b. */
const char *bucket_describe(const struct bucket *b);
/* The directory of a FILESYSTEM bucket, else NULL. */
const char *bucket_dir(const struct bucket *b);
/* Aborts waits and transfers of all threads with ERR_CANCELED: for shutdown. */
void bucket_cancel(struct bucket *b);

struct bucket_put {
	uint64_t size_bytes;
	uint8_t sha256[32];
	uint32_t crc32c;
};

/* Uploads a file (streaming; multipart above part_size, memory bounded by one part) and verifies: the server computed the same checksum
 * or the part's MD5, and the object has the size. `put` (may be NULL) tells what was sent. Overwrites. */
CHECKED errc bucket_put_file(struct bucket *b, const char *key, const char *path, struct bucket_put *put, struct err *err);
CHECKED errc bucket_put_bytes(struct bucket *b, const char *key, struct span data, struct err *err);
/* Create-if-absent. ERR_EXISTS when it is there. ERR_UNSUPPORTED when the store was probed and ignores the condition. */
CHECKED errc bucket_put_if_absent(struct bucket *b, const char *key, struct span data, struct err *err);

/* Exactly n bytes at off; ERR_CORRUPT when the object is shorter. */
CHECKED errc bucket_get_range(struct bucket *b, const char *key, uint64_t off, size_t n, void *buf, struct err *err);
/* A whole small object, from the arena. */
CHECKED errc bucket_get(struct bucket *b, const char *key, size_t max_bytes, struct arena *arena, struct span *out, struct err *err);
CHECKED errc bucket_size(struct bucket *b, const char *key, uint64_t *size, struct err *err); /* HEAD */
CHECKED errc bucket_delete(struct bucket *b, const char *key, struct err *err);		      /* missing is fine */

struct bucket_object {
	struct span key;
	uint64_t size_bytes;
	int64_t mtime_ms;
};
/* Every object below prefix ("" = all), recursive, paged, ascending by key bytes. An error of fn ends it. *pages (may be NULL): requests made. */
CHECKED errc bucket_list(struct bucket *b, const char *prefix, errc (*fn)(void *arg, const struct bucket_object *o, struct err *err), void *arg,
	uint64_t *pages, struct err *err);

/* Is the bucket there, and may we write? One small request; used at start and after failures to say why in words. */
CHECKED errc bucket_check(struct bucket *b, struct err *err);

/* Incomplete multipart uploads below prefix that this process left are aborted (crash recovery). */
CHECKED errc bucket_abort_uploads(struct bucket *b, const char *prefix, struct err *err);
