/* head/head_snapshot_write.c - a snapshot is written beside running appends. See head_snapshot.c for the idea and docs/format/snapshot.md for bytes.
 *
 *     mark ─▶ cuts ─▶ tenants, pairs, series (each before its first use) ─▶ each window: states slice by slice, chunk file synced
 *          ─▶ exemplars and metadata ─▶ log synced ─▶ end ─▶ file synced ─▶ renamed
 *
 * A slice of a shard is copied under its lock, at most HEAD_SLICE series or SLICE_BYTES. A series is numbered by where it is met first; the number is noted in it
 * (series.checkpoint) and believed when the list says the same, so nothing has to be cleared.
 *
 * Keys: a sample in the log is told against one of the two keys of its series. A key that is replaced is one that nothing behind the mark leans on, because nothing in
 * the whole log does (key_change in head_append.c), so it does not matter which keys the copy has.
 *
 * Series are taken from windows that are gone, too, as for a checkpoint: whoever is in the table may be used behind the mark without a definition. This
 * is the cutter's thread, so no window is destroyed, cut or forgotten meanwhile.
 */
#include <inttypes.h>
#include <stdio.h>
#include "head/head_snapshot_int.h"

enum { WRITE_BYTES = 256 * 1024, SLICE_BYTES = 256 * 1024 };

struct name_slot {
	const struct symbol *name;
	uint32_t number; /* of a pair that has it, + 1 */
};

struct writer {
	struct head *h;
	int fd;
	uint64_t off;	 /* of what is in out */
	uint32_t number; /* of the next section */
	uint32_t id;
	int64_t begin_ns;
	struct buf out;
	size_t section; /* where the one that is open begins in out */
	struct wal_mark mark;
	struct cut_list cuts;
	/* numbers given out */
	struct series **series;
	uint32_t n_series, cap_series;
	uint32_t *pairs; /* by the process' id: number + 1 */
	uint32_t n_pairs, cap_pairs;
	uint32_t *tenants; /* by idx: number + 1 */
	uint32_t n_tenants, cap_tenants;
	struct name_slot *names;
	uint32_t n_names, name_mask;
	/* what the slice at hand met first */
	struct buf new_pairs, new_tenants, body;
	/* the last series' */
	uint64_t last_ref;
	uint32_t last_pairs[LIMIT_LABELS_DECODE];
	uint32_t n_last_pairs;
	uint64_t windows;
};

/* ---- sections ---- */

static bool urgent(struct head *h)
{
	pthread_mutex_lock(&h->windows_mu);
	bool now = h->woken;
	pthread_mutex_unlock(&h->windows_mu);
	return now || atomic_load_explicit(&h->stop, memory_order_relaxed);
}

static errc flush(struct writer *w, struct err *err)
{
	errc rc = OK;
	TRY(io_pwrite(w->fd, w->out.p, w->out.n, w->off, err));
	w->off += w->out.n;
	w->out.n = 0;
	/* The log's syncs share the disk; whoever waits for the cutter does not wait for that. */
	uint64_t rate = w->h->cfg.snapshot_bytes_per_s ? w->h->cfg.snapshot_bytes_per_s : SNAPSHOT_BYTES_PER_S;
	int64_t due = w->begin_ns + (int64_t)(w->off * 1000 / (rate / 1000000 + 1)), now = io_mono_ns();
	if (due - now > 5000000 && !urgent(w->h))
		io_sleep_ms((due - now) / 1000000 < 100 ? (due - now) / 1000000 : 100);
fail:
	return rc;
}

static void section_begin(struct writer *w, uint32_t kind)
{
	uint8_t head[SNAPSHOT_SECTION_HEADER] = {0};
	w->section = w->out.n;
	put_le32(head, kind);
	put_le32(head + 8, w->number++);
	put_le32(head + 12, w->id);
	buf_put(&w->out, head, sizeof head);
}

static errc section_end(struct writer *w, struct err *err)
{
	errc rc = OK;
	CHECK(!w->out.failed, ERR_NOMEM, "no memory for a snapshot");
	uint8_t *p = w->out.p + w->section;
	size_t n = w->out.n - w->section - SNAPSHOT_SECTION_HEADER;
	CHECK(n <= SNAPSHOT_SECTION_MAX, ERR_LIMIT, "a section of %zu bytes", n);
	put_le32(p + 4, (uint32_t)n);
	put_le32(p + 16, crc32c(crc32c(0, p, 16), p + SNAPSHOT_SECTION_HEADER, n));
	if (w->out.n >= WRITE_BYTES)
		TRY(flush(w, err));
fail:
	return rc;
}

