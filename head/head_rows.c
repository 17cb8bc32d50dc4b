/* head/head_rows.c - objects of a few sizes that come and go with series, in memory that can go back while some of them stay.
 *
 *     block (an eighth of what is held, 2 MiB at most, in huge pages then) = rows of 12 KiB = objects of one class
 *
 * A pool (head_pool.c) lives as long as its owner and gives everything back at once; series live for hours or for ever, and a head that
 * once had four million must not keep their memory when it has one. Series that come together mostly go together, and stand in the same rows: so whole rows come free.
 * Those in use are filled first.
 *
 * A row keeps its class for good, and a block its address: who holds the address of a series that is gone reads the `ref` of another one there, or zero, and never
 * another field.
 */
#include "head/head_int.h"

struct row {
	struct row *prev, *next; /* in its list */
	struct row_block *block;
	uint8_t *free;			/* linked by their second eight bytes */
	size_t object;			/* bytes */
	uint16_t n, used, fresh, class; /* objects; taken ones; from here on never used since its memory came */
	bool away;			/* its memory was given back */
};

struct row_block {
	uint8_t *at;
	size_t bytes;
	uint32_t n, made; /* rows, and how many of them have a class; there is one block at most in which not all have */
	uint32_t used;	  /* rows with objects */
	struct row rows[];
};

errc head_rows_init(struct head_rows *rs, uint32_t n_classes, _Atomic uint64_t *total, struct err *err)
{
	*rs = (struct head_rows){.n_classes = n_classes, .total = total, .room = calloc(2 * (size_t)n_classes, sizeof(struct row *))};
	return rs->room ? OK : err_set(err, ERR_NOMEM, "no memory for the head");
}

void head_rows_destroy(struct head_rows *rs)
{
	for (uint32_t i = 0; i < rs->n_blocks; i++) {
		struct row_block *b = rs->blocks[i];
		io_memory_free(b->at, b->bytes);
		free(b);
	}
	if (rs->total)
		atomic_fetch_sub_explicit(rs->total, rs->held_bytes, memory_order_relaxed);
	free(rs->blocks);
	free(rs->room);
	*rs = (struct head_rows){0};
}

static void held(struct head_rows *rs, size_t more, size_t less)
{
	rs->held_bytes += more - less;
	atomic_fetch_add_explicit(rs->total, more - less, memory_order_relaxed);
}

/* ---- the lists of a class: rows that have objects and room, and rows without objects ---- */

static struct row **list_of(struct head_rows *rs, const struct row *r)
{
	return &rs->room[2 * r->class + (r->used == 0)];
}

static void row_link(struct head_rows *rs, struct row *r)
{
	struct row **list = list_of(rs, r);
	r->prev = NULL;
	r->next = *list;
	if (r->next)
		r->next->prev = r;
	*list = r;
}

static void row_unlink(struct head_rows *rs, struct row *r)
{
	if (r->prev)
		r->prev->next = r->next;
	else
		*list_of(rs, r) = r->next;
	if (r->next)
		r->next->prev = r->prev;
}

static uint8_t *row_at(const struct row *r)
{
	return r->block->at + (size_t)(r - r->block->rows) * HEAD_ROW_BYTES;
}

/* ---- blocks ---- */

/* The number of blocks that begin at v or before it. */
static uint32_t blocks_before(const struct head_rows *rs, const uint8_t *v)
{
	uint32_t a = 0, b = rs->n_blocks;
	while (a < b) {
		uint32_t m = a + (b - a) / 2;
		if ((uintptr_t)rs->blocks[m]->at <= (uintptr_t)v)
			a = m + 1;
		else
			b = m;
	}
	return a;
}

