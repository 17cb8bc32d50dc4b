/* cmd/cmd_background.c - what goes on beside requests: the disk watermark once a second, the limits file, the bucket audit, local rescans.
 *
 * Two threads: the watermark must answer within seconds of space returning, whatever an audit of a slow bucket is doing.
 */
#include <inttypes.h>
#include <pthread.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cmd/cmd_int.h"

enum {
	DISK_TICK_MS = 1000,
	LIMITS_TICK_MS = 500,
	CATALOG_TICK_MS = 1000,
	RESCAN_INTERVAL_MS = 60000,
	AUDIT_RETRY_FIRST_MS = 5000,
	AUDIT_RETRY_MAX_MS = 300000
};

static struct {
	pthread_t disk, audit;
	bool started, audits;
	pthread_mutex_t mu;
	pthread_cond_t wake; /* CLOCK_MONOTONIC */
	bool stop;
} bg = {.mu = PTHREAD_MUTEX_INITIALIZER};

/* Sleeps up to ms; true: stopping. */
static bool nap(struct server *s, int64_t ms)
{
	int64_t until = io_mono_ns() + ms * 1000000;
	struct timespec t = {until / 1000000000, until % 1000000000};
	pthread_mutex_lock(&bg.mu);
	while (!bg.stop && !atomic_load(&s->audit_now))
		if (pthread_cond_timedwait(&bg.wake, &bg.mu, &t) != 0)
			break;
	bool stop = bg.stop;
	pthread_mutex_unlock(&bg.mu);
	return stop;
}

static bool nap_disk(int64_t ms)
{
	int64_t until = io_mono_ns() + ms * 1000000;
	struct timespec t = {until / 1000000000, until % 1000000000};
	pthread_mutex_lock(&bg.mu);
	while (!bg.stop)
		if (pthread_cond_timedwait(&bg.wake, &bg.mu, &t) != 0)
			break;
	bool stop = bg.stop;
	pthread_mutex_unlock(&bg.mu);
	return stop;
}

static void disk_tick(struct server *s, struct metric *free_metric, struct metric *low_metric)
{
	uint64_t total, free_bytes;
	struct err err = {0};
	if (io_statfs(s->dir.path, &total, &free_bytes, &err) != OK) {
		log_warn("free disk space is unknown", LERR(&err));
		return;
	}
	uint64_t reserve = s->flags->disk_reserve;
	if (!s->flags->disk_reserve_set) {
		reserve = total / 100 * 3 > GIB ? total / 100 * 3 : GIB;
		/* A small volume would be all reserve. */
		if (reserve > total / 4)
			reserve = total / 4;
	}
	metric_set(free_metric, (double)free_bytes);
	bool low = free_bytes < reserve;
	metric_set(low_metric, low);
	if (low != atomic_exchange(&s->disk_low, low)) {
		if (low)
			log_warn("disk below its reserve: writes are answered 503 until there is room", LU64("free", free_bytes),
				LU64("reserve", reserve), LSTR("flag", "--disk.reserve"));
		else
			log_info("disk above its reserve again: writes go on", LU64("free", free_bytes), LU64("reserve", reserve));
		server_gate(s);
	}
}

static void *disk_main(void *arg)
{
	struct server *s = arg;
	struct metric *free_metric = metric_gauge("varve_disk_free_bytes", "Free bytes on the data directory's file system");
	struct metric *low_metric = metric_gauge("varve_disk_low", "1 while the disk is below --disk.reserve and writes are refused");
	for (int64_t ms = 0;; ms += LIMITS_TICK_MS) {
		if (s->dir.path && ms % DISK_TICK_MS == 0)
			disk_tick(s, free_metric, low_metric);
		if (s->ingest)
			ingest_tick(s->ingest);
		server_cluster_tick(s);
		if (nap_disk(LIMITS_TICK_MS))
			break;
	}
	return NULL;
}

static void audit_progress(void *arg, uint64_t done, uint64_t total)
{
	(void)arg;
	log_info("bucket audit", LU64("blocks_read", done), LU64("blocks_new", total));
}

static errc audit_once(struct server *s, struct err *err)
{
	struct catalog_audit_stats st = {0};
	const struct catalog_audit_options opt = {.progress = audit_progress};
	errc rc = catalog_audit(s->catalog, s->bucket, &opt, &st, err);
	if (rc == OK && (st.added || st.removed || st.changed || st.bad))
		log_info("bucket audit done", LU64("blocks", st.blocks), LU64("added", st.added), LU64("removed", st.removed),
			LU64("changed", st.changed), LU64("partial", st.partial), LU64("bad", st.bad), LU64("list_pages", st.pages),
			LI64("ms", st.duration_ms));
	metric_add(metric_counter("varve_bucket_audit_bad_blocks_total", "Blocks that an audit found with a meta.json that can't be used"), st.bad);
	return rc;
}

