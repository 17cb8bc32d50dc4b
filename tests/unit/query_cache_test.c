/* The page cache of bucket indexes: what it gives is what the object holds, whatever is torn, full, evicted, restarted or read at once. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_int.h"
#include "tests/support/block_model.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"
#include "tests/support/tmp.h"

enum { PAGE_BYTES = 16384 };

/* An object: its bytes are a function of the block and the place. */
struct object {
	struct ulid ulid;
	uint64_t size;
	atomic_int fetches;
	atomic_uint_fast64_t fetched;
	errc fail;
};

static uint8_t byte_at(const struct object *o, uint64_t off)
{
	uint64_t x = (off / 8 + 1) * UINT64_C(0x9e3779b97f4a7c15) + o->ulid.b[15] * 977u;
	return (uint8_t)(x >> (off % 8 * 8));
}

static errc fetch(void *arg, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct object *o = arg;
	atomic_fetch_add(&o->fetches, 1);
	atomic_fetch_add(&o->fetched, n);
	if (o->fail)
		return err_set(err, o->fail, "no bucket today");
	assert_true(off + n <= o->size);
	for (size_t i = 0; i < n; i++)
		((uint8_t *)buf)[i] = byte_at(o, off + i);
	return OK;
}

static errc read_some(struct query_cache *c, struct object *o, uint64_t off, size_t n, struct err *err)
{
	uint8_t *buf = malloc(n + 1);
	buf[n] = 0xa5;
	errc rc = query_cache_read(c, o->ulid, o->size, off, n, buf, fetch, o, err);
	for (size_t i = 0; rc == OK && i < n; i++)
		if (buf[i] != byte_at(o, off + i))
			fail_msg("byte %zu at %llu differs", i, (unsigned long long)off);
	assert_int_equal(buf[n], 0xa5);
	free(buf);
	return rc;
}

static void read_ok(struct query_cache *c, struct object *o, uint64_t off, size_t n)
{
	struct err err = {0};
	if (read_some(c, o, off, n, &err) != OK)
		fail_msg("%s", err.msg);
}

static struct object object_n(uint8_t n, uint64_t size)
{
	return (struct object){.ulid = {{1, [15] = n}}, .size = size};
}

/* Of the test that runs. */
static const char *cache_dir(void)
{
	static char path[512];
	snprintf(path, sizeof path, "%s/cache", tmp_dir());
	return path;
}

static struct query_cache *open_cache(const char *dir, uint64_t max)
{
	struct query_cache *c;
	struct err err = {0};
	if (query_cache_open(dir, max, &c, &err) != OK)
		fail_msg("%s", err.msg);
	return c;
}

/* Bytes of pages on disk: by the maps. */
static uint64_t held(const char *dir)
{
	struct arena a;
	char **names;
	size_t n;
	uint64_t pages = 0;
	struct err err = {0};
	arena_init(&a, 64 * MIB);
	assert_int_equal(io_listdir(dir, &a, &names, &n, &err), OK);
	for (size_t i = 0; i < n; i++) {
		struct span map;
		if (!strstr(names[i], ".map"))
			continue;
		assert_int_equal(io_read_file(tmp_path("%s/%s", dir, names[i]), MIB, &a, &map, &err), OK);
		for (size_t k = 0; k + 8 <= map.n; k += 8)
			pages += get_le32(map.p + k + 4) == 0x76617276;
	}
	arena_free(&a);
	return pages * PAGE_BYTES;
}

