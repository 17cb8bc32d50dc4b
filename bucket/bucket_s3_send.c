/* bucket/bucket_s3_send.c - one S3 request with all its attempts: sign, send, judge the answer, wait, again.
 *
 * Every request here may be repeated: puts and part uploads overwrite with the same bytes, deletes of what is gone are fine, conditional puts are
 * looked at by their caller (maybe_done). Between attempts: full jitter, random(0 .. min(LIMIT_S3_BACKOFF_MAX_MS, LIMIT_S3_BACKOFF_MS << k)), and
 * at least what Retry-After asks for. The call ends after max_attempts, or when the next attempt would start later than LIMIT_S3_RETRY_MS after the first.
 *
 * Three refusals are cured once and repeated at once: credentials that changed on disk since (they expire), a clock that differs from the
 * server's (RequestTimeTooSkewed: its Date header corrects our signing time from then on), and a region that was not configured.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "base/metrics.h"
#include "bucket/bucket_s3_int.h"

#define SEND_ARENA_BYTES (1 * MIB)
#define SEND_NAP_MS 50 /* a wait looks for bucket_cancel this often */

void s3_request_init(struct s3_request *r, const char *method, const char *key)
{
	*r = (struct s3_request){.method = method, .key = key, .fd = -1, .body = SPAN(""), .max_answer_bytes = LIMIT_S3_ERROR_BYTES};
}

void s3_request_query(struct s3_request *r, const char *name, const char *value)
{
	ASSERT(r->n_query < S3_QUERY);
	r->query[r->n_query++] = (struct sigv4_pair){span_cstr(name), span_cstr(value)};
}

void s3_request_header(struct s3_request *r, const char *name, const char *value)
{
	ASSERT(r->n_headers < S3_HEADERS);
	r->headers[r->n_headers++] = (struct sigv4_pair){span_cstr(name), span_cstr(value)};
}

static void answer_free(struct s3_request *r)
{
	buf_free(&r->call.answer);
	buf_free(&r->call.answer_headers);
	r->call = (struct http_call){0};
}

void s3_request_free(struct s3_request *r)
{
	answer_free(r);
}

/* ---- one attempt ---- */

/* The request's body, from the file or from memory. */
static errc on_read(void *arg, void *buf, size_t n, size_t *got, struct err *err)
{
	struct s3_request *r = arg;
	errc rc = OK;
	uint64_t left = (r->file_bytes ? r->file_bytes : r->body.n) - r->file_pos;
	if (n > left)
		n = (size_t)left;
	if (!r->file_bytes) {
		memcpy(buf, r->body.p + r->file_pos, n);
		r->file_pos += n;
		*got = n;
		return OK;
	}
	TRY(io_pread(r->fd, buf, n, r->file_off + r->file_pos, got, &r->read_err));
	if (*got < n)
		rc = err_set(&r->read_err, ERR_CORRUPT, "the file became shorter while it was sent");
	r->file_pos += *got;
fail:
	r->read_rc = rc;
	if (rc && err)
		*err = r->read_err;
	return rc;
}

static errc on_write(void *arg, const void *p, size_t n, struct err *err)
{
	struct s3_request *r = arg;
	if (n > r->into_bytes - r->into_n)
		return err_set(err, ERR_CORRUPT, "the answer is longer than the %zu bytes asked for", r->into_bytes);
	memcpy(r->into + r->into_n, p, n);
	r->into_n += n;
	return OK;
}

/* Credentials, region and time as they are now, copied: another thread may renew them meanwhile. */
struct identity {
	struct s3_credentials cred;
	const char *region;
	int64_t now_ms;
};

static errc identity_now(struct s3 *s, struct arena *a, struct identity *out, struct err *err)
{
	pthread_mutex_lock(&s->mu);
	out->cred.access_key = arena_cstr(a, span_cstr(s->cred.access_key));
	out->cred.secret_key = arena_cstr(a, span_cstr(s->cred.secret_key));
	out->cred.session_token = arena_cstr(a, span_cstr(s->cred.session_token));
	out->cred.source = arena_cstr(a, span_cstr(s->cred.source));
	out->region = arena_cstr(a, span_cstr(s->region));
	out->now_ms = io_now_ms() + s->clock_offset_ms;
	pthread_mutex_unlock(&s->mu);
	if (!out->cred.access_key || !out->cred.secret_key || !out->cred.session_token || !out->cred.source || !out->region)
		return err_set(err, ERR_NOMEM, "a request's credentials: out of memory");
	return OK;
}

