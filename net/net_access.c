/* net/net_access.c - what is said about requests: one debug line each, warnings for answers of 500 and above, and metrics.
 *
 * A client whose writes meet 503 repeats them for hours, and a broken query is repeated by every dashboard: warnings are limited per second and
 * say how many they stand for. 503 has its own, tighter limit, so that it does not hide the others.
 */
#include "net/net_int.h"

enum { WARN_PER_SECOND = 10, WARN_503_PER_SECOND = 1 };

struct net_metrics net_metrics;
static pthread_mutex_t servers_mu = PTHREAD_MUTEX_INITIALIZER;
static struct http_server *servers;
static struct metric *inflight_gauge, *connections_gauge, *active_gauge;

static void collect(void *arg)
{
	(void)arg;
	uint64_t inflight = 0, connections = 0, active = 0;
	pthread_mutex_lock(&servers_mu);
	for (struct http_server *s = servers; s; s = s->next) {
		inflight += s->inflight_bytes;
		connections += s->n_conns;
		active += s->active;
	}
	pthread_mutex_unlock(&servers_mu);
	metric_set(inflight_gauge, (double)inflight);
	metric_set(connections_gauge, (double)connections);
	metric_set(active_gauge, (double)active);
}

static void register_all(void)
{
	inflight_gauge = metric_gauge("varve_http_inflight_bytes", "received bodies and reserved bytes of requests not answered yet");
	connections_gauge = metric_gauge("varve_http_connections", "open connections");
	active_gauge = metric_gauge("varve_http_requests_active", "requests begun and not over");
	net_metrics.refused_connections = metric_counter("varve_http_connections_refused_total", "connections above --http.max-connections");
	net_metrics.timeouts_read = metric_counter_with("varve_http_timeouts_total", "connections broken off for being slow", "side", "read");
	net_metrics.timeouts_write = metric_counter_with("varve_http_timeouts_total", "connections broken off for being slow", "side", "write");
	net_metrics.auth_failures = metric_counter("varve_http_auth_failures_total", "requests with wrong or missing credentials");
	net_metrics.streams_aborted = metric_counter("varve_http_streams_aborted_total", "answers whose client went away or that failed half way");
	metrics_on_collect(collect, NULL);
}

void access_init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, register_all);
}

void access_server(struct http_server *s, bool add)
{
	pthread_mutex_lock(&servers_mu);
	if (add) {
		s->next = servers;
		servers = s;
	} else {
		for (struct http_server **p = &servers; *p; p = &(*p)->next) {
			if (*p == s) {
				*p = s->next;
				break;
			}
		}
	}
	pthread_mutex_unlock(&servers_mu);
}

static void count(struct http_request *r, double seconds)
{
	struct net_route *route = (struct net_route *)(uintptr_t)r->route;
	if (r->status < 100 || r->status > 599)
		return;
	_Atomic(struct metric *) *slot = &route->by_code[r->status - 100];
	struct metric *m = atomic_load_explicit(slot, memory_order_acquire);
	if (!m) {
		char code[8];
		snprintf(code, sizeof code, "%d", r->status);
		m = metric_counter_with2(
			"varve_http_requests_total", "requests answered, by route and status", "handler", route->r.path, "code", code);
		atomic_store_explicit(slot, m, memory_order_release);
	}
	metric_add(m, 1);
	metric_observe(route->seconds, seconds);
}

/* Whether to warn now; *quiet is how many were left out since the last time. */
static bool warn_now(struct http_server *s, bool is_503, uint32_t *quiet)
{
	int k = is_503 ? 1 : 0;
	int64_t second = io_mono_ns() / 1000000000;
	bool yes = false;
	pthread_mutex_lock(&s->warn_mu);
	if (s->warn_second[k] != second) {
		s->warn_second[k] = second;
		s->warned[k] = 0;
	}
	if (s->warned[k] < (is_503 ? WARN_503_PER_SECOND : WARN_PER_SECOND)) {
		s->warned[k]++;
		*quiet = s->suppressed[k];
		s->suppressed[k] = 0;
		yes = true;
	} else {
		s->suppressed[k]++;
	}
	pthread_mutex_unlock(&s->warn_mu);
	return yes;
}

void access_log(struct http_request *r, enum MHD_RequestTerminationCode why)
{
	int64_t ns = io_mono_ns() - r->started_ns;
	if (r->status)
		count(r, (double)ns / 1e9);
	const char *end = why == MHD_REQUEST_TERMINATED_COMPLETED_OK	  ? "sent"
			  : why == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED ? "timeout"
			  : why == MHD_REQUEST_TERMINATED_DAEMON_SHUTDOWN ? "shutdown"
									  : "broken off";
	if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK && r->stream)
		metric_add(net_metrics.streams_aborted, 1);
	const char *method = r->method_text ? r->method_text : "-";
	log_debug("request", LSTR("req", r->id), LSTR("client", r->client), LSTR("method", method), LSPAN("path", r->path), LI64("status", r->status),
		LU64("bytes", r->answer_bytes), LF64("ms", (double)ns / 1e6), LSTR("end", end));
	uint32_t quiet = 0;
	/* A probe that is told "not ready" got what it came for. */
	bool probe = r->status == 503 && r->route && (r->route->r.flags & HTTP_NO_AUTH);
	if (r->status >= 500 && !probe && warn_now(r->server, r->status == 503, &quiet)) {
		log_warn("request failed", LSTR("req", r->id), LSTR("client", r->client), LSTR("method", method), LSPAN("path", r->path),
			LI64("status", r->status), LU64("bytes", r->answer_bytes), LF64("ms", (double)ns / 1e6), LU64("not_logged", quiet));
	}
}
