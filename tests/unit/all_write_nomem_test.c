/* Every allocation of a write request fails in turn, from the socket to the log: 204, 400 or 503 (or the connection is closed before an answer),
 * never a crash; what was answered 204 survives a power cut, and the same body again is stored once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>
#include <snappy-c.h>
#include "base/limits.h"
#include "base/log.h"
#include "head/head_int.h"
#include "ingest/ingest.h"
#include "proto/proto.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/head_lab.h"
#include "tests/support/raw.h"

enum { RANGE = 600000, SEGMENT = 256 * 1024, SERIES = 12, WAIT_MS = 20000 };
static const int64_t T0 = INT64_C(1700000000000) / RANGE * RANGE;

struct door {
	struct lab lab;
	struct ingest *ingest;
	struct http_server *http;
	uint16_t port;
};

static void door_open(struct door *d)
{
	struct err err = {0};
	d->lab.fatal = false; /* a power cut is fatal for a log */
	if (lab_start(&d->lab, &err) != OK)
		fail_msg("start: %s", err.msg);
	/* Limits that nothing here is over: what holds them against a request needs memory, too. */
	const struct span limits = SPAN("write: {default: {head_series_limit: 1000, samples_per_second: 1000000}, global: {max_concurrency: 1}}");
	assert_int_equal(io_write_file("limits.yml", limits, &err), OK);
	const struct ingest_config ic = {
		.head = d->lab.head,
		.wal = d->lab.wal,
		.max_body_bytes = MIB,
		.max_inflight_bytes = 8 * MIB,
		.max_series_per_request = 1000,
		.max_samples_per_request = 10000,
		.oldest_ms = 0,
		.future_ms = 600000,
		.labels = {64, 1024, 4096},
		.created_zero = true,
		.limits_file = "limits.yml",
	};
	assert_int_equal(ingest_open(&ic, &d->ingest, &err), OK);
	const struct http_route routes[] = {{HTTP_POST, "/api/v1/write", HTTP_INLINE, MIB, ingest_write, d->ingest}};
	const struct http_server_config hc = {.address = "127.0.0.1:0", .threads = 1, .workers = 1, .worker_queue = 1, .max_connections = 20};
	if (http_server_start(&hc, routes, 1, &d->http, &err) != OK)
		fail_msg("%s", err.msg);
	d->port = http_server_port(d->http);
}

static void door_shut(struct door *d, bool power_cut)
{
	http_server_stop(d->http, 1000);
	if (power_cut)
		lab_crash(&d->lab, SIM_DROP_ALL);
	else
		lab_stop(&d->lab);
	ingest_close(d->ingest);
}

/* ---- bodies ---- */

struct body {
	struct buf snappy;
	int64_t t;
	uint32_t first, n, per;
	bool bad;   /* the last series has no name */
	bool v2;    /* remote write 2.0, with start timestamps */
	bool notes; /* an exemplar of each series, metadata of a family */
};

/* The same as 2.0 says it; symbols stand as often as they are used. */
static void body_2(const struct body *b, struct buf *pb)
{
	struct buf series;
	struct arena arena;
	uint32_t n = 1;
	arena_init(&arena, MIB);
	buf_init(&series, MIB);
	pb_bytes(pb, 4, SPAN(""));
	for (uint32_t k = 0; k < b->n + (b->bad ? 1 : 0); k++) {
		struct buf wire, refs;
		struct labels l;
		buf_init(&wire, MIB);
		buf_init(&refs, MIB);
		if (k < b->n)
			lab_wire((b->first + k) % SERIES, (b->first + k) % 8, &wire);
		else
			buf_put(&wire, "\x0a\x06\x0a\x01\x61\x12\x01\x62", 8);
		assert_int_equal(labels_from_wire(span_of(wire.p, wire.n), 64, &arena, &l, NULL), OK);
		for (uint32_t i = 0; i < l.n; i++) {
			pb_bytes(pb, 4, l.v[i].name);
			pb_bytes(pb, 4, l.v[i].value);
			buf_uvarint(&refs, n++);
			buf_uvarint(&refs, n++);
		}
		size_t s = pb_begin(&series, 5);
		pb_bytes(&series, 1, span_of(refs.p, refs.n));
		for (uint32_t i = 0; i < b->per; i++) {
			size_t m = pb_begin(&series, 2);
			pb_double_bits(&series, 1, (uint64_t)(b->t + i) * (k + 1));
			pb_uint(&series, 2, (uint64_t)(b->t + i));
			pb_uint(&series, 3, (uint64_t)(b->t + b->per)); /* not in front of it: no zero */
			pb_end(&series, m);
		}
		pb_end(&series, s);
		buf_free(&wire);
		buf_free(&refs);
	}
	buf_span(pb, span_of(series.p, series.n));
	buf_free(&series);
	arena_free(&arena);
}

