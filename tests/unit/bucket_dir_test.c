/* The directory store: an object is whole or not there, listings are in byte order, and nothing that was answered is lost by a power cut. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/log.h"
#include "bucket/bucket.h"
#include "bucket/bucket_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"
#include "tests/support/tmp.h"

static struct bucket *open_at(const char *dir)
{
	struct bucket *b = NULL;
	struct err err = {0};
	if (bucket_open("default", SPAN(""), dir, &b, &err))
		print_message("%s\n", err.msg);
	assert_non_null(b);
	return b;
}

static uint64_t seed_of_run(void)
{
	const char *s = getenv("SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : io_random_u64();
	print_message("SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

static uint64_t next_random(uint64_t *x)
{
	*x += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t z = *x;
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* ---- what is put is got ---- */

static void put_and_get(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct bucket *b = open_at(tmp_path("%s/b", dir));
	struct err err = {0};
	static const size_t sizes[] = {0, 1, 4095, 4096, 262143, 262144, 262145, 1048577};
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
		size_t n = sizes[i];
		char *data = malloc(n + 1), *back = malloc(n + 1), key[64];
		uint64_t x = n;
		for (size_t k = 0; k < n; k++)
			data[k] = (char)next_random(&x);
		assert_int_equal(io_write_file(tmp_path("%s/src", dir), span_of(data, n), &err), OK);
		snprintf(key, sizeof key, "01BLOCK/chunks/%06zu", n);
		struct bucket_put put;
		assert_int_equal(bucket_put_file(b, key, tmp_path("%s/src", dir), &put, &err), OK);
		assert_int_equal(put.size_bytes, n);
		assert_int_equal(put.crc32c, crc32c(0, data, n));
		struct bucket_digest d;
		assert_int_equal(bucket_hash_span(span_of(data, n), false, &d, &err), OK);
		assert_memory_equal(put.sha256, d.sha256, 32);

		uint64_t size;
		assert_int_equal(bucket_size(b, key, &size, &err), OK);
		assert_int_equal(size, n);
		struct arena a;
		struct span out;
		arena_init(&a, 4 * MIB);
		assert_int_equal(bucket_get(b, key, n, &a, &out, &err), OK);
		assert_true(span_eq(out, span_of(data, n)));
		if (n)
			assert_int_equal(bucket_get(b, key, n - 1, &a, &out, &err), ERR_LIMIT);
		arena_free(&a);
		for (size_t off = 0; off <= n; off += n / 7 + 1) {
			size_t len = (n - off) / 2;
			assert_int_equal(bucket_get_range(b, key, off, len, back, &err), OK);
			assert_memory_equal(back, data + off, len);
		}
		assert_int_equal(bucket_get_range(b, key, 0, n + 1, back, &err), ERR_CORRUPT);
		assert_int_equal(bucket_get_range(b, key, n + 1, 1, back, &err), ERR_CORRUPT);
		free(data);
		free(back);
	}
	struct span out;
	uint64_t size;
	struct arena a;
	arena_init(&a, MIB);
	assert_int_equal(bucket_get(b, "01BLOCK/none", 10, &a, &out, &err), ERR_NOTFOUND);
	assert_int_equal(bucket_get(b, "01BLOCK/chunks", 10, &a, &out, &err), ERR_NOTFOUND); /* a directory is no object */
	assert_int_equal(bucket_size(b, "01BLOCK", &size, &err), ERR_NOTFOUND);
	assert_int_equal(bucket_get_range(b, "01BLOCK/chunks", 0, 1, &size, &err), ERR_NOTFOUND);
	assert_int_equal(bucket_put_file(b, "k", tmp_path("%s/none", dir), NULL, &err), ERR_NOTFOUND);
	assert_int_equal(bucket_put_bytes(b, "01BLOCK/chunks/000000", SPAN("over"), &err), OK);
	assert_int_equal(bucket_get(b, "01BLOCK/chunks/000000", 10, &a, &out, &err), OK);
	assert_true(span_is(out, "over"));
	assert_int_equal(bucket_check(b, &err), OK);
	arena_free(&a);
	bucket_close(b);
}

