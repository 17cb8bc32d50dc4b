/* tests/support/sim_disk.c - the two images of the simulated disk, and what a power cut makes of them.
 *
 * Files: an image is a table of shared pages. A write copies the page when another image has it too, so a durable image, a tape's
 * beginning and a thousand crash states cost what differs. A sync moves the dirty pages over. A crash takes, per dirty page, the durable
 * or the cached version (or a mixture by sectors); pages that a failed sync lost are not dirty any more, and so never arrive.
 *
 * Directories: changes wait in one ordered list. fsync of a directory takes out the changes it owns, and before them every earlier
 * change of the same names, so names never go back in time. A crash keeps any subset that respects the same rule: a change is lost
 * when an earlier change of one of its names was lost.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include "tests/support/fail_alloc.h"
#include "tests/support/sim_int.h"

struct page {
	_Atomic int refs;
	uint8_t b[PAGE];
};

void *xalloc(size_t n)
{
	fail_alloc_pause();
	void *p = calloc(1, n ? n : 1);
	fail_alloc_resume();
	if (!p) {
		fprintf(stderr, "sim: out of memory\n");
		abort();
	}
	return p;
}

void *xgrow(void *v, size_t n, size_t *cap, size_t size)
{
	if (n < *cap)
		return v;
	size_t want = *cap ? *cap * 2 : 16;
	while (want <= n)
		want *= 2;
	char *p = xalloc(want * size);
	if (*cap)
		memcpy(p, v, *cap * size);
	free(v);
	*cap = want;
	return p;
}

char *xcopy(const char *s)
{
	size_t n = strlen(s) + 1;
	return memcpy(xalloc(n), s, n);
}

uint64_t sim_random_next(uint64_t *state)
{
	/* splitmix64 */
	uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* ---- pages and images ---- */

static struct page *page_ref(struct page *p)
{
	if (p)
		atomic_fetch_add(&p->refs, 1);
	return p;
}

static void page_unref(struct page *p)
{
	if (p && atomic_fetch_sub(&p->refs, 1) == 1)
		free(p);
}

/* A page that belongs to this slot alone, zeroed when there was none. */
static struct page *page_own(struct page **slot)
{
	struct page *p = *slot;
	if (p && atomic_load(&p->refs) == 1)
		return p;
	struct page *mine = xalloc(sizeof *mine);
	atomic_init(&mine->refs, 1);
	if (p)
		memcpy(mine->b, p->b, PAGE);
	page_unref(p);
	*slot = mine;
	return mine;
}

static void image_free(struct image *m)
{
	for (size_t i = 0; i < m->n; i++)
		page_unref(m->v[i]);
	free(m->v);
	*m = (struct image){0};
}

static struct image image_clone(const struct image *m)
{
	struct image c = {.n = m->n, .size = m->size, .v = xalloc(m->n * sizeof(struct page *))};
	for (size_t i = 0; i < m->n; i++)
		c.v[i] = page_ref(m->v[i]);
	return c;
}

static void image_room(struct image *m, size_t n)
{
	if (n <= m->n)
		return;
	size_t want = m->n * 2 > n ? m->n * 2 : n;
	struct page **v = xalloc(want * sizeof(struct page *));
	if (m->n)
		memcpy(v, m->v, m->n * sizeof(struct page *));
	free(m->v);
	m->v = v;
	m->n = want;
}

static const uint8_t *image_page(const struct image *m, size_t i)
{
	static const uint8_t zeros[PAGE];
	return i < m->n && m->v[i] ? m->v[i]->b : zeros;
}

static void image_set(struct image *m, size_t i, struct page *p)
{
	if (i >= m->n && !p)
		return;
	image_room(m, i + 1);
	page_ref(p);
	page_unref(m->v[i]);
	m->v[i] = p;
}

/* Bytes behind the size read as zeros when the file grows again. */
static void image_cut(struct image *m, uint64_t size)
{
	size_t last = (size_t)(size / PAGE), in_page = (size_t)(size % PAGE);
	for (size_t i = last + (in_page > 0); i < m->n; i++)
		image_set(m, i, NULL);
	if (in_page && last < m->n && m->v[last])
		memset(page_own(&m->v[last])->b + in_page, 0, PAGE - in_page);
	m->size = size;
}

/* ---- files ---- */

