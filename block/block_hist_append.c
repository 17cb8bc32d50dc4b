/* block/block_hist_append.c - native histogram chunks (encodings 2 and 3): append. The bytes are those of block_chunk_hist.c.
 *
 * A sample joins the open chunk when nothing is lost by it and a reader may take it for a step of the same counter; the first line that holds decides:
 *
 *   other kind, gauge into counter or back                      new chunk, header unknown (gauge: gauge)
 *   hint reset                                                  new chunk, header reset
 *   a staleness marker                                          joins
 *   the last one is stale                                       new chunk, header unknown
 *   the count went down                                         new chunk, header reset
 *   other schema or threshold                                   new chunk, header unknown
 *   other bounds; zero count or a bucket went down              new chunk, header reset; a bucket that is gone went down to 0
 *   a bucket that the chunk's layout lacks                      joins: the chunk is written again with the wider layout, zeros filled in
 *   65,535 samples; who merges: 1024 bytes and 10 samples       new chunk, header no reset, or what the lines above say
 *
 * Gauges are not looked at for resets. Buckets that the sample lacks and the layout has are filled in as zeros. The wider layout has the spans that the reference gives
 * it: the sample's own where they cover all, else those of both, as few as they can be. So the bytes are the reference's, too, but for headers: where
 * nobody knows, it says "no reset" of integers behind a gauge and of floats behind a stale one or a full chunk, and behind a gauge it does not hear a sender's "reset".
 *
 * Writing again costs what the chunk holds: some hundred samples at most, and chunks whose layouts go on growing are soon full.
 *
 * Source: Prometheus tsdb/chunkenc/{histogram,float_histogram,histogram_meta,varbit}.go.
 */
#include <math.h>
#include "base/limits.h"
#include "block/block_read_int.h"

enum { HEADER_BYTES = 3, FIRST_BYTES = 512, LAYOUT_MAX = 1 << 18 /* buckets of a layout that is made wider: bounds the memory of it */ };
enum { NO_WINDOW = 0xff, FULL_SAMPLES = UINT16_MAX, FULL_BYTES = 1024, FULL_BYTES_SAMPLES = 10 };
enum { SCHEMA_CUSTOM = -53, BOUND_MAX = 33554430, INDEX_FAR = 1 << 30 };
/* The header's two bits. */
enum reset { RESET_UNKNOWN = 0, RESET_NONE = 1, RESET_YES = 2, RESET_GAUGE = 3 };
enum { HINT_RESET = 1, HINT_GAUGE = 3 };

/* One side's buckets in the chunk's layout. */
struct side {
	struct hist_span *spans;
	uint32_t n_spans, n;
	bool ordered;		   /* indexes ascend, and are such that spans reach from any to any other: other layouts can be compared */
	int64_t *index;		   /* of each bucket */
	uint64_t *abs;		   /* last counts: integers, or float bits */
	uint64_t *next;		   /* of the sample at hand */
	uint64_t *delta, *ddelta;  /* integers: as last stored, and its last change */
	struct xor_window *window; /* floats */
};

struct hist_appender {
	struct arena *arena;
	enum sample_kind kind;
	enum reset header;
	enum reset refused; /* what the sample that could not join is to this chunk */
	bool by_rule;	    /* somebody else says when it is full */
	/* bits */
	uint8_t *p;
	size_t n_bytes, cap;
	unsigned free_bits; /* in the last byte */
	bool failed;
	/* state */
	uint32_t n;
	int64_t mint, t;
	uint64_t dt;
	int32_t schema;
	double zero_threshold;
	uint64_t *custom;
	uint32_t n_custom;
	uint64_t count, zero_count, sum;
	uint64_t dcount, dzero_count;
	struct xor_window count_window, zero_count_window, sum_window;
	struct side pos, neg;
};

static errc appender_init(struct hist_appender *a, enum sample_kind kind, struct arena *arena, struct err *err)
{
	*a = (struct hist_appender){
		.arena = arena, .kind = kind, .p = arena_calloc(arena, 1, FIRST_BYTES), .cap = FIRST_BYTES, .n_bytes = HEADER_BYTES};
	a->count_window.leading = a->zero_count_window.leading = a->sum_window.leading = NO_WINDOW;
	return a->p ? OK : err_set(err, ERR_NOMEM, "no memory for a histogram chunk");
}

/* ---- bits ---- */

