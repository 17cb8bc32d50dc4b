/* cmd/cmd_bucket.c - `varve bucket ls|inspect ULID|verify [ULID]|rebuild`: the blocks, with or beside a running server.
 *
 * The catalog of --data-dir is used where there is one (read only: SQLite lets a server write beside us). Without one, as on an operator's laptop, the
 * bucket is read into a catalog of its own in a temporary file.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/io.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/log.h"
#include "cmd/cmd_int.h"

struct tool {
	struct arena arena;
	const char *data_dir, *objstore_config_file, *objstore_config, *output;
	bool json;
	struct bucket *bucket;
	struct catalog *catalog;
	char *temporary; /* catalog made for this call, removed at the end */
	struct buf out;
};

static bool to_terminal(void)
{
	return getenv("TERM") != NULL;
}

static void progress(void *arg, uint64_t done, uint64_t total)
{
	(void)arg;
	if (to_terminal())
		fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " meta.json read", done, total);
	else
		fprintf(stderr, "%" PRIu64 " of %" PRIu64 " meta.json read\n", done, total);
}

static errc open_bucket(struct tool *t, struct err *err)
{
	errc rc = OK;
	struct span yaml = span_cstr(t->objstore_config ? t->objstore_config : "");
	const char *name = t->objstore_config_file ? t->objstore_config_file : "--objstore.config";
	if (t->objstore_config_file)
		TRY(io_read_file(t->objstore_config_file, LIMIT_CONFIG_BYTES, &t->arena, &yaml, err));
	char *dir = arena_printf(&t->arena, "%s/bucket", t->data_dir);
	CHECK(dir, ERR_NOMEM, "no memory");
	if (yaml.n == 0) {
		/* Opening it would make one: an empty answer to a mistyped path. */
		struct io_stat st;
		TRY(io_stat(dir, &st, err));
		CHECK(st.exists, ERR_NOTFOUND, "there is no bucket at %s: name the server's --data-dir, or its --objstore.config-file", dir);
	}
	TRY(bucket_open(name, yaml, dir, &t->bucket, err));
fail:
	return rc;
}

static errc read_bucket(struct tool *t, bool reread, struct catalog_audit_stats *st, struct err *err)
{
	const struct catalog_audit_options opt = {.reread = reread, .progress = progress};
	return catalog_audit(t->catalog, t->bucket, &opt, st, err);
}

/* The catalog that answers: the data directory's, else one made from the bucket. */
static errc open_catalog(struct tool *t, struct err *err)
{
	errc rc = OK;
	bool rebuilt;
	struct io_stat st;
	char *path = arena_printf(&t->arena, "%s/catalog.sqlite", t->data_dir);
	CHECK(path, ERR_NOMEM, "no memory");
	TRY(io_stat(path, &st, err));
	if (st.exists) {
		const struct catalog_config cfg = {.path = path, .node = "", .read_only = true};
		rc = catalog_open(&cfg, &t->catalog, &rebuilt, err);
		if (rc == OK && !rebuilt)
			return OK;
		/* Damaged, or never filled: the bucket itself is asked, and the file left to the server. */
		if (rc == OK)
			catalog_close(t->catalog);
		t->catalog = NULL;
	}
	const char *tmp = getenv("TMPDIR");
	t->temporary = arena_printf(&t->arena, "%s/varve-catalog-%s", tmp && tmp[0] ? tmp : "/tmp", ulid_text(ulid_new()).s);
	CHECK(t->temporary, ERR_NOMEM, "no memory");
	const struct catalog_config cfg = {.path = t->temporary, .node = "tool"};
	TRY(catalog_open(&cfg, &t->catalog, &rebuilt, err));
	struct catalog_audit_stats stats;
	TRY(read_bucket(t, false, &stats, err));
fail:
	return rc;
}

static void close_tool(struct tool *t)
{
	if (t->catalog)
		catalog_close(t->catalog);
	if (t->temporary) {
		static const char *const suffixes[] = {"", "-wal", "-shm"};
		for (size_t i = 0; i < 3; i++) {
			char *path = arena_printf(&t->arena, "%s%s", t->temporary, suffixes[i]);
			if (path)
				(void)!io_unlink(path, NULL);
		}
	}
	if (t->bucket)
		bucket_close(t->bucket);
	buf_free(&t->out);
	arena_free(&t->arena);
}

/* ---- ls ---- */

static const char *utc(int64_t ms, char *out, size_t n)
{
	time_t s = (time_t)(ms / 1000);
	struct tm tm;
	gmtime_r(&s, &tm);
	strftime(out, n, "%Y-%m-%d %H:%M:%S", &tm);
	return out;
}

