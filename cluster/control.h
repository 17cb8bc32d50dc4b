/* cluster/control.h - the ring controller on Kubernetes: from what can serve to a ring that everybody has, in seconds.
 *
 *     StatefulSets, Pods ──list + watch──▶ ┐                              ┌──▶ generated ConfigMap (Thanos' hashrings.json)
 *     base ConfigMap (tenants) ──watch──▶  ├─ what is seen ──▶ the plan ──┤
 *     members: ready? drained? epoch? ───▶ ┘        ▲                     └──▶ PUT /-/ring to every member, POST /-/drain to who leaves
 *                                                   └── the ring in force: the generated ConfigMap as it stands
 *
 * Membership is what can serve, never what spec.replicas wishes for. A member is
 *
 *     joining   wanted, but it has not said that it is ready: not in the ring, however long it takes
 *     active    ready: in the ring
 *     away      was in the ring and does not answer, crashed, or is being replaced: stays in the ring, so that nothing is moved for a restart. After
 *               --control.gone-after it is dropped, unless half of its ring is away too: then it is rather this process that sees nobody
 *     draining  leaves, for its number is above the replicas that are wanted, or somebody told it to: out of the ring at once, told to drain
 *     gone      left
 *
 * A ring is never published with fewer endpoints than the replication factor: the first one waits for so many members that are ready, a shrinking one
 * keeps its last ones, and says so. What members would refuse is not published either.
 *
 * One of several controllers acts, the holder of a Lease; the others watch. Without the API, or without the lease, nothing changes anywhere: the ring in
 * force stays in force. No state is kept but the generated ConfigMap, so a controller may die at any time.
 *
 * Threads: of its own, and a bounded number. control_status_json and control_ready: any thread.
 */
#pragma once
#include "base/bytes.h"
#include "base/err.h"
#include "cluster/ring.h"

struct control;

enum control_manual { CONTROL_REVERT, CONTROL_KEEP };

struct control_config {
	/* the API; NULL: as a pod finds it (KUBERNETES_SERVICE_HOST and its service account) */
	const char *kube_url, *kube_token_file, *kube_ca_file;

	const char *namespace;		   /* --namespace; NULL: the service account's */
	const char *label;		   /* --statefulset-label, of StatefulSets and Pods */
	const char *configmap;		   /* --configmap-name; NULL: a ring for each ring label that there is, for all tenants */
	const char *generated, *file_name; /* --configmap-generated-name, --file-name */
	const char *cluster_domain;
	const char *az_annotation; /* of Pods */
	bool az_aware;
	bool node_zones;		      /* where a Pod names no zone its Node does */
	uint16_t port;			      /* of members: that of the ring's addresses, and where they are asked */
	const char *scheme;		      /* http or https, to members */
	const char *member_ca;		      /* NULL: the system's */
	const char *member_cert, *member_key; /* shown to members that ask peers for one; NULL: none */
	const char *secret_file;
	struct ring_options ring; /* must be the members' own: their epoch is compared */

	const char *lease, *identity; /* names of the Lease, and of this process in it */
	int64_t lease_ms;
	int64_t gone_after_ms, settle_ms;
	enum control_manual manual;
};

/* Starts; whether the API can be reached shows later. All strings are borrowed for the life of it. ERR_INVALID: a setting, with the flag's name. */
CHECKED errc control_open(const struct control_config *cfg, struct control **out, struct err *err);
/* Lets the lease go, so that another takes over at once. NULL is fine. */
void control_close(struct control *c);

/* GET /-/ready: has it seen everything once? `why` when not. */
bool control_ready(struct control *c, char *why, size_t n);
/* GET /-/members: leader or not, the ring in force, every member with its state and the reason in words, and what is waited for. */
void control_status_json(struct control *c, struct buf *out);
/* GET /-/ring: the ring as it was published or found last; empty: none. Copied into out. */
void control_ring_json(struct control *c, struct buf *out);
