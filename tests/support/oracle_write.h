/* tests/support/oracle_write.h - remote write bodies judged by protobuf-c, the other opinion on rw1_decode.
 *
 * For the unit tests' sweeps and the fuzzer: one function that decodes with both and says where they differ.
 */
#pragma once
#include "proto/proto.h"
#include "tests/support/write_oracle.pb-c.h"

enum oracle_outcome { ORACLE_BOTH_OK, ORACLE_BOTH_REFUSE, ORACLE_LIMIT, ORACLE_DIFFER };

/* Decodes body with both. ORACLE_DIFFER: *why says how (static text, or why's buffer). ORACLE_LIMIT: rw1_decode refused by a limit, protobuf-c was not asked.
 * Differences that are meant: labels are only stepped over by rw1_decode, so a body that is malformed inside a label alone counts as refused by
 * both; field number 0, and varints of more than 64 bits, are refused by rw1_decode alone. */
enum oracle_outcome oracle_write_compare(struct span body, const struct rw_limits *limits, char *why, size_t why_size);
/* The same for 2.0 and rw2_decode, and whether the references of what protobuf-c read are in order. */
enum oracle_outcome oracle_write2_compare(struct span body, const struct rw_limits *limits, char *why, size_t why_size);
