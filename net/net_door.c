/* net/net_door.c - the thread at the door: accepts connections, closes them politely, and throws out the slow ones.
 *
 * Accepting is done here rather than by libmicrohttpd so that the limit on connections is exact and answered at once (503, then close) instead
 * of leaving clients in the backlog, so that each connection goes to the least busy loop, and so that stopping has no race with accepting.
 *
 * Lingering: closing a socket with unread data in it sends a reset, which may destroy the answer on its way to the client: exactly the client that
 * is still sending a body that was refused. Such a socket is shut down for writing and read until the client has closed, for at most
 * LIMIT_HTTP_LINGER_MS and LIMIT_HTTP_LINGER_BYTES.
 *
 * Slow clients: libmicrohttpd closes what does not move at all for the idle time-out. Who sends or takes a byte now and then is found here:
 *   reading    a request that is not complete `request_timeout` after its first line
 *   idle       bytes of a first line trickling in for longer than both time-outs together
 *   answering  fewer than LIMIT_HTTP_SLOW_READER_BYTES of an answer taken per `request_timeout`
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "net/net_int.h"

/* ---- listening ---- */

/* "host:port", "[v6]:port", ":port" */
static errc address_split(const char *address, char *host, size_t host_size, const char **port, struct err *err)
{
	errc rc = OK;
	const char *colon = strrchr(address, ':');
	CHECK(colon, ERR_INVALID, "address %s: write HOST:PORT, for example 127.0.0.1:19291", address);
	size_t n = (size_t)(colon - address);
	const char *p = address;
	if (n >= 2 && p[0] == '[' && p[n - 1] == ']') {
		p++;
		n -= 2;
	} else {
		CHECK(!memchr(p, ':', n), ERR_INVALID, "address %s: write an IPv6 address as [ADDRESS]:PORT", address);
	}
	CHECK(n < host_size, ERR_INVALID, "address %s: the host is too long", address);
	memcpy(host, p, n);
	host[n] = 0;
	int64_t number;
	CHECK(span_to_i64(span_cstr(colon + 1), &number) && number >= 0 && number <= 65535, ERR_INVALID, "address %s: the port must be 0 to 65535",
		address);
	*port = colon + 1;
fail:
	return rc;
}

static uint16_t port_of(int fd)
{
	struct sockaddr_storage ss;
	socklen_t n = sizeof ss;
	if (getsockname(fd, (struct sockaddr *)&ss, &n))
		return 0;
	return ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port : ((struct sockaddr_in *)&ss)->sin_port);
}

static errc bind_one(const struct addrinfo *ai, bool any, const char *address, int *out, struct err *err)
{
	errc rc = OK;
	int one = 1, zero = 0;
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_errno(err, errno, "address %s: socket", address);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (ai->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, any ? &zero : &one, sizeof one);
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, SOMAXCONN)) {
		int e = errno;
		CHECK(e != EADDRINUSE, ERR_AGAIN,
			"address %s is taken: another process listens there (another varve?); stop it, or choose another address", address);
		CHECK(e != EADDRNOTAVAIL, ERR_INVALID, "address %s is not an address of this machine", address);
		CHECK(e != EACCES, ERR_DENIED, "address %s: no permission to listen on this port (below 1024?)", address);
		rc = err_errno(err, e, "address %s", address);
		goto fail;
	}
	*out = fd;
	return OK;
fail:
	close(fd);
	return rc;
}

errc door_listen(struct http_server *s, const char *address, struct err *err)
{
	errc rc = OK;
	char host[256];
	const char *port = "";
	struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
	TRY(address_split(address, host, sizeof host, &port, err));
	bool any = host[0] == 0;
	if (any)
		hints.ai_family = AF_INET6; /* takes IPv4 too */
	int e = getaddrinfo(any ? NULL : host, port, &hints, &list);
	if (e == 0 && any) {
		rc = bind_one(list, true, address, &s->listen_fd[0], err);
		if (rc == OK)
			s->n_listen = 1;
	}
	if (any && s->n_listen == 0 && (e || rc == ERR_IO)) {
		/* a machine without IPv6; a port that is taken fails here again, with the same words */
		rc = OK;
		if (list)
			freeaddrinfo(list);
		list = NULL;
		hints.ai_family = AF_INET;
		e = getaddrinfo(NULL, port, &hints, &list);
	}
	if (rc)
		goto fail;
	CHECK(e == 0, ERR_INVALID, "address %s: %s", address, gai_strerror(e));
	for (const struct addrinfo *ai = list; ai && s->n_listen < NET_LISTEN_MAX && !(any && s->n_listen); ai = ai->ai_next) {
		TRY(bind_one(ai, any, address, &s->listen_fd[s->n_listen], err));
		s->n_listen++;
		if (strcmp(port, "0") == 0)
			break; /* two families would get two ports */
	}
	s->port = port_of(s->listen_fd[0]);
fail:
	if (list)
		freeaddrinfo(list);
	return rc;
}

