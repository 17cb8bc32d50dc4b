/* cmd/cmd_ring.c - `varve ring show|check|where FILE` and `varve ring diff OLD NEW`: hashring files, before they are given to anybody.
 *
 * It reads files only and asks no server: what it says of a file is what every process that reads it will do.
 */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/tenant.h"
#include "block/block_matcher.h"
#include "cluster/ring.h"
#include "cmd/cmd_int.h"

static const size_t LINES_KEPT_BYTES = 1 << 20; /* of answers, before they are printed */

struct ring_tool {
	struct arena arena;
	struct buf out;
	const char *algorithm, *tenant, *labels, *cases, *output;
	uint64_t factor;
	bool json;
};

static errc ring_file_read(struct ring_tool *t, const char *path, struct ring_set **out, struct err *err)
{
	errc rc = OK;
	struct span text;
	struct ring_options opt = {.replication_factor = (uint32_t)t->factor};
	CHECK(t->factor >= 1 && t->factor <= LIMIT_RING_FACTOR, ERR_INVALID, "--replication-factor=%" PRIu64 " must be between 1 and %d", t->factor,
		LIMIT_RING_FACTOR);
	ring_algorithm_parse(t->algorithm, &opt.algorithm);
	TRY(io_read_file(path, LIMIT_RING_FILE_BYTES, &t->arena, &text, err));
	TRY(ring_set_parse(path, text, &opt, out, err));
fail:
	return rc;
}

/* ---- words that several subcommands print ---- */

static void put_member(struct buf *b, const char *name, struct span value)
{
	buf_printf(b, "\"%s\":", name);
	buf_json_string(b, value);
}

static void put_name(struct buf *b, const struct ring_info *info, uint32_t i)
{
	if (info->name.n > 0)
		buf_printf(b, "ring \"%.*s\"", SPAN_ARG(info->name));
	else
		buf_printf(b, "ring %u", i + 1);
}

static void put_spans(struct buf *b, const struct span *v, uint32_t n)
{
	buf_u8(b, '[');
	for (uint32_t i = 0; i < n; i++) {
		if (i)
			buf_u8(b, ',');
		buf_json_string(b, v[i]);
	}
	buf_u8(b, ']');
}

struct balance {
	double *shares; /* of all replicas, by the set's node numbers */
	double max_over_mean, min_over_mean;
};

static errc balance_of(struct ring_tool *t, const struct ring *r, struct balance *out, struct err *err)
{
	errc rc = OK;
	const struct ring_set *set = ring_set_of(r);
	const uint16_t *nodes;
	uint32_t n = ring_nodes(r, &nodes);
	double most = 0, least = 1;
	out->shares = arena_calloc(&t->arena, ring_set_n_nodes(set), sizeof *out->shares);
	CHECK(out->shares, ERR_NOMEM, "no memory");
	TRY(ring_shares(r, out->shares, err));
	for (uint32_t k = 0; k < n; k++) {
		double *share = &out->shares[nodes[k]];
		*share /= ring_set_factor(set);
		most = *share > most ? *share : most;
		least = *share < least ? *share : least;
	}
	out->max_over_mean = most * n;
	out->min_over_mean = least * n;
fail:
	return rc;
}

/* ---- show ---- */

static void show_json(struct buf *b, const struct ring *r, const struct balance *bal)
{
	const struct ring_info *info = ring_info(r);
	const uint16_t *nodes;
	uint32_t n = ring_nodes(r, &nodes);
	buf_printf(b, "{");
	put_member(b, "name", info->name);
	buf_printf(b, ",\"algorithm\":\"%s\",\"tenant_matcher_type\":\"%s\",\"tenants\":", ring_algorithm_name(info->algorithm),
		info->glob ? "glob" : "exact");
	put_spans(b, info->tenants, info->n_tenants);
	buf_printf(b, ",\"zones\":%u,\"shard_size\":%u,\"max_over_mean\":%.6f,\"min_over_mean\":%.6f,\"nodes\":[", info->n_zones, info->shard_size,
		bal->max_over_mean, bal->min_over_mean);
	for (uint32_t k = 0; k < n; k++) {
		buf_printf(b, "%s\n{", k ? "," : "");
		put_member(b, "address", ring_set_node(ring_set_of(r), nodes[k])->address);
		buf_u8(b, ',');
		put_member(b, "az", ring_az(r, k));
		buf_printf(b, ",\"share\":%.9f}", bal->shares[nodes[k]]);
	}
	buf_printf(b, "]}");
}

