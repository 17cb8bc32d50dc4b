/* cluster/ring_file.h - the rings in force: those of a file that is watched, of a flag, or of whoever makes them.
 *
 *     --hashrings.file ──looked at ten times a second──▶ the same twice? ──▶ valid? ──▶ one atomic pointer ──▶ ring_file_current(), any thread
 *                                                                            │ no          ▲
 *                             logged once, metric 0, the old rings stay ◀────┘             └── ring_file_offer(): PUT /-/ring, or members that were found
 *
 * Readers never wait for a reload, and what they got stays valid until they let go of it. However the file is replaced (renamed over, a ConfigMap's links
 * swapped, written in place), a complete version is in force within half a second, and half of one never: what is still being written looks different a
 * tenth of a second later, is not JSON, or is refused as a whole.
 *
 * No file and no valid ring is a state like any other: ring_file_current() is NULL, and comes alive when there is one.
 */
#pragma once
#include "cluster/ring.h"

struct ring_file;

struct ring_file_config {
	const char *path; /* --hashrings.file; borrowed for the life of it. NULL: none */
	const char *text; /* --hashrings, when there is no path; NULL: none, rings are offered */
	struct ring_options options;
	/* After each change, in the thread that made it, one at a time; `was` is NULL at first, both are valid during the call. May be NULL. It must call
	 * nothing of this header but ring_file_current. */
	void (*on_change)(void *arg, struct ring_set *was, struct ring_set *now);
	void *arg;
};
/* Reads once and goes on watching. Bad rings are no error here, but logged; with `text`, which can't become better, they are (ERR_INVALID). */
CHECKED errc ring_file_open(const struct ring_file_config *cfg, struct ring_file **out, struct err *err);
void ring_file_close(struct ring_file *rf); /* NULL is fine; nobody may call it any more */

/* Counted: ring_set_unref. NULL: there is none. Any thread; never waits. */
struct ring_set *ring_file_current(struct ring_file *rf);

/* POST /-/reload: the file, now, as it is. OK also when it says what is in force. */
CHECKED errc ring_file_reload(struct ring_file *rf, struct err *err);
/* These rings, until the next ones are offered or the file changes. `name` for messages. Refused: as ring_set_parse says, and the old ones stay. */
CHECKED errc ring_file_offer(struct ring_file *rf, const char *name, struct span json, struct err *err);

/* For GET /-/ring and /-/ready. */
struct ring_file_status {
	uint64_t epoch;		   /* 0: no rings yet */
	uint64_t sequence;	   /* how many sets were in force; only of this process */
	int64_t since_ms;	   /* wall clock, of the ones in force */
	bool good;		   /* the last that was read or offered was taken */
	char error[ERR_MSG_BYTES]; /* why not */
};
void ring_file_status(struct ring_file *rf, struct ring_file_status *out);
