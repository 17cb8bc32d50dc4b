/* head/head.c - opening, closing, status. See head/head.h. */
#include <stdio.h>
#include <unistd.h>
#include "head/head_int.h"

static const double cut_seconds_bounds[] = {0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300};

static void metrics_open(struct head_metrics *m)
{
	m->series = metric_gauge("varve_head_series", "Series in memory, all tenants");
	m->windows = metric_gauge("varve_head_windows", "Windows in memory that are not blocks yet");
	m->memory = metric_gauge("varve_head_memory_bytes", "Bytes that the head holds; --head.max-memory is their limit");
	m->appended = metric_counter("varve_head_samples_appended_total", "Samples stored");
	m->duplicate = metric_counter("varve_head_samples_duplicate_total", "Samples that were there already, same time and value");
	m->late =
		metric_counter("varve_head_samples_out_of_order_total", "Samples stored that were not newer than their series' newest in the window");
	m->created = metric_counter("varve_head_series_created_total", "Series made");
	m->cut = metric_counter("varve_head_blocks_cut_total", "Windows written as blocks");
	m->cut_failures = metric_counter("varve_head_cut_failures_total", "Cuts of a window that failed and are tried again");
	m->cut_seconds = metric_histogram("varve_head_cut_duration_seconds", "Time to write a window as a block", cut_seconds_bounds,
		sizeof cut_seconds_bounds / sizeof *cut_seconds_bounds);
	m->unknown =
		metric_counter("varve_head_replay_unknown_series_samples_total", "Samples in the log whose series' definitions were lost to damage");
	m->checkpoints = metric_counter("varve_head_checkpoints_total", "Checkpoints of the log written");
	m->snapshots = metric_counter("varve_snapshot_written_total", "Snapshots of the head written, from which a start needs the log's tail only");
	m->snapshot_failures = metric_counter("varve_snapshot_failures_total", "Snapshots of the head that could not be written or were dropped");
	m->snapshot_seconds = metric_gauge("varve_snapshot_duration_seconds", "Time that writing the newest snapshot took");
	m->snapshot_bytes = metric_gauge("varve_snapshot_bytes", "Size of the newest snapshot");
	m->snapshot_loaded = metric_gauge("varve_snapshot_loaded", "1 when this process began with a snapshot and the log's tail");
	m->snapshot_age = metric_gauge("varve_snapshot_age_seconds", "Age of the newest snapshot; -1: there is none");
	m->chunk_write_failures = metric_counter("varve_head_chunk_write_failures_total", "Writes of full chunks that failed; they stay in memory");
	m->exemplars = metric_gauge("varve_head_exemplars", "Exemplars in memory, all tenants; --exemplars.max is their limit");
	m->exemplars_evicted = metric_counter("varve_head_exemplars_evicted_total", "Exemplars that gave their place to newer ones");
	m->metadata = metric_gauge("varve_head_metadata", "Metadata entries in memory, all tenants");
	static const enum errid ids[] = {ERRID_PROTOBUF, ERRID_NO_METRIC_NAME, ERRID_EMPTY_LABEL_NAME, ERRID_DUPLICATE_LABEL, ERRID_LABEL_UTF8,
		ERRID_TOO_MANY_LABELS, ERRID_LABEL_NAME_TOO_LONG, ERRID_LABEL_VALUE_TOO_LONG, ERRID_TOO_OLD, ERRID_TOO_FAR_AHEAD,
		ERRID_DUPLICATE_TIMESTAMP, ERRID_HISTOGRAM_TOO_LARGE, ERRID_TENANT_SERIES, ERRID_BAD_REQUEST};
	for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
		m->refused[ids[i]] = metric_counter_with(
			"varve_head_samples_refused_total", "Samples refused, by the error id that was answered", "reason", errid_text(ids[i]));
}

/* One for each core: more measured no faster (a request takes the locks in turn, so two requests meet on one of them only), and a small tenant's
 * window pays for its postings once in each. */
static uint32_t shards_of(uint32_t wanted)
{
	uint32_t n = 1;
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t want = wanted ? wanted : cores > 0 ? (uint32_t)cores : 1;
	while (n < want && n < HEAD_SHARDS_MAX)
		n *= 2;
	return n;
}

