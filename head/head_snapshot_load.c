/* head/head_snapshot_load.c - the newest snapshot is loaded, or removed. See head_snapshot.c for the idea and docs/format/snapshot.md for bytes.
 *
 * Section by section, each checked before it is looked into: memory beside the head's own is one section, the numbers of pairs and series, and what replay needs
 * to find a series by its ref. A definition costs no look at a string table: its pairs are numbers, and its canonical bytes are put together once, to be hashed with this
 * process' secret. The places that a group of series goes to are asked of memory before the first is needed.
 *
 * The checksums tell damage from what was written. What they let through is checked all the same, as far as memory depends on it: a bug or a forger must not lead
 * to a read outside; wrong values they can have.
 */
#include <inttypes.h>
#include <stdio.h>
#include "base/tenant.h"
#include "head/head_replay_int.h"
#include "head/head_snapshot_int.h"

enum { READ_BYTES = MIB, GROUP = 16, OPEN_BYTES_MAX = 1100, SAMPLES_MAX = 240, STATE_AHEAD = 8 };

struct reader {
	struct head *h;
	char path[SNAPSHOT_PATH_BYTES];
	int fd;
	uint64_t size, off; /* off: of the next section */
	uint32_t number, id;
	uint8_t *buf; /* [buf_off, buf_off + buf_n) of the file */
	uint64_t buf_off;
	size_t buf_n, cap;
	struct wal_mark mark;
	uint64_t written_ms;
	struct tenant **tenants;
	uint32_t n_tenants, cap_tenants;
	struct snapshot_pairs *pairs;
	struct series **series;
	uint32_t n_series, cap_series;
	uint64_t last_ref;
	uint32_t last_pairs[LIMIT_LABELS_DECODE]; /* numbers */
	uint32_t n_last_pairs;
	struct buf wire;			 /* of a section's series, */
	uint32_t field[LIMIT_LABELS_DECODE + 1]; /* and where the last one's labels begin in it: what stays the same is copied from there */
	bool fields;				 /* there is a last one */
	uint64_t *windowed;			 /* a bit for each series: it is in a window */
	uint32_t cap_windowed;
	/* the window at hand; NULL and in_window: it is a block already */
	bool in_window;
	struct window *w;
	struct wal_window ww;
	uint64_t n_states, chunk_bytes, chunk_room;
	uint64_t windows, samples;
	uint64_t sections;
	bool ended;
};

static errc bad(struct reader *r, const char *what, struct err *err)
{
	return err_set(err, ERR_CORRUPT, "%s: section %" PRIu32 " before byte %" PRIu64 ": %s", r->path, r->number, r->off, what);
}

#define MUST(cond, what)                                                                                                                             \
	do {                                                                                                                                         \
		if (UNLIKELY(!(cond))) {                                                                                                             \
			rc = bad(r, what, err);                                                                                                      \
			goto fail;                                                                                                                   \
		}                                                                                                                                    \
	} while (0)

/* ---- sections ---- */

static errc fill(struct reader *r, uint64_t off, size_t n, const uint8_t **p, struct err *err)
{
	errc rc = OK;
	MUST(off <= r->size && n <= r->size - off, "the file ends");
	if (off < r->buf_off || off + n > r->buf_off + r->buf_n) {
		if (n > r->cap) {
			size_t cap = n > READ_BYTES ? n : (size_t)READ_BYTES;
			free(r->buf);
			r->buf_n = r->cap = 0;
			r->buf = malloc(cap);
			CHECK(r->buf, ERR_NOMEM, "no memory for a section of the snapshot");
			r->cap = cap;
		}
		size_t keep = 0;
		if (off >= r->buf_off && off < r->buf_off + r->buf_n) {
			keep = (size_t)(r->buf_off + r->buf_n - off);
			memmove(r->buf, r->buf + (off - r->buf_off), keep);
		}
		size_t want = r->size - off < r->cap ? (size_t)(r->size - off) : r->cap, got;
		r->buf_n = 0;
		TRY(io_pread(r->fd, r->buf + keep, want - keep, off + keep, &got, err));
		r->buf_off = off;
		r->buf_n = keep + got;
		MUST(n <= r->buf_n, "the file ends");
	}
	*p = r->buf + (off - r->buf_off);
fail:
	return rc;
}