/* Puts the signed request into r->call, all of it in the attempt's arena. */
static errc request_sign(struct s3 *s, struct s3_request *r, const struct identity *id, struct arena *a, struct err *err)
{
	errc rc = OK;
	struct sigv4_pair headers[S3_HEADERS + 4];
	size_t n = r->n_headers;
	char date[17], hex[SHA256_HEX + 1];
	struct bucket_digest digest;
	struct sigv4_signed sig;

	const char *path = r->key ? arena_printf(a, "%s%s%s", s->bucket_path, s->prefix, r->key) : s->bucket_path;
	CHECK(path, ERR_NOMEM, "a request: out of memory");
	if (!r->payload_sha256) {
		TRY(bucket_hash_span(r->body, false, &digest, err));
		bucket_hex(digest.sha256, SHA256_BYTES, hex);
	} else {
		ASSERT(strlen(r->payload_sha256) == SHA256_HEX);
		memcpy(hex, r->payload_sha256, sizeof hex);
	}
	sigv4_date(id->now_ms, date);
	memcpy(headers, r->headers, n * sizeof *headers);
	headers[n++] = (struct sigv4_pair){SPAN("host"), span_cstr(s->host)};
	headers[n++] = (struct sigv4_pair){SPAN("x-amz-content-sha256"), span_cstr(hex)};
	headers[n++] = (struct sigv4_pair){SPAN("x-amz-date"), span_cstr(date)};
	if (id->cred.session_token[0])
		headers[n++] = (struct sigv4_pair){SPAN("x-amz-security-token"), span_cstr(id->cred.session_token)};

	struct sigv4_request sr = {.method = r->method,
		.path = span_cstr(path),
		.query = r->query,
		.n_query = r->n_query,
		.headers = headers,
		.n_headers = n,
		.payload_sha256 = hex,
		.now_ms = id->now_ms,
		.region = id->region,
		.service = "s3",
		.access_key = id->cred.access_key,
		.secret_key = id->cred.secret_key};
	TRY(sigv4_sign(&sr, a, &sig, err));

	const char **lines = arena_calloc(a, n + 2, sizeof *lines);
	CHECK(lines, ERR_NOMEM, "a request: out of memory");
	for (size_t i = 0; i < n; i++) {
		lines[i] = arena_printf(a, "%.*s: %.*s", SPAN_ARG(headers[i].name), SPAN_ARG(headers[i].value));
		CHECK(lines[i], ERR_NOMEM, "a request: out of memory");
	}
	lines[n] = arena_printf(a, "authorization: %s", sig.authorization);
	const char *url = arena_printf(a, "%s%s", s->origin, sig.target);
	CHECK(lines[n] && url, ERR_NOMEM, "a request: out of memory");

	r->call = (struct http_call){.method = r->method,
		.url = url,
		.headers = lines,
		.n_headers = n + 1,
		.body = SPAN(""),
		.arg = r,
		.max_answer_bytes = r->max_answer_bytes};
	/* Memory goes through the callback as well: a body that can't be rewound is not sent a second time behind our back when a kept
	 * connection dies. Otherwise a conditional put could lose to itself, and maybe_done would not know. */
	r->call.body_bytes = r->file_bytes ? r->file_bytes : r->body.n;
	if (r->call.body_bytes)
		r->call.read = on_read;
	if (r->into)
		r->call.write = on_write;
fail:
	return rc;
}

static void count(const struct s3_request *r, errc rc)
{
	char code[16];
	if (rc)
		snprintf(code, sizeof code, "%s", errc_name(rc));
	else
		snprintf(code, sizeof code, "%d", r->call.status >= 100 && r->call.status <= 599 ? r->call.status : 0);
	metric_add(metric_counter_with2("varve_bucket_s3_requests_total", "HTTP requests to the object store, each attempt one, by status or error.",
			   "method", r->method, "code", code),
		1);
}

/* ---- cures ---- */

/* Reads the credentials' sources again; true when they are others than those that were refused. */
static bool cure_credentials(struct s3 *s, const struct identity *used)
{
	struct arena fresh, old;
	struct s3_credentials cred;
	struct err err = {0};
	bool changed = false;
	arena_init(&fresh, 2 * LIMIT_CONFIG_BYTES);
	if (s3_credentials_find(&s->cfg, &fresh, &cred, &err)) {
		log_warn("credentials can't be read again", LERR(&err));
		arena_free(&fresh);
		return false;
	}
	pthread_mutex_lock(&s->mu);
	/* Compared with what was used, not with what is stored: another thread may have renewed it already. */
	changed = strcmp(cred.access_key, used->cred.access_key) != 0 || strcmp(cred.secret_key, used->cred.secret_key) != 0 ||
		  strcmp(cred.session_token, used->cred.session_token) != 0;
	old = fresh;
	if (changed) {
		old = s->cred_arena;
		s->cred_arena = fresh;
		s->cred = cred;
	}
	pthread_mutex_unlock(&s->mu);
	if (changed)
		log_info("credentials renewed", LSTR("source", cred.source), LSTR("bucket", s->base.describe));
	arena_free(&old);
	return changed;
}