/* The lowest n bits of x, 1 <= n <= 56, behind what is there: eight bytes at once, of which those behind the end are overwritten later. */
static inline void bits_store(struct hist_appender *a, uint64_t x, unsigned n)
{
	unsigned used = a->free_bits ? 8 - a->free_bits : 0;
	uint8_t *p = a->p + a->n_bytes - (used != 0);
	uint64_t first = used ? (uint64_t)*p << 56 : 0;
	unsigned all = used + n;
	put_be64(p, first | (x << (64 - n)) >> used);
	a->n_bytes = (size_t)(p - a->p) + (all + 7) / 8;
	a->free_bits = (8 - all % 8) % 8;
}

static void put_bits(struct hist_appender *a, uint64_t x, unsigned n)
{
	size_t need = a->n_bytes + 16;
	if (need > a->cap && !a->failed) {
		size_t cap = a->cap * 2 > need ? a->cap * 2 : need;
		uint8_t *p = cap <= LIMIT_CHUNK_BYTES * 2 ? arena_alloc(a->arena, cap) : NULL;
		a->failed = p == NULL;
		if (p) {
			memcpy(p, a->p, a->n_bytes);
			a->p = p;
			a->cap = cap;
		}
	}
	if (a->failed || n == 0)
		return;
	if (n > 56) {
		bits_store(a, x >> 32, n - 32);
		n = 32;
	}
	bits_store(a, x, n);
}

static const uint8_t VB_BITS[9] = {0, 3, 6, 9, 12, 18, 25, 56, 64};

/* The width's prefix: ones, closed by a zero but for the widest. */
static void put_vb(struct hist_appender *a, unsigned ones, uint64_t x)
{
	if (ones < 8)
		put_bits(a, (UINT64_C(1) << (ones + 1)) - 2, ones + 1);
	else
		put_bits(a, 0xff, 8);
	put_bits(a, x, VB_BITS[ones]);
}

static void put_vbu(struct hist_appender *a, uint64_t x)
{
	unsigned ones = 0;
	while (ones < 8 && x >> VB_BITS[ones] != 0)
		ones++;
	put_vb(a, ones, x);
}

static void put_vbi(struct hist_appender *a, uint64_t u)
{
	int64_t x = (int64_t)u;
	unsigned ones = x != 0;
	while (ones > 0 && ones < 8) {
		int64_t top = INT64_C(1) << (VB_BITS[ones] - 1);
		if (x >= -(top - 1) && x <= top)
			break;
		ones++;
	}
	put_vb(a, ones, u);
}

static void put_xor(struct hist_appender *a, struct xor_window *w, uint64_t old, uint64_t v)
{
	uint64_t d = old ^ v;
	if (d == 0) {
		put_bits(a, 0, 1);
		return;
	}
	unsigned leading = (unsigned)__builtin_clzll(d), trailing = (unsigned)__builtin_ctzll(d);
	if (leading > 31)
		leading = 31;
	if (w->leading != NO_WINDOW && leading >= w->leading && trailing >= w->trailing) {
		put_bits(a, 2, 2);
	} else {
		*w = (struct xor_window){(uint8_t)leading, (uint8_t)trailing};
		put_bits(a, 3u << 11 | leading << 6 | ((64 - leading - trailing) & 63), 13);
	}
	put_bits(a, d >> w->trailing, 64u - w->leading - w->trailing);
}

/* ---- layout ---- */

static void put_zero_threshold(struct hist_appender *a, double x)
{
	int e;
	if (f64_bits(x) == 0) {
		put_bits(a, 0, 8);
	} else if (frexp(x, &e) == 0.5 && e >= -242 && e <= 11) {
		put_bits(a, (uint64_t)(e + 243), 8);
	} else {
		put_bits(a, 255, 8);
		put_bits(a, f64_bits(x), 64);
	}
}

static void put_bound(struct hist_appender *a, uint64_t bits)
{
	double x = f64_of_bits(bits), thousandths = round(x * 1000);
	if (x * 1000 >= 0 && x * 1000 <= BOUND_MAX && f64_bits(thousandths / 1000) == bits) {
		put_vbu(a, (uint64_t)thousandths + 1);
	} else {
		put_bits(a, 0, 1);
		put_bits(a, bits, 64);
	}
}

/* Behind a span of `length`. */
static bool index_near(uint32_t length, int64_t index)
{
	return length == 0 || (index - length > -INDEX_FAR && index < INDEX_FAR);
}

