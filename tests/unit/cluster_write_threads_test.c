/* Spread writes on real threads: clients begin them, senders answer them late, never or at once, the log's thread answers for this node, rings change, the timer ends what lasts too long. Every
 * write is done once and not long after its deadline, and the cluster closes with nothing left. For TSan.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "cluster/cluster_write_int.h"

enum { CLIENTS = 4, SENDERS = 3, WRITES = 400, ITEMS = 40, QUEUE = 8192, MS = 1000000 };

/* What a sender's thread, or the log's, will answer. */
struct job {
	struct cluster_send send; /* of a peer */
	struct cluster_op *op;	  /* or of this node */
	uint32_t turn;
};

static struct {
	pthread_mutex_t mu;
	pthread_cond_t some;
	struct job v[QUEUE];
	size_t n;
	bool stop;
} queue = {.mu = PTHREAD_MUTEX_INITIALIZER, .some = PTHREAD_COND_INITIALIZER};

static struct cluster *cluster;
static struct ring_set *sets[2];
static _Atomic uint32_t turns;
static _Atomic uint64_t begun, done, stored, again, missed, sends, late_ns;

static void give(struct job j)
{
	pthread_mutex_lock(&queue.mu);
	assert_true(queue.n < QUEUE);
	/* not in order */
	size_t at = queue.n ? atomic_load(&turns) % queue.n : 0;
	queue.v[queue.n++] = queue.v[at];
	queue.v[at] = j;
	pthread_cond_signal(&queue.some);
	pthread_mutex_unlock(&queue.mu);
}

static void answer(const struct job *j)
{
	if (j->op) {
		struct peer_verdict v = {.item = 0, .kind = PEER_REFUSED, .id = ERRID_TOO_OLD};
		cluster_write_mine_done(j->op, j->turn % 5 == 0 ? ERRID_DISK_FULL : ERRID_NONE, &v, j->turn % 5 == 1);
		return;
	}
	struct arena arena;
	struct peer_request r;
	struct buf out;
	buf_init(&out, MIB);
	arena_init(&arena, 4 * MIB);
	assert_int_equal(peer_request_decode(j->send.body, &arena, &r, NULL), OK);
	struct peer_verdict v = {.item = 0, .kind = j->turn % 2 ? PEER_REFUSED : PEER_AGAIN, .id = ERRID_HEAD_MEMORY};
	struct peer_answer a = {.verdicts = &v, .n_verdicts = j->turn % 5 == 0, .epoch = j->turn};
	memcpy(a.id, r.id, sizeof a.id);
	assert_int_equal(peer_answer_encode(&a, &out, NULL), OK);
	if (j->turn % 13 == 0)
		j->send.done(j->send.arg, ERR_NET, 0, (struct span){"", 0}, NULL);
	else
		j->send.done(j->send.arg, OK, 200, span_of(out.p, out.n), NULL);
	buf_free(&out);
	arena_free(&arena);
}

static void *sender(void *arg)
{
	(void)arg;
	for (;;) {
		pthread_mutex_lock(&queue.mu);
		while (queue.n == 0 && !queue.stop)
			pthread_cond_wait(&queue.some, &queue.mu);
		if (queue.n == 0) {
			pthread_mutex_unlock(&queue.mu);
			return NULL;
		}
		struct job j = queue.v[--queue.n];
		pthread_mutex_unlock(&queue.mu);
		if (j.turn % 101 == 0)
			io_sleep_ms(3);
		answer(&j);
	}
}

static void send_one(void *arg, const struct cluster_send *s)
{
	(void)arg;
	atomic_fetch_add(&sends, 1);
	struct job j = {.send = *s, .turn = atomic_fetch_add(&turns, 1)};
	if (j.turn % 17 == 0)
		s->done(s->arg, ERR_NET, 0, (struct span){"", 0}, NULL);
	else if (j.turn % 11 == 0)
		answer(&j);
	else
		give(j);
}

