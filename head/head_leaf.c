/* head/head_leaf.c - one series in one window: a run of disjoint leaves and an open chunk behind them.
 *
 *     leaves[0] < leaves[1] < ... < leaves[n-1] < open chunk         FILE: a full chunk in the chunk file
 *       FILE        RAW                FILE                          RAW: (t, v) sorted, 240 at most
 *
 * In order (t behind everything): the cutting rule decides whether the open chunk is full; then it goes to the chunk file. That is all
 * that most samples ever do.
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

static uint64_t ref_of(const struct wseries *ws)
{
	return atomic_load_explicit(&ws->series->ref, memory_order_relaxed);
}

static errc leaves_room(struct wpart *part, struct wseries *ws, uint32_t more, struct err *err)
{
	if (ws->n_leaves + more <= ws->cap_leaves)
		return OK;
	uint32_t want = ws->n_leaves + more;
	if (want > 1024)
		want += want / 2;
	size_t bytes = head_pool_round(want * sizeof *ws->leaves);
	struct leaf *v = head_pool_alloc(&part->pool, bytes);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for chunks of a series");
	if (ws->n_leaves)
		memcpy(v, ws->leaves, ws->n_leaves * sizeof *v);
	if (ws->leaves)
		head_pool_free(&part->pool, ws->leaves, head_pool_round(ws->cap_leaves * sizeof *v));
	ws->leaves = v;
	ws->cap_leaves = (uint32_t)(bytes / sizeof *v);
	ASSERT(head_pool_round(ws->cap_leaves * sizeof *v) == bytes);
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

static void open_drop(struct wpart *part, struct wseries *ws)
{
	head_pool_free(&part->pool, ws->bytes, ws->cap_bytes);
	ws->bytes = NULL;
	ws->cap_bytes = 0;
	xor_appender_init(&ws->app);
}

static errc open_room(struct wpart *part, struct wseries *ws, size_t n, struct err *err)
{
	if (n <= ws->cap_bytes)
		return OK;
	n = head_pool_round(n);
	uint8_t *p = head_pool_alloc(&part->pool, n);
	if (!p)
		return err_set(err, ERR_NOMEM, "no memory for an open chunk");
	if (ws->app.n)
		memcpy(p, ws->bytes, ws->app.n_bytes);
	if (ws->bytes)
		head_pool_free(&part->pool, ws->bytes, ws->cap_bytes);
	ws->bytes = p;
	ws->cap_bytes = (uint32_t)n;
	return OK;
}

/* t is behind everything. */
static enum insert_verdict append(struct window *w, struct wpart *part, struct wseries *ws, int64_t t, uint64_t v, struct err *err)
{
	struct chunk_cutter c = ws->cutter;
	if (chunk_cutter_cut(&c, w->range, ws->app.n, ws->app.n_bytes, ws->app.t, t) && ws->app.n > 0) {
		struct chunk full = {.mint = ws->cutter.start, .maxt = ws->app.t, .enc = CHUNK_XOR, .data = span_of(ws->bytes, ws->app.n_bytes)};
		uint64_t off;
		if (leaves_room(part, ws, 1, err) != OK || head_chunkfile_append(&w->file, ref_of(ws), &full, &off, err) != OK)
			return INSERT_FAILED;
		ws->leaves[ws->n_leaves++] = (struct leaf){
			.mint = rel(w, full.mint), .maxt = rel(w, full.maxt), .len = ws->app.n_bytes, .n = ws->app.n, .kind = LEAF_FILE, .off = off};
		open_drop(part, ws);
	}
	if (open_room(part, ws, (ws->app.n ? ws->app.n_bytes : XOR_HEADER_BYTES) + XOR_APPEND_MAX_BYTES, err) != OK)
		return INSERT_FAILED;
	xor_append(&ws->app, ws->bytes, t, v);
	ws->cutter = c;
	return INSERT_STORED;
}