static errc section_of(struct writer *w, uint32_t kind, const struct buf *body, struct err *err)
{
	if (body->failed)
		return err_set(err, ERR_NOMEM, "no memory for a snapshot");
	section_begin(w, kind);
	buf_put(&w->out, body->p, body->n);
	return section_end(w, err);
}

static void buf_le32(struct buf *b, uint32_t x)
{
	uint8_t p[4];
	put_le32(p, x);
	buf_put(b, p, sizeof p);
}

static void buf_le64(struct buf *b, uint64_t x)
{
	uint8_t p[8];
	put_le64(p, x);
	buf_put(b, p, sizeof p);
}

/* ---- numbers ---- */

/* Room for number i of an array that grows. */
static bool room(void *pp, uint32_t *cap, uint32_t i, size_t size)
{
	void *old;
	if (i < *cap)
		return true;
	memcpy(&old, pp, sizeof old);
	uint32_t n = *cap ? *cap : 1024;
	while (n <= i)
		n *= 2;
	void *v = head_table_alloc(n, size);
	if (!v)
		return false;
	if (old)
		memcpy(v, old, *cap * size);
	head_table_free(old, *cap, size);
	memcpy(pp, &v, sizeof v);
	*cap = n;
	return true;
}

static bool known(const struct writer *w, const struct series *s)
{
	return s->checkpoint < w->n_series && w->series[s->checkpoint] == s;
}

static struct name_slot *name_slot(const struct writer *w, const struct symbol *name)
{
	uint32_t i = head_spread((uintptr_t)name) & w->name_mask;
	while (w->names[i].name && w->names[i].name != name)
		i = (i + 1) & w->name_mask;
	return &w->names[i];
}

static bool names_room(struct writer *w)
{
	if (w->names && w->n_names + 1 <= w->name_mask / 4 * 3)
		return true;
	struct name_slot *old = w->names;
	uint32_t n = old ? w->name_mask + 1 : 0, mask = old ? w->name_mask * 2 + 1 : 255;
	struct name_slot *v = calloc((size_t)mask + 1, sizeof *v);
	if (!v)
		return false;
	w->names = v;
	w->name_mask = mask;
	for (uint32_t i = 0; i < n; i++)
		if (old[i].name)
			*name_slot(w, old[i].name) = old[i];
	free(old);
	return true;
}

/* The pair's number + 1; 0: no memory. It stays what it is: its series is in a window that is held. */
static uint32_t pair_number(struct writer *w, uint32_t id)
{
	if (!room(&w->pairs, &w->cap_pairs, id, sizeof *w->pairs))
		return 0;
	if (w->pairs[id])
		return w->pairs[id];
	if (!names_room(w))
		return 0;
	const struct label_pair *p = head_pair(&w->h->symbols, id);
	struct name_slot *e = name_slot(w, p->name);
	buf_uvarint(&w->new_pairs, e->number);
	w->pairs[id] = ++w->n_pairs;
	if (!e->name) {
		*e = (struct name_slot){p->name, w->n_pairs};
		w->n_names++;
		buf_str(&w->new_pairs, span_of(p->name->s, p->name->n));
	}
	buf_str(&w->new_pairs, head_pair_value(p));
	return w->pairs[id];
}

static uint32_t tenant_number(struct writer *w, const struct tenant *tn)
{
	if (!room(&w->tenants, &w->cap_tenants, tn->idx, sizeof *w->tenants))
		return 0;
	if (!w->tenants[tn->idx]) {
		buf_str(&w->new_tenants, head_tenant_name(tn));
		w->tenants[tn->idx] = ++w->n_tenants;
	}
	return w->tenants[tn->idx];
}

/* ---- series ---- */

