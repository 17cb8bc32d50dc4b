/* The controller's side of the Kubernetes API against one that pages, breaks off, forgets versions, talks nonsense and is slow; and its Lease against
 * itself, twice. (Against a real one: tests/kubernetes.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "cluster/cluster_control_int.h"
#include "tests/support/fail_alloc.h"

enum { PODS = 1200, EVENTS = 8 };

struct api {
	struct http_server *http;
	char url[64];
	struct control_config cfg;
	struct kube *kube;
	atomic_int woken;

	pthread_mutex_t mu; /* guards what follows */
	bool there[PODS];
	const char *events[EVENTS]; /* for the next watches of Pods, one each; NULL: it only stands */
	int chop;		    /* bytes a write */
	int list_status, watch_status, lists, watches;
	bool stop;
	/* the Lease */
	char *lease;
	int lease_version, conflicts;
};

static void woken(void *arg)
{
	atomic_fetch_add(&((struct api *)arg)->woken, 1);
}

static void pod_text(struct buf *b, int i, const char *phase)
{
	buf_printf(b,
		"{\"kind\":\"Pod\",\"metadata\":{\"name\":\"p-%04d\",\"uid\":\"u%d\",\"resourceVersion\":\"%d\",\"labels\":{\"" KUBE_ZONE_LABEL
		"\":\"z%d\"},\"ownerReferences\":[{\"kind\":\"Node\",\"name\":\"no\"},{\"kind\":\"StatefulSet\",\"name\":\"p\",\"controller\":true}]}"
		","
		"\"status\":{\"phase\":\"%s\",\"podIP\":\"10.0.0.1\"}}",
		i, i, 1000 + i, i % 3, phase);
}

static void answer_status(struct http_request *r, int status)
{
	http_answer(r, status, "application/json", SPAN("{\"kind\":\"Status\",\"message\":\"so it is\"}"));
}

static void stand(struct api *a, struct http_request *r, const char *events, int chop)
{
	struct err err = {0};
	if (http_stream_begin(r, 200, "application/json", &err) != OK)
		return;
	errc rc = OK;
	for (size_t at = 0, n = events ? strlen(events) : 0; at < n && rc == OK; at += (size_t)chop)
		rc = http_stream_write(r, span_of(events + at, n - at < (size_t)chop ? n - at : (size_t)chop), &err);
	/* the server passes on what is a block; empty lines are none of the API's */
	char blank[64 * KIB];
	memset(blank, '\n', sizeof blank);
	if (events && rc == OK)
		rc = http_stream_write(r, span_of(blank, sizeof blank), &err);
	for (bool stop = false; !stop && rc == OK;) {
		io_sleep_ms(5);
		pthread_mutex_lock(&a->mu);
		stop = a->stop;
		pthread_mutex_unlock(&a->mu);
		if (http_client_gone(r))
			stop = true;
	}
	http_stream_end(r, rc == OK);
}

static bool number(struct span s, int *out)
{
	int64_t x;
	bool good = span_to_i64(s, &x);
	*out = good ? (int)x : 0;
	return good;
}

