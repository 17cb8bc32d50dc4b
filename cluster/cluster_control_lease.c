/* cluster/cluster_control_lease.c - one of many: who holds a Lease (coordination.k8s.io/v1) acts.
 *
 * The holder renews it every sixth of its duration and stops acting two thirds of it after the last renewal was asked for; another takes it when it saw no
 * renewal for the whole duration, by its own clock: clocks of machines are never compared. What lies between is the room for a slow request. A write goes with
 * the resourceVersion that was read, so of two who take it at once one gets 409.
 *
 * A holder that is stopped in its tracks and wakes up late may still send one write: to the ConfigMap it goes with a version too, and what members were told is
 * put right by the holder, who asks them for their epoch.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "base/io.h"
#include "base/log.h"
#include "cluster/cluster_control_int.h"

enum { IDENTITY_BYTES = 320 };

struct lease {
	const struct control_config *cfg;
	struct kube *kube;
	void (*woken)(void *arg);
	void *arg;
	char path[1024], list_path[512];
	char identity[IDENTITY_BYTES];
	pthread_t thread;
	bool started;
	/* the thread's own */
	char seen[IDENTITY_BYTES + 64]; /* holder and renewal as they were last, and since when */
	int64_t seen_ms;
	/* guarded by mu */
	pthread_mutex_t mu;
	pthread_cond_t wake;
	bool stop;
	int64_t held_until_ms; /* monotonic; 0: not held */
	char holder[IDENTITY_BYTES];
	struct metric *leader, *changes;
};

