/* The file of rings, however it is replaced: by rename, by the links of a ConfigMap, in place and slowly, removed and made again: every complete version
 * is in force within a second and no other ever is. What is refused is told once and changes nothing. Readers go on all the while.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/bytes.h"
#include "base/io.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/ring_file.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/tmp.h"

enum { IN_FORCE_MS = 1000 };

static int versions(void)
{
	return getenv("VARVE_FULL") ? 50 : 10;
}

struct fixture {
	const char *dir, *path;
	char own[256];
	struct ring_file *rf;
	atomic_int changes, bad_changes;
	atomic_bool stop;
	atomic_int bad_reads;
};

static void on_change(void *arg, struct ring_set *was, struct ring_set *now)
{
	struct fixture *f = arg;
	struct ring_set *current = ring_file_current(f->rf);
	atomic_fetch_add(&f->changes, 1);
	/* rf is not known yet when the first ones come */
	if ((current && current != now) || (was && ring_set_epoch(was) == ring_set_epoch(now)))
		atomic_fetch_add(&f->bad_changes, 1);
	ring_set_unref(current);
}

static void first_change(void *arg, struct ring_set *was, struct ring_set *now)
{
	(void)was;
	(void)now;
	atomic_fetch_add(&((struct fixture *)arg)->changes, 1);
}

/* Version v has nodes v-0 to v-9: a mixture of two would have nodes of both. */
static size_t version(int v, char *out, size_t size)
{
	size_t n = (size_t)snprintf(out, size, "[{\"hashring\":\"v\",\"endpoints\":[\n");
	for (int i = 0; i < 10; i++)
		n += (size_t)snprintf(out + n, size - n, "%s\"%04d-%d.example:19291\"", i ? ",\n" : "", v, i);
	return n + (size_t)snprintf(out + n, size - n, "]}]\n");
}

static int version_of(const struct ring_set *s)
{
	if (ring_set_n_nodes(s) != 10)
		return -1;
	int v = atoi(ring_set_node(s, 0)->address.p);
	for (uint32_t i = 1; i < 10; i++)
		if (atoi(ring_set_node(s, i)->address.p) != v)
			return -1;
	return v;
}

static void write_all(const char *path, const char *text, size_t n)
{
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, n, f), n);
	fclose(f);
}

static struct fixture *set_up(struct fixture *f, const char *path, void (*changed)(void *, struct ring_set *, struct ring_set *))
{
	*f = (struct fixture){.dir = tmp_dir()};
	snprintf(f->own, sizeof f->own, "%s/rings.json", f->dir);
	f->path = path ? path : f->own;
	struct ring_file_config cfg = {.path = f->path, .options = {.replication_factor = 3}, .on_change = changed, .arg = f};
	struct err err = {0};
	log_setup(LOG_ERROR, LOG_LOGFMT);
	if (ring_file_open(&cfg, &f->rf, &err) != OK)
		fail_msg("%s", err.msg);
	return f;
}

/* In force, and told to everybody: the status waits for the thread that brings it. */
static void wait_for_version(struct fixture *f, int v)
{
	struct ring_file_status st;
	int64_t until = io_mono_ms() + IN_FORCE_MS;
	for (;;) {
		struct ring_set *s = ring_file_current(f->rf);
		int now = s ? version_of(s) : 0;
		ring_set_unref(s);
		assert_int_not_equal(now, -1);
		if (now == v) {
			ring_file_status(f->rf, &st);
			return;
		}
		if (io_mono_ms() > until)
			fail_msg("version %d is in force, %d stands in the file for %d ms", now, v, IN_FORCE_MS);
		io_sleep_ms(5);
	}
}

static void every_way_of_replacing_it_is_noticed(void **unused)
{
	(void)unused;
	struct fixture fx, *f = set_up(&fx, NULL, first_change);
	char text[1024];
	struct ring_file_status st;
	assert_null(ring_file_current(f->rf));
	ring_file_status(f->rf, &st);
	assert_true(st.epoch == 0 && !st.good && strstr(st.error, "rings.json"));
	int v = 1;
	for (int i = 0; i < versions(); i++, v++) {
		size_t n = version(v, text, sizeof text);
		switch (i % 5) {
		case 0: /* rename */
			write_all(tmp_path("%s/new", f->dir), text, n);
			assert_int_equal(rename(tmp_path("%s/new", f->dir), f->path), 0);
			break;
		case 1: /* at once, in place; of the same length as before */
			write_all(f->path, text, n);
			break;
		case 2: { /* in place, slowly, and from time to time so slowly that it looks finished */
			FILE *out = fopen(f->path, "w");
			for (size_t at = 0; at < n; at += 61) {
				fwrite(text + at, 1, n - at < 61 ? n - at : 61, out);
				fflush(out);
				usleep(at == 183 ? 250000 : 3000);
			}
			fclose(out);
			break;
		}
		case 3: {	       /* over the old one, in two pieces: in between there is a ring of both */
			usleep(50000); /* the last tick was just now: one falls into the gap */
			FILE *out = fopen(f->path, "r+");
			for (int half = 0; half < 2; half++) {
				fwrite(text + (half ? n / 2 : 0), 1, half ? n - n / 2 : n / 2, out);
				fflush(out);
				usleep(half ? 0 : 85000);
			}
			fclose(out);
			break;
		}
		default: /* gone, and there again */
			unlink(f->path);
			usleep(250000);
			write_all(f->path, text, n);
		}
		wait_for_version(f, v);
	}
	assert_int_equal(atomic_load(&f->changes), versions());
	ring_file_status(f->rf, &st);
	assert_true(st.good && (int)st.sequence == versions() && st.error[0] == 0);
	ring_file_close(f->rf);
}

