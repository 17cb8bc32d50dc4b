/* bucket/bucket_s3.c - S3 as an object store: whole objects, ranges, and create-if-absent.
 *
 * A put is believed when the server's own checksum says so: x-amz-checksum-crc32c of the answer, or an ETag that is the MD5; where it tells neither
 * (objects encrypted with a key), HEAD tells the size. The server checks us by the signed SHA-256 of the body and by Content-MD5.
 *
 * Create-if-absent is `If-None-Match: *`. Some stores accept the header and ignore it, which would let two writers both win. So, once per
 * process, before the first use, a key below varve/probe/ is created twice: the second must be refused with 412. When an answer was lost and the
 * attempt after it finds the key there, the object is read back: if it holds our bytes it is ours. What is put this way must
 * therefore name its writer (a lease does).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include "base/io.h"
#include "base/log.h"
#include "base/ulid.h"
#include "bucket/bucket_s3_int.h"

#define S3_CONFIG_BYTES (8 * MIB)
#define S3_COPY_BYTES (256 * KIB)

static struct s3 *s3_of(struct bucket *b)
{
	return (struct s3 *)b;
}

/* ---- verification ---- */

void s3_object_headers(struct s3 *s, struct s3_request *r)
{
	bool typed = false;
	for (size_t i = 0; i < s->cfg.n_metadata; i++) {
		s3_request_header(r, s->cfg.metadata[i].name, s->cfg.metadata[i].value);
		typed |= strcmp(s->cfg.metadata[i].name, "content-type") == 0;
	}
	if (!typed)
		s3_request_header(r, "content-type", "application/octet-stream");
	if (s->cfg.sse_s3)
		s3_request_header(r, "x-amz-server-side-encryption", "AES256");
}

static struct span unquoted(struct span s)
{
	if (s.n >= 2 && s.p[0] == '"' && s.p[s.n - 1] == '"')
		return span_of(s.p + 1, s.n - 2);
	return s;
}

errc s3_etag_check(const struct s3_request *r, const struct bucket_digest *d, bool *unknown, struct err *err)
{
	char md5[2 * MD5_BYTES + 1];
	struct span etag = unquoted(http_call_header(&r->call, "etag")), sse = http_call_header(&r->call, "x-amz-server-side-encryption");
	*unknown = true;
	if (!d->has_md5 || !etag.p || etag.n != 2 * MD5_BYTES || (sse.p && span_has_prefix(sse, SPAN("aws:"))))
		return OK;
	for (size_t i = 0; i < etag.n; i++) {
		if (!strchr("0123456789abcdefABCDEF", etag.p[i]))
			return OK;
	}
	*unknown = false;
	bucket_hex(d->md5, MD5_BYTES, md5);
	if (strncasecmp(md5, etag.p, etag.n) != 0)
		return err_set(err, ERR_CORRUPT, "the store received other bytes: ETag %.*s, sent MD5 %s", SPAN_ARG(etag), md5);
	return OK;
}

errc s3_size_check(struct s3 *s, const char *key, uint64_t want, struct err *err)
{
	uint64_t size;
	errc rc = s->base.ops->size(&s->base, key, &size, err);
	if (rc == ERR_NOTFOUND)
		return err_set(err, ERR_CORRUPT, "%s: the store took the object and does not have it", key);
	if (rc == OK && size != want)
		return err_set(err, ERR_CORRUPT, "%s: sent %" PRIu64 " bytes, the store has %" PRIu64, key, want, size);
	return rc;
}

/* ---- put ---- */

struct put_check {
	const struct bucket_digest *digest;
	const char *crc32c; /* base64, as sent */
	bool verified;
};

static errc put_accept(void *arg, struct s3_request *r, struct err *err)
{
	errc rc = OK;
	struct put_check *c = arg;
	bool unknown;
	struct span crc = http_call_header(&r->call, "x-amz-checksum-crc32c");
	CHECK(!crc.p || crc.n == 0 || span_is(crc, c->crc32c), ERR_CORRUPT, "the store received other bytes: CRC-32C %.*s, sent %s", SPAN_ARG(crc),
		c->crc32c);
	TRY(s3_etag_check(r, c->digest, &unknown, err));
	c->verified = !unknown || (crc.p && crc.n);
fail:
	return rc;
}