static errc side_init(struct hist_appender *a, struct side *s, const struct hist_span *spans, uint32_t n_spans, uint32_t n, struct err *err)
{
	errc rc = OK;
	bool floats = a->kind == SAMPLE_FLOAT_HISTOGRAM;
	uint64_t total = 0;
	for (uint32_t i = 0; i < n_spans; i++)
		total += spans[i].length;
	CHECK(total == n && n <= LIMIT_HISTOGRAM_BUCKETS, ERR_INVALID, "a histogram with %u buckets and spans for %llu", n,
		(unsigned long long)total);
	s->spans = arena_calloc(a->arena, n_spans, sizeof *s->spans);
	s->index = arena_calloc(a->arena, n, sizeof *s->index);
	s->abs = arena_calloc(a->arena, n, sizeof *s->abs);
	s->next = arena_calloc(a->arena, n, sizeof *s->next);
	s->window = floats ? arena_calloc(a->arena, n, sizeof *s->window) : NULL;
	s->delta = floats ? NULL : arena_calloc(a->arena, n, sizeof *s->delta);
	s->ddelta = floats ? NULL : arena_calloc(a->arena, n, sizeof *s->ddelta);
	CHECK(s->spans && s->index && s->abs && s->next && (floats ? s->window != NULL : s->delta && s->ddelta), ERR_NOMEM,
		"no memory for a histogram of %u buckets", n);
	s->n_spans = n_spans;
	s->n = n;
	s->ordered = true;
	int64_t index = 0;
	uint32_t k = 0;
	put_vbu(a, n_spans);
	for (uint32_t i = 0; i < n_spans; i++) {
		s->spans[i] = spans[i];
		put_vbu(a, spans[i].length);
		put_vbi(a, (uint64_t)spans[i].offset);
		s->ordered &= i == 0 || spans[i].offset >= 0;
		index += spans[i].offset;
		for (uint32_t j = 0; j < spans[i].length; j++)
			s->index[k++] = index++;
		s->ordered &= index_near(spans[i].length, index);
	}
	for (k = 0; floats && k < n; k++)
		s->window[k].leading = NO_WINDOW;
fail:
	return rc;
}

static errc layout_put(struct hist_appender *a, const struct histogram *h, struct err *err)
{
	errc rc = OK;
	a->schema = h->schema;
	a->zero_threshold = h->zero_threshold;
	put_zero_threshold(a, h->zero_threshold);
	put_vbi(a, (uint64_t)(int64_t)h->schema);
	TRY(side_init(a, &a->pos, h->pos_spans, h->n_pos_spans, h->n_pos, err));
	TRY(side_init(a, &a->neg, h->neg_spans, h->n_neg_spans, h->n_neg, err));
	if (h->schema != SCHEMA_CUSTOM)
		return OK;
	a->custom = arena_calloc(a->arena, h->n_custom, sizeof *a->custom);
	CHECK(a->custom, ERR_NOMEM, "no memory for %u histogram bounds", h->n_custom);
	a->n_custom = h->n_custom;
	put_vbu(a, h->n_custom);
	for (uint32_t i = 0; i < h->n_custom; i++) {
		a->custom[i] = h->custom[i];
		put_bound(a, h->custom[i]);
	}
fail:
	return rc;
}

/* ---- can it join? ---- */

/* How a sample's buckets lie to the chunk's layout. */
struct fit {
	bool none;		    /* they can't be compared */
	uint32_t forward, backward; /* that the layout lacks; that the sample lacks */
};

/* The sample's counts, absolute, into s->next by the chunk's layout. */
static void side_map(
	struct side *s, const struct hist_span *spans, uint32_t n_spans, const int64_t *ints, const uint64_t *floats, uint32_t n, struct fit *fit)
{
	bool same = n_spans == s->n_spans && n == s->n && (n_spans == 0 || memcmp(spans, s->spans, n_spans * sizeof *spans) == 0);
	uint32_t at = 0, k = 0, placed = 0;
	int64_t index = 0;
	uint64_t abs = 0;
	memset(s->next, 0, s->n * sizeof *s->next);
	for (uint32_t i = 0; i < n_spans; i++) {
		index += spans[i].offset;
		fit->none |= !same && i > 0 && spans[i].offset < 0;
		for (uint32_t j = 0; j < spans[i].length && k < n; j++, k++, index++) {
			abs = ints ? abs + (uint64_t)ints[k] : floats[k];
			while (!same && at < s->n && s->index[at] < index)
				at++;
			if (same || (at < s->n && s->index[at] == index)) {
				s->next[same ? k : at] = abs;
				placed++;
			}
		}
		fit->none |= !same && !index_near(spans[i].length, index);
	}
	fit->none |= !same && !s->ordered;
	fit->forward += n - placed;
	fit->backward += s->n - placed;
}

