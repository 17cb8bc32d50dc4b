/* The shipper: at no moment is half a block visible, nothing local goes before the bucket's copy is live, and every failure is got over. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "bucket/catalog.h"
#include "shipper/shipper.h"
#include "shipper/shipper_int.h"
#include "tests/support/block_model.h"
#include "tests/support/shaky_bucket.h"
#include "tests/support/tmp.h"

#define HOUR INT64_C(3600000)

struct fixture {
	const char *dir;
	char block_dir[512], bucket_dir[512];
	struct bucket *bucket;
	struct shaky *sh;
	struct catalog *c;
	struct shipper *s;
	struct shipper_config cfg;
	struct arena arena;
	uint32_t n_blocks;
	atomic_bool may_remove, readers;
	atomic_int forgotten, removed;
	char puts[8192]; /* keys in the order in which they were put */
	size_t n_puts;
};

static bool may_remove(void *arg, struct ulid u)
{
	(void)u;
	return atomic_load(&((struct fixture *)arg)->may_remove);
}
static bool forget(void *arg, struct ulid u)
{
	struct fixture *f = arg;
	(void)u;
	atomic_fetch_add(&f->forgotten, 1);
	return !atomic_load(&f->readers);
}
static void removed(void *arg, struct ulid u)
{
	(void)u;
	atomic_fetch_add(&((struct fixture *)arg)->removed, 1);
}

static void open_catalog(struct fixture *f)
{
	struct err err = {0};
	bool rebuilt;
	struct catalog_config cfg = {.path = tmp_path("%s/catalog.sqlite", f->dir), .node = "n"};
	assert_int_equal(catalog_open(&cfg, &f->c, &rebuilt, &err), OK);
	f->cfg.catalog = f->c;
}

static void audit(struct fixture *f)
{
	struct err err = {0};
	struct catalog_audit_stats st;
	assert_int_equal(catalog_audit(f->c, f->sh->inner, NULL, &st, &err), OK);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	struct err err = {0};
	struct bucket *inner;
	f->dir = tmp_dir();
	snprintf(f->block_dir, sizeof f->block_dir, "%s/blocks", f->dir);
	snprintf(f->bucket_dir, sizeof f->bucket_dir, "%s/bucket", f->dir);
	arena_init(&f->arena, GIB);
	assert_int_equal(io_mkdirs(f->block_dir, &err), OK);
	assert_int_equal(bucket_open("default", SPAN(""), f->bucket_dir, &inner, &err), OK);
	f->bucket = shaky_bucket(inner, &f->sh);
	f->cfg = (struct shipper_config){
		.block_dir = f->block_dir, .bucket = f->bucket, .may_remove = may_remove, .forget = forget, .removed = removed, .arg = f};
	open_catalog(f);
	audit(f);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	shipper_stop(f->s);
	catalog_close(f->c);
	bucket_close(f->bucket);
	arena_free(&f->arena);
	free(f);
	return 0;
}

/* A block of the hour, in the block directory and noted. */
static struct ulid add_block(struct fixture *f, int hour)
{
	struct model m;
	struct block_meta meta;
	struct err err = {0};
	uint64_t bytes;
	struct ulid u = ulid_new();
	model_make(&m, &(struct model_config){
			       .n_series = 5, .samples = 100, .start_ms = hour * HOUR, .step_ms = 15000, .range_ms = HOUR, .seed = ++f->n_blocks});
	if (model_write(&m, f->block_dir, u, 0, &meta, &bytes, &err) != OK)
		fail_msg("%s", err.msg);
	assert_int_equal(catalog_add_local(f->c, &meta, bytes, &err), OK);
	model_free(&m);
	return u;
}

static bool there(const char *path)
{
	struct io_stat st;
	struct err err = {0};
	assert_int_equal(io_stat(path, &st, &err), OK);
	return st.exists;
}

static struct span read_file(struct fixture *f, const char *path)
{
	struct span out;
	struct err err = {0};
	if (io_read_file(path, 64 * MIB, &f->arena, &out, &err) != OK)
		fail_msg("%s", err.msg);
	return out;
}

static const char *object(struct fixture *f, struct ulid u, const char *name)
{
	return tmp_path("%s/%s/%s", f->bucket_dir, ulid_text(u).s, name);
}

