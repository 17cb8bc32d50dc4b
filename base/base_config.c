/* base/base_config.c - the words people type into flags and files: durations, sizes, ${ENV}, and what they probably meant. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/bytes.h"
#include "base/config.h"
#include "base/limits.h"

/* ---- durations: Prometheus' grammar, units in falling order, each at most once ---- */

static const struct {
	const char *unit;
	int64_t ms;
	bool exact_only; /* written only when nothing smaller is left: 15d, not 2w1d */
} duration_units[] = {
	{"y", INT64_C(365) * 86400000, true},
	{"w", INT64_C(7) * 86400000, true},
	{"d", 86400000, false},
	{"h", 3600000, false},
	{"m", 60000, false},
	{"s", 1000, false},
	{"ms", 1, false},
};
enum { DURATION_UNITS = sizeof duration_units / sizeof *duration_units };

static bool duration_parse(struct span s, int64_t *out)
{
	int64_t total = 0;
	size_t at = 0;
	int next_unit = 0;
	if (span_is(s, "0")) {
		*out = 0;
		return true;
	}
	while (at < s.n) {
		size_t digits = at, word;
		int64_t n;
		while (digits < s.n && isdigit((unsigned char)s.p[digits]))
			digits++;
		word = digits;
		while (word < s.n && isalpha((unsigned char)s.p[word]))
			word++;
		if (digits == at || word == digits || !span_to_i64(span_of(s.p + at, digits - at), &n))
			return false;
		struct span unit = span_of(s.p + digits, word - digits);
		int u = next_unit;
		while (u < DURATION_UNITS && !span_is(unit, duration_units[u].unit))
			u++;
		int64_t part;
		if (u == DURATION_UNITS || __builtin_mul_overflow(n, duration_units[u].ms, &part) || __builtin_add_overflow(total, part, &total))
			return false;
		next_unit = u + 1;
		at = word;
	}
	*out = total;
	return s.n > 0;
}

errc parse_duration_ms(struct span s, int64_t *out, struct err *err)
{
	if (duration_parse(s, out))
		return OK;
	return err_set(err, ERR_INVALID, "\"%.*s\" is not a duration: use numbers with y, w, d, h, m, s, ms in this order, like 90s, 2h or 1h30m",
		SPAN_ARG(s));
}

char *format_duration_ms(int64_t ms, char *buf, size_t n)
{
	ASSERT(n >= 32);
	uint64_t left = ms < 0 ? 0 - (uint64_t)ms : (uint64_t)ms;
	size_t at = 0;
	if (left == 0) {
		snprintf(buf, n, "0s");
		return buf;
	}
	if (ms < 0)
		buf[at++] = '-';
	buf[at] = 0;
	for (int i = 0; i < DURATION_UNITS; i++) {
		uint64_t unit = (uint64_t)duration_units[i].ms;
		if (left < unit || (duration_units[i].exact_only && left % unit != 0))
			continue;
		int w = snprintf(buf + at, n - at, "%" PRIu64 "%s", left / unit, duration_units[i].unit);
		ASSERT(w > 0 && (size_t)w < n - at);
		at += (size_t)w;
		left %= unit;
	}
	return buf;
}

/* ---- sizes ---- */

static bool size_unit(struct span word, uint64_t *factor)
{
	static const struct {
		const char *unit;
		uint64_t factor;
	} units[] = {
		{"", 1},
		{"b", 1},
		{"kib", KIB},
		{"mib", MIB},
		{"gib", GIB},
		{"tib", 1024 * GIB},
		{"kb", 1000},
		{"mb", 1000000},
		{"gb", 1000000000},
		{"tb", UINT64_C(1000000000000)},
	};
	char lower[4];
	if (word.n >= sizeof lower)
		return false;
	for (size_t i = 0; i < word.n; i++)
		lower[i] = (char)tolower((unsigned char)word.p[i]);
	for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
		if (span_eq(span_of(lower, word.n), span_cstr(units[i].unit))) {
			*factor = units[i].factor;
			return true;
		}
	}
	return false;
}

static bool size_parse(struct span s, uint64_t *out)
{
	size_t at = 0, unit_at;
	int64_t whole;
	uint64_t factor, fraction = 0, scale = 1, bytes;
	while (at < s.n && isdigit((unsigned char)s.p[at]))
		at++;
	if (at == 0 || !span_to_i64(span_of(s.p, at), &whole))
		return false;
	if (at < s.n && s.p[at] == '.') {
		size_t dot = at++;
		for (; at < s.n && isdigit((unsigned char)s.p[at]); at++) {
			if (at - dot > 6)
				return false;
			fraction = fraction * 10 + (uint64_t)(s.p[at] - '0');
			scale *= 10;
		}
		if (scale == 1)
			return false;
	}
	unit_at = at;
	if (unit_at < s.n && s.p[unit_at] == ' ')
		unit_at++;
	if (!size_unit(span_of(s.p + unit_at, s.n - unit_at), &factor) || (scale > 1 && factor == 1))
		return false;
	if (__builtin_mul_overflow((uint64_t)whole, factor, &bytes))
		return false;
	/* fraction < 1e6 and factor <= 2^40: the product fits. */
	return !__builtin_add_overflow(bytes, fraction * factor / scale, out);
}

errc parse_size(struct span s, uint64_t *out, struct err *err)
{
	if (size_parse(s, out))
		return OK;
	return err_set(err, ERR_INVALID, "\"%.*s\" is not a size: use bytes or a number with KiB, MiB, GiB, TiB, kB, MB, GB, TB, like 512MiB or 8GiB",
		SPAN_ARG(s));
}

