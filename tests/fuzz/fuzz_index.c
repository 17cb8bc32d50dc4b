/* fuzz: needs block */
/* An index: as it is, and with every CRC in it put right, so that what stands behind the checksums is reached. Opened, listed, selected,
 * verified; symbols kept in memory and not. Chunks are one short, valid one wherever they are asked for.
 */
#include <stdio.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_read_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct files {
	struct block_files base;
	const uint8_t *index;
	size_t n;
};

/* XOR: (1000, 1.0) (16000, 1.0) */
static const uint8_t chunk[] = {0x0f, 1, 0, 2, 0xd0, 0x0f, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 0x98, 0x75, 0, 0x7c, 0x0a, 0xfe, 0xe4};
enum { SEGMENT_BYTES = 4096 };

static errc files_read(struct block_files *base, const char *path, uint64_t off, size_t n, void *buf, struct err *err)
{
	struct files *f = (struct files *)base;
	if (strcmp(path, "index") != 0) {
		if (off > SEGMENT_BYTES || n > SEGMENT_BYTES - off)
			return err_set(err, ERR_CORRUPT, "%s: too short", path);
		for (size_t i = 0; i < n; i++)
			((uint8_t *)buf)[i] = chunk[i % sizeof chunk];
		return OK;
	}
	if (off > f->n || n > f->n - off)
		return err_set(err, ERR_CORRUPT, "index: too short");
	memcpy(buf, f->index + off, n);
	return OK;
}

static errc files_size(struct block_files *base, const char *path, uint64_t *size, struct err *err)
{
	struct files *f = (struct files *)base;
	if (strcmp(path, "index") == 0)
		*size = f->n;
	else if (strcmp(path, "chunks/000001") == 0)
		*size = SEGMENT_BYTES;
	else
		return err_set(err, ERR_NOTFOUND, "%s is not there", path);
	return OK;
}

static void files_close(struct block_files *base)
{
	(void)base;
}

/* The CRC of len bytes at off, behind them, when they are inside. */
static void repair(uint8_t *p, size_t n, uint64_t off, uint64_t len)
{
	if (off <= n && len <= n - off && n - off - len >= 4)
		put_be32(p + off + len, crc32c(0, p + off, (size_t)len));
}

static void repair_section(uint8_t *p, size_t n, uint64_t off)
{
	if (off <= n && n - off >= 4)
		repair(p, n, off + 4, get_be32(p + off));
}

static void repair_all(uint8_t *p, size_t n)
{
	if (n < 57)
		return;
	put_be32(p, 0xBAAAD700);
	p[4] = 2;
	const uint8_t *toc = p + n - 52;
	uint64_t symbols = get_be64(toc), series = get_be64(toc + 8), postings = get_be64(toc + 32), table = get_be64(toc + 40);
	repair_section(p, n, symbols);
	for (uint64_t off = (series + 15) / 16 * 16; off >= series && off < postings && off < n;) {
		struct rd rd = rd_of(p + off, n - off);
		uint64_t len = rd_uvarint(&rd), head = (uint64_t)(rd.p - (p + off));
		if (!rd.ok || len > n)
			break;
		repair(p, n, off + head, len);
		off = (off + head + len + 4 + 15) / 16 * 16;
	}
	if (table <= n && n - table >= 8) {
		struct rd rd = rd_of(p + table + 8, n - table - 8);
		for (uint32_t i = get_be32(p + table + 4); i > 0 && rd.ok; i--) {
			(void)rd_uvarint(&rd);
			(void)rd_str(&rd);
			(void)rd_str(&rd);
			uint64_t list = rd_uvarint(&rd);
			if (rd.ok)
				repair_section(p, n, list);
		}
		repair_section(p, n, table);
	}
	repair(p, n, n - 52, 48);
}

static errc emit(void *arg, struct span value, struct err *err)
{
	(void)err;
	*(size_t *)arg += value.n;
	return OK;
}

static void problem(void *arg, const char *text)
{
	*(size_t *)arg += strlen(text);
}

static void drain(struct source *s, const struct matcher *m, size_t n, bool labels_only)
{
	struct select_options opt = {.mint = INT64_MIN, .maxt = INT64_MAX, .skip_chunks = labels_only};
	struct series_iter *it;
	struct series_view view;
	bool more = true;
	if (s->ops->select(s, m, n, &opt, &it, NULL))
		return;
	while (it->ops->next(it, &view, &more, NULL) == OK && more) {
		if (view.labels.n > 0 && view.labels.v[0].name.n == 0)
			abort();
		for (size_t i = 1; i < view.n_chunks; i++)
			if (view.chunks[i - 1].mint > view.chunks[i].mint)
				abort();
	}
	it->ops->close(it);
}

static void use(const uint8_t *data, size_t n)
{
	struct files f = {{files_read, files_size, files_close}, data, n};
	struct block_meta meta = {.ulid = {{1}}, .mint = INT64_MIN, .maxt = INT64_MAX};
	struct select_options all = {.mint = INT64_MIN, .maxt = INT64_MAX};
	struct block *b;
	size_t sum = 0;
	(void)!block_verify(&f.base, &meta, problem, &sum, NULL);
	if (block_open(&f.base, &meta, NULL, &b, NULL))
		return;
	struct source *s;
	struct arena a;
	struct matcher *m;
	size_t n_m;
	arena_init(&a, MIB);
	if (block_source(b, "fuzz", &s, NULL) == OK) {
		drain(s, NULL, 0, false);
		drain(s, NULL, 0, true);
		if (matchers_parse(SPAN("{a=~\".+\",__name__!~\"x.*\",b!=\"c\"}"), &a, &m, &n_m, NULL) == OK) {
			drain(s, m, n_m, true);
			matchers_free(m, n_m);
		}
		(void)!s->ops->label_names(s, NULL, 0, &all, emit, &sum, NULL);
		(void)!s->ops->label_values(s, SPAN("a"), NULL, 0, &all, emit, &sum, NULL);
		s->ops->release(s);
	}
	block_unref(b);
	arena_free(&a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	block_symbols_kept_bytes = size % 2 ? 0 : 16 * MIB;
	use(data, size);
	uint8_t *copy = malloc(size ? size : 1);
	if (!copy)
		return 0;
	memcpy(copy, data, size);
	repair_all(copy, size);
	use(copy, size);
	free(copy);
	return 0;
}
