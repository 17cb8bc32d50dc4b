/* head/head_log.c - what a request leaves in the log.
 *
 * Samples of a window are one record; above HEAD_LOG_GROUP_BYTES another one begins. A series whose definition does not yet stand in two
 * frames far apart is defined again in the same frame: definitions and the samples that need them are one group, so a damaged frame
 * takes its own samples along and no others.
 *
 *     WAL_SAMPLES                                      all series settled (the common case: no copy, encoded in place)
 *     WAL_GROUP { WAL_SERIES, WAL_SAMPLES }            some young
 *
 * Histograms the same, behind the floats, in WAL_HISTOGRAMS.
 */
#include "head/head_int.h"

/* What the times of samples say about records: how often they change the window, and no more windows than they span. */
struct times {
	int64_t lo, hi;
};
_Static_assert(offsetof(struct head_sample, t) == 0 && offsetof(struct head_hist, t) == 0, "the time comes first");
static inline uint64_t windows_of(const void *v, size_t stride, uint32_t n, int64_t range, struct times *all)
{
	const uint8_t *p = v;
	uint64_t windows = 1;
	int64_t before, t, first, last;
	memcpy(&before, p, sizeof before);
	first = last = before;
	for (uint32_t k = 1; k < n; k++) {
		memcpy(&t, p + k * stride, sizeof t);
		int64_t d = (int64_t)((uint64_t)t - (uint64_t)before);
		windows += d < 0 || d >= range || floor_to(t, range) != floor_to(before, range);
		first = t < first ? t : first;
		last = t > last ? t : last;
		before = t;
	}
	uint64_t span = ((uint64_t)last - (uint64_t)first) / (uint64_t)range + 2;
	all->lo = first < all->lo ? first : all->lo;
	all->hi = last > all->hi ? last : all->hi;
	return windows < span ? windows : span;
}

size_t head_batch_bound(const struct head *h, const struct head_batch *b)
{
	int64_t range = atomic_load_explicit(&h->min_range, memory_order_relaxed);
	size_t tenant = b->tenant.n, defs = 0, records = 0, longest = 0, packed = 0;
	struct times all = {INT64_MAX, INT64_MIN};
	for (size_t i = 0; i < b->n_series; i++) {
		const struct head_series *s = &b->series[i];
		if (s->n == 0 && s->n_hist == 0)
			continue;
		uint64_t windows = s->n ? windows_of(b->samples + s->first, sizeof *b->samples, s->n, range, &all) : 0;
		if (s->n_hist)
			windows += windows_of(b->hists + s->first_hist, sizeof *b->hists, s->n_hist, range, &all);
		size_t def = wal_series_bound(tenant, s->wire.n);
		longest = def > longest ? def : longest;
		defs += windows * def;
		records += windows;
	}
	if (records == 0)
		return 0;
	for (size_t i = 0; i < b->n_hists; i++) {
		size_t bound = histogram_pack_bound(b->hists[i].h);
		packed += bound < LIMIT_HISTOGRAM_PACKED_BYTES ? bound : LIMIT_HISTOGRAM_PACKED_BYTES;
	}
	/* A start has another window in each shard at most: one that was closed while the request ran. Each has a record of floats and one of histograms. */
	uint64_t span = ((uint64_t)all.hi - (uint64_t)all.lo) / (uint64_t)range + 2;
	uint64_t each = b->n_hists > 0 ? 2 : 1;
	if (span < records / (h->n_shards + 1) / each)
		records = span * (h->n_shards + 1) * each;
	/* A group that is full splits a series: its definition stands twice. */
	size_t n = defs + wal_samples_bound(tenant, b->n_samples) + (b->n_hists > 0 ? wal_histograms_bound(tenant, b->n_hists, packed) : 0);
	size_t groups = records + n / (HEAD_LOG_GROUP_BYTES / 2) + 1;
	return n + groups * (wal_samples_bound(tenant, 0) + 16) + (groups - records) * longest;
}

static struct wal_window window_of(const struct window *w)
{
	return (struct wal_window){.tenant = head_tenant_name(w->tenant), .window = w->ulid, .start_ms = w->start, .range_ms = w->range};
}

enum { KEYS_AT_ONCE = 64 };

/* The changed keys among the definitions of samples [0, n), which are one group's. */
static void keys_encode(struct append_ctx *c, const struct log_meta *m, size_t n)
{
	struct wal_key_change v[KEYS_AT_ONCE];
	size_t have = 0;
	uint32_t before = UINT32_MAX;
	for (size_t j = 0; j < n; j++) {
		uint32_t def = m[j].def;
		if (def != UINT32_MAX && def != before && !c->defs[def].wire.p)
			v[have++] = (struct wal_key_change){c->defs[def].ref, c->defs[def].keys};
		before = def;
		if (have == KEYS_AT_ONCE || j + 1 == n) {
			wal_keys_put(&c->group, v, have);
			have = 0;
		}
	}
}

/* A group begins: the definitions of samples [0, n), and the keys. */
static void defs_encode(struct append_ctx *c, struct span tenant, const struct log_meta *m, size_t n)
{
	buf_clear(&c->group);
	struct wal_series_enc e;
	wal_series_begin(&e, &c->group, tenant);
	uint32_t before = UINT32_MAX, n_keys = 0;
	for (size_t j = 0; j < n; j++) {
		uint32_t def = m[j].def;
		const struct log_def *d = def == UINT32_MAX || def == before ? NULL : &c->defs[def];
		if (d && d->wire.p)
			wal_series_put(&e, d->ref, d->wire, &d->keys);
		n_keys += d && !d->wire.p;
		before = def;
	}
	wal_series_end(&e);
	if (n_keys > 0)
		keys_encode(c, m, n);
}