/* What Kubernetes does: rings.json -> ..data/rings.json, ..data -> ..2026_11, and ..data is renamed over. */
static void links_are_followed(void **unused)
{
	(void)unused;
	char text[1024];
	const char *dir = tmp_dir();
	char *path = strdup(tmp_path("%s/rings.json", dir)), *data = strdup(tmp_path("%s/..data", dir));
	struct fixture fx, *f = NULL;
	for (int v = 1; v <= versions(); v++) {
		char *real = strdup(tmp_path("%s/..v%d", dir, v)), *fresh = strdup(tmp_path("%s/..data_tmp", dir));
		assert_int_equal(io_mkdir(real, NULL), OK);
		write_all(tmp_path("%s/rings.json", real), text, version(v, text, sizeof text));
		assert_int_equal(symlink(strrchr(real, '/') + 1, fresh), 0);
		assert_int_equal(rename(fresh, data), 0);
		if (v == 1) {
			assert_int_equal(symlink("..data/rings.json", path), 0);
			f = set_up(&fx, path, NULL);
		}
		wait_for_version(f, v);
		if (v > 1)
			assert_int_equal(io_remove_tree(tmp_path("%s/..v%d", dir, v - 1), NULL), OK);
		free(real);
		free(fresh);
	}
	ring_file_close(f->rf);
	free(path);
	free(data);
}

static double reloads(const char *result)
{
	return metric_value(metric_counter_with("varve_ring_reloads_total", "", "result", result));
}

static void what_is_refused_changes_nothing(void **unused)
{
	(void)unused;
	struct fixture fx, *f = set_up(&fx, NULL, on_change);
	char text[1024];
	struct err err = {0};
	struct ring_file_status st;
	size_t n = version(1, text, sizeof text);
	write_all(f->path, text, n);
	wait_for_version(f, 1);
	struct metric *good = metric_gauge("varve_ring_last_reload_successful", "");
	assert_true(metric_value(good) == 1);
	double refused = reloads("refused");
	write_all(f->path, text, n - 5);
	io_sleep_ms(700);
	/* Once per content, however often it is looked at. */
	assert_true(reloads("refused") == refused + 1 && metric_value(good) == 0);
	assert_int_equal(ring_file_reload(f->rf, &err), ERR_INVALID);
	assert_non_null(strstr(err.msg, "rings.json:"));
	ring_file_status(f->rf, &st);
	assert_true(!st.good && st.epoch != 0 && strcmp(st.error, err.msg) == 0);
	wait_for_version(f, 1);
	/* The same again: good again, and no change. */
	write_all(f->path, text, n);
	assert_int_equal(ring_file_reload(f->rf, &err), OK);
	assert_true(metric_value(good) == 1);
	assert_int_equal(atomic_load(&f->changes), 1);
	/* A reload does not wait. */
	write_all(f->path, text, version(2, text, sizeof text));
	assert_int_equal(ring_file_reload(f->rf, &err), OK);
	struct ring_set *s = ring_file_current(f->rf);
	assert_int_equal(version_of(s), 2);
	ring_set_unref(s);
	/* What is offered stays until the file changes. */
	n = version(3, text, sizeof text);
	assert_int_equal(ring_file_offer(f->rf, "PUT", span_of(text, n - 5), &err), ERR_INVALID);
	assert_int_equal(ring_file_offer(f->rf, "PUT", span_of(text, n), &err), OK);
	io_sleep_ms(500);
	wait_for_version(f, 3);
	write_all(f->path, text, version(4, text, sizeof text));
	wait_for_version(f, 4);
	assert_int_equal(atomic_load(&f->bad_changes), 0);
	assert_int_equal(atomic_load(&f->changes), 4);
	/* /metrics has the epoch in force and no other. */
	struct buf page;
	buf_init(&page, MIB);
	metrics_write(&page);
	buf_u8(&page, 0);
	char line[80];
	ring_file_status(f->rf, &st);
	snprintf(line, sizeof line, "\nvarve_ring_info{epoch=\"%016lx\"} 1\n", (unsigned long)st.epoch);
	char *info = strstr((char *)page.p, "\nvarve_ring_info{");
	assert_non_null(info);
	assert_int_equal(strncmp(info, line, strlen(line)), 0);
	assert_null(strstr(info + 2, "varve_ring_info{"));
	buf_free(&page);
	ring_file_close(f->rf);
}

