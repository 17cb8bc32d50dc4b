/* head/head_snapshot_pairs.c - label pairs of a snapshot: numbers become ids of this process, by a thread that runs ahead of the one that loads the rest.
 *
 * Strings are looked for by their hash, and nearly each look is a miss of the cache: a third of what loading costs, and nothing of it needs the series. The thread reads
 * the sections' headers and, of pairs alone, the sections. Whoever loads the rest waits at each section of pairs until it has been seen, and counts uses by number
 * instead of by the pair: they are added when all series are there. With one core there is no thread.
 */
#include <inttypes.h>
#include "head/head_replay_int.h"
#include "head/head_snapshot_int.h"

enum { PAGE = 65536, PAGES = 65536, GROUP = HEAD_PAIRS_LOAD };

struct page {
	uint32_t ids[PAGE];
	uint32_t used[PAGE]; /* by series; the loader's */
};

struct snapshot_pairs {
	struct head *head;
	const char *path;
	int fd;
	uint64_t size;
	uint32_t id; /* the snapshot's */
	struct page **pages;
	_Atomic uint32_t n; /* numbers given so far: what lies below stands */
	/* the thread's */
	bool runs;
	pthread_t thread;
	uint8_t *buf;
	size_t cap;
	pthread_mutex_t mu;
	pthread_cond_t seen_more;
	/* mu */
	uint32_t seen; /* sections */
	bool over, stop;
	errc rc;
	struct err err;
};

static errc bad(const struct snapshot_pairs *p, const char *what, struct err *err)
{
	return err_set(err, ERR_CORRUPT, "%s: %s", p->path, what);
}

static uint32_t id_at(const struct snapshot_pairs *p, uint32_t number)
{
	return p->pages[number / PAGE]->ids[number % PAGE];
}

/* ---- a section ---- */

static errc group_add(struct snapshot_pairs *p, const struct label *l, uint32_t n, struct err *err)
{
	errc rc = OK;
	uint32_t ids[GROUP], done = n, at = atomic_load_explicit(&p->n, memory_order_relaxed);
	for (uint32_t i = at; i < at + n; i++) {
		CHECK(i / PAGE < PAGES, ERR_CORRUPT, "%s: too many pairs", p->path);
		if (!p->pages[i / PAGE])
			p->pages[i / PAGE] = calloc(1, sizeof(struct page));
		CHECK(p->pages[i / PAGE], ERR_NOMEM, "no memory for the numbers of a snapshot");
	}
	rc = head_pairs_load(&p->head->symbols, l, &done, ids, err);
	for (uint32_t i = 0; i < done; i++)
		p->pages[(at + i) / PAGE]->ids[(at + i) % PAGE] = ids[i];
	atomic_store_explicit(&p->n, at + done, memory_order_release);
fail:
	return rc;
}

static errc pairs_get(struct snapshot_pairs *p, struct rd *b, struct err *err)
{
	errc rc = OK;
	const struct symbols *sy = &p->head->symbols;
	struct label l[GROUP];
	while (b->p < b->end) {
		uint32_t n = 0, known = atomic_load_explicit(&p->n, memory_order_relaxed);
		for (; n < GROUP && b->p < b->end; n++) {
			uint64_t name = rd_uvarint(b);
			if (name > (uint64_t)known + n)
				return bad(p, "a pair with an unknown name", err);
			l[n].name = name == 0	    ? rd_str(b)
				    : name <= known ? head_pair_label(head_pair(sy, id_at(p, (uint32_t)name - 1))).name
						    : l[name - known - 1].name;
			l[n].value = rd_str(b);
			if (!b->ok || l[n].name.n == 0 || l[n].value.n == 0 || l[n].name.n > HEAD_SERIES_WIRE_BYTES ||
				l[n].value.n > HEAD_SERIES_WIRE_BYTES)
				return bad(p, "pairs", err);
		}
		TRY(group_add(p, l, n, err));
	}
fail:
	return rc;
}

/* ---- the thread ---- */

static errc section_read(struct snapshot_pairs *p, uint64_t *off, uint32_t number, bool *end, struct err *err)
{
	errc rc = OK;
	uint8_t head[SNAPSHOT_SECTION_HEADER];
	TRY(io_pread_full(p->fd, head, sizeof head, *off, err));
	uint32_t kind = get_le32(head), n = get_le32(head + 4);
	if (n > SNAPSHOT_SECTION_MAX || get_le32(head + 8) != number || get_le32(head + 12) != p->id)
		return bad(p, "no section", err);
	if (kind == SNAPSHOT_PAIRS) {
		if (n > p->cap) {
			free(p->buf);
			p->cap = 0;
			p->buf = malloc(n);
			CHECK(p->buf, ERR_NOMEM, "no memory for a section of the snapshot");
			p->cap = n;
		}
		TRY(io_pread_full(p->fd, p->buf, n, *off + SNAPSHOT_SECTION_HEADER, err));
		if (get_le32(head + 16) != crc32c(crc32c(0, head, 16), p->buf, n))
			return bad(p, "the checksum does not match", err);
		struct rd body = rd_of(p->buf, n);
		TRY(pairs_get(p, &body, err));
	}
	*off += (uint64_t)SNAPSHOT_SECTION_HEADER + n;
	*end = kind == SNAPSHOT_END || *off >= p->size;
fail:
	return rc;
}

