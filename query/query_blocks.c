/* query/query_blocks.c - open blocks, kept between questions up to a bound of memory, used longest ago first out.
 *
 * A local directory and the bucket's copy of one block are two entries: the directory may be removed while the other is read. An entry that leaves the
 * table lives on in the questions that hold a reference.
 *
 * A directory's files are opened as they are read, so one that is being read must stay: readers pin it. Who wants to remove it asks first
 * (query_blocks_forget); from then on new readers are sent to the bucket, and when the last one has gone the answer is yes.
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "query/query_int.h"

enum { BUCKETS = 1024 };
#define OPEN_BLOCKS_MEMORY (64 * MIB)
#define OPEN_BLOCKS_MAX 10000
#define RANGES_PENDING 128 /* a transaction each would be a sync each */

struct entry {
	struct ulid ulid;
	bool local;
	uint32_t objects_crc; /* of the listing that it was opened by: another one may have brought tombstones */
	struct block *block;
	size_t memory;
	struct entry *next, *newer, *older;
};

/* A local directory that is read, or is about to be removed. */
struct pin {
	struct ulid ulid;
	uint32_t readers;
	bool closing;
	struct pin *next;
};

struct query_blocks {
	struct query *q;
	pthread_mutex_t mu; /* all below */
	struct entry *table[BUCKETS];
	struct pin *pins[BUCKETS];
	struct entry *newest, *oldest;
	size_t n, memory;
	struct catalog_ranges found[RANGES_PENDING]; /* of bucket blocks opened for the first time, not noted yet */
	size_t n_found;
	struct metric *open, *open_bytes, *opened;
};

static size_t slot(struct ulid u)
{
	return (size_t)(get_le64(u.b + 8) % BUCKETS);
}

static void unlink_entry(struct query_blocks *b, struct entry *e)
{
	struct entry **at = &b->table[slot(e->ulid)];
	while (*at != e)
		at = &(*at)->next;
	*at = e->next;
	*(e->newer ? &e->newer->older : &b->newest) = e->older;
	*(e->older ? &e->older->newer : &b->oldest) = e->newer;
	b->n--;
	b->memory -= e->memory;
	block_unref(e->block);
	free(e);
	metric_set(b->open, (double)b->n);
	metric_set(b->open_bytes, (double)b->memory);
}

static void to_front(struct query_blocks *b, struct entry *e)
{
	e->older = b->newest;
	e->newer = NULL;
	*(b->newest ? &b->newest->newer : &b->oldest) = e;
	b->newest = e;
}

static struct entry *find(struct query_blocks *b, struct ulid u, bool local)
{
	struct entry *e = b->table[slot(u)];
	while (e && !(ulid_eq(e->ulid, u) && e->local == local))
		e = e->next;
	return e;
}

static struct pin **pin_at(struct query_blocks *b, struct ulid u)
{
	struct pin **at = &b->pins[slot(u)];
	while (*at && !ulid_eq((*at)->ulid, u))
		at = &(*at)->next;
	return at;
}

/* The pin of a block, made when it is not there; NULL: no memory. */
static struct pin *pin_get(struct query_blocks *b, struct ulid u)
{
	struct pin **at = pin_at(b, u);
	if (!*at && (*at = calloc(1, sizeof **at)))
		(*at)->ulid = u;
	return *at;
}

static void pin_drop_unused(struct query_blocks *b, struct ulid u)
{
	struct pin **at = pin_at(b, u), *p = *at;
	if (p && p->readers == 0 && !p->closing) {
		*at = p->next;
		free(p);
	}
}

bool query_blocks_pin(struct query_blocks *b, struct ulid u)
{
	pthread_mutex_lock(&b->mu);
	struct pin *p = pin_get(b, u);
	bool ok = p && !p->closing;
	if (ok)
		p->readers++;
	pthread_mutex_unlock(&b->mu);
	return ok;
}

void query_blocks_unpin(struct query_blocks *b, struct ulid u)
{
	pthread_mutex_lock(&b->mu);
	struct pin *p = *pin_at(b, u);
	ASSERT(p && p->readers > 0);
	p->readers--;
	pin_drop_unused(b, u);
	pthread_mutex_unlock(&b->mu);
}

/* Keeps a newly opened block, unless another thread was first. Takes a reference of its own. */
static void keep(struct query_blocks *b, struct ulid u, bool local, uint32_t objects_crc, struct block *block)
{
	struct entry *e = calloc(1, sizeof *e);
	if (!e)
		return;
	pthread_mutex_lock(&b->mu);
	struct pin **pin = pin_at(b, u);
	if (find(b, u, local) || (local && *pin && (*pin)->closing)) {
		free(e);
	} else {
		*e = (struct entry){.ulid = u,
			.local = local,
			.objects_crc = objects_crc,
			.block = block_ref(block),
			.memory = block_memory(block),
			.next = b->table[slot(u)]};
		b->table[slot(u)] = e;
		to_front(b, e);
		b->n++;
		b->memory += e->memory;
		while (b->oldest != e && (b->memory > OPEN_BLOCKS_MEMORY || b->n > OPEN_BLOCKS_MAX))
			unlink_entry(b, b->oldest);
		metric_set(b->open, (double)b->n);
		metric_set(b->open_bytes, (double)b->memory);
	}
	pthread_mutex_unlock(&b->mu);
}