static const char *local(struct fixture *f, struct ulid u, const char *name)
{
	return tmp_path("%s/%s/%s", f->block_dir, ulid_text(u).s, name);
}

/* What a reader may rely on: where a meta.json is, the block is whole, byte for byte. */
static void assert_no_half_block(struct fixture *f, struct ulid u)
{
	if (!there(object(f, u, "meta.json")))
		return;
	assert_true(span_eq(read_file(f, object(f, u, "index")), read_file(f, local(f, u, "index"))));
	assert_true(span_eq(read_file(f, object(f, u, "chunks/000001")), read_file(f, local(f, u, "chunks/000001"))));
}

static struct catalog_block row(struct fixture *f, struct ulid u)
{
	struct catalog_block b;
	struct err err = {0};
	if (catalog_get(f->c, u, &f->arena, &b, &err) != OK)
		fail_msg("%s", err.msg);
	return b;
}

static void assert_live(struct fixture *f, struct ulid u)
{
	assert_true(there(object(f, u, "meta.json")));
	assert_no_half_block(f, u);
	assert_int_equal(row(f, u).state, BLOCK_LIVE);
	assert_true(row(f, u).in_bucket);
	struct err err = {0};
	struct block_meta meta;
	const char *path = object(f, u, "meta.json");
	assert_int_equal(block_meta_parse(path, read_file(f, path), &f->arena, &meta, &err), OK);
	assert_true(meta.upload_time.n > 0);
}

static size_t count_objects(struct fixture *f)
{
	struct err err = {0};
	struct catalog_audit_stats st;
	assert_int_equal(catalog_audit(f->c, f->sh->inner, NULL, &st, &err), OK);
	return st.objects;
}

static errc ship(struct fixture *f, struct ulid u, struct ship_result *res, struct err *err)
{
	/* resume as the shipper does: by the state that an earlier pass left */
	struct catalog_block *v;
	size_t n;
	bool resume = false;
	assert_int_equal(catalog_pending(f->c, &f->arena, &v, &n, err), OK);
	for (size_t i = 0; i < n; i++)
		if (ulid_eq(v[i].ulid, u))
			resume = v[i].state == BLOCK_UPLOADING;
	return ship_block(&f->cfg, u, resume, &f->arena, res, err);
}

static void start(struct fixture *f)
{
	struct err err = {0};
	assert_int_equal(shipper_start(&f->cfg, &f->s, &err), OK);
}

static void flush_ok(struct fixture *f)
{
	struct err err = {0};
	if (shipper_flush(f->s, 30000, &err) != OK)
		fail_msg("%s", err.msg);
}

/* Waits until what(f) or ten seconds. */
static void eventually(struct fixture *f, bool (*what)(struct fixture *f))
{
	int64_t until = io_mono_ms() + 10000;
	while (!what(f)) {
		assert_true(io_mono_ms() < until);
		io_sleep_ms(5);
	}
}

/* ---- order ---- */

static void note_put(void *arg, const char *operation, const char *key)
{
	struct fixture *f = arg;
	f->n_puts += (size_t)snprintf(f->puts + f->n_puts, sizeof f->puts - f->n_puts, "%s %s\n", operation, key);
}

static void oldest_first_and_meta_last(void **state)
{
	struct fixture *f = *state;
	struct ulid b = add_block(f, 7), a = add_block(f, 5);
	f->sh->before = note_put;
	f->sh->arg = f;
	start(f);
	flush_ok(f);
	char want[1024];
	snprintf(want, sizeof want,
		"put %s/chunks/000001\nput %s/index\nput %s/meta.json\n"
		"put %s/chunks/000001\nput %s/index\nput %s/meta.json\n",
		ulid_text(a).s, ulid_text(a).s, ulid_text(a).s, ulid_text(b).s, ulid_text(b).s, ulid_text(b).s);
	assert_string_equal(f->puts, want);
	assert_live(f, a);
	assert_live(f, b);
	/* with a whole catalog nothing is asked about a fresh block */
	assert_int_equal(f->sh->sizes + f->sh->gets + f->sh->lists, 0);
	struct shipper_status st;
	shipper_status(f->s, &st);
	assert_int_equal(st.pending_blocks, 0);
	assert_string_equal(st.last_error, "");
}

