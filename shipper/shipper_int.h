/* shipper/shipper_int.h - what the files of shipper/ share. */
#pragma once
#include "shipper/shipper.h"

struct ship_result {
	uint64_t bytes;
	bool own_fault; /* the block's own files are wrong (its objects without meta.json were removed again): quarantine it */
};

/* Uploads one local block and makes it live. `resume`: it was under way before, so objects may be there already. An error without own_fault is the
 * bucket's, the catalog's or the machine's: try again. */
CHECKED errc ship_block(
	const struct shipper_config *cfg, struct ulid ulid, bool resume, struct arena *arena, struct ship_result *res, struct err *err);