/* One PUT of memory (fd < 0) or of a whole file whose digest is known. */
static errc put_single(struct s3 *s, const char *key, struct span data, int fd, const struct bucket_digest *d, bool absent, uint64_t max_attempts,
	bool *maybe_done, struct err *err)
{
	errc rc = OK;
	struct s3_request r;
	char sha256[SHA256_HEX + 1], md5[32], crc[16];
	uint8_t be[4];
	struct put_check check = {d, crc, false};

	bucket_hex(d->sha256, SHA256_BYTES, sha256);
	bucket_base64(d->md5, MD5_BYTES, md5);
	put_be32(be, d->crc32c);
	bucket_base64(be, sizeof be, crc);

	s3_request_init(&r, "PUT", key);
	s3_object_headers(s, &r);
	if (s->cfg.send_content_md5 && d->has_md5)
		s3_request_header(&r, "content-md5", md5);
	s3_request_header(&r, "x-amz-checksum-crc32c", crc);
	if (absent)
		s3_request_header(&r, "if-none-match", "*");
	r.payload_sha256 = sha256;
	r.body = data;
	if (fd >= 0 && d->size_bytes) {
		r.fd = fd;
		r.file_bytes = d->size_bytes;
	}
	r.accept = put_accept;
	r.arg = &check;
	r.max_attempts = max_attempts;
	rc = s3_send(s, &r, err);
	if (maybe_done)
		*maybe_done = r.maybe_done;
	if (rc == OK && !check.verified)
		rc = s3_size_check(s, key, d->size_bytes, err);
	s3_request_free(&r);
	return rc;
}

static errc hash_file(struct s3 *s, const char *path, int fd, struct bucket_digest *out, struct err *err)
{
	errc rc = OK;
	struct bucket_hash h = {0};
	uint8_t *buf = malloc(S3_COPY_BYTES);
	CHECK(buf, ERR_NOMEM, "%s: out of memory", path);
	TRY(bucket_hash_begin(&h, true, err));
	for (uint64_t off = 0;;) {
		size_t got;
		TRY(bucket_alive(&s->base, err));
		TRY(io_pread(fd, buf, S3_COPY_BYTES, off, &got, err));
		TRY(bucket_hash_add(&h, buf, got, err));
		off += got;
		if (got < S3_COPY_BYTES)
			break;
	}
	TRY(bucket_hash_end(&h, out, err));
fail:
	bucket_hash_drop(&h);
	free(buf);
	return rc;
}

static errc s3_put_file(struct bucket *b, const char *key, const char *path, struct bucket_put *put, struct err *err)
{
	errc rc = OK;
	struct s3 *s = s3_of(b);
	struct bucket_digest d;
	int fd = -1;
	uint64_t size;
	TRY(io_open(path, IO_READ, &fd, err));
	TRY(io_size(fd, &size, err));
	if (size > s->cfg.part_size_bytes && !s->cfg.disable_multipart) {
		TRY(s3_put_multipart(s, key, path, fd, size, put, err));
	} else {
		CHECK(size <= LIMIT_S3_PART_MAX, ERR_LIMIT, "%s: %" PRIu64 " bytes, one PUT takes 5 GiB; set disable_multipart: false", path, size);
		TRY(hash_file(s, path, fd, &d, err));
		TRY(put_single(s, key, SPAN(""), fd, &d, false, 0, NULL, err));
		*put = (struct bucket_put){.size_bytes = d.size_bytes, .crc32c = d.crc32c};
		memcpy(put->sha256, d.sha256, SHA256_BYTES);
	}
fail:
	io_close(fd);
	return rc;
}

static errc s3_put_bytes(struct bucket *b, const char *key, struct span data, struct err *err)
{
	errc rc = OK;
	struct bucket_digest d;
	TRY(bucket_hash_span(data, true, &d, err));
	TRY(put_single(s3_of(b), key, data, -1, &d, false, 0, NULL, err));
fail:
	return rc;
}

/* ---- create-if-absent ---- */

static errc delete_quietly(struct s3 *s, const char *key)
{
	struct err err = {0};
	errc rc = s->base.ops->remove(&s->base, key, &err);
	if (rc)
		log_debug("probe object not removed", LSTR("key", key), LERR(&err));
	return rc;
}

