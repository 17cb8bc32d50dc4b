/* cluster/cluster_hints.c - hints, from hand to disk: the queue, the nodes, what is owed, and the one thread that does all the rest.
 *
 *     any thread:  hints_add ── a copy into the queue, or it is owed ──┐
 *                                                                      ▼
 *     the thread:  hints_step ─ write what waits ─ look at what landed ─ once a second: roster, sync, age, state ─ deliver ─ sleep
 *
 * One thread, so logs need no locks; a disk that hangs stops hints and nothing else. mu guards the queue, the table of nodes and what any thread may ask; it is held for a few lines at a time, never
 * around a file or a call.
 *
 * A node is in the table from its first hint on until nothing is kept for it and nothing is owed. The thread alone takes it out, so it may go through the list without mu.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"

enum { SECOND_NS = 1000000000, NAMES_BYTES = 16 << 20, REST_SECONDS = 10 };
static const char *const drop_names[HINT_DROPS] = {"size", "queue", "disk", "damaged", "memory", "holder", "large", "age", "gone", "refused"};

/* ---- nodes ---- */

static void peer_free(struct hint_peer *p)
{
	hint_log_close(&p->log);
	buf_free(&p->landed);
	buf_free(&p->batch.body);
	free(p->address_text);
	free(p);
}

static struct hint_peer *find_locked(struct hints *h, struct span address, uint64_t hash)
{
	struct hint_peer *p = h->rows[hash % HINT_ROWS];
	while (p && (p->hash != hash || !span_eq(p->address, address)))
		p = p->next_row;
	return p;
}

struct hint_peer *hint_peer_locked(struct hints *h, struct span address)
{
	uint64_t hash = XXH64(address.p, address.n, 0);
	struct hint_peer *p = find_locked(h, address, hash);
	if (p || h->n_peers >= LIMIT_HINTS_PEERS || address.n == 0 || address.n > LIMIT_RING_ADDRESS_BYTES)
		return p;
	p = calloc(1, sizeof *p);
	char *text = p ? strndup(address.p, address.n) : NULL;
	if (!text) {
		free(p);
		return NULL;
	}
	p->h = h;
	p->hash = hash;
	p->address_text = text;
	p->address = span_of(text, address.n);
	p->unlogged = true;
	hint_log_new(&p->log, NULL, NULL, p->address);
	p->status.address = p->address;
	p->pending_gauge = metric_gauge_with("varve_hints_pending_samples", "Samples that are kept here for a node that missed them", "peer", text);
	p->owed_gauge = metric_gauge_with("varve_hints_owed_samples",
		"Samples that a node missed and no hint tells of, as far as they could be counted: repair brings them", "peer", text);
	p->next_row = h->rows[hash % HINT_ROWS];
	h->rows[hash % HINT_ROWS] = p;
	p->next = h->peers;
	h->peers = p;
	h->n_peers++;
	return p;
}

/* Taken out when nothing is left of it. */
static void peers_prune(struct hints *h)
{
	pthread_mutex_lock(&h->mu);
	for (struct hint_peer **at = &h->peers; *at;) {
		struct hint_peer *p = *at;
		if (p->queued > 0 || p->log.n > 0 || p->owed.to_ms > 0 || p->owed_unsaved || p->flight != FLIGHT_NONE) {
			at = &p->next;
			continue;
		}
		struct hint_peer **row = &h->rows[p->hash % HINT_ROWS];
		while (*row != p)
			row = &(*row)->next_row;
		*row = p->next_row;
		*at = p->next;
		h->n_peers--;
		if (h->turn == p)
			h->turn = NULL;
		pthread_mutex_unlock(&h->mu);
		metric_set(p->pending_gauge, 0);
		metric_set(p->owed_gauge, 0);
		hint_log_vanish(&p->log);
		peer_free(p);
		pthread_mutex_lock(&h->mu);
		at = &h->peers; /* it may be another one by now */
	}
	pthread_mutex_unlock(&h->mu);
}

static struct hint_peer *peers_of(struct hints *h)
{
	pthread_mutex_lock(&h->mu);
	struct hint_peer *p = h->peers;
	pthread_mutex_unlock(&h->mu);
	return p;
}

/* ---- what is owed ---- */

