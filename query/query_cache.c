/* query/query_cache.c - pages of bucket indexes on local disk, bounded, kept over restarts.
 *
 *     <dir>/<ULID>.index   sparse: page i of 16 KiB at i * 16 KiB, as in the object
 *     <dir>/<ULID>.map     8 bytes a page: u32 LE CRC-32C of the page, u32 LE 0x76617276 when it is there
 *
 * A page is believed only when its CRC is the one in the map, so nothing needs to be synced: after a crash a torn page is fetched again. A
 * block's index never changes under its ULID. What was used longest ago goes first, whole blocks at a time; while everything is in use, pages
 * that do not fit are not kept. Without space on the disk, or with a directory that can't be written, reads go past the cache.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include "base/io.h"
#include "base/log.h"
#include "query/query_int.h"

enum { PAGE = 16384, MAP_ENTRY = 8, RUN_PAGES_MAX = 256, BUCKETS = 4096 };
#define MAP_PRESENT UINT32_C(0x76617276)

struct cached {
	struct ulid ulid;
	struct cached *next;	      /* hash chain */
	struct cached *newer, *older; /* use order */
	uint32_t refs;		      /* guarded by the cache's mu */
	bool doomed;
	pthread_mutex_t mu; /* the fields below */
	uint64_t size;	    /* of the object; 0 = map not read yet */
	uint64_t pages_held;
	int fd, map_fd;
	uint32_t *crc;	  /* per page */
	uint8_t *present; /* per page */
};

struct query_cache {
	char *dir;
	uint64_t max_bytes;
	pthread_mutex_t mu; /* table, order, refs, held */
	struct cached *table[BUCKETS];
	struct cached *newest, *oldest;
	atomic_uint_fast64_t held_bytes;
	struct metric *hits, *misses, *evicted, *bytes;
};

static size_t slot(struct ulid u)
{
	return (size_t)(get_le64(u.b + 8) % BUCKETS);
}

static void path_of(const struct query_cache *c, struct ulid u, const char *suffix, char *out, size_t n)
{
	snprintf(out, n, "%s/%s.%s", c->dir, ulid_text(u).s, suffix);
}

/* ---- the table; mu held ---- */

static void order_remove(struct query_cache *c, struct cached *e)
{
	*(e->newer ? &e->newer->older : &c->newest) = e->older;
	*(e->older ? &e->older->newer : &c->oldest) = e->newer;
	e->newer = e->older = NULL;
}

static void order_front(struct query_cache *c, struct cached *e)
{
	e->older = c->newest;
	e->newer = NULL;
	*(c->newest ? &c->newest->newer : &c->oldest) = e;
	c->newest = e;
}

static struct cached *find(struct query_cache *c, struct ulid u)
{
	struct cached *e = c->table[slot(u)];
	while (e && !ulid_eq(e->ulid, u))
		e = e->next;
	return e;
}

static struct cached *add(struct query_cache *c, struct ulid u)
{
	struct cached *e = calloc(1, sizeof *e);
	if (!e)
		return NULL;
	e->ulid = u;
	e->fd = e->map_fd = -1;
	pthread_mutex_init(&e->mu, NULL);
	e->next = c->table[slot(u)];
	c->table[slot(u)] = e;
	order_front(c, e);
	return e;
}

static void close_files(struct cached *e)
{
	io_close(e->fd);
	io_close(e->map_fd);
	e->fd = e->map_fd = -1;
}

/* Takes the entry out of the table; the files go with it. No references left. */
static void destroy(struct query_cache *c, struct cached *e, bool remove_files)
{
	struct cached **at = &c->table[slot(e->ulid)];
	while (*at != e)
		at = &(*at)->next;
	*at = e->next;
	order_remove(c, e);
	close_files(e);
	if (remove_files) {
		char path[4096];
		atomic_fetch_sub(&c->held_bytes, e->pages_held * PAGE);
		path_of(c, e->ulid, "index", path, sizeof path);
		(void)!io_unlink(path, NULL);
		path_of(c, e->ulid, "map", path, sizeof path);
		(void)!io_unlink(path, NULL);
	}
	pthread_mutex_destroy(&e->mu);
	free(e->crc);
	free(e->present);
	free(e);
}

