/* cmd/cmd_data_dir.c - the data directory: one process at a time, one format version.
 *
 * DATA-DIR/lock is held with flock for the life of the process. DATA-DIR/format holds two lines:
 *
 *     varve-data 1
 *     node 01J...          (a ULID, made once: who wrote a block, whose change feed)
 *
 * A higher version than FORMAT is refused in words with nothing touched; a lower one is migrated here, step by step.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "base/io.h"
#include "base/limits.h"
#include "cmd/cmd_int.h"

enum { FORMAT = 1 };

static errc format_read(const char *path, struct arena *a, struct data_dir *d, struct err *err)
{
	struct span text;
	errc rc = io_read_file(path, 4 * KIB, a, &text, err);
	if (rc != OK)
		return rc;
	unsigned version;
	char node[ULID_TEXT_BYTES + 1];
	if (sscanf(text.p, "varve-data %u\nnode %26s", &version, node) < 1)
		return err_set(err, ERR_CORRUPT, "%s is not a varve data directory's format file: restore it, or point --data-dir elsewhere", path);
	if (version > FORMAT)
		return err_set(err, ERR_UNSUPPORTED,
			"%s says format %u, this varve " VARVE_VERSION " knows up to %d: run the newer varve again; nothing was changed", path,
			version, FORMAT);
	struct ulid u;
	if (sscanf(text.p, "varve-data %u\nnode %26s", &version, node) != 2 || !ulid_parse(span_cstr(node), &u))
		return err_set(err, ERR_CORRUPT, "%s names no node: its second line must be 'node <ULID>'", path);
	memcpy(d->node, node, sizeof node);
	return OK;
}

static errc format_create(const char *path, struct arena *a, struct data_dir *d, struct err *err)
{
	memcpy(d->node, ulid_text(ulid_new()).s, sizeof d->node);
	char *text = arena_printf(a, "varve-data %d\nnode %s\n", FORMAT, d->node);
	return text ? io_write_file(path, span_cstr(text), err) : err_set(err, ERR_NOMEM, "no memory");
}

/* The directories that lead to a new data directory are synced: it must not vanish in a power cut with all that is acknowledged into it. One that we may
 * not read we did not make. */
static errc sync_above(const char *path, struct arena *a, struct err *err)
{
	char *dir = arena_printf(a, "%s", path);
	errc rc = dir ? OK : err_set(err, ERR_NOMEM, "no memory");
	for (char *slash; rc == OK && (slash = strrchr(dir, '/'));) {
		*slash = 0;
		rc = io_fsync_dir(slash == dir ? "/" : dir, err);
		rc = rc == ERR_DENIED ? OK : rc;
	}
	if (rc == OK && path[0] != '/')
		rc = io_fsync_dir(".", err);
	return rc == ERR_DENIED ? OK : rc;
}

errc data_dir_open(const char *path, struct data_dir *out, struct err *err)
{
	errc rc = OK;
	struct arena a;
	arena_init(&a, MIB);
	*out = (struct data_dir){.path = path, .lock_fd = -1};
	char *lock = arena_printf(&a, "%s/lock", path), *format = arena_printf(&a, "%s/format", path);
	CHECK(lock && format, ERR_NOMEM, "no memory");
	CHECK(*path, ERR_INVALID, "--data-dir is empty: name a directory");
	struct io_stat st = {0};
	if (io_stat(path, &st, NULL) == OK && st.exists)
		CHECK(st.is_dir, ERR_INVALID, "--data-dir=%s is not a directory: name one, or a path that does not exist yet", path);
	rc = io_mkdirs(path, err);
	if (rc != OK) {
		err_wrap(err, "--data-dir=%s can't be made, name another one", path);
		rc = rc == ERR_IO ? ERR_INVALID : rc; /* nothing of ours is on that disk */
		goto fail;
	}
	TRY(io_open(lock, IO_READ | IO_WRITE | IO_CREATE, &out->lock_fd, err));
	rc = io_lock(out->lock_fd, err);
	CHECK(rc != ERR_AGAIN, ERR_AGAIN, "%s is in use by another varve: stop it, or give this one its own --data-dir", path);
	TRY(rc);
	TRY(io_stat(format, &st, err));
	if (st.exists) {
		TRY(format_read(format, &a, out, err));
	} else {
		TRY(sync_above(path, &a, err));
		TRY(format_create(format, &a, out, err));
	}
fail:
	arena_free(&a);
	if (rc != OK)
		data_dir_close(out);
	return rc;
}

void data_dir_close(struct data_dir *d)
{
	io_close(d->lock_fd);
	d->lock_fd = -1;
}
