/* head/head_metadata.c - what a tenant's senders say of their metric families: type, help, unit.
 *
 * Senders repeat themselves every minute (1.0) or with every series (2.0), and their metrics hardly change: so the usual case is one hash
 * over an entry's strings and one probe, and logs nothing. Inside a request 2.0's entries of one family are the same symbols: those are passed over by
 * their addresses.
 *
 *     slots ─▶ entry of a family ─more─▶ another one of it ...        at most METADATA_PER_FAMILY different ones, those said last stay
 *                    └ newer/older: families in the order in which they were said last, to the minute; the oldest gives way at the limit
 *
 * Strings are a label pair of the symbols (head_symbols.c): the name is the family, the value is { type, unit's length in two bytes, unit, help }. A thousand
 * tenants with the same exporters keep each text once, and a tenant pays some 50 bytes a family. An entry is recognised by 64 bits of a keyed hash over all
 * of it, a family by its name.
 *
 * When all tenants' entries, as if their texts were not shared, take an eighth of the head's memory, what a new one takes is given back by its tenant's oldest
 * families.
 */
#include <xxhash.h>
#include "base/tenant.h"
#include "head/head_annotations_int.h"

enum { NONE = UINT32_MAX, SLOTS_MIN = 64, ENTRIES_MIN = 16, SEEN = 256, READ_STEP = 256, VALUE_HEAD = 3, MINUTE_MS = 60000 };

struct entry {
	uint64_t print; /* keyed hash of family, type, help, unit */
	uint32_t pair;
	uint32_t newer, older; /* of a family's first entry */
	uint32_t more;	       /* the family's next entry, or the next free one */
	uint32_t stamp;	       /* minute in which it was said last; among equals the one that was new last is the newest */
	uint32_t born;
	uint32_t hash; /* of the family; its first entry's is looked for */
	bool first, used;
};

struct metadata_table {
	struct head *head;
	pthread_mutex_t mu;
	struct entry *v;
	uint32_t n, cap, free; /* entries ever used; first free one */
	uint32_t n_families, n_entries;
	uint32_t newest, oldest, births;
	uint32_t *slots; /* first entry of a family + 1 */
	uint32_t mask;
	uint64_t ticket; /* the youngest that said something new */
};

static struct label entry_text(const struct metadata_table *t, const struct entry *e)
{
	return head_pair_label(head_pair(&t->head->symbols, e->pair));
}

static struct metadata metadata_of(struct label text)
{
	const uint8_t *p = (const uint8_t *)text.value.p;
	size_t unit = (size_t)p[1] | (size_t)p[2] << 8;
	return (struct metadata){
		.family = text.name,
		.type = (enum metric_type)p[0],
		.unit = span_of(p + VALUE_HEAD, unit),
		.help = span_of(p + VALUE_HEAD + unit, text.value.n - VALUE_HEAD - unit),
	};
}

static bool fits(const struct metadata *m)
{
	return m->family.n > 0 && m->family.n <= METADATA_FAMILY_BYTES && m->help.n <= METADATA_HELP_BYTES && m->unit.n <= METADATA_UNIT_BYTES &&
	       (unsigned)m->type < METRIC_TYPES && span_is_utf8(m->family) && span_is_utf8(m->help) && span_is_utf8(m->unit);
}

static bool says_nothing(const struct metadata *m)
{
	return m->type == METRIC_UNKNOWN && m->help.n == 0 && m->unit.n == 0;
}

static uint64_t hash_of(const struct metadata_table *t, const void *p, size_t n)
{
	return XXH3_64bits_withSecret(p, n, t->head->secret, sizeof t->head->secret);
}

static uint64_t print_of(const struct metadata_table *t, uint64_t family, const struct metadata *m)
{
	const uint64_t parts[4] = {family, hash_of(t, m->help.p, m->help.n), hash_of(t, m->unit.p, m->unit.n), (uint64_t)m->type};
	return hash_of(t, parts, sizeof parts);
}

/* ---- memory ---- */

static struct metadata_table *table_of(struct tenant *tn)
{
	return tn ? atomic_load_explicit(&tn->metadata, memory_order_acquire) : NULL;
}

