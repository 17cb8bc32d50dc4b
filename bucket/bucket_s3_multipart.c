/* bucket/bucket_s3_multipart.c - large files in parts: memory stays at a read buffer, whatever the file's size.
 *
 *     abort what an earlier process left of this key ─▶ create ─▶ for each part: read and hash, read again and send ─▶ complete ─▶ verify
 *
 * Each part is read twice: its SHA-256 must be in the signed header before its bytes go out, and a part is 16 MiB that the page cache has. The
 * server checks each part against the signature and Content-MD5, we check its ETag; the whole is right when its ETag is the MD5 of the
 * parts' MD5s and HEAD gives the file's size. Parts grow where LIMIT_S3_PARTS of them would not do.
 *
 * CompleteMultipartUpload may answer 200 and put an <Error> into the body, minutes later; and when its answer is lost, the next attempt says
 * NoSuchUpload although the object is there: the object then decides, not the answer.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_s3_int.h"

#define UPLOAD_ARENA_BYTES (16 * MIB) /* 10,000 ETags and the document that names them */
#define UPLOAD_READ_BYTES (256 * KIB)
#define UPLOAD_ID_BYTES 2048

struct upload {
	struct s3 *s;
	const char *key, *path;
	int fd;
	uint64_t size_bytes, part_bytes;
	size_t n_parts;
	char id[UPLOAD_ID_BYTES];
	bool created;
	bool all_md5; /* every part's ETag was its MD5: then the whole's can be foretold */
	const char **etags;
	uint8_t *md5s; /* n_parts x MD5_BYTES */
	struct arena arena;
	struct bucket_hash whole;
	uint8_t *buf;
};

/* ---- create ---- */

static errc created_close(void *arg, int depth, const char *parent, const char *name, struct span text, struct err *err)
{
	struct upload *u = arg;
	if (depth != 2 || strcmp(parent, "InitiateMultipartUploadResult") != 0 || strcmp(name, "UploadId") != 0)
		return OK;
	if (text.n == 0 || text.n >= sizeof u->id)
		return err_set(err, ERR_CORRUPT, "an UploadId of %zu bytes", text.n);
	memcpy(u->id, text.p, text.n);
	u->id[text.n] = 0;
	return OK;
}

static errc created_accept(void *arg, struct s3_request *r, struct err *err)
{
	errc rc = OK;
	struct upload *u = arg;
	struct s3_xml handler = {.close = created_close, .arg = u};
	u->id[0] = 0;
	TRY(s3_xml_parse(
		"answer to CreateMultipartUpload", span_of(r->call.answer.p ? (char *)r->call.answer.p : "", r->call.answer.n), &handler, err));
	CHECK(u->id[0], ERR_CORRUPT, "CreateMultipartUpload answered without an UploadId");
fail:
	return rc;
}

static errc upload_create(struct upload *u, struct err *err)
{
	struct s3_request r;
	s3_request_init(&r, "POST", u->key);
	s3_request_query(&r, "uploads", "");
	s3_object_headers(u->s, &r);
	r.accept = created_accept;
	r.arg = u;
	errc rc = s3_send(u->s, &r, err);
	s3_request_free(&r);
	return rc;
}

/* ---- parts ---- */

struct part_check {
	const struct bucket_digest *digest;
	struct upload *u;
	size_t i;
};

static errc part_accept(void *arg, struct s3_request *r, struct err *err)
{
	errc rc = OK;
	struct part_check *c = arg;
	bool unknown;
	struct span etag = http_call_header(&r->call, "etag");
	CHECK(etag.p && etag.n && etag.n < 256 && !memchr(etag.p, '<', etag.n) && !memchr(etag.p, '&', etag.n), ERR_CORRUPT,
		"UploadPart answered without a usable ETag");
	TRY(s3_etag_check(r, c->digest, &unknown, err));
	c->u->all_md5 &= !unknown;
	c->u->etags[c->i] = arena_cstr(&c->u->arena, etag);
	CHECK(c->u->etags[c->i], ERR_NOMEM, "%s: out of memory", c->u->path);
	memcpy(c->u->md5s + c->i * MD5_BYTES, c->digest->md5, MD5_BYTES);
fail:
	return rc;
}

