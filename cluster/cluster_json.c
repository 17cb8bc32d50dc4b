/* cluster/cluster_json.c - JSON as a tree that knows its lines.
 *
 * A ring file that is refused must say where it is wrong, also where it is well-formed JSON and makes a bad ring; that is why it is not read with jansson,
 * whose values have no lines. Strict (RFC 8259): no comments, no trailing commas, nothing behind the document, and no member twice, for Go takes the last
 * one and people mean both.
 */
#include "cluster/cluster_int.h"

struct reader {
	const char *name;
	const char *p, *end;
	uint32_t line, depth, n_values;
	struct arena *arena;
	struct err *err;
};

const char *json_kind_words(enum json_kind k)
{
	static const char *const words[] = {"null", "false", "true", "a number", "a string", "a list", "an object"};
	return words[k];
}

static errc bad(struct reader *r, const char *what)
{
	return err_set(r->err, ERR_INVALID, "%s:%u: %s", r->name, r->line, what);
}

static void skip_space(struct reader *r)
{
	for (; r->p < r->end; r->p++) {
		if (*r->p == '\n')
			r->line++;
		else if (*r->p != ' ' && *r->p != '\t' && *r->p != '\r')
			return;
	}
}

static bool at(const struct reader *r, char c)
{
	return r->p < r->end && *r->p == c;
}

static errc unexpected(struct reader *r, const char *wanted)
{
	if (r->p >= r->end)
		return err_set(r->err, ERR_INVALID, "%s:%u: the text ends where %s must stand", r->name, r->line, wanted);
	uint8_t c = (uint8_t)*r->p;
	if (c < 0x21 || c > 0x7e)
		return err_set(r->err, ERR_INVALID, "%s:%u: byte 0x%02x where %s must stand", r->name, r->line, c, wanted);
	return err_set(r->err, ERR_INVALID, "%s:%u: '%c' where %s must stand", r->name, r->line, c, wanted);
}

static int hex4(const char *p)
{
	int x = 0;
	for (int i = 0; i < 4; i++) {
		char c = p[i];
		int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
		if (d < 0)
			return -1;
		x = x << 4 | d;
	}
	return x;
}

/* p stands behind \u; a pair of surrogates takes both. -1: not a character. */
static int32_t read_escape(struct reader *r)
{
	if (r->end - r->p < 4)
		return -1;
	int32_t x = hex4(r->p);
	r->p += 4;
	if (x < 0xd800 || x > 0xdfff)
		return x;
	if (x > 0xdbff || r->end - r->p < 6 || r->p[0] != '\\' || r->p[1] != 'u')
		return -1;
	int32_t low = hex4(r->p + 2);
	r->p += 6;
	return low >= 0xdc00 && low <= 0xdfff ? 0x10000 + ((x - 0xd800) << 10 | (low - 0xdc00)) : -1;
}

static char *put_utf8(char *to, uint32_t x)
{
	if (x < 0x80) {
		*to++ = (char)x;
	} else if (x < 0x800) {
		*to++ = (char)(0xc0 | x >> 6);
		*to++ = (char)(0x80 | (x & 0x3f));
	} else if (x < 0x10000) {
		*to++ = (char)(0xe0 | x >> 12);
		*to++ = (char)(0x80 | (x >> 6 & 0x3f));
		*to++ = (char)(0x80 | (x & 0x3f));
	} else {
		*to++ = (char)(0xf0 | x >> 18);
		*to++ = (char)(0x80 | (x >> 12 & 0x3f));
		*to++ = (char)(0x80 | (x >> 6 & 0x3f));
		*to++ = (char)(0x80 | (x & 0x3f));
	}
	return to;
}

/* p stands behind the opening quote. An escape is never shorter than what it stands for. */
static errc read_string(struct reader *r, struct span *out)
{
	errc rc = OK;
	struct err *err = r->err;
	const char *close = r->p;
	while (close < r->end && *close != '"') {
		if ((uint8_t)*close < 0x20)
			return bad(r, *close == '\n' ? "a string that its line does not end" : "a control character in a string");
		close += *close == '\\' && close + 1 < r->end ? 2 : 1;
	}
	CHECK(close < r->end, ERR_INVALID, "%s:%u: the text ends inside a string", r->name, r->line);
	struct span raw = span_of(r->p, (size_t)(close - r->p));
	CHECK(span_is_utf8(raw), ERR_INVALID, "%s:%u: a string that is not UTF-8", r->name, r->line);
	char *text = arena_alloc(r->arena, raw.n + 1), *to = text;
	CHECK(text, ERR_NOMEM, "%s: no memory", r->name);
	while (r->p < close) {
		char c = *r->p++;
		if (c != '\\') {
			*to++ = c;
			continue;
		}
		static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
		c = *r->p++;
		const char *k = c ? strchr(from, c) : NULL;
		if (k) {
			*to++ = into[k - from];
			continue;
		}
		int32_t x = c == 'u' ? read_escape(r) : -1;
		CHECK(x >= 0 && r->p <= close, ERR_INVALID, "%s:%u: an escape in a string that is none", r->name, r->line);
		to = put_utf8(to, (uint32_t)x);
	}
	*to = 0;
	*out = span_of(text, (size_t)(to - text));
	r->p = close + 1;
fail:
	return rc;
}

