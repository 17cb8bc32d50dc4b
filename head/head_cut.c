/* head/head_cut.c - a frozen window becomes a block.
 *
 *     series of all parts ─▶ sorted by labels ─▶ each: leaves ─▶ chunks ─▶ block writer
 *
 * The block's chunks are a function of the sorted samples alone: what the cutting rule makes of them in time order. Leaves that are not
 * touched (head_leaf.c) are that already and are copied. From a touched leaf on the samples are fed to the rule anew, until it begins a
 * chunk exactly where an untouched leaf begins; from there on copying is right again, because what the rule does with a chunk depends on
 * its first sample and what follows, not on what was before. Series with histograms are encoded from their samples (head_hist_chunks.c).
 *
 * The window is frozen, so nothing is locked. Memory: a pointer per series, and one series' chunks. The rate is limited, because the
 * log's syncs share the disk.
 */
#include <stdio.h>
#include "head/head_int.h"

/* ---- one series ---- */

struct cut_series {
	struct window *w;
	struct arena arena; /* of the series at hand */
	struct chunk *chunks;
	size_t n, cap;
	uint64_t n_samples;
	/* the chunk being encoded anew; n == 0: none */
	struct xor_appender app;
	struct chunk_cutter cutter;
	uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
	struct chunk_sample samples[HEAD_RAW_SAMPLES + 1];
	uint8_t record[HEAD_CHUNK_MAX_BYTES];
	struct chunk_encoder *encoder; /* for series with histograms; NULL: there was none so far */
};

static errc chunk_add(struct cut_series *cs, int64_t mint, int64_t maxt, uint8_t enc, uint32_t n, struct span data, struct err *err)
{
	if (cs->n == cs->cap) {
		size_t cap = cs->cap ? cs->cap * 2 : 16;
		struct chunk *v = realloc(cs->chunks, cap * sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "no memory for the chunks of a series");
		cs->chunks = v;
		cs->cap = cap;
	}
	struct span copy = arena_dup(&cs->arena, data);
	if (!copy.p)
		return err_set(err, ERR_NOMEM, "no memory for the chunks of a series");
	cs->chunks[cs->n++] = (struct chunk){.mint = mint, .maxt = maxt, .enc = enc, .data = copy};
	cs->n_samples += n;
	return OK;
}

static errc encoded_add(struct cut_series *cs, struct err *err)
{
	errc rc = OK;
	if (cs->app.n > 0)
		rc = chunk_add(cs, cs->cutter.start, cs->app.t, CHUNK_XOR, cs->app.n, span_of(cs->bytes, cs->app.n_bytes), err);
	xor_appender_init(&cs->app);
	return rc;
}

/* One leaf's samples (or the open chunk's) in order. *met: the rule begins a chunk exactly with this untouched leaf; nothing of it was fed. */
static errc encode_anew(struct cut_series *cs, size_t n, bool untouched, bool *met, struct err *err)
{
	errc rc = OK;
	*met = false;
	for (size_t k = 0; k < n; k++) {
		const struct chunk_sample *s = &cs->samples[k];
		struct chunk_cutter c = cs->cutter;
		if (chunk_cutter_cut(&c, cs->w->range, cs->app.n, cs->app.n_bytes, cs->app.t, s->t)) {
			TRY(encoded_add(cs, err));
			if (k == 0 && untouched) {
				*met = true;
				return OK;
			}
		}
		cs->cutter = c;
		xor_append(&cs->app, cs->bytes, s->t, s->v);
	}
fail:
	return rc;
}

static errc encoder_emit(void *arg, const struct chunk *c, uint32_t n, struct err *err)
{
	return chunk_add(arg, c->mint, c->maxt, c->enc, n, c->data, err);
}

