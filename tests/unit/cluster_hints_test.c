/* Hints against a made-up fleet on a simulated disk: nodes come and go, answers get lost, disks fail, the process starts again; whatever was added and not counted as dropped is delivered, in order,
 * one request at a time, no faster than allowed. And one by one: bounds, ages, who is gone, what is owed, and to whom a hint is handed.
 *
 * VARVE_SEED repeats a run; VARVE_FULL=1 runs 20,000 fleets instead of 300.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"

#define DIR "data/hints"
enum { NODES = 4, IDS = 4000, CALLS = 64, HOUR_MS = 3600000 };
enum health { WELL, DOWN, LOSES_ANSWERS, UNREADY, FULL, PICKY, GARBLED, TOO_LARGE, HEALTHS };

static uint64_t seed;
static bool full;

static struct {
	uint64_t state, seed;
	struct sim *sim;
	struct hints *h;
	struct hints_config cfg;
	struct node {
		char name[8];
		struct roster_node r;
		enum health health;
		uint8_t has[IDS]; /* delivered */
		uint8_t refused[IDS];
		uint8_t held[IDS]; /* the others hold a hint of it for this node */
		uint64_t first;	   /* id of the last request */
		uint32_t requests, most_frames;
	} nodes[NODES];
	struct call {
		struct link_call c;
		char address[32], target[64];
	} calls[CALLS];
	uint32_t n_calls;
	uint64_t n_ids, opens;
	bool handed; /* hints that nobody else took come later than others */
	uint8_t node_of[IDS], samples_of[IDS];
	uint64_t added, sent_bytes, largest;
	int64_t since_ms;
	double dropped0[16], delivered0;
	struct {
		uint32_t n;
		char address[32];
		int64_t from_ms, to_ms;
	} overflow;
} f;

static const char *const reasons[] = {"size", "queue", "disk", "damaged", "memory", "holder", "large", "age", "gone", "refused"};
enum { REASONS = sizeof reasons / sizeof *reasons, REFUSED_REASON = REASONS - 1 };

