/* net/net_params.c - text that clients send: escapes, query strings, forms, basic auth headers.
 *
 * Follows the URL standard's form encoding: '&' separates (never ';'), the first '=' splits, '+' is a space, %XX any byte but NUL. A malformed
 * escape refuses the whole text instead of passing through: two readers that disagree about it would see two requests.
 */
#include "net/net_int.h"

static int hex_of(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)(c | 0x20);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

errc net_unescape(struct span in, bool form, struct arena *arena, struct span *out, struct err *err)
{
	if (in.n == 0 || (!memchr(in.p, '%', in.n) && !(form && memchr(in.p, '+', in.n)))) {
		*out = in.n ? in : SPAN("");
		return OK;
	}
	char *p = arena_alloc(arena, in.n + 1);
	if (!p)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %zu bytes of the request", in.n);
	size_t n = 0;
	for (size_t i = 0; i < in.n; i++) {
		char c = in.p[i];
		if (c == '+' && form) {
			c = ' ';
		} else if (c == '%') {
			int hi = in.n - i > 2 ? hex_of(in.p[i + 1]) : -1, lo = in.n - i > 2 ? hex_of(in.p[i + 2]) : -1;
			if (hi < 0 || lo < 0)
				return err_id(
					err, ERRID_BAD_PARAMETER, ERR_INVALID, "malformed escape at byte %zu: %% needs two hexadecimal digits", i);
			c = (char)(hi * 16 + lo);
			if (c == 0)
				return err_id(err, ERRID_BAD_PARAMETER, ERR_INVALID, "escaped NUL at byte %zu", i);
			i += 2;
		}
		p[n++] = c;
	}
	p[n] = 0;
	*out = span_of(p, n);
	return OK;
}

static errc params_add(struct net_params *p, struct span name, struct span value, struct arena *arena, struct err *err)
{
	if (p->n == LIMIT_HTTP_PARAMS)
		return err_id(err, ERRID_BAD_PARAMETER, ERR_LIMIT, "more than %d parameters", LIMIT_HTTP_PARAMS);
	if (p->n == p->cap) {
		size_t cap = p->cap ? p->cap * 2 : 16;
		struct net_param *v = arena_alloc(arena, cap * sizeof *v);
		if (!v)
			return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for %zu parameters", cap);
		if (p->n)
			memcpy(v, p->v, p->n * sizeof *v);
		p->v = v;
		p->cap = cap;
	}
	p->v[p->n++] = (struct net_param){name, value};
	return OK;
}

errc net_params_parse(struct span text, struct arena *arena, struct net_params *p, struct err *err)
{
	errc rc = OK;
	while (text.n) {
		const char *amp = memchr(text.p, '&', text.n);
		struct span pair = span_of(text.p, amp ? (size_t)(amp - text.p) : text.n);
		size_t used = amp ? pair.n + 1 : pair.n;
		text = span_of(text.p + used, text.n - used);
		if (pair.n == 0)
			continue;
		const char *eq = memchr(pair.p, '=', pair.n);
		struct span name = span_of(pair.p, eq ? (size_t)(eq - pair.p) : pair.n);
		struct span value = eq ? span_of(eq + 1, pair.n - name.n - 1) : SPAN("");
		TRY(net_unescape(name, true, arena, &name, err));
		TRY(net_unescape(value, true, arena, &value, err));
		TRY(params_add(p, name, value, arena, err));
	}
fail:
	return rc;
}

static int base64_of(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Strict: padding where it belongs, no spaces, unused bits zero. */
static bool base64_decode(struct span in, char *out, size_t *n)
{
	*n = 0;
	if (in.n % 4)
		return false;
	for (size_t i = 0; i < in.n; i += 4) {
		bool last = i + 4 == in.n;
		int pad = last && in.p[i + 3] == '=' ? (in.p[i + 2] == '=' ? 2 : 1) : 0;
		uint32_t bits = 0;
		for (int k = 0; k < 4; k++) {
			int v = k >= 4 - pad ? 0 : base64_of(in.p[i + (size_t)k]);
			if (v < 0)
				return false;
			bits = bits << 6 | (uint32_t)v;
		}
		if ((pad == 1 && (bits & 0xff)) || (pad == 2 && (bits & 0xffff)))
			return false;
		for (int k = 0; k < 3 - pad; k++)
			out[(*n)++] = (char)(bits >> (16 - 8 * k) & 0xff);
	}
	return true;
}

errc net_basic_parse(struct span header, struct arena *arena, const char **user, const char **password, struct err *err)
{
	static const char bad[] = "the Authorization header is not Basic with user:password in base64";
	if (header.n < 6 || strncasecmp(header.p, "Basic ", 6) != 0)
		return err_id(err, ERRID_UNAUTHORIZED, ERR_INVALID, bad);
	struct span b64 = span_of(header.p + 6, header.n - 6);
	while (b64.n && *b64.p == ' ')
		b64 = span_of(b64.p + 1, b64.n - 1);
	char *text = arena_alloc(arena, b64.n / 4 * 3 + 1);
	if (!text)
		return err_id(err, ERRID_OVERLOADED, ERR_NOMEM, "no memory for a header of %zu bytes", header.n);
	size_t n;
	if (!base64_decode(b64, text, &n) || memchr(text, 0, n))
		return err_id(err, ERRID_UNAUTHORIZED, ERR_INVALID, bad);
	text[n] = 0;
	char *colon = memchr(text, ':', n);
	if (!colon)
		return err_id(err, ERRID_UNAUTHORIZED, ERR_INVALID, bad);
	*colon = 0;
	*user = text;
	*password = colon + 1;
	return OK;
}

bool net_is_token(struct span s)
{
	for (size_t i = 0; i < s.n; i++) {
		unsigned char c = (unsigned char)s.p[i];
		bool alnum = (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
		if (!alnum && (c == 0 || !strchr("!#$%&'*+-.^_`|~", c)))
			return false;
	}
	return s.n > 0;
}

/* Length of the UTF-8 character at p, 0 when it is none. */
static size_t utf8_at(const char *p, size_t left)
{
	for (size_t n = 1; n <= 4 && n <= left; n++) {
		if (span_is_utf8(span_of(p, n)))
			return n;
	}
	return 0;
}

void net_json_string(struct buf *out, struct span s)
{
	buf_u8(out, '"');
	for (size_t i = 0; i < s.n;) {
		unsigned char c = (unsigned char)s.p[i];
		size_t n = c < 0x80 ? 1 : utf8_at(s.p + i, s.n - i);
		if (c == '"' || c == '\\')
			buf_printf(out, "\\%c", c);
		else if (c == '\n')
			buf_put(out, "\\n", 2);
		else if (c < 0x20 || c == 0x7f)
			buf_printf(out, "\\u%04x", c);
		else if (n == 0)
			buf_put(out, "\\ufffd", 6);
		else
			buf_put(out, s.p + i, n);
		i += n ? n : 1;
	}
	buf_u8(out, '"');
}
