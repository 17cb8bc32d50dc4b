/* The limits file: Thanos' own is read as Thanos reads it, every key that is wrong is said with its line, and a bad file changes nothing. The limits in
 * force: read by many threads while they are replaced, never half of one file and half of another. The rate: over any stretch of time no more than
 * it says, and a sender that waits as long as it was told gets through.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/limits.h"
#include "base/log.h"
#include "ingest/ingest_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"

/* The example of Thanos' documentation (docs/components/receive.md, pkg/receive/testdata/limits_config/good_limits.yaml). */
static const char thanos[] = "write:\n"
			     "  global:\n"
			     "    max_concurrency: 30\n"
			     "    meta_monitoring_url: \"http://localhost:9090\"\n"
			     "    meta_monitoring_limit_query: \"sum(prometheus_tsdb_head_series) by (tenant)\"\n"
			     "  default:\n"
			     "    request:\n"
			     "      size_bytes_limit: 1024\n"
			     "      series_limit: 1000\n"
			     "      samples_limit: 10\n"
			     "    head_series_limit: 1000\n"
			     "  tenants:\n"
			     "    acme:\n"
			     "      request:\n"
			     "        size_bytes_limit: 0\n"
			     "        series_limit: 0\n"
			     "        samples_limit: 0\n"
			     "      head_series_limit: 2000\n"
			     "    ajax:\n"
			     "      request:\n"
			     "        series_limit: 50000\n"
			     "        samples_limit: 500\n";

static const char ours[] =
	"write:\n"
	"  global: {max_concurrency: 4, meta_monitoring_http_client: {basic_auth: {username: a, password: b}}}\n"
	"  default: {request: {size_bytes_limit: 64KiB, series_limit: 1_000, samples_limit: 1e4}, head_series_limit: 7,\n"
	"    samples_per_second: 100, samples_burst: 500}\n"
	"  tenants:\n"
	"    fast: {samples_per_second: 9000}\n"
	"    free: {request: {size_bytes_limit: -1, series_limit: 0, samples_limit: -5}, head_series_limit: 0, samples_per_second: 0}\n"
	"    same:\n";

static struct limits *parse(const char *text)
{
	struct limits *l;
	struct err err = {0};
	if (limits_parse("limits.yml", span_cstr(text), &l, &err) != OK)
		fail_msg("%s", err.msg);
	return l;
}

static void holds(
	const struct limits *l, const char *tenant, uint64_t size, uint64_t series, uint64_t samples, uint64_t head, uint64_t rate, uint64_t burst)
{
	const uint64_t *v = limits_of(l, span_cstr(tenant))->v;
	const uint64_t want[TENANT_LIMITS] = {size, series, samples, head, rate, burst};
	for (int k = 0; k < TENANT_LIMITS; k++)
		if (v[k] != want[k])
			fail_msg("%s: limit %d is %llu, must be %llu", tenant, k, (unsigned long long)v[k], (unsigned long long)want[k]);
}

