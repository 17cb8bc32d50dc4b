/* tests/e2e/bucket_tool.c - an object store by hand: one operation a line on stdin, one answer a line on stdout. For test_object_stores.py.
 *
 *     bucket_tool CONFIG.yml
 *     put KEY FILE | write KEY TEXT | absent KEY TEXT | get KEY FILE | range KEY OFFSET BYTES FILE | size KEY | delete KEY | list PREFIX
 *     check | abort PREFIX | describe
 *
 * Words are percent-encoded ("-" is the empty one). Answers: "ok ..." or "error CLASS message"; list prints "object KEY BYTES MTIME" lines first.
 * The process ends with stdin.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket.h"
#include "base/limits.h"

static char *decode(char *s)
{
	if (strcmp(s, "-") == 0)
		s[0] = 0;
	char *out = s;
	for (char *p = s; *p; p++) {
		if (*p == '%' && p[1] && p[2]) {
			char hex[3] = {p[1], p[2], 0};
			*out++ = (char)strtoul(hex, NULL, 16);
			p += 2;
		} else {
			*out++ = *p;
		}
	}
	*out = 0;
	return s;
}

static void print_encoded(struct span s)
{
	for (size_t i = 0; i < s.n; i++) {
		unsigned char c = (unsigned char)s.p[i];
		if (c > ' ' && c < 0x7f && c != '%')
			putchar(c);
		else
			printf("%%%02X", c);
	}
}

static errc print_object(void *arg, const struct bucket_object *o, struct err *err)
{
	(void)arg, (void)err;
	printf("object ");
	print_encoded(o->key);
	printf(" %" PRIu64 " %" PRId64 "\n", o->size_bytes, o->mtime_ms);
	return OK;
}

static errc run(struct bucket *b, char **w, size_t n, char *answer, size_t answer_n, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct span out;
	uint64_t x;
	void *buf = NULL;
	arena_init(&arena, GIB);
	answer[0] = 0;
	if (strcmp(w[0], "put") == 0 && n == 3) {
		struct bucket_put put;
		TRY(bucket_put_file(b, w[1], w[2], &put, err));
		size_t at = (size_t)snprintf(answer, answer_n, "%" PRIu64 " %08x ", put.size_bytes, put.crc32c);
		for (size_t i = 0; i < sizeof put.sha256; i++, at += 2)
			snprintf(answer + at, answer_n - at, "%02x", put.sha256[i]);
	} else if (strcmp(w[0], "write") == 0 && n == 3) {
		TRY(bucket_put_bytes(b, w[1], span_cstr(w[2]), err));
	} else if (strcmp(w[0], "absent") == 0 && n == 3) {
		TRY(bucket_put_if_absent(b, w[1], span_cstr(w[2]), err));
	} else if (strcmp(w[0], "get") == 0 && n == 3) {
		TRY(bucket_get(b, w[1], 256 * MIB, &arena, &out, err));
		TRY(io_write_file(w[2], out, err));
		snprintf(answer, answer_n, "%zu", out.n);
	} else if (strcmp(w[0], "range") == 0 && n == 5) {
		size_t bytes = strtoul(w[3], NULL, 10);
		buf = malloc(bytes + 1);
		CHECK(buf, ERR_NOMEM, "out of memory");
		TRY(bucket_get_range(b, w[1], strtoull(w[2], NULL, 10), bytes, buf, err));
		TRY(io_write_file(w[4], span_of(buf, bytes), err));
	} else if (strcmp(w[0], "size") == 0 && n == 2) {
		TRY(bucket_size(b, w[1], &x, err));
		snprintf(answer, answer_n, "%" PRIu64, x);
	} else if (strcmp(w[0], "delete") == 0 && n == 2) {
		TRY(bucket_delete(b, w[1], err));
	} else if (strcmp(w[0], "list") == 0 && n == 2) {
		TRY(bucket_list(b, w[1], print_object, NULL, &x, err));
		snprintf(answer, answer_n, "%" PRIu64, x);
	} else if (strcmp(w[0], "check") == 0) {
		TRY(bucket_check(b, err));
	} else if (strcmp(w[0], "abort") == 0 && n == 2) {
		TRY(bucket_abort_uploads(b, w[1], err));
	} else if (strcmp(w[0], "describe") == 0) {
		snprintf(answer, answer_n, "%s", bucket_describe(b));
	} else {
		CHECK(false, ERR_INVALID, "unknown operation %s with %zu words", w[0], n);
	}
fail:
	free(buf);
	arena_free(&arena);
	return rc;
}

int main(int argc, char **argv)
{
	struct arena arena;
	struct span yaml;
	struct bucket *b = NULL;
	struct err err = {0};
	char line[64 * 1024], answer[1024];

	if (argc != 2)
		return 1;
	log_setup(getenv("LOG_DEBUG") ? LOG_DEBUG : LOG_INFO, LOG_LOGFMT);
	arena_init(&arena, 4 * MIB);
	if (io_read_file(argv[1], LIMIT_CONFIG_BYTES, &arena, &yaml, &err) || bucket_open(argv[1], yaml, NULL, &b, &err)) {
		printf("error %s %s\n", errc_name(err.code), err.msg);
		return 1;
	}
	printf("ok open\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		char *words[6], *save = NULL;
		size_t n = 0;
		for (char *t = strtok_r(line, " \n", &save); t && n < 6; t = strtok_r(NULL, " \n", &save))
			words[n++] = decode(t);
		if (n == 0)
			continue;
		err = (struct err){0};
		errc rc = run(b, words, n, answer, sizeof answer, &err);
		if (rc)
			printf("error %s %s\n", errc_name(rc), err.msg);
		else
			printf("ok %s\n", answer);
		fflush(stdout);
	}
	bucket_close(b);
	arena_free(&arena);
	return 0;
}