static errc config_copy(struct head *h, const struct head_config *cfg, struct err *err)
{
	h->cfg = *cfg;
	struct arena *a = &h->cfg_arena;
	h->cfg.chunk_dir = arena_cstr(a, span_cstr(cfg->chunk_dir));
	h->cfg.block_dir = arena_cstr(a, span_cstr(cfg->block_dir));
	h->cfg.node = arena_dup(a, cfg->node.p ? cfg->node : (struct span){"", 0});
	struct label *v = arena_alloc(a, cfg->ext_labels.n * sizeof *v);
	if (!h->cfg.chunk_dir || !h->cfg.block_dir || !h->cfg.node.p || !v)
		return err_set(err, ERR_NOMEM, "no memory for the head");
	for (uint32_t i = 0; i < cfg->ext_labels.n; i++) {
		v[i] = (struct label){arena_dup(a, cfg->ext_labels.v[i].name), arena_dup(a, cfg->ext_labels.v[i].value)};
		if (!v[i].name.p || !v[i].value.p)
			return err_set(err, ERR_NOMEM, "no memory for the head");
	}
	h->cfg.ext_labels.v = v;
	return OK;
}

/* A block is durable when its name is, so the directory's own name must be. */
static errc block_dir_make(const char *dir, struct err *err)
{
	errc rc = OK;
	char parent[4096];
	TRY(io_mkdirs(dir, err));
	snprintf(parent, sizeof parent, "%s", dir);
	char *slash = strrchr(parent, '/');
	if (slash)
		*slash = 0;
	TRY(io_fsync_dir(!slash ? "." : slash == parent ? "/" : parent, err));
fail:
	return rc;
}

errc head_open(const struct head_config *cfg, struct head **out, struct err *err)
{
	errc rc = OK;
	ASSERT(cfg->chunk_dir && cfg->block_dir && cfg->wal);
	size_t bytes = (sizeof(struct head) + 63) / 64 * 64;
	struct head *h = aligned_alloc(64, bytes);
	if (!h)
		return err_set(err, ERR_NOMEM, "no memory for the head");
	memset(h, 0, bytes);
	pthread_rwlock_init(&h->tenants_mu, NULL);
	pthread_mutex_init(&h->windows_mu, NULL);
	pthread_mutex_init(&h->ctx_mu, NULL);
	pthread_mutex_init(&h->cuts_mu, NULL);
	pthread_mutex_init(&h->snap.mu, NULL);
	pthread_mutex_init(&h->reclaim_mu, NULL);
	pthread_mutex_init(&h->fds.mu, NULL);
	pthread_mutex_init(&h->symbols.mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&h->wake, &attr);
	pthread_cond_init(&h->done, &attr);
	pthread_condattr_destroy(&attr);
	arena_init(&h->cfg_arena, 16 * MIB);
	TRY(config_copy(h, cfg, err));
	CHECK(cfg->block_range_ms >= HEAD_RANGE_MIN_MS && cfg->block_range_ms <= HEAD_RANGE_MAX_MS, ERR_INVALID,
		"block range of %lld ms: it must be between 1m and 24h", (long long)cfg->block_range_ms);
	CHECK(cfg->cut_delay_ms >= 0 && cfg->max_age_ms > 0, ERR_INVALID, "cut delay or maximum age is negative");
	metrics_open(&h->m);
	io_random(h->secret, sizeof h->secret);
	io_random(h->refs_secret, sizeof h->refs_secret);
	atomic_init(&h->next_ref, 1);
	atomic_init(&h->next_serial, 1);
	atomic_init(&h->min_range, cfg->block_range_ms);
	h->n_shards = shards_of(cfg->shards);
	for (uint32_t n = h->n_shards; n > 1; n /= 2)
		h->shard_shift++;
	h->shard_shift = 64 - h->shard_shift;
	h->shards = aligned_alloc(64, h->n_shards * sizeof *h->shards);
	CHECK(h->shards, ERR_NOMEM, "no memory for the head");
	memset(h->shards, 0, h->n_shards * sizeof *h->shards);
	for (uint32_t i = 0; i < h->n_shards; i++) {
		pthread_mutex_init(&h->shards[i].mu, NULL);
		head_pool_init(&h->shards[i].pool, &h->memory_bytes, NULL);
	}
	for (uint32_t i = 0; i < h->n_shards; i++) {
		h->shards[i].scratch = malloc((HEAD_RAW_SAMPLES + 1) * sizeof *h->shards[i].scratch);
		h->shards[i].scratch_bytes = malloc(HEAD_CHUNK_MAX_BYTES);
		CHECK(h->shards[i].scratch && h->shards[i].scratch_bytes, ERR_NOMEM, "no memory for the head");
		TRY(head_rows_init(&h->shards[i].rows, HEAD_SERIES_CLASSES + 1, &h->memory_bytes, err));
		head_memory_add(h, (HEAD_RAW_SAMPLES + 1) * sizeof *h->shards[i].scratch + HEAD_CHUNK_MAX_BYTES);
	}
	TRY(head_symbols_init(&h->symbols, &h->memory_bytes, err));
	TRY(io_mkdirs(h->cfg.chunk_dir, err));
	TRY(block_dir_make(h->cfg.block_dir, err));
	TRY(block_clean_dir(h->cfg.block_dir, err));
	*out = h;
	return OK;
fail:
	head_close(h);
	return rc;
}