/* What came in order, as it is. It is found from its end. */
static errc chain_chunks_add(struct cut_series *cs, const struct wpart *part, const struct wseries *ws, struct err *err)
{
	errc rc = OK;
	struct window *w = cs->w;
	struct chain_reader r;
	struct chunkfile_chunk c;
	bool more;
	TRY(head_chain_open(w, ws->chain, w->start + (ws->n > 0 ? ws->start : ws->t + INT64_C(1)), cs->record + XOR_HEADER_BYTES, &r, err));
	if (ws->n > 0) {
		struct span open = span_of(cs->record, head_open_read_pieces(part, ws, cs->record));
		TRY(chunk_add(cs, w->start + ws->start, w->start + ws->t, CHUNK_XOR, ws->n, open, err));
	}
	for (;;) {
		TRY(head_chain_next(&r, cs->record, &c, &more, err));
		if (!more)
			break;
		TRY(chunk_add(cs, c.mint, c.maxt, CHUNK_XOR, c.n, span_of(cs->record, c.n_bytes), err));
	}
	for (size_t i = 0, k = cs->n; i + 1 < k; i++) {
		struct chunk x = cs->chunks[i];
		cs->chunks[i] = cs->chunks[--k];
		cs->chunks[k] = x;
	}
fail:
	return rc;
}

static errc series_chunks(struct cut_series *cs, const struct wpart *part, const struct wseries *ws, struct err *err)
{
	errc rc = OK;
	struct window *w = cs->w;
	size_t n;
	bool met;
	cs->n = 0;
	arena_reset(&cs->arena);
	if (UNLIKELY(ws->hist != NULL)) {
		if (!cs->encoder)
			TRY(chunk_encoder_open(w->range, encoder_emit, cs, &cs->encoder, err));
		return head_hist_cut(w, part, ws, cs->encoder, err);
	}
	if (ws_chained(ws))
		return chain_chunks_add(cs, part, ws, err);
	xor_appender_init(&cs->app);
	for (uint32_t i = 0; i < ws_leaves(ws); i++) {
		const struct leaf *l = &ws->leaves->v[i];
		met = cs->app.n == 0 && !l->touched;
		if (!met) {
			TRY(head_leaf_decode(w, l, cs->samples, cs->record, &n, err));
			TRY(encode_anew(cs, n, !l->touched, &met, err));
		}
		if (met) {
			struct chunkfile_chunk c;
			TRY(head_chunkfile_chunk(&w->file, l->off, cs->record, &c, err));
			TRY(chunk_add(cs, w->start + l->mint, w->start + l->maxt, CHUNK_XOR, l->n, span_of(cs->record, c.n_bytes), err));
		}
	}
	if (ws->n > 0) {
		struct span open = span_of(cs->record, head_open_read_pieces(part, ws, cs->record));
		met = cs->app.n == 0;
		if (!met) {
			TRY(xor_decode(open, cs->samples, HEAD_RAW_SAMPLES + 1, &n, err));
			TRY(encode_anew(cs, n, true, &met, err));
		}
		if (met)
			TRY(chunk_add(cs, w->start + ws->start, w->start + ws->t, CHUNK_XOR, ws->n, open, err));
	}
	TRY(encoded_add(cs, err));
fail:
	return rc;
}

/* ---- the order of series ---- */

/* The first two pairs' ranks, then the series. Most comparisons end with the key. */
struct cut_item {
	uint64_t key;
	uint32_t shard, local;
};

struct cut_order {
	struct cut_item *v;
	size_t n;
	uint32_t *pairs; /* ids of the window's pairs */
	size_t n_pairs;
};

static int pair_order(const void *a, const void *b, void *symbols)
{
	struct label x = head_pair_label(head_pair(symbols, *(const uint32_t *)a));
	struct label y = head_pair_label(head_pair(symbols, *(const uint32_t *)b));
	int c = span_cmp(x.name, y.name);
	return c ? c : span_cmp(x.value, y.value);
}

static int item_order(const void *a, const void *b, void *window)
{
	const struct cut_item *x = a, *y = b;
	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	const struct window *w = window;
	const struct symbols *symbols = &w->head->symbols;
	const struct series *s = part_series(w->parts[x->shard].p, x->local), *t = part_series(w->parts[y->shard].p, y->local);
	uint32_t n = s->n_pairs < t->n_pairs ? s->n_pairs : t->n_pairs;
	for (uint32_t i = 2; i < n; i++) {
		if (s->pairs[i] == t->pairs[i])
			continue;
		return head_pair(symbols, s->pairs[i])->rank < head_pair(symbols, t->pairs[i])->rank ? -1 : 1;
	}
	return (s->n_pairs > t->n_pairs) - (s->n_pairs < t->n_pairs);
}

