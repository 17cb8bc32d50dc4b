/* cluster/cluster_trust.c - see cluster/trust.h.
 *
 *     X-Varve-Peer: v1 <ms> <nonce> <hmac>
 *
 *     ms     wall clock of the signer, decimal
 *     nonce  16 hex digits, drawn for each request
 *     hmac   64 hex digits: HMAC-SHA256 under the secret over
 *              the lengths, u64 LE, of method, target, tenant, content type, ms, nonce, body; then these seven as they are
 *
 * With the lengths in front no two requests have the same bytes to sign. Connection, host and all other headers are not signed: nothing that peers say hangs on them.
 *
 * A secret is kept as HMAC uses it: what is longer than SHA-256's block is its hash (RFC 2104). The time is judged before the bytes, so that an old request costs no hashing of its body.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/bytes.h"
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cluster/cluster_trust_int.h"

enum {
	SECRET_MIN_BYTES = 16,
	KEY_BYTES = 64, /* SHA-256's block */
	MAC_BYTES = 32,
	NONCE_CHARS = 16,
	SIGNED_FOR_MS = 60000,
	BELIEVED_MS = 600000, /* the secret before, and half as long signed with */
	SAY_MS = 1000,
};

struct key {
	uint8_t bytes[KEY_BYTES];
	size_t n; /* 0: none */
};

struct trust {
	struct trust_config cfg;
	EVP_MAC *mac;

	pthread_mutex_t mu; /* guards what follows */
	struct key now, before;
	int64_t sign_before_until_ms, believe_before_until_ms; /* monotonic */
	int64_t said_ms;				       /* a refusal */
	uint64_t unsaid;

	/* trust_tick's thread only */
	struct key seen; /* what the file said at the last look and is not taken yet: it may be half written */
	char complaint[ERR_MSG_BYTES];

	struct metric *unknown, *forged;
};

/* ---- the file ---- */

static bool key_same(const struct key *a, const struct key *b)
{
	return a->n == b->n && CRYPTO_memcmp(a->bytes, b->bytes, a->n) == 0;
}

static bool key_of(struct span secret, struct key *out)
{
	*out = (struct key){0};
	unsigned n = 0;
	if (secret.n > KEY_BYTES) {
		if (!EVP_Digest(secret.p, secret.n, out->bytes, &n, EVP_sha256(), NULL))
			return false;
		out->n = n;
		return true;
	}
	memcpy(out->bytes, secret.p, secret.n);
	out->n = secret.n;
	return true;
}

static errc key_read(const char *path, struct key *out, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct span text = {0}, secret;
	arena_init(&a, MIB);
	TRY(io_read_file(path, LIMIT_PEER_SECRET_BYTES, &a, &text, err));
	secret = text;
	while (secret.n > 0 && (uint8_t)secret.p[secret.n - 1] <= ' ')
		secret.n--;
	CHECK(secret.n >= SECRET_MIN_BYTES, ERR_INVALID, "%s: a secret of %zu bytes, it needs %d", path, secret.n, SECRET_MIN_BYTES);
	CHECK(key_of(secret, out), ERR_NOMEM, "%s: no memory", path);
fail:
	if (text.p)
		OPENSSL_cleanse((void *)(uintptr_t)text.p, text.n);
	arena_free(&a);
	return rc;
}

void trust_tick(struct trust *t)
{
	struct key k = {0};
	struct err err = {0};
	if (!t->cfg.secret_file)
		return;
	errc rc = key_read(t->cfg.secret_file, &k, &err);
	if (rc != OK) {
		if (strcmp(t->complaint, err.msg) != 0)
			log_error("the peers' secret can't be read, the one before stays", LERR(&err));
		snprintf(t->complaint, sizeof t->complaint, "%s", err.msg);
		return;
	}
	t->complaint[0] = 0;
	pthread_mutex_lock(&t->mu);
	bool changed = !key_same(&k, &t->now), settled = key_same(&k, &t->seen);
	if (changed && settled) {
		int64_t now_ms = io_mono_ms();
		t->before = t->now;
		t->now = k;
		t->believe_before_until_ms = now_ms + BELIEVED_MS;
		t->sign_before_until_ms = now_ms + BELIEVED_MS / 2;
	}
	pthread_mutex_unlock(&t->mu);
	t->seen = k;
	if (changed && settled)
		log_info("the peers' secret has changed; the one before is believed for another ten minutes", LSTR("file", t->cfg.secret_file));
	OPENSSL_cleanse(&k, sizeof k);
}

