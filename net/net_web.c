/* net/net_web.c - the web config file, in Prometheus' format: TLS, basic auth, headers.
 *
 *     tls_server_config:
 *       cert_file, key_file (or cert, key inline), client_ca_file (or client_ca), client_auth_type, client_allowed_sans,
 *       min_version, max_version, cipher_suites, curve_preferences, prefer_server_cipher_suites
 *     http_server_config:
 *       http2 (accepted: HTTP/1.1 is spoken either way), headers
 *     basic_auth_users:
 *       name: bcrypt hash
 *
 * Paths are relative to the file. A generation is read whole, checked whole, and then never changes: a bad file is refused and the
 * generation before stays in force.
 */
#include <stdlib.h>
#include "net/net_int.h"

struct reading {
	const char *path;
	struct arena *arena;
	struct net_web *w;
};

static errc resolve(struct reading *rd, const char *path, const char **out, struct err *err)
{
	const char *slash = strrchr(rd->path, '/');
	*out = path[0] == '/' || !slash ? path : arena_printf(rd->arena, "%.*s/%s", (int)(slash - rd->path), rd->path, path);
	return *out ? OK : err_set(err, ERR_NOMEM, "%s: no memory for its paths", rd->path);
}

/* Notes how a file looks before it is read, so that a change between the two is seen the next time. */
static errc stamp(struct net_web *w, const char *path, struct err *err)
{
	errc rc = OK;
	struct io_stat st;
	ASSERT(w->n_stamps < sizeof w->stamps / sizeof w->stamps[0]);
	TRY(io_stat(path, &st, err));
	CHECK(st.exists, ERR_INVALID, "%s: there is no such file", path);
	w->stamps[w->n_stamps++] = (struct net_file_stamp){path, st.mtime_ms, st.size};
fail:
	return rc;
}

/* A PEM from FILE_KEY's file or from INLINE_KEY's text. */
static errc read_pem(struct reading *rd, const struct yaml *tls, const char *file_key, const char *inline_key, const char **path, struct span *pem,
	struct err *err)
{
	errc rc = OK;
	const char *file = NULL, *text = NULL;
	TRY(yaml_string(rd->path, tls, file_key, &file, err));
	TRY(yaml_string(rd->path, tls, inline_key, &text, err));
	if (file && !*file)
		file = NULL;
	if (text && !*text)
		text = NULL;
	CHECK(!file || !text, ERR_INVALID, "%s: give %s or %s, not both", rd->path, file_key, inline_key);
	if (text)
		*pem = span_cstr(text);
	if (file) {
		TRY(resolve(rd, file, path, err));
		TRY(stamp(rd->w, *path, err));
		TRY(io_read_file(*path, LIMIT_CONFIG_BYTES, rd->arena, pem, err));
	}
fail:
	return rc;
}

static errc read_strings(struct reading *rd, const struct yaml *list, const char *key, const char ***out, size_t *n, struct err *err)
{
	errc rc = OK;
	const char **v = arena_calloc(rd->arena, list->n + 1, sizeof *v);
	CHECK(v, ERR_NOMEM, "%s: no memory for %s", rd->path, key);
	CHECK(list->kind == YAML_LIST, ERR_INVALID, "%s:%d: %s must be a list", rd->path, list->line, key);
	for (size_t i = 0; i < list->n; i++) {
		CHECK(list->items[i]->kind == YAML_SCALAR, ERR_INVALID, "%s:%d: %s must be a list of words", rd->path, list->items[i]->line, key);
		v[i] = list->items[i]->scalar.p;
	}
	*out = v;
	*n = list->n;
fail:
	return rc;
}