/* Until `more` bytes fit, or nothing is left that nobody reads. */
static void evict(struct query_cache *c, uint64_t more)
{
	struct cached *e = c->oldest;
	while (e && atomic_load(&c->held_bytes) + more > c->max_bytes) {
		struct cached *newer = e->newer;
		if (e->refs == 0) {
			metric_add(c->evicted, 1);
			destroy(c, e, true);
		}
		e = newer;
	}
	metric_set(c->bytes, (double)atomic_load(&c->held_bytes));
}

static struct cached *take(struct query_cache *c, struct ulid u)
{
	pthread_mutex_lock(&c->mu);
	struct cached *e = find(c, u);
	if (!e)
		e = add(c, u);
	if (e) {
		e->refs++;
		order_remove(c, e);
		order_front(c, e);
	}
	pthread_mutex_unlock(&c->mu);
	return e;
}

static void give(struct query_cache *c, struct cached *e)
{
	pthread_mutex_lock(&c->mu);
	if (--e->refs == 0) {
		close_files(e);
		if (e->doomed)
			destroy(c, e, true);
	}
	evict(c, 0);
	pthread_mutex_unlock(&c->mu);
}

/* ---- one block's files; e->mu held ---- */

/* Lock order: an entry's mu, then the cache's; nobody takes the entry's while holding the cache's. */
static bool room_for_page(struct query_cache *c)
{
	if (atomic_load(&c->held_bytes) + PAGE <= c->max_bytes)
		return true;
	pthread_mutex_lock(&c->mu);
	evict(c, PAGE);
	pthread_mutex_unlock(&c->mu);
	return atomic_load(&c->held_bytes) + PAGE <= c->max_bytes;
}

static size_t map_count(const uint8_t *map, size_t bytes)
{
	size_t n = 0;
	for (size_t i = 0; i + MAP_ENTRY <= bytes; i += MAP_ENTRY)
		n += get_le32(map + i + 4) == MAP_PRESENT;
	return n;
}

static void read_map(struct query_cache *c, struct cached *e, size_t pages)
{
	uint8_t *map = malloc(pages * MAP_ENTRY);
	size_t got = 0;
	if (!map || io_pread(e->map_fd, map, pages * MAP_ENTRY, 0, &got, NULL) != OK)
		got = 0;
	/* Counted at start already, when this process did not write it. */
	atomic_fetch_sub(&c->held_bytes, e->pages_held * PAGE);
	e->pages_held = 0;
	for (size_t i = 0; i < got / MAP_ENTRY; i++)
		if (get_le32(map + i * MAP_ENTRY + 4) == MAP_PRESENT) {
			e->crc[i] = get_le32(map + i * MAP_ENTRY);
			e->present[i] = 1;
			e->pages_held++;
		}
	free(map);
	atomic_fetch_add(&c->held_bytes, e->pages_held * PAGE);
}

/* Files are open while somebody reads, so that ten thousand blocks cost no descriptors. false: reads go past the cache (disk full, say). */
static bool open_files(struct query_cache *c, struct cached *e, uint64_t size)
{
	if (e->fd >= 0)
		return e->size == size;
	if (e->size != 0 && e->size != size)
		return false;
	char path[4096];
	path_of(c, e->ulid, "index", path, sizeof path);
	if (io_open(path, IO_READ | IO_WRITE | IO_CREATE, &e->fd, NULL) != OK)
		return false;
	path_of(c, e->ulid, "map", path, sizeof path);
	if (io_open(path, IO_READ | IO_WRITE | IO_CREATE, &e->map_fd, NULL) != OK) {
		close_files(e);
		return false;
	}
	if (e->size != 0)
		return true;
	size_t pages = (size_t)((size + PAGE - 1) / PAGE);
	e->crc = calloc(pages, sizeof *e->crc);
	e->present = calloc(pages, 1);
	if (!e->crc || !e->present) {
		free(e->crc);
		free(e->present);
		e->crc = NULL;
		e->present = NULL;
		close_files(e);
		return false;
	}
	e->size = size;
	read_map(c, e, pages);
	return true;
}

static size_t page_bytes(uint64_t size, size_t page)
{
	uint64_t left = size - (uint64_t)page * PAGE;
	return left < PAGE ? (size_t)left : PAGE;
}

