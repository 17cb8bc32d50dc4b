/* net/net_sender.c - the client that does not wait: one thread, one libcurl multi handle, one epoll.
 *
 * A call is a flight: an easy handle with everything that belongs to it, used again and again. http_send copies the texts on its caller's thread; all
 * else happens on the sender's:
 *
 *     inbox ─▶ its host's waiting ─▶ its host's running ─▶ done ─▶ pool
 *
 * libcurl is told which socket is ready (curl_multi_socket_action) and not asked to look at all of them (curl_multi_perform, which polls each
 * transfer's socket every time): what a call costs does not grow with how many others stand still beside it. For the same reason waiting for a free
 * connection is done here, per host: libcurl has one queue for all hosts, and wakes its first call when any connection comes free.
 *
 * Deadlines are a heap of our own, because libcurl's time-outs begin when it takes a call up.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "net/net_sender_int.h"

enum { EVENTS = 64 };

/* ---- deadlines ---- */

static void heap_set(struct http_sender *s, size_t i, struct flight *f)
{
	s->heap[i] = f;
	f->heap_at = i;
}

/* Moves f from i to where it belongs. */
static void heap_settle(struct http_sender *s, size_t i, struct flight *f)
{
	int64_t at = f->call.deadline_mono_ns;
	for (; i > 1 && s->heap[i / 2]->call.deadline_mono_ns > at; i /= 2)
		heap_set(s, i, s->heap[i / 2]);
	for (;;) {
		size_t down = 2 * i;
		if (down < s->n_heap && s->heap[down + 1]->call.deadline_mono_ns < s->heap[down]->call.deadline_mono_ns)
			down++;
		if (down > s->n_heap || s->heap[down]->call.deadline_mono_ns >= at)
			break;
		heap_set(s, i, s->heap[down]);
		i = down;
	}
	heap_set(s, i, f);
}

static bool heap_put(struct http_sender *s, struct flight *f)
{
	if (s->n_heap + 1 >= s->cap_heap) {
		size_t cap = s->cap_heap ? s->cap_heap * 2 : 64;
		struct flight **grown = realloc(s->heap, cap * sizeof(struct flight *));
		if (!grown)
			return false;
		s->heap = grown;
		s->cap_heap = cap;
	}
	s->n_heap++;
	heap_settle(s, s->n_heap, f);
	return true;
}

void sender_deadline_out(struct http_sender *s, struct flight *f)
{
	size_t i = f->heap_at;
	if (!i)
		return;
	f->heap_at = 0;
	struct flight *last = s->heap[s->n_heap--];
	if (last != f)
		heap_settle(s, i, last);
}

/* ---- libcurl's callbacks ---- */

static int watch(CURL *easy, curl_socket_t fd, int what, void *arg, void *known)
{
	struct http_sender *s = arg;
	struct epoll_event ev = {.data.fd = fd};
	if (what == CURL_POLL_REMOVE) {
		epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, fd, &ev);
		return 0;
	}
	ev.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	if (epoll_ctl(s->epoll_fd, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &ev) == 0) {
		if (!known)
			curl_multi_assign(s->multi, fd, s);
		return 0;
	}
	/* an error returned from here would end all calls: end this one when libcurl is done with it */
	struct flight *f = NULL;
	curl_easy_getinfo(easy, CURLINFO_PRIVATE, &f);
	if (f && f->rc == OK)
		f->rc = err_errno(&f->err, errno, "epoll");
	s->broken = true;
	return 0;
}

static int set_timer(CURLM *multi, long timeout_ms, void *arg)
{
	(void)multi;
	struct http_sender *s = arg;
	s->timer_ns = timeout_ms < 0 ? INT64_MAX : io_mono_ns() + (int64_t)timeout_ms * 1000000;
	return 0;
}

/* libcurl's limit is one of all connections: without room for those at work it would close a good one for each that a slow peer holds. */
void sender_working(struct http_sender *s, int more)
{
	s->n_running += (size_t)more;
	curl_multi_setopt(s->multi, CURLMOPT_MAXCONNECTS, (long)(s->max_kept + s->n_running));
}