/* ---- connections ---- */

static void client_text(const struct sockaddr *sa, char *out, size_t size)
{
	char ip[INET6_ADDRSTRLEN] = "?";
	if (sa && sa->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)sa;
		inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip);
		snprintf(out, size, "%s:%u", ip, ntohs(in->sin_port));
	} else if (sa && sa->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)sa;
		bool v4 = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
		inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? (const void *)&in6->sin6_addr.s6_addr[12] : &in6->sin6_addr, ip, sizeof ip);
		snprintf(out, size, v4 ? "%s:%u" : "[%s]:%u", ip, ntohs(in6->sin6_port));
	} else {
		snprintf(out, size, "?");
	}
}

void conn_phase(struct net_conn *c, enum net_phase phase)
{
	atomic_store_explicit(&c->since_ns, io_mono_ns(), memory_order_relaxed);
	atomic_store_explicit(&c->phase, phase, memory_order_release);
}

static void conn_started(struct net_loop *loop, struct MHD_Connection *mhd, void **ctx)
{
	struct http_server *s = loop->server;
	struct net_conn *c = calloc(1, sizeof *c);
	*ctx = c;
	if (!c)
		return; /* its first request finds no context and closes it */
	c->server = s;
	c->loop = loop;
	c->mhd = mhd;
	c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
	const union MHD_ConnectionInfo *addr = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
	client_text(addr ? addr->client_addr : NULL, c->client, sizeof c->client);
	conn_phase(c, CONN_IDLE);
	if (s->tls) {
		pthread_mutex_lock(&s->web_mu);
		c->web = net_web_hold(s->web);
		pthread_mutex_unlock(&s->web_mu);
		if (!net_tls_session(c->web, MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION)->tls_session))
			shutdown(c->fd, SHUT_RDWR);
	}
	pthread_mutex_lock(&s->conns_mu);
	c->next = s->conns;
	if (c->next)
		c->next->prev = c;
	s->conns = c;
	pthread_mutex_unlock(&s->conns_mu);
}

static void conn_closed(struct net_loop *loop, void **ctx)
{
	struct http_server *s = loop->server;
	struct net_conn *c = *ctx;
	atomic_fetch_sub(&loop->connections, 1);
	atomic_fetch_sub(&s->n_conns, 1);
	if (!c)
		return;
	pthread_mutex_lock(&s->conns_mu);
	if (c->next)
		c->next->prev = c->prev;
	if (c->prev)
		c->prev->next = c->next;
	else
		s->conns = c->next;
	pthread_mutex_unlock(&s->conns_mu);
	if (c->linger) {
		/* libmicrohttpd closes its descriptor; the socket lives on in this one */
		int fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
		if (fd >= 0)
			door_linger(s, fd);
	}
	net_web_drop(c->web);
	*ctx = NULL;
	free(c);
}

void conn_changed(void *cls, struct MHD_Connection *mhd, void **ctx, enum MHD_ConnectionNotificationCode code)
{
	if (code == MHD_CONNECTION_NOTIFY_STARTED)
		conn_started(cls, mhd, ctx);
	else
		conn_closed(cls, ctx);
}

size_t conn_shutdown(struct http_server *s, bool all)
{
	size_t n = 0;
	pthread_mutex_lock(&s->conns_mu);
	for (struct net_conn *c = s->conns; c; c = c->next) {
		if (!all && atomic_load_explicit(&c->phase, memory_order_acquire) != CONN_IDLE)
			continue;
		shutdown(c->fd, SHUT_RDWR);
		n++;
	}
	pthread_mutex_unlock(&s->conns_mu);
	return n;
}

