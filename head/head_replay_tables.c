/* head/head_replay_tables.c - what a record of the log is found by: series by their refs, keys of old refs, windows by their names. */
#include <inttypes.h>
#include "head/head_replay_int.h"

/* ---- refs ---- */

bool replay_refs_resize(struct head *h, struct replay_state *r, uint64_t mask)
{
	const struct replay_state old = {.refs = r->refs, .ref_mask = r->ref_mask};
	struct ref_slot *v = head_table_alloc(mask + 1, sizeof *v);
	if (!v)
		return false;
	r->refs = v;
	r->ref_mask = mask;
	for (uint64_t i = 0; old.refs && i <= old.ref_mask; i++)
		if (old.refs[i].page)
			*replay_ref_slot(r, old.refs[i].number) = old.refs[i];
	head_memory_add(h, (mask + 1 - (old.refs ? old.ref_mask + 1 : 0)) * sizeof *v);
	head_table_free(old.refs, old.ref_mask + 1, sizeof *old.refs);
	return true;
}

static bool refs_grow(struct head *h, struct replay_state *r)
{
	return replay_refs_resize(h, r, r->refs ? r->ref_mask * 2 + 1 : 63);
}

/* Where the series of ref goes; NULL: no memory. */
struct series **replay_ref_place(struct head *h, struct replay_state *r, uint64_t ref)
{
	struct ref_page *p = replay_ref_page(r, ref);
	if (!p) {
		if ((!r->refs || r->n_pages + 1 > (r->ref_mask + 1) / 4 * 3) && !refs_grow(h, r))
			return NULL;
		p = head_pool_alloc(&r->pages, sizeof *p);
		if (!p)
			return NULL;
		memset(p, 0, sizeof *p);
		struct ref_slot entry = {ref / REFS_PER_PAGE, p};
		*replay_ref_slot(r, entry.number) = entry;
		r->near[entry.number % REFS_NEAR] = entry;
		r->n_pages++;
	}
	return &p->v[ref % REFS_PER_PAGE];
}

void replay_ref_used(struct head *h, uint64_t ref)
{
	if (ref >= atomic_load_explicit(&h->next_ref, memory_order_relaxed))
		atomic_store_explicit(&h->next_ref, ref + 1, memory_order_relaxed);
}

/* ---- keys of refs that are not the newest ---- */

struct old_key *replay_old_key(const struct replay_state *r, uint64_t ref)
{
	uint64_t i = replay_spread(ref) & r->old_mask;
	while (r->old_keys[i].ref && r->old_keys[i].ref != ref)
		i = (i + 1) & r->old_mask;
	return &r->old_keys[i];
}

errc replay_old_key_put(struct replay_state *r, uint64_t ref, const struct wal_keys *keys, struct err *err)
{
	if (!r->old_keys || r->n_old_keys + 1 > (r->old_mask + 1) / 4 * 3) {
		struct replay_state old = *r;
		uint64_t mask = r->old_keys ? r->old_mask * 2 + 1 : 63;
		struct old_key *v = calloc(mask + 1, sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "replay: no memory for keys of %" PRIu64 " series", r->n_old_keys);
		r->old_keys = v;
		r->old_mask = mask;
		for (uint64_t i = 0; old.old_keys && i <= old.old_mask; i++)
			if (old.old_keys[i].ref)
				*replay_old_key(r, old.old_keys[i].ref) = old.old_keys[i];
		free(old.old_keys);
	}
	struct old_key *k = replay_old_key(r, ref);
	r->n_old_keys += k->ref == 0;
	*k = (struct old_key){ref, *keys};
	return OK;
}

/* ---- windows ---- */

struct window_slot *replay_window_slot(struct replay_state *r, struct ulid u)
{
	uint64_t i = replay_spread(get_le64(u.b) ^ get_le64(u.b + 8)) & r->window_mask;
	while (r->windows[i].used && !ulid_eq(r->windows[i].ulid, u))
		i = (i + 1) & r->window_mask;
	return &r->windows[i];
}

/* The window's entry, made when absent. */
errc replay_window_entry(struct replay_state *r, struct ulid u, struct window_slot **out, struct err *err)
{
	if (!r->windows || r->n_windows + 1 > (r->window_mask + 1) / 4 * 3) {
		struct replay_state old = *r;
		uint64_t mask = r->windows ? r->window_mask * 2 + 1 : 63;
		struct window_slot *v = calloc(mask + 1, sizeof *v);
		if (!v)
			return err_set(err, ERR_NOMEM, "replay: no memory for %" PRIu64 " windows", r->n_windows);
		r->windows = v;
		r->window_mask = mask;
		for (uint64_t i = 0; old.windows && i <= old.window_mask; i++)
			if (old.windows[i].used)
				*replay_window_slot(r, old.windows[i].ulid) = old.windows[i];
		free(old.windows);
	}
	*out = replay_window_slot(r, u);
	if (!(*out)->used) {
		**out = (struct window_slot){.ulid = u, .used = true};
		r->n_windows++;
	}
	return OK;
}

/* ---- the whole ---- */

errc replay_begin(struct head *h, struct err *err)
{
	if (h->replay)
		return OK;
	h->replay = calloc(1, sizeof *h->replay);
	if (!h->replay)
		return err_set(err, ERR_NOMEM, "no memory for replay");
	head_pool_init(&h->replay->pages, &h->memory_bytes, NULL);
	return OK;
}

void replay_tables_clear(struct head *h)
{
	struct replay_state *r = h->replay;
	if (r->refs)
		head_memory_sub(h, (r->ref_mask + 1) * sizeof *r->refs);
	head_table_free(r->refs, r->ref_mask + 1, sizeof *r->refs);
	head_pool_destroy(&r->pages);
	r->refs = NULL;
	r->n_pages = r->ref_mask = 0;
	free(r->old_keys);
	r->old_keys = NULL;
	r->n_old_keys = r->old_mask = 0;
	memset(r->near, 0, sizeof r->near);
}

void head_replay_free(struct head *h)
{
	struct replay_state *r = h->replay;
	if (!r)
		return;
	replay_lanes_close(r);
	replay_tables_clear(h);
	free(r->windows);
	free(r);
	h->replay = NULL;
}