errc head_leaf_decode(struct window *w, const struct leaf *l, struct chunk_sample *out, uint8_t *bytes, size_t *n, struct err *err)
{
	if (l->kind == LEAF_RAW) {
		memcpy(out, l->raw, l->n * sizeof *out);
		*n = l->n;
		return OK;
	}
	errc rc = OK;
	TRY(head_chunkfile_read(&w->file, l->off, l->len, bytes, err));
	TRY(xor_decode(span_of(bytes, l->len), out, HEAD_RAW_SAMPLES + 1, n, err));
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
	l->raw = raw;
	l->len = room;
	l->touched = 1;
	ws->touched = true;
	ws->n_raw++;
	return OK;
}

/* The open chunk becomes part of the last raw leaf, or a raw leaf. v: its decoded samples. */
static errc open_to_raw(struct window *w, struct wpart *part, struct wseries *ws, const struct chunk_sample *v, uint32_t n, struct err *err)
{
	struct leaf *last = ws->n_leaves ? &ws->leaves[ws->n_leaves - 1] : NULL;
	uint32_t before = last && last->kind == LEAF_RAW && last->n + n <= HEAD_RAW_SAMPLES ? last->n : 0;
	uint32_t room;
	struct chunk_sample *raw = raw_new(part, before + (size_t)n + 1, &room, err);
	if (!raw)
		return ERR_NOMEM;
	if (before == 0 && leaves_room(part, ws, 1, err) != OK) {
		raw_free(part, raw, room);
		return ERR_NOMEM;
	}
	memcpy(raw + before, v, n * sizeof *v);
	if (before) {
		memcpy(raw, last->raw, before * sizeof *v);
		raw_free(part, last->raw, last->len);
	} else {
		last = &ws->leaves[ws->n_leaves++];
		*last = (struct leaf){.mint = rel(w, v[0].t), .kind = LEAF_RAW, .touched = 1};
		ws->n_raw++;
	}
	last->maxt = rel(w, v[n - 1].t);
	last->n = (uint16_t)(before + n);
	last->len = room;
	last->raw = raw;
	ws->touched = true;
	open_drop(part, ws);
	return OK;
}

static errc leaf_split(struct window *w, struct wpart *part, struct wseries *ws, uint32_t i, struct err *err)
{
	uint32_t room;
	if (leaves_room(part, ws, 1, err) != OK)
		return ERR_NOMEM;
	struct leaf *l = &ws->leaves[i];
	uint16_t lower_n = l->n / 2, upper_n = (uint16_t)(l->n - lower_n);
	struct chunk_sample *raw = raw_new(part, (size_t)upper_n + 1, &room, err);
	if (!raw)
		return ERR_NOMEM;
	memcpy(raw, l->raw + lower_n, upper_n * sizeof *raw);
	memmove(l + 2, l + 1, (ws->n_leaves - i - 1) * sizeof *l);
	l[1] = (struct leaf){.mint = rel(w, raw[0].t), .maxt = l->maxt, .len = room, .n = upper_n, .kind = LEAF_RAW, .touched = 1, .raw = raw};
	l->n = lower_n;
	l->maxt = rel(w, l->raw[lower_n - 1].t);
	ws->n_leaves++;
	ws->n_raw++;
	return OK;
}

/* Puts (t, v) into raw leaf i, where no sample of that time is. */
static errc raw_put(struct window *w, struct wpart *part, struct wseries *ws, uint32_t i, int64_t t, uint64_t v, struct err *err)
{
	if (ws->leaves[i].n >= HEAD_RAW_SAMPLES) {
		if (leaf_split(w, part, ws, i, err) != OK)
			return ERR_NOMEM;
		if (t > leaf_maxt(w, &ws->leaves[i]))
			i++;
	}
	struct leaf *l = &ws->leaves[i];
	if (l->n == l->len) {
		uint32_t room;
		struct chunk_sample *raw = raw_new(part, (size_t)l->n + 1, &room, err);
		if (!raw)
			return ERR_NOMEM;
		memcpy(raw, l->raw, l->n * sizeof *raw);
		raw_free(part, l->raw, l->len);
		l->raw = raw;
		l->len = room;
	}
	uint32_t at = lower(l->raw, l->n, t);
	memmove(l->raw + at + 1, l->raw + at, (l->n - at) * sizeof *l->raw);
	l->raw[at] = (struct chunk_sample){t, v};
	l->n++;
	l->mint = rel(w, l->raw[0].t);
	l->maxt = rel(w, l->raw[l->n - 1].t);
	l->touched = 1;
	ws->touched = true;
	return OK;
}

