/* ingest/ingest_repair.c - when a node compares its windows with whose, and what it says of that.
 *
 *     this process has begun                     all nodes of the ring      once each answers, and has delivered its hints
 *     a peer answers again, and did not restart  that one                   both were up and did not hear each other
 *     a peer dropped hints for us                that one                   asked every half a minute
 *     a peer says that we lack something         that one
 *     POST /-/repair                             all nodes of the ring
 *
 * A peer that was restarted compares itself with us; doing it from both sides would cost a fleet of n nodes n digests more for each restart, and find the same. A node that joins begins
 * like any other and finds nothing to take, as only samples from behind the ring change are compared.
 *
 *   DATA-DIR/repair.state: "vrvS", version (4), epoch (8), since (8), crc32c of those (4); little-endian
 *
 * Lost or damaged it costs that samples from before the last start may be left to the peers' own memory of when the ring came.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "ingest/ingest_repair_int.h"

enum { STATE_BYTES = 28, STATE_VERSION = 1, LOOK_MS = 1000, NAP_MS = 50, HINTS_LOOK_MS = 2000 };

/* ---- time ---- */

errc repair_sleep(struct repair *r, int64_t ms, struct err *err)
{
	while (ms > 0 && !atomic_load_explicit(&r->stop, memory_order_relaxed)) {
		io_sleep_ms(ms < NAP_MS ? ms : NAP_MS);
		ms -= NAP_MS;
	}
	return atomic_load_explicit(&r->stop, memory_order_relaxed) ? err_set(err, ERR_CANCELED, "stopping") : OK;
}

errc repair_rate(struct repair *r, uint64_t bytes, struct err *err)
{
	int64_t now = io_mono_ns();
	if (r->rate_from_ns == 0 || now < r->rate_from_ns || (uint64_t)(now - r->rate_from_ns) > UINT64_C(1000000000)) {
		r->rate_from_ns = now;
		r->rate_bytes = 0;
	}
	r->rate_bytes += bytes;
	double due_ns = (double)r->rate_bytes * 1e9 / (double)r->cfg.bytes_per_s, passed_ns = (double)(now - r->rate_from_ns);
	int64_t ms = due_ns > passed_ns ? (int64_t)((due_ns - passed_ns) / 1e6) : 0;
	if (ms > 0) {
		/* What was slept off is paid for. */
		r->rate_from_ns = 0;
		return repair_sleep(r, ms, err);
	}
	return OK;
}

/* ---- since when the rings in force are ---- */

static bool state_read(const char *path, uint64_t *epoch, int64_t *since_ms)
{
	struct arena arena;
	struct span s = {NULL, 0};
	struct err err = {0};
	bool good = false;
	arena_init(&arena, MIB);
	errc rc = io_read_file(path, 4096, &arena, &s, &err);
	if (rc == OK) {
		const char *p = s.p;
		good = s.n == STATE_BYTES && memcmp(p, "vrvS", 4) == 0 && get_le32(p + 4) == STATE_VERSION && get_le32(p + 24) == crc32c(0, p, 24);
		*epoch = good ? get_le64(p + 8) : 0;
		*since_ms = good ? (int64_t)get_le64(p + 16) : 0;
	}
	if (!good && rc != ERR_NOTFOUND)
		log_warn("since when the ring is in force could not be read back: it counts from now", LSTR("path", path), LERR(&err));
	arena_free(&arena);
	return good;
}

static void state_write(const char *path, uint64_t epoch, int64_t since_ms)
{
	uint8_t p[STATE_BYTES] = {'v', 'r', 'v', 'S', STATE_VERSION};
	struct err err = {0};
	put_le64(p + 8, epoch);
	put_le64(p + 16, (uint64_t)since_ms);
	put_le32(p + 24, crc32c(0, p, 24));
	if (io_write_file(path, span_of(p, sizeof p), &err) != OK)
		log_warn("since when the ring is in force could not be kept: after a restart it counts from then", LSTR("path", path), LERR(&err));
}