/* Creates one key twice. Decides s->probe, or returns why it could not be found out. */
static errc probe_locked(struct s3 *s, struct err *err)
{
	errc rc = OK;
	struct bucket_digest d;
	char key[sizeof BUCKET_PROBE_PREFIX + ULID_TEXT_BYTES];
	snprintf(key, sizeof key, "%s%s", BUCKET_PROBE_PREFIX, ulid_text(ulid_new()).s);
	TRY(bucket_hash_span(span_cstr(key), true, &d, err));

	bool maybe_done = false;
	rc = put_single(s, key, span_cstr(key), -1, &d, true, 0, &maybe_done, err);
	if (rc == ERR_UNSUPPORTED || rc == ERR_INVALID) {
		s->probe = PROBE_IGNORED; /* 501, or 400 for the header */
		log_warn("the object store refuses If-None-Match: leases need it", LSTR("bucket", s->base.describe), LERR(err));
		return OK;
	}
	if (rc == ERR_EXISTS && maybe_done)
		rc = OK; /* nobody else knows the name: the first attempt made it */
	TRY(rc);
	rc = put_single(s, key, span_cstr(key), -1, &d, true, 0, NULL, err);
	if (rc == ERR_EXISTS) {
		s->probe = PROBE_HOLDS;
	} else if (rc == OK) {
		s->probe = PROBE_IGNORED;
		log_warn("the object store ignores If-None-Match: leases need it", LSTR("bucket", s->base.describe));
	}
	errc ignored = delete_quietly(s, key);
	(void)ignored;
	if (s->probe != PROBE_UNKNOWN)
		rc = OK;
fail:
	return rc;
}

static errc probe(struct s3 *s, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&s->probe_mu);
	if (s->probe == PROBE_UNKNOWN)
		rc = probe_locked(s, err);
	if (rc == OK && s->probe == PROBE_IGNORED)
		rc = err_set(err, ERR_UNSUPPORTED, "%s does not honour If-None-Match (probed): create-if-absent is not safe there", s->base.describe);
	pthread_mutex_unlock(&s->probe_mu);
	return rc;
}

static errc s3_put_if_absent(struct bucket *b, const char *key, struct span data, struct err *err)
{
	errc rc = OK;
	struct s3 *s = s3_of(b);
	struct bucket_digest d;
	struct arena arena;
	bool maybe_done = false;

	arena_init(&arena, data.n + 64 * KIB);
	TRY(probe(s, err));
	TRY(bucket_hash_span(data, true, &d, err));
	rc = put_single(s, key, data, -1, &d, true, 0, &maybe_done, err);
	if (rc == ERR_EXISTS && maybe_done) {
		struct span there;
		errc got = b->ops->get(b, key, data.n, &arena, &there, NULL);
		if (got == OK && span_eq(there, data))
			rc = OK;
	}
fail:
	arena_free(&arena);
	return rc;
}

/* ---- get ---- */

struct range_check {
	uint64_t off, n;
};

/* "bytes 0-9/100"; *total UINT64_MAX for "*". */
static bool content_range(struct span s, uint64_t *first, uint64_t *last, uint64_t *total)
{
	char text[96], star = 0;
	if (s.n >= sizeof text)
		return false;
	memcpy(text, s.p, s.n);
	text[s.n] = 0;
	if (sscanf(text, "bytes %" SCNu64 "-%" SCNu64 "/%" SCNu64, first, last, total) == 3)
		return true;
	*total = UINT64_MAX;
	return sscanf(text, "bytes %" SCNu64 "-%" SCNu64 "/%c", first, last, &star) == 3 && star == '*';
}

static errc range_accept(void *arg, struct s3_request *r, struct err *err)
{
	errc rc = OK;
	const struct range_check *c = arg;
	uint64_t first = 0, last = 0, total = 0;
	struct span header = http_call_header(&r->call, "content-range");
	CHECK(r->call.status == 206, ERR_UNSUPPORTED, "answer %d to a range request: the store does not serve ranges", r->call.status);
	CHECK(header.p && content_range(header, &first, &last, &total) && first == c->off && last >= first, ERR_CORRUPT,
		"asked for %" PRIu64 " bytes at %" PRIu64 ", the answer's range is \"%.*s\"", c->n, c->off, SPAN_ARG(header));
	r->final = total != UINT64_MAX && c->off + c->n > total;
	CHECK(!r->final, ERR_CORRUPT, "wanted %" PRIu64 " bytes at %" PRIu64 ", the object has %" PRIu64, c->n, c->off, total);
	CHECK(last - first + 1 == c->n && r->into_n == c->n, ERR_CORRUPT, "asked for %" PRIu64 " bytes at %" PRIu64 ", got %zu (range %.*s)", c->n,
		c->off, r->into_n, SPAN_ARG(header));
fail:
	return rc;
}

static errc s3_get_range(struct bucket *b, const char *key, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct s3_request r;
	struct range_check check = {off, n};
	char range[64];
	snprintf(range, sizeof range, "bytes=%" PRIu64 "-%" PRIu64, off, off + n - 1);
	s3_request_init(&r, "GET", key);
	s3_request_header(&r, "range", range);
	r.into = buf;
	r.into_bytes = n;
	r.accept = range_accept;
	r.arg = &check;
	errc rc = s3_send(s3_of(b), &r, err);
	s3_request_free(&r);
	return rc;
}

