/* block/block_matcher_parse.c - series selectors as text, the way match[] has them.
 *
 *     selector = [ name ] [ "{" [ item { "," item } [ "," ] ] "}" ]       at least one of both
 *     item     = ( label | string ) ( "=" | "!=" | "=~" | "!~" ) string
 *              | string                                                    the metric's name
 *     name     = [a-zA-Z_:][a-zA-Z0-9_:]*      label = [a-zA-Z_][a-zA-Z0-9_]*
 *     string   = "..." | '...' | `...`         in the first two Go's escapes, and no newline
 *
 * White space and comments (# to the end of the line) may stand between any two of these.
 * Source: Prometheus promql/parser/{lex.go,generated_parser.y}, util/strutil/quote.go.
 */
#include <stdarg.h>
#include <stdio.h>
#include "base/errid.h"
#include "base/limits.h"
#include "block/block_matcher.h"

#define METRIC_NAME SPAN("__name__")

struct text {
	const char *start, *p, *end;
	struct arena *arena;
	struct matcher *m;
	size_t n, cap;
	struct err *err;
};

static errc PRINTF_LIKE(2, 3) refuse(struct text *t, const char *fmt, ...)
{
	char why[256];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(why, sizeof why, fmt, ap);
	va_end(ap);
	return err_id(t->err, ERRID_BAD_MATCHER, ERR_INVALID, "selector \"%.*s\", position %zu: %s",
		SPAN_ARG(span_of(t->start, (size_t)(t->end - t->start))), (size_t)(t->p - t->start) + 1, why);
}

static void skip_blank(struct text *t)
{
	while (t->p < t->end) {
		if (*t->p == '#') {
			while (t->p < t->end && *t->p != '\n')
				t->p++;
		} else if (*t->p == ' ' || *t->p == '\t' || *t->p == '\n' || *t->p == '\r') {
			t->p++;
		} else {
			return;
		}
	}
}

static bool take(struct text *t, char c)
{
	skip_blank(t);
	if (t->p == t->end || *t->p != c)
		return false;
	t->p++;
	return true;
}

static bool is_quote(char c)
{
	return c == '"' || c == '\'' || c == '`';
}

static bool name_char(char c, bool first, bool colon)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (colon && c == ':') || (!first && c >= '0' && c <= '9');
}

static struct span identifier(struct text *t, bool colon)
{
	const char *start = t->p;
	while (t->p < t->end && name_char(*t->p, t->p == start, colon))
		t->p++;
	return span_of(start, (size_t)(t->p - start));
}

/* ---- strings ---- */

static int hex_digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static char *put_rune(char *out, uint32_t r)
{
	if (r < 0x80) {
		*out++ = (char)r;
		return out;
	}
	if (r < 0x800) {
		*out++ = (char)(0xc0 | r >> 6);
	} else {
		if (r < 0x10000) {
			*out++ = (char)(0xe0 | r >> 12);
		} else {
			*out++ = (char)(0xf0 | r >> 18);
			*out++ = (char)(0x80 | (r >> 12 & 0x3f));
		}
		*out++ = (char)(0x80 | (r >> 6 & 0x3f));
	}
	*out++ = (char)(0x80 | (r & 0x3f));
	return out;
}

/* Behind the backslash at t->p. Never longer than it was written. */
static errc escape(struct text *t, char quote, char **out)
{
	static const char from[] = "abfnrtv\\", to[] = "\a\b\f\n\r\t\v\\";
	if (t->p == t->end)
		return refuse(t, "a backslash at the end");
	char c = *t->p;
	const char *simple = c ? strchr(from, c) : NULL;
	if (simple || c == quote) {
		*(*out)++ = simple ? to[simple - from] : c;
		t->p++;
		return OK;
	}
	unsigned digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
	uint32_t r = 0;
	if (digits > 0) {
		for (unsigned i = 1; i <= digits; i++) {
			int d = t->p + i < t->end ? hex_digit(t->p[i]) : -1;
			if (d < 0)
				return refuse(t, "\\%c needs %u hexadecimal digits", c, digits);
			r = r << 4 | (uint32_t)d;
		}
		t->p += 1 + digits;
		if (c == 'x')
			*(*out)++ = (char)r;
		else if (r > 0x10ffff || (r >= 0xd800 && r < 0xe000))
			return refuse(t, "\\%c%0*x is no Unicode character", c, (int)digits, r);
		else
			*out = put_rune(*out, r);
		return OK;
	}
	if (c < '0' || c > '7')
		return refuse(t, "unknown escape sequence");
	for (unsigned i = 0; i < 3; i++) {
		if (t->p + i >= t->end || t->p[i] < '0' || t->p[i] > '7')
			return refuse(t, "an octal escape needs three digits");
		r = r << 3 | (uint32_t)(t->p[i] - '0');
	}
	if (r > 255)
		return refuse(t, "an octal escape above \\377");
	t->p += 3;
	*(*out)++ = (char)r;
	return OK;
}

