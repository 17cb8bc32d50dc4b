/* block/block_pattern.h - what a regex says without an engine: a set of literals, or what its matches begin with.
 */
#pragma once
#include "base/arena.h"

enum pattern_tail {
	TAIL_NONE,    /* the matches are exactly the strings */
	TAIL_ANY,     /* a string, then anything */
	TAIL_SOME,    /* a string, then anything but nothing */
	TAIL_UNKNOWN, /* every match begins with one of the strings; the engine must judge */
};

struct pattern {
	struct span *v; /* ascending, unique, at least one */
	size_t n;
	enum pattern_tail tail;
};

/* Takes an anchored pattern apart. Memory from the arena. A pattern that is not valid, or whose parts this does not know (flags,
 * named groups, word boundaries ...), gives one empty string and TAIL_UNKNOWN, and so does an arena that is full: never an error. */
struct pattern pattern_analyze(struct span text, struct arena *arena);
