/* Feeds that follow each other: three nodes in one process over a network that loses, nodes that are away, gaps, snapshots, many peers, and HTTP. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "bucket/bucket_feed_int.h"
#include "tests/support/feed_lab.h"
#include "tests/support/tmp.h"

#define MS INT64_C(1000000)

/* ---- the network ---- */

struct town {
	struct lab *l;
	struct feed *feed[LAB_NODES];
	atomic_bool down[LAB_NODES];
	atomic_int lose; /* percent of questions, and of answers */
	struct place {
		struct town *town;
		uint32_t self;
	} place[LAB_NODES];
};

static errc town_peers(void *arg, struct arena *arena, struct feed_peer **out, size_t *n, struct err *err)
{
	struct place *p = arg;
	(void)err;
	*out = arena_calloc(arena, LAB_NODES, sizeof **out);
	*n = 0;
	for (uint32_t i = 0; i < LAB_NODES; i++) {
		if (i == p->self)
			continue;
		struct feed_peer *v = &(*out)[(*n)++];
		v->address = span_cstr(p->town->l->node[i].id);
		snprintf(v->node, sizeof v->node, "%s", p->town->l->node[i].id);
		v->answers = !atomic_load(&p->town->down[i]);
		v->stores = true;
	}
	return OK;
}

struct trip {
	struct town *town;
	uint32_t from, to;
	void (*done)(void *arg, errc rc, int status, struct span answer, const struct err *err);
	void *arg;
};

static bool lost(struct town *t)
{
	return (int)(io_random_u64() % 100) < atomic_load(&t->lose);
}

static void trip_back(void *arg, int status, struct span body, const struct err *why)
{
	struct trip *t = arg;
	struct err err = {0};
	if (lost(t->town) || atomic_load(&t->town->down[t->from]) || atomic_load(&t->town->down[t->to]))
		t->done(t->arg, err_set(&err, ERR_NET, "the answer was lost"), 0, SPAN(""), &err);
	else if (why)
		t->done(t->arg, OK, 503, span_cstr(why->msg), NULL);
	else
		t->done(t->arg, OK, status, body, NULL);
	free(t);
}

/* "a=b" of a query string; empty when it is not there. */
static struct span query(const char *target, const char *name)
{
	char key[32];
	snprintf(key, sizeof key, "&%s=", name);
	const char *p = strchr(target, '?');
	size_t n = strlen(name);
	if (p && strncmp(p + 1, name, n) == 0 && p[1 + n] == '=')
		p += n + 2;
	else if ((p = strstr(target, key)))
		p += strlen(key);
	return p ? span_of(p, strcspn(p, "&")) : SPAN("");
}

static errc town_ask(void *arg, const struct feed_ask *q, struct err *err)
{
	struct place *p = arg;
	struct town *town = p->town;
	struct trip *t = calloc(1, sizeof *t);
	(void)err;
	*t = (struct trip){.town = town, .from = p->self, .done = q->done, .arg = q->arg};
	for (uint32_t i = 0; i < LAB_NODES; i++)
		if (span_is(q->address, town->l->node[i].id))
			t->to = i;
	assert_true(t->to != t->from);
	if (atomic_load(&town->down[t->to]) || atomic_load(&town->down[t->from]) || lost(town)) {
		struct err why = {0};
		err_set(&why, ERR_NET, "no way");
		q->done(q->arg, ERR_NET, 0, SPAN(""), &why);
		free(t);
		return OK;
	}
	int64_t after = 0, limit = 0;
	struct feed_question ask = {.node = query(q->target, "node"), .by = query(q->target, "by"), .wait_ms = 300};
	assert_true(span_to_i64(query(q->target, "after"), &after) && span_to_i64(query(q->target, "limit"), &limit));
	assert_true(span_eq(query(q->target, "wait"), SPAN("300ms")));
	ask.from.seq = (uint64_t)after;
	ask.limit = (uint32_t)limit;
	if (query(q->target, "feed").n > 0)
		assert_true(ulid_parse(query(q->target, "feed"), &ask.from.feed));
	feed_question(town->feed[t->to], &ask, trip_back, t);
	return OK;
}