static errc part_hash(struct upload *u, uint64_t off, uint64_t n, struct bucket_digest *out, struct err *err)
{
	errc rc = OK;
	struct bucket_hash h = {0};
	TRY(bucket_hash_begin(&h, true, err));
	while (n) {
		size_t want = n < UPLOAD_READ_BYTES ? (size_t)n : UPLOAD_READ_BYTES;
		TRY(bucket_alive(&u->s->base, err));
		TRY(io_pread_full(u->fd, u->buf, want, off, err));
		TRY(bucket_hash_add(&h, u->buf, want, err));
		TRY(bucket_hash_add(&u->whole, u->buf, want, err));
		off += want;
		n -= want;
	}
	TRY(bucket_hash_end(&h, out, err));
fail:
	bucket_hash_drop(&h);
	return rc;
}

static errc part_send(struct upload *u, size_t i, struct err *err)
{
	errc rc = OK;
	struct s3_request r;
	struct bucket_digest d;
	char number[24], sha256[SHA256_HEX + 1], md5[32];
	uint64_t off = i * u->part_bytes, n = u->size_bytes - off < u->part_bytes ? u->size_bytes - off : u->part_bytes;
	struct part_check check = {&d, u, i};

	s3_request_init(&r, "PUT", u->key);
	TRY(part_hash(u, off, n, &d, err));
	snprintf(number, sizeof number, "%zu", i + 1);
	bucket_hex(d.sha256, SHA256_BYTES, sha256);
	bucket_base64(d.md5, MD5_BYTES, md5);
	s3_request_query(&r, "partNumber", number);
	s3_request_query(&r, "uploadId", u->id);
	if (u->s->cfg.send_content_md5 && d.has_md5)
		s3_request_header(&r, "content-md5", md5);
	r.payload_sha256 = sha256;
	r.fd = u->fd;
	r.file_off = off;
	r.file_bytes = n;
	r.accept = part_accept;
	r.arg = &check;
	TRY(s3_send(u->s, &r, err));
fail:
	s3_request_free(&r);
	return rc;
}

/* ---- complete ---- */

/* The ETag of an object made of parts: hex(MD5(all MD5s))-count. */
static errc whole_etag(const struct upload *u, char out[64], struct err *err)
{
	errc rc = OK;
	struct bucket_digest d;
	char hex[2 * MD5_BYTES + 1];
	TRY(bucket_hash_span(span_of(u->md5s, u->n_parts * MD5_BYTES), true, &d, err));
	bucket_hex(d.md5, MD5_BYTES, hex);
	snprintf(out, 64, "%s-%zu", hex, u->n_parts);
fail:
	return rc;
}

struct completed {
	const struct upload *u;
	char root[S3_XML_NAME_BYTES];
	char etag[256];
};

static errc completed_open(void *arg, int depth, const char *name, struct err *err)
{
	struct completed *c = arg;
	(void)err;
	if (depth == 1)
		snprintf(c->root, sizeof c->root, "%s", name);
	return OK;
}

static errc completed_close(void *arg, int depth, const char *parent, const char *name, struct span text, struct err *err)
{
	struct completed *c = arg;
	(void)parent, (void)err;
	if (depth == 2 && strcmp(name, "ETag") == 0 && text.n < sizeof c->etag) {
		memcpy(c->etag, text.p, text.n);
		c->etag[text.n] = 0;
	}
	return OK;
}

static bool etag_is(struct span got, const char *want)
{
	if (got.n >= 2 && got.p[0] == '"' && got.p[got.n - 1] == '"')
		got = span_of(got.p + 1, got.n - 2);
	return got.n == strlen(want) && strncasecmp(got.p, want, got.n) == 0;
}

