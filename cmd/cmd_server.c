/* cmd/cmd_server.c - `varve` without a subcommand: opens the parts in the order in which they stand on each other, and closes them backwards.
 *
 *     data dir (lock, version) ─ bucket ─ catalog ─ log ─ head ─ local blocks ─ peers ─ query ─ ingest (gate closed) ─ HTTP ─ shipper
 *                                                                                                   │
 *     replay thread: wal_replay ─▶ head_start ─▶ gate open, ready, systemd told                     ▼
 *     main thread: waits for SIGTERM, SIGINT (stop), SIGHUP (reload), or a part that gives up (exit 3)
 *
 * Which of the parts there are is --target's matter: a router has no data directory and nothing that stands on one.
 *
 * SIGTERM: writes get 503, running requests end, the log is synced and kept: no block is cut for it, the next start replays. A snapshot of the head
 * may be written for that.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cmd/cmd_int.h"

enum { HANDOVER_SPARE_MS = 60000 /* a directory stays so much longer than it is answered from */ };

void server_stop(struct server *s, int exit_code)
{
	int expected = EXIT_CLEAN;
	if (exit_code != EXIT_CLEAN)
		atomic_compare_exchange_strong(&s->exit_code, &expected, exit_code);
	atomic_store(&s->stopping, true);
	kill(getpid(), SIGTERM);
}

void server_gate(struct server *s)
{
	if (!s->ingest)
		return;
	switch (atomic_load(&s->phase)) {
	case PHASE_READY:
		if (atomic_load(&s->left))
			ingest_gate(s->ingest, ERRID_SHUTTING_DOWN, "this node has drained and is going: send it to another one");
		else if (atomic_load(&s->disk_low))
			ingest_gate(s->ingest, ERRID_DISK_FULL, "the disk is below its reserve (--disk.reserve): writes go on when there is room");
		else
			ingest_gate(s->ingest, ERRID_NONE, NULL);
		break;
	case PHASE_STOPPING:
		ingest_gate(s->ingest, ERRID_SHUTTING_DOWN, "the server is stopping");
		break;
	case PHASE_FAILED:
		ingest_gate(s->ingest, ERRID_STORAGE_FAILED, "the log has failed: the process is going down and will replay");
		break;
	default:
		ingest_gate(s->ingest, ERRID_NOT_READY, "the log is being replayed: see /-/ready and /api/v1/status/walreplay");
		break;
	}
}

/* ---- callbacks of the parts ---- */

static void log_failed(void *arg, const struct err *why)
{
	struct server *s = arg;
	log_error("the log failed: nothing more is acknowledged, the process exits with code 3; what was acknowledged is in the log", LERR(why));
	atomic_store(&s->phase, PHASE_FAILED);
	server_gate(s);
	server_stop(s, EXIT_STORAGE);
}

static errc block_cut(void *arg, const char *dir, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	struct server *s = arg;
	log_debug("block noted", LULID("block", meta->ulid), LSPAN("tenant", labels_get(meta->ext_labels, SPAN("tenant_id"))),
		LI64("min_time", meta->mint), LI64("max_time", meta->maxt), LU64("series", meta->n_series), LU64("samples", meta->n_samples),
		LU64("bytes", bytes), LSTR("dir", dir));
	errc rc = catalog_add_local(s->catalog, meta, bytes, err);
	shipper_notify(s->shipper);
	return rc;
}

static void cut_failed(void *arg, const struct err *why)
{
	(void)arg;
	log_error("a block could not be cut; its samples stay in the head and in the log, and it is tried again", LERR(why));
}

static bool may_remove(void *arg, struct ulid block)
{
	struct server *s = arg;
	/* Until replay is over the head does not know what the log still holds. */
	int phase = atomic_load(&s->phase);
	return (phase == PHASE_READY || phase == PHASE_STOPPING) && (!s->head || head_cut_settled(s->head, block) || tenant_delete_covers(s, block));
}

static int64_t gone_upto(void *arg, struct span tenant)
{
	const struct server *s = arg;
	return catalog_hidden_upto(s->catalog, tenant);
}

static bool forget(void *arg, struct ulid block)
{
	struct server *s = arg;
	return query_forget(s->query, block);
}

