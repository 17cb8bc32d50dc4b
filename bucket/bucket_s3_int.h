/* bucket/bucket_s3_int.h - the S3 store's own files among themselves.
 *
 *     bucket_s3.c            open, whole objects, ranges, create-if-absent and its probe
 *     bucket_s3_multipart.c  large files in parts                     ─┐
 *     bucket_s3_list.c       listings: objects, unfinished uploads    ─┼─▶ bucket_s3_send.c  sign, send, judge, wait, again ──▶ net
 *     bucket_s3_error.c      what an error answer means               ─┘
 *     bucket_s3_xml.c        answers' XML, element by element
 */
#pragma once
#include <pthread.h>
#include "bucket/bucket_int.h"
#include "net/net.h"

/* ---- XML ---- */

enum { S3_XML_NAME_BYTES = 64 };

struct s3_xml {
	/* Both may be NULL; depth of the root is 1, names without their namespace's prefix. */
	errc (*open)(void *arg, int depth, const char *name, struct err *err);
	errc (*close)(void *arg, int depth, const char *parent, const char *name, struct span text, struct err *err);
	void *arg;
};
/* ERR_CORRUPT: not well formed, a DOCTYPE, too deep, an element of too much text. */
CHECKED errc s3_xml_parse(const char *what, struct span xml, const struct s3_xml *handler, struct err *err);
/* "2009-10-12T17:50:30.000Z"; false when it is not one. */
bool s3_time_parse(struct span s, int64_t *ms);
/* "Wed, 21 Oct 2015 07:28:00 GMT" */
bool s3_http_date_parse(struct span s, int64_t *ms);
/* Undoes encoding-type=url, '+' included; p == NULL when memory is out or an escape is none. */
struct span s3_url_decode(struct span s, struct arena *arena);

/* ---- errors ---- */

/* Of an <Error> document; fields empty where it has none. */
struct s3_error {
	char code[64];
	char message[200];
	char region[64];
	char request_id[80];
};
/* Never fails: a body that is no S3 error leaves everything empty. */
void s3_error_parse(struct span body, struct s3_error *out);
/* Class of an answer that is not 2xx, and whether the same request may do better later. `head`: the answer could have no body. */
errc s3_error_class(int status, const char *code, bool head, bool *again);

/* ---- listings ---- */

struct s3_item {
	struct span key; /* with the bucket's prefix */
	struct span upload_id;
	uint64_t size_bytes;
	int64_t mtime_ms;
};
struct s3_page {
	struct s3_item *items;
	size_t n, cap;
	bool truncated;
	struct span next_token, next_key, next_upload; /* empty: not given */
};
/* Any of ListObjects, ListObjectsV2 and ListMultipartUploads, into the arena. */
CHECKED errc s3_page_parse(struct span xml, struct arena *arena, struct s3_page *out, struct err *err);

/* ---- the store ---- */

/* A key that this process is putting in parts: bucket_abort_uploads leaves its uploads alone. Entered before the upload is created, so that there
 * is no moment in which it looks like somebody else's. On its thread's stack. */
struct s3_upload {
	struct s3_upload *next;
	const char *key;
};

struct s3 {
	struct bucket base;
	struct arena arena; /* strings of the configuration; after open guarded by mu */
	struct s3_config cfg;
	const char *prefix;	 /* "" or "a/b/" */
	const char *host;	 /* the Host header */
	const char *origin;	 /* "http://127.0.0.1:9000" */
	const char *bucket_path; /* "/metrics/" or "/" */
	struct http_client *http;

	pthread_mutex_t mu;
	/* guarded by mu */
	struct arena cred_arena;
	struct s3_credentials cred;
	const char *region;
	int64_t clock_offset_ms; /* the server's clock minus ours */
	struct s3_upload *uploads;

	pthread_mutex_t probe_mu; /* held while probing: others wait for the verdict */
	enum { PROBE_UNKNOWN, PROBE_HOLDS, PROBE_IGNORED } probe;
};

enum { S3_HEADERS = 48, S3_QUERY = 8 };

/* One request with all its attempts. */
struct s3_request {
	const char *method;
	const char *key; /* without the bucket's prefix; NULL: the bucket itself */
	struct sigv4_pair query[S3_QUERY];
	size_t n_query;
	struct sigv4_pair headers[S3_HEADERS]; /* beyond host, date, hash and token; names in lower case */
	size_t n_headers;
	/* body: memory, or n bytes of a file. payload_sha256 (hex): NULL = of the memory. */
	struct span body;
	int fd; /* used when file_bytes > 0 */
	uint64_t file_off, file_bytes;
	const char *payload_sha256;
	/* answer: to `into` (2xx only, at most into_bytes), or to call.answer up to max_answer_bytes */
	uint8_t *into;
	size_t into_bytes;
	size_t max_answer_bytes;
	uint64_t max_attempts; /* 0 = the configured */
	/* Looks at a 2xx answer. ERR_NET and ERR_CORRUPT are tried again. NULL: 2xx is enough. */
	errc (*accept)(void *arg, struct s3_request *r, struct err *err);
	void *arg;

	/* out */
	struct http_call call; /* of the last attempt: status, answer, answer_headers */
	struct s3_error error; /* of the last attempt */
	uint64_t attempts;
	bool final;	 /* set by accept: its ERR_NET or ERR_CORRUPT would only come again */
	bool maybe_done; /* an earlier attempt may have had its effect */
	size_t into_n;
	/* own */
	uint64_t file_pos;
	errc read_rc;
	struct err read_err;
	bool renewed, skewed, moved; /* each cure is tried once */
};
void s3_request_init(struct s3_request *r, const char *method, const char *key);
void s3_request_query(struct s3_request *r, const char *name, const char *value);
void s3_request_header(struct s3_request *r, const char *name, const char *value);
/* OK: a 2xx answer that was accepted. Else class and words; r->call and r->error tell more. */
CHECKED errc s3_send(struct s3 *s, struct s3_request *r, struct err *err);
void s3_request_free(struct s3_request *r);

/* Headers that every new object carries: type, metadata, encryption. */
void s3_object_headers(struct s3 *s, struct s3_request *r);
/* The ETag of the answer is the MD5 of what was sent: OK. It can't be one (encrypted with a key, made of parts): *unknown. */
CHECKED errc s3_etag_check(const struct s3_request *r, const struct bucket_digest *d, bool *unknown, struct err *err);
CHECKED errc s3_size_check(struct s3 *s, const char *key, uint64_t want, struct err *err);

CHECKED errc s3_put_multipart(struct s3 *s, const char *key, const char *path, int fd, uint64_t size, struct bucket_put *put, struct err *err);
CHECKED errc s3_list(struct bucket *b, const char *prefix, errc (*fn)(void *arg, const struct bucket_object *o, struct err *err), void *arg,
	uint64_t *pages, struct err *err);
CHECKED errc s3_abort_uploads(struct s3 *s, const char *prefix, bool exact, struct err *err);
