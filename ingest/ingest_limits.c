/* ingest/ingest_limits.c - what a tenant may do: the limits in force, and the rate that is left.
 *
 *     file ─▶ limits_parse ─▶ struct limits, constant ─▶ one pointer (base/handover.h) ◀─ every request copies its tenant's six numbers
 *
 * The rate is a token bucket: it fills with samples_per_second up to samples_burst; a request passes while there is something in it and takes all its
 * samples, on credit if need be. So whether a request passes is known before its body is looked at (the refusal of a flood costs what the kernel took to
 * receive it), a large request is not starved by small ones, and in any time t no more than burst + t x rate + one request is stored. A full
 * bucket is like none: those are swept, so only tenants that sent lately have one.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>
#include "base/handover.h"
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "ingest/ingest_int.h"

enum { RATE_SHARDS = 64, RATE_CHAINS_MIN = 16, RATE_BURST_DEFAULT_S = 60, LIMITS_KEY_BYTES = 192, SAMPLE_WEIGHT_BYTES = 4 };
#define TELL_DECAY_S 3.0 /* over which what came is averaged */

/* How the file looked. */
struct limits_stamp {
	bool exists;
	uint64_t inode, size;
	int64_t mtime_ms;
};

struct rate {
	struct rate *next;
	uint64_t hash;
	double tokens;	     /* at at_ns; below 0: taken on credit */
	double per_s, burst; /* this node's part of what the file says */
	/* The fleet (ingest_fleet.c): this node's part of the tenant's rate, 1 until the others were heard of; bytes that came since the last telling, refused ones as well; how
	 * many a second were told in `round`, and the most that anybody has heard from all nodes together. */
	double share, told, total;
	uint64_t bytes;
	uint32_t round;
	int64_t at_ns;
	uint32_t name_bytes;
	char name[];
};

struct rate_shard {
	_Alignas(64) pthread_mutex_t mu;
	struct rate **chains;
	uint32_t n, cap; /* cap: a power of two */
};

struct ingest_limits {
	const char *file;    /* borrowed; NULL: no limits */
	struct handover now; /* struct limits */

	/* write.global.max_concurrency */
	_Alignas(64) _Atomic uint64_t max_concurrency, running, waiting;
	pthread_mutex_t gate_mu;
	pthread_cond_t gate_cv;

	uint8_t secret[192];
	struct rate_shard shards[RATE_SHARDS];

	pthread_mutex_t reload_mu; /* guards what follows */
	struct limits_stamp read, seen;
	bool changing; /* `seen` differs from `read`; taken when it still looks so at the next tick */

	struct metric *refused_size, *refused_series, *refused_samples, *refused_rate, *refused_head, *waits, *good, *good_time;
};

/* ---- the pointer ---- */

struct tenant_limits ingest_limits_now(struct ingest_limits *il, struct span tenant)
{
	uint32_t turn;
	if (!il->file)
		return (struct tenant_limits){.own = 0};
	struct tenant_limits l = *limits_of(handover_begin(&il->now, &turn), tenant);
	handover_end(&il->now, turn);
	return l;
}

static void swap_locked(struct ingest_limits *il, struct limits *l)
{
	limits_free(handover_swap(&il->now, l));
	pthread_mutex_lock(&il->gate_mu);
	atomic_store(&il->max_concurrency, l->max_concurrency);
	pthread_cond_broadcast(&il->gate_cv);
	pthread_mutex_unlock(&il->gate_mu);
}

/* ---- reading the file ---- */

static errc stamp(const char *file, struct limits_stamp *out, struct err *err)
{
	struct io_stat st;
	errc rc = io_stat(file, &st, err);
	*out = (struct limits_stamp){.exists = false};
	if (rc == OK && st.exists)
		*out = (struct limits_stamp){true, st.inode, st.size, st.mtime_ms};
	return rc;
}

static bool stamp_same(const struct limits_stamp *a, const struct limits_stamp *b)
{
	return a->exists == b->exists && a->inode == b->inode && a->size == b->size && a->mtime_ms == b->mtime_ms;
}