static errc table_make(struct tenant *tn, struct metadata_table **out, struct err *err)
{
	errc rc = OK;
	*out = table_of(tn);
	if (*out)
		return OK;
	pthread_mutex_lock(&tn->mu);
	struct metadata_table *t = table_of(tn);
	if (!t && (t = calloc(1, sizeof *t))) {
		t->head = tn->head;
		t->free = t->newest = t->oldest = NONE;
		pthread_mutex_init(&t->mu, NULL);
		head_memory_add(t->head, sizeof *t);
		atomic_store_explicit(&tn->metadata, t, memory_order_release);
	}
	if (!t)
		rc = err_set(err, ERR_NOMEM, "no memory for metadata");
	pthread_mutex_unlock(&tn->mu);
	*out = t;
	return rc;
}

void metadata_table_free(struct metadata_table *t)
{
	if (!t)
		return;
	free(t->v);
	free(t->slots);
	pthread_mutex_destroy(&t->mu);
	free(t);
}

static bool entries_grow(struct metadata_table *t)
{
	uint32_t cap = t->cap + t->cap / 2 + ENTRIES_MIN;
	struct entry *v = realloc(t->v, cap * sizeof *v);
	if (!v)
		return false;
	head_memory_add(t->head, (cap - t->cap) * sizeof *v);
	t->v = v;
	t->cap = cap;
	return true;
}

static bool slots_grow(struct metadata_table *t)
{
	uint32_t mask = t->slots ? t->mask * 2 + 1 : SLOTS_MIN - 1;
	uint32_t *slots = calloc((size_t)mask + 1, sizeof *slots);
	if (!slots)
		return false;
	for (uint32_t k = 0; k < t->n; k++) {
		if (!t->v[k].used || !t->v[k].first)
			continue;
		uint32_t i = t->v[k].hash & mask;
		while (slots[i])
			i = (i + 1) & mask;
		slots[i] = k + 1;
	}
	head_memory_add(t->head, ((size_t)mask + 1 - (t->slots ? (size_t)t->mask + 1 : 0)) * sizeof *slots);
	free(t->slots);
	t->slots = slots;
	t->mask = mask;
	return true;
}

/* ---- entries, under the table's mu ---- */

static uint32_t family_find(const struct metadata_table *t, struct span family, uint32_t hash)
{
	if (!t->slots)
		return NONE;
	for (uint32_t i = hash & t->mask; t->slots[i]; i = (i + 1) & t->mask) {
		const struct entry *e = &t->v[t->slots[i] - 1];
		if (e->hash == hash && span_eq(entry_text(t, e).name, family))
			return t->slots[i] - 1;
	}
	return NONE;
}

static void slot_remove(struct metadata_table *t, uint32_t at)
{
	uint32_t i = t->v[at].hash & t->mask;
	while (t->slots[i] != at + 1)
		i = (i + 1) & t->mask;
	for (uint32_t j = (i + 1) & t->mask; t->slots[j]; j = (j + 1) & t->mask) {
		uint32_t home = t->v[t->slots[j] - 1].hash & t->mask;
		if (((j - home) & t->mask) >= ((j - i) & t->mask)) {
			t->slots[i] = t->slots[j];
			i = j;
		}
	}
	t->slots[i] = 0;
}

static void order_remove(struct metadata_table *t, uint32_t at)
{
	const struct entry *e = &t->v[at];
	if (e->newer == NONE)
		t->newest = e->older;
	else
		t->v[e->newer].older = e->older;
	if (e->older == NONE)
		t->oldest = e->newer;
	else
		t->v[e->older].newer = e->newer;
}

static void order_front(struct metadata_table *t, uint32_t at)
{
	struct entry *e = &t->v[at];
	e->newer = NONE;
	e->older = t->newest;
	if (t->newest == NONE)
		t->oldest = at;
	else
		t->v[t->newest].newer = at;
	t->newest = at;
}

static uint64_t entry_bytes(const struct metadata_table *t, const struct entry *e)
{
	struct label text = entry_text(t, e);
	return sizeof *e + sizeof *t->slots + text.name.n + text.value.n;
}