static void order_free(struct head *h, struct cut_order *o)
{
	for (size_t i = 0; i < o->n_pairs; i++)
		head_pair(&h->symbols, o->pairs[i])->rank = 0;
	free(o->pairs);
	free(o->v);
	*o = (struct cut_order){0};
}

/* Ranks of a window's pairs turn comparing label sets into comparing numbers. */
static errc order_make(struct window *w, struct cut_order *o, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	size_t n = 0, n_pairs = 0;
	*o = (struct cut_order){0};
	for (uint32_t i = 0; i < h->n_shards; i++) {
		TRY(head_window_index(w, i, err));
		n += w->parts[i].p ? w->parts[i].p->n : 0;
		n_pairs += w->parts[i].p ? w->parts[i].p->n_pairs : 0;
	}
	if (n == 0)
		return OK;
	o->v = malloc(n * sizeof *o->v);
	o->pairs = malloc(n_pairs * sizeof *o->pairs);
	CHECK(o->v && o->pairs, ERR_NOMEM, "no memory to sort %zu series", n);
	for (uint32_t i = 0; i < h->n_shards; i++) {
		uint64_t at = 0;
		for (uint32_t pair; head_part_pair(w->parts[i].p, &at, &pair);) {
			struct label_pair *lp = head_pair(&h->symbols, pair);
			if (lp->rank == 0) {
				lp->rank = 1;
				o->pairs[o->n_pairs++] = pair;
			}
		}
	}
	qsort_r(o->pairs, o->n_pairs, sizeof *o->pairs, pair_order, &h->symbols);
	for (size_t i = 0; i < o->n_pairs; i++)
		head_pair(&h->symbols, o->pairs[i])->rank = (uint32_t)i + 1;
	for (uint32_t i = 0; i < h->n_shards; i++) {
		const struct wpart *p = w->parts[i].p;
		for (uint32_t k = 0; p && k < p->n; k++) {
			const struct wseries *ws = part_ws(p, k);
			if (ws_empty(ws))
				continue;
			const struct series *s = part_series(p, k);
			uint64_t key = (uint64_t)head_pair(&h->symbols, s->pairs[0])->rank << 32;
			if (s->n_pairs > 1)
				key |= head_pair(&h->symbols, s->pairs[1])->rank;
			o->v[o->n++] = (struct cut_item){key, i, k};
		}
	}
	qsort_r(o->v, o->n, sizeof *o->v, item_order, w);
fail:
	if (rc != OK)
		order_free(h, o);
	return rc;
}

/* ---- the block ---- */

