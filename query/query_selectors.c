/* query/query_selectors.c - the series selectors that stand in an expression of the query language.
 *
 * Exemplars are asked for by the expression that a panel shows. What is wanted of it are its selectors, so this is no parser of the language: it
 * walks the tokens and knows at each of them whether an operand or an operator must follow, which is what tells a metric's name from a function, an
 * aggregation, a keyword or a label list. Every valid expression gives its selectors; some that the language would refuse (types, numbers of arguments) do so too.
 *
 *     operand    = number | string | duration | "(" ... ")" | name "(" ... ")" | aggregation by|without "(" labels ")" "(" ... ")" | selector
 *                | ("+" | "-") operand
 *     behind it  = "[" ... "]" | offset duration | "@" (time | start() | end()) | by|without "(" labels ")" | operator [bool] [on|ignoring (labels)
 *                  [group_left|group_right [(labels)]]] operand | "," operand | ")"
 *
 * Source: Prometheus promql/parser/{lex.go,generated_parser.y}.
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include "query/query_int.h"

enum { DEPTH_MAX = 512 };

struct scan {
	const char *start, *p, *end;
	struct arena *arena;
	struct matcher_set *sets;
	size_t n, cap;
	uint32_t depth;
	struct err *err;
};

static errc PRINTF_LIKE(2, 3) refuse(struct scan *s, const char *fmt, ...)
{
	char why[200];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(why, sizeof why, fmt, ap);
	va_end(ap);
	return err_id(s->err, ERRID_BAD_PARAMETER, ERR_INVALID,
		"invalid parameter \"query\": position %zu: %s (a series selector, or an expression of the query language with some, is taken)",
		(size_t)(s->p - s->start) + 1, why);
}

static void blank(struct scan *s)
{
	while (s->p < s->end) {
		if (*s->p == '#') {
			while (s->p < s->end && *s->p != '\n')
				s->p++;
		} else if (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r') {
			s->p++;
		} else {
			return;
		}
	}
}

/* The next character that is not blank, 0 at the end. */
static char peek(struct scan *s)
{
	blank(s);
	return s->p < s->end ? *s->p : 0;
}

static bool is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == ':';
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static struct span word(struct scan *s)
{
	const char *from = s->p;
	while (s->p < s->end && (is_letter(*s->p) || is_digit(*s->p)))
		s->p++;
	return span_of(from, (size_t)(s->p - from));
}

/* Keywords and functions' names are the same in capitals. */
static bool is_word(struct span w, const char *lower)
{
	size_t i = 0;
	for (; i < w.n && lower[i]; i++)
		if ((w.p[i] >= 'A' && w.p[i] <= 'Z' ? w.p[i] + 32 : w.p[i]) != lower[i])
			return false;
	return i == w.n && !lower[i];
}

static bool is_any(struct span w, const char *const *words)
{
	for (; *words; words++)
		if (is_word(w, *words))
			return true;
	return false;
}

static const char *const aggregations[] = {"sum", "avg", "count", "min", "max", "group", "stddev", "stdvar", "topk", "bottomk", "count_values",
	"quantile", "limitk", "limit_ratio", NULL};
static const char *const groupings[] = {"by", "without", NULL};
static const char *const matchings[] = {"on", "ignoring", "group_left", "group_right", NULL};
static const char *const set_operators[] = {"and", "or", "unless", "atan2", NULL};

/* Behind a string that begins here. */
static errc string_skip(struct scan *s)
{
	char quote = *s->p;
	const char *from = s->p++;
	for (; s->p < s->end && *s->p != quote; s->p++) {
		if (quote != '`' && *s->p == '\n')
			break;
		if (quote != '`' && *s->p == '\\' && s->p + 1 < s->end)
			s->p++;
	}
	if (s->p == s->end || *s->p != quote) {
		s->p = from;
		return refuse(s, "a string that does not end");
	}
	s->p++;
	return OK;
}

/* Behind the bracket that closes the one that stands here; strings and comments may hold others. */
static errc bracket_skip(struct scan *s, char close)
{
	errc rc = OK;
	const char *from = s->p;
	char open = *s->p;
	uint32_t depth = 0;
	do {
		char c = peek(s);
		if (c == 0) {
			s->p = from;
			return refuse(s, "no %c closes this", close);
		}
		if (c == '"' || c == '\'' || c == '`') {
			TRY(string_skip(s));
			continue;
		}
		depth += c == open;
		depth -= c == close;
		s->p++;
	} while (depth > 0);
fail:
	return rc;
}

