/* tests/support/annot_lab.h - requests with exemplars and metadata for a head_lab.h, and what must be there of them.
 *
 * The model is a list a tenant, in order of arrival, judged by the plain rule. Calls assert (cmocka) as they go.
 */
#pragma once
#include "tests/support/head_lab.h"

struct annot_exemplar {
	uint32_t k; /* series, as lab_wire has it */
	int64_t t;
	uint64_t v;
	char trace[40]; /* label trace_id; empty: no labels */
	uint64_t acked; /* sim_ops when it was acknowledged */
};
struct annot_list {
	struct annot_exemplar *v;
	size_t n, cap;
};
struct annot_meta {
	char family[32], help[48], unit[16];
	enum metric_type type;
	uint64_t acked;
};
struct annot_meta_list {
	struct annot_meta *v;
	size_t n, cap;
};

enum { ANNOT_MAX = 512 };
struct annot_request {
	struct lab_batch b;
	struct buf text; /* labels of exemplars */
	uint32_t n;	 /* exemplars: of series of[i] of the batch, labels at at[i] */
	struct annot_exemplar e[ANNOT_MAX];
	uint32_t of[ANNOT_MAX];
	size_t at[ANNOT_MAX + 1];
	struct annot_meta m[ANNOT_MAX];
	uint32_t n_meta;
	/* out */
	struct head_annotations a;
};
void annot_begin(struct annot_request *r, uint32_t tenant);
/* To the series that lab_batch_series began last. */
void annot_exemplar(struct annot_request *r, int64_t t, uint64_t v, const char *trace);
void annot_metadata(struct annot_request *r, const char *family, enum metric_type type, const char *help, const char *unit);
/* Judges and commits under a ticket that the caller has, or reserves one; waits. */
errc annot_send(struct lab *l, struct annot_request *r, struct err *err);
errc annot_send_under(struct lab *l, struct annot_request *r, const struct wal_ticket *ticket, struct err *err);
size_t annot_bound(struct lab *l, struct annot_request *r);
void annot_free(struct annot_request *r);

/* What the head gives, by series and order; and metadata in its order. Free with free(list.v). */
struct annot_list annot_read(struct lab *l, uint32_t tenant, int64_t start, int64_t end);
struct annot_meta_list annot_read_meta(struct lab *l, uint32_t tenant, const char *family);

void annot_put(struct annot_list *l, const struct annot_exemplar *e);
int annot_cmp(const void *a, const void *b);	 /* series, time, value, labels */
void annot_sane(struct lab *l, uint32_t tenant); /* chains, counts, memory */
