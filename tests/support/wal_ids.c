#include <stdlib.h>
#include "tests/support/wal_ids.h"
#include "base/limits.h"
#include "tests/support/fail_alloc.h"

static const struct wal_window window = {{"tenant-a", 8}, {{1, 2, 3}}, 7200000, 7200000};

static uint64_t noise_next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static uint64_t noise_seed(uint64_t id)
{
	return (id + 1) * UINT64_C(0x9e3779b97f4a7c15);
}

void ids_free(struct ids *g)
{
	free(g->v);
	free(g->times);
	free(g->frame_of);
	*g = (struct ids){0};
}

bool ids_has(const struct ids *g, uint64_t id)
{
	return g->times && g->times[id] > 0;
}

void ids_put(struct buf *b, uint64_t id, size_t noise)
{
	struct wal_sample s = {.ref = id, .t = (int64_t)id * 1000, .v = id * 77};
	wal_samples_put(b, &window, &s, 1);
	if (noise == 0)
		return;
	uint64_t x = noise_seed(id);
	buf_u8(b, 99);
	buf_uvarint(b, noise + 8);
	uint8_t head[8];
	put_le64(head, id);
	buf_put(b, head, 8);
	for (size_t i = 0; i < noise; i++)
		buf_u8(b, (uint8_t)noise_next(&x));
}

static void noise_check(struct ids *g, struct span body)
{
	if (body.n < 8) {
		g->wrong++;
		return;
	}
	uint64_t x = noise_seed(get_le64(body.p));
	for (size_t i = 8; i < body.n; i++)
		g->wrong += (uint8_t)body.p[i] != (uint8_t)noise_next(&x);
}

static void sample_add(struct ids *g, const struct wal_sample *s, const struct wal_frame *f)
{
	if (s->ref >= IDS_MAX || s->t != (int64_t)s->ref * 1000 || s->v != s->ref * 77) {
		g->wrong++;
		return;
	}
	if (g->n == g->cap) {
		g->cap = g->cap * 2 + 64;
		g->v = realloc(g->v, g->cap * sizeof *g->v);
	}
	if (!g->times) {
		g->times = calloc(IDS_MAX, 1);
		g->frame_of = calloc(IDS_MAX, sizeof *g->frame_of);
	}
	if (!g->v || !g->times || !g->frame_of)
		abort();
	g->v[g->n++] = s->ref;
	g->times[s->ref]++;
	g->frame_of[s->ref] = f->offset << 20 | f->segment;
}

errc ids_frame(void *arg, const struct wal_frame *f, struct err *err)
{
	struct ids *g = arg;
	struct rd r = rd_of(f->payload.p, f->payload.n);
	struct wal_record rec;
	bool ok;
	uint64_t samples = 0;
	(void)err;
	fail_alloc_pause();
	while (wal_record_next(&r, &rec, &ok)) {
		struct wal_samples_dec d;
		struct wal_series_dec sd;
		struct wal_sample s;
		uint64_t ref;
		struct span wire;
		if (rec.kind == 99)
			noise_check(g, rec.body);
		if (rec.kind == WAL_SERIES && wal_series_open(rec.kind, rec.body, &sd)) {
			while (wal_series_next(&sd, &ref, &wire, &(struct wal_keys){0}, &ok))
				g->definitions++;
		}
		if (rec.kind != WAL_SAMPLES)
			continue;
		if (!wal_samples_open(rec.kind, rec.body, &d) || !span_eq(d.w.tenant, window.tenant) || !ulid_eq(d.w.window, window.window)) {
			g->wrong++;
			continue;
		}
		while (wal_samples_next(&d, &s, &ok)) {
			sample_add(g, &s, f);
			samples++;
		}
		g->wrong += !ok;
	}
	g->wrong += !ok || (f->seq > 0 && samples != f->samples); /* a checkpoint holds no samples of its own */
	fail_alloc_resume();
	return OK;
}

struct wal *ids_open(
	const char *dir, enum wal_sync sync, uint64_t segment_bytes, struct ids *g, struct wal_replay_stats *stats, errc *rc, struct err *err)
{
	struct wal_config cfg = {.dir = dir, .sync = sync, .sync_interval_ms = 20, .segment_bytes = segment_bytes};
	struct wal *w;
	*rc = wal_open(&cfg, &w, err);
	if (*rc == OK)
		*rc = wal_replay(w, ids_frame, g, NULL, stats, err);
	if (*rc == OK)
		return w;
	wal_close(w);
	return NULL;
}

errc ids_write(struct wal *w, uint64_t id, size_t noise, struct err *err)
{
	struct buf b;
	struct wal_ticket t;
	fail_alloc_pause();
	buf_init(&b, 64 * MIB);
	ids_put(&b, id, noise);
	fail_alloc_resume();
	errc rc = wal_reserve(w, b.n, &t, err);
	if (rc == OK)
		rc = wal_commit_wait(w, &t, span_of(b.p, b.n), 1, err);
	buf_free(&b);
	return rc;
}
