/* The S3 store from many threads, canceled, and without memory, against the scripted server; and the small parsers of its answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <unistd.h>
#include <sys/wait.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket_s3_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/tmp.h"

/* ---- the server: tests/e2e/lib/fake_s3.py as a child ---- */

struct fake {
	pid_t pid;
	FILE *to, *from;
	int port;
};
static struct fake fake;

static int fake_start(void **state)
{
	(void)state;
	int in[2], out[2];
	assert_int_equal(pipe(in) | pipe(out), 0);
	fake.pid = fork();
	if (fake.pid == 0) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		close(in[1]);
		close(out[0]);
		if (chdir("tests/e2e") == 0)
			execlp("python3", "python3", "-m", "lib.fake_s3", (char *)NULL);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	fake.to = fdopen(in[1], "w");
	fake.from = fdopen(out[0], "r");
	char line[32];
	fake.port = fgets(line, sizeof line, fake.from) ? atoi(line) : 0;
	return fake.port > 0 ? 0 : -1;
}

static int fake_stop(void **state)
{
	(void)state;
	fclose(fake.to);
	fclose(fake.from);
	return waitpid(fake.pid, NULL, 0) == fake.pid ? 0 : -1;
}

static void fake_tell(const char *line)
{
	char answer[16];
	fprintf(fake.to, "%s\n", line);
	fflush(fake.to);
	assert_non_null(fgets(answer, sizeof answer, fake.from));
}

static struct bucket *open_fake(const char *more)
{
	struct bucket *b = NULL;
	struct err err = {0};
	char yaml[1024];
	snprintf(yaml, sizeof yaml,
		"type: S3\nconfig:\n  bucket: metrics\n  endpoint: 127.0.0.1:%d\n  insecure: true\n  access_key: fake-access\n  secret_key: "
		"fake-secret\n%s",
		fake.port, more);
	if (bucket_open("bucket.yml", span_cstr(yaml), NULL, &b, &err))
		print_message("%s\n", err.msg);
	return b;
}

/* ---- threads ---- */

enum { THREADS = 8, ROUNDS = 20 };
struct worker {
	struct bucket *b;
	int id, wins;
	size_t seen;
};

static errc see(void *arg, const struct bucket_object *o, struct err *err)
{
	struct worker *w = arg;
	(void)err;
	w->seen += o->size_bytes > 0;
	return OK;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	for (int i = 0; i < ROUNDS; i++) {
		char key[64], data[64], back[64];
		struct err err = {0};
		snprintf(key, sizeof key, "threads/%d/%d", w->id, i);
		int n = snprintf(data, sizeof data, "writer %d round %d", w->id, i);
		if (bucket_put_bytes(w->b, key, span_of(data, (size_t)n), &err))
			fail_msg("%s", err.msg);
		assert_int_equal(bucket_get_range(w->b, key, 0, (size_t)n, back, &err), OK);
		assert_memory_equal(back, data, (size_t)n);
		snprintf(key, sizeof key, "lease/%d", i);
		errc rc = bucket_put_if_absent(w->b, key, span_of(data, (size_t)n), &err);
		assert_true(rc == OK || rc == ERR_EXISTS);
		w->wins += rc == OK;
		snprintf(key, sizeof key, "threads/%d/", w->id);
		w->seen = 0;
		assert_int_equal(bucket_list(w->b, key, see, w, NULL, &err), OK);
		assert_int_equal(w->seen, i + 1);
	}
	return NULL;
}

