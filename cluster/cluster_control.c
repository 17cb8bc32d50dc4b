/* cluster/cluster_control.c - see cluster/control.h: the loop that looks, plans, publishes and tells.
 *
 *     woken by a watch, a member's answer, the lease, or time
 *       └▶ look (a copy of all that is seen) ─▶ plan ─▶ say what changed ─▶ the leader: publish when the ring should be another one ─▶ whom to ask and tell
 *
 * The ring in force is what the generated ConfigMap says, and, when a person wrote it, what this controller knew before (--control.manual=revert). What is published
 * carries the hash of its text in an annotation, which is how an edit shows. A write is a merge patch with the resourceVersion that was read: what else is in the
 * ConfigMap stays, and who was overtaken by another write gets 409 and looks again.
 *
 * Only the leader asks and tells members; the others watch the API, so that they know everything but the answers when it is their turn. Until a member has
 * answered its new leader it counts as away, if it was in the ring, and stays; nobody joins unasked.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "cluster/cluster_control_int.h"

enum { BREATH_MS = 20, RETRY_MS = 1000, LOOK_ANYWAY_MS = 5000 };

struct text { /* a ring that was in force, ours to keep */
	char *p;
	size_t n;
	uint64_t epoch;
};

struct control {
	struct control_config cfg;
	struct kube *kube;
	struct watches *watches;
	struct lease *lease;
	struct members *members;
	pthread_t thread;
	bool started;

	pthread_mutex_t wake_mu;
	pthread_cond_t wake;
	bool woken, stop; /* guarded by wake_mu */

	/* the loop's own */
	bool led;
	bool told_bad_plan;
	int64_t differs_since_ms; /* first seen that another ring should be in force; 0: it need not */
	int64_t not_before_ms;	  /* after a failed write */
	int64_t change_ms;	  /* published and not everywhere yet: since when; 0: it is */
	bool edited;		  /* as it was last said */
	uint64_t refused_text;	  /* hash of the generated ConfigMap that was no ring, as it was last said; 0: none */

	pthread_mutex_t mu; /* guards what follows: the last plan, for whoever asks */
	struct arena arena;
	struct control_plan plan;
	struct control_absence *absences;
	size_t n_absences;
	struct text in_force;
	bool leading, fresh, edit_stands;
	char trouble[ERR_MSG_BYTES];

	struct metric *published, *publish_failed, *manual, *behind, *states[MEMBER_STATES], *in_ring, *good_plan, *change_seconds, *nodes;
};

static void wake(void *arg)
{
	struct control *c = arg;
	pthread_mutex_lock(&c->wake_mu);
	c->woken = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->wake_mu);
}

/* ---- the ring in force ---- */

static struct span in_force(const struct control *c)
{
	return c->in_force.p ? span_of(c->in_force.p, c->in_force.n) : (struct span){0};
}

/* A ring that members would refuse is not remembered, for it never was in force. */
static errc remember(struct control *c, struct span text, struct err *err)
{
	errc rc = OK;
	struct ring_set *set = NULL;
	char *copy = NULL;
	if (span_eq(in_force(c), text) && c->in_force.p)
		return OK;
	TRY(ring_set_parse("the generated ConfigMap", text, &c->cfg.ring, &set, err));
	copy = strndup(text.p, text.n);
	CHECK(copy, ERR_NOMEM, "no memory for a ring");
	char epoch[17];
	snprintf(epoch, sizeof epoch, "%016" PRIx64, ring_set_epoch(set));
	log_info("ring in force", LSTR("epoch", epoch), LU64("nodes", ring_set_n_nodes(set)), LU64("rings", ring_set_n_rings(set)));
	metric_info("varve_ring_info", "The epoch of the rings in force", "epoch", epoch);
	metric_set(c->nodes, ring_set_n_nodes(set));
	pthread_mutex_lock(&c->mu);
	free(c->in_force.p);
	c->in_force = (struct text){copy, text.n, ring_set_epoch(set)};
	pthread_mutex_unlock(&c->mu);
fail:
	ring_set_unref(set);
	return rc;
}