/* Of what is too old its blocks tell, who is gone needs nothing, and what was refused would be again. */
static bool is_owed(enum hint_drop why)
{
	return why != DROP_AGE && why != DROP_GONE && why != DROP_REFUSED;
}

void hints_drop(struct hints *h, struct span address, enum hint_drop why, const struct hint_loss *loss)
{
	metric_add(h->dropped[why], loss->samples);
	if (!is_owed(why))
		return;
	pthread_mutex_lock(&h->mu);
	struct hint_peer *p = hint_peer_locked(h, address);
	if (p) {
		struct hints_owed *o = &p->owed;
		if (o->to_ms == 0 || loss->from_ms < o->from_ms)
			o->from_ms = loss->from_ms;
		if (loss->to_ms > o->to_ms)
			o->to_ms = loss->to_ms;
		o->samples += loss->samples;
		o->frames += loss->frames;
		p->owed_news = p->owed_unsaved = true;
		metric_set(p->owed_gauge, (double)o->samples);
	}
	pthread_mutex_unlock(&h->mu);
	if (!p)
		log_error(
			"a node missed samples, and there is no room to remember even that", LSPAN("peer", address), LU64("samples", loss->samples));
}

bool hints_owed(struct hints *h, struct span address, struct hints_owed *out)
{
	pthread_mutex_lock(&h->mu);
	struct hint_peer *p = find_locked(h, address, XXH64(address.p, address.n, 0));
	*out = p ? p->owed : (struct hints_owed){0};
	pthread_mutex_unlock(&h->mu);
	return out->to_ms > 0;
}

void hints_repaired(struct hints *h, struct span address, int64_t until_ms)
{
	pthread_mutex_lock(&h->mu);
	struct hint_peer *p = find_locked(h, address, XXH64(address.p, address.n, 0));
	if (p && p->owed.to_ms > 0 && until_ms >= p->owed.from_ms) {
		if (until_ms >= p->owed.to_ms)
			p->owed = (struct hints_owed){0};
		else
			p->owed.from_ms = until_ms + 1;
		p->owed_unsaved = true;
		metric_set(p->owed_gauge, (double)p->owed.samples);
	}
	pthread_mutex_unlock(&h->mu);
}

void hints_each(struct hints *h, void (*fn)(void *arg, const struct hints_status *s), void *arg)
{
	pthread_mutex_lock(&h->mu);
	for (struct hint_peer *p = h->peers; p; p = p->next) {
		struct hints_status s = p->status;
		s.owed = p->owed;
		if (s.pending_bytes > 0 || s.owed.to_ms > 0)
			fn(arg, &s);
	}
	pthread_mutex_unlock(&h->mu);
}

/* ---- in ---- */

uint64_t hints_samples_of(struct span frame)
{
	struct arena arena;
	struct peer_request r;
	uint64_t n = 0;
	arena_init(&arena, 2 * LIMIT_PEER_REQUEST_BYTES + MIB);
	if (peer_request_decode(frame, &arena, &r, NULL) == OK)
		n = peer_request_samples(&r);
	arena_free(&arena);
	return n;
}

static struct hint_loss loss_of(uint64_t samples)
{
	int64_t now = io_now_ms();
	return (struct hint_loss){.frames = 1, .samples = samples, .from_ms = now, .to_ms = now};
}

bool hints_add(struct hints *h, struct span address, struct span frame, bool elsewhere)
{
	uint64_t size = hint_frame_size(frame.n);
	enum hint_drop why = DROP_MEMORY;
	bool taken = false;
	struct hint_waiting *w = frame.n <= HINT_PAYLOAD_MAX ? malloc(sizeof *w + size) : NULL;
	if (w) {
		w->next = NULL;
		w->n = frame.n;
		memcpy(w->p + HINT_FRAME_BYTES, frame.p, frame.n);
		pthread_mutex_lock(&h->mu);
		w->peer = hint_peer_locked(h, address);
		bool room = h->queue_bytes == 0 || h->queue_bytes + size <= LIMIT_HINTS_QUEUE_BYTES;
		if (w->peer && room && !(elsewhere && (w->peer->refused > 0 || h->stop))) {
			*h->last = w;
			h->last = &w->next;
			h->queue_bytes += size;
			w->peer->queued++;
			taken = true;
			pthread_cond_signal(&h->wake);
		} else if (!room)
			why = DROP_QUEUE;
		pthread_mutex_unlock(&h->mu);
	}
	if (taken)
		return true;
	free(w);
	if (!elsewhere) {
		struct hint_loss loss = loss_of(hints_samples_of(frame));
		hints_drop(h, address, why, &loss);
	}
	return false;
}

