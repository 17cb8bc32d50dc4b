/* tests/support/hint_lab.c - see hint_lab.h. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "tests/support/fail_alloc.h"
#include "tests/support/hint_lab.h"

struct hint_lab hint_lab;
static const char *const reasons[] = {"size", "queue", "disk", "damaged", "memory", "holder", "large", "age", "gone", "refused"};
enum { REASONS = sizeof reasons / sizeof *reasons, REFUSED_REASON = REASONS - 1 };

#define MUST(cond)                                                                                                                                   \
	do {                                                                                                                                         \
		if (!(cond))                                                                                                                         \
			fail_msg("seed %" PRIu64 ", line %d: %s", hint_lab.seed, __LINE__, #cond);                                                   \
	} while (0)

static uint64_t draw(void)
{
	hint_lab.state += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = hint_lab.state;
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

uint32_t hint_lab_below(uint32_t n)
{
	return (uint32_t)(draw() % n);
}

static double dropped_total(const char *why)
{
	return metric_value(metric_counter_with("varve_hints_dropped_total", "", "reason", why));
}

static double hint_lab_delivered_total(void)
{
	return metric_value(metric_counter("varve_hints_delivered_total", ""));
}

/* Since the fleet began. */
uint64_t hint_lab_dropped(const char *why)
{
	for (int i = 0; i < REASONS; i++)
		if (strcmp(reasons[i], why) == 0)
			return (uint64_t)(dropped_total(why) - hint_lab.dropped0[i]);
	fail_msg("no such reason: %s", why);
	return 0;
}

uint64_t hint_lab_dropped_all(bool refused)
{
	uint64_t n = 0;
	for (int i = 0; i < REASONS; i++)
		n += i == REFUSED_REASON && !refused ? 0 : hint_lab_dropped(reasons[i]);
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
		uint8_t samples = hint_lab.samples_of[ids[i]];
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
	MUST(!body.failed && peer_request_encode(&r, hint_lab_below(2), out, NULL) == OK);
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
			MUST(id < hint_lab.n_ids);
			samples += hint_lab.samples_of[id];
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

static struct hint_lab_node *node_at(struct span address)
{
	for (int i = 0; i < NODES; i++)
		if (span_is(address, hint_lab.nodes[i].name))
			return &hint_lab.nodes[i];
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
		(*out)[i] = hint_lab.nodes[i].r;
	return OK;
}

static errc fake_send(void *link, const struct link_call *c, struct err *err)
{
	fail_alloc_pause();
	MUST(link == &hint_lab && strcmp(c->method, "POST") == 0 && strcmp(c->content_type, PEER_CONTENT_TYPE) == 0);
	MUST(c->deadline_mono_ns > io_mono_ns() && c->tenant.n == 0);
	bool hint = strncmp(c->target, HINTS_PATH "?for=", sizeof HINTS_PATH + 4) == 0;
	MUST(hint || strcmp(c->target, PEER_WRITE_PATH) == 0);
	for (uint32_t i = 0; i < hint_lab.n_calls && !hint; i++)
		MUST(strcmp(hint_lab.calls[i].target, c->target) != 0 || !span_is(c->address, hint_lab.calls[i].address)); /* one at a time */
	errc rc = OK;
	if (hint_lab.n_calls == CALLS || hint_lab_below(40) == 0)
		rc = err_set(err, ERR_NOMEM, "as the test says");
	else {
		struct hint_lab_call *x = &hint_lab.calls[hint_lab.n_calls++];
		x->c = *c;
		snprintf(x->address, sizeof x->address, "%.*s", SPAN_ARG(c->address));
		snprintf(x->target, sizeof x->target, "%s", c->target);
		hint_lab.sent_bytes += hint ? 0 : c->body.n;
		hint_lab.largest = c->body.n > hint_lab.largest ? c->body.n : hint_lab.largest;
		if (!hint)
			MUST(hint_lab.cfg.rate == 0 ||
				(double)hint_lab.sent_bytes <=
					(double)hint_lab.cfg.rate * ((double)hint_lab.opens + (double)(io_now_ms() - hint_lab.since_ms) / 1e3) +
						/* on credit, which a start forgets */ (double)hint_lab.largest * (double)(hint_lab.opens + 1));
	}
	fail_alloc_resume();
	return rc;
}

static void answer(const struct hint_lab_call *x, errc rc, int status, struct span body)
{
	struct err err = {0};
	if (rc != OK)
		(void)err_set(&err, rc, "as the test says");
	x->c.done(x->c.arg, rc, status, body, &err);
}

static void hint_arrives(const struct hint_lab_call *x, struct hint_lab_node *holder)
{
	static struct items it;
	char address[16];
	const char *said = x->target + sizeof HINTS_PATH + 4; /* n1%3A1 */
	MUST(strlen(said) == 6 && strcmp(said + 2, "%3A1") == 0);
	snprintf(address, sizeof address, "%.2s:1", said);
	struct hint_lab_node *whose = node_at(span_cstr(address));
	if (holder->health != WELL) {
		answer(x, holder->health == DOWN ? ERR_NET : OK, 503, span_of("", 0));
		return;
	}
	items_of(x->c.body, &it);
	for (uint32_t i = 0; i < it.n; i++)
		whose->held[it.ids[i]] = 1;
	answer(x, OK, 204, span_of("", 0));
}

static void frame_arrives(const struct hint_lab_call *x, struct hint_lab_node *node)
{
	static struct items it;
	struct peer_verdict v[IDS];
	struct peer_answer a = {.verdicts = v, .epoch = 3};
	struct buf out;
	items_of(x->c.body, &it);
	MUST(it.n > 0 && (hint_lab.handed || it.ids[0] >= node->first)); /* in order, or again */
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
		MUST(node == &hint_lab.nodes[hint_lab.node_of[id]] && (i == 0 || hint_lab.handed || id > it.ids[i - 1]));
		if (node->health == FULL && hint_lab_below(3) == 0)
			v[a.n_verdicts++] = (struct peer_verdict){i, PEER_AGAIN, ERRID_HEAD_MEMORY, 0, 0, 0, 0};
		else if (node->health == PICKY && hint_lab_below(4) == 0) {
			node->refused[id] = 1;
			v[a.n_verdicts++] = (struct peer_verdict){i, PEER_REFUSED, ERRID_DUPLICATE_TIMESTAMP, 1, 0, 0, 0};
		} else {
			node->has[id] = 1;
			a.samples += hint_lab.samples_of[id];
		}
	}
	if (node->health == LOSES_ANSWERS) {
		answer(x, ERR_TIMEOUT, 0, span_of("", 0));
		return;
	}
	memcpy(a.id, it.r.id, sizeof a.id);
	if (node->health == GARBLED && hint_lab_below(2))
		a.id[0] ^= 1;
	buf_init(&out, MIB);
	MUST(peer_answer_encode(&a, &out, NULL) == OK && out.n <= x->c.max_answer_bytes);
	if (node->health == GARBLED)
		out.p[hint_lab_below((uint32_t)out.n)] ^= 16;
	answer(x, OK, 200, span_of(out.p, out.n));
	buf_free(&out);
}