static errc read_client_auth(struct reading *rd, const struct yaml *tls, struct net_tls_config *t, struct err *err)
{
	static const char *const words[] = {
		"NoClientCert", "RequestClientCert", "RequireAnyClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"};
	errc rc = OK;
	const char *word = NULL;
	TRY(yaml_string(rd->path, tls, "client_auth_type", &word, err));
	if (word && *word) {
		size_t i = 0;
		while (i < 5 && strcmp(word, words[i]) != 0)
			i++;
		CHECK(i < 5, ERR_INVALID,
			"%s: client_auth_type \"%s\" is not one of NoClientCert, RequestClientCert, RequireAnyClientCert, VerifyClientCertIfGiven, "
			"RequireAndVerifyClientCert",
			rd->path, word);
		t->client_auth = (enum net_client_auth)i;
	}
	bool verifies = t->client_auth == TLS_CLIENT_VERIFY_IF_GIVEN || t->client_auth == TLS_CLIENT_REQUIRE_AND_VERIFY;
	CHECK(!t->client_ca.p || t->client_auth != TLS_CLIENT_NONE, ERR_INVALID,
		"%s: client_ca_file needs a client_auth_type that asks for certificates", rd->path);
	CHECK(!verifies || t->client_ca.p, ERR_INVALID, "%s: client_auth_type %s needs client_ca_file", rd->path, word);
	const struct yaml *sans = yaml_get(tls, "client_allowed_sans");
	if (sans)
		TRY(read_strings(rd, sans, "client_allowed_sans", &t->client_sans, &t->n_client_sans, err));
	CHECK(!t->n_client_sans || verifies, ERR_INVALID, "%s: client_allowed_sans needs a client_auth_type that verifies certificates", rd->path);
fail:
	return rc;
}

static errc read_tls(struct reading *rd, const struct yaml *tls, struct err *err)
{
	static const char *const keys[] = {"cert_file", "key_file", "cert", "key", "client_ca_file", "client_ca", "client_auth_type",
		"client_allowed_sans", "min_version", "max_version", "cipher_suites", "curve_preferences", "prefer_server_cipher_suites"};
	errc rc = OK;
	struct net_tls_config *t = &rd->w->tls;
	TRY(yaml_only(rd->path, tls, "tls_server_config", keys, sizeof keys / sizeof keys[0], err));
	if (tls->n == 0)
		return OK;
	TRY(read_pem(rd, tls, "cert_file", "cert", &t->cert_file, &t->cert, err));
	TRY(read_pem(rd, tls, "key_file", "key", &t->key_file, &t->key, err));
	TRY(read_pem(rd, tls, "client_ca_file", "client_ca", &t->client_ca_file, &t->client_ca, err));
	CHECK(t->cert.p && t->key.p, ERR_INVALID, "%s: tls_server_config needs cert_file and key_file", rd->path);
	TRY(read_client_auth(rd, tls, t, err));
	TRY(net_tls_priorities(rd->path, tls, rd->arena, &t->priorities, err));
	rd->w->has_tls = true;
	TRY(net_tls_open(rd->w, err));
fail:
	return rc;
}

static errc read_http(struct reading *rd, const struct yaml *http, struct err *err)
{
	static const char *const keys[] = {"http2", "headers"};
	static const char *const names[] = {
		"Content-Security-Policy", "X-Frame-Options", "X-Content-Type-Options", "X-XSS-Protection", "Strict-Transport-Security"};
	errc rc = OK;
	bool http2;
	TRY(yaml_only(rd->path, http, "http_server_config", keys, 2, err));
	TRY(yaml_bool(rd->path, http, "http2", &http2, err));
	const struct yaml *headers = yaml_get(http, "headers");
	if (!headers)
		return OK;
	TRY(yaml_only(rd->path, headers, "headers", names, sizeof names / sizeof names[0], err));
	rd->w->headers = arena_calloc(rd->arena, headers->n + 1, sizeof *rd->w->headers);
	CHECK(rd->w->headers, ERR_NOMEM, "%s: no memory for its headers", rd->path);
	for (size_t i = 0; i < headers->n; i++) {
		struct net_header h = {.name = headers->pairs[i].key.p};
		TRY(yaml_string(rd->path, headers, h.name, &h.value, err));
		CHECK(h.value && !strpbrk(h.value, "\r\n"), ERR_INVALID, "%s:%d: the value of %s must be one line", rd->path,
			headers->pairs[i].value->line, h.name);
		if (*h.value)
			rd->w->headers[rd->w->n_headers++] = h;
	}
fail:
	return rc;
}

/* $2a$, $2b$ or $2y$, two digits of cost, 53 characters of salt and hash. */
static bool bcrypt_valid(const char *h, int *cost)
{
	if (strlen(h) != 60 || h[0] != '$' || h[1] != '2' || !strchr("aby", h[2]) || h[3] != '$' || h[6] != '$')
		return false;
	if (h[4] < '0' || h[4] > '3' || h[5] < '0' || h[5] > '9')
		return false;
	*cost = (h[4] - '0') * 10 + h[5] - '0';
	for (const char *p = h + 7; *p; p++) {
		bool alnum = (*p >= '0' && *p <= '9') || ((*p | 0x20) >= 'a' && (*p | 0x20) <= 'z');
		if (!alnum && *p != '.' && *p != '/')
			return false;
	}
	return *cost >= 4 && *cost <= 31;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct net_user *)a)->name, ((const struct net_user *)b)->name);
}