static void print_table(struct tool *t, const struct catalog_block *b, size_t n)
{
	char from[32], to[32], size[32], res[32], labels[256];
	uint64_t bytes = 0, samples = 0;
	buf_printf(&t->out, "%-26s  %-16s  %-19s  %-19s  %4s  %3s  %-11s  %10s  %12s  %9s  %s\n", "ULID", "TENANT", "FROM (UTC)", "UNTIL", "RES",
		"LVL", "STATE", "SERIES", "SAMPLES", "SIZE", "LABELS");
	for (size_t i = 0; i < n; i++) {
		buf_printf(&t->out, "%s  %-16.*s  %s  %s  %4s  %3" PRIu32 "  %-11s  %10" PRIu64 "  %12" PRIu64 "  %9s  %s%s%.*s\n",
			ulid_text(b[i].ulid).s, SPAN_ARG(b[i].tenant), utc(b[i].mint, from, sizeof from), utc(b[i].maxt, to, sizeof to),
			b[i].resolution_ms ? format_duration_ms(b[i].resolution_ms, res, sizeof res) : "raw", b[i].level,
			b[i].marked && b[i].state == BLOCK_LIVE ? "marked" : block_state_name(b[i].state), b[i].n_series, b[i].n_samples,
			format_size(b[i].bytes, size, sizeof size), labels_format(b[i].ext_labels, labels, sizeof labels), b[i].reason.n ? " " : "",
			SPAN_ARG(b[i].reason));
		bytes += b[i].bytes;
		samples += b[i].n_samples;
	}
	buf_printf(&t->out, "%zu blocks, %" PRIu64 " samples, %s\n", n, samples, format_size(bytes, size, sizeof size));
}

static errc run_ls(struct tool *t, struct err *err)
{
	struct catalog_block *b;
	size_t n;
	errc rc = catalog_list(t->catalog, &t->arena, &b, &n, err);
	if (rc != OK)
		return rc;
	if (t->json)
		blocks_json(b, n, &t->out);
	else
		print_table(t, b, n);
	return OK;
}

/* ---- inspect ---- */

static errc run_inspect(struct tool *t, const char *word, struct err *err)
{
	errc rc = OK;
	struct ulid u;
	struct catalog_block b;
	struct span json;
	CHECK(ulid_parse(span_cstr(word), &u), ERR_INVALID, "'%s' is not a ULID (26 characters, as `varve bucket ls` shows them)", word);
	TRY(catalog_get(t->catalog, u, &t->arena, &b, err));
	TRY(catalog_meta_json(t->catalog, u, &t->arena, &json, err));
	if (t->json) {
		struct buf list;
		buf_init(&list, 64 * MIB);
		blocks_json(&b, 1, &list);
		/* The list's one element, with the meta.json and places beside it. */
		buf_printf(&t->out,
			"{\"block\":%.*s,\"in_bucket\":%s,\"local\":%s,\"marked\":%s,\"meta\":", (int)(list.n - sizeof "{\"blocks\":[\n" - 2),
			(char *)list.p + sizeof "{\"blocks\":[\n" - 1, b.in_bucket ? "true" : "false", b.local ? "true" : "false",
			b.marked ? "true" : "false");
		buf_put(&t->out, json.n ? json.p : "null", json.n ? json.n : 4);
		buf_printf(&t->out, "}\n");
		buf_free(&list);
	} else {
		char from[32], to[32], size[32], labels[1024];
		buf_printf(&t->out,
			"ULID        %s\ntenant      %.*s\nlabels      %s\ntime        %s .. %s UTC (%" PRId64 " .. %" PRId64
			")\nresolution  %" PRId64 " ms\nlevel       %" PRIu32
			"\nsource      %.*s\nstate       %s%s%.*s%s\nplaces      %s%s\nseries      %" PRIu64 "\nsamples     %" PRIu64
			"\nchunks      %" PRIu64 "\nsize        %s\n",
			ulid_text(u).s, SPAN_ARG(b.tenant), labels_format(b.ext_labels, labels, sizeof labels), utc(b.mint, from, sizeof from),
			utc(b.maxt, to, sizeof to), b.mint, b.maxt, b.resolution_ms, b.level, SPAN_ARG(b.source), block_state_name(b.state),
			b.reason.n ? ": " : "", SPAN_ARG(b.reason), b.marked ? " (marked for deletion)" : "", b.in_bucket ? "bucket " : "",
			b.local ? "local disk" : "", b.n_series, b.n_samples, b.n_chunks, format_size(b.bytes, size, sizeof size));
		buf_printf(&t->out, "\nmeta.json\n");
		buf_span(&t->out, json);
	}
fail:
	return rc;
}

/* ---- verify ---- */

struct tool_files {
	struct block_files base;
	struct bucket *bucket;
	char ulid[ULID_TEXT_BYTES + 1];
};

static errc tool_read(struct block_files *base, const char *rel, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct tool_files *f = (struct tool_files *)base;
	char key[256];
	snprintf(key, sizeof key, "%s/%s", f->ulid, rel);
	return bucket_get_range(f->bucket, key, off, n, buf, err);
}