static void sample_map(struct hist_appender *a, enum sample_kind kind, const struct histogram *h, struct fit *pos, struct fit *neg)
{
	bool floats = kind == SAMPLE_FLOAT_HISTOGRAM;
	*pos = *neg = (struct fit){0};
	side_map(&a->pos, h->pos_spans, h->n_pos_spans, floats ? NULL : h->i_pos, h->f_pos, h->n_pos, pos);
	side_map(&a->neg, h->neg_spans, h->n_neg_spans, floats ? NULL : h->i_neg, h->f_neg, h->n_neg, neg);
}

static bool fell(bool floats, uint64_t from, uint64_t to)
{
	return floats ? f64_of_bits(to) < f64_of_bits(from) : to < from;
}

static bool side_fell(const struct side *s, bool floats)
{
	for (uint32_t k = 0; k < s->n; k++)
		if (floats ? fell(true, s->abs[k], s->next[k]) : (int64_t)s->next[k] < (int64_t)s->abs[k])
			return true;
	return false;
}

/* What the sample would be behind the chunk's last one: may it join, in what layout, and if a new chunk begins with it, what is its header? */
static bool joins(struct hist_appender *a, enum sample_kind kind, const struct histogram *h, enum reset *header, struct fit *pos, struct fit *neg)
{
	bool floats = kind == SAMPLE_FLOAT_HISTOGRAM, stale = h->sum == STALE_NAN_BITS, gauge = a->header == RESET_GAUGE;
	*header = RESET_UNKNOWN;
	*pos = *neg = (struct fit){0};
	if (kind != a->kind || gauge != (h->reset_hint == HINT_GAUGE))
		return false;
	if (h->reset_hint == HINT_RESET) {
		*header = RESET_YES;
		return false;
	}
	if (stale) {
		*header = RESET_NONE;
		return true;
	}
	if (a->sum == STALE_NAN_BITS)
		return false;
	if (!gauge && fell(floats, a->count, floats ? h->f_count : h->i_count)) {
		*header = RESET_YES;
		return false;
	}
	if (h->schema != a->schema || f64_bits(h->zero_threshold) != f64_bits(a->zero_threshold))
		return false;
	*header = RESET_YES;
	if (h->n_custom != a->n_custom || (a->n_custom > 0 && memcmp(h->custom, a->custom, a->n_custom * sizeof *a->custom) != 0))
		return false;
	sample_map(a, kind, h, pos, neg);
	if (!gauge &&
		(fell(floats, a->zero_count, floats ? h->f_zero_count : h->i_zero_count) || side_fell(&a->pos, floats) || side_fell(&a->neg, floats)))
		return false;
	*header = RESET_NONE;
	uint32_t forward = pos->forward + neg->forward;
	return !pos->none && !neg->none && (forward == 0 || (a->pos.ordered && a->neg.ordered && a->pos.n + a->neg.n + forward <= LAYOUT_MAX));
}

/* The most that one more sample takes. */
static size_t sample_max_bytes(const struct hist_appender *a)
{
	return 64 + 10 * ((size_t)a->pos.n + a->neg.n);
}

static bool full(const struct hist_appender *a)
{
	return a->n >= FULL_SAMPLES || (!a->by_rule && a->n_bytes >= FULL_BYTES && a->n >= FULL_BYTES_SAMPLES) ||
	       a->n_bytes + sample_max_bytes(a) > LIMIT_CHUNK_BYTES;
}

/* ---- samples ---- */

static void put_count(struct hist_appender *a, uint64_t *last, uint64_t *change, uint64_t x, bool stale)
{
	if (a->n == 0) {
		put_vbu(a, x);
	} else {
		uint64_t d = stale ? *change : x - *last;
		put_vbi(a, d - *change);
		*change = d;
	}
	*last = x;
}

static void put_float(struct hist_appender *a, struct xor_window *w, uint64_t *last, uint64_t v)
{
	if (a->n == 0)
		put_bits(a, v, 64);
	else
		put_xor(a, w, *last, v);
	*last = v;
}

