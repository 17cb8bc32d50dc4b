/* tests/support/block_fixture.c - see block_fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include "tests/support/block_fixture.h"
#include "tests/support/tmp.h"

static struct ulid ulid_of(uint8_t x)
{
	struct ulid u = {{1, 0x8b, 0xcf, 0xe5, 0x68, 0}};
	u.b[15] = x;
	return u;
}

void fixture_write(struct fixture *f, const struct model_config *cfg, uint64_t segment_bytes)
{
	struct err err = {0};
	uint64_t bytes;
	const char *dir = tmp_dir();
	*f = (struct fixture){.b = NULL};
	model_make(&f->m, cfg);
	if (model_write(&f->m, dir, ulid_of(1), segment_bytes, &f->meta, &bytes, &err))
		fail_msg("%s", err.msg);
	memory_files_load(&f->files, tmp_path("%s/%s", dir, ulid_text(ulid_of(1)).s));
}

void fixture_open(struct fixture *f)
{
	struct err err = {0};
	if (block_open(&f->files.base, &f->meta, NULL, &f->b, &err) || block_source(f->b, "local", &f->source, &err))
		fail_msg("%s", err.msg);
	block_unref(f->b); /* the source has its own */
}

void fixture_close(struct fixture *f)
{
	size_t closed = f->files.closed;
	f->source->ops->release(f->source);
	assert_int_equal(f->files.closed, closed + 1);
	fixture_free(f);
}

void fixture_free(struct fixture *f)
{
	memory_files_free(&f->files);
	model_free(&f->m);
}