static void any_ranges(void **state)
{
	(void)state;
	const char *dir = cache_dir();
	uint64_t r = io_random_u64() | 1;
	print_message("seed %llu\n", (unsigned long long)r);
	static const uint64_t sizes[] = {1, 56, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, 5 * PAGE_BYTES, 300 * PAGE_BYTES + 77};
	struct query_cache *c = open_cache(dir, GIB);
	for (uint8_t k = 0; k < 7; k++) {
		struct object o = object_n(k, sizes[k]);
		struct err err = {0};
		for (int i = 0; i < 100; i++) {
			uint64_t off = model_random(&r) % o.size;
			size_t most = (size_t)(o.size - off), n = 1 + model_random(&r) % (i % 10 ? (most < 40000 ? most : 40000) : most);
			read_ok(c, &o, off, n);
		}
		read_ok(c, &o, 0, (size_t)o.size);
		read_ok(c, &o, o.size, 0);
		int before = o.fetches;
		read_ok(c, &o, 0, (size_t)o.size);
		assert_int_equal(o.fetches, before);
		/* no page was fetched twice */
		assert_true(o.fetched <= o.size);
		assert_int_equal(read_some(c, &o, o.size, 1, &err), ERR_CORRUPT);
		assert_int_equal(read_some(c, &o, 1, (size_t)o.size, &err), ERR_CORRUPT);
	}
	query_cache_close(c);
	/* the next process finds it */
	c = open_cache(dir, GIB);
	for (uint8_t k = 0; k < 7; k++) {
		struct object o = object_n(k, sizes[k]);
		read_ok(c, &o, 0, (size_t)o.size);
		assert_int_equal(o.fetches, 0);
	}
	query_cache_close(c);
}

/* A run of missing pages is one request. */
static void few_requests(void **state)
{
	(void)state;
	struct query_cache *c = open_cache(cache_dir(), GIB);
	struct object o = object_n(1, 100 * PAGE_BYTES);
	read_ok(c, &o, 50 * PAGE_BYTES + 5, 10);
	read_ok(c, &o, 0, 100 * PAGE_BYTES);
	assert_int_equal(o.fetches, 3);
	query_cache_close(c);
}

/* A torn or rotten page is fetched again; a torn map entry too. */
static void damaged_pages(void **state)
{
	(void)state;
	const char *dir = cache_dir();
	struct err err = {0};
	struct object o = object_n(1, 10 * PAGE_BYTES);
	struct query_cache *c = open_cache(dir, GIB);
	read_ok(c, &o, 0, (size_t)o.size);
	query_cache_close(c);
	for (int k = 0; k < 5; k++) {
		int fd;
		const char *index = tmp_path("%s/%s.index", dir, ulid_text(o.ulid).s), *map = tmp_path("%s/%s.map", dir, ulid_text(o.ulid).s);
		assert_int_equal(io_open(k < 3 ? index : map, IO_READ | IO_WRITE, &fd, &err), OK);
		uint8_t x = (uint8_t)~byte_at(&o, 3 * PAGE_BYTES + 100);
		if (k == 0)
			assert_int_equal(io_pwrite(fd, &x, 1, 3 * PAGE_BYTES + 100, &err), OK);
		else if (k == 1)
			assert_int_equal(io_truncate(fd, 3 * PAGE_BYTES + 7, &err), OK);
		else if (k == 2)
			assert_int_equal(io_truncate(fd, 0, &err), OK);
		else if (k == 3)
			assert_int_equal(io_pwrite(fd, &x, 1, 3 * 8, &err), OK);
		else
			assert_int_equal(io_truncate(fd, 3 * 8 + 5, &err), OK);
		io_close(fd);
		o.fetches = 0;
		c = open_cache(dir, GIB);
		read_ok(c, &o, 0, (size_t)o.size);
		if (o.fetches == 0)
			fail_msg("damage %d was not met", k);
		o.fetches = 0;
		read_ok(c, &o, 0, (size_t)o.size);
		assert_int_equal(o.fetches, 0);
		query_cache_close(c);
	}
	/* pages without a map go */
	assert_int_equal(io_unlink(tmp_path("%s/%s.map", dir, ulid_text(o.ulid).s), &err), OK);
	c = open_cache(dir, GIB);
	struct io_stat st;
	assert_int_equal(io_stat(tmp_path("%s/%s.index", dir, ulid_text(o.ulid).s), &st, &err), OK);
	assert_false(st.exists);
	query_cache_close(c);
}

