/* cmd/cmd_ring_int.h - what the files of `varve ring` share. */
#pragma once
#include "cluster/ring.h"
#include "cmd/cmd_int.h"

struct ring_tool {
	struct arena arena;
	struct buf out;
	const char *algorithm, *tenant, *labels, *cases, *output, *nodes, *endpoint;
	uint64_t factor, zones, series;
	bool json;
};

/* A JSON array of strings. */
void ring_put_list(struct buf *b, const struct span *v, uint32_t n);
/* Prints what there is. */
void ring_flush(struct ring_tool *t);
/* cmd_ring_where.c */
CHECKED errc ring_where(struct ring_tool *t, struct ring_set *set, struct err *err);
/* cmd_ring_simulate.c */
CHECKED errc ring_simulate(struct ring_tool *t, struct err *err);