/* What Thanos' documentation says of its example, tenant by tenant. */
static void thanos_example_is_read_as_it_is(void **state)
{
	(void)state;
	struct limits *l = parse(thanos);
	char key[200];
	assert_int_equal(l->max_concurrency, 30);
	holds(l, "anybody", 1024, 1000, 10, 1000, 0, 0);
	holds(l, "acme", 0, 0, 0, 2000, 0, 0);
	holds(l, "ajax", 1024, 50000, 500, 1000, 0, 0);
	assert_non_null(strstr(l->remarks.p, "meta_monitoring_url is not used"));
	assert_non_null(strstr(l->remarks.p, "meta_monitoring_limit_query is not used"));
	/* Where each number is from. */
	const struct tenant_limits *ajax = limits_of(l, SPAN("ajax"));
	assert_string_equal(limits_key(ajax, TENANT_SERIES, SPAN("ajax"), key, sizeof key), "write.tenants.ajax.request.series_limit");
	assert_string_equal(limits_key(ajax, TENANT_SIZE, SPAN("ajax"), key, sizeof key), "write.default.request.size_bytes_limit");
	assert_string_equal(limits_key(ajax, TENANT_HEAD_SERIES, SPAN("ajax"), key, sizeof key), "write.default.head_series_limit");
	limits_free(l);

	l = parse(ours);
	holds(l, "anybody", 65536, 1000, 10000, 7, 100, 500);
	holds(l, "fast", 65536, 1000, 10000, 7, 9000, 500);
	holds(l, "free", 0, 0, 0, 0, 0, 500);
	holds(l, "same", 65536, 1000, 10000, 7, 100, 500);
	assert_non_null(strstr(l->remarks.p, "meta_monitoring_http_client is not used"));
	limits_free(l);

	/* Nothing is no limit, wherever it stands. */
	static const char *const nothing[] = {"write: {}", "write:", "write:\n  global:\n  default:\n  tenants:\n", "write: {tenants: {}}"};
	for (size_t i = 0; i < sizeof nothing / sizeof *nothing; i++) {
		l = parse(nothing[i]);
		holds(l, "anybody", 0, 0, 0, 0, 0, 0);
		assert_int_equal(l->max_concurrency, 0);
		assert_int_equal(l->remarks.n, 0);
		limits_free(l);
	}
	l = parse("write: {tenants: {\"no such name\": {head_series_limit: 5}, \"\xc3\xbc\": {}}}");
	assert_non_null(strstr(l->remarks.p, "write.tenants.no such name is no name that a tenant can have"));
	limits_free(l);
}

/* Each key misspelt in turn: the line, the word, and the word that was meant. */
static void every_wrong_key_is_said(void **state)
{
	(void)state;
	static const char *const keys[] = {"write", "global", "max_concurrency", "meta_monitoring_url", "meta_monitoring_limit_query", "default",
		"request", "size_bytes_limit", "series_limit", "samples_limit", "head_series_limit", "tenants", "samples_per_second", "samples_burst",
		"meta_monitoring_http_client"};
	const char *const texts[] = {thanos, ours};
	size_t tried = 0;
	for (size_t i = 0; i < 2; i++)
		for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
			size_t n = strlen(keys[k]);
			for (const char *at = texts[i]; (at = strstr(at, keys[k])); at += n) {
				if (at[n] != ':' || (at > texts[i] && strchr("_.", at[-1])) || (k == 8 && at[-1] != ' '))
					continue;
				char bad[2048];
				struct limits *l = NULL;
				struct err err = {0};
				int line = 1;
				/* One letter too many, in its middle. */
				snprintf(bad, sizeof bad, "%.*sx%s", (int)(at - texts[i] + (long)n / 2), texts[i], at + n / 2);
				for (const char *c = texts[i]; c < at; c++)
					line += *c == '\n';
				assert_int_equal(limits_parse("limits.yml", span_cstr(bad), &l, &err), ERR_INVALID);
				assert_null(l);
				char meant[64], where[32];
				snprintf(meant, sizeof meant, "did you mean \"%s\"?", keys[k]);
				snprintf(where, sizeof where, "limits.yml:%d:", line);
				/* The line is where its value begins. */
				if (!strstr(err.msg, meant) || (!strstr(err.msg, where) && at[n + 1] == ' '))
					fail_msg("line %d, %s: %s", line, keys[k], err.msg);
				tried++;
			}
		}
	assert_true(tried > 30);
}

