/* net/net_resolve.c - names into addresses, beside everything else.
 *
 * getaddrinfo waits as long as it likes, and nothing can end it: a name service that is away holds a thread for half a minute per question. So questions
 * are asked by threads of their own, at most LIMIT_HTTP_RESOLVERS, which are made when there is something to ask and end when there is not. Nobody waits
 * for them: their answers lie in a list until the sender comes for them, and when it has closed, what they work on is theirs to free.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include "net/net_curl_int.h"

struct net_resolver {
	pthread_mutex_t mu;
	struct net_name *asked, **asked_end; /* not begun */
	struct net_name *answered;
	uint32_t threads;
	bool closed;
	void (*wake)(void *arg);
	void *arg;
};

static void names_free(struct net_name *q)
{
	while (q) {
		struct net_name *next = q->next;
		free(q);
		q = next;
	}
}

static void resolver_free(struct net_resolver *r)
{
	names_free(r->asked);
	names_free(r->answered);
	pthread_mutex_destroy(&r->mu);
	free(r);
}

/* "[::1]" or "127.0.0.1": how libcurl wants to be told where to connect. */
static bool address_text(const struct addrinfo *ai, char *out, size_t size)
{
	char ip[INET6_ADDRSTRLEN];
	if (ai->ai_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)ai->ai_addr;
		return inet_ntop(AF_INET, &in->sin_addr, out, (socklen_t)size) != NULL;
	}
	if (ai->ai_family != AF_INET6)
		return false;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)ai->ai_addr;
	/* a link-local address means nothing without its interface */
	if (IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr) || !inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof ip))
		return false;
	return snprintf(out, size, "[%s]", ip) < (int)size;
}

static void resolve(struct net_name *q)
{
	struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	int e = getaddrinfo(q->name, NULL, &hints, &list);
	for (const struct addrinfo *ai = e ? NULL : list; ai && q->n_addresses < NET_NAME_ADDRESSES; ai = ai->ai_next) {
		if (address_text(ai, q->addresses[q->n_addresses], sizeof q->addresses[0]))
			q->n_addresses++;
	}
	if (q->n_addresses == 0)
		q->why = e ? gai_strerror(e) : "no address that can be used";
	if (list)
		freeaddrinfo(list);
}

static void *resolver_main(void *arg)
{
	struct net_resolver *r = arg;
	pthread_mutex_lock(&r->mu);
	while (r->asked && !r->closed) {
		struct net_name *q = r->asked;
		r->asked = q->next;
		if (!r->asked)
			r->asked_end = &r->asked;
		pthread_mutex_unlock(&r->mu);
		resolve(q);
		pthread_mutex_lock(&r->mu);
		q->next = r->answered;
		r->answered = q;
		if (!r->closed)
			r->wake(r->arg); /* under the lock: what it wakes closes the resolver before it goes */
	}
	bool last = --r->threads == 0 && r->closed;
	pthread_mutex_unlock(&r->mu);
	if (last)
		resolver_free(r);
	return NULL;
}

errc net_resolver_open(void (*wake)(void *arg), void *arg, struct net_resolver **out, struct err *err)
{
	struct net_resolver *r = calloc(1, sizeof *r);
	if (!r)
		return err_set(err, ERR_NOMEM, "no memory for resolving names");
	pthread_mutex_init(&r->mu, NULL);
	r->asked_end = &r->asked;
	r->wake = wake;
	r->arg = arg;
	*out = r;
	return OK;
}

void net_resolver_close(struct net_resolver *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->mu);
	r->closed = true;
	bool last = r->threads == 0;
	pthread_mutex_unlock(&r->mu);
	if (last)
		resolver_free(r);
}

errc net_resolver_ask(struct net_resolver *r, const char *name, void *of, struct err *err)
{
	errc rc = OK;
	size_t n = strlen(name);
	struct net_name *q = calloc(1, sizeof *q + n + 1);
	if (!q)
		return err_set(err, ERR_NOMEM, "no memory for resolving %s", name);
	memcpy(q->name, name, n);
	q->of = of;
	pthread_mutex_lock(&r->mu);
	if (r->threads < LIMIT_HTTP_RESOLVERS) {
		pthread_t t;
		pthread_attr_t attr;
		pthread_attr_init(&attr);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		if (pthread_create(&t, &attr, resolver_main, r) == 0)
			r->threads++;
		else if (r->threads == 0)
			rc = err_set(err, ERR_NOMEM, "no thread for resolving %s", name);
		pthread_attr_destroy(&attr);
	}
	if (rc == OK) {
		*r->asked_end = q;
		r->asked_end = &q->next;
		q = NULL;
	}
	pthread_mutex_unlock(&r->mu);
	free(q);
	return rc;
}

struct net_name *net_resolver_take(struct net_resolver *r)
{
	pthread_mutex_lock(&r->mu);
	struct net_name *list = r->answered;
	r->answered = NULL;
	pthread_mutex_unlock(&r->mu);
	return list;
}
