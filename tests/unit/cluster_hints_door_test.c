/* POST /-/peer/hint over a real connection: what is taken, what is refused and with which words, and that nothing that is refused is kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/log.h"
#include "cluster/cluster_hints_int.h"
#include "net/net.h"
#include "tests/support/tmp.h"

static bool believed = true;

static errc check(void *trust, const struct http_request *r, struct err *err)
{
	(void)trust, (void)r;
	return believed ? OK : err_id(err, ERRID_UNAUTHORIZED, ERR_DENIED, "who is this?");
}

static errc nodes(void *roster, struct arena *arena, struct roster_node **out, size_t *n, struct err *err)
{
	(void)roster, (void)arena, (void)err;
	*out = NULL;
	*n = 0;
	return OK;
}

static errc nobody(void *link, const struct link_call *c, struct err *err)
{
	(void)link, (void)c;
	return err_set(err, ERR_CANCELED, "nobody is asked");
}

static struct fixture {
	struct hints *h;
	struct http_server *server;
	struct http_client *client;
	struct hints_config cfg;
	char *dir;
} f;

static void begin(bool stores, uint64_t max_bytes)
{
	believed = true;
	f.dir = strdup(tmp_path("%s/hints", tmp_dir()));
	f.cfg = (struct hints_config){.dir = stores ? f.dir : NULL,
		.self = SPAN("me:1"),
		.max_age_ms = 1000000,
		.remember_ms = 1000000,
		.max_bytes = max_bytes,
		.send = nobody,
		.nodes = nodes,
		.check = check,
		.no_thread = true};
	assert_int_equal(hints_open(&f.cfg, &f.h, NULL), OK);
	struct http_route route = {.methods = HTTP_POST,
		.path = HINTS_PATH,
		.flags = HTTP_INLINE | HTTP_NO_AUTH,
		.max_body_bytes = MIB,
		.handler = hints_receive,
		.arg = f.h};
	struct http_server_config cfg = {.address = "127.0.0.1:0", .threads = 1, .workers = 1};
	struct err err = {0};
	if (http_server_start(&cfg, &route, 1, &f.server, &err) != OK)
		fail_msg("%s", err.msg);
	struct http_client_config cc = {.connect_timeout_ms = 5000, .idle_timeout_ms = 5000};
	assert_int_equal(http_client_open(&cc, &f.client, NULL), OK);
}

static void end(void)
{
	http_client_close(f.client);
	http_server_stop(f.server, 1000);
	hints_close(f.h);
	free(f.dir);
}

static void posts(const char *query, struct span body, int status, const char *words)
{
	char url[1024];
	const char *headers[] = {"Content-Type: " PEER_CONTENT_TYPE};
	struct http_call call = {.method = "POST", .url = url, .headers = headers, .n_headers = 1, .body = body, .max_answer_bytes = 10000};
	struct err err = {0};
	snprintf(url, sizeof url, "http://127.0.0.1:%u" HINTS_PATH "%s", http_server_port(f.server), query);
	if (http_call(f.client, &call, &err) != OK)
		fail_msg("%s: %s", query, err.msg);
	struct span text = span_of(call.answer.p, call.answer.n);
	if (call.status != status || (words && !memmem(text.p, text.n, words, strlen(words))))
		fail_msg("%s: %d, %.*s", query, call.status, SPAN_ARG(text));
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
}

static void frame_of(bool hint, size_t noise, struct buf *out)
{
	struct buf body;
	buf_init(&body, MIB);
	buf_u8(&body, 0x0a);
	buf_uvarint(&body, noise + 2);
	buf_put(&body, "\x12\x00", 2);
	for (size_t i = 0; i < noise; i++)
		buf_u8(&body, (uint8_t)i);
	struct peer_section s = {.tenant = SPAN("t"), .version = RW_1, .n_series = 1, .body = span_of(body.p, body.n)};
	struct peer_request r = {.hint = hint, .sections = &s, .n_sections = 1};
	buf_init(out, MIB);
	assert_int_equal(peer_request_encode(&r, false, out, NULL), OK);
	buf_free(&body);
}

static void sum(void *arg, const struct hints_status *s)
{
	assert_true(span_is(s->address, "a b:1") || span_is(s->address, "a%:1") || span_is(s->address, "[::1]:19291"));
	*(uint64_t *)arg += s->pending_bytes > 0;
}

static uint64_t kept(void)
{
	uint64_t n = 0;
	hints_step(f.h);
	hints_each(f.h, sum, &n);
	return n;
}

static void the_door(void **st)
{
	(void)st;
	struct buf hint, write;
	char query[800] = "?for=";
	begin(true, 0);
	frame_of(true, 0, &hint);
	frame_of(false, 0, &write);
	struct span good = span_of(hint.p, hint.n);
	posts("", good, 400, "err-varve-bad-parameter");
	posts("?for=", good, 400, "err-varve-bad-parameter");
	posts("?for=a%20b:1", good, 400, "err-varve-bad-parameter");
	posts("?for=a%0ab:1", good, 400, "err-varve-bad-parameter");
	posts("?for=b:1&for=c:1", good, 400, "err-varve-bad-parameter");
	posts("?for=%zz", good, 400, NULL);
	memset(query + 5, 'x', LIMIT_RING_ADDRESS_BYTES + 1);
	posts(query, good, 400, "err-varve-bad-parameter");
	posts("?for=me:1", good, 404, PEER_WRITE_PATH);
	posts("?for=b:1", span_of(write.p, write.n), 400, "no hint");
	posts("?for=b:1", span_of(hint.p, hint.n - 1), 400, "err-varve-peer-frame");
	posts("?for=b:1", SPAN(""), 400, "err-varve-peer-frame");
	for (size_t i = 0; i < hint.n; i++) {
		hint.p[i] ^= 1;
		posts("?for=b:1", good, 400, "err-varve-peer-frame");
		hint.p[i] ^= 1;
	}
	believed = false;
	posts("?for=b:1", good, 401, "who is this?");
	believed = true;
	assert_int_equal(kept(), 0);
	posts("?for=a%25:1", good, 204, NULL);
	posts("?for=%5B%3A%3A1%5D%3A19291", good, 204, NULL);
	assert_int_equal(kept(), 2);
	buf_free(&hint);
	buf_free(&write);
	end();
}

static void who_keeps_none(void **st)
{
	(void)st;
	struct buf hint;
	begin(false, 0);
	frame_of(true, 0, &hint);
	posts("?for=b:1", span_of(hint.p, hint.n), 404, "keeps no hints");
	buf_free(&hint);
	end();
}

/* When a node has what it may have here, others are asked. */
static void no_room(void **st)
{
	(void)st;
	struct buf hint;
	struct hints_owed owed;
	begin(true, 10000);
	frame_of(true, 3000, &hint);
	struct span s = span_of(hint.p, hint.n);
	posts("?for=a%25:1", s, 204, NULL);
	assert_int_equal(kept(), 1);
	posts("?for=a%25:1", s, 204, NULL); /* is left out and owed: it was taken before that was known */
	assert_int_equal(kept(), 1);
	assert_true(hints_owed(f.h, SPAN("a%:1"), &owed) && owed.frames == 1 && owed.samples == 1);
	posts("?for=a%25:1", s, 503, "--hints.max-size");
	assert_true(hints_owed(f.h, SPAN("a%:1"), &owed) && owed.frames == 1);
	buf_free(&hint);
	end();
}

int main(void)
{
	log_setup(LOG_ERROR + 1, LOG_LOGFMT);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_door),
		cmocka_unit_test(who_keeps_none),
		cmocka_unit_test(no_room),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
