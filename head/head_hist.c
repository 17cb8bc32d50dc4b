/* head/head_hist.c - the histograms of one series in one window, beside its floats.
 *
 *     leaves[0] < leaves[1] < ... < leaves[n-1]          RAW: (t, packed) sorted; FILE: the same in the chunk file
 *
 * Histograms stay packed (base/histogram.h) until a block or a reader wants chunks: what a chunk keeps is less than what was sent, so a chunk that took a late
 * sample would not be what the rule makes of the samples. A raw leaf that was filled in order goes to the chunk file; one that was filled late stays until the
 * series has many of them, or memory is tight, then the one farthest from where samples arrive goes. So a series holds some kilobytes, and a late sample
 * costs one leaf read.
 *
 *   in the chunk file: encoding HEAD_HIST_LEAF, payload { u32 LE ms from the window's start, u32 LE n, n bytes packed }*
 *
 * At one time there is one sample. The same histogram in another layout is a duplicate, and the one whose packed bytes are greater stays, so that what the window
 * holds does not depend on who came first; it is logged for the same reason. Against a float the histogram is another value: refused, or (replay) it wins, and
 * the float under it is left out when they are read.
 *
 * Allocation comes before change: FAILED leaves everything as it was, but for a leaf that may have turned raw.
 */
#include "head/head_int.h"

enum { LEAF_SAMPLES = 32 }; /* in order: then the leaf goes to the file; late: at HIST_LEAF_SAMPLES_MAX it is split */
#define LEAF_BYTES (4 * KIB)
#define LEAF_BYTES_MAX (16 * KIB)

static size_t series_bytes(uint32_t cap)
{
	return sizeof(struct hist_series) + cap * sizeof(struct hist_leaf);
}

static errc no_memory(struct err *err)
{
	return err_set(err, ERR_NOMEM, "no memory for histograms of a series");
}

static errc series_grow(struct wpart *part, struct wseries *ws, uint32_t want, struct err *err)
{
	struct hist_series *old = ws->hist;
	size_t bytes = head_pool_round(series_bytes(want));
	struct hist_series *hs = head_pool_alloc(&part->pool, bytes);
	if (!hs)
		return no_memory(err);
	*hs = (struct hist_series){0};
	if (old) {
		memcpy(hs, old, series_bytes(old->n));
		head_pool_free(&part->pool, old, head_pool_round(series_bytes(old->cap)));
	}
	hs->cap = (uint32_t)((bytes - sizeof *hs) / sizeof(struct hist_leaf));
	ASSERT(head_pool_round(series_bytes(hs->cap)) == bytes);
	ws->hist = hs;
	return OK;
}

/* Room for one more leaf. */
static errc series_room(struct wpart *part, struct wseries *ws, struct err *err)
{
	const struct hist_series *hs = ws->hist;
	if (hs && hs->n < hs->cap)
		return OK;
	return series_grow(part, ws, hs ? hs->n + 1 + hs->n / 2 : 2, err);
}

static struct hist_sample *raw_new(struct wpart *part, uint32_t n, uint16_t *cap)
{
	size_t bytes = head_pool_round(n * sizeof(struct hist_sample));
	*cap = (uint16_t)(bytes / sizeof(struct hist_sample));
	return head_pool_alloc(&part->pool, bytes);
}
static void raw_free(struct wpart *part, const struct hist_leaf *l)
{
	head_pool_free(&part->pool, l->raw, l->cap * sizeof *l->raw);
}

static uint8_t *packed_copy(struct wpart *part, struct span packed)
{
	uint8_t *p = head_pool_alloc(&part->pool, packed.n);
	if (p)
		memcpy(p, packed.p, packed.n);
	return p;
}
static void sample_free(struct wpart *part, const struct hist_sample *s)
{
	head_pool_free(&part->pool, s->bytes, s->n);
}

/* Index of the first sample at or behind t. */
static uint32_t lower(const struct hist_sample *v, uint32_t n, uint32_t t)
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

/* ---- leaves as bytes ---- */

