/* cmd/cmd_drain.c - `varve drain [URL]`: a running varve leaves, and this waits until it has; also the preStop hook of its Pod.
 *
 * With --if-asked it asks for nothing: it waits so long for somebody else (the ring controller) to, and then until the drain is done. That is what a Pod's end
 * should do: a Pod that is only replaced keeps its volume and its place, one that is not wanted any more drains, and the Pod itself can't know which it is.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include "base/io.h"
#include "base/limits.h"
#include "cluster/trust.h"
#include "cmd/cmd_int.h"

enum { LOOK_MS = 250 };

struct drain_tool {
	struct arena arena;
	struct http_client *http;
	struct trust *trust; /* NULL: no secret */
	const char *url, *secret_file, *ca_file, *cert_file, *key_file;
	int64_t if_asked_ms, timeout_ms;
};

/* *state: "active", "draining", "drained"; "gone" when nobody listens (any more). */
static errc ask(struct drain_tool *t, const char *method, char state[16], struct err *err)
{
	errc rc = OK;
	const char *headers[1];
	struct http_call call = {.method = method, .headers = headers, .max_answer_bytes = LIMIT_CONTROL_ANSWER_BYTES};
	json_t *v = NULL;
	call.url = arena_printf(&t->arena, "%s/-/drain", t->url);
	CHECK(call.url, ERR_NOMEM, "no memory");
	if (t->trust) {
		const char *host = strstr(call.url, "://"), *target = strchr(host ? host + 3 : call.url, '/');
		const struct trust_words words = {.method = span_cstr(method), .target = span_cstr(target)};
		char signature[TRUST_HEADER_BYTES];
		trust_sign(t->trust, &words, signature);
		headers[call.n_headers++] = arena_printf(&t->arena, TRUST_HEADER ": %s", signature);
		CHECK(headers[0], ERR_NOMEM, "no memory");
	}
	rc = http_call(t->http, &call, err);
	if (rc == ERR_NET) {
		snprintf(state, 16, "gone");
		rc = OK;
		goto fail;
	}
	if (rc)
		goto fail;
	CHECK(call.status >= 200 && call.status <= 299, ERR_DENIED, "%s: %d: %.*s", call.url, call.status,
		(int)(call.answer.n < 200 ? call.answer.n : 200), (const char *)call.answer.p);
	v = json_loadb((const char *)call.answer.p, call.answer.n, 0, NULL);
	const char *word = json_string_value(json_object_get(v, "state"));
	snprintf(state, 16, "%s", word ? word : "draining");
fail:
	json_decref(v);
	buf_free(&call.answer);
	buf_free(&call.answer_headers);
	arena_reset(&t->arena);
	return rc;
}

static errc run(struct drain_tool *t, struct err *err)
{
	errc rc = OK;
	char state[16] = "active";
	int64_t began_ms = io_mono_ms();
	if (t->if_asked_ms == 0)
		TRY(ask(t, "POST", state, err));
	for (;;) {
		TRY(ask(t, "GET", state, err));
		int64_t passed_ms = io_mono_ms() - began_ms;
		if (strcmp(state, "gone") == 0 || strcmp(state, "drained") == 0)
			break;
		if (strcmp(state, "active") == 0 && t->if_asked_ms > 0 && passed_ms >= t->if_asked_ms) {
			printf("nobody asked it to drain\n");
			return OK;
		}
		CHECK(passed_ms < t->timeout_ms, ERR_TIMEOUT, "%s: still %s", t->url, state);
		io_sleep_ms(LOOK_MS);
	}
	printf("%s\n", state);
fail:
	return rc;
}

int cmd_drain(int argc, char **argv)
{
	static struct drain_tool t;
	struct err err = {0};
	struct flag table[] = {
		{.name = "if-asked",
			.kind = FLAG_DURATION_MS,
			.into = &t.if_asked_ms,
			.fallback = "0s",
			.value_name = "DURATION",
			.help = "Don't ask it to: wait so long for the ring controller to, and then for the end. For a Pod's preStop.",
			.common = true},
		{.name = "timeout",
			.kind = FLAG_DURATION_MS,
			.into = &t.timeout_ms,
			.fallback = "1h",
			.value_name = "DURATION",
			.help = "Exit 1 when it has not drained by then. It goes on.",
			.common = true},
		{.name = "peer.secret-file",
			.kind = FLAG_STRING,
			.into = &t.secret_file,
			.value_name = "PATH",
			.help = "The secret that it takes such orders by: they are signed with it.",
			.common = true},
		{.name = "peer.ca-file",
			.kind = FLAG_STRING,
			.into = &t.ca_file,
			.value_name = "PATH",
			.help = "Who signed its certificate.",
			.common = true},
		{.name = "peer.tls-cert-file",
			.kind = FLAG_STRING,
			.into = &t.cert_file,
			.value_name = "PATH",
			.help = "A certificate that makes this a peer, where peers show one.",
			.common = true},
		{.name = "peer.tls-key-file", .kind = FLAG_STRING, .into = &t.key_file, .value_name = "PATH", .help = "Its key.", .common = true},
	};
	struct flag_program program = {
		.usage = "varve drain [URL] [FLAGS]",
		.about = "A running varve (http://127.0.0.1:19291) leaves its ring, ships everything it holds, and exits; this waits until it has.",
		.flags = table,
		.n_flags = sizeof table / sizeof *table,
		.positionals = true,
	};
	struct flag_list args = {0};
	enum flags_action action = FLAGS_RUN;
	arena_init(&t.arena, MIB);
	errc rc = flags_parse(&program, argc, argv, &t.arena, &args, &action, &err);
	if (rc == OK && args.n > 1)
		rc = err_set(&err, ERR_INVALID, "usage: varve drain [URL]");
	struct arena words = t.arena; /* the flags' strings stay while questions come and go */
	arena_init(&t.arena, MIB);
	t.url = args.n > 0 ? args.v[0] : "http://127.0.0.1:19291";
	if (rc == OK && action == FLAGS_RUN) {
		const struct http_client_config http = {.connect_timeout_ms = 2000,
			.idle_timeout_ms = 5000,
			.total_timeout_ms = 5000,
			.ca_file = t.ca_file,
			.cert_file = t.cert_file,
			.key_file = t.key_file};
		rc = http_client_open(&http, &t.http, &err);
		if (rc == OK && t.secret_file)
			rc = trust_open(&(struct trust_config){.secret_file = t.secret_file}, &t.trust, &err);
		if (rc == OK)
			rc = run(&t, &err);
		http_client_close(t.http);
		trust_close(t.trust);
	}
	arena_free(&t.arena);
	arena_free(&words);
	return rc == OK ? EXIT_CLEAN : cmd_fail(EXIT_USAGE, &err);
}