static void keys_that_are_refused(void **state)
{
	(void)state;
	struct bucket *b = open_at(tmp_dir());
	char longest[LIMIT_BUCKET_KEY_BYTES + 2];
	memset(longest, 'a', sizeof longest);
	longest[sizeof longest - 1] = 0;
	const char *const bad[] = {"", "/a", "a/", "a//b", ".", "..", "../a", "a/..", "a/../b", "a/./b", "./a", "a\nb", "\x7f", "a\xff", "\xc0\xaf",
		longest, ".varve-tmp", ".varve-tmp/x", "a/.."};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct err err = {0};
		if (bucket_put_bytes(b, bad[i], SPAN("x"), &err) != ERR_INVALID)
			fail_msg("accepted: %s", bad[i]);
		assert_true(err.msg[0]);
	}
	const char *const good[] = {"a1", "...", "a/..b", "a/.b", "b..", "\xc3\xa9/\xe1\x88\xb4", "a b+c%2F&?#", ".varve-tmpx", "~"};
	for (size_t i = 0; i < sizeof good / sizeof *good; i++)
		assert_int_equal(bucket_put_bytes(b, good[i], SPAN("x"), NULL), OK);
	const char *const bad_prefix[] = {"/", "a//", "../", "..", "a/../", "./"};
	for (size_t i = 0; i < sizeof bad_prefix / sizeof *bad_prefix; i++)
		assert_int_equal(bucket_list(b, bad_prefix[i], NULL, NULL, NULL, NULL), ERR_INVALID);
	bucket_close(b);
}

/* ---- listing ---- */

enum { KEYS = 400 };
struct keys {
	char *v[KEYS];
	size_t n;
};

static int by_bytes(const void *a, const void *b)
{
	return span_cmp(span_cstr(*(char *const *)a), span_cstr(*(char *const *)b));
}

struct seen {
	const struct keys *want;
	const char *prefix;
	size_t at, n;
	struct err *err;
};

static errc see(void *arg, const struct bucket_object *o, struct err *err)
{
	struct seen *s = arg;
	(void)err;
	while (s->at < s->want->n && !span_has_prefix(span_cstr(s->want->v[s->at]), span_cstr(s->prefix)))
		s->at++;
	assert_true(s->at < s->want->n);
	assert_true(span_is(o->key, s->want->v[s->at]));
	assert_int_equal(o->size_bytes, o->key.n);
	assert_true(o->mtime_ms > 1500000000000);
	s->at++;
	s->n++;
	return OK;
}

/* Names around '/' (0x2f) in byte order, so that "a-", "a/", "a0" come in every neighbourhood; every prefix of every key is listed. */
static void listing_is_in_byte_order(void **state)
{
	(void)state;
	uint64_t x = seed_of_run();
	struct bucket *b = open_at(tmp_dir());
	struct keys all = {.n = 0};
	static const char letters[] = "a-.0/\x21z~";
	for (int i = 0; i < 2000 && all.n < KEYS; i++) {
		char key[16];
		size_t n = 1 + next_random(&x) % 9;
		for (size_t k = 0; k < n; k++)
			key[k] = letters[next_random(&x) % (sizeof letters - 1)];
		key[n] = 0;
		/* A file can't be a directory as well: S3 can, the disk can't. */
		errc rc = bucket_put_bytes(b, key, span_cstr(key), NULL);
		bool twice = false;
		for (size_t k = 0; k < all.n; k++)
			twice |= strcmp(all.v[k], key) == 0;
		if (rc == OK && !twice)
			all.v[all.n++] = strdup(key);
	}
	assert_true(all.n > 50);
	qsort(all.v, all.n, sizeof *all.v, by_bytes);
	for (size_t i = 0; i < all.n; i++) {
		for (size_t len = 0; len <= strlen(all.v[i]); len++) {
			char prefix[16];
			snprintf(prefix, sizeof prefix, "%.*s", (int)len, all.v[i]);
			struct seen seen = {.want = &all, .prefix = prefix};
			size_t want = 0;
			for (size_t k = 0; k < all.n; k++)
				want += span_has_prefix(span_cstr(all.v[k]), span_cstr(prefix));
			uint64_t pages = 0;
			struct err err = {0};
			errc rc = bucket_list(b, prefix, see, &seen, &pages, &err);
			if (rc == ERR_INVALID) /* "." and ".." as a whole part */
				continue;
			assert_int_equal(rc, OK);
			assert_int_equal(seen.n, want);
			assert_true(pages >= 1 || want == 0);
		}
	}
	for (size_t i = 0; i < all.n; i++)
		free(all.v[i]);
	bucket_close(b);
}

static errc stop_at_third(void *arg, const struct bucket_object *o, struct err *err)
{
	(void)o;
	return ++*(int *)arg == 3 ? err_set(err, ERR_AGAIN, "enough") : OK;
}

