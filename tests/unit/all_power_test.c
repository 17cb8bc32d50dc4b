/* Power cuts over the whole way of a sample: log, windows, blocks, bucket and catalog, in one process.
 *
 *     lab_send ─▶ log, head ─▶ block directory ─▶ catalog row ─▶ shipper ─▶ bucket directory ─▶ local directory removed
 *     └────────────── simulated disk ──────────────┘   SQLite    └─────────── simulated disk ───────────┘
 *
 * A run is recorded once; then every prefix of its operations, in each way a disk may lose data, is started again and read: what was acknowledged
 * is there, once, with its value; nothing else is; no block in the bucket is visible half. Then the shipper goes on with what is left, all is
 * read again, and the bucket holds whole blocks only. Sampled: the power goes again during that recovery.
 *
 * SQLite writes past the seam: with synchronous=FULL a commit is durable when the call returns, so the catalog of a state is the newest snapshot
 * taken before the operation (between commits of the shipper's thread lies always one of its operations, and a snapshot before it). One state in
 * eight finds no catalog at all. What SQLite itself does with lost writes: tests/crash/power.py.
 *
 * VARVE_FULL=1 takes every state of several runs (above 20,000), else a seeded sample of one.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include <sqlite3.h>
#include "base/limits.h"
#include "shipper/shipper.h"
#include "tests/support/head_lab.h"
#include "tests/support/shaky_bucket.h"
#include "tests/support/tmp.h"

enum {
	RANGE = 600000,
	SEGMENT = 16 * 1024,
	SERIES = 24,
	STATES = 1500, /* of the sample */
	STATES_FULL = 24000,
	FLUSH_MS = 20000,
};
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;
static const char bucket_yaml[] = "type: FILESYSTEM\nconfig:\n  directory: data/bucket\n";

static bool full;
static uint64_t seed;
static char state_name[400]; /* the state at hand, for whoever reads a failure */

/* ---- the catalog as it was at a moment ---- */

struct snap {
	uint64_t ops; /* of the disk, when it was taken */
	void *p;
	size_t n;
};

struct snaps {
	struct snap v[4096];
	size_t n;
};

static void snaps_free(struct snaps *s)
{
	for (size_t i = 0; i < s->n; i++)
		free(s->v[i].p);
	s->n = 0;
}

/* A consistent copy of the committed rows, also while others write. What they commit meanwhile rests on operations up to the number taken last. */
static struct snap snap_take(const char *path, struct sim *sim)
{
	struct snap out;
	sqlite3 *db = NULL;
	sqlite3_int64 n = 0;
	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL), SQLITE_OK);
	sqlite3_busy_timeout(db, 10000);
	unsigned char *p = sqlite3_serialize(db, "main", &n, 0);
	assert_non_null(p);
	out.n = (size_t)n;
	out.p = malloc(out.n);
	memcpy(out.p, p, out.n);
	sqlite3_free(p);
	sqlite3_close(db);
	out.ops = sim_ops(sim);
	return out;
}

static void snap_restore(const struct snap *s, const char *path)
{
	char side[400];
	for (int i = 0; i < 3; i++) {
		static const char *const suffixes[] = {"", "-wal", "-shm"};
		snprintf(side, sizeof side, "%s%s", path, suffixes[i]);
		unlink(side);
	}
	if (!s)
		return;
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(s->p, 1, s->n, f), s->n);
	assert_int_equal(fclose(f), 0);
}

/* ---- the house: what cmd/ puts together ---- */

struct house {
	struct lab lab;
	char catalog_path[300];
	struct bucket *bucket;
	struct catalog *catalog;
	struct shipper *shipper;
	struct snaps *snaps;	 /* where snapshots go while a run is recorded; NULL: nowhere */
	pthread_mutex_t mu;	 /* guards snaps->n */
	pthread_mutex_t reading; /* directories stay while it is held */
	atomic_uint_fast64_t removed;
};

