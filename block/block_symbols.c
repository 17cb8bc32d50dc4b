/* block/block_symbols.c - the distinct strings of a block: interned by hash while series arrive, ranked by bytes at the end.
 *
 * A string costs its bytes, 16 bytes of entry and 6 to 11 bytes of slot. The hash is seeded, so nobody outside chooses what collides.
 */
#include <stdlib.h>
#include <xxhash.h>
#include "base/limits.h"
#include "base/sort.h"
#include "block/block_write_int.h"

enum { SLOTS_MIN = 1024, SYMBOL_MAX_BYTES = 1 << 30 };

void symbols_init(struct symbols *s, uint64_t seed)
{
	*s = (struct symbols){.seed = seed};
	arena_init(&s->text, 4 * GIB);
}

void symbols_free(struct symbols *s)
{
	arena_free(&s->text);
	free(s->v);
	free(s->slots);
	*s = (struct symbols){0};
}

static uint32_t *slot_of(uint32_t *slots, uint32_t n_slots, uint32_t hash)
{
	/* the first free slot: for a string that is known to be new */
	uint32_t i = hash & (n_slots - 1);
	while (slots[i])
		i = (i + 1) & (n_slots - 1);
	return &slots[i];
}

static bool slots_grow(struct symbols *s)
{
	if (s->n_slots >= UINT32_C(1) << 31)
		return false;
	uint32_t n = s->n_slots ? s->n_slots * 2 : SLOTS_MIN;
	uint32_t *slots = calloc(n, sizeof *slots);
	if (!slots)
		return false;
	for (uint32_t id = 0; id < s->n; id++)
		*slot_of(slots, n, s->v[id].hash) = id + 1;
	free(s->slots);
	s->slots = slots;
	s->n_slots = n;
	return true;
}

static bool entries_grow(struct symbols *s)
{
	uint32_t cap = s->cap < 256 ? 256 : s->cap + s->cap / 2;
	struct symbol *v = realloc(s->v, cap * sizeof *v);
	if (!v)
		return false;
	s->v = v;
	s->cap = cap;
	return true;
}

errc symbols_intern(struct symbols *s, struct span text, uint32_t *id, struct err *err)
{
	if (text.n > SYMBOL_MAX_BYTES)
		return err_set(err, ERR_LIMIT, "block index: a label of %zu bytes", text.n);
	uint64_t h = XXH3_64bits_withSeed(text.p, text.n, s->seed);
	uint32_t hash = (uint32_t)(h ^ h >> 32);
	if (s->n_slots) {
		for (uint32_t i = hash & (s->n_slots - 1); s->slots[i]; i = (i + 1) & (s->n_slots - 1)) {
			const struct symbol *y = &s->v[s->slots[i] - 1];
			if (y->hash == hash && y->n == text.n && (text.n == 0 || memcmp(y->p, text.p, text.n) == 0)) {
				*id = s->slots[i] - 1;
				return OK;
			}
		}
	}
	/* at most 2/3 full */
	if (s->n >= s->n_slots / 3 * 2 && !slots_grow(s))
		return err_set(err, ERR_NOMEM, "block index: no memory for %u symbols", s->n);
	if (s->n == s->cap && !entries_grow(s))
		return err_set(err, ERR_NOMEM, "block index: no memory for %u symbols", s->n);
	struct span copy = s->borrows ? text : arena_dup(&s->text, text);
	if (!copy.p)
		return err_set(err, ERR_NOMEM, "block index: no memory for %u symbols of %zu bytes", s->n, s->text.used_bytes);
	s->v[s->n] = (struct symbol){copy.p, (uint32_t)copy.n, hash};
	*slot_of(s->slots, s->n_slots, hash) = s->n + 1;
	*id = s->n++;
	return OK;
}

/* ---- ranking: eight bytes at a time, of those strings that are equal so far ---- */

/* Digit `at` of a string: eight bytes, big-endian, padded with zeros; *n: how many of them there are. */
static uint64_t digit(struct span text, size_t at, uint32_t *n)
{
	uint8_t bytes[8] = {0};
	size_t left = text.n > at ? text.n - at : 0;
	*n = left < 8 ? (uint32_t)left : 8;
	if (left >= 8)
		return get_be64(text.p + at);
	if (left > 0)
		memcpy(bytes, text.p + at, left);
	return get_be64(bytes);
}

/* Of strings with one digit those that end in it come first, the shorter before the longer: there is at most one of each length. How many. */
static size_t ended_first(struct keyed *v, size_t n)
{
	size_t ended = 0;
	for (size_t i = 0; i < n; i++) {
		if (v[i].n == 8)
			continue;
		struct keyed x = v[i];
		size_t k = ended++;
		v[i] = v[k];
		for (; k > 0 && v[k - 1].n > x.n; k--)
			v[k] = v[k - 1];
		v[k] = x;
	}
	return ended;
}

/* Strings that are equal before `at`. The largest group that goes on being equal is this call's next turn, so calls nest no deeper than log2(n). */
static void rank(const struct symbols *s, struct keyed *v, size_t n, size_t at)
{
	while (n > 1) {
		for (size_t i = 0; i < n; i++) {
			if (i + 8 < n)
				__builtin_prefetch(symbols_text(s, v[i + 8].id).p + at);
			v[i].key = digit(symbols_text(s, v[i].id), at, &v[i].n);
		}
		keyed_sort(v, n);
		size_t most = 0, n_most = 1;
		at += 8;
		for (size_t from = 0, to; from < n; from = to) {
			for (to = from + 1; to < n && v[to].key == v[from].key;)
				to++;
			if (to - from == 1)
				continue;
			size_t first = from + ended_first(v + from, to - from), more = to - first;
			if (more > n_most) {
				rank(s, v + most, n_most, at);
				most = first;
				n_most = more;
			} else {
				rank(s, v + first, more, at);
			}
		}
		v += most;
		n = n_most;
	}
}

errc symbols_sort(const struct symbols *s, uint32_t **order, uint32_t **ranks, struct err *err)
{
	errc rc = OK;
	*order = NULL;
	*ranks = NULL;
	struct keyed *keys = malloc((s->n + (size_t)1) * sizeof *keys);
	uint32_t *o = malloc((s->n + (size_t)1) * sizeof *o), *r = malloc((s->n + (size_t)1) * sizeof *r);
	CHECK(keys && o && r, ERR_NOMEM, "block index: no memory to sort %u symbols", s->n);
	for (uint32_t id = 0; id < s->n; id++)
		keys[id].id = id;
	rank(s, keys, s->n, 0);
	for (uint32_t i = 0; i < s->n; i++) {
		o[i] = keys[i].id;
		r[keys[i].id] = i;
	}
	free(keys);
	*order = o;
	*ranks = r;
	return OK;
fail:
	free(keys);
	free(o);
	free(r);
	return rc;
}