static void put_side(struct hist_appender *a, struct side *s)
{
	uint64_t before = 0;
	for (uint32_t k = 0; k < s->n; k++) {
		if (a->kind == SAMPLE_FLOAT_HISTOGRAM) {
			put_float(a, &s->window[k], &s->abs[k], s->next[k]);
			continue;
		}
		uint64_t delta = s->next[k] - before, change = a->n == 0 ? 0 : delta - s->delta[k];
		put_vbi(a, a->n == 0 ? delta : change - s->ddelta[k]);
		s->delta[k] = delta;
		s->ddelta[k] = change;
		before = s->abs[k] = s->next[k];
	}
}

static void put_sample(struct hist_appender *a, int64_t t, const struct histogram *h)
{
	bool stale = h->sum == STALE_NAN_BITS;
	if (a->n == 0) {
		a->mint = t;
		put_vbi(a, (uint64_t)t);
	} else {
		uint64_t dt = (uint64_t)t - (uint64_t)a->t;
		put_vbi(a, dt - a->dt);
		a->dt = dt;
	}
	a->t = t;
	if (a->kind == SAMPLE_FLOAT_HISTOGRAM) {
		put_float(a, &a->count_window, &a->count, stale ? 0 : h->f_count);
		put_float(a, &a->zero_count_window, &a->zero_count, stale ? 0 : h->f_zero_count);
	} else {
		put_count(a, &a->count, &a->dcount, stale ? 0 : h->i_count, stale);
		put_count(a, &a->zero_count, &a->dzero_count, stale ? 0 : h->i_zero_count, stale);
	}
	put_float(a, &a->sum_window, &a->sum, h->sum);
	if (!stale) {
		put_side(a, &a->pos);
		put_side(a, &a->neg);
	}
	a->n++;
}

/* ---- a wider layout ---- */

static void header_put(struct hist_appender *a)
{
	a->p[0] = (uint8_t)(a->n >> 8);
	a->p[1] = (uint8_t)a->n;
	a->p[2] = (uint8_t)(a->header << 6);
}

/* Spans of the buckets that the layout or the sample has, as few as they can be. */
static errc spans_of_both(struct hist_appender *a, const struct side *s, const struct hist_span *spans, uint32_t n_spans, struct hist_span **out,
	uint32_t *n, struct err *err)
{
	uint64_t room = s->n;
	for (uint32_t i = 0; i < n_spans; i++)
		room += spans[i].length;
	struct hist_span *v = arena_alloc(a->arena, room * sizeof *v);
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for a histogram of %llu buckets", (unsigned long long)room);
	*out = v;
	*n = 0;
	uint32_t at = 0, i = 0, j = 0;
	int64_t index = n_spans ? spans[0].offset : 0, behind = 0;
	for (;;) {
		while (i < n_spans && j == spans[i].length) {
			j = 0;
			if (++i < n_spans)
				index += spans[i].offset;
		}
		if (i == n_spans && at == s->n)
			return OK;
		int64_t bucket = i == n_spans || (at < s->n && s->index[at] <= index) ? s->index[at] : index;
		if (i < n_spans && bucket == index) {
			j++;
			index++;
		}
		at += at < s->n && s->index[at] == bucket;
		if (*n > 0 && bucket == behind)
			v[*n - 1].length++;
		else
			v[(*n)++] = (struct hist_span){(int32_t)(bucket - behind), 1};
		behind = bucket + 1;
	}
}

/* The old layout's sample into the new one's places. */
static void side_move(struct side *to, const struct side *from, const struct hist_side *have, bool floats)
{
	uint64_t abs = 0;
	memset(to->next, 0, to->n * sizeof *to->next);
	for (uint32_t k = 0, at = 0; k < from->n; k++) {
		abs = floats ? have->v[k] : abs + have->v[k];
		while (to->index[at] != from->index[k])
			at++;
		to->next[at] = abs;
	}
}