/* From threads that are not the test's. */
static void end(const char *what, const struct err *err)
{
	fprintf(stderr, "%s: %s: %s\n", state_name, what, err->msg);
	abort();
}

static void note(struct house *h)
{
	pthread_mutex_lock(&h->mu);
	if (h->snaps) {
		assert_true(h->snaps->n < sizeof h->snaps->v / sizeof h->snaps->v[0]);
		h->snaps->v[h->snaps->n] = snap_take(h->catalog_path, h->lab.sim);
		h->snaps->n++;
	}
	pthread_mutex_unlock(&h->mu);
}

static errc block_cut(void *arg, const char *dir, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	struct house *h = arg;
	(void)dir;
	if (catalog_add_local(h->catalog, meta, bytes, err) != OK)
		end("catalog", err);
	note(h);
	shipper_notify(h->shipper);
	return OK;
}

static void cut_failed(void *arg, const struct err *why)
{
	(void)arg, (void)why; /* the power is off */
}

static void before_put(void *arg, const char *operation, const char *key)
{
	(void)operation, (void)key;
	note(arg);
}

static bool may_remove(void *arg, struct ulid block)
{
	struct house *h = arg;
	return head_cut_settled(h->lab.head, block);
}

static bool forget(void *arg, struct ulid block)
{
	struct house *h = arg;
	(void)block;
	if (pthread_mutex_trylock(&h->reading) != 0)
		return false;
	note(h);
	return true;
}

static void removed(void *arg, struct ulid block)
{
	struct house *h = arg;
	(void)block;
	atomic_fetch_add(&h->removed, 1);
	note(h);
	pthread_mutex_unlock(&h->reading);
}

/* What is in data/blocks is noted, as at every start. */
static errc scan(struct house *h, struct err *err)
{
	errc rc = OK;
	struct arena a;
	char **names;
	size_t n;
	arena_init(&a, 64 * MIB);
	TRY(io_listdir("data/blocks", &a, &names, &n, err));
	for (size_t i = 0; i < n; i++) {
		struct ulid u;
		struct span json;
		struct block_meta meta;
		char path[256];
		if (!ulid_parse(span_cstr(names[i]), &u))
			continue;
		snprintf(path, sizeof path, "data/blocks/%s/meta.json", names[i]);
		TRY(io_read_file(path, MIB, &a, &json, err));
		TRY(block_meta_parse(path, json, &a, &meta, err));
		TRY(catalog_add_local(h->catalog, &meta, json.n, err));
	}
fail:
	arena_free(&a);
	return rc;
}

/* Everything but the shipper. `catalog` NULL: there is none, it is made anew from the bucket. */
static errc house_open(struct house *h, const struct snap *catalog, struct err *err)
{
	errc rc = OK;
	bool rebuilt;
	struct bucket *dir;
	struct shaky *shaky;
	snap_restore(catalog, h->catalog_path);
	TRY(io_mkdirs("data/blocks", err));
	TRY(block_clean_dir("data/blocks", err));
	TRY(bucket_open("test", span_cstr(bucket_yaml), NULL, &dir, err));
	h->bucket = shaky_bucket(dir, &shaky);
	shaky->before = before_put;
	shaky->arg = h;
	const struct catalog_config cc = {.path = h->catalog_path, .node = "node"};
	TRY(catalog_open(&cc, &h->catalog, &rebuilt, err));
	TRY(lab_start(&h->lab, err));
	TRY(scan(h, err));
	if (rebuilt) {
		struct catalog_audit_stats st;
		const struct catalog_audit_options opt = {0};
		TRY(catalog_audit(h->catalog, h->bucket, &opt, &st, err));
		if (st.bad > 0)
			rc = err_set(err, ERR_CORRUPT, "%" PRIu64 " blocks in the bucket are bad", st.bad);
	}
	note(h);
fail:
	return rc;
}

