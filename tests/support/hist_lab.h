/* tests/support/hist_lab.h - requests with histograms and floats for a head_lab.h, and an array that says what must be there of them.
 *
 * All of them are the first tenant's. Calls assert (cmocka) as they go.
 */
#pragma once
#include "tests/support/head_lab.h"
#include "tests/support/hist_make.h"

struct hist_point {
	uint32_t series;
	int64_t t;
	bool is_hist;
	uint64_t v;
	struct span packed;
};
/* The next of a series; 0 and 1: floats; 2 to 8: histograms; others both. Packed bytes go to keep. */
struct hist_point hist_point_make(uint32_t series, int64_t t, struct hist_maker *m, struct arena *keep, uint64_t *r);

struct hist_request {
	struct lab_batch b;
	struct head_hist *hists;
	struct histogram *unpacked;
	size_t n_hists, cap;
	struct arena arena;
};
void hist_request_begin(struct hist_request *r, size_t cap);
void hist_request_put(struct hist_request *r, const struct hist_point *p);
errc hist_request_send(struct lab *l, struct hist_request *r, struct err *err); /* reserve, append, commit, wait */
void hist_request_free(struct hist_request *r);

/* Windows that were cut don't know their samples any more: gen. */
struct hist_entry {
	struct hist_point p;
	uint32_t gen;
};
struct hist_model {
	struct hist_entry *v;
	size_t n, cap;
	uint32_t gen;
	struct arena arena;
};
enum hist_verdict { HIST_STORED, HIST_DUPLICATE, HIST_REFUSED };
enum hist_verdict hist_model_put(struct hist_model *m, const struct hist_point *p);
/* One that is there, in a third of the cases as it is, else in another layout. */
struct hist_point hist_point_again(struct hist_model *m, uint64_t *r);
void hist_model_free(struct hist_model *m);

/* What is read: by series and time, the winner of a time first. */
struct hist_found {
	uint32_t series;
	int64_t t;
	enum sample_kind kind;
	uint64_t v;
	struct span canonical;
	uint8_t hint;
	bool first; /* of its chunk */
};
struct hist_founds {
	struct hist_found *v;
	size_t n, cap;
	struct arena arena;
	size_t chunks[4]; /* by encoding */
};
void hist_read_source(struct source *src, struct hist_founds *f);
void hist_gather(struct lab *l, struct hist_founds *f); /* from the head and the blocks */
void hist_founds_free(struct hist_founds *f);
/* Everything that is there is what the array says, once. chunks: counts by encoding, added to; or NULL. */
void hist_check(struct lab *l, const struct hist_model *m, size_t *chunks);
