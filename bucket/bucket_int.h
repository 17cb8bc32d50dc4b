/* bucket/bucket_int.h - what the object stores of this folder share: the table behind bucket.h, the configuration, hashes and the signer.
 *
 *     bucket.c ──▶ struct bucket_ops ──▶ bucket_dir.c
 *                                   └──▶ bucket_s3.c ──▶ bucket_s3_send.c (sign, send, retry) ──▶ net's http_call
 *
 * A new kind of store is a new table, a word in bucket_config.c and a line in bucket_open.
 */
#pragma once
#include <stdatomic.h>
#include "bucket/bucket.h"
#include "base/limits.h"

/* ---- the table ---- */

/* Keys and prefixes have been checked by the front; semantics are bucket.h's. */
struct bucket_ops {
	void (*close)(struct bucket *b);
	void (*cancel)(struct bucket *b);
	errc (*put_file)(struct bucket *b, const char *key, const char *path, struct bucket_put *put, struct err *err);
	errc (*put_bytes)(struct bucket *b, const char *key, struct span data, struct err *err);
	errc (*put_if_absent)(struct bucket *b, const char *key, struct span data, struct err *err);
	errc (*get_range)(struct bucket *b, const char *key, uint64_t off, size_t n, void *buf, struct err *err);
	errc (*get)(struct bucket *b, const char *key, size_t max_bytes, struct arena *arena, struct span *out, struct err *err);
	errc (*size)(struct bucket *b, const char *key, uint64_t *size, struct err *err);
	errc (*remove)(struct bucket *b, const char *key, struct err *err);
	errc (*list)(struct bucket *b, const char *prefix, errc (*fn)(void *arg, const struct bucket_object *o, struct err *err), void *arg,
		uint64_t *pages, struct err *err);
	errc (*check)(struct bucket *b, struct err *err);
	errc (*abort_uploads)(struct bucket *b, const char *prefix, struct err *err);
};

/* First member of each store's own struct. Constant after open but for canceled. */
struct bucket {
	const struct bucket_ops *ops;
	const char *describe;
	const char *dir; /* NULL: not a directory */
	atomic_bool canceled;
};

/* Objects of varve's own that are no blocks live below this name; listed like all others. */
#define BUCKET_PROBE_PREFIX "varve/probe/"

/* A key: 1 to LIMIT_BUCKET_KEY_BYTES of UTF-8 without control characters, parts between '/' neither empty nor "." nor "..". */
CHECKED errc bucket_key_check(const char *key, struct err *err);
/* The same for a prefix: may be empty, end with '/', or stop within a part. */
CHECKED errc bucket_prefix_check(const char *prefix, struct err *err);
/* ERR_CANCELED after bucket_cancel. */
CHECKED errc bucket_alive(const struct bucket *b, struct err *err);

/* ---- configuration ---- */

struct s3_header {
	const char *name; /* as sent, lower case */
	const char *value;
};

enum s3_lookup { S3_LOOKUP_AUTO, S3_LOOKUP_PATH, S3_LOOKUP_VIRTUAL };

struct s3_config {
	const char *bucket;
	const char *endpoint; /* host or host:port */
	const char *region;   /* "" = find out */
	const char *access_key, *secret_key, *session_token;
	bool insecure; /* http:// */
	enum s3_lookup lookup;
	uint64_t part_size_bytes;
	bool disable_multipart, send_content_md5, list_v1, trace, sse_s3;
	uint64_t max_attempts;
	struct s3_header *metadata; /* put_user_metadata */
	size_t n_metadata;
	int64_t connect_timeout_ms, idle_timeout_ms;
	uint64_t max_idle_connections;
	bool insecure_skip_verify;
	const char *ca_file, *cert_file, *key_file, *server_name;
};

struct bucket_config {
	enum { BUCKET_FILESYSTEM, BUCKET_S3 } type;
	const char *prefix;    /* without '/' at either end; "" = none */
	const char *directory; /* FILESYSTEM */
	struct s3_config s3;
};

/* Strings live in the arena. Says what is wrong with file, line and key. Touches nothing. */
CHECKED errc bucket_config_parse(
	const char *name, struct span yaml, const char *default_dir, struct arena *arena, struct bucket_config *out, struct err *err);

CHECKED errc bucket_dir_open(const struct bucket_config *cfg, struct bucket **out, struct err *err);
CHECKED errc bucket_s3_open(const struct bucket_config *cfg, struct bucket **out, struct err *err);

/* ---- credentials ---- */

struct s3_credentials {
	const char *access_key, *secret_key, *session_token; /* token: "" = none */
	const char *source;				     /* "the configuration", "the environment", "/root/.aws/credentials [default]" */
};
/* Configuration, then AWS_ACCESS_KEY_ID and friends, then the shared credentials file. ERR_DENIED with the places looked at. */
CHECKED errc s3_credentials_find(const struct s3_config *cfg, struct arena *arena, struct s3_credentials *out, struct err *err);

/* ---- hashes ---- */

enum { SHA256_BYTES = 32, MD5_BYTES = 16, SHA256_HEX = 64 };

/* What is known of a stream of bytes: fed in pieces, read once at the end. md5 is all zero and has_md5 false where the library forbids MD5. */
struct bucket_hash {
	void *sha256, *md5; /* EVP_MD_CTX */
	uint32_t crc32c;
	uint64_t size_bytes;
};
struct bucket_digest {
	uint8_t sha256[SHA256_BYTES];
	uint8_t md5[MD5_BYTES];
	bool has_md5;
	uint32_t crc32c;
	uint64_t size_bytes;
};
CHECKED errc bucket_hash_begin(struct bucket_hash *h, bool md5, struct err *err);
CHECKED errc bucket_hash_add(struct bucket_hash *h, const void *p, size_t n, struct err *err);
CHECKED errc bucket_hash_end(struct bucket_hash *h, struct bucket_digest *out, struct err *err);
void bucket_hash_drop(struct bucket_hash *h); /* after begin, whether ended or not */
CHECKED errc bucket_hash_span(struct span s, bool md5, struct bucket_digest *out, struct err *err);
CHECKED errc bucket_hmac_sha256(const void *key, size_t key_n, const void *p, size_t n, uint8_t out[SHA256_BYTES], struct err *err);

void bucket_hex(const uint8_t *p, size_t n, char *out);	   /* 2 n characters and NUL */
void bucket_base64(const uint8_t *p, size_t n, char *out); /* 4 ceil(n/3) characters and NUL */

/* ---- AWS signature version 4 ---- */

struct sigv4_pair {
	struct span name, value;
};
struct sigv4_request {
	const char *method;
	struct span path;		/* bytes as they are, not encoded; with the leading '/' */
	const struct sigv4_pair *query; /* not encoded */
	size_t n_query;
	const struct sigv4_pair *headers; /* all of these are signed, host and x-amz-date among them; names in lower case */
	size_t n_headers;
	const char *payload_sha256; /* hex */
	int64_t now_ms;
	const char *region, *service;
	const char *access_key, *secret_key;
};
struct sigv4_signed {
	const char *target;	       /* path?query, encoded once, exactly as signed: what goes on the wire */
	const char *canonical_request; /* for tests */
	const char *string_to_sign;
	const char *signature;
	const char *authorization; /* header value */
};
CHECKED errc sigv4_sign(const struct sigv4_request *r, struct arena *arena, struct sigv4_signed *out, struct err *err);
/* "20150830T123600Z" */
void sigv4_date(int64_t now_ms, char out[17]);
