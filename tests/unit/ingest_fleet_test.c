/* Limits of a fleet. Series: for random rings, zones, factors and shuffle sharding, a tenant at its limit is refused nowhere, and all nodes together take no more than a tenth above
 * it; a ring that grows refuses nothing. Rates: nodes that tell each other hold, together, what the file says, however unevenly a tenant's senders are spread. The board takes no
 * nonsense.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "cluster/ring.h"
#include "ingest/ingest_int.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/sim.h"

static uint64_t rnd(uint64_t *r)
{
	*r ^= *r << 13;
	*r ^= *r >> 7;
	*r ^= *r << 17;
	return *r;
}

static struct io_ops fake;
static int64_t fake_ns;
static int64_t mono_ns(void)
{
	return fake_ns;
}

enum { NODES_MAX = 24 };
struct fleet {
	struct sim *sim;
	const struct io_ops *real;
	struct ingest *nodes[NODES_MAX];
	int n;
};

static void fleet_open(struct fleet *f, int n, const char *limits)
{
	struct err err = {0};
	*f = (struct fleet){.sim = sim_new(7), .real = io_ops, .n = n};
	assert_int_equal(io_write_file("limits.yml", span_cstr(limits), &err), OK);
	fake = *io_ops;
	fake.mono_ns = mono_ns;
	fake_ns = 1000000000;
	io_ops = &fake;
	for (int i = 0; i < n; i++) {
		f->nodes[i] = calloc(1, sizeof *f->nodes[i]);
		f->nodes[i]->cfg.ring_remember_ms = 3600000;
		assert_int_equal(ingest_limits_open("limits.yml", &f->nodes[i]->limits, &err), OK);
		assert_int_equal(ingest_fleet_open(&f->nodes[i]->fleet, &err), OK);
	}
}

static void fleet_close(struct fleet *f)
{
	for (int i = 0; i < f->n; i++) {
		ingest_fleet_close(f->nodes[i]->fleet);
		ingest_limits_close(f->nodes[i]->limits);
		free(f->nodes[i]);
	}
	io_ops = f->real;
	sim_free(f->sim);
}

/* ---- series ---- */

static struct ring_set *rings(int n, int zones, uint32_t factor, const char *more)
{
	struct buf b;
	struct err err = {0};
	struct ring_set *set;
	buf_init(&b, MIB);
	buf_printf(&b, "[{\"hashring\":\"ci\",\"tenants\":[\"ci\"],\"endpoints\":[");
	for (uint32_t i = 0; i < factor; i++)
		buf_printf(&b, "%s\"node-%u:19291\"", i ? "," : "", i);
	buf_printf(&b, "]},{%s\"endpoints\":[", more);
	for (int i = 0; i < n; i++) {
		buf_printf(&b, "%s{\"address\":\"node-%d:19291\"", i ? "," : "", i);
		if (zones > 1)
			buf_printf(&b, ",\"az\":\"z%d\"", i % zones);
		buf_printf(&b, "}");
	}
	buf_printf(&b, "]}]");
	const struct ring_options opt = {.algorithm = RING_KETAMA, .replication_factor = factor};
	if (ring_set_parse("rings", span_of(b.p, b.n), &opt, &set, &err) != OK)
		fail_msg("%s", err.msg);
	buf_free(&b);
	return set;
}

static void told(struct fleet *f, struct ring_set *set)
{
	struct err err = {0};
	for (int i = 0; i < f->n; i++) {
		char address[32];
		uint32_t self;
		snprintf(address, sizeof address, "node-%d:19291", i);
		if (!ring_set_find(set, span_cstr(address), &self))
			self = UINT32_MAX;
		assert_int_equal(ingest_fleet_rings(f->nodes[i], set, self, &err), OK);
	}
}

static uint64_t head_max(struct fleet *f, int node, const char *tenant)
{
	const struct tenant_limits l = ingest_limits_now(f->nodes[node]->limits, span_cstr(tenant));
	return ingest_head_max(f->nodes[node], span_cstr(tenant), &l);
}

static int node_of(const struct ring_set *set, uint32_t no)
{
	int i = -1;
	sscanf(ring_set_node(set, no)->address.p, "node-%d:", &i);
	assert_in_range(i, 0, NODES_MAX - 1);
	return i;
}