static void listing_ends_with_the_readers_error(void **state)
{
	(void)state;
	struct bucket *b = open_at(tmp_dir());
	for (int i = 0; i < 10; i++)
		assert_int_equal(bucket_put_bytes(b, tmp_path("d/%d", i), SPAN("x"), NULL), OK);
	int n = 0;
	assert_int_equal(bucket_list(b, "", stop_at_third, &n, NULL, NULL), ERR_AGAIN);
	assert_int_equal(n, 3);
	bucket_close(b);
}

/* What a file system keeps in its root, and links that lead nowhere, are no objects and no reason to list nothing. */
static void listing_passes_over_what_is_no_object(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct bucket *b = open_at(dir);
	int n = 0;
	assert_int_equal(bucket_put_bytes(b, "u/meta.json", SPAN("x"), NULL), OK);
	assert_int_equal(io_mkdirs(tmp_path("%s/lost+found/u2", dir), NULL), OK);
	assert_int_equal(symlink("round", tmp_path("%s/round", dir)), 0);
	assert_int_equal(symlink("/nowhere/at/all", tmp_path("%s/u/gone", dir)), 0);
	assert_int_equal(io_write_file(tmp_path("%s/lost+found/u2/meta.json", dir), SPAN("x"), NULL), OK);
	assert_int_equal(bucket_list(b, "", stop_at_third, &n, NULL, NULL), OK);
	assert_int_equal(n, 1);
	bucket_close(b);
}

/* ---- delete ---- */

static void deleting_removes_empty_parents(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct bucket *b = open_at(dir);
	struct io_stat st;
	assert_int_equal(bucket_put_bytes(b, "u/c/1", SPAN("x"), NULL), OK);
	assert_int_equal(bucket_put_bytes(b, "u/c/2", SPAN("x"), NULL), OK);
	assert_int_equal(bucket_put_bytes(b, "u/m", SPAN("x"), NULL), OK);
	assert_int_equal(bucket_delete(b, "u/c", NULL), OK); /* not an object */
	assert_int_equal(bucket_delete(b, "u/c/1", NULL), OK);
	assert_int_equal(bucket_delete(b, "u/c/1", NULL), OK); /* missing is fine */
	assert_int_equal(io_stat(tmp_path("%s/u/c", dir), &st, NULL), OK);
	assert_true(st.exists);
	assert_int_equal(bucket_delete(b, "u/c/2", NULL), OK);
	assert_int_equal(io_stat(tmp_path("%s/u/c", dir), &st, NULL), OK);
	assert_false(st.exists);
	assert_int_equal(bucket_delete(b, "u/m", NULL), OK);
	assert_int_equal(io_stat(tmp_path("%s/u", dir), &st, NULL), OK);
	assert_false(st.exists);
	assert_int_equal(io_stat(dir, &st, NULL), OK);
	assert_true(st.exists);
	bucket_close(b);
}

struct racer {
	struct bucket *b;
	int id;
	int wins;
};

static atomic_int racing;

static void *put_delete_race(void *arg)
{
	struct racer *r = arg;
	for (int i = 0; i < 200; i++) {
		char key[64];
		struct err err = {0};
		snprintf(key, sizeof key, "x/y/%d", r->id);
		assert_int_equal(bucket_put_bytes(r->b, key, SPAN("x"), &err), OK);
		assert_int_equal(bucket_delete(r->b, key, &err), OK);
	}
	racing--;
	return NULL;
}

/* One thread's delete takes away the directory that another's put is about to use. */
static void puts_and_deletes_race_for_their_parents(void **state)
{
	(void)state;
	struct bucket *b = open_at(tmp_dir());
	pthread_t t[4];
	struct racer r[4];
	racing = 4;
	for (int i = 0; i < 4; i++) {
		r[i] = (struct racer){b, i, 0};
		pthread_create(&t[i], NULL, put_delete_race, &r[i]);
	}
	/* ... while a third sweeps what killed processes left: never what is being written. */
	while (racing > 0)
		assert_int_equal(bucket_abort_uploads(b, "", NULL), OK);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	bucket_close(b);
}

/* ---- create-if-absent ---- */

static void *absent_race(void *arg)
{
	struct racer *r = arg;
	for (int i = 0; i < 100; i++) {
		char key[64], text[32];
		snprintf(key, sizeof key, "lease/%d", i);
		snprintf(text, sizeof text, "%d", r->id);
		errc rc = bucket_put_if_absent(r->b, key, span_cstr(text), NULL);
		assert_true(rc == OK || rc == ERR_EXISTS);
		r->wins += rc == OK;
	}
	return NULL;
}