static void look_at_rings(struct repair *r, const struct ring_set *set)
{
	uint64_t epoch = set ? ring_set_epoch(set) : 0, kept = 0;
	int64_t now = io_now_ms(), since = 0;
	if (epoch == 0 || epoch == r->epoch)
		return;
	bool known = r->epoch == 0 && r->cfg.file && state_read(r->cfg.file, &kept, &since) && kept == epoch && since <= now;
	if (!known) {
		since = now - LIMIT_REPAIR_LATE_MS;
		if (r->cfg.file)
			state_write(r->cfg.file, epoch, since);
	}
	pthread_mutex_lock(&r->mu);
	r->epoch = epoch;
	r->since_ms = since;
	pthread_mutex_unlock(&r->mu);
}

int64_t repair_since(struct repair *r, uint64_t *epoch)
{
	pthread_mutex_lock(&r->mu);
	int64_t since = r->since_ms;
	*epoch = r->epoch;
	pthread_mutex_unlock(&r->mu);
	return since;
}

/* ---- peers ---- */

static struct repair_peer *peer_find_locked(struct repair *r, struct span address)
{
	for (size_t i = 0; i < r->n_peers; i++)
		if (span_is(address, r->peers[i].address))
			return &r->peers[i];
	return NULL;
}

static struct repair_peer *peer_make_locked(struct repair *r, struct span address)
{
	if (r->n_peers == r->cap_peers) {
		size_t cap = r->cap_peers ? r->cap_peers * 2 : 16;
		struct repair_peer *v = realloc(r->peers, cap * sizeof *v);
		if (!v)
			return NULL;
		r->peers = v;
		r->cap_peers = cap;
	}
	char *copy = strndup(address.p, address.n);
	if (!copy)
		return NULL;
	struct repair_peer *p = &r->peers[r->n_peers++];
	*p = (struct repair_peer){.address = copy};
	return p;
}

static void want_locked(struct repair_peer *p, unsigned why, int64_t now_ns, int64_t wait_ms)
{
	if (p->want == 0) {
		p->wanted_ns = now_ns;
		p->not_before_ns = now_ns + wait_ms * 1000000;
		p->failures = 0;
	} else if (p->not_before_ns > now_ns + wait_ms * 1000000) {
		p->not_before_ns = now_ns + wait_ms * 1000000;
	}
	if (why & (WANT_START | WANT_RETURN))
		p->settled_ns = now_ns + wait_ms * 1000000;
	p->want |= why;
}

/* Who stores, answers, and is not done with storing. */
static void look_at_nodes(struct repair *r, struct arena *arena)
{
	struct roster_node *nodes;
	size_t n;
	struct err err = {0};
	int64_t now = io_mono_ns(), wait_ms = r->cfg.settle_ms + LOOK_MS;
	if (r->cfg.nodes(r->cfg.arg, arena, &nodes, &n, &err) != OK)
		return;
	pthread_mutex_lock(&r->mu);
	for (size_t i = 0; i < r->n_peers; i++)
		r->peers[i].listed = false;
	for (size_t i = 0; i < n; i++) {
		const struct roster_node *x = &nodes[i];
		if (x->self || !x->in_ring || !x->stores || x->state == NODE_DRAINED)
			continue;
		struct repair_peer *p = peer_find_locked(r, x->address);
		bool fresh = !p;
		if (fresh)
			p = peer_make_locked(r, x->address);
		if (!p)
			continue; /* the next look finds it again */
		p->listed = true;
		if (fresh && !r->begun)
			want_locked(p, WANT_START, now, wait_ms);
		else if (!fresh && x->answers && !p->answers && p->started_ms != 0 && x->started_ms == p->started_ms)
			want_locked(p, WANT_RETURN, now, wait_ms);
		p->answers = x->answers;
		if (x->answers)
			p->started_ms = x->started_ms;
	}
	size_t kept = 0;
	for (size_t i = 0; i < r->n_peers; i++) {
		if (r->peers[i].listed)
			r->peers[kept++] = r->peers[i];
		else
			free(r->peers[i].address);
	}
	r->n_peers = kept;
	r->begun |= kept > 0;
	if (atomic_exchange(&r->all, false))
		for (size_t i = 0; i < r->n_peers; i++)
			want_locked(&r->peers[i], WANT_ASKED, now, 0);
	pthread_mutex_unlock(&r->mu);
}

/* What the peers dropped for us, or still have: asked now and then, and before a pass that hints may make cheaper. The array is this thread's; only `want` and what hangs on it is others',
 * too. */