static errc tool_size(struct block_files *base, const char *rel, uint64_t *size, struct err *err)
{
	struct tool_files *f = (struct tool_files *)base;
	char key[256];
	snprintf(key, sizeof key, "%s/%s", f->ulid, rel);
	return bucket_size(f->bucket, key, size, err);
}

static void tool_close(struct block_files *base)
{
	free(base);
}

struct verdicts {
	struct tool *t;
	struct ulid ulid;
	uint64_t problems;
	bool first;
};

static void problem(void *arg, const char *text)
{
	struct verdicts *v = arg;
	v->problems++;
	if (v->t->json) {
		buf_printf(&v->t->out, "%s", v->first ? "" : ",");
		buf_json_string(&v->t->out, span_cstr(text));
	} else {
		buf_printf(&v->t->out, "  %s\n", text);
	}
	v->first = false;
}

static errc verify_one(struct tool *t, const struct catalog_block *b, uint64_t *problems, struct err *err)
{
	errc rc = OK;
	struct arena a;
	struct span json;
	struct block_meta meta;
	struct block_files *files = NULL;
	struct verdicts v = {.t = t, .ulid = b->ulid, .first = true};
	arena_init(&a, 4 * LIMIT_META_JSON_BYTES);
	TRY(catalog_meta_json(t->catalog, b->ulid, &a, &json, err));
	if (t->json)
		buf_printf(&t->out, "{\"ulid\":\"%s\",\"problems\":[", ulid_text(b->ulid).s);
	else
		buf_printf(&t->out, "%s  %s\n", ulid_text(b->ulid).s, b->in_bucket ? "bucket" : "local");
	rc = block_meta_parse("meta.json", json, &a, &meta, err);
	if (rc != OK) {
		problem(&v, err->msg);
		rc = OK;
	} else if (b->in_bucket) {
		struct tool_files *f = calloc(1, sizeof *f);
		CHECK(f, ERR_NOMEM, "no memory");
		*f = (struct tool_files){.base = {tool_read, tool_size, tool_close}, .bucket = t->bucket};
		memcpy(f->ulid, ulid_text(b->ulid).s, sizeof f->ulid);
		files = &f->base;
	} else {
		char *dir = arena_printf(&a, "%s/blocks/%s", t->data_dir, ulid_text(b->ulid).s);
		CHECK(dir, ERR_NOMEM, "no memory");
		TRY(block_files_dir(dir, &files, err));
	}
	if (files)
		TRY(block_verify(files, &meta, problem, &v, err));
	if (t->json)
		buf_printf(&t->out, "]}");
	else if (v.problems == 0)
		buf_printf(&t->out, "  healthy\n");
	*problems += v.problems;
fail:
	if (files)
		files->close(files);
	arena_free(&a);
	return rc;
}

static errc run_verify(struct tool *t, const char *word, bool *bad, struct err *err)
{
	errc rc = OK;
	struct catalog_block one, *b = &one;
	size_t n = 1, done = 0;
	uint64_t problems = 0;
	struct ulid u;
	if (word) {
		CHECK(ulid_parse(span_cstr(word), &u), ERR_INVALID, "'%s' is not a ULID (26 characters, as `varve bucket ls` shows them)", word);
		TRY(catalog_get(t->catalog, u, &t->arena, &one, err));
	} else {
		TRY(catalog_list(t->catalog, &t->arena, &b, &n, err));
	}
	if (t->json)
		buf_printf(&t->out, "{\"blocks\":[");
	for (; done < n; done++) {
		if (t->json && done > 0)
			buf_printf(&t->out, ",\n");
		TRY(verify_one(t, &b[done], &problems, err));
		if (to_terminal())
			fprintf(stderr, "\r%zu of %zu blocks verified", done + 1, n);
	}
	if (to_terminal())
		fprintf(stderr, "\n");
	if (t->json)
		buf_printf(&t->out, "],\"problems\":%" PRIu64 "}\n", problems);
	else
		buf_printf(&t->out, "%zu blocks verified, %" PRIu64 " problems\n", n, problems);
	*bad = problems > 0;
fail:
	return rc;
}

/* ---- rebuild ---- */