static bool edited_by_hand(const struct watched *seen)
{
	char hash[17];
	if (!seen->has_generated || seen->generated.written.n == 0)
		return false;
	snprintf(hash, sizeof hash, "%016" PRIx64, seen->generated.text.p ? control_text_hash(seen->generated.text) : 0);
	return !span_is(seen->generated.written, hash);
}

/* What the generated ConfigMap says is in force, unless a person says it and is not to. */
static void take_generated(struct control *c, const struct watched *seen, bool edited)
{
	struct err err = {0};
	if (edited != c->edited) {
		if (edited)
			log_warn(c->cfg.manual == CONTROL_REVERT ? "the generated ConfigMap was edited by hand; it is put back"
								 : "the generated ConfigMap was edited by hand; it is kept, and nothing is published "
								   "until it is as it was, or deleted",
				LSTR("configmap", c->cfg.generated));
		else
			log_info("the generated ConfigMap is as it was written", LSTR("configmap", c->cfg.generated));
		c->edited = edited;
		metric_set(c->manual, edited);
	}
	if (!seen->has_generated || !seen->generated.text.p || (edited && c->cfg.manual == CONTROL_REVERT && c->in_force.p))
		return;
	if (span_eq(seen->generated.text, in_force(c)) && c->in_force.p)
		return;
	uint64_t hash = control_text_hash(seen->generated.text);
	if (hash == c->refused_text)
		return;
	errc rc = remember(c, seen->generated.text, &err);
	c->refused_text = rc == ERR_INVALID || rc == ERR_LIMIT ? hash : 0;
	if (rc)
		log_error("the generated ConfigMap is no valid ring; the one before stays in force", LERR(&err));
}

/* ---- publishing ---- */

static errc publish(struct control *c, const struct watched *seen, struct span text, struct err *err)
{
	errc rc = OK;
	char hash[17], path[1024];
	json_t *answer = NULL, *body = NULL;
	snprintf(hash, sizeof hash, "%016" PRIx64, control_text_hash(text));
	struct span version = seen->generated.version;
	body = json_pack("{s:{s:s,s:{s:s}},s:{s:s%}}", "metadata", "name", c->cfg.generated, "annotations", KUBE_WRITTEN, hash, "data",
		c->cfg.file_name, text.p, text.n);
	CHECK(body, ERR_NOMEM, "no memory for a ConfigMap");
	if (seen->has_generated) {
		CHECK(json_object_set_new(json_object_get(body, "metadata"), "resourceVersion", json_stringn(version.p, version.n)) == 0, ERR_NOMEM,
			"no memory for a ConfigMap");
		snprintf(path, sizeof path, "/api/v1/namespaces/%s/configmaps/%s", c->cfg.namespace, c->cfg.generated);
		TRY(kube_call(c->kube, "PATCH", path, "application/merge-patch+json", body, &answer, err));
	} else {
		snprintf(path, sizeof path, "/api/v1/namespaces/%s/configmaps", c->cfg.namespace);
		TRY(kube_call(c->kube, "POST", path, "application/json", body, &answer, err));
	}
	/* the watch tells of it, too, but maybe later than the next look */
	TRY(watches_put(c->watches, KUBE_GENERATED, answer, err));
	TRY(remember(c, text, err));
fail:
	metric_add(rc == OK ? c->published : c->publish_failed, 1);
	json_decref(answer);
	json_decref(body);
	return rc;
}