uint32_t head_hist_leaf_bytes(const struct hist_leaf *l)
{
	return l->cap ? l->bytes + l->n * (uint32_t)HIST_SAMPLE_HEADER : l->bytes;
}

void head_hist_leaf_copy(const struct hist_leaf *l, uint8_t *out)
{
	ASSERT(l->cap > 0);
	for (uint32_t i = 0; i < l->n; i++) {
		put_le32(out, l->raw[i].t);
		put_le32(out + 4, l->raw[i].n);
		memcpy(out + HIST_SAMPLE_HEADER, l->raw[i].bytes, l->raw[i].n);
		out += HIST_SAMPLE_HEADER + l->raw[i].n;
	}
}

bool head_hist_leaf_next(struct rd *r, uint32_t *t, struct span *packed, bool *ok)
{
	*ok = r->ok;
	if (!r->ok || r->p == r->end)
		return false;
	*t = rd_le32(r);
	*packed = rd_bytes(r, rd_le32(r));
	*ok = r->ok && packed->n > 0;
	return *ok;
}

/* The payload of a leaf in the file. *out: freed by the caller. */
static errc leaf_load(struct window *w, const struct hist_leaf *l, uint8_t **out, struct err *err)
{
	*out = malloc(l->bytes + (size_t)CHUNKFILE_OVERHEAD);
	if (!*out)
		return no_memory(err);
	errc rc = head_chunkfile_read(&w->file, l->off, l->bytes, *out, err);
	if (rc != OK) {
		free(*out);
		*out = NULL;
	}
	return rc;
}

/* A raw leaf of l's times and samples, from its bytes, with room for one more. */
static errc leaf_parse(struct window *w, struct wpart *part, const struct hist_leaf *l, struct span bytes, struct hist_leaf *out, struct err *err)
{
	errc rc = OK;
	struct hist_leaf raw = {.mint = l->mint, .maxt = l->maxt};
	raw.raw = raw_new(part, l->n + 1u, &raw.cap);
	CHECK(raw.raw, ERR_NOMEM, "no memory for late histograms");
	struct rd r = rd_of(bytes.p, bytes.n);
	struct hist_sample s;
	struct span packed;
	bool ok;
	while (head_hist_leaf_next(&r, &s.t, &packed, &ok)) {
		CHECK(raw.n < l->n, ERR_CORRUPT, "window %s: histograms of a series are others", ulid_text(w->ulid).s);
		s.n = (uint32_t)packed.n;
		s.bytes = packed_copy(part, packed);
		CHECK(s.bytes, ERR_NOMEM, "no memory for late histograms");
		raw.raw[raw.n++] = s;
		raw.bytes += s.n;
	}
	CHECK(ok && raw.n == l->n && raw.raw[0].t == l->mint && raw.raw[l->n - 1].t == l->maxt, ERR_CORRUPT,
		"window %s: histograms of a series are others", ulid_text(w->ulid).s);
	*out = raw;
	raw.raw = NULL;
fail:
	if (raw.raw) {
		for (uint32_t i = 0; i < raw.n; i++)
			sample_free(part, &raw.raw[i]);
		raw_free(part, &raw);
	}
	return rc;
}

/* A leaf comes back from the file to take a late sample. */
static errc leaf_raise(struct window *w, struct wpart *part, struct hist_series *hs, struct hist_leaf *l, struct err *err)
{
	errc rc = OK;
	uint8_t *bytes = NULL;
	TRY(leaf_load(w, l, &bytes, err));
	TRY(leaf_parse(w, part, l, span_of(bytes, l->bytes), l, err));
	hs->n_raw++;
fail:
	free(bytes);
	return rc;
}

errc head_hist_load_locked(
	struct window *w, struct wpart *part, struct wseries *ws, uint32_t n, const struct hist_leaf *l, struct span raw, struct err *err)
{
	errc rc = OK;
	if (!ws->hist)
		TRY(series_grow(part, ws, n, err));
	struct hist_series *hs = ws->hist;
	ASSERT(hs->n < hs->cap);
	if (raw.p) {
		TRY(leaf_parse(w, part, l, raw, &hs->v[hs->n], err));
		hs->n_raw++;
	} else {
		hs->v[hs->n] = *l;
	}
	hs->n++;
fail:
	return rc;
}

