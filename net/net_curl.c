/* net/net_curl.c - what both clients tell libcurl, and how its errors become ours.
 *
 * What a caller of a bucket or peer must be able to rely on: no redirect is followed (credentials would go with it), no proxy, netrc or cookie from
 * the environment, no header of the request in any message, and no query string either (it may be presigned).
 */
#include <signal.h>
#include <stdlib.h>
#include "net/net_curl_int.h"

enum { CA_CACHE_S = 30 }; /* a renewed CA file is believed by then; parsing it for every connection costs more than the rest of the handshake */

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_ready;

static void curl_start(void)
{
	/* without signals in libcurl (CURLOPT_NOSIGNAL) a TLS write to a connection that is gone would end the process */
	struct sigaction now;
	if (sigaction(SIGPIPE, NULL, &now) == 0 && now.sa_handler == SIG_DFL)
		signal(SIGPIPE, SIG_IGN);
	curl_ready = curl_global_init(CURL_GLOBAL_DEFAULT);
}

static bool copy(const char **out, const char *s)
{
	*out = NULL;
	return !s || !*s || (*out = strdup(s));
}

errc net_curl_open(struct http_client_config *out, const struct http_client_config *cfg, struct err *err)
{
	pthread_once(&curl_once, curl_start);
	*out = *cfg;
	bool copied = copy(&out->ca_file, cfg->ca_file);
	copied &= copy(&out->cert_file, cfg->cert_file);
	copied &= copy(&out->key_file, cfg->key_file);
	copied &= copy(&out->server_name, cfg->server_name);
	if (curl_ready != CURLE_OK || !copied)
		net_curl_close(out);
	if (curl_ready != CURLE_OK)
		return err_set(err, ERR_IO, "libcurl: %s", curl_easy_strerror(curl_ready));
	return copied ? OK : err_set(err, ERR_NOMEM, "no memory for an HTTP client");
}

void net_curl_close(struct http_client_config *cfg)
{
	const char **owned[] = {&cfg->ca_file, &cfg->cert_file, &cfg->key_file, &cfg->server_name};
	for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
		free((void *)(uintptr_t)*owned[i]);
		*owned[i] = NULL;
	}
}

/* Numbers must be long for libcurl's varargs. */
bool net_curl_set_fixed(CURL *e, const struct http_client_config *cfg, char *text)
{
	bool bad = false;
	text[0] = 0;
	bad |= curl_easy_setopt(e, CURLOPT_ERRORBUFFER, text) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L) != 0; /* cancelling does not wait for a name to be resolved */
	bad |= curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https") != 0;
	bad |= curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_PROXY, "") != 0;
	bad |= curl_easy_setopt(e, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_PATH_AS_IS, 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_TCP_NODELAY, 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)(cfg->connect_timeout_ms > 0 ? cfg->connect_timeout_ms : 10000)) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_SSL_VERIFYPEER, cfg->insecure_skip_verify ? 0L : 1L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_SSL_VERIFYHOST, cfg->insecure_skip_verify ? 0L : 2L) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2) != 0;
	bad |= curl_easy_setopt(e, CURLOPT_CA_CACHE_TIMEOUT, (long)CA_CACHE_S) != 0;
	if (cfg->ca_file)
		bad |= curl_easy_setopt(e, CURLOPT_CAINFO, cfg->ca_file) != 0;
	if (cfg->cert_file)
		bad |= curl_easy_setopt(e, CURLOPT_SSLCERT, cfg->cert_file) != 0;
	if (cfg->key_file)
		bad |= curl_easy_setopt(e, CURLOPT_SSLKEY, cfg->key_file) != 0;
	return !bad;
}

void net_curl_place(char out[NET_PLACE_BYTES], const char *method, const char *url)
{
	const char *end = url + strcspn(url, "?#"), *host = strstr(url, "://");
	host = host && host < end ? host + 3 : url;
	size_t authority = strcspn(host, "/?#");
	const char *at = memrchr(host, '@', authority);
	const char *from = at ? at + 1 : host;
	snprintf(out, NET_PLACE_BYTES, "%s %.*s%.*s", method, (int)(host - url), url, (int)(end - from > 110 ? 110 : end - from), from);
}