static void on_missed(void *arg, const struct cluster_missed *m)
{
	(void)arg;
	assert_true(m->n_items > 0 && (m->address.n > 0) == (m->frame.n > PEER_HEADER_BYTES) && (m->n_holders > 0) == (m->frame.n > 0));
	atomic_fetch_add(&missed, 1);
}

struct waits {
	int64_t deadline;
	_Atomic uint32_t times;
};

static void on_done(void *arg, const struct cluster_outcome *o)
{
	struct waits *w = arg;
	assert_int_equal(atomic_fetch_add(&w->times, 1), 0);
	assert_int_equal(o->stored + o->refused + o->again, ITEMS);
	atomic_fetch_add(&stored, o->stored);
	atomic_fetch_add(&again, o->again);
	int64_t late = io_mono_ns() - w->deadline;
	uint64_t most = atomic_load(&late_ns);
	while (late > 0 && (uint64_t)late > most && !atomic_compare_exchange_weak(&late_ns, &most, (uint64_t)late))
		;
	atomic_fetch_add(&done, 1);
}

static void *client(void *arg)
{
	uint32_t no = (uint32_t)(uintptr_t)arg;
	struct waits *waits = calloc(WRITES, sizeof *waits);
	for (uint32_t k = 0; k < WRITES; k++) {
		char text[ITEMS][8];
		uint64_t hashes[ITEMS];
		struct span slices[ITEMS];
		struct ring *ring;
		struct ring_set *set = sets[(k / 20 + no) % 2];
		struct cluster_op *op;
		const uint32_t *items;
		uint32_t n, self;
		for (uint32_t i = 0; i < ITEMS; i++) {
			memcpy(text[i], "\x0a\x06", 2);
			memset(text[i] + 2, 'a' + (int)(i % 26), 6);
			slices[i] = span_of(text[i], 8);
			hashes[i] = io_random_u64();
		}
		assert_int_equal(ring_for_tenant(set, SPAN("t"), &ring, NULL), OK);
		struct cluster_part part = {
			.tenant = SPAN("t"), .version = RW_1, .ring = ring, .n_series = ITEMS, .hashes = hashes, .slices = slices};
		if (!ring_set_find(set, SPAN("n0:1"), &self))
			self = CLUSTER_NO_NODE;
		waits[k].deadline = io_mono_ns() + (int64_t)(k % 10 == 0 ? 1 : 2000) * MS;
		struct cluster_write w = {
			.parts = &part, .n_parts = 1, .self = self, .deadline_mono_ns = waits[k].deadline, .done = on_done, .arg = &waits[k]};
		io_random(w.id, sizeof w.id);
		assert_int_equal(cluster_write_begin(cluster, &w, &op, NULL), OK);
		atomic_fetch_add(&begun, 1);
		ring_unref(ring);
		cluster_write_mine(op, &items, &n);
		struct job j = {.op = op, .turn = atomic_fetch_add(&turns, 1)};
		if (n > 0 && k % 3 == 0) {
			give(j);
			n = 0;
		}
		if (n > 0 && k % 3 == 1) {
			answer(&j);
			n = 0;
		}
		cluster_write_go(op);
		if (n > 0)
			answer(&j);
	}
	return waits;
}

static struct ring_set *rings(uint32_t n)
{
	char json[1000] = "[{\"endpoints\":[";
	struct ring_set *s;
	struct ring_options opt = {RING_KETAMA, 3};
	for (uint32_t i = 0; i < n; i++)
		snprintf(json + strlen(json), sizeof json - strlen(json), "%s\"n%u:1\"", i ? "," : "", i);
	strcat(json, "]}]");
	assert_int_equal(ring_set_parse("threads", span_cstr(json), &opt, &s, NULL), OK);
	return s;
}