/* ---- the thread ---- */

void sender_ready(struct http_sender *s, struct sender_host *h)
{
	if (h->ready || !h->waiting.first || h->n_running >= s->max_running)
		return;
	h->ready = true;
	h->ready_next = s->ready;
	s->ready = h;
}

static void wake(void *arg)
{
	const struct http_sender *s = arg;
	while (eventfd_write(s->wake_fd, 1) < 0 && errno == EINTR)
		;
}

static void names_came(void *arg)
{
	struct http_sender *s = arg;
	pthread_mutex_lock(&s->mu);
	s->answers = true;
	pthread_mutex_unlock(&s->mu);
	wake(s);
}

static void admit(struct http_sender *s, struct flight *f)
{
	f->host = sender_host_of(&s->hosts, f->call.url);
	if (f->host) {
		flights_put(&f->host->waiting, f);
		sender_ready(s, f->host);
	}
	if (!f->host || (f->call.deadline_mono_ns && !heap_put(s, f))) {
		f->rc = err_set(&f->err, ERR_NOMEM, "no memory for a call");
		flight_end(s, f);
	}
}

static void waiting_fail(struct http_sender *s, struct sender_host *h, const struct err *why)
{
	while (h->waiting.first) {
		struct flight *f = h->waiting.first;
		f->err = *why;
		f->rc = why->code;
		flight_end(s, f);
	}
}

static void names_learn(struct http_sender *s)
{
	struct net_name *q = net_resolver_take(s->hosts.resolver);
	while (q) {
		struct net_name *next = q->next;
		struct sender_host *h = q->of;
		struct err why = {0};
		if (!sender_host_learn(h, q, &why))
			waiting_fail(s, h, &why);
		sender_ready(s, h);
		free(q);
		q = next;
	}
}

static void ready_start(struct http_sender *s)
{
	while (s->ready) {
		struct sender_host *h = s->ready;
		struct err why = {0};
		s->ready = h->ready_next;
		h->ready = false;
		/* a call that fails at once readies its host again */
		bool turn = h->waiting.first && h->n_running < s->max_running;
		enum sender_where where = turn ? sender_host_where(&s->hosts, h, &why) : HOST_ASKED;
		if (where == HOST_UNKNOWN)
			waiting_fail(s, h, &why);
		while (where == HOST_KNOWN && h->waiting.first && h->n_running < s->max_running)
			flight_start(s, h->waiting.first);
	}
}

static void deadlines_end(struct http_sender *s)
{
	int64_t now_ns = s->n_heap ? io_mono_ns() : 0;
	while (s->n_heap && s->heap[1]->call.deadline_mono_ns <= now_ns) {
		struct flight *f = s->heap[1];
		if (f->running)
			flight_doubt(s, f);
		f->rc = err_set(&f->err, ERR_TIMEOUT, "%s",
			f->running			       ? "no answer by its deadline"
			: f->host->n_running >= s->max_running ? "no free connection by its deadline"
			: f->host->resolving		       ? "no address by its deadline"
							       : "begun after its deadline");
		flight_end(s, f);
	}
}

static void all_cancel(struct http_sender *s)
{
	for (struct sender_host *h = sender_hosts_next(&s->hosts, NULL); h; h = sender_hosts_next(&s->hosts, h)) {
		while (h->waiting.first || h->running.first) {
			struct flight *f = h->waiting.first ? h->waiting.first : h->running.first;
			f->rc = err_set(&f->err, ERR_CANCELED, "canceled");
			flight_end(s, f);
		}
	}
}

static void broken_end(struct http_sender *s)
{
	s->broken = false;
	for (struct sender_host *h = sender_hosts_next(&s->hosts, NULL); h; h = sender_hosts_next(&s->hosts, h)) {
		for (struct flight *f = h->running.first, *next; f; f = next) {
			next = f->next;
			if (f->rc)
				flight_end(s, f);
		}
	}
}