static void ship(struct house *h)
{
	struct err err = {0};
	const struct shipper_config sc = {.block_dir = "data/blocks",
		.bucket = h->bucket,
		.catalog = h->catalog,
		.may_remove = may_remove,
		.forget = forget,
		.removed = removed,
		.arg = h};
	if (shipper_start(&sc, &h->shipper, &err) != OK)
		fail_msg("shipper: %s", err.msg);
}

static void house_close(struct house *h)
{
	if (h->bucket)
		bucket_cancel(h->bucket);
	if (h->shipper)
		shipper_stop(h->shipper);
	h->shipper = NULL;
	if (h->lab.head)
		lab_stop(&h->lab);
	catalog_close(h->catalog);
	if (h->bucket)
		bucket_close(h->bucket);
	h->catalog = NULL;
	h->bucket = NULL;
}

static void house_init(struct house *h, uint64_t lab_seed)
{
	*h = (struct house){0};
	pthread_mutex_init(&h->mu, NULL);
	pthread_mutex_init(&h->reading, NULL);
	lab_open(&h->lab, lab_seed, RANGE, SEGMENT);
	h->lab.n_series = SERIES;
	h->lab.cfg.on_block = block_cut;
	h->lab.cfg.on_block_arg = h;
	h->lab.cfg.on_cut_failed = cut_failed;
	/* Memory, where there is any: a catalog is made or restored for every state. */
	static const char *dir;
	if (!dir) {
		if (access("/dev/shm", W_OK) == 0)
			setenv("TMPDIR", "/dev/shm", 1);
		dir = tmp_dir();
	}
	snprintf(h->catalog_path, sizeof h->catalog_path, "%s/catalog.sqlite", dir);
}

static void house_free(struct house *h)
{
	lab_free(&h->lab);
	pthread_mutex_destroy(&h->mu);
	pthread_mutex_destroy(&h->reading);
}

/* ---- reading all of it ---- */

static bool is_there(const char *path)
{
	struct io_stat st;
	return io_stat(path, &st, NULL) == OK && st.exists;
}

/* As a query does: windows first, then what the catalog's plan says, a ULID once, its directory before its objects. */
static struct lab_series *gather(struct house *h)
{
	struct lab_series *found = calloc((size_t)LAB_TENANTS * LAB_SERIES, sizeof *found);
	struct err err = {0};
	struct arena a;
	arena_init(&a, 64 * MIB);
	pthread_mutex_lock(&h->reading);
	for (uint32_t t = 0; t < LAB_TENANTS; t++) {
		struct source **windows;
		struct catalog_block *rows;
		struct ulid seen[64];
		size_t n, n_rows;
		struct span tenant = span_cstr(lab_tenant(t));
		assert_int_equal(head_sources(h->lab.head, tenant, INT64_MIN, INT64_MAX, &a, &windows, &n, &err), OK);
		if (catalog_plan(h->catalog, tenant, 0, INT64_MAX / 2, &a, &rows, &n_rows, NULL, &err) != OK)
			fail_msg("plan: %s", err.msg);
		assert_true(n < 64);
		for (size_t i = 0; i < n; i++) {
			lab_read_source(&h->lab, t, windows[i], found);
			seen[i] = windows[i]->ulid;
			windows[i]->ops->release(windows[i]);
		}
		for (size_t i = 0; i < n_rows; i++) {
			bool again = false;
			for (size_t k = 0; k < n; k++)
				again = again || ulid_eq(seen[k], rows[i].ulid);
			if (again)
				continue;
			char dir[100], meta[128];
			snprintf(dir, sizeof dir, "data/blocks/%s", ulid_text(rows[i].ulid).s);
			snprintf(meta, sizeof meta, "%s/meta.json", dir);
			if (!rows[i].local || !is_there(meta)) {
				if (!rows[i].in_bucket)
					fail_msg("block %s: no directory, no object", ulid_text(rows[i].ulid).s);
				snprintf(dir, sizeof dir, "data/bucket/%s", ulid_text(rows[i].ulid).s);
			}
			lab_read_block(&h->lab, dir, found);
		}
	}
	pthread_mutex_unlock(&h->reading);
	arena_free(&a);
	return found;
}