errc net_curl_code(CURL *easy, CURLcode code)
{
	long port = 0;
	switch (code) {
	case CURLE_OPERATION_TIMEDOUT:
		return ERR_TIMEOUT;
	case CURLE_OUT_OF_MEMORY:
		return ERR_NOMEM;
	case CURLE_UNSUPPORTED_PROTOCOL:
		/* the URL's, or what an answer's first line says */
		curl_easy_getinfo(easy, CURLINFO_PRIMARY_PORT, &port);
		return port ? ERR_NET : ERR_INVALID;
	case CURLE_URL_MALFORMAT:
	case CURLE_BAD_FUNCTION_ARGUMENT:
	case CURLE_SSL_CERTPROBLEM:
	case CURLE_SSL_CACERT_BADFILE:
		return ERR_INVALID;
	default:
		return ERR_NET;
	}
}

errc net_curl_header(struct buf *headers, const char *p, size_t n, bool *whole, struct err *err)
{
	struct span line = span_of(p, n);
	while (line.n && (line.p[line.n - 1] == '\r' || line.p[line.n - 1] == '\n'))
		line.n--;
	if (span_has_prefix(line, SPAN("HTTP/"))) {
		buf_clear(headers); /* what came before belonged to an interim answer */
		*whole = false;
		return OK;
	}
	*whole |= line.n == 0;
	const char *colon = line.n ? memchr(line.p, ':', line.n) : NULL;
	if (!colon)
		return OK;
	struct span name = span_of(line.p, (size_t)(colon - line.p)), value = span_of(colon + 1, line.n - (size_t)(colon - line.p) - 1);
	while (value.n && (*value.p == ' ' || *value.p == '\t'))
		value = span_of(value.p + 1, value.n - 1);
	while (value.n && (value.p[value.n - 1] == ' ' || value.p[value.n - 1] == '\t'))
		value.n--;
	for (size_t i = 0; i < name.n; i++)
		buf_u8(headers, (uint8_t)(name.p[i] >= 'A' && name.p[i] <= 'Z' ? name.p[i] | 0x20 : name.p[i]));
	buf_put(headers, ": ", 2);
	buf_span(headers, value);
	buf_u8(headers, '\n');
	if (!headers->failed)
		return OK;
	if (headers->n + n + 2 > headers->max)
		return err_set(err, ERR_LIMIT, "the answer's headers have more than %zu bytes", headers->max);
	return err_set(err, ERR_NOMEM, "no memory for the answer's headers");
}

errc net_curl_answer(struct buf *answer, CURL *easy, const char *p, size_t n, struct err *err)
{
	curl_off_t declared = -1;
	if (answer->n == 0)
		curl_easy_getinfo(easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &declared);
	if (n > answer->max - answer->n || (declared >= 0 && (uint64_t)declared > answer->max))
		return err_set(err, ERR_LIMIT, "the answer has more than %zu bytes", answer->max);
	buf_put(answer, p, n);
	return answer->failed ? err_set(err, ERR_NOMEM, "no memory for an answer of %zu bytes", answer->n + n) : OK;
}

struct span net_curl_header_value(const struct buf *headers, const char *name)
{
	struct span rest = span_of(headers->p, headers->n), want = span_cstr(name);
	while (rest.n) {
		const char *nl = memchr(rest.p, '\n', rest.n);
		struct span line = span_of(rest.p, nl ? (size_t)(nl - rest.p) : rest.n);
		if (line.n >= want.n + 2 && span_has_prefix(line, want) && line.p[want.n] == ':')
			return span_of(line.p + want.n + 2, line.n - want.n - 2);
		size_t used = nl ? line.n + 1 : line.n;
		rest = span_of(rest.p + used, rest.n - used);
	}
	return (struct span){0};
}