static void removed(void *arg, struct ulid block)
{
	struct server *s = arg;
	query_removed(s->query, block);
}

/* ---- replay ---- */

static void replay_progress(void *arg, uint64_t first, uint64_t last, uint64_t now)
{
	struct server *s = arg;
	atomic_store(&s->replay_first, first);
	atomic_store(&s->replay_last, last);
	atomic_store(&s->replay_now, now < last ? now : last);
	char text[96];
	snprintf(text, sizeof text, "STATUS=replaying the log: segment %" PRIu64 " of %" PRIu64 " to %" PRIu64 "\nEXTEND_TIMEOUT_USEC=60000000", now,
		first, last);
	notify_systemd(text);
}

static errc replay_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct server *s = arg;
	if (atomic_load(&s->stopping))
		return err_set(err, ERR_CANCELED, "stopped during replay");
	return head_replay_frame(s->head, f, err);
}

static void *replay_main(void *arg)
{
	struct server *s = arg;
	struct err err = {0};
	struct wal_replay_stats st = {0};
	errc rc = s->head ? head_load(s->head, &err) : OK;
	if (s->head && rc == OK)
		rc = wal_replay(s->wal, replay_frame, s, replay_progress, &st, &err);
	if (s->head && rc == OK)
		rc = head_start(s->head, &err);
	if (rc != OK) {
		if (rc != ERR_CANCELED) {
			log_error("the log could not be replayed", LSTR("class", errc_name(rc)), LERR(&err));
			server_stop(s, rc == ERR_CORRUPT ? EXIT_DAMAGED : EXIT_STORAGE);
		}
		return NULL;
	}
	if (s->head)
		log_info("log replayed", LU64("segments", st.segments), LU64("frames", st.frames), LU64("samples", st.samples),
			LU64("frames_lost", st.frames_lost), LU64("samples_lost", st.samples_lost), LI64("ms", st.duration_ms));
	int expected = PHASE_REPLAY;
	if (atomic_compare_exchange_strong(&s->phase, &expected, PHASE_READY)) {
		server_gate(s);
		if (s->shipper)
			shipper_notify(s->shipper);
		server_cluster_ready(s);
		server_repair_ready(s);
		log_info("ready", LSTR("address", s->flags->http_address), LU64("port", http_server_port(s->http)), LSTR("target", s->flags->target),
			LSTR("bucket", s->bucket ? bucket_describe(s->bucket) : ""));
		notify_systemd("READY=1\nSTATUS=ready");
	}
	return NULL;
}

/* ---- open and close ---- */

static errc read_objstore(struct server *s, const char **name, struct span *text, struct err *err)
{
	const struct server_flags *f = s->flags;
	*name = f->objstore_config_file ? f->objstore_config_file : "--objstore.config";
	*text = span_cstr(f->objstore_config ? f->objstore_config : "");
	errc rc = f->objstore_config_file ? io_read_file(f->objstore_config_file, LIMIT_CONFIG_BYTES, &s->arena, text, err) : OK;
	if (rc != OK) {
		err_wrap(err, "--objstore.config-file can't be read");
		if (rc == ERR_IO)
			rc = ERR_INVALID; /* the operator's to mend, not the disk under our data */
	}
	/* Named but empty, as a template that was not filled in leaves it: the default bucket would swallow the blocks silently. */
	if (rc == OK && (f->objstore_config_file || f->objstore_config) && strspn(text->p, " \t\r\n") >= text->n)
		rc = err_set(err, ERR_INVALID, "%s is empty: it must name a bucket (type: S3 or FILESYSTEM), or not be given", *name);
	return rc;
}