static void writes_of_many_threads(void **st)
{
	(void)st;
	pthread_t clients[CLIENTS], senders[SENDERS];
	struct waits *waits[CLIENTS];
	struct cluster_config cfg = {.send = send_one, .lz4 = true, .on_missed = on_missed};
	assert_int_equal(cluster_open(&cfg, &cluster, NULL), OK);
	sets[0] = rings(3); /* everybody has everything: one frame for all */
	sets[1] = rings(7);
	for (int i = 0; i < SENDERS; i++)
		assert_int_equal(pthread_create(&senders[i], NULL, sender, NULL), 0);
	for (int i = 0; i < CLIENTS; i++)
		assert_int_equal(pthread_create(&clients[i], NULL, client, (void *)(uintptr_t)i), 0);
	for (int i = 0; i < CLIENTS; i++)
		pthread_join(clients[i], (void **)&waits[i]);
	pthread_mutex_lock(&queue.mu);
	queue.stop = true;
	pthread_cond_broadcast(&queue.some);
	pthread_mutex_unlock(&queue.mu);
	for (int i = 0; i < SENDERS; i++)
		pthread_join(senders[i], NULL);
	cluster_close(cluster);
	for (int i = 0; i < CLIENTS; i++) {
		for (int k = 0; k < WRITES; k++)
			assert_int_equal(atomic_load(&waits[i][k].times), 1);
		free(waits[i]);
	}
	for (int k = 0; k < 2; k++)
		ring_set_unref(sets[k]);
	printf("%" PRIu64 " writes, %" PRIu64 " sends, %" PRIu64 " series stored, %" PRIu64 " to be tried again, %" PRIu64
	       " hints, at most %.3f s late\n",
		begun, sends, stored, again, missed, (double)late_ns / 1e9);
	assert_int_equal(done, (uint64_t)CLIENTS * WRITES);
	assert_true(stored > 1000 && again > 100 && missed > 100);
	assert_true(late_ns < INT64_C(2000000000));
}

/* Nobody answers, but the timer is there. */
static void never(void *arg, const struct cluster_send *s)
{
	*(struct cluster_send *)arg = *s;
}

static void the_timer_ends_it(void **st)
{
	(void)st;
	struct cluster_send kept = {0};
	struct cluster_config cfg = {.send = never, .sender = &kept};
	struct ring_options opt = {RING_KETAMA, 1};
	struct ring_set *set;
	struct ring *ring;
	struct cluster_op *op;
	struct waits w = {0};
	uint64_t hashes[ITEMS] = {0};
	struct span slices[ITEMS];
	assert_int_equal(cluster_open(&cfg, &cluster, NULL), OK);
	assert_int_equal(ring_set_parse("one", SPAN("[{\"endpoints\":[\"n0:1\"]}]"), &opt, &set, NULL), OK);
	assert_int_equal(ring_for_tenant(set, SPAN("t"), &ring, NULL), OK);
	for (int i = 0; i < ITEMS; i++)
		slices[i] = SPAN("\x0a\x01x");
	struct cluster_part part = {.tenant = SPAN("t"), .version = RW_1, .ring = ring, .n_series = ITEMS, .hashes = hashes, .slices = slices};
	for (int late = 0; late < 3; late++) { /* a later deadline, an earlier one, one that is over */
		atomic_store(&w.times, 0);
		w.deadline = io_mono_ns() + (int64_t)(100 - 50 * late) * MS;
		struct cluster_write cw = {
			.parts = &part, .n_parts = 1, .self = CLUSTER_NO_NODE, .deadline_mono_ns = w.deadline, .done = on_done, .arg = &w};
		assert_int_equal(cluster_write_begin(cluster, &cw, &op, NULL), OK);
		cluster_write_go(op);
		for (int i = 0; atomic_load(&w.times) == 0 && i < 5000; i++)
			io_sleep_ms(1);
		assert_int_equal(atomic_load(&w.times), 1);
		assert_true(io_mono_ns() >= w.deadline);
		kept.done(kept.arg, ERR_TIMEOUT, 0, (struct span){"", 0}, NULL);
		assert_int_equal(atomic_load(&w.times), 1);
	}
	cluster_close(cluster);
	ring_unref(ring);
	ring_set_unref(set);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(writes_of_many_threads),
		cmocka_unit_test(the_timer_ends_it),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