static void body_make(struct body *b)
{
	struct buf pb, ts;
	buf_init(&pb, MIB);
	buf_init(&ts, MIB);
	if (b->v2)
		body_2(b, &pb);
	for (uint32_t k = 0; !b->v2 && k < b->n + (b->bad ? 1 : 0); k++) {
		buf_clear(&ts);
		if (k < b->n) {
			lab_wire((b->first + k) % SERIES, (b->first + k) % 8, &ts);
		} else {
			static const char nameless[] = "\x0a\x06\x0a\x01\x61\x12\x01\x62";
			buf_put(&ts, nameless, sizeof nameless - 1);
		}
		for (uint32_t i = 0; i < b->per; i++) {
			uint8_t v[9] = {0x09};
			struct buf s;
			buf_init(&s, 64);
			put_le64(v + 1, (uint64_t)(b->t + i) * (k + 1));
			buf_put(&s, v, sizeof v);
			buf_u8(&s, 0x10);
			buf_uvarint(&s, (uint64_t)(b->t + i));
			buf_u8(&ts, 0x12);
			buf_str(&ts, span_of(s.p, s.n));
			buf_free(&s);
		}
		if (b->notes && k < b->n) {
			struct buf e;
			buf_init(&e, 64);
			struct label own = {SPAN("trace_id"), SPAN("0123456789abcdef")};
			labels_to_wire((struct labels){&own, 1}, &e);
			buf_u8(&e, 0x18);
			buf_uvarint(&e, (uint64_t)b->t);
			buf_u8(&ts, 0x1a);
			buf_str(&ts, span_of(e.p, e.n));
			buf_free(&e);
		}
		buf_u8(&pb, 0x0a);
		buf_str(&pb, span_of(ts.p, ts.n));
	}
	if (b->notes) {
		char family[32];
		struct buf m;
		buf_init(&m, 64);
		buf_put(&m, "\x08\x01\x12", 3);
		snprintf(family, sizeof family, "family_%" PRIi64, b->t);
		buf_str(&m, span_cstr(family));
		buf_u8(&pb, 0x1a);
		buf_str(&pb, span_of(m.p, m.n));
		buf_free(&m);
	}
	size_t n = snappy_max_compressed_length(pb.n);
	buf_init(&b->snappy, MIB);
	char *out = malloc(n);
	assert_int_equal(snappy_compress((const char *)pb.p, pb.n, out, &n), SNAPPY_OK);
	buf_put(&b->snappy, out, n);
	free(out);
	buf_free(&pb);
	buf_free(&ts);
}

static void into_model(struct lab *l, const struct body *b)
{
	for (uint32_t k = 0; k < b->n; k++)
		for (uint32_t i = 0; i < b->per; i++)
			lab_model_put(l, 0, (b->first + k) % SERIES, b->t + i, (uint64_t)(b->t + i) * (k + 1));
}

/* Status; 0: the connection was closed without an answer. */
static int post(struct door *d, const struct body *b)
{
	struct raw c = raw_open(d->port);
	raw_printf(&c,
		"POST /api/v1/write HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf%s\r\nContent-Encoding: snappy\r\nContent-Length: "
		"%zu\r\n\r\n",
		b->v2 ? ";proto=io.prometheus.write.v2.Request" : "", b->snappy.n);
	raw_send(&c, b->snappy.p, b->snappy.n);
	struct raw_answer a = raw_answer(&c, false, WAIT_MS);
	int status = a.cut ? 0 : a.status;
	if (status == 0 && !c.closed)
		fail_msg("no answer within %d ms", WAIT_MS);
	raw_answer_free(&a);
	raw_close(&c);
	return status;
}

