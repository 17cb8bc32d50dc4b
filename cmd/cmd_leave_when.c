/* cmd/cmd_leave_when.c - when a node that drains may go: what cmd_leave.c waits for. */
#include <stddef.h>
#include "cmd/cmd_leave_int.h"

const char *leave_waits_for(const struct leave_view *v)
{
	if (v->in_ring)
		return "a ring in force still has this node: whoever makes the rings must take it out";
	if (v->quiet_ms >= v->need_ms)
		return NULL;
	if (v->agreed && (v->quiet_ms >= LEAVE_AGREED_QUIET_MS || v->agreed_ms >= v->need_ms))
		return NULL;
	return v->agreed ? "peers sent it something only just now (--drain.quiet)"
			 : "not all nodes go by the same rings yet, and peers still send it something (--drain.quiet)";
}
