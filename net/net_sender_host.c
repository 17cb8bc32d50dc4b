/* net/net_sender_host.c - the hosts of a sender and their addresses.
 *
 * libcurl would resolve names by itself, with a thread for each new connection and an answer that it believes for a minute. Here a name is asked once
 * for all its calls (net_resolve.c), and libcurl is told the address (CURLOPT_CONNECT_TO), which is part of what a kept connection is found by:
 * when a restarted peer has another address, nothing waits on connections to the old one any more.
 *
 * An address that is known stays in use until a better answer is there:
 *   no call has asked yet       calls wait for the first answer, to their deadlines
 *   a call did not get through  the name is asked anew, at most once a second; the next of its addresses is tried meanwhile
 *   the answer is 30 s old      the next call has it asked anew
 *   the name service fails      what was known stays
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <xxhash.h>
#include "net/net_sender_int.h"

enum { BUCKETS = 256 };
static const int64_t FRESH_NS = 30000000000, AGAIN_NS = 1000000000;

errc sender_hosts_open(struct sender_hosts *hs, void (*wake)(void *arg), void *arg, struct err *err)
{
	hs->sweep_at = LIMIT_HTTP_HOSTS;
	hs->buckets = calloc(BUCKETS, sizeof *hs->buckets);
	if (!hs->buckets)
		return err_set(err, ERR_NOMEM, "no memory for an HTTP sender");
	return net_resolver_open(wake, arg, &hs->resolver, err);
}

static void host_free(struct sender_host *h)
{
	free(h->name);
	free(h);
}

void sender_hosts_close(struct sender_hosts *hs)
{
	net_resolver_close(hs->resolver);
	for (size_t i = 0; hs->buckets && i < BUCKETS; i++) {
		while (hs->buckets[i]) {
			struct sender_host *h = hs->buckets[i];
			hs->buckets[i] = h->next;
			host_free(h);
		}
	}
	free(hs->buckets);
}

static size_t bucket_of(struct span key)
{
	return XXH3_64bits(key.p, key.n) % BUCKETS;
}

struct sender_host *sender_hosts_next(const struct sender_hosts *hs, const struct sender_host *h)
{
	if (h && h->next)
		return h->next;
	for (size_t i = h ? bucket_of(span_of(h->key, h->key_n)) + 1 : 0; i < BUCKETS; i++) {
		if (hs->buckets[i])
			return hs->buckets[i];
	}
	return NULL;
}

/* Forgets who has no calls: peers come and go under new names. */
static void hosts_sweep(struct sender_hosts *hs)
{
	for (size_t i = 0; i < BUCKETS; i++) {
		struct sender_host **at = &hs->buckets[i];
		while (*at) {
			struct sender_host *h = *at;
			if (h->waiting.first || h->running.first || h->resolving || h->ready) {
				at = &h->next;
				continue;
			}
			*at = h->next;
			host_free(h);
			hs->n--;
		}
	}
	hs->sweep_at = hs->n * 2 > LIMIT_HTTP_HOSTS ? hs->n * 2 : LIMIT_HTTP_HOSTS;
}

bool sender_url_split(const char *url, struct span *before, struct span *name, struct span *behind)
{
	size_t scheme = strncasecmp(url, "http://", 7) == 0 ? 7 : strncasecmp(url, "https://", 8) == 0 ? 8 : 0;
	if (!scheme)
		return false;
	size_t authority = strcspn(url + scheme, "/?#");
	const char *at = memrchr(url + scheme, '@', authority), *from = at ? at + 1 : url + scheme, *end = url + scheme + authority;
	bool v6 = *from == '[';
	const char *to = memchr(from, v6 ? ']' : ':', (size_t)(end - from));
	if (v6 && !to)
		return false;
	*before = span_of(url, (size_t)(from - url));
	*name = v6 ? span_of(from + 1, (size_t)(to - from - 1)) : span_of(from, (size_t)((to ? to : end) - from));
	*behind = span_cstr(v6 ? to + 1 : to ? to : end);
	return name->n > 0;
}