static void pods(void *arg, struct http_request *r)
{
	struct api *a = arg;
	struct err err = {0};
	assert_int_equal(http_parse_params(r, &err), OK);
	pthread_mutex_lock(&a->mu);
	bool watch = http_param(r, "watch", 0).p != NULL;
	int status = watch ? a->watch_status : a->list_status;
	const char *events = watch && !status && a->watches < EVENTS ? a->events[a->watches] : NULL;
	a->watches += watch;
	a->lists += !watch;
	int chop = a->chop;
	if (status && watch)
		a->watch_status = 0; /* once */
	pthread_mutex_unlock(&a->mu);
	if (!span_is(http_param(r, "labelSelector", 0), "l=c"))
		status = 400;
	if (status) {
		answer_status(r, status);
		return;
	}
	if (watch) {
		stand(a, r, events, chop ? chop : 7);
		return;
	}
	/* a token as the API has them, of anything */
	struct span token = http_param(r, "continue", 0);
	int from = 0;
	if (token.p && !(span_has_prefix(token, SPAN("a/b+c== &")) && number(span_of(token.p + 9, token.n - 9), &from)))
		from = PODS;
	struct buf b;
	buf_init(&b, 64 * MIB);
	buf_printf(&b, "{\"kind\":\"PodList\",\"metadata\":{\"resourceVersion\":\"77\"");
	if (from + LIMIT_KUBE_PAGE < PODS)
		buf_printf(&b, ",\"continue\":\"a/b+c== &%d\"", from + LIMIT_KUBE_PAGE);
	buf_printf(&b, "},\"items\":[");
	const char *comma = "";
	pthread_mutex_lock(&a->mu);
	for (int i = from; i < PODS && i < from + LIMIT_KUBE_PAGE; i++) {
		if (!a->there[i])
			continue;
		buf_printf(&b, "%s", comma);
		pod_text(&b, i, "Running");
		comma = ",";
	}
	pthread_mutex_unlock(&a->mu);
	buf_printf(&b, "]}");
	http_answer(r, 200, "application/json", span_of(b.p, b.n));
	buf_free(&b);
}

static void other(void *arg, struct http_request *r)
{
	struct err err = {0};
	assert_int_equal(http_parse_params(r, &err), OK);
	if (http_param(r, "watch", 0).p)
		stand(arg, r, NULL, 1);
	else
		http_answer(r, 200, "application/json", SPAN("{\"metadata\":{\"resourceVersion\":\"1\"},\"items\":[]}"));
}

static void status(void *arg, struct http_request *r)
{
	(void)arg;
	int64_t code = 0;
	assert_true(span_to_i64(http_path_arg(r), &code));
	answer_status(r, (int)code);
}

static void lease(void *arg, struct http_request *r)
{
	struct api *a = arg;
	struct span body = http_body(r);
	pthread_mutex_lock(&a->mu);
	if (http_method(r) == HTTP_GET) {
		if (a->lease)
			http_answer(r, 200, "application/json", span_cstr(a->lease));
		else
			answer_status(r, 404);
	} else {
		json_t *o = json_loadb(body.p, body.n, 0, NULL);
		const char *version = json_string_value(json_object_get(json_object_get(o, "metadata"), "resourceVersion"));
		if (http_method(r) == HTTP_POST ? a->lease != NULL : !version || atoi(version) != a->lease_version) {
			a->conflicts++;
			answer_status(r, 409);
		} else {
			char v[16];
			snprintf(v, sizeof v, "%d", ++a->lease_version);
			json_object_set_new(json_object_get(o, "metadata"), "resourceVersion", json_string(v));
			free(a->lease);
			a->lease = json_dumps(o, 0);
			http_answer(r, 200, "application/json", span_cstr(a->lease));
		}
		json_decref(o);
	}
	pthread_mutex_unlock(&a->mu);
}

static void api_start(struct api *a)
{
	memset(a, 0, sizeof *a);
	pthread_mutex_init(&a->mu, NULL);
	log_setup(LOG_ERROR, LOG_LOGFMT);
	for (int i = 0; i < PODS; i++)
		a->there[i] = true;
	const struct http_route routes[] = {
		{HTTP_GET, "/api/v1/namespaces/ns/pods", HTTP_WORKER, 0, pods, a},
		{HTTP_GET, "/api/v1/namespaces/ns/configmaps", HTTP_WORKER, 0, other, a},
		{HTTP_GET, "/apis/apps/v1/namespaces/ns/statefulsets", HTTP_WORKER, 0, other, a},
		{HTTP_GET, "/status/*", HTTP_WORKER, 0, status, a},
		{HTTP_POST, "/apis/coordination.k8s.io/v1/namespaces/ns/leases", HTTP_WORKER, MIB, lease, a},
		{HTTP_GET | HTTP_PUT, "/apis/coordination.k8s.io/v1/namespaces/ns/leases/*", HTTP_WORKER, MIB, lease, a},
	};
	const struct http_server_config cfg = {
		.address = "127.0.0.1:0", .workers = 16, .worker_queue = 64, .max_connections = 200, .max_inflight_bytes = 64 * MIB};
	struct err err = {0};
	if (http_server_start(&cfg, routes, sizeof routes / sizeof *routes, &a->http, &err) != OK)
		fail_msg("%s", err.msg);
	snprintf(a->url, sizeof a->url, "http://127.0.0.1:%u", http_server_port(a->http));
	a->cfg = (struct control_config){.kube_url = a->url,
		.namespace = "ns",
		.label = "l=c",
		.generated = "g",
		.file_name = "f",
		.lease = "one",
		.identity = "me",

		.lease_ms = 1000};
	assert_int_equal(kube_open(&a->cfg, &a->kube, &err), OK);
}