static uint64_t n_notes, n_exemplars; /* sent */

static void notes_check(const struct lab *l)
{
	assert_int_equal(atomic_load(&l->head->n_exemplars), n_exemplars);
	assert_int_equal(atomic_load(&l->head->n_metadata), n_notes);
}

/* The sweep for one kind of body; `again`: the body before it is sent, so that everything in it is a duplicate. */
static void sweep(struct door *d, bool v2, uint32_t n_series, uint32_t per, bool fresh, bool again, bool bad, bool notes, bool sticky)
{
	static int64_t clock;
	int good = bad ? 400 : 204;
	uint64_t n = 1, hits = 1, unanswered = 0, refused = 0;
	for (; hits; n++) {
		struct body b = {.t = T0 + clock, .n = n_series, .per = per, .bad = bad, .v2 = v2, .notes = notes};
		if (fresh) /* nobody knows these series: their window is a block, and what the head knew went with it */
			lab_flush(&d->lab);
		if (!again || n == 1)
			clock += per;
		else
			b.t -= per;
		body_make(&b);
		fail_alloc_at(n, sticky);
		fail_alloc_pause();
		int status = post(d, &b);
		fail_alloc_resume();
		usleep(1000); /* what comes behind the answer */
		hits = fail_alloc_off();
		if (status != good && status != 503 && status != 0)
			fail_msg("allocation %" PRIu64 ": %d", n, status);
		if (hits == 0)
			assert_int_equal(status, good);
		unanswered += status == 0;
		refused += status == 503;
		/* A 204 or 400 is a promise; anything else is sent again, and stored once. */
		for (int try = 0; status != good; try++) {
			assert_true(try < 200);
			status = post(d, &b);
			if (status != good)
				io_sleep_ms(5);
		}
		if (!again || n == 1) {
			into_model(&d->lab, &b);
			n_notes += notes;
			n_exemplars += notes ? n_series : 0;
		}
		buf_free(&b.snappy);
	}
	printf("%s%u series x %u%s%s%s: %" PRIu64 " allocations, %" PRIu64 " answered 503, %" PRIu64 " connections closed\n", v2 ? "2.0, " : "",
		n_series, per,
		again	? ", duplicates"
		: fresh ? ", new"
			: "",
		bad	? ", one bad"
		: notes ? ", with exemplars and metadata"
			: "",
		sticky ? ", all that follow fail too" : "", n - 1, refused, unanswered);
	assert_false(d->lab.fatal);
	assert_true(n > 5);
}

static void every_allocation_of_a_write_fails(void **state)
{
	(void)state;
	static struct door d;
	lab_open(&d.lab, 1, RANGE, SEGMENT);
	log_setup(getenv("VARVE_LOG") ? LOG_DEBUG : LOG_ERROR + 1, LOG_LOGFMT); /* errors are what this is about */
	d.lab.n_series = SERIES;
	d.lab.cfg.max_exemplars = 100000;
	d.lab.cfg.max_metadata = 100000;
	for (int sticky = 0; sticky < 2; sticky++) {
		door_open(&d);
		for (int v2 = 0; v2 < 2; v2++) {
			sweep(&d, v2, SERIES, 3, false, false, false, false, sticky);
			sweep(&d, v2, SERIES, 130, false, false, false, false, sticky); /* chunks fill */
			sweep(&d, v2, 4, 2, true, false, false, false, sticky);
			sweep(&d, v2, 5, 4, false, true, false, false, sticky);
			sweep(&d, v2, 5, 4, false, false, true, false, sticky);
		}
		sweep(&d, false, 5, 4, false, false, false, true, sticky);
		sweep(&d, false, 3, 1, true, false, false, true, sticky);
		lab_check(&d.lab);
		notes_check(&d.lab);
		door_shut(&d, true);
		door_open(&d);
		lab_check(&d.lab);
		notes_check(&d.lab);
		door_shut(&d, false);
	}
	lab_free(&d.lab);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation_of_a_write_fails)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
