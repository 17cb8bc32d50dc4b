/* tests/support/block_fixture.h - a made-up block written by varve's writer, its files in memory, and a source over it.
 */
#pragma once
#include "tests/support/block_model.h"
#include "tests/support/memory_files.h"

struct fixture {
	struct model m;
	struct block_meta meta;
	struct memory_files files;
	struct block *b;
	struct source *source;
};

void fixture_write(struct fixture *f, const struct model_config *cfg, uint64_t segment_bytes);
/* Opens block and source; asserts. */
void fixture_open(struct fixture *f);
/* Releases what fixture_open opened, frees all; the block must have closed its files. */
void fixture_close(struct fixture *f);
/* For a fixture that is not open. */
void fixture_free(struct fixture *f);