void hints_missed(void *hints, const struct cluster_missed *m)
{
	struct hints *h = hints;
	if (m->frame.n == 0) {
		struct hint_loss loss = loss_of(0);
		hints_drop(h, m->address.n > 0 ? m->address : h->cfg.self, DROP_MEMORY, &loss);
	} else if (h->dir && m->n_holders > 0 && m->holders[0].n == 0)
		(void)hints_add(h, m->address, m->frame, false);
	else
		hints_hand_over(h, m);
}

/* ---- to disk ---- */

/* The directory's name: a hash, and another one when somebody has that already. */
static bool log_make(struct hint_peer *p)
{
	struct hints *h = p->h;
	for (uint64_t seed = 0; seed < 64; seed++) {
		char *dir = NULL, *parent = strdup(h->dir);
		struct io_stat st;
		size_t room = strlen(h->dir) + 32;
		dir = malloc(room);
		if (dir && parent)
			snprintf(dir, room, "%s/%016" PRIx64, h->dir, (uint64_t)XXH64(p->address.p, p->address.n, seed));
		if (!dir || !parent || io_stat(dir, &st, NULL) != OK || st.exists) {
			free(dir);
			free(parent);
			if (!dir || !parent)
				return false;
			continue;
		}
		hint_log_new(&p->log, parent, dir, p->address);
		p->unlogged = false;
		return true;
	}
	return false;
}

static bool complains(struct hint_peer *p)
{
	int64_t now = io_mono_ns();
	if (p->complained_ns != 0 && now - p->complained_ns < INT64_C(10) * SECOND_NS)
		return false;
	p->complained_ns = now;
	return true;
}

/* What nothing stands on yet. */
static uint64_t bytes_left(const struct hints *h)
{
	return h->cfg.max_bytes > h->disk_bytes ? h->cfg.max_bytes - h->disk_bytes : 0;
}

static void keep(struct hints *h, struct hint_waiting *w)
{
	struct hint_peer *p = w->peer;
	struct hint_loss loss = loss_of(hints_samples_of(span_of(w->p + HINT_FRAME_BYTES, w->n)));
	struct err err = {0};
	uint64_t size = hint_frame_size(w->n), before = p->log.bytes;
	uint64_t left = bytes_left(h);
	bool full = p->log.bytes + size > left;
	errc rc = OK;
	if (full) {
		if (complains(p))
			log_warn("no more hints are kept for a node, what it misses is owed", LSPAN("peer", p->address), LU64("bytes", p->log.bytes),
				LU64("bytes_of_all", h->disk_bytes), LU64("max_bytes", h->cfg.max_bytes));
		hints_drop(h, p->address, DROP_SIZE, &loss);
	} else if (p->unlogged && !log_make(p)) {
		hints_drop(h, p->address, DROP_MEMORY, &loss);
	} else {
		bool was = hint_log_pending(&p->log);
		rc = hint_log_append(&p->log, w->p, w->n, (uint32_t)loss.samples, loss.to_ms, &err);
		h->disk_bytes += p->log.bytes - before;
		if (rc == OK && !was)
			p->oldest_ms = loss.to_ms;
		if (rc != OK && complains(p))
			log_warn("a hint can't be written, what it tells of is owed", LSPAN("peer", p->address), LERR(&err));
		if (rc != OK)
			hints_drop(h, p->address, DROP_DISK, &loss);
	}
	pthread_mutex_lock(&h->mu);
	p->queued--;
	p->refused = full ? size : 0;
	h->queue_bytes -= size;
	pthread_mutex_unlock(&h->mu);
	hint_metrics(p);
}

static void keep_all(struct hints *h)
{
	pthread_mutex_lock(&h->mu);
	struct hint_waiting *w = h->first, *next;
	h->first = NULL;
	h->last = &h->first;
	pthread_mutex_unlock(&h->mu);
	for (; w; w = next) {
		next = w->next;
		keep(h, w);
		free(w);
	}
}

/* ---- once a second ---- */

