/* ingest/ingest_digest.c - when two nodes hold the same: an order-free sum over what a window holds, in buckets.
 *
 *     id      = XXH3-128 of the series' canonical labels (base/labels.h); its bucket is the id's uppermost byte
 *     float   : x = m(m(id.lo ^ m(t)) + v)                               m: a bijection of 64 bits (murmur3's last step)
 *     histogram: x = m(m(id.lo ^ m(t)) + h.lo ^ H), h = XXH3-128 of hint and canonical encoding, H not 0
 *     sample  = (x, m(x + id.hi) [+ h.hi])
 *     bucket  = number of series that have samples, number of samples, sum of these modulo 2^128
 *
 * A sum does not know an order, so what came late, twice, or after a restart does not show, and what is there alone counts. Another value, another time, a sample more or less change
 * one term, and so the sum, always: id, t and v go through bijections. Two changes may cancel each other with probability 2^-128 (floats: 2^-64 of those in one series that also agree in
 * the other half). It is no defence against a peer that lies: peers are trusted (cluster/trust.h).
 *
 * Histograms count by their canonical encoding: the same one in two layouts is the same.
 */
#include <stdlib.h>
#include <xxhash.h>
#include "base/io.h"
#include "cluster/cluster.h"
#include "ingest/ingest_repair_int.h"

enum { PACE_LOOK = 64, PACE_WORK_NS = 4000000, PACE_SLEEP_MAX_MS = 20, READ_BYTES = 4 << 20 };
#define HISTOGRAM_SALT UINT64_C(0x6c62272e07bb0142)