/* t lies between leaves[i - 1] and leaves[i]. */
static errc gap_put(struct window *w, struct wpart *part, struct wseries *ws, uint32_t i, int64_t t, uint64_t v, struct err *err)
{
	struct leaf *before = i > 0 ? &ws->leaves[i - 1] : NULL;
	if (before) {
		before->touched = 1;
		ws->touched = true;
		if (before->kind == LEAF_RAW && before->n < HEAD_RAW_SAMPLES)
			return raw_put(w, part, ws, i - 1, t, v, err);
	}
	if (i < ws->n_leaves && ws->leaves[i].kind == LEAF_RAW && ws->leaves[i].n < HEAD_RAW_SAMPLES)
		return raw_put(w, part, ws, i, t, v, err);
	uint32_t room;
	if (leaves_room(part, ws, 1, err) != OK)
		return ERR_NOMEM;
	struct chunk_sample *raw = raw_new(part, 1, &room, err);
	if (!raw)
		return ERR_NOMEM;
	raw[0] = (struct chunk_sample){t, v};
	memmove(&ws->leaves[i + 1], &ws->leaves[i], (ws->n_leaves - i) * sizeof *ws->leaves);
	ws->leaves[i] = (struct leaf){.mint = rel(w, t), .maxt = rel(w, t), .len = room, .n = 1, .kind = LEAF_RAW, .touched = 1, .raw = raw};
	ws->n_leaves++;
	ws->n_raw++;
	ws->touched = true;
	return OK;
}

/* Encodes a raw leaf into the chunk file. Best effort: without memory it stays raw. */
static void leaf_seal(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, uint32_t i)
{
	struct leaf *l = &ws->leaves[i];
	struct xor_appender a;
	xor_appender_init(&a);
	for (uint32_t k = 0; k < l->n; k++)
		xor_append(&a, sh->scratch_bytes, l->raw[k].t, l->raw[k].v);
	struct chunk c = {.mint = leaf_mint(w, l), .maxt = leaf_maxt(w, l), .enc = CHUNK_XOR, .data = span_of(sh->scratch_bytes, a.n_bytes)};
	uint64_t off;
	if (head_chunkfile_append(&w->file, ref_of(ws), &c, &off, NULL) != OK)
		return;
	raw_free(part, l->raw, l->len);
	l->kind = LEAF_FILE;
	l->len = a.n_bytes;
	l->off = off;
	ws->n_raw--;
}

