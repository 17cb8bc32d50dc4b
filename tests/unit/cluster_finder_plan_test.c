/* From what members say to the ring of them: a table of cases, and random fleets against what must always hold. What --peers may say, and what it may not. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/cluster_finder_int.h"
#include "cluster/ring.h"
#include "tests/support/fail_alloc.h"

enum { HOUR = 3600000 };

/* A member as a line says it: "a in active" ... Words: in (the ring), named, one of the states, silent or silent:<minutes>, router, new (not asked yet). */
static struct roster_candidate member(const char *line)
{
	static char addresses[4096][16];
	static size_t n;
	char *address = addresses[n++ % 4096];
	size_t len = strcspn(line, " ");
	snprintf(address, 16, "%.*s", (int)len, line);
	struct roster_candidate c = {.node = {.address = span_cstr(address), .answers = true, .stores = true}, .asked = true};
	char rest[128];
	snprintf(rest, sizeof rest, "%s", line + len);
	char *save = NULL;
	for (const char *w = strtok_r(rest, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
		if (strcmp(w, "in") == 0)
			c.node.in_ring = true;
		else if (strcmp(w, "named") == 0)
			c.wanted = true;
		else if (strcmp(w, "router") == 0)
			c.node.stores = false;
		else if (strcmp(w, "new") == 0)
			c.asked = c.node.answers = false;
		else if (strncmp(w, "silent", 6) == 0) {
			c.node.answers = false;
			c.silent_ms = w[6] ? atoi(w + 7) * 60000 : 1000;
		} else {
			c.node.state = node_state_of(w);
			assert_true(c.node.state != NODE_UNKNOWN);
		}
	}
	return c;
}

static void the_ring_is_of_those_that_can_serve(void **st)
{
	(void)st;
	static const struct {
		const char *members[8], *ring; /* NULL: none; "a b" */
		uint32_t factor;
		bool blind; /* a name was not looked up */
	} cases[] = {
		/* the first ring */
		{{"a named active", "b named active", "c named active"}, "a b c", 3, false},
		{{"a named active", "b named active", "c named joining"}, NULL, 3, false},
		{{"a named active", "b named active", "c named active", "d named joining", "e named silent"}, "a b c", 3, false},
		{{"a named active", "b named active", "c named active", "d named new"}, NULL, 3, false}, /* everybody was asked once */
		{{"a named active", "b named active router", "c named active"}, NULL, 3, false},
		{{"a named active"}, "a", 1, false},
		{{"a named draining", "b named active"}, "b", 1, false},
		{{NULL}, NULL, 1, false},
		/* a node comes when it is ready */
		{{"a in named active", "b in named active", "c named active"}, "a b c", 2, false},
		{{"a in named active", "b in named active", "c named joining"}, "a b", 2, false},
		{{"a in named active", "b in named active", "c named silent"}, "a b", 2, false},
		{{"a in named active", "b in named active", "c named new"}, "a b", 2, false},
		/* crashed is not gone, and neither is who starts again */
		{{"a in named active", "b in named active", "c in named active silent"}, "a b c", 2, false},
		{{"a in named active", "b in named active", "c in named joining"}, "a b c", 2, false},
		{{"a in named active", "b in named active", "c in named active silent:59"}, "a b c", 2, false},
		{{"a in named active", "b in named active", "c in named active silent:61"}, "a b", 2, false},
		{{"a in named active", "b in named active", "c in active silent"}, "a b", 2, false},
		{{"a in named active", "b in named active", "c in active silent"}, "a b c", 2, true}, /* the name service does not say */
		{{"a in named active", "b in named active", "c in active"}, "a b c", 2, false},	      /* it answers, whatever names say */
		/* it is rather this node that sees nobody */
		{{"a in named active", "b in named active silent:90", "c in named active silent:90"}, "a b c", 1, false},
		{{"a in named active", "b in named active", "c in named active silent:90", "d in named active silent:90"}, "a b", 1, false},
		/* leaving */
		{{"a in named active", "b in named active", "c in named draining"}, "a b", 2, false},
		{{"a in named active", "b in named active", "c in named draining silent"}, "a b", 2, false},
		{{"a in named active", "b in named active", "c in named drained silent"}, "a b", 2, false},
		/* never fewer than the factor */
		{{"a in named active", "b in named active", "c in named draining"}, "a b c", 3, false},
		{{"a in named active", "b in named drained silent", "c in named draining"}, "a c", 2, false},
		{{"a in named active", "b in named drained silent", "c in active silent"}, "a c", 2, false},
		{{"a in named active", "b in named drained silent", "c named active"}, "a c", 2, false},
		/* from a router back */
		{{"a in named active", "b in named active", "c in named active router"}, "a b", 2, false},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct roster_candidate v[8];
		struct arena a;
		struct finder_plan plan;
		char ring[64] = "";
		size_t n = 0;
		for (; cases[i].members[n]; n++)
			v[n] = member(cases[i].members[n]);
		arena_init(&a, MIB);
		const struct finder_view view = {v, n, true, !cases[i].blind, cases[i].factor, HOUR};
		assert_int_equal(finder_plan(&view, &a, &plan, NULL), OK);
		for (size_t k = 0; plan.text.p && k < n; k++)
			if (plan.v[k].in)
				snprintf(ring + strlen(ring), sizeof ring - strlen(ring), "%s%.*s", *ring ? " " : "", SPAN_ARG(v[k].node.address));
		if (!cases[i].ring != !plan.text.p || (cases[i].ring && strcmp(ring, cases[i].ring) != 0))
			fail_msg("case %zu: \"%s\", not \"%s\"", i, plan.text.p ? ring : "no ring", cases[i].ring ? cases[i].ring : "none");
		assert_true(plan.text.p || plan.waits || n == 0);
		arena_free(&a);
	}
}

/* What must hold, whatever a fleet is like. */
static void random_fleets(void **st)
{
	(void)st;
	const char *s = getenv("VARVE_SEED"), *x = getenv("VARVE_FULL");
	uint64_t seed = s ? strtoull(s, NULL, 10) : io_random_u64() >> 16, state = seed;
	printf("seed %" PRIu64 "\n", seed);
	for (int round = 0; round < (x && *x == '1' ? 200000 : 5000); round++) {
		enum { MOST = 12 };
		struct roster_candidate v[MOST];
		char names[MOST][8];
		struct arena a;
		struct finder_plan plan, again;
		state = state * 6364136223846793005u + 1442695040888963407u;
		size_t n = state >> 33 & 7, in = 0, able = 0, best = 0;
		uint32_t factor = 1 + (uint32_t)(state >> 40 & 3);
		bool ring = state >> 50 & 1, looked = state >> 51 & 1;
		for (size_t i = 0; i < n; i++) {
			state = state * 6364136223846793005u + 1442695040888963407u;
			snprintf(names[i], sizeof names[i], "n%zu:1", i);
			v[i] = (struct roster_candidate){.node = {.address = span_cstr(names[i]),
								 .in_ring = ring && (state >> 33 & 3),
								 .answers = state >> 36 & 1,
								 .stores = (state >> 38 & 7) != 0,
								 .state = (enum node_state)((state >> 42 & 15) % 5)},
				.wanted = state >> 48 & 1,
				.asked = true,
				.silent_ms = 0};
			v[i].silent_ms = v[i].node.answers ? 0 : (int64_t)(state >> 52 & 3) * HOUR;
			v[i].wanted |= !v[i].node.in_ring;
			best += v[i].node.in_ring && v[i].node.stores;
		}
		arena_init(&a, MIB);
		const struct finder_view view = {v, n, true, looked, factor, HOUR};
		assert_int_equal(finder_plan(&view, &a, &plan, NULL), OK);
		assert_int_equal(finder_plan(&view, &a, &again, NULL), OK);
		assert_true(span_eq(plan.text, again.text));
		bool had = false;
		for (size_t i = 0; i < n; i++) {
			const struct roster_node *m = &v[i].node;
			bool serves = m->answers && m->stores && m->state == NODE_ACTIVE;
			in += plan.v[i].in;
			able += serves;
			had |= m->in_ring;
			assert_true(!plan.v[i].in || m->stores);
			assert_true(!plan.v[i].in || serves || m->in_ring); /* nobody comes who is not ready */
			if (serves)
				assert_true(plan.v[i].in || !plan.text.p);
			assert_non_null(plan.v[i].reason);
		}
		assert_int_equal(in, plan.n_in);
		if (!had)
			assert_true((plan.text.p != NULL) == (able >= factor));
		else if (best >= factor)
			assert_true(in >= factor);
		if (plan.text.p) {
			struct ring_set *set;
			const struct ring_options opt = {.replication_factor = in >= factor ? factor : 1};
			assert_int_equal(ring_set_parse("plan", plan.text, &opt, &set, NULL), OK);
			assert_int_equal(ring_set_n_nodes(set), in);
			ring_set_unref(set);
		}
		arena_free(&a);
	}
}

static void names(void **st)
{
	(void)st;
	static const struct {
		const char *text;
		size_t n; /* 0: refused */
		enum finder_kind kind;
		const char *name;
		uint16_t port;
	} cases[] = {
		{"a:1", 1, FINDER_ADDRESS, NULL, 1},
		{"10.0.0.1:19291,10.0.0.2:19291", 2, FINDER_ADDRESS, NULL, 19291},
		{"[::1]:80", 1, FINDER_ADDRESS, NULL, 80},
		{"dns+varve.monitoring:19291", 1, FINDER_DNS, "varve.monitoring", 19291},
		{"dnssrv+_http._tcp.varve", 1, FINDER_SRV, "_http._tcp.varve", 0},
		{" a:1 , b:2 ,", 2, FINDER_ADDRESS, NULL, 1},
		{"", 0, 0, NULL, 0},
		{",", 0, 0, NULL, 0},
		{"a", 0, 0, NULL, 0},
		{":1", 0, 0, NULL, 0},
		{"a:0", 0, 0, NULL, 0},
		{"a:65536", 0, 0, NULL, 0},
		{"a:x", 0, 0, NULL, 0},
		{"a:", 0, 0, NULL, 0},
		{"http://a:1", 0, 0, NULL, 0},
		{"dns+a", 0, 0, NULL, 0},
		{"dns+:1", 0, 0, NULL, 0},
		{"dnssrv+", 0, 0, NULL, 0},
		{"dnssrv+a:1", 0, 0, NULL, 0},
		{"a:1,b", 0, 0, NULL, 0},
	};
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct arena a;
		struct finder_name *v;
		size_t n;
		struct err err = {0};
		arena_init(&a, MIB);
		errc rc = finder_names(&cases[i].text, 1, &a, &v, &n, &err);
		if ((rc == OK) != (cases[i].n > 0))
			fail_msg("\"%s\": %s", cases[i].text, err.msg);
		if (rc == OK) {
			assert_int_equal(n, cases[i].n);
			assert_true(v[0].kind == cases[i].kind && v[0].port == cases[i].port);
			if (cases[i].name)
				assert_string_equal(v[0].name, cases[i].name);
		} else {
			assert_int_equal(rc, ERR_INVALID);
		}
		arena_free(&a);
	}
}

int main(void)
{
	log_setup(LOG_ERROR, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_ring_is_of_those_that_can_serve),
		cmocka_unit_test(random_fleets),
		cmocka_unit_test(names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
