/* base/errid.h - the catalogue of refusals: every error that a client sees carries one of these ids.
 *
 * ERRID(name, http_status, text): the id is "err-varve-<text>", `struct err`.id points at it, docs/errors.md explains it (a lint
 * holds the two against each other). The body of an error answer is one line: "<id>: <message>".
 */
#pragma once
#include "base/err.h"

#define ERRIDS(ERRID)                                                                                                                                \
	/* the request as such */                                                                                                                    \
	ERRID(BAD_REQUEST, 400, "bad-request")                                                                                                       \
	ERRID(BODY_TOO_LARGE, 413, "body-too-large")                                                                                                 \
	ERRID(DECODED_TOO_LARGE, 413, "decoded-too-large")                                                                                           \
	ERRID(CONTENT_TYPE, 415, "content-type")                                                                                                     \
	ERRID(CONTENT_ENCODING, 415, "content-encoding")                                                                                             \
	ERRID(SNAPPY, 400, "snappy")                                                                                                                 \
	ERRID(PROTOBUF, 400, "protobuf")                                                                                                             \
	ERRID(TOO_MANY_SERIES, 413, "too-many-series")                                                                                               \
	ERRID(TOO_MANY_SAMPLES, 413, "too-many-samples")                                                                                             \
	ERRID(TENANT, 400, "tenant")                                                                                                                 \
	ERRID(NOT_FOUND, 404, "not-found")                                                                                                           \
	ERRID(METHOD, 405, "method")                                                                                                                 \
	ERRID(UNAUTHORIZED, 401, "unauthorized")                                                                                                     \
	ERRID(PEER_FRAME, 400, "peer-frame")                                                                                                         \
	ERRID(PEER_UNKNOWN, 401, "peer-unknown")                                                                                                     \
	ERRID(PEER_FORGED, 403, "peer-forged")                                                                                                       \
	/* series and samples; the valid rest of the request is stored */                                                                            \
	ERRID(NO_METRIC_NAME, 400, "no-metric-name")                                                                                                 \
	ERRID(EMPTY_LABEL_NAME, 400, "empty-label-name")                                                                                             \
	ERRID(DUPLICATE_LABEL, 400, "duplicate-label")                                                                                               \
	ERRID(LABEL_UTF8, 400, "label-utf8")                                                                                                         \
	ERRID(TOO_MANY_LABELS, 400, "too-many-labels")                                                                                               \
	ERRID(LABEL_NAME_TOO_LONG, 400, "label-name-too-long")                                                                                       \
	ERRID(LABEL_VALUE_TOO_LONG, 400, "label-value-too-long")                                                                                     \
	ERRID(TOO_OLD, 400, "too-old")                                                                                                               \
	ERRID(TOO_FAR_AHEAD, 400, "too-far-ahead")                                                                                                   \
	ERRID(DUPLICATE_TIMESTAMP, 400, "duplicate-timestamp")                                                                                       \
	ERRID(HISTOGRAM_TOO_LARGE, 400, "histogram-too-large")                                                                                       \
	ERRID(EXEMPLAR_NO_SERIES, 400, "exemplar-no-series")                                                                                         \
	ERRID(EXEMPLAR_OUT_OF_ORDER, 400, "exemplar-out-of-order")                                                                                   \
	ERRID(HISTOGRAM_INVALID, 400, "histogram-invalid")                                                                                           \
	ERRID(NO_SAMPLES, 400, "no-samples")                                                                                                         \
	/* over a limit of the tenant (--limits.file) */                                                                                             \
	ERRID(TENANT_REQUEST_LIMIT, 429, "tenant-request-limit")                                                                                     \
	ERRID(TENANT_RATE, 429, "tenant-rate")                                                                                                       \
	ERRID(TENANT_SERIES, 429, "tenant-series")                                                                                                   \
	/* try again later */                                                                                                                        \
	ERRID(NOT_READY, 503, "not-ready")                                                                                                           \
	ERRID(OVERLOADED, 503, "overloaded")                                                                                                         \
	ERRID(HEAD_MEMORY, 503, "head-memory")                                                                                                       \
	ERRID(DISK_FULL, 503, "disk-full")                                                                                                           \
	ERRID(STORAGE_FAILED, 503, "storage-failed")                                                                                                 \
	ERRID(SHUTTING_DOWN, 503, "shutting-down")                                                                                                   \
	ERRID(NO_QUORUM, 503, "no-quorum")                                                                                                           \
	ERRID(NO_RING, 503, "no-ring")                                                                                                               \
	ERRID(BUCKET, 503, "bucket")                                                                                                                 \
	/* queries */                                                                                                                                \
	ERRID(BAD_MATCHER, 400, "bad-matcher")                                                                                                       \
	ERRID(BAD_PARAMETER, 400, "bad-parameter")                                                                                                   \
	ERRID(QUERY_TOO_LARGE, 400, "query-too-large")                                                                                               \
	ERRID(QUERY_TIMEOUT, 503, "query-timeout")                                                                                                   \
	ERRID(INCOMPLETE, 503, "incomplete")                                                                                                         \
	ERRID(BLOCK_DAMAGED, 500, "block-damaged")                                                                                                   \
	ERRID(INTERNAL, 500, "internal")

enum errid {
	ERRID_NONE,
#define ERRID_ENUM(name, status, text) ERRID_##name,
	ERRIDS(ERRID_ENUM)
#undef ERRID_ENUM
		ERRID_COUNT
};

const char *errid_text(enum errid id); /* "err-varve-..."; NULL for ERRID_NONE */
int errid_status(enum errid id);       /* HTTP status */
enum errid errid_of(const char *text); /* ERRID_NONE when unknown or NULL */

/* err_set that also names the id a client will see. */
errc err_id(struct err *err, enum errid id, errc code, const char *fmt, ...) PRINTF_LIKE(4, 5);
