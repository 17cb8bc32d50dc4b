/* head/head_snapshot_int.h - what a snapshot's writer and its reader share. Bytes: docs/format/snapshot.md. */
#pragma once
#include "head/head_int.h"

enum { SNAPSHOT_VERSION = 1, SNAPSHOT_HEADER = 16, SNAPSHOT_SECTION_HEADER = 20 };
#define SNAPSHOT_SECTION_MAX (64 * MIB) /* a series of a million chunks fits */
#define SNAPSHOT_BYTES_PER_S (64 * MIB) /* unless the configuration says otherwise */
enum snapshot_section {
	SNAPSHOT_MARK = 1,
	SNAPSHOT_CUTS,
	SNAPSHOT_TENANTS,
	SNAPSHOT_PAIRS,
	SNAPSHOT_SERIES,
	SNAPSHOT_WINDOW,
	SNAPSHOT_STATES,
	SNAPSHOT_WINDOW_END,
	SNAPSHOT_END,
	SNAPSHOT_RECORDS,
	SNAPSHOT_OPTIONAL = 128, /* and above: who does not know it goes on */
};
enum { SNAPSHOT_HAS_LEAVES = 1, SNAPSHOT_HAS_OPEN = 2, SNAPSHOT_HAS_OTHER = 4, SNAPSHOT_OPEN_BYTES = 30, SNAPSHOT_CUT_BYTES = 57 };