/* ---- every call fails ---- */

/* The n-th operation of a shipment fails, alone or with all behind it, before or after it was done: no half block is ever visible, the next pass
 * completes it, and no object is left that does not belong. */
static void any_call_fails(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct ship_result res;
	size_t states = 0;
	for (int mode = 0; mode < 4; mode++) {
		bool sticky = mode & 1, lost = mode & 2;
		for (uint64_t n = 1;; n++) {
			struct ulid u = add_block(f, 1);
			f->sh->calls = 0;
			f->sh->fail_from = n;
			f->sh->fail_to = sticky ? UINT64_MAX : n;
			f->sh->lost_answer = lost;
			errc rc = ship(f, u, &res, &err);
			f->sh->fail_from = 0;
			if (rc == OK) {
				assert_live(f, u);
				break;
			}
			states++;
			assert_false(res.own_fault);
			assert_no_half_block(f, u);
			assert_int_not_equal(row(f, u).state, BLOCK_LIVE);
			/* the process dies here, or goes on */
			if (n % 2) {
				catalog_close(f->c);
				open_catalog(f);
			}
			if (ship(f, u, &res, &err) != OK)
				fail_msg("mode %d, call %d: %s", mode, (int)n, err.msg);
			assert_live(f, u);
		}
	}
	print_message("%zu failures\n", states);
	assert_true(states >= 12);
	assert_int_equal(count_objects(f), 3 * f->n_blocks);
}

/* A failure while a failure is got over. */
static void failures_of_the_resume(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct ship_result res;
	for (uint64_t first = 1; first <= 3; first++)
		for (uint64_t second = 1;; second++) {
			struct ulid u = add_block(f, 1);
			f->sh->calls = 0;
			f->sh->fail_from = f->sh->fail_to = first;
			f->sh->lost_answer = second % 2;
			assert_int_not_equal(ship(f, u, &res, &err), OK);
			f->sh->calls = 0;
			f->sh->fail_from = f->sh->fail_to = second;
			errc rc = ship(f, u, &res, &err);
			f->sh->fail_from = 0;
			assert_no_half_block(f, u);
			if (rc == OK)
				break;
			assert_false(res.own_fault);
			assert_int_equal(ship(f, u, &res, &err), OK);
			assert_live(f, u);
		}
	assert_int_equal(count_objects(f), 3 * f->n_blocks);
}

/* What an earlier pass finished is not sent again; what it left torn is. */
static void resume_keeps_what_is_there(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct ship_result res;
	struct ulid u = add_block(f, 1);
	f->sh->fail_from = f->sh->fail_to = 2; /* index */
	assert_int_equal(ship(f, u, &res, &err), ERR_NET);
	f->sh->fail_from = 0;
	f->sh->before = note_put;
	f->sh->arg = f;
	assert_int_equal(ship(f, u, &res, &err), OK);
	char want[256];
	snprintf(want, sizeof want, "put %s/index\nput %s/meta.json\n", ulid_text(u).s, ulid_text(u).s);
	assert_string_equal(f->puts, want);
	assert_live(f, u);

	u = add_block(f, 2);
	f->sh->calls = 0;
	f->sh->fail_from = f->sh->fail_to = 2;
	assert_int_equal(ship(f, u, &res, &err), ERR_NET);
	f->sh->fail_from = 0;
	assert_int_equal(io_write_file(object(f, u, "chunks/000001"), SPAN("other"), &err), OK);
	assert_int_equal(ship(f, u, &res, &err), OK);
	assert_live(f, u);
}

/* ---- damage ---- */

static void damage(struct fixture *f, struct ulid u, int kind)
{
	struct err err = {0};
	struct span s;
	char *copy;
	switch (kind) {
	case 0: /* a flipped byte */
		s = read_file(f, local(f, u, "index"));
		copy = malloc(s.n);
		memcpy(copy, s.p, s.n);
		copy[s.n / 2] ^= 1;
		assert_int_equal(io_write_file(local(f, u, "index"), span_of(copy, s.n), &err), OK);
		free(copy);
		return;
	case 1: /* shorter */
		s = read_file(f, local(f, u, "index"));
		assert_int_equal(io_write_file(local(f, u, "index"), span_of(s.p, s.n - 1), &err), OK);
		return;
	case 2:
		assert_int_equal(io_unlink(local(f, u, "index"), &err), OK);
		return;
	case 3:
		assert_int_equal(io_write_file(local(f, u, "meta.json"), SPAN("{"), &err), OK);
		return;
	case 4:
		assert_int_equal(io_unlink(local(f, u, "meta.json"), &err), OK);
		return;
	default:
		assert_int_equal(io_write_file(local(f, u, "meta.json"), SPAN("{\"version\":1}"), &err), OK);
	}
}

