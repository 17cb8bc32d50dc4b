/* Who is in the fleet: what nodes say is known within a question's time, who left is asked until it is drained or forgotten, memory survives a restart and is shared, and no node that is silent keeps others from being asked. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/cluster_roster_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/node_lab.h"
#include "tests/support/tmp.h"

enum { ASK_MS = 30, WAIT_MS = 15000, REMEMBER_MS = 3600000 };

/* ---- fixtures ---- */

static struct trust *trust;
static struct link *link_;

static void parts_open(void)
{
	assert_int_equal(trust_open(&(struct trust_config){0}, &trust, NULL), OK);
	assert_int_equal(link_open(&(struct link_config){.trust = trust}, &link_, NULL), OK);
}

static void parts_close(void)
{
	link_close(link_);
	trust_close(trust);
}

static struct {
	pthread_mutex_t mu;
	char said[20000];
} events = {.mu = PTHREAD_MUTEX_INITIALIZER};

static void heard(void *arg, const struct roster_node *n)
{
	(void)arg;
	pthread_mutex_lock(&events.mu);
	size_t at = strlen(events.said);
	snprintf(events.said + at, sizeof events.said - at, "%.*s %s%s%s\n", SPAN_ARG(n->address), node_state_name(n->state), n->in_ring ? " in" : "",
		n->answers ? " answers" : "");
	pthread_mutex_unlock(&events.mu);
}

static struct roster *roster_of(const char *file, const char *self, int64_t remember_ms)
{
	struct roster *r;
	const struct roster_config cfg = {.file = file,
		.self = span_cstr(self),
		.id = "me",
		.targets = "route,ingest",
		.link = link_,
		.remember_ms = remember_ms,
		.ask_ms = ASK_MS,
		.on_change = heard};
	assert_int_equal(roster_open(&cfg, &r, NULL), OK);
	return r;
}

static void rings(struct roster *r, const char *const *addresses, size_t n)
{
	struct ring_set *set = ring_of(addresses, n);
	roster_rings(r, set);
	ring_set_unref(set);
}

/* A node as the roster has it now; address.p NULL: it has none. */
static struct roster_node look(struct roster *r, const char *address)
{
	struct arena a;
	struct roster_node *v, out = {0};
	size_t n;
	arena_init(&a, 64 * MIB);
	assert_int_equal(roster_nodes(r, &a, &v, &n, NULL), OK);
	for (size_t i = 0; i < n; i++)
		if (span_is(v[i].address, address)) {
			out = v[i];
			out.address = span_cstr(address);
		}
	arena_free(&a);
	return out;
}

static size_t count(struct roster *r)
{
	struct arena a;
	struct roster_node *v;
	size_t n;
	arena_init(&a, 64 * MIB);
	assert_int_equal(roster_nodes(r, &a, &v, &n, NULL), OK);
	for (size_t i = 1; i < n; i++)
		assert_true(span_cmp(v[i - 1].address, v[i].address) < 0);
	arena_free(&a);
	return n;
}

#define WAIT_FOR(cond)                                                                                                                               \
	do {                                                                                                                                         \
		int64_t until_ms = io_mono_ms() + WAIT_MS;                                                                                           \
		while (!(cond) && io_mono_ms() < until_ms)                                                                                           \
			io_sleep_ms(5);                                                                                                              \
		assert_true(cond);                                                                                                                   \
	} while (0)

static bool event(const char *text)
{
	pthread_mutex_lock(&events.mu);
	bool there = strstr(events.said, text) != NULL;
	pthread_mutex_unlock(&events.mu);
	return there;
}

/* ---- what nodes say ---- */

