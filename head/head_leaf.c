/* head/head_leaf.c - one series in one window: a run of disjoint leaves and an open chunk behind them.
 *
 *     leaves[0] < leaves[1] < ... < leaves[n-1] < open chunk         FILE: a full chunk in the chunk file
 *       FILE        RAW                FILE                          RAW: (t, v) sorted, 240 at most
 *
 * In order (t behind everything): the cutting rule decides whether the open chunk is full; then it goes to the chunk file. That is all
 * that most samples ever do, and as long as all did the leaves are a chain in the file (head_chain.c).
 *
 * Late (t inside or before): binary search for the leaf that covers t. There a sample of the same time shows itself: same bits =
 * duplicate, else conflict. Otherwise the leaf becomes raw and takes the sample; above 240 it splits. A time between two leaves goes into a raw
 * neighbour with room, else into a new raw leaf. Raw leaves are encoded and written again (sealed) when a series has many of them, or
 * when memory is tight; the one farthest from where samples arrive goes first.
 *
 * `touched` marks leaves that the cutting rule, fed in time order, might not have made: the cut encodes anew from there on until borders meet
 * again (head_cut.c). Whatever is not touched is byte for byte what the rule makes, its end included; so a sample in the gap behind a
 * leaf touches that leaf too.
 *
 * Allocation comes before change: FAILED leaves everything as it was (a leaf may have turned raw, which changes nothing a reader sees).
 */
#include "head/head_int.h"

static int64_t leaf_mint(const struct window *w, const struct leaf *l)
{
	return w->start + l->mint;
}
static int64_t leaf_maxt(const struct window *w, const struct leaf *l)
{
	return w->start + l->maxt;
}
static uint32_t rel(const struct window *w, int64_t t)
{
	return (uint32_t)(t - w->start);
}

static uint64_t ref_of(const struct wpart *part, const struct wseries *ws)
{
	return atomic_load_explicit(&part_series(part, ws->local)->ref, memory_order_relaxed);
}

static size_t leaves_bytes(uint32_t cap)
{
	return sizeof(struct leaves) + cap * sizeof(struct leaf);
}

errc head_leaves_room(struct wpart *part, struct wseries *ws, uint32_t more, struct err *err)
{
	struct leaves *old = ws->leaves;
	uint32_t have = old ? old->n : 0, want = have + more;
	if (old && want <= old->cap)
		return OK;
	if (want > 1024)
		want += want / 2;
	size_t bytes = head_pool_round(leaves_bytes(want));
	struct leaves *v = head_pool_alloc(&part->pool, bytes);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for chunks of a series");
	*v = (struct leaves){0};
	if (old) {
		memcpy(v, old, leaves_bytes(have));
		head_pool_free(&part->pool, old, head_pool_round(leaves_bytes(old->cap)));
	}
	v->cap = (uint32_t)((bytes - sizeof *v) / sizeof(struct leaf));
	ASSERT(head_pool_round(leaves_bytes(v->cap)) == bytes);
	ws->leaves = v;
	return OK;
}

static struct chunk_sample *raw_new(struct wpart *part, size_t n, uint32_t *room, struct err *err)
{
	size_t bytes = head_pool_round(n * sizeof(struct chunk_sample));
	struct chunk_sample *v = head_pool_alloc(&part->pool, bytes);
	if (!v)
		err_set(err, ERR_NOMEM, "no memory for late samples");
	*room = (uint32_t)(bytes / sizeof *v);
	return v;
}
static void raw_free(struct wpart *part, struct chunk_sample *v, uint32_t room)
{
	head_pool_free(&part->pool, v, room * sizeof *v);
}
static void raw_set(struct leaf *l, struct chunk_sample *v, uint32_t room)
{
	l->raw = (uint64_t)(uintptr_t)v / 8 & ((UINT64_C(1) << 45) - 1);
	l->room = room & 511;
	ASSERT(leaf_raw(l) == v && l->room == room);
}

static struct chunkfile_record floats_record(
	const struct window *w, const struct wpart *part, const struct wseries *ws, uint32_t mint, uint32_t maxt, uint32_t n)
{
	return (struct chunkfile_record){.ref = ref_of(part, ws),
		.mint = w->start + mint,
		.maxt = w->start + maxt,
		.previous = CHUNKFILE_NONE,
		.n = (uint16_t)n,
		.enc = CHUNK_XOR};
}