static errc make_paths(struct server *s, struct err *err)
{
	const struct {
		const char **into, *name;
	} paths[] = {
		{&s->wal_dir, "wal"},
		{&s->block_dir, "blocks"},
		{&s->chunk_dir, "head"},
		{&s->cache_dir, "cache"},
		{&s->bucket_default_dir, "bucket"},
		{&s->catalog_path, "catalog.sqlite"},
		{&s->roster_path, "roster.json"},
		{&s->peers_path, "peers.json"},
		{&s->hints_dir, "hints"},
		{&s->feed_file, "catalog.snapshot"},
	};
	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
		*paths[i].into = arena_printf(&s->arena, "%s/%s", s->dir.path, paths[i].name);
		if (!*paths[i].into)
			return err_set(err, ERR_NOMEM, "no memory for paths");
	}
	const char *const dirs[] = {s->wal_dir, s->block_dir, s->chunk_dir, s->cache_dir};
	for (size_t i = 0; i < sizeof dirs / sizeof dirs[0]; i++) {
		errc rc = io_mkdir(dirs[i], err);
		if (rc != OK)
			return rc;
	}
	return io_fsync_dir(s->dir.path, err);
}

static enum wal_sync sync_mode(const char *word)
{
	return strcmp(word, "interval") == 0 ? WAL_SYNC_INTERVAL : strcmp(word, "os") == 0 ? WAL_SYNC_OS : WAL_SYNC_ACK;
}

static struct labels_limits labels_limits_of(const struct server_flags *f)
{
	return (struct labels_limits){(uint32_t)f->ingest_max_labels, (uint32_t)f->ingest_max_label_name, (uint32_t)f->ingest_max_label_value};
}

/* The log and what is in memory: of who stores. */
static errc open_store(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	errc rc = OK;
	const struct wal_config wal = {
		.dir = s->wal_dir,
		.sync = sync_mode(f->wal_sync),
		.sync_interval_ms = f->wal_sync_interval_ms,
		.segment_bytes = f->wal_segment_size,
		.on_fatal = log_failed,
		.on_fatal_arg = s,
	};
	TRY(wal_open(&wal, &s->wal, err));
	const struct head_config head = {
		.chunk_dir = s->chunk_dir,
		.block_dir = s->block_dir,
		.wal = s->wal,
		.block_range_ms = f->head_block_range_ms,
		.cut_delay_ms = f->head_cut_delay_ms,
		.max_age_ms = f->head_max_age_ms,
		.max_memory_bytes = f->head_max_memory,
		.wal_max_bytes = f->wal_max_size,
		.max_exemplars = f->exemplars_max,
		.max_metadata = (uint32_t)f->metadata_max,
		.labels = labels_limits_of(f),
		.ext_labels = s->ext_labels,
		.node = span_cstr(s->dir.node),
		.shards = (uint32_t)f->head_shards,
		.snapshot_tail_bytes = f->head_snapshot_tail,
		.on_block = block_cut,
		.on_block_arg = s,
		.on_cut_failed = cut_failed,
	};
	TRY(block_clean_dir(s->block_dir, err));
	TRY(head_open(&head, &s->head, err));
fail:
	return rc;
}

/* What stands on a data directory. */
static errc open_data(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	errc rc = OK;
	const char *objstore_name;
	struct span objstore;
	TRY(read_objstore(s, &objstore_name, &objstore, err));
	TRY(data_dir_open(f->data_dir, &s->dir, err));
	TRY(make_paths(s, err));
	TRY(server_labels(f, &s->arena, &s->ext_labels, err));
	TRY(bucket_open(objstore_name, objstore, s->bucket_default_dir, &s->bucket, err));
	const struct catalog_config catalog = {.path = s->catalog_path, .node = s->dir.node};
	TRY(catalog_open(&catalog, &s->catalog, &s->catalog_rebuilt, err));
	if (f->roles & ROLE_INGEST)
		TRY(open_store(s, err));
	TRY(server_scan_blocks(s, true, err));
fail:
	return rc;
}

static errc open_query(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	struct query_fleet fleet;
	bool many = server_fleet(s, &fleet);
	size_t n = f->query_replica_labels.n;
	const char **replica = arena_alloc(&s->arena, (n + 1) * sizeof(char *));
	if (!replica)
		return err_set(err, ERR_NOMEM, "no memory for labels");
	replica[0] = NODE_LABEL;
	for (size_t i = 0; i < n; i++)
		replica[i + 1] = f->query_replica_labels.v[i];
	const struct query_config query = {
		.head = s->head,
		.catalog = s->catalog,
		.bucket = s->bucket,
		.block_dir = s->block_dir,
		.cache_dir = s->cache_dir,
		.cache_bytes = f->cache_dir_size,
		.ext_labels = s->ext_labels,
		.max_samples = f->query_max_samples,
		.max_memory_bytes = f->query_max_memory,
		.timeout_ms = f->query_timeout_ms,
		.replica_labels = replica,
		.n_replica_labels = n + 1,
		.fleet = many ? &fleet : NULL,
		.handover_ms = server_handover_ms(f),
	};
	return query_open(&query, &s->query, err);
}