static void every_wrong_value_is_said(void **state)
{
	(void)state;
	static const char *const bad[] = {"abc", "1.5", "-", "1e", "1e99", "1_", "9223372036854775808", "99999999999999999999999999999999999", "0x10",
		"[1]", "{a: 1}", "true", "1 2", "10KiBs", "'1 MiB x'", "-1e3.5"};
	static const char *const keys[] = {"write: {global: {max_concurrency: %s}}", "write: {default: {request: {size_bytes_limit: %s}}}",
		"write: {default: {request: {series_limit: %s}}}", "write: {tenants: {a: {request: {samples_limit: %s}}}}",
		"write: {default: {head_series_limit: %s}}", "write: {tenants: {a: {samples_per_second: %s}}}",
		"write: {default: {samples_burst: %s}}"};
	for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
		for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
			char text[256];
			struct limits *l;
			struct err err = {0};
			const char *hole = strstr(keys[k], "%s");
			snprintf(text, sizeof text, "%.*s%s%s", (int)(hole - keys[k]), keys[k], bad[i], hole + 2);
			errc rc = limits_parse("l.yml", span_cstr(text), &l, &err);
			if (rc == OK && strcmp(bad[i], "1_") == 0) {
				limits_free(l); /* YAML's own way to write 1 */
				continue;
			}
			if (rc != ERR_INVALID || !strstr(err.msg, "l.yml:1: write."))
				fail_msg("%s: %d %s", text, rc, err.msg);
		}
	/* Below nothing: only where Thanos' number has a sign. */
	static const char *const negative[] = {
		"write: {default: {head_series_limit: -1}}", "write: {default: {samples_per_second: -1}}", "write: {default: {samples_burst: -2}}"};
	for (size_t i = 0; i < 3; i++) {
		struct limits *l;
		struct err err = {0};
		assert_int_equal(limits_parse("l.yml", span_cstr(negative[i]), &l, &err), ERR_INVALID);
	}
	static const char *const whole[] = {"", " \n", "# nothing\n", "a", "[]", "write: 1", "write: []", "write: {default: 1}",
		"write: {tenants: [a]}", "write: {tenants: {a: 1}}", "write: {tenants: {a: [1]}}", "write: {default: {request: 5}}",
		"write: {global: x}", "write: {tenants: {a: {}, a: {}}}", "write: {}\n---\nwrite: {}\n",
		"write: {default: {head_series_limit: '${NO_SUCH_VARIABLE_HERE}'}}", "{write: {}, compact: {}}", "write: &a {}", "\xff"};
	for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
		struct limits *l;
		struct err err = {0};
		if (limits_parse("l.yml", span_cstr(whole[i]), &l, &err) != ERR_INVALID || !strstr(err.msg, "l.yml"))
			fail_msg("%s: %s", whole[i], err.msg);
	}
	/* Thanos' own example of an invalid file: `request` beside `default`. */
	struct limits *l;
	struct err err = {0};
	assert_int_equal(
		limits_parse("l.yml", SPAN("write:\n  global:\n    max_concurrency: 30\n  request:\n    size_bytes_limit: 1024\n"), &l, &err),
		ERR_INVALID);
	assert_non_null(strstr(err.msg, "unknown key \"request\" in write"));
}

/* A file cut anywhere is read or refused, and so is one of which any allocation fails. */
static void cut_anywhere_and_without_memory(void **state)
{
	(void)state;
	for (size_t n = 0; n <= sizeof thanos - 1; n++) {
		struct limits *l = NULL;
		struct err err = {0};
		errc rc = limits_parse("l.yml", span_of(thanos, n), &l, &err);
		assert_true(rc == OK ? l != NULL : rc == ERR_INVALID && err.msg[0]);
		limits_free(l);
	}
	for (uint64_t nth = 1;; nth++) {
		struct limits *l = NULL;
		struct err err = {0};
		fail_alloc_at(nth, false);
		errc rc = limits_parse("l.yml", span_cstr(ours), &l, &err);
		uint64_t hits = fail_alloc_off();
		assert_true(rc == OK || (rc == ERR_NOMEM && !l));
		limits_free(l);
		if (hits == 0) {
			assert_int_equal(rc, OK);
			break;
		}
	}
}

static void ten_thousand_tenants(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, LIMIT_CONFIG_BYTES);
	buf_printf(&b, "write:\n  default: {head_series_limit: 3}\n  tenants:\n");
	for (uint32_t i = 0; i < 10000; i++)
		buf_printf(&b,
			"    tenant-%u:\n      request: {size_bytes_limit: %u, series_limit: 5, samples_limit: 6}\n      samples_per_second: %u\n", i,
			i + 1, i);
	assert_false(b.failed);
	struct limits *l;
	struct err err = {0};
	assert_int_equal(limits_parse("l.yml", span_of(b.p, b.n), &l, &err), OK);
	for (uint32_t i = 0; i < 10000; i++) {
		char name[32];
		snprintf(name, sizeof name, "tenant-%u", i);
		holds(l, name, i + 1, 5, 6, 3, i, 0);
	}
	holds(l, "tenant-10000", 0, 0, 0, 3, 0, 0);
	limits_free(l);
	buf_free(&b);
}

