/* cmd/cmd_ring_where.c - `varve ring where`: the nodes of one series, or of as many as a file or the standard input has.
 *
 * A line in, a line out, in the same order, whatever the tenant: what was answered before a line that is no series stays printed.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "block/block_matcher.h"
#include "cmd/cmd_ring_int.h"

static const size_t LINES_KEPT_BYTES = 1 << 20; /* of answers, before they are printed */

static errc put_owners(struct ring_tool *t, struct ring_set *set, struct span tenant, struct ring_hash *h, struct err *err)
{
	errc rc = OK;
	struct ring *r = NULL;
	uint32_t owners[LIMIT_RING_FACTOR], n = 0;
	struct span addresses[LIMIT_RING_FACTOR];
	uint64_t hash = ring_hash_end(h);
	TRY(ring_for_tenant(set, tenant, &r, err));
	if (r) {
		ring_owners(r, hash, owners);
		for (; n < ring_set_factor(set); n++)
			addresses[n] = ring_set_node(set, owners[n])->address;
	}
	ring_put_list(&t->out, addresses, n);
	buf_u8(&t->out, '\n');
	CHECK(!t->out.failed, ERR_NOMEM, "no memory");
fail:
	ring_unref(r);
	return rc;
}

static struct span text_of(const json_t *v)
{
	return span_of(json_string_value(v), json_string_length(v));
}

static errc where_case(struct ring_tool *t, struct ring_set *set, const char *name, uint64_t line, struct span text, struct err *err)
{
	errc rc = OK;
	json_error_t e;
	size_t i;
	json_t *c = json_loadb(text.p, text.n, JSON_ALLOW_NUL, &e), *label;
	struct ring_hash h;
	CHECK(json_is_object(c), ERR_INVALID, "%s:%" PRIu64 ": not a JSON object: %s", name, line, c ? "it is something else" : e.text);
	const json_t *tenant = json_object_get(c, "tenant"), *labels = json_object_get(c, "labels");
	CHECK(json_is_string(tenant) && json_string_length(tenant) <= LIMIT_RING_NAME_BYTES, ERR_INVALID,
		"%s:%" PRIu64 ": tenant must be a string of at most %d bytes", name, line, LIMIT_RING_NAME_BYTES);
	CHECK(json_is_array(labels), ERR_INVALID, "%s:%" PRIu64 ": labels must be a list of [name, value]", name, line);
	ring_hash_begin(&h, text_of(tenant));
	json_array_foreach(labels, i, label)
	{
		const json_t *key = json_array_get(label, 0), *value = json_array_get(label, 1);
		CHECK(json_array_size(label) == 2 && json_is_string(key) && json_is_string(value), ERR_INVALID,
			"%s:%" PRIu64 ": label %zu must be [name, value], two strings", name, line, i + 1);
		ring_hash_add(&h, text_of(key), text_of(value));
	}
	TRY(put_owners(t, set, text_of(tenant), &h, err));
fail:
	json_decref(c);
	return rc;
}

static bool blank(struct span s)
{
	for (size_t i = 0; i < s.n; i++)
		if (!strchr(" \t\r\n", s.p[i]) || !s.p[i])
			return false;
	return true;
}

static errc where_line(struct ring_tool *t, struct ring_set *set, const char *name, uint64_t line, struct span text, struct err *err)
{
	errc rc = OK;
	if (!blank(text))
		TRY(where_case(t, set, name, line, text, err));
	if (t->out.n > LINES_KEPT_BYTES)
		ring_flush(t);
fail:
	return rc;
}

static errc where_stdin(struct ring_tool *t, struct ring_set *set, struct err *err)
{
	errc rc = OK;
	char *text = NULL;
	size_t room = 0;
	ssize_t n;
	for (uint64_t line = 1; (n = getline(&text, &room, stdin)) >= 0; line++)
		TRY(where_line(t, set, "stdin", line, span_of(text, (size_t)n), err));
fail:
	free(text);
	return rc;
}

static errc where_file(struct ring_tool *t, struct ring_set *set, struct err *err)
{
	errc rc = OK;
	int fd = -1;
	uint64_t size;
	const void *map = NULL;
	TRY(io_open(t->cases, IO_READ, &fd, err));
	TRY(io_size(fd, &size, err));
	if (size == 0)
		goto fail;
	TRY(io_map(fd, size, &map, err));
	struct span rest = span_of(map, size);
	for (uint64_t line = 1; rest.n > 0; line++) {
		const char *end = memchr(rest.p, '\n', rest.n);
		size_t n = end ? (size_t)(end - rest.p) : rest.n;
		TRY(where_line(t, set, t->cases, line, span_of(rest.p, n), err));
		n += end != NULL;
		rest = span_of(rest.p + n, rest.n - n);
	}
fail:
	if (map)
		io_unmap(map, size);
	io_close(fd);
	return rc;
}

/* {a="b"}, as a selector says it; in the order that stands there. */
static errc where_labels(struct ring_tool *t, struct ring_set *set, struct err *err)
{
	errc rc = OK;
	struct matcher *m = NULL;
	size_t n = 0;
	struct ring_hash h;
	struct span tenant = span_cstr(t->tenant ? t->tenant : TENANT_DEFAULT);
	CHECK(tenant.n <= LIMIT_RING_NAME_BYTES, ERR_INVALID, "--tenant has %zu bytes, at most %d are allowed", tenant.n, LIMIT_RING_NAME_BYTES);
	TRY(matchers_parse(span_cstr(t->labels), &t->arena, &m, &n, err));
	ring_hash_begin(&h, tenant);
	for (size_t i = 0; i < n; i++) {
		CHECK(m[i].type == MATCH_EQ, ERR_INVALID, "--labels must be a series, {a=\"b\"}: no patterns, no !=");
		ring_hash_add(&h, m[i].name, m[i].value);
	}
	TRY(put_owners(t, set, tenant, &h, err));
fail:
	matchers_free(m, n);
	return rc;
}

errc ring_where(struct ring_tool *t, struct ring_set *set, struct err *err)
{
	if (!t->labels == !t->cases)
		return err_set(err, ERR_INVALID, "varve ring where needs --labels='{a=\"b\"}' (with --tenant), or --cases=FILE");
	if (t->cases && t->tenant)
		return err_set(err, ERR_INVALID, "--tenant goes with --labels: with --cases each line has its own");
	return t->labels ? where_labels(t, set, err) : strcmp(t->cases, "-") == 0 ? where_stdin(t, set, err) : where_file(t, set, err);
}