static errc open_parts(struct server *s, struct err *err)
{
	const struct server_flags *f = s->flags;
	errc rc = OK;
	if (f->roles != ROLE_ROUTE)
		TRY(open_data(s, err));
	TRY(server_cluster_open(s, err));
	if (s->catalog)
		TRY(open_query(s, err));
	TRY(server_rings_open(s, err));
	TRY(server_feed_open(s, err));
	if (f->roles & (ROLE_INGEST | ROLE_ROUTE)) {
		const struct ingest_config ingest = {
			.head = s->head,
			.wal = s->wal,
			.cluster = s->cluster,
			.rings = s->rings,
			.trust = s->trust,
			.self = s->self,
			.peer_timeout_ms = f->peer_timeout_ms,
			.max_body_bytes = f->ingest_max_body,
			.max_inflight_bytes = f->ingest_max_inflight,
			.max_series_per_request = (uint32_t)f->ingest_max_series,
			.max_samples_per_request = (uint32_t)f->ingest_max_samples,
			.oldest_ms = f->ingest_oldest_ms,
			.created_zero = f->ingest_created_zero,
			.future_ms = f->ingest_future_ms,
			.labels = labels_limits_of(f),
			.limits_file = f->limits_file,
			.gone_upto = s->catalog ? gone_upto : NULL,
			.gone_arg = s,
			.split_label = f->tenant_split_label && *f->tenant_split_label ? f->tenant_split_label : NULL,
			.ring_remember_ms = server_ring_remember_ms(f),
		};
		TRY(ingest_open(&ingest, &s->ingest, err));
		TRY(server_repair_open(s, err));
	}
	TRY(server_leave_open(s, err));
	server_gate(s);
	if (s->catalog)
		TRY(tenant_delete_start(s, err));
	TRY(server_listen(s, err));
	if (s->catalog) {
		/* Other nodes may not know of a block yet: they ask for it here (query_fleet_int.h), and the directory answers. */
		int64_t handover_ms = server_handover_ms(f), keep_ms = handover_ms > 0 ? handover_ms + HANDOVER_SPARE_MS : 0;
		const struct shipper_config shipper = {
			.block_dir = s->block_dir,
			.bucket = s->bucket,
			.catalog = s->catalog,
			.may_remove = may_remove,
			.forget = forget,
			.removed = removed,
			.arg = s,
			.local_keep_ms = f->blocks_keep_local_ms > keep_ms ? f->blocks_keep_local_ms : keep_ms,
		};
		TRY(shipper_start(&shipper, &s->shipper, err));
	}
	TRY(background_start(s, err));
fail:
	return rc;
}

/* A read that waits for a slow bucket may do so until the grace is over, and no longer. */
struct last_call {
	struct server *s;
	pthread_t thread;
	pthread_mutex_t mu;
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool over;	     /* guarded by mu */
};

static void *last_call_main(void *arg)
{
	struct last_call *c = arg;
	int64_t until = io_mono_ns() + c->s->flags->shutdown_grace_ms * 1000000;
	struct timespec t = {until / 1000000000, until % 1000000000};
	pthread_mutex_lock(&c->mu);
	while (!c->over)
		if (pthread_cond_timedwait(&c->wake, &c->mu, &t) != 0)
			break;
	pthread_mutex_unlock(&c->mu);
	if (c->s->query)
		query_cancel(c->s->query);
	if (c->s->bucket)
		bucket_cancel(c->s->bucket);
	return NULL;
}