static void what_nodes_say_is_known(void **st)
{
	(void)st;
	static struct fake a, b, c;
	fake_start(&a);
	fake_start(&b);
	fake_start(&c);
	fake_says(&b, "joining", "B", "");
	fake_says(&c, "active", "C", "");
	pthread_mutex_lock(&c.mu);
	snprintf(
		c.text, sizeof c.text, "{\"epoch\":\"bb\",\"node\":\"C\",\"state\":\"active\",\"targets\":[\"query\"],\"started_ms\":9,\"more\":{}}");
	pthread_mutex_unlock(&c.mu);
	events.said[0] = 0;
	struct roster *r = roster_of(NULL, "self:1", REMEMBER_MS);
	assert_int_equal(count(r), 1);
	assert_true(look(r, "self:1").self && look(r, "self:1").state == NODE_JOINING && !look(r, "self:1").in_ring);
	rings(r, (const char *[]){a.address, b.address, c.address, "self:1"}, 4);
	WAIT_FOR(look(r, a.address).answers && look(r, b.address).answers && look(r, c.address).answers);
	struct roster_node n = look(r, b.address);
	assert_true(n.in_ring && n.state == NODE_JOINING && n.stores && n.epoch == 0xaa && n.started_ms == 7 && strcmp(n.id, "B") == 0 &&
		    n.heard_ms > 0 && n.left_ms == 0);
	n = look(r, c.address);
	assert_true(n.state == NODE_ACTIVE && !n.stores && n.epoch == 0xbb && n.started_ms == 9);
	roster_say(r, NODE_ACTIVE);
	assert_true(
		roster_said(r) == NODE_ACTIVE && look(r, "self:1").state == NODE_ACTIVE && look(r, "self:1").in_ring && look(r, "self:1").answers);
	/* changes are told, once each */
	fake_says(&b, "active", "B", "");
	WAIT_FOR(look(r, b.address).state == NODE_ACTIVE);
	WAIT_FOR(event(b.address) && event("active in answers"));
	/* who does not answer is asked less and less; nothing else changes */
	fake_stop(&a);
	WAIT_FOR(!look(r, a.address).answers);
	assert_true(look(r, a.address).state == NODE_ACTIVE && look(r, a.address).in_ring);
	a.status = 503;
	fake_start(&a);
	int before = a.asked;
	io_sleep_ms(300);
	assert_false(look(r, a.address).answers);
	assert_in_range(a.asked - before, 0, 9);
	a.status = 0;
	roster_look(r, span_cstr(a.address));
	WAIT_FOR(look(r, a.address).answers);
	/* what is no answer */
	static const char *const bad[] = {"", "{", "[]", "null", "hello", "{\"epoch\":1"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		pthread_mutex_lock(&a.mu);
		snprintf(a.text, sizeof a.text, "%s", bad[i]);
		pthread_mutex_unlock(&a.mu);
		roster_look(r, span_cstr(a.address));
		WAIT_FOR(!look(r, a.address).answers);
		fake_says(&a, "active", "A", "");
		roster_look(r, span_cstr(a.address));
		WAIT_FOR(look(r, a.address).answers);
	}
	roster_close(r);
	fake_stop(&a);
	fake_stop(&b);
	fake_stop(&c);
}

/* Its own words are what another one reads. */
static void what_it_says_of_itself_is_read_back(void **st)
{
	(void)st;
	static struct fake x;
	fake_start(&x);
	fake_says(&x, "draining", "X", "");
	struct roster *r = roster_of(NULL, "self:1", REMEMBER_MS);
	rings(r, (const char *[]){x.address}, 1);
	WAIT_FOR(look(r, x.address).answers);
	rings(r, (const char *[]){"self:1"}, 1);
	roster_say(r, NODE_DRAINING);
	struct buf b;
	struct arena a;
	struct roster_words w;
	buf_init(&b, MIB);
	arena_init(&a, MIB);
	buf_printf(&b, "{\"epoch\":\"00000000deadbeef\",");
	roster_json(r, &b);
	buf_printf(&b, "}");
	assert_int_equal(roster_read_answer(span_of(b.p, b.n), &a, &w, NULL), OK);
	assert_true(
		w.epoch == 0xdeadbeef && w.state == NODE_DRAINING && w.stores && strcmp(w.id, "me") == 0 && w.started_ms > 0 && w.n_remembered == 1);
	assert_true(span_is(w.remembered[0].address, x.address) && w.remembered[0].state == NODE_DRAINING && w.remembered[0].left_ms > 0);
	/* no prefix of it is one, and none breaks anything */
	for (size_t n = 0; n < b.n; n++) {
		char *copy = malloc(n + 1);
		memcpy(copy, b.p, n);
		assert_int_equal(roster_read_answer(span_of(copy, n), &a, &w, NULL), ERR_CORRUPT);
		free(copy);
	}
	arena_free(&a);
	buf_free(&b);
	roster_close(r);
	fake_stop(&x);
}

/* ---- who left ---- */

