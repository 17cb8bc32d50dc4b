/* tests/support/repair_lab.c - see tests/support/repair_lab.h. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "tests/support/head_lab.h"
#include "tests/support/repair_lab.h"

static void must(errc rc, const struct err *err)
{
	if (rc != OK)
		fail_msg("%s: %s", errc_name(rc), err->msg);
}

const char *rlab_tenant(uint32_t tenant)
{
	static const char *const names[RLAB_TENANTS] = {"default-tenant", "team-a"};
	return names[tenant];
}

static struct rlab_node *node_of(struct rlab *l, struct span address)
{
	for (uint32_t i = 0; i < l->n; i++)
		if (span_is(address, l->v[i].address))
			return &l->v[i];
	return NULL;
}

/* ---- the callbacks of a node's repair ---- */

static struct ring_set *rings(void *arg)
{
	struct rlab_node *n = arg;
	return ring_set_ref(n->lab->set);
}

static errc nodes(void *arg, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	struct rlab *l = ((struct rlab_node *)arg)->lab;
	(void)err;
	*out = arena_calloc(arena, l->n, sizeof **out);
	*n = l->n;
	for (uint32_t i = 0; i < l->n; i++) {
		uint32_t at;
		struct rlab_node *x = &l->v[i];
		(*out)[i] = (struct roster_node){
			.address = span_cstr(x->address),
			.in_ring = ring_set_find(l->set, span_cstr(x->address), &at),
			.self = x == arg,
			.answers = x->up,
			.stores = true,
			.state = NODE_ACTIVE,
			.started_ms = x->started,
		};
	}
	return OK;
}

static int hex(char c)
{
	return c <= '9' ? c - '0' : (c | 32) - 'a' + 10;
}

/* A parameter of a target, decoded. */
static struct span param(const char *target, const char *name, char *out, size_t size)
{
	size_t n = strlen(name);
	for (const char *p = strchr(target, '?'); p; p = strchr(p, '&')) {
		p++;
		if (strncmp(p, name, n) != 0 || p[n] != '=')
			continue;
		size_t m = 0;
		for (p += n + 1; *p && *p != '&' && m + 1 < size; p++) {
			out[m++] = *p == '%' ? (char)(hex(p[1]) * 16 + hex(p[2])) : *p;
			if (*p == '%')
				p += 2;
		}
		return span_of(out, m);
	}
	return (struct span){NULL, 0};
}

static int64_t number(const char *target, const char *name)
{
	char text[64];
	int64_t x = 0;
	struct span s = param(target, name, text, sizeof text);
	if (s.p)
		assert_true(span_to_i64(s, &x));
	return x;
}

static errc serve(struct rlab_node *to, const struct repair_ask *a, struct buf *out, struct err *err)
{
	static _Thread_local char with[64], tenant[64], buckets[128], cursor[128], text[8];
	const char *path = a->target;
	struct repair_question q = {.with = param(path, "with", with, sizeof with)};
	assert_true(q.with.n > 0 && a->deadline_mono_ns > 0);
	q.range = (struct digest_range){param(path, "tenant", tenant, sizeof tenant), number(path, "start"), number(path, "range"),
		number(path, "from"), number(path, "until")};
	if (strncmp(path, "/-/peer/windows?", 16) == 0)
		return repair_serve_windows(to->repair, q.with, (uint32_t)number(path, "from"), out, err);
	if (strncmp(path, "/-/peer/digest?", 15) == 0)
		return repair_serve_digest(to->repair, &q, out, err);
	if (strncmp(path, "/-/peer/owed?", 13) == 0) {
		if (strcmp(a->method, "POST") == 0) {
			to->repaired_ms = number(path, "to");
			if (to->repaired_ms >= to->owes.to_ms)
				to->owes.from_ms = to->owes.to_ms = 0;
		}
		return repair_serve_owed(to->repair, q.with, out, err);
	}
	if (strncmp(path, "/-/peer/repair?", 15) == 0) {
		assert_string_equal(a->method, "POST");
		return repair_told(to->repair, q.with) ? OK : err_set(err, ERR_NOTFOUND, "not listed");
	}
	assert_int_equal(strncmp(path, "/-/peer/window?", 15), 0);
	q.metadata = param(path, "metadata", text, sizeof text).n > 0;
	struct span c = param(path, "cursor", cursor, sizeof cursor);
	q.goes_on = c.n > 0;
	if (!q.metadata)
		assert_true(repair_buckets_parse(param(path, "buckets", buckets, sizeof buckets), q.buckets));
	if (q.goes_on)
		assert_true(repair_cursor_parse(c, &q.cursor));
	return repair_serve_piece(to->repair, &q, out, err);
}