static struct town *town_open(struct lab *l, int64_t snapshot_ms)
{
	struct err err = {0};
	struct town *t = calloc(1, sizeof *t);
	t->l = l;
	/* A question may come to a node as soon as another one is there. */
	for (uint32_t i = 0; i < LAB_NODES; i++)
		t->down[i] = true;
	for (uint32_t i = 0; i < LAB_NODES; i++) {
		t->place[i] = (struct place){t, i};
		const struct feed_config cfg = {.catalog = l->node[i].c,
			.bucket = l->bucket,
			.snapshot_file = strdup(tmp_path("%s/snapshot-%u.tmp", l->dir, i)),
			.node = l->node[i].id,
			.stores = true,
			.peers = town_peers,
			.ask = town_ask,
			.arg = &t->place[i],
			.snapshot_interval_ms = snapshot_ms,
			.wait_ms = 300};
		if (feed_open(&cfg, &t->feed[i], &err) != OK)
			fail_msg("%s", err.msg);
	}
	for (uint32_t i = 0; i < LAB_NODES; i++)
		atomic_store(&t->down[i], false);
	return t;
}

static void town_close(struct town *t)
{
	for (uint32_t i = 0; i < LAB_NODES; i++)
		atomic_store(&t->down[i], true);
	/* All answer what they hold before any is gone. */
	for (uint32_t i = 0; i < LAB_NODES; i++)
		feed_release(t->feed[i]);
	for (int i = 0; i < 500; i++) {
		bool idle = true;
		for (uint32_t k = 0; k < LAB_NODES; k++) {
			pthread_mutex_lock(&t->feed[k]->mu);
			idle = idle && t->feed[k]->in_flight == 0;
			pthread_mutex_unlock(&t->feed[k]->mu);
		}
		if (idle)
			break;
		io_sleep_ms(10);
	}
	for (uint32_t i = 0; i < LAB_NODES; i++) {
		char *file = (char *)(uintptr_t)t->feed[i]->cfg.snapshot_file;
		feed_close(t->feed[i]);
		free(file);
	}
	free(t);
}

static bool agree(struct lab *l)
{
	for (uint32_t i = 1; i < LAB_NODES; i++)
		if (lab_digest(l, i) != lab_digest(l, 0))
			return false;
	return true;
}

/* Milliseconds until all agree; -1: never. */
static int64_t agree_within(struct lab *l, int64_t ms)
{
	int64_t begin = io_mono_ms();
	for (;;) {
		if (agree(l))
			return io_mono_ms() - begin;
		if (io_mono_ms() - begin > ms)
			return -1;
		io_sleep_ms(2);
	}
}

/* A sanitizer's or a busy machine's pace is not the promise's. */
static int64_t patience(int64_t ms)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return ms * 10;
#else
	return ms;
#endif
}

/* ---- tests ---- */

static void within_two_seconds(void **state)
{
	struct lab *l = *state;
	struct town *t = town_open(l, 0);
	int64_t worst = 0, sum = 0;
	enum { CHANGES = 60 };
	for (uint32_t i = 1; i <= CHANGES; i++) {
		/* the last third over a network that loses a fifth of everything: there it may take some tries */
		bool lossy = i >= 2 * CHANGES / 3;
		atomic_store(&t->lose, lossy ? 20 : 0);
		uint32_t who = i % LAB_NODES;
		if (i % 5 == 4)
			lab_change(l, who, i - 3, BLOCK_GONE, false);
		else
			lab_upload(l, who, i);
		int64_t ms = agree_within(l, patience(lossy ? 10000 : 2000));
		if (ms < 0)
			fail_msg("change %u is not known everywhere in time", i);
		worst = ms > worst ? ms : worst;
		sum += ms;
	}
	print_message("known everywhere after %lld ms, at most %lld\n", (long long)sum / CHANGES, (long long)worst);
	for (uint32_t i = 1; i < LAB_NODES; i++)
		assert_string_equal(lab_rows(l, 0), lab_rows(l, i));
	/* who leaves now has been heard by all */
	atomic_store(&t->lose, 0);
	bool heard = false;
	for (int i = 0; i < 200 && !heard; i++) {
		heard = feed_all_heard(t->feed[0], 5000);
		io_sleep_ms(20);
	}
	assert_true(heard);
	town_close(t);
}

static void away_and_back(void **state)
{
	struct lab *l = *state;
	struct town *t = town_open(l, 0);
	lab_upload(l, 0, 1);
	assert_true(agree_within(l, patience(2000)) >= 0);
	atomic_store(&t->down[1], true);
	for (uint32_t i = 2; i <= 30; i++)
		lab_upload(l, i % 2 ? 0 : 2, i);
	lab_upload(l, 1, 31); /* alone, it goes on */
	io_sleep_ms(700);
	assert_false(agree(l));
	assert_false(feed_all_heard(t->feed[0], 600000));
	atomic_store(&t->down[1], false);
	/* its breaks between questions have grown */
	assert_true(agree_within(l, patience(2000)) >= 0);
	for (uint32_t i = 0; i < LAB_NODES; i++)
		assert_false(catalog_owed(l->node[i].c));
	town_close(t);
}

