/* fuzz: needs net */
/* Query strings, escapes and Authorization headers: what is accepted comes back the same when it is escaped again and parsed again. */
#include <stdlib.h>
#include "net/net_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void escape(struct buf *out, struct span s)
{
	for (size_t i = 0; i < s.n; i++) {
		unsigned char c = (unsigned char)s.p[i];
		if ((c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'))
			buf_u8(out, c);
		else
			buf_printf(out, "%%%02X", c);
	}
}

static void judge_query(struct span text)
{
	struct arena arena;
	struct err err = {0};
	struct net_params p = {0}, again = {0};
	arena_init(&arena, 64 * MIB);
	errc rc = net_params_parse(text, &arena, &p, &err);
	ASSERT(rc == OK || rc == ERR_INVALID || rc == ERR_LIMIT || rc == ERR_NOMEM);
	ASSERT(rc == OK || err.id);
	if (rc == OK) {
		struct buf b;
		buf_init(&b, 16 * MIB);
		for (size_t i = 0; i < p.n; i++) {
			/* a NUL can come bare, never escaped: HTTP has none */
			if (memchr(p.v[i].name.p, 0, p.v[i].name.n) || memchr(p.v[i].value.p, 0, p.v[i].value.n))
				goto done;
			escape(&b, p.v[i].name);
			buf_u8(&b, '=');
			escape(&b, p.v[i].value);
			buf_u8(&b, '&');
		}
		ASSERT(!b.failed && net_params_parse(span_of(b.p, b.n), &arena, &again, &err) == OK);
		ASSERT(p.n == again.n);
		for (size_t i = 0; i < p.n; i++)
			ASSERT(span_eq(p.v[i].name, again.v[i].name) && span_eq(p.v[i].value, again.v[i].value));
	done:
		buf_free(&b);
	}
	arena_free(&arena);
}

static void judge_basic(struct span text)
{
	struct arena arena;
	struct err err = {0};
	const char *user, *password;
	arena_init(&arena, 1 * MIB);
	errc rc = net_basic_parse(text, &arena, &user, &password, &err);
	ASSERT(rc == OK || rc == ERR_INVALID || rc == ERR_NOMEM);
	if (rc == OK)
		ASSERT(!strchr(user, ':') && strlen(user) + strlen(password) + 1 <= text.n);
	arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct buf json;
	judge_query(span_of(data, size));
	judge_basic(span_of(data, size));
	buf_init(&json, 16 * MIB);
	net_json_string(&json, span_of(data, size));
	ASSERT(json.failed || span_is_utf8(span_of(json.p, json.n)));
	buf_free(&json);
	return 0;
}