/* The open chunk goes to the chunk file. */
static errc open_full(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, struct err *err)
{
	if (LIKELY(ws_may_chain(ws) && chain_samples(ws->chain) + ws->n <= CHAIN_SAMPLES_MAX))
		return head_chain_end_locked(w, part, ws, err);
	if (ws_chained(ws) && head_chain_unfold_locked(w, sh, part, ws, err) != OK)
		return ERR_NOMEM;
	uint64_t off;
	struct chunkfile_record r = floats_record(w, part, ws, ws->start, ws->t, ws->n);
	r.data = span_of(sh->scratch_bytes + XOR_HEADER_BYTES, head_open_read_pieces(part, ws, sh->scratch_bytes) - XOR_HEADER_BYTES);
	if (head_leaves_room(part, ws, 1, err) != OK || head_chunkfile_append(&w->file, &r, &off, err) != OK)
		return ERR_NOMEM;
	struct leaf *l = &ws->leaves->v[ws->leaves->n++];
	*l = (struct leaf){.mint = ws->start, .maxt = ws->t};
	l->kind = LEAF_FILE;
	l->n = (uint8_t)ws->n;
	l->len = (uint32_t)r.data.n & 16383u;
	l->off = off & CHUNKFILE_NONE;
	head_open_drop(part, ws);
	return OK;
}

/* t is behind everything. */
static enum insert_verdict append(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t t, uint64_t v, struct err *err)
{
	struct chunk_cutter c = {w->start + ws->start, w->start + ws->next_at};
	if (chunk_cutter_cut(&c, w->range, ws->n, ws->n_bytes, w->start + ws->t, t) && ws->n > 0 && open_full(w, sh, part, ws, err) != OK)
		return INSERT_FAILED;
	if (!head_open_append(w, part, ws, rel(w, t), v)) {
		err_set(err, ERR_NOMEM, "no memory for an open chunk");
		return INSERT_FAILED;
	}
	ws->start = rel(w, c.start);
	ws->next_at = rel(w, c.next_at);
	return INSERT_STORED;
}

errc head_leaf_decode(
	struct window *w, struct cut_file *cut, const struct leaf *l, struct chunk_sample *out, uint8_t *bytes, size_t *n, struct err *err)
{
	if (l->kind == LEAF_RAW) {
		memcpy(out, leaf_raw(l), l->n * sizeof *out);
		*n = l->n;
		return OK;
	}
	errc rc = OK;
	struct chunkfile_chunk c;
	TRY(head_chunkfile_chunk(&w->file, cut, l->off, bytes, &c, err));
	TRY(xor_decode(span_of(bytes, c.n_bytes), out, HEAD_RAW_SAMPLES + 1, n, err));
	CHECK(*n == l->n && out[0].t == leaf_mint(w, l) && out[*n - 1].t == leaf_maxt(w, l), ERR_CORRUPT,
		"chunk file of window %s: the chunk at offset %llu is another one", ulid_text(w->ulid).s, (unsigned long long)l->off);
fail:
	return rc;
}

/* Index of the first sample at or behind t. */
static uint32_t lower(const struct chunk_sample *v, uint32_t n, int64_t t)
{
	uint32_t a = 0;
	while (n > 0) {
		uint32_t half = n / 2;
		if (v[a + half].t < t) {
			a += half + 1;
			n -= half + 1;
		} else {
			n = half;
		}
	}
	return a;
}

/* A full chunk comes back from the file to take a late sample. v: its decoded samples. */
static errc leaf_raise(struct wpart *part, struct wseries *ws, struct leaf *l, const struct chunk_sample *v, struct err *err)
{
	uint32_t room;
	struct chunk_sample *raw = raw_new(part, (size_t)l->n + 1, &room, err);
	if (!raw)
		return ERR_NOMEM;
	memcpy(raw, v, l->n * sizeof *v);
	l->kind = LEAF_RAW;
	raw_set(l, raw, room);
	l->touched = 1;
	ws->leaves->touched = true;
	ws->leaves->n_raw++;
	return OK;
}

static struct leaf raw_leaf(uint32_t mint, uint32_t maxt, uint32_t n, struct chunk_sample *raw, uint32_t room)
{
	struct leaf l = {.mint = mint, .maxt = maxt};
	l.kind = LEAF_RAW;
	l.touched = 1;
	l.n = n & 255;
	raw_set(&l, raw, room);
	return l;
}