static errc fake_ask(void *arg, const struct repair_ask *a, int *status, struct buf *answer, struct err *err)
{
	struct rlab_node *me = arg;
	struct rlab *l = me->lab;
	struct rlab_node *to = node_of(l, a->address);
	struct err why = {0};
	me->asked++;
	if (me->asks_left != UINT32_MAX && me->asks_left-- == 0) {
		repair_cancel(me->repair);
		return err_set(err, ERR_CANCELED, "killed");
	}
	assert_non_null(to);
	if (!to->up)
		return err_set(err, ERR_NET, "%s is down", to->address);
	errc rc = serve(to, a, answer, &why);
	*status = rc == OK ? 200 : why.id ? errid_status(errid_of(why.id)) : rc == ERR_NOTFOUND ? 404 : 500;
	if (rc != OK) {
		buf_clear(answer);
		buf_printf(answer, "%s", why.msg);
	} else if (l->garbage && answer->n > 0 && lab_random(&l->random) % l->garbage == 0) {
		answer->p[lab_random(&l->random) % answer->n] ^= (uint8_t)(1 << lab_random(&l->random) % 8);
	}
	return OK;
}

static errc store(void *arg, struct span frame, struct repair_stored *out, struct err *err)
{
	return ingest_frame_store(((struct rlab_node *)arg)->ingest, frame, out, err);
}

static bool is_cut(void *arg, struct span tenant, int64_t start, int64_t end)
{
	(void)tenant, (void)start, (void)end;
	return ((struct rlab_node *)arg)->lab->cut;
}

static void owed(void *arg, struct span address, struct repair_owed *out)
{
	(void)address;
	*out = ((struct rlab_node *)arg)->owes;
}

/* ---- nodes ---- */

static errc on_block(void *arg, const char *dir, const struct block_meta *meta, uint64_t bytes, struct err *err)
{
	(void)arg, (void)dir, (void)meta, (void)bytes, (void)err;
	return OK;
}

void rlab_start(struct rlab *l, uint32_t i)
{
	struct rlab_node *n = &l->v[i];
	struct err err = {0};
	struct wal_replay_stats st;
	char path[4][64];
	assert_false(n->up);
	snprintf(path[0], 64, "%s/wal", n->dir);
	snprintf(path[1], 64, "%s/head", n->dir);
	snprintf(path[2], 64, "%s/blocks", n->dir);
	snprintf(path[3], 64, "%s/repair.state", n->dir);
	must(io_mkdirs(n->dir, &err), &err);
	const struct wal_config wc = {.dir = path[0], .segment_bytes = 4 * MIB};
	must(wal_open(&wc, &n->wal, &err), &err);
	const struct head_config hc = {
		.chunk_dir = path[1],
		.block_dir = path[2],
		.wal = n->wal,
		.block_range_ms = l->range,
		.cut_delay_ms = INT64_C(1) << 60,
		.max_age_ms = INT64_C(1) << 60,
		.max_memory_bytes = GIB,
		.wal_max_bytes = 64 * GIB,
		.max_metadata = 1000,
		.labels = {64, 1024, 4096},
		.node = span_cstr(n->address),
		.shards = 1u << i % 3,
		.on_block = on_block,
	};
	must(head_open(&hc, &n->head, &err), &err);
	must(head_load(n->head, &err), &err);
	must(wal_replay(n->wal, head_replay_frame, n->head, NULL, &st, &err), &err);
	must(head_start(n->head, &err), &err);
	const struct ingest_config ic = {
		.head = n->head,
		.wal = n->wal,
		.max_body_bytes = LIMIT_INGEST_BODY_BYTES,
		.max_inflight_bytes = LIMIT_INGEST_INFLIGHT_BYTES,
		.max_series_per_request = 1000,
		.max_samples_per_request = 1000,
		.labels = {64, 1024, 4096},
	};
	must(ingest_open(&ic, &n->ingest, &err), &err);
	const struct repair_config rc = {
		.head = n->head,
		.self = span_cstr(n->address),
		.file = path[3],
		.bytes_per_s = GIB,
		.settle_ms = 1,
		.arg = n,
		.rings = rings,
		.nodes = nodes,
		.ask = fake_ask,
		.store = store,
		.cut = is_cut,
		.owed = owed,
	};
	must(repair_open(&rc, &n->repair, &err), &err);
	n->repair->cfg.file = strdup(path[3]);
	repair_ready(n->repair); /* no thread: rlab_step */
	n->up = true;
	n->asks_left = UINT32_MAX;
	n->started++;
}

