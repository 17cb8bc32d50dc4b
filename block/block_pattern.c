/* block/block_pattern.c - taking a regex apart: most patterns of dashboards are literals in disguise.
 *
 *     alternation = concatenation { "|" concatenation }
 *     concatenation = { atom [ "*" | "+" | "?" | "{n,m}" ] [ "?" ] }
 *     atom = literals | "." | "(" alternation ")" | "(?:" alternation ")" | "[" class "]" | "\" punctuation | "^" | "$"
 *
 * Each part's value is a struct pattern: strings and a tail. Concatenation is the product of the strings, cut off where the product
 * grows past PRODUCT_MAX: from there on the tail is unknown, and what is known is a prefix. Alternation is the union. Case folding and
 * everything else with a flag is not taken apart at all.
 *
 * A result that needs no engine is given for valid patterns only: whatever this parser does not know for certain ends the analysis.
 */
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_pattern.h"

enum { DEPTH_MAX = 100, PRODUCT_MAX = 256, CLASS_MAX = 64, REPEAT_MAX = 1000 };

struct parser {
	const char *p, *end;
	struct arena *arena;
	unsigned depth;
	bool gave_up;
};

static struct pattern give_up(struct parser *ps)
{
	static struct span empty = {"", 0};
	ps->gave_up = true;
	return (struct pattern){&empty, 1, TAIL_UNKNOWN};
}

static struct pattern one(struct parser *ps, struct span s, enum pattern_tail tail)
{
	struct span *v = arena_alloc(ps->arena, sizeof *v);
	if (!v)
		return give_up(ps);
	*v = s;
	return (struct pattern){v, 1, tail};
}

static bool is_empty_string(const struct pattern *x)
{
	return x->n == 1 && x->v[0].n == 0;
}

/* `a` has a tail already; what follows can only change the tail. */
static enum pattern_tail tail_then(enum pattern_tail a, const struct pattern *b)
{
	if (!is_empty_string(b) || a == TAIL_UNKNOWN)
		return TAIL_UNKNOWN;
	switch (b->tail) {
	case TAIL_NONE:
		return a;
	case TAIL_ANY:
		return a;
	case TAIL_SOME:
		return a == TAIL_ANY ? TAIL_SOME : TAIL_UNKNOWN;
	default:
		return TAIL_UNKNOWN;
	}
}

static struct pattern concat(struct parser *ps, struct pattern a, struct pattern b)
{
	if (a.tail != TAIL_NONE) {
		a.tail = tail_then(a.tail, &b);
		return a;
	}
	if (is_empty_string(&a))
		return b;
	if (is_empty_string(&b)) {
		a.tail = b.tail;
		return a;
	}
	size_t n = a.n * b.n;
	if (a.n > 1 && b.n > 1 && n > PRODUCT_MAX) {
		a.tail = TAIL_UNKNOWN;
		return a;
	}
	struct span *v = arena_calloc(ps->arena, n, sizeof *v);
	if (!v)
		return give_up(ps);
	for (size_t i = 0, k = 0; i < a.n; i++) {
		for (size_t j = 0; j < b.n; j++, k++) {
			char *s = arena_alloc(ps->arena, a.v[i].n + b.v[j].n);
			if (!s)
				return give_up(ps);
			memcpy(s, a.v[i].p, a.v[i].n);
			memcpy(s + a.v[i].n, b.v[j].p, b.v[j].n);
			v[k] = (struct span){s, a.v[i].n + b.v[j].n};
		}
	}
	return (struct pattern){v, n, b.tail};
}

/* ---- atoms ---- */

static bool is_meta(char c)
{
	return strchr("\\.+*?()|[]{}^$", c) && c != 0;
}

static bool is_repeat(char c)
{
	return c == '*' || c == '+' || c == '?' || c == '{';
}

