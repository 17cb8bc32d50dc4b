/* head/head_exemplars.c - exemplars of all tenants: taken from requests, read back from the log, put into checkpoints, given to questions.
 *
 *     request ─▶ series' labels canonical? known? ─▶ own labels canonical, short enough? ─▶ ring (head_exemplar_ring.c) ─▶ log record
 *
 * Exemplars are few beside samples (one a scrape of a histogram's bucket), so this path may decode labels: about a microsecond each.
 *
 * The limit, in number and in bytes (an eighth of the head's memory), is one for the process, shared fairly: at the limit a tenant above max / tenants
 * replaces its own oldest, one below it grows and the largest tenant shrinks. Eviction is not logged: replay meets the same limit in the order of the log.
 *
 * A question looks at each series of the tenant once (a hundred thousand at most where there are a hundred thousand exemplars) and walks the chains of
 * those that match, in steps: writers never wait for more than READ_STEP exemplars.
 */
#include <inttypes.h>
#include "base/tenant.h"
#include "head/head_annotations_int.h"

enum { READ_STEP_SERIES = 128, READ_STEP = 2048, CHECKPOINT_STEP = 512 };

const char *exemplar_result_text(enum exemplar_result r)
{
	static const char *const texts[EXEMPLAR_RESULTS] = {
		[EXEMPLAR_STORED] = "stored",
		[EXEMPLAR_DUPLICATE] = "duplicate",
		[EXEMPLAR_NO_SERIES] = "no-series",
		[EXEMPLAR_OUT_OF_ORDER] = "out-of-order",
		[EXEMPLAR_TOO_LONG] = "too-long",
		[EXEMPLAR_INVALID] = "invalid",
		[EXEMPLAR_TOO_FAR_AHEAD] = "too-far-ahead",
		[EXEMPLAR_OFF] = "off",
	};
	return texts[r];
}

/* ---- one tenant's ring, and the limit of all ---- */

static struct exemplar_ring *ring_of(struct tenant *tn)
{
	return tn ? atomic_load_explicit(&tn->exemplars, memory_order_acquire) : NULL;
}

static errc ring_make(struct tenant *tn, struct exemplar_ring **out, struct err *err)
{
	errc rc = OK;
	*out = ring_of(tn);
	if (*out)
		return OK;
	pthread_mutex_lock(&tn->mu);
	*out = ring_of(tn);
	if (!*out) {
		rc = exemplar_ring_new(tn->head, out, err);
		if (rc == OK)
			atomic_store_explicit(&tn->exemplars, *out, memory_order_release);
	}
	pthread_mutex_unlock(&tn->mu);
	return rc;
}

static uint32_t ring_count(const struct exemplar_ring *r)
{
	return atomic_load_explicit(&r->n, memory_order_relaxed);
}

/* How many there may be. Where memory is the limit, as many as there are. */
static uint64_t room_of(const struct head *h, uint64_t n)
{
	bool full = atomic_load_explicit(&h->exemplar_bytes, memory_order_relaxed) >= annotations_bytes_max(h);
	return full && n < h->cfg.max_exemplars ? n : h->cfg.max_exemplars;
}

static uint64_t share(const struct head *h)
{
	uint32_t n = atomic_load_explicit(&h->n_exemplar_rings, memory_order_relaxed);
	uint64_t each = room_of(h, atomic_load_explicit(&h->n_exemplars, memory_order_relaxed)) / (n > 0 ? n : 1);
	return each > 0 ? each : 1;
}

/* What a ring had when it was locked. */
struct had {
	uint32_t n;
	size_t bytes;
};

static struct had had_locked(const struct exemplar_ring *r)
{
	return (struct had){ring_count(r), exemplar_ring_bytes(r)};
}

static void account_locked(const struct exemplar_ring *r, struct had before)
{
	struct head *h = r->head;
	struct had now = had_locked(r);
	atomic_fetch_add_explicit(&h->n_exemplars, (uint64_t)now.n - before.n, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->exemplar_bytes, (uint64_t)now.bytes - before.bytes, memory_order_relaxed);
	if (before.n == 0 && now.n > 0)
		atomic_fetch_add_explicit(&h->n_exemplar_rings, 1, memory_order_relaxed);
	if (before.n > 0 && now.n == 0)
		atomic_fetch_sub_explicit(&h->n_exemplar_rings, 1, memory_order_relaxed);
}