static void who_left_is_asked_until_it_is_drained(void **st)
{
	(void)st;
	static struct fake a, b;
	fake_start(&a);
	fake_start(&b);
	events.said[0] = 0;
	struct roster *r = roster_of(NULL, "", REMEMBER_MS);
	rings(r, (const char *[]){a.address, b.address}, 2);
	WAIT_FOR(look(r, a.address).answers && look(r, b.address).answers);
	rings(r, (const char *[]){a.address}, 1);
	assert_true(!look(r, b.address).in_ring && look(r, b.address).left_ms > 0);
	int before = b.asked;
	WAIT_FOR(b.asked > before + 3);
	fake_says(&b, "draining", "", "");
	WAIT_FOR(look(r, b.address).state == NODE_DRAINING);
	fake_says(&b, "drained", "", "");
	WAIT_FOR(look(r, b.address).state == NODE_DRAINED);
	io_sleep_ms(3 * ASK_MS);
	before = b.asked;
	io_sleep_ms(10 * ASK_MS);
	assert_int_equal(b.asked, before);
	assert_int_equal(count(r), 2); /* and is remembered */
	WAIT_FOR(event("drained answers\n"));
	/* back in a ring it is a node like any other */
	fake_says(&b, "active", "", "");
	rings(r, (const char *[]){a.address, b.address}, 2);
	WAIT_FOR(look(r, b.address).state == NODE_ACTIVE);
	assert_true(look(r, b.address).in_ring && look(r, b.address).left_ms == 0);
	roster_close(r);
	fake_stop(&a);
	fake_stop(&b);
}

static void who_left_is_forgotten_in_the_end(void **st)
{
	(void)st;
	static struct fake a;
	fake_start(&a);
	struct roster *r = roster_of(NULL, "", 400);
	rings(r, (const char *[]){a.address, "127.0.0.1:1"}, 2);
	WAIT_FOR(look(r, a.address).answers);
	rings(r, (const char *[]){a.address}, 1);
	assert_int_equal(count(r), 2);
	WAIT_FOR(count(r) == 1);
	assert_true(look(r, a.address).in_ring);
	roster_close(r);
	fake_stop(&a);
}

/* A router has no file: it hears from its peers who left, and that one of those is drained. */
static void memory_is_shared(void **st)
{
	(void)st;
	static struct fake a, gone;
	char more[600];
	fake_start(&a);
	fake_start(&gone);
	int64_t now_ms = io_now_ms();
	snprintf(more, sizeof more,
		",\"remembered\":[{\"address\":\"%s\",\"state\":\"active\",\"left_ms\":%" PRId64 ",\"heard_ms\":%" PRId64
		",\"id\":\"G\",\"stores\":true},{\"address\":\"old:1\",\"left_ms\":%" PRId64
		"},{\"address\":\"dr:1\",\"state\":\"drained\",\"left_ms\":%" PRId64
		"},{\"address\":\"evil/../x\"},{\"address\":\"\"},7,{\"address\":\"%s\",\"state\":\"drained\",\"left_ms\":5,\"heard_ms\":%" PRId64
		"}]",
		gone.address, now_ms - 60000, now_ms - 1000, now_ms - REMEMBER_MS - 60000, now_ms - 60000, a.address, now_ms + 60000);
	fake_says(&a, "active", "A", more);
	struct roster *r = roster_of(NULL, "", REMEMBER_MS);
	rings(r, (const char *[]){a.address}, 1);
	WAIT_FOR(look(r, gone.address).answers);
	assert_true(look(r, gone.address).left_ms == now_ms - 60000 && !look(r, gone.address).in_ring);
	assert_int_equal(count(r), 3);
	assert_true(look(r, "dr:1").state == NODE_DRAINED);
	assert_true(look(r, a.address).state == NODE_ACTIVE); /* what it says itself counts */
	/* that it is drained is believed when it is silent, not while it answers */
	snprintf(more, sizeof more, ",\"remembered\":[{\"address\":\"%s\",\"state\":\"drained\",\"left_ms\":%" PRId64 ",\"heard_ms\":%" PRId64 "}]",
		gone.address, now_ms - 60000, now_ms + 3600000);
	fake_says(&a, "active", "A", more);
	int before = a.asked;
	WAIT_FOR(a.asked > before + 4);
	assert_true(look(r, gone.address).state == NODE_ACTIVE);
	fake_stop(&gone);
	WAIT_FOR(look(r, gone.address).state == NODE_DRAINED);
	roster_close(r);
	fake_stop(&a);
}

/* ---- the file ---- */