static void ask_owed(struct repair *r)
{
	for (size_t i = 0; i < r->n_peers && !atomic_load(&r->stop); i++) {
		struct repair_peer *p = &r->peers[i];
		struct repair_owed owed = {0};
		struct err err = {0};
		int64_t now = io_mono_ns();
		pthread_mutex_lock(&r->mu);
		bool soon = p->want & (WANT_START | WANT_RETURN | WANT_OWED) && now >= p->not_before_ns;
		pthread_mutex_unlock(&r->mu);
		if (!p->answers || (!soon && p->owed_asked_ns != 0 && now - p->owed_asked_ns < LIMIT_REPAIR_OWED_MS * INT64_C(1000000)))
			continue;
		errc rc = repair_ask_owed(r, p->address, &owed, &err);
		pthread_mutex_lock(&r->mu);
		p->owed_asked_ns = now;
		if (rc != OK) {
			snprintf(p->why, sizeof p->why, "%s", err.msg);
		} else {
			p->owed_bytes = owed.pending_bytes;
			p->owed_to_ms = owed.to_ms;
			if (owed.to_ms > 0)
				want_locked(p, WANT_OWED, now, r->cfg.settle_ms);
			if (soon && owed.pending_bytes > 0 && now - p->wanted_ns < LIMIT_REPAIR_HINTS_MS * INT64_C(1000000))
				p->not_before_ns = now + HINTS_LOOK_MS * INT64_C(1000000);
		}
		pthread_mutex_unlock(&r->mu);
	}
}

static void doing(struct repair *r, const char *words)
{
	pthread_mutex_lock(&r->mu);
	r->doing = words;
	pthread_mutex_unlock(&r->mu);
}

/* Compares with everybody with whom it is time to. */
static bool compare(struct repair *r)
{
	size_t n = 0;
	struct repair_with *v = calloc(r->n_peers + 1, sizeof *v);
	unsigned *want = calloc(r->n_peers + 1, sizeof *want);
	struct repair_peer **of = calloc(r->n_peers + 1, sizeof(struct repair_peer *));
	int64_t now = io_mono_ns(), seen_ms = io_now_ms() - r->cfg.settle_ms;
	pthread_mutex_lock(&r->mu);
	for (size_t i = 0; v && want && of && i < r->n_peers; i++) {
		struct repair_peer *p = &r->peers[i];
		if (p->want == 0 || !p->answers || now < p->not_before_ns)
			continue;
		want[n] = now < p->settled_ns ? p->want & ~(unsigned)(WANT_START | WANT_RETURN) : p->want;
		of[n] = p;
		v[n++] = (struct repair_with){
			.address = p->address,
			.told = p->want == WANT_TOLD,
			.metadata = p->want & (WANT_START | WANT_OWED | WANT_ASKED),
			/* No more than this pass will have seen. */
			.owed_to_ms = p->owed_to_ms < seen_ms ? p->owed_to_ms : seen_ms,
		};
	}
	pthread_mutex_unlock(&r->mu);
	if (n > 0) {
		doing(r, "comparing");
		repair_pass(r, v, n);
		doing(r, "idle");
	}
	now = io_mono_ns();
	pthread_mutex_lock(&r->mu);
	for (size_t i = 0; i < n; i++) {
		struct repair_peer *p = of[i];
		if (v[i].rc == OK) {
			p->want &= ~want[i];
			if (p->want != 0 && p->not_before_ns < p->settled_ns)
				p->not_before_ns = p->settled_ns;
			p->failures = 0;
			p->owed_to_ms = 0;
			p->why[0] = 0;
			p->done_ms = io_now_ms();
			continue;
		}
		uint32_t k = p->failures < 8 ? p->failures : 8;
		int64_t wait_ms = (int64_t)LIMIT_REPAIR_AGAIN_MS << k;
		p->failures++;
		p->not_before_ns = now + (wait_ms < LIMIT_REPAIR_AGAIN_MAX_MS ? wait_ms : LIMIT_REPAIR_AGAIN_MAX_MS) * INT64_C(1000000);
		snprintf(p->why, sizeof p->why, "%s", v[i].why);
	}
	pthread_mutex_unlock(&r->mu);
	for (size_t i = 0; i < n; i++)
		if (v[i].rc != OK && v[i].rc != ERR_CANCELED)
			log_warn("windows could not be compared with a peer's; it is tried again", LSTR("peer", v[i].address), LSTR("why", v[i].why));
	free(v);
	free(want);
	free(of);
	return n > 0;
}