static errc section_next(struct reader *r, uint32_t *kind, struct rd *body, struct err *err)
{
	errc rc = OK;
	const uint8_t *p;
	TRY(fill(r, r->off, SNAPSHOT_SECTION_HEADER, &p, err));
	uint32_t n = get_le32(p + 4);
	*kind = get_le32(p);
	MUST(n <= SNAPSHOT_SECTION_MAX && get_le32(p + 8) == r->number && get_le32(p + 12) == r->id, "no section");
	TRY(fill(r, r->off, (size_t)SNAPSHOT_SECTION_HEADER + n, &p, err));
	MUST(get_le32(p + 16) == crc32c(crc32c(0, p, 16), p + SNAPSHOT_SECTION_HEADER, n), "the checksum does not match");
	*body = rd_of(p + SNAPSHOT_SECTION_HEADER, n);
	r->off += (uint64_t)SNAPSHOT_SECTION_HEADER + n;
	r->number++;
fail:
	return rc;
}

/* Room for number i of an array; `most` entries at once when it is made. */
static errc room(void *pp, uint32_t *cap, uint32_t i, uint64_t most, size_t size, struct err *err)
{
	void *old;
	if (LIKELY(i < *cap))
		return OK;
	memcpy(&old, pp, sizeof old);
	uint64_t n = *cap ? (uint64_t)*cap * 2 : most > 64 ? most : 64;
	void *v = n <= UINT32_MAX / 2 ? head_table_alloc((size_t)n, size) : NULL;
	if (!v)
		return err_set(err, ERR_NOMEM, "no memory for the numbers of a snapshot");
	if (old)
		memcpy(v, old, *cap * size);
	head_table_free(old, *cap, size);
	memcpy(pp, &v, sizeof v);
	*cap = (uint32_t)n;
	return OK;
}

/* ---- mark, cuts, tenants, pairs ---- */

static errc mark_get(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	struct wal_mark *m = &r->mark;
	uint64_t *const to[] = {&m->seq, &m->first_sample, &m->pos, &m->segment, &m->offset, &m->checkpoint, &r->written_ms};
	for (size_t i = 0; i < sizeof to / sizeof *to; i++)
		*to[i] = rd_le64(b);
	uint64_t n = rd_le64(b), n_pairs = rd_le64(b);
	m->log = rd_le32(b);
	m->crc = rd_le32(b);
	MUST(b->ok && b->p == b->end && m->seq > 0, "mark");
	TRY(wal_replay_behind(r->h->cfg.wal, m, err));
	/* A series takes 32 bytes and more, a pair 4. */
	n = n < r->size / 32 ? n : r->size / 32;
	head_pairs_reserve(&r->h->symbols, n_pairs < r->size / 4 ? n_pairs : r->size / 4);
	TRY(snapshot_pairs_open(r->h, r->path, r->fd, r->size, r->id, &r->pairs, err));
	TRY(room(&r->series, &r->cap_series, 0, n + n / 16, sizeof(struct series *), err));
	TRY(head_replay_reserve(r->h, n, err));
	for (uint32_t i = 0; n > 0 && i < r->h->n_shards; i++) {
		struct shard *sh = &r->h->shards[i];
		pthread_mutex_lock(&sh->mu);
		head_table_reserve_locked(r->h, sh, n / r->h->n_shards + n / 64);
		pthread_mutex_unlock(&sh->mu);
	}
fail:
	return rc;
}

static errc cuts_get(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	while (b->p < b->end) {
		struct cut_record c = {0};
		struct span window = rd_bytes(b, 16), block = rd_bytes(b, 16);
		c.cut.upto_seq = rd_le64(b);
		c.copies = rd_u8(b);
		c.pos_max = rd_le64(b);
		c.last_segment = rd_le64(b);
		MUST(b->ok && c.copies <= 2, "cuts");
		memcpy(c.cut.window.b, window.p, 16);
		memcpy(c.cut.block.b, block.p, 16);
		TRY(head_replay_cut(r->h, &c, err));
	}
fail:
	return rc;
}

static errc tenants_get(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	while (b->p < b->end) {
		struct span name = rd_str(b);
		MUST(b->ok && tenant_valid(name), "tenants");
		TRY(room(&r->tenants, &r->cap_tenants, r->n_tenants, 16, sizeof(struct tenant *), err));
		TRY(head_tenant_get(r->h, name, &r->tenants[r->n_tenants], err));
		r->n_tenants++;
	}
fail:
	return rc;
}

/* ---- series ---- */

struct new_series {
	uint64_t ref, keys[2], def_pos;
	struct tenant *tenant;
	struct hash128 x;
	uint32_t n_pairs, pairs_at; /* in the group's numbers and ids */
	size_t wire_at;
	uint8_t bits;
	struct series *s;
};

