/* head/head_snapshot_hist.c - the histograms of a series in a window, in a snapshot: written and read. Bytes: docs/format/snapshot.md. */
#include "head/head_snapshot_int.h"

enum { LEAF_HEADER = 14, RAW = 1 };

void head_snapshot_hist_put(struct buf *b, const struct hist_series *hs)
{
	buf_uvarint(b, hs->n);
	for (uint32_t i = 0; i < hs->n; i++) {
		const struct hist_leaf *l = &hs->v[i];
		bool raw = l->cap > 0;
		uint32_t bytes = head_hist_leaf_bytes(l);
		size_t n = LEAF_HEADER + (raw ? bytes : sizeof l->off);
		if (!buf_reserve(b, n))
			return;
		uint8_t *p = b->p + b->n;
		put_le32(p, l->mint);
		put_le32(p + 4, l->maxt);
		put_le32(p + 8, bytes);
		p[12] = (uint8_t)l->n;
		p[13] = raw ? RAW : 0;
		if (raw)
			head_hist_leaf_copy(l, p + LEAF_HEADER);
		else
			put_le64(p + LEAF_HEADER, l->off);
		b->n += n;
	}
}

/* What head_hist.c leans on: times that ascend, and as many samples as the leaf says, none of them too large. */
static bool raw_fits(const struct hist_leaf *l, struct span raw)
{
	struct rd r = rd_of(raw.p, raw.n);
	struct span packed;
	uint32_t t, n = 0;
	int64_t before = (int64_t)l->mint - 1;
	bool ok, first = false;
	while (head_hist_leaf_next(&r, &t, &packed, &ok)) {
		if (t <= before || packed.n > LIMIT_HISTOGRAM_PACKED_BYTES)
			return false;
		first |= n++ == 0 && t == l->mint;
		before = t;
	}
	return ok && first && n == l->n && before == l->maxt;
}

errc head_snapshot_hist_get(struct rd *b, struct window *w, struct wpart *part, struct wseries *ws, int64_t range, uint64_t chunk_room,
	struct snapshot_hists *out, const char **why, struct err *err)
{
	errc rc = OK;
	*out = (struct snapshot_hists){0};
	*why = "histograms";
	uint64_t n = rd_uvarint(b);
	if (!b->ok || n == 0 || n > rd_left(b) / LEAF_HEADER)
		return OK;
	int64_t before = -1;
	for (uint64_t i = 0; i < n; i++) {
		struct hist_leaf l = {.mint = rd_le32(b)};
		l.maxt = rd_le32(b);
		l.bytes = rd_le32(b);
		l.n = rd_u8(b);
		uint8_t where = rd_u8(b);
		struct span raw = {NULL, 0};
		if (!b->ok || where > RAW || (int64_t)l.mint <= before || l.mint > l.maxt || l.maxt >= range || l.n == 0 ||
			l.n > HIST_LEAF_SAMPLES_MAX || l.bytes > HEAD_RECORD_MAX_BYTES - CHUNKFILE_OVERHEAD)
			return OK;
		before = l.maxt;
		if (where == RAW) {
			raw = rd_bytes(b, l.bytes);
			if (!b->ok || !raw_fits(&l, raw))
				return OK;
		} else {
			l.off = rd_le64(b);
			if (!b->ok || l.off >= UINT64_C(1) << 40 || (w && l.off + l.bytes + CHUNKFILE_OVERHEAD > chunk_room))
				return OK;
			uint64_t end = l.off + l.bytes + CHUNKFILE_OVERHEAD;
			out->chunk_bytes = end > out->chunk_bytes ? end : out->chunk_bytes;
		}
		if (w)
			TRY(head_hist_load_locked(w, part, ws, (uint32_t)n, &l, raw, err));
		out->first = i == 0 ? l.mint : out->first;
		out->last = l.maxt;
		out->n += l.n;
	}
	*why = NULL;
fail:
	return rc;
}