static void one_of_many_creates(void **state)
{
	(void)state;
	struct bucket *b = open_at(tmp_dir());
	pthread_t t[8];
	struct racer r[8];
	int wins = 0;
	for (int i = 0; i < 8; i++) {
		r[i] = (struct racer){b, i, 0};
		pthread_create(&t[i], NULL, absent_race, &r[i]);
	}
	for (int i = 0; i < 8; i++) {
		pthread_join(t[i], NULL);
		wins += r[i].wins;
	}
	assert_int_equal(wins, 100);
	bucket_close(b);
}

/* ---- crashes and faults ---- */

static const char *const workload_keys[] = {"U/chunks/000001", "U/index", "U/meta.json", "lease/a", "V/chunks/000001"};
enum { WORKLOAD = 5, WORKLOAD_BYTES = 3000 };

static struct span workload_data(size_t i)
{
	static char data[WORKLOAD][WORKLOAD_BYTES];
	memset(data[i], 'A' + (int)i, WORKLOAD_BYTES);
	return span_of(data[i], WORKLOAD_BYTES);
}

/* Puts five objects; after each, the operations so far are noted. Ends at the first error. */
static size_t workload(struct sim *sim, uint64_t acked_ops[WORKLOAD], errc *rc_out)
{
	struct bucket *b = NULL;
	errc rc = bucket_open("default", SPAN(""), "data/bucket", &b, NULL);
	size_t i = 0;
	for (; rc == OK && i < WORKLOAD; i++) {
		rc = i == 3 ? bucket_put_if_absent(b, workload_keys[i], workload_data(i), NULL)
			    : bucket_put_bytes(b, workload_keys[i], workload_data(i), NULL);
		if (rc)
			break;
		acked_ops[i] = sim_ops(sim);
	}
	bucket_close(b);
	*rc_out = rc;
	return i;
}

struct whole {
	size_t n;
};

static errc is_whole(void *arg, const struct bucket_object *o, struct err *err)
{
	struct whole *w = arg;
	(void)err;
	assert_int_equal(o->size_bytes, WORKLOAD_BYTES);
	w->n++;
	return OK;
}

/* Every prefix of a recorded run, every kind of loss: what was answered is there, what is listed is whole. */
static void power_cuts(void **state)
{
	(void)state;
	uint64_t seed = seed_of_run(), acked_ops[WORKLOAD];
	struct sim *sim = sim_new(seed);
	errc rc;
	sim_record(sim);
	assert_int_equal(workload(sim, acked_ops, &rc), WORKLOAD);
	struct sim_tape *tape = sim_tape_take(sim);
	uint64_t states = 0;
	for (uint64_t k = 0; k <= sim_tape_len(tape); k++) {
		for (enum sim_loss loss = 0; loss < SIM_LOSSES; loss++) {
			struct sim *after = sim_tape_crash(tape, k, loss, seed + k);
			sim_use(after);
			struct bucket *b = open_at("data/bucket");
			struct whole w = {0};
			struct arena a;
			arena_init(&a, MIB);
			assert_int_equal(bucket_list(b, "", is_whole, &w, NULL, NULL), OK);
			for (size_t i = 0; i < WORKLOAD; i++) {
				struct span out;
				errc got = bucket_get(b, workload_keys[i], WORKLOAD_BYTES, &a, &out, NULL);
				if (acked_ops[i] <= k && got != OK)
					fail_msg("%s lost after operation %llu, %s", workload_keys[i], (unsigned long long)k, sim_loss_name(loss));
				if (got == OK)
					assert_true(span_eq(out, workload_data(i)));
				else
					assert_int_equal(got, ERR_NOTFOUND);
			}
			assert_int_equal(bucket_abort_uploads(b, "", NULL), OK);
			arena_free(&a);
			bucket_close(b);
			sim_free(after);
			states++;
		}
	}
	print_message("%llu states\n", (unsigned long long)states);
	sim_tape_free(tape);
	sim_free(sim);
}

/* The n-th call fails, whatever it is: an error in words, nothing half done to be seen, and the same put works afterwards. */
static void every_nth_call_fails(void **state)
{
	(void)state;
	static const int errors[] = {ENOSPC, EIO};
	for (size_t e = 0; e < 2; e++) {
		for (int sticky = 0; sticky < 2; sticky++) {
			for (uint64_t n = 1;; n++) {
				struct sim *sim = sim_new(n);
				uint64_t acked[WORKLOAD];
				errc rc;
				sim_fault(sim, &(struct sim_fault){.calls = SIM_ANY, .nth = n, .error = errors[e], .sticky = sticky != 0});
				size_t done = workload(sim, acked, &rc);
				bool hit = sim_fault_hits(sim) > 0;
				sim_fault(sim, NULL);
				assert_true(rc == OK || rc == ERR_NOSPACE || rc == ERR_IO);
				assert_true(done == WORKLOAD || rc);
				struct bucket *b = open_at("data/bucket");
				struct whole w = {0};
				assert_int_equal(bucket_list(b, "", is_whole, &w, NULL, NULL), OK);
				assert_true(w.n >= done);
				assert_int_equal(bucket_abort_uploads(b, "", NULL), OK);
				for (size_t i = 0; i < WORKLOAD; i++) {
					rc = i == 3 ? bucket_put_if_absent(b, workload_keys[i], workload_data(i), NULL)
						    : bucket_put_bytes(b, workload_keys[i], workload_data(i), NULL);
					assert_true(rc == OK || (i == 3 && rc == ERR_EXISTS));
				}
				bucket_close(b);
				assert_int_equal(sim_open_fds(sim), 0);
				sim_free(sim);
				if (!hit)
					break;
			}
		}
	}
}

