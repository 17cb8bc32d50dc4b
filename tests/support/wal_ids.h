/* tests/support/wal_ids.h - a log whose records say who they are, so that a test can ask which of them came back.
 *
 * Record `id` is one sample (ref id, time and value made of it), with any amount of noise that does not compress beside it. What comes
 * back is checked bit by bit: a wrong sample is counted in `wrong`, and no test allows one.
 */
#pragma once
#include "wal/wal.h"

enum { IDS_MAX = 100000 };

struct ids {
	uint64_t *v; /* in the order of replay */
	size_t n, cap;
	uint8_t *times; /* per id, how often it came */
	uint64_t wrong;
	uint64_t definitions; /* from checkpoints: ids put as series */
	uint64_t *frame_of;   /* per id: offset << 20 | segment, as replayed */
};

void ids_free(struct ids *g);
bool ids_has(const struct ids *g, uint64_t id);

/* Appends the records of `id`. */
void ids_put(struct buf *b, uint64_t id, size_t noise);
/* For wal_replay: arg is a struct ids. */
errc ids_frame(void *ids, const struct wal_frame *f, struct err *err);

/* Opens and replays; NULL when that failed, with *rc and *err. Segments of `segment_bytes`; INTERVAL means 20 ms. */
struct wal *ids_open(
	const char *dir, enum wal_sync sync, uint64_t segment_bytes, struct ids *g, struct wal_replay_stats *stats, errc *rc, struct err *err);
/* One request, waited for. */
errc ids_write(struct wal *w, uint64_t id, size_t noise, struct err *err);
