/* head/head_replay_defs.c - definitions and keys of the log, which say what its samples' refs and values mean.
 *
 * A definition makes its series or finds it; one series may have had several refs, all lead to it, and each has the keys that its samples were told against.
 */
#include <inttypes.h>
#include "base/tenant.h"
#include "head/head_replay_int.h"

static void keys_set(struct series *s, const struct wal_keys *k)
{
	s->keys[0] = k->v[0];
	s->keys[1] = k->v[1];
	s->key_no = k->now & 1u;
	s->key_changed = k->changed;
}

/* The copy in this frame counts toward the two that make a definition safe. */
static void def_seen(const struct wal_frame *f, struct series *s)
{
	uint64_t behind = f->pos + f->payload.n + f->payload.n / 128 + 4096;
	if (f->seq == 0) { /* a checkpoint stands in two files */
		s->def_state = DEF_TWICE;
		s->def_pos = 0;
	} else if (s->def_state == DEF_NONE) {
		s->def_state = DEF_ONCE;
		s->def_pos = behind;
	} else if (s->def_state == DEF_ONCE && f->pos >= s->def_pos + WAL_COPY_DISTANCE_BYTES) {
		s->def_state = DEF_TWICE;
		s->def_pos = behind;
	}
}

/* A key's copies are counted like a definition's: a change begins anew, where the definition itself is safe. */
static void key_seen(const struct wal_frame *f, struct series *s, const struct wal_keys *k)
{
	uint64_t behind = f->pos + f->payload.n + f->payload.n / 128 + 4096;
	bool change = k->now != s->key_no || k->v[k->now] != s->keys[k->now];
	keys_set(s, k);
	if (s->def_state == DEF_ONCE)
		return;
	if (change) {
		s->def_state = KEY_ONCE;
		s->def_pos = behind;
	} else if (s->def_state == KEY_ONCE && f->pos >= s->def_pos + WAL_COPY_DISTANCE_BYTES) {
		s->def_state = DEF_TWICE;
		s->def_pos = behind;
	}
}

/* A definition of the log that is not known yet, with what it hashes to. */
struct definition {
	uint64_t ref;
	struct span wire;
	struct wal_keys keys;
	struct hash128 x;
};

enum { DEFINE_AHEAD = 16 };

static errc define(struct replay_place *p, struct tenant *tn, const struct definition *def, struct err *err)
{
	struct head *h = p->head;
	struct replay_state *r = replay_of(h);
	struct shard *sh = &h->shards[head_shard_of(h, def->x)];
	struct labels l = {r->labels, 0};
	if (def->wire.n > HEAD_SERIES_WIRE_BYTES || !labels_from_canonical(def->wire, l.v, LIMIT_LABELS_DECODE, &l.n)) {
		replay_damage(p, "a definition that is none");
		return OK;
	}
	struct series **place = replay_ref_place(h, r, def->ref);
	if (!place)
		return err_set(err, ERR_NOMEM, "replay: no memory for %" PRIu64 " series", atomic_load(&h->n_series));
	pthread_mutex_lock(&sh->mu);
	struct series *s = (struct series *)head_table_find_locked(h, sh, def->x, tn->idx, def->wire);
	errc rc = s ? OK : head_series_new_locked(h, sh, tn, def->x, l, 0, &s, err);
	uint64_t newest = s ? atomic_load_explicit(&s->ref, memory_order_relaxed) : 0;
	if (rc == OK && s->def_state != DEF_NONE && newest > def->ref) {
		/* An earlier life of the series, whose definition outlived a checkpoint's newer one. */
		rc = replay_old_key_put(r, def->ref, &def->keys, err);
		*place = s;
	} else if (rc == OK) {
		/* The newest name is the one that new samples get: its definition is the last to leave the log. */
		if (s->def_state != DEF_NONE && newest != def->ref) {
			struct wal_keys keys = series_keys(s);
			rc = replay_old_key_put(r, newest, &keys, err);
		}
		atomic_store_explicit(&s->ref, def->ref, memory_order_relaxed);
		s->def_state = DEF_NONE;
		keys_set(s, &def->keys);
		def_seen(p->f, s);
		*place = s;
		replay_ref_used(h, def->ref);
	}
	pthread_mutex_unlock(&sh->mu);
	return rc;
}

errc replay_series(struct replay_place *p, uint8_t kind, struct span body, struct err *err)
{
	errc rc = OK;
	struct wal_series_dec d;
	struct tenant *tn;
	if (!wal_series_open(kind, body, &d) || !tenant_valid(d.tenant)) {
		replay_damage(p, "definitions of no tenant");
		return OK;
	}
	TRY(head_tenant_get(p->head, d.tenant, &tn, err));
	struct definition defs[DEFINE_AHEAD];
	struct replay_state *r = replay_of(p->head);
	bool ok = true, more = true;
	while (more) {
		/* Where a group of them will be looked for is asked of memory before the first is needed. */
		uint32_t n = 0;
		while (n < DEFINE_AHEAD && (more = wal_series_next(&d, &defs[n].ref, &defs[n].wire, &defs[n].keys, &ok))) {
			struct definition *def = &defs[n];
			if (def->ref == 0 || def->ref > REF_MAX) {
				replay_damage(p, "a definition that is none");
				continue;
			}
			/* The other copy. A ref is never given twice while the log has it, so nothing is compared. */
			struct series *s = replay_ref_series(r, def->ref);
			if (s) {
				if (atomic_load_explicit(&s->ref, memory_order_relaxed) == def->ref) {
					keys_set(s, &def->keys);
					def_seen(p->f, s);
				} else {
					TRY(replay_old_key_put(r, def->ref, &def->keys, err));
				}
				continue;
			}
			def->x = head_hash(p->head, tn, def->wire);
			const struct shard *sh = &p->head->shards[head_shard_of(p->head, def->x)];
			if (sh->slots)
				__builtin_prefetch(&sh->slots[def->x.lo & sh->mask]);
			n++;
		}
		if (n > 0)
			TRY(replay_lanes_drain(r, err));
		for (uint32_t i = 0; i < n; i++)
			TRY(define(p, tn, &defs[i], err));
	}
	if (!ok)
		replay_damage(p, "definitions cut short");
fail:
	return rc;
}

errc replay_keys(struct replay_place *p, struct span body, struct err *err)
{
	errc rc = OK;
	struct replay_state *r = replay_of(p->head);
	struct rd rd = rd_of(body.p, body.n);
	struct wal_key_change c = {0};
	bool ok;
	while (wal_keys_next(&rd, &c, &ok)) {
		struct series *s = replay_ref_series(r, c.ref);
		if (s && atomic_load_explicit(&s->ref, memory_order_relaxed) == c.ref)
			key_seen(p->f, s, &c.keys);
		else if (s)
			TRY(replay_old_key_put(r, c.ref, &c.keys, err));
	}
	if (!ok)
		replay_damage(p, "keys cut short");
fail:
	return rc;
}