/* ---- in force ---- */

static struct io_ops fake;
static int64_t fake_ns;
static int64_t mono_ns(void)
{
	return fake_ns;
}

struct door {
	struct sim *sim;
	const struct io_ops *real;
	struct ingest_limits *il;
};

static void put_file(const char *text)
{
	struct err err = {0};
	if (io_write_file("limits.yml", span_cstr(text), &err) != OK)
		fail_msg("%s", err.msg);
}

static void door_open(struct door *d, const char *text)
{
	struct err err = {0};
	d->sim = sim_new(3);
	put_file(text);
	d->real = io_ops;
	fake = *io_ops;
	fake.mono_ns = mono_ns;
	fake_ns = 1000000000;
	if (ingest_limits_open("limits.yml", &d->il, &err) != OK)
		fail_msg("%s", err.msg);
}

static void door_shut(struct door *d)
{
	ingest_limits_close(d->il);
	io_ops = d->real;
	sim_free(d->sim);
}

static uint64_t head_series(struct door *d, const char *tenant)
{
	return ingest_limits_now(d->il, span_cstr(tenant)).v[TENANT_HEAD_SERIES];
}

/* A change is taken at the second tick that sees it as it is, a bad one never, and what was wrong is not read twice. */
static void a_changed_file_is_read_and_a_bad_one_is_not(void **state)
{
	(void)state;
	struct door d;
	struct err err = {0};
	struct metric *good =
		metric_gauge("varve_limits_last_reload_successful", "1 when --limits.file was read the last time it changed, or is not given");
	door_open(&d, "write: {default: {head_series_limit: 1}}");
	assert_int_equal(head_series(&d, "a"), 1);
	put_file("write: {default: {head_series_limit: 2}}");
	ingest_limits_tick(d.il);
	assert_int_equal(head_series(&d, "a"), 1);
	ingest_limits_tick(d.il);
	assert_int_equal(head_series(&d, "a"), 2);
	/* While it changes at every tick it is being written. */
	for (int i = 3; i < 9; i++) {
		char text[100];
		snprintf(text, sizeof text, "write: {default: {head_series_limit: %d}}", i);
		put_file(text);
		ingest_limits_tick(d.il);
		assert_int_equal(head_series(&d, "a"), 2);
	}
	ingest_limits_tick(d.il);
	assert_int_equal(head_series(&d, "a"), 8);
	assert_true(metric_value(good) > 0);
	static const char *const bad[] = {
		"write: {default: {head_series_limt: 3}}", "", "write: {default", "write: {default: {head_series_limit: '${NOPE_NOPE}'}}"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		put_file(bad[i]);
		for (int k = 0; k < 3; k++)
			ingest_limits_tick(d.il);
		assert_int_equal(head_series(&d, "a"), 8);
		assert_true(metric_value(good) < 0.5);
		assert_int_equal(ingest_limits_read(d.il, &err), ERR_INVALID);
		assert_non_null(strstr(err.msg, "--limits.file"));
	}
	assert_int_equal(io_unlink("limits.yml", &err), OK);
	for (int k = 0; k < 3; k++)
		ingest_limits_tick(d.il);
	assert_int_equal(head_series(&d, "a"), 8);
	assert_int_equal(ingest_limits_read(d.il, &err), ERR_INVALID);
	put_file("write: {tenants: {a: {head_series_limit: 11}}}");
	ingest_limits_tick(d.il);
	ingest_limits_tick(d.il);
	assert_int_equal(head_series(&d, "a"), 11);
	assert_int_equal(head_series(&d, "b"), 0);
	assert_true(metric_value(good) > 0);
	put_file("write: {default: {head_series_limit: 12}}");
	assert_int_equal(ingest_limits_read(d.il, &err), OK); /* asked for: at once */
	assert_int_equal(head_series(&d, "a"), 12);
	door_shut(&d);

	struct ingest_limits *il = NULL;
	assert_int_equal(ingest_limits_open("no-such-directory/limits.yml", &il, &err), ERR_INVALID);
	assert_null(il);
	assert_int_equal(ingest_limits_open(NULL, &il, &err), OK);
	const struct tenant_limits none = ingest_limits_now(il, SPAN("a"));
	for (int k = 0; k < TENANT_LIMITS; k++)
		assert_int_equal(none.v[k], 0);
	assert_int_equal(ingest_limits_read(il, &err), OK);
	ingest_limits_tick(il);
	ingest_limits_close(il);
}