static const char *digits(const char *p, const char *end)
{
	while (p < end && *p >= '0' && *p <= '9')
		p++;
	return p;
}

static errc read_number(struct reader *r, struct span *out)
{
	const char *start = r->p, *p = start + at(r, '-'), *first = p;
	p = digits(p, r->end);
	bool good = p > first && (*first != '0' || p == first + 1);
	if (good && p < r->end && *p == '.') {
		const char *fraction = ++p;
		p = digits(p, r->end);
		good = p > fraction;
	}
	if (good && p < r->end && (*p == 'e' || *p == 'E')) {
		p++;
		p += p < r->end && (*p == '+' || *p == '-');
		const char *exponent = p;
		p = digits(p, r->end);
		good = p > exponent;
	}
	if (!good)
		return bad(r, "a number that is none");
	*out = span_of(start, (size_t)(p - start));
	r->p = p;
	return OK;
}

static errc read_value(struct reader *r, struct json **out);

static errc read_member(struct reader *r, struct json *object, struct json **out)
{
	errc rc = OK;
	struct err *err = r->err;
	struct span key;
	if (!at(r, '"')) {
		rc = unexpected(r, "a member's name in quotes");
		goto fail;
	}
	r->p++;
	TRY(read_string(r, &key));
	CHECK(object->n < LIMIT_RING_JSON_MEMBERS, ERR_LIMIT, "%s:%u: an object of more than %d members", r->name, r->line, LIMIT_RING_JSON_MEMBERS);
	for (const struct json *m = object->first; m; m = m->next)
		CHECK(!span_eq(m->key, key), ERR_INVALID, "%s:%u: \"%.*s\" stands there twice, first on line %u", r->name, r->line, SPAN_ARG(key),
			m->line);
	skip_space(r);
	if (!at(r, ':')) {
		rc = unexpected(r, "a colon");
		goto fail;
	}
	r->p++;
	TRY(read_value(r, out));
	(*out)->key = key;
fail:
	return rc;
}

static errc read_children(struct reader *r, struct json *v)
{
	errc rc = OK;
	struct err *err = r->err;
	char close = v->kind == JSON_ARRAY ? ']' : '}';
	struct json **link = &v->first;
	CHECK(++r->depth <= LIMIT_RING_JSON_DEPTH, ERR_LIMIT, "%s:%u: nested deeper than %d levels", r->name, r->line, LIMIT_RING_JSON_DEPTH);
	r->p++;
	skip_space(r);
	if (!at(r, close))
		for (;;) {
			if (v->kind == JSON_ARRAY)
				TRY(read_value(r, link));
			else
				TRY(read_member(r, v, link));
			link = &(*link)->next;
			v->n++;
			skip_space(r);
			if (at(r, close))
				break;
			if (!at(r, ',')) {
				rc = unexpected(r, v->kind == JSON_ARRAY ? "',' or ']'" : "',' or '}'");
				goto fail;
			}
			r->p++;
			skip_space(r);
		}
	r->p++;
	r->depth--;
fail:
	return rc;
}

static errc read_value(struct reader *r, struct json **out)
{
	errc rc = OK;
	struct err *err = r->err;
	skip_space(r);
	CHECK(++r->n_values <= LIMIT_RING_VALUES, ERR_LIMIT, "%s:%u: more than %d values", r->name, r->line, LIMIT_RING_VALUES);
	struct json *v = arena_calloc(r->arena, 1, sizeof *v);
	CHECK(v, ERR_NOMEM, "%s: no memory", r->name);
	v->line = r->line;
	size_t left = (size_t)(r->end - r->p);
	if (at(r, '{') || at(r, '[')) {
		v->kind = at(r, '{') ? JSON_OBJECT : JSON_ARRAY;
		TRY(read_children(r, v));
	} else if (at(r, '"')) {
		v->kind = JSON_STRING;
		r->p++;
		TRY(read_string(r, &v->text));
	} else if (at(r, '-') || (left > 0 && *r->p >= '0' && *r->p <= '9')) {
		v->kind = JSON_NUMBER;
		TRY(read_number(r, &v->text));
	} else if (left >= 4 && memcmp(r->p, "true", 4) == 0) {
		v->kind = JSON_TRUE;
		r->p += 4;
	} else if (left >= 5 && memcmp(r->p, "false", 5) == 0) {
		v->kind = JSON_FALSE;
		r->p += 5;
	} else if (left >= 4 && memcmp(r->p, "null", 4) == 0) {
		r->p += 4;
	} else {
		rc = unexpected(r, "a value");
		goto fail;
	}
	*out = v;
fail:
	return rc;
}

errc json_parse(const char *name, struct span text, struct arena *arena, struct json **out, struct err *err)
{
	errc rc = OK;
	struct reader r = {.name = name, .p = text.p, .end = text.p + text.n, .line = 1, .arena = arena, .err = err};
	TRY(read_value(&r, out));
	skip_space(&r);
	if (r.p < r.end)
		rc = unexpected(&r, "the end of the text");
fail:
	return rc;
}

const struct json *json_get(const struct json *object, const char *key)
{
	for (const struct json *m = object->first; m; m = m->next)
		if (span_is(m->key, key))
			return m->kind == JSON_NULL ? NULL : m;
	return NULL;
}
