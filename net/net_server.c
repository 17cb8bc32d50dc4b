/* net/net_server.c - a server's life: start, reload, stop.
 *
 * Stopping, in this order, because libmicrohttpd must not be stopped while a connection sleeps, and because a request that another thread will
 * answer cannot be taken from it:
 *   1. the door closes: no new connections; idle ones are shut, new requests on the others get 503
 *   2. running requests end, for at most the grace
 *   3. whatever is left is told so (streams fail, clients count as gone, sockets are shut) and waited for: its owner must answer
 *   4. workers, loops, memory
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "net/net_int.h"

/* Of each connection, and resident once it was used: headers up to their limit must fit, more is only fewer reads of a large body. */
enum { LOOP_POOL_BYTES = 48 * 1024 };

PRINTF_LIKE(2, 0) static void mhd_says(void *cls, const char *fmt, va_list ap)
{
	(void)cls;
	char text[512];
	vsnprintf(text, sizeof text, fmt, ap);
	size_t n = strlen(text);
	if (n && text[n - 1] == '\n')
		text[n - 1] = 0;
	log_debug("http", LSTR("what", text));
}

static void mhd_panics(void *cls, const char *file, unsigned line, const char *reason)
{
	(void)cls;
	log_error("libmicrohttpd cannot go on", LSTR("file", file), LU64("line", line), LSTR("reason", reason ? reason : "-"));
	abort();
}

static void config_defaults(struct http_server_config *c)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	if (!c->threads)
		c->threads = cores > 0 ? (uint32_t)cores : 1;
	if (c->threads > NET_LOOPS_MAX)
		c->threads = NET_LOOPS_MAX;
	if (!c->workers)
		c->workers = 1;
	if (!c->max_connections)
		c->max_connections = LIMIT_HTTP_CONNECTIONS;
	if (c->idle_timeout_ms <= 0)
		c->idle_timeout_ms = LIMIT_HTTP_IDLE_MS;
	if (c->request_timeout_ms <= 0)
		c->request_timeout_ms = LIMIT_HTTP_REQUEST_MS;
	if (!c->max_inflight_bytes)
		c->max_inflight_bytes = LIMIT_INGEST_INFLIGHT_BYTES;
}

static errc loop_open(struct http_server *s, struct net_loop *loop, struct err *err)
{
	loop->server = s;
	unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG;
	struct MHD_OptionItem tls[3] = {{MHD_OPTION_END, 0, NULL}};
	if (s->tls) {
		/* each session gets its own generation's in net_tls_session; these satisfy libmicrohttpd */
		flags |= MHD_USE_TLS;
		tls[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)(uintptr_t)s->web->tls.key.p};
		tls[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)(uintptr_t)s->web->tls.cert.p};
		tls[2] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
	}
	unsigned idle_s = (unsigned)((s->cfg.idle_timeout_ms + 999) / 1000);
	loop->daemon = MHD_start_daemon(flags, 0, NULL, NULL, request_step, loop, MHD_OPTION_EXTERNAL_LOGGER, mhd_says, NULL,
		MHD_OPTION_URI_LOG_CALLBACK, request_begin, loop, MHD_OPTION_NOTIFY_COMPLETED, request_over, loop, MHD_OPTION_NOTIFY_CONNECTION,
		conn_changed, loop, MHD_OPTION_CONNECTION_LIMIT, s->cfg.max_connections + 64, MHD_OPTION_CONNECTION_TIMEOUT, idle_s,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)LOOP_POOL_BYTES, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
	if (!loop->daemon)
		return err_set(err, ERR_AGAIN, "cannot start a network thread");
	s->n_loops++;
	return OK;
}

static errc routes_copy(struct http_server *s, const struct http_route *routes, size_t n, struct err *err)
{
	s->routes = calloc(n ? n : 1, sizeof *s->routes);
	if (!s->routes)
		return err_set(err, ERR_NOMEM, "no memory for %zu routes", n);
	for (size_t i = 0; i < n; i++) {
		ASSERT(routes[i].path[0] == '/' && routes[i].handler && routes[i].methods);
		s->routes[i].r = routes[i];
	}
	s->n_routes = n;
	s->unmatched.r.path = "other";
	for (size_t i = 0; i <= n; i++) {
		struct net_route *route = i < n ? &s->routes[i] : &s->unmatched;
		route->seconds =
			metric_histogram_with("varve_http_request_duration_seconds", "from the request's first line to the end of its answer",
				metric_latency_bounds, metric_latency_bounds_n, "handler", route->r.path);
	}
	return OK;
}

static errc web_open(struct http_server *s, const char *path, struct err *err)
{
	errc rc = OK;
	s->web_path = strdup(path);
	CHECK(s->web_path, ERR_NOMEM, "no memory for a path");
	TRY(net_web_load(path, &s->web, err));
	s->tls = s->web->has_tls;
	TRY(net_auth_open(&s->auth, err));
fail:
	return rc;
}