static void a_flag_must_be_right(void **unused)
{
	(void)unused;
	struct err err = {0};
	struct ring_file *rf = NULL;
	struct ring_file_config cfg = {.text = "[{\"endpoints\":[\"a:1\"]}]", .options = {.replication_factor = 2}};
	assert_int_equal(ring_file_open(&cfg, &rf, &err), ERR_INVALID);
	assert_non_null(strstr(err.msg, "--hashrings:1: ring 1: 1 endpoint, fewer than the replication factor of 2"));
	cfg.options.replication_factor = 1;
	assert_int_equal(ring_file_open(&cfg, &rf, &err), OK);
	assert_int_equal(ring_file_reload(rf, &err), OK);
	struct ring_set *s = ring_file_current(rf);
	assert_int_equal(ring_set_n_nodes(s), 1);
	ring_file_close(rf);
	ring_set_unref(s);
	/* Neither: rings are offered later. */
	cfg.text = NULL;
	assert_int_equal(ring_file_open(&cfg, &rf, &err), OK);
	assert_null(ring_file_current(rf));
	assert_int_equal(ring_file_offer(rf, "members", SPAN("[{\"endpoints\":[\"b:1\"]}]"), &err), OK);
	s = ring_file_current(rf);
	assert_non_null(s);
	ring_set_unref(s);
	ring_file_close(rf);
}

static void memory_may_fail(void **unused)
{
	(void)unused;
	struct ring_file_config cfg = {.text = "[{\"endpoints\":[\"a:1\"]}]", .options = {.replication_factor = 1}};
	for (uint64_t n = 1;; n++) {
		struct ring_file *rf = NULL;
		struct err err = {0};
		fail_alloc_at(n, false);
		errc rc = ring_file_open(&cfg, &rf, &err);
		uint64_t hits = fail_alloc_off();
		/* What is only said of it may be lost. */
		assert_true(rc == OK || rc == ERR_NOMEM);
		assert_true(rc == OK || hits > 0);
		ring_file_close(rc == OK ? rf : NULL);
		if (hits == 0)
			break;
	}
}

static void *read_on(void *arg)
{
	struct fixture *f = arg;
	uint64_t n = 0;
	struct ring_set *kept = NULL;
	while (!atomic_load(&f->stop)) {
		struct ring_set *s = ring_file_current(f->rf);
		struct ring *ring;
		struct ring_hash h;
		uint32_t owners[3];
		char tenant[16];
		ring_hash_begin(&h, SPAN("t"));
		snprintf(tenant, sizeof tenant, "t%u", (unsigned)(n++ % 50));
		ring_hash_add(&h, SPAN("__name__"), span_cstr(tenant));
		if (ring_for_tenant(s, span_cstr(tenant), &ring, NULL) != OK || !ring) {
			atomic_fetch_add(&f->bad_reads, 1);
		} else {
			ring_owners(ring, ring_hash_end(&h), owners);
			for (int k = 0; k < 3; k++)
				if (version_of(s) < 1 || ring_set_node(s, owners[k])->address.n < 10)
					atomic_fetch_add(&f->bad_reads, 1);
			ring_unref(ring);
		}
		/* One in some stays behind the next change. */
		if (n % 64 == 0) {
			ring_set_unref(kept);
			kept = s;
		} else {
			ring_set_unref(s);
		}
	}
	ring_set_unref(kept);
	return NULL;
}

static void readers_go_on_while_rings_change(void **unused)
{
	(void)unused;
	enum { READERS = 4, CHANGES = 60 };
	char text[1024];
	pthread_t threads[READERS];
	struct err err = {0};
	struct fixture fx, *f = set_up(&fx, NULL, on_change);
	static const char shards[] = ",\"shuffle_sharding_config\":{\"shard_size\":4}}]";
	for (int v = 1; v <= CHANGES; v++) {
		size_t n = version(v, text, sizeof text);
		memcpy(text + n - 3, shards, sizeof shards); /* over }]\n */
		assert_int_equal(ring_file_offer(f->rf, "offer", span_cstr(text), &err), OK);
		if (v == 1)
			for (int i = 0; i < READERS; i++)
				assert_int_equal(pthread_create(&threads[i], NULL, read_on, f), 0);
		if (v % 20 == 0)
			io_sleep_ms(50);
	}
	atomic_store(&f->stop, true);
	for (int i = 0; i < READERS; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(atomic_load(&f->bad_reads), 0);
	assert_int_equal(atomic_load(&f->bad_changes), 0);
	assert_int_equal(atomic_load(&f->changes), CHANGES);
	ring_file_close(f->rf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_way_of_replacing_it_is_noticed),
		cmocka_unit_test(links_are_followed),
		cmocka_unit_test(what_is_refused_changes_nothing),
		cmocka_unit_test(a_flag_must_be_right),
		cmocka_unit_test(memory_may_fail),
		cmocka_unit_test(readers_go_on_while_rings_change),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
