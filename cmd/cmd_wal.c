/* cmd/cmd_wal.c - `varve wal inspect DIR`: what is in a log, and from where a start reads it. Read only, also beside a running server. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/io.h"
#include "base/limits.h"
#include "cmd/cmd_int.h"

/* The snapshot that a start begins with, as one more member or line of the report. NULL: there is none. */
static const char *snapshot_line(struct arena *a, const char *data_dir, bool json)
{
	struct head_snapshot_info s;
	struct err err = {0};
	const char *path = arena_printf(a, "%s/head/snapshot", data_dir);
	errc rc = path ? head_snapshot_look(path, &s, &err) : ERR_NOMEM;
	if (rc == ERR_NOTFOUND)
		return NULL;
	if (rc != OK)
		return json ? "\"snapshot\":{\"usable\":false}" : arena_printf(a, "snapshot: of no use: %s", err.msg);
	int64_t age = (io_now_ms() - s.written_ms) / 1000;
	if (json)
		return arena_printf(a,
			"\"snapshot\":{\"usable\":true,\"bytes\":%" PRIu64 ",\"age_seconds\":%" PRId64 ",\"series\":%" PRIu64 ",\"frame\":%" PRIu64
			",\"segment\":%" PRIu64 ",\"offset\":%" PRIu64 "}",
			s.bytes, age, s.series, s.frame, s.segment, s.offset);
	return arena_printf(a,
		"snapshot: %" PRIu64 " bytes, %" PRId64 " s old, %" PRIu64 " series; a start reads on behind frame %" PRIu64 ", in segment %" PRIu64
		" at byte %" PRIu64,
		s.bytes, age, s.series, s.frame, s.segment, s.offset);
}

int cmd_wal(int argc, char **argv)
{
	struct err err = {0};
	struct arena arena;
	arena_init(&arena, 16 * MIB);
	const char *output;
	bool frames;
	struct flag table[] = {
		{.name = "output",
			.kind = FLAG_CHOICE,
			.into = &output,
			.fallback = "table",
			.value_name = "table|json",
			.help = "Form of the answer.",
			.common = true},
		{.name = "frames", .kind = FLAG_BOOL, .into = &frames, .fallback = "false", .help = "A line for each frame.", .common = true},
	};
	struct flag_program program = {
		.usage = "varve wal inspect DIR [FLAGS]",
		.about = "Prints the segments, frames, records and damage of the log in DIR (a data directory, or its wal directory), and from "
			 "where a start with the data directory's snapshot reads it. Exit code 2 when there is damage.",
		.flags = table,
		.n_flags = 2,
		.positionals = true,
	};
	struct flag_list args = {0};
	enum flags_action action = FLAGS_RUN;
	int code = EXIT_CLEAN;
	struct buf out;
	buf_init(&out, GIB);
	errc rc = flags_parse(&program, argc, argv, &arena, &args, &action, &err);
	if (rc == OK && action == FLAGS_RUN && (args.n != 2 || strcmp(args.v[0], "inspect") != 0))
		rc = err_set(&err, ERR_INVALID, "usage: varve wal inspect DIR");
	if (rc == OK && action == FLAGS_RUN) {
		struct io_stat st;
		const char *dir = args.v[1], *inner = arena_printf(&arena, "%s/wal", dir);
		if (inner && io_stat(inner, &st, &err) == OK && st.is_dir)
			dir = inner;
		bool json = strcmp(output, "json") == 0;
		const struct wal_inspect_options opt = {
			.json = json, .frames = frames, .also = dir == inner ? snapshot_line(&arena, args.v[1], json) : NULL};
		rc = wal_inspect(dir, &opt, &out, &err);
		fwrite(out.p, 1, out.n, stdout);
	}
	if (rc != OK)
		code = cmd_fail(rc == ERR_CORRUPT ? EXIT_DAMAGED : EXIT_USAGE, &err);
	buf_free(&out);
	arena_free(&arena);
	return code;
}