static errc s3_get(struct bucket *b, const char *key, size_t max_bytes, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	struct s3_request r;
	s3_request_init(&r, "GET", key);
	if (max_bytes > r.max_answer_bytes)
		r.max_answer_bytes = max_bytes;
	TRY(s3_send(s3_of(b), &r, err));
	CHECK(r.call.answer.n <= max_bytes, ERR_LIMIT, "%s: %zu bytes, at most %zu", key, r.call.answer.n, max_bytes);
	char *p = arena_alloc(arena, r.call.answer.n + 1);
	CHECK(p, ERR_NOMEM, "%s: out of memory", key);
	if (r.call.answer.n)
		memcpy(p, r.call.answer.p, r.call.answer.n);
	p[r.call.answer.n] = 0;
	*out = span_of(p, r.call.answer.n);
fail:
	s3_request_free(&r);
	return rc;
}

static errc size_accept(void *arg, struct s3_request *r, struct err *err)
{
	int64_t n;
	struct span length = http_call_header(&r->call, "content-length");
	if (!length.p || !span_to_i64(length, &n) || n < 0)
		return err_set(err, ERR_CORRUPT, "HEAD answered without a Content-Length");
	*(uint64_t *)arg = (uint64_t)n;
	return OK;
}

static errc s3_size(struct bucket *b, const char *key, uint64_t *size, struct err *err)
{
	struct s3_request r;
	s3_request_init(&r, "HEAD", key);
	r.accept = size_accept;
	r.arg = size;
	errc rc = s3_send(s3_of(b), &r, err);
	s3_request_free(&r);
	return rc;
}

static errc s3_remove(struct bucket *b, const char *key, struct err *err)
{
	struct s3_request r;
	s3_request_init(&r, "DELETE", key);
	errc rc = s3_send(s3_of(b), &r, err);
	s3_request_free(&r);
	return rc == ERR_NOTFOUND ? OK : rc;
}

/* ---- the rest ---- */

/* A small put says at once whether the name resolves, the bucket exists and the credentials may write. */
static errc s3_check(struct bucket *b, struct err *err)
{
	errc rc = OK;
	struct bucket_digest d;
	const char *key = BUCKET_PROBE_PREFIX "check";
	struct span text = SPAN("varve was here\n");
	TRY(bucket_hash_span(text, true, &d, err));
	TRY(put_single(s3_of(b), key, text, -1, &d, false, 2, NULL, err));
	errc ignored = delete_quietly(s3_of(b), key);
	(void)ignored;
fail:
	return rc;
}

static errc s3_abort(struct bucket *b, const char *prefix, struct err *err)
{
	return s3_abort_uploads(s3_of(b), prefix, false, err);
}

static void s3_cancel(struct bucket *b)
{
	http_client_cancel(s3_of(b)->http);
}

static void s3_close(struct bucket *b)
{
	struct s3 *s = s3_of(b);
	if (s->http)
		http_client_close(s->http);
	pthread_mutex_destroy(&s->mu);
	pthread_mutex_destroy(&s->probe_mu);
	arena_free(&s->cred_arena);
	arena_free(&s->arena);
	free(s);
}

static const struct bucket_ops s3_ops = {
	s3_close, s3_cancel, s3_put_file, s3_put_bytes, s3_put_if_absent, s3_get_range, s3_get, s3_size, s3_remove, s3_list, s3_check, s3_abort};

/* ---- open ---- */

static bool ends_with(const char *s, const char *end)
{
	size_t n = strlen(s), m = strlen(end);
	return n >= m && strcasecmp(s + n - m, end) == 0;
}

/* The region that AWS' endpoint names carry: s3.eu-west-1.amazonaws.com, s3-eu-west-1.amazonaws.com. */
static const char *region_of_endpoint(struct arena *a, const char *host)
{
	if (!ends_with(host, ".amazonaws.com") && !ends_with(host, ".amazonaws.com.cn"))
		return "us-east-1";
	const char *p = host;
	if (strncasecmp(p, "s3.dualstack.", 13) == 0)
		p += 13;
	else if (strncasecmp(p, "s3.", 3) == 0 || strncasecmp(p, "s3-", 3) == 0)
		p += 3;
	else
		return "us-east-1";
	size_t n = strcspn(p, ".");
	if (strncasecmp(p, "amazonaws.", 10) == 0 || n == 0)
		return "us-east-1";
	return arena_cstr(a, span_of(p, n));
}