static void bounded(void **state)
{
	(void)state;
	const char *dir = cache_dir();
	enum { MAX = 40 * PAGE_BYTES };
	struct query_cache *c = open_cache(dir, MAX);
	struct object o[20];
	for (uint8_t k = 0; k < 20; k++) {
		o[k] = object_n(k, 10 * PAGE_BYTES);
		read_ok(c, &o[k], 0, (size_t)o[k].size);
		assert_true(held(dir) <= MAX);
		/* used all the time: it stays */
		int before = o[0].fetches;
		read_ok(c, &o[0], 0, 100);
		assert_int_equal(o[0].fetches, before);
	}
	/* one object larger than the cache */
	struct object big = object_n(99, 100 * PAGE_BYTES);
	read_ok(c, &big, 0, (size_t)big.size);
	read_ok(c, &big, 0, (size_t)big.size);
	assert_true(held(dir) <= MAX);
	query_cache_close(c);
	/* a smaller bound at the next start holds from the start */
	c = open_cache(dir, 5 * PAGE_BYTES);
	assert_true(held(dir) <= 5 * PAGE_BYTES);
	query_cache_close(c);
	/* none at all */
	c = open_cache(dir, 0);
	assert_int_equal(held(dir), 0);
	read_ok(c, &big, 1000, 100000);
	assert_int_equal(held(dir), 0);
	query_cache_close(c);
}

static void forgotten(void **state)
{
	(void)state;
	const char *dir = cache_dir();
	struct query_cache *c = open_cache(dir, GIB);
	struct object o = object_n(1, 3 * PAGE_BYTES);
	read_ok(c, &o, 0, 10);
	query_cache_forget(c, o.ulid);
	assert_int_equal(held(dir), 0);
	query_cache_forget(c, o.ulid);
	read_ok(c, &o, 0, 10);
	assert_int_equal(o.fetches, 2);
	query_cache_close(c);
}

static void bucket_fails(void **state)
{
	(void)state;
	struct err err = {0};
	struct query_cache *c = open_cache(cache_dir(), GIB);
	struct object o = object_n(1, 30 * PAGE_BYTES);
	read_ok(c, &o, 0, PAGE_BYTES);
	o.fail = ERR_NET;
	assert_int_equal(read_some(c, &o, 0, 10 * PAGE_BYTES, &err), ERR_NET);
	read_ok(c, &o, 0, PAGE_BYTES); /* what is here is served */
	o.fail = OK;
	read_ok(c, &o, 0, (size_t)o.size);
	query_cache_close(c);
}

/* A disk that is full, or fails at any call, costs requests and never an answer. */
static void disk_fails(void **state)
{
	(void)state;
	static const int codes[] = {ENOSPC, EIO};
	for (int k = 0; k < 2; k++)
		for (uint64_t n = 1;; n++) {
			struct sim *sim = sim_new(n);
			struct err err = {0};
			struct query_cache *c;
			assert_int_equal(query_cache_open("/cache", GIB, &c, &err), OK);
			sim_fault(sim, &(struct sim_fault){.calls = SIM_ANY, .nth = n, .error = codes[k], .sticky = true});
			struct object o = object_n(1, 10 * PAGE_BYTES), p = object_n(2, 3 * PAGE_BYTES + 5);
			for (int i = 0; i < 2; i++) {
				read_ok(c, &o, 100, 5 * PAGE_BYTES);
				read_ok(c, &o, 0, (size_t)o.size);
				read_ok(c, &p, 0, (size_t)p.size);
			}
			bool hit = sim_fault_hits(sim) > 0;
			sim_fault(sim, NULL);
			o.fetches = 0;
			read_ok(c, &o, 0, (size_t)o.size);
			query_cache_close(c);
			sim_free(sim);
			if (!hit)
				break;
		}
	/* a small disk */
	struct sim *sim = sim_new(1);
	struct err err = {0};
	struct query_cache *c;
	sim_capacity(sim, 20 * PAGE_BYTES);
	assert_int_equal(query_cache_open("/cache", GIB, &c, &err), OK);
	for (uint8_t k = 0; k < 10; k++) {
		struct object o = object_n(k, 10 * PAGE_BYTES);
		read_ok(c, &o, 0, (size_t)o.size);
		read_ok(c, &o, 0, (size_t)o.size);
	}
	query_cache_close(c);
	sim_free(sim);
}