/* From `from` to here. */
static errc selector_add(struct scan *s, const char *from)
{
	if (s->n == LIMIT_QUERY_MATCHERS)
		return refuse(s, "more than %d selectors", LIMIT_QUERY_MATCHERS);
	if (s->n == s->cap) {
		size_t cap = s->cap * 2 + 8;
		struct matcher_set *v = arena_alloc(s->arena, cap * sizeof *v);
		if (!v)
			return err_set(s->err, ERR_NOMEM, "no memory for %zu selectors", cap);
		if (s->n > 0)
			memcpy(v, s->sets, s->n * sizeof *v);
		s->sets = v;
		s->cap = cap;
	}
	struct matcher_set *set = &s->sets[s->n];
	errc rc = matchers_parse(span_of(from, (size_t)(s->p - from)), s->arena, &set->m, &set->n, s->err);
	if (rc == OK)
		s->n++;
	else
		err_wrap(s->err, "invalid parameter \"query\"");
	return rc;
}

/* 1, 1.5e-3, 0x1f, 1_000, 5m, 1h30m: what begins with a digit or a point. */
static void number_skip(struct scan *s)
{
	bool hex = s->end - s->p > 1 && s->p[0] == '0' && (s->p[1] == 'x' || s->p[1] == 'X');
	while (s->p < s->end) {
		char c = *s->p;
		if (!hex && (c == 'e' || c == 'E') && s->end - s->p > 1 && (s->p[1] == '+' || s->p[1] == '-'))
			s->p++;
		else if (!is_digit(c) && !is_letter(c) && c != '.')
			return;
		else if (c == ':')
			return;
		s->p++;
	}
}

/* A number or duration with or without a sign, or an expression of them in parentheses. */
static errc amount_skip(struct scan *s)
{
	while (peek(s) == '-' || peek(s) == '+')
		s->p++;
	char c = peek(s);
	if (c == '(')
		return bracket_skip(s, ')');
	if (!is_digit(c) && c != '.' && !is_letter(c))
		return refuse(s, "a time or duration must stand here");
	number_skip(s);
	return OK;
}

/* ---- operands ---- */

/* A word where an operand must stand. *whole: an operand ends here; else its argument list has begun. */
static errc operand_word(struct scan *s, bool *whole)
{
	errc rc = OK;
	const char *from = s->p;
	struct span w = word(s);
	const char *behind = s->p;
	char c = peek(s);
	*whole = true;
	if (is_any(w, aggregations) && is_letter(c)) {
		const char *at = s->p;
		if (is_any(word(s), groupings) && peek(s) == '(') {
			TRY(bracket_skip(s, ')'));
			if (peek(s) != '(')
				return refuse(s, "an aggregation's argument in parentheses must stand here");
			c = '(';
		} else {
			s->p = at;
		}
	}
	if (c == '(') {
		s->p++;
		*whole = false;
		if (++s->depth > DEPTH_MAX)
			return refuse(s, "more than %d parentheses in one another", DEPTH_MAX);
		return OK;
	}
	if (c == '{') {
		TRY(bracket_skip(s, '}'));
		return selector_add(s, from);
	}
	s->p = behind;
	if (is_word(w, "inf") || is_word(w, "nan"))
		return OK;
	return selector_add(s, from);
fail:
	return rc;
}

/* bool, on (...), ignoring (...), group_left (...), group_right (...) behind an operator. */
static errc modifiers_skip(struct scan *s)
{
	errc rc = OK;
	for (;;) {
		char c = peek(s);
		const char *from = s->p;
		if (!is_letter(c))
			return OK;
		struct span w = word(s);
		bool list = is_any(w, matchings);
		if (!list && !is_word(w, "bool")) {
			s->p = from;
			return OK;
		}
		/* A list is optional for group_left and group_right; what stands in parentheses behind them is one. */
		if (list && peek(s) == '(')
			TRY(bracket_skip(s, ')'));
	}
fail:
	return rc;
}