static inline uint64_t mixed(uint64_t x)
{
	x = (x ^ x >> 33) * UINT64_C(0xff51afd7ed558ccd);
	x = (x ^ x >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
	return x ^ x >> 33;
}

static inline void sum_add(uint64_t sum[2], uint64_t lo, uint64_t hi)
{
	uint64_t was = sum[0];
	sum[0] += lo;
	sum[1] += hi + (sum[0] < was);
}

void digest_bucket_add(struct digest_bucket *a, const struct digest_bucket *b)
{
	a->series += b->series;
	a->samples += b->samples;
	sum_add(a->sum, b->sum[0], b->sum[1]);
}

uint32_t digest_series(struct labels l, struct buf *scratch, uint64_t id[2])
{
	buf_clear(scratch);
	labels_to_wire(l, scratch);
	XXH128_hash_t x = XXH3_128bits(scratch->p, scratch->n);
	id[0] = x.low64;
	id[1] = x.high64;
	return (uint32_t)(x.high64 >> 56);
}

/* ---- who holds a series ---- */

errc shared_begin(struct shared *s, struct ring_set *set, struct span self, struct span tenant, struct err *err)
{
	*s = (struct shared){.self = CLUSTER_NO_NODE, .factor = 1};
	if (!set)
		return OK;
	s->set = ring_set_ref(set);
	s->factor = ring_set_factor(set);
	if (self.n == 0 || !ring_set_find(set, self, &s->self))
		s->self = CLUSTER_NO_NODE;
	errc rc = ring_for_tenant(set, tenant, &s->ring, err);
	if (rc != OK)
		shared_end(s);
	else
		ring_hash_begin(&s->hash, tenant);
	return rc;
}

void shared_end(struct shared *s)
{
	ring_unref(s->ring);
	ring_set_unref(s->set);
	s->ring = NULL;
	s->set = NULL;
}

uint32_t shared_with(struct shared *s, struct labels l, uint32_t *owners)
{
	uint32_t all[LIMIT_RING_FACTOR], n = 0;
	bool mine = false;
	if (!s->ring || s->self == CLUSTER_NO_NODE)
		return 0;
	for (uint32_t i = 0; i < l.n; i++)
		ring_hash_add(&s->hash, l.v[i].name, l.v[i].value);
	ring_owners(s->ring, ring_hash_end(&s->hash), all);
	for (uint32_t i = 0; i < s->factor; i++) {
		bool again = all[i] == s->self;
		mine |= again;
		for (uint32_t k = 0; k < n && !again; k++)
			again = owners[k] == all[i];
		if (!again)
			owners[n++] = all[i];
	}
	return mine ? n : 0;
}

/* ---- pace ---- */

errc pace_step(struct pace *p, struct err *err)
{
	if (++p->steps % PACE_LOOK != 0)
		return OK;
	if (p->stop && atomic_load_explicit(p->stop, memory_order_relaxed))
		return err_set(err, ERR_CANCELED, "stopping");
	if (p->none)
		return OK;
	int64_t now = io_mono_ns();
	if (p->began_ns == 0)
		p->began_ns = now;
	if (now - p->began_ns < PACE_WORK_NS)
		return OK;
	int64_t ms = (now - p->began_ns) / 1000000;
	io_sleep_ms(ms < PACE_SLEEP_MAX_MS ? ms : PACE_SLEEP_MAX_MS);
	p->began_ns = io_mono_ns();
	return OK;
}

/* ---- the sum ---- */

static errc histogram_add(const uint64_t id[2], const struct head_packed *x, struct buf *canonical, struct digest_bucket *b, struct err *err)
{
	errc rc = OK;
	struct arena arena;
	struct histogram h;
	enum sample_kind kind;
	arena_init(&arena, LIMIT_HISTOGRAM_MEMORY_BYTES);
	TRY(histogram_unpack(x->packed, &arena, &kind, &h, err));
	buf_clear(canonical);
	buf_u8(canonical, h.reset_hint);
	histogram_canonical(kind, &h, canonical);
	CHECK(!canonical->failed, ERR_NOMEM, "no memory to compare histograms");
	XXH128_hash_t v = XXH3_128bits(canonical->p, canonical->n);
	uint64_t lo = mixed(mixed(id[0] ^ mixed((uint64_t)x->t)) + (v.low64 ^ HISTOGRAM_SALT));
	sum_add(b->sum, lo, mixed(lo + id[1]) + v.high64);
	b->samples++;
fail:
	arena_free(&arena);
	return rc;
}

/* All of a series between mint and maxt. */
static errc series_sum(
	struct head_walk *k, const struct digest_range *r, const uint64_t id[2], struct buf *canonical, struct digest_bucket *b, struct err *err)
{
	errc rc = OK;
	struct head_samples x = {.more = true, .next_t = r->mint};
	*b = (struct digest_bucket){0};
	while (x.more) {
		TRY(head_walk_samples(k, x.next_t, r->maxt, READ_BYTES, &x, err));
		for (size_t i = 0; i < x.n_floats; i++) {
			uint64_t lo = mixed(mixed(id[0] ^ mixed((uint64_t)x.floats[i].t)) + x.floats[i].v);
			sum_add(b->sum, lo, mixed(lo + id[1]));
		}
		b->samples += x.n_floats;
		for (size_t i = 0; i < x.n_hists; i++)
			TRY(histogram_add(id, &x.hists[i], canonical, b, err));
	}
	b->series = b->samples > 0;
fail:
	return rc;
}

static errc peer_add(struct digest *d, uint32_t node, uint32_t bucket, const struct digest_bucket *b, struct err *err)
{
	if (!d->peer[node])
		d->peer[node] = calloc(DIGEST_BUCKETS, sizeof **d->peer);
	if (!d->peer[node])
		return err_set(err, ERR_NOMEM, "no memory for a digest");
	digest_bucket_add(&d->peer[node][bucket], b);
	return OK;
}

errc digest_make(
	struct head *h, const struct digest_range *r, struct shared *s, uint32_t with, struct pace *pace, struct digest *out, struct err *err)
{
	errc rc = OK;
	struct head_walk *k = NULL;
	struct buf scratch, canonical;
	buf_init(&scratch, 64 * MIB);
	buf_init(&canonical, LIMIT_HISTOGRAM_MEMORY_BYTES);
	*out = (struct digest){.n = s->set ? ring_set_n_nodes(s->set) : 1};
	out->peer = calloc(out->n, sizeof *out->peer);
	CHECK(out->peer, ERR_NOMEM, "no memory for a digest");
	rc = head_walk_open(h, r->tenant, r->start, r->range, &k, err);
	if (rc == ERR_NOTFOUND) {
		rc = OK;
		goto fail;
	}
	TRY(rc);
	out->open = true;
	for (;;) {
		struct labels l;
		struct head_place place;
		struct digest_bucket b;
		uint32_t owners[LIMIT_RING_FACTOR], n = 0;
		uint64_t id[2];
		bool more;
		TRY(pace_step(pace, err));
		TRY(head_walk_next(k, &l, &place, &more, err));
		if (!more)
			break;
		if (s->set)
			n = shared_with(s, l, owners);
		bool asked = with == DIGEST_EVERYBODY;
		for (uint32_t i = 0; i < n && !asked; i++)
			asked = owners[i] == with;
		if (!asked && s->set)
			continue;
		uint32_t bucket = digest_series(l, &scratch, id);
		CHECK(!scratch.failed, ERR_NOMEM, "no memory for the labels of a series");
		TRY(series_sum(k, r, id, &canonical, &b, err));
		if (b.samples == 0)
			continue;
		digest_bucket_add(&out->all, &b);
		if (!s->set)
			TRY(peer_add(out, 0, bucket, &b, err));
		for (uint32_t i = 0; i < n; i++)
			if (with == DIGEST_EVERYBODY || owners[i] == with)
				TRY(peer_add(out, owners[i], bucket, &b, err));
	}
fail:
	head_walk_close(k);
	buf_free(&scratch);
	buf_free(&canonical);
	if (rc != OK)
		digest_free(out);
	return rc;
}

void digest_free(struct digest *d)
{
	for (uint32_t i = 0; d->peer && i < d->n; i++)
		free(d->peer[i]);
	free(d->peer);
	*d = (struct digest){0};
}