static inline uint8_t *field_put(uint8_t *p, uint8_t tag, struct span s)
{
	*p++ = tag;
	p = put_uvarint(p, s.n);
	memcpy(p, s.p, s.n);
	return p + s.n;
}

/* As labels_to_wire. same: bits of the places that the series before has the same pair in; most have, next to each other. */
static bool wire_put(struct reader *r, const uint32_t *ids, uint32_t n, const uint8_t *same)
{
	struct buf *b = &r->wire;
	const struct symbols *sy = &r->h->symbols;
	uint32_t field[LIMIT_LABELS_DECODE + 1];
	for (uint32_t i = 0; i < n;) {
		uint32_t k = i;
		while (r->fields && k < n && same[k])
			k++;
		if (k > i) {
			uint32_t from = r->field[i], bytes = r->field[k] - from;
			if (!buf_reserve(b, bytes))
				return false;
			memcpy(b->p + b->n, b->p + from, bytes);
			for (; i < k; i++)
				field[i] = (uint32_t)b->n + r->field[i] - from;
			b->n += bytes;
			continue;
		}
		struct label l = head_pair_label(head_pair(sy, ids[i]));
		size_t bytes = 2 + uvarint_size(l.name.n) + l.name.n + uvarint_size(l.value.n) + l.value.n;
		if (!buf_reserve(b, bytes + 1 + UVARINT_MAX_BYTES))
			return false;
		uint8_t *q = b->p + b->n;
		*q++ = 0x0a;
		q = put_uvarint(q, bytes);
		q = field_put(q, 0x0a, l.name);
		q = field_put(q, 0x12, l.value);
		field[i++] = (uint32_t)b->n;
		b->n = (size_t)(q - b->p);
	}
	field[n] = (uint32_t)b->n;
	memcpy(r->field, field, (n + 1) * sizeof *field);
	r->fields = true;
	return true;
}

static errc one_get(struct reader *r, struct rd *b, struct new_series *x, uint32_t *numbers, uint32_t *ids, struct err *err)
{
	errc rc = OK;
	uint8_t same[LIMIT_LABELS_DECODE];
	const struct symbols *sy = &r->h->symbols;
	uint32_t n_known = snapshot_pairs_n(r->pairs);
	x->ref = r->last_ref += (uint64_t)rd_varint(b);
	uint64_t tenant = rd_uvarint(b);
	x->bits = rd_u8(b);
	x->def_pos = r->mark.pos + (uint64_t)rd_varint(b);
	x->keys[0] = rd_le64(b);
	x->keys[1] = rd_le64(b);
	uint64_t n = rd_uvarint(b);
	MUST(b->ok && tenant < r->n_tenants && n > 0 && n <= LIMIT_LABELS_DECODE && x->bits < 32 && (x->bits >> 1 & 7) <= KEY_ONCE, "series");
	x->tenant = r->tenants[tenant];
	x->n_pairs = (uint32_t)n;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t number = rd_uvarint(b);
		MUST(number == 0 ? i < r->n_last_pairs : number <= n_known, "a series with an unknown pair");
		same[i] = number == 0;
		numbers[i] = number == 0 ? r->last_pairs[i] : (uint32_t)number - 1;
		ids[i] = snapshot_pair(r->pairs, numbers[i]);
		r->last_pairs[i] = numbers[i];
		/* Sorted by name: what finds a series by its labels, and the block, lean on it. */
		if (i > 0 && !(same[i - 1] && same[i])) {
			const struct symbol *a = head_pair(sy, ids[i - 1])->name, *z = head_pair(sy, ids[i])->name;
			MUST(span_cmp(span_of(a->s, a->n), span_of(z->s, z->n)) < 0, "labels out of order");
		}
	}
	r->n_last_pairs = x->n_pairs;
	x->wire_at = r->wire.n;
	CHECK(wire_put(r, ids, x->n_pairs, same), ERR_NOMEM, "no memory for a series");
fail:
	return rc;
}