static void problem(void *arg, const char *text)
{
	fail_msg("%s: %s", (const char *)arg, text);
}

/* Every block in the bucket that a reader would take for one is one, to the last byte. `settled`: and there is nothing else. */
static size_t blocks_check(const char *what, bool settled)
{
	struct arena a;
	struct err err = {0};
	char **names;
	size_t n, whole = 0;
	arena_init(&a, 64 * MIB);
	if (!is_there("data/bucket")) {
		arena_free(&a);
		return 0;
	}
	assert_int_equal(io_listdir("data/bucket", &a, &names, &n, &err), OK);
	for (size_t i = 0; i < n; i++) {
		char dir[128], path[300];
		struct ulid u;
		struct span json;
		struct block_meta meta;
		struct block_files *files;
		if (!ulid_parse(span_cstr(names[i]), &u))
			continue;
		snprintf(dir, sizeof dir, "data/bucket/%s", names[i]);
		snprintf(path, sizeof path, "%s/meta.json", dir);
		if (!is_there(path)) {
			if (settled)
				fail_msg("%s: block %s is half in the bucket, and stays so", what, names[i]);
			continue;
		}
		if (io_read_file(path, MIB, &a, &json, &err) != OK || block_meta_parse(path, json, &a, &meta, &err) != OK)
			fail_msg("%s: %s", what, err.msg);
		assert_true(meta.upload_time.n > 0);
		if (block_files_dir(dir, &files, &err) != OK)
			fail_msg("%s: %s", what, err.msg);
		errc rc = block_verify(files, &meta, problem, (void *)(uintptr_t)what, &err);
		files->close(files);
		if (rc != OK)
			fail_msg("%s: %s", what, err.msg);
		whole++;
	}
	arena_free(&a);
	return whole;
}

/* ---- the recorded run ---- */

struct run {
	struct sim_tape *tape;
	struct snaps snaps;
	struct lab_series *series; /* what was sent */
	uint64_t blocks, removed, segments;
};

/* `n` series from `first` on, `per` samples each, 200 ms apart from *clock on. */
static void send(struct lab *l, uint32_t tenant, uint32_t first, uint32_t n, uint32_t per, int64_t *clock, uint64_t *r)
{
	struct lab_batch b;
	struct err err = {0};
	lab_batch_begin(&b, tenant);
	for (uint32_t k = first; k < first + n; k++) {
		lab_batch_series(&b, k % SERIES, (k + per) % 8);
		for (uint32_t i = 0; i < per; i++)
			lab_batch_sample(&b, *clock + (int64_t)i * 200, lab_random(r));
	}
	*clock += (int64_t)per * 200;
	if (lab_send(l, &b, &err) != OK)
		fail_msg("send: %s", err.msg);
	lab_batch_free(&b);
}

static void must_open(struct house *h, const struct snap *catalog)
{
	struct err err = {0};
	if (house_open(h, catalog, &err) != OK)
		fail_msg("start: %s", err.msg);
}

static void flush_all(struct house *h)
{
	struct err err = {0};
	lab_flush(&h->lab);
	if (shipper_flush(h->shipper, FLUSH_MS, &err) != OK)
		fail_msg("ship: %s", err.msg);
}