static errc string(struct text *t, struct span *s)
{
	errc rc = OK;
	char quote = *t->p++;
	/* the end is at the first quote that no backslash escapes; what stands between is never shorter than its value */
	const char *end = t->p;
	while (end < t->end && *end != quote)
		end += quote != '`' && *end == '\\' && t->end - end >= 2 ? 2 : 1;
	if (end >= t->end)
		return refuse(t, "the string that begins here has no closing %c", quote);
	char *v = arena_alloc(t->arena, (size_t)(end - t->p)), *out = v;
	if (!v)
		return err_set(t->err, ERR_NOMEM, "a string of %zu bytes", (size_t)(end - t->p));
	while (t->p < end) {
		char c = *t->p;
		if (c == '\\' && quote != '`') {
			t->p++;
			TRY(escape(t, quote, &out));
			continue;
		}
		if (c == '\n' && quote != '`')
			return refuse(t, "a newline inside quotes");
		*out++ = c;
		t->p++;
	}
	t->p++;
	*s = span_of(v, (size_t)(out - v));
fail:
	return rc;
}

/* ---- matchers ---- */

static errc add(struct text *t, enum matcher_type type, struct span name, struct span value)
{
	if (t->n == LIMIT_QUERY_MATCHERS)
		return err_id(t->err, ERRID_BAD_MATCHER, ERR_LIMIT, "a selector with more than %d matchers", LIMIT_QUERY_MATCHERS);
	if (t->n == t->cap) {
		size_t cap = t->cap ? 2 * t->cap : 8;
		struct matcher *m = arena_calloc(t->arena, cap, sizeof *m);
		if (!m)
			return err_set(t->err, ERR_NOMEM, "%zu matchers", cap);
		if (t->n)
			memcpy(m, t->m, t->n * sizeof *m);
		t->m = m;
		t->cap = cap;
	}
	errc rc = matcher_init(&t->m[t->n], type, name, value, t->arena, t->err);
	if (rc == OK)
		t->n++;
	return rc;
}

static errc operator(struct text *t, enum matcher_type *type)
{
	skip_blank(t);
	bool negated = t->p < t->end && *t->p == '!';
	if (negated)
		t->p++;
	if (t->p < t->end && *t->p == '=') {
		t->p++;
		*type = negated ? MATCH_NEQ : MATCH_EQ;
		if (!negated && t->p < t->end && *t->p == '~') {
			t->p++;
			*type = MATCH_RE;
		}
		return OK;
	}
	if (negated && t->p < t->end && *t->p == '~') {
		t->p++;
		*type = MATCH_NRE;
		return OK;
	}
	return refuse(t, "one of = != =~ !~ must stand here");
}

/* One item between the braces. A quoted string alone is the metric's name. */
static errc item(struct text *t)
{
	errc rc = OK;
	struct span name, value;
	enum matcher_type type = MATCH_EQ;
	skip_blank(t);
	if (t->p < t->end && is_quote(*t->p)) {
		TRY(string(t, &name));
		skip_blank(t);
		if (t->p < t->end && (*t->p == ',' || *t->p == '}'))
			return add(t, MATCH_EQ, METRIC_NAME, name);
	} else {
		name = identifier(t, false);
		if (name.n == 0)
			return refuse(t, "a label's name must stand here");
	}
	TRY(operator(t, &type));
	skip_blank(t);
	if (t->p == t->end || !is_quote(*t->p))
		return refuse(t, "a quoted string must stand here");
	TRY(string(t, &value));
	return add(t, type, name, value);
fail:
	return rc;
}

static errc selector(struct text *t)
{
	errc rc = OK;
	skip_blank(t);
	struct span name = identifier(t, true);
	if (name.n > 0)
		TRY(add(t, MATCH_EQ, METRIC_NAME, name));
	if (take(t, '{')) {
		bool closed = take(t, '}');
		while (!closed) {
			TRY(item(t));
			bool comma = take(t, ',');
			closed = take(t, '}');
			if (!closed && !comma)
				return refuse(t, "a comma or } must stand here");
		}
	} else if (name.n == 0) {
		return refuse(t, "a metric name or { must stand here");
	}
	skip_blank(t);
	if (t->p != t->end)
		return refuse(t, "nothing may follow a selector");
	/* More than one matcher on the metric's name is fine here: only the query language refuses up{__name__="x"}. */
	bool selective = false;
	for (size_t i = 0; i < t->n; i++)
		selective = selective || !t->m[i].matches_empty;
	if (!selective)
		return refuse(t, "at least one matcher must not match the empty string");
fail:
	return rc;
}

errc matchers_parse(struct span text, struct arena *arena, struct matcher **out, size_t *n, struct err *err)
{
	struct text t = {.start = text.p, .p = text.p, .end = text.p + text.n, .arena = arena, .err = err};
	errc rc = selector(&t);
	if (rc) {
		matchers_free(t.m, t.n);
		return rc;
	}
	*out = t.m;
	*n = t.n;
	return OK;
}