/* A page from disk into buf; false: it must be fetched. */
static bool page_read(struct query_cache *c, struct cached *e, size_t page, uint8_t *buf)
{
	if (!e->present[page])
		return false;
	size_t n = page_bytes(e->size, page), got;
	if (io_pread(e->fd, buf, n, (uint64_t)page * PAGE, &got, NULL) == OK && got == n && crc32c(0, buf, n) == e->crc[page])
		return true;
	e->present[page] = 0;
	e->pages_held--;
	atomic_fetch_sub(&c->held_bytes, PAGE);
	return false;
}

/* Best effort: a page that can't be written is fetched again next time. */
static void page_write(struct query_cache *c, struct cached *e, size_t page, const uint8_t *buf)
{
	size_t n = page_bytes(e->size, page);
	uint8_t entry[MAP_ENTRY];
	if (e->present[page] || !room_for_page(c) || io_pwrite(e->fd, buf, n, (uint64_t)page * PAGE, NULL) != OK)
		return;
	e->crc[page] = crc32c(0, buf, n);
	put_le32(entry, e->crc[page]);
	put_le32(entry + 4, MAP_PRESENT);
	if (io_pwrite(e->map_fd, entry, sizeof entry, (uint64_t)page * MAP_ENTRY, NULL) != OK)
		return;
	e->present[page] = 1;
	e->pages_held++;
	atomic_fetch_add(&c->held_bytes, PAGE);
}

/* The part of a page that the caller asked for. */
static void copy_out(const uint8_t *page_buf, size_t page, uint64_t off, size_t n, void *out)
{
	uint64_t start = (uint64_t)page * PAGE;
	uint64_t from = off > start ? off : start, to = off + n < start + PAGE ? off + n : start + PAGE;
	memcpy((uint8_t *)out + (from - off), page_buf + (from - start), (size_t)(to - from));
}

static errc read_pages(struct query_cache *c, struct cached *e, uint64_t size, uint64_t off, size_t n, void *out,
	errc (*fetch)(void *arg, uint64_t off, size_t n, void *buf, struct err *err), void *arg, struct err *err)
{
	size_t first = (size_t)(off / PAGE), last = (size_t)((off + n - 1) / PAGE);
	uint8_t page_buf[PAGE];
	for (size_t p = first; p <= last;) {
		pthread_mutex_lock(&e->mu);
		bool usable = open_files(c, e, size), hit = usable && page_read(c, e, p, page_buf);
		size_t run = 1;
		while (!hit && p + run <= last && run < RUN_PAGES_MAX && !(usable && e->present[p + run]))
			run++;
		pthread_mutex_unlock(&e->mu);
		if (hit) {
			metric_add(c->hits, 1);
			copy_out(page_buf, p, off, n, out);
			p++;
			continue;
		}
		/* One GET for a run of missing pages, without the lock: two readers may fetch the same, which only costs. */
		metric_add(c->misses, 1);
		uint64_t from = (uint64_t)p * PAGE, to = (uint64_t)(p + run) * PAGE < size ? (uint64_t)(p + run) * PAGE : size;
		uint8_t *buf = malloc((size_t)(to - from));
		if (!buf)
			return err_set(err, ERR_NOMEM, "no memory for a part of an index");
		errc rc = fetch(arg, from, (size_t)(to - from), buf, err);
		if (rc != OK) {
			free(buf);
			return rc;
		}
		pthread_mutex_lock(&e->mu);
		for (size_t i = 0; i < run; i++) {
			copy_out(buf + i * PAGE, p + i, off, n, out);
			if (e->fd >= 0 && e->size == size)
				page_write(c, e, p + i, buf + i * PAGE);
		}
		pthread_mutex_unlock(&e->mu);
		free(buf);
		p += run;
	}
	return OK;
}

