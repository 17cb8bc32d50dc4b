/* net/net_names.c - what a name service says, for who looks for peers: all addresses of a name, or its SRV records.
 *
 * Both wait for as long as the name service takes, which nothing can end: for threads that have nothing else to do. getaddrinfo for addresses, because it knows /etc/hosts and all else that the system is
 * configured for; the resolver's own query for SRV records, which getaddrinfo does not know, asked for the name as it is, without search domains.
 *
 * SRV's priority and weight are passed over: whoever is named is a peer. A target "." says that there is no such service (RFC 2782).
 */
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <resolv.h>
#include <stdlib.h>
#include "net/net_int.h"

enum { ANSWER_BYTES = 65535 };

/* ---- addresses ---- */

errc net_find_addresses(const char *name, uint16_t port, struct arena *arena, struct net_found *out, struct err *err)
{
	errc rc = OK;
	struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
	size_t most = 0;
	*out = (struct net_found){0};
	int e = getaddrinfo(name, NULL, &hints, &list);
	CHECK(e == 0, e == EAI_MEMORY ? ERR_NOMEM : ERR_NET, "%s: %s", name, gai_strerror(e));
	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next)
		most++;
	out->v = arena_calloc(arena, most, sizeof *out->v);
	CHECK(out->v, ERR_NOMEM, "no memory for the addresses of %s", name);
	for (const struct addrinfo *ai = list; ai && out->n < LIMIT_PEERS_FOUND; ai = ai->ai_next) {
		char ip[INET6_ADDRSTRLEN] = "";
		const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)ai->ai_addr;
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)ai->ai_addr;
		bool v6 = ai->ai_family == AF_INET6;
		/* a link-local address means nothing without its interface */
		if ((v6 && IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr)) || (!v6 && ai->ai_family != AF_INET))
			continue;
		inet_ntop(ai->ai_family, v6 ? (const void *)&in6->sin6_addr : &in->sin_addr, ip, sizeof ip);
		const char *text = arena_printf(arena, v6 ? "[%s]:%u" : "%s:%u", ip, port);
		CHECK(text, ERR_NOMEM, "no memory for the addresses of %s", name);
		out->v[out->n++] = span_cstr(text);
	}
fail:
	if (list)
		freeaddrinfo(list);
	return rc;
}

/* ---- SRV records ---- */

errc net_srv_read(const char *name, const uint8_t *answer, size_t n, struct arena *arena, struct net_found *out, struct err *err)
{
	errc rc = OK;
	ns_msg msg;
	*out = (struct net_found){0};
	CHECK(n <= ANSWER_BYTES && ns_initparse(answer, (int)n, &msg) == 0, ERR_NET, "%s: the name service's answer can't be read", name);
	size_t records = ns_msg_count(msg, ns_s_an);
	out->v = arena_calloc(arena, records, sizeof *out->v);
	CHECK(out->v, ERR_NOMEM, "no memory for the addresses of %s", name);
	for (size_t i = 0; i < records && out->n < LIMIT_PEERS_FOUND; i++) {
		ns_rr rr;
		char target[NS_MAXDNAME];
		CHECK(ns_parserr(&msg, ns_s_an, (int)i, &rr) == 0, ERR_NET, "%s: record %zu of the name service's answer can't be read", name, i);
		if (ns_rr_type(rr) != ns_t_srv || ns_rr_class(rr) != ns_c_in)
			continue; /* an alias on the way, say */
		const uint8_t *p = ns_rr_rdata(rr);
		CHECK(ns_rr_rdlen(rr) > 6 && dn_expand(ns_msg_base(msg), ns_msg_end(msg), p + 6, target, sizeof target) > 0, ERR_NET,
			"%s: record %zu of the name service's answer can't be read", name, i);
		unsigned port = (unsigned)p[4] << 8 | p[5];
		if (!*target || strcmp(target, ".") == 0)
			continue;
		size_t len = strlen(target);
		const char *text = arena_printf(arena, "%.*s:%u", (int)(len - (target[len - 1] == '.')), target, port);
		CHECK(text, ERR_NOMEM, "no memory for the addresses of %s", name);
		out->v[out->n++] = span_cstr(text);
	}
fail:
	return rc;
}

errc net_find_services(const char *name, struct arena *arena, struct net_found *out, struct err *err)
{
	struct __res_state state;
	*out = (struct net_found){0};
	uint8_t *answer = malloc(ANSWER_BYTES);
	if (!answer)
		return err_set(err, ERR_NOMEM, "no memory for the addresses of %s", name);
	memset(&state, 0, sizeof state);
	errc rc = OK;
	if (res_ninit(&state) != 0)
		rc = err_set(err, ERR_NET, "%s: the resolver can't be started", name);
	if (rc == OK) {
		int n = res_nquery(&state, name, ns_c_in, ns_t_srv, answer, ANSWER_BYTES);
		rc = n < 0 ? err_set(err, ERR_NET, "%s: %s", name, hstrerror(state.res_h_errno))
			   : net_srv_read(name, answer, (size_t)(n < ANSWER_BYTES ? n : ANSWER_BYTES), arena, out, err);
		res_nclose(&state);
	}
	free(answer);
	return rc;
}
