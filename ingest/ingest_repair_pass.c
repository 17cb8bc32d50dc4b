/* ingest/ingest_repair_pass.c - one pass: open windows compared with those of some peers, and what differs taken from them.
 *
 *     windows of all of them ─▶ by tenant and time ─▶ each: own digest, once ─▶ each peer's digest ─▶ buckets that differ ─▶ pieces ─▶ stored
 *                                                           ▲                                                                     │
 *                                                           └──────────── made again when something was new ◀─────────────────────┘
 *
 * The own digest is of one walk for all peers; it is made again only after something was stored, so that the second replica of what was lost gives nothing twice.
 * A peer that does not answer, or has other rings, costs the rest nothing: it is left out and tried again later. What is stored stays: a pass that ends anywhere is begun
 * anew, and finds fewer differences.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "ingest/ingest_repair_int.h"

enum { TARGET_BYTES = 4096, ASK_TRIES = 6, STORE_TRIES = 12, ESCAPED_BYTES = 3 * LIMIT_RING_ADDRESS_BYTES + 1 };

/* ---- asking ---- */

/* Everything but letters, digits, '.', '_' and '-' as %XX. */
static void escape(const char *s, char out[ESCAPED_BYTES])
{
	size_t n = 0;
	for (; *s && n + 4 < ESCAPED_BYTES; s++) {
		bool plain = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9') || *s == '.' || *s == '_' || *s == '-';
		n += (size_t)snprintf(out + n, 4, plain ? "%c" : "%%%02X", (unsigned char)*s);
	}
	out[n] = 0;
}

static errc ask_once(struct repair *r, const struct repair_ask *a, struct buf *answer, struct err *err)
{
	int status = 0;
	buf_clear(answer);
	errc rc = r->cfg.ask(r->cfg.arg, a, &status, answer, err);
	if (rc != OK)
		return rc;
	if (answer->failed)
		return err_set(err, ERR_NOMEM, "no memory for the answer of %.*s", SPAN_ARG(a->address));
	if (status >= 200 && status <= 299)
		return OK;
	return err_set(err,
		status == 404			 ? ERR_NOTFOUND
		: status == 503 || status == 429 ? ERR_AGAIN
						 : ERR_NET,
		"%.*s: %d: %.*s", SPAN_ARG(a->address), status, (int)(answer->n < 200 ? answer->n : 200), answer->p ? (const char *)answer->p : "");
}

/* With another try for what may pass. */
static errc ask(
	struct repair *r, const char *address, const char *method, const char *target, int64_t timeout_ms, struct buf *answer, struct err *err)
{
	errc rc = OK;
	int64_t wait_ms = LIMIT_REPAIR_RETRY_MS;
	for (int i = 0; i < ASK_TRIES; i++) {
		struct err why = {0};
		const struct repair_ask a = {
			.address = span_cstr(address),
			.method = method,
			.target = target,
			.deadline_mono_ns = io_mono_ns() + timeout_ms * 1000000,
			.max_answer_bytes = LIMIT_REPAIR_ANSWER_BYTES,
		};
		rc = atomic_load(&r->stop) ? err_set(&why, ERR_CANCELED, "stopping") : ask_once(r, &a, answer, &why);
		if (rc != OK && err)
			*err = why;
		if (rc != ERR_AGAIN && rc != ERR_NET && rc != ERR_TIMEOUT)
			break;
		if (i + 1 < ASK_TRIES && repair_sleep(r, wait_ms, NULL) != OK)
			return err_set(err, ERR_CANCELED, "stopping");
		wait_ms *= 3;
	}
	return rc;
}

PRINTF_LIKE(3, 4) static errc target_of(char out[TARGET_BYTES], struct err *err, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(out, TARGET_BYTES, fmt, ap);
	va_end(ap);
	return n > 0 && n < TARGET_BYTES ? OK : err_set(err, ERR_LIMIT, "a question of %d bytes", n);
}