/* The leader's: returns the time at which to look again, -1 when nothing is owed. */
static int64_t publish_when_due(struct control *c, const struct watched *seen, const struct control_plan *plan, bool edited)
{
	struct err err = {0};
	int64_t now_ms = io_mono_ms();
	struct span want = plan->text.p ? plan->text : in_force(c);
	char hash[17];
	snprintf(hash, sizeof hash, "%016" PRIx64, want.p ? control_text_hash(want) : 0);
	bool as_written =
		seen->has_generated && seen->generated.text.p && span_eq(seen->generated.text, want) && span_is(seen->generated.written, hash);
	if (!want.p || as_written || (edited && c->cfg.manual == CONTROL_KEEP)) {
		c->differs_since_ms = 0;
		return -1;
	}
	if (!c->differs_since_ms)
		c->differs_since_ms = now_ms;
	int64_t due_ms = c->differs_since_ms + c->cfg.settle_ms;
	due_ms = due_ms > c->not_before_ms ? due_ms : c->not_before_ms;
	if (now_ms < due_ms)
		return due_ms;
	if (!lease_held(c->lease))
		return -1;
	errc rc = publish(c, seen, want, &err);
	if (rc == OK) {
		log_info("ring published", LSTR("configmap", c->cfg.generated), LI64("after_ms", io_mono_ms() - c->differs_since_ms));
		c->change_ms = c->differs_since_ms;
		c->differs_since_ms = 0;
		return -1;
	}
	log_warn(rc == ERR_EXISTS ? "the generated ConfigMap was changed meanwhile; looking again" : "the ring could not be published", LERR(&err));
	c->not_before_ms = io_mono_ms() + (rc == ERR_EXISTS ? RETRY_MS / 5 : RETRY_MS);
	return c->not_before_ms;
}

/* ---- what changed, in words ---- */

static const struct control_member *same_member(const struct control_plan *p, size_t hint, const struct control_member *m)
{
	if (hint < p->n_members && span_eq(p->members[hint].address, m->address) && span_eq(p->members[hint].ring, m->ring))
		return &p->members[hint];
	for (size_t i = 0; i < p->n_members; i++)
		if (span_eq(p->members[i].address, m->address) && span_eq(p->members[i].ring, m->ring))
			return &p->members[i];
	return NULL;
}

static void say_changes(struct control *c, const struct control_plan *was, const struct control_plan *now)
{
	uint64_t n[MEMBER_STATES] = {0}, in = 0;
	for (size_t i = 0; i < now->n_members; i++) {
		const struct control_member *m = &now->members[i], *old = same_member(was, i, m);
		n[m->state]++;
		in += m->in;
		if (c->leading && (!old || old->state != m->state || old->in != m->in))
			log_info("member", LSPAN("address", m->address), LSPAN("ring", m->ring), LSTR("state", control_state_names[m->state]),
				LSTR("was", old ? control_state_names[old->state] : "unknown"), LSTR("in_ring", m->in ? "yes" : "no"),
				LSTR("reason", m->reason));
	}
	/* who does not lead has asked nobody */
	for (int s = 0; s < MEMBER_STATES; s++)
		metric_set(c->states[s], c->leading ? (double)n[s] : 0);
	metric_set(c->in_ring, c->leading ? (double)in : 0);
	for (size_t i = 0; c->leading && i < now->n_words; i++) {
		size_t k = 0;
		while (k < was->n_words && strcmp(was->words[k], now->words[i]) != 0)
			k++;
		if (k == was->n_words)
			log_info("waiting", LSTR("for", now->words[i]));
	}
}

/* ---- whom to ask ---- */

