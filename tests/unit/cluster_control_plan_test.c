/* What the controller decides: a ring never takes in who can't serve, loses nobody who may come back, and never falls below the factor; whatever
 * spec.replicas says. First the cases that people ask about, then thousands of steps of made-up clusters against those promises.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "cluster/cluster_control_int.h"
#include "tests/support/fail_alloc.h"

enum { PODS_MAX = 64, SETS_MAX = 4, GONE_MS = 60000 };

struct world {
	struct control_config cfg;
	struct control_set sets[SETS_MAX];
	struct control_pod pods[PODS_MAX];
	size_t n_sets, n_pods;
	char names[PODS_MAX][32];
	const char *base;
	char in_force[1 << 16];
	size_t in_force_n;
	struct control_absence absences[PODS_MAX];
	char absent[PODS_MAX][160];
	size_t n_absences;
	int64_t now_ms;

	struct arena arena; /* of the last plan */
	struct control_plan plan;
	struct err err;
};

static const char base_one[] = "[{\"hashring\": \"default\"}]";

static void world_init(struct world *w, uint32_t factor)
{
	memset(w, 0, sizeof *w);
	w->cfg = (struct control_config){.namespace = "ns",
		.label = "l=c",
		.configmap = "base",
		.generated = "generated",
		.file_name = "hashrings.json",
		.cluster_domain = "cluster.local",
		.port = 19291,
		.ring = {.replication_factor = factor},
		.gone_after_ms = GONE_MS};
	w->base = base_one;
	w->now_ms = 1000;
	arena_init(&w->arena, 64 * MIB);
}

static void world_end(struct world *w)
{
	arena_free(&w->arena);
}

static struct control_set *set_add(struct world *w, const char *name, const char *ring, uint32_t replicas)
{
	w->sets[w->n_sets] =
		(struct control_set){.name = span_cstr(name), .ring = span_cstr(ring), .service = span_cstr("svc"), .replicas = replicas};
	return &w->sets[w->n_sets++];
}

/* Kept sorted by name, as a view must have them. */
static struct control_pod *pod_of(struct world *w, const char *set, uint32_t ordinal)
{
	char name[32];
	snprintf(name, sizeof name, "%s-%u", set, ordinal);
	for (size_t i = 0; i < w->n_pods; i++)
		if (span_is(w->pods[i].name, name))
			return &w->pods[i];
	return NULL;
}

static void names_again(struct world *w)
{
	for (size_t i = 0; i < w->n_pods; i++)
		w->pods[i].name = span_cstr(w->names[i]);
}

static struct control_pod *pod_add(struct world *w, const char *set, uint32_t ordinal)
{
	char name[32];
	size_t at = 0;
	snprintf(name, sizeof name, "%s-%u", set, ordinal);
	while (at < w->n_pods && strcmp(w->names[at], name) < 0)
		at++;
	memmove(w->pods + at + 1, w->pods + at, (w->n_pods - at) * sizeof *w->pods);
	memmove(w->names + at + 1, w->names + at, (w->n_pods - at) * sizeof *w->names);
	strcpy(w->names[at], name);
	w->n_pods++;
	w->pods[at] = (struct control_pod){.uid = SPAN("u"), .set = span_cstr(set)};
	names_again(w);
	return &w->pods[at];
}

static void pod_remove(struct world *w, const char *set, uint32_t ordinal)
{
	size_t at = (size_t)(pod_of(w, set, ordinal) - w->pods);
	memmove(w->pods + at, w->pods + at + 1, (w->n_pods - at - 1) * sizeof *w->pods);
	memmove(w->names + at, w->names + at + 1, (w->n_pods - at - 1) * sizeof *w->names);
	w->n_pods--;
	names_again(w);
}

static void pod_ready(struct control_pod *p, bool ready)
{
	p->running = true;
	p->ip = SPAN("10.0.0.1");
	p->answer = (struct control_answer){.asked = true, .reached = ready, .ready = ready, .drain = DRAIN_ACTIVE};
}

static struct control_pod *pod_serving(struct world *w, const char *set, uint32_t ordinal)
{
	struct control_pod *p = pod_add(w, set, ordinal);
	pod_ready(p, true);
	return p;
}