/* Reads every meta.json of the bucket again into the data directory's catalog; beside a running server the rows change under it, one transaction each. */
static errc run_rebuild(struct tool *t, struct err *err)
{
	errc rc = OK;
	bool rebuilt;
	struct catalog_audit_stats st;
	char *path = arena_printf(&t->arena, "%s/catalog.sqlite", t->data_dir);
	CHECK(path, ERR_NOMEM, "no memory");
	TRY(io_mkdirs(t->data_dir, err));
	const struct catalog_config cfg = {.path = path, .node = "rebuild"};
	TRY(catalog_open(&cfg, &t->catalog, &rebuilt, err));
	TRY(read_bucket(t, true, &st, err));
	if (t->json)
		buf_printf(&t->out,
			"{\"blocks\":%" PRIu64 ",\"added\":%" PRIu64 ",\"changed\":%" PRIu64 ",\"removed\":%" PRIu64 ",\"partial\":%" PRIu64
			",\"bad\":%" PRIu64 ",\"list_pages\":%" PRIu64 ",\"ms\":%" PRId64 "}\n",
			st.blocks, st.added, st.changed, st.removed, st.partial, st.bad, st.pages, st.duration_ms);
	else
		buf_printf(&t->out,
			"%" PRIu64 " blocks read in %" PRId64 " ms: %" PRIu64 " new, %" PRIu64 " read again, %" PRIu64 " gone, %" PRIu64
			" half uploaded, %" PRIu64 " that can't be read\n",
			st.blocks, st.duration_ms, st.added, st.changed, st.removed, st.partial, st.bad);
fail:
	return rc;
}

int cmd_bucket(int argc, char **argv)
{
	static const char *const verbs[] = {"ls", "inspect", "verify", "rebuild"};
	struct err err = {0};
	struct tool t = {0};
	arena_init(&t.arena, 4 * GIB);
	buf_init(&t.out, 4 * GIB);
	struct flag table[] = {
		{.name = "data-dir",
			.kind = FLAG_STRING,
			.into = &t.data_dir,
			.fallback = "./data",
			.value_name = "DIR",
			.help = "Data directory of the server, for its catalog.",
			.common = true},
		{.name = "objstore.config-file",
			.kind = FLAG_STRING,
			.into = &t.objstore_config_file,
			.value_name = "FILE",
			.help = "Object store as Thanos' YAML. Without it: DATA-DIR/bucket.",
			.common = true},
		{.name = "objstore.config",
			.kind = FLAG_STRING,
			.into = &t.objstore_config,
			.value_name = "YAML",
			.help = "The same, inline.",
			.common = true},
		{.name = "output",
			.kind = FLAG_CHOICE,
			.into = &t.output,
			.fallback = "table",
			.value_name = "table|json",
			.help = "Form of the answer.",
			.common = true},
	};
	struct flag_program program = {
		.usage = "varve bucket ls                 blocks by tenant and time\n"
			 "       varve bucket inspect ULID       one block: its row and its meta.json\n"
			 "       varve bucket verify [ULID]      reads blocks whole and names what is wrong; exit code 2 when something is\n"
			 "       varve bucket rebuild            reads every meta.json of the bucket into the catalog again",
		.about = "Works with or beside a running server, and without one.",
		.flags = table,
		.n_flags = sizeof table / sizeof table[0],
		.positionals = true,
	};
	struct flag_list args = {0};
	enum flags_action action = FLAGS_RUN;
	bool bad = false;
	errc rc = flags_parse(&program, argc, argv, &t.arena, &args, &action, &err);
	if (rc != OK || action == FLAGS_EXIT_OK)
		goto fail;
	log_setup(LOG_WARN, LOG_LOGFMT);
	t.json = strcmp(t.output, "json") == 0;
	const char *verb = args.n > 0 ? args.v[0] : "", *word = args.n > 1 ? args.v[1] : NULL;
	size_t takes = strcmp(verb, "inspect") == 0 ? 2 : strcmp(verb, "verify") == 0 && word ? 2 : 1;
	bool known = false;
	for (size_t i = 0; i < 4; i++)
		known |= strcmp(verb, verbs[i]) == 0;
	if (!known || args.n != takes) {
		const char *meant = known ? NULL : did_you_mean(verb, verbs, 4);
		rc = err_set(&err, ERR_INVALID, "usage: varve bucket ls|inspect ULID|verify [ULID]|rebuild%s%s%s", meant ? "; did you mean '" : "",
			meant ? meant : "", meant ? "'?" : "");
		goto fail;
	}
	TRY(open_bucket(&t, &err));
	if (strcmp(verb, "rebuild") == 0) {
		TRY(run_rebuild(&t, &err));
	} else {
		TRY(open_catalog(&t, &err));
		if (strcmp(verb, "ls") == 0)
			TRY(run_ls(&t, &err));
		else if (strcmp(verb, "inspect") == 0)
			TRY(run_inspect(&t, word, &err));
		else
			TRY(run_verify(&t, word, &bad, &err));
	}
fail:
	if (t.out.n > 0)
		fwrite(t.out.p, 1, t.out.n, stdout);
	int code = rc == OK ? (bad ? EXIT_DAMAGED : EXIT_CLEAN) : cmd_fail(rc == ERR_CORRUPT ? EXIT_DAMAGED : EXIT_USAGE, &err);
	close_tool(&t);
	return code;
}