static uint64_t too_many(const struct head *h)
{
	uint64_t n = atomic_load_explicit(&h->n_exemplars, memory_order_relaxed), max = h->cfg.max_exemplars;
	uint64_t bytes = atomic_load_explicit(&h->exemplar_bytes, memory_order_relaxed), max_bytes = annotations_bytes_max(h);
	uint64_t by_number = n > max ? n - max : 0, by_bytes = bytes > max_bytes ? (bytes - max_bytes) / 256 + 1 : 0;
	return by_number > by_bytes ? by_number : by_bytes;
}

/* Whether one more exemplar in r takes the place of r's own oldest. */
static bool full_locked(const struct exemplar_ring *r)
{
	const struct head *h = r->head;
	uint64_t n = atomic_load_explicit(&h->n_exemplars, memory_order_relaxed);
	return ring_count(r) > 0 && n >= room_of(h, n) && ring_count(r) >= share(h);
}

/* Tenants below their share have grown: the largest ones give it. A look over all tenants a request, not an exemplar. */
static void reclaim(struct head *h)
{
	if (too_many(h) == 0)
		return;
	pthread_mutex_lock(&h->reclaim_mu);
	for (uint64_t k; (k = too_many(h)) > 0;) {
		struct exemplar_ring *largest = NULL;
		pthread_rwlock_rdlock(&h->tenants_mu);
		for (uint32_t i = 0; i < h->n_tenants; i++) {
			struct exemplar_ring *r = ring_of(h->tenants[i]);
			if (r && ring_count(r) > 0 && (!largest || ring_count(r) > ring_count(largest)))
				largest = r;
		}
		pthread_rwlock_unlock(&h->tenants_mu);
		if (!largest)
			break; /* all are empty: others took them meanwhile */
		pthread_mutex_lock(&largest->mu);
		struct had before = had_locked(largest);
		uint64_t above = before.n > share(h) ? before.n - share(h) : 1;
		exemplar_ring_drop(largest, (uint32_t)(above < k ? above : k));
		exemplar_ring_shrink(largest);
		account_locked(largest, before);
		pthread_mutex_unlock(&largest->mu);
	}
	pthread_mutex_unlock(&h->reclaim_mu);
}

/* ---- labels as they come ---- */

/* What one series, and one exemplar, are decoded into. */
struct decoded {
	struct arena arena;
	struct buf buf;
	struct label series[LIMIT_LABELS_DECODE], own[LIMIT_LABELS_DECODE];
	struct labels l;
	struct span wire;
};

/* *valid false: no such series can exist. */
static errc series_canonical(struct head *h, struct decoded *d, struct span wire, bool *valid, struct err *err)
{
	uint32_t which;
	struct labels l;
	*valid = true;
	d->l = (struct labels){d->series, 0};
	d->wire = wire;
	if (wire.n <= HEAD_SERIES_WIRE_BYTES && labels_from_canonical(wire, d->series, LIMIT_LABELS_DECODE, &d->l.n))
		return OK;
	errc rc = labels_from_wire(wire, LIMIT_LABELS_DECODE, &d->arena, &l, err);
	if (rc == ERR_NOMEM)
		return rc;
	*valid = rc == OK && labels_normalize(&l, &h->cfg.labels, &which) == LABELS_OK && labels_wire_size(l) <= HEAD_SERIES_WIRE_BYTES;
	if (!*valid)
		return OK;
	buf_clear(&d->buf);
	labels_to_wire(l, &d->buf);
	d->l = l;
	d->wire = arena_dup(&d->arena, span_of(d->buf.p, d->buf.n));
	return d->buf.failed || !d->wire.p ? err_set(err, ERR_NOMEM, "no memory for the labels of a series") : OK;
}

static bool series_known(struct head *h, const struct tenant *tn, struct span wire)
{
	struct hash128 x = head_hash(h, tn, wire);
	struct shard *sh = &h->shards[head_shard_of(h, x)];
	pthread_mutex_lock(&sh->mu);
	bool known = head_table_find_locked(h, sh, x, tn->idx, wire) != 0;
	pthread_mutex_unlock(&sh->mu);
	return known;
}

static size_t characters(struct span s)
{
	size_t n = 0;
	for (size_t i = 0; i < s.n; i++)
		n += ((uint8_t)s.p[i] & 0xc0) != 0x80;
	return n;
}

