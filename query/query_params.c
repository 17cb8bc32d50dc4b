/* query/query_params.c - parameters of the query API: times, limits, match[], and which error a failed read is. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "query/query_int.h"

/* The two ends of time as Prometheus' clients write them: outside what RFC 3339 can say. */
static const char *const first_time = "-292273086-05-16T16:47:06Z", *const last_time = "292277025-08-18T07:12:54.999999999Z";

/* 2026-11-23T08:00:00.123Z or with an offset. */
static bool rfc3339(const char *s, int64_t *out)
{
	struct tm tm = {0};
	const char *p = strptime(s, "%Y-%m-%dT%H:%M:%S", &tm);
	if (!p || tm.tm_sec > 59)
		return false;
	int day = tm.tm_mday;
	int64_t ms = (int64_t)timegm(&tm) * 1000;
	if (tm.tm_mday != day)
		return false; /* 30 February */
	if (*p == '.') {
		int64_t scale = 100;
		if (p[1] < '0' || p[1] > '9')
			return false;
		for (p++; *p >= '0' && *p <= '9'; p++) {
			ms += (*p - '0') * scale;
			scale /= 10;
		}
	}
	if (strcmp(p, "Z") == 0 || strcmp(p, "z") == 0) {
		*out = ms;
		return true;
	}
	int h, m;
	char sign;
	if (strlen(p) != 6 || sscanf(p, "%c%2d:%2d", &sign, &h, &m) != 3 || (sign != '+' && sign != '-') || h > 23 || m > 59)
		return false;
	*out = ms - (sign == '+' ? 1 : -1) * (h * 60 + m) * 60000;
	return true;
}

errc param_time_ms(struct http_request *r, const char *name, int64_t fallback, int64_t *out, struct err *err)
{
	struct span v = http_param(r, name, 0);
	*out = fallback;
	if (!v.p || v.n == 0)
		return OK;
	char text[64];
	if (v.n < sizeof text) {
		memcpy(text, v.p, v.n);
		text[v.n] = 0;
		char *end;
		errno = 0;
		double seconds = strtod(text, &end);
		/* Digits only: no blanks in front, nothing hexadecimal. */
		if (*end == 0 && end != text && isfinite(seconds) && strspn(text, "0123456789+-.eE") == v.n) {
			double ms = round(seconds * 1000);
			*out = ms >= 9.2e18 ? INT64_MAX : ms <= -9.2e18 ? INT64_MIN : (int64_t)ms;
			return OK;
		}
		if (rfc3339(text, out))
			return OK;
		if (strcmp(text, first_time) == 0 || strcmp(text, last_time) == 0) {
			*out = text[0] == '-' ? INT64_MIN : INT64_MAX;
			return OK;
		}
	}
	return err_id(
		err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"%s\": cannot parse \"%.*s\" to a valid timestamp", name, SPAN_ARG(v));
}

errc param_limit(struct http_request *r, size_t *out, struct err *err)
{
	struct span v = http_param(r, "limit", 0);
	int64_t n;
	*out = 0;
	if (!v.p || v.n == 0)
		return OK;
	if (!span_to_i64(v, &n) || n < 0)
		return err_id(
			err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"limit\": \"%.*s\" is not a non-negative number", SPAN_ARG(v));
	*out = (size_t)n;
	return OK;
}

errc param_matchers(struct http_request *r, struct arena *arena, struct matcher_set **out, size_t *n, struct err *err)
{
	size_t count = 0;
	while (http_param(r, "match[]", count).p)
		count++;
	if (count > LIMIT_QUERY_MATCHERS)
		return err_id(err, ERRID_BAD_MATCHER, ERR_LIMIT, "%zu match[] parameters, at most %d are allowed", count, LIMIT_QUERY_MATCHERS);
	struct matcher_set *v = arena_calloc(arena, count + 1, sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for matchers");
	*out = v;
	*n = 0;
	for (size_t i = 0; i < count; i++) {
		errc rc = matchers_parse(http_param(r, "match[]", i), arena, &v[i].m, &v[i].n, err);
		if (rc != OK) {
			matcher_sets_free(v, *n);
			*n = 0;
			err_wrap(err, "invalid parameter \"match[]\"");
			if (err)
				err->id = errid_text(ERRID_BAD_MATCHER);
			return rc;
		}
		(*n)++;
	}
	return OK;
}

void matcher_sets_free(struct matcher_set *sets, size_t n)
{
	for (size_t i = 0; i < n; i++)
		matchers_free(sets[i].m, sets[i].n);
}

void query_error(struct http_request *r, errc rc, struct err *err)
{
	if (!err->id) {
		enum errid id = ERRID_INTERNAL;
		switch (rc) {
		case ERR_NOMEM:
		case ERR_LIMIT:
			id = ERRID_QUERY_TOO_LARGE;
			break;
		case ERR_INVALID:
			id = ERRID_BAD_REQUEST;
			break;
		case ERR_NET:
		case ERR_DENIED:
			id = ERRID_BUCKET;
			break;
		case ERR_TIMEOUT:
			id = ERRID_QUERY_TIMEOUT;
			break;
		case ERR_AGAIN:
			id = ERRID_NOT_READY;
			break;
		case ERR_CANCELED:
			id = ERRID_SHUTTING_DOWN;
			break;
		case ERR_CORRUPT:
		case ERR_UNSUPPORTED:
			id = ERRID_BLOCK_DAMAGED;
			break;
		default:
			break;
		}
		err->id = errid_text(id);
	}
	http_error_of(r, err);
}

/* ---- what every read may say ---- */

static errc param_bool(struct http_request *r, const char *name, bool *out, struct err *err)
{
	static const char *const yes[] = {"1", "t", "T", "true", "TRUE", "True"}, *const no[] = {"0", "f", "F", "false", "FALSE", "False", ""};
	struct span v = http_param(r, name, 0);
	if (!v.p)
		return OK;
	for (size_t i = 0; i < sizeof yes / sizeof yes[0]; i++)
		if (span_is(v, yes[i])) {
			*out = true;
			return OK;
		}
	for (size_t i = 0; i < sizeof no / sizeof no[0]; i++)
		if (span_is(v, no[i])) {
			*out = *no[i] ? false : *out;
			return OK;
		}
	return err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"%s\": \"%.*s\" is neither true nor false", name, SPAN_ARG(v));
}

errc question_params(struct question *qn, struct http_request *r, struct err *err)
{
	errc rc = OK;
	bool dedup = true;
	struct span scope = http_param(r, "scope", 0);
	TRY(param_bool(r, "partial_response", &qn->partial, err));
	TRY(param_bool(r, "dedup", &dedup, err));
	qn->n_replica = dedup ? qn->n_replica : 0;
	qn->alone = span_is(scope, "local");
	if (scope.n > 0 && !qn->alone)
		rc = err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "invalid parameter \"scope\": \"%.*s\" is not \"local\"", SPAN_ARG(scope));
fail:
	return rc;
}
