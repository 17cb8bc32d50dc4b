/* cmd/cmd_blocks.c - what is in DATA-DIR/blocks: the directories are the truth, the catalog learns from them.
 *
 * A block directory is complete by its rename; what happens between that and its catalog row may be lost (crash, damaged catalog), so
 * the directories are read at start, and again by the background tick when something could not be noted.
 */
#include <inttypes.h>
#include "base/io.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/metrics.h"
#include "cmd/cmd_int.h"

static errc scan_one(struct server *s, const char *name, struct ulid ulid, bool tell_head, struct arena *a, struct err *err)
{
	errc rc = OK;
	char *path = arena_printf(a, "%s/%s/meta.json", s->block_dir, name);
	CHECK(path, ERR_NOMEM, "no memory");
	struct span text;
	struct block_meta meta;
	TRY(io_read_file(path, LIMIT_META_JSON_BYTES, a, &text, err));
	TRY(block_meta_parse(path, text, a, &meta, err));
	CHECK(ulid_eq(meta.ulid, ulid), ERR_CORRUPT, "%s says ulid %s", path, ulid_text(meta.ulid).s);
	uint64_t bytes = text.n;
	for (size_t i = 0; i < meta.n_files; i++)
		bytes += meta.files[i].size_bytes;
	if (tell_head && s->head && meta.has_varve) {
		const struct wal_cut cut = {.window = meta.window, .block = ulid, .upto_seq = meta.upto_seq};
		TRY(head_known_cut(s->head, &cut, err));
	}
	TRY(catalog_add_local(s->catalog, &meta, bytes, err));
fail:
	return rc;
}

errc server_scan_blocks(struct server *s, bool tell_head, struct err *err)
{
	errc rc = OK;
	struct arena names_arena, a;
	arena_init(&names_arena, 256 * MIB);
	arena_init(&a, 64 * MIB);
	char **names;
	size_t n;
	TRY(io_listdir(s->block_dir, &names_arena, &names, &n, err));
	uint64_t damaged = 0;
	for (size_t i = 0; i < n; i++) {
		struct ulid ulid;
		if (!ulid_parse(span_cstr(names[i]), &ulid))
			continue;
		struct err why = {0};
		errc one = scan_one(s, names[i], ulid, tell_head, &a, &why);
		arena_reset(&a);
		if (one == ERR_CORRUPT || one == ERR_NOTFOUND || one == ERR_LIMIT || one == ERR_INVALID) {
			/* Its own damage only: it stays where it is, named, and everything else goes on. */
			log_error("local block is damaged and is left alone", LSTR("block", names[i]), LERR(&why));
			damaged++;
		} else if (one != OK) {
			rc = err_set(err, one, "%s", why.msg);
			goto fail;
		}
	}
	metric_set(metric_gauge("varve_local_blocks_damaged", "Directories in DATA-DIR/blocks that are not readable blocks"), (double)damaged);
fail:
	arena_free(&a);
	arena_free(&names_arena);
	return rc;
}
