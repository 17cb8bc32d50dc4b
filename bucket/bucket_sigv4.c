/* bucket/bucket_sigv4.c - AWS signature version 4, in the form S3 wants it: in a header, over a path that is encoded once and not normalised.
 *
 *     canonical request = method \n path \n query, sorted \n headers, sorted, one a line \n \n their names \n hex(SHA-256(payload))
 *     string to sign    = AWS4-HMAC-SHA256 \n date-time \n day/region/service/aws4_request \n hex(SHA-256(canonical request))
 *     key               = HMAC(HMAC(HMAC(HMAC("AWS4" secret, day), region), service), "aws4_request")
 *     signature         = hex(HMAC(key, string to sign))
 *
 * Source: docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html; proven with AWS' published vectors (tests/golden/sigv4).
 * Whoever sends the request takes path and query from `target`: what is signed is then what is sent. libcurl's own AWS_SIGV4 lost: in 7.88
 * it signs several S3 requests wrongly (empty query values, order of parameters, payloads that it has not seen).
 */
#include <stdlib.h>
#include <time.h>
#include "bucket/bucket_int.h"

/* Text of a request before its signature: a target of a long key and token with encoded headers. */
#define SIGV4_TEXT_BYTES (256 * KIB)

static void put_encoded(struct buf *b, struct span s, bool keep_slash)
{
	static const char digits[] = "0123456789ABCDEF";
	for (size_t i = 0; i < s.n; i++) {
		uint8_t c = (uint8_t)s.p[i];
		if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~' ||
			(c == '/' && keep_slash)) {
			buf_u8(b, c);
		} else {
			buf_u8(b, '%');
			buf_u8(b, (uint8_t)digits[c >> 4]);
			buf_u8(b, (uint8_t)digits[c & 15]);
		}
	}
}

/* A header's value as signed: no white space at the ends, runs of it one space. */
static void put_trimmed(struct buf *b, struct span s)
{
	bool gap = false, any = false;
	for (size_t i = 0; i < s.n; i++) {
		char c = s.p[i];
		if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
			gap = any;
			continue;
		}
		if (gap)
			buf_u8(b, ' ');
		buf_u8(b, (uint8_t)c);
		gap = false;
		any = true;
	}
}

static int pair_cmp(const void *x, const void *y)
{
	const struct sigv4_pair *a = x, *b = y;
	int c = span_cmp(a->name, b->name);
	return c ? c : span_cmp(a->value, b->value);
}

/* Encoded copies, sorted by encoded name and value. */
static errc sorted_query(const struct sigv4_request *r, struct arena *arena, struct sigv4_pair **out, struct err *err)
{
	errc rc = OK;
	struct buf b = {0};
	struct sigv4_pair *q = arena_calloc(arena, r->n_query + 1, sizeof *q);
	CHECK(q, ERR_NOMEM, "signing a request: out of memory");
	for (size_t i = 0; i < r->n_query; i++) {
		buf_init(&b, SIGV4_TEXT_BYTES);
		put_encoded(&b, r->query[i].name, false);
		size_t split = b.n;
		put_encoded(&b, r->query[i].value, false);
		CHECK(!b.failed, ERR_NOMEM, "signing a request: out of memory");
		struct span all = arena_dup(arena, span_of(b.p ? (char *)b.p : "", b.n));
		CHECK(all.p, ERR_NOMEM, "signing a request: out of memory");
		q[i] = (struct sigv4_pair){{all.p, split}, {all.p + split, all.n - split}};
		buf_free(&b);
	}
	qsort(q, r->n_query, sizeof *q, pair_cmp);
	*out = q;
fail:
	buf_free(&b);
	return rc;
}

/* Sorted by name; headers of one name stay in their order and become one line later. */
static errc sorted_headers(const struct sigv4_request *r, struct arena *arena, const struct sigv4_pair ***out, struct err *err)
{
	const struct sigv4_pair **h = arena_calloc(arena, r->n_headers + 1, sizeof *h);
	if (!h)
		return err_set(err, ERR_NOMEM, "signing a request: out of memory");
	for (size_t i = 0; i < r->n_headers; i++) {
		size_t j = i;
		for (; j > 0 && span_cmp(h[j - 1]->name, r->headers[i].name) > 0; j--)
			h[j] = h[j - 1];
		h[j] = &r->headers[i];
	}
	*out = h;
	return OK;
}

