/* query/query_int.h - what the files of query/ share.
 *
 *     query_sources.c   which sources a question needs, pinned, each once
 *     query_blocks.c    open blocks, kept between questions; query_bucket_files.c + query_cache.c: a bucket block's bytes
 *     query_external.c  external labels on matchers and series, and the order that they change
 *     query_merge.c     many sources, one ascending stream of series
 *     query_samples.c   one series' chunks from many sources: samples in time order, or chunks that do not overlap
 *     query_fleet_int.h the other nodes
 */
#pragma once
#include <pthread.h>
#include "base/limits.h"
#include "base/metrics.h"
#include "proto/proto.h"
#include "query/query.h"

struct query_cache;  /* pages of bucket indexes on disk */
struct query_blocks; /* open blocks */
struct fleet;	     /* the other nodes */
struct fleet_ask;    /* a question to them */

struct query {
	struct query_config cfg; /* constant after open */
	struct arena arena;	 /* the external labels, and: */
	struct span *replica;	 /* labels that replicas differ in */
	size_t n_replica;
	struct query_cache *cache;
	struct query_blocks *blocks;
	struct fleet *fleet; /* NULL: alone */
	struct metric *reads, *series, *samples, *quarantined, *retries, *peer_questions, *peer_failures, *peer_reads;
};

/* ---- one question ---- */

/* What a question holds until it is answered: sources, matchers, deadline, memory. */
struct question {
	struct query *q;
	struct span tenant;
	int64_t mint, maxt; /* closed */
	int64_t deadline_mono_ms;
	struct arena arena; /* sources, matchers, labels; bounded by --query.max-memory */
	struct qsource *sources;
	size_t n_sources;
	const char *warning; /* the answer may lack something of this node or the bucket, and why; NULL = whole */
	/* what the asker wants */
	bool alone;	/* scope=local: no other node is asked */
	bool for_peer;	/* a peer asks: of this node, what the bucket may not have */
	bool partial;	/* partial_response=true: what there is, although a node does not answer that may have more */
	bool committed; /* a part of the answer is out, without a warning: what is missing from here on is an error */
	const struct span *replica;
	size_t n_replica;      /* 0 with dedup=false */
	struct fleet_ask *ask; /* NULL: nobody else was asked */
	/* the source that an error came from; set by the merge, and by the samples */
	struct ulid blamed;
	const char *blamed_kind;
};

/* A source with the labels that are added to each of its series. */
struct qsource {
	struct source *src;
	struct labels ext; /* sorted */
};

void question_init(struct question *qn, struct query *q, struct span tenant, int64_t mint, int64_t maxt);
/* scope, partial_response, dedup; after http_parse_params. */
CHECKED errc question_params(struct question *qn, struct http_request *r, struct err *err);
/* Its warnings, this node's and the fleet's, by number from 0; NULL: no more. They live until the question is released. */
const char *question_warning(const struct question *qn, size_t i);
void question_warning_headers(const struct question *qn, struct http_request *r); /* X-Varve-Warning, one each */
/* Finds and pins the sources. Asked in the direction in which data moves: head, local, bucket. */
CHECKED errc question_sources(struct question *qn, struct err *err);
/* Releases the sources; the arena is reset, so that the question can be asked again. */
void question_release(struct question *qn);
void question_free(struct question *qn);
CHECKED errc question_check_deadline(const struct question *qn, struct err *err);
/* After a failed answer: quarantines the blamed block if it is damaged or gone. true: ask again, it will go without it (or from its other copy). */
bool question_blame(struct question *qn, errc rc, struct err *err);

/* ---- external labels ---- */

/* Matchers for one source: those on external labels are judged and taken out. *none: nothing in the source can match. */
CHECKED errc external_matchers(const struct labels ext, const struct matcher *m, size_t n, struct arena *arena, struct matcher **out, size_t *n_out,
	bool *none, struct err *err);
/* l without the labels of these names: l itself when it has none of them. */
CHECKED errc labels_without(struct labels l, const struct span *names, size_t n, struct arena *arena, struct labels *out, struct err *err);
/* Own and external labels as one sorted set; the external ones win. Array from the arena. */
CHECKED errc external_join(struct labels own, struct labels ext, struct arena *arena, struct labels *out, struct err *err);

/* A stream of one source's series with external labels, ascending by the joined labels. Each series' labels and chunk bytes live in the
 * stream until the next call. */
struct ext_iter;
struct ext_series {
	struct labels labels;
	struct labels own; /* private to the stream's reordering */
	struct chunk *chunks;
	size_t n_chunks;
	const struct interval *deleted;
	size_t n_deleted;
	const struct source *src; /* where it is from; NULL: a peer */
};
/* Without the labels that the question's replicas differ in. */
CHECKED errc ext_iter_open(const struct question *qn, struct qsource *s, const struct matcher *m, size_t n, const struct select_options *opt,
	struct ext_iter **out, struct err *err);
CHECKED errc ext_iter_next(struct ext_iter *it, struct ext_series *out, bool *more, struct err *err);
/* A further series of exactly these labels, right behind the one that was given: only where external labels replaced own ones. */
bool ext_iter_twin(struct ext_iter *it, struct labels labels, struct ext_series *out);
void ext_iter_close(struct ext_iter *it); /* NULL allowed */

/* ---- merging ---- */

