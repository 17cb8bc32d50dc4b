/* net/net_auth.c - basic auth: bcrypt on a thread of its own, and verdicts remembered.
 *
 * One bcrypt takes 50 to 250 ms on purpose. It must not run per request, and not on a network thread: there anyone could stop the server with wrong
 * passwords. Verdicts are remembered in two caches, so that a flood of wrong passwords pushes out no right one.
 *
 * The key of a verdict is HMAC-SHA-256, under a secret of this process, of the lengths and bytes of the user's hash, name and password. Lengths make
 * it unambiguous (concatenation without them let one user's verdict stand for another's: CVE-2022-46146), the hash in it makes old verdicts
 * worthless when a password changes, and no password stays in memory. A name that is not there costs a bcrypt too, against a dummy.
 */
#include <crypt.h>
#include <gnutls/crypto.h>
#include <stdlib.h>
#include "net/net_int.h"

enum { ALLOWED_SETS = 128, DENIED_SETS = 32, WAYS = 8, QUEUE_MAX = 64, KEY_BYTES = 32 };

/* Keys are uniform, so their first bytes choose a set; within it the oldest goes. */
struct verdicts {
	size_t n_sets;
	struct verdict_set {
		uint8_t key[WAYS][KEY_BYTES];
		uint8_t used, hand;
	} sets[ALLOWED_SETS];
};

struct login {
	struct login *next;
	struct net_web *web;
	uint8_t key[KEY_BYTES];
	const char *setting;
	bool known;
	void (*done)(void *arg, bool allowed);
	void *arg;
	char password[];
};

struct net_auth {
	pthread_mutex_t mu;
	pthread_cond_t filled;
	pthread_t thread;
	uint8_t secret[KEY_BYTES];
	struct verdicts allowed, denied; /* under mu */
	struct login *first, **last;
	size_t n_queued;
	bool closing;
};

static const struct net_user *user_find(const struct net_web *w, const char *name)
{
	size_t lo = 0, hi = w->n_users;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int c = strcmp(name, w->users[mid].name);
		if (c == 0)
			return &w->users[mid];
		if (c < 0)
			hi = mid;
		else
			lo = mid + 1;
	}
	return NULL;
}

static bool verdict_key(const struct net_auth *a, const char *hash, const char *user, const char *password, uint8_t key[KEY_BYTES])
{
	const char *parts[] = {hash, user, password};
	uint8_t lengths[24];
	gnutls_hmac_hd_t h;
	if (gnutls_hmac_init(&h, GNUTLS_MAC_SHA256, a->secret, sizeof a->secret))
		return false;
	for (int i = 0; i < 3; i++)
		put_le64(lengths + 8 * i, strlen(parts[i]));
	bool ok = gnutls_hmac(h, lengths, sizeof lengths) == 0;
	for (int i = 0; i < 3; i++)
		ok = ok && gnutls_hmac(h, parts[i], strlen(parts[i])) == 0;
	gnutls_hmac_deinit(h, key);
	return ok;
}

static struct verdict_set *verdict_set(struct verdicts *v, const uint8_t key[KEY_BYTES])
{
	return &v->sets[get_le32(key) % v->n_sets];
}

static bool verdict_find(struct verdicts *v, const uint8_t key[KEY_BYTES])
{
	const struct verdict_set *set = verdict_set(v, key);
	for (size_t i = 0; i < set->used; i++) {
		if (memcmp(set->key[i], key, KEY_BYTES) == 0)
			return true;
	}
	return false;
}

static void verdict_add(struct verdicts *v, const uint8_t key[KEY_BYTES])
{
	struct verdict_set *set = verdict_set(v, key);
	if (verdict_find(v, key))
		return;
	memcpy(set->key[set->hand], key, KEY_BYTES);
	set->hand = (uint8_t)((set->hand + 1) % WAYS);
	if (set->used < WAYS)
		set->used++;
}

enum net_verdict net_auth_lookup(struct net_auth *a, const struct net_web *w, const char *user, const char *password)
{
	const struct net_user *u = user_find(w, user);
	uint8_t key[KEY_BYTES];
	if (!verdict_key(a, u ? u->hash : w->dummy_setting, user, password, key))
		return NET_DENIED;
	enum net_verdict v = NET_PENDING;
	pthread_mutex_lock(&a->mu);
	if (u && verdict_find(&a->allowed, key))
		v = NET_ALLOWED;
	else if (verdict_find(&a->denied, key))
		v = NET_DENIED;
	pthread_mutex_unlock(&a->mu);
	return v;
}

