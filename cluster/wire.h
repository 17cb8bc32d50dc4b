/* cluster/wire.h - what one varve says to another about a write, and what it hears back. Bytes: docs/format/peer.md.
 *
 *     request: header, sections of (tenant, version, series as the client sent them) ──▶ the node stores all of it, and sends nothing on
 *     answer:  header, a verdict for each series that was not simply stored          ◀── durable, or refused, or to be tried again
 *
 * A section's body is itself a valid write request of remote write 1.0 or 2.0, put together of the client's own bytes: nothing is encoded a second time on the way. All of
 * its series are numbered through, section by section, and behind a section's series its metadata fields (1.0): these numbers are how an answer names them.
 *
 * Both are guarded by a CRC-32C over all of it. Bytes come from the network: every number is judged before it sizes or addresses anything.
 */
#pragma once
#include "base/arena.h"
#include "base/bytes.h"
#include "base/err.h"
#include "base/errid.h"
#include "proto/proto.h"

#define PEER_WRITE_PATH "/-/peer/write"
#define PEER_CONTENT_TYPE "application/x-varve-peer"

enum { PEER_VERSION = 1, PEER_ID_BYTES = 16, PEER_HEADER_BYTES = 76, PEER_SECTION_BYTES = 14, PEER_ANSWER_BYTES = 68, PEER_VERDICT_BYTES = 28 };

struct peer_section {
	struct span tenant; /* tenant_valid */
	enum rw_version version;
	uint32_t n_series;
	uint32_t n_metadata; /* 1.0 only */
	uint32_t first;	     /* number of its first series; set by decoding */
	struct span body;    /* who reads it holds its series against n_series, as decoding here does not look inside */
};

struct peer_request {
	uint64_t epoch;		   /* of the sender's rings: to know of, never to refuse for */
	uint8_t id[PEER_ID_BYTES]; /* of the client's request, the same for all peers */
	bool hint;		   /* delivered late: what is there already is no news, and nobody waits */
	uint32_t left_ms;	   /* until the sender stops waiting; 0: it does not say */
	int64_t now_ms;		   /* when the client's request came, by the sender's clock, and ... */
	int64_t min_t, max_t;	   /* ... the bounds that follow: judged by nobody a second time */
	struct peer_section *sections;
	uint32_t n_sections;
	uint32_t n_items; /* series and metadata of all sections; set by decoding */
};

/* Room for the header. Then, section by section: begin, whatever its body is of, end. */
CHECKED bool peer_raw_begin(struct buf *raw);
size_t peer_section_begin(struct buf *raw, const struct peer_section *s); /* all of s but its body; returns its mark */
void peer_section_end(struct buf *raw, size_t mark);
/* The finished frame into `out`, which is empty; `raw` is used up (the two change places when nothing is compressed). Only r's header fields and n_sections are used. ERR_NOMEM,
 * ERR_LIMIT (LIMIT_PEER_REQUEST_BYTES). */
CHECKED errc peer_raw_finish(const struct peer_request *r, bool lz4, struct buf *raw, struct buf *out, struct err *err);
/* All of it in one go. */
CHECKED errc peer_request_encode(const struct peer_request *r, bool lz4, struct buf *out, struct err *err);

/* Bytes that decoding takes from the arena for the frame's content, for budgets: the header is looked at, and nothing else. */
CHECKED errc peer_request_declared(struct span frame, size_t *n, struct err *err);
/* Spans borrow from frame and arena. ERR_INVALID, ERR_UNSUPPORTED (another version) and ERR_LIMIT carry PEER_FRAME; ERR_NOMEM OVERLOADED. */
CHECKED errc peer_request_decode(struct span frame, struct arena *arena, struct peer_request *out, struct err *err);
/* The header's fields and n_sections, and whether the checksum is right: for who passes a frame on and need not take it apart. Errors as of peer_request_decode. */
CHECKED errc peer_request_peek(struct span frame, struct peer_request *out, struct err *err);
/* Floats and histograms of all its series, counted by their tags; what is no protobuf has none. */
uint64_t peer_request_samples(const struct peer_request *r);

/* The same request as a hint, into `out`, which is empty. `frame` is one that was made here. ERR_NOMEM. */
CHECKED errc peer_request_as_hint(struct span frame, struct buf *out, struct err *err);
/* With only those items for which keep says so, which is asked of all, ascending: a hint as well; `out` is empty before. Sections without any are left out; *n_kept may be 0, `out` is empty then. */
CHECKED errc peer_request_pick(
	struct span frame, bool lz4, bool (*keep)(void *arg, uint32_t item), void *arg, uint32_t *n_kept, struct buf *out, struct err *err);

/* ---- the answer ---- */

enum peer_verdict_kind { PEER_STORED, PEER_REFUSED, PEER_AGAIN };

/* Of a series (or metadata field) that was not stored in full. */
struct peer_verdict {
	uint32_t item;
	enum peer_verdict_kind kind;	    /* STORED: it is no trouble that something was left out (exemplars of 1.0) */
	enum errid id;			    /* why; NONE when stored */
	int64_t t;			    /* of its first refused sample */
	uint32_t samples, hists, exemplars; /* of it that are there all the same */
};

struct peer_answer {
	uint64_t epoch; /* of the answering node's rings; 0: it has none */
	uint8_t id[PEER_ID_BYTES];
	uint64_t samples, hists, exemplars; /* of the whole request that are there now */
	struct peer_verdict *verdicts;	    /* by item, ascending; all others were stored in full */
	uint32_t n_verdicts;
};

/* The longest answer to a request of so many items. */
size_t peer_answer_max(uint32_t n_items);
/* Appends. ERR_NOMEM. */
CHECKED errc peer_answer_encode(const struct peer_answer *a, struct buf *out, struct err *err);
/* n_items: of the request. An id that this build does not know becomes INTERNAL. ERR_INVALID, ERR_UNSUPPORTED, ERR_NOMEM. */
CHECKED errc peer_answer_decode(struct span bytes, uint32_t n_items, struct arena *arena, struct peer_answer *out, struct err *err);