/* Host, origin and path of the bucket, for both ways to address it. */
static errc address(struct s3 *s, struct err *err)
{
	const struct s3_config *c = &s->cfg;
	const char *host = c->endpoint, *drop = c->insecure ? ":80" : ":443";
	bool aws = ends_with(host, ".amazonaws.com") || ends_with(host, ".amazonaws.com.cn");
	/* A dot in the bucket's name is not covered by the endpoint's certificate. */
	bool virtual = c->lookup == S3_LOOKUP_VIRTUAL || (c->lookup == S3_LOOKUP_AUTO && aws && (c->insecure || !strchr(c->bucket, '.')));
	if (ends_with(host, drop))
		host = arena_cstr(&s->arena, span_of(host, strlen(host) - strlen(drop)));
	s->host = host && virtual ? arena_printf(&s->arena, "%s.%s", c->bucket, host) : host;
	s->origin = s->host ? arena_printf(&s->arena, "%s://%s", c->insecure ? "http" : "https", s->host) : NULL;
	s->bucket_path = virtual ? "/" : arena_printf(&s->arena, "/%s/", c->bucket);
	s->base.describe = s->origin ? arena_printf(&s->arena, "s3://%s%s%s at %s", c->bucket, s->prefix[0] ? "/" : "", s->prefix, s->origin) : NULL;
	s->prefix = s->prefix[0] ? arena_printf(&s->arena, "%s/", s->prefix) : "";
	s->region = c->region[0] ? c->region : region_of_endpoint(&s->arena, c->endpoint);
	if (!s->host || !s->origin || !s->bucket_path || !s->prefix || !s->base.describe || !s->region)
		return err_set(err, ERR_NOMEM, "s3://%s: out of memory", c->bucket);
	return OK;
}

static bool keep(struct arena *a, const char **s)
{
	*s = arena_cstr(a, span_cstr(*s));
	return *s != NULL;
}

/* The parsed configuration lives in the caller's arena: copied into ours. */
static errc config_keep(struct s3 *s, const struct bucket_config *cfg, struct err *err)
{
	s->cfg = cfg->s3;
	s->prefix = cfg->prefix;
	struct s3_config *c = &s->cfg;
	const char **strings[] = {&c->bucket, &c->endpoint, &c->region, &c->access_key, &c->secret_key, &c->session_token, &c->ca_file, &c->cert_file,
		&c->key_file, &c->server_name, &s->prefix};
	bool ok = true;
	for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
		ok = ok && keep(&s->arena, strings[i]);
	c->metadata = ok ? arena_calloc(&s->arena, c->n_metadata + 1, sizeof *c->metadata) : NULL;
	ok = c->metadata != NULL;
	for (size_t i = 0; ok && i < c->n_metadata; i++) {
		c->metadata[i] = cfg->s3.metadata[i];
		ok = keep(&s->arena, &c->metadata[i].name) && keep(&s->arena, &c->metadata[i].value);
	}
	return ok ? OK : err_set(err, ERR_NOMEM, "s3://%s: out of memory", cfg->s3.bucket);
}

static const char *or_null(const char *s)
{
	return s[0] ? s : NULL;
}

errc bucket_s3_open(const struct bucket_config *cfg, struct bucket **out, struct err *err)
{
	errc rc = OK;
	struct s3 *s = calloc(1, sizeof *s);
	if (!s)
		return err_set(err, ERR_NOMEM, "s3://%s: out of memory", cfg->s3.bucket);
	s->base.ops = &s3_ops;
	pthread_mutex_init(&s->mu, NULL);
	pthread_mutex_init(&s->probe_mu, NULL);
	arena_init(&s->arena, S3_CONFIG_BYTES);
	arena_init(&s->cred_arena, 2 * LIMIT_CONFIG_BYTES);
	TRY(config_keep(s, cfg, err));
	TRY(address(s, err));
	TRY(s3_credentials_find(&s->cfg, &s->cred_arena, &s->cred, err));

	struct http_client_config http = {.connect_timeout_ms = s->cfg.connect_timeout_ms,
		.idle_timeout_ms = s->cfg.idle_timeout_ms,
		.insecure_skip_verify = s->cfg.insecure_skip_verify,
		.ca_file = or_null(s->cfg.ca_file),
		.cert_file = or_null(s->cfg.cert_file),
		.key_file = or_null(s->cfg.key_file),
		.server_name = or_null(s->cfg.server_name),
		.max_idle_connections = (uint32_t)s->cfg.max_idle_connections};
	TRY(http_client_open(&http, &s->http, err));
	*out = &s->base;
	return OK;
fail:
	s3_close(&s->base);
	return rc;
}