enum { READERS = 4, SWAPS = 300 };
struct race {
	struct ingest_limits *il;
	_Atomic bool stop;
	_Atomic uint64_t read;
};

/* Generation g says g for every number of every tenant. */
static void generation(char *text, size_t n, int g)
{
	snprintf(text, n,
		"write: {global: {max_concurrency: %d}, default: {request: {size_bytes_limit: %d, series_limit: %d, samples_limit: %d}, "
		"head_series_limit: "
		"%d,\n  samples_per_second: %d, samples_burst: %d}, tenants: {a: {}, b: {head_series_limit: %d}}}",
		g % 4, g, g, g, g, g, g, g);
}

static void *reader_main(void *arg)
{
	struct race *r = arg;
	static const char *const names[] = {"a", "b", "c"};
	for (uint64_t last = 0, i = 0; !atomic_load(&r->stop); i++) {
		const struct tenant_limits l = ingest_limits_now(r->il, span_cstr(names[i % 3]));
		for (int k = 1; k < TENANT_LIMITS; k++)
			if (l.v[k] != l.v[0])
				abort();
		if (l.v[0] < last)
			abort();
		last = l.v[0];
		atomic_fetch_add(&r->read, 1);
	}
	return NULL;
}

static void limits_are_replaced_under_readers(void **state)
{
	(void)state;
	struct door d;
	char text[600];
	pthread_t t[READERS];
	generation(text, sizeof text, 1);
	door_open(&d, text);
	struct race r = {.il = d.il};
	for (int i = 0; i < READERS; i++)
		pthread_create(&t[i], NULL, reader_main, &r);
	for (int g = 2; g < SWAPS; g++) {
		struct err err = {0};
		generation(text, sizeof text, g);
		put_file(text);
		assert_int_equal(ingest_limits_read(d.il, &err), OK);
	}
	while (atomic_load(&r.read) < 1000)
		io_posix.sleep_ms(1);
	atomic_store(&r.stop, true);
	for (int i = 0; i < READERS; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(head_series(&d, "b"), SWAPS - 1);
	door_shut(&d);
}

/* ---- one request ---- */

static errc request(
	struct door *d, const char *tenant, uint64_t size, uint64_t decoded, uint64_t series, uint64_t samples, struct admission *a, struct err *err)
{
	ingest_admit(d->il, span_cstr(tenant), a);
	errc rc = ingest_admit_sizes(a, size, decoded, err);
	if (rc == OK)
		rc = ingest_admit_counts(a, series, samples, err);
	ingest_admit_end(a, rc == OK);
	return rc;
}

static void refusals_say_what_to_change(void **state)
{
	(void)state;
	struct door d;
	struct admission a;
	door_open(&d, "write: {default: {request: {size_bytes_limit: 100, series_limit: 10, samples_limit: 20}}, tenants: {acme: {request: "
		      "{series_limit: 3}}}}");
	static const struct {
		uint64_t size, decoded, series, samples;
		const char *tenant, *says[4];
	} t[] = {
		{100, 100, 10, 20, "x", {NULL}},
		{100, 100, 3, 20, "acme", {NULL}},
		{101, 50, 1, 1, "x", {"tenant x", "101 bytes as sent", "at most 100", "write.default.request.size_bytes_limit"}},
		{50, 101, 1, 1, "x", {"tenant x", "101 bytes decompressed", "at most 100", "write.default.request.size_bytes_limit"}},
		{1, 1, 11, 1, "x", {"tenant x", "11 series", "at most 10", "write.default.request.series_limit"}},
		{1, 1, 1, 21, "x", {"tenant x", "21 samples", "at most 20", "write.default.request.samples_limit"}},
		{1, 1, 4, 1, "acme", {"tenant acme", "4 series", "at most 3", "write.tenants.acme.request.series_limit"}},
		{1, 1, 1, 21, "acme", {"tenant acme", "21 samples", "at most 20", "write.default.request.samples_limit"}},
	};
	for (size_t i = 0; i < sizeof t / sizeof *t; i++) {
		struct err err = {0};
		errc rc = request(&d, t[i].tenant, t[i].size, t[i].decoded, t[i].series, t[i].samples, &a, &err);
		assert_int_equal(rc, t[i].says[0] ? ERR_LIMIT : OK);
		assert_int_equal(errid_of(err.id), t[i].says[0] ? ERRID_TENANT_REQUEST_LIMIT : ERRID_NONE);
		for (int k = 0; k < 4 && t[i].says[0]; k++)
			if (!strstr(err.msg, t[i].says[k]))
				fail_msg("%s is not in: %s", t[i].says[k], err.msg);
	}
	assert_int_equal(errid_status(ERRID_TENANT_REQUEST_LIMIT), 429);
	door_shut(&d);
}

/* ---- the rate ---- */

static uint64_t rnd(uint64_t *r)
{
	*r ^= *r << 13;
	*r ^= *r >> 7;
	*r ^= *r << 17;
	return *r;
}

enum { STEPS = 20000 };
struct stored {
	double at_s;
	uint64_t n;
};

/* Requests of random sizes at random times. Over every stretch between two stored ones: at most burst + rate x time + the last one's samples. What is
 * refused is refused only when the bucket is empty, and passes after the wait that was said. */
static void rate_over(uint64_t rate, uint64_t burst, uint64_t most, uint64_t seed)
{
	struct door d;
	struct admission a;
	char text[200];
	static struct stored v[STEPS];
	size_t n = 0, refused = 0;
	double tokens = (double)burst;
	uint64_t r = seed;
	int64_t start = 0;
	snprintf(text, sizeof text, "write: {tenants: {t: {samples_per_second: %llu, samples_burst: %llu}}}", (unsigned long long)rate,
		(unsigned long long)burst);
	door_open(&d, text);
	io_ops = &fake;
	start = fake_ns;
	for (int i = 0; i < STEPS; i++) {
		struct err err = {0};
		int64_t step = (int64_t)(rnd(&r) % (600000000ull * most / rate + 1));
		fake_ns += step;
		tokens += (double)step / 1e9 * (double)rate;
		tokens = tokens > (double)burst ? (double)burst : tokens;
		uint64_t samples = 1 + rnd(&r) % most;
		errc rc = request(&d, "t", 1, 1, 1, samples, &a, &err);
		if (tokens > 0.001 || tokens < -0.001)
			assert_int_equal(rc, tokens > 0 ? OK : ERR_LIMIT);
		if (rc == OK) {
			tokens -= (double)samples;
			v[n++] = (struct stored){(double)(fake_ns - start) / 1e9, samples};
			continue;
		}
		refused++;
		assert_int_equal(errid_of(err.id), ERRID_TENANT_RATE);
		assert_true(a.retry_s >= 1 && (double)(a.retry_s - 1) * (double)rate <= -tokens + 0.001);
		if (i % 7 == 0) {
			fake_ns += a.retry_s * 1000000000;
			assert_int_equal(request(&d, "t", 1, 1, 1, 1, &a, &err), OK);
			ingest_limits_close(d.il); /* the model does not follow it there: a fresh one */
			assert_int_equal(ingest_limits_open("limits.yml", &d.il, &err), OK);
			tokens = (double)burst;
			n = 0;
			start = fake_ns;
		}
	}
	assert_true(refused > STEPS / 20);
	for (size_t i = 0; i < n; i += 1 + n / 200) {
		double sum = 0;
		for (size_t k = i; k < n; k++) {
			assert_true(sum <= (double)burst + (v[k].at_s - v[i].at_s) * (double)rate + 0.01);
			sum += (double)v[k].n;
		}
	}
	door_shut(&d);
}

static void no_more_than_the_rate(void **state)
{
	(void)state;
	rate_over(1000, 5000, 2000, 88172645463325252ull);
	rate_over(10, 1, 500, 1234567);
	rate_over(1, 60, 3, 987654321);
	rate_over(1000000, 100000, 300000, 42);
}

static void a_minutes_worth_unless_said(void **state)
{
	(void)state;
	struct door d;
	struct admission a;
	struct err err = {0};
	door_open(&d, "write: {default: {samples_per_second: 100}}");
	io_ops = &fake;
	for (int i = 0; i < 60; i++)
		assert_int_equal(request(&d, "t", 1, 1, 1, 100, &a, &err), OK);
	assert_int_equal(request(&d, "t", 1, 1, 1, 1, &a, &err), ERR_LIMIT);
	static const char *const says[] = {
		"tenant t", "100 samples a second", "write.default.samples_per_second", "a minute's worth", "try again in 1 s"};
	for (size_t i = 0; i < sizeof says / sizeof *says; i++)
		if (!strstr(err.msg, says[i]))
			fail_msg("%s is not in: %s", says[i], err.msg);
	/* Another tenant has its own. */
	assert_int_equal(request(&d, "u", 1, 1, 1, 6000, &a, &err), OK);
	/* What could not be stored is not counted. */
	fake_ns += 1000000000;
	for (int i = 0; i < 1000; i++) {
		ingest_admit(d.il, SPAN("t"), &a);
		assert_int_equal(ingest_admit_sizes(&a, 1, 1, &err), OK);
		assert_int_equal(ingest_admit_counts(&a, 1, 100, &err), OK);
		ingest_admit_end(&a, false);
	}
	assert_int_equal(request(&d, "t", 1, 1, 1, 100, &a, &err), OK);
	assert_int_equal(request(&d, "t", 1, 1, 1, 1, &a, &err), ERR_LIMIT);
	/* Requests without samples (metadata alone) have nothing to take, and are told to wait all the same while nothing is left. */
	assert_int_equal(request(&d, "t", 1, 1, 0, 0, &a, &err), ERR_LIMIT);
	/* A new rate holds from the next request on; what was taken on credit stays taken. */
	put_file("write: {default: {samples_per_second: 100000, samples_burst: 5}}");
	assert_int_equal(ingest_limits_read(d.il, &err), OK);
	fake_ns += 1000000;
	assert_int_equal(request(&d, "t", 1, 1, 1, 5000, &a, &err), OK);
	assert_int_equal(request(&d, "t", 1, 1, 1, 1, &a, &err), ERR_LIMIT);
	put_file("write: {}");
	assert_int_equal(ingest_limits_read(d.il, &err), OK);
	assert_int_equal(request(&d, "t", 1, 1, 1, 100000000, &a, &err), OK);
	door_shut(&d);
}

/* Names that come and go leave nothing behind: a hundred thousand of them, each heard of once. */
static void only_who_sent_lately_is_remembered(void **state)
{
	(void)state;
	struct door d;
	struct admission a;
	door_open(&d, "write: {default: {samples_per_second: 10, samples_burst: 10}}");
	io_ops = &fake;
	size_t most = 0;
	for (uint32_t i = 0; i < 100000; i++) {
		struct err err = {0};
		char name[32];
		snprintf(name, sizeof name, "tenant-%u", i);
		fake_ns += 1000000; /* full again after 0.1 s: a hundred tenants are on the way at any time */
		assert_int_equal(request(&d, name, 1, 1, 1, 1, &a, &err), OK);
		if (i % 1000 == 999) {
			size_t n = ingest_limits_rates(d.il);
			most = n > most ? n : most;
		}
	}
	assert_in_range(most, 64, 4096);
	/* Without memory for one more: 503, and nothing is forgotten. */
	for (uint64_t nth = 1; nth < 6; nth++) {
		struct err err = {0};
		char name[32];
		snprintf(name, sizeof name, "late-%llu", (unsigned long long)nth);
		fail_alloc_at(1, true);
		errc rc = request(&d, name, 1, 1, 1, 1, &a, &err);
		fail_alloc_off();
		assert_int_equal(rc, ERR_NOMEM);
		assert_int_equal(errid_status(errid_of(err.id)), 503);
	}
	door_shut(&d);
}

struct sender {
	struct door *d;
	uint64_t stored;
};
enum { SENDERS = 4, TRIES = 3000 };

static void *sender_main(void *arg)
{
	struct sender *s = arg;
	for (int i = 0; i < TRIES; i++) {
		struct admission a;
		struct err err = {0};
		if (request(s->d, "t", 1, 1, 1, 10, &a, &err) == OK)
			s->stored += 10;
	}
	return NULL;
}

/* Many at once: the bucket is emptied once, and one request at most went on credit. */
static void one_bucket_for_all_threads(void **state)
{
	(void)state;
	struct door d;
	pthread_t t[SENDERS];
	struct sender s[SENDERS];
	uint64_t stored = 0;
	door_open(&d, "write: {default: {samples_per_second: 1, samples_burst: 50005}}");
	io_ops = &fake; /* its clock stands still */
	for (int i = 0; i < SENDERS; i++) {
		s[i] = (struct sender){.d = &d};
		pthread_create(&t[i], NULL, sender_main, &s[i]);
	}
	for (int i = 0; i < SENDERS; i++) {
		pthread_join(t[i], NULL);
		stored += s[i].stored;
	}
	assert_int_equal(stored, 50010);
	door_shut(&d);
}

/* ---- how many at once ---- */

struct worker {
	struct door *d;
	_Atomic int *inside, *most;
};

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	for (int i = 0; i < 300; i++) {
		struct admission a;
		struct err err = {0};
		ingest_admit(w->d->il, SPAN("t"), &a);
		if (ingest_admit_sizes(&a, 1, 1, &err) != OK)
			abort();
		int n = atomic_fetch_add(w->inside, 1) + 1, most = atomic_load(w->most);
		while (n > most && !atomic_compare_exchange_weak(w->most, &most, n))
			;
		if (i % 5 == 0)
			io_posix.sleep_ms(0);
		atomic_fetch_sub(w->inside, 1);
		ingest_admit_end(&a, i % 2 == 0);
	}
	return NULL;
}