static errc signature_of(const struct sigv4_request *r, const char *day, struct span text, char hex[SHA256_HEX + 1], struct err *err)
{
	errc rc = OK;
	struct buf secret = {0};
	uint8_t k[SHA256_BYTES];
	buf_init(&secret, SIGV4_TEXT_BYTES);
	buf_printf(&secret, "AWS4%s", r->secret_key);
	CHECK(!secret.failed, ERR_NOMEM, "signing a request: out of memory");
	TRY(bucket_hmac_sha256(secret.p, secret.n, day, strlen(day), k, err));
	TRY(bucket_hmac_sha256(k, sizeof k, r->region, strlen(r->region), k, err));
	TRY(bucket_hmac_sha256(k, sizeof k, r->service, strlen(r->service), k, err));
	TRY(bucket_hmac_sha256(k, sizeof k, "aws4_request", 12, k, err));
	TRY(bucket_hmac_sha256(k, sizeof k, text.p, text.n, k, err));
	bucket_hex(k, sizeof k, hex);
fail:
	buf_free(&secret);
	return rc;
}

void sigv4_date(int64_t now_ms, char out[17])
{
	time_t t = (time_t)(now_ms / 1000);
	struct tm tm;
	gmtime_r(&t, &tm);
	size_t n = strftime(out, 17, "%Y%m%dT%H%M%SZ", &tm);
	ASSERT(n == 16);
}

static errc buf_to_arena(const struct buf *b, struct arena *arena, const char **out, struct err *err)
{
	*out = b->failed ? NULL : arena_cstr(arena, span_of(b->p ? (char *)b->p : "", b->n));
	return *out ? OK : err_set(err, ERR_NOMEM, "signing a request: out of memory");
}

errc sigv4_sign(const struct sigv4_request *r, struct arena *arena, struct sigv4_signed *out, struct err *err)
{
	errc rc = OK;
	struct buf target = {0}, names = {0}, text = {0};
	struct sigv4_pair *query = NULL;
	const struct sigv4_pair **headers = NULL;
	struct bucket_digest digest;
	char date[17], day[9], hex[SHA256_HEX + 1];

	buf_init(&target, SIGV4_TEXT_BYTES);
	buf_init(&names, SIGV4_TEXT_BYTES);
	buf_init(&text, SIGV4_TEXT_BYTES);
	sigv4_date(r->now_ms, date);
	memcpy(day, date, 8);
	day[8] = 0;
	TRY(sorted_query(r, arena, &query, err));
	TRY(sorted_headers(r, arena, &headers, err));

	put_encoded(&target, r->path, true);
	size_t path_n = target.n;
	for (size_t i = 0; i < r->n_query; i++) {
		buf_u8(&target, i ? '&' : '?');
		buf_span(&target, query[i].name);
		buf_u8(&target, '=');
		buf_span(&target, query[i].value);
	}
	TRY(buf_to_arena(&target, arena, &out->target, err));

	buf_printf(&text, "%s\n", r->method);
	buf_put(&text, target.p, path_n);
	buf_u8(&text, '\n');
	if (r->n_query)
		buf_put(&text, target.p + path_n + 1, target.n - path_n - 1);
	buf_u8(&text, '\n');
	for (size_t i = 0; i < r->n_headers; i++) {
		bool again = i > 0 && span_eq(headers[i]->name, headers[i - 1]->name);
		if (again) {
			if (text.n)
				text.n--; /* the line goes on */
			buf_u8(&text, ',');
		} else {
			buf_span(&text, headers[i]->name);
			buf_u8(&text, ':');
			if (i)
				buf_u8(&names, ';');
			buf_span(&names, headers[i]->name);
		}
		put_trimmed(&text, headers[i]->value);
		buf_u8(&text, '\n');
	}
	CHECK(!names.failed, ERR_NOMEM, "signing a request: out of memory");
	buf_u8(&text, '\n');
	buf_put(&text, names.p, names.n);
	buf_printf(&text, "\n%s", r->payload_sha256);
	TRY(buf_to_arena(&text, arena, &out->canonical_request, err));

	TRY(bucket_hash_span(span_of(text.p, text.n), false, &digest, err));
	bucket_hex(digest.sha256, SHA256_BYTES, hex);
	buf_clear(&text);
	buf_printf(&text, "AWS4-HMAC-SHA256\n%s\n%s/%s/%s/aws4_request\n%s", date, day, r->region, r->service, hex);
	TRY(buf_to_arena(&text, arena, &out->string_to_sign, err));

	TRY(signature_of(r, day, span_of(text.p, text.n), hex, err));
	out->signature = arena_cstr(arena, span_cstr(hex));
	CHECK(out->signature, ERR_NOMEM, "signing a request: out of memory");
	buf_clear(&text);
	buf_printf(&text, "AWS4-HMAC-SHA256 Credential=%s/%s/%s/%s/aws4_request, SignedHeaders=", r->access_key, day, r->region, r->service);
	buf_put(&text, names.p, names.n);
	buf_printf(&text, ", Signature=%s", hex);
	TRY(buf_to_arena(&text, arena, &out->authorization, err));
fail:
	buf_free(&target);
	buf_free(&names);
	buf_free(&text);
	return rc;
}