/* Ingest into two windows of each tenant, late samples, rotations, cuts, shipments, checkpoints, removals, and a stop and start in the middle. */
static void run_record(struct house *h, struct run *run, uint64_t run_seed)
{
	uint64_t r = run_seed;
	int64_t clock = T0, late;
	house_init(h, run_seed);
	sim_record(h->lab.sim);
	run->snaps.n = 0;
	h->snaps = &run->snaps;
	must_open(h, NULL);
	ship(h);
	for (uint32_t round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < 8; i++)
			send(&h->lab, i % LAB_TENANTS, i * 3, 12, i % 4 == 0 ? 30 : 5, &clock, &r);
		flush_all(h);
		for (uint32_t i = 0; i < 6; i++)
			send(&h->lab, i % 2, i * 5, 10, 6, &clock, &r);
		late = T0 + 50 + round; /* into windows that are blocks by now */
		send(&h->lab, round % LAB_TENANTS, round, 4, 3, &late, &r);
		if (round == 1) {
			house_close(h);
			assert_true(run->snaps.n > 0);
			must_open(h, &run->snaps.v[run->snaps.n - 1]);
			ship(h);
		}
		clock += RANGE / 2;
	}
	flush_all(h);
	for (int i = 0; i < 3000 && atomic_load(&h->removed) < 4; i++) { /* checkpoints settle cuts, and the shipper tidies up */
		shipper_notify(h->shipper);
		io_sleep_ms(10);
	}
	send(&h->lab, 0, 0, SERIES, 2, &clock, &r);
	struct wal_status st;
	wal_status(h->lab.wal, &st);
	run->segments = st.segment_now;
	run->removed = atomic_load(&h->removed);
	lab_compare_exact(&h->lab, gather(h), UINT64_MAX);
	run->blocks = blocks_check("the run itself", true);
	house_close(h);
	h->snaps = NULL;
	run->tape = sim_tape_take(h->lab.sim);
	if (run->blocks < 8 || run->removed < 4 || run->segments < 4)
		fail_msg("%s: %" PRIu64 " blocks, %" PRIu64 " removed, %" PRIu64 " segments: too little happened", state_name, run->blocks,
			run->removed, run->segments);
}

/* The newest catalog that a state after k operations can have. */
static const struct snap *snap_at(const struct snaps *s, uint64_t k)
{
	const struct snap *best = NULL;
	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].ops <= k && (!best || s->v[i].ops >= best->ops))
			best = &s->v[i];
	return best;
}

/* Starts on the disk in use, reads, lets the shipper go on when `deep`, reads again. */
static void state_check(struct house *h, const struct snap *catalog, uint64_t acked, bool deep)
{
	const char *what = state_name;
	struct err err = {0};
	if (house_open(h, catalog, &err) != OK)
		fail_msg("%s: start: %s", what, err.msg);
	lab_compare_exact(&h->lab, gather(h), acked);
	blocks_check(what, false);
	if (deep) {
		ship(h);
		if (shipper_flush(h->shipper, FLUSH_MS, &err) != OK)
			fail_msg("%s: ship: %s", what, err.msg);
		lab_compare_exact(&h->lab, gather(h), acked);
		blocks_check(what, true);
	}
	house_close(h);
}

static uint64_t next(uint64_t *x)
{
	return lab_random(x) >> 11;
}

