/* bucket/bucket_credentials.c - whose name requests are signed in.
 *
 * In this order, the first that is complete wins: access_key and secret_key of the configuration; AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
 * and AWS_SESSION_TOKEN; the profile AWS_PROFILE (else "default") of AWS_SHARED_CREDENTIALS_FILE (else ~/.aws/credentials). Half a pair is an
 * error, not a reason to look further: a typing mistake must not sign as someone else. Instance roles are not asked.
 *
 * The file (others write it, often a helper that renews it):
 *
 *     [default]
 *     aws_access_key_id = AKIA...
 *     aws_secret_access_key = ...
 *     aws_session_token = ...
 */
#include <stdlib.h>
#include "base/io.h"
#include "bucket/bucket_int.h"

static struct span trim(struct span s)
{
	while (s.n && (s.p[0] == ' ' || s.p[0] == '\t'))
		s = (struct span){s.p + 1, s.n - 1};
	while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t' || s.p[s.n - 1] == '\r'))
		s.n--;
	return s;
}

/* Reads the profile's three values; p == NULL of one: not there. *found: the profile is. */
static void profile_read(struct span text, const char *profile, struct span value[3], bool *found)
{
	static const char *const keys[3] = {"aws_access_key_id", "aws_secret_access_key", "aws_session_token"};
	bool inside = false;
	while (text.n) {
		const char *nl = memchr(text.p, '\n', text.n);
		size_t n = nl ? (size_t)(nl - text.p) : text.n;
		struct span line = trim(span_of(text.p, n));
		size_t skip = nl ? n + 1 : n;
		text = span_of(text.p + skip, text.n - skip);
		if (line.n == 0 || line.p[0] == '#' || line.p[0] == ';')
			continue;
		if (line.p[0] == '[') {
			const char *close = memchr(line.p, ']', line.n);
			inside = close && span_is(trim(span_of(line.p + 1, (size_t)(close - line.p) - 1)), profile);
			*found |= inside;
			continue;
		}
		const char *eq = memchr(line.p, '=', line.n);
		if (!inside || !eq)
			continue;
		struct span key = trim(span_of(line.p, (size_t)(eq - line.p)));
		struct span val = trim(span_of(eq + 1, line.n - (size_t)(eq - line.p) - 1));
		for (size_t i = 0; i < 3; i++) {
			if (span_is(key, keys[i]))
				value[i] = val;
		}
	}
}

static errc take(struct arena *arena, struct span access, struct span secret, struct span token, const char *source, struct s3_credentials *out,
	struct err *err)
{
	struct span v[3] = {access, secret, token};
	for (size_t i = 0; i < 3; i++) {
		for (size_t k = 0; k < v[i].n; k++) {
			if ((unsigned char)v[i].p[k] < 0x21 || (unsigned char)v[i].p[k] > 0x7e)
				return err_set(
					err, ERR_DENIED, "credentials from %s: a key or token has a space or a character that is not ASCII", source);
		}
	}
	*out = (struct s3_credentials){arena_cstr(arena, access), arena_cstr(arena, secret), arena_cstr(arena, token), source};
	if (!source || !out->access_key || !out->secret_key || !out->session_token)
		return err_set(err, ERR_NOMEM, "credentials: out of memory");
	return OK;
}

static struct span env(const char *name)
{
	const char *v = getenv(name);
	return span_cstr(v ? v : "");
}

errc s3_credentials_find(const struct s3_config *cfg, struct arena *arena, struct s3_credentials *out, struct err *err)
{
	errc rc = OK;
	if (cfg->access_key[0])
		return take(
			arena, span_cstr(cfg->access_key), span_cstr(cfg->secret_key), span_cstr(cfg->session_token), "the configuration", out, err);

	struct span access = env("AWS_ACCESS_KEY_ID"), secret = env("AWS_SECRET_ACCESS_KEY");
	CHECK((access.n == 0) == (secret.n == 0), ERR_DENIED, "credentials: of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set");
	if (access.n)
		return take(arena, access, secret, env("AWS_SESSION_TOKEN"), "the environment", out, err);

	struct span profile = env("AWS_PROFILE"), file = env("AWS_SHARED_CREDENTIALS_FILE"), home = env("HOME");
	if (profile.n == 0)
		profile = SPAN("default");
	const char *path = file.n ? file.p : arena_printf(arena, "%s/.aws/credentials", home.p);
	CHECK(path, ERR_NOMEM, "credentials: out of memory");
	struct io_stat st;
	TRY(io_stat(path, &st, err));
	CHECK(st.exists, ERR_DENIED,
		"no credentials: give access_key and secret_key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in %s (instance roles "
		"are "
		"not supported)",
		path);
	struct span text, value[3] = {{0}, {0}, {0}};
	bool found = false;
	TRY(io_read_file(path, LIMIT_CONFIG_BYTES, arena, &text, err));
	profile_read(text, profile.p, value, &found);
	CHECK(found, ERR_DENIED, "no credentials: %s has no profile [%s]", path, profile.p);
	CHECK(value[0].n && value[1].n, ERR_DENIED, "no credentials: profile [%s] of %s lacks aws_access_key_id or aws_secret_access_key", profile.p,
		path);
	TRY(take(arena, value[0], value[1], value[2], arena_printf(arena, "%s [%s]", path, profile.p), out, err));
fail:
	return rc;
}