static void entry_free(struct metadata_table *t, uint32_t at)
{
	struct entry *e = &t->v[at];
	atomic_fetch_sub_explicit(&t->head->metadata_bytes, entry_bytes(t, e), memory_order_relaxed);
	head_pairs_unref(&t->head->symbols, &e->pair, 1);
	*e = (struct entry){.more = t->free};
	t->free = at;
	t->n_entries--;
	atomic_fetch_sub_explicit(&t->head->n_metadata, 1, memory_order_relaxed);
}

static uint64_t family_forget(struct metadata_table *t, uint32_t at)
{
	uint64_t bytes = 0;
	slot_remove(t, at);
	order_remove(t, at);
	for (uint32_t more; at != NONE; at = more) {
		more = t->v[at].more;
		bytes += entry_bytes(t, &t->v[at]);
		entry_free(t, at);
	}
	t->n_families--;
	return bytes;
}

static bool bytes_full(const struct head *h)
{
	return atomic_load_explicit(&h->metadata_bytes, memory_order_relaxed) >= annotations_bytes_max(h);
}

/* What a new entry takes, its tenant's oldest families give back. The newest one stays. */
static void repay(struct metadata_table *t, uint64_t bytes)
{
	while (bytes > 0 && bytes_full(t->head) && t->n_families > 1) {
		uint64_t back = family_forget(t, t->oldest);
		bytes -= back < bytes ? back : bytes;
	}
}

static bool earlier(const struct entry *a, const struct entry *b)
{
	return a->stamp != b->stamp ? a->stamp < b->stamp : (int32_t)(a->born - b->born) < 0;
}

/* A family with as many as are kept loses the one that was said longest ago. */
static void entry_make_room(struct metadata_table *t, uint32_t first)
{
	uint32_t n = 0, oldest = first, before = NONE, prev = NONE;
	for (uint32_t at = first; at != NONE; prev = at, at = t->v[at].more, n++)
		if (earlier(&t->v[at], &t->v[oldest])) {
			oldest = at;
			before = prev;
		}
	if (n < (bytes_full(t->head) ? 2 : METADATA_PER_FAMILY))
		return;
	if (oldest == first) {
		/* The places change content: links of the family's order stay with the first place. */
		before = first;
		oldest = t->v[first].more;
		struct entry *a = &t->v[first], *b = &t->v[oldest];
		uint64_t print = a->print;
		uint32_t pair = a->pair;
		a->print = b->print;
		a->pair = b->pair;
		a->stamp = b->stamp;
		a->born = b->born;
		b->print = print;
		b->pair = pair;
	}
	t->v[before].more = t->v[oldest].more;
	entry_free(t, oldest);
}

/* A place for one more entry; what gets it has no links yet. */
static uint32_t entry_new(struct metadata_table *t, uint32_t pair, uint64_t print, uint32_t hash, uint32_t stamp)
{
	uint32_t at = t->free;
	if (at == NONE)
		at = t->n++;
	else
		t->free = t->v[at].more;
	t->v[at] = (struct entry){.print = print,
		.pair = pair,
		.newer = NONE,
		.older = NONE,
		.more = NONE,
		.stamp = stamp,
		.born = t->births++,
		.hash = hash,
		.used = true};
	t->n_entries++;
	atomic_fetch_add_explicit(&t->head->metadata_bytes, entry_bytes(t, &t->v[at]), memory_order_relaxed);
	atomic_fetch_add_explicit(&t->head->n_metadata, 1, memory_order_relaxed);
	return at;
}

enum said { SAID_KNOWN, SAID_NEW, SAID_WRONG, SAID_NOMEM };