static void say(const struct ingest_limits *il, const struct limits *l)
{
	for (struct span rest = l->remarks; rest.n > 0;) {
		const char *end = memchr(rest.p, '\n', rest.n);
		size_t n = end ? (size_t)(end - rest.p) : rest.n;
		log_warn("limits", LSTR("file", il->file), LSPAN("remark", span_of(rest.p, n)));
		n += end != NULL;
		rest = span_of(rest.p + n, rest.n - n);
	}
	const uint64_t *v = l->fallback.v;
	log_info("limits in force", LSTR("file", il->file), LU64("tenants", l->n_tenants), LU64("max_concurrency", l->max_concurrency),
		LU64("default_size_bytes", v[TENANT_SIZE]), LU64("default_series", v[TENANT_SERIES]), LU64("default_samples", v[TENANT_SAMPLES]),
		LU64("default_head_series", v[TENANT_HEAD_SERIES]), LU64("default_samples_per_second", v[TENANT_RATE]));
}

static errc read_locked(struct ingest_limits *il, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct span text;
	struct limits *l = NULL;
	arena_init(&arena, 2 * LIMIT_CONFIG_BYTES);
	/* How it looks before it is read: what is written meanwhile is a change. */
	TRY(stamp(il->file, &il->read, err));
	il->changing = false;
	CHECK(il->read.exists, ERR_INVALID, "%s: there is no such file", il->file);
	TRY(io_read_file(il->file, LIMIT_CONFIG_BYTES, &arena, &text, err));
	TRY(limits_parse(il->file, text, &l, err));
	swap_locked(il, l);
	say(il, l);
	metric_set(il->good_time, (double)io_now_ms() / 1000);
fail:
	metric_set(il->good, rc == OK);
	arena_free(&arena);
	if (rc != OK && rc != ERR_NOMEM) {
		/* The operator's to mend, whatever it is. */
		err_wrap(err, "--limits.file");
		err->code = ERR_INVALID;
		rc = ERR_INVALID;
	}
	return rc;
}

errc ingest_limits_read(struct ingest_limits *il, struct err *err)
{
	struct err local = {0};
	err = err ? err : &local;
	if (!il->file)
		return OK;
	pthread_mutex_lock(&il->reload_mu);
	errc rc = read_locked(il, err);
	pthread_mutex_unlock(&il->reload_mu);
	if (rc != OK)
		log_error("limits not read, the old ones stay in force", LSTR("file", il->file), LERR(err));
	return rc;
}

/* A change is read when it looks the same at two ticks: not while a file is being written in place. What was read, good or bad, is not read again before
 * it changes again. */
void ingest_limits_tick(struct ingest_limits *il)
{
	struct err err = {0};
	struct limits_stamp st;
	errc rc = OK;
	if (!il->file)
		return;
	pthread_mutex_lock(&il->reload_mu);
	if (stamp(il->file, &st, &err) == OK) {
		bool changed = !stamp_same(&st, &il->read), settled = il->changing && stamp_same(&st, &il->seen);
		il->changing = changed;
		il->seen = st;
		if (changed && settled)
			rc = read_locked(il, &err);
	}
	pthread_mutex_unlock(&il->reload_mu);
	if (rc != OK)
		log_error("limits not read, the old ones stay in force", LSTR("file", il->file), LERR(&err));
}

/* ---- the rate ---- */

static uint64_t rate_hash(const struct ingest_limits *il, struct span tenant)
{
	return XXH3_64bits_withSecret(tenant.p, tenant.n, il->secret, sizeof il->secret);
}

static void rate_refill(struct rate *r, int64_t now_ns)
{
	if (now_ns > r->at_ns) {
		r->tokens += (double)(now_ns - r->at_ns) / 1e9 * r->per_s;
		r->at_ns = now_ns;
	}
	if (r->tokens > r->burst)
		r->tokens = r->burst;
}

static void rate_sweep_locked(struct rate_shard *sh, int64_t now_ns)
{
	for (uint32_t i = 0; i < sh->cap; i++)
		for (struct rate **at = &sh->chains[i]; *at;) {
			struct rate *r = *at;
			rate_refill(r, now_ns);
			if (r->tokens < r->burst) {
				at = &r->next;
				continue;
			}
			*at = r->next;
			free(r);
			sh->n--;
		}
}

static bool rate_grow_locked(struct rate_shard *sh, int64_t now_ns)
{
	if (sh->cap > 0)
		rate_sweep_locked(sh, now_ns);
	if (sh->cap > 0 && sh->n < sh->cap / 2)
		return true;
	uint32_t cap = sh->cap ? sh->cap * 2 : RATE_CHAINS_MIN;
	struct rate **v = calloc(cap, sizeof *v);
	if (!v)
		return sh->cap > 0; /* with longer chains */
	for (uint32_t i = 0; i < sh->cap; i++)
		while (sh->chains[i]) {
			struct rate *r = sh->chains[i], **to = &v[r->hash & (cap - 1)];
			sh->chains[i] = r->next;
			r->next = *to;
			*to = r;
		}
	free(sh->chains);
	sh->chains = v;
	sh->cap = cap;
	return true;
}