static errc set_members(struct control *c, struct arena *a, const struct watched *seen, const struct control_plan *plan, bool act, struct err *err)
{
	errc rc = OK;
	size_t n = 0;
	struct members_target *v = arena_calloc(a, seen->n_pods, sizeof *v);
	struct members_target **of = arena_calloc(a, seen->n_pods, sizeof *of); /* of each Pod */
	CHECK(v && of, ERR_NOMEM, "no memory for %zu members", seen->n_pods);
	if (!lease_held(c->lease))
		return members_set(c->members, NULL, 0, (struct span){0}, 0, err);
	for (size_t i = 0; i < seen->n_pods; i++) {
		const struct control_pod *p = &seen->pods[i];
		if (!p->running || p->ip.n == 0 || p->uid.n == 0)
			continue;
		of[i] = &v[n];
		v[n++] = (struct members_target){.name = p->name, .uid = p->uid, .ip = p->ip};
	}
	for (size_t i = 0; i < plan->n_members; i++) {
		const struct control_member *m = &plan->members[i];
		struct members_target *t = m->pod ? of[m->pod - seen->pods] : NULL;
		if (!t)
			continue;
		t->eager |= m->state != MEMBER_ACTIVE;
		t->drain |= act && m->ask_drain;
	}
	rc = members_set(c->members, v, n, in_force(c), c->in_force.epoch, err);
fail:
	return rc;
}

/* ---- one look ---- */

static void keep_absences(struct control *c, const struct control_plan *plan)
{
	c->absences = plan->absences; /* in the arena of the last plan, which the next one still has */
	c->n_absences = plan->n_absences;
}

/* When to look again at the latest. */
static int64_t look(struct control *c)
{
	struct err err = {0};
	struct arena arena;
	struct watched seen;
	struct control_plan plan = {.wake_ms = -1};
	char why[ERR_MSG_BYTES] = "";
	int64_t again_ms = io_mono_ms() + LOOK_ANYWAY_MS, due_ms = -1;
	if (!watches_synced(c->watches, why, sizeof why))
		return again_ms;
	arena_init(&arena, LIMIT_CONTROL_PLAN_BYTES);
	bool leading = lease_held(c->lease), fresh = watches_fresh(c->watches, why, sizeof why);
	errc rc = watches_view(c->watches, &arena, &seen, &err);
	if (rc)
		goto done;
	for (size_t i = 0; i < seen.n_pods; i++)
		seen.pods[i].answer = members_answer(c->members, seen.pods[i].uid);
	bool edited = edited_by_hand(&seen);
	take_generated(c, &seen, edited);
	struct control_view view = {.cfg = &c->cfg,
		.base = seen.has_base ? seen.base.text : (struct span){0},
		.in_force = in_force(c),
		.sets = seen.sets,
		.n_sets = seen.n_sets,
		.pods = seen.pods,
		.n_pods = seen.n_pods,
		/* who just came to lead has asked nobody yet, and who can't see does not count the time */
		.absences = leading && c->led && fresh ? c->absences : NULL,
		.n_absences = leading && c->led && fresh ? c->n_absences : 0,
		.now_ms = io_mono_ms()};
	c->led = leading;
	rc = control_plan(&view, &arena, &plan, &err);
	if (rc && !c->told_bad_plan)
		log_error("no ring can be made of this; the one in force stays", LERR(&err));
	c->told_bad_plan = rc != OK;
	metric_set(c->good_plan, rc == OK);
	/* a watch that is broken shows what was; nothing is decided by that */
	if (rc == OK && leading && fresh)
		due_ms = publish_when_due(c, &seen, &plan, edited);
	struct err told = {0};
	if (set_members(c, &arena, &seen, &plan, rc == OK && fresh, &told) != OK)
		log_error("members are not told", LERR(&told));
	size_t behind = members_behind(c->members);
	metric_set(c->behind, (double)behind);
	if (c->change_ms && behind == 0) {
		metric_observe(c->change_seconds, (double)(io_mono_ms() - c->change_ms) / 1000);
		log_info("every member has the ring", LI64("after_ms", io_mono_ms() - c->change_ms));
		c->change_ms = 0;
	}
	pthread_mutex_lock(&c->mu);
	c->leading = leading;
	c->fresh = fresh;
	c->edit_stands = edited;
	snprintf(c->trouble, sizeof c->trouble, "%s", rc ? err.msg : fresh ? "" : why);
	if (rc == OK) {
		say_changes(c, &c->plan, &plan);
		struct arena old = c->arena;
		c->arena = arena;
		arena = old;
		c->plan = plan;
		keep_absences(c, &plan);
	}
	pthread_mutex_unlock(&c->mu);
	if (plan.wake_ms >= 0 && plan.wake_ms < again_ms)
		again_ms = plan.wake_ms;
	if (due_ms >= 0 && due_ms < again_ms)
		again_ms = due_ms;
done:
	if (rc == ERR_NOMEM)
		log_error("no memory to plan; trying again", LERR(&err));
	arena_free(&arena);
	return again_ms;
}