static errc group_add(struct reader *r, struct new_series *v, uint32_t n, const uint32_t *numbers, const uint32_t *ids, struct err *err)
{
	errc rc = OK;
	struct head *h = r->h;
	for (uint32_t i = 0; i < n; i++) {
		size_t end = i + 1 < n ? v[i + 1].wire_at : r->wire.n;
		v[i].x = head_hash(h, v[i].tenant, span_of(r->wire.p + v[i].wire_at, end - v[i].wire_at));
		const struct shard *sh = &h->shards[head_shard_of(h, v[i].x)];
		if (sh->slots)
			__builtin_prefetch(&sh->slots[v[i].x.lo & sh->mask], 1);
	}
	for (uint32_t i = 0; i < n && rc == OK; i++) {
		struct new_series *x = &v[i];
		struct series *s;
		struct shard *sh = &h->shards[head_shard_of(h, x->x)];
		size_t end = i + 1 < n ? v[i + 1].wire_at : r->wire.n;
		pthread_mutex_lock(&sh->mu);
		rc = head_series_load_locked(
			h, sh, x->tenant, x->x, span_of(r->wire.p + x->wire_at, end - x->wire_at), ids + x->pairs_at, x->n_pairs, x->ref, &s, err);
		if (rc == OK && !s)
			rc = bad(r, "a series twice", err);
		if (rc == OK) {
			/* What is in the log once may have been moved by a start that copied its tail: it is counted anew. */
			static const uint8_t safe[] = {DEF_NONE, DEF_NONE, DEF_TWICE, KEY_NONE, KEY_NONE};
			s->def_state = safe[x->bits >> 1 & 7] & 7u;
			s->key_no = x->bits & 1u;
			s->key_changed = x->bits >> 4 & 1u;
			s->def_pos = x->def_pos;
			s->keys[0] = x->keys[0];
			s->keys[1] = x->keys[1];
		}
		pthread_mutex_unlock(&sh->mu);
		if (rc != OK)
			break;
		snapshot_pairs_use(r->pairs, numbers + x->pairs_at, x->n_pairs);
		rc = head_replay_series(h, x->ref, s, err);
		if (rc != OK) { /* nobody finds it by its ref: it goes at once */
			snapshot_pairs_settle(r->pairs);
			pthread_mutex_lock(&sh->mu);
			head_series_remove_locked(h, sh, x->tenant, s);
			pthread_mutex_unlock(&sh->mu);
			break;
		}
		r->series[r->n_series++] = s;
	}
	return rc;
}

static errc series_get(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	uint32_t ids[LIMIT_LABELS_DECODE + GROUP * 64], numbers[LIMIT_LABELS_DECODE + GROUP * 64];
	buf_clear(&r->wire);
	r->fields = false;
	while (b->p < b->end) {
		struct new_series v[GROUP];
		uint32_t n = 0, at = 0;
		while (n < GROUP && b->p < b->end && at <= GROUP * 64) {
			v[n].pairs_at = at;
			TRY(one_get(r, b, &v[n], numbers + at, ids + at, err));
			at += v[n++].n_pairs;
		}
		MUST(r->n_series < CHECKPOINT_MARK - GROUP, "too many series");
		TRY(room(&r->series, &r->cap_series, r->n_series + n, 0, sizeof(struct series *), err));
		TRY(group_add(r, v, n, numbers, ids, err));
	}
fail:
	return rc;
}

/* ---- windows ---- */

static errc window_get(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	uint64_t tenant = rd_uvarint(b);
	struct span ulid = rd_bytes(b, 16);
	r->ww = (struct wal_window){.start_ms = rd_varint(b), .range_ms = 0};
	uint64_t range = rd_uvarint(b), first = rd_uvarint(b);
	uint32_t file = rd_le32(b);
	MUST(b->ok && b->p == b->end && !r->in_window && tenant < r->n_tenants && range <= INT64_MAX, "window");
	memcpy(r->ww.window.b, ulid.p, 16);
	r->ww.range_ms = (int64_t)range;
	r->ww.tenant = head_tenant_name(r->tenants[tenant]);
	/* What came for it behind the mark stands in the mark's segment or later. */
	first = first < r->mark.segment ? first : r->mark.segment;
	TRY(head_replay_window(r->h, r->ww.tenant, &r->ww, first, r->mark.seq, &r->w, err));
	r->in_window = true;
	r->n_states = r->chunk_bytes = 0;
	if (r->w)
		TRY(head_chunkfile_adopt(&r->w->file, file, &r->chunk_room, err));
fail:
	return rc;
}