void hint_lab_resolve(uint32_t i)
{
	struct hint_lab_call x = hint_lab.calls[i];
	x.c.address = span_cstr(x.address);
	x.c.target = x.target;
	hint_lab.calls[i] = hint_lab.calls[--hint_lab.n_calls];
	struct hint_lab_node *node = node_at(x.c.address);
	if (strcmp(x.target, PEER_WRITE_PATH) == 0)
		frame_arrives(&x, node);
	else
		hint_arrives(&x, node);
}

void hint_lab_resolve_all(void)
{
	while (hint_lab.n_calls > 0)
		hint_lab_resolve(hint_lab_below(hint_lab.n_calls));
}

static void on_overflow(void *arg, struct span address, int64_t from_ms, int64_t to_ms)
{
	MUST(arg == &hint_lab && from_ms <= to_ms && from_ms > 0);
	hint_lab.overflow.n++;
	snprintf(hint_lab.overflow.address, sizeof hint_lab.overflow.address, "%.*s", SPAN_ARG(address));
	hint_lab.overflow.from_ms = from_ms;
	hint_lab.overflow.to_ms = to_ms;
}

static errc fake_check(void *trust, const struct http_request *r, struct err *err)
{
	(void)trust, (void)r, (void)err;
	return OK;
}

void hint_lab_begin(uint64_t with_seed, bool stores)
{
	memset(&hint_lab, 0, sizeof hint_lab);
	hint_lab.seed = hint_lab.state = with_seed;
	hint_lab.sim = sim_new(with_seed);
	sim_set_now(hint_lab.sim, INT64_C(1700000000000));
	sim_freeze(hint_lab.sim);
	hint_lab.since_ms = io_now_ms();
	for (int i = 0; i < NODES; i++) {
		snprintf(hint_lab.nodes[i].name, sizeof hint_lab.nodes[i].name, "n%d:1", i);
		hint_lab.nodes[i].r = (struct roster_node){.address = span_cstr(hint_lab.nodes[i].name),
			.in_ring = true,
			.self = i == 0,
			.state = NODE_ACTIVE,
			.answers = true,
			.stores = true,
			.heard_ms = io_now_ms()};
	}
	hint_lab.cfg = (struct hints_config){.dir = stores ? HINT_LAB_DIR : NULL,
		.self = span_cstr(hint_lab.nodes[0].name),
		.max_age_ms = 3 * HOUR_MS,
		.remember_ms = 3 * HOUR_MS,
		.send = fake_send,
		.link = &hint_lab,
		.nodes = fake_nodes,
		.check = fake_check,
		.on_overflow = on_overflow,
		.arg = &hint_lab,
		.no_thread = true};
	for (int i = 0; i < REASONS; i++)
		hint_lab.dropped0[i] = dropped_total(reasons[i]);
	hint_lab.delivered0 = hint_lab_delivered_total();
}