static void memory_survives_a_restart(void **st)
{
	(void)st;
	static struct fake a, b;
	fake_start(&a);
	fake_start(&b);
	char file[200];
	snprintf(file, sizeof file, "%s/roster.json", tmp_dir());
	struct roster *r = roster_of(file, "self:1", REMEMBER_MS);
	rings(r, (const char *[]){a.address, b.address, "self:1"}, 3);
	WAIT_FOR(look(r, a.address).answers && look(r, b.address).answers);
	rings(r, (const char *[]){a.address, "self:1"}, 2);
	int64_t left_ms = look(r, b.address).left_ms;
	roster_close(r);
	r = roster_of(file, "self:1", REMEMBER_MS);
	assert_int_equal(count(r), 3); /* before any ring is known */
	assert_int_equal(look(r, b.address).left_ms, left_ms);
	int before = b.asked;
	WAIT_FOR(b.asked > before + 2);
	rings(r, (const char *[]){a.address, "self:1"}, 2);
	assert_int_equal(look(r, b.address).left_ms, left_ms);
	assert_true(look(r, a.address).in_ring);
	roster_close(r);

	/* any damage is an empty roster, or one of whole nodes */
	struct arena arena;
	struct span text;
	arena_init(&arena, MIB);
	assert_int_equal(io_read_file(file, MIB, &arena, &text, NULL), OK);
	for (size_t n = 0; n < text.n; n++) {
		char *bad = malloc(text.n);
		memcpy(bad, text.p, text.n);
		struct roster_memory *v;
		size_t k = 0;
		(void)!roster_read_file(span_of(bad, n), &arena, &v, &k, NULL);
		bad[n] ^= 4;
		if (roster_read_file(span_of(bad, text.n), &arena, &v, &k, NULL) == OK)
			assert_in_range(k, 0, 2);
		free(bad);
	}
	assert_int_equal(io_write_file(file, SPAN("{\"version\":1,\"nodes\":[{\"addre"), NULL), OK);
	r = roster_of(file, "self:1", REMEMBER_MS);
	assert_int_equal(count(r), 1);
	roster_close(r);
	arena_free(&arena);
	fake_stop(&a);
	fake_stop(&b);
}

/* ---- many ---- */

static atomic_int inside;
static pthread_mutex_t held_mu = PTHREAD_MUTEX_INITIALIZER;
static struct http_request *held[1000];
static size_t n_held;
static bool hold; /* guarded by held_mu */

static void slow(void *arg, struct http_request *r)
{
	(void)arg;
	pthread_mutex_lock(&held_mu);
	bool now = !hold || n_held == sizeof held / sizeof *held;
	if (!now) {
		inside++;
		http_defer(r);
		held[n_held++] = r;
	}
	pthread_mutex_unlock(&held_mu);
	if (now)
		http_answer(r, 200, NULL, SPAN("{\"state\":\"active\"}"));
}

/* Eighty nodes hang; at most 32 questions are on their way, and a node that is well is asked all the while. */
static void silent_nodes_keep_nobody_from_being_asked(void **st)
{
	(void)st;
	enum { HANG = 80 };
	static struct fake well;
	static char text[HANG + 1][40];
	const char *addresses[HANG + 1];
	struct err err = {0};
	struct http_server *s;
	fake_start(&well);
	hold = true;
	const struct http_route routes[] = {{HTTP_GET, "/-/ring", HTTP_NO_AUTH, 0, slow, NULL}};
	if (http_server_start(&(struct http_server_config){.address = "0.0.0.0:0", .threads = 1, .workers = 1}, routes, 1, &s, &err) != OK)
		fail_msg("%s", err.msg);
	for (int i = 0; i < HANG; i++) {
		snprintf(text[i], sizeof text[i], "127.0.1.%d:%u", i + 1, http_server_port(s));
		addresses[i] = text[i];
	}
	addresses[HANG] = well.address;
	struct roster *r = roster_of(NULL, "", REMEMBER_MS);
	rings(r, addresses, HANG + 1);
	io_sleep_ms(LIMIT_ROSTER_ANSWER_MS / 2);
	assert_in_range(inside, 16, LIMIT_ROSTER_ASKED);
	io_sleep_ms(LIMIT_ROSTER_ANSWER_MS * 4);
	int before = well.asked;
	WAIT_FOR(well.asked > before + 10);
	/* they come back, and all are known */
	pthread_mutex_lock(&held_mu);
	hold = false;
	for (size_t i = 0; i < n_held; i++)
		http_answer(held[i], 200, NULL, SPAN("{\"state\":\"active\"}"));
	n_held = 0;
	pthread_mutex_unlock(&held_mu);
	for (int i = 0; i < HANG; i++)
		WAIT_FOR(look(r, text[i]).answers);
	roster_close(r);
	http_server_stop(s, 1000);
	fake_stop(&well);
}

/* ---- candidates ---- */