static bool block_new(struct head_rows *rs)
{
	size_t bytes = rs->held_bytes / 8;
	bytes = bytes > IO_HUGE_BYTES / 2 ? IO_HUGE_BYTES : bytes / HEAD_ROW_BYTES * HEAD_ROW_BYTES;
	if (bytes < HEAD_ROW_BYTES)
		bytes = HEAD_ROW_BYTES;
	if (rs->n_blocks == rs->cap_blocks) {
		uint32_t cap = rs->cap_blocks ? 2 * rs->cap_blocks : 4;
		struct row_block **v = realloc(rs->blocks, cap * sizeof(struct row_block *));
		if (!v)
			return false;
		rs->blocks = v;
		rs->cap_blocks = cap;
	}
	uint32_t n = (uint32_t)(bytes / HEAD_ROW_BYTES);
	struct row_block *b = malloc(sizeof *b + n * sizeof *b->rows);
	uint8_t *at = b ? io_memory(bytes) : NULL;
	if (!at) {
		free(b);
		return false;
	}
	*b = (struct row_block){.at = at, .bytes = bytes, .n = n};
	uint32_t i = blocks_before(rs, at);
	memmove(rs->blocks + i + 1, rs->blocks + i, (rs->n_blocks - i) * sizeof(struct row_block *));
	rs->blocks[i] = b;
	rs->n_blocks++;
	rs->newest = b;
	held(rs, bytes, 0);
	return true;
}

static struct row *row_new(struct head_rows *rs, uint32_t class, size_t object)
{
	if ((!rs->newest || rs->newest->made == rs->newest->n) && !block_new(rs))
		return NULL;
	struct row_block *b = rs->newest;
	struct row *r = &b->rows[b->made++];
	*r = (struct row){.block = b, .object = object, .n = (uint16_t)(HEAD_ROW_BYTES / object), .class = (uint16_t) class};
	row_link(rs, r);
	return r;
}

/* ---- objects ---- */

void *head_rows_take(struct head_rows *rs, uint32_t class, size_t bytes)
{
	ASSERT(class < rs->n_classes && bytes >= 16 && bytes % 8 == 0 && bytes <= HEAD_ROW_BYTES);
	struct row *r = rs->room[2 * class];
	if (!r)
		r = rs->room[2 * class + 1];
	if (!r)
		r = row_new(rs, class, bytes);
	if (!r)
		return NULL;
	ASSERT(r->object == bytes);
	if (r->used == 0) {
		row_unlink(rs, r);
		if (r->away)
			held(rs, HEAD_ROW_BYTES, 0);
		r->away = false;
		r->used = 1;
		r->block->used++;
		if (r->used < r->n)
			row_link(rs, r);
	} else if (++r->used == r->n) {
		row_unlink(rs, r);
	}
	uint8_t *v = r->free;
	if (v)
		memcpy(&r->free, v + 8, sizeof r->free);
	else
		v = row_at(r) + bytes * r->fresh++;
	return v;
}

bool head_rows_free(struct head_rows *rs, void *p)
{
	uint8_t *v = p;
	uint32_t i = blocks_before(rs, v);
	struct row_block *b = i ? rs->blocks[i - 1] : NULL;
	if (!b || v >= b->at + b->bytes)
		return false;
	struct row *r = &b->rows[(size_t)(v - b->at) / HEAD_ROW_BYTES];
	ASSERT(r->used > 0 && (size_t)(v - row_at(r)) % r->object == 0);
	memcpy(v + 8, &r->free, sizeof r->free);
	r->free = v;
	bool full = r->used == r->n, last = r->used == 1;
	if (last && !full)
		row_unlink(rs, r);
	r->used--;
	if (full || last)
		row_link(rs, r);
	b->used -= last;
	return true;
}

/* ---- giving back ---- */

static void rows_drop(struct head_rows *rs, struct row_block *b, uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		struct row *r = &b->rows[i];
		if (!r->away)
			held(rs, 0, HEAD_ROW_BYTES);
		r->away = true;
		r->fresh = 0;
		r->free = NULL;
	}
}

bool head_rows_give_back(struct head_rows *rs, uint32_t *at)
{
	while (*at < rs->n_blocks) {
		struct row_block *b = rs->blocks[(*at)++];
		/* One in which half is in use keeps its huge page, and room for the next series. */
		if (b->made < b->n || b->used > b->n / 2)
			continue;
		for (uint32_t i = 0, to; i < b->n; i = to + 1) {
			for (to = i; to < b->n && b->rows[to].used == 0; to++)
				;
			if (to == i)
				continue;
			bool whole = to - i == b->n;
			if (!io_memory_drop(b->at + (size_t)i * HEAD_ROW_BYTES, whole ? b->bytes : (size_t)(to - i) * HEAD_ROW_BYTES))
				break;
			rows_drop(rs, b, i, to);
		}
		return true;
	}
	return false;
}