static enum said entry_add(struct metadata_table *t, const struct metadata *m, uint32_t first, uint32_t hash, uint64_t print, uint32_t stamp)
{
	uint8_t value[VALUE_HEAD + METADATA_UNIT_BYTES + METADATA_HELP_BYTES];
	size_t n = VALUE_HEAD + m->unit.n + m->help.n;
	uint32_t pair;
	value[0] = (uint8_t)m->type;
	value[1] = (uint8_t)m->unit.n;
	value[2] = (uint8_t)(m->unit.n >> 8);
	if (m->unit.n > 0)
		memcpy(value + VALUE_HEAD, m->unit.p, m->unit.n);
	if (m->help.n > 0)
		memcpy(value + VALUE_HEAD + m->unit.n, m->help.p, m->help.n);
	struct label text = {m->family, span_of(value, n)};
	if (t->free == NONE && t->n == t->cap && !entries_grow(t))
		return SAID_NOMEM;
	if (first == NONE && (!t->slots || t->n_families + 1 > t->mask / 4 * 3) && !slots_grow(t))
		return SAID_NOMEM;
	if (head_pairs_ref(&t->head->symbols, (struct labels){&text, 1}, &pair, NULL) != OK)
		return SAID_NOMEM;
	if (first != NONE) {
		entry_make_room(t, first);
		uint32_t at = entry_new(t, pair, print, hash, stamp);
		t->v[at].more = t->v[first].more;
		t->v[first].more = at;
		repay(t, entry_bytes(t, &t->v[at]));
		return SAID_NEW;
	}
	if (t->n_families >= t->head->cfg.max_metadata)
		(void)family_forget(t, t->oldest);
	uint32_t at = entry_new(t, pair, print, hash, stamp);
	t->v[at].first = true;
	uint32_t i = hash & t->mask;
	while (t->slots[i])
		i = (i + 1) & t->mask;
	t->slots[i] = at + 1;
	order_front(t, at);
	t->n_families++;
	repay(t, entry_bytes(t, &t->v[at]));
	return SAID_NEW;
}

/* The entry of this print and its family's first one; no string is looked at. */
static bool entry_find(const struct metadata_table *t, uint32_t hash, uint64_t print, uint32_t *found, uint32_t *first)
{
	for (uint32_t i = hash & t->mask; t->slots && t->slots[i]; i = (i + 1) & t->mask) {
		*first = t->slots[i] - 1;
		if (t->v[*first].hash != hash)
			continue;
		for (*found = *first; *found != NONE; *found = t->v[*found].more)
			if (t->v[*found].print == print)
				return true;
	}
	return false;
}

static void family_front(struct metadata_table *t, uint32_t first)
{
	if (t->newest == first)
		return;
	order_remove(t, first);
	order_front(t, first);
}

static enum said say_locked(struct metadata_table *t, const struct metadata *m, uint32_t stamp)
{
	uint64_t family = hash_of(t, m->family.p, m->family.n), print = print_of(t, family, m);
	uint32_t at, first;
	if (LIKELY(entry_find(t, (uint32_t)family, print, &at, &first))) {
		if (t->v[at].stamp < stamp) {
			t->v[at].stamp = stamp;
			family_front(t, first);
		}
		return SAID_KNOWN;
	}
	if (!fits(m))
		return SAID_WRONG;
	first = family_find(t, m->family, (uint32_t)family);
	if (first != NONE)
		family_front(t, first);
	return entry_add(t, m, first, (uint32_t)family, print, stamp);
}

/* ---- a request ---- */

size_t metadata_bound(const struct head *h, const struct head_annotations *a)
{
	if (h->cfg.max_metadata == 0 || a->n_metadata == 0)
		return 0;
	size_t text = 0, n = 0;
	for (size_t i = 0; i < a->n_metadata; i++) {
		const struct metadata *m = &a->metadata[i];
		if (m->family.n <= METADATA_FAMILY_BYTES && m->help.n <= METADATA_HELP_BYTES && m->unit.n <= METADATA_UNIT_BYTES) {
			text += m->family.n + m->help.n + m->unit.n;
			n++;
		}
	}
	return wal_metadata_bound(a->tenant.n, n, text) +
	       (wal_metadata_bound(0, n, text) / HEAD_LOG_GROUP_BYTES) * wal_metadata_bound(a->tenant.n, 0, 0);
}

/* Whether these very strings were met in this request already. */
static bool seen(const struct metadata **table, const struct metadata *m)
{
	uint64_t x = (uint64_t)(uintptr_t)m->family.p ^ (uint64_t)(uintptr_t)m->help.p << 7 ^ (uint64_t)(uintptr_t)m->unit.p << 13;
	const struct metadata **at = &table[x * UINT64_C(0x9e3779b97f4a7c15) >> 56], *o = *at;
	if (o && o->family.p == m->family.p && o->help.p == m->help.p && o->unit.p == m->unit.p && o->type == m->type && o->family.n == m->family.n &&
		o->help.n == m->help.n && o->unit.n == m->unit.n)
		return true;
	*at = m;
	return false;
}

