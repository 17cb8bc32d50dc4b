/* cluster/cluster_hints_door.c - the door for hints: who routed a write asks who stored it to keep what a third one missed.
 *
 * 204 says that it is in the queue, no more: a hint is no promise. 503: not here, ask another.
 */
#include "cluster/cluster_hints_int.h"
#include "net/net.h"

/* An address as rings have it: printable, and no more than that is asked here. Hints for one that no node has go when they are too old. */
static bool is_address(struct span s)
{
	for (size_t i = 0; i < s.n; i++)
		if (s.p[i] <= ' ' || s.p[i] > '~')
			return false;
	return s.n > 0 && s.n <= LIMIT_RING_ADDRESS_BYTES;
}

void hints_receive(void *hints, struct http_request *r)
{
	struct hints *h = hints;
	struct err err = {0};
	struct peer_request frame;
	errc rc = OK;
	TRY(h->cfg.check(h->cfg.trust, r, &err));
	TRY(http_parse_params(r, &err));
	struct span address = http_param(r, "for", 0);
	if (!address.p || !is_address(address) || http_param_count(r) != 1) {
		http_error(r, ERRID_BAD_PARAMETER, "for: must be the address of the node that missed what the hint says");
		return;
	}
	if (!h->dir || span_eq(address, h->cfg.self)) {
		http_error(r, ERRID_NOT_FOUND,
			h->dir ? "this is the node that the hint is for: send it to " PEER_WRITE_PATH
			       : "this node keeps no hints, as it stores nothing");
		return;
	}
	TRY(peer_request_peek(http_body(r), &frame, &err));
	if (!frame.hint) {
		http_error(r, ERRID_PEER_FRAME, "peer frame: it is no hint");
		return;
	}
	if (!hints_add(h, address, http_body(r), true))
		http_error(r, ERRID_OVERLOADED, "no room for more hints for this node (--hints.max-size)");
	else
		http_answer(r, 204, NULL, span_of("", 0));
	return;
fail:
	http_error_of(r, &err);
}