/* A raw leaf goes to the file. Best effort: without memory it stays. */
static void leaf_seal(struct window *w, struct wpart *part, struct wseries *ws, struct hist_leaf *l)
{
	uint32_t n = head_hist_leaf_bytes(l);
	uint8_t *bytes = malloc(n);
	if (!bytes)
		return;
	head_hist_leaf_copy(l, bytes);
	struct chunkfile_record r = {
		.ref = atomic_load_explicit(&part_series(part, ws->local)->ref, memory_order_relaxed),
		.mint = w->start + l->mint,
		.maxt = w->start + l->maxt,
		.previous = CHUNKFILE_NONE,
		.enc = HEAD_HIST_LEAF,
		.data = span_of(bytes, n),
	};
	uint64_t off;
	errc rc = head_chunkfile_append(&w->file, &r, &off, NULL);
	free(bytes);
	if (rc != OK)
		return;
	for (uint32_t i = 0; i < l->n; i++)
		sample_free(part, &l->raw[i]);
	raw_free(part, l);
	*l = (struct hist_leaf){.mint = l->mint, .maxt = l->maxt, .off = off, .bytes = n, .n = l->n};
	ws->hist->n_raw--;
}

static void seal_some(struct window *w, struct wpart *part, struct wseries *ws, uint32_t t)
{
	bool tight = head_memory(w->head) > w->head->cfg.max_memory_bytes / 5 * 3;
	struct hist_series *hs = ws->hist;
	if (hs->n_raw <= (tight ? HEAD_RAW_LEAVES_TIGHT : HEAD_RAW_LEAVES))
		return;
	struct hist_leaf *far = NULL;
	int64_t best = -1;
	for (uint32_t i = 0; i < hs->n; i++) {
		int64_t d = llabs((int64_t)hs->v[i].mint - (int64_t)t);
		if (hs->v[i].cap && d > best) {
			best = d;
			far = &hs->v[i];
		}
	}
	ASSERT(far); /* n_raw counts them */
	leaf_seal(w, part, ws, far);
}

/* ---- insertion ---- */

static bool leaf_takes(const struct hist_leaf *l, uint32_t samples, size_t bytes)
{
	return l->cap > 0 && l->n < samples && l->bytes < bytes;
}

/* A new leaf of one sample at index i; s's bytes are the part's. */
static errc leaf_new(struct wpart *part, struct wseries *ws, uint32_t i, const struct hist_sample *s, struct err *err)
{
	struct hist_leaf l = {.mint = s->t, .maxt = s->t, .bytes = s->n, .n = 1};
	if (series_room(part, ws, err) != OK)
		return ERR_NOMEM;
	struct hist_series *hs = ws->hist;
	l.raw = raw_new(part, 4, &l.cap);
	if (!l.raw)
		return no_memory(err);
	l.raw[0] = *s;
	memmove(&hs->v[i + 1], &hs->v[i], (hs->n - i) * sizeof l);
	hs->v[i] = l;
	hs->n++;
	hs->n_raw++;
	return OK;
}

static errc leaf_split(struct wpart *part, struct wseries *ws, uint32_t i, struct err *err)
{
	if (series_room(part, ws, err) != OK)
		return ERR_NOMEM;
	struct hist_series *hs = ws->hist;
	struct hist_leaf *l = &hs->v[i], upper = {.maxt = l->maxt};
	uint16_t lower_n = l->n / 2;
	upper.n = (uint16_t)(l->n - lower_n);
	upper.raw = raw_new(part, upper.n + 1u, &upper.cap);
	if (!upper.raw)
		return no_memory(err);
	memcpy(upper.raw, l->raw + lower_n, upper.n * sizeof *l->raw);
	for (uint32_t k = 0; k < upper.n; k++)
		upper.bytes += upper.raw[k].n;
	upper.mint = upper.raw[0].t;
	l->n = lower_n;
	l->bytes -= upper.bytes;
	l->maxt = l->raw[lower_n - 1].t;
	memmove(l + 2, l + 1, (hs->n - i - 1) * sizeof *l);
	l[1] = upper;
	hs->n++;
	hs->n_raw++;
	return OK;
}