errc repair_ask_owed(struct repair *r, const char *address, struct repair_owed *out, struct err *err)
{
	errc rc = OK;
	struct buf answer;
	char target[TARGET_BYTES], self[ESCAPED_BYTES];
	buf_init(&answer, LIMIT_REPAIR_ANSWER_BYTES);
	escape(r->self, self);
	TRY(target_of(target, err, "/-/peer/owed?with=%s", self));
	const struct repair_ask a = {.address = span_cstr(address),
		.method = "GET",
		.target = target,
		.deadline_mono_ns = io_mono_ns() + LIMIT_REPAIR_ASK_MS * INT64_C(1000000),
		.max_answer_bytes = LIMIT_REPAIR_ANSWER_BYTES};
	TRY(ask_once(r, &a, &answer, err));
	TRY(repair_owed_decode(span_of(answer.p, answer.n), out, err));
fail:
	buf_free(&answer);
	return rc;
}

/* ---- the pass ---- */

enum { OWN_WINDOW = UINT32_MAX };
struct pass_window {
	struct repair_window w;
	uint32_t with; /* who has it */
};
struct pass_peer {
	struct repair_with *with;
	int64_t since_ms;
	bool lacks;		 /* something of what this node has */
	struct span metadata_of; /* the tenant whose metadata came last */
};
struct pass {
	struct repair *r;
	struct ring_set *set;
	uint64_t epoch;
	int64_t since_ms;
	struct pass_peer *peers;
	size_t n_peers;
	struct pass_window *windows;
	size_t n_windows, cap_windows;
	struct arena arena; /* tenants' names */
	struct buf answer;
	char self[ESCAPED_BYTES], target[TARGET_BYTES];
};

static void count(struct repair *r, uint64_t *what, struct metric *m, uint64_t n)
{
	pthread_mutex_lock(&r->mu);
	*what += n;
	pthread_mutex_unlock(&r->mu);
	metric_add(m, n);
}

static void failed(struct pass_peer *p, errc rc, const struct err *err)
{
	p->with->rc = rc;
	snprintf(p->with->why, sizeof p->with->why, "%s", err->msg);
}

static errc same_rings(const struct pass *p, uint64_t epoch, const struct pass_peer *peer, struct err *err)
{
	if (epoch == p->epoch)
		return OK;
	return err_set(err, ERR_AGAIN, "%s runs other rings (epoch %016" PRIx64 ", here %016" PRIx64 "): compared when they agree",
		peer->with->address, epoch, p->epoch);
}