/* Power cuts leave pages that are right or are fetched again. */
static void power_cuts(void **state)
{
	(void)state;
	for (int loss = 0; loss < SIM_LOSSES; loss++) {
		struct sim *sim = sim_new(7);
		struct err err = {0};
		struct query_cache *c;
		assert_int_equal(query_cache_open("/cache", GIB, &c, &err), OK);
		struct object o = object_n(1, 20 * PAGE_BYTES + 9);
		read_ok(c, &o, 0, (size_t)o.size);
		sim_power_on(sim, (enum sim_loss)loss, 99);
		query_cache_close(c);
		assert_int_equal(query_cache_open("/cache", GIB, &c, &err), OK);
		read_ok(c, &o, 0, (size_t)o.size);
		query_cache_close(c);
		sim_free(sim);
	}
}

struct crowd {
	struct query_cache *c;
	struct object *o;
	uint64_t seed;
};

static void *reader(void *arg)
{
	struct crowd *w = arg;
	for (int i = 0; i < 400; i++) {
		struct object *o = &w->o[model_random(&w->seed) % 6];
		uint64_t off = model_random(&w->seed) % o->size;
		size_t most = (size_t)(o->size - off);
		read_ok(w->c, o, off, 1 + model_random(&w->seed) % (most < 60000 ? most : 60000));
		if (i % 50 == 49)
			query_cache_forget(w->c, w->o[model_random(&w->seed) % 6].ulid);
	}
	return NULL;
}

static void many_readers(void **state)
{
	(void)state;
	const char *dir = cache_dir();
	struct query_cache *c = open_cache(dir, 25 * PAGE_BYTES);
	struct object o[6];
	pthread_t t[6];
	struct crowd w[6];
	for (uint8_t k = 0; k < 6; k++)
		o[k] = object_n(k, 10 * PAGE_BYTES + k);
	for (uint64_t i = 0; i < 6; i++) {
		w[i] = (struct crowd){c, o, i + 1};
		assert_int_equal(pthread_create(&t[i], NULL, reader, &w[i]), 0);
	}
	for (int i = 0; i < 6; i++)
		pthread_join(t[i], NULL);
	query_cache_close(c);
	assert_true(held(dir) <= 25 * PAGE_BYTES);
}

static void out_of_memory(void **state)
{
	(void)state;
	const char *dir = cache_dir();
	for (uint64_t n = 1;; n++) {
		struct err err = {0};
		struct query_cache *c = NULL;
		struct object o = object_n((uint8_t)n, 3 * PAGE_BYTES);
		uint8_t *buf = malloc(3 * PAGE_BYTES);
		fail_alloc_at(n, false);
		errc rc = query_cache_open(dir, GIB, &c, &err);
		if (rc == OK)
			rc = query_cache_read(c, o.ulid, o.size, 0, (size_t)o.size, buf, fetch, &o, &err);
		uint64_t hits = fail_alloc_off();
		assert_true(rc == OK || rc == ERR_NOMEM);
		for (size_t i = 0; rc == OK && i < o.size; i++)
			assert_int_equal(buf[i], byte_at(&o, i));
		free(buf);
		if (c)
			query_cache_close(c);
		if (hits == 0)
			break;
	}
}

int main(void)
{
	log_setup((enum log_level)(LOG_ERROR + 1), LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(any_ranges),
		cmocka_unit_test(few_requests),
		cmocka_unit_test(damaged_pages),
		cmocka_unit_test(bounded),
		cmocka_unit_test(forgotten),
		cmocka_unit_test(bucket_fails),
		cmocka_unit_test(disk_fails),
		cmocka_unit_test(power_cuts),
		cmocka_unit_test(many_readers),
		cmocka_unit_test(out_of_memory),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