void hint_lab_open(void)
{
	struct err err = {0};
	hint_lab.opens++;
	if (hints_open(&hint_lab.cfg, &hint_lab.h, &err) != OK)
		fail_msg("seed %" PRIu64 ": %s", hint_lab.seed, err.msg);
}

void hint_lab_restart(void)
{
	hint_lab_resolve_all();
	hints_close(hint_lab.h);
	MUST(sim_open_fds(hint_lab.sim) == 0);
	for (int i = 0; i < NODES; i++)
		hint_lab.nodes[i].first = 0;
	hint_lab_open();
}

void hint_lab_end(void)
{
	hint_lab_resolve_all();
	hints_close(hint_lab.h);
	MUST(sim_open_fds(hint_lab.sim) == 0);
	sim_free(hint_lab.sim);
}

void hint_lab_pass(int64_t ms)
{
	sim_advance(hint_lab.sim, ms);
	hints_step(hint_lab.h);
}

/* A write's share that node `to` missed; the holders by number, -1: none further. */
void hint_lab_miss(int to, uint32_t n, size_t noise, int holder, int other)
{
	uint64_t ids[64];
	struct span holders[2];
	struct buf frame;
	fail_alloc_pause();
	MUST(n <= 64 && hint_lab.n_ids + n < IDS);
	for (uint32_t i = 0; i < n; i++) {
		ids[i] = hint_lab.n_ids++;
		hint_lab.node_of[ids[i]] = (uint8_t)to;
		hint_lab.samples_of[ids[i]] = (uint8_t)(1 + hint_lab_below(3));
		hint_lab.added += hint_lab.samples_of[ids[i]];
	}
	buf_init(&frame, 512 * MIB);
	frame_of(ids, n, noise, &frame);
	struct cluster_missed m = {
		.address = span_cstr(hint_lab.nodes[to].name), .holders = holders, .n_items = n, .frame = span_of(frame.p, frame.n)};
	holders[m.n_holders++] = holder == 0 ? span_of("", 0) : span_cstr(hint_lab.nodes[holder].name);
	if (other >= 0)
		holders[m.n_holders++] = span_cstr(hint_lab.nodes[other].name);
	fail_alloc_resume();
	hints_missed(hint_lab.h, &m);
	fail_alloc_pause();
	buf_free(&frame);
	fail_alloc_resume();
}

static void sum(void *arg, const struct hints_status *s)
{
	*(uint64_t *)arg += s->pending_bytes;
}

uint64_t hint_lab_pending(void)
{
	uint64_t n = 0;
	hints_each(hint_lab.h, sum, &n);
	return n;
}

/* Everybody is well, and all that is pending comes. */
void hint_lab_drain(void)
{
	sim_fault(hint_lab.sim, NULL);
	for (int i = 0; i < NODES; i++) {
		hint_lab.nodes[i].health = WELL;
		hint_lab.nodes[i].r.answers = true;
		hint_lab.nodes[i].r.state = NODE_ACTIVE;
	}
	for (int i = 0; i < 5000; i++) {
		hint_lab_pass(200);
		hint_lab_resolve_all();
		hints_step(hint_lab.h);
		if (i > 20 && hint_lab_pending() == 0 && hint_lab.n_calls == 0)
			break;
	}
	MUST(hint_lab_pending() == 0);
	for (int i = 1; i < NODES; i++)
		MUST(metric_value(metric_gauge_with("varve_hints_pending_samples", "", "peer", hint_lab.nodes[i].name)) == 0);
}

/* Samples of ids that neither came, nor were refused, nor are held by another. */
uint64_t hint_lab_undelivered(void)
{
	uint64_t n = 0;
	for (uint64_t id = 0; id < hint_lab.n_ids; id++) {
		const struct hint_lab_node *x = &hint_lab.nodes[hint_lab.node_of[id]];
		if (!x->has[id] && !x->refused[id] && !x->held[id])
			n += hint_lab.samples_of[id];
	}
	return n;
}

uint64_t hint_lab_held(void)
{
	uint64_t n = 0;
	for (uint64_t id = 0; id < hint_lab.n_ids; id++)
		n += hint_lab.nodes[hint_lab.node_of[id]].held[id] ? hint_lab.samples_of[id] : 0;
	return n;
}

uint64_t hint_lab_delivered(void)
{
	return (uint64_t)(hint_lab_delivered_total() - hint_lab.delivered0);
}