static void api_stop(struct api *a)
{
	pthread_mutex_lock(&a->mu);
	a->stop = true;
	pthread_mutex_unlock(&a->mu);
	http_server_stop(a->http, 2000);
	kube_close(a->kube);
	free(a->lease);
	pthread_mutex_destroy(&a->mu);
}

static size_t pods_seen(struct watches *w, struct arena *arena, const char *name, bool *running)
{
	struct watched seen;
	arena_reset(arena);
	assert_int_equal(watches_view(w, arena, &seen, NULL), OK);
	for (size_t i = 0; i < seen.n_pods; i++) {
		if (i > 0)
			assert_true(span_cmp(seen.pods[i - 1].name, seen.pods[i].name) < 0);
		if (span_is(seen.pods[i].name, name))
			*running = seen.pods[i].running;
	}
	return seen.n_pods;
}

static void wait_pods(struct watches *w, size_t n, const char *name, bool is_running)
{
	struct arena arena;
	arena_init(&arena, 64 * MIB);
	for (int64_t until = io_mono_ms() + 10000;;) {
		bool running = !is_running;
		size_t seen = pods_seen(w, &arena, name, &running);
		if (seen == n && running == is_running)
			break;
		if (io_mono_ms() > until)
			fail_msg("%zu Pods are seen, %zu are there", seen, n);
		io_sleep_ms(5);
	}
	arena_free(&arena);
}

#define EVENT(type, name, phase)                                                                                                                     \
	"{\"type\":\"" type "\",\"object\":{\"metadata\":{\"name\":\"" name                                                                          \
	"\",\"uid\":\"u\",\"resourceVersion\":\"90\"},\"status\":{\"phase\":\"" phase "\"}}}\n"

static void pages_and_events_however_they_are_cut(void **state)
{
	(void)state;
	static const int chops[] = {1, 7, 100000};
	for (size_t c = 0; c < sizeof chops / sizeof *chops; c++) {
		struct api a;
		struct watches *w;
		api_start(&a);
		a.chop = chops[c];
		a.events[0] = EVENT("MODIFIED", "p-0003", "Pending") EVENT("ADDED", "new", "Running") EVENT("DELETED", "p-0004",
			"Running") "\n"
				   "{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"95\"}}}\n" EVENT("DELETED", "never", "x");
		assert_int_equal(watches_open(&a.cfg, a.kube, woken, &a, &w, NULL), OK);
		wait_pods(w, PODS, "p-0003", false);
		char why[ERR_MSG_BYTES];
		assert_true(watches_synced(w, why, sizeof why) && watches_fresh(w, why, sizeof why));
		assert_true(atomic_load(&a.woken) >= 3);
		assert_int_equal(a.lists, 3);
		kube_cancel(a.kube);
		watches_close(w);
		api_stop(&a);
	}
}