/* ---- signing ---- */

static bool mac_of(const struct trust *t, const struct key *k, const struct trust_words *w, struct span ms, struct span nonce, uint8_t out[MAC_BYTES])
{
	const struct span parts[] = {w->method, w->target, w->tenant, w->content_type, ms, nonce, w->body};
	enum { PARTS = sizeof parts / sizeof parts[0] };
	uint8_t lengths[8 * PARTS];
	char digest[] = "SHA256";
	const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0), OSSL_PARAM_construct_end()};
	size_t n = 0;
	for (int i = 0; i < PARTS; i++)
		put_le64(lengths + 8 * i, parts[i].n);
	EVP_MAC_CTX *c = EVP_MAC_CTX_new(t->mac);
	bool good = c && EVP_MAC_init(c, k->bytes, k->n, params) && EVP_MAC_update(c, lengths, sizeof lengths);
	for (int i = 0; i < PARTS; i++)
		good = good && (parts[i].n == 0 || EVP_MAC_update(c, (const uint8_t *)parts[i].p, parts[i].n));
	good = good && EVP_MAC_final(c, out, &n, MAC_BYTES) && n == MAC_BYTES;
	EVP_MAC_CTX_free(c);
	return good;
}

/* The key to sign with. false: there is none. */
static bool signing_key(struct trust *t, struct key *out)
{
	if (!t->cfg.secret_file)
		return false;
	pthread_mutex_lock(&t->mu);
	*out = t->before.n > 0 && io_mono_ms() < t->sign_before_until_ms ? t->before : t->now;
	pthread_mutex_unlock(&t->mu);
	return true;
}

/* All that are believed; how many. */
static size_t believed_keys(struct trust *t, struct key out[2])
{
	pthread_mutex_lock(&t->mu);
	out[0] = t->now;
	out[1] = t->before;
	size_t n = t->before.n > 0 && io_mono_ms() < t->believe_before_until_ms ? 2 : 1;
	pthread_mutex_unlock(&t->mu);
	return n;
}

void trust_sign(struct trust *t, const struct trust_words *w, char out[TRUST_HEADER_BYTES])
{
	struct key k;
	uint8_t mac[MAC_BYTES];
	char ms[24], nonce[NONCE_CHARS + 1];
	out[0] = 0;
	if (!signing_key(t, &k))
		return;
	snprintf(ms, sizeof ms, "%" PRId64, io_now_ms());
	snprintf(nonce, sizeof nonce, "%016" PRIx64, io_random_u64());
	if (mac_of(t, &k, w, span_cstr(ms), span_cstr(nonce), mac)) {
		int n = snprintf(out, TRUST_HEADER_BYTES, "v1 %s %s ", ms, nonce);
		for (int i = 0; i < MAC_BYTES; i++)
			n += snprintf(out + n, TRUST_HEADER_BYTES - (size_t)n, "%02x", mac[i]);
	}
	OPENSSL_cleanse(&k, sizeof k);
}

/* ---- checking ---- */

static errc refuse(struct trust *t, enum errid id, const struct trust_claim *c, struct err *err, const char *why)
{
	uint64_t unsaid = 0;
	int64_t now_ms = io_mono_ms();
	errc rc = err_id(err, id, ERR_DENIED, "%s", why);
	metric_add(id == ERRID_PEER_FORGED ? t->forged : t->unknown, 1);
	pthread_mutex_lock(&t->mu);
	bool say = now_ms >= t->said_ms + SAY_MS;
	if (say) {
		t->said_ms = now_ms;
		unsaid = t->unsaid;
		t->unsaid = 0;
	} else {
		t->unsaid++;
	}
	pthread_mutex_unlock(&t->mu);
	if (say)
		log_warn("a request that only a peer may send is refused", LSPAN("address", c->address), LSPAN("method", c->words.method),
			LSPAN("target", c->words.target), LERR(err), LU64("unsaid", unsaid));
	return rc;
}

