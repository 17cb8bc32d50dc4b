/* tests/support/fleet.c - see fleet.h. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "tests/support/fail_alloc.h"
#include "tests/support/fleet.h"

enum { FULL = 1000, EVENTS_MAX = 4000, MS = 1000000 };
enum said { NOTHING, STORED, REFUSED, AGAIN };
enum health { WELL, SLOW, DOWN, SILENT, UNREADY, GARBLED };

struct write {
	uint8_t no;
	struct ring_set *set;
	struct ring *rings[FLEET_PARTS];
	struct cluster_part parts[FLEET_PARTS];
	uint64_t hashes[FLEET_ITEMS];
	struct span slices[FLEET_ITEMS];
	struct span symbols[FLEET_PARTS][4];
	char text[8192];
	uint32_t first[FLEET_PARTS + 1], n_items, quorum;
	int part_of[FLEET_ITEMS];
	uint8_t id[PEER_ID_BYTES];
	int64_t deadline;
	uint32_t self; /* which node, or none */
	bool owns[FLEET_ITEMS][FLEET_NODES], has[FLEET_ITEMS][FLEET_NODES], missed[FLEET_ITEMS][FLEET_NODES];
	bool owes[FLEET_NODES], sent[FLEET_NODES];
	enum said said[FLEET_ITEMS][FLEET_NODES]; /* as the cluster heard it */
	uint32_t samples[FLEET_ITEMS][FLEET_NODES];
	enum errid why[FLEET_ITEMS][FLEET_NODES];
	enum cluster_state outcome[FLEET_ITEMS];
	struct cluster_op *op;
	bool begun, going, expired, done;
	bool unsaid; /* there was no memory to say what was stored */
};

struct event {
	int64_t t;
	uint64_t order;
	enum event_kind { FRAME, ANSWER, MINE, EXPIRE } kind;
	struct write *w;
	uint32_t node;
	struct cluster_send send;
	struct buf bytes; /* the frame, or the answer */
	errc rc;
	int status;
	bool lost; /* of a frame: the answer does not come */
};

struct fleet_seen fleet_seen;
static struct fleet {
	const struct fleet_options *opt;
	uint64_t state, order;
	int64_t now;
	struct cluster *c;
	bool hints;
	uint32_t quorum, self, n_writes;
	uint64_t own_missed; /* items that this node itself missed, as it was told */
	struct ring_set *sets[2];
	enum health health[FLEET_NODES];
	struct write writes[FLEET_WRITES];
	struct event events[EVENTS_MAX];
	uint32_t n_events;
} f;