/* Puts s, whose bytes are the part's, into raw leaf i, where no sample of that time is. */
static errc leaf_put(struct wpart *part, struct wseries *ws, uint32_t i, const struct hist_sample *s, struct err *err)
{
	struct hist_leaf *l = &ws->hist->v[i];
	if (l->n > 1 && !leaf_takes(l, HIST_LEAF_SAMPLES_MAX, LEAF_BYTES_MAX)) {
		if (leaf_split(part, ws, i, err) != OK)
			return ERR_NOMEM;
		l = &ws->hist->v[i];
		l += s->t > l->maxt;
	}
	if (l->n == l->cap) {
		struct hist_leaf grown = *l;
		grown.raw = raw_new(part, l->n * 2u, &grown.cap);
		if (!grown.raw)
			return no_memory(err);
		memcpy(grown.raw, l->raw, l->n * sizeof *l->raw);
		raw_free(part, l);
		*l = grown;
	}
	uint32_t at = lower(l->raw, l->n, s->t);
	memmove(l->raw + at + 1, l->raw + at, (l->n - at) * sizeof *s);
	l->raw[at] = *s;
	l->n++;
	l->bytes += s->n;
	l->mint = l->raw[0].t;
	l->maxt = l->raw[l->n - 1].t;
	return OK;
}

/* The first leaf that ends at or behind t. */
static uint32_t leaf_find(const struct hist_series *hs, uint32_t t)
{
	uint32_t a = 0, b = hs ? hs->n : 0;
	while (a < b) {
		uint32_t mid = (a + b) / 2;
		if (hs->v[mid].maxt < t)
			a = mid + 1;
		else
			b = mid;
	}
	return a;
}

/* The sample at t. *found.p NULL: there is none. *loaded is freed by the caller. */
static errc sample_find(struct window *w, const struct hist_leaf *l, uint32_t t, struct span *found, uint8_t **loaded, struct err *err)
{
	*found = (struct span){NULL, 0};
	*loaded = NULL;
	if (l->cap) {
		uint32_t at = lower(l->raw, l->n, t);
		if (at < l->n && l->raw[at].t == t)
			*found = span_of(l->raw[at].bytes, l->raw[at].n);
		return OK;
	}
	errc rc = leaf_load(w, l, loaded, err);
	if (rc != OK)
		return rc;
	struct rd r = rd_of(*loaded, l->bytes);
	uint32_t at;
	struct span packed;
	bool ok;
	while (head_hist_leaf_next(&r, &at, &packed, &ok))
		if (at == t)
			*found = packed;
	return OK;
}

errc head_hist_has_locked(struct window *w, const struct wseries *ws, int64_t t, bool *has, struct err *err)
{
	uint32_t at = (uint32_t)(t - w->start), i = leaf_find(ws->hist, at);
	*has = false;
	if (!ws->hist || i == ws->hist->n || ws->hist->v[i].mint > at)
		return OK;
	struct span found;
	uint8_t *loaded;
	errc rc = sample_find(w, &ws->hist->v[i], at, &found, &loaded, err);
	*has = found.p != NULL;
	free(loaded);
	return rc;
}