void query_blocks_note(struct query_blocks *b)
{
	struct catalog_ranges v[RANGES_PENDING];
	pthread_mutex_lock(&b->mu);
	size_t n = b->n_found;
	memcpy(v, b->found, n * sizeof *v);
	b->n_found = 0;
	pthread_mutex_unlock(&b->mu);
	/* Only a cache: the next opening finds them or not. */
	if (n > 0)
		(void)!catalog_set_ranges(b->q->cfg.catalog, v, n, NULL);
}

static errc open_one(struct query_blocks *b, const struct catalog_block *row, bool local, struct block **out, struct err *err)
{
	errc rc = OK;
	struct query *q = b->q;
	struct arena a;
	struct span json;
	struct block_meta meta;
	struct block_files *files = NULL;
	arena_init(&a, 4 * LIMIT_META_JSON_BYTES);
	if (local) {
		char *dir = arena_printf(&a, "%s/%s", q->cfg.block_dir, ulid_text(row->ulid).s);
		char *path = arena_printf(&a, "%s/%s/meta.json", q->cfg.block_dir, ulid_text(row->ulid).s);
		CHECK(dir && path, ERR_NOMEM, "no memory for a block");
		TRY(io_read_file(path, LIMIT_META_JSON_BYTES, &a, &json, err));
		TRY(block_meta_parse(path, json, &a, &meta, err));
		TRY(block_files_dir(dir, &files, err));
	} else {
		rc = catalog_meta_json(q->cfg.catalog, row->ulid, &a, &json, err);
		/* The catalog's damage, or its row went since it was planned (removed, or the catalog is made anew): the block is not to blame. */
		if (rc == ERR_CORRUPT || rc == ERR_NOTFOUND)
			rc = ERR_AGAIN;
		TRY(rc);
		TRY(block_meta_parse(ulid_text(row->ulid).s, json, &a, &meta, err));
		TRY(bucket_files_open(q, row, &files, err));
	}
	/* block_open takes the files over, also when it fails. */
	TRY(block_open(files, &meta, row->has_ranges ? &row->ranges : NULL, out, err));
	metric_add(b->opened, 1);
	if (row->in_bucket && !row->has_ranges) {
		struct block_index_ranges r;
		block_ranges(*out, &r);
		pthread_mutex_lock(&b->mu);
		if (b->n_found < RANGES_PENDING)
			b->found[b->n_found++] = (struct catalog_ranges){row->ulid, r};
		bool full = b->n_found == RANGES_PENDING;
		pthread_mutex_unlock(&b->mu);
		if (full)
			query_blocks_note(b);
	}
fail:
	arena_free(&a);
	return rc;
}

errc query_blocks_get(struct query_blocks *b, const struct catalog_block *row, bool local, struct block **out, struct err *err)
{
	uint32_t objects_crc = local ? 0 : crc32c(0, row->objects.p, row->objects.n);
	pthread_mutex_lock(&b->mu);
	struct entry *e = find(b, row->ulid, local);
	if (e && e->objects_crc != objects_crc) {
		unlink_entry(b, e);
		e = NULL;
	}
	*out = e ? block_ref(e->block) : NULL;
	if (e) {
		*(e->newer ? &e->newer->older : &b->newest) = e->older;
		*(e->older ? &e->older->newer : &b->oldest) = e->newer;
		to_front(b, e);
	}
	pthread_mutex_unlock(&b->mu);
	if (*out)
		return OK;
	errc rc = open_one(b, row, local, out, err);
	if (rc == OK)
		keep(b, row->ulid, local, objects_crc, *out);
	return rc;
}

void query_blocks_drop(struct query_blocks *b, struct ulid u)
{
	pthread_mutex_lock(&b->mu);
	for (int local = 0; local < 2; local++) {
		struct entry *e = find(b, u, local);
		if (e)
			unlink_entry(b, e);
	}
	pthread_mutex_unlock(&b->mu);
}

bool query_blocks_forget(struct query_blocks *b, struct ulid u)
{
	pthread_mutex_lock(&b->mu);
	struct entry *e = find(b, u, true);
	struct pin *p = pin_get(b, u);
	if (e)
		unlink_entry(b, e);
	if (p)
		p->closing = true;
	bool unread = p && p->readers == 0;
	pthread_mutex_unlock(&b->mu);
	return unread;
}

void query_blocks_removed(struct query_blocks *b, struct ulid u)
{
	pthread_mutex_lock(&b->mu);
	struct pin *p = *pin_at(b, u);
	if (p)
		p->closing = false;
	pin_drop_unused(b, u);
	pthread_mutex_unlock(&b->mu);
}

errc query_blocks_open(struct query *q, struct query_blocks **out, struct err *err)
{
	struct query_blocks *b = calloc(1, sizeof *b);
	if (!b)
		return err_set(err, ERR_NOMEM, "no memory for open blocks");
	b->q = q;
	pthread_mutex_init(&b->mu, NULL);
	b->open = metric_gauge("varve_query_open_blocks", "Blocks held open for reads");
	b->open_bytes = metric_gauge("varve_query_open_blocks_bytes", "Memory of blocks held open for reads");
	b->opened = metric_counter("varve_query_blocks_opened_total", "Blocks opened for reads");
	*out = b;
	return OK;
}

void query_blocks_close(struct query_blocks *b)
{
	if (!b)
		return;
	while (b->oldest)
		unlink_entry(b, b->oldest);
	for (size_t i = 0; i < BUCKETS; i++)
		while (b->pins[i]) {
			struct pin *next = b->pins[i]->next;
			free(b->pins[i]);
			b->pins[i] = next;
		}
	pthread_mutex_destroy(&b->mu);
	free(b);
}