/* Sorted, empty values gone. */
static enum exemplar_result labels_tidy(struct labels *l)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < l->n; i++) {
		if (l->v[i].name.n == 0)
			return EXEMPLAR_INVALID;
		if (l->v[i].value.n > 0)
			l->v[n++] = l->v[i];
	}
	l->n = n;
	labels_sort(*l);
	for (uint32_t i = 1; i < n; i++)
		if (span_eq(l->v[i - 1].name, l->v[i].name))
			return EXEMPLAR_INVALID;
	return EXEMPLAR_STORED;
}

static enum exemplar_result labels_judge(struct labels l)
{
	size_t n = 0;
	for (uint32_t i = 0; i < l.n; i++) {
		if (!span_is_utf8(l.v[i].name) || !span_is_utf8(l.v[i].value))
			return EXEMPLAR_INVALID;
		n += characters(l.v[i].name) + characters(l.v[i].value);
		if (n > EXEMPLAR_CHARACTERS)
			return EXEMPLAR_TOO_LONG;
	}
	return EXEMPLAR_STORED;
}

/* *out: x with its labels canonical. *verdict: STORED, or why not. */
static errc own_canonical(struct decoded *d, const struct exemplar *x, struct exemplar *out, enum exemplar_result *verdict, struct err *err)
{
	struct labels l = {d->own, 0};
	*out = *x;
	*verdict = EXEMPLAR_STORED;
	if (x->wire.n == 0) {
		out->wire = SPAN("");
		return OK;
	}
	bool canonical = x->wire.n <= EXEMPLAR_WIRE_BYTES && labels_from_canonical(x->wire, d->own, LIMIT_LABELS_DECODE, &l.n);
	if (!canonical) {
		errc rc = labels_from_wire(x->wire, LIMIT_LABELS_DECODE, &d->arena, &l, err);
		if (rc == ERR_NOMEM)
			return rc;
		*verdict = rc == ERR_LIMIT ? EXEMPLAR_TOO_LONG : rc != OK ? EXEMPLAR_INVALID : labels_tidy(&l);
	}
	if (*verdict == EXEMPLAR_STORED)
		*verdict = labels_judge(l);
	if (*verdict != EXEMPLAR_STORED || canonical)
		return OK;
	ASSERT(labels_wire_size(l) <= EXEMPLAR_WIRE_BYTES);
	buf_clear(&d->buf);
	labels_to_wire(l, &d->buf);
	out->wire = arena_dup(&d->arena, span_of(d->buf.p, d->buf.n));
	return d->buf.failed || !out->wire.p ? err_set(err, ERR_NOMEM, "no memory for an exemplar's labels") : OK;
}

/* ---- a request ---- */

size_t exemplars_bound(const struct head *h, const struct head_annotations *a)
{
	size_t n = 0, longest = 0;
	if (h->cfg.max_exemplars == 0 || a->n_series == 0)
		return 0;
	for (size_t i = 0; i < a->n_series; i++) {
		const struct head_exemplars *s = &a->series[i];
		size_t wire = s->wire.n;
		longest = wire > longest ? wire : longest;
		for (uint32_t k = 0; k < s->n; k++) {
			size_t own = s->v[k].wire.n;
			n += wal_exemplar_bound(k == 0 ? wire : 0, own < EXEMPLAR_WIRE_BYTES ? own : EXEMPLAR_WIRE_BYTES);
		}
	}
	/* Each further record tells its first series again. */
	return n + (n / HEAD_LOG_GROUP_BYTES + 1) * (wal_exemplars_bound(a->tenant.n) + longest + UVARINT_MAX_BYTES);
}

struct exemplar_writer {
	struct wal_exemplars_enc enc;
	struct buf *out;
	struct span tenant;
	bool open;
};

static void writer_put(struct exemplar_writer *w, struct span series, uint32_t *place, const struct exemplar *x)
{
	if (w->open && w->out->n - w->enc.start > HEAD_LOG_GROUP_BYTES) {
		wal_exemplars_end(&w->enc);
		w->open = false;
	}
	if (!w->open) {
		wal_exemplars_begin(&w->enc, w->out, w->tenant);
		*place = 0;
	}
	w->open = true;
	*place = wal_exemplars_put(&w->enc, series, *place, x);
}

