/* ingest/ingest_repair_serve.c - what this node says when a peer, or a person, asks what its open windows hold.
 *
 * A piece of a window is bounded by its bytes and by the series that were looked at for it, and its cursor is a place in the window: nothing is kept between two pieces, so whoever
 * asks may come back when it likes, or never. A cursor of another process, or of a window that was cut and opened again, begins anew: what is sent twice is a duplicate.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "cluster/cluster.h"
#include "ingest/ingest_repair_int.h"

enum { WINDOWS_PER_PAGE = 4096, TENANTS_PER_PAGE = 20000 };
/* A piece is stored under one hold of each shard's lock, which clients wait for: some ten thousand samples are a millisecond or two. */
enum { PIECE_BYTES = 256 << 10, PIECE_SERIES = 1 << 16, READ_BYTES = 64 << 10, METADATA_BYTES = 32 << 20, TOTALS_BYTES = 64 << 20 };

static errc not_now(struct err *err, const char *what)
{
	return err_id(err, ERRID_NOT_READY, ERR_AGAIN, "%s", what);
}

/* The rings in force, counted. */
static errc rings(struct repair *r, struct ring_set **set, struct err *err)
{
	*set = NULL;
	if (!atomic_load(&r->ready))
		return not_now(err, "the log is being replayed");
	*set = r->cfg.rings(r->cfg.arg);
	return *set ? OK : not_now(err, "this node has no ring");
}

/* Both nodes, and the rings, or why not. */
static errc both(struct repair *r, struct ring_set *set, struct span with, uint32_t *node, struct err *err)
{
	uint32_t self;
	if (r->cfg.self.n == 0 || !ring_set_find(set, r->cfg.self, &self))
		return not_now(err, "this node is not in its rings");
	if (!ring_set_find(set, with, node))
		return not_now(err, "who asks is not in the rings of this node");
	return OK;
}

static bool in_ring(const struct ring *ring, uint32_t node)
{
	const uint16_t *nodes;
	uint32_t n = ring_nodes(ring, &nodes);
	for (uint32_t i = 0; i < n; i++)
		if (nodes[i] == node)
			return true;
	return false;
}

static bool was_cut(struct repair *r, struct span tenant, int64_t start, int64_t range)
{
	return r->cfg.cut && r->cfg.cut(r->cfg.arg, tenant, start, start + range);
}

/* ---- windows ---- */

/* Of a window in a list: whether a block is made of samples of its time, or there is one already. */
static bool cut_beside(struct repair *r, struct span tenant, const struct head_window *v, size_t n, size_t i)
{
	for (size_t k = 0; k < n; k++)
		if (!v[k].open && v[k].start < v[i].start + v[i].range && v[i].start < v[k].start + v[k].range)
			return true;
	return was_cut(r, tenant, v[i].start, v[i].range);
}