static bool cure_clock(struct s3 *s, const struct s3_request *r)
{
	int64_t server_ms;
	if (!s3_http_date_parse(http_call_header(&r->call, "date"), &server_ms))
		return false;
	int64_t skew_ms = server_ms - io_now_ms();
	pthread_mutex_lock(&s->mu);
	s->clock_offset_ms = skew_ms;
	pthread_mutex_unlock(&s->mu);
	metric_set(metric_gauge("varve_bucket_clock_skew_seconds",
			   "The object store's clock minus ours, as last corrected for signing; 0 = never needed."),
		(double)skew_ms / 1e3);
	log_warn("the object store's clock differs from ours: requests are signed with its time from now on; check the clock of this machine",
		LSTR("bucket", s->base.describe), LI64("store_minus_ours_ms", skew_ms));
	return true;
}

static bool cure_region(struct s3 *s, const struct identity *used, const char *region)
{
	bool changed = false;
	if (s->cfg.region[0] || !region[0] || strcmp(region, used->region) == 0)
		return false;
	pthread_mutex_lock(&s->mu);
	const char *copy = arena_cstr(&s->arena, span_cstr(region));
	if (copy) {
		s->region = copy;
		changed = true;
	}
	pthread_mutex_unlock(&s->mu);
	if (changed)
		log_info("the bucket is in another region: signing for it from now on; set region to save a request",
			LSTR("bucket", s->base.describe), LSTR("region", region));
	return changed;
}

/* ---- judging ---- */

enum next { NEXT_FINAL, NEXT_WAIT, NEXT_NOW };

static void error_words(struct s3 *s, struct s3_request *r, const struct identity *id, errc rc, const char *region, struct err *err)
{
	const struct s3_error *e = &r->error;
	char tail[256] = "";
	if (strcmp(e->code, "NoSuchBucket") == 0)
		snprintf(tail, sizeof tail, "; create the bucket \"%s\" or correct its name", s->cfg.bucket);
	else if (rc == ERR_INVALID && region[0] && strcmp(region, id->region) != 0)
		snprintf(tail, sizeof tail, "; the bucket is in region %s, the configuration says %s", region, id->region);
	else if (rc == ERR_DENIED)
		snprintf(tail, sizeof tail, "; credentials come from %.120s", id->cred.source);
	else if (r->call.status >= 300 && r->call.status < 400)
		snprintf(tail, sizeof tail, "; redirects are not followed: give the right endpoint or bucket_lookup_type");
	errc ignored = err_set(err, rc, "%d %s%s%s%s%s%s%s", r->call.status, e->code[0] ? e->code : "without an S3 error", e->message[0] ? ": " : "",
		e->message, tail, e->request_id[0] ? " (request id " : "", e->request_id, e->request_id[0] ? ")" : "");
	(void)ignored;
}

/* An answer that is not 2xx. */
static errc judge(struct s3 *s, struct s3_request *r, const struct identity *id, enum next *next, struct err *err)
{
	bool again;
	s3_error_parse(span_of(r->call.answer.p ? (char *)r->call.answer.p : "", r->call.answer.n), &r->error);
	bool head = strcmp(r->method, "HEAD") == 0;
	errc rc = s3_error_class(r->call.status, r->error.code, head, &again);
	*next = again ? NEXT_WAIT : NEXT_FINAL;
	if (r->call.status >= 500)
		r->maybe_done = true;

	char region[64] = "";
	struct span named = http_call_header(&r->call, "x-amz-bucket-region");
	if (r->error.region[0])
		snprintf(region, sizeof region, "%s", r->error.region);
	else if (named.p && named.n < sizeof region)
		snprintf(region, sizeof region, "%.*s", SPAN_ARG(named));
	if (strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(region))
		region[0] = 0;

	error_words(s, r, id, rc, region, err);
	if (rc == ERR_DENIED && (strcmp(r->error.code, "RequestTimeTooSkewed") == 0)) {
		if (!r->skewed && cure_clock(s, r))
			*next = NEXT_NOW;
		r->skewed = true;
	} else if ((rc == ERR_DENIED || (head && r->call.status == 400)) && !r->renewed) {
		if (cure_credentials(s, id))
			*next = NEXT_NOW;
		r->renewed = true;
	} else if (rc == ERR_INVALID && !r->moved) {
		if (cure_region(s, id, region))
			*next = NEXT_NOW;
		r->moved = true;
	}
	return rc;
}

/* Milliseconds that the server asks us to wait; 0 when it does not. */
static int64_t retry_after_ms(const struct s3_request *r)
{
	struct span v = http_call_header(&r->call, "retry-after");
	int64_t n;
	if (!v.p)
		return 0;
	if (span_to_i64(v, &n))
		return n < 0 ? 0 : n > 3600 ? 3600 * 1000 : n * 1000;
	if (s3_http_date_parse(v, &n) && n > io_now_ms())
		return n - io_now_ms();
	return 0;
}