static void seal_some(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t t)
{
	bool tight = head_memory(w->head) > w->head->cfg.max_memory_bytes / 5 * 3;
	if (ws->n_raw <= (tight ? HEAD_RAW_LEAVES_TIGHT : HEAD_RAW_LEAVES))
		return;
	uint32_t far = UINT32_MAX;
	int64_t best = -1;
	for (uint32_t i = 0; i < ws->n_leaves; i++) {
		if (ws->leaves[i].kind != LEAF_RAW)
			continue;
		int64_t d = llabs(leaf_mint(w, &ws->leaves[i]) - t);
		if (d > best) {
			best = d;
			far = i;
		}
	}
	leaf_seal(w, sh, part, ws, far);
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

enum insert_verdict head_leaf_insert_locked(
	struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t t, uint64_t v, bool winner, bool *late, struct err *err)
{
	ASSERT(range_has(w->start, w->range, t));
	bool replace;
	*late = false;
	if (LIKELY(ws->app.n > 0 ? t > ws->app.t : ws->n_leaves == 0 || t > leaf_maxt(w, &ws->leaves[ws->n_leaves - 1])))
		return append(w, part, ws, t, v, err);
	*late = true;
	if (ws->app.n > 0 && t >= ws->cutter.start) {
		if (t == ws->app.t && !winner)
			return same_time(ws->app.v, v, false, &replace);
		size_t n;
		if (xor_decode(span_of(ws->bytes, ws->app.n_bytes), sh->scratch, HEAD_RAW_SAMPLES + 1, &n, err) != OK)
			return INSERT_FAILED;
		ASSERT(n == ws->app.n);
		uint32_t at = lower(sh->scratch, (uint32_t)n, t);
		if (at < n && sh->scratch[at].t == t) {
			enum insert_verdict d = same_time(sh->scratch[at].v, v, winner, &replace);
			if (!replace)
				return d;
			sh->scratch[at].v = v;
			return open_to_raw(w, part, ws, sh->scratch, (uint32_t)n, err) == OK ? INSERT_STORED : INSERT_FAILED;
		}
		if (open_to_raw(w, part, ws, sh->scratch, (uint32_t)n, err) != OK || raw_put(w, part, ws, ws->n_leaves - 1, t, v, err) != OK)
			return INSERT_FAILED;
		seal_some(w, sh, part, ws, t);
		return INSERT_STORED;
	}

	/* The first leaf that ends at or behind t. */
	uint32_t a = 0, b = ws->n_leaves;
	while (a < b) {
		uint32_t mid = (a + b) / 2;
		if (leaf_maxt(w, &ws->leaves[mid]) < t)
			a = mid + 1;
		else
			b = mid;
	}
	if (a == ws->n_leaves || leaf_mint(w, &ws->leaves[a]) > t) {
		if (gap_put(w, part, ws, a, t, v, err) != OK)
			return INSERT_FAILED;
		seal_some(w, sh, part, ws, t);
		return INSERT_STORED;
	}
	struct leaf *l = &ws->leaves[a];
	size_t n = l->n;
	const struct chunk_sample *have = l->raw;
	if (l->kind == LEAF_FILE) {
		if (head_leaf_decode(w, l, sh->scratch, sh->scratch_bytes, &n, err) != OK)
			return INSERT_FAILED;
		have = sh->scratch;
	}
	uint32_t at = lower(have, (uint32_t)n, t);
	if (at < n && have[at].t == t) {
		enum insert_verdict d = same_time(have[at].v, v, winner, &replace);
		if (!replace)
			return d;
		if (l->kind == LEAF_FILE && leaf_raise(part, ws, l, sh->scratch, err) != OK)
			return INSERT_FAILED;
		l->raw[at].v = v;
		l->touched = 1;
		ws->touched = true;
		return INSERT_STORED;
	}
	if (l->kind == LEAF_FILE && leaf_raise(part, ws, l, sh->scratch, err) != OK)
		return INSERT_FAILED;
	if (raw_put(w, part, ws, a, t, v, err) != OK)
		return INSERT_FAILED;
	seal_some(w, sh, part, ws, t);
	return INSERT_STORED;
}

bool head_leaf_sane(struct window *w, const struct wseries *ws)
{
	int64_t last = w->start - 1;
	uint32_t raws = 0;
	struct chunk_sample v[HEAD_RAW_SAMPLES + 1];
	uint8_t bytes[HEAD_CHUNK_MAX_BYTES];
	for (uint32_t i = 0; i < ws->n_leaves; i++) {
		const struct leaf *l = &ws->leaves[i];
		size_t n;
		if (head_leaf_decode(w, l, v, bytes, &n, NULL) != OK || n == 0 || n > HEAD_RAW_SAMPLES)
			return false;
		if (v[0].t != leaf_mint(w, l) || v[n - 1].t != leaf_maxt(w, l) || (l->kind == LEAF_RAW && !l->touched) ||
			(l->touched && !ws->touched))
			return false;
		for (size_t k = 0; k < n; last = v[k++].t)
			if (v[k].t <= last)
				return false;
		raws += l->kind == LEAF_RAW;
	}
	if (ws->app.n > 0 && ws->cutter.start <= last)
		return false;
	return raws == ws->n_raw && last - w->start < w->range;
}
