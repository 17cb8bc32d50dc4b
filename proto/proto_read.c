/* proto/proto_read.c - a remote-read request, by protobuf-c (generated from remote.proto), copied into the request's arena.
 *
 * protobuf-c turns two bytes of body into a hundred of memory; it draws from an arena of its own with a maximum, so a hostile body
 * ends in a refusal. Counts are checked before anything is copied.
 */
#include <inttypes.h>
#include "base/limits.h"
#include "proto/proto.h"
#include "proto/remote.pb-c.h"

enum { RESPONSE_SAMPLES = 0, RESPONSE_STREAMED_XOR_CHUNKS = 1 };
enum { MATCH_TYPES = 4 };

/* protobuf-c says "no" in one way for malformed bytes and for lack of memory; this keeps them apart. */
struct scratch {
	struct arena arena;
	bool full;
};

static void *scratch_alloc(void *data, size_t n)
{
	struct scratch *s = data;
	void *p = arena_alloc(&s->arena, n);
	if (!p)
		s->full = true;
	return p;
}

static void scratch_free(void *data, void *p)
{
	(void)data;
	(void)p; /* all at once, in rr_decode */
}

static CHECKED errc copy(struct arena *arena, ProtobufCBinaryData from, struct span *to, struct err *err)
{
	*to = arena_dup(arena, span_of(from.len ? (const char *)from.data : "", from.len));
	return to->p ? OK : err_set(err, ERR_NOMEM, "remote read: no memory for %zu bytes", from.len);
}

static CHECKED errc decode_query(const Varve__Query *from, struct arena *arena, struct rr_query *to, struct err *err)
{
	errc rc = OK;
	*to = (struct rr_query){.start_ms = from->start_timestamp_ms, .end_ms = from->end_timestamp_ms, .hint_func = {"", 0}};
	if (from->n_matchers > LIMIT_QUERY_MATCHERS)
		return err_id(err, ERRID_BAD_MATCHER, ERR_LIMIT, "%zu matchers in one query, %d are allowed", from->n_matchers, LIMIT_QUERY_MATCHERS);
	to->matchers = arena_calloc(arena, from->n_matchers ? from->n_matchers : 1, sizeof *to->matchers);
	CHECK(to->matchers, ERR_NOMEM, "remote read: no memory for %zu matchers", from->n_matchers);
	for (size_t i = 0; i < from->n_matchers; i++) {
		const Varve__LabelMatcher *m = from->matchers[i];
		if (m->type < 0 || m->type >= MATCH_TYPES)
			return err_id(err, ERRID_BAD_MATCHER, ERR_INVALID, "matcher type %d is unknown", m->type);
		to->matchers[i].type = m->type;
		TRY(copy(arena, m->name, &to->matchers[i].name, err));
		TRY(copy(arena, m->value, &to->matchers[i].value, err));
	}
	to->n_matchers = from->n_matchers;
	if (from->hints) {
		to->hint_step_ms = from->hints->step_ms;
		to->hint_start_ms = from->hints->start_ms;
		to->hint_end_ms = from->hints->end_ms;
		TRY(copy(arena, from->hints->func, &to->hint_func, err));
	}
fail:
	return rc;
}

errc rr_decode(struct span body, struct arena *arena, struct rr_request *out, struct err *err)
{
	ASSERT(arena && out);
	errc rc = OK;
	struct scratch scratch = {.full = false};
	arena_init(&scratch.arena, LIMIT_READ_DECODE_BYTES);
	ProtobufCAllocator allocator = {.alloc = scratch_alloc, .free = scratch_free, .allocator_data = &scratch};
	*out = (struct rr_request){0};

	const Varve__ReadRequest *m = varve__read_request__unpack(&allocator, body.n, (const uint8_t *)body.p);
	if (!m) {
		if (scratch.full && scratch.arena.used_bytes + body.n + KIB < LIMIT_READ_DECODE_BYTES)
			rc = err_set(err, ERR_NOMEM, "remote read: no memory to decode %zu bytes", body.n);
		else if (scratch.full)
			rc = err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "remote read: decoding %zu bytes takes more than %" PRIu64, body.n,
				LIMIT_READ_DECODE_BYTES);
		else
			rc = err_id(err, ERRID_PROTOBUF, ERR_INVALID, "remote read: %zu bytes are not a ReadRequest", body.n);
		goto fail;
	}
	if (m->n_queries > LIMIT_READ_QUERIES) {
		rc = err_id(err, ERRID_QUERY_TOO_LARGE, ERR_LIMIT, "%zu queries in one request, %d are allowed", m->n_queries, LIMIT_READ_QUERIES);
		goto fail;
	}
	bool known = m->n_accepted_response_types == 0;
	for (size_t i = 0; i < m->n_accepted_response_types && !known; i++) {
		int type = m->accepted_response_types[i];
		known = type == RESPONSE_SAMPLES || type == RESPONSE_STREAMED_XOR_CHUNKS;
		out->streamed = type == RESPONSE_STREAMED_XOR_CHUNKS;
	}
	if (!known) {
		rc = err_id(err, ERRID_BAD_REQUEST, ERR_INVALID, "none of the %zu accepted response types is SAMPLES or STREAMED_XOR_CHUNKS",
			m->n_accepted_response_types);
		goto fail;
	}
	out->queries = arena_calloc(arena, m->n_queries ? m->n_queries : 1, sizeof *out->queries);
	CHECK(out->queries, ERR_NOMEM, "remote read: no memory for %zu queries", m->n_queries);
	for (size_t i = 0; i < m->n_queries; i++)
		TRY(decode_query(m->queries[i], arena, &out->queries[i], err));
	out->n_queries = m->n_queries;
fail:
	arena_free(&scratch.arena);
	return rc;
}