static bool series_put(struct writer *w, struct series *s, uint32_t tenant)
{
	if (w->n_series >= CHECKPOINT_MARK || !room(&w->series, &w->cap_series, w->n_series, sizeof(struct series *)))
		return false;
	struct buf *b = &w->body;
	uint64_t ref = atomic_load_explicit(&s->ref, memory_order_relaxed);
	buf_varint(b, (int64_t)(ref - w->last_ref));
	buf_uvarint(b, tenant - 1);
	buf_u8(b, (uint8_t)(s->key_no | s->def_state << 1 | s->key_changed << 4));
	buf_varint(b, (int64_t)(s->def_pos - w->mark.pos));
	buf_le64(b, s->keys[0]);
	buf_le64(b, s->keys[1]);
	buf_uvarint(b, s->n_pairs);
	for (uint32_t i = 0; i < s->n_pairs; i++) {
		bool same = i < w->n_last_pairs && w->last_pairs[i] == s->pairs[i];
		uint32_t number = same ? 0 : pair_number(w, s->pairs[i]);
		if (!same && number == 0)
			return false;
		buf_uvarint(b, number);
		w->last_pairs[i] = s->pairs[i];
	}
	w->n_last_pairs = s->n_pairs;
	w->last_ref = ref;
	w->series[w->n_series] = s;
	s->checkpoint = w->n_series++;
	return true;
}

/* Series [from, from + HEAD_SLICE) of a part. */
static errc series_slice(struct writer *w, struct window *win, uint32_t shard, uint32_t from, bool *more, struct err *err)
{
	errc rc = OK;
	struct shard *sh = &w->h->shards[shard];
	uint32_t at = from;
	for (bool again = true; again;) {
		bool ok = true;
		buf_clear(&w->body);
		buf_clear(&w->new_pairs);
		buf_clear(&w->new_tenants);
		uint32_t tenant = tenant_number(w, win->tenant);
		CHECK(tenant, ERR_NOMEM, "no memory for a snapshot");
		pthread_mutex_lock(&sh->mu);
		const struct wpart *p = win->parts[shard].p;
		uint32_t n = p ? p->n : 0, end = n - from < HEAD_SLICE || from > n ? n : from + HEAD_SLICE;
		for (; ok && at < end && w->body.n < SLICE_BYTES; at++) {
			if (at + 4 < n)
				__builtin_prefetch(part_series(p, at + 4), 1);
			struct series *s = part_series(p, at);
			if (!known(w, s))
				ok = series_put(w, s, tenant);
		}
		again = at < end;
		*more |= end < n;
		pthread_mutex_unlock(&sh->mu);
		CHECK(ok, ERR_NOMEM, "no memory for a snapshot");
		if (w->new_tenants.n > 0)
			TRY(section_of(w, SNAPSHOT_TENANTS, &w->new_tenants, err));
		if (w->new_pairs.n > 0)
			TRY(section_of(w, SNAPSHOT_PAIRS, &w->new_pairs, err));
		if (w->body.n > 0)
			TRY(section_of(w, SNAPSHOT_SERIES, &w->body, err));
	}
fail:
	return rc;
}

/* The shards in turn: series that came together, whose samples will come together, stay near each other in the next process, whose shards are others. */
static errc series_of(struct writer *w, struct window *win, struct err *err)
{
	errc rc = OK;
	bool more = true;
	for (uint32_t from = 0; more; from += HEAD_SLICE) {
		more = false;
		for (uint32_t shard = 0; shard < w->h->n_shards; shard++)
			TRY(series_slice(w, win, shard, from, &more, err));
	}
fail:
	return rc;
}

/* ---- windows ---- */

static void leaves_put(struct buf *b, const struct leaves *lv)
{
	buf_uvarint(b, lv->n);
	for (uint32_t i = 0; i < lv->n; i++) {
		const struct leaf *l = &lv->v[i];
		uint64_t bits = (uint64_t)l->kind | (uint64_t)l->touched << 1 | (uint64_t)l->n << 2;
		if (l->kind == LEAF_FILE)
			bits |= (uint64_t)l->len << 10 | (uint64_t)l->off << 24;
		buf_le32(b, l->mint);
		buf_le32(b, l->maxt);
		buf_le64(b, bits);
		for (uint32_t k = 0; l->kind == LEAF_RAW && k < l->n; k++) {
			buf_le64(b, (uint64_t)leaf_raw(l)[k].t);
			buf_le64(b, leaf_raw(l)[k].v);
		}
	}
}

