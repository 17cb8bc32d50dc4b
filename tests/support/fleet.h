/* tests/support/fleet.h - a fleet of nodes in one process, behind struct cluster_config's `send`: what spread writes are held against.
 *
 * Time stands still but for fleet_run, which goes from event to event; everything comes from one seed. Nodes are down, silent, slow, out of their mind, or well; frames come twice, answers get lost or come
 * back broken. After each event the fleet knows by brute force what every write has to be: a series is decided when no answer that is still to come could change what becomes of
 * it. It holds that against what the cluster says, and at the end what every node has against what was acknowledged.
 */
#pragma once
#include "cluster/cluster_write_int.h"

enum { FLEET_NODES = 24, FLEET_ITEMS = 60, FLEET_WRITES = 6, FLEET_PARTS = 3 };

struct fleet_options {
	uint64_t seed;
	bool exact; /* every allocation works: outcomes are exactly what they must be. Else only: nothing is acknowledged that is not there, everything ends once */
};
/* One fleet, a few writes, to the end. Any fault fails the running test, with the seed. */
void fleet_run(const struct fleet_options *opt);
/* How many series were acknowledged, refused, tried again, told as missed over all runs: a test that never sees one of them tests nothing. */
struct fleet_seen {
	uint64_t stored, refused, again, missed, late_missed, partial, unsent, expired;
	uint64_t elsewhere, spare, own_missed; /* frames kept by another node, frames that several could keep, items that this node itself missed */
};
extern struct fleet_seen fleet_seen;