errc repair_serve_windows(struct repair *r, struct span with, uint32_t from, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct ring_set *set = NULL;
	struct head_usage *tenants;
	size_t n_tenants;
	uint32_t node, self;
	struct arena arena;
	struct repair_windows m = {.next = UINT32_MAX};
	arena_init(&arena, 256 * MIB);
	TRY(rings(r, &set, err));
	TRY(both(r, set, with, &node, err));
	ASSERT(ring_set_find(set, r->cfg.self, &self));
	m.since_ms = repair_since(r, &m.epoch);
	if (m.epoch != ring_set_epoch(set)) {
		rc = not_now(err, "this node has just got its rings");
		goto fail;
	}
	TRY(head_usages(r->cfg.head, io_now_ms(), &arena, &tenants, &n_tenants, err));
	size_t cap = WINDOWS_PER_PAGE;
	m.v = arena_alloc(&arena, cap * sizeof *m.v);
	CHECK(m.v, ERR_NOMEM, "no memory for a list of windows");
	for (size_t i = from; i < n_tenants; i++) {
		if (i - from == TENANTS_PER_PAGE || m.n >= WINDOWS_PER_PAGE) {
			m.next = (uint32_t)i;
			break;
		}
		struct span tenant = tenants[i].tenant;
		struct ring *ring;
		struct head_window *v;
		size_t n;
		if (tenants[i].windows == 0)
			continue;
		TRY(ring_for_tenant(set, tenant, &ring, err));
		bool ours = ring && in_ring(ring, self) && in_ring(ring, node);
		ring_unref(ring);
		if (!ours)
			continue;
		TRY(head_windows(r->cfg.head, tenant, &arena, &v, &n, err));
		if (m.n + n > cap) {
			struct repair_window *more = arena_alloc(&arena, (m.n + n) * 2 * sizeof *more);
			CHECK(more, ERR_NOMEM, "no memory for a list of windows");
			memcpy(more, m.v, m.n * sizeof *more);
			m.v = more;
			cap = (m.n + n) * 2;
		}
		for (size_t k = 0; k < n; k++)
			if (v[k].open)
				m.v[m.n++] = (struct repair_window){tenant, v[k].start, v[k].range, v[k].samples, cut_beside(r, tenant, v, n, k)};
	}
	TRY(repair_windows_encode(&m, out, err));
fail:
	ring_set_unref(set);
	arena_free(&arena);
	return rc;
}

/* ---- a digest ---- */

errc repair_serve_digest(struct repair *r, const struct repair_question *q, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct ring_set *set = NULL;
	struct shared shared = {.set = NULL};
	struct digest d = {0};
	struct pace pace = {.stop = &r->stop};
	uint32_t node;
	struct repair_digest_answer *m = calloc(1, sizeof *m);
	bool locked = false;
	CHECK(m, ERR_NOMEM, "no memory for a digest");
	TRY(rings(r, &set, err));
	TRY(both(r, set, q->with, &node, err));
	locked = pthread_mutex_trylock(&r->serving) == 0;
	if (!locked) {
		rc = err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "another digest is being made");
		goto fail;
	}
	TRY(shared_begin(&shared, set, r->cfg.self, q->range.tenant, err));
	TRY(digest_make(r->cfg.head, &q->range, &shared, node, &pace, &d, err));
	metric_add(r->m.digests, 1);
	m->epoch = ring_set_epoch(set);
	m->open = d.open;
	m->cut = was_cut(r, q->range.tenant, q->range.start, q->range.range);
	if (d.peer[node])
		memcpy(m->buckets, d.peer[node], sizeof m->buckets);
	TRY(repair_digest_encode(m, out, err));
fail:
	if (locked)
		pthread_mutex_unlock(&r->serving);
	digest_free(&d);
	shared_end(&shared);
	ring_set_unref(set);
	free(m);
	return rc;
}

/* ---- a piece of a window ---- */

static void put_float(struct buf *body, const struct chunk_sample *s)
{
	size_t at = pb_begin(body, 2);
	pb_double_bits(body, 1, s->v);
	pb_uint(body, 2, (uint64_t)s->t);
	pb_end(body, at);
}

/* A TimeSeries with these samples. */
static errc put_series(struct buf *body, struct span wire, const struct head_samples *x, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	arena_init(&arena, LIMIT_HISTOGRAM_MEMORY_BYTES);
	size_t at = pb_begin(body, 1);
	buf_span(body, wire); /* canonical labels are its field 1 */
	for (size_t i = 0; i < x->n_floats; i++)
		put_float(body, &x->floats[i]);
	for (size_t i = 0; i < x->n_hists; i++) {
		enum sample_kind kind;
		struct histogram h;
		arena_reset(&arena);
		TRY(histogram_unpack(x->hists[i].packed, &arena, &kind, &h, err));
		pb_histogram(body, 4, x->hists[i].t, kind, &h);
	}
	pb_end(body, at);
fail:
	arena_free(&arena);
	return rc;
}