static void stop_http(struct server *s)
{
	struct last_call c = {.s = s, .mu = PTHREAD_MUTEX_INITIALIZER};
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c.wake, &attr);
	pthread_condattr_destroy(&attr);
	if (s->head)
		head_release(s->head);
	if (s->shipper)
		shipper_release(s->shipper);
	feed_release(s->feed); /* peers' questions are held */
	bool watched = pthread_create(&c.thread, NULL, last_call_main, &c) == 0;
	if (!watched && s->query)
		query_cancel(s->query);
	if (!watched && s->bucket) /* without patience rather than without end */
		bucket_cancel(s->bucket);
	http_server_stop(s->http, s->flags->shutdown_grace_ms);
	if (watched) {
		pthread_mutex_lock(&c.mu);
		c.over = true;
		pthread_cond_signal(&c.wake);
		pthread_mutex_unlock(&c.mu);
		pthread_join(c.thread, NULL);
	}
	pthread_cond_destroy(&c.wake);
}

static void close_parts(struct server *s)
{
	repair_cancel(s->repair); /* a digest may take a while */
	if (s->http)
		stop_http(s);
	server_leave_close(s);
	if (s->bucket)
		bucket_cancel(s->bucket);
	tenant_delete_stop();
	background_stop(s);
	head_stop(s->head); /* its cutter tells the shipper of blocks; the shipper asks the head until it has stopped */
	if (s->shipper)
		shipper_stop(s->shipper);
	server_feed_close(s);
	server_cluster_close(s); /* its writes still wait for the log; its rings are told to reads */
	if (s->query)
		query_close(s->query);
	ingest_close(s->ingest);
	head_close(s->head);
	wal_close(s->wal);
	if (s->catalog)
		catalog_close(s->catalog);
	if (s->bucket)
		bucket_close(s->bucket);
	data_dir_close(&s->dir);
	arena_free(&s->arena);
}

static void collect(void *arg)
{
	struct server *s = arg;
	metric_set(metric_gauge("varve_ready", "1 when the log is replayed and writes are taken"), atomic_load(&s->phase) == PHASE_READY);
	struct head_status head;
	if (s->head)
		head_status(s->head, &head);
	if (!s->shipper)
		return;
	struct shipper_status st;
	shipper_status(s->shipper, &st);
	metric_set(metric_gauge("varve_ship_pending_blocks", "Blocks on disk that are not in the bucket"), (double)st.pending_blocks);
	metric_set(metric_gauge("varve_ship_pending_bytes", "Bytes of blocks on disk that are not in the bucket"), (double)st.pending_bytes);
	metric_set(metric_gauge("varve_ship_oldest_pending_seconds", "Age of the oldest block that is not in the bucket"),
		(double)st.oldest_pending_ms / 1000);
	uint64_t digest, live;
	if (catalog_digest(s->catalog, &digest, &live, NULL) == OK) {
		metric_set(metric_gauge("varve_catalog_digest",
				   "Of the live blocks that the catalog knows, its low 48 bits: equal on nodes that plan the same blocks"),
			(double)(digest & ((UINT64_C(1) << 48) - 1)));
		metric_set(metric_gauge("varve_catalog_live_blocks", "Blocks in the bucket that plans are made of"), (double)live);
	}
}

/* Waits for signals; returns when it is time to stop. */
static void wait_for_end(struct server *s, const sigset_t *set)
{
	for (;;) {
		int sig = sigwaitinfo(set, NULL);
		if (sig < 0 && errno == EINTR)
			continue;
		if (sig == SIGHUP) {
			struct err err = {0};
			if (server_reload(s, &err) == OK)
				background_audit_now(s);
			continue;
		}
		if (!atomic_exchange(&s->stopping, true))
			log_info("stopping: running requests end, the log is kept", LSTR("signal", sig == SIGINT ? "SIGINT" : "SIGTERM"));
		return;
	}
}

/* Each connection is a descriptor; shells start programs with 1,024 of what the system allows. */
static void raise_open_files(void)
{
	struct rlimit lim;
	if (getrlimit(RLIMIT_NOFILE, &lim) != 0 || lim.rlim_cur >= lim.rlim_max)
		return;
	lim.rlim_cur = lim.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &lim) != 0)
		log_warn("the limit of open files could not be raised", LU64("limit", lim.rlim_cur));
}