/* The open chunk becomes part of the last raw leaf, or a raw leaf. v: its decoded samples. */
static errc open_to_raw(struct window *w, struct wpart *part, struct wseries *ws, const struct chunk_sample *v, uint32_t n, struct err *err)
{
	struct leaf *last = ws_leaves(ws) ? &ws->leaves->v[ws->leaves->n - 1] : NULL;
	uint32_t before = last && last->kind == LEAF_RAW && last->n + n <= HEAD_RAW_SAMPLES ? (uint32_t)last->n : 0;
	uint32_t room;
	struct chunk_sample *raw = raw_new(part, before + (size_t)n + 1, &room, err);
	if (!raw)
		return ERR_NOMEM;
	if (before == 0 && head_leaves_room(part, ws, 1, err) != OK) {
		raw_free(part, raw, room);
		return ERR_NOMEM;
	}
	memcpy(raw + before, v, n * sizeof *v);
	uint32_t mint = rel(w, v[0].t);
	if (before) {
		memcpy(raw, leaf_raw(last), before * sizeof *v);
		raw_free(part, leaf_raw(last), last->room);
		mint = last->mint;
	} else {
		last = &ws->leaves->v[ws->leaves->n++];
		ws->leaves->n_raw++;
	}
	*last = raw_leaf(mint, rel(w, v[n - 1].t), before + n, raw, room);
	ws->leaves->touched = true;
	head_open_drop(part, ws);
	return OK;
}

static errc leaf_split(struct window *w, struct wpart *part, struct wseries *ws, uint32_t i, struct err *err)
{
	uint32_t room;
	if (head_leaves_room(part, ws, 1, err) != OK)
		return ERR_NOMEM;
	struct leaf *l = &ws->leaves->v[i];
	uint32_t lower_n = (uint32_t)l->n / 2, upper_n = (uint32_t)l->n - lower_n;
	struct chunk_sample *raw = raw_new(part, (size_t)upper_n + 1, &room, err);
	if (!raw)
		return ERR_NOMEM;
	memcpy(raw, leaf_raw(l) + lower_n, upper_n * sizeof *raw);
	memmove(l + 2, l + 1, (ws->leaves->n - i - 1) * sizeof *l);
	l[1] = raw_leaf(rel(w, raw[0].t), l->maxt, upper_n, raw, room);
	l->n = lower_n & 255;
	l->maxt = rel(w, leaf_raw(l)[lower_n - 1].t);
	ws->leaves->n++;
	ws->leaves->n_raw++;
	return OK;
}

/* Puts (t, v) into raw leaf i, where no sample of that time is. */
static errc raw_put(struct window *w, struct wpart *part, struct wseries *ws, uint32_t i, int64_t t, uint64_t v, struct err *err)
{
	if (ws->leaves->v[i].n >= HEAD_RAW_SAMPLES) {
		if (leaf_split(w, part, ws, i, err) != OK)
			return ERR_NOMEM;
		if (t > leaf_maxt(w, &ws->leaves->v[i]))
			i++;
	}
	struct leaf *l = &ws->leaves->v[i];
	struct chunk_sample *raw = leaf_raw(l);
	uint32_t n = (uint32_t)l->n;
	if (n == l->room) {
		uint32_t room;
		raw = raw_new(part, (size_t)n + 1, &room, err);
		if (!raw)
			return ERR_NOMEM;
		memcpy(raw, leaf_raw(l), n * sizeof *raw);
		raw_free(part, leaf_raw(l), l->room);
		raw_set(l, raw, room);
	}
	uint32_t at = lower(raw, n, t);
	memmove(raw + at + 1, raw + at, (n - at) * sizeof *raw);
	raw[at] = (struct chunk_sample){t, v};
	l->n = (n + 1) & 255;
	l->mint = rel(w, raw[0].t);
	l->maxt = rel(w, raw[n].t);
	l->touched = 1;
	ws->leaves->touched = true;
	return OK;
}

/* t lies between leaves[i - 1] and leaves[i]. */
static errc gap_put(struct window *w, struct wpart *part, struct wseries *ws, uint32_t i, int64_t t, uint64_t v, struct err *err)
{
	if (head_leaves_room(part, ws, 1, err) != OK)
		return ERR_NOMEM;
	struct leaves *lv = ws->leaves;
	struct leaf *before = i > 0 ? &lv->v[i - 1] : NULL;
	if (before) {
		before->touched = 1;
		lv->touched = true;
		if (before->kind == LEAF_RAW && before->n < HEAD_RAW_SAMPLES)
			return raw_put(w, part, ws, i - 1, t, v, err);
	}
	if (i < lv->n && lv->v[i].kind == LEAF_RAW && lv->v[i].n < HEAD_RAW_SAMPLES)
		return raw_put(w, part, ws, i, t, v, err);
	uint32_t room;
	struct chunk_sample *raw = raw_new(part, 1, &room, err);
	if (!raw)
		return ERR_NOMEM;
	raw[0] = (struct chunk_sample){t, v};
	memmove(&lv->v[i + 1], &lv->v[i], (lv->n - i) * sizeof *lv->v);
	lv->v[i] = raw_leaf(rel(w, t), rel(w, t), 1, raw, room);
	lv->n++;
	lv->n_raw++;
	lv->touched = true;
	return OK;
}

