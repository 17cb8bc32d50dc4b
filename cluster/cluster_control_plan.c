/* cluster/cluster_control_plan.c - from what is seen to the ring that should be in force. Pure: no clock, no file, nobody asked.
 *
 * For each ring of the base, the members are the Pods of the StatefulSets that name it, and the endpoints that the ring in force has besides. Each is judged
 * alone, by the first line that fits:
 *
 *     its number is not wanted (any more), or its StatefulSet is now of another ring     Pod there: draining, else gone                  out
 *     it says that it drains                                                             draining                                       out
 *     it runs, does not terminate, and says that it is ready                             active                                          in
 *     it is in the ring in force                                                         away: until --control.gone-after                in
 *     else                                                                               joining                                         out
 *
 * Then the ring as a whole: when more than half of it is away nobody is dropped for that; when it would fall below the replication factor those stay that
 * can serve best; when it never was in force it begins with as many as the factor, or not yet.
 *
 * What is wanted (spec.replicas) can so only take members away, and each of those once it is told to drain; it never adds one. That is why this controller has
 * not the loop that listing names by spec.replicas has (an autoscaler raises it, names enter that nobody answers to, writes fail, load rises, it is raised again).
 */
#include <stdlib.h>
#include "cluster/cluster_control_int.h"

const char *const control_state_names[MEMBER_STATES] = {"joining", "active", "away", "draining", "gone"};

enum { WORDS_MAX = 256 };

struct planner {
	const struct control_view *v;
	const struct control_config *cfg;
	struct arena *arena;
	struct control_plan *plan;
	struct err *err;

	uint32_t *by_set;	/* numbers of the Pods, sorted by StatefulSet, then by number */
	struct span *addresses; /* of each Pod */
	uint32_t *ordinals;	/* of each Pod; UINT32_MAX: its name has none */
	size_t members_cap;

	struct control_ring *old; /* the rings in force */
	size_t n_old;
};

static errc no_memory(struct planner *p)
{
	return err_set(p->err, ERR_NOMEM, "no memory for the plan of %zu Pods", p->v->n_pods);
}

static errc say(struct planner *p, const char *sentence)
{
	if (!sentence)
		return no_memory(p);
	if (p->plan->n_words < WORDS_MAX)
		p->plan->words[p->plan->n_words++] = sentence;
	return OK;
}

/* ---- names ---- */

/* "a-b-12" is number 12 of a-b. */
static bool name_split(struct span name, struct span *set, uint32_t *ordinal)
{
	size_t n = name.n;
	int64_t x;
	while (n > 0 && name.p[n - 1] >= '0' && name.p[n - 1] <= '9')
		n--;
	if (n < 2 || n == name.n || name.p[n - 1] != '-' || (name.p[n] == '0' && n + 1 < name.n))
		return false;
	if (!span_to_i64(span_of(name.p + n, name.n - n), &x) || x > INT32_MAX)
		return false;
	*set = span_of(name.p, n - 1);
	*ordinal = (uint32_t)x;
	return true;
}

static struct span first_label(struct span address)
{
	size_t n = 0;
	while (n < address.n && address.p[n] != '.' && address.p[n] != ':')
		n++;
	return span_of(address.p, n);
}

static struct span host(struct span address)
{
	for (size_t n = address.n; n-- > 0;)
		if (address.p[n] == ':')
			return span_of(address.p, n);
	return address;
}

static errc address_of(struct planner *p, struct span pod, const struct control_set *set, struct span *out)
{
	char *s = arena_printf(
		p->arena, "%.*s.%.*s.%s.svc.%s:%u", SPAN_ARG(pod), SPAN_ARG(set->service), p->cfg->namespace, p->cfg->cluster_domain, p->cfg->port);
	if (!s)
		return no_memory(p);
	*out = span_cstr(s);
	return OK;
}