static int run(struct server *s)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread, so that all inherit it */
	signal(SIGPIPE, SIG_IGN);
	raise_open_files();

	struct err err = {0};
	s->started_ms = io_now_ms();
	log_info("varve starts", LSTR("version", VARVE_VERSION), LSTR("target", s->flags->target),
		LSTR("data_dir", s->flags->roles == ROLE_ROUTE ? "" : s->flags->data_dir), LSTR("wal_sync", s->flags->wal_sync));
	errc rc = open_parts(s, &err);
	if (rc != OK) {
		log_error("start failed", LERR(&err));
		int code = rc == ERR_IO ? EXIT_STORAGE : rc == ERR_CORRUPT ? EXIT_DAMAGED : EXIT_USAGE;
		fprintf(stderr, "varve: %s\n", err.msg);
		atomic_store(&s->stopping, true);
		close_parts(s);
		return code;
	}
	metrics_on_collect(collect, s); /* not before everything that it asks is there */
	atomic_store(&s->phase, PHASE_REPLAY);
	server_gate(s);
	pthread_t replay;
	if (pthread_create(&replay, NULL, replay_main, s) != 0) {
		close_parts(s);
		fprintf(stderr, "varve: a thread could not be started\n");
		return EXIT_USAGE;
	}
	wait_for_end(s, &set);
	int phase = atomic_load(&s->phase);
	if (phase != PHASE_FAILED)
		atomic_store(&s->phase, PHASE_STOPPING);
	server_gate(s);
	notify_systemd("STOPPING=1");
	pthread_join(replay, NULL);
	close_parts(s);
	int code = atomic_load(&s->exit_code);
	if (code == EXIT_CLEAN)
		log_info("stopped");
	return code;
}

int cmd_server(int argc, char **argv)
{
	static struct server_flags flags;
	static struct server server;
	struct err err = {0};
	struct arena arena;
	arena_init(&arena, 16 * MIB);
	size_t n;
	struct flag *table = server_flag_table(&flags, &n);
	struct flag_program program = {
		.usage = "varve [FLAGS]            run the server\n"
			 "       varve wal inspect DIR    what is in a log\n"
			 "       varve bucket ls|inspect ULID|verify [ULID]|rebuild    blocks, with or beside a running server\n"
			 "       varve ring show|check|where FILE, diff OLD NEW        hashrings: who holds what, and what a change moves\n"
			 "       varve control                                         the ring controller on Kubernetes\n"
			 "       varve drain [URL]                                     a running varve leaves its ring, in good order\n"
			 "       varve digest URL...                                   do replicas hold the same?\n"
			 "       varve tenants [URL]                                   who holds what, and sends how much\n"
			 "       varve bench write                                     a load that can be repeated, for any receiver",
		.about = "Long-term storage for Prometheus metrics: remote write in, two-hour blocks in a bucket out, nothing acknowledged lost.\n"
			 "Without flags: data under ./data, its bucket in ./data/bucket, listening on 127.0.0.1:19291.",
		.flags = table,
		.n_flags = n,
	};
	enum flags_action action = FLAGS_RUN;
	errc rc = flags_parse(&program, argc, argv, &arena, NULL, &action, &err);
	int code = EXIT_CLEAN;
	if (rc == OK && action == FLAGS_RUN) {
		for (size_t i = 0; i < n; i++) {
			flags.head_cut_delay_set |= table[i].set && table[i].into == &flags.head_cut_delay_ms;
			flags.disk_reserve_set |= table[i].set && table[i].into == &flags.disk_reserve;
			flags.ring_remember_set |= table[i].set && table[i].into == &flags.ring_remember_ms;
			flags.hints_max_age_set |= table[i].set && table[i].into == &flags.hints_max_age_ms;
		}
		rc = server_flags_check(&flags, &err);
	}
	if (rc != OK) {
		code = cmd_fail(EXIT_USAGE, &err);
	} else if (action == FLAGS_RUN) {
		enum log_level level;
		enum log_format format;
		ASSERT(log_level_parse(flags.log_level, &level) && log_format_parse(flags.log_format, &format));
		log_setup(level, format);
		server.flags = &flags;
		server.dir.lock_fd = -1;
		arena_init(&server.arena, 64 * MIB);
		code = run(&server);
	}
	arena_free(&arena);
	return code;
}