/* The next word of a header, up to a blank. */
static struct span next_word(struct span *rest)
{
	const char *blank = rest->n ? memchr(rest->p, ' ', rest->n) : NULL;
	struct span word = span_of(rest->p, blank ? (size_t)(blank - rest->p) : rest->n);
	size_t used = blank ? word.n + 1 : word.n;
	*rest = span_of(rest->p + used, rest->n - used);
	return word;
}

static bool hex_decode(struct span s, uint8_t *out, size_t n)
{
	if (s.n != 2 * n)
		return false;
	for (size_t i = 0; i < s.n; i++) {
		char c = s.p[i];
		int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
		if (digit < 0)
			return false;
		out[i / 2] = (uint8_t)(i % 2 ? out[i / 2] | digit : digit << 4);
	}
	return true;
}

static errc check_signature(struct trust *t, const struct trust_claim *c, struct err *err)
{
	struct span rest = c->header;
	struct span version = next_word(&rest), ms = next_word(&rest), nonce = next_word(&rest), hex = rest;
	uint8_t said[MAC_BYTES], mac[MAC_BYTES];
	int64_t signed_ms;
	char why[160];
	struct key keys[2];
	if (!span_is(version, "v1") || ms.n == 0 || !span_to_i64(ms, &signed_ms) || nonce.n != NONCE_CHARS || !hex_decode(hex, said, sizeof said))
		return refuse(t, ERRID_PEER_FORGED, c, err, "the header " TRUST_HEADER " is not of the form v1 <ms> <nonce> <hmac>");
	int64_t now_ms = io_now_ms();
	if (signed_ms > now_ms + SIGNED_FOR_MS || signed_ms < now_ms - SIGNED_FOR_MS) {
		snprintf(why, sizeof why, "signed at %" PRId64 ", here it is %" PRId64 ": more than a minute apart, one of the clocks is wrong",
			signed_ms, now_ms);
		return refuse(t, ERRID_PEER_FORGED, c, err, why);
	}
	bool good = false, able = true;
	size_t n = believed_keys(t, keys);
	for (size_t i = 0; i < n && !good && able; i++) {
		able = mac_of(t, &keys[i], &c->words, ms, nonce, mac);
		good = able && CRYPTO_memcmp(mac, said, MAC_BYTES) == 0;
	}
	OPENSSL_cleanse(keys, sizeof keys);
	if (!able)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory to check a signature");
	return good ? OK : refuse(t, ERRID_PEER_FORGED, c, err, "the signature is not one by this fleet's secret (--peer.secret-file)");
}

errc trust_check(struct trust *t, const struct trust_claim *c, struct err *err)
{
	struct err local = {0};
	err = err ? err : &local;
	if (t->cfg.certificates && !c->certificate)
		return refuse(t, ERRID_PEER_UNKNOWN, c, err,
			t->cfg.name ? "peers show a certificate of the name of --peer.tls-name"
				    : "peers show a client certificate (--peer.tls-cert-file)");
	if (t->cfg.secret_file && !c->header.p)
		return refuse(t, ERRID_PEER_UNKNOWN, c, err, "peers sign what they send (--peer.secret-file)");
	if (t->cfg.secret_file)
		return check_signature(t, c, err);
	if (!t->cfg.certificates && !trust_address_private(c->address))
		return refuse(t, ERRID_PEER_UNKNOWN, c, err,
			"without --peer.secret-file or --peer.tls-cert-file only loopback and private addresses are taken for peers");
	return OK;
}