static size_t rune_length(const char *p)
{
	unsigned char c = (unsigned char)*p;
	return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

/* A run of plain characters, less the last one when an operator that follows applies to it alone. */
static struct pattern literals(struct parser *ps)
{
	const char *start = ps->p, *last = start;
	while (ps->p < ps->end && !is_meta(*ps->p)) {
		last = ps->p;
		ps->p += rune_length(ps->p);
	}
	if (ps->p < ps->end && is_repeat(*ps->p) && last > start)
		ps->p = last;
	return one(ps, span_of(start, (size_t)(ps->p - start)), TAIL_NONE);
}

static struct pattern escape(struct parser *ps)
{
	static const char control[] = "a\af\fn\nr\rt\tv\v";
	if (ps->end - ps->p < 2)
		return give_up(ps);
	char c = ps->p[1];
	ps->p += 2;
	bool alpha = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'), digit = c >= '0' && c <= '9';
	if (!alpha && !digit && (unsigned char)c < 0x80)
		return one(ps, span_of(ps->p - 1, 1), TAIL_NONE);
	if (strchr("dDsSwW", c))
		return one(ps, SPAN(""), TAIL_UNKNOWN);
	const char *found = strchr(control, c);
	if (c && found)
		return one(ps, span_of(found + 1, 1), TAIL_NONE);
	return give_up(ps);
}

static uint32_t rune_at(const char *p)
{
	const unsigned char *u = (const unsigned char *)p;
	switch (rune_length(p)) {
	case 1:
		return u[0];
	case 2:
		return (u[0] & 0x1fu) << 6 | (u[1] & 0x3fu);
	case 3:
		return (u[0] & 0x0fu) << 12 | (u[1] & 0x3fu) << 6 | (u[2] & 0x3fu);
	default:
		return (u[0] & 0x07u) << 18 | (u[1] & 0x3fu) << 12 | (u[2] & 0x3fu) << 6 | (u[3] & 0x3fu);
	}
}

static bool rune_append(struct parser *ps, struct pattern *set, uint32_t rune)
{
	if (set->n == CLASS_MAX || (rune >= 0xd800 && rune < 0xe000))
		return false;
	char *s = arena_alloc(ps->arena, 4);
	if (!s)
		return false;
	size_t n = 0;
	if (rune < 0x80) {
		s[n++] = (char)rune;
	} else if (rune < 0x800) {
		s[n++] = (char)(0xc0 | rune >> 6);
		s[n++] = (char)(0x80 | (rune & 0x3f));
	} else if (rune < 0x10000) {
		s[n++] = (char)(0xe0 | rune >> 12);
		s[n++] = (char)(0x80 | (rune >> 6 & 0x3f));
		s[n++] = (char)(0x80 | (rune & 0x3f));
	} else {
		s[n++] = (char)(0xf0 | rune >> 18);
		s[n++] = (char)(0x80 | (rune >> 12 & 0x3f));
		s[n++] = (char)(0x80 | (rune >> 6 & 0x3f));
		s[n++] = (char)(0x80 | (rune & 0x3f));
	}
	set->v[set->n++] = (struct span){s, n};
	return true;
}

/* One member of a class; only plain characters and escaped punctuation. */
static bool class_rune(struct parser *ps, uint32_t *rune)
{
	if (ps->p >= ps->end || *ps->p == '[' || *ps->p == '-')
		return false;
	if (*ps->p == '\\') {
		if (ps->end - ps->p < 2 || !strchr("\\.+*?()|[]{}^$-/", ps->p[1]) || !ps->p[1])
			return false;
		ps->p++;
	}
	*rune = rune_at(ps->p);
	ps->p += rune_length(ps->p);
	return true;
}

static struct pattern char_class(struct parser *ps)
{
	ps->p++;
	bool negated = ps->p < ps->end && *ps->p == '^';
	if (negated)
		ps->p++;
	struct pattern set = {arena_calloc(ps->arena, CLASS_MAX, sizeof *set.v), 0, TAIL_NONE};
	if (!set.v || ps->p >= ps->end || *ps->p == ']')
		return give_up(ps);
	bool fits = true;
	while (ps->p < ps->end && *ps->p != ']') {
		uint32_t low, high;
		if (!class_rune(ps, &low))
			return give_up(ps);
		high = low;
		if (ps->end - ps->p >= 2 && ps->p[0] == '-' && ps->p[1] != ']') {
			ps->p++;
			if (!class_rune(ps, &high) || high < low)
				return give_up(ps);
		}
		for (uint32_t r = low; fits && r <= high; r++)
			fits = rune_append(ps, &set, r);
	}
	if (ps->p >= ps->end)
		return give_up(ps);
	ps->p++;
	if (negated || !fits)
		return one(ps, SPAN(""), TAIL_UNKNOWN);
	return set;
}

static struct pattern alternation(struct parser *ps);

static struct pattern group(struct parser *ps)
{
	ps->p++;
	if (ps->p < ps->end && *ps->p == '?') {
		if (ps->end - ps->p < 2 || ps->p[1] != ':')
			return give_up(ps);
		ps->p += 2;
	}
	if (++ps->depth > DEPTH_MAX)
		return give_up(ps);
	struct pattern x = alternation(ps);
	ps->depth--;
	if (ps->gave_up || ps->p >= ps->end || *ps->p != ')')
		return give_up(ps);
	ps->p++;
	return x;
}

/* ---- operators ---- */

static bool number(struct parser *ps, unsigned *out)
{
	const char *start = ps->p;
	unsigned n = 0;
	while (ps->p < ps->end && *ps->p >= '0' && *ps->p <= '9' && n <= REPEAT_MAX)
		n = n * 10 + (unsigned)(*ps->p++ - '0');
	*out = n;
	return ps->p > start && n <= REPEAT_MAX && (ps->p - start == 1 || *start != '0');
}

/* {n} {n,} {n,m} */
static bool counts(struct parser *ps, unsigned *min, bool *exactly_one)
{
	unsigned max;
	ps->p++;
	if (!number(ps, min))
		return false;
	*exactly_one = *min == 1;
	if (ps->p < ps->end && *ps->p == ',') {
		ps->p++;
		if (ps->p < ps->end && *ps->p == '}')
			*exactly_one = false;
		else if (!number(ps, &max) || max < *min)
			return false;
		else
			*exactly_one = *exactly_one && max == 1;
	}
	return ps->p < ps->end && *ps->p++ == '}';
}

static struct pattern with_empty(struct parser *ps, struct pattern x)
{
	if (x.tail != TAIL_NONE)
		return one(ps, SPAN(""), TAIL_UNKNOWN);
	struct span *v = arena_calloc(ps->arena, x.n + 1, sizeof *v);
	if (!v)
		return give_up(ps);
	memcpy(v, x.v, x.n * sizeof *v);
	v[x.n] = SPAN("");
	return (struct pattern){v, x.n + 1, TAIL_NONE};
}

static struct pattern repeated(struct parser *ps, struct pattern x, bool any_char)
{
	if (ps->p >= ps->end || !is_repeat(*ps->p))
		return any_char ? one(ps, SPAN(""), TAIL_UNKNOWN) : x;
	char op = *ps->p;
	unsigned min = 0;
	bool exactly_one = false;
	if (op == '{') {
		if (!counts(ps, &min, &exactly_one))
			return give_up(ps);
	} else {
		ps->p++;
	}
	if (ps->p < ps->end && *ps->p == '?')
		ps->p++;
	if (ps->p < ps->end && is_repeat(*ps->p))
		return give_up(ps);
	if (any_char)
		return one(ps, SPAN(""), op == '*' ? TAIL_ANY : op == '+' ? TAIL_SOME : TAIL_UNKNOWN);
	if (op == '?')
		return with_empty(ps, x);
	if (exactly_one)
		return x;
	if (op == '*' || (op == '{' && min == 0))
		return one(ps, SPAN(""), TAIL_UNKNOWN);
	x.tail = TAIL_UNKNOWN;
	return x;
}

static bool at_branch_end(const struct parser *ps)
{
	return ps->p == ps->end || *ps->p == '|';
}

static struct pattern concatenation(struct parser *ps)
{
	const char *start = ps->p;
	struct pattern x = one(ps, SPAN(""), TAIL_NONE);
	while (!ps->gave_up && ps->p < ps->end && *ps->p != '|' && *ps->p != ')') {
		struct pattern atom;
		bool any_char = false;
		switch (*ps->p) {
		case '.':
			ps->p++;
			any_char = true;
			atom = one(ps, SPAN(""), TAIL_UNKNOWN);
			break;
		case '(':
			atom = group(ps);
			break;
		case '[':
			atom = char_class(ps);
			break;
		case '\\':
			atom = escape(ps);
			break;
		case '^':
		case '$': {
			/* said again by the anchors at both ends of the whole pattern; anywhere else they need the engine */
			bool begins = *ps->p == '^' && ps->p == start;
			ps->p++;
			if (ps->depth > 0 || !(begins || (ps->p[-1] == '$' && at_branch_end(ps))) || (ps->p < ps->end && is_repeat(*ps->p)))
				return give_up(ps);
			continue;
		}
		case '*':
		case '+':
		case '?':
		case '{':
			return give_up(ps);
		case ']':
		case '}':
			atom = one(ps, span_of(ps->p++, 1), TAIL_NONE);
			break;
		default:
			atom = literals(ps);
		}
		atom = repeated(ps, atom, any_char);
		if (!ps->gave_up)
			x = concat(ps, x, atom);
	}
	return ps->gave_up ? give_up(ps) : x;
}

static struct pattern alternation(struct parser *ps)
{
	struct pattern all = concatenation(ps);
	size_t cap = all.n;
	while (!ps->gave_up && ps->p < ps->end && *ps->p == '|') {
		ps->p++;
		struct pattern x = concatenation(ps);
		if (all.n + x.n > cap) {
			cap = 2 * (all.n + x.n);
			struct span *v = cap <= 2 * LIMIT_QUERY_REGEX_SET ? arena_calloc(ps->arena, cap, sizeof *v) : NULL;
			if (!v)
				return give_up(ps);
			memcpy(v, all.v, all.n * sizeof *v);
			all.v = v;
		}
		memcpy(all.v + all.n, x.v, x.n * sizeof *x.v);
		all.n += x.n;
		if (all.tail != x.tail)
			all.tail = TAIL_UNKNOWN;
	}
	return ps->gave_up ? give_up(ps) : all;
}

static int by_bytes(const void *a, const void *b)
{
	return span_cmp(*(const struct span *)a, *(const struct span *)b);
}

struct pattern pattern_analyze(struct span text, struct arena *arena)
{
	struct parser ps = {.p = text.p, .end = text.p + text.n, .arena = arena};
	if (!span_is_utf8(text))
		return give_up(&ps);
	struct pattern x = alternation(&ps);
	if (ps.gave_up || ps.p != ps.end)
		return give_up(&ps);
	qsort(x.v, x.n, sizeof *x.v, by_bytes);
	size_t n = 0;
	for (size_t i = 0; i < x.n; i++)
		if (n == 0 || !span_eq(x.v[n - 1], x.v[i]))
			x.v[n++] = x.v[i];
	x.n = n;
	return x;
}
