/* tests/support/memory_files.c - see memory_files.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>
#include "base/io.h"
#include "base/limits.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/memory_files.h"

struct memory_file *memory_files_find(struct memory_files *f, const char *path)
{
	for (size_t i = 0; i < f->n; i++)
		if (strcmp(f->v[i].path, path) == 0)
			return &f->v[i];
	return NULL;
}

static bool call_fails(struct memory_files *f)
{
	return f->fail_at > 0 && f->reads + f->sizes == f->fail_at;
}

static errc memory_read(struct block_files *base, const char *path, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct memory_files *f = (struct memory_files *)base;
	__atomic_add_fetch(&f->reads, 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&f->bytes, n, __ATOMIC_RELAXED);
	if (n > __atomic_load_n(&f->biggest, __ATOMIC_RELAXED))
		__atomic_store_n(&f->biggest, n, __ATOMIC_RELAXED);
	if (call_fails(f))
		return err_set(err, ERR_IO, "%s: read at %llu fails", path, (unsigned long long)off);
	const struct memory_file *m = memory_files_find(f, path);
	if (!m)
		return err_set(err, ERR_NOTFOUND, "%s is not there", path);
	if (off > m->n || n > m->n - off)
		return err_set(err, ERR_CORRUPT, "%s: ends at %zu, %zu bytes at %llu were asked for", path, m->n, n, (unsigned long long)off);
	memcpy(buf, m->p + off, n);
	return OK;
}

static errc memory_size(struct block_files *base, const char *path, uint64_t *size, struct err *err)
{
	struct memory_files *f = (struct memory_files *)base;
	__atomic_add_fetch(&f->sizes, 1, __ATOMIC_RELAXED);
	if (call_fails(f))
		return err_set(err, ERR_IO, "%s: size fails", path);
	const struct memory_file *m = memory_files_find(f, path);
	if (!m)
		return err_set(err, ERR_NOTFOUND, "%s is not there", path);
	*size = m->n;
	return OK;
}

static void memory_close(struct block_files *base)
{
	((struct memory_files *)base)->closed++;
}

void memory_files_set(struct memory_files *f, const char *path, const void *p, size_t n)
{
	fail_alloc_pause();
	struct memory_file *m = memory_files_find(f, path);
	if (!m) {
		f->v = realloc(f->v, (f->n + 1) * sizeof *f->v);
		assert_non_null(f->v);
		m = &f->v[f->n++];
		*m = (struct memory_file){.p = NULL};
		snprintf(m->path, sizeof m->path, "%s", path);
	}
	uint8_t *copy = malloc(n ? n : 1);
	assert_non_null(copy);
	if (n)
		memcpy(copy, p, n);
	free(m->p);
	m->p = copy;
	m->n = n;
	fail_alloc_resume();
}

static void load(struct memory_files *f, const char *dir, const char *path)
{
	struct arena a;
	struct io_stat st;
	struct span data;
	struct err err = {0};
	arena_init(&a, GIB);
	const char *full = arena_printf(&a, "%s/%s", dir, path);
	assert_non_null(full);
	assert_int_equal(io_stat(full, &st, &err), OK);
	if (st.exists) {
		if (io_read_file(full, GIB, &a, &data, &err))
			fail_msg("%s", err.msg);
		memory_files_set(f, path, data.p, data.n);
	}
	arena_free(&a);
}

void memory_files_load(struct memory_files *f, const char *block_dir)
{
	struct arena a;
	char **names;
	size_t n;
	struct err err = {0};
	*f = (struct memory_files){.base = {memory_read, memory_size, memory_close}};
	arena_init(&a, MIB);
	load(f, block_dir, "index");
	load(f, block_dir, "tombstones");
	if (io_listdir(arena_printf(&a, "%s/chunks", block_dir), &a, &names, &n, &err))
		fail_msg("%s", err.msg);
	for (size_t i = 0; i < n; i++)
		load(f, block_dir, arena_printf(&a, "chunks/%s", names[i]));
	arena_free(&a);
}

void memory_files_clear_counters(struct memory_files *f)
{
	f->reads = f->sizes = f->closed = 0;
	f->bytes = f->biggest = 0;
	f->fail_at = 0;
}

void memory_files_free(struct memory_files *f)
{
	for (size_t i = 0; i < f->n; i++)
		free(f->v[i].p);
	free(f->v);
	*f = (struct memory_files){.v = NULL};
}
