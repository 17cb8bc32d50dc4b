/* Reads over a fleet: random samples on random replicas, of nodes that are well, down, silent, slow, that die in mid-answer or answer nonsense; held against a model of who has what.
 *
 * The peers are one HTTP server on loopback: 127.0.0.<k + 1> is node k, and its answers are put together from the model. The asking node stores nothing.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_fleet_int.h"
#include "tests/support/block_model.h"
#include "tests/support/tmp.h"

enum { NODES = 9, MANY = 200, SERIES = 24, TIMES = 40, STEP = 1000 };

static uint64_t seed_of_run(void)
{
	const char *s = getenv("SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : io_random_u64() | 1;
	print_message("SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

enum how {
	WELL,
	WARNS,	    /* well, with a warning of its own */
	KNOWN_DOWN, /* the roster knows */
	DRAINED,    /* the roster knows: has nothing that the bucket has not */
	REFUSES,    /* 503 */
	MUTE,	    /* takes the question and says nothing */
	DIES,	    /* in mid-answer */
	STOPS,	    /* in mid-answer, and keeps the connection */
	BAD_CRC,
	NO_END,
	UNSORTED,
	ENDLESS, /* a frame that says that it is larger than any */
	HOWS
};

/* One node's value of a sample; 0: it has none (values are made not 0). */
struct node {
	uint64_t v[SERIES][TIMES];
	enum how how;
};

struct lab {
	const char *dir;
	struct bucket *bucket;
	struct catalog *catalog;
	struct query *q;
	struct http_server *server;
	struct node *nodes;
	size_t n;
	char addresses[MANY][24];
	struct labels labels[SERIES];
	bool acked[SERIES][TIMES];
	struct arena arena;
	struct ring_set *rings;
	atomic_bool go_on; /* those that wait end */
	atomic_int active; /* answers under way */
	atomic_size_t written;
	uint32_t factor;
	size_t big, big_bytes; /* so many series with a chunk of so many bytes, which is none */
};

/* ---- the peers ---- */

static struct lab *lab_of_server;