static void damaged_blocks_stand_alone(void **state)
{
	struct fixture *f = *state;
	enum { KINDS = 6 };
	struct ulid bad[KINDS], good[KINDS];
	for (int k = 0; k < KINDS; k++) {
		bad[k] = add_block(f, 2 * k);
		good[k] = add_block(f, 2 * k + 1);
		damage(f, bad[k], k);
	}
	atomic_store(&f->may_remove, true);
	start(f);
	flush_ok(f);
	for (int k = 0; k < KINDS; k++) {
		assert_int_equal(row(f, good[k]).state, BLOCK_LIVE);
		assert_int_equal(row(f, bad[k]).state, BLOCK_QUARANTINED);
		assert_true(row(f, bad[k]).reason.n > 0);
		assert_false(there(object(f, bad[k], "meta.json")));
		assert_false(there(object(f, bad[k], "index")));
		assert_false(there(object(f, bad[k], "chunks/000001")));
		/* it stays on disk, for a person */
		assert_true(there(local(f, bad[k], "chunks/000001")));
	}
	assert_int_equal(count_objects(f), 3 * KINDS);
}

/* The catalog is lost, and the directory of a block that is live was damaged meanwhile: the bucket's copy is not touched. */
static void live_copy_is_never_overwritten(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	for (int audited = 0; audited < 2; audited++)
		for (int k = 0; k < 6; k++) {
			struct ulid u = add_block(f, 1);
			struct ship_result res;
			struct block_meta meta;
			assert_int_equal(ship(f, u, &res, &err), OK);
			struct span index = read_file(f, object(f, u, "index")), json = read_file(f, object(f, u, "meta.json"));
			assert_int_equal(block_meta_parse("meta", read_file(f, local(f, u, "meta.json")), &f->arena, &meta, &err), OK);
			damage(f, u, k);
			catalog_close(f->c);
			assert_int_equal(io_unlink(tmp_path("%s/catalog.sqlite", f->dir), &err), OK);
			open_catalog(f);
			assert_int_equal(catalog_add_local(f->c, &meta, 1, &err), OK);
			if (audited)
				audit(f);
			uint64_t puts = f->sh->puts, deletes = f->sh->deletes;
			errc rc = ship(f, u, &res, &err);
			assert_int_equal(f->sh->puts, puts);
			assert_int_equal(f->sh->deletes, deletes);
			assert_true(span_eq(index, read_file(f, object(f, u, "index"))));
			assert_true(span_eq(json, read_file(f, object(f, u, "meta.json"))));
			if (audited || k < 3) {
				assert_int_equal(rc, OK);
				assert_int_equal(row(f, u).state, BLOCK_LIVE);
			} else {
				assert_true(res.own_fault);
			}
		}
}

/* Quarantined in the bucket, whole here: sent again. */
static void damaged_bucket_copy_is_mended(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct ship_result res;
	struct ulid u = add_block(f, 1);
	assert_int_equal(ship(f, u, &res, &err), OK);
	assert_int_equal(io_write_file(object(f, u, "index"), SPAN("rot"), &err), OK);
	assert_int_equal(catalog_quarantine(f->c, u, "index: too short", &err), OK);
	assert_int_equal(catalog_set_local_state(f->c, u, BLOCK_LOCAL, NULL, &err), OK);
	assert_int_equal(ship(f, u, &res, &err), OK);
	assert_live(f, u);
}

/* ---- a bucket that is down ---- */

static bool has_failed(struct fixture *f)
{
	struct shipper_status st;
	shipper_status(f->s, &st);
	return st.last_error[0] != 0;
}

