/* The signer against AWS' own vectors: canonical request, string to sign and signature, byte for byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>
#include <cmocka.h>
#include "base/io.h"
#include "bucket/bucket_int.h"

enum { MAX_PAIRS = 32 };

struct vector {
	struct span name, timestamp, region, service, access, secret, token, omit_token, normalize, sign_body, request, canonical, to_sign, signature;
};

static struct span section(struct span *file, const char *want)
{
	const char *nl = memchr(file->p, '\n', file->n);
	assert_non_null(nl);
	char head[64];
	size_t n = (size_t)(nl - file->p), bytes;
	assert_true(n < sizeof head);
	memcpy(head, file->p, n);
	head[n] = 0;
	assert_int_equal(strncmp(head, want, strlen(want)), 0);
	bytes = strtoul(head + strlen(want), NULL, 10);
	assert_true(n + 1 + bytes + 1 <= file->n);
	struct span s = span_of(nl + 1, bytes);
	*file = span_of(nl + 2 + bytes, file->n - n - bytes - 2);
	return s;
}

static int64_t time_of(struct span s)
{
	struct tm tm = {0};
	char text[32];
	snprintf(text, sizeof text, "%.*s", SPAN_ARG(s));
	assert_non_null(strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm));
	return (int64_t)timegm(&tm) * 1000;
}

static struct span unescape(struct arena *a, struct span s)
{
	char *p = arena_alloc(a, s.n + 1);
	size_t n = 0;
	for (size_t i = 0; i < s.n; i++) {
		if (s.p[i] == '%') {
			char hex[3] = {s.p[i + 1], s.p[i + 2], 0};
			p[n++] = (char)strtoul(hex, NULL, 16);
			i += 2;
		} else {
			p[n++] = s.p[i];
		}
	}
	return span_of(p, n);
}

static struct span lower(struct arena *a, struct span s)
{
	struct span d = arena_dup(a, s);
	for (size_t i = 0; i < d.n; i++) {
		if (d.p[i] >= 'A' && d.p[i] <= 'Z')
			((char *)d.p)[i] = (char)(d.p[i] + 32);
	}
	return d;
}

static bool next_line(struct span *rest, struct span *line)
{
	if (rest->n == 0)
		return false;
	const char *nl = memchr(rest->p, '\n', rest->n);
	size_t n = nl ? (size_t)(nl - rest->p) : rest->n, skip = nl ? n + 1 : n;
	*line = span_of(rest->p, n);
	*rest = span_of(rest->p + skip, rest->n - skip);
	return true;
}

/* Is the path what normalisation would leave? S3 never normalises, so only these cases apply to it when the suite asks for it. */
static bool path_is_normal(struct span path)
{
	char text[512];
	snprintf(text, sizeof text, "%.*s/", SPAN_ARG(path));
	return !strstr(text, "/./") && !strstr(text, "/../") && !memmem(path.p, path.n, "//", 2);
}

static void run(const struct vector *v, struct arena *a, bool *skipped)
{
	struct sigv4_pair query[MAX_PAIRS], headers[MAX_PAIRS];
	struct sigv4_request r = {.query = query,
		.headers = headers,
		.service = arena_cstr(a, v->service),
		.region = arena_cstr(a, v->region),
		.access_key = arena_cstr(a, v->access),
		.secret_key = arena_cstr(a, v->secret),
		.now_ms = time_of(v->timestamp)};
	struct span rest = v->request, line, target;
	assert_true(next_line(&rest, &line));
	const char *sp = memchr(line.p, ' ', line.n);
	r.method = arena_cstr(a, span_of(line.p, (size_t)(sp - line.p)));
	target = span_of(sp + 1, line.n - (size_t)(sp - line.p) - 1 - strlen(" HTTP/1.1"));
	const char *q = memchr(target.p, '?', target.n);
	r.path = q ? span_of(target.p, (size_t)(q - target.p)) : target;
	*skipped = span_is(v->normalize, "true") && !path_is_normal(r.path);
	if (*skipped)
		return;
	if (q) {
		struct span qs = span_of(q + 1, target.n - r.path.n - 1);
		while (qs.n) {
			const char *amp = memchr(qs.p, '&', qs.n);
			struct span one = amp ? span_of(qs.p, (size_t)(amp - qs.p)) : qs;
			qs = amp ? span_of(amp + 1, qs.n - one.n - 1) : span_of("", 0);
			const char *eq = memchr(one.p, '=', one.n);
			struct span name = eq ? span_of(one.p, (size_t)(eq - one.p)) : one;
			struct span value = eq ? span_of(eq + 1, one.n - name.n - 1) : span_of("", 0);
			query[r.n_query++] = (struct sigv4_pair){unescape(a, name), unescape(a, value)};
		}
	}
	while (next_line(&rest, &line) && line.n) {
		if (line.p[0] == ' ') { /* the value goes on */
			struct span *val = &headers[r.n_headers - 1].value;
			*val = span_cstr(arena_printf(a, "%.*s\n%.*s", SPAN_ARG(*val), SPAN_ARG(line)));
			continue;
		}
		const char *colon = memchr(line.p, ':', line.n);
		struct span name = span_of(line.p, (size_t)(colon - line.p));
		headers[r.n_headers++] = (struct sigv4_pair){lower(a, name), span_of(colon + 1, line.n - name.n - 1)};
	}
	struct bucket_digest digest;
	char hex[65], date[17];
	assert_int_equal(bucket_hash_span(rest, false, &digest, NULL), OK);
	bucket_hex(digest.sha256, sizeof digest.sha256, hex);
	r.payload_sha256 = hex;
	sigv4_date(r.now_ms, date);
	headers[r.n_headers++] = (struct sigv4_pair){SPAN("x-amz-date"), span_cstr(date)};
	if (v->token.n && !span_is(v->omit_token, "true"))
		headers[r.n_headers++] = (struct sigv4_pair){SPAN("x-amz-security-token"), v->token};
	if (span_is(v->sign_body, "true"))
		headers[r.n_headers++] = (struct sigv4_pair){SPAN("x-amz-content-sha256"), span_cstr(hex)};

	struct sigv4_signed s;
	struct err err = {0};
	assert_int_equal(sigv4_sign(&r, a, &s, &err), OK);
	if (strcmp(s.signature, arena_cstr(a, v->signature)) != 0)
		print_message("%.*s\n", SPAN_ARG(v->name));
	assert_string_equal(s.canonical_request, arena_cstr(a, v->canonical));
	assert_string_equal(s.string_to_sign, arena_cstr(a, v->to_sign));
	assert_string_equal(s.signature, arena_cstr(a, v->signature));
	assert_non_null(strstr(s.authorization, s.signature));
}