void rlab_stop(struct rlab *l, uint32_t i)
{
	struct rlab_node *n = &l->v[i];
	if (!n->up)
		return;
	n->up = false;
	free((void *)(uintptr_t)n->repair->cfg.file);
	repair_close(n->repair);
	ingest_close(n->ingest);
	head_close(n->head);
	wal_close(n->wal);
}

void rlab_wipe(struct rlab *l, uint32_t i)
{
	struct err err = {0};
	assert_false(l->v[i].up);
	must(io_remove_tree(l->v[i].dir, &err), &err);
}

void rlab_ring(struct rlab *l, uint32_t in_ring, uint32_t factor)
{
	char json[1024];
	struct err err = {0};
	size_t n = (size_t)snprintf(json, sizeof json, "[{\"hashring\":\"lab\",\"endpoints\":[");
	for (uint32_t i = 0; i < in_ring; i++)
		n += (size_t)snprintf(json + n, sizeof json - n, "%s\"%s\"", i ? "," : "", l->v[i].address);
	n += (size_t)snprintf(json + n, sizeof json - n, "]}]");
	ring_set_unref(l->set);
	must(ring_set_parse("lab", span_of(json, n), &(struct ring_options){RING_KETAMA, factor}, &l->set, &err), &err);
}

void rlab_open(struct rlab *l, uint64_t seed, uint32_t n, uint32_t in_ring, uint32_t factor, int64_t range_ms, int64_t now_ms)
{
	memset(l, 0, sizeof *l);
	l->seed = l->random = seed;
	l->n = n;
	l->range = range_ms;
	log_setup(getenv("VARVE_LOG") ? LOG_DEBUG : LOG_ERROR, LOG_LOGFMT);
	l->sim = sim_new(seed);
	sim_set_now(l->sim, now_ms);
	arena_init(&l->arena, GIB);
	for (uint32_t k = 0; k < RLAB_SERIES; k++)
		hist_maker_init(&l->maker[k], seed * 1000 + k);
	for (uint32_t i = 0; i < n; i++) {
		l->v[i].lab = l;
		snprintf(l->v[i].address, sizeof l->v[i].address, "[::%u]:90", i + 1);
		snprintf(l->v[i].dir, sizeof l->v[i].dir, "n%u", i);
	}
	rlab_ring(l, in_ring, factor);
	for (uint32_t i = 0; i < n; i++)
		rlab_start(l, i);
}

void rlab_free(struct rlab *l)
{
	for (uint32_t i = 0; i < l->n; i++)
		rlab_stop(l, i);
	ring_set_unref(l->set);
	for (uint32_t t = 0; t < RLAB_TENANTS; t++)
		for (uint32_t k = 0; k < RLAB_SERIES; k++)
			free(l->series[t][k].v);
	arena_free(&l->arena);
	sim_free(l->sim);
}

/* ---- writes ---- */

static struct labels labels_of(uint32_t k, struct buf *wire, struct arena *a)
{
	struct labels out;
	struct err err = {0};
	lab_wire(k, 0, wire);
	must(labels_from_wire(span_of(wire->p, wire->n), 64, a, &out, &err), &err);
	return out;
}

