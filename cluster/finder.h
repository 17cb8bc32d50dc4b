/* cluster/finder.h - a ring without a file and without Kubernetes: of those that --peers names and that say they are ready.
 *
 *     --peers ──names looked up every 10 s──▶ addresses ──the roster asks them──▶ what each says ──the plan──▶ one ring of them, sorted ──ring_file_offer──▶ in force
 *
 * Each node finds its ring for itself. Those that see the same members have the same ring and the same epoch; for seconds after a change, and for as long as a part of the fleet does not see another part,
 * they are different ones, which costs no sample: a write is counted by the quorum of the ring of the node that it came to, and reads ask the nodes of all rings that there were. docs/cluster.md.
 *
 * The ring in force is kept in a file, so that a node that is restarted while others are down begins with the ring that they go by.
 *
 * Threads: one looks names up, which nobody waits for, and one thinks.
 */
#pragma once
#include "cluster/ring_file.h"
#include "cluster/roster.h"

struct finder;
struct finder_config { /* all that is pointed to is borrowed for the life of it */
	const char *const *
		names; /* until finder_open returns. --peers: "dns+name:port" (all addresses), "dnssrv+name" (SRV records), "host:port"; each may be a list of these with commas */
	size_t n_names;
	uint32_t factor;       /* --replication-factor: the first ring waits for so many */
	int64_t gone_after_ms; /* --peers.gone-after */
	const char *file;      /* DATA-DIR/peers.json; NULL: nothing is kept */
	struct roster *roster;
	struct ring_file *rings;
	int64_t look_ms, think_ms; /* 0: LIMIT_PEERS_LOOK_MS, LIMIT_PEERS_THINK_MS */
};
/* ERR_INVALID: a name, with what is wrong. */
CHECKED errc finder_open(const struct finder_config *cfg, struct finder **out, struct err *err);
void finder_close(struct finder *f); /* before the roster; NULL is fine */
/* "members": [{"address", "state", "in", "reason"} ...], "waits": "..." - as JSON without the braces, for GET /-/ring. */
void finder_json(struct finder *f, struct buf *out);
