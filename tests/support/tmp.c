/* tests/support/tmp.c - see tmp.h. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/io.h"
#include "tests/support/tmp.h"

static char **dirs;
static size_t n_dirs;
static pid_t owner;

static void remove_all(void)
{
	struct err err = {0};
	if (getpid() != owner) /* a forked child that called exit */
		return;
	io_ops = &io_posix;
	for (size_t i = 0; i < n_dirs; i++) {
		if (io_remove_tree(dirs[i], &err))
			fprintf(stderr, "temporary directory stays: %s\n", err.msg);
		free(dirs[i]);
	}
	free(dirs);
}

const char *tmp_dir(void)
{
	const char *base = getenv("TMPDIR");
	char path[512];
	snprintf(path, sizeof path, "%s/varve-test-XXXXXX", base && *base ? base : "/tmp");
	char **v = realloc(dirs, (n_dirs + 1) * sizeof *v);
	char *made = mkdtemp(path) ? strdup(path) : NULL;
	if (!v || !made) {
		perror(path);
		exit(99);
	}
	if (n_dirs == 0) {
		owner = getpid();
		atexit(remove_all);
	}
	dirs = v;
	dirs[n_dirs++] = made;
	return made;
}

const char *tmp_path(const char *fmt, ...)
{
	static __thread char ring[16][512];
	static __thread unsigned next;
	char *out = ring[next++ % 16];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(out, sizeof ring[0], fmt, ap);
	va_end(ap);
	return out;
}
