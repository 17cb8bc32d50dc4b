/* Hints on real threads: writes end on many, calls are answered on others, somebody asks what is owed all the while, the thread writes and delivers, and it is closed in the middle of all that and
 * opened again. In the end all that was told is delivered, or counted. For TSan.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"
#include "tests/support/tmp.h"

enum { WRITERS = 4, SENDERS = 3, NODES = 5, WRITES = 1500, QUEUE = 256 };

static struct {
	pthread_mutex_t mu;
	pthread_cond_t some;
	struct link_call v[QUEUE]; /* of a hint's target only "hint" is kept */
	size_t n;
	bool stop;
} queue = {.mu = PTHREAD_MUTEX_INITIALIZER, .some = PTHREAD_COND_INITIALIZER};

static struct hints *hints;
static _Atomic bool away, over;
static _Atomic uint8_t has[WRITERS * WRITES];
static _Atomic uint64_t turns, overflows;
static const char *const names[NODES] = {"n0:1", "n1:1", "n2:1", "n3:1", "n4:1"};

static errc nodes_of(void *roster, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	(void)roster, (void)err;
	*out = arena_calloc(arena, NODES, sizeof **out);
	*n = NODES;
	for (size_t i = 0; i < NODES; i++)
		(*out)[i] = (struct roster_node){.address = span_cstr(names[i]),
			.in_ring = true,
			.self = i == 0,
			.state = NODE_ACTIVE,
			.answers = !atomic_load(&away),
			.stores = true,
			.heard_ms = io_now_ms()};
	return OK;
}

static errc give(void *link, const struct link_call *c, struct err *err)
{
	(void)link;
	errc rc = OK;
	pthread_mutex_lock(&queue.mu);
	if (queue.n < QUEUE) {
		struct link_call *x = &queue.v[queue.n++];
		*x = *c;
		x->target = strncmp(c->target, HINTS_PATH, sizeof HINTS_PATH - 1) == 0 ? "hint" : "write";
	} else
		rc = err_set(err, ERR_NOMEM, "too many");
	pthread_cond_signal(&queue.some);
	pthread_mutex_unlock(&queue.mu);
	return rc;
}

static void stored(struct span frame, struct peer_answer *a)
{
	struct arena arena;
	struct peer_request r;
	arena_init(&arena, 16 * MIB);
	assert_int_equal(peer_request_decode(frame, &arena, &r, NULL), OK);
	for (uint32_t i = 0; i < r.n_sections; i++) {
		uint32_t id = get_le32(r.sections[i].body.p + 6);
		assert_true(id < WRITERS * WRITES);
		atomic_store(&has[id], 1);
	}
	a->samples = r.n_sections;
	memcpy(a->id, r.id, sizeof a->id);
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
		struct link_call c = queue.v[--queue.n];
		pthread_mutex_unlock(&queue.mu);
		uint64_t turn = atomic_fetch_add(&turns, 1);
		struct peer_answer a = {.epoch = 1};
		struct buf out;
		buf_init(&out, MIB);
		if (turn % 7 == 0)
			c.done(c.arg, ERR_NET, 0, span_of("", 0), NULL);
		else if (strcmp(c.target, "hint") == 0) {
			if (turn % 3)
				stored(c.body, &a);
			c.done(c.arg, OK, turn % 3 ? 204 : 503, span_of("", 0), NULL);
		} else {
			stored(c.body, &a);
			assert_int_equal(peer_answer_encode(&a, &out, NULL), OK);
			c.done(c.arg, turn % 11 ? OK : ERR_TIMEOUT, 200, span_of(out.p, out.n), NULL);
		}
		buf_free(&out);
	}
}