uint32_t rlab_owners(struct rlab *l, uint32_t tenant, uint32_t k)
{
	struct arena a;
	struct buf wire;
	struct ring *ring;
	struct ring_hash h;
	struct err err = {0};
	uint32_t nodes_of[LIMIT_RING_FACTOR], bits = 0;
	arena_init(&a, MIB);
	buf_init(&wire, MIB);
	struct labels x = labels_of(k, &wire, &a);
	must(ring_for_tenant(l->set, span_cstr(rlab_tenant(tenant)), &ring, &err), &err);
	ring_hash_begin(&h, span_cstr(rlab_tenant(tenant)));
	for (uint32_t i = 0; i < x.n; i++)
		ring_hash_add(&h, x.v[i].name, x.v[i].value);
	ring_owners(ring, ring_hash_end(&h), nodes_of);
	for (uint32_t i = 0; i < ring_set_factor(l->set); i++)
		bits |= 1u << (uint32_t)(node_of(l, ring_set_node(l->set, nodes_of[i])->address) - l->v);
	ring_unref(ring);
	buf_free(&wire);
	arena_free(&a);
	return bits;
}

void rlab_begin(struct rlab_request *q, uint32_t tenant)
{
	*q = (struct rlab_request){.tenant = tenant};
	buf_init(&q->body, GIB);
	arena_init(&q->arena, GIB);
}

void rlab_float(struct rlab_request *q, uint32_t k, int64_t t, uint64_t v)
{
	size_t at = pb_begin(&q->body, 1);
	lab_wire(k, 0, &q->body);
	size_t s = pb_begin(&q->body, 2);
	pb_double_bits(&q->body, 1, v);
	pb_uint(&q->body, 2, (uint64_t)t);
	pb_end(&q->body, s);
	pb_end(&q->body, at);
	q->n_series++;
}

void rlab_hist(struct rlab_request *q, uint32_t k, int64_t t, struct span packed)
{
	struct err err = {0};
	enum sample_kind kind;
	struct histogram h;
	must(histogram_unpack(packed, &q->arena, &kind, &h, &err), &err);
	size_t at = pb_begin(&q->body, 1);
	lab_wire(k, 0, &q->body);
	pb_histogram(&q->body, 4, t, kind, &h);
	pb_end(&q->body, at);
	q->n_series++;
}

void rlab_metadata(struct rlab_request *q, const char *family, enum metric_type type, const char *help)
{
	size_t at = pb_begin(&q->body, 3);
	pb_uint(&q->body, 1, type);
	pb_bytes(&q->body, 2, span_cstr(family));
	pb_bytes(&q->body, 4, span_cstr(help));
	pb_end(&q->body, at);
	q->n_metadata++;
}

void rlab_send(struct rlab *l, uint32_t node, struct rlab_request *q, bool hint)
{
	struct err err = {0};
	struct buf frame;
	struct repair_stored got;
	struct peer_section s = {.tenant = span_cstr(rlab_tenant(q->tenant)),
		.version = RW_1,
		.n_series = q->n_series,
		.n_metadata = q->n_metadata,
		.body = span_of(q->body.p, q->body.n)};
	const struct peer_request r = {.hint = hint, .min_t = INT64_MIN, .max_t = INT64_MAX, .sections = &s, .n_sections = 1};
	if (q->n_series + q->n_metadata == 0)
		return;
	buf_init(&frame, GIB);
	must(peer_request_encode(&r, true, &frame, &err), &err);
	must(ingest_frame_store(l->v[node].ingest, span_of(frame.p, frame.n), &got, &err), &err);
	buf_free(&frame);
}

void rlab_end(struct rlab_request *q)
{
	buf_free(&q->body);
	arena_free(&q->arena);
}