/* Only an ETag of the usual form says something: keyed encryption and some stores have others. */
static errc etag_of_whole_check(const struct upload *u, struct span got, struct err *err)
{
	errc rc = OK;
	char want[64], tail[16];
	if (!u->all_md5)
		return OK;
	TRY(whole_etag(u, want, err));
	snprintf(tail, sizeof tail, "-%zu", u->n_parts);
	struct span bare = got.n >= 2 && got.p[0] == '"' ? span_of(got.p + 1, got.n - 2) : got;
	size_t t = strlen(tail);
	if (bare.n != 2 * MD5_BYTES + t || memcmp(bare.p + bare.n - t, tail, t) != 0)
		return OK;
	CHECK(etag_is(bare, want), ERR_CORRUPT, "the store put together other bytes: ETag %.*s, of the parts sent %s", SPAN_ARG(bare), want);
fail:
	return rc;
}

static errc completed_accept(void *arg, struct s3_request *r, struct err *err)
{
	errc rc = OK;
	struct completed *c = arg;
	struct span body = span_of(r->call.answer.p ? (char *)r->call.answer.p : "", r->call.answer.n);
	struct s3_xml handler = {completed_open, completed_close, c};
	/* White space comes first, to keep the connection alive while the server works: not allowed before an XML declaration. */
	while (body.n && (unsigned char)body.p[0] <= ' ')
		body = span_of(body.p + 1, body.n - 1);
	c->root[0] = c->etag[0] = 0;
	TRY(s3_xml_parse("answer to CompleteMultipartUpload", body, &handler, err));
	if (strcmp(c->root, "Error") == 0) {
		bool again;
		s3_error_parse(body, &r->error);
		rc = s3_error_class(500, r->error.code, false, &again);
		rc = err_set(err, again ? ERR_NET : rc, "200, but in the body %s: %s", r->error.code, r->error.message);
		r->maybe_done = true;
		goto fail;
	}
	CHECK(strcmp(c->root, "CompleteMultipartUploadResult") == 0, ERR_CORRUPT, "CompleteMultipartUpload answered <%s>", c->root);
	TRY(etag_of_whole_check(c->u, span_cstr(c->etag), err));
fail:
	return rc;
}

struct head_check {
	const struct upload *u;
	bool same;
};

static errc head_accept(void *arg, struct s3_request *r, struct err *err)
{
	errc rc = OK;
	struct head_check *h = arg;
	char want[64];
	int64_t n;
	struct span length = http_call_header(&r->call, "content-length"), etag = http_call_header(&r->call, "etag");
	TRY(whole_etag(h->u, want, err));
	h->same = h->u->all_md5 && length.p && span_to_i64(length, &n) && (uint64_t)n == h->u->size_bytes && etag.p && etag_is(etag, want);
fail:
	return rc;
}

/* Is the object that is there the one we tried to complete? */
static bool is_there(struct upload *u)
{
	struct s3_request r;
	struct head_check check = {u, false};
	s3_request_init(&r, "HEAD", u->key);
	r.accept = head_accept;
	r.arg = &check;
	errc rc = s3_send(u->s, &r, NULL);
	s3_request_free(&r);
	return rc == OK && check.same;
}