static errc widen(struct hist_appender *a, const struct histogram *h, const struct fit *pos, const struct fit *neg, struct err *err)
{
	errc rc = OK;
	bool floats = a->kind == SAMPLE_FLOAT_HISTOGRAM, gauge = a->header == RESET_GAUGE, both = pos->backward + neg->backward > 0;
	struct hist_reader r;
	struct histogram layout = *h;
	struct hist_span *spans;
	if (both && (gauge || pos->backward > 0)) {
		TRY(spans_of_both(a, &a->pos, h->pos_spans, h->n_pos_spans, &spans, &layout.n_pos_spans, err));
		layout.pos_spans = spans;
	}
	if (both && (gauge || neg->backward > 0)) {
		TRY(spans_of_both(a, &a->neg, h->neg_spans, h->n_neg_spans, &spans, &layout.n_neg_spans, err));
		layout.neg_spans = spans;
	}
	layout.n_pos = a->pos.n + pos->forward;
	layout.n_neg = a->neg.n + neg->forward;
	struct hist_appender b;
	TRY(appender_init(&b, a->kind, a->arena, err));
	b.header = a->header;
	b.by_rule = a->by_rule;
	TRY(layout_put(&b, &layout, err));
	header_put(a);
	TRY(hist_reader_init(&r, floats, span_of(a->p, a->n_bytes), a->arena, err));
	while (b.n < a->n) {
		TRY(hist_reader_next(&r, err));
		side_move(&b.pos, &a->pos, &r.pos, floats);
		side_move(&b.neg, &a->neg, &r.neg, floats);
		put_sample(&b, r.t, &r.h);
	}
	*a = b;
	struct fit p, n;
	sample_map(a, a->kind, h, &p, &n);
	ASSERT(p.forward + n.forward == 0);
fail:
	return rc;
}

/* ---- the calls ---- */

errc hist_append(struct hist_appender *a, int64_t t, enum sample_kind kind, const struct histogram *h, bool *appended, struct err *err)
{
	errc rc = OK;
	static const struct histogram empty = {.schema = 0};
	struct fit pos, neg;
	*appended = false;
	ASSERT(a->n == 0 || t > a->t);
	ASSERT(a->n > 0 || kind == a->kind);
	if (a->n == 0) {
		if (h->reset_hint == HINT_GAUGE || h->reset_hint == HINT_RESET)
			a->header = h->reset_hint == HINT_GAUGE ? RESET_GAUGE : RESET_YES;
		bool stale = h->sum == STALE_NAN_BITS;
		TRY(layout_put(a, stale ? &empty : h, err));
		CHECK(a->n_bytes + sample_max_bytes(a) <= LIMIT_CHUNK_BYTES, ERR_LIMIT,
			"a histogram of %u buckets does not fit a chunk of %llu bytes", a->pos.n + a->neg.n, (unsigned long long)LIMIT_CHUNK_BYTES);
		if (!stale)
			sample_map(a, kind, h, &pos, &neg);
	} else {
		if (!joins(a, kind, h, &a->refused, &pos, &neg) || full(a))
			return OK;
		if (pos.forward + neg.forward > 0)
			TRY(widen(a, h, &pos, &neg, err));
	}
	put_sample(a, t, h);
	CHECK(!a->failed, ERR_NOMEM, "no memory for a histogram chunk of %zu bytes", a->n_bytes);
	*appended = true;
fail:
	return rc;
}

errc hist_appender_new(enum sample_kind kind, const struct hist_appender *after, struct arena *arena, struct hist_appender **out, struct err *err)
{
	ASSERT(kind != SAMPLE_FLOAT);
	struct hist_appender *a = arena_alloc(arena, sizeof *a);
	if (!a)
		return err_set(err, ERR_NOMEM, "no memory for a histogram chunk");
	*out = a;
	errc rc = appender_init(a, kind, arena, err);
	a->header = after ? after->refused : RESET_UNKNOWN;
	return rc;
}

void hist_appender_by_rule(struct hist_appender *a)
{
	a->by_rule = true;
}

struct hist_progress hist_appender_progress(const struct hist_appender *a)
{
	return (struct hist_progress){.t = a->t, .n = a->n, .n_bytes = (uint32_t)a->n_bytes, .kind = a->kind};
}

void hist_appender_refuse(struct hist_appender *a, enum sample_kind kind, const struct histogram *h)
{
	struct fit pos, neg;
	(void)joins(a, kind, h, &a->refused, &pos, &neg);
}

errc hist_appender_finish(struct hist_appender *a, struct arena *arena, struct chunk *out, struct err *err)
{
	ASSERT(a->n > 0 && !a->failed);
	header_put(a);
	struct span data = arena_dup(arena, span_of(a->p, a->n_bytes));
	if (!data.p)
		return err_set(err, ERR_NOMEM, "no memory for a histogram chunk of %zu bytes", a->n_bytes);
	*out = (struct chunk){
		.mint = a->mint, .maxt = a->t, .enc = a->kind == SAMPLE_FLOAT_HISTOGRAM ? CHUNK_FLOAT_HISTOGRAM : CHUNK_HISTOGRAM, .data = data};
	return OK;
}