char *format_size(uint64_t bytes, char *buf, size_t n)
{
	static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	if (bytes < KIB) {
		snprintf(buf, n, "%" PRIu64 " B", bytes);
		return buf;
	}
	double v = (double)bytes / (double)KIB;
	size_t u = 0;
	/* 1023.95 would be printed as 1024.0 of the unit below */
	for (; v >= 1023.95 && u + 1 < sizeof units / sizeof *units; u++)
		v /= (double)KIB;
	char num[32];
	snprintf(num, sizeof num, "%.1f", v);
	char *dot = strchr(num, '.');
	if (dot && strcmp(dot, ".0") == 0)
		*dot = 0;
	snprintf(buf, n, "%s %s", num, units[u]);
	return buf;
}

/* ---- did you mean ---- */

enum { WORD_BYTES_MAX = 64 };

/* Edits (insert, delete, replace, swap two neighbours) from a to b. */
static size_t edit_distance(const char *a, size_t na, const char *b, size_t nb)
{
	uint8_t row[3][WORD_BYTES_MAX + 1]; /* this row and the two above it */
	for (size_t j = 0; j <= nb; j++)
		row[0][j] = (uint8_t)j;
	for (size_t i = 1; i <= na; i++) {
		uint8_t *cur = row[i % 3], *up = row[(i + 2) % 3], *up2 = row[(i + 1) % 3];
		cur[0] = (uint8_t)i;
		for (size_t j = 1; j <= nb; j++) {
			unsigned best = up[j - 1] + (a[i - 1] == b[j - 1] ? 0u : 1u);
			if (up[j] + 1u < best)
				best = up[j] + 1u;
			if (cur[j - 1] + 1u < best)
				best = cur[j - 1] + 1u;
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && up2[j - 2] + 1u < best)
				best = up2[j - 2] + 1u;
			cur[j] = (uint8_t)best;
		}
	}
	return row[na % 3][nb];
}

const char *did_you_mean(const char *word, const char *const *words, size_t n)
{
	size_t len = strlen(word), best = 0;
	const char *found = NULL;
	if (len == 0 || len > WORD_BYTES_MAX)
		return NULL;
	for (size_t i = 0; i < n; i++) {
		size_t m = strlen(words[i]);
		if (m > WORD_BYTES_MAX)
			continue;
		size_t d = edit_distance(word, len, words[i], m);
		size_t longer = len > m ? len : m;
		if (d * 3 <= longer && (!found || d < best)) {
			best = d;
			found = words[i];
		}
	}
	return found;
}

/* ---- ${ENV} ---- */

static bool name_byte(char c, bool first)
{
	return c == '_' || isalpha((unsigned char)c) || (!first && isdigit((unsigned char)c));
}

/* One ${...}: `in` starts behind the brace. Appends the value; *used counts up to and with the closing brace. */
static errc expand_one(struct span in, struct buf *out, size_t *used, struct err *err)
{
	errc rc = OK;
	char name[256];
	size_t n = 0;
	const char *close = memchr(in.p, '}', in.n);
	CHECK(close, ERR_INVALID, "\"${\" without a closing brace: write $$ for a dollar sign");
	struct span inner = span_of(in.p, (size_t)(close - in.p));
	while (n < inner.n && name_byte(inner.p[n], n == 0))
		n++;
	bool has_default = inner.n >= n + 2 && inner.p[n] == ':' && inner.p[n + 1] == '-';
	CHECK(n > 0 && n < sizeof name && (has_default || n == inner.n), ERR_INVALID, "\"${%.*s}\" is neither ${NAME} nor ${NAME:-default}",
		SPAN_ARG(inner));
	memcpy(name, inner.p, n);
	name[n] = 0;

	const char *value = getenv(name);
	if (has_default && (!value || !*value))
		buf_put(out, inner.p + n + 2, inner.n - n - 2);
	else if (value)
		buf_span(out, span_cstr(value));
	else
		CHECK(false, ERR_INVALID, "environment variable %s is not set (${%s:-default} would give it a default)", name, name);
	*used = inner.n + 1;
fail:
	return rc;
}

errc config_expand_env(struct span in, struct arena *arena, struct span *out, struct err *err)
{
	errc rc = OK;
	struct buf b = {0};
	buf_init(&b, LIMIT_CONFIG_BYTES);
	for (size_t i = 0; i < in.n;) {
		char next = i + 1 < in.n ? in.p[i + 1] : 0;
		if (in.p[i] != '$' || (next != '$' && next != '{')) {
			buf_u8(&b, (uint8_t)in.p[i++]);
			continue;
		}
		i += 2;
		if (next == '$') {
			buf_u8(&b, '$');
			continue;
		}
		size_t used = 0;
		TRY(expand_one(span_of(in.p + i, in.n - i), &b, &used, err));
		i += used;
	}
	/* Only values of the environment make it longer, and none is near half the limit: what failed earlier is memory. */
	CHECK(!b.failed || b.n > LIMIT_CONFIG_BYTES / 2, ERR_NOMEM, "no memory for %zu bytes of configuration", in.n);
	CHECK(!b.failed, ERR_LIMIT, "text with its environment variables is above %" PRIu64 " bytes", LIMIT_CONFIG_BYTES);
	char *copy = arena_cstr(arena, span_of(b.p ? (const char *)b.p : "", b.n));
	CHECK(copy, ERR_NOMEM, "no memory for %zu bytes of configuration", b.n);
	*out = span_of(copy, b.n);
fail:
	buf_free(&b);
	return rc;
}
