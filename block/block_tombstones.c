/* block/block_tombstones.c - what was deleted from a block without writing it again.
 *
 *   offset  size  field
 *        0     4  magic      u32 BE 0x0130BA30
 *        4     1  version    1
 *        5     -  entries    uvarint series reference, varint mint, varint maxt (closed)
 *     last     4  CRC-32C    of the entries only: 0 when there are none
 *
 * Source: Prometheus tsdb/docs/format/tombstones.md, tsdb/tombstones/tombstones.go.
 */
#include <inttypes.h>
#include <stdlib.h>
#include "base/limits.h"
#include "block/block_read_int.h"

enum { TOMBSTONES_HEADER_BYTES = 5, TOMBSTONE_MIN_BYTES = 3 };
static const uint32_t TOMBSTONES_MAGIC = 0x0130BA30;

static int by_series_and_time(const void *a, const void *b)
{
	const struct tombstone *x = a, *y = b;
	if (x->ref != y->ref)
		return x->ref < y->ref ? -1 : 1;
	return (x->at.mint > y->at.mint) - (x->at.mint < y->at.mint);
}

/* Overlapping and touching intervals of a series become one. */
static void merge(struct tombstones *t)
{
	size_t n = 0;
	for (size_t i = 0; i < t->n; i++) {
		struct tombstone *last = n ? &t->v[n - 1] : NULL;
		if (last && last->ref == t->v[i].ref && (last->at.maxt == INT64_MAX || t->v[i].at.mint <= last->at.maxt + 1)) {
			if (t->v[i].at.maxt > last->at.maxt)
				last->at.maxt = t->v[i].at.maxt;
		} else {
			t->v[n++] = t->v[i];
		}
	}
	t->n = n;
}

errc tombstones_parse(const char *name, struct span data, struct tombstones *out, struct err *err)
{
	errc rc = OK;
	*out = (struct tombstones){NULL, 0};
	CHECK(data.n >= TOMBSTONES_HEADER_BYTES + CRC_BYTES, ERR_CORRUPT, "%s: %zu bytes, at least %d are needed", name, data.n,
		TOMBSTONES_HEADER_BYTES + CRC_BYTES);
	const uint8_t *p = (const uint8_t *)data.p;
	CHECK(get_be32(p) == TOMBSTONES_MAGIC, ERR_CORRUPT, "%s: begins with %08" PRIx32 ", tombstones with %08" PRIx32, name, get_be32(p),
		TOMBSTONES_MAGIC);
	CHECK(p[4] == 1, ERR_UNSUPPORTED, "%s: tombstones of version %u are not read", name, p[4]);
	struct rd rd = rd_of(p + TOMBSTONES_HEADER_BYTES, data.n - TOMBSTONES_HEADER_BYTES - CRC_BYTES);
	CHECK(crc32c(0, rd.p, rd_left(&rd)) == get_be32(rd.end), ERR_CORRUPT, "%s: CRC differs", name);
	if (rd_left(&rd) == 0)
		return OK;
	out->v = malloc((rd_left(&rd) / TOMBSTONE_MIN_BYTES + 1) * sizeof *out->v);
	CHECK(out->v, ERR_NOMEM, "%s: %zu bytes", name, data.n);
	while (rd_left(&rd) > 0) {
		size_t at = (size_t)(rd.p - p);
		struct tombstone x;
		x.ref = rd_uvarint(&rd);
		x.at.mint = rd_varint(&rd);
		x.at.maxt = rd_varint(&rd);
		CHECK(rd.ok && x.at.mint <= x.at.maxt, ERR_CORRUPT, "%s: the entry at %zu ends early or before it begins", name, at);
		out->v[out->n++] = x;
	}
	qsort(out->v, out->n, sizeof *out->v, by_series_and_time);
	merge(out);
fail:
	if (rc)
		tombstones_free(out);
	return rc;
}

errc tombstones_read(struct block_files *files, const char *name, struct tombstones *out, struct err *err)
{
	errc rc = OK;
	uint64_t size = 0;
	void *data = NULL;
	*out = (struct tombstones){NULL, 0};
	struct err missing = {0};
	rc = files->size(files, "tombstones", &size, &missing);
	if (rc == ERR_NOTFOUND)
		return OK;
	CHECK(rc == OK, rc, "%s", missing.msg);
	CHECK(size <= LIMIT_TOMBSTONES_BYTES, ERR_LIMIT, "%s: %" PRIu64 " bytes, at most %" PRIu64 " are read", name, size, LIMIT_TOMBSTONES_BYTES);
	data = malloc((size_t)size + 1);
	CHECK(data, ERR_NOMEM, "%s: %" PRIu64 " bytes", name, size);
	TRY(files->read(files, "tombstones", 0, (size_t)size, data, err));
	TRY(tombstones_parse(name, span_of(data, (size_t)size), out, err));
fail:
	free(data);
	return rc;
}

void tombstones_free(struct tombstones *t)
{
	free(t->v);
	*t = (struct tombstones){NULL, 0};
}

const struct tombstone *tombstones_of(const struct tombstones *t, uint64_t ref, size_t *n)
{
	size_t low = 0, high = t->n;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (t->v[mid].ref < ref)
			low = mid + 1;
		else
			high = mid;
	}
	size_t end = low;
	while (end < t->n && t->v[end].ref == ref)
		end++;
	*n = end - low;
	return t->v + low;
}