static void wait_snapshot(struct lab *l, uint32_t i)
{
	struct feed_snapshot s = {0};
	uint64_t now = 1;
	for (int k = 0; k < 500; k++) {
		assert_int_equal(feed_snapshot_newest(l->bucket, &s, NULL), OK);
		assert_int_equal(feed_state(l->node[i].c, span_cstr(l->node[i].id), &now, NULL), OK);
		if (s.generation > 0 && s.state == now)
			return;
		io_sleep_ms(20);
	}
	fail_msg("no snapshot of what is known now");
}

/* What can't be read any more is in the snapshot, which the node with the least id wrote; without one an audit is owed. */
static void gaps(void **state)
{
	struct lab *l = *state;
	for (uint32_t i = 0; i < LAB_NODES; i++)
		lab_audit(l, i);
	struct town *t = town_open(l, 50);
	lab_upload(l, 0, 1);
	lab_upload(l, 2, 2);
	assert_true(agree_within(l, patience(2000)) >= 0);
	atomic_store(&t->down[1], true);
	for (uint32_t i = 3; i <= 12; i++)
		lab_upload(l, 0, i);
	lab_prune(l, 0, 1);
	wait_snapshot(l, 0);
	atomic_store(&t->down[1], false);
	assert_true(agree_within(l, patience(8000)) >= 0);
	assert_false(catalog_owed(l->node[1].c));
	struct feed_snapshot s;
	assert_int_equal(feed_snapshot_newest(l->bucket, &s, NULL), OK);
	assert_string_equal(s.node, "node-0");
	/* nothing changes: nothing is written */
	wait_snapshot(l, 0);
	assert_int_equal(feed_snapshot_newest(l->bucket, &s, NULL), OK);
	uint64_t generation = s.generation, puts = l->sh->puts;
	io_sleep_ms(400);
	assert_int_equal(feed_snapshot_newest(l->bucket, &s, NULL), OK);
	assert_true(s.generation == generation && l->sh->puts == puts);
	town_close(t);

	/* without snapshots */
	assert_int_equal(bucket_delete(l->bucket, "varve/catalog/snapshot-0", NULL), OK);
	assert_int_equal(bucket_delete(l->bucket, "varve/catalog/snapshot-1", NULL), OK);
	for (uint32_t i = 13; i <= 20; i++)
		lab_upload(l, 0, i);
	lab_prune(l, 0, 1);
	t = town_open(l, 0);
	for (int i = 0; i < 500 && !catalog_owed(l->node[1].c); i++)
		io_sleep_ms(20);
	assert_true(catalog_owed(l->node[1].c));
	lab_upload(l, 0, 21);
	struct feed_position at;
	for (int i = 0; i < 500; i++) {
		assert_int_equal(feed_where(l->node[1].c, SPAN("node-0"), &at, NULL), OK);
		if (at.seq == l->node[0].c->fed)
			break;
		io_sleep_ms(20);
	}
	assert_true(at.seq == l->node[0].c->fed);
	town_close(t);
}

/* ---- many peers ---- */

enum { CROWD = LIMIT_FEED_POLLS + 50 };

struct crowd {
	pthread_mutex_t mu;
	struct call {
		struct feed_ask q;
		int64_t until_ns;
		uint32_t peer;
		bool taken;
	} call[CROWD];
	uint32_t now, most;
	uint32_t asked[CROWD];
	int64_t last_ns[CROWD], longest_ns[CROWD];
	bool stop;
};

static errc crowd_peers(void *arg, struct arena *arena, struct feed_peer **out, size_t *n, struct err *err)
{
	(void)arg;
	(void)err;
	*out = arena_calloc(arena, CROWD, sizeof **out);
	*n = CROWD;
	for (uint32_t i = 0; i < CROWD; i++) {
		(*out)[i].address = span_cstr(arena_printf(arena, "%u", i));
		snprintf((*out)[i].node, FEED_NODE_BYTES, "peer-%u", i);
		(*out)[i].answers = (*out)[i].stores = true;
	}
	return OK;
}