#define MUST(cond)                                                                                                                                   \
	do {                                                                                                                                         \
		if (!(cond))                                                                                                                         \
			fail_msg("seed %" PRIu64 ": %s", f.opt->seed, #cond);                                                                        \
	} while (0)

static uint64_t draw(void)
{
	f.state += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = f.state;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

static uint32_t below(uint32_t n)
{
	return (uint32_t)(draw() % n);
}

static int64_t mono_ns(void)
{
	return f.now;
}

static void random_bytes(void *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		((uint8_t *)p)[i] = (uint8_t)draw();
}

static uint32_t node_of(struct span address)
{
	MUST(address.n > 1 && address.p[0] == 'n');
	uint32_t i = (uint32_t)strtoul(address.p + 1, NULL, 10);
	MUST(i < FLEET_NODES);
	return i;
}

static struct event *event_at(int64_t t, enum event_kind kind, struct write *w, uint32_t node)
{
	MUST(f.n_events < EVENTS_MAX);
	struct event *e = &f.events[f.n_events++];
	*e = (struct event){.t = t, .order = f.order++, .kind = kind, .w = w, .node = node};
	return e;
}

/* ---- what must be ---- */

static enum said final(uint32_t s, uint32_t r, uint32_t n, uint32_t q)
{
	return s >= q ? STORED : r > n - q ? REFUSED : AGAIN;
}

/* What becomes of it whatever is still said; NOTHING when that is open. */
static enum said must_be(const struct write *w, uint32_t i)
{
	uint32_t s = 0, r = 0, p = 0, n = 0;
	for (uint32_t k = 0; k < FLEET_NODES; k++) {
		n += w->owns[i][k];
		s += w->owns[i][k] && w->said[i][k] == STORED;
		r += w->owns[i][k] && w->said[i][k] == REFUSED;
		p += w->owns[i][k] && w->said[i][k] == NOTHING;
	}
	uint32_t q = w->quorum < n ? w->quorum : n;
	enum said first = final(s, r, n, q);
	for (uint32_t x = 0; x <= p; x++)
		for (uint32_t y = 0; x + y <= p; y++)
			if (final(s + x, r + y, n, q) != first)
				return NOTHING;
	return first;
}

/* A quorum of its nodes have said what they have of it, or all have spoken. */
static bool counted(const struct write *w, uint32_t i)
{
	uint32_t said = 0, silent = 0, n = 0;
	for (uint32_t k = 0; k < FLEET_NODES; k++) {
		n += w->owns[i][k];
		said += w->owns[i][k] && (w->said[i][k] == STORED || w->said[i][k] == REFUSED);
		silent += w->owns[i][k] && w->said[i][k] == NOTHING;
	}
	return silent == 0 || said >= (w->quorum < n ? w->quorum : n);
}

static bool all_decided(const struct write *w)
{
	for (uint32_t i = 0; i < w->n_items; i++) {
		enum said s = must_be(w, i);
		if (s == NOTHING || (s == REFUSED && !counted(w, i)))
			return false;
	}
	return true;
}

static int greatest_first(const void *a, const void *b)
{
	return (*(const uint32_t *)a < *(const uint32_t *)b) - (*(const uint32_t *)a > *(const uint32_t *)b);
}

static uint32_t quorum_has(const struct write *w, uint32_t i)
{
	uint32_t v[FLEET_NODES], n = 0;
	for (uint32_t k = 0; k < FLEET_NODES; k++)
		if (w->owns[i][k])
			v[n++] = w->samples[i][k];
	qsort(v, n, sizeof *v, greatest_first);
	return v[(w->quorum < n ? w->quorum : n) - 1];
}

static void acknowledged_is_there(const struct write *w, uint32_t i)
{
	uint32_t n = 0, has = 0;
	for (uint32_t k = 0; k < FLEET_NODES; k++) {
		n += w->owns[i][k];
		has += w->owns[i][k] && w->has[i][k];
	}
	MUST(has >= (w->quorum < n ? w->quorum : n));
}

static void on_done(void *arg, const struct cluster_outcome *o)
{
	struct write *w = arg;
	uint32_t at = 0, refused = 0, again = 0, by[ERRID_COUNT] = {0};
	MUST(w->begun && w->going && !w->done);
	w->done = true;
	MUST(o->stored + o->refused + o->again == w->n_items);
	if (o->n_items == 0 && o->again > 0) { /* no memory to say which */
		MUST(!f.opt->exact && o->again == w->n_items && o->by_reason[ERRID_OVERLOADED] == o->again);
		w->unsaid = true;
		for (uint32_t i = 0; i < w->n_items; i++)
			w->outcome[i] = CLUSTER_AGAIN;
		return;
	}
	for (uint32_t i = 0; i < w->n_items; i++) {
		enum said want = must_be(w, i);
		w->outcome[i] = CLUSTER_STORED;
		if (at < o->n_items && o->items[at].item == i) {
			const struct cluster_item *x = &o->items[at++];
			MUST(x->state == CLUSTER_REFUSED || x->state == CLUSTER_AGAIN);
			MUST(x->id > ERRID_NONE && x->id < ERRID_COUNT);
			w->outcome[i] = x->state;
			by[x->id]++;
			refused += x->state == CLUSTER_REFUSED;
			again += x->state == CLUSTER_AGAIN;
			if (!f.opt->exact)
				continue;
			MUST(x->samples == quorum_has(w, i) && x->hists == x->samples && x->exemplars == x->samples);
			fleet_seen.partial += x->samples > 0;
			bool said = false;
			for (uint32_t k = 0; k < FLEET_NODES; k++)
				said |= w->owns[i][k] && w->why[i][k] == x->id && (x->state == CLUSTER_AGAIN || w->said[i][k] == REFUSED);
			MUST(said ||
				(x->state == CLUSTER_AGAIN && (x->id == ERRID_NO_QUORUM || x->id == ERRID_OVERLOADED || x->id == ERRID_DISK_FULL)));
		}
		if (w->outcome[i] == CLUSTER_STORED)
			acknowledged_is_there(w, i);
		if (!f.opt->exact)
			continue;
		if (want == NOTHING) {
			MUST(w->expired && w->outcome[i] == CLUSTER_AGAIN);
			fleet_seen.expired++;
		} else
			MUST((int)w->outcome[i] == (int)want);
	}
	MUST(at == o->n_items && refused == o->refused && again == o->again);
	for (int k = 0; k < ERRID_COUNT; k++)
		MUST(by[k] == o->by_reason[k]);
	fleet_seen.stored += o->stored;
	fleet_seen.refused += o->refused;
	fleet_seen.again += o->again;
}

static void must_hold(const struct write *w)
{
	if (f.opt->exact && w->begun)
		MUST(w->done == (w->going && (w->expired || all_decided(w))));
}

/* ---- a node ---- */

/* The items of a frame, in its order; what stands in it is looked at. */
static uint32_t items_of(struct span frame, struct write **w, uint32_t *items, struct peer_request *r, struct arena *arena)
{
	uint32_t n = 0;
	*w = NULL;
	MUST(peer_request_decode(frame, arena, r, NULL) == OK);
	for (uint32_t k = 0; k < f.n_writes; k++)
		if (memcmp(f.writes[k].id, r->id, PEER_ID_BYTES) == 0)
			*w = &f.writes[k];
	MUST(*w && r->n_sections > 0);
	MUST(r->epoch == ring_set_epoch((*w)->set) && r->now_ms == 12345 && r->min_t == -5 && r->max_t == 99999);
	for (uint32_t s = 0; s < r->n_sections; s++) {
		const struct peer_section *section = &r->sections[s];
		struct rd rd = rd_of(section->body.p, section->body.n);
		uint32_t series = 0, metadata = 0, symbols = 0, part = UINT32_MAX;
		while (rd_left(&rd) > 0) {
			uint8_t tag = rd_u8(&rd);
			struct span content = rd_str(&rd);
			MUST(rd.ok);
			if (tag == 0x22) {
				MUST(section->version == RW_2 && series == 0);
				symbols++;
				continue;
			}
			MUST(content.n >= 3 && content.p[0] == (*w)->no);
			uint32_t item = (uint8_t)content.p[1] | (uint32_t)(uint8_t)content.p[2] << 8;
			MUST(item < (*w)->n_items && (n == 0 || items[n - 1] < item));
			part = (uint32_t)(*w)->part_of[item];
			/* as it was, byte by byte */
			MUST(span_eq((*w)->slices[item], span_of(content.p - 2, content.n + 2)));
			MUST(span_eq((*w)->parts[part].tenant, section->tenant) && (*w)->parts[part].version == section->version);
			MUST(tag == (section->version == RW_2 ? 0x2a : item - (*w)->first[part] < (*w)->parts[part].n_series ? 0x0a : 0x1a));
			*(tag == 0x1a ? &metadata : &series) += 1;
			items[n++] = item;
		}
		MUST(series == section->n_series && metadata == section->n_metadata && series + metadata > 0);
		MUST(section->version != RW_2 || symbols == (*w)->parts[part].n_symbols);
	}
	MUST(n == r->n_items);
	return n;
}

/* What the node makes of its share: the verdicts, and what it has afterwards. `to` says what of it the cluster will hear. */
static uint32_t node_stores(struct write *w, uint32_t node, const uint32_t *items, uint32_t n, struct peer_verdict *v)
{
	static const enum errid bad[] = {ERRID_TOO_OLD, ERRID_DUPLICATE_TIMESTAMP, ERRID_TOO_MANY_LABELS},
				later[] = {ERRID_HEAD_MEMORY, ERRID_DISK_FULL};
	uint32_t n_v = 0, odds = 2 + below(20);
	for (uint32_t k = 0; k < n; k++) {
		uint32_t i = items[k];
		MUST(w->owns[i][node]);
		bool common = w->hashes[i] % 7 == 0; /* wrong everywhere, mostly */
		if (below(common ? 3 : odds) > 0 && !(common && below(8))) {
			w->has[i][node] = true;
			continue;
		}
		enum peer_verdict_kind kind = common ? PEER_REFUSED : (enum peer_verdict_kind)below(3);
		uint32_t part = below(FULL);
		v[n_v++] = (struct peer_verdict){k, kind,
			kind == PEER_REFUSED ? bad[below(3)]
			: kind == PEER_AGAIN ? later[below(2)]
					     : ERRID_NONE,
			77, part, part, part};
		w->has[i][node] |= kind == PEER_STORED;
	}
	return n_v;
}

static void heard(struct write *w, uint32_t node, const uint32_t *items, uint32_t n, const struct peer_verdict *v, uint32_t n_v)
{
	for (uint32_t k = 0, at = 0; k < n; k++) {
		bool listed = at < n_v && v[at].item == k;
		w->said[items[k]][node] = !listed || v[at].kind == PEER_STORED ? STORED : v[at].kind == PEER_REFUSED ? REFUSED : AGAIN;
		w->samples[items[k]][node] = listed ? v[at].samples : FULL;
		w->why[items[k]][node] = listed ? v[at].id : ERRID_NONE;
		at += listed;
	}
}

static void heard_nothing(struct write *w, uint32_t node)
{
	for (uint32_t i = 0; i < w->n_items; i++)
		if (w->owns[i][node])
			w->said[i][node] = AGAIN;
}

static void fleet_send(void *arg, const struct cluster_send *s)
{
	fail_alloc_pause();
	MUST(arg == &f);
	uint32_t node = node_of(s->address), items[FLEET_ITEMS];
	struct arena arena;
	struct peer_request r;
	struct write *w;
	arena_init(&arena, MIB);
	uint32_t n = items_of(s->body, &w, items, &r, &arena);
	MUST(!r.hint && r.left_ms > 0 && s->deadline_mono_ns == w->deadline);
	MUST(!w->sent[node] && w->owes[node] && node != w->self); /* one request a node, and only what it owes */
	uint32_t owed = 0;
	for (uint32_t i = 0; i < w->n_items; i++)
		owed += w->owns[i][node];
	MUST(owed == n);
	w->sent[node] = true;
	arena_free(&arena);
	enum health h = below(6) == 0 ? (enum health)below(GARBLED + 1) : f.health[node];
	if (h == DOWN && below(2)) {
		heard_nothing(w, node);
		struct err err = {0};
		errc rc = err_set(&err, ERR_NET, "refused");
		fail_alloc_resume();
		s->done(s->arg, rc, 0, (struct span){"", 0}, &err);
		return;
	}
	int64_t delay = below(h == SLOW ? 3000 : 20) * MS, left = s->deadline_mono_ns - f.now;
	struct event *e;
	if (h == DOWN || h == SILENT) { /* the news of a broken connection may be later than the deadline */
		e = event_at(h == DOWN ? f.now + below(100) * MS : s->deadline_mono_ns, ANSWER, w, node);
		e->rc = h == DOWN ? ERR_NET : ERR_TIMEOUT;
	} else if (h == UNREADY) {
		e = event_at(f.now + below(10) * MS, ANSWER, w, node);
		e->status = 503;
	} else {
		e = event_at(f.now + (delay < left ? delay : left - 1), FRAME, w, node);
		buf_init(&e->bytes, MIB);
		buf_span(&e->bytes, s->body);
		e->status = h == GARBLED ? -1 : 200;
		e->lost = delay >= left || below(20) == 0;
		MUST(!e->bytes.failed);
	}
	e->send = *s;
	fail_alloc_resume();
}

/* ---- events ---- */

static void frame_arrives(struct event *e)
{
	uint32_t items[FLEET_ITEMS], n_v;
	struct peer_verdict v[FLEET_ITEMS];
	struct arena arena;
	struct peer_request r;
	struct write *w;
	arena_init(&arena, MIB);
	uint32_t n = items_of(span_of(e->bytes.p, e->bytes.n), &w, items, &r, &arena);
	if (below(10) == 0)
		(void)node_stores(w, e->node, items, n, v); /* it came twice */
	n_v = node_stores(w, e->node, items, n, v);
	struct peer_answer a = {.epoch = 7, .verdicts = v, .n_verdicts = n_v};
	memcpy(a.id, r.id, PEER_ID_BYTES);
	struct event *answer = event_at(e->lost ? e->send.deadline_mono_ns : f.now + below(30) * MS, ANSWER, w, e->node);
	if (answer->t > e->send.deadline_mono_ns)
		answer->t = e->send.deadline_mono_ns;
	answer->send = e->send;
	answer->rc = e->lost ? ERR_TIMEOUT : OK;
	answer->status = 200;
	buf_init(&answer->bytes, MIB);
	uint32_t kind = e->status == -1 ? below(3) : 9;
	if (kind == 0)
		a.id[0] ^= 1;
	MUST(peer_answer_encode(&a, &answer->bytes, NULL) == OK && answer->bytes.n <= e->send.max_answer_bytes);
	if (kind == 1)
		answer->bytes.p[below((uint32_t)answer->bytes.n)] ^= 4;
	if (kind == 2)
		answer->bytes.n = below((uint32_t)answer->bytes.n);
	if (e->status == -1)
		answer->status = 299; /* for answer_arrives: broken, though it says 200 */
	arena_free(&arena);
	buf_free(&e->bytes);
}

static void answer_arrives(struct event *e)
{
	struct write *w = e->w;
	struct err err = {0};
	if (e->rc == OK && e->status == 200) {
		struct arena arena;
		struct peer_answer a;
		uint32_t items[FLEET_ITEMS], n = 0;
		for (uint32_t i = 0; i < w->n_items; i++)
			if (w->owns[i][e->node])
				items[n++] = i;
		arena_init(&arena, MIB);
		MUST(peer_answer_decode(span_of(e->bytes.p, e->bytes.n), n, &arena, &a, NULL) == OK);
		heard(w, e->node, items, n, a.verdicts, a.n_verdicts);
		arena_free(&arena);
	} else
		heard_nothing(w, e->node);
	if (e->rc != OK)
		(void)err_set(&err, e->rc, "as the test says");
	if (e->status == 299)
		e->status = 200;
	struct buf bytes = e->bytes;
	fail_alloc_resume();
	e->send.done(e->send.arg, e->rc, e->status, span_of(bytes.p, bytes.n), &err);
	fail_alloc_pause();
	buf_free(&bytes);
}

static void mine_is_done(struct write *w)
{
	const uint32_t *items;
	uint32_t n, n_v;
	struct peer_verdict v[FLEET_ITEMS];
	cluster_write_mine(w->op, &items, &n);
	bool fails = below(10) == 0;
	n_v = fails ? 0 : node_stores(w, w->self, items, n, v);
	if (fails)
		heard_nothing(w, w->self);
	else
		heard(w, w->self, items, n, v, n_v);
	fail_alloc_resume();
	cluster_write_mine_done(w->op, fails ? ERRID_DISK_FULL : ERRID_NONE, v, n_v);
	fail_alloc_pause();
}

static void step(void)
{
	uint32_t next = 0;
	for (uint32_t i = 1; i < f.n_events; i++)
		if (f.events[i].t < f.events[next].t || (f.events[i].t == f.events[next].t && f.events[i].order < f.events[next].order))
			next = i;
	struct event e = f.events[next];
	f.events[next] = f.events[--f.n_events];
	MUST(e.t >= f.now);
	f.now = e.t;
	if (e.kind == FRAME)
		frame_arrives(&e);
	else if (e.kind == ANSWER)
		answer_arrives(&e);
	else if (e.kind == MINE)
		mine_is_done(e.w);
	else {
		for (uint32_t i = 0; i < f.n_writes; i++)
			f.writes[i].expired |= f.writes[i].begun && f.writes[i].deadline <= f.now;
		fail_alloc_resume();
		cluster_expire(f.c, f.now);
		fail_alloc_pause();
	}
	for (uint32_t i = 0; i < f.n_writes; i++)
		must_hold(&f.writes[i]);
}

/* ---- a write ---- */

/* The cluster has heard of node k that it has item i. */
static bool holds(const struct write *w, uint32_t i, uint32_t k)
{
	return w->owns[i][k] && w->said[i][k] == STORED;
}

/* Each holder has all of it; all that have are named; this node is the first as long as it has any of it. */
static void holders_hold(const struct write *w, const struct cluster_missed *m, const uint32_t *items, uint32_t n)
{
	uint32_t want = 0;
	for (uint32_t k = 0; k < FLEET_NODES; k++) {
		bool all = true;
		for (uint32_t i = 0; i < n; i++)
			all &= holds(w, items[i], k);
		want += all;
	}
	/* Without memory the cluster may not have heard what was answered. */
	MUST(m->n_holders > 0 && (m->n_holders == want || (!f.opt->exact && m->n_holders < want)));
	for (uint32_t h = 0; h < m->n_holders; h++) {
		uint32_t k = m->holders[h].n > 0 ? node_of(m->holders[h]) : w->self;
		MUST((k == w->self) == (m->holders[h].n == 0));
		for (uint32_t i = 0; i < n; i++)
			MUST(holds(w, items[i], k));
		for (uint32_t j = 0; j < h; j++)
			MUST(!span_eq(m->holders[h], m->holders[j]));
	}
	for (uint32_t i = 0; f.opt->exact && i < n && m->holders[0].n > 0; i++)
		MUST(w->self >= FLEET_NODES || !holds(w, items[i], w->self));
	fleet_seen.elsewhere += m->holders[0].n > 0;
	fleet_seen.spare += m->n_holders > 1;
}

/* Nobody has more of what nobody keeps yet. Before it is marked as told. */
static void most_of_it(const struct write *w, uint32_t node, uint32_t n)
{
	for (uint32_t k = 0; k < FLEET_NODES; k++) {
		uint32_t has = 0;
		for (uint32_t i = 0; i < w->n_items; i++)
			has += w->owns[i][node] && w->said[i][node] == AGAIN && w->outcome[i] == CLUSTER_STORED && !w->missed[i][node] &&
			       holds(w, i, k);
		MUST(has <= n);
	}
}

static void on_missed(void *arg, const struct cluster_missed *m)
{
	fail_alloc_pause();
	MUST(arg == &f && m->n_items > 0);
	if (m->frame.n == 0) {
		MUST(m->n_holders == 0 && (m->address.n == 0 || !f.opt->exact));
		f.own_missed += m->address.n == 0 ? m->n_items : 0;
		fail_alloc_resume();
		return;
	}
	uint32_t node = node_of(m->address), items[FLEET_ITEMS];
	struct arena arena;
	struct peer_request r;
	struct write *w;
	arena_init(&arena, MIB);
	uint32_t n = items_of(m->frame, &w, items, &r, &arena);
	MUST(r.hint && r.left_ms == 0 && node != w->self && n == m->n_items);
	if (f.opt->exact && m->n_holders > 0 && m->holders[0].n > 0)
		most_of_it(w, node, n);
	for (uint32_t k = 0; k < n; k++) {
		MUST(!w->missed[items[k]][node] && w->owns[items[k]][node]);
		w->missed[items[k]][node] = true;
		fleet_seen.missed++;
		fleet_seen.late_missed += f.now > w->deadline;
	}
	if (w->done && !w->unsaid)
		for (uint32_t k = 0; k < n; k++)
			MUST(w->outcome[items[k]] == CLUSTER_STORED);
	holders_hold(w, m, items, n);
	arena_free(&arena);
	fail_alloc_resume();
}

static void slice_make(struct write *w, uint32_t i, uint8_t tag, size_t *at)
{
	uint32_t n = 3 + below(60);
	uint8_t *p = (uint8_t *)w->text + *at;
	p[0] = tag;
	p[1] = (uint8_t)n;
	p[2] = w->no;
	p[3] = (uint8_t)i;
	p[4] = (uint8_t)(i >> 8);
	for (uint32_t k = 3; k < n; k++)
		p[2 + k] = (uint8_t) "abc"[below(3)];
	w->slices[i] = span_of(p, n + 2);
	*at += n + 2 + (below(4) == 0); /* now and then something lies between */
	MUST(*at + 64 < sizeof w->text);
}

static void write_make(struct write *w, uint8_t no)
{
	static const char *const tenants[FLEET_PARTS] = {"team-a", "team-b", "c"};
	size_t at = 0;
	memset(w, 0, sizeof *w);
	w->no = no;
	w->set = f.sets[below(2)];
	w->deadline = f.now + (1 + below(2000)) * MS;
	uint32_t factor = ring_set_factor(w->set), n_parts = 1 + below(FLEET_PARTS), self = UINT32_MAX;
	w->quorum = f.quorum ? f.quorum : factor / 2 + 1;
	random_bytes(w->id, sizeof w->id);
	w->self = UINT32_MAX;
	for (uint32_t p = 0; p < n_parts; p++) {
		struct cluster_part *part = &w->parts[p];
		w->first[p] = w->n_items;
		part->tenant = span_cstr(tenants[p]);
		part->version = below(2) ? RW_1 : RW_2;
		part->n_series = below(16);
		part->n_metadata = part->version == RW_1 && below(2) ? below(5) : 0;
		part->hashes = w->hashes + w->n_items;
		part->slices = w->slices + w->n_items;
		part->symbols = w->symbols[p];
		part->n_symbols = part->version == RW_2 ? below(4) : 0;
		for (size_t k = 0; k < part->n_symbols; k++) {
			memcpy(w->text + at, "\x22\x02xy", 4);
			w->symbols[p][k] = span_of(w->text + at, 4);
			at += 4 + below(2);
		}
		MUST(ring_for_tenant(w->set, part->tenant, &w->rings[p], NULL) == OK && w->rings[p]);
		part->ring = w->rings[p];
		for (uint32_t k = 0; k < part->n_series + part->n_metadata; k++) {
			uint32_t i = w->n_items++, owners[LIMIT_RING_FACTOR];
			w->hashes[i] = below(50) == 0 ? UINT64_MAX : draw();
			w->part_of[i] = (int)p;
			slice_make(w, i, part->version == RW_2 ? 0x2a : k < part->n_series ? 0x0a : 0x1a, &at);
			ring_owners(w->rings[p], w->hashes[i], owners);
			for (uint32_t j = 0; j < factor; j++) {
				uint32_t node = node_of(ring_set_node(w->set, owners[j])->address);
				w->owns[i][node] = w->owes[node] = true;
			}
		}
	}
	for (uint32_t k = 0; k < ring_set_n_nodes(w->set); k++)
		if (node_of(ring_set_node(w->set, k)->address) == f.self) {
			self = k;
			w->self = f.self;
		}
	struct cluster_write cw = {.parts = w->parts,
		.n_parts = n_parts,
		.self = self,
		.now_ms = 12345,
		.min_t = -5,
		.max_t = 99999,
		.deadline_mono_ns = w->deadline,
		.done = on_done,
		.arg = w};
	memcpy(cw.id, w->id, sizeof cw.id);
	struct err err = {0};
	fail_alloc_resume();
	errc rc = cluster_write_begin(f.c, &cw, &w->op, &err);
	fail_alloc_pause();
	for (uint32_t p = 0; p < n_parts; p++)
		ring_unref(w->rings[p]);
	if (rc != OK) {
		MUST(!f.opt->exact && rc == ERR_NOMEM && errid_of(err.id) == ERRID_OVERLOADED);
		for (uint32_t k = 0; k < FLEET_NODES; k++)
			MUST(!w->sent[k]);
		return;
	}
	w->begun = true;
}

struct asked {
	uint32_t node;
	bool found, good_reason;
};

static void ask(void *arg, const struct cluster_peer_status *s)
{
	struct asked *a = arg;
	if (node_of(s->address) == a->node) {
		a->found = true;
		a->good_reason = s->open || s->inflight_bytes > 0;
	}
}

static void write_go(struct write *w)
{
	const uint32_t *items;
	uint32_t n, owed = 0;
	for (uint32_t k = 0; k < FLEET_NODES; k++) {
		if (!w->owes[k] || w->sent[k] || k == w->self)
			continue;
		struct asked a = {.node = k};
		cluster_peers(f.c, ask, &a);
		MUST(a.found && a.good_reason); /* a peer that is not asked is left alone, or has enough to do */
		heard_nothing(w, k);
		fleet_seen.unsent++;
	}
	for (uint32_t i = 0; w->self < FLEET_NODES && i < w->n_items; i++)
		owed += w->owns[i][w->self];
	cluster_write_mine(w->op, &items, &n);
	MUST(n == owed);
	for (uint32_t k = 0; k < n; k++)
		MUST(w->owns[items[k]][w->self] && (k == 0 || items[k] > items[k - 1]));
	if (n > 0 && below(2))
		mine_is_done(w);
	else if (n > 0)
		event_at(f.now + below(3000) * MS, MINE, w, w->self);
	event_at(w->deadline, EXPIRE, w, 0);
	w->going = true;
	struct cluster_op *op = w->op;
	fail_alloc_resume();
	cluster_write_go(op);
	fail_alloc_pause();
	must_hold(w);
}

/* ---- a fleet ---- */

static struct ring_set *rings(uint32_t n_nodes, uint32_t from, uint32_t factor, enum ring_algorithm algorithm)
{
	struct buf json;
	struct ring_set *s = NULL;
	struct err err = {0};
	buf_init(&json, MIB);
	buf_printf(&json, "[{\"endpoints\":[");
	for (uint32_t i = 0; i < n_nodes; i++)
		buf_printf(&json, "%s\"n%u:10901\"", i ? "," : "", from + i);
	buf_printf(&json, "]}]");
	struct ring_options opt = {algorithm, factor};
	if (ring_set_parse("fleet", span_of(json.p, json.n), &opt, &s, &err) != OK)
		fail_msg("%s", err.msg);
	buf_free(&json);
	return s;
}

static void everything_ended_well(const struct write *w, uint64_t *own_owed)
{
	if (!w->begun)
		return;
	MUST(w->done);
	for (uint32_t i = 0; i < w->n_items; i++)
		for (uint32_t k = 0; k < FLEET_NODES; k++) {
			bool owed = f.hints && w->owns[i][k] && w->said[i][k] == AGAIN && w->outcome[i] == CLUSTER_STORED;
			*own_owed += owed && k == w->self;
			MUST(!w->missed[i][k] || w->outcome[i] == CLUSTER_STORED || w->unsaid);
			if (f.opt->exact)
				MUST(w->missed[i][k] == (owed && k != w->self));
		}
}

static void nothing_is_in_flight(void *arg, const struct cluster_peer_status *s)
{
	(void)arg;
	MUST(s->inflight_bytes == 0);
}

void fleet_run(const struct fleet_options *opt)
{
	static struct io_ops ops;
	const struct io_ops *were = io_ops;
	struct cluster_config cfg = {.send = fleet_send, .sender = &f, .no_timer = true};
	fail_alloc_pause();
	memset(&f, 0, sizeof f);
	f.opt = opt;
	f.state = opt->seed;
	f.now = (int64_t)1000000 * MS;
	ops = io_posix;
	ops.mono_ns = mono_ns;
	ops.random = random_bytes;
	io_ops = &ops;
	uint32_t n = 1 + below(20), factor = 1 + below(n < 5 ? n : 5);
	for (int k = 0; k < 2; k++)
		f.sets[k] = rings(factor + below(n - factor + 1), below(4), factor, below(4) ? RING_KETAMA : RING_HASHMOD);
	f.self = below(2) ? below(FLEET_NODES) : UINT32_MAX;
	f.quorum = below(4) ? 0 : 1 + below(factor);
	uint32_t ill = below(4);
	for (uint32_t k = 0; k < FLEET_NODES; k++)
		f.health[k] = below(4) < ill ? (enum health)below(GARBLED + 1) : WELL;
	cfg.lz4 = below(2);
	cfg.quorum = f.quorum;
	cfg.max_peer_bytes = below(3) ? 0 : 200 + below(2000);
	f.hints = below(3) > 0;
	cfg.on_missed = f.hints ? on_missed : NULL;
	cfg.missed_arg = &f;
	fail_alloc_resume();
	errc rc = cluster_open(&cfg, &f.c, NULL);
	fail_alloc_pause();
	MUST(rc == OK || (rc == ERR_NOMEM && !opt->exact));
	for (uint32_t i = 0; rc == OK && i < FLEET_WRITES; i++) {
		f.n_writes = i + 1;
		write_make(&f.writes[i], (uint8_t)i);
		if (f.writes[i].begun)
			write_go(&f.writes[i]);
		for (uint32_t k = below(60); k > 0 && f.n_events > 0; k--)
			step();
	}
	while (f.n_events > 0)
		step();
	uint64_t own_owed = 0;
	for (uint32_t i = 0; i < f.n_writes; i++)
		everything_ended_well(&f.writes[i], &own_owed);
	MUST(!opt->exact || own_owed == f.own_missed);
	fleet_seen.own_missed += own_owed;
	if (rc == OK)
		cluster_peers(f.c, nothing_is_in_flight, NULL);
	cluster_close(rc == OK ? f.c : NULL);
	for (int k = 0; k < 2; k++)
		ring_set_unref(f.sets[k]);
	io_ops = were;
	fail_alloc_resume();
}