static void conn_watch(struct http_server *s, struct net_conn *c, int64_t now)
{
	int64_t request_ns = s->cfg.request_timeout_ms * 1000000, idle_ns = s->cfg.idle_timeout_ms * 1000000;
	uint32_t phase = atomic_load_explicit(&c->phase, memory_order_acquire);
	int64_t since = atomic_load_explicit(&c->since_ns, memory_order_relaxed);
	uint64_t sent = atomic_load_explicit(&c->sent_bytes, memory_order_relaxed);
	struct metric *m = NULL;
	if (phase == CONN_READING && now - since > request_ns) {
		m = net_metrics.timeouts_read;
	} else if (phase == CONN_IDLE && now - since > request_ns + idle_ns) {
		m = net_metrics.timeouts_read;
	} else if (phase == CONN_ANSWERING) {
		if (c->seen_since_ns != since || sent - c->seen_bytes >= LIMIT_HTTP_SLOW_READER_BYTES) {
			c->seen_since_ns = since; /* another answer than the last time, or the same and it moves */
			c->seen_ns = now;
			c->seen_bytes = sent;
		} else if (now - c->seen_ns > request_ns) {
			m = net_metrics.timeouts_write;
		}
	}
	if (m) {
		metric_add(m, 1);
		log_debug("slow client, connection broken off", LSTR("client", c->client));
		shutdown(c->fd, SHUT_RDWR);
		conn_phase(c, CONN_RUNNING); /* once is enough */
	}
}

/* ---- the thread ---- */

struct door {
	struct http_server *s;
	struct net_linger linger[NET_LINGER_MAX];
	size_t n_linger;
	int64_t next_watch_ns, next_stat_ns, tick_ns, full_until_ns;
	char last_reload[ERR_MSG_BYTES]; /* what was wrong the last time */
	char sink[65536];
};

static void wake(struct http_server *s)
{
	while (eventfd_write(s->wake_fd, 1) < 0 && errno == EINTR)
		;
}

void door_linger(struct http_server *s, int fd)
{
	shutdown(fd, SHUT_WR);
	pthread_mutex_lock(&s->linger_mu);
	bool room = s->n_linger_new < NET_LINGER_MAX && !s->door_stop;
	if (room)
		s->linger_new[s->n_linger_new++] = (struct net_linger){fd, io_mono_ns() + (int64_t)LIMIT_HTTP_LINGER_MS * 1000000, 0};
	pthread_mutex_unlock(&s->linger_mu);
	if (room)
		wake(s);
	else
		close(fd);
}

static void linger_collect(struct door *d)
{
	pthread_mutex_lock(&d->s->linger_mu);
	for (size_t i = 0; i < d->s->n_linger_new; i++) {
		if (d->n_linger < NET_LINGER_MAX)
			d->linger[d->n_linger++] = d->s->linger_new[i];
		else
			close(d->s->linger_new[i].fd);
	}
	d->s->n_linger_new = 0;
	pthread_mutex_unlock(&d->s->linger_mu);
}

/* True while the socket is worth keeping. */
static bool linger_read(struct door *d, struct net_linger *l, int64_t now)
{
	for (;;) {
		ssize_t n = recv(l->fd, d->sink, sizeof d->sink, MSG_DONTWAIT);
		if (n < 0)
			return (errno == EAGAIN || errno == EINTR) && now < l->until_ns;
		if (n == 0)
			return false;
		l->bytes += (uint64_t)n;
		if (l->bytes > LIMIT_HTTP_LINGER_BYTES)
			return false;
	}
}

static void linger_all(struct door *d, int64_t now)
{
	size_t kept = 0;
	for (size_t i = 0; i < d->n_linger; i++) {
		if (linger_read(d, &d->linger[i], now))
			d->linger[kept++] = d->linger[i];
		else
			close(d->linger[i].fd);
	}
	d->n_linger = kept;
}

