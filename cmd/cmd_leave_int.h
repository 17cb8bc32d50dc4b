/* cmd/cmd_leave_int.h - when a node that drains may go: pure, for its test. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum { LEAVE_AGREED_QUIET_MS = 2000 };

struct leave_view {
	bool in_ring;	   /* of the rings in force here */
	bool agreed;	   /* every node of them answers, and goes by the same */
	int64_t agreed_ms; /* for so long */
	int64_t quiet_ms;  /* since a peer wrote something here, or since the drain began */
	int64_t need_ms;   /* --drain.quiet */
};
/* Why not yet; NULL: it may. */
const char *leave_waits_for(const struct leave_view *v);