static void no_more_at_once_than_said(void **state)
{
	(void)state;
	for (int max = 0; max <= 5; max++) {
		struct door d;
		char text[100];
		pthread_t t[8];
		_Atomic int inside = 0, most = 0;
		snprintf(text, sizeof text, "write: {global: {max_concurrency: %d}}", max);
		door_open(&d, text);
		struct worker w = {&d, &inside, &most};
		for (int i = 0; i < 8; i++)
			pthread_create(&t[i], NULL, worker_main, &w);
		/* Replaced by the same, over and over, while some wait. */
		for (int i = 0; i < 20; i++) {
			struct err err = {0};
			assert_int_equal(ingest_limits_read(d.il, &err), OK);
			io_posix.sleep_ms(1);
		}
		for (int i = 0; i < 8; i++)
			pthread_join(t[i], NULL);
		assert_int_equal(inside, 0);
		assert_true(max == 0 || most <= max);
		door_shut(&d);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(thanos_example_is_read_as_it_is),
		cmocka_unit_test(every_wrong_key_is_said),
		cmocka_unit_test(every_wrong_value_is_said),
		cmocka_unit_test(cut_anywhere_and_without_memory),
		cmocka_unit_test(ten_thousand_tenants),
		cmocka_unit_test(a_changed_file_is_read_and_a_bad_one_is_not),
		cmocka_unit_test(limits_are_replaced_under_readers),
		cmocka_unit_test(refusals_say_what_to_change),
		cmocka_unit_test(no_more_than_the_rate),
		cmocka_unit_test(a_minutes_worth_unless_said),
		cmocka_unit_test(only_who_sent_lately_is_remembered),
		cmocka_unit_test(one_bucket_for_all_threads),
		cmocka_unit_test(no_more_at_once_than_said),
	};
	log_setup(LOG_ERROR, LOG_LOGFMT);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