/* So many series of the tenant, placed. */
static void place(struct ring_set *set, const char *tenant, uint64_t n, uint64_t *counts)
{
	struct ring *ring;
	struct err err = {0};
	struct ring_hash h;
	assert_int_equal(ring_for_tenant(set, span_cstr(tenant), &ring, &err), OK);
	assert_non_null(ring);
	ring_hash_begin(&h, span_cstr(tenant));
	memset(counts, 0, NODES_MAX * sizeof *counts);
	for (uint64_t i = 0; i < n; i++) {
		char pod[32];
		uint32_t owners[LIMIT_RING_FACTOR];
		snprintf(pod, sizeof pod, "pod-%llu", (unsigned long long)i);
		ring_hash_add(&h, SPAN("__name__"), SPAN("up"));
		ring_hash_add(&h, SPAN("pod"), span_cstr(pod));
		ring_owners(ring, ring_hash_end(&h), owners);
		for (uint32_t k = 0; k < ring_set_factor(set); k++)
			counts[node_of(set, owners[k])]++;
	}
	ring_unref(ring);
}

static void a_limit_is_the_fleets(void **state)
{
	(void)state;
	static const struct {
		int n, zones;
		uint32_t factor;
		const char *more, *tenant;
	} cases[] = {
		{1, 1, 1, "", "big"},
		{3, 1, 1, "", "big"},
		{3, 1, 3, "", "big"},
		{5, 1, 2, "", "big"},
		{9, 3, 3, "", "big"},
		{20, 1, 3, "", "big"},
		{20, 1, 1, "", "small"},
		{20, 3, 3, "\"shuffle_sharding_config\":{\"shard_size\":6},", "big"},
		{20, 1, 3, "\"shuffle_sharding_config\":{\"shard_size\":3},", "big"},
		{12, 1, 2, "\"algorithm\":\"hashmod\",", "big"},
		{12, 1, 2, "", "ci"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct fleet f;
		uint64_t counts[NODES_MAX], sum = 0, limit = strcmp(cases[i].tenant, "small") == 0 ? 2000 : 50000;
		fleet_open(&f, cases[i].n,
			"write: {default: {head_series_limit: 50000}, tenants: {small: {head_series_limit: 2000}, free: {head_series_limit: 0}}}");
		struct ring_set *set = rings(cases[i].n, cases[i].zones, cases[i].factor, cases[i].more);
		for (int k = 0; k < f.n; k++)
			assert_int_equal(head_max(&f, k, cases[i].tenant), limit); /* alone */
		told(&f, set);
		place(set, cases[i].tenant, limit, counts);
		for (int k = 0; k < f.n; k++) {
			uint64_t most = head_max(&f, k, cases[i].tenant);
			assert_true(most <= limit);
			if (counts[k] > most)
				fail_msg("case %zu: node %d has %llu of %llu series, and may hold %llu", i, k, (unsigned long long)counts[k],
					(unsigned long long)limit, (unsigned long long)most);
			sum += counts[k] > 0 ? most : 0;
			assert_int_equal(head_max(&f, k, "free"), 0);
		}
		assert_true(sum >= limit * cases[i].factor);
		if ((double)sum > (double)(limit * cases[i].factor) * (limit > 10000 ? 1.1 : 1.35) + f.n)
			fail_msg("case %zu: together %llu", i, (unsigned long long)sum);
		ring_set_unref(set);
		fleet_close(&f);
	}
}

/* 3 nodes become 9, then 3 again: what a node took before it may keep, and new series that are within the limit pass, until its old windows are gone. */
static void growing_refuses_nothing(void **state)
{
	(void)state;
	struct fleet f;
	uint64_t few[NODES_MAX], many[NODES_MAX];
	fleet_open(&f, 9, "write: {default: {head_series_limit: 30000}}");
	struct ring_set *three = rings(3, 1, 1, ""), *nine = rings(9, 1, 1, "");
	place(three, "t", 30000, few);
	place(nine, "t", 30000, many);
	told(&f, three);
	told(&f, nine);
	for (int k = 0; k < 9; k++)
		assert_true(head_max(&f, k, "t") >= few[k] && head_max(&f, k, "t") >= many[k]);
	fake_ns += 3599000000000;
	assert_true(head_max(&f, 0, "t") >= few[0]);
	fake_ns += 2000000000;
	assert_true(head_max(&f, 0, "t") < few[0] && head_max(&f, 0, "t") >= many[0]);
	told(&f, three);
	for (int k = 0; k < 3; k++)
		assert_true(head_max(&f, k, "t") >= few[k]);
	/* Rings that change a hundred times: the newest are what counts, and nothing grows. */
	for (int i = 0; i < 100; i++) {
		told(&f, i % 2 ? three : nine);
		assert_true(head_max(&f, 0, "t") >= few[0]);
	}
	struct err err = {0};
	for (int k = 0; k < 9; k++)
		assert_int_equal(ingest_fleet_rings(f.nodes[k], NULL, UINT32_MAX, &err), OK);
	fake_ns += 3601000000000;
	for (int k = 0; k < 9; k++) {
		assert_int_equal(ingest_fleet_rings(f.nodes[k], NULL, UINT32_MAX, &err), OK);
		assert_int_equal(head_max(&f, k, "t"), 30000);
	}
	/* Without memory what was known stays. */
	told(&f, nine);
	uint64_t before = head_max(&f, 0, "t");
	for (uint64_t nth = 1;; nth++) {
		fail_alloc_at(nth, true);
		errc rc = ingest_fleet_rings(f.nodes[0], three, 0, &err);
		if (fail_alloc_off() == 0)
			break;
		assert_int_equal(rc, ERR_NOMEM);
		assert_int_equal(head_max(&f, 0, "t"), before);
	}
	ring_set_unref(three);
	ring_set_unref(nine);
	fleet_close(&f);
}

/* ---- rates ---- */

static void exchange(struct fleet *f, int boards)
{
	struct err err = {0};
	for (int i = 0; i < f->n; i++) {
		struct buf said, heard;
		buf_init(&said, MIB);
		assert_int_equal(ingest_rates_say(f->nodes[i], &said, &err), OK);
		for (int b = 0; b < boards && said.n > 0; b++) {
			buf_init(&heard, MIB);
			if (ingest_rates_board(f->nodes[b], span_of(said.p, said.n), &heard, &err) != OK)
				fail_msg("%s", err.msg);
			ingest_rates_heard(f->nodes[i], span_of(heard.p, heard.n));
			buf_free(&heard);
		}
		buf_free(&said);
	}
}

static bool sent(struct ingest *in, const char *tenant, uint64_t samples)
{
	struct admission a;
	struct err err = {0};
	ingest_admit(in->limits, span_cstr(tenant), &a);
	bool ok = ingest_admit_sizes(&a, samples * 3, samples * 20, &err) == OK && ingest_admit_counts(&a, 1, samples, &err) == OK;
	ingest_admit_end(&a, ok);
	return ok;
}

/* `demand` samples a second at each node in requests of 100, ten seconds to settle, then 60: what was stored a second. */
static double stored_per_s(struct fleet *f, const double *demand, int boards, double *refused)
{
	double owed[NODES_MAX] = {0}, stored = 0, over = 0;
	for (int ms = 0; ms < 130000; ms += 10) {
		fake_ns += 10000000;
		for (int i = 0; i < f->n; i++) {
			owed[i] += demand[i] / 100;
			for (; owed[i] >= 100; owed[i] -= 100) {
				bool ok = sent(f->nodes[i], "t", 100);
				if (ms >= 70000) {
					stored += ok ? 100 : 0;
					over += ok ? 0 : 100;
				}
			}
		}
		if (ms % 1000 == 0)
			exchange(f, boards);
	}
	*refused = over / 60;
	return stored / 60;
}

static void rates_add_up(void **state)
{
	(void)state;
	uint64_t r = 0x1234567;
	for (int round = 0; round < 24; round++) {
		struct fleet f;
		double demand[NODES_MAX] = {0}, all = 0, refused;
		int n = 1 + (int)(rnd(&r) % 6), boards = 1 + (int)(rnd(&r) % (uint64_t)n);
		/* Even, all at one, and anything between; from half of the rate to ten times it. */
		double total = 10000 * (round % 3 == 0 ? 0.5 : round % 3 == 1 ? 2 : 10);
		fleet_open(&f, n, "write: {default: {samples_per_second: 10000, samples_burst: 30000}}");
		for (int i = 0; i < n; i++)
			all += demand[i] = round % 4 == 0 ? 1 : round % 4 == 1 ? (i == 0 ? 1 : 0) : 0.02 + (double)(rnd(&r) % 1000) / 1000;
		for (int i = 0; i < n; i++)
			demand[i] *= total / all;
		double got = stored_per_s(&f, demand, boards, &refused), want = total < 10000 ? total : 10000;
		if (fabs(got - want) > want / 10)
			fail_msg("round %d: %d nodes, %.0f a second sent, %.0f stored, %.0f wanted", round, n, total, got, want);
		if (total < 10000)
			assert_true(refused == 0);
		fleet_close(&f);
	}
}

/* A sender that goes over to another router within its rate loses nothing there. */
static void a_sender_may_move(void **state)
{
	(void)state;
	struct fleet f;
	double demand[NODES_MAX] = {9000, 0, 0}, refused;
	fleet_open(&f, 3, "write: {default: {samples_per_second: 10000, samples_burst: 100000}}");
	assert_true(fabs(stored_per_s(&f, demand, 2, &refused) - 9000) < 100 && refused == 0);
	for (int i = 1; i < 3; i++) {
		double owed = 0;
		for (int ms = 0; ms < 30000; ms += 10) {
			fake_ns += 10000000;
			for (owed += 90; owed >= 100; owed -= 100)
				assert_true(sent(f.nodes[i], "t", 100));
			if (ms % 1000 == 990)
				exchange(&f, 2);
		}
	}
	fleet_close(&f);
}

/* ---- the board ---- */

static errc board(struct fleet *f, const char *text, struct buf *out, struct err *err)
{
	buf_clear(out);
	return ingest_rates_board(f->nodes[0], span_cstr(text), out, err);
}

static void the_board_adds_and_forgets(void **state)
{
	(void)state;
	struct fleet f;
	struct buf out;
	struct err err = {0};
	fleet_open(&f, 1, "write: {}");
	buf_init(&out, MIB);
	assert_int_equal(board(&f, "varve-rates 1 00000000000000aa\na 10\nb 20\n", &out, &err), OK);
	assert_true(span_is(span_of(out.p, out.n), "varve-rates 1 1\na 10\nb 20\n"));
	assert_int_equal(board(&f, "varve-rates 1 00000000000000bb\nb 5\nc 1\n", &out, &err), OK);
	assert_true(span_is(span_of(out.p, out.n), "varve-rates 1 2\nb 25\nc 1\n"));
	assert_int_equal(board(&f, "varve-rates 1 00000000000000aa\nb 1\nc 1\n", &out, &err), OK); /* in place of what it said before */
	assert_true(span_is(span_of(out.p, out.n), "varve-rates 1 2\nb 6\nc 2\n"));
	fake_ns += 9000000000;
	assert_int_equal(board(&f, "varve-rates 1 00000000000000bb\nc 1\n", &out, &err), OK);
	fake_ns += 2000000000;
	assert_int_equal(board(&f, "varve-rates 1 00000000000000cc\nb 1\nc 1\n", &out, &err), OK);
	assert_true(span_is(span_of(out.p, out.n), "varve-rates 1 2\nb 1\nc 2\n")); /* aa was not heard of for 11 s */
	static const char *const bad[] = {"", "varve-rates 1 00aa\na 1\n", "varve-rates 2 00000000000000aa\na 1\n",
		"varve-rates 1 00000000000000AA\n", "varve-rates 1 00000000000000aa\nb 1\na 1\n", "varve-rates 1 00000000000000aa\na 1\na 1\n",
		"varve-rates 1 00000000000000aa\n../a 1\n", "varve-rates 1 00000000000000aa\na -1\n", "varve-rates 1 00000000000000aa\na\n",
		"varve-rates 1 00000000000000aa\na 1 2\n", "varve-rates 1 00000000000000aa"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		assert_int_equal(board(&f, bad[i], &out, &err), ERR_INVALID);
		assert_int_equal(errid_of(err.id), ERRID_PEER_FRAME);
	}
	for (int i = 0; i < LIMIT_RATES_NODES + 5; i++) {
		char text[64];
		snprintf(text, sizeof text, "varve-rates 1 %016x\na 1\n", i + 1000);
		assert_int_equal(board(&f, text, &out, &err), i < LIMIT_RATES_NODES - 2 ? OK : ERR_LIMIT);
	}
	/* Answers that are none do nothing. */
	ingest_rates_heard(f.nodes[0], SPAN(""));
	ingest_rates_heard(f.nodes[0], SPAN("varve-rates 1 0\na 1\n"));
	ingest_rates_heard(f.nodes[0], SPAN("varve-rates 1 99999999999999999999\na 1\n"));
	buf_free(&out);
	fleet_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_limit_is_the_fleets),
		cmocka_unit_test(growing_refuses_nothing),
		cmocka_unit_test(rates_add_up),
		cmocka_unit_test(a_sender_may_move),
		cmocka_unit_test(the_board_adds_and_forgets),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