static void many_threads_one_bucket(void **state)
{
	(void)state;
	struct bucket *b = open_fake("");
	pthread_t t[THREADS];
	struct worker w[THREADS];
	int wins = 0;
	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){b, i, 0, 0};
		assert_int_equal(pthread_create(&t[i], NULL, work, &w[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(t[i], NULL);
		wins += w[i].wins;
	}
	assert_int_equal(wins, ROUNDS);
	bucket_close(b);
}

struct uploader {
	struct bucket *b;
	const char *path;
	atomic_bool done;
};

static void *upload(void *arg)
{
	struct uploader *u = arg;
	for (int i = 0; i < 4; i++) {
		char key[32];
		struct err err = {0};
		snprintf(key, sizeof key, "sweep/%d", i);
		if (bucket_put_file(u->b, key, u->path, NULL, &err))
			fail_msg("%s", err.msg);
	}
	u->done = true;
	return NULL;
}

/* Aborting what others left, all the time, never hits an upload that is under way. */
static void sweeps_leave_running_uploads_alone(void **state)
{
	(void)state;
	struct uploader u = {.b = open_fake("  part_size: 5MiB\n"), .path = tmp_path("%s/big", tmp_dir())};
	char *data = calloc(1, 5 * MIB + 1);
	pthread_t t;
	assert_int_equal(io_write_file(u.path, span_of(data, 5 * MIB + 1), NULL), OK);
	free(data);
	pthread_create(&t, NULL, upload, &u);
	while (!u.done)
		assert_int_equal(bucket_abort_uploads(u.b, "sweep/", NULL), OK);
	pthread_join(t, NULL);
	bucket_close(u.b);
}

/* ---- cancel ---- */

static void *get_hanging(void *arg)
{
	struct arena a;
	struct span out;
	struct err err = {0};
	arena_init(&a, MIB);
	errc rc = bucket_get(arg, "hanging", 100, &a, &out, &err);
	arena_free(&a);
	return (void *)(intptr_t)rc;
}

static void *get_waiting(void *arg)
{
	struct arena a;
	struct span out;
	struct err err = {0};
	arena_init(&a, MIB);
	errc rc = bucket_get(arg, "k", 100, &a, &out, &err);
	arena_free(&a);
	return (void *)(intptr_t)rc;
}

/* One call waits for an answer, one sleeps between attempts: both end at once. */
static void cancel_ends_calls_and_waits(void **state)
{
	(void)state;
	struct bucket *b = open_fake(""), *gone = NULL;
	struct err err = {0};
	fake_tell("hang GetObject hanging 20");
	assert_int_equal(
		bucket_open("x", SPAN("type: S3\nconfig: {bucket: m, endpoint: \"127.0.0.1:1\", insecure: true, access_key: a, secret_key: b}\n"),
			NULL, &gone, &err),
		OK);
	pthread_t t1, t2;
	void *rc1, *rc2;
	pthread_create(&t1, NULL, get_hanging, b);
	pthread_create(&t2, NULL, get_waiting, gone);
	io_sleep_ms(300);
	int64_t began = io_mono_ms();
	bucket_cancel(b);
	bucket_cancel(gone);
	pthread_join(t1, &rc1);
	pthread_join(t2, &rc2);
	assert_true(io_mono_ms() - began < 2000);
	assert_int_equal((intptr_t)rc1, ERR_CANCELED);
	assert_int_equal((intptr_t)rc2, ERR_CANCELED);
	assert_int_equal(bucket_check(b, &err), ERR_CANCELED);
	bucket_close(b);
	bucket_close(gone);
}

/* ---- without memory ---- */

static errc everything(struct bucket *b, const char *path, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct span out;
	char buf[4];
	struct worker w = {0};
	arena_init(&a, MIB);
	TRY(bucket_put_bytes(b, "m/a", SPAN("data"), err));
	TRY(bucket_put_file(b, "m/big", path, NULL, err));
	TRY(bucket_get(b, "m/a", 10, &a, &out, err));
	TRY(bucket_get_range(b, "m/big", 1, 4, buf, err));
	TRY(bucket_list(b, "m/", see, &w, NULL, err));
	TRY(bucket_abort_uploads(b, "m/", err));
	rc = bucket_put_if_absent(b, "m/lease", SPAN("me"), err);
	if (rc == ERR_EXISTS)
		rc = OK;
	TRY(rc);
	TRY(bucket_delete(b, "m/a", err));
fail:
	arena_free(&a);
	return rc;
}

/* The n-th allocation fails once: an error or success, never a crash, and the next time it works. VARVE_FULL=1: every n, else each 7th. */
static void every_nth_allocation_fails(void **state)
{
	(void)state;
	const char *path = tmp_path("%s/big", tmp_dir());
	char *data = calloc(1, 5 * MIB + 1);
	assert_int_equal(io_write_file(path, span_of(data, 5 * MIB + 1), NULL), OK);
	free(data);
	uint64_t step = getenv("VARVE_FULL") ? 1 : 7, n = 1, refused = 0;
	for (;; n += step) {
		struct bucket *b = open_fake("  part_size: 5MiB\n  max_retries: 2\n");
		fail_alloc_at(n, false);
		struct err err = {0};
		errc rc = everything(b, path, &err);
		uint64_t hits = fail_alloc_off();
		if (rc) {
			if (rc != ERR_NOMEM && rc != ERR_LIMIT && rc != ERR_NET)
				fail_msg("allocation %d: %s: %s", (int)n, errc_name(rc), err.msg);
			refused++;
			assert_int_equal(everything(b, path, NULL), OK);
		}
		bucket_close(b);
		if (!hits)
			break;
	}
	print_message("%d allocations, %d of them refused the call\n", (int)n, (int)refused);
	assert_true(refused > 3);
}

/* ---- small parsers ---- */

static void times(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		int64_t ms;
	} iso[] = {{"2009-10-12T17:50:30.000Z", 1255369830000}, {"2009-10-12T17:50:30Z", 1255369830000}, {"2009-10-12T17:50:30.1239Z", 1255369830123},
		{"1970-01-01T00:00:00Z", 0}, {"2009-10-12T17:50:30", -1}, {"2009-10-12 17:50:30Z", -1}, {"2009-13-12T17:50:30Z", -1},
		{"2009-10-12T25:50:30Z", -1}, {"", -1}, {"2009-10-12T17:50:30Zx", -1}, {"1969-10-12T17:50:30Z", -1}};
	for (size_t i = 0; i < sizeof iso / sizeof *iso; i++) {
		int64_t ms = -1;
		bool ok = s3_time_parse(span_cstr(iso[i].text), &ms);
		assert_int_equal(ok, iso[i].ms >= 0);
		if (ok)
			assert_int_equal(ms, iso[i].ms);
	}
	int64_t ms;
	assert_true(s3_http_date_parse(SPAN("Wed, 21 Oct 2015 07:28:00 GMT"), &ms));
	assert_int_equal(ms, 1445412480000);
	static const char date[] = "Wed, 21 Oct 2015 07:28:00 GMT";
	for (size_t n = 0; n < sizeof date - 1; n++)
		assert_false(s3_http_date_parse(span_of(date, n), &ms));
}

