/* cmd/cmd_bench_int.h - made-up metrics that a benchmark sends: what the files of `varve bench` share with each other and with tests/bench.
 *
 *     cmd_bench.c       flags, what fits into memory, the report
 *     cmd_bench_data.c  series, values, bodies: a pure function of the shape
 *     cmd_bench_send.c  connections, retries, latencies
 *     cmd_bench_meter.c what the server's processes cost, from /proc
 *
 * A shape says everything: the same shape gives the same bytes on every machine, so that several servers get identical requests and a checker needs no
 * copy of what was sent.
 *
 *     round     every slot once, `step_ms` of sample time after the round before
 *     slot      a place for a series, 0 .. series-1; churn puts new series (generations) into it
 *     tenant    a run of slots of its own
 *     batch     one request: at most `batch` slots of one tenant
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"
#include "net/net.h"

enum bench_order {
	BENCH_SCRAPE,	/* as scrapes arrive: all series of a target, then the next target */
	BENCH_STRIDED,	/* one series of each of BENCH_STRIDE targets in turn: neighbours share little */
	BENCH_SHUFFLED, /* each round in a random order of its own */
};

enum {
	BENCH_STRIDE = 1000,
	BENCH_TARGET_SERIES = 500, /* of one scrape target: they share instance, pod and node, and are replaced together */
	BENCH_LABELS_MIN = 2,
	BENCH_LABELS_MAX = 64,
	BENCH_MILLION = 1000000,
};

struct bench_shape {
	uint64_t series, rounds, first_round, batch, tenants, seed;
	uint32_t labels; /* of a series: BENCH_LABELS_MIN .. BENCH_LABELS_MAX */
	int64_t start_ms, step_ms;
	enum bench_order order;
	int version;		   /* of remote write: 1 or 2 */
	uint32_t churn_ppm;	   /* millionths of the series that new ones replace in a minute of sample time */
	uint32_t histograms_ppm;   /* ... that carry native histograms */
	uint32_t out_of_order_ppm; /* ... whose sample changes places with the next round's */
};

/* ---- what is sent ---- */

/* Requests of one round, and the slots of one of them: positions first .. first+n-1 of the tenant's order. */
uint64_t bench_batches(const struct bench_shape *shape);
struct bench_batch {
	uint64_t tenant, first, n;
};
struct bench_batch bench_batch_at(const struct bench_shape *shape, uint64_t batch);
/* The slot at a position of a tenant's order in a round; for each round a permutation of the tenant's slots. */
uint64_t bench_slot(const struct bench_shape *shape, uint64_t tenant, uint64_t position, uint64_t round);

/* One sample: which series of the slot, and of which round it is (another one than is being sent when it is out of order). */
struct bench_sample {
	uint64_t slot, generation, round;
	int64_t t;
};
struct bench_sample bench_sample_of(const struct bench_shape *shape, uint64_t slot, uint64_t sent_round);
bool bench_is_histogram(const struct bench_shape *shape, uint64_t slot);
uint64_t bench_value_bits(const struct bench_shape *shape, const struct bench_sample *s);
/* Appends the label fields of remote write 1.0, sorted. */
void bench_put_labels(const struct bench_shape *shape, const struct bench_sample *s, struct buf *out);

/* Builds bodies; one thread. */
struct bench_builder;
CHECKED errc bench_builder_open(const struct bench_shape *shape, struct bench_builder **out, struct err *err);
void bench_builder_close(struct bench_builder *b);
/* The message before compression, borrowed until the next call. */
CHECKED errc bench_message(struct bench_builder *b, uint64_t round, uint64_t batch, struct span *out, struct err *err);
/* The body as it is sent; *message_bytes may be NULL. Replaces what is in `out`. */
CHECKED errc bench_body(struct bench_builder *b, uint64_t round, uint64_t batch, struct buf *out, size_t *message_bytes, struct err *err);

