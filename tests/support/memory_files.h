/* tests/support/memory_files.h - a block's files in memory: counted, damaged and failed at will.
 */
#pragma once
#include "block/block.h"

struct memory_file {
	char path[32];
	uint8_t *p; /* malloc'ed to its size exactly, so that a sanitizer sees a read behind it */
	size_t n;
};

struct memory_files {
	struct block_files base;
	struct memory_file *v;
	size_t n;
	/* of all reads since the counters were cleared */
	size_t reads, sizes;
	uint64_t bytes, biggest;
	size_t fail_at; /* the call (reads and sizes) that fails with ERR_IO, from 1; 0 = none */
	size_t closed;
};

/* Index, tombstones and chunk segments of a directory. */
void memory_files_load(struct memory_files *f, const char *block_dir);
/* NULL: not there. */
struct memory_file *memory_files_find(struct memory_files *f, const char *path);
/* A file's bytes replaced by a copy of p[0..n); added when it is not there. */
void memory_files_set(struct memory_files *f, const char *path, const void *p, size_t n);
void memory_files_clear_counters(struct memory_files *f);
void memory_files_free(struct memory_files *f);