/* A window that is a block by now is read over. */
static errc leaves_get(struct reader *r, struct rd *b, struct wpart *part, struct wseries *ws, uint32_t *end, uint64_t *n_samples, struct err *err)
{
	errc rc = OK;
	uint64_t n = rd_uvarint(b);
	MUST(b->ok && n > 0 && n <= rd_left(b) / 16, "leaves");
	size_t bytes = head_pool_round(sizeof(struct leaves) + n * sizeof(struct leaf));
	struct leaves *lv = NULL;
	if (part) {
		lv = head_pool_alloc(&part->pool, bytes);
		CHECK(lv, ERR_NOMEM, "no memory for chunks of a series");
		*lv = (struct leaves){.cap = (uint32_t)((bytes - sizeof *lv) / sizeof(struct leaf))};
		ws->leaves = lv;
	}
	int64_t before = -1;
	for (uint64_t i = 0; i < n; i++) {
		uint32_t mint = rd_le32(b), maxt = rd_le32(b);
		struct span last = rd_bytes(b, 8);
		MUST(b->ok, "leaf");
		const uint8_t *word = (const uint8_t *)last.p;
		uint64_t bits = get_le64(word);
		struct leaf l = {.mint = mint, .maxt = maxt};
		l.kind = bits & 1;
		l.touched = bits >> 1 & 1;
		l.n = bits >> 2 & 255;
		MUST(b->ok && (int64_t)mint > before && mint <= maxt && maxt < r->ww.range_ms && l.n > 0 && l.n <= SAMPLES_MAX, "leaf");
		before = maxt;
		if (l.kind == LEAF_FILE) {
			l.len = bits >> 10 & 16383;
			uint64_t off = (uint64_t)get_le32(word + 4) << 8 | word[3];
			l.off = off & ((UINT64_C(1) << 40) - 1);
			uint64_t file_end = off + l.len + CHUNKFILE_OVERHEAD;
			MUST(l.len + (size_t)CHUNKFILE_OVERHEAD <= HEAD_CHUNK_MAX_BYTES && (!part || file_end <= r->chunk_room), "leaf");
			r->chunk_bytes = file_end > r->chunk_bytes ? file_end : r->chunk_bytes;
		} else {
			struct span raw = rd_bytes(b, (uint64_t)l.n * 16);
			int64_t t = INT64_MIN;
			MUST(b->ok && bits >> 10 == 0, "leaf");
			size_t raw_bytes = head_pool_round((size_t)l.n * sizeof(struct chunk_sample));
			struct chunk_sample *v = part ? head_pool_alloc(&part->pool, raw_bytes) : NULL;
			CHECK(v || !part, ERR_NOMEM, "no memory for late samples");
			for (uint32_t k = 0; k < l.n; k++) {
				struct chunk_sample s = {(int64_t)get_le64(raw.p + k * 16), get_le64(raw.p + k * 16 + 8)};
				MUST(s.t > t && (k > 0 || s.t == r->ww.start_ms + mint) && (k + 1 < l.n || s.t == r->ww.start_ms + maxt),
					"raw samples");
				t = s.t;
				if (v)
					v[k] = s;
			}
			if (v) {
				l.raw = (uint64_t)(uintptr_t)v / 8 & ((UINT64_C(1) << 45) - 1);
				l.room = raw_bytes / sizeof *v & 511;
				ASSERT(leaf_raw(&l) == v);
				lv->n_raw++;
			}
		}
		*n_samples += l.n;
		if (lv) {
			lv->touched |= l.touched;
			lv->v[lv->n++] = l;
		}
	}
	*end = (uint32_t)before + 1;
fail:
	return rc;
}

static errc open_get(struct reader *r, struct rd *b, struct wpart *part, struct wseries *ws, uint32_t begin, struct err *err)
{
	errc rc = OK;
	struct span fixed = rd_bytes(b, SNAPSHOT_OPEN_BYTES);
	MUST(b->ok, "open chunk");
	const uint8_t *q = (const uint8_t *)fixed.p;
	struct wseries x = *ws;
	x.v = get_le64(q);
	x.t = get_le32(q + 8);
	x.dt = get_le32(q + 12);
	x.start = get_le32(q + 16);
	x.next_at = get_le32(q + 20);
	x.n = q[24];
	x.n_bytes = (uint16_t)(q[25] | q[26] << 8);
	x.leading = q[27];
	x.trailing = q[28];
	x.bits_left = q[29];
	bool right = x.n > 0 && x.n <= SAMPLES_MAX && x.n_bytes > XOR_HEADER_BYTES && x.n_bytes <= OPEN_BYTES_MAX && x.start >= begin &&
		     x.start <= x.t && x.t < r->ww.range_ms && x.next_at <= r->ww.range_ms && x.bits_left < 8 &&
		     (x.leading == 0xff || (x.leading < 32 && x.leading + x.trailing < 64));
	MUST(right, "open chunk");
	uint32_t left = x.n_bytes - (uint32_t)XOR_HEADER_BYTES, spilled = chain_spilled(x.chain);
	MUST(spilled < left, "open chunk");
	left -= spilled;
	struct span bytes = rd_bytes(b, left);
	MUST(b->ok, "open chunk");
	if (!part)
		return OK;
	const uint8_t *p = (const uint8_t *)bytes.p;
	x.first = x.last = 0;
	while (left > 0) {
		uint32_t n = left < PIECE_PAYLOAD ? left : (uint32_t)PIECE_PAYLOAD, i = head_piece_new(part);
		if (!i) {
			rc = err_set(err, ERR_NOMEM, "no memory for an open chunk");
			break;
		}
		memcpy(part_piece(part, i)->bytes, p, n);
		if (x.last)
			part_piece(part, x.last)->next = i;
		else
			x.first = i;
		x.last = i;
		x.fill = (uint8_t)n;
		p += n;
		left -= n;
	}
	if (rc == OK)
		*ws = x;
fail:
	return rc;
}