/* body, of one tenant, as a frame. Times were judged when it was stored here. */
static errc frame_of(struct repair *r, uint64_t epoch, struct span tenant, uint32_t n_series, uint32_t n_metadata, const struct buf *body,
	struct buf *frame, struct err *err)
{
	errc rc = OK;
	struct buf raw;
	struct peer_request q = {.epoch = epoch, .hint = true, .now_ms = io_now_ms(), .min_t = INT64_MIN, .max_t = INT64_MAX, .n_sections = 1};
	const struct peer_section s = {.tenant = tenant, .version = RW_1, .n_series = n_series, .n_metadata = n_metadata};
	buf_init(&raw, LIMIT_PEER_REQUEST_BYTES);
	put_le64(q.id, r->process);
	CHECK(!body->failed && peer_raw_begin(&raw), ERR_NOMEM, "no memory for a piece of a window");
	size_t mark = peer_section_begin(&raw, &s);
	buf_put(&raw, body->p, body->n);
	peer_section_end(&raw, mark);
	TRY(peer_raw_finish(&q, true, &raw, frame, err));
fail:
	buf_free(&raw);
	return rc;
}

static bool has_bucket(const struct repair_question *q, uint32_t bucket)
{
	return q->buckets[bucket / 8] >> bucket % 8 & 1;
}

static errc piece_fill(struct repair *r, const struct repair_question *q, struct head_walk *k, struct shared *shared, uint32_t node,
	struct repair_piece *m, struct buf *body, struct err *err)
{
	errc rc = OK;
	struct buf wire;
	uint64_t id[2];
	buf_init(&wire, 64 * MIB);
	bool goes_on = q->goes_on && q->cursor.process == r->process && q->cursor.window == head_walk_window(k);
	if (goes_on)
		head_walk_seek(k, q->cursor.place);
	for (uint32_t seen = 0;; seen++) {
		struct labels l;
		struct head_place place;
		uint32_t owners[LIMIT_RING_FACTOR], n;
		bool more, asked = false;
		TRY(head_walk_next(k, &l, &place, &more, err));
		if (!more)
			break;
		m->cursor = (struct repair_cursor){r->process, head_walk_window(k), place, q->range.mint};
		if (seen == PIECE_SERIES || body->n >= PIECE_BYTES) {
			m->more = true;
			break;
		}
		n = shared_with(shared, l, owners);
		for (uint32_t i = 0; i < n && !asked; i++)
			asked = owners[i] == node;
		if (!asked || !has_bucket(q, digest_series(l, &wire, id)))
			continue;
		CHECK(!wire.failed, ERR_NOMEM, "no memory for the labels of a series");
		struct head_samples x = {.more = true, .next_t = q->range.mint};
		if (goes_on && place.shard == q->cursor.place.shard && place.local == q->cursor.place.local && q->cursor.t > x.next_t)
			x.next_t = q->cursor.t;
		while (x.more && body->n < PIECE_BYTES) {
			TRY(head_walk_samples(k, x.next_t, q->range.maxt, READ_BYTES, &x, err));
			if (x.n_floats + x.n_hists == 0)
				continue;
			TRY(put_series(body, span_of(wire.p, wire.n), &x, err));
			CHECK(!body->failed, ERR_NOMEM, "no memory for a piece of a window");
			m->series++;
			m->samples += x.n_floats + x.n_hists;
		}
		if (x.more) {
			m->cursor.t = x.next_t;
			m->more = true;
			break;
		}
	}
fail:
	buf_free(&wire);
	return rc;
}

/* Metadata is told newest first, and whoever is told last wins: so it is sent the other way round. */
struct families {
	struct arena arena;
	struct family {
		struct family *newer; /* told before */
		struct metadata m;
	} * last;
};

static errc family_keep(void *arg, const struct metadata *m, struct err *err)
{
	struct families *f = arg;
	struct family *x = arena_alloc(&f->arena, sizeof *x);
	if (!x)
		return err_set(err, ERR_LIMIT, "a tenant's metadata does not fit one piece");
	*x = (struct family){f->last, *m};
	x->m.family = arena_dup(&f->arena, m->family);
	x->m.help = arena_dup(&f->arena, m->help);
	x->m.unit = arena_dup(&f->arena, m->unit);
	if (!x->m.family.p || !x->m.help.p || !x->m.unit.p)
		return err_set(err, ERR_LIMIT, "a tenant's metadata does not fit one piece");
	f->last = x;
	return OK;
}