static void open_put(struct buf *b, const struct wpart *p, const struct wseries *ws)
{
	if (!buf_reserve(b, SNAPSHOT_OPEN_BYTES + ws->n_bytes + (size_t)PIECE_PAYLOAD))
		return;
	uint8_t *q = b->p + b->n;
	put_le64(q, ws->v);
	put_le32(q + 8, ws->t);
	put_le32(q + 12, ws->dt);
	put_le32(q + 16, ws->start);
	put_le32(q + 20, ws->next_at);
	q[24] = (uint8_t)ws->n;
	q[25] = (uint8_t)ws->n_bytes;
	q[26] = (uint8_t)(ws->n_bytes >> 8);
	q[27] = ws->leading;
	q[28] = ws->trailing;
	q[29] = ws->bits_left;
	q += SNAPSHOT_OPEN_BYTES;
	size_t left = ws_in_pieces(ws);
	b->n += SNAPSHOT_OPEN_BYTES + left;
	for (uint32_t i = ws->first; left > 0;) {
		const struct piece *piece = part_piece(p, i);
		size_t n = left < PIECE_PAYLOAD ? left : (size_t)PIECE_PAYLOAD;
		memcpy(q, piece->bytes, PIECE_PAYLOAD);
		q += n;
		left -= n;
		i = piece->next;
	}
}

/* Number, state and samples of one series in a window. */
static void state_put(struct buf *b, const struct wpart *p, const struct wseries *ws, int64_t step)
{
	buf_varint(b, step);
	buf_u8(b, (uint8_t)((ws_leaves(ws) ? SNAPSHOT_HAS_LEAVES : 0) | (ws->n ? SNAPSHOT_HAS_OPEN : 0) |
			    (ws_hists(ws) ? SNAPSHOT_HAS_HISTOGRAMS : 0) | (ws_chained(ws) ? SNAPSHOT_HAS_CHAIN : 0)));
	if (ws_leaves(ws))
		leaves_put(b, ws->leaves);
	if (ws_chained(ws)) {
		buf_le64(b, ws->chain);
		buf_le32(b, ws->t);
	}
	if (ws->n > 0)
		open_put(b, p, ws);
	if (ws_hists(ws))
		head_snapshot_hist_put(b, ws->hist);
}

static errc states_slice(struct writer *w, struct window *win, uint32_t shard, uint32_t from, uint64_t *total, bool *more, struct err *err)
{
	errc rc = OK;
	struct head *h = w->h;
	struct shard *sh = &h->shards[shard];
	uint32_t at = from;
	for (bool again = true; again;) {
		struct wal_mark now;
		uint64_t n = 0;
		/* Whatever is in the log by now is in the series already. */
		uint64_t covers = wal_mark(h->cfg.wal, &now) && now.seq > w->mark.seq ? now.seq - w->mark.seq : 0;
		section_begin(w, SNAPSHOT_STATES);
		size_t begin = w->out.n;
		uint32_t expected = 0;
		buf_uvarint(&w->out, covers);
		pthread_mutex_lock(&sh->mu);
		const struct wpart *p = win->parts[shard].p;
		buf_uvarint(&w->out, p && p->n_samples > 0 ? (uint64_t)(p->min_t - win->start) : 0);
		uint32_t part_n = p ? p->n : 0, end = part_n - from < HEAD_SLICE || from > part_n ? part_n : from + HEAD_SLICE;
		for (; at < end && w->out.n - begin < SLICE_BYTES; at++) {
			if (at + 4 < part_n) {
				__builtin_prefetch(part_series(p, at + 4));
				__builtin_prefetch(part_ws(p, at + 4));
			}
			const struct series *s = part_series(p, at);
			const struct wseries *ws = part_ws(p, at);
			/* One that came after the mark has its definition behind it, too. */
			if (ws_empty(ws) || !known(w, s))
				continue;
			state_put(&w->out, p, ws, (int64_t)s->checkpoint - (int64_t)expected);
			expected = s->checkpoint + 1;
			n++;
		}
		again = at < end;
		*more |= end < part_n;
		pthread_mutex_unlock(&sh->mu);
		*total += n;
		if (n > 0) {
			TRY(section_end(w, err));
		} else {
			w->out.n = w->section;
			w->number--;
		}
	}
fail:
	return rc;
}

static errc states_of(struct writer *w, struct window *win, uint64_t *total, struct err *err)
{
	errc rc = OK;
	bool more = true;
	*total = 0;
	for (uint32_t from = 0; more; from += HEAD_SLICE) {
		more = false;
		for (uint32_t shard = 0; shard < w->h->n_shards; shard++)
			TRY(states_slice(w, win, shard, from, total, &more, err));
	}
fail:
	return rc;
}