/* Whatever ends a watch, what comes after it is whole: also what was removed unseen is gone. */
static void after_trouble_all_is_as_it_is(void **state)
{
	(void)state;
	static const char *const trouble[] = {
		"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":410,\"message\":\"too old\"}}\n",
		"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"code\":500}}\n", "{\"type\":\"ERROR\",\"object\":7}\n", "not json\n", "[]\n",
		"7\n", "{\"type\":\"ADDED\"}\n", "{\"type\":7,\"object\":{}}\n", "{\"type\":\"ADDED\",\"object\":{}}\n",
		"{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":7}}}\n",
		"{\"type\":\"ADDED\",\"object\":{\"metadata\":[],\"spec\":\"x\",\"status\":null}}\n", NULL, /* 410 as the status */
		NULL,											    /* 500 */
	};
	for (size_t t = 0; t < sizeof trouble / sizeof *trouble; t++) {
		struct api a;
		struct watches *w;
		api_start(&a);
		a.events[0] = trouble[t];
		a.watch_status = trouble[t] ? 0 : t + 1 == sizeof trouble / sizeof *trouble ? 500 : 410;
		assert_int_equal(watches_open(&a.cfg, a.kube, woken, &a, &w, NULL), OK);
		/* before the second list */
		int64_t until = io_mono_ms() + 10000;
		for (bool seen = false; !seen && io_mono_ms() < until; io_sleep_ms(1)) {
			pthread_mutex_lock(&a.mu);
			if ((seen = a.lists >= 3)) {
				a.there[5] = false;
				a.there[1100] = false;
			}
			pthread_mutex_unlock(&a.mu);
		}
		wait_pods(w, PODS - 2, "p-0006", true);
		kube_cancel(a.kube);
		watches_close(w);
		api_stop(&a);
	}
}

static void an_api_that_refuses_leaves_what_was_seen(void **state)
{
	(void)state;
	struct api a;
	struct watches *w;
	char why[ERR_MSG_BYTES] = "";
	api_start(&a);
	a.list_status = 503;
	assert_int_equal(watches_open(&a.cfg, a.kube, woken, &a, &w, NULL), OK);
	io_sleep_ms(300);
	assert_false(watches_synced(w, why, sizeof why));
	assert_non_null(strstr(why, "Pods were not listed yet"));
	pthread_mutex_lock(&a.mu);
	a.list_status = 0;
	a.events[0] = "nonsense\n";
	pthread_mutex_unlock(&a.mu);
	wait_pods(w, PODS, "p-0001", true);
	for (int64_t until = io_mono_ms() + 5000; !watches_synced(w, why, sizeof why) && io_mono_ms() < until;)
		io_sleep_ms(5);
	pthread_mutex_lock(&a.mu);
	a.list_status = 403;
	pthread_mutex_unlock(&a.mu);
	kube_cancel(a.kube);
	for (int64_t until = io_mono_ms() + 5000; watches_fresh(w, why, sizeof why) && io_mono_ms() < until;)
		io_sleep_ms(5);
	assert_true(watches_synced(w, why, sizeof why));
	assert_false(watches_fresh(w, why, sizeof why));
	wait_pods(w, PODS, "p-0001", true);
	watches_close(w);
	api_stop(&a);
}

static void statuses_have_their_meaning(void **state)
{
	(void)state;
	static const struct {
		int status;
		errc code;
	} cases[] = {{200, OK}, {201, OK}, {400, ERR_INVALID}, {401, ERR_DENIED}, {403, ERR_DENIED}, {404, ERR_NOTFOUND}, {409, ERR_EXISTS},
		{410, ERR_INVALID}, {422, ERR_INVALID}, {429, ERR_AGAIN}, {500, ERR_AGAIN}, {503, ERR_AGAIN}, {504, ERR_AGAIN}};
	struct api a;
	api_start(&a);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct err err = {0};
		char path[64];
		json_t *answer;
		snprintf(path, sizeof path, "/status/%d", cases[i].status);
		assert_int_equal(kube_call(a.kube, "GET", path, NULL, NULL, &answer, &err), cases[i].code);
		if (cases[i].code)
			assert_non_null(strstr(err.msg, "so it is"));
		json_decref(answer);
	}
	api_stop(&a);
}

static int leading(struct lease **l, int n)
{
	int held = 0;
	for (int i = 0; i < n; i++)
		held += l[i] && lease_held(l[i]);
	return held;
}