static errc windows_room(struct pass *p, size_t n, struct err *err)
{
	if (p->n_windows + n <= p->cap_windows)
		return OK;
	size_t cap = (p->n_windows + n) * 2;
	struct pass_window *v = realloc(p->windows, cap * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for %zu windows", cap);
	p->windows = v;
	p->cap_windows = cap;
	return OK;
}

static errc windows_of(struct pass *p, uint32_t i, struct err *err)
{
	errc rc = OK;
	struct pass_peer *peer = &p->peers[i];
	struct arena page;
	arena_init(&page, 256 * MIB);
	for (uint32_t from = 0; from != UINT32_MAX;) {
		struct repair_windows m;
		arena_reset(&page);
		TRY(target_of(p->target, err, "/-/peer/windows?with=%s&from=%" PRIu32, p->self, from));
		TRY(ask(p->r, peer->with->address, "GET", p->target, LIMIT_REPAIR_ASK_MS, &p->answer, err));
		TRY(repair_windows_decode(span_of(p->answer.p, p->answer.n), &page, &m, err));
		TRY(same_rings(p, m.epoch, peer, err));
		CHECK(m.next > from, ERR_INVALID, "%s: pages of windows that do not end", peer->with->address);
		CHECK(p->n_windows + m.n <= LIMIT_REPAIR_WINDOWS, ERR_LIMIT, "more than %d open windows", LIMIT_REPAIR_WINDOWS);
		peer->since_ms = m.since_ms;
		TRY(windows_room(p, m.n, err));
		for (uint32_t k = 0; k < m.n; k++) {
			struct pass_window *w = &p->windows[p->n_windows];
			*w = (struct pass_window){m.v[k], i};
			w->w.tenant = arena_dup(&p->arena, m.v[k].tenant);
			CHECK(w->w.tenant.p, ERR_NOMEM, "no memory for windows");
			p->n_windows++;
		}
		from = m.next;
	}
fail:
	arena_free(&page);
	return rc;
}

/* This node's own: a peer may have nothing of one. */
static errc windows_own(struct pass *p, struct err *err)
{
	errc rc = OK;
	struct head_usage *tenants;
	size_t n_tenants, n;
	TRY(head_usages(p->r->cfg.head, io_now_ms(), &p->arena, &tenants, &n_tenants, err));
	for (size_t i = 0; i < n_tenants; i++) {
		struct head_window *v;
		TRY(head_windows(p->r->cfg.head, tenants[i].tenant, &p->arena, &v, &n, err));
		TRY(windows_room(p, n, err));
		for (size_t k = 0; k < n; k++)
			if (v[k].open)
				p->windows[p->n_windows++] =
					(struct pass_window){{.tenant = tenants[i].tenant, .start = v[k].start, .range = v[k].range}, OWN_WINDOW};
	}
fail:
	return rc;
}

static int window_order(const void *a, const void *b)
{
	const struct pass_window *x = a, *y = b;
	int c = span_cmp(x->w.tenant, y->w.tenant);
	if (c != 0)
		return c;
	if (x->w.start != y->w.start)
		return x->w.start < y->w.start ? -1 : 1;
	if (x->w.range != y->w.range)
		return x->w.range < y->w.range ? -1 : 1;
	return (x->with > y->with) - (x->with < y->with);
}

static errc question(struct pass *p, const struct digest_range *g, const char *what, struct err *err)
{
	return target_of(p->target, err, "/-/peer/%s?with=%s&tenant=%.*s&start=%" PRId64 "&range=%" PRId64 "&from=%" PRId64 "&until=%" PRId64, what,
		p->self, SPAN_ARG(g->tenant), g->start, g->range, g->mint, g->maxt);
}

static errc digest_of(struct pass *p, const struct pass_peer *peer, const struct digest_range *g, struct repair_digest_answer *out, struct err *err)
{
	errc rc = OK;
	TRY(question(p, g, "digest", err));
	TRY(ask(p->r, peer->with->address, "GET", p->target, LIMIT_REPAIR_DIGEST_MS, &p->answer, err));
	TRY(repair_digest_decode(span_of(p->answer.p, p->answer.n), out, err));
	TRY(same_rings(p, out->epoch, peer, err));
fail:
	return rc;
}

/* What can't be stored now is tried again for a while: memory and disk come back. */
static errc store(struct pass *p, struct span frame, uint64_t *stored, struct err *err)
{
	errc rc = OK;
	struct repair *r = p->r;
	struct repair_stored s = {0};
	size_t bytes = 0;
	int64_t wait_ms = LIMIT_REPAIR_RETRY_MS;
	TRY(peer_request_declared(frame, &bytes, err));
	for (int i = 0;; i++) {
		rc = r->cfg.store(r->cfg.arg, frame, &s, err);
		if ((rc != ERR_AGAIN && rc != ERR_NOSPACE && rc != ERR_NOMEM) || i == STORE_TRIES)
			break;
		TRY(repair_sleep(r, wait_ms, err));
		wait_ms = wait_ms * 2 < LIMIT_REPAIR_RETRY_MAX_MS ? wait_ms * 2 : LIMIT_REPAIR_RETRY_MAX_MS;
	}
	TRY(rc);
	*stored += s.stored;
	count(r, &r->counts.stored, r->m.stored, s.stored);
	count(r, &r->counts.duplicate, r->m.duplicate, s.duplicate);
	count(r, &r->counts.refused, r->m.refused, s.refused);
	count(r, &r->counts.bytes, r->m.bytes, bytes);
	TRY(repair_rate(r, bytes, err));
fail:
	return rc;
}

/* The series of these buckets, piece by piece. */
static errc take(
	struct pass *p, const struct pass_peer *peer, const struct digest_range *g, const uint8_t *buckets, uint64_t *stored, struct err *err)
{
	errc rc = OK;
	char set[2 * REPAIR_BUCKETS_BYTES + 1], cursor[REPAIR_CURSOR_TEXT] = "";
	struct repair_piece m = {.more = true};
	repair_buckets_text(buckets, set);
	while (m.more) {
		TRY(question(p, g, "window", err));
		size_t n = strlen(p->target);
		int more = snprintf(p->target + n, TARGET_BYTES - n, "&buckets=%s&cursor=%s", set, cursor);
		CHECK(more > 0 && (size_t)more < TARGET_BYTES - n, ERR_LIMIT, "a question of %zu bytes", n);
		rc = ask(p->r, peer->with->address, "GET", p->target, LIMIT_REPAIR_DIGEST_MS, &p->answer, err);
		if (rc == ERR_NOTFOUND) /* it has been cut meanwhile: a block is made of it */
			return OK;
		TRY(rc);
		TRY(repair_piece_decode(span_of(p->answer.p, p->answer.n), &m, err));
		TRY(same_rings(p, m.epoch, peer, err));
		if (m.frame.n > 0)
			TRY(store(p, m.frame, stored, err));
		repair_cursor_text(&m.cursor, cursor);
	}
fail:
	return rc;
}

static errc take_metadata(struct pass *p, struct pass_peer *peer, const struct digest_range *g, struct err *err)
{
	errc rc = OK;
	struct repair_piece m;
	uint64_t stored = 0;
	if (!peer->with->metadata || span_eq(peer->metadata_of, g->tenant))
		return OK;
	TRY(question(p, g, "window", err));
	size_t n = strlen(p->target);
	snprintf(p->target + n, TARGET_BYTES - n, "&metadata=1");
	TRY(ask(p->r, peer->with->address, "GET", p->target, LIMIT_REPAIR_DIGEST_MS, &p->answer, err));
	TRY(repair_piece_decode(span_of(p->answer.p, p->answer.n), &m, err));
	if (m.frame.n > 0)
		TRY(store(p, m.frame, &stored, err));
	peer->metadata_of = g->tenant;
fail:
	return rc;
}

/* What this node has of a window, for all peers. */
struct own {
	struct digest d;
	struct shared shared;
	bool valid;
};

static errc own_make(struct pass *p, const struct digest_range *g, struct own *o, struct err *err)
{
	struct pace pace = {.stop = &p->r->stop};
	if (o->valid)
		return OK;
	digest_free(&o->d);
	errc rc = digest_make(p->r->cfg.head, g, &o->shared, DIGEST_EVERYBODY, &pace, &o->d, err);
	o->valid = rc == OK;
	return rc;
}

/* Buckets of which the peer has another content; how many. lacks: of some of them it may be the peer that has less. */
static uint32_t differing(const struct own *o, uint32_t node, const struct repair_digest_answer *its, uint8_t *set, bool *lacks)
{
	static const struct digest_bucket nothing[DIGEST_BUCKETS];
	const struct digest_bucket *mine = node < o->d.n && o->d.peer[node] ? o->d.peer[node] : nothing;
	uint32_t n = 0;
	memset(set, 0, REPAIR_BUCKETS_BYTES);
	*lacks = false;
	for (uint32_t i = 0; i < DIGEST_BUCKETS; i++) {
		if (digest_bucket_eq(&mine[i], &its->buckets[i]))
			continue;
		*lacks |= mine[i].samples > 0;
		if (its->buckets[i].samples == 0)
			continue;
		set[i / 8] |= (uint8_t)(1 << i % 8);
		n++;
	}
	return n;
}

static errc compare(struct pass *p, struct pass_peer *peer, const struct digest_range *g, bool its_cut, struct own *o, struct err *err)
{
	errc rc = OK;
	struct repair *r = p->r;
	uint8_t set[REPAIR_BUCKETS_BYTES];
	bool lacks;
	uint32_t node;
	uint64_t stored = 0;
	struct repair_digest_answer *its = malloc(sizeof *its);
	CHECK(its, ERR_NOMEM, "no memory for a digest");
	CHECK(ring_set_find(p->set, span_cstr(peer->with->address), &node), ERR_AGAIN, "%s has left the rings", peer->with->address);
	TRY(own_make(p, g, o, err));
	/* What is left of a window that was cut in part can't be held against a whole one; to a node that has nothing of it it is still of use. */
	if (its_cut && o->d.open) {
		count(r, &r->counts.windows_cut, r->m.cut, 1);
		goto fail;
	}
	TRY(digest_of(p, peer, g, its, err));
	uint32_t n = differing(o, node, its, set, &lacks);
	if (n == 0 && !lacks) {
		count(r, &r->counts.windows_equal, r->m.equal, 1);
		goto fail;
	}
	if (n > 0) {
		TRY(take(p, peer, g, set, &stored, err));
		TRY(take_metadata(p, peer, g, err));
		if (stored > 0) {
			o->valid = false;
			TRY(own_make(p, g, o, err));
			differing(o, node, its, set, &lacks);
		}
		pthread_mutex_lock(&r->mu);
		r->counts.buckets += n;
		pthread_mutex_unlock(&r->mu);
		log_info("a window was compared with a peer's, and what differed was taken", LSTR("peer", peer->with->address),
			LSPAN("tenant", g->tenant), LI64("start", g->start), LU64("buckets", n), LU64("stored", stored),
			LU64("peer_lacks_some", lacks));
	}
	peer->lacks |= lacks;
	count(r, &r->counts.windows_taken, r->m.taken, 1);
fail:
	free(its);
	return rc;
}

/* Of a window of this node's: the peers that have nothing of it, and should. v: those that have it. */
static errc absent(struct pass *p, const struct pass_window *v, size_t n, const struct digest_range *g, struct own *o, struct err *err)
{
	errc rc = OK;
	for (uint32_t i = 0; i < p->n_peers; i++) {
		struct pass_peer *peer = &p->peers[i];
		uint32_t node;
		bool has = peer->with->rc != OK || peer->with->told || peer->lacks;
		for (size_t k = 0; k < n && !has; k++)
			has = v[k].with == i;
		if (has || !ring_set_find(p->set, span_cstr(peer->with->address), &node))
			continue;
		TRY(own_make(p, g, o, err));
		peer->lacks = o->d.peer[node] != NULL;
	}
fail:
	return rc;
}

/* One window, of all that have it. */
static void group(struct pass *p, const struct pass_window *v, size_t n)
{
	struct repair *r = p->r;
	struct own o = {.valid = false};
	struct err err = {0};
	struct digest_range g = {v->w.tenant, v->w.start, v->w.range, v->w.start, v->w.start + v->w.range - 1};
	int64_t until = io_now_ms() - r->cfg.settle_ms;
	g.mint = p->since_ms > g.mint ? p->since_ms : g.mint;
	g.maxt = until < g.maxt ? until : g.maxt;
	if (g.mint > g.maxt)
		return;
	if (r->cfg.cut && r->cfg.cut(r->cfg.arg, g.tenant, g.start, g.start + g.range)) {
		count(r, &r->counts.windows_cut, r->m.cut, n - (v[n - 1].with == OWN_WINDOW));
		return;
	}
	errc rc = shared_begin(&o.shared, p->set, r->cfg.self, g.tenant, &err);
	bool mine = v[n - 1].with == OWN_WINDOW;
	n -= mine;
	for (size_t i = 0; i < n; i++) {
		struct pass_peer *peer = &p->peers[v[i].with];
		if (peer->with->rc != OK)
			continue;
		errc one = rc == OK ? compare(p, peer, &g, v[i].w.cut, &o, &err) : rc;
		if (one != OK) {
			failed(peer, one, &err);
			count(r, &r->counts.windows_failed, r->m.failed, 1);
		}
	}
	if (mine && rc == OK && absent(p, v, n, &g, &o, &err) != OK)
		log_warn("a window could not be read for a digest", LSPAN("tenant", g.tenant), LI64("start", g.start), LERR(&err));
	digest_free(&o.d);
	shared_end(&o.shared);
}

static void peer_ends(struct pass *p, struct pass_peer *peer)
{
	struct err err = {0};
	errc rc = OK;
	if (peer->with->rc == OK && peer->with->owed_to_ms > 0) {
		TRY(target_of(p->target, &err, "/-/peer/owed?with=%s&to=%" PRId64, p->self, peer->with->owed_to_ms));
		TRY(ask(p->r, peer->with->address, "POST", p->target, LIMIT_REPAIR_ASK_MS, &p->answer, &err));
	}
	if (peer->lacks && !peer->with->told) {
		TRY(target_of(p->target, &err, "/-/peer/repair?with=%s", p->self));
		TRY(ask(p->r, peer->with->address, "POST", p->target, LIMIT_REPAIR_ASK_MS, &p->answer, &err));
	}
fail:
	if (rc != OK && peer->with->rc == OK)
		failed(peer, rc, &err);
}

void repair_pass(struct repair *r, struct repair_with *v, size_t n)
{
	errc rc = OK;
	struct err why = {0}, *err = &why;
	struct pass p = {.r = r};
	arena_init(&p.arena, GIB);
	buf_init(&p.answer, LIMIT_REPAIR_ANSWER_BYTES);
	for (size_t i = 0; i < n; i++)
		v[i].rc = OK;
	escape(r->self, p.self);
	p.since_ms = repair_since(r, &p.epoch);
	p.set = r->cfg.rings(r->cfg.arg);
	CHECK(p.set && ring_set_epoch(p.set) == p.epoch, ERR_AGAIN, "the rings have just changed");
	p.peers = calloc(n, sizeof *p.peers);
	CHECK(p.peers, ERR_NOMEM, "no memory to compare with %zu nodes", n);
	p.n_peers = n;
	for (uint32_t i = 0; i < n; i++) {
		p.peers[i].with = &v[i];
		rc = windows_of(&p, i, err);
		if (rc != OK)
			failed(&p.peers[i], rc, err);
		else if (p.peers[i].since_ms < p.since_ms)
			p.since_ms = p.peers[i].since_ms;
	}
	TRY(windows_own(&p, err));
	if (p.n_windows > 1)
		qsort(p.windows, p.n_windows, sizeof *p.windows, window_order);
	for (size_t a = 0, b; a < p.n_windows && !atomic_load(&r->stop); a = b) {
		const struct repair_window *w = &p.windows[a].w;
		for (b = a + 1; b < p.n_windows; b++) {
			const struct repair_window *x = &p.windows[b].w;
			if (!span_eq(x->tenant, w->tenant) || x->start != w->start || x->range != w->range)
				break;
		}
		group(&p, p.windows + a, b - a);
	}
	CHECK(!atomic_load(&r->stop), ERR_CANCELED, "stopping");
	for (size_t i = 0; i < n; i++)
		peer_ends(&p, &p.peers[i]);
	count(r, &r->counts.passes, r->m.passes, 1);
fail:
	for (size_t i = 0; rc != OK && i < n; i++)
		if (v[i].rc == OK) {
			v[i].rc = rc;
			snprintf(v[i].why, sizeof v[i].why, "%s", why.msg);
		}
	ring_set_unref(p.set);
	free(p.peers);
	free(p.windows);
	arena_free(&p.arena);
	buf_free(&p.answer);
}