static errc nodes_of(struct roster *r, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	struct lab *l = (struct lab *)r;
	struct roster_node *v = arena_calloc(arena, l->n + 1, sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for nodes");
	for (size_t i = 0; i < l->n; i++)
		v[i] = (struct roster_node){.address = span_cstr(l->addresses[i]),
			.in_ring = true,
			.state = l->nodes[i].how == DRAINED ? NODE_DRAINED : NODE_ACTIVE,
			.answers = l->nodes[i].how != KNOWN_DOWN,
			.stores = true,
			.heard_ms = 1};
	*out = v;
	*n = l->n;
	return OK;
}

static char *url_of(const struct link *link, struct span address)
{
	const struct lab *l = (const struct lab *)link;
	int k = atoi(address.p + 1);
	char *url = malloc(64);
	if (url)
		snprintf(url, 64, "http://127.0.0.%d:%u", k + 1, http_server_port(l->server));
	return url;
}

static errc check_of(struct trust *t, const struct http_request *r, struct err *err)
{
	(void)t, (void)r, (void)err;
	return OK;
}

static errc frame_out(struct http_request *r, struct lab *l, struct buf *b, bool spoil, struct err *err)
{
	uint8_t head[FLEET_FRAME_HEAD];
	size_t n = fleet_frame_head(span_of(b->p, b->n), head);
	if (spoil)
		head[n - 1] ^= 1;
	errc rc = http_stream_write(r, span_of(head, n), err);
	if (rc == OK)
		rc = http_stream_write(r, span_of(b->p, b->n), err);
	l->written += n + b->n;
	buf_clear(b);
	http_stream_flush(r);
	return rc;
}

static void put_series(struct lab *l, const struct node *n, size_t s, struct fleet_question *fq, struct arena *a, struct buf *out)
{
	struct chunk_sample v[TIMES];
	size_t k = 0, n_chunks = 0;
	struct chunk *c = NULL;
	for (size_t t = 0; t < TIMES; t++)
		if (n->v[s][t] && (int64_t)t * STEP >= fq->mint && (int64_t)t * STEP <= fq->maxt)
			v[k++] = (struct chunk_sample){(int64_t)t * STEP, n->v[s][t]};
	if (k == 0)
		return;
	if (fq->what == FLEET_SAMPLES)
		c = model_encode(a, v, k, 7200000, &n_chunks);
	fleet_series_encode(l->labels[s], c, n_chunks, out);
}

static void serve_node(void *arg, struct http_request *r)
{
	(void)arg;
	struct lab *l = lab_of_server;
	struct err err = {0};
	struct fleet_question fq;
	struct buf out;
	struct arena a, one;
	errc rc = OK;
	uint64_t frames = 0;
	struct span host = http_header(r, "Host");
	int k = atoi(host.p + strlen("127.0.0.")) - 1;
	struct node *n = &l->nodes[k];
	l->active++;
	buf_init(&out, 256 * MIB);
	arena_init(&a, GIB);
	arena_init(&one, GIB);
	if (fleet_question_decode(http_body(r), &a, &fq, &err) != OK)
		abort();
	while (n->how == MUTE && !l->go_on)
		usleep(2000);
	if (n->how == REFUSES || n->how == MUTE) {
		http_error(r, ERRID_NOT_READY, "not yet");
		goto out;
	}
	if (http_stream_begin(r, 200, FLEET_ANSWER_TYPE, &err) != OK)
		abort();
	fleet_begin_encode(n->how == WARNS ? "a block is\nleft out" : NULL, &out);
	rc = frame_out(r, l, &out, false, &err);
	frames++;
	for (size_t i = 0; rc == OK && i < l->big; i++) {
		struct label v = {SPAN("i"), span_cstr(arena_printf(&one, "%06zu", i))};
		uint8_t *bytes = arena_alloc(&one, l->big_bytes);
		memset(bytes, (int)(i & 0xff), l->big_bytes);
		const struct chunk c = {0, 1, CHUNK_XOR, span_of(bytes, l->big_bytes)};
		fleet_series_encode((struct labels){&v, 1}, &c, 1, &out);
		rc = frame_out(r, l, &out, false, &err);
		arena_reset(&one);
		frames++;
	}
	for (size_t i = 0; rc == OK && !l->big && i < SERIES; i++) {
		size_t s = n->how == UNSORTED ? SERIES - 1 - i : i;
		put_series(l, n, s, &fq, &a, &out);
		if (out.n == 0)
			continue;
		bool middle = i >= SERIES / 2;
		if (middle && n->how == ENDLESS) {
			uint8_t head[UVARINT_MAX_BYTES];
			(void)!http_stream_write(r, span_of(head, (size_t)(put_uvarint(head, UINT64_MAX / 2) - head)), &err);
		}
		rc = frame_out(r, l, &out, middle && n->how == BAD_CRC, &err);
		frames++;
		while (middle && n->how == STOPS && !l->go_on)
			usleep(2000);
		if (middle && n->how == DIES)
			rc = ERR_NET;
	}
	if (rc == OK && n->how != NO_END) {
		buf_u8(&out, FLEET_END);
		buf_uvarint(&out, frames);
		rc = frame_out(r, l, &out, false, &err);
	}
	http_stream_end(r, rc == OK);
out:
	matcher_sets_free((struct matcher_set *)(uintptr_t)fq.sets, fq.n_sets);
	buf_free(&out);
	arena_free(&one);
	arena_free(&a);
	l->active--;
}

/* ---- the asker ---- */

static void rings_make(struct lab *l)
{
	struct err err = {0};
	struct buf json;
	buf_init(&json, MIB);
	buf_printf(&json, "[{\"endpoints\":[");
	for (size_t i = 0; i < l->n; i++)
		buf_printf(&json, "%s\"%s\"", i ? "," : "", l->addresses[i]);
	buf_printf(&json, "]}]");
	const struct ring_options opt = {.algorithm = RING_KETAMA, .replication_factor = l->factor};
	if (ring_set_parse("test", span_of(json.p, json.n), &opt, &l->rings, &err) != OK)
		fail_msg("%s", err.msg);
	buf_free(&json);
}

static void lab_open(struct lab *l, size_t n, uint32_t factor, int64_t timeout_ms, uint64_t max_memory)
{
	static const struct http_route routes[] = {{HTTP_POST, "/-/peer/read", HTTP_WORKER, MIB, serve_node, NULL}};
	const struct http_server_config sc = {.address = "0.0.0.0:0", .threads = 2, .workers = 32, .worker_queue = 400, .max_connections = 4000};
	struct err err = {0};
	struct catalog_audit_stats st;
	bool rebuilt;
	*l = (struct lab){.n = n, .factor = factor};
	arena_init(&l->arena, GIB);
	l->nodes = calloc(n, sizeof *l->nodes);
	for (size_t i = 0; i < n; i++)
		snprintf(l->addresses[i], sizeof l->addresses[i], "n%zu:19291", i);
	for (size_t s = 0; s < SERIES; s++) {
		struct label *v = arena_calloc(&l->arena, 3, sizeof *v);
		v[0] = (struct label){SPAN("__name__"), span_cstr(arena_printf(&l->arena, "m%zu", s / 5))};
		v[1] = (struct label){SPAN("i"), span_cstr(arena_printf(&l->arena, "%02zu", s))};
		v[2] = (struct label){SPAN("tenant_id"), SPAN("t")};
		l->labels[s] = (struct labels){v, 3};
	}
	lab_of_server = l;
	if (http_server_start(&sc, routes, 1, &l->server, &err) != OK)
		fail_msg("%s", err.msg);
	l->dir = tmp_dir();
	assert_int_equal(bucket_open("default", SPAN(""), tmp_path("%s/bucket", l->dir), &l->bucket, &err), OK);
	assert_int_equal(
		catalog_open(&(struct catalog_config){.path = tmp_path("%s/catalog.sqlite", l->dir), .node = "n"}, &l->catalog, &rebuilt, &err), OK);
	assert_int_equal(catalog_audit(l->catalog, l->bucket, NULL, &st, &err), OK);
	rings_make(l);
	static const char *const replica[] = {"varve_node"};
	const struct query_fleet fleet = {.roster = (struct roster *)l,
		.nodes = nodes_of,
		.link = (struct link *)l,
		.url = url_of,
		.check = check_of,
		.client = {.connect_timeout_ms = 2000},
		.peer_timeout_ms = timeout_ms};
	const struct query_config qc = {.catalog = l->catalog,
		.bucket = l->bucket,
		.block_dir = l->dir,
		.cache_dir = tmp_path("%s/cache", l->dir),
		.cache_bytes = GIB,
		.max_samples = 50000000,
		.max_memory_bytes = max_memory,
		.timeout_ms = 30000,
		.replica_labels = replica,
		.n_replica_labels = 1,
		.fleet = &fleet};
	assert_int_equal(query_open(&qc, &l->q, &err), OK);
	query_rings(l->q, l->rings);
}

/* Nobody answers any more: what they answer from may change. */
static void lab_settle(struct lab *l)
{
	l->go_on = true;
	do
		usleep(2000);
	while (l->active > 0);
	l->go_on = false;
}

static void lab_close(struct lab *l)
{
	l->go_on = true;
	query_cancel(l->q);
	query_close(l->q);
	http_server_stop(l->server, 5000);
	catalog_close(l->catalog);
	bucket_close(l->bucket);
	ring_set_unref(l->rings);
	arena_free(&l->arena);
	free(l->nodes);
}

/* Every sample goes to some of its nodes; those that a quorum has are acknowledged. Now and then another value was acknowledged nowhere and is still there. */
static void samples_make(struct lab *l, uint64_t *r)
{
	uint32_t owners[16], q = l->factor / 2 + 1;
	struct ring *ring;
	struct err err = {0};
	assert_int_equal(ring_for_tenant(l->rings, SPAN("t"), &ring, &err), OK);
	for (size_t i = 0; i < l->n; i++)
		l->nodes[i] = (struct node){.how = WELL};
	for (size_t s = 0; s < SERIES; s++) {
		struct ring_hash h;
		ring_hash_begin(&h, SPAN("t"));
		for (uint32_t k = 0; k < 2; k++)
			ring_hash_add(&h, l->labels[s].v[k].name, l->labels[s].v[k].value);
		ring_owners(ring, ring_hash_end(&h), owners);
		for (size_t t = 0; t < TIMES; t++) {
			uint64_t v = f64_bits((double)(model_random(r) % 1000 + 1));
			uint32_t have = 0;
			for (uint32_t k = 0; k < l->factor; k++)
				if (model_random(r) % 4 > 0) {
					l->nodes[owners[k]].v[s][t] = model_random(r) % 10 > 0 ? v : f64_bits((double)(model_random(r) % 1000 + 1));
					have++;
				}
			l->acked[s][t] = have >= q;
		}
	}
	ring_unref(ring);
}

struct got {
	uint64_t v[SERIES][TIMES];
	char warnings[2 * MANY][320];
	size_t n_warnings;
};

static size_t index_of(const struct lab *l, struct labels labels)
{
	for (size_t s = 0; s < SERIES; s++)
		if (labels_eq(l->labels[s], labels))
			return s;
	fail_msg("a series that nobody has");
	return 0;
}

static errc ask(struct lab *l, bool partial, struct got *got, struct err *err)
{
	errc rc = OK;
	struct question qn;
	struct merge *m = NULL;
	struct sample_iter *it = NULL;
	struct arena a;
	struct matcher all;
	memset(got, 0, sizeof *got);
	memset(err, 0, sizeof *err);
	arena_init(&a, GIB);
	question_init(&qn, l->q, SPAN("t"), 0, TIMES * STEP);
	qn.partial = partial;
	TRY(matcher_init(&all, MATCH_RE, SPAN("__name__"), SPAN("m.*"), &qn.arena, err));
	const struct matcher_set set = {&all, 1};
	TRY(fleet_ask(&qn, FLEET_SAMPLES, SPAN(""), &set, 1, err));
	TRY(question_sources(&qn, err));
	TRY(merge_open(&qn, &set, 1, false, &m, err));
	struct labels *before = NULL;
	size_t last = 0;
	for (;;) {
		struct merged s;
		bool more;
		TRY(merge_next(m, &s, &more, err));
		if (!more)
			break;
		size_t i = index_of(l, s.labels);
		assert_true(!before || i > last); /* ascending, each once */
		before = &l->labels[i];
		last = i;
		arena_reset(&a);
		TRY(samples_open(&s, 0, TIMES * STEP, &a, &it, err));
		for (int64_t at = -1;;) {
			struct chunk_point p;
			TRY(samples_next(it, &p, &more, err));
			if (!more)
				break;
			assert_true(p.t > at && p.t % STEP == 0 && p.t / STEP < TIMES);
			at = p.t;
			got->v[i][p.t / STEP] = p.v;
		}
		samples_close(it);
		it = NULL;
	}
	for (const char *w; (w = question_warning(&qn, got->n_warnings));)
		snprintf(got->warnings[got->n_warnings++], sizeof got->warnings[0], "%s", w);
fail:
	samples_close(it);
	merge_close(m);
	question_free(&qn);
	arena_free(&a);
	return rc;
}

static bool answers_whole(enum how h)
{
	return h == WELL || h == WARNS;
}

/* What the nodes that answer whole have, and at most what those have that answer in part. */
static void assert_samples(struct lab *l, const struct got *g)
{
	for (size_t s = 0; s < SERIES; s++)
		for (size_t t = 0; t < TIMES; t++) {
			uint64_t want = 0, v = g->v[s][t];
			bool of_somebody = v == 0;
			for (size_t i = 0; i < l->n; i++) {
				uint64_t have = l->nodes[i].v[s][t];
				of_somebody |= have == v;
				if (have && answers_whole(l->nodes[i].how) && (!want || float_winner(have, want) > 0))
					want = have;
			}
			assert_true(of_somebody);
			if (want && v != want && float_winner(v, want) <= 0)
				fail_msg("series %zu time %zu: %llx, and a node has %llx", s, t, (unsigned long long)v, (unsigned long long)want);
		}
}

static void assert_acked(const struct lab *l, const struct got *g)
{
	for (size_t s = 0; s < SERIES; s++)
		for (size_t t = 0; t < TIMES; t++)
			assert_true(!l->acked[s][t] || g->v[s][t]);
}

/* ---- tests ---- */

/* Whatever becomes of the nodes: with fewer than a quorum missing every acknowledged sample is there and nothing is said; with more it is an error, or what there is with a warning for each. */
static void any_fleet_any_trouble(void **state)
{
	(void)state;
	uint64_t r = seed_of_run();
	static struct got g;
	struct lab l;
	struct err err;
	size_t seen[2][2] = {{0}};
	lab_open(&l, NODES, 3, 250, 64 * MIB);
	for (int round = 0; round < (getenv("VARVE_FULL") ? 600 : 60); round++) {
		samples_make(&l, &r);
		size_t bad = model_random(&r) % 4, missing = 0, warned = 0;
		for (size_t i = 0; i < bad; i++)
			l.nodes[model_random(&r) % l.n].how = (enum how)(model_random(&r) % HOWS);
		for (size_t i = 0; i < l.n; i++) {
			/* A drained one has nothing of its own. */
			if (l.nodes[i].how == DRAINED)
				l.nodes[i].how = KNOWN_DOWN;
			/* What breaks off in the middle of nothing has not broken off. */
			bool any = false;
			for (size_t k = SERIES / 2; k < SERIES * TIMES; k++)
				any |= k / TIMES >= SERIES / 2 && l.nodes[i].v[k / TIMES][k % TIMES] != 0;
			size_t series = 0;
			for (size_t s = 0; s < SERIES; s++)
				for (size_t t = 0, had = 0; t < TIMES && !had; t++)
					series += had = l.nodes[i].v[s][t] != 0;
			if (l.nodes[i].how > MUTE && (!any || series < 2))
				l.nodes[i].how = WELL;
			missing += !answers_whole(l.nodes[i].how);
			warned += l.nodes[i].how == WARNS;
		}
		bool partial = model_random(&r) % 2, endless = false;
		for (size_t i = 0; i < l.n; i++)
			endless |= l.nodes[i].how == ENDLESS;
		int64_t begin_ms = io_mono_ms();
		errc rc = ask(&l, partial, &g, &err);
		assert_true(io_mono_ms() - begin_ms < 2000);
		lab_settle(&l);
		seen[missing >= 2][partial]++;
		if (endless && rc == ERR_LIMIT)
			continue;
		if (missing >= 2 && !partial) {
			if (rc != ERR_NET || errid_of(err.id) != ERRID_INCOMPLETE)
				fail_msg("round %d: %s %s", round, errc_name(rc), err.msg);
			continue;
		}
		if (rc != OK)
			fail_msg("round %d: %s", round, err.msg);
		assert_samples(&l, &g);
		if (missing < 2)
			assert_acked(&l, &g);
		assert_int_equal(g.n_warnings, missing >= 2 ? missing + warned : warned);
		for (size_t i = 0; i < g.n_warnings; i++)
			assert_true(g.warnings[i][0] == 'n' && !strchr(g.warnings[i], '\n'));
	}
	assert_true(seen[0][0] && seen[0][1] && seen[1][0] && seen[1][1]);
	lab_close(&l);
}

/* Two hundred nodes, one question, no thread for any of them. */
static void two_hundred_nodes(void **state)
{
	(void)state;
	uint64_t r = seed_of_run();
	static struct got g;
	static struct lab l;
	struct err err;
	lab_open(&l, MANY, 3, 10000, 256 * MIB);
	samples_make(&l, &r);
	for (int i = 0; i < 3; i++) {
		if (ask(&l, false, &g, &err) != OK)
			fail_msg("%s", err.msg);
		assert_samples(&l, &g);
		assert_acked(&l, &g);
	}
	lab_close(&l);
}

/* A node that is silent, and one that stops in the middle, cost --query.peer-timeout once, not each; one that is known to be down costs nothing. */
static void nobody_waits_beyond_the_time_out(void **state)
{
	(void)state;
	uint64_t r = seed_of_run();
	static struct got g;
	struct lab l;
	struct err err;
	lab_open(&l, NODES, 3, 500, 64 * MIB);
	samples_make(&l, &r);
	for (int i = 0; i < 3; i++) {
		l.nodes[i].how = MUTE;
		l.nodes[i + 3].how = STOPS;
	}
	int64_t begin_ms = io_mono_ms();
	assert_int_equal(ask(&l, true, &g, &err), OK);
	assert_in_range(io_mono_ms() - begin_ms, 450, 1000);
	assert_samples(&l, &g);
	assert_int_equal(g.n_warnings, 6);
	lab_settle(&l);
	for (size_t i = 0; i < l.n; i++)
		l.nodes[i].how = i < 3 ? KNOWN_DOWN : WELL;
	begin_ms = io_mono_ms();
	assert_int_equal(ask(&l, true, &g, &err), OK);
	assert_true(io_mono_ms() - begin_ms < 200);
	begin_ms = io_mono_ms();
	assert_int_equal(ask(&l, false, &g, &err), ERR_NET);
	assert_true(io_mono_ms() - begin_ms < 200);
	lab_close(&l);
}

/* An answer of many times what a read may hold, and a reader that takes its time: the peer waits, memory stays bounded, and nothing is lost. */
static void large_answers_wait_for_their_reader(void **state)
{
	(void)state;
	enum { BIG = 3000, CHUNK = 16 * 1024 };
	struct lab l;
	struct err err = {0};
	struct question qn;
	struct merge *m;
	struct matcher all;
	const struct matcher_set set = {&all, 1};
	lab_open(&l, 3, 3, 2000, 8 * MIB);
	l.big = BIG;
	l.big_bytes = CHUNK;
	question_init(&qn, l.q, SPAN("t"), 0, TIMES * STEP);
	assert_int_equal(matcher_init(&all, MATCH_RE, SPAN("__name__"), SPAN("m.*"), &qn.arena, &err), OK);
	if (fleet_ask(&qn, FLEET_SAMPLES, SPAN(""), &set, 1, &err) != OK)
		fail_msg("%s", err.msg);
	usleep(400000);
	size_t ahead = l.written;
	assert_true(ahead < 3 * 14 * MIB); /* rings and sockets of three connections; all would be 140 MiB */
	assert_int_equal(question_sources(&qn, &err), OK);
	assert_int_equal(merge_open(&qn, &set, 1, false, &m, &err), OK);
	size_t n = 0;
	for (;; n++) {
		struct merged s;
		bool more;
		if (merge_next(m, &s, &more, &err) != OK)
			fail_msg("series %zu: %s", n, err.msg);
		if (!more)
			break;
		assert_int_equal(s.n_parts, 3);
		for (size_t p = 0; p < 3; p++)
			assert_true(s.parts[p].n_chunks == 1 && s.parts[p].chunks[0].data.n == CHUNK &&
				    s.parts[p].chunks[0].data.p[CHUNK - 1] == (char)n);
		if (n == BIG / 2)
			usleep(2500000); /* longer than --query.peer-timeout: that is nobody's fault */
	}
	assert_int_equal(n, BIG);
	assert_true(fleet_ask_warning(qn.ask, 0) == NULL);
	merge_close(m);
	question_free(&qn);
	lab_settle(&l);

	/* One series that is larger than what a read may hold ends it in words. */
	l.big = 2;
	l.big_bytes = 6 * MIB;
	question_init(&qn, l.q, SPAN("t"), 0, TIMES * STEP);
	errc rc = fleet_ask(&qn, FLEET_SAMPLES, SPAN(""), NULL, 0, &err);
	rc = rc == OK ? question_sources(&qn, &err) : rc;
	rc = rc == OK ? merge_open(&qn, &set, 1, false, &m, &err) : rc;
	assert_int_equal(rc, ERR_LIMIT);
	assert_int_equal(errid_of(err.id), ERRID_QUERY_TOO_LARGE);
	question_free(&qn);
	lab_settle(&l);
	lab_close(&l);
}

/* ---- when an answer is whole ---- */

/* fleet_view_whole says yes only when every q of a series' nodes have one that is not missing, for every ring that it may have been written by. */
static void whole_means_every_quorum_is_seen(void **state)
{
	(void)state;
	uint64_t r = seed_of_run();
	struct err err = {0};
	size_t yes = 0, no = 0;
	for (int round = 0; round < (getenv("VARVE_FULL") ? 3000 : 300); round++) {
		struct ring_set *sets[3];
		struct fleet_view v = {.sets = sets, .n_sets = 1 + model_random(&r) % 3, .in_force = true, .known = model_random(&r) % 4 > 0};
		v.wanted = model_random(&r) % 4 == 0 ? 1 + (uint32_t)model_random(&r) % 3 : 0;
		for (size_t i = 0; i < v.n_sets; i++) {
			/* Two rings by tenant, of nodes a0 ... that overlap. */
			struct buf json;
			uint32_t factor = 1 + (uint32_t)model_random(&r) % 3;
			buf_init(&json, MIB);
			buf_printf(&json, "[");
			for (int k = 0; k < 2; k++) {
				size_t from = model_random(&r) % 6, n = factor + model_random(&r) % 5;
				buf_printf(&json, "%s{%s\"endpoints\":[", k ? "," : "", k ? "" : "\"tenants\":[\"t\"],");
				for (size_t e = 0; e < n; e++)
					buf_printf(&json, "%s\"a%zu:1\"", e ? "," : "", from + e);
				buf_printf(&json, "]}");
			}
			buf_printf(&json, "]");
			const struct ring_options opt = {.algorithm = RING_KETAMA, .replication_factor = factor};
			if (ring_set_parse("test", span_of(json.p, json.n), &opt, &sets[i], &err) != OK)
				fail_msg("%s", err.msg);
			buf_free(&json);
		}
		char text[16][16];
		struct span missing[16];
		size_t n = 0;
		for (size_t i = 0; i < 16; i++)
			if (model_random(&r) % 6 == 0) {
				snprintf(text[n], sizeof text[n], "a%zu:1", i);
				missing[n] = span_cstr(text[n]);
				n++;
			}
		bool whole = fleet_view_whole(&v, SPAN("t"), missing, n);
		yes += whole && n > 0;
		no += !whole;
		uint32_t last = ring_set_factor(sets[v.n_sets - 1]), least = v.wanted ? v.wanted < last ? v.wanted : last : last / 2 + 1;
		bool must = v.known || n < least;
		for (size_t i = 0; i < v.n_sets; i++) {
			struct ring *ring;
			const uint16_t *nodes;
			uint32_t f = ring_set_factor(sets[i]), q = v.wanted ? v.wanted < f ? v.wanted : f : f / 2 + 1, out = 0;
			assert_int_equal(ring_for_tenant(sets[i], SPAN("t"), &ring, &err), OK);
			uint32_t n_nodes = ring_nodes(ring, &nodes);
			for (uint32_t k = 0; k < n_nodes; k++)
				for (size_t m = 0; m < n; m++)
					out += span_eq(ring_set_node(sets[i], nodes[k])->address, missing[m]);
			must &= out < q;
			for (int h = 0; whole && h < 50; h++) {
				uint32_t owners[16], gone = 0;
				ring_owners(ring, model_random(&r), owners);
				for (uint32_t k = 0; k < f; k++)
					for (size_t m = 0; m < n; m++)
						gone += span_eq(ring_set_node(sets[i], owners[k])->address, missing[m]);
				assert_true(gone < q); /* the q that stored it are not all gone */
			}
			ring_unref(ring);
		}
		assert_int_equal(whole, must);
		for (size_t i = 0; i < v.n_sets; i++)
			ring_set_unref(sets[i]);
	}
	assert_true(yes > 0 && no > 0);
	/* Without any ring each node may have what nobody else has. */
	struct span one = SPAN("a0:1");
	assert_false(fleet_view_whole(&(struct fleet_view){.known = true}, SPAN("t"), &one, 1));
	assert_true(fleet_view_whole(&(struct fleet_view){.known = true}, SPAN("t"), &one, 0));
}

/* ---- bytes ---- */

/* A question comes back as it was sent; every one that is cut off, or has a byte too many, is refused. */
static void questions_there_and_back(void **state)
{
	(void)state;
	struct err err = {0};
	struct arena a;
	struct buf out;
	struct matcher m[3];
	arena_init(&a, MIB);
	buf_init(&out, MIB);
	assert_int_equal(matcher_init(&m[0], MATCH_EQ, SPAN("__name__"), SPAN("up"), &a, &err), OK);
	assert_int_equal(matcher_init(&m[1], MATCH_NRE, SPAN("x"), SPAN("a.*b[0-9]"), &a, &err), OK);
	assert_int_equal(matcher_init(&m[2], MATCH_NEQ, SPAN("y"), SPAN(""), &a, &err), OK);
	const struct matcher_set sets[] = {{m, 2}, {m + 2, 1}, {m, 0}};
	const struct span replica[] = {SPAN("varve_node"), SPAN("")};
	const struct fleet_question fq = {.what = FLEET_VALUES,
		.mint = INT64_MIN,
		.maxt = INT64_MAX,
		.left_ms = 1234,
		.name = SPAN("job"),
		.replica = replica,
		.n_replica = 2,
		.sets = sets,
		.n_sets = 3};
	struct fleet_question got;
	assert_int_equal(fleet_question_encode(&fq, &out, &err), OK);
	for (size_t n = 0; n <= out.n; n++) {
		uint8_t *exact = malloc(n + 1);
		memcpy(exact, out.p, n);
		assert_int_equal(fleet_question_decode(span_of(exact, n), &a, &got, &err), n == out.n ? OK : ERR_INVALID);
		if (n == out.n) {
			assert_true(got.what == fq.what && got.mint == fq.mint && got.maxt == fq.maxt && got.left_ms == 1234 &&
				    span_eq(got.name, fq.name));
			assert_true(got.n_replica == 2 && span_eq(got.replica[0], replica[0]) && got.n_sets == 3);
			for (size_t s = 0; s < 3; s++) {
				assert_int_equal(got.sets[s].n, sets[s].n);
				for (size_t k = 0; k < sets[s].n; k++)
					assert_true(
						got.sets[s].m[k].type == sets[s].m[k].type && span_eq(got.sets[s].m[k].value, sets[s].m[k].value));
			}
			matcher_sets_free((struct matcher_set *)(uintptr_t)got.sets, got.n_sets);
		}
		free(exact);
	}
	buf_u8(&out, 0);
	assert_int_equal(fleet_question_decode(span_of(out.p, out.n), &a, &got, &err), ERR_INVALID);
	matchers_free(m, 3);
	buf_free(&out);
	arena_free(&a);
}

/* A frame that lacks bytes is waited for, whatever is missing; one with a flipped bit is never taken for whole and right. */
static void frames_are_whole_or_refused(void **state)
{
	(void)state;
	struct err err = {0};
	uint8_t head[FLEET_FRAME_HEAD], frame[400];
	char payload[300];
	memset(payload, 'x', sizeof payload);
	size_t h = fleet_frame_head(span_of(payload, sizeof payload), head), n = h + sizeof payload;
	memcpy(frame, head, h);
	memcpy(frame + h, payload, sizeof payload);
	struct span got;
	size_t used;
	for (size_t k = 0; k <= n; k++) {
		assert_int_equal(fleet_frame(span_of(frame, k), MIB, &got, &used, &err), OK);
		assert_int_equal(used, k == n ? n : 0);
	}
	for (size_t bit = 0; bit < n * 8; bit++) {
		frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
		errc rc = fleet_frame(span_of(frame, n), MIB, &got, &used, &err);
		assert_true(rc != OK || used == 0);
		frame[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(fleet_frame(span_of(frame, n), 299, &got, &used, &err), ERR_LIMIT);
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(questions_there_and_back),
		cmocka_unit_test(frames_are_whole_or_refused),
		cmocka_unit_test(whole_means_every_quorum_is_seen),
		cmocka_unit_test(any_fleet_any_trouble),
		cmocka_unit_test(nobody_waits_beyond_the_time_out),
		cmocka_unit_test(large_answers_wait_for_their_reader),
		cmocka_unit_test(two_hundred_nodes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