static void mark_dirty(struct inode *f, size_t page)
{
	image_room(&f->cached, page + 1);
	if (!f->is_dirty)
		f->cap_dirty = 0;
	if (page >= f->cap_dirty)
		f->is_dirty = xgrow(f->is_dirty, page, &f->cap_dirty, 1);
	if (f->is_dirty[page])
		return;
	f->is_dirty[page] = 1;
	size_t cap = f->n_dirty;
	/* The list doubles whenever its length is a power of two. */
	if ((cap & (cap - 1)) == 0) {
		size_t *v = xalloc((cap ? cap * 2 : 1) * sizeof *v);
		if (cap)
			memcpy(v, f->dirty, cap * sizeof *v);
		free(f->dirty);
		f->dirty = v;
	}
	f->dirty[f->n_dirty++] = page;
}

static void clear_dirty(struct inode *f)
{
	for (size_t i = 0; i < f->n_dirty; i++)
		f->is_dirty[f->dirty[i]] = 0;
	f->n_dirty = 0;
	free(f->dirty);
	f->dirty = NULL;
	f->size_dirty = false;
}

uint64_t disk_file_pages(const struct inode *f)
{
	uint64_t end = f->cached.size > f->allocated ? f->cached.size : f->allocated;
	return f->is_dir ? 0 : (end + PAGE - 1) / PAGE;
}

static void file_write(struct inode *f, const uint8_t *p, size_t n, uint64_t off)
{
	for (size_t done = 0; done < n;) {
		size_t page = (size_t)((off + done) / PAGE), in_page = (size_t)((off + done) % PAGE);
		size_t part = PAGE - in_page < n - done ? PAGE - in_page : n - done;
		mark_dirty(f, page);
		memcpy(page_own(&f->cached.v[page])->b + in_page, p + done, part);
		done += part;
	}
	if (n > 0 && off + n > f->cached.size) {
		f->cached.size = off + n;
		f->size_dirty = true;
	}
}

static void file_truncate(struct inode *f, uint64_t size)
{
	if (size < f->cached.size) {
		size_t end = (size_t)((f->cached.size + PAGE - 1) / PAGE);
		for (size_t i = (size_t)(size / PAGE); i < end && i < f->cached.n; i++)
			mark_dirty(f, i);
		image_cut(&f->cached, size);
		f->allocated = 0;
	}
	f->size_dirty |= size != f->cached.size || size != f->durable.size;
	f->cached.size = size;
}

static void file_sync(struct inode *f, bool lost)
{
	if (!lost) {
		for (size_t i = 0; i < f->n_dirty; i++)
			image_set(&f->durable, f->dirty[i], f->dirty[i] < f->cached.n ? f->cached.v[f->dirty[i]] : NULL);
		f->durable.size = f->cached.size;
	}
	f->has_lost |= lost && (f->n_dirty > 0 || f->size_dirty);
	clear_dirty(f);
}

size_t disk_read(const struct inode *f, void *out, size_t n, uint64_t off)
{
	if (off >= f->cached.size)
		return 0;
	if (n > f->cached.size - off)
		n = (size_t)(f->cached.size - off);
	for (size_t done = 0; done < n;) {
		size_t page = (size_t)((off + done) / PAGE), in_page = (size_t)((off + done) % PAGE);
		size_t part = PAGE - in_page < n - done ? PAGE - in_page : n - done;
		memcpy((uint8_t *)out + done, image_page(&f->cached, page) + in_page, part);
		done += part;
	}
	return n;
}

bool disk_flip(struct inode *f, uint64_t off, uint8_t mask)
{
	if (f->is_dir || off >= f->cached.size)
		return false;
	size_t page = (size_t)(off / PAGE), at = (size_t)(off % PAGE);
	image_room(&f->cached, page + 1);
	page_own(&f->cached.v[page])->b[at] ^= mask;
	if (off < f->durable.size) {
		image_room(&f->durable, page + 1);
		page_own(&f->durable.v[page])->b[at] ^= mask;
	}
	return true;
}

/* ---- directories ---- */

static struct entry *entries_find(const struct entries *e, const char *name)
{
	for (size_t i = 0; i < e->n; i++)
		if (strcmp(e->v[i].name, name) == 0)
			return &e->v[i];
	return NULL;
}