static void refuse_connection(struct http_server *s, int fd)
{
	static const char body[] = "err-varve-overloaded: too many open connections\n";
	char text[256];
	int n = snprintf(text, sizeof text,
		"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nRetry-After: 1\r\nConnection: close\r\n"
		"Content-Length: %zu\r\n\r\n%s",
		sizeof body - 1, body);
	metric_add(net_metrics.refused_connections, 1);
	if (!s->tls && send(fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		door_linger(s, fd);
	else
		close(fd);
}

static void place_connection(struct http_server *s, int fd, const struct sockaddr *sa, socklen_t n)
{
	struct net_loop *best = &s->loops[0];
	for (uint32_t i = 1; i < s->n_loops; i++) {
		if (s->loops[i].connections < best->connections)
			best = &s->loops[i];
	}
	atomic_fetch_add(&best->connections, 1);
	atomic_fetch_add(&s->n_conns, 1);
	if (MHD_add_connection(best->daemon, fd, sa, n) != MHD_YES) {
		/* the descriptor is closed already */
		atomic_fetch_sub(&best->connections, 1);
		atomic_fetch_sub(&s->n_conns, 1);
	}
}

static void accept_all(struct door *d, int listen_fd)
{
	for (int i = 0; i < 256; i++) {
		struct sockaddr_storage ss;
		socklen_t n = sizeof ss;
		int fd = accept4(listen_fd, (struct sockaddr *)&ss, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			if (errno != EAGAIN) {
				/* out of descriptors or memory: the connection stays in the backlog, and level-triggered poll would spin */
				log_warn("cannot accept connections", LSTR("error", strerror(errno)));
				d->full_until_ns = io_mono_ns() + 100000000;
			}
			return;
		}
		if (d->s->n_conns >= d->s->cfg.max_connections)
			refuse_connection(d->s, fd);
		else
			place_connection(d->s, fd, (struct sockaddr *)&ss, n);
	}
}

static void door_tick(struct door *d, int64_t now)
{
	struct http_server *s = d->s;
	if (now >= d->next_watch_ns) {
		d->next_watch_ns = now + d->tick_ns;
		pthread_mutex_lock(&s->conns_mu);
		for (struct net_conn *c = s->conns; c; c = c->next)
			conn_watch(s, c, now);
		pthread_mutex_unlock(&s->conns_mu);
	}
	if (s->web_path && now >= d->next_stat_ns) {
		d->next_stat_ns = now + 1000000000;
		pthread_mutex_lock(&s->web_mu);
		struct net_web *w = net_web_hold(s->web);
		pthread_mutex_unlock(&s->web_mu);
		struct err err = {0};
		/* a bad file is tried again every second, because its certificate may be repaired instead; it is named once */
		if (net_web_changed(w) && http_server_reload(s, &err) && strcmp(err.msg, d->last_reload) != 0)
			log_warn("web config not reloaded, the old one stays in force", LSTR("path", s->web_path), LERR(&err));
		memcpy(d->last_reload, err.msg, sizeof d->last_reload);
		net_web_drop(w);
	}
}

static void *door_main(void *arg)
{
	struct door *d = arg;
	struct http_server *s = d->s;
	struct pollfd fds[1 + NET_LISTEN_MAX + NET_LINGER_MAX];
	while (!s->door_stop) {
		int64_t now = io_mono_ns();
		bool full = now < d->full_until_ns;
		nfds_t n = 0;
		fds[n++] = (struct pollfd){.fd = s->wake_fd, .events = POLLIN};
		for (size_t i = 0; i < s->n_listen; i++)
			fds[n++] = (struct pollfd){.fd = full || s->stopping ? -1 : s->listen_fd[i], .events = POLLIN};
		for (size_t i = 0; i < d->n_linger; i++)
			fds[n++] = (struct pollfd){.fd = d->linger[i].fd, .events = POLLIN};
		int64_t wait_ns = d->next_watch_ns - now;
		int wait_ms = wait_ns < 0 ? 0 : (int)(wait_ns / 1000000) + 1;
		if ((full || d->n_linger) && wait_ms > 100)
			wait_ms = 100;
		poll(fds, n, wait_ms);
		if (fds[0].revents) {
			eventfd_t count;
			(void)!eventfd_read(s->wake_fd, &count);
		}
		for (size_t i = 0; i < s->n_listen && !s->stopping; i++) {
			if (fds[1 + i].revents)
				accept_all(d, s->listen_fd[i]);
		}
		linger_collect(d);
		now = io_mono_ns();
		linger_all(d, now);
		door_tick(d, now);
	}
	linger_collect(d);
	for (size_t i = 0; i < d->n_linger; i++)
		close(d->linger[i].fd);
	free(d);
	return NULL;
}

errc door_open(struct http_server *s, struct err *err)
{
	errc rc = OK;
	struct door *d = calloc(1, sizeof *d);
	CHECK(d, ERR_NOMEM, "no memory for the server");
	d->s = s;
	int64_t shortest = s->cfg.request_timeout_ms < s->cfg.idle_timeout_ms ? s->cfg.request_timeout_ms : s->cfg.idle_timeout_ms;
	int64_t tick_ms = shortest / 4;
	d->tick_ns = (tick_ms < 20 ? 20 : tick_ms > 1000 ? 1000 : tick_ms) * 1000000;
	int e = pthread_create(&s->door, NULL, door_main, d);
	CHECK(e == 0, ERR_AGAIN, "cannot start a thread: %s", strerror(e));
	s->door_running = true;
	return OK;
fail:
	free(d);
	return rc;
}

void door_close(struct http_server *s)
{
	if (!s->door_running)
		return;
	pthread_mutex_lock(&s->linger_mu);
	s->door_stop = true;
	pthread_mutex_unlock(&s->linger_mu);
	wake(s);
	pthread_join(s->door, NULL);
	s->door_running = false;
}