static bool is_address(const char *name)
{
	char sink[16];
	return inet_pton(AF_INET, name, sink) == 1 || strchr(name, ':'); /* only an IPv6 address has colons */
}

struct sender_host *sender_host_of(struct sender_hosts *hs, const char *url)
{
	struct span before, name, behind, key;
	bool split = sender_url_split(url, &before, &name, &behind);
	/* what is no such URL has a host, too, so that its calls end like others */
	key = split ? span_of(url, (size_t)(behind.p - url) + strcspn(behind.p, "/?#")) : SPAN("");
	struct sender_host **bucket = &hs->buckets[bucket_of(key)];
	for (struct sender_host *h = *bucket; h; h = h->next) {
		if (span_eq(span_of(h->key, h->key_n), key))
			return h;
	}
	if (hs->n >= hs->sweep_at)
		hosts_sweep(hs);
	struct sender_host *h = calloc(1, sizeof *h + key.n + 1);
	if (!h)
		return NULL;
	if (split) {
		h->name = strndup(name.p, name.n);
		if (!h->name) {
			free(h);
			return NULL;
		}
		if (is_address(h->name)) {
			free(h->name);
			h->name = NULL;
		}
	}
	memcpy(h->key, key.p, key.n);
	h->key_n = key.n;
	h->next = *bucket;
	*bucket = h;
	hs->n++;
	return h;
}

static errc host_ask(struct sender_hosts *hs, struct sender_host *h, int64_t now_ns, struct err *err)
{
	errc rc = net_resolver_ask(hs->resolver, h->name, h, err);
	h->asked_ns = now_ns;
	h->resolving = rc == OK;
	return rc;
}

enum sender_where sender_host_where(struct sender_hosts *hs, struct sender_host *h, struct err *err)
{
	if (!h->name)
		return HOST_KNOWN;
	if (!h->resolving) {
		int64_t now_ns = io_mono_ns(), age_ns = now_ns - h->asked_ns;
		if (!h->n_addresses)
			return host_ask(hs, h, now_ns, err) ? HOST_UNKNOWN : HOST_ASKED;
		if (age_ns >= FRESH_NS || (h->doubted && age_ns >= AGAIN_NS))
			(void)host_ask(hs, h, now_ns, NULL); /* or later: an address is there */
	}
	return h->n_addresses ? HOST_KNOWN : HOST_ASKED;
}

bool sender_host_connect_to(const struct sender_host *h, const char *server_name, char *out, size_t size)
{
	struct span before, name, behind;
	if (h->n_addresses) {
		snprintf(out, size, "::%s:", h->addresses[h->address]);
		return true;
	}
	if (!server_name || !h->key_n || !sender_url_split(h->key, &before, &name, &behind))
		return false;
	bool v6 = memchr(name.p, ':', name.n) != NULL;
	snprintf(out, size, v6 ? "::[%.*s]:" : "::%.*s:", SPAN_ARG(name));
	return true;
}

void sender_host_doubt(struct sender_hosts *hs, struct sender_host *h, bool connected)
{
	if (!h->name || !h->n_addresses)
		return;
	if (!connected)
		h->address = (h->address + 1) % h->n_addresses;
	h->doubted = true;
	int64_t now_ns = io_mono_ns();
	if (!h->resolving && now_ns - h->asked_ns >= AGAIN_NS)
		(void)host_ask(hs, h, now_ns, NULL); /* or with the next call */
}

bool sender_host_learn(struct sender_host *h, const struct net_name *q, struct err *err)
{
	h->resolving = false;
	if (q->n_addresses == 0) {
		err_set(err, ERR_NET, "%s: %s", h->name, q->why);
		return h->n_addresses > 0;
	}
	char old[48];
	memcpy(old, h->addresses[h->address], sizeof old);
	memcpy(h->addresses, q->addresses, sizeof h->addresses);
	h->n_addresses = q->n_addresses;
	h->doubted = false;
	/* connections to the old address are kept while it is one */
	h->address = 0;
	for (size_t i = 0; i < q->n_addresses; i++) {
		if (strcmp(old, q->addresses[i]) == 0)
			h->address = i;
	}
	return true;
}