static errc read_users(struct reading *rd, const struct yaml *users, struct err *err)
{
	errc rc = OK;
	int dearest = 4;
	CHECK(users->kind == YAML_MAP, ERR_INVALID, "%s:%d: basic_auth_users must map names to bcrypt hashes", rd->path, users->line);
	rd->w->users = arena_calloc(rd->arena, users->n + 1, sizeof *rd->w->users);
	CHECK(rd->w->users, ERR_NOMEM, "%s: no memory for its users", rd->path);
	for (size_t i = 0; i < users->n; i++) {
		const struct yaml_pair *p = &users->pairs[i];
		int cost;
		CHECK(p->key.n && !memchr(p->key.p, ':', p->key.n), ERR_INVALID, "%s:%d: a user's name must not be empty or contain a colon",
			rd->path, p->value->line);
		/* the hash is not repeated in the message: it may be a password by mistake */
		CHECK(p->value->kind == YAML_SCALAR && bcrypt_valid(p->value->scalar.p, &cost), ERR_INVALID,
			"%s:%d: user %.*s: not a bcrypt hash ($2y$10$..., as htpasswd -nB makes)", rd->path, p->value->line, SPAN_ARG(p->key));
		if (cost > dearest)
			dearest = cost;
		rd->w->users[rd->w->n_users++] = (struct net_user){p->key.p, p->value->scalar.p};
	}
	qsort(rd->w->users, rd->w->n_users, sizeof *rd->w->users, by_name);
	snprintf(rd->w->dummy_setting, sizeof rd->w->dummy_setting, "$2y$%02d$QOauhQNbBCuQDKes6eFzPe", dearest);
fail:
	return rc;
}

errc net_web_load(const char *path, struct net_web **out, struct err *err)
{
	static const char *const keys[] = {"tls_server_config", "http_server_config", "basic_auth_users"};
	errc rc = OK;
	struct net_web *w = calloc(1, sizeof *w);
	if (!w)
		return err_set(err, ERR_NOMEM, "%s: no memory to read it", path);
	w->refs = 1;
	arena_init(&w->arena, 32 * LIMIT_CONFIG_BYTES);
	struct reading rd = {.path = arena_cstr(&w->arena, span_cstr(path)), .arena = &w->arena, .w = w};
	struct span text;
	struct yaml *y;
	const struct yaml *part;
	CHECK(rd.path, ERR_NOMEM, "%s: no memory to read it", path);
	TRY(stamp(w, rd.path, err));
	TRY(io_read_file(path, LIMIT_CONFIG_BYTES, &w->arena, &text, err));
	TRY(yaml_parse(path, text, &w->arena, &y, err));
	TRY(yaml_only(path, y, "web config", keys, 3, err));
	if ((part = yaml_get(y, "tls_server_config")) && !(part->kind == YAML_SCALAR && part->scalar.n == 0))
		TRY(read_tls(&rd, part, err));
	if ((part = yaml_get(y, "http_server_config")) && !(part->kind == YAML_SCALAR && part->scalar.n == 0))
		TRY(read_http(&rd, part, err));
	if ((part = yaml_get(y, "basic_auth_users")) && !(part->kind == YAML_SCALAR && part->scalar.n == 0))
		TRY(read_users(&rd, part, err));
	*out = w;
	return OK;
fail:
	net_web_drop(w);
	/* A configuration that can't be read is the operator's to mend, not the disk under our data. */
	return rc == ERR_IO ? ERR_INVALID : rc;
}

struct net_web *net_web_hold(struct net_web *w)
{
	if (w)
		atomic_fetch_add(&w->refs, 1);
	return w;
}

void net_web_drop(struct net_web *w)
{
	if (!w || atomic_fetch_sub(&w->refs, 1) != 1)
		return;
	net_tls_close(w);
	arena_free(&w->arena);
	free(w);
}

bool net_web_changed(const struct net_web *w)
{
	for (size_t i = 0; w && i < w->n_stamps; i++) {
		struct io_stat st;
		if (io_stat(w->stamps[i].path, &st, NULL) || !st.exists)
			return true;
		if (st.mtime_ms != w->stamps[i].mtime_ms || st.size != w->stamps[i].size)
			return true;
	}
	return false;
}
