/* head/head_append_hist.c - the histograms of a request: packed before any lock is taken, judged behind the floats of their series.
 *
 * A histogram leans on nothing in the log but its series' definition, so a series that begins with one has keys of 0.
 */
#include "head/head_int.h"

/* ---- before the locks ---- */

errc head_append_hists_pack(struct append_ctx *c, struct err *err)
{
	errc rc = OK;
	const struct head_batch *b = c->batch;
	struct buf buf;
	buf_init(&buf, LIMIT_HISTOGRAM_MEMORY_BYTES);
	if (b->n_hists > c->cap_hists) {
		size_t n = b->n_hists + b->n_hists / 4;
		CHECK(head_append_grow(&c->hists, n, sizeof *c->hists) && head_append_grow(&c->sorted_hists, n, sizeof *c->hists) &&
				head_append_grow(&c->hist_meta, n, sizeof *c->hist_meta) &&
				head_append_grow(&c->sorted_hist_meta, n, sizeof *c->hist_meta),
			ERR_NOMEM, "no memory for %zu histograms of a request", b->n_hists);
		c->cap_hists = n;
	}
	memset(c->hist_meta, 0xff, b->n_hists * sizeof *c->hist_meta);
	for (size_t i = 0; i < b->n_hists; i++) {
		const struct head_hist *h = &b->hists[i];
		buf_clear(&buf);
		histogram_pack(h->kind, h->h, &buf);
		CHECK(!buf.failed, ERR_NOMEM, "no memory for a histogram of %u buckets", h->h->n_pos + h->h->n_neg);
		struct span packed = span_of(buf.p, buf.n);
		/* What is too large is refused: its bytes are not looked at again. */
		if (packed.n <= LIMIT_HISTOGRAM_PACKED_BYTES)
			packed = arena_dup(&c->arena, packed);
		CHECK(packed.p, ERR_NOMEM, "no memory for a histogram of %u buckets", h->h->n_pos + h->h->n_neg);
		c->hists[i] = (struct wal_histogram){.t = h->t, .packed = packed};
	}
fail:
	buf_free(&buf);
	return rc;
}

/* ---- verdicts ---- */

static void refuse(struct append_ctx *c, struct head_series *out, enum errid id, int64_t t)
{
	if (out->hist_refused++ == 0 && out->refused == 0) {
		out->refused_id = id;
		out->refused_t = t;
	}
	c->refused[id]++;
}

uint32_t head_append_hists_inside(const struct append_ctx *c, const struct head_series *s)
{
	uint32_t n = 0;
	for (uint32_t k = 0; k < s->n_hist; k++)
		n += head_append_bounds(c, c->batch->hists[s->first_hist + k].t) == ERRID_NONE;
	return n;
}

void head_append_hists_refuse(struct append_ctx *c, struct head_series *out, enum errid id)
{
	for (uint32_t k = 0; k < out->n_hist; k++) {
		int64_t t = c->batch->hists[out->first_hist + k].t;
		refuse(c, out, id != ERRID_NONE ? id : head_append_bounds(c, t), t);
	}
}

errc head_append_hists_locked(struct append_ctx *c, struct shard *sh, uint32_t shard, struct series *s, struct head_series *out, struct span wire,
	bool young, uint32_t def, struct err *err)
{
	uint64_t ref = atomic_load_explicit(&s->ref, memory_order_relaxed);
	for (uint32_t k = 0; k < out->n_hist; k++) {
		uint32_t at = out->first_hist + k;
		struct wal_histogram *h = &c->hists[at];
		enum errid id = h->packed.n > LIMIT_HISTOGRAM_PACKED_BYTES ? ERRID_HISTOGRAM_TOO_LARGE : head_append_bounds(c, h->t);
		if (id != ERRID_NONE) {
			refuse(c, out, id, h->t);
			continue;
		}
		struct wseries *ws;
		errc rc = head_append_place_locked(c, sh, shard, s, h->t, &ws, err);
		if (rc != OK)
			return rc;
		struct window *w = c->wins[c->cur].w;
		struct wpart *part = w->parts[shard].p;
		bool late;
		switch (head_hist_insert_locked(w, sh, part, ws, h->t, h->packed, c->batch->winner, &late, err)) {
		case INSERT_REPLACED:
			out->hist_stored++;
			break;
		case INSERT_STORED:
			out->hist_stored++;
			c->n_late += late;
			part->n_samples++;
			part->min_t = h->t < part->min_t ? h->t : part->min_t;
			part->max_t = h->t > part->max_t ? h->t : part->max_t;
			break;
		case INSERT_DUPLICATE:
			out->hist_duplicate++;
			c->n_hist_dup++;
			c->batch->leans = true;
			continue;
		case INSERT_CONFLICT:
			refuse(c, out, ERRID_DUPLICATE_TIMESTAMP, h->t);
			c->batch->leans = true;
			continue;
		case INSERT_FAILED:
			return err && err->code ? err->code : ERR_NOMEM;
		}
		c->wins[c->cur].n_hists++;
		if (young && def == UINT32_MAX)
			def = head_append_def_locked(c, s, wire);
		h->ref = ref;
		c->hist_meta[at] = (struct log_meta){.win = c->cur, .def = def};
		c->n_hists_logged++;
	}
	return OK;
}