static errc plan_only(struct world *w)
{
	struct control_view v = {.cfg = &w->cfg,
		.base = w->base ? span_cstr(w->base) : (struct span){0},
		.in_force = w->in_force_n ? span_of(w->in_force, w->in_force_n) : (struct span){0},
		.sets = w->sets,
		.n_sets = w->n_sets,
		.pods = w->pods,
		.n_pods = w->n_pods,
		.absences = w->absences,
		.n_absences = w->n_absences,
		.now_ms = w->now_ms};
	arena_reset(&w->arena);
	w->err = (struct err){0};
	return control_plan(&v, &w->arena, &w->plan, &w->err);
}

/* Plans, and publishes what the plan says. */
static void step(struct world *w)
{
	if (plan_only(w) != OK)
		fail_msg("%s", w->err.msg);
	w->n_absences = w->plan.n_absences;
	for (size_t i = 0; i < w->n_absences; i++) {
		snprintf(w->absent[i], sizeof w->absent[i], "%.*s", SPAN_ARG(w->plan.absences[i].address));
		w->absences[i] = (struct control_absence){span_cstr(w->absent[i]), w->plan.absences[i].since_ms};
	}
	if (w->plan.change) {
		assert_true(w->plan.text.n < sizeof w->in_force);
		memcpy(w->in_force, w->plan.text.p, w->plan.text.n);
		w->in_force[w->plan.text.n] = 0;
		w->in_force_n = w->plan.text.n;
	}
}

static void address(char out[160], const char *set, uint32_t ordinal)
{
	snprintf(out, 160, "\"%s-%u.svc.ns.svc.cluster.local:19291\"", set, ordinal);
}

static bool in_ring(const struct world *w, const char *set, uint32_t ordinal)
{
	char a[160];
	address(a, set, ordinal);
	return w->in_force_n && strstr(w->in_force, a);
}

static size_t ring_size(const struct world *w)
{
	size_t n = 0;
	for (const char *p = w->in_force; w->in_force_n && (p = strstr(p, ":19291")); p++)
		n++;
	return n;
}

static const struct control_member *member(const struct world *w, const char *set, uint32_t ordinal)
{
	char a[160];
	address(a, set, ordinal);
	for (size_t i = 0; i < w->plan.n_members; i++)
		if (span_eq(w->plan.members[i].address, span_of(a + 1, strlen(a) - 2)))
			return &w->plan.members[i];
	fail_msg("no member %s", a);
	return NULL;
}

static bool said(const struct world *w, const char *part)
{
	for (size_t i = 0; i < w->plan.n_words; i++)
		if (strstr(w->plan.words[i], part))
			return true;
	return false;
}

static void serving(struct world *w, const char *set, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		pod_serving(w, set, i);
}

static int by_name(const void *a, const void *b)
{
	return span_cmp(((const struct control_pod *)a)->name, ((const struct control_pod *)b)->name);
}

/* ---- what people ask ---- */

static void the_first_ring_waits_for_as_many_as_the_factor(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 3);
	set_add(&w, "s", "default", 5);
	step(&w);
	assert_int_equal(w.in_force_n, 0);
	serving(&w, "s", 2);
	step(&w);
	assert_int_equal(w.in_force_n, 0);
	assert_true(said(&w, "begins when 3 members are ready"));
	assert_int_equal(member(&w, "s", 0)->state, MEMBER_JOINING);
	pod_ready(pod_add(&w, "s", 2), false);
	step(&w);
	assert_int_equal(w.in_force_n, 0);
	pod_ready(pod_of(&w, "s", 2), true);
	step(&w);
	assert_int_equal(ring_size(&w), 3);
	world_end(&w);
}