static bool cut_whole(const struct writer *w, const struct window *win)
{
	for (size_t i = 0; i < w->cuts.n; i++)
		if (ulid_eq(w->cuts.v[i].cut.window, win->ulid) && w->cuts.v[i].cut.upto_seq == WAL_CUT_ALL)
			return true;
	return false;
}

static errc window_put(struct writer *w, struct window *win, struct err *err)
{
	errc rc = OK;
	uint64_t n, bytes;
	if (cut_whole(w, win) || !w->tenants || win->tenant->idx >= w->cap_tenants || w->tenants[win->tenant->idx] == 0)
		return OK;
	section_begin(w, SNAPSHOT_WINDOW);
	buf_uvarint(&w->out, w->tenants[win->tenant->idx] - 1);
	buf_put(&w->out, win->ulid.b, sizeof win->ulid.b);
	buf_varint(&w->out, win->start);
	buf_uvarint(&w->out, (uint64_t)win->range);
	buf_uvarint(&w->out, atomic_load_explicit(&win->first_segment, memory_order_relaxed));
	buf_le32(&w->out, win->file.number);
	TRY(section_end(w, err));
	TRY(states_of(w, win, &n, err));
	TRY(head_chunkfile_sync(&win->file, &bytes, err));
	section_begin(w, SNAPSHOT_WINDOW_END);
	buf_uvarint(&w->out, n);
	buf_uvarint(&w->out, bytes);
	TRY(section_end(w, err));
	w->windows++;
fail:
	return rc;
}

/* ---- the whole ---- */

static errc mark_put(struct writer *w, struct err *err)
{
	const struct wal_mark *m = &w->mark;
	section_begin(w, SNAPSHOT_MARK);
	pthread_mutex_lock(&w->h->symbols.mu);
	uint64_t n_pairs = w->h->symbols.n_pairs;
	pthread_mutex_unlock(&w->h->symbols.mu);
	const uint64_t v[] = {m->seq, m->first_sample, m->pos, m->segment, m->offset, m->checkpoint, (uint64_t)io_now_ms(),
		atomic_load_explicit(&w->h->n_series, memory_order_relaxed), n_pairs};
	for (size_t i = 0; i < sizeof v / sizeof *v; i++)
		buf_le64(&w->out, v[i]);
	buf_le32(&w->out, m->log);
	buf_le32(&w->out, m->crc);
	return section_end(w, err);
}

static errc cuts_put(struct writer *w, struct err *err)
{
	errc rc = OK;
	struct head *h = w->h;
	pthread_mutex_lock(&h->cuts_mu);
	w->cuts.v = malloc((h->cuts.n + 1) * sizeof *w->cuts.v);
	for (size_t i = 0; w->cuts.v && i < h->cuts.n; i++)
		w->cuts.v[w->cuts.n++] = h->cuts.v[i];
	pthread_mutex_unlock(&h->cuts_mu);
	CHECK(w->cuts.v, ERR_NOMEM, "no memory for a snapshot");
	for (size_t i = 0; i < w->cuts.n;) {
		section_begin(w, SNAPSHOT_CUTS);
		for (size_t k = 0; k < 4096 && i < w->cuts.n; k++, i++) {
			const struct cut_record *c = &w->cuts.v[i];
			buf_put(&w->out, c->cut.window.b, 16);
			buf_put(&w->out, c->cut.block.b, 16);
			buf_le64(&w->out, c->cut.upto_seq);
			buf_u8(&w->out, c->copies);
			buf_le64(&w->out, c->pos_max);
			buf_le64(&w->out, c->last_segment);
		}
		TRY(section_end(w, err));
	}
fail:
	return rc;
}

/* References to every window; the list has to stop growing for a moment only. */
static errc windows_hold(struct head *h, struct window ***out, size_t *n, struct err *err)
{
	errc rc = OK;
	size_t cap = 64;
	*n = 0;
	pthread_mutex_lock(&h->windows_mu);
	for (const struct window *w = h->windows; w; w = w->next)
		cap++;
	pthread_mutex_unlock(&h->windows_mu);
	*out = malloc(cap * sizeof **out);
	CHECK(*out, ERR_NOMEM, "no memory for a snapshot");
	pthread_mutex_lock(&h->windows_mu);
	struct window *w = h->windows;
	for (; w && *n < cap; w = w->next)
		(*out)[(*n)++] = head_window_ref(w);
	pthread_mutex_unlock(&h->windows_mu);
	CHECK(!w, ERR_AGAIN, "windows are being opened faster than they are counted");
fail:
	return rc;
}