static void every_nth_allocation_fails(void **state)
{
	(void)state;
	for (uint64_t n = 1;; n++) {
		struct sim *sim = sim_new(n);
		uint64_t acked[WORKLOAD];
		errc rc;
		fail_alloc_at(n, false);
		workload(sim, acked, &rc);
		uint64_t hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		assert_int_equal(sim_open_fds(sim), 0);
		sim_free(sim);
		if (hits == 0)
			break;
	}
}

/* A killed put's temporary file goes with abort_uploads of its prefix, and no other does. */
static void unfinished_puts_are_swept(void **state)
{
	(void)state;
	const char *dir = tmp_dir();
	struct bucket *b = open_at(dir);
	char **names;
	size_t n;
	struct arena a;
	arena_init(&a, MIB);
	assert_int_equal(bucket_put_bytes(b, "k", SPAN("x"), NULL), OK);
	assert_int_equal(io_write_file(tmp_path("%s/.varve-tmp/U%%2Findex.0123456789abcdef", dir), SPAN("half"), NULL), OK);
	assert_int_equal(io_write_file(tmp_path("%s/.varve-tmp/V%%2Findex.0123456789abcdef", dir), SPAN("half"), NULL), OK);
	assert_int_equal(bucket_abort_uploads(b, "U/", NULL), OK);
	assert_int_equal(io_listdir(tmp_path("%s/.varve-tmp", dir), &a, &names, &n, NULL), OK);
	assert_int_equal(n, 1);
	assert_int_equal(names[0][0], 'V');
	arena_free(&a);
	bucket_close(b);
}

static void root_that_went_away_is_not_an_empty_bucket(void **state)
{
	(void)state;
	const char *dir = tmp_path("%s/b", tmp_dir());
	struct bucket *b = open_at(dir);
	struct arena a;
	struct span out;
	arena_init(&a, MIB);
	assert_int_equal(bucket_put_bytes(b, "k", SPAN("x"), NULL), OK);
	assert_int_equal(io_remove_tree(dir, NULL), OK);
	int n = 0;
	assert_int_equal(bucket_list(b, "", stop_at_third, &n, NULL, NULL), ERR_NET);
	assert_int_equal(bucket_get(b, "k", 10, &a, &out, NULL), ERR_NET);
	assert_int_equal(bucket_put_bytes(b, "k", SPAN("x"), NULL), ERR_NET);
	assert_int_equal(bucket_check(b, NULL) != OK, 1);
	arena_free(&a);
	bucket_close(b);
}

static void canceled_bucket_says_so(void **state)
{
	(void)state;
	struct bucket *b = open_at(tmp_dir());
	bucket_cancel(b);
	assert_int_equal(bucket_put_bytes(b, "k", SPAN("x"), NULL), ERR_CANCELED);
	assert_int_equal(bucket_delete(b, "k", NULL), ERR_CANCELED);
	bucket_close(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(put_and_get),
		cmocka_unit_test(keys_that_are_refused),
		cmocka_unit_test(listing_is_in_byte_order),
		cmocka_unit_test(listing_ends_with_the_readers_error),
		cmocka_unit_test(listing_passes_over_what_is_no_object),
		cmocka_unit_test(deleting_removes_empty_parents),
		cmocka_unit_test(puts_and_deletes_race_for_their_parents),
		cmocka_unit_test(one_of_many_creates),
		cmocka_unit_test(power_cuts),
		cmocka_unit_test(every_nth_call_fails),
		cmocka_unit_test(every_nth_allocation_fails),
		cmocka_unit_test(unfinished_puts_are_swept),
		cmocka_unit_test(root_that_went_away_is_not_an_empty_bucket),
		cmocka_unit_test(canceled_bucket_says_so),
	};
	log_setup(LOG_ERROR, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