struct merge;
/* One series over all sources: its parts in no order. Valid until the next call. */
struct merged {
	struct question *qn; /* told whose chunk proves damaged; NULL: nobody */
	struct labels labels;
	const struct ext_series *parts;
	size_t n_parts;
};
/* sets: one or more lists of matchers (match[]); a series that several find is given once. Peers that were asked are merged, too. */
struct matcher_set {
	struct matcher *m;
	size_t n;
};
CHECKED errc merge_open(struct question *qn, const struct matcher_set *sets, size_t n_sets, bool skip_chunks, struct merge **out, struct err *err);
CHECKED errc merge_next(struct merge *m, struct merged *out, bool *more, struct err *err);
void merge_close(struct merge *m);

/* ---- samples ---- */

/* All samples of a series in [mint, maxt] in time order, each time once (the order-free winner), deleted ones left out. */
struct sample_iter;
CHECKED errc samples_open(const struct merged *s, int64_t mint, int64_t maxt, struct arena *arena, struct sample_iter **out, struct err *err);
/* The histogram lives until the next call. */
CHECKED errc samples_next(struct sample_iter *it, struct chunk_point *p, bool *more, struct err *err);

void samples_close(struct sample_iter *it); /* its memory; NULL allowed */

/* The same series as chunks that ascend, do not overlap and hold no deleted sample; those that can stay as they are stay. They may reach outside
 * [mint, maxt]. Array and new bytes from the arena. */
CHECKED errc samples_chunks(const struct merged *s, int64_t mint, int64_t maxt, struct arena *arena, struct chunk **out, size_t *n, struct err *err);

/* ---- names, exemplars, metadata: of this node, and of those that the question is for ---- */

/* Label names, or the values of `name`, sorted, each once; in the question's arena. */
CHECKED errc names_gather(struct question *qn, bool values, struct span name, const struct matcher_set *sets, size_t n_sets, struct span **v,
	size_t *n, struct err *err);
struct exemplar_series {
	struct labels labels;
	struct exemplar *v;
	size_t n, cap;
};
CHECKED errc exemplars_gather(
	struct question *qn, const struct matcher_set *sets, size_t n, struct exemplar_series **v, size_t *n_series, struct err *err);
/* metric.p NULL: of every family. */
CHECKED errc metadata_gather(struct question *qn, struct span metric, const struct metadata ***out, size_t *n, struct err *err);

/* ---- blocks and their bytes ---- */

CHECKED errc query_blocks_open(struct query *q, struct query_blocks **out, struct err *err);
void query_blocks_close(struct query_blocks *b);
/* An open block, from the table or opened now; the caller owns a reference. local: from the directory, else from the bucket. */
CHECKED errc query_blocks_get(struct query_blocks *b, const struct catalog_block *row, bool local, struct block **out, struct err *err);
/* Both copies leave the table: their bytes were wrong. */
void query_blocks_drop(struct query_blocks *b, struct ulid u);
/* A local directory stays while it is pinned. false: it is about to be removed, read the bucket's copy. */
bool query_blocks_pin(struct query_blocks *b, struct ulid u);
void query_blocks_unpin(struct query_blocks *b, struct ulid u);
/* Tells the catalog where the parts of newly opened indexes are. */
void query_blocks_note(struct query_blocks *b);
/* query_forget and query_removed. */
bool query_blocks_forget(struct query_blocks *b, struct ulid u);
void query_blocks_removed(struct query_blocks *b, struct ulid u);

CHECKED errc query_cache_open(const char *dir, uint64_t max_bytes, struct query_cache **out, struct err *err);
void query_cache_close(struct query_cache *c);
/* Reads n bytes at off of a block's index (of size_bytes) through the cache; what is missing is fetched in runs of pages by `fetch`. */
CHECKED errc query_cache_read(struct query_cache *c, struct ulid u, uint64_t size_bytes, uint64_t off, size_t n, void *buf,
	errc (*fetch)(void *arg, uint64_t off, size_t n, void *buf, struct err *err), void *arg, struct err *err);
void query_cache_forget(struct query_cache *c, struct ulid u);

/* The files of a block in the bucket: index through the cache, chunks by ranged GETs. row: its objects (copied). */
CHECKED errc bucket_files_open(struct query *q, const struct catalog_block *row, struct block_files **out, struct err *err);

/* ---- HTTP ---- */
CHECKED errc param_time_ms(struct http_request *r, const char *name, int64_t fallback, int64_t *out, struct err *err);
CHECKED errc param_limit(struct http_request *r, size_t *out, struct err *err); /* 0 = none */
CHECKED errc param_matchers(struct http_request *r, struct arena *arena, struct matcher_set **out, size_t *n, struct err *err);
void matcher_sets_free(struct matcher_set *sets, size_t n);
/* The selectors in an expression of the query language, in their order; arrays from the arena, regexes by matcher_sets_free. *n may be 0: "1 + 1" has none.
 * ERR_INVALID with the position where it is no expression. */
CHECKED errc selectors_of(struct span text, struct arena *arena, struct matcher_set **sets, size_t *n, struct err *err);
/* Prometheus' JSON: {"a":"b"}; "1.5", "+Inf"; 1600096945.479 */
void json_labels(struct buf *out, struct labels l);
void json_value(struct buf *out, uint64_t bits);
void json_seconds(struct buf *out, int64_t t);
/* ,"warnings":[...] when there are any: `first` (NULL: none), and the question's. */
void json_warnings(struct buf *out, const struct question *qn, const char *first);
/* Answers with the error: by its id, else by its class. */
void query_error(struct http_request *r, errc rc, struct err *err);