/* Encodes a raw leaf into the chunk file. Best effort: without memory it stays raw. */
static void leaf_seal(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, uint32_t i)
{
	struct leaf *l = &ws->leaves->v[i];
	struct chunk_sample *raw = leaf_raw(l);
	struct xor_appender a;
	xor_appender_init(&a);
	for (uint32_t k = 0; k < l->n; k++)
		xor_append(&a, sh->scratch_bytes, raw[k].t, raw[k].v);
	struct chunkfile_record r = floats_record(w, part, ws, l->mint, l->maxt, (uint32_t)l->n);
	r.data = span_of(sh->scratch_bytes + XOR_HEADER_BYTES, a.n_bytes - XOR_HEADER_BYTES);
	uint64_t off;
	if (head_chunkfile_append(&w->file, &r, &off, NULL) != OK)
		return;
	raw_free(part, raw, l->room);
	l->kind = LEAF_FILE;
	l->len = (uint32_t)r.data.n & 16383u;
	l->off = off & CHUNKFILE_NONE;
	ws->leaves->n_raw--;
}

static void seal_some(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t t)
{
	bool tight = head_memory(w->head) > w->head->cfg.max_memory_bytes / 5 * 3;
	const struct leaves *lv = ws->leaves;
	if (lv->n_raw <= (tight ? HEAD_RAW_LEAVES_TIGHT : HEAD_RAW_LEAVES))
		return;
	uint32_t far = UINT32_MAX;
	int64_t best = -1;
	for (uint32_t i = 0; i < lv->n; i++) {
		if (lv->v[i].kind != LEAF_RAW)
			continue;
		int64_t d = llabs(leaf_mint(w, &lv->v[i]) - t);
		if (d > best) {
			best = d;
			far = i;
		}
	}
	leaf_seal(w, sh, part, ws, far);
}

/* The first leaf that ends at or behind t. */
static uint32_t leaf_find(const struct window *w, const struct wseries *ws, int64_t t)
{
	uint32_t a = 0, b = ws_leaves(ws);
	while (a < b) {
		uint32_t mid = (a + b) / 2;
		if (leaf_maxt(w, &ws->leaves->v[mid]) < t)
			a = mid + 1;
		else
			b = mid;
	}
	return a;
}

/* A sample of time t is there with value *have. The verdict, and with `winner` the greater one stays. */
static enum insert_verdict same_time(uint64_t have, uint64_t v, bool winner, bool *replace)
{
	*replace = false;
	if (have == v)
		return INSERT_DUPLICATE;
	if (!winner)
		return INSERT_CONFLICT;
	*replace = float_winner(v, have) > 0;
	return *replace ? INSERT_STORED : INSERT_DUPLICATE;
}

errc head_leaf_has_locked(
	struct window *w, struct shard *sh, const struct wpart *part, const struct wseries *ws, int64_t t, bool *has, struct err *err)
{
	errc rc = OK;
	const struct chunk_sample *have = sh->scratch;
	size_t n = 0;
	*has = false;
	if (ws->n > 0 && rel(w, t) >= ws->start) {
		*has = rel(w, t) == ws->t;
		if (rel(w, t) >= ws->t)
			return OK;
		size_t n_bytes;
		TRY(head_open_read(w, part, ws, sh->scratch_bytes, &n_bytes, err));
		TRY(xor_decode(span_of(sh->scratch_bytes, n_bytes), sh->scratch, HEAD_RAW_SAMPLES + 1, &n, err));
	} else if (ws_chained(ws)) {
		struct chain_reader r;
		struct chunkfile_chunk c;
		bool more = true;
		TRY(head_chain_open(w, NULL, ws->chain, ws_chain_before(w, ws), sh->scratch_bytes, &r, err));
		while (more && r.before > t)
			TRY(head_chain_next(&r, sh->scratch_bytes, &c, &more, err));
		if (!more || c.maxt < t)
			return OK;
		TRY(xor_decode(span_of(sh->scratch_bytes, c.n_bytes), sh->scratch, HEAD_RAW_SAMPLES + 1, &n, err));
	} else {
		uint32_t a = leaf_find(w, ws, t);
		if (a == ws_leaves(ws) || leaf_mint(w, &ws->leaves->v[a]) > t)
			return OK;
		const struct leaf *l = &ws->leaves->v[a];
		n = l->n;
		if (l->kind == LEAF_RAW)
			have = leaf_raw(l);
		else
			TRY(head_leaf_decode(w, NULL, l, sh->scratch, sh->scratch_bytes, &n, err));
	}
	uint32_t at = lower(have, (uint32_t)n, t);
	*has = at < n && have[at].t == t;
fail:
	return rc;
}