static const struct control_set *find_set(const struct control_view *v, struct span name)
{
	for (size_t lo = 0, hi = v->n_sets; lo < hi;) {
		size_t mid = (lo + hi) / 2;
		int c = span_cmp(v->sets[mid].name, name);
		if (c == 0)
			return &v->sets[mid];
		if (c < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

static const struct control_pod *find_pod(const struct control_view *v, struct span name)
{
	for (size_t lo = 0, hi = v->n_pods; lo < hi;) {
		size_t mid = (lo + hi) / 2;
		int c = span_cmp(v->pods[mid].name, name);
		if (c == 0)
			return &v->pods[mid];
		if (c < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

static int by_set_and_number(const void *a, const void *b, void *arg)
{
	const struct planner *p = arg;
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	int c = span_cmp(p->v->pods[x].set, p->v->pods[y].set);
	return c ? c : (p->ordinals[x] > p->ordinals[y]) - (p->ordinals[x] < p->ordinals[y]);
}

static errc index_pods(struct planner *p)
{
	errc rc = OK;
	const struct control_view *v = p->v;
	p->by_set = arena_calloc(p->arena, v->n_pods, sizeof *p->by_set);
	p->addresses = arena_calloc(p->arena, v->n_pods, sizeof *p->addresses);
	p->ordinals = arena_calloc(p->arena, v->n_pods, sizeof *p->ordinals);
	if (!p->by_set || !p->addresses || !p->ordinals)
		return no_memory(p);
	for (uint32_t i = 0; i < v->n_pods; i++) {
		struct span set_name;
		const struct control_set *set = v->pods[i].set.n > 0 ? find_set(v, v->pods[i].set) : NULL;
		p->by_set[i] = i;
		if (!name_split(v->pods[i].name, &set_name, &p->ordinals[i]) || !span_eq(set_name, v->pods[i].set))
			p->ordinals[i] = UINT32_MAX;
		if (set)
			TRY(address_of(p, v->pods[i].name, set, &p->addresses[i]));
	}
	qsort_r(p->by_set, v->n_pods, sizeof *p->by_set, by_set_and_number, p);
fail:
	return rc;
}

/* ---- one member ---- */

static bool drains(const struct control_pod *pod)
{
	return pod && pod->answer.reached && (pod->answer.drain == DRAIN_DRAINING || pod->answer.drain == DRAIN_DRAINED);
}

static bool serves(const struct control_pod *pod)
{
	return pod && pod->running && !pod->terminating && pod->answer.reached && pod->answer.ready && !drains(pod);
}

static bool wanted(const struct control_set *set, uint32_t ordinal)
{
	return !set->leaving && ordinal >= set->first && ordinal - set->first < set->replicas;
}

static const char *why_not_ready(const struct control_pod *pod)
{
	if (!pod)
		return "its Pod is not there";
	if (pod->terminating)
		return "its Pod terminates, another one is to come";
	if (!pod->running)
		return "its Pod does not run yet";
	if (!pod->answer.asked)
		return "it was not asked yet";
	if (!pod->answer.reached)
		return "it does not answer";
	return "it says that it is not ready";
}

static int64_t absent_since(const struct control_view *v, struct span address)
{
	for (size_t i = 0; i < v->n_absences; i++)
		if (span_eq(v->absences[i].address, address))
			return v->absences[i].since_ms;
	return v->now_ms;
}

static void judge(struct planner *p, struct control_member *m)
{
	if (m->set && !wanted(m->set, m->ordinal)) {
		m->state = m->pod ? MEMBER_DRAINING : MEMBER_GONE;
		m->ask_drain = m->pod != NULL && m->pod->running;
		m->reason = !m->pod				    ? "its number is not wanted, and its Pod is gone"
			    : m->pod->answer.drain == DRAIN_DRAINED ? "its number is not wanted; it has drained"
								    : "its number is not wanted";
	} else if (drains(m->pod)) {
		m->state = MEMBER_DRAINING;
		m->reason = "it was told to drain";
	} else if (serves(m->pod)) {
		m->state = MEMBER_ACTIVE;
		m->in = true;
		m->reason = m->set ? "it is ready" : "it is ready, though no StatefulSet that is there has it";
	} else if (m->was_in) {
		m->state = MEMBER_AWAY;
		m->in = true;
		m->since_ms = absent_since(p->v, m->address);
		m->reason = why_not_ready(m->pod);
	} else {
		m->state = MEMBER_JOINING;
		m->reason = why_not_ready(m->pod);
	}
}

static errc add(struct planner *p, const struct control_member *m)
{
	struct control_plan *plan = p->plan;
	if (plan->n_members == p->members_cap) {
		size_t cap = p->members_cap ? 2 * p->members_cap : 64;
		struct control_member *grown = arena_calloc(p->arena, cap, sizeof *grown);
		if (!grown)
			return no_memory(p);
		if (plan->n_members)
			memcpy(grown, plan->members, plan->n_members * sizeof *grown);
		plan->members = grown;
		p->members_cap = cap;
	}
	plan->members[plan->n_members++] = *m;
	return OK;
}

/* ---- the members of a ring ---- */

static const struct control_ring *old_ring(const struct planner *p, struct span name)
{
	for (size_t i = 0; i < p->n_old; i++)
		if (span_eq(p->old[i].name, name))
			return &p->old[i];
	return NULL;
}

static int by_address(const void *a, const void *b)
{
	return span_cmp(((const struct control_endpoint *)a)->address, ((const struct control_endpoint *)b)->address);
}

/* Among those of a ring in force, which were sorted when it was read. */
static struct control_endpoint *old_endpoint(const struct control_ring *old, struct span address)
{
	const struct control_endpoint key = {.address = address};
	return old && old->n_endpoints ? bsearch(&key, old->endpoints, old->n_endpoints, sizeof key, by_address) : NULL;
}

static struct span zone_of(const struct control_pod *pod, const struct control_endpoint *was, const struct control_set *set)
{
	if (pod && pod->zone.n > 0)
		return pod->zone;
	/* between a crash and its replacement nobody knows it: it stays where it was */
	if (was && was->az.n > 0)
		return was->az;
	return set ? set->name : SPAN("");
}

static errc add_set(struct planner *p, const struct control_ring *ring, const struct control_ring *old, const struct control_set *set)
{
	errc rc = OK;
	const struct control_view *v = p->v;
	size_t lo = 0, hi = v->n_pods;
	uint32_t there = 0;
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (span_cmp(v->pods[p->by_set[mid]].set, set->name) < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < v->n_pods && span_eq(v->pods[p->by_set[lo]].set, set->name); lo++) {
		uint32_t i = p->by_set[lo];
		if (p->ordinals[i] == UINT32_MAX)
			continue;
		struct control_endpoint *was = old_endpoint(old, p->addresses[i]);
		if (was)
			was->taken = true;
		struct control_member m = {.ring = ring->name,
			.address = p->addresses[i],
			.az = zone_of(&v->pods[i], was, set),
			.pod = &v->pods[i],
			.set = set,
			.ordinal = p->ordinals[i],
			.was_in = was != NULL,
			.since_ms = -1};
		judge(p, &m);
		there += wanted(set, m.ordinal);
		TRY(add(p, &m));
	}
	if (set->blind)
		TRY(say(p, arena_printf(p->arena, "StatefulSet %.*s: its template does not give its Pods the label %s, so none of them is seen",
				   SPAN_ARG(set->name), p->cfg->label)));
	else if (!set->leaving && there < set->replicas)
		TRY(say(p, arena_printf(p->arena, "StatefulSet %.*s: %u replicas are wanted, %u Pods are there", SPAN_ARG(set->name), set->replicas,
				   there)));
fail:
	return rc;
}

/* An endpoint of the ring in force: of a Pod that is not there, or of something that is not of these StatefulSets. */
static errc add_old(struct planner *p, const struct control_ring *ring, const struct control_endpoint *e)
{
	errc rc = OK;
	const struct control_view *v = p->v;
	struct span name = first_label(e->address), set_name, address;
	uint32_t ordinal = 0;
	if (e->taken)
		return OK;
	const struct control_pod *pod = find_pod(v, name);
	const struct control_set *of = pod ? find_set(v, pod->set) : NULL;
	/* the same member under another port, as Thanos' files have it */
	if (of && span_eq(of->ring, ring->name) && span_eq(host(p->addresses[pod - v->pods]), host(e->address)))
		return OK;
	struct control_member m = {.ring = ring->name, .address = e->address, .az = e->az, .was_in = true, .since_ms = -1};
	const struct control_set *set = name_split(name, &set_name, &ordinal) ? find_set(v, set_name) : NULL;
	if (set) {
		TRY(address_of(p, name, set, &address));
		m.set = span_eq(address, e->address) ? set : NULL;
		m.ordinal = ordinal;
	}
	if (!m.set)
		m.pod = pod;
	if (m.set && !span_eq(m.set->ring, ring->name)) {
		m.state = MEMBER_GONE;
		m.reason = "its StatefulSet is of another ring now";
	} else {
		judge(p, &m);
	}
	if (m.state == MEMBER_AWAY && !m.set && !m.pod)
		m.reason = "no StatefulSet that is there has it";
	rc = add(p, &m);
fail:
	return rc;
}

/* ---- the ring as a whole ---- */

static size_t count_in(const struct planner *p, size_t first)
{
	size_t n = 0;
	for (size_t i = first; i < p->plan->n_members; i++)
		n += p->plan->members[i].in;
	return n;
}

static errc drop_absent(struct planner *p, struct span ring, size_t first)
{
	struct control_plan *plan = p->plan;
	size_t away = 0, members = 0;
	for (size_t i = first; i < plan->n_members; i++) {
		away += plan->members[i].state == MEMBER_AWAY;
		members += plan->members[i].in;
	}
	bool hold = away * 2 > members;
	bool held = false;
	for (size_t i = first; i < plan->n_members; i++) {
		struct control_member *m = &plan->members[i];
		if (m->state != MEMBER_AWAY)
			continue;
		int64_t due_ms = m->since_ms + p->cfg->gone_after_ms;
		if (due_ms > p->v->now_ms) {
			plan->wake_ms = plan->wake_ms < 0 || due_ms < plan->wake_ms ? due_ms : plan->wake_ms;
		} else if (hold) {
			held = true;
			m->reason = "it is away for long, but so is most of its ring: nobody is dropped";
		} else {
			m->state = MEMBER_GONE;
			m->in = false;
			m->reason = "it is away for longer than --control.gone-after";
		}
	}
	if (!held)
		return OK;
	return say(
		p, arena_printf(p->arena, "ring %.*s: %zu of its %zu members are away; nobody is dropped for that", SPAN_ARG(ring), away, members));
}

/* How well somebody who should leave can still serve; 0: not at all a candidate. */
static int worth_keeping(const struct control_member *m)
{
	if (m->in || !m->was_in)
		return 0;
	if (m->state == MEMBER_DRAINING)
		return serves(m->pod) ? 4 : 2;
	return m->since_ms >= 0 ? 3 : 1;
}

static errc keep_last(struct planner *p, struct span ring, size_t first)
{
	struct control_plan *plan = p->plan;
	size_t n = count_in(p, first), kept = 0;
	while (n < p->cfg->ring.replication_factor) {
		struct control_member *best = NULL;
		for (size_t i = first; i < plan->n_members; i++) {
			struct control_member *m = &plan->members[i];
			int worth = worth_keeping(m);
			if (worth > 0 && (!best || worth > worth_keeping(best) || (worth == worth_keeping(best) && m->since_ms > best->since_ms)))
				best = m;
		}
		if (!best)
			break;
		best->in = true;
		best->ask_drain = false;
		best->reason = "it should leave, but the ring would have fewer endpoints than the replication factor";
		n++;
		kept++;
	}
	if (kept == 0)
		return OK;
	return say(p, arena_printf(p->arena, "ring %.*s: %zu endpoints are kept that should leave, for it must have %u (--replication-factor)",
			      SPAN_ARG(ring), kept, p->cfg->ring.replication_factor));
}

static errc begin_or_wait(struct planner *p, struct span ring, size_t first)
{
	size_t n = count_in(p, first);
	if (n >= p->cfg->ring.replication_factor)
		return OK;
	for (size_t i = first; i < p->plan->n_members; i++) {
		struct control_member *m = &p->plan->members[i];
		if (!m->in)
			continue;
		m->in = false;
		m->state = MEMBER_JOINING;
		m->reason = "it is ready; the ring begins when as many as the replication factor are";
	}
	return say(p, arena_printf(p->arena, "ring %.*s begins when %u members are ready (--replication-factor); %zu are", SPAN_ARG(ring),
			      p->cfg->ring.replication_factor, n));
}

static errc put_endpoints(struct planner *p, struct control_ring *ring, size_t first)
{
	ring->n_endpoints = 0;
	ring->endpoints = arena_calloc(p->arena, p->plan->n_members - first, sizeof *ring->endpoints);
	if (!ring->endpoints)
		return no_memory(p);
	for (size_t i = first; i < p->plan->n_members; i++)
		if (p->plan->members[i].in)
			ring->endpoints[ring->n_endpoints++] =
				(struct control_endpoint){.address = p->plan->members[i].address, .az = p->plan->members[i].az};
	return OK;
}

/* An absence must not change the order, or it would change the text. */
static int by_place(const void *a, const void *b)
{
	const struct control_member *x = a, *y = b;
	if (!x->set != !y->set)
		return x->set ? -1 : 1;
	int c = x->set ? span_cmp(x->set->name, y->set->name) : 0;
	if (c == 0 && x->set)
		c = (x->ordinal > y->ordinal) - (x->ordinal < y->ordinal);
	return c ? c : span_cmp(x->address, y->address);
}

static errc plan_ring(struct planner *p, struct control_ring *ring)
{
	errc rc = OK;
	const struct control_view *v = p->v;
	const struct control_ring *old = old_ring(p, ring->name);
	size_t first = p->plan->n_members, n_sets = 0;
	for (size_t i = 0; i < v->n_sets; i++) {
		if (!span_eq(v->sets[i].ring, ring->name))
			continue;
		n_sets++;
		TRY(add_set(p, ring, old, &v->sets[i]));
	}
	ring->by_hand = n_sets == 0 && ring->n_endpoints > 0;
	if (ring->by_hand)
		return OK;
	for (size_t i = 0; old && i < old->n_endpoints; i++)
		TRY(add_old(p, ring, &old->endpoints[i]));
	if (p->plan->n_members > first)
		qsort(p->plan->members + first, p->plan->n_members - first, sizeof *p->plan->members, by_place);
	if (n_sets == 0)
		TRY(say(p, arena_printf(p->arena, "ring %.*s: no StatefulSet has the label " KUBE_RING_LABEL "=%.*s", SPAN_ARG(ring->name),
				   SPAN_ARG(ring->name))));
	TRY(drop_absent(p, ring->name, first));
	if (old && old->n_endpoints > 0)
		TRY(keep_last(p, ring->name, first));
	else
		TRY(begin_or_wait(p, ring->name, first));
	rc = put_endpoints(p, ring, first);
fail:
	return rc;
}

/* ---- all of it ---- */

/* Without a base: a ring for each ring label, sorted. */
static errc rings_of_labels(struct planner *p, json_t **root, struct control_ring **out, size_t *n)
{
	errc rc = OK;
	const struct control_view *v = p->v;
	*n = 0;
	*root = json_array();
	*out = arena_calloc(p->arena, v->n_sets, sizeof **out);
	if (!*root || !*out)
		return no_memory(p);
	for (size_t i = 0; i < v->n_sets; i++) {
		size_t at = 0;
		while (at < *n && span_cmp((*out)[at].name, v->sets[i].ring) < 0)
			at++;
		if (v->sets[i].ring.n == 0 || (at < *n && span_eq((*out)[at].name, v->sets[i].ring)))
			continue;
		json_t *o = json_pack("{s:s%}", "hashring", v->sets[i].ring.p, v->sets[i].ring.n);
		if (!o || json_array_append_new(*root, o) != 0)
			return no_memory(p);
		memmove(*out + at + 1, *out + at, (*n - at) * sizeof **out);
		(*out)[at] = (struct control_ring){.name = v->sets[i].ring, .object = o};
		++*n;
	}
	return rc;
}

/* StatefulSets whose ring the base does not have. */
static errc say_strays(struct planner *p, const struct control_ring *rings, size_t n)
{
	errc rc = OK;
	for (size_t i = 0; i < p->v->n_sets; i++) {
		const struct control_set *set = &p->v->sets[i];
		size_t k = 0;
		while (k < n && !span_eq(rings[k].name, set->ring))
			k++;
		if (k == n)
			TRY(say(p, arena_printf(p->arena, "StatefulSet %.*s: no ring of ConfigMap %s is called \"%.*s\"", SPAN_ARG(set->name),
					   p->cfg->configmap ? p->cfg->configmap : "", SPAN_ARG(set->ring))));
	}
fail:
	return rc;
}

static errc note_absences(struct planner *p)
{
	struct control_plan *plan = p->plan;
	plan->absences = arena_calloc(p->arena, plan->n_members, sizeof *plan->absences);
	if (!plan->absences)
		return no_memory(p);
	for (size_t i = 0; i < plan->n_members; i++)
		if (plan->members[i].since_ms >= 0)
			plan->absences[plan->n_absences++] = (struct control_absence){plan->members[i].address, plan->members[i].since_ms};
	return OK;
}

static errc validate(struct planner *p)
{
	struct ring_set *set = NULL;
	errc rc = ring_set_parse("the ring that would be published", p->plan->text, &p->cfg->ring, &set, p->err);
	ring_set_unref(set);
	return rc;
}

errc control_plan(const struct control_view *v, struct arena *arena, struct control_plan *out, struct err *err)
{
	errc rc = OK;
	struct err local = {0};
	json_t *base = NULL, *old = NULL;
	struct control_ring *rings = NULL;
	size_t n = 0;
	struct planner p = {.v = v, .cfg = v->cfg, .arena = arena, .plan = out, .err = err ? err : &local};
	err = p.err;
	*out = (struct control_plan){.wake_ms = -1};
	out->words = arena_calloc(arena, WORDS_MAX, sizeof *out->words);
	CHECK(out->words, ERR_NOMEM, "no memory for a plan");
	TRY(index_pods(&p));
	/* one that nobody can read holds nobody: it is judged, and reverted, as an edit by hand */
	if (v->in_force.p && control_rings_read("the ring in force", v->in_force, arena, &old, &p.old, &p.n_old, NULL) != OK)
		p.n_old = 0;
	for (size_t i = 0; i < p.n_old; i++)
		if (p.old[i].n_endpoints > 0)
			qsort(p.old[i].endpoints, p.old[i].n_endpoints, sizeof *p.old[i].endpoints, by_address);
	if (v->base.p)
		TRY(control_rings_read(v->cfg->configmap, v->base, arena, &base, &rings, &n, err));
	else if (!v->cfg->configmap)
		TRY(rings_of_labels(&p, &base, &rings, &n));
	else {
		rc = say(&p, arena_printf(arena, "ConfigMap %s is not there, or has no %s", v->cfg->configmap, v->cfg->file_name));
		goto fail;
	}
	size_t with_endpoints = 0;
	for (size_t i = 0; i < n; i++) {
		TRY(plan_ring(&p, &rings[i]));
		with_endpoints += rings[i].n_endpoints > 0;
	}
	TRY(say_strays(&p, rings, n));
	TRY(note_absences(&p));
	if (with_endpoints > 0) {
		TRY(control_rings_write(rings, n, v->cfg->az_aware, arena, &out->text, err));
		out->change = !v->in_force.p || !span_eq(out->text, v->in_force);
		if (out->change)
			TRY(validate(&p));
	}
fail:
	json_decref(base);
	json_decref(old);
	if (rc != OK)
		out->text = (struct span){0};
	return rc;
}