static struct rate *rate_find_locked(const struct rate_shard *sh, uint64_t hash, struct span tenant)
{
	struct rate *r = sh->cap ? sh->chains[hash & (sh->cap - 1)] : NULL;
	while (r && !(r->hash == hash && span_eq(span_of(r->name, r->name_bytes), tenant)))
		r = r->next;
	return r;
}

/* The tenant's bucket as it is now, made full when there is none. NULL: no memory. */
static struct rate *rate_locked(struct rate_shard *sh, uint64_t hash, struct span tenant, const struct tenant_limits *l)
{
	int64_t now_ns = io_mono_ns();
	struct rate *r = rate_find_locked(sh, hash, tenant);
	bool fresh = false;
	if (!r) {
		if (sh->n >= sh->cap && !rate_grow_locked(sh, now_ns))
			return NULL;
		r = malloc(sizeof *r + tenant.n);
		if (!r)
			return NULL;
		struct rate **to = &sh->chains[hash & (sh->cap - 1)];
		*r = (struct rate){.next = *to, .hash = hash, .at_ns = now_ns, .share = 1, .name_bytes = (uint32_t)tenant.n};
		fresh = true;
		memcpy(r->name, tenant.p, tenant.n);
		*to = r;
		sh->n++;
	}
	/* Up to here by the rate that held, from here on by the one that holds. */
	if (r->per_s > 0)
		rate_refill(r, now_ns);
	r->per_s = (double)l->v[TENANT_RATE] * r->share;
	r->burst = l->v[TENANT_BURST] ? (double)l->v[TENANT_BURST] * r->share : r->per_s * RATE_BURST_DEFAULT_S;
	if (fresh)
		r->tokens = r->burst;
	rate_refill(r, now_ns);
	return r;
}

/* Passes while there is something left, and takes n. `bytes` came for it, whether it passes or not. */
static errc rate_take(
	struct ingest_limits *il, struct span tenant, const struct tenant_limits *l, uint64_t n, uint64_t bytes, int64_t *retry_s, struct err *err)
{
	uint64_t hash = rate_hash(il, tenant);
	struct rate_shard *sh = &il->shards[hash >> 58];
	double tokens = 0, per_s = 1;
	pthread_mutex_lock(&sh->mu);
	struct rate *r = rate_locked(sh, hash, tenant, l);
	if (r) {
		tokens = r->tokens;
		per_s = r->per_s;
		r->bytes += bytes;
		if (tokens > 0)
			r->tokens -= (double)n;
	}
	pthread_mutex_unlock(&sh->mu);
	if (!r)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a tenant's rate");
	if (tokens > 0)
		return OK;
	double wait_s = floor(-tokens / per_s) + 1;
	*retry_s = wait_s < 86400 ? (int64_t)wait_s : 86400;
	char key[LIMITS_KEY_BYTES], burst[32];
	if (l->v[TENANT_BURST])
		snprintf(burst, sizeof burst, "%" PRIu64, l->v[TENANT_BURST]);
	else
		snprintf(burst, sizeof burst, "a minute's worth");
	metric_add(il->refused_rate, 1);
	return err_id(err, ERRID_TENANT_RATE, ERR_LIMIT,
		"tenant %.*s sends more than %" PRIu64
		" samples a second (%s in --limits.file) with bursts of %s (samples_burst); nothing was stored: it is %.0f "
		"samples ahead, try again in %" PRId64 " s",
		SPAN_ARG(tenant), l->v[TENANT_RATE], limits_key(l, TENANT_RATE, tenant, key, sizeof key), burst, -tokens, *retry_s);
}

static void rate_give(struct ingest_limits *il, struct span tenant, const struct tenant_limits *l, uint64_t n)
{
	uint64_t hash = rate_hash(il, tenant);
	struct rate_shard *sh = &il->shards[hash >> 58];
	pthread_mutex_lock(&sh->mu);
	struct rate *r = rate_locked(sh, hash, tenant, l);
	if (r) {
		r->tokens += (double)n;
		rate_refill(r, r->at_ns);
	}
	pthread_mutex_unlock(&sh->mu);
}