enum insert_verdict head_leaf_insert_locked(
	struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t t, uint64_t v, bool winner, bool *late, struct err *err)
{
	ASSERT(range_has(w->start, w->range, t));
	bool replace;
	*late = false;
	if (UNLIKELY(ws->hist != NULL)) {
		/* A histogram wins over a float, and is another value. */
		bool has;
		if (head_hist_has_locked(w, ws, t, &has, err) != OK)
			return INSERT_FAILED;
		if (has)
			return winner ? INSERT_DUPLICATE : INSERT_CONFLICT;
	}
	if (LIKELY(ws->n > 0 || ws_chained(ws) ? rel(w, t) > ws->t : ws_leaves(ws) == 0 || t > leaf_maxt(w, &ws->leaves->v[ws->leaves->n - 1])))
		return append(w, sh, part, ws, t, v, err);
	*late = true;
	if (ws->n > 0 && rel(w, t) == ws->t && (ws->v == v || !winner))
		return same_time(ws->v, v, false, &replace);
	if (ws_chained(ws) && head_chain_unfold_locked(w, sh, part, ws, err) != OK)
		return INSERT_FAILED;
	if (ws->n > 0 && rel(w, t) >= ws->start) {
		size_t n, n_bytes = head_open_read_pieces(part, ws, sh->scratch_bytes);
		if (xor_decode(span_of(sh->scratch_bytes, n_bytes), sh->scratch, HEAD_RAW_SAMPLES + 1, &n, err) != OK)
			return INSERT_FAILED;
		if (n != ws->n) { /* it may have come from a snapshot */
			err_set(err, ERR_CORRUPT, "an open chunk of %u samples has %zu", ws->n, n);
			return INSERT_FAILED;
		}
		uint32_t at = lower(sh->scratch, (uint32_t)n, t);
		if (at < n && sh->scratch[at].t == t) {
			enum insert_verdict d = same_time(sh->scratch[at].v, v, winner, &replace);
			if (!replace)
				return d;
			sh->scratch[at].v = v;
			return open_to_raw(w, part, ws, sh->scratch, (uint32_t)n, err) == OK ? INSERT_STORED : INSERT_FAILED;
		}
		if (open_to_raw(w, part, ws, sh->scratch, (uint32_t)n, err) != OK || raw_put(w, part, ws, ws->leaves->n - 1, t, v, err) != OK)
			return INSERT_FAILED;
		seal_some(w, sh, part, ws, t);
		return INSERT_STORED;
	}

	uint32_t a = leaf_find(w, ws, t);
	if (a == ws_leaves(ws) || leaf_mint(w, &ws->leaves->v[a]) > t) {
		if (gap_put(w, part, ws, a, t, v, err) != OK)
			return INSERT_FAILED;
		seal_some(w, sh, part, ws, t);
		return INSERT_STORED;
	}
	struct leaf *l = &ws->leaves->v[a];
	size_t n = l->n;
	const struct chunk_sample *have = sh->scratch;
	if (l->kind == LEAF_RAW)
		have = leaf_raw(l);
	else if (head_leaf_decode(w, NULL, l, sh->scratch, sh->scratch_bytes, &n, err) != OK)
		return INSERT_FAILED;
	uint32_t at = lower(have, (uint32_t)n, t);
	if (at < n && have[at].t == t) {
		enum insert_verdict d = same_time(have[at].v, v, winner, &replace);
		if (!replace)
			return d;
		if (l->kind == LEAF_FILE && leaf_raise(part, ws, l, sh->scratch, err) != OK)
			return INSERT_FAILED;
		leaf_raw(l)[at].v = v;
		l->touched = 1;
		ws->leaves->touched = true;
		return INSERT_STORED;
	}
	if (l->kind == LEAF_FILE && leaf_raise(part, ws, l, sh->scratch, err) != OK)
		return INSERT_FAILED;
	if (raw_put(w, part, ws, a, t, v, err) != OK)
		return INSERT_FAILED;
	seal_some(w, sh, part, ws, t);
	return INSERT_STORED;
}