/* The talk: an autoscaler raises spec.replicas, Pods come one by one or never. A ring by spec.replicas has seven names at once. */
static void what_is_wanted_adds_nobody(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 3);
	struct control_set *s = set_add(&w, "s", "default", 3);
	serving(&w, "s", 3);
	step(&w);
	for (uint32_t wanted = 4; wanted < 1000000; wanted *= 3) {
		s->replicas = wanted;
		step(&w);
		assert_int_equal(ring_size(&w), 3);
		assert_true(said(&w, "Pods are there"));
	}
	s->replicas = 7;
	struct control_pod *p = pod_add(&w, "s", 3); /* Pending, for ever */
	step(&w);
	assert_int_equal(ring_size(&w), 3);
	p = pod_add(&w, "s", 4);
	pod_ready(p, false); /* runs, and replays its log */
	step(&w);
	assert_int_equal(ring_size(&w), 3);
	p->answer = (struct control_answer){.asked = true, .reached = true, .ready = false};
	step(&w);
	assert_int_equal(ring_size(&w), 3);
	pod_ready(p, true);
	step(&w);
	assert_int_equal(ring_size(&w), 4);
	assert_true(in_ring(&w, "s", 4) && !in_ring(&w, "s", 3));
	world_end(&w);
}

static void who_is_not_wanted_leaves_at_once_and_is_told_to_drain(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 3);
	struct control_set *s = set_add(&w, "s", "default", 7);
	serving(&w, "s", 7);
	step(&w);
	assert_int_equal(ring_size(&w), 7);
	s->replicas = 3;
	step(&w);
	assert_int_equal(ring_size(&w), 3);
	for (uint32_t i = 0; i < 7; i++) {
		assert_int_equal(member(&w, "s", i)->state, i < 3 ? MEMBER_ACTIVE : MEMBER_DRAINING);
		assert_int_equal(member(&w, "s", i)->ask_drain, i >= 3);
	}
	/* wanted again before it is gone: it drains nonetheless, and comes back when it was started anew */
	s->replicas = 4;
	pod_of(&w, "s", 3)->answer.drain = DRAIN_DRAINING;
	step(&w);
	assert_int_equal(member(&w, "s", 3)->state, MEMBER_DRAINING);
	assert_false(member(&w, "s", 3)->ask_drain);
	pod_ready(pod_of(&w, "s", 3), true);
	step(&w);
	assert_true(in_ring(&w, "s", 3));
	world_end(&w);
}

static void a_ring_never_falls_below_the_factor(void **state)
{
	(void)state;
	for (uint32_t replicas = 0; replicas < 3; replicas++) {
		struct world w;
		world_init(&w, 3);
		struct control_set *s = set_add(&w, "s", "default", 5);
		serving(&w, "s", 5);
		step(&w);
		pod_of(&w, "s", 4)->terminating = true;
		s->replicas = replicas;
		step(&w);
		assert_int_equal(ring_size(&w), 3);
		assert_false(in_ring(&w, "s", 4)); /* the one that serves least */
		assert_true(said(&w, "are kept that should leave"));
		for (uint32_t i = 0; i < 5; i++)
			if (in_ring(&w, "s", i))
				assert_false(member(&w, "s", i)->ask_drain);
		/* the StatefulSet is deleted, Pods go: names stay, for there is nobody else */
		s->leaving = true;
		for (uint32_t i = 0; i < 5; i++)
			pod_remove(&w, "s", i);
		w.now_ms += 10 * GONE_MS;
		step(&w);
		assert_int_equal(ring_size(&w), 3);
		world_end(&w);
	}
}

static void who_crashed_stays_until_gone_after(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 3);
	set_add(&w, "s", "default", 5);
	serving(&w, "s", 5);
	step(&w);
	pod_ready(pod_of(&w, "s", 1), false);
	step(&w);
	assert_int_equal(member(&w, "s", 1)->state, MEMBER_AWAY);
	assert_int_equal(w.plan.wake_ms, w.now_ms + GONE_MS);
	/* deleted, made anew, stuck: all one absence */
	w.now_ms += GONE_MS / 3;
	pod_remove(&w, "s", 1);
	step(&w);
	assert_true(in_ring(&w, "s", 1));
	w.now_ms += GONE_MS / 3;
	pod_add(&w, "s", 1);
	step(&w);
	assert_true(in_ring(&w, "s", 1));
	w.now_ms += GONE_MS / 3 - 1;
	step(&w);
	assert_true(in_ring(&w, "s", 1));
	w.now_ms += 2;
	step(&w);
	assert_false(in_ring(&w, "s", 1));
	assert_int_equal(ring_size(&w), 4);
	pod_ready(pod_of(&w, "s", 1), true);
	step(&w);
	assert_int_equal(ring_size(&w), 5);
	/* back in between: it begins anew */
	for (int i = 0; i < 10; i++) {
		pod_ready(pod_of(&w, "s", 2), i & 1);
		w.now_ms += GONE_MS / 2;
		step(&w);
		assert_true(in_ring(&w, "s", 2));
	}
	world_end(&w);
}