static void show_table(struct buf *b, const struct ring *r, const struct balance *bal)
{
	const struct ring_info *info = ring_info(r);
	const uint16_t *nodes;
	uint32_t n = ring_nodes(r, &nodes), width = 8, shown = 0;
	buf_u8(b, '\n');
	put_name(b, info, ring_index(r));
	buf_printf(b, ": %s, %u nodes", ring_algorithm_name(info->algorithm), info->n_nodes);
	if (info->n_zones > 1)
		buf_printf(b, " in %u zones", info->n_zones);
	if (info->shard_size > 0)
		buf_printf(b, ", shards of %u", info->shard_size);
	buf_printf(b, info->n_tenants ? ", tenants%s" : ", all tenants", info->glob ? " like" : "");
	for (; shown < info->n_tenants && shown < 8; shown++)
		buf_printf(b, " %.*s", SPAN_ARG(info->tenants[shown]));
	if (shown < info->n_tenants)
		buf_printf(b, " and %u more", info->n_tenants - shown);
	buf_printf(b, "\nthe fullest node has %.3f of the mean, the emptiest %.3f\n", bal->max_over_mean, bal->min_over_mean);
	for (uint32_t k = 0; k < n; k++) {
		size_t w = ring_set_node(ring_set_of(r), nodes[k])->address.n;
		width = w > width ? (uint32_t)w : width;
	}
	for (uint32_t k = 0; k < n; k++)
		buf_printf(b, "  %-*.*s  %7.3f %%  %.*s\n", (int)width, SPAN_ARG(ring_set_node(ring_set_of(r), nodes[k])->address),
			100 * bal->shares[nodes[k]], SPAN_ARG(ring_az(r, k)));
}

static errc show(struct ring_tool *t, struct ring_set *set, struct err *err)
{
	errc rc = OK;
	struct buf *b = &t->out;
	struct ring *r = NULL;
	uint32_t n = t->tenant ? 1 : ring_set_n_rings(set);
	if (t->json)
		buf_printf(b, "{\"epoch\":\"%016" PRIx64 "\",\"replication_factor\":%u,\"nodes\":%u,\"rings\":[", ring_set_epoch(set),
			ring_set_factor(set), ring_set_n_nodes(set));
	else
		buf_printf(b, "epoch %016" PRIx64 ", replication factor %u, %u nodes\n", ring_set_epoch(set), ring_set_factor(set),
			ring_set_n_nodes(set));
	for (uint32_t i = 0; i < n; i++) {
		struct balance bal;
		if (t->tenant)
			TRY(ring_for_tenant(set, span_cstr(t->tenant), &r, err));
		else
			r = ring_set_ring(set, i);
		CHECK(r, ERR_NOTFOUND, "no ring serves tenant %s", t->tenant);
		TRY(balance_of(t, r, &bal, err));
		if (t->json) {
			buf_printf(b, "%s\n", i ? "," : "");
			show_json(b, r, &bal);
		} else {
			show_table(b, r, &bal);
		}
		ring_unref(r);
		r = NULL;
	}
	if (t->json)
		buf_printf(b, "]}\n");
fail:
	ring_unref(r);
	return rc;
}

/* ---- check ---- */

static void check(struct ring_tool *t, const char *path, const struct ring_set *set)
{
	struct buf *b = &t->out;
	struct span rest = ring_set_remarks(set);
	if (t->json) {
		buf_printf(b, "{\"valid\":true,\"epoch\":\"%016" PRIx64 "\",\"rings\":%u,\"nodes\":%u,\"remarks\":[", ring_set_epoch(set),
			ring_set_n_rings(set), ring_set_n_nodes(set));
		for (bool first = true; rest.n > 0; first = false) {
			struct span line = span_of(rest.p, (size_t)((const char *)memchr(rest.p, '\n', rest.n) - rest.p));
			if (!first)
				buf_u8(b, ',');
			buf_json_string(b, line);
			rest = span_of(rest.p + line.n + 1, rest.n - line.n - 1);
		}
		buf_printf(b, "]}\n");
		return;
	}
	buf_printf(b, "%s: valid; epoch %016" PRIx64 ", %u ring%s, %u nodes, replication factor %u\n", path, ring_set_epoch(set),
		ring_set_n_rings(set), ring_set_n_rings(set) == 1 ? "" : "s", ring_set_n_nodes(set), ring_set_factor(set));
	buf_span(b, rest);
}

/* ---- where ---- */

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
	put_spans(&t->out, addresses, n);
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