static errc record_put(void *arg, struct span record, struct err *err)
{
	struct writer *w = arg;
	section_begin(w, SNAPSHOT_RECORDS);
	buf_span(&w->out, record);
	return section_end(w, err);
}

static errc content_put(struct writer *w, struct err *err)
{
	errc rc = OK;
	struct head *h = w->h;
	struct window **held = NULL;
	size_t n = 0;
	CHECK(wal_mark(h->cfg.wal, &w->mark), ERR_AGAIN, "the log has no frame of this process");
	TRY(windows_hold(h, &held, &n, err));
	TRY(mark_put(w, err));
	TRY(cuts_put(w, err));
	for (size_t i = 0; i < n; i++)
		TRY(series_of(w, held[i], err));
	for (size_t i = 0; i < n; i++)
		if (!held[i]->gone)
			TRY(window_put(w, held[i], err));
	TRY(head_exemplars_checkpoint(h, record_put, w, &w->body, err));
	TRY(head_metadata_checkpoint(h, record_put, w, &w->body, err));
	TRY(wal_sync_now(h->cfg.wal, err));
	struct wal_mark end;
	CHECK(wal_mark(h->cfg.wal, &end), ERR_AGAIN, "the log has no frame of this process");
	section_begin(w, SNAPSHOT_END);
	buf_le64(&w->out, end.seq);
	buf_le64(&w->out, w->n_series);
	buf_le64(&w->out, w->windows);
	TRY(section_end(w, err));
	TRY(flush(w, err));
fail:
	for (size_t i = 0; i < n; i++)
		head_window_unref(held[i]);
	free(held);
	return rc;
}

static void writer_free(struct writer *w)
{
	head_table_free(w->series, w->cap_series, sizeof(struct series *));
	head_table_free(w->pairs, w->cap_pairs, sizeof *w->pairs);
	head_table_free(w->tenants, w->cap_tenants, sizeof *w->tenants);
	free(w->names);
	free(w->cuts.v);
	buf_free(&w->out);
	buf_free(&w->body);
	buf_free(&w->new_pairs);
	buf_free(&w->new_tenants);
	io_close(w->fd);
	free(w);
}

errc head_snapshot_write(struct head *h, struct err *err)
{
	errc rc = OK;
	char path[SNAPSHOT_PATH_BYTES], tmp[SNAPSHOT_PATH_BYTES];
	bool made = false;
	struct writer *w = calloc(1, sizeof *w);
	CHECK(w, ERR_NOMEM, "no memory for a snapshot");
	w->h = h;
	w->fd = -1;
	w->begin_ns = io_mono_ns();
	io_random(&w->id, sizeof w->id);
	buf_init(&w->out, 2 * SNAPSHOT_SECTION_MAX);
	buf_init(&w->body, SNAPSHOT_SECTION_MAX);
	buf_init(&w->new_pairs, SNAPSHOT_SECTION_MAX);
	buf_init(&w->new_tenants, SNAPSHOT_SECTION_MAX);
	head_snapshot_path(h, false, path);
	head_snapshot_path(h, true, tmp);
	TRY(io_open(tmp, IO_READ | IO_WRITE | IO_CREATE | IO_TRUNC, &w->fd, err));
	made = true;
	buf_put(&w->out, "varvesnp", 8);
	buf_le32(&w->out, SNAPSHOT_VERSION);
	buf_le32(&w->out, w->id);
	TRY(content_put(w, err));
	TRY(io_fsync(w->fd, err));
	pthread_mutex_lock(&h->snap.mu);
	rc = h->snap.damaged ? err_set(err, ERR_CORRUPT, "a chunk of an open window can't be read") : io_rename(tmp, path, err);
	if (rc == OK) {
		made = false;
		rc = io_fsync_dir(h->cfg.chunk_dir, err);
	}
	pthread_mutex_unlock(&h->snap.mu);
	TRY(rc);
	h->snap.pos = w->mark.pos;
	atomic_store(&h->snap.bytes, w->off);
	atomic_store(&h->snap.written_ms, io_now_ms());
	log_info("snapshot of the head written", LU64("series", w->n_series), LU64("windows", w->windows), LU64("bytes", w->off),
		LU64("frame", w->mark.seq), LI64("ms", (io_mono_ns() - w->begin_ns) / 1000000));
fail:
	if (w)
		writer_free(w);
	if (made)
		(void)!io_unlink(tmp, NULL);
	return rc;
}