/* The exemplars of one series that is known. */
static errc series_append(struct exemplar_ring *r, struct decoded *d, struct head_exemplars *s, uint64_t ticket, struct head_annotations *a,
	struct exemplar_writer *w, struct err *err)
{
	errc rc = OK;
	uint32_t hash = exemplar_ring_hash(r->head, d->wire), place = 0;
	for (uint32_t k = 0; k < s->n && rc == OK; k++) {
		struct exemplar x;
		enum exemplar_result verdict;
		rc = own_canonical(d, &s->v[k], &x, &verdict, err);
		if (rc != OK)
			break;
		if (verdict == EXEMPLAR_STORED && x.t > a->max_t)
			verdict = EXEMPLAR_TOO_FAR_AHEAD;
		if (verdict != EXEMPLAR_STORED) {
			a->exemplars_by[verdict]++;
			continue;
		}
		pthread_mutex_lock(&r->mu);
		uint32_t id;
		struct had before = had_locked(r);
		enum ring_verdict v = exemplar_ring_put(r, d->l, hash, &x, RING_NEWEST, full_locked(r), &id);
		account_locked(r, before);
		/* What is there was logged under a ticket: a younger one than ours may not be durable when ours is. */
		if (v == RING_STORED)
			r->ticket = ticket > r->ticket ? ticket : r->ticket;
		else
			a->leans |= r->ticket > ticket;
		pthread_mutex_unlock(&r->mu);
		switch (v) {
		case RING_STORED:
			a->exemplars_by[EXEMPLAR_STORED]++;
			s->written++;
			writer_put(w, d->wire, &place, &x);
			break;
		case RING_DUPLICATE:
			a->exemplars_by[EXEMPLAR_DUPLICATE]++;
			s->written++;
			break;
		case RING_LATE:
			a->exemplars_by[EXEMPLAR_OUT_OF_ORDER]++;
			s->refused = EXEMPLAR_OUT_OF_ORDER;
			break;
		case RING_NOMEM:
			rc = err_set(err, ERR_NOMEM, "no memory for an exemplar");
			break;
		}
	}
	return rc;
}

errc exemplars_append(struct head *h, const struct wal_ticket *ticket, struct head_annotations *a, struct buf *records, struct err *err)
{
	errc rc = OK;
	struct exemplar_ring *r = NULL;
	struct decoded *d = NULL;
	struct exemplar_writer w = {.out = records, .tenant = a->tenant};
	if (a->n_series == 0)
		return OK;
	if (h->cfg.max_exemplars == 0) {
		for (size_t i = 0; i < a->n_series; i++)
			a->exemplars_by[EXEMPLAR_OFF] += a->series[i].n;
		return OK;
	}
	struct tenant *tn = head_tenant_find(h, a->tenant);
	d = malloc(sizeof *d);
	CHECK(d, ERR_NOMEM, "no memory for exemplars");
	arena_init(&d->arena, LIMIT_INGEST_BODY_BYTES * LIMIT_INGEST_DECODED_FACTOR);
	buf_init(&d->buf, 2 * HEAD_SERIES_WIRE_BYTES);
	for (size_t i = 0; i < a->n_series; i++) {
		struct head_exemplars *s = &a->series[i];
		bool known = tn != NULL;
		arena_reset(&d->arena);
		if (known)
			TRY(series_canonical(h, d, s->wire, &known, err));
		if (!known || (!s->known && !series_known(h, tn, d->wire))) {
			a->exemplars_by[EXEMPLAR_NO_SERIES] += s->n;
			s->refused = EXEMPLAR_NO_SERIES;
			continue;
		}
		if (!r)
			TRY(ring_make(tn, &r, err));
		TRY(series_append(r, d, s, ticket->no, a, &w, err));
	}
fail:
	if (w.open)
		wal_exemplars_end(&w.enc);
	if (d) {
		arena_free(&d->arena);
		buf_free(&d->buf);
	}
	free(d);
	reclaim(h);
	return rc;
}

/* ---- replay ---- */

static bool own_fits(struct span wire, struct label *v)
{
	uint32_t n;
	return wire.n == 0 || (wire.n <= EXEMPLAR_WIRE_BYTES && labels_from_canonical(wire, v, LIMIT_LABELS_DECODE, &n));
}

