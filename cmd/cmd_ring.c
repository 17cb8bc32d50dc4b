/* cmd/cmd_ring.c - `varve ring show|check|where FILE` and `varve ring diff OLD NEW`: hashring files, before they are given to anybody; `varve ring simulate`: fleets that are only thought of.
 *
 * It reads files only and asks no server: what it says of a file is what every process that reads it will do.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "cmd/cmd_ring_int.h"

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

void ring_put_list(struct buf *b, const struct span *v, uint32_t n)
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
	ring_put_list(b, info->tenants, info->n_tenants);
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
		ring_put_list(b, added, n_added);
		buf_printf(b, ",\"removed\":");
		ring_put_list(b, removed, n_removed);
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

void ring_flush(struct ring_tool *t)
{
	if (t->out.n > 0)
		fwrite(t->out.p, 1, t->out.n, stdout);
	buf_clear(&t->out);
}

static errc run(struct ring_tool *t, const struct flag_list *args, struct err *err)
{
	static const char *const words[] = {"show", "check", "where", "diff"};
	errc rc = OK;
	struct ring_set *set = NULL, *was = NULL;
	const char *word = args->n > 0 ? args->v[0] : "";
	size_t i = 0;
	if (args->n == 1 && strcmp(word, "simulate") == 0)
		return ring_simulate(t, err);
	while (i < 4 && strcmp(word, words[i]) != 0)
		i++;
	CHECK(i < 4 && args->n == (i == 3 ? 3 : 2), ERR_INVALID,
		"usage: varve ring show|check|where FILE, varve ring diff OLD NEW, or varve ring simulate");
	CHECK(!t->tenant || strlen(t->tenant) <= LIMIT_RING_NAME_BYTES, ERR_INVALID, "--tenant has more than %d bytes", LIMIT_RING_NAME_BYTES);
	if (i == 3)
		TRY(ring_file_read(t, args->v[1], &was, err));
	TRY(ring_file_read(t, args->v[args->n - 1], &set, err));
	if (i == 0)
		TRY(show(t, set, err));
	else if (i == 1)
		check(t, args->v[1], set);
	else if (i == 2)
		TRY(ring_where(t, set, err));
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
			.help = "Form of what show, check, diff and simulate print.",
			.common = true},
		{.name = "nodes",
			.kind = FLAG_STRING,
			.into = &t.nodes,
			.fallback = "3,5,9,20,50,100,200",
			.value_name = "N,N,...",
			.help = "simulate: how many nodes there are, one step after the other.",
			.common = true},
		{.name = "series",
			.kind = FLAG_U64,
			.into = &t.series,
			.fallback = "0",
			.value_name = "COUNT",
			.help = "simulate: place so many series one by one as well, and count.",
			.common = true},
		{.name = "zones",
			.kind = FLAG_U64,
			.into = &t.zones,
			.fallback = "1",
			.value_name = "COUNT",
			.help = "simulate: nodes are in so many zones, in turn.",
			.common = true},
		{.name = "endpoint",
			.kind = FLAG_STRING,
			.into = &t.endpoint,
			.fallback = "varve-{}.varve.monitoring.svc.cluster.local:19291",
			.value_name = "PATTERN",
			.help = "simulate: addresses, {} being a number from 0: what is placed hangs on them.",
			.common = true},
	};
	struct flag_program program = {
		.usage = "varve ring show|check|where FILE [FLAGS]\n"
			 "       varve ring diff OLD NEW [FLAGS]\n"
			 "       varve ring simulate [FLAGS]",
		.about = "Hashring files (Thanos' hashrings.json). show: what part of the series each node has. check: is the file valid, and what "
			 "is odd in it.\n"
			 "where: the nodes of a series as a JSON array, replica 0 first, empty when no ring serves the tenant. diff: what part of "
			 "the\n"
			 "replicas a change moves. simulate: how even rings of so many nodes are, and what growing from one to the next moves. A "
			 "file that is refused: exit code 1, and why.",
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
		ring_flush(&t);
	buf_free(&t.out);
	arena_free(&t.arena);
	return rc == OK ? EXIT_CLEAN : cmd_fail(EXIT_USAGE, &err);
}