static struct roster_candidate candidate(struct roster *r, const char *address)
{
	struct arena a;
	struct roster_candidate *v, out = {0};
	size_t n;
	arena_init(&a, 64 * MIB);
	assert_int_equal(roster_candidates(r, &a, &v, &n, NULL), OK);
	for (size_t i = 0; i < n; i++)
		if (span_is(v[i].node.address, address)) {
			out = v[i];
			out.node.address = span_cstr(address);
		}
	arena_free(&a);
	return out;
}

static void who_is_wanted_is_asked_and_no_member(void **st)
{
	(void)st;
	static struct fake a, b;
	fake_start(&a);
	fake_start(&b);
	events.said[0] = 0;
	struct roster *r = roster_of(NULL, "", REMEMBER_MS);
	const struct span wanted[] = {span_cstr(a.address), span_cstr(b.address), span_cstr(a.address)};
	assert_int_equal(roster_want(r, wanted, 3, NULL), OK);
	assert_false(candidate(r, a.address).asked);
	WAIT_FOR(candidate(r, a.address).node.answers && candidate(r, b.address).node.answers);
	assert_true(candidate(r, a.address).asked && candidate(r, a.address).wanted && candidate(r, a.address).silent_ms == 0);
	assert_int_equal(count(r), 0);
	struct buf out;
	buf_init(&out, MIB);
	roster_json(r, &out);
	assert_null(memmem(out.p, out.n, a.address, strlen(a.address)));
	buf_free(&out);
	rings(r, (const char *[]){a.address}, 1);
	assert_int_equal(count(r), 1);
	fake_stop(&a);
	WAIT_FOR(candidate(r, a.address).silent_ms > 100);
	/* b is wanted no more, and was never a member: it is as if it had never been */
	assert_int_equal(roster_want(r, wanted, 1, NULL), OK);
	int before = b.asked;
	io_sleep_ms(5 * ASK_MS);
	assert_in_range(b.asked - before, 0, 1);
	assert_null(candidate(r, b.address).node.address.p);
	assert_false(event(b.address));
	roster_close(r);
	fake_stop(&b);
}

/* A ring may name this node by another address: it is asked there, and knows itself. */
static void it_knows_itself_by_its_id(void **st)
{
	(void)st;
	static struct fake a;
	fake_start(&a);
	fake_says(&a, "active", "me", "");
	struct roster *r = roster_of(NULL, "other:1", REMEMBER_MS);
	rings(r, (const char *[]){a.address}, 1);
	WAIT_FOR(look(r, a.address).self);
	fake_says(&a, "active", "you", "");
	WAIT_FOR(!look(r, a.address).self);
	roster_close(r);
	fake_stop(&a);
}

static void no_memory_is_met(void **st)
{
	(void)st;
	char file[200];
	snprintf(file, sizeof file, "%s/roster.json", tmp_dir());
	assert_int_equal(io_write_file(file, SPAN("{\"version\":1,\"nodes\":[{\"address\":\"a:1\"},{\"address\":\"b:1\"}]}"), NULL), OK);
	for (uint64_t n = 1; n < 300; n++) {
		struct roster *r = NULL;
		const struct roster_config cfg = {.file = file, .self = SPAN("s:1"), .link = link_, .remember_ms = REMEMBER_MS, .ask_ms = 100000};
		fail_alloc_at(n, false);
		errc rc = roster_open(&cfg, &r, NULL);
		if (rc == OK) {
			struct arena a;
			struct roster_node *v;
			size_t k;
			arena_init(&a, MIB);
			(void)!roster_nodes(r, &a, &v, &k, NULL);
			arena_free(&a);
			roster_look(r, SPAN("a:1"));
		}
		uint64_t hits = fail_alloc_off();
		roster_close(r);
		if (rc == OK && hits == 0)
			break;
		assert_true(rc == OK || rc == ERR_NOMEM);
	}
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	parts_open();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_nodes_say_is_known),
		cmocka_unit_test(what_it_says_of_itself_is_read_back),
		cmocka_unit_test(who_left_is_asked_until_it_is_drained),
		cmocka_unit_test(who_left_is_forgotten_in_the_end),
		cmocka_unit_test(memory_is_shared),
		cmocka_unit_test(memory_survives_a_restart),
		cmocka_unit_test(silent_nodes_keep_nobody_from_being_asked),
		cmocka_unit_test(who_is_wanted_is_asked_and_no_member),
		cmocka_unit_test(it_knows_itself_by_its_id),
		cmocka_unit_test(no_memory_is_met),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	parts_close();
	return failed;
}