static errc crowd_ask(void *arg, const struct feed_ask *q, struct err *err)
{
	struct crowd *c = arg;
	(void)err;
	int64_t peer = 0, wait = 0, now = io_mono_ns();
	struct span w = query(q->target, "wait");
	assert_true(span_to_i64(q->address, &peer) && span_to_i64(span_of(w.p, w.n - 2), &wait));
	pthread_mutex_lock(&c->mu);
	struct call *k = &c->call[peer];
	assert_false(k->taken);
	*k = (struct call){.q = *q, .until_ns = now + wait * MS, .peer = (uint32_t)peer, .taken = true};
	c->now++;
	c->most = c->now > c->most ? c->now : c->most;
	if (++c->asked[peer] > 2 && now - c->last_ns[peer] > c->longest_ns[peer])
		c->longest_ns[peer] = now - c->last_ns[peer];
	c->last_ns[peer] = now;
	pthread_mutex_unlock(&c->mu);
	return OK;
}

/* Holds each question for as long as it may be, and has nothing to tell. */
static void *crowd_main(void *arg)
{
	struct crowd *c = arg;
	for (bool stop = false; !stop;) {
		io_sleep_ms(2);
		for (uint32_t i = 0; i < CROWD; i++) {
			pthread_mutex_lock(&c->mu);
			stop = c->stop;
			struct call k = c->call[i];
			bool due = k.taken && (stop || io_mono_ns() >= k.until_ns);
			if (due) {
				c->call[i].taken = false;
				c->now--;
			}
			pthread_mutex_unlock(&c->mu);
			if (!due)
				continue;
			char node[FEED_NODE_BYTES];
			struct buf out;
			snprintf(node, sizeof node, "peer-%u", i);
			const struct feed_answer a = {.feed = lab_ulid(i + 1), .node = span_cstr(node)};
			buf_init(&out, MIB);
			feed_answer_begin(&a, &out);
			feed_answer_end(&out, 0, 0);
			k.q.done(k.q.arg, OK, 200, span_of(out.p, out.n), NULL);
			buf_free(&out);
		}
	}
	return NULL;
}

/* More peers than are asked at once: all are asked all the time, each within two seconds of the time before. */
static void many_peers(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct feed *f;
	pthread_t thread;
	struct crowd *c = calloc(1, sizeof *c);
	pthread_mutex_init(&c->mu, NULL);
	assert_int_equal(pthread_create(&thread, NULL, crowd_main, c), 0);
	const struct feed_config cfg = {.catalog = l->node[0].c, .node = "node-0", .peers = crowd_peers, .ask = crowd_ask, .arg = c};
	assert_int_equal(feed_open(&cfg, &f, &err), OK);
	for (int i = 0; i < 3000; i++) {
		uint32_t least = UINT32_MAX;
		pthread_mutex_lock(&c->mu);
		for (uint32_t k = 0; k < CROWD; k++)
			least = c->asked[k] < least ? c->asked[k] : least;
		pthread_mutex_unlock(&c->mu);
		if (least >= 4)
			break;
		io_sleep_ms(10);
	}
	feed_close(f); /* waits for what was asked, so the peers go last */
	pthread_mutex_lock(&c->mu);
	c->stop = true;
	pthread_mutex_unlock(&c->mu);
	pthread_join(thread, NULL);
	int64_t longest = 0;
	for (uint32_t k = 0; k < CROWD; k++) {
		assert_true(c->asked[k] >= 4);
		longest = c->longest_ns[k] > longest ? c->longest_ns[k] : longest;
	}
	print_message("%u peers, at most %u asked at once, each at least every %lld ms\n", (unsigned)CROWD, c->most, (long long)(longest / MS));
	assert_true(c->most <= LIMIT_FEED_POLLS);
	assert_true(longest < patience(2000) * MS);
	pthread_mutex_destroy(&c->mu);
	free(c);
}

/* ---- HTTP ---- */

static void handler(void *arg, struct http_request *r)
{
	feed_request(arg, r);
}

struct asking {
	struct http_client *client;
	char url[512];
	int status;
	char answer[512];
	size_t n;
	int64_t ms;
	struct feed_answer head;
	bool whole;
};

static void *get(void *arg)
{
	struct asking *a = arg;
	struct err err = {0};
	struct http_call call = {.method = "GET", .url = a->url, .max_answer_bytes = MIB};
	int64_t begin = io_mono_ms();
	if (http_call(a->client, &call, &err) != OK)
		fail_msg("%s", err.msg);
	a->ms = io_mono_ms() - begin;
	a->status = call.status;
	a->n = call.answer.n < sizeof a->answer ? call.answer.n : sizeof a->answer - 1;
	memcpy(a->answer, call.answer.p, a->n);
	a->answer[a->n] = 0;
	a->whole = feed_answer_decode(span_of(call.answer.p, call.answer.n), &a->head, NULL) == OK;
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	return NULL;
}