/* What does not fit is left out: it is said again with every scrape configuration, and nothing hangs on it. */
static errc metadata_fill(struct repair *r, struct span tenant, struct shared *shared, uint32_t node, struct buf *body, uint32_t *n, struct err *err)
{
	struct families f = {.last = NULL};
	arena_init(&f.arena, METADATA_BYTES);
	errc rc = head_metadata_read(r->cfg.head, tenant, (struct span){NULL, 0}, family_keep, &f, err);
	if (rc == ERR_LIMIT)
		rc = OK;
	for (const struct family *x = f.last; x && rc == OK; x = x->newer) {
		struct label name = {SPAN("__name__"), x->m.family};
		uint32_t owners[LIMIT_RING_FACTOR], n_owners = shared_with(shared, (struct labels){&name, 1}, owners);
		for (uint32_t i = 0; i < n_owners; i++) {
			if (owners[i] != node)
				continue;
			size_t at = pb_begin(body, 3);
			if (x->m.type != METRIC_UNKNOWN)
				pb_uint(body, 1, x->m.type);
			pb_bytes(body, 2, x->m.family);
			pb_bytes(body, 4, x->m.help);
			pb_bytes(body, 5, x->m.unit);
			pb_end(body, at);
			++*n;
		}
	}
	arena_free(&f.arena);
	return rc;
}

errc repair_serve_piece(struct repair *r, const struct repair_question *q, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct ring_set *set = NULL;
	struct shared shared = {.set = NULL};
	struct head_walk *k = NULL;
	struct repair_piece m = {.series = 0};
	struct buf body, frame;
	uint32_t node, n_metadata = 0;
	buf_init(&body, LIMIT_PEER_REQUEST_BYTES);
	buf_init(&frame, LIMIT_PEER_REQUEST_BYTES);
	TRY(rings(r, &set, err));
	TRY(both(r, set, q->with, &node, err));
	TRY(shared_begin(&shared, set, r->cfg.self, q->range.tenant, err));
	m.epoch = ring_set_epoch(set);
	if (q->metadata) {
		TRY(metadata_fill(r, q->range.tenant, &shared, node, &body, &n_metadata, err));
	} else {
		rc = head_walk_open(r->cfg.head, q->range.tenant, q->range.start, q->range.range, &k, err);
		if (rc == ERR_NOTFOUND && err)
			err->id = errid_text(ERRID_NOT_FOUND);
		TRY(rc);
		TRY(piece_fill(r, q, k, &shared, node, &m, &body, err));
	}
	if (body.n > 0 || body.failed)
		TRY(frame_of(r, m.epoch, q->range.tenant, (uint32_t)m.series, n_metadata, &body, &frame, err));
	m.frame = span_of(frame.p, frame.n);
	TRY(repair_piece_encode(&m, out, err));
fail:
	head_walk_close(k);
	shared_end(&shared);
	ring_set_unref(set);
	buf_free(&body);
	buf_free(&frame);
	return rc;
}

errc repair_serve_owed(struct repair *r, struct span with, struct buf *out, struct err *err)
{
	struct repair_owed owed = {0};
	if (r->cfg.owed)
		r->cfg.owed(r->cfg.arg, with, &owed);
	return repair_owed_encode(&owed, out, err);
}

/* ---- totals, for people ---- */

static void put_bucket(const struct digest_bucket *b, struct buf *out)
{
	buf_printf(out, "\"series\":%" PRIu64 ",\"samples\":%" PRIu64 ",\"sum\":\"%016" PRIx64 "%016" PRIx64 "\"", b->series, b->samples, b->sum[1],
		b->sum[0]);
}