static void time_text(char out[40])
{
	int64_t ms = io_now_ms();
	time_t s = (time_t)(ms / 1000);
	struct tm tm;
	char day[32];
	gmtime_r(&s, &tm);
	strftime(day, sizeof day, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(out, 40, "%.20s.%03u000Z", day, (unsigned)(ms % 1000) % 1000);
}

static void set_held(struct lease *l, bool held, int64_t until_ms, const char *holder)
{
	pthread_mutex_lock(&l->mu);
	bool was = l->held_until_ms > 0;
	l->held_until_ms = held ? until_ms : 0;
	if (holder)
		snprintf(l->holder, sizeof l->holder, "%s", holder);
	pthread_mutex_unlock(&l->mu);
	metric_set(l->leader, held);
	if (was == held)
		return;
	metric_add(l->changes, 1);
	if (held)
		log_info("this controller leads", LSTR("identity", l->identity));
	else
		log_warn("this controller does not lead any more", LSTR("holder", holder ? holder : "not known"));
	l->woken(l->arg);
}

/* The object as it is to be: `was` with our name, or a new one. */
static json_t *make(const struct lease *l, const json_t *was, const char *holder)
{
	char now[40];
	time_text(now);
	const json_t *old = json_object_get(was, "spec");
	const char *before = json_string_value(json_object_get(old, "holderIdentity"));
	json_t *spec = old ? json_deep_copy(old) : json_object();
	json_t *meta = was ? json_deep_copy(json_object_get(was, "metadata")) : json_pack("{s:s}", "name", l->cfg->lease);
	bool bad = !spec || !meta;
	if (!bad && (!before || strcmp(before, holder) != 0)) {
		bad |= json_object_set_new(spec, "acquireTime", json_string(now)) != 0;
		bad |= json_object_set_new(spec, "leaseTransitions",
			       json_integer(was ? json_integer_value(json_object_get(old, "leaseTransitions")) + 1 : 0)) != 0;
	}
	bad = bad || json_object_set_new(spec, "holderIdentity", json_string(holder)) != 0;
	bad = bad || json_object_set_new(spec, "renewTime", json_string(now)) != 0;
	int64_t seconds = *holder ? (l->cfg->lease_ms + 999) / 1000 : 1;
	bad = bad || json_object_set_new(spec, "leaseDurationSeconds", json_integer(seconds)) != 0;
	json_t *o =
		bad ? NULL : json_pack("{s:s,s:s,s:O,s:O}", "apiVersion", "coordination.k8s.io/v1", "kind", "Lease", "metadata", meta, "spec", spec);
	json_decref(meta);
	json_decref(spec);
	return o;
}

static errc write_lease(struct lease *l, const json_t *was, const char *holder, struct err *err)
{
	json_t *answer = NULL, *o = make(l, was, holder);
	if (!o)
		return err_set(err, ERR_NOMEM, "no memory for a lease");
	errc rc = kube_call(l->kube, was ? "PUT" : "POST", was ? l->path : l->list_path, "application/json", o, &answer, err);
	json_decref(answer);
	json_decref(o);
	return rc;
}

/* Whether the holder, as it stands there, may be taken for gone. */
static bool expired(struct lease *l, const json_t *spec)
{
	char now[sizeof l->seen];
	const char *holder = json_string_value(json_object_get(spec, "holderIdentity")),
		   *renewed = json_string_value(json_object_get(spec, "renewTime"));
	if (!holder || !*holder || strcmp(holder, l->identity) == 0)
		return true;
	snprintf(now, sizeof now, "%s %s", holder, renewed ? renewed : "");
	if (strcmp(now, l->seen) != 0) {
		strcpy(l->seen, now);
		l->seen_ms = io_mono_ms();
	}
	int64_t seconds = json_integer_value(json_object_get(spec, "leaseDurationSeconds"));
	int64_t ms = seconds > 0 && seconds < 3600 ? seconds * 1000 : l->cfg->lease_ms;
	return io_mono_ms() - l->seen_ms > ms;
}

static errc renew(struct lease *l, struct err *err)
{
	json_t *o = NULL;
	int64_t began_ms = io_mono_ms();
	errc rc = kube_call(l->kube, "GET", l->path, NULL, NULL, &o, err);
	if (rc == ERR_NOTFOUND)
		rc = write_lease(l, NULL, l->identity, err);
	else if (rc == OK) {
		const json_t *spec = json_object_get(o, "spec");
		if (!expired(l, spec)) {
			set_held(l, false, 0, json_string_value(json_object_get(spec, "holderIdentity")));
			goto fail;
		}
		rc = write_lease(l, o, l->identity, err);
	}
	if (rc == OK)
		set_held(l, true, began_ms + l->cfg->lease_ms * 2 / 3, l->identity);
fail:
	json_decref(o);
	return rc;
}

static void *run(void *arg)
{
	struct lease *l = arg;
	bool said = false;
	for (;;) {
		struct err err = {0};
		errc rc = renew(l, &err);
		if (rc && rc != ERR_CANCELED && rc != ERR_EXISTS) {
			if (!said)
				log_warn("the lease can't be read or renewed", LERR(&err));
			said = true;
			if (!lease_held(l))
				set_held(l, false, 0, NULL);
		} else {
			said = false;
		}
		int64_t until = io_mono_ns() + l->cfg->lease_ms / 6 * 1000000;
		struct timespec t = {until / 1000000000, until % 1000000000};
		pthread_mutex_lock(&l->mu);
		while (!l->stop)
			if (pthread_cond_timedwait(&l->wake, &l->mu, &t) != 0)
				break;
		bool stop = l->stop;
		pthread_mutex_unlock(&l->mu);
		if (stop)
			return NULL;
	}
}

bool lease_held(struct lease *l)
{
	pthread_mutex_lock(&l->mu);
	bool held = !l->stop && l->held_until_ms > io_mono_ms();
	pthread_mutex_unlock(&l->mu);
	return held;
}

void lease_holder(struct lease *l, char *out, size_t n)
{
	pthread_mutex_lock(&l->mu);
	snprintf(out, n, "%s", l->holder);
	pthread_mutex_unlock(&l->mu);
}

errc lease_open(const struct control_config *cfg, struct kube *k, void (*woken)(void *arg), void *arg, struct lease **out, struct err *err)
{
	errc rc = OK;
	struct lease *l = calloc(1, sizeof *l);
	if (!l)
		return err_set(err, ERR_NOMEM, "no memory for a lease");
	l->cfg = cfg;
	l->kube = k;
	l->woken = woken;
	l->arg = arg;
	l->leader = metric_gauge("varve_control_leader", "1 while this controller holds the lease");
	l->changes = metric_counter("varve_control_leader_changes_total", "Times that this controller got the lease or lost it");
	pthread_mutex_init(&l->mu, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->wake, &attr);
	pthread_condattr_destroy(&attr);
	snprintf(l->list_path, sizeof l->list_path, "/apis/coordination.k8s.io/v1/namespaces/%s/leases", kube_namespace(k));
	snprintf(l->path, sizeof l->path, "%s/%s", l->list_path, cfg->lease);
	/* a name of this process: two that were started with the same one are two */
	snprintf(l->identity, sizeof l->identity, "%.*s_%08x", 256, cfg->identity, (unsigned)io_random_u64());
	CHECK(pthread_create(&l->thread, NULL, run, l) == 0, ERR_AGAIN, "no thread for the lease");
	l->started = true;
	*out = l;
	return OK;
fail:
	lease_close(l, false);
	return rc;
}

void lease_close(struct lease *l, bool release)
{
	if (!l)
		return;
	bool held = lease_held(l);
	pthread_mutex_lock(&l->mu);
	l->stop = true;
	pthread_cond_broadcast(&l->wake);
	pthread_mutex_unlock(&l->mu);
	if (l->started)
		pthread_join(l->thread, NULL);
	if (release && held) {
		json_t *o = NULL;
		struct err err = {0};
		errc rc = kube_call(l->kube, "GET", l->path, NULL, NULL, &o, &err);
		const char *holder = json_string_value(json_object_get(json_object_get(o, "spec"), "holderIdentity"));
		if (rc == OK && holder && strcmp(holder, l->identity) == 0)
			rc = write_lease(l, o, "", &err);
		if (rc)
			log_warn("the lease could not be let go, it expires", LERR(&err));
		json_decref(o);
	}
	pthread_cond_destroy(&l->wake);
	pthread_mutex_destroy(&l->mu);
	free(l);
}