/* Every byte, escaped in both cases of hex; every cut escape is refused. */
static void url_decoding(void **state)
{
	(void)state;
	struct arena a;
	arena_init(&a, MIB);
	for (int c = 0; c < 256; c++) {
		char text[16];
		for (int upper = 0; upper < 2; upper++) {
			snprintf(text, sizeof text, upper ? "x%%%02Xy" : "x%%%02xy", c);
			struct span d = s3_url_decode(span_cstr(text), &a);
			assert_int_equal(d.n, 3);
			assert_int_equal((unsigned char)d.p[1], c);
		}
	}
	assert_true(span_is(s3_url_decode(SPAN("a+b"), &a), "a b"));
	assert_null(s3_url_decode(SPAN("a%"), &a).p);
	assert_null(s3_url_decode(SPAN("a%4"), &a).p);
	assert_null(s3_url_decode(SPAN("a%4g"), &a).p);
	assert_non_null(s3_url_decode(SPAN(""), &a).p);
	arena_free(&a);
}

/* A missing object is told only by a code or by HEAD; a bucket or a proxy that is missing is trouble, not absence. */
static void classes(void **state)
{
	(void)state;
	static const struct {
		int status;
		const char *code;
		bool head;
		errc rc;
		bool again;
	} table[] = {{404, "NoSuchKey", false, ERR_NOTFOUND, false}, {404, "NoSuchBucket", false, ERR_NET, false}, {404, "", false, ERR_NET, true},
		{404, "", true, ERR_NOTFOUND, false}, {403, "", false, ERR_DENIED, false}, {400, "ExpiredToken", false, ERR_DENIED, false},
		{400, "", true, ERR_NET, true}, {400, "SomethingNew", false, ERR_INVALID, false}, {412, "", false, ERR_EXISTS, false},
		{409, "", false, ERR_NET, true}, {416, "InvalidRange", false, ERR_CORRUPT, false}, {429, "", false, ERR_NET, true},
		{500, "", false, ERR_NET, true}, {501, "NotImplemented", false, ERR_UNSUPPORTED, false}, {503, "SlowDown", false, ERR_NET, true},
		{507, "XMinioStorageFull", false, ERR_NET, false}, {301, "", false, ERR_INVALID, false}};
	for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
		bool again;
		assert_int_equal(s3_error_class(table[i].status, table[i].code, table[i].head, &again), table[i].rc);
		assert_int_equal(again, table[i].again);
	}
	for (int status = 300; status < 600; status++) {
		bool again;
		assert_int_not_equal(s3_error_class(status, "", false, &again), OK);
		assert_int_not_equal(s3_error_class(status, "", false, &again), ERR_NOTFOUND);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(times),
		cmocka_unit_test(url_decoding),
		cmocka_unit_test(classes),
		cmocka_unit_test(many_threads_one_bucket),
		cmocka_unit_test(sweeps_leave_running_uploads_alone),
		cmocka_unit_test(cancel_ends_calls_and_waits),
		cmocka_unit_test(every_nth_allocation_fails),
	};
	log_setup(LOG_ERROR, LOG_LOGFMT);
	alarm(300); /* a hang is a failure */
	return cmocka_run_group_tests(tests, fake_start, fake_stop);
}