static void landed_end(struct http_sender *s)
{
	CURLMsg *msg;
	int left;
	while ((msg = curl_multi_info_read(s->multi, &left))) {
		struct flight *f = NULL;
		CURLcode code = msg->data.result;
		curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, &f);
		ASSERT(msg->msg == CURLMSG_DONE && f);
		flight_landed(s, f, code);
	}
}

/* Milliseconds until something is due, rounded up; 0 when there is something to do at once. From a true answer on http_send wakes the thread. */
static int sleep_ms(struct http_sender *s)
{
	pthread_mutex_lock(&s->mu);
	bool idle = !s->inbox.first && !s->flows && !s->answers && !s->ready && !s->stop;
	s->sleeping = idle;
	pthread_mutex_unlock(&s->mu);
	int64_t due_ns = s->timer_ns;
	if (s->n_heap && s->heap[1]->call.deadline_mono_ns < due_ns)
		due_ns = s->heap[1]->call.deadline_mono_ns;
	if (!idle || due_ns == INT64_MAX)
		return idle ? -1 : 0;
	int64_t ns = due_ns - io_mono_ns();
	return ns <= 0 ? 0 : ns > 3600000000000 ? 3600000 : (int)((ns + 999999) / 1000000);
}

static void *sender_main(void *arg)
{
	struct http_sender *s = arg;
	struct epoll_event events[EVENTS];
	int busy;
	for (;;) {
		pthread_mutex_lock(&s->mu);
		struct flight *in = s->inbox.first;
		s->inbox = (struct flights){0};
		struct http_flow *flows = s->flows;
		s->flows = NULL;
		bool canceled = s->canceled, stop = s->stop, answers = s->answers;
		s->answers = s->sleeping = false;
		pthread_mutex_unlock(&s->mu);
		for (struct flight *next; in; in = next) {
			next = in->next;
			admit(s, in);
		}
		flows_serve(s, flows);
		if (answers)
			names_learn(s);
		if (canceled)
			all_cancel(s);
		if (stop)
			break;
		deadlines_end(s);
		ready_start(s);
		if (s->timer_ns <= io_mono_ns()) {
			s->timer_ns = INT64_MAX;
			curl_multi_socket_action(s->multi, CURL_SOCKET_TIMEOUT, 0, &busy);
		}
		if (s->broken)
			broken_end(s);
		landed_end(s);
		int n = epoll_wait(s->epoll_fd, events, EVENTS, sleep_ms(s));
		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd;
			if (fd == s->wake_fd) {
				eventfd_t count;
				(void)!eventfd_read(fd, &count);
				continue;
			}
			/* a connection that broke: an answer may lie in it, and what reading says is what libcurl goes by */
			bool broke = events[i].events & (EPOLLERR | EPOLLHUP);
			int what = (events[i].events & EPOLLIN || broke ? CURL_CSELECT_IN : 0) |
				   (events[i].events & EPOLLOUT || broke ? CURL_CSELECT_OUT : 0);
			curl_multi_socket_action(s->multi, fd, what, &busy);
		}
	}
	return NULL;
}

/* ---- the door ---- */

static bool multi_open(struct http_sender *s)
{
	s->multi = curl_multi_init();
	if (!s->multi)
		return false;
	bool bad = curl_multi_setopt(s->multi, CURLMOPT_SOCKETFUNCTION, watch) != 0;
	bad |= curl_multi_setopt(s->multi, CURLMOPT_SOCKETDATA, s) != 0;
	bad |= curl_multi_setopt(s->multi, CURLMOPT_TIMERFUNCTION, set_timer) != 0;
	bad |= curl_multi_setopt(s->multi, CURLMOPT_TIMERDATA, s) != 0;
	bad |= curl_multi_setopt(s->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING) != 0;
	return !bad;
}