bool net_auth_queue(struct net_auth *a, struct net_web *w, const char *user, const char *password, void (*done)(void *arg, bool allowed), void *arg)
{
	size_t n = strlen(password) + 1;
	struct login *l = calloc(1, sizeof *l + n);
	if (!l)
		return false;
	const struct net_user *u = user_find(w, user);
	memcpy(l->password, password, n);
	l->known = u != NULL;
	l->setting = u ? u->hash : w->dummy_setting;
	l->done = done;
	l->arg = arg;
	bool ok = verdict_key(a, l->setting, user, password, l->key);
	pthread_mutex_lock(&a->mu);
	ok = ok && !a->closing && a->n_queued < QUEUE_MAX;
	if (ok) {
		l->web = net_web_hold(w);
		*a->last = l;
		a->last = &l->next;
		a->n_queued++;
		pthread_cond_signal(&a->filled);
	}
	pthread_mutex_unlock(&a->mu);
	if (!ok) {
		explicit_bzero(l->password, n);
		free(l);
	}
	return ok;
}

static bool equal_constant_time(const char *a, const char *b)
{
	size_t n = strlen(a), m = strlen(b);
	unsigned diff = n != m;
	for (size_t i = 0; i < n && i < m; i++)
		diff |= (unsigned)(a[i] ^ b[i]);
	return diff == 0;
}

/* `data` is 32 KiB: the auth thread keeps one. */
static bool bcrypt_matches(const struct login *l, struct crypt_data *data)
{
	memset(data, 0, sizeof *data);
	const char *made = crypt_r(l->password, l->setting, data);
	bool same = made && made[0] == '$' && equal_constant_time(made, l->setting);
	return same && l->known;
}

static void login_run(struct net_auth *a, struct login *l, struct crypt_data *data)
{
	pthread_mutex_lock(&a->mu);
	/* the same login often waits several times: a client's first requests come together */
	bool allowed = l->known && verdict_find(&a->allowed, l->key), denied = !allowed && verdict_find(&a->denied, l->key);
	pthread_mutex_unlock(&a->mu);
	if (!allowed && !denied) {
		allowed = bcrypt_matches(l, data);
		pthread_mutex_lock(&a->mu);
		verdict_add(allowed ? &a->allowed : &a->denied, l->key);
		pthread_mutex_unlock(&a->mu);
	}
	l->done(l->arg, allowed);
	explicit_bzero(l->password, strlen(l->password));
	net_web_drop(l->web);
	free(l);
}

static void *auth_main(void *arg)
{
	struct net_auth *a = arg;
	struct crypt_data *data = NULL;
	while (!data && !(data = malloc(sizeof *data)))
		io_sleep_ms(100);
	pthread_mutex_lock(&a->mu);
	for (;;) {
		while (!a->first && !a->closing)
			pthread_cond_wait(&a->filled, &a->mu);
		struct login *l = a->first;
		if (!l)
			break;
		a->first = l->next;
		if (!a->first)
			a->last = &a->first;
		a->n_queued--;
		pthread_mutex_unlock(&a->mu);
		login_run(a, l, data);
		pthread_mutex_lock(&a->mu);
	}
	pthread_mutex_unlock(&a->mu);
	explicit_bzero(data, sizeof *data);
	free(data);
	return NULL;
}

errc net_auth_open(struct net_auth **out, struct err *err)
{
	struct net_auth *a = calloc(1, sizeof *a);
	if (!a)
		return err_set(err, ERR_NOMEM, "no memory for basic auth");
	io_random(a->secret, sizeof a->secret);
	a->allowed.n_sets = ALLOWED_SETS;
	a->denied.n_sets = DENIED_SETS;
	a->last = &a->first;
	pthread_mutex_init(&a->mu, NULL);
	pthread_cond_init(&a->filled, NULL);
	int e = pthread_create(&a->thread, NULL, auth_main, a);
	if (e) {
		pthread_cond_destroy(&a->filled);
		pthread_mutex_destroy(&a->mu);
		free(a);
		return err_set(err, ERR_AGAIN, "cannot start a thread: %s", strerror(e));
	}
	*out = a;
	return OK;
}

void net_auth_close(struct net_auth *a)
{
	if (!a)
		return;
	pthread_mutex_lock(&a->mu);
	a->closing = true;
	pthread_cond_signal(&a->filled);
	pthread_mutex_unlock(&a->mu);
	pthread_join(a->thread, NULL);
	pthread_cond_destroy(&a->filled);
	pthread_mutex_destroy(&a->mu);
	explicit_bzero(a, sizeof *a);
	free(a);
}