/* Bodies in files, for programs that take them without HTTP: DIR/round-000000.bodies begins with BENCH_FILE_MAGIC, then each body with 16 bytes in front:
 * u32 LE version, samples (histograms count), tenant, bytes. */
#define BENCH_FILE_MAGIC "vrvbody1"
CHECKED errc bench_dump(const struct bench_shape *shape, const char *dir, uint64_t *bodies, uint64_t *bytes, struct err *err);

/* ---- sending ---- */

enum { BENCH_STATUSES = 600 }; /* a count for each HTTP status; 0: nobody answered */

/* Latencies in nanoseconds, counted in steps of 1/32 of their size: p99 is right to 3 %. */
enum { BENCH_LATENCY_CELLS = 32 * 60 };
struct bench_latency {
	uint64_t n, max_ns;
	uint64_t cells[BENCH_LATENCY_CELLS];
};
void bench_latency_add(struct bench_latency *l, uint64_t ns);
void bench_latency_merge(struct bench_latency *into, const struct bench_latency *from);
uint64_t bench_latency_at(const struct bench_latency *l, double quantile); /* 0 .. 1; 0 when nothing was counted */

struct bench_send_config {
	const char *url;	    /* of the write endpoint */
	const char *tenant;	    /* header THANOS-TENANT, with a number behind it when there are several; NULL: none */
	const char *const *headers; /* more of them, "Name: value" */
	size_t n_headers;
	uint32_t connections;
	uint64_t rate;			 /* samples a second over all connections; 0: as fast as they are answered */
	int64_t retry_ms;		 /* a request that is put off for so long has failed */
	uint64_t memory_bytes;		 /* of bodies that are built before they are sent; 0: each is built when its turn comes */
	const char *acks;		 /* file that gets a line "round batch" for each acknowledged request; NULL: none */
	bool progress;			 /* a line on stdout five times a second */
	bool say;			 /* what is done, on stderr */
	const struct bench_meter *meter; /* NULL: no process is watched */
};

struct bench_result {
	uint64_t requests, acked, failed, retried;
	uint64_t samples, samples_failed; /* of acknowledged and of failed requests */
	uint64_t written;		  /* what the server said it wrote (2.0); UINT64_MAX: it did not say */
	uint64_t bytes, message_bytes;	  /* of acknowledged requests: as sent, and before compression */
	uint64_t statuses[BENCH_STATUSES];
	char first_refusal[256]; /* first answer that was no success, one line */
	double seconds;		 /* while sending, without building */
	uint32_t passes;
	struct bench_latency latency; /* of acknowledged attempts; with a rate from when they were due */
	double client_cpu_s;	      /* of this process while sending */
	double server_cpu_s;	      /* while sending, and until the server is quiet afterwards */
	double server_user_share;     /* 0 .. 1 */
	uint64_t server_rss_before, server_rss_after;
};

/* Sends all of the shape. ERR_NET: nobody listens; ERR_INVALID: every request would be refused the same way (401, 404, 415, ...). A refused or failed
 * request is no error but counted in the result, which is filled in as far as it came. */
CHECKED errc bench_send(const struct bench_shape *shape, const struct bench_send_config *cfg, struct bench_result *out, struct err *err);

/* ---- watching processes ---- */

struct bench_meter {
	const uint32_t *pids;
	size_t n;
};
struct bench_cost {
	double cpu_s, user_s, system_s;
	uint64_t rss_bytes;
};
/* Sums over the processes. ERR_NOTFOUND: one of them is not there. */
CHECKED errc bench_meter_read(const struct bench_meter *m, struct bench_cost *out, struct err *err);
/* The same when they have had nothing to do for half a second, after 3 s at most: what is left to do after the last answer belongs to it, too. */
CHECKED errc bench_meter_settle(const struct bench_meter *m, struct bench_cost *out, struct err *err);
double bench_own_cpu_s(void);