static void entries_set(struct entries *e, const char *name, uint32_t ino)
{
	struct entry *at = entries_find(e, name);
	if (at && ino != NO_INODE) {
		at->ino = ino;
	} else if (at) {
		free(at->name);
		memmove(at, at + 1, (size_t)(e->v + e->n - (at + 1)) * sizeof *at);
		e->n--;
	} else if (ino != NO_INODE) {
		if ((e->n & (e->n - 1)) == 0) {
			struct entry *v = xalloc((e->n ? e->n * 2 : 1) * sizeof *v);
			if (e->n)
				memcpy(v, e->v, e->n * sizeof *v);
			free(e->v);
			e->v = v;
		}
		e->v[e->n++] = (struct entry){xcopy(name), ino};
	}
}

static void entries_free(struct entries *e)
{
	for (size_t i = 0; i < e->n; i++)
		free(e->v[i].name);
	free(e->v);
	*e = (struct entries){0};
}

static struct entries entries_clone(const struct entries *e)
{
	struct entries c = {0};
	for (size_t i = 0; i < e->n; i++)
		entries_set(&c, e->v[i].name, e->v[i].ino);
	return c;
}

uint32_t disk_lookup(const struct disk *d, uint32_t dir, const char *name)
{
	const struct entry *e = entries_find(&d->v[dir].now, name);
	return e ? e->ino : NO_INODE;
}

unsigned disk_links(const struct disk *d, uint32_t ino)
{
	unsigned n = 0;
	for (uint32_t i = 0; i < d->n; i++)
		for (size_t k = 0; k < d->v[i].now.n; k++)
			n += d->v[i].now.v[k].ino == ino;
	return n;
}

static void change_free(struct change *c)
{
	for (int i = 0; i < c->n_slots; i++)
		free(c->slot[i].name);
}

static void change_add(struct disk *d, struct change c)
{
	for (int i = 0; i < c.n_slots; i++) {
		entries_set(&d->v[c.slot[i].dir].now, c.slot[i].name, c.slot[i].ino);
		c.slot[i].name = xcopy(c.slot[i].name);
	}
	d->pending = xgrow(d->pending, d->n_pending, &d->cap_pending, sizeof *d->pending);
	d->pending[d->n_pending++] = c;
}

static bool share_a_name(const struct change *a, const struct change *b)
{
	for (int i = 0; i < a->n_slots; i++)
		for (int k = 0; k < b->n_slots; k++)
			if (a->slot[i].dir == b->slot[k].dir && strcmp(a->slot[i].name, b->slot[k].name) == 0)
				return true;
	return false;
}

/* Makes the chosen changes durable, in order, and takes them off the list. */
static void changes_apply(struct disk *d, const bool *chosen)
{
	size_t kept = 0;
	for (size_t i = 0; i < d->n_pending; i++) {
		struct change *c = &d->pending[i];
		if (!chosen[i]) {
			d->pending[kept++] = *c;
			continue;
		}
		for (int k = 0; k < c->n_slots; k++)
			entries_set(&d->v[c->slot[k].dir].synced, c->slot[k].name, c->slot[k].ino);
		change_free(c);
	}
	d->n_pending = kept;
}

static void dir_sync(struct disk *d, uint32_t dir)
{
	bool *chosen = xalloc(d->n_pending);
	for (size_t i = d->n_pending; i-- > 0;) {
		chosen[i] = d->pending[i].owner == dir;
		for (size_t k = i + 1; k < d->n_pending && !chosen[i]; k++)
			chosen[i] = chosen[k] && share_a_name(&d->pending[i], &d->pending[k]);
	}
	changes_apply(d, chosen);
	free(chosen);
}

/* ---- the disk ---- */

static uint32_t inode_new(struct disk *d, bool is_dir)
{
	if ((d->n & (d->n - 1)) == 0) {
		struct inode *v = xalloc((d->n ? d->n * 2 : 1) * sizeof *v);
		if (d->n)
			memcpy(v, d->v, d->n * sizeof *v);
		free(d->v);
		d->v = v;
	}
	d->v[d->n] = (struct inode){.is_dir = is_dir};
	return d->n++;
}

struct disk *disk_new(void)
{
	struct disk *d = xalloc(sizeof *d);
	inode_new(d, true);
	return d;
}

static void inode_empty(struct inode *f)
{
	image_free(&f->cached);
	image_free(&f->durable);
	free(f->dirty);
	free(f->is_dirty);
	f->dirty = NULL;
	f->is_dirty = NULL;
	f->n_dirty = f->cap_dirty = 0;
	f->size_dirty = false;
	f->allocated = 0;
	entries_free(&f->now);
	entries_free(&f->synced);
}