/* Samples [0, n) of one window; def[k] as in log_meta. */
static void encode_window(struct append_ctx *c, struct buf *out, const struct window *win, const struct wal_sample *v, const struct log_meta *m,
	size_t n, uint32_t *n_groups)
{
	struct wal_window w = window_of(win);
	size_t tenant = w.tenant.n;
	for (size_t i = 0; i < n;) {
		uint32_t group = (*n_groups)++;
		size_t bytes = wal_samples_bound(tenant, 0), each = wal_samples_bound(tenant, 1) - bytes, k = i, n_defs = 0;
		for (; k < n && bytes + each <= HEAD_LOG_GROUP_BYTES; k++) {
			struct log_def *d = m[k].def == UINT32_MAX ? NULL : &c->defs[m[k].def];
			if (d && d->group != group) {
				size_t def = d->wire.p ? wal_series_bound(tenant, d->wire.n) : wal_keys_bound();
				if (k > i && bytes + each + def > HEAD_LOG_GROUP_BYTES)
					break;
				d->group = group;
				bytes += def;
				n_defs++;
			}
			bytes += each;
		}
		ASSERT(k > i);
		if (n_defs == 0) {
			wal_samples_put(out, &w, v + i, k - i);
			i = k;
			continue;
		}
		defs_encode(c, w.tenant, m + i, k - i);
		wal_samples_put(&c->group, &w, v + i, k - i);
		ASSERT(!c->group.failed);
		buf_u8(out, WAL_GROUP);
		buf_str(out, span_of(c->group.p, c->group.n));
		i = k;
	}
}

/* The same of histograms. */
static void encode_hists(struct append_ctx *c, struct buf *out, const struct window *win, const struct wal_histogram *v, const struct log_meta *m,
	size_t n, uint32_t *n_groups)
{
	struct wal_window w = window_of(win);
	size_t tenant = w.tenant.n, head = wal_histograms_bound(tenant, 0, 0);
	for (size_t i = 0; i < n;) {
		uint32_t group = (*n_groups)++;
		size_t bytes = head, k = i, n_defs = 0;
		for (; k < n; k++) {
			struct log_def *d = m[k].def == UINT32_MAX ? NULL : &c->defs[m[k].def];
			size_t each = wal_histograms_bound(tenant, 1, v[k].packed.n) - head;
			if (d && d->group != group)
				each += d->wire.p ? wal_series_bound(tenant, d->wire.n) : wal_keys_bound();
			if (k > i && bytes + each > HEAD_LOG_GROUP_BYTES)
				break;
			if (d && d->group != group) {
				d->group = group;
				n_defs++;
			}
			bytes += each;
		}
		if (n_defs == 0) {
			wal_histograms_put(out, &w, v + i, k - i);
			i = k;
			continue;
		}
		defs_encode(c, w.tenant, m + i, k - i);
		wal_histograms_put(&c->group, &w, v + i, k - i);
		ASSERT(!c->group.failed);
		buf_u8(out, WAL_GROUP);
		buf_str(out, span_of(c->group.p, c->group.n));
		i = k;
	}
}

static void encode_all_hists(struct append_ctx *c, struct buf *out, uint32_t *n_groups)
{
	size_t at = 0;
	for (uint32_t k = 0; k < c->n_wins; k++) {
		c->wins[k].next = (uint32_t)at;
		at += c->wins[k].n_hists;
	}
	ASSERT(at == c->n_hists_logged);
	for (size_t i = 0; i < c->batch->n_hists; i++) {
		if (c->hist_meta[i].win == UINT32_MAX)
			continue;
		uint32_t to = c->wins[c->hist_meta[i].win].next++;
		c->sorted_hists[to] = c->hists[i];
		c->sorted_hist_meta[to] = c->hist_meta[i];
	}
	at = 0;
	for (uint32_t k = 0; k < c->n_wins; k++) {
		encode_hists(c, out, c->wins[k].w, c->sorted_hists + at, c->sorted_hist_meta + at, c->wins[k].n_hists, n_groups);
		at += c->wins[k].n_hists;
	}
}

static void encode_floats(struct append_ctx *c, struct buf *out, uint32_t *n_groups)
{
	if (c->n_logged == 0)
		return;
	/* What was refused or a duplicate left its place empty. */
	const size_t n = c->batch->n_samples;
	if (c->n_wins == 1 && c->n_logged == n) {
		encode_window(c, out, c->wins[0].w, c->samples, c->meta, n, n_groups);
		return;
	}
	/* By window, the order inside kept; the metas follow. */
	size_t at = 0;
	for (uint32_t k = 0; k < c->n_wins; k++) {
		size_t from = at;
		if (c->wins[k].n == 0)
			continue;
		at += c->wins[k].n;
		c->wins[k].next = (uint32_t)from;
	}
	ASSERT(at == c->n_logged);
	for (size_t i = 0; i < n; i++) {
		if (c->meta[i].win == UINT32_MAX)
			continue;
		uint32_t to = c->wins[c->meta[i].win].next++;
		c->sorted[to] = c->samples[i];
		c->sorted_meta[to] = c->meta[i];
	}
	at = 0;
	for (uint32_t k = 0; k < c->n_wins; k++) {
		encode_window(c, out, c->wins[k].w, c->sorted + at, c->sorted_meta + at, c->wins[k].n, n_groups);
		at += c->wins[k].n;
	}
}

void head_log_encode(struct append_ctx *c, struct buf *out)
{
	uint32_t n_groups = 0;
	encode_floats(c, out, &n_groups);
	if (c->n_hists_logged > 0)
		encode_all_hists(c, out, &n_groups);
}