static void one_of_three_leads(void **state)
{
	(void)state;
	struct api a;
	struct lease *l[3] = {0};
	api_start(&a);
	for (int i = 0; i < 3; i++)
		assert_int_equal(lease_open(&a.cfg, a.kube, woken, &a, &l[i], NULL), OK);
	for (int rounds = 3; rounds > 0; rounds--) {
		int64_t until = io_mono_ms() + 6000;
		while (leading(l, 3) == 0 && io_mono_ms() < until)
			io_sleep_ms(2);
		for (int i = 0; i < (getenv("VARVE_FULL") ? 400 : 60); i++, io_sleep_ms(5))
			assert_int_equal(leading(l, 3), 1);
		/* let go once, and once left to expire */
		for (int i = 0; i < 3; i++)
			if (l[i] && lease_held(l[i])) {
				int64_t began_ms = io_mono_ms();
				bool release = rounds == 3;
				lease_close(l[i], release);
				l[i] = NULL;
				while (rounds > 1 && leading(l, 3) == 0 && io_mono_ms() < began_ms + 10000) {
					assert_true(leading(l, 3) <= 1);
					io_sleep_ms(2);
				}
				int64_t took_ms = io_mono_ms() - began_ms;
				if (rounds > 1 && release)
					assert_true(took_ms < a.cfg.lease_ms);
				else if (rounds > 1)
					assert_true(took_ms > a.cfg.lease_ms / 2); /* its duration since the last renewal that was seen */
				break;
			}
	}
	assert_int_equal(leading(l, 3), 0);
	api_stop(&a);
}

static void no_memory_for_an_object(void **state)
{
	(void)state;
	struct control_config cfg = {.label = "l=c", .file_name = "f"};
	static const char *const texts[KUBE_KINDS] = {
		"{\"metadata\":{\"name\":\"s\",\"labels\":{\"" KUBE_RING_LABEL
		"\":\"r\"}},\"spec\":{\"replicas\":3,\"serviceName\":\"v\",\"ordinals\":{\"start\":2},"
		"\"template\":{\"metadata\":{\"labels\":{\"l\":\"c\"}}}}}",
		"{\"metadata\":{\"name\":\"p\",\"uid\":\"u\",\"deletionTimestamp\":\"x\"},\"spec\":{\"nodeName\":\"n\"},\"status\":{\"podIP\":\"i\"}"
		"}",
		"{\"metadata\":{\"name\":\"m\",\"resourceVersion\":\"9\"},\"data\":{\"f\":\"[]\"}}",
		"{\"metadata\":{\"name\":\"m\",\"resourceVersion\":\"9\",\"annotations\":{\"" KUBE_WRITTEN "\":\"ab\"}},\"data\":{\"f\":\"[]\"}}",
		"{\"metadata\":{\"name\":\"n\",\"labels\":{\"" KUBE_ZONE_LABEL "\":\"zz\"}}}",
	};
	for (int k = 0; k < KUBE_KINDS; k++) {
		json_t *o = json_loads(texts[k], 0, NULL);
		for (uint64_t n = 1;; n++) {
			struct err err = {0};
			fail_alloc_at(n, false);
			struct kube_object *got = kube_object_read((enum kube_kind)k, &cfg, o, &err);
			uint64_t hits = fail_alloc_off();
			assert_int_equal(got == NULL, hits > 0);
			assert_int_equal(err.code, hits ? ERR_NOMEM : OK);
			if (got && k == KUBE_SETS)
				assert_true(got->set.first == 2 && got->set.replicas == 3 && !got->set.blind && span_is(got->set.ring, "r"));
			if (got && k == KUBE_PODS)
				assert_true(got->pod.terminating && !got->pod.running && got->pod.set.n == 0 && span_is(got->pod.node, "n"));
			if (got && k == KUBE_GENERATED)
				assert_true(span_is(got->map.text, "[]") && span_is(got->map.written, "ab") && span_is(got->map.version, "9"));
			if (got && k == KUBE_NODES)
				assert_true(span_is(got->node_zone, "zz"));
			kube_object_free(got);
			if (hits == 0)
				break;
		}
		json_decref(o);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pages_and_events_however_they_are_cut),
		cmocka_unit_test(after_trouble_all_is_as_it_is),
		cmocka_unit_test(an_api_that_refuses_leaves_what_was_seen),
		cmocka_unit_test(statuses_have_their_meaning),
		cmocka_unit_test(one_of_three_leads),
		cmocka_unit_test(no_memory_for_an_object),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