void disk_free(struct disk *d)
{
	if (!d)
		return;
	for (uint32_t i = 0; i < d->n; i++)
		inode_empty(&d->v[i]);
	for (size_t i = 0; i < d->n_pending; i++)
		change_free(&d->pending[i]);
	free(d->pending);
	free(d->v);
	free(d);
}

struct disk *disk_clone(const struct disk *d)
{
	struct disk *c = xalloc(sizeof *c);
	c->used_pages = d->used_pages;
	for (uint32_t i = 0; i < d->n; i++) {
		const struct inode *from = &d->v[i];
		inode_new(c, from->is_dir);
		struct inode *to = &c->v[i];
		to->cached = image_clone(&from->cached);
		to->durable = image_clone(&from->durable);
		for (size_t k = 0; k < from->n_dirty; k++)
			mark_dirty(to, from->dirty[k]);
		to->size_dirty = from->size_dirty;
		to->has_lost = from->has_lost;
		to->allocated = from->allocated;
		to->mtime_ms = from->mtime_ms;
		to->now = entries_clone(&from->now);
		to->synced = entries_clone(&from->synced);
	}
	for (size_t i = 0; i < d->n_pending; i++) {
		struct change ch = d->pending[i];
		for (int k = 0; k < ch.n_slots; k++)
			ch.slot[k].name = xcopy(ch.slot[k].name);
		c->pending = xgrow(c->pending, c->n_pending, &c->cap_pending, sizeof *c->pending);
		c->pending[c->n_pending++] = ch;
	}
	return c;
}

void disk_do(struct disk *d, const struct op *op)
{
	uint64_t before = op->ino < d->n ? disk_file_pages(&d->v[op->ino]) : 0;
	switch (op->kind) {
	case OP_CREATE:
	case OP_MKDIR: {
		uint32_t ino = inode_new(d, op->kind == OP_MKDIR);
		ASSERT(ino == op->ino);
		change_add(d, (struct change){.owner = op->dir[0], .n_slots = 1, .slot = {{op->dir[0], op->name[0], ino}}});
		return;
	}
	case OP_WRITE:
		file_write(&d->v[op->ino], op->data, (size_t)op->n, op->off);
		break;
	case OP_TRUNCATE:
		file_truncate(&d->v[op->ino], op->n);
		break;
	case OP_ALLOCATE: {
		struct inode *f = &d->v[op->ino];
		uint64_t end = op->off + op->n;
		if (end > f->allocated)
			f->allocated = end;
		if (end > f->cached.size) {
			f->cached.size = end;
			f->size_dirty = true;
		}
		break;
	}
	case OP_SYNC:
		if (!d->v[op->ino].is_dir)
			file_sync(&d->v[op->ino], op->lost);
		else if (!op->lost)
			dir_sync(d, op->ino);
		break;
	case OP_RENAME: {
		uint32_t moved = disk_lookup(d, op->dir[0], op->name[0]);
		change_add(d,
			(struct change){
				.owner = op->dir[1], .n_slots = 2, .slot = {{op->dir[0], op->name[0], NO_INODE}, {op->dir[1], op->name[1], moved}}});
		return;
	}
	case OP_LINK:
		change_add(d, (struct change){.owner = op->dir[1], .n_slots = 1, .slot = {{op->dir[1], op->name[1], op->ino}}});
		return;
	case OP_UNLINK:
	case OP_RMDIR:
		change_add(d, (struct change){.owner = op->dir[0], .n_slots = 1, .slot = {{op->dir[0], op->name[0], NO_INODE}}});
		return;
	}
	d->used_pages += disk_file_pages(&d->v[op->ino]) - before;
}

/* ---- the power cut ---- */

static int by_index(const void *a, const void *b)
{
	size_t x = *(const size_t *)a, y = *(const size_t *)b;
	return (x > y) - (x < y);
}

static void crash_page(struct inode *f, size_t i, enum sim_loss loss, uint64_t *random)
{
	const uint8_t *old = image_page(&f->durable, i), *new = image_page(&f->cached, i);
	size_t unit = loss == SIM_TEAR_SECTORS ? SECTOR : PAGE;
	image_room(&f->durable, i + 1);
	struct page *mix = xalloc(sizeof *mix);
	atomic_init(&mix->refs, 1);
	for (size_t at = 0; at < PAGE; at += unit)
		memcpy(mix->b + at, (sim_random_next(random) & 1 ? new : old) + at, unit);
	page_unref(f->durable.v[i]);
	f->durable.v[i] = mix;
}

