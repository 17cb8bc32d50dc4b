/* base/labels.h - label sets: what names a series.
 *
 * Order: by name bytes (unsigned), names unique, empty values dropped; sets compare pair by pair, name then value, the
 * shorter first when one is a prefix (Prometheus' labels.Compare).
 *
 * The wire form is the one that remote write 1.0 sends: repeated protobuf field 1 { 1 name, 2 value }. A set in wire form is
 * canonical when it is sorted, valid and written in the only shortest way:
 *     { 0x0a uvarint(len) 0x0a uvarint(n) name 0x12 uvarint(n) value }*
 * Canonical bytes are the series' identity: hashed for lookup, stored in the log's definitions. Prometheus sends them as they
 * are, so on the hot path nothing is decoded.
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"

struct label {
	struct span name;
	struct span value;
};

struct labels {
	struct label *v;
	uint32_t n;
};

int labels_cmp(struct labels a, struct labels b);
bool labels_eq(struct labels a, struct labels b);

/* The value of `name`, or an empty span. Linear: sets are small. */
struct span labels_get(struct labels l, struct span name);

/* Sorts by name in place (stable, insertion sort for small sets). Does not look for duplicates. */
void labels_sort(struct labels l);

/* Decodes label fields in any order and spelling (unknown fields skipped, last of a repeated field wins). Spans borrow
 * from `wire`; the array comes from the arena. ERR_INVALID: not protobuf; ERR_LIMIT: more than max_labels. */
CHECKED errc labels_from_wire(struct span wire, uint32_t max_labels, struct arena *arena, struct labels *out, struct err *err);

/* Decodes canonical wire form in one pass, for bytes that were judged when they were written and that a checksum vouches for (the log): order, spelling and
 * emptiness are checked, UTF-8 and limits are not. v has room for max labels; spans borrow. false: not canonical. */
bool labels_from_canonical(struct span wire, struct label *v, uint32_t max, uint32_t *n);

/* Appends the canonical wire form of sorted, valid labels. */
void labels_to_wire(struct labels l, struct buf *out);
size_t labels_wire_size(struct labels l);

/* What a series' labels may be; every limit has its flag in base/limits.h's table. */
struct labels_limits {
	uint32_t max_labels;
	uint32_t max_name_bytes;
	uint32_t max_value_bytes;
};

/* Why a label set is refused; the words and ids of these are in base/errid.h. */
enum labels_fault {
	LABELS_OK,
	LABELS_EMPTY_SET,
	LABELS_NO_NAME,	   /* no __name__, or an empty one */
	LABELS_EMPTY_NAME, /* a label with an empty name */
	LABELS_DUPLICATE_NAME,
	LABELS_BAD_UTF8, /* in a name or a value */
	LABELS_TOO_MANY,
	LABELS_NAME_TOO_LONG,
	LABELS_VALUE_TOO_LONG,
};

/* Drops labels with empty values (in place, l->n shrinks), sorts, and judges. *which is the offending label's index. */
enum labels_fault labels_normalize(struct labels *l, const struct labels_limits *limits, uint32_t *which);

/* {__name__="up", job="x"} as Prometheus prints it, cut off with "..." when longer than `size`. Control bytes and invalid
 * UTF-8 are escaped. Returns out. */
char *labels_format(struct labels l, char *out, size_t size);