static void when_most_are_away_nobody_is_dropped(void **state)
{
	(void)state;
	for (uint32_t away = 1; away <= 5; away++) {
		struct world w;
		world_init(&w, 1);
		set_add(&w, "s", "default", 5);
		serving(&w, "s", 5);
		step(&w);
		for (uint32_t i = 0; i < away; i++)
			pod_ready(pod_of(&w, "s", i), false);
		step(&w);
		w.now_ms += GONE_MS + 1;
		step(&w);
		assert_int_equal(ring_size(&w), away <= 2 ? 5 - away : 5);
		assert_int_equal(said(&w, "nobody is dropped"), away > 2);
		world_end(&w);
	}
}

/* kubectl delete sts --cascade=orphan, and applied again: the way to change a volume's size. */
static void pods_whose_statefulset_vanished_stay(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 3);
	set_add(&w, "s", "default", 4);
	serving(&w, "s", 4);
	step(&w);
	w.n_sets = 0;
	for (size_t i = 0; i < w.n_pods; i++)
		w.pods[i].set = SPAN("");
	w.now_ms += 10 * GONE_MS;
	step(&w);
	w.now_ms += 10 * GONE_MS;
	step(&w);
	assert_int_equal(ring_size(&w), 4);
	assert_int_equal(member(&w, "s", 2)->state, MEMBER_ACTIVE);
	/* but not somebody who then goes */
	pod_remove(&w, "s", 2);
	step(&w);
	assert_int_equal(ring_size(&w), 4);
	w.now_ms += GONE_MS + 1;
	step(&w);
	assert_int_equal(ring_size(&w), 3);
	world_end(&w);
}

static void numbers_may_begin_anywhere(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 1);
	struct control_set *s = set_add(&w, "s", "default", 2);
	s->first = 5;
	serving(&w, "s", 8);
	pod_serving(&w, "s", 12);
	step(&w);
	assert_int_equal(ring_size(&w), 2);
	assert_true(in_ring(&w, "s", 5) && in_ring(&w, "s", 6));
	s->first = UINT32_MAX - 1;
	s->replicas = UINT32_MAX;
	step(&w);
	assert_int_equal(ring_size(&w), 1); /* kept */
	world_end(&w);
}

static void every_key_of_the_base_stays(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 1);
	w.base = "[{\"hashring\": \"a\", \"tenants\": [\"t-*\"], \"tenant_matcher_type\": \"glob\", \"algorithm\": \"ketama\","
		 " \"external_labels\": {\"x\": \"y\"}, \"endpoints\": [\"old:1\"],"
		 " \"shuffle_sharding_config\": {\"shard_size\": 1, \"overrides\": [{\"shard_size\": 2, \"tenants\": [\"t-1\"], "
		 "\"tenant_matcher_type\": \"exact\"}]}},"
		 " {\"hashring\": \"hand\", \"tenants\": [\"h\"], \"endpoints\": [{\"address\": \"h:1\", \"az\": \"q\"}, \"i:1\"]},"
		 " {\"hashring\": \"empty\", \"tenants\": [\"e\"]},"
		 " {\"hashring\": \"b\"}]";
	set_add(&w, "p", "a", 2);
	set_add(&w, "q", "b", 1);
	set_add(&w, "r", "c", 1);
	serving(&w, "p", 2);
	serving(&w, "q", 1);
	serving(&w, "r", 1);
	step(&w);
	assert_true(said(&w, "ring empty: no StatefulSet"));
	assert_true(said(&w, "StatefulSet r: no ring of ConfigMap base is called \"c\""));
	json_t *rings = json_loads(w.in_force, 0, NULL), *base = json_loads(w.base, 0, NULL);
	assert_int_equal(json_array_size(rings), 3);
	for (size_t i = 0; i < 3; i++) {
		json_t *got = json_array_get(rings, i), *want = json_array_get(base, i < 2 ? i : 3);
		if (i != 1) {
			assert_int_equal(json_array_size(json_object_get(got, "endpoints")), i == 0 ? 2 : 1);
			json_object_del(got, "endpoints");
			json_object_del(want, "endpoints");
		}
		assert_true(json_equal(got, want));
	}
	json_decref(rings);
	json_decref(base);
	world_end(&w);
}