static errc chain_get(struct reader *r, struct rd *b, struct wpart *part, struct wseries *ws, uint64_t *n_samples, struct err *err)
{
	errc rc = OK;
	uint64_t chain = rd_le64(b);
	ws->t = rd_le32(b);
	uint64_t file_end = chain_off(chain) + CHUNKFILE_OVERHEAD;
	MUST(b->ok && chain & 1 && ws->t < r->ww.range_ms && (chain_samples(chain) > 0 || chain_spilled(chain) > 0) &&
			(!part || file_end <= r->chunk_room),
		"chain");
	r->chunk_bytes = file_end > r->chunk_bytes ? file_end : r->chunk_bytes;
	ws->chain = chain;
	*n_samples += chain_samples(chain);
fail:
	return rc;
}

/* known: as in struct wseries. */
static errc state_get(struct reader *r, struct rd *b, struct series *s, uint16_t known, int64_t min_t, struct err *err)
{
	errc rc = OK;
	struct wpart *part = NULL;
	struct wseries none = {0}, *ws = &none;
	struct snapshot_hists hists = {0};
	uint32_t begin = 0;
	uint64_t n = 0;
	uint8_t flags = rd_u8(b);
	const unsigned chain = SNAPSHOT_HAS_CHAIN, no_chain = SNAPSHOT_HAS_LEAVES | SNAPSHOT_HAS_HISTOGRAMS;
	MUST(b->ok && flags != 0 && (flags & ~(no_chain | chain | SNAPSHOT_HAS_OPEN)) == 0 && !(flags & chain && flags & no_chain), "state");
	if (r->w) {
		uint32_t before = r->w->parts[s->shard].p ? r->w->parts[s->shard].p->n : 0;
		ws = head_window_series_locked(r->w, &r->h->shards[s->shard], s->shard, s, err);
		CHECK(ws, ERR_NOMEM, "no memory for a series in a window");
		part = r->w->parts[s->shard].p;
		MUST(part->n == before + 1, "a series twice in a window");
		s->ws = ws;
		s->ws_window = r->w->serial;
		ws->known = known;
	}
	if (flags & SNAPSHOT_HAS_LEAVES)
		TRY(leaves_get(r, b, part, ws, &begin, &n, err));
	if (flags & SNAPSHOT_HAS_CHAIN)
		TRY(chain_get(r, b, part, ws, &n, err));
	if (flags & SNAPSHOT_HAS_OPEN)
		TRY(open_get(r, b, part, ws, begin, err));
	MUST(flags & SNAPSHOT_HAS_OPEN || chain_spilled(ws->chain) == 0, "a chunk that is begun and not open");
	if (flags & SNAPSHOT_HAS_HISTOGRAMS) {
		const char *why;
		TRY(head_snapshot_hist_get(b, r->w, part, ws, r->ww.range_ms, r->chunk_room, &hists, &why, err));
		MUST(!why, why);
		r->chunk_bytes = hists.chunk_bytes > r->chunk_bytes ? hists.chunk_bytes : r->chunk_bytes;
	}
	if (!part)
		return OK;
	n += ws->n + hists.n;
	uint32_t first = ws_leaves(ws) ? ws->leaves->v[0].mint : ws->n ? ws->start : hists.first;
	first = hists.n && hists.first < first ? hists.first : first;
	int64_t mint = r->ww.start_ms + first, maxt = head_ws_newest(r->w, ws);
	mint = ws_chained(ws) ? min_t : mint; /* a chain's first time is in the file */
	part->n_samples += n;
	part->min_t = mint < part->min_t ? mint : part->min_t;
	part->max_t = maxt > part->max_t ? maxt : part->max_t;
	r->samples += n;
	atomic_fetch_add_explicit(&r->w->n_samples, n, memory_order_relaxed);
fail:
	return rc;
}