errc head_start(struct head *h, struct err *err)
{
	errc rc = OK;
	ASSERT(!h->cutter_runs && h->loaded);
	TRY(head_replay_end(h, err));
	int e = pthread_create(&h->cutter, NULL, head_cutter_main, h);
	if (e != 0)
		return err_set(err, ERR_NOMEM, "the cutter thread could not be started: %s", strerror(e));
	pthread_mutex_lock(&h->windows_mu);
	h->cutter_runs = true;
	while (!h->announced)
		pthread_cond_wait(&h->done, &h->windows_mu);
	pthread_mutex_unlock(&h->windows_mu);
fail:
	return rc;
}

void head_stop(struct head *h)
{
	if (!h || !h->cutter_runs)
		return;
	pthread_mutex_lock(&h->windows_mu);
	atomic_store(&h->stop, true);
	pthread_cond_broadcast(&h->wake);
	pthread_cond_broadcast(&h->done);
	pthread_mutex_unlock(&h->windows_mu);
	pthread_join(h->cutter, NULL);
	h->cutter_runs = false;
}

void head_close(struct head *h)
{
	if (!h)
		return;
	head_stop(h);
	h->closing = true;
	/* Series are not released one by one: everything goes. */
	while (h->windows) {
		struct window *w = h->windows;
		if (!w->gone)
			head_window_leave(w);
		ASSERT(atomic_load(&w->refs) == 0); /* a source outlived the head */
		head_window_forget(w);
	}
	head_replay_free(h);
	head_tenants_destroy(h);
	head_full_free(h);
	for (uint32_t i = 0; h->shards && i < h->n_shards; i++) {
		head_pool_destroy(&h->shards[i].pool);
		head_rows_destroy(&h->shards[i].rows);
		head_table_free(h->shards[i].slots, h->shards[i].mask + 1, sizeof *h->shards[i].slots);
		free(h->shards[i].scratch);
		free(h->shards[i].scratch_bytes);
		pthread_mutex_destroy(&h->shards[i].mu);
	}
	free(h->shards);
	head_symbols_destroy(&h->symbols);
	head_append_close(h);
	free(h->cuts.v);
	free(h->announces);
	arena_free(&h->cfg_arena);
	pthread_rwlock_destroy(&h->tenants_mu);
	pthread_mutex_destroy(&h->windows_mu);
	pthread_mutex_destroy(&h->ctx_mu);
	pthread_mutex_destroy(&h->cuts_mu);
	pthread_mutex_destroy(&h->snap.mu);
	pthread_mutex_destroy(&h->reclaim_mu);
	pthread_mutex_destroy(&h->fds.mu);
	pthread_cond_destroy(&h->wake);
	pthread_cond_destroy(&h->done);
	free(h);
}

void head_status(struct head *h, struct head_status *out)
{
	*out = (struct head_status){.min_t = INT64_MAX, .max_t = INT64_MIN};
	out->series = atomic_load(&h->n_series);
	out->cutting = atomic_load(&h->n_cutting);
	out->memory_bytes = head_memory(h);
	out->samples_in_memory = atomic_load(&h->n_samples);
	pthread_mutex_lock(&h->windows_mu);
	for (struct window *w = h->windows; w; w = w->next) {
		out->chunk_file_bytes += head_chunkfile_bytes(&w->file);
		if (w->gone)
			continue;
		out->windows++;
		out->min_t = w->start < out->min_t ? w->start : out->min_t;
		out->max_t = w->start + w->range - 1 > out->max_t ? w->start + w->range - 1 : out->max_t;
	}
	pthread_mutex_unlock(&h->windows_mu);
	head_gauges(h);
}