/* One series whose label is a number, with one sample. */
static void *writer(void *arg)
{
	uint32_t no = (uint32_t)(uintptr_t)arg;
	for (uint32_t i = 0; i < WRITES; i++) {
		uint8_t body[12] = {0x0a, 10, 0x0a, 6};
		struct peer_section s = {.tenant = SPAN("t"), .version = RW_1, .n_series = 1, .body = span_of(body, sizeof body)};
		struct peer_request r = {.hint = true, .sections = &s, .n_sections = 1};
		struct buf frame;
		struct span holders[2] = {span_of("", 0), span_cstr(names[1 + (i + 1) % (NODES - 1)])};
		put_le32(body + 6, no * WRITES + i);
		body[10] = 0x12;
		io_random(r.id, sizeof r.id);
		buf_init(&frame, MIB);
		assert_int_equal(peer_request_encode(&r, true, &frame, NULL), OK);
		bool own = i % 4 > 0;
		hints_missed(hints, &(struct cluster_missed){.address = span_cstr(names[1 + i % (NODES - 1)]),
					    .holders = own ? holders : holders + 1,
					    .n_holders = own ? 2 : 1,
					    .n_items = 1,
					    .frame = span_of(frame.p, frame.n)});
		buf_free(&frame);
		if (i % 50 == 0)
			io_sleep_ms(1);
	}
	return NULL;
}

static void look(void *arg, const struct hints_status *s)
{
	*(uint64_t *)arg += s->pending_bytes;
}

static uint64_t pending(void)
{
	uint64_t n = 0;
	hints_each(hints, look, &n);
	return n;
}

static void *asker(void *arg)
{
	(void)arg;
	while (!atomic_load(&over)) {
		struct hints_owed owed;
		(void)pending();
		if (hints_owed(hints, SPAN("n1:1"), &owed))
			hints_repaired(hints, SPAN("n1:1"), owed.from_ms);
		atomic_store(&away, atomic_fetch_add(&turns, 1) % 5 < 2);
		io_sleep_ms(2);
	}
	atomic_store(&away, false);
	return NULL;
}

static void on_overflow(void *arg, struct span address, int64_t from_ms, int64_t to_ms)
{
	(void)arg;
	assert_true(address.n > 0 && from_ms <= to_ms);
	atomic_fetch_add(&overflows, 1);
}

static void hints_of_many_threads(void **st)
{
	(void)st;
	pthread_t writers[WRITERS], senders[SENDERS], third;
	struct hints_config cfg = {.dir = tmp_path("%s/hints", tmp_dir()),
		.self = SPAN("n0:1"),
		.max_age_ms = 3600000,
		.remember_ms = 3600000,
		.send = give,
		.nodes = nodes_of,
		.on_overflow = on_overflow,
		.lz4 = true};
	char *dir = strdup(cfg.dir);
	cfg.dir = dir;
	for (int i = 0; i < SENDERS; i++)
		assert_int_equal(pthread_create(&senders[i], NULL, sender, NULL), 0);
	for (uint32_t round = 0; round < 2; round++) {
		assert_int_equal(hints_open(&cfg, &hints, NULL), OK);
		atomic_store(&over, false);
		assert_int_equal(pthread_create(&third, NULL, asker, NULL), 0);
		for (uintptr_t i = 0; i < WRITERS / 2; i++)
			assert_int_equal(pthread_create(&writers[i], NULL, writer, (void *)(i + round * WRITERS / 2)), 0);
		for (int i = 0; i < WRITERS / 2; i++)
			pthread_join(writers[i], NULL);
		atomic_store(&over, true);
		pthread_join(third, NULL);
		hints_close(hints);
	}
	assert_int_equal(hints_open(&cfg, &hints, NULL), OK);
	for (int i = 0; i < 600 && (i < 15 || pending() > 0); i++)
		io_sleep_ms(100);
	assert_int_equal(pending(), 0);
	hints_close(hints);
	pthread_mutex_lock(&queue.mu);
	queue.stop = true;
	pthread_cond_broadcast(&queue.some);
	pthread_mutex_unlock(&queue.mu);
	for (int i = 0; i < SENDERS; i++)
		pthread_join(senders[i], NULL);
	uint64_t n = 0, dropped = 0;
	static const char *const reasons[] = {"size", "queue", "disk", "damaged", "memory", "holder", "large", "age", "gone", "refused"};
	for (size_t i = 0; i < WRITERS * WRITES; i++)
		n += atomic_load(&has[i]);
	for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++)
		dropped += (uint64_t)metric_value(metric_counter_with("varve_hints_dropped_total", "", "reason", reasons[i]));
	printf("%" PRIu64 " hints came, %" PRIu64 " were dropped; owed was told %" PRIu64 " times\n", n, dropped, overflows);
	assert_true(n + dropped >= WRITERS * WRITES);
	assert_true(n > WRITERS * WRITES / 2);
	free(dir);
}

int main(void)
{
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hints_of_many_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
