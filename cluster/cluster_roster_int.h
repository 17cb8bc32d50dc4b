/* cluster/cluster_roster_int.h - what the files of the roster share: nodes as they are remembered and told of, and what an answer says. */
#pragma once
#include "cluster/roster.h"

/* ---- cluster_roster_text.c: the file, and answers to GET /-/ring ---- */

/* Somebody of whom a file or another node tells. */
struct roster_memory {
	struct span address;
	enum node_state state;
	bool stores;
	int64_t left_ms, heard_ms;
	char id[40];
};
struct roster_words {
	uint64_t epoch, started_ms;
	enum node_state state;
	bool stores;
	char id[40];
	struct roster_memory *remembered;
	size_t n_remembered;
};
/* Spans and arrays are the arena's. What is in the list and is no node is left out. ERR_CORRUPT: not such an answer. */
CHECKED errc roster_read_answer(struct span text, struct arena *arena, struct roster_words *out, struct err *err);
CHECKED errc roster_read_file(struct span text, struct arena *arena, struct roster_memory **out, size_t *n, struct err *err);

/* {"address": ..., ...} */
void roster_write_node(struct buf *out, const struct roster_node *n);
/* "node": ..., "state": ..., "targets": [...], "started_ms": ... */
void roster_write_self(struct buf *out, const struct roster_config *cfg, enum node_state state, uint64_t started_ms);
#define ROSTER_FILE_HEAD "{\"version\":1,\"nodes\":["