static void judge_all(struct hints *h)
{
	struct arena arena;
	struct roster_node *nodes;
	size_t n;
	int64_t now = io_now_ms();
	arena_init(&arena, 64 * MIB);
	if (h->cfg.nodes(h->cfg.roster, &arena, &nodes, &n, NULL) == OK) {
		for (struct hint_peer *p = peers_of(h); p; p = p->next)
			p->judged = PEER_WAIT;
		for (size_t i = 0; i < n; i++) {
			const struct roster_node *r = &nodes[i];
			pthread_mutex_lock(&h->mu);
			struct hint_peer *p = find_locked(h, r->address, XXH64(r->address.p, r->address.n, 0));
			pthread_mutex_unlock(&h->mu);
			if (!p || r->self)
				continue;
			int64_t there = r->heard_ms > r->left_ms ? r->heard_ms : r->left_ms;
			if (!r->in_ring && (r->state == NODE_DRAINED || now - there > h->cfg.remember_ms))
				p->judged = PEER_FORGET;
			else if (r->answers && r->stores && r->state != NODE_DRAINED)
				p->judged = PEER_DELIVER;
		}
	}
	arena_free(&arena);
}

static void forget(struct hint_peer *p)
{
	struct hints *h = p->h;
	struct hint_loss loss = {.frames = 1, .samples = hint_log_pending_samples(&p->log)};
	if (loss.samples > 0 || p->log.n > 0)
		log_info("a node is gone, and its hints with it", LSPAN("peer", p->address), LU64("samples", loss.samples));
	hints_drop(h, p->address, DROP_GONE, &loss);
	h->disk_bytes -= hint_log_clear(&p->log);
	pthread_mutex_lock(&h->mu);
	p->owed = (struct hints_owed){0};
	p->owed_news = p->owed_unsaved = false;
	pthread_mutex_unlock(&h->mu);
	p->oldest_ms = 0;
}

static void save(struct hint_peer *p)
{
	struct hints *h = p->h;
	struct err err = {0};
	pthread_mutex_lock(&h->mu);
	struct hints_owed owed = p->owed;
	p->owed_unsaved = false;
	pthread_mutex_unlock(&h->mu);
	if (!h->dir || (p->unlogged && !log_make(p)))
		return;
	if (hint_log_save(&p->log, &owed, &err) == OK)
		return;
	if (complains(p))
		log_warn("what is owed to a node can't be written", LSPAN("peer", p->address), LERR(&err));
	pthread_mutex_lock(&h->mu);
	p->owed_unsaved = true;
	pthread_mutex_unlock(&h->mu);
}

static void tick_of(struct hint_peer *p, int64_t now_ns)
{
	struct hints *h = p->h;
	uint64_t left = bytes_left(h);
	struct err err = {0};
	if (hint_log_sync(&p->log, &err) != OK && complains(p))
		log_warn("hints are not known to be on the disk", LSPAN("peer", p->address), LERR(&err));
	if (now_ns - p->log.wrote_ns > (int64_t)REST_SECONDS * SECOND_NS)
		hint_log_rest(&p->log);
	pthread_mutex_lock(&h->mu);
	bool flies = p->flight != FLIGHT_NONE, news = p->owed_news, unsaved = p->owed_unsaved;
	if (p->log.bytes + p->refused <= left)
		p->refused = 0;
	struct hints_owed owed = p->owed;
	p->owed_news = false;
	pthread_mutex_unlock(&h->mu);
	if (!flies && p->judged == PEER_FORGET)
		forget(p);
	else if (!flies)
		hint_age(p);
	if (!flies && p->log.n > 0 && !hint_log_pending(&p->log))
		h->disk_bytes -= hint_log_clear(&p->log);
	if (unsaved)
		save(p);
	if (news && owed.to_ms > 0 && h->cfg.on_overflow)
		h->cfg.on_overflow(h->cfg.arg, p->address, owed.from_ms, owed.to_ms);
	hint_metrics(p);
}