/* A sample of the time is there, in leaf i. */
static enum insert_verdict same_time(struct window *w, struct wpart *part, struct wseries *ws, uint32_t i, uint32_t t, struct span have,
	struct span packed, bool winner, struct err *err)
{
	bool same;
	int order;
	if (span_eq(have, packed))
		return INSERT_DUPLICATE;
	if (histogram_packed_cmp(packed, have, &same, &order, err) != OK)
		return INSERT_FAILED;
	if (!same && !winner)
		return INSERT_CONFLICT;
	if (order <= 0)
		return INSERT_DUPLICATE;
	uint8_t *bytes = packed_copy(part, packed);
	if (!bytes) {
		no_memory(err);
		return INSERT_FAILED;
	}
	struct hist_leaf *l = &ws->hist->v[i];
	if (l->cap == 0 && leaf_raise(w, part, ws->hist, l, err) != OK) {
		head_pool_free(&part->pool, bytes, packed.n);
		return INSERT_FAILED;
	}
	struct hist_sample *s = &l->raw[lower(l->raw, l->n, t)];
	l->bytes += (uint32_t)packed.n - s->n;
	sample_free(part, s);
	*s = (struct hist_sample){.t = t, .n = (uint32_t)packed.n, .bytes = bytes};
	seal_some(w, part, ws, t);
	return INSERT_REPLACED;
}

enum insert_verdict head_hist_insert_locked(struct window *w, struct shard *sh, struct wpart *part, struct wseries *ws, int64_t time,
	struct span packed, bool winner, bool *late, struct err *err)
{
	ASSERT(range_has(w->start, w->range, time) && packed.n > 0 && packed.n <= LIMIT_HISTOGRAM_PACKED_BYTES);
	struct hist_sample s = {.t = (uint32_t)(time - w->start), .n = (uint32_t)packed.n};
	bool is_float = false;
	*late = false;
	/* Whoever has histograms has leaves. */
	if (ws_chained(ws) && head_chain_unfold_locked(w, sh, part, ws, err) != OK)
		return INSERT_FAILED;
	uint32_t i = leaf_find(ws->hist, s.t), n = ws->hist ? ws->hist->n : 0;
	bool inside = i < n && ws->hist->v[i].mint <= s.t;
	if (inside) {
		struct span have;
		uint8_t *loaded;
		*late = true;
		if (sample_find(w, &ws->hist->v[i], s.t, &have, &loaded, err) != OK)
			return INSERT_FAILED;
		enum insert_verdict v = have.p ? same_time(w, part, ws, i, s.t, have, packed, winner, err) : INSERT_STORED;
		free(loaded);
		if (have.p)
			return v;
	}
	if (head_leaf_has_locked(w, sh, part, ws, time, &is_float, err) != OK)
		return INSERT_FAILED;
	if (is_float && !winner)
		return INSERT_CONFLICT;
	s.bytes = packed_copy(part, packed);
	if (!s.bytes) {
		no_memory(err);
		return INSERT_FAILED;
	}
	errc rc;
	if (i == n) {
		/* Behind everything: the last leaf, or when it is full a new one. */
		if (n > 0 && leaf_takes(&ws->hist->v[n - 1], LEAF_SAMPLES, LEAF_BYTES)) {
			rc = leaf_put(part, ws, n - 1, &s, err);
		} else {
			rc = leaf_new(part, ws, n, &s, err);
			if (rc == OK && n > 0 && ws->hist->v[n - 1].cap)
				leaf_seal(w, part, ws, &ws->hist->v[n - 1]);
		}
	} else {
		*late = true;
		if (inside) {
			rc = ws->hist->v[i].cap ? OK : leaf_raise(w, part, ws->hist, &ws->hist->v[i], err);
			if (rc == OK)
				rc = leaf_put(part, ws, i, &s, err);
		} else if (i > 0 && leaf_takes(&ws->hist->v[i - 1], HIST_LEAF_SAMPLES_MAX, LEAF_BYTES_MAX)) {
			rc = leaf_put(part, ws, i - 1, &s, err);
		} else if (leaf_takes(&ws->hist->v[i], HIST_LEAF_SAMPLES_MAX, LEAF_BYTES_MAX)) {
			rc = leaf_put(part, ws, i, &s, err);
		} else {
			rc = leaf_new(part, ws, i, &s, err);
		}
		if (rc == OK)
			seal_some(w, part, ws, s.t);
	}
	if (rc != OK) {
		sample_free(part, &s);
		return INSERT_FAILED;
	}
	return INSERT_STORED;
}