size_t ingest_limits_rates(struct ingest_limits *il)
{
	size_t n = 0;
	for (int i = 0; i < RATE_SHARDS; i++) {
		pthread_mutex_lock(&il->shards[i].mu);
		n += il->shards[i].n;
		pthread_mutex_unlock(&il->shards[i].mu);
	}
	return n;
}

/* ---- the rate of a fleet (ingest_fleet.c) ---- */

void ingest_limits_tell(
	struct ingest_limits *il, uint32_t round, double elapsed_s, void (*fn)(void *arg, struct span tenant, double bytes_per_s), void *arg)
{
	double keep = exp(-elapsed_s / TELL_DECAY_S);
	for (int i = 0; i < RATE_SHARDS; i++) {
		struct rate_shard *sh = &il->shards[i];
		pthread_mutex_lock(&sh->mu);
		for (uint32_t k = 0; k < sh->cap; k++)
			for (struct rate *r = sh->chains[k]; r; r = r->next) {
				double now = (double)r->bytes / elapsed_s;
				r->told = r->round == 0 ? now : r->told * keep + now * (1 - keep);
				r->bytes = 0;
				r->total = 0;
				r->round = round;
				if (r->told >= 1)
					fn(arg, span_of(r->name, r->name_bytes), r->told);
			}
		pthread_mutex_unlock(&sh->mu);
	}
}

void ingest_limits_told(struct ingest_limits *il, uint32_t round, struct span tenant, double total, double least)
{
	uint64_t hash = rate_hash(il, tenant);
	struct rate_shard *sh = &il->shards[hash >> 58];
	pthread_mutex_lock(&sh->mu);
	struct rate *r = rate_find_locked(sh, hash, tenant);
	/* Who heard of more nodes knows better. */
	if (r && r->round == round && total > r->total && r->told >= 1) {
		double share = r->told / total;
		r->total = total;
		r->share = share < least ? least : share > 1 ? 1 : share;
	}
	pthread_mutex_unlock(&sh->mu);
}

/* ---- how many at once ---- */

static bool enter_now(struct ingest_limits *il)
{
	uint64_t max = atomic_load(&il->max_concurrency), n = atomic_load(&il->running);
	do
		if (max > 0 && n >= max)
			return false;
	while (!atomic_compare_exchange_weak(&il->running, &n, n + 1));
	return true;
}

/* Whoever is inside is on a processor, never waiting for the disk or a client: so the wait is short, and the thread may do it. */
static bool enter(struct ingest_limits *il)
{
	if (atomic_load(&il->max_concurrency) == 0)
		return false;
	if (enter_now(il))
		return true;
	metric_add(il->waits, 1);
	pthread_mutex_lock(&il->gate_mu);
	atomic_fetch_add(&il->waiting, 1);
	while (!enter_now(il))
		pthread_cond_wait(&il->gate_cv, &il->gate_mu);
	atomic_fetch_sub(&il->waiting, 1);
	pthread_mutex_unlock(&il->gate_mu);
	return true;
}

static void leave(struct ingest_limits *il)
{
	atomic_fetch_sub(&il->running, 1);
	if (atomic_load(&il->waiting) > 0) {
		pthread_mutex_lock(&il->gate_mu);
		pthread_cond_signal(&il->gate_cv);
		pthread_mutex_unlock(&il->gate_mu);
	}
}

/* ---- one request ---- */

void ingest_admit(struct ingest_limits *il, struct span tenant, struct admission *out)
{
	*out = (struct admission){.il = il, .tenant = tenant, .limits = ingest_limits_now(il, tenant)};
}

static errc over(const struct admission *a, struct metric *m, enum tenant_limit k, const char *what, uint64_t has, struct err *err)
{
	char key[LIMITS_KEY_BYTES];
	metric_add(m, 1);
	return err_id(err, ERRID_TENANT_REQUEST_LIMIT, ERR_LIMIT,
		"tenant %.*s: the request has %" PRIu64 " %s, at most %" PRIu64 " are allowed (%s in --limits.file); nothing was stored",
		SPAN_ARG(a->tenant), has, what, a->limits.v[k], limits_key(&a->limits, k, a->tenant, key, sizeof key));
}