/* One state after k operations, and when `again`, states of its recovery. Returns how many that were. */
static uint64_t one_state(struct house *h, struct run *run, uint64_t k, enum sim_loss loss, uint64_t *x, bool again)
{
	static struct snaps second_snaps;
	uint64_t states = 1;
	bool lost = next(x) % 8 == 0, deep = again || next(x) % 4 == 0;
	char text[200];
	snprintf(state_name, sizeof state_name, "seed %" PRIu64 ", %s after operation %" PRIu64 " (%s)%s", h->lab.seed, sim_loss_name(loss), k,
		sim_tape_text(run->tape, k, text, sizeof text), lost ? ", no catalog" : "");
	h->lab.sim = sim_tape_crash(run->tape, k, loss, h->lab.seed + k);
	sim_use(h->lab.sim);
	if (again) {
		second_snaps.n = 0;
		h->snaps = &second_snaps;
		sim_record(h->lab.sim);
	}
	const struct snap *catalog = lost ? NULL : snap_at(&run->snaps, k);
	state_check(h, catalog, k, deep);
	h->snaps = NULL;
	if (again) {
		struct sim_tape *second = sim_tape_take(h->lab.sim);
		struct sim *first = h->lab.sim;
		uint64_t n = sim_tape_len(second);
		size_t named = strlen(state_name);
		for (uint64_t k2 = 0; k2 <= n; k2 += full ? 1 : 1 + next(x) % (n / 4 + 1), states++) {
			enum sim_loss loss2 = (enum sim_loss)(next(x) % SIM_LOSSES);
			snprintf(state_name + named, sizeof state_name - named,
				"; then %s after operation %" PRIu64 " of %" PRIu64 " of the recovery", sim_loss_name(loss2), k2, n);
			h->lab.sim = sim_tape_crash(second, k2, loss2, h->lab.seed + k2);
			sim_use(h->lab.sim);
			const struct snap *at = snap_at(&second_snaps, k2);
			state_check(h, at ? at : catalog, k, next(x) % 4 == 0);
			sim_free(h->lab.sim);
		}
		sim_tape_free(second);
		snaps_free(&second_snaps);
		h->lab.sim = first;
	}
	sim_free(h->lab.sim);
	return states;
}

static void power_cut_anywhere_on_the_way(void **state)
{
	(void)state;
	static struct run run;
	uint64_t states = 0, x = seed;
	int64_t begin = io_mono_ms();
	for (uint64_t round = 0; states < (full ? STATES_FULL : STATES * 95 / 100); round++) {
		static struct house h;
		uint64_t run_seed = seed + round;
		snprintf(state_name, sizeof state_name, "seed %" PRIu64 ", while recording", run_seed);
		run_record(&h, &run, run_seed);
		h.lab.seed = run_seed;
		struct sim *whole = h.lab.sim;
		uint64_t n = sim_tape_len(run.tape), all = (n + 1) * SIM_LOSSES;
		uint64_t want = full ? all : (STATES - states) * 3 / 4; /* recoveries make up the rest */
		for (uint64_t k = 0; k <= n; k++)
			for (int loss = 0; loss < SIM_LOSSES; loss++)
				if (full || next(&x) % all < want)
					states += one_state(&h, &run, k, (enum sim_loss)loss, &x, next(&x) % (full ? 100 : 25) == 0);
		printf("seed %" PRIu64 ": %" PRIu64 " operations, %" PRIu64 " log segments, %" PRIu64 " blocks, %" PRIu64
		       " of them removed here; %" PRIu64 " states so far, %.0f a second\n",
			run_seed, n, run.segments, run.blocks, run.removed, states, (double)states * 1e3 / (double)(io_mono_ms() - begin + 1));
		sim_tape_free(run.tape);
		snaps_free(&run.snaps);
		h.lab.sim = whole;
		sim_use(whole);
		house_free(&h);
	}
	state_name[0] = 0;
}

/* ---- --wal.sync=interval ---- */

enum { INTERVAL_MS = 40, SENDS = 300, SLACK_MS = 250 /* a thread that is due waits for a core */ };