/* Audits at start when the catalog was new or set aside, then every interval; a failing bucket is asked again with growing pauses. */
static void *audit_main(void *arg)
{
	struct server *s = arg;
	int64_t interval = s->flags->bucket_audit_interval_ms;
	bool due = s->catalog_rebuilt || interval > 0;
	int64_t retry_ms = AUDIT_RETRY_FIRST_MS;
	int64_t next_audit = 0, next_scan = io_mono_ms() + RESCAN_INTERVAL_MS;
	struct metric *failures = metric_counter("varve_bucket_audit_failures_total", "Audits of the bucket that ended with an error");
	uint64_t owed_before = 0;
	/* What a snapshot does not know its feeds tell, or an audit is owed. */
	if (s->catalog_rebuilt && server_feed_fill(s)) {
		due = interval > 0;
		next_audit = io_mono_ms() + interval;
	}
	for (;;) {
		int64_t now = io_mono_ms();
		/* What a peer could not tell any more is found now, not at the next interval. */
		uint64_t owed = catalog_owed(s->catalog);
		if (owed > owed_before) {
			due = true;
			next_audit = now;
			owed_before = owed;
		}
		catalog_watch(s->catalog);
		if (catalog_damaged(s->catalog)) {
			struct err err = {0};
			if (catalog_reset(s->catalog, &err) == OK && server_scan_blocks(s, false, &err) == OK) {
				bool filled = server_feed_fill(s);
				due = !filled || interval > 0;
				next_audit = filled ? io_mono_ms() + interval : 0;
				owed_before = 0;
			} else {
				log_error("the damaged catalog could not be made anew; it is tried again", LERR(&err));
			}
		}
		if ((due && now >= next_audit) || atomic_exchange(&s->audit_now, false)) {
			struct err err = {0};
			errc rc = audit_once(s, &err);
			if (rc == OK) {
				retry_ms = AUDIT_RETRY_FIRST_MS;
				due = interval > 0;
				next_audit = io_mono_ms() + interval;
			} else if (rc != ERR_CANCELED) {
				metric_add(failures, 1);
				log_warn("bucket audit failed, blocks of others are not seen until it works", LI64("retry_ms", retry_ms), LERR(&err));
				due = true;
				next_audit = io_mono_ms() + retry_ms;
				retry_ms = retry_ms * 2 < AUDIT_RETRY_MAX_MS ? retry_ms * 2 : AUDIT_RETRY_MAX_MS;
			}
		}
		if (now >= next_scan) {
			struct err err = {0};
			if (server_scan_blocks(s, false, &err) != OK)
				log_warn("local blocks could not be listed", LERR(&err));
			else
				shipper_notify(s->shipper);
			next_scan = now + RESCAN_INTERVAL_MS;
		}
		int64_t until = due && next_audit < next_scan ? next_audit : next_scan;
		int64_t ms = until - io_mono_ms();
		/* Short naps: damage that a read met is mended within a second. */
		if (nap(s, ms > CATALOG_TICK_MS ? CATALOG_TICK_MS : ms > 1 ? ms : 1))
			return NULL;
	}
}

errc background_start(struct server *s, struct err *err)
{
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&bg.wake, &attr);
	pthread_condattr_destroy(&attr);
	bg.stop = false;
	if (pthread_create(&bg.disk, NULL, disk_main, s) != 0)
		return err_set(err, ERR_NOMEM, "a thread could not be started");
	bg.audits = s->catalog != NULL;
	if (bg.audits && pthread_create(&bg.audit, NULL, audit_main, s) != 0) {
		bg.started = false;
		pthread_mutex_lock(&bg.mu);
		bg.stop = true;
		pthread_cond_broadcast(&bg.wake);
		pthread_mutex_unlock(&bg.mu);
		pthread_join(bg.disk, NULL);
		return err_set(err, ERR_NOMEM, "a thread could not be started");
	}
	bg.started = true;
	return OK;
}

void background_audit_now(struct server *s)
{
	atomic_store(&s->audit_now, true);
	pthread_mutex_lock(&bg.mu);
	pthread_cond_broadcast(&bg.wake);
	pthread_mutex_unlock(&bg.mu);
}

void background_stop(struct server *s)
{
	(void)s;
	if (!bg.started)
		return;
	pthread_mutex_lock(&bg.mu);
	bg.stop = true;
	pthread_cond_broadcast(&bg.wake);
	pthread_mutex_unlock(&bg.mu);
	pthread_join(bg.disk, NULL);
	if (bg.audits)
		pthread_join(bg.audit, NULL);
	pthread_cond_destroy(&bg.wake);
	bg.started = false;
}