errc trust_check_order(struct trust *t, const struct trust_claim *c, struct err *err)
{
	struct err local = {0};
	struct span said = c->authorization;
	struct key k, keys[2];
	err = err ? err : &local;
	if (!t->cfg.secret_file || c->header.p || said.n < 7 || strncasecmp(said.p, "Bearer ", 7) != 0)
		return trust_check(t, c, err);
	if (!key_of(span_of(said.p + 7, said.n - 7), &k))
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory to check a secret");
	size_t n = believed_keys(t, keys);
	bool good = false;
	for (size_t i = 0; i < n; i++)
		good |= key_same(&k, &keys[i]);
	OPENSSL_cleanse(&k, sizeof k);
	OPENSSL_cleanse(keys, sizeof keys);
	return good ? OK : refuse(t, ERRID_PEER_FORGED, c, err, "the secret is not this fleet's (--peer.secret-file)");
}

/* ---- addresses ---- */

static bool private4(uint32_t a)
{
	return a >> 24 == 127 || a >> 24 == 10 || a >> 20 == (172 << 4 | 1) || a >> 16 == (192 << 8 | 168) || a >> 22 == (100 << 2 | 1);
}

bool trust_address_private(struct span address)
{
	char text[INET6_ADDRSTRLEN + 1];
	uint8_t ip[16];
	static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff}, loopback[16] = {[15] = 1};
	struct span host = address;
	if (host.n > 0 && host.p[0] == '[') {
		const char *end = memchr(host.p, ']', host.n);
		if (!end)
			return false;
		host = span_of(host.p + 1, (size_t)(end - host.p) - 1);
	} else {
		const char *colon = host.n ? memchr(host.p, ':', host.n) : NULL;
		if (colon && colon == memrchr(host.p, ':', host.n))
			host.n = (size_t)(colon - host.p);
	}
	if (host.n == 0 || host.n >= sizeof text)
		return false;
	memcpy(text, host.p, host.n);
	text[host.n] = 0;
	if (inet_pton(AF_INET, text, ip) == 1)
		return private4(get_be32(ip));
	if (inet_pton(AF_INET6, text, ip) != 1)
		return false;
	if (memcmp(ip, mapped, sizeof mapped) == 0)
		return private4(get_be32(ip + 12));
	return (ip[0] & 0xfe) == 0xfc || memcmp(ip, loopback, sizeof loopback) == 0;
}

/* ---- life ---- */

const char *trust_peer_name(const struct trust *t)
{
	return t->cfg.name;
}

errc trust_open(const struct trust_config *cfg, struct trust **out, struct err *err)
{
	errc rc = OK;
	struct trust *t = calloc(1, sizeof *t);
	if (!t)
		return err_set(err, ERR_NOMEM, "no memory for the peers' secret");
	t->cfg = *cfg;
	pthread_mutex_init(&t->mu, NULL);
	t->said_ms = io_mono_ms() - SAY_MS;
	static const char name[] = "varve_peer_refused_total", help[] = "Requests that only peers may send and that were refused";
	t->unknown = metric_counter_with(name, help, "reason", "unknown");
	t->forged = metric_counter_with(name, help, "reason", "forged");
	t->mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
	CHECK(t->mac, ERR_NOMEM, "no HMAC: libcrypto has none");
	if (cfg->secret_file) {
		rc = key_read(cfg->secret_file, &t->now, err);
		if (rc != OK) {
			err_wrap(err, "--peer.secret-file");
			rc = rc == ERR_NOMEM ? rc : ERR_INVALID;
			goto fail;
		}
	}
	if (!cfg->secret_file && !cfg->certificates)
		log_warn("peers are neither signed nor certified: whoever is on loopback or a private address is taken for one",
			LSTR("flags", "--peer.secret-file, --peer.tls-cert-file"));
	else if (!cfg->secret_file && !cfg->name)
		log_warn("every certificate that the server takes is taken for a peer's, a tenant's too", LSTR("flag", "--peer.tls-name"));
	*out = t;
	return OK;
fail:
	trust_close(t);
	return rc;
}

void trust_close(struct trust *t)
{
	if (!t)
		return;
	EVP_MAC_free(t->mac);
	pthread_mutex_destroy(&t->mu);
	OPENSSL_cleanse(t, sizeof *t);
	free(t);
}