errc head_exemplars_replay(struct head *h, struct span body, const char **why, struct err *err)
{
	errc rc = OK;
	struct wal_exemplars_dec dec;
	struct tenant *tn;
	struct exemplar_ring *r;
	struct decoded *d = NULL;
	*why = NULL;
	if (!wal_exemplars_open(body, &dec) || !tenant_valid(dec.tenant)) {
		*why = "exemplars of no tenant";
		return OK;
	}
	if (h->cfg.max_exemplars == 0)
		return OK;
	TRY(head_tenant_get(h, dec.tenant, &tn, err));
	TRY(ring_make(tn, &r, err));
	d = malloc(sizeof *d);
	CHECK(d, ERR_NOMEM, "no memory for exemplars");
	d->l = (struct labels){d->series, 0};
	struct span series = {NULL, 0}, known = {NULL, 0};
	struct exemplar x;
	bool ok;
	uint32_t hash = 0;
	pthread_mutex_lock(&r->mu);
	struct had before = had_locked(r);
	while (rc == OK && wal_exemplars_next(&dec, &series, &x, &ok)) {
		/* A series that the record tells once has its bytes in one place. */
		if (series.p != known.p) {
			if (series.n > HEAD_SERIES_WIRE_BYTES || !labels_from_canonical(series, d->series, LIMIT_LABELS_DECODE, &d->l.n)) {
				*why = "an exemplar of no series";
				known.p = NULL;
				continue;
			}
			known = series;
			hash = exemplar_ring_hash(h, series);
		}
		if (!own_fits(x.wire, d->own)) {
			*why = "an exemplar with labels that are none";
			continue;
		}
		uint32_t id;
		if (exemplar_ring_put(r, d->l, hash, &x, RING_ANYWHERE, full_locked(r), &id) == RING_NOMEM)
			rc = err_set(err, ERR_NOMEM, "replay: no memory for %" PRIu32 " exemplars", ring_count(r));
		account_locked(r, before);
		before = had_locked(r);
	}
	pthread_mutex_unlock(&r->mu);
	if (rc == OK && !ok)
		*why = "exemplars cut short";
	reclaim(h);
fail:
	free(d);
	return rc;
}

/* ---- checkpoint ---- */

/* Exemplars from *seq on, a record's worth, in order of arrival. The series' labels go into `wire`. */
static errc encode_step(struct exemplar_ring *r, struct span tenant, uint64_t *seq, uint64_t end, struct label *v, struct buf *wire,
	struct buf *record, struct err *err)
{
	struct wal_exemplars_enc enc;
	uint8_t own[EXEMPLAR_WIRE_BYTES];
	pthread_mutex_lock(&r->mu);
	*seq = *seq < r->first_seq ? r->first_seq : *seq;
	buf_clear(record);
	wal_exemplars_begin(&enc, record, tenant);
	r->record++;
	for (uint32_t i = 0; i < CHECKPOINT_STEP && *seq < end && record->n < HEAD_LOG_GROUP_BYTES; i++, ++*seq) {
		uint32_t at = exemplar_ring_at(r, *seq);
		struct exemplar_series *s = exemplar_ring_series(r, r->v[at].series);
		struct exemplar x;
		exemplar_ring_get(r, at, &x, own);
		if (s->record != r->record) {
			buf_clear(wire);
			labels_to_wire(pairs_labels(r->head, s->pairs, s->n_pairs, v), wire);
			s->record = r->record;
			s->place = 0;
		}
		s->place = wal_exemplars_put(&enc, span_of(wire->p, wire->n), s->place, &x);
	}
	wal_exemplars_end(&enc);
	pthread_mutex_unlock(&r->mu);
	return record->failed || wire->failed ? err_set(err, ERR_NOMEM, "no memory for a checkpoint") : OK;
}

errc head_exemplars_checkpoint(
	struct head *h, errc (*put)(void *arg, struct span record, struct err *err), void *arg, struct buf *record, struct err *err)
{
	errc rc = OK;
	struct buf wire;
	struct label *v = malloc(LIMIT_LABELS_DECODE * sizeof *v);
	buf_init(&wire, 2 * HEAD_SERIES_WIRE_BYTES);
	CHECK(v, ERR_NOMEM, "no memory for a checkpoint");
	pthread_rwlock_rdlock(&h->tenants_mu);
	uint32_t n = h->n_tenants;
	pthread_rwlock_unlock(&h->tenants_mu);
	for (uint32_t i = 0; i < n; i++) {
		const struct tenant *tn = head_tenant_at(h, i);
		struct exemplar_ring *r = ring_of((struct tenant *)tn);
		if (!r)
			continue;
		pthread_mutex_lock(&r->mu);
		uint64_t seq = r->first_seq, end = seq + ring_count(r);
		pthread_mutex_unlock(&r->mu);
		while (seq < end) {
			TRY(encode_step(r, head_tenant_name(tn), &seq, end, v, &wire, record, err));
			if (record->n > 0)
				TRY(put(arg, span_of(record->p, record->n), err));
			CHECK(!atomic_load_explicit(&h->stop, memory_order_relaxed), ERR_CANCELED, "stopping");
		}
	}
fail:
	free(v);
	buf_free(&wire);
	return rc;
}