static void zones_stay_while_nobody_knows_them(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 2);
	w.cfg.az_aware = true;
	set_add(&w, "s", "default", 3);
	serving(&w, "s", 3);
	static const char *const zones[] = {"x", "y", ""};
	for (uint32_t i = 0; i < 3; i++)
		pod_of(&w, "s", i)->zone = span_cstr(zones[i]);
	step(&w);
	json_t *rings = json_loads(w.in_force, 0, NULL), *list = json_object_get(json_array_get(rings, 0), "endpoints");
	for (uint32_t i = 0; i < 3; i++)
		assert_string_equal(json_string_value(json_object_get(json_array_get(list, i), "az")), i < 2 ? zones[i] : "s");
	json_decref(rings);
	pod_remove(&w, "s", 1);
	step(&w);
	assert_false(w.plan.change);
	pod_add(&w, "s", 1);
	step(&w);
	assert_false(w.plan.change);
	world_end(&w);
}

/* From thanos-receive-controller: its text lists the gRPC port, and names that there are not. */
static void a_ring_of_another_controller_is_taken_over(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 1);
	set_add(&w, "s", "default", 3);
	serving(&w, "s", 2);
	w.in_force_n = (size_t)snprintf(w.in_force, sizeof w.in_force,
		"[{\"hashring\":\"default\",\"endpoints\":[\"s-0.svc.ns.svc.cluster.local:10901\",\"s-1.svc.ns.svc.cluster.local:10901\","
		"\"s-2.svc.ns.svc.cluster.local:10901\"]}]");
	step(&w);
	assert_int_equal(ring_size(&w), 2);
	assert_non_null(strstr(w.in_force, "s-2.svc.ns.svc.cluster.local:10901"));
	w.now_ms += GONE_MS + 1;
	step(&w);
	assert_null(strstr(w.in_force, "10901"));
	world_end(&w);
}

static void what_can_not_be_right_changes_nothing(void **state)
{
	(void)state;
	static const char *const bad[] = {"", "{", "{}", "[1]", "[{\"hashring\": \"default\", \"endpoints\": 3}]",
		"[{\"hashring\": \"default\", \"tenant\": [\"typo\"]}]", "[{\"hashring\": \"default\", \"algorithm\": \"rendezvous\"}]",
		"[{\"hashring\": \"default\", \"hashring\": \"b\"}]",
		"[{\"hashring\": \"default\", \"shuffle_sharding_config\": {\"shard_size\": 99}}]",
		"[{\"hashring\": \"default\", \"endpoints\": [{}]}]"};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct world w;
		world_init(&w, 1);
		set_add(&w, "s", "default", 3);
		serving(&w, "s", 3);
		w.base = bad[i];
		if (plan_only(&w) != ERR_INVALID)
			fail_msg("taken: %s", bad[i]);
		assert_null(w.plan.text.p);
		assert_true(w.err.msg[0]);
		w.base = base_one;
		step(&w);
		assert_int_equal(ring_size(&w), 3);
		w.base = NULL; /* it is deleted */
		step(&w);
		assert_false(w.plan.change);
		assert_true(said(&w, "ConfigMap base is not there"));
		world_end(&w);
	}
}

static void without_a_base_each_label_is_a_ring(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 1);
	w.cfg.configmap = NULL;
	w.base = NULL;
	set_add(&w, "p", "z", 1);
	set_add(&w, "q", "a", 1);
	set_add(&w, "r", "z", 1);
	serving(&w, "p", 1);
	serving(&w, "q", 1);
	serving(&w, "r", 1);
	step(&w);
	json_t *rings = json_loads(w.in_force, 0, NULL);
	assert_int_equal(json_array_size(rings), 2);
	assert_string_equal(json_string_value(json_object_get(json_array_get(rings, 0), "hashring")), "a");
	assert_int_equal(json_array_size(json_object_get(json_array_get(rings, 1), "endpoints")), 2);
	json_decref(rings);
	world_end(&w);
}