/* The configured labels and the tenant's, which wins over a configured one of its name. */
static errc ext_labels(struct window *w, struct arena *a, struct labels *out, struct err *err)
{
	const struct labels *cfg = &w->head->cfg.ext_labels;
	struct label *v = arena_alloc(a, (cfg->n + 1) * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for external labels");
	uint32_t n = 0;
	for (uint32_t i = 0; i < cfg->n; i++)
		if (!span_is(cfg->v[i].name, "tenant_id"))
			v[n++] = cfg->v[i];
	v[n++] = (struct label){SPAN("tenant_id"), head_tenant_name(w->tenant)};
	*out = (struct labels){v, n};
	labels_sort(*out);
	return OK;
}

static void rate_limit(struct head *h, int64_t begin_ns, uint64_t bytes)
{
	int64_t due = begin_ns + (int64_t)(bytes * 1000 / (HEAD_CUT_BYTES_PER_S / 1000000));
	int64_t now = io_mono_ns();
	if (due - now > 5000000 && !atomic_load_explicit(&h->stop, memory_order_relaxed))
		io_sleep_ms((due - now) / 1000000);
}

errc head_cut_write(struct window *w, struct ulid block, uint64_t upto_seq, struct cut_result *out, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	struct cut_order o = {0};
	struct block_writer *bw = NULL;
	struct cut_series *cs = NULL;
	struct arena arena;
	int64_t begin = io_mono_ns(), mint = INT64_MAX;
	uint64_t bytes = 0, paced = 0;
	ASSERT(w->frozen);
	*out = (struct cut_result){.block = block};
	arena_init(&arena, 16 * MIB);

	TRY(order_make(w, &o, err));
	if (o.n == 0)
		goto fail;
	cs = malloc(sizeof *cs);
	CHECK(cs, ERR_NOMEM, "no memory to cut a window");
	cs->w = w;
	cs->chunks = NULL;
	cs->encoder = NULL;
	cs->n = cs->cap = 0;
	cs->n_samples = 0;
	cs->cutter = (struct chunk_cutter){0};
	arena_init(&cs->arena, GIB);
	struct block_writer_config cfg = {.dir = h->cfg.block_dir, .ulid = block, .chunk_segment_bytes = LIMIT_CHUNK_SEGMENT_BYTES};
	TRY(block_writer_open(&cfg, &bw, err));
	struct label *labels = arena_alloc(&arena, LIMIT_LABELS_DECODE * sizeof *labels);
	CHECK(labels, ERR_NOMEM, "no memory to cut a window");
	for (size_t i = 0; i < o.n; i++) {
		const struct wpart *part = w->parts[o.v[i].shard].p;
		const struct series *s = part_series(part, o.v[i].local);
		struct labels l = {labels, s->n_pairs};
		CHECK(!atomic_load_explicit(&h->stop, memory_order_relaxed), ERR_CANCELED, "stopping");
		for (uint32_t k = 0; k < l.n; k++)
			l.v[k] = head_pair_label(head_pair(&h->symbols, s->pairs[k]));
		TRY(series_chunks(cs, part, part_ws(part, o.v[i].local), err));
		TRY(block_writer_add(bw, l, cs->chunks, cs->n, err));
		mint = cs->chunks[0].mint < mint ? cs->chunks[0].mint : mint;
		for (size_t k = 0; k < cs->n; k++)
			bytes += cs->chunks[k].data.n + 64;
		if (bytes - paced > MIB) {
			paced = bytes;
			rate_limit(h, begin, bytes);
		}
	}
	struct block_meta meta = {
		.mint = mint,
		.maxt = w->start + w->range,
		.level = 1,
		.sources = &block,
		.n_sources = 1,
		.has_thanos = true,
		.source = SPAN("receive"),
		.has_varve = true,
		.window = w->ulid,
		.upto_seq = upto_seq,
		.node = h->cfg.node,
	};
	TRY(ext_labels(w, &arena, &meta.ext_labels, err));
	struct block_writer *finish = bw;
	bw = NULL;
	TRY(block_writer_finish(finish, &meta, &out->bytes, err));
	out->n_series = o.n;
	out->n_samples = cs->n_samples;
fail:
	if (bw)
		block_writer_abort(bw);
	if (cs) {
		chunk_encoder_close(cs->encoder);
		free(cs->chunks);
		arena_free(&cs->arena);
		free(cs);
	}
	order_free(h, &o);
	arena_free(&arena);
	return rc;
}

errc head_cut_announce(struct head *h, struct ulid block, uint64_t bytes, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct block_meta meta;
	struct span json;
	char dir[4096], path[4200];
	arena_init(&arena, 4 * LIMIT_META_JSON_BYTES);
	snprintf(dir, sizeof dir, "%s/%s", h->cfg.block_dir, ulid_text(block).s);
	snprintf(path, sizeof path, "%s/meta.json", dir);
	TRY(io_read_file(path, LIMIT_META_JSON_BYTES, &arena, &json, err));
	TRY(block_meta_parse(path, json, &arena, &meta, err));
	if (h->cfg.on_block)
		TRY(h->cfg.on_block(h->cfg.on_block_arg, dir, &meta, bytes, err));
fail:
	arena_free(&arena);
	return rc;
}