/* One operand up to where an operator may follow, or the opening of one. *whole as above. */
static errc operand(struct scan *s, bool *whole)
{
	errc rc = OK;
	*whole = true;
	char c = peek(s);
	while (c == '+' || c == '-') {
		s->p++;
		c = peek(s);
	}
	if (c == 0)
		return refuse(s, s->p == s->start ? "there is nothing" : "something must follow");
	if (c == '(') {
		s->p++;
		*whole = false;
		if (++s->depth > DEPTH_MAX)
			return refuse(s, "more than %d parentheses in one another", DEPTH_MAX);
	} else if (c == '"' || c == '\'' || c == '`') {
		TRY(string_skip(s));
	} else if (c == '{') {
		const char *from = s->p;
		TRY(bracket_skip(s, '}'));
		TRY(selector_add(s, from));
	} else if (is_digit(c) || c == '.') {
		number_skip(s);
	} else if (is_letter(c)) {
		TRY(operand_word(s, whole));
	} else {
		return refuse(s, "'%c' stands where an operand must", isprint((unsigned char)c) ? c : '?');
	}
fail:
	return rc;
}

/* ---- what follows an operand ---- */

static errc at_skip(struct scan *s)
{
	errc rc = OK;
	if (!is_letter(peek(s)))
		return amount_skip(s);
	struct span w = word(s);
	if ((is_word(w, "start") || is_word(w, "end")) && peek(s) == '(')
		TRY(bracket_skip(s, ')'));
	else if (!is_word(w, "inf") && !is_word(w, "nan"))
		return refuse(s, "a time, start() or end() must follow @");
fail:
	return rc;
}

/* *next: an operand must follow. *end: the expression is over. */
static errc behind(struct scan *s, bool *next, bool *end)
{
	errc rc = OK;
	*next = *end = false;
	char c = peek(s);
	const char *from = s->p;
	switch (c) {
	case 0:
		*end = s->p == s->end;
		return !*end ? refuse(s, "a zero byte") : s->depth == 0 ? OK : refuse(s, "a ) is missing");
	case ')':
		if (s->depth == 0)
			return refuse(s, "a ) that nothing opened");
		s->depth--;
		s->p++;
		return OK;
	case ',':
		if (s->depth == 0)
			return refuse(s, "a comma outside of an argument list");
		s->p++;
		*next = true;
		return OK;
	case '[':
		return bracket_skip(s, ']');
	case '@':
		s->p++;
		return at_skip(s);
	default:
		break;
	}
	if (is_letter(c)) {
		struct span w = word(s);
		if (is_word(w, "offset"))
			return amount_skip(s);
		if (is_any(w, groupings) && peek(s) == '(')
			return bracket_skip(s, ')');
		if (is_any(w, set_operators)) {
			*next = true;
			return modifiers_skip(s);
		}
		s->p = from;
		return refuse(s, "%.*s stands where an operator must", (int)(w.n < 64 ? w.n : 64), w.p);
	}
	static const char *const operators[] = {"==", "!=", "<=", ">=", "</", ">/", "<", ">", "+", "-", "*", "/", "%", "^", NULL};
	for (const char *const *o = operators; *o; o++)
		if (span_has_prefix(span_of(s->p, (size_t)(s->end - s->p)), span_cstr(*o))) {
			s->p += strlen(*o);
			*next = true;
			TRY(modifiers_skip(s));
			return OK;
		}
	return refuse(s, "'%c' stands where an operator must", isprint((unsigned char)c) ? c : '?');
fail:
	return rc;
}

errc selectors_of(struct span text, struct arena *arena, struct matcher_set **sets, size_t *n, struct err *err)
{
	errc rc = OK;
	struct scan s = {.start = text.p, .p = text.p, .end = text.p + text.n, .arena = arena, .err = err};
	bool next = true, end = false;
	while (!end) {
		bool whole = true;
		if (next) {
			TRY(operand(&s, &whole));
			/* Something was opened: an operand follows, or nothing in it as in time(). */
			if (!whole) {
				next = peek(&s) != ')';
				continue;
			}
		}
		TRY(behind(&s, &next, &end));
		/* A comma may stand behind the last argument of a list. */
		if (next && s.p > s.start && s.p[-1] == ',' && peek(&s) == ')')
			next = false;
	}
	*sets = s.sets;
	*n = s.n;
	return OK;
fail:
	matcher_sets_free(s.sets, s.n);
	return rc;
}
