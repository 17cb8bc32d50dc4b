/* head/head_cut.c - a frozen window becomes a block.
 *
 *     series in the order of labels (head_cut_order.c) ─────────────▶ each: leaves ─▶ chunks ─▶ block writer          a small chunk file, or none
 *     records of chains as they are in the chunk file (head_cut_walk.c) ─▶ spool (head_cut_spool.c) ─▶ block writer   a large one
 *     series that have leaves, in the order they came ─▶ chunks ─────────────┘
 *
 * The block's chunks are a function of the sorted samples alone: what the cutting rule makes of them in time order. Leaves that are not
 * touched (head_leaf.c) are that already and are copied, byte for byte. From a touched leaf on the samples are fed to the rule anew, until it begins a
 * chunk exactly where an untouched leaf begins; from there on copying is right again, because what the rule does with a chunk depends on
 * its first sample and what follows, not on what was before. Histograms have no chunks before there is a block: a series with them is encoded from its samples
 * (head_hist_chunks.c), in whatever order they came.
 *
 * The window is frozen, so nothing is locked but to bring its postings up to date. Memory: 8 bytes a series, one series' chunks, and what the spool says. The rate
 * is limited, because the log's syncs share the disk.
 */
#include <stdio.h>
#include "head/head_cut_int.h"

/* ---- one series ---- */