bool repair_step(struct repair *r)
{
	struct arena arena;
	uint32_t self;
	struct ring_set *set = r->cfg.rings(r->cfg.arg);
	bool in_ring = set && r->cfg.self.n > 0 && ring_set_find(set, r->cfg.self, &self), did = false;
	look_at_rings(r, set);
	ring_set_unref(set);
	if (!in_ring)
		return false;
	arena_init(&arena, 64 * MIB);
	look_at_nodes(r, &arena);
	arena_free(&arena);
	ask_owed(r);
	did = compare(r);
	size_t waiting = 0;
	pthread_mutex_lock(&r->mu);
	for (size_t i = 0; i < r->n_peers; i++)
		waiting += r->peers[i].want != 0;
	pthread_mutex_unlock(&r->mu);
	metric_set(r->m.waiting, (double)waiting);
	return did;
}

static void *thread_main(void *arg)
{
	struct repair *r = arg;
	while (!atomic_load(&r->stop)) {
		repair_step(r);
		for (int64_t ms = 0; ms < LOOK_MS && !atomic_load(&r->stop) && !atomic_load(&r->all); ms += NAP_MS)
			io_sleep_ms(NAP_MS);
	}
	return NULL;
}

void repair_all(struct repair *r)
{
	atomic_store(&r->all, true);
}

bool repair_told(struct repair *r, struct span address)
{
	pthread_mutex_lock(&r->mu);
	struct repair_peer *p = peer_find_locked(r, address);
	if (p)
		want_locked(p, WANT_TOLD, io_mono_ns(), 0);
	pthread_mutex_unlock(&r->mu);
	return p != NULL;
}

/* ---- what it says of itself ---- */

static void put_want(unsigned want, struct buf *out)
{
	static const char *const words[] = {"start", "return", "owed", "asked", "told"};
	bool first = true;
	buf_u8(out, '[');
	for (unsigned i = 0; i < sizeof words / sizeof *words; i++) {
		if (!(want >> i & 1))
			continue;
		buf_printf(out, "%s\"%s\"", first ? "" : ",", words[i]);
		first = false;
	}
	buf_u8(out, ']');
}

void repair_json(struct repair *r, struct buf *out)
{
	pthread_mutex_lock(&r->mu);
	const struct repair_counts *c = &r->counts;
	size_t waiting = 0;
	for (size_t i = 0; i < r->n_peers; i++)
		waiting += r->peers[i].want != 0;
	buf_printf(out, "{\"self\":");
	buf_json_string(out, r->cfg.self);
	buf_printf(out, ",\"epoch\":\"%016" PRIx64 "\",\"since\":%" PRId64 ",\"state\":\"%s\",\"complete\":%s", r->epoch, r->since_ms,
		waiting > 0 && strcmp(r->doing, "idle") == 0 ? "waiting" : r->doing, waiting == 0 ? "true" : "false");
	buf_printf(out,
		",\"passes\":%" PRIu64 ",\"windows\":{\"equal\":%" PRIu64 ",\"taken\":%" PRIu64 ",\"cut\":%" PRIu64 ",\"failed\":%" PRIu64 "}",
		c->passes, c->windows_equal, c->windows_taken, c->windows_cut, c->windows_failed);
	buf_printf(out,
		",\"buckets\":%" PRIu64 ",\"samples\":{\"stored\":%" PRIu64 ",\"duplicate\":%" PRIu64 ",\"refused\":%" PRIu64 "},\"bytes\":%" PRIu64
		",\"nodes\":[",
		c->buckets, c->stored, c->duplicate, c->refused, c->bytes);
	for (size_t i = 0; i < r->n_peers; i++) {
		const struct repair_peer *p = &r->peers[i];
		buf_printf(out, "%s{\"address\":", i ? "," : "");
		buf_json_string(out, span_cstr(p->address));
		buf_printf(out, ",\"answers\":%s,\"wanted\":", p->answers ? "true" : "false");
		put_want(p->want, out);
		buf_printf(out, ",\"owed_bytes\":%" PRIu64 ",\"done\":%" PRId64 ",\"failures\":%" PRIu32 ",\"error\":", p->owed_bytes, p->done_ms,
			p->failures);
		buf_json_string(out, p->want && !p->answers && !p->why[0]
					     ? SPAN("it does not answer: what it alone has of this node's series is not here")
					     : span_cstr(p->why));
		buf_u8(out, '}');
	}
	buf_printf(out, "]}\n");
	pthread_mutex_unlock(&r->mu);
}