static void bucket_down(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	f->sh->fail_from = 1;
	f->sh->fail_to = UINT64_MAX;
	struct ulid u = add_block(f, 1), v = add_block(f, 2);
	start(f);
	shipper_notify(f->s);
	eventually(f, has_failed);
	struct shipper_status st;
	shipper_status(f->s, &st);
	assert_int_equal(st.pending_blocks, 2);
	assert_true(st.pending_bytes > 0);
	assert_non_null(strstr(st.last_error, "connection reset by the test"));
	assert_non_null(strstr(st.last_error, ulid_text(u).s));

	/* a flush says why within its time */
	int64_t begin = io_mono_ms();
	assert_int_equal(shipper_flush(f->s, 300, &err), ERR_NET);
	assert_in_range(io_mono_ms() - begin, 290, 1500);
	assert_non_null(strstr(err.msg, "connection reset by the test"));

	/* new blocks do not make it ask more often */
	uint64_t calls = f->sh->calls;
	for (int i = 0; i < 50; i++)
		shipper_notify(f->s);
	io_sleep_ms(50);
	assert_true(f->sh->calls <= calls + 2);

	f->sh->fail_from = 0;
	flush_ok(f);
	assert_live(f, u);
	assert_live(f, v);
	assert_false(has_failed(f));
}

/* One block whose directory can't be read (or that arrives damaged each time) does not hold up the others. */
static void one_stubborn_block(void **state)
{
	struct fixture *f = *state;
	f->sh->fail_code = ERR_CORRUPT;
	struct ulid u = add_block(f, 1), v = add_block(f, 2);
	f->sh->fail_from = f->sh->fail_to = 1;
	start(f);
	flush_ok(f);
	assert_live(f, u);
	assert_live(f, v);
}

static void *stop_soon(void *arg)
{
	struct fixture *f = arg;
	io_sleep_ms(50);
	bucket_cancel(f->bucket);
	return NULL;
}

static void stopping_ends_the_waiting(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	pthread_t t;
	f->sh->fail_from = 1;
	f->sh->fail_to = UINT64_MAX;
	add_block(f, 1);
	start(f);
	assert_int_equal(pthread_create(&t, NULL, stop_soon, f), 0);
	int64_t begin = io_mono_ms();
	assert_int_not_equal(shipper_flush(f->s, 500, &err), OK);
	pthread_join(t, NULL);
	shipper_stop(f->s);
	f->s = NULL;
	assert_true(io_mono_ms() - begin < 3000);
}

/* ---- tidying up ---- */

static bool all_forgotten(struct fixture *f)
{
	shipper_notify(f->s);
	return atomic_load(&f->forgotten) > 0;
}

static bool all_removed(struct fixture *f)
{
	shipper_notify(f->s);
	return atomic_load(&f->removed) > 0;
}

static void tidies_up(void **state)
{
	struct fixture *f = *state;
	struct err err = {0};
	struct ulid u = add_block(f, 1);
	start(f);
	flush_ok(f);
	/* the head still needs it */
	for (int i = 0; i < 20; i++) {
		shipper_notify(f->s);
		io_sleep_ms(5);
	}
	assert_int_equal(f->forgotten, 0);
	assert_true(there(local(f, u, "index")));
	/* somebody reads it */
	atomic_store(&f->readers, true);
	atomic_store(&f->may_remove, true);
	eventually(f, all_forgotten);
	assert_true(there(local(f, u, "index")));
	assert_int_equal(f->removed, 0);
	/* nobody */
	atomic_store(&f->readers, false);
	eventually(f, all_removed);
	assert_false(there(local(f, u, "")));
	assert_false(row(f, u).local);
	assert_int_equal(row(f, u).state, BLOCK_LIVE);

	/* not while the bucket's copy is in doubt */
	atomic_store(&f->may_remove, false);
	struct ulid v = add_block(f, 2);
	flush_ok(f);
	assert_int_equal(catalog_quarantine(f->c, v, "index: checksum", &err), OK);
	atomic_store(&f->may_remove, true);
	for (int i = 0; i < 20; i++) {
		shipper_notify(f->s);
		io_sleep_ms(5);
	}
	assert_true(there(local(f, v, "index")));
}

