/* tests/unit/base_log_test.c - one event is one line that readers of logfmt and JSON understand, whatever is in it. */
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>
#include <jansson.h>
#include "base/log.h"
#include "tests/support/sim.h"

static FILE *catcher;
static int real_stderr;

/* stderr goes into a file until caught() */
static void catch_stderr(void)
{
	fflush(stderr);
	catcher = tmpfile();
	real_stderr = dup(2);
	dup2(fileno(catcher), 2);
}

static char *caught(size_t *n)
{
	dup2(real_stderr, 2);
	close(real_stderr);
	*n = (size_t)lseek(fileno(catcher), 0, SEEK_END);
	char *text = calloc(1, *n + 1);
	assert_int_equal(pread(fileno(catcher), text, *n, 0), *n);
	fclose(catcher);
	return text;
}

static void lines_look_as_promised(void **state)
{
	(void)state;
	struct sim *s = sim_new(1);
	sim_freeze(s);
	sim_set_now(s, 1795420800123);
	struct ulid u;
	assert_true(ulid_parse(SPAN("01ARZ3NDEKTSV4RRFFQ69G5FAV"), &u));
	struct err e = {.msg = "disk is full"};
	size_t n;
	int line = __LINE__;
	catch_stderr();
	log_setup(LOG_INFO, LOG_LOGFMT);
	log_debug("not shown");
	log_info("started");
	log_thread_request("r-1");
	log_warn("segment removed", LU64("segment", 12), LSTR("path", "data/wal/1.wal"), LI64("d", -5), LF64("f", 0.25), LULID("block", u), LERR(&e),
		LSPAN("empty", SPAN("")), LSTR("eq", "a=b"));
	log_setup(LOG_DEBUG, LOG_JSON);
	log_debug("shown", LU64("big", UINT64_MAX), LF64("nan", (double)NAN), LSTR("null", NULL));
	log_thread_request(NULL);
	log_error("last");
	char *text = caught(&n);
	char want[2000];
	snprintf(want, sizeof want,
		"ts=2026-11-23T08:00:00.123Z level=info caller=base_log_test.c:%d msg=started\n"
		"ts=2026-11-23T08:00:00.123Z level=warn caller=base_log_test.c:%d msg=\"segment removed\" req=r-1 segment=12 "
		"path=data/wal/1.wal d=-5 f=0.25 block=01ARZ3NDEKTSV4RRFFQ69G5FAV err=\"disk is full\" empty=\"\" eq=\"a=b\"\n"
		"{\"ts\":\"2026-11-23T08:00:00.123Z\",\"level\":\"debug\",\"caller\":\"base_log_test.c:%d\",\"msg\":\"shown\",\"req\":\"r-1\","
		"\"big\":18446744073709551615,\"nan\":\"nan\",\"null\":\"\"}\n"
		"{\"ts\":\"2026-11-23T08:00:00.123Z\",\"level\":\"error\",\"caller\":\"base_log_test.c:%d\",\"msg\":\"last\"}\n",
		line + 4, line + 6, line + 9, line + 11);
	assert_string_equal(text, want);
	free(text);
	sim_free(s);
}

/* Every byte, alone and between others, and every two-byte pair that starts a character: one line, UTF-8, no control bytes; JSON gives
 * the text back when it was UTF-8. */
static void values_cannot_break_out(void **state)
{
	(void)state;
	for (unsigned format = LOG_LOGFMT; format <= LOG_JSON; format++) {
		for (unsigned c = 0; c < 256; c++) {
			for (unsigned d = 0x7e; d < 0xc4; d += 9) {
				char value[] = {'a', (char)c, (char)d, 'b'};
				struct span v = span_of(value, sizeof value);
				size_t n;
				catch_stderr();
				log_setup(LOG_INFO, (enum log_format)format);
				log_info("x", LSPAN("v", v));
				char *text = caught(&n);
				assert_int_equal(strlen(text), n);
				assert_true(n > 10 && text[n - 1] == '\n');
				assert_true(span_is_utf8(span_of(text, n)));
				for (size_t i = 0; i + 1 < n; i++)
					assert_true((unsigned char)text[i] >= 0x20 && text[i] != 0x7f);
				if (format == LOG_JSON) {
					json_t *j = json_loads(text, JSON_ALLOW_NUL, NULL);
					assert_non_null(j);
					json_t *got = json_object_get(j, "v");
					if (span_is_utf8(v)) {
						assert_int_equal(json_string_length(got), sizeof value);
						assert_memory_equal(json_string_value(got), value, sizeof value);
					}
					json_decref(j);
				}
				free(text);
			}
		}
	}
}