/* What was acknowledged longer ago than the interval and one sync is there; the oldest sample that any state lost is measured. */
static void the_interval_is_the_bound_on_the_whole_way(void **state)
{
	(void)state;
	static struct house h;
	static struct {
		uint64_t ops;
		int64_t ms;
	} clock[SENDS];
	static struct run run;
	uint64_t r = seed;
	int64_t t = T0, oldest = 0;
	house_init(&h, seed);
	h.lab.sync = WAL_SYNC_INTERVAL;
	h.lab.sync_interval_ms = INTERVAL_MS;
	run.snaps.n = 0;
	h.snaps = &run.snaps;
	sim_sync_delay(h.lab.sim, 3);
	sim_record(h.lab.sim);
	must_open(&h, NULL);
	ship(&h);
	for (uint32_t i = 0; i < SENDS; i++) {
		send(&h.lab, i % LAB_TENANTS, i % SERIES, 3, 2, &t, &r);
		clock[i].ops = sim_ops(h.lab.sim);
		clock[i].ms = io_mono_ms();
		if (i == SENDS / 2)
			flush_all(&h);
		io_sleep_ms(4);
	}
	house_close(&h);
	h.snaps = NULL;
	run.tape = sim_tape_take(h.lab.sim);
	struct sim *whole = h.lab.sim;
	uint64_t states = 0, lost = 0;
	for (uint32_t i = 10; i < SENDS; i += full ? 1 : 5) {
		for (int loss = 0; loss < SIM_LOSSES; loss += full ? 1 : 3, states++) {
			snprintf(state_name, sizeof state_name, "interval, seed %" PRIu64 ", %s after operation %" PRIu64, seed,
				sim_loss_name((enum sim_loss)loss), clock[i].ops);
			h.lab.sim = sim_tape_crash(run.tape, clock[i].ops, (enum sim_loss)loss, seed);
			sim_use(h.lab.sim);
			struct err err = {0};
			if (house_open(&h, snap_at(&run.snaps, clock[i].ops), &err) != OK)
				fail_msg("start: %s", err.msg);
			/* The oldest send of which a sample is not there. Sends are in order, and so is the log. */
			struct lab_series *found = gather(&h);
			uint32_t first_lost = i + 1;
			for (size_t s = 0; s < (size_t)LAB_TENANTS * LAB_SERIES; s++) {
				for (size_t m = 0; m < h.lab.series[s].n; m++) {
					const struct lab_sample *want = &h.lab.series[s].v[m];
					bool there = false;
					for (size_t f = 0; f < found[s].n && !there; f++)
						there = found[s].v[f].t == want->t && found[s].v[f].v == want->v;
					for (uint32_t k = 0; !there && k < first_lost; k++)
						if (want->acked <= clock[k].ops) {
							first_lost = k;
							lost++;
						}
				}
			}
			if (first_lost <= i) {
				int64_t age = clock[i].ms - clock[first_lost].ms;
				oldest = age > oldest ? age : oldest;
				if (age > INTERVAL_MS + SLACK_MS)
					fail_msg("%s: acknowledged %" PRId64 " ms before the cut, and lost", state_name, age);
			}
			lab_compare_exact(&h.lab, found, 0); /* nothing wrong, nothing twice */
			house_close(&h);
			sim_free(h.lab.sim);
		}
	}
	printf("interval %d ms: %" PRIu64 " states, the oldest acknowledged sample that one lost was %" PRId64 " ms old\n", INTERVAL_MS, states,
		oldest);
	assert_true(lost > 0); /* else the test would see nothing */
	sim_tape_free(run.tape);
	snaps_free(&run.snaps);
	h.lab.sim = whole;
	sim_use(whole);
	house_free(&h);
	state_name[0] = 0;
}

static int say_where(void **state)
{
	(void)state;
	if (state_name[0])
		print_message("the state was: %s (VARVE_SEED=%" PRIu64 ")\n", state_name, seed);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(power_cut_anywhere_on_the_way, say_where),
		cmocka_unit_test_teardown(the_interval_is_the_bound_on_the_whole_way, say_where),
	};
	/* Without it sqlite3_free locks, by a tail call that a thread sanitizer takes for ours. */
	assert_int_equal(sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0), SQLITE_OK);
	const char *f = getenv("VARVE_FULL"), *s = getenv("VARVE_SEED");
	full = f && *f == '1';
	io_posix.random(&seed, sizeof seed);
	seed = s ? strtoull(s, NULL, 10) : seed % 1000000;
	print_message("seed %" PRIu64 "\n", seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