errc metadata_append(struct head *h, const struct wal_ticket *ticket, struct head_annotations *a, struct buf *records, struct err *err)
{
	errc rc = OK;
	struct tenant *tn;
	struct metadata_table *t;
	struct wal_metadata_enc enc;
	const struct metadata *met[SEEN] = {NULL};
	bool open = false;
	if (a->n_metadata == 0)
		return OK;
	if (h->cfg.max_metadata == 0) {
		a->metadata_refused += a->n_metadata;
		return OK;
	}
	TRY(head_tenant_get(h, a->tenant, &tn, err));
	TRY(table_make(tn, &t, err));
	uint32_t stamp = a->now_ms > 0 ? (uint32_t)(a->now_ms / MINUTE_MS) : 0;
	pthread_mutex_lock(&t->mu);
	for (size_t i = 0; i < a->n_metadata && rc == OK; i++) {
		const struct metadata *m = &a->metadata[i];
		if (says_nothing(m) || seen(met, m)) {
			a->metadata_known++;
			continue;
		}
		enum said said = say_locked(t, m, stamp);
		if (said == SAID_WRONG) {
			a->metadata_refused++;
			continue;
		}
		if (said == SAID_NOMEM) {
			rc = err_set(err, ERR_NOMEM, "no memory for metadata");
			break;
		}
		if (said == SAID_KNOWN) {
			/* Logged under a ticket: a younger one than ours may not be durable when ours is. */
			a->leans |= t->ticket > ticket->no;
			a->metadata_known++;
			continue;
		}
		a->metadata_new++;
		t->ticket = ticket->no > t->ticket ? ticket->no : t->ticket;
		if (open && records->n - enc.start > HEAD_LOG_GROUP_BYTES) {
			wal_metadata_end(&enc);
			open = false;
		}
		if (!open)
			wal_metadata_begin(&enc, records, a->tenant);
		open = true;
		wal_metadata_put(&enc, m);
	}
	pthread_mutex_unlock(&t->mu);
	if (open)
		wal_metadata_end(&enc);
fail:
	return rc;
}

/* ---- replay and checkpoint ---- */

errc head_metadata_replay(struct head *h, struct span body, const char **why, struct err *err)
{
	errc rc = OK;
	struct wal_metadata_dec d;
	struct tenant *tn;
	struct metadata_table *t;
	struct metadata m;
	bool ok;
	*why = NULL;
	if (!wal_metadata_open(body, &d) || !tenant_valid(d.tenant)) {
		*why = "metadata of no tenant";
		return OK;
	}
	if (h->cfg.max_metadata == 0)
		return OK;
	TRY(head_tenant_get(h, d.tenant, &tn, err));
	TRY(table_make(tn, &t, err));
	/* As if said just now: who said it is still there, as far as anybody knows. */
	uint32_t stamp = (uint32_t)(io_now_ms() / MINUTE_MS);
	pthread_mutex_lock(&t->mu);
	while (rc == OK && wal_metadata_next(&d, &m, &ok)) {
		enum said said = say_locked(t, &m, stamp);
		if (said == SAID_WRONG)
			*why = "metadata that is none";
		else if (said == SAID_NOMEM)
			rc = err_set(err, ERR_NOMEM, "replay: no memory for metadata");
	}
	pthread_mutex_unlock(&t->mu);
	if (rc == OK && !ok)
		*why = "metadata cut short";
fail:
	return rc;
}

/* A family's entries, newest first; how many. */
static uint32_t family_order(const struct metadata_table *t, uint32_t first, uint32_t ids[METADATA_PER_FAMILY])
{
	uint32_t n = 0;
	for (uint32_t at = first; at != NONE; at = t->v[at].more) {
		uint32_t i = n++;
		for (; i > 0 && earlier(&t->v[ids[i - 1]], &t->v[at]); i--)
			ids[i] = ids[i - 1];
		ids[i] = at;
	}
	return n;
}