static void no_memory_changes_nothing(void **state)
{
	(void)state;
	struct world w;
	world_init(&w, 2);
	w.cfg.configmap = NULL;
	w.base = NULL;
	set_add(&w, "s", "default", 4);
	serving(&w, "s", 3);
	for (uint64_t n = 1;; n++) {
		arena_free(&w.arena);
		arena_init(&w.arena, 64 * MIB);
		fail_alloc_at(n, false);
		errc rc = plan_only(&w);
		uint64_t hits = fail_alloc_off();
		assert_int_equal(rc, hits ? ERR_NOMEM : OK);
		if (hits == 0)
			break;
		assert_null(w.plan.text.p);
	}
	world_end(&w);
}

/* As many members as a ring may have: a plan is made at every change of any of them. */
static void many_members_are_planned_quickly(void **state)
{
	(void)state;
	enum { MANY = LIMIT_RING_ENDPOINTS };
	static struct control_pod pods[MANY];
	static char names[MANY][16];
	struct world w;
	world_init(&w, 3);
	set_add(&w, "s", "default", MANY);
	for (int i = 0; i < MANY; i++) {
		snprintf(names[i], sizeof names[i], "s-%d", i);
		pods[i] = (struct control_pod){.uid = SPAN("u"), .set = SPAN("s"), .name = span_cstr(names[i])};
		pod_ready(&pods[i], true);
	}
	qsort(pods, MANY, sizeof *pods, by_name);
	struct control_view v = {.cfg = &w.cfg, .base = span_cstr(base_one), .sets = w.sets, .n_sets = 1, .pods = pods, .n_pods = MANY};
	struct arena first;
	arena_init(&first, 512 * MIB);
	assert_int_equal(control_plan(&v, &first, &w.plan, &w.err), OK);
	assert_true(w.plan.change);
	v.in_force = w.plan.text;
	int64_t best_ns = INT64_MAX;
	for (int i = 0; i < 3; i++) {
		int64_t began_ns = io_mono_ns();
		arena_reset(&w.arena);
		assert_int_equal(control_plan(&v, &w.arena, &w.plan, &w.err), OK);
		assert_false(w.plan.change);
		assert_int_equal(w.plan.n_members, MANY);
		int64_t took_ns = io_mono_ns() - began_ns;
		best_ns = took_ns < best_ns ? took_ns : best_ns;
	}
	printf("a plan of %d members takes %.1f ms\n", MANY, (double)best_ns / 1e6);
	assert_true(best_ns < INT64_C(200000000));
	arena_free(&first);
	world_end(&w);
}

/* ---- thousands of steps ---- */

static uint64_t rng;
static uint32_t rnd(uint32_t n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (uint32_t)(rng >> 33) % n;
}

enum { ORDINALS = 12 };

/* One thing happens, as a cluster or a person does it. */
static void happen(struct world *w, const char *const *set_names)
{
	uint32_t s = rnd((uint32_t)w->n_sets), i = rnd(ORDINALS);
	struct control_set *set = &w->sets[s];
	struct control_pod *p = pod_of(w, set_names[s], i);
	switch (rnd(8)) {
	case 0:
		set->replicas = rnd(ORDINALS + 3);
		break;
	case 1:
	case 2:
		if (!p && i < set->replicas)
			pod_add(w, set_names[s], i);
		else if (p && p->terminating)
			pod_remove(w, set_names[s], i);
		break;
	case 3:
	case 4:
		if (p)
			pod_ready(p, true);
		break;
	case 5:
		if (p && rnd(3) == 0)
			p->terminating = true;
		else if (p) {
			pod_ready(p, false);
			p->answer.reached = rnd(2); /* it answers, and says that it is not ready */
		}
		break;
	case 6:
		w->now_ms += rnd(GONE_MS / 2);
		break;
	default:
		if (p && p->answer.reached)
			p->answer.drain = (enum control_drain)rnd(4);
	}
}

static bool can_serve(const struct control_pod *p)
{
	return p && p->running && !p->terminating && p->answer.reached && p->answer.ready && p->answer.drain != DRAIN_DRAINING &&
	       p->answer.drain != DRAIN_DRAINED;
}

