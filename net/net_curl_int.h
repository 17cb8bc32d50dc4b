/* net/net_curl_int.h - what the two clients share: net_client.c (a call waits on its caller's thread) and net_sender.c (one thread, many calls). */
#pragma once
#include <curl/curl.h>
#include "net/net_int.h"

/* Copies cfg with its texts (empty ones become NULL), and starts libcurl when nobody has yet. On failure `out` owns nothing. */
CHECKED errc net_curl_open(struct http_client_config *out, const struct http_client_config *cfg, struct err *err);
void net_curl_close(struct http_client_config *cfg);

/* Options that hold for every call; `text` (CURL_ERROR_SIZE) gets libcurl's messages. False: libcurl refuses one. */
bool net_curl_set_fixed(CURL *easy, const struct http_client_config *cfg, char *text);

/* "PUT http://host:port/path", without user and query: what messages begin with. */
enum { NET_PLACE_BYTES = 160 };
void net_curl_place(char out[NET_PLACE_BYTES], const char *method, const char *url);

errc net_curl_code(CURL *easy, CURLcode code);

/* One line as libcurl's header callback gives it, into "name: value\n" lines with names in lower case. *whole once the empty line was there: libcurl
 * takes an answer that ends within its headers for one without a body. */
CHECKED errc net_curl_header(struct buf *headers, const char *p, size_t n, bool *whole, struct err *err);
struct span net_curl_header_value(const struct buf *headers, const char *name); /* p == NULL when absent */

/* A piece of the answer's body; ERR_LIMIT as soon as more than answer->max bytes came or are announced. */
CHECKED errc net_curl_answer(struct buf *answer, CURL *easy, const char *p, size_t n, struct err *err);

/* ---- names: net_resolve.c ---- */
enum { NET_NAME_ADDRESSES = 8 };
struct net_name {
	struct net_name *next;
	void *of; /* the asker's */
	size_t n_addresses;
	char addresses[NET_NAME_ADDRESSES][48]; /* "10.0.0.1" or "[::1]" */
	const char *why;			/* static; when there is none */
	char name[];
};
struct net_resolver;
/* wake(arg) is called on a resolver's thread when an answer lies ready, and never after net_resolver_close has returned. */
CHECKED errc net_resolver_open(void (*wake)(void *arg), void *arg, struct net_resolver **out, struct err *err);
void net_resolver_close(struct net_resolver *r); /* at once, whatever is being asked */
/* Copies the name. Each question that was taken gets an answer. ERR_NOMEM. */
CHECKED errc net_resolver_ask(struct net_resolver *r, const char *name, void *of, struct err *err);
struct net_name *net_resolver_take(struct net_resolver *r); /* all answers that lie ready, linked by next; free() each */