static errc upload_complete(struct upload *u, struct err *err)
{
	errc rc = OK;
	struct s3_request r;
	struct buf body = {0};
	struct completed check = {.u = u};

	s3_request_init(&r, "POST", u->key);
	buf_init(&body, UPLOAD_ARENA_BYTES);
	buf_printf(&body, "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
	for (size_t i = 0; i < u->n_parts; i++)
		buf_printf(&body, "<Part><PartNumber>%zu</PartNumber><ETag>%s</ETag></Part>", i + 1, u->etags[i]);
	buf_printf(&body, "</CompleteMultipartUpload>");
	CHECK(!body.failed, ERR_NOMEM, "%s: out of memory", u->path);
	s3_request_query(&r, "uploadId", u->id);
	s3_request_header(&r, "content-type", "application/xml");
	r.body = span_of(body.p, body.n);
	r.accept = completed_accept;
	r.arg = &check;
	rc = s3_send(u->s, &r, err);
	if (rc == ERR_NOTFOUND && r.maybe_done && is_there(u))
		rc = OK;
	else if (rc == ERR_NOTFOUND)
		rc = err_set(err, ERR_NET, "%s: the store lost the upload of %s", u->key, u->path);
fail:
	buf_free(&body);
	s3_request_free(&r);
	return rc;
}

/* ---- the whole ---- */

static void upload_enter(struct s3 *s, struct s3_upload *entry)
{
	pthread_mutex_lock(&s->mu);
	entry->next = s->uploads;
	s->uploads = entry;
	pthread_mutex_unlock(&s->mu);
}

static void upload_leave(struct s3 *s, const struct s3_upload *entry)
{
	pthread_mutex_lock(&s->mu);
	for (struct s3_upload **p = &s->uploads; *p; p = &(*p)->next) {
		if (*p == entry) {
			*p = entry->next;
			break;
		}
	}
	pthread_mutex_unlock(&s->mu);
}

static void upload_drop(struct upload *u)
{
	struct s3_request r;
	struct err err = {0};
	s3_request_init(&r, "DELETE", u->key);
	s3_request_query(&r, "uploadId", u->id);
	r.max_attempts = 3;
	errc rc = s3_send(u->s, &r, &err);
	s3_request_free(&r);
	if (rc && rc != ERR_NOTFOUND)
		log_warn("a failed upload could not be aborted; it goes when the object is put again", LSTR("key", u->key), LERR(&err));
}

/* What an earlier process left of this key. Not to be allowed to list uploads is no reason not to make one. */
static errc leftovers_drop(struct s3 *s, const char *key, struct err *err)
{
	errc rc = s3_abort_uploads(s, key, true, err);
	if (rc != OK && rc != ERR_NET && rc != ERR_CANCELED && rc != ERR_NOMEM) {
		log_debug("unfinished uploads can't be listed", LSTR("key", key), LERR(err));
		rc = OK;
	}
	return rc;
}

errc s3_put_multipart(struct s3 *s, const char *key, const char *path, int fd, uint64_t size, struct bucket_put *put, struct err *err)
{
	errc rc = OK;
	struct upload *u = calloc(1, sizeof *u);
	struct s3_upload entry = {0};
	struct bucket_digest whole;

	CHECK(u, ERR_NOMEM, "%s: out of memory", path);
	*u = (struct upload){.s = s, .key = key, .path = path, .fd = fd, .size_bytes = size, .part_bytes = s->cfg.part_size_bytes, .all_md5 = true};
	arena_init(&u->arena, UPLOAD_ARENA_BYTES);
	if (size / u->part_bytes >= LIMIT_S3_PARTS)
		u->part_bytes = (size / LIMIT_S3_PARTS + MIB) / MIB * MIB;
	CHECK(u->part_bytes <= LIMIT_S3_PART_MAX, ERR_LIMIT, "%s: %" PRIu64 " bytes are beyond what S3 stores", path, size);
	u->n_parts = (size_t)((size + u->part_bytes - 1) / u->part_bytes);
	u->etags = arena_calloc(&u->arena, u->n_parts, sizeof *u->etags);
	u->md5s = arena_calloc(&u->arena, u->n_parts, MD5_BYTES);
	u->buf = malloc(UPLOAD_READ_BYTES);
	CHECK(u->etags && u->md5s && u->buf, ERR_NOMEM, "%s: out of memory", path);
	TRY(bucket_hash_begin(&u->whole, false, err));

	/* A key has one writer. MinIO lists uploads by whole key only, so they are looked for here, not only by prefix after a crash. */
	TRY(leftovers_drop(s, key, err));
	entry.key = key;
	upload_enter(s, &entry);
	TRY(upload_create(u, err));
	u->created = true;
	for (size_t i = 0; i < u->n_parts; i++)
		TRY(part_send(u, i, err));
	TRY(bucket_hash_end(&u->whole, &whole, err));
	TRY(upload_complete(u, err));
	TRY(s3_size_check(s, key, size, err));
	*put = (struct bucket_put){.size_bytes = size, .crc32c = whole.crc32c};
	memcpy(put->sha256, whole.sha256, SHA256_BYTES);
fail:
	if (u) {
		if (u->created && rc)
			upload_drop(u);
		if (entry.key)
			upload_leave(s, &entry);
		bucket_hash_drop(&u->whole);
		arena_free(&u->arena);
		free(u->buf);
		free(u);
	}
	return rc;
}