static void the_promises_hold_whatever_happens(void **state)
{
	(void)state;
	const char *seed_text = getenv("VARVE_SEED");
	uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : 20261124;
	int worlds = getenv("VARVE_FULL") ? 2000 : 60;
	static const char *const set_names[] = {"s", "t"};
	printf("VARVE_SEED=%llu\n", (unsigned long long)seed);
	static char was[1 << 16];
	size_t entered = 0, left = 0, kept = 0;
	for (int k = 0; k < worlds; k++) {
		struct world w;
		uint32_t factor = 1 + (uint32_t)k % 3;
		rng = seed * 2654435761u + (uint64_t)k + 1;
		world_init(&w, factor);
		set_add(&w, "s", "default", 5);
		set_add(&w, "t", "default", 2);
		bool begun = false;
		int64_t unserved[2][ORDINALS] = {{0}}; /* since when, 0: it serves */
		for (int n = 0; n < 400; n++) {
			happen(&w, set_names);
			for (uint32_t s = 0; s < 2; s++)
				for (uint32_t i = 0; i < ORDINALS; i++)
					unserved[s][i] = can_serve(pod_of(&w, set_names[s], i)) ? 0 : unserved[s][i] ? unserved[s][i] : w.now_ms;
			memcpy(was, w.in_force, sizeof was);
			step(&w);
			for (uint32_t s = 0; s < 2; s++)
				for (uint32_t i = 0; i < ORDINALS; i++) {
					char a[160];
					address(a, set_names[s], i);
					struct control_pod *p = pod_of(&w, set_names[s], i);
					bool before = begun && strstr(was, a), now = in_ring(&w, set_names[s], i);
					entered += !before && now;
					left += before && !now;
					if (!before && now && (!can_serve(p) || i >= w.sets[s].replicas))
						fail_msg("world %d step %d: %s entered, and can't serve or is not wanted", k, n, a);
					if (before && !now && i < w.sets[s].replicas && !(p && p->answer.drain >= DRAIN_DRAINING) &&
						(!unserved[s][i] || w.now_ms - unserved[s][i] < GONE_MS))
						fail_msg("world %d step %d: %s was dropped, and was away for %lld ms", k, n, a,
							(long long)(w.now_ms - unserved[s][i]));
					if (now && i >= w.sets[s].replicas) {
						kept++;
						if (ring_size(&w) > factor)
							fail_msg("world %d step %d: %s stays, though not wanted", k, n, a);
					}
				}
			begun |= w.in_force_n > 0;
			if (begun && ring_size(&w) < factor)
				fail_msg("world %d step %d: %zu endpoints, factor %u", k, n, ring_size(&w), factor);
			/* a plan that was carried out is at rest */
			assert_int_equal(plan_only(&w), OK);
			assert_false(w.plan.change);
		}
		world_end(&w);
	}
	printf("%zu entered, %zu left, %zu times one was kept for the factor\n", entered, left, kept);
	assert_true(entered > 100 && left > 100 && kept > 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_ring_waits_for_as_many_as_the_factor),
		cmocka_unit_test(what_is_wanted_adds_nobody),
		cmocka_unit_test(who_is_not_wanted_leaves_at_once_and_is_told_to_drain),
		cmocka_unit_test(a_ring_never_falls_below_the_factor),
		cmocka_unit_test(who_crashed_stays_until_gone_after),
		cmocka_unit_test(when_most_are_away_nobody_is_dropped),
		cmocka_unit_test(pods_whose_statefulset_vanished_stay),
		cmocka_unit_test(numbers_may_begin_anywhere),
		cmocka_unit_test(every_key_of_the_base_stays),
		cmocka_unit_test(zones_stay_while_nobody_knows_them),
		cmocka_unit_test(a_ring_of_another_controller_is_taken_over),
		cmocka_unit_test(what_can_not_be_right_changes_nothing),
		cmocka_unit_test(without_a_base_each_label_is_a_ring),
		cmocka_unit_test(no_memory_changes_nothing),
		cmocka_unit_test(many_members_are_planned_quickly),
		cmocka_unit_test(the_promises_hold_whatever_happens),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