static errc states_get(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	struct head *h = r->h;
	uint64_t covers = rd_uvarint(b), number = 0, before = r->samples;
	uint64_t first = rd_uvarint(b);
	uint16_t known = covers < UINT16_MAX ? (uint16_t)(covers + 1) : UINT16_MAX;
	bool locked = false;
	MUST(b->ok && r->in_window && first < (uint64_t)r->ww.range_ms, "states of no window");
	if (r->n_series > 0)
		TRY(room(&r->windowed, &r->cap_windowed, (r->n_series - 1) / 64, r->n_series / 64 + 1, sizeof *r->windowed, err));
	for (uint32_t i = 0; i < h->n_shards; i++)
		pthread_mutex_lock(&h->shards[i].mu);
	locked = true;
	while (b->p < b->end) {
		number += (uint64_t)rd_varint(b);
		MUST(b->ok && number < r->n_series, "the state of no series");
		if (number + STATE_AHEAD < r->n_series)
			__builtin_prefetch(r->series[number + STATE_AHEAD], 1);
		TRY(state_get(r, b, r->series[number], known, r->ww.start_ms + (int64_t)first, err));
		if (r->w)
			r->windowed[number / 64] |= UINT64_C(1) << number % 64;
		r->n_states++;
		number++;
	}
fail:
	if (locked)
		for (uint32_t i = 0; i < h->n_shards; i++)
			pthread_mutex_unlock(&h->shards[i].mu);
	atomic_fetch_add_explicit(&h->n_samples, r->samples - before, memory_order_relaxed);
	return rc;
}

static errc window_end(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	uint64_t n = rd_uvarint(b), bytes = rd_uvarint(b);
	MUST(b->ok && b->p == b->end && r->in_window && n == r->n_states && bytes >= r->chunk_bytes && bytes < UINT64_C(1) << 40, "a window's end");
	if (r->w)
		TRY(head_chunkfile_cut(&r->w->file, bytes, err));
	r->windows++;
	r->in_window = false;
	r->w = NULL;
fail:
	return rc;
}

/* ---- exemplars and metadata ---- */

static errc records_get(struct reader *r, struct rd *b, struct err *err)
{
	errc rc = OK;
	struct wal_record rec;
	bool ok;
	const char *why = NULL;
	while (wal_record_next(b, &rec, &ok)) {
		if (rec.kind == WAL_EXEMPLARS)
			TRY(head_exemplars_replay(r->h, rec.body, &why, err));
		else if (rec.kind == WAL_METADATA)
			TRY(head_metadata_replay(r->h, rec.body, &why, err));
		MUST(!why, why);
	}
	MUST(ok, "records");
fail:
	return rc;
}

/* ---- the whole ---- */

static errc section_get(struct reader *r, uint32_t kind, struct rd *b, struct err *err)
{
	errc rc = OK;
	MUST((r->sections++ == 0) == (kind == SNAPSHOT_MARK), "the mark is not the first");
	switch (kind) {
	case SNAPSHOT_MARK:
		return mark_get(r, b, err);
	case SNAPSHOT_CUTS:
		return cuts_get(r, b, err);
	case SNAPSHOT_TENANTS:
		return tenants_get(r, b, err);
	case SNAPSHOT_PAIRS:
		return snapshot_pairs_section(r->pairs, r->number - 1, b, err);
	case SNAPSHOT_SERIES:
		return series_get(r, b, err);
	case SNAPSHOT_WINDOW:
		return window_get(r, b, err);
	case SNAPSHOT_STATES:
		return states_get(r, b, err);
	case SNAPSHOT_WINDOW_END:
		return window_end(r, b, err);
	case SNAPSHOT_RECORDS:
		return records_get(r, b, err);
	case SNAPSHOT_END: {
		uint64_t synced = rd_le64(b), n_series = rd_le64(b), windows = rd_le64(b);
		MUST(b->ok && b->p == b->end && !r->in_window && n_series == r->n_series && windows == r->windows && r->off == r->size &&
				synced >= r->mark.seq && synced <= INT64_MAX,
			"the end");
		for (uint32_t i = 0; i < r->n_series; i++)
			if (i / 64 >= r->cap_windowed || !(r->windowed[i / 64] >> i % 64 & 1))
				head_replay_idle(r->h, r->series[i]);
		head_replay_loaded(r->h, r->mark.seq, synced);
		r->ended = true;
		return OK;
	}
	default:
		MUST(kind >= SNAPSHOT_OPTIONAL, "a section that only a newer varve knows");
	}
fail:
	return rc;
}