static errc nobody(void *arg, struct arena *arena, struct feed_peer **out, size_t *n, struct err *err)
{
	(void)arg;
	(void)arena;
	(void)err;
	*out = NULL;
	*n = 0;
	return OK;
}

static void over_http(void **state)
{
	struct lab *l = *state;
	struct err err = {0};
	struct feed *f;
	struct http_server *server;
	const struct feed_config cfg = {.catalog = l->node[0].c, .node = "node-0", .peers = nobody};
	assert_int_equal(feed_open(&cfg, &f, &err), OK);
	const struct http_route route = {HTTP_GET, FEED_PATH, HTTP_INLINE | HTTP_NO_AUTH, 0, handler, f};
	const struct http_server_config web = {.address = "127.0.0.1:0"};
	if (http_server_start(&web, &route, 1, &server, &err) != OK)
		fail_msg("%s", err.msg);
	const struct http_client_config client = {.total_timeout_ms = 20000};
	struct asking a = {0};
	assert_int_equal(http_client_open(&client, &a.client, &err), OK);
#define GET(...)                                                                                                                                     \
	do {                                                                                                                                         \
		int at = snprintf(a.url, sizeof a.url, "http://127.0.0.1:%u" FEED_PATH "?", http_server_port(server));                               \
		snprintf(a.url + at, sizeof a.url - (size_t)at, __VA_ARGS__);                                                                        \
		get(&a);                                                                                                                             \
	} while (0)
	/* who does not know the feed's name is told it at once */
	GET("node=node-0&after=0&wait=10s");
	assert_true(a.status == 200 && a.whole && a.head.n == 0 && a.ms < patience(5000));
	char name[ULID_TEXT_BYTES + 1];
	snprintf(name, sizeof name, "%s", ulid_text(a.head.feed).s);
	GET("node=node-0&feed=%s&after=0&wait=300ms", name);
	assert_true(a.status == 200 && a.head.n == 0 && a.ms >= 290);
	/* held until there is a change */
	pthread_t thread;
	struct asking b = a;
	snprintf(b.url, sizeof b.url, "http://127.0.0.1:%u" FEED_PATH "?feed=%s&after=0&wait=20s", http_server_port(server), name);
	assert_int_equal(pthread_create(&thread, NULL, get, &b), 0);
	io_sleep_ms(200);
	lab_upload(l, 0, 1);
	pthread_join(thread, NULL);
	assert_true(b.status == 200 && b.whole && b.head.n == 1 && b.head.last == 1 && b.ms >= 190 && b.ms < patience(5000));
	/* what can't be told */
	GET("node=node-0&feed=%s&after=2&wait=20s", name);
	assert_true(a.status == 410 && a.whole && a.head.gap && a.head.oldest == 1 && a.head.last == 1);
	GET("node=node-0&feed=%s&after=1&wait=20s", ulid_text(lab_ulid(7)).s);
	assert_int_equal(a.status, 410);
	GET("node=node-1&feed=%s&after=0&wait=20s", name);
	assert_true(a.status == 410 && a.whole);
	/* what is no question */
	static const char *const bad[] = {"after=-1", "after=x", "limit=1000000", "wait=soon", "feed=abc", "after=99999999999999999999",
		"node=0123456789012345678901234567890123456789"};
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		GET("%s", bad[i]);
		assert_int_equal(a.status, 400);
		assert_non_null(strstr(a.answer, "bad-parameter"));
	}
	/* stopping waits for nobody who waits */
	snprintf(b.url, sizeof b.url, "http://127.0.0.1:%u" FEED_PATH "?feed=%s&after=1&wait=20s", http_server_port(server), name);
	assert_int_equal(pthread_create(&thread, NULL, get, &b), 0);
	io_sleep_ms(200);
	feed_release(f);
	pthread_join(thread, NULL);
	assert_true(b.status == 200 && b.head.n == 0 && b.ms < patience(5000));
	http_client_close(a.client);
	http_server_stop(server, 1000);
	feed_close(f);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, lab_setup, lab_teardown)
	log_setup((enum log_level)(LOG_ERROR + 1), LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		TEST(within_two_seconds),
		TEST(away_and_back),
		TEST(gaps),
		TEST(many_peers),
		TEST(over_http),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