static void *pairs_main(void *arg)
{
	struct snapshot_pairs *p = arg;
	uint64_t off = SNAPSHOT_HEADER;
	struct err err = {0};
	bool end = false;
	for (uint32_t number = 0; !end; number++) {
		errc rc = section_read(p, &off, number, &end, &err);
		pthread_mutex_lock(&p->mu);
		p->seen = number + 1;
		if (rc != OK) {
			p->rc = rc;
			p->err = err;
		}
		end |= rc != OK || p->stop;
		p->over = end;
		pthread_cond_signal(&p->seen_more);
		pthread_mutex_unlock(&p->mu);
	}
	return NULL;
}

errc snapshot_pairs_open(struct head *h, const char *path, int fd, uint64_t size, uint32_t id, struct snapshot_pairs **out, struct err *err)
{
	errc rc = OK;
	struct snapshot_pairs *p = *out = calloc(1, sizeof *p);
	CHECK(p, ERR_NOMEM, "no memory for the numbers of a snapshot");
	*p = (struct snapshot_pairs){.head = h, .path = path, .fd = fd, .size = size, .id = id};
	pthread_mutex_init(&p->mu, NULL);
	pthread_cond_init(&p->seen_more, NULL);
	p->pages = calloc(PAGES, sizeof *p->pages);
	CHECK(p->pages, ERR_NOMEM, "no memory for the numbers of a snapshot");
	p->runs = head_replay_threads(h) > 1 && pthread_create(&p->thread, NULL, pairs_main, p) == 0;
fail:
	return rc;
}

errc snapshot_pairs_section(struct snapshot_pairs *p, uint32_t number, struct rd *b, struct err *err)
{
	if (!p->runs)
		return pairs_get(p, b, err);
	pthread_mutex_lock(&p->mu);
	while (p->seen <= number && !p->over)
		pthread_cond_wait(&p->seen_more, &p->mu);
	errc rc = p->seen > number && p->rc == OK ? OK : p->rc != OK ? p->rc : ERR_CORRUPT;
	if (rc != OK && err)
		*err = p->err;
	pthread_mutex_unlock(&p->mu);
	return rc;
}

/* ---- numbers ---- */

uint32_t snapshot_pairs_n(const struct snapshot_pairs *p)
{
	return atomic_load_explicit(&p->n, memory_order_acquire);
}

uint32_t snapshot_pair(const struct snapshot_pairs *p, uint32_t number)
{
	return id_at(p, number);
}

void snapshot_pairs_use(struct snapshot_pairs *p, const uint32_t *numbers, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		p->pages[numbers[i] / PAGE]->used[numbers[i] % PAGE]++;
}

void snapshot_pairs_settle(struct snapshot_pairs *p)
{
	if (!p)
		return;
	if (p->runs) {
		pthread_mutex_lock(&p->mu);
		p->stop = true;
		pthread_mutex_unlock(&p->mu);
		pthread_join(p->thread, NULL);
		p->runs = false;
	}
	struct symbols *sy = &p->head->symbols;
	uint32_t n = snapshot_pairs_n(p);
	pthread_mutex_lock(&sy->mu);
	for (uint32_t i = 0; i < n; i++)
		head_pair(sy, id_at(p, i))->refs += p->pages[i / PAGE]->used[i % PAGE];
	pthread_mutex_unlock(&sy->mu);
	/* What they were held by until now. */
	for (uint32_t i = 0; i < n; i += PAGE)
		head_pairs_unref(sy, p->pages[i / PAGE]->ids, n - i < PAGE ? n - i : (uint32_t)PAGE);
	atomic_store_explicit(&p->n, 0, memory_order_relaxed);
}

void snapshot_pairs_free(struct snapshot_pairs *p)
{
	if (!p)
		return;
	snapshot_pairs_settle(p);
	for (uint32_t i = 0; p->pages && i < PAGES && p->pages[i]; i++)
		free(p->pages[i]);
	free(p->pages);
	free(p->buf);
	pthread_mutex_destroy(&p->mu);
	pthread_cond_destroy(&p->seen_more);
	free(p);
}