static void flush(struct ring_tool *t)
{
	fwrite(t->out.p, 1, t->out.n, stdout);
	buf_clear(&t->out);
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
		flush(t);
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

static errc where(struct ring_tool *t, struct ring_set *set, struct err *err)
{
	if (!t->labels == !t->cases)
		return err_set(err, ERR_INVALID, "varve ring where needs --labels='{a=\"b\"}' (with --tenant), or --cases=FILE");
	if (t->cases && t->tenant)
		return err_set(err, ERR_INVALID, "--tenant goes with --labels: with --cases each line has its own");
	return t->labels ? where_labels(t, set, err) : strcmp(t->cases, "-") == 0 ? where_stdin(t, set, err) : where_file(t, set, err);
}

/* ---- diff ---- */

/* Addresses of `a` that `b` does not have. */
static errc missing(struct ring_tool *t, const struct ring_set *a, const struct ring_set *b, struct span **out, uint32_t *n, struct err *err)
{
	errc rc = OK;
	uint32_t node;
	*n = 0;
	*out = arena_calloc(&t->arena, ring_set_n_nodes(a), sizeof **out);
	CHECK(*out, ERR_NOMEM, "no memory");
	for (uint32_t i = 0; i < ring_set_n_nodes(a); i++)
		if (!ring_set_find(b, ring_set_node(a, i)->address, &node))
			(*out)[(*n)++] = ring_set_node(a, i)->address;
fail:
	return rc;
}

static errc diff_ring(struct ring_tool *t, const struct ring *was, const struct ring *now, struct err *err)
{
	errc rc = OK;
	struct buf *b = &t->out;
	const struct ring_info *info = ring_info(now);
	const uint16_t *nodes;
	struct balance bal, old_bal = {0};
	struct ring_change change = {0};
	TRY(balance_of(t, now, &bal, err));
	if (was) {
		TRY(balance_of(t, was, &old_bal, err));
		TRY(ring_compare(was, now, &change, err));
	}
	uint32_t n = ring_nodes(now, &nodes), n_old = was ? ring_nodes(was, &nodes) : 0;
	if (t->json) {
		buf_printf(b, "{");
		put_member(b, "name", info->name);
		buf_printf(b, ",\"new\":%s,\"nodes_old\":%u,\"nodes_new\":%u,\"added\":%u,\"removed\":%u", was ? "false" : "true", n_old, n,
			change.added, change.removed);
		buf_printf(b, ",\"moved\":%.9f,\"ideal\":%.9f,\"max_over_mean_old\":%.6f,\"max_over_mean_new\":%.6f}", change.moved, change.ideal,
			old_bal.max_over_mean, bal.max_over_mean);
		return OK;
	}
	buf_u8(b, '\n');
	put_name(b, info, ring_index(now));
	if (was)
		buf_printf(b,
			": %u nodes, were %u: %u more, %u gone\n"
			"%.3f %% of the replicas move to a node that did not have the series; with equal shares at least %.3f %% would\n"
			"the fullest node has %.3f of the mean, it had %.3f\n",
			n, n_old, change.added, change.removed, 100 * change.moved, 100 * change.ideal, bal.max_over_mean, old_bal.max_over_mean);
	else
		buf_printf(b, ": new, with %u nodes; the fullest has %.3f of the mean\n", n, bal.max_over_mean);
fail:
	return rc;
}

static errc diff_rings(struct ring_tool *t, struct ring_set *was, struct ring_set *now, struct err *err)
{
	errc rc = OK;
	struct ring *a = NULL, *b = NULL;
	for (uint32_t i = 0; i < (t->tenant ? 1 : ring_set_n_rings(now)); i++) {
		uint32_t old;
		if (t->tenant) {
			TRY(ring_for_tenant(was, span_cstr(t->tenant), &a, err));
			TRY(ring_for_tenant(now, span_cstr(t->tenant), &b, err));
			CHECK(b, ERR_NOTFOUND, "no ring of the new file serves tenant %s", t->tenant);
		} else {
			b = ring_set_ring(now, i);
			a = ring_set_match(was, now, i, &old) ? ring_set_ring(was, old) : NULL;
		}
		if (t->json)
			buf_printf(&t->out, "%s\n", i ? "," : "");
		TRY(diff_ring(t, a, b, err));
		ring_unref(a);
		ring_unref(b);
		a = b = NULL;
	}
fail:
	ring_unref(a);
	ring_unref(b);
	return rc;
}

static errc diff(struct ring_tool *t, struct ring_set *was, struct ring_set *now, struct err *err)
{
	errc rc = OK;
	struct span *added, *removed;
	uint32_t n_added, n_removed;
	struct buf *b = &t->out;
	TRY(missing(t, now, was, &added, &n_added, err));
	TRY(missing(t, was, now, &removed, &n_removed, err));
	if (t->json) {
		buf_printf(
			b, "{\"epoch_old\":\"%016" PRIx64 "\",\"epoch_new\":\"%016" PRIx64 "\",\"added\":", ring_set_epoch(was), ring_set_epoch(now));
		put_spans(b, added, n_added);
		buf_printf(b, ",\"removed\":");
		put_spans(b, removed, n_removed);
		buf_printf(b, ",\"rings\":[");
	} else {
		buf_printf(b, "epoch %016" PRIx64 " -> %016" PRIx64 "\n", ring_set_epoch(was), ring_set_epoch(now));
		for (uint32_t i = 0; i < n_added; i++)
			buf_printf(b, "  + %.*s\n", SPAN_ARG(added[i]));
		for (uint32_t i = 0; i < n_removed; i++)
			buf_printf(b, "  - %.*s\n", SPAN_ARG(removed[i]));
	}
	TRY(diff_rings(t, was, now, err));
	if (t->json)
		buf_printf(b, "]}\n");
fail:
	return rc;
}

/* ---- the command ---- */

static errc run(struct ring_tool *t, const struct flag_list *args, struct err *err)
{
	static const char *const words[] = {"show", "check", "where", "diff"};
	errc rc = OK;
	struct ring_set *set = NULL, *was = NULL;
	const char *word = args->n > 0 ? args->v[0] : "";
	size_t i = 0;
	while (i < 4 && strcmp(word, words[i]) != 0)
		i++;
	CHECK(i < 4 && args->n == (i == 3 ? 3 : 2), ERR_INVALID, "usage: varve ring show|check|where FILE, or varve ring diff OLD NEW");
	CHECK(!t->tenant || strlen(t->tenant) <= LIMIT_RING_NAME_BYTES, ERR_INVALID, "--tenant has more than %d bytes", LIMIT_RING_NAME_BYTES);
	if (i == 3)
		TRY(ring_file_read(t, args->v[1], &was, err));
	TRY(ring_file_read(t, args->v[args->n - 1], &set, err));
	if (i == 0)
		TRY(show(t, set, err));
	else if (i == 1)
		check(t, args->v[1], set);
	else if (i == 2)
		TRY(where(t, set, err));
	else
		TRY(diff(t, was, set, err));
	CHECK(!t->out.failed, ERR_NOMEM, "no memory");
fail:
	ring_set_unref(set);
	ring_set_unref(was);
	return rc;
}

int cmd_ring(int argc, char **argv)
{
	static struct ring_tool t;
	struct err err = {0};
	struct flag table[] = {
		{.name = "replication-factor",
			.kind = FLAG_U64,
			.into = &t.factor,
			.fallback = "1",
			.value_name = "N",
			.help = "How many nodes hold each series.",
			.common = true},
		{.name = "hashrings.algorithm",
			.kind = FLAG_CHOICE,
			.into = &t.algorithm,
			.fallback = "ketama",
			.value_name = "ketama|hashmod",
			.help = "Of rings whose file names none. Thanos' own default is hashmod.",
			.common = true},
		{.name = "tenant",
			.kind = FLAG_STRING,
			.into = &t.tenant,
			.value_name = "NAME",
			.help = "show, diff: the ring of this tenant only, after shuffle sharding. where: with --labels, else default-tenant.",
			.common = true},
		{.name = "labels",
			.kind = FLAG_STRING,
			.into = &t.labels,
			.value_name = "SERIES",
			.help = "where: a series, {__name__=\"up\",job=\"x\"}, its labels in the order in which it is sent (Prometheus sorts them by "
				"name).",
			.common = true},
		{.name = "cases",
			.kind = FLAG_STRING,
			.into = &t.cases,
			.value_name = "FILE",
			.help = "where: a series a line, {\"tenant\": \"t\", \"labels\": [[\"name\", \"value\"], ...]}; - is the standard input.",
			.common = true},
		{.name = "output",
			.kind = FLAG_CHOICE,
			.into = &t.output,
			.fallback = "table",
			.value_name = "table|json",
			.help = "Form of what show, check and diff print.",
			.common = true},
	};
	struct flag_program program = {
		.usage = "varve ring show|check|where FILE [FLAGS]\n"
			 "       varve ring diff OLD NEW [FLAGS]",
		.about = "Hashring files (Thanos' hashrings.json). show: what part of the series each node has. check: is the file valid, and what "
			 "is odd in it.\n"
			 "where: the nodes of a series as a JSON array, replica 0 first, empty when no ring serves the tenant. diff: what part of "
			 "the\n"
			 "replicas a change moves. A file that is refused: exit code 1, and why.",
		.flags = table,
		.n_flags = sizeof table / sizeof *table,
		.positionals = true,
	};
	struct flag_list args = {0};
	enum flags_action action = FLAGS_RUN;
	arena_init(&t.arena, 64 * MIB);
	buf_init(&t.out, GIB);
	errc rc = flags_parse(&program, argc, argv, &t.arena, &args, &action, &err);
	t.json = rc == OK && strcmp(t.output, "json") == 0;
	if (rc == OK && action == FLAGS_RUN)
		rc = run(&t, &args, &err);
	if (rc == OK || t.cases)
		flush(&t);
	buf_free(&t.out);
	arena_free(&t.arena);
	return rc == OK ? EXIT_CLEAN : cmd_fail(EXIT_USAGE, &err);
}
