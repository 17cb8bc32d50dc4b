/* head/head_snapshot.c - when a snapshot of the head is written, and when it is dropped. Bytes: docs/format/snapshot.md.
 *
 * The log is the truth, and goes on to be kept and removed by its own rules. A snapshot (CHUNK_DIR/snapshot) only saves a start most of the
 * reading: it holds what the log says up to a frame, so that a start is snapshot and tail. Whatever is wrong with it, it is ignored and the
 * log read as a whole; so one copy is enough, and nothing that was acknowledged depends on it.
 *
 *     log  ─────────────────────────── mark ───── synced ────▶
 *     head  applied before it is logged │            │
 *     snapshot: series, windows ... copied slice by slice ... log synced, file synced, renamed
 *
 * What stands in frames up to the mark was in the head when copying began. What came meanwhile may be in the copy or not; replay goes on
 * behind the mark and skips, series by series, what is known to be there (wseries.known_seq). Before the new name the log is synced, so a
 * snapshot never has a sample that the log has not.
 *
 * It is written when the tail that a start would have to read has grown above --head.snapshot-tail and a quarter of the last snapshot, so that at most four bytes are
 * written for one of the log; and not oftener than leaves 15/16 of the time free of it. By the cutter's thread, which has no cut to do at that moment; once more when
 * the process stops.
 */
#include <stdio.h>
#include "head/head_snapshot_int.h"

enum {
	PAUSE_FACTOR = 15,
	BYTES_PER_TAIL = 4,
	RETRY_S = 30,
	GROWING_SHIFT = 3, /* an eighth more series than at the tick before */
	GROWING_TAILS = 16
};
#define STOPPING_BYTES_MAX (512 * MIB) /* above, writing one at the end would make stopping long */

void head_snapshot_path(const struct head *h, bool tmp, char *out)
{
	snprintf(out, SNAPSHOT_PATH_BYTES, "%s/snapshot%s", h->cfg.chunk_dir, tmp ? ".tmp" : "");
}

void head_snapshot_drop(struct head *h, const char *why)
{
	char path[SNAPSHOT_PATH_BYTES];
	struct err err = {0};
	head_snapshot_path(h, false, path);
	pthread_mutex_lock(&h->snap.mu);
	bool first = !h->snap.damaged;
	h->snap.damaged = true;
	if (first) {
		errc rc = io_unlink(path, &err);
		if (rc == OK)
			rc = io_fsync_dir(h->cfg.chunk_dir, &err);
		if (rc != OK && rc != ERR_NOTFOUND)
			log_error("the snapshot could not be removed: remove it before the next start", LSTR("path", path), LERR(&err));
	}
	pthread_mutex_unlock(&h->snap.mu);
	if (!first)
		return;
	atomic_store(&h->snap.written_ms, 0);
	metric_add(h->m.snapshot_failures, 1);
	log_error("there is no snapshot of the head until the next start, which reads the whole log", LSTR("why", why));
}

/* Series that come by the hundred thousand are soon all there; a snapshot in the middle would be old at once. */
static bool still_growing(struct head *h, uint64_t tail)
{
	uint64_t n = atomic_load_explicit(&h->n_series, memory_order_relaxed), before = h->snap.n_series;
	h->snap.n_series = n;
	return n > before + (before >> GROWING_SHIFT) && tail < h->cfg.snapshot_tail_bytes * GROWING_TAILS;
}

static bool due(struct head *h, bool stopping)
{
	struct wal_status st;
	if (h->cfg.snapshot_tail_bytes == 0 || h->snap.damaged)
		return false;
	wal_status(h->cfg.wal, &st);
	if (st.failed || st.no_space)
		return false;
	uint64_t tail = st.pos - (st.pos < h->snap.pos ? st.pos : h->snap.pos);
	bool growing = still_growing(h, tail);
	uint64_t bytes = atomic_load(&h->snap.bytes);
	if (tail < h->cfg.snapshot_tail_bytes)
		return false;
	if (stopping)
		return bytes <= STOPPING_BYTES_MAX && head_memory(h) <= 2 * STOPPING_BYTES_MAX;
	return !growing && tail >= bytes / BYTES_PER_TAIL && io_mono_ns() >= h->snap.not_before_ns;
}