static void aws_signing_suite(void **state)
{
	(void)state;
	struct arena a;
	struct span file;
	struct err err = {0};
	arena_init(&a, 16 * MIB);
	assert_int_equal(io_read_file("tests/golden/sigv4/aws_v4_suite.txt", MIB, &a, &file, &err), OK);
	size_t cases = 0, skips = 0;
	while (file.n && file.p[0] == '#') {
		struct span comment;
		next_line(&file, &comment);
	}
	while (file.n) {
		struct vector v;
		bool skipped;
		v.name = section(&file, "case");
		v.timestamp = section(&file, "timestamp");
		v.region = section(&file, "region");
		v.service = section(&file, "service");
		v.access = section(&file, "access_key_id");
		v.secret = section(&file, "secret_access_key");
		v.token = section(&file, "token");
		v.omit_token = section(&file, "omit_session_token");
		v.normalize = section(&file, "normalize");
		v.sign_body = section(&file, "sign_body");
		v.request = section(&file, "request");
		v.canonical = section(&file, "header-canonical-request");
		v.to_sign = section(&file, "header-string-to-sign");
		v.signature = section(&file, "header-signature");
		run(&v, &a, &skipped);
		cases++;
		skips += skipped;
	}
	assert_int_equal(cases, 38);
	assert_int_equal(skips, 6); /* paths that other services normalise and S3 does not */
	arena_free(&a);
}

/* The worked examples of the S3 documentation ("Examples: signature calculations"). */
static void s3_documentation_examples(void **state)
{
	(void)state;
	static const char empty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
	static const char welcome[] = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
	static const struct {
		const char *method, *path, *payload, *target, *signature;
		const char *query[5], *headers[5]; /* name, value, ... NULL */
	} table[] = {
		{"GET", "/test.txt", empty, "/test.txt", "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41", {NULL},
			{"range", "bytes=0-9", NULL}},
		{"PUT", "/test$file.text", welcome, "/test%24file.text", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd", {NULL},
			{"date", "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class", "REDUCED_REDUNDANCY", NULL}},
		{"GET", "/", empty, "/?lifecycle=", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", {"lifecycle", "", NULL},
			{NULL}},
		{"GET", "/", empty, "/?max-keys=2&prefix=J", "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
			{"prefix", "J", "max-keys", "2", NULL}, {NULL}},
	};
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		struct arena a;
		struct sigv4_pair headers[8], query[4];
		size_t n = 0, nq = 0;
		arena_init(&a, MIB);
		for (const char *const *q = table[i].query; *q; q += 2)
			query[nq++] = (struct sigv4_pair){span_cstr(q[0]), span_cstr(q[1])};
		for (const char *const *h = table[i].headers; *h; h += 2)
			headers[n++] = (struct sigv4_pair){span_cstr(h[0]), span_cstr(h[1])};
		headers[n++] = (struct sigv4_pair){SPAN("host"), SPAN("examplebucket.s3.amazonaws.com")};
		headers[n++] = (struct sigv4_pair){SPAN("x-amz-content-sha256"), span_cstr(table[i].payload)};
		headers[n++] = (struct sigv4_pair){SPAN("x-amz-date"), SPAN("20130524T000000Z")};
		struct sigv4_request r = {table[i].method, span_cstr(table[i].path), query, nq, headers, n, table[i].payload, 1369353600000,
			"us-east-1", "s3", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"};
		struct sigv4_signed s;
		struct err err = {0};
		assert_int_equal(sigv4_sign(&r, &a, &s, &err), OK);
		assert_string_equal(s.target, table[i].target);
		assert_string_equal(s.signature, table[i].signature);
		arena_free(&a);
	}
}

/* Every byte value in a key: encoded once, '/' kept, unreserved kept, two upper-case hex digits for the rest. */
static void every_byte_of_a_path(void **state)
{
	(void)state;
	for (int c = 1; c < 256; c++) {
		struct arena a;
		arena_init(&a, MIB);
		char path[] = {'/', (char)c, 0}, want[8];
		bool plain = strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/", c) != NULL;
		snprintf(want, sizeof want, plain ? "/%c" : "/%%%02X", c);
		struct sigv4_request r = {.method = "GET",
			.path = span_cstr(path),
			.payload_sha256 = "",
			.region = "r",
			.service = "s3",
			.access_key = "a",
			.secret_key = "b"};
		struct sigv4_signed s;
		assert_int_equal(sigv4_sign(&r, &a, &s, NULL), OK);
		assert_string_equal(s.target, want);
		arena_free(&a);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(aws_signing_suite),
		cmocka_unit_test(s3_documentation_examples),
		cmocka_unit_test(every_byte_of_a_path),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