errc ingest_admit_sizes(struct admission *a, size_t body_bytes, size_t decoded_bytes, struct err *err)
{
	errc rc = OK;
	uint64_t max = a->limits.v[TENANT_SIZE];
	if (max > 0 && body_bytes > max)
		return over(a, a->il->refused_size, TENANT_SIZE, "bytes as sent", body_bytes, err);
	if (max > 0 && decoded_bytes > max)
		return over(a, a->il->refused_size, TENANT_SIZE, "bytes decompressed", decoded_bytes, err);
	if (a->limits.v[TENANT_RATE] > 0) {
		a->weighed = true;
		TRY(rate_take(a->il, a->tenant, &a->limits, 0, body_bytes, &a->retry_s, err));
	}
	a->entered = enter(a->il);
fail:
	return rc;
}

errc ingest_admit_counts(struct admission *a, uint64_t n_series, uint64_t n_samples, struct err *err)
{
	errc rc = OK;
	const uint64_t *v = a->limits.v;
	if (v[TENANT_SERIES] > 0 && n_series > v[TENANT_SERIES])
		return over(a, a->il->refused_series, TENANT_SERIES, "series", n_series, err);
	if (v[TENANT_SAMPLES] > 0 && n_samples > v[TENANT_SAMPLES])
		return over(a, a->il->refused_samples, TENANT_SAMPLES, "samples", n_samples, err);
	if (v[TENANT_RATE] > 0 && n_samples > 0) {
		TRY(rate_take(a->il, a->tenant, &a->limits, n_samples, a->weighed ? 0 : n_samples * SAMPLE_WEIGHT_BYTES, &a->retry_s, err));
		a->taken = n_samples;
	}
fail:
	return rc;
}

void ingest_admit_end(struct admission *a, bool stored)
{
	if (a->entered)
		leave(a->il);
	if (!stored && a->taken > 0)
		rate_give(a->il, a->tenant, &a->limits, a->taken);
	a->entered = false;
	a->taken = 0;
}

void ingest_limits_refused_series(struct ingest_limits *il)
{
	metric_add(il->refused_head, 1);
}

/* ---- life ---- */

static void metrics_open(struct ingest_limits *il)
{
	static const char name[] = "varve_limit_refused_total", help[] = "Write requests over a limit of --limits.file, by limit";
	il->refused_size = metric_counter_with(name, help, "limit", "size");
	il->refused_series = metric_counter_with(name, help, "limit", "series");
	il->refused_samples = metric_counter_with(name, help, "limit", "samples");
	il->refused_rate = metric_counter_with(name, help, "limit", "rate");
	il->refused_head = metric_counter_with(name, help, "limit", "head-series");
	il->waits = metric_counter("varve_limit_waits_total", "Write requests that waited for write.global.max_concurrency of --limits.file");
	il->good = metric_gauge("varve_limits_last_reload_successful", "1 when --limits.file was read the last time it changed, or is not given");
	il->good_time = metric_gauge("varve_limits_last_reload_success_timestamp_seconds", "When --limits.file was last read");
	metric_set(il->good, 1);
}

errc ingest_limits_open(const char *file, struct ingest_limits **out, struct err *err)
{
	errc rc = OK;
	struct ingest_limits *il = aligned_alloc(64, (sizeof *il + 63) / 64 * 64);
	if (!il)
		return err_set(err, ERR_NOMEM, "no memory for limits");
	memset(il, 0, sizeof *il);
	il->file = file;
	pthread_mutex_init(&il->gate_mu, NULL);
	pthread_cond_init(&il->gate_cv, NULL);
	pthread_mutex_init(&il->reload_mu, NULL);
	for (int i = 0; i < RATE_SHARDS; i++)
		pthread_mutex_init(&il->shards[i].mu, NULL);
	io_random(il->secret, sizeof il->secret);
	metrics_open(il);
	if (file) {
		struct err why = {0};
		rc = read_locked(il, &why);
		if (rc != OK)
			err_set(err, rc, "%s", why.msg);
	}
	if (rc != OK) {
		ingest_limits_close(il);
		return rc;
	}
	*out = il;
	return OK;
}

void ingest_limits_close(struct ingest_limits *il)
{
	if (!il)
		return;
	limits_free(atomic_load(&il->now.now));
	for (int i = 0; i < RATE_SHARDS; i++) {
		struct rate_shard *sh = &il->shards[i];
		for (uint32_t k = 0; k < sh->cap; k++)
			while (sh->chains[k]) {
				struct rate *r = sh->chains[k];
				sh->chains[k] = r->next;
				free(r);
			}
		free(sh->chains);
		pthread_mutex_destroy(&sh->mu);
	}
	pthread_mutex_destroy(&il->reload_mu);
	pthread_cond_destroy(&il->gate_cv);
	pthread_mutex_destroy(&il->gate_mu);
	free(il);
}