errc query_cache_read(struct query_cache *c, struct ulid u, uint64_t size, uint64_t off, size_t n, void *buf,
	errc (*fetch)(void *arg, uint64_t off, size_t n, void *buf, struct err *err), void *arg, struct err *err)
{
	if (n == 0)
		return OK;
	if (off > size || n > size - off)
		return err_set(
			err, ERR_CORRUPT, "index of %s ends at byte %" PRIu64 ", %zu bytes were asked for at %" PRIu64, ulid_text(u).s, size, n, off);
	struct cached *e = c->max_bytes > 0 ? take(c, u) : NULL;
	if (!e)
		return fetch(arg, off, n, buf, err);
	errc rc = read_pages(c, e, size, off, n, buf, fetch, arg, err);
	give(c, e);
	return rc;
}

void query_cache_forget(struct query_cache *c, struct ulid u)
{
	pthread_mutex_lock(&c->mu);
	struct cached *e = find(c, u);
	if (e && e->refs == 0)
		destroy(c, e, true);
	else if (e)
		e->doomed = true;
	pthread_mutex_unlock(&c->mu);
}

/* What an earlier process left: counted by its maps, so that the bound holds from the start; pages are checked as they are used. */
static errc adopt(struct query_cache *c, struct err *err)
{
	struct arena a, text;
	char **names;
	size_t n;
	arena_init(&a, 256 * MIB);
	arena_init(&text, 256 * MIB);
	errc rc = io_listdir(c->dir, &a, &names, &n, err);
	for (size_t i = 0; rc == OK && i < n; i++) {
		struct span name = span_cstr(names[i]);
		struct ulid u;
		char path[4096];
		/* Pages whose map is gone mean nothing to anybody. */
		if (name.n == ULID_TEXT_BYTES + 6 && strcmp(names[i] + ULID_TEXT_BYTES, ".index") == 0 &&
			ulid_parse(span_of(name.p, ULID_TEXT_BYTES), &u)) {
			bool map = i + 1 < n && strncmp(names[i + 1], names[i], ULID_TEXT_BYTES) == 0;
			if (!map) {
				path_of(c, u, "index", path, sizeof path);
				(void)!io_unlink(path, NULL);
			}
			continue;
		}
		if (name.n != ULID_TEXT_BYTES + 4 || memcmp(name.p + ULID_TEXT_BYTES, ".map", 4) != 0 ||
			!ulid_parse(span_of(name.p, ULID_TEXT_BYTES), &u))
			continue;
		struct span map = {"", 0};
		path_of(c, u, "map", path, sizeof path);
		(void)!io_read_file(path, 64 * MIB, &text, &map, NULL);
		struct cached *e = add(c, u);
		if (!e) {
			rc = err_set(err, ERR_NOMEM, "no memory for the cache");
			break;
		}
		e->pages_held = map_count((const uint8_t *)map.p, map.n);
		atomic_fetch_add(&c->held_bytes, e->pages_held * PAGE);
		arena_reset(&text);
	}
	arena_free(&text);
	arena_free(&a);
	pthread_mutex_lock(&c->mu);
	evict(c, 0);
	pthread_mutex_unlock(&c->mu);
	return rc;
}

errc query_cache_open(const char *dir, uint64_t max_bytes, struct query_cache **out, struct err *err)
{
	errc rc = OK;
	struct query_cache *c = calloc(1, sizeof *c);
	if (!c)
		return err_set(err, ERR_NOMEM, "no memory for the cache");
	pthread_mutex_init(&c->mu, NULL);
	c->dir = strdup(dir);
	c->max_bytes = max_bytes;
	c->hits = metric_counter("varve_query_cache_hits_total", "Index pages read from the cache directory");
	c->misses = metric_counter("varve_query_cache_misses_total", "Ranges of bucket indexes that had to be fetched");
	c->evicted = metric_counter("varve_query_cache_evicted_total", "Blocks whose cached index pages were removed for room");
	c->bytes = metric_gauge("varve_query_cache_bytes", "Bytes of index pages in the cache directory");
	CHECK(c->dir, ERR_NOMEM, "no memory for the cache");
	TRY(io_mkdirs(dir, err));
	TRY(adopt(c, err));
	*out = c;
	return OK;
fail:
	query_cache_close(c);
	return rc;
}

void query_cache_close(struct query_cache *c)
{
	if (!c)
		return;
	while (c->oldest)
		destroy(c, c->oldest, false);
	pthread_mutex_destroy(&c->mu);
	free(c->dir);
	free(c);
}