static void tick(struct hints *h, int64_t now_ns)
{
	uint64_t bytes = 0;
	int64_t oldest = 0, now_ms = io_now_ms();
	judge_all(h);
	for (struct hint_peer *p = peers_of(h); p; p = p->next) {
		tick_of(p, now_ns);
		bytes += hint_log_pending_bytes(&p->log);
		if (p->oldest_ms > 0 && (oldest == 0 || p->oldest_ms < oldest))
			oldest = p->oldest_ms;
	}
	metric_set(h->pending_bytes, (double)bytes);
	metric_set(h->oldest, oldest > 0 && now_ms > oldest ? (double)(now_ms - oldest) / 1e3 : 0);
	peers_prune(h);
}

/* ---- the thread ---- */

static bool landed(struct hint_peer *p)
{
	pthread_mutex_lock(&p->h->mu);
	bool yes = p->flight == FLIGHT_LANDED;
	pthread_mutex_unlock(&p->h->mu);
	return yes;
}

int64_t hints_step(struct hints *h)
{
	keep_all(h);
	int64_t now = io_mono_ns();
	for (struct hint_peer *p = peers_of(h); p; p = p->next)
		if (landed(p))
			hint_landed(p, now);
	if (now - h->ticked_ns >= SECOND_NS) {
		h->ticked_ns = now;
		tick(h, now);
	}
	int64_t wake = h->ticked_ns + SECOND_NS;
	/* Each time another one is first, so that all get their share of the rate. */
	struct hint_peer *first = h->turn ? h->turn : peers_of(h), *p = first;
	if (first && !h->closing)
		do {
			hint_deliver(p, now, &wake);
			p = p->next ? p->next : peers_of(h);
		} while (p != first && p != NULL);
	h->turn = first ? first->next : NULL;
	return wake;
}

static void *run(void *arg)
{
	struct hints *h = arg;
	for (;;) {
		int64_t wake = hints_step(h);
		pthread_mutex_lock(&h->mu);
		while (!h->first && h->landed == 0 && !(h->stop && h->calls == 0) && io_mono_ns() < wake) {
			struct timespec t = {wake / SECOND_NS, wake % SECOND_NS};
			pthread_cond_timedwait(&h->wake, &h->mu, &t);
		}
		h->closing = h->stop;
		bool over = h->stop && h->calls == 0 && !h->first && h->landed == 0;
		pthread_mutex_unlock(&h->mu);
		if (over)
			return NULL;
	}
}

/* ---- open and close ---- */

static void take_up(struct hints *h, const char *dir)
{
	struct err err = {0};
	struct hint_log log;
	struct hints_owed owed;
	char *address;
	errc rc = hint_log_open(&log, h->dir, dir, &address, &owed, &err);
	if (rc == ERR_CORRUPT) {
		log_warn("a directory of hints of which nobody knows whose they are: removed", LERR(&err));
		if (io_remove_tree(dir, &err) != OK)
			log_warn("it can't be removed", LERR(&err));
		return;
	}
	if (rc != OK) {
		log_warn("hints can't be taken up, they stay where they are", LSTR("dir", dir), LERR(&err));
		return;
	}
	pthread_mutex_lock(&h->mu);
	struct hint_peer *p = hint_peer_locked(h, log.address);
	pthread_mutex_unlock(&h->mu);
	if (!p || !p->unlogged) {
		log_warn("hints can't be taken up, they stay where they are", LSTR("dir", dir),
			LSTR("err", p ? "another directory has the same address" : "no memory"));
		hint_log_close(&log);
	} else {
		p->log = log;
		p->log.address = p->log.read.address = p->address;
		p->unlogged = false;
		p->owed = owed;
		metric_set(p->owed_gauge, (double)owed.samples);
		p->owed_news = owed.to_ms > 0;
		h->disk_bytes += p->log.bytes;
		hint_metrics(p);
	}
	free(address);
}

/* The directory's own entry must survive a power cut with what is synced in it. */
static errc sync_above(const struct hints *h, struct arena *arena, struct err *err)
{
	char *above = arena_printf(arena, "%s", h->dir), *slash = above ? strrchr(above, '/') : NULL;
	if (!above)
		return err_set(err, ERR_NOMEM, "no memory for the hints in %s", h->dir);
	if (slash)
		*slash = 0;
	return io_fsync_dir(!slash ? "." : slash == above ? "/" : above, err);
}