static void crash_file(struct inode *f, enum sim_loss loss, uint64_t *random)
{
	bool keep_data = loss == SIM_KEEP_ALL || loss == SIM_DROP_ENTRIES;
	bool tear = loss == SIM_TEAR_SECTORS || loss == SIM_TEAR_PAGES;
	if (f->n_dirty == 0 && !f->size_dirty && !f->has_lost)
		return;
	if (f->n_dirty > 1)
		qsort(f->dirty, f->n_dirty, sizeof *f->dirty, by_index);
	for (size_t i = 0; i < f->n_dirty; i++) {
		if (keep_data)
			image_set(&f->durable, f->dirty[i], f->cached.v[f->dirty[i]]);
		else if (tear)
			crash_page(f, f->dirty[i], loss, random);
	}
	bool keep_size = keep_data || loss == SIM_GROW_ZEROS || (tear && (sim_random_next(random) & 1));
	if (f->size_dirty && keep_size)
		f->durable.size = f->cached.size;
	image_cut(&f->durable, f->durable.size);
	clear_dirty(f);
	f->has_lost = false;
	image_free(&f->cached);
	f->cached = image_clone(&f->durable);
	if (f->allocated > f->cached.size)
		f->allocated = f->cached.size;
}

static void crash_names(struct disk *d, enum sim_loss loss, uint64_t *random)
{
	bool keep_all = loss == SIM_KEEP_ALL || loss == SIM_ENTRIES_FIRST || loss == SIM_GROW_ZEROS;
	bool tear = loss == SIM_TEAR_SECTORS || loss == SIM_TEAR_PAGES;
	bool *chosen = xalloc(d->n_pending);
	for (size_t i = 0; i < d->n_pending; i++) {
		chosen[i] = keep_all || (tear && (sim_random_next(random) & 1));
		for (size_t k = 0; k < i && chosen[i]; k++)
			chosen[i] = chosen[k] || !share_a_name(&d->pending[k], &d->pending[i]);
	}
	changes_apply(d, chosen);
	free(chosen);
	for (size_t i = 0; i < d->n_pending; i++)
		change_free(&d->pending[i]);
	d->n_pending = 0;
	for (uint32_t i = 0; i < d->n; i++) {
		entries_free(&d->v[i].now);
		d->v[i].now = entries_clone(&d->v[i].synced);
	}
}

void disk_crash(struct disk *d, enum sim_loss loss, uint64_t seed)
{
	uint64_t random = seed ^ ((uint64_t)loss << 56);
	for (uint32_t i = 0; i < d->n; i++)
		if (!d->v[i].is_dir)
			crash_file(&d->v[i], loss, &random);
	crash_names(d, loss, &random);
	disk_collect(d, NULL);
}

void disk_settle(struct disk *d)
{
	for (uint32_t i = 0; i < d->n; i++)
		if (!d->v[i].is_dir)
			file_sync(&d->v[i], false);
	bool *all = xalloc(d->n_pending);
	memset(all, 1, d->n_pending);
	changes_apply(d, all);
	free(all);
}

static void reach(const struct disk *d, uint32_t ino, bool *seen)
{
	if (seen[ino])
		return;
	seen[ino] = true;
	const struct inode *f = &d->v[ino];
	for (size_t i = 0; i < f->now.n; i++)
		reach(d, f->now.v[i].ino, seen);
	for (size_t i = 0; i < f->synced.n; i++)
		reach(d, f->synced.v[i].ino, seen);
}

void disk_collect(struct disk *d, const bool *open)
{
	bool *seen = xalloc(d->n);
	reach(d, 0, seen);
	for (size_t i = 0; i < d->n_pending; i++)
		for (int k = 0; k < d->pending[i].n_slots; k++)
			if (d->pending[i].slot[k].ino != NO_INODE)
				reach(d, d->pending[i].slot[k].ino, seen);
	for (uint32_t i = 0; i < d->n; i++)
		if (!seen[i] && !(open && open[i]))
			inode_empty(&d->v[i]);
	free(seen);
	disk_account(d, open);
}

void disk_account(struct disk *d, const bool *open)
{
	bool *named = xalloc(d->n);
	for (uint32_t i = 0; i < d->n; i++)
		for (size_t k = 0; k < d->v[i].now.n; k++)
			named[d->v[i].now.v[k].ino] = true;
	d->used_pages = 0;
	for (uint32_t i = 0; i < d->n; i++)
		if (named[i] || (open && open[i]))
			d->used_pages += disk_file_pages(&d->v[i]);
	free(named);
}