/* A disk that is nearly full belongs to the log, and below --disk.reserve writes are refused. */
static bool fits(struct head *h)
{
	uint64_t total, left, size = atomic_load(&h->snap.bytes) * 2, least = head_memory(h) / 2;
	if (io_statfs(h->cfg.chunk_dir, &total, &left, NULL) != OK)
		return true;
	uint64_t reserve = total / 32 > GIB ? total / 32 : GIB;
	reserve = reserve < total / 4 ? reserve : total / 4;
	return left >= reserve + (size > least ? size : least);
}

void head_snapshot_maybe(struct head *h, bool stopping)
{
	pthread_mutex_lock(&h->windows_mu);
	bool wanted = h->snap.wanted;
	h->snap.wanted = false;
	pthread_mutex_unlock(&h->windows_mu);
	if (!wanted && !due(h, stopping))
		return;
	struct err err = {0};
	int64_t begin = io_mono_ns();
	if (!wanted && !fits(h)) {
		h->snap.not_before_ns = begin + RETRY_S * INT64_C(1000000000);
		return;
	}
	errc rc = head_snapshot_write(h, &err);
	int64_t took = io_mono_ns() - begin;
	h->snap.not_before_ns = io_mono_ns() + took * PAUSE_FACTOR;
	if (rc == OK) {
		metric_add(h->m.snapshots, 1);
		metric_set(h->m.snapshot_seconds, (double)took / 1e9);
	} else {
		metric_add(h->m.snapshot_failures, 1);
		h->snap.not_before_ns = io_mono_ns() + RETRY_S * INT64_C(1000000000);
		log_warn("no snapshot of the head now; it is tried again", LERR(&err));
	}
	pthread_mutex_lock(&h->windows_mu);
	h->snap.tries++;
	h->snap.last = rc;
	pthread_cond_broadcast(&h->done);
	pthread_mutex_unlock(&h->windows_mu);
}

errc head_snapshot(struct head *h, struct err *err)
{
	errc rc = OK;
	pthread_mutex_lock(&h->windows_mu);
	uint64_t tries = h->snap.tries + 1;
	/* One that is being written may have begun before what the caller wants in it. */
	bool once_more = true;
	h->snap.wanted = h->woken = true;
	pthread_cond_signal(&h->wake);
	while (once_more && h->cutter_runs && !atomic_load(&h->stop)) {
		if (h->snap.tries >= tries && !h->snap.wanted)
			once_more = false;
		else
			pthread_cond_wait(&h->done, &h->windows_mu);
	}
	rc = once_more ? ERR_CANCELED : h->snap.last;
	pthread_mutex_unlock(&h->windows_mu);
	return rc == OK ? OK : err_set(err, rc, "no snapshot was written (see the log)");
}

errc head_snapshot_look(const char *path, struct head_snapshot_info *out, struct err *err)
{
	errc rc = OK;
	int fd = -1;
	uint8_t p[SNAPSHOT_HEADER + SNAPSHOT_SECTION_HEADER + SNAPSHOT_MARK_BYTES];
	const uint8_t *section = p + SNAPSHOT_HEADER, *body = section + SNAPSHOT_SECTION_HEADER;
	size_t got;
	TRY(io_open(path, IO_READ, &fd, err));
	TRY(io_size(fd, &out->bytes, err));
	TRY(io_pread(fd, p, sizeof p, 0, &got, err));
	CHECK(got >= SNAPSHOT_HEADER && memcmp(p, "varvesnp", 8) == 0, ERR_CORRUPT, "%s: no snapshot", path);
	CHECK(get_le32(p + 8) == SNAPSHOT_VERSION, ERR_UNSUPPORTED, "%s has version %u, this varve reads %d", path, get_le32(p + 8),
		SNAPSHOT_VERSION);
	CHECK(got == sizeof p && get_le32(section) == SNAPSHOT_MARK && get_le32(section + 4) == SNAPSHOT_MARK_BYTES &&
			get_le32(section + 16) == crc32c(crc32c(0, section, 16), body, SNAPSHOT_MARK_BYTES),
		ERR_CORRUPT, "%s: its mark is damaged", path);
	out->frame = get_le64(body);
	out->segment = get_le64(body + 24);
	out->offset = get_le64(body + 32);
	out->written_ms = (int64_t)get_le64(body + 48);
	out->series = get_le64(body + 56);
fail:
	io_close(fd);
	return rc;
}