static errc attempt(struct s3 *s, struct s3_request *r, enum next *next, int64_t *after_ms, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct identity id;

	*next = NEXT_FINAL;
	*after_ms = 0;
	arena_init(&a, SEND_ARENA_BYTES + r->max_answer_bytes);
	answer_free(r);
	r->error = (struct s3_error){0};
	r->into_n = 0;
	r->file_pos = 0;
	r->read_rc = OK;
	r->final = false;
	TRY(bucket_alive(&s->base, err));
	TRY(identity_now(s, &a, &id, err));
	TRY(request_sign(s, r, &id, &a, err));

	int64_t began = io_mono_ns();
	rc = http_call(s->http, &r->call, err);
	count(r, rc);
	if (log_enabled(s->cfg.trace ? LOG_INFO : LOG_DEBUG))
		LOG_AT(s->cfg.trace ? LOG_INFO : LOG_DEBUG, "object store request", LSTR("method", r->method), LSTR("url", r->call.url),
			LI64("status", rc ? 0 : r->call.status), LSTR("result", rc ? errc_name(rc) : "answer"),
			LF64("ms", (double)(io_mono_ns() - began) / 1e6));
	if (rc) {
		if (r->read_rc) { /* our own file's trouble, whatever the client made of it */
			rc = r->read_rc;
			if (err)
				*err = r->read_err;
		} else if (rc == ERR_NET || rc == ERR_TIMEOUT) {
			*next = NEXT_WAIT;
			r->maybe_done = true;
			rc = err->code = ERR_NET; /* callers need not tell a silent server from one that is gone */
		}
		goto fail;
	}
	if (r->call.status < 200 || r->call.status > 299) {
		*after_ms = retry_after_ms(r);
		rc = judge(s, r, &id, next, err);
		goto fail;
	}
	if (r->accept) {
		rc = r->accept(r->arg, r, err);
		if ((rc == ERR_NET || rc == ERR_CORRUPT) && !r->final) {
			*next = NEXT_WAIT;
			r->maybe_done = true;
		}
	}
fail:
	/* The spans of the request went with the arena; the answer stays. */
	r->call.url = NULL;
	r->call.headers = NULL;
	arena_free(&a);
	return rc;
}

/* Sleeps in naps; ERR_CANCELED when the bucket is being closed. */
static errc wait_ms(struct s3 *s, int64_t ms, struct err *err)
{
	errc rc = OK;
	while (ms > 0) {
		int64_t nap = ms < SEND_NAP_MS ? ms : SEND_NAP_MS;
		TRY(bucket_alive(&s->base, err));
		io_sleep_ms(nap);
		ms -= nap;
	}
	TRY(bucket_alive(&s->base, err));
fail:
	return rc;
}

errc s3_send(struct s3 *s, struct s3_request *r, struct err *err)
{
	errc rc;
	struct err local = {0};
	if (!err)
		err = &local;
	uint64_t max = r->max_attempts && r->max_attempts < s->cfg.max_attempts ? r->max_attempts : s->cfg.max_attempts, waits = 0;
	int64_t last_start_ms = io_mono_ms() + LIMIT_S3_RETRY_MS;
	for (;;) {
		enum next next;
		int64_t after_ms;
		r->attempts++;
		rc = attempt(s, r, &next, &after_ms, err);
		if (rc == OK || next == NEXT_FINAL)
			break;
		if (next == NEXT_NOW)
			continue;
		if (++waits >= max)
			break;
		int64_t cap = LIMIT_S3_BACKOFF_MS << (waits - 1 < 10 ? waits - 1 : 10);
		if (cap > LIMIT_S3_BACKOFF_MAX_MS)
			cap = LIMIT_S3_BACKOFF_MAX_MS;
		int64_t ms = (int64_t)(io_random_u64() % (uint64_t)(cap + 1));
		if (ms < after_ms)
			ms = after_ms;
		if (io_mono_ms() + ms > last_start_ms)
			break;
		metric_add(metric_counter("varve_bucket_s3_retries_total", "Requests to the object store that were sent again after trouble."), 1);
		log_debug(
			"object store request is repeated", LSTR("method", r->method), LU64("attempt", r->attempts), LI64("wait_ms", ms), LERR(err));
		rc = wait_ms(s, ms, err);
		if (rc)
			break;
	}
	if (rc == ERR_CANCELED)
		return rc;
	if (rc && r->attempts > 1)
		err_wrap(err, "after %" PRIu64 " attempts", r->attempts);
	if (rc)
		err_wrap(err, "%s s3://%s/%s%s at %s", r->method, s->cfg.bucket, s->prefix, r->key ? r->key : "", s->origin);
	return rc;
}