struct cut_series {
	struct window *w;
	struct cut_file *file;
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
	TRY(head_chain_open(w, cs->file, ws->chain, ws_chain_before(w, ws), cs->record + XOR_HEADER_BYTES, &r, err));
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
		return head_hist_cut(w, part, ws, cs->file, cs->encoder, err);
	}
	if (ws_chained(ws))
		return chain_chunks_add(cs, part, ws, err);
	xor_appender_init(&cs->app);
	for (uint32_t i = 0; i < ws_leaves(ws); i++) {
		const struct leaf *l = &ws->leaves->v[i];
		met = cs->app.n == 0 && !l->touched;
		if (!met) {
			TRY(head_leaf_decode(w, cs->file, l, cs->samples, cs->record, &n, err));
			TRY(encode_anew(cs, n, !l->touched, &met, err));
		}
		if (met) {
			struct chunkfile_chunk c;
			TRY(head_chunkfile_chunk(&w->file, cs->file, l->off, cs->record, &c, err));
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

enum { AHEAD_FAR = 32, AHEAD_NEAR = 24, AHEAD_PIECES = 16 };
/* A series that is read soon: the piece that was asked for last. */
struct cut_ahead {
	const struct wpart *part;
	const struct piece *piece;
};

struct cut {
	struct head *h;
	struct window *w;
	struct block_writer *bw;
	struct cut_order order;
	struct cut_series series;
	struct cut_spool *spool;
	int64_t mint;
	/* labels of the series before, and their pairs' places: neighbours share most of them */
	uint32_t ids[LIMIT_LABELS_DECODE], places[LIMIT_LABELS_DECODE], n_labels;
	struct cut_ahead ahead[AHEAD_PIECES];
	uint32_t n_ahead;
	/* the pace */
	int64_t begin_ns;
	uint64_t bytes, paced;
};

static errc pace(struct cut *c, const struct chunk *chunks, size_t n, struct err *err)
{
	for (size_t k = 0; k < n; k++)
		c->bytes += chunks[k].data.n + 64;
	if (LIKELY(c->bytes - c->paced < MIB))
		return OK;
	c->paced = c->bytes;
	int64_t due = c->begin_ns + (int64_t)(c->bytes * 1000 / (HEAD_CUT_BYTES_PER_S / 1000000)), now = io_mono_ns();
	if (atomic_load_explicit(&c->h->stop, memory_order_relaxed))
		return err_set(err, ERR_CANCELED, "stopping");
	if (due - now > 5000000)
		io_sleep_ms((due - now) / 1000000);
	return OK;
}

static const struct wpart *part_of(const struct cut *c, uint32_t number)
{
	return c->w->parts[cut_shard(c->h, number)].p;
}

/* The next series of the block. */
static errc series_add(struct cut *c, uint32_t number, const struct chunk *chunks, size_t n, struct err *err)
{
	errc rc = OK;
	const struct series *s = part_series(part_of(c, number), cut_local(c->h, number));
	ASSERT(n > 0 && s->n_pairs <= LIMIT_LABELS_DECODE);
	for (uint32_t k = 0; k < s->n_pairs; k++) {
		if (k < c->n_labels && c->ids[k] == s->pairs[k])
			continue;
		c->ids[k] = s->pairs[k];
		c->places[k] = head_pair(&c->h->symbols, s->pairs[k])->rank - 1;
	}
	c->n_labels = s->n_pairs;
	TRY(block_writer_add_pairs(c->bw, c->places, s->n_pairs, chunks, n, err));
	c->mint = chunks[0].mint < c->mint ? chunks[0].mint : c->mint;
	TRY(pace(c, chunks, n, err));
fail:
	return rc;
}

/* Reading a series touches its labels, its state, and then one piece of its open chunk after the other, each somewhere else. So they are fetched some steps
 * ahead, and of each series that is coming one piece a step. Inlined by force: gcc takes a function that only prefetches for one without effect. */
#define AHEAD static inline __attribute__((always_inline)) void

AHEAD far_ahead(const struct cut *c, uint32_t shard, uint32_t local, bool chunks)
{
	uint32_t at;
	const struct ws_page *page = &c->w->parts[shard].p->pages[ws_page_of(local, &at)];
	__builtin_prefetch(&page->series[at]);
	if (chunks)
		__builtin_prefetch(&page->ws[at]);
}

AHEAD labels_ahead(const struct cut *c, uint32_t shard, uint32_t local)
{
	const char *s = (const char *)part_series(c->w->parts[shard].p, local);
	__builtin_prefetch(s);
	__builtin_prefetch(s + 64);
}

AHEAD pieces_ahead(struct cut *c, uint32_t shard, uint32_t local)
{
	for (int i = 0; i < AHEAD_PIECES; i++) {
		struct cut_ahead *x = &c->ahead[i];
		if (!x->piece)
			continue;
		x->piece = x->piece->next ? part_piece(x->part, x->piece->next) : NULL;
		__builtin_prefetch(x->piece);
	}
	const struct wpart *part = c->w->parts[shard].p;
	const struct wseries *ws = part_ws(part, local);
	struct cut_ahead *x = &c->ahead[c->n_ahead++ % AHEAD_PIECES];
	*x = (struct cut_ahead){part, ws->n > 0 && ws->first ? part_piece(part, ws->first) : NULL};
	__builtin_prefetch(x->piece);
	__builtin_prefetch(ws->leaves);
}

AHEAD ordered_ahead(struct cut *c, size_t i, bool chunks)
{
	const struct cut_order *o = &c->order;
	if (i + AHEAD_FAR < o->n)
		far_ahead(c, cut_shard(c->h, o->v[i + AHEAD_FAR]), cut_local(c->h, o->v[i + AHEAD_FAR]), chunks);
	if (i + AHEAD_NEAR < o->n)
		labels_ahead(c, cut_shard(c->h, o->v[i + AHEAD_NEAR]), cut_local(c->h, o->v[i + AHEAD_NEAR]));
	if (chunks && i + AHEAD_PIECES < o->n)
		pieces_ahead(c, cut_shard(c->h, o->v[i + AHEAD_PIECES]), cut_local(c->h, o->v[i + AHEAD_PIECES]));
}

static errc cut_directly(struct cut *c, struct err *err)
{
	errc rc = OK;
	for (size_t i = 0; i < c->order.n; i++) {
		uint32_t number = c->order.v[i];
		const struct wpart *part = part_of(c, number);
		ordered_ahead(c, i, true);
		TRY(series_chunks(&c->series, part, part_ws(part, cut_local(c->h, number)), err));
		TRY(series_add(c, number, c->series.chunks, c->series.n, err));
	}
fail:
	return rc;
}

/* Where in the chunk file a series begins: series that came together mostly come one after the other there, too. */
static uint64_t first_off(const struct wpart *p, uint32_t local)
{
	const struct wseries *ws = part_ws(p, local);
	for (uint32_t i = 0; i < ws_leaves(ws); i++)
		if (ws->leaves->v[i].kind == LEAF_FILE)
			return ws->leaves->v[i].off;
	for (uint32_t i = 0; ws->hist && i < ws->hist->n; i++)
		if (!ws->hist->v[i].cap)
			return ws->hist->v[i].off;
	return 0;
}

/* Chunks made of leaves go through the spool; a chain does by its records, and who has an open chunk alone needs none. */
static bool by_chunks(const struct wseries *ws)
{
	return ws_leaves(ws) > 0 || ws->hist;
}

/* Series that have leaves into the spool, as they came: the parts side by side, the one first whose next series is first in the file. */
static errc leaves_spool(struct cut *c, struct err *err)
{
	errc rc = OK;
	struct head *h = c->h;
	uint32_t at[HEAD_SHARDS_MAX] = {0}, ahead = h->n_shards < AHEAD_PIECES / 2 ? AHEAD_PIECES / h->n_shards : 2;
	uint64_t off[HEAD_SHARDS_MAX] = {0};
	uint32_t *place = malloc(c->order.n_numbers * sizeof *place);
	CHECK(place, ERR_NOMEM, "no memory to sort %zu series", c->order.n);
	for (size_t i = 0; i < c->order.n; i++)
		place[c->order.v[i]] = (uint32_t)i;
	for (;;) {
		uint32_t pick = UINT32_MAX;
		for (uint32_t i = 0; i < h->n_shards; i++)
			if (c->w->parts[i].p && at[i] < c->w->parts[i].p->n && (pick == UINT32_MAX || off[i] < off[pick]))
				pick = i;
		if (pick == UINT32_MAX)
			break;
		const struct wpart *part = c->w->parts[pick].p;
		uint32_t local = at[pick]++;
		off[pick] = at[pick] < part->n ? first_off(part, at[pick]) : 0;
		if (local + ahead < part->n)
			pieces_ahead(c, pick, local + ahead);
		if (!by_chunks(part_ws(part, local)))
			continue;
		TRY(series_chunks(&c->series, part, part_ws(part, local), err));
		TRY(head_cut_spool_put(c->spool, place[cut_number(h, pick, local)], c->series.chunks, c->series.n, err));
		TRY(pace(c, c->series.chunks, c->series.n, err));
	}
fail:
	free(place);
	return rc;
}

static errc record_spool(void *arg, uint32_t place, uint64_t off, struct span record, struct err *err)
{
	errc rc = OK;
	struct cut *c = arg;
	struct chunk as_chunk = {.data = record};
	TRY(head_cut_spool_put_record(c->spool, place, off, record, err));
	TRY(pace(c, &as_chunk, 1, err));
fail:
	return rc;
}

static errc spool_fill(struct cut *c, struct err *err)
{
	errc rc = OK;
	struct cut_walk *walk = NULL;
	bool leaves = false;
	TRY(head_cut_walk_open(c->w, (uint32_t)c->order.n, &walk, err));
	for (size_t i = 0; i < c->order.n; i++) {
		uint32_t number = c->order.v[i];
		if (i + AHEAD_FAR < c->order.n)
			__builtin_prefetch(part_ws(part_of(c, c->order.v[i + AHEAD_FAR]), cut_local(c->h, c->order.v[i + AHEAD_FAR])));
		const struct wseries *ws = part_ws(part_of(c, number), cut_local(c->h, number));
		if (ws_chained(ws))
			TRY(head_cut_walk_add(walk, (uint32_t)i, chain_off(ws->chain), err));
		leaves |= by_chunks(ws);
	}
	TRY(head_cut_walk(walk, record_spool, c, err));
	if (leaves)
		TRY(leaves_spool(c, err));
fail:
	head_cut_walk_close(walk);
	return rc;
}

static errc spool_drain(struct cut *c, struct err *err)
{
	errc rc = OK;
	for (size_t i = 0; i < c->order.n; i++) {
		uint32_t number = c->order.v[i];
		const struct wpart *part = part_of(c, number);
		const struct wseries *ws = part_ws(part, cut_local(c->h, number));
		struct chunk *chunks;
		struct chain_record *records;
		size_t n;
		ordered_ahead(c, i, true);
		if (by_chunks(ws)) {
			TRY(head_cut_spool_get(c->spool, i, &chunks, &n, err));
		} else {
			if (ws_chained(ws)) {
				TRY(head_cut_spool_records(c->spool, i, &records, &n, err));
				head_cut_file_serve(c->series.file, records, n);
			}
			TRY(series_chunks(&c->series, part, ws, err));
			chunks = c->series.chunks;
			n = c->series.n;
		}
		TRY(series_add(c, number, chunks, n, err));
	}
fail:
	head_cut_file_serve(c->series.file, NULL, 0);
	return rc;
}

static errc chunks_cut(struct cut *c, struct err *err)
{
	uint64_t bytes = head_chunkfile_bytes(&c->w->file);
	if (bytes <= (head_cut_direct_bytes ? head_cut_direct_bytes : CUT_FILE_CACHE_BYTES))
		return cut_directly(c, err);
	errc rc = head_cut_spool_open(c->w, c->order.n, bytes + c->order.n * 64, &c->spool, err);
	if (rc == OK)
		rc = spool_fill(c, err);
	if (rc == ERR_NOSPACE) {
		/* Slower, and it needs no room but the block's. */
		head_cut_spool_close(c->spool);
		c->spool = NULL;
		c->series.n_samples = 0;
		return cut_directly(c, err);
	}
	return rc == OK ? spool_drain(c, err) : rc;
}

errc head_cut_write(struct window *w, struct ulid block, uint64_t upto_seq, struct cut_result *out, struct err *err)
{
	errc rc = OK;
	struct head *h = w->head;
	struct arena arena;
	struct cut *c = NULL;
	ASSERT(w->frozen);
	*out = (struct cut_result){.block = block};
	arena_init(&arena, 16 * MIB);
	if (head_cut_count(w) == 0)
		return OK;
	c = calloc(1, sizeof *c);
	CHECK(c, ERR_NOMEM, "no memory to cut a window");
	c->h = h;
	c->w = w;
	c->begin_ns = io_mono_ns();
	c->mint = INT64_MAX;
	c->series.w = w;
	arena_init(&c->series.arena, GIB);
	struct block_writer_config cfg = {.dir = h->cfg.block_dir, .ulid = block, .chunk_segment_bytes = LIMIT_CHUNK_SEGMENT_BYTES};
	TRY(block_writer_open(&cfg, &c->bw, err));
	TRY(head_cut_order(w, c->bw, &c->order, err));
	TRY(head_cut_file_open(&w->file, &c->series.file, err));
	TRY(chunks_cut(c, err));
	/* The index wants the memory. */
	out->n_series = c->order.n;
	head_cut_order_free(h, &c->order);
	head_cut_file_close(c->series.file);
	c->series.file = NULL;
	head_cut_spool_close(c->spool);
	c->spool = NULL;
	struct block_meta meta = {
		.mint = c->mint,
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
	struct block_writer *finish = c->bw;
	c->bw = NULL;
	TRY(block_writer_finish(finish, &meta, &out->bytes, err));
	out->n_samples = c->series.n_samples;
fail:
	if (c) {
		block_writer_abort(c->bw);
		chunk_encoder_close(c->series.encoder);
		head_cut_file_close(c->series.file);
		head_cut_spool_close(c->spool);
		head_cut_order_free(h, &c->order);
		free(c->series.chunks);
		arena_free(&c->series.arena);
		free(c);
	}
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
