/* shipper/shipper.h - a finished local block becomes verified objects and a live row; resumable at every step.
 *
 *     local ─▶ uploading: chunks, index, meta.json last, each verified by size and checksum ─▶ live ─▶ local directory removed
 *
 * meta.json's presence means complete; nothing local is removed before the catalog says live and the head says that the cut is settled.
 * A block that was half done when the process died is done again object by object (what is there with the right size and checksum is kept).
 * Oldest first; one bad block (quarantined with its reason) or a slow bucket holds up no other tenant's ingest. When the bucket fails the
 * shipper waits with full jitter up to a minute and says why in the log and in varve_ship_* metrics.
 *
 * Threads: one worker; notify and flush from any thread.
 */
#pragma once
#include "bucket/catalog.h"

struct shipper;
struct shipper_config {
	const char *block_dir;
	struct bucket *bucket;
	struct catalog *catalog;
	/* May the local directory go? (head_cut_settled) */
	bool (*may_remove)(void *arg, struct ulid block);
	/* The directory is about to be removed: nobody new may read it. false: somebody still does, and it is asked again later. */
	bool (*forget)(void *arg, struct ulid block);
	/* After a `forget` that said true: the directory is gone, or could not be removed yet. */
	void (*removed)(void *arg, struct ulid block);
	void *arg;
	int64_t local_keep_ms; /* keep a live block's directory this long for faster reads; 0 = no longer than needed */
};
CHECKED errc shipper_start(const struct shipper_config *cfg, struct shipper **out, struct err *err);
/* A block was cut (its catalog row is local): wake up. */
void shipper_notify(struct shipper *s);
/* Returns when everything that was local at the call is live or quarantined; ERR_TIMEOUT / ERR_NET with the reason when deadline_ms passes. */
CHECKED errc shipper_flush(struct shipper *s, int64_t deadline_ms, struct err *err);
struct shipper_status {
	uint64_t pending_blocks, pending_bytes;
	int64_t oldest_pending_ms; /* age; 0 when none */
	char last_error[480];	   /* empty when the last attempt worked */
};
void shipper_status(struct shipper *s, struct shipper_status *out);
/* The process is about to stop: whoever waits in shipper_flush, or comes later, gets ERR_CANCELED. Uploads go on until shipper_stop. */
void shipper_release(struct shipper *s);
void shipper_stop(struct shipper *s);