struct rlab_sample rlab_random(struct rlab *l, uint32_t tenant, uint32_t k, int64_t t)
{
	(void)tenant;
	struct rlab_sample s = {.t = t, .is_hist = k < 10 || (k < 15 && lab_random(&l->random) % 2)};
	if (!s.is_hist) {
		uint64_t x = lab_random(&l->random);
		s.v = x % 50 == 0 ? STALE_NAN_BITS : x % 3 == 0 ? x : f64_bits((double)(x % 1000));
		return s;
	}
	struct arena a;
	struct buf b;
	enum sample_kind kind;
	struct histogram h;
	arena_init(&a, 64 * MIB);
	buf_init(&b, MIB);
	hist_maker_next(&l->maker[k], &a, &kind, &h);
	histogram_pack(kind, &h, &b);
	s.packed = arena_dup(&l->arena, span_of(b.p, b.n));
	buf_free(&b);
	arena_free(&a);
	return s;
}

/* > 0: a stays. */
static int winner(const struct rlab_sample *a, const struct rlab_sample *b)
{
	bool same;
	int order;
	struct err err = {0};
	if (a->is_hist != b->is_hist)
		return a->is_hist ? 1 : -1;
	if (!a->is_hist)
		return float_winner(a->v, b->v);
	must(histogram_packed_cmp(a->packed, b->packed, &same, &order, &err), &err);
	return order;
}

void rlab_note(struct rlab *l, uint32_t tenant, uint32_t k, const struct rlab_sample *s, uint32_t to)
{
	struct rlab_series *x = &l->series[tenant][k];
	for (size_t i = 0; i < x->n; i++) {
		if (x->v[i].t != s->t)
			continue;
		uint32_t owners = x->v[i].owners | to;
		if (winner(s, &x->v[i]) > 0)
			x->v[i] = *s;
		x->v[i].owners = owners;
		return;
	}
	if (x->n == x->cap) {
		x->cap = x->cap * 2 + 16;
		x->v = realloc(x->v, x->cap * sizeof *x->v);
	}
	x->v[x->n] = *s;
	x->v[x->n++].owners = to;
}

void rlab_put(struct rlab_request *q, uint32_t k, const struct rlab_sample *s)
{
	if (s->is_hist)
		rlab_hist(q, k, s->t, s->packed);
	else
		rlab_float(q, k, s->t, s->v);
}

/* ---- repair ---- */

bool rlab_settled(struct rlab *l, uint32_t i)
{
	const struct repair *r = l->v[i].repair;
	for (size_t k = 0; k < r->n_peers; k++)
		if (r->peers[k].want)
			return false;
	return true;
}

bool rlab_step(struct rlab *l, uint32_t i)
{
	struct repair *r = l->v[i].repair;
	for (size_t k = 0; k < r->n_peers; k++)
		r->peers[k].not_before_ns = r->peers[k].settled_ns = 0;
	return repair_step(r);
}

void rlab_repair(struct rlab *l)
{
	bool more = true;
	for (uint32_t i = 0; i < l->n; i++)
		if (l->v[i].up)
			repair_all(l->v[i].repair);
	for (int round = 0; more; round++) {
		if (round == 50)
			fail_msg("seed %llu: repair does not end", (unsigned long long)l->seed);
		more = false;
		for (uint32_t i = 0; i < l->n; i++)
			if (l->v[i].up)
				rlab_step(l, i);
		for (uint32_t i = 0; i < l->n; i++)
			more |= l->v[i].up && !rlab_settled(l, i);
	}
}

/* ---- what must be ---- */

struct digest_bucket rlab_digest(struct rlab *l, uint32_t i, uint32_t k, uint32_t tenant, int64_t start)
{
	struct err err = {0};
	struct shared s;
	struct digest d;
	struct digest_bucket sum = {0};
	struct pace pace = {.none = true};
	uint32_t node;
	const struct digest_range g = {span_cstr(rlab_tenant(tenant)), start, l->range, start, start + l->range - 1};
	must(shared_begin(&s, l->set, span_cstr(l->v[i].address), g.tenant, &err), &err);
	assert_true(ring_set_find(l->set, span_cstr(l->v[k].address), &node));
	must(digest_make(l->v[i].head, &g, &s, node, &pace, &d, &err), &err);
	for (uint32_t b = 0; d.peer[node] && b < DIGEST_BUCKETS; b++)
		digest_bucket_add(&sum, &d.peer[node][b]);
	digest_free(&d);
	shared_end(&s);
	return sum;
}