/* Any number of long fields: a line of at most 8 KiB that is still whole JSON, and says that it was cut. */
static void long_lines_are_cut(void **state)
{
	(void)state;
	static char big[20000];
	for (size_t len = 0; len < sizeof big; len += 97) {
		memset(big, len % 2 ? '"' : 'x', len);
		for (size_t i = 0; len % 3 == 0 && i + 3 < len; i += 3)
			memcpy(big + i, "\xe2\x82\xac", 3);
		struct span v = span_of(big, len);
		size_t n;
		catch_stderr();
		log_setup(LOG_INFO, LOG_JSON);
		log_info("x", LSPAN("a", v), LSPAN("b", v), LSPAN("c", v), LSPAN("d", v), LSPAN("e", v));
		char *text = caught(&n);
		assert_true(n <= 8192 && text[n - 1] == '\n');
		json_t *j = json_loads(text, 0, NULL);
		assert_non_null(j);
		const char *a = json_string_value(json_object_get(j, "a"));
		assert_non_null(a);
		if (strlen(a) == len && json_object_get(j, "e"))
			assert_null(json_object_get(j, "truncated"));
		else if (!json_object_get(j, "e"))
			assert_true(json_is_true(json_object_get(j, "truncated")));
		else
			assert_string_equal(a + strlen(a) - 3, "...");
		json_decref(j);
		free(text);
	}
}

/* Every length around the line's end: whole JSON, with the last field or with the word that it is missing. */
static void the_cut_is_exact(void **state)
{
	(void)state;
	static char big[2100];
	memset(big, 'x', sizeof big);
	for (size_t len = 1800; len < sizeof big; len++) {
		size_t n;
		catch_stderr();
		log_setup(LOG_INFO, LOG_JSON);
		log_info("x", LSPAN("a", span_of(big, 2040)), LSPAN("b", span_of(big, 2040)), LSPAN("c", span_of(big, 2040)),
			LSPAN("d", span_of(big, len)), LU64("e", 1));
		char *text = caught(&n);
		json_t *j = json_loads(text, 0, NULL);
		assert_non_null(j);
		assert_int_equal(json_object_get(j, "e") == NULL, json_is_true(json_object_get(j, "truncated")));
		json_decref(j);
		free(text);
	}
}

static void *shout(void *arg)
{
	for (int i = 0; i < 500; i++)
		log_info("line", LSTR("who", arg), LI64("i", i),
			LSTR("pad", "0123456789012345678901234567890123456789012345678901234567890123456789"));
	return NULL;
}

static void threads_do_not_mix_lines(void **state)
{
	(void)state;
	size_t n;
	pthread_t t[4];
	static char names[4][2] = {"a", "b", "c", "d"};
	catch_stderr();
	log_setup(LOG_INFO, LOG_LOGFMT);
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, shout, names[i]);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	char *text = caught(&n);
	size_t lines = 0;
	for (char *save = NULL, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		assert_memory_equal(line, "ts=", 3);
		assert_string_equal(line + strlen(line) - 10, "0123456789");
		lines++;
	}
	assert_int_equal(lines, 2000);
	free(text);
}

static void levels_and_formats_are_words(void **state)
{
	(void)state;
	static const char *const levels[] = {"debug", "info", "warn", "error"};
	for (unsigned i = 0; i < 4; i++) {
		enum log_level l;
		assert_true(log_level_parse(levels[i], &l) && l == i);
		log_setup(l, LOG_LOGFMT);
		for (unsigned k = 0; k < 4; k++)
			assert_int_equal(log_enabled((enum log_level)k), k >= i);
	}
	enum log_level l = LOG_WARN;
	enum log_format f;
	assert_false(log_level_parse("INFO", &l) || log_level_parse("", &l) || log_format_parse("xml", &f));
	assert_int_equal(l, LOG_WARN);
	assert_true(log_format_parse("json", &f) && f == LOG_JSON && log_format_parse("logfmt", &f) && f == LOG_LOGFMT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines_look_as_promised),
		cmocka_unit_test(values_cannot_break_out),
		cmocka_unit_test(long_lines_are_cut),
		cmocka_unit_test(the_cut_is_exact),
		cmocka_unit_test(threads_do_not_mix_lines),
		cmocka_unit_test(levels_and_formats_are_words),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