#define MUST(cond)                                                                                                                                   \
	do {                                                                                                                                         \
		if (!(cond))                                                                                                                         \
			fail_msg("seed %" PRIu64 ", line %d: %s", f.seed, __LINE__, #cond);                                                          \
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

static double dropped(const char *why)
{
	return metric_value(metric_counter_with("varve_hints_dropped_total", "", "reason", why));
}

static double delivered(void)
{
	return metric_value(metric_counter("varve_hints_delivered_total", ""));
}

/* Since the fleet began. */
static uint64_t dropped_now(const char *why)
{
	for (int i = 0; i < REASONS; i++)
		if (strcmp(reasons[i], why) == 0)
			return (uint64_t)(dropped(why) - f.dropped0[i]);
	fail_msg("no such reason: %s", why);
	return 0;
}

static uint64_t dropped_all(bool refused)
{
	uint64_t n = 0;
	for (int i = 0; i < REASONS; i++)
		n += i == REFUSED_REASON && !refused ? 0 : dropped_now(reasons[i]);
	return n;
}

/* ---- frames ---- */

/* n series, each a label that is its id and the samples that are its own. */
static void frame_of(const uint64_t *ids, uint32_t n, size_t noise, struct buf *out)
{
	struct buf body;
	struct peer_section s[2] = {{.tenant = SPAN("team-a"), .version = RW_1}, {.tenant = SPAN("team-b"), .version = RW_2}};
	struct peer_request r = {.epoch = 9, .hint = true, .now_ms = 500, .min_t = -100, .max_t = 100, .sections = &s[ids[0] % 2], .n_sections = 1};
	buf_init(&body, MIB);
	put_le64(r.id, ids[0]);
	for (uint32_t i = 0; i < n; i++) {
		uint8_t samples = f.samples_of[ids[i]];
		buf_u8(&body, r.sections->version == RW_1 ? 0x0a : 0x2a);
		buf_uvarint(&body, 10u + 2u * samples + (noise > 0 ? noise + 4 : 0));
		buf_put(&body, "\x0a\x08", 2);
		uint8_t id[8];
		put_le64(id, ids[i]);
		buf_put(&body, id, 8);
		for (uint8_t k = 0; k < samples; k++)
			buf_put(&body, k % 2 ? (r.sections->version == RW_1 ? "\x22" : "\x1a") : "\x12", 1), buf_u8(&body, 0);
		if (noise > 0) {
			/* field 9, its length in three bytes */
			buf_u8(&body, 0x4a);
			buf_u8(&body, (uint8_t)((noise & 127) | 128));
			buf_u8(&body, (uint8_t)((noise >> 7 & 127) | 128));
			buf_u8(&body, (uint8_t)(noise >> 14));
			for (size_t k = 0; k < noise; k++)
				buf_u8(&body, (uint8_t)draw());
		}
	}
	r.sections->n_series = n;
	r.sections->body = span_of(body.p, body.n);
	MUST(!body.failed && peer_request_encode(&r, below(2), out, NULL) == OK);
	buf_free(&body);
}

struct items {
	uint64_t ids[IDS];
	uint32_t n;
	struct peer_request r;
};

static void items_of(struct span frame, struct items *out)
{
	struct arena arena;
	arena_init(&arena, 64 * MIB);
	out->n = 0;
	MUST(peer_request_decode(frame, &arena, &out->r, NULL) == OK);
	MUST(out->r.hint && out->r.left_ms == 0 && out->r.epoch == 9 && out->r.now_ms == 500 && out->r.min_t == -100 && out->r.max_t == 100);
	uint64_t samples = 0;
	for (uint32_t i = 0; i < out->r.n_sections; i++) {
		struct peer_section *s = &out->r.sections[i];
		struct rd rd = rd_of(s->body.p, s->body.n);
		uint32_t n = 0;
		while (rd_left(&rd) > 0) {
			MUST(rd_u8(&rd) == (s->version == RW_1 ? 0x0a : 0x2a));
			struct span series = rd_str(&rd);
			MUST(rd.ok && series.n >= 10 && out->n < IDS);
			uint64_t id = get_le64(series.p + 2);
			MUST(id < f.n_ids);
			samples += f.samples_of[id];
			out->ids[out->n++] = id;
			n++;
		}
		MUST(n == s->n_series);
	}
	MUST(peer_request_samples(&out->r) == samples);
	MUST(out->n == out->r.n_items);
	arena_free(&arena);
}

/* ---- the fleet ---- */

static struct node *node_at(struct span address)
{
	for (int i = 0; i < NODES; i++)
		if (span_is(address, f.nodes[i].name))
			return &f.nodes[i];
	fail_msg("an address that nobody has: %.*s", SPAN_ARG(address));
	return NULL;
}

static errc fake_nodes(void *roster, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	(void)roster;
	*out = arena_alloc(arena, NODES * sizeof **out);
	if (!*out)
		return err_set(err, ERR_NOMEM, "no memory");
	*n = NODES;
	for (int i = 0; i < NODES; i++)
		(*out)[i] = f.nodes[i].r;
	return OK;
}

static errc fake_send(void *link, const struct link_call *c, struct err *err)
{
	fail_alloc_pause();
	MUST(link == &f && strcmp(c->method, "POST") == 0 && strcmp(c->content_type, PEER_CONTENT_TYPE) == 0);
	MUST(c->deadline_mono_ns > io_mono_ns() && c->tenant.n == 0);
	bool hint = strncmp(c->target, HINTS_PATH "?for=", sizeof HINTS_PATH + 4) == 0;
	MUST(hint || strcmp(c->target, PEER_WRITE_PATH) == 0);
	for (uint32_t i = 0; i < f.n_calls && !hint; i++)
		MUST(strcmp(f.calls[i].target, c->target) != 0 || !span_is(c->address, f.calls[i].address)); /* one at a time */
	errc rc = OK;
	if (f.n_calls == CALLS || below(40) == 0)
		rc = err_set(err, ERR_NOMEM, "as the test says");
	else {
		struct call *x = &f.calls[f.n_calls++];
		x->c = *c;
		snprintf(x->address, sizeof x->address, "%.*s", SPAN_ARG(c->address));
		snprintf(x->target, sizeof x->target, "%s", c->target);
		f.sent_bytes += hint ? 0 : c->body.n;
		f.largest = c->body.n > f.largest ? c->body.n : f.largest;
		if (!hint)
			MUST(f.cfg.rate == 0 ||
				(double)f.sent_bytes <=
					(double)f.cfg.rate * ((double)f.opens + (double)(io_now_ms() - f.since_ms) / 1e3) + (double)f.largest * 2);
	}
	fail_alloc_resume();
	return rc;
}

static void answer(const struct call *x, errc rc, int status, struct span body)
{
	struct err err = {0};
	if (rc != OK)
		(void)err_set(&err, rc, "as the test says");
	x->c.done(x->c.arg, rc, status, body, &err);
}

static void hint_arrives(const struct call *x, struct node *holder)
{
	static struct items it;
	char address[16];
	const char *said = x->target + sizeof HINTS_PATH + 4; /* n1%3A1 */
	MUST(strlen(said) == 6 && strcmp(said + 2, "%3A1") == 0);
	snprintf(address, sizeof address, "%.2s:1", said);
	struct node *whose = node_at(span_cstr(address));
	if (holder->health != WELL) {
		answer(x, holder->health == DOWN ? ERR_NET : OK, 503, span_of("", 0));
		return;
	}
	items_of(x->c.body, &it);
	for (uint32_t i = 0; i < it.n; i++)
		whose->held[it.ids[i]] = 1;
	answer(x, OK, 204, span_of("", 0));
}

static void frame_arrives(const struct call *x, struct node *node)
{
	static struct items it;
	struct peer_verdict v[IDS];
	struct peer_answer a = {.verdicts = v, .epoch = 3};
	struct buf out;
	items_of(x->c.body, &it);
	MUST(it.n > 0 && (f.handed || it.ids[0] >= node->first)); /* in order, or again */
	node->first = it.ids[0];
	node->requests++;
	node->most_frames = it.r.n_sections > node->most_frames ? it.r.n_sections : node->most_frames;
	if (node->health == DOWN || node->health == UNREADY) {
		answer(x, node->health == DOWN ? ERR_NET : OK, 503, SPAN("not now"));
		return;
	}
	if (node->health == TOO_LARGE && it.n > 1) {
		answer(x, OK, 413, SPAN("too large"));
		return;
	}
	for (uint32_t i = 0; i < it.n; i++) {
		uint64_t id = it.ids[i];
		MUST(node == &f.nodes[f.node_of[id]] && (i == 0 || f.handed || id > it.ids[i - 1]));
		if (node->health == FULL && below(3) == 0)
			v[a.n_verdicts++] = (struct peer_verdict){i, PEER_AGAIN, ERRID_HEAD_MEMORY, 0, 0, 0, 0};
		else if (node->health == PICKY && below(4) == 0) {
			node->refused[id] = 1;
			v[a.n_verdicts++] = (struct peer_verdict){i, PEER_REFUSED, ERRID_DUPLICATE_TIMESTAMP, 1, 0, 0, 0};
		} else {
			node->has[id] = 1;
			a.samples += f.samples_of[id];
		}
	}
	if (node->health == LOSES_ANSWERS) {
		answer(x, ERR_TIMEOUT, 0, span_of("", 0));
		return;
	}
	memcpy(a.id, it.r.id, sizeof a.id);
	if (node->health == GARBLED && below(2))
		a.id[0] ^= 1;
	buf_init(&out, MIB);
	MUST(peer_answer_encode(&a, &out, NULL) == OK && out.n <= x->c.max_answer_bytes);
	if (node->health == GARBLED)
		out.p[below((uint32_t)out.n)] ^= 16;
	answer(x, OK, 200, span_of(out.p, out.n));
	buf_free(&out);
}

static void resolve(uint32_t i)
{
	struct call x = f.calls[i];
	x.c.address = span_cstr(x.address);
	x.c.target = x.target;
	f.calls[i] = f.calls[--f.n_calls];
	struct node *node = node_at(x.c.address);
	if (strcmp(x.target, PEER_WRITE_PATH) == 0)
		frame_arrives(&x, node);
	else
		hint_arrives(&x, node);
}

static void resolve_all(void)
{
	while (f.n_calls > 0)
		resolve(below(f.n_calls));
}

static void on_overflow(void *arg, struct span address, int64_t from_ms, int64_t to_ms)
{
	MUST(arg == &f && from_ms <= to_ms && from_ms > 0);
	f.overflow.n++;
	snprintf(f.overflow.address, sizeof f.overflow.address, "%.*s", SPAN_ARG(address));
	f.overflow.from_ms = from_ms;
	f.overflow.to_ms = to_ms;
}

static errc fake_check(void *trust, const struct http_request *r, struct err *err)
{
	(void)trust, (void)r, (void)err;
	return OK;
}

static void fleet_begin(uint64_t with_seed, bool stores)
{
	memset(&f, 0, sizeof f);
	f.seed = f.state = with_seed;
	f.sim = sim_new(with_seed);
	sim_set_now(f.sim, INT64_C(1700000000000));
	sim_freeze(f.sim);
	f.since_ms = io_now_ms();
	for (int i = 0; i < NODES; i++) {
		snprintf(f.nodes[i].name, sizeof f.nodes[i].name, "n%d:1", i);
		f.nodes[i].r = (struct roster_node){.address = span_cstr(f.nodes[i].name),
			.in_ring = true,
			.self = i == 0,
			.state = NODE_ACTIVE,
			.answers = true,
			.stores = true,
			.heard_ms = io_now_ms()};
	}
	f.cfg = (struct hints_config){.dir = stores ? DIR : NULL,
		.self = span_cstr(f.nodes[0].name),
		.max_age_ms = 3 * HOUR_MS,
		.remember_ms = 3 * HOUR_MS,
		.send = fake_send,
		.link = &f,
		.nodes = fake_nodes,
		.check = fake_check,
		.on_overflow = on_overflow,
		.arg = &f,
		.no_thread = true};
	for (int i = 0; i < REASONS; i++)
		f.dropped0[i] = dropped(reasons[i]);
	f.delivered0 = delivered();
}

static void open_hints(void)
{
	struct err err = {0};
	f.opens++;
	if (hints_open(&f.cfg, &f.h, &err) != OK)
		fail_msg("seed %" PRIu64 ": %s", f.seed, err.msg);
}

static void restart(void)
{
	resolve_all();
	hints_close(f.h);
	MUST(sim_open_fds(f.sim) == 0);
	for (int i = 0; i < NODES; i++)
		f.nodes[i].first = 0;
	open_hints();
}

static void fleet_end(void)
{
	resolve_all();
	hints_close(f.h);
	MUST(sim_open_fds(f.sim) == 0);
	sim_free(f.sim);
}

static void pass(int64_t ms)
{
	sim_advance(f.sim, ms);
	hints_step(f.h);
}

/* A write's share that node `to` missed; the holders by number, -1: none further. */
static void miss(int to, uint32_t n, size_t noise, int holder, int other)
{
	uint64_t ids[64];
	struct span holders[2];
	struct buf frame;
	fail_alloc_pause();
	MUST(n <= 64 && f.n_ids + n < IDS);
	for (uint32_t i = 0; i < n; i++) {
		ids[i] = f.n_ids++;
		f.node_of[ids[i]] = (uint8_t)to;
		f.samples_of[ids[i]] = (uint8_t)(1 + below(3));
		f.added += f.samples_of[ids[i]];
	}
	buf_init(&frame, 512 * MIB);
	frame_of(ids, n, noise, &frame);
	struct cluster_missed m = {.address = span_cstr(f.nodes[to].name), .holders = holders, .n_items = n, .frame = span_of(frame.p, frame.n)};
	holders[m.n_holders++] = holder == 0 ? span_of("", 0) : span_cstr(f.nodes[holder].name);
	if (other >= 0)
		holders[m.n_holders++] = span_cstr(f.nodes[other].name);
	fail_alloc_resume();
	hints_missed(f.h, &m);
	fail_alloc_pause();
	buf_free(&frame);
	fail_alloc_resume();
}

static void sum(void *arg, const struct hints_status *s)
{
	*(uint64_t *)arg += s->pending_bytes;
}

static uint64_t pending(void)
{
	uint64_t n = 0;
	hints_each(f.h, sum, &n);
	return n;
}

/* Everybody is well, and all that is pending comes. */
static void drain(void)
{
	sim_fault(f.sim, NULL);
	for (int i = 0; i < NODES; i++) {
		f.nodes[i].health = WELL;
		f.nodes[i].r.answers = true;
		f.nodes[i].r.state = NODE_ACTIVE;
	}
	for (int i = 0; i < 5000; i++) {
		pass(200);
		resolve_all();
		hints_step(f.h);
		if (i > 20 && pending() == 0 && f.n_calls == 0)
			break;
	}
	MUST(pending() == 0);
	for (int i = 1; i < NODES; i++)
		MUST(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", f.nodes[i].name)) == 0);
}

/* Samples of ids that neither came, nor were refused, nor are held by another. */
static uint64_t undelivered(void)
{
	uint64_t n = 0;
	for (uint64_t id = 0; id < f.n_ids; id++) {
		const struct node *x = &f.nodes[f.node_of[id]];
		if (!x->has[id] && !x->refused[id] && !x->held[id])
			n += f.samples_of[id];
	}
	return n;
}

static uint64_t held(void)
{
	uint64_t n = 0;
	for (uint64_t id = 0; id < f.n_ids; id++)
		n += f.nodes[f.node_of[id]].held[id] ? f.samples_of[id] : 0;
	return n;
}

/* ---- random fleets ---- */

static struct {
	uint64_t delivered, undelivered, held, restarts, requests, most_frames, faults;
} seen;

static void random_fleet(uint64_t with_seed, bool disk_fails)
{
	fleet_begin(with_seed, true);
	f.cfg.lz4 = below(2);
	f.cfg.max_bytes = below(2) ? 0 : 20000 + below(200000);
	f.cfg.rate = below(2) ? 0 : 20000 + below(200000);
	f.handed = below(2);
	open_hints();
	uint32_t steps = 200 + below(800), ill = 1 + below(3);
	for (uint32_t i = 0; i < steps; i++) {
		uint32_t what = below(100);
		if (what < 40 && f.n_ids + 80 < IDS) {
			int to = 1 + (int)below(NODES - 1), holder = !f.handed || below(3) ? 0 : 1 + (int)below(NODES - 1);
			if (holder == to)
				holder = 0;
			miss(to, 1 + below(12), below(6) == 0 ? below(3000) : 0, holder, holder > 0 && below(2) ? 6 - to - holder : -1);
		} else if (what < 60 && f.n_calls > 0)
			resolve(below(f.n_calls));
		else if (what < 90)
			pass(below(10) == 0 ? below(3000) : below(100));
		else if (what < 96) {
			struct node *x = &f.nodes[1 + below(NODES - 1)];
			x->health = below(4) < ill ? (enum health)below(HEALTHS) : WELL;
			x->r.answers = x->health != DOWN || below(3) == 0;
			x->r.state = below(20) ? NODE_ACTIVE : NODE_DRAINED;
		} else if (what < 97 && i > 50) {
			/* What the disk forgets at a start is delivered once more, or lost: both are counted below. */
			sim_fault(f.sim, NULL);
			restart();
			seen.restarts++;
		} else if (disk_fails && what < 99) {
			static const unsigned kinds[] = {SIM_WRITE, SIM_SYNC, SIM_READ, SIM_WRITE | SIM_SYNC | SIM_READ};
			sim_fault(f.sim, &(struct sim_fault){.calls = kinds[below(4)],
						 .path = DIR "/",
						 .nth = 1 + below(10),
						 .error = below(2) ? EIO : ENOSPC,
						 .sticky = below(3) == 0,
						 .partial = below(4) == 0});
			seen.faults++;
		} else
			sim_fault(f.sim, NULL);
	}
	drain();
	uint64_t there = (uint64_t)(delivered() - f.delivered0);
	MUST(undelivered() <= dropped_all(false));
	if (!disk_fails) {
		MUST(there + dropped_all(true) + held() == f.added);
	}
	for (int i = 1; i < NODES; i++) {
		struct hints_owed owed;
		seen.requests += f.nodes[i].requests;
		if (f.nodes[i].most_frames > seen.most_frames)
			seen.most_frames = f.nodes[i].most_frames;
		if (hints_owed(f.h, span_cstr(f.nodes[i].name), &owed))
			MUST(owed.from_ms > 0 && owed.to_ms <= io_now_ms() && owed.frames > 0);
	}
	seen.delivered += there;
	seen.undelivered += undelivered();
	seen.held += held();
	fleet_end();
}

static void random_fleets(void **st)
{
	(void)st;
	for (uint64_t i = 0; i < (full ? 20000 : 300); i++) {
		random_fleet(seed + i, false);
		random_fleet(seed + i, true);
	}
	printf("samples: %" PRIu64 " delivered, %" PRIu64 " not, %" PRIu64 " held by others; %" PRIu64 " requests, of %" PRIu64
	       " frames at most; %" PRIu64 " starts, %" PRIu64 " faults\n",
		seen.delivered, seen.undelivered, seen.held, seen.requests, seen.most_frames, seen.restarts, seen.faults);
	assert_true(seen.delivered > 1000 && seen.undelivered > 100 && seen.held > 100 && seen.restarts > 20 && seen.faults > 20);
	assert_true(seen.most_frames > 5);
}

/* ---- one by one ---- */

static void a_node_that_is_away_gets_it_when_it_is_back(void **st)
{
	(void)st;
	fleet_begin(seed, true);
	open_hints();
	f.nodes[2].r.answers = false;
	for (int i = 0; i < 50; i++) {
		miss(2, 3, 0, 0, -1);
		pass(100);
	}
	assert_int_equal(f.n_calls, 0);
	assert_true(pending() > 0);
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", "n2:1")), f.added);
	assert_true(metric_value(metric_gauge("varve_hints_oldest_seconds", "")) >= 3);
	assert_true(metric_value(metric_gauge("varve_hints_pending_bytes", "")) > 0);
	restart();
	pass(1000);
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", "n2:1")), f.added);
	f.nodes[2].r.answers = true;
	f.nodes[2].r.state = NODE_DRAINED; /* says that it takes nothing more */
	pass(1000);
	assert_int_equal(f.n_calls, 0);
	f.nodes[2].r.state = NODE_JOINING;
	pass(1000);
	assert_int_equal(f.n_calls, 1);
	drain();
	assert_int_equal(undelivered(), 0);
	assert_int_equal(dropped_all(true), 0);
	assert_true(f.nodes[2].most_frames > 10);
	assert_int_equal(delivered() - f.delivered0, f.added);
	/* Nothing is left of it on the disk. */
	pass(1000);
	pass(1000);
	struct arena a;
	char **names;
	size_t n;
	arena_init(&a, MIB);
	assert_int_equal(io_listdir(DIR, &a, &names, &n, NULL), OK);
	assert_int_equal(n, 0);
	arena_free(&a);
	fleet_end();
}

/* One node has a half of it, the next one a half of the rest; more is owed, over starts, until it is repaired. */
static void the_bound_is_shared_and_what_is_over_it_is_owed(void **st)
{
	(void)st;
	struct hints_owed owed, again;
	fleet_begin(seed, true);
	f.cfg.max_bytes = 100000;
	open_hints();
	for (int i = 1; i < NODES; i++)
		f.nodes[i].r.answers = false;
	int64_t from = io_now_ms();
	uint64_t bytes[NODES] = {0};
	for (int node = 1; node < 3; node++) {
		for (int i = 0; i < 100; i++)
			miss(node, 2, 1000, 0, -1);
		uint64_t before = pending();
		pass(1000);
		bytes[node] = pending() - before;
	}
	assert_in_range(bytes[1], 40000, 50000);
	assert_in_range(bytes[2], 20000, 30000);
	assert_true(f.overflow.n > 0);
	assert_true(hints_owed(f.h, SPAN("n1:1"), &owed) && owed.from_ms == from + 1000 && owed.to_ms == from + 1000 && owed.frames > 50);
	assert_true(hints_owed(f.h, SPAN("n2:1"), &again) && again.from_ms == from + 2000);
	assert_int_equal(owed.samples + again.samples, dropped_now("size"));
	assert_int_equal(f.overflow.from_ms, again.from_ms);
	assert_string_equal(f.overflow.address, "n2:1");
	assert_false(hints_owed(f.h, SPAN("n3:1"), &again));
	pass(1000);
	restart();
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_owed_samples", "", "peer", "n1:1")), owed.samples);
	assert_true(hints_owed(f.h, SPAN("n1:1"), &again) && again.from_ms == owed.from_ms && again.samples == owed.samples &&
		    again.frames == owed.frames);
	/* It is told again: who repairs may not remember. */
	f.overflow.n = 0;
	pass(1000);
	assert_int_equal(f.overflow.n, 2);
	hints_repaired(f.h, SPAN("n1:1"), owed.from_ms - 1);
	assert_true(hints_owed(f.h, SPAN("n1:1"), &again) && again.from_ms == owed.from_ms);
	hints_repaired(f.h, SPAN("n1:1"), owed.to_ms);
	assert_false(hints_owed(f.h, SPAN("n1:1"), &again));
	pass(1000);
	restart();
	assert_false(hints_owed(f.h, SPAN("n1:1"), &again));
	assert_true(hints_owed(f.h, SPAN("n2:1"), &again));
	/* There is room again once they are delivered. */
	drain();
	miss(1, 1, 0, 0, -1);
	drain();
	assert_int_equal(undelivered(), dropped_now("size"));
	fleet_end();
}

/* Memory: what the disk does not take in time is owed. */
static void the_queue_is_bounded(void **st)
{
	(void)st;
	fleet_begin(seed, true);
	open_hints();
	for (int i = 0; i < 100; i++)
		miss(1, 1, 250000, 0, -1);
	assert_true(f.h->queue_bytes <= LIMIT_HINTS_QUEUE_BYTES);
	assert_true(f.h->queue_bytes > LIMIT_HINTS_QUEUE_BYTES / 2);
	drain();
	assert_int_equal(undelivered(), dropped_now("queue"));
	struct hints_owed owed;
	assert_true(hints_owed(f.h, SPAN("n1:1"), &owed) && owed.frames > 10 && owed.samples == dropped_now("queue"));
	fleet_end();
}

static void what_is_too_old_goes(void **st)
{
	(void)st;
	fleet_begin(seed, true);
	open_hints();
	f.nodes[1].r.answers = false;
	miss(1, 5, 0, 0, -1);
	hints_step(f.h);
	uint64_t old = f.added;
	pass(1000);
	pass(2 * HOUR_MS);
	miss(1, 5, 0, 0, -1);
	hints_step(f.h);
	pass(HOUR_MS - 2000);
	assert_int_equal(dropped_now("age"), 0);
	pass(5000);
	assert_int_equal(dropped_now("age"), old);
	assert_int_equal(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", "n1:1")), f.added - old);
	drain();
	assert_int_equal(undelivered(), old);
	struct hints_owed owed;
	assert_false(hints_owed(f.h, SPAN("n1:1"), &owed)); /* a block tells it */
	fleet_end();
}

static void who_is_gone_gets_nothing(void **st)
{
	(void)st;
	for (int how = 0; how < 3; how++) {
		fleet_begin(seed + (uint64_t)how, true);
		open_hints();
		struct roster_node *r = &f.nodes[1].r;
		r->answers = false;
		miss(1, 5, 0, 0, -1);
		miss(2, 5, 0, 0, -1);
		pass(1000);
		resolve_all();
		if (how == 0)
			r->state = NODE_DRAINED; /* but in the ring: it may come back */
		else
			r->in_ring = false;
		r->left_ms = io_now_ms();
		pass(1000);
		assert_int_equal(dropped_now("gone"), 0);
		if (how == 0)
			r->in_ring = false;
		if (how == 1)
			pass(3 * HOUR_MS - 3000); /* remembered so long, and as long hints are */
		if (how == 2) {
			f.cfg.remember_ms = HOUR_MS;
			restart();
			pass(HOUR_MS - 10000);
			assert_int_equal(dropped_now("gone"), 0);
			pass(20000);
		}
		pass(1000);
		if (how != 1)
			assert_true(dropped_now("gone") > 0);
		drain();
		fleet_end();
	}
}

/* A router keeps nothing: who stored it is asked, one after the other. */
static void a_router_hands_it_over(void **st)
{
	(void)st;
	fleet_begin(seed, false);
	open_hints();
	miss(1, 3, 0, 2, 3);
	if (f.n_calls == 0) /* the fake said that there is no memory */
		miss(1, 3, 0, 2, 3);
	assert_int_equal(f.n_calls, 1);
	assert_string_equal(f.calls[0].target, HINTS_PATH "?for=n1%3A1");
	fleet_end();
}

static void a_holder_that_fails(void **st)
{
	(void)st;
	for (uint64_t k = 0; k < 50; k++) {
		struct hints_owed owed;
		fleet_begin(seed + k, k % 2);
		open_hints();
		f.nodes[2].health = DOWN;
		bool nobody = k % 4 < 2;
		f.nodes[3].health = nobody ? DOWN : WELL;
		f.handed = true;
		for (int i = 0; i < 20; i++)
			miss(1, 3, 0, 2, 3);
		resolve_all();
		pass(1000);
		drain();
		/* Kept here when nobody else does, by one that keeps any; else owed. */
		assert_int_equal(undelivered(), dropped_all(false));
		assert_int_equal(dropped_all(true), dropped_now("holder"));
		if (k % 2)
			assert_int_equal(undelivered(), 0);
		else if (nobody)
			assert_true(hints_owed(f.h, SPAN("n1:1"), &owed) && owed.samples == f.added);
		fleet_end();
	}
}

/* What the cluster could not even tell, of another or of this node itself. */
static void what_was_not_told_is_owed(void **st)
{
	(void)st;
	struct hints_owed owed;
	fleet_begin(seed, true);
	open_hints();
	hints_missed(f.h, &(struct cluster_missed){.address = SPAN("n3:1"), .n_items = 7});
	hints_missed(f.h, &(struct cluster_missed){.n_items = 7});
	assert_true(hints_owed(f.h, SPAN("n3:1"), &owed) && owed.frames == 1 && owed.samples == 0 && owed.from_ms == io_now_ms());
	assert_true(hints_owed(f.h, SPAN("n0:1"), &owed) && owed.frames == 1);
	pass(1000);
	assert_int_equal(f.overflow.n, 2);
	fleet_end();
}

/* 413: alone, and when that is too large, too, it is left out; the others don't wait for it. */
static void what_is_too_large_for_its_node(void **st)
{
	(void)st;
	fleet_begin(seed, true);
	open_hints();
	f.nodes[1].r.answers = false;
	miss(1, 1, 0, 0, -1);
	uint64_t fits = f.added;
	miss(1, 5, 0, 0, -1);
	uint64_t large = f.added - fits;
	miss(1, 1, 0, 0, -1);
	pass(1000);
	f.nodes[1].health = TOO_LARGE;
	f.nodes[1].r.answers = true;
	for (int i = 0; i < 100; i++) {
		pass(1000);
		resolve_all();
	}
	assert_int_equal(pending(), 0);
	assert_int_equal(undelivered(), large);
	assert_int_equal(dropped_now("large"), large);
	fleet_end();
}

/* Whatever stands in the directory, hints begin. */
static void foreign_files(void **st)
{
	(void)st;
	fleet_begin(seed, true);
	assert_int_equal(io_mkdirs(DIR "/00aa", NULL), OK);
	assert_int_equal(io_mkdirs(DIR "/00bb", NULL), OK);
	assert_int_equal(io_mkdirs(DIR "/00bb/00000001.hints", NULL), OK);
	assert_int_equal(io_write_file(DIR "/00aa/00000001.hints", SPAN("no hints"), NULL), OK);
	assert_int_equal(io_write_file(DIR "/note", SPAN("x"), NULL), OK);
	open_hints();
	miss(1, 3, 0, 0, -1);
	drain();
	assert_int_equal(undelivered(), 0);
	fleet_end();
}

/* Each failing allocation while hints come and go: they are delivered or counted. */
static void allocations_that_fail(void **st)
{
	(void)st;
	for (uint64_t n = 1; n < 2000; n += full ? 1 : 3) {
		fleet_begin(seed, true);
		fail_alloc_at(n, false);
		errc rc = hints_open(&f.cfg, &f.h, NULL);
		if (rc == OK) {
			fail_alloc_pause();
			f.nodes[1].r.answers = false;
			for (int i = 0; i < 6; i++) {
				f.handed = true;
				fail_alloc_resume();
				miss(1 + i % 2, 2, 0, i % 3 ? 0 : 3, -1);
				hints_step(f.h);
				fail_alloc_pause();
				resolve_all();
				sim_advance(f.sim, 1000);
			}
			f.nodes[1].r.answers = true;
			for (int i = 0; i < 6; i++) {
				fail_alloc_resume();
				hints_step(f.h);
				fail_alloc_pause();
				resolve_all();
				sim_advance(f.sim, 1000);
			}
			fail_alloc_resume();
		}
		uint64_t hits = fail_alloc_off();
		if (rc == OK) {
			drain();
			for (uint64_t id = 0; id < f.n_ids; id++) {
				const struct node *x = &f.nodes[f.node_of[id]];
				struct hints_owed owed;
				MUST(x->has[id] || x->held[id] || hints_owed(f.h, span_cstr(x->name), &owed));
			}
			fleet_end();
		} else
			sim_free(f.sim);
		if (hits == 0)
			break;
	}
}

int main(void)
{
	const char *s = getenv("VARVE_SEED"), *x = getenv("VARVE_FULL");
	seed = s ? strtoull(s, NULL, 10) : io_random_u64() >> 16;
	full = x && *x == '1';
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	printf("seed %" PRIu64 "\n", seed);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_node_that_is_away_gets_it_when_it_is_back),
		cmocka_unit_test(the_bound_is_shared_and_what_is_over_it_is_owed),
		cmocka_unit_test(the_queue_is_bounded),
		cmocka_unit_test(what_is_too_old_goes),
		cmocka_unit_test(who_is_gone_gets_nothing),
		cmocka_unit_test(a_router_hands_it_over),
		cmocka_unit_test(a_holder_that_fails),
		cmocka_unit_test(what_was_not_told_is_owed),
		cmocka_unit_test(what_is_too_large_for_its_node),
		cmocka_unit_test(foreign_files),
		cmocka_unit_test(allocations_that_fail),
		cmocka_unit_test(random_fleets),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