static errc take_up_all(struct hints *h, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	char **names;
	size_t n;
	arena_init(&arena, 2 * NAMES_BYTES);
	TRY(io_mkdirs(h->dir, err));
	TRY(sync_above(h, &arena, err));
	TRY(io_listdir(h->dir, &arena, &names, &n, err));
	for (size_t i = 0; i < n; i++) {
		struct io_stat st;
		char *dir = arena_printf(&arena, "%s/%s", h->dir, names[i]);
		CHECK(dir, ERR_NOMEM, "no memory for the hints in %s", h->dir);
		if (io_stat(dir, &st, NULL) == OK && st.is_dir)
			take_up(h, dir);
	}
fail:
	arena_free(&arena);
	return rc;
}

static void metrics_of(struct hints *h)
{
	h->pending_bytes = metric_gauge("varve_hints_pending_bytes", "Of hints that are not delivered, on the disk");
	h->oldest = metric_gauge("varve_hints_oldest_seconds", "Age of the oldest hint that is not delivered");
	h->delivered = metric_counter("varve_hints_delivered_total", "Samples of hints that their nodes have now");
	for (int i = 0; i < HINT_DROPS; i++)
		h->dropped[i] = metric_counter_with(
			"varve_hints_dropped_total", "Samples of hints that are not delivered, by reason", "reason", drop_names[i]);
}

errc hints_open(const struct hints_config *cfg, struct hints **out, struct err *err)
{
	ASSERT(cfg->send && cfg->nodes);
	errc rc = OK;
	struct hints *h = calloc(1, sizeof *h);
	if (!h)
		return err_set(err, ERR_NOMEM, "no memory for hints");
	h->cfg = *cfg;
	h->last = &h->first;
	if (h->cfg.max_bytes == 0)
		h->cfg.max_bytes = LIMIT_HINTS_BYTES;
	if (h->cfg.rate == 0)
		h->cfg.rate = LIMIT_HINTS_RATE;
	arena_init(&h->arena, 4 * LIMIT_PEER_REQUEST_BYTES);
	pthread_mutex_init(&h->mu, NULL);
	pthread_cond_init(&h->idle, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&h->wake, &attr);
	pthread_condattr_destroy(&attr);
	metrics_of(h);
	h->tokens = (double)h->cfg.rate;
	h->tokens_ns = io_mono_ns();
	h->ticked_ns = h->tokens_ns - SECOND_NS;
	h->self_text = strndup(cfg->self.n ? cfg->self.p : "", cfg->self.n);
	h->dir = cfg->dir ? strdup(cfg->dir) : NULL;
	CHECK(h->self_text && (h->dir || !cfg->dir), ERR_NOMEM, "no memory for hints");
	h->cfg.self = span_of(h->self_text, cfg->self.n);
	if (h->dir)
		TRY(take_up_all(h, err));
	if (!cfg->no_thread) {
		h->has_thread = pthread_create(&h->thread, NULL, run, h) == 0;
		CHECK(h->has_thread, ERR_AGAIN, "no thread for hints");
	}
	*out = h;
	return OK;
fail:
	hints_close(h);
	return rc;
}

void hints_close(struct hints *h)
{
	if (!h)
		return;
	pthread_mutex_lock(&h->mu);
	h->stop = true;
	pthread_cond_signal(&h->wake);
	while (h->calls > 0)
		pthread_cond_wait(&h->idle, &h->mu);
	pthread_cond_signal(&h->wake);
	pthread_mutex_unlock(&h->mu);
	if (h->has_thread)
		pthread_join(h->thread, NULL);
	h->closing = true;
	keep_all(h);
	for (struct hint_peer *p = h->peers, *next; p; p = next) {
		next = p->next;
		if (landed(p))
			hint_landed(p, io_mono_ns());
		struct err err = {0};
		if (hint_log_sync(&p->log, &err) != OK)
			log_warn("hints are not known to be on the disk", LSPAN("peer", p->address), LERR(&err));
		if (p->log.n > 0 && !hint_log_pending(&p->log))
			h->disk_bytes -= hint_log_clear(&p->log);
		if (p->log.n > 0 || p->owed.to_ms > 0)
			save(p);
		else if (h->dir)
			hint_log_vanish(&p->log);
		peer_free(p);
	}
	arena_free(&h->arena);
	pthread_mutex_destroy(&h->mu);
	pthread_cond_destroy(&h->idle);
	pthread_cond_destroy(&h->wake);
	free(h->dir);
	free(h->self_text);
	free(h);
}