errc http_sender_open(const struct http_sender_config *cfg, struct http_sender **out, struct err *err)
{
	errc rc = OK;
	struct http_sender *s = calloc(1, sizeof *s);
	if (!s)
		return err_set(err, ERR_NOMEM, "no memory for an HTTP sender");
	pthread_mutex_init(&s->mu, NULL);
	s->epoll_fd = s->wake_fd = -1;
	s->timer_ns = INT64_MAX;
	s->max_running = cfg->max_connections_per_host ? cfg->max_connections_per_host : LIMIT_HTTP_CONNECTIONS_PER_HOST;
	s->max_kept = cfg->client.max_idle_connections ? cfg->client.max_idle_connections : LIMIT_HTTP_KEPT;
	TRY(net_curl_open(&s->cfg, &cfg->client, err));
	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	s->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = s->wake_fd};
	if (s->epoll_fd < 0 || s->wake_fd < 0 || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->wake_fd, &ev)) {
		rc = err_errno(err, errno, "HTTP sender");
		goto fail;
	}
	CHECK(multi_open(s), ERR_NOMEM, "no memory for an HTTP sender");
	TRY(sender_hosts_open(&s->hosts, names_came, s, err));
	int e = pthread_create(&s->thread, NULL, sender_main, s);
	if (e) {
		rc = err_errno(err, e, "thread of an HTTP sender");
		goto fail;
	}
	s->thread_runs = true;
	*out = s;
	return OK;
fail:
	http_sender_close(s);
	return rc;
}

static void sender_end(struct http_sender *s, bool stop)
{
	pthread_mutex_lock(&s->mu);
	s->canceled = true;
	s->stop |= stop;
	pthread_mutex_unlock(&s->mu);
	wake(s);
}

void http_sender_cancel(struct http_sender *s)
{
	sender_end(s, false);
}

void http_sender_close(struct http_sender *s)
{
	if (!s)
		return;
	if (s->thread_runs) {
		ASSERT(!pthread_equal(pthread_self(), s->thread));
		sender_end(s, true);
		pthread_join(s->thread, NULL);
		ASSERT(!s->inbox.first && !s->n_heap);
	}
	while (s->pool) {
		struct flight *f = s->pool;
		s->pool = f->next;
		flight_free(f);
	}
	if (s->multi)
		curl_multi_cleanup(s->multi);
	sender_hosts_close(&s->hosts);
	if (s->epoll_fd >= 0)
		close(s->epoll_fd); /* seam: an epoll's */
	if (s->wake_fd >= 0)
		close(s->wake_fd); /* seam: an eventfd's */
	net_curl_close(&s->cfg);
	free(s->heap);
	pthread_mutex_destroy(&s->mu);
	free(s);
}

errc sender_take(struct http_sender *s, const struct http_send *call, struct http_flow *flow, struct err *err)
{
	struct flight *f = flight_take(s, call);
	if (f)
		f->flow = flow;
	if (f && flow)
		flow->flight = f;
	pthread_mutex_lock(&s->mu);
	bool canceled = s->canceled, asleep = s->sleeping;
	if (f && !canceled) {
		flights_put(&s->inbox, f);
		s->sleeping = false;
	}
	pthread_mutex_unlock(&s->mu);
	if (!f || canceled) {
		flight_free(f);
		return canceled ? err_set(err, ERR_CANCELED, "canceled") : err_set(err, ERR_NOMEM, "no memory for a call");
	}
	if (asleep)
		wake(s);
	return OK;
}

errc http_send(struct http_sender *s, const struct http_send *call, struct err *err)
{
	return sender_take(s, call, NULL, err);
}

void sender_want(struct http_sender *s, struct http_flow *f)
{
	bool asleep = s->sleeping;
	if (!f->queued) {
		f->queued = true;
		atomic_fetch_add(&f->refs, 1);
		f->next = s->flows;
		s->flows = f;
	}
	s->sleeping = false;
	pthread_mutex_unlock(&s->mu);
	if (asleep)
		wake(s);
}

struct span http_send_header(const struct http_sender *s, const char *name)
{
	return s->landing ? net_curl_header_value(&s->landing->headers, name) : (struct span){0};
}