static void *run(void *arg)
{
	struct control *c = arg;
	for (;;) {
		int64_t again_ms = look(c);
		io_sleep_ms(BREATH_MS); /* what comes together is looked at together */
		struct timespec t = {again_ms / 1000, again_ms % 1000 * 1000000};
		pthread_mutex_lock(&c->wake_mu);
		while (!c->stop && !c->woken)
			if (pthread_cond_timedwait(&c->wake, &c->wake_mu, &t) != 0)
				break;
		bool stop = c->stop;
		c->woken = false;
		pthread_mutex_unlock(&c->wake_mu);
		if (stop)
			return NULL;
	}
}

/* ---- for whoever asks ---- */

bool control_ready(struct control *c, char *why, size_t n)
{
	return watches_synced(c->watches, why, n);
}

void control_ring_json(struct control *c, struct buf *out)
{
	pthread_mutex_lock(&c->mu);
	if (c->in_force.p)
		buf_put(out, c->in_force.p, c->in_force.n);
	pthread_mutex_unlock(&c->mu);
}

static void put_text(struct buf *out, const char *key, struct span s)
{
	buf_printf(out, "\"%s\":", key);
	buf_json_string(out, s);
}

static const char *yes(bool x)
{
	return x ? "true" : "false";
}

void control_status_json(struct control *c, struct buf *out)
{
	char holder[512];
	lease_holder(c->lease, holder, sizeof holder);
	bool leading = lease_held(c->lease);
	pthread_mutex_lock(&c->mu);
	int64_t now_ms = io_mono_ms();
	buf_printf(out, "{\"leading\":%s,", yes(leading));
	put_text(out, "holder", span_cstr(holder));
	buf_printf(out, ",\"fresh\":%s,\"edited_by_hand\":%s,\"epoch\":\"%016" PRIx64 "\",", yes(c->fresh), yes(c->edit_stands), c->in_force.epoch);
	put_text(out, "trouble", span_cstr(c->trouble));
	buf_printf(out, ",\"waiting\":[");
	for (size_t i = 0; i < c->plan.n_words; i++) {
		buf_printf(out, "%s", i ? "," : "");
		buf_json_string(out, span_cstr(c->plan.words[i]));
	}
	buf_printf(out, "],\"members\":[");
	for (size_t i = 0; i < c->plan.n_members; i++) {
		const struct control_member *m = &c->plan.members[i];
		buf_printf(out, "%s\n{", i ? "," : "");
		put_text(out, "address", m->address);
		buf_u8(out, ',');
		put_text(out, "ring", m->ring);
		buf_printf(out, ",\"state\":\"%s\",\"in_ring\":%s,\"epoch\":\"%016" PRIx64 "\",", control_state_names[m->state], yes(m->in),
			m->pod ? m->pod->answer.epoch : 0);
		if (m->since_ms >= 0)
			buf_printf(out, "\"away_seconds\":%" PRId64 ",", (now_ms - m->since_ms) / 1000);
		put_text(out, "reason", span_cstr(m->reason));
		buf_u8(out, '}');
	}
	buf_printf(out, "]}\n");
	pthread_mutex_unlock(&c->mu);
}

/* ---- life ---- */

