/* cmd/cmd_wal.c - `varve wal inspect DIR`: what is in a log, read only, also beside a running server. */
#include <stdio.h>
#include <string.h>
#include "base/io.h"
#include "base/limits.h"
#include "cmd/cmd_int.h"

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
		.about = "Prints the segments, frames, records and damage of the log in DIR (a data directory, or its wal directory). Exit code 2 "
			 "when there is damage.",
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
		const struct wal_inspect_options opt = {.json = strcmp(output, "json") == 0, .frames = frames};
		rc = wal_inspect(dir, &opt, &out, &err);
		fwrite(out.p, 1, out.n, stdout);
	}
	if (rc != OK)
		code = cmd_fail(rc == ERR_CORRUPT ? EXIT_DAMAGED : EXIT_USAGE, &err);
	buf_free(&out);
	arena_free(&arena);
	return code;
}