static void put_totals(const struct digest *d, const struct ring_set *set, struct buf *out)
{
	bool first = true;
	buf_printf(out, ",\"all\":{");
	put_bucket(&d->all, out);
	buf_printf(out, "},\"peers\":[");
	for (uint32_t node = 0; set && node < d->n; node++) {
		struct digest_bucket sum = {0};
		if (!d->peer[node])
			continue;
		for (uint32_t i = 0; i < DIGEST_BUCKETS; i++)
			digest_bucket_add(&sum, &d->peer[node][i]);
		buf_printf(out, "%s{\"address\":", first ? "" : ",");
		buf_json_string(out, ring_set_node(set, node)->address);
		buf_u8(out, ',');
		put_bucket(&sum, out);
		buf_u8(out, '}');
		first = false;
	}
	buf_printf(out, "]");
}

static errc window_totals(
	struct repair *r, struct ring_set *set, const struct digest_range *range, bool cut, bool *first, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct shared shared;
	struct digest d = {0};
	struct pace pace = {.stop = &r->stop};
	TRY(shared_begin(&shared, set, r->cfg.self, range->tenant, err));
	rc = digest_make(r->cfg.head, range, &shared, DIGEST_EVERYBODY, &pace, &d, err);
	shared_end(&shared);
	TRY(rc);
	buf_printf(out, "%s{\"tenant\":", *first ? "" : ",");
	buf_json_string(out, range->tenant);
	buf_printf(out, ",\"start\":%" PRId64 ",\"end\":%" PRId64 ",\"cut\":%s", range->start, range->start + range->range, cut ? "true" : "false");
	put_totals(&d, set, out);
	buf_u8(out, '}');
	*first = false;
fail:
	digest_free(&d);
	return rc;
}

errc repair_serve_totals(struct repair *r, struct span tenant, int64_t from, int64_t until, struct buf *out, struct err *err)
{
	errc rc = OK;
	struct ring_set *set = NULL;
	struct head_usage *tenants;
	size_t n_tenants;
	struct arena arena;
	bool locked = false, first = true;
	arena_init(&arena, 256 * MIB);
	if (!atomic_load(&r->ready)) {
		rc = not_now(err, "the log is being replayed");
		goto fail;
	}
	locked = pthread_mutex_trylock(&r->serving) == 0;
	if (!locked) {
		rc = err_id(err, ERRID_OVERLOADED, ERR_AGAIN, "another digest is being made");
		goto fail;
	}
	set = r->cfg.rings(r->cfg.arg);
	uint64_t epoch;
	int64_t since_ms = repair_since(r, &epoch);
	buf_printf(out, "{\"self\":");
	buf_json_string(out, r->cfg.self);
	buf_printf(out, ",\"epoch\":\"%016" PRIx64 "\",\"since\":%" PRId64 ",\"windows\":[", set ? ring_set_epoch(set) : 0, since_ms);
	TRY(head_usages(r->cfg.head, io_now_ms(), &arena, &tenants, &n_tenants, err));
	for (size_t i = 0; i < n_tenants; i++) {
		struct head_window *v;
		size_t n;
		if (tenant.n > 0 && !span_eq(tenant, tenants[i].tenant))
			continue;
		TRY(head_windows(r->cfg.head, tenants[i].tenant, &arena, &v, &n, err));
		for (size_t k = 0; k < n; k++) {
			struct digest_range range = {tenants[i].tenant, v[k].start, v[k].range, from, until};
			if (!v[k].open || from >= v[k].start + v[k].range || until < v[k].start)
				continue;
			TRY(window_totals(r, set, &range, cut_beside(r, tenants[i].tenant, v, n, k), &first, out, err));
			if (out->n > TOTALS_BYTES) {
				rc = err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT,
					"more than %d bytes of digests: ask for one tenant at a time (tenant=)", TOTALS_BYTES);
				goto fail;
			}
		}
	}
	buf_printf(out, "]}\n");
	CHECK(!out->failed, ERR_NOMEM, "no memory for digests of %zu tenants", n_tenants);
fail:
	if (locked)
		pthread_mutex_unlock(&r->serving);
	ring_set_unref(set);
	arena_free(&arena);
	return rc;
}