static void metrics_open(struct control *c)
{
	static const char pub[] = "varve_control_publishes_total", pub_help[] = "Writes of the generated ConfigMap by their end";
	c->published = metric_counter_with(pub, pub_help, "result", "ok");
	c->publish_failed = metric_counter_with(pub, pub_help, "result", "failed");
	c->manual = metric_gauge("varve_control_edited_by_hand", "1 while the generated ConfigMap is as somebody else wrote it");
	c->behind = metric_gauge("varve_control_members_behind", "Members and routers that answer and go by another ring");
	c->in_ring = metric_gauge("varve_control_members_in_ring", "Members that are in the ring, as it should be");
	c->good_plan = metric_gauge("varve_control_plan_successful", "1 when a ring could be made of what is seen, the last time");
	c->change_seconds = metric_histogram("varve_control_change_seconds",
		"From seeing that another ring should be in force until every member that answers has it", metric_latency_bounds,
		metric_latency_bounds_n);
	c->nodes = metric_gauge("varve_ring_nodes", "Nodes of the rings in force");
	for (int s = 0; s < MEMBER_STATES; s++)
		c->states[s] = metric_gauge_with("varve_control_members", "Members of all rings by their state", "state", control_state_names[s]);
}

static errc check(const struct control_config *cfg, struct err *err)
{
	errc rc = OK;
	CHECK(cfg->ring.replication_factor >= 1 && cfg->ring.replication_factor <= LIMIT_RING_FACTOR, ERR_INVALID,
		"--replication-factor=%u must be between 1 and %d", cfg->ring.replication_factor, LIMIT_RING_FACTOR);
	CHECK(cfg->lease_ms >= 1000 && cfg->lease_ms <= 600000, ERR_INVALID, "--control.lease-duration must be between 1s and 10m");
	CHECK(cfg->settle_ms >= 0 && cfg->settle_ms <= 60000, ERR_INVALID, "--control.settle must be at most 1m");
	CHECK(cfg->gone_after_ms >= 1000, ERR_INVALID, "--control.gone-after must be at least 1s");
	CHECK(cfg->port > 0, ERR_INVALID, "--port must be between 1 and 65535");
	CHECK(!cfg->configmap || strcmp(cfg->configmap, cfg->generated) != 0, ERR_INVALID,
		"--configmap-name and --configmap-generated-name are both %s: the generated one would be its own base", cfg->generated);
fail:
	return rc;
}

errc control_open(const struct control_config *cfg, struct control **out, struct err *err)
{
	errc rc = OK;
	struct control *c = calloc(1, sizeof *c);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for the controller");
	c->cfg = *cfg;
	pthread_mutex_init(&c->mu, NULL);
	pthread_mutex_init(&c->wake_mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->wake, &attr);
	pthread_condattr_destroy(&attr);
	arena_init(&c->arena, LIMIT_CONTROL_PLAN_BYTES);
	metrics_open(c);
	TRY(check(cfg, err));
	TRY(kube_open(&c->cfg, &c->kube, err));
	c->cfg.namespace = kube_namespace(c->kube);
	TRY(members_open(&c->cfg, wake, c, &c->members, err));
	TRY(watches_open(&c->cfg, c->kube, wake, c, &c->watches, err));
	TRY(lease_open(&c->cfg, c->kube, wake, c, &c->lease, err));
	CHECK(pthread_create(&c->thread, NULL, run, c) == 0, ERR_AGAIN, "no thread for the controller");
	c->started = true;
	*out = c;
	return OK;
fail:
	control_close(c);
	return rc;
}

void control_close(struct control *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->wake_mu);
	c->stop = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->wake_mu);
	if (c->started)
		pthread_join(c->thread, NULL);
	lease_close(c->lease, true);
	if (c->kube)
		kube_cancel(c->kube);
	watches_close(c->watches);
	members_close(c->members);
	kube_close(c->kube);
	free(c->in_force.p);
	arena_free(&c->arena);
	pthread_cond_destroy(&c->wake);
	pthread_mutex_destroy(&c->wake_mu);
	pthread_mutex_destroy(&c->mu);
	free(c);
}
