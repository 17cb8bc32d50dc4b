/* fuzz: needs cluster */
/* What a node answers to GET /-/ring, and the roster's file: whatever is read is written back as something that reads the same. */
#include <stdlib.h>
#include "base/limits.h"
#include "cluster/cluster_roster_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void back_and_forth(const struct roster_memory *v, size_t n, struct arena *a)
{
	struct buf b;
	struct roster_memory *again;
	size_t k;
	buf_init(&b, 16 * MIB);
	buf_printf(&b, ROSTER_FILE_HEAD);
	for (size_t i = 0; i < n; i++) {
		struct roster_node node = {
			.address = v[i].address, .state = v[i].state, .stores = v[i].stores, .left_ms = v[i].left_ms, .heard_ms = v[i].heard_ms};
		memcpy(node.id, v[i].id, sizeof node.id);
		if (i)
			buf_u8(&b, ',');
		roster_write_node(&b, &node);
	}
	buf_printf(&b, "]}");
	if (b.failed)
		abort();
	errc rc = roster_read_file(span_of(b.p, b.n), a, &again, &k, NULL);
	if (rc != OK && rc != ERR_NOMEM)
		abort();
	for (size_t i = 0; rc == OK && i < n; i++)
		if (k != n || !span_eq(again[i].address, v[i].address) || again[i].state != v[i].state || again[i].left_ms != v[i].left_ms ||
			again[i].stores != v[i].stores || strcmp(again[i].id, v[i].id) != 0)
			abort();
	buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct arena a;
	struct roster_words w;
	struct roster_memory *v;
	size_t n;
	arena_init(&a, 16 * MIB);
	if (roster_read_answer(span_of(data, size), &a, &w, NULL) == OK)
		back_and_forth(w.remembered, w.n_remembered, &a);
	if (roster_read_file(span_of(data, size), &a, &v, &n, NULL) == OK)
		back_and_forth(v, n, &a);
	arena_free(&a);
	return 0;
}