/* ---- questions ---- */

struct read_state {
	const struct head_exemplar_read *ask;
	uint32_t id, serial; /* the series at hand */
	bool inside;	     /* some of it was given: `last` is the newest of that, it came as `seq` */
	bool begun;
	uint64_t seq;
	struct exemplar last;
	uint8_t last_wire[EXEMPLAR_WIRE_BYTES], wire[EXEMPLAR_WIRE_BYTES];
	struct label v[LIMIT_LABELS_DECODE];
};

/* The first exemplar of s behind what was given. */
static uint32_t resume(const struct exemplar_ring *r, const struct exemplar_series *s, const struct read_state *st)
{
	if (st->seq >= r->first_seq)
		return r->v[exemplar_ring_at(r, st->seq)].next;
	uint32_t at = s->first;
	while (at != EXEMPLAR_NONE && exemplar_ring_cmp(r, at, &st->last) <= 0)
		at = r->v[at].next;
	return at;
}

/* One series, or a step of it. *steps: exemplars that may still be looked at. */
static errc read_series(const struct exemplar_ring *r, const struct exemplar_series *s, struct read_state *st, int *steps, struct err *err)
{
	errc rc = OK;
	const struct head_exemplar_read *ask = st->ask;
	struct labels l = pairs_labels(r->head, s->pairs, s->n_pairs, st->v);
	uint32_t at = s->first;
	if (st->inside && st->serial == s->serial) {
		at = resume(r, s, st);
	} else {
		st->begun = false;
		if (r->v[s->first].t > ask->end || r->v[s->last].t < ask->start || !ask->match(ask->arg, l))
			at = EXEMPLAR_NONE;
	}
	st->inside = false;
	for (; at != EXEMPLAR_NONE && r->v[at].t <= ask->end; at = r->v[at].next) {
		if (--*steps < 0) {
			uint32_t prev = r->v[at].prev;
			ASSERT(prev != EXEMPLAR_NONE); /* a step is more than one */
			exemplar_ring_get(r, prev, &st->last, st->last_wire);
			st->seq = exemplar_ring_seq(r, prev);
			st->serial = s->serial;
			st->inside = true;
			break;
		}
		if (r->v[at].t < ask->start)
			continue;
		struct exemplar x;
		exemplar_ring_get(r, at, &x, st->wire);
		TRY(ask->give(ask->arg, l, !st->begun, &x, err));
		st->begun = true;
	}
fail:
	return rc;
}

errc head_exemplars_read(struct head *h, struct span tenant, const struct head_exemplar_read *ask, struct err *err)
{
	errc rc = OK;
	struct exemplar_ring *r = ring_of(head_tenant_find(h, tenant));
	if (!r || ask->start > ask->end)
		return OK;
	struct read_state *st = malloc(sizeof *st);
	if (!st)
		return err_set(err, ERR_NOMEM, "no memory to read exemplars");
	*st = (struct read_state){.ask = ask};
	for (bool more = true; more && rc == OK;) {
		int steps = READ_STEP;
		pthread_mutex_lock(&r->mu);
		for (int i = 0; i < READ_STEP_SERIES && steps > 0 && rc == OK && st->id < r->n_ids; i++) {
			const struct exemplar_series *s = exemplar_ring_series(r, st->id);
			if (s)
				rc = read_series(r, s, st, &steps, err);
			else
				st->inside = false;
			if (!st->inside)
				st->id++;
		}
		more = st->id < r->n_ids;
		pthread_mutex_unlock(&r->mu);
	}
	free(st);
	return rc;
}

void exemplars_drop(struct tenant *tn, int64_t upto_ms)
{
	struct exemplar_ring *r = ring_of(tn);
	if (!r)
		return;
	pthread_mutex_lock(&r->mu);
	struct had before = had_locked(r);
	/* They stand as they arrived: all up to the last one of that time. */
	uint32_t n = ring_count(r);
	while (n > 0 && r->v[exemplar_ring_at(r, r->first_seq + n - 1)].t > upto_ms)
		n--;
	exemplar_ring_drop(r, n);
	exemplar_ring_shrink(r);
	account_locked(r, before);
	pthread_mutex_unlock(&r->mu);
}