static void keeps_for_a_while(void **state)
{
	struct fixture *f = *state;
	atomic_store(&f->may_remove, true);
	f->cfg.local_keep_ms = 400;
	struct ulid u = add_block(f, 1);
	start(f);
	int64_t begin = io_mono_ms();
	flush_ok(f);
	assert_true(there(local(f, u, "index")));
	eventually(f, all_removed);
	assert_true(io_mono_ms() - begin >= 390);
}

static char stuck[ULID_TEXT_BYTES + 1];

static int rename_not_stuck(const char *from, const char *to)
{
	if (strstr(to, ".tmp-for-deletion") && strstr(from, stuck)) {
		errno = EBUSY;
		return -1;
	}
	return io_posix.rename(from, to);
}

/* One local copy that can't be removed does not keep the others on disk. */
static void one_that_stays_keeps_no_other(void **state)
{
	struct fixture *f = *state;
	const struct io_ops *before = io_ops;
	static struct io_ops ops;
	ops = *io_ops;
	ops.rename = rename_not_stuck;
	io_ops = &ops;
	struct ulid u = add_block(f, 1);
	snprintf(stuck, sizeof stuck, "%s", ulid_text(u).s);
	start(f);
	flush_ok(f);
	struct ulid v = add_block(f, 2);
	flush_ok(f);
	atomic_store(&f->may_remove, true);
	for (int i = 0; i < 2000 && there(local(f, v, "")); i++) {
		shipper_notify(f->s);
		io_sleep_ms(5);
	}
	assert_false(there(local(f, v, "")));
	assert_true(there(local(f, u, "index")));
	assert_true(row(f, u).local);
	shipper_stop(f->s);
	f->s = NULL;
	io_ops = before;
}

static _Atomic int64_t clock_ahead_ms;

static int64_t clock_ahead(void)
{
	return io_posix.now_ms() + atomic_load(&clock_ahead_ms);
}

/* What went live while the clock was a year ahead does not stay on this disk for a year. */
static void a_clock_that_was_ahead_keeps_nothing(void **state)
{
	struct fixture *f = *state;
	const struct io_ops *before = io_ops;
	static struct io_ops ops;
	ops = *io_ops;
	ops.now_ms = clock_ahead;
	io_ops = &ops;
	atomic_store(&clock_ahead_ms, INT64_C(365) * 24 * 3600 * 1000);
	struct ulid u = add_block(f, 1);
	start(f);
	flush_ok(f);
	assert_true(there(local(f, u, "index")));
	atomic_store(&clock_ahead_ms, 0);
	atomic_store(&f->may_remove, true);
	eventually(f, all_removed);
	shipper_stop(f->s);
	f->s = NULL;
	io_ops = before;
}

/* ---- threads ---- */

static void *flusher(void *arg)
{
	struct fixture *f = arg;
	struct err err = {0};
	for (int i = 0; i < 5; i++) {
		struct shipper_status st;
		shipper_notify(f->s);
		assert_int_equal(shipper_flush(f->s, 20000, &err), OK);
		shipper_status(f->s, &st);
	}
	return NULL;
}

static void many_flushers(void **state)
{
	struct fixture *f = *state;
	pthread_t t[4];
	struct ulid u[6];
	atomic_store(&f->may_remove, true);
	start(f);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, flusher, f), 0);
	for (int i = 0; i < 6; i++)
		u[i] = add_block(f, i);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	flush_ok(f);
	for (int i = 0; i < 6; i++)
		assert_int_equal(row(f, u[i]).state, BLOCK_LIVE);
	assert_int_equal(count_objects(f), 18);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	log_setup((enum log_level)(LOG_ERROR + 1), LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		TEST(oldest_first_and_meta_last),
		TEST(any_call_fails),
		TEST(failures_of_the_resume),
		TEST(resume_keeps_what_is_there),
		TEST(damaged_blocks_stand_alone),
		TEST(live_copy_is_never_overwritten),
		TEST(damaged_bucket_copy_is_mended),
		TEST(bucket_down),
		TEST(one_stubborn_block),
		TEST(stopping_ends_the_waiting),
		TEST(tidies_up),
		TEST(keeps_for_a_while),
		TEST(one_that_stays_keeps_no_other),
		TEST(a_clock_that_was_ahead_keeps_nothing),
		TEST(many_flushers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