/* First entries of the families, oldest first. */
static errc families(struct metadata_table *t, uint32_t **out, uint32_t *n, struct err *err)
{
	*n = 0;
	pthread_mutex_lock(&t->mu);
	*out = malloc((t->n_families + (size_t)1) * sizeof **out);
	for (uint32_t at = t->oldest; *out && at != NONE; at = t->v[at].newer)
		(*out)[(*n)++] = at;
	pthread_mutex_unlock(&t->mu);
	return *out ? OK : err_set(err, ERR_NOMEM, "no memory for a checkpoint");
}

/* In the order in which it was said, so that who reads it knows what is newest, too. A family that was said meanwhile is a bit too old in it. */
errc head_metadata_checkpoint(
	struct head *h, errc (*put)(void *arg, struct span record, struct err *err), void *arg, struct buf *record, struct err *err)
{
	errc rc = OK;
	uint32_t *v = NULL;
	pthread_rwlock_rdlock(&h->tenants_mu);
	uint32_t n = h->n_tenants;
	pthread_rwlock_unlock(&h->tenants_mu);
	for (uint32_t i = 0; i < n; i++) {
		struct tenant *tn = head_tenant_at(h, i);
		struct metadata_table *t = table_of(tn);
		uint32_t n_families = 0, at = 0;
		if (t)
			TRY(families(t, &v, &n_families, err));
		while (at < n_families) {
			struct wal_metadata_enc enc;
			buf_clear(record);
			pthread_mutex_lock(&t->mu);
			wal_metadata_begin(&enc, record, head_tenant_name(tn));
			for (uint32_t k = 0; k < READ_STEP && at < n_families && record->n < HEAD_LOG_GROUP_BYTES; k++, at++) {
				uint32_t ids[METADATA_PER_FAMILY], m = t->v[v[at]].first ? family_order(t, v[at], ids) : 0;
				while (m > 0) {
					struct metadata x = metadata_of(entry_text(t, &t->v[ids[--m]]));
					wal_metadata_put(&enc, &x);
				}
			}
			wal_metadata_end(&enc);
			pthread_mutex_unlock(&t->mu);
			CHECK(!record->failed, ERR_NOMEM, "no memory for a checkpoint");
			if (record->n > 0)
				TRY(put(arg, span_of(record->p, record->n), err));
		}
		free(v);
		v = NULL;
	}
fail:
	free(v);
	return rc;
}

/* ---- questions ---- */

static errc give_family(
	struct metadata_table *t, uint32_t first, errc (*give)(void *, const struct metadata *, struct err *), void *arg, struct err *err)
{
	errc rc = OK;
	uint32_t ids[METADATA_PER_FAMILY], n = family_order(t, first, ids);
	for (uint32_t i = 0; i < n && rc == OK; i++) {
		struct metadata m = metadata_of(entry_text(t, &t->v[ids[i]]));
		rc = give(arg, &m, err);
	}
	return rc;
}

errc head_metadata_read(struct head *h, struct span tenant, struct span family, errc (*give)(void *arg, const struct metadata *m, struct err *err),
	void *arg, struct err *err)
{
	errc rc = OK;
	struct metadata_table *t = table_of(head_tenant_find(h, tenant));
	if (!t)
		return OK;
	if (family.p) {
		pthread_mutex_lock(&t->mu);
		uint32_t first = family_find(t, family, (uint32_t)hash_of(t, family.p, family.n));
		if (first != NONE)
			rc = give_family(t, first, give, arg, err);
		pthread_mutex_unlock(&t->mu);
		return rc;
	}
	bool more = true;
	for (uint32_t at = 0; more && rc == OK;) {
		pthread_mutex_lock(&t->mu);
		for (uint32_t k = 0; k < READ_STEP && at < t->n && rc == OK; k++, at++)
			if (t->v[at].used && t->v[at].first)
				rc = give_family(t, at, give, arg, err);
		more = at < t->n;
		pthread_mutex_unlock(&t->mu);
	}
	return rc;
}

void metadata_drop(struct tenant *tn, int64_t upto_ms)
{
	struct metadata_table *t = table_of(tn);
	if (!t)
		return;
	pthread_mutex_lock(&t->mu);
	while (t->n_families > 0 && (int64_t)t->v[t->oldest].stamp * MINUTE_MS <= upto_ms)
		family_forget(t, t->oldest);
	pthread_mutex_unlock(&t->mu);
}