/* What node i holds of a series and a window is what the dictionary has. */
static void check_series(struct rlab *l, uint32_t i, uint32_t tenant, uint32_t k, const struct head_samples *x, int64_t start)
{
	const struct rlab_series *m = &l->series[tenant][k];
	size_t n = 0;
	for (size_t s = 0; s < m->n; s++) {
		const struct rlab_sample *want = &m->v[s];
		bool found = false;
		if (want->t < start || want->t >= start + l->range)
			continue;
		n++;
		for (size_t f = 0; f < x->n_floats && !want->is_hist && !found; f++)
			found = x->floats[f].t == want->t && x->floats[f].v == want->v;
		for (size_t f = 0; f < x->n_hists && want->is_hist && !found; f++)
			found = x->hists[f].t == want->t && span_eq(x->hists[f].packed, want->packed);
		if (!found)
			fail_msg("seed %llu: node %u series %u of %s lacks t=%lld (%s)", (unsigned long long)l->seed, i, k, rlab_tenant(tenant),
				(long long)want->t, want->is_hist ? "histogram" : "float");
	}
	if (n != x->n_floats + x->n_hists)
		fail_msg("seed %llu: node %u series %u of %s has %zu samples, not %zu", (unsigned long long)l->seed, i, k, rlab_tenant(tenant),
			x->n_floats + x->n_hists, n);
}

static void check_window(struct rlab *l, uint32_t i, uint32_t tenant, int64_t start)
{
	struct err err = {0};
	struct head_walk *w = NULL;
	bool seen[RLAB_SERIES] = {false};
	errc rc = head_walk_open(l->v[i].head, span_cstr(rlab_tenant(tenant)), start, l->range, &w, &err);
	for (bool more = rc == OK; more;) {
		struct labels x;
		struct head_place place;
		struct head_samples s;
		unsigned metric, host;
		char text[2][64];
		must(head_walk_next(w, &x, &place, &more, &err), &err);
		if (!more)
			break;
		snprintf(text[0], 64, "%.*s", SPAN_ARG(labels_get(x, SPAN("__name__"))));
		snprintf(text[1], 64, "%.*s", SPAN_ARG(labels_get(x, SPAN("instance"))));
		assert_int_equal(sscanf(text[0], "metric_%u", &metric), 1);
		assert_int_equal(sscanf(text[1], "host-%u:9100", &host), 1);
		uint32_t k = host * 5 + metric;
		assert_true(k < RLAB_SERIES && !seen[k]);
		seen[k] = true;
		must(head_walk_samples(w, INT64_MIN, INT64_MAX, 64 * MIB, &s, &err), &err);
		assert_false(s.more);
		if (rlab_owners(l, tenant, k) >> i & 1)
			check_series(l, i, tenant, k, &s, start);
	}
	head_walk_close(w);
	for (uint32_t k = 0; k < RLAB_SERIES; k++)
		if (!seen[k] && rlab_owners(l, tenant, k) >> i & 1)
			check_series(l, i, tenant, k, &(struct head_samples){.n_floats = 0}, start);
}

void rlab_check(struct rlab *l, int64_t from, int64_t to)
{
	for (uint32_t t = 0; t < RLAB_TENANTS; t++)
		for (int64_t start = from; start < to; start += l->range) {
			for (uint32_t i = 0; i < l->n; i++) {
				uint32_t at;
				if (!l->v[i].up || !ring_set_find(l->set, span_cstr(l->v[i].address), &at))
					continue;
				check_window(l, i, t, start);
				for (uint32_t k = 0; k < i; k++) {
					if (!l->v[k].up || !ring_set_find(l->set, span_cstr(l->v[k].address), &at))
						continue;
					struct digest_bucket a = rlab_digest(l, i, k, t, start), b = rlab_digest(l, k, i, t, start);
					assert_true(digest_bucket_eq(&a, &b));
				}
			}
		}
}