/* ---- open and close ---- */

static void metrics_open(struct repair_metrics *m)
{
	static const char windows[] = "Open windows held against a peer's, by what came of it",
			  samples[] = "Samples given back by peers, by what became of them";
	m->equal = metric_counter_with("varve_repair_windows_total", windows, "result", "equal");
	m->taken = metric_counter_with("varve_repair_windows_total", windows, "result", "taken");
	m->cut = metric_counter_with("varve_repair_windows_total", windows, "result", "cut");
	m->failed = metric_counter_with("varve_repair_windows_total", windows, "result", "failed");
	m->stored = metric_counter_with("varve_repair_samples_total", samples, "result", "stored");
	m->duplicate = metric_counter_with("varve_repair_samples_total", samples, "result", "duplicate");
	m->refused = metric_counter_with("varve_repair_samples_total", samples, "result", "refused");
	m->bytes = metric_counter("varve_repair_bytes_total", "Bytes of frames, before compression, that peers gave back");
	m->passes = metric_counter("varve_repair_passes_total", "Comparisons with one or several peers that were carried through");
	m->waiting = metric_gauge("varve_repair_waiting_peers", "Peers that this node still has to compare its windows with");
	m->digests = metric_counter("varve_repair_digests_total", "Digests of windows made for peers");
}

errc repair_open(const struct repair_config *cfg, struct repair **out, struct err *err)
{
	ASSERT(cfg->head && cfg->rings && cfg->nodes && cfg->ask && cfg->store);
	struct repair *r = calloc(1, sizeof *r);
	*out = NULL;
	if (!r)
		return err_set(err, ERR_NOMEM, "no memory for repair");
	r->cfg = *cfg;
	r->self = strndup(cfg->self.n ? cfg->self.p : "", cfg->self.n);
	if (!r->self) {
		free(r);
		return err_set(err, ERR_NOMEM, "no memory for repair");
	}
	r->cfg.self = span_cstr(r->self);
	if (r->cfg.bytes_per_s == 0)
		r->cfg.bytes_per_s = LIMIT_REPAIR_BYTES_PER_S;
	if (r->cfg.settle_ms == 0)
		r->cfg.settle_ms = LIMIT_REPAIR_SETTLE_MS;
	r->process = io_random_u64();
	r->doing = "idle";
	pthread_mutex_init(&r->mu, NULL);
	pthread_mutex_init(&r->serving, NULL);
	metrics_open(&r->m);
	*out = r;
	return OK;
}

void repair_ready(struct repair *r)
{
	struct ring_set *set = r->cfg.rings(r->cfg.arg);
	look_at_rings(r, set); /* before anybody is told since when they are */
	ring_set_unref(set);
	atomic_store(&r->ready, true);
}

errc repair_start(struct repair *r, struct err *err)
{
	repair_ready(r);
	if (r->cfg.self.n == 0)
		return OK;
	if (pthread_create(&r->thread, NULL, thread_main, r) != 0)
		return err_set(err, ERR_NOMEM, "no thread for repair");
	r->runs = true;
	return OK;
}

void repair_cancel(struct repair *r)
{
	if (r)
		atomic_store(&r->stop, true);
}

void repair_close(struct repair *r)
{
	if (!r)
		return;
	repair_cancel(r);
	if (r->runs)
		pthread_join(r->thread, NULL);
	for (size_t i = 0; i < r->n_peers; i++)
		free(r->peers[i].address);
	free(r->peers);
	free(r->self);
	pthread_mutex_destroy(&r->mu);
	pthread_mutex_destroy(&r->serving);
	free(r);
}