static void server_free(struct http_server *s)
{
	worker_pool_close(s->pool);
	worker_pool_close(s->peer_pool);
	net_auth_close(s->auth);
	for (uint32_t i = 0; i < s->n_loops; i++)
		MHD_stop_daemon(s->loops[i].daemon);
	door_close(s);
	for (size_t i = 0; i < s->n_listen; i++)
		close(s->listen_fd[i]);
	if (s->wake_fd >= 0)
		close(s->wake_fd);
	for (size_t i = 0; i < s->n_linger_new; i++)
		close(s->linger_new[i].fd);
	if (s->oom_response)
		MHD_destroy_response(s->oom_response);
	net_web_drop(s->web);
	pthread_mutex_destroy(&s->web_mu);
	pthread_mutex_destroy(&s->reload_mu);
	pthread_mutex_destroy(&s->conns_mu);
	pthread_mutex_destroy(&s->linger_mu);
	pthread_mutex_destroy(&s->warn_mu);
	free(s->web_path);
	free(s->address);
	free(s->routes);
	free(s);
}

errc http_server_start(
	const struct http_server_config *cfg, const struct http_route *routes, size_t n_routes, struct http_server **out, struct err *err)
{
	errc rc = OK;
	struct http_server *s = calloc(1, sizeof *s);
	if (!s)
		return err_set(err, ERR_NOMEM, "no memory for the HTTP server");
	s->cfg = *cfg;
	s->wake_fd = -1;
	config_defaults(&s->cfg);
	pthread_mutex_init(&s->web_mu, NULL);
	pthread_mutex_init(&s->reload_mu, NULL);
	pthread_mutex_init(&s->conns_mu, NULL);
	pthread_mutex_init(&s->linger_mu, NULL);
	pthread_mutex_init(&s->warn_mu, NULL);
	access_init();
	MHD_set_panic_func(mhd_panics, NULL);
	s->id_prefix = (uint32_t)io_random_u64();

	s->address = strdup(cfg->address);
	CHECK(s->address, ERR_NOMEM, "no memory for an address");
	s->cfg.address = s->address;
	TRY(routes_copy(s, routes, n_routes, err));
	if (cfg->web_config)
		TRY(web_open(s, cfg->web_config, err));
	CHECK(cfg->tenant_field == HTTP_TENANT_NONE || (s->web && s->tls && net_tls_verifies(s->web)), ERR_INVALID,
		"tenants by certificate need a web configuration that verifies those of clients: client_ca_file, and client_auth_type "
		"RequireAndVerifyClientCert or VerifyClientCertIfGiven");
	TRY(door_listen(s, s->address, err));
	s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	CHECK(s->wake_fd >= 0, ERR_AGAIN, "cannot make an event descriptor: %s", strerror(errno));
	static char sorry[] = "err-varve-overloaded: out of memory\n";
	s->oom_response = MHD_create_response_from_buffer(sizeof sorry - 1, sorry, MHD_RESPMEM_PERSISTENT);
	CHECK(s->oom_response, ERR_NOMEM, "no memory for the HTTP server");
	MHD_add_response_header(s->oom_response, "Retry-After", "1");
	TRY(worker_pool_open(s->cfg.workers, s->cfg.worker_queue, &s->pool, err));
	if (s->cfg.peer_workers)
		TRY(worker_pool_open(s->cfg.peer_workers, s->cfg.peer_workers, &s->peer_pool, err));
	for (uint32_t i = 0; i < s->cfg.threads; i++)
		TRY(loop_open(s, &s->loops[i], err));
	TRY(door_open(s, err));
	access_server(s, true);
	log_info("listening", LSTR("address", s->address), LU64("port", s->port), LSTR("tls", s->tls ? "on" : "off"),
		LSTR("basic_auth", s->web && s->web->n_users ? "on" : "off"));
	*out = s;
	return OK;
fail:
	server_free(s);
	return rc;
}

uint16_t http_server_port(const struct http_server *s)
{
	return s->port;
}

errc http_server_reload(struct http_server *s, struct err *err)
{
	errc rc = OK;
	struct net_web *fresh = NULL, *old = NULL;
	if (!s->web_path)
		return OK;
	pthread_mutex_lock(&s->reload_mu);
	TRY(net_web_load(s->web_path, &fresh, err));
	CHECK(fresh->has_tls == s->tls, ERR_INVALID, "%s: TLS cannot be switched %s while running: restart", s->web_path, s->tls ? "off" : "on");
	pthread_mutex_lock(&s->web_mu);
	old = s->web;
	s->web = fresh;
	fresh = NULL;
	pthread_mutex_unlock(&s->web_mu);
	log_info("web config reloaded", LSTR("path", s->web_path));
fail:
	pthread_mutex_unlock(&s->reload_mu);
	net_web_drop(fresh);
	net_web_drop(old);
	return rc;
}

void http_server_stop(struct http_server *s, int64_t grace_ms)
{
	if (!s)
		return;
	s->stopping = true;
	door_close(s);
	int64_t start_ms = io_mono_ms(), said_ms = start_ms;
	for (;;) {
		int64_t now_ms = io_mono_ms();
		conn_shutdown(s, s->doomed);
		if (s->active == 0 && s->resuming == 0)
			break;
		if (!s->doomed && now_ms - start_ms >= grace_ms) {
			s->doomed = true;
			continue;
		}
		if (now_ms - said_ms >= 5000) {
			said_ms = now_ms;
			log_warn("requests still run, waiting for them", LU64("requests", s->active));
		}
		io_sleep_ms(5);
	}
	s->doomed = true; /* for workers whose client is gone already */
	access_server(s, false);
	server_free(s);
}