static errc load(struct reader *r, struct err *err)
{
	errc rc = OK;
	const uint8_t *p;
	TRY(io_size(r->fd, &r->size, err));
	TRY(fill(r, 0, SNAPSHOT_HEADER, &p, err));
	MUST(memcmp(p, "varvesnp", 8) == 0, "no snapshot");
	CHECK(get_le32(p + 8) == SNAPSHOT_VERSION, ERR_UNSUPPORTED, "%s has version %u, this varve reads %d", r->path, get_le32(p + 8),
		SNAPSHOT_VERSION);
	r->id = get_le32(p + 12);
	r->off = SNAPSHOT_HEADER;
	while (!r->ended) {
		uint32_t kind;
		struct rd body;
		TRY(section_next(r, &kind, &body, err));
		TRY(section_get(r, kind, &body, err));
	}
fail:
	return rc;
}

static void reader_free(struct reader *r)
{
	snapshot_pairs_free(r->pairs);
	head_table_free(r->tenants, r->cap_tenants, sizeof(struct tenant *));
	head_table_free(r->series, r->cap_series, sizeof(struct series *));
	head_table_free(r->windowed, r->cap_windowed, sizeof *r->windowed);
	buf_free(&r->wire);
	free(r->buf);
	io_close(r->fd);
	free(r);
}

/* Chunk files that no window goes on in; without a snapshot that is all of them. A snapshot that is of no use goes first, and for good. */
static errc chunk_dir_clean(struct head *h, bool loaded, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	char **names, path[SNAPSHOT_PATH_BYTES];
	size_t n;
	bool snapshot = false;
	arena_init(&arena, 64 * MIB);
	TRY(io_listdir(h->cfg.chunk_dir, &arena, &names, &n, err));
	for (size_t i = 0; i < n && !loaded; i++)
		snapshot |= strcmp(names[i], "snapshot") == 0;
	if (snapshot) {
		head_snapshot_path(h, false, path);
		TRY(io_unlink(path, err));
		TRY(io_fsync_dir(h->cfg.chunk_dir, err));
	}
	for (size_t i = 0; i < n; i++) {
		size_t len = strlen(names[i]);
		bool chunks = len >= ULID_TEXT_BYTES + 7 && strcmp(names[i] + len - 7, ".chunks") == 0;
		struct ulid u;
		bool cut = len > 4 && strcmp(names[i] + len - 4, ".cut") == 0; /* a cut's spool */
		if (!chunks && !cut && strcmp(names[i], "snapshot.tmp") != 0)
			continue;
		if (chunks && loaded && ulid_parse(span_of(names[i], ULID_TEXT_BYTES), &u) && head_replay_has_file(h, u, names[i]))
			continue;
		snprintf(path, sizeof path, "%s/%s", h->cfg.chunk_dir, names[i]);
		TRY(io_unlink(path, err));
	}
fail:
	arena_free(&arena);
	return rc;
}

errc head_load(struct head *h, struct err *err)
{
	errc rc = OK;
	struct err why = {0};
	bool loaded = false;
	int64_t begin = io_mono_ns();
	struct reader *r = calloc(1, sizeof *r);
	CHECK(r, ERR_NOMEM, "no memory for a snapshot");
	ASSERT(!h->loaded && !h->cutter_runs);
	h->loaded = true;
	r->h = h;
	r->fd = -1;
	buf_init(&r->wire, UINT32_MAX);
	head_snapshot_path(h, false, r->path);
	rc = io_open(r->path, IO_READ, &r->fd, &why);
	if (rc == OK)
		rc = load(r, &why);
	if (rc == ERR_NOMEM) {
		if (err)
			*err = why;
		goto fail;
	}
	loaded = rc == OK;
	metric_set(h->m.snapshot_loaded, loaded);
	if (loaded) {
		log_info("snapshot of the head loaded", LU64("series", r->n_series), LU64("windows", r->windows), LU64("samples", r->samples),
			LU64("bytes", r->size), LU64("frame", r->mark.seq), LI64("ms", (io_mono_ns() - begin) / 1000000));
		h->snap.pos = r->mark.pos;
		atomic_store(&h->snap.bytes, r->size);
		atomic_store(&h->snap.written_ms, (int64_t)r->written_ms);
	} else {
		if (rc != ERR_NOTFOUND || r->fd >= 0)
			log_warn("the snapshot of the head is of no use: the whole log is read", LERR(&why));
		snapshot_pairs_settle(r->pairs);
		head_replay_clear(h);
		TRY(wal_replay_behind(h->cfg.wal, NULL, err));
	}
	TRY(chunk_dir_clean(h, loaded, err));
fail:
	if (r)
		reader_free(r);
	return rc;
}
